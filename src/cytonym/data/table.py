"""Rows of a table for the cells of the sources, joined by (region, instance) and never by order."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from cytonym.data.names import require_name, with_storable_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

REGION_KEY = "region"
INSTANCE_KEY = "instance_id"


@dataclass(frozen=True, eq=False)
class TableRows:
    """A table, and where in it the cells of the sources are."""

    sdata: SpatialData
    table_key: str
    table: AnnData
    """The table of `sdata`, or a new one that is not yet part of it."""
    rows: list[np.ndarray]
    """Of each source, the table's row of each of its cells [N], -1 for cells that the table lacks."""
    spatial: np.ndarray
    """f8 [n_obs, 2] centres (x, y) in the coordinate system; NaN for rows of other regions."""

    def reserve(self, key_added: str, keys: Sequence[str], *, inplace: bool = True) -> None:
        """Refuse, before the work, results that could not be stored or would erase those of other images.

        Parameters
        ----------
        key_added
            Name that the results are derived from.
        keys
            Keys of `obsm` that will be written.
        inplace
            As in `write`; a copy erases nothing.

        Raises
        ------
        ValueError
            A store would not take the name, or rows that are not of the sources have values under one of the keys.
        """
        require_name(key_added, "key_added")
        others = np.ones(self.table.n_obs, dtype=bool)
        for at in self.rows:
            others[at[at >= 0]] = False
        for key in keys if inplace else ():
            if key not in self.table.obsm:
                continue
            stored = self.table.obsm[key][others]
            values = stored.to_numpy() if isinstance(stored, pd.DataFrame) else np.asarray(stored)
            lost = int((~np.isnan(values.astype(np.float32))).any(axis=1).sum())
            if lost:
                msg = (
                    f"`obsm[{key!r}]` of table {self.table_key!r} has values for {lost:,} cells that are not among those of this call, "
                    "and would lose them. Read all images in one call, give another `key_added`, or delete what is there first."
                )
                raise ValueError(msg)

    def write(
        self,
        *,
        obs: Mapping[str, Any] | None = None,
        obsm: Mapping[str, Any] | None = None,
        uns: Mapping[str, Any] | None = None,
        inplace: bool = True,
    ) -> AnnData:
        """Put results into the table, all of them or none.

        Parameters
        ----------
        obs, obsm
            Values for every row of `table`, in its order; a Series or DataFrame must have its index. Columns of a
            DataFrame in `obsm` get names that a store accepts, see `data.names`.
        uns
            Plain entries.
        inplace
            Write into the table and make sure it is part of `sdata`; else into a copy.

        Returns
        -------
        The annotated table: that of `sdata`, or the copy. Cells of the sources without a place in `obsm["spatial"]` get one.

        Raises
        ------
        ValueError
            A value has another number of rows than the table, or another index. Nothing is written then.
        """
        for key, value in [*(obs or {}).items(), *(obsm or {}).items()]:
            if len(value) != self.table.n_obs:
                msg = f"{key!r} has {len(value)} rows, but the table has {self.table.n_obs}."
                raise ValueError(msg)
            if isinstance(value, (pd.Series, pd.DataFrame)) and not value.index.equals(self.table.obs_names):
                msg = f"{key!r} has another index than the table: {list(value.index[:3])}… against {list(self.table.obs_names[:3])}…"
                raise ValueError(msg)
        view = self.table.is_view  # writing into a view would copy it with a warning
        target = self.table if inplace and not view else self.table.copy()
        target.obsm["spatial"] = self.places(target.obsm.get("spatial"))
        for key, value in (obs or {}).items():
            target.obs[key] = value
        for key, value in (uns or {}).items():
            target.uns[key] = value
        for key, value in (obsm or {}).items():
            frame = isinstance(value, pd.DataFrame)
            target.obsm[key] = with_storable_columns(value, key, target.uns) if frame else value
        if inplace and (view or self.table_key not in self.sdata.tables):
            attach(self.sdata, self.table_key, target)
        return target

    def places(self, known: Any) -> Any:
        """Centres for `obsm["spatial"]`: those that are known stay, cells of the sources without one get theirs."""
        if known is None:
            return self.spatial
        if not isinstance(known, np.ndarray) or known.dtype.kind != "f" or known.shape != self.spatial.shape:
            return known
        return np.where(np.isnan(known).all(axis=1, keepdims=True), self.spatial, known)


