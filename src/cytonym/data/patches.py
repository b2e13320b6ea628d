"""Windows at cell centres, read tile by tile.

The rule of position: pixel i covers [i, i + 1), and the pixel that holds a cell's centre stands at index `S // 2` of the
window of side S. A cell belongs to the tile whose core holds its centre; the tile's halo holds the rest of its window.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numba import njit

from cytonym.data.chunks import Buffers, available_threads, check_pixels
from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cytonym.data.source import CellSource
    from cytonym.data.tiles import Tile

    Edge = Literal["reflect", "constant"]

BYTES_PER_THREAD = 2**22  # less than that is not worth another thread
EXPONENT = {2: 0x7C00, 4: 0x7F800000, 8: 0x7FF0000000000000}  # bits that are all set in NaN and infinity


@dataclass(frozen=True, eq=False)
class Block:
    """Windows of b cells."""

    rows: np.ndarray
    """int64 [b], rows of the cells in their source."""
    windows: np.ndarray
    """[b, C, S, S], dtype of the image in the machine's byte order."""


def window_origin(centers: np.ndarray, size_px: int) -> np.ndarray:
    """First row and column of the window around each cell.

    Parameters
    ----------
    centers
        Centres (y, x) [N, 2] in pixels, finite.
    size_px
        Side S of the window.

    Returns
    -------
    int64 [N, 2]. The window covers rows `origin` … `origin + S - 1`, also where these lie outside the image.

    Examples
    --------
    >>> import numpy as np
    >>> window_origin(np.array([[5.0, 5.9]]), 4), window_origin(np.array([[5.0, 5.9]]), 5)
    (array([[3, 3]]), array([[3, 3]]))
    """
    return np.floor(np.asarray(centers, dtype=np.float64)).astype(np.int64) - size_px // 2


