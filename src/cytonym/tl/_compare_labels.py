"""How far two labellings of the same cells agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cytonym.get import labels_of

if TYPE_CHECKING:
    from anndata import AnnData


class LabelComparison(NamedTuple):
    """What `compare_labels` finds."""

    agreement: float
    """Share of the cells with the same name in both columns; NaN where the columns share no name."""
    kappa: float
    """Cohen's kappa: agreement beyond chance, 1 at best; NaN where the columns share no name."""
    ari: float
    """Adjusted Rand index: do the same cells stand together? Names do not matter; 0 is chance, 1 is perfect."""
    n_cells: int
    """Cells with a label in both columns; all numbers here are over these."""
    counts: pd.DataFrame
    """Cells of each pair of labels: rows are the labels of `a`, columns those of `b`, shared names first."""
    fractions: pd.DataFrame
    """`counts` with each row divided by its sum, as in the paper's confusion matrix."""
    agree: pd.Series
    """One entry a row of the table: True, False, or NA where a label is missing (pandas `boolean`)."""


def compare_labels(adata: AnnData, a: str, b: str) -> LabelComparison:
    """Compare two columns of labels, such as an expert's phenotypes and those named through clusters.

    Parameters
    ----------
    adata
        Table of N cells. Nothing is written to it.
    a, b
        Columns of `adata.obs`. Labels are compared as text. Cells that lack one of the two are left out.

    Returns
    -------
    LabelComparison
        `agreement`, `kappa`, `ari`, `n_cells`, the matrices `counts` and `fractions` (rows: `a`), and `agree`, one entry
        a cell. Clusters can be compared with types too: then `ari` and the matrices tell, and `agreement` is NaN.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        No cell has both labels.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> obs = pd.DataFrame({"expert": ["T", "T", "B", "B"], "found": ["T", "B", "B", "B"]}, index=list("wxyz"))
    >>> result = cy.tl.compare_labels(ad.AnnData(np.zeros((4, 1)), obs=obs), "expert", "found")
    >>> result.agreement, result.kappa
    (0.75, 0.5)
    >>> result.fractions.loc["T"].to_dict()
    {'B': 0.5, 'T': 0.5}
    """
    left, right = labels_of(adata, a), labels_of(adata, b)
    both = (left.notna() & right.notna()).to_numpy()
    if not both.any():
        msg = f"No cell has a label in both `obs[{a!r}]` and `obs[{b!r}]`."
        raise ValueError(msg)
    same = (left.astype(object) == right.astype(object)).to_numpy()
    agree = pd.Series(pd.arrays.BooleanArray(same, mask=~both), index=adata.obs_names, name="agree")
    left, right = left[both].cat.remove_unused_categories(), right[both].cat.remove_unused_categories()
    rows, columns = list(left.cat.categories), list(right.cat.categories)
    shared = [name for name in rows if name in set(columns)]
    rows = shared + [name for name in rows if name not in shared]
    columns = shared + [name for name in columns if name not in shared]
    counts = pd.crosstab(left.astype(object), right.astype(object)).reindex(index=rows, columns=columns, fill_value=0)
    counts.index.name, counts.columns.name = a, b

    n = int(both.sum())
    agreement = kappa = float("nan")
    if shared:
        agreement = float(np.trace(counts.loc[shared, shared].to_numpy())) / n
        chance = float((counts.sum(axis=1)[shared] * counts.sum(axis=0)[shared]).sum()) / n**2
        kappa = (agreement - chance) / (1 - chance) if chance < 1 else 1.0
    return LabelComparison(
        agreement=agreement,
        kappa=kappa,
        ari=_adjusted_rand(counts.to_numpy()),
        n_cells=n,
        counts=counts,
        fractions=counts.div(counts.sum(axis=1), axis=0),
        agree=agree,
    )


def _adjusted_rand(counts: np.ndarray) -> float:
    """Hubert and Arabie 1985, from the table of pairs."""

    def pairs(n: np.ndarray) -> float:
        n = np.asarray(n, dtype=np.float64)
        return float((n * (n - 1) / 2).sum())

    together, rows, columns = pairs(counts), pairs(counts.sum(axis=1)), pairs(counts.sum(axis=0))
    every = pairs(counts.sum())
    expected = rows * columns / every if every else 0.0
    best = (rows + columns) / 2
    return (together - expected) / (best - expected) if best != expected else 1.0
