"""The CSV files that lie beside images: panels, centres and tables of cells."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from cytonym.io._fields import some
from cytonym.io._tiff import stem

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from cytonym.io._fields import Field
    from cytonym.io._tiff import TiffImage

logger = logging.getLogger("cytonym")

ID_COLUMNS = ("cell_id", "instance_id", "cellid", "object_id", "objectnumber", "object", "cell", "id", "label")
CLASS_COLUMNS = ("cell", "label")
"""Id columns whose name also suits classes: text in them is no id."""
IMAGE_COLUMNS = ("image", "fov", "field", "sample", "sample_id", "image_id", "roi", "region")
NAME_COLUMNS = ("name", "marker_name", "marker", "target", "channel")


class Panel(NamedTuple):
    """A table with one row a channel, and the file it comes from."""

    path: Path
    table: pd.DataFrame


class Shared(NamedTuple):
    """A table of the cells of several images, and its column that names them."""

    path: Path
    table: pd.DataFrame
    column: str


class Cells(NamedTuple):
    """The rows of a cell table that belong to one image."""

    path: Path
    ids: np.ndarray
    table: pd.DataFrame
    """Without the columns that name the cells and tell their place."""


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """A CSV file as a table.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is empty or damaged.
    """
    if not path.is_file():
        msg = f"No file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        return pd.read_csv(path, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"Cannot read {str(path)!r} as a CSV table: {error}."
        raise ValueError(msg) from error


# ------------------------------------------------------------------------------------------------------------- panels
def read_panel(path: Path) -> Panel:
    """A panel as it stands in its file; it is checked against each image."""
    table = read_csv(path)
    return Panel(path, table.rename(columns={c: str(c).strip().lower() for c in table.columns}))


def panel_channels(panel: Panel, image: TiffImage) -> tuple[list[str], np.ndarray]:
    """Names of the kept channels, and which are kept: by the column `channel` if the file has such names, else by position."""
    path, table = panel
    column = next((c for c in NAME_COLUMNS if c in table), None)
    if column is None:
        msg = f"The panel needs a column 'name'. {path.name!r} has {list(table.columns)}."
        raise ValueError(msg)
    kept = _kept(panel)
    names = table[column].astype(object)
    if "channel" in table:
        names = names.where(names.notna(), table["channel"])
    rows = pd.DataFrame({"name": names, "keep": kept, "row": np.arange(len(table))})
    n = image.pixels.shape[0]
    if (order := _order(panel, image)) is not None:
        rows = rows.iloc[order]
    elif kept.sum() == n:
        rows = rows[kept]
    elif len(rows) != n:
        msg = (
            f"{image.path.name!r} has {n} channels, but the panel {path.name!r} has {len(rows)} rows, "
            f"{int(kept.sum())} of them kept."
        )
        raise ValueError(msg)
    keep = rows["keep"].to_numpy()
    if not keep.any():
        msg = f"The panel {path.name!r} keeps no channel of {image.path.name!r}: `keep` is 0 in all their rows."
        raise ValueError(msg)
    rows = rows[keep]
    if (unnamed := rows["name"].isna()).any():
        msg = (
            f"The panel {path.name!r} has no name in row {rows['row'][unnamed].iloc[0]}, column {column!r}. Fill it in."
        )
        raise ValueError(msg)
    return rows["name"].astype(str).tolist(), keep


def _kept(panel: Panel) -> np.ndarray:
    """Which rows a panel keeps: all where it does not say."""
    if "keep" not in panel.table:
        return np.ones(len(panel.table), bool)
    given = panel.table["keep"]
    numbers = pd.to_numeric(given, errors="coerce")
    if (wrong := numbers.isna() & given.notna()).any():
        msg = f"The panel {panel.path.name!r} needs 1 or 0 in its column 'keep', got {given[wrong].iloc[0]!r}."
        raise ValueError(msg)
    return numbers.fillna(0).to_numpy() != 0


def _order(panel: Panel, image: TiffImage) -> list[int] | None:
    """Row of each channel of the file by its name; None where the panel knows none of these names."""
    if "channel" not in panel.table or not image.channels:
        return None
    known = panel.table["channel"].astype(str).tolist()
    missing = [name for name in image.channels if name not in known]
    if len(missing) == len(image.channels):
        return None
    if missing:
        msg = (
            f"The panel {panel.path.name!r} lacks channels of {image.path.name!r} in its column 'channel': {some(missing)}. "
            f"It has {some(known)}. Add a row for each, with `keep` = 0 for what is to be left out."
        )
        raise ValueError(msg)
    return [known.index(name) for name in image.channels]


# ------------------------------------------------------------------------------------------------- centres and columns
def read_centers(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) [N, 2] and ids [N] of a table of centres; ids are 1, 2, … where it has none."""
    table = read_csv(path)
    names = _point_columns(table, path)
    if names is None:
        msg = f"{path.name!r} needs columns 'x' and 'y'. It has {list(table.columns)}."
        raise ValueError(msg)
    if table.empty:
        msg = f"{path.name!r} has no rows: there is no cell in it."
        raise ValueError(msg)
    columns = table[names]
    if any(not pd.api.types.is_numeric_dtype(dtype) for dtype in columns.dtypes):
        msg = f"{path.name!r}: columns 'x' and 'y' must be numbers, got {columns.iloc[0].tolist()} in the first row."
        raise ValueError(msg)
    points = columns.to_numpy(np.float64)
    if not np.isfinite(points).all():
        msg = f"{path.name!r}: x or y is missing in row {int(np.flatnonzero(~np.isfinite(points).all(1))[0])}."
        raise ValueError(msg)
    return points, _ids(table, path, required=False)[0]


