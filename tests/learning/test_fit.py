"""Training: the schedule, the same weights however often it was interrupted, and clear words when something is off."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.learning.fit import OPTIMIZERS, fit, learning_rate
from cytonym.learning.interrupt import DeferredInterrupt
from cytonym.learning.lars import LARS
from cytonym.learning.state import STATE_FILE
from cytonym.models.nextmarker import NeXtMarker

if TYPE_CHECKING:
    from cytonym.models.base import Recipe

torch.set_num_threads(1)
MARKERS = ["DNA", "CD3"]


def batches(recipe: Recipe, n_markers: int = 2, seed: int = 0):
    """A data set: random windows, the same for the same step."""
    side = recipe.views.source_px()

    def from_step(start: int):
        for step in range(start, recipe.steps):
            generator = torch.Generator().manual_seed(1000 * seed + step)
            yield torch.rand(recipe.batch_size, n_markers, side, side, generator=generator)

    return from_step


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.fixture
def train(blend):
    """Train the tiny encoder; a data set may be given."""

    def run(folder=None, *, data=None, steps: int = 12, model=None, **arguments):
        recipe = replace(blend.recipe, steps=steps)
        return fit(
            model or blend(MARKERS),
            data or batches(recipe),
            recipe,
            **({"device": "cpu", "progress": False, "checkpoint_dir": folder} | arguments),
        )

    return run


# --- learning rate ---


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(1, 400),
    warmup=st.sampled_from([0, 0.05, 1 / 12, 0.3]),
    constant=st.sampled_from([0, 1 / 12, 0.25, 0.7]),
)
def test_learning_rate_is_warm_up_cosine_and_tail(steps, warmup, constant):
    recipe = replace(
        NeXtMarker.recipe, steps=steps, warmup=warmup, constant=constant, learning_rate=1e-3, final_rate=1e-4
    )
    warm, tail = round(warmup * steps), steps - round(constant * steps)
    for step in range(1, steps + 1):
        found = learning_rate(recipe, step)
        if step < warm:
            assert found == pytest.approx(1e-3 * step / warm)
        elif warm <= step < tail:
            share = (step - warm) / (tail - warm)
            assert found == pytest.approx(1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi * share)))
        elif step > tail or tail > warm:
            assert found == 1e-4
    assert 0 < learning_rate(recipe, 1) <= 1e-3


def test_history_has_a_row_a_step_with_the_rate_that_was_used(train):
    model = train()
    assert [row["step"] for row in model.history] == list(range(1, 13))
    assert list(model.history[0]) == ["step", "loss", "contrastive", "learning_rate"]
    rates = [row["learning_rate"] for row in model.history]
    np.testing.assert_allclose(rates, [learning_rate(model.recipe, s) for s in range(1, 13)], rtol=1e-6)
    assert np.isfinite([row["loss"] for row in model.history]).all()
    assert not model.training
    assert json.loads(json.dumps(model.history)) == model.history


def test_training_learns():
    """Cells of two kinds that views mix up only in brightness."""
    recipe = replace(
        NeXtMarker.recipe, steps=40, batch_size=32, learning_rate=1e-2, views=replace(NeXtMarker.recipe.views, window_px=(6,))
    )  # fmt: skip
    model = NeXtMarker.from_statistics(MARKERS, [1.0, 1.0], seed=0)
    fit(model, batches(recipe), recipe, progress=False)
    losses = [row["loss"] for row in model.history]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


# --- the same weights again ---


def test_same_seed_same_weights_and_global_generators_untouched(train):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = train(seed=1)
    assert torch.equal(torch.rand(2), expected[0])
    np.testing.assert_array_equal(np.random.rand(2), expected[1])  # noqa: NPY002
    assert equal(first, train(seed=1))
    assert first.history == train(seed=1).history
    assert not equal(first, train(seed=2))


class Fails(Exception):
    pass


def failing(recipe: Recipe, step: int, error: type[BaseException] = Fails):
    """The data set, until `step`."""
    whole = batches(recipe)

    def from_step(start: int):
        for i, batch in enumerate(whole(start), start):
            if i == step:
                raise error
            yield batch

    return from_step


@pytest.mark.parametrize("every", [1, 5, 50])
@pytest.mark.parametrize("at", [1, 5, 7, 11])
def test_resumed_training_ends_at_the_same_weights(train, blend, tmp_path, at, every):
    expected = train()
    with pytest.raises(Fails):
        train(tmp_path, data=failing(blend.recipe, at), checkpoint_every=every)
    resumed = train(tmp_path, checkpoint_every=every)
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    again = train(tmp_path)  # nothing is left to do
    assert equal(again, expected)
    assert not again.training


def test_interrupted_three_times(train, blend, tmp_path):
    for at in (2, 6, 9):
        with pytest.raises(Fails):
            train(tmp_path, data=failing(blend.recipe, at))
    assert equal(train(tmp_path), train())


def test_resume_false_begins_anew(train, blend, tmp_path):
    train(tmp_path, seed=9)
    assert equal(train(tmp_path, resume=False), train())


def test_only_the_state_file_is_left(train, tmp_path):
    train(tmp_path / "new" / "folder")
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [STATE_FILE]
    train()  # and none without a folder
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


# --- what a method may choose ---


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_the_optimiser_of_the_recipe(blend, tmp_path, optimizer):
    """One step by hand, and the same weights when resumed, whatever the optimiser remembers."""
    recipe = replace(
        blend.recipe, steps=1, optimizer=optimizer, learning_rate=0.01, final_rate=0.01, warmup=0.0, constant=1.0, weight_decay=0.1
    )  # fmt: skip
    model, by_hand = blend(MARKERS), blend(MARKERS).train()
    by_hand.drop.p = model.drop.p = 0.0
    fit(model, batches(recipe), recipe, seed=4, device="cpu", progress=False)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((4, 0, 0)).generate_state(2)[0]))
    [windows] = batches(recipe)(0)
    stepper = {"adam": torch.optim.Adam, "lars": LARS}[optimizer](by_hand.parameters(), lr=0.01, weight_decay=0.1)
    by_hand.loss(recipe.views.make(windows, generator))["loss"].backward()
    stepper.step()
    assert equal(model, by_hand)
    recipe = replace(recipe, steps=12)
    expected = fit(blend(MARKERS), batches(recipe), recipe, progress=False)
    with pytest.raises(Fails):
        fit(blend(MARKERS), failing(recipe, 7), recipe, progress=False, checkpoint_dir=tmp_path)
    assert equal(fit(blend(MARKERS), batches(recipe), recipe, progress=False, checkpoint_dir=tmp_path), expected)


def test_the_gradient_is_clipped(blend):
    norms: dict[float, list[float]] = {0.0: [], 1e-3: []}

    class Norms(lightning.Callback):
        def __init__(self, clip: float) -> None:
            self.clip = clip

        def on_before_zero_grad(self, trainer, pl_module, optimizer) -> None:
            found = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            norms[self.clip] += [float(torch.stack(found).norm())] if found else []

    for clip in norms:
        recipe = replace(blend.recipe, steps=3, clip=clip)
        fit(
            blend(MARKERS), batches(recipe), recipe,
            device="cpu", progress=False, trainer_kwargs={"callbacks": [Norms(clip)]},
        )  # fmt: skip
    assert min(norms[0.0]) > 1e-2
    assert max(norms[1e-3]) <= 1e-3 * (1 + 1e-4)


def test_an_unknown_optimiser(blend):
    recipe = replace(blend.recipe, optimizer="sgd")
    with pytest.raises(ValueError, match=r"Unknown optimizer 'sgd' in the recipe\. Available: \['adam', 'lars'\]\."):
        fit(blend(MARKERS), batches(recipe), recipe)


def test_a_method_may_draw_from_its_windows(blend, monkeypatch):
    """Before views are made, by the generator of the step."""
    seen = []

    def draw(self, windows, generator):
        first = torch.rand(1, generator=generator)
        seen.append((tuple(windows.shape), float(first)))
        return windows[:5]

    monkeypatch.setattr(blend, "draw", draw)
    recipe = replace(blend.recipe, steps=3)
    histories = [fit(blend(MARKERS), batches(recipe), recipe, progress=False).history for _ in range(2)]
    side = recipe.views.source_px()
    assert [shape for shape, _ in seen] == [(8, 2, side, side)] * 6
    assert seen[:3] == seen[3:]
    assert len({value for _, value in seen}) == 3
    assert histories[0] == histories[1]


# --- interrupts ---


def pressing(recipe: Recipe, step: int):
    """The data set; while batch `step` is read, the user presses Ctrl-C."""
    whole = batches(recipe)

    def from_step(start: int):
        for i, batch in enumerate(whole(start), start):
            if i == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    return from_step


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(train, blend, tmp_path, caplog):
    before = signal.getsignal(signal.SIGINT)
    with (
        caplog.at_level(logging.WARNING, "cytonym"),
        pytest.raises(KeyboardInterrupt, match=r"interrupted at step \d+ of 12\. Run again with the same") as error,
    ):
        train(tmp_path, data=pressing(blend.recipe, 6))
    assert "stopping after this step" in caplog.text
    assert str(tmp_path) in str(error.value)
    [stopped, resumes] = [int(n) for n in re.findall(r"step (\d+)", str(error.value))]
    assert stopped == resumes
    assert 4 <= stopped < 12
    assert signal.getsignal(signal.SIGINT) is before
    with caplog.at_level(logging.INFO, "cytonym"):
        resumed = train(tmp_path)
    assert f"at step {stopped} of 12" in caplog.text
    assert equal(resumed, train())


def test_ctrl_c_without_a_folder(train, blend):
    with pytest.raises(KeyboardInterrupt, match="Nothing was saved: with `checkpoint_dir` it could be resumed"):
        train(data=pressing(blend.recipe, 6))


def test_an_interrupt_in_the_middle_of_a_step_resumes(train, blend, tmp_path, monkeypatch):
    """As a second Ctrl-C does: the running statistics of the broken step must not stay."""
    expected = train()
    loss, calls = blend.loss, []

    def broken(self, views):
        calls.append(1)
        found = loss(self, views)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(blend, "loss", broken)
        with pytest.raises(KeyboardInterrupt, match="interrupted at step 4 of 12"):
            train(tmp_path)
    assert equal(train(tmp_path), expected)


def test_an_interrupt_while_the_optimiser_works_resumes_from_the_last_state(train, tmp_path, monkeypatch):
    expected = train()
    step, calls = torch.optim.Adam.step, []

    def broken(self, closure=None):
        calls.append(1)
        found = step(self, closure)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", broken)
        with pytest.raises(KeyboardInterrupt, match="resume from step 4"):
            train(tmp_path, checkpoint_every=2)
    assert equal(train(tmp_path), expected)


def test_second_ctrl_c_stops_at_once():
    with DeferredInterrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.seen
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_somebody_elses_handler_stays():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with DeferredInterrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert (seen, interrupt.seen) == ([1], False)
    finally:
        signal.signal(signal.SIGINT, before)


# --- what is said when something is off ---


@pytest.mark.parametrize("damage", ["cut", "other file", "empty", "bit"])
def test_a_damaged_state(train, tmp_path, damage):
    train(tmp_path)
    path = tmp_path / STATE_FILE
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-7], "other file": b"PK\x03\x04" * 99, "empty": b"", "bit": b"\xff" + data[1:]}[damage]
    )
    with pytest.raises(
        ValueError, match=r"is no state of a training, or damaged .*To begin anew delete the file or pass resume=False"
    ):
        train(tmp_path)
    assert equal(train(tmp_path, resume=False), train())


def test_another_training_in_the_folder(train, blend, tmp_path):
    train(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds another training, stopped at step 12: seed was 0, is 3\. Give another"
    ):
        train(tmp_path, seed=3)
    with pytest.raises(ValueError, match=r"recipe\.steps was 12, is 20"):
        train(tmp_path, steps=20)
    with pytest.raises(ValueError, match=r"markers was \['DNA', 'CD3'\], is \['DNA', 'CD8'\]"):
        train(tmp_path, model=blend(["DNA", "CD8"]))
    with pytest.raises(ValueError, match="it learned from other images or cells"):
        train(tmp_path, learned_from="others")
    other = blend(MARKERS)
    torch.nn.init.ones_(other.mix.weight)
    with pytest.raises(ValueError, match="it began from other weights or data"):
        train(tmp_path, model=other)


def test_a_loss_that_is_not_finite(train, blend, tmp_path):
    def from_step(start: int):
        for step, batch in enumerate(batches(blend.recipe)(start), start):
            yield batch * torch.inf if step == 4 else batch

    with pytest.raises(FloatingPointError, match=r"The loss is not finite at step 5: .*nan.*lower the recipe"):
        train(tmp_path, data=from_step)
    assert equal(train(tmp_path), train())  # the good steps count


def test_data_that_end_too_soon(train, blend):
    data = lambda start: list(batches(blend.recipe)(start))[:5]
    with pytest.raises(ValueError, match="The data ended after 5 batches, the recipe needs 12"):
        train(data=data)


def test_trainer_kwargs(train):
    with pytest.raises(ValueError, match=r"`trainer_kwargs` must not hold \['max_epochs', 'max_steps'\]"):
        train(trainer_kwargs={"max_steps": 3, "max_epochs": 2})

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 4

    stopped = train(trainer_kwargs={"callbacks": Stop()})
    assert len(stopped.history) == 4


def test_the_model_stays_on_its_device_and_shows_a_bar(train, capsys):
    model = train(progress=True)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    shown = capsys.readouterr()
    assert "training" in shown.err
    assert "cells/s" in shown.err
    assert shown.out == ""
