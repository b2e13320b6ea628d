"""Nuclei of a brightfield image by classical image processing, drawn as a class map.

A nucleus is a blob of stain: a maximum of the Laplacian of Gaussian at the scale of a nucleus. Its pixels are those nearest to
it, as far as they are darker than the surroundings by a share of its own contrast and hang together with it. It is positive
where there is DAB at its centre. Each step looks at a bounded neighbourhood and counts in whole numbers or in the
order of pixels, so that a tile with enough around it gives the same pixels as the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import ndimage

from cytonym.data.nuclear_size import TRUNCATE, blobness
from cytonym.data.parts import SQUARE

BLOB_SIGMA = 0.34
"""Scale of the Laplacian of Gaussian over the diameter of a nucleus."""
SEPARATION = 0.45
"""Least distance of two nuclei over the diameter."""
RADIUS = 1.0
"""How far from its centre a nucleus may reach, over the diameter: nuclei are long, or large."""
SMOOTHING = 0.06
CENTER = 0.2
"""Scales of the Gaussians in which the contour, and the brightness of a centre, are seen; over the diameter."""
SURROUNDINGS = 2.5
"""Side of the square whose mean is the surroundings, over the diameter."""
SATURATION = 0.6
"""Density beyond which a pixel makes the surroundings no darker."""
UNIT = 10_000
"""Densities are rounded to 1 / UNIT where they are summed up, so that sums do not depend on their order."""
MIN_AREA = 0.15
"""Least area over that of a disc of the given diameter."""


@dataclass(frozen=True)
class NucleusRules:
    """What a nucleus looks like."""

    diameter: float
    """Of a typical nucleus, pixels."""
    contrast: float = 0.045
    """Least answer of the Laplacian of Gaussian, in units of optical density."""
    contour: float = 0.28
    """Share of its contrast at which a nucleus ends."""
    positive: float = 0.07
    """DAB at its centre, seen through a Gaussian, above which a nucleus is positive; in units of optical density."""

    hematoxylin_only: bool = False
    """Look for nuclei in the hematoxylin alone, where DAB stains more than nuclei."""

    @property
    def reach(self) -> int:
        """Pixels around a place that decide about it."""
        d = self.diameter
        blob = int(TRUNCATE * BLOB_SIGMA * d + 0.5) + 1 + math.ceil(SEPARATION * d)
        edge = 2 * (_side(d) // 2) + int(TRUNCATE * CENTER * d + 0.5) + 2 * _opening(d)
        # a pixel's nucleus reaches two radii away, and each of its pixels could belong to a nucleus one radius further
        return math.ceil(2 * RADIUS * d + max(RADIUS * d + blob, edge)) + 2


def nuclei_of_stains(stains: np.ndarray, rules: NucleusRules) -> tuple[np.ndarray, np.ndarray]:
    """Nuclei of an image, or of a tile with `rules.reach` pixels around what counts.

    Parameters
    ----------
    stains
        f4 [2, h, w], hematoxylin and DAB in units of optical density.
    rules
        What a nucleus looks like.

    Returns
    -------
    Labels int32 [h, w], of which no two touch, also not across corners, and the DAB at the centre of each label, f8 [N + 1].
    """
    d = rules.diameter
    density = stains[0].astype(np.float64)
    if not rules.hematoxylin_only:
        density += stains[1]
    centers = _centers(blobness(density, BLOB_SIGMA * d), rules.contrast, SEPARATION * d)
    height, width = density.shape
    nearest = _nearest(centers, height, width, RADIUS * d)
    inside = _inside(density, centers, nearest, rules)
    owner = np.where(inside, nearest, 0).astype(np.int32)
    owner[_between(owner)] = 0
    labels = _grown(centers, owner)
    area = np.bincount(labels.ravel(), minlength=len(centers) + 1)
    small = area < MIN_AREA * np.pi / 4 * d**2
    labels[small[labels]] = 0
    dab = ndimage.gaussian_filter(stains[1].astype(np.float64), CENTER * d, truncate=TRUNCATE)
    return labels, np.concatenate([[0.0], dab[centers[:, 0], centers[:, 1]]])


def class_map_of_stains(stains: np.ndarray, rules: NucleusRules) -> np.ndarray:
    """Nuclei in red where positive and blue where negative, and their borders in green.

    Parameters
    ----------
    stains, rules
        As in `nuclei_of_stains`.

    Returns
    -------
    uint8 [3, h, w].
    """
    labels, dab = nuclei_of_stains(stains, rules)
    nucleus = labels > 0
    positive = (dab > rules.positive)[labels] & nucleus
    border = ndimage.binary_dilation(nucleus, SQUARE) & ~nucleus
    return np.stack([positive, border, nucleus & ~positive]).astype(np.uint8) * np.uint8(255)


def _side(diameter: float) -> int:
    """Odd side of the square of the surroundings."""
    return 2 * round(SURROUNDINGS * diameter / 2) + 1


def _opening(diameter: float) -> int:
    return max(1, round(SMOOTHING * diameter))


def _centers(answer: np.ndarray, least: float, distance: float) -> np.ndarray:
    """Maxima (y, x) [N, 2] in raster order, without those that have a higher one nearby."""
    from scipy.spatial import cKDTree

    peak = (ndimage.maximum_filter(answer, 3, mode="nearest") == answer) & (answer > least)
    points = np.argwhere(peak)
    if len(points) < 2:
        return points
    pairs = cKDTree(points).query_pairs(distance, output_type="ndarray")
    value = answer[peak]
    first, second = pairs.min(axis=1), pairs.max(axis=1)
    lower = np.where(value[first] >= value[second], second, first)  # of two equal ones the first in raster order stays
    kept = np.ones(len(points), dtype=bool)
    kept[lower] = False
    return points[kept]


@njit(cache=True)
def _nearest(centers: np.ndarray, height: int, width: int, radius: float) -> np.ndarray:
    """Number of the nearest centre, from 1 on, the first of equally near ones; 0 further away than `radius`."""
    owner = np.zeros((height, width), np.int32)
    best = np.full((height, width), np.inf)
    reach = int(radius)
    for i in range(len(centers)):
        cy, cx = centers[i]
        for y in range(max(0, cy - reach), min(height, cy + reach + 1)):
            for x in range(max(0, cx - reach), min(width, cx + reach + 1)):
                square = float((y - cy) ** 2 + (x - cx) ** 2)
                if square <= radius * radius and square < best[y, x]:
                    best[y, x] = square
                    owner[y, x] = i + 1
    return owner


def _inside(density: np.ndarray, centers: np.ndarray, nearest: np.ndarray, rules: NucleusRules) -> np.ndarray:
    """Pixels that are darker than the surroundings by a share of their nucleus's contrast."""
    d = rules.diameter
    side = _side(d)
    level = np.rint(np.minimum(density, SATURATION) * UNIT)
    # the mean where nothing counts as darker than the mean: background, also between many nuclei
    background = _mean(np.minimum(level, np.rint(_mean(level, side))), side) / UNIT
    top = ndimage.gaussian_filter(density, CENTER * d, truncate=TRUNCATE)
    peak = np.concatenate([[np.inf], top[centers[:, 0], centers[:, 1]]])[nearest]
    seen = ndimage.gaussian_filter(density, SMOOTHING * d, truncate=TRUNCATE)
    inside = seen > background + rules.contour * np.maximum(peak - background, 0)
    reach = np.arange(-_opening(d), _opening(d) + 1)
    disc = reach[:, None] ** 2 + reach**2 <= _opening(d) ** 2
    return np.asarray(ndimage.binary_dilation(ndimage.binary_erosion(inside, disc, border_value=1), disc), dtype=bool)


