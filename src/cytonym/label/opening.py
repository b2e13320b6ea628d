"""What a labelling session works on: a table, its cells, and the images that they are in."""

from __future__ import annotations

import getpass
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from cytonym.data.checks import require_key
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.label.cells import CellIndex

if TYPE_CHECKING:
    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows

logger = logging.getLogger("cytonym")

ENDING = ".labels.jsonl"


@dataclass(frozen=True, eq=False)
class Opened:
    """A table and, where there are images, its cells in them."""

    sdata: SpatialData | None
    table: AnnData
    sources: list[CellSource]
    rows: list[np.ndarray]
    """Of each source, the table's row of each of its cells, -1 for cells that the table lacks."""
    joined: TableRows | None
    index: CellIndex
    title: str


def open_cells(data: Any, *, table_key: str, **keys: Any) -> Opened:
    """The table and the cells of an object.

    Raises
    ------
    TypeError
        It is neither a SpatialData nor an AnnData object.
    KeyError, ValueError
        A key is unknown, the answer is not unique, or there are no cells.
    """
    if isinstance(data, AnnData):
        return Opened(None, data, [], [], None, cell_index(data), "table")
    if not isinstance(data, SpatialData):
        msg = (
            f"`sdata` must be a SpatialData object, or an AnnData object to label by its map alone, got {type(data).__name__}. "
            "Open a store with spatialdata.read_zarr('tissue.zarr')."
        )
        raise TypeError(msg)
    title = Path(str(data.path)).stem if data.is_backed() else "tissue"
    if not data.images:
        given = [name for name in ("image_key", "channels") if keys.get(name) is not None]
        if given:
            msg = f"There are no images in `sdata`, so {given} cannot be chosen."
            raise KeyError(msg)
        require_key(table_key, data.tables, "table", "sdata.tables")
        logger.info("There are no images: cells are labelled by the map alone.")
        return Opened(data, data.tables[table_key], [], [], None, cell_index(data.tables[table_key]), title)
    sources = resolve(data, table_key=table_key, **keys)
    joined = open_table(data, sources, table_key)
    return Opened(data, joined.table, sources, joined.rows, joined, cell_index(joined.table), title)


def cell_index(table: AnnData) -> CellIndex:
    """Cells of a table by region and id, or by name where the table annotates nothing.

    Raises
    ------
    ValueError
        There are no cells, or two have the same name.
    """
    if not table.n_obs:
        msg = "The table has no cells to label."
        raise ValueError(msg)
    attrs = table.uns.get("spatialdata_attrs") or {}
    region, instance = attrs.get("region_key"), attrs.get("instance_key")
    if region in table.obs and instance in table.obs:
        return CellIndex(table.obs[region].astype(str).to_numpy(), table.obs[instance].to_numpy())
    return CellIndex([""] * table.n_obs, table.obs_names.to_numpy(dtype=object))


def same_cells(index: CellIndex, table: AnnData) -> bool:
    """Whether the rows of a table are those of an index, in its order: region and id count, not names of rows."""
    if table.n_obs != index.n:
        return False
    now = cell_index(table)
    return (
        now.names == index.names
        and np.array_equal(now.region_codes, index.region_codes)
        and np.array_equal(now.instances, index.instances)
    )


def log_of(data: SpatialData | AnnData, log: str | Path | None) -> Path | None:
    """Where the log is: the place that is given, else beside the store; None where there is no store.

    Raises
    ------
    FileNotFoundError
        Its folder does not exist.
    ValueError
        It is a folder.
    """
    if log is None:
        store = data.path if isinstance(data, SpatialData) else data.filename
        if store is None:
            logger.warning(
                "The object has no store on disk, so labels are kept in memory only. `log='labels.jsonl'` keeps them on disk."
            )
            return None
        place = Path(str(store)).resolve()  # one log, whatever links lead to the store
        return place.with_name(f"{place.name}{ENDING}")
    path = Path(log).absolute()
    if path.is_dir():
        msg = f"`log` must be a file, but {path} is a folder."
        raise ValueError(msg)
    if not path.parent.is_dir():
        msg = f"No folder {str(path.parent)!r} for the log {path.name!r}. Make it first."
        raise FileNotFoundError(msg)
    return path


def current_user() -> str:
    """Name of whoever is logged in."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without users
        return "annotator"
