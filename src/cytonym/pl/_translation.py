"""A stained image, the channels that were inferred from it, and its nuclei."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.patches import Patch
from spatialdata.models import get_channel_names
from xarray import DataTree

from cytonym.data.brightfield import SEGMENTATION, TRANSLATIONS, derived_key, rgb_order, rgb_source
from cytonym.data.checks import require_key
from cytonym.data.source import image_sources, resolve
from cytonym.data.table import open_table
from cytonym.get import labels_of
from cytonym.pl._panels import GAP, note, say_where, scale_bar, tiles
from cytonym.pl._style import styled
from cytonym.pl._view import WHOLE, View, choose_box, read_pixels, read_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.pl._view import Box, Rims

COLORS = {"clear": ("#FFD400", "#1034FF"), "published": ("#FF0000", "#0000FF")}
"""Of positive and negative nuclei."""
CLASSES = ("positive", "negative")
NOBODY = "#808080"
"""Nuclei without a class."""
DYES = {"hematoxylin": 0, "DAB": 2}
"""Rows of scikit-image's matrix of what a stain takes from red, green and blue."""
QUANTILE = 0.999
"""Of the pixels of a channel of unknown scale, shown white."""
CANVAS = 1500
"""Pixels a side of what outlines are drawn on, at least."""
LINES = 200
"""Outlines are that thick that so many fill a panel."""
LUMA, BRIGHT = (0.299, 0.587, 0.114), 0.5
GROUND = (0.06, 0.06, 0.06)


