"""The score of an immunohistochemical stain on one card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.patches import Patch
from spatialdata import SpatialData

from cytonym.data.checks import require_key
from cytonym.get import labels_of
from cytonym.pl._style import INK, new_figure, styled
from cytonym.pl._translation import COLORS
from cytonym.tl import score_ihc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRADES = ("0", "1+", "2+", "3+")
BROWNS = ("#C7D3E8", "#EBC58B", "#B87333", "#5E2F0D")
"""Of the intensities, from blue to dark brown; each is darker than the one before."""
BINS = 40
QUANTILE = 0.995
"""Of the densities; nuclei beyond it stand in the last bin."""
LEAST_SHARE = 0.07
"""Of a bar, for its number to stand in it."""
KEY: Any = {
    "frameon": False, "handlelength": 1, "handleheight": 0.9, "handletextpad": 0.4, "borderaxespad": 0, "borderpad": 0,
    "fontsize": 7,
}  # fmt: skip
NAME, CARD, HISTOGRAM, ROW, HEAD, FOOT, BETWEEN = 1.2, 2.0, 2.2, 0.8, 0.06, 0.34, 0.22  # inches


@styled
def ihc_score(
    data: SpatialData | AnnData,
    *,
    by: str | None = None,
    thresholds: Sequence[float] = (0.2, 0.4, 0.6),
    class_key: str = "ihc_class",
    density_key: str = "dab_density",
    table_key: str = "table",
) -> Figure:
    """Draw the score card of a stain: counts, percent positive, H-score and the distribution of the intensity, a row a region.

    Left the share of positive nuclei, by their class; then the shares of the intensities 0, 1+, 2+ and 3+, which make up the
    H-score; right how the density is distributed, and the thresholds between the intensities. The line there are the nuclei
    whose class is positive: where it parts from the first threshold, class and intensity disagree. Heights are counts, on a
    square-root scale so that a rare group can be seen.

    Parameters
    ----------
    data
        Table of the nuclei, or the SpatialData object that holds it, as `tl.segment_nuclei` leaves them. It is not changed.
    by, thresholds, class_key, density_key, table_key
        As in `tl.score_ihc`, which counts.

    Returns
    -------
    matplotlib.figure.Figure
        Without densities it has the counts alone. Not shown; the last line of a notebook cell displays it,
        `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        No such table or column.
    ValueError
        As in `tl.score_ihc`.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> density = np.random.default_rng(0).gamma(2, 0.15, 300)
    >>> obs = pd.DataFrame({"dab_density": density, "ihc_class": np.where(density > 0.2, "positive", "negative")})
    >>> table = ad.AnnData(np.zeros((300, 0)), obs=obs.set_index(obs.index.astype(str)))
    >>> figure = cy.pl.ihc_score(table)
    """
    if isinstance(data, SpatialData):
        require_key(table_key, data.tables, "table", "sdata.tables")
        data = data.tables[table_key]
    table = AnnData(obs=data.obs.copy(), uns=dict(data.uns))
    grade_key = "cytonym_grade"
    scores = score_ihc(
        table, by=by, class_key=class_key, density_key=density_key, thresholds=thresholds, key_added=grade_key
    )
    column = by or table.uns.get("spatialdata_attrs", {}).get("region_key")
    one = pd.Series(scores.index[0], index=table.obs_names)
    groups = one if column is None else labels_of(table, column).astype(object)
    known = table.obs[class_key].notna().to_numpy()
    graded = grade_key in table.obs and bool(scores["h_score"].notna().any())
    high = _highest(table.obs[density_key], thresholds) if graded else 1.0

    parts = [NAME, CARD, *([CARD, HISTOGRAM] if graded else [])]
    width = sum(parts) + BETWEEN * len(parts)
    n = len(scores)
    figure = new_figure(width, HEAD + n * ROW + FOOT)
    figure.set_layout_engine("none")
    lefts = np.cumsum([0.1, *(part + BETWEEN for part in parts[:-1])])
    for row, (name, score) in enumerate(scores.iterrows()):
        axes = [_axes(figure, left, HEAD + row * ROW, part) for left, part in zip(lefts, parts, strict=True)]
        _name(axes[0], str(name), score)
        _positive(axes[1], score)
        if graded:
            total = n > 1 and row == n - 1
            members = known & (groups.notna() if total else groups == name).to_numpy()
            _intensities(axes[2], score)
            density = table.obs[density_key].to_numpy(dtype=np.float64)
            positive = (table.obs[class_key] == "positive").to_numpy()
            at = members & np.isfinite(density)
            _histogram(axes[3], density[at], positive[at], thresholds, high, last=row == n - 1)
            if row == 0:
                line = Patch(facecolor="none", edgecolor="black", linewidth=0.8, label="class positive")
                axes[3].legend(handles=[line], loc="lower right", bbox_to_anchor=(1, 0.9), **KEY)
    _legend(figure, lefts, width, graded=graded)
    return figure


def _highest(density: pd.Series, thresholds: Sequence[float]) -> float:
    """Density at the right end of the histograms, the same for all."""
    values = density.to_numpy(dtype=np.float64)
    return max(float(np.quantile(values[np.isfinite(values)], QUANTILE)), 1.15 * float(thresholds[-1]))


def _axes(figure: Figure, left: float, top: float, width: float) -> Axes:
    """Axes of a part of a row, with room for a line of words above them."""
    across, down = figure.get_size_inches()
    above, height = 0.2, ROW - 0.36
    place = (left / across, 1 - (top + above + height) / down, width / across, height / down)
    ax = figure.add_axes(place)
    ax.set(yticks=[])
    for side in ax.spines:
        ax.spines[side].set_visible(False)
    return ax


def _name(ax: Axes, name: str, score: pd.Series) -> None:
    ax.set(xticks=[], xlim=(0, 1), ylim=(0, 1))
    shown = name if len(name) <= 20 else f"{name[:19]}…"
    ax.text(0, 0.98, shown, fontsize=8.5, fontweight="bold", va="top")
    ax.text(0, 0.5, f"{int(score['num_total']):,} nuclei", fontsize=7.5, color=INK, va="top")


def _positive(ax: Axes, score: pd.Series) -> None:
    """Positive and negative nuclei, and their share."""
    counts = [int(score["num_pos"]), int(score["num_neg"])]
    shares = np.array(counts) / max(sum(counts), 1)
    _bar(ax, shares, COLORS["clear"], [f"{count:,}" for count in counts], ("black", "white"))
    ax.set_title(f"{score['percent_pos']:.1f} % positive", loc="left", fontsize=8.5, pad=2)


def _intensities(ax: Axes, score: pd.Series) -> None:
    """Shares of the intensities, and the H-score."""
    if not np.isfinite(score["h_score"]):
        ax.set(xticks=[])
        ax.text(0, 0.5, "no densities", transform=ax.transAxes, fontsize=7, color=INK, va="center")
        return
    shares = score[list(GRADES)].to_numpy(dtype=np.float64) / 100
    _bar(ax, shares, BROWNS, [f"{100 * share:.0f} %" for share in shares], ("black", "black", "white", "white"))
    ax.set_title(f"H-score {score['h_score']:.0f}", loc="left", fontsize=8.5, pad=2)


def _bar(ax: Axes, shares: np.ndarray, colors: Sequence[str], words: Sequence[str], inks: Sequence[str]) -> None:
    """Shares of 1 as one bar; those that are too small for their number have it not."""
    starts = np.cumsum([0, *shares[:-1]])
    ax.barh(0, shares, left=starts, height=1, color=colors, linewidth=0)
    for start, share, word, ink in zip(starts, shares, words, inks, strict=True):
        if share >= LEAST_SHARE and share >= 0.032 * len(word):
            ax.text(start + share / 2, 0, word, ha="center", va="center_baseline", fontsize=7, color=ink)
    ax.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[])


def _histogram(
    ax: Axes, density: np.ndarray, positive: np.ndarray, thresholds: Sequence[float], high: float, *, last: bool
) -> None:
    """Nuclei by density, in the color of their intensity; those of positive class as a line."""
    edges = np.linspace(0, high, BINS + 1)
    shown = np.clip(density, 0, high)
    middle = (edges[:-1] + edges[1:]) / 2
    counts = np.histogram(shown, edges)[0]
    paint = [BROWNS[level] for level in np.searchsorted(np.asarray(thresholds), middle, side="right")]
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=paint, linewidth=0)
    ax.stairs(np.histogram(shown[positive], edges)[0], edges, color="black", linewidth=0.8)
    for threshold in thresholds:
        ax.axvline(threshold, color=INK, linewidth=0.7, linestyle=(0, (2, 2)))
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ax.set(xlim=(0, high), ylim=(0, 1.1 * max(counts.max(initial=0), 1)), yticks=[])
    ax.spines["bottom"].set_visible(True)
    ax.set_xticks([0, *thresholds], ["0", *(f"{threshold:g}" for threshold in thresholds)] if last else [""] * 4)
    ax.minorticks_off()
    ax.tick_params(labelsize=6.5, pad=1.5)
    if last:
        ax.set_xlabel("optical density of DAB", fontsize=7, labelpad=1.5)


def _legend(figure: Figure, lefts: np.ndarray, width: float, *, graded: bool) -> None:
    """Below the columns."""
    named = [(lefts[1], COLORS["clear"], ("positive", "negative")), *([(lefts[2], BROWNS, GRADES)] if graded else [])]
    for left, colors, names in named:
        handles = [Patch(color=color, label=name) for color, name in zip(colors, names, strict=True)]
        place = (left / width, (FOOT + 0.1) / figure.get_figheight())
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=4, columnspacing=0.9, **KEY)
