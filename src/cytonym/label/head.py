"""The classifier that a labelling session retrains in a second."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

BALANCE = 0.5
"""0: every label counts the same. 1: every class does. Between them rare classes are found, and common ones are not called rare."""
PENALTY = 1 / 8
"""Of the weights, for each feature and over the number of labels."""
STEPS = 200


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier on standardised features."""

    ids: np.ndarray
    """int16 [K], class ids, ascending."""
    weights: np.ndarray
    """f4 [d + 1, K], the intercept last."""

    @property
    def version(self) -> str:
        """Hash of the weights: the same labels give the same."""
        return hashlib.sha256(self.ids.tobytes() + self.weights.tobytes()).hexdigest()[:8]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities, f4 [n, K], of standardised features."""
        logits = features @ self.weights[:-1] + self.weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        return logits / logits.sum(axis=1, keepdims=True)


def fit_head(features: np.ndarray, codes: np.ndarray, ids: np.ndarray) -> Head:
    """Multinomial logistic regression with half-balanced classes on standardised features [n, d], from the start."""
    from scipy.optimize import minimize

    x = np.column_stack([features, np.ones(len(features), np.float32)]).astype(np.float64)
    target = np.searchsorted(ids, codes)
    k, d = len(ids), x.shape[1]
    weight = (np.bincount(target, minlength=k) ** -BALANCE)[target]
    weight /= weight.sum()
    rows = np.arange(len(x))
    penalty = np.full((d, 1), PENALTY * (d - 1) / len(x))
    penalty[-1] = 0.0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(d, k)
        z = x @ w
        z -= z.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(z).sum(axis=1, keepdims=True))
        p = np.exp(z - log_sum)
        value = float((weight * (log_sum[:, 0] - z[rows, target])).sum() + 0.5 * (penalty * w**2).sum())
        p[rows, target] -= 1
        gradient = x.T @ (p * weight[:, None]) + penalty * w
        return value, gradient.ravel()

    found = minimize(loss, np.zeros(d * k), jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-6})
    return Head(ids.astype(np.int16), found.x.reshape(d, k).astype(np.float32))