def bin_pixels(pixels: np.ndarray, n: int) -> np.ndarray:
    """Means of squares of n x n pixels, float32 [..., H // n, W // n]; the pixels themselves for n = 1.

    What is left over at the lower and the right border is left out.

    Examples
    --------
    >>> import numpy as np
    >>> bin_pixels(np.arange(20).reshape(4, 5), 2)
    array([[ 3.,  5.],
           [13., 15.]], dtype=float32)
    """
    if n == 1:
        return pixels
    height, width = (side // n for side in pixels.shape[-2:])
    squares = pixels[..., : height * n, : width * n].reshape(*pixels.shape[:-2], height, n, width, n)
    return squares.mean(axis=(-3, -1), dtype=np.float32)


class CellPatches:
    """The windows of all cells of a source, in blocks, in the order in which the image is stored.

    Each chunk of the image is decoded once, memory does not grow with the image, and every cell inside the image comes
    exactly once. May be iterated again.

    Parameters
    ----------
    source
        Cells and image.
    size_px
        Side S of the window.
    edge
        What a window shows beyond the image's border: `"reflect"`, the image mirrored at the border pixel as in
        `numpy.pad`, or `"constant"`, zeros.
    batch_size
        Cells in a block; only the last block has fewer.
    threads
        Threads that read and cut; by default the number of usable cores. The result does not depend on it.
    tile_px
        Least side of a tile, see `iter_tiles`. The windows do not depend on it, their order does.

    Attributes
    ----------
    outside
        int64 [n], rows of cells whose centre is not in the image or not finite. They have no window.

    Raises
    ------
    ValueError
        The window is larger than the image or not of at least one pixel, or, on iteration, pixels are NaN or infinite.
    TypeError
        The image is no array of numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> source = SimpleNamespace(
    ...     pixels=np.arange(36).reshape(1, 6, 6),
    ...     channel_index=np.array([0]),
    ...     centers=np.array([[2.5, 3.5], [0.5, 0.5], [9.0, 9.0]]),
    ... )
    >>> patches = CellPatches(source, 3)
    >>> len(patches), patches.outside
    (2, array([2]))
    >>> [(block.rows.tolist(), block.windows[0, 0].tolist()) for block in patches]
    [([1, 0], [[7, 6, 7], [1, 0, 1], [7, 6, 7]])]
    """

    def __init__(
        self,
        source: CellSource,
        size_px: int,
        *,
        edge: Edge = "reflect",
        batch_size: int = 1024,
        threads: int | None = None,
        tile_px: int | None = None,
    ) -> None:
        check_pixels(source.pixels)
        for name, value in (("size_px", size_px), ("batch_size", batch_size), ("threads", threads)):
            if value is not None and value < 1:
                msg = f"`{name}` must be at least 1, got {value}."
                raise ValueError(msg)
        if edge not in ("reflect", "constant"):
            msg = f"`edge` must be 'reflect' or 'constant', got {edge!r}."
            raise ValueError(msg)
        height, width = source.pixels.shape[1:]
        if size_px > min(height, width):
            msg = (
                f"A window of {size_px} px is larger than image {source.image_key!r} of {height} x {width} px. "
                "Choose a smaller one."
            )
            raise ValueError(msg)
        self.source, self.size_px, self.edge = source, int(size_px), edge
        self.batch_size, self.threads, self.tile_px = int(batch_size), threads or available_threads(), tile_px
        y, x = np.asarray(source.centers, dtype=np.float64).reshape(-1, 2).T
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        self.outside: np.ndarray = np.flatnonzero(~inside)
        rows = np.flatnonzero(inside)
        pixels = np.stack([y[rows], x[rows]], axis=1).astype(np.int64)
        # sorted along the longer side, along which the tiles advance, the cells of a tile are close together
        self._axis = 0 if height >= width else 1
        order = np.argsort(pixels[:, self._axis], kind="stable")
        self._rows, self._pixels = rows[order], pixels[order]

    def __len__(self) -> int:
        """Number of cells inside the image."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Block]:
        """Blocks of windows."""
        source, side = self.source, self.size_px
        channels = np.asarray(source.channel_index, dtype=np.int64)
        dtype = np.dtype(source.pixels.dtype).newbyteorder("=")
        shape = (min(self.batch_size, len(self)), len(channels), side, side)
        buffers = Buffers(int(np.prod(shape)) * dtype.itemsize, keep=3)
        tiles = iter_tiles(
            source.pixels, channels, halo=side // 2, tile_px=self.tile_px, threads=self.threads, near=self._pixels
        )
        rows = np.empty(shape[0], dtype=np.int64)
        windows, filled, left = buffers.empty(shape, dtype), 0, len(self)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="cytonym-cut") as pool:
            for tile in tiles:
                cells = self._cells_of(tile)
                while len(cells):
                    now, cells = np.split(cells, [len(rows) - filled])
                    here = slice(filled, filled + len(now))
                    rows[here] = self._rows[now]
                    self._cut(tile, self._pixels[now], windows[here], pool)
                    filled, left = here.stop, left - len(now)
                    if filled == len(rows):
                        self._check(rows, windows)
                        yield Block(rows, windows)
                        rows = np.empty(min(len(rows), left), dtype=np.int64)
                        windows, filled = buffers.empty((len(rows), *shape[1:]), dtype), 0
                del tile  # its memory is free for the next one

    def _cells_of(self, tile: Tile) -> np.ndarray:
        """Indices into the sorted cells of those with their centre in the tile's core."""
        cores = (tile.y0, tile.y1), (tile.x0, tile.x1)
        first, last = np.searchsorted(self._pixels[:, self._axis], cores[self._axis])
        start, stop = cores[1 - self._axis]
        other = self._pixels[first:last, 1 - self._axis]
        return first + np.flatnonzero((other >= start) & (other < stop))

    def _cut(self, tile: Tile, pixels: np.ndarray, out: np.ndarray, pool: ThreadPoolExecutor) -> None:
        """Copy the windows around `pixels` [b, 2] out of a tile into `out` [b, C, S, S], channels over threads."""
        shape = np.array(self.source.pixels.shape[1:])
        origins = window_origin(pixels, self.size_px)
        bits = np.dtype(f"u{out.dtype.itemsize}")  # four kernels do for all dtypes
        memory, strides = _flat(tile.pixels, bits)
        target, reflect = out.view(bits).reshape(-1), self.edge == "reflect"
        place = np.array([tile.py0, tile.px0])
        n = out.shape[1]
        parts = max(1, min(self.threads, n, out.nbytes // BYTES_PER_THREAD))
        borders = np.linspace(0, n, parts + 1).round().astype(int).tolist()
        jobs = [
            pool.submit(_gather, target, n, self.size_px, memory, strides, origins, shape, place, reflect, first, last)
            for first, last in zip(borders[1:-1], borders[2:], strict=True)
        ]
        _gather(target, n, self.size_px, memory, strides, origins, shape, place, reflect, 0, borders[1])
        for job in jobs:
            job.result()

    def _check(self, rows: np.ndarray, windows: np.ndarray) -> None:
        """Raise where a window has a pixel that is no number."""
        if windows.dtype.kind != "f":
            return
        bits = np.dtype(f"u{windows.dtype.itemsize}")
        bad = _first_bad(windows.view(bits).reshape(-1), bits.type(EXPONENT[bits.itemsize]))
        if bad >= 0:
            cell, channel = np.unravel_index(bad, windows.shape)[:2]
            y, x = np.asarray(self.source.centers)[rows[cell]]
            msg = (
                f"Channel {self.source.channels[channel]!r} of image {self.source.image_key!r} has NaN or infinite pixels, "
                f"among others near y = {y:.0f}, x = {x:.0f}. Replace them, for instance with `numpy.nan_to_num`."
            )
            raise ValueError(msg)


def _flat(pixels: np.ndarray, bits: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The memory of [C, h, w] as one axis of unsigned integers, and the steps from channel to channel and row to row."""
    pixels = pixels.view(bits) if pixels.flags.c_contiguous else pixels
    steps = np.array(pixels.strides)
    if steps[2] != bits.itemsize or (steps < 0).any() or (steps % bits.itemsize).any():
        pixels = np.ascontiguousarray(pixels)
        steps = np.array(pixels.strides)
    steps //= bits.itemsize
    length = int(((np.array(pixels.shape) - 1) * steps).sum()) + 1
    flat = np.lib.stride_tricks.as_strided(pixels, (length,), (bits.itemsize,), writeable=False)
    return flat.view(bits), steps[:2]


@njit(nogil=True, cache=True)
def _mirror(i: int, length: int, reflect: bool) -> int:  # noqa: FBT001
    """Index in the image that a window shows at row (or column) i of the image's grid; -1 for zero."""
    if 0 <= i < length:
        return i
    if not reflect:
        return -1
    return -i if i < 0 else 2 * (length - 1) - i


@njit(nogil=True, cache=True)
def _gather(target, n_channels, side, memory, strides, origins, shape, place, reflect, first, last):
    """Channels first … last - 1 of all windows. Unsigned indices spare numba its look at negative ones."""
    height, width = shape
    for channel in range(first, last):  # one channel of a tile stays in the processor's cache
        layer = channel * strides[0]
        for cell in range(len(origins)):
            y0, x0 = origins[cell]
            to = np.uint64((cell * n_channels + channel) * side * side)
            if y0 >= 0 and x0 >= 0 and y0 + side <= height and x0 + side <= width:
                at = np.uint64(layer + (y0 - place[0]) * strides[1] + x0 - place[1])
                for _ in range(side):
                    for k in range(np.uint64(side)):
                        target[to + k] = memory[at + k]
                    at += np.uint64(strides[1])
                    to += np.uint64(side)
                continue
            for i in range(side):
                y = _mirror(y0 + i, height, reflect)
                for k in range(side):
                    x = _mirror(x0 + k, width, reflect)
                    target[to] = 0
                    if y >= 0 and x >= 0:
                        target[to] = memory[layer + (y - place[0]) * strides[1] + x - place[1]]
                    to += np.uint64(1)


@njit(nogil=True, cache=True)
def _first_bad(bits, exponent):
    """Index of the first float that is NaN or infinite, -1 where there is none."""
    n_bad = 0
    for value in bits:  # without a branch: many values at a time
        n_bad += (value & exponent) == exponent
    if n_bad:
        for i, value in enumerate(bits):
            if (value & exponent) == exponent:
                return i
    return -1
