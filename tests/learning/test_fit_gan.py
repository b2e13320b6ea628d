"""Training of a GAN: two optimisers, linear decay, the same weights however often it was interrupted."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from cytonym.learning.fit_gan import fit_gan, linear_rate
from cytonym.learning.state import STATE_FILE
from cytonym.models.deepliif import DeepLIIF, DeepLIIFConfig
from cytonym.models.translator_training import TranslatorRecipe, TranslatorTraining

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

torch.set_num_threads(1)
CONFIG = DeepLIIFConfig(filters=2, blocks=1, depth=3, discriminator_filters=2, discriminator_layers=2, tile_px=16)
RECIPE = TranslatorRecipe(6, 2, 1e-3, jitter=0.1, judge_every=2)


def tiles(step: int, planes: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, 256, (2, planes, 16, 16), generator=generator, dtype=torch.uint8)


def batches(
    recipe: TranslatorRecipe, failing: int = -1, action: Callable[[], None] | None = None
) -> Callable[[int], Iterator[torch.Tensor]]:
    """Tiles of noise, the same for the same step; something happens while tile `failing` is read."""

    def from_step(start: int) -> Iterator[torch.Tensor]:
        for step in range(start, recipe.steps):
            if step == failing and action is not None:
                action()
            yield tiles(step)

    return from_step


def training(recipe: TranslatorRecipe = RECIPE, seed: int = 0, count: Any = None, **changes: Any) -> TranslatorTraining:
    network = DeepLIIF.from_seed(["DAPI"], replace(CONFIG, **changes), seed=seed)
    held = [tiles(99)[:1]] if count else []
    return TranslatorTraining(network, recipe, held, count, seed=seed)


def run(folder: Path | None = None, *, recipe: TranslatorRecipe = RECIPE, data: Any = None, **arguments: Any) -> Any:
    model = arguments.pop("model", None) or training(recipe)
    options: dict[str, Any] = {"device": "cpu", "progress": False, "checkpoint_dir": folder} | arguments
    return fit_gan(model, data or batches(recipe), recipe, **options)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


class Fails(Exception):
    pass


def fail() -> None:
    raise Fails


# --- learning rate ---


@settings(max_examples=50, deadline=None)
@given(steps=st.integers(1, 300), constant=st.sampled_from([0, 0.25, 0.5, 1]))
def test_the_rate_is_constant_and_then_falls_in_equal_parts(steps: int, constant: float) -> None:
    recipe = replace(RECIPE, steps=steps, constant=constant, learning_rate=2e-4)
    rates = np.array([linear_rate(recipe, step) for step in range(1, steps + 2)])
    flat = round(constant * steps)
    assert (rates[:flat] == 2e-4).all()
    np.testing.assert_allclose(np.diff(rates[max(flat - 1, 0) :]), -2e-4 / (steps + 1 - flat), rtol=1e-6)
    assert rates[-1] == 0
    assert rates[-2] > 0


# --- a step ---


def test_one_step_by_hand() -> None:
    """Discriminators first, on images that the generators made before; then generators against the new discriminators."""
    recipe = replace(RECIPE, steps=1, jitter=0.0, constant=1.0)
    model, by_hand = run(recipe=recipe, model=training(recipe, dropout=False)), training(recipe, dropout=False).train()
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0]))
    batch = by_hand.draw(tiles(0), generator)
    steppers = [
        torch.optim.Adam(weights, lr=1e-3, betas=(0.5, 0.999))
        for weights in (by_hand.generators(), by_hand.discriminators())
    ]
    made = by_hand.make(batch)
    by_hand.discriminator_loss(batch, made)["loss"].backward()
    steppers[1].step()
    by_hand.generator_loss(batch, made)["loss"].backward()
    steppers[0].step()
    assert equal(model, by_hand)


def test_both_are_trained_and_the_history_tells_their_losses() -> None:
    before, after = training(), run()
    moved = {name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))}
    assert any(name.startswith("network.translators.G1") for name in moved)
    assert any(name.startswith("network.segmenters.GS1") for name in moved)
    assert any(name.startswith("adversaries.translation.D1") for name in moved)
    assert any(name.startswith("adversaries.segmentation.DS1") for name in moved)
    assert not any(name.startswith("best") for name in moved)
    assert [row["step"] for row in after.history] == list(range(1, 7))
    keys = {"step", "loss", "discriminator_loss", "learning_rate"}
    keys |= {f"{what}_{name}" for what in ("gan", "l1", "fake", "real") for name in ("DAPI", "segmentation")}
    assert set(after.history[0]) == keys
    rates = [row["learning_rate"] for row in after.history]
    np.testing.assert_allclose(rates, [linear_rate(RECIPE, step) for step in range(1, 7)], rtol=1e-6)
    assert json.loads(json.dumps(after.history)) == after.history
    assert not after.training


def test_without_a_gan_there_are_no_discriminators() -> None:
    recipe = replace(RECIPE, gan=0.0)
    model = run(recipe=recipe)
    assert model.adversaries is None
    assert set(model.history[0]) == {"step", "loss", "l1_DAPI", "l1_segmentation", "learning_rate"}
    assert len(model.history) == 6


def test_training_learns() -> None:
    recipe = replace(RECIPE, steps=40, gan=0.0, learning_rate=5e-3, jitter=0.0)
    image = tiles(3)
    image[:, 3:] = 230
    model = fit_gan(training(recipe), lambda start: [image] * (40 - start), recipe, progress=False, device="cpu")
    losses = [row["loss"] for row in model.history]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


# --- the same weights again ---


def test_same_seed_same_weights_and_global_generators_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    first = run(seed=1)
    assert torch.equal(torch.rand(2), expected)
    again = run(seed=1)
    assert equal(first, again)
    assert first.history == again.history
    assert not equal(first, run(seed=2))


@pytest.mark.parametrize("gan", [0.0, 1.0])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_resumed_training_ends_at_the_same_weights(tmp_path: Path, at: int, gan: float) -> None:
    recipe = replace(RECIPE, gan=gan)
    count = lambda image: (int((image[0] > 128).sum()), int((image[2] > 128).sum()))
    start = lambda: training(recipe, count=count)
    expected = run(recipe=recipe, model=start())
    with pytest.raises(Fails):
        run(tmp_path, recipe=recipe, model=start(), data=batches(recipe, at, fail), checkpoint_every=2)
    resumed = run(tmp_path, recipe=recipe, model=start())
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    assert [row["step"] for row in resumed.history if "validation_count_error" in row] == [2, 4, 6]
    assert equal(run(tmp_path, recipe=recipe, model=start()), expected)  # nothing is left to do


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = replace(RECIPE, steps=12)
    press = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted at step \d+ of 12\. Run again with the same") as error:
        run(tmp_path, recipe=recipe, data=batches(recipe, 6, press))
    [stopped, resumes] = [int(n) for n in re.findall(r"step (\d+)", str(error.value))]
    assert stopped == resumes
    with caplog.at_level(logging.INFO, "cytonym"):
        resumed = run(tmp_path, recipe=recipe)
    assert f"at step {stopped} of 12" in caplog.text
    assert equal(resumed, run(recipe=recipe))


@pytest.mark.parametrize("broken", ["discriminator_loss", "generator_loss"])
def test_an_interrupt_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Between the two optimisers the weights belong to no step: the last state on disk counts."""
    expected = run()
    loss, calls = getattr(TranslatorTraining, broken), []

    def interrupted(self: TranslatorTraining, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TranslatorTraining, broken, interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"at step 3 of 6\. .*resume from step [23]\."):
            run(tmp_path, checkpoint_every=2)
    assert equal(run(tmp_path), expected)


