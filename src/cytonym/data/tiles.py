"""Walk over an image tile by tile, in storage order, decoding each chunk once.

A tile is a whole number of chunks. The pixels that the next tiles need again are carried along: the end of the last
tile, and a strip with the end of the last row of tiles. Rows of tiles run along the shorter side of the image, so the
strip is short and memory stays flat however long the other side is. While the caller works on one tile, threads decode
the next one.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from dask.array import Array as DaskArray

from cytonym.data.chunks import Buffers, available_threads, check_pixels, cut, read_tasks, zarr_behind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import ArrayLike

    from cytonym.data.chunks import Box, Span

logger = logging.getLogger("cytonym")

TILE_BYTES = 96 * 2**20  # pixels of a tile over all channels; about three tiles are in memory at a time
HUGE_TILE_BYTES = 2**30
MEMORY_CHUNK = 64  # grain of tiles of an array that has no chunks


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of an image and the pixels around it."""

    y0: int
    y1: int
    x0: int
    x1: int
    """The core is rows y0 … y1 - 1, columns x0 … x1 - 1. The cores of all tiles partition the image."""
    pixels: np.ndarray
    """[C, h, w], read-only: the core and `halo` pixels around it, fewer at the image's border."""
    py0: int
    px0: int
    """Row and column of the image at `pixels[:, 0, 0]`."""


def iter_tiles(
    pixels: Any,
    channel_index: ArrayLike | None = None,
    *,
    halo: int = 0,
    tile_px: int | None = None,
    threads: int | None = None,
    near: np.ndarray | None = None,
) -> Iterator[Tile]:
    """Tiles of an image, in storage order; each chunk is decoded once.

    Parameters
    ----------
    pixels
        Image [C_all, H, W]: `zarr.Array`, `dask.array.Array` or `numpy.ndarray`. A dask array that does nothing but read
        a Zarr array is read without dask.
    channel_index
        Rows of `pixels` to read [C]; all by default.
    halo
        Pixels around each core, beyond it, that the caller wants to see. At the image's border there are fewer.
    tile_px
        Least side of a tile; rounded up to whole chunks. Default: as many chunks as make about 96 MB over all
        channels, and never less than one chunk.
    threads
        Number of reading threads; by default the number of usable cores.
    near
        Pixels (y, x) [N, 2] that matter. Tiles further than `halo` from all of them are not read, and tiles
        without any of them may be left out; what lies further away than `halo` is undefined. Default: the whole image.

    Yields
    ------
    Tile
        Its `pixels` are in the machine's byte order. Memory is used again as soon as the caller lets go of it.

    Raises
    ------
    TypeError
        `pixels` is no array of numbers or truth values.
    ValueError
        `pixels` is not [C, H, W], or a size is out of range.
    IndexError
        `channel_index` names a channel that the image does not have.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(2 * 6 * 8).reshape(2, 6, 8)
    >>> tiles = list(iter_tiles(image, halo=1, tile_px=4))
    >>> [(t.y0, t.y1, t.x0, t.x1, t.pixels.shape) for t in tiles][:2]
    [(0, 4, 0, 4, (2, 5, 5)), (4, 6, 0, 4, (2, 3, 5))]
    """
    check_pixels(pixels)
    channels = np.arange(pixels.shape[0]) if channel_index is None else np.asarray(channel_index, dtype=np.int64)
    if channels.size and not (channels.min() >= 0 and channels.max() < pixels.shape[0]):
        msg = f"`channel_index` must lie in 0 … {pixels.shape[0] - 1}, got {channels.tolist()}."
        raise IndexError(msg)
    for name, value, least in (("halo", halo, 0), ("tile_px", tile_px, 1), ("threads", threads, 1)):
        if value is not None and value < least:
            msg = f"`{name}` must be at least {least}, got {value}."
            raise ValueError(msg)
    array = zarr_behind(pixels)
    if array is None:
        array = pixels
    edges = _plan(array, len(channels), tile_px)
    if isinstance(array, np.ndarray):
        return _views(array, channels, edges, halo, near)
    return _Walk(array, channels, edges, halo, threads or available_threads(), near).tiles()


