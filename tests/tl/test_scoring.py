"""From pixels to scores of cells: tiles without seams, whatever their size, the storage, the order of rows and the machine."""

from __future__ import annotations

import logging
import pickle
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from scipy.spatial import cKDTree
from spatialdata import SpatialData

import cytonym as cy
from cytonym.data import canvas as canvas_module
from cytonym.data.canvas import Canvas
from cytonym.data.source import resolve
from cytonym.learning.maps import padded
from cytonym.tl import _scoring
from cytonym.tl._scoring import brightness, cores, fields, map_shape, score_field

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.models.nimbus import Nimbus
    from cytonym.tl._scoring import Field

torch.set_num_threads(1)
CHANNELS = ["DNA", "CD3", "CD20"]
TINY = 56  # pixels of a window: cores of 8 around which 24 more are seen


@pytest.fixture(scope="module")
def model(scorer: Callable[..., Nimbus]) -> Nimbus:
    return scorer()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scoring, "WINDOW_PX", TINY)


def touching(shape: tuple[int, int], seed: int = 0, gap: float = 0.2) -> np.ndarray:
    """Labels of cells of about 40 pixels that touch each other, some of them away."""
    rng = np.random.default_rng(seed)
    n = max(1, shape[0] * shape[1] // 40)
    seeds = rng.uniform(0, shape, (n, 2))
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    labels = 1 + cKDTree(seeds).query(at)[1]
    lost = rng.random(n + 1) < gap
    lost[labels[0, 0]] = False
    return np.where(lost[labels], 0, labels)


def tissue_of(shape: tuple[int, int], seed: int = 0, **arguments: Any) -> SpatialData:
    rng = np.random.default_rng(seed)
    pixels = rng.gamma(2.0, 20.0, (3, *shape)).astype("u2") + 1
    return cy.io.from_arrays(pixels, touching(shape, seed), channels=CHANNELS, **arguments)


def field_of(sdata: SpatialData, model: Nimbus, pixel_size: float | None = 1.0, **arguments: Any) -> Field:
    [found] = fields(resolve(sdata, **arguments), model, pixel_size=pixel_size)
    return found


def whole_input(canvas: Canvas, factors: np.ndarray, model: Nimbus) -> np.ndarray:
    """All that the network can see of an image [C, 2, H, W], mirrored at its end to a size that poolings divide."""
    box = (0, canvas.shape[0], 0, canvas.shape[1])
    size = [max(-(-n // model.stride), 2) * model.stride for n in canvas.shape]
    markers = padded(canvas.markers(box, np.arange(len(factors)), factors), *size)
    interior = padded(canvas.interior(box), *size)
    return np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1)


def forward(model: Nimbus, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(np.ascontiguousarray(x)))[:, 0].double().numpy()


def slow_scores(field: Field, model: Nimbus, passes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all pixels of each label, and over views [V, C, h, w], on the image's grid."""
    canvas = field.canvas
    if passes is None:
        passes = forward(model, whole_input(canvas, field.factors, model))[None]
    (height, width), (_, tall, wide) = passes.shape[2:], canvas.source.shape
    height, width = min(height, canvas.shape[0]), min(width, canvas.shape[1])
    rows, columns = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    stretched = passes[:, :, rows[:, None], columns]
    cells = canvas.masks.read(0, tall, 0, wide)
    shape = (len(canvas.source.instance_ids), passes.shape[1])
    mean, std = np.full(shape, np.nan), np.full(shape, np.nan)
    for i in range(shape[0]):
        if (cells == i).any():
            values = stretched[:, :, cells == i]
            mean[i], std[i] = values.mean(axis=(0, 2)), values.std(axis=(0, 2))
    mean[:, field.factors == 0], std[:, field.factors == 0] = 0, 0
    return mean, std


def same(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray], atol: float = 1e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


# --- tiles ---


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 60), (15, 13), (16, 16), (37, 53)])
@pytest.mark.parametrize("pixel_size", [1.0, 0.5, 0.31])
def test_tiles_give_what_the_whole_image_gives(tiny, model, shape, pixel_size):
    field = field_of(tissue_of(shape, seed=shape[1]), model, pixel_size)
    assert len(cores(field.canvas, model)) == np.prod([-(-n // 8) for n in field.canvas.shape])
    maps = np.full((3, *field.canvas.shape), np.nan)

    def keep(box: tuple[int, int, int, int], part: np.ndarray) -> None:
        maps[:, box[0] : box[1], box[2] : box[3]] = part

    found = score_field(field, model, keep_map=keep)
    assert found[0].dtype == found[1].dtype == np.float32
    same(found, slow_scores(field, model))
    whole = forward(model, whole_input(field.canvas, field.factors, model))
    np.testing.assert_allclose(maps, whole[:, : maps.shape[1], : maps.shape[2]], atol=5e-6)
    if min(shape) > 30:
        assert whole.std() > 0.05
    same(score_field(field, model), found, atol=0)  # with or without a map


@pytest.mark.parametrize("window", [1, 60, 10_000])
@pytest.mark.parametrize(("depth", "filters"), [(2, 2), (4, 2)])
def test_the_size_of_windows_does_not_matter(scorer, monkeypatch, window, depth, filters):
    deep = scorer(filters, depth)
    field = field_of(tissue_of((22, 31)), deep)
    monkeypatch.setattr(_scoring, "WINDOW_PX", window)
    same(score_field(field, deep), slow_scores(field, deep))


def test_cores_partition_the_canvas_at_strides(tiny, model):
    canvas = field_of(tissue_of((37, 53)), model).canvas
    seen = np.zeros(canvas.shape, int)
    for y0, y1, x0, x1 in cores(canvas, model):
        assert y0 % model.stride == x0 % model.stride == 0
        seen[y0:y1, x0:x1] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("pixel_size", [1.0, 0.25])
def test_pixels_in_small_pieces(tiny, model, monkeypatch, pixel_size):
    field = field_of(tissue_of((60, 41)), model, pixel_size)
    expected = score_field(field, model)
    same(expected, slow_scores(field, model))
    monkeypatch.setattr(canvas_module, "PIECE_PX", 800)
    assert len(list(field.canvas.strips((0, field.canvas.shape[0], 0, field.canvas.shape[1])))) > 2
    same(score_field(field, model), expected)


def test_channels_in_small_groups(tiny, model, monkeypatch):
    field = field_of(tissue_of((30, 41)), model)
    expected = score_field(field, model)
    monkeypatch.setattr(_scoring, "GROUP_BYTES", 1)
    same(score_field(field, model), expected, atol=0)


# --- what must not matter ---


def test_threads_do_not_matter(tiny, model):
    field = field_of(tissue_of((30, 41)), model)
    expected = score_field(field, model)
    try:
        torch.set_num_threads(3)
        same(score_field(field, model), expected, atol=0)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("chunks", [(1, 7, 11), (3, 64, 16)])
def test_storage_does_not_matter(tiny, model, chunks):
    plain = tissue_of((22, 31))
    expected = score_field(field_of(plain, model, 0.6), model)
    pixels, labels = np.asarray(plain["image"]), np.asarray(plain["cells"])
    stored = zarr.create_array({}, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks)
    stored[:] = pixels
    for image in (stored, da.from_array(pixels, chunks=chunks), da.from_zarr(stored) + np.uint16(0)):
        sdata = cy.io.from_arrays(image, da.from_array(labels, chunks=chunks[1:]), channels=CHANNELS)
        same(score_field(field_of(sdata, model, 0.6), model), expected, atol=0)


def test_the_order_of_rows_does_not_matter(tiny, model):
    field = field_of(tissue_of((37, 53)), model)
    expected = score_field(field, model)
    order = np.random.default_rng(0).permutation(len(expected[0]))
    source = field.canvas.source.subset(order)
    canvas = Canvas(source, type(field.canvas.masks)(source, 4.0), 1.0)
    same(score_field(replace(field, canvas=canvas), model), tuple(e[order] for e in expected), atol=0)  # type: ignore[arg-type]


def test_other_channels_do_not_matter(tiny, model):
    sdata = tissue_of((37, 53))
    expected = score_field(field_of(sdata, model), model)
    some = score_field(field_of(sdata, model, channels=["CD20", "DNA"]), model)
    same(some, tuple(e[:, [2, 0]] for e in expected), atol=0)  # type: ignore[arg-type]


def test_dark_channels_cost_nothing_and_are_zero(tiny, model):
    field = field_of(tissue_of((20, 20)), model)
    expected = score_field(field, model)
    calls = []
    canvas = field.canvas
    read = Canvas.markers

    def markers(self: Canvas, box: Any, channels: np.ndarray, factors: np.ndarray) -> np.ndarray:
        calls.append(channels.tolist())
        return read(self, box, channels, factors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "markers", markers)
        found = score_field(replace(field, factors=field.factors * [1, 0, 1]), model)
    assert canvas is field.canvas
    assert all(1 not in c for c in calls)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a[:, [0, 2]], b[:, [0, 2]])
        assert (a[:, 1] == 0).all()


def test_tiles_without_cells_are_not_scored(tiny, model, monkeypatch):
    labels = np.zeros((80, 80), int)
    labels[2:6, 2:6] = 1
    sdata = cy.io.from_arrays(np.ones((1, 80, 80)), labels, channels=["CD3"])
    field = field_of(sdata, model)
    seen = []
    monkeypatch.setattr(
        Canvas, "interior", lambda self, box: seen.append(box) or np.zeros((box[1] - box[0], box[3] - box[2]), "f4")
    )
    score_field(field, model)
    assert len(seen) == 1


def test_a_cluster_gives_the_same(tiny, model, tmp_path):
    distributed = pytest.importorskip("distributed")
    sdata = tissue_of((15, 22))
    sdata.write(tmp_path / "tissue.zarr")
    stored = field_of(SpatialData.read(tmp_path / "tissue.zarr"), model)
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0") as client:
        for field in (field_of(sdata, model), stored):
            for views in (None, "six_views"):
                same(
                    score_field(field, model, views=views, client=client),
                    score_field(field, model, views=views),
                    atol=0,
                )


def test_fields_travel(tiny, model, tmp_path):
    """Workers get the path of a store, not its pixels."""
    sdata = tissue_of((300, 300))
    sdata.write(tmp_path / "tissue.zarr")
    field = field_of(SpatialData.read(tmp_path / "tissue.zarr"), model)
    field.canvas.cells((0, 9, 0, 9))  # what is remembered travels along
    data = pickle.dumps(field)
    assert len(data) < 300 * 300 * 3
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.canvas.interior((3, 50, 2, 90)), field.canvas.interior((3, 50, 2, 90)))
    every = np.arange(3)
    np.testing.assert_array_equal(
        *(f.canvas.markers((0, 40, 0, 40), every, f.factors) for f in (again, field))
    )  # fmt: skip


# --- views ---


def turned(model: Nimbus, x: np.ndarray, k: int) -> np.ndarray:
    return np.rot90(forward(model, np.rot90(x, k, (2, 3))), -k, (1, 2))


def flipped(model: Nimbus, x: np.ndarray, axis: int) -> np.ndarray:
    return np.flip(forward(model, np.flip(x, axis)), axis - 1)


@pytest.mark.parametrize("shape", [(37, 53), (9, 70)])
def test_six_views_are_six_passes(tiny, model, shape):
    """Over the whole image, done by hand; the spread is that over pixels and views."""
    field = field_of(tissue_of(shape), model, 0.7)
    x = whole_input(field.canvas, field.factors, model)
    passes = np.stack([*(turned(model, x, k) for k in range(4)), flipped(model, x, 3), flipped(model, x, 2)])
    expected = slow_scores(field, model, passes)
    same(score_field(field, model, views="six_views"), expected)
    assert np.nanmax(np.abs(expected[0] - slow_scores(field, model)[0])) > 0.002


def test_released_views_and_tiles(model):
    """One pass each that loses the last rows and columns; the map is stretched over the image."""
    field = field_of(tissue_of((75, 90)), model, 0.5)  # 37 x 45 pixels of the network
    box = (0, 37, 0, 45)
    markers, interior = field.canvas.markers(box, np.arange(3), field.factors), field.canvas.interior(box)
    x = np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1)
    assert map_shape(field.canvas, model, "released") == (36, 44)
    maps = []
    found = score_field(field, model, tiles="released", keep_map=lambda box, part: maps.append((box, part)))
    same(found, slow_scores(field, model, forward(model, x)[None]))
    [(box, part)] = maps
    assert box == (0, 36, 0, 44)
    np.testing.assert_allclose(part, forward(model, x), atol=5e-6)
    passes = np.stack([*[turned(model, x, 3)] * 4, flipped(model, x, 3), flipped(model, x, 2)])
    same(score_field(field, model, views="released", tiles="released"), slow_scores(field, model, passes))


def test_released_tiles_of_large_images(model, monkeypatch):
    """Many tiles: what a single pass without padding over a mirrored image gives."""
    monkeypatch.setattr(_scoring, "RELEASED_TILE_PX", 128)
    field = field_of(tissue_of((150, 190)), model)
    box = (0, 150, 0, 190)
    both = np.concatenate([field.canvas.markers(box, np.arange(3), field.factors), field.canvas.interior(box)[None]])
    both = np.pad(
        both, [(0, 0), (53, 53), (33, 33)], mode="reflect"
    )  # to 128 pixels and a multiple of the 64 of a tile's middle
    x = np.stack([both[:-1], np.broadcast_to(both[-1], both[:-1].shape)], axis=1)
    with torch.inference_mode():
        expected = model(torch.from_numpy(x), "valid")[:, 0, 33:183, 13:203].numpy()  # 20 pixels are lost on each side
    maps = []
    found = score_field(field, model, tiles="released", keep_map=lambda box, part: maps.append(part))
    np.testing.assert_allclose(maps[0], expected, atol=1e-5)
    same(found, slow_scores(field, model, expected[None].astype("f8")), atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 40), (1, 1), (40, 7)])
