"""Cell centres from a nuclear channel, without segmentation."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from spatialdata.transformations import get_transformation
from xarray import DataTree

from cytonym.data.elements import centers_element
from cytonym.data.source import image_sources
from cytonym.pp._blobs import find_blobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

METHODS = ("log", "maxima")


def find_cells(
    sdata: SpatialData,
    channel: str | Sequence[str],
    *,
    method: Literal["log", "maxima"] = "log",
    diameter_um: float = 8.0,
    diameter_px: float | None = None,
    threshold: float = 0.1,
    key_added: str = "centers",
    image_key: str | Sequence[str] | None = None,
    coordinate_system: str = "global",
    scale: str | None = None,
) -> None:
    """Find cell centres as bright blobs of a nuclear channel.

    Images are read tile by tile; the result does not depend on the tiles. All settings are relative to the image's own
    intensities, so counts, 8 and 16 bit and [0, 1] need no other values. On three fields with masks the defaults reach
    F1 0.77 to 0.84 (see the page on benchmarks); the diameter matters most: a quarter too small or a third too large
    costs about 0.06.

    Parameters
    ----------
    sdata
        Images.
    channel
        Nuclear channel, or several, whose intensities are added up.
    method
        `"log"`: maxima of the Laplacian of Gaussian over three scales. `"maxima"`: maxima of the smoothed image; finds
        fewer of the cells that touch.
    diameter_um
        Diameter of a nucleus in micrometres, for images whose pixel size is known.
    diameter_px
        The same in pixels of the image; takes precedence. Needed where the pixel size is unknown.
    threshold
        Least answer of a cell over the typical one, from 0 (every maximum) to about 0.5 (only what stands out).
    key_added
        Name of the new element where `sdata` has one image; with several, `core3_image` gets `core3_{key_added}`.
    image_key
        Image, or images, of `sdata.images`; all by default.
    coordinate_system
        Coordinate system in which the pixel size is known.
    scale
        Level of a multi-scale image; the full resolution by default.

    Returns
    -------
    None. Sets `sdata.shapes[key_added]`: a circle of the given diameter a cell, ids from 1 on in order of rows. An element
    of that name is replaced. An image without any cell gets no element and is named in a warning.

    Raises
    ------
    KeyError
        No such image or channel.
    ValueError
        No cell in any image, the pixel size is unknown and `diameter_px` not given, or pixels are NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.ndimage import gaussian_filter
    >>> import cytonym as cy
    >>> image = np.zeros((1, 64, 64), "float32")
    >>> image[0, [20, 40], [20, 44]] = 1
    >>> sdata = cy.io.from_arrays(gaussian_filter(image, (0, 3, 3)), channels=["DNA"])
    >>> cy.pp.find_cells(sdata, "DNA", diameter_px=9)
    >>> [(p.x, p.y) for p in sdata["centers"].geometry]
    [(20.5, 20.5), (44.5, 40.5)]
    """
    if method not in METHODS:
        msg = f"`method` must be one of {list(METHODS)}, got {method!r}."
        raise ValueError(msg)
    if not threshold >= 0:
        msg = f"`threshold` must be at least 0, got {threshold}."
        raise ValueError(msg)
    channels = [channel] if isinstance(channel, str) else list(channel)
    sources = image_sources(
        sdata, image_key=image_key, coordinate_system=coordinate_system, scale=scale, channels=channels
    )
    diameters = [_diameter(source, diameter_px, diameter_um) for source in sources]
    elements = {}
    empty = []
    for source, diameter in zip(sources, diameters, strict=True):
        key = _element_key(sdata, source.image_key, key_added)
        if key in sdata and key not in sdata.shapes:
            msg = f"{key!r} is taken by an element that is no shapes element. Choose another `key_added`."
            raise ValueError(msg)
        blobs = find_blobs(source, diameter, method=method, threshold=threshold)
        if not len(blobs.y):
            empty.append(source.image_key)
            continue
        order = np.lexsort((blobs.x, blobs.y))
        points = np.column_stack([blobs.x, blobs.y])[order] + 0.5
        elements[key] = _circles(sdata, source, points, diameter, scale)
        logger.info("%s: %d cells found.", source.image_key, len(points))
    if not elements:
        msg = (
            f"No cell found in {[source.image_key for source in sources]}: channel(s) {channels} have no maxima above the "
            "threshold. Look at the channel, and at `diameter_px` and `threshold`."
        )
        raise ValueError(msg)
    if empty:
        logger.warning("No cell found in %s; these images get no centres.", empty)
    for key, element in elements.items():
        if key in sdata.shapes:
            del sdata.shapes[key]
        sdata.shapes[key] = element


def _diameter(source: CellSource, diameter_px: float | None, diameter_um: float) -> float:
    """Diameter in pixels of the image."""
    name, value = ("diameter_px", diameter_px) if diameter_px is not None else ("diameter_um", diameter_um)
    if not value > 0:
        msg = f"`{name}` must be positive, got {value}."
        raise ValueError(msg)
    if diameter_px is None and source.pixel_size is None:
        msg = (
            f"The pixel size of image {source.image_key!r} is unknown (it has an identity transformation, or another scale "
            "along y than along x), so `diameter_um` has no meaning. Give `diameter_px`: measure a nucleus in the image."
        )
        raise ValueError(msg)
    pixels = float(value) if diameter_px is not None else float(value) / float(source.pixel_size or 1.0)
    if pixels < 3:
        msg = f"A nucleus of {pixels:.2g} pixels is too small to be found in image {source.image_key!r}; at least 3 are needed."
        raise ValueError(msg)
    return pixels


def _element_key(sdata: SpatialData, image_key: str, key_added: str) -> str:
    if len(sdata.images) == 1:
        return key_added
    stem = re.sub(r"[_\-.]+(images?|img|raw)$", "", image_key, flags=re.IGNORECASE)
    return f"{stem}_{key_added}"


def _circles(
    sdata: SpatialData, source: CellSource, points: np.ndarray, diameter: float, scale: str | None
) -> GeoDataFrame:
    """Circles at points (x, y) [N, 2] of the image's pixel grid; they go wherever the image goes."""
    image = sdata.images[source.image_key]
    if isinstance(image, DataTree):
        image = next(iter(image[scale or next(iter(image.children))].data_vars.values()))
    place = dict(get_transformation(image, get_all=True))
    return centers_element(points, radius=diameter / 2, transformations=place)
