"""Train a scorer of marker positivity on cells whose types are known."""

from __future__ import annotations

import hashlib
import logging
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from spatialdata import SpatialData

from cytonym._shared import KEYS, RNG, document, seed_of
from cytonym.data.scoring_tiles import NEGATIVE, POSITIVE, UNDEFINED, ScoringTiles
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.models.nimbus import Nimbus, NimbusConfig
from cytonym.models.scorer_training import SCORER_RECIPE, ScorerRecipe, ScorerTraining
from cytonym.tl._encoding import check_cells
from cytonym.tl._scorer_parts import Labelled, judged_tiles, parts
from cytonym.tl._scoring import fields, scorer
from cytonym.tl._silver import given_labels, silver_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cytonym.data.scoring_tiles import Plot
    from cytonym.data.source import CellSource
    from cytonym.tl._silver import Assignment

logger = logging.getLogger("cytonym")


@document(keys=KEYS, rng=RNG)
def fit_scorer(
    data: SpatialData | Sequence[SpatialData],
    label_key: str | None = None,
    assignment: Assignment | None = None,
    *,
    marker_labels: str | None = None,
    model: str | Path | Nimbus | NimbusConfig = "compact",
    robust: bool = True,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    normalization: Literal["released", "paper"] | Mapping[str, float] = "released",
    pixel_size: float | None = None,
    diameter_um: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    recipe: ScorerRecipe | None = None,
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    checkpoint_dir: str | Path | None = None,
    trainer_kwargs: dict[str, Any] | None = None,
) -> Nimbus:
    """Train a scorer on silver-standard labels: cell types, and which markers each type expresses.

    Labels may be wrong: in the last quarter of the training only those cells count whose loss is small among the cells of the same marker and label, or
    whose label is predicted clearly (Nimbus paper). A fifth of the images, or the last rows of fewer than five, is held out and chooses the
    weights by their F1. It is another fifth of the labelled cells where a marker would lose all that is positive or negative by that. Where all of the training are worse there than those it began with, these are returned, with a warning in the log.

    Parameters
    ----------
    data
        One object or a list of them, all with the same keys and with a table of labelled cells.
    label_key
        Column of the table's `obs` with cell types.
    assignment
        Cell types (rows) by markers (columns): 1 or "positive", 0 or "negative", nothing or "undefined". A DataFrame, nested mapping or CSV file.
        Types that it lacks are left out.
    marker_labels
        In place of the two: key of a DataFrame in `obsm` with 1, 0 and NaN for each cell and marker, such as corrected calls.
    model
        What to start from: `"compact"`, a scorer or its checkpoint, which is trained further and drawn to its start; or a
        `models.NimbusConfig` for new weights.
    robust
        Select cells by their loss; without, every label counts to the end.
    {keys}
    normalization, pixel_size, diameter_um
        As in `tl.score_markers`.
    steps, batch_size
        Length of the training, and tiles in a step. Default: the recipe's.
    recipe
        All about the training; default `models.SCORER_RECIPE`, for minutes on a CPU. `models.NIMBUS_RECIPE` is the paper's.
    {rng}
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    checkpoint_dir
        Folder for the state of the training. After an interrupt the same call goes on from there and ends at the same weights as
        without it.
    trainer_kwargs
        Passed to `lightning.Trainer`.

    Returns
    -------
    models.Nimbus
        On the CPU, with its `history` (loss, share of labelled pixels kept) and `provenance` (with the F1 on what was held out, before and after). `models.save` writes it;
        `tl.score_markers` takes it.

    Raises
    ------
    KeyError
        An element, column, or marker of the matrix is unknown.
    ValueError
        No cells, no type of the data in the matrix, contradictory rows, or no marker with both positive and negative cells.

    Examples
    --------
    >>> import pandas as pd
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=80, size_px=96, rng=0)
    >>> matrix = pd.DataFrame({"CD20": [1, 0, 0]}, index=["B", "T helper", "tumour"])
    >>> model = cy.tl.fit_scorer(sdata, "cell_type", matrix, steps=2, batch_size=2)
    >>> cy.tl.score_markers(sdata, model, channels=["CD20"])
    """
    samples = [data] if isinstance(data, SpatialData) else list(data)
    if not samples or not all(isinstance(s, SpatialData) for s in samples):
        msg = f"`data` must be a SpatialData object or a list with at least one of them, got {[type(s).__name__ for s in samples]}."
        raise TypeError(msg)
    given = [v is not None for v in (marker_labels, label_key, assignment)]
    if given not in ([True, False, False], [False, True, True]):
        msg = "Give cell types and an assignment matrix (`label_key`, `assignment`), or `marker_labels`, and not both."
        raise ValueError(msg)
    seed = seed_of(rng)
    network, chosen = _start(model, recipe, seed)
    chosen = _recipe(chosen, steps, batch_size, robust=robust)
    chosen.check(network)

    images: list[list[CellSource]] = []
    for sdata in samples:
        sources = resolve(
            sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
            table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
        )  # fmt: skip
        check_cells(sources)
        images.append(sources)
    markers = list(dict.fromkeys(c for sources in images for source in sources for c in source.channels))
    labelled: list[list[np.ndarray]] = []
    for sdata, sources in zip(samples, images, strict=True):
        rows = open_table(sdata, sources, table_key)
        if marker_labels is None:
            assert label_key is not None
            assert assignment is not None
            known = silver_labels(rows.table, markers, label_key=label_key, assignment=assignment)
        else:
            known = given_labels(rows.table, markers, marker_labels)
        labelled.append([_activity(s, at, known, markers) for s, at in zip(sources, rows.rows, strict=True)])
    pairs, keys = _keys(images, labelled)

    found: list[Labelled] = []
    n_images = 0
    for sources, activities in zip(images, labelled, strict=True):
        ready = fields(
            sources, network, normalization=normalization, pixel_size=pixel_size, diameter_um=diameter_um, seed=seed
        )
        names = list(dict.fromkeys(s.image_key for s in sources))
        for field, activity in zip(ready, activities, strict=True):
            image = n_images + names.index(field.canvas.source.image_key)
            found.append(Labelled(field, activity, keys[len(found)], image))
        n_images += len(names)
    trained, judged = parts(found, [marker for _, marker in pairs], seed)
    held_out = judged_tiles(judged, chosen.tile_px, seed)
    tiles = ScoringTiles(trained, chosen.tile_px, chosen.batch_size, chosen.steps, seed)
    learned = list(dict.fromkeys(pairs[key][1] for key in sorted(tiles.places)))
    logger.info(
        "Training %s on %d markers of %d images: %d steps of %d tiles of %d px; %d tiles are held out.",
        network.name, len(learned), n_images, chosen.steps, chosen.batch_size, chosen.tile_px, len(held_out),
    )  # fmt: skip
    from cytonym.learning.fit import fit  # lightning takes seconds to import

    training = ScorerTraining(network, chosen, len(pairs), held_out, _hash(trained + judged))
    fit(training, tiles, chosen, seed=seed, device=device, checkpoint_dir=checkpoint_dir, trainer_kwargs=trainer_kwargs)  # type: ignore[arg-type]
    result = training.finished()
    f1 = float(training.start_score if training.spoiled else training.best_score)
    if training.spoiled:
        logger.warning(
            "The training made the scorer worse on the labels held out (F1 %.3f at its start): the weights it began with are returned. "
            "Look at the labels, or train with more of them.",
            f1,
        )  # fmt: skip
    result.history = training.history
    result.markers = tuple(learned)
    result.provenance = {
        "cytonym": version("cytonym"),
        "seed": seed,
        "steps": chosen.steps,
        "batch_size": chosen.batch_size,
        "robust": robust,
        "images": [one.field.canvas.source.image_key for one in found],
        "start_f1": float(training.start_score) if training.start_score >= 0 else None,
        "held_out_f1": f1 if f1 >= 0 else None,
    }
    return result


