"""What every encoder must hold, whatever is inside it. A new method is checked by being registered."""

from __future__ import annotations

import json
import pickle
import tempfile
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cytonym.learning.fit import OPTIMIZERS, fit
from cytonym.models import load, registry, save
from cytonym.models.base import Encoding, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from cytonym.models.base import CellEncoder

MARKERS = ["DNA", "CD3", "CD20", "PanCK"]
QUANTILES = [90.0, 12.0, 30.0, 5.0]
ROUNDING = {"embedding": 1e-5, "attributions": 1e-6, "features": 1e-6}
"""Relative to the largest value. An embedding may be many layers deep, which add up in another order in another batch."""


def new(cls: type[CellEncoder], seed: int = 0, quantiles: list[float] | None = None) -> CellEncoder:
    return cls.from_statistics(MARKERS, QUANTILES if quantiles is None else quantiles, seed=seed).eval()


def windows(model: CellEncoder, n: int = 6, seed: int = 0) -> Tensor:
    """Counts around each marker's brightness, with dark pixels among them."""
    rng = np.random.default_rng(seed)
    means = np.array(QUANTILES)[:, None, None] * rng.random((n, len(MARKERS), model.window_px, model.window_px)) ** 2
    return torch.from_numpy(rng.poisson(means).astype(np.float32))


def encoded(model: CellEncoder, pixels: Tensor) -> Encoding:
    with torch.inference_mode():
        return model.encode(pixels)


def views_of(model: CellEncoder, seed: int = 0, mean: float = 9.0) -> list[Tensor]:
    """Views of random windows, as training makes them."""
    side = model.recipe.views.source_px()
    raw = torch.from_numpy(np.random.default_rng(seed).poisson(mean, (8, len(MARKERS), side, side)))
    generator = torch.Generator().manual_seed(seed)
    return model.recipe.views.make(model.draw(raw, generator), generator)


def trained(cls: type[CellEncoder]) -> CellEncoder:
    """A few large steps away from the initial weights."""
    return _trained(cls.name)


