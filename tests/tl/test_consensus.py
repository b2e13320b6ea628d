"""Consensus clustering against the obvious way, and what must hold for any profiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import adjusted_rand_score

from cytonym.tl._consensus import capped_zscores, consensus_clusters, consensus_matrix

profiles = arrays(np.float64, st.tuples(st.integers(1, 14), st.integers(1, 4)), elements=st.integers(-4, 4))


def slow_consensus(points: np.ndarray, drawn: np.ndarray, n_clusters: int) -> np.ndarray:
    found = np.eye(len(points))
    for i in range(len(points)):
        for j in range(len(points)):
            both = same = 0
            for nodes in drawn.tolist():
                if i in nodes and j in nodes:
                    labels = cut_tree(linkage(points[nodes], "average"), n_clusters).ravel()
                    both += 1
                    same += labels[nodes.index(i)] == labels[nodes.index(j)]
            if i != j:
                found[i, j] = same / both if both else 0
    return found


@pytest.mark.parametrize("n_clusters", [2, 5])
def test_matrix_equals_the_slow_way(n_clusters):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(15, 3))
    drawn = np.stack([rng.permutation(15)[:9] for _ in range(8)])
    found = consensus_matrix(squareform(pdist(points)), drawn, n_clusters)
    np.testing.assert_allclose(found, slow_consensus(points, drawn, n_clusters))
    assert ((found > 0) & (found < 1)).any()  # not clear-cut


def test_clusters_equal_the_slow_way():
    values = np.random.default_rng(1).normal(size=(40, 3))
    values[0, 0] = 50  # beyond the cap
    found = consensus_clusters(values, 6, np.random.default_rng(2))
    points = np.clip((values - values.mean(axis=0)) / values.std(axis=0), -3, 3)
    drawn = np.random.default_rng(2).permuted(np.tile(np.arange(40), (100, 1)), axis=1)[:, :32]
    assert np.unique(np.sort(drawn, axis=1), axis=0).shape == (100, 32)
    apart = 1 - consensus_matrix(squareform(pdist(points)), drawn, 6)
    slow = cut_tree(linkage(apart[np.triu_indices(40, 1)], "average"), 6).ravel()
    assert adjusted_rand_score(found, slow) == 1.0


def test_finds_clear_groups_in_any_order():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), [30, 20, 12, 3])
    values = rng.normal(scale=0.1, size=(65, 5)) + 3 * np.eye(4, 5)[truth]
    order = rng.permutation(65)
    for seed in range(3):
        found = consensus_clusters(values[order], 4, np.random.default_rng(seed))
        assert adjusted_rand_score(truth[order], found) == 1.0


def test_same_seed_same_clusters_and_no_global_state():
    values = np.random.default_rng(0).normal(size=(60, 4))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = consensus_clusters(values, 7, np.random.default_rng(3))
    np.testing.assert_array_equal(first, consensus_clusters(values, 7, np.random.default_rng(3)))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@settings(max_examples=30)
@given(profiles, st.integers(2, 6))
def test_as_many_clusters_as_asked_for(values, n_clusters):
    found = consensus_clusters(values, n_clusters, np.random.default_rng(0))
    assert found.shape == (len(values),)
    assert sorted(set(found.tolist())) == list(range(min(n_clusters, len(values))))


@given(st.integers(3, 12), st.integers(2, 3), st.integers(0, 50))
def test_matrix_is_symmetric_and_a_share(n, n_clusters, seed):
    rng = np.random.default_rng(seed)
    distances = squareform(pdist(rng.integers(0, 4, (n, 2))))
    drawn = rng.permuted(np.tile(np.arange(n), (4, 1)), axis=1)[:, : max(n_clusters, n - 2)]
    found = consensus_matrix(distances, drawn, n_clusters)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)
    assert (found >= 0).all()
    assert (found <= 1).all()


@given(profiles, st.integers(-2, 3), st.integers(-8, 8))
def test_zscores_do_not_know_the_scale(values, power, shift):
    scores = capped_zscores(values)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() <= 3
    np.testing.assert_allclose(scores[:, np.ptp(values, axis=0) == 0], 0)
    np.testing.assert_allclose(capped_zscores(values * 2.0**power + shift), scores, atol=1e-9)
