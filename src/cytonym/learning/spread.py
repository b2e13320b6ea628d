"""Cells drawn by weight, far from those that are known or drawn already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def draw_apart(
    points: np.ndarray,
    known: np.ndarray,
    weight: np.ndarray,
    n: int,
    rng: np.random.Generator,
    worth: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Places in `points`, drawn one after another by weight times what their distance is worth, as k-means++ does.

    Parameters
    ----------
    points, known
        [N, D] to draw from, [K, D] that are there already.
    weight
        [N], not negative.
    n
        How many; all points where there are fewer.
    rng
        Draws one number for each.
    worth
        Of squared distances [N] to the nearest point that is known or drawn; 1 where there is none.
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    near = np.full(len(points), np.inf)
    if len(points) and len(known):
        near = pairwise_distances_argmin_min(points, known)[1].astype(np.float64) ** 2
    left = weight.astype(np.float64)
    drawn = np.empty(min(n, len(points)), dtype=np.int64)
    for k in range(len(drawn)):
        share = left * worth(np.where(np.isinf(near), 1.0, near))
        if not share.any():  # all that is left equals a point that is known or drawn
            share = left.copy()
        edges = np.cumsum(share)
        at = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        drawn[k] = at = min(at, int(np.flatnonzero(share)[-1]))
        left[at] = 0.0
        away = points - points[at]
        near = np.minimum(near, np.einsum("ij,ij->i", away, away))
    return drawn
