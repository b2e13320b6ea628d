"""What people look at: patches of cells, and pieces of the tissue at any scale, as raw bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.data.cell_masks import CellMasks
from cytonym.data.chunks import available_threads
from cytonym.data.labels import LabelGrid
from cytonym.data.patches import window_origin
from cytonym.label import areas
from cytonym.label.blocks import Cache, binned, levels, lookup
from cytonym.label.contrast import Contrast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.label.blocks import Blocks

RADIUS_UM = 4.0
"""Of cells that have no mask."""
RADIUS_PX = 4.0
NEAR_PX = 512
"""Outlines of cells in squares of this side are cut one after another."""
LARGEST_PX = 2048
MOST_BYTES = 512 * 2**20
"""Of one answer."""
MOST_PIXELS = 2**30
"""Read for one piece of tissue, over all channels."""
BAND_PIXELS = 2**25
RGB_NAMES = (["r", "g", "b"], ["red", "green", "blue"])


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of n cells."""

    pixels: np.ndarray
    """u1 or u2 [n, C, s, s]; 0 beyond the image's border."""
    outline: np.ndarray
    """u1 [n, s, s], 1 on the outline of the cell itself."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A piece of the tissue."""

    pixels: np.ndarray
    """u1 or u2 [C, h, w]."""
    rows: np.ndarray
    """u4 [h, w], table row + 1 of the cell at each pixel, 0 where there is none."""
    y: int
    x: int
    """First row and column in pixels of the full resolution."""
    scale: int
    """Pixels of the full resolution per pixel."""


