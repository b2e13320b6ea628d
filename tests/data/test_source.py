"""Where cells are in their image, against windows cut by hand, and what is said when the input is not clear."""

from __future__ import annotations

import pickle
import re

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import zarr
from anndata import AnnData
from geopandas import GeoDataFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation

from cytonym.data.source import image_sources, resolve

H, W = 24, 36
CELLS = {9: (5, 6), 2: (12, 30), 40: (18, 11)}  # id: middle pixel (y, x) in the world
IDS = np.array(sorted(CELLS))
WORLD = np.arange(H * W).reshape(H, W)  # a pixel's value tells where it is
MASK = np.zeros((H, W), np.int32)
for cell, (row, column) in CELLS.items():
    MASK[row - 1 : row + 2, column - 2 : column + 3] = cell

# How an image may lie in the world: the stored pixels, and the matrix (x, y) of image -> world.
TURNS = {
    "as it is": (lambda a: a, [[1, 0, 0], [0, 1, 0]]),
    "rows flipped": (lambda a: a[::-1], [[1, 0, 0], [0, -1, H]]),
    "columns flipped": (lambda a: a[:, ::-1], [[-1, 0, W], [0, 1, 0]]),
    "turned by 180": (lambda a: a[::-1, ::-1], [[-1, 0, W], [0, -1, H]]),
    "transposed": (lambda a: a.T, [[0, 1, 0], [1, 0, 0]]),
    "turned left": (np.rot90, [[0, -1, W], [1, 0, 0]]),
    "turned right": (lambda a: np.rot90(a, -1), [[0, 1, 0], [-1, 0, H]]),
    "cropped": (lambda a: a[3:, 2:-1], [[1, 0, 2], [0, 1, 3]]),
}


def affine(matrix) -> Affine:
    return Affine(np.vstack([matrix, [0, 0, 1]]), input_axes=("x", "y"), output_axes=("x", "y"))


def image(pixels=WORLD, place=None, names=("a", "b"), **kwargs):
    stack = np.stack([pixels + i * pixels.size for i in range(len(names))]).astype(np.int32)
    place = place or Identity()
    return Image2DModel.parse(
        stack, dims=("c", "y", "x"), c_coords=list(names), transformations={"global": place}, **kwargs
    )


def labels(mask=MASK, place=None, **kwargs):
    return Labels2DModel.parse(mask, dims=("y", "x"), transformations={"global": place or Identity()}, **kwargs)


def middles() -> np.ndarray:
    return np.array([CELLS[i] for i in IDS])[:, ::-1] + 0.5


def element(kind: str, place):
    """The cells as an element whose coordinates are the world's pixels."""
    where = {"global": place}
    if kind == "labels":
        return labels(place=place)
    if kind == "circles":
        return ShapesModel.parse(middles(), geometry=0, radius=2, index=IDS, transformations=where)
    if kind == "polygons":
        boxes = shapely.box(*(middles() - [2, 1]).T, *(middles() + [2, 1]).T)
        return ShapesModel.parse(GeoDataFrame(geometry=boxes, index=IDS), transformations=where)
    frame = pd.DataFrame(middles(), columns=["x", "y"], index=IDS)
    return PointsModel.parse(frame, transformations=where)


def simple(**elements) -> SpatialData:
    return SpatialData.init_from_elements({"image": image(), "cells": labels()} | elements)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    turn=st.sampled_from(sorted(TURNS)),
    kind=st.sampled_from(["labels", "circles", "polygons", "points"]),
    size=st.sampled_from([1.0, 0.325, 0.5, 0.377, 2.0, 3.0]),
    shift=st.tuples(*[st.floats(-1e5, 1e5)] * 2),
)
def test_windows_are_those_cut_by_hand(turn, kind, size, shift):
    store, matrix = TURNS[turn]
    stored = np.ascontiguousarray(store(WORLD))
    to_system = Sequence([Scale([size, size], axes=("x", "y")), Translation(list(shift), axes=("x", "y"))])
    sdata = SpatialData.init_from_elements(
        {"image": image(stored, Sequence([affine(matrix), to_system])), "cells": element(kind, to_system)}
    )
    [source] = resolve(sdata)
    assert source.instance_ids.tolist() == IDS.tolist()
    np.testing.assert_allclose(source.spatial, middles() * size + shift, rtol=0, atol=1e-6)
    assert source.shape == (2, *stored.shape)
    for i, center in zip(source.instance_ids, source.centers, strict=True):
        [[y, x]] = np.argwhere(stored == WORLD[CELLS[i]])
        np.testing.assert_allclose(center, [y + 0.5, x + 0.5], atol=1e-6)
        cut = np.asarray(source.pixels[1, y - 1 : y + 2, x - 1 : x + 2])
        by_hand = WORLD[CELLS[i][0] - 1 : CELLS[i][0] + 2, CELLS[i][1] - 1 : CELLS[i][1] + 2] + WORLD.size
        np.testing.assert_array_equal(
            np.sort(cut, axis=None), np.sort(by_hand[:3, :3], axis=None) + (stored.size - WORLD.size)
        )
    if kind == "labels":
        np.testing.assert_array_equal(source.labels.read(0, *stored.shape[:1], 0, stored.shape[1]), store(MASK))
    elif size != 1:
        assert source.pixel_size == pytest.approx(size)


