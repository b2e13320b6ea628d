"""From a SpatialData object and optional keys to the cells of each image."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from spatialdata.models import get_channel_names
from xarray import DataArray, DataTree

from cytonym.data import transforms
from cytonym.data.checks import require_key
from cytonym.data.chunks import zarr_behind
from cytonym.data.labels import LabelGrid, label_centroids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from spatialdata import SpatialData

    Kind = Literal["labels", "shapes", "points"]
    Keys = str | Sequence[str] | None

KINDS: tuple[Kind, ...] = ("labels", "shapes", "points")
# What names of elements of one field may end in: "core3_image", "core3_cell_mask" and "core3_centers" belong together.
SUFFIX = re.compile(
    r"[_\-. ]*(images?|img|raw|labels?|masks?|cells?|nuclei|centers|centroids|points|shapes|circles)$", re.I
)


@dataclass(frozen=True, eq=False)
class CellSource:
    """The cells of one image, in that image's own pixel grid. Lazy: holds no pixels.

    Pixel coordinates are continuous: pixel i covers [i, i + 1) and its centre is i + 0.5, as in spatialdata.
    """

    image_key: str
    region: str
    """Element that names the cells; the value of the table's region column."""
    kind: Kind
    pixels: Any
    """[C_all, H, W] zarr.Array, dask.array.Array or numpy.ndarray."""
    channels: tuple[str, ...]
    """Names of the selected channels."""
    channel_index: np.ndarray
    """int [C], rows of `pixels` that `channels` names."""
    instance_ids: np.ndarray
    """[N] instance ids, as in the element."""
    centers: np.ndarray
    """f8 [N, 2] (y, x) in pixel coordinates of `pixels`."""
    spatial: np.ndarray
    """f8 [N, 2] (x, y) in the coordinate system."""
    pixel_size: float | None
    """Units of the coordinate system per pixel; None where nothing is said about it, or where it differs by axis."""
    labels: LabelGrid | None
    """The label image on the grid of `pixels`, where the cells are named by labels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Selected channels, height and width: (C, H, W)."""
        _, height, width = self.pixels.shape
        return len(self.channels), int(height), int(width)

    def subset(self, rows: ArrayLike) -> CellSource:
        """The same image with some of its cells, by their positions [n] or a mask [N]."""
        index = np.asarray(rows)
        return replace(
            self, instance_ids=self.instance_ids[index], centers=self.centers[index], spatial=self.spatial[index]
        )


def resolve(
    sdata: SpatialData,
    *,
    image_key: Keys = None,
    labels_key: Keys = None,
    shapes_key: Keys = None,
    points_key: Keys = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
) -> list[CellSource]:
    """Find the images and the cells in them.

    A key may be left out where the answer is unique: the only image; the elements that the table annotates, or else the
    only element that can name cells. Several images and several elements without keys pair up by their names, as in
    `core3_image` and `core3_cells`.

    Parameters
    ----------
    sdata
        Images and cells.
    image_key
        Image, or images; a sequence pairs up with the cell keys.
    labels_key, shapes_key, points_key
        Element, or elements, that name the cells: at most one of the three.
    table_key
        Table whose regions name the cells where no cell key is given.
    coordinate_system
        Coordinate system in which images and cells meet.
    scale
        Level of a multi-scale image, such as "scale1"; the full resolution by default.
    channels
        Names of the channels, in the order wanted; all by default.

    Returns
    -------
    One `CellSource` an image, in the order of the keys, or else of the table's regions or of the elements.

    Raises
    ------
    KeyError
        A key, channel or level is unknown; the message lists what there is.
    ValueError
        The answer is not unique, there are no cells, channel names repeat, or an element is rotated or sheared.
    TypeError
        Channels are given as numbers.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> mask = np.zeros((32, 32), int)
    >>> mask[4:12, 4:12] = 7
    >>> sdata = cy.io.from_arrays(np.ones((2, 32, 32)), mask, channels=["DNA", "CD8"])
    >>> [source] = resolve(sdata)
    >>> source.instance_ids.tolist(), source.centers.tolist()
    ([7], [[8.0, 8.0]])
    """
    pairs = _pairs(sdata, image_key, {"labels": labels_key, "shapes": shapes_key, "points": points_key}, table_key)
    return [_source(sdata, image, kind, cells, coordinate_system, scale, channels) for image, kind, cells in pairs]


def image_sources(
    sdata: SpatialData,
    *,
    image_key: Keys = None,
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
) -> list[CellSource]:
    """Images in which the cells are still to be found: `resolve` without cells.

    Parameters
    ----------
    sdata
        Images.
    image_key, coordinate_system, scale, channels
        As in `resolve`; all images by default.

    Returns
    -------
    One `CellSource` an image, with no cells and an empty `region`.
    """
    keys = _as_list(image_key) or list(sdata.images)
    _require_images(sdata, keys)
    empty = np.empty((0, 2))
    return [
        _on_image(sdata, key, coordinate_system, scale, channels)(
            region="", kind="points", instance_ids=np.empty(0, dtype=np.int64), spatial=empty, labels=None
        )
        for key in keys
    ]


