"""Learned normalisation of each marker over the pixels it was learned from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

from cytonym._shared import KEYS, document
from cytonym.data.patches import bin_pixels
from cytonym.data.source import resolve
from cytonym.pl._style import BLUE, GREY, INK, VERMILION, new_figure, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

TILES, TILE_PX = 16, 256  # pixels looked at in each image: at most sixteen tiles, spread evenly


@styled
@document(keys=KEYS)
def normalization(
    sdata: SpatialData,
    model: Any = None,
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    key: str = "nextmarker",
    log: bool | None = None,
) -> Figure:
    """Learned sigmoid of each marker over the histogram of its pixels.

    The curve says what the network sees: pixels left of it count as background, those right of it as full signal. A curve
    far from the pixels is a marker to look at.

    Parameters
    ----------
    sdata
        Images, and the table that `tl.embed_cells` has written to.
    model
        A model or the folder of its checkpoint; by default the curves in the table, `uns[key]["normalization"]`.
    {keys}
    key
        Key of `uns` in the table.
    log
        Logarithmic intensity axes. Default: where the pixels of most markers span more than two powers of ten.

    Returns
    -------
    matplotlib.figure.Figure
        One panel a marker, the histogram over pixels above zero, scaled to its peak. Not shown; the last line of a
        notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    KeyError
        The table has no learned normalisation, or none of its markers is a channel of the images.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> cy.tl.embed_cells(sdata, steps=2, batch_size=16)
    >>> figure = cy.pl.normalization(sdata)
    """
    curves, binning = _curves(sdata, model, table_key, key)
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
    )  # fmt: skip
    pixels = _pixels(sources, binning)
    curves = curves[curves["marker"].isin(pixels)]
    if curves.empty:
        msg = f"No learned marker is a channel of the images. Channels: {sorted(pixels)}."
        raise KeyError(msg)
    values = [pixels[m] for m in curves["marker"]]
    if log is None:
        spans = [np.quantile(v, 0.999) / np.quantile(v, 0.01) for v in values if len(v)]
        log = bool(spans) and float(np.median(spans)) > 100

    n = len(curves)
    columns = min(n, max(3, int(np.ceil(np.sqrt(1.5 * n)))), 9)
    rows = -(-n // columns)
    figure = new_figure(1.35 * columns + 0.5, 1.15 * rows + (0.9 if columns == 1 else 0.75))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    numbers = curves[["center", "slope"]].to_numpy(dtype=float)
    for ax, marker, (center, slope), found in zip(axes.flat, curves["marker"], numbers, values, strict=False):
        _panel(ax, str(marker), center, slope, found, log=log)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    figure.supxlabel("pixel intensity" + (" (log)" if log else ""), fontsize=8)
    figure.supylabel("activation", fontsize=8)
    handles = [axes.flat[0].bar([0], [0], color="#D5D5D5"), axes.flat[0].plot([], [], color=BLUE, linewidth=1.5)[0]]
    figure.legend(
        handles, ["pixels above zero", "learned sigmoid"], loc="outside upper right", ncols=min(2, columns), frameon=False
    )  # fmt: skip
    return figure


def _curves(sdata: SpatialData, model: Any, table_key: str, key: str) -> tuple[pd.DataFrame, int]:
    """Columns marker, center, slope; and how many pixels, squared, the network averages into one."""
    if model is not None:
        if isinstance(model, (str, Path)):
            from cytonym.models import load

            model = load(model)
        found = model.normalization() if hasattr(model, "normalization") else {}
        if not found:
            msg = f"A model of class {model.name!r} learns no normalisation; NeXtMarker does."
            raise ValueError(msg)
        return pd.DataFrame({"marker": list(model.markers), **found}), model.binning
    tables = sorted(sdata.tables)
    if table_key not in sdata.tables:
        msg = f"No table {table_key!r} in sdata.tables. Available: {tables}. `tl.embed_cells` writes one."
        raise KeyError(msg)
    uns = sdata.tables[table_key].uns
    if key not in uns or "normalization" not in uns[key]:
        msg = (
            f"No learned normalisation in `uns[{key!r}]` of table {table_key!r}: run `tl.embed_cells` or give `model`. "
            f"Keys of `uns`: {sorted(uns)}."
        )
        raise KeyError(msg)
    return pd.DataFrame(uns[key]["normalization"]), int(uns[key].get("model", {}).get("binning", 1))


def _pixels(sources: Sequence[CellSource], binning: int) -> dict[str, np.ndarray]:
    """Pixels above zero of each channel, from tiles spread evenly over each image."""
    found: dict[str, list[np.ndarray]] = {}
    for source in {s.image_key: s for s in sources}.values():
        _, height, width = source.shape
        corners = [(y, x) for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)]
        for i in np.unique(np.linspace(0, len(corners) - 1, TILES).round().astype(int)):
            y, x = corners[i]
            tile = bin_pixels(np.asarray(source.pixels[:, y : y + TILE_PX, x : x + TILE_PX]), binning)
            for channel, row in zip(source.channels, source.channel_index, strict=True):
                found.setdefault(channel, []).append(tile[row][tile[row] > 0])
    return {channel: np.concatenate(parts) for channel, parts in found.items()}


def _panel(ax: Axes, marker: str, center: float, slope: float, pixels: np.ndarray, *, log: bool) -> None:
    ax.set_title(marker, fontsize=8, pad=2)
    ax.set(ylim=(0, 1.06), yticks=[0, 0.5, 1], yticklabels=["0", "", "1"])
    ax.tick_params(labelsize=6.5, pad=1.5)
    if not len(pixels):
        ax.set_xticks([])
        ax.text(0.5, 0.5, "all zero", transform=ax.transAxes, ha="center", va="center", color=INK, fontsize=7)
        return
    low, high = float(np.quantile(pixels, 0.001)), float(np.quantile(pixels, 0.999))
    high = max(high, 2 * center, low * 1.5)
    whole = np.issubdtype(pixels.dtype, np.integer)
    if log:
        low = max(low / 2, high / 1e5)
        edges = np.geomspace(low, high, 41)
        if whole:  # no empty bins between small whole numbers
            edges = np.unique(np.floor(edges) + 0.5)
        x = np.geomspace(low, high, 200)
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
        ax.xaxis.set_major_formatter("{x:g}")
    else:
        low = 0.0
        step = max(1, np.ceil(high / 40)) if whole else high / 40  # as many whole numbers in each bin
        edges = np.arange(0, high + step, step) + (0.5 if whole else 0.0)
        x = np.linspace(0, high, 200)
        ax.locator_params(axis="x", nbins=3)
    counts = np.histogram(pixels, edges)[0] / (np.diff(np.log(edges)) if log else 1.0)
    if counts.max():
        ax.bar(edges[:-1], counts / counts.max(), np.diff(edges), align="edge", color="#D5D5D5", linewidth=0)
    if slope > 0:
        ax.axvline(center, color=GREY, linewidth=0.7, linestyle=(0, (3, 2)))
        ax.plot(x, 1 / (1 + np.exp(np.clip(-4 * slope * (x - center), -50, 50))), color=BLUE, linewidth=1.5)
    else:
        ax.text(0.5, 0.8, "not learned", transform=ax.transAxes, ha="center", color=VERMILION, fontsize=7)
    ax.set_xlim(low, high)
