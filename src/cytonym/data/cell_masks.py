"""Which cell each pixel belongs to, for cells with a mask and for cells that are only points."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from cytonym.data.source import CellSource

NOBODY = -1
STRIP_PX = 64  # rows of an image whose labels are looked up at once


class CellMasks:
    """Pixels of the cells of one image, by the cells' rows.

    Cells that are named by labels have the pixels of their label. Others have a disc around their centre; where discs
    overlap, a pixel belongs to the nearest centre (Voronoi).

    Parameters
    ----------
    source
        Cells of one image.
    radius_px
        Radius of the discs; not used where there are labels.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> from cytonym.data.source import resolve
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, centers_only=True, rng=0)
    >>> masks = CellMasks(resolve(sdata)[0], radius_px=3)
    >>> masks.read(0, 64, 0, 64).shape
    (64, 64)
    """

    def __init__(self, source: CellSource, radius_px: float) -> None:
        self.source = source
        self.radius_px = radius_px

    @property
    def from_labels(self) -> bool:
        """Whether cells have masks of their own."""
        return self.source.labels is not None

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Row of the cell at each pixel of a box of the image, int32 [h, w]; -1 where there is none."""
        labels = self.source.labels
        if labels is None:
            return self._discs(y0, y1, x0, x1)
        found = labels.read(y0, y1, x0, x1)
        rows = np.full(found.shape, NOBODY, dtype=np.int32)
        order, ids = self._sorted
        for y in range(0, len(found) if len(ids) else 0, STRIP_PX):
            strip = found[y : y + STRIP_PX]
            cell = strip > 0
            values = strip[cell]
            at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
            rows[y : y + STRIP_PX][cell] = np.where(ids[at] == values, order[at], NOBODY)
        return rows

    def interior(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Pixels of cells whose four neighbours are of the same cell, bool [h, w]. The image's border is no boundary."""
        _, height, width = self.source.shape
        top, left = max(y0 - 1, 0), max(x0 - 1, 0)
        rows = self.read(top, min(y1 + 1, height), left, min(x1 + 1, width))
        inner = rows >= 0
        for here, beside, inside in ((rows[:-1], rows[1:], inner), (rows.T[:-1], rows.T[1:], inner.T)):
            same = here == beside
            inside[:-1] &= same
            inside[1:] &= same
        return inner[y0 - top : y1 - top, x0 - left : x1 - left]

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.source.instance_ids, kind="stable")
        return order, self.source.instance_ids[order]

    @cached_property
    def _tree(self) -> tuple[cKDTree, np.ndarray]:
        # sorted: at equal distances the same cell whatever the order of rows
        finite = np.flatnonzero(np.isfinite(self.source.centers).all(axis=1))
        finite = finite[np.argsort(self.source.instance_ids[finite], kind="stable")]
        finite = finite[np.lexsort(self.source.centers[finite].T)]
        return cKDTree(self.source.centers[finite]), finite

    def _discs(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        rows = np.full((y1 - y0, x1 - x0), NOBODY, dtype=np.int32)
        tree, finite = self._tree
        reach = self.radius_px + 1
        near = np.flatnonzero(
            (
                np.abs(self.source.centers[finite] - [(y0 + y1) / 2, (x0 + x1) / 2])
                <= [(y1 - y0) / 2 + reach, (x1 - x0) / 2 + reach]
            ).all(axis=1)
        )
        if not len(near):
            return rows
        grid = np.stack(np.meshgrid(np.arange(y0, y1) + 0.5, np.arange(x0, x1) + 0.5, indexing="ij"), axis=-1)
        distance, nearest = tree.query(grid.reshape(-1, 2), distance_upper_bound=self.radius_px * (1 + 1e-9))
        inside = np.isfinite(distance)
        rows.reshape(-1)[inside] = finite[nearest[inside]]
        return rows
