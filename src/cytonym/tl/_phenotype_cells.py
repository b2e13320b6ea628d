"""Phenotypes from rules on markers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym.data.names import with_storable_columns
from cytonym.get import marker_frame
from cytonym.tl._call_markers import read_scores
from cytonym.tl._rules import ANY, POSITIVE, UNKNOWN, Rules, read_rules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

logger = logging.getLogger("cytonym")


def phenotype_cells(
    adata: AnnData,
    rules: pd.DataFrame | Mapping[str, str] | str | Path,
    *,
    key: str = "nimbus_calls",
    scores: str | None = None,
    key_added: str = "phenotype",
    copy: bool = False,
) -> AnnData | None:
    """Name each cell by rules: which markers a type has, which it lacks, and which types are kinds of others.

    A cell matches a type if it satisfies the type's own rules and those of all its ancestors, and gets the deepest type that it
    matches. Where it matches several types of which none is an ancestor of another, that is a conflict: the deepest of them wins;
    of equally deep ones the one with more rules, those of its ancestors included; then the one whose least certain marker is the
    most certain one, by the scores (of equal ones the next marker decides); then the one that `rules` names first.

    Parameters
    ----------
    adata
        Table of N cells.
    rules
        A DataFrame with a row for each cell type (the index) and a column for each of some markers. Entries are `"positive"`,
        `"+"` or 1; `"negative"`, `"-"` or 0; `"any"`, `""` or NaN. A column `"parent"`, where there is one, names the type that the
        row is a kind of, and is empty for others. Or the path of a CSV file of that layout. Or a mapping from types to text,
        `{"CD8 T cell": "CD3+ CD8+ CD20-"}`.
    key
        DataFrame of `adata.obsm` with 1 for positive, 0 for negative and -1 for undecided, as `call_markers` writes it. An
        undecided call satisfies no rule but `"any"`.
    scores
        DataFrame of `adata.obsm` with scores from 0 to 1, to tell types apart that match equally well. The certainty of a
        marker is its score where the rule is positive, 1 - score where it is negative, and 0 without a score. Default: the scores
        that the calls were made from, if they are there.
    key_added
        Name of the results, `"phenotype"` below. What `classify_cells` wrote under this name goes.
    copy
        Work on a copy and return it.

    Returns
    -------
    Returns `None` if `copy=False`, else an `AnnData`. Sets the following fields:

    `adata.obs["phenotype"]` : categorical
        Type of each cell, categories in the order of the rules, then `"Unknown"` for cells that match no type. NaN for cells
        without any call, that is with -1 for every marker.
    `adata.obs["phenotype_conflict"]` : bool
        Whether the cell matches types of which none is an ancestor of another.
    `adata.uns["phenotype"]` : dict
        `params`; `rules` (DataFrame of strings); `conflicts` (DataFrame, most frequent first: two types `type_a` and `type_b`, the
        number of `cells` that match both, and the type that these cells got, `resolved_to`; a cell of three types is in
        three rows).

    Raises
    ------
    KeyError
        `key` or `scores` is missing, or a marker or parent of `rules` is unknown.
    FileNotFoundError
        `rules` is the path of no file.
    ValueError
        Calls are not 1, 0 and -1, scores are not from 0 to 1, or rules make no sense: types that repeat, that no cell could tell
        apart, that contradict or are their own ancestor, are called `"Unknown"`, or have entries that are not understood.
    TypeError
        `rules` is of another type, or `key` names an array without marker names.

    Examples
    --------
    >>> import anndata as ad, pandas as pd
    >>> import cytonym as cy
    >>> adata = ad.AnnData(obs=pd.DataFrame(index=list("wxyz")))
    >>> calls = {"CD3": [1, 1, 0, 0], "CD8": [1, -1, 0, 1], "CD20": [0, 0, 1, 0]}
    >>> adata.obsm["nimbus_calls"] = pd.DataFrame(calls, index=adata.obs_names)
    >>> rules = pd.DataFrame(
    ...     {"parent": ["", "T cell", ""], "CD3": ["+", "", "-"], "CD8": ["", "+", ""], "CD20": ["", "-", "+"]},
    ...     index=["T cell", "CD8 T cell", "B cell"],
    ... )
    >>> cy.tl.phenotype_cells(adata, rules)
    >>> adata.obs["phenotype"].tolist()
    ['CD8 T cell', 'T cell', 'B cell', 'Unknown']
    """
    calls = _read_calls(adata, key)
    found = read_rules(rules, [str(m) for m in calls.columns])
    scored, by = _read_scores(adata, key, scores, found)
    if key_added in (key, scores):
        msg = f"`key_added={key_added!r}` would write over `uns[{key_added!r}]`, which belongs to what is read here. Choose another name."
        raise ValueError(msg)

    values = calls.to_numpy()
    called = (values >= 0).any(axis=1)
    matched = _matched(calls[list(found.markers)].to_numpy(), found)
    matched[~called] = False
    leaves = matched.copy()
    for t, parent in enumerate(found.parents):
        if parent >= 0:
            leaves[:, parent] &= ~matched[:, t]
    conflict = leaves.sum(axis=1) > 1
    chosen = _chosen(leaves, found, scored)

    codes = np.where(matched.any(axis=1), chosen, len(found.types))
    codes[~called] = -1
    names = pd.Categorical.from_codes(codes, categories=pd.Index([*found.types, UNKNOWN], dtype=object))
    conflicts = _conflicts(leaves[conflict], chosen[conflict], found.types)

    target = adata.copy() if copy else adata
    _forget_classifier(target, key_added)
    target.obs[key_added] = pd.Series(names, index=target.obs_names)
    target.obs[f"{key_added}_conflict"] = conflict
    target.uns[key_added] = {
        "params": {"key": key, "scores": by},
        "rules": with_storable_columns(found.as_frame(), f"{key_added}_rules", target.uns),
        "conflicts": conflicts,
    }
    _log(conflicts, int(conflict.sum()), codes, len(found.types), key_added)
    return target if copy else None


def _read_calls(adata: AnnData, key: str) -> pd.DataFrame:
    """Calls under the markers' own names, checked; int8, -1 also for missing ones."""
    if key not in adata.obsm:
        frames = sorted(k for k, v in adata.obsm.items() if isinstance(v, pd.DataFrame))
        msg = f"No {key!r} in `adata.obsm`. DataFrames there: {frames}. `tl.call_markers` writes one."
        raise KeyError(msg)
    frame = marker_frame(adata, key)
    if not frame.columns.is_unique:
        msg = f"`obsm[{key!r}]` has several columns for {sorted(set(frame.columns[frame.columns.duplicated()]))}."
        raise ValueError(msg)
    values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    values = np.nan_to_num(values, nan=-1.0)
    wrong = ~np.isin(values, (-1, 0, 1))
    if wrong.any():
        some = np.unique(values[wrong])[:3].tolist()
        msg = (
            f"Calls must be 1, 0 or -1, but {int(wrong.sum()):,} of `obsm[{key!r}]` are not, such as {some}. Scores become calls "
            "by `tl.call_markers`."
        )
        raise ValueError(msg)
    return pd.DataFrame(values.astype(np.int8), index=frame.index, columns=frame.columns)


