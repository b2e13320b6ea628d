"""Virtual stains of a brightfield image, as images of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation
from xarray import DataTree

from cytonym.data.nuclei import NucleusRules
from cytonym.data.pixel_store import Progress, lazy, new_pixels
from cytonym.data.stains import intensity_counts, white_level
from cytonym.data.tiles import iter_tiles
from cytonym.tl._brightfield import brightfield_sources, derived_key, nuclear_diameters, require_tissue
from cytonym.tl._translators import TILE_PX, ClassicalTranslator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.tl._translators import Translator

logger = logging.getLogger("cytonym")

MODELS = ("classical",)
ATTRS = "translate_stain"
"""Entry of `sdata.attrs` that tells how each image was made."""
LARGE_PX = 25_000_000
"""Images with more pixels get several levels."""


def translate_stain(
    sdata: SpatialData,
    model: str = "classical",
    *,
    diameter_um: float | None = None,
    diameter_px: float | None = None,
    dab_threshold: float = NucleusRules.positive,
    contrast: float = NucleusRules.contrast,
    nuclear_stain: bool = True,
    class_map: bool = True,
    image_key: str | Sequence[str] | None = None,
    coordinate_system: str = "global",
    scale: str | None = None,
    scale_factors: Sequence[int] | None = None,
    out: str | Path | None = None,
    tile_px: int = TILE_PX,
) -> None:
    """Translate a brightfield image (immunohistochemistry) into images of its stains, and a class map of its nuclei.

    With `model="classical"` nothing is learned and nothing is downloaded. Hematoxylin and DAB are separated by color
    deconvolution (Ruifrok and Johnston 2001) against the image's own white. Nuclei are blobs of either stain, bounded where
    their contrast has fallen to a share of what it is at their centre, and positive where there is DAB at their centre. The
    image is read tile by tile, with as much around each tile as decides about its pixels: the result does not depend on the
    tiles, and has no seams.

    Parameters
    ----------
    sdata
        Images.
    model
        `"classical"`.
    diameter_um
        Diameter of a nucleus in micrometres, for images whose pixel size is known; 8 by default.
    diameter_px
        The same in pixels of the image; takes precedence. By default it follows from `diameter_um`; where the pixel size is
        unknown, it is the size that stands out in the hematoxylin of the images, and is logged. Images of unknown pixel size
        are taken to be of one magnification.
    dab_threshold
        Optical density of DAB at its centre above which a nucleus is positive. The default was chosen on Ki-67 slides whose
        nuclei were marked by hand, where pale brown counts as positive; 0.2 asks for a clear stain.
    contrast
        Least answer of a nucleus to the Laplacian of Gaussian, in units of optical density.
    nuclear_stain
        DAB stains nuclei (Ki-67, ER, PR, p53), so that they are looked for in both stains. If it stains cytoplasm or membranes,
        look for nuclei in the hematoxylin alone with False; the density in brown cells is then a guess.
    class_map
        Also draw the class map.
    image_key
        Image, or images, of `sdata.images`: RGB, 8 bits. A fourth channel is left out. By default all that are RGB.
    coordinate_system
        Coordinate system in which the pixel size is known.
    scale
        Level of a multi-scale image; the full resolution by default.
    scale_factors
        Factors between the levels of the new images; by default one level, and further ones by 2 for images of more than 25
        megapixels.
    out
        Folder for the pixels of the new images, for slides that do not fit into memory: one Zarr array an image, which must
        stay while the elements are used. Called again after an interruption, with the same settings, it goes on. In memory by
        default, compressed where they are large.
    tile_px
        Side of what is looked at at a time.

    Returns
    -------
    None. Sets the following elements, which lie where the image lies and replace those of the same name:

    `images[f"{image}_stains"]`
        f4, channels `hematoxylin` and `DAB`, in units of optical density.
    `images[f"{image}_class_map"]`
        uint8, channels `positive`, `border` and `negative`, which are red, green and blue: what `tl.segment_nuclei` takes.
    `attrs["translate_stain"]`
        For each of them, which image, model and numbers it was made with.

    `{image}` is the name of the image without `_image` at its end.

    Raises
    ------
    KeyError
        No such image or level.
    ValueError
        An unknown model; an image that is not RGB of 8 bits, dark as fluorescence, or too small; no size of nuclei.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.ndimage import gaussian_filter
    >>> import cytonym as cy
    >>> spots = np.zeros((64, 64))
    >>> spots[[20, 40], [20, 44]] = 1
    >>> rgb = 240 - gaussian_filter(spots, 4) * 100 * np.array([150, 110, 40])[:, None, None]
    >>> sdata = cy.io.from_arrays(rgb.astype("uint8"), channels=["r", "g", "b"], name="ihc")
    >>> cy.tl.translate_stain(sdata, diameter_px=11)
    >>> [str(c) for c in sdata["ihc_stains"].c.values], [str(c) for c in sdata["ihc_class_map"].c.values]
    (['hematoxylin', 'DAB'], ['positive', 'border', 'negative'])
    """
    if model not in MODELS:
        msg = f"No model {model!r} to translate stains with. Available: {list(MODELS)}."
        raise ValueError(msg)
    for name, value, least in (
        ("dab_threshold", dab_threshold, 0),
        ("contrast", contrast, 0),
        ("tile_px", tile_px, 64),
    ):
        if not value >= least:
            msg = f"`{name}` must be at least {least}, got {value}."
            raise ValueError(msg)
    sources = brightfield_sources(sdata, image_key, coordinate_system, scale)
    suffixes = [*ClassicalTranslator(NucleusRules(1), np.ones(3), class_map=class_map).outputs]
    keys = [derived_key(source.image_key, suffix) for source in sources for suffix in suffixes]
    _require_free(sdata, keys, [source.image_key for source in sources])
    white, blank = {}, set()
    for source in sources:
        counts = intensity_counts(
            tile.pixels for tile in iter_tiles(source.pixels, source.channel_index, tile_px=tile_px)
        )
        white[source.image_key] = white_level(counts)
        if not require_tissue(source, counts, white[source.image_key]):
            blank.add(source.image_key)
    shown = {key: level for key, level in white.items() if key not in blank}
    diameters = nuclear_diameters(sources, shown, diameter_px, diameter_um)
    made: dict[str, Any] = {}
    record: dict[str, Any] = {}
    for source in sources:
        rules = NucleusRules(
            diameters[source.image_key],
            contrast=contrast,
            positive=dab_threshold,
            hematoxylin_only=not nuclear_stain,
        )
        level = white[source.image_key]
        translator = ClassicalTranslator(rules, level, class_map=class_map, tile_px=tile_px)
        params = {
            "image": source.image_key,
            "model": model,
            "white": level.tolist(),
            "diameter_px": round(rules.diameter, 3),
            "tile_px": tile_px,
            "dab_threshold": dab_threshold,
            "contrast": contrast,
            "nuclear_stain": nuclear_stain,
        }
        folder = None if out is None else Path(out)
        for key, element in _translated(sdata, source, translator, scale, scale_factors, folder, params).items():
            made[key], record[key] = element, params
    for key, element in made.items():
        if key in sdata.images:
            del sdata.images[key]
        sdata.images[key] = element
    sdata.attrs[ATTRS] = {**sdata.attrs.get(ATTRS, {}), **record}
    logger.info("New images: %s.", ", ".join(made))


def _require_free(sdata: SpatialData, keys: Sequence[str], images: Sequence[str]) -> None:
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        msg = f"Images {list(images)} would share the names {twice}. Translate them one by one, or rename them."
        raise ValueError(msg)
    taken = [key for key in keys if key in sdata and key not in sdata.images]
    if taken:
        msg = f"{taken} are taken by elements that are no images. Rename them first."
        raise ValueError(msg)


def _translated(
    sdata: SpatialData,
    source: CellSource,
    translator: Translator,
    scale: str | None,
    scale_factors: Sequence[int] | None,
    out: Path | None,
    params: dict[str, Any],
) -> dict[str, Any]:
    """Elements of the images that are made of one image. What an interrupted run has left in `out` is used."""
    _, height, width = source.shape
    paths = {
        suffix: None if out is None else out / f"{derived_key(source.image_key, suffix)}.zarr"
        for suffix in translator.outputs
    }
    progress = None
    if out is not None:
        file = out / f"{derived_key(source.image_key, 'progress')}.txt"
        progress = Progress(
            file, params | {"shape": [height, width]}, [path for path in paths.values() if path is not None]
        )
    done = set() if progress is None else progress.done
    if done:
        logger.info("%s: going on after an interruption, %d pieces are done.", source.image_key, len(done))
    arrays = {
        suffix: new_pixels((len(output.channels), height, width), output.dtype, paths[suffix], keep=bool(done))
        for suffix, output in translator.outputs.items()
    }
    for piece in translator.pieces(source, done):
        for suffix, pixels in piece.images.items():
            _, h, w = pixels.shape
            arrays[suffix][:, piece.y0 : piece.y0 + h, piece.x0 : piece.x0 + w] = pixels
        if progress is not None:
            progress.add(piece.y0, piece.x0)
    if progress is not None:
        progress.finish()
    if scale_factors is None:
        scale_factors = level_factors(height, width)
    place = _place(sdata, source.image_key, scale)
    return {
        derived_key(source.image_key, suffix): Image2DModel.parse(
            lazy(pixels),
            dims=("c", "y", "x"),
            c_coords=list(translator.outputs[suffix].channels),
            transformations=dict(place),
            scale_factors=list(scale_factors) or None,
        )
        for suffix, pixels in arrays.items()
    }


def level_factors(height: int, width: int) -> list[int]:
    """Factors of 2 until a level has less than `LARGE_PX` pixels."""
    factors = []
    while height * width > LARGE_PX:
        factors.append(2)
        height, width = height // 2, width // 2
    return factors


def _place(sdata: SpatialData, image_key: str, scale: str | None) -> dict[str, Any]:
    image = sdata.images[image_key]
    if isinstance(image, DataTree):
        image = next(iter(image[scale or next(iter(image.children))].data_vars.values()))
    return dict(get_transformation(image, get_all=True))
