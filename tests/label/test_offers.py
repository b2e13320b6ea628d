"""Pages of suggestions: the surest first, and nothing twice that was taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cytonym.label.offers import OPEN_S, Offer
from cytonym.label.session import Session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """200 cells of three classes; some lie between the first two."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [120, 60, 20])
    centers = np.array([[0, 0], [3, 0], [0, 6]])[kind]
    table = ad.AnnData(obs=pd.DataFrame({"kind": kind}, index=[f"cell {i}" for i in range(200)]))
    table.obsm["X_nextmarker"] = (centers + rng.normal(size=(200, 2))).astype(np.float32)
    found = Session(table, classes=["A", "B", "C"], log=tmp_path / "labels.jsonl", annotator="maria")
    for code in range(3):
        found.assign(np.flatnonzero(kind == code)[:5], code, source="bulk")
    return found


def test_nothing_before_there_is_a_model(session: Session) -> None:
    assert session.offers.best() is None
    assert len(session.offers.of("A").rows) == 0


def test_the_surest_cells_of_a_class_without_a_label(session: Session) -> None:
    learner = session.learner
    learner.retrain(background=False)
    page = session.offers.of("B", 10)
    suggested = np.flatnonzero((learner.predictions == 1) & (session.codes == -1))
    assert page.label == 1
    assert set(page.rows) <= set(suggested)
    assert len(page.rows) == 10
    assert (
        page.confidence.min()
        >= np.delete(learner.confidence[suggested], np.searchsorted(suggested, np.sort(page.rows))).max()
    )
    assert (np.diff(page.confidence) <= 0).all()
    assert np.array_equal(page.confidence, learner.confidence[page.rows])
    assert np.array_equal(session.offers.of(1).rows[:10], page.rows)
    with pytest.raises(KeyError, match="No class 'D'"):
        session.offers.of("D")


def test_the_best_page_gives_most_labels_a_second(session: Session) -> None:
    session.learner.retrain(background=False)
    best = session.offers.best()
    assert best is not None
    whole = [session.offers.of(code) for code in range(3)]
    assert best.rate >= max(page.rate for page in whole)
    assert best.label == 0  # the most common one
    assert np.array_equal(best.rows, whole[0].rows[: len(best.rows)])
    few = session.offers.best(7)
    assert few is not None
    assert len(few.rows) <= 7
    sure = Offer(0, np.arange(50), np.ones(50, np.float32))
    assert sure.rate == pytest.approx(50 / (OPEN_S + 5))


def test_what_was_taken_out_is_offered_as_something_else(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("B")
    out, behind = page.rows[[1, 3]], page.rows[-2:]
    session.offers.accept(page, np.setdiff1d(page.rows, [*out, *behind]))
    assert session.offers.taken_out()[1].tolist() == sorted(out.tolist())
    session.learner.retrain(background=False)
    others = np.concatenate([session.offers.of(code).rows for code in (0, 2)])
    assert np.isin(out, others).all()
    assert not np.isin(out, session.offers.of("B").rows).any()
    assert np.isin(behind, np.concatenate([session.offers.of("B").rows, others])).all()
    for code in (0, 2):  # of no class at all: nothing is left to suggest
        rest = session.offers.of(code).rows
        if len(taken := np.setdiff1d(rest, out)):
            session.assign([*taken], code, source="suggested")
    left = np.concatenate([session.offers.of(code).rows for code in range(3)])
    assert len(np.unique(left)) == len(left)


def test_undo_brings_suggestions_back(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("B")
    session.offers.accept(page, page.rows[1:])
    assert page.rows[0] not in session.offers.of("B").rows
    session.undo()
    assert np.array_equal(session.offers.of("B").rows, page.rows)
    assert session.offers.taken_out() == {}
    assert session.offers.trust("B") == 1
    session.redo()
    assert session.offers.taken_out()[1].tolist() == [page.rows[0]]
    with pytest.raises(ValueError, match="1 of the cells are not on the page"):
        session.offers.accept(page, [*page.rows[2:4], session.offers.of("A").rows[0]])


def test_cells_taken_out_by_hand_are_offered_for_the_next_likely_class(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("B")
    session.offers.take_out("B", page.rows[-2:])
    session.offers.take_out("B", page.rows[:1])
    assert set(session.offers.of("B").rows) == set(page.rows[1:-2])
    others = np.concatenate([session.offers.of(name).rows for name in ("A", "C")])
    assert set(page.rows[[0, -2, -1]]) <= set(others)
    with pytest.raises(KeyError, match="No class 'D'"):
        session.offers.take_out("D", page.rows)


def test_labels_off_a_page_take_nothing_out(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("B")
    session.assign(page.rows[3:5], "A")
    session.assign(np.flatnonzero(session.codes == -1)[:1], "C")
    session.assign(page.rows[-1:], "B")  # one cell, looked at alone
    assert session.offers.taken_out() == {}


def test_what_was_taken_out_is_known_after_a_restart(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("B")
    session.offers.accept(page, page.rows[3:])
    again = Session(session.table, log=session.log_path, annotator="maria")
    again.learner.retrain(background=False)
    assert again.offers.taken_out()[1].tolist() == sorted(page.rows[:3].tolist())
    assert not np.isin(page.rows[:3], again.offers.of("B").rows).any()
    assert Session(session.table, log=session.log_path, annotator="ben").offers.taken_out() == {}


def test_a_class_that_is_gone_is_not_offered(session: Session) -> None:
    session.learner.retrain(background=False)
    gone, sure = session.offers.of("A").rows, session.offers.of("B").rows
    session.remove_class("A")
    best = session.offers.best()
    assert best is not None
    assert best.label in (1, 2)
    session.remove_class("C", into="B")
    page = session.offers.of("B")
    assert not np.isin(gone, page.rows).any()
    assert set(sure) < set(page.rows)  # and what was called C
    session.assign(page.rows, page.label, source="suggested")
    assert session.offers.best() is None


def test_what_pages_gave_counts_against_what_the_model_promises(session: Session) -> None:
    session.learner.retrain(background=False)
    page = session.offers.of("A", 40)
    assert page.trust == 1
    session.offers.accept(page, page.rows[20:])
    promised = float(page.confidence.sum())
    assert session.offers.trust("A") == pytest.approx(30 / (10 + promised))
    assert session.offers.trust("B") == 1
    after = session.offers.of("A", 40)
    assert after.expected == pytest.approx(session.offers.trust("A") * after.confidence.sum())
    session.offers.accept(after, after.rows)
    lasting = session.offers.trust("A")
    assert lasting == pytest.approx((0.97 * 30 + len(after.rows)) / (0.97 * (10 + promised) + after.confidence.sum()))
    nothing = session.offers.of("B", 10)
    session.offers.take_out("B", nothing.rows)  # a page of which nothing was right
    assert session.offers.trust("B") == pytest.approx(10 * 0.97**2 / (10 * 0.97**2 + nothing.confidence.sum()))
    assert session.offers.trust("A") == pytest.approx(lasting)


def test_the_order_of_the_table_does_not_matter(session: Session, tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(200)
    found = []
    for number, rows in enumerate((np.arange(200), order)):
        table = session.table[rows].copy()
        other = Session(table, classes=["A", "B", "C"], log=tmp_path / f"{number}.jsonl", annotator="maria")
        for code in range(3):
            other.assign(np.flatnonzero((session.codes == code)[rows]), code)
        other.learner.retrain(background=False)
        best = other.offers.best()
        assert best is not None
        found.append((table.obs_names[best.rows].tolist(), best.confidence.tobytes()))
    assert found[0] == found[1]
