"""Which labelled cells to learn from, and which to keep aside."""

from __future__ import annotations

import numpy as np


def undersample(targets: np.ndarray, rng: np.random.Generator, target: int | None = None) -> np.ndarray:
    """Rows of a balanced part of cells with several labels each (CLEAR-IT, supplementary information).

    Classes are taken from the rarest to the commonest. Of the rarest all cells are taken; their number is T. For each further
    class, cells that were already chosen and carry it count; what lacks to T is drawn at random from the candidates that carry
    it, and its other cells are candidates no more. At the end T of the candidates that are left without any class join.

    Parameters
    ----------
    targets
        0 or 1 for each of n cells and K classes [n, K].
    rng
        Source of the draws.
    target
        T. Default: the number of cells of the rarest class that has any. The paper takes 500 for single patients; a class
        that has fewer gives what it has.

    Returns
    -------
    int64 [m], sorted.

    Examples
    --------
    >>> targets = np.repeat(np.eye(2, 2, dtype=int), [3, 9], axis=0)
    >>> targets[undersample(targets, np.random.default_rng(0))].sum(axis=0)
    array([3, 3])
    """
    carries = np.asarray(targets) > 0
    counts = carries.sum(axis=0)
    order = [int(k) for k in np.argsort(counts, kind="stable") if counts[k]]
    if not order:
        return np.arange(len(carries))
    wanted = int(counts[order[0]]) if target is None else int(target)
    chosen = np.zeros(len(carries), dtype=bool)
    candidate = np.ones(len(carries), dtype=bool)
    for k in order:
        lacking = wanted - int((chosen & carries[:, k]).sum())
        pool = np.flatnonzero(candidate & ~chosen & carries[:, k])
        chosen[rng.permutation(pool)[: max(0, lacking)]] = True
        candidate[carries[:, k]] = False
    without = np.flatnonzero(candidate & ~chosen & ~carries.any(axis=1))
    chosen[rng.permutation(without)[:wanted]] = True
    return np.flatnonzero(chosen)


def folds(strata: np.ndarray, groups: np.ndarray | None, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold of each cell [n], 0 to at most n_folds - 1: classes are shared out evenly, groups are never cut.

    Parameters
    ----------
    strata
        Class of each cell [n].
    groups
        Patient of each cell [n]; None deals out single cells.
    n_folds
        Largest number of folds. Fewer are made where there are fewer groups.
    rng
        Source of the draws.

    Examples
    --------
    >>> folds(np.array([0, 0, 1, 1]), np.array(["p", "p", "q", "q"]), 5, np.random.default_rng(0))
    array([0, 0, 1, 1])
    """
    strata = np.unique(strata, return_inverse=True)[1]
    if groups is None:
        fold = np.empty(len(strata), dtype=np.int64)
        place = 0
        for k in np.unique(strata):
            rows = rng.permutation(np.flatnonzero(strata == k))
            fold[rows] = (place + np.arange(len(rows))) % n_folds
            place += len(rows)
        return fold
    _, group = np.unique(groups, return_inverse=True)
    table = np.zeros((group.max() + 1, strata.max() + 1))
    np.add.at(table, (group, strata), 1)
    size = table.sum(axis=1, keepdims=True) / len(strata)
    share = np.hstack([table / table.sum(axis=0), 0.01 * size])  # the last one decides between folds that lack the same
    n_folds = min(n_folds, len(table))
    held = np.zeros((n_folds, share.shape[1]))
    of_group = np.empty(len(table), dtype=np.int64)
    order = rng.permutation(len(table))
    order = order[np.argsort(-share[order].max(axis=1), kind="stable")]
    for g in order:  # the heaviest first, each where it is missed most
        best = int(np.argmin([((held[f] + share[g]) ** 2).sum() - (held[f] ** 2).sum() for f in range(n_folds)]))
        of_group[g] = best
        held[best] += share[g]
    return of_group[group]
