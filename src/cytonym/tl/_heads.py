"""Heads on numbers of cells: how each is trained, judged on cells it has not seen, and calibrated."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from cytonym import metrics
from cytonym.learning.balance import folds, undersample
from cytonym.learning.supervise import Schedule, supervise
from cytonym.models.classifier import CellClassifier, ClassifierConfig
from cytonym.models.maps import MAPS, MAPS_SCHEDULE, MAPSConfig

if TYPE_CHECKING:
    from cytonym.models.classifier import Labeller
    from cytonym.tl._numbers import Numbers
    from cytonym.tl._targets import Targets

logger = logging.getLogger("cytonym")

FOLDS = 5
HELD_OUT = 5  # one part in five chooses epoch, temperature and thresholds (CLEAR-IT, MAPS)
PENALTY = 1.0  # inverse strength of the logistic head's L2 penalty; scikit-learn's default
NEVER = -20.0  # logit of a class that the training cells lack

SCHEDULES: dict[str, Schedule | None] = {
    "logistic": None,
    "linear": Schedule(epochs=50, batch_size=64, learning_rate=1e-4, weight_decay=1e-4),
    "mlp4": Schedule(epochs=500, min_epochs=250, patience=100, batch_size=1024, learning_rate=1e-4, balance=True),
    "maps": MAPS_SCHEDULE,
}
"""Logistic regression; CLEAR-IT's linear head and MLP4; MAPS."""
BALANCES = ("weights", "undersample", "none")


@dataclass(frozen=True)
class Fitted:
    """A classifier, and what it says about labelled cells that it was not trained on."""

    model: Labeller
    rows: np.ndarray
    """Of the table: cells judged."""
    logits: np.ndarray
    """[n, K], not calibrated."""

    def report(self, targets: Targets) -> dict[str, float]:
        """Scores on the cells held out."""
        return scores(self.model, torch.from_numpy(self.logits), targets, self.rows)

    def reliability(self, targets: Targets) -> dict[str, list[float]]:
        """Confidence and accuracy of these cells, bin by bin, after calibration; empty bins are left out."""
        if len(self.rows) < 2:
            return {}
        proba = self.model.probabilities(torch.from_numpy(self.logits)).numpy()
        table = metrics.reliability(targets.values[self.rows], proba)
        return {str(name): column.tolist() for name, column in table[table["n"] > 0].items()}