def open_table(sdata: SpatialData, sources: Sequence[CellSource], table_key: str = "table") -> TableRows:
    """The table that annotates the cells of the sources, or a new one.

    Parameters
    ----------
    sdata
        Object whose table it is.
    sources
        Cells, one source an image.
    table_key
        Name of the table. One that exists is used as it is, with its own region and instance columns and whatever other rows
        it has. A new one has a row for each cell, columns "region" and "instance_id" and no variables.

    Returns
    -------
    TableRows

    Raises
    ------
    KeyError
        There is no such table, but another one annotates these cells.
    ValueError
        The table annotates no elements or others, has none of the cells, or one of them twice.
    """
    if table_key not in sdata.tables:
        others = annotating(sdata, [source.region for source in sources])
        if others:
            msg = (
                f"No table {table_key!r} in `sdata.tables`, but {others} annotate these cells: choose with `table_key`."
            )
            raise KeyError(msg)
        table = _new_table(sources)
        ends = np.cumsum([0, *(len(source.instance_ids) for source in sources)])
        rows = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    else:
        table = sdata.tables[table_key]
        rows = [_join(table, table_key, source) for source in sources]
        for source, at in zip(sources, rows, strict=True):
            if (at < 0).any():
                logger.info(
                    "Table %r has no row for %s of the %s cells of %r; they are left out.",
                    table_key, f"{(at < 0).sum():,}", f"{len(at):,}", source.region,
                )  # fmt: skip
    spatial = np.full((table.n_obs, 2), np.nan)
    for source, at in zip(sources, rows, strict=True):
        spatial[at[at >= 0]] = source.spatial[at >= 0]
    return TableRows(sdata, table_key, table, rows, spatial)


def attach(sdata: SpatialData, table_key: str, table: AnnData) -> None:
    """Put a table into `sdata`, in place of the one of that name.

    Raises
    ------
    ValueError
        The table is none that `sdata` takes; the one that is there stays.
    """
    TableModel().validate(table)
    if table_key in sdata.tables:
        del sdata.tables[table_key]
    sdata.tables[table_key] = table


def annotating(sdata: SpatialData, regions: Iterable[str]) -> list[str]:
    """Names of the tables that annotate one of some elements."""
    return [name for name, table in sdata.tables.items() if set(regions) & set(_regions(table))]


def _regions(table: AnnData) -> list[str]:
    regions = table.uns.get("spatialdata_attrs", {}).get("region") or []
    return [str(r) for r in ([regions] if isinstance(regions, str) else regions)]


def _join(table: AnnData, table_key: str, source: CellSource) -> np.ndarray:
    annotated = _regions(table)
    if source.region not in annotated:
        found = f"annotates {annotated}" if annotated else "annotates no element (no `spatialdata_attrs`)"
        msg = (
            f"Table {table_key!r} {found}, not {source.region!r}. Give the cells that it annotates, or another "
            "`table_key`: a name that is not taken makes a new table."
        )
        raise ValueError(msg)
    attrs = table.uns["spatialdata_attrs"]
    here = np.flatnonzero(table.obs[attrs["region_key"]].astype(str).to_numpy() == source.region)
    ids = pd.Index(table.obs[attrs["instance_key"]].to_numpy()[here])
    if ids.has_duplicates:
        twice = ids[ids.duplicated()].unique()[:5].tolist()
        msg = f"Table {table_key!r} has cells of {source.region!r} more than once: {twice}."
        raise ValueError(msg)
    position = ids.get_indexer(pd.Index(source.instance_ids))
    if len(ids) and (position < 0).all():
        msg = (
            f"Table {table_key!r} and element {source.region!r} have no cell in common: ids {ids[:3].tolist()}… "
            f"({ids.dtype}) against {source.instance_ids[:3].tolist()}… ({source.instance_ids.dtype})."
        )
        raise ValueError(msg)
    return np.where(position >= 0, here[position] if len(here) else -1, -1)


def _new_table(sources: Sequence[CellSource]) -> AnnData:
    regions = [source.region for source in sources]
    if len(set(regions)) < len(regions):
        msg = f"Each image needs its own cells, but elements repeat: {regions}."
        raise ValueError(msg)
    region = np.repeat(regions, [len(source.instance_ids) for source in sources])
    instance = np.concatenate([source.instance_ids for source in sources])
    if instance.dtype.kind in "iu" and (instance <= np.iinfo(np.int64).max).all():
        instance = instance.astype(np.int64)  # spatialdata allows no 8-bit ids
    obs = pd.DataFrame(
        {REGION_KEY: pd.Categorical(region, categories=regions), INSTANCE_KEY: instance},
        index=[f"{r}_{i}" for r, i in zip(region, instance, strict=True)],
    )
    table = AnnData(obs=obs)
    return TableModel.parse(table, region=regions, region_key=REGION_KEY, instance_key=INSTANCE_KEY)
