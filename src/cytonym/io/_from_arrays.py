"""Arrays in memory, or lazy ones, as a SpatialData object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale

from cytonym.data.elements import centers_element
from cytonym.data.source import resolve
from cytonym.data.table import open_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def from_arrays(
    image: ArrayLike | da.Array | zarr.Array,
    labels: ArrayLike | da.Array | zarr.Array | None = None,
    *,
    channels: Sequence[str],
    centers: ArrayLike | pd.DataFrame | None = None,
    pixel_size: float | None = None,
    name: str | None = None,
) -> SpatialData:
    """Put an image, and what names its cells, into a SpatialData object.

    Parameters
    ----------
    image
        Pixels [C, H, W], or [H, W] for a single channel; numpy, dask or zarr. Lazy arrays stay lazy.
    labels
        Mask [H, W]: 0 = no cell, one number a cell.
    channels
        Names of the C channels.
    centers
        Centres instead of a mask: (x, y) in pixels [N, 2], or a DataFrame with columns `x` and `y` whose index holds
        the ids. Pixel i covers [i, i + 1): add 0.5 to positions that count from the first pixel's centre.
    pixel_size
        Micrometres a pixel. With it the coordinate system "global" is in micrometres; without it, in pixels.
    name
        Start of the elements' names, for objects with several images: "core3" makes `core3_image`.

    Returns
    -------
    SpatialData
        With `image`, and `cells` (labels) or `centers` (circles), in "global". With cells, `sdata["table"]` has a row for
        each of them: `obs["region"]`, `obs["instance_id"]` and `obsm["spatial"]`.

    Raises
    ------
    ValueError
        The image is not [C, H, W], the number of channel names is wrong or names repeat, the mask has another shape
        than the image or is not of integers, or both mask and centres are given.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> image = np.random.default_rng(0).poisson(3, (2, 64, 64)).astype("uint16")
    >>> sdata = cy.io.from_arrays(image, channels=["DNA", "CD8"], centers=[[20.5, 30.5], [40, 12]])
    >>> sdata["table"].obs["instance_id"].tolist()
    [1, 2]
    """
    pixels = _lazy(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or 0 in pixels.shape:
        msg = f"`image` must be [C, H, W] with at least one pixel, got shape {tuple(pixels.shape)}."
        raise ValueError(msg)
    names = [str(channel) for channel in ([channels] if isinstance(channels, str) else channels)]
    if len(names) != pixels.shape[0]:
        msg = f"`image` has {pixels.shape[0]} channels, but `channels` names {len(names)}: {names}."
        raise ValueError(msg)
    twice = sorted({channel for channel in names if names.count(channel) > 1})
    if twice:
        msg = f"Channel names repeat: {twice}. Give each channel its own."
        raise ValueError(msg)
    if labels is not None and centers is not None:
        msg = "`labels` and `centers` both name cells: give one of the two."
        raise ValueError(msg)
    if pixel_size is not None and not pixel_size > 0:
        msg = f"`pixel_size` must be positive, got {pixel_size}."
        raise ValueError(msg)
    place: Any = Identity() if pixel_size is None else Scale([pixel_size, pixel_size], axes=("x", "y"))
    prefix = f"{name}_" if name else ""
    elements: dict[str, Any] = {
        f"{prefix}image": Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=names, transformations={"global": place}
        )
    }
    if labels is not None:
        elements[f"{prefix}cells"] = _labels(labels, (pixels.shape[1], pixels.shape[2]), place)
    elif centers is not None:
        ids = None
        if isinstance(centers, pd.DataFrame):
            lacking = {"x", "y"} - set(centers.columns)
            if lacking:
                msg = f"`centers` needs columns 'x' and 'y', it has {list(centers.columns)}."
                raise ValueError(msg)
            ids, centers = centers.index.to_numpy(), centers[["x", "y"]].to_numpy()
        elements[f"{prefix}centers"] = centers_element(centers, ids, transformations={"global": place})
    sdata = SpatialData.init_from_elements(elements)
    if len(elements) > 1:
        open_table(sdata, resolve(sdata)).write()
    return sdata


def _lazy(array: Any) -> Any:
    if isinstance(array, zarr.Array):
        return da.from_zarr(array)
    return array if isinstance(array, da.Array) else np.asarray(array)


def _labels(labels: Any, shape: tuple[int, int], place: Any) -> Any:
    mask = _lazy(labels)
    if tuple(mask.shape) != shape:
        msg = f"`labels` has shape {tuple(mask.shape)}, but the image has {shape}."
        raise ValueError(msg)
    if mask.dtype.kind not in "iu":
        msg = f"`labels` must hold integers, one number a cell, got {mask.dtype}."
        raise ValueError(msg)
    return Labels2DModel.parse(mask, dims=("y", "x"), transformations={"global": place})
