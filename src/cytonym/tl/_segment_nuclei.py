"""Nuclei of a class map: labels, and a table with their classes."""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel
from spatialdata.transformations import get_transformation

from cytonym.data import transforms
from cytonym.data.class_map import RESOLUTIONS, CellRules, NoNucleusError
from cytonym.data.pixel_store import lazy, new_folder
from cytonym.data.source import level_of
from cytonym.data.table import open_table
from cytonym.tl._brightfield import derived_key
from cytonym.tl._class_map_inputs import class_map_sources, images_beside, pixel_size_of, white_of
from cytonym.tl._class_maps import DAB, TILE_PX, UNIT, ClassMap, find_cells_of_map
from cytonym.tl._translate_stain import ATTRS, level_factors
from cytonym.tl._translators import CLASS_MAP_KEY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.data.class_map import Cells, Resolution
    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

KEY = "segment_nuclei"
NAMES = ("negative", "positive")
COARSEST = {"40x": 0.375, "20x": 0.75}
"""Largest pixel [um] that counts as this magnification."""


def segment_nuclei(
    sdata: SpatialData,
    *,
    class_map_key: str | Sequence[str] | None = None,
    image_key: str | Sequence[str] | None = None,
    marker_key: str | Sequence[str] | None = None,
    marker_channel: str | Sequence[str] | None = None,
    seg_thresh: int = 120,
    size_thresh: int | Literal["default", "auto"] | None = "auto",
    size_thresh_upper: int | None = None,
    noise_thresh: int = 4,
    large_noise_thresh: int | Literal["default"] | None = None,
    marker_thresh: int | Literal["default"] | None = None,
    od_thresh_lower: int | None = None,
    od_thresh_upper: int | None = None,
    resolution: Resolution | None = None,
    watershed: bool = False,
    key_added: str = "nuclei",
    table_key: str = "table",
    coordinate_system: str = "global",
    out: str | Path | None = None,
    tile_px: int = TILE_PX,
) -> None:
    """Find the nuclei of a class map, and call them positive or negative.

    The rules are those of DeepLIIF (Ghahremani et al. 2022). A pixel belongs to a nucleus if red + blue > `seg_thresh` and
    green <= 80, and to a positive one if red >= blue; what such pixels enclose belongs to them, and what then hangs together,
    also across corners, is a nucleus. It is positive if at least half of its pixels are. Defaults are those of the published
    program. The map is read tile by tile; nuclei that lie across tiles are put together.

    Parameters
    ----------
    sdata
        Class maps, as `tl.translate_stain` draws them or as the published program saves them: RGB, 8 bits.
    class_map_key
        Class map, or maps; by default all images with the channels `positive`, `border` and `negative`.
    image_key
        The stained image of each map, for optical densities; a sequence pairs up with the maps. One of its levels must lie on the
        map's pixels. By default the one that the map was made of.
    marker_key
        Image of the marker for each map, for its largest intensity in each nucleus; it lies on the map's pixels as `image_key`
        does.
    marker_channel
        Channel, or channels, of the marker image; their maximum by default.
    seg_thresh
        A pixel with more red and blue than this belongs to a nucleus.
    size_thresh
        Nuclei have more pixels than this. `"default"`: by the gap between small and large parts, within 16 to 100 pixels at
        40x, 9 to 36 at 20x and 4 to 9 at 10x. None: 0. `"auto"`: the default, but none for maps of the classical model, whose
        nuclei have a least size.
    size_thresh_upper
        Nuclei have fewer pixels than this.
    noise_thresh
        Parts of at most so many pixels are noise, which has no part in `size_thresh`.
    large_noise_thresh
        So are those of at least so many pixels; `"default"`: 16000, 4000 or 1000 at 40x, 20x or 10x.
    marker_thresh
        Nuclei whose largest intensity of the marker is higher are positive too; `"default"`: nine tenths of the marker's
        range.
    od_thresh_lower, od_thresh_upper
        Nuclei with a lower or higher optical density (in hundredths, the sum over red, green and blue) are negative.
    resolution
        Magnification that the defaults go by: `"40x"`, `"20x"` or `"10x"`. By default it follows from the pixel size (up to
        0.375 and 0.75 micrometres a pixel for the first two), of a map that networks drew from the one that they went by; 40x,
        where that is unknown.
    watershed
        Split touching nuclei at their waists. The published program does not.
    key_added
        Name of the labels where there is one map; with several, the map of `core3` gets `core3_{key_added}`.
    table_key
        Table that the results go to. One that this function has made of the same labels is replaced, and the labels with it;
        there must be no other table and no other labels of these names.
    coordinate_system
        Coordinate system in which the pixel size is known.
    out
        Folder for the labels of slides that do not fit into memory: the Zarr array `{map}_{key_added}.zarr`, with a number at
        the end of its name where that is taken. It must stay while the labels are used.
    tile_px
        Side of what is looked at at a time.

    Returns
    -------
    None. Sets the following fields:

    `labels[key_added]`
        int32, one number a nucleus.
    `obs["ihc_class"]`
        `"positive"` or `"negative"`, categorical.
    `obs["area"]`, `obs["area_um2"]`
        Pixels, and square micrometres where the pixel size is known.
    `obs["marker_max"]`
        Largest intensity of the marker, where there is one.
    `obs["optical_density"]`, `obs["dab_density"]`
        Mean optical density, summed over red, green and blue (against white = 255, as the published program has it); and mean
        DAB by color deconvolution against the image's own white, where the stained image is known.
    `obsm["spatial"]`
        Centres (x, y) in the coordinate system.
    `uns["segment_nuclei"]`
        `params`: by region, the thresholds that were used and the images that were measured.

    Raises
    ------
    KeyError
        No such image or channel.
    ValueError
        There is no class map, an image does not lie on its pixels, a threshold has no meaning, no nucleus is found, or the
        table or the labels are taken.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> drawn = np.zeros((3, 24, 24), "uint8")
    >>> drawn[0, 2:12, 2:12] = drawn[2, 14:22, 14:22] = 255
    >>> sdata = cy.io.from_arrays(drawn, channels=["positive", "border", "negative"], name="map")
    >>> cy.tl.segment_nuclei(sdata)
    >>> sdata["table"].obs[["area", "ihc_class"]].values.tolist()
    [[100.0, 'positive'], [64.0, 'negative']]
    """
    if size_thresh != "auto":
        CellRules(size_thresh=size_thresh)
    if not tile_px >= 64:
        msg = f"`tile_px` must be at least 64, got {tile_px}."
        raise ValueError(msg)
    if resolution is not None and resolution not in RESOLUTIONS:
        msg = f"`resolution` must be one of {list(RESOLUTIONS)}, got {resolution!r}."
        raise ValueError(msg)
    rules = CellRules(
        seg_thresh=seg_thresh,
        noise_thresh=noise_thresh,
        large_noise_thresh=large_noise_thresh,
        size_thresh_upper=size_thresh_upper,
        marker_thresh=marker_thresh,
        od_thresh_lower=od_thresh_lower,
        od_thresh_upper=od_thresh_upper,
    )
    if size_thresh_upper is not None and isinstance(size_thresh, int) and size_thresh_upper <= size_thresh + 1:
        msg = f"No size is above `size_thresh`, {size_thresh}, and below `size_thresh_upper`, {size_thresh_upper}."
        raise ValueError(msg)
    if marker_thresh is not None and marker_key is None:
        msg = "`marker_thresh` needs a marker image. Give `marker_key`."
        raise ValueError(msg)
    sources = class_map_sources(sdata, class_map_key, coordinate_system)
    keys = [_labels_key(source.image_key, key_added, alone=len(sources) == 1) for source in sources]
    _require_free(sdata, keys, table_key)
    images = images_beside(sdata, sources, image_key, coordinate_system, "image_key")
    markers = images_beside(sdata, sources, marker_key, coordinate_system, "marker_key", marker_channel)
    record = sdata.attrs.get(ATTRS, {})
    sources = [
        replace(source, pixel_size=pixel_size_of(source, image, record.get(source.image_key, {})))
        for source, image in zip(sources, images, strict=True)
    ]
    labels: dict[str, Any] = {}
    cells: dict[str, Cells] = {}
    params: dict[str, Any] = {}
    for source, key, image, marker in zip(sources, keys, images, markers, strict=True):
        made = record.get(source.image_key, {})
        least = size_thresh
        if least == "auto":
            least = None if made.get("model") == "classical" else "default"
        used = replace(rules, size_thresh=least, resolution=resolution or _resolution(source, made))
        white = None if image is None else white_of(image, made)
        class_map = ClassMap(source, image, marker, white, used)
        name = _labels_key(source.image_key, key_added, alone=False)
        with nullcontext() if out is None else new_folder(Path(out), name, ".zarr") as path:
            pixels, found = find_cells_of_map(class_map, split=watershed, path=path, tile_px=tile_px)
        if not found.kept.any():
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            logger.warning("No nucleus found in %s; it gets no labels.", source.image_key)
            continue
        logger.info(
            "%s: %d nuclei, %d positive.", source.image_key, found.kept.sum(), (found.kept & found.positive).sum()
        )
        place = dict(get_transformation(level_of(sdata.images[source.image_key]), get_all=True))
        labels[key] = Labels2DModel.parse(
            lazy(pixels), dims=("y", "x"), transformations=place, scale_factors=level_factors(*pixels.shape) or None
        )
        cells[key] = found
        params[key] = {
            "class_map": source.image_key,
            "image": "" if image is None else image.image_key,
            "marker": "" if marker is None else marker.image_key,
            "watershed": watershed,
            **{name: "" if value is None else value for name, value in vars(found.rules).items()},
        }
    if not labels:
        msg = (
            f"No nucleus found in {[source.image_key for source in sources]}. Look at the class map, and at `seg_thresh`, "
            "`size_thresh` and `size_thresh_upper`."
        )
        raise NoNucleusError(msg)
    _write(
        sdata,
        labels,
        cells,
        params,
        [s for s, k in zip(sources, keys, strict=True) if k in labels],
        table_key,
        coordinate_system,
    )


