"""Train an encoder on the cells of one or many samples."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import SpatialData

from cytonym._shared import KEYS, RNG, document, seed_of
from cytonym.data.loader import TrainingWindows, match_channels
from cytonym.data.source import resolve
from cytonym.data.statistics import channel_statistics
from cytonym.learning.views import Views
from cytonym.models import registry
from cytonym.models.base import CellEncoder
from cytonym.tl._encoding import check_cells, check_pixel_size, check_size, check_window, common_pixel_size, window_side

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cytonym.data.source import CellSource
    from cytonym.models.base import Recipe

logger = logging.getLogger("cytonym")

LEAST_PIXEL_UM = 0.1


@document(keys=KEYS, rng=RNG)
def fit_encoder(
    data: SpatialData | Sequence[SpatialData],
    model: str | CellEncoder | Any = "nextmarker",
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    size_px: int | None = None,
    size_um: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    views: int | Views | None = None,
    recipe: Recipe | None = None,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    checkpoint_dir: str | Path | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
) -> CellEncoder:
    """Train an encoder without labels, on the cells of one object or of many.

    Everything is checked before training starts. Every image counts the same, whatever its number of cells. Channels are matched
    by name, so their order may differ between images; their names may not.

    Parameters
    ----------
    data
        One object or a list of them, all with the same keys.
    model
        Name of a method (`models.available()`), the config of one such as `models.NeXtMarkerConfig(...)`, or a model
        to train further, which is not changed itself.
    {keys}
    size_px, size_um
        Side of the window around each cell, in pixels or in micrometres (where the image's pixel size is known). Default:
        the method's own. NeXtMarker sees about 11 x 11 pixels of about 1 micrometre: of finer images it averages squares of
        2 x 2, 3 x 3, … pixels into one, so that a window is a whole number of them. Where the size of the pixels is not known
        and none is given, the window is 11 pixels of the image.
    steps, batch_size
        Length of the training and cells in a step. Default: the method's recipe.
    views
        Number of views of each cell, or a `learning.views.ViewConfig` (CLEAR-IT: `learning.simclr_views.SimCLRViews`) that says
        all about them, its lengths in binned pixels. Default: the recipe's.
    recipe
        All about the training, such as `models.PAPER_RECIPE` or `models.CLEARIT_TNBC1`; `steps`, `batch_size` and `views` go
        before it. Default: the method's own, which is made for minutes on a CPU. Views of one size are of the size of the window.
        Views of several sizes stay as they are, and the largest is the default of the window.
    {rng}
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    checkpoint_dir
        Folder for the state of the training. After an interrupt the same call goes on from there and ends at the same
        weights as without it; on other cells or images it is refused.
    trainer_kwargs
        Passed to `lightning.Trainer`: precision, devices, strategy, loggers.

    Returns
    -------
    CellEncoder
        Trained, on the CPU, with its `history` and `provenance`. `models.save` writes it.

    Raises
    ------
    KeyError
        An image, element, channel, table or method is unknown.
    ValueError
        No cells, NaN or infinite pixels, a window larger than an image, different panels, elements that are rotated
        against each other, a state of another training in `checkpoint_dir`.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> model = cy.tl.fit_encoder(sdata, steps=2, batch_size=16)
    >>> len(model.history)
    2
    """
    samples = [data] if isinstance(data, SpatialData) else list(data)
    if not samples or not all(isinstance(s, SpatialData) for s in samples):
        kinds = [type(s).__name__ for s in samples]
        msg = f"`data` must be a SpatialData object or a list with at least one of them, got {kinds}."
        raise TypeError(msg)
    sources = [
        source
        for sdata in samples
        for source in resolve(
            sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
            table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
        )
    ]  # fmt: skip
    return train(
        sources, model, n_cells=check_cells(sources), size_px=size_px, size_um=size_um, steps=steps,
        batch_size=batch_size, views=views, recipe=recipe, seed=seed_of(rng), device=device, checkpoint_dir=checkpoint_dir, trainer_kwargs=trainer_kwargs,
    )  # fmt: skip


def train(
    sources: list[CellSource],
    model: str | CellEncoder | Any,
    *,
    n_cells: int,
    size_px: int | None,
    size_um: float | None,
    steps: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    views: int | Views | None = None,
    recipe: Recipe | None = None,
    checkpoint_dir: str | Path | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
) -> CellEncoder:
    """The training behind `fit_encoder` and `embed_cells`, once the cells are known."""
    from cytonym.learning.fit import fit  # lightning takes seconds to import

    cls, config = _method(model)
    sources = _in_order(sources, model)
    pixel_size = common_pixel_size(sources)
    side = window_side(sources, size_px, size_um)
    if side is not None:
        check_window(sources, side)
    if isinstance(model, CellEncoder):
        check_size(model, side)
        check_pixel_size(sources, model)
    else:
        config = _with_window(cls, config, side, pixel_size, given=not isinstance(model, str))
        if isinstance(model, str) and side is None and recipe is not None and len(recipe.views.window_px) > 1:
            config = replace(config, window_px=max(recipe.views.window_px))
    recipe = _recipe(recipe or cls.recipe, config.window_px, steps, batch_size, views)
    binning = getattr(config, "binning", 1)
    check_window(sources, config.window_px * binning)

    statistics = channel_statistics(sources, quantile=0.9, seed=seed, binning=binning)
    markers = sources[0].channels
    silent = [m for m, share in zip(markers, statistics["nonzero"], strict=True) if share == 0]
    if silent:
        logger.warning("Channels without any signal, neutral in the result: %s.", silent)
    network = _network(model, cls, config, markers, statistics["quantile"], seed)
    logger.info(
        "Training %s on %s cells of %d images, %d markers: %d steps of %d cells, %d views of %d px each%s. "
        "The progress bar tells the time left; `steps` shortens it.",
        cls.name, f"{n_cells:,}", len(sources), len(markers), recipe.steps, recipe.batch_size, recipe.views.n_views,
        config.window_px * binning, f", {binning} x {binning} px averaged into one" if binning > 1 else "",
    )  # fmt: skip

    reach = min(recipe.views.source_px(), *(min(s.shape[1:]) // binning for s in sources))
    windows = partial(
        TrainingWindows, sources, reach, batch_size=recipe.batch_size, steps=recipe.steps, seed=seed, binning=binning
    )
    network = fit(
        network, lambda start_step: windows(start_step=start_step), recipe, seed=seed, device=device,
        checkpoint_dir=checkpoint_dir, trainer_kwargs=trainer_kwargs, learned_from=_digest(sources, statistics),
    )  # fmt: skip
    network.provenance = {
        "cytonym": version("cytonym"),
        "seed": seed,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "views": asdict(recipe.views),
        "n_cells": n_cells,
        "images": [s.image_key for s in sources],
        "pixel_size": pixel_size,
        "silent_markers": silent,
    }
    return network


def _digest(sources: Sequence[CellSource], statistics: dict[str, np.ndarray]) -> str:
    """Hash of the images, as far as they were looked at, and of where the cells are."""
    digest = hashlib.sha256()
    for source in sources:
        about = [source.image_key, source.shape, source.pixels.dtype.name, source.channels]
        digest.update(json.dumps(about).encode())
        digest.update(source.centers.tobytes())
    for name in sorted(statistics):
        digest.update(statistics[name].tobytes())
    return digest.hexdigest()


def _with_window(
    cls: type[CellEncoder], config: Any, side: int | None, pixel_size: float | None, *, given: bool
) -> Any:
    """The config with the window asked for, or with one that suits the pixels; one that was given keeps what it says."""
    if side is not None:
        return replace(config, window_px=side // getattr(config, "binning", 1)) if given else cls.sized(config, side)
    if given:
        return config
    if pixel_size is None:
        logger.info(
            "The images do not say how large their pixels are. Where a cell is larger than the window, give `size_px`."
        )
        return config
    if pixel_size < LEAST_PIXEL_UM:
        logger.warning("Pixels of %.3g micrometres are no light microscope's, so no pixels are averaged.", pixel_size)
        return config
    return cls.adapted(config, pixel_size)


def _method(model: str | CellEncoder | Any) -> tuple[type[CellEncoder], Any]:
    """Class and config of a name, a config or a model."""
    if isinstance(model, str) and model in registry.names("encoder"):
        cls = registry.get(model)
        return cls, cls.Config()
    if isinstance(model, CellEncoder):
        return type(model), model.config
    if is_dataclass(model) and not isinstance(model, type):
        for name in registry.names("encoder"):
            cls = registry.get(name)
            if cls.Config is type(model):
                return cls, model
    names = sorted(registry.names("encoder"))
    if isinstance(model, str):
        msg = f"No encoder {model!r}. Available: {names}."
        raise KeyError(msg)
    msg = f"`model` must be one of {names}, the config of a method or a CellEncoder, got {type(model).__name__}."
    raise TypeError(msg)


def _in_order(sources: list[CellSource], model: Any) -> list[CellSource]:
    """The sources with their channels in one order: the model's, where it is bound to its panel."""
    sources = match_channels(sources)
    if not isinstance(model, CellEncoder) or model.any_panel:
        return sources
    markers, channels = set(model.markers), set(sources[0].channels)
    if markers != channels:
        msg = (
            "To train a model further its panel must be that of the images. "
            f"Only in the model: {sorted(markers - channels)}; only in the images: {sorted(channels - markers)}. `channels` selects."
        )
        raise ValueError(msg)
    return [source.of_channels(model.markers) for source in sources]


def _network(
    model: Any, cls: type[CellEncoder], config: Any, markers: Sequence[str], quantiles: np.ndarray, seed: int
) -> CellEncoder:
    if not isinstance(model, CellEncoder):
        return cls.from_statistics(markers, quantiles, config, seed=seed)
    if model.any_panel:
        return model.for_panel(markers, quantiles)
    network = cls(model.markers, config)
    network.load_state_dict(model.state_dict())
    return network


def _recipe(
    recipe: Recipe, window_px: int, steps: int | None, batch_size: int | None, views: int | Views | None
) -> Recipe:
    for name, value, least in (("steps", steps, 1), ("batch_size", batch_size, 2)):
        if value is not None and value < least:
            msg = f"`{name}` must be at least {least}, got {value}."
            raise ValueError(msg)
    if steps is not None:
        recipe = replace(recipe, steps=int(steps))
    if batch_size is not None:
        share = batch_size / recipe.batch_size if recipe.optimizer == "lars" else 1.0  # CLEAR-IT: 0.3 N / 256
        rates = {name: getattr(recipe, name) * share for name in ("learning_rate", "final_rate")}
        recipe = replace(recipe, batch_size=int(batch_size), **rates)
    chosen = views if isinstance(views, Views) else recipe.views
    if chosen is not views and len(chosen.window_px) == 1:
        chosen = replace(chosen, window_px=(window_px,))
    if max(chosen.window_px) != window_px:
        msg = f"The views are of {max(chosen.window_px)} px, the model's windows of {window_px} px (binned, where it bins)."
        logger.warning(msg)
    if views is not None and chosen is not views:
        if isinstance(views, bool) or not isinstance(views, (int, np.integer)):
            msg = f"`views` must be the number of views or a ViewConfig or SimCLRViews, got {type(views).__name__}."
            raise TypeError(msg)
        if views < 2 or views % len(chosen.window_px):
            msg = f"`views` must be at least 2 and a multiple of the {len(chosen.window_px)} window sizes, got {views}."
            raise ValueError(msg)
        chosen = replace(chosen, views_per_size=int(views) // len(chosen.window_px))
    return replace(recipe, views=chosen)
