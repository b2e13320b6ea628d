"""Overlapping tiles of an image, and how what is made of them is put together again.

The grid depends on the image alone. Tiles of side t overlap by two margins of t // 16; the last one of a row or column is shifted
inward, and an image that is smaller than a tile is continued by its mirror image. Weights are whole numbers, so that sums do not
depend on their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cytonym.data.tiles import Tile

MARGIN = 16
"""Part of a tile's side that is its margin."""
LEAST_VARIANCE = 9.0
"""Of the grey values of a tile that shows something."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class TileAxis:
    """Tiles along one axis of an image.

    Parameters
    ----------
    length, tile
        Pixels of the image and of a tile.
    blended
        Neighbours fade into each other, linearly over two margins; otherwise each tile has its own pixels, up to its margins, and
        where these leave a choice, the later tile has them.

    Examples
    --------
    >>> axis = TileAxis(100, 32)
    >>> axis.starts, [axis.span(i) for i in range(len(axis.starts))]
    ((0, 28, 56, 68), [(0, 32), (28, 60), (56, 80), (76, 100)])
    >>> axis.total, axis.weights(1)[:5].tolist()
    (8, [1, 3, 5, 7, 8])
    """

    length: int
    tile: int
    blended: bool = True

    @property
    def margin(self) -> int:
        """Pixels at each side of a tile that its neighbours share; none where one tile is enough."""
        return self.tile // MARGIN if self.length > self.tile else 0

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile."""
        last = max(0, self.length - self.tile)
        return (*range(0, last, self.tile - 2 * self.margin), last)

    @property
    def total(self) -> int:
        """Sum of the weights of each pixel."""
        return 4 * self.margin if self.blended and self.margin else 1

    def weights(self, i: int) -> np.ndarray:
        """Weights of tile i at the pixels of its span, int64."""
        pixels = np.arange(*self.span(i))
        return self._rise(i, pixels) - self._rise(i + 1, pixels)

    def span(self, i: int) -> tuple[int, int]:
        """First and last + 1 pixel where tile i has a weight."""
        half = self.total // 4
        return max(0, (self._border(i) - 2 * half + 1) // 2), min(self.length, (self._border(i + 1) + 2 * half) // 2)

    def first_after(self, pixel: int) -> int:
        """The first tile that has a weight at a pixel or behind it."""
        return next(i for i in range(len(self.starts)) if self.span(i)[1] > pixel)

    def _border(self, i: int) -> int:
        """Twice the place between the tiles i - 1 and i; far away where one of them is not there."""
        if i in (0, len(self.starts)):
            return 4 * self.length * (1 if i else -1)
        here, before = self.starts[i], self.starts[i - 1]
        return here + before + self.tile if self.blended and self.margin else 2 * (here + self.margin)

    def _rise(self, i: int, pixels: np.ndarray) -> np.ndarray:
        """How much of a pixel belongs to tile i or a later one."""
        if i in (0, len(self.starts)):
            return np.full(len(pixels), 0 if i else self.total)
        half = self.total // 4
        return (
            np.clip(2 * pixels + 1 - self._border(i) + 2 * half, 0, self.total)
            if half
            else (2 * pixels >= self._border(i)) * 1
        )


class Grid(NamedTuple):
    """Rows and columns of tiles."""

    y: TileAxis
    x: TileAxis


class Part(NamedTuple):
    """Pixels of a result, and where they lie."""

    y0: int
    x0: int
    pixels: np.ndarray
    """uint8 [C, h, w]."""


class Stitcher:
    """Tiles in, final pixels out; what waits for its neighbours is all that is kept.

    Parameters
    ----------
    grid
        Where the tiles lie.
    channels
        Of the results.

    Tiles come row by row. The first ones may be left out; then the pixels that these would share with the next are wrong.
    """

    def __init__(self, grid: Grid, channels: int) -> None:
        self.grid = grid
        self._below = np.zeros((channels, 2 * grid.y.margin, grid.x.length), np.uint32)
        self._beside = np.zeros((channels, 0, 0), np.uint32)

    def add(self, i: int, j: int, tile: np.ndarray) -> Part:
        """What tile [C, t, t] of row i and column j makes final. All these parts together are the image, without overlaps."""
        (y, x), (rows, columns) = self.grid, (axis.span(k) for axis, k in zip(self.grid, (i, j), strict=True))
        inside = tuple(
            slice(a - axis.starts[k], b - axis.starts[k]) for axis, k, (a, b) in ((y, i, rows), (x, j, columns))
        )
        block = tile[:, *inside].astype(np.uint32)
        if x.total > 1:
            block *= x.weights(j).astype(np.uint32)
        if j:
            block[:, :, : self._beside.shape[2]] += self._beside
        ready = (x.span(j + 1)[0] if j + 1 < len(x.starts) else x.length) - columns[0]
        self._beside, block = block[:, :, ready:], block[:, :, :ready]
        if y.total > 1:
            block = block * y.weights(i).astype(np.uint32)[:, None]
        below = self._below[:, :, columns[0] : columns[0] + ready]
        if i:
            shared = y.span(i - 1)[1] - rows[0]
            block[:, :shared] += below[:, :shared]
        ready = (y.span(i + 1)[0] if i + 1 < len(y.starts) else y.length) - rows[0]
        below[:, : block.shape[1] - ready] = block[:, ready:]
        total = x.total * y.total
        final = block[:, :ready]
        return Part(rows[0], columns[0], ((final + total // 2) // total if total > 1 else final).astype(np.uint8))


class Squares:
    """Parts in, squares of a fixed grid out, each when it is complete.

    Parameters
    ----------
    shape, channels
        Of the result.
    side
        Of the squares.
    done
        First row and column of those that are not wanted.
    """

    def __init__(
        self, shape: tuple[int, int], channels: int, side: int, done: Collection[tuple[int, int]] = ()
    ) -> None:
        self.shape, self.channels, self.side, self.done = shape, channels, side, done
        self._open: dict[tuple[int, int], tuple[np.ndarray, list[int]]] = {}

    def first_row(self) -> int | None:
        """First row of the first square that is wanted, if there is any."""
        height, width = self.shape
        places = ((y, x) for y in range(0, height, self.side) for x in range(0, width, self.side))
        return next((place[0] for place in places if place not in self.done), None)

    def add(self, part: Part) -> Iterator[Part]:
        """Those that a part completes. Parts of an image must not overlap."""
        _, h, w = part.pixels.shape
        for y0 in range(part.y0 // self.side * self.side, part.y0 + h, self.side):
            for x0 in range(part.x0 // self.side * self.side, part.x0 + w, self.side):
                if (y0, x0) in self.done:
                    continue
                shape = (min(self.side, self.shape[0] - y0), min(self.side, self.shape[1] - x0))
                if (y0, x0) not in self._open:
                    self._open[y0, x0] = np.empty((self.channels, *shape), np.uint8), [shape[0] * shape[1]]
                square, missing = self._open[y0, x0]
                top, left = max(y0, part.y0), max(x0, part.x0)
                bottom, right = min(y0 + shape[0], part.y0 + h), min(x0 + shape[1], part.x0 + w)
                square[:, top - y0 : bottom - y0, left - x0 : right - x0] = part.pixels[
                    :, top - part.y0 : bottom - part.y0, left - part.x0 : right - part.x0
                ]
                missing[0] -= (bottom - top) * (right - left)
                if not missing[0]:
                    del self._open[y0, x0]
                    yield Part(y0, x0, square)


def cut_tiles(
    read: Iterable[Tile], grid: Grid, first: int = 0, *, turned: bool = False
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Tiles of the grid, row by row, from the tiles in which an image is read.

    Parameters
    ----------
    read
        Of `iter_tiles` without a halo: rows of tiles that follow each other, each complete before the next.
    grid
        Where the new tiles lie.
    first
        The first row of tiles that is wanted.
    turned
        Rows of `read` run along the other axis. Then rows and columns of the grid, and of its tiles, are those of the image
        turned: columns and rows.

    Yields
    ------
    Row, column and pixels [C, t, t], a copy.
    """
    y, x = grid
    band: np.ndarray | None = None  # rows of the image that are needed still
    top = end = 0
    row = first
    for tile in read:
        pixels = tile.pixels.swapaxes(1, 2) if turned else tile.pixels
        (y0, y1), (x0, x1) = (
            ((tile.x0, tile.x1), (tile.y0, tile.y1)) if turned else ((tile.y0, tile.y1), (tile.x0, tile.x1))
        )
        if band is None:
            band = np.empty((len(pixels), 0, x.length), pixels.dtype)
        if x0 == 0:  # the next rows of the image; what no tile needs any more goes
            keep = min(max(y.starts[row] if row < len(y.starts) else y.length, top), end)
            kept = band[:, keep - top : end - top]
            if y1 - keep > band.shape[1]:
                band = np.empty((len(pixels), max(y1 - keep, min(y.tile, y.length) + y1 - y0), x.length), pixels.dtype)
            band[:, : end - keep] = kept
            top, end = keep, y1
        band[:, y0 - top : y1 - top, x0:x1] = pixels
        if x1 < x.length:
            continue
        while row < len(y.starts) and min(y.starts[row] + y.tile, y.length) <= end:
            rows = band[:, y.starts[row] - top : y.starts[row] - top + y.tile]
            for j, start in enumerate(x.starts):
                yield row, j, mirrored(rows[:, : end - y.starts[row], start : start + x.tile], y.tile, x.tile)
            row += 1


def mirrored(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A copy of [C, h, w] that goes on as its mirror image, as often as needed, to [C, height, width]."""
    _, h, w = pixels.shape
    if (h, w) == (height, width):
        return pixels.copy()
    return np.pad(pixels, [(0, 0), (0, height - h), (0, width - w)], mode="symmetric")


def is_empty(rgb: np.ndarray) -> bool:
    """Whether a tile uint8 [3, h, w] shows nothing: grey values, but for black and white, vary less than `LEAST_VARIANCE`.

    Examples
    --------
    >>> is_empty(np.full((3, 8, 8), 240, np.uint8))
    True
    """
    grey = np.rint(np.tensordot(np.array(LUMA, np.float32), rgb, 1)).astype(np.int64)
    counts = np.bincount(grey.ravel(), minlength=256)[1:255]
    if not counts.any():
        return True
    levels = np.arange(1, 255)
    mean = counts @ levels / counts.sum()
    return bool(counts @ (levels - mean) ** 2 / counts.sum() < LEAST_VARIANCE)
