"""A tissue as a function of the place: any rectangle of it can be drawn by itself, always the same.

The tissue is divided into square parcels. Places, types, shapes and noise of a parcel come from its own generator, so
that neither the size of the image nor the order or size of the pieces that are drawn changes a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numba
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from cytonym.datasets._presets import LOBED, LOCALISATIONS, LONG, SHAPES, CellType

PARCEL = 128  # px
REACH = 24  # px around a parcel whose cells shine into it
LOBED_CODE, LONG_CODE = SHAPES.index(LOBED), SHAPES.index(LONG)


@dataclass(frozen=True)
class Tissue:
    """Everything that decides the pixels of one sample."""

    types: tuple[CellType, ...]
    localisation: dict[str, str]
    dna: str | None
    n_cells: int
    size_px: int
    pixel_size: float
    gain: np.ndarray
    """[C] brightness of each marker in this sample."""
    spillover: float
    background: float
    blur_px: float
    intensity_cv: float
    entropy: tuple[int, ...]
    _made: dict[tuple[int, int], pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def parcels(self) -> np.ndarray:
        """Number of cells of each parcel [n, n], in proportion to its area."""
        side = np.diff([*range(0, self.size_px, PARCEL), self.size_px])
        area = np.outer(side, side).ravel()
        total = np.round(self.n_cells * np.cumsum(area) / area.sum()).astype(int)
        return np.diff(total, prepend=0).reshape(len(side), len(side))

    def cells(self) -> pd.DataFrame:
        """All cells, one row each, sorted by parcel; `id` counts from 1."""
        n = len(self.parcels)
        return pd.concat([self.parcel_cells(i, j) for i in range(n) for j in range(n)], ignore_index=True)

    def parcel_cells(self, i: int, j: int) -> pd.DataFrame:
        """Cells whose centre lies in a parcel."""
        if (i, j) not in self._made:
            self._made[i, j] = self._make(i, j)
        return self._made[i, j]

    def _make(self, i: int, j: int) -> pd.DataFrame:
        rng = np.random.default_rng([*self.entropy, 0, i, j])
        n = int(self.parcels[i, j])
        side = np.minimum(PARCEL, self.size_px - np.array([i, j]) * PARCEL)
        yx = _spread(n, side, rng) + np.array([i, j]) * PARCEL
        types = self._types_at(yx, rng)
        diameter = np.array([t.diameter_um for t in self.types])[types]
        cv = np.array([t.diameter_cv for t in self.types])[types]
        radius = diameter / 2 / self.pixel_size * np.exp(cv * np.clip(rng.standard_normal(n), -2.5, 2.5))
        first = int(self.parcels.ravel()[: i * len(self.parcels) + j].sum())
        shape = np.array([SHAPES.index(t.shape) for t in self.types])[types]
        return pd.DataFrame(
            {
                "id": np.arange(first + 1, first + n + 1),
                "y": yx[:, 0],
                "x": yx[:, 1],
                "type": types,
                "radius": radius,
                "shape": shape,
                "turn": rng.uniform(0, 2 * np.pi, n),
                "seed": rng.integers(2**31, size=n),
            }
        )

    def _types_at(self, yx: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Types drawn by their shares, which two smooth fields shift from place to place."""
        fields = np.column_stack([_field(yx, [*self.entropy, 1, k], 90 / self.pixel_size) for k in range(2)])
        niche = np.array([t.niche for t in self.types])
        weight = np.array([t.share for t in self.types]) * np.exp(fields @ niche.T)  # [n, types]
        edges = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
        return (rng.random((len(yx), 1)) > edges).sum(axis=1).clip(max=len(self.types) - 1)

    def draw(self, y0: int, y1: int, x0: int, x1: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts [C, h, w] uint16 and labels [h, w] int32 of a rectangle."""
        counts = np.empty((len(self.localisation), y1 - y0, x1 - x0), dtype=np.uint16)
        labels = np.empty((y1 - y0, x1 - x0), dtype=np.int32)
        for i in range(y0 // PARCEL, -(-y1 // PARCEL)):
            for j in range(x0 // PARCEL, -(-x1 // PARCEL)):
                top, left = max(y0, i * PARCEL), max(x0, j * PARCEL)
                bottom, right = min(y1, (i + 1) * PARCEL), min(x1, (j + 1) * PARCEL)
                pixels, mask = self._draw_parcel(i, j)
                inside = slice(top - i * PARCEL, bottom - i * PARCEL), slice(left - j * PARCEL, right - j * PARCEL)
                there = slice(top - y0, bottom - y0), slice(left - x0, right - x0)
                counts[(slice(None), *there)], labels[there] = pixels[(slice(None), *inside)], mask[inside]
        return counts, labels

    def _draw_parcel(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.parcels)
        around = [(a, b) for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < n and 0 <= b < n]
        cells = pd.concat([self.parcel_cells(a, b) for a, b in around], ignore_index=True)
        y, x = cells["y"].to_numpy() - i * PARCEL + REACH, cells["x"].to_numpy() - j * PARCEL + REACH
        side = PARCEL + 2 * REACH
        near = (y > -REACH) & (y < side + REACH) & (x > -REACH) & (x < side + REACH)
        cells, y, x = cells[near], y[near], x[near]
        level, place = self._expression(cells)
        light = np.zeros((len(self.localisation), side, side), dtype=np.float32)
        rho = np.full((side, side), np.inf, dtype=np.float32)
        labels = np.zeros((side, side), dtype=np.int32)
        _stamp(
            y, x, cells["radius"].to_numpy(), cells["shape"].to_numpy(), cells["turn"].to_numpy(),
            cells["id"].to_numpy(), level, place, self.spillover, light, rho, labels,
        )  # fmt: skip
        inner = slice(REACH, REACH + PARCEL)
        light = (
            gaussian_filter(light, (0, self.blur_px, self.blur_px))[:, inner, inner]
            if self.blur_px
            else light[:, inner, inner]
        )
        light += self._background(i, j)
        light *= self.gain[:, None, None]
        rng = np.random.default_rng([*self.entropy, 2, i, j])
        return rng.poisson(light).astype(np.uint16), labels[inner, inner]

    def _expression(self, cells: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Mean counts over the cell [n, C], and where in the cell they sit [n, C]."""
        markers = list(self.localisation)
        mean = np.zeros((len(self.types), len(markers)))
        where = np.zeros((len(self.types), len(markers)), dtype=np.int64)
        for t, cell_type in enumerate(self.types):
            for m, marker in enumerate(markers):
                mean[t, m] = cell_type.markers.get(marker, 8.0 if marker == self.dna else 0.0)
                where[t, m] = LOCALISATIONS.index(cell_type.localisation.get(marker, self.localisation[marker]))
        types = cells["type"].to_numpy()
        noise = np.array([np.random.default_rng(s).standard_normal(len(markers)) for s in cells["seed"]])
        cv = self.intensity_cv
        vary = np.exp(cv * noise.reshape(len(types), len(markers)) - cv**2 / 2)
        return mean[types] * vary, where[types]

    def _background(self, i: int, j: int) -> np.ndarray:
        """Autofluorescence and unspecific staining [C, PARCEL, PARCEL], slowly changing over the tissue."""
        line = np.arange(PARCEL) + 0.5
        yx = np.stack(np.meshgrid(line + i * PARCEL, line + j * PARCEL, indexing="ij"), axis=-1).reshape(-1, 2)
        shade = np.exp(0.4 * _field(yx, [*self.entropy, 3], self.size_px / 1.5)).reshape(PARCEL, PARCEL)
        per_marker = np.random.default_rng([len(self.localisation), 4]).uniform(0.5, 1.5, len(self.localisation))
        return (self.background * per_marker[:, None, None] * shade).astype(np.float32)


def _spread(n: int, side: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`n` places (y, x) that keep their distance: of eight random places, the one farthest from all others so far.

    Distances wrap around the parcel, so that none gathers at its border.
    """
    places = np.empty((n, 2))
    for k in range(n):
        tries = rng.uniform(0, side, (8, 2))
        apart = np.abs(tries[:, None] - places[None, :k])
        apart = np.minimum(apart, side - apart)
        nearest = (apart**2).sum(axis=-1).min(axis=1, initial=np.inf)
        places[k] = tries[np.argmax(nearest)]
    return places


def _field(yx: np.ndarray, entropy: list[int], scale_px: float) -> np.ndarray:
    """A smooth random function of the place, about normal, that changes over `scale_px`."""
    rng = np.random.default_rng(entropy)
    direction, phase = rng.uniform(0, 2 * np.pi, 12), rng.uniform(0, 2 * np.pi, 12)
    frequency = 2 * np.pi / (scale_px * rng.uniform(1.5, 4, 12))
    waves = np.column_stack([np.sin(direction), np.cos(direction)]) * frequency[:, None]
    return np.cos(yx @ waves.T + phase).sum(axis=1) / np.sqrt(6)


@numba.njit(cache=True, nogil=True)
def _edge(rho, turn, theta, shape):  # pragma: no cover - compiled
    """Distance from the centre in units of the outline there."""
    if shape == LOBED_CODE:
        return rho / (0.86 + 0.30 * np.cos(3 * (theta - turn)))
    if shape == LONG_CODE:
        c, s = np.cos(theta - turn), np.sin(theta - turn)
        return rho * np.sqrt((c / 1.6) ** 2 + (s / 0.62) ** 2)
    return rho * (1 + 0.08 * np.cos(2 * (theta - turn)))


@numba.njit(cache=True, nogil=True)
def _stamp(y, x, radius, shape, turn, id_, level, place, spill, light, nearest, labels):  # pragma: no cover - compiled
    """Add each cell's light, and give each pixel to the cell in which it lies deepest."""
    n_markers, height, width = light.shape
    profile = np.empty(3)
    for k in range(len(y)):
        reach = 2 * radius[k]
        for i in range(max(0, int(y[k] - reach)), min(height, int(y[k] + reach) + 2)):
            for j in range(max(0, int(x[k] - reach)), min(width, int(x[k] + reach) + 2)):
                dy, dx = i + 0.5 - y[k], j + 0.5 - x[k]
                rho = np.sqrt(dy * dy + dx * dx) / radius[k]
                edge = _edge(rho, turn[k], np.arctan2(dy, dx), shape[k])
                if edge > 2:
                    continue
                if edge < 1 and edge < nearest[i, j]:
                    nearest[i, j] = edge
                    labels[i, j] = id_[k]
                # each sums to about the cell's area, so that a level is the mean over the cell
                halo = spill * np.exp(-(edge - 1) / 0.3) if edge > 1 else 0.0
                profile[0] = 2.1 / (1 + np.exp((edge - 0.66) / 0.07))
                profile[1] = 2.2 * np.exp(-0.5 * ((edge - 0.9) / 0.15) ** 2) + halo
                profile[2] = 1.05 / (1 + np.exp((edge - 0.95) / 0.07)) + halo
                for m in range(n_markers):
                    if level[k, m] > 0:
                        light[m, i, j] += level[k, m] * profile[place[k, m]]
