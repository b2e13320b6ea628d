"""A marker, its scores on the cells, and what they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import EllipseCollection
from matplotlib.colors import ListedColormap, to_rgba, to_rgba_array
from matplotlib.patches import Patch

from cytonym._shared import KEYS, document
from cytonym.data.checks import require_key
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.pl._panels import FEW, color_bar, note, panels, rows_of, say_where, scale_bar
from cytonym.pl._scores import (
    CALLS,
    COLORS,
    HIGH,
    LOW,
    SCORES,
    call_by_score,
    call_codes,
    check_cuts,
    pick,
    score_frame,
)
from cytonym.pl._style import styled
from cytonym.pl._view import WHOLE, choose_box, read_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows
    from cytonym.pl._view import Rims, View


DISC_UM, DISC_PX = 8.0, 9.0  # diameter of cells known by their centres, as in `pp.measure_cells`
QUANTILE = 0.999  # of the pixels, shown white
SPREADS = ListedColormap(colormaps["magma"](np.linspace(0.18, 1, 256)))  # on black
CANVAS = 1500  # pixels a side of what outlines are drawn on, at least
DIM = 0.65  # brightness of the image under outlines


@styled
@document(keys=KEYS)
def positivity(
    sdata: SpatialData,
    markers: str | Sequence[str],
    *,
    key: str = "nimbus_positivity",
    calls: str | float | tuple[float, float] | None = (LOW, HIGH),
    uncertainty: bool | str = False,
    crop: tuple[int, int, int, int] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
) -> Figure:
    """Marker, scores and calls side by side, one row a marker, to see where they disagree.

    Left the image; beside it the cells in the colour of their score, grey where they have none; then the outlines of the cells
    over the image in the colour of their call. Cells that are known by their centres are drawn as discs of 8 micrometres (9
    pixels where the pixel size is unknown).

    Parameters
    ----------
    sdata
        One image, its cells, and a table with scores.
    markers
        Marker, or markers, with scores and a channel of that name.
    key
        DataFrame of the table's `obsm` with a score in 0…1 for each cell and marker.
    calls
        Two scores: cells below the first are negative, from the second on positive, and undecided between. One score: positive
        from it on. A key of `obsm`, such as the `"nimbus_calls"` of `tl.call_markers`: a DataFrame of 1, 0 and -1 or NaN (undecided),
        or of these words. None: outlines in the colours of the scores.
    uncertainty
        Add a panel with the uncertainty of the scores: True for the DataFrame of `obsm` that goes with `key` (`nimbus_uncertainty`),
        or its key.
    crop
        Part of the image, (y0, y1, x0, x1) in its pixels. Default: all of it; of an image with a side of more than 2048 pixels 2048
        at its centre, or around the scored cell that is nearest to it. For an overview of a large image choose a coarse level with
        `scale`, or give all of it as a crop: it is read in pieces and averaged to what a figure can show.
    limits
        Intensities shown black and white, for some markers. Default: 0 and the 99.9th percentile of what is shown.
    {keys}

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it. Its axes are in pixels of the image.

    Raises
    ------
    KeyError
        The table, scores, calls, a marker or a channel is missing.
    ValueError
        Several images, a crop that does not lie in the image, no scored cell in view, or calls that mean nothing.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=96)
    >>> table = sdata["table"]
    >>> scores = np.random.default_rng(0).random((table.n_obs, 2))
    >>> table.obsm["nimbus_positivity"] = pd.DataFrame(scores, index=table.obs_names, columns=["CD3", "CD20"])
    >>> figure = cy.pl.positivity(sdata, ["CD3", "CD20"], calls=0.5, crop=(0, 48, 0, 64))
    """
    require_key(table_key, sdata.tables, "table", "sdata.tables")
    table = sdata.tables[table_key]
    scores = score_frame(table, key)
    names = pick(markers, scores, key)
    codes = _calls(table, scores, names, calls)
    spreads = None if uncertainty is False else _spreads(table, key, names, uncertainty=uncertainty)
    unknown = sorted(set(limits or {}) - set(names))
    if unknown:
        msg = f"`limits` names {unknown}, which are not among the markers shown: {names}."
        raise KeyError(msg)
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=names,
    )  # fmt: skip
    images = list(dict.fromkeys(s.image_key for s in sources))
    if len(images) > 1:
        msg = f"One image is shown at a time, but there are {len(images)}: {images}. Choose with `image_key`."
        raise ValueError(msg)
    rows = open_table(sdata, sources, table_key)
    view = _look(sources, rows, scores[names].to_numpy(dtype=np.float64), crop)
    pixel_size = sources[0].pixel_size
    diameter = DISC_PX if pixel_size is None else DISC_UM / pixel_size
    rims = None if view.cell is None else view.outlines(CANVAS if len(names) <= FEW else CANVAS // 2)
    top = 1.0 if spreads is None else _top(view, spreads)

    third = "score" if codes is None else "call"
    figure, axes = panels(view, names, ["image", "score", third, *(["uncertainty"] if spreads is not None else [])])
    found = set()
    for row, name in zip(axes, names, strict=True):
        of_cells = view.values(scores[name].to_numpy(dtype=np.float64))
        gray, white = _gray(view.pixels[names.index(name)], (limits or {}).get(name))
        row[0].imshow(gray, cmap="gray", vmin=0, vmax=1, extent=view.extent)
        note(row[0], white)
        _paint(row[1], view, rims, of_cells, SCORES, 1.0, diameter)
        if codes is None:
            order = np.nan_to_num(of_cells, nan=-1)
            colors = np.where(order[:, None] < 0, to_rgba(COLORS[-1]), colormaps[SCORES](order))
        else:
            called = view.values(codes[name].to_numpy(dtype=np.float64))
            order = np.where(np.isnan(of_cells) | np.isnan(called), -1, called).astype(int)
            colors = to_rgba_array(COLORS)[order]
            seen = order[view.shown]
            found |= set(seen.tolist())
            n, known = (seen == CALLS.index("positive")).sum(), (seen >= 0).sum()
            note(row[2], f"{n:,} of {known:,} positive" if known else "no scores")
        _outline(row[2], view, rims, gray, colors, order, diameter)
        if spreads is not None:
            of_cells = view.values(spreads[name].to_numpy(dtype=np.float64))
            _paint(row[3], view, rims, of_cells, SPREADS, top, diameter)
    scale_bar(axes[0][0], view, pixel_size)
    last = axes[rows_of(view, names, len(axes[0])) - 1]
    for ax in last[1 : 2 if codes is not None else 3]:
        color_bar(ax, SCORES, 1.0)
    if codes is not None:
        _legend(last[2], some_undecided=1 in found, some_missing=-1 in found)
    if spreads is not None:
        color_bar(last[3], SPREADS, top)
    say_where(figure, view, sources[0].shape)
    return figure


# ------------------------------------------------------------------------------------------------------------- numbers
def _calls(
    table: AnnData, scores: pd.DataFrame, names: list[str], calls: str | float | tuple[float, float] | None
) -> pd.DataFrame | None:
    """Codes [cells, markers] as in `CALLS`, -1 for none; None where outlines show scores."""
    if calls is None:
        return None
    if isinstance(calls, str):
        return call_codes(table, calls, names)
    cuts = check_cuts(calls)
    return scores[names].apply(lambda column: call_by_score(column.to_numpy(dtype=np.float64), cuts), axis=0)


def _spreads(table: AnnData, key: str, names: list[str], *, uncertainty: bool | str) -> pd.DataFrame:
    name = uncertainty if isinstance(uncertainty, str) else key.removesuffix("_positivity") + "_uncertainty"
    frame = score_frame(table, name)
    pick(names, frame, name)
    return frame[names]


def _top(view: View, spreads: pd.DataFrame) -> float:
    """The largest uncertainty in view, rounded up; that of all markers has the same colour."""
    values = np.concatenate([view.values(spreads[name].to_numpy(dtype=np.float64))[view.shown] for name in spreads])
    most = values[np.isfinite(values)].max(initial=0.0)
    return max(float(np.ceil(most * 20) / 20), 0.05)


def _look(sources: Sequence[CellSource], rows: TableRows, scores: np.ndarray, crop: Sequence[int] | None) -> View:
    """The part of the image to show, with a scored cell in it."""
    scored = np.isfinite(scores).any(axis=1)
    places = [s.centers[s.inside & (at >= 0) & scored[at]] for s, at in zip(sources, rows.rows, strict=True)]
    _, height, width = sources[0].shape
    box = choose_box((height, width), crop, np.concatenate(places))
    view = read_view(sources, rows, box, WHOLE if scores.shape[1] <= FEW else WHOLE // 2)
    if not scored[view.rows[view.shown][view.rows[view.shown] >= 0]].any():
        y0, y1, x0, x1 = box
        msg = (
            f"No cell with a score for these markers in rows {y0} to {y1}, columns {x0} to {x1}: {len(view.shown):,} cells there, "
            f"{sum(map(len, places)):,} scored cells in image {sources[0].image_key!r}."
        )
        raise ValueError(msg)
    return view


def _gray(pixels: np.ndarray, limits: tuple[float, float] | None) -> tuple[np.ndarray, str]:
    """Pixels in 0…1, and what is shown white."""
    low, high = limits or (0.0, float(np.nanquantile(pixels, QUANTILE)))
    if limits is None and high <= low:  # sparse counts
        high = float(np.nanmax(pixels))
        if high <= low:
            return np.zeros_like(pixels), "all zero"
    if not high > low:
        msg = f"`limits` are intensities shown black and white, the first below the second, got {limits}."
        raise ValueError(msg)
    return np.clip((pixels - low) / (high - low), 0, 1), f"white from {high:.3g}"


# ------------------------------------------------------------------------------------------------------------- panels
def _paint(
    ax: Axes, view: View, rims: Rims | None, of_cells: np.ndarray, cmap: Any, top: float, diameter: float
) -> None:
    """Cells in the colour of a number each, grey where it is NaN."""
    ax.set_facecolor("black")
    missing = np.isnan(of_cells)
    if view.cell is None or rims is None:
        order = view.shown[np.argsort(of_cells[view.shown], kind="stable")]  # the highest on top
        for cells, style in (
            (order[missing[order]], {"facecolors": COLORS[-1]}),
            (order[~missing[order]], {"array": of_cells[order[~missing[order]]], "cmap": cmap, "clim": (0, top)}),
        ):
            ax.add_collection(_discs(ax, view.centers[cells], diameter, edgecolors="black", linewidths=0.3, **style))
        return
    if missing[view.shown].any():
        gray = np.zeros((*view.cell.shape, 4))
        gray[view.paint(missing.astype(float)) == 1] = to_rgba(COLORS[-1])
        ax.imshow(gray, extent=view.extent)
    painted = np.ma.masked_invalid(view.paint(of_cells))
    ax.imshow(painted, cmap=cmap, vmin=0, vmax=top, extent=view.extent, interpolation_stage="rgba")
    lines = np.zeros((*rims.thin.shape, 4), dtype=np.uint8)
    lines[rims.thin, 3] = 150
    ax.imshow(lines, extent=view.extent)


def _outline(
    ax: Axes, view: View, rims: Rims | None, gray: np.ndarray, colors: np.ndarray, order: np.ndarray, diameter: float
) -> None:
    """The image, darkened, and the rims of the cells in their colours [N, 4]: thin for an order of 0 and less, and the last on top."""
    if rims is None:
        ax.imshow(gray * DIM, cmap="gray", vmin=0, vmax=1, extent=view.extent)
        cells = view.shown[np.argsort(order[view.shown], kind="stable")]
        ax.add_collection(
            _discs(ax, view.centers[cells], diameter, facecolors="none", edgecolors=colors[cells], linewidths=0.7)
        )
        return
    canvas = np.nan_to_num(gray * DIM * 255).astype(np.uint8).repeat(rims.zoom, axis=0).repeat(rims.zoom, axis=1)
    canvas = np.repeat(canvas[..., None], 3, axis=2)
    drawn = (rims.cell >= 0) & (rims.thin | (order[rims.cell] > 0))
    canvas[drawn] = np.round(colors[rims.cell[drawn], :3] * 255).astype(np.uint8)
    ax.imshow(canvas, extent=view.extent)


def _discs(ax: Axes, centers: np.ndarray, diameter: float, **style: Any) -> EllipseCollection:
    across = np.full(len(centers), diameter)
    place: Any = {"units": "xy", "offsets": centers[:, ::-1], "offset_transform": ax.transData}
    return EllipseCollection(across, across, np.zeros(len(centers)), **place, **style)


def _legend(ax: Axes, *, some_undecided: bool, some_missing: bool) -> None:
    """Calls below a panel."""
    codes = [2, 0, *([1] if some_undecided else []), *([-1] if some_missing else [])]
    entries = [(COLORS[code], (*CALLS, "no score")[code]) for code in codes]
    handles = [Patch(facecolor="#404040", edgecolor=color, linewidth=1.6, label=name) for color, name in entries]
    ax.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, frameon=False, handlelength=1, handleheight=0.9,
        handletextpad=0.5, columnspacing=1.2, borderaxespad=0.3, labelspacing=0.3,
    )  # fmt: skip
