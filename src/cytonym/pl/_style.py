"""Colours and figures. Nothing here or in the figures changes matplotlib's global settings or shows a figure."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R", bound="Figure")

# Okabe and Ito's colours, told apart with any of the common colour vision deficiencies.
BLUE, ORANGE, GREEN, VERMILION, SKY, PINK, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
GREY = "#9A9A9A"
INK = "#333333"

# Light on black and added up; neighbours in the list differ in hue and in lightness.
GLOW = ("#3D7BFF", "#FFB000", "#FF4FA3", "#2ED98A", "#FFFFFF", "#9B7BFF", "#F0E442")

SETTINGS: Any = {
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 110.0,
    "text.parse_math": False,  # a dollar in the name of a marker is a dollar
}


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Draw under our settings, then take the figure out of pyplot: it is returned, neither shown nor kept open."""

    @wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> R:
        before = set(plt.get_fignums())
        try:
            with mpl.rc_context(SETTINGS):
                return plot(*args, **kwargs)
        finally:
            for number in set(plt.get_fignums()) - before:
                plt.close(number)

    return draw


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches whose axes make room for their labels."""
    return plt.figure(figsize=(width, height), layout="constrained")


def settle(figure: Figure) -> Figure:
    """Lay the figure out before it is drawn: where an image keeps its shape, one pass does not yet make all the room that labels need."""
    for _ in range(3):
        figure.draw_without_rendering()
    return figure


def text_width(names: Sequence[object], points: float = 7.5) -> float:
    """Inches that the longest of these names takes, about."""
    return max((len(str(n)) for n in names), default=0) * points * 0.6 / 72


def bare(ax: Axes) -> Axes:
    """No ticks, no frame."""
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def nice_length(span: float) -> float:
    """The largest of 1, 2, 5 x 10^n that is not above `span`."""
    power = 10.0 ** np.floor(np.log10(span))
    return float(max(step * power for step in (1, 2, 5) if step * power <= span * (1 + 1e-9)))
