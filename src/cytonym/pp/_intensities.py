"""Intensities of the cells of one image, in one pass over its tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cytonym.data.source import CellSource
    from cytonym.data.tiles import Tile

STATISTICS = ("mean", "sum", "max", "std")
CELLS_AT_ONCE = 4096
FEW_BYTES, TILE_PX = 64, 1024  # with so few bytes a pixel, labels and their order take more memory than the tile


def cell_intensities(
    source: CellSource, statistics: Collection[str], *, radius_px: float, tile_px: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Statistics over the pixels of each cell: its label, or the disc around its centre where there are no labels.

    A pixel belongs to a disc if its centre lies at most `radius_px` from the cell's. Sums are kept in double precision,
    so that tiles do not matter beyond rounding.

    Parameters
    ----------
    source
        Cells of one image.
    statistics
        Some of `STATISTICS`; `std` divides by the number of pixels.
    radius_px
        Radius of the disc; not used where there are labels.
    tile_px
        Least side of a tile; as `data.tiles` has it by default, but small where there are few channels.

    Returns
    -------
    One array f8 [N, C] a statistic, NaN for a cell without pixels, and the number of pixels int64 [N].

    Raises
    ------
    ValueError
        A pixel of a cell is NaN or infinite.
    """
    n_cells, n_channels = len(source.instance_ids), len(source.channels)
    if tile_px is None and n_channels * np.dtype(source.pixels.dtype).itemsize < FEW_BYTES:
        tile_px = TILE_PX
    area = np.zeros(n_cells, np.int64)
    total = np.zeros((n_cells, n_channels))
    square = np.zeros((n_cells, n_channels)) if "std" in statistics else None
    largest = np.full((n_cells, n_channels), -np.inf) if "max" in statistics else None
    for tile, rows, group, pixel in _members(source, radius_px, tile_px):
        area[rows] += np.bincount(group, minlength=len(rows))
        begins = np.flatnonzero(np.diff(group, prepend=-1))
        for i, name in enumerate(source.channels):
            values = tile.pixels[i].reshape(-1)[pixel].astype(np.float64)
            if not np.isfinite(values).all():
                msg = (
                    f"Channel {name!r} of image {source.image_key!r} has NaN or infinite pixels inside cells. "
                    "Fill them, or leave the channel out through `channels=`."
                )
                raise ValueError(msg)
            total[rows, i] += np.bincount(group, values, len(rows))
            if square is not None:
                square[rows, i] += np.bincount(group, values * values, len(rows))
            if largest is not None:
                largest[rows[group[begins]], i] = np.maximum(
                    largest[rows[group[begins]], i], np.maximum.reduceat(values, begins)
                )
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / area[:, None]
        result = {"mean": mean, "sum": total}
        if square is not None:
            result["std"] = np.sqrt(np.maximum(square / area[:, None] - mean**2, 0))
        if largest is not None:
            result["max"] = largest
    return {name: np.where(area[:, None] > 0, result[name], np.nan) for name in statistics}, area


def _members(
    source: CellSource, radius: float, tile_px: int | None
) -> Iterator[tuple[Tile, np.ndarray, np.ndarray, np.ndarray]]:
    """Which pixels of each tile belong to which cells.

    Yields the tile, rows of cells [n], and for every one of their pixels [P] in the tile the place in `rows` (ascending)
    and the place in the flattened tile.
    """
    if source.labels is not None:
        order = np.argsort(source.instance_ids, kind="stable")
        ids = source.instance_ids[order]
        for tile in iter_tiles(source.pixels, source.channel_index, tile_px=tile_px):
            labels = source.labels.read(tile.y0, tile.y1, tile.x0, tile.x1).ravel()
            pixel = np.flatnonzero(labels)
            pixel = pixel[np.argsort(labels[pixel], kind="stable")]
            here, group = np.unique(labels[pixel], return_inverse=True)
            at = np.minimum(np.searchsorted(ids, here), max(len(ids) - 1, 0))
            known = ids[at] == here if len(ids) else np.zeros(len(here), bool)
            inside = known[group]
            if inside.any():
                yield tile, order[at[known]], (np.cumsum(known) - 1)[group[inside]], pixel[inside]
        return
    corner = np.floor(np.where(np.isfinite(source.centers), source.centers, -1)).astype(np.int64)
    height, width = source.pixels.shape[1:]
    inside = (corner >= 0).all(1) & (corner < [height, width]).all(1)
    reach = int(np.ceil(radius)) + 1
    step = np.arange(-reach, reach + 1)
    for tile in iter_tiles(source.pixels, source.channel_index, halo=reach, tile_px=tile_px, near=corner[inside]):
        y, x = corner.T
        cells = np.flatnonzero(inside & (y >= tile.y0) & (y < tile.y1) & (x >= tile.x0) & (x < tile.x1))
        for start in range(0, len(cells), CELLS_AT_ONCE):
            rows = cells[start : start + CELLS_AT_ONCE]
            py, px = y[rows, None, None] + step[:, None], x[rows, None, None] + step
            cy, cx = source.centers[rows].T[:, :, None, None]
            member = (py + 0.5 - cy) ** 2 + (px + 0.5 - cx) ** 2 <= radius**2
            member &= (py >= 0) & (py < height) & (px >= 0) & (px < width)
            group = np.nonzero(member)[0]
            place = (py - tile.py0) * tile.pixels.shape[2] + (px - tile.px0)
            yield tile, rows, group, place[member]
