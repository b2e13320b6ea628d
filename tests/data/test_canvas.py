"""An image at another resolution: the same values piece by piece as in one piece, whatever the image is stored in."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import find_boundaries

from cytonym.data import canvas as module
from cytonym.data.canvas import Axis, Canvas, normalized
from cytonym.data.cell_masks import CellMasks
from cytonym.data.labels import LabelGrid, label_centroids

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def canvas_of(make_source):
    def make(pixels, ratio: float = 2.0, labels: np.ndarray | None = None, channel_index=None) -> Canvas:
        if labels is None:
            source = make_source(pixels, [[3.0, 3.0], [9.0, 5.0]], channel_index)
        else:
            ids, xy = label_centroids(labels)
            source = make_source(pixels, xy[:, ::-1], channel_index)
            source = replace(source, instance_ids=ids, labels=LabelGrid(labels, source.shape[1:], np.eye(3)))
        return Canvas(source, CellMasks(source, 3.0), ratio)

    return make


def whole(canvas: Canvas) -> tuple[int, int, int, int]:
    return 0, canvas.shape[0], 0, canvas.shape[1]


def markers(canvas: Canvas, factors, box=None) -> np.ndarray:
    factors = np.asarray(factors, float)
    return canvas.markers(box or whole(canvas), np.arange(len(factors)), factors)


def slow_axis(image: int, canvas: int) -> np.ndarray:
    """Weights [canvas, image]: a triangle around each centre, of two pixels or from far away of a canvas pixel; beyond the border its pixel."""
    weights = np.zeros((canvas, image))
    ratio = image / canvas
    width = ratio / 2 if ratio > 2.5 else 1.0
    for i in range(canvas):
        center = (i + 0.5) * ratio - 0.5
        for at in range(int(center - width) - 2, int(center + width) + 3):
            weights[i, min(max(at, 0), image - 1)] += max(0.0, 1 - abs(at - center) / width)
    return weights / weights.sum(axis=1, keepdims=True)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
ratios = st.one_of(st.floats(0.5, 5), st.sampled_from([0.5, 1.0, 2.0, 2.5, 4.0, 5.0, 1 / 0.377]))


# --- markers ---


@settings(max_examples=80, deadline=None)
@given(shape=shapes, ratio=ratios, seed=st.integers(0, 99), data=st.data())
def test_a_box_is_a_part_of_the_whole(canvas_of, shape, ratio, seed, data):
    """Bit for bit: markers, mask and cells."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, shape)
    canvas = canvas_of(rng.random((2, *shape)).astype("f4"), ratio, labels if labels.any() else None)
    (y0, y1), (x0, x1) = (
        sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in canvas.shape
    )  # fmt: skip
    box = (y0, max(y1, y0 + 1), x0, max(x1, x0 + 1))
    part = slice(box[0], box[1]), slice(box[2], box[3])
    everything = markers(canvas, [0.7, 0.4])
    assert everything.dtype == np.float32
    np.testing.assert_array_equal(markers(canvas, [0.7, 0.4], box), everything[:, *part])
    interior = canvas.interior(whole(canvas))
    assert interior.dtype == np.float32
    np.testing.assert_array_equal(canvas.interior(box), interior[part])
    cells, at, along = canvas.cells(whole(canvas))
    here = (at >= box[0]) & (at < box[1]) & (along >= box[2]) & (along < box[3])
    expected = sorted(zip(cells[here], at[here] - box[0], along[here] - box[2], strict=True))
    assert sorted(zip(*canvas.cells(box), strict=True)) == expected


@pytest.mark.parametrize("piece_px", [1, 3000])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.3, 6.0])
def test_pieces_do_not_matter(canvas_of, monkeypatch, piece_px, ratio):
    rng = np.random.default_rng(0)
    canvas = canvas_of(rng.random((3, 50, 41)), ratio, rng.integers(0, 6, (50, 41)))
    at_once = markers(canvas, [0.7, 0.4, 1.0]), canvas.interior(whole(canvas))
    monkeypatch.setattr(module, "PIECE_PX", piece_px)
    strips = list(canvas.strips(whole(canvas)))
    assert [s[0] for s in strips[1:]] == [s[1] for s in strips[:-1]]
    assert (strips[0][0], strips[-1][1]) == (0, canvas.shape[0])
    assert len(strips) > 1
    for found, expected in zip(
        (markers(canvas, [0.7, 0.4, 1.0]), canvas.interior(whole(canvas))), at_once, strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, ratio=ratios, seed=st.integers(0, 99))
def test_resampling_is_that_of_a_slow_program(canvas_of, shape, ratio, seed):
    pixels = np.random.default_rng(seed).random((2, *shape))
    canvas = canvas_of(pixels, ratio)
    assert canvas.shape == tuple(max(1, int(n / ratio + 1e-9)) for n in shape)
    rows, columns = (slow_axis(n, m) for n, m in zip(shape, canvas.shape, strict=True))
    expected = rows @ np.clip(pixels / 0.8, 0, 1) @ columns.T
    np.testing.assert_allclose(markers(canvas, [0.8, 0.8]), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(12, 30), (37, 23), (50, 41)])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0, 1.3, 2.0, 2.2])
