"""Precision and recall: the area under their curve, and the threshold where F1 is best. The rules are CLEAR-IT's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from cytonym._shared import document
from cytonym.metrics._inputs import SCORES, TARGETS, check_scores, check_targets

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class PRAUC(NamedTuple):
    """What `pr_auc` finds."""

    mean_of_medians: float
    """Mean over the classes of `per_class`: the headline."""
    per_class: np.ndarray
    """f8 [K], median over the pieces."""
    by_piece: np.ndarray
    """f8 [P, K], average precision of each class in each piece."""
    pooled_median: float
    """Median of all numbers of `by_piece`: the centre line of a box plot of them. Not the same as the headline."""


@document(targets=TARGETS)
def pr_auc(targets: ArrayLike, scores: ArrayLike, *, pieces: int = 10) -> PRAUC:
    """Area under the precision-recall curve (average precision) of each class, over pieces of the cells.

    The cells are cut, in the order in which they come, into pieces of equal length; borders are rounded down. The area of a
    class is the median over the pieces. Sort cells by image first: a shuffled table has other pieces.

    Parameters
    ----------
    {targets}
    scores
        How likely each class is [n, K]; [n] for a single class. Only the order of the cells counts, so logits do as well.
    pieces
        Number P of pieces, 10 as in CLEAR-IT's headline. With 1, all cells are one piece, as in its curves of fewer
        labels, where the result has the same name but is another number: say which of the two it is.

    Returns
    -------
    PRAUC
        A class without positives in a piece counts 0 there, as published. For rare classes take fewer pieces.

    Raises
    ------
    ValueError
        Shapes do not fit, targets are neither 0 nor 1 nor classes, scores are NaN or infinite, or there are fewer cells
        than pieces.

    Examples
    --------
    >>> from cytonym import metrics
    >>> found = metrics.pr_auc([0, 1, 0, 1, 1, 0], [0.1, 0.9, 0.2, 0.4, 0.3, 0.6], pieces=2)
    >>> found.by_piece.round(3).tolist(), round(found.mean_of_medians, 3)
    ([[1.0], [0.583]], 0.792)
    """
    values = check_scores(scores, bounded=False)
    positive = check_targets(targets, values.shape)
    n, n_classes = values.shape
    if not 1 <= pieces <= n:
        msg = f"`pieces` must be from 1 to the number of cells, {n}, got {pieces}."
        raise ValueError(msg)
    borders = np.floor(np.linspace(0, n, pieces + 1)).astype(int)
    areas = np.zeros((pieces, n_classes))
    for i, (start, stop) in enumerate(zip(borders[:-1], borders[1:], strict=True)):
        for k in np.flatnonzero(positive[start:stop].any(axis=0)):
            areas[i, k] = average_precision_score(positive[start:stop, k], values[start:stop, k])
    per_class = np.median(areas, axis=0)
    return PRAUC(float(per_class.mean()), per_class, areas, float(np.median(areas)))


@document(targets=TARGETS, scores=SCORES)
def best_f1_thresholds(targets: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """Decision threshold of each class at which F1 is best.

    Every score is tried, and F1 = 2 P R / (P + R + 1e-8) is taken from the precision-recall curve, without the curve's
    last point; of a tie the lowest threshold wins (CLEAR-IT). The curve counts a score equal to the threshold as positive,
    but a call must be above it, so the cell that gave the threshold is called negative. That is how it was published.

    Parameters
    ----------
    {targets}
    {scores}

    Returns
    -------
    f8 [K]. A class without any positive gets 1, so that no cell is called positive.

    Raises
    ------
    ValueError
        Shapes do not fit, targets are neither 0 nor 1 nor classes, or scores are NaN or not within 0 … 1.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.best_f1_thresholds([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).tolist()
    [0.35]
    """
    values = check_scores(scores)
    positive = check_targets(targets, values.shape)
    thresholds = np.ones(values.shape[1])
    for k in np.flatnonzero(positive.any(axis=0)):
        precision, recall, tried = precision_recall_curve(positive[:, k], values[:, k])
        score = 2 * precision * recall / (precision + recall + 1e-8)
        thresholds[k] = tried[np.argmax(score[:-1])]
    return thresholds
