"""Cells of a class map that is read tile by tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.data.class_map import DENSITY, Cells, call_cells, pixel_classes
from cytonym.data.parts import NEGATIVE, POSITIVE, PartFinder, Parts
from cytonym.data.pixel_store import new_pixels
from cytonym.data.stains import separate_stains, summed_density
from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import zarr

    from cytonym.data.class_map import CellRules
    from cytonym.data.source import CellSource

DAB = "dab"
UNIT = 10_000
"""Densities are summed up in whole numbers of 1 / UNIT, so that sums do not depend on the tiles."""
TILE_PX = 1024
SPLIT_DEPTH = 0.75
"""Pixels by which the distance to the border must fall between two nuclei that are split."""
SPLIT_SIDE = 0.6
"""Least distance of a nucleus's centre from its border over that of a typical nucleus."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """A class map, and the images on the same grid that are measured with it."""

    source: CellSource
    """Red, green and blue of the map."""
    image: CellSource | None
    """The stained image, RGB."""
    marker: CellSource | None
    white: np.ndarray | None
    """Intensities of the stained image where there is no tissue."""
    rules: CellRules

    def planes(self, class_map: np.ndarray, rows: slice, columns: slice) -> dict[str, Any]:
        """Arguments of `PartFinder.add` for a box of the map."""
        found: dict[str, Any] = {"classes": pixel_classes(class_map, self.rules.seg_thresh)}
        if self.marker is not None:
            found["marker"] = read_box(self.marker, rows, columns).max(axis=0)
        if self.image is not None and self.white is not None:
            rgb = read_box(self.image, rows, columns)
            dab = np.rint(separate_stains(rgb, self.white)[1].astype(np.float64) * UNIT)
            found["sums"] = {DENSITY: summed_density(rgb), DAB: dab}
        return found


def read_box(source: CellSource, rows: slice, columns: slice) -> np.ndarray:
    """Selected channels of a box of an image [C, h, w]."""
    planes = [source.pixels[int(c), rows, columns] for c in source.channel_index]
    planes = [plane.compute(scheduler="threads") if hasattr(plane, "compute") else plane for plane in planes]
    return np.stack([np.asarray(plane) for plane in planes])


def find_cells_of_map(
    class_map: ClassMap, *, split: bool = False, path: Path | None = None, tile_px: int = TILE_PX
) -> tuple[np.ndarray | zarr.Array, Cells]:
    """Cells of a class map by its rules.

    Parameters
    ----------
    class_map
        What to read.
    split
        Split touching nuclei.
    path
        Folder for the labels, new or empty; in memory by default.
    tile_px
        Side of what is read at a time.

    Returns
    -------
    Labels int32 [H, W] of those parts that are cells, with label = row + 1, and all parts.

    Raises
    ------
    ValueError
        The marker has NaN or infinite pixels.
    """
    _, height, width = class_map.source.shape
    finder = PartFinder((height, width))
    labels = new_pixels((height, width), np.int32, path)
    counts = _marker_counts(class_map.marker)
    for rows, columns, pixels in _boxes(class_map.source, tile_px):
        planes = class_map.planes(pixels, rows, columns)
        marker = planes.get("marker")
        if marker is not None and counts is not None:
            counts += np.bincount(marker.ravel(), minlength=len(counts))
        elif marker is not None and not np.isfinite(marker).all():
            key = class_map.marker.image_key if class_map.marker is not None else ""
            msg = f"Marker image {key!r} has NaN or infinite pixels. Fill them first."
            raise ValueError(msg)
        labels[rows, columns] = finder.add(rows.start, columns.start, **planes)
    lookup, parts = finder.finish()
    cells = call_cells(parts, class_map.rules, counts)
    lookup = np.where(np.concatenate([[False], cells.kept])[lookup], lookup, 0)
    for rows, columns in _squares(labels.shape, tile_px):
        labels[rows, columns] = lookup[np.asarray(labels[rows, columns])]
    return (labels, cells) if not split else _split(class_map, labels, cells, counts)


