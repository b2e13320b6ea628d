"""Cells that are worth labelling next."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cytonym import metrics
from cytonym._shared import RNG, document, seed_of
from cytonym.learning.spread import draw_apart
from cytonym.tl._numbers import gather
from cytonym.tl._targets import known_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cytonym.tl._numbers import Numbers

logger = logging.getLogger("cytonym")

STRATEGIES = ("combined", "uncertainty", "diversity", "rarity", "random")
SPREAD = ("combined", "diversity")
"""Those that look at where cells lie, so that suggestions differ from one another."""
POOL = 20_000
KNOWN = 5_000
LEAST = 1e-6  # of an uncertainty: a cell that the classifier is sure of can still be drawn where all are


@document(rng=RNG)
def suggest_cells(
    adata: AnnData,
    n: int = 50,
    *,
    strategy: Literal["combined", "uncertainty", "diversity", "rarity", "random"] = "combined",
    key: str = "phenotype",
    label_key: str = "label",
    use_rep: str | Sequence[str] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> pd.Index:
    """Cells to label next, so that a classifier learns more from each label than from a random cell's.

    One cell after another is drawn with a chance in proportion to w d², where d is the distance to the nearest cell that is
    labelled or drawn already (as k-means++ draws its centres), and w is the classifier's uncertainty over how common the class is
    that it calls. So suggestions lie where it hesitates, rare classes come as often as common ones, and no suggestion repeats
    another. Before there is a classifier w is 1, and suggestions cover what the table holds. Label them, call
    `classify_cells`, and ask again.

    Parameters
    ----------
    adata
        Table, or the part of one that suggestions shall come from. Nothing is written to it.
    n
        Number of cells. Rounds of 20 to 100 do: the classifier learns between them.
    strategy
        `"combined"`
            As above. Without the results of `classify_cells` the same as `"diversity"`.
        `"uncertainty"`
            The least certain cells: those with the smallest margin between the two most probable classes; with several labels a cell
            those with the least confident call.
        `"diversity"`
            As above with w = 1.
        `"rarity"`
            Cells of the rarest called classes.
        `"random"`
            Any, for comparison.

        By uncertainty or rarity alone many suggestions are of one kind. Equal cells come in random order.
    key
        Name of the results of `classify_cells`; `obsm["phenotype_proba"]` is read.
    label_key
        Column of `obs` with the known classes. Cells with one are never suggested. Where there is no column `"label"`, no cell
        counts as labelled.
    use_rep
        Numbers to measure distances in, as in `fit_classifier`, on the scale on which it learns. Default: those that the
        classification was made from, else what `fit_classifier` would take.
    {rng}
        It does not depend on the order of the rows.

    Returns
    -------
    Index
        Names of cells (`obs_names`) in the order in which they were drawn. Fewer than `n` where there are no more.

    Raises
    ------
    KeyError
        A column or key is missing, or `strategy` needs probabilities and there are none.
    ValueError
        No cell is left to suggest, `n` is below 1, `strategy` is unknown, or two cells have the same name.

    Notes
    -----
    Of more than 20,000 candidates (or 20 n) so many are drawn first, with chances in proportion to w, and of more than 5,000
    labelled cells distances are measured to so many drawn at random; a million cells take seconds.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom("experiment1", n_cells=300, size_px=128, rng=2)
    >>> cy.pp.measure_cells(sdata)
    >>> adata = sdata["table"]
    >>> first = cy.tl.suggest_cells(adata, 60)
    >>> adata.obs["label"] = adata.obs["cell_type"].where(adata.obs_names.isin(first))  # somebody labels them
    >>> cy.tl.classify_cells(adata, "label")
    >>> len(cy.tl.suggest_cells(adata, 20)), bool(cy.tl.suggest_cells(adata, 20).isin(first).any())
    (20, False)
    """
    if strategy not in STRATEGIES:
        msg = f"Unknown strategy {strategy!r}. Available: {list(STRATEGIES)}."
        raise ValueError(msg)
    if n < 1:
        msg = f"`n` must be at least 1, got {n}."
        raise ValueError(msg)
    if not adata.obs_names.is_unique:
        twice = list(adata.obs_names[adata.obs_names.duplicated()].unique()[:3])
        msg = f"Suggestions are names of cells, but `obs_names` repeat, such as {twice}. `adata.obs_names_make_unique()` helps."
        raise ValueError(msg)
    seed = seed_of(rng)
    labelled = _labelled(adata, label_key)
    proba = _probabilities(adata, key, strategy)
    numbers = gather(adata, use_rep if use_rep is not None else _numbers_of(adata, key))
    candidate = numbers.complete & ~labelled
    if proba is not None:
        candidate &= np.isfinite(proba).all(axis=1)
    rows = np.flatnonzero(candidate)
    if not len(rows):
        msg = (
            f"No cell is left to suggest: of {adata.n_obs:,} cells {labelled.sum():,} are labelled in {label_key!r}, and the others "
            f"lack a number of {list(numbers.keys)} or a probability."
        )
        raise ValueError(msg)
    if len(rows) < n:
        logger.warning("Only %d cells can be suggested, %d were asked for.", len(rows), n)
    unsure, rare = (np.ones(len(rows)),) * 2 if proba is None else _weights(adata, proba[rows], key, rows)
    weight = {"uncertainty": unsure, "rarity": rare, "combined": unsure * rare}.get(strategy, np.ones(len(rows)))
    chance = _chances(adata, rows, seed)
    if strategy in SPREAD:
        first = np.argsort(-np.log(chance) / weight, kind="stable")[: max(POOL, 20 * n)]  # Efraimidis and Spirakis 2006
        pool = first[_by_name(adata, rows[first])]
        known = np.flatnonzero(labelled & numbers.complete)
        known = known[np.argsort(_chances(adata, known, seed), kind="stable")[:KNOWN]]
        known = known[_by_name(adata, known)]
        chosen = rows[pool][_spread(numbers, rows[pool], known, weight[pool], n, seed)]
    else:
        chosen = rows[np.lexsort((chance, -weight))[:n]]
    return adata.obs_names[chosen]


def _labelled(adata: AnnData, key: str) -> np.ndarray:
    """Which cells have a label: bool [n_obs]."""
    if key in adata.obs:
        return known_labels(adata, key).notna().to_numpy()
    if key != "label":
        msg = f"No column {key!r} in `adata.obs`. Available: {sorted(map(str, adata.obs.columns))}."
        raise KeyError(msg)
    logger.info("No column 'label' in `adata.obs`: no cell counts as labelled.")
    return np.zeros(adata.n_obs, dtype=bool)


def _probabilities(adata: AnnData, key: str, strategy: str) -> np.ndarray | None:
    """Probabilities [n_obs, K] of a classification; None where there is none and none is needed."""
    name = f"{key}_proba"
    if "rules" in adata.uns.get(key, {}):  # of `phenotype_cells`; probabilities there would be of other phenotypes
        if strategy in ("uncertainty", "rarity"):
            msg = (
                f"The phenotypes under {key!r} come from rules (`tl.phenotype_cells`), which give no probabilities, so {strategy!r} "
                "cannot tell what to label. Run `tl.classify_cells` first; `strategy='diversity'` needs no classifier."
            )
            raise KeyError(msg)
        logger.info("The phenotypes under %r come from rules: suggestions cover what the table holds.", key)
        return None
    if name in adata.obsm:
        return np.asarray(adata.obsm[name], dtype=np.float64)
    if strategy in ("uncertainty", "rarity") or key != "phenotype":
        msg = (
            f"No {name!r} in `adata.obsm`, from which {strategy!r} would tell what to label. Available: "
            f"{sorted(map(str, adata.obsm))}. Run `tl.classify_cells` first; `strategy='diversity'` needs no classifier."
        )
        raise KeyError(msg)
    if strategy == "combined":
        logger.info("No %r in `adata.obsm` yet: suggestions cover what the table holds.", name)
    return None


def _numbers_of(adata: AnnData, key: str) -> list[str] | None:
    """Keys that the classification was made from, where it says so."""
    told = adata.uns.get(key, {}).get("model", {}).get("use_rep", []) if key in adata.uns else []
    return [str(k) for k in told] or None


def _weights(adata: AnnData, proba: np.ndarray, key: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty and rarity [n] of some cells."""
    told: Any = adata.uns.get(key, {})
    if told.get("params", {}).get("multilabel", False):
        limits = np.asarray(told.get("thresholds", np.full(proba.shape[1], 0.5)), dtype=float)
        unsure = 1 - metrics.call_confidence(proba, limits).min(axis=1).astype(np.float64)
        called = np.unique(proba.astype(np.float32) > limits.astype(np.float32), axis=0, return_inverse=True)[1].ravel()
    else:
        top = np.sort(proba, axis=1)
        unsure = 1 - (top[:, -1] - top[:, -2])
        called = proba.argmax(axis=1)
    return np.maximum(unsure, LEAST), len(rows) / np.bincount(called)[called]