def _labels_key(map_key: str, key_added: str, *, alone: bool) -> str:
    return key_added if alone else derived_key(map_key.removesuffix(f"_{CLASS_MAP_KEY}"), key_added)


def _require_free(sdata: SpatialData, keys: Sequence[str], table_key: str) -> None:
    odd = [key for key in (*keys, table_key) if not re.fullmatch(r"[\w.-]+", key)]
    if odd:
        msg = f"{odd[0]!r} cannot name an element of a store: only letters, digits, '_', '.' and '-' can."
        raise ValueError(msg)
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        msg = f"Several class maps would share the labels {twice}. Segment them one by one, with their own `key_added`."
        raise ValueError(msg)
    taken = [key for key in keys if key in sdata and key not in sdata.labels]
    if taken:
        msg = f"{taken} are taken by elements that are no labels. Choose another `key_added`."
        raise ValueError(msg)
    if table_key in sdata.tables:
        table = sdata.tables[table_key]
        regions = _annotated(table) | _made(sdata, table_key)
        if KEY not in table.uns or not regions <= set(keys):
            msg = (
                f"Table {table_key!r} annotates {sorted(regions)}, and this would replace it by one of {list(keys)}. Choose a "
                "`table_key` that is not taken."
            )
            raise ValueError(msg)
    others = [name for name, table in sdata.tables.items() if name != table_key and set(keys) & _annotated(table)]
    if others:
        msg = f"Labels {list(keys)} are annotated by the tables {others}. Choose another `key_added`."
        raise ValueError(msg)
    foreign = sorted((set(keys) & set(sdata.labels)) - _made(sdata, table_key))
    if foreign:
        msg = (
            f"Labels {foreign} are there already, and the table {table_key!r} does not tell that `tl.segment_nuclei` made them. "
            "Choose another `key_added`, or delete them."
        )
        raise ValueError(msg)


