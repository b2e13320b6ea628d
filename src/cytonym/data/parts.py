"""What hangs together in a map of pixel classes that comes in tiles: areas, classes, places.

The result is the same for any tiles: pieces are numbered tile by tile, joined across borders, and ordered by their first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN, POSITIVE, NEGATIVE = 0, 1, 2
SUM = "sum of "
CROSS, SQUARE = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True, eq=False)
class Parts:
    """What hangs together in a class map, in the order of the first pixel: N parts, label 1 ... N."""

    area: np.ndarray
    """int64 [N], pixels."""
    n_positive: np.ndarray
    n_negative: np.ndarray
    marker: np.ndarray | None
    """f8 [N], largest value of the marker."""
    sums: dict[str, np.ndarray]
    """f8 [N] each, of numbers that were given with the map."""
    first: np.ndarray
    """int64 [N], place of the first pixel in the flattened image."""
    box: np.ndarray
    """int64 [N, 4]: first column and row, last column and row."""
    center: np.ndarray
    """f8 [N, 2]: mean column and row."""


class PartFinder:
    """Finds what hangs together in a map that comes in tiles, in any order.

    Each tile is labelled on its own. What belongs together across its border, and which gaps are enclosed, shows when all
    have come.

    Parameters
    ----------
    shape
        (H, W) of the whole map.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._n = 0
        self._kinds: list[np.ndarray] = []
        self._sums: dict[str, list[np.ndarray]] = {}
        self._touching: list[np.ndarray] = []
        self._lines: dict[tuple[str, int], np.ndarray] = {}

    def add(
        self,
        y0: int,
        x0: int,
        classes: np.ndarray,
        marker: np.ndarray | None = None,
        sums: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Take a tile, and number its pieces.

        Parameters
        ----------
        y0, x0
            First row and column of the tile.
        classes
            [h, w], as `pixel_classes` gives them.
        marker
            Intensities [h, w] of which a cell's largest is kept.
        sums
            Numbers [h, w] by name, of which a cell's sum is kept. Whole numbers make sums that do not depend on the tiles.

        Returns
        -------
        int32 [h, w]: numbers from 1 on, that no other tile has; `finish` tells the label of each.
        """
        nuclei, n_nuclei = ndimage.label(classes != UNKNOWN, SQUARE)
        gaps, n_gaps = ndimage.label(classes == UNKNOWN, CROSS)
        n = n_nuclei + n_gaps
        local = np.where(nuclei > 0, nuclei, gaps + n_nuclei)
        flat = local.ravel() - 1
        height, width = local.shape
        y, x = np.divmod(np.arange(flat.size), width)
        boxes = ndimage.find_objects(local)
        found = {
            "area": np.bincount(flat, minlength=n),
            "n_positive": np.bincount(flat[(classes == POSITIVE).ravel()], minlength=n),
            "n_negative": np.bincount(flat[(classes == NEGATIVE).ravel()], minlength=n),
            "y": np.bincount(flat, y + y0, minlength=n),
            "x": np.bincount(flat, x + x0, minlength=n),
            "box": np.array(
                [[b[1].start + x0, b[0].start + y0, b[1].stop - 1 + x0, b[0].stop - 1 + y0] for b in boxes]
            ),
        }
        first = np.empty(n, dtype=np.int64)
        first[flat[::-1]] = np.arange(flat.size)[::-1]  # of several pixels the last one written stays
        found["first"] = (first // width + y0) * self.shape[1] + first % width + x0
        if marker is not None:
            found["marker"] = np.full(n, -np.inf)
            np.maximum.at(found["marker"], flat, marker.ravel())
        for name, numbers in (sums or {}).items():
            found[f"{SUM}{name}"] = np.bincount(flat, numbers.ravel(), minlength=n)
        for name, values in found.items():
            self._sums.setdefault(name, []).append(values)
        self._kinds.append(np.arange(n) < n_nuclei)
        self._touching += [_pairs(local[1:], local[:-1], self._n), _pairs(local[:, 1:], local[:, :-1], self._n)]
        ids = local + self._n
        self._n += n
        self._keep_border(ids, y0, x0)
        return ids.astype(np.int32)

    def finish(self) -> tuple[np.ndarray, Parts]:
        """What the pieces make together.

        Returns
        -------
        Label of each number that `add` gave (int32, index 0 unused, 0 for background), and the parts.

        Raises
        ------
        ValueError
            Pixels of the map have not come.
        """
        n = self._n
        nucleus = np.concatenate([*self._kinds, np.zeros(0, dtype=bool)])
        sums = {name: np.concatenate(values) for name, values in self._sums.items()}
        if int(sums["area"].sum() if n else 0) != self.shape[0] * self.shape[1]:
            msg = f"Tiles cover {int(sums['area'].sum()) if n else 0} of {self.shape[0] * self.shape[1]} pixels."
            raise ValueError(msg)
        straight, diagonal, frame = self._across()
        pairs = np.concatenate([*self._touching, straight])
        same = nucleus[pairs[:, 0]] == nucleus[pairs[:, 1]]
        # gaps grow together along sides only; those that reach the frame are background
        gap = _joined(n, pairs[same & ~nucleus[pairs[:, 0]]])
        open_gap = np.zeros(n, dtype=bool)
        open_gap[gap[frame[~nucleus[frame]]]] = True
        background = ~nucleus & open_gap[gap]
        corner = diagonal[nucleus[diagonal].all(axis=1)]
        pairs = np.concatenate([pairs, corner])
        part = _joined(n, pairs[~background[pairs].any(axis=1)])
        members = np.flatnonzero(~background)
        parts, label = _summed(part[members], {name: values[members] for name, values in sums.items()})
        lookup = np.zeros(n + 1, dtype=np.int32)
        lookup[members + 1] = label
        return lookup, parts

    def _keep_border(self, ids: np.ndarray, y0: int, x0: int) -> None:
        """Keep the tile's outer rows and columns on lines as long as the map, where neighbours meet."""
        height, width = ids.shape
        for axis, at, span, values in (
            ("y", y0, x0, ids[0]),
            ("y", y0 + height - 1, x0, ids[-1]),
            ("x", x0, y0, ids[:, 0]),
            ("x", x0 + width - 1, y0, ids[:, -1]),
        ):
            length = self.shape[1] if axis == "y" else self.shape[0]
            line = self._lines.setdefault((axis, at), np.zeros(length, dtype=np.int32))
            line[span : span + len(values)] = values

    def _across(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pieces that touch across borders of tiles [n, 2], along sides and at corners, and those at the frame."""
        straight, diagonal, frame = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.int64)], []
        for (axis, at), line in self._lines.items():
            if at in (0, self.shape[0 if axis == "y" else 1] - 1):
                frame.append(line[line > 0] - 1)
            after = self._lines.get((axis, at + 1))
            if after is not None:
                straight.append(_pairs(line, after, 0))
                diagonal += [_pairs(line[1:], after[:-1], 0), _pairs(line[:-1], after[1:], 0)]
        edge = np.unique(np.concatenate([*frame, np.zeros(0, np.int64)])).astype(np.int64)
        return np.concatenate(straight), np.concatenate(diagonal), edge


def _pairs(a: np.ndarray, b: np.ndarray, offset: int) -> np.ndarray:
    """Different pairs of numbers (from 0 on) at the same places of two arrays of numbers from 1 on, 0 for none: [n, 2]."""
    apart = (a != b) & (a > 0) & (b > 0)
    low = np.minimum(a[apart], b[apart]).astype(np.int64)
    high = np.maximum(a[apart], b[apart]).astype(np.int64)
    if not len(low):
        return np.zeros((0, 2), dtype=np.int64)
    base = int(high.max()) + 1
    code = np.unique(low * base + high)
    return np.column_stack([code // base, code % base]) + (offset - 1)


def _joined(n: int, pairs: np.ndarray) -> np.ndarray:
    """Group of each of n things, of which pairs belong together: int [n]."""
    if not n:
        return np.zeros(0, dtype=np.int64)
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _summed(group: np.ndarray, sums: dict[str, np.ndarray]) -> tuple[Parts, np.ndarray]:
    """Pieces put together by their group, parts in the order of their first pixel; and each piece's label, from 1 on."""
    _, inverse = np.unique(group, return_inverse=True)
    n = int(inverse.max()) + 1 if len(inverse) else 0

    def extreme(values: np.ndarray, how: Any, start: float) -> np.ndarray:
        out = np.full((n, *values.shape[1:]), start, dtype=values.dtype)
        how.at(out, inverse, values)
        return out

    def total(name: str) -> np.ndarray:
        return np.bincount(inverse, sums[name], minlength=n)

    big = np.iinfo(np.int64).max
    first = extreme(sums["first"].astype(np.int64), np.minimum, big)
    order = np.argsort(first, kind="stable")
    label = np.empty(n, dtype=np.int64)
    label[order] = np.arange(1, n + 1)
    box = sums["box"].reshape(-1, 4).astype(np.int64)
    area = total("area")
    parts = Parts(
        area=area[order].astype(np.int64),
        n_positive=total("n_positive")[order].astype(np.int64),
        n_negative=total("n_negative")[order].astype(np.int64),
        marker=extreme(sums["marker"], np.maximum, -np.inf)[order] if "marker" in sums else None,
        sums={name.removeprefix(SUM): total(name)[order] for name in sums if name.startswith(SUM)},
        first=first[order],
        box=np.column_stack([extreme(box[:, :2], np.minimum, big), extreme(box[:, 2:], np.maximum, -1)])[order],
        center=(np.column_stack([total("x"), total("y")]) / np.maximum(area, 1)[:, None])[order],
    )
    return parts, label[inverse]
