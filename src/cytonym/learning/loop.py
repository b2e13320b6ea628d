"""What every training by Lightning shares: seeds of a step, history, state file, progress bar, interrupts.

Step k of a training (counted from 0) depends on the seed, k and the rank only, never on the global generators: an
interrupted training that goes on from its state file ends at the weights of an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning
import numpy as np
import torch

from cytonym.learning.engine import choose_device, progress_bar, read_ahead
from cytonym.learning.interrupt import DeferredInterrupt, Stopped, quiet_lightning
from cytonym.learning.state import describe_training, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    OptimizerState = dict[int, dict[str, Tensor]]

logger = logging.getLogger("cytonym")

_OURS = ("max_steps", "max_epochs", "min_steps", "min_epochs", "enable_checkpointing", "accumulate_grad_batches")


class Step(lightning.LightningModule):
    """One step of a training; subclasses say what it does and by which optimisers.

    Parameters
    ----------
    model
        Trained in place.
    recipe
        With `steps` and `unit`.
    seed
        Of the training.
    start
        Steps already done.
    state
        Of the optimisers, whose parameters are numbered through.
    """

    cure: ClassVar[str] = "Check the images for NaN or extreme pixels, or lower the recipe's learning_rate."

    def __init__(self, model: Any, recipe: Any, seed: int, start: int, state: OptimizerState) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.start = start
        self.step = start  # steps done
        self.optimizer_state = state

    @property
    def n_optimizers(self) -> int:
        """How many there are."""
        return 1

    def seeded(self, batch: Tensor) -> torch.Generator:
        """Seed the global generators for dropout and the like, `run` restores them; a generator for views."""
        for_views, for_model = np.random.SeedSequence((self.seed, self.step, self.global_rank)).generate_state(2)
        torch.default_generator.manual_seed(int(for_model))
        if batch.is_cuda:
            torch.cuda.manual_seed(int(for_model))
        return torch.Generator(batch.device).manual_seed(int(for_views))

    def note(self, parts: dict[str, Tensor], batch: Tensor) -> None:
        """Log a loss and its parts, which must be finite."""
        if not all(bool(torch.isfinite(value)) for name, value in parts.items() if name.endswith("loss")):
            found = {name: value.item() for name, value in parts.items()}
            msg = f"The loss is not finite at step {self.step + 1}: {found}. {self.cure}"
            raise FloatingPointError(msg)
        detached = {name: value.detach() for name, value in parts.items()}
        self.log_dict(detached | {"step": float(self.step + 1)}, batch_size=len(batch))  # type: ignore[arg-type]

    def after_step(self, step: int) -> dict[str, float]:
        """What is found out when a step is done, for the history; nothing by default."""
        del step
        return {}


def run(
    make: Callable[[int, OptimizerState], Step],
    model: Any,
    dataset: Callable[[int], Iterable[Tensor]],
    recipe: Any,
    *,
    seed: int,
    device: str | torch.device,
    checkpoint_dir: str | Path | None,
    checkpoint_every: int,
    resume: bool,
    progress: bool,
    trainer_kwargs: dict[str, Any] | None,
    clip: float | None = None,
    learned_from: str = "",
) -> None:
    """Train a model in place, from the state in `checkpoint_dir` on.

    Parameters
    ----------
    make
        Called with the steps done and the state of the optimisers.
    clip
        Largest norm of the gradient.
    learned_from
        Hash of the data, where the model has none among its buffers.
    model, dataset, recipe, seed, device, checkpoint_dir, checkpoint_every, resume, progress, trainer_kwargs
        As in `fit.fit`.
    """
    arguments = _trainer_arguments(trainer_kwargs or {}, choose_device(device))
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    home = next(model.parameters()).device
    training = describe_training(model, recipe, seed, learned_from)
    model.history, start = [], 0
    optimizer: OptimizerState = {}
    if folder is not None and resume:
        start, optimizer = read_state(folder, training, model)
    if start >= recipe.steps:
        model.eval()
        return
    if start:
        logger.info("Resuming the training in %s at step %d of %d.", folder, start, recipe.steps)

    module = make(start, optimizer)
    with DeferredInterrupt() as interrupt, _same_generators(), quiet_lightning():
        keeper = _Keeper(module, training, folder, checkpoint_every, interrupt, progress=progress)
        arguments["callbacks"] = [keeper, *arguments["callbacks"]]
        arguments.setdefault("gradient_clip_val", clip)
        most = (recipe.steps - start) * module.n_optimizers  # Lightning counts the steps of all optimisers
        trainer = lightning.Trainer(max_steps=most, max_epochs=1, **arguments)
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


class _Keeper(lightning.Callback):
    """History, state file, progress bar and interrupts."""

    def __init__(
        self,
        module: Step,
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
        step = module.step + 1
        row = {"step": step} | {name: float(value.detach()) for name, value in outputs.items()}
        found = module.after_step(step)
        module.step = step
        module.model.history.append(row | {"learning_rate": self.rate})
        if found:
            module.model.history.append({"step": step} | found)
        self.buffers, self.stepping = [], False
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
            write_state(self.folder, self.training, self.module.step, self.module.model, *trainer.optimizers)
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
