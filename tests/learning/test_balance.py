"""Undersampling against the paper's text, and folds that never cut a group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.learning.balance import folds, undersample


def slowly(targets: np.ndarray, rng: np.random.Generator, target: int | None = None) -> list[int]:
    """The steps of the paper, cell by cell, with the same draws."""
    cells = range(len(targets))
    carriers = {k: {i for i in cells if targets[i, k]} for k in range(targets.shape[1])}
    order = sorted((k for k in carriers if carriers[k]), key=lambda k: (len(carriers[k]), k))  # 1: rarest first
    if not order:
        return list(cells)
    wanted = len(carriers[order[0]]) if target is None else target  # 2
    chosen: set[int] = set()
    pool = set(cells)
    for k in order:  # 3
        lacking = wanted - len(chosen & carriers[k])
        candidates = rng.permutation(np.array(sorted((pool - chosen) & carriers[k]), dtype=int)).tolist()
        while lacking > 0 and candidates:
            chosen.add(candidates.pop(0))
            lacking -= 1
        pool -= carriers[k] - chosen
    nothing = rng.permutation(np.array(sorted(pool - chosen), dtype=int))  # 4
    assert not targets[nothing].any()
    return sorted(chosen | set(nothing[:wanted].tolist()))


@st.composite
def labels(draw) -> np.ndarray:
    """0/1 labels of some cells, with classes that are rare, common, empty or nested in one another."""
    n, k = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    found = (rng.random((n, k)) < rng.choice([0, 0.05, 0.3, 0.8], k)).astype(int)
    if k > 1 and draw(st.booleans()):
        found[:, 0] |= found[:, 1]
    if draw(st.booleans()):
        found[np.arange(n), rng.integers(0, k, n)] = 1  # no cell without a class
    return found


@settings(max_examples=200, deadline=None)
@given(targets=labels(), seed=st.integers(0, 99), target=st.sampled_from([None, 1, 3, 20]))
def test_equals_the_steps_of_the_paper(targets, seed, target):
    found = undersample(targets, np.random.default_rng(seed), target)
    assert found.dtype == np.int64
    assert found.tolist() == slowly(targets, np.random.default_rng(seed), target)


@settings(max_examples=200, deadline=None)
@given(targets=labels(), seed=st.integers(0, 99), target=st.sampled_from([None, 2, 500]))
def test_what_holds_whatever_is_drawn(targets, seed, target):
    """A chosen cell was chosen for its rarest class; each class then has what it lacked, as far as there were cells."""
    chosen = undersample(targets, np.random.default_rng(seed), target)
    counts = targets.sum(axis=0)
    assert len(set(chosen)) == len(chosen)
    if not counts.any():
        assert len(chosen) == len(targets)
        return
    order = sorted(np.flatnonzero(counts), key=lambda k: (counts[k], k))
    wanted = counts[order[0]] if target is None else target
    rarest = np.array([next((k for k in order if row[k]), -1) for row in targets])
    for place, k in enumerate(order):
        before = sum(int(targets[i, k]) for i in chosen if rarest[i] in order[:place])
        own = int((rarest[chosen] == k).sum())
        assert own == min(max(0, wanted - before), int((rarest == k).sum()))
    assert (rarest[chosen] == -1).sum() == min(wanted, (rarest == -1).sum())


def test_single_labels_end_up_even():
    targets = np.eye(3, dtype=int)[np.repeat([0, 1, 2], [40, 7, 25])]
    for seed in range(5):
        chosen = undersample(targets, np.random.default_rng(seed))
        assert targets[chosen].sum(axis=0).tolist() == [7, 7, 7]
        assert set(range(40, 47)) <= set(chosen)  # all of the rarest
    assert targets[undersample(targets, np.random.default_rng(0), 500)].sum(axis=0).tolist() == [40, 7, 25]


def test_overlap_by_hand():
    """Rarest A: 2 cells, one of them also B. B lacks one more: one of its others. The rest of B is out of C's reach."""
    targets = np.array(
        [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    )
    seen = set()
    for seed in range(60):
        chosen = undersample(targets, np.random.default_rng(seed)).tolist()
        assert chosen[:2] == [0, 1]
        assert len({2, 3} & set(chosen)) == 1
        assert len({4, 5, 6} & set(chosen)) == 1  # the cell that came for B counts for C
        assert len({7, 8, 9} & set(chosen)) == 2
        seen |= set(chosen)
    assert seen == set(range(10))  # every cell has its chance


def test_any_kind_of_zeros_and_ones():
    targets = np.eye(2, dtype=int)[np.repeat([0, 1], [3, 9])]
    expected = undersample(targets, np.random.default_rng(0))
    for dtype in (bool, np.float32, np.uint8):
        np.testing.assert_array_equal(undersample(targets.astype(dtype), np.random.default_rng(0)), expected)
    assert undersample(np.zeros((4, 2)), np.random.default_rng(0)).tolist() == [0, 1, 2, 3]  # nothing to balance by


# --- folds ---


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 80), k=st.integers(1, 6), n_folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_single_cells_are_dealt_out_evenly(n, k, n_folds, seed):
    strata = np.random.default_rng(seed).integers(0, k, n) * 7 - 3  # any numbers
    fold = folds(strata, None, n_folds, np.random.default_rng(seed))
    assert fold.shape == (n,)
    for rows in [strata == s for s in np.unique(strata)] + [np.ones(n, dtype=bool)]:
        counts = np.bincount(fold[rows], minlength=n_folds)
        assert len(counts) == n_folds
        assert counts.max() - counts.min() <= 1


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 80), k=st.integers(1, 6), n_groups=st.integers(1, 12), n_folds=st.integers(2, 6),
    seed=st.integers(0, 99), pure=st.booleans(),
)  # fmt: skip
def test_groups_are_never_cut(n, k, n_groups, n_folds, seed, pure):
    rng = np.random.default_rng(seed)
    groups = np.array([f"patient {g}" for g in rng.integers(0, n_groups, n)])
    strata = np.unique(groups, return_inverse=True)[1] % k if pure else rng.integers(0, k, n)
    fold = folds(strata, groups, n_folds, np.random.default_rng(seed))
    assert fold.shape == (n,)
    for group in np.unique(groups):
        assert len(np.unique(fold[groups == group])) == 1
    expected = min(n_folds, len(np.unique(groups)))
    assert set(fold) == set(range(expected))  # none is empty
    assert np.array_equal(fold, folds(strata, groups, n_folds, np.random.default_rng(seed)))


