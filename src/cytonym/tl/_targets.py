"""Labels of cells as targets of a classifier, checked."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym.get import labels_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("cytonym")


@dataclass(frozen=True)
class Targets:
    """Known classes of the cells of a table."""

    classes: tuple[str, ...]
    values: np.ndarray
    """Class numbers [n_obs], -1 where unknown; or 0/1 for each class [n_obs, K], -1 where unknown."""
    multilabel: bool
    key: str | tuple[str, ...]

    @property
    def known(self) -> np.ndarray:
        """Rows with a label."""
        return np.flatnonzero((self.values >= 0).reshape(len(self.values), -1).all(axis=1))

    def strata(self, rows: np.ndarray) -> np.ndarray:
        """A class for each of some rows by which they are shared out: with several labels, the rarest of them."""
        values = self.values[rows]
        if not self.multilabel:
            return values
        order = np.argsort(values.sum(axis=0), kind="stable")
        return np.where(values.any(axis=1), order[values[:, order].argmax(axis=1)], len(self.classes))

    def one_hot(self, rows: np.ndarray) -> np.ndarray:
        """0/1 [n, K] of labelled rows."""
        values = self.values[rows]
        return values if self.multilabel else np.eye(len(self.classes), dtype=np.int64)[values]


def read_targets(adata: AnnData, label_key: str | Sequence[str], *, multilabel: bool = False) -> Targets:
    """Labels of a column of `obs`, or 0/1 columns of `obs` or of a DataFrame in `obsm`.

    Raises
    ------
    KeyError
        A column is not there.
    ValueError
        Fewer than two classes, no label at all, or values other than 0, 1 and missing in a multi-label column.
    """
    if multilabel or not isinstance(label_key, str):
        return _several(adata, label_key)
    labels = known_labels(adata, label_key).cat.remove_unused_categories()
    names = [str(c) for c in labels.cat.categories]
    if len(names) < 2:
        found = f"only the class {names[0]!r}" if names else "no label"
        msg = f"`obs[{label_key!r}]` has {found} in {adata.n_obs:,} cells; at least two classes are needed to tell cells apart."
        raise ValueError(msg)
    variants = alike(names)
    if variants:
        msg = f"Classes of `obs[{label_key!r}]` that differ by case, spaces or signs only, taken as different: {variants}. Typos?"
        warnings.warn(msg, UserWarning, stacklevel=3)
    values = labels.cat.codes.to_numpy().astype(np.int64)
    counts = np.bincount(values[values >= 0], minlength=len(names))
    single = [n for n, c in zip(names, counts, strict=True) if c == 1]
    if single:
        msg = (
            f"Classes with a single labelled cell: {single}. They are learned, but nothing can be said about how well."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return Targets(tuple(names), values, multilabel=False, key=label_key)


def known_labels(adata: AnnData, key: str) -> pd.Series:
    """A column of labels as a categorical of strings; blanks are no labels."""
    labels = labels_of(adata, key)
    return labels.cat.remove_categories([c for c in labels.cat.categories if not c.strip()])


def _several(adata: AnnData, key: str | Sequence[str]) -> Targets:
    if isinstance(key, str):
        if key not in adata.obsm or not isinstance(adata.obsm[key], pd.DataFrame):
            frames = [k for k, v in adata.obsm.items() if isinstance(v, pd.DataFrame)]
            msg = f"No DataFrame {key!r} in `adata.obsm` with a 0/1 column for each class. Available: {frames}; or give a list of columns of `obs`."
            raise KeyError(msg)
        frame = adata.obsm[key]
    else:
        lacking = [c for c in key if c not in adata.obs]
        if lacking or not key:
            msg = f"No columns {lacking} in `adata.obs`. Available: {sorted(map(str, adata.obs.columns))}."
            raise KeyError(msg)
        frame = adata.obs[list(key)]
    names = tuple(map(str, frame.columns))
    values = np.full(frame.shape, -1, dtype=np.int64)
    for i, name in enumerate(names):
        column = frame.iloc[:, i]
        numbers = pd.to_numeric(column.astype(object).where(column.notna(), None), errors="coerce").to_numpy(
            dtype=float
        )
        given = column.notna().to_numpy()
        wrong = given & ~np.isin(numbers, (0, 1))
        if wrong.any():
            found = sorted(set(column[wrong].astype(str)))[:5]
            msg = f"Column {name!r} of the multi-label classes must hold 0, 1 or nothing, found {found} in {wrong.sum():,} cells."
            raise ValueError(msg)
        values[given, i] = numbers[given].astype(np.int64)
    known = (values >= 0).all(axis=1)
    flat = [n for n, c in zip(names, values[known].T, strict=True) if not len(c) or c.min() == c.max()]
    if not known.any() or flat:
        msg = f"Each class needs cells with 1 and cells with 0 among the {known.sum():,} cells with all labels; not so: {flat}."
        raise ValueError(msg)
    return Targets(names, values, multilabel=True, key=key if isinstance(key, str) else tuple(key))


def alike(names: Sequence[str]) -> list[list[str]]:
    """Names that are the same but for case, spaces, dashes and underscores.

    Examples
    --------
    >>> alike(["B cell", "b-cell", "T cell", "Treg"])
    [['B cell', 'b-cell']]
    """
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault("".join(name.casefold().replace("-", " ").replace("_", " ").split()), []).append(name)
    return [group for group in same.values() if len(group) > 1]


def image_column(adata: AnnData, rows: np.ndarray) -> str | None:
    """The column that names the image of each cell; None where some rows are of one image, or the table does not say."""
    key = str(adata.uns.get("spatialdata_attrs", {}).get("region_key", ""))
    return key if key in adata.obs and adata.obs[key].iloc[rows].nunique() >= 2 else None


def read_groups(adata: AnnData, groups: str | None, rows: np.ndarray) -> tuple[str | None, np.ndarray | None]:
    """Patient of each of some labelled cells, and the column that says it; images stand for patients where none is named.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        It is empty for a labelled cell, or all labelled cells are of one patient.
    """
    key = groups
    if key is None:
        key = image_column(adata, rows)
        if key is None:
            logger.info(
                "All labelled cells are of one image: how well they are classified says little about other patients."
            )
            return None, None
        logger.info("Images stand for patients: none is in two folds. `groups` names a column with the patients.")
    if key not in adata.obs:
        msg = f"No column {key!r} in `adata.obs` to group by. Available: {sorted(map(str, adata.obs.columns))}."
        raise KeyError(msg)
    column = adata.obs[key].iloc[rows]
    if column.isna().any():
        msg = (
            f"`obs[{key!r}]` is empty for {int(column.isna().sum()):,} of {len(rows):,} labelled cells: whose are they?"
        )
        raise ValueError(msg)
    values = column.astype(str).to_numpy()
    if len(np.unique(values)) < 2:
        msg = (
            f"All {len(rows):,} labelled cells are of one group, {values[0]!r} in `obs[{key!r}]`: no patient is left to evaluate on. "
            "Label cells of another one, or leave `groups` out to judge within one image."
        )
        raise ValueError(msg)
    return key, values
