"""Where the pixels of a result go: into memory where they are few, else into compressed chunks, in memory or in a folder."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import dask.array as da
import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

PLAIN_BYTES = 256 * 2**20
"""Results up to this size are plain arrays."""
CHUNK_PX = 1024
PROGRESS = "progress.txt"

Box = tuple[int, int, int, int]
"""First row and column, and those behind the last."""


class Pixels(NamedTuple):
    """What an array takes."""

    shape: tuple[int, ...]
    dtype: DTypeLike


def new_pixels(shape: Sequence[int], dtype: DTypeLike, path: Path | None = None) -> np.ndarray | zarr.Array:
    """An array of zeros [C, H, W] or [H, W] to be filled box by box.

    Parameters
    ----------
    shape, dtype
        Of the result.
    path
        Folder to write to, new or empty. In memory by default: as it is where it is small, else in compressed chunks.

    Returns
    -------
    An array that takes `array[..., rows, columns] = values`.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if path is None and nbytes <= PLAIN_BYTES:
        return np.zeros(shape, dtype=dtype)
    chunks = (*shape[:-2], *(min(CHUNK_PX, max(side, 1)) for side in shape[-2:]))
    store: Any = zarr.storage.MemoryStore() if path is None else str(path)
    return zarr.create_array(store=store, shape=tuple(shape), dtype=np.dtype(dtype), chunks=chunks, fill_value=0)


def lazy(pixels: np.ndarray | zarr.Array) -> np.ndarray | da.Array:
    """The same pixels as an element takes them."""
    return da.from_zarr(pixels) if isinstance(pixels, zarr.Array) else pixels


def numbered(out: Path, name: str, ending: str = "") -> Iterator[Path]:
    """Names in a folder: the one that is wanted, and then with a number each.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cytonym.data.pixel_store import numbered
    >>> names = numbered(Path("slide"), "a_nuclei", ".zarr")
    >>> [next(names).name for _ in range(3)]
    ['a_nuclei.zarr', 'a_nuclei_2.zarr', 'a_nuclei_3.zarr']
    """
    yield out / f"{name}{ending}"
    for n in count(2):
        yield out / f"{name}_{n}{ending}"


@contextmanager
def new_folder(out: Path, name: str, ending: str = "") -> Iterator[Path]:
    """A folder under the first name that is free. What is there is left alone: others may be using it.

    It goes again if what should fill it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    for folder in numbered(out, name, ending):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return


class PixelFolder:
    """Arrays that are filled piece by piece, in a folder of their own, so that this can go on after an interruption.

    A folder of the same name that was made for something else stays as it is; the new one gets a number at its end.

    Parameters
    ----------
    out
        Where the folder lies.
    name
        Of the folder.
    settings
        What the pixels depend on, as plain values. A folder with the same ones is used again.
    arrays
        The arrays, by name.
    """

    def __init__(self, out: Path, name: str, settings: Mapping[str, Any], arrays: Mapping[str, Pixels]) -> None:
        kinds = {key: [list(of.shape), np.dtype(of.dtype).str] for key, of in arrays.items()}
        head = json.dumps({**settings, "arrays": kinds}, sort_keys=True)
        self.done: set[Box] = set()
        self.complete = False
        for folder in numbered(out, name):
            if not folder.exists():
                break
            if self._goes_on(folder, head, arrays):
                return
        with new_folder(out, name) as self.folder:
            self.arrays = {key: new_pixels(*of, self.folder / f"{key}.zarr") for key, of in arrays.items()}
            (self.folder / PROGRESS).write_text(head, encoding="utf-8")

    def _goes_on(self, folder: Path, head: str, arrays: Mapping[str, Pixels]) -> bool:
        """Whether a folder holds these arrays, complete or not. Then they are opened."""
        file, paths = folder / PROGRESS, {key: folder / f"{key}.zarr" for key in arrays}
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        if lines[:1] != [head] or not all((path / "zarr.json").is_file() for path in paths.values()):
            return False
        self.folder = folder
        self.arrays = {key: zarr.open_array(str(path), mode="r+") for key, path in paths.items()}
        self.complete = "complete" in lines
        for line in lines[1:]:
            *box, last = line.split() or [""]
            if last == "done" and len(box) == 4:
                self.done.add((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
        return True

    def add(self, box: Box) -> None:
        """The pixels of a piece are there, in all arrays."""
        self._note(f"{' '.join(map(str, box))} done")

    def finish(self) -> None:
        """All are."""
        self._note("complete")
        self.complete = True

    def _note(self, line: str) -> None:
        """A line; one that was cut off in writing ends before it."""
        with (self.folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}")
