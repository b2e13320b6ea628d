"""Images in every kind of storage, with cells at given places."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from cytonym.data.source import CellSource

if TYPE_CHECKING:
    from collections.abc import Callable


class CountingStore(MemoryStore):
    """Counts how often each chunk is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in f"/{key}":
            self.reads[key] += 1
        return await super().get(key, *args, **kwargs)


def stored(pixels: np.ndarray, kind: str, chunks: tuple[int, int, int]) -> Any:
    """`pixels` as `kind`: numpy, fortran, zarr, sharded, dask, dask on zarr, dask after zarr."""
    if kind == "numpy":
        return pixels
    if kind == "fortran":
        return np.asfortranarray(pixels)
    if kind == "dask":
        return da.from_array(pixels, chunks=chunks)
    store = CountingStore()
    shards = tuple(2 * c for c in chunks) if kind == "sharded" else None
    array = zarr.create_array(store, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, shards=shards, fill_value=0)
    array[:] = pixels
    store.reads.clear()
    if kind == "dask on zarr":
        return da.from_zarr(array)
    if kind == "dask after zarr":
        return da.from_zarr(array) + pixels.dtype.type(0)
    return array


@pytest.fixture(scope="session")
def store_pixels() -> Callable[..., Any]:
    return stored


@pytest.fixture(scope="session")
def make_source() -> Callable[..., CellSource]:
    """A source of an image [C, H, W] and centres (y, x) [N, 2], optionally with some of the channels by number."""

    def make(pixels: Any, centers: Any, channel_index: Any = None, names: Any = None, image_key: str = "image"):
        index = np.arange(pixels.shape[0]) if channel_index is None else np.asarray(channel_index, dtype=np.int64)
        centers = np.asarray(centers, dtype=float).reshape(-1, 2)
        return CellSource(
            image_key=image_key,
            region="cells",
            kind="points",
            pixels=pixels,
            channels=tuple(names or (f"marker{i}" for i in index)),
            channel_index=index,
            instance_ids=np.arange(len(centers)),
            centers=centers,
            spatial=centers[:, ::-1],
            pixel_size=None,
            labels=None,
        )

    return make
