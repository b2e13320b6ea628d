"""Classifiers on pixels: windows of labelled cells to learn from, windows of all cells to name."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cytonym.data.loader import match_channels
from cytonym.data.masks import MaskedPatches
from cytonym.data.patches import CellPatches
from cytonym.data.source import resolve
from cytonym.data.statistics import channel_statistics
from cytonym.data.table import open_table
from cytonym.learning.balance import undersample
from cytonym.learning.predict import predict
from cytonym.learning.supervise import supervise
from cytonym.models.cellsighter import CELLSIGHTER_SCHEDULE, CellSighter, CellSighterConfig
from cytonym.models.finetuned import FINE_TUNING, FineTuned
from cytonym.models.window_classifier import ALL_CELLS, THIS_CELL, WindowClassifier, middle
from cytonym.tl._encoding import check_pixel_size, check_window, common_pixel_size, fitted_to, trained_model
from cytonym.tl._heads import Fitted, hold_out, settle, solve
from cytonym.tl._numbers import ALONE

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.learning.supervise import Schedule
    from cytonym.models.base import CellEncoder
    from cytonym.models.classifier import Labeller
    from cytonym.tl._targets import Targets

logger = logging.getLogger("cytonym")

LARGEST_GB = 16.0  # windows of labelled cells, which are held in memory
BATCH = 256
WINDOW_UM = 30.0  # CellSighter's 60 pixels of 0.5 micrometres


class Cells(NamedTuple):
    """Cells of some images, and where each is in the table."""

    sources: list[CellSource]
    rows: list[np.ndarray]

    def seen(self) -> np.ndarray:
        """Rows of the table whose cell has its centre in its image."""
        found = [at[(at >= 0) & source.inside] for source, at in zip(self.sources, self.rows, strict=True)]
        return np.unique(np.concatenate(found))


def fit_on_windows(
    cells: Cells,
    targets: Targets,
    rows: np.ndarray,
    groups: np.ndarray | None,
    *,
    model: str | Path | CellEncoder,
    balance: str,
    schedule: Schedule | None,
    size_px: int | None,
    members: int,
    seed: int,
    device: str,
    checkpoint_dir: str | Path | None,
) -> Fitted:
    """Train CellSighter or fine-tune an encoder on some labelled rows of a table."""
    sources, at_rows = cells
    network = _network(model, sources, targets, size_px, members, seed)
    windows = _read(network, sources, at_rows, rows)
    rng = np.random.default_rng(seed)
    held = hold_out(targets, rows, groups, rng)
    places = np.arange(len(rows))
    train, judged = places[~held], places[held]
    if balance == "undersample":
        train = train[undersample(targets.one_hot(rows[train]), rng)]
    values = torch.from_numpy(targets.values[rows])
    if isinstance(network, FineTuned):
        _start_head(network, windows, targets, rows, train, balance)
    planned = schedule or (FINE_TUNING if isinstance(network, FineTuned) else CELLSIGHTER_SCHEDULE)
    planned = replace(planned, balance=planned.balance and balance == "weights")
    supervise(
        network, lambda at: (torch.from_numpy(windows[at]).float(),), values, planned,
        train=train, validate=judged, seed=seed, device=device, checkpoint_dir=checkpoint_dir,
    )  # fmt: skip
    logits = _logits(network, windows[judged])
    settle(network, logits, targets, rows[judged])
    return Fitted(network, rows[judged], logits)


def logits_of_windows(
    sdata: SpatialData, n_obs: int, table_key: str, model: Labeller, *, device: str, keys: dict[str, Any]
) -> np.ndarray:
    """Logits of every row of a table [n_obs, K], NaN where there is no window."""
    assert isinstance(model, WindowClassifier)
    sources, at_rows = find_cells(sdata, table_key, keys)
    check_window(sources, model.window_px)
    _check_markers(model, sources)
    out = np.full((n_obs, len(model.classes)), np.nan, dtype=np.float32)
    for source, at in zip(sources, at_rows, strict=True):
        blocks, markers = _blocks(model, source, model.window_px)
        encoder: Any = model  # it has what `predict` needs of an encoder
        n_rows = len(source.instance_ids)
        found = predict(encoder, blocks, n_rows=n_rows, markers=markers, device=device, n_cells=len(blocks))
        inside = at >= 0
        out[at[inside]] = found["logits"][inside]
    return out


def _check_markers(model: WindowClassifier, sources: list[CellSource]) -> None:
    """What a network has learned of a marker does not go away with it: refused, or said where silence is neutral."""
    known = [m for m in model.markers if m not in (ALL_CELLS, THIS_CELL)]
    lacking = sorted({m for s in sources for m in known if m not in s.channels}, key=known.index)
    if not lacking:
        return
    if model.with_masks or len(lacking) == len(known):
        msg = (
            f"The images lack {lacking} of the markers that the classifier was trained on. "
            f"Channels: {list(sources[0].channels)}. Markers: {known}."
        )
        raise ValueError(msg)
    logger.warning("Markers of the classifier that the images lack, taken as silent: %s.", lacking)


def find_cells(sdata: SpatialData, table_key: str, keys: dict[str, Any]) -> Cells:
    """The cells of the images asked for, channels in one order."""
    sources = match_channels(resolve(sdata, table_key=table_key, **keys))
    return Cells(sources, open_table(sdata, sources, table_key).rows)


def _network(
    model: Any, sources: list[CellSource], targets: Targets, size_px: int | None, members: int, seed: int
) -> WindowClassifier:
    if isinstance(model, str) and model == CellSighter.name:
        markers = [*sources[0].channels, ALL_CELLS, THIS_CELL]
        pixel_size = common_pixel_size(sources)
        side = size_px or (2 * round(WINDOW_UM / pixel_size / 2) if pixel_size else CellSighterConfig.window_px)
        config = CellSighterConfig(targets.classes, multilabel=targets.multilabel, window_px=side, members=members)
        quantiles = channel_statistics(sources, quantile=0.9, seed=seed)["quantile"]
        network: WindowClassifier = CellSighter.from_statistics(markers, quantiles, config, seed=seed)
    else:
        encoder = fitted_to(sources, trained_model(model))
        network = FineTuned.of(encoder, targets.classes, multilabel=targets.multilabel)
        lacking = [m for m in network.markers if m not in sources[0].channels]
        if lacking:
            msg = f"To train an encoder further its panel must be that of the images, which lack {lacking}."
            raise ValueError(msg)
        check_pixel_size(sources, encoder)
    check_window(sources, network.window_px)
    return network


def _blocks(model: WindowClassifier, source: CellSource, side: int) -> tuple[CellPatches | MaskedPatches, list[str]]:
    """Windows of a source's cells with the channels that the model knows, and their names."""
    used = [i for i, c in enumerate(source.channels) if c in model.markers]
    channels = tuple(source.channels[i] for i in used)
    part = replace(source, channels=channels, channel_index=source.channel_index[used])
    if model.with_masks:
        return MaskedPatches(part, side, batch_size=BATCH), [*channels, ALL_CELLS, THIS_CELL]
    return CellPatches(part, side, batch_size=BATCH), list(channels)


