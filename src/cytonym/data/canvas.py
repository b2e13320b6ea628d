"""An image and its cells at another resolution, piece by piece: what whole-image networks see.

Pixel i of the canvas lies at (i + 0.5) H / h - 0.5 of the image, with H and h the sizes of image and canvas. Values depend on the place only,
not on the piece in which they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from dask.array import Array as DaskArray

from cytonym.data.chunks import available_threads, check_pixels, read_tasks, zarr_behind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cytonym.data.cell_masks import CellMasks
    from cytonym.data.source import CellSource

PIECE_PX = 2**24  # pixels of the image, of all channels, that are in memory together
COARSE = 2.5  # pixels of the image per pixel of the canvas, beyond which two pixels would not show what lies between
Box = tuple[int, int, int, int]
"""First and last + 1 row, first and last + 1 column."""


@dataclass(frozen=True)
class Axis:
    """One axis of image and canvas.

    Parameters
    ----------
    image, canvas
        Pixels.
    """

    image: int
    canvas: int

    def taps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels of the image [n, K] that make canvas pixels, and their weights f4 [n, K]: linear between two, a triangle over more where the canvas is much coarser than the image."""
        ratio = self.image / self.canvas
        center = (np.arange(start, stop) + 0.5) * ratio - 0.5
        width = ratio / 2 if ratio > COARSE else 1.0
        first = np.floor(center - width).astype(np.int64) + 1
        at = first[:, None] + np.arange(int(np.ceil(2 * width)) + 1)
        weight = np.maximum(0.0, 1 - np.abs(at - center[:, None]) / width)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.clip(at, 0, self.image - 1), weight.astype(np.float32)

    def nearest(self, start: int, stop: int) -> np.ndarray:
        """Pixel of the image whose mask a canvas pixel shows [n]."""
        return np.arange(start, stop) * self.image // self.canvas

    def back(self, start: int, stop: int) -> tuple[int, int]:
        """Pixels of the image that show canvas pixels start … stop - 1, when a result is brought back."""
        return -(-start * self.image // self.canvas), -(-stop * self.image // self.canvas)

    def of_image(self, start: int, stop: int) -> np.ndarray:
        """Canvas pixel that each pixel of the image shows [n]."""
        return np.arange(start, stop) * self.canvas // self.image


class Canvas:
    """One image with its cells at a scorer's resolution.

    Parameters
    ----------
    source, masks
        Image and cells.
    ratio
        Pixels of the image per pixel of the canvas, 2 for an image of 0.5 micrometres and a network of 1. Sizes are floored, and at least 1.
    """

    def __init__(self, source: CellSource, masks: CellMasks, ratio: float) -> None:
        check_pixels(source.pixels)
        self.source, self.masks = source, masks
        _, height, width = source.shape
        self.y, self.x = (Axis(n, max(1, int(np.floor(n / ratio + 1e-9)))) for n in (height, width))
        stored = zarr_behind(source.pixels)
        self._array: Any = source.pixels if stored is None else stored

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y.canvas, self.x.canvas

    def resized(self, height: int, width: int) -> Canvas:
        """The same image and cells on a canvas of another size."""
        other = Canvas(self.source, self.masks, 1.0)
        other.y, other.x = Axis(self.y.image, height), Axis(self.x.image, width)
        return other

    def markers(self, box: Box, channels: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """Channels (places among the source's) of a box of the canvas in 0 … 1, f4 [C, h, w].

        Pixels are divided by their channel's factor [C] and clipped before they are brought to the canvas; a channel with
        factor 0 is 0.

        Raises
        ------
        ValueError
            Pixels are NaN or infinite.
        """
        rows, row_weights = self.y.taps(*box[:2])
        columns, column_weights = self.x.taps(*box[2:])
        top, left = int(rows.min()), int(columns.min())
        bottom, right = int(rows.max()) + 1, int(columns.max()) + 1
        out = np.empty((len(channels), len(rows), len(columns)), np.float32)
        group = max(1, PIECE_PX // ((bottom - top) * (right - left)))
        for some in (slice(i, i + group) for i in range(0, len(channels), group)):
            pixels = self._read(channels[some], (top, bottom), (left, right))
            self._require_finite(channels[some], pixels)
            half = _combined(normalized(pixels, factors[some]), rows - top, row_weights, axis=1)
            out[some] = _combined(half, columns - left, column_weights, axis=2)
        return out

    def interior(self, box: Box) -> np.ndarray:
        """1 inside cells, 0 on their inner boundaries and between them, f4 [h, w]."""
        columns = self.x.nearest(*box[2:])
        out = np.empty((box[1] - box[0], box[3] - box[2]), np.float32)
        for part in self.strips(box):
            rows = self.y.nearest(*part[:2])
            inner = self.masks.interior(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
            out[part[0] - box[0] : part[1] - box[0]] = inner[np.ix_(rows - rows[0], columns - columns[0])]
        return out

    def strips(self, box: Box) -> Iterator[Box]:
        """Boxes of whole rows that partition a box, each of so many pixels of the image as may be in memory together."""
        per_row = self.y.image / self.y.canvas * (box[3] - box[2]) * self.x.image / self.x.canvas
        step = max(1, int(PIECE_PX / 8 / per_row))
        for y in range(box[0], box[1], step):
            yield y, min(y + step, box[1]), *box[2:]

    def cells(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which cells the pixels of a box show, on the image's grid.

        Returns
        -------
        For every pixel of the image that belongs to a cell and shows the box: the row of its cell, and row and column in the box, int32.
        """
        (y0, y1), (x0, x1) = self.y.back(*box[:2]), self.x.back(*box[2:])
        cells = self.masks.read(y0, y1, x0, x1)
        taken = cells >= 0
        at = (self.y.of_image(y0, y1) - box[0]).astype(np.int32)[:, None]
        along = (self.x.of_image(x0, x1) - box[2]).astype(np.int32)
        return cells[taken], np.broadcast_to(at, cells.shape)[taken], np.broadcast_to(along, cells.shape)[taken]

    def _read(self, channels: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        index = self.source.channel_index[channels]
        if not isinstance(self._array, (zarr.Array, DaskArray)):
            return np.asarray(self._array[index, slice(*rows), slice(*columns)])
        out = np.empty((len(index), rows[1] - rows[0], columns[1] - columns[0]), self._array.dtype.newbyteorder("="))
        for task in read_tasks(self._array, index, (rows, columns), out, available_threads()):
            task()
        return out

    def _require_finite(self, channels: np.ndarray, pixels: np.ndarray) -> None:
        if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
            return
        names = [self.source.channels[c] for c in channels[~np.isfinite(pixels).all(axis=(1, 2))]]
        msg = f"Channels {names} of image {self.source.image_key!r} have NaN or infinite pixels. Replace them, for instance with `numpy.nan_to_num`."
        raise ValueError(msg)


def normalized(pixels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Pixels [C, h, w] divided by their channel's factor [C] and clipped to 0 … 1, f4; 0 where the factor is 0."""
    inverse = np.where(factors > 0, 1 / np.where(factors > 0, factors, 1), 0).astype(np.float32)
    return np.clip(pixels * inverse[:, None, None], 0, 1, dtype=np.float32)


def _combined(pixels: np.ndarray, at: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums of K pixels along an axis, f4, always added in the same order."""
    shape = [1] * pixels.ndim
    shape[axis] = -1
    out: np.ndarray | float = 0.0
    for k in range(at.shape[1]):
        if weights[:, k].any():
            out = out + pixels.take(at[:, k], axis=axis) * weights[:, k].reshape(shape)
    return np.asarray(out, dtype=np.float32)