@settings(max_examples=25, deadline=None)
@given(
    own=st.sampled_from(sorted(TURNS)),
    its=st.sampled_from(sorted(TURNS)),
    factors=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 1.7])] * 2),
    shift=st.tuples(*[st.floats(-9, 9)] * 2),
)
def test_labels_of_any_grid_are_read_at_the_centres_of_the_images_pixels(own, its, factors, shift):
    """Against one pixel after another through spatialdata's own matrices."""
    place = Sequence([affine(TURNS[own][1]), Scale(list(factors), ("x", "y")), Translation(list(shift), ("x", "y"))])
    sdata = SpatialData.init_from_elements({"image": image(place=affine(TURNS[its][1])), "cells": labels(place=place)})
    [source] = resolve(sdata)
    to_system = affine(TURNS[its][1]).to_affine_matrix(("x", "y"), ("x", "y"))
    to_labels = np.linalg.inv(place.to_affine_matrix(("x", "y"), ("x", "y"))) @ to_system
    slow = np.zeros((H, W), np.int32)
    for y in range(H):
        for x in range(W):
            column, row, _ = np.floor(to_labels @ [x + 0.5, y + 0.5, 1] + 1e-6).astype(int)
            if 0 <= row < H and 0 <= column < W:
                slow[y, x] = MASK[row, column]
    assert source.labels.shape == (H, W)
    np.testing.assert_array_equal(source.labels.read(0, H, 0, W), slow)
    np.testing.assert_array_equal(source.labels.read(4, 17, 9, 30), slow[4:17, 9:30])


@pytest.mark.parametrize("size", [0.1, 0.325, 0.377, 1 / 3])
def test_centres_on_the_border_of_a_pixel_stay_there(size):
    place = Sequence([Scale([size, size], ("x", "y")), Translation([1234.567, 76543.21], ("x", "y"))])
    points = np.array([[x, y] for x in range(W) for y in range(0, H, 5)], float)
    circles = ShapesModel.parse(points, geometry=0, radius=1, transformations={"global": place})
    [source] = resolve(SpatialData.init_from_elements({"image": image(place=place), "cells": circles}))
    np.testing.assert_array_equal(source.centers, points[:, ::-1])


@pytest.mark.parametrize("kind", ["polygons", "circles", "mixed"])
def test_shapes_that_are_nowhere(kind):
    full, nothing = {
        "polygons": (shapely.box(2, 3, 6, 7), shapely.Polygon()),
        "circles": (shapely.Point(4, 5), shapely.Point()),
        "mixed": (shapely.box(2, 3, 6, 7), None),
    }[kind]
    frame = GeoDataFrame({"radius": 1.0}, geometry=[full, nothing], index=[0, 1])
    sdata = SpatialData.init_from_elements({"image": image()})
    sdata.shapes["cells"] = ShapesModel.parse(frame)
    [source] = resolve(sdata)
    np.testing.assert_array_equal(source.centers, [[5, 4], [np.nan, np.nan]])


