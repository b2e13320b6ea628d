"""Markers that set a group of cells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from cytonym.get import labels_of, marker_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def rank_markers(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "nextmarker_attributions",
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Rank the markers of each group of cells against all other cells.

    The effect is the AUROC: the chance that a cell of the group has a higher number than a cell outside it. It needs no
    scale, so attributions, positivity and intensities can be ranked alike.

    Parameters
    ----------
    adata
        Table of N cells. Nothing is written to it.
    groupby
        Column of `adata.obs` with the groups, such as clusters. Cells without a group are left out.
    key
        DataFrame of `adata.obsm` with one column a marker. Cells with a NaN, such as those of an image that lacks the marker,
        are left out for this marker.
    groups
        Groups to rank; all by default. The rest is always every other cell.

    Returns
    -------
    DataFrame
        One row a group and marker, groups in their order, markers by falling `auroc`. Columns: `group`, `marker`, `mean`
        and `mean_rest` (of the numbers), `auroc` (0…1; 0.5 says nothing, below it the marker is lower in the group),
        `p_value` (two-sided Mann-Whitney test, normal approximation with ties) and `p_adjusted` (Benjamini-Hochberg
        over all rows). With many cells tiny effects get tiny p-values: read `auroc` first. All are NaN where the group or the
        rest has no number of the marker.

    Raises
    ------
    KeyError
        `groupby` or `key` is missing, or a name in `groups` is unknown.
    ValueError
        Fewer than two groups.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> adata = ad.AnnData(np.zeros((6, 1)), obs=pd.DataFrame({"type": list("aaabbb")}, index=list("uvwxyz")))
    >>> adata.obsm["nextmarker_attributions"] = pd.DataFrame({"CD8": [3, 4, 5, 0, 0, 1.0]}, index=adata.obs_names)
    >>> cy.tl.rank_markers(adata, "type")[["group", "marker", "mean", "auroc"]]
      group marker      mean  auroc
    0     a    CD8  4.000000    1.0
    1     b    CD8  0.333333    0.0
    """
    frame = marker_frame(adata, key)
    labels = labels_of(adata, groupby)
    values = frame.to_numpy(dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    kept = labels.notna().to_numpy() & np.isfinite(values).any(axis=1)
    values, labels = values[kept], labels[kept].cat.remove_unused_categories()
    names = list(labels.cat.categories)
    if len(names) < 2:
        msg = f"`obs[{groupby!r}]` must hold two or more groups of cells with numbers in {key!r}, found {names}."
        raise ValueError(msg)
    chosen = names if groups is None else [str(g) for g in groups]
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        msg = f"No group {unknown} in `obs[{groupby!r}]`. Available: {names}."
        raise KeyError(msg)

    codes = labels.cat.codes.to_numpy()
    member = np.eye(len(names))[codes]  # [N, groups]
    there = np.isfinite(values)
    n = there.sum(axis=0)
    size = member.T @ there  # [groups, C]
    size[(size == 0) | (size == n)] = np.nan  # nothing to compare
    rest = n - size
    ranks = stats.rankdata(values, axis=0, nan_policy="omit")
    wins = member.T @ np.nan_to_num(ranks) - size * (size + 1) / 2  # Mann-Whitney U, [groups, C]
    auroc = wins / (size * rest)
    spread = np.sqrt(size * rest / 12 * (n + 1 - _ties(ranks) / np.maximum(n * (n - 1), 1)))
    distance = np.abs(wins - size * rest / 2)
    # half a rank of continuity correction, as in scipy; a marker equal in all cells has no spread and says nothing
    z = np.divide(np.maximum(distance - 0.5, 0), spread, out=0 * distance, where=spread > 0)
    total = np.nansum(values, axis=0)
    inside = member.T @ np.nan_to_num(values)
    parts = []
    for g in (names.index(c) for c in chosen):
        part = pd.DataFrame(
            {
                "group": names[g],
                "marker": frame.columns.astype(str),
                "mean": inside[g] / size[g],
                "mean_rest": (total - inside[g]) / rest[g],
                "auroc": auroc[g],
                "p_value": np.minimum(2 * stats.norm.sf(z[g]), 1.0),
            }
        )
        parts.append(part.sort_values("auroc", ascending=False, kind="stable"))
    result = pd.concat(parts, ignore_index=True)
    told = result["p_value"].notna()
    result.loc[told, "p_adjusted"] = stats.false_discovery_control(result.loc[told, "p_value"].to_numpy())
    return result


def _ties(ranks: np.ndarray) -> np.ndarray:
    """Sum of t^3 - t over the groups of equal values of each column, without NaN: float [C]."""
    counts = (np.unique(column[np.isfinite(column)], return_counts=True)[1].astype(float) for column in ranks.T)
    return np.array([(c**3 - c).sum() for c in counts])
