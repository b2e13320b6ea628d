"""Classes that an expert gave to cells in QuPath, into the table."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cytonym.data.table import open_table
from cytonym.get import labels_of
from cytonym.io._geojson import sources_of_one_image
from cytonym.io._match_cells import Cells
from cytonym.io._parse_geojson import parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.data.table import TableRows
    from cytonym.io._parse_geojson import Contents, Drawn

logger = logging.getLogger("cytonym")

RADIUS_UM = 4.0
RADIUS_PX = 4.5
"""Half a cell, where the pixel size is unknown."""
SOURCE = "qupath"


def read_geojson(
    sdata: SpatialData,
    path: str | Path,
    *,
    key_added: str = "label",
    conflicts: Literal["error", "last"] = "error",
    only_changed: bool = False,
    max_distance_px: float | None = None,
    image_key: str | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Read the classes of annotations and detections from a GeoJSON file of QuPath as labels of cells.

    Every object with a class counts, whichever version of QuPath wrote it. Which cells it names:

    - An object from `io.write_geojson`: the cell that it was written for, by its region and instance id.
    - Points, one or many: for each the cell whose mask or shape holds it, else the nearest centre within
      `max_distance_px`.
    - An annotated area: all cells with their centre in it.
    - Another detection: the one cell whose centre lies in it, nearest to its middle. Where several hold the centre of a
      cell, the smallest counts.

    Classes whose name ends with * (Ignore*, Region*) are left out, as in QuPath's own measurements, and so are lines.

    Parameters
    ----------
    sdata
        Images and cells.
    path
        File from File > Export objects as GeoJSON, as it is or compressed (zip, gz).
    key_added
        Column of `obs` for the labels. One that is there is corrected: cells that the file names get its class, all others
        keep theirs, so that the files of several images, or of several rounds, add up.
    conflicts
        What to do with a cell that gets several classes: `"error"`, or `"last"` for that of the last object in the file.
    only_changed
        Leave out objects with the class that `io.write_geojson` gave them. What remains are corrections and additions, so
        that predictions do not turn into labels. Needs a file of QuPath 0.5 or later.
    max_distance_px
        How far from a centre a point may be, in pixels of the image. Half a cell by default: 4 micrometres where the pixel
        size is known, else 4.5 pixels.
    image_key
        The image of `sdata.images` that was open in QuPath. May be left out where there is one.
    labels_key, shapes_key, points_key
        Element, or elements, that name the cells. May be left out where the answer is unique.
    table_key
        Table that the labels go to. One that exists is annotated, else a new one is added under this name.
    coordinate_system
        Coordinate system in which image and cells meet.
    scale
        Level of a multi-scale image whose pixels QuPath counted; the full resolution by default.
    inplace
        Write into `sdata`; else return a copy of the table.

    Returns
    -------
    None, or the table if `inplace` is False. Sets the following fields:

    `obs[key_added]`
        Class of each cell, categorical; NaN for cells without one.
    `obs[f"{key_added}_source"]`
        `"qupath"` for the cells that the file names, categorical. Others keep what they have, or NaN.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    KeyError
        A key is unknown.
    ValueError
        The file is not GeoJSON, has no object with a class, or an object is broken; objects lie outside the image, name
        cells that are not there or are elsewhere; no object names a cell; a cell gets several classes. Nothing is written
        then.

    Examples
    --------
    >>> import json, tempfile
    >>> import numpy as np
    >>> import cytonym as cy
    >>> mask = np.zeros((32, 32), int)
    >>> mask[4:12, 4:12], mask[20:28, 4:12] = 7, 9
    >>> sdata = cy.io.from_arrays(np.ones((1, 32, 32)), mask, channels=["DNA"])
    >>> points = {"type": "MultiPoint", "coordinates": [[5.5, 10.2]]}
    >>> feature = {"type": "Feature", "geometry": points, "properties": {"classification": {"name": "B cell"}}}
    >>> path = f"{tempfile.mkdtemp()}/tissue.geojson"
    >>> with open(path, "w") as file:
    ...     json.dump(feature, file)
    >>> cy.io.read_geojson(sdata, path)
    >>> sdata["table"].obs[["instance_id", "label"]].values.tolist()
    [[7, 'B cell'], [9, nan]]
    """
    if conflicts not in ("error", "last"):
        msg = f"`conflicts` must be 'error' or 'last', got {conflicts!r}."
        raise ValueError(msg)
    if max_distance_px is not None and not max_distance_px >= 0:
        msg = f"`max_distance_px` must be at least 0, got {max_distance_px}."
        raise ValueError(msg)
    sources = sources_of_one_image(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale,
    )  # fmt: skip
    opened = open_table(sdata, sources, table_key)
    before = _before(opened.table, key_added), _before(opened.table, f"{key_added}_source")
    contents = parse(path)
    if not contents.drawn:
        msg = f"No object of {path} gives a class to a cell. {contents.says()}. Set their classes in QuPath."
        raise ValueError(msg)
    drawn = _changed(contents.drawn, path) if only_changed else contents.drawn

    pixel_size = sources[0].pixel_size
    reach = max_distance_px if max_distance_px is not None else RADIUS_UM / pixel_size if pixel_size else RADIUS_PX
    cells = Cells(sdata, sources, coordinate_system, scale)
    votes = cells.match(drawn, reach)
    _require_some(votes, drawn, contents, reach, path)
    rows = np.concatenate(opened.rows)
    named = votes.assign(row=rows[votes["cell"]])
    lacking = named.loc[named["row"] < 0, "cell"].nunique()
    named = _settle(named[named["row"] >= 0], cells, conflicts)
    lost = len(drawn) - votes["number"].nunique()
    if lost or lacking:
        warnings.warn(
            f"{lost} of {len(drawn)} objects with a class name no cell, and {lacking} cells are not in the table; they are "
            "left out.", stacklevel=2,
        )  # fmt: skip
    kept = sum(item.label == item.written for item in drawn)
    if kept:
        logger.warning(
            "%d of %d objects still have the class that write_geojson gave them; they are read as labels like the others. "
            "only_changed=True leaves them out.", kept, len(drawn),
        )  # fmt: skip
    logger.info(
        "%s: %d objects label %d cells: %s.",
        path, len(drawn), len(named), named["label"].value_counts().to_dict(),
    )  # fmt: skip
    return _write(opened, key_added, before, named, inplace=inplace)