def _made(sdata: SpatialData, table_key: str) -> set[str]:
    """Labels that an earlier call wrote with this table."""
    return set(sdata.tables[table_key].uns.get(KEY, {}).get("params", {})) if table_key in sdata.tables else set()


def _annotated(table: Any) -> set[str]:
    regions = table.uns.get("spatialdata_attrs", {}).get("region") or []
    return {regions} if isinstance(regions, str) else set(regions)


def _resolution(source: CellSource, made: dict[str, Any]) -> Resolution:
    size = made.get("pixel_size", source.pixel_size)  # what the networks went by
    if size is None:
        logger.info("%s: pixel size unknown; 40x is assumed (`resolution`).", source.image_key)
        return "40x"
    return "40x" if size <= COARSEST["40x"] else "20x" if size <= COARSEST["20x"] else "10x"


def _write(
    sdata: SpatialData,
    labels: dict[str, Any],
    cells: dict[str, Cells],
    params: dict[str, Any],
    sources: Sequence[CellSource],
    table_key: str,
    system: str,
) -> None:
    """Labels and their table, in place of those that an earlier call wrote; nothing is taken away before all is there."""
    found = [_with_cells(sdata, source, key, cells[key], system) for source, key in zip(sources, labels, strict=True)]
    columns: dict[str, list[np.ndarray]] = {}
    for source in found:
        for name, values in _measured(cells[source.region], source.instance_ids - 1, source.pixel_size).items():
            columns.setdefault(name, []).append(values)
    obs: dict[str, Any] = {name: np.concatenate(values) for name, values in columns.items()}
    obs = {name: values for name, values in obs.items() if not (values.dtype.kind == "f" and np.isnan(values).all())}
    called = np.where(obs.pop("positive"), *NAMES[::-1])
    obs = {"ihc_class": pd.Categorical(called, categories=NAMES), **obs}
    new = open_table(SpatialData(), found, table_key).write(obs=obs, uns={KEY: {"params": params}}, inplace=False)
    for key in {*labels, *_made(sdata, table_key)} & set(sdata.labels):
        del sdata.labels[key]
    if table_key in sdata.tables:
        del sdata.tables[table_key]
    for key, element in labels.items():
        sdata.labels[key] = element
    sdata.tables[table_key] = new


