"""The training loop of conditional GANs: one optimiser for all generators, one for all discriminators.

A step is one of the discriminators on images made before, then one of the generators against the new discriminators, as
published (DeepLIIF, Ghahremani et al. 2022). What `loop` says of interrupts holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from cytonym.learning.loop import Step, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

_NOT_HERE = ("gradient_clip_val", "gradient_clip_algorithm", "strategy", "num_nodes")


class GanRecipe(Protocol):
    """What is asked of a recipe, a frozen dataclass."""

    @property
    def steps(self) -> int:
        """Of the training."""

    @property
    def learning_rate(self) -> float:
        """At the beginning."""

    @property
    def betas(self) -> tuple[float, float]:
        """Of Adam."""

    @property
    def constant(self) -> float:
        """Share of the steps before the rate falls."""


class Adversaries(Protocol):
    """What is trained: an `nn.Module` that also has `name`, `markers`, `config_dict` and `history`."""

    def generators(self) -> list[nn.Parameter]:
        """Weights that make images."""

    def discriminators(self) -> list[nn.Parameter]:
        """Weights that judge them; none for a training without a GAN."""

    def draw(self, tiles: Tensor, generator: torch.Generator) -> Any:
        """What a step sees of its tiles."""

    def make(self, batch: Any) -> Any:
        """What the generators make of it."""

    def discriminator_loss(self, batch: Any, made: Any) -> dict[str, Tensor]:
        """With "loss"; its gradient stops at the images."""

    def generator_loss(self, batch: Any, made: Any) -> dict[str, Tensor]:
        """With "loss" and its parts."""

    def judge(self, step: int) -> dict[str, float]:
        """Called after each step: numbers for the history, if it is time."""


def linear_rate(recipe: GanRecipe, step: int) -> float:
    """Learning rate of a step: constant, then linear down to nearly 0.

    Parameters
    ----------
    recipe
        With T = `steps`: constant up to step ``constant * T``; the step after the last would have 0.
    step
        Number of the step, 1 … T.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from cytonym.models import TRANSLATOR_RECIPE
    >>> recipe = replace(TRANSLATOR_RECIPE, steps=8, constant=0.5, learning_rate=1.0)
    >>> [linear_rate(recipe, step) for step in range(1, 9)]
    [1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    flat = round(recipe.constant * recipe.steps)
    if step <= flat:
        return recipe.learning_rate
    return recipe.learning_rate * (recipe.steps + 1 - step) / (recipe.steps + 1 - flat)


def fit_gan(
    model: Any,
    dataset: Callable[[int], Iterable[Tensor]],
    recipe: GanRecipe,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = True,
    progress: bool = True,
    trainer_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Train generators against discriminators.

    Parameters
    ----------
    model
        An `nn.Module` that is `Adversaries`, with its initial weights. It is trained in place.
    dataset
        Called with the number of steps already done; yields one batch of tiles a step, the same every time.
    recipe
        Steps, learning rate and moments of Adam.
    seed, device, checkpoint_dir, checkpoint_every, resume, progress
        As in `cytonym.learning.fit.fit`.
    trainer_kwargs
        Passed to `lightning.Trainer`: precision, callbacks, logger. One device is used.

    Returns
    -------
    `model` in evaluation mode on the device it came from. ``model.history`` holds a row a step: step, loss of the generators
    and its parts, discriminator_loss, learning_rate; and rows of what `judge` found.

    Raises
    ------
    KeyboardInterrupt
        Says at which step and how to go on. The first interrupt finishes the running step, a second one does not.
    FloatingPointError
        A loss is not finite. Names the step.
    ValueError
        `checkpoint_dir` holds another training, `trainer_kwargs` hold what cannot be had here, or the data end too soon.
    """
    given = trainer_kwargs or {}
    ours = sorted(set(given) & set(_NOT_HERE)) + (["devices"] if given.get("devices", 1) != 1 else [])
    if ours:
        msg = f"`trainer_kwargs` must not hold {ours}: two optimisers take turns, on one device and without clipping."
        raise ValueError(msg)
    run(
        lambda start, state: _Training(model, recipe, seed, start, state), model, dataset, recipe,
        seed=seed, device=device, checkpoint_dir=checkpoint_dir, checkpoint_every=checkpoint_every, resume=resume,
        progress=progress, trainer_kwargs=given,
    )  # fmt: skip
    return model


class _Training(Step):
    """Discriminators, then generators."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.automatic_optimization = False

    @property
    def n_optimizers(self) -> int:
        return 2 if self.model.discriminators() else 1

    def training_step(self, tiles: Tensor, batch_idx: int) -> dict[str, Tensor]:
        batch = self.model.draw(tiles, self.seeded(tiles))
        optimizers, schedules = _listed(self.optimizers()), _listed(self.lr_schedulers())
        made = self.model.make(batch)
        parts: dict[str, Tensor] = {}
        if len(optimizers) > 1:
            self._ask_gradients(ask=True)
            found = self.model.discriminator_loss(batch, made)
            parts = {"discriminator_loss": found.pop("loss")} | found
            self.note(parts, tiles)
            self._update(optimizers[1], parts["discriminator_loss"])
            self._ask_gradients(ask=False)  # of the generators' loss, which the discriminators take part in
        parts = self.model.generator_loss(batch, made) | parts
        self.note(parts, tiles)
        self._update(optimizers[0], parts["loss"])
        for schedule in schedules:
            schedule.step()
        return parts

    def _ask_gradients(self, *, ask: bool) -> None:
        for weight in self.model.discriminators():
            weight.requires_grad_(ask)

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def after_step(self, step: int) -> dict[str, float]:
        found: dict[str, float] = self.model.judge(step)
        self.model.train()
        return found

    def configure_optimizers(self) -> Any:
        base = self.recipe.learning_rate
        factor = lambda done: linear_rate(self.recipe, self.start + done + 1) / base
        groups = [weights for weights in (self.model.generators(), self.model.discriminators()) if weights]
        optimizers = [torch.optim.Adam(weights, lr=base, betas=self.recipe.betas) for weights in groups]
        before = 0
        for optimizer, weights in zip(optimizers, groups, strict=True):
            own = {i: self.optimizer_state.get(before + i) for i in range(len(weights))}
            known = {i: state for i, state in own.items() if state is not None}
            if known:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": known})
            before += len(weights)
        schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
        return optimizers, schedules


def _listed(found: Any) -> Sequence[Any]:
    return list(found) if isinstance(found, (list, tuple)) else [found]