def read_shared(path: Path) -> Shared:
    """A table of the cells of several images. The names of the images are text: `001` is not 1."""
    column = next((c for c in read_csv(path, nrows=0) if str(c).strip().lower() in IMAGE_COLUMNS), None)
    if column is None:
        msg = f"{path.name!r} is the one table of several images, so it needs a column that names them, one of {IMAGE_COLUMNS}."
        raise ValueError(msg)
    return Shared(path, read_csv(path, converters={column: str.strip}), str(column))


def cells_of(item: Field, *, centers: bool, shared: Shared | None) -> Cells | None:
    """The rows about the cells of one image, from the shared table, its own or that of its centres."""
    if shared is not None:
        path, table = shared.path, _part(shared, item)
    elif item.cells or (centers and item.centers):
        path = item.cells or item.centers  # type: ignore[assignment]
        table = read_csv(path)
    else:
        return None
    own = path == item.centers
    ids, column = _ids(table, path, required=not own)
    # the place of a cell is in obsm["spatial"]; a single `Y` may be a marker
    points = _point_columns(table, path) if own else ["x", "y"] if {"x", "y"} <= set(table.columns) else None
    return Cells(path, ids, table.drop(columns=[c for c in (column, *(points or [])) if c is not None]))


def obs_columns(parts: list[pd.DataFrame], index: pd.Index, taken: Iterable[str]) -> pd.DataFrame:
    """Columns of cell tables for the rows of `obs`: whole numbers stay whole, text becomes categories."""
    every = pd.concat(parts).reindex(index)
    names = _storable(list(every), taken)
    for old, new in zip(every, names, strict=True):
        if new.lower() != _plain(old).lower():
            logger.info("Column %r of the cell tables is %r in `obs`: its own name is taken.", str(old), new)
    return pd.DataFrame({new: _values(every[old]) for old, new in zip(every, names, strict=True)}, index=index)


def _values(values: pd.Series) -> pd.Series:
    """Missing values make floats of integers: they become integers again, so that class 4 is not class 4.0."""
    if values.dtype.kind == "f":
        there = values.dropna()
        whole = len(there) and (there.abs() < 2**53).all() and (there == there.round()).all()
        return values if not whole else values.astype("Int64" if len(there) < len(values) else "int64")
    if values.dtype.kind in "biu":
        return values
    return values.map(str, na_action="ignore").astype("category")


