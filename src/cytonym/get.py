"""Views of an AnnData for scanpy's functions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from cytonym.data.names import with_marker_names

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["markers"]

logger = logging.getLogger("cytonym")


def markers(adata: AnnData, key: str | None = None) -> AnnData:
    """Cells x markers as an AnnData of its own, for any scanpy function that plots or tests variables.

    Parameters
    ----------
    adata
        Table with marker numbers in `obsm`.
    key
        A DataFrame of `adata.obsm` with one column a marker, such as `"nextmarker_attributions"`. May be left out
        where the table has one such DataFrame only.

    Returns
    -------
    AnnData [cells, markers]
        `X` are the numbers (float32) and `var_names` the markers, also those with a `/` in their name, which no column
        of a stored DataFrame may have. `obs`, `obsm`, `obsp` and `uns` are those of `adata`,
        so clusters, a UMAP and colours are there; only columns of `obs` that are called like a marker are left out, as scanpy
        could not tell which of the two is meant. What is written to the result does not reach `adata`.

    Raises
    ------
    KeyError
        `key` is not in `adata.obsm`.
    ValueError
        `key` was left out and is not unique.
    TypeError
        `key` names an array without marker names, or a DataFrame with columns that are not numbers.

    Examples
    --------
    >>> import numpy as np, pandas as pd, anndata as ad
    >>> import cytonym as cy
    >>> adata = ad.AnnData(obs=pd.DataFrame({"phenograph": ["0", "1"]}, index=["a", "b"]))
    >>> adata.obsm["nextmarker_attributions"] = pd.DataFrame({"CD8": [0.0, 2.0], "CD20": [1.0, 0.0]}, index=["a", "b"])
    >>> cy.get.markers(adata)["b", "CD8"].X
    ArrayView([[2.]], dtype=float32)
    """
    frame = marker_frame(adata, key)
    names = pd.Index(frame.columns.astype(str))
    twice = [column for column in adata.obs if str(column) in names]
    if twice:
        logger.info("Columns of `obs` that are called like markers are left out of the result: %s.", twice)
    view = AnnData(
        X=frame.to_numpy(np.float32),
        obs=adata.obs.drop(columns=twice),
        var=pd.DataFrame(index=names),
        obsm=dict(adata.obsm),
        obsp=dict(adata.obsp),
    )
    view.uns.update(adata.uns)
    return view.copy()  # it may be scaled in place, and its columns and nested entries be written to


def marker_frame(adata: AnnData, key: str | None = None) -> pd.DataFrame:
    """The DataFrame behind `markers`, not copied, checked: one numeric column a marker, under the marker's own name."""
    frames = [k for k, v in adata.obsm.items() if isinstance(v, pd.DataFrame)]
    if key is None:
        if len(frames) != 1:
            found = f"has several: {_listed(frames)}" if frames else "has none"
            msg = f"`key` was left out, but it must name the one DataFrame of `adata.obsm` to show, which {found}."
            raise ValueError(msg)
        key = frames[0]
    if key not in adata.obsm:
        msg = f"No {key!r} in `adata.obsm`. DataFrames there: {_listed(frames)}. `tl.embed_cells` writes one."
        raise KeyError(msg)
    frame = adata.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        msg = (
            f"`adata.obsm[{key!r}]` is an array without marker names; a DataFrame with one column a marker is needed. "
            f"DataFrames in `adata.obsm`: {_listed(frames)}."
        )
        raise TypeError(msg)
    text = [str(c) for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    if text:
        msg = f"Columns of `adata.obsm[{key!r}]` that are not numbers: {_listed(text)}."
        raise TypeError(msg)
    return with_marker_names(frame, key, adata.uns)


def labels_of(adata: AnnData, key: str) -> pd.Series:
    """A column of `obs` as a categorical of strings: categories in their order, or sorted (numbers as numbers)."""
    if key not in adata.obs:
        msg = f"No column {key!r} in `adata.obs`. Available: {sorted(map(str, adata.obs.columns))}."
        raise KeyError(msg)
    column = adata.obs[key]
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.rename_categories([str(c) for c in column.cat.categories])
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")  # whole numbers that were read beside missing ones
    names = column.astype(object).where(column.notna(), None).map(str, na_action="ignore")
    found = [n for n in names.unique() if n is not None and n == n]
    return pd.Series(pd.Categorical(names, categories=sorted(found, key=_natural)), index=column.index, name=key)


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _listed(names: Iterable[str]) -> str:
    return str(sorted(names))
