"""How good a classifier gets with how many labels."""

from __future__ import annotations

import logging
from math import comb
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from cytonym._shared import RNG, document, seed_of
from cytonym.learning.balance import folds
from cytonym.learning.engine import progress_bar
from cytonym.tl._fit_classifier import check_apart, held_out
from cytonym.tl._heads import BALANCES, HELD_OUT, SCHEDULES, fit_head, keep_every_class, scores
from cytonym.tl._numbers import gather, maps_keys
from cytonym.tl._targets import Targets, read_groups, read_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cytonym.learning.supervise import Schedule

logger = logging.getLogger("cytonym")

SCORES = ("macro_f1", "micro_f1", "pr_auc", "ece")
TRIES = 50  # random sets of patients for each one wanted, before the search for further ones ends


@document(rng=RNG)
def label_budget(
    adata: AnnData,
    label_key: str | Sequence[str],
    model: str = "logistic",
    *,
    use_rep: str | Sequence[str] | None = None,
    groups: str | None = None,
    unit: Literal["cells", "groups"] = "cells",
    fractions: Sequence[float] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0),
    n_draws: int = 10,
    test: str | None = None,
    multilabel: bool = False,
    balance: Literal["weights", "undersample", "none"] = "weights",
    schedule: Schedule | None = None,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """How much more labelling would buy: scores of classifiers trained on fewer labels than there are.

    Some labelled cells are kept for testing. Of the others random parts are drawn, a classifier is trained on each part, and
    scored on the test cells; their labels serve nothing else (CLEAR-IT's cell and patient reduction). Where the curve is
    still rising at its end, more labels help. `pl.label_budget` draws it.

    Parameters
    ----------
    adata
        Table with labels. Nothing is written to it.
    label_key, use_rep, groups, multilabel, balance, schedule
        See `fit_classifier`.
    model
        A method on numbers of a table: `"logistic"`, `"linear"`, `"mlp4"` or `"maps"`.
    unit
        What is drawn: `"cells"`, of all patients alike, or `"groups"`, all labelled cells of some patients.
    fractions
        Parts of the labelled cells, or patients, that are left after the test. Fractions that come to the same number are
        done once.
    n_draws
        Random parts of each size, 10 as in the paper. Parts of cells have at least one cell of each class and grow: a larger
        one contains the smaller one of the same draw. Sets of patients differ from one another; there are fewer draws where
        there are fewer sets.
    test
        Boolean column of `obs` with the cells to test on; a patient with cells on both sides is an error. Default: one
        labelled cell in five, or the patients of one fold in five.
    {rng}
        The parts that are drawn do not depend on `model`, so that two curves can be compared, nor on the order of the rows.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.

    Returns
    -------
    DataFrame
        One row a classifier: `unit`, `fraction`, `n_cells` and `n_groups` that it learned from, `draw`, and on the test cells
        `macro_f1`, `micro_f1`, `pr_auc` (average precision of all test cells, mean over their classes) and `ece` (calibration
        error). `attrs` hold `model`, `label_key`, `use_rep`, `seed`, `n_test` and `n_classes`.

    Raises
    ------
    KeyError
        A column, key or method is unknown.
    ValueError
        A fraction outside 0 to 1, too few labelled cells to test on, patients on both sides of `test`, or a single patient
        to draw from.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=200, n_samples=2, size_px=128, rng=0)
    >>> cy.pp.measure_cells(sdata)
    >>> budget = cy.tl.label_budget(sdata["table"], "cell_type", fractions=[0.2, 1.0], n_draws=2)
    >>> budget[["n_cells", "n_groups", "draw"]].to_numpy().tolist()
    [[40, 1, 0], [40, 1, 1], [200, 1, 0]]
    """
    _check(model, unit, fractions, n_draws, balance)
    seed = seed_of(rng)
    targets = read_targets(adata, label_key, multilabel=multilabel)
    if use_rep is None and model == "maps":
        use_rep = maps_keys(adata)
    numbers = gather(adata, use_rep)
    rows = np.intersect1d(targets.known, np.flatnonzero(numbers.complete))
    rows = rows[np.argsort(adata.obs_names.to_numpy(dtype=str)[rows], kind="stable")]  # whatever the order of the table
    key, patients = read_groups(adata, groups, rows)
    kept = _test_cells(adata, targets, rows, patients, test, groups, seed)
    pool = rows[~kept]
    tested = _of_known_classes(targets, rows[kept], pool)
    if len(tested) < 2 or (targets.one_hot(pool).any(axis=0).sum() < 2 and not targets.multilabel):
        msg = (
            f"Too few labelled cells: {len(pool):,} to learn from and {int(kept.sum()):,} to test on, of {len(targets.classes)} "
            f"classes in {label_key!r}, and {len(tested):,} of the latter of classes that can be learned. Two classes to learn from and two cells to test on are the least."
        )
        raise ValueError(msg)
    pool_patients = patients[~kept] if patients is not None else None
    parts = _parts_of_cells(targets, pool, fractions, n_draws, seed)
    if unit == "groups":
        parts = _parts_of_groups(targets, pool, pool_patients, fractions, n_draws, seed, key)
    sizes = [len(part) for _, _, part in parts]
    logger.info(
        "Training %d classifiers on %d to %d labelled cells, each scored on the same %d others.",
        len(parts), min(sizes), max(sizes), len(tested),
    )  # fmt: skip
    found = []
    with progress_bar("label budget", sum(sizes), "cell", show=True) as bar:
        for fraction, draw, at in parts:
            row, theirs = pool[at], pool_patients[at] if pool_patients is not None else None
            n_groups = len(np.unique(theirs)) if theirs is not None else 1
            fitted = fit_head(
                numbers, targets, row, theirs if n_groups > 1 else None, head=model, balance=balance, schedule=schedule,
                seed=seed, device=device, progress=False,
            )  # fmt: skip
            with torch.no_grad():
                logits = fitted.model(torch.from_numpy(numbers.values[tested]))
            told = scores(fitted.model, logits, targets, tested)
            found.append((unit, fraction, len(row), n_groups, draw, *(told[name] for name in SCORES)))
            bar.update(len(row))
    frame = pd.DataFrame(found, columns=["unit", "fraction", "n_cells", "n_groups", "draw", *SCORES])
    frame.attrs = {
        "model": model,
        "label_key": label_key if isinstance(label_key, str) else list(label_key),
        "use_rep": list(numbers.keys),
        "seed": seed,
        "n_test": len(tested),
        "n_classes": int(targets.one_hot(tested).any(axis=0).sum()),
    }
    return frame


