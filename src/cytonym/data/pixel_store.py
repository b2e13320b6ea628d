"""Where the pixels of a result go: into memory where they are few, else into compressed chunks, in memory or in a folder."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

PLAIN_BYTES = 256 * 2**20
"""Results up to this size are plain arrays."""
CHUNK_PX = 1024


def new_pixels(
    shape: Sequence[int], dtype: DTypeLike, path: Path | None = None, *, keep: bool = False
) -> np.ndarray | zarr.Array:
    """An array of zeros [C, H, W] or [H, W] to be filled box by box.

    Parameters
    ----------
    shape, dtype
        Of the result.
    path
        Folder to write to; one that exists is replaced. In memory by default: as it is where it is small, else in compressed
        chunks.
    keep
        Keep what is in the folder, if it is such an array.

    Returns
    -------
    An array that takes `array[..., rows, columns] = values`.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if path is None and nbytes <= PLAIN_BYTES:
        return np.zeros(shape, dtype=dtype)
    chunks = (*shape[:-2], *(min(CHUNK_PX, max(side, 1)) for side in shape[-2:]))
    if path is not None and keep and path.is_dir():
        found = zarr.open_array(str(path), mode="r+")
        if found.shape == tuple(shape) and found.dtype == np.dtype(dtype):
            return found
    store: Any = zarr.storage.MemoryStore() if path is None else str(path)
    return zarr.create_array(
        store=store, shape=tuple(shape), dtype=np.dtype(dtype), chunks=chunks, fill_value=0, overwrite=True
    )


def lazy(pixels: np.ndarray | zarr.Array) -> np.ndarray | da.Array:
    """The same pixels as an element takes them."""
    return da.from_zarr(pixels) if isinstance(pixels, zarr.Array) else pixels


class Progress:
    """Which pieces of a long computation are done, in a file beside its result, so that it can go on after an interruption.

    Parameters
    ----------
    path
        The file. It lies beside the results while they are not complete.
    settings
        What the results depend on. A file with others, or none, begins anew.
    results
        Folders that hold the results.
    """

    def __init__(self, path: Path, settings: dict[str, Any], results: Sequence[Path]) -> None:
        self.path = path
        self.done: set[tuple[int, int]] = set()
        head = json.dumps(settings, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] == [head] and all(result.is_dir() for result in results):
            places = [line.split() for line in lines[1:]]
            self.done = {(int(place[0]), int(place[1])) for place in places if place[2:] == ["done"]}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            for result in results:
                shutil.rmtree(result, ignore_errors=True)
            path.write_text(head + "\n", encoding="utf-8")

    def add(self, y0: int, x0: int) -> None:
        """A piece is done."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{y0} {x0} done\n")

    def finish(self) -> None:
        """All are."""
        self.path.unlink()
