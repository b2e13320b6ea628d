"""Tiles to train a scorer on: what they hold, that markers are balanced, and that step k is always the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cytonym.data import scoring_tiles as module
from cytonym.data.canvas import Canvas
from cytonym.data.cell_masks import CellMasks
from cytonym.data.labels import LabelGrid, label_centroids
from cytonym.data.scoring_tiles import FOREIGN, LAYERS, NEGATIVE, POSITIVE, UNDEFINED, Plot, ScoringTiles, plots_of


def grid_labels(height: int, width: int, step: int = 8) -> np.ndarray:
    """Square cells of 6 px."""
    labels = np.zeros((height, width), int)
    for i, (y, x) in enumerate((y, x) for y in range(1, height - 5, step) for x in range(1, width - 5, step)):
        labels[y : y + 6, x : x + 6] = i + 1
    return labels


@pytest.fixture(scope="module")
def canvas(make_source) -> Canvas:
    """Three channels, 60 x 90 pixels, of which the last columns hold no cells; two pixels to one of the canvas."""
    rng = np.random.default_rng(0)
    labels = grid_labels(60, 90)
    labels[:, 66:] = 0
    ids, xy = label_centroids(labels)
    source = make_source(rng.integers(0, 100, (3, 60, 90)).astype("u2"), xy[:, ::-1])
    source = replace(source, instance_ids=ids, labels=LabelGrid(labels, (60, 90), np.eye(3)))
    return Canvas(source, CellMasks(source, 3.0), 2.0)


def plot(
    n_side: int = 5, step: int = 12, keys=(0, 1, 2), seed: int = 0, positive: float = 0.5, undefined: float = 0.1
) -> Plot:
    """Square cells; the marker is the cell's number, the mask lacks the lowest row of each cell."""
    rng = np.random.default_rng(seed)
    side = n_side * step
    rows = np.full((side, side), -1, np.int32)
    for i in range(n_side**2):
        y, x = i // n_side * step + 2, i % n_side * step + 2
        rows[y : y + 8, x : x + 8] = i
    interior = (rows >= 0) & (np.roll(rows, -1, axis=0) == rows)
    activity = rng.choice(
        [NEGATIVE, POSITIVE, UNDEFINED], (n_side**2, len(keys)), p=[1 - positive - undefined, positive, undefined]
    )
    markers = np.repeat(((rows + 1) / 512)[None], len(keys), axis=0).astype(np.float16)
    return Plot(markers, interior, rows, activity.astype(np.int8), np.array(keys))


# --- plots ---


def test_plots_hold_the_canvas(canvas, monkeypatch):
    monkeypatch.setattr(module, "PLOT_PX", 16)
    factors = np.array([90.0, 50.0, 10.0])
    activity = np.random.default_rng(1).integers(0, 3, (len(canvas.source.instance_ids), 3)).astype(np.int8)
    plots = plots_of(canvas, factors, activity, np.array([4, -1, 7]))
    assert canvas.shape == (30, 45)
    assert [p.rows.shape for p in plots] == [(16, 16), (16, 16), (14, 16), (14, 16)]  # none where no cell is
    whole = (0, 30, 0, 45)
    for i, p in enumerate(plots):
        y, x = i // 2 * 16, i % 2 * 16
        part = slice(y, y + p.rows.shape[0]), slice(x, x + p.rows.shape[1])
        expected = canvas.markers(whole, np.array([0, 2]), factors[[0, 2]])
        np.testing.assert_array_equal(p.markers, expected[:, *part].astype(np.float16))
        np.testing.assert_array_equal(p.interior, canvas.interior(whole)[part] > 0)
        rows = canvas.masks.read(0, 60, 0, 90)[::2, ::2][part]
        cells = np.unique(rows[rows >= 0])
        assert len(cells) < len(activity)
        np.testing.assert_array_equal(p.rows, np.where(rows >= 0, np.searchsorted(cells, rows), -1))
        np.testing.assert_array_equal(p.activity, activity[cells][:, [0, 2]])  # of no cell that is elsewhere
        assert p.keys.tolist() == [4, 7]


def test_a_part_of_the_canvas_and_some_squares(canvas, monkeypatch):
    monkeypatch.setattr(module, "PLOT_PX", 8)
    arguments = canvas, np.ones(3), np.zeros((len(canvas.source.instance_ids), 3), np.int8), np.arange(3)
    every = plots_of(*arguments)
    assert len(every) == 4 * 4
    assert all((p.rows >= 0).any() for p in every)
    assert [p.rows.shape[0] for p in plots_of(*arguments, box=(15, 25, 0, 45))] == [8] * 4 + [2] * 4
    assert [p.rows.shape for p in plots_of(*arguments, box=(0, 8, 4, 15))] == [(8, 8), (8, 3)]
    some = plots_of(*arguments, share=0.3, seed=3)
    assert 1 <= len(some) < len(every)
    again = plots_of(*arguments, share=0.3, seed=3)
    assert all(np.array_equal(a.markers, b.markers) for a, b in zip(some, again, strict=True))
    assert len(plots_of(*arguments, share=1e-9, seed=0)) <= 1
    assert plots_of(*arguments[:3], np.full(3, -1)) == []


