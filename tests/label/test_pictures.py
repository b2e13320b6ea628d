"""Patches and pieces of tissue are what a slow, obvious crop gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
import zarr
from spatialdata.models import Image2DModel
from zarr.storage import MemoryStore

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.label.blocks import Blocks, Cache
from cytonym.label.pictures import Pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spatialdata import SpatialData

SIDE = 12


def tissue(dtype: str = "uint16", channels: int = 3, shape: tuple[int, int] = (70, 90), seed: int = 0) -> SpatialData:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 250, (channels, *shape)).astype(dtype)
    mask = np.zeros(shape, dtype=np.int32)
    for k, (y, x) in enumerate([(0, 0), (3, 60), (30, 30), (33, 39), (60, 80), (64, 2), (40, 84)]):
        mask[y : y + 6, x : x + 6] = 10 + 3 * k
    return cy.io.from_arrays(pixels, mask, channels=[f"m{i}" for i in range(channels)])


@pytest.fixture
def pictures() -> Iterator[Callable[..., Pictures]]:
    made: list[Pictures] = []

    def make(sdata: SpatialData, size_px: int = SIDE, change: Any = lambda sources: sources, **keys: Any) -> Pictures:
        sources = resolve(sdata, **keys)
        joined = open_table(sdata, sources)
        made.append(Pictures(sdata, change(sources), joined.rows, joined.table.n_obs, size_px))
        return made[-1]

    yield make
    for each in made:
        each.close()


def crop(image: np.ndarray, y: float, x: float, side: int) -> np.ndarray:
    """A window, pixel by pixel, zero beyond the border."""
    out = np.zeros((len(image), side, side), image.dtype)
    top, left = int(np.floor(y)) - side // 2, int(np.floor(x)) - side // 2
    for i in range(side):
        for j in range(side):
            if 0 <= top + i < image.shape[1] and 0 <= left + j < image.shape[2]:
                out[:, i, j] = image[:, top + i, left + j]
    return out


def outlined(mask: np.ndarray, cell: int) -> np.ndarray:
    """Pixels of a cell with a neighbour that is not of it; the image's border counts as one."""
    own = np.pad(mask == cell, 1)
    inner = own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
    return own[1:-1, 1:-1] & ~inner


