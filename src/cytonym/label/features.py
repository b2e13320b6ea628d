"""Numbers of a table: those that a model learns from and their scale, and markers to colour cells by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cytonym.data.names import INTENSITIES, with_marker_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

MAPS = ("spatial", "X_umap", "X_pca", "X_tsne", "X_draw_graph_fa")
"""Coordinates and what is made from others."""
CHUNK = 8192
"""Cells at once. Always the same cells in the same place, so that the last bit does not depend on the order of the table."""
FAR = 5.0
"""Standard deviations at which numbers end: one cell with a speck of dirt is not to decide over all others."""
CONSTANT = 1e-7  # of the mean: a smaller spread is rounding


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and standard deviation of each feature, by which all are brought to one scale."""

    center: np.ndarray
    """f4 [d]."""
    spread: np.ndarray
    """f4 [d]; 1 for a feature that is the same everywhere."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features [n, d] in standard deviations from the mean, f4, at most 5 on either side."""
        return np.clip((features - self.center) / self.spread, -FAR, FAR)


def scale_of(features: np.ndarray, rows: np.ndarray) -> Scale:
    """The scale of some rows, summed in their order and by parts.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.label.features import scale_of
    >>> features = np.array([[0, 5], [2, 5], [4, 5]], np.float32)
    >>> scale_of(features, np.arange(3))(features).round(1)[:, 0]
    array([-1.2,  0. ,  1.2], dtype=float32)
    """
    parts = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    n = max(len(rows), 1)
    center = sum((features[part].sum(axis=0, dtype=np.float64) for part in parts), np.zeros(features.shape[1])) / n
    squares = sum((((features[part] - center) ** 2).sum(axis=0) for part in parts), np.zeros(features.shape[1]))
    spread = np.sqrt(squares / n)
    spread[spread <= CONSTANT * (np.abs(center) + 1e-30)] = 1.0
    return Scale(center.astype(np.float32), spread.astype(np.float32))


def bent(features: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Features [..., d] through asinh(x / unit), linear for faint and logarithmic for bright cells; as they are where the unit is 0."""
    at = unit > 0
    if not at.any():
        return features
    out = np.array(features, dtype=np.float32)
    out[..., at] = np.arcsinh(out[..., at] / unit[at])
    return out


def features_of(table: AnnData, use_rep: str | Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all cells side by side and their units.

    Parameters
    ----------
    table
        Table of the cells.
    use_rep
        Keys of `obsm`, `"X"`, or numeric columns of `obs`. Default: the embeddings that `tl.embed_cells` wrote, else any other
        array of `obsm` that is no map, else the intensities.

    Returns
    -------
    f4 [n, d], NaN where a cell lacks a number, and f4 [d] for `bent`: the median of the cells that have any for intensities and
    areas, and 0 for everything else.

    Raises
    ------
    KeyError
        A key is not there, or there is nothing to learn from.
    ValueError
        A key does not hold numbers, or no cell has all of them.
    """
    keys = default_keys(table) if use_rep is None else [use_rep] if isinstance(use_rep, str) else list(use_rep)
    if not keys:
        msg = (
            "There is nothing for a model to learn from: the table has neither an embedding nor intensities. `tl.embed_cells` and "
            f"`pp.measure_cells` write them; `use_rep` names other keys. In `obsm`: {sorted(map(str, table.obsm))}."
        )
        raise KeyError(msg)
    parts = [_values(table, str(key)) for key in keys]
    units = [_unit(str(key), part) for key, part in zip(keys, parts, strict=True)]
    values = np.concatenate(parts, axis=1)
    if not values.shape[1] or not np.isfinite(values).all(axis=1).any():
        msg = f"No cell has all numbers of {keys}, so there is nothing to learn from."
        raise ValueError(msg)
    return values, np.concatenate(units)


def default_keys(table: AnnData) -> list[str]:
    """Keys that a model learns from where nobody says which."""
    arrays = [str(k) for k, v in table.obsm.items() if k not in MAPS and not isinstance(v, pd.DataFrame)]
    made = [k for k in arrays if k.startswith("X_") and "model" in (table.uns.get(k.removeprefix("X_")) or {})]
    if made:
        return made
    others = [k for k in arrays if k.startswith("X_")]
    if others:
        return others
    return _intensities(table)[:1]


def marker_names(table: AnnData) -> list[str]:
    """Markers that cells can be coloured by."""
    keys = _intensities(table)
    if not keys:
        return []
    if keys[0] == "X":
        return [str(name) for name in table.var_names]
    return [str(c) for c in with_marker_names(table.obsm[keys[0]], keys[0], table.uns).columns]


def marker_values(table: AnnData, name: str) -> np.ndarray:
    """One marker of all cells, f4 [n].

    Raises
    ------
    KeyError
        There is no such marker.
    """
    names = marker_names(table)
    if name not in names:
        msg = f"No marker {name!r}. Available: {names}."
        raise KeyError(msg)
    key, at = _intensities(table)[0], names.index(name)
    if key == "X":
        column: Any = table.X[:, at]  # type: ignore[index]
        dense = column.toarray() if sparse.issparse(column) else column
        return np.asarray(dense, dtype=np.float32).ravel()
    return np.asarray(table.obsm[key].iloc[:, at], dtype=np.float32)


def _intensities(table: AnnData) -> list[str]:
    if isinstance(table.obsm.get("mean_intensity"), pd.DataFrame):
        return ["mean_intensity"]
    return ["X"] if table.X is not None and table.n_vars else []


def _unit(key: str, values: np.ndarray) -> np.ndarray:
    """Units as `tl.fit_classifier` takes them."""
    unit = np.zeros(values.shape[1], np.float32)
    if key in INTENSITIES and not (values < 0).any():
        for i, column in enumerate(values.T):
            lit = column[np.isfinite(column) & (column > 0)]
            unit[i] = np.median(lit) if len(lit) else 0.0
    return unit


def _values(table: AnnData, key: str) -> np.ndarray:
    values: Any
    if key == "X" and table.X is not None and table.n_vars:
        values = table.X
    elif key in table.obsm:
        values = table.obsm[key]
    elif key in table.obs and pd.api.types.is_numeric_dtype(table.obs[key]):
        values = table.obs[[key]].to_numpy()
    else:
        numeric = [str(c) for c in table.obs if pd.api.types.is_numeric_dtype(table.obs[c])]
        msg = f"No numbers under {key!r}. Available: {['X'] * bool(table.n_vars) + sorted(map(str, table.obsm))}, and in `obs`: {numeric}."
        raise KeyError(msg)
    if hasattr(values, "to_memory"):  # a table that is backed by its file
        values = values.to_memory()
    try:
        array = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{key!r} does not hold numbers: {error}."
        raise ValueError(msg) from error
    if array.ndim != 2:
        msg = f"{key!r} must be [cells, numbers], got shape {array.shape}."
        raise ValueError(msg)
    return array
