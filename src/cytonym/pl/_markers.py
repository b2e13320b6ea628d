"""Dot plot of clusters and markers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.transforms import Affine2D, ScaledTranslation, blended_transform_factory

from cytonym.get import labels_of, marker_frame
from cytonym.pl._style import GREY, INK, new_figure, styled, text_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PITCH = 0.2  # inches from dot to dot


@styled
def markers(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "nextmarker_attributions",
    markers: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    standardize: bool = True,
    sort: bool = True,
) -> Figure:
    """Dot plot of markers by group: colour is the mean activation, size the share of cells above a threshold.

    Bars at the top count the cells of each group.

    Parameters
    ----------
    adata
        Table of N cells.
    groupby
        Column of `adata.obs` with the groups, such as clusters. Cells without a group are left out.
    key
        DataFrame of `adata.obsm` with one column a marker.
    markers
        Markers to show, in this order; all by default.
    groups
        Groups to show, in this order; all by default.
    threshold
        A cell counts as above where its number exceeds this; one number, or one a marker. Default: the marker's mean over all
        cells.
    standardize
        Colour by z-scores, over all cells of the table, so that weak and strong markers can be read alike. Otherwise the
        numbers as they are.
    sort
        Put groups with like profiles side by side and markers along the diagonal. An order given with `markers` or
        `groups` is kept.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        A column, key, marker or group is missing.
    ValueError
        No cell has a group.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> adata = ad.AnnData(np.zeros((4, 1)), obs=pd.DataFrame({"type": list("TTBB")}, index=list("wxyz")))
    >>> frame = pd.DataFrame({"CD3": [2, 3, 0, 0.0], "CD20": [0, 0, 1, 2.0]}, index=adata.obs_names)
    >>> adata.obsm["nextmarker_attributions"] = frame
    >>> figure = cy.pl.markers(adata, "type")
    """
    frame = marker_frame(adata, key)
    labels = labels_of(adata, groupby)
    if labels.isna().all():
        msg = f"No cell has a group in `obs[{groupby!r}]`."
        raise ValueError(msg)
    chosen = _chosen(markers, list(frame.columns.astype(str)), f"marker in `obsm[{key!r}]`")
    shown = _chosen(groups, list(labels.cat.remove_unused_categories().cat.categories), f"group in `obs[{groupby!r}]`")
    values = frame.set_axis(frame.columns.astype(str), axis=1)[chosen].astype(float)
    limits = values.mean() if threshold is None else pd.Series(threshold, index=chosen, dtype=float)
    if limits.isna().any() and threshold is not None:
        msg = f"`threshold` lacks the markers {list(limits.index[limits.isna()])}."
        raise KeyError(msg)
    above = (values > limits).where(values.notna())
    if standardize:
        values = (values - values.mean()) / values.std(ddof=0).replace(0, 1)
    codes = labels.astype(object).to_numpy()
    color = values.groupby(codes).mean().loc[shown]  # [groups, markers]
    share = above.astype(float).groupby(codes).mean().loc[shown]
    if sort:
        order = _similar(color.to_numpy()) if groups is None else np.arange(len(shown))
        shown = [shown[i] for i in order]
        if markers is None:
            chosen = [chosen[i] for i in _diagonal(color.loc[shown].to_numpy())]
    counts = labels.value_counts().loc[shown].to_numpy()
    return _draw(color.loc[shown, chosen], share.loc[shown, chosen], counts, groupby=groupby, standardize=standardize)


def _chosen(names: Sequence[str] | None, available: list[str], what: str) -> list[str]:
    if names is None:
        return available
    if isinstance(names, str):
        names = [names]
    unknown = [n for n in names if n not in available]
    if unknown:
        msg = f"No {what} named {unknown}. Available: {available}."
        raise KeyError(msg)
    return list(dict.fromkeys(names))


def _similar(profiles: np.ndarray) -> np.ndarray:
    """An order of the rows that puts similar ones side by side."""
    from scipy.cluster import hierarchy

    profiles = np.nan_to_num(profiles)
    if len(profiles) < 3:
        return np.arange(len(profiles))
    tree = hierarchy.linkage(profiles, method="average", optimal_ordering=True)
    return hierarchy.leaves_list(tree)


def _diagonal(profiles: np.ndarray) -> np.ndarray:
    """An order of the columns by the row where each is strongest; those that say nothing come last."""
    profiles = np.nan_to_num(profiles)
    strength = profiles.max(axis=0)
    return np.lexsort((-strength, np.where(np.ptp(profiles, axis=0) > 0, profiles.argmax(axis=0), len(profiles))))


def _draw(color: pd.DataFrame, share: pd.DataFrame, counts: np.ndarray, *, groupby: str, standardize: bool) -> Figure:
    n_groups, n_markers = color.shape
    width, height = max(n_groups * PITCH, 1.2), max(n_markers * PITCH, 1.4)
    figure = new_figure(
        width + text_width(list(color.columns)) + 1.55, height + text_width(list(color.index)) + 1.0
    )  # fmt: skip
    grid = figure.add_gridspec(
        2, 2, height_ratios=[0.45, height], width_ratios=[width, 0.8], hspace=0.02, wspace=0.02
    )  # fmt: skip
    dots = figure.add_subplot(grid[1, 0])
    bars = figure.add_subplot(grid[0, 0], sharex=dots)
    side = figure.add_subplot(grid[:, 1])
    side.set_axis_off()

    numbers = color.to_numpy()
    biggest = (PITCH * 72 * 0.92) ** 2
    if standardize:
        top = max(float(np.nanquantile(np.abs(numbers), 0.98)), 0.5)
        style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    else:
        style = {"cmap": "YlGnBu", "vmin": min(0.0, float(np.nanmin(numbers))), "vmax": float(np.nanmax(numbers))}
    y, x = np.meshgrid(np.arange(n_markers), np.arange(n_groups))
    drawn = dots.scatter(
        x.ravel(), y.ravel(), s=share.to_numpy().ravel() * biggest, c=numbers.ravel(),
        edgecolors=INK, linewidths=0.25, zorder=2, **style,
    )  # fmt: skip
    dots.set(xlim=(-0.6, n_groups - 0.4), ylim=(n_markers - 0.4, -0.6), xlabel=groupby)
    short = max(map(len, color.index)) <= 2
    dots.set_xticks(range(n_groups), color.index, rotation=0 if short else 90)
    dots.set_yticks(range(n_markers), color.columns)
    dots.grid(color="#E6E6E6", linewidth=0.5, zorder=0)
    dots.set_axisbelow(True)
    dots.tick_params(length=0)

    bars.bar(range(n_groups), counts, color=GREY, width=0.7)
    bars.tick_params(axis="x", length=0, labelbottom=False)
    bars.spines["bottom"].set_visible(False)
    bars.set_ylabel("cells")
    bars.set_yticks([int(counts.max())])
    _keys(side, drawn, biggest, standardize=standardize, size=1 - 0.42 / (height + 1.1))
    return figure


def _keys(side: Axes, drawn: object, biggest: float, *, standardize: bool, size: float) -> None:
    """Colour bar and dot sizes, in units of `size` inches from the top, however much height the names of the groups take."""
    top = ScaledTranslation(0, 1, side.transAxes)  # type: ignore[arg-type]
    inches = Affine2D().scale(size) + side.figure.dpi_scale_trans + top
    place = blended_transform_factory(side.transAxes, inches)
    bar = side.inset_axes((0.12, -1.35, 0.14, 1.0), transform=place)
    side.figure.colorbar(drawn, cax=bar)  # type: ignore[arg-type]
    bar.tick_params(labelsize=7, length=2)
    title = "mean activation" + ("\n(z-score)" if standardize else "")
    side.text(0.12, -0.28, title, transform=place, fontsize=7.5, va="bottom")
    sizes = side.inset_axes((0.0, -2.85, 1, 1.0), transform=place)
    sizes.set_axis_off()
    sizes.set_in_layout(False)  # it may stand beside the names of the groups
    steps = [0.25, 0.5, 0.75, 1.0]
    sizes.scatter([0.19] * 4, range(4), s=[s * biggest for s in steps], color=GREY, edgecolors=INK, linewidths=0.25)
    for i, step in enumerate(steps):
        sizes.text(0.36, i, f"{step:.0%}", va="center", fontsize=7)
    sizes.set(xlim=(0, 1), ylim=(3.6, -0.6))
    side.text(0.12, -1.82, "share of cells\nabove threshold", transform=place, fontsize=7.5, va="bottom")
