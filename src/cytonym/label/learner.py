"""A model that learns from the labels while they are given, and what it suggests."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.draw import draw
from cytonym.label.features import CHUNK, bent, scale_of
from cytonym.label.head import fit_head
from cytonym.label.state import UNLABELLED, UNSURE
from cytonym.label.stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import ArrayLike

    from cytonym.label.head import Head
    from cytonym.label.session import Session

    Done = Callable[[dict[str, Any]], None]

logger = logging.getLogger("cytonym")

CHECKED = 200  # confirmations of each class that count


@dataclass(frozen=True, eq=False)
class Model:
    """One training, and what it says of every cell."""

    head: Head | None
    """None before there is one."""
    predictions: np.ndarray
    """int16 [n], classes as they were when it was trained, -1 where there is none."""
    confidence: np.ndarray
    """f4 [n], probability of the suggested class."""
    margin: np.ndarray
    """f4 [n], how much more probable it is than the next one."""
    trained_on: int

    @classmethod
    def none(cls, n: int) -> Model:
        """Before the first training."""
        nothing = np.full(n, np.nan, np.float32)
        return cls(None, np.full(n, UNLABELLED, np.int16), nothing, nothing.copy(), 0)


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
    unit
        [d], where not 0 a feature x goes through asinh(x / unit), as intensities do (`features_of`).
    """

    def __init__(self, session: Session, features: np.ndarray, unit: np.ndarray | None = None) -> None:
        if features.ndim != 2 or len(features) != session.n:
            msg = f"`features` must be [{session.n}, d], one row a cell, got shape {features.shape}."
            raise ValueError(msg)
        self.session = session
        self.unit = np.zeros(features.shape[1], np.float32) if unit is None else unit
        self.features = np.ascontiguousarray(bent(features, self.unit), dtype=np.float32)
        self.complete = np.asarray(np.isfinite(self.features).all(axis=1))
        self.order = session.state.index.canonical[self.complete[session.state.index.canonical]]
        """Rows with all features, in an order that does not depend on that of the table."""
        self.scale = scale_of(self.features, self.order)
        self.model = Model.none(session.n)
        """Swapped as a whole: who looks at several things takes it once."""
        self._stopping = Stopping(self)
        self._gate = threading.Condition()
        """Guards the two that follow."""
        self._running = False
        self._waiting: list[Done | None] = []
        """Who asked for a training during another one."""

    # ---------------------------------------------------------------------------------------------------------- training
    @property
    def changes(self) -> list[float]:
        """How much of a class changed, at most, each time that the labels had become many more."""
        return self._stopping.changes

    @property
    def version(self) -> str | None:
        """Version of the model; None before there is one."""
        head = self.model.head
        return head.version if head else None

    @property
    def trained_on(self) -> int:
        """How many labels the model has seen."""
        return self.model.trained_on

    @property
    def busy(self) -> bool:
        """Whether a training runs."""
        return self._running

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
        head = fit_head(self.scaled(rows), codes, ids)
        self.model = self._applied(head, len(rows))
        self._stopping.compare(self.model)
        return head

    def retrain(self, *, background: bool = True, on_done: Done | None = None) -> threading.Thread | None:
        """Learn from all labels of the session.

        Parameters
        ----------
        background
            Return at once. Only one training runs at a time; all that are asked for meanwhile are one more, which follows it.
        on_done
            Called with `version`, `trained_on`, `seconds` and `precision` (class id -> share), or with `error`.

        Returns
        -------
        The thread, if one was started.
        """
        with self._gate:
            if background and self._running:
                self._waiting.append(on_done)
                return None
            while self._running:
                self._gate.wait()
            self._running = True
        if background:
            thread = threading.Thread(target=self._run, args=(on_done,), name="cytonym-learner", daemon=True)
            thread.start()
            return thread
        self._run(on_done, strict=on_done is None)
        return None

    def _run(self, on_done: Done | None, *, strict: bool = False) -> None:
        """Train, also for those who ask meanwhile."""
        try:
            self._retrain([on_done], strict=strict)
        finally:
            while asked := self._asked():
                self._retrain(asked, strict=False)

    def _asked(self) -> list[Done | None]:
        """Who asked meanwhile. The training is over where nobody did."""
        with self._gate:
            asked, self._waiting = self._waiting, []
            if not asked:
                self._running = False
                self._gate.notify_all()
            return asked

    def _retrain(self, asked: list[Done | None], *, strict: bool) -> None:
        start = time.perf_counter()
        told: dict[str, Any]
        try:
            codes = self.session.labels()
            rows = np.flatnonzero(codes >= 0)
            head = self.train(rows, codes[rows])
            precision = {i: float(p) for i, p in self.precision()["precision"].to_dict().items() if np.isfinite(p)}
            told = {
                "version": head.version,
                "trained_on": self.trained_on,
                "seconds": time.perf_counter() - start,
                "precision": precision,
            }
            self.session.log_model(head.version, self.trained_on)
        except Exception as error:
            if strict:
                raise
            logger.info("No new model: %s", error)
            told = {"error": str(error)}
        for on_done in asked:
            try:
                if on_done is not None:
                    on_done(told)
            except Exception:
                logger.exception("Who asked for a training could not be told that it is over.")

    # ------------------------------------------------------------------------------------------------------- suggestions
    @property
    def predictions(self) -> np.ndarray:
        """Suggested class of each cell, int16 [n], -1 where there is none: no class that was removed since."""
        return self.resolved(self.model.predictions)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the suggested class, f4 [n]."""
        return self.model.confidence

    @property
    def margin(self) -> np.ndarray:
        """How much more probable it is than the next one, f4 [n]."""
        return self.model.margin

    def resolved(self, codes: np.ndarray) -> np.ndarray:
        """Classes of a model as they are now, int16: those that took over the labels of removed ones, else -1."""
        with self.session.lock:
            return self.session.state.resolved(codes)

    def probabilities(self, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Class ids [K] and their probabilities, f4 [n, K], of some cells; NaN where features lack."""
        return self.shares(self.model, np.asarray(rows, dtype=np.int64))

    def shares(self, model: Model, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of one model. A class that was merged into another one since adds to it; one that is gone has none."""
        if model.head is None:
            return np.empty(0, np.int16), np.empty((len(rows), 0), np.float32)
        proba, now = model.head(self.scaled(rows)), self.resolved(model.head.ids)
        if np.array_equal(now, model.head.ids):
            return now, proba
        ids = np.unique(now[now >= 0])
        merged = [proba[:, now == i].sum(axis=1) for i in ids]
        return ids, np.column_stack(merged) if merged else proba[:, :0]

    def hits(self, rows: np.ndarray, code: int) -> dict[str, list[int]]:
        """Of cells that are given a code: suggested class -> how many got it, and how many another."""
        if code in (UNLABELLED, UNSURE):
            return {}
        suggested = self.resolved(self.model.predictions[rows])
        return {
            str(i): [int(n), 0] if i == code else [0, int(n)]
            for i, n in zip(*np.unique(suggested[suggested >= 0], return_counts=True), strict=True)
        }

    def discordant(self) -> np.ndarray:
        """Rows whose label is another class than the suggested one, the surest suggestions first."""
        codes, model = self.session.codes, self.model
        predictions = self.resolved(model.predictions)
        rows = np.flatnonzero((codes >= 0) & (predictions >= 0) & (codes != predictions))
        return rows[np.argsort(-model.confidence[rows], kind="stable")]

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
            if example.shape != self.unit.shape or not np.isfinite(example).all():
                msg = f"An example needs {len(self.unit)} finite features, got {example.shape[0]}."
                raise ValueError(msg)
            example = bent(example, self.unit)
        example = self.scale(example)
        squared = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            away = self.scaled(rows[part]) - example
            squared[part] = np.einsum("ij,ij->i", away, away)
        few = min(n, len(rows))
        first = np.argpartition(squared, few - 1)[:few] if 0 < few < len(rows) else np.arange(few)
        order = first[np.lexsort((rows[first], squared[first]))]
        return rows[order], np.sqrt(squared[order])

    def queue(
        self, n: int = 50, strategy: str = "combined", *, among: ArrayLike | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Cells to label next, and why, in the order in which they were drawn.

        One cell after another is drawn with a chance in proportion to u √r d: u is how unsure the model is, r how rare the class is
        that it suggests, and d the distance to the nearest cell that is labelled or drawn, on the learner's own scale, and at most its
        90 % quantile. So, unlike by `tl.suggest_cells`, cells that are unlike all others are not drawn before all others.

        Parameters
        ----------
        n
            How many.
        strategy
            As in `tl.suggest_cells`: `"combined"`, or by one of the three alone, `"uncertainty"`, `"rarity"`, `"diversity"`, or
            `"random"`. Before there is a model all but `"random"` mean `"diversity"`.
        among
            Rows to choose from; all by default.

        Returns
        -------
        Rows, fewer than `n` where there are no more, and a few words on each.

        Raises
        ------
        ValueError
            `n` is below 1, or `strategy` is unknown.
        """
        return draw(self, n, strategy, among)

    def precision(self) -> pd.DataFrame:
        """How often suggestions of each class were confirmed, of the last ones that were looked at.

        A suggestion is wrong where the cell got another class, or was taken out of a page of the class. It counts once.

        Returns
        -------
        DataFrame by class id: `name`, `checked`, `confirmed`, `precision` and its 95 % interval, `low` and `high` (Wilson). It is
        that of the cells that were looked at, not of all cells: pages show the surest suggestions, so they make the model look better
        than it is, and the queue asks for what it is unsure of, which makes it look worse.
        """
        from cytonym.label.summary import confirmations

        return confirmations(self.session, CHECKED)

    def stop(self) -> dict[str, Any]:
        """Whether more labels would change little.

        They would where the suggestions of no class changed much the last times that many labels had been added, most of those that
        were looked at were right, and no class that is short of labels is suggested for a cell that could get one.
        """
        return self._stopping.told(self.model)

    # ------------------------------------------------------------------------------------------------------------ inside
    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Standardised features of some rows, f4, as the model takes them."""
        return self.scale(self.features[rows])

    def _applied(self, head: Head, trained_on: int) -> Model:
        """What a head says of every cell."""
        model = Model.none(self.session.n)
        for start in range(0, len(self.order), CHUNK):
            rows = self.order[start : start + CHUNK]
            proba = head(self.scaled(rows))
            top = np.partition(proba, -2, axis=1)[:, -2:]
            model.predictions[rows] = head.ids[proba.argmax(axis=1)]
            model.confidence[rows] = top[:, 1]
            model.margin[rows] = top[:, 1] - top[:, 0]
        return Model(head, model.predictions, model.confidence, model.margin, trained_on)
