"""Random tiles of one marker with the cells' activities, to train a scorer on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cytonym.data.canvas import Box, Canvas
    from cytonym.data.cell_masks import CellMasks

NEGATIVE, POSITIVE, UNDEFINED = 0, 1, 2
NOBODY, FOREIGN = -1, -2  # pixels between cells, and of cells that another element of the image names
LAYERS = ("marker", "interior", "target", "cell", "key")
"""What the layers of a tile are: pixels in 0 … 1, 1 inside cells, activity of the pixel's cell (0 between cells, undefined in foreign
ones), number of the cell within the tile (0 for none), and which (data set, marker) it is."""
PLOT_PX = 512


@dataclass(frozen=True, eq=False)
class Plot:
    """A piece of a canvas in memory, all markers, with the activity of its cells."""

    markers: np.ndarray
    """f2 [C, h, w] in 0 … 1."""
    interior: np.ndarray
    """bool [h, w]."""
    rows: np.ndarray
    """int32 [h, w]: the cell of each pixel, by its row of `activity`; -1 between cells, -2 in foreign ones."""
    activity: np.ndarray
    """int8 [cells, C] of the cells of this piece: 0 negative, 1 positive, 2 undefined."""
    keys: np.ndarray
    """int [C]: number of (data set, marker) of each channel."""


def plots_of(
    canvas: Canvas,
    factors: np.ndarray,
    activity: np.ndarray,
    keys: np.ndarray,
    *,
    box: Box | None = None,
    others: Sequence[CellMasks] = (),
    share: float = 1.0,
    seed: int = 0,
) -> list[Plot]:
    """Squares of a canvas that hold cells, read into memory.

    Parameters
    ----------
    canvas
        Image and cells.
    factors
        Brightness of each channel [C]; pixels are divided by it and clipped to 0 … 1.
    activity
        int8 [cells, C].
    keys
        Number of (data set, marker) of each channel, int [C]; channels with -1 are left out.
    box
        Of the canvas, to use; all by default.
    others
        Cells of other elements of the same image. Their pixels are not between cells, whatever they show: they do not count.
    share
        Of the squares, drawn at random: what fits into memory.
    seed
        Of the draw.
    """
    height, width = canvas.shape
    top, bottom, left, right = box or (0, height, 0, width)
    boxes = [
        (y, min(y + PLOT_PX, bottom), x, min(x + PLOT_PX, right))
        for y in range(top, bottom, PLOT_PX)
        for x in range(left, right, PLOT_PX)
    ]
    rng = np.random.default_rng(seed)
    if share < 1:
        boxes = [boxes[i] for i in np.sort(rng.permutation(len(boxes))[: max(1, round(share * len(boxes)))])]
    channels = np.flatnonzero(keys >= 0)
    plots = []
    for square in boxes:
        rows = rows_on_canvas(canvas, canvas.masks, square)
        own = rows >= 0
        if not own.any() or not len(channels):
            continue
        cells, rows[own] = np.unique(rows[own], return_inverse=True)
        for masks in others:
            rows[(rows == NOBODY) & (rows_on_canvas(canvas, masks, square) >= 0)] = FOREIGN
        markers = canvas.markers(square, channels, factors[channels]).astype(np.float16)
        interior = canvas.interior(square) > 0
        plots.append(Plot(markers, interior, rows, activity[np.ix_(cells, channels)], keys[channels]))
    return plots


def rows_on_canvas(canvas: Canvas, masks: CellMasks, box: Box) -> np.ndarray:
    """The cell of each pixel of a box of the canvas, int32 [h, w], by the nearest pixel of the image."""
    rows, columns = canvas.y.nearest(*box[:2]), canvas.x.nearest(*box[2:])
    found = masks.read(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
    return found[np.ix_(rows - rows[0], columns - columns[0])].astype(np.int32)


class ScoringTiles:
    """Batches of tiles [B, 5, S, S], the same for the same seed and step. See `LAYERS`.

    Each (data set, marker) comes as often as any other; half of the tiles are around a positive cell where there is one.

    Parameters
    ----------
    plots
        Where tiles are cut. Beyond their border tiles are empty.
    size_px
        Side S of the tiles.
    batch_size, steps, seed
        Of the training.
    """

    def __init__(self, plots: Sequence[Plot], size_px: int, batch_size: int, steps: int, seed: int = 0) -> None:
        self.plots, self.size_px, self.batch_size, self.steps, self.seed = list(plots), size_px, batch_size, steps, seed
        self.places: dict[int, list[tuple[int, int]]] = {}
        """Key -> plot and channel with cells whose activity is known."""
        self._cells: list[np.ndarray] = []
        self._middle: list[np.ndarray] = []
        for p, plot in enumerate(self.plots):
            cells, middle = _centers(plot.rows)
            self._cells.append(cells)
            self._middle.append(middle)
            for c, key in enumerate(plot.keys):
                if (plot.activity[cells, c] != UNDEFINED).any():
                    self.places.setdefault(int(key), []).append((p, c))
        if not self.places:
            msg = "No cell has a known activity for any marker."
            raise ValueError(msg)

    def __call__(self, start: int) -> Iterator[torch.Tensor]:
        """Batches from step `start` on."""
        for step in range(start, self.steps):
            yield self.batch(np.random.default_rng([self.seed, step]), self.batch_size)

    def batch(self, rng: np.random.Generator, n: int) -> torch.Tensor:
        """Random tiles."""
        keys = sorted(self.places)
        return torch.from_numpy(np.stack([self._draw(keys[rng.integers(len(keys))], rng) for _ in range(n)]))

    def all_tiles(self) -> Iterator[torch.Tensor]:
        """Every plot and channel once, cut into tiles: for validation."""
        for key in sorted(self.places):
            for p, c in self.places[key]:
                height, width = self.plots[p].rows.shape
                for y in range(0, height, self.size_px):
                    for x in range(0, width, self.size_px):
                        yield torch.from_numpy(self._cut(p, c, y, x))[None]

    def _draw(self, key: int, rng: np.random.Generator) -> np.ndarray:
        places = self.places[key]
        p, c = places[rng.integers(len(places))]
        known = self.plots[p].activity[self._cells[p], c]
        wanted = np.flatnonzero(known == POSITIVE) if rng.random() < 0.5 else np.flatnonzero(known != UNDEFINED)
        if not len(wanted):
            wanted = np.flatnonzero(known != UNDEFINED)
        y, x = self._middle[p][wanted[rng.integers(len(wanted))]] + rng.integers(
            -self.size_px // 3, self.size_px // 3 + 1, 2
        )
        corner = []
        for at, length in zip((y, x), self.plots[p].rows.shape, strict=True):
            corner.append(int(np.clip(at - self.size_px // 2, 0, max(0, length - self.size_px))))
        return self._cut(p, c, *corner)

    def _cut(self, p: int, c: int, y: int, x: int) -> np.ndarray:
        plot, side = self.plots[p], self.size_px
        rows = plot.rows[y : y + side, x : x + side]
        h, w = rows.shape
        tile = np.zeros((len(LAYERS), side, side), dtype=np.float32)
        tile[0, :h, :w] = plot.markers[c, y : y + side, x : x + side]
        tile[1, :h, :w] = plot.interior[y : y + side, x : x + side]
        tile[2, :h, :w][rows == FOREIGN] = UNDEFINED
        cell = rows >= 0
        here, number = np.unique(rows[cell], return_inverse=True)
        tile[2, :h, :w][cell] = plot.activity[here, c][number]
        tile[3, :h, :w][cell] = number + 1
        tile[4] = plot.keys[c]
        return tile


def _centers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a plot and the mean place of their pixels, int [n, 2]."""
    y, x = np.nonzero(rows >= 0)
    cells, inverse, counts = np.unique(rows[y, x], return_inverse=True, return_counts=True)
    middle = np.column_stack([np.bincount(inverse, at) / counts for at in (y, x)])
    return cells, middle.astype(np.int64)
