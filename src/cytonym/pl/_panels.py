"""Where the panels of parts of an image are in a figure, and what is written beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke

from cytonym.pl._style import INK, bare, new_figure, nice_length, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cytonym.pl._view import View

FEW = 3  # markers; more are shown smaller
SMALL = 6.5  # points of a name that is too long for the usual size
LEFT, TOP, BELOW, GAP, APART = 0.3, 0.24, 0.62, 0.12, 0.22  # inches


def panel_size(view: View, names: Sequence[str]) -> tuple[float, float]:
    """Inches of a panel."""
    y0, y1, x0, x1 = view.box
    side = 3.2 if len(names) == 1 else 2.6 if len(names) <= FEW else 2.0
    longest = max(y1 - y0, x1 - x0)
    inch = min(max(side / longest, 1.4 / (x1 - x0)), 2 * side / longest)  # words above a panel need some width
    return max((x1 - x0) * inch, 1.4), max((y1 - y0) * inch, text_width(names, SMALL) + 0.1)


def rows_of(view: View, names: Sequence[str], n_columns: int) -> int:
    """Rows of a figure in which many markers stand in blocks beside each other, so that it is about square."""
    width, height = panel_size(view, names)
    n = len(names)
    shapes = {
        -(-n // blocks): (blocks * (LEFT + n_columns * (width + GAP))) / (-(-n // blocks) * (height + APART) + BELOW)
        for blocks in range(1, 7)
    }
    return min(shapes, key=lambda rows: abs(np.log(shapes[rows]))) if n > FEW else n


def panels(view: View, names: Sequence[str], titles: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """Axes of each marker, all of the same part of the image."""
    width, height = panel_size(view, names)
    rows = rows_of(view, names, len(titles))
    blocks = -(-len(names) // rows)
    across = LEFT + len(titles) * (width + GAP) + 0.05
    figure = new_figure(blocks * across, TOP + rows * (height + APART) - APART + BELOW)
    figure.set_layout_engine("none")
    inches = figure.get_size_inches()
    y0, y1, x0, x1 = view.box
    axes: list[list[Axes]] = []
    for i, name in enumerate(names):
        block, row = divmod(i, rows)
        axes.append([])
        for j, title in enumerate(titles):
            left = block * across + LEFT + j * (width + GAP)
            bottom = inches[1] - TOP - row * (height + APART) - height
            place = (left / inches[0], bottom / inches[1], width / inches[0], height / inches[1])
            first = axes[0][0] if axes[0] else None
            ax = bare(figure.add_axes(place, sharex=first, sharey=first))
            ax.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal", autoscale_on=False)
            if row == 0:
                ax.set_title(title, loc="left", fontsize=8.5, pad=3)
            axes[-1].append(ax)
        fits = text_width([name], 9) < height
        axes[-1][0].set_ylabel(name, fontsize=9 if fits else SMALL)
    return figure, axes


def note(ax: Axes, words: str) -> None:
    ax.set_title(words, loc="right", fontsize=6.5, color=INK, pad=3)


def scale_bar(ax: Axes, view: View, pixel_size: float | None) -> None:
    """In the lower left corner, up to a quarter of the width."""
    y0, y1, x0, x1 = view.box
    length = nice_length(0.25 * (x1 - x0) * (pixel_size or 1.0))
    left, y = x0 + 0.04 * (x1 - x0), y1 - 0.05 * (y1 - y0)
    right = left + length / (pixel_size or 1.0)
    edge = [withStroke(linewidth=3.5, foreground="black")]
    ax.plot([left, right], [y, y], color="white", linewidth=2, solid_capstyle="butt", path_effects=edge)
    text = f"{length:g} " + ("px" if pixel_size is None else "\N{MICRO SIGN}m")
    ax.annotate(
        text, ((left + right) / 2, y), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
        color="white", fontsize=7, path_effects=[withStroke(linewidth=2, foreground="black")], annotation_clip=False,
    )  # fmt: skip


def color_bar(ax: Axes, cmap: Any, top: float) -> None:
    """Below a panel."""
    height = ax.get_position().height * ax.figure.get_figheight()  # type: ignore[union-attr]
    bar = ax.inset_axes((0.15, -0.17 / height, 0.7, 0.09 / height))
    drawn = ax.figure.colorbar(ScalarMappable(Normalize(0, top), cmap), cax=bar, orientation="horizontal")
    drawn.outline.set_visible(False)  # type: ignore[operator]
    bar.set_xticks([0, top / 2, top], ["0", f"{top / 2:.2g}", f"{top:.2g}"])
    bar.tick_params(labelsize=7, length=2, pad=1.5)
