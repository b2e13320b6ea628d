"""Train a translator of stains on images that lie on the same pixels."""

from __future__ import annotations

import hashlib
import json
import logging
from copy import deepcopy
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import SpatialData

from cytonym._shared import RNG, document, seed_of
from cytonym.data.class_map import SIZES, CellRules, cells_of_map
from cytonym.data.translation_tiles import TranslationTiles, held_out
from cytonym.models.deepliif import PUBLISHED_MODALITIES, DeepLIIF, DeepLIIFConfig
from cytonym.models.translator_training import SMALL_DEEPLIIF, TRANSLATOR_RECIPE, TranslatorRecipe, TranslatorTraining
from cytonym.tl._learned_translator import translator_network
from cytonym.tl._registered import registered, require_nuclei, strips

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from cytonym.data.class_map import Resolution
    from cytonym.data.translation_tiles import Registered
    from cytonym.tl._registered import Pairs

    Features = Callable[[torch.Tensor], Sequence[torch.Tensor]]

logger = logging.getLogger("cytonym")

HELD_OUT = 0.2
JUDGED_PX = 2**20  # of all tiles that choose the weights: they are looked at again and again
MAGNIFIED = {"40x": 0.375, "20x": 0.75}
"""Largest pixel in micrometres of each magnification."""


