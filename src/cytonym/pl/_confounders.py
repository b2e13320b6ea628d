"""What the errors of marker positivity go along with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cytonym.pl._style import BLUE, GREEN, INK, ORANGE, PINK, VERMILION, new_figure, styled, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "cell_size": "cell size",
    "heterogeneity": "marker heterogeneity",
    "rarity": "marker rarity",
    "sparsity": "positive neighbours",
    "density": "cell density",
}
COLORS = (BLUE, ORANGE, GREEN, VERMILION, PINK)
COLUMNS = ["confounder", "mutual_information", "null_95", "explained", "n", "n_units"]
PITCH = 0.22  # inches of a bar


@styled
def confounders(result: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """Bars of `tl.confounders`: what goes along with the errors, and how much of it may be chance.

    A bar that ends before the line of its null says no more than shuffled values do, and is pale. Behind each bar stands the share
    of the entropy of the errors that it explains: with 5 % even a clear association is a small one.

    Parameters
    ----------
    result
        DataFrame of `tl.confounders`, or a mapping from names to up to five of them, such as two kinds of scores against the same
        truth.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    ValueError
        No or too many results, or one that `tl.confounders` did not return.

    Examples
    --------
    >>> import pandas as pd
    >>> import cytonym as cy
    >>> found = {"confounder": ["cell_size", "density"], "mutual_information": [0.08, 0.004], "null_95": [0.006, 0.006]}
    >>> result = pd.DataFrame(found).assign(explained=[0.2, 0.01], n=1000, n_units=1000)
    >>> figure = cy.pl.confounders(result)
    """
    results = _named(result)
    order = list(dict.fromkeys(name for frame in results.values() for name in frame["confounder"]))
    best = {
        c: max(
            float(f.loc[f["confounder"] == c, "mutual_information"].max())
            for f in results.values()
            if c in set(f["confounder"])
        )
        for c in order
    }
    order = sorted(order, key=lambda c: -best[c])
    labels = [NAMES.get(c, c) for c in order]
    step = len(results) + 0.7
    many = len(results) > 1
    figure = new_figure(text_width(labels) + 4.2, PITCH * step * len(order) + 0.95 + 0.2 * many)
    ax = figure.subplots()
    widest = max(float(f[["mutual_information", "null_95"]].to_numpy().max()) for f in results.values()) or 1.0
    for i, (color, frame) in enumerate(zip(COLORS, results.values(), strict=False)):
        by_name = frame.set_index("confounder")
        for j, confounder in enumerate(order):
            if confounder not in by_name.index:
                continue
            value, null, share = (
                float(by_name.loc[confounder, c]) for c in ("mutual_information", "null_95", "explained")
            )
            y = j * step + i
            ax.barh(y, value, height=0.82, color=color, alpha=1 if value > null else 0.35, linewidth=0)
            ax.plot([null, null], [y - 0.48, y + 0.48], color=INK, linewidth=1.3, solid_capstyle="butt")
            words = "" if np.isnan(share) else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
            end = value if null - value > 0.12 * widest else max(value, null)
            ax.text(end + 0.015 * widest, y, words, va="center", fontsize=7, color=INK)
    middle = (len(results) - 1) / 2
    ax.set_yticks([j * step + middle for j in range(len(order))], labels)
    ax.set(
        xlim=(0, 1.12 * widest), ylim=((len(order) - 1) * step + len(results) - 0.35, -0.65),
        xlabel="mutual information with errors (nats; % of their entropy)",
    )  # fmt: skip
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.axvline(0, color="#666666", linewidth=0.7)
    handles: list[Line2D | Patch] = [Line2D([], [], color=INK, linewidth=1.3, label="95 % of shuffles lie below")]
    if many:
        handles = [*(Patch(color=c, label=name) for c, name in zip(COLORS, results, strict=False)), *handles]
    figure.legend(
        handles=handles, loc="outside lower right", ncols=min(len(handles), 3), frameon=False, handlelength=1.2
    )
    facts = [_facts(name if many else "", frame) for name, frame in results.items()]
    ax.set_title("\n".join(f for f in facts if f), loc="left", fontsize=7.5, color=INK)
    return figure


def _named(result: pd.DataFrame | Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    results = {"": result} if isinstance(result, pd.DataFrame) else dict(result) if isinstance(result, Mapping) else {}
    if not 1 <= len(results) <= len(COLORS):
        msg = f"Give the DataFrame of `tl.confounders`, or a mapping from names to up to {len(COLORS)} of them, got {len(results)}."
        raise ValueError(msg)
    for name, frame in results.items():
        if not isinstance(frame, pd.DataFrame) or not set(COLUMNS) <= set(frame.columns) or frame.empty:
            msg = f"Result {name!r} must be what `tl.confounders` returns, a DataFrame with {COLUMNS}."
            raise ValueError(msg)
    return results


def _facts(name: str, frame: pd.DataFrame) -> str:
    if "error_rate" not in frame.attrs:
        return name
    words = f"{frame.attrs['error_rate']:.1%} of {frame.attrs['n']:,} calls are wrong"
    return f"{name}: {words}" if name else words
