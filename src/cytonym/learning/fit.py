"""The training loop without labels: Lightning around the recipe's views and `model.loss`. What `loop` says holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from cytonym.learning.lars import LARS
from cytonym.learning.loop import Step, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from torch import Tensor

    from cytonym.models.base import CellEncoder, Recipe

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "lars": LARS}


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
    learned_from: str = "",
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
    learned_from
        What tells the data from others, such as their hash: a state of a training on others is refused. Of use where the initial
        weights do not depend on the data.

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
    run(
        lambda start, state: _Training(model, recipe, seed, start, state), model, dataset, recipe,
        seed=seed, device=device, checkpoint_dir=checkpoint_dir, checkpoint_every=checkpoint_every, resume=resume,
        progress=progress, trainer_kwargs=trainer_kwargs, clip=recipe.clip or None, learned_from=learned_from,
    )  # fmt: skip
    return model


class _Training(Step):
    """One step: views of the windows, loss of the views."""

    def training_step(self, windows: Tensor, batch_idx: int) -> dict[str, Tensor]:
        generator = self.seeded(windows)
        parts = self.model.loss(self.recipe.views.make(self.model.draw(windows, generator), generator))
        self.note(parts, windows)
        return parts  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        base = self.recipe.learning_rate
        kind = OPTIMIZERS[self.recipe.optimizer]
        optimizer = kind(trained, lr=base, weight_decay=self.recipe.weight_decay)
        if self.optimizer_state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.optimizer_state})
        factor = lambda done: learning_rate(self.recipe, self.start + done + 1) / base
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
