"""Which cell a pixel belongs to: by labels of any kind, or by discs where there are only points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import find_boundaries

from cytonym.data import cell_masks
from cytonym.data.cell_masks import NOBODY, CellMasks
from cytonym.data.labels import LabelGrid, label_centroids


@pytest.fixture(scope="module")
def labelled(make_source):
    """Masks of a label image, on an image of its size or another."""

    def make(labels: np.ndarray, shape: tuple[int, int] | None = None, rows: np.ndarray | None = None) -> CellMasks:
        ids, xy = label_centroids(labels)
        source = make_source(np.zeros((1, *(shape or labels.shape)), "u1"), xy[:, ::-1])
        grid = LabelGrid(labels, source.shape[1:], np.eye(3))
        source = replace(source, kind="labels", instance_ids=ids, labels=grid)
        return CellMasks(source if rows is None else source.subset(rows), 3.0)

    return make


def touching(shape: tuple[int, int], n: int, seed: int) -> np.ndarray:
    """Labels 1 … n without a gap between the cells."""
    rng = np.random.default_rng(seed)
    seeds = rng.uniform(0, shape, (n, 2))
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return 1 + ((at[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)


# --- labels ---


@pytest.mark.parametrize(
    ("dtype", "first"),
    [("u1", 3), ("i4", 70_000), ("u4", 2**31 + 5), ("i8", 2**33), ("u8", 2**60), ("u8", 2**63 + 9), (">u4", 2**31)],
)
def test_ids_with_gaps_of_any_size(labelled, monkeypatch, dtype, first):
    """Also neighbouring ids that a float could not tell apart."""
    monkeypatch.setattr(cell_masks, "STRIP_PX", 7)
    old = touching((20, 30), 12, 0) * (np.random.default_rng(1).random((20, 30)) < 0.7)
    gaps = [0, 1, 2, 9, 10, 30, 31, 55, 90, 91, 92, 200]
    ids = np.array([0] + [first + g for g in gaps], dtype=dtype)
    order = np.random.default_rng(2).permutation(12)
    masks = labelled(ids[old], rows=order)
    assert masks.from_labels
    rows = masks.read(0, 20, 0, 30)
    assert rows.dtype == np.int32
    for row, i in enumerate(order):
        assert masks.source.instance_ids[row] == ids[i + 1]
        np.testing.assert_array_equal(rows == row, old == i + 1)
    np.testing.assert_array_equal(rows == NOBODY, old == 0)
    np.testing.assert_array_equal(masks.read(5, 11, 7, 29), rows[5:11, 7:29])


@pytest.mark.parametrize("shape", [(14, 25), (9, 8)])
def test_labels_smaller_and_larger_than_the_image(labelled, shape):
    labels = touching((12, 10), 5, 3)
    rows = labelled(labels, shape).read(0, shape[0], 0, shape[1])
    inside = labels[: shape[0], : shape[1]]
    np.testing.assert_array_equal(rows[:12, :10], inside - 1)
    assert (rows[12:] == NOBODY).all()
    assert (rows[:, 10:] == NOBODY).all()


def test_pixels_of_cells_without_a_row_are_nobodys(labelled):
    labels = touching((15, 15), 6, 0)
    rows = labelled(labels, rows=np.array([4, 1])).read(0, 15, 0, 15)
    np.testing.assert_array_equal(rows, np.select([labels == 5, labels == 2], [0, 1], NOBODY))
    nobody = labelled(labels, rows=np.empty(0, int)).read(0, 15, 0, 15)
    assert (nobody == NOBODY).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    n=st.integers(1, 40),
    gaps=st.floats(0, 1),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_interior_is_what_inner_boundaries_leave(labelled, shape, n, gaps, seed, data):
    """With touching cells, cells of one pixel and gaps; the image's frame is no boundary; boxes are parts of the whole."""
    labels = touching(shape, n, seed) * (np.random.default_rng(seed).random(shape) >= gaps * (seed % 3 > 0))
    masks = labelled(labels)
    whole = masks.interior(0, shape[0], 0, shape[1])
    expected = (labels > 0) & ~find_boundaries(labels, mode="inner", connectivity=1)
    np.testing.assert_array_equal(whole, expected)
    (y0, y1), (x0, x1) = (sorted(data.draw(st.tuples(st.integers(0, s - 1), st.integers(1, s)))) for s in shape)
    y1, x1 = max(y1, y0 + 1), max(x1, x0 + 1)
    np.testing.assert_array_equal(masks.interior(y0, y1, x0, x1), whole[y0:y1, x0:x1])


