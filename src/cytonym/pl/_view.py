"""A part of an image and the cells in it, read piece by piece, at a size that a figure can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows

    Box = tuple[int, int, int, int]  # y0, y1, x0, x1

WHOLE = 2048  # pixels a side up to which an image is shown whole where no crop is given
AT_ONCE = 2**24  # pixels of a band that is read at once
LINES = 350  # lines beside each other that fill a canvas


@dataclass(frozen=True)
class Rims:
    """Inner rims of cells on a canvas [h x zoom, w x zoom]."""

    cell: np.ndarray
    """int, cell of each pixel of a rim, -1 elsewhere."""
    thin: np.ndarray
    """bool, the outer half of the rims."""
    zoom: int


@dataclass(frozen=True)
class View:
    """Part of an image, and its cells."""

    box: Box
    step: int
    """Pixels of the image, squared, in one of the view."""
    pixels: np.ndarray
    """f4 [C, h, w], means over step x step pixels of the image."""
    cell: np.ndarray | None
    """int [h, w], cell of each pixel, -1 outside all; None where cells are known by their centres."""
    centers: np.ndarray
    """f8 [N, 2] (y, x) of all cells, in pixels of the image."""
    rows: np.ndarray
    """int [N], the table's row of each cell, -1 for those that the table lacks."""
    shown: np.ndarray
    """int, the cells in the view."""

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the pixels in the figure."""
        y0, _, x0, _ = self.box
        _, height, width = self.pixels.shape
        return x0, x0 + width * self.step, y0 + height * self.step, y0

    def values(self, of_rows: np.ndarray) -> np.ndarray:
        """Of each cell [N], from those of the rows of the table; NaN where it has none."""
        return np.where(self.rows >= 0, of_rows[self.rows], np.nan)

    def paint(self, of_cells: np.ndarray) -> np.ndarray:
        """Values of cells [N] on their pixels [h, w]; NaN beside them."""
        assert self.cell is not None
        return np.where(self.cell >= 0, of_cells[self.cell], np.nan)

    def outlines(self, least: int, lines: int = LINES) -> Rims:
        """The rim of each cell on a canvas of at least so many pixels a side, so that lines are thinner than the pixels of the view.

        Of `lines` lines beside each other the canvas would be full.
        """
        from scipy.ndimage import maximum_filter, minimum_filter

        assert self.cell is not None
        zoom = max(1, -(-least // max(self.cell.shape)))
        cell = self.cell.repeat(zoom, axis=0).repeat(zoom, axis=1)
        areas = np.bincount(self.cell[self.cell >= 0])
        across = np.sqrt(np.median(areas[areas > 0])) * zoom if areas.any() else 1.0
        width = int(np.clip(round(max(cell.shape) / lines), 1, max(1, across // 8)))
        wide, thin = (
            (maximum_filter(cell, 2 * w + 1) != cell) | (minimum_filter(cell, 2 * w + 1) != cell)
            for w in (width, max(1, width // 2))
        )
        return Rims(np.where(wide, cell, -1), thin & (cell >= 0), zoom)


def choose_box(shape: tuple[int, int], crop: Sequence[int] | None, scored: np.ndarray) -> Box:
    """The crop, checked; or the image; or of a large one a square at its centre, moved to the nearest scored cell (y, x) if it has none."""
    height, width = shape
    if crop is not None:
        box = tuple(crop)
        if len(box) != 4 or any(isinstance(v, bool) or int(v) != v for v in box):
            msg = f"`crop` must be four whole numbers (y0, y1, x0, x1) in pixels, got {crop}."
            raise ValueError(msg)
        y0, y1, x0, x1 = map(int, box)
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            msg = f"`crop` (y0, y1, x0, x1) = {(y0, y1, x0, x1)} does not lie in the image of {height} x {width} pixels (y, x)."
            raise ValueError(msg)
        return y0, y1, x0, x1
    if max(shape) <= WHOLE:
        return 0, height, 0, width
    side = np.minimum(shape, WHOLE)
    middle = np.asarray(shape) / 2
    apart = np.abs(scored - middle)
    if len(scored) and not (apart < side / 2).all(axis=1).any():
        middle = scored[np.lexsort((scored[:, 1], scored[:, 0], apart.max(axis=1)))[0]]
    corner = np.clip(np.round(middle - side / 2), 0, np.asarray(shape) - side).astype(int)
    (y0, x0), (y1, x1) = corner.tolist(), (corner + side).tolist()
    return y0, y1, x0, x1


def read_view(sources: Sequence[CellSource], rows: TableRows, box: Box, most: int) -> View:
    """Read the box of the one image of the sources, not more than `most` pixels a side."""
    y0, y1, x0, x1 = box
    step = -(-max(y1 - y0, x1 - x0) // most)
    starts = np.cumsum([0, *(len(s.instance_ids) for s in sources)])
    centers = np.concatenate([s.centers for s in sources])
    cell = None
    for source, start in zip(sources, starts, strict=False):
        if source.labels is not None:
            found = _read_cells(source, box, step)
            found = np.where(found >= 0, found + start, -1)
            cell = found if cell is None else np.where(found >= 0, found, cell)
    if cell is None:
        inside = (centers >= (y0, x0)).all(axis=1) & (centers < (y1, x1)).all(axis=1)
        shown = np.flatnonzero(inside)
    else:
        shown = np.unique(cell[cell >= 0])
    return View(box, step, read_pixels(sources[0], box, step), cell, centers, np.concatenate(rows.rows), shown)


def _bands(y0: int, y1: int, step: int, per_row: float) -> list[tuple[int, int]]:
    """Rows to read at once, whole steps, `per_row` pixels each."""
    height = max(1, int(AT_ONCE // (per_row * step))) * step
    return [(y, min(y + height, y1)) for y in range(y0, y1, height)]


def read_pixels(source: CellSource, box: Box, step: int) -> np.ndarray:
    """Selected channels f4 [C, h, w] of a box, each pixel the mean over step x step ones of the image."""
    y0, y1, x0, x1 = box
    width = -(-(x1 - x0) // step)
    channels = []
    for channel in source.channel_index:
        bands = []
        for top, bottom in _bands(y0, y1, step, x1 - x0):
            band = np.asarray(source.pixels[int(channel), top:bottom, x0:x1], dtype=np.float32)
            if step > 1:
                y, x = np.arange(0, bottom - top, step), np.arange(width) * step
                total = np.add.reduceat(np.add.reduceat(band, y, axis=0), x, axis=1)
                n = np.outer(np.diff(y, append=bottom - top), np.diff(x, append=x1 - x0))
                band = (total / n).astype(np.float32)
            bands.append(band)
        channels.append(np.concatenate(bands))
    return np.stack(channels)


def _read_cells(source: CellSource, box: Box, step: int) -> np.ndarray:
    """Cell of the middle of each pixel of the view, -1 where there is none."""
    assert source.labels is not None
    y0, y1, x0, x1 = box
    zoom = abs(np.linalg.det(source.labels.to_labels[:2, :2]))  # pixels of the label image in one of the image
    order = np.argsort(source.instance_ids)
    ids = source.instance_ids[order]
    bands = []
    for top, bottom in _bands(y0, y1, step, (x1 - x0) * max(1.0, zoom)):
        y = np.minimum(np.arange(0, bottom - top, step) + step // 2, bottom - top - 1)
        x = np.minimum(np.arange(0, x1 - x0, step) + step // 2, x1 - x0 - 1)
        labels = source.labels.read(top, bottom, x0, x1)[np.ix_(y, x)]
        at = np.minimum(np.searchsorted(ids, labels), len(ids) - 1)
        bands.append(np.where((ids[at] == labels) & (labels != 0), order[at], -1))
    return np.concatenate(bands)
