"""Windows at cells, against one slice of the padded image after another."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data.patches import CellPatches, window_origin

KINDS = ["numpy", "fortran", "zarr", "sharded", "dask", "dask on zarr", "dask after zarr"]
DTYPES = ["u1", "u2", "i4", "f4", "f8", ">u2", ">f4", "bool", "i8", "f2"]


def by_hand(pixels: np.ndarray, center: np.ndarray, side: int, edge: str) -> np.ndarray:
    """The window [C, S, S] of one cell."""
    before = side // 2
    padded = np.pad(pixels, ((0, 0), (before, side), (before, side)), mode=edge)  # type: ignore[call-overload]
    y, x = np.floor(center).astype(int)  # index of the window's first pixel in the padded image
    return padded[:, y : y + side, x : x + side]


@st.composite
def images(draw) -> tuple[np.ndarray, tuple[int, int, int]]:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "f":
        pixels = rng.normal(size=shape).astype(dtype)
    elif dtype.kind == "b":
        pixels = rng.random(shape) < 0.5
    else:
        info = np.iinfo(dtype)
        pixels = rng.integers(info.min, info.max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)
    chunks = (draw(st.integers(1, shape[0])), draw(st.integers(3, 17)), draw(st.integers(3, 17)))
    return pixels, chunks


def places(height: int, width: int) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Inside, on every border, outside, and not finite."""
    special = [0.0, -0.0, -1e-9, 0.5, np.nan, np.inf, -np.inf, -3.0, 1e30]

    def axis(n: int) -> st.SearchStrategy[float]:
        ends = [n - 0.5, float(n), np.nextafter(n, 0), float(n + 2)]
        return st.one_of(st.floats(0, n, exclude_max=True), st.sampled_from(special + ends))

    return st.lists(st.tuples(axis(height), axis(width)), max_size=25)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), image=images(), kind=st.sampled_from(KINDS), edge=st.sampled_from(["reflect", "constant"]))
def test_windows_equal_slices(store_pixels, make_source, data, image, kind, edge):
    pixels, chunks = image
    n_channels, height, width = pixels.shape
    centers = np.array(data.draw(places(height, width)), dtype=float).reshape(-1, 2)
    side = data.draw(st.integers(1, min(height, width)))
    channels = data.draw(st.lists(st.integers(0, n_channels - 1), min_size=1, max_size=n_channels, unique=True))
    source = make_source(store_pixels(pixels, kind, chunks), centers, channels)
    patches = CellPatches(
        source,
        side,
        edge=edge,
        batch_size=data.draw(st.integers(1, 30)),
        threads=data.draw(st.integers(1, 3)),
        tile_px=data.draw(st.sampled_from([None, 1, 8, 100])),
    )
    inside = [i for i, (y, x) in enumerate(centers) if 0 <= y < height and 0 <= x < width]
    assert sorted([*inside, *patches.outside]) == list(range(len(centers)))
    assert len(patches) == len(inside)
    for _ in range(2):  # may be iterated again
        blocks = list(patches)
        assert sorted(np.concatenate([np.empty(0, int), *(b.rows for b in blocks)]).tolist()) == inside
        assert all(len(b.rows) == patches.batch_size for b in blocks[:-1])
        for block in blocks:
            assert block.windows.dtype == pixels.dtype.newbyteorder("=")
            assert block.windows.dtype.isnative
            for row, window in zip(block.rows, block.windows, strict=True):
                np.testing.assert_array_equal(window, by_hand(pixels[channels], centers[row], side, edge))


@pytest.mark.parametrize("kind", ["zarr", "dask on zarr", "dask after zarr"])
@pytest.mark.parametrize("tile_px", [None, 1, 40])
def test_each_chunk_is_read_once(store_pixels, make_source, kind, tile_px):
    pixels = np.random.default_rng(0).integers(0, 9, (4, 70, 90)).astype("u2")
    zarr_like = store_pixels(pixels, "zarr", (2, 16, 16))
    import dask.array as da

    array = {
        "zarr": zarr_like,
        "dask on zarr": da.from_zarr(zarr_like),
        "dask after zarr": da.from_zarr(zarr_like) + np.uint16(0),
    }[kind]
    rng = np.random.default_rng(1)
    source = make_source(array, rng.uniform(0, [70, 90], (500, 2)))
    n = sum(len(block.rows) for block in CellPatches(source, 13, tile_px=tile_px, batch_size=64))
    assert n == 500
    reads = zarr_like.store.reads
    assert len(reads) == 2 * 5 * 6
    assert set(reads.values()) == {1}


