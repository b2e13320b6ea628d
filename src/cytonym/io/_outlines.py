"""Outlines of the cells of a label image along the borders of its pixels, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_PX = 2048
"""Least side of a block that is read. A cell is traced with the block in which its bounding box begins."""
PART_PX = 512
"""Side of the parts of a block that are worked on at once."""

Point = tuple[int, int]
Polygon = list[list[Point]]
"""Rings of points (x, y) that end where they begin: the border first, then holes."""


def trace(labels: Any, ids: np.ndarray, block_px: int = BLOCK_PX) -> Iterator[tuple[int, list[Polygon]]]:
    """The outline of each cell as polygons that cover its pixels exactly.

    Memory grows with the block and the largest cell, not with the image or the number of cells.

    Parameters
    ----------
    labels
        [h, w] integers: numpy, zarr or dask.
    ids
        Labels to trace [N], each once.
    block_px
        Least side of a block; whole chunks are read.

    Yields
    ------
    Position in `ids`, and the polygons of that label: one a connected part. Parts that meet at a corner of two pixels are
    two polygons. Labels without a pixel are left out. The order is that of the blocks.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.io._outlines import trace
    >>> list(trace(np.array([[0, 7, 7]]), np.array([7])))
    [(0, [[[(1, 0), (3, 0), (3, 1), (1, 1), (1, 0)]]])]
    """
    if not len(ids):
        return
    order = np.argsort(ids, kind="stable")
    boxes = bounding_boxes(labels, ids[order], block_px)
    side = min(PART_PX, block_px)
    for block in _groups(boxes, *_steps(labels, block_px)):
        top, left, bottom, right = _around(boxes[block])
        in_memory = read(labels, slice(top, bottom), slice(left, right))
        for part in _groups(boxes[block], side, side):
            cells = block[part]
            y0, x0, y1, x1 = _around(boxes[cells])
            window = in_memory[y0 - top : y1 - top, x0 - left : x1 - left]
            for cell, polygons in zip(cells, trace_window(window, ids[order[cells]], (x0, y0)), strict=True):
                yield int(order[cell]), polygons


def read(labels: Any, rows: slice, columns: slice) -> np.ndarray:
    """A part of a label image in memory."""
    part = labels[rows, columns]
    return np.asarray(part.compute(scheduler="synchronous") if hasattr(part, "compute") else part)


def bounding_boxes(labels: Any, ids: np.ndarray, block_px: int = BLOCK_PX) -> np.ndarray:
    """First row and column and last row and column plus one, int [N, 4], of each of the sorted `ids`; 0 for no pixel."""
    height, width = labels.shape
    first = np.full((len(ids), 2), max(height, width), dtype=np.int64)
    last = np.zeros((len(ids), 2), dtype=np.int64)
    step_y, step_x = _steps(labels, block_px)
    for y in range(0, height, step_y):
        for x in range(0, width, step_x):
            block = read(labels, slice(y, min(y + step_y, height)), slice(x, min(x + step_x, width)))
            for top in range(0, len(block), PART_PX):
                _stretch(block[top : top + PART_PX], ids, (y + top, x), first, last)
    boxes = np.concatenate([first, last], axis=1)
    boxes[(last == 0).any(axis=1)] = 0
    return boxes


def _stretch(block: np.ndarray, ids: np.ndarray, origin: tuple[int, int], first: np.ndarray, last: np.ndarray) -> None:
    """Make room in the boxes for the pixels of a block that begins at `origin` (y, x)."""
    begins = np.ones(block.shape, dtype=bool)  # a label covers runs along a row; only their ends are looked at
    begins[:, 1:] = block[:, 1:] != block[:, :-1]
    ends = np.ones(block.shape, dtype=bool)
    ends[:, :-1] = begins[:, 1:]
    for edge in (begins, ends):
        row, column = np.nonzero(edge)
        cell = _positions(ids, block[row, column])
        found = cell >= 0
        cell, at = cell[found], np.column_stack([row[found], column[found]]) + origin
        np.minimum.at(first, cell, at)
        np.maximum.at(last, cell, at + 1)


def trace_window(window: np.ndarray, ids: np.ndarray, origin: Point = (0, 0)) -> list[list[Polygon]]:
    """Polygons of each of the sorted `ids` in a window of a label image whose first pixel is at `origin` (x, y).

    The border of a label is made of horizontal and vertical edges by turns. Horizontal ones are found as runs of pixels,
    with a direction that keeps the label on the right. On each vertical line the ends of these runs, sorted, belong
    together in pairs: these are the vertical edges, and they say which run comes next. Where two pixels of a label meet at
    a corner only, the run of the pixel above the line comes first in this order, so that each keeps its own border.
    """
    cells = np.pad(_positions(ids, window) + 1, 1)
    above, below = cells[:-1, 1:-1], cells[1:, 1:-1]
    cell, y, left, right = _runs(below, above)  # upper borders, from left to right
    n_upper = len(cell)
    cell, y, left, right = (
        np.concatenate(pair) for pair in zip((cell, y, left, right), _runs(above, below), strict=True)
    )
    n = len(cell)
    upper = np.arange(n) < n_upper
    begin, end = np.where(upper, left, right), np.where(upper, right, left)

    corner_cell, corner_x, corner_y = np.tile(cell, 2), np.concatenate([begin, end]), np.tile(y, 2)
    order = np.lexsort((np.tile(upper, 2), corner_y, corner_x, corner_cell))
    pairs = order.reshape(-1, 2)
    # Of the two in a pair one is the end of a run and the other the beginning of one.
    arrives, leaves = pairs.max(axis=1) - n, pairs.min(axis=1)
    follower = np.empty(n, dtype=np.int64)
    follower[arrives] = leaves
    same = np.ones(max(2 * n - 1, 0), dtype=bool)
    for values in (corner_cell, corner_x, corner_y):
        same &= values[order[1:]] == values[order[:-1]]
    touching = set(corner_cell[order[1:][same]].tolist())

    rings: list[list[list[Point]]] = [[] for _ in ids]
    follow, seen = follower.tolist(), bytearray(n)
    starts = list(zip((begin + origin[0]).tolist(), (y + origin[1]).tolist(), strict=True))
    stops = list(zip((end + origin[0]).tolist(), (y + origin[1]).tolist(), strict=True))
    for first, owner in enumerate(cell.tolist()):
        run, ring = first, []
        while not seen[run]:
            seen[run] = 1
            ring += [starts[run], stops[run]]
            run = follow[run]
        if ring:
            rings[owner - 1] += _cut_where_it_touches(ring) if owner in touching else [ring]
    return [_polygons(of_cell) for of_cell in rings]


def _steps(labels: Any, block_px: int) -> tuple[int, int]:
    """Sides of a block of whole chunks."""
    chunks = getattr(labels, "chunks", None) or (block_px, block_px)
    sides = [max(1, c if isinstance(c, int) else max(c, default=1)) for c in chunks]
    return sides[0] * max(1, block_px // sides[0]), sides[1] * max(1, block_px // sides[1])


def _around(boxes: np.ndarray) -> list[int]:
    """The box around some boxes."""
    return [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]


def _groups(boxes: np.ndarray, step_y: int, step_x: int) -> Iterator[np.ndarray]:
    """Cells to take together: those that begin in the same block, and each very large one by itself."""
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    large = (height > step_y) | (width > step_x)
    row, column = boxes[:, 0] // step_y, boxes[:, 1] // step_x
    order = np.lexsort((np.arange(len(boxes)), large, column, row))
    order = order[height[order] > 0]
    if not len(order):
        return
    keys = np.column_stack([row, column, large, np.where(large, np.arange(len(boxes)), -1)])[order]
    cuts = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    yield from np.split(order, cuts)


def _positions(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each value is in the sorted ids; -1 where it is not among them."""
    at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    return np.where(ids[at] == values, at, -1)


