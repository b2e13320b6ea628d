"""Tiles cover an image once, with their surroundings, and nothing is decoded twice."""

from __future__ import annotations

import logging
import re
from collections import Counter

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data import tiles as module
from cytonym.data.tiles import iter_tiles

KINDS = ["numpy", "zarr", "sharded", "dask", "dask on zarr", "dask after zarr"]


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 45), st.integers(1, 45)),
    chunks=st.tuples(st.integers(1, 3), st.integers(2, 20), st.integers(2, 20)),
    kind=st.sampled_from(KINDS),
    halo=st.integers(0, 25),
    tile_px=st.sampled_from([None, 1, 7, 30]),
    threads=st.sampled_from([None, 1, 3]),
    reverse=st.booleans(),
)
def test_cores_partition_the_image_and_pixels_are_its_own(
    store_pixels, shape, chunks, kind, halo, tile_px, threads, reverse
):
    pixels = np.arange(np.prod(shape)).reshape(shape)
    chunks = tuple(min(c, s) for c, s in zip(chunks, shape, strict=True))
    channels = np.arange(shape[0])[::-1] if reverse else np.arange(shape[0])
    covered = np.zeros(shape[1:], int)
    array = store_pixels(pixels, kind, chunks)
    for tile in iter_tiles(array, channels, halo=halo, tile_px=tile_px, threads=threads):
        covered[tile.y0 : tile.y1, tile.x0 : tile.x1] += 1
        top, left = max(0, tile.y0 - halo), max(0, tile.x0 - halo)
        assert (tile.py0, tile.px0) == (top, left)
        np.testing.assert_array_equal(tile.pixels, pixels[channels, top : tile.y1 + halo, left : tile.x1 + halo])
        assert not tile.pixels.flags.writeable
    assert (covered == 1).all()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    near=st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59)), max_size=4),
    halo=st.integers(0, 9),
    kind=st.sampled_from(["numpy", "zarr", "dask"]),
)
def test_what_is_near_is_true(store_pixels, shape, near, halo, kind):
    """Pixels named by `near` lie in exactly one core, and all that is within `halo` of them is right."""
    pixels = np.arange(shape[0] * shape[1]).reshape(1, *shape)
    points = np.array([p for p in near if p[0] < shape[0] and p[1] < shape[1]], dtype=np.int64).reshape(-1, 2)
    found = np.zeros(len(points), int)
    for tile in iter_tiles(store_pixels(pixels, kind, (1, 8, 8)), halo=halo, tile_px=8, near=points):
        for i, (y, x) in enumerate(points):
            if tile.y0 <= y < tile.y1 and tile.x0 <= x < tile.x1:
                found[i] += 1
                top, left = max(0, y - halo), max(0, x - halo)
                here = tile.pixels[
                    :, top - tile.py0 : y + halo + 1 - tile.py0, left - tile.px0 : x + halo + 1 - tile.px0
                ]
                np.testing.assert_array_equal(here, pixels[:, top : y + halo + 1, left : x + halo + 1])
    assert (found == 1).all()


@pytest.mark.parametrize("halo", [0, 5, 40])
@pytest.mark.parametrize("shape", [(2, 70, 50), (2, 50, 70)])
def test_each_block_is_computed_once(shape, halo):
    computed: Counter[tuple[int, ...]] = Counter()

    def block(block_info=None):
        where = block_info[None]["chunk-location"]
        computed[tuple(where)] += 1
        return np.zeros(block_info[None]["chunk-shape"])

    chunks = da.core.normalize_chunks((1, 16, 16), shape)
    list(iter_tiles(da.map_blocks(block, chunks=chunks, dtype=float, meta=np.empty((0, 0, 0))), halo=halo))
    assert len(computed) == 2 * len(chunks[1]) * len(chunks[2])
    assert set(computed.values()) == {1}


