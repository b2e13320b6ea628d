"""What every classifier must hold, on numbers or on pixels. A new method is checked by being registered."""

from __future__ import annotations

import json
import pickle
import tempfile
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cytonym.learning.supervise import Schedule, supervise
from cytonym.models import load, registry, resnet, save
from cytonym.models.classifier import Labeller
from cytonym.models.nextmarker import NeXtMarker
from cytonym.models.window_classifier import ALL_CELLS, THIS_CELL, WindowClassifier

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = ("T", "B", "tumour")
MARKERS = ["DNA", "CD3", "CD20"]
QUANTILES = [90.0, 12.0, 30.0]
SCHEDULE = Schedule(epochs=4, batch_size=8, learning_rate=1e-2, balance=True)


@contextmanager
def thin() -> Iterator[None]:
    """Residual networks of few and narrow layers: the contract is about what is around them."""
    with patch.object(resnet, "STAGES", (8, 8, 8, 8)), patch.object(resnet, "DEPTHS", {18: (1,) * 4, 50: (1,) * 4}):
        yield


def new(cls: type[Any], *, multilabel: bool = False, seed: int = 0) -> Any:
    """A small classifier, in evaluation mode."""
    if hasattr(cls, "of"):  # around an encoder
        model = cls.of(NeXtMarker.from_statistics(MARKERS, QUANTILES, seed=seed), CLASSES, multilabel=multilabel)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    elif issubclass(cls, WindowClassifier):
        config = cls.Config(CLASSES, multilabel=multilabel, window_px=16)
        panel = [*MARKERS, ALL_CELLS, THIS_CELL] if cls.with_masks else MARKERS
        model = cls.from_statistics(panel, QUANTILES, config, seed=seed)  # type: ignore[attr-defined]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = cls([*MARKERS, "area"], cls.Config(CLASSES, multilabel=multilabel))
        model.set_scaling(np.array([1.0, 0, 2, 0]), np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 0.5, 9]))
    return model.eval()


def inputs(model: Any, n: int = 21, seed: int = 0) -> Tensor:
    """Rows [n, D] of numbers, or windows [n, C, S0, S0] as training reads them."""
    rng = np.random.default_rng(seed)
    if not isinstance(model, WindowClassifier):
        return torch.from_numpy(rng.gamma(1.0, 9.0, (n, len(model.markers)))).float()
    side = model.source_px
    found = rng.poisson(
        np.resize(QUANTILES, len(model.markers))[:, None, None] / 4, (n, len(model.markers), side, side)
    )
    if model.with_masks:
        found[:, -2:] = rng.random((n, 2, side, side)) < 0.4
    return torch.from_numpy(found).float()


def targets(n: int = 21, *, multilabel: bool = False) -> Tensor:
    numbers = torch.from_numpy(np.random.default_rng(1).integers(0, 3, n))
    return F.one_hot(numbers, 3) | F.one_hot((numbers + 1) % 3, 3) if multilabel else numbers


def logits(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        if not isinstance(model, WindowClassifier):
            return model(x)
        first = x.shape[-1] // 2 - model.window_px // 2
        return model.encode(x[..., first : first + model.window_px, first : first + model.window_px]).logits


def probabilities(model: Any, x: Tensor) -> Tensor:
    return model.probabilities(logits(model, x))


def train(model: Any, *, folder: str | None = None, fail_at: int | None = None, seed: int = 0) -> Any:
    """A short training; with `fail_at` the power goes off at that reading."""
    x, y = inputs(model), targets(multilabel=model.config.multilabel)
    calls = []

    def read(rows: np.ndarray) -> tuple[Tensor]:
        calls.append(len(rows))
        if len(calls) == fail_at:
            raise InterruptedError
        return (x[torch.from_numpy(rows)],)

    rows = np.arange(len(x))
    return supervise(
        model, read, y, SCHEDULE, train=rows[:16], validate=rows[16:], seed=seed, device="cpu", checkpoint_dir=folder
    )


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def both(cls: type[Any]) -> list[Any]:
    return [new(cls), new(cls, multilabel=True)]


def check_shapes_and_types(cls: type[Any]) -> None:
    assert registry.get(cls.name) is cls
    assert issubclass(cls, Labeller)
    for model in both(cls):
        assert model.classes == CLASSES
        assert len(model.markers) == inputs(model).shape[1]
        for n in (1, 5):
            found = logits(model, inputs(model, n))
            assert (found.shape, found.dtype) == ((n, 3), torch.float32)
        assert model.temperature.tolist() == [1.0] * len(model.temperature)
        assert model.thresholds.tolist() == [0.5] * 3


def check_probabilities(cls: type[Any]) -> None:
    """They sum to 1 where one class is true, and rise with their logit, at any temperature."""
    for model in both(cls):
        for temperature in (0.01, 1.0, 100.0):
            model.temperature.fill_(temperature)
            found = probabilities(model, inputs(model))
            assert ((found >= 0) & (found <= 1)).all()
            if not model.config.multilabel:
                torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))
                assert torch.equal(found.argmax(dim=1), logits(model, inputs(model)).argmax(dim=1))


