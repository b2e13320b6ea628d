"""From the events of a log to the labels of each annotator and of all together."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cytonym.label.log import Cells, Event

logger = logging.getLogger("cytonym")

UNLABELLED, UNSURE, NOT_A_CELL = -1, -2, -3
SPECIAL = {UNSURE: "unsure", NOT_A_CELL: "not a cell"}
NEVER = -1
NOBODY = np.empty(0, np.int32)
MOST_CELLS = 2**31 - 1


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


def each_once(rows: np.ndarray) -> np.ndarray:
    """Rows sorted, each once. Rows that are so already, as most are, take no time."""
    if (rows[1:] > rows[:-1]).all():
        return rows
    rows = np.sort(rows)
    return rows[np.append(True, rows[1:] != rows[:-1])]


class CellIndex:
    """Rows of the cells of a table, by region and id. Cells that only the log knows get rows behind those of the table.

    Parameters
    ----------
    regions
        Region of each cell [n].
    instances
        Id of each cell [n]; whole numbers or text.
    """

    def __init__(self, regions: Iterable[Any], instances: Iterable[Any]) -> None:
        codes, names = pd.factorize(np.asarray([str(r) for r in regions], dtype=object), sort=True)
        ids = np.asarray(instances)
        self.n = len(ids)
        self.total = self.n
        self.names = [str(name) for name in names]
        self.region_codes = codes
        self._numbers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._texts: dict[str, dict[str, int]] = {}
        self._strange: dict[tuple[str, Any], int] = {}
        self._cells: list[tuple[str, Any]] = []
        """Cells behind the table's rows."""
        whole = ids.dtype.kind in "iu" and (self.n == 0 or ids.max() <= np.iinfo(np.int64).max)
        self.instances = ids.astype(np.int64) if whole else np.asarray([str(i) for i in ids], dtype=object)
        for code, name in enumerate(self.names):
            here = np.flatnonzero(codes == code)
            mine = self.instances[here]
            found = pd.Index(mine)
            if found.has_duplicates:
                twice = found[found.duplicated()].unique()[:5].tolist()
                where = f"of region {name!r} " if name else ""
                msg = f"Cells {where}are in the table more than once: {twice}. Labels need a name of its own for each cell."
                raise ValueError(msg)
            if whole:
                order = np.argsort(mine, kind="stable")
                self._numbers[name] = (mine[order], here[order])
            else:
                self._texts[name] = dict(zip(mine.tolist(), here.tolist(), strict=True))
        self.canonical = np.lexsort((self.instances if whole else pd.factorize(self.instances, sort=True)[0], codes))
        """Rows in an order that does not depend on the order of the table."""

    def cell(self, row: int) -> tuple[str, Any]:
        """Region and id of a row."""
        if row >= self.n:
            return self._cells[row - self.n]
        instance = self.instances[row]
        return self.names[self.region_codes[row]], int(instance) if isinstance(instance, np.integer) else instance

    def cells(self, rows: np.ndarray) -> Cells:
        """Rows of the table as runs of ids for the log."""
        found: Cells = {}
        for code in np.flatnonzero(np.bincount(self.region_codes[rows], minlength=len(self.names))):
            ids = self.instances[rows[self.region_codes[rows] == code]]
            if ids.dtype == object:
                found[self.names[code]] = sorted(map(str, ids))
                continue
            ids = np.sort(ids)
            starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
            lengths = np.diff(np.append(starts, len(ids)))
            found[self.names[code]] = np.column_stack([ids[starts], lengths]).tolist()
        return found

    def rows(self, cells: Cells) -> np.ndarray:
        """Rows of the cells of an event, int64, sorted; those that the table lacks are at `n` and above."""
        parts = []
        for region, told in cells.items():
            texts = [each for each in told if isinstance(each, str)]
            numbers = [run for run in told if not isinstance(run, str)] if len(texts) < len(told) else []
            runs = np.array(numbers, dtype=np.int64).reshape(-1, 2)
            if (runs[:, 1] < 1).any() or runs[:, 1].sum() > MOST_CELLS:
                msg = f"An event names no cells, or too many, of region {region!r}."
                raise ValueError(msg)
            ends = np.cumsum(runs[:, 1])
            ids = np.repeat(runs[:, 0] - (ends - runs[:, 1]), runs[:, 1]) + np.arange(ends[-1] if len(ends) else 0)
            parts += [self._of_numbers(region, ids), self._of_texts(region, texts)]
        return each_once(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def _of_numbers(self, region: str, ids: np.ndarray) -> np.ndarray:
        known, at = self._numbers.get(region, (np.empty(0, np.int64),) * 2)
        rows = np.full(len(ids), NEVER, dtype=np.int64)
        if len(known) and len(ids):
            place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            rows = np.where(known[place] == ids, at[place], NEVER)
        for i in np.flatnonzero(rows == NEVER):
            rows[i] = self._stranger(region, int(ids[i]))
        return rows

    def _of_texts(self, region: str, ids: list[str]) -> np.ndarray:
        known = self._texts.get(region, {})
        rows = np.fromiter((known.get(i, NEVER) for i in ids), np.int64, len(ids))
        for i in np.flatnonzero(rows == NEVER):
            rows[i] = self._stranger(region, ids[i])
        return rows

    def _stranger(self, region: str, instance: Any) -> int:
        """Row of a cell that the table lacks."""
        key = (region, instance)
        if key not in self._strange:
            self._strange[key] = self.total
            self._cells.append(key)
            self.total += 1
        return self._strange[key]


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
        self.removed: dict[int, int] = {}
        """Removed class -> the class that took its labels over, or -1."""
        self.notes: dict[int, tuple[str, int]] = {}
        """Row -> the last text, and the number of its event."""
        self.off: set[int] = set()
        """Numbers of the events that are undone."""
        self._rows: dict[int, np.ndarray] = {}

    # ----------------------------------------------------------------------------------------------------------- reading
    @property
    def classes(self) -> list[LabelClass]:
        """Classes that were not removed, in the order in which they were made."""
        return [c for i, c in self.all_classes.items() if i not in self.removed]

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

    # ---------------------------------------------------------------------------------------------------------- applying
    def apply(self, event: Event) -> np.ndarray | None:
        """Take one event in, and say which rows it changed; None where it may be any, as for a class."""
        at = len(self.events)
        rows = self.index.rows(event.cells).astype(np.int32)
        # Kept as numbers only: a lasso around a million cells would be a million lists.
        self.events.append(replace(event, cells={}))
        self.number[event.id] = at
        if len(rows):
            self._rows[at] = rows
        if event.kind == "assign":
            layer = self.layer(event.by)
            layer.undone.clear()
            self._do(layer, at, rows, UNLABELLED if event.label is None else event.label)
            return rows
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

    def _class(self, event: Event) -> None:
        assert event.label is not None
        old = self.all_classes.get(event.label)
        if event.op == "add":
            self.all_classes[event.label] = LabelClass(event.label, event.name or "", event.color or "#888888")
        elif old is None:
            logger.warning("Event %s is about class %d, which there is not. Passed over.", event.id, event.label)
        elif event.op == "rename":
            self.all_classes[event.label] = replace(old, name=event.name or old.name)
        elif event.op == "color":
            self.all_classes[event.label] = replace(old, color=event.color or old.color)
        elif event.op == "remove":
            self.removed[event.label] = UNLABELLED if event.into is None else event.into
        elif event.op == "restore":
            self.removed.pop(event.label, None)
