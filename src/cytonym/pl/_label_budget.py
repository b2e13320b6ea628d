"""Scores of classifiers against the number of labels they learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cytonym.pl._style import BLUE, GREEN, INK, ORANGE, PINK, SKY, VERMILION, new_figure, styled, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY)
NAMES = {"macro_f1": "macro-F1", "micro_f1": "micro-F1", "pr_auc": "PR-AUC", "ece": "calibration error"}
UNITS = {"cells": ("n_cells", "labelled cells to learn from"), "groups": ("n_groups", "patients to learn from")}
BAND = (0.1, 0.9)  # quantiles over the draws
APART = 0.075  # of the axes' height between two labels of one line, and as much again for their second line


@styled
def label_budget(*budgets: pd.DataFrame | Mapping[str, pd.DataFrame], score: str = "macro_f1") -> Figure:
    """Curves of `tl.label_budget`, from which to see whether more labels help.

    The line is the median over the draws, the band spans 80 % of them. Beside its end stands what the last doubling of the
    labels brought; curves flatten, so the next one will rarely bring more.

    Parameters
    ----------
    *budgets
        DataFrames of `tl.label_budget`, or a mapping from names to them: up to six, all over cells or all over patients.
        Without names a curve is called after its model, and after the numbers it reads where models repeat.
    score
        Column to show: `"macro_f1"`, `"micro_f1"`, `"pr_auc"` or `"ece"`.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        There is no such score.
    ValueError
        No or too many budgets, or some over cells and some over patients.

    Examples
    --------
    >>> import pandas as pd
    >>> import cytonym as cy
    >>> budget = pd.DataFrame({"unit": "cells", "n_cells": [50, 100, 200], "n_groups": 1, "macro_f1": [0.6, 0.7, 0.75]})
    >>> figure = cy.pl.label_budget({"logistic": budget})
    """
    curves = _named(budgets)
    units = sorted({str(unit) for frame in curves.values() for unit in frame["unit"].unique()})
    if len(units) > 1:
        msg = f"Some of the curves are over {units[0]} and some over {units[1]}: draw each kind by itself."
        raise ValueError(msg)
    lacking = [name for name, frame in curves.items() if score not in frame]
    if lacking:
        known = [c for c in NAMES if all(c in frame for frame in curves.values())]
        msg = f"No score {score!r} in the budget of {lacking}. Available: {known}."
        raise KeyError(msg)
    column, words = UNITS[units[0]]
    figure = new_figure(4.6 + text_width(list(curves)), 3.3)
    ax = figure.subplots()
    ends = {}
    for color, (name, frame) in zip(COLORS, curves.items(), strict=False):
        found = frame.groupby(column)[score]
        line = found.median()
        low, high = (found.quantile(q) for q in BAND)
        ax.fill_between(line.index, low, high, color=color, alpha=0.16, linewidth=0)
        ax.plot(line.index, line, color=color, linewidth=1.6, marker="o", markersize=3.5)
        ends[name] = (color, float(line.iloc[-1]), _last_doubling(line))
    _number_ticks(ax, np.unique(np.concatenate([frame[column].unique() for frame in curves.values()])))
    ax.set(xlabel=words, ylabel=NAMES.get(score, score))
    ax.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    _label_ends(ax, ends, alone=len(ends) == 1)
    tested = {frame.attrs.get("n_test") for frame in curves.values()} - {None}
    if len(tested) == 1:
        ax.set_title(f"scored on {tested.pop():,} labelled cells kept aside", loc="left", color=INK, fontsize=8)
    return figure


def _named(budgets: tuple[pd.DataFrame | Mapping[str, pd.DataFrame], ...]) -> dict[str, pd.DataFrame]:
    """Name of each curve -> its numbers."""
    curves: dict[str, pd.DataFrame] = {}
    plain = [b for b in budgets if not isinstance(b, Mapping)]
    models = [str(b.attrs.get("model", "")) for b in plain]
    for model, frame in zip(models, plain, strict=True):
        name = model or "classifier"
        if models.count(model) > 1 and frame.attrs.get("use_rep"):
            name += ": " + ", ".join(frame.attrs["use_rep"])
        same = sum(known.split(" (")[0] == name for known in curves)
        curves[f"{name} ({same + 1})" if same else name] = frame
    for named in budgets:
        if isinstance(named, Mapping):
            curves |= {str(name): frame for name, frame in named.items()}
    if not 1 <= len(curves) <= len(COLORS):
        msg = f"{len(curves)} budgets: give between 1 and {len(COLORS)}, more lines cannot be told apart."
        raise ValueError(msg)
    needed = ["unit", "n_cells", "n_groups"]
    for name, frame in curves.items():
        if not isinstance(frame, pd.DataFrame) or not set(needed) <= set(frame.columns) or frame.empty:
            msg = f"Budget {name!r} must be what `tl.label_budget` returns, a DataFrame with {needed} and scores."
            raise ValueError(msg)
    return curves


def _last_doubling(line: pd.Series) -> float:
    """Rise of the curve from half of its largest number to the whole; NaN where it does not reach so far."""
    n = line.index.to_numpy(dtype=float)
    if n[0] > n[-1] / 2:
        return float("nan")
    return float(line.iloc[-1] - np.interp(np.log(n[-1] / 2), np.log(n), line))


def _number_ticks(ax: Axes, numbers: np.ndarray) -> None:
    """A logarithmic axis with ticks at the numbers themselves, as far as they have room."""
    ax.set_xscale("log")
    span = np.log(numbers[-1] / numbers[0]) or 1.0
    kept = [numbers[-1]]
    for n in numbers[-2::-1]:
        if np.log(kept[-1] / n) > 0.1 * span:
            kept.append(n)
    ax.xaxis.set_major_locator(FixedLocator([float(n) for n in kept[::-1]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))


def _label_ends(ax: Axes, ends: dict[str, tuple[str, float, float]], *, alone: bool) -> None:
    """Name and last rise of each curve beside its end, in the order of the ends, none over another."""
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    places = np.array([(ends[name][1] - low) / (high - low) for name in order])
    step = (1 + (not alone)) * APART
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + step)
    places -= max(0.0, places[-1] - 0.96)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - step)
    for name, place in zip(order, places, strict=True):
        color, _, rise = ends[name]
        gain = "" if np.isnan(rise) else f"last doubling: {rise:+.3f}".replace("-", "\N{MINUS SIGN}")
        text = "\n".join(part for part in (name, gain) if part)
        ax.text(1.03, place, text, transform=ax.transAxes, color=color, va="center", fontsize=7.5, linespacing=1.25)
