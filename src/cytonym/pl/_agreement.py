"""Where two labellings of the same cells agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym.get import labels_of
from cytonym.pl._style import BLUE, INK, VERMILION, bare, new_figure, styled, text_width
from cytonym.tl import compare_labels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS_UP_TO = 20  # labels; a bigger matrix is read by its colours


@styled
def agreement(
    adata: AnnData,
    a: str,
    b: str,
    *,
    basis: str | None = None,
    point_size: float | None = None,
) -> Figure:
    """Confusion matrix of two labellings, and the map of the cells they agree on.

    Each row of the matrix adds up to 100 % of the cells that `a` gives this label. In the map, cells with the same label are
    blue and others red-orange, a pair told apart with any colour vision. Where the two share no name, as types and clusters
    do, each label of `b` stands for the label of `a` that most of its cells have: the columns are in that order, and cells
    with that label are blue.

    Parameters
    ----------
    adata
        Table of N cells.
    a, b
        Columns of `adata.obs`, compared as text. Cells that lack one of the two are left out.
    basis
        Key of `adata.obsm` for the map: `"X_umap"` or `"spatial"`, say. Default: the UMAP where there is one, else the
        positions in space, else no map.
    point_size
        Size of the points in the map, in square points; from the number of cells by default.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        A column or `basis` is missing.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> obs = pd.DataFrame({"expert": ["T", "T", "B", "B"], "found": ["T", "B", "B", "B"]}, index=list("wxyz"))
    >>> adata = ad.AnnData(np.zeros((4, 1)), obs=obs, obsm={"X_umap": np.arange(8.0).reshape(4, 2)})
    >>> figure = cy.pl.agreement(adata, "expert", "found")
    """
    result = compare_labels(adata, a, b)
    fractions, agree, names = result.fractions, result.agree, ("same label", "different label")
    summary = [f"ARI {result.ari:.2f}", f"{result.n_cells:,} cells"]
    if not np.isnan(result.agreement):
        summary = [f"agreement {result.agreement:.1%}", f"kappa {result.kappa:.2f}", *summary]
    else:
        main = result.counts.idxmax()  # label of b -> label of a
        order = np.lexsort((-fractions.max().to_numpy(), fractions.index.get_indexer(pd.Index(main))))
        fractions = fractions.iloc[:, order]
        named = labels_of(adata, b).astype(object).map(main, na_action="ignore")
        agree = (labels_of(adata, a).astype(object) == named).astype("boolean").where(agree.notna())
        names = ("main label of its group", "another label")
        summary.insert(0, f"purity {result.counts.max().sum() / result.n_cells:.1%}")
    if basis is None:
        basis = next((k for k in ("X_umap", "spatial") if k in adata.obsm), None)
    elif basis not in adata.obsm:
        msg = f"No {basis!r} in `adata.obsm`. Available: {sorted(adata.obsm)}."
        raise KeyError(msg)

    n_rows, n_columns = fractions.shape
    cell = 0.42 if max(n_rows, n_columns) <= NUMBERS_UP_TO else 0.2
    matrix_width = max(n_columns * cell, 1.6) + text_width(list(fractions.index)) + 0.9
    height = max(n_rows * cell, 1.6) + text_width(list(fractions.columns)) + 0.8
    map_side = min(max(height, 3.0), 4.5)
    figure = new_figure(matrix_width + (map_side if basis else 0), max(height, map_side if basis else 0))
    grid = figure.add_gridspec(1, 2 if basis else 1, width_ratios=[matrix_width, map_side] if basis else None)
    _matrix(figure.add_subplot(grid[0]), fractions, height, numbers=cell > 0.3)
    if basis:
        points = np.asarray(adata.obsm[basis])[:, :2]
        _map(figure.add_subplot(grid[1]), points, agree, names, basis=basis, size=point_size)
    figure.suptitle("  ·  ".join(summary), fontsize=9)
    return figure


def _matrix(ax: Axes, fractions: pd.DataFrame, height: float, *, numbers: bool) -> None:
    values = fractions.to_numpy()
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    rotation = 0 if max(map(len, fractions.columns)) <= 2 else 90
    ax.set_xticks(range(values.shape[1]), fractions.columns, rotation=rotation)
    ax.set_yticks(range(values.shape[0]), fractions.index)
    ax.set(xlabel=fractions.columns.name, ylabel=fractions.index.name)
    ax.tick_params(length=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    if numbers:
        for (i, j), value in np.ndenumerate(values):
            if value >= 0.005:
                ax.text(
                    j,
                    i,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    color="white" if value > 0.55 else "#222222",
                    fontsize=7,
                )
    length = min(1.0, 2.0 / height)
    bar = ax.figure.colorbar(image, ax=ax, shrink=length, anchor=(0, 1), aspect=14, pad=0.02, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    bar.set_label("share of the row")
    bar.outline.set_visible(False)  # type: ignore[operator]


def _map(
    ax: Axes, points: np.ndarray, agree: pd.Series, names: tuple[str, str], *, basis: str, size: float | None
) -> None:
    known = agree.notna().to_numpy()
    same = agree.fillna(False).to_numpy(dtype=bool)  # noqa: FBT003
    size = size or float(np.clip(12_000 / max(len(points), 1), 0.6, 18))
    unlabelled = ~known & np.isfinite(points).all(axis=1)
    if unlabelled.any():
        x, y = points[unlabelled].T
        ax.scatter(x, y, s=size, color="#D0D0D0", linewidths=0, rasterized=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(np.flatnonzero(known))  # neither class on top of the other
    colors = np.where(same[order], BLUE, VERMILION)
    x, y = points[order].T
    ax.scatter(x, y, s=size, c=colors, linewidths=0, rasterized=True)
    entries = [(BLUE, names[0]), (VERMILION, names[1]), ("#D0D0D0", "no label")]
    for color, name in entries[: 3 if unlabelled.any() else 2]:
        ax.scatter([], [], s=22, color=color, label=name)
    bare(ax).legend(
        frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, handletextpad=0.1, columnspacing=1
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_box_aspect(1)
    if basis == "spatial":
        ax.invert_yaxis()
    ax.set_title({"X_umap": "UMAP"}.get(basis, basis.removeprefix("X_")), color=INK, fontsize=8)