def _runs(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
    """Runs along a line where a cell has another neighbour across it: cell, line, first and last x."""
    edge = (own != other) & (own > 0)
    goes_on = edge[:, 1:] & edge[:, :-1] & (own[:, 1:] == own[:, :-1])
    begins, ends = edge.copy(), edge.copy()
    begins[:, 1:] &= ~goes_on
    ends[:, :-1] &= ~goes_on
    line, left = np.nonzero(begins)
    return own[begins], line, left, np.nonzero(ends)[1] + 1


def _cut_where_it_touches(ring: list[Point]) -> list[list[Point]]:
    """A ring that comes back to one of its points, as rings that do not."""
    path: list[Point] = []
    place: dict[Point, int] = {}
    done = []
    for point in ring:
        if point in place:
            at = place[point]
            done.append(path[at:])
            for gone in path[at + 1 :]:
                del place[gone]
            del path[at + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    return [*done, path]


def _polygons(rings: list[list[Point]]) -> list[Polygon]:
    """Borders with their holes. A border has the cell on its right and thus a positive area, a hole a negative one."""
    if len(rings) == 1:
        return [[[*rings[0], rings[0][0]]]]
    areas = [_doubled_area(ring) for ring in rings]
    shells = sorted((area, i) for i, area in enumerate(areas) if area > 0)
    polygons: dict[int, Polygon] = {i: [[*rings[i], rings[i][0]]] for _, i in shells}
    outlines = [shapely.Polygon(rings[i]) for _, i in shells] if len(shells) > 1 else []
    for ring, area in zip(rings, areas, strict=True):
        if area > 0:
            continue
        owner = shells[0][1]
        if outlines:  # the smallest part that holds the pixel to the right of the hole's first edge
            (x0, y0), (x1, y1) = ring[0], ring[1]
            dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
            inside = shapely.contains_xy(outlines, x0 + (dx - dy) / 2, y0 + (dx + dy) / 2)
            owner = shells[int(np.argmax(inside))][1]
        polygons[owner].append([*ring, ring[0]])
    return [polygons[i] for i in sorted(polygons)]


def _doubled_area(ring: list[Point]) -> int:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True))