def fit_head(
    numbers: Numbers,
    targets: Targets,
    rows: np.ndarray,
    groups: np.ndarray | None,
    *,
    head: str,
    balance: str = "weights",
    schedule: Schedule | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Fitted:
    """Train a head on some labelled rows of a table, whose patients are `groups`."""
    rng = np.random.default_rng(seed)
    if head == "logistic":
        fold = folds(targets.strata(rows), groups, FOLDS, rng)
        model = _new(numbers, targets, head, rows)
        if len(np.unique(fold)) > 1:
            judged, logits = _out_of_fold(numbers, targets, rows, fold, balance, rng)
        else:
            judged, logits = rows[:0], np.zeros((0, len(targets.classes)), np.float32)
        _solve(model, numbers, targets, _balanced(targets, rows, balance, rng), balance)
    else:
        kept = hold_out(targets, rows, groups, rng)
        train, judged = _balanced(targets, rows[~kept], balance, rng), rows[kept]
        model = _new(numbers, targets, head, train, seed)
        planned = schedule or SCHEDULES[head] or Schedule()
        planned = replace(planned, balance=planned.balance and balance == "weights")
        values = torch.from_numpy(numbers.values)
        supervise(
            model, lambda at: (values[torch.from_numpy(at)],), torch.from_numpy(targets.values), planned,
            train=train, validate=judged, seed=seed, device=device, progress=progress,
        )  # fmt: skip
        logits = _logits(model, numbers.values[judged])
    model.eval()
    settle(model, logits, targets, judged)
    return Fitted(model, judged, logits)


def settle(model: Labeller, logits: np.ndarray, targets: Targets, judged: np.ndarray) -> None:
    """Temperature and thresholds of a classifier from logits [n, K] of labelled cells that it was not trained on."""
    if len(judged) < 2:
        logger.info("Too few labelled cells to hold any out: probabilities are not calibrated.")
        return
    z, t = torch.from_numpy(logits), torch.from_numpy(targets.values[judged])
    model.calibrate(z, t)
    if targets.multilabel:
        model.set_thresholds(metrics.best_f1_thresholds(t.numpy(), model.probabilities(z).numpy()))


def scores(model: Labeller, logits: torch.Tensor, targets: Targets, rows: np.ndarray) -> dict[str, float]:
    """F1, PR-AUC and calibration of logits [n, K] against the labels of some rows."""
    if len(rows) < 2:
        return {"n_cells": float(len(rows))}
    truth = targets.values[rows]
    proba = model.probabilities(logits).numpy()
    raw = (logits.sigmoid() if targets.multilabel else logits.softmax(dim=1)).numpy()
    called = proba > model.thresholds.numpy() if targets.multilabel else proba.argmax(axis=1)
    return {
        "n_cells": float(len(rows)),
        "macro_f1": metrics.f1(truth, called, average="macro"),
        "micro_f1": metrics.f1(truth, called, average="micro"),
        "pr_auc": _present(targets, rows, proba),
        "ece_uncalibrated": metrics.calibration_error(truth, raw),
        "ece": metrics.calibration_error(truth, proba),
    }


def _present(targets: Targets, rows: np.ndarray, proba: np.ndarray) -> float:
    """Mean over the classes that occur of the average precision."""
    one_hot = targets.one_hot(rows)
    present = one_hot.any(axis=0)
    return float(metrics.pr_auc(one_hot[:, present], proba[:, present], pieces=1).mean_of_medians)


def _new(numbers: Numbers, targets: Targets, head: str, rows: np.ndarray, seed: int = 0) -> CellClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if head in ("maps", "mlp4"):
            config: Any = MAPSConfig(targets.classes, multilabel=targets.multilabel)
            model: CellClassifier = MAPS(numbers.names, config)
        else:
            config = ClassifierConfig(targets.classes, multilabel=targets.multilabel)
            model = CellClassifier(numbers.names, config)
    model.set_scaling(*(numbers.plain_scaling(rows) if head == "maps" else numbers.scaling()))
    return model


def _balanced(targets: Targets, rows: np.ndarray, balance: str, rng: np.random.Generator) -> np.ndarray:
    return rows[undersample(targets.one_hot(rows), rng)] if balance == "undersample" else rows


def hold_out(targets: Targets, rows: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Which of some labelled rows are judged instead of learned from: about one part in five, of patients of their own.

    Every class keeps cells to learn from. Of the parts that this leaves the largest is taken; there may be none.
    """
    fold = folds(targets.strata(rows), groups, HELD_OUT, rng)
    if fold.max(initial=0) == 0:
        return np.zeros(len(rows), dtype=bool)
    parts = [keep_every_class(targets, rows, fold == k, groups) for k in np.unique(fold)]
    least = -(-len(rows) // (2 * HELD_OUT))  # the first part will do unless it has lost half of its cells
    return next((p for p in parts if p.sum() >= least), max(parts, key=lambda p: int(p.sum())))


def keep_every_class(
    targets: Targets, rows: np.ndarray, held: np.ndarray, groups: np.ndarray | None = None
) -> np.ndarray:
    """The cells held out, less those of classes that would have no cell to learn from; with them goes the whole patient."""
    one_hot = targets.one_hot(rows)
    lost = one_hot[held].any(axis=0) & ~one_hot[~held].any(axis=0)
    needed = held & one_hot[:, lost].any(axis=1)
    if groups is not None:
        needed = np.isin(groups, np.unique(groups[needed]))
    return held & ~needed


def _out_of_fold(
    numbers: Numbers, targets: Targets, rows: np.ndarray, fold: np.ndarray, balance: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of each labelled cell by a head trained on the other folds, as far as these know its classes."""
    judged, found = [], []
    one_hot = targets.one_hot(rows)
    for k in np.unique(fold):
        inside = fold == k
        unknown = one_hot[inside].any(axis=0) & ~one_hot[~inside].any(axis=0)
        asked = rows[inside][~one_hot[inside][:, unknown].any(axis=1)]
        if not len(asked) or (not targets.multilabel and one_hot[~inside].any(axis=0).sum() < 2):
            continue
        part = _new(numbers, targets, "logistic", rows)
        _solve(part, numbers, targets, _balanced(targets, rows[~inside], balance, rng), balance)
        judged.append(asked)
        found.append(_logits(part, numbers.values[asked]))
    if not judged:
        return rows[:0], np.zeros((0, len(targets.classes)), np.float32)
    at = np.concatenate(judged)
    order = np.argsort(at)
    return at[order], np.concatenate(found)[order]


def _solve(model: CellClassifier, numbers: Numbers, targets: Targets, rows: np.ndarray, balance: str) -> None:
    with torch.no_grad():
        x = model.standardize(torch.from_numpy(numbers.values[rows])).double().numpy()
        weight, bias = solve(x, targets, rows, balance)
        model.head[1].weight.copy_(torch.from_numpy(weight))  # type: ignore[operator]
        model.head[1].bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]


def solve(x: np.ndarray, targets: Targets, rows: np.ndarray, balance: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K, D] and biases [K] of the largest penalised likelihood of labelled rows with standardised numbers x [n, D]."""
    weight, bias = np.zeros((len(targets.classes), x.shape[1])), np.full(len(targets.classes), NEVER)
    y = targets.values[rows]
    if targets.multilabel:
        for k, column in enumerate(y.T):
            if column.min() == column.max():
                bias[k] = -NEVER if column[0] else NEVER
            else:
                w, b = _regression(x, column, balance)
                weight[k], bias[k] = w[0], b[0]
        return weight, bias
    present = np.unique(y)
    w, b = _regression(x, y, balance)
    if len(present) == 2:  # one row of weights, for the second class
        w, b = np.concatenate([-w, w]) / 2, np.concatenate([-b, b]) / 2
    weight[present], bias[present] = w, b
    return weight, bias


def _regression(x: np.ndarray, y: np.ndarray, balance: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weights = "balanced" if balance == "weights" else None
    with warnings.catch_warnings(), threadpool_limits(1):  # small products: threads would wait for each other
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=PENALTY, class_weight=weights, max_iter=1000).fit(x, y)
    return found.coef_, found.intercept_


@torch.no_grad()
def _logits(model: CellClassifier, values: np.ndarray) -> np.ndarray:
    """[n, D] -> [n, K], in pieces."""
    model.eval()
    pieces = [model(piece) for piece in torch.from_numpy(values).split(65_536)]
    return torch.cat(pieces).numpy() if pieces else np.zeros((0, len(model.classes)), np.float32)
