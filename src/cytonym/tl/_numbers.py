"""The numbers of a table that a classifier sees, and how they are brought to one scale."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cytonym.data.names import INTENSITIES, with_marker_names
from cytonym.models import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("cytonym")

BESIDE, ALONE = 1.0, 30.0
"""Variance of an embedding, whatever its length, beside numbers of variance 1 each, and by itself (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Numbers:
    """Inputs of a classifier for all cells of a table."""

    names: tuple[str, ...]
    """`key:column` for each of the D inputs."""
    values: np.ndarray
    """f4 [n_obs, D]; NaN where a cell lacks a number."""
    keys: tuple[str, ...]
    """Where they come from."""
    blocks: tuple[slice, ...]
    """Columns of each key."""
    arrays: tuple[bool, ...]
    """Whether a key is an array, whose columns have numbers for names, such as an embedding."""
    made_by: dict[str, str]
    """Key -> hash of the encoder that made it, where the table says it."""

    @property
    def complete(self) -> np.ndarray:
        """Cells with all numbers, bool [n_obs]."""
        return np.isfinite(self.values).all(axis=1)

    def scaling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, center and spread [D] for `CellClassifier.set_scaling`, from all complete cells, labelled or not.

        Intensities and areas go through asinh(x / unit), the unit being the median of the cells that have any, which is linear for
        faint and logarithmic for bright cells; then each has variance 1. An array (an embedding) is scaled as a block, to a
        total variance of `BESIDE`, or `ALONE` where there is nothing else.
        """
        return self._scaling

    @cached_property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = self.values[self.complete].astype(np.float64)
        d = values.shape[1]
        unit, center, spread = np.zeros(d), np.zeros(d), np.ones(d)
        for key, block, array in zip(self.keys, self.blocks, self.arrays, strict=True):
            x = values[:, block]
            if key in INTENSITIES and (x >= 0).all():
                unit[block] = [np.median(c[c > 0]) if (c > 0).any() else 0.0 for c in x.T]
                x = np.where(unit[block] > 0, np.arcsinh(x / np.where(unit[block] > 0, unit[block], 1.0)), x)
            center[block] = x.mean(axis=0)
            deviation = x.std(axis=0)
            if array:
                weight = ALONE if len(self.keys) == 1 else BESIDE
                spread[block] = np.sqrt((deviation**2).sum() / weight) or 1.0
            else:
                spread[block] = np.where(deviation > 1e-9 * (np.abs(center[block]) + 1e-30), deviation, 1.0)
        return unit, center, spread

    def plain_scaling(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, center and spread [D] of z-scores by some cells, as in MAPS."""
        values = self.values[rows].astype(np.float64)
        deviation = values.std(axis=0)
        return np.zeros(values.shape[1]), values.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def gather(adata: AnnData, use_rep: str | Sequence[str] | None) -> Numbers:
    """The numbers of some keys, or by default mean intensities, area and the one embedding of the table.

    Raises
    ------
    KeyError
        A key is not there, or there is nothing to take by default.
    ValueError
        There are several embeddings to choose from, no cell has all numbers, or a key holds no numbers.
    """
    keys = default_keys(adata) if use_rep is None else [use_rep] if isinstance(use_rep, str) else list(use_rep)
    if not keys or len(set(keys)) < len(keys):
        msg = f"`use_rep` must name at least one key, each once, got {keys}."
        raise ValueError(msg)
    parts, names, blocks, arrays, made_by = [], [], [], [], {}
    at = 0
    for key in keys:
        values, columns = _values(adata, key)
        parts.append(values)
        names += columns
        blocks.append(slice(at, at + len(columns)))
        at += len(columns)
        arrays.append(key in adata.obsm and not isinstance(adata.obsm[key], pd.DataFrame))
        made = maker(adata, key)
        if made:
            made_by[key] = made
    values = np.concatenate(parts, axis=1)
    numbers = Numbers(tuple(names), values, tuple(keys), tuple(blocks), tuple(arrays), made_by)
    if not numbers.complete.any():
        lacking = [
            k
            for k, b in zip(keys, numbers.blocks, strict=True)
            if not np.isfinite(numbers.values[:, b]).all(axis=1).any()
        ]
        msg = f"No cell has all numbers of {keys}: NaN or infinite in {lacking or 'one or the other'} for each of {adata.n_obs} cells."
        raise ValueError(msg)
    return numbers


def gather_for(adata: AnnData, model: Any) -> Numbers:
    """The numbers that a trained classifier was trained on.

    Raises
    ------
    KeyError
        The table lacks some of them.
    ValueError
        An embedding is of another length, or was made by another encoder.
    """
    keys = [str(k) for k in model.provenance.get("use_rep", [])]
    if not keys:
        msg = "The model does not say which numbers of a table it takes (`provenance['use_rep']`); it was not made by `tl.fit_classifier`."
        raise ValueError(msg)
    numbers = gather(adata, keys)
    if numbers.names != model.markers:
        at = {name: i for i, name in enumerate(numbers.names)}
        lacking = [name for name in model.markers if name not in at]
        if lacking:
            msg = (
                f"The table lacks {len(lacking)} of the model's {len(model.markers)} inputs, such as {lacking[:3]}. "
                f"It has {list(numbers.names[:5])}…: other markers or another embedding than the model was trained with."
            )
            raise KeyError(msg)
        order = [at[name] for name in model.markers]
        numbers = replace(numbers, names=model.markers, values=numbers.values[:, order])
    for key, made in dict(model.provenance.get("made_by", {})).items():
        here = numbers.made_by.get(key)
        if here is not None and here != made:
            msg = (
                f"`obsm[{key!r}]` was made by another encoder, or with other markers, than the one this classifier was "
                "trained with; embeddings of two trainings cannot be compared. Embed with the same encoder and channels."
            )
            raise ValueError(msg)
    return numbers


def default_keys(adata: AnnData) -> list[str]:
    """Mean intensities, area, and the one embedding, as far as they are there."""
    intensity = (
        "mean_intensity" if "mean_intensity" in adata.obsm else "X" if adata.X is not None and adata.n_vars else None
    )
    keys = [intensity] if intensity else []
    if intensity:
        keys += _area(adata)
    embeddings = [key for key in adata.obsm if _is_embedding(adata, key)]
    if len(embeddings) > 1:
        msg = f"Several embeddings: {embeddings}. Choose with `use_rep`, such as use_rep={[*keys, embeddings[0]]}."
        raise ValueError(msg)
    keys += embeddings
    if not keys:
        msg = (
            "Nothing to classify by: the table has neither intensities nor an embedding. `pp.measure_cells` and `tl.embed_cells` "
            f"write them; `use_rep` names other keys. In `obsm`: {sorted(map(str, adata.obsm))}."
        )
        raise KeyError(msg)
    if not embeddings:
        logger.info("Classifying by intensities alone. `tl.embed_cells` first adds what they do not tell.")
    return keys


def maps_keys(adata: AnnData) -> list[str]:
    """What MAPS learns from: mean intensities and, where it is there, the area."""
    return ["mean_intensity" if "mean_intensity" in adata.obsm else "X", *_area(adata)]


def _area(adata: AnnData) -> list[str]:
    """The column of areas, unless it holds something else."""
    return ["area"] if "area" in adata.obs and pd.api.types.is_numeric_dtype(adata.obs["area"]) else []


def _is_embedding(adata: AnnData, key: str) -> bool:
    """Whether an encoder made it. Tables that were concatenated have no `uns` to say so, but the keys that come with it."""
    name = key.removeprefix("X_")
    if name == key:
        return False
    return bool(maker(adata, key)) or name in registry.names("encoder") or f"{name}_attributions" in adata.obsm


def maker(adata: AnnData, key: str) -> str:
    """What made an embedding: a hash of the encoder's weights and its markers, empty where the table does not say."""
    entry = adata.uns.get(key.removeprefix("X_")) if key.startswith("X_") else None
    model = entry.get("model") if isinstance(entry, dict) else None
    if not isinstance(model, dict) or not model.get("weights_sha256"):
        return ""
    told = [str(model["weights_sha256"]), *map(str, model.get("markers", []))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _values(adata: AnnData, key: str) -> tuple[np.ndarray, list[str]]:
    """Float32 [n_obs, d] and the names of its columns."""
    if key == "X":
        if adata.X is None or not adata.n_vars:
            msg = "The table has no `X`. `pp.measure_cells` writes mean intensities there."
            raise KeyError(msg)
        values: Any = adata.X
        columns = [f"X:{name}" for name in adata.var_names]
    elif key in adata.obsm:
        values = adata.obsm[key]
        if isinstance(values, pd.DataFrame):
            columns = [f"{key}:{name}" for name in with_marker_names(values, key, adata.uns).columns]
        else:
            width = values.shape[1] if getattr(values, "ndim", 0) == 2 else 0
            columns = [f"{key}[{i}]" for i in range(width)]
    elif key in adata.obs and pd.api.types.is_numeric_dtype(adata.obs[key]):
        values, columns = adata.obs[[key]].to_numpy(), [key]
    else:
        numeric = [str(c) for c in adata.obs if pd.api.types.is_numeric_dtype(adata.obs[c])]
        msg = f"No numbers under {key!r}. Available: {['X'] * bool(adata.n_vars) + sorted(map(str, adata.obsm))}, and in `obs`: {numeric}."
        raise KeyError(msg)
    if hasattr(values, "to_memory"):  # a table that is backed by its file
        values = values.to_memory()
    if sparse.issparse(values):
        values = values.toarray()
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{key!r} does not hold numbers: {error}."
        raise ValueError(msg) from error
    if array.ndim != 2 or not columns:
        msg = f"{key!r} must be [cells, numbers] with at least one number a cell, got shape {array.shape}."
        raise ValueError(msg)
    return array, columns
