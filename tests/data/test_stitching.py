"""Tiles of the grid cover an image once, and what is put together is what whole arrays would give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cytonym.data.stitching import Grid, Part, Squares, Stitcher, TileAxis, cut_tiles, is_empty, mirrored
from cytonym.data.tiles import iter_tiles

lengths = st.integers(1, 300)
sides = st.integers(1, 120)


def everything(axis: TileAxis) -> np.ndarray:
    """Weights of each tile at each pixel of the image [tiles, length]."""
    found = np.zeros((len(axis.starts), axis.length), int)
    for i in range(len(axis.starts)):
        found[i, slice(*axis.span(i))] = axis.weights(i)
    return found


# ---------------------------------------------------------------------------------------------------------------- axes
@given(length=lengths, tile=sides, blended=st.booleans())
@example(length=33, tile=32, blended=True)
@example(length=61, tile=32, blended=True)
def test_weights_sum_to_one_inside_the_tiles(length, tile, blended):
    axis = TileAxis(length, tile, blended)
    weights = everything(axis)
    assert (weights.sum(axis=0) == axis.total).all()
    assert (weights >= 0).all()
    starts = np.array(axis.starts)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    assert ((weights > 0).sum(axis=0) <= (2 if blended else 1)).all()
    for i, start in enumerate(starts):
        first, last = axis.span(i)
        assert start <= first < last <= min(start + tile, length)
        assert (weights[i, first:last] > 0).all()
        if blended and i and axis.margin:
            assert (np.diff(weights[i, first : axis.span(i - 1)[1]]) > 0).all()
    for pixel in {0, length // 2, length - 1}:
        assert axis.first_after(pixel) == np.flatnonzero(weights[:, pixel:].any(axis=1))[0]


@given(length=st.integers(130, 2000))
def test_the_published_grid(length):
    """Step t - 2 (t // 16); margins are cut off but at the image's border; the last tile lies at the end and has its pixels."""
    axis = TileAxis(length, 128, blended=False)
    assert np.diff(axis.starts[:-1]).tolist() == [112] * (len(axis.starts) - 2)
    weights = everything(axis)
    owner = weights.argmax(axis=0)
    expected = np.zeros(length, int)
    for i, start in enumerate(axis.starts):
        left = 0 if i == 0 else start + 8
        right = length if i == len(axis.starts) - 1 else start + 120
        expected[left:right] = i
    np.testing.assert_array_equal(owner, expected)


def test_one_tile_has_no_margins():
    assert TileAxis(100, 512).starts == (0,)
    assert TileAxis(100, 512).span(0) == (0, 100)
    assert TileAxis(512, 512).total == 1


# ---------------------------------------------------------------------------------------------------------------- tiles
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    chunks=st.tuples(st.integers(2, 30), st.integers(2, 30)),
    kind=st.sampled_from(["numpy", "zarr", "dask"]),
    tile=st.integers(1, 40),
    tile_px=st.sampled_from([1, 16, 50]),
    first=st.integers(0, 2),
)
def test_tiles_are_cut_from_whatever_is_read(store_pixels, shape, chunks, kind, tile, tile_px, first):
    pixels = np.arange(2 * shape[0] * shape[1]).reshape(2, *shape)
    turned = shape[1] > shape[0]
    array = store_pixels(pixels, kind, (1, *(min(c, s) for c, s in zip(chunks, shape, strict=True))))
    seen = pixels.swapaxes(1, 2) if turned else pixels
    grid = Grid(*(TileAxis(n, tile) for n in seen.shape[1:]))
    first = min(first, len(grid.y.starts) - 1)
    whole = np.pad(seen, [(0, 0), *((0, max(0, tile - n)) for n in seen.shape[1:])], mode="symmetric")
    places = []
    for i, j, found in cut_tiles(iter_tiles(array, tile_px=tile_px), grid, first, turned=turned):
        places.append((i, j))
        y, x = grid.y.starts[i], grid.x.starts[j]
        np.testing.assert_array_equal(found, whole[:, y : y + tile, x : x + tile])
    rows, columns = len(grid.y.starts), len(grid.x.starts)
    assert places == [(i, j) for i in range(first, rows) for j in range(columns)]