def _start(model: Any, recipe: ScorerRecipe | None, seed: int) -> tuple[Nimbus, ScorerRecipe]:
    """A copy of the weights to begin with, and the recipe; new weights are drawn to nothing."""
    if isinstance(model, NimbusConfig):
        return Nimbus.from_seed(model, seed=seed), recipe or replace(SCORER_RECIPE, to_start=0.0)
    return deepcopy(scorer(model)), recipe or SCORER_RECIPE


def _recipe(recipe: ScorerRecipe, steps: int | None, batch_size: int | None, *, robust: bool) -> ScorerRecipe:
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            msg = f"`{name}` must be at least 1, got {value}."
            raise ValueError(msg)
    changes: dict[str, Any] = {k: int(v) for k, v in (("steps", steps), ("batch_size", batch_size)) if v is not None}
    return replace(recipe, **changes | ({} if robust else {"robust_from": 1.0}))


def _activity(source: CellSource, at: np.ndarray, known: np.ndarray, markers: Sequence[str]) -> np.ndarray:
    """What is known [n_obs, markers] about the cells and channels of an image, whose rows are `at`: int8 [cells, C]."""
    columns = [markers.index(c) for c in source.channels]
    return np.where(at[:, None] >= 0, known[np.ix_(np.maximum(at, 0), columns)], UNDEFINED).astype(np.int8)


def _keys(
    images: Sequence[Sequence[CellSource]], labelled: Sequence[Sequence[np.ndarray]]
) -> tuple[list[tuple[int, str]], list[np.ndarray]]:
    """(Data set, marker) pairs with cells of both kinds, by name, and their numbers for each image's channels, -1 for others."""
    found = [(s, a, n) for n, pair in enumerate(zip(images, labelled, strict=True)) for s, a in zip(*pair, strict=True)]
    seen: dict[tuple[int, str], set[int]] = {}
    for source, activity, number in found:
        for c, marker in enumerate(source.channels):
            seen.setdefault((number, marker), set()).update(np.unique(activity[:, c]).tolist())
    useful = [pair for pair, kinds in seen.items() if {NEGATIVE, POSITIVE} <= kinds]
    if not useful:
        msg = "No marker has both positive and negative cells among the labelled ones, so there is nothing to learn."
        raise ValueError(msg)
    one_sided = sorted({m for (n, m), kinds in seen.items() if (n, m) not in useful and kinds & {NEGATIVE, POSITIVE}})
    if one_sided:
        logger.warning("Markers with labels of one kind only, left out: %s.", one_sided)
    place = {pair: i for i, pair in enumerate(useful)}
    keys = [np.array([place.get((n, m), -1) for m in source.channels]) for source, _, n in found]
    return useful, keys


def _hash(plots: Sequence[Plot]) -> bytes:
    """Of all that is learned from."""
    digest = hashlib.sha256()
    for plot in plots:
        for array in (plot.markers, plot.interior, plot.rows, plot.activity, plot.keys):
            digest.update(array.tobytes())
    return digest.digest()
