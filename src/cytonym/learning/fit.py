"""The training loop without labels: Lightning around the recipe's views and `model.loss`.

Step k of a training (counted from 0) depends on the seed, k and the rank only, never on the global generators: an
interrupted training that goes on from its state file ends at the weights of an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch

from cytonym.learning.engine import choose_device, progress_bar, read_ahead
from cytonym.learning.interrupt import DeferredInterrupt, Stopped, quiet_lightning
from cytonym.learning.lars import LARS
from cytonym.learning.state import describe_training, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from cytonym.models.base import CellEncoder, Recipe

logger = logging.getLogger("cytonym")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "lars": LARS}
_OURS = ("max_steps", "max_epochs", "min_steps", "min_epochs", "enable_checkpointing", "accumulate_grad_batches")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear warm-up, cosine, constant tail (NeXtMarker paper, methods).

    Parameters
    ----------
    recipe
        With T = `steps`: linear from 0 at step 0 to `learning_rate` at ``warmup * T``, half a cosine down to
        `final_rate` at ``(1 - constant) * T``, then constant.
    step
        Number of the step, 1 … T.

    Examples
    --------
    >>> from cytonym.models.nextmarker import PAPER_RECIPE
    >>> [f"{learning_rate(PAPER_RECIPE, step):.2g}" for step in (1, 100, 600, 1100, 1200)]
    ['1e-05', '0.001', '0.00055', '0.0001', '0.0001']
    """
    warm = round(recipe.warmup * recipe.steps)
    tail = recipe.steps - round(recipe.constant * recipe.steps)
    if step < warm:
        return recipe.learning_rate * step / warm
    if step >= tail:
        return recipe.final_rate if tail > warm or step > tail else recipe.learning_rate
    turn = math.cos(math.pi * (step - warm) / (tail - warm))
    return recipe.final_rate + (recipe.learning_rate - recipe.final_rate) * (1 + turn) / 2