def _changed(drawn: list[Drawn], path: str | Path) -> list[Drawn]:
    """Objects that do not carry the class with which they were written."""
    unknown = sum(item.uuid is not None and item.cell is None for item in drawn)
    if unknown:
        msg = (
            f"`only_changed` cannot be told: {unknown} objects of {path} come from write_geojson, but without the class that "
            "they had. QuPath keeps it from version 0.5 on."
        )
        raise ValueError(msg)
    return [item for item in drawn if item.cell is None or item.label != item.written]


def _require_some(votes: pd.DataFrame, drawn: list[Drawn], contents: Contents, reach: float, path: str | Path) -> None:
    if len(votes) or not drawn:
        return
    msg = (
        f"None of the objects with a class in {path} names a cell. {contents.says()}. Areas need the centre of a cell in them, "
        f"points a mask, a shape or a centre within {reach:g} pixels (`max_distance_px`). Was it drawn on this image, and "
        "on this level of it (`scale`)?"
    )
    raise ValueError(msg)


def _settle(named: pd.DataFrame, cells: Cells, conflicts: str) -> pd.DataFrame:
    """One class a cell."""
    several = named.groupby("cell")["label"].nunique()
    several = several[several > 1]
    if len(several) and conflicts == "error":
        some = [
            f"{cells.name(c)}: {sorted(named.loc[named['cell'] == c, 'label'].unique())}" for c in several.index[:5]
        ]
        msg = (
            f"{len(several)} cells get several classes: {'; '.join(some)}{'; …' if len(several) > 5 else ''}. Correct them in "
            "QuPath, take the last in the file with conflicts='last', or leave out what write_geojson wrote with "
            "only_changed=True."
        )
        raise ValueError(msg)
    return named.sort_values("number", kind="stable").drop_duplicates("cell", keep="last")


# ---------------------------------------------------------------------------------------------------------------- table
def _before(table: AnnData, key: str) -> pd.Series | None:
    """Labels that are there already."""
    if key not in table.obs or table.obs[key].isna().all():
        return None
    if pd.api.types.is_numeric_dtype(table.obs[key]):
        msg = f"`obs[{key!r}]` holds numbers ({table.obs[key].dtype}), not labels. Choose another `key_added`."
        raise ValueError(msg)
    return labels_of(table, key)


def _write(opened: TableRows, key: str, before: Any, named: pd.DataFrame, *, inplace: bool) -> AnnData | None:
    rows = named["row"].to_numpy()
    obs = {}
    for column, old, new in ((key, before[0], named["label"].to_numpy()), (f"{key}_source", before[1], SOURCE)):
        values = (
            np.full(opened.table.n_obs, None, dtype=object) if old is None else old.astype(object).to_numpy(copy=True)
        )
        values[rows] = new
        known = [] if old is None else list(old.cat.categories)
        added = sorted(set(values[rows]) - set(known))
        obs[column] = pd.Series(pd.Categorical(values, categories=[*known, *added]), index=opened.table.obs_names)
    table = opened.write(obs=obs, inplace=inplace)
    return None if inplace else table
