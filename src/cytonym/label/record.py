"""Labels of a session as columns of the table, and back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.get import labels_of
from cytonym.label.naming import checked_name
from cytonym.label.state import NEVER, SPECIAL, UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from cytonym.label.session import Session

logger = logging.getLogger("cytonym")


def columns(session: Session) -> dict[str, pd.Series]:
    """What is known of each cell of the table: label, source, by, time, mark and note."""
    with session.lock:
        codes, events = session.state.winners(slice(0, session.n))
        told = session.state.events
        classes = session.classes
        notes = dict(session.notes)
    said = (codes != UNLABELLED) & (events != NEVER)
    used, at = np.unique(events[said], return_inverse=True)

    def of(part: str) -> pd.Categorical:
        """A field of the event that counts for each cell."""
        values = np.full(session.n, None, dtype=object)
        if len(used):
            values[said] = np.array([getattr(told[i], part) for i in used], dtype=object)[at]
        return pd.Categorical(values, categories=sorted(set(values[said])))

    places = np.full(max([c.id for c in classes], default=-1) + 2, -1)
    places[[c.id for c in classes]] = np.arange(len(classes))
    labels = pd.Categorical.from_codes(
        places[np.where(codes >= 0, codes, -1)], categories=pd.Index([c.name for c in classes], dtype=object)
    )
    marks = np.full(session.n, None, dtype=object)
    for code, name in SPECIAL.items():
        marks[codes == code] = name
    written = np.full(session.n, None, dtype=object)
    written[list(notes)] = list(notes.values())
    found: dict[str, Any] = {
        "label": labels,
        "source": of("source"),
        "by": of("by"),
        "time": of("time"),
        "mark": pd.Categorical(marks, categories=list(SPECIAL.values())),
        "note": pd.Categorical(written),
    }
    return {name: pd.Series(value, index=session.table.obs_names) for name, value in found.items()}


def write(session: Session, *, key_added: str, save: bool, overwrite: bool) -> None:
    """See `Session.write`."""
    checked_name(key_added, "a column")
    if save and (session.sdata is None or not session.sdata.is_backed()):
        msg = "There is no store on disk to save to. Write the object first: sdata.write('tissue.zarr')."
        raise ValueError(msg)
    table = session.table
    if key_added in table.obs and not overwrite and not _ours(session, key_added):
        known = int(labels_of(table, key_added).notna().sum())
        if known:
            msg = (
                f"`obs[{key_added!r}]` has {known} labels that did not come from this log and would be lost. "
                f"`session.import_labels({key_added!r})` takes them in; `key_added` gives another name; `overwrite=True` replaces them."
            )
            raise ValueError(msg)
    session.refresh()
    if session.sdata is not None and session.sdata.tables.get(session.table_key, session.table) is not session.table:
        # `sdata` has another table by now, such as one that `pp.measure_cells` made.
        if session.log_path is None:
            msg = "The table of `sdata` was replaced since the session was opened, and its labels are in memory only. `export_csv` writes them."
            raise ValueError(msg)
        write(_again(session, session.sdata), key_added=key_added, save=save, overwrite=overwrite)
        return
    found = columns(session)
    obs: dict[str, Any] = {key_added: found.pop("label")}
    if found["note"].notna().sum() == 0 and f"{key_added}_note" not in table.obs:
        found.pop("note")
    obs |= {f"{key_added}_{name}": column for name, column in found.items()}
    params = {
        "log": session.log_path.name if session.log_path else "",
        "log_id": log_id(session),
        "events": len(session.events),
        "annotators": sorted(session.state.layers),
        "missing": session.missing,
    }
    classes = session.classes
    frame = pd.DataFrame(
        {"id": [c.id for c in classes], "name": [c.name for c in classes], "color": [c.color for c in classes]},
        index=pd.Index([str(c.id) for c in classes], dtype=object),
    )
    uns: dict[str, Any] = {key_added: {"params": params, "classes": frame}}
    if classes:
        uns[f"{key_added}_colors"] = [c.color for c in classes]
    if session.opened.joined is not None:
        session.table = session.opened.joined.write(obs=obs, uns=uns)
    else:
        for name, column in obs.items():
            table.obs[name] = column
        table.uns.update(uns)
    if save:
        _save(session, key_added, overwrite=overwrite)


def _save(session: Session, key_added: str, *, overwrite: bool) -> None:
    """Put the labels into the table that is on disk now, whatever else was written there since it was read."""
    import spatialdata as sd

    from cytonym.io import save_table

    assert session.sdata is not None
    stored = sd.read_zarr(session.sdata.path)
    if session.table_key not in stored.tables:
        save_table(session.sdata, session.table_key)
        return
    write(_again(session, stored), key_added=key_added, save=False, overwrite=overwrite)
    save_table(stored, session.table_key)


def _again(session: Session, sdata: SpatialData) -> Session:
    """The same labels on another object."""
    from cytonym.label.session import Session

    keys = {"table_key": session.table_key, "log": session.log_path, "annotator": session.annotator, **session.keys}
    return Session(sdata, **keys)


def log_id(session: Session) -> str:
    """The first event of the log names it."""
    return session.events[0].id if session.events else ""


def _ours(session: Session, key: str) -> bool:
    """Whether a column was written from this log."""
    told = session.table.uns.get(key)
    params = told.get("params") if isinstance(told, dict) else None
    return isinstance(params, dict) and bool(params.get("log_id")) and str(params["log_id"]) == log_id(session)


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
    wanted = checked_name(name, "a class")
    known = {c.name.casefold(): c.id for c in session.classes}
    if wanted.casefold() in known:
        return known[wanted.casefold()]
    return session.add_class(wanted).id
