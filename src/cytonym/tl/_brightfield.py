"""Which images are brightfield ones, and how large their nuclei are."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.models import get_channel_names

from cytonym.data.brightfield import CLASS_MAP as CLASS_MAP
from cytonym.data.brightfield import TRANSLATIONS, rgb_order, rgb_source
from cytonym.data.brightfield import derived_key as derived_key
from cytonym.data.nuclear_size import nucleus_diameter
from cytonym.data.source import image_sources
from cytonym.data.stains import separate_stains, white_level

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

DIAMETER_UM = 8.0
"""Of a nucleus, where nothing else is said."""
TILTS = {0.0: 1.0, 0.4: 1.56}
"""How the size of nuclei is read from hematoxylin: at two tilts of the curve, each times a factor that makes up for the smaller
diameters that a tilt gives. The mean is steadier than either: over ten slides of one magnification sizes spread by 17 %, and by
22 % without tilt."""
LEAST_NUCLEUS_PX = 6.0
LEAST_SIDE_PX = 32
DARKEST = 60
"""Half of a brightfield image is brighter than this, in some channel."""
INVERTED = 140, 8
"""Half of an inverted image is at most so bright, and its bright places are by so much more colored than its dark ones. In thirty
images of sections half of the pixels are brighter than 174, and the bright places less colored."""
BLACK, BLACK_SHARE = 3, 0.02
"""More pixels than this share with no color brighter than this are no tissue, but what a scanner has not seen and filled with black:
DAB lets red through, which is still above 30 at five times the density of 3+."""
LEAST_RANGE = 12
"""Intensities that differ less than this show nothing."""


def brightfield_sources(
    sdata: SpatialData, image_key: str | Sequence[str] | None, coordinate_system: str, scale: str | None
) -> list[CellSource]:
    """RGB images of 8 bits, with their three channels in order; all that look so by default, but what a translation made.

    Raises
    ------
    KeyError
        No such image.
    ValueError
        An image is not RGB, not of 8 bits or too small, or there is none.
    """
    if image_key is None:
        made = sdata.attrs.get(TRANSLATIONS, {})
        names = {
            key: [str(c) for c in get_channel_names(image)] for key, image in sdata.images.items() if key not in made
        }
        chosen = [key for key, channels in names.items() if rgb_order(channels) is not None]
        if not chosen:
            msg = (
                f"No RGB image in `sdata.images`, which has {names}. Channels of an RGB image are called red, green and "
                "blue, r, g and b, or 0, 1 and 2. Name others with sdata.set_channel_names, or give `image_key`."
            )
            raise ValueError(msg)
        image_key = chosen
    sources = image_sources(sdata, image_key=image_key, coordinate_system=coordinate_system, scale=scale)
    return [_checked(source) for source in sources]


def _checked(source: CellSource) -> CellSource:
    found = rgb_source(source)
    _, height, width = source.shape
    if found is None:
        msg = (
            f"Image {source.image_key!r} is not RGB: its channels are {list(source.channels)}. If three of them are red, "
            "green and blue, name them so: sdata.set_channel_names(key, ['r', 'g', 'b'])."
        )
        raise ValueError(msg)
    if np.dtype(source.pixels.dtype) != np.uint8:
        msg = (
            f"Image {source.image_key!r} holds {np.dtype(source.pixels.dtype)}, but optical densities are read from 8 bits. "
            "Scale it to 0 ... 255 first: 16 bits by (image // 257), numbers from 0 to 1 by (image * 255), as uint8."
        )
        raise ValueError(msg)
    if min(height, width) < LEAST_SIDE_PX:
        msg = (
            f"Image {source.image_key!r} is too small: {height} x {width} pixels, at least {LEAST_SIDE_PX} are needed."
        )
        raise ValueError(msg)
    order = rgb_order(source.channels) or []
    left = [name for i, name in enumerate(source.channels) if i not in order]
    if left and found.pixels is not source.pixels:
        logger.info("%s: what is transparent (channel %r) is white.", source.image_key, left[0])
    elif left:
        logger.info("%s: channels %s are left out, beside red, green and blue.", source.image_key, left)
    return found


def require_tissue(source: CellSource, counts: np.ndarray, white: np.ndarray) -> bool:
    """Whether an image shows anything at all; refuse one that is bright on dark.

    Parameters
    ----------
    source
        The image.
    counts, white
        How often each intensity occurs, and that of places without tissue.

    Raises
    ------
    ValueError
        Most of the image is dark.
    """
    typical = white_level(counts, 0.5)
    if typical.max() < DARKEST:
        msg = (
            f"Image {source.image_key!r} is dark: half of its pixels are at most {typical.tolist()} (red, green, blue). "
            "Stains are read from light that passes through tissue. A fluorescence image has no stains to separate; an "
            "inverted one becomes 255 - image."
        )
        raise ValueError(msg)
    bright, dark = (np.ptp(white_level(counts, share)) for share in (0.95, 0.05))
    if typical.max() < INVERTED[0] and bright > dark + INVERTED[1]:
        logger.warning(
            "%s looks inverted: bright places have a color, and dark ones have none. If it is, 255 - image is what is needed.",
            source.image_key,
        )
    black = float((counts[:, : BLACK + 1].sum(axis=1) / counts.sum(axis=1)).min())
    if black > BLACK_SHARE:
        logger.warning(
            "%s is black in %.0f %% of its pixels. Where a scanner fills up what it has not seen, nuclei are found that are none: crop "
            "the image, or make these places white (255).",
            source.image_key, 100 * black,
        )  # fmt: skip
    darkest = (counts.cumsum(axis=1) > 1e-3 * counts.sum(axis=1, keepdims=True)).argmax(axis=1)
    if (white - darkest).max() < LEAST_RANGE:
        logger.warning("%s is blank: there is no tissue to see.", source.image_key)
        return False
    return True


class _Hematoxylin:
    """The hematoxylin of an RGB image, box by box."""

    def __init__(self, source: CellSource, white: np.ndarray) -> None:
        self.source, self.white = source, white
        self.shape = (1, *source.shape[1:])

    def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
        _, *box = index
        planes = [np.asarray(self.source.pixels[(int(c), *box)]) for c in self.source.channel_index]
        return separate_stains(np.stack(planes), self.white)[0]


def nuclear_diameters(
    sources: Sequence[CellSource],
    white: Mapping[str, np.ndarray],
    diameter_px: float | None,
    diameter_um: float | None,
) -> dict[str, float]:
    """Diameter of the nuclei of each image in pixels: as given, by the pixel size, or as the images tell.

    Parameters
    ----------
    sources, white
        RGB images, and their intensities where there is no tissue, by image.
    diameter_px, diameter_um
        As a user gave them.

    Raises
    ------
    ValueError
        A size is not positive, has no meaning, or nuclei would be too small to be seen.
    """
    for name, value in (("diameter_px", diameter_px), ("diameter_um", diameter_um)):
        if value is not None and not value > 0:
            msg = f"`{name}` must be positive, got {value}."
            raise ValueError(msg)
    unknown = [] if diameter_px is not None else [source for source in sources if source.pixel_size is None]
    if unknown and diameter_um is not None:
        msg = (
            f"The pixel size of image {unknown[0].image_key!r} is unknown (it has an identity transformation, or another "
            "scale along y than along x), so `diameter_um` has no meaning. Leave it out, or give `diameter_px`."
        )
        raise ValueError(msg)
    seen = [source for source in unknown if source.image_key in white]
    told: float | None = None
    if seen:
        index = np.zeros(1, dtype=np.int64)
        views = [
            replace(s, pixels=_Hematoxylin(s, white[s.image_key]), channels=("hematoxylin",), channel_index=index)
            for s in seen
        ]
        found = [(nucleus_diameter(views, tilt=tilt), factor) for tilt, factor in TILTS.items()]
        sizes = [size * factor for size, factor in found if size is not None]
        told = float(np.exp(np.mean(np.log(sizes)))) if sizes else None
        if told is None:
            msg = (
                f"The pixel size of image {seen[0].image_key!r} is unknown, and no size of nuclei stands out in its "
                "hematoxylin. Give `diameter_px`: measure a nucleus in the image."
            )
            raise ValueError(msg)
        names = ", ".join(source.image_key for source in seen)
        logger.info("%s: pixel size unknown; nuclei look %.1f px wide (`diameter_px`).", names, told)
    diameters = {}
    for source in sources:
        pixels = diameter_px
        if pixels is None:
            size = source.pixel_size
            pixels = told if size is None else float(diameter_um or DIAMETER_UM) / size
        if pixels is not None and pixels < LEAST_NUCLEUS_PX:
            msg = (
                f"A nucleus of {pixels:.2g} pixels is too small to be seen in image {source.image_key!r}; at least "
                f"{LEAST_NUCLEUS_PX:g} are needed. Use an image of higher magnification, or check its pixel size"
                + (f", which is {source.pixel_size:g}." if source.pixel_size is not None else ".")
            )
            raise ValueError(msg)
        diameters[source.image_key] = float(pixels or LEAST_NUCLEUS_PX)  # of a blank image it does not matter
    return diameters
