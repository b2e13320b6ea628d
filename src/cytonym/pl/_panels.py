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
    axes: list[list[Axes]] = []
    for i, name in enumerate(names):
        block, row = divmod(i, rows)
        axes.append([])
        for j, title in enumerate(titles):
            left, top = block * across + LEFT + j * (width + GAP), TOP + row * (height + APART)
            first = axes[0][0] if axes[0] else None
            axes[-1].append(_panel(figure, view, (left, top, width, height), title if row == 0 else "", first))
        fits = text_width([name], 9) < height
        axes[-1][0].set_ylabel(name, fontsize=9 if fits else SMALL)
    return figure, axes


def tiles(
    view: View, titles: Sequence[str], columns: int, side: float, below: float = BELOW
) -> tuple[Figure, list[Axes]]:
    """Axes of one part of an image, so many beside each other; the longer side of each, and the room below, in inches."""
    y0, y1, x0, x1 = view.box
    inch = side / max(y1 - y0, x1 - x0)
    width, height = max((x1 - x0) * inch, 1.4), max((y1 - y0) * inch, 0.5)
    rows, apart = -(-len(titles) // columns), TOP + APART / 2
    figure = new_figure(GAP + columns * (width + GAP), TOP + rows * (height + apart) - apart + below)
    axes: list[Axes] = []
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        place = (GAP + column * (width + GAP), TOP + row * (height + apart), width, height)
        axes.append(_panel(figure, view, place, title, axes[0] if axes else None))
    return figure, axes


def _panel(
    figure: Figure, view: View, place: tuple[float, float, float, float], title: str, first: Axes | None
) -> Axes:
    """A panel whose left, top (from the top of the figure), width and height are in inches."""
    left, top, width, height = place
    across, down = figure.get_size_inches()
    y0, y1, x0, x1 = view.box
    figure.set_layout_engine("none")
    rectangle = (left / across, 1 - (top + height) / down, width / across, height / down)
    ax = bare(figure.add_axes(rectangle, sharex=first, sharey=first))
    ax.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal", autoscale_on=False)
    if title:
        ax.set_title(title, loc="left", fontsize=8.5, pad=3)
    return ax


def say_where(figure: Figure, view: View, shape: tuple[int, ...], left: float = LEFT) -> None:
    """Below the panels, which part of the image they show, unless it is all of it."""
    *_, height, width = shape
    y0, y1, x0, x1 = view.box
    if view.box != (0, height, 0, width):
        words = f"rows {y0:,} to {y1:,}, columns {x0:,} to {x1:,} of an image of {height:,} x {width:,} pixels"
        figure.text(left / figure.get_figwidth(), 0.05 / figure.get_figheight(), words, fontsize=6.5, color=INK)


def note(ax: Axes, words: str) -> None:
    ax.set_title(words, loc="right", fontsize=6.5, color=INK, pad=3)


def scale_bar(ax: Axes, view: View, pixel_size: float | None, *, on_bright: bool = False) -> None:
    """In the lower left corner, up to a quarter of the width."""
    y0, y1, x0, x1 = view.box
    length = nice_length(0.25 * (x1 - x0) * (pixel_size or 1.0))
    left, y = x0 + 0.04 * (x1 - x0), y1 - 0.05 * (y1 - y0)
    right = left + length / (pixel_size or 1.0)
    ink, around = ("black", "white") if on_bright else ("white", "black")
    edge = [withStroke(linewidth=3.5, foreground=around)]
    ax.plot([left, right], [y, y], color=ink, linewidth=2, solid_capstyle="butt", path_effects=edge)
    text = f"{length:g} " + ("px" if pixel_size is None else "\N{MICRO SIGN}m")
    ax.annotate(
        text, ((left + right) / 2, y), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
        color=ink, fontsize=7, path_effects=[withStroke(linewidth=2, foreground=around)], annotation_clip=False,
    )  # fmt: skip


def color_bar(ax: Axes, cmap: Any, top: float) -> None:
    """Below a panel."""
    height = ax.get_position().height * ax.figure.get_figheight()  # type: ignore[union-attr]
    bar = ax.inset_axes((0.15, -0.17 / height, 0.7, 0.09 / height))
    drawn = ax.figure.colorbar(ScalarMappable(Normalize(0, top), cmap), cax=bar, orientation="horizontal")
    drawn.outline.set_visible(False)  # type: ignore[operator]
    bar.set_xticks([0, top / 2, top], ["0", f"{top / 2:.2g}", f"{top:.2g}"])
    bar.tick_params(labelsize=7, length=2, pad=1.5)
