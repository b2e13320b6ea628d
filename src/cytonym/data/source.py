"""From a SpatialData object and optional keys to the cells of each image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import shapely
from spatialdata.models import get_channel_names
from xarray import DataArray, DataTree

from cytonym.data import transforms
from cytonym.data.checks import require_key
from cytonym.data.chunks import zarr_behind
from cytonym.data.labels import LabelGrid, label_centroids
from cytonym.data.pairing import image_keys, pair_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike
    from spatialdata import SpatialData

    from cytonym.data.pairing import Keys, Kind


@dataclass(frozen=True, eq=False)
class Areas:
    """The polygons of cells that are named by shapes."""

    shapes: np.ndarray
    """Geometries [N], in coordinates of their own."""
    to_pixels: np.ndarray
    """[3, 3] on (x, y, 1), from these to the pixels of the image."""

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Geometries of some cells, in (x, y) of pixels."""
        return np.asarray(shapely.transform(self.shapes[rows], lambda xy: transforms.apply(self.to_pixels, xy)))


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
    areas: Areas | None = None
    """Polygons, where the cells are named by such."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Selected channels, height and width: (C, H, W)."""
        _, height, width = self.pixels.shape
        return len(self.channels), int(height), int(width)

    @property
    def inside(self) -> np.ndarray:
        """Cells with their centre in the image, bool [N]."""
        y, x = self.centers.T
        _, height, width = self.shape
        return (y >= 0) & (y < height) & (x >= 0) & (x < width)

    def subset(self, rows: ArrayLike) -> CellSource:
        """The same image with some of its cells, by their positions [n] or a mask [N]."""
        index = np.asarray(rows)
        return replace(
            self,
            instance_ids=self.instance_ids[index],
            centers=self.centers[index],
            spatial=self.spatial[index],
            areas=None if self.areas is None else replace(self.areas, shapes=self.areas.shapes[index]),
        )

    def of_channels(self, names: Sequence[str]) -> CellSource:
        """The same cells with some of the channels."""
        at = [self.channels.index(name) for name in names]
        return replace(self, channels=tuple(names), channel_index=self.channel_index[at])


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
    One `CellSource` a pair of an image and the element that names cells in it, in the order of the images where these are
    given, or else of the cell keys, of the table's regions or of the elements. One image may hold several elements, such as
    the regions of a slide.

    Raises
    ------
    KeyError
        A key, channel or level is unknown; the message lists what there is.
    ValueError
        The answer is not unique, there are no cells, ids or channel names repeat, or an element is rotated or sheared, not
        two-dimensional, or not in the coordinate system.
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
    cell_keys: dict[Kind, Keys] = {"labels": labels_key, "shapes": shapes_key, "points": points_key}
    pairs = pair_up(sdata, image_key, cell_keys, table_key, coordinate_system)
    images = {
        key: _image(sdata, key, coordinate_system, scale, channels) for key in dict.fromkeys(pair[0] for pair in pairs)
    }
    return [_source(images[image], sdata, kind, cells, coordinate_system) for image, kind, cells in pairs]


def those_it_has(sources: Sequence[CellSource], channels: Sequence[str]) -> list[CellSource]:
    """Of each image the channels asked for that it has, for results where panels may differ.

    Raises
    ------
    KeyError
        No image has one of the channels.
    TypeError, ValueError
        Channels are given as numbers, or an image has none of them.
    """
    images = list(dict.fromkeys(source.image_key for source in sources))
    names = list(dict.fromkeys(c for source in sources for c in source.channels))
    chosen = _chosen(names, channels, f"images {images}")
    for source in sources:
        if not set(chosen) & set(source.channels):
            msg = f"Image {source.image_key!r} has none of the channels {chosen}, but {list(source.channels)}. Leave it out: name the others by `image_key`."
            raise ValueError(msg)
    return [source.of_channels([c for c in chosen if c in source.channels]) for source in sources]


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
    keys = image_keys(sdata, image_key, coordinate_system)
    nothing, nowhere = np.empty(0, dtype=np.int64), np.empty((0, 2))
    sources = []
    for key in keys:
        image = _image(sdata, key, coordinate_system, scale, channels)
        sources.append(_on_image(image, "", "points", nothing, nowhere, None))
    return sources


# --------------------------------------------------------------------------------------------------- one image's cells
@dataclass(frozen=True, eq=False)
class _Image:
    """One level of an image, checked."""

    key: str
    pixels: Any
    channels: tuple[str, ...]
    channel_index: np.ndarray
    to_system: np.ndarray
    pixel_size: float | None


