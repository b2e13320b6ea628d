"""Objects with a class from a GeoJSON file of any version of QuPath. The file is not trusted: all of it is checked."""

from __future__ import annotations

import gzip
import json
import uuid
import zipfile
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import shapely

from cytonym.io._geojson import CLASS, INSTANCE, REGION

LARGEST_BYTES = 4 * 2**30
LONGEST_CLASS = 200
AREAS = ("Polygon", "MultiPolygon")
LINES = ("LineString", "MultiLineString")
# Up to version 0.2 the type of an object was its id.
OLD_IDS = {
    "PathAnnotationObject",
    "PathDetectionObject",
    "PathCellObject",
    "PathTileObject",
    "TMACoreObject",
    "PathRootObject",
}
ONE_CELL = {"detection", "cell", "tile", "PathDetectionObject", "PathCellObject", "PathTileObject"}


@dataclass(frozen=True, eq=False)
class Drawn:
    """An object with a class."""

    number: int
    """Which object of the file it is, from 1 on."""
    label: str
    one_cell: bool
    """A detection stands for one cell, an annotation for all that it holds."""
    points: np.ndarray | None
    """f8 [n, 2] (x, y) of points, None for an area."""
    polygons: list[list[np.ndarray]]
    """Rings [n, 2] of the polygons of an area, the border first."""
    cell: tuple[str, str] | None
    """Region and instance of the cell that `write_geojson` wrote."""
    uuid: str | None
    written: str | None
    """Class that `write_geojson` wrote."""

    def bounds(self) -> tuple[float, float, float, float]:
        """Least and largest x and y."""
        xy = self.points if self.points is not None else np.concatenate([rings[0] for rings in self.polygons])
        (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def area(self) -> Any:
        """The area as one valid shape."""
        shape = shapely.MultiPolygon([(rings[0], rings[1:]) for rings in self.polygons])
        if shape.is_valid:
            return shape
        parts = []
        for border, *holes in self.polygons:
            empty = shapely.union_all([shapely.make_valid(shapely.Polygon(hole)) for hole in holes])
            parts.append(shapely.difference(shapely.make_valid(shapely.Polygon(border)), empty))
        return shapely.union_all(parts)


@dataclass
class Contents:
    """What a file holds."""

    drawn: list[Drawn] = field(default_factory=list)
    total: int = 0
    unclassified: int = 0
    ignored: int = 0
    """Objects of classes such as Ignore*."""
    lines: int = 0

    def says(self) -> str:
        """The counts in words."""
        return (
            f"{self.total} objects: {len(self.drawn)} with a class, {self.unclassified} without, {self.ignored} of a class "
            f"that ends with *, {self.lines} lines with a class"
        )


def parse(path: str | Path) -> Contents:
    """Read and check a file.

    Parameters
    ----------
    path
        GeoJSON, as it is or compressed (gzip, or a zip with one file in it).

    Returns
    -------
    Contents

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is too large, not JSON, not GeoJSON, or an object is broken; the message says which.
    """
    found = Contents()
    for feature in _features(_document(Path(path)), str(path)):
        found.total += 1
        _add(feature, found)
    return found


# ----------------------------------------------------------------------------------------------------------------- file
def _document(path: Path) -> Any:
    if not path.is_file():
        msg = f"No file {str(path)!r}. In QuPath: File > Export objects as GeoJSON."
        raise FileNotFoundError(msg)
    try:
        text = _text(path)
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        msg = f"{path} is compressed, but cannot be opened: {error}. Export it again."
        raise ValueError(msg) from error
    try:
        return json.loads(text.decode("utf-8-sig"))
    except RecursionError as error:
        msg = f"{path} is nested too deeply to be GeoJSON."
        raise ValueError(msg) from error
    except ValueError as error:
        msg = f"{path} is not JSON: {error}. In QuPath: File > Export objects as GeoJSON."
        raise ValueError(msg) from error


def _text(path: Path) -> bytes:
    with path.open("rb") as stream:
        magic = stream.read(4)
        stream.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(stream) as packed:
                return _limited(packed, path)  # type: ignore[arg-type]
        if magic == b"PK\x03\x04":
            with zipfile.ZipFile(stream) as archive:
                names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
                if len(names) != 1:
                    msg = f"{path} should hold one GeoJSON file, but holds {names or archive.namelist()[:5]}."
                    raise ValueError(msg)
                with archive.open(names[0]) as packed:
                    return _limited(packed, path)
        return _limited(stream, path)


def _limited(stream: IO[bytes], path: Path) -> bytes:
    """Everything in the stream; a small compressed file may hold more than fits into memory."""
    found = BytesIO()
    while part := stream.read(2**24):
        found.write(part)
        if found.tell() > LARGEST_BYTES:
            msg = f"{path} holds more than {LARGEST_BYTES / 2**30:g} GiB. Export only the objects with a class."
            raise ValueError(msg)
    return found.getvalue()


def _features(document: Any, path: str) -> list[Any]:
    """Features of a FeatureCollection, of a list, or the one that the file is, with those inside other objects."""
    found, waiting = [], [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += reversed(item)
        elif isinstance(item, dict) and item.get("type") == "FeatureCollection":
            inside = item.get("features")
            if not isinstance(inside, list):
                msg = f"{path} is a FeatureCollection without a list of features."
                raise ValueError(msg)
            waiting += reversed(inside)
        elif isinstance(item, dict) and item.get("type") == "Feature":
            found.append(item)
            properties = item.get("properties")
            children = properties.get("childObjects") if isinstance(properties, dict) else None
            waiting += reversed(children) if isinstance(children, list) else []
        else:
            kind = item.get("type") if isinstance(item, dict) else type(item).__name__
            msg = (
                f"{path} is JSON, but not GeoJSON with features: it holds {str(kind)[:40]!r} where a Feature or a "
                "FeatureCollection should be. In QuPath: File > Export objects as GeoJSON."
            )
            raise ValueError(msg)
    if not found:
        msg = f"{path} holds no object. In QuPath, choose 'All objects' or select some before the export."
        raise ValueError(msg)
    return found


# -------------------------------------------------------------------------------------------------------------- features
def _add(feature: dict[str, Any], found: Contents) -> None:
    number = found.total
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _broken(number, f"its properties are a {type(properties).__name__}, not a mapping")
    label = _class(properties.get("classification"), number)
    if label is None:
        found.unclassified += 1
        return
    if label.endswith("*"):
        found.ignored += 1
        return
    geometry = feature.get("geometry")
    if not isinstance(geometry, dict):
        raise _broken(number, "it has no geometry")
    if geometry.get("type") in LINES:
        found.lines += 1
        return
    points, polygons = _geometry(geometry, number)
    metadata = properties.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    region, instance, written = (_text_or_none(metadata.get(key)) for key in (REGION, INSTANCE, CLASS))
    if written is not None and len(written.splitlines()) == 1 and _parts(written) == _parts(label):
        label = written  # QuPath spaces the colons of a name in its own way
    identity = feature.get("id")
    kind = next(
        (properties[k] for k in ("objectType", "object_type", "type") if isinstance(properties.get(k), str)), identity
    )
    found.drawn.append(
        Drawn(
            number=number,
            label=label,
            one_cell=isinstance(kind, str) and kind in ONE_CELL,
            points=points,
            polygons=polygons,
            cell=(region, instance) if region is not None and instance is not None else None,
            uuid=_named_uuid(identity),
            written=written,
        )
    )


def _class(classification: Any, number: int) -> str | None:
    """Name of a class: text, or a mapping with `name`, with `names`, or with `name` and `parentClass` (before 0.4)."""
    names: list[Any] = []
    item = classification
    while isinstance(item, dict):
        own = item.get("names", item.get("name"))
        names = [*(own if isinstance(own, list) else [own]), *names]
        item = item.get("parentClass")
    names = [*([] if item is None else [item]), *names]
    names = [name for name in names if name is not None]
    if any(not isinstance(name, str) for name in names):
        raise _broken(number, "its classification is not text")
    parts = [part.strip() for part in names]
    label = ": ".join(part for part in parts if part)
    if len(label) > LONGEST_CLASS:
        raise _broken(
            number, f"the name of its class has {len(label)} characters, more than {LONGEST_CLASS}: '{label[:40]}…'"
        )
    if any(ord(character) < ord(" ") for character in label):
        raise _broken(number, f"the name of its class holds control characters: {label!r}")
    return label or None


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split(":")]


def _text_or_none(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _named_uuid(identity: Any) -> str | None:
    """The id where it is made from a name, as ours are. QuPath draws its own at random."""
    if not isinstance(identity, str) or identity in OLD_IDS or len(identity) != 36:
        return None
    try:
        found = uuid.UUID(identity)
    except ValueError:
        return None
    return str(found) if found.version == 5 else None


def _geometry(geometry: dict[str, Any], number: int) -> tuple[np.ndarray | None, list[list[np.ndarray]]]:
    """Points, or polygons."""
    shape, coordinates = geometry.get("type"), geometry.get("coordinates")
    if shape == "Point":
        return _positions([coordinates], number), []
    if shape == "MultiPoint":
        return _positions(coordinates, number), []
    if shape not in AREAS:
        raise _broken(
            number, f"its geometry is a {str(shape)[:40]!r}, not one of Point, MultiPoint, Polygon, MultiPolygon"
        )
    polygons = coordinates if shape == "MultiPolygon" else [coordinates]
    if not isinstance(polygons, list) or not polygons or any(not isinstance(p, list) or not p for p in polygons):
        raise _broken(number, f"its {shape} has no coordinates")
    rings = [[_positions(ring, number) for ring in polygon] for polygon in polygons]
    if any(len(ring) < 3 for polygon in rings for ring in polygon):
        raise _broken(number, f"its {shape} has a ring of fewer than three corners")
    return None, rings


def _positions(value: Any, number: int) -> np.ndarray:
    """Pairs of finite numbers, f8 [n, 2]; a third one, along z, is dropped."""
    if not isinstance(value, list) or not value:
        raise _broken(number, "its geometry has no coordinates")
    if any(
        not isinstance(p, list) or not 2 <= len(p) <= 3 or any(type(v) not in (int, float) for v in p) for p in value
    ):
        raise _broken(number, "its coordinates are not pairs of numbers")
    try:
        array = np.array([position[:2] for position in value], dtype=np.float64)
    except OverflowError:
        array = np.full((1, 2), np.inf)
    if not np.isfinite(array).all():
        raise _broken(number, "its coordinates are NaN or infinite")
    return array


def _broken(number: int, what: str) -> ValueError:
    return ValueError(f"Object {number} of the file cannot be read: {what}.")