def _check(model: Any, unit: str, fractions: Sequence[float], n_draws: int, balance: str) -> None:
    """Arguments that need no data."""
    for name, value, known in (("unit", unit, ("cells", "groups")), ("balance", balance, BALANCES)):
        if value not in known:
            msg = f"Unknown {name} {value!r}. Available: {list(known)}."
            raise ValueError(msg)
    if model not in SCHEDULES:
        msg = f"No classifier {model!r} on numbers of a table. Available: {list(SCHEDULES)}."
        raise KeyError(msg)
    wrong = [f for f in fractions if not 0 < f <= 1]
    if wrong or not len(fractions):
        msg = f"`fractions` must be above 0 and at most 1, got {wrong or list(fractions)}. 0.1 is a tenth of the labelled cells."
        raise ValueError(msg)
    if n_draws < 1:
        msg = f"`n_draws` must be at least 1, got {n_draws}."
        raise ValueError(msg)


def _test_cells(
    adata: AnnData,
    targets: Targets,
    rows: np.ndarray,
    patients: np.ndarray | None,
    test: str | None,
    groups: str | None,
    seed: int,
) -> np.ndarray:
    """Which labelled rows are kept for testing: bool [n]."""
    if test is not None:
        kept = held_out(adata, test)[rows]
        check_apart(adata, rows[~kept], rows[kept], groups)
        return kept
    kept = folds(targets.strata(rows), patients, HELD_OUT, np.random.default_rng(seed)) == 0
    return kept if patients is not None else keep_every_class(targets, rows, kept)


