"""Pages of the gallery that are quick to go through: the surest suggestions of one class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from cytonym.label.log import Event
    from cytonym.label.study import Study

PAGE = 200
OPEN_S, LOOK_S, TAKE_OUT_S = 5.0, 0.1, 1.3
"""Seconds: to open a page and press its key, to look at a patch, to take a patch out (keystroke-level model, Card et al. 1980)."""
KEPT = 8  # pages that somebody may still come back to


@dataclass(frozen=True, eq=False)
class Offer:
    """Cells that are suggested to be of one class."""

    label: int
    """Id of the class."""
    rows: np.ndarray
    """The surest first."""
    confidence: np.ndarray
    """How sure each is, between 0 and 1."""

    @property
    def expected(self) -> float:
        """Labels that may be right."""
        return float(self.confidence.sum())

    @property
    def rate(self) -> float:
        """Labels a second that may be expected."""
        out = len(self.rows) - self.expected
        return self.expected / (OPEN_S + LOOK_S * len(self.rows) + TAKE_OUT_S * out)


class Offers:
    """What to look at next by class.

    Who looks at such a page takes out the wrong cells and gives the others the class. What was taken out is not of this class: it is
    not suggested for it again, but for the next likely one. Cells behind the last one that was given the class were perhaps not
    looked at, so they do not count as taken out.

    Parameters
    ----------
    session
        Whose cells.
    """

    def __init__(self, session: Study) -> None:
        self.session = session
        self._shown: list[Offer] = []
        self._out: dict[str, tuple[int, np.ndarray]] = {}
        """Event, or a number -> class, and the rows that were taken out."""
        session.on_change.append(self._changed)

    def of(self, label: int | str, n: int = PAGE) -> Offer:
        """The `n` surest suggestions of a class, fewer where there are no more.

        Raises
        ------
        KeyError
            There is no such class.
        """
        code = self.session.label_class(label)
        with self.session.lock:
            suggested, sure = self._suggested()
            return self._show(self._page(code, suggested, sure, n))

    def best(self, n: int = PAGE) -> Offer | None:
        """Of all classes the page of at most `n` cells that may give the most labels a second; None where nothing is suggested."""
        with self.session.lock:
            suggested, sure = self._suggested()
            codes = np.unique(suggested[suggested >= 0]).tolist()
            pages = [self._quickest(self._page(code, suggested, sure, n)) for code in codes]
            return self._show(max(pages, key=lambda page: page.rate)) if pages else None

    def take_out(self, label: int | str, rows: np.ndarray) -> None:
        """Suggest cells for a class no more, also those behind the last one that was given it.

        Raises
        ------
        KeyError
            There is no such class.
        """
        code = self.session.label_class(label)
        with self.session.lock:
            self._out[f"by hand {len(self._out)}"] = (code, np.unique(np.asarray(rows, np.int64)))

    def taken_out(self) -> dict[int, np.ndarray]:
        """Class -> rows that were looked at and are of another class."""
        found: dict[int, list[np.ndarray]] = {}
        for code, out in self._out.values():
            found.setdefault(self.session.state.resolve(code), []).append(out)
        return {code: np.unique(np.concatenate(parts)) for code, parts in found.items()}

    # ------------------------------------------------------------------------------------------------------------ inside
    def _suggested(self) -> tuple[np.ndarray, np.ndarray]:
        """Class of each cell without a label [n], -1 where nothing is left to suggest, and how sure it is."""
        learner, codes = self.session.learner, self.session.codes
        suggested = np.where(codes == UNLABELLED, learner.predictions, UNLABELLED)
        sure = learner.confidence.copy()
        out = self.taken_out()
        rows = np.unique(np.concatenate([*out.values(), np.empty(0, np.int64)]))
        rows = rows[suggested[rows] >= 0]
        if len(rows):
            ids, proba = learner.probabilities(rows)
            for k, i in enumerate(ids.tolist()):
                if i in out:
                    proba[np.isin(rows, out[i]), k] = 0.0
            top = proba.max(axis=1)
            suggested[rows] = np.where(top > 0, ids[proba.argmax(axis=1)], UNLABELLED)
            sure[rows] = top
        return suggested, sure

    def _page(self, code: int, suggested: np.ndarray, sure: np.ndarray, n: int) -> Offer:
        order = self.session.state.index.canonical
        rows = order[suggested[order] == code]
        rows = rows[np.argsort(-sure[rows], kind="stable")[:n]]
        return Offer(code, rows, sure[rows])

    def _quickest(self, page: Offer) -> Offer:
        """The first part of a page that gives the most labels a second."""
        many, right = np.arange(1, len(page.rows) + 1), np.cumsum(page.confidence, dtype=np.float64)
        rate = right / (OPEN_S + LOOK_S * many + TAKE_OUT_S * (many - right))
        k = int(rate.argmax()) + 1
        return Offer(page.label, page.rows[:k], page.confidence[:k])

    def _show(self, page: Offer) -> Offer:
        self._shown = [*self._shown, page][-KEPT:]
        return page

    def _changed(self, events: list[Event]) -> None:
        with self.session.lock:
            for event in events:
                if event.kind == "undo" and event.of is not None:
                    self._out.pop(event.of, None)
                elif event.kind == "assign" and event.by == self.session.annotator and event.label is not None:
                    self._learn(event)

    def _learn(self, event: Event) -> None:
        """See which cells of a page were left out."""
        given = self.session.rows_of(event)
        for page in reversed(self._shown):
            took = np.isin(page.rows, given)
            if page.label != event.label or not took.any():
                continue
            seen = page.rows[: int(np.flatnonzero(took)[-1]) + 1]
            left = seen[self.session.codes[seen] == UNLABELLED]
            if len(left):
                self._out[event.id] = (page.label, left)
            return