def test_near_resolutions_are_bilinear(canvas_of, shape, ratio):
    pixels = np.random.default_rng(0).random((1, *shape)).astype("f4")
    canvas = canvas_of(pixels, ratio)
    expected = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], canvas.shape, mode="bilinear")
    np.testing.assert_allclose(markers(canvas, [1.0])[0], expected[0, 0].numpy(), atol=5e-6)


def test_half_the_resolution_is_the_mean_of_four(canvas_of):
    pixels = np.random.default_rng(0).integers(0, 2**16, (3, 20, 34)).astype("u2")
    found = markers(canvas_of(pixels), [65535.0] * 3)
    np.testing.assert_allclose(found, pixels.reshape(3, 10, 2, 17, 2).mean((2, 4)) / 65535, atol=1e-6)


def test_the_same_resolution_is_the_image(canvas_of):
    pixels = np.random.default_rng(0).integers(0, 9, (1, 21, 34)).astype("u1")
    canvas = canvas_of(pixels, 1.0)
    assert canvas.shape == (21, 34)
    np.testing.assert_array_equal(markers(canvas, [4.0]), np.minimum(pixels / np.float32(4), 1))


def test_pixels_are_clipped_before_they_are_brought_to_the_canvas(canvas_of):
    pixels = np.zeros((1, 4, 4), "u2")
    pixels[0, 0, 0] = 50_000
    found = markers(canvas_of(pixels), [100.0])
    np.testing.assert_array_equal(found[0], [[0.25, 0], [0, 0]])


@pytest.mark.parametrize("dtype", ["?", "u1", ">u2", "u2", "i2", "u4", "i8", "u8", "f2", "f4", ">f4", "f8"])
def test_pixels_of_any_kind(canvas_of, dtype):
    counts = np.random.default_rng(0).integers(0, 100, (2, 10, 12))
    pixels = counts.astype(dtype)
    found = markers(canvas_of(pixels), [1.0 if dtype == "?" else 80.0, 30.0])
    expected = np.stack(
        [np.clip(p.astype("f8") / f, 0, 1) for p, f in zip(pixels, (1 if dtype == "?" else 80, 30), strict=True)]
    )
    np.testing.assert_allclose(found, expected.reshape(2, 5, 2, 6, 2).mean((2, 4)), atol=1e-6)


def test_sixteen_bits_to_the_brim(canvas_of):
    pixels = np.random.default_rng(0).integers(65_530, 65_536, (1, 8, 8)).astype("u2")
    found = markers(canvas_of(pixels), [65535.0])
    np.testing.assert_allclose(found[0], pixels[0].reshape(4, 2, 4, 2).mean((1, 3)) / 65535, atol=1e-6)
    assert found.max() <= 1


def test_below_zero_is_zero(canvas_of):
    pixels = np.random.default_rng(0).normal(size=(1, 16, 16)).astype("f4")
    found = markers(canvas_of(pixels), [1.5])
    np.testing.assert_allclose(
        found[0], np.clip(pixels[0] / 1.5, 0, 1).reshape(8, 2, 8, 2).mean((1, 3)), atol=1e-6
    )  # fmt: skip


def test_a_channel_without_brightness_is_zero(canvas_of):
    pixels = np.full((2, 8, 8), 7, "u2")
    found = markers(canvas_of(pixels), [0.0, 14.0])
    assert (found[0] == 0).all()
    assert (found[1] == 0.5).all()
    assert (normalized(pixels, np.array([0.0, 0.0])) == 0).all()


def test_channels_in_any_order(canvas_of):
    pixels = np.random.default_rng(0).random((5, 20, 20))
    index = np.array([4, 0, 3])
    canvas = canvas_of(pixels, 1.7, channel_index=index)
    factors = np.array([0.9, 0.5, 0.2])
    every = markers(canvas, factors)
    np.testing.assert_array_equal(canvas.markers(whole(canvas), np.array([2, 1]), factors[[2, 1]]), every[[2, 1]])
    alone = canvas_of(pixels[[4]], 1.7)
    np.testing.assert_array_equal(markers(alone, [0.9])[0], every[0])
    assert canvas.markers(whole(canvas), np.array([], int), np.array([])).shape == (0, *canvas.shape)


