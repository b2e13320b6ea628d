"""The training loop with labels: epochs over a few thousand cells, of which the best on cells held out wins.

A plain loop, because an epoch of most heads takes less time than a trainer needs to start. Everything drawn in epoch k follows
from the seed and k, so an interrupted training that goes on from its state file ends at the same weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cytonym.learning.engine import choose_device, progress_bar
from cytonym.learning.interrupt import DeferredInterrupt
from cytonym.learning.state import read_state, weights_digest, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("cytonym")

SHOWN_FROM = 2_000  # windows or rows in all epochs, below which a bar would only flash


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained.

    Parameters
    ----------
    epochs
        At most so many passes over the training cells.
    min_epochs, patience
        Stop when the validation loss has not fallen for `patience` epochs, not before `min_epochs`; None never stops early.
    batch_size, learning_rate, weight_decay
        Of Adam; the decay is added to the gradient (L2).
    balance
        Cells are drawn with replacement, each class as often as any other; an epoch has as many draws as there are cells.
    drop_last
        Leave out the last batch of an epoch where it is not full and not the only one.
    """

    epochs: int = 50
    min_epochs: int = 0
    patience: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    balance: bool = False
    drop_last: bool = False


class Supervised(Protocol):
    """What can be trained here: an `nn.Module` with these."""

    name: str
    markers: tuple[str, ...]
    history: list[dict[str, float]]

    def supervised_loss(self, inputs: tuple[Tensor, ...], targets: Tensor, generator: torch.Generator | None) -> Tensor:
        """Mean loss of a batch; `generator` draws augmentations, None in validation."""

    def config_dict(self) -> dict[str, Any]:
        """The shape of the network as plain types."""


