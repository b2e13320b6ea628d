"""Reports: whose time counts as what, and that nothing which others stored is missing."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.label import ledger as ledger_module
from cytonym.label import summary
from cytonym.label.session import Session


def session_of(log, annotator="m", n=100) -> Session:
    table = AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    return Session(table, classes=["T", "B"], log=log, annotator=annotator)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "labels.jsonl"


@pytest.fixture
def pass_time(monkeypatch):
    """A clock that goes on when it is told to."""
    now = [datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)]

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now[0]

    def forward(seconds: float) -> None:
        now[0] += datetime.timedelta(seconds=seconds)

    monkeypatch.setattr(ledger_module, "datetime", Clock)
    return forward


def speed(session: Session) -> dict:
    return session.summary()["annotators"]["m"]


def test_a_training_in_the_background_is_no_work(log, pass_time):
    session = session_of(log)
    for k in range(5):
        pass_time(2)
        session.assign([k], "T")
        pass_time(1)
        session.log_model("v", 10)
        pass_time(9)
        session.assign(range(10, 20), "B", source="bulk")
    assert speed(session)["by_source"] == {"single": pytest.approx(0.5), "bulk": pytest.approx(1.0)}


def test_a_pause_is_one_also_if_a_model_was_trained_meanwhile(log, pass_time):
    session = session_of(log)
    session.assign([0], "T")
    pass_time(100)
    session.log_model("v", 10)
    pass_time(100)
    session.assign([1], "T")
    assert speed(session)["seconds"] == 0


def test_taking_back_is_work_of_the_kind_that_is_taken_back(log, pass_time):
    session = session_of(log)
    pass_time(4)
    session.assign(range(10, 20), "B", source="bulk")
    pass_time(2)
    session.assign([0], "T")
    pass_time(3)
    session.undo()
    pass_time(5)
    session.undo()  # of those in bulk
    pass_time(7)
    session.redo()
    told = speed(session)
    assert told["by_source"] == {"bulk": pytest.approx(10 / 16)}
    assert told["seconds"] == pytest.approx(21)


def test_a_note_and_a_class_are_work_for_the_labels_that_follow(log, pass_time):
    session = session_of(log)
    session.assign([0], "T")
    pass_time(5)
    session.note(1, "odd")
    pass_time(3)
    session.add_class("K")
    pass_time(2)
    session.assign(range(10, 20), "K", source="bulk")
    assert speed(session)["by_source"]["bulk"] == pytest.approx(1.0)


def test_an_import_is_no_work_nor_is_taking_it_back(log, pass_time):
    session = session_of(log)
    pass_time(5)
    session.assign(range(50), "T", source="imported")
    pass_time(5)
    session.undo()
    assert speed(session)["seconds"] == 0


def test_an_annotator_may_be_called_row(log):
    row, other = session_of(log, "row"), session_of(log, "m")
    row.assign([0, 1], "T")
    other.assign([1], "B")
    frame = row.disagreements()
    assert frame["row"].tolist() == [1]
    assert frame[["annotator row", "m"]].iloc[0].tolist() == ["T", "B"]
    assert row.summary()["disagreements"] == 1


def test_annotators_who_never_agree(log):
    a, b = session_of(log, "a"), session_of(log, "b")
    a.assign([0, 1], "T")
    b.assign([0, 1], "B")
    [pair] = a.agreement().to_dict("records")
    assert (pair["agreement"], pair["kappa"]) == (0, 0)


@pytest.mark.parametrize("report", ["summary", "agreement", "disagreements", "history", "cell"])
def test_reports_know_what_others_stored(log, report):
    a, b = session_of(log, "a"), session_of(log, "b")
    a.assign([0], "T")
    b.assign([0], "B")
    told = {
        "summary": lambda: a.summary()["disagreements"],
        "agreement": lambda: a.agreement()["n_cells"].sum(),
        "disagreements": lambda: len(a.disagreements()),
        "history": lambda: len(a.history(0)) - 1,
        "cell": lambda: [e.by for e in a.events if a.cell(0) and e.kind == "assign"].count("b"),
    }
    assert told[report]() == 1


def test_a_log_that_is_gone_takes_no_report_away(log, tmp_path, caplog):
    session = session_of(log)
    session.assign([0], "T")
    log.unlink()
    assert session.summary()["labelled"] == 1
    assert "is gone" in caplog.text
    assert len(pd.read_csv(session.export_csv(tmp_path / "saved.csv"))) == 1


@given(st.lists(st.sets(st.integers(0, 59), min_size=1), max_size=12))
@settings(deadline=None)
def test_the_events_about_a_cell_are_those_that_name_it(sets):
    session = session_of(None, n=60)
    for k, rows in enumerate(sets):
        session.assign(sorted(rows), "TB"[k % 2])
    state = session.state
    for row in range(60):
        assert state.about(row) == [n for n in range(len(state.events)) if row in state.rows_at(n)]
        assert [said["label"] for said in session.history(row)] == [
            "TB"[k % 2] for k, rows in enumerate(sets) if row in rows
        ]


def test_reports_on_many_events_keep_nobody_from_labelling(log, monkeypatch):
    session = session_of(log)
    session.assign([1], "T")
    session.assign([1, 2], "B", source="bulk")

    def taken() -> bool:
        """Whether another thread would have to wait."""
        with ThreadPoolExecutor(1) as pool:
            free = pool.submit(session.lock.acquire, blocking=False).result()
            if free:
                pool.submit(session.lock.release).result()
        return not free

    held = []
    scan = type(session.state).rows_at

    def watched(self, number):
        held.append(taken())
        return scan(self, number)

    monkeypatch.setattr(type(session.state), "rows_at", watched)
    assert summary.concordance(session) == {"n_cells": 1, "concordance": 0.0}
    assert summary.speed(session, "m")["labels"] == 3
    assert held
    assert not any(held)