def _with_cells(sdata: SpatialData, source: CellSource, key: str, cells: Cells, system: str) -> CellSource:
    """A class map with the cells that were found in it, by their numbers in the labels."""
    kept = np.flatnonzero(cells.kept)
    points = cells.parts.center[kept] + 0.5
    place = transforms.matrix(level_of(sdata.images[source.image_key]), source.image_key, system)
    return replace(
        source,
        region=key,
        kind="labels",
        instance_ids=kept + 1,
        centers=points[:, ::-1],
        spatial=transforms.apply(place, points),
    )


def _measured(cells: Cells, rows: np.ndarray, pixel_size: float | None) -> dict[str, np.ndarray]:
    """Columns of the table for some of the parts; NaN where something is not known."""
    parts = cells.parts
    area = parts.area[rows].astype(np.float64)
    unknown = np.full(len(rows), np.nan)
    density = cells.optical_density
    return {
        "positive": cells.positive[rows],
        "area": area,
        "area_um2": unknown if pixel_size is None else area * pixel_size**2,
        "marker_max": unknown if parts.marker is None else parts.marker[rows],
        "optical_density": unknown if density is None else parts.sums["density"][rows] / area / 100,
        "dab_density": unknown if DAB not in parts.sums else parts.sums[DAB][rows] / area / UNIT,
    }
