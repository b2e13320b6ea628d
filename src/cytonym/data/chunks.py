"""Read chunks of an image from wherever it is stored, into memory that is used again."""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
import zarr.buffer
import zarr.storage
from dask.array import Array as DaskArray
from dask.array import core as dask_core

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike

    Span = tuple[int, int]
    Box = tuple[Span, Span]  # rows, columns


def available_threads() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_pixels(pixels: Any) -> None:
    """Raise unless `pixels` is an image [C, H, W] that `iter_tiles` can read."""
    if not isinstance(pixels, zarr.Array | DaskArray | np.ndarray):
        msg = f"`pixels` must be a zarr, dask or numpy array, got {type(pixels).__name__}."
        raise TypeError(msg)
    if pixels.ndim != 3:
        msg = f"`pixels` must be [C, H, W], got an array of shape {tuple(pixels.shape)}."
        raise ValueError(msg)
    dtype = np.dtype(pixels.dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        msg = f"`pixels` must be integers, floats or truth values of at most 64 bits, got {dtype}."
        raise TypeError(msg)


def zarr_behind(array: Any) -> zarr.Array | None:
    """The Zarr array that `array` is, or only reads; None where any other operation is involved.

    Every task of a dask graph is looked at: each must be a plain read of its own block. Reading the Zarr array then gives the
    same pixels, into memory of one's choice and with channels of one tile side by side.

    Parameters
    ----------
    array
        Any array.

    Returns
    -------
    `zarr.Array` or None.

    Examples
    --------
    >>> import dask.array as da, zarr
    >>> stored = zarr.ones(shape=(2, 4, 4), chunks=(1, 4, 4))
    >>> zarr_behind(da.from_zarr(stored)) is stored, zarr_behind(da.from_zarr(stored) + 1)
    (True, None)
    """
    if isinstance(array, zarr.Array):
        return array
    if not isinstance(array, DaskArray) or math.prod(array.numblocks) == 0:
        return None
    graph = dict(array.__dask_graph__())
    found = [(key, task) for key, task in graph.items() if not _is_block(key, array.name)]
    key: Any = None
    stored: Any = None
    if len(found) == 1:
        key, stored = found[0]
    elif not found:  # the array may stand in each task
        arguments: Sequence[Any] = getattr(next(iter(graph.values())), "args", ())
        stored = arguments[0] if arguments else None
    stored = getattr(stored, "value", stored)
    if not isinstance(stored, zarr.Array) or stored.shape != array.shape or stored.dtype != array.dtype:
        return None
    ends = [np.cumsum(sizes).tolist() for sizes in array.chunks]
    for block in product(*map(range, array.numblocks)):
        task = graph.get((array.name, *block))
        box = tuple(
            slice(end[i] - sizes[i], end[i], None) for i, end, sizes in zip(block, ends, array.chunks, strict=True)
        )
        if not _reads(task, key, stored, box):
            return None
    return stored


def in_memory(array: Any) -> bool:
    """Whether an array holds pixels itself, so that whoever sends it to another process sends these too.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> in_memory(np.ones((2, 4, 4))), in_memory(da.from_array(np.ones((2, 4, 4))) + 1), in_memory(da.ones((2, 4, 4)))
    (True, True, False)
    """
    stored = zarr_behind(array)
    if stored is not None:
        return isinstance(stored.store, zarr.storage.MemoryStore)
    if not isinstance(array, DaskArray):
        return True
    graph = dict(array.__dask_graph__())
    return any(isinstance(getattr(node, "value", node), np.ndarray) for node in graph.values())


def _is_block(key: Any, name: str) -> bool:
    return isinstance(key, tuple) and key[0] == name


def _reads(task: Any, key: Any, stored: zarr.Array, box: tuple[slice, ...]) -> bool:
    """Whether a task is dask's read of this box of this array, without a lock."""
    readers = (dask_core.getter, dask_core.getter_nofancy, dask_core.getter_inline)
    arguments: Sequence[Any] = getattr(task, "args", ())
    if getattr(task, "func", None) not in readers or len(arguments) != 2 or (task.kwargs or {}).get("lock"):
        return False
    source, index = arguments
    same = getattr(source, "value", None) is stored or (key is not None and getattr(source, "key", None) == key)
    return same and getattr(index, "value", index) == box


class Buffers:
    """Arrays whose memory is used again once nobody else holds it.

    Memory that is new to the process costs a page fault every few kB, which can take as long as decoding. Memory is handed
    out again only when its owner has no reference but ours: whoever keeps an array, a view or a tensor of it keeps
    its content too. At most `keep` pieces are kept, the others are ordinary arrays.
    """

    def __init__(self, nbytes: int, keep: int) -> None:
        self._nbytes, self._keep = nbytes, keep
        self._owners: list[np.ndarray] = []
        self._idle = self._references([np.empty(0, dtype=np.uint8)], 0)

    @staticmethod
    def _references(owners: list[np.ndarray], i: int) -> int:
        return sys.getrefcount(owners[i])

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
        """An array with undefined content, of at most the size said at the start."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        idle = [i for i in range(len(self._owners)) if self._references(self._owners, i) <= self._idle]
        if idle:
            owner = self._owners[idle[0]]
        else:
            owner = np.empty(self._nbytes, dtype=np.uint8)
            if len(self._owners) < self._keep:
                self._owners.append(owner)
        return owner[:nbytes].view(dtype).reshape(shape)


def cut(box: Box, origin: Sequence[int]) -> tuple[slice, slice, slice]:
    """Index of a box of the image in an array [C, h, w] whose first pixel is the image's pixel `origin`."""
    (y0, y1), (x0, x1) = box
    return slice(None), slice(y0 - origin[0], y1 - origin[0]), slice(x0 - origin[1], x1 - origin[1])


def read_tasks(
    array: zarr.Array | DaskArray, channels: np.ndarray, box: Box, out: np.ndarray, threads: int
) -> list[Callable[[], None]]:
    """Independent reads that together fill `out` [C, h, w] with a box of the image, each chunk in one of them."""
    if isinstance(array, DaskArray):
        return [partial(_read_dask, array, channels, box, out, threads)]
    tasks: list[Callable[[], None]] = []
    per_chunk, rows = array.chunks[0], array.chunks[1]
    for group in np.unique(channels // per_chunk):
        places = np.flatnonzero(channels // per_chunk == group)
        for y in range(*box[0], rows):
            part = ((y, min(y + rows, box[0][1])), box[1])
            view = out[cut(part, (box[0][0], box[1][0]))]
            tasks.append(partial(_read_zarr, array, channels[places], part, view, places))
    return tasks


def _read_zarr(array: zarr.Array, channels: np.ndarray, box: Box, out: np.ndarray, places: np.ndarray) -> None:
    """Channels of one layer of chunks into the rows `places` of `out`."""
    first, last = int(channels.min()), int(channels.max()) + 1
    index = (slice(first, last), slice(*box[0]), slice(*box[1]))
    in_line = bool((np.diff(channels) == 1).all() and (np.diff(places) == 1).all())
    if in_line:  # decode straight into place
        target: Any = out[places[0] : places[-1] + 1]
        prototype = zarr.buffer.default_buffer_prototype()
        array.get_basic_selection(index, out=prototype.nd_buffer.from_ndarray_like(target), prototype=prototype)
    else:
        out[places] = np.asarray(array[index])[channels - first]


def _read_dask(array: DaskArray, channels: np.ndarray, box: Box, out: np.ndarray, threads: int) -> None:
    """All channels of a tile in one computation, so that tasks they share run once."""
    if len(channels):
        part = array[:, slice(*box[0]), slice(*box[1])]
        if not np.array_equal(channels, np.arange(array.shape[0])):
            part = part[channels]
        out[...] = part.compute(scheduler="threads", num_workers=threads)
