"""What a log tells: history of a cell, speed, concordance, and how far annotators agree."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cytonym.label.state import NEVER, SPECIAL, UNLABELLED, UNSURE

if TYPE_CHECKING:
    from cytonym.label.log import Event
    from cytonym.label.session import Session
    from cytonym.label.state import State

PAUSE_S = 120.0
"""An annotator who does nothing for longer is away."""
WINDOW_S, STRIDE_S = 900.0, 300.0  # as in the paper: speed in 15 minutes, every 5 minutes


def history(session: Session, row: int) -> list[dict[str, Any]]:
    """What was said of one cell, oldest first."""
    with session.lock:
        state = session.state
        told = [(state.events[n], n in state.off) for n in state.about(row)]
        return [
            {
                "time": event.time,
                "by": event.by,
                "kind": event.kind,
                "label": None if event.label is None else session.name_of(event.label),
                "code": event.label,
                "source": event.source,
                "text": event.text,
                "undone": undone,
            }
            for event, undone in told
            if event.kind in ("assign", "note")
        ]


def cell(session: Session, row: int) -> dict[str, Any]:
    """What is known of one cell."""
    with session.lock:
        codes, events = session.state.winners(np.array([row]), session.annotator)
        region, instance = session.state.index.cell(row)
        event = session.events[events[0]] if events[0] != NEVER else None
        return {
            "name": str(session.table.obs_names[row]),
            "region": region,
            "instance": instance,
            "code": int(codes[0]),
            "label": session.name_of(codes[0]),
            "by": event.by if event else None,
            "time": event.time if event else None,
            "source": event.source if event else None,
            "note": session.notes.get(row),
        }


# ------------------------------------------------------------------------------------------------------ several annotators
def names(session: Session, codes: np.ndarray) -> np.ndarray:
    """Names of codes [n], None where there is none."""
    found = np.full(len(codes), None, dtype=object)
    for code in np.unique(codes[codes != UNLABELLED]):
        found[codes == code] = session.name_of(code)
    return found


def _by_annotator(session: Session) -> dict[str, np.ndarray]:
    """Codes that annotators gave [n]; those who are unsure of a cell said nothing."""
    with session.lock:
        told = {name: session.labels(name) for name in sorted(session.state.layers)}
    return {name: np.where(codes == UNSURE, np.int16(UNLABELLED), codes) for name, codes in told.items()}


def disagreements(session: Session) -> pd.DataFrame:
    """One row a cell with two classes or more, one column an annotator."""
    told = _by_annotator(session)
    first = np.full(session.n, UNLABELLED, dtype=np.int16)
    differ = np.zeros(session.n, dtype=bool)
    for mine in told.values():
        differ |= (mine != UNLABELLED) & (first != UNLABELLED) & (mine != first)
        first = np.where(first == UNLABELLED, mine, first)
    rows = np.flatnonzero(differ)
    named = {f"annotator {name}" if name == "row" else name: names(session, told[name][rows]) for name in told}
    return pd.DataFrame({"row": rows, **named}, index=session.table.obs_names[rows])


def agreement(session: Session) -> pd.DataFrame:
    """One row a pair of annotators: cells that both labelled, agreement and Cohen's kappa."""
    from cytonym.tl import compare_labels

    told = _by_annotator(session)
    found = []
    for a, b in combinations(told, 2):
        both = np.flatnonzero((told[a] != UNLABELLED) & (told[b] != UNLABELLED))
        share = kappa = float("nan")
        if len(both):
            given = {"a": names(session, told[a][both]), "b": names(session, told[b][both])}
            obs = pd.DataFrame(given, index=session.table.obs_names[both].astype(str))
            compared = compare_labels(AnnData(obs=obs), "a", "b")
            share, kappa = compared.agreement, compared.kappa
            if not np.isfinite(share):  # no class in common, which chance could not bring about either
                share = kappa = 0.0
        found.append({"a": a, "b": b, "n_cells": len(both), "agreement": share, "kappa": kappa})
    return pd.DataFrame(found, columns=["a", "b", "n_cells", "agreement", "kappa"])


# ---------------------------------------------------------------------------------------------------------------- speed
def speed(session: Session, annotator: str) -> dict[str, Any]:
    """Labels per second of one annotator, in all, by source, and in windows of 15 minutes."""
    state, events, off = _snapshot(session)
    mine = [(i, e, _source(state, e)) for i, e in enumerate(events) if e.by == annotator]
    own = [(i, e, source) for i, e, source in mine if e.kind != "model" and source != "imported"]
    given = [(i, e) for i, e, _ in own if e.kind == "assign" and i not in off]
    sizes = {i: len(state.rows_at(i)) if e.label != UNLABELLED else 0 for i, e in given}
    labels: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    times, counts = [], []
    clock = waiting = 0.0
    before = None
    for i, event, source in own:
        now = _seconds(event)
        gap = 0.0 if before is None else max(0.0, now - before)
        counted = before is not None and gap <= PAUSE_S
        before = now
        if not counted:
            continue
        clock += gap
        waiting += gap
        if source is None:  # a note or a class, made for the sake of the next labels
            continue
        seconds[source] += waiting
        waiting = 0.0
        if i in sizes:
            labels[source] += sizes[i]
            times.append(clock)
            counts.append(sizes[i])
    total, spent = sum(labels.values()), sum(seconds.values())
    by_source = {name: labels[name] / seconds[name] if seconds[name] > 0 else None for name in sorted(labels)}
    windows = _windows(np.array(times), np.array(counts), clock)
    overall = total / spent if spent > 0 else None
    single = by_source.get("single")
    return {
        "labels": sum(sizes.values()),
        "seconds": spent,
        "labels_per_second": overall,
        "by_source": by_source,
        "window_low": windows[0] if windows else None,
        "window_high": windows[1] if windows else None,
        "ratio": overall / single if overall and single else None,
    }


