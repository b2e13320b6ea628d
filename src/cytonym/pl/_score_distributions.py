"""How intensities and scores of each marker are spread over the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch

from cytonym.data.checks import require_key
from cytonym.get import marker_frame
from cytonym.pl._scores import HIGH, LOW, pick, score_frame
from cytonym.pl._style import GREY, INK, VERMILION, new_figure, styled, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 40
QUANTILE = 0.999  # of the intensities; brighter cells stand in the last bin
PAIRS = 4  # beside each other, at most
COLORS = ("#2B6EA8", VERMILION, "#E3C800")  # as in `positivity`, for white paper
LEFT, TOP, BELOW, WITHIN, BETWEEN, ROW = 0.36, 0.24, 0.52, 0.16, 0.24, 0.42  # inches


@styled
def score_distributions(
    adata: AnnData,
    markers: Sequence[str] | str | None = None,
    *,
    key: str = "nimbus_positivity",
    intensities: str | None = "X",
    cofactor: float | None = None,
) -> Figure:
    """Histograms of each marker's mean intensity and of its score, to see whether the scores fall into two groups.

    Intensities mostly run from dark to bright without a gap, so that a threshold is arbitrary; scores should be near 0 or near 1.
    Each panel says how well its numbers separate: the share of their variance that lies between the two groups of the best
    threshold, 1 for two points, about 0.64 for one bell curve. Beside it stands the share of clear scores, below 0.25 or above 0.75.

    Parameters
    ----------
    adata
        Table of N cells.
    markers
        Markers to show, in this order; all with scores by default.
    key
        DataFrame of `adata.obsm` with a score in 0…1 for each cell and marker.
    intensities
        Mean intensities: `"X"`, or a DataFrame of `adata.obsm`; where the variables of `X` are none of the markers,
        `obsm["mean_intensity"]`. None: scores alone.
    cofactor
        Show and judge arcsinh(intensity / cofactor) instead of the intensities as they are, such as 5 for counts.

    Returns
    -------
    matplotlib.figure.Figure
        Heights are shares of the cells, on a square-root scale so that a rare positive group can be seen; intensities above their
        99.9th percentile are in the last bin. Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        Scores, intensities or a marker are missing.
    ValueError
        No cell has a score for any of the markers, scores lie outside 0…1, or `cofactor` is not positive.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(rng.gamma(2.0, size=(500, 1)), var=pd.DataFrame(index=["CD8"]))
    >>> adata.obsm["nimbus_positivity"] = pd.DataFrame({"CD8": rng.beta(0.2, 0.3, 500)}, index=adata.obs_names)
    >>> figure = cy.pl.score_distributions(adata)
    """
    scores = score_frame(adata, key)
    names = pick(markers, scores, key)
    values = {m: _finite(scores[m]) for m in names}
    if not any(len(v) for v in values.values()):
        msg = f"No cell has a score in `obsm[{key!r}]` for {names}."
        raise ValueError(msg)
    outside = [m for m, v in values.items() if len(v) and (v.min() < 0 or v.max() > 1)]
    if outside:
        msg = f"Scores of {outside[:5]} in `obsm[{key!r}]` lie outside 0…1."
        raise ValueError(msg)
    if cofactor is not None and not cofactor > 0:
        msg = f"`cofactor` must be positive, got {cofactor}."
        raise ValueError(msg)
    bright = None if intensities is None else _intensities(adata, intensities, names)

    columns = 1 if len(names) <= 3 else min(PAIRS, int(np.ceil(np.sqrt(len(names) / 2))))
    rows = -(-len(names) // columns)
    each = 1 if bright is None else 2
    width, height = (1.7 if each == 2 else 2.4, 1.0) if columns == 1 else (1.15, 0.72)
    width = max(width, (text_width(names, 9) - BETWEEN / 2) / each - WITHIN)  # room for the longest name
    across = each * (width + WITHIN) + BETWEEN
    one_line = LEFT + columns * across > 4.5
    below = BELOW + (0 if one_line else 0.15)
    figure = new_figure(LEFT + columns * across, TOP + rows * (height + ROW) - ROW + below)
    figure.set_layout_engine("none")
    inches = figure.get_size_inches()
    for i, name in enumerate(names):
        row, column = divmod(i, columns)
        axes = []
        for j in range(each):
            left, bottom = LEFT + column * across + j * (width + WITHIN), below + (rows - 1 - row) * (height + ROW)
            axes.append(figure.add_axes((left / inches[0], bottom / inches[1], width / inches[0], height / inches[1])))
        if bright is not None:
            _intensity_panel(axes[0], _finite(bright[name]) if name in bright else None, cofactor)
        _score_panel(axes[-1], values[name])
        axes[0].set_title(name, loc="left", fontsize=8, pad=3, fontweight="bold")
    note = "share of cells" + ("\n" if rows == 1 else " ") + "(square-root scale)"
    figure.supylabel(
        note, fontsize=7 if rows == 1 else 8, x=0.16 / inches[0], y=0.5 + 0.4 * below / inches[1], ha="center"
    )
    words = (f"score below {LOW:g}", "between", f"above {HIGH:g}")
    handles = [Patch(color=color, label=word) for color, word in zip(COLORS, words, strict=True)]
    if bright is not None:
        name = "mean intensity" + ("" if cofactor is None else f", arcsinh(x / {cofactor:g})")
        handles.insert(0, Patch(color=GREY, label=name))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles) if one_line else 2, frameon=False,
        handlelength=1, handleheight=1, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    return figure


def separation(values: np.ndarray) -> float:
    """Share of the variance between the two groups of the best threshold (Otsu 1979); NaN where all values are equal."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    n = len(values)
    if n < 2 or values[0] == values[-1]:
        return float("nan")
    below = np.arange(1, n)
    apart = values[1:] > values[:-1]  # a threshold never divides equal values
    lower = np.cumsum(values - values.mean())[:-1]  # of those below, from the mean
    between = lower**2 * n / (below * (n - below))
    return float(between[apart].max() / ((values - values.mean()) ** 2).sum())


