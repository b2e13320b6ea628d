"""Labels of a session as files: CSV, GeoJSON for QuPath, and images in the colours of the classes."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.label.record import columns
from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cytonym.label.session import Session

UNNAMED = (50, 50, 50)
"""Colour of cells without a class, as in PatchSorter."""
ROWS_PX = 512  # read at a time
DISC_PX = 5.0


def write_csv(session: Session, path: Path, *, overwrite: bool) -> Path:
    """See `Session.export_csv`."""
    require_place(path, overwrite=overwrite)
    found = columns(session)
    frame = pd.DataFrame({"cell": session.table.obs_names.to_numpy(dtype=object)})
    index = session.state.index
    frame["region"] = np.array(index.names, dtype=object)[index.region_codes]
    frame["instance_id"] = index.instances
    for name, column in found.items():
        frame[name] = column.to_numpy(dtype=object)
    place = session.maps.places()
    if place is not None:
        frame["x"], frame["y"] = place.T
    frame = frame[frame[["label", "mark", "note"]].notna().any(axis=1)]
    with replaced(path) as beside:
        frame.to_csv(beside, index=False, encoding="utf-8")
    return path


def write_geojson(session: Session, path: Path, *, image_key: str | None, overwrite: bool) -> Path:
    """See `Session.export_geojson`."""
    from spatialdata import SpatialData

    from cytonym import io

    if session.sdata is None or not session.sources:
        msg = "There are no images, so there is nothing that QuPath could show. `export_csv` writes the labels."
        raise ValueError(msg)
    table = session.table.copy() if session.table.n_obs else session.table
    table.obs["label"] = columns(session)["label"]
    sdata = session.sdata
    elements: dict[str, Any] = {
        kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "shapes", "points") if getattr(sdata, kind)
    }
    beside = SpatialData(**elements, tables={session.table_key: table})
    keys = {name: value for name, value in session.keys.items() if name not in ("channels", "image_key")}
    return io.write_geojson(
        beside,
        path,
        image_key=image_key if image_key is not None else session.keys["image_key"],
        table_key=session.table_key,
        classes="label",
        colors={c.name: c.color for c in session.classes},
        overwrite=overwrite,
        **keys,
    )


def write_masks(session: Session, folder: Path, *, overwrite: bool) -> list[Path]:
    """See `Session.export_masks`."""
    import tifffile

    from cytonym.data.cell_masks import CellMasks

    if not session.sources:
        msg = "There are no images, so there is nothing to draw. `export_csv` writes the labels."
        raise ValueError(msg)
    names = [_file_name(source.region) for source in session.sources]
    names = [name if names.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(names)]
    targets = [folder / f"{name}.tif" for name in names]
    require_place(folder, overwrite=True)
    folder.mkdir(exist_ok=True)
    for path in targets:
        require_place(path, overwrite=overwrite)
    colors = _colors(session)
    codes = session.labels()
    for source, rows, path in zip(session.sources, session.source_rows, targets, strict=True):
        of_cell = np.where(rows >= 0, codes[rows], UNLABELLED).astype(np.int64)
        masks = CellMasks(source, DISC_PX)
        _, height, width = source.shape

        def strips(masks: CellMasks = masks, of_cell: np.ndarray = of_cell, h: int = height, w: int = width) -> Any:
            for y in range(0, h, ROWS_PX):
                cells = masks.read(y, min(y + ROWS_PX, h), 0, w)
                shown = np.zeros((*cells.shape, 3), np.uint8)
                inside = cells >= 0
                shown[inside] = colors[np.maximum(of_cell[cells[inside]], UNLABELLED)]
                yield shown

        with replaced(path) as beside:
            tifffile.imwrite(
                beside, strips(), shape=(height, width, 3), dtype=np.uint8, photometric="rgb", compression="zlib",
                rowsperstrip=ROWS_PX, metadata=None,
            )  # fmt: skip
    return targets


def _colors(session: Session) -> np.ndarray:
    """u1 [classes + 1, 3]; the last one, at -1, for cells without a class."""
    found = np.tile(np.array(UNNAMED, np.uint8), (max([c.id for c in session.classes], default=-1) + 2, 1))
    for c in session.classes:
        found[c.id] = [int(c.color[i : i + 2], 16) for i in (1, 3, 5)]
    return found


def _file_name(region: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in region) or "tissue"


def require_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there, or a folder that is not.

    Raises
    ------
    FileExistsError, FileNotFoundError
    """
    if not path.parent.is_dir():
        msg = f"No folder {str(path.parent)!r} to write {path.name!r} into. Make it first."
        raise FileNotFoundError(msg)
    if path.exists() and not overwrite:
        msg = f"{path} exists. Choose another name, or replace it with overwrite=True."
        raise FileExistsError(msg)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A name beside the target that takes its place when all is written and flushed to disk."""
    beside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield beside
        descriptor = os.open(beside, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
