"""Bright blobs of a given size in one plane, found tile by tile; the same blobs whatever the tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numba import njit
from scipy import ndimage

from cytonym.data.nuclear_size import TRUNCATE, blobness
from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cytonym.data.source import CellSource
    from cytonym.data.tiles import Tile

SIGMAS = (0.25, 0.32, 0.40)
"""Scales of the Laplacian of Gaussian over the diameter. A sharp disc answers most at 0.354; nuclei in tissue are soft,
touch, and differ in size, so the scales lie around and below it."""
SMOOTHING = 0.15
"""Scale of the Gaussian of `maxima` over the diameter."""
BRIGHTNESS_SIGMA = 0.30
SEPARATION = 0.55
"""Least distance of two centres over the diameter."""
MIN_BRIGHTNESS = 0.20
"""Least brightness (square root of intensity) of a cell over the typical one."""
MIN_CONTRAST = 1e-3
"""Least answer over the local brightness: below it there is nothing but rounding."""
PIECE_PX = 1024
"""Side of what is filtered at a time."""


class Blobs(NamedTuple):
    """Candidates, best first."""

    y: np.ndarray
    """int64 [N], row of the pixel."""
    x: np.ndarray
    response: np.ndarray
    """f8 [N], how much the place looks like a blob."""
    brightness: np.ndarray
    """f8 [N], smoothed square root of the intensity."""


def find_blobs(
    source: CellSource,
    diameter_px: float,
    *,
    method: Literal["log", "maxima"] = "log",
    threshold: float = 0.1,
    tile_px: int | None = None,
) -> Blobs:
    """Bright blobs of the sum of some channels.

    The square root of the intensity makes the noise of counts equal everywhere and bright neighbours harmless. `log`
    takes the largest of -s^2 * Laplacian of Gaussian over three scales s (Lindeberg 1998), `maxima` the Gaussian-smoothed
    image itself. Local maxima are thinned to one within `SEPARATION` diameters, the highest first. Those above
    `threshold` times the typical response and `MIN_BRIGHTNESS` times the typical brightness are kept, where typical is
    sum(v^3) / sum(v^2) over all maxima: what carries the signal counts, however many maxima of noise there are. Nothing
    depends on the units of the image.

    Parameters
    ----------
    source
        Image, with the channels to sum.
    diameter_px
        Diameter of a nucleus.
    method, threshold
        See above.
    tile_px
        Least side of a tile; 1024 pixels by default.

    Raises
    ------
    ValueError
        A pixel is NaN or infinite.
    """
    parts = []
    reach = _reach(diameter_px)
    for tile in iter_tiles(source.pixels, source.channel_index, halo=reach, tile_px=tile_px or PIECE_PX):
        for y0, y1, x0, x1 in _pieces(tile):
            top, left = max(y0 - reach, tile.py0), max(x0 - reach, tile.px0)
            rows = slice(top - tile.py0, y1 + reach - tile.py0)
            columns = slice(left - tile.px0, x1 + reach - tile.px0)
            pixels = tile.pixels[:, rows, columns]
            plane = pixels.sum(axis=0, dtype=np.float64)
            if not np.isfinite(plane).all():
                bad = [name for name, part in zip(source.channels, pixels, strict=True) if not np.isfinite(part).all()]
                msg = f"Channel {bad[0]!r} of image {source.image_key!r} has NaN or infinite pixels. Fill them first."
                raise ValueError(msg)
            response, contrast, brightness = _maps(plane, diameter_px, method)
            peak = ndimage.maximum_filter(response, 3, mode="nearest") == response
            peak &= contrast > MIN_CONTRAST * brightness
            core = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
            y, x = np.nonzero(peak[core])
            parts.append(Blobs(y + y0, x + x0, response[core][y, x], brightness[core][y, x]))
    blobs = Blobs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    best = np.lexsort((blobs.x, blobs.y, -blobs.response))
    blobs = Blobs(*(column[best] for column in blobs))
    kept = _thin(blobs.y, blobs.x, SEPARATION * diameter_px)
    blobs = Blobs(*(column[kept] for column in blobs))
    if not len(blobs.y):
        return blobs
    kept = blobs.brightness > MIN_BRIGHTNESS * _typical(blobs.brightness)
    if method == "log":
        kept &= blobs.response > threshold * _typical(blobs.response)
    else:
        kept &= blobs.brightness > np.sqrt(threshold) * _typical(blobs.brightness)
    return Blobs(*(column[kept] for column in blobs))


def _pieces(tile: Tile) -> Iterator[tuple[int, int, int, int]]:
    """Cores (y0, y1, x0, x1) of a tile that is large because its chunks are: the filters take eight times its memory."""
    for y0 in range(tile.y0, tile.y1, PIECE_PX):
        for x0 in range(tile.x0, tile.x1, PIECE_PX):
            yield y0, min(y0 + PIECE_PX, tile.y1), x0, min(x0 + PIECE_PX, tile.x1)


def _reach(diameter_px: float) -> int:
    """Pixels around a place that decide about it: the longest filter, and one for the neighbour's value."""
    return int(TRUNCATE * max(*SIGMAS, SMOOTHING, BRIGHTNESS_SIGMA) * diameter_px + 0.5) + 2


def _maps(plane: np.ndarray, diameter: float, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Response, contrast and brightness [h, w] of a plane [h, w]."""
    root = np.sqrt(np.clip(plane, 0, None, out=plane), out=plane)
    brightness = ndimage.gaussian_filter(root, BRIGHTNESS_SIGMA * diameter, truncate=TRUNCATE)
    if method == "maxima":
        response = ndimage.gaussian_filter(root, SMOOTHING * diameter, truncate=TRUNCATE)
        return response, response - brightness, brightness
    response = np.full_like(root, -np.inf)
    for scale in SIGMAS:
        np.maximum(response, blobness(root, scale * diameter), out=response)
    return response, response, brightness


def _typical(values: np.ndarray) -> float:
    return float((values**3).sum() / (values**2).sum())


@njit(cache=True)
def _thin(y: np.ndarray, x: np.ndarray, distance: float) -> np.ndarray:
    """Mask [N] of points, best first, of which no two are closer than `distance`: a point yields to a better one."""
    kept = np.zeros(len(y), np.bool_)
    if len(y) == 0:
        return kept
    side = max(distance, 1.0)
    rows, columns = int(y.max() / side) + 1, int(x.max() / side) + 1
    first = np.full((rows, columns), -1, np.int64)
    following = np.full(len(y), -1, np.int64)
    for i in range(len(y)):
        row, column = int(y[i] / side), int(x[i] / side)
        free = True
        for a in range(max(0, row - 1), min(rows, row + 2)):
            for b in range(max(0, column - 1), min(columns, column + 2)):
                j = first[a, b]
                while j >= 0 and free:
                    free = (y[i] - y[j]) ** 2 + (x[i] - x[j]) ** 2 >= distance * distance
                    j = following[j]
        if free:
            kept[i] = True
            following[i] = first[row, column]
            first[row, column] = i
    return kept
