"""Cells that a classifier was most and least sure of, right and wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.legend import Legend
from scipy.stats import rankdata

from cytonym._shared import KEYS, RNG, document, seed_of
from cytonym.data.checks import require_key, resolve_size
from cytonym.data.names import with_marker_names
from cytonym.data.nuclear import nuclear_channels
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.get import labels_of
from cytonym.pl._gallery import blend, color_handles, colors_of, contrast, draw_scale_bar, places, read_windows
from cytonym.pl._style import INK, bare, new_figure, styled, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

OUTCOMES = ("TP", "TN", "FP", "FN")
SIDE = 0.42  # inches of a patch
BESIDE = 0.8  # of a patch: room for the confidences beside a strip
HEADING = 0.3  # inches above the patches of a class
TELLING, CLEAR = 2, 0.7  # markers of a class beside the nuclear one, and the AUROC that all but the first must have


@styled
@document(keys=KEYS, rng=RNG)
def confidence(
    sdata: SpatialData,
    markers: Sequence[str] | Mapping[str, str] | Mapping[str, Sequence[str]] | None = None,
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    key: str = "phenotype",
    label_key: str | Sequence[str] = "label",
    classes: Sequence[str] | None = None,
    test: str | None = None,
    n: int = 10,
    from_top: int = 100,
    size_px: int | None = None,
    size_um: float | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    """Cells of each class that the classifier was most and least sure of, right and wrong (CLEAR-IT, figure E1).

    Each class is a question of its own: a cell is called so or not, and is so or not. Of the cells of each outcome (true and
    false positives and negatives), `n` of the most and `n` of the least confident ones are drawn at random. The confidence is the
    probability of what was called: p of the class where it was, 1 - p where it was not. Beside each strip stand the first and the
    last confidence in it; the number behind an outcome counts its cells. Cells that the classifier learned from look better than new
    ones: name others with `test`.

    Parameters
    ----------
    sdata
        Images, cells, and a table with probabilities (`tl.classify_cells`) and labels.
    markers
        Channels to show, up to seven; a mapping from channels to colours; or a mapping from classes to lists of channels.
        Default: for each class the nuclear stain and one or two channels whose mean intensity sets the labelled cells of
        the class apart best, first of all one that is named like the class.
    {keys}
    key
        Name of the results of `tl.classify_cells`.
    label_key
        Column of `obs` with the true classes; with several labels a cell a list of 0/1 columns named like the classes, or the
        key of such a DataFrame in `obsm`. Cells without a label are left out.
    classes
        Classes to show, in this order; all by default.
    test
        Boolean column of `obs`: show these cells only.
    n
        Cells in a strip.
    from_top
        How many of the most, and of the least, confident cells of an outcome to draw from, 100 as in the paper. Of fewer than twice
        as many cells each end takes half.
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
        Probabilities, a column, class or channel are missing.
    ValueError
        No cell has a probability, a label and a place in the images, `markers` is left out and the table has no intensities, or
        `limits` do not rise.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom("experiment1", n_cells=150, size_px=96)
    >>> cy.pp.measure_cells(sdata)
    >>> cy.tl.classify_cells(sdata["table"], "cell_type")
    >>> figure = cy.pl.confidence(sdata, label_key="cell_type", classes=["1 centre", "2 border"], n=4, size_px=16)
    """
    if n < 1 or from_top < 1:
        msg = f"`n` and `from_top` must be at least 1, got {n} and {from_top}."
        raise ValueError(msg)
    require_key(table_key, sdata.tables, "table", "sdata.tables")
    judged = _judge(sdata.tables[table_key], key, label_key, test)
    shown = list(judged.names) if classes is None else [str(c) for c in classes]
    unknown = [c for c in shown if c not in judged.names]
    if unknown or not shown:
        msg = f"No class {unknown} in `obsm['{key}_proba']`. Available: {list(judged.names)}."
        raise KeyError(msg)
    colors = _colors(sdata.tables[table_key], markers, shown, judged)
    channels = list(dict.fromkeys(channel for of_class in colors.values() for channel in of_class))
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
    )  # fmt: skip
    place = places(open_table(sdata, sources, table_key), sources)
    visible = judged.known & (place[:, 0] >= 0)
    if not visible.any():
        msg = (
            f"No cell to show: of {len(visible):,} cells {judged.known.sum():,} have a probability in '{key}_proba' and a label in "
            f"{label_key!r}{f', and are in {test!r},' if test else ''} and none of these has its centre in the images."
        )
        raise ValueError(msg)
    strips = {c: _strips(judged, judged.names.index(c), visible, n, from_top, seed_of(rng)) for c in shown}
    side = 32 if size_px is None and size_um is None else resolve_size(sources[0], size_px, size_um)
    every = np.unique(np.concatenate([rows for of in strips.values() for _, ends in of.values() for rows in ends]))
    windows, outlines = read_windows(sources, place[every], side)
    levels = contrast(windows, channels, limits or {})

    images = {c: blend(windows[:, [channels.index(m) for m in colors[c]]], colors[c], levels) for c in shown}
    grid = _Grid(side, n, len(shown))
    names = [f"{outcome}  {count:,}" for c in shown for outcome, (count, _) in strips[c].items()]
    height, width, _ = grid.shape
    inch = SIDE / side
    figure = new_figure(
        width * inch + text_width(names) + text_width(channels) + 0.75, height * inch + HEADING + 0.5
    )  # fmt: skip
    ax = bare(figure.subplots())
    canvas = np.ones(grid.shape, dtype=np.float32)
    lines: list[np.ndarray] = []
    for i, name in enumerate(shown):
        sure = judged.sure[:, judged.names.index(name)]
        for j, (_, ends) in enumerate(strips[name].values()):
            for half, rows in enumerate(ends):
                at = np.searchsorted(every, rows)
                x, y = grid.place(i, j, half)
                for m in at:
                    canvas[y : y + side, x : x + side] = images[name][m]
                    lines += [line + (x, y) for line in outlines[m]]
                    x += grid.step
                words = f"{sure[rows[0]]:.2f}\n{sure[rows[-1]]:.2f}" if len(rows) else "none"
                ax.text(x + 0.08 * side, y + side / 2, words, va="center", fontsize=6.5, color=INK, linespacing=1.2)
    ax.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0))
    ax.add_collection(LineCollection(lines, colors="white", linewidths=0.5, alpha=0.8))
    ax.set_yticks([grid.place(i, j, 0)[1] + side / 2 for i in range(len(shown)) for j in range(len(OUTCOMES))], names)
    ax.tick_params(length=0)
    _write_headings(ax, grid, colors)
    draw_scale_bar(ax, sources, side, canvas.shape)
    return figure


@dataclass(frozen=True)
class _Grid:
    """Where patches are, in pixels of the canvas."""

    side: int
    n: int
    n_classes: int

    @property
    def step(self) -> int:
        return self.side + max(1, self.side // 16)

    @property
    def block(self) -> int:
        """From the top of one class to that of the next."""
        return len(OUTCOMES) * self.step + round(HEADING / SIDE * self.side)

    @property
    def half(self) -> int:
        """From the first of the most confident cells to the first of the least confident ones."""
        return self.n * self.step + round(BESIDE * self.side)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.n_classes - 1) * self.block + len(OUTCOMES) * self.step, 2 * self.half, 3

    def place(self, i: int, j: int, half: int) -> tuple[int, int]:
        """Left and upper edge (x, y) of the strip of a class, an outcome and an end."""
        return half * self.half, i * self.block + j * self.step


def _write_headings(ax: Axes, grid: _Grid, colors: Mapping[str, Mapping[str, str]]) -> None:
    """Ends above the first class, names above each, and colours beside it where they are others than before."""
    for half, words in enumerate(("most confident", "least confident")):
        x = half * grid.half + grid.n * grid.step / 2
        ax.annotate(words, (x, 0), xytext=(0, 18), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    before: Mapping[str, str] = {}
    for i, (name, of_class) in enumerate(colors.items()):
        y = i * grid.block
        ax.annotate(
            name, (0, y), xytext=(0, 4), textcoords="offset points", ha="left", va="bottom", fontsize=9, fontweight="bold"
        )  # fmt: skip
        if of_class != before:
            legend = Legend(
                ax, color_handles(of_class), list(of_class), loc="upper left", bbox_to_anchor=(2 * grid.half, y),
                bbox_transform=ax.transData, frameon=False, handlelength=1, handleheight=1, handletextpad=0.5,
                borderaxespad=0, borderpad=0,
            )  # fmt: skip
            ax.add_artist(legend).set_clip_on(False)  # clipped artists get no room in the figure
        before = of_class


@dataclass(frozen=True)
class _Judged:
    """Calls of all cells of a table against their labels; arrays [n_obs, K]."""

    names: tuple[str, ...]
    known: np.ndarray
    """bool [n_obs], cells with probabilities and labels."""
    truth: np.ndarray
    called: np.ndarray
    sure: np.ndarray
    """Probability of what was called."""

    def cells(self, outcome: str, k: int) -> np.ndarray:
        """Which cells have this outcome for a class: bool [n_obs]."""
        return (self.called[:, k] == (outcome[1] == "P")) & ((self.called == self.truth)[:, k] == (outcome[0] == "T"))


def _judge(table: AnnData, key: str, label_key: str | Sequence[str], test: str | None) -> _Judged:
    name = f"{key}_proba"
    if "rules" in table.uns.get(key, {}):
        msg = (
            f"The phenotypes under {key!r} come from rules (`tl.phenotype_cells`), which give no probabilities to show. "
            "`tl.classify_cells` writes some."
        )
        raise KeyError(msg)
    if name not in table.obsm or not isinstance(table.obsm[name], pd.DataFrame):
        msg = f"No DataFrame {name!r} in `obsm` of the table. Available: {sorted(map(str, table.obsm))}. `tl.classify_cells` writes it."
        raise KeyError(msg)
    frame = with_marker_names(table.obsm[name], name, table.uns)
    names = tuple(map(str, frame.columns))
    proba = frame.to_numpy(dtype=np.float32)
    told = table.uns.get(key, {})
    if told.get("params", {}).get("multilabel", False):
        called = proba > np.asarray(told["thresholds"], dtype=np.float32)
        truth = _several(table, label_key, names)
    else:
        called = np.arange(len(names)) == np.nan_to_num(proba).argmax(axis=1)[:, None]
        if not isinstance(label_key, str):
            msg = f"`label_key` must name one column of `obs`, got {list(label_key)}: `{key}` calls one class a cell."
            raise ValueError(msg)
        labels = labels_of(table, label_key)
        truth = (labels.astype(object).to_numpy()[:, None] == np.array(names, dtype=object)).astype(float)
        truth[labels.isna().to_numpy()] = np.nan
    known = np.isfinite(proba).all(axis=1) & np.isfinite(truth).all(axis=1)
    if test is not None:
        require_key(test, table.obs, "column", "adata.obs")
        if not pd.api.types.is_bool_dtype(table.obs[test]) or table.obs[test].isna().any():
            msg = f"`obs[{test!r}]` must be True or False for each cell, got {table.obs[test].dtype}."
            raise ValueError(msg)
        known &= table.obs[test].to_numpy(dtype=bool)
    return _Judged(names, known, truth == 1, called, np.where(called, proba, 1 - proba))


def _several(table: AnnData, label_key: str | Sequence[str], names: Sequence[str]) -> np.ndarray:
    """0, 1 or NaN [n_obs, K] for several labels a cell."""
    if isinstance(label_key, str):
        require_key(label_key, table.obsm, "DataFrame", "adata.obsm")
        frame = with_marker_names(pd.DataFrame(table.obsm[label_key]), label_key, table.uns)
    else:
        for column in label_key:
            require_key(column, table.obs, "column", "adata.obs")
        frame = table.obs[list(label_key)]
    lacking = [c for c in names if c not in frame]
    if lacking:
        msg = f"{label_key!r} lacks the classes {lacking}, which the classifier tells. It has {list(map(str, frame.columns))}."
        raise KeyError(msg)
    columns = [pd.to_numeric(frame[c].astype(object), errors="coerce").to_numpy(dtype=float) for c in names]
    return np.stack(columns, axis=1)


def _colors(
    table: AnnData,
    markers: Sequence[str] | Mapping[str, str] | Mapping[str, Sequence[str]] | None,
    shown: Sequence[str],
    judged: _Judged,
) -> dict[str, dict[str, str]]:
    """Class -> channel -> colour."""
    if markers is None:
        return {c: colors_of(names) for c, names in _telling(table, shown, judged).items()}
    if not isinstance(markers, Mapping) or all(isinstance(color, str) for color in markers.values()):
        return {c: colors_of(markers) for c in shown}  # type: ignore[arg-type]
    lacking = [c for c in shown if c not in markers]
    if lacking:
        msg = f"`markers` names no channels for the classes {lacking}. It has {list(markers)}."
        raise KeyError(msg)
    return {c: colors_of(markers[c]) for c in shown}


def _telling(table: AnnData, shown: Sequence[str], judged: _Judged) -> dict[str, list[str]]:
    """Class -> nuclear channel, the one named like the class, and those that set its labelled cells apart from the others."""
    if "mean_intensity" in table.obsm:
        frame = with_marker_names(table.obsm["mean_intensity"], "mean_intensity", table.uns)
    elif table.X is not None and table.n_vars:
        frame = table.to_df()
    else:
        msg = "The table has no mean intensities to choose markers by. Name some with `markers`, or run `pp.measure_cells` first."
        raise ValueError(msg)
    channels = [str(c) for c in frame.columns]
    nuclear = nuclear_channels(channels)
    values = frame.to_numpy(dtype=np.float64)
    kept = judged.known & np.isfinite(values).all(axis=1)
    ranks = rankdata(values[kept], axis=0)
    found = {}
    for name in shown:
        member = judged.truth[kept, judged.names.index(name)]
        some = member.any() and not member.all()
        auroc = (
            0.5 + (ranks[member].mean(axis=0) - ranks[~member].mean(axis=0)) / len(ranks)
            if some
            else np.zeros(len(channels))
        )
        order = [i for i in np.argsort(-auroc, kind="stable") if channels[i] not in nuclear]
        own = [i for i in order if channels[i] == name]
        clear = [i for i in order if auroc[i] >= CLEAR and i not in own]
        chosen = (own + clear)[:TELLING] or order[:1]
        found[name] = [*nuclear[:1], *(channels[i] for i in chosen)]
    return found


def _strips(
    judged: _Judged, k: int, visible: np.ndarray, n: int, from_top: int, seed: int
) -> dict[str, tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Outcome -> number of cells, and rows of the most and of the least confident ones, by falling confidence."""
    found = {}
    for i, outcome in enumerate(OUTCOMES):
        rng = np.random.default_rng((seed, k, i))
        rows = np.flatnonzero(visible & judged.cells(outcome, k))
        rows = rows[np.argsort(-judged.sure[rows, k], kind="stable")]
        top = min(from_top, -(-len(rows) // 2))
        low = min(from_top, len(rows) - top)
        most, least = (np.sort(rng.permutation(m)[:n]) for m in (top, low))
        found[outcome] = (len(rows), (rows[most], rows[len(rows) - low + least]))
    return found
