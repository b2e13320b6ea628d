"""Labels of some cells by several annotators: every change is in the log before it counts."""

from __future__ import annotations

import logging
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.cells import checked_rows
from cytonym.label.log import Event, EventLog
from cytonym.label.naming import checked_color, checked_name, checked_note, code_of, next_color, require_free
from cytonym.label.state import NOT_A_CELL, SPECIAL, UNLABELLED, UNSURE, LabelClass, State, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from cytonym.label.cells import CellIndex

logger = logging.getLogger("cytonym")

SOURCES = ("single", "bulk", "suggested", "imported")
MANY = 50  # events at once from which on all cells are looked at again


class Ledger:
    """What `label.Session` knows without the table and the images.

    Parameters
    ----------
    index
        The cells.
    log
        File of the events; None for memory only.
    annotator
        Name under which labels are given.
    """

    def __init__(self, index: CellIndex, log: Path | None, annotator: str) -> None:
        self.annotator = checked_name(annotator, "the annotator")
        self.n = index.n
        self.lock = threading.RLock()
        """Held by every method; for those who read several things that must fit together."""
        self.on_change: list[Callable[[list[Event]], None]] = []
        """Called with events after they were applied, own and others', once, in the thread that did it, without the lock."""
        self.state = State(index)
        self._log = EventLog(log)
        self._name = uuid.uuid4().hex[:8]
        self._count = 0
        self._codes = np.full(self.n, UNLABELLED, np.int16)
        self._tally = Tally(self._codes)
        self._take(self._log.read())

    # ----------------------------------------------------------------------------------------------------------- reading
    @property
    def log_path(self) -> Path | None:
        """File of the events; None where they are in memory only."""
        return self._log.path

    @property
    def readonly(self) -> bool:
        """Whether labels cannot be stored."""
        return not self._log.writable

    @property
    def events(self) -> list[Event]:
        """All events so far, in order, without their cells (`rows_of`): a list that grows and never changes otherwise."""
        return self.state.events

    @property
    def classes(self) -> list[LabelClass]:
        """Classes in the order in which they were made."""
        with self.lock:
            return self.state.classes

    @property
    def codes(self) -> np.ndarray:
        """What this annotator sees, int16 [n]: class ids, -1 no label, -2 unsure, -3 not a cell."""
        with self.lock:
            codes = self._codes.copy()
        codes.flags.writeable = False
        return codes

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """The same of some rows, int16; costs nothing for the others."""
        with self.lock:
            return self._codes[rows]

    @property
    def missing(self) -> int:
        """Labelled cells of the log that the table lacks."""
        with self.lock:
            return int((self.state.winners(slice(self.n, None))[0] != UNLABELLED).sum())

    @property
    def can_undo(self) -> bool:
        """Whether this annotator has labels to take back."""
        with self.lock:
            return self.state.last_done(self.annotator) is not None

    @property
    def can_redo(self) -> bool:
        """Whether this annotator took back labels last."""
        with self.lock:
            return self.state.last_undone(self.annotator) is not None

    @property
    def notes(self) -> dict[int, str]:
        """Row -> note."""
        with self.lock:
            return {row: text for row, (text, _) in sorted(self.state.notes.items()) if text and row < self.n}

    def counts(self) -> dict[str, Any]:
        """How many cells are labelled, in all and of each class, as this annotator sees them."""
        with self.lock:
            tally = self._tally
            by_class = {c.id: tally[c.id] for c in self.classes}
            marks = {"unsure": tally[UNSURE], "not_cell": tally[NOT_A_CELL]}
        return {"total": self.n, "labelled": sum(by_class.values()), "by_class": by_class, **marks}

    def label_class(self, label: Any) -> int:
        """The code of a class that is given by name or id, or of `"unsure"`, `"not a cell"` or -1 for no label.

        Raises
        ------
        KeyError
            There is no such class.
        """
        return code_of(label, self.classes)

    def name_of(self, code: int) -> str | None:
        """Name of a class or mark; None for no label."""
        with self.lock:
            code = self.state.resolve(int(code))
            found = self.state.all_classes.get(code)
            return found.name if found else SPECIAL.get(code)

    def labels(self, annotator: str | None = None) -> np.ndarray:
        """Codes [n] of one annotator, or of all together: of several labels of a cell the newest counts.

        Raises
        ------
        KeyError
            Nobody of that name has labelled.
        """
        with self.lock:
            if annotator is None:
                return self.state.winners(slice(0, self.n))[0]
            if annotator not in self.state.layers and annotator != self.annotator:
                msg = f"No labels of {annotator!r}. Annotators: {sorted(self.state.layers)}."
                raise KeyError(msg)
            return self.state.resolved(self.state.layer(annotator).codes[: self.n])

    def rows_of(self, event: Event) -> np.ndarray:
        """Rows of the table that an event is about; of undo and redo those of the event that is meant."""
        with self.lock:
            rows = self.state.rows_of(event)
            return rows[rows < self.n].astype(np.int64)

    # ---------------------------------------------------------------------------------------------------------- changing
    def assign(
        self,
        rows: ArrayLike,
        label: Any,
        *,
        source: str = "single",
        shown: int | None = None,
        out: ArrayLike = (),
        model: str | None = None,
    ) -> Event:
        """Give cells a class, take their label away (-1), or mark them as `"unsure"` or `"not a cell"`.

        Parameters
        ----------
        rows
            Row numbers of the table, or a mask.
        label
            Name or id of a class, or a mark.
        source
            `"single"`, `"bulk"`, `"suggested"` or `"imported"`.
        shown
            How many cells were on the screen.
        out
            Of a page of suggestions of the class (`offers`): cells that were taken out of it. They count as wrong suggestions, and
            are not suggested for the class again. Those that have a label are passed over.
        model
            Of such a page: version of the model that made it.

        Returns
        -------
        Event
            It is on disk.

        Raises
        ------
        KeyError
            There is no such class.
        IndexError
            There is no such row.
        ValueError
            No rows, an unknown source, or cells are taken out of the page of a mark.
        OSError
            The log cannot be written. Nothing has changed.
        """
        found = checked_rows(rows, self.n)
        if source not in SOURCES:
            msg = f"Unknown source {source!r}. Available: {list(SOURCES)}."
            raise ValueError(msg)
        wrong = np.setdiff1d(checked_rows(out, self.n), found) if np.size(out) else found[:0]
        cells = self.state.index.cells(found)

        def make() -> Event:
            code = self.label_class(label)
            if code < 0 and len(wrong):
                msg = f"Cells are taken out of pages of classes, and {label!r} is none."
                raise ValueError(msg)
            left = wrong[self._codes[wrong] == UNLABELLED]
            version, hits = self.suggested(found, code, left, model)
            told: dict[str, Any] = {"model": version, "hits": hits, "out": self.state.index.cells(left)}
            return self._event("assign", label=code, cells=cells, source=source, shown=shown, **told)

        return self._append(make)

    def undo(self) -> Event | None:
        """Take back this annotator's last assignment, also of an earlier session. None where there is none."""
        return self._walk("undo", self.state.last_done)

    def redo(self) -> Event | None:
        """Do again what was undone last. None where there is nothing."""
        return self._walk("redo", self.state.last_undone)

    def note(self, row: int, text: str) -> Event:
        """Write something about a cell; an empty text takes the note away."""
        told, cells = checked_note(text), self.state.index.cells(checked_rows([row], self.n))
        return self._append(lambda: self._event("note", cells=cells, text=told))

    def add_class(self, name: str, color: Any = None) -> LabelClass:
        """Make a class. `color` is anything that matplotlib knows; one that is told apart well by default."""
        wanted, given = checked_name(name, "a class"), None if color is None else checked_color(color)
        return self.state.all_classes[self._append(lambda: self._new_class(wanted, given)).label]  # type: ignore[index]

    def ensure_class(self, name: str) -> int:
        """The id of the class of that name, in upper or lower case; made where there is none."""
        wanted = checked_name(name, "a class")
        known: list[int] = []

        def make() -> Event | None:
            known.extend(c.id for c in self.classes if c.name.casefold() == wanted.casefold())
            return None if known else self._new_class(wanted)

        event = self._append_or_not(make)
        return known[0] if event is None or event.label is None else event.label

    def begin_with(self, names: Sequence[str]) -> None:
        """Make classes, but none that was ever made: what was renamed or removed since stays so."""
        wanted = [checked_name(name, "a class") for name in names]
        with self.lock:
            lacking = [name for name in dict.fromkeys(wanted) if not self.state.had(name)]
        if lacking and self.readonly:
            logger.warning("The log %s cannot be written, so classes %s are not added.", self.log_path, lacking)
            return
        for name in lacking:  # asked again when the log is locked: others may begin at the same time

            def make(name: str = name) -> Event | None:
                return None if self.state.had(name) else self._new_class(name)

            self._append_or_not(make)

    def rename_class(self, label: int | str, name: str) -> Event:
        """Give a class another name. Its labels stay."""
        wanted = checked_name(name, "a class")

        def make() -> Event:
            code = self._require_class(label)
            require_free(wanted, self.classes, but=code)
            return self._event("class", op="rename", label=code, name=wanted)

        return self._append(make)

    def recolor_class(self, label: int | str, color: Any) -> Event:
        """Give a class another colour."""
        shade = checked_color(color)
        return self._append(lambda: self._event("class", op="color", label=self._require_class(label), color=shade))

    def remove_class(self, label: int | str, *, into: int | str | None = None) -> Event:
        """Remove a class. Its cells lose their label, or get the class `into`; `restore_class` brings all back."""

        def make() -> Event:
            code, other = self._require_class(label), None if into is None else self._require_class(into)
            if code == other:
                msg = f"Class {label!r} cannot be removed into itself."
                raise ValueError(msg)
            return self._event("class", op="remove", label=code, into=other)

        return self._append(make)

    def restore_class(self, label: int) -> Event:
        """Bring back a class that was removed, by its id, with its labels."""

        def make() -> Event:
            if label not in self.state.removed:
                gone = {i: self.state.all_classes[i].name for i in self.state.removed}
                msg = f"No class with id {label!r} was removed. Removed: {gone}."
                raise KeyError(msg)
            require_free(self.state.all_classes[label].name, self.classes)
            return self._event("class", op="restore", label=label)

        return self._append(make)

    def refresh(self) -> list[Event]:
        """Take in what others stored since, and return it."""
        with self.lock:
            events = self._log.read()
            self._take(events)
        self._tell(events)
        return events

    # ------------------------------------------------------------------------------------------------------------ inside
    def suggested(
        self, rows: np.ndarray, code: int, out: np.ndarray, model: str | None
    ) -> tuple[str | None, dict[str, list[int]]]:
        """Version of the model that suggested, and how that fits the code that rows are given, and `out`, of a page of it, are not."""
        return model, {}

    def _event(self, kind: Any, **told: Any) -> Event:
        self._count += 1
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Event(id=f"{self._name}-{self._count}", time=time, by=self.annotator, kind=kind, **told)

    def _append(self, make: Callable[[], Event]) -> Event:
        event = self._append_or_not(make)
        assert event is not None
        return event

    def _append_or_not(self, make: Callable[[], Event | None]) -> Event | None:
        """Store an event that is made after those that others stored meanwhile were applied."""
        told: list[Event] = []

        def after(others: list[Event]) -> Event | None:
            self._take(others)
            return make()

        try:
            with self.lock:
                seen = len(self.state.events)
                try:
                    _, event = self._log.append(after)
                    self._take([] if event is None else [event])
                finally:
                    told = self.state.events[seen:]
        finally:
            self._tell(told)
        return event

    def _walk(self, kind: str, last: Callable[[str], int | None]) -> Event | None:
        def make() -> Event | None:
            at = last(self.annotator)
            return None if at is None else self._event(kind, of=self.state.events[at].id)

        return self._append_or_not(make)

    def _take(self, events: Sequence[Event]) -> None:
        """Apply events, and see what they change for this annotator."""
        changed = [self.state.apply(event) for event in events]
        if any(rows is None for rows in changed) or len(changed) > MANY:
            self._codes = self.state.winners(slice(0, self.n), self.annotator)[0]
            self._tally = Tally(self._codes)
            return
        for rows in changed:
            assert rows is not None
            here = rows[rows < self.n]
            if len(here):
                now = self.state.winners(here, self.annotator)[0]
                self._tally.move(self._codes[here], now)
                self._codes[here] = now

    def _tell(self, events: list[Event]) -> None:
        if events:
            for listener in list(self.on_change):
                listener(events)

    def _require_class(self, label: Any) -> int:
        code = self.label_class(label)
        if code < 0:
            msg = f"{label!r} is a mark, not a class. Classes: {[c.name for c in self.classes]}."
            raise KeyError(msg)
        return code

    def _new_class(self, name: str, color: str | None = None) -> Event:
        require_free(name, self.classes)
        shade = next_color(c.color for c in self.classes) if color is None else color
        code = max(self.state.all_classes, default=-1) + 1
        return self._event("class", op="add", label=code, name=name, color=shade)