def _read(
    model: WindowClassifier, sources: list[CellSource], at_rows: list[np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """Windows [n, C, S0, S0] of labelled cells, in a type that holds the pixels of all images."""
    side = min(model.source_px, *(min(s.shape[1:]) for s in sources))
    channels, dtype = len(model.markers), np.result_type(*(s.pixels.dtype for s in sources))
    size = len(rows) * channels * side**2 * dtype.itemsize / 2**30
    if size > LARGEST_GB:
        msg = (
            f"The windows of {len(rows):,} labelled cells take {size:.0f} GB of memory. Learn from fewer: empty the labels of some, "
            "or leave channels out with `channels`."
        )
        raise ValueError(msg)
    place = {int(row): i for i, row in enumerate(rows)}
    windows = np.zeros((len(rows), channels, side, side), dtype=dtype)
    for source, at in zip(sources, at_rows, strict=True):
        mine = np.flatnonzero(np.isin(at, rows))
        if not len(mine):
            continue
        blocks, markers = _blocks(model, source.subset(mine), side)
        order = [markers.index(m) for m in model.markers]
        for block in blocks:
            windows[[place[int(r)] for r in at[mine[block.rows]]]] = block.windows[:, order]
    return windows


@torch.no_grad()
def _start_head(
    model: FineTuned, windows: np.ndarray, targets: Targets, rows: np.ndarray, train: np.ndarray, balance: str
) -> None:
    """The head begins as the logistic regression on the untouched encoder's embedding."""
    embedding = np.concatenate(
        [
            model.encoder.encode(middle(torch.from_numpy(windows[part]).float(), model.window_px)).embedding.numpy()
            for part in np.array_split(train, max(1, -(-len(train) // BATCH)))
        ]
    )
    spread = np.sqrt(embedding.var(axis=0).sum() / ALONE) or 1.0
    model.center.copy_(torch.from_numpy(embedding.mean(axis=0)))
    model.spread.fill_(float(spread))
    x = (embedding - embedding.mean(axis=0)) / spread
    weight, bias = solve(x.astype(np.float64), targets, rows[train], balance)
    model.head.weight.copy_(torch.from_numpy(weight))
    model.head.bias.copy_(torch.from_numpy(bias))


@torch.no_grad()
def _logits(model: WindowClassifier, windows: np.ndarray) -> np.ndarray:
    found = [
        model.logits(middle(torch.from_numpy(part).float(), model.window_px))
        for part in np.array_split(windows, max(1, -(-len(windows) // BATCH)))
        if len(part)
    ]
    return torch.cat(found).numpy() if found else np.zeros((0, len(model.classes)), np.float32)
