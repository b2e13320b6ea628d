"""Cells to QuPath and back, and files as QuPath of several versions writes them."""

from __future__ import annotations

import gzip
import json
import logging
import re
import uuid
import zipfile
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import shapely
import zarr
from geopandas import GeoDataFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

import cytonym as cy
from cytonym.data import files
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.io import _parse_geojson, _write_geojson
from cytonym.io._outlines import trace

H, W = 24, 36
CELLS = {9: (5, 6), 2: (12, 30), 40: (18, 11)}  # id: middle pixel (y, x)
IDS = np.array(sorted(CELLS))
CLASSES = {2: "B cell", 9: "T cell: CD8", 40: None}
MASK = np.zeros((H, W), np.int32)
for cell, (row, column) in CELLS.items():
    MASK[row - 1 : row + 2, column - 2 : column + 3] = cell

# How the image may lie in the world: matrix (x, y) of image -> world.
TURNS = {
    "as it is": [[1, 0, 0], [0, 1, 0]],
    "rows flipped": [[1, 0, 0], [0, -1, H]],
    "columns flipped": [[-1, 0, W], [0, 1, 0]],
    "transposed": [[0, 1, 0], [1, 0, 0]],
    "turned left": [[0, -1, W], [1, 0, 0]],
    "cropped": [[1, 0, 2], [0, 1, 3]],
}
KINDS = ["labels", "fine labels", "circles", "polygons", "points"]


def affine(matrix) -> Affine:
    return Affine(np.vstack([matrix, [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))


def middles() -> np.ndarray:
    return np.array([CELLS[i] for i in IDS])[:, ::-1] + 0.5


def element(kind: str, place: Any) -> Any:
    where = {"global": place}
    if kind == "labels":
        return Labels2DModel.parse(da.from_array(MASK, chunks=(7, 9)), dims=("y", "x"), transformations=where)
    if kind == "fine labels":
        half = Sequence([Scale([0.5, 0.5], axes=("x", "y")), place])
        return Labels2DModel.parse(MASK.repeat(2, 0).repeat(2, 1), dims=("y", "x"), transformations={"global": half})
    if kind == "circles":
        return ShapesModel.parse(middles(), geometry=0, radius=2, index=IDS, transformations=where)
    if kind == "polygons":
        boxes = shapely.box(*(middles() - [2.5, 1.5]).T, *(middles() + [2.5, 1.5]).T)
        return ShapesModel.parse(GeoDataFrame(geometry=boxes, index=IDS), transformations=where)
    return PointsModel.parse(pd.DataFrame(middles(), columns=["x", "y"], index=IDS), transformations=where)


def tissue(kind: str = "labels", image: Any = None, place: Any = None, shape=(H, W), **kwargs) -> SpatialData:
    """One image and its cells, with a table that holds a class of two of the three."""
    pixels = np.ones((1, *shape), np.uint8)
    picture = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), transformations={"global": image or Identity()}, **kwargs
    )
    sdata = SpatialData.init_from_elements({"image": picture, "cells": element(kind, place or Identity())})
    open_table(sdata, resolve(sdata)).write()
    ids = sdata["table"].obs["instance_id"]
    sdata["table"].obs["phenotype"] = pd.Categorical(ids.map(CLASSES))
    return sdata


def written(sdata: SpatialData, path, **kwargs) -> list[dict]:
    return json.loads(cy.io.write_geojson(sdata, path, **kwargs).read_text())["features"]


def save(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def labels_in(sdata: SpatialData, key: str = "label") -> dict[int, str | None]:
    obs = sdata["table"].obs
    return {int(i): None if pd.isna(v) else v for i, v in zip(obs["instance_id"], obs[key], strict=True)}


def feature(geometry: Any, name: Any = "B cell", kind: str = "annotation", **properties) -> dict:
    if isinstance(geometry, tuple):
        geometry = {"type": "Point", "coordinates": list(geometry)}
    classification = {"name": name, "color": [1, 2, 3]} if isinstance(name, str) else name
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": kind, "classification": classification, **properties},
    }


def box(x0, y0, x1, y1) -> dict:
    return {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]}


# ------------------------------------------------------------------------------------------------------------- outlines
def shape_of(polygons) -> Any:
    return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons])


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    n=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    block=st.sampled_from([1, 3, 64]),
    kind=st.sampled_from([np.uint8, np.int64, np.uint64]),
)
def test_outlines_hold_the_pixels_of_their_cell_and_no_other(size, n, seed, block, kind):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, n + 1, size).astype(kind) * kind(30)
    ids = rng.permutation(np.unique(mask[mask > 0]))
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    seen = dict(trace(da.from_array(mask, chunks=3) if block == 3 else mask, ids, block_px=block))
    assert sorted(seen) == list(range(len(ids)))
    for i, polygons in seen.items():
        shape = shape_of(polygons)
        assert shape.is_valid
        assert shape.area == (mask == ids[i]).sum()
        np.testing.assert_array_equal(shapely.contains_xy(shape, x, y), mask == ids[i])


