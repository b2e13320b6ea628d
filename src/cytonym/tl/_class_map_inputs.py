"""Class maps, and the images on the same pixels that are measured with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.models import get_channel_names
from xarray import DataTree

from cytonym.data import transforms
from cytonym.data.source import image_sources, level_of
from cytonym.data.stains import intensity_counts, white_level
from cytonym.data.tiles import iter_tiles
from cytonym.tl._brightfield import CLASS_MAP, brightfield_sources
from cytonym.tl._class_maps import TILE_PX, read_box
from cytonym.tl._translate_stain import ATTRS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

LOOKED_AT, PALE, PALE_SHARE = 1024, 120, 0.1
"""A class map has nearly no pixels whose colors are all brighter than this, in a square of its middle."""


def class_map_sources(
    sdata: SpatialData, key: str | Sequence[str] | None, system: str, scale: str | None = None
) -> list[CellSource]:
    """Class maps: those asked for, or those whose channels say so."""
    if key is None:
        key = [
            name for name, image in sdata.images.items() if list(map(str, get_channel_names(image))) == list(CLASS_MAP)
        ]
        if not key:
            msg = (
                f"No class map among the images {list(sdata.images)}: none has the channels {list(CLASS_MAP)}. Make one by "
                "`tl.translate_stain`, or give `class_map_key`."
            )
            raise ValueError(msg)
    sources = []
    for source in image_sources(sdata, image_key=key, coordinate_system=system, scale=scale):
        if list(source.channels) == list(CLASS_MAP):
            if np.dtype(source.pixels.dtype) != np.uint8:
                msg = (
                    f"Class map {source.image_key!r} must hold 8 bits (uint8), it has {np.dtype(source.pixels.dtype)}."
                )
                raise ValueError(msg)
            sources.append(source)
        else:
            [drawn] = brightfield_sources(sdata, source.image_key, system, scale)
            _require_drawn(drawn)
            sources.append(drawn)
    return sources


def _require_drawn(source: CellSource) -> None:
    """Refuse an image of a section: a class map is red, green and blue on black, and never white."""
    _, height, width = source.shape
    top, left = max(0, height - LOOKED_AT) // 2, max(0, width - LOOKED_AT) // 2
    seen = read_box(source, slice(top, top + LOOKED_AT), slice(left, left + LOOKED_AT))
    if (seen.min(axis=0) > PALE).mean() > PALE_SHARE:
        msg = (
            f"Image {source.image_key!r} is no class map, which is red, green and blue on black. Of an image of a section "
            "`tl.translate_stain` makes one."
        )
        raise ValueError(msg)


def images_beside(
    sdata: SpatialData,
    maps: Sequence[CellSource],
    key: str | Sequence[str] | None,
    system: str,
    name: str,
    channels: str | Sequence[str] | None = None,
) -> list[CellSource | None]:
    """For each map the image of the same pixels that is measured with it."""
    record = sdata.attrs.get(ATTRS, {})
    if key is None and name == "image_key":
        known = [record.get(source.image_key, {}).get("image") for source in maps]
        keys = [k if k in sdata.images else None for k in known]
    elif key is None:
        keys = [None] * len(maps)
    else:
        keys = [key] if isinstance(key, str) else list(key)
    if len(keys) != len(maps):
        msg = f"`{name}` names {len(keys)} images for {len(maps)} class maps: {[s.image_key for s in maps]}."
        raise ValueError(msg)
    found: list[CellSource | None] = []
    wanted = [channels] if isinstance(channels, str) else channels
    for source, one in zip(maps, keys, strict=True):
        if one is None:
            found.append(None)
            continue
        level = _level_on(sdata, source, one, system)
        if level is None and key is None:
            logger.warning("%s lies on other pixels than %s, so there are no optical densities.", one, source.image_key)
            found.append(None)
            continue
        if name == "image_key":
            [image] = brightfield_sources(sdata, one, system, level)
        else:
            [image] = image_sources(sdata, image_key=one, coordinate_system=system, scale=level, channels=wanted)
        if level is None:
            msg = (
                f"`{name}` must lie on the pixels of the class map {source.image_key!r} ({source.shape[1]} x {source.shape[2]}), "
                f"but {one!r} has {image.shape[1]} x {image.shape[2]} pixels or another transformation. Resample it first, or "
                "leave it out."
            )
            raise ValueError(msg)
        found.append(image)
    return found


def _level_on(sdata: SpatialData, source: CellSource, key: str, system: str) -> str | None:
    """Level of an image that lies on the pixels of a class map, None where none does."""
    if key not in sdata.images:
        return None
    place = transforms.matrix(level_of(sdata.images[source.image_key]), source.image_key, system)
    image = sdata.images[key]
    for name in image.children if isinstance(image, DataTree) else ["scale0"]:
        level = level_of(image, name)
        same_shape = (level.sizes["y"], level.sizes["x"]) == source.shape[1:]
        if same_shape and np.allclose(transforms.matrix(level, key, system), place):
            return str(name)
    return None


def pixel_size_of(source: CellSource, image: CellSource | None, made: dict[str, Any]) -> float | None:
    """Micrometres a pixel of a class map, None where unknown.

    That of a map that was made of a coarse level is the level's, which its pyramid tells: the map's own transformation holds
    the level's factor, and so a scale, whether or not the size of a pixel is known.

    Parameters
    ----------
    source, image
        The map, and the stained image on its pixels.
    made
        What the map's translation recorded; empty where it has none.
    """
    if not made.get("level"):
        return source.pixel_size
    size: float | None = made["image_pixel_size"] if image is None else image.pixel_size
    return size


def white_of(image: CellSource, made: dict[str, Any]) -> np.ndarray:
    """Intensities of an image where there is no tissue, as its translation recorded them, or else measured again."""
    if made.get("image") == image.image_key and "white" in made:
        return np.asarray(made["white"])
    tiles = iter_tiles(image.pixels, image.channel_index, tile_px=TILE_PX)
    return white_level(intensity_counts(tile.pixels for tile in tiles))
