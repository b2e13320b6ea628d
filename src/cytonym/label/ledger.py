"""Labels of some cells by several annotators: every change is in the log before it counts."""

from __future__ import annotations

import logging
import threading
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.log import Event, EventLog
from cytonym.label.naming import MOST, checked_color, checked_name, next_color
from cytonym.label.state import NOT_A_CELL, SPECIAL, UNLABELLED, UNSURE, CellIndex, LabelClass, State, Tally, each_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

logger = logging.getLogger("cytonym")

SOURCES = ("single", "bulk", "suggested", "imported")
LONGEST_NOTE = 10_000
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
        """Called with events after they were applied, own and others', in the thread that did it."""
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
        """All events so far, in order, without their cells (`rows_of`)."""
        return self.state.events

    @property
    def classes(self) -> list[LabelClass]:
        """Classes in the order in which they were made."""
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
        return self.state.last_done(self.annotator) is not None

    @property
    def can_redo(self) -> bool:
        """Whether this annotator took back labels last."""
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
        live = {c.id: c.name for c in self.classes}
        if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
            if int(label) in live or int(label) in (UNLABELLED, *SPECIAL):
                return int(label)
        elif isinstance(label, str):
            codes = {name: i for i, name in live.items()} | {name: i for i, name in SPECIAL.items()}
            if label.strip() in codes:
                return codes[label.strip()]
        elif label is None:
            return UNLABELLED
        msg = f"No class {label!r}. Available: {list(live.values())}, {list(SPECIAL.values())}. `add_class` makes one."
        raise KeyError(msg)

    def name_of(self, code: int) -> str | None:
        """Name of a class or mark; None for no label."""
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
    def assign(self, rows: ArrayLike, label: Any, *, source: str = "single", shown: int | None = None) -> Event:
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
            No rows, or an unknown source.
        OSError
            The log cannot be written. Nothing has changed.
        """
        found = self._rows(rows)
        if source not in SOURCES:
            msg = f"Unknown source {source!r}. Available: {list(SOURCES)}."
            raise ValueError(msg)
        cells = self.state.index.cells(found)

        def make() -> Event:
            code = self.label_class(label)
            model, hits = self.suggested(found, code)
            return self._event("assign", label=code, cells=cells, source=source, shown=shown, model=model, hits=hits)

        return self._append(make)

    def undo(self) -> Event | None:
        """Take back this annotator's last assignment, also of an earlier session. None where there is none."""
        return self._walk("undo", self.state.last_done)

    def redo(self) -> Event | None:
        """Do again what was undone last. None where there is nothing."""
        return self._walk("redo", self.state.last_undone)

    def note(self, row: int, text: str) -> Event:
        """Write something about a cell; an empty text takes the note away."""
        if not isinstance(text, str) or len(text) > LONGEST_NOTE:
            msg = f"A note is a text of at most {LONGEST_NOTE:,} characters."
            raise ValueError(msg)
        cells = self.state.index.cells(self._rows([row]))
        return self._append(lambda: self._event("note", cells=cells, text=text))

    def add_class(self, name: str, color: Any = None) -> LabelClass:
        """Make a class. `color` is anything that matplotlib knows; one that is told apart well by default."""
        wanted, given = checked_name(name, "a class"), None if color is None else checked_color(color)

        def make() -> Event:
            self._require_free(wanted)
            shade = next_color(c.color for c in self.classes) if given is None else given
            return self._event("class", op="add", label=self._next_class(), name=wanted, color=shade)

        return self.state.all_classes[self._append(make).label]  # type: ignore[index]

    def rename_class(self, label: int | str, name: str) -> Event:
        """Give a class another name. Its labels stay."""
        wanted = checked_name(name, "a class")

        def make() -> Event:
            code = self._require_class(label)
            self._require_free(wanted, but=code)
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
            self._require_free(self.state.all_classes[label].name)
            return self._event("class", op="restore", label=label)

        return self._append(make)

    def log_model(self, version: str, trained_on: int) -> None:
        """Note in the log that a model was trained. A log that cannot be written stops no training."""
        if self.readonly:
            return
        try:
            self._append(lambda: self._event("model", model=version, text=f"{trained_on} labels"))
        except OSError as error:
            logger.warning("The model is not noted in the log. %s", error)

    def refresh(self) -> list[Event]:
        """Take in what others stored since, and return it."""
        with self.lock:
            events = self._log.read()
            self._take(events)
        self._tell(events)
        return events

    # ------------------------------------------------------------------------------------------------------------ inside
    def suggested(self, rows: np.ndarray, code: int) -> tuple[str | None, dict[str, list[int]]]:
        """Version of the model that suggests, and how its suggestions for some rows fit a code that they are given."""
        return None, {}

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
        seen = len(self.state.events)

        def after(others: list[Event]) -> Event | None:
            self._take(others)
            return make()

        try:
            with self.lock:
                seen = len(self.state.events)
                _, event = self._log.append(after)
                self._take([] if event is None else [event])
        finally:
            self._tell(self.state.events[seen:])
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

    def _rows(self, rows: ArrayLike) -> np.ndarray:
        """Row numbers, checked, sorted, each once."""
        found = np.atleast_1d(np.asarray(rows))
        if found.dtype == bool:
            if found.shape != (self.n,):
                msg = f"A mask of rows must have {self.n} entries, got shape {found.shape}."
                raise ValueError(msg)
            found = np.flatnonzero(found)
        if found.size == 0:
            msg = "No rows were given."
            raise ValueError(msg)
        if found.dtype.kind not in "iu" or found.ndim != 1:
            msg = f"Rows must be whole numbers in one dimension, got {found.dtype} of shape {found.shape}."
            raise ValueError(msg)
        if found.min() < 0 or found.max() >= self.n:
            msg = f"Rows go from 0 to {self.n - 1}, got {found.min()} to {found.max()}."
            raise IndexError(msg)
        return each_once(found.astype(np.int64))

    def _require_class(self, label: Any) -> int:
        code = self.label_class(label)
        if code < 0:
            msg = f"{label!r} is a mark, not a class. Classes: {[c.name for c in self.classes]}."
            raise KeyError(msg)
        return code

    def _require_free(self, name: str, but: int | None = None) -> None:
        taken = next((c for c in self.classes if c.name.casefold() == name.casefold() and c.id != but), None)
        if taken is not None:
            msg = f"There is a class {taken.name!r} already."
            raise ValueError(msg)
        if but is None and len(self.classes) >= MOST:
            msg = f"There are {MOST} classes already, which is the most there can be."
            raise ValueError(msg)

    def _next_class(self) -> int:
        return max(self.state.all_classes, default=-1) + 1