def _read_scores(adata: AnnData, key: str, scores: str | None, rules: Rules) -> tuple[np.ndarray | None, str]:
    """Scores f4 [N, markers of the rules] and their key; None and "" where there are none."""
    name = scores
    if name is None:
        told = adata.uns.get(key)
        params = told.get("params", {}) if isinstance(told, Mapping) else {}
        name = str(params.get("key", f"{key.removesuffix('_calls')}_positivity"))
        if not isinstance(adata.obsm.get(name), pd.DataFrame):
            return None, ""
    frame = read_scores(adata, name)
    lacking = [m for m in rules.markers if m not in frame.columns]
    if lacking and scores is None:
        return None, ""
    if lacking:
        msg = f"`obsm[{name!r}]` has no scores of the markers {lacking} of `rules`. Available: {list(frame.columns)}."
        raise KeyError(msg)
    return frame[list(rules.markers)].to_numpy(), name


def _matched(calls: np.ndarray, rules: Rules) -> np.ndarray:
    """Which types each cell matches: bool [N, types]."""
    matched = np.ones((len(calls), len(rules.types)), dtype=bool)
    for t, row in enumerate(rules.whole):
        for j in np.flatnonzero(row != ANY):
            matched[:, t] &= calls[:, j] == row[j]
    return matched