@cache
def _trained(name: str) -> CellEncoder:
    cls: type[CellEncoder] = registry.get(name)
    model = new(cls).train()
    optimizer = OPTIMIZERS[cls.recipe.optimizer](model.parameters(), lr=max(0.05, cls.recipe.learning_rate))
    for step in range(5):
        optimizer.zero_grad()
        model.loss(views_of(model, step))["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def same(a: Encoding, b: Encoding, what: str, tolerance: float | None = None) -> None:
    for name, x, y in zip(Encoding._fields, a, b, strict=True):
        close(x, y, name, what, tolerance)


def close(a: Tensor, b: Tensor, name: str, what: str, tolerance: float | None = None) -> None:
    """A field of an encoding, equal but for so much of the largest value."""
    assert a.shape == b.shape, what
    if a.numel():
        largest, size = float((a - b).abs().max()), float(a.abs().max()) or 1.0
        assert largest <= (ROUNDING[name] if tolerance is None else tolerance) * size, (
            f"{what}: {name} differs by {largest}"
        )


def blocks(model: CellEncoder, encoding: Encoding) -> dict[str, Tensor]:
    """Fields that have a block of numbers for each marker, as [B, C, K], and the attributions as [B, C, 1]."""
    found = {name: getattr(encoding, name).unflatten(1, (len(model.markers), k)) for name, k in model.blocks.items()}
    return found | {"attributions": encoding.attributions[..., None]}


def check_shapes_and_types(cls: type[CellEncoder]) -> None:
    model = new(cls)
    assert registry.get(cls.name) is cls
    assert isinstance(cls.recipe, Recipe)
    assert model.markers == tuple(MARKERS)
    whole = encoded(model, windows(model))
    assert isinstance(whole, Encoding)
    for n in (1, 5):
        out = encoded(model, windows(model, n))
        assert out.embedding.shape == (n, whole.embedding.shape[1])
        assert out.attributions.shape == (n, len(MARKERS))
        assert out.features.shape[0] == n
        assert out.features.shape[1] % len(MARKERS) == 0
        assert {name: v.shape for name, v in blocks(model, out).items()}.keys() >= {*model.blocks, "attributions"}
    assert set(model.blocks) & {"features", "embedding"}, "no field has a block for each marker"
    for value in whole:
        assert value.dtype == torch.float32
        assert value.ndim == 2
        assert torch.isfinite(value).all()


def check_any_real_dtype(cls: type[CellEncoder]) -> None:
    model = new(cls)
    pixels = windows(model).clamp(max=255)
    expected = encoded(model, pixels)
    for dtype in (torch.uint8, torch.uint16, torch.int32, torch.float64):
        out = encoded(model, pixels.to(dtype))
        assert out.embedding.dtype == torch.float32
        same(expected, out, str(dtype), 1e-5)
    bright = encoded(model, torch.full_like(pixels, 65_535).to(torch.uint16))
    assert all(torch.isfinite(value).all() for value in bright)


def check_silent_marker_is_neutral(cls: type[CellEncoder]) -> None:
    """Its attribution is exactly zero, its block that of an empty window, and the other markers do not notice."""
    for model in (new(cls), trained(cls)):
        pixels = windows(model)
        full = blocks(model, encoded(model, pixels))
        empty = blocks(model, encoded(model, torch.zeros_like(pixels[:1])))
        for i in range(len(MARKERS)):
            silenced = pixels.clone()
            silenced[:, i] = 0
            out = encoded(model, silenced)
            others = [j for j in range(len(MARKERS)) if j != i]
            for name, block in blocks(model, out).items():
                nothing = block.clone()
                nothing[:, i], nothing[:, others] = empty[name][:, i], full[name][:, others]
                close(nothing, block, name, f"without {MARKERS[i]}")
            assert (out.attributions[:, i] == 0).all(), f"a silent {MARKERS[i]} has an attribution"
            assert (out.features.unflatten(1, (len(MARKERS), -1))[:, i] == 0).all(), (
                f"a silent {MARKERS[i]} has features"
            )
            assert torch.isfinite(out.embedding).all()


def check_attributions_rise_with_signal(cls: type[CellEncoder]) -> None:
    """More of a marker in the middle of the window, where the cell is, never means less of its attribution."""
    for model in (new(cls), trained(cls)):
        middle = slice(model.window_px // 2 - 1, model.window_px // 2 + 2)
        levels = []
        for factor in (0.0, 0.25, 0.5, 1.0, 2.0):
            pixels = torch.zeros(1, len(MARKERS), model.window_px, model.window_px)
            pixels[:, :, middle, middle] = factor * torch.tensor(QUANTILES)[None, :, None, None]
            levels.append(encoded(model, pixels).attributions[0])
        rises = torch.stack(levels).diff(dim=0)
        assert (rises >= -1e-6).all(), f"attributions fall: {levels}"
        assert (levels[-1] > levels[0]).all()


def check_marker_that_was_never_seen(cls: type[CellEncoder]) -> None:
    """No pixel above zero in training: silent whatever comes, and no division by zero."""
    model = new(cls, quantiles=[90.0, 0.0, 30.0, 5.0])
    out = encoded(model, windows(model))
    assert all(torch.isfinite(value).all() for value in out)
    assert (out.attributions[:, 1] == 0).all()
    assert (out.attributions[:, [0, 2, 3]] > 0).any(dim=0).all()


def check_markers_are_independent_until_the_end(cls: type[CellEncoder]) -> None:
    """By gradient: block and attribution of a marker see this marker alone, and do see it."""
    for model in (new(cls), trained(cls)):
        pixels = windows(model, 3).requires_grad_()
        for name, block in blocks(model, model.encode(pixels)).items():
            for i in range(len(MARKERS)):
                (gradient,) = torch.autograd.grad(block[:, i].square().sum(), pixels, retain_graph=True)
                strength = gradient.abs().sum(dim=(0, 2, 3))
                assert strength[i] > 0, f"{name} of {MARKERS[i]} ignore it"
                strength[i] = 0
                assert (strength == 0).all(), f"{name} of {MARKERS[i]} see other markers"


def check_cells_are_independent(cls: type[CellEncoder]) -> None:
    for model in (new(cls), trained(cls)):
        pixels = windows(model, 7)
        whole = encoded(model, pixels)
        order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
        same(Encoding(*(value[order] for value in whole)), encoded(model, pixels[order]), "other order")
        single = [encoded(model, pixels[i : i + 1]) for i in range(7)]
        same(whole, Encoding(*(torch.cat(values) for values in zip(*single, strict=True))), "one by one")


def check_unit_of_intensity_is_free(cls: type[CellEncoder]) -> None:
    """Counts, 8 and 16 bit and [0, 1] are the same image to a model made for them."""
    model = new(cls)
    pixels = windows(model)
    expected = encoded(model, pixels)
    for factor in (1 / 255, 200.0):
        other = new(cls, quantiles=[q * factor for q in QUANTILES])
        same(expected, encoded(other, pixels * factor), f"times {factor}", 1e-4)


def check_same_seed_same_weights(cls: type[CellEncoder]) -> None:
    first, again, other = new(cls), new(cls), new(cls, seed=1)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in first.state_dict().items())
    assert all(torch.isfinite(value).all() for value in first.state_dict().values())


def check_global_generators_are_left_alone(cls: type[CellEncoder]) -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    model = new(cls)
    encoded(model, windows(model))
    model.train().loss(views_of(model))
    if cls.any_panel:
        model.for_panel(["CD4", *MARKERS], [1.0] * 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == numpy_before  # noqa: NPY002


def check_save_and_load(cls: type[CellEncoder]) -> None:
    model = new(cls)
    model.history = [{"step": 1, "loss": 2.5}]
    model.provenance = {"seed": 0}
    pixels = windows(model)
    with tempfile.TemporaryDirectory() as folder:
        again = load(save(model, f"{folder}/model"))
    assert type(again) is cls
    assert (again.markers, again.config, again.history) == (model.markers, model.config, model.history)
    same(encoded(model, pixels), encoded(again, pixels), "loaded", 0.0)
    same(encoded(model, pixels), encoded(pickle.loads(pickle.dumps(model)), pixels), "sent to a worker", 0.0)
    assert cls.config_from_dict(json.loads(json.dumps(model.config_dict()))) == model.config


def check_loss(cls: type[CellEncoder]) -> None:
    """A scalar to minimise, parts to log, and a gradient for every weight."""
    model = new(cls).train()
    parts = model.loss(views_of(model))
    assert "loss" in parts
    for name, part in parts.items():
        assert part.shape == (), name
        assert torch.isfinite(part), name
        assert part.requires_grad == (name == "loss"), f"{name}: only the loss carries a gradient"
    parts["loss"].backward()  # type: ignore[no-untyped-call]
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(weight.grad).all(), name


def check_normalization(cls: type[CellEncoder]) -> None:
    curves = new(cls, quantiles=[90.0, 0.0, 30.0, 5.0]).normalization()
    assert set(curves) in (set(), {"center", "slope"})
    for values in curves.values():
        assert values.shape == (len(MARKERS),)
        assert np.isfinite(values).all()


def check_training_windows(cls: type[CellEncoder]) -> None:
    """What a step takes of its windows: float, one row a cell, decided by the generator alone; empty windows, too."""
    model = new(cls)
    views = views_of(model)
    assert len(views) == cls.recipe.views.n_views
    assert all(v.shape[0] == 8 and v.dtype == torch.float32 and torch.isfinite(v).all() for v in views)
    assert {v.shape[-1] for v in views} == set(cls.recipe.views.window_px)
    assert all(torch.equal(a, b) for a, b in zip(views, views_of(model), strict=True))
    assert torch.isfinite(model.train().loss(views_of(model, mean=0.0))["loss"])


def check_training(cls: type[CellEncoder]) -> None:
    """The same seed gives the same bytes, also after an interrupt."""
    recipe = replace(cls.recipe, steps=4, batch_size=6)
    side = recipe.views.source_px()

    def batches(start: int, stop: int = 4) -> Iterator[Tensor]:
        for step in range(start, stop):
            yield torch.from_numpy(np.random.default_rng(step).poisson(9, (6, len(MARKERS), side, side))).float()

    def train(data: Any = batches, **arguments: Any) -> CellEncoder:
        given: dict[str, Any] = {"seed": 0, "device": "cpu", "progress": False} | arguments
        return fit(new(cls), data, recipe, **given)

    first = train()
    assert not first.training
    assert [row["step"] for row in first.history] == [1, 2, 3, 4]
    states = [train().state_dict()]
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(ValueError, match="The data ended after 2 batches"):
            train(lambda start: batches(start, 2), checkpoint_dir=folder, checkpoint_every=2)
        states.append(train(checkpoint_dir=folder).state_dict())
    for state in states:
        assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())
    assert any(not torch.equal(value, new(cls).state_dict()[key]) for key, value in first.state_dict().items())


def check_sizes(cls: type[CellEncoder]) -> None:
    """A size in pixels of the image is met, or nearly where pixels are binned, and never exceeded."""
    for side in (16, 33, 64, 130):
        config = cls.sized(cls.Config(), side)
        model = cls.from_statistics(MARKERS, QUANTILES, config).eval()
        assert side - model.binning < model.window_px <= side
        assert model.window_px == config.window_px * model.binning
        assert encoded(model, windows(model, 2)).attributions.shape == (2, len(MARKERS))
    for pixel_size in (0.2, 0.377, 0.5, 1.0, 2.0):
        binning = cls(MARKERS, cls.adapted(cls.Config(), pixel_size)).binning
        assert binning == 1 or 0.3 <= binning * pixel_size <= 1.25


def check_names_of_markers(cls: type[CellEncoder]) -> None:
    for wrong in ([], ["DNA", "CD3", "DNA"]):
        with pytest.raises(ValueError, match=r"A model needs at least one marker and every name once, got \["):
            cls(wrong, cls.Config())


def check_any_panel(cls: type[CellEncoder]) -> None:
    """Markers that are known keep their scale, others get theirs from the data, and blocks come in the order of markers."""
    if not cls.any_panel:
        with pytest.raises(TypeError, match=r"is bound to its markers \['DNA', 'CD3', 'CD20', 'PanCK'\]"):
            new(cls).for_panel(["CD4"], [1.0])
        return
    for model in (new(cls), trained(cls)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        pixels = windows(model)
        expected = blocks(model, encoded(model, pixels))
        order = [2, 0, 3, 1]
        turned = model.for_panel([MARKERS[i] for i in order], [0.0] * 4)
        for name, found in blocks(turned, encoded(turned, pixels[:, order])).items():
            close(expected[name][:, order], found, name, "markers in another order")
        other = model.for_panel(["CD20", "CD4", "DNA"], [1000.0, 7.0, 1000.0])
        assert (other.markers, other.config, other.training) == (("CD20", "CD4", "DNA"), model.config, False)
        as_cd3 = pixels[:, 1] * 7 / QUANTILES[1]
        there = torch.stack([pixels[:, 2], as_cd3, pixels[:, 0]], dim=1)
        for name, value in blocks(other, encoded(other, there)).items():
            close(expected[name][:, [2, 1, 0]], value, name, "another panel", 1e-5)  # pixels are rounded anew
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        with pytest.raises(ValueError, match="`quantiles` must hold one number >= 0 for each of the 2 markers"):
            model.for_panel(["CD4", "CD8"], [1.0])


CHECKS: dict[str, Any] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
"""Each check by its name."""


def check_encoder(cls: type[CellEncoder]) -> None:
    """All checks."""
    for check in CHECKS.values():
        check(cls)
