"""What all scores share: the words about their inputs, and the checks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


TARGETS = """
targets
    What is true of the n cells: 0 or 1 for each class [n, K], or the number of the one class of each cell [n], from 0 to
    K - 1. With a single class, [n] is 0 or 1.
"""
SCORES = """
scores
    Probability of each class [n, K], from 0 to 1; [n] for a single class.
"""


def check_scores(scores: ArrayLike, *, name: str = "scores", bounded: bool = True) -> np.ndarray:
    """Scores as floats [n, K], checked: from 0 to 1, or only finite where `bounded` is False."""
    values = np.asarray(scores)
    if values.ndim not in (1, 2) or 0 in values.shape:
        msg = f"`{name}` must be [n, K] with at least one cell and one class, or [n] for a single class, got shape {values.shape}."
        raise ValueError(msg)
    if values.dtype.kind not in "biuf":
        msg = f"`{name}` must be numbers, got {values.dtype}."
        raise ValueError(msg)
    values = values.reshape(len(values), -1)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    fits = (values >= 0) & (values <= 1) if bounded else np.isfinite(values)
    if not fits.all():
        row, k = np.argwhere(~fits)[0].tolist()
        wanted = "probabilities from 0 to 1" if bounded else "finite"
        advice = (
            "Leave cells without a prediction out; of logits take the sigmoid first."
            if bounded
            else "Leave these cells out."
        )
        msg = f"`{name}` must be {wanted}, but {(~fits).sum()} are not; the first is {values[row, k]} in row {row}, class {k}. {advice}"
        raise ValueError(msg)
    return values


def check_targets(targets: ArrayLike, shape: tuple[int, ...], *, name: str = "targets") -> np.ndarray:
    """Targets as truth values [n, K], the shape of the scores."""
    values = np.asarray(targets)
    n, n_classes = shape
    if values.ndim == 1 and n_classes == 1:
        values = values[:, None]
    if values.shape not in ((n, n_classes), (n,)):
        msg = (
            f"`{name}` must be [{n}, {n_classes}] like the scores, or one class a cell [{n}], got shape {values.shape}."
        )
        raise ValueError(msg)
    allowed = np.arange(2 if values.ndim == 2 else n_classes)
    strange = values[~np.isin(values, allowed)] if values.dtype.kind in "biuf" else values.ravel()
    if len(strange):
        found = list(dict.fromkeys(strange.tolist()))[:5]
        wanted = "0 or 1" if values.ndim == 2 else f"the number of a class, 0 to {n_classes - 1}"
        msg = f"`{name}` must be {wanted}, found {found}. Leave cells without a label out."
        raise ValueError(msg)
    return values == 1 if values.ndim == 2 else values[:, None] == allowed