def check_rows_are_independent(cls: type[Any]) -> None:
    for model in both(cls):
        x = inputs(model, 7)
        whole = logits(model, x)
        order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
        torch.testing.assert_close(logits(model, x[order]), whole[order], rtol=1e-5, atol=1e-5)
        single = torch.cat([logits(model, x[i : i + 1]) for i in range(7)])
        torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-5)
        assert float((whole[0] - whole[1]).abs().max()) > 1e-3


def check_extreme_inputs(cls: type[Any]) -> None:
    for model in both(cls):
        x = inputs(model, 2)
        brightest = 65_535.0 if isinstance(model, WindowClassifier) else 1e30
        for value in (0.0, brightest):
            found = probabilities(model, torch.full_like(x, value))
            assert torch.isfinite(found).all()


def check_save_and_load(cls: type[Any]) -> None:
    for model in both(cls):
        model.history = [{"step": 1, "loss": 2.5}]
        model.provenance = {"seed": 0}
        model.set_thresholds([0.1, 0.2, 0.3])
        model.temperature.fill_(1.7)
        x = inputs(model)
        with tempfile.TemporaryDirectory() as folder:
            again: Any = load(save(model, f"{folder}/model"))
        assert type(again) is cls
        assert (again.markers, again.config, again.history) == (model.markers, model.config, model.history)
        assert again.provenance == model.provenance
        assert not again.training
        assert torch.equal(again.thresholds, model.thresholds)
        for other in (again, pickle.loads(pickle.dumps(model))):
            assert torch.equal(probabilities(other, x), probabilities(model, x))
        assert cls.config_from_dict(json.loads(json.dumps(model.config_dict()))) == model.config


def check_loading_leaves_global_generators_alone(cls: type[Any]) -> None:
    model = new(cls)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder:
        load(save(model, f"{folder}/model"))
    if isinstance(model, WindowClassifier):
        new(cls)
        model.augment(inputs(model), torch.Generator().manual_seed(0))
    logits(model, inputs(model))
    assert torch.equal(torch.get_rng_state(), before)


def check_calibration(cls: type[Any]) -> None:
    """It never makes the labels less likely, changes no ranking, and finds the temperature that was applied."""
    rng = np.random.default_rng(0)
    for model in both(cls):
        multilabel = model.config.multilabel
        for factor in (0.02, 1.0, 30.0):
            z = torch.from_numpy(rng.normal(size=(4000, 3))).float() * 2
            p = (z.sigmoid() if multilabel else z.softmax(dim=1)).numpy()
            draws = rng.random((4000, 3)) < p if multilabel else (p.cumsum(1) > rng.random((4000, 1))).argmax(axis=1)
            y = torch.from_numpy(draws.astype(np.int64))
            model.temperature.fill_(1)
            before = model.cross_entropy(z * factor, y)
            model.calibrate(z * factor, y)
            after = model.cross_entropy(z * factor / model.temperature, y)
            assert after <= before + 1e-6
            np.testing.assert_allclose(model.temperature.numpy(), factor, rtol=0.15)
        assert model.temperature.shape == ((3,) if multilabel else (1,))