def test_the_state_holds_all_that_is_trained(tmp_path: Path) -> None:
    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    state = load_file(tmp_path / STATE_FILE)
    kinds = {".".join(name.split(".")[:2]) for name in state if name.startswith("model.")}
    assert kinds == {"model.network", "model.adversaries", "model.best", "model.best_error"}
    n = len(training().generators()) + len(training().discriminators())
    assert {int(name.split(".")[1]) for name in state if name.startswith("optimizer.")} == set(range(n))


def test_a_state_of_another_training(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match=r"holds another training, stopped at step 6: recipe\.gan was 1\.0, is 0\.5"):
        run(tmp_path, recipe=replace(RECIPE, gan=0.5))
    with pytest.raises(ValueError, match="it began from other weights or data"):
        run(tmp_path, model=training(seed=3))


# --- what is said when something is off ---


def test_a_loss_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TranslatorTraining, "jittered", lambda self, x, g: x.float() * torch.nan)
        with pytest.raises(FloatingPointError, match=r"The loss is not finite at step 1: .*nan"):
            run()


def test_arguments_of_the_trainer() -> None:
    with pytest.raises(ValueError, match=r"`trainer_kwargs` must not hold \['gradient_clip_val', 'devices'\]"):
        run(trainer_kwargs={"devices": 2, "gradient_clip_val": 1.0})
    with pytest.raises(ValueError, match=r"`trainer_kwargs` must not hold \['max_steps'\]"):
        run(trainer_kwargs={"max_steps": 3})
    with pytest.raises(ValueError, match="The data ended after 3 batches, the recipe needs 6"):
        run(data=lambda start: [tiles(step) for step in range(start, 3)])
