"""Train a classifier on labelled cells."""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from cytonym._shared import RNG, document, seed_of
from cytonym.models import registry
from cytonym.models.base import CellEncoder
from cytonym.tl._heads import BALANCES, SCHEDULES, fit_head
from cytonym.tl._numbers import gather, maps_keys
from cytonym.tl._targets import Targets, image_column, read_groups, read_targets
from cytonym.tl._windows import find_cells, fit_on_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.learning.supervise import Schedule
    from cytonym.models.classifier import Labeller

logger = logging.getLogger("cytonym")

ON_PIXELS = ("cellsighter",)
KEYS = ("image_key", "labels_key", "shapes_key", "points_key", "coordinate_system", "scale", "channels")
MARKED = 200_000  # labelled cells that a classifier remembers, so that it is not scored on them


@document(rng=RNG)
def fit_classifier(
    data: AnnData | SpatialData,
    label_key: str | Sequence[str],
    model: str | Path | CellEncoder = "logistic",
    *,
    use_rep: str | Sequence[str] | None = None,
    groups: str | None = None,
    test: str | None = None,
    multilabel: bool = False,
    balance: Literal["weights", "undersample", "none"] = "weights",
    schedule: Schedule | None = None,
    size_px: int | None = None,
    members: int = 1,
    table_key: str = "table",
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    checkpoint_dir: str | Path | None = None,
    **keys: Any,
) -> Labeller:
    """Train a classifier on the labelled cells of a table, to be used on any other.

    The classifier is judged on labelled cells that it was not trained on, never with cells of one patient on both sides; these
    cells also fit the temperature of its probabilities and its thresholds. What they say stands in ``provenance["validation"]``.

    Parameters
    ----------
    data
        Table with labels; for a model that reads pixels the `SpatialData` that holds it.
    label_key
        Column of `obs` with one class a cell, empty where unknown. With `multilabel` a list of 0/1 columns, or the key of a
        DataFrame in `obsm` with one 0/1 column a class.
    model
        On numbers of a table:

        `"logistic"`
            Logistic regression with an L2 penalty, judged by five folds. The best of these with few labels.
        `"linear"`
            CLEAR-IT's linear head: dropout 0.3, Adam with 1e-4, 50 epochs, that of the lowest validation loss. Made for embeddings
            of thousands of cells: with few cells or few numbers it hardly leaves its start, see `schedule`.
        `"mlp4"`
            CLEAR-IT's MLP4: four hidden layers of 512.
        `"maps"`
            MAPS: the same network on z-scores of mean intensities and area, with its own training.

        On pixels (`data` is a `SpatialData`):

        `"cellsighter"`
            CellSighter: a ResNet-50 on windows with the masks of the cell and of its neighbours; needs label images.
        a trained encoder, or the folder of one
            Its weights and a linear head are trained together (fine-tuning).
    use_rep
        Keys of `obsm`, `"X"`, or numeric columns of `obs` to learn from. Default: mean intensities, area and the one
        embedding that `embed_cells` wrote, side by side. Ignored by models on pixels.
    groups
        Column of `obs` with the patient of each cell. Default: the image.
    test
        Boolean column of `obs`: cells that are kept out altogether. A patient with cells on both sides is an error.
    multilabel
        A cell may have any number of classes.
    balance
        `"weights"`: every class has the same weight in sum. `"undersample"`: classes are thinned out to the rarest one as in
        CLEAR-IT. `"none"`: as they come.
    schedule
        A `learning.supervise.Schedule` in place of the method's own; not for `"logistic"`.
    size_px, members
        Of CellSighter: side of its window, by default 30 micrometres where the pixel size is known and else the published 60
        pixels; and networks whose probabilities are averaged.
    table_key
        Table of a `SpatialData`.
    {rng}
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    checkpoint_dir
        Folder for the state of a training on pixels; after an interrupt the same call goes on from there.
    **keys
        `image_key`, `labels_key`, `shapes_key`, `points_key`, `coordinate_system`, `scale`, `channels` for a model on pixels,
        as in `embed_cells`.

    Returns
    -------
    A `models.CellClassifier` or another classifier. `models.save` writes it, `tl.classify_cells` uses it.

    Raises
    ------
    KeyError
        A column, key or method is unknown.
    ValueError
        Fewer than two classes, no labelled cell with all numbers, all labelled cells of one patient, patients on both sides of
        `test`, or multi-label columns that are not 0/1.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=200, n_samples=2, size_px=128, rng=0)
    >>> cy.pp.measure_cells(sdata)
    >>> model = cy.tl.fit_classifier(sdata["table"], "cell_type")
    >>> sorted(model.provenance["validation"])
    ['ece', 'ece_uncalibrated', 'macro_f1', 'micro_f1', 'n_cells', 'pr_auc']
    """
    if balance not in BALANCES:
        msg = f"Unknown balance {balance!r}. Available: {list(BALANCES)}."
        raise ValueError(msg)
    on_pixels = check_method(model)
    table = table_of(data, table_key, pixels=on_pixels)
    targets = read_targets(table, label_key, multilabel=multilabel)
    seed = seed_of(rng)
    told: dict[str, Any] = {
        "cytonym": version("cytonym"),
        "seed": seed,
        "label_key": _plain(label_key),
        "balance": balance,
    }
    if on_pixels:
        check_keys(keys)
        cells = find_cells(data, table_key, keys)
        known = np.intersect1d(targets.known, cells.seen())
        if len(known) < len(targets.known):
            logger.warning(
                "%d labelled cells are not in these images and are left out.", len(targets.known) - len(known)
            )
        rows = _labelled(table, targets, known, test, groups)
        groups_key, patients = read_groups(table, groups, rows)
        fitted = fit_on_windows(
            cells, targets, rows, patients, model=model, balance=balance, schedule=schedule, size_px=size_px,
            members=members, seed=seed, device=device, checkpoint_dir=checkpoint_dir,
        )  # fmt: skip
    else:
        if keys:
            msg = f"{sorted(keys)} are about images, but {model!r} learns from the numbers of a table."
            raise TypeError(msg)
        if schedule is not None and SCHEDULES[str(model)] is None:
            msg = f"`schedule` is about training in epochs; {model!r} is solved at once. Leave it out."
            raise ValueError(msg)
        if use_rep is None and model == "maps":
            use_rep = maps_keys(table)
        numbers = gather(table, use_rep)
        known = np.intersect1d(targets.known, np.flatnonzero(numbers.complete))
        if len(known) < len(targets.known):
            logger.warning("%d labelled cells lack a number (NaN) and are left out.", len(targets.known) - len(known))
        rows = _labelled(table, targets, known, test, groups)
        groups_key, patients = read_groups(table, groups, rows)
        fitted = fit_head(
            numbers,
            targets,
            rows,
            patients,
            head=str(model),
            balance=balance,
            schedule=schedule,
            seed=seed,
            device=device,
        )
        told |= {"use_rep": list(numbers.keys), "made_by": numbers.made_by}
    classifier = fitted.model
    counts = targets.one_hot(rows).sum(axis=0)
    if len(rows) <= MARKED:
        told["learned_from"] = cell_marks(table, rows)
    if groups is not None and patients is not None:
        told["patients"] = sorted(set(patients.tolist()))
    told |= {
        "method": model if isinstance(model, str) and model in known_methods() else "fine-tuned",
        "groups": groups_key or "",
        "n_labelled": len(rows),
        "n_per_class": {name: int(n) for name, n in zip(targets.classes, counts, strict=True)},
        "validation": fitted.report(targets),
        "reliability": fitted.reliability(targets),
    }
    classifier.provenance = classifier.provenance | told
    return classifier