def test_groups_of_one_class_each_do_not_fall_together():
    assert folds(np.array([0, 0, 1, 1]), np.array(["p", "p", "q", "q"]), 5, np.random.default_rng(0)).tolist() in (
        [0, 0, 1, 1], [1, 1, 0, 0],
    )  # fmt: skip
    strata = np.repeat(np.arange(4), 25)
    fold = folds(strata, strata, 4, np.random.default_rng(0))
    assert np.bincount(fold).tolist() == [25] * 4


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_evenly_spread_over_folds_of_groups(seed):
    """40 patients of unlike size and composition, five folds: each has about a fifth of every class."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 60, 40)
    groups = np.repeat(np.arange(40), sizes)
    strata = np.concatenate([rng.choice(4, s, p=rng.dirichlet([0.5, 0.5, 0.5, 0.5])) for s in sizes])
    fold = folds(strata, groups, 5, np.random.default_rng(seed))
    for k in range(4):
        share = np.bincount(fold[strata == k], minlength=5) / (strata == k).sum()
        assert share.min() > 0.12
        assert share.max() < 0.28
    by_chance = rng.integers(0, 5, 40)[groups]
    spread = [np.mean([np.bincount(f[strata == k], minlength=5).std() for k in range(4)]) for f in (fold, by_chance)]
    assert spread[0] < 0.5 * spread[1]
