"""Labels of several annotators against a slow and obvious account of what they did."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cytonym.label.cells import CellIndex
from cytonym.label.ledger import Ledger
from cytonym.label.naming import next_color
from cytonym.label.state import NOT_A_CELL, UNLABELLED, UNSURE

REGIONS = ["a", "a", "a", "b", "b", "a", "b", "a"]
IDS = [1, 2, 3, 1, 7, 9, 8, 10]
N = len(IDS)


def index(order=None, drop=()) -> CellIndex:
    rows = [r for r in (range(N) if order is None else order) if r not in drop]
    return CellIndex([REGIONS[r] for r in rows], np.array([IDS[r] for r in rows]))


class Model:
    """Every step is kept as it was asked for; labels are counted up from the first step each time."""

    def __init__(self) -> None:
        self.done: list[tuple[str, frozenset, int]] = []
        self.off: set[int] = set()
        self.undone: dict[str, list[int]] = {}
        self.removed: dict[int, int] = {}

    def assign(self, who, cells, code):
        self.done.append((who, frozenset(cells), code))
        self.undone[who] = []

    def undo(self, who):
        mine = [i for i, (name, _, _) in enumerate(self.done) if name == who and i not in self.off]
        if mine:
            self.off.add(mine[-1])
            self.undone.setdefault(who, []).append(mine[-1])
        return bool(mine)

    def redo(self, who):
        if self.undone.get(who):
            self.off.discard(self.undone[who].pop())
            return True
        return False

    def resolve(self, code):
        while code in self.removed:
            code = self.removed[code]
        return code

    def label(self, cell, who=None, own=None):
        said = [
            (name == own, i, code)
            for i, (name, cells, code) in enumerate(self.done)
            if cell in cells and i not in self.off and who in (None, name)
        ]
        return self.resolve(max(said)[2]) if said else UNLABELLED


WHO = ["maria", "jens"]
CELLS = st.sets(st.integers(0, N - 1), min_size=1)


class Labelling(RuleBasedStateMachine):
    """Three sessions on one file: two of one annotator, one of another."""

    @initialize()
    def open(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "x.labels.jsonl"
        self.model = Model()
        self.orders = [list(range(N)) for _ in range(3)]
        self.open_all()
        self.names = {}
        for name in "TBK":
            self.names[self.ledgers[0].add_class(name).id] = name
        self.live = list(self.names)

    def open_all(self):
        who = [WHO[0], WHO[0], WHO[1]]
        self.ledgers = [Ledger(index(o), self.path, w) for o, w in zip(self.orders, who, strict=True)]

    def teardown(self):
        shutil.rmtree(getattr(self, "folder", "none"), ignore_errors=True)

    def rows(self, at, cells):
        return [self.orders[at].index(c) for c in cells]

    @rule(at=st.integers(0, 2), cells=CELLS, pick=st.integers(0, 9), bulk=st.booleans())
    def assign(self, at, cells, pick, bulk):
        codes = [*self.live, UNLABELLED, UNSURE, NOT_A_CELL]
        code = codes[pick % len(codes)]
        event = self.ledgers[at].assign(self.rows(at, cells), code, source="bulk" if bulk else "single")
        assert sorted(self.orders[at][r] for r in self.ledgers[at].rows_of(event)) == sorted(cells)
        self.model.assign(self.ledgers[at].annotator, cells, code)

    @rule(at=st.integers(0, 2))
    def undo(self, at):
        assert (self.ledgers[at].undo() is not None) == self.model.undo(self.ledgers[at].annotator)

    @rule(at=st.integers(0, 2))
    def redo(self, at):
        assert (self.ledgers[at].redo() is not None) == self.model.redo(self.ledgers[at].annotator)

    @rule(at=st.integers(0, 2))
    def add_class(self, at):
        name = f"class {len(self.names)}"
        made = self.ledgers[at].add_class(name)
        assert made.id == len(self.names)  # never one that was there
        self.names[made.id] = name
        self.live.append(made.id)

    @precondition(lambda self: len(self.live) > 1)
    @rule(at=st.integers(0, 2), pick=st.integers(0, 9), into=st.one_of(st.none(), st.integers(0, 9)))
    def remove_class(self, at, pick, into):
        gone = self.live.pop(pick % len(self.live))
        other = None if into is None else self.live[into % len(self.live)]
        self.ledgers[at].remove_class(gone, into=other)
        self.model.removed[gone] = UNLABELLED if other is None else other

    @precondition(lambda self: self.model.removed)
    @rule(at=st.integers(0, 2), pick=st.integers(0, 9))
    def restore_class(self, at, pick):
        back = sorted(self.model.removed)[pick % len(self.model.removed)]
        self.ledgers[at].restore_class(back)
        del self.model.removed[back]
        self.live = [i for i in self.names if i not in self.model.removed]

    @rule(at=st.integers(0, 2), pick=st.integers(0, 9))
    def rename_class(self, at, pick):
        i = self.live[pick % len(self.live)]
        self.names[i] = f"{self.names[i]}'"
        self.ledgers[at].rename_class(self.names[i][:-1], self.names[i])

    @rule(seed=st.integers(0, 99))
    def reopen_with_rows_in_another_order(self, seed):
        self.orders = [np.random.default_rng(seed + i).permutation(N).tolist() for i in range(3)]
        self.open_all()

    @rule(cut=st.integers(1, 30))
    def die_in_the_middle_of_a_line(self, cut):
        with self.path.open("ab") as stream:
            stream.write(b'{"v":1,"id":"s-9","time":"2026-11-21T00:00'[:cut])

    @invariant()
    def everybody_sees_what_was_done(self):
        for ledger, order in zip(
            getattr(self, "ledgers", []), self.orders if hasattr(self, "orders") else [], strict=True
        ):
            ledger.refresh()
            model, own = self.model, ledger.annotator
            assert ledger.codes.tolist() == [model.label(c, own=own) for c in order]
            assert ledger.labels().tolist() == [model.label(c) for c in order]
            for who in WHO:
                if who in ledger.state.layers:
                    assert ledger.labels(who).tolist() == [model.label(c, who=who) for c in order]
            assert {c.id: c.name for c in ledger.classes} == {i: self.names[i] for i in self.live}
            counts = ledger.counts()
            assert counts["labelled"] == int((ledger.codes >= 0).sum()) == sum(counts["by_class"].values())
            assert (counts["unsure"], counts["not_cell"]) == tuple(
                (ledger.codes == c).sum() for c in (UNSURE, NOT_A_CELL)
            )
            assert ledger.can_undo == any(w == own and i not in model.off for i, (w, _, _) in enumerate(model.done))
            assert ledger.can_redo == bool(model.undone.get(own))
            given = [i for i, e in enumerate(ledger.events) if e.kind == "assign"]
            assert [k for k, i in enumerate(given) if i in ledger.state.off] == sorted(model.off)


TestLabelling = Labelling.TestCase
TestLabelling.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.labels.jsonl"


def test_one_cell_and_no_log():
    ledger = Ledger(CellIndex(["a"], [5]), None, "m")
    ledger.add_class("T")
    ledger.assign([0], "T")
    assert ledger.codes.tolist() == [0]
    assert ledger.undo() is not None
    assert ledger.undo() is None
    assert ledger.redo() is not None
    assert ledger.redo() is None
    assert ledger.counts() == {"total": 1, "labelled": 1, "by_class": {0: 1}, "unsure": 0, "not_cell": 0}


def test_ids_are_stored_as_runs_and_gaps_stay_gaps(path):
    ids = np.array([1, 2, 3, 5, 6, 9, 2**40])
    ledger = Ledger(CellIndex(["a"] * 7, ids), path, "m")
    event = ledger.assign([0, 1, 2, 4, 6], "unsure")
    assert event.cells == {"a": [[1, 3], [6, 1], [2**40, 1]]}
    # cells 4 and 5 of the same run in a later table were never labelled
    again = Ledger(CellIndex(["a"] * 9, np.array([1, 2, 3, 4, 5, 6, 7, 9, 2**40])), path, "m")
    assert again.codes.tolist() == [-2, -2, -2, -1, -1, -2, -1, -1, -2]


def test_cells_can_have_names(path):
    ledger = Ledger(CellIndex(["", "", ""], np.array(["AAC", "細胞", "x y"], dtype=object)), path, "m")
    ledger.assign([1, 2], "not a cell")
    again = Ledger(CellIndex(["", ""], np.array(["x y", "AAC"], dtype=object)), path, "m")
    assert again.codes.tolist() == [-3, -1]
    assert again.missing == 1


def test_labels_of_cells_that_are_gone_stay_in_the_log(path):
    ledger = Ledger(index(), path, "m")
    ledger.add_class("T")
    ledger.assign([0, 3, 4], "T", source="bulk")
    less = Ledger(index(drop=(3, 4)), path, "m")
    assert less.missing == 2
    assert less.codes.tolist() == [0, -1, -1, -1, -1, -1]
    less.assign([1], "T")
    less.undo()
    less.undo()
    assert less.missing == 0
    less.redo()
    assert Ledger(index(), path, "m").codes.tolist() == [0, -1, -1, 0, 0, -1, -1, -1]


def test_the_same_cell_twice_is_refused():
    with pytest.raises(ValueError, match="more than once: \\[1\\]"):
        CellIndex(["a", "a"], [1, 1])
    assert CellIndex(["a", "b"], [1, 1]).n == 2


@pytest.mark.parametrize(
    ("rows", "error", "told"),
    [
        ([], ValueError, "No rows"),
        ([N], IndexError, "from 0 to 7"),
        ([-1], IndexError, "from 0 to 7"),
        ([0.5], ValueError, "whole numbers"),
        ([[0]], ValueError, "one dimension"),
        (np.zeros(3, bool), ValueError, "8 entries"),
        (np.zeros(N, bool), ValueError, "No rows"),
    ],
)
def test_rows_that_there_are_not(rows, error, told):
    ledger = Ledger(index(), None, "m")
    with pytest.raises(error, match=told):
        ledger.assign(rows, "unsure")
    assert not ledger.events


def test_classes_that_there_are_not():
    ledger = Ledger(index(), None, "m")
    ledger.add_class("T")
    for wrong in ("B", 1, True, 1.5, -4, ["T"]):
        with pytest.raises(KeyError, match="Available: \\['T'\\]"):
            ledger.assign([0], wrong)
    for call in (lambda: ledger.rename_class("unsure", "x"), lambda: ledger.remove_class("T", into="unsure")):
        with pytest.raises(KeyError, match="is a mark"):
            call()
    with pytest.raises(ValueError, match="into itself"):
        ledger.remove_class("T", into="T")
    with pytest.raises(ValueError, match="Unknown source"):
        ledger.assign([0], "T", source="guess")
    with pytest.raises(KeyError, match="Removed: {}"):
        ledger.restore_class(0)
    with pytest.raises(KeyError, match="No labels of 'x'"):
        ledger.labels("x")
    assert [e.kind for e in ledger.events] == ["class"]


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("", ValueError, "empty"),
        (" \t ", ValueError, "empty"),
        ("x" * 101, ValueError, "101 characters"),
        ("a\nb", ValueError, "line breaks"),
        ("a\x00b", ValueError, "control"),
        ("a\u2028b", ValueError, "line breaks"),
        ("\ud800", ValueError, "control"),
        ("Unsure", ValueError, "without a class"),
        ("t CELL", ValueError, "already"),
        (3, TypeError, "must be text"),
    ],
)
def test_names_that_cannot_be(name, error, told, path):
    ledger = Ledger(index(), path, "m")
    ledger.add_class("T cell")
    for call in (ledger.add_class, lambda n: ledger.rename_class(ledger.add_class("B").id, n)):
        with pytest.raises(error, match=told):
            call(name)
    assert Ledger(index(), path, "m").classes[0].name == "T cell"


def test_unusual_names_come_back(path):
    ledger = Ledger(index(), path, "Zoë 山")
    names = ["<script>alert(1)</script>", "T‑細胞 🧬", "=1+1", "x" * 100, "e\u0301", "a\tb".replace("\t", " ")]
    for name in names:
        ledger.add_class(name)
    again = Ledger(index(), path, "Zoë 山")
    assert [c.name for c in again.classes] == [*names[:4], "é", "a b"]
    assert again.label_class(" é ") == 4
    assert len({c.color for c in again.classes}) == len(names)


def test_sixty_classes_with_colours_of_their_own():
    ledger = Ledger(index(), None, "m")
    for i in range(60):
        ledger.add_class(f"class {i}")
    assert len({c.color for c in ledger.classes}) == 60
    ledger.assign([0], "class 59")
    assert ledger.counts()["by_class"][59] == 1


def test_colours():
    ledger = Ledger(index(), None, "m")
    assert ledger.add_class("T", "red").color == "#ff0000"
    ledger.recolor_class("T", (0, 0, 1))
    assert ledger.classes[0].color == "#0000ff"
    with pytest.raises(ValueError, match="is no colour"):
        ledger.recolor_class("T", "url(javascript:alert(1))")


def test_a_class_that_somebody_else_removed_meanwhile_cannot_be_given(path):
    a = Ledger(index(), path, "a")
    a.add_class("T")
    b = Ledger(index(), path, "b")
    a.remove_class("T")
    seen = []
    b.on_change.append(seen.extend)
    with pytest.raises(KeyError, match="No class 'T'"):
        b.assign([0], "T")
    assert [e.op for e in seen] == ["remove"]  # what was learned on the way is told all the same
    assert b.codes.tolist() == [-1] * N


def test_listeners_hear_of_own_and_others_events_once(path):
    a, b = Ledger(index(), path, "a"), Ledger(index(), path, "b")
    heard = []
    b.on_change.append(lambda events: heard.append([e.by for e in events]))
    a.assign([0], "unsure")
    b.assign([1], "unsure")
    b.refresh()
    assert heard == [["a", "b"]]
    assert b.refresh() == []


def test_every_event_is_heard_once_whoever_labels_meanwhile():
    ledger = Ledger(index(), None, "m")
    heard: list[str] = []
    ledger.on_change.append(lambda events: heard.extend(e.id for e in events))
    real = ledger.lock

    class Lock:
        """Lets another thread label as soon as the first label is stored."""

        waiting = True

        def __enter__(self):
            real.acquire()

        def __exit__(self, *_):
            real.release()
            if self.waiting and ledger.events:
                self.waiting = False
                other = threading.Thread(target=ledger.assign, args=([1], "unsure"), daemon=True)
                other.start()
                other.join(20)

    ledger.lock = Lock()
    ledger.assign([0], "unsure")
    assert sorted(heard) == sorted(e.id for e in ledger.events)


def test_classes_are_made_once_by_all_who_begin_with_them(path, caplog):
    a, b = Ledger(index(), path, "a"), Ledger(index(), path, "b")
    a.begin_with(["Tumour", "B"])
    b.begin_with(["tumour", "B"])  # it has not heard of them yet
    assert [c.name for c in b.classes] == ["Tumour", "B"]
    a.rename_class("B", "B cell")
    a.remove_class("Tumour")
    b.begin_with(["Tumour", "B", "b CELL", "K"])
    assert [c.name for c in b.classes] == ["B cell", "K"]
    assert b.restore_class(0)


def test_a_class_that_somebody_else_made_meanwhile_is_found(path):
    a, b = Ledger(index(), path, "a"), Ledger(index(), path, "b")
    made = a.add_class("T cell").id
    assert b.ensure_class("t cell") == made
    assert b.ensure_class("B") == made + 1
    a.remove_class("T cell")
    assert b.ensure_class("T cell") == made + 2  # here it is needed, whatever there was


def test_a_name_is_found_in_any_form_of_its_letters():
    ledger = Ledger(index(), None, "m")
    ledger.add_class("e\u0301")
    ledger.assign([0], "e\u0301")
    ledger.assign([1], " \u00e9")
    assert ledger.codes[:2].tolist() == [0, 0]


@pytest.mark.parametrize("line", range(4))
def test_a_line_that_is_taken_out_invents_no_label(path, line, caplog):
    ledger = Ledger(index(), path, "m")
    for name in ("T", "B"):
        ledger.add_class(name)
    ledger.assign([0, 1], "B")
    ledger.remove_class("B", into="T")
    ledger.add_class("b")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    again = Ledger(index(), path, "m")
    names = [c.name for c in again.classes]
    assert len({name.casefold() for name in names}) == len(names)
    known = [again.name_of(code) for code in again.codes[:3]]
    assert known == {0: ["class 0", "class 0", None], 1: ["T", "T", None], 2: [None] * 3, 3: ["B", "B", None]}[line]
    assert again.counts()["labelled"] == (0 if line == 2 else 2)
    assert ("does not say" in caplog.text) == (line < 2)
    assert again.add_class("K").id == 3
    assert again.counts()["by_class"][3] == 0


def test_notes(path):
    ledger = Ledger(index(), path, "m")
    ledger.note(3, "mitosis? <b>")
    ledger.note(2, "x")
    ledger.note(2, "")
    assert Ledger(index(), path, "m").notes == {3: "mitosis? <b>"}
    assert Ledger(index(drop=(0,)), path, "m").notes == {2: "mitosis? <b>"}
    with pytest.raises(ValueError, match="at most 10,000"):
        ledger.note(0, "x" * 10_001)
    for where in (path, None):
        with pytest.raises(ValueError, match="half a character"):
            Ledger(index(), where, "m").note(0, "a\ud800")
    assert not ledger.can_undo


def test_nothing_changes_when_the_log_cannot_be_written(path, monkeypatch):
    import errno
    import os

    ledger = Ledger(index(), path, "m")
    ledger.add_class("T")
    ledger.assign([0], "T")
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for call in (
            lambda: ledger.assign([1], "T"),
            ledger.undo,
            lambda: ledger.add_class("B"),
            lambda: ledger.note(0, "x"),
        ):
            with pytest.raises(OSError, match="Nothing was stored"):
                call()
    assert path.read_bytes() == before
    assert ledger.codes.tolist() == [0, *[-1] * 7]
    assert len(ledger.events) == 2
    ledger.undo()
    assert Ledger(index(), path, "m").codes.tolist() == [-1] * N


def test_a_strange_undo_in_the_log_is_passed_over(path, caplog):
    from cytonym.label.log import Event, EventLog

    ledger = Ledger(index(), path, "m")
    ledger.assign([0], "unsure")
    EventLog(path).append(lambda _: Event("x-1", "2026-11-21T00:00:00.000Z", "m", "undo", of="nobody-1"))
    ledger.refresh()
    assert "Passed over" in caplog.text
    assert ledger.codes[0] == UNSURE


def test_a_million_cells_are_quick(path):
    import time

    n = 1_000_000
    ledger = Ledger(CellIndex(np.repeat("a", n), np.arange(1, n + 1)), path, "m")
    ledger.add_class("T")
    some = np.flatnonzero(np.random.default_rng(0).random(n) < 0.1)
    ledger.assign(some, "T", source="bulk")
    start = time.perf_counter()
    for k in range(10):
        ledger.assign([k], "unsure")
    spent = (time.perf_counter() - start) / 10
    assert spent < 0.2, spent  # a few milliseconds on a quiet machine
    assert ledger.counts()["labelled"] == int((ledger.codes >= 0).sum())


def test_colours_of_many_classes_are_told_apart():
    found: list[str] = []
    for _ in range(150):
        found.append(next_color(found))
    assert len(set(found[:60])) == 60
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in found[:16]], float)
    away = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1e3 * np.eye(16)
    assert away.min() > 60  # no two yellows