def check_thresholds(cls: type[Any]) -> None:
    model = new(cls, multilabel=True)
    model.set_thresholds(np.array([0.0, 1.0, 0.25]))
    assert model.thresholds.tolist() == [0.0, 1.0, 0.25]
    for wrong in ([0.5], [0.5] * 4, [0.1, 0.2, 1.1], [0.1, -0.1, 0.2], [0.1, np.nan, 0.2], [[0.1, 0.2, 0.3]]):
        with pytest.raises(
            ValueError, match=r"Thresholds must be one number from 0 to 1 for each of \['T', 'B', 'tumour'\]"
        ):
            model.set_thresholds(wrong)
    assert model.thresholds.tolist() == [0.0, 1.0, 0.25]


def check_config(cls: type[Any]) -> None:
    """Fields that are unknown, lacking or out of range are errors, on loading, too."""
    config = new(cls).config
    known = {field.name for field in fields(config)}
    with pytest.raises(TypeError, match="colour"):
        cls.Config(CLASSES, colour="red")
    with pytest.raises(TypeError, match="classes"):
        cls.Config()
    for wrong in (("T",), (), ("T", "T")):
        with pytest.raises(ValueError, match="`classes` must hold at least 2 names, each once, got"):
            replace(config, classes=wrong)
    with pytest.raises(ValueError, match="`classes` must hold at least 1 names, each once, got"):
        replace(config, classes=(), multilabel=True)
    assert replace(config, classes=("T",), multilabel=True).classes == ("T",)
    for dropout in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="`dropout` must be at least 0 and below 1, got"):
            replace(config, dropout=dropout)
    assert set(new(cls).config_dict()) == known
    with tempfile.TemporaryDirectory() as folder:
        path = save(new(cls), f"{folder}/model") / "config.json"
        info = json.loads(path.read_text())
        info["config"]["colour"] = "red"
        path.write_text(json.dumps(info))
        with pytest.raises(ValueError, match=f"does not fit {cls.__name__} of this version .*colour"):
            load(path.parent)


def check_loss(cls: type[Any]) -> None:
    """A finite scalar with a gradient for every weight that training changes; validation draws nothing."""
    for model in both(cls):
        model.train()
        x, y = inputs(model), targets(multilabel=model.config.multilabel)
        loss = model.supervised_loss((x,), y, torch.Generator().manual_seed(0))
        assert loss.shape == ()
        assert torch.isfinite(loss)
        loss.backward()
        for name, weight in model.named_parameters():
            assert weight.grad is None or torch.isfinite(weight.grad).all(), name
        assert sum(int(w.grad is not None) for w in model.parameters()) > 0
        model.eval()
        with torch.no_grad():
            expected = model.cross_entropy(logits(model, x), y)
            torch.testing.assert_close(model.supervised_loss((x,), y, None), expected)


def check_training(cls: type[Any]) -> None:
    """The same seed gives the same bytes, whatever the global generators say, and leaves these alone."""
    for multilabel in (False, True):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        first = train(new(cls, multilabel=multilabel))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(6)
        again = train(new(cls, multilabel=multilabel))
        assert equal(first, again)
        assert first.history == again.history
        assert not equal(first, train(new(cls, multilabel=multilabel), seed=1))
        assert not equal(first, new(cls, multilabel=multilabel))
        assert not first.training
        assert [row["step"] for row in first.history] == [1, 2, 3, 4]
        assert json.loads(json.dumps(first.history)) == first.history


def check_resume(cls: type[Any]) -> None:
    """An interrupted training that goes on ends at the weights of an uninterrupted one."""
    expected = train(new(cls))
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(InterruptedError):
            train(new(cls), folder=folder, fail_at=8)  # in the third epoch of three readings each
        resumed = train(new(cls), folder=folder)
        assert equal(resumed, expected)
        assert resumed.history == expected.history
        with pytest.raises(ValueError, match="holds another training, stopped at step 4: seed was 0, is 3"):
            train(new(cls), folder=folder, seed=3)


CHECKS: dict[str, Any] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
"""Each check by its name."""