@document(rng=RNG)
def fit_translator(
    data: SpatialData | Sequence[SpatialData] | str | Path,
    modalities: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    *,
    model: DeepLIIF | DeepLIIFConfig | str | Path | None = None,
    image_key: str | Sequence[str] | None = None,
    class_map_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    class_key: str = "ihc_class",
    coordinate_system: str = "global",
    scale: str | None = None,
    pixel_size: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    recipe: TranslatorRecipe | None = None,
    validation: float = HELD_OUT,
    features: Features | None = None,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    checkpoint_dir: str | Path | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
) -> DeepLIIF:
    """Train DeepLIIF on stained images and what they shall become, on the same pixels (Ghahremani et al. 2022).

    Generators that translate and that draw the class map learn from random tiles, against discriminators that are thrown away
    afterwards. Part of the images is held out: every so many steps the nuclei of its class maps are counted, and the
    weights whose counts of positive and negative nuclei are the nearest are the ones to keep. All is checked before training.

    Parameters
    ----------
    data
        One object or a list of them, all with the same keys, with a stained image (RGB, 8 bits), one image a modality (8 bits, one
        channel or three) and a class map or nuclei of known class, all on the same pixels. Or a folder of strips as of the
        authors' program: PNG files, each a row of square panels, the stained image, the modalities and the class map; or with
        folders `train` and `val` of them.
    modalities
        Names of the modalities, which are elements: `"DAPI"` is `DAPI` or, of `core3_image`, `core3_DAPI`. Or names
        and elements, one for each stained image. Default: those of `model`; all images beside the stained one and the class
        map; of strips the paper's where there are four. None at all, `()`, trains the class map alone, a U-Net on the
        stained image.
    model
        What to start from: a translator or its checkpoint, trained further; or a `models.DeepLIIFConfig` for new weights. Default: `models.SMALL_DEEPLIIF`, which trains on a CPU. Tiles have its `tile_px`.
    image_key
        Stained image, or images. May be left out where there is one RGB image that is no modality.
    class_map_key
        For each of them the class map: positive nuclei in red, negative ones in blue, borders in green. May be left out where one
        image with channels `positive`, `border` and `negative` lies there that is not a result of `tl.translate_stain`.
    labels_key
        In place of it, for each of them a label image of nuclei, of which a class map is drawn.
    table_key, class_key
        Table and column with the class of these nuclei: "positive" or "negative", or bool.
    coordinate_system
        Coordinate system in which elements meet.
    scale
        Level of multi-scale images; the full resolution by default.
    pixel_size
        Micrometres a pixel. Default: as the coordinate system says; where it says nothing, that of the config.
    steps, batch_size
        Length of the training, and tiles in a step. Default: the recipe's.
    recipe
        All about the training; default `models.TRANSLATOR_RECIPE`, for minutes on a CPU. `models.DEEPLIIF_RECIPE` is the paper's.
    validation
        Share of the images that is held out, or of the rows of each of fewer than five; 0 keeps the last weights. One image, or the
        rows of one tile, are always trained on. It does not matter for strips with a folder `val`.
    features
        Network for the perceptual term, where the recipe has one: images [B, 3, S, S] from -1 to 1 to five depths of features.
    {rng}
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    checkpoint_dir
        Folder for the state of the training, with the discriminators. After an interrupt the same call goes on from there and ends
        at the same weights as without it.
    trainer_kwargs
        Passed to `lightning.Trainer`: precision, callbacks, loggers.

    Returns
    -------
    models.DeepLIIF
        On the CPU, with its `history` (losses of each modality, difference of the counts on what was held out) and
        `provenance`. `models.save` writes it, without the discriminators; `tl.translate_stain` takes it.

    Raises
    ------
    KeyError
        An element, column or level is unknown.
    FileNotFoundError
        There is no such folder, or no strip in it.
    ValueError
        Elements lie elsewhere, are not of 8 bits, or smaller than a tile; a picture is no strip, or has another number of panels;
        there is no class map, or no nucleus in it.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> from spatialdata.models import Image2DModel
    >>> pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64), "u1")
    >>> sdata = cy.io.from_arrays(pixels, channels=["r", "g", "b"], name="ihc")
    >>> sdata["DAPI"] = Image2DModel.parse(255 - pixels[:1], dims=("c", "y", "x"), c_coords=["DAPI"])
    >>> drawn = np.where(pixels > 200, pixels, 0)
    >>> sdata["truth"] = Image2DModel.parse(drawn, dims=("c", "y", "x"), c_coords=["positive", "border", "negative"])
    >>> config = cy.models.DeepLIIFConfig(
    ...     filters=4, blocks=1, depth=4, discriminator_filters=4, discriminator_layers=2, tile_px=32
    ... )
    >>> model = cy.tl.fit_translator(sdata, model=config, steps=2, batch_size=1)
    >>> model.outputs
    ('DAPI', 'segmentation')
    """
    seed = seed_of(rng)
    chosen = _recipe(recipe or TRANSLATOR_RECIPE, steps, batch_size)
    if not 0 <= validation < 1:
        msg = f"`validation` must be a share from 0 to below 1, got {validation}."
        raise ValueError(msg)
    if pixel_size is not None and not pixel_size > 0:
        msg = f"`pixel_size` must be positive, got {pixel_size}."
        raise ValueError(msg)
    start = _start(model)
    config = start.config if isinstance(start, DeepLIIF) else start
    if modalities is None and isinstance(start, DeepLIIF):
        modalities = start.markers
    if isinstance(modalities, str):
        modalities = [modalities]
    if config.input_channels != 3:
        msg = f"Stained images have 3 channels, but the config's `input_channels` are {config.input_channels}."
        raise ValueError(msg)
    if isinstance(data, (str, Path)):
        pairs = strips(Path(data), None if modalities is None else list(modalities), PUBLISHED_MODALITIES)
        if config.output_channels != 3:
            msg = f"Panels have 3 channels, but the network's `output_channels` are {config.output_channels}."
            raise ValueError(msg)
    else:
        samples = [data] if isinstance(data, SpatialData) else list(data)
        if not samples or not all(isinstance(s, SpatialData) for s in samples):
            kinds = [type(s).__name__ for s in samples]
            msg = f"`data` must be a SpatialData object, a list of them or a folder of strips, got {kinds}."
            raise TypeError(msg)
        pairs = registered(
            samples, modalities, image_key=image_key, class_map_key=class_map_key, labels_key=labels_key,
            table_key=table_key, class_key=class_key, coordinate_system=coordinate_system, scale=scale,
            channels=config.output_channels,
        )  # fmt: skip
    network = _network(start, pairs, pixel_size, seed)
    return _train(network, pairs, chosen, validation, features, seed, device, checkpoint_dir, trainer_kwargs)


