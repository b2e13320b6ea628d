"""Which arrays are read without dask, and memory that is used again only when nobody holds it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.utils import SerializableLock

from cytonym.data.chunks import Buffers, available_threads, zarr_behind


@pytest.fixture
def array() -> zarr.Array:
    made = zarr.create_array({}, shape=(2, 20, 30), chunks=(1, 8, 8), dtype="u2")
    made[:] = np.arange(1200).reshape(2, 20, 30)
    return made


READS = {
    "as stored": lambda a: da.from_zarr(a),
    "other chunks": lambda a: da.from_zarr(a, chunks=(2, 16, 30)),
    "inlined": lambda a: da.from_array(a, chunks=(1, 8, 8), inline_array=True),
    "not inlined": lambda a: da.from_array(a, chunks=(1, 8, 8), inline_array=False),
}
WORKS = {
    "sum": lambda a: da.from_zarr(a) + 1,
    "cast": lambda a: da.from_zarr(a).astype("f4"),
    "slice": lambda a: da.from_zarr(a)[:, 1:],
    "flip": lambda a: da.from_zarr(a)[:, ::-1],
    "reorder": lambda a: da.from_zarr(a)[::-1],
    "transpose": lambda a: da.from_zarr(a).transpose(0, 2, 1),
    "rechunk": lambda a: da.from_zarr(a).rechunk((1, 5, 5)),
    "twice": lambda a: da.concatenate([da.from_zarr(a), da.from_zarr(a)]),
    "locked": lambda a: da.from_array(a, chunks=(1, 8, 8), lock=SerializableLock()),
    "numpy": lambda a: da.from_array(a[:]),
    "empty": lambda a: da.from_zarr(a)[:0],
}


@pytest.mark.parametrize("make", READS.values(), ids=READS)
def test_a_plain_read_is_seen_through(array, make):
    assert zarr_behind(make(array)) is array


@pytest.mark.parametrize("make", WORKS.values(), ids=WORKS)
def test_work_on_pixels_is_not_skipped(array, make):
    assert zarr_behind(make(array)) is None


def test_other_things_are_no_zarr():
    assert zarr_behind(np.zeros((1, 2, 2))) is None
    assert zarr_behind("image.zarr") is None


def test_memory_is_used_again_once_it_is_free():
    buffers = Buffers(64, keep=2)
    first = buffers.empty((4, 2), "u8")
    where = first.__array_interface__["data"][0]
    view = first[1:]
    second = buffers.empty((8,), "u8")
    assert not np.shares_memory(first, second)
    del first
    third = buffers.empty((8,), "f8")  # a view is still held
    assert not np.shares_memory(view, third)
    del view
    again = buffers.empty((3,), "f4")
    assert again.__array_interface__["data"][0] == where
    assert again.shape == (3,)


def test_threads():
    assert available_threads() >= 1
