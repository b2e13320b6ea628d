"""Parts of stored images, read by whole chunks that are decoded once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from dask.array import Array as DaskArray

from cytonym.data.chunks import zarr_behind
from cytonym.data.patches import bin_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    Key = tuple[int, int, int, int]

CACHE_BYTES = 512 * 2**20
LEAST_PX = 256
"""Smaller chunks are read several at a time."""
MEMORY_PX = 512
"""Side of a block of an array in memory."""
NUMBERS = count()


class Cache:
    """Arrays by key; those that were not used for longest go when there are too many bytes."""

    def __init__(self, nbytes: int = CACHE_BYTES) -> None:
        self.nbytes = nbytes
        self.used = 0
        self._kept: OrderedDict[Key, np.ndarray] = OrderedDict()
        self._lock = Lock()
        self._places = [Lock() for _ in range(64)]

    def at(self, key: tuple[int, ...]) -> Lock:
        """Lock of a place, so that two readers do not decode it twice."""
        return self._places[hash(key) % len(self._places)]

    def get(self, key: Key) -> np.ndarray | None:
        """What is kept under a key."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Key, array: np.ndarray) -> None:
        """Keep an array."""
        with self._lock:
            before = self._kept.pop(key, None)
            self.used -= 0 if before is None else before.nbytes
            if array.nbytes > self.nbytes:
                return
            self._kept[key] = array
            self.used += array.nbytes
            while self.used > self.nbytes:
                self.used -= self._kept.popitem(last=False)[1].nbytes


class Blocks:
    """An image [C, H, W], or a label image [H, W], as a grid of blocks of whole chunks.

    Parameters
    ----------
    array
        zarr, dask or numpy.
    cache
        Where decoded chunks are kept; several images may share one. Arrays in memory are not copied there.
    """

    def __init__(self, array: Any, cache: Cache) -> None:
        stored = zarr_behind(array)
        self.array = array if stored is None else stored
        self.cache = cache
        self.number = next(NUMBERS)
        self.flat = self.array.ndim == 2
        self.dtype = np.dtype(self.array.dtype).newbyteorder("=")
        self.shape: tuple[int, ...] = tuple(int(side) for side in self.array.shape)
        sides = (1, *self.shape) if self.flat else self.shape
        chunks = (1, *_chunks(self.array)) if self.flat else _chunks(self.array)
        self.groups, self.rows, self.columns = (
            _edges(side, chunk, least)
            for side, chunk, least in zip(sides, chunks, (1, LEAST_PX, LEAST_PX), strict=True)
        )

    def over(self, y0: int, y1: int, x0: int, x1: int) -> Iterator[tuple[int, int]]:
        """Blocks that a box of pixels touches."""
        _, height, width = (1, *self.shape[-2:])
        spans = [
            _touched(edges, max(a, 0), min(b, side))
            for edges, a, b, side in ((self.rows, y0, y1, height), (self.columns, x0, x1, width))
        ]
        for i in spans[0]:
            for j in spans[1]:
                yield i, j

    def box(self, i: int, j: int) -> tuple[int, int, int, int]:
        """Rows y0 ... y1 - 1 and columns x0 ... x1 - 1 of a block."""
        return int(self.rows[i]), int(self.rows[i + 1]), int(self.columns[j]), int(self.columns[j + 1])

    def parts(self, i: int, j: int, channels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pixels of a block: for each layer of chunks the places of its channels in `channels`, and their planes [c, h, w]."""
        y0, y1, x0, x1 = self.box(i, j)
        if isinstance(self.array, np.ndarray):
            whole = self.array[None] if self.flat else self.array
            return [
                (np.arange(len(channels)), _planes(whole[:, y0:y1, x0:x1], channels).astype(self.dtype, copy=False))
            ]
        group = np.searchsorted(self.groups, channels, side="right") - 1
        found = {}
        with self.cache.at((self.number, i, j)):
            lacking = []
            for g in np.unique(group).tolist():
                kept = self.cache.get((self.number, g, i, j))
                if kept is None:
                    lacking.append(g)
                else:
                    found[g] = kept
            for first, last in _runs(lacking):
                c0 = int(self.groups[first])
                planes = self._decode(c0, int(self.groups[last + 1]), y0, y1, x0, x1)
                for g in range(first, last + 1):
                    own = planes[int(self.groups[g]) - c0 : int(self.groups[g + 1]) - c0]
                    found[g] = own if first == last else own.copy()
                    self.cache.put((self.number, g, i, j), found[g])
        places = ((g, np.flatnonzero(group == g)) for g in found)
        return [(at, _planes(found[g], channels[at] - int(self.groups[g]))) for g, at in places]

    def read(
        self, y0: int, y1: int, x0: int, x1: int, channels: np.ndarray | None = None, pool: Executor | None = None
    ) -> np.ndarray:
        """Pixels of a box inside the image, [C, h, w]."""
        wanted = np.zeros(1, dtype=np.int64) if channels is None else np.asarray(channels, dtype=np.int64)
        out = np.zeros((len(wanted), y1 - y0, x1 - x0), dtype=self.dtype)

        def fill(block: tuple[int, int]) -> None:
            top, bottom, left, right = self.box(*block)
            rows, columns = (max(top, y0), min(bottom, y1)), (max(left, x0), min(right, x1))
            here = out[:, rows[0] - y0 : rows[1] - y0, columns[0] - x0 : columns[1] - x0]
            for places, planes in self.parts(*block, wanted):
                here[places] = planes[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]

        _each(pool, fill, self.over(y0, y1, x0, x1))
        return out

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """A box of a label image, as a `LabelGrid` reads it."""
        rows, columns = index
        return np.asarray(self.read(rows.start, rows.stop, columns.start, columns.stop)[0])

    def _decode(self, c0: int, c1: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        part = self.array[y0:y1, x0:x1] if self.flat else self.array[c0:c1, y0:y1, x0:x1]
        if isinstance(part, DaskArray):
            part = part.compute(scheduler="threads")
        planes = np.asarray(part).astype(self.dtype, copy=False)
        return planes[None] if self.flat else planes


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of an image."""

    blocks: Blocks
    step: int
    """Pixels of the full resolution per pixel."""


def levels(element: Any, full: Any, cache: Cache) -> list[Level]:
    """The full resolution, and coarser levels that are a whole number of times smaller."""
    found = [Level(Blocks(full, cache), 1)]
    children = list(getattr(element, "children", {}))
    for name in children[1:]:
        array = next(iter(element[name].data_vars.values())).data
        times = [whole / part for whole, part in zip(full.shape[-2:], array.shape[-2:], strict=True)]
        step = round(times[0])
        if step > found[-1].step and max(abs(each / step - 1) for each in times) < 0.01:
            found.append(Level(Blocks(array, cache), step))
    return found


def binned(blocks: Blocks, box: tuple[int, int, int, int], index: np.ndarray, times: int, pool: Executor) -> np.ndarray:
    """Means of squares of a box; at the image's border those of the pixels that are there."""
    y0, y1, x0, x1 = box
    height, width = blocks.shape[-2:]
    found = blocks.read(min(y0, height - 1), min(y1, height), min(x0, width - 1), min(x1, width), index, pool)
    lacking = ((0, 0), (0, y1 - y0 - found.shape[1]), (0, x1 - x0 - found.shape[2]))
    return bin_pixels(np.pad(found, lacking, mode="edge") if any(after for _, after in lacking) else found, times)


def lookup(ids: np.ndarray, rows: np.ndarray) -> Any:
    """From labels to table row + 1."""
    largest = int(ids.max(initial=0))
    if largest <= 4 * len(ids) + 2**20:
        table = np.zeros(largest + 2, dtype="<u4")
        table[ids] = np.asarray(rows) + 1
        table[0] = 0
        return lambda labels: table[np.where((labels > 0) & (labels <= largest), labels, 0).astype(np.int64)]
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]

    def find(labels: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(ordered, labels), len(ordered) - 1)
        return np.where(ordered[at] == labels, np.asarray(rows)[order[at]] + 1, 0).astype("<u4")

    return find


