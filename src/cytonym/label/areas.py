"""Pixels of cells that are polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from cytonym.data.source import Areas

MOST = 20_000
"""Polygons that are drawn one by one in a piece of tissue. Where more are in it they are small."""

REACH_PX = 64
"""Beyond a piece of tissue centres are looked for so far, in case their cells reach into it."""


def windows(areas: Areas, cells: np.ndarray, origin: np.ndarray, side: int) -> np.ndarray:
    """Which pixels of windows at `origin` [n, 2] are of the cell itself, bool [n, side, side]."""
    inside = np.zeros((len(cells), side, side), dtype=bool)
    for k, shape in enumerate(areas.of(cells)):
        top, left = (int(o) for o in origin[k])
        _fill(inside[k], shape, top, left, 1.0, value=True)
    return inside


def rows(areas: Areas, cells: np.ndarray, top: float, left: float, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Place in `cells` of the cell at the centre of each pixel of `scale` pixels, int64 [h, w], -1 where there is none.

    `top` and `left` are in these pixels. Where polygons overlap the last one counts.
    """
    found = np.full(shape, -1, dtype=np.int64)
    for k, polygon in enumerate(areas.of(cells)):
        _fill(found, polygon, top, left, scale, value=k)
    return found


def _fill(out: np.ndarray, shape: shapely.Geometry, top: float, left: float, scale: float, *, value: int) -> None:
    """Write into the pixels whose centre is in a shape, at least into the one where it lies."""
    if shape is None or shapely.is_empty(shape):
        return
    x0, y0, x1, y1 = shapely.bounds(shape) / scale - (left, top, left, top)
    first = np.floor([y0, x0]).astype(np.int64).clip(0, out.shape)
    last = np.ceil([y1, x1]).astype(np.int64).clip(0, out.shape)
    if (first >= last).any():
        return
    y, x = np.meshgrid(*(np.arange(a, b) + 0.5 for a, b in zip(first, last, strict=True)), indexing="ij")
    hit = shapely.contains_xy(shape, (x + left) * scale, (y + top) * scale)
    if not hit.any() and max(x1 - x0, y1 - y0) < 2:  # far out a cell is smaller than a pixel
        hit.flat[0] = True
    out[first[0] : last[0], first[1] : last[1]][hit] = value
