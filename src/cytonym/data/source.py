"""From a SpatialData object and optional keys to the cells of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class CellSource:
    """The cells of one image, in that image's own pixel grid. Lazy: holds no pixels.

    Pixel coordinates are continuous: pixel i covers [i, i + 1) and its centre is i + 0.5, as in spatialdata.
    """

    image_key: str
    region: str
    """Element that names the cells; the value of the table's region column."""
    kind: Literal["labels", "shapes", "points"]
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
    """Units of the coordinate system per pixel; None where the image has only an identity transform."""
    labels: LabelGrid | None
    """The label image on the grid of `pixels`, where the cells are named by labels."""


class LabelGrid:
    """A label image seen on the pixel grid of its image."""