def _chances(adata: AnnData, rows: np.ndarray, seed: int) -> np.ndarray:
    """A random number between 0 and 1 for each of some cells that follows from its name and the seed alone."""
    names = adata.obs_names[rows].to_numpy(dtype=object)
    numbers = pd.util.hash_array(names, hash_key=f"{seed:016x}"[-16:], categorize=False)
    return (numbers.astype(np.float64) + 0.5) / 2.0**64


def _by_name(adata: AnnData, rows: np.ndarray) -> np.ndarray:
    """Order of some rows by the names of their cells."""
    return np.argsort(adata.obs_names[rows].to_numpy(dtype=object), kind="stable")


def _spread(numbers: Numbers, pool: np.ndarray, known: np.ndarray, weight: np.ndarray, n: int, seed: int) -> list[int]:
    """Places in `pool`, drawn one after another by weight times squared distance to the known and drawn cells."""
    values = _scaled(numbers, np.concatenate([pool, known]))
    rng = np.random.default_rng(seed)
    drawn = draw_apart(values[: len(pool)], values[len(pool) :], weight / weight.max(), n, rng, lambda squared: squared)
    return [int(at) for at in drawn]


def _scaled(numbers: Numbers, rows: np.ndarray) -> np.ndarray:
    """f4 [n, D] of some cells on the scale on which a classifier learns, told by these cells alone."""
    part = replace(numbers, values=numbers.values[rows])
    unit, center, spread = part.scaling()
    shaped = np.where(unit > 0, np.arcsinh(part.values / np.where(unit > 0, unit, 1.0)), part.values)
    return ((shaped - center) / spread).astype(np.float32)
