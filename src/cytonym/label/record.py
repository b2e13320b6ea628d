"""Labels of a session as columns of the table, and back."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.data.locks import locked_store
from cytonym.get import labels_of
from cytonym.label.log import EventLog
from cytonym.label.naming import checked_name
from cytonym.label.opening import open_cells, same_cells
from cytonym.label.state import NEVER, SPECIAL, UNLABELLED, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.label.log import Event
    from cytonym.label.opening import Opened
    from cytonym.label.session import Session

logger = logging.getLogger("cytonym")

STORABLE = re.compile(r"(?!__|_index$)[\w.-]+")

PARTS = ("label", "source", "by", "time", "mark", "note")
"""What is written of each cell: the column itself, and those whose names begin with its name."""


@dataclass(frozen=True, eq=False)
class _Labelled:
    """A table, and the labels of its cells, row for row."""

    opened: Opened
    state: State


def columns(session: Session) -> dict[str, pd.Series]:
    """What is known of each cell of the table: label, source, by, time, mark and note.

    Raises
    ------
    ValueError
        The rows of the table are not those that were labelled.
    """
    with session.lock:
        if not same_cells(session.state.index, session.table):
            msg = "Rows of the table were moved, added or taken out since the session was opened. Write the labels, and open a new session."
            raise ValueError(msg)
        return _columns(session.state, session.table.obs_names)


def _columns(state: State, names: pd.Index) -> dict[str, pd.Series]:
    """The columns for the rows of the table, whose names are given."""
    n = len(names)
    codes, events = state.winners(slice(0, n))
    classes = state.classes
    said = (codes != UNLABELLED) & (events != NEVER)
    used, at = np.unique(events[said], return_inverse=True)

    def of(part: str) -> pd.Categorical:
        """A field of the event that counts for each cell."""
        values = np.full(n, None, dtype=object)
        if len(used):
            values[said] = np.array([getattr(state.events[i], part) for i in used], dtype=object)[at]
        return pd.Categorical(values, categories=sorted(set(values[said])))

    places = np.full(max([c.id for c in classes], default=-1) + 2, -1)
    places[[c.id for c in classes]] = np.arange(len(classes))
    labels = pd.Categorical.from_codes(
        places[np.where(codes >= 0, codes, -1)], categories=pd.Index([c.name for c in classes], dtype=object)
    )
    marks = np.full(n, None, dtype=object)
    for code, name in SPECIAL.items():
        marks[codes == code] = name
    notes = np.full(n, None, dtype=object)
    for row, (text, _) in state.notes.items():
        if text and row < n:
            notes[row] = text
    found: dict[str, Any] = {
        "label": labels,
        "source": of("source"),
        "by": of("by"),
        "time": of("time"),
        "mark": pd.Categorical(marks, categories=list(SPECIAL.values())),
        "note": pd.Categorical(notes),
    }
    return {name: pd.Series(value, index=names) for name, value in found.items()}


def write(session: Session, *, key_added: str, save: bool, overwrite: bool) -> None:
    """See `Session.write`."""
    checked_name(key_added, "a column")
    if save and (session.sdata is None or not session.sdata.is_backed()):
        msg = "There is no store on disk to save to. Write the object first: sdata.write('tissue.zarr')."
        raise ValueError(msg)
    if save:
        require_storable(session.table, key_added)
    session.refresh()
    with session.lock:
        labelled = _now(session)
        table = _put(session, labelled, key_added, overwrite=overwrite)
        if labelled.opened is session.opened and table is not session.table:  # it was a view of another
            joined = session.opened.joined
            session.table = table
            session.opened = replace(session.opened, table=table, joined=joined and replace(joined, table=table))
    if save:
        _save(session, key_added, overwrite=overwrite)


def _now(session: Session) -> _Labelled:
    """The table as it is by now: other rows, or another one, such as `pp.measure_cells` makes."""
    data = session.table if session.sdata is None else session.sdata
    other = (
        session.sdata is not None and session.sdata.tables.get(session.table_key, session.table) is not session.table
    )
    if other or not same_cells(session.state.index, session.table):
        return _anew(session, data)
    return _Labelled(session.opened, session.state)


def _anew(session: Session, data: SpatialData | AnnData) -> _Labelled:
    """The same labels on the table of an object, cell by cell."""
    opened = open_cells(data, table_key=session.table_key, **session.keys)
    state = State(opened.index)
    for event in _events(session):
        state.apply(event)
    return _Labelled(opened, state)


def _events(session: Session) -> list[Event]:
    """All events with their cells: from the log, or as they are in memory."""
    if session.log_path is not None:
        return EventLog(session.log_path).read()
    state = session.state
    return [replace(event, cells=state.index.cells(state.rows_at(i))) for i, event in enumerate(state.events)]


def _put(session: Session, labelled: _Labelled, key: str, *, overwrite: bool) -> AnnData:
    """Write the columns into a table, which is returned: a copy where it was a view."""
    opened, state = labelled.opened, labelled.state
    if not overwrite:
        _require_own(session, opened.table, key)
    found = _columns(state, opened.table.obs_names)
    if found["note"].notna().sum() == 0 and f"{key}_note" not in _own(opened.table, key, log_id(session)):
        found.pop("note")
    obs: dict[str, Any] = {_column(key, name): column for name, column in found.items()}
    params = {
        "log": session.log_path.name if session.log_path else "",
        "log_id": log_id(session),
        "events": len(state.events),
        "columns": list(obs),
        "annotators": sorted(state.layers),
        "missing": int((state.winners(slice(state.index.n, None))[0] != UNLABELLED).sum()),
    }
    classes = state.classes
    frame = pd.DataFrame(
        {"id": [c.id for c in classes], "name": [c.name for c in classes], "color": [c.color for c in classes]},
        index=pd.Index([str(c.id) for c in classes], dtype=object),
    )
    uns: dict[str, Any] = {key: {"params": params, "classes": frame}}
    if classes:
        uns[f"{key}_colors"] = [c.color for c in classes]
    if opened.joined is not None:
        return opened.joined.write(obs=obs, uns=uns)
    for name, column in obs.items():
        opened.table.obs[name] = column
    opened.table.uns.update(uns)
    return opened.table


def _save(session: Session, key_added: str, *, overwrite: bool) -> None:
    """Put the labels into the table that is on disk now, whatever else was written there since it was read.

    Nobody else saves meanwhile, so that neither a label nor what another tool wrote is lost.
    """
    import spatialdata as sd

    from cytonym.io import save_table

    assert session.sdata is not None
    with locked_store(Path(str(session.sdata.path))):
        stored = sd.read_zarr(session.sdata.path)
        if session.table_key not in stored.tables:
            save_table(session.sdata, session.table_key)
            return
        with session.lock:
            labelled = _anew(session, stored)
            _put(session, labelled, key_added, overwrite=overwrite)
        save_table(stored, session.table_key)


# ----------------------------------------------------------------------------------------------------- whose a column is
def log_id(session: Session) -> str:
    """The first event of the log names it."""
    return session.events[0].id if session.events else ""


def up_to_date(session: Session, key: str) -> bool:
    """Whether the table has the labels of the log under a name, also those of others; or there are none."""
    session.refresh()
    told = _told(session.table, key)
    if told is None:
        return not any(event.kind in ("assign", "note") for event in session.events)
    return str(told["log_id"]) == log_id(session) and int(told["events"]) == len(session.events)


def require_storable(table: AnnData, key: str) -> None:
    """Refuse a name under which a store takes no column."""
    same = [name for name in map(str, table.obs) if name.lower() == key.lower() and name != key]
    if same:
        msg = f"A store cannot tell column {key!r} from {same[0]!r}, which the table has already. Give another name."
        raise ValueError(msg)
    if not STORABLE.fullmatch(key):
        msg = (
            f"A store takes no column {key!r}: names are letters, digits, '_', '-' and '.', and do not begin with '__'."
        )
        raise ValueError(msg)


def foreign(session: Session, table: AnnData, key: str) -> list[str]:
    """What `write` would replace in a table although it did not come from this log."""
    own = _own(table, key, log_id(session))
    names = [name for name in (_column(key, part) for part in PARTS) if name in table.obs and name not in own]
    found = [f"obs[{name!r}]" for name in names if table.obs[name].notna().any()]
    if key in table.uns and _told(table, key) is None:
        found.append(f"uns[{key!r}]")
    return found  # colors alone mean nothing


def _require_own(session: Session, table: AnnData, key: str) -> None:
    found = foreign(session, table, key)
    if not found:
        return
    known = int(labels_of(table, key).notna().sum()) if f"obs[{key!r}]" in found else 0
    other = "`key_added` gives another name; `overwrite=True` replaces"
    if known:
        msg = (
            f"`obs[{key!r}]` has {known} labels that did not come from this log and would be lost. "
            f"`session.import_labels({key!r})` takes them in; {other} them."
        )
    else:
        msg = f"{', '.join(f'`{name}`' for name in found)} did not come from this log and would be lost. {other} it."
    raise ValueError(msg)


def _column(key: str, part: str) -> str:
    return key if part == "label" else f"{key}_{part}"


def _told(table: AnnData, key: str) -> dict[str, Any] | None:
    """What `write` noted in a table under a name; None where nothing, or something of another origin, has that name."""
    told = table.uns.get(key)
    params = told.get("params") if isinstance(told, dict) else None
    return params if isinstance(params, dict) and {"log_id", "events", "columns"} <= set(params) else None


def _own(table: AnnData, key: str, log: str) -> set[str]:
    """Columns that were written from a log."""
    told = _told(table, key)
    return set(map(str, told["columns"])) if told is not None and log and str(told["log_id"]) == log else set()


def import_labels(session: Session, key: str) -> int:
    """See `Session.import_labels`."""
    labels = labels_of(session.table, key)
    free = session.labels() == UNLABELLED
    names = [name for name in labels.cat.categories if name.strip() and ((labels == name).to_numpy() & free).any()]
    for name in names:  # all of them before any label is taken in
        if name.strip().casefold() not in SPECIAL.values():
            checked_name(name, "a class")
    count = 0
    for name in names:
        rows = np.flatnonzero((labels == name).to_numpy() & free)
        session.assign(rows, _code(session, name), source="imported")
        count += len(rows)
    logger.info("Took in %d labels of `obs[%r]`.", count, key)
    return count


def _code(session: Session, name: str) -> int:
    """The class of that name, made where there is none."""
    special: Sequence[int] = [code for code, told in SPECIAL.items() if told == name.strip().casefold()]
    if special:
        return special[0]
    return session.ensure_class(name)
