"""Labels of a session as files: CSV, GeoJSON for QuPath, and images in the colours of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cytonym.data.checks import require_key
from cytonym.data.files import replaced, require_place
from cytonym.label.record import columns
from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from pathlib import Path

    from cytonym.label.session import Session

UNNAMED = (50, 50, 50)
"""Colour of cells without a class, as in PatchSorter."""
ROWS_PX = 512  # read at a time
DISC_PX = 5.0
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a text begins that a spreadsheet carries out."""


def write_csv(session: Session, path: Path, *, raw: bool, overwrite: bool) -> Path:
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
    if not raw:
        texts = frame.select_dtypes(exclude="number")
        frame = frame.assign(**{str(name): texts[name].map(_no_formula) for name in texts})
    with replaced(path) as beside:
        frame.to_csv(beside, index=False, encoding="utf-8")
    return path


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def write_geojson(session: Session, path: Path, *, image_key: str | None, overwrite: bool) -> Path:
    """See `Session.export_geojson`."""
    images = _images(session)
    if image_key is None and len(images) > 1:
        msg = (
            f"A GeoJSON file belongs to one image, but there are {len(images)}: {images}. Choose one with `image_key`."
        )
        raise ValueError(msg)
    image = images[0] if image_key is None else image_key
    require_key(image, images, "image", "session.sources")
    return _write_image(session, path, image, columns(session)["label"], overwrite=overwrite)


def write_geojsons(session: Session, folder: Path) -> list[Path]:
    """A file for each image in which there are cells of the table, in a folder of their own."""
    require_place(folder, overwrite=True)
    pairs = zip(session.sources, session.source_rows, strict=True)
    images = list(dict.fromkeys(s.image_key for s, rows in pairs if (s.inside & (rows >= 0)).any()))
    labels = columns(session)["label"]
    folder.mkdir(exist_ok=True)
    targets = [folder / f"{name}.geojson" for name in _file_names(images)]
    return [
        _write_image(session, path, image, labels, overwrite=False) for image, path in zip(images, targets, strict=True)
    ]


def _images(session: Session) -> list[str]:
    if session.sdata is None or not session.sources:
        msg = "There are no images, so there is nothing that QuPath could show. `export_csv` writes the labels."
        raise ValueError(msg)
    return list(dict.fromkeys(source.image_key for source in session.sources))


def _write_image(session: Session, path: Path, image: str, labels: pd.Series, *, overwrite: bool) -> Path:
    """The cells of one image, from an object that has nothing else."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    from cytonym import io

    assert session.sdata is not None
    sources = [source for source in session.sources if source.image_key == image]
    attrs = session.table.uns["spatialdata_attrs"]
    region, instance = attrs["region_key"], attrs["instance_key"]
    here = session.table.obs[region].isin([source.region for source in sources])
    obs = pd.DataFrame({name: session.table.obs.loc[here, name] for name in (region, instance)})
    obs[region] = pd.Categorical(obs[region].astype(str))
    table = AnnData(obs=obs.assign(label=labels[here]))
    table = TableModel.parse(table, region=list(obs[region].cat.categories), region_key=region, instance_key=instance)
    elements: dict[str, Any] = {"images": {image: session.sdata.images[image]}}
    for source in sources:
        elements.setdefault(source.kind, {})[source.region] = getattr(session.sdata, source.kind)[source.region]
    return io.write_geojson(
        SpatialData(**elements, tables={session.table_key: table}), path, table_key=session.table_key, classes="label",
        colors={c.name: c.color for c in session.classes}, coordinate_system=session.keys["coordinate_system"], overwrite=overwrite,
    )  # fmt: skip


def write_masks(session: Session, folder: Path, *, overwrite: bool) -> list[Path]:
    """See `Session.export_masks`."""
    import tifffile

    from cytonym.data.cell_masks import CellMasks

    if not session.sources:
        msg = "There are no images, so there is nothing to draw. `export_csv` writes the labels."
        raise ValueError(msg)
    targets = [folder / f"{name}.tif" for name in _file_names([source.region for source in session.sources])]
    require_place(folder, overwrite=True)
    folder.mkdir(exist_ok=True)
    for path in targets:
        require_place(path, overwrite=overwrite)
    with session.lock:
        colors, codes = _colors(session), session.labels()
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


def _file_names(names: list[str]) -> list[str]:
    """Names of files for names of anything, each another one."""
    found = ["".join(c if c.isalnum() or c in "-_." else "_" for c in name) or "tissue" for name in names]
    return [name if found.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(found)]