def test_a_tile_that_is_kept_keeps_its_content(store_pixels):
    pixels = np.random.default_rng(0).integers(0, 99, (2, 64, 64))
    kept = list(iter_tiles(store_pixels(pixels, "zarr", (1, 8, 8)), halo=3, tile_px=8))
    for tile in kept:
        top, left = tile.py0, tile.px0
        np.testing.assert_array_equal(tile.pixels, pixels[:, top : tile.y1 + 3, left : tile.x1 + 3])


def test_channels_in_any_order_and_twice(store_pixels):
    pixels = np.arange(5 * 20 * 20).reshape(5, 20, 20)
    for kind in KINDS:
        for channels in ([4, 0, 2], [1, 1, 3], [3], []):
            for tile in iter_tiles(store_pixels(pixels, kind, (2, 8, 8)), channels, halo=2, tile_px=8):
                np.testing.assert_array_equal(
                    tile.pixels, pixels[channels, tile.py0 : tile.y1 + 2, tile.px0 : tile.x1 + 2]
                )


def test_an_image_in_memory_is_not_copied():
    pixels = np.zeros((3, 300, 300))
    assert all(np.shares_memory(tile.pixels, pixels) for tile in iter_tiles(pixels, [1, 2], halo=3))


def test_by_default_tiles_hold_about_as_much_as_allowed(store_pixels, monkeypatch):
    monkeypatch.setattr(module, "TILE_BYTES", 2 * 30 * 30)
    array = store_pixels(np.zeros((2, 64, 64), "u1"), "zarr", (1, 8, 8))
    sizes = {tile.pixels.nbytes for tile in iter_tiles(array)}
    assert 2 * 20 * 20 < max(sizes) <= 2 * 30 * 30


def test_huge_chunks_are_reported(store_pixels, monkeypatch, caplog):
    monkeypatch.setattr(module, "HUGE_TILE_BYTES", 1000)
    with caplog.at_level(logging.WARNING, "cytonym"):
        list(iter_tiles(store_pixels(np.zeros((2, 64, 64)), "zarr", (1, 64, 64))))
    assert "stored in chunks so large" in caplog.text


@pytest.mark.parametrize(
    ("pixels", "arguments", "error", "message"),
    [
        ([[[1]]], {}, TypeError, "`pixels` must be a zarr, dask or numpy array, got list."),
        (np.zeros((4, 4)), {}, ValueError, "`pixels` must be [C, H, W], got an array of shape (4, 4)."),
        (
            np.zeros((1, 4, 4), complex),
            {},
            TypeError,
            "`pixels` must be integers, floats or truth values of at most 64 bits, got complex128.",
        ),
        (np.zeros((2, 4, 4)), {"channel_index": [0, 2]}, IndexError, "`channel_index` must lie in 0 … 1, got [0, 2]."),
        (np.zeros((2, 4, 4)), {"channel_index": [-1]}, IndexError, "`channel_index` must lie in 0 … 1, got [-1]."),
        (np.zeros((2, 4, 4)), {"halo": -1}, ValueError, "`halo` must be at least 0, got -1."),
        (np.zeros((2, 4, 4)), {"tile_px": 0}, ValueError, "`tile_px` must be at least 1, got 0."),
        (np.zeros((2, 4, 4)), {"threads": 0}, ValueError, "`threads` must be at least 1, got 0."),
    ],
)
def test_bad_input(pixels, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        iter_tiles(pixels, **arguments)


def test_an_error_while_reading_reaches_the_caller(store_pixels):
    def block(block_info=None):
        if tuple(block_info[None]["chunk-location"]) == (0, 1, 0):
            msg = "disk on fire"
            raise OSError(msg)
        return np.zeros(block_info[None]["chunk-shape"])

    chunks = da.core.normalize_chunks((1, 16, 16), (1, 64, 64))
    array = da.map_blocks(block, chunks=chunks, dtype=float, meta=np.empty((0, 0, 0)))
    with pytest.raises(OSError, match="disk on fire"):
        list(iter_tiles(array, tile_px=16))