def _finite(column: pd.Series) -> np.ndarray:
    values = column.to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]


def _intensities(adata: AnnData, key: str, names: list[str]) -> pd.DataFrame:
    known = [m for m in names if m in adata.var_names]
    if key == "X" and known and adata.X is not None:
        return adata[:, known].to_df()
    if key == "X" and "mean_intensity" not in adata.obsm:
        msg = (
            f"None of {names[:10]} is a variable of `X`, and there is no `obsm['mean_intensity']`: run `pp.measure_cells`, or give "
            "`intensities`, a DataFrame of `obsm`, or None for the scores alone."
        )
        raise KeyError(msg)
    key = "mean_intensity" if key == "X" else key
    require_key(key, adata.obsm, "intensities", "adata.obsm")
    frame = marker_frame(adata, key)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    if not set(names) & set(frame.columns):
        msg = f"None of {names[:10]} is a column of `obsm[{key!r}]`. Available: {list(frame.columns)}."
        raise KeyError(msg)
    return frame


def _intensity_panel(ax: Axes, values: np.ndarray | None, cofactor: float | None) -> None:
    if values is None or not len(values):
        _say(ax, "not measured" if values is None else "no intensities")
        return
    shown = values if cofactor is None else np.arcsinh(values / cofactor)
    low, high = min(0.0, float(shown.min())), float(np.quantile(shown, QUANTILE))
    high = high if high > low else float(shown.max())
    if high <= low:
        _say(ax, "all zero" if high == 0 else "all equal")
        return
    shown = np.clip(shown, low, high)
    _bars(ax, shown, np.linspace(low, high, BINS + 1), [GREY] * BINS)
    apart = separation(shown)
    _tell(ax, [] if np.isnan(apart) else [f"separation {apart:.2f}"], x=0.97, ha="right")
    ax.set_xticks([low, high], [f"{low:.2g}", f"{high:.3g}"])
    for label, side in zip(ax.get_xticklabels(), ("left", "right"), strict=True):
        label.set(ha=side)


def _score_panel(ax: Axes, values: np.ndarray) -> None:
    if not len(values):
        _say(ax, "no scores")
        return
    edges = np.linspace(0, 1, BINS + 1)
    colors = [COLORS[int(x >= LOW) + int(x >= HIGH)] for x in edges[:-1] + 1e-9]
    _bars(ax, values, edges, colors)
    clear = float(((values < LOW) | (values > HIGH)).mean())
    apart = separation(values)
    words = [f"{clear:.0%} clear"] if np.isnan(apart) else [f"separation {apart:.2f}", f"{clear:.0%} clear"]
    _tell(ax, words, x=0.5, ha="center")
    ax.set_xticks([0, 0.5, 1], ["0", "", "1"])


def _bars(ax: Axes, values: np.ndarray, edges: np.ndarray, colors: list[str]) -> None:
    share = np.histogram(values, edges)[0] / len(values)
    ax.bar(edges[:-1], share, np.diff(edges), align="edge", color=colors, linewidth=0)
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0, 2.2 * share.max()), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.tick_params(labelsize=6.5, pad=1.5)


def _tell(ax: Axes, lines: list[str], *, x: float, ha: str) -> None:
    ax.text(x, 0.98, "\n".join(lines), transform=ax.transAxes, ha=ha, va="top", fontsize=6, color=INK, linespacing=1.1)


def _say(ax: Axes, words: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines["left"].set_visible(False)
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", fontsize=7, color=INK)
