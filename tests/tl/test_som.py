"""The map: its size, its nodes, and which cell goes where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytonym.tl import _som as module


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5000))
def test_a_grid_never_has_more_nodes_than_cells(rows, columns, n_cells):
    used = module.fitting_grid((rows, columns), n_cells)
    assert 1 <= used[0] <= rows
    assert 1 <= used[1] <= columns
    assert used[0] * used[1] <= n_cells
    if rows * columns <= n_cells:
        assert used == (rows, columns)


@pytest.mark.parametrize(("n_cells", "used"), [(20, (4, 5)), (25, (5, 5)), (399, (19, 20)), (400, (20, 20))])
def test_small_tables_keep_most_nodes(n_cells, used):
    assert module.fitting_grid((20, 20), n_cells) == used


def test_cells_go_to_the_nearest_node(monkeypatch):
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(50, 3)).astype("f4"), rng.normal(size=(7, 3))
    slow = [int(np.argmin([np.sum((p.astype(float) - w) ** 2) for w in weights])) for p in points]
    assert module.nearest_node(points, weights).tolist() == slow
    monkeypatch.setattr(module, "BLOCK", 8)
    assert module.nearest_node(points, weights).tolist() == slow
    means, row = module.node_means(points, np.array(slow))
    used = sorted(set(slow))
    np.testing.assert_allclose(means, [points[np.array(slow) == node].mean(axis=0) for node in used], rtol=1e-5)
    assert [used[r] for r in row] == slow


def test_neighbours_on_the_map_are_alike_and_nodes_lie_among_the_cells():
    points = np.random.default_rng(0).random((2000, 2)).astype("f4")
    weights = module.train_map(points, (6, 5), np.random.default_rng(1))
    assert weights.shape == (30, 2)
    assert weights.min() > 0
    assert weights.max() < 1
    map_ = weights.reshape(6, 5, 2)
    beside = np.linalg.norm(np.diff(map_, axis=0), axis=2).mean() + np.linalg.norm(np.diff(map_, axis=1), axis=2).mean()
    anywhere = np.linalg.norm(weights[:, None] - weights, axis=2).mean()
    assert beside / 2 < anywhere / 2
    distance = np.linalg.norm(points - weights[module.nearest_node(points, weights)], axis=1).mean()
    assert distance < 0.12  # 30 squares of equal size would have 0.07


def test_large_tables_train_on_a_sample_and_a_map_has_its_own_generator(monkeypatch):
    points = np.random.default_rng(0).random((500, 3)).astype("f4")
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = module.train_map(points, (3, 3), np.random.default_rng(1))
    np.testing.assert_array_equal(whole, module.train_map(points, (3, 3), np.random.default_rng(1)))
    assert not np.array_equal(whole, module.train_map(points, (3, 3), np.random.default_rng(2)))
    monkeypatch.setattr(module, "TRAIN_CELLS", 200)
    part = module.train_map(points, (3, 3), np.random.default_rng(1))
    assert not np.array_equal(part, whole)
    drawn = np.sort(np.random.default_rng(1).choice(500, 200, replace=False))
    points[np.setdiff1d(np.arange(500), drawn)] = 9
    np.testing.assert_array_equal(part, module.train_map(points, (3, 3), np.random.default_rng(1)))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (5, 1)])
def test_maps_of_one_row(grid):
    weights = module.train_map(np.random.default_rng(0).random((20, 1)), grid, np.random.default_rng(0))
    assert weights.shape == (grid[0] * grid[1], 1)
