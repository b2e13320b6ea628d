"""Cells drawn by weight and distance."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.learning.spread import draw_apart


def slowly(points, known, weight, n, rng, worth):
    """The same, looking at all distances each time."""
    drawn = []
    for _ in range(min(n, len(points))):
        there = [*known, *points[drawn]]
        near = np.array([min((((p - q) ** 2).sum() for q in there), default=1.0) for p in points])
        share = np.where(np.isin(np.arange(len(points)), drawn), 0.0, weight * worth(near))
        if not share.any():
            share = np.where(np.isin(np.arange(len(points)), drawn), 0.0, weight)
        edge = rng.random() * share.sum()
        drawn.append(int(np.flatnonzero(np.cumsum(share) > edge)[0]))
    return drawn


@given(
    points=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
    known=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4),
    n=st.integers(1, 14),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_draws_are_those_of_a_plain_loop(points, known, n, seed):
    points, known = np.array(points, float), np.array(known, float).reshape(-1, 2)
    weight = np.random.default_rng(seed).integers(1, 5, len(points)).astype(float)
    given_weight = weight.copy()
    found = draw_apart(points, known, weight, n, np.random.default_rng(seed), lambda squared: squared)
    assert found.tolist() == slowly(points, known, weight, n, np.random.default_rng(seed), lambda squared: squared)
    assert len(set(found.tolist())) == len(found) == min(n, len(points))
    np.testing.assert_array_equal(weight, given_weight)  # what was given stays as it is


def test_far_cells_are_drawn_more_often_and_known_ones_hardly():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0]])
    firsts = [
        int(draw_apart(points, points[:1], np.ones(3), 1, np.random.default_rng(seed), lambda squared: squared)[0])
        for seed in range(50)
    ]
    assert firsts.count(2) >= 48
    assert firsts.count(0) == 0