def test_levels_of_a_pyramid():
    place = Scale([0.5, 0.5], ("x", "y"))
    sdata = SpatialData.init_from_elements(
        {"image": image(place=place, scale_factors=[2]), "cells": labels(place=place, scale_factors=[2, 2])}
    )
    [full] = resolve(sdata)
    [half] = resolve(sdata, scale="scale1")
    assert (full.shape, half.shape) == ((2, H, W), (2, H // 2, W // 2))
    assert (full.pixel_size, half.pixel_size) == (0.5, 1.0)
    np.testing.assert_allclose(half.centers, full.centers / 2)
    np.testing.assert_allclose(half.spatial, full.spatial)
    np.testing.assert_array_equal(half.labels.read(0, H // 2, 0, W // 2), MASK[1::2, 1::2])
    with pytest.raises(
        KeyError, match=re.escape("No level 'scale9' in `sdata.images['image']`. Available: ['scale0', 'scale1']")
    ):
        resolve(sdata, scale="scale9")
    with pytest.raises(KeyError, match="Image 'image' has one level only, so `scale='scale1'` is not there"):
        resolve(simple(), scale="scale1")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Identity(), None),
        (Sequence([Identity(), Translation([3, 4], ("x", "y"))]), None),
        (affine(TURNS["rows flipped"][1]), None),
        (MapAxis({"x": "y", "y": "x"}), None),
        (Scale([1.0, 1.0], ("x", "y")), 1.0),
        (Scale([0.5, 0.5], ("x", "y")), 0.5),
        (affine([[0, -0.25, 3], [0.25, 0, 1]]), 0.25),
        (Scale([0.5, 2.0], ("x", "y")), None),
    ],
    ids=str,
)
def test_pixel_size_survives_the_disk(place, expected, tmp_path):
    sdata = SpatialData.init_from_elements({"image": image(place=place), "cells": labels(place=place)})
    assert resolve(sdata)[0].pixel_size == expected
    sdata.write(tmp_path / "a.zarr")
    assert resolve(sd.read_zarr(tmp_path / "a.zarr"))[0].pixel_size == expected


def test_pyramid_of_unknown_pixel_size():
    [source] = resolve(simple(image=image(scale_factors=[2])), scale="scale1")
    assert source.pixel_size is None


def test_an_image_on_disk_is_handed_over_as_it_is_stored(tmp_path):
    simple().write(tmp_path / "a.zarr")
    [source] = resolve(sd.read_zarr(tmp_path / "a.zarr"), channels=["b"])
    assert isinstance(source.pixels, zarr.Array)
    assert len(pickle.dumps(source)) < 10_000
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.pixels[source.channel_index[0]], WORLD + WORLD.size)
    np.testing.assert_array_equal(again.labels.read(0, H, 0, W), MASK)


def test_a_lazy_image_stays_lazy():
    def refuse(block):
        msg = "pixels were computed"
        raise AssertionError(msg)

    sdata = simple()
    lazy = da.map_blocks(refuse, sdata["image"].data, dtype=np.int32, meta=np.empty((0, 0, 0), np.int32))
    sdata["image"] = sdata["image"].copy(data=lazy)
    assert isinstance(resolve(sdata)[0].pixels, da.Array)


def test_nothing_is_changed():
    sdata = simple(circles=element("circles", Identity()))
    before = sdata["circles"].copy()
    resolve(sdata, shapes_key="circles")
    pd.testing.assert_frame_equal(pd.DataFrame(sdata["circles"]), pd.DataFrame(before))


def test_subset():
    [source] = resolve(simple())
    part = source.subset([2, 0])
    assert part.instance_ids.tolist() == source.instance_ids[[2, 0]].tolist()
    np.testing.assert_array_equal(part.centers, source.centers[[2, 0]])
    assert source.subset(source.instance_ids > 5).instance_ids.tolist() == [9, 40]


def test_channels_by_name():
    sdata = simple(image=image(names=("DNA", "CD3", "CD8")))
    [source] = resolve(sdata, channels=["CD8", "DNA"])
    assert (source.channels, source.channel_index.tolist(), source.shape[0]) == (("CD8", "DNA"), [2, 0], 2)
    assert resolve(sdata, channels="CD3")[0].channels == ("CD3",)
    with pytest.raises(
        KeyError, match=re.escape("No channel ['CD4'] in image 'image'. Available: ['DNA', 'CD3', 'CD8']")
    ):
        resolve(sdata, channels=["DNA", "CD4"])
    with pytest.raises(ValueError, match=re.escape("`channels` names a channel twice: ['DNA', 'DNA']")):
        resolve(sdata, channels=["DNA", "DNA"])
    with pytest.raises(ValueError, match="`channels` is empty"):
        resolve(sdata, channels=[])


