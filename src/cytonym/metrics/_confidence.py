"""Calls by thresholds: how sure they are, and whether they are right. The rules are CLEAR-IT's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cytonym._shared import document
from cytonym.metrics._inputs import SCORES, TARGETS, check_scores, check_targets

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


THRESHOLDS = """
thresholds
    From 0 to 1, one a class [K] or one number for all. A cell is called positive if its score is above; a score equal to
    the threshold is negative. Both are compared as float32.
"""


@document(scores=SCORES, thresholds=THRESHOLDS)
def call_confidence(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """How sure each call is: 0 at the threshold, 1 at the end of the scale.

    (s - t) / (1 - t) for a positive call, (t - s) / t for a negative one (CLEAR-IT's scaled confidence).

    Parameters
    ----------
    {scores}
    {thresholds}

    Returns
    -------
    f4, shape of `scores`, from 0 to 1.

    Raises
    ------
    ValueError
        Scores or thresholds are NaN or not within 0 … 1, or their numbers of classes differ.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.call_confidence([[0.75, 0.25], [0.5, 0.0]], [0.5, 0.5]).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """
    values, limits, called = _calls(scores, thresholds)
    width = np.where(called, 1 - limits, limits)
    sure = np.divide(np.abs(values - limits), width, out=np.zeros_like(values), where=width > 0)
    return sure.reshape(np.shape(scores))


@document(scores=SCORES, thresholds=THRESHOLDS)
def margin(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Distance of each score from its threshold (CLEAR-IT's absolute confidence).

    Parameters
    ----------
    {scores}
    {thresholds}

    Returns
    -------
    f4, shape of `scores`, from 0 to 1. Unlike `call_confidence` it cannot be compared between classes.

    Raises
    ------
    ValueError
        As in `call_confidence`.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.margin([[0.75, 0.25]], [0.5, 1]).tolist()
    [[0.25, 0.75]]
    """
    values, limits, _ = _calls(scores, thresholds)
    return np.abs(values - limits).reshape(np.shape(scores))


@document(scores=SCORES, thresholds=THRESHOLDS)
def true_label_confidence(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Probability of the label that was called: the score of a positive call, 1 - score of a negative one.

    CLEAR-IT chooses its example cells by it. The name is the published one; what is true of the cell plays no part.

    Parameters
    ----------
    {scores}
    {thresholds}

    Returns
    -------
    f4, shape of `scores`, from 0 to 1.

    Raises
    ------
    ValueError
        As in `call_confidence`.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.true_label_confidence([[0.75, 0.25]], 0.5).tolist()
    [[0.75, 0.75]]
    """
    values, _, called = _calls(scores, thresholds)
    return np.where(called, values, 1 - values).reshape(np.shape(scores))


@document(targets=TARGETS, scores=SCORES, thresholds=THRESHOLDS)
def outcomes(targets: ArrayLike, scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Whether each call is right: true or false, positive or negative.

    Parameters
    ----------
    {targets}
    {scores}
    {thresholds}

    Returns
    -------
    Strings, shape of `scores`: `"TP"`, `"TN"`, `"FP"` or `"FN"`.

    Raises
    ------
    ValueError
        Shapes do not fit, targets are neither 0 nor 1 nor classes, or as in `call_confidence`.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.outcomes([[1, 0], [1, 0]], [[0.9, 0.2], [0.5, 0.7]], 0.5).tolist()
    [['TP', 'TN'], ['FN', 'FP']]
    """
    values, _, called = _calls(scores, thresholds)
    positive = check_targets(targets, values.shape)
    names = np.array([["TN", "FP"], ["FN", "TP"]])
    return names[positive.astype(int), called.astype(int)].reshape(np.shape(scores))


def _calls(scores: ArrayLike, thresholds: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores f4 [n, K], thresholds f4 [K] and which scores are called positive."""
    values = check_scores(scores).astype(np.float32)
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape not in ((), (1,), (values.shape[1],)):
        msg = f"`thresholds` must be one number, or one for each of the {values.shape[1]} classes, got shape {limits.shape}."
        raise ValueError(msg)
    if not ((limits >= 0) & (limits <= 1)).all():
        msg = f"`thresholds` must be from 0 to 1, got {limits.tolist()}."
        raise ValueError(msg)
    limits = np.broadcast_to(limits, values.shape[1]).astype(np.float32)
    return values, limits, values > limits