def test_images_too_small_for_the_released_program(model, shape):
    """A network whose coarsest map had one pixel could not mirror it."""
    field = field_of(tissue_of(shape), model)
    with pytest.raises(
        ValueError, match=r"Image 'image' is smaller than 8 px at the scorer's resolution: use tiles='aligned'"
    ):
        map_shape(field.canvas, model, "released")
    assert map_shape(field.canvas, model, "aligned") == shape
    smallest = field_of(tissue_of((8, 9)), model)
    assert np.isfinite(score_field(smallest, model, tiles="released")[0]).all()


# --- cells ---


def test_cells_of_one_pixel(tiny, model):
    labels = np.zeros((24, 24), int)
    labels[::3, ::3] = np.arange(1, 65).reshape(8, 8)
    sdata = cy.io.from_arrays(np.random.default_rng(0).random((1, 24, 24)), labels, channels=["CD3"])
    for pixel_size in (1.0, 0.25):  # at the second, not every cell lies on a pixel that the network sees
        field = field_of(sdata, model, pixel_size)
        found = score_field(field, model)
        assert np.isfinite(found[0]).all()
        same(found, slow_scores(field, model))
        assert (found[1] < 1e-7).all()


def test_cells_without_pixels_get_nan(tiny, model):
    sdata = cy.io.from_arrays(np.ones((2, 30, 30)), channels=["a", "b"], centers=[[5.0, 5.0], [500.0, 5.0], [5.2, 5.0]])
    field = field_of(sdata, model)
    score, spread = score_field(field, model)
    assert np.isfinite(score).all(axis=1).tolist() == [True, False, True]
    np.testing.assert_array_equal(np.isnan(score), np.isnan(spread))
    same((score, spread), slow_scores(field, model))