def test_chunks_far_from_all_cells_are_not_read(store_pixels, make_source):
    array = store_pixels(np.ones((2, 160, 160), "u2"), "zarr", (1, 16, 16))
    source = make_source(array, [[40.0, 40.0], [42.0, 39.0]], [1])
    list(CellPatches(source, 9, tile_px=16))
    assert set(array.store.reads) == {"c/1/2/2"}


@pytest.mark.parametrize("kind", ["zarr", "dask after zarr"])
def test_leaving_early_stops_the_threads(store_pixels, make_source, kind):
    array = store_pixels(np.ones((2, 160, 160), "u2"), kind, (1, 16, 16))
    source = make_source(array, np.random.default_rng(0).uniform(0, 160, (300, 2)))

    def ours() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith(("cytonym-read", "cytonym-cut"))]

    before = len(ours())
    for _ in CellPatches(source, 9, batch_size=5, tile_px=16):
        break
    assert len(ours()) == before
    blocks = iter(CellPatches(source, 9, batch_size=5, tile_px=16))
    next(blocks)
    blocks.close()
    assert len(ours()) == before


def test_a_block_that_is_kept_keeps_its_content(store_pixels, make_source):
    pixels = np.random.default_rng(0).random((2, 64, 64)).astype("f4")
    source = make_source(store_pixels(pixels, "zarr", (1, 16, 16)), np.random.default_rng(1).uniform(0, 64, (200, 2)))
    views = [block.windows[1:3] for block in CellPatches(source, 8, batch_size=10)]  # views only, the blocks are gone
    again = [block.windows[1:3].copy() for block in CellPatches(source, 8, batch_size=10)]
    np.testing.assert_array_equal(views, again)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_pixels_that_are_no_numbers(make_source, bad, dtype):
    pixels = np.zeros((3, 40, 40), dtype)
    pixels[1, 10, 12] = bad
    far = make_source(pixels, [[30.5, 30.5]])
    assert sum(len(block.rows) for block in CellPatches(far, 5)) == 1  # no cell sees it
    near = make_source(pixels, [[30.5, 30.5], [11.5, 12.5]], [2, 1])
    message = (
        "Channel 'marker1' of image 'image' has NaN or infinite pixels, among others near y = 12, x = 12. "
        "Replace them, for instance with `numpy.nan_to_num`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        list(CellPatches(near, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 21}, "A window of 21 px is larger than image 'image' of 20 x 40 px. Choose a smaller one."),
        ({"size_px": 0}, "`size_px` must be at least 1, got 0."),
        ({"size_px": 4, "batch_size": 0}, "`batch_size` must be at least 1, got 0."),
        ({"size_px": 4, "threads": 0}, "`threads` must be at least 1, got 0."),
        ({"size_px": 4, "edge": "wrap"}, "`edge` must be 'reflect' or 'constant', got 'wrap'."),
    ],
)
def test_arguments_out_of_range(make_source, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CellPatches(make_source(np.zeros((1, 20, 40)), [[5.0, 5.0]]), **arguments)


def test_window_origin_holds_the_centre_pixel():
    centers = np.array([[0.0, 0.999], [7.0, 7.5], [-0.5, 3.2]])
    for side in range(1, 8):
        np.testing.assert_array_equal(window_origin(centers, side) + side // 2, np.floor(centers))


def test_no_cells(make_source):
    patches = CellPatches(make_source(np.zeros((1, 20, 20)), []), 5)
    assert (len(patches), list(patches), patches.outside.tolist()) == (0, [], [])