def fit(
    model: CellEncoder,
    dataset: Callable[[int], Iterable[Tensor]],
    recipe: Recipe,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = True,
    progress: bool = True,
    trainer_kwargs: dict[str, Any] | None = None,
) -> CellEncoder:
    """Train a model without labels.

    Parameters
    ----------
    model
        The encoder, with its initial weights. It is trained in place.
    dataset
        Called with the number of steps already done; yields one batch of raw windows [B, C, S0, S0] a step, channels in
        the order of ``model.markers``. Must give the same batches every time. With several devices it gives every rank
        its share of them, as `cytonym.data.loader.TrainingWindows` does.
    recipe
        Steps, learning rate and views.
    seed
        Of the views, at least 0.
    device
        See `cytonym.learning.engine.choose_device`.
    checkpoint_dir
        Folder for the state of the training, `training.safetensors`. Default: none is written.
    checkpoint_every
        Steps between two states. One is also written at the end and at an interrupt.
    resume
        Go on from the state in `checkpoint_dir`, if there is one. Otherwise begin anew and write over it.
    progress
        Show a bar with loss, cells (or tiles) a second and the time left.
    trainer_kwargs
        Passed to `lightning.Trainer`: accelerator, devices, strategy, precision, logger, callbacks, … One device is used
        unless `devices` says otherwise.

    Returns
    -------
    CellEncoder
        `model` in evaluation mode on the device it came from. ``model.history`` holds one row a step: step, loss, its
        parts and learning_rate.

    Raises
    ------
    KeyboardInterrupt
        Says at which step and how to go on. The first interrupt finishes the running step, a second one does not.
    FloatingPointError
        The loss is not finite. Names the step.
    ValueError
        `checkpoint_dir` holds another training, `trainer_kwargs` says what the recipe says, the recipe's optimizer is unknown,
        or the data end too soon.

    Examples
    --------
    >>> import torch
    >>> from dataclasses import replace
    >>> from cytonym.models.nextmarker import NeXtMarker
    >>> recipe = replace(NeXtMarker.recipe, steps=3, batch_size=8)
    >>> windows = torch.rand(3, 8, 2, recipe.views.source_px(), recipe.views.source_px())
    >>> model = NeXtMarker.from_statistics(["DNA", "CD8"], [1.0, 1.0])
    >>> model = fit(model, lambda start: windows[start:], recipe, seed=0, progress=False)
    >>> [row["step"] for row in model.history]
    [1, 2, 3]
    """
    if recipe.optimizer not in OPTIMIZERS:
        msg = f"Unknown optimizer {recipe.optimizer!r} in the recipe. Available: {sorted(OPTIMIZERS)}."
        raise ValueError(msg)
    arguments = _trainer_arguments(trainer_kwargs or {}, choose_device(device))
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    home = next(model.parameters()).device
    training = describe_training(model, recipe, seed)
    model.history, start = [], 0
    optimizer: dict[int, dict[str, Tensor]] = {}
    if folder is not None and resume:
        start, optimizer = read_state(folder, training, model)
    if start >= recipe.steps:
        return model.eval()
    if start:
        logger.info("Resuming the training in %s at step %d of %d.", folder, start, recipe.steps)

    module = _Training(model, recipe, seed, start, optimizer)
    with DeferredInterrupt() as interrupt, _same_generators(), quiet_lightning():
        keeper = _Keeper(module, training, folder, checkpoint_every, interrupt, progress=progress)
        arguments["callbacks"] = [keeper, *arguments["callbacks"]]
        arguments.setdefault("gradient_clip_val", recipe.clip or None)
        trainer = lightning.Trainer(max_steps=recipe.steps - start, max_epochs=1, **arguments)
        batches = _Batches(dataset, start, trainer)
        try:
            trainer.fit(module.train(), train_dataloaders=batches)
        except (Stopped, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt(keeper.how_to_go_on()) from None
        finally:
            batches.close()
            keeper.bar.close()
            model.to(home).eval()
    if module.step < recipe.steps and not trainer.should_stop:
        msg = f"The data ended after {module.step} batches, the recipe needs {recipe.steps}."
        raise ValueError(msg)
    return model


class _Training(lightning.LightningModule):
    """One step: views of the windows, loss of the views."""

    def __init__(
        self, model: CellEncoder, recipe: Recipe, seed: int, start: int, state: dict[int, dict[str, Tensor]]
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.start = start
        self.step = start  # steps done
        self._state = state

    def training_step(self, windows: Tensor, batch_idx: int) -> dict[str, Tensor]:
        for_views, for_model = np.random.SeedSequence((self.seed, self.step, self.global_rank)).generate_state(2)
        torch.default_generator.manual_seed(int(for_model))  # dropout and the like; `fit` restores the generators
        if windows.is_cuda:
            torch.cuda.manual_seed(int(for_model))
        generator = torch.Generator(windows.device).manual_seed(int(for_views))
        parts = self.model.loss(self.recipe.views.make(self.model.draw(windows, generator), generator))
        if not torch.isfinite(parts["loss"]):
            found = {name: value.item() for name, value in parts.items()}
            msg = (
                f"The loss is not finite at step {self.step + 1}: {found}. "
                "Check the images for NaN or extreme pixels, or lower the recipe's learning_rate."
            )
            raise FloatingPointError(msg)
        detached = {name: value.detach() for name, value in parts.items()}
        self.log_dict(detached | {"step": float(self.step + 1)}, batch_size=len(windows))  # type: ignore[arg-type]
        return parts

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        base = self.recipe.learning_rate
        kind = OPTIMIZERS[self.recipe.optimizer]
        optimizer = kind(trained, lr=base, weight_decay=self.recipe.weight_decay)
        if self._state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self._state})
        factor = lambda done: learning_rate(self.recipe, self.start + done + 1) / base
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Keeper(lightning.Callback):
    """History, state file, progress bar and interrupts."""

    def __init__(
        self,
        module: _Training,
        training: dict[str, Any],
        folder: Path | None,
        every: int,
        interrupt: DeferredInterrupt,
        *,
        progress: bool,
    ) -> None:
        self.module = module
        self.training = training
        self.folder = folder
        self.every = every
        self.interrupt = interrupt
        self.saved = module.start
        self.stepping = False  # the optimiser is at work: weights of this moment belong to no step
        self.buffers: list[Tensor] = []
        self.progress = progress
        self.bar = progress_bar("training", None, "step", show=False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        show = self.progress and trainer.is_global_zero
        self.bar = progress_bar("training", self.module.recipe.steps, "step", show=show, initial=self.module.start)
        self.since = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        self.buffers = [b.clone() for b in self.module.model.buffers()]
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.stepping = True

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        module = self.module
        module.step += 1
        self.buffers, self.stepping = [], False
        row = {"step": module.step} | {name: float(value.detach()) for name, value in outputs.items()}
        module.model.history.append(row | {"learning_rate": self.rate})
        rate = (module.step - module.start) * len(batch) * trainer.world_size / (time.perf_counter() - self.since)
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {rate:,.0f} {module.recipe.unit}s/s", refresh=False)
        self.bar.update()
        if module.step % self.every == 0 or module.step == module.recipe.steps:
            self.save(trainer)
        if self.interrupt.seen:
            raise Stopped

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self.stepping or self.module.step == self.saved or not trainer.optimizers:
            return  # mid-step: the last state on disk counts
        for buffer, before in zip(self.module.model.buffers(), self.buffers, strict=False):
            buffer.copy_(before)
        self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        if self.folder is None:
            return
        if trainer.is_global_zero:
            write_state(self.folder, self.training, self.module.step, self.module.model, trainer.optimizers[0])
        self.saved = self.module.step

    def how_to_go_on(self) -> str:
        at = f"Training interrupted at step {self.module.step} of {self.module.recipe.steps}"
        if self.folder is None:
            return f"{at}. Nothing was saved: with `checkpoint_dir` it could be resumed."
        return f"{at}. Run again with the same checkpoint_dir '{self.folder}' to resume from step {self.saved}."


class _Batches:
    """The dataset from its first step on, read ahead."""

    def __init__(self, dataset: Callable[[int], Iterable[Tensor]], start: int, trainer: lightning.Trainer) -> None:
        self.dataset = dataset
        self.start = start
        self.trainer = trainer
        self._reading: Iterator[Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        self._reading = self._read()
        return self._reading

    def _read(self) -> Iterator[Tensor]:
        pin = self.trainer.strategy.root_device.type == "cuda"
        for batch in read_ahead(self.dataset(self.start)):
            yield batch.pin_memory() if pin else batch

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.close()  # type: ignore[attr-defined]


def _trainer_arguments(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    ours = sorted(set(given) & set(_OURS))
    if ours:
        msg = f"`trainer_kwargs` must not hold {ours}: the recipe and `checkpoint_dir` say it."
        raise ValueError(msg)
    arguments: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": [device.index or 0] if device.type == "cuda" else 1,
        "logger": False,
        "enable_checkpointing": False,  # Lightning's files are pickles
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [],
    } | given
    callbacks = arguments["callbacks"] or []
    arguments["callbacks"] = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    return arguments


@contextmanager
def _same_generators() -> Iterator[None]:
    """Leave the global generators of torch and NumPy as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    state = np.random.get_state()  # noqa: NPY002  read and put back
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