def _boxes(source: CellSource, tile_px: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The image in boxes that do not overlap; a tile that is large, because its chunks are, in several."""
    for tile in iter_tiles(source.pixels, source.channel_index, tile_px=tile_px):
        for rows, columns in _squares((tile.y1 - tile.y0, tile.x1 - tile.x0), tile_px):
            y, x = (slice(s.start + a, s.stop + a) for s, a in ((rows, tile.y0), (columns, tile.x0)))
            yield y, x, tile.pixels[:, rows, columns]


def _squares(shape: tuple[int, ...], side: int) -> Iterator[tuple[slice, slice]]:
    height, width = shape
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield slice(y, min(y + side, height)), slice(x, min(x + side, width))


def _marker_counts(marker: CellSource | None) -> np.ndarray | None:
    """Room for how often each intensity occurs, of a marker of 8 or 16 bits."""
    dtype = None if marker is None else np.dtype(marker.pixels.dtype)
    return (
        None
        if dtype is None or dtype.kind != "u" or dtype.itemsize > 2
        else np.zeros(2 ** (8 * dtype.itemsize), np.int64)
    )


# --------------------------------------------------------------------------------------------------- touching nuclei
def split_nucleus(mask: np.ndarray, typical_area: float) -> np.ndarray:
    """Split a mask at its waists, by a watershed of the distance to its border.

    Parameters
    ----------
    mask
        bool [h, w].
    typical_area
        Of one nucleus, pixels. A piece has a centre that lies deep enough for a nucleus.

    Returns
    -------
    int32 [h, w] with labels 1 ... n of the pieces, n at least 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.tl._class_maps import split_nucleus
    >>> y, x = np.mgrid[:20, :34]
    >>> two = ((y - 10) ** 2 + (x - 10) ** 2 < 64) | ((y - 10) ** 2 + (x - 23) ** 2 < 64)
    >>> split_nucleus(two, 200).max()
    np.int32(2)
    """
    from scipy import ndimage
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    smooth = ndimage.gaussian_filter(depth, 1.0)
    deep = depth >= SPLIT_SIDE * np.sqrt(typical_area / np.pi)
    seeds, n = ndimage.label(h_maxima(smooth, SPLIT_DEPTH).astype(bool) & deep & mask, np.ones((3, 3)))
    if n < 2:
        return mask.astype(np.int32)
    return np.asarray(watershed(-smooth, seeds, mask=mask), dtype=np.int32)


def _split(
    class_map: ClassMap, labels: np.ndarray | zarr.Array, cells: Cells, counts: np.ndarray | None
) -> tuple[np.ndarray | zarr.Array, Cells]:
    """Split each cell; its first piece keeps the label, the others get new ones at the end."""
    kept = np.flatnonzero(cells.kept)
    if not len(kept):
        return labels, cells
    typical = float(np.median(cells.parts.area[kept]))
    rows = {name: [np.asarray(values)] for name, values in _columns(cells.parts).items()}
    n = len(cells.parts.area)
    width = class_map.source.shape[2]
    for row in kept[cells.parts.area[kept] > typical]:
        x0, y0, x1, y1 = cells.parts.box[row].tolist()
        box = slice(y0, y1 + 1), slice(x0, x1 + 1)
        found = np.asarray(labels[box])
        pieces = split_nucleus(found == row + 1, typical)
        if pieces.max() < 2:
            continue
        planes = class_map.planes(read_box(class_map.source, *box), *box)
        measured = _measured(pieces, planes, y0, x0, width)
        for name, values in measured.items():
            rows[name][0][row] = values[0]
            rows[name].append(values[1:])
        new = np.concatenate([[0, row + 1], n + 1 + np.arange(pieces.max() - 1)])
        n += int(pieces.max()) - 1
        labels[box] = np.where(pieces > 0, new[pieces], found).astype(np.int32)
    columns = {name: np.concatenate(values) for name, values in rows.items()}
    parts = Parts(**{k: columns.get(k) for k in _FIELDS}, sums={k: columns[k] for k in cells.parts.sums})  # type: ignore[arg-type]
    fixed = replace(cells.rules, size_thresh=0, size_thresh_upper=None, noise_thresh=0, large_noise_thresh=None)
    called = call_cells(parts, fixed, counts)
    kept_now = np.concatenate([cells.kept, np.ones(n - len(cells.kept), dtype=bool)])
    candidate = np.concatenate([cells.candidate, np.ones(n - len(cells.kept), dtype=bool)])
    return labels, Cells(parts, candidate, kept_now, called.positive, cells.rules)


_FIELDS = ("area", "n_positive", "n_negative", "marker", "first", "box", "center")


def _columns(parts: Parts) -> dict[str, np.ndarray]:
    """Everything that is known of the parts, by name."""
    found = {name: getattr(parts, name) for name in _FIELDS} | parts.sums
    return {name: values.copy() for name, values in found.items() if values is not None}


def _measured(pieces: np.ndarray, planes: dict[str, Any], y0: int, x0: int, width: int) -> dict[str, np.ndarray]:
    """The same of the pieces of one box."""
    n = int(pieces.max())
    inside = np.flatnonzero(pieces)
    flat = pieces.ravel()[inside] - 1
    y, x = np.divmod(inside, pieces.shape[1])
    y, x = y + y0, x + x0
    area = np.bincount(flat, minlength=n)
    classes = planes["classes"].ravel()[inside]
    first = np.empty(n, dtype=np.int64)
    first[flat[::-1]] = (y * width + x)[::-1]
    box = np.column_stack([np.full((n, 2), np.iinfo(np.int64).max), np.full((n, 2), -1)])
    at = np.column_stack([x, y])
    np.minimum.at(box[:, :2], flat, at)
    np.maximum.at(box[:, 2:], flat, at)
    found = {
        "area": area,
        "n_positive": np.bincount(flat[classes == POSITIVE], minlength=n),
        "n_negative": np.bincount(flat[classes == NEGATIVE], minlength=n),
        "first": first,
        "box": box,
        "center": np.column_stack([np.bincount(flat, c, minlength=n) for c in (x, y)]) / area[:, None],
    }
    if "marker" in planes:
        found["marker"] = np.full(n, -np.inf)
        np.maximum.at(found["marker"], flat, planes["marker"].ravel()[inside])
    for name, values in planes.get("sums", {}).items():
        found[name] = np.bincount(flat, values.ravel()[inside], minlength=n)
    return found
