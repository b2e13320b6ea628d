"""Label images, read block by block: where the cells are, and which cell a pixel belongs to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.data.chunks import available_threads, zarr_behind

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_PX = 1024  # least side of a block where an array has no chunks, or very small ones
TIE = 1e-6  # pixels; a position on the border of two labels' pixels goes to the upper one, whichever way it was rounded


class LabelGrid:
    """A label image seen on the pixel grid of its image.

    Parameters
    ----------
    labels
        [h, w] integers, 0 where there is no cell: dask, zarr or numpy.
    shape
        (H, W) of the image.
    to_labels
        Axis-aligned affine matrix [3, 3] from the image's pixels (x, y, 1) to the labels'.
    """

    def __init__(self, labels: Any, shape: tuple[int, int], to_labels: np.ndarray) -> None:
        stored = zarr_behind(labels)
        self.labels = labels if stored is None else stored
        self.shape = shape
        self.to_labels = to_labels

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Labels [y1 - y0, x1 - x0] at the centres of the image's pixels; 0 outside the label image."""
        (xx, xy, tx), (yx, yy, ty) = self.to_labels[:2]
        image_y, image_x = np.arange(y0, y1) + 0.5, np.arange(x0, x1) + 0.5
        if abs(yx) > abs(yy):  # the label image lies on its side
            found = self._at(yx * image_x + ty, xy * image_y + tx).T
        else:
            found = self._at(yy * image_y + ty, xx * image_x + tx)
        return np.ascontiguousarray(found)

    def _at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        rows, columns = (np.floor(at + TIE).astype(np.int64) for at in (y, x))
        height, width = self.labels.shape
        inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        out = np.zeros((len(rows), len(columns)), dtype=self.labels.dtype)
        if inside_y.any() and inside_x.any():
            rows, columns = rows[inside_y], columns[inside_x]
            top, left = rows.min(), columns.min()
            part = _read(self.labels, slice(int(top), int(rows.max()) + 1), slice(int(left), int(columns.max()) + 1))
            out[np.ix_(inside_y, inside_x)] = part[np.ix_(rows - top, columns - left)]
        return out


def label_centroids(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Every label and the mean position of its pixels, in one pass over the blocks.

    Parameters
    ----------
    labels
        [h, w] integers, 0 where there is no cell.

    Returns
    -------
    Sorted labels [N] and centroids (x, y) [N, 2]; the centre of pixel i is i + 0.5.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.labels import label_centroids
    >>> ids, xy = label_centroids(np.array([[0, 7, 7], [0, 7, 7]]))
    >>> ids.tolist(), xy.tolist()
    ([7], [[2.0, 1.0]])
    """
    stored = zarr_behind(labels)
    array = labels if stored is None else stored

    def of_box(box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        return _block_sums(_read(array, *box), box[0].start, box[1].start)

    with ThreadPoolExecutor(available_threads(), thread_name_prefix="cytonym-labels") as pool:
        parts = list(pool.map(of_box, _boxes(array)))
    found = [part for part in parts if len(part[0])]
    if not found:
        return np.empty(0, dtype=labels.dtype), np.empty((0, 2))
    ids, inverse = np.unique(np.concatenate([part[0] for part in found]), return_inverse=True)
    sums = np.concatenate([part[1] for part in found])
    area, x, y = (np.bincount(inverse, weights=sums[:, i]) for i in range(3))
    return ids, np.column_stack([x, y]) / area[:, None]


def _read(array: Any, rows: slice, columns: slice) -> np.ndarray:
    part = array[rows, columns]
    return np.asarray(part.compute(scheduler="synchronous") if hasattr(part, "compute") else part)


def _boxes(labels: Any) -> Iterator[tuple[slice, slice]]:
    """Boxes of whole chunks that together cover the array."""
    height, width = labels.shape
    chunks = getattr(labels, "chunks", None) or (BLOCK_PX, BLOCK_PX)
    sides = [max(1, c if isinstance(c, int) else max(c, default=1)) for c in chunks]
    step_y, step_x = (side * max(1, BLOCK_PX // side) for side in sides)
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            yield slice(y, min(y + step_y, height)), slice(x, min(x + step_x, width))


def _block_sums(block: np.ndarray, y0: int, x0: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a block and their (area, sum of x, sum of y) [n, 3].

    A label covers runs of pixels along a row, so that runs, not pixels, need sorting.
    """
    height, width = block.shape
    if not block.size:
        return np.empty(0, dtype=block.dtype), np.empty((0, 3))
    begins = np.ones((height, width), dtype=bool)
    begins[:, 1:] = block[:, 1:] != block[:, :-1]
    first = np.flatnonzero(begins)
    length = np.diff(np.append(first, block.size)).astype(np.float64)
    value = block.ravel()[first]
    cell = value > 0
    first, length, value = first[cell], length[cell], value[cell]
    row, column = first // width, first % width
    ids, inverse = np.unique(value, return_inverse=True)
    sums = [length, length * (x0 + column + length / 2), length * (y0 + row + 0.5)]
    return ids, np.column_stack([np.bincount(inverse, weights=s, minlength=len(ids)) for s in sums])