@pytest.mark.parametrize("kind", ["numpy", "zarr", "many channels a chunk"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_gallery_is_a_slow_crop(pictures: Callable[..., Pictures], dtype: str, kind: str) -> None:
    sdata = tissue(dtype, channels=5)
    image = sdata["image"].to_numpy()
    mask = sdata["cells"].to_numpy()
    chunks = {"zarr": (1, 16, 20), "many channels a chunk": (3, 32, 64)}.get(kind)

    def store(sources: Any) -> Any:
        stored = image if chunks is None else zarr.create_array(MemoryStore(), data=image, chunks=chunks)
        return [replace(sources[0], pixels=stored)]

    found = pictures(sdata, change=store)
    rows = np.array([6, 0, 3, 3, 5, 1])
    for channels in (None, [4, 0], [2]):
        patches = found.gallery(rows, channels)
        assert patches.pixels.dtype == dtype
        for k, row in enumerate(rows):
            y, x = found.sources[0].centers[row]
            assert np.array_equal(patches.pixels[k], crop(image, y, x, SIDE)[channels or slice(None)])
            cell = found.sources[0].instance_ids[row]
            assert np.array_equal(patches.outline[k], crop(outlined(mask, cell)[None], y, x, SIDE)[0])


def test_each_chunk_is_decoded_once(monkeypatch: pytest.MonkeyPatch, pictures: Callable[..., Pictures]) -> None:
    reads: Counter[str] = Counter()

    class Counting(MemoryStore):
        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            if "c/" in key:
                reads[key] += 1
            return await super().get(key, *args, **kwargs)

    sdata = tissue(channels=4)
    stored = zarr.create_array(Counting(), data=sdata["image"].to_numpy(), chunks=(1, 35, 45))
    monkeypatch.setattr("cytonym.label.blocks.LEAST_PX", 1)
    found = pictures(sdata, change=lambda sources: [replace(sources[0], pixels=stored)])
    reads.clear()
    found.gallery(np.arange(7), [0, 2])
    assert set(reads.values()) == {1}
    assert {key.split("/")[1] for key in reads} == {"0", "2"}  # no channel that nobody asked for
    found.gallery(np.arange(7), [0, 2])
    found.context(0, 0, 0, 70, 90, px=90, channels=[0])
    assert set(reads.values()) == {1}  # and none again


def test_cache_lets_the_oldest_go() -> None:
    cache = Cache(nbytes=100)
    for k in range(20):
        cache.put((0, 0, 0, k), np.zeros(30, dtype=np.uint8))
        assert cache.used <= 100
    assert cache.get((0, 0, 0, 0)) is None
    assert cache.get((0, 0, 0, 19)) is not None
    cache.put((1, 0, 0, 0), np.zeros(1000, dtype=np.uint8))  # too large to keep
    assert cache.used <= 100


@pytest.mark.parametrize("shape", [(7, 5), (600, 300)])
def test_blocks_read_any_box(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, shape)
    for array in (labels, zarr.create_array(MemoryStore(), data=labels, chunks=(37, 300))):
        blocks = Blocks(array, Cache())
        height, width = shape
        for y0, y1, x0, x1 in ((0, height, 0, width), (2, 5, 1, 4), (height - 1, height, 0, 1), (3, 3, 0, 2)):
            assert np.array_equal(blocks[slice(y0, y1), slice(x0, x1)], labels[y0:y1, x0:x1])


def test_floats_are_scaled_and_the_limits_told(pictures: Callable[..., Pictures]) -> None:
    sdata = tissue("float32")
    sdata["image"].data[...] = sdata["image"].data / 10 - 3
    found = pictures(sdata)
    patches = found.gallery(np.arange(7))
    assert patches.pixels.dtype == "<u2"
    [low, high], *_ = found.ranges([0]) or []
    y, x = found.sources[0].centers[2]
    true = crop(sdata["image"].to_numpy(), y, x, SIDE)[0]
    assert np.allclose(low + patches.pixels[2, 0] / 65535 * (high - low), np.clip(true, low, high), atol=1e-3)
    [[dark, bright]] = found.limits([0])
    assert 0 <= dark < bright <= 65535


def test_pixels_that_are_no_numbers_are_dark(pictures: Callable[..., Pictures]) -> None:
    pixels = np.ones((1, 30, 30), dtype=np.float32)
    pixels[0, 10:12, 10:12], pixels[0, 12, 12] = np.nan, np.inf
    pixels[0, 20, 20] = 5
    sdata = cy.io.from_arrays(pixels, channels=["m"], centers=[[11, 11], [20, 20]])
    found = pictures(sdata, size_px=8)
    patches = found.gallery(np.array([0, 1]))
    assert patches.pixels[0, 0, 3, 3] == 0
    assert patches.pixels[0, 0, 5, 5] == 65535
    assert found.ranges() == [[0.0, 5.0]]


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64", "int16", "bool"])
def test_any_numbers_are_shown(pictures: Callable[..., Pictures], dtype: str) -> None:
    found = pictures(tissue(dtype))
    patches = found.gallery(np.arange(7))
    assert patches.pixels.dtype in (np.dtype("u1"), np.dtype("u2"))
    assert patches.pixels.any()
    assert all(low < high for low, high in found.limits())


def test_limits_are_quantiles(pictures: Callable[..., Pictures]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 1100, (2, 400, 400)).astype(np.uint16)
    pixels[1] = 7
    sdata = cy.io.from_arrays(pixels, channels=["a", "b"], centers=[[200, 200]])
    found = pictures(sdata)
    [dark, bright], flat = found.limits()
    assert dark == pytest.approx(110, abs=3)
    assert bright == pytest.approx(1098, abs=3)
    assert flat == [7, 8]
    assert found.ranges() is None


def test_hundred_channels(pictures: Callable[..., Pictures]) -> None:
    sdata = tissue("uint8", channels=100)
    found = pictures(sdata)
    assert found.gallery(np.arange(7)).pixels.shape == (7, 100, SIDE, SIDE)
    assert len(found.limits()) == 100


def test_windows_larger_than_the_image(pictures: Callable[..., Pictures]) -> None:
    sdata = tissue(shape=(70, 90))
    found = pictures(sdata, size_px=128)
    y, x = found.sources[0].centers[2]
    assert np.array_equal(found.gallery(np.array([2])).pixels[0], crop(sdata["image"].to_numpy(), y, x, 128))


def test_cells_without_a_place(pictures: Callable[..., Pictures]) -> None:
    sdata = cy.io.from_arrays(np.ones((1, 30, 30), np.uint8), channels=["m"], centers=[[5, 5], [500, 500]])

    def lost(sources: Any) -> Any:
        centers = sources[0].centers.copy()
        centers[0] = np.nan
        return [replace(sources[0], centers=centers)]

    found = pictures(sdata, change=lost)
    assert not found.gallery(np.array([0, 1])).pixels.any()
    assert not found.context(0, 0, 0, 30, 30, px=30).rows.any()


def test_too_much_at_once(pictures: Callable[..., Pictures], monkeypatch: pytest.MonkeyPatch) -> None:
    found = pictures(tissue())
    monkeypatch.setattr("cytonym.label.pictures.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="too many at a time"):
        found.gallery(np.arange(7))
    monkeypatch.setattr("cytonym.label.pictures.MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match="Zoom in"):
        found.context(0, 0, 0, 70, 90, px=10)


@pytest.mark.parametrize("box", [(0, 0, 70, 90), (13, 21, 30, 40), (-20, 60, 60, 60), (69, 89, 9, 9)])
@pytest.mark.parametrize("px", [512, 20, 7])
def test_context_is_a_slow_crop(
    pictures: Callable[..., Pictures], box: tuple[int, int, int, int], px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytonym.label.pictures.BAND_PIXELS", 900)  # several bands
    sdata = tissue()
    image, mask = sdata["image"].to_numpy(), sdata["cells"].to_numpy()
    found = pictures(sdata)
    piece = found.context(0, *box, px=px, channels=[2, 0])
    y, x, h, w = box
    assert piece.scale == max(1, -(-max(min(y + h, 70) - max(y, 0), min(x + w, 90) - max(x, 0)) // px))
    assert piece.y % piece.scale == piece.x % piece.scale == 0
    assert max(piece.pixels.shape[1:]) <= px + 1
    for i in range(piece.pixels.shape[1]):
        for j in range(piece.pixels.shape[2]):
            top, left = piece.y + i * piece.scale, piece.x + j * piece.scale
            square = image[[2, 0], top : top + piece.scale, left : left + piece.scale]
            if square.shape[1:] == (piece.scale, piece.scale):
                assert np.array_equal(piece.pixels[:, i, j], np.rint(square.mean(axis=(1, 2), dtype=np.float32)))
            middle = int(top + piece.scale / 2), int(left + piece.scale / 2)
            cell = mask[middle] if middle[0] < 70 and middle[1] < 90 else 0
            expected = found.sources[0].instance_ids.tolist().index(cell) + 1 if cell else 0
            assert piece.rows[i, j] == expected
    covered = piece.y + piece.pixels.shape[1] * piece.scale, piece.x + piece.pixels.shape[2] * piece.scale
    assert piece.y <= max(y, 0)
    assert covered[0] >= min(y + h, 70)
    assert covered[1] >= min(x + w, 90)


def test_context_takes_the_level_that_fits(pictures: Callable[..., Pictures]) -> None:
    sdata = tissue(shape=(128, 128))
    image = sdata["image"].to_numpy()
    sdata["image"] = Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=["a", "b", "c"], scale_factors=[2, 2])
    found = pictures(sdata)
    assert [level.step for level in found._levels[0]] == [1, 2, 4]
    coarse = sdata["image"]["scale2"]["image"].to_numpy()
    assert np.array_equal(found.context(0, 0, 0, 128, 128, px=32).pixels, coarse)
    binned = found.context(0, 0, 0, 128, 128, px=16)
    assert binned.scale == 8
    assert binned.pixels.shape == (3, 16, 16)
    assert np.array_equal(found.context(0, 0, 0, 128, 128, px=128).pixels, image)
    with pytest.raises(ValueError, match="not in the image"):
        found.context(0, 500, 500, 10, 10, px=10)


def test_points_have_discs(pictures: Callable[..., Pictures]) -> None:
    sdata = cy.io.from_arrays(np.ones((1, 60, 60), np.uint8), channels=["m"], centers=np.array([[20.5, 30.5], [0, 0]]))
    found = pictures(sdata)
    outline = found.gallery(np.array([0, 1])).outline
    assert outline[0].any()
    assert outline[0, SIDE // 2, SIDE // 2] == 0
    rows = found.context(0, 0, 0, 60, 60, px=60).rows
    assert rows[30, 20] == 1
    assert rows[0, 0] == 2
    assert (rows == 1).sum() == pytest.approx(np.pi * 16, rel=0.2)
    assert found.context(0, 0, 0, 60, 60, px=6).rows[3, 2] == 1  # a cell does not vanish when far out


def test_several_images_with_different_channels(pictures: Callable[..., Pictures]) -> None:
    first = cy.io.from_arrays(np.full((2, 40, 40), 3, np.uint8), channels=["a", "b"], centers=[[20, 20]], name="one")
    second = cy.io.from_arrays(np.full((1, 40, 40), 900, np.uint16), channels=["b"], centers=[[20, 20]], name="two")
    sources = [resolve(each)[0] for each in (first, second)]
    found = Pictures(None, sources, [np.array([1]), np.array([0])], 2, 4)
    patches = found.gallery(np.array([0, 1]))
    assert found.channels == ["a", "b"]
    assert patches.pixels.dtype == "<u2"
    assert patches.pixels[:, :, 0, 0].tolist() == [[0, 900], [3, 3]]
    assert found.context(1, 0, 0, 40, 40, px=40).pixels[:, 0, 0].tolist() == [0, 900]
    found.close()


def test_colour_images(pictures: Callable[..., Pictures]) -> None:
    rng = np.random.default_rng(0)
    sdata = cy.io.from_arrays(
        rng.integers(0, 255, (3, 50, 50)).astype(np.uint8), channels=["r", "g", "b"], centers=[[9, 9]]
    )
    found = pictures(sdata)
    assert found.rgb
    assert found.limits() == [[0, 255]] * 3
    assert not pictures(tissue("uint8")).rgb


def test_large_ids_find_their_cells(pictures: Callable[..., Pictures]) -> None:
    mask = np.zeros((30, 30), dtype=np.int64)
    mask[2:8, 2:8], mask[20:26, 20:26] = 2**40, 2**40 + 7
    sdata = cy.io.from_arrays(np.ones((1, 30, 30), np.uint8), mask, channels=["m"])
    rows = pictures(sdata).context(0, 0, 0, 30, 30, px=30).rows
    assert rows[4, 4] == 1
    assert rows[22, 22] == 2
    assert rows[15, 15] == 0


def polygons(places: list[tuple[int, int]], side: int, scale: float = 1.0) -> SpatialData:
    """Squares as shapes on an image."""
    import geopandas as gpd
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Scale

    boxes = [shapely.box(x / scale, y / scale, (x + side) / scale, (y + side) / scale) for y, x in places]
    shapes = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=boxes, index=[10 + 3 * k for k in range(len(boxes))]),
        transformations={"global": Scale([scale, scale], axes=("x", "y"))},
    )
    image = Image2DModel.parse(np.ones((1, 70, 90), np.uint8), dims=("c", "y", "x"), c_coords=["m0"])
    return SpatialData(images={"image": image}, shapes={"cells": shapes})


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_polygons_look_as_their_masks_do(pictures: Callable[..., Pictures], scale: float) -> None:
    places = [(0, 0), (3, 60), (30, 30), (33, 39), (60, 80), (64, 2), (40, 84)]
    found, masks = pictures(polygons(places, 6, scale)), pictures(tissue("uint8", 1))
    rows = np.array([6, 0, 2, 3, 1, 4, 5])
    assert np.array_equal(found.gallery(rows).outline, masks.gallery(rows).outline)
    for box in ((0, 0, 70, 90), (10, 20, 40, 50), (32, 33, 20, 20)):
        assert np.array_equal(found.context(0, *box, px=90).rows, masks.context(0, *box, px=90).rows)
    far = found.context(0, 0, 0, 70, 90, px=5).rows
    assert set(range(1, 8)) >= set(far.ravel().tolist()) - {0} != set()


def test_polygons_may_have_holes_or_be_empty(pictures: Callable[..., Pictures]) -> None:
    sdata = polygons([(20, 20), (40, 40)], 10)
    ring = shapely.difference(shapely.box(20, 20, 30, 30), shapely.box(23, 23, 27, 27))
    sdata["cells"].loc[10, "geometry"] = ring
    found = pictures(sdata)
    rows = found.context(0, 0, 0, 70, 90, px=90).rows
    assert (rows == 1).sum() == 100 - 16
    assert rows[25, 25] == 0
    outline = found.gallery(np.array([0])).outline[0]
    assert outline.sum() == 36 + 16  # the border, and around the hole without the corners


def test_many_polygons_far_out_are_discs(pictures: Callable[..., Pictures], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytonym.label.areas.MOST", 1)
    rows = pictures(polygons([(20, 20), (40, 40)], 10)).context(0, 0, 0, 70, 90, px=90).rows
    assert rows[25, 25] == 1
    assert 0 < (rows == 1).sum() < 80