def check_keys(keys: dict[str, Any]) -> None:
    """Only the keys of images and cells."""
    unknown = sorted(set(keys) - set(KEYS))
    if unknown:
        msg = f"Unknown arguments {unknown}. Those about images and cells are {list(KEYS)}."
        raise TypeError(msg)


def cell_marks(table: AnnData, rows: np.ndarray) -> list[str]:
    """A short hash of each of some cells: its name and its place. Its numbers may be changed on the way, so they are not in it."""
    names = table.obs_names.to_numpy(dtype=str)[rows]
    place = (
        np.asarray(table.obsm["spatial"], dtype=np.float64)[rows]
        if "spatial" in table.obsm
        else np.zeros((len(rows), 0))
    )
    return [
        hashlib.sha256(f"{name}|".encode() + at.tobytes()).hexdigest()[:12]
        for name, at in zip(names, place, strict=True)
    ]


def known_methods() -> list[str]:
    """Names that `fit_classifier` takes."""
    return [*SCHEDULES, *ON_PIXELS]


def check_method(model: Any) -> bool:
    """Whether a method reads pixels; an error where there is no such method."""
    if isinstance(model, CellEncoder):
        return True
    if isinstance(model, str) and model in known_methods():
        return model in ON_PIXELS
    if isinstance(model, Path) or (isinstance(model, str) and Path(model).exists()):
        return True
    hint = " Train it first with `tl.fit_encoder`." if model in registry.names("encoder") else ""
    msg = f"No classifier {model!r}. Available: {known_methods()}, or a trained encoder to fine-tune.{hint}"
    raise KeyError(msg)


