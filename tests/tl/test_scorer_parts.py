"""What a scorer is trained on and judged by: both kinds of labels wherever they lie, and nothing in both."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cytonym.data.canvas import Canvas
from cytonym.data.cell_masks import CellMasks
from cytonym.data.scoring_tiles import FOREIGN, NEGATIVE, POSITIVE, UNDEFINED
from cytonym.data.source import resolve
from cytonym.tl import _scorer_parts
from cytonym.tl._scorer_parts import Labelled, both_kinds, judged_tiles, parts
from cytonym.tl._scoring import Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

    from cytonym.data.scoring_tiles import Plot

NAMES = ["CD3", "CD20"]


@pytest.fixture
def element(tissue: Callable[..., SpatialData]) -> Callable[..., Labelled]:
    """Ten by ten cells of 12 pixels, in order; the first cell of every two is negative for CD3, the second for CD20."""

    def make(image: int = 0, keys: tuple[int, int] = (0, 1), n_side: int = 10) -> Labelled:
        [source] = resolve(tissue(n_side=n_side))
        field = Field(Canvas(source, CellMasks(source, 4.0), 1.0), np.ones(3), 1.0, "given")
        activity = np.full((n_side**2, 3), UNDEFINED, np.int8)
        activity[:, 1], activity[:, 2] = np.arange(n_side**2) % 2, 1 - np.arange(n_side**2) % 2
        return Labelled(field, activity, np.array([-1, *keys]), image)

    return make


def row_and_column() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(100) // 10, np.arange(100) % 10


def kinds(plots: list[Plot], key: int) -> set[int]:
    found = [p.activity[:, list(p.keys).index(key)] for p in plots if key in p.keys]
    return set(np.concatenate(found).tolist()) - {UNDEFINED} if found else set()


def known(plots: list[Plot], key: int) -> int:
    """Cells with a label."""
    return sum(int((p.activity[:, list(p.keys).index(key)] != UNDEFINED).sum()) for p in plots if key in p.keys)


BOTH = {NEGATIVE, POSITIVE}


def test_the_last_rows_of_few_images_are_held_out(element, caplog):
    with caplog.at_level(logging.INFO, logger="cytonym"):
        trained, judged = parts([element(), element(1, (2, 3), n_side=5)], NAMES * 2, 0)
    assert [p.rows.shape for p in trained] == [(96, 120), (48, 60)]
    assert [p.rows.shape for p in judged] == [(24, 120), (12, 60)]
    assert [p.keys.tolist() for p in (*trained, *judged)] == [[0, 1], [2, 3]] * 2
    assert caplog.text == ""


@pytest.mark.parametrize("where", ["bottom", "left", "right", "corner"])
def test_a_marker_that_is_positive_in_one_place_only(element, where):
    """Wherever its positive cells are, some are trained on and others are held out."""
    one = element()
    row, column = row_and_column()
    place = {"bottom": row >= 8, "left": column < 2, "right": column >= 8, "corner": (row >= 8) & (column >= 7)}
    one.activity[:, 2] = np.where(place[where], POSITIVE, NEGATIVE)
    trained, judged = parts([one], NAMES, 0)
    for key in (0, 1):
        assert kinds(trained, key) == kinds(judged, key) == BOTH
        assert known(trained, key) > 2 * known(judged, key)


def test_a_marker_that_cannot_be_judged_does_not_change_the_usual_parts(element):
    """Unless there is no other."""
    one = element()
    one.activity[:, 2] = np.where(np.arange(100) < 15, POSITIVE, NEGATIVE)
    trained, judged = parts([one], NAMES, 0)
    assert [p.rows.shape for p in (*trained, *judged)] == [(96, 120), (24, 120)]
    assert [p.keys.tolist() for p in (*trained, *judged)] == [[0, 1], [0]]
    one.activity[:, 1] = one.activity[:, 2]
    trained, judged = parts([one], NAMES, 0)
    for key in (0, 1):
        assert kinds(trained, key) == kinds(judged, key) == BOTH


def test_labels_in_a_few_rows_are_parted_among_themselves(element):
    one = element()
    row, _ = row_and_column()
    one.activity[row < 8] = UNDEFINED
    trained, judged = parts([one], NAMES, 0)
    for key in (0, 1):
        assert kinds(trained, key) == kinds(judged, key) == BOTH
        assert known(trained, key) >= 10
        assert 2 <= known(judged, key) <= 10


def test_a_marker_with_a_single_positive_cell_is_trained_on_it(element, caplog):
    """The others are judged, this one is not."""
    one = element()
    one.activity[:, 2] = NEGATIVE
    one.activity[97, 2] = POSITIVE
    with caplog.at_level(logging.INFO, logger="cytonym"):
        trained, judged = parts([one], NAMES, 0)
    assert "Markers whose labels are too few to hold some out: ['CD20']." in caplog.text
    assert (kinds(trained, 0), kinds(judged, 0)) == (BOTH, BOTH)
    assert (kinds(trained, 1), kinds(judged, 1)) == (BOTH, set())
    assert (known(trained, 0), known(judged, 0)) == (80, 20)
    assert known(trained, 1) == 100
    assert [p.markers.shape for p in trained] == [(2, 96, 120), (1, 24, 120)]


def test_nothing_is_held_out_of_very_few_labels(element, caplog):
    one = element()
    one.activity[:98] = UNDEFINED
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        trained, judged = parts([one], NAMES, 0)
    assert "The labels are too few to hold some of both kinds out" in caplog.text
    assert judged == []
    assert judged_tiles(judged, 16, 0) == []
    for key in (0, 1):
        assert kinds(trained, key) == BOTH
        assert known(trained, key) == 2


def test_images_that_are_held_out_leave_both_kinds_to_train_on(element):
    """CD20 is positive in two of ten images, whichever these are."""
    for lit in ((0, 1), (3, 8), (4, 9)):
        found = [element(i, n_side=4) for i in range(10)]
        for one in found:
            one.activity[:, 2] = np.where(one.image in lit, one.activity[:, 2], NEGATIVE)
        trained, judged = parts(found, NAMES, 0)
        assert len(trained) == 8
        assert len(judged) == 2
        assert kinds(trained, 1) == BOTH


def test_elements_of_one_image_are_parted_alike(element):
    """And the cells of one are not between those of the other."""
    whole = element()
    canvas = whole.field.canvas
    left = whole.places[:, 1] < 0.5
    found = []
    for mine in (left, ~left):
        centers = canvas.source.centers[mine]
        source = replace(canvas.source, instance_ids=canvas.source.instance_ids[mine], centers=centers)
        field = replace(whole.field, canvas=Canvas(source, CellMasks(source, 4.0), 1.0))
        found.append(Labelled(field, whole.activity[mine], whole.keys, 0))
    for seed, row in ((0, 96), (1, 96)):
        trained, judged = parts(found, NAMES, seed)
        assert [p.rows.shape for p in trained] == [(row, 120)] * 2
        assert [p.rows.shape for p in judged] == [(120 - row, 120)] * 2
        cells = canvas.masks.read(0, row, 0, 120) >= 0
        for plot in trained:
            assert (plot.rows == FOREIGN).any()
            np.testing.assert_array_equal(plot.rows != -1, cells)
    many = [replace(one, image=i) for i in range(5) for one in found]
    trained, judged = parts(many, NAMES, 0)
    assert (len(trained), len(judged)) == (8, 2)
    assert {(p.rows == FOREIGN).sum() > 0 for p in judged} == {True}


def test_markers_lost_to_memory_are_told(element, monkeypatch, caplog):
    """One square of four fits, which may not be that with the positive cells of CD20."""
    monkeypatch.setattr("cytonym.data.scoring_tiles.PLOT_PX", 60)
    monkeypatch.setattr(_scorer_parts, "PLOT_BYTES", 1)
    one = element()
    row, column = row_and_column()
    one.activity[:, 2] = np.where((row >= 5) & (row < 8) & (column >= 5), POSITIVE, NEGATIVE)
    drawn = [[p.keys.tolist() for p in parts([one], NAMES, seed)[0]] for seed in range(8)]
    assert [[0]] in drawn
    assert [[0, 1], [1]] in drawn  # CD20 is positive in all of this square, and negative in what is held out
    assert "in the pieces of the images that fit into memory, left out: ['CD20']" in caplog.text
    one.activity[:, 1] = UNDEFINED
    with pytest.raises(ValueError, match="No marker has both positive and negative cells in the pieces of the images"):
        parts([one], NAMES, drawn.index([[0]]))


def test_both_kinds():
    activity: Any = np.array([[0, 1, 1], [1, 1, 2], [2, 2, 0]], dtype=np.int8)
    assert both_kinds([(activity, np.array([0, 1, 2]))], ["a", "b", "c"]) == {"a", "c"}
    assert both_kinds([(activity, np.array([-1, 1, 2]))], ["a", "b", "b"]) == {"b"}
    assert both_kinds([(activity[:1], np.array([0, 1, 2])), (activity[1:2], np.array([0, 1, 2]))], ["a", "b", "c"]) == {
        "a"
    }
