"""From the events of a log to the labels of each annotator and of all together."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cytonym.label.cells import CellIndex
    from cytonym.label.log import Event

logger = logging.getLogger("cytonym")

UNLABELLED, UNSURE, NOT_A_CELL = -1, -2, -3
SPECIAL = {UNSURE: "unsure", NOT_A_CELL: "not a cell"}
FEW = 16  # rows
NEVER = -1
NOBODY = np.empty(0, np.int32)


@dataclass(frozen=True)
class LabelClass:
    """A class that cells can be given."""

    id: int
    """Never given to another class."""
    name: str
    color: str
    """`#rrggbb`."""


class Tally:
    """How many cells have each code, kept up to date as few of many cells change."""

    def __init__(self, codes: np.ndarray) -> None:
        self._counts = np.bincount(codes.astype(np.int64) - NOT_A_CELL)

    def __getitem__(self, code: int) -> int:
        return int(self._counts[code - NOT_A_CELL]) if code - NOT_A_CELL < len(self._counts) else 0

    def move(self, before: np.ndarray, now: np.ndarray) -> None:
        """Take in that some cells had the codes `before` and have `now`."""
        length = max(len(self._counts), int(now.max(initial=NOT_A_CELL)) - NOT_A_CELL + 1)
        counts = np.zeros(length, np.int64)
        counts[: len(self._counts)] = self._counts
        for codes, sign in ((before, -1), (now, 1)):
            counts += sign * np.bincount(codes.astype(np.int64) - NOT_A_CELL, minlength=length)
        self._counts = counts


@dataclass(eq=False)
class _Step:
    """An assignment that is in force or undone, and what was there before."""

    at: int
    rows: np.ndarray
    codes: np.ndarray
    events: np.ndarray


@dataclass(eq=False)
class Layer:
    """What one annotator says of each cell."""

    codes: np.ndarray
    """int16, class ids as they were given, also of classes that were removed since."""
    events: np.ndarray
    """int32, number of the event that said it, -1 where the annotator never said anything."""
    done: list[_Step] = field(default_factory=list)
    undone: list[_Step] = field(default_factory=list)

    def grow(self, total: int) -> None:
        """Make room for cells that only the log knows."""
        more = total - len(self.codes)
        if more > 0:
            self.codes = np.append(self.codes, np.full(more, UNLABELLED, np.int16))
            self.events = np.append(self.events, np.full(more, NEVER, np.int32))


class State:
    """Labels, classes and notes after some events.

    Of several labels of a cell the one of the newest event counts, also where that event took a label away. What an annotator sees
    is different in one way: where that annotator said something, it counts over what others said.

    Parameters
    ----------
    index
        Cells of the table.
    """

    def __init__(self, index: CellIndex) -> None:
        self.index = index
        self.events: list[Event] = []
        self.number: dict[str, int] = {}
        """Event id -> its place in `events`."""
        self.layers: dict[str, Layer] = {}
        self.all_classes: dict[int, LabelClass] = {}
        """With those that were removed."""
        self.ever: set[str] = set()
        """Names, in lower case, of all classes that were ever made."""
        self.removed: dict[int, int] = {}
        """Removed class -> the class that took its labels over, or -1."""
        self.notes: dict[int, tuple[str, int]] = {}
        """Row -> the last text, and the number of its event."""
        self.off: set[int] = set()
        """Numbers of the events that are undone."""
        self._rows: dict[int, np.ndarray] = {}
        self._few: dict[int, list[int]] = {}
        """Row -> events about it and few others."""
        self._many: list[int] = []
        """Events about more rows."""
        self._out: dict[int, np.ndarray] = {}
        """Number of an event -> the rows that were taken out of its page."""

    # ----------------------------------------------------------------------------------------------------------- reading
    @property
    def classes(self) -> list[LabelClass]:
        """Classes that were not removed, in the order in which they were made."""
        return [c for i, c in self.all_classes.items() if i not in self.removed]

    def had(self, name: str) -> bool:
        """Whether a class has that name, in upper or lower case, or was made under it."""
        return name.casefold() in self.ever or any(c.name.casefold() == name.casefold() for c in self.classes)

    def resolved(self, codes: np.ndarray) -> np.ndarray:
        """Codes with the labels of removed classes passed on, int16."""
        if not self.removed:
            return codes.astype(np.int16)
        low = min(SPECIAL)
        table = np.arange(low, max(self.all_classes, default=-1) + 1, dtype=np.int16)
        for i in self.all_classes:
            table[i - low] = self.resolve(i)
        return table[codes.astype(np.int64) - low]

    def resolve(self, code: int) -> int:
        """The class that holds the labels of a class now."""
        seen = set()
        while code in self.removed and code not in seen:
            seen.add(code)
            code = self.removed[code]
        return code if code not in seen else UNLABELLED

    def layer(self, annotator: str) -> Layer:
        """Labels of one annotator, empty at first."""
        if annotator not in self.layers:
            none = np.full(self.index.total, UNLABELLED, np.int16)
            self.layers[annotator] = Layer(none, np.full(self.index.total, NEVER, np.int32))
        layer = self.layers[annotator]
        layer.grow(self.index.total)
        return layer

    def winners(self, rows: np.ndarray | slice, own: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Resolved codes, int16, and numbers of the events that count, int32, of some rows."""
        where = np.arange(self.index.total)[rows] if isinstance(rows, slice) else rows
        codes = np.full(len(where), UNLABELLED, np.int16)
        events = np.full(len(where), NEVER, np.int32)
        others = [name for name in self.layers if name != own]
        for name in [*others, *([own] if own in self.layers else [])]:
            layer = self.layer(str(name))
            newer = layer.events[where] > (NEVER if name == own else events)
            codes[newer] = layer.codes[where][newer]
            events[newer] = layer.events[where][newer]
        return self.resolved(codes), events

    def last_done(self, annotator: str) -> int | None:
        """Number of the event that an annotator would undo."""
        layer = self.layers.get(annotator)
        return layer.done[-1].at if layer and layer.done else None

    def last_undone(self, annotator: str) -> int | None:
        """Number of the event that an annotator would do again."""
        layer = self.layers.get(annotator)
        return layer.undone[-1].at if layer and layer.undone else None

    def rows_of(self, event: Event) -> np.ndarray:
        """Rows that an event is about, int32, sorted; of undo and redo those of the event that is meant."""
        return self.rows_at(self.number.get(event.of or event.id, NEVER))

    def rows_at(self, number: int) -> np.ndarray:
        """The same for the number of an event."""
        return self._rows.get(number, NOBODY)

    def about(self, row: int) -> list[int]:
        """Numbers of the events about a row, in their order."""
        return sorted([*self._few.get(row, []), *(n for n in self._many if _holds(self._rows[n], row))])

    def taken_out(self, annotator: str | None = None) -> dict[int, np.ndarray]:
        """Class -> rows that an annotator, or anybody, took out of pages of it, sorted; not those of events that are undone."""
        found: dict[int, list[np.ndarray]] = {}
        for number, rows in self._out.items():
            event = self.events[number]
            code = UNLABELLED if event.label is None else self.resolve(event.label)
            if code >= 0 and number not in self.off and annotator in (None, event.by):
                found.setdefault(code, []).append(rows)
        return {code: np.unique(np.concatenate(parts)) for code, parts in found.items()}

    # ---------------------------------------------------------------------------------------------------------- applying
    def apply(self, event: Event) -> np.ndarray | None:
        """Take one event in, and say which rows it changed; None where it may be any, as for a class."""
        at = len(self.events)
        rows = self.index.rows(event.cells).astype(np.int32)
        new = self._meet(event)
        # Kept as numbers only: a lasso around a million cells would be a million lists.
        self.events.append(replace(event, cells={}, out={}))
        self.number[event.id] = at
        if len(rows):
            self._rows[at] = rows
        if len(rows) > FEW:
            self._many.append(at)
        else:
            for row in rows.tolist():
                self._few.setdefault(row, []).append(at)
        if event.out:
            self._out[at] = self.index.rows(event.out).astype(np.int32)
        if event.kind == "assign":
            layer = self.layer(event.by)
            layer.undone.clear()
            self._do(layer, at, rows, UNLABELLED if event.label is None else event.label)
            return None if new else rows
        if event.kind in ("undo", "redo"):
            return self._walk(event)
        if event.kind == "class":
            self._class(event)
            return None
        if event.kind == "note":
            for row in rows:
                self.notes[int(row)] = (event.text or "", at)
        return NOBODY

    def _do(self, layer: Layer, at: int, rows: np.ndarray, code: int) -> None:
        layer.done.append(_Step(at, rows, layer.codes[rows], layer.events[rows]))
        layer.codes[rows] = code
        layer.events[rows] = at
        self.off.discard(at)

    def _walk(self, event: Event) -> np.ndarray:
        layer = self.layer(event.by)
        steps = layer.done if event.kind == "undo" else layer.undone
        if not steps or self.events[steps[-1].at].id != event.of:
            logger.warning(
                "Event %s wants to %s %s, which is not the last one. Passed over.", event.id, event.kind, event.of
            )
            return NOBODY
        step = steps.pop()
        if event.kind == "undo":
            layer.codes[step.rows] = step.codes
            layer.events[step.rows] = step.events
            layer.undone.append(step)
            self.off.add(step.at)
        else:
            label = self.events[step.at].label
            self._do(layer, step.at, step.rows, UNLABELLED if label is None else label)
        return step.rows

    def _meet(self, event: Event) -> bool:
        """Make up the classes that an event is about and the log lacks, as it may after a damaged line was taken out.

        Their labels stay visible so, and no other class ever gets their ids.
        """
        made = event.kind == "class" and event.op == "add"
        told = (None if made else event.label, event.into)
        lacking = [i for i in told if i is not None and i >= 0 and i not in self.all_classes]
        for i in lacking:
            self.all_classes[i] = LabelClass(i, self._free(f"class {i}", i), "#888888")
            logger.warning("The log does not say which class %d is. It is shown as %r.", i, self.all_classes[i].name)
        return bool(lacking)

    def _free(self, name: str, code: int) -> str:
        """The name of a class, made different where another one has it, as it may after a line was taken out."""
        taken = {c.name.casefold() for c in self.classes if c.id != code}
        while name.casefold() in taken:
            name = f"{name} ({code})"
        return name

    def _class(self, event: Event) -> None:
        assert event.label is not None
        i, classes = event.label, self.all_classes
        if event.op == "add":
            name = event.name or ""
            classes[i] = LabelClass(i, self._free(name, i), event.color or "#888888")
            self.ever.add(name.casefold())
        elif event.op == "rename":
            classes[i] = replace(classes[i], name=self._free(event.name or classes[i].name, i))
        elif event.op == "color":
            classes[i] = replace(classes[i], color=event.color or classes[i].color)
        elif event.op == "remove":
            self.removed[i] = UNLABELLED if event.into is None else event.into
        elif event.op == "restore":
            self.removed.pop(i, None)
            classes[i] = replace(classes[i], name=self._free(classes[i].name, i))


def _holds(rows: np.ndarray, row: int) -> bool:
    at = int(np.searchsorted(rows, row))
    return at < len(rows) and int(rows[at]) == row