def _train(
    network: DeepLIIF,
    pairs: Pairs,
    recipe: TranslatorRecipe,
    validation: float,
    features: Features | None,
    seed: int,
    device: str,
    checkpoint_dir: str | Path | None,
    trainer_kwargs: dict[str, Any] | None,
) -> DeepLIIF:
    size = network.config.tile_px
    small = {image.name: image.shape for image in [*pairs.images, *pairs.judged] if min(image.shape) < size}
    if small:
        msg = f"Images are smaller than a tile of {size} x {size} pixels: {small}. Take a config with a smaller `tile_px`."
        raise ValueError(msg)
    require_nuclei([*pairs.images, *pairs.judged])
    trained, judged = (pairs.images, pairs.judged) if pairs.judged else held_out(pairs.images, validation, size, seed)
    if validation and not judged:
        logger.warning(
            "No image is twice as high as a tile of %d px: nothing is held out, the last weights are kept.", size
        )
    tiles = TranslationTiles(trained, size, recipe.batch_size, recipe.steps, seed)
    held = TranslationTiles(judged, size, 1, 1, seed).all_tiles(max(1, JUDGED_PX // size**2)) if judged else []
    licence = network.provenance
    from cytonym.learning.fit_gan import fit_gan  # lightning takes seconds to import

    count = _counter(network.config.pixel_size)
    training = TranslatorTraining(
        network, recipe, held, count, features=features, learned_from=_digest(pairs, trained, judged), seed=seed
    )
    logger.info(
        "Training %s on %d images, %d modalities: %d steps of %d tiles of %d px; %d tiles are held out.",
        network.name, len(trained), len(network.markers), recipe.steps, recipe.batch_size, size, len(held),
    )  # fmt: skip
    fit_gan(
        training, tiles, recipe, seed=seed, device=device, checkpoint_dir=checkpoint_dir, trainer_kwargs=trainer_kwargs
    )
    result = training.finished()
    result.history = training.history
    error = float(training.best_error)
    result.provenance = {
        "cytonym": version("cytonym"),
        "seed": seed,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "recipe": asdict(recipe),
        "images": _names(trained),
        "held_out": _names(judged),
        "held_out_count_error": error if np.isfinite(error) else None,
    } | ({"started_from": licence} if licence else {})
    return result


def _digest(pairs: Pairs, trained: Sequence[Registered], judged: Sequence[Registered]) -> bytes:
    """Of all pixels, and of the images and rows on either side of the split."""
    split = [[(image.name, image.first, *image.shape) for image in images] for images in (trained, judged)]
    return hashlib.sha256(pairs.digest + json.dumps(split).encode()).digest()


def _names(images: Sequence[Registered]) -> list[str]:
    return [image.name for image in images]


def _start(model: Any) -> DeepLIIF | DeepLIIFConfig:
    """What to start from. The caller's model is not changed."""
    if model is None:
        return SMALL_DEEPLIIF
    if isinstance(model, DeepLIIFConfig):
        return model
    found = translator_network(model)
    return deepcopy(found) if found is model else found


def _recipe(recipe: TranslatorRecipe, steps: int | None, batch_size: int | None) -> TranslatorRecipe:
    given: dict[str, Any] = {k: v for k, v in (("steps", steps), ("batch_size", batch_size)) if v is not None}
    return replace(recipe, **given)


def _network(start: DeepLIIF | DeepLIIFConfig, pairs: Pairs, pixel_size: float | None, seed: int) -> DeepLIIF:
    told = pixel_size or pairs.pixel_size
    if isinstance(start, DeepLIIFConfig):
        config = start if told is None else replace(start, pixel_size=float(told))
        return DeepLIIF.from_seed(pairs.modalities, config, seed=seed)
    if pairs.modalities != start.markers:
        msg = f"`model` makes {list(start.markers)}, the data have {list(pairs.modalities)}. Give these names by `modalities`."
        raise ValueError(msg)
    if told is not None and not 0.8 < told / start.config.pixel_size < 1.25:
        logger.warning(
            "Images of %g micrometres a pixel, a model of %g: it is trained on them, and shall see such pixels from now on.",
            told, start.config.pixel_size,
        )  # fmt: skip
        start.config = replace(start.config, pixel_size=float(told))
    return start


def _counter(pixel_size: float) -> Callable[[np.ndarray], tuple[int, int]]:
    """Counts the positive and negative nuclei of a tile, by the usual smallest size at the magnification."""
    names: list[Resolution] = [name for name, most in MAGNIFIED.items() if pixel_size <= most]  # type: ignore[misc]
    resolution: Resolution = names[0] if names else "10x"
    rules = CellRules(size_thresh=SIZES[resolution][1] ** 2, resolution=resolution)

    def count(class_map: np.ndarray) -> tuple[int, int]:
        _, cells = cells_of_map(class_map, rules)
        positive = int((cells.kept & cells.positive).sum())
        return positive, int(cells.kept.sum()) - positive

    return count
