"""Virtual stains of a brightfield image, as images of their own."""

from __future__ import annotations

import logging
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from cytonym.data.brightfield import TRANSLATIONS
from cytonym.data.fingerprint import Fingerprint
from cytonym.data.nuclei import NucleusRules
from cytonym.data.pixel_store import PixelFolder, Pixels, lazy, new_pixels
from cytonym.data.source import level_of
from cytonym.data.stains import intensity_counts, white_level
from cytonym.data.tiles import iter_tiles
from cytonym.tl._brightfield import brightfield_sources, derived_key, nuclear_diameters, require_tissue
from cytonym.tl._translation_names import outdated, require_free
from cytonym.tl._translators import TILE_PX, ClassicalTranslator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.models import DeepLIIF
    from cytonym.tl._learned_translator import Tiles
    from cytonym.tl._translators import Output, Translator

    Ready = tuple[Translator, dict[str, Any]]
    """What translates an image, and what to tell about it."""

logger = logging.getLogger("cytonym")

ATTRS = TRANSLATIONS
"""Entry of `sdata.attrs` that tells how each image was made."""
LARGE_PX = 25_000_000
"""Images with more pixels get several levels."""


def translate_stain(
    sdata: SpatialData,
    model: str | Path | DeepLIIF = "classical",
    *,
    diameter_um: float | None = None,
    diameter_px: float | None = None,
    dab_threshold: float | None = None,
    contrast: float | None = None,
    nuclear_stain: bool | None = None,
    tile_px: int | None = None,
    pixel_size: float | None = None,
    tiles: Tiles | None = None,
    rgb: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    class_map: bool = True,
    image_key: str | Sequence[str] | None = None,
    coordinate_system: str = "global",
    scale: str | None = None,
    scale_factors: Sequence[int] | None = None,
    out: str | Path | None = None,
) -> None:
    """Translate a brightfield image (immunohistochemistry) into images of its stains, and a class map of its nuclei.

    With `model="classical"` nothing is learned and nothing is downloaded. Hematoxylin and DAB are separated by color
    deconvolution (Ruifrok and Johnston 2001) against the image's own white. Nuclei are blobs of either stain, bounded where
    their contrast has fallen to a share of what it is at their centre, and positive where there is DAB at their centre. The
    image is read tile by tile, with as much around each tile as decides about its pixels: the result does not depend on the
    tiles, and has no seams.

    With learned networks (DeepLIIF, Ghahremani et al. 2022) each tile is resized to the networks' resolution and translated
    on its own, as published, because it is normalised by its own pixels. Tiles overlap by an eighth of their side, and lie on a grid that
    follows from the size of the image alone. Tiles without tissue get constant colors. A whole slide takes little memory: a row of
    tiles along its shorter side.

    Parameters
    ----------
    sdata
        Images.
    model
        `"classical"`; networks, such as `models.DeepLIIF.from_published(folder)` for weights that you have got from the authors (for
        non-commercial use); or the folder of a checkpoint (`models.save`).
    diameter_um
        Diameter of a nucleus in micrometres, for images whose pixel size is known; 8 by default. Classical only, as the next five.
    diameter_px
        The same in pixels of the image; takes precedence. By default it follows from `diameter_um`; where the pixel size is
        unknown, it is the size that stands out in the hematoxylin of the images, and is logged. Images of unknown pixel size
        are taken to be of one magnification.
    dab_threshold
        Optical density of DAB at its centre above which a nucleus is positive. The default, 0.07, was chosen on Ki-67 slides whose
        nuclei were marked by hand, where pale brown counts as positive; 0.2 asks for a clear stain.
    contrast
        Least answer of a nucleus to the Laplacian of Gaussian, in units of optical density; 0.045 by default.
    nuclear_stain
        DAB stains nuclei (Ki-67, ER, PR, p53), so that they are looked for in both stains: the default. If it stains cytoplasm or
        membranes, look for nuclei in the hematoxylin alone with False; the density in brown cells is then a guess.
    tile_px
        Side of what is looked at at a time, 1024 by default.
    pixel_size
        Micrometres a pixel of the image, by which tiles are cut: 512 pixels at 40x, 256 at 20x and 128 at 10x for the published
        networks. Default: what the image says; where it says nothing, that of the networks, with a warning. Networks only, as the next four.
    tiles
        `"blended"`, the default: neighbours fade into each other over their overlap, so that there are no hard seams.
        `"released"`: the middle of each tile is kept as it is, as the published program does.
    rgb
        Also keep the modalities as the networks draw them, each an image of its own.
    batch_size
        Tiles with tissue that are looked at at a time: 8 by default, on a CPU as many as threads if these are fewer. On a CPU the
        result does not depend on it, nor on the number of threads; on a GPU it may by a rounding.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
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
        Folder for the pixels of the new images, for slides that do not fit into memory. They go to `{image}_translation` in
        it, one Zarr array each, which must stay while the elements are used. Called again with the same pixels and settings, it
        goes on after an interruption, and takes what is complete as it is. Nothing is replaced: other pixels or settings get a
        folder of their own, with a number at its end. In memory by default, compressed where they are large.

    Returns
    -------
    None. Sets the following elements, which lie where the image lies. They replace those that this function made before, and
    pictures of modalities that other networks or settings made are removed:

    `images[f"{image}_stains"]`
        Classical: f4, channels `hematoxylin` and `DAB`, in units of optical density. Networks: uint8, a channel each modality
        (`hematoxylin`, `DAPI`, `Lap2` and `marker` for the published ones), brighter where there is more: the largest of red, green and blue,
        as the published program reads the marker; of stains that are dark on bright, such as hematoxylin, the same of the inverted
        picture, that is 255 less the smallest.
    `images[f"{image}_class_map"]`
        uint8, channels `positive`, `border` and `negative`, which are red, green and blue: what `tl.segment_nuclei` takes.
    `images[f"{image}_{modality}"]`
        With `rgb=True`: uint8, channels `r`, `g` and `b`.
    `attrs["translate_stain"]`
        For each of them, which image (and level, and its pixel size), model and numbers it was made with; of networks the hash of
        their weights and their licence.

    `{image}` is the name of the image without `_image` at its end.

    Raises
    ------
    FileNotFoundError, KeyError
        No such checkpoint, image or level.
    TypeError
        `model` is no model.
    ValueError
        An unknown model, or one of another kind; an option that is for the other kind of model; an image that is not RGB of 8
        bits, dark as fluorescence, or too small; no size of nuclei; pixels that the networks cannot know; names that are taken by
        other elements.

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

    Networks, here with random weights:

    >>> small = cy.models.DeepLIIFConfig(filters=4, blocks=1, depth=4, tile_px=32)
    >>> networks = cy.models.DeepLIIF.from_seed(["hematoxylin", "marker"], small)
    >>> cy.tl.translate_stain(sdata, networks, pixel_size=0.25)
    >>> sdata["ihc_stains"].dtype, [str(c) for c in sdata["ihc_stains"].c.values]
    (dtype('uint8'), ['hematoxylin', 'marker'])
    """
    network = None if isinstance(model, str) and model == "classical" else _network(model)
    if network is None:
        options = {"pixel_size": pixel_size, "tiles": tiles, "rgb": rgb or None, "batch_size": batch_size}
        _require_none(options | {"device": None if device in ("auto", "cpu") else device}, "learned networks")
    else:
        options = {"diameter_um": diameter_um, "diameter_px": diameter_px, "dab_threshold": dab_threshold}
        _require_none(
            options | {"contrast": contrast, "nuclear_stain": nuclear_stain, "tile_px": tile_px}, "model='classical'"
        )
    side = TILE_PX if tile_px is None else int(tile_px)
    rules = NucleusRules(
        1,
        contrast=NucleusRules.contrast if contrast is None else float(contrast),
        positive=NucleusRules.positive if dab_threshold is None else float(dab_threshold),
        hematoxylin_only=nuclear_stain is not None and not nuclear_stain,
    )
    least = {"dab_threshold": (rules.positive, 0), "contrast": (rules.contrast, 0), "tile_px": (side, 64)}
    for name, (value, limit) in least.items():
        if not value >= limit:
            msg = f"`{name}` must be at least {limit}, got {value}."
            raise ValueError(msg)
    if scale_factors is not None:
        scale_factors = _factors(scale_factors)
    sources = brightfield_sources(sdata, image_key, coordinate_system, scale)
    if network is None:
        suffixes = [*ClassicalTranslator(rules, np.ones(3), class_map=class_map).outputs]
    else:
        settings = {"class_map": class_map, "rgb": rgb, "tiles": tiles, "batch_size": batch_size, "device": device}
        ready = _learned(network, sources, pixel_size, settings)
        suffixes = [*ready[sources[0].image_key][0].outputs]
    keys = [derived_key(source.image_key, suffix) for source in sources for suffix in suffixes]
    require_free(sdata, keys, [source.image_key for source in sources])
    white, shown, seen = {}, {}, {}
    for source in sources:
        seen[source.image_key] = fingerprint = Fingerprint(source.shape)
        tiles_of = iter_tiles(source.pixels, source.channel_index, tile_px=side)
        counts = intensity_counts(fingerprint.pixels(tiles_of))
        white[source.image_key] = white_level(counts)
        if require_tissue(source, counts, white[source.image_key]):
            shown[source.image_key] = white[source.image_key]
    if network is None:
        diameters = nuclear_diameters(sources, shown, diameter_px, diameter_um)
        ready = _classical(rules, diameters, white, class_map, side)
    elif licence := network.provenance.get("licence"):
        logger.warning("Licence of the networks: %s", licence)
    made: dict[str, Any] = {}
    record: dict[str, Any] = {}
    for source in sources:
        translator, told = ready[source.image_key]
        params = {"image": source.image_key, "level": scale or "", "image_pixel_size": source.pixel_size}
        params |= {"white": white[source.image_key].tolist()} | told
        folder = None
        if out is not None:
            shapes = {suffix: _pixels(source, output) for suffix, output in translator.outputs.items()}
            name = derived_key(source.image_key, "translation")
            folder = PixelFolder(
                Path(out), name, params | {"pixels_sha256": seen[source.image_key].hexdigest()}, shapes
            )
        for key, element in _translated(sdata, source, translator, scale, scale_factors, folder).items():
            made[key], record[key] = element, params
    for key in {*made, *outdated(sdata, record)} & set(sdata.images):
        del sdata.images[key]
    for key, element in made.items():
        sdata.images[key] = element
    told = {key: entry for key, entry in sdata.attrs.get(ATTRS, {}).items() if key in sdata.images}
    sdata.attrs[ATTRS] = {**told, **record}
    logger.info("New images: %s.", ", ".join(made))