def test_outlines_keep_holes_islands_and_corners_apart():
    ring = np.zeros((7, 9), int)
    ring[0:7, 0:7] = 5
    ring[1:6, 1:6] = 0
    ring[3, 3] = 5  # an island
    ring[6, 7] = ring[5, 8] = 5  # one that is joined, one that touches it at a corner
    [(position, polygons)] = trace(ring, np.array([5]))
    assert position == 0
    assert sorted(len(rings) for rings in polygons) == [1, 1, 2]
    assert shape_of(polygons).area == (ring == 5).sum()
    assert all(r[0] == r[-1] for rings in polygons for r in rings)


class Watched:
    """A label image that remembers how much of it was read at once."""

    def __init__(self, array):
        self.array, self.shape, self.chunks, self.largest = array, array.shape, (16, 16), 0

    def __getitem__(self, index):
        part = self.array[index]
        self.largest = max(self.largest, part.size)
        return part


def test_outlines_read_blocks_and_one_large_cell_does_not_enlarge_them():
    mask = np.kron(np.arange(1, 257).reshape(16, 16), np.ones((8, 8), int))
    image = Watched(mask)
    assert len(list(trace(image, np.arange(1, 257), block_px=16))) == 256
    assert image.largest <= 24 * 24
    mask[:, 60] = 999
    image = Watched(mask)
    assert len(list(trace(image, np.unique(mask), block_px=16))) == len(np.unique(mask))
    assert image.largest <= 24 * 24
    assert list(trace(mask, np.array([12345]))) == []