def _chosen(leaves: np.ndarray, rules: Rules, scores: np.ndarray | None) -> np.ndarray:
    """Number of the type that each cell gets; of no meaning for cells that match none."""
    rank = rules.depth * (len(rules.markers) + 1) + (rules.whole != ANY).sum(axis=1)
    best = np.full(len(leaves), -1)
    for t in range(len(rules.types)):
        np.maximum(best, rank[t], out=best, where=leaves[:, t])
    equal = leaves & (rank == best[:, None])
    chosen = equal.argmax(axis=1)
    tied = np.flatnonzero(equal.sum(axis=1) > 1)
    if scores is not None and len(tied):
        chosen[tied] = _most_certain(equal[tied], rules.whole, scores[tied])
    return chosen


def _most_certain(equal: np.ndarray, whole: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """One of the types with equally many rules for each cell: least certain markers are compared, then the next ones."""
    chosen = np.full(len(equal), -1)
    best = np.full((len(equal), whole.shape[1]), -1.0)  # certainties of the chosen type, rising
    for t, row in enumerate(whole):
        cells, asked = np.flatnonzero(equal[:, t]), np.flatnonzero(row != ANY)
        score = scores[np.ix_(cells, asked)].astype(np.float64)
        sure = np.sort(np.nan_to_num(np.where(row[asked] == POSITIVE, score, 1 - score), nan=0.0), axis=1)
        if not sure.size:
            continue
        before = best[cells, : len(asked)]
        at = (sure != before).argmax(axis=1)[:, None]  # the first that differs
        better = np.take_along_axis(sure > before, at, axis=1)[:, 0]
        best[cells[better], : len(asked)] = sure[better]
        chosen[cells[better]] = t
    return chosen


def _conflicts(leaves: np.ndarray, chosen: np.ndarray, types: Sequence[str]) -> pd.DataFrame:
    """Pairs of types that the same cells match, with what became of the cells, most frequent first."""
    counts: dict[tuple[int, int, int], int] = {}
    columns = np.ascontiguousarray(leaves.T)
    for a, b in combinations(np.flatnonzero(columns.any(axis=1)).tolist(), 2):
        winners = np.bincount(chosen[columns[a] & columns[b]], minlength=1)
        counts |= {(a, b, w): int(winners[w]) for w in np.flatnonzero(winners).tolist()}
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return pd.DataFrame(
        {
            "type_a": np.array([types[a] for (a, _, _), _ in rows], dtype=object),
            "type_b": np.array([types[b] for (_, b, _), _ in rows], dtype=object),
            "cells": np.array([n for _, n in rows], dtype=np.int64),
            "resolved_to": np.array([types[w] for (_, _, w), _ in rows], dtype=object),
        }
    )


def _forget_classifier(adata: AnnData, key: str) -> None:
    """Probabilities and confidences of other names would be taken for those of the new ones."""
    told = adata.uns.get(key)
    if not (isinstance(told, Mapping) and "classes" in told):
        return
    for where, name in ((adata.obs, f"{key}_confidence"), (adata.obsm, f"{key}_proba")):
        if name in where:
            del where[name]
            logger.warning("%r of `tl.classify_cells` is removed, as other phenotypes take the place of its own.", name)


def _log(conflicts: pd.DataFrame, n_conflicts: int, codes: np.ndarray, n_types: int, key: str) -> None:
    n_called = int((codes >= 0).sum())
    if n_conflicts:
        logger.warning(
            "%s of %s cells match several types, most often %r and %r: see `uns[%r]['conflicts']`.",
            f"{n_conflicts:,}", f"{n_called:,}", conflicts["type_a"].iloc[0], conflicts["type_b"].iloc[0], key,
        )  # fmt: skip
    n_unknown = int((codes == n_types).sum())
    if n_unknown:
        logger.info("%s of %s cells match no type: %r.", f"{n_unknown:,}", f"{n_called:,}", UNKNOWN)