def _network(model: str | Path | DeepLIIF) -> DeepLIIF:
    from cytonym.tl._learned_translator import translator_network  # imports torch

    return translator_network(model)


def _learned(
    network: DeepLIIF, sources: Sequence[CellSource], pixel_size: float | None, settings: dict[str, Any]
) -> dict[str, Ready]:
    """What translates each image by networks, and what to tell about it."""
    from cytonym.models.checkpoint import weights_sha256
    from cytonym.tl._learned_translator import LearnedTranslator, resolution_of

    found: dict[str, Ready] = {}
    sha256 = weights_sha256(network)
    for source in sources:
        at = resolution_of(source, network, pixel_size)
        translator = LearnedTranslator(network, at.tile_px, **settings | {"tiles": settings["tiles"] or "blended"})
        told = {"weights_sha256": sha256, "pixel_size": at.pixel_size, "pixel_size_from": at.how}
        found[source.image_key] = translator, translator.params() | told
    return found


def _classical(
    rules: NucleusRules,
    diameters: Mapping[str, float],
    white: Mapping[str, np.ndarray],
    class_map: bool,  # noqa: FBT001
    tile_px: int,
) -> dict[str, Ready]:
    """The same without."""
    found: dict[str, Ready] = {}
    for key, diameter in diameters.items():
        translator = ClassicalTranslator(
            replace(rules, diameter=diameter), white[key], class_map=class_map, tile_px=tile_px
        )
        found[key] = (
            translator,
            {
                "model": "classical",
                "diameter_px": round(float(diameter), 3),
                "tile_px": tile_px,
                "dab_threshold": rules.positive,
                "contrast": rules.contrast,
                "nuclear_stain": not rules.hematoxylin_only,
            },
        )
    return found