def _plan(array: Any, n_channels: int, tile_px: int | None) -> tuple[list[int], list[int]]:
    """Borders of the tiles along y and x: 0, …, H and 0, …, W."""
    borders = []
    for axis in (1, 2):
        length = array.shape[axis]
        if isinstance(array, DaskArray):
            borders.append([0, *np.cumsum(array.chunks[axis]).tolist()])
        else:
            in_memory = MEMORY_CHUNK if tile_px is None else tile_px
            step = min(length, array.chunks[axis] if isinstance(array, zarr.Array) else in_memory) or 1
            borders.append([*range(0, length, step), length])
    sides = [max((b - a for a, b in pairwise(border)), default=1) for border in borders]
    if tile_px is not None:
        targets = [max(tile_px, side) for side in sides]
    else:
        pixels = TILE_BYTES // (np.dtype(array.dtype).itemsize * max(n_channels, 1))
        targets = list(sides)
        growing = {0, 1}
        while growing:  # the shorter side by one chunk, as long as the tile is not too large
            axis = min(growing, key=lambda a: targets[a])
            larger = targets[axis] + sides[axis]
            if larger * targets[1 - axis] > pixels or targets[axis] >= array.shape[axis + 1]:
                growing.discard(axis)
            else:
                targets[axis] = larger
    nbytes = math.prod(targets) * n_channels * np.dtype(array.dtype).itemsize
    if nbytes > HUGE_TILE_BYTES and not isinstance(array, np.ndarray):
        logger.warning(
            "The image is stored in chunks so large that a tile takes %.1f GB. Chunks of about 1024 px need less memory.",
            nbytes / 2**30,
        )
    return _merge(borders[0], targets[0]), _merge(borders[1], targets[1])


def _merge(borders: list[int], target: int) -> list[int]:
    """Neighbouring intervals put together up to a length of `target`."""
    merged = [0]
    for last, here in pairwise(borders):
        if here - merged[-1] > target and last > merged[-1]:
            merged.append(last)
    if borders[-1] > 0:
        merged.append(borders[-1])
    return merged


def _wanted(edges: tuple[list[int], list[int]], near: np.ndarray | None, reach: int) -> np.ndarray:
    """Which tiles [n_y, n_x] lie within `reach` of one of the pixels."""
    shape = (len(edges[0]) - 1, len(edges[1]) - 1)
    if near is None or 0 in shape:
        return np.ones(shape, dtype=bool)
    steps = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int64)  # summed up, the number of squares over each tile
    first, last = (
        [
            np.searchsorted(edge, np.clip(near[:, axis] + shift, 0, edge[-1] - 1), side="right") - 1
            for axis, edge in enumerate(edges)
        ]
        for shift in (-reach, reach)
    )
    np.add.at(steps, (first[0], first[1]), 1)
    np.add.at(steps, (first[0], last[1] + 1), -1)
    np.add.at(steps, (last[0] + 1, first[1]), -1)
    np.add.at(steps, (last[0] + 1, last[1] + 1), 1)
    return (steps.cumsum(0).cumsum(1) > 0)[:-1, :-1]


def _order(edges: tuple[list[int], list[int]]) -> tuple[int, list[tuple[int, int]]]:
    """The axis along which rows of tiles follow each other, the longer one, and all tiles (i_y, i_x) row by row."""
    slow = 0 if edges[0][-1] >= edges[1][-1] else 1
    counts = [len(edge) - 1 for edge in edges]
    pairs = product(range(counts[slow]), range(counts[1 - slow]))
    return slow, [(i, j) if slow == 0 else (j, i) for i, j in pairs]


def _views(
    array: np.ndarray, channels: np.ndarray, edges: tuple[list[int], list[int]], halo: int, near: np.ndarray | None
) -> Iterator[Tile]:
    """Tiles of an array in memory: nothing is read, and nothing copied where the channels lie side by side."""
    whole = bool((np.diff(channels) == 1).all()) and len(channels)
    wanted = _wanted(edges, near, 0)
    for i, j in _order(edges)[1]:
        if wanted[i, j]:
            core = ((edges[0][i], edges[0][i + 1]), (edges[1][j], edges[1][j + 1]))
            box = _widen(core, halo, array.shape)
            part = array[:, slice(*box[0]), slice(*box[1])]
            part = part[channels[0] : channels[-1] + 1] if whole else part[channels]
            yield _tile(core, box, part.astype(part.dtype.newbyteorder("="), copy=False))


def _widen(core: Box, halo: int, shape: Sequence[int]) -> Box:
    rows, columns = ((max(0, a - halo), min(length, b + halo)) for (a, b), length in zip(core, shape[1:], strict=True))
    return rows, columns


def _replace(box: Box, axis: int, span: Span) -> Box:
    return (span, box[1]) if axis == 0 else (box[0], span)


def _tile(core: Box, box: Box, pixels: np.ndarray) -> Tile:
    pixels = pixels.view()
    pixels.flags.writeable = False
    return Tile(*core[0], *core[1], pixels, box[0][0], box[1][0])