def supervise(
    model: Any,
    read: Callable[[np.ndarray], tuple[Tensor, ...]],
    targets: Tensor,
    schedule: Schedule,
    *,
    train: np.ndarray,
    validate: np.ndarray,
    parameters: Sequence[nn.Parameter] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint_dir: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """Train a classifier in place.

    Parameters
    ----------
    model
        An `nn.Module` that is `Supervised`.
    read
        Gives the inputs of some rows, tensors of equal length.
    targets
        Class numbers [n], or 0/1 for each of K classes [n, K].
    schedule
        Epochs, batches, learning rate.
    train, validate
        Rows to learn from, and rows that choose the epoch. Without any of the latter the last epoch is kept.
    parameters
        What is trained; all weights by default.
    seed
        Of the order, of dropout and of augmentations. The global generators are left alone.
    device
        See `cytonym.learning.engine.choose_device`.
    checkpoint_dir
        Folder for the state after each epoch; a later call goes on from it. Default: none is written.
    progress
        Show a bar with loss and the time left, where it takes longer than a moment.

    Returns
    -------
    `model` in evaluation mode, with the weights of the best epoch. ``model.history`` has one row an epoch.

    Raises
    ------
    ValueError
        There is no row to learn from, or `checkpoint_dir` holds another training.
    FloatingPointError
        The loss is not finite, in training or in validation.
    KeyboardInterrupt
        Says how to go on, after the epoch at hand.
    """
    if not len(train):
        msg = "No labelled cells to learn from: `train` is empty."
        raise ValueError(msg)
    chosen = choose_device(device)
    home = next(model.parameters()).device
    keeper = _Keeper(model)
    training = _describe(model, schedule, seed, targets, (train, validate))
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    keeper.to(chosen)
    trained = list(parameters) if parameters is not None else list(model.parameters())
    optimizer = torch.optim.Adam(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    done = 0
    if folder is not None:
        done, state = read_state(folder, training, keeper, anew="delete the file")
        if state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    shares = _shares(targets[torch.from_numpy(train)]) if schedule.balance else None
    show = progress and schedule.epochs * len(train) >= SHOWN_FROM
    devices = [chosen] if chosen.type == "cuda" else []
    bar = progress_bar(f"training {model.name}", schedule.epochs, "epoch", show=show, initial=done)
    try:
        with torch.random.fork_rng(devices=devices), DeferredInterrupt() as interrupt, bar:
            for epoch in range(done, schedule.epochs):
                if keeper.stale(schedule, epoch):
                    break
                loss = _epoch(model, read, targets, schedule, train, shares, optimizer, (seed, epoch), chosen)
                found = validation_loss(model, read, targets, validate, schedule.batch_size, chosen)
                _require_finite(found if len(validate) else loss, epoch)
                keeper.note(epoch + 1, loss, found)
                bar.set_postfix_str(f"loss {loss:.3f}, validation {found:.3f}", refresh=False)
                bar.update()
                if folder is not None:
                    write_state(folder, training, epoch + 1, keeper, optimizer)
                if interrupt.seen:
                    raise KeyboardInterrupt(_how_to_go_on(epoch + 1, schedule.epochs, folder))
        model.load_state_dict(keeper.best.state_dict())
        model.history = keeper.history
    finally:
        keeper.to(home)
        model.eval()
    return model


class _Keeper(nn.Module):
    """A model, its best weights so far, and the history: what a state file holds."""

    name = "training with labels"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.best = deepcopy(model)
        self.history: list[dict[str, float]] = []

    def note(self, epoch: int, loss: float, validation: float) -> None:
        row, before = {"step": epoch, "loss": loss}, [row["validation_loss"] for row in self.history if len(row) > 2]
        if np.isnan(validation) or not before or validation < min(before):
            self.best.load_state_dict(self.model.state_dict())
        self.history.append(row if np.isnan(validation) else row | {"validation_loss": validation})

    def stale(self, schedule: Schedule, epoch: int) -> bool:
        losses = [row["validation_loss"] for row in self.history if "validation_loss" in row]
        if schedule.patience is None or epoch < schedule.min_epochs or not losses:
            return False
        return epoch - 1 - int(np.argmin(losses)) >= schedule.patience


def _epoch(
    model: Any,
    read: Callable[[np.ndarray], tuple[Tensor, ...]],
    targets: Tensor,
    schedule: Schedule,
    rows: np.ndarray,
    shares: np.ndarray | None,
    optimizer: torch.optim.Optimizer,
    seed: tuple[int, int],
    device: torch.device,
) -> float:
    rng = np.random.default_rng(seed)
    order = rows[rng.permutation(len(rows)) if shares is None else rng.choice(len(rows), len(rows), p=shares)]
    for_model, for_views = np.random.SeedSequence(seed).generate_state(2)
    torch.default_generator.manual_seed(int(for_model))
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(int(for_model))
    generator = torch.Generator(device).manual_seed(int(for_views))
    model.train()
    total, count = 0.0, 0
    for batch in _batches(order, schedule):
        inputs = tuple(t.to(device) for t in read(batch))
        loss = model.supervised_loss(inputs, targets[torch.from_numpy(batch)].to(device), generator)
        _require_finite(float(loss.detach()), seed[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + float(loss.detach()) * len(batch), count + len(batch)
    return total / max(count, 1)


def _batches(order: np.ndarray, schedule: Schedule) -> list[np.ndarray]:
    """Rows of each step. A single row at the end joins the batch before it: normalisation layers need two."""
    size = schedule.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if len(batches) > 1 and schedule.drop_last and len(batches[-1]) < size:
        return batches[:-1]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


@torch.no_grad()
def validation_loss(
    model: Any,
    read: Callable[[np.ndarray], tuple[Tensor, ...]],
    targets: Tensor,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
) -> float:
    """What chooses the epoch: mean loss over rows in evaluation mode, NaN where there are none.

    A model that has a `judge` is judged by that instead, each class with the same weight.
    """
    if not len(rows):
        return float("nan")
    model.eval()
    judge = getattr(model, "judge", None)
    parts = [rows]
    if judge is not None and targets.ndim == 1:
        found = targets[torch.from_numpy(rows)].numpy()
        parts = [rows[found == k] for k in np.unique(found)]
    means, step = [], max(batch_size, 256)
    for part in parts:
        total = 0.0
        for start in range(0, len(part), step):
            batch = part[start : start + step]
            inputs = tuple(t.to(device) for t in read(batch))
            truth = targets[torch.from_numpy(batch)].to(device)
            value = model.supervised_loss(inputs, truth, None) if judge is None else judge(inputs, truth)
            total += float(value) * len(batch)
        means.append(total / len(part))
    return float(np.mean(means))


def _shares(targets: Tensor) -> np.ndarray:
    """Chance of each cell, the same in sum for every class; a cell of several classes counts as its rarest."""
    if targets.ndim == 1:
        counts = torch.bincount(targets).double()
        weights = 1 / counts[targets]
    else:
        several = targets > 0
        counts = several.double().sum(dim=0).clamp(min=1)
        none = 1 / (~several.any(dim=1)).double().sum().clamp(min=1)
        weights = torch.where(several.any(dim=1), (several.double() / counts).amax(dim=1), none)
    return (weights / weights.sum()).numpy()


def _describe(
    model: Any, schedule: Schedule, seed: int, targets: Tensor, rows: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """What must be equal for a training to be the same one."""
    digest = hashlib.sha256(targets.numpy().tobytes() + b"|".join(r.astype(np.int64).tobytes() for r in rows))
    described = {
        "method": model.name,
        "markers": list(model.markers),
        "config": model.config_dict(),
        "recipe": asdict(schedule),
        "seed": int(seed),
        "labelled cells": digest.hexdigest(),
        "initial weights": weights_digest(model),
    }
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def _require_finite(loss: float, epoch: int) -> None:
    if not np.isfinite(loss):
        msg = f"The loss is not finite in epoch {epoch + 1}. Check the inputs for extreme values, or lower the learning rate."
        raise FloatingPointError(msg)


def _how_to_go_on(epoch: int, epochs: int, folder: Path | None) -> str:
    at = f"Training interrupted after epoch {epoch} of {epochs}"
    if folder is None:
        return f"{at}. Nothing was saved: with `checkpoint_dir` it could be resumed."
    return f"{at}. Run again with the same checkpoint_dir '{folder}' to resume."