def _factors(given: Sequence[int]) -> list[int]:
    """Factors between levels as plain numbers."""
    try:
        factors = [index(factor) for factor in given]
    except TypeError:
        factors = [0]
    if any(factor < 2 for factor in factors):
        msg = f"`scale_factors` must be whole numbers of at least 2, such as [2, 2], got {given!r}."
        raise ValueError(msg)
    return factors


def _require_none(options: dict[str, Any], kind: str) -> None:
    given = [f"`{name}`" for name, value in options.items() if value is not None]
    if given:
        msg = f"For {kind} only, so leave out: {', '.join(given)}."
        raise ValueError(msg)


def _pixels(source: CellSource, output: Output) -> Pixels:
    return Pixels((len(output.channels), *source.shape[1:]), output.dtype)


def _translated(
    sdata: SpatialData,
    source: CellSource,
    translator: Translator,
    scale: str | None,
    scale_factors: Sequence[int] | None,
    folder: PixelFolder | None,
) -> dict[str, Any]:
    """Elements of the images that are made of one image. What an interrupted run has left in the folder is used."""
    _, height, width = source.shape
    if folder is None:
        outputs = translator.outputs.items()
        arrays = {suffix: new_pixels(*_pixels(source, output)) for suffix, output in outputs}
    else:
        arrays = dict(folder.arrays)
        if folder.complete:
            logger.info("%s: translated already, in %s.", source.image_key, folder.folder)
        elif folder.done:
            logger.info("%s: going on after an interruption, %d pieces are done.", source.image_key, len(folder.done))
    if folder is None or not folder.complete:
        for piece in translator.pieces(source, set() if folder is None else folder.done):
            y0, x0, y1, x1 = piece.box
            for suffix, pixels in piece.images.items():
                arrays[suffix][:, y0:y1, x0:x1] = pixels
            if folder is not None:
                folder.add(piece.box)
        if folder is not None:
            folder.finish()
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
    image = level_of(sdata.images[image_key], scale)
    return dict(get_transformation(image, get_all=True))