def test_discs_are_masks(tiny, model):
    """The same score as with a label image of these discs."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 60, (25, 2))
    pixels = rng.random((3, 60, 60))
    by_points = field_of(cy.io.from_arrays(pixels, channels=CHANNELS, centers=points), model, 0.5)
    assert by_points.canvas.masks.radius_px == 8.0
    labels = by_points.canvas.masks.read(0, 60, 0, 60) + 1
    by_labels = field_of(cy.io.from_arrays(pixels, labels, channels=CHANNELS), model, 0.5)
    same(score_field(by_points, model), score_field(by_labels, model), atol=0)
    [wide] = fields(
        resolve(cy.io.from_arrays(pixels, channels=CHANNELS, centers=points)), model, pixel_size=0.5, diameter_um=3.0
    )
    assert wide.canvas.masks.radius_px == 3.0


# --- brightness ---


def sources_of(images: list[np.ndarray], channels: list[list[str]]) -> list[Any]:
    found = []
    for pixels, names in zip(images, channels, strict=True):
        sdata = cy.io.from_arrays(pixels, touching(pixels.shape[1:]), channels=names)
        found += resolve(sdata)
    return found


def test_brightness_of_the_released_program(model):
    """The mean over images with signal of the quantile of pixels above zero; panels may differ."""
    rng = np.random.default_rng(0)
    images = [rng.poisson(0.5, (3, 40, 50)), 7 * rng.poisson(0.5, (2, 300, 20)), rng.poisson(3.0, (3, 30, 30))]
    images[2][1] = 0
    sources = sources_of([i.astype("u2") for i in images], [["a", "b", "dark"], ["b", "c"], ["c", "b", "dark"]])
    images[0][2] = images[2][2] = 0
    sources = sources_of([i.astype("u2") for i in images], [["a", "b", "dark"], ["b", "c"], ["c", "b", "dark"]])
    quantile = lambda layer: np.quantile(layer[layer > 0].astype(float), 0.999)
    expected = {
        "a": quantile(images[0][0]),
        "b": np.mean([quantile(images[0][1]), quantile(images[1][0])]),
        "c": np.mean([quantile(images[1][1]), quantile(images[2][0])]),
        "dark": 0.0,
    }
    assert brightness(sources, "released", 0.999) == pytest.approx(expected)
    [field, *_] = fields(sources, model)
    np.testing.assert_allclose(field.factors, [expected["a"], expected["b"], 0])


def test_brightness_of_the_paper():
    """One quantile of all images together."""
    rng = np.random.default_rng(0)
    images = [rng.gamma(2, 10, (2, 40, 50)).astype("f4"), 7 * rng.gamma(2, 10, (2, 30, 20)).astype("f4")]
    found = brightness(sources_of(images, [["a", "b"], ["b", "a"]]), "paper", 0.999)
    together = {"a": (images[0][0], images[1][1]), "b": (images[0][1], images[1][0])}
    for name, layers in together.items():
        pixels = np.concatenate([layer.ravel() for layer in layers])
        assert found[name] == pytest.approx(np.quantile(pixels[pixels > 0], 0.9999), rel=1e-5)


def test_brightness_counts_an_image_once():
    """Whatever the elements that name its cells."""
    one, two = (cy.io.from_arrays(np.full((1, 30, 30), v), touching((30, 30)), channels=["a"]) for v in (2.0, 4.0))
    one.labels["more"] = one["cells"]
    sources = [*resolve(one, image_key=["image", "image"], labels_key=["cells", "more"]), *resolve(two)]
    assert brightness(sources, "released", 0.99) == {"a": 3.0}


def test_brightness_does_not_depend_on_the_panel():
    pixels = np.random.default_rng(0).poisson(2.0, (3, 60, 60)).astype("u2")
    every = brightness(sources_of([pixels], [["a", "b", "c"]]), "released", 0.99)
    assert brightness(sources_of([pixels[[2, 0]]], [["c", "a"]]), "released", 0.99) == {k: every[k] for k in ("c", "a")}


def test_brightness_of_pixels_below_zero():
    pixels = np.random.default_rng(0).normal(size=(1, 50, 50)).astype("f4")
    found = brightness(sources_of([pixels], [["a"]]), "released", 0.5)
    assert found["a"] == pytest.approx(np.median(pixels[pixels > 0]), rel=1e-5)


def test_given_factors():
    sources = sources_of([np.ones((2, 20, 20))], [["a", "b"]])
    for given in ({"b": 2, "a": 0.5, "other": 9}, pd.Series({"a": 0.5, "b": 2})):
        assert brightness(sources, given, 0.999) == {"a": 0.5, "b": 2.0}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("max", ValueError, "`normalization` must be 'released', 'paper' or factors by channel, got 'max'"),
        ({"a": 1.0}, KeyError, "`normalization` has no factor for ['b']. It has: ['a']."),
        ({"a": 1.0, "b": -1.0}, ValueError, "`normalization` must hold finite factors of at least 0, got {'b': -1.0}"),
        ({"a": np.nan, "b": np.inf}, ValueError, "finite factors of at least 0, got {'a': nan, 'b': inf}"),
        (None, TypeError, "`normalization` must be 'released', 'paper' or factors by channel, got NoneType"),
        (pd.DataFrame({"marker": ["a", "b"], "factor": [1.0, 2.0]}), TypeError, "or factors by channel, got DataFrame"),
    ],
)
def test_factors_that_cannot_be(given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        brightness(sources_of([np.ones((2, 20, 20))], [["a", "b"]]), given, 0.999)


# --- size of pixels ---


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_an_unknown_pixel_size_is_guessed_from_the_cells(model, scale, caplog):
    """Cells of 9 pixels: pixels of a micrometre."""
    labels = np.zeros((60, 60), int)
    for i in range(25):
        y, x = i // 5 * 12, i % 5 * 12
        labels[y : y + 8, x : x + 8] = i + 1
    labels = labels.repeat(scale, 0).repeat(scale, 1)
    sdata = cy.io.from_arrays(np.ones((1, *labels.shape), "u1"), labels, channels=["CD3"])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        field = field_of(sdata, model, None)
    assert (field.pixel_size, field.how) == (1 / scale, "guessed")
    assert field.canvas.shape == (60, 60)
    assert f"The pixel size of image 'image' is unknown: {1 / scale:g} micrometres are assumed" in caplog.text
    assert "Give `pixel_size`." in caplog.text
    points = np.stack(np.meshgrid(np.arange(5.0, 60, 9), np.arange(5.0, 60, 9)), axis=-1).reshape(-1, 2) * scale
    centers = cy.io.from_arrays(np.ones((1, *labels.shape), "u1"), channels=["CD3"], centers=points)
    assert field_of(centers, model, None).pixel_size == 1 / scale


def test_without_cells_to_guess_by_a_pixel_size_is_assumed(model, caplog):
    one = cy.io.from_arrays(np.ones((1, 40, 40), "u1"), channels=["CD3"], centers=np.array([[20.0, 20.0]]))
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        field = field_of(one, model, None)
    assert (field.pixel_size, field.how) == (0.5, "assumed")
    assert "0.5 micrometres are assumed. Give `pixel_size`." in caplog.text


@pytest.mark.parametrize("size", [1e-3, 50.0])
@pytest.mark.parametrize("given", [True, False])
def test_a_pixel_size_that_no_cell_could_be_seen_in(model, size, given):
    sdata = tissue_of((40, 30), pixel_size=None if given else size)
    with pytest.raises(
        ValueError, match=rf"Pixels of {size:g} micrometres \({'given' if given else 'image'}\) in image"
    ):
        field_of(sdata, model, size if given else None)


def test_a_pixel_size_that_is_known(model, caplog):
    sdata = tissue_of((40, 30), pixel_size=0.5)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        field = field_of(sdata, model, None)
        assert (field.pixel_size, field.how, field.canvas.shape) == (0.5, "image", (20, 15))
        given = field_of(sdata, model, 0.25)
    assert (given.pixel_size, given.how, given.canvas.shape) == (0.25, "given", (10, 7))
    assert caplog.text == ""


def test_nothing_to_guess_from(model):
    one = cy.io.from_arrays(np.ones((1, 30, 30)), channels=["CD3"], centers=[[5.0, 5.0]])
    assert field_of(one, model, None).pixel_size == 0.5
    hole = np.zeros((3000, 1), int)  # no cell near the middle of the cells
    hole[[0, 1, 2998, 2999], 0] = [1, 2, 3, 4]
    ring = cy.io.from_arrays(np.ones((1, 3000, 1)), hole, channels=["CD3"])
    assert field_of(ring, model, None).pixel_size == 0.5
    same_place = cy.io.from_arrays(np.ones((1, 30, 30)), channels=["CD3"], centers=[[5.0, 5.0], [5.0, 5.0]])
    assert field_of(same_place, model, None).pixel_size in _scoring.PIXEL_SIZES


@pytest.mark.parametrize("name", ["pixel_size", "diameter_um"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_sizes_must_be_positive(model, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, got {value}"):
        fields(resolve(tissue_of((20, 20))), model, **{name: value})