@styled
def translation(
    sdata: SpatialData,
    *,
    crop: tuple[int, int, int, int] | None = None,
    channels: str | Sequence[str] | None = None,
    colors: str | tuple[str, str] = "clear",
    image_key: str | None = None,
    stains_key: str | None = None,
    labels_key: str | None = None,
    class_key: str = "ihc_class",
    table_key: str = "table",
    coordinate_system: str = "global",
) -> Figure:
    """Show a stained image, its inferred channels, the outlines of its nuclei over it, and the nuclei in the color of their class.

    Stains that were separated from the image (`"classical"`) have the color that the dye alone would have; what a network
    inferred is shown as it drew it, where the same translation kept a picture of it (`rgb=True`), and in grey otherwise.

    Parameters
    ----------
    sdata
        A stained image after `tl.translate_stain`, after `tl.segment_nuclei`, or after both. What is missing is left out.
    crop
        Part of the image, (y0, y1, x0, x1) in its pixels. Default: all of it; of an image with a side of more than 2048
        pixels 2048 at its centre, or around the nucleus that is nearest to it. A larger crop is averaged to what a figure can
        show.
    channels
        Inferred channels to show, in this order; all by default.
    colors
        Of positive and negative nuclei. `"clear"`: yellow and blue, which stand out from brown, from white and from each
        other, also for people who confuse red and green. `"published"`: the red and blue of the published program; to many
        of these people red lines on brown are invisible. Or two colors of your own.
    image_key
        Image to show; by default the one that was translated, or the one RGB image.
    stains_key
        Image of the inferred channels, on the same pixels; by default `{image}_stains`.
    labels_key
        Nuclei; by default those that `tl.segment_nuclei` found in this image.
    class_key
        Column of `obs` with `"positive"` and `"negative"`. Nuclei without a class are grey.
    table_key
        Table of the nuclei.
    coordinate_system
        Coordinate system in which image and nuclei meet, and in which the pixel size is known.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it. Its axes are in pixels of
        the image.

    Raises
    ------
    KeyError
        An image, channel, element, table or column is missing.
    ValueError
        Several images, an image that is not RGB, neither channels nor nuclei, a crop that does not lie in the image, channels
        on other pixels, or colors that are none.

    Examples
    --------
    >>> from skimage.data import immunohistochemistry
    >>> import cytonym as cy
    >>> rgb = immunohistochemistry()[:128, -128:].transpose(2, 0, 1)
    >>> sdata = cy.io.from_arrays(rgb, channels=["r", "g", "b"], name="ihc", pixel_size=0.5)
    >>> cy.tl.translate_stain(sdata)
    >>> cy.tl.segment_nuclei(sdata)
    >>> figure = cy.pl.translation(sdata)
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['ihc_image', 'hematoxylin', 'DAB', 'nuclei', 'classes']
    """
    palette = _palette(colors)
    image_key = _image_key(sdata, image_key)
    stains = _stains(sdata, image_key, stains_key, channels, coordinate_system)
    labels_key = _labels_key(sdata, image_key, labels_key, table_key, class_key)
    wanted: dict[str, Any] = {"image_key": image_key, "coordinate_system": coordinate_system}
    if stains is not None:
        wanted["scale"] = _same_level(sdata, image_key, stains)
    [image] = [_as_rgb(source) for source in image_sources(sdata, **wanted)]
    if stains is None and labels_key is None:
        msg = f"Nothing was inferred from {image_key!r} yet: run `tl.translate_stain` and `tl.segment_nuclei` first."
        raise ValueError(msg)
    if labels_key is None:
        view = _bare_view(image, choose_box(image.shape[1:], crop, np.empty((0, 2))))
        codes = None
    else:
        [cells] = resolve(sdata, labels_key=labels_key, table_key=table_key, **wanted)
        cells = _as_rgb(cells)
        box = choose_box(image.shape[1:], crop, cells.centers[cells.inside])
        rows = open_table(sdata, [cells], table_key)
        view = read_view([cells], rows, box, WHOLE)
        classes = labels_of(rows.table, class_key).to_numpy(dtype=object)
        codes = np.select([classes == name for name in CLASSES], range(2), 2)
        codes = np.where(view.rows >= 0, codes[view.rows], 2)

    rgb = np.moveaxis(np.rint(view.pixels), 0, -1).astype(np.uint8)
    inferred = [] if stains is None else list(stains.channels)
    titles = [image_key, *inferred, *(["nuclei", "classes"] if codes is not None else [])]
    columns = len(titles) if len(titles) <= 3 else -(-len(titles) // 2)
    full = len(titles) % columns == 0  # no place left for the legend
    figure, axes = tiles(
        view, titles, columns, 3.1 if columns <= 3 else 2.6, 0.45 if full and codes is not None else 0.2
    )
    axes[0].imshow(rgb, extent=view.extent)
    scale_bar(axes[0], view, image.pixel_size, on_bright=True)
    if stains is not None:
        for ax, name in zip(axes[1:], inferred, strict=False):
            _show_channel(ax, sdata, image, stains, name, view, coordinate_system)
    if codes is not None:
        rims = view.outlines(CANVAS, LINES)
        _outline(axes[-2], view, rims, rgb, codes, palette)
        _fill(axes[-1], view, rims, codes, palette)
        seen = codes[view.shown]
        note(axes[-2], f"{(seen == 0).sum():,} of {(seen < 2).sum():,} positive")
        _legend(axes[-1], palette, some_without=bool((seen == 2).any()), below=full)
    say_where(figure, view, image.shape, GAP)
    return figure


# -------------------------------------------------------------------------------------------------- what there is to show
def _palette(colors: str | tuple[str, str]) -> tuple[str, str]:
    pair = COLORS.get(colors, ()) if isinstance(colors, str) else tuple(colors)
    if len(pair) != 2 or not all(is_color_like(color) for color in pair):
        msg = (
            f"`colors` must be one of {list(COLORS)}, or the colors of positive and of negative nuclei, got {colors!r}."
        )
        raise ValueError(msg)
    return pair[0], pair[1]


def _image_key(sdata: SpatialData, key: str | None) -> str:
    """The image that was translated, or else the RGB image; the one asked for, if it is there."""
    if key is not None:
        require_key(key, sdata.images, "image", "sdata.images")
        return key
    record = sdata.attrs.get(TRANSLATIONS, {})
    made = [entry.get("image") for name, entry in record.items() if name in sdata.images]
    found = [name for name in dict.fromkeys(made) if name in sdata.images]
    found = found or [
        name
        for name, image in sdata.images.items()
        if name not in record and rgb_order([str(c) for c in get_channel_names(image)]) is not None
    ]
    if len(found) != 1:
        what = f"there are {len(found)}: {found}" if found else f"none of {list(sdata.images)} is RGB"
        msg = f"One image is shown at a time, but {what}. Choose with `image_key`."
        raise ValueError(msg)
    return str(found[0])


def _stains(
    sdata: SpatialData, image_key: str, key: str | None, channels: str | Sequence[str] | None, system: str
) -> CellSource | None:
    """The inferred channels, None where there are none."""
    if key is None:
        key = derived_key(image_key, "stains")
        if key not in sdata.images:
            if channels is not None:
                msg = f"No channels {channels!r}: there is no image {key!r}. `tl.translate_stain` makes it."
                raise KeyError(msg)
            return None
    names = [channels] if isinstance(channels, str) else channels
    [source] = image_sources(sdata, image_key=key, coordinate_system=system, channels=names)
    return source


def _labels_key(sdata: SpatialData, image_key: str, key: str | None, table_key: str, class_key: str) -> str | None:
    """The nuclei of the image, None where there are none."""
    if key is None:
        if table_key not in sdata.tables:
            return None
        params = sdata.tables[table_key].uns.get(SEGMENTATION, {}).get("params", {})
        record = sdata.attrs.get(TRANSLATIONS, {})
        of = {
            name: used.get("image") or record.get(used.get("class_map"), {}).get("image")
            for name, used in params.items()
            if name in sdata.labels
        }
        found = [name for name, source in of.items() if source == image_key]
        if len(found) > 1:
            msg = f"Image {image_key!r} has several sets of nuclei: {found}. Choose with `labels_key`."
            raise ValueError(msg)
        if not found:
            return None
        key = str(found[0])
    require_key(key, sdata.labels, "labels element", "sdata.labels")
    require_key(table_key, sdata.tables, "table", "sdata.tables")
    require_key(class_key, sdata.tables[table_key].obs, "column", "obs")
    return key


def _as_rgb(source: CellSource) -> CellSource:
    found = rgb_source(source)
    if found is None or np.dtype(source.pixels.dtype) != np.uint8:
        msg = (
            f"Image {source.image_key!r} is not RGB of 8 bits: its channels are {list(source.channels)}, "
            f"{np.dtype(source.pixels.dtype)}."
        )
        raise ValueError(msg)
    return found


def _same_level(sdata: SpatialData, image_key: str, stains: CellSource) -> str | None:
    """Level of the image that the channels lie on."""
    image, wanted = sdata.images[image_key], stains.shape[1:]
    levels: dict[str | None, Any] = {None: image}
    if isinstance(image, DataTree):
        levels = {name: next(iter(image[name].data_vars.values())) for name in image.children}
    sizes = {name: (level.sizes["y"], level.sizes["x"]) for name, level in levels.items()}
    for name, size in sizes.items():
        if size == wanted:
            return name
    height, width = next(iter(sizes.values()))
    msg = (
        f"The channels of {stains.image_key!r} ({wanted[0]} x {wanted[1]}) do not lie on the pixels of image {image_key!r} "
        f"({height} x {width})."
    )
    raise ValueError(msg)


def _bare_view(image: CellSource, box: Box) -> View:
    y0, y1, x0, x1 = box
    step = -(-max(y1 - y0, x1 - x0) // WHOLE)
    nobody = np.empty(0, dtype=np.int64)
    return View(box, step, read_pixels(image, box, step), None, np.empty((0, 2)), nobody, nobody)


# ----------------------------------------------------------------------------------------------------------------- panels
def _show_channel(
    ax: Axes, sdata: SpatialData, image: CellSource, stains: CellSource, name: str, view: View, system: str
) -> None:
    """A picture of the channel where the same translation made one, else the channel: as the dye, or in grey."""
    picture = derived_key(image.image_key, re.sub(r"[^\w.-]", "_", name))
    record = sdata.attrs.get(TRANSLATIONS, {})
    if picture in sdata.images and picture in record and record[picture] == record.get(stains.image_key):
        [source] = [_as_rgb(one) for one in image_sources(sdata, image_key=picture, coordinate_system=system)]
        drawn = np.moveaxis(read_pixels(source, view.box, view.step), 0, -1)
        ax.imshow(np.rint(drawn).astype(np.uint8), extent=view.extent)
        return
    at = [stains.channels.index(name)]
    [pixels] = read_pixels(replace(stains, channel_index=stains.channel_index[at]), view.box, view.step)
    if name in DYES and stains.pixels.dtype.kind == "f":
        ax.imshow(dyed(pixels, name), extent=view.extent)
        return
    high = 255.0 if stains.pixels.dtype == np.uint8 else float(np.nanquantile(pixels, QUANTILE)) or 1.0
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=high, extent=view.extent)


def dyed(amount: np.ndarray, name: str) -> np.ndarray:
    """What light sees of one dye alone: uint8 [h, w, 3] from its optical density."""
    from skimage.color import rgb_from_hed

    density = np.nan_to_num(amount)[..., None] * np.asarray(rgb_from_hed)[DYES[name]]
    return np.rint(255 * np.power(10.0, -density)).clip(0, 255).astype(np.uint8)


def _outline(ax: Axes, view: View, rims: Rims, rgb: np.ndarray, codes: np.ndarray, palette: tuple[str, str]) -> None:
    """Outlines on the image; those of positive nuclei have a dark inner line where they are bright, to stand out from white."""
    canvas = rgb.repeat(rims.zoom, axis=0).repeat(rims.zoom, axis=1)
    paint = np.round(255 * np.array([to_rgb(color) for color in (*palette, NOBODY)])).astype(np.uint8)
    on_rim = rims.cell >= 0
    bright = np.dot(to_rgb(palette[0]), LUMA) > BRIGHT
    if bright:
        canvas[on_rim & ~rims.thin & (codes[rims.cell] == 0)] = 0
    drawn = on_rim & rims.thin
    canvas[drawn] = paint[codes[rims.cell[drawn]]]
    ax.imshow(canvas, extent=view.extent)


def _fill(ax: Axes, view: View, rims: Rims, codes: np.ndarray, palette: tuple[str, str]) -> None:
    """Nuclei in the color of their class, with dark rims that keep those that touch apart."""
    assert view.cell is not None
    paint = np.array([to_rgb(color) for color in (*palette, NOBODY, GROUND)])
    code = np.where(view.cell >= 0, codes[view.cell], 3) if len(codes) else np.full(view.cell.shape, 3)
    code = code.repeat(rims.zoom, axis=0).repeat(rims.zoom, axis=1)
    code[(rims.cell >= 0) & rims.thin] = 3
    ax.imshow(np.round(255 * paint[code]).astype(np.uint8), extent=view.extent)


def _legend(ax: Axes, palette: tuple[str, str], *, some_without: bool, below: bool) -> None:
    """Below the last panel, or in the empty place beside it."""
    entries = [*zip(palette, CLASSES, strict=True), *([(NOBODY, "no class")] if some_without else [])]
    handles = [Patch(facecolor=color, edgecolor="#404040", linewidth=0.5, label=name) for color, name in entries]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": 3, "columnspacing": 1.2}
    if not below:
        place = {"loc": "upper left", "bbox_to_anchor": (1.04, 1.0), "title": "nuclei", "alignment": "left"}
    ax.legend(
        handles=handles, frameon=False, handlelength=1, handleheight=0.9, handletextpad=0.5, borderaxespad=0.3, **place
    )