def _source(image: _Image, sdata: SpatialData, kind: Kind, region: str, system: str) -> CellSource:
    element = getattr(sdata, kind)[region]
    grid, areas = None, None
    if kind == "labels":
        element = level_of(element)
        _require_labels(element, region)
    to_system = transforms.matrix(element, region, system)
    if kind == "labels":
        to_labels = transforms.between(image.to_system, to_system)
        transforms.require_axis_aligned(to_labels, f"Labels {region!r}, seen from image {image.key!r},")
        _, height, width = image.pixels.shape
        grid = LabelGrid(element.data, (int(height), int(width)), to_labels)
        ids, points = label_centroids(element.data)
    elif kind == "shapes":
        shapes = element.geometry.to_numpy()
        if (shapely.get_type_id(shapes) != shapely.GeometryType.POINT).any():
            areas = Areas(shapes, transforms.between(to_system, image.to_system))
            shapes = shapely.centroid(shapes)
        shapes = np.where(shapely.is_empty(shapes), None, shapes)  # nowhere: NaN
        ids, points = element.index.to_numpy(), np.column_stack([shapely.get_x(shapes), shapely.get_y(shapes)])
    else:
        ids, points = _ids_and_points(element)
    if not len(ids):
        msg = f"No cells: {kind} element {region!r} of image {image.key!r} is empty: no cells in it."
        raise ValueError(msg)
    if pd.Index(ids).has_duplicates:
        twice = pd.Index(ids)[pd.Index(ids).duplicated()].unique()[:5].tolist()
        msg = f"Ids of {kind} element {region!r} repeat: {twice}. Each cell needs one id."
        raise ValueError(msg)
    return replace(_on_image(image, region, kind, ids, transforms.apply(to_system, points), grid), areas=areas)


def _on_image(
    image: _Image, region: str, kind: Kind, ids: np.ndarray, spatial: np.ndarray, labels: LabelGrid | None
) -> CellSource:
    """Cells at points (x, y) of the coordinate system, put onto the image's pixel grid."""
    to_pixels = transforms.between(np.eye(3), image.to_system)
    return CellSource(
        image_key=image.key,
        region=region,
        kind=kind,
        pixels=image.pixels,
        channels=image.channels,
        channel_index=image.channel_index,
        instance_ids=ids,
        centers=np.ascontiguousarray(transforms.snap(transforms.apply(to_pixels, spatial))[:, ::-1]),
        spatial=spatial,
        pixel_size=image.pixel_size,
        labels=labels,
    )


def _ids_and_points(element: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points are named by their index, as in spatialdata's joins; where it repeats, by the column they declare."""
    column = element.attrs.get("spatialdata_attrs", {}).get("instance_key")
    frame = element[["x", "y"] if column is None else ["x", "y", column]].compute()
    ids = frame[column] if column is not None and frame.index.has_duplicates else frame.index
    return ids.to_numpy(), frame[["x", "y"]].to_numpy(dtype=np.float64)


def _require_labels(labels: DataArray, key: str) -> None:
    if tuple(labels.dims) != ("y", "x"):
        msg = f"Labels {key!r} have axes {tuple(labels.dims)}; only ('y', 'x') can name the cells of an image."
        raise ValueError(msg)
    if labels.dtype.kind not in "iu":
        msg = f"Labels {key!r} must hold integers, one number a cell, got {labels.dtype}."
        raise ValueError(msg)


def _image(sdata: SpatialData, key: str, system: str, scale: str | None, channels: Any) -> _Image:
    element = sdata.images[key]
    level = _level(element, key, scale)
    if tuple(level.dims) != ("c", "y", "x"):
        msg = f"Image {key!r} has axes {tuple(level.dims)}; only ('c', 'y', 'x') is read. Project it along z first."
        raise ValueError(msg)
    names, index = _channels(level, key, channels)
    to_system = transforms.matrix(level, key, system)
    transforms.require_axis_aligned(to_system, f"Image {key!r}")
    sides = transforms.pixel_size(element, key, system, to_system)
    square = sides is not None and np.isclose(*sides, rtol=0.01)  # levels of a pyramid are not exactly square
    stored = zarr_behind(level.data)
    pixels = level.data if stored is None else stored
    return _Image(key, pixels, names, index, to_system, float(np.mean(sides)) if sides and square else None)


def _level(image: DataArray | DataTree, key: str, scale: str | None) -> DataArray:
    if isinstance(image, DataTree):
        levels = list(image.children)
        if scale is not None:
            require_key(scale, levels, "level", f"sdata.images[{key!r}]")
        return level_of(image, scale)
    if scale not in (None, "scale0"):
        msg = f"Image {key!r} has one level only, so `scale={scale!r}` is not there. Leave `scale` out."
        raise KeyError(msg)
    return image


def level_of(element: DataArray | DataTree, scale: str | None = None) -> DataArray:
    """A level of an element that has several, the finest by default; an element with one level is that level."""
    if isinstance(element, DataTree):
        return cast("DataArray", next(iter(element[scale or next(iter(element.children))].data_vars.values())))
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
    chosen = _chosen(
        names, wanted, f"image {key!r}", renamed=f"sdata.set_channel_names({key!r}, [...])" if numbered else ""
    )
    return tuple(chosen), np.array([names.index(name) for name in chosen])


def _chosen(names: list[str], wanted: Any, where: str, renamed: str = "") -> list[str]:
    """The channels asked for; `renamed` says how to name those that have numbers."""
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    if not chosen:
        msg = f"`channels` is empty. Channels of {where}: {names}."
        raise ValueError(msg)
    if any(not isinstance(name, str) for name in chosen):
        msg = f"Channels are chosen by name, never by number, got {chosen}. Channels of {where}: {names}."
        raise TypeError(msg)
    lacking = [name for name in chosen if name not in names]
    if lacking and renamed:
        msg = (
            f"The channels of {where} have numbers for names: {names}, so there is no {lacking}. "
            f"Name them first: {renamed}."
        )
        raise KeyError(msg)
    if lacking:
        msg = f"No channel {lacking} in {where}. Available: {names}."
        raise KeyError(msg)
    if len(set(chosen)) < len(chosen):
        msg = f"`channels` names a channel twice: {chosen}."
        raise ValueError(msg)
    return chosen