def _source(state: State, event: Event) -> str | None:
    """How cells were labelled; of undo and redo how those were that are meant, since taking back is part of the work of giving."""
    at = state.number.get(event.of) if event.of is not None else None
    return event.source if at is None else state.events[at].source


def _windows(times: np.ndarray, counts: np.ndarray, spent: float) -> tuple[float, float] | None:
    """Least and most labels per second in windows of working time."""
    if spent < WINDOW_S:
        return None
    starts = np.arange(0.0, spent - WINDOW_S + 1e-9, STRIDE_S)
    found = [float(counts[(times > s) & (times <= s + WINDOW_S)].sum()) / WINDOW_S for s in starts]
    return min(found), max(found)


def _seconds(event: Event) -> float:
    return datetime.fromisoformat(event.time).timestamp()


def concordance(session: Session) -> dict[str, Any]:
    """Cells that an annotator labelled both singly and in bulk, and the share with the same class."""
    state, events, off = _snapshot(session)
    last: dict[tuple[str, str], np.ndarray] = {}
    for number, event in enumerate(events):
        kind = {"single": "single", "bulk": "bulk", "suggested": "bulk"}.get(event.source or "")
        if event.kind == "assign" and event.label is not None and kind and number not in off:
            if (event.by, kind) not in last:
                last[event.by, kind] = np.full(session.n, UNLABELLED, np.int16)
            rows = state.rows_at(number)
            last[event.by, kind][rows[rows < session.n]] = event.label
    both = same = 0
    with session.lock:
        resolved = {key: state.resolved(codes) for key, codes in last.items()}
    for (annotator, kind), one in resolved.items():
        many = resolved.get((annotator, "bulk"))
        if kind == "single" and many is not None:
            known = ~np.isin(one, (UNLABELLED, UNSURE)) & ~np.isin(many, (UNLABELLED, UNSURE))
            both += int(known.sum())
            same += int((one[known] == many[known]).sum())
    return {"n_cells": both, "concordance": same / both if both else None}


def _snapshot(session: Session) -> tuple[State, list[Event], set[int]]:
    """The events so far and which of them are undone, to be read without keeping anybody from labelling."""
    with session.lock:
        return session.state, session.state.events[:], set(session.state.off)


def confirmations(session: Session, last: int) -> pd.DataFrame:
    """How often suggestions of each class were confirmed, of the last ones: one row a class, by id."""
    checked: dict[int, int] = defaultdict(int)
    confirmed: dict[int, int] = defaultdict(int)
    with session.lock:
        classes = session.classes
        for number in range(len(session.events) - 1, -1, -1):
            event = session.events[number]
            if not event.hits or number in session.state.off:
                continue
            for text, (right, wrong) in event.hits.items():
                i = session.state.resolve(int(text))
                share = min(1.0, max(0, last - checked[i]) / max(right + wrong, 1))
                checked[i] += round(share * (right + wrong))
                confirmed[i] += round(share * right)
    rows = []
    for c in classes:
        n, k = checked[c.id], confirmed[c.id]
        low, high = _wilson(k, n)
        rows.append(
            {
                "name": c.name,
                "checked": n,
                "confirmed": k,
                "precision": k / n if n else np.nan,
                "low": low,
                "high": high,
            }
        )
    columns = ["name", "checked", "confirmed", "precision", "low", "high"]
    return pd.DataFrame(rows, columns=columns, index=pd.Index([c.id for c in classes], name="class"))


def _wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share k of n."""
    if not n:
        return np.nan, np.nan
    z = 1.959964
    center, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def summary(session: Session) -> dict[str, Any]:
    """Everything in plain types."""
    counts = session.counts()
    by_class = {session.name_of(i): n for i, n in counts["by_class"].items()}
    pairs = agreement(session)
    told: dict[str, Any] = {
        "cells": session.n,
        "labelled": counts["labelled"],
        "by_class": by_class,
        **{name: int(np.count_nonzero(session.codes == code)) for code, name in SPECIAL.items()},
        "missing": session.missing,
        "events": len(session.events),
        "first": session.events[0].time if session.events else None,
        "last": session.events[-1].time if session.events else None,
        "annotators": {name: speed(session, name) for name in sorted(session.state.layers)},
        **concordance(session),
        "disagreements": len(disagreements(session)),
        "agreement": [
            {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in pair.items()}
            for pair in pairs.to_dict("records")
        ],
    }
    told["concordance_cells"] = told.pop("n_cells")
    return told
