"""Classifiers on pixels: windows of labelled cells to learn from, windows of all cells to name."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cytonym.data.loader import match_channels
from cytonym.data.masks import MaskedPatches
from cytonym.data.patches import CellPatches
from cytonym.data.source import resolve
from cytonym.data.statistics import channel_statistics
from cytonym.data.table import open_table
from cytonym.learning.balance import folds, undersample
from cytonym.learning.predict import predict
from cytonym.learning.supervise import supervise
from cytonym.models.cellsighter import CELLSIGHTER_SCHEDULE, CellSighter, CellSighterConfig
from cytonym.models.finetuned import FINE_TUNING, FineTuned
from cytonym.models.window_classifier import ALL_CELLS, THIS_CELL, WindowClassifier, middle
from cytonym.tl._encoding import check_window, common_pixel_size, fitted_to, trained_model
from cytonym.tl._heads import HELD_OUT, Fitted, keep_every_class, settle, solve
from cytonym.tl._numbers import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.data.patches import Block
    from cytonym.data.source import CellSource
    from cytonym.learning.supervise import Schedule
    from cytonym.models.base import CellEncoder
    from cytonym.models.classifier import Labeller
    from cytonym.tl._targets import Targets

logger = logging.getLogger("cytonym")

LARGEST_GB = 16.0  # windows of labelled cells, which are held in memory
BATCH = 256
WINDOW_UM = 30.0  # CellSighter's 60 pixels of 0.5 micrometres


def fit_on_windows(
    sdata: SpatialData,
    table: AnnData,
    table_key: str,
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
    keys: dict[str, Any],
) -> Fitted:
    """Train CellSighter or fine-tune an encoder on some labelled rows of a table."""
    sources, at_rows = _resolve(sdata, table_key, keys)
    here = np.isin(rows, np.concatenate(at_rows))
    if not here.all():
        logger.warning("%d labelled cells are not in these images and are left out.", int((~here).sum()))
        rows, groups = rows[here], None if groups is None else groups[here]
    network = _network(model, sources, targets, size_px, members, seed)
    windows, seen = _read(network, sources, at_rows, rows)
    rows, groups = rows[seen], None if groups is None else groups[seen]
    rng = np.random.default_rng(seed)
    fold = folds(targets.strata(rows), groups, HELD_OUT, rng)
    held = keep_every_class(targets, rows, (fold == 0) & (fold.max() > 0))
    places = np.arange(len(rows))
    train, judged = places[~held], places[held]
    if balance == "undersample":
        train = train[undersample(targets.one_hot(rows[train]), rng)]
    values = torch.from_numpy(targets.values[rows])
    if isinstance(network, FineTuned):
        _start_head(network, windows, targets, rows, train, device)
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
    sdata: SpatialData, table: AnnData, table_key: str, model: Labeller, *, device: str, keys: dict[str, Any]
) -> np.ndarray:
    """Logits of every row of a table [n_obs, K], NaN where there is no window."""
    assert isinstance(model, WindowClassifier)
    sources, at_rows = _resolve(sdata, table_key, keys)
    check_window(sources, model.window_px)
    out = np.full((table.n_obs, len(model.classes)), np.nan, dtype=np.float32)
    for source, at in zip(sources, at_rows, strict=True):
        blocks, markers = _blocks(model, source, model.window_px)
        encoder: Any = model  # it has what `predict` needs of an encoder
        n_rows = len(source.instance_ids)
        found = predict(encoder, blocks, n_rows=n_rows, markers=markers, device=device, n_cells=len(blocks))
        inside = at >= 0
        out[at[inside]] = found["logits"][inside]
    return out


def _resolve(sdata: SpatialData, table_key: str, keys: dict[str, Any]) -> tuple[list[CellSource], list[np.ndarray]]:
    sources = match_channels(resolve(sdata, table_key=table_key, **keys))
    return sources, open_table(sdata, sources, table_key).rows


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
    check_window(sources, network.window_px)
    return network


def _blocks(model: WindowClassifier, source: CellSource, side: int) -> tuple[CellPatches | MaskedPatches, list[str]]:
    """Windows of a source's cells with the channels that the model knows, and their names."""
    used = [i for i, c in enumerate(source.channels) if c in model.markers]
    if not used:
        msg = f"Image {source.image_key!r} has none of the model's markers. Channels: {list(source.channels)}. Markers: {list(model.markers)}."
        raise ValueError(msg)
    channels = tuple(source.channels[i] for i in used)
    part = replace(source, channels=channels, channel_index=source.channel_index[used])
    if model.with_masks:
        return MaskedPatches(part, side, batch_size=BATCH), [*channels, ALL_CELLS, THIS_CELL]
    return CellPatches(part, side, batch_size=BATCH), list(channels)


def _read(
    model: WindowClassifier, sources: list[CellSource], at_rows: list[np.ndarray], rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Windows [n, C, S0, S0] of labelled cells, and which of `rows` they are."""
    side = min(model.source_px, *(min(s.shape[1:]) for s in sources))
    channels = len(model.markers)
    size = len(rows) * channels * side**2 * sources[0].pixels.dtype.itemsize / 2**30
    if size > LARGEST_GB:
        msg = (
            f"The windows of {len(rows):,} labelled cells take {size:.0f} GB of memory. Learn from fewer: empty the labels of some, "
            "or leave channels out with `channels`."
        )
        raise ValueError(msg)
    place = {int(row): i for i, row in enumerate(rows)}
    windows: np.ndarray | None = None
    seen = np.zeros(len(rows), dtype=bool)
    for source, at in zip(sources, at_rows, strict=True):
        mine = np.flatnonzero(np.isin(at, rows))
        if not len(mine):
            continue
        blocks: Iterator[Block]
        blocks, markers = _blocks(model, source.subset(mine), side)  # type: ignore[assignment]
        order = [markers.index(m) for m in model.markers]
        for block in blocks:
            if windows is None:
                windows = np.zeros((len(rows), channels, side, side), dtype=block.windows.dtype)
            to = [place[int(r)] for r in at[mine[block.rows]]]
            windows[to] = block.windows[:, order]
            seen[to] = True
    if windows is None:
        msg = "No labelled cell has its centre in its image."
        raise ValueError(msg)
    return windows[seen], seen


def _start_head(
    model: FineTuned, windows: np.ndarray, targets: Targets, rows: np.ndarray, train: np.ndarray, device: str
) -> None:
    """The head begins as the logistic regression on the untouched encoder's embedding."""
    embedding = np.concatenate(
        [
            model.encoder.encode(middle(torch.from_numpy(windows[part]).float(), model.window_px))
            .embedding.detach()
            .numpy()
            for part in np.array_split(train, max(1, -(-len(train) // BATCH)))
        ]
    )
    spread = np.sqrt(embedding.var(axis=0).sum() / ALONE) or 1.0
    model.center.copy_(torch.from_numpy(embedding.mean(axis=0)))
    model.spread.fill_(float(spread))
    x = (embedding - embedding.mean(axis=0)) / spread
    weight, bias = solve(x.astype(np.float64), targets, rows[train], "weights")
    with torch.no_grad():
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
