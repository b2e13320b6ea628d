"""Names, confidences and probabilities for all cells of a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from cytonym import metrics
from cytonym._shared import RNG, document
from cytonym.data.names import with_storable_columns
from cytonym.models import load
from cytonym.models.checkpoint import weights_sha256
from cytonym.models.classifier import CellClassifier, Labeller
from cytonym.tl._fit_classifier import (
    cell_marks,
    check_apart,
    check_keys,
    fit_classifier,
    held_out,
    known_methods,
    table_of,
)
from cytonym.tl._heads import scores
from cytonym.tl._numbers import gather_for
from cytonym.tl._targets import read_targets
from cytonym.tl._windows import logits_of_windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.learning.supervise import Schedule
    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")


@document(rng=RNG)
def classify_cells(
    data: AnnData | SpatialData,
    label_key: str | Sequence[str] | None = None,
    model: str | Path | CellEncoder | Labeller = "logistic",
    *,
    use_rep: str | Sequence[str] | None = None,
    groups: str | None = None,
    test: str | None = None,
    multilabel: bool = False,
    balance: Literal["weights", "undersample", "none"] = "weights",
    schedule: Schedule | None = None,
    size_px: int | None = None,
    members: int = 1,
    checkpoint_dir: str | Path | None = None,
    thresholds: Sequence[float] | None = None,
    table_key: str = "table",
    rng: int | np.random.Generator | None = 0,
    device: str = "auto",
    key_added: str = "phenotype",
    copy: bool = False,
    **keys: Any,
) -> AnnData | None:
    """Name every cell from a few that are labelled, with a probability for each class.

    A method's name trains on the labelled cells first; a trained classifier, or its folder, only names. Cells that lack a
    number (or a place in the image) get NaN.

    Parameters
    ----------
    data
        Table with numbers; for a model that reads pixels the `SpatialData` that holds it.
    label_key
        Column of `obs` with the known classes, empty where unknown; see `fit_classifier`. A trained classifier is scored
        against it where it is given together with `test`, and needs none otherwise.
    model
        Name of a method, an encoder to fine-tune, a trained classifier, or the folder of one; see `fit_classifier`.
    use_rep, groups, multilabel, balance, schedule, size_px, members, checkpoint_dir
        See `fit_classifier`; for training only.
    test
        Boolean column of `obs`: labelled cells that are kept out of training and scored. Refused where a patient of
        `groups` has cells on both sides, and where a trained classifier has learned from one of the cells, known by their names
        and places, or of the patients.
    thresholds
        Of each class, 0 to 1, in place of those that maximise F1 on cells held out; with several labels only.
    table_key
        Table of a `SpatialData`.
    {rng}
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    key_added
        Name of the results, `"phenotype"` below. What `phenotype_cells` wrote under this name goes.
    copy
        Work on a copy of the table and return it.
    **keys
        For a model on pixels: the keys of `embed_cells`.

    Returns
    -------
    Returns `None` if `copy=False`, else an `AnnData`. Sets the following fields of the table:

    `obs["phenotype"]` : categorical
        The class of the largest probability; with several labels the names of all called classes, `"CD3, CD8"`, or `"none"`.
    `obs["phenotype_confidence"]` : f4
        Its calibrated probability; with several labels the least confident of the cell's calls, where the confidence of a
        call with probability p and threshold t is (p - t) / (1 - t) or (t - p) / t (CLEAR-IT, figure E1).
    `obsm["phenotype_proba"]` : DataFrame [cells, classes]
        Calibrated probabilities.
    `uns["phenotype"]` : dict
        `params`, `model` (method, hash of the weights, inputs, labelled cells of each class), `classes`, `temperature`,
        `thresholds`, `validation` (scores and calibration error on labelled cells not trained on), `reliability` (DataFrame:
        confidence and accuracy of these, bin by bin) and, with `test`, `test`.

    Raises
    ------
    KeyError
        A column, key or method is unknown.
    ValueError
        As in `fit_classifier`; or the table's numbers are not those that the classifier was trained on, thresholds outside
        0 to 1, or labels of a class that the classifier does not know.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=200, n_samples=2, size_px=128, rng=0)
    >>> cy.pp.measure_cells(sdata)
    >>> adata = sdata["table"]
    >>> adata.obs["label"] = adata.obs["cell_type"].where(adata.obs.index.isin(adata.obs.index[::2]))
    >>> cy.tl.classify_cells(adata, "label")
    >>> bool((adata.obs["phenotype"] == adata.obs["cell_type"]).mean() > 0.8)
    True
    """
    _check_name(key_added, [*_each(label_key), *_each(use_rep), groups, test])
    check_keys(keys)
    trained = _trained(model)
    if trained is None:
        if label_key is None:
            msg = "`label_key` must name the column of known classes to train on; or give a trained classifier as `model`."
            raise ValueError(msg)
        assert not isinstance(model, Labeller)
        trained = fit_classifier(
            data, label_key, model, use_rep=use_rep, groups=groups, test=test, multilabel=multilabel, balance=balance,
            schedule=schedule, size_px=size_px, members=members, checkpoint_dir=checkpoint_dir, table_key=table_key, rng=rng,
            device=device, **keys,
        )  # fmt: skip
    elif any(value is not None for value in (use_rep, schedule, size_px, checkpoint_dir)):
        msg = "`use_rep`, `schedule` and the like are about training, but a trained classifier only names cells: leave them out."
        raise ValueError(msg)
    on_pixels = not isinstance(trained, CellClassifier)
    if keys and not on_pixels:
        msg = f"{sorted(keys)} are about images, but this classifier takes the numbers of a table."
        raise TypeError(msg)
    table = table_of(data, table_key, pixels=on_pixels)
    given = thresholds is not None
    if thresholds is not None:
        if not trained.config.multilabel:
            msg = "`thresholds` are for several labels a cell; with one class each, the most probable one is called."
            raise ValueError(msg)
        trained = deepcopy(trained)  # the caller's keeps its own
        trained.set_thresholds(list(thresholds))
    if on_pixels:
        logits = logits_of_windows(data, table.n_obs, table_key, trained, device=device, keys=keys)
    else:
        numbers = gather_for(table, trained)
        logits = np.full((table.n_obs, len(trained.classes)), np.nan, dtype=np.float32)
        rows = np.flatnonzero(numbers.complete)
        with torch.no_grad():
            for part in np.array_split(rows, max(1, -(-len(rows) // 65_536))):
                logits[part] = trained.eval()(torch.from_numpy(numbers.values[part])).numpy()
    tested = _scored(table, trained, logits, label_key, test, groups, multilabel=trained.config.multilabel)
    obs, proba = _calls(table, trained, logits, key_added)
    target = table.copy() if copy else table
    _forget_rules(target, key_added)
    for name, column in obs.items():
        target.obs[name] = column
    target.uns[key_added] = _describe(trained, given=given) | ({"test": tested} if tested else {})
    target.obsm[f"{key_added}_proba"] = with_storable_columns(proba, f"{key_added}_proba", target.uns)
    return target if copy else None


def _each(keys: str | Sequence[str] | None) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys or ())


def _check_name(key_added: str, read: Sequence[str | None]) -> None:
    """No result takes the place of what is read."""
    written = {key_added: "obs", f"{key_added}_confidence": "obs", f"{key_added}_proba": "obsm"}
    for key, where in written.items():
        if key in read:
            msg = f"`key_added={key_added!r}` would write over `{where}[{key!r}]`, which is read here. Choose another name."
            raise ValueError(msg)


def _trained(model: Any) -> Labeller | None:
    if isinstance(model, Labeller):
        return model
    if isinstance(model, str) and model in known_methods():
        return None
    if isinstance(model, (str, Path)) and (Path(model) / "config.json").is_file():
        found = load(model)
        return found if isinstance(found, Labeller) else None
    return None


def _calls(table: AnnData, model: Labeller, logits: np.ndarray, key: str) -> tuple[dict[str, pd.Series], pd.DataFrame]:
    """Class, confidence and probabilities for each row."""
    found = np.isfinite(logits).all(axis=1)
    proba = np.full(logits.shape, np.nan, dtype=np.float32)
    proba[found] = model.probabilities(torch.from_numpy(logits[found])).numpy()
    names = np.array(model.classes, dtype=object)
    called = np.full(len(logits), None, dtype=object)
    sure = np.full(len(logits), np.nan, dtype=np.float32)
    if model.config.multilabel:
        limits = model.thresholds.numpy()
        positive = proba[found] > limits
        called[found] = [", ".join(names[row]) or "none" for row in positive]
        sure[found] = metrics.call_confidence(proba[found], limits).min(axis=1)
        categories = sorted({c for c in called if c is not None})
    else:
        called[found] = names[proba[found].argmax(axis=1)]
        sure[found] = proba[found].max(axis=1)
        categories = list(model.classes)
    obs = {
        key: pd.Series(pd.Categorical(called, categories=categories), index=table.obs_names),
        f"{key}_confidence": pd.Series(sure, index=table.obs_names),
    }
    return obs, pd.DataFrame(proba, index=table.obs_names, columns=list(model.classes))


def _scored(
    table: AnnData,
    model: Labeller,
    logits: np.ndarray,
    label_key: str | Sequence[str] | None,
    test: str | None,
    groups: str | None,
    *,
    multilabel: bool,
) -> dict[str, float]:
    """Scores on the labelled cells of `test`."""
    if test is None:
        return {}
    if label_key is None:
        msg = f"`test={test!r}` asks for scores, which need `label_key`, the column of known classes."
        raise ValueError(msg)
    targets = read_targets(table, label_key, multilabel=multilabel)
    unknown = sorted(set(targets.classes) - set(model.classes))
    kept_out = held_out(table, test)
    rows = targets.known[kept_out[targets.known]]
    rows = rows[np.isfinite(logits[rows]).all(axis=1)]
    if not len(rows):
        msg = f"No cell of `obs[{test!r}]` has a label in {label_key!r} to score against."
        raise ValueError(msg)
    here = {targets.classes[k] for k in np.flatnonzero(targets.one_hot(rows).any(axis=0))}
    if here & set(unknown):
        msg = f"Labels of classes that the classifier does not know: {sorted(here & set(unknown))}. It knows {list(model.classes)}."
        raise ValueError(msg)
    check_apart(table, targets.known[~kept_out[targets.known]], rows, groups)
    _check_unseen(table, model, rows, groups)
    order = [targets.classes.index(c) if c in targets.classes else -1 for c in model.classes]
    if multilabel:
        values = np.stack([targets.values[:, i] if i >= 0 else np.zeros(len(logits), int) for i in order], axis=1)
    else:
        back = {i: k for k, i in enumerate(order)}
        values = np.array([back.get(v, -1) for v in targets.values])
    moved = type(targets)(model.classes, values, multilabel=multilabel, key=targets.key)
    return scores(model, torch.from_numpy(logits[rows]), moved, rows)


def _check_unseen(table: AnnData, model: Labeller, rows: np.ndarray, groups: str | None) -> None:
    """A classifier is not scored on cells or patients that it has learned from."""
    told = model.provenance
    seen = set(told.get("learned_from", [])) & set(cell_marks(table, rows))
    if seen:
        msg = (
            f"The classifier has learned from {len(seen):,} of the {len(rows):,} test cells: a score would mean nothing. Cells are "
            "known by their names and, where it is there, `obsm['spatial']`; if these are others, give them other `obs_names`."
        )
        raise ValueError(msg)
    if groups is not None and told.get("groups") == groups:
        both = sorted(set(told.get("patients", [])) & set(table.obs[groups].iloc[rows].astype(str)))
        if both:
            msg = (
                f"The classifier has learned from {len(both)} of the patients of the test cells, such as {both[:5]} in "
                f"`obs[{groups!r}]`: a score would mean nothing for new ones."
            )
            raise ValueError(msg)


def _forget_rules(adata: AnnData, key: str) -> None:
    """Conflicts of rules would be taken for those of the new names."""
    told, column = adata.uns.get(key), f"{key}_conflict"
    if isinstance(told, Mapping) and "rules" in told and column in adata.obs:
        del adata.obs[column]
        logger.warning("%r of `tl.phenotype_cells` is removed, as other phenotypes take the place of its own.", column)


def _describe(model: Labeller, *, given: bool) -> dict[str, Any]:
    """Provenance in types that AnnData can write."""
    told = model.provenance
    described: dict[str, Any] = {
        "classes": list(model.classes),
        "temperature": model.temperature.numpy().astype(np.float64),
        "params": {"multilabel": bool(model.config.multilabel), "seed": int(told.get("seed", 0))},
        "model": {
            "class": model.name,
            "method": str(told.get("method", model.name)),
            "weights_sha256": weights_sha256(model),
            "use_rep": list(told.get("use_rep", [])),
            "groups": str(told.get("groups", "")),
            "n_labelled": int(told.get("n_labelled", 0)),
        },
    }
    if model.config.multilabel:
        described["thresholds"] = model.thresholds.numpy().astype(np.float64)
        described["params"]["thresholds_given"] = given
    if told.get("validation"):
        described["validation"] = {k: float(v) for k, v in told["validation"].items()}
    if told.get("reliability"):
        described["reliability"] = pd.DataFrame(told["reliability"])
    return described
