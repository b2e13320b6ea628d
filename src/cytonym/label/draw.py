"""Cells to label next: those that the model is unsure of, of rare classes, and unlike one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cytonym.label.state import UNLABELLED
from cytonym.learning.spread import draw_apart

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from cytonym.label.learner import Learner, Model

STRATEGIES = ("combined", "uncertainty", "diversity", "rarity", "random")
POOL, KNOWN = 20_000, 5_000
"""Candidates, and labelled cells, between which distances are measured."""
LEAST = 1e-6  # of an uncertainty: a cell that the model is sure of can still be drawn where all are
REACH = 0.9
"""Quantile of the distances beyond which further away is no better: the cells that are unlike all others are often dirt."""


def draw(learner: Learner, n: int, strategy: str, among: ArrayLike | None) -> tuple[np.ndarray, list[str]]:
    """See `Learner.queue`."""
    if strategy not in STRATEGIES:
        msg = f"Unknown strategy {strategy!r}. Available: {list(STRATEGIES)}."
        raise ValueError(msg)
    if n < 1:
        msg = f"`n` must be at least 1, got {n}."
        raise ValueError(msg)
    model, order = learner.model, learner.order
    free = learner.session.codes[order] == UNLABELLED
    known, rows = order[~free], order[free]
    if among is not None:
        rows = rows[np.isin(rows, np.asarray(among, dtype=np.int64))]
    rng = np.random.default_rng(learner.session.seed)
    plan = strategy if model.head is not None or strategy == "random" else "diversity"
    unsure, rare = _weights(learner, model, rows)
    if plan in ("combined", "diversity"):
        weight = unsure * np.sqrt(rare) if plan == "combined" else np.ones(len(rows))
        chosen = _apart(learner, rows, known, weight, n, rng)
    else:
        weight = {"uncertainty": unsure, "rarity": rare}.get(plan, np.ones(len(rows)))
        chosen = rows[np.lexsort((rng.random(len(rows)), -weight))[:n]]
    return chosen, _reasons(learner, model, chosen)


def _weights(learner: Learner, model: Model, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty, and how many cells there are for each one that the model gives the same class, of some rows."""
    if model.head is None or not len(rows):
        return np.ones(len(rows)), np.ones(len(rows))
    unsure = np.maximum(1.0 - model.margin[rows].astype(np.float64), LEAST)
    _, called, counts = np.unique(learner.resolved(model.predictions[rows]), return_inverse=True, return_counts=True)
    return unsure, len(rows) / counts[called]


def _apart(
    learner: Learner, rows: np.ndarray, known: np.ndarray, weight: np.ndarray, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows drawn one after another by weight times distance to the nearest cell that is known or drawn.

    Of many candidates some are drawn first by weight alone (Efraimidis and Spirakis 2006).
    """
    most = max(POOL, 20 * n)
    if len(rows) > most:
        some = np.sort(np.argsort(-np.log(rng.random(len(rows))) / weight, kind="stable")[:most])
        rows, weight = rows[some], weight[some]
    if len(known) > KNOWN:
        known = known[np.sort(rng.choice(len(known), KNOWN, replace=False))]
    return rows[draw_apart(learner.scaled(rows), learner.scaled(known), weight, n, rng, _reached)]


def _reached(squared: np.ndarray) -> np.ndarray:
    """Distances, at most their `REACH` quantile."""
    away = np.sqrt(squared)
    return np.minimum(away, np.quantile(away, REACH) or np.inf)


def _reasons(learner: Learner, model: Model, rows: np.ndarray) -> list[str]:
    if model.head is None:
        return ["unlike what is labelled"] * len(rows)
    ids, proba = learner.shares(model, rows)
    predictions = learner.resolved(model.predictions)
    common = np.bincount(predictions[predictions >= 0], minlength=int(ids.max(initial=0)) + 1)
    return [_reason(learner, ids, each, common) for each in proba]


def _reason(learner: Learner, ids: np.ndarray, proba: np.ndarray, common: np.ndarray) -> str:
    if len(ids) < 2:
        return "unlike what is labelled"
    first, second = np.argsort(-proba, kind="stable")[:2]
    name, other = (str(learner.session.name_of(int(ids[i]))) for i in (first, second))
    if proba[first] - proba[second] < 0.5:
        return f"{name} or {other}"
    share = common[ids[first]] / max(int(common.sum()), 1)
    return f"rare: {name}" if share < 0.5 / len(ids) else f"unlike what is labelled; {name}"
