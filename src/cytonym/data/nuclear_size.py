"""How large the nuclei of an image are, as the image itself tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.data.source import CellSource

DIAMETERS = np.geomspace(4, 64, 25)
"""Diameters [px] among which the size of nuclei is looked for."""
BLOB_SIGMA = 0.354
"""Scale at which a disc of diameter 1 answers most to the Laplacian of Gaussian: 1 / sqrt(8)."""
TRUNCATE = 4.0
"""Reach of a filter over its scale."""
CROPS, CROP_PX = 16, 384  # at most so many squares of the images, of this side, are looked at


def nucleus_diameter(sources: Sequence[CellSource], *, tilt: float = 0.0) -> float | None:
    """Diameter of the nuclei in pixels, as the images themselves tell.

    The Laplacian of Gaussian, normalised by its scale, has most energy where its scale fits what is in the image (scale
    selection, Lindeberg 1998). The energies are averaged over up to sixteen squares, or one an image, spread evenly over
    the images.

    Parameters
    ----------
    sources
        Images of one pixel size, with their nuclear channels.
    tilt
        Energies are divided by the diameter to this power. Tissue has structure of all sizes, larger ones with more energy,
        beside which nuclei stand out in a tilted curve only; its peak lies at a smaller diameter.

    Returns
    -------
    Diameter in pixels, or None where no size stands out.
    """
    total = np.zeros(len(DIAMETERS))
    for source in sources:
        squares, pixels = np.zeros(len(DIAMETERS)), np.zeros(len(DIAMETERS))
        for plane in _crops(source, -(-CROPS // len(sources))):
            root = np.sqrt(np.clip(plane, 0, None))
            step = 1
            for i, diameter in enumerate(DIAMETERS):
                if diameter > min(plane.shape) / 3:
                    break
                while diameter / step > 16:  # large blobs are as well seen on a smaller image
                    root, step = _half(root), 2 * step
                answer = blobness(root, BLOB_SIGMA * diameter / step)
                squares[i] += np.square(answer).sum() * step**2
                pixels[i] += answer.size * step**2
        energy = np.sqrt(squares / np.maximum(pixels, 1))
        if energy.max() > 0:
            total += energy / energy.max()
    total /= DIAMETERS**tilt
    inner = np.arange(1, len(total) - 1)
    peaks = inner[(total[inner] > total[inner - 1]) & (total[inner] >= total[inner + 1]) & (total[inner + 1] > 0)]
    if not len(peaks):
        return None
    best = peaks[np.argmax(total[peaks])]
    before, at, after = total[best - 1 : best + 2]
    shift = 0.5 * (before - after) / (before - 2 * at + after)  # top of the parabola through three points
    return float(DIAMETERS[best] * (DIAMETERS[1] / DIAMETERS[0]) ** shift)


def blobness(root: np.ndarray, sigma: float) -> np.ndarray:
    """-s^2 * Laplacian of Gaussian. Unlike scipy's, its weights add up to zero: a flat bright area answers nothing."""
    reach = int(TRUNCATE * sigma + 0.5)
    x = np.arange(-reach, reach + 1)
    smooth = np.exp(-0.5 * (x / sigma) ** 2)
    smooth /= smooth.sum()
    curve = smooth * (1 - (x / sigma) ** 2)
    curve -= smooth * curve.sum()
    rows, columns = ndimage.correlate1d(root, smooth, axis=0), ndimage.correlate1d(root, smooth, axis=1)
    return ndimage.correlate1d(rows, curve, axis=1) + ndimage.correlate1d(columns, curve, axis=0)


def _crops(source: CellSource, n: int) -> list[np.ndarray]:
    """Sums of the channels [h, w] in up to n squares spread evenly over the image."""
    _, height, width = source.shape
    rows, columns = (
        np.linspace(0, max(side - CROP_PX, 0), -(-side // CROP_PX)).astype(int).tolist() for side in (height, width)
    )
    corners = [(y, x) for y in rows for x in columns]
    crops = []
    for i in np.unique(np.linspace(0, len(corners) - 1, n + 2)[1:-1].round().astype(int)):
        y, x = corners[i]
        box = slice(y, y + CROP_PX), slice(x, x + CROP_PX)
        planes = [np.asarray(source.pixels[(int(c), *box)], dtype=np.float64) for c in source.channel_index]
        crops.append(np.nan_to_num(np.sum(planes, axis=0), nan=0.0, posinf=0.0, neginf=0.0))
    return crops


def _half(plane: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels."""
    height, width = (side // 2 * 2 for side in plane.shape)
    plane = plane[:height, :width]
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4