# ------------------------------------------------------------------------------------------ which image, which cells
def _pairs(
    sdata: SpatialData, image_key: Keys, cell_keys: dict[Kind, Keys], table_key: str
) -> list[tuple[str, Kind, str]]:
    given = {kind: _as_list(key) for kind, key in cell_keys.items() if key is not None}
    if len(given) > 1:
        msg = f"Exactly one of labels, shapes and points names the cells, got {[f'{kind}_key' for kind in given]}."
        raise ValueError(msg)
    images = _as_list(image_key)
    _require_images(sdata, images)
    if given:
        kind, names = next(iter(given.items()))
        for name in names:
            require_key(name, getattr(sdata, kind), f"{kind} element", f"sdata.{kind}")
        cells = [(kind, name) for name in names]
    else:
        cells = _candidates(sdata, table_key)
    if given and image_key is not None:
        if len(images) != len(cells):
            msg = (
                f"Images and cells pair up one by one, got {len(images)} images {images} and {len(cells)} elements "
                f"{[name for _, name in cells]}."
            )
            raise ValueError(msg)
        return [(image, *cell) for image, cell in zip(images, cells, strict=True)]
    every = images or list(sdata.images)
    if len(every) == len(cells) == 1:
        return [(every[0], *cells[0])]
    return _by_name(every, cells, images_given=bool(images), cells_given=bool(given))


def _candidates(sdata: SpatialData, table_key: str) -> list[tuple[Kind, str]]:
    """Elements that can name cells: those that the table annotates, or else all there are."""
    elements = [(kind, str(name)) for kind in KINDS for name in getattr(sdata, kind)]
    if table_key in sdata.tables:
        regions = sdata.tables[table_key].uns.get("spatialdata_attrs", {}).get("region") or []
        wanted = [str(r) for r in ([regions] if isinstance(regions, str) else regions)]
        annotated = [(kind, name) for region in wanted for kind, name in elements if name == region]
        if wanted and not annotated:
            msg = (
                f"Table {table_key!r} annotates {wanted}, but sdata has no such labels, shapes or points. "
                f"Available: {[name for _, name in elements]}."
            )
            raise ValueError(msg)
        if annotated:
            return annotated
    if not elements:
        msg = (
            "No cells: sdata has no labels, shapes or points. Add a mask or centres (io.from_arrays, io.read_tiffs), or "
            "find the cells with pp.find_cells."
        )
        raise ValueError(msg)
    return elements


def _by_name(
    images: list[str], cells: list[tuple[Kind, str]], *, images_given: bool, cells_given: bool
) -> list[tuple[str, Kind, str]]:
    """Pair images and cells whose names share a stem; every one that was asked for needs exactly one partner."""
    of_stem: dict[str, list[tuple[Kind, str]]] = defaultdict(list)
    for kind, name in cells:
        of_stem[_stem(name)].append((kind, name))
    partners = {image: of_stem.get(_stem(image), []) for image in images}
    names = [name for _, name in cells]
    paired = [name for found in partners.values() for _, name in found]
    complete = all(len(found) == 1 for found in partners.values()) and len(set(paired)) == len(paired)
    if complete and (images_given or set(paired) == set(names)):
        order = {name: i for i, name in enumerate(names)}
        pairs = [(image, *found[0]) for image, found in partners.items()]
        return pairs if images_given else sorted(pairs, key=lambda pair: order[pair[2]])
    if len(images) == 1 and not cells_given:
        msg = (
            f"Several elements could name the cells of image {images[0]!r}: {names}. "
            "Choose one with `labels_key`, `shapes_key` or `points_key`."
        )
    elif len(cells) == 1 and not images_given:
        msg = f"sdata has several images: {images}. Choose the one of {names[0]!r} with `image_key`."
    else:
        msg = (
            f"Which cells belong to which image is not clear: images {images}, cells {names}. Give `image_key` and one of "
            "`labels_key`, `shapes_key` and `points_key`, as sequences that pair up."
        )
    raise ValueError(msg)


def _stem(name: str) -> str:
    stem, before = name, None
    while stem != before:
        before, stem = stem, SUFFIX.sub("", stem)
    return stem


def _as_list(keys: Keys) -> list[str]:
    if keys is None:
        return []
    return [keys] if isinstance(keys, str) else [str(key) for key in keys]


def _require_images(sdata: SpatialData, keys: list[str]) -> None:
    if not len(sdata.images):
        msg = "sdata has no image. Add one, for instance with io.from_arrays or io.read_tiffs."
        raise ValueError(msg)
    for key in keys:
        require_key(key, sdata.images, "image", "sdata.images")


