"""Which cells the objects of a GeoJSON file name: by id where they have one, else by place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from scipy.spatial import KDTree

from cytonym.data import transforms
from cytonym.data.labels import TIE
from cytonym.io._geojson import cell_uuid, shape_outlines, to_pixels
from cytonym.io._outlines import read

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from cytonym.data.labels import LabelGrid
    from cytonym.data.source import CellSource
    from cytonym.io._parse_geojson import Drawn

TILE_PX = 1024
SLACK_PX = 0.5  # of a cell's centre to its own object; QuPath rounds coordinates


class Cells:
    """All cells of one image, in pixels of the image, numbered through its sources.

    Parameters
    ----------
    sdata
        Object with their elements.
    sources
        Cells, all of one image.
    coordinate_system, scale
        As in `resolve`.
    """

    def __init__(
        self, sdata: SpatialData, sources: list[CellSource], coordinate_system: str, scale: str | None
    ) -> None:
        self.sdata, self.sources = sdata, sources
        self.matrices = [to_pixels(sdata, source, coordinate_system, scale) for source in sources]
        self.first = np.cumsum([0, *(len(source.instance_ids) for source in sources)])
        self.centers = np.concatenate([source.centers[:, ::-1] for source in sources])
        self.inside = np.flatnonzero(np.concatenate([source.inside for source in sources]))
        _, self.height, self.width = sources[0].shape

    def name(self, cell: int) -> str:
        """A cell for people."""
        i = int(np.searchsorted(self.first, cell, side="right")) - 1
        return f"{self.sources[i].region!r} {self.sources[i].instance_ids[cell - self.first[i]]}"

    def match(self, drawn: list[Drawn], max_distance_px: float) -> pd.DataFrame:
        """Cells that the objects name: columns `cell`, `label` and `number` of the object, one row a pair.

        Raises
        ------
        ValueError
            Objects name cells that are not there or are elsewhere, or lie outside the image.
        """
        known = self._by_id(drawn)
        placed = [item for item, cell in zip(drawn, known, strict=True) if cell < 0]
        self._require_inside(placed)
        found = [(cell, item) for item, cell in zip(drawn, known, strict=True) if cell >= 0]
        found += self._by_point([item for item in placed if item.points is not None], max_distance_px)
        found += self._by_area([item for item in placed if item.points is None])
        return pd.DataFrame(
            {
                "cell": np.array([int(cell) for cell, _ in found], dtype=np.int64),
                "label": np.array([item.label for _, item in found], dtype=object),
                "number": np.array([item.number for _, item in found], dtype=np.int64),
            }
        )

    # ------------------------------------------------------------------------------------------------------------ by id
    def _by_id(self, drawn: list[Drawn]) -> np.ndarray:
        """The cell for which each object was written, -1 for others."""
        cells = np.full(len(drawn), -1)
        for i, source in enumerate(self.sources):
            here = [j for j, item in enumerate(drawn) if item.cell is not None and item.cell[0] == source.region]
            wanted = np.array(
                [item.cell[1] for item in drawn if item.cell and item.cell[0] == source.region], dtype=object
            )
            at = pd.Index(source.instance_ids.astype(str)).get_indexer(pd.Index(wanted))
            cells[here] = np.where(at >= 0, at + self.first[i], -1)
        lost = [item for item, cell in zip(drawn, cells, strict=True) if cell < 0 and item.cell is not None]
        if lost:
            some = [f"{item.cell[0]!r} {item.cell[1]}" for item in lost[:3] if item.cell]
            msg = (
                f"{len(lost)} objects were written for cells that are not there, such as {', '.join(some)}. Cells looked "
                f"for are those of {[source.region for source in self.sources]} in image {self.sources[0].image_key!r}. "
                "Choose their image and element, or export objects without them."
            )
            raise ValueError(msg)
        named = [j for j, item in enumerate(drawn) if item.cell is None and item.uuid is not None]
        if named:
            uuids = {
                cell_uuid(source.region, instance): self.first[i] + k
                for i, source in enumerate(self.sources)
                for k, instance in enumerate(source.instance_ids)
            }
            cells[named] = [uuids.get(str(drawn[j].uuid), -1) for j in named]
        moved = [item for item, cell in zip(drawn, cells, strict=True) if cell >= 0 and not self._is_at(item, cell)]
        if moved:
            cell = cells[drawn.index(moved[0])]
            x, y = self.centers[cell]
            msg = (
                f"{len(moved)} objects are not where the cells are for which they were written, such as {self.name(cell)}, "
                f"now at ({x:.1f}, {y:.1f}). The cells have changed since write_geojson, or it wrote in pixels of another "
                "level (`scale`)."
            )
            raise ValueError(msg)
        return cells

    def _is_at(self, item: Drawn, cell: int) -> bool:
        x0, y0, x1, y1 = item.bounds()
        x, y = self.centers[cell]
        return bool(x0 - SLACK_PX <= x <= x1 + SLACK_PX and y0 - SLACK_PX <= y <= y1 + SLACK_PX)

    # --------------------------------------------------------------------------------------------------------- by place
    def _require_inside(self, placed: list[Drawn]) -> None:
        outside = []
        for item in placed:
            x0, y0, x1, y1 = item.bounds()
            if x1 < 0 or y1 < 0 or x0 > self.width or y0 > self.height:
                outside.append((item.number, x0, y0))
        if outside:
            number, x, y = outside[0]
            msg = (
                f"{len(outside)} of {len(placed)} objects lie outside image {self.sources[0].image_key!r} ({self.width} x "
                f"{self.height} pixels), such as object {number} at ({x:.1f}, {y:.1f}). Were they drawn on this image, and "
                "on this level of it (`scale`)?"
            )
            raise ValueError(msg)

    def _by_point(self, drawn: list[Drawn], max_distance_px: float) -> list[tuple[int, Drawn]]:
        if not drawn:
            return []
        points = np.concatenate([item.points for item in drawn if item.points is not None])
        owner = np.repeat(np.arange(len(drawn)), [len(item.points) for item in drawn if item.points is not None])
        cells = np.full(len(points), -1)
        for i, source in enumerate(self.sources):
            free = np.flatnonzero(cells < 0)
            if source.labels is not None:
                at = _label_at(source.labels, source.instance_ids, points[free])
            elif source.kind == "shapes":
                at = self._shape_at(source, self.matrices[i], points[free])
            else:
                continue
            cells[free] = np.where(at >= 0, at + self.first[i], -1)
        free = np.flatnonzero(cells < 0)
        if len(free) and len(self.inside):
            _, nearest = KDTree(self.centers[self.inside]).query(
                points[free], distance_upper_bound=np.nextafter(max_distance_px, np.inf)
            )
            near = nearest < len(self.inside)
            cells[free[near]] = self.inside[nearest[near]]
        return [(int(cell), drawn[i]) for cell, i in zip(cells, owner, strict=True) if cell >= 0]

    def _shape_at(self, source: CellSource, matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Position of the shape that holds each point, of several the one whose centre is nearest; -1 for none."""
        element = self.sdata.shapes[source.region]
        tree = shapely.STRtree(shape_outlines(element, np.arange(len(element)), matrix))
        point, shape = tree.query(shapely.points(points), predicate="intersects")
        distance = np.linalg.norm(source.centers[shape, ::-1] - points[point], axis=1)
        order = np.lexsort((distance, point))[::-1]
        cells = np.full(len(points), -1)
        cells[point[order]] = shape[order]  # the nearest is written last
        return cells

    def _by_area(self, drawn: list[Drawn]) -> list[tuple[int, Drawn]]:
        if not drawn or not len(self.inside):
            return []
        areas = np.array([item.area() for item in drawn], dtype=object)
        # A centre on the border of two areas belongs to one of them: the right or lower one.
        tree = shapely.STRtree(shapely.points(self.centers[self.inside] + TIE))
        which, at = tree.query(areas, predicate="intersects")
        cells = self.inside[at]
        single = np.array([item.one_cell for item in drawn])
        found = [(int(cell), drawn[i]) for i, cell in zip(which, cells, strict=True) if not single[i]]

        middle = shapely.centroid(areas)
        middles = np.full((len(drawn), 2), np.nan)
        middles[~shapely.is_empty(middle)] = shapely.get_coordinates(middle)
        best: dict[int, tuple[float, int]] = {}
        for i, cell in zip(which, cells, strict=True):
            distance = float(np.linalg.norm(self.centers[cell] - middles[i]))
            if single[i] and (i not in best or (distance, cell) < best[i]):
                best[int(i)] = (distance, int(cell))
        smallest: dict[int, Any] = {}
        sizes = shapely.area(areas)
        for i, (_, cell) in best.items():
            if cell not in smallest or sizes[i] < sizes[smallest[cell]]:
                smallest[cell] = i
        return found + [(cell, drawn[i]) for cell, i in smallest.items()]


def _label_at(grid: LabelGrid, instance_ids: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Position of the cell whose label is at each point, -1 for none; each tile of the labels is read once."""
    x, y = np.floor(transforms.apply(grid.to_labels, points) + TIE).astype(np.int64).T
    height, width = grid.labels.shape
    cells = np.full(len(points), -1)
    inside = np.flatnonzero((x >= 0) & (y >= 0) & (x < width) & (y < height))
    ids = pd.Index(instance_ids)
    for _, rows in pd.Series(inside).groupby([y[inside] // TILE_PX, x[inside] // TILE_PX]):
        here = rows.to_numpy()
        top, left = y[here].min(), x[here].min()
        window = read(grid.labels, slice(top, y[here].max() + 1), slice(left, x[here].max() + 1))
        cells[here] = ids.get_indexer(pd.Index(window[y[here] - top, x[here] - left]))
    return cells
