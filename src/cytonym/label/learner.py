"""A model that learns from the labels while they are given, and what it suggests."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.label.head import fit_head
from cytonym.label.state import UNLABELLED, UNSURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import ArrayLike

    from cytonym.label.head import Head
    from cytonym.label.session import Session

logger = logging.getLogger("cytonym")

CHUNK = 8192
"""Cells at once. Always the same cells in the same place, so that the last bit does not depend on the order of the table."""
PROBE = 20_000  # cells by which two models are compared
CHECKED = 200  # confirmations of each class that count
ENOUGH, CALM, TIMES = 20, 0.01, 3
"""Labels of each class, share of changed suggestions, and how often in a row, before it is said that more labels change little."""


class Learner:
    """Suggestions of classes from the labels of a session. They are never written as labels.

    Multinomial logistic regression on standardised features, retrained from the start each time: the same labels give the same
    suggestions, in whatever order they were given and whatever the order of the table.

    Parameters
    ----------
    session
        Labels to learn from.
    features
        f4 [n, d], one row a cell; cells with NaN get no suggestion.
    """

    def __init__(self, session: Session, features: np.ndarray) -> None:
        if features.ndim != 2 or len(features) != session.n:
            msg = f"`features` must be [{session.n}, d], one row a cell, got shape {features.shape}."
            raise ValueError(msg)
        self.session = session
        self.features = np.ascontiguousarray(features, dtype=np.float32)
        self.complete = np.asarray(np.isfinite(self.features).all(axis=1))
        self._order = session.state.index.canonical[self.complete[session.state.index.canonical]]
        self._center, self._spread = self._scaling()
        self.head: Head | None = None
        self.predictions = np.full(session.n, UNLABELLED, np.int16)
        """Suggested class of each cell, -1 where there is none."""
        self.confidence = np.full(session.n, np.nan, np.float32)
        """Probability of the suggested class."""
        self.margin = np.full(session.n, np.nan, np.float32)
        """How much more probable it is than the next one."""
        self.trained_on = 0
        self.changes: list[float] = []
        """Share of suggestions that each training changed."""
        self._busy = threading.Lock()
        self._again = False

    # ---------------------------------------------------------------------------------------------------------- training
    @property
    def version(self) -> str | None:
        """Version of the model; None before there is one."""
        return self.head.version if self.head else None

    @property
    def busy(self) -> bool:
        """Whether a training runs."""
        return self._busy.locked()

    def train(self, rows: np.ndarray, codes: np.ndarray) -> Head:
        """Learn from some cells, and suggest a class for every cell.

        Parameters
        ----------
        rows, codes
            Labelled cells and their class ids; negative codes are left out.

        Raises
        ------
        ValueError
            Fewer than two classes are labelled.
        """
        use = (codes >= 0) & self.complete[rows]
        rank = np.empty(self.session.n, np.int64)
        rank[self.session.state.index.canonical] = np.arange(self.session.n)
        rows, codes = rows[use], codes[use]
        order = np.argsort(rank[rows], kind="stable")
        rows, codes = rows[order], codes[order].astype(np.int16)
        ids = np.unique(codes)
        if len(ids) < 2:
            found = [self.session.name_of(i) for i in ids]
            msg = f"A model tells classes apart, so cells of at least two must be labelled. Labelled so far: {found or 'none'}."
            raise ValueError(msg)
        head = fit_head(self._scaled(rows), codes, ids)
        self._suggest(head)
        self.trained_on = len(rows)
        return head

    def retrain(
        self, *, background: bool = True, on_done: Callable[[dict[str, Any]], None] | None = None
    ) -> threading.Thread | None:
        """Learn from all labels of the session.

        Parameters
        ----------
        background
            Return at once. Only one training runs at a time; one that is asked for meanwhile follows it.
        on_done
            Called with `version`, `trained_on`, `seconds` and `precision` (class id -> share), or with `error`.

        Returns
        -------
        The thread, if one was started.
        """
        if not background:
            with self._busy:
                self._retrain(on_done, strict=on_done is None)
            return None
        if not self._busy.acquire(blocking=False):
            self._again = True
            return None
        thread = threading.Thread(target=self._run, args=(on_done,), name="cytonym-learner", daemon=True)
        thread.start()
        return thread

    def _run(self, on_done: Callable[[dict[str, Any]], None] | None) -> None:
        again = True
        while again:
            self._again = False
            try:
                self._retrain(on_done, strict=False)
            finally:
                again = self._again
                if not again:
                    self._busy.release()

    def _retrain(self, on_done: Callable[[dict[str, Any]], None] | None, *, strict: bool) -> None:
        start = time.perf_counter()
        codes = self.session.labels()
        rows = np.flatnonzero(codes >= 0)
        told: dict[str, Any]
        try:
            head = self.train(rows, codes[rows])
            precision = {i: float(p) for i, p in self.precision()["precision"].to_dict().items() if np.isfinite(p)}
            seconds = time.perf_counter() - start
            told = {
                "version": head.version,
                "trained_on": self.trained_on,
                "seconds": seconds,
                "precision": precision,
            }
            self.session.log_model(head.version, self.trained_on)
        except Exception as error:
            if strict:
                raise
            logger.info("No new model: %s", error)
            told = {"error": str(error)}
        if on_done is not None:
            on_done(told)

    # ------------------------------------------------------------------------------------------------------- suggestions
    def probabilities(self, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Class ids [K] and their probabilities, f4 [n, K], of some cells; NaN where features lack."""
        at = np.asarray(rows, dtype=np.int64)
        if self.head is None:
            return np.empty(0, np.int16), np.empty((len(at), 0), np.float32)
        return self.head.ids, self.head(self._scaled(at))

    def hits(self, rows: np.ndarray, before: np.ndarray, code: int) -> dict[str, list[int]]:
        """Of cells without a label that are given one: suggested class -> how many got it, and how many another."""
        if code in (UNLABELLED, UNSURE):
            return {}
        suggested = self.predictions[rows][before == UNLABELLED]
        return {
            str(i): [int(n), 0] if i == code else [0, int(n)]
            for i, n in zip(*np.unique(suggested[suggested >= 0], return_counts=True), strict=True)
        }

    def discordant(self) -> np.ndarray:
        """Rows whose label is another class than the suggested one, the surest suggestions first."""
        codes = self.session.codes
        rows = np.flatnonzero((codes >= 0) & (self.predictions >= 0) & (codes != self.predictions))
        return rows[np.argsort(-self.confidence[rows], kind="stable")]

    def nearest(
        self, cell: int | np.ndarray, n: int = 100, *, among: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the cells that are most alike, and their distances: Euclidean between standardised features.

        Parameters
        ----------
        cell
            A row, which is not part of the answer, or features [d] of something else.
        n
            How many.
        among
            Rows to look among; all by default.

        Raises
        ------
        ValueError
            The cell has no features, or another number of them.
        """
        rows = np.flatnonzero(self.complete) if among is None else np.unique(np.asarray(among, dtype=np.int64))
        rows = rows[self.complete[rows]]
        if isinstance(cell, (int, np.integer)):
            if not self.complete[cell]:
                msg = f"Cell {cell} has no features to be compared by."
                raise ValueError(msg)
            rows = rows[rows != cell]
            example = self.features[cell]
        else:
            example = np.asarray(cell, dtype=np.float32).ravel()
            if example.shape != self._center.shape or not np.isfinite(example).all():
                msg = f"An example needs {len(self._center)} finite features, got {example.shape[0]}."
                raise ValueError(msg)
        example = (example - self._center) / self._spread
        squared = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            away = self._scaled(rows[part]) - example
            squared[part] = np.einsum("ij,ij->i", away, away)
        few = min(n, len(rows))
        first = np.argpartition(squared, few - 1)[:few] if 0 < few < len(rows) else np.arange(few)
        order = first[np.lexsort((rows[first], squared[first]))]
        return rows[order], np.sqrt(squared[order])

    def queue(
        self, n: int = 50, strategy: str = "combined", *, among: ArrayLike | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Cells to label next, as `tl.suggest_cells` draws them, and why, in the order in which they were drawn.

        Parameters
        ----------
        n
            How many.
        strategy
            As in `tl.suggest_cells`. Before there is a model all but `"random"` mean `"diversity"`.
        among
            Rows to choose from; all by default.

        Returns
        -------
        Rows, fewer than `n` where there are no more, and a few words on each.
        """
        from cytonym.tl import suggest_cells

        codes = self.session.codes
        able = self.complete & (codes == UNLABELLED)
        if among is not None:
            able &= np.isin(np.arange(self.session.n), np.asarray(among, dtype=np.int64))
        if not able.any():
            return np.empty(0, np.int64), []
        wanted: Any = strategy if self.head is not None or strategy == "random" else "diversity"
        table = self._table(codes)
        if among is not None:
            table = table[able | (codes != UNLABELLED)]
        names = suggest_cells(table, n, strategy=wanted, use_rep="features", rng=self.session.seed)
        rows = self._names.get_indexer(names)
        common = np.bincount(np.maximum(self.predictions, 0)[self.predictions >= 0])
        return rows, [self._reason(int(row), common) for row in rows]

    def precision(self) -> pd.DataFrame:
        """How often suggestions of each class were confirmed, of the last ones that were looked at.

        Returns
        -------
        DataFrame by class id: `name`, `checked`, `confirmed`, `precision` and its 95 % interval, `low` and `high` (Wilson). Cells
        that were chosen because the model was unsure make it look worse than it is.
        """
        from cytonym.label.summary import confirmations

        return confirmations(self.session, CHECKED)

    def stop(self) -> dict[str, Any]:
        """Whether more labels would change little: the last trainings changed hardly any suggestion, and no class is short of labels."""
        counts = self.session.counts()["by_class"]
        few = [str(self.session.name_of(i)) for i, n in counts.items() if n < ENOUGH]
        last = self.changes[-TIMES:]
        calm = len(last) == TIMES and max(last) < CALM
        if self.head is None:
            reason = "There is no model yet."
        elif few:
            more = f" and {len(few) - 6} more" if len(few) > 6 else ""
            reason = f"Fewer than {ENOUGH} labels: {', '.join(few[:6])}{more}."
        elif not calm:
            reason = "New labels still change suggestions." if last else "The model was trained once only."
        else:
            reason = f"The last {TIMES} trainings changed less than {CALM:.0%} of the suggestions."
        return {"suggested": bool(calm and not few), "reason": reason, "changes": last, "few": few}

    # ------------------------------------------------------------------------------------------------------------ inside
    def _scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each feature, summed in an order that does not depend on that of the table."""
        d, n = self.features.shape[1], max(len(self._order), 1)
        total = np.zeros(d)
        for rows in self._chunks():
            total += self.features[rows].sum(axis=0, dtype=np.float64)
        center = total / n
        squares = np.zeros(d)
        for rows in self._chunks():
            squares += ((self.features[rows] - center) ** 2).sum(axis=0)
        spread = np.sqrt(squares / n)
        spread[spread <= 1e-9 * (np.abs(center) + 1e-30)] = 1.0
        return center.astype(np.float32), spread.astype(np.float32)

    def _chunks(self) -> list[np.ndarray]:
        return [self._order[i : i + CHUNK] for i in range(0, len(self._order), CHUNK)]

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        return (self.features[rows] - self._center) / self._spread

    def _suggest(self, head: Head) -> None:
        n = self.session.n
        predictions = np.full(n, UNLABELLED, np.int16)
        confidence, margin = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
        for rows in self._chunks():
            proba = head(self._scaled(rows))
            top = np.partition(proba, -2, axis=1)[:, -2:]
            predictions[rows] = head.ids[proba.argmax(axis=1)]
            confidence[rows] = top[:, 1]
            margin[rows] = top[:, 1] - top[:, 0]
        probe = self._order[:: max(1, len(self._order) // PROBE)]
        if self.head is not None:
            self.changes.append(float(np.mean(predictions[probe] != self.predictions[probe])))
        with self.session.lock:
            self.head, self.predictions, self.confidence, self.margin = head, predictions, confidence, margin

    @property
    def _names(self) -> pd.Index:
        index = self.session.state.index
        return pd.Index([f"{code}_{i}" for code, i in zip(index.region_codes, index.instances, strict=True)])

    def _table(self, codes: np.ndarray) -> AnnData:
        """What `tl.suggest_cells` reads."""
        from anndata import AnnData

        label = pd.Categorical([None if code == UNLABELLED else str(code) for code in codes.tolist()])
        table = AnnData(obs=pd.DataFrame({"label": label}, index=self._names))
        table.obsm["features"] = self.features
        if self.head is not None:
            proba = np.full((self.session.n, len(self.head.ids)), np.nan, np.float32)
            for rows in self._chunks():
                proba[rows] = self.head(self._scaled(rows))
            table.obsm["phenotype_proba"] = pd.DataFrame(
                proba, index=table.obs_names, columns=self.head.ids.astype(str)
            )
        return table

    def _reason(self, row: int, common: np.ndarray) -> str:
        if self.head is None or not self.complete[row]:
            return "unlike what is labelled"
        ids, proba = self.probabilities([row])
        first, second = np.argsort(-proba[0], kind="stable")[:2]
        name, other = (str(self.session.name_of(int(ids[i]))) for i in (first, second))
        if proba[0, first] - proba[0, second] < 0.5:
            return f"{name} or {other}"
        share = common[ids[first]] / max(int(common.sum()), 1)
        return f"rare: {name}" if share < 0.5 / len(ids) else f"unlike what is labelled; {name}"