def _plain(name: Hashable) -> str:
    return re.sub(r"[^\w.\-]+", "_", str(name)).strip("_") or "column"


def _storable(names: list[Hashable], taken: Iterable[str]) -> list[str]:
    """Names that a store accepts, all different in more than case; those that are fine already stay as they are."""
    used = {name.lower() for name in taken}
    result: dict[int, str] = {}
    for i in sorted(range(len(names)), key=lambda i: _plain(names[i]) != str(names[i])):
        plain, count = _plain(names[i]), 2
        new = plain
        while new.lower() in used:
            new, count = f"{plain}_{count}", count + 1
        used.add(new.lower())
        result[i] = new
    return [result[i] for i in range(len(names))]


def _part(shared: Shared, item: Field) -> pd.DataFrame:
    """Rows of one image in a table of several."""
    path, common, column = shared
    names = common[column]
    part = common[names.isin([item.name, item.image.name]) | (names.map(lambda v: stem(Path(v))) == stem(item.image))]
    if part.empty:
        msg = f"{path.name!r} has no row of image {item.name!r} in column {column!r}: {some(names.unique())}."
        raise ValueError(msg)
    return part.drop(columns=column)


def _ids(table: pd.DataFrame, path: Path, *, required: bool) -> tuple[np.ndarray, str | None]:
    """Ids of the rows, and the column they stand in; 1, 2, … where there is none and none is needed."""
    for name in ID_COLUMNS:
        column = _column(table, name, path)
        if column is None or (name in CLASS_COLUMNS and not pd.api.types.is_numeric_dtype(table[column])):
            continue
        ids = _whole_numbers(table[column], path)
        if len(repeated := ids[pd.Series(ids).duplicated()]):
            msg = f"{path.name!r}: ids repeat in column {column!r}, such as {repeated[0]}."
            raise ValueError(msg)
        return ids, column
    if required:
        msg = f"{path.name!r} needs a column of whole numbers that names the cells, one of {ID_COLUMNS}. It has {list(table)}."
        raise ValueError(msg)
    return np.arange(1, len(table) + 1), None


def _whole_numbers(column: pd.Series, path: Path) -> np.ndarray:
    if (missing := column.isna().to_numpy()).any():
        msg = f"{path.name!r}: column {column.name!r} has no id in row {int(np.flatnonzero(missing)[0])}. Fill it in, or drop the row."
        raise ValueError(msg)
    if column.dtype.kind in "iu":
        return column.to_numpy()
    wrong = column.tolist()
    if column.dtype.kind == "f":
        wrong = [value for value in wrong if not value.is_integer()]
    if wrong:
        msg = (
            f"{path.name!r}: column {column.name!r} must hold whole numbers, the ids of the cells, got {wrong[0]!r}. "
            "Name it otherwise, or leave it out, if it does not name the cells."
        )
        raise ValueError(msg)
    return column.to_numpy(np.int64)


def _point_columns(table: pd.DataFrame, path: Path) -> list[str] | None:
    """The columns of x and y, the two names as they are before other spellings of them."""
    if {"x", "y"} <= set(table.columns):
        return ["x", "y"]
    x, y = _column(table, "x", path), _column(table, "y", path)
    return None if x is None or y is None else [x, y]


def _column(table: pd.DataFrame, name: str, path: Path) -> str | None:
    """The column of this name, or the one that differs from it by case, blanks or hyphens."""
    if name in table:
        return name
    found = [str(c) for c in table if re.sub(r"[ \-]", "_", str(c).strip().lower()) == name]
    if len(found) > 1:
        msg = f"{path.name!r} has several columns for {name!r}: {found}. Keep one of them."
        raise ValueError(msg)
    return found[0] if found else None