def test_cells_of_another_element_are_not_between_cells(canvas):
    """They count for nothing; a pixel that both claim is the own cell's, and the interior is that of the own cells, as in scoring."""
    labels = canvas.source.labels.read(0, 60, 0, 90)
    left = np.arange(90) < 40
    sources = [
        replace(canvas.source, labels=LabelGrid(np.where(mine, labels, 0), (60, 90), np.eye(3)))
        for mine in (left, ~left | (labels < 4))
    ]
    masks = [CellMasks(source, 3.0) for source in sources]
    mine = Canvas(sources[0], masks[0], 2.0)
    arguments = np.ones(3), np.ones((len(labels), 3), np.int8), np.arange(3)
    [alone], [beside] = plots_of(mine, *arguments), plots_of(mine, *arguments, others=masks[1:])
    own = mine.masks.read(0, 60, 0, 90)[::2, ::2] >= 0
    foreign = (labels[::2, ::2] > 0) & ~own
    assert foreign.any()
    np.testing.assert_array_equal(beside.rows, np.where(foreign, FOREIGN, alone.rows))
    np.testing.assert_array_equal(beside.interior, alone.interior)
    np.testing.assert_array_equal(beside.activity, alone.activity)
    [tile] = ScoringTiles([beside], 48, 1, 1).all_tiles().__next__().numpy()
    expected = np.where(foreign, UNDEFINED, own)
    np.testing.assert_array_equal(tile[2, :30, :45], expected)
    np.testing.assert_array_equal(tile[3, :30, :45] > 0, own)


# --- tiles ---


def test_the_layers_of_a_tile():
    plots = [plot()]
    tiles = ScoringTiles(plots, 24, 5, 3, seed=2)
    [batch] = list(tiles(2))
    assert batch.shape == (5, len(LAYERS), 24, 24)
    assert batch.dtype == torch.float32
    for marker, interior, target, cell, key in batch.numpy():
        assert len(np.unique(key)) == 1
        c = int(key[0, 0])
        here = cell > 0
        assert here.any()
        assert sorted(np.unique(cell[here])) == list(range(1, int(cell.max()) + 1))
        rows = np.rint(marker * 512).astype(int) - 1  # as the marker tells
        np.testing.assert_array_equal(rows >= 0, here)
        for number in np.unique(cell[here]):
            row = np.unique(rows[cell == number])
            assert len(row) == 1
            np.testing.assert_array_equal(np.unique(target[cell == number]), plots[0].activity[row, c])
        assert (target[~here] == 0).all()
        assert (interior[~here] == 0).all()
        assert 0 < interior.sum() < here.sum()


def test_step_k_is_the_same_wherever_a_training_begins():
    make = lambda seed=0: ScoringTiles([plot(), plot(seed=1)], 24, 4, 6, seed=seed)
    every = list(make()(0))
    assert len(every) == 6
    for start in (1, 4, 6):
        rest = list(make()(start))
        assert len(rest) == 6 - start
        assert all(torch.equal(a, b) for a, b in zip(rest, every[start:], strict=True))
    assert not torch.equal(every[0], every[1])
    assert not torch.equal(next(make(1)(0)), every[0])


def test_markers_come_equally_often():
    """Also one that is in a single plot, and one with a single positive cell, which is in half of its tiles."""
    rare = plot(keys=(5,), seed=3)
    rare.activity[:] = NEGATIVE
    rare.activity[7] = POSITIVE
    tiles = ScoringTiles([plot(), plot(seed=1), plot(seed=2), rare], 12, 800, 1)
    [batch] = list(tiles(0))
    keys = Counter(batch[:, 4, 0, 0].int().tolist())
    assert set(keys) == {0, 1, 2, 5}
    assert all(abs(n - 200) < 60 for n in keys.values())
    of_rare = batch[batch[:, 4, 0, 0] == 5]
    assert 0.4 < float((of_rare[:, 2] == POSITIVE).flatten(1).any(dim=1).float().mean()) < 0.75


def test_tiles_lie_around_cells_that_are_known():
    one = plot(keys=(0,), undefined=0.0)
    one.activity[:] = UNDEFINED
    one.activity[12] = NEGATIVE
    [batch] = list(ScoringTiles([one], 24, 60, 1)(0))
    assert (batch[:, 2] == NEGATIVE).logical_and(batch[:, 3] > 0).flatten(1).any(dim=1).all()


def test_beyond_a_plot_tiles_are_empty():
    small = plot(n_side=2)
    [batch] = list(ScoringTiles([small], 40, 6, 1)(0))
    assert (batch[:, :4, 24:] == 0).all()
    assert (batch[:, :4, :, 24:] == 0).all()
    assert (batch[:, 3].flatten(1).max(dim=1).values == 4).all()
    np.testing.assert_array_equal(batch[0, 1, :24, :24].numpy(), small.interior)


def test_all_tiles_cover_every_pixel_once():
    plots = [plot(), plot(n_side=2, keys=(1, 7), seed=4)]
    plots[0].activity[:, 2] = UNDEFINED
    tiles = list(ScoringTiles(plots, 32, 1, 1).all_tiles())
    assert all(tile.shape == (1, len(LAYERS), 32, 32) for tile in tiles)
    pixels: Counter[int] = Counter()
    for tile in tiles:
        pixels[int(tile[0, 4, 0, 0])] += int((tile[0, 3] > 0).sum())
    cells = [int((p.rows >= 0).sum()) for p in plots]
    assert pixels == {0: cells[0], 1: sum(cells), 7: cells[1]}


def test_no_cell_is_known():
    nothing = plot()
    nothing.activity[:] = UNDEFINED
    for plots in ([nothing], []):
        with pytest.raises(ValueError, match="No cell has a known activity for any marker"):
            ScoringTiles(plots, 32, 1, 1)
