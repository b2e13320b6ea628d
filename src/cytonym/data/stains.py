"""Optical densities of a brightfield image, and how much of each stain they show."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

STAINS = ("hematoxylin", "DAB")
WHITE = 0.95
"""Quantile of the intensities of an image that shows where there is no tissue, or next to none."""
LEVELS = 256


@cache
def _densities() -> np.ndarray:
    """100 * log10(255 / v) of the intensities 0 ... 255; 0 counts as 1."""
    return 100 * np.log10(255 / np.maximum(np.arange(LEVELS), 1))


@cache
def _separation() -> np.ndarray:
    """f8 [3, 2]: from densities of red, green and blue to stains (Ruifrok and Johnston 2001, as in scikit-image)."""
    from skimage.color import hed_from_rgb

    return np.asarray(hed_from_rgb, dtype=np.float64)[:, [0, 2]]


def summed_density(rgb: np.ndarray) -> np.ndarray:
    """100 times the optical density, summed over red, green and blue and rounded.

    Parameters
    ----------
    rgb
        uint8 [3, h, w].

    Returns
    -------
    int64 [h, w], 0 for white and 722 for black.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.stains import summed_density
    >>> summed_density(np.array([255, 51, 0], dtype="u1").reshape(3, 1, 1)).tolist()
    [[311]]
    """
    red, green, blue = (_densities()[plane] for plane in rgb)
    return np.rint(red + green + blue).astype(np.int64)


def intensity_counts(parts: Iterable[np.ndarray]) -> np.ndarray:
    """How often each intensity occurs in each channel of an image that comes in parts.

    Parameters
    ----------
    parts
        uint8 [3, h, w] each, of which no two overlap.

    Returns
    -------
    int64 [3, 256].
    """
    counts = np.zeros((3, LEVELS), dtype=np.int64)
    for part in parts:
        for row, plane in zip(counts, part, strict=True):
            row += np.bincount(plane.ravel(), minlength=LEVELS)
    return counts


def white_level(counts: np.ndarray, quantile: float = WHITE) -> np.ndarray:
    """Intensities of red, green and blue where there is no tissue: a high quantile of each channel.

    Parameters
    ----------
    counts
        [3, 256], as `intensity_counts` gives them.
    quantile
        Share of the pixels that are at most so bright.

    Returns
    -------
    int64 [3], at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.stains import intensity_counts, white_level
    >>> white_level(intensity_counts([np.full((3, 4, 4), 240, "u1")])).tolist()
    [240, 240, 240]
    """
    below = counts.cumsum(axis=1)
    return np.maximum((below < quantile * below[:, -1:]).sum(axis=1), 1)


def separate_stains(rgb: np.ndarray, white: ArrayLike = (255, 255, 255)) -> np.ndarray:
    """Hematoxylin and DAB by color deconvolution, in units of optical density.

    Each stain has an optical density for red, green and blue that is proportional to its amount, so the amounts follow from
    the densities by a matrix (Ruifrok and Johnston 2001). Densities are measured against `white`. Negative amounts become 0.

    Parameters
    ----------
    rgb
        uint8 [3, h, w].
    white
        Intensities of red, green and blue where there is no tissue.

    Returns
    -------
    f4 [2, h, w]: hematoxylin, DAB.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.stains import separate_stains
    >>> brown = np.array([139, 90, 60], dtype="u1").reshape(3, 1, 1)
    >>> [round(float(v), 2) for v in separate_stains(brown).ravel()]
    [0.09, 0.78]
    """
    table = _densities() / 100
    densities = [
        table[plane] - table[level] for plane, level in zip(rgb, np.asarray(white, dtype=np.int64), strict=True)
    ]
    out = np.empty((len(STAINS), *rgb.shape[1:]), dtype=np.float32)
    for plane, weights in zip(out, _separation().T, strict=True):
        total = weights[0] * densities[0]
        total += weights[1] * densities[1]
        total += weights[2] * densities[2]
        np.maximum(total, 0, out=total)
        plane[...] = total
    return out