@pytest.mark.parametrize("ratio", [0.6, 2.0, 3.3])
def test_storage_does_not_matter(canvas_of, store_pixels, ratio):
    pixels = np.random.default_rng(0).integers(0, 900, (4, 33, 47)).astype("u2")
    index = np.array([2, 3, 0])
    factors = np.array([800.0, 500.0, 300.0])

    def of(kind: str, chunks: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        canvas = canvas_of(store_pixels(pixels, kind, chunks), ratio, channel_index=index)
        return markers(canvas, factors), markers(canvas, factors, (3, 9, 1, 8))

    expected = of("numpy", (1, 1, 1))
    for kind, chunks in [
        ("fortran", (1, 1, 1)),
        ("zarr", (1, 8, 8)),
        ("zarr", (4, 33, 47)),
        ("zarr", (3, 5, 50)),
        ("sharded", (1, 10, 10)),
        ("dask", (2, 7, 47)),
        ("dask on zarr", (1, 16, 16)),
        ("dask after zarr", (1, 16, 16)),
    ]:
        for a, b in zip(of(kind, chunks), expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{kind} {chunks}")


def test_only_what_a_box_needs_is_read(canvas_of, store_pixels):
    array = store_pixels(np.ones((3, 256, 256), "u1"), "zarr", (1, 32, 32))
    canvas = canvas_of(array, 2.0)
    canvas.markers((17, 30, 17, 30), np.array([1]), np.array([1.0]))  # pixels 34 to 59: one chunk
    assert list(array.store.reads) == ["c/1/1/1"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["numpy", "zarr"])
def test_pixels_that_are_no_numbers(canvas_of, store_pixels, value, kind):
    pixels = np.zeros((4, 20, 20), "f4")
    pixels[[1, 3], 15, 15] = value
    canvas = canvas_of(store_pixels(pixels, kind, (1, 8, 8)), channel_index=[0, 3, 1])
    message = "Channels ['marker3', 'marker1'] of image 'image' have NaN or infinite pixels. Replace them"
    with pytest.raises(ValueError, match=re.escape(message)):
        markers(canvas, [1.0, 1.0, 1.0])
    assert (markers(canvas, [1.0], None) == 0).all()  # the others are not looked at
    assert (canvas.markers((0, 5, 0, 5), np.array([1, 2]), np.ones(2)) == 0).all()


def test_pixels_that_are_no_image(canvas_of):
    with pytest.raises(TypeError, match="`pixels` must be integers, floats or truth values"):
        canvas_of(np.zeros((1, 4, 4), "c8"))


# --- mask and cells ---


@settings(max_examples=60, deadline=None)
@given(shape=shapes, ratio=ratios, seed=st.integers(0, 99))
def test_the_mask_is_eroded_first_and_then_taken_by_the_nearest_rule(canvas_of, shape, ratio, seed):
    """Pixel floor(i * in / out) of the image."""
    labels = np.random.default_rng(seed).integers(0, 3, shape).repeat(2, 0).repeat(2, 1)
    labels[0, 0] = 1
    canvas = canvas_of(np.zeros((1, *labels.shape)), ratio, labels)
    inner = (labels > 0) & ~find_boundaries(labels, mode="inner", connectivity=1)
    rows, columns = (
        [int(i * n // m) for i in range(m)] for n, m in zip(labels.shape, canvas.shape, strict=True)
    )  # fmt: skip
    np.testing.assert_array_equal(canvas.interior(whole(canvas)), inner[np.ix_(rows, columns)])


@settings(max_examples=60, deadline=None)
@given(shape=shapes, ratio=ratios, seed=st.integers(0, 99), step=st.integers(1, 9))
def test_every_pixel_of_a_cell_shows_one_pixel_of_the_canvas(canvas_of, shape, ratio, seed, step):
    """Pixel floor(r * out / in), in one box of those that partition the canvas."""
    labels = np.random.default_rng(seed).integers(0, 4, shape)
    labels[-1, -1] = 2
    canvas = canvas_of(np.zeros((1, *shape)), ratio, labels)
    height, width = canvas.shape
    found = []
    for y in range(0, height, step):
        for x in range(0, width, step):
            cells, at, along = canvas.cells((y, min(y + step, height), x, min(x + step, width)))
            found += zip(cells.tolist(), (at + y).tolist(), (along + x).tolist(), strict=True)
    rows = np.searchsorted(np.unique(labels[labels > 0]), labels)
    expected = [
        (int(rows[r, c]), r * height // shape[0], c * width // shape[1])
        for r, c in zip(*np.nonzero(labels), strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_a_result_in_another_size_is_stretched(canvas_of):
    labels = np.random.default_rng(0).integers(0, 5, (37, 41))
    canvas = canvas_of(np.zeros((1, 37, 41)), 2.0, labels)
    small = canvas.resized(16, 16)
    assert small.shape == (16, 16)
    assert canvas.shape == (18, 20)
    cells, at, along = small.cells((0, 16, 0, 16))
    assert len(cells) == (labels > 0).sum()
    assert (at.max(), along.max()) == (15, 15)


def test_sizes_are_at_least_one(canvas_of):
    canvas = canvas_of(np.full((1, 3, 2), 5.0), 5.0)
    assert canvas.shape == (1, 1)
    np.testing.assert_array_equal(markers(canvas, [10.0]), [[[0.5]]])
    cells, at, along = canvas.cells((0, 1, 0, 1))
    assert set(zip(at, along, strict=True)) <= {(0, 0)}
    assert len(cells) <= 6


@pytest.mark.parametrize(("size", "ratio", "expected"), [(251, 2.0, 125), (30, 0.3 / 0.1, 10), (9, 0.9 / 0.3, 3)])
def test_rounding_of_the_ratio_loses_no_pixel(canvas_of, size, ratio, expected):
    canvas = canvas_of(np.zeros((1, size, 5)), ratio)
    assert canvas.shape[0] == expected
    assert Axis(size, expected).back(0, expected) == (0, size)