def table_of(data: AnnData | SpatialData, table_key: str, *, pixels: bool) -> AnnData:
    """The table to work on."""
    if isinstance(data, AnnData):
        if pixels:
            msg = "This model reads pixels: give the SpatialData object, not its table."
            raise TypeError(msg)
        return data
    if not isinstance(data, SpatialData):
        msg = f"`data` must be an AnnData table or a SpatialData object, got {type(data).__name__}."
        raise TypeError(msg)
    if table_key not in data.tables:
        msg = f"No table {table_key!r} in `sdata.tables`. Available: {sorted(data.tables)}."
        raise KeyError(msg)
    return data.tables[table_key]


def held_out(table: AnnData, test: str) -> np.ndarray:
    """Values [n_obs] of a boolean column of `obs`."""
    if test not in table.obs:
        found = [str(c) for c in table.obs if pd.api.types.is_bool_dtype(table.obs[c])]
        msg = f"No column {test!r} in `adata.obs` that says which cells are kept out. Boolean columns: {found}."
        raise KeyError(msg)
    column = table.obs[test]
    if not pd.api.types.is_bool_dtype(column) or column.isna().any():
        msg = f"`obs[{test!r}]` must be True or False for each cell, got {column.dtype} with {int(column.isna().sum())} empty."
        raise ValueError(msg)
    return column.to_numpy(dtype=bool)


def check_apart(table: AnnData, inside: np.ndarray, outside: np.ndarray, groups: str | None) -> None:
    """No patient may have cells on both sides of an evaluation."""
    key = groups if groups is not None else image_column(table, np.arange(table.n_obs))
    if key is None:
        return
    if key not in table.obs:
        msg = f"No column {key!r} in `adata.obs` to group by. Available: {sorted(map(str, table.obs.columns))}."
        raise KeyError(msg)
    if table.obs[key].iloc[inside].isna().any() or table.obs[key].iloc[outside].isna().any():
        msg = f"`obs[{key!r}]` is empty for some labelled cells: whose are they?"
        raise ValueError(msg)
    column = table.obs[key].astype(str).to_numpy()
    both = sorted(set(column[inside]) & set(column[outside]))
    if both:
        msg = (
            f"{len(both)} groups of `obs[{key!r}]` have cells to train on and cells to test on, such as {both[:5]}: a score would "
            "mean nothing for new patients. Put each on one side."
        )
        raise ValueError(msg)


def _labelled(table: AnnData, targets: Targets, rows: np.ndarray, test: str | None, groups: str | None) -> np.ndarray:
    """Labelled rows to learn from, of two classes or more, in an order of their own: that of the table does not matter."""
    if test is not None:
        kept_out = held_out(table, test)
        check_apart(table, rows[~kept_out[rows]], rows[kept_out[rows]], groups)
        rows = rows[~kept_out[rows]]
    counts = targets.one_hot(rows).sum(axis=0)
    enough = (counts > 0).sum() >= 2 or (targets.multilabel and len(rows) > 0)
    if not enough:
        found = {name: int(n) for name, n in zip(targets.classes, counts, strict=True)}
        msg = f"Labelled cells of at least two classes are needed to learn from, found {found}."
        raise ValueError(msg)
    return rows[np.argsort(table.obs_names.to_numpy(dtype=str)[rows], kind="stable")]


def _plain(key: str | Sequence[str]) -> str | list[str]:
    return key if isinstance(key, str) else list(key)