class _Walk:
    """The walk over a stored image.

    The canvas of a tile holds its chunks and, above and to the left, the `2 * halo` pixels before them. The tile's core
    lags `halo` pixels behind the chunks, so it has its halo on all four sides without a look at the tiles to come.
    """

    def __init__(
        self,
        array: zarr.Array | DaskArray,
        channels: np.ndarray,
        edges: tuple[list[int], list[int]],
        halo: int,
        threads: int,
        near: np.ndarray | None,
    ) -> None:
        self.array, self.channels, self.edges = array, channels, edges
        self.halo, self.carry, self.threads = halo, 2 * halo, threads
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.wanted = _wanted(edges, near, halo)
        self.slow, order = _order(edges)
        self.order = [pair for pair in order if self.wanted[pair]]
        sides = [min(int(np.diff(edge).max(initial=0)) + self.carry, edge[-1]) for edge in edges]
        self.buffers = Buffers(len(channels) * math.prod(sides) * self.dtype.itemsize, keep=3)
        strip = [len(channels), edges[0][-1], edges[1][-1]]
        strip[self.slow + 1] = self.carry if len(edges[self.slow]) > 2 else 0
        self.strip = np.empty(strip, dtype=self.dtype)

    def tiles(self) -> Iterator[Tile]:
        # one more than the cores: a read waits a while for zarr's event loop, where decoded chunks are copied
        pool = ThreadPoolExecutor(self.threads + 1, thread_name_prefix="cytonym-read")
        previous: tuple[tuple[int, int], np.ndarray] | None = None
        try:
            following = iter(self.order)
            reading = [self._read(at, pool) for at in islice(following, 1)]
            for here in self.order:
                canvas, futures = reading.pop()
                self._carry_over(here, canvas, previous)
                previous = None  # lets its memory go before the next tile needs some
                reading += [self._read(at, pool) for at in islice(following, 1)]
                for future in futures:
                    future.result()
                self._keep_strip(here, canvas)
                previous = here, canvas
                core = self._core(here)
                if all(a < b for a, b in core):
                    box = _widen(core, self.halo, self.array.shape)
                    yield _tile(core, box, canvas[cut(box, self._origin(here))])
        finally:
            pool.shutdown(cancel_futures=True)

    def _chunks(self, at: tuple[int, int]) -> Box:
        rows, columns = ((edge[i], edge[i + 1]) for edge, i in zip(self.edges, at, strict=True))
        return rows, columns

    def _origin(self, at: tuple[int, int]) -> tuple[int, int]:
        (y0, _), (x0, _) = self._chunks(at)
        return max(0, y0 - self.carry), max(0, x0 - self.carry)

    def _core(self, at: tuple[int, int]) -> Box:
        rows, columns = (
            (max(0, a - self.halo), b if b == edge[-1] else max(0, b - self.halo))
            for (a, b), edge in zip(self._chunks(at), self.edges, strict=True)
        )
        return rows, columns

    def _read(self, at: tuple[int, int], pool: ThreadPoolExecutor) -> tuple[np.ndarray, list[Future[None]]]:
        """Start reading a tile's chunks into a new canvas."""
        box, origin = self._chunks(at), self._origin(at)
        shape = (len(self.channels), box[0][1] - origin[0], box[1][1] - origin[1])
        canvas = self.buffers.empty(shape, self.dtype)
        tasks = read_tasks(self.array, self.channels, box, canvas[cut(box, origin)], self.threads)
        return canvas, [pool.submit(task) for task in tasks]

    def _carry_over(
        self, at: tuple[int, int], canvas: np.ndarray, previous: tuple[tuple[int, int], np.ndarray] | None
    ) -> None:
        """Fill what lies before the chunks: from the strip, and from the previous canvas if it is the neighbour."""
        slow, fast = self.slow, 1 - self.slow
        box, origin = self._chunks(at), self._origin(at)
        above = _replace(box, slow, (origin[slow], box[slow][0]))
        if origin[slow] < box[slow][0]:
            canvas[cut(above, origin)] = self.strip[cut(above, self._strip_origin(box[slow][0]))]
        if previous is not None and previous[0][slow] == at[slow] and previous[0][fast] == at[fast] - 1:
            left = _replace(box, slow, (origin[slow], box[slow][1]))
            left = _replace(left, fast, (origin[fast], box[fast][0]))
            canvas[cut(left, origin)] = previous[1][cut(left, self._origin(previous[0]))]

    def _keep_strip(self, at: tuple[int, int], canvas: np.ndarray) -> None:
        """Keep the end of a complete canvas for the next row of tiles."""
        box, origin = self._chunks(at), self._origin(at)
        end = box[self.slow][1]
        if self.carry and end < self.edges[self.slow][-1]:
            kept = _replace(box, self.slow, (max(origin[self.slow], end - self.carry), end))
            self.strip[cut(kept, self._strip_origin(end))] = canvas[cut(kept, origin)]

    def _strip_origin(self, end: int) -> list[int]:
        """Pixel of the image at the start of the strip, while the strip ends at row (or column) `end`."""
        origin = [0, 0]
        origin[self.slow] = end - self.carry
        return origin
