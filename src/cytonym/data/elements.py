"""Elements that name cells by their centres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from spatialdata.models import ShapesModel

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from numpy.typing import ArrayLike


def centers_element(
    points: ArrayLike,
    ids: ArrayLike | None = None,
    *,
    radius: float = 4.0,
    transformations: dict[str, Any] | None = None,
) -> GeoDataFrame:
    """Centres of cells as circles.

    Circles, not points: a points element is a dask table whose index is renumbered on the way to disk and back, so that
    ids would be lost.

    Parameters
    ----------
    points
        Centres (x, y) [N, 2].
    ids
        Instance ids [N], 1 … N by default.
    radius
        Of the circles, in the units of the points. Only figures use it.
    transformations
        Coordinate system -> transformation, as in `ShapesModel.parse`.

    Returns
    -------
    A shapes element with the ids as its index.

    Raises
    ------
    ValueError
        The points are not [N, 2] or not finite, or ids repeat or are too few.
    """
    xy = np.asarray(points, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        msg = f"Centres must be (x, y) pairs [N, 2], got an array of shape {xy.shape}."
        raise ValueError(msg)
    if not len(xy):
        msg = "There are no centres: an element of cells needs at least one."
        raise ValueError(msg)
    if not np.isfinite(xy).all():
        bad = np.flatnonzero(~np.isfinite(xy).all(axis=1))
        msg = f"{len(bad)} centres are NaN or infinite, the first in row {bad[0]}. Drop them first."
        raise ValueError(msg)
    index = pd.RangeIndex(1, len(xy) + 1) if ids is None else pd.Index(np.asarray(ids))
    if len(index) != len(xy):
        msg = f"There are {len(xy)} centres, but {len(index)} ids."
        raise ValueError(msg)
    if index.has_duplicates:
        msg = f"Ids of the centres repeat: {index[index.duplicated()].unique()[:5].tolist()}."
        raise ValueError(msg)
    return ShapesModel.parse(xy, geometry=0, radius=radius, index=index, transformations=transformations)