def test_one_cell_in_the_whole_image_has_no_boundary(labelled):
    assert labelled(np.full((6, 9), 4)).interior(0, 6, 0, 9).all()


def test_cells_of_one_pixel_have_no_interior(labelled):
    masks = labelled(np.arange(1, 31).reshape(5, 6))
    assert not masks.interior(0, 5, 0, 6).any()
    assert sorted(masks.read(0, 5, 0, 6).ravel()) == list(range(30))


def test_where_the_labels_end_is_a_boundary(labelled):
    inner = labelled(np.ones((8, 8), int), (12, 12)).interior(0, 12, 0, 12)
    expected = np.zeros((12, 12), bool)
    expected[:7, :7] = True
    np.testing.assert_array_equal(inner, expected)


# --- discs ---


def slow_discs(centers: np.ndarray, radius: float, shape: tuple[int, int]) -> np.ndarray:
    rows = np.full(shape, NOBODY)
    for y in range(shape[0]):
        for x in range(shape[1]):
            away = np.hypot(*(centers - (y + 0.5, x + 0.5)).T)
            away[np.isnan(away)] = np.inf
            if len(away) and away.min() <= radius:
                rows[y, x] = away.argmin()
    return rows


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    radius=st.floats(0.3, 9),
    seed=st.integers(0, 999),
    lost=st.integers(0, 3),
    box=st.tuples(st.integers(0, 16), st.integers(1, 7), st.integers(0, 20), st.integers(1, 9)),
)
def test_discs_end_where_a_nearer_cell_begins(make_source, n, radius, seed, lost, box):
    """Cells outside reach in, those without a place do not count, and boxes are parts of the whole."""
    centers = np.random.default_rng(seed).uniform(-6, 35, (n, 2))
    centers[: min(lost, n - 1)] = np.nan
    masks = CellMasks(make_source(np.zeros((1, 23, 29)), centers), radius)
    assert not masks.from_labels
    expected = slow_discs(centers, radius, (23, 29))
    np.testing.assert_array_equal(masks.read(0, 23, 0, 29), expected)
    y, h, x, w = box
    np.testing.assert_array_equal(masks.read(y, y + h, x, x + w), expected[y : y + h, x : x + w])


def test_ties_do_not_depend_on_the_order_of_rows(make_source):
    """Pixels midway between cells, and cells at the same place."""
    grid = np.stack(np.meshgrid(np.arange(2.0, 30, 4), np.arange(2.0, 30, 4), indexing="ij"), axis=-1).reshape(-1, 2)
    centers = np.concatenate([grid, grid[::3], grid[::6]])
    source = make_source(np.zeros((1, 32, 32)), centers)
    found = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(centers))
        masks = CellMasks(source.subset(order), 6.0)
        rows = masks.read(0, 32, 0, 32)
        found.append(np.where(rows < 0, NOBODY, masks.source.instance_ids[rows]))
        np.testing.assert_array_equal(masks.read(7, 19, 3, 30), rows[7:19, 3:30])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_ids_of_discs_may_be_text(make_source):
    source = make_source(np.zeros((1, 9, 9)), [[4.5, 4.5], [4.5, 4.5]])
    found = set()
    for order in ([0, 1], [1, 0]):
        masks = CellMasks(replace(source, instance_ids=np.array(["b", "a"], object)).subset(order), 2.0)
        found.add(masks.source.instance_ids[masks.read(4, 5, 4, 5)[0, 0]])
    assert found == {"a"} or found == {"b"}


def test_no_cell_near(make_source):
    masks = CellMasks(make_source(np.zeros((1, 9, 9)), [[500.0, 3.0]]), 2.0)
    assert (masks.read(0, 9, 0, 9) == NOBODY).all()
    assert not masks.interior(0, 9, 0, 9).any()