def test_channels_without_names(tmp_path):
    unnamed = Image2DModel.parse(np.zeros((2, H, W)), dims=("c", "y", "x"))
    sdata = simple(image=unnamed)
    sdata.write(tmp_path / "a.zarr")
    for data in (sdata, sd.read_zarr(tmp_path / "a.zarr")):
        assert resolve(data)[0].channels == ("0", "1")
        assert resolve(data, channels=["1"])[0].channel_index.tolist() == [1]
        with pytest.raises(TypeError, match=re.escape("Channels are chosen by name, never by number, got [1]")):
            resolve(data, channels=[1])
        with pytest.raises(KeyError, match=r"have numbers for names.*set_channel_names\('image', \[\.\.\.\]\)"):
            resolve(data, channels=["CD3"])


def test_channel_names_that_repeat():
    sdata = simple(image=image(names=("DNA", "CD3", "DNA")))
    with pytest.raises(ValueError, match=re.escape("Channel names of image 'image' repeat: ['DNA']")):
        resolve(sdata)


TILT = affine([[0.8, -0.6, 0], [0.6, 0.8, 0]])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"image": image(place=TILT)}, r"Image 'image' is rotated or sheared: .*spatialdata.rasterize"),
        ({"image": image(place=affine([[1, 0.2, 0], [0, 1, 0]]))}, r"Image 'image' is rotated or sheared"),
        ({"cells": labels(place=TILT)}, r"Labels 'cells', seen from image 'image', is rotated"),
        ({"cells": labels(place=affine([[0, 0, 3], [0, 1, 0]]))}, r"squeezes the plane flat"),
        ({"cells": labels(np.zeros_like(MASK))}, r"No cells: labels element 'cells' of image 'image' is empty"),
        ({"cells": labels(MASK.astype(float))}, r"Labels 'cells' must hold integers, one number a cell, got float64"),
        (
            {"image": Image3DModel.parse(np.zeros((1, 2, H, W)), dims=("c", "z", "y", "x"))},
            r"Image 'image' has axes \('c', 'z', 'y', 'x'\)",
        ),
        (
            {"cells": ShapesModel.parse(middles(), geometry=0, radius=1, index=[4, 4, 7])},
            r"Ids of shapes element 'cells' repeat: \[4\]",
        ),
    ],
)
def test_elements_that_cannot_be_used(elements, message):
    with pytest.raises(ValueError, match=message):
        resolve(simple(**elements))


def test_rotated_centres_are_fine():
    """Only pixels need whole rows and columns; a point is a point."""
    sdata = SpatialData.init_from_elements({"image": image(), "cells": element("circles", TILT)})
    [source] = resolve(sdata)
    np.testing.assert_allclose(source.spatial, middles() @ np.array([[0.8, 0.6], [-0.6, 0.8]]))


def test_points_whose_index_repeats_are_named_by_their_column():
    frame = pd.DataFrame(middles(), columns=["x", "y"], index=[0, 0, 1])
    frame["cell"] = IDS
    points = PointsModel.parse(frame, instance_key="cell")
    [source] = resolve(SpatialData.init_from_elements({"image": image(), "cells": points}))
    assert source.instance_ids.tolist() == IDS.tolist()


def test_coordinate_systems():
    sdata = simple(cells=labels(place=Scale([2.0, 2.0], ("x", "y"))))
    sd.transformations.set_transformation(sdata["image"], Identity(), "aligned")
    sd.transformations.set_transformation(sdata["cells"], Identity(), "aligned")
    np.testing.assert_allclose(resolve(sdata)[0].centers, 2 * resolve(sdata, coordinate_system="aligned")[0].centers)
    with pytest.raises(ValueError, match=r"No image is in coordinate system 'um'.*'image': \['aligned', 'global'\]"):
        resolve(sdata, coordinate_system="um")
    with pytest.raises(ValueError, match=r"Element 'image' is not in coordinate system 'um'.*\['aligned', 'global'\]"):
        resolve(sdata, image_key="image", labels_key="cells", coordinate_system="um")


def test_images_alone():
    sources = image_sources(simple(other=image()), channels=["b"])
    assert [(s.image_key, s.region, len(s.centers), s.shape) for s in sources] == [
        ("image", "", 0, (1, H, W)),
        ("other", "", 0, (1, H, W)),
    ]


def test_table_of_no_element():
    obs = pd.DataFrame({"region": pd.Categorical(["gone"]), "instance_id": [9]}, index=["a"])
    table = TableModel.parse(AnnData(obs=obs), region="gone", region_key="region", instance_key="instance_id")
    with pytest.warns(UserWarning, match="gone"):
        sdata = SpatialData.init_from_elements({"image": image(), "cells": labels(), "table": table})
    with pytest.raises(ValueError, match=re.escape("Table 'table' annotates ['gone'], but sdata has no such")):
        resolve(sdata)