# --------------------------------------------------------------------------------------------------- one image's cells
def _source(
    sdata: SpatialData, image_key: str, kind: Kind, region: str, system: str, scale: str | None, channels: Any
) -> CellSource:
    build = _on_image(sdata, image_key, system, scale, channels)
    element = getattr(sdata, kind)[region]
    if kind == "labels":
        element = _full_resolution(element)
    to_system = transforms.matrix(element, region, system)
    if kind == "labels":
        ids, points = label_centroids(element.data)
    elif kind == "shapes":
        centroids = element.geometry.centroid
        ids, points = element.index.to_numpy(), np.column_stack([centroids.x, centroids.y])
    else:
        frame = element[["x", "y"]].compute()
        ids, points = frame.index.to_numpy(), frame.to_numpy(dtype=np.float64)
    if not len(ids):
        msg = f"No cells: {kind} element {region!r} of image {image_key!r} is empty."
        raise ValueError(msg)
    if pd.Index(ids).has_duplicates:
        twice = pd.Index(ids)[pd.Index(ids).duplicated()].unique()[:5].tolist()
        msg = f"Ids of {kind} element {region!r} repeat: {twice}. Each cell needs one id."
        raise ValueError(msg)
    labels = (element, to_system) if kind == "labels" else None
    return build(region=region, kind=kind, instance_ids=ids, spatial=transforms.apply(to_system, points), labels=labels)


def _on_image(sdata: SpatialData, image_key: str, system: str, scale: str | None, channels: Any) -> Any:
    """Check one image; returns the function that places cells, given in the coordinate system, on its pixel grid."""
    image = _level(sdata.images[image_key], image_key, scale)
    names, index = _channels(image, image_key, channels)
    to_system = transforms.matrix(image, image_key, system)
    transforms.require_axis_aligned(to_system, f"Image {image_key!r}")
    to_pixels = np.linalg.inv(to_system)
    side = np.abs(to_system[:2, :2]).sum(axis=0)  # of a pixel along its own x and y
    known = not transforms.is_identity(image, image_key, system) and np.isclose(side[0], side[1], rtol=0.01)
    stored = zarr_behind(image.data)

    def build(
        *, region: str, kind: Kind, instance_ids: np.ndarray, spatial: np.ndarray, labels: tuple[Any, np.ndarray] | None
    ) -> CellSource:
        grid = None
        if labels is not None:
            to_labels = np.linalg.inv(labels[1]) @ to_system
            transforms.require_axis_aligned(to_labels, f"Labels {region!r}, seen from image {image_key!r},")
            grid = LabelGrid(labels[0].data, (image.shape[1], image.shape[2]), to_labels)
        return CellSource(
            image_key=image_key,
            region=region,
            kind=kind,
            pixels=image.data if stored is None else stored,
            channels=names,
            channel_index=index,
            instance_ids=instance_ids,
            centers=np.ascontiguousarray(transforms.apply(to_pixels, spatial)[:, ::-1]),
            spatial=spatial,
            pixel_size=float(side.mean()) if known else None,
            labels=grid,
        )

    return build


def _level(image: DataArray | DataTree, key: str, scale: str | None) -> DataArray:
    if isinstance(image, DataTree):
        levels = list(image.children)
        if scale is None:
            return _full_resolution(image)
        require_key(scale, levels, "level", f"sdata.images[{key!r}]")
        return cast("DataArray", next(iter(image[scale].data_vars.values())))
    if scale not in (None, "scale0"):
        msg = f"Image {key!r} has one level only, so `scale={scale!r}` is not there. Leave `scale` out."
        raise KeyError(msg)
    return image


def _full_resolution(element: DataArray | DataTree) -> DataArray:
    if isinstance(element, DataTree):
        return cast("DataArray", next(iter(element[next(iter(element.children))].data_vars.values())))
    return element


def _channels(image: DataArray, key: str, wanted: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and positions of the channels asked for."""
    found = list(get_channel_names(image))
    numbered = any(isinstance(name, (int, np.integer)) for name in found)
    names = [str(name) for name in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = (
            f"Channel names of image {key!r} repeat: {twice}. Give each channel its own: sdata.set_channel_names(...)."
        )
        raise ValueError(msg)
    if wanted is None:
        return tuple(names), np.arange(len(names))
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    if not chosen:
        msg = f"`channels` is empty. Channels of image {key!r}: {names}."
        raise ValueError(msg)
    if any(not isinstance(name, str) for name in chosen):
        msg = f"Channels are chosen by name, never by number, got {chosen}. Channels of image {key!r}: {names}."
        raise TypeError(msg)
    lacking = [name for name in chosen if name not in names]
    if lacking and numbered:
        msg = (
            f"The channels of image {key!r} have numbers for names: {names}, so there is no {lacking}. "
            f"Name them first: sdata.set_channel_names({key!r}, [...])."
        )
        raise KeyError(msg)
    if lacking:
        msg = f"No channel {lacking} in image {key!r}. Available: {names}."
        raise KeyError(msg)
    if len(set(chosen)) < len(chosen):
        msg = f"`channels` names a channel twice: {chosen}."
        raise ValueError(msg)
    return tuple(chosen), np.array([names.index(name) for name in chosen])