def _mean(whole: np.ndarray, side: int) -> np.ndarray:
    """Mean of whole numbers over a square; the sums are exact, wherever the filter begins."""
    for axis in (0, 1):
        whole = np.rint(ndimage.uniform_filter1d(whole, side, axis=axis, mode="nearest") * side)
    return whole / side**2


@njit(cache=True)
def _grown(centers: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """What hangs together with each centre, among its pixels."""
    height, width = owner.shape
    labels = np.zeros((height, width), np.int32)
    stack = np.empty((height * width, 2), np.int32)
    for i in range(len(centers)):
        y, x = centers[i]
        if owner[y, x] != i + 1:
            continue
        labels[y, x] = i + 1
        stack[0, 0], stack[0, 1] = y, x
        n = 1
        while n > 0:
            n -= 1
            y, x = stack[n]
            for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                a, b = y + dy, x + dx
                if not (0 <= a < height and 0 <= b < width):
                    continue
                if labels[a, b] == 0 and owner[a, b] == i + 1:
                    labels[a, b] = i + 1
                    stack[n, 0], stack[n, 1] = a, b
                    n += 1
    return labels


def _between(labels: np.ndarray) -> np.ndarray:
    """Pixels that have another nucleus beside, above or across a corner above: without them no two nuclei touch."""
    apart = np.zeros(labels.shape, dtype=bool)
    height, width = labels.shape
    for dy, dx in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):
        here = (slice(-dy, None), slice(max(0, -dx), width - max(0, dx)))
        there = (slice(None, height + dy), slice(max(0, dx), width + min(0, dx)))
        a, b = labels[here], labels[there]
        apart[here] |= (a > 0) & (b > 0) & (a != b)
    return apart
