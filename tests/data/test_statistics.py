"""Brightness of channels is that of all pixels, or of a fair sample of them, however they are stored."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cytonym.data import statistics as module
from cytonym.data.patches import bin_pixels
from cytonym.data.statistics import channel_statistics


def everywhere(shape: tuple[int, int]) -> np.ndarray:
    """A cell in every square that statistics may look at."""
    return np.stack(np.meshgrid(*(np.arange(0.5, n, 16) for n in shape), indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4", ">i4"])
@pytest.mark.parametrize("kind", ["numpy", "zarr"])
@pytest.mark.parametrize("binning", [1, 2, 7])
def test_statistics_of_small_images_are_those_of_all_pixels(make_source, store_pixels, dtype, kind, binning):
    rng = np.random.default_rng(0)
    images = [rng.poisson([[[0.3]], [[4.0]], [[0]]], (3, *shape)).astype(dtype) for shape in ((60, 90), (40, 40))]
    sources = [
        make_source(store_pixels(images[0], kind, (1, 16, 16)), everywhere((60, 90)), names="abc"),
        make_source(store_pixels(images[1][::-1], kind, (1, 16, 16)), everywhere((40, 40)), names="cba"),
    ]
    found = channel_statistics(sources, quantile=0.7, binning=binning)
    for c in range(3):
        values = np.concatenate([bin_pixels(image[c], binning).ravel() for image in images])
        positive = values[values > 0].astype("f8")
        assert found["nonzero"][c] == pytest.approx(len(positive) / len(values))
        assert found["max"][c] == pytest.approx(max(values))
        assert found["quantile"][c] == pytest.approx(np.quantile(positive, 0.7) if len(positive) else 0)


@pytest.mark.parametrize(
    ("kind", "chunk", "groups"),
    [("numpy", 2, [1] * 5), ("zarr", 1, [1] * 5), ("zarr", 2, [2, 2, 1]), ("dask", 2, [2, 2, 1])],
)
def test_channels_in_small_groups(make_source, store_pixels, monkeypatch, kind, chunk, groups):
    """A few at a time, or those of a chunk."""
    pixels = np.random.default_rng(0).poisson(1.0, (5, 70, 60)).astype("u2")
    pixels[3] = 0
    expected = channel_statistics([make_source(pixels, everywhere((70, 60)))])
    read, statistics = [], module._statistics

    def counted(sources, *args, **kwargs):
        read.append(len(sources[0].channels))
        return statistics(sources, *args, **kwargs)

    monkeypatch.setattr(module, "CHANNELS", 1)
    monkeypatch.setattr(module, "_statistics", counted)
    found = channel_statistics([make_source(store_pixels(pixels, kind, (chunk, 32, 32)), everywhere((70, 60)))])
    assert read == groups
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("binning", [1, 3])
def test_statistics_do_not_depend_on_storage(make_source, store_pixels, monkeypatch, binning):
    monkeypatch.setattr(module, "SQUARE_PX", 32)
    pixels = np.random.default_rng(0).poisson(1.0, (2, 150, 130)).astype("u2")
    centers = np.random.default_rng(1).uniform(0, [150, 130], (40, 2))

    def of(kind, chunks):
        source = make_source(store_pixels(pixels, kind, chunks), centers)
        return channel_statistics([source], max_pixels=4000, seed=5, binning=binning)

    first = of("numpy", (1, 1, 1))
    assert first["nonzero"][0] > 0
    narrow = ("zarr", (1, 148, 64))  # the last tile is 2 px high
    for kind, chunks in [
        narrow,
        ("zarr", (1, 16, 16)),
        ("zarr", (2, 50, 33)),
        ("dask", (1, 37, 20)),
        ("sharded", (1, 8, 8)),
    ]:
        for name, values in of(kind, chunks).items():
            np.testing.assert_array_equal(values, first[name])


def test_statistics_of_a_sample_are_close(make_source):
    pixels = np.random.default_rng(0).poisson(1.0, (1, 1500, 1100)).astype("u2")
    source = make_source(pixels, everywhere((1500, 1100)))
    found = channel_statistics([source], max_pixels=2**17)
    assert found["nonzero"][0] == pytest.approx((pixels > 0).mean(), abs=0.01)
    assert found["quantile"][0] == np.quantile(pixels[pixels > 0], 0.9)
    tiny = channel_statistics([source], max_pixels=5000)  # less than one square: every k-th row of it
    assert tiny["nonzero"][0] == pytest.approx((pixels > 0).mean(), abs=0.05)
    assert not np.array_equal(channel_statistics([source], max_pixels=5000, seed=1)["nonzero"], tiny["nonzero"])


@pytest.mark.parametrize("chunks", [(1, 1100, 600), (1, 100, 97)])
def test_a_marker_that_is_rare_is_found_in_bins(make_source, store_pixels, chunks):
    pixels = np.zeros((2, 1100, 600), "u2")
    pixels[0] = 1
    pixels[1, 1096, 582] = 9
    source = make_source(store_pixels(pixels, "zarr", chunks), [[10.0, 10.0]])
    found = channel_statistics([source], binning=3)
    assert found["quantile"].tolist() == [1, 1]
    assert found["nonzero"].tolist() == [1, pytest.approx(1 / (366 * 200))]


def test_a_marker_that_is_rare_is_found(make_source):
    pixels = np.zeros((3, 1100, 600), "u2")
    pixels[0] = 1
    pixels[1, 1090, 590] = 9
    source = make_source(pixels, [[10.0, 10.0]])
    found = channel_statistics([source])
    assert found["quantile"].tolist() == [1, 9, 0]
    assert found["max"].tolist() == [1, 9, 0]
    assert found["nonzero"].tolist() == [1, pytest.approx(1 / (1100 * 600)), 0]


def test_statistics_read_only_what_they_look_at(make_source, store_pixels):
    array = store_pixels(np.ones((1, 2048, 2048), "u1"), "zarr", (1, 256, 256))
    source = make_source(array, everywhere((2048, 2048)))
    channel_statistics([source], max_pixels=4 * 256**2)
    assert len(array.store.reads) <= 4 * 4
    assert set(array.store.reads.values()) == {1}


def test_quantile_out_of_range(make_source):
    with pytest.raises(ValueError, match="`quantile` must lie between 0 and 1, got 90"):
        channel_statistics([make_source(np.zeros((1, 9, 9)), [[1.0, 1.0]])], quantile=90)


def test_pixels_that_are_no_numbers(make_source):
    pixels = np.zeros((2, 30, 30), "f4")
    pixels[1, 10, 10] = np.nan
    source = make_source(pixels, [[10.0, 10.0]], image_key="slide")
    message = "Channels ['marker1'] of image 'slide' have NaN or infinite pixels"
    for binning in (1, 2):
        with pytest.raises(ValueError, match=re.escape(message)):
            channel_statistics([source], binning=binning)


# --- also where there are no cells ---


def test_everywhere_looks_at_all_pixels_of_small_images(make_source):
    pixels = np.random.default_rng(0).poisson(1.0, (2, 300, 280)).astype("u2")
    pixels[:, 256:] *= 50
    source = make_source(pixels, [[10.0, 10.0]])
    found = channel_statistics([source], quantile=0.99, everywhere=True)
    for c in range(2):
        assert found["quantile"][c] == np.quantile(pixels[c][pixels[c] > 0].astype("f4"), 0.99)
        assert found["nonzero"][c] == pytest.approx((pixels[c] > 0).mean())
        assert found["max"][c] == pixels[c].max()
    assert channel_statistics([source], quantile=0.99)["max"][0] < found["max"][0]


def test_everywhere_does_not_depend_on_cells_channels_or_storage(make_source, store_pixels, monkeypatch):
    monkeypatch.setattr(module, "SQUARE_PX", 32)
    pixels = np.random.default_rng(0).poisson(1.0, (3, 150, 130)).astype("u2")

    def of(pixels, centers, **arguments):
        return channel_statistics([make_source(pixels, centers, **arguments)], max_pixels=4000, seed=5, everywhere=True)

    first = of(pixels, [[1.0, 1.0]])
    for kind, chunks in [("zarr", (1, 16, 16)), ("zarr", (2, 50, 33)), ("dask", (1, 37, 20))]:
        other = of(store_pixels(pixels, kind, chunks), [[140.0, 20.0]])
        for name, values in other.items():
            np.testing.assert_array_equal(values, first[name])
    for name, values in of(pixels, [[1.0, 1.0]], channel_index=[2, 0]).items():
        np.testing.assert_array_equal(values, first[name][[2, 0]])


def test_everywhere_takes_a_sample_of_large_images(make_source, store_pixels):
    array = store_pixels(np.random.default_rng(0).poisson(1.0, (1, 1500, 1100)).astype("u1"), "zarr", (1, 256, 256))
    pixels = array[:]
    array.store.reads.clear()
    source = make_source(array, [[10.0, 10.0]])
    found = channel_statistics([source], max_pixels=4 * 256**2, everywhere=True)
    assert 1 < len(array.store.reads) <= 4
    assert found["nonzero"][0] == pytest.approx((pixels > 0).mean(), abs=0.01)
    tiny = channel_statistics([source], max_pixels=5000, everywhere=True)  # less than one square: every k-th row of it
    assert tiny["nonzero"][0] == pytest.approx((pixels > 0).mean(), abs=0.05)
