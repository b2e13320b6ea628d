"""Training batches are a pure function of seed and step, balanced, and never more than a pool in memory."""

from __future__ import annotations

import pickle
import re
from itertools import islice
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from cytonym.data.loader import TrainingWindows, match_channels
from cytonym.data.patches import CellPatches, bin_pixels


def coded(make_source, n_cells: int, base: int, *, names="ab", store=None, size: int = 48):
    """An image whose pixel value is unique, so that a window tells which cell it is; channel b is minus channel a."""
    rng = np.random.default_rng(base)
    layer = base + np.arange(size * size).reshape(size, size)
    pixels = {"a": layer, "b": -layer}
    stack = np.stack([pixels[name] for name in names]).astype("i4")
    places = rng.choice((size - 8) ** 2, n_cells, replace=False)
    centers = np.stack(divmod(places, size - 8), axis=1) + 4.5
    return make_source(stack if store is None else store(stack), centers, names=tuple(names))


@pytest.fixture(scope="module")
def two(make_source):
    return [coded(make_source, 30, 0), coded(make_source, 10, 10_000, names="ba")]


def middle(batch: torch.Tensor) -> list[int]:
    """What tells the cells of a batch apart."""
    side = batch.shape[2]
    return [int(v) for v in batch[:, 0, side // 2, side // 2]]


def windows(sources, **changes) -> TrainingWindows:
    return TrainingWindows(sources, 5, **({"batch_size": 8, "steps": 12, "seed": 3} | changes))


SMALL = 20 * 2 * 25 * 4 / 2**20  # MiB that 20 windows of 5 px and 2 channels take


@pytest.mark.parametrize("pool_mb", [1024, SMALL])
def test_windows_are_those_of_the_cells(two, pool_mb):
    seen = set()
    for batch in windows(two, pool_mb=pool_mb, steps=40):
        assert batch.shape == (8, 2, 5, 5)
        assert batch.dtype == torch.float32
        torch.testing.assert_close(batch[:, 0], -batch[:, 1])  # channels matched by name
        for window in batch[:, 0].numpy():
            first = window[0, 0]
            expected = first + 48 * np.arange(5)[:, None] + np.arange(5)
            np.testing.assert_array_equal(window, expected)
        seen |= set(middle(batch))
    cells = {int(s.pixels[s.channels.index("a"), int(y), int(x)]) for s in two for y, x in s.centers}
    assert seen == cells  # with a small pool, too, every cell has its turn


@pytest.mark.parametrize("pool_mb", [1024, SMALL])
def test_same_seed_same_batches(two, pool_mb):
    first, again = (torch.stack(list(windows(two, pool_mb=pool_mb))) for _ in range(2))
    assert len(first) == 12
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    other = torch.stack(list(windows(two, pool_mb=pool_mb, seed=4)))
    assert not torch.equal(first, other)


@pytest.mark.parametrize("pool_mb", [1024, SMALL])
@pytest.mark.parametrize("start", [1, 5, 11, 12])
def test_a_later_start_gives_the_same_batches(two, pool_mb, start):
    whole = list(windows(two, pool_mb=pool_mb))
    rest = windows(two, pool_mb=pool_mb, start_step=start)
    assert len(rest) == 12 - start
    for expected, batch in zip(whole[start:], rest, strict=True):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


def test_leaving_a_loop_does_not_change_the_next_one(two):
    loader = windows(two, pool_mb=SMALL)
    list(islice(loader, 7))
    torch.testing.assert_close(torch.stack(list(loader)), torch.stack(list(windows(two, pool_mb=SMALL))))


@settings(max_examples=30, deadline=None)
@given(
    n_cells=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch_size=st.integers(1, 50),
    balance=st.booleans(),
    pool=st.integers(3, 100),
)
def test_shares_of_the_images(make_source, n_cells, batch_size, balance, pool):
    sources = [coded(make_source, n, 10_000 * i) for i, n in enumerate(n_cells)]
    loader = windows(sources, batch_size=batch_size, balance=balance, steps=30, pool_mb=pool * 2 * 25 * 4 / 2**20)
    counts = np.zeros(len(sources))
    for batch in loader:
        cells = middle(batch)
        assert len(cells) == batch_size
        if batch_size <= loader.pool_counts.sum():
            assert len(set(cells)) == batch_size  # all windows of a batch differ
        counts += np.bincount(np.array(cells) // 10_000, minlength=len(sources))
    if balance and batch_size <= min(loader.pool_counts) * len(sources):
        np.testing.assert_allclose(counts, counts.mean(), atol=2 + 30 * 0.5)
    if not balance and pool >= sum(n_cells) and batch_size <= sum(n_cells):
        share = 30 * batch_size * np.array(n_cells) / sum(n_cells)
        np.testing.assert_allclose(counts, share, atol=2 + 30 * 0.6)


def test_balance_is_exact_on_average(two):
    counts = np.zeros(2)
    for batch in windows(two, batch_size=7, steps=200):
        counts += np.bincount(np.array(middle(batch)) // 10_000, minlength=2)
    assert abs(counts[0] - counts[1]) < 30  # 1400 draws, 30 cells against 10
    counts = np.zeros(2)
    for batch in windows(two, batch_size=7, steps=200, balance=False):
        counts += np.bincount(np.array(middle(batch)) // 10_000, minlength=2)
    assert abs(counts[0] / counts[1] - 3) < 0.2


def test_ranks_share_the_batches_of_one_process(two):
    whole = list(windows(two))
    parts = []
    for rank in range(2):
        with mock.patch.multiple(
            torch.distributed,
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda rank=rank: rank,
            get_world_size=lambda: 2,
        ):
            parts.append(list(windows(two)))
            with pytest.raises(ValueError, match="`batch_size=7` cannot be shared by 2 ranks. Choose a multiple."):
                next(iter(windows(two, batch_size=7)))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(s) for s in shares] == [4, 4]
        assert sorted(middle(batch)) == sorted(middle(torch.cat(shares)))


def test_workers_take_turns(two):
    whole = list(windows(two, steps=5))
    loaded = list(DataLoader(windows(two, steps=5), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    for expected, batch in zip(whole, loaded, strict=True):
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


def test_a_pool_is_the_most_that_is_held(make_source, store_pixels):
    """Windows on disk that fit into the pool are read once; otherwise in rounds of the pool's size."""
    store = lambda pixels: store_pixels(pixels, "zarr", (1, 16, 16))
    source = coded(make_source, 60, 0, store=store, size=64)
    list(windows([source], batch_size=10, steps=50))
    assert set(source.pixels.store.reads.values()) == {1}

    read, sizes = TrainingWindows._read, []

    def noted(self, i, rng):
        found = read(self, i, rng)
        sizes.append(found.nbytes)
        return found

    with mock.patch.object(TrainingWindows, "_read", noted):
        list(windows([source], batch_size=10, steps=8, pool_mb=SMALL))
    assert sizes == [20 * 2 * 25 * 4] * 4  # 20 windows last for 2 batches


def test_the_pool_stays_behind_when_pickled(two):
    loader = windows(two)
    next(iter(loader))
    small = pickle.loads(pickle.dumps(loader))
    assert small._loaded is None
    torch.testing.assert_close(next(iter(small)), next(iter(loader)))


def test_cells_outside_are_never_drawn(make_source):
    pixels = np.ones((1, 30, 30), "u1")
    source = make_source(pixels, [[5.0, 5.0], [-1.0, 3.0], [np.nan, 2.0], [30.0, 3.0]])
    assert all((batch == 1).all() for batch in windows([source], steps=3, batch_size=2))
    with pytest.raises(ValueError, match=r"No cells of 'cells' lie in image 'image'\. Check their transformations\."):
        windows([source.subset([1, 2, 3])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0."),
        ({"steps": -1}, "`steps` must be at least 0, got -1."),
        ({"start_step": -1}, "`start_step` must be at least 0, got -1."),
        (
            {"pool_mb": 1e-4},
            "`pool_mb=0.0001` holds 0 windows of 5 px and 2 channels, fewer than one for each of 2 images.",
        ),
    ],
)
def test_arguments_out_of_range(two, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        windows(two, **changes)


def test_channels_that_differ(make_source):
    a, b = (make_source(np.zeros((2, 9, 9)), [[4.0, 4.0]], names=n, image_key=k) for n, k in (("xy", "i"), ("yz", "j")))
    message = "The images must share their channels. Only in 'i': ['x']; only in 'j': ['z']. `channels` selects"
    with pytest.raises(ValueError, match=re.escape(message)):
        windows([a, b])
    with pytest.raises(ValueError, match="No images to read: `sources` is empty"):
        match_channels([])
    with pytest.raises(ValueError, match="A window of 10 px is larger than image 'i' of 9 x 9 px"):
        TrainingWindows([a], 10, batch_size=1, steps=1, seed=0)


def test_pixels_that_are_no_numbers(make_source):
    pixels = np.zeros((2, 30, 30), "f4")
    pixels[1, 10, 10] = np.nan
    source = make_source(pixels, [[10.0, 10.0]], image_key="slide")
    with pytest.raises(ValueError, match="Channel 'marker1' of image 'slide' has NaN or infinite pixels"):
        list(windows([source]))


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_binned_windows(make_source, dtype):
    pixels = np.random.default_rng(0).integers(0, 200, (2, 60, 50)).astype(dtype)
    source = make_source(pixels, np.random.default_rng(1).uniform(0, [60, 50], (12, 2)))
    [batch] = TrainingWindows([source], 5, batch_size=12, steps=1, seed=0, binning=3)
    whole = np.concatenate([block.windows for block in CellPatches(source, 15)])
    expected = {bin_pixels(window, 3).tobytes() for window in whole}
    assert {window.numpy().tobytes() for window in batch} == expected
    assert tuple(batch.shape[1:]) == (2, 5, 5)


def test_windows_too_large_once_they_are_binned(make_source):
    source = make_source(np.zeros((1, 20, 20)), [[4.0, 4.0]], image_key="i")
    with pytest.raises(ValueError, match="A window of 21 px is larger than image 'i' of 20 x 20 px"):
        TrainingWindows([source], 7, batch_size=1, steps=1, seed=0, binning=3)
