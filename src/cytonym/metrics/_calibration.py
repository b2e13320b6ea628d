"""Calibration: whether probabilities mean what they say (Guo et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym._shared import document
from cytonym.metrics._inputs import check_scores, check_targets

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


CALIBRATION = """
truth
    The class of each cell [n], from 0 to K - 1, or 0 and 1 for each class [n, K] (multi-label). With a single class,
    [n] is 0 or 1.
proba
    Probability of each class [n, K], from 0 to 1; [n] for a single class.
n_bins
    Number of bins of equal width from 0 to 1, closed on the right.
"""


@document(calibration=CALIBRATION)
def calibration_error(truth: ArrayLike, proba: ArrayLike, *, n_bins: int = 15) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, on average over the cells.

    With one class a cell, confidence is the largest of its probabilities, and the class is right or wrong. With 0 and 1
    for each class it is the probability of the class against how often the class is there; mean over the classes.

    Parameters
    ----------
    {calibration}

    Returns
    -------
    From 0 (calibrated) to 1.

    Raises
    ------
    ValueError
        Shapes do not fit, `truth` is neither 0 nor 1 nor classes, or probabilities are NaN or not within 0 … 1.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.calibration_error([0, 1, 1, 0], [[0.75, 0.25], [0.25, 0.75], [0.25, 0.75], [0.25, 0.75]])
    0.0
    """
    table = reliability(truth, proba, n_bins=n_bins)
    gaps = (table["confidence"] - table["accuracy"]).abs().fillna(0) * table["n"]
    return float(gaps.sum() / table["n"].sum())  # every class has the same number of cells


@document(calibration=CALIBRATION)
def reliability(truth: ArrayLike, proba: ArrayLike, *, n_bins: int = 15) -> pd.DataFrame:
    """The numbers of a reliability diagram: accuracy against confidence, bin by bin.

    Parameters
    ----------
    {calibration}

    Returns
    -------
    DataFrame
        One row a bin: `lower` and `upper` edge, number `n` of cells, mean `confidence` and `accuracy`, NaN in an empty bin.
        Confidence and accuracy are as in `calibration_error`. For multi-label [n, K] the first column is `class`,
        and each class has its own bins.

    Raises
    ------
    ValueError
        As in `calibration_error`.

    Examples
    --------
    >>> from cytonym import metrics
    >>> metrics.reliability([0, 1, 1], [0.25, 0.5, 1.0], n_bins=2)
       lower  upper  n  confidence  accuracy
    0    0.0    0.5  2       0.375       0.5
    1    0.5    1.0  1       1.000       1.0
    """
    if n_bins < 1:
        msg = f"`n_bins` must be at least 1, got {n_bins}."
        raise ValueError(msg)
    values = check_scores(proba, name="proba").astype(np.float64)
    hits = check_targets(truth, values.shape, name="truth")
    per_class = np.ndim(truth) == 2
    if not per_class and values.shape[1] > 1:
        best = values.argmax(axis=1)[:, None]
        values, hits = np.take_along_axis(values, best, 1), np.take_along_axis(hits, best, 1)
    edges = np.linspace(0, 1, n_bins + 1)
    parts = []
    for k in range(values.shape[1]):
        at = np.searchsorted(edges[1:-1], values[:, k], side="left")
        n = np.bincount(at, minlength=n_bins)
        part = pd.DataFrame({"class": k, "lower": edges[:-1], "upper": edges[1:], "n": n})
        for name, column in (("confidence", values[:, k]), ("accuracy", hits[:, k])):
            total = np.bincount(at, weights=column, minlength=n_bins)
            part[name] = np.divide(total, n, out=np.full(n_bins, np.nan), where=n > 0)
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    return table if per_class else table.drop(columns="class")