def test_an_image_smaller_than_a_tile_goes_on_as_its_mirror_image():
    found = mirrored(np.arange(6).reshape(1, 2, 3), 5, 4)
    assert found[0, :, 0].tolist() == [0, 3, 3, 0, 0]
    assert found[0, 0].tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("values", "empty"),
    [
        ([240, 240, 241], True),
        ([0, 255, 240, 241], True),
        ([0, 255], True),
        ([230, 240], False),
        ([236, 242], False),  # variance 9
        ([237, 242], True),
    ],
)
def test_empty_tiles(values, empty):
    rgb = np.resize(np.array(values, np.uint8), (3, 4, 3 * len(values)))
    assert is_empty(rgb) is empty


# ---------------------------------------------------------------------------------------------------------------- stitching
def slowly(grid: Grid, tiles: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Sums of whole images."""
    channels = next(iter(tiles.values())).shape[0]
    total = np.zeros((channels, grid.y.length, grid.x.length), int)
    down, along = everything(grid.y), everything(grid.x)
    for (i, j), tile in tiles.items():
        placed = np.zeros_like(total)
        y, x = grid.y.starts[i], grid.x.starts[j]
        part = placed[:, y : y + grid.y.tile, x : x + grid.x.tile]
        part[:] = tile[:, : part.shape[1], : part.shape[2]]
        total += placed * down[i][:, None] * along[j]
    one = grid.y.total * grid.x.total
    return (2 * total + one) // (2 * one)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    tile=st.integers(1, 70),
    blended=st.booleans(),
    square=st.integers(1, 60),
    first=st.integers(0, 150),
    seed=st.integers(0, 99),
)
def test_streamed_is_what_whole_arrays_give(shape, tile, blended, square, first, seed):
    """From any row on, in any squares; each square once, and only when it is final."""
    rng = np.random.default_rng(seed)
    grid = Grid(*(TileAxis(n, tile, blended) for n in shape))
    tiles = {
        (i, j): rng.integers(0, 256, (2, tile, tile)).astype(np.uint8)
        for i in range(len(grid.y.starts))
        for j in range(len(grid.x.starts))
    }
    expected = slowly(grid, tiles)
    done = {
        (y, x)
        for y in range(0, shape[0], square)
        for x in range(0, shape[1], square)
        if y + square <= min(first, shape[0] - 1)
    }
    squares = Squares(shape, 2, square, done)
    top = squares.first_row()
    assert top is not None
    start = grid.y.first_after(top)
    found = np.full(expected.shape, -1)
    stitcher = Stitcher(grid, 2)
    for (i, j), made in tiles.items():
        if i < start:
            continue
        for y0, x0, pixels in squares.add(stitcher.add(i, j, made)):
            part = found[:, y0 : y0 + pixels.shape[1], x0 : x0 + pixels.shape[2]]
            assert (part == -1).all()
            part[:] = pixels
    np.testing.assert_array_equal(found[:, top:], expected[:, top:])
    assert (found[:, :top] == -1).all()


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(lengths, lengths), tile=st.integers(1, 100), value=st.integers(0, 255))
def test_identical_constants_stay(shape, tile, value):
    grid = Grid(*(TileAxis(n, tile) for n in shape))
    stitcher = Stitcher(grid, 1)
    covered = np.zeros(shape, int)
    made = np.full((1, tile, tile), value, np.uint8)
    for i in range(len(grid.y.starts)):
        for j in range(len(grid.x.starts)):
            y0, x0, pixels = stitcher.add(i, j, made)
            assert (pixels == value).all()
            covered[y0 : y0 + pixels.shape[1], x0 : x0 + pixels.shape[2]] += 1
    assert (covered == 1).all()


def test_a_border_fades():
    """From a black tile to a white one in equal steps, over an eighth of a tile."""
    grid = Grid(TileAxis(32, 32), TileAxis(60, 32))
    stitcher = Stitcher(grid, 1)
    parts = [stitcher.add(0, j, np.full((1, 32, 32), 255 * j, np.uint8)) for j in range(2)]
    line = np.concatenate([part.pixels[0, 0] for part in parts])
    assert line[26:34].tolist() == [0, 0, 32, 96, 159, 223, 255, 255]


def test_squares_that_are_done_are_left_alone():
    squares = Squares((4, 4), 1, 2, {(0, 0), (0, 2), (2, 0)})
    assert squares.first_row() == 2
    assert [(y, x) for y, x, _ in squares.add(Part(0, 0, np.zeros((1, 4, 4), np.uint8)))] == [(2, 2)]
    assert Squares((2, 2), 1, 2, {(0, 0)}).first_row() is None
