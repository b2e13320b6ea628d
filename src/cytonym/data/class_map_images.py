"""Pictures of the cells of a class map, pixel by pixel as the published program draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cytonym.data.class_map import Cells

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIDES = ((-1, 0), (0, -1), (0, 1), (1, 0))
NEIGHBORS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
WIDTH = 3
"""Pixels of an outline: one beside the cell, and two around it."""


def outlines(labels: np.ndarray, kept: np.ndarray, first: np.ndarray | None = None) -> np.ndarray:
    """Which cell's outline each pixel is, 0 for none.

    An outline lies on background only, and where two meet, that of the cell with the smaller label stays. It begins beside
    the cell along its sides, and grows twice to all sides.

    Parameters
    ----------
    labels
        int [H, W], 0 where there is nothing.
    kept
        bool [N]: which of the labels 1 ... N are cells. The others have no outline, but are no background either.
    first
        int [N], places in the flattened image of pixels of the cells that belong to their outline, and have none beside
        them. In pictures of the published program it is the first pixel of each cell.

    Returns
    -------
    int64 [H, W].
    """
    labels = labels.astype(np.int64)
    none = np.iinfo(np.int64).max
    start = np.zeros(labels.shape, dtype=bool)
    if first is not None:
        start.ravel()[first[kept]] = True
    free = labels == 0
    inside = np.where(np.concatenate([[False], kept])[labels] & ~start, labels, none)
    beside = np.full_like(labels, none)
    for step in SIDES:
        beside = np.minimum(beside, _shifted(inside, step, none))
    owner = np.where(free & (beside < none), beside, 0)
    owner[start] = labels[start]
    for _ in range(WIDTH - 1):
        grown = owner.copy()
        for step in NEIGHBORS:  # in raster order: the first pixel of an outline that reaches a place keeps it
            grown = np.where(free & (grown == 0), _shifted(owner, step, 0), grown)
        owner = grown
    return owner


def refined_mask(labels: np.ndarray, cells: Cells, *, as_published: bool = True) -> np.ndarray:
    """Cells in red (positive) and blue (negative) with green outlines, on black.

    Parameters
    ----------
    labels, cells
        As `cells_of_map` gives them.
    as_published
        Draw as the published program does from a class map. As it does from a list of cells otherwise: without the first
        pixel of each cell in its outline, and without regard to parts that are no cells.

    Returns
    -------
    uint8 [H, W, 3].

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.class_map import cells_of_map
    >>> from cytonym.data.class_map_images import refined_mask
    >>> image = np.zeros((3, 24, 24), "u1")
    >>> image[0, 8:16, 8:16] = 255
    >>> refined_mask(*cells_of_map(image))[12, 3:11].tolist()[1:4]
    [[0, 0, 0], [0, 255, 0], [0, 255, 0]]
    """
    colors = np.zeros((len(cells.kept) + 1, 3), dtype=np.uint8)
    colors[1:][cells.kept] = np.where(cells.positive[cells.kept, None], RED, BLUE)
    picture: np.ndarray = colors[labels]
    picture[_owners(labels, cells, as_published) > 0] = GREEN
    return picture


def overlay(image: np.ndarray, labels: np.ndarray, cells: Cells, *, as_published: bool = True) -> np.ndarray:
    """The image with the outlines of its cells, red for positive and blue for negative ones.

    Parameters
    ----------
    image
        uint8 [H, W, 3].
    labels, cells, as_published
        As in `refined_mask`.

    Returns
    -------
    uint8 [H, W, 3].
    """
    owner = _owners(labels, cells, as_published)
    picture = np.array(image)
    drawn = owner > 0
    picture[drawn] = np.where(cells.positive[owner[drawn] - 1, None], RED, BLUE)
    return picture


def _owners(labels: np.ndarray, cells: Cells, as_published: bool) -> np.ndarray:  # noqa: FBT001
    if as_published:
        return outlines(labels, cells.kept, cells.parts.first)
    return outlines(np.where(np.concatenate([[False], cells.kept])[labels], labels, 0), cells.kept)


def _shifted(values: np.ndarray, step: tuple[int, int], fill: int) -> np.ndarray:
    """At each pixel the value of the one that lies `step` (rows, columns) away."""
    out = np.full_like(values, fill)
    (to_y, from_y), (to_x, from_x) = (_overlap(by) for by in step)
    out[to_y, to_x] = values[from_y, from_x]
    return out


def _overlap(by: int) -> tuple[slice, slice]:
    """Where a line and the line shifted by `by` overlap: places, and what lies `by` further."""
    if by < 0:
        return slice(-by, None), slice(None, by)
    return slice(None, -by or None), slice(by, None)
