"""Pages of the gallery that are quick to go through: the surest suggestions of one class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cytonym.label.cells import checked_rows
from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from cytonym.label.learner import Learner
    from cytonym.label.log import Event
    from cytonym.label.study import Study

PAGE = 200
OPEN_S, LOOK_S, TAKE_OUT_S = 5.0, 0.1, 1.3
"""Seconds: to open a page and press its key, to look at a patch, to take a patch out (keystroke-level model, Card et al. 1980)."""
KEPT = 8  # pages that somebody may still come back to
PRIOR, FORGET = 10.0, 0.97
"""How many cells the probabilities are believed for to begin with, and what each page leaves of what was seen before it."""


@dataclass(frozen=True, eq=False)
class Offer:
    """Cells that are suggested to be of one class."""

    label: int
    """Id of the class."""
    rows: np.ndarray
    """The surest first."""
    confidence: np.ndarray
    """How sure the model is of each, between 0 and 1."""
    model: str | None = None
    """Its version."""
    trust: float = 1.0
    """How many labels earlier pages of the class gave for each one that the model promised, at most 1."""

    @property
    def expected(self) -> float:
        """Labels that may be right."""
        return self.trust * float(self.confidence.sum())

    @property
    def rate(self) -> float:
        """Labels a second that may be expected."""
        out = len(self.rows) - self.expected
        return self.expected / (OPEN_S + LOOK_S * len(self.rows) + TAKE_OUT_S * out)


class Offers:
    """What to look at next by class.

    Who looks at such a page takes out the wrong cells and gives the others the class (`accept`). What was taken out is not of this
    class: it is not suggested for it again, but for the next likely one. It is in the log with the labels, so that it is known after
    a restart, and undo takes it back. Cells behind the last one that was given the class were perhaps not looked at, so they do not
    count as taken out.

    The surest suggestions are those of which a model is too sure. So what it promises is set against what pages gave, class by class.

    Parameters
    ----------
    session
        Whose cells.
    """

    def __init__(self, session: Study) -> None:
        self.session = session
        self._shown: list[Offer] = []
        self._by_hand: list[tuple[int, np.ndarray]] = []
        """Class, and rows that were taken out without an event."""
        self._gave: list[tuple[str | None, int, float, int]] = []
        """Of each page: its event, if there is one, the class, how many labels the model promised, and how many it gave."""
        session.on_change.append(self._changed)

    def of(self, label: int | str, n: int = PAGE) -> Offer:
        """The `n` surest suggestions of a class, fewer where there are no more.

        Raises
        ------
        KeyError
            There is no such class.
        """
        code, learner = self.session.label_class(label), self.session.learner
        with self.session.lock:
            return self._show(self._page(code, *self._suggested(learner), n))

    def best(self, n: int = PAGE) -> Offer | None:
        """Of all classes the page of at most `n` cells that may give the most labels a second; None where nothing is suggested."""
        learner = self.session.learner  # which may be made only now: labels do not wait for that
        with self.session.lock:
            suggested, sure, version = self._suggested(learner)
            codes = np.unique(suggested[suggested >= 0]).tolist()
            pages = [_quickest(self._page(code, suggested, sure, version, n)) for code in codes]
            return self._show(max(pages, key=lambda page: page.rate)) if pages else None

    def accept(self, page: Offer, kept: ArrayLike) -> Event:
        """Give cells of a page its class; those before the last of them that are not among them were taken out.

        Raises
        ------
        ValueError
            There are none, or some are not on the page.
        OSError
            The log cannot be written. Nothing has changed.
        """
        given = checked_rows(kept, self.session.n)
        on_page = np.isin(page.rows, given)
        if on_page.sum() < len(given):
            msg = f"{len(given) - on_page.sum()} of the cells are not on the page."
            raise ValueError(msg)
        seen = slice(0, int(np.flatnonzero(on_page)[-1]) + 1)
        out = page.rows[seen][~on_page[seen]]
        return self.session.assign(
            given, page.label, source="suggested", shown=len(page.rows), out=out, model=page.model
        )

    def take_out(self, label: int | str, rows: np.ndarray) -> None:
        """Suggest cells for a class no more, also those behind the last one that was given it, as long as the session lasts.

        Raises
        ------
        KeyError
            There is no such class.
        """
        code, out = self.session.label_class(label), np.unique(np.asarray(rows, np.int64))
        with self.session.lock:
            self._by_hand.append((code, out))
            for page in self._shown:
                if page.label == code and np.isin(page.rows, out).all():  # nothing was right
                    self._gives(page, None, 0)
                    break

    def taken_out(self) -> dict[int, np.ndarray]:
        """Class -> rows that were looked at and are of another class, by this annotator."""
        session = self.session
        with session.lock:
            found = {i: [rows[rows < session.n]] for i, rows in session.state.taken_out(session.annotator).items()}
            for code, out in self._by_hand:
                found.setdefault(session.state.resolve(code), []).append(out)
        return {code: np.unique(np.concatenate(parts)).astype(np.int64) for code, parts in found.items()}

    def trust(self, label: int | str) -> float:
        """How many labels pages of a class gave for each one that the model promised, the last pages counting most; at most 1.

        Raises
        ------
        KeyError
            There is no such class.
        """
        code, state = self.session.label_class(label), self.session.state
        promised = gave = PRIOR
        for event, other, many, right in self._gave:
            if event is not None and state.number[event] in state.off:
                continue
            if state.resolve(other) == code:
                promised, gave = promised + many, gave + right
            promised, gave = FORGET * promised, FORGET * gave
        return min(1.0, gave / promised)

    # ------------------------------------------------------------------------------------------------------------ inside
    def _suggested(self, learner: Learner) -> tuple[np.ndarray, np.ndarray, str | None]:
        """Class of each cell without a label [n], -1 where nothing is left to suggest, how sure it is, and the model's version."""
        model = learner.model
        suggested = np.where(self.session.codes == UNLABELLED, learner.resolved(model.predictions), UNLABELLED)
        sure = model.confidence.copy()
        out = self.taken_out()
        rows = np.unique(np.concatenate([*out.values(), np.empty(0, np.int64)]))
        rows = rows[suggested[rows] >= 0]
        if len(rows):
            ids, proba = learner.shares(model, rows)
            for k, i in enumerate(ids.tolist()):
                if i in out:
                    proba[np.isin(rows, out[i]), k] = 0.0
            top = proba.max(axis=1)
            suggested[rows] = np.where(top > 0, ids[proba.argmax(axis=1)], UNLABELLED)
            sure[rows] = top
        return suggested, sure, model.head.version if model.head else None

    def _page(self, code: int, suggested: np.ndarray, sure: np.ndarray, version: str | None, n: int) -> Offer:
        order = self.session.state.index.canonical
        rows = order[suggested[order] == code]
        rows = rows[np.argsort(-sure[rows], kind="stable")[:n]]
        return Offer(code, rows, sure[rows], version, self.trust(code))

    def _show(self, page: Offer) -> Offer:
        self._shown = [*self._shown, page][-KEPT:]
        return page

    def _changed(self, events: list[Event]) -> None:
        with self.session.lock:
            for event in events:
                if event.kind == "assign" and event.by == self.session.annotator and event.model is not None:
                    self._settle(event)

    def _settle(self, event: Event) -> None:
        """See what a page gave."""
        given = self.session.rows_of(event)
        for page in reversed(self._shown):
            same = (event.label, event.model, event.shown) == (page.label, page.model, len(page.rows))
            if same and event.source == "suggested" and np.isin(given, page.rows).all():
                self._gives(page, event.id, len(given))
                return

    def _gives(self, page: Offer, event: str | None, right: int) -> None:
        self._shown = [other for other in self._shown if other is not page]
        self._gave.append((event, page.label, float(page.confidence.sum()), right))


def _quickest(page: Offer) -> Offer:
    """The first part of a page that gives the most labels a second."""
    many, right = np.arange(1, len(page.rows) + 1), page.trust * np.cumsum(page.confidence, dtype=np.float64)
    rate = right / (OPEN_S + LOOK_S * many + TAKE_OUT_S * (many - right))
    k = int(rate.argmax()) + 1
    return replace(page, rows=page.rows[:k], confidence=page.confidence[:k])