class Pictures:
    """The images of a session.

    Pixels of unsigned integers of 8 or 16 bits are given as stored. Others are spread over 16 bits, between the limits that `ranges`
    tells.

    Parameters
    ----------
    sdata
        Where the coarser levels of the images are.
    sources
        Cells of the images.
    source_rows
        Of each source, the table's row of each of its cells, -1 for those that it lacks.
    n_obs
        Rows of the table.
    size_px
        Side of a patch.
    """

    def __init__(
        self,
        sdata: SpatialData | None,
        sources: Sequence[CellSource],
        source_rows: Sequence[np.ndarray],
        n_obs: int,
        size_px: int,
    ) -> None:
        self.sources, self.source_rows, self.size_px = list(sources), list(source_rows), int(size_px)
        self.channels = list(dict.fromkeys(name for source in self.sources for name in source.channels))
        dtypes = [np.dtype(source.pixels.dtype) for source in self.sources]
        self.scaled = any(d.kind not in "ub" or d.itemsize > 2 for d in dtypes)
        self.dtype = np.dtype("u1" if all(d.itemsize == 1 for d in dtypes) and not self.scaled else "<u2")
        names = [[name.lower() for name in source.channels] for source in self.sources]
        self.rgb = bool(names) and self.dtype.itemsize == 1 and all(each in RGB_NAMES for each in names)
        self._cache = Cache()
        self._pool = ThreadPoolExecutor(available_threads(), thread_name_prefix="cytonym-pictures")
        self._source = np.full(n_obs, -1, dtype=np.int32)
        self._cell = np.zeros(n_obs, dtype=np.int64)
        for number, rows in enumerate(self.source_rows):
            known = np.flatnonzero(np.asarray(rows) >= 0)
            self._source[rows[known]], self._cell[rows[known]] = number, known
        self._levels = [
            levels(sdata.images[s.image_key] if sdata is not None else None, s.pixels, self._cache)
            for s in self.sources
        ]
        self._grids = [self._grids_of(sdata, source) for source in self.sources]
        self._contrast = Contrast(self.channels, self.sources, [each[0].blocks for each in self._levels], self._pool)

    @property
    def mask(self) -> bool:
        """Whether there are outlines, which is wherever there are images."""
        return bool(self.sources)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---------------------------------------------------------------------------------------------------------- patches
    def gallery(self, rows: np.ndarray, channels: Sequence[int] | None = None) -> Patches:
        """Patches of cells in the order of `rows`, which may repeat; each chunk of the images is decoded once.

        Parameters
        ----------
        rows
            Rows of the table. Those that have no place in an image get an empty patch.
        channels
            Places in `channels`, all by default.

        Raises
        ------
        ValueError
            The answer is too large.
        """
        wanted = self._wanted(channels)
        side, n = self.size_px, len(rows)
        if n * len(wanted) * side**2 * self.dtype.itemsize > MOST_BYTES:
            msg = (
                f"{n} patches of {len(wanted)} channels are too many at a time. Ask for fewer cells or fewer channels."
            )
            raise ValueError(msg)
        pixels = np.zeros((n, len(wanted), side, side), dtype=self.dtype)
        outline = np.zeros((n, side, side), dtype=np.uint8)
        for number, source in enumerate(self.sources):
            at = np.flatnonzero(self._source[rows] == number)
            cells = self._cell[rows[at]]
            finite = np.isfinite(source.centers[cells]).all(axis=1)
            at, cells = at[finite], cells[finite]
            if len(at):
                origin = window_origin(source.centers[cells], side)
                places, index = self._present(source, wanted)
                if len(places):
                    found = self._cut(self._levels[number][0].blocks, origin, index)
                    pixels[np.ix_(at, places)] = self._as_sent(found, wanted[places], axis=1)
                outline[at] = self._outlines(number, cells, origin)
        return Patches(pixels, outline)

    def _cut(self, blocks: Blocks, origin: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Windows [n, c, s, s] at `origin` [n, 2], zero beyond the border."""
        side = self.size_px
        out = np.zeros((len(origin), len(index), side, side), dtype=blocks.dtype)
        touching: dict[tuple[int, int], list[int]] = {}
        for k, (y, x) in enumerate(origin.tolist()):
            for block in blocks.over(y, y + side, x, x + side):
                touching.setdefault(block, []).append(k)

        def fill(block: tuple[int, int]) -> None:
            top, bottom, left, right = blocks.box(*block)
            parts = blocks.parts(*block, index)
            for k in touching[block]:
                y, x = origin[k].tolist()
                y0, y1, x0, x1 = max(y, top), min(y + side, bottom), max(x, left), min(x + side, right)
                for places, planes in parts:
                    out[k, places, y0 - y : y1 - y, x0 - x : x1 - x] = planes[
                        :, y0 - top : y1 - top, x0 - left : x1 - left
                    ]

        for _ in self._pool.map(fill, touching):
            pass
        return out

    def _outlines(self, number: int, cells: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """u1 [n, s, s], 1 on pixels of a cell that have a neighbour which is not of it."""
        source, side = self.sources[number], self.size_px
        inside = np.zeros((len(cells), side + 2, side + 2), dtype=bool)
        if source.labels is not None:
            grid = self._grids[number][0][0]
            ids = source.instance_ids[cells]
            order = np.lexsort((origin[:, 1] // NEAR_PX, origin[:, 0] // NEAR_PX))

            def fill(some: np.ndarray) -> None:
                for k in some.tolist():
                    y, x = origin[k].tolist()
                    inside[k] = grid.read(y - 1, y + side + 1, x - 1, x + side + 1) == ids[k]

            for _ in self._pool.map(fill, np.array_split(order, min(len(order), 4 * available_threads()))):
                pass
        elif source.areas is not None:
            inside = areas.windows(source.areas, cells, origin - 1, side + 2)
        else:
            grid_px = np.arange(side + 2) - 0.5
            away = source.centers[cells] - origin
            y, x = (grid_px[None] - away[:, [axis]] for axis in (0, 1))
            inside = y[:, :, None] ** 2 + x[:, None, :] ** 2 <= _radius(source) ** 2
        inner = inside[:, 1:-1, 1:-1]
        kept = inner & inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
        return (inner & ~kept).astype(np.uint8)

    # ----------------------------------------------------------------------------------------------------------- tissue
    def context(
        self, number: int, y: int, x: int, h: int, w: int, *, px: int, channels: Sequence[int] | None = None
    ) -> Piece:
        """A piece of the tissue, and whose cell each pixel is.

        Parameters
        ----------
        number
            Which of the sources.
        y, x, h, w
            Box in pixels of the full resolution. What lies outside the image is left out.
        px
            Longest side of the answer; one more where the box does not begin at a whole step.
        channels
            Places in `channels`, all by default.

        Raises
        ------
        ValueError
            The box is not in the image, or nothing coarse enough is stored to show it.
        """
        wanted, source = self._wanted(channels), self.sources[number]
        _, height, width = source.shape
        y0, y1, x0, x1 = max(y, 0), min(y + h, height), max(x, 0), min(x + w, width)
        if y0 >= y1 or x0 >= x1:
            msg = f"The box at y = {y}, x = {x} of {h} x {w} px is not in the image of {height} x {width} px."
            raise ValueError(msg)
        scale = max(1, -(-max(y1 - y0, x1 - x0) // max(px, 1)))
        levels = self._levels[number]
        level = max((each for each in levels if each.step <= scale), key=lambda each: each.step)
        times = -(-scale // level.step)
        scale = times * level.step
        top, left = y0 // scale, x0 // scale
        shape = (-(-y1 // scale) - top, -(-x1 // scale) - left)
        places, index = self._present(source, wanted)
        if shape[0] * shape[1] * times**2 * max(len(index), 1) > MOST_PIXELS:
            msg = (
                f"{h} x {w} px of {len(index)} channels are too many to show at once, and image {source.image_key!r} has no coarser level. "
                "Zoom in or choose fewer channels; a store with `scale_factors` shows the whole slide."
            )
            raise ValueError(msg)
        pixels = np.zeros((len(wanted), *shape), dtype=self.dtype)
        band = max(1, BAND_PIXELS // (shape[1] * times**2 * max(len(index), 1)))
        for first in range(0, shape[0], band) if len(index) else ():
            last = min(first + band, shape[0])
            box = ((top + first) * times, (top + last) * times, left * times, (left + shape[1]) * times)
            planes = self._as_sent(binned(level.blocks, box, index, times, self._pool), wanted[places], axis=0)
            pixels[places, first:last] = planes
        return Piece(pixels, self._rows_at(number, top, left, shape, scale), top * scale, left * scale, scale)

    def _rows_at(self, number: int, top: int, left: int, shape: tuple[int, int], scale: int) -> np.ndarray:
        """Table row + 1 at the centre of each pixel of a piece, u4 [h, w]."""
        source, rows = self.sources[number], self.source_rows[number]
        if source.labels is None:
            radius = max(_radius(source) / scale, 0.75)
            centers = source.centers / scale - (top, left)
            reach = radius if source.areas is None else radius + areas.REACH_PX / scale
            near = np.flatnonzero(((centers > -reach) & (centers < np.array(shape) + reach)).all(axis=1))
            if source.areas is not None and len(near) <= areas.MOST:
                found = areas.rows(source.areas, near, top, left, shape, scale)
                return (np.append(rows[near], -1)[found] + 1).astype("<u4")
            moved = replace(source.subset(near), centers=centers[near])
            found = CellMasks(moved, radius).read(0, shape[0], 0, shape[1])
            return (np.append(rows[near], -1)[found] + 1).astype("<u4")
        grids = self._grids[number]
        grid, step = max((g for g in grids if g[1] <= scale), key=lambda g: g[1], default=grids[0])
        out = np.zeros(shape, dtype="<u4")
        if shape[0] * shape[1] * (scale / step) ** 2 > MOST_PIXELS:
            return out
        seen = np.array([[scale, 0, left * scale], [0, scale, top * scale], [0, 0, 1]], dtype=np.float64)
        coarse = LabelGrid(grid.labels, shape, grid.to_labels @ seen)
        band = max(1, int(BAND_PIXELS // (shape[1] * (scale / step) ** 2)))
        for first in range(0, shape[0], band):
            last = min(first + band, shape[0])
            out[first:last] = self._row_of[number](coarse.read(first, last, 0, shape[1]))
        return out

    @cached_property
    def _row_of(self) -> list[Any]:
        return [
            lookup(s.instance_ids, r) if s.labels is not None else None
            for s, r in zip(self.sources, self.source_rows, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------------------- contrast
    def limits(self, channels: Sequence[int] | None = None) -> list[list[int]]:
        """Of each channel, what to show black and what in full colour, in the units of the pixels that are sent."""
        if self.rgb:
            return [[0, 255]] * len(self._wanted(channels))
        out = []
        for low, high, dark, bright in self._contrast.of(self._wanted(channels).tolist()):
            if self.scaled:
                dark, bright = ((v - low) / ((high - low) or 1.0) * 65535 for v in (dark, bright))
            first = int(np.floor(dark))
            out.append([first, max(int(np.ceil(bright)), first + 1)])
        return out

    def ranges(self, channels: Sequence[int] | None = None) -> list[list[float]] | None:
        """Where pixels are scaled: the values that are sent as 0 and 65535."""
        if not self.scaled:
            return None
        return [[low, high] for low, high, *_ in self._contrast.of(self._wanted(channels).tolist())]

    # ------------------------------------------------------------------------------------------------------------ helpers
    def _wanted(self, channels: Sequence[int] | None) -> np.ndarray:
        return np.arange(len(self.channels)) if channels is None else np.asarray(channels, dtype=np.int64)

    def _present(self, source: CellSource, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the wanted channels that an image has: their places in `wanted` and in the image."""
        known = dict(zip(source.channels, source.channel_index.tolist(), strict=True))
        names = [self.channels[c] for c in wanted]
        places = [k for k, name in enumerate(names) if name in known]
        return np.array(places, dtype=np.int64), np.array([known[names[k]] for k in places], dtype=np.int64)

    def _as_sent(self, pixels: np.ndarray, channels: np.ndarray, axis: int) -> np.ndarray:
        """Pixels as they are sent."""
        if not self.scaled:
            return (
                np.rint(pixels).astype(self.dtype)
                if pixels.dtype.kind == "f"
                else pixels.astype(self.dtype, copy=False)
            )
        limits = np.array(self._contrast.of(channels.tolist())).reshape(-1, 4)
        shape = [-1 if k == axis else 1 for k in range(pixels.ndim)]
        low, high = limits[:, 0].reshape(shape), limits[:, 1].reshape(shape)
        unit = np.nan_to_num((pixels - low) / np.where(high > low, high - low, 1.0), nan=0.0, posinf=1.0, neginf=0.0)
        return np.rint(np.clip(unit, 0, 1) * 65535).astype(self.dtype)

    def _grids_of(self, sdata: SpatialData | None, source: CellSource) -> list[tuple[LabelGrid, float]]:
        """The label image at each of its levels, and the image's pixels per pixel of it."""
        if source.labels is None:
            return []
        element = sdata.labels[source.region] if sdata is not None and source.region in sdata.labels else None
        full = source.labels
        grids = []
        for level in levels(element, full.labels, self._cache):
            shrink = np.diag([1 / level.step, 1 / level.step, 1.0])
            to_labels = shrink @ full.to_labels
            grids.append((LabelGrid(level.blocks, full.shape, to_labels), 1 / float(np.abs(to_labels[:2, :2]).max())))
        return grids


def _radius(source: CellSource) -> float:
    return RADIUS_UM / source.pixel_size if source.pixel_size else RADIUS_PX