def _of_known_classes(targets: Targets, tested: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The test cells without those of classes that no cell to learn from has."""
    one_hot = targets.one_hot(tested)
    lost = one_hot.any(axis=0) & ~targets.one_hot(pool).any(axis=0)
    unseen = one_hot[:, lost].any(axis=1)
    if unseen.any():
        names = [targets.classes[k] for k in np.flatnonzero(lost)]
        logger.warning("%d test cells of classes that none of the others has are left out: %s.", unseen.sum(), names)
    return tested[~unseen]


def _sizes(fractions: Sequence[float], n: int, least: int) -> dict[int, float]:
    """Number of cells or patients -> the largest fraction that comes to it."""
    return {min(n, max(least, round(f * n))): float(f) for f in sorted(fractions)}


def _parts_of_cells(
    targets: Targets, pool: np.ndarray, fractions: Sequence[float], n_draws: int, seed: int
) -> list[tuple[float, int, np.ndarray]]:
    """Fraction, draw and places in `pool`: first one cell of each class, then the others at random."""
    strata = targets.strata(pool)
    sizes = _sizes(fractions, len(pool), len(np.unique(strata)))
    parts = []
    for draw in range(n_draws):
        order = np.random.default_rng((seed, 0, draw)).permutation(len(pool))
        first = np.sort(np.unique(strata[order], return_index=True)[1])
        order = np.concatenate([order[first], np.delete(order, first)])
        parts += [(f, draw, np.sort(order[:n])) for n, f in sizes.items() if n < len(pool) or not draw]
    return sorted(parts, key=lambda part: (part[0], part[1]))


def _parts_of_groups(
    targets: Targets,
    pool: np.ndarray,
    patients: np.ndarray | None,
    fractions: Sequence[float],
    n_draws: int,
    seed: int,
    key: str | None,
) -> list[tuple[float, int, np.ndarray]]:
    """Fraction, draw and places in `pool` of all cells of some patients."""
    names = np.unique(patients) if patients is not None else np.array(["all"])
    if patients is None or len(names) < 2:
        where = f"`obs[{key!r}]`" if key else "the table"
        msg = (
            f"`unit='groups'` draws whole patients, but {where} has {len(names)} to draw from beside the test cells. Name the "
            "column with the patients with `groups`, label cells of more of them, or draw cells with `unit='cells'`."
        )
        raise ValueError(msg)
    parts = []
    for i, (k, fraction) in enumerate(_sizes(fractions, len(names), 1).items()):
        found: dict[tuple[int, ...], np.ndarray] = {}
        for chosen in _random_sets(len(names), k, n_draws, np.random.default_rng((seed, 1, i))):
            at = np.flatnonzero(np.isin(patients, names[list(chosen)]))
            if targets.multilabel or len(np.unique(targets.values[pool[at]])) > 1:
                found[chosen] = at
            if len(found) == n_draws:
                break
        if not found:
            logger.warning("No %d of the %d patients have labels of two classes: left out.", k, len(names))
        parts += [(fraction, draw, at) for draw, at in enumerate(found.values())]
    if not parts:
        msg = f"No set of {len(names)} patients in `obs[{key!r}]` has labels of two classes. Label more, or draw cells with `unit='cells'`."
        raise ValueError(msg)
    return parts


def _random_sets(n: int, k: int, wanted: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Different sets of k of n numbers in random order, all of them where they are not many more than wanted."""
    if comb(n, k) <= TRIES * wanted:
        from itertools import combinations

        every = list(combinations(range(n), k))
        yield from (every[i] for i in rng.permutation(len(every)))
        return
    seen = set()
    for _ in range(TRIES * wanted):
        chosen = tuple(sorted(rng.choice(n, k, replace=False).tolist()))
        if chosen not in seen:
            seen.add(chosen)
            yield chosen
