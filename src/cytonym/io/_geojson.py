"""What is written for QuPath and what is read from it: names of cells, and places in pixels of the image."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from cytonym.data import transforms
from cytonym.data.source import level_of, resolve

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

# QuPath 0.5 and later keep the metadata of an object; 0.4 keeps its id.
REGION, INSTANCE, CLASS = "cytonym_region", "cytonym_instance_id", "cytonym_class"
NAMESPACE = uuid.UUID("5f0d0c0e-6b3a-5a5e-9a43-6379746f6e79")


def cell_uuid(region: str, instance: Any) -> str:
    """The id of a cell in QuPath: always the same for the same cell."""
    return str(uuid.uuid5(NAMESPACE, json.dumps([region, str(instance)])))


def sources_of_one_image(sdata: SpatialData, **keys: Any) -> list[CellSource]:
    """The cells of the one image that QuPath has open: one source for each element that names some of them."""
    sources = resolve(sdata, **keys)
    images = list(dict.fromkeys(source.image_key for source in sources))
    if len(images) > 1:
        msg = (
            f"A GeoJSON file belongs to one image, but there are {len(images)}: {images}. Choose one with `image_key`."
        )
        raise ValueError(msg)
    return sources


def to_pixels(sdata: SpatialData, source: CellSource, coordinate_system: str, scale: str | None) -> np.ndarray:
    """Matrix [3, 3] from the coordinates (x, y, 1) of the element that names the cells to pixels of the image."""
    if source.labels is not None:
        return np.linalg.inv(source.labels.to_labels)
    image = level_of(sdata.images[source.image_key], scale)
    cells = getattr(sdata, source.kind)[source.region]
    return transforms.between(
        transforms.matrix(cells, source.region, coordinate_system),
        transforms.matrix(image, source.image_key, coordinate_system),
    )


def shape_outlines(element: GeoDataFrame, rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Some shapes in pixels of the image; circles become polygons of 16 corners."""
    geometry = shapely.force_2d(element.geometry.to_numpy()[rows])
    circles = shapely.get_type_id(geometry) == shapely.GeometryType.POINT
    if circles.any():
        radius = element["radius"].to_numpy(np.float64)[rows][circles]
        geometry[circles] = shapely.buffer(geometry[circles], radius, quad_segs=4)
    return shapely.transform(geometry, lambda xy: transforms.snap(transforms.apply(matrix, xy)))
