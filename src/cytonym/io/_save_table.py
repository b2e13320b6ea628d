"""Replace a table on disk so that no crash can lose it."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import logging
import os
import shutil
import sys
import uuid
import warnings
from pathlib import Path

import zarr
from spatialdata import SpatialData

from cytonym.data.checks import require_key
from cytonym.data.locks import locked_store

logger = logging.getLogger("cytonym")

WORKSHOP = ".cytonym-"  # folders inside a store in which a new table is built; readers pass over them


def save_table(sdata: SpatialData, table_key: str = "table") -> None:
    """Write a table of an object to its store on disk, replacing the one that is there.

    The new table is written beside the old one, flushed to disk and exchanged with it in one step of the file system. A
    crash, a kill or a full disk at any moment leaves either the old table or the new one, complete. Of several processes that
    save tables of one store, each waits for the one before it.

    Parameters
    ----------
    sdata
        Object that was read from a store, or written to one.
    table_key
        Table to write.

    Raises
    ------
    KeyError
        `sdata` has no such table.
    ValueError
        `sdata` has no store, or one of Zarr format 2.
    OSError
        The disk is full or read-only. The old table is intact.

    Examples
    --------
    >>> import tempfile
    >>> import spatialdata as sd
    >>> import cytonym as cy
    >>> path = f"{tempfile.mkdtemp()}/tissue.zarr"
    >>> cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0).write(path)
    >>> sdata = sd.read_zarr(path)
    >>> sdata["table"].obs["seen"] = True
    >>> cy.io.save_table(sdata)
    >>> bool(sd.read_zarr(path)["table"].obs["seen"].all())
    True
    """
    require_key(table_key, sdata.tables, "table", "sdata.tables")
    if not sdata.is_backed():
        msg = "`sdata` has no store on disk. Write it first: sdata.write('tissue.zarr')."
        raise ValueError(msg)
    store = Path(str(sdata.path))
    if not (store / "zarr.json").exists():
        msg = f"{store} is a store of Zarr format 2. Write the object to a new store: sdata.write('new.zarr')."
        raise ValueError(msg)
    with locked_store(store) as alone:
        if alone:
            for left in store.glob(f"{WORKSHOP}*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        _replace(sdata, table_key, store)


def _replace(sdata: SpatialData, table_key: str, store: Path) -> None:
    """Build the table in a folder of its own, and put it in its place."""
    workshop = store / f"{WORKSHOP}{uuid.uuid4().hex}"
    try:
        workshop.mkdir()
        new = _write(sdata, table_key, workshop)
        _forget_consolidated(store)  # it would describe the old table; readers do without
        zarr.open_group(store, mode="a", use_consolidated=False).require_group("tables")
        _put_in_place(new, store / "tables" / table_key)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    sdata.write_consolidated_metadata()


def _write(sdata: SpatialData, table_key: str, workshop: Path) -> Path:
    """The table in a store of its own, flushed to disk."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*annotat", category=UserWarning)  # its elements are not here
        warnings.filterwarnings("ignore", message=".*autosharding", category=UserWarning)
        alone = SpatialData(tables={table_key: sdata.tables[table_key]})
        alone.write(workshop / "new.zarr", consolidate_metadata=False)
    new = workshop / "new.zarr" / "tables" / table_key
    for path in [*new.rglob("*"), new]:
        _flush(path)
    return new


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forget_consolidated(store: Path) -> None:
    """Drop the consolidated metadata of the root, which names each array of each table and its shape."""
    root = store / "zarr.json"
    metadata = json.loads(root.read_text())
    if metadata.pop("consolidated_metadata", None) is not None:
        lean = store / f"{WORKSHOP}zarr.json"
        lean.write_text(json.dumps(metadata, indent=2))
        _flush(lean)
        lean.replace(root)


def _put_in_place(new: Path, place: Path) -> None:
    """Move a finished table to its place; the old one, if any, ends up where the new one was."""
    if not place.exists():
        new.rename(place)
    elif not _exchange(new, place):
        # Two steps where the file system knows no exchange. Between them the new table stands complete beside its place,
        # where a reader finds it.
        beside = place.with_name(f"{place.name}_new")
        new.rename(beside)
        place.rename(new)
        beside.rename(place)
    _flush(place.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step of the file system; False where it cannot."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True) if os.name == "posix" else None
    first, second = os.fsencode(a), os.fsencode(b)
    if sys.platform.startswith("linux") and hasattr(library, "renameat2"):
        at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return library.renameat2(at_cwd, first, at_cwd, second, exchange) == 0  # type: ignore[union-attr]
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        swap = 2  # RENAME_SWAP
        return library.renamex_np(first, second, swap) == 0  # type: ignore[union-attr]
    return False
