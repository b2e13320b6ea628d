"""Names around a brightfield image: its colors, and the images that are made of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.data.source import CellSource

CLASS_MAP = ("positive", "border", "negative")
"""Channels of a class map: red, green and blue."""
RGB = ("red", "green", "blue")
OPACITY = ("a", "alpha", "3")
"""Names of a fourth channel that says what is transparent."""
TRANSLATIONS = "translate_stain"
"""Entry of `sdata.attrs` that tells how each image was made."""
SEGMENTATION = "segment_nuclei"
"""Entry of a table's `uns` that tells which images its nuclei are of."""


def derived_key(image_key: str, suffix: str) -> str:
    """Name of an element that is made of an image.

    Examples
    --------
    >>> from cytonym.data.brightfield import derived_key
    >>> derived_key("core3_image", "stains")
    'core3_stains'
    """
    stem = re.sub(r"[_\-.]+(images?|img|raw)$", "", image_key, flags=re.IGNORECASE)
    return f"{stem}_{suffix}"


def on_white(rgb: Any, opacity: Any) -> Any:
    """Colors as they look on white, where something is transparent.

    Parameters
    ----------
    rgb
        uint8 [3, H, W]; numpy or dask.
    opacity
        uint8 [1, H, W], 255 where nothing shines through.

    Returns
    -------
    uint8 [3, H, W], of the kind of `rgb`.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.brightfield import on_white
    >>> on_white(np.zeros((3, 1, 3), "u1"), np.array([[[255, 128, 0]]], "u1"))[0].tolist()
    [[0, 127, 255]]
    """
    weight = opacity.astype(np.uint32)
    return ((rgb.astype(np.uint32) * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def rgb_order(names: Sequence[str]) -> list[int] | None:
    """Places of red, green and blue among the channels, None where there is no telling.

    Examples
    --------
    >>> from cytonym.data.brightfield import rgb_order
    >>> rgb_order(["b", "g", "r"]), rgb_order(["0", "1", "2", "3"]), rgb_order(["DAPI", "CD3", "CD8"])
    ([2, 1, 0], [0, 1, 2], None)
    """
    known = [str(name).lower() for name in names]
    for wanted in (RGB, ("r", "g", "b")):
        if set(wanted) <= set(known):
            return [known.index(color) for color in wanted]
    return [0, 1, 2] if len(known) in (3, 4) and all(name.isdigit() for name in known) else None


def rgb_source(source: CellSource) -> CellSource | None:
    """Red, green and blue of an image, in this order and white where it is transparent; None where it has other channels.

    Parameters
    ----------
    source
        An image of 8 bits.
    """
    order = rgb_order(source.channels)
    if order is None:
        return None
    index = source.channel_index[order]
    left = [i for i in range(len(source.channels)) if i not in order]
    if len(left) != 1 or source.channels[left[0]].lower() not in OPACITY:
        return replace(source, channels=RGB, channel_index=index)
    stored = isinstance(source.pixels, zarr.Array)
    planes = da.from_zarr(source.pixels) if stored else da.asarray(source.pixels)
    shown = on_white(planes[index], planes[source.channel_index[left]])
    return replace(source, pixels=shown, channels=RGB, channel_index=np.arange(3))
