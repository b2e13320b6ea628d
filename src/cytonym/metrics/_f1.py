"""F1 score of predicted classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def f1(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    average: Literal["macro", "micro"] = "macro",
    labels: Sequence[Any] | None = None,
) -> float:
    """F1 score of predicted classes.

    Parameters
    ----------
    truth, predicted
        One class a cell [n], numbers or text; or 0 and 1 for each class [n, K].
    average
        `"macro"`: mean over classes, each with the same weight. `"micro"`: over all decisions together.
    labels
        Classes that count: names, or columns of [n, K]. Default: for `"macro"` those that occur in `truth`, for `"micro"`
        all that occur, so that with one class a cell it is the accuracy. For one yes-or-no question give `[1]`.

    Returns
    -------
    From 0 to 1. A class of `labels` that does not occur counts 0, and so does the whole where no class occurs.

    Raises
    ------
    ValueError
        Shapes differ, there are no cells, labels are missing (NaN or None), [n, K] is not 0 and 1, or `average` or `labels`
        name something else.
    TypeError
        One of the two holds text and the other numbers.

    Examples
    --------
    >>> from cytonym import metrics
    >>> truth, predicted = ["T", "T", "T", "B"], ["T", "T", "B", "B"]
    >>> round(metrics.f1(truth, predicted), 3), metrics.f1(truth, predicted, average="micro")
    (0.733, 0.75)
    """
    if average not in ("macro", "micro"):
        msg = f"`average` must be 'macro' or 'micro', got {average!r}."
        raise ValueError(msg)
    if labels is not None and (isinstance(labels, str) or not len(labels)):
        msg = f"`labels` must be a list of at least one class, got {labels!r}. Leave it out to take those that occur."
        raise ValueError(msg)
    right, true, called = _counts(np.asarray(truth), np.asarray(predicted), labels)
    if labels is None:
        occurs = true > 0 if average == "macro" else true + called > 0
        right, true, called = right[occurs], true[occurs], called[occurs]
    if average == "micro":
        right, true, called = (counts.sum(keepdims=True) for counts in (right, true, called))
    each = np.divide(2 * right, true + called, out=np.zeros(len(right)), where=true + called > 0)
    return float(each.mean()) if len(each) else 0.0


def _counts(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of each class that are rightly called so, that are of it, and that are called so."""
    if truth.shape != predicted.shape or truth.ndim not in (1, 2) or not truth.size:
        msg = (
            "`truth` and `predicted` must both be [n], or both [n, K], with at least one cell, got shapes "
            f"{truth.shape} and {predicted.shape}."
        )
        raise ValueError(msg)
    for name, values in (("truth", truth), ("predicted", predicted)):
        missing = int(pd.isna(values).sum())
        if missing:
            msg = f"`{name}` lacks {missing} of {values.size} labels. Leave these cells out."
            raise ValueError(msg)
    if truth.ndim == 2:
        return _counts_of_columns(truth, predicted, labels)
    if isinstance(truth[0], str) != isinstance(predicted[0], str):
        msg = (
            f"One holds text and the other numbers: `truth` begins with {truth[:3].tolist()}, `predicted` with "
            f"{predicted[:3].tolist()}. Give both the same names."
        )
        raise TypeError(msg)
    truth, predicted = (values.astype(int) if values.dtype.kind == "b" else values for values in (truth, predicted))
    if labels is None:
        classes = pd.Index(pd.unique(np.concatenate([truth, predicted])))
    else:
        names = [int(name) if isinstance(name, bool | np.bool_) else name for name in labels]
        classes = pd.Index(list(dict.fromkeys(names)))
    at, called = classes.get_indexer(truth), classes.get_indexer(predicted)
    groups = (at[at == called], at, called)
    right, of_it, so = (np.bincount(group[group >= 0], minlength=len(classes)) for group in groups)
    return right, of_it, so


def _counts_of_columns(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for name, values in (("truth", truth), ("predicted", predicted)):
        strange = values[~np.isin(values, [0, 1])] if values.dtype.kind in "biuf" else values.ravel()
        if len(strange):
            found = list(dict.fromkeys(strange.tolist()))[:5]
            msg = f"`{name}` [n, K] must be 0 or 1, found {found}. Compare probabilities with thresholds first."
            raise ValueError(msg)
    columns = range(truth.shape[1])
    chosen = list(columns) if labels is None else list(dict.fromkeys(labels))
    unknown = [label for label in chosen if label not in columns]
    if unknown:
        msg = f"`labels` of [n, K] are its columns, 0 to {truth.shape[1] - 1}, got {unknown}."
        raise ValueError(msg)
    t, p = truth[:, chosen] == 1, predicted[:, chosen] == 1
    return (t & p).sum(axis=0), t.sum(axis=0), p.sum(axis=0)
