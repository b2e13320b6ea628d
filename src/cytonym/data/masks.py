"""Windows with masks: the pixels around a cell, which of them belong to any cell, and which to this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cytonym.data.patches import Block, CellPatches, window_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cytonym.data.source import CellSource


LABELS_AT_ONCE = 2**22
"""Pixels of the label image that are read together, unless one window has more."""


class MaskedPatches:
    """`CellPatches` with two more channels behind the markers: 1 in all cells, and 1 in this cell.

    Beyond the image's border everything is zero.

    Parameters
    ----------
    source
        Cells that are named by a label image.
    size_px
        Side S of the window.
    batch_size
        Cells in a block.

    Raises
    ------
    ValueError
        The cells are not named by labels.
    """

    def __init__(self, source: CellSource, size_px: int, *, batch_size: int = 256) -> None:
        if source.labels is None:
            msg = (
                f"Masks are needed, but the cells of {source.image_key!r} are named by {source.kind} ({source.region!r}). "
                "Name them by a label image with `labels_key`."
            )
            raise ValueError(msg)
        self.source = source
        self.size_px = size_px
        self.patches = CellPatches(source, size_px, edge="constant", batch_size=batch_size)

    def __len__(self) -> int:
        """Number of cells that have a window."""
        return len(self.patches)

    def __iter__(self) -> Iterator[Block]:
        """Blocks of windows [b, C + 2, S, S] in the order of storage."""
        side = self.size_px
        for block in self.patches:
            origin = window_origin(self.source.centers[block.rows], side)
            ids = self.source.instance_ids[block.rows]
            shape = (len(ids), block.windows.shape[1] + 2, side, side)
            windows = np.empty(shape, dtype=block.windows.dtype)
            windows[:, :-2] = block.windows
            for near in _neighbours(origin, side):
                found, first = self._labels(origin[near])
                for i, (y, x) in zip(near, origin[near] - first, strict=True):
                    part = found[y : y + side, x : x + side]
                    windows[i, -2], windows[i, -1] = part > 0, part == ids[i]
            yield Block(block.rows, windows)

    def _labels(self, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the box around some windows, 0 beyond the image, and its first row and column."""
        labels = self.source.labels
        assert labels is not None
        first = origin.min(axis=0)
        (y0, x0), (y1, x1) = first, origin.max(axis=0) + self.size_px
        found = labels.read(int(y0), int(y1), int(x0), int(x1))
        height, width = self.source.shape[1:]
        found[: max(0, -y0)], found[:, : max(0, -x0)] = 0, 0
        found[max(0, height - y0) :], found[:, max(0, width - x0) :] = 0, 0
        return found, first


def _neighbours(origin: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """Positions of windows whose common box is small: all of them, or else each half of the box by itself."""
    todo = [np.arange(len(origin))]
    while todo:
        near = todo.pop()
        low, high = origin[near].min(axis=0), origin[near].max(axis=0)
        span = high - low
        if (span + side).prod() <= LABELS_AT_ONCE or not span.any():
            yield near
            continue
        axis = int(span.argmax())
        lower = origin[near, axis] <= (low[axis] + high[axis]) // 2
        todo += [near[~lower], near[lower]]