def _each(pool: Executor | None, work: Callable[[tuple[int, int]], None], blocks: Iterable[tuple[int, int]]) -> None:
    for _ in map(work, blocks) if pool is None else pool.map(work, blocks):
        pass


def _planes(block: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Some planes of a block, without a copy where they lie side by side."""
    if len(index) and (np.diff(index) == 1).all():
        return block[int(index[0]) : int(index[-1]) + 1]
    return block[index]


def _chunks(array: Any) -> tuple[Any, ...]:
    """Side of the chunks along each axis, or the sides one by one where they differ."""
    if isinstance(array, zarr.Array):
        return tuple(array.chunks)
    if isinstance(array, DaskArray):
        return tuple(array.chunks)
    return tuple(min(max(int(side), 1), MEMORY_PX) for side in array.shape)


def _edges(length: int, chunk: Any, least: int) -> np.ndarray:
    """Borders 0, ..., length of intervals of whole chunks, each at least `least` long where there are several."""
    borders = [0, *np.cumsum(chunk).tolist()] if isinstance(chunk, tuple) else [*range(0, length, chunk), length]
    merged = [0]
    for border in borders[1:]:
        if border - merged[-1] >= least or border == length:
            merged.append(int(border))
    return np.array(merged)


def _touched(edges: np.ndarray, start: int, stop: int) -> range:
    if start >= stop:
        return range(0)
    return range(int(np.searchsorted(edges, start, side="right")) - 1, int(np.searchsorted(edges, stop, side="left")))


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = 0
    for k in range(1, len(numbers) + 1):
        if k == len(numbers) or numbers[k] != numbers[k - 1] + 1:
            yield numbers[first], numbers[k - 1]
            first = k
