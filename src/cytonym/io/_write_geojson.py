"""Cells, their classes and numbers as a file that QuPath shows over the image."""

from __future__ import annotations

import gzip
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import shapely
from matplotlib.colors import to_rgb
from scanpy.plotting.palettes import default_20, default_28, default_102
from scipy.sparse import issparse

from cytonym.data import transforms
from cytonym.data.files import replaced, require_place
from cytonym.data.names import GEOJSON_ENDINGS
from cytonym.data.table import open_table
from cytonym.get import labels_of, marker_frame
from cytonym.io._geojson import (
    CLASS,
    INSTANCE,
    REGION,
    cell_uuid,
    shape_outlines,
    sources_of_one_image,
    to_pixels,
)
from cytonym.io._outlines import trace
from cytonym.learning.engine import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

CLASSES = "phenotype"
MANY = 20_000  # cells from which on a progress bar is shown
AT_ONCE = 10_000  # shapes transformed together
DECIMALS = 4  # of a pixel; QuPath itself keeps two

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def write_geojson(
    sdata: SpatialData,
    path: str | Path,
    *,
    image_key: str | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    classes: str | None = None,
    proba: str | None = None,
    measurements: str | Sequence[str] | None = None,
    colors: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the cells of an image, their classes and measurements as GeoJSON for QuPath.

    Each cell becomes a detection. Cells named by labels get the outline of their pixels, shapes their polygon, circles a
    circle, points a point. Drop the file onto the open image in QuPath to see them; `io.read_geojson` brings back what was
    corrected there.

    Parameters
    ----------
    sdata
        Images, cells and their table.
    path
        File to write, `.geojson` or `.json`, with a `.gz` behind it for a compressed one.
    image_key
        The image of `sdata.images` that is open in QuPath. May be left out where there is one.
    labels_key, shapes_key, points_key
        Element, or elements, that name the cells. May be left out where the answer is unique.
    table_key
        Table of the cells. Cells that it lacks are not written; without a table the bare outlines are.
    coordinate_system
        Coordinate system in which image and cells meet.
    scale
        Level of a multi-scale image whose pixels QuPath counts; the full resolution by default.
    classes
        Column of `obs` with the class of each cell; `"phenotype"` by default, where there is one. Cells without a class are
        unclassified in QuPath.
    proba
        DataFrame of `obsm` with a probability a class, shown as the measurements `p: B cell` and so on; by default
        `f"{classes}_proba"` where there is one. Likewise, `obs[f"{classes}_confidence"]` becomes `confidence`.
    measurements
        Further numbers: columns of `obs`, else variables, else DataFrames of `obsm`: `"nextmarker_attributions"` for all
        its columns, `"nextmarker_attributions:CD8"` for one. NaN and infinite ones are left out, as JSON has neither.
    colors
        Class -> colour, in any form that matplotlib knows, for some or all classes. By default the colours in which
        scanpy shows the column: those of `uns[f"{classes}_colors"]`, else its palette.
    overwrite
        Replace the file if there is one.

    Returns
    -------
    pathlib.Path
        The file. It is written beside its place and moved there when it is complete, so that a crash leaves no half file
        and an older one stays whole.

    Raises
    ------
    FileExistsError
        The file exists and `overwrite` is False.
    KeyError
        A key, column or measurement is unknown.
    TypeError
        A measurement is not a number.
    ValueError
        Several images, no cell inside the image, or a wrong colour or ending.

    Notes
    -----
    Coordinates are pixels of the image from its upper left corner, pixel i covering [i, i + 1), in QuPath as here. The
    id of an object and its metadata (`cytonym_region`, `cytonym_instance_id`, `cytonym_class`) say which cell it is and
    which class it had. QuPath keeps the metadata from version 0.5 on, the id from 0.4 on. Cells with their centre outside
    the image are left out with a warning.

    Examples
    --------
    >>> import json, tempfile
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0)
    >>> path = cy.io.write_geojson(sdata, f"{tempfile.mkdtemp()}/tissue.geojson", classes="cell_type")
    >>> feature = json.loads(path.read_text())["features"][0]
    >>> feature["geometry"]["type"], sorted(feature["properties"])
    ('Polygon', ['classification', 'metadata', 'name', 'objectType'])
    """
    target = _target(path, overwrite=overwrite)
    sources = sources_of_one_image(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale,
    )  # fmt: skip
    opened = open_table(sdata, sources, table_key)
    about = _about(opened.table, classes, proba, measurements, colors)
    chosen = [np.flatnonzero(s.inside & (at >= 0)) for s, at in zip(sources, opened.rows, strict=True)]
    _count(sources, opened.rows, chosen)
    n_cells = sum(map(len, chosen))
    with (
        _packed(target) as stream,
        progress_bar("writing cells", n_cells, "cell", show=n_cells >= MANY) as bar,
    ):
        stream.write(b'{"type":"FeatureCollection","features":[')
        between = b"\n"
        for source, rows, cells in zip(sources, opened.rows, chosen, strict=True):
            matrix = to_pixels(sdata, source, coordinate_system, scale)
            for cell, geometry in _geometries(sdata, source, cells, matrix):
                instance = source.instance_ids[cell]
                identity = encode(cell_uuid(source.region, instance))
                properties = encode(about.properties(int(rows[cell]), source.region, str(instance)))
                feature = f'{{"type":"Feature","id":{identity},"geometry":{geometry},"properties":{properties}}}'
                stream.write(between + feature.encode("ascii"))
                between = b",\n"
                bar.update()
        stream.write(b"\n]}\n")
    logger.info("Wrote %d cells to %s.", n_cells, target)
    return target


# ---------------------------------------------------------------------------------------------------------------- cells
def _count(sources: list[CellSource], rows: list[np.ndarray], chosen: list[np.ndarray]) -> None:
    """Say which cells are left out, and refuse to write none."""
    outside = sum(int((~source.inside).sum()) for source in sources)
    lacking = sum(int((at < 0).sum()) for at in rows)
    total = sum(len(at) for at in rows)
    if not sum(map(len, chosen)):
        _, height, width = sources[0].shape
        msg = (
            f"No cell to write: of {total} cells {outside} have their centre outside image {sources[0].image_key!r} "
            f"({width} x {height} pixels), and {lacking} are not in the table."
        )
        raise ValueError(msg)
    if outside:
        warnings.warn(
            f"{outside} of {total} cells have their centre outside the image and are not written.", stacklevel=3
        )
    if lacking:
        logger.info("%d of %d cells are not in the table and are not written.", lacking, total)


def _geometries(
    sdata: SpatialData, source: CellSource, cells: np.ndarray, matrix: np.ndarray
) -> Iterator[tuple[int, str]]:
    """Cells and their geometries as JSON, in the order in which they are read."""
    if source.labels is not None:
        for position, polygons in trace(source.labels.labels, source.instance_ids[cells]):
            placed = [[_coordinates(np.array(ring), matrix) for ring in polygon] for polygon in polygons]
            several = len(placed) > 1
            kind = "MultiPolygon" if several else "Polygon"
            yield int(cells[position]), encode({"type": kind, "coordinates": placed if several else placed[0]})
        return
    if source.kind == "points":
        for cell in cells:
            yield int(cell), _point(source, cell)
        return
    element = sdata.shapes[source.region]
    circles = shapely.get_type_id(element.geometry.to_numpy()) == shapely.GeometryType.POINT
    for start in range(0, len(cells), AT_ONCE):
        part = cells[start : start + AT_ONCE]
        shapes = shapely.transform(shape_outlines(element, part, matrix), lambda xy: np.round(xy, DECIMALS) + 0.0)
        for cell, shape, text in zip(part, shapes, shapely.to_geojson(shapes), strict=True):
            if shape is None or shape.is_empty:
                yield int(cell), _point(source, cell)
            elif circles[cell] and transforms.is_axis_aligned(matrix):  # QuPath makes a true ellipse of it
                yield int(cell), f'{text[:-1]},"isEllipse":true}}'
            else:
                yield int(cell), text


def _point(source: CellSource, cell: int) -> str:
    return encode({"type": "Point", "coordinates": _plain(source.centers[cell][::-1])})


def _coordinates(ring: np.ndarray, matrix: np.ndarray) -> list[Any]:
    return _plain(transforms.snap(transforms.apply(matrix, ring)))


def _plain(xy: np.ndarray) -> list[Any]:
    whole = np.rint(xy)
    return (whole.astype(np.int64) if np.array_equal(whole, xy) else np.round(xy, DECIMALS)).tolist()


# --------------------------------------------------------------------------------------------------- classes and numbers
@dataclass(frozen=True, eq=False)
class _About:
    """What the table says of its rows."""

    names: np.ndarray
    classes: list[dict[str, Any]]
    codes: np.ndarray
    """Class of each row, -1 for none."""
    numbers: dict[str, np.ndarray]

    def properties(self, row: int, region: str, instance: str) -> dict[str, Any]:
        """Properties of a feature, as QuPath reads them."""
        metadata = {REGION: region, INSTANCE: instance}
        found: dict[str, Any] = {"objectType": "detection", "name": str(self.names[row])}
        if self.codes[row] >= 0:
            found["classification"] = self.classes[self.codes[row]]
            metadata[CLASS] = found["classification"]["name"]
        # As text on the way, so that a float32 of 0.3 stays 0.3.
        measured = {name: float(str(values[row])) for name, values in self.numbers.items() if isfinite(values[row])}
        if measured:
            found["measurements"] = measured
        found["metadata"] = metadata
        return found


def _about(table: AnnData, classes: str | None, proba: str | None, measurements: Any, colors: Any) -> _About:
    key = classes if classes is not None else CLASSES if CLASSES in table.obs else None
    numbers: dict[str, np.ndarray] = {}
    names, codes, shown = [], np.full(table.n_obs, -1), []
    if key is not None:
        labels = labels_of(table, key)
        names, codes = [str(name) for name in labels.cat.categories], labels.cat.codes.to_numpy()
        broken = [name for name in names if not name.strip() or len(name.splitlines()) > 1]
        if broken:
            msg = f"QuPath cannot show classes without a name or with line breaks, but `obs[{key!r}]` has {broken}."
            raise ValueError(msg)
        rgb = _colors(table, key, names, colors)
        shown = [{"name": name, "color": rgb[name]} for name in names]
        if proba is None and isinstance(table.obsm.get(f"{key}_proba"), pd.DataFrame):
            proba = f"{key}_proba"
        if f"{key}_confidence" in table.obs:
            numbers["confidence"] = _column(table, f"{key}_confidence")
    if proba is not None:
        frame = marker_frame(table, proba)
        numbers |= {f"p: {column}": _numbers(frame[column]) for column in frame.columns}
    wanted = [measurements] if isinstance(measurements, str) else list(measurements or [])
    for name in wanted:
        numbers |= _measurement(table, str(name))
    return _About(table.obs_names.to_numpy(), shown, codes, numbers)


def _measurement(table: AnnData, name: str) -> dict[str, np.ndarray]:
    """One of the numbers asked for, or all columns of a DataFrame."""
    if name in table.obs:
        return {name: _column(table, name)}
    if name in table.var_names and table.X is not None:
        values = table.X[:, int(np.flatnonzero(table.var_names == name)[0])]
        return {name: _numbers(pd.Series(np.asarray(values.toarray() if issparse(values) else values).ravel()))}
    for key, value in table.obsm.items():
        if isinstance(value, pd.DataFrame) and (name == key or name.startswith(f"{key}:")):
            frame = marker_frame(table, key)
            column = name[len(key) + 1 :]
            if name != key and column not in frame.columns:
                msg = f"No column {column!r} in `obsm[{key!r}]`. Available: {list(frame.columns)}."
                raise KeyError(msg)
            return {f"{key}: {c}": _numbers(frame[c]) for c in (frame.columns if name == key else [column])}
    columns = [c for c in table.obs.columns if pd.api.types.is_numeric_dtype(table.obs[c])]
    frames = [key for key, value in table.obsm.items() if isinstance(value, pd.DataFrame)]
    msg = (
        f"No measurement {name!r}. Available: columns of `obs` {columns}, variables {list(table.var_names[:20])}, "
        f"DataFrames of `obsm` {frames} (all columns, or one as 'key:column')."
    )
    raise KeyError(msg)


def _column(table: AnnData, name: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(table.obs[name]):
        msg = f"`obs[{name!r}]` is not numeric ({table.obs[name].dtype}), so it cannot be a measurement."
        raise TypeError(msg)
    return _numbers(table.obs[name])


def _numbers(column: pd.Series) -> np.ndarray:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
        return column.to_numpy()
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _colors(table: AnnData, key: str, names: list[str], given: Mapping[str, Any] | None) -> dict[str, list[int]]:
    """Red, green and blue from 0 to 255 of each class."""
    palette = next((p for p in (default_20, default_28, default_102) if len(p) >= len(names)), default_102)
    chosen: dict[str, Any] = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    known = table.uns.get(f"{key}_colors")
    if isinstance(known, Mapping):
        chosen |= {name: known[name] for name in names if name in known}
    elif known is not None and len(known) >= len(names):
        chosen |= dict(zip(names, known, strict=False))
    chosen |= {name: given[name] for name in names if given and name in given}
    result = {}
    for name, color in chosen.items():
        try:
            result[name] = [round(255 * part) for part in to_rgb(color)]
        except (ValueError, TypeError) as error:
            msg = f"{color!r} of class {name!r} is no colour. Give a name such as 'red', '#D55E00' or (0.8, 0.4, 0)."
            raise ValueError(msg) from error
    return result


# ----------------------------------------------------------------------------------------------------------------- file
def _target(path: str | Path, *, overwrite: bool) -> Path:
    target = Path(path)
    if not target.name.lower().endswith(GEOJSON_ENDINGS):
        msg = (
            f"QuPath knows the format by its ending, which must be one of {list(GEOJSON_ENDINGS)}, got {target.name!r}."
        )
        raise ValueError(msg)
    require_place(target, overwrite=overwrite)
    return target


@contextmanager
def _packed(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of the target when all is written, compressed where its ending says so."""
    with replaced(target) as beside, beside.open("wb") as raw:
        if target.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield raw