# ----------------------------------------------------------------------------------------------------------- round trip
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    turn=st.sampled_from(sorted(TURNS)),
    factors=st.tuples(*[st.sampled_from([1.0, 0.325, 2.0])] * 2),
    shift=st.tuples(*[st.integers(-1000, 1000)] * 2),
)
def test_classes_come_back_and_lie_where_the_cells_are(tmp_path, kind, turn, factors, shift):
    place = Sequence([Scale(list(factors), axes=("x", "y")), Translation(list(shift), axes=("x", "y"))])
    sdata = tissue(kind, Sequence([affine(TURNS[turn]), place]), place, shape=(40, 40))
    features = written(sdata, tmp_path / "cells.geojson", overwrite=True)
    [source] = resolve(sdata)
    y, x = np.mgrid[:40, :40] + 0.5
    center = dict(zip(source.instance_ids.astype(str), source.centers[:, ::-1], strict=True))
    for item in features:
        instance = item["properties"]["metadata"]["cytonym_instance_id"]
        shape = shapely.geometry.shape(item["geometry"])
        np.testing.assert_allclose(shapely.get_coordinates(shape.centroid)[0], center[instance], atol=1e-3)
        if kind == "labels" or (kind == "fine labels" and turn == "as it is"):
            np.testing.assert_array_equal(
                shapely.contains_xy(shape, x, y), source.labels.read(0, 40, 0, 40) == int(instance)
            )
            assert shape.area == 15
    cy.io.read_geojson(sdata, tmp_path / "cells.geojson")
    assert labels_in(sdata) == {2: "B cell", 9: "T cell: CD8", 40: None}
    assert labels_in(sdata, "label_source") == {2: "qupath", 9: "qupath", 40: None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", ["geometry", "id", "points", "areas"])
def test_classes_come_back_without_metadata(tmp_path, kind, left):
    """QuPath 0.4 keeps the id, older ones only the geometry; it may also have been drawn by hand."""
    sdata = tissue(kind, affine(TURNS["rows flipped"]))
    features = [f for f in written(sdata, tmp_path / "a.geojson") if "classification" in f["properties"]]
    for item in features:
        del item["properties"]["metadata"]
        if left != "id":
            item["id"] = "8c1b9a52-7b0c-4b53-a9d6-0c1f3f5a8f00"
        shape = shapely.geometry.shape(item["geometry"])
        if left == "points":
            item["geometry"] = {"type": "MultiPoint", "coordinates": [list(shape.centroid.coords[0])]}
        elif left == "areas":
            item["geometry"] = json.loads(shapely.to_geojson(shape.buffer(3)))
            item["properties"]["objectType"] = "annotation"
    cy.io.read_geojson(sdata, save(tmp_path / "b.geojson", features))
    assert labels_in(sdata) == {2: "B cell", 9: "T cell: CD8", 40: None}


def test_several_elements_and_one_of_several_images(tmp_path):
    sdata = tissue()
    sdata["more"] = ShapesModel.parse(np.array([[3.0, 20.0]]), geometry=0, radius=1, index=[9])
    sdata["image_b"] = sdata["image"]
    del sdata.tables["table"]
    keys = {"image_key": "image", "shapes_key": "more"}
    path = cy.io.write_geojson(sdata, tmp_path / "a.geojson", **keys)
    [item] = json.loads(path.read_text())["features"]
    assert item["properties"] == {
        "objectType": "detection",
        "name": "more_9",
        "metadata": {"cytonym_region": "more", "cytonym_instance_id": "9"},
    }
    assert "table" not in sdata.tables
    cy.io.read_geojson(sdata, save(tmp_path / "b.geojson", feature((3.5, 20.5))), **keys)
    assert sdata["table"].obs["label"].tolist() == ["B cell"]
    several = {"image_key": ["image", "image_b"], "labels_key": None, "shapes_key": ["more", "more2"]}
    sdata["more2"] = sdata["more"]
    with pytest.raises(
        ValueError, match=r"belongs to one image, but there are 2: \['image', 'image_b'\]. Choose one with"
    ):
        cy.io.write_geojson(sdata, tmp_path / "c.geojson", **several, table_key="new")  # type: ignore[arg-type]


def test_the_files_of_two_images_add_up_in_one_table(tmp_path):
    parts = [cy.io.from_arrays(np.ones((1, H, W)), MASK, channels=["DNA"], name=name) for name in ("a", "b")]
    sdata = SpatialData(images={k: v for p in parts for k, v in p.images.items()})
    for part in parts:
        sdata.labels.update(part.labels)
    open_table(sdata, resolve(sdata)).write()
    for name in ("a", "b"):
        path = save(tmp_path / f"{name}.geojson", [feature((30, 12), name)])
        cy.io.read_geojson(sdata, path, image_key=f"{name}_image")
    obs = sdata["table"].obs
    assert obs["label"].dropna().to_dict() == {"a_cells_2": "a", "b_cells_2": "b"}
    assert len(written(sdata, tmp_path / "c.geojson", image_key="b_image", classes="label")) == 3
    with pytest.raises(
        ValueError, match=r"such as 'b_cells' \d+. Cells looked for are those of \['a_cells'\] in image 'a_image'"
    ):
        cy.io.read_geojson(sdata, tmp_path / "c.geojson", image_key="a_image")


def test_levels_of_a_pyramid_have_pixels_of_their_own(tmp_path):
    sdata = tissue(scale_factors=[2])
    full = written(sdata, tmp_path / "full.geojson")
    half = written(sdata, tmp_path / "half.geojson", scale="scale1")
    for a, b in zip(full, half, strict=True):
        np.testing.assert_allclose(
            np.array(a["geometry"]["coordinates"]), 2 * np.array(b["geometry"]["coordinates"]), atol=1e-3
        )
    cy.io.read_geojson(sdata, tmp_path / "half.geojson", scale="scale1")
    assert labels_in(sdata) == {2: "B cell", 9: "T cell: CD8", 40: None}
    with pytest.raises(
        ValueError,
        match=r"2 objects are not where the cells are for which they were written, such as 'cells' \d+, now at \(.*"
        r"pixels of another level \(`scale`\)",
    ):
        cy.io.read_geojson(sdata, tmp_path / "half.geojson")
    polygons = tissue("polygons", scale_factors=[2])
    a = written(polygons, tmp_path / "a.geojson", scale="scale1")[0]["geometry"]["coordinates"]
    b = written(polygons, tmp_path / "b.geojson")[0]["geometry"]["coordinates"]
    np.testing.assert_allclose(2 * np.array(a), b)


# ---------------------------------------------------------------------------------------------------------------- write
def test_what_a_feature_says(tmp_path):
    sdata = tissue()
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    table.obs["phenotype_confidence"] = np.array([0.3, np.nan, 0.7], np.float32)
    table.obs["count"] = pd.array([3, None, 5], dtype="Int64")
    table.obsm["phenotype_proba"] = pd.DataFrame(
        {"B cell": np.float32([0.3, 0.2, np.inf]), "T cell: CD8": [0.7, 0.8, 1.0]}, index=table.obs_names
    )
    table.obsm["attributions"] = pd.DataFrame({"CD8": [1.5, 2.5, 3.5], "DNA": [0.0, 0.0, 0.5]}, index=table.obs_names)
    [marker] = table.var_names
    features = written(
        sdata,
        tmp_path / "a.geojson",
        measurements=["count", marker, "attributions:CD8", "attributions"],
        colors={"B cell": "red"},
    )
    first = next(f for f in features if f["properties"]["name"] == "cells_2")
    assert first["type"] == "Feature"
    assert uuid.UUID(first["id"]).version == 5
    assert first["geometry"] == box(28, 11, 33, 14)
    assert first["properties"] == {
        "objectType": "detection",
        "name": "cells_2",
        "classification": {"name": "B cell", "color": [255, 0, 0]},
        "measurements": {
            "confidence": 0.3,
            "p: B cell": 0.3,
            "p: T cell: CD8": 0.7,
            "count": 3.0,
            marker: 1.0,
            "attributions: CD8": 1.5,
            "attributions: DNA": 0.0,
        },
        "metadata": {"cytonym_region": "cells", "cytonym_instance_id": "2", "cytonym_class": "B cell"},
    }
    second = next(f for f in features if f["properties"]["name"] == "cells_9")["properties"]["measurements"]
    assert not {"confidence", "count"} & set(second)
    third = next(f for f in features if f["properties"]["name"] == "cells_40")["properties"]
    assert "classification" not in third
    assert "cytonym_class" not in third["metadata"]
    assert "p: B cell" not in third["measurements"]
    again = written(sdata, tmp_path / "b.geojson")
    assert [f["id"] for f in again] == [f["id"] for f in features]
    assert len({f["id"] for f in features}) == 3


def test_colours_are_those_of_scanpy(tmp_path):
    sdata = tissue()

    def colors(name: str) -> dict[str, list[int]]:
        found = [f["properties"].get("classification") for f in written(sdata, tmp_path / name)]
        return {c["name"]: c["color"] for c in found if c}

    assert colors("a.json") == {"B cell": [31, 119, 180], "T cell: CD8": [255, 127, 14]}
    sdata["table"].uns["phenotype_colors"] = np.array(["#000000", "#0000ff"])
    assert colors("b.json") == {"B cell": [0, 0, 0], "T cell: CD8": [0, 0, 255]}
    sdata["table"].uns["phenotype_colors"] = {"B cell": (1, 1, 1)}
    assert colors("c.json")["B cell"] == [255, 255, 255]
    with pytest.raises(ValueError, match=r"'reddish' of class 'B cell' is no colour. Give a name such as 'red'"):
        cy.io.write_geojson(sdata, tmp_path / "d.json", colors={"B cell": "reddish"})
    sdata["table"].obs["phenotype"] = "a\nb"
    with pytest.raises(ValueError, match=r"line breaks, but `obs\['phenotype'\]` has \['a\\nb'\]"):
        cy.io.write_geojson(sdata, tmp_path / "d.json")


def test_circles_are_true_circles_in_qupath(tmp_path):
    [first, *_] = written(tissue("circles"), tmp_path / "a.geojson")
    assert first["geometry"]["isEllipse"] is True
    assert shapely.geometry.shape(first["geometry"]).bounds == pytest.approx((28.5, 10.5, 32.5, 14.5))
    sdata = tissue("circles")
    sdata["cells"]["radius"] = 0.0
    assert {f["geometry"]["type"] for f in written(sdata, tmp_path / "b.geojson")} == {"Point"}


def test_cells_outside_the_image_or_the_table_are_left_out(tmp_path, caplog):
    sdata = tissue(shape=(15, W))
    with pytest.warns(UserWarning, match="1 of 3 cells have their centre outside the image and are not written"):
        assert len(written(sdata, tmp_path / "a.geojson")) == 2
    sdata = tissue()
    sdata["table"] = sdata["table"][:2].copy()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        assert len(written(sdata, tmp_path / "b.geojson")) == 2
    assert "1 of 3 cells are not in the table and are not written" in caplog.text
    with pytest.raises(
        ValueError,
        match=r"No cell to write: of 3 cells 3 have their centre outside image 'image' \(36 x 2 pixels\), and 0 are not in",
    ):
        cy.io.write_geojson(tissue(shape=(2, W)), tmp_path / "c.geojson")


@pytest.mark.parametrize("when", ["while writing", "before moving"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, when):
    sdata = tissue()
    path = cy.io.write_geojson(sdata, tmp_path / "a.geojson")
    before = path.read_bytes()
    sdata["table"].obs["phenotype"] = "new"
    calls = []

    def interrupt(*args):
        calls.append(args)
        if when == "before moving" or len(calls) > 5:
            raise KeyboardInterrupt
        return json.dumps(*args)

    monkeypatch.setattr(*((_write_geojson, "encode") if when == "while writing" else (files.os, "fsync")), interrupt)
    with pytest.raises(KeyboardInterrupt):
        cy.io.write_geojson(sdata, path, overwrite=True)
    assert calls
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    cy.io.write_geojson(sdata, path, overwrite=True)
    assert path.read_bytes() != before


def test_compressed_files(tmp_path):
    sdata = tissue()
    plain = cy.io.write_geojson(sdata, tmp_path / "a.geojson")
    packed = cy.io.write_geojson(sdata, str(tmp_path / "a.geojson.gz"))
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(plain, "a.geojson")
    for path in (packed, tmp_path / "a.zip"):
        cy.io.read_geojson(sdata, path, key_added=f"label_{path.suffix[1:]}")
        assert labels_in(sdata, f"label_{path.suffix[1:]}") == {2: "B cell", 9: "T cell: CD8", 40: None}


def test_write_says_what_is_wrong(tmp_path):
    sdata = tissue()
    cy.pp.measure_cells(sdata)
    (tmp_path / "there.geojson").write_text("old")
    with pytest.raises(
        FileExistsError, match=r"there.geojson exists. Choose another name, or replace it with overwrite=True"
    ):
        cy.io.write_geojson(sdata, tmp_path / "there.geojson")
    with pytest.raises(ValueError, match=r"must be one of \['.geojson', .*, got 'cells.txt'"):
        cy.io.write_geojson(sdata, tmp_path / "cells.txt")
    with pytest.raises(FileNotFoundError, match="No folder '.*nowhere' to write 'a.geojson' into. Make it first"):
        cy.io.write_geojson(sdata, tmp_path / "nowhere" / "a.geojson")
    path = tmp_path / "new.geojson"
    with pytest.raises(KeyError, match=r"No column 'type' in `adata.obs`. Available: \["):
        cy.io.write_geojson(sdata, path, classes="type")
    with pytest.raises(KeyError, match=r"No 'proba' in `adata.obsm`. DataFrames there: \[\]"):
        cy.io.write_geojson(sdata, path, proba="proba")
    with pytest.raises(
        KeyError, match=r"No measurement 'CD99'. Available: columns of `obs` \[.*'area'.*variables \['0'\]"
    ):
        cy.io.write_geojson(sdata, path, measurements="CD99")
    with pytest.raises(
        TypeError, match=r"`obs\['phenotype'\]` is not numeric \(category\), so it cannot be a measurement"
    ):
        cy.io.write_geojson(sdata, path, measurements=["phenotype"])
    sdata["table"].obsm["scores"] = pd.DataFrame({"a": np.ones(3)}, index=sdata["table"].obs_names)
    with pytest.raises(KeyError, match=r"No column 'b' in `obsm\['scores'\]`. Available: \['a'\]"):
        cy.io.write_geojson(sdata, path, measurements="scores:b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.geojson"]


# ----------------------------------------------------------------------------------------------------------------- read
def points(*places) -> dict:
    return {"type": "MultiPoint", "coordinates": [list(place) for place in places]}


OLD = {  # as QuPath 0.2 wrote it: the type is the id, and a class knows its parent
    "type": "Feature",
    "id": "PathAnnotationObject",
    "geometry": points((30.5, 12.5), (6.9, 5.1)),
    "properties": {
        "classification": {"name": "Positive", "colorRGB": -3670016, "parentClass": {"name": "Tumor", "colorRGB": -1}},
        "isLocked": False,
        "measurements": [],
    },
}
FILES: dict[str, tuple[Any, dict[int, str | None]]] = {
    "0.2, a list": ([OLD], {2: "Tumor: Positive", 9: "Tumor: Positive", 40: None}),
    "0.2, one object": (OLD, {2: "Tumor: Positive", 9: "Tumor: Positive", 40: None}),
    "0.3, object_type": (
        {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "id": "PathCellObject",
                    "geometry": box(20, 8, 36, 16),
                    "nucleusGeometry": box(1, 1, 2, 2),
                    "properties": {
                        "object_type": "cell",
                        "classification": {"name": "Stroma", "colorRGB": -6895466},
                        "isLocked": True,
                        "measurements": [{"name": "Cell: Area", "value": 12.5}],
                    },
                },
                {"type": "Feature", "geometry": box(0, 0, 36, 24), "properties": {"object_type": "annotation"}},
            ],
        },
        {2: "Stroma", 9: None, 40: None},
    ),
    "0.4, names": (
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "id": "0b5c9d3e-42a8-4f57-93d4-6bb0ea9f2c11",'
        '"geometry": {"type": "Polygon", "coordinates": [[[2, 2], [18, 2], [18, 22], [2, 22], [2, 2]]]}, "properties":'
        '{"objectType": "annotation", "classification": {"names": ["T cell", "CD8"], "color": [200, 0, 0]},'
        '"measurements": {"Area": NaN}}}]}',
        {2: None, 9: "T cell: CD8", 40: "T cell: CD8"},
    ),
    "a class as text, of a MultiPolygon": (
        [feature({"type": "MultiPolygon", "coordinates": [box(25, 8, 35, 18)["coordinates"]]}, None) | {
            "properties": {"classification": "Tumor"}
        }],
        {2: "Tumor", 9: None, 40: None},
    ),
    "objects in objects": (
        [feature(box(0, 0, 1, 1), {}, childObjects=[feature((30, 12), "B cell")])],
        {2: "B cell", 9: None, 40: None},
    ),
    "a hole": (
        [feature({"type": "Polygon", "coordinates": [*box(0, 0, 36, 24)["coordinates"], *box(20, 8, 36, 16)["coordinates"]]})],
        {2: None, 9: "B cell", 40: "B cell"},
    ),
    "ignored and lines": (
        [
            feature(box(0, 0, 36, 24), "Region*"),
            feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}),
            feature((30, 12), "B cell"),
        ],
        {2: "B cell", 9: None, 40: None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize("kind", ["labels", "points"])
def test_files_of_every_version(tmp_path, version, kind):
    sdata = tissue(kind)
    document, expected = FILES[version]
    cy.io.read_geojson(sdata, save(tmp_path / "a.geojson", document))
    assert labels_in(sdata) == expected
    assert isinstance(sdata["table"].obs["label"].dtype, pd.CategoricalDtype)


def test_points_name_the_cell_whose_mask_or_shape_holds_them_else_the_nearest_centre(tmp_path):
    """A point in the corner of a cell, one between cells, and one that is near no cell."""
    places = save(
        tmp_path / "a.geojson", [feature(points((28.1, 11.1))), feature((6.5, 8.5), "near"), feature((0.5, 23))]
    )
    for kind in KINDS:
        sdata = tissue(kind)
        with pytest.warns(UserWarning, match="1 of 3 objects with a class name no cell"):
            cy.io.read_geojson(sdata, places, max_distance_px=None if kind == "points" else 3.5)
        assert labels_in(sdata) == {2: "B cell", 9: "near", 40: None}
    um = tissue("points", image := Scale([4.0, 4.0], axes=("x", "y")), image)  # half a cell is one pixel
    with pytest.warns(UserWarning, match="1 of 2 objects"):
        cy.io.read_geojson(um, save(tmp_path / "b.geojson", [feature((30.5, 13.4)), feature((6.5, 6.6), "far")]))
    assert labels_in(um) == {2: "B cell", 9: None, 40: None}


def test_the_smallest_detection_around_a_centre_names_its_cell(tmp_path):
    sdata = tissue("points")
    inner, outer = feature(box(28, 10, 33, 15), "inner", "cell"), feature(box(20, 8, 36, 20), "outer", "detection")
    both = feature(box(0, 0, 14, 24), "both", "tile")  # holds two centres, names the one in its middle
    path = save(tmp_path / "a.geojson", [inner, outer, both])
    with pytest.warns(UserWarning, match="1 of 3 objects with a class name no cell"):
        cy.io.read_geojson(sdata, path)
    assert labels_in(sdata)[2] == "inner"
    assert sorted(str(v) for v in (labels_in(sdata)[9], labels_in(sdata)[40])) == ["None", "both"]


def test_a_centre_on_the_border_of_two_areas_belongs_to_one(tmp_path):
    sdata = tissue("points")
    areas = [feature(box(0, 0, 30.5, 24), "left"), feature(box(30.5, 0, 36, 24), "right")]
    cy.io.read_geojson(sdata, save(tmp_path / "a.geojson", areas))
    assert labels_in(sdata) == {2: "right", 9: "left", 40: "left"}


def test_labels_add_up_and_are_corrected(tmp_path):
    sdata = tissue()
    table = sdata["table"]
    table.obs["area"] = [1.0, 2.0, 3.0]
    table.obs["label"] = pd.Categorical(["old", None, "old"], categories=["unused", "old"])
    table.obs["label_source"] = ["napari", None, "napari"]
    path = save(tmp_path / "a.geojson", [feature((30, 12), "new"), feature((6, 5), "new")])
    result = cy.io.read_geojson(sdata, path, inplace=False)
    assert result is not None
    assert table.obs["label"].tolist()[0] == "old"
    assert result.obs["label"].tolist() == ["new", "new", "old"]
    assert result.obs["label"].cat.categories.tolist() == ["unused", "old", "new"]
    assert result.obs["label_source"].tolist() == ["qupath", "qupath", "napari"]
    cy.io.read_geojson(sdata, path)
    pd.testing.assert_frame_equal(sdata["table"].obs, result.obs)
    with pytest.raises(
        ValueError, match=r"`obs\['area'\]` holds numbers \(float64\), not labels. Choose another `key_added`"
    ):
        cy.io.read_geojson(sdata, path, key_added="area")


def test_conflicts(tmp_path):
    sdata = tissue()
    path = save(
        tmp_path / "a.geojson", [feature((30, 12), "T"), feature(box(20, 0, 36, 24), "B"), feature((6, 5), "T")]
    )
    with pytest.raises(
        ValueError,
        match=r"1 cells get several classes: 'cells' 2: \['B', 'T'\]. Correct them in QuPath, take the last in",
    ):
        cy.io.read_geojson(sdata, path)
    assert "label" not in sdata["table"].obs
    cy.io.read_geojson(sdata, path, conflicts="last")
    assert labels_in(sdata) == {2: "B", 9: "T", 40: None}


def test_only_what_was_changed(tmp_path, caplog):
    sdata = tissue()
    features = written(sdata, tmp_path / "a.geojson")
    by_name = {f["properties"]["name"]: f["properties"] for f in features}
    by_name["cells_40"]["classification"] = {"name": "tumor", "color": [0, 0, 0]}
    path = save(tmp_path / "b.geojson", [*features, feature((30, 12), "B cell, really")])
    with pytest.raises(ValueError, match=r"'cells' 2: \['B cell', 'B cell, really'\].*only_changed=True"):
        cy.io.read_geojson(sdata, path)
    cy.io.read_geojson(sdata, path, only_changed=True)
    assert labels_in(sdata) == {2: "B cell, really", 9: None, 40: "tumor"}
    assert not caplog.records
    cy.io.read_geojson(sdata, path, key_added="all", conflicts="last")
    assert "2 of 4 objects still have the class that write_geojson gave them" in caplog.text
    cy.io.read_geojson(sdata, tmp_path / "a.geojson", key_added="none", only_changed=True)
    assert sdata["table"].obs["none"].isna().all()
    for item in features:
        del item["properties"]["metadata"]
    with pytest.raises(ValueError, match=r"cannot be told: 3 objects of .* QuPath keeps it from version 0.5 on"):
        cy.io.read_geojson(sdata, save(tmp_path / "c.geojson", features), only_changed=True)


def test_names_that_qupath_spells_in_its_own_way(tmp_path):
    sdata = tissue()
    sdata["table"].obs["phenotype"] = "CD4:T"
    features = written(sdata, tmp_path / "a.geojson")
    for item in features:
        item["properties"]["classification"] = {"names": ["CD4", "T"], "color": [0, 0, 0]}
    cy.io.read_geojson(sdata, save(tmp_path / "b.geojson", features))
    assert set(sdata["table"].obs["label"]) == {"CD4:T"}


def test_rows_that_the_table_lacks(tmp_path):
    sdata = tissue()
    sdata["table"] = sdata["table"][:2].copy()
    with pytest.warns(UserWarning, match="0 of 1 objects with a class name no cell, and 1 cells are not in the table"):
        cy.io.read_geojson(sdata, save(tmp_path / "a.geojson", feature(box(0, 0, 36, 24))))
    assert sdata["table"].obs["label"].tolist() == ["B cell", "B cell"]


def geometry(coordinates: Any, kind: str = "Polygon") -> dict:
    return feature({"type": kind, "coordinates": coordinates})


NAN = float("nan")
BROKEN = {
    "not JSON": ("{", r"is not JSON: Expecting property name.*In QuPath: File > Export objects as GeoJSON"),
    "a huge number": ("1" * 5000, "is not JSON: Exceeds the limit"),
    "binary": (b"\x00\xff\xfe", "is not JSON: 'utf-8' codec can't decode"),
    "deep": ("[" * 200_000, "is nested too deeply to be GeoJSON"),
    "torn gzip": (b"\x1f\x8b\x08\x00", "is compressed, but cannot be opened"),
    "torn zip": (b"PK\x03\x04torn", "is compressed, but cannot be opened: File is not a zip file"),
    "other JSON": ({"cells": []}, r"is JSON, but not GeoJSON with features: it holds 'None' where a Feature"),
    "a number": ("3", "it holds 'int' where a Feature"),
    "no list": ({"type": "FeatureCollection", "features": {}}, "is a FeatureCollection without a list of features"),
    "empty": ({"type": "FeatureCollection", "features": []}, "holds no object. In QuPath, choose 'All objects' or"),
    "no class": (
        [feature((1, 1), None), feature(box(0, 0, 9, 9), "Ignore*"), feature((1, 1), "")],
        r"No object of .* gives a class to a cell. 3 objects: 0 with a class, 2 without, 1 of a class that ends with \*, 0 lines",
    ),
    "properties": ([feature((1, 1)) | {"properties": [3]}], "Object 1 of the file cannot be read: its properties are a list"),
    "class": ([feature((1, 1)), feature((1, 1), {"name": 3})], "Object 2 .* its classification is not text"),
    "class in a list": ([feature((1, 1), ["B"])], "Object 1 .* its classification is not text"),
    "long class": ([feature((1, 1), "x" * 201)], "the name of its class has 201 characters, more than 200: 'xxx"),
    "controls": ([feature((1, 1), "a\x00b")], "the name of its class holds control characters"),
    "no geometry": ([feature(None)], "Object 1 of the file cannot be read: it has no geometry"),
    "geometry": ([geometry([1, 2], "Circle")], "its geometry is a 'Circle', not one of Point, MultiPoint, Polygon"),
    "NaN": ([feature((NAN, 1))], "its coordinates are NaN or infinite"),
    "infinite": ('[{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1e999, 0]}, "properties":'
        '{"classification": "B"}}]', "its coordinates are NaN or infinite"),
    "enormous": ([feature((10**400, 1))], "its coordinates are NaN or infinite"),
    "text": ([feature(("1", "2"))], "its coordinates are not pairs of numbers"),
    "truth": ([feature((True, 2))], "its coordinates are not pairs of numbers"),
    "single": ([feature((1,))], "its coordinates are not pairs of numbers"),
    "no coordinates": ([geometry(None)], "its Polygon has no coordinates"),
    "no rings": ([geometry([])], "its Polygon has no coordinates"),
    "no points": ([geometry([], "MultiPoint")], "its geometry has no coordinates"),
    "two corners": ([geometry([[[0, 0], [1, 1]]])], "its Polygon has a ring of fewer than three corners"),
    "outside": (
        [feature((5, 5)), feature(box(100, 5, 120, 9))],
        r"1 of 2 objects lie outside image 'image' \(36 x 24 pixels\), such as object 2 at \(100.0, 5.0\). Were they drawn",
    ),
    "no cell": (
        [feature((0, 23))],
        r"None of the objects with a class in .* names a cell. 1 objects: 1 with a class.*a centre within 4.5 pixels",
    ),
    "unknown cell": (
        [feature((5, 5), metadata={"cytonym_region": "other", "cytonym_instance_id": "7"})],
        r"1 objects were written for cells that are not there, such as 'other' 7. Cells looked for are those of \['cells'\] in",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> SpatialData:
    return tissue()


@pytest.mark.parametrize("what", BROKEN)
def test_read_says_what_is_wrong_and_writes_nothing(plain, tmp_path, what):
    document, message = BROKEN[what]
    path = tmp_path / "a.geojson"
    if isinstance(document, bytes):
        path.write_bytes(document)
    else:
        save(path, document)
    before = plain["table"].copy()
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        cy.io.read_geojson(plain, path)
    pd.testing.assert_frame_equal(plain["table"].obs, before.obs)


def test_read_says_what_is_wrong_with_its_arguments(plain, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"No file '.*a.geojson'. In QuPath: File > Export objects as GeoJSON"):
        cy.io.read_geojson(plain, tmp_path / "a.geojson")
    path = save(tmp_path / "b.geojson", [feature((30, 12))])
    with pytest.raises(ValueError, match="`conflicts` must be 'error' or 'last', got 'first'"):
        cy.io.read_geojson(plain, path, conflicts="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_distance_px` must be at least 0, got -1"):
        cy.io.read_geojson(plain, path, max_distance_px=-1)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"c.zip should hold one GeoJSON file, but holds \['a.txt'\]"):
        cy.io.read_geojson(plain, tmp_path / "c.zip")
    monkeypatch.setattr(_parse_geojson, "LARGEST_BYTES", 100)
    (tmp_path / "d.gz").write_bytes(gzip.compress(b" " * 10_000))
    with pytest.raises(ValueError, match="d.gz holds more than .* GiB. Export only the objects with a class"):
        cy.io.read_geojson(plain, tmp_path / "d.gz")


def test_labels_in_a_store(tmp_path):
    """Chunked labels are read where they are needed."""
    stored = zarr.create_array(tmp_path / "mask.zarr", shape=(H, W), chunks=(8, 8), dtype="int32")
    stored[:] = MASK
    sdata = cy.io.from_arrays(np.ones((1, H, W), np.uint8), stored, channels=["DNA"])
    assert len(written(sdata, tmp_path / "a.geojson")) == 3
    cy.io.read_geojson(sdata, save(tmp_path / "b.geojson", feature(points((28.1, 11.1), (6, 5)))))
    assert labels_in(sdata) == {2: "B cell", 9: "B cell", 40: None}
