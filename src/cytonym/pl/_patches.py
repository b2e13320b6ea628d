"""A gallery of cells in chosen markers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection

from cytonym._shared import KEYS, RNG, document, seed_of
from cytonym.data.checks import resolve_size
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.get import labels_of
from cytonym.pl._gallery import blend, color_handles, colors_of, contrast, draw_scale_bar, places, read_windows
from cytonym.pl._style import bare, new_figure, settle, styled, text_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

SIDE = 0.62  # inches of a patch
PER_ROW = 10  # patches in a row where cells are not grouped


@styled
@document(keys=KEYS, rng=RNG)
def patches(
    sdata: SpatialData,
    markers: Sequence[str] | Mapping[str, str],
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    n: int = 8,
    size_px: int | None = None,
    size_um: float | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Gallery of cells in chosen markers, their colours added up.

    The contrast of a marker is the same in all patches. Where label images name the cells, the outline of the cell is drawn.

    Parameters
    ----------
    sdata
        Images, cells and, for `groupby` and `cells`, a table.
    markers
        Channels to show, up to seven, or a mapping from channels to colours.
    {keys}
    groupby
        Column of the table's `obs`: one row of patches a group.
    groups
        Groups to show, in this order; all by default.
    cells
        Names of cells (`obs_names`) to show, in this order, instead of drawing some at random.
    n
        Cells to draw at random, of each group if there are groups.
    size_px, size_um
        Side of a patch, in pixels of the image or in micrometres; 32 pixels by default.
    limits
        Intensities shown black and at full colour, for some markers. Default: 1st and 99.7th percentile over the gallery.
    {rng}

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        A channel, column, group or cell is missing.
    ValueError
        Too many markers, both `cells` and `groupby`, `limits` that do not rise, or no cell to show.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40)
    >>> figure = cy.pl.patches(sdata, ["CD3", "CD20"], groupby="cell_type", n=4, size_px=16)
    """
    colors = colors_of(markers)
    if cells is not None and groupby is not None:
        msg = "`cells` names the cells to show and `groupby` draws some of each group: give one of the two."
        raise ValueError(msg)
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=list(colors),
    )  # fmt: skip
    rows = open_table(sdata, sources, table_key)
    place = places(rows, sources)
    chosen = _choose(rows.table, place[:, 0] >= 0, groupby=groupby, groups=groups, cells=cells, n=n, seed=seed_of(rng))

    side = 32 if size_px is None and size_um is None else resolve_size(sources[0], size_px, size_um)
    every = np.unique(np.concatenate(list(chosen.values())))
    windows, outlines = read_windows(sources, place[every], side)
    images = blend(windows, colors, contrast(windows, list(colors), limits or {}))
    where = {row: i for i, row in enumerate(every)}
    n_columns = max(map(len, chosen.values()))
    per_line = max(1, int((n_columns * SIDE + text_width(list(chosen))) // (text_width(list(colors)) + 0.45)))
    figure = new_figure(
        max(n_columns * SIDE + text_width(list(chosen)) + 0.45, text_width(list(colors)) + 0.6),
        len(chosen) * SIDE + 0.5 + 0.18 * -(-len(colors) // per_line),
    )
    ax = bare(figure.subplots())
    gap = max(1, side // 16)
    step = side + gap
    canvas = np.ones((len(chosen) * step - gap, n_columns * step - gap, 3), dtype=np.float32)
    lines = []
    for i, picked in enumerate(chosen.values()):
        for j, row in enumerate(picked):
            canvas[i * step : i * step + side, j * step : j * step + side] = images[where[row]]
            lines += [line + (j * step, i * step) for line in outlines[where[row]]]
    ax.imshow(canvas, interpolation="nearest", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    ax.add_collection(LineCollection(lines, colors="white", linewidths=0.6, alpha=0.8))
    ax.set_yticks([i * step + side / 2 for i in range(len(chosen))], list(chosen))
    ax.tick_params(length=0)
    draw_scale_bar(ax, sources, side, canvas.shape)
    figure.legend(
        handles=color_handles(colors), loc="outside upper left", ncols=min(per_line, len(colors)), frameon=False,
        handlelength=1, handleheight=1, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip
    return settle(figure)


def _choose(
    table: AnnData,
    visible: np.ndarray,
    *,
    groupby: str | None,
    groups: Sequence[str] | None,
    cells: Sequence[str] | None,
    n: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Rows of the table to show, by the label of their row of patches."""
    if n < 1:
        msg = f"`n` must be at least 1, got {n}."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    if cells is not None:
        rows = table.obs_names.get_indexer([str(c) for c in cells])
        lost = [str(c) for c, row in zip(cells, rows, strict=True) if row < 0 or not visible[row]]
        if lost or not len(rows):
            msg = f"{len(lost)} of {len(rows)} `cells` are not in the table or have no place in these images, such as {lost[:3]}."
            raise KeyError(msg)
    elif groupby is None:
        rows = np.sort(rng.permutation(np.flatnonzero(visible))[:n])
    else:
        labels = labels_of(table, groupby)
        names = list(labels[visible].cat.remove_unused_categories().cat.categories)
        unknown = [g for g in groups or [] if str(g) not in names]
        if unknown:
            msg = f"No group {unknown} among the cells in these images. Available in `obs[{groupby!r}]`: {names}."
            raise KeyError(msg)
        labels_array = labels.astype(object).to_numpy()
        members = {g: np.flatnonzero(visible & (labels_array == g)) for g in (map(str, groups) if groups else names)}
        chosen = {g: np.sort(rng.permutation(rows)[:n]) for g, rows in members.items()}
        if not chosen:
            msg = f"No cell in these images has a group in `obs[{groupby!r}]`."
            raise ValueError(msg)
        return chosen
    if not len(rows):
        msg = "No cell to show: none of the cells has its centre in its image."
        raise ValueError(msg)
    # one unnamed row after another; the names differ in their number of blanks
    return {" " * i: rows[start : start + PER_ROW] for i, start in enumerate(range(0, len(rows), PER_ROW))}
