"""What every method must hold, whatever is inside it. A new method is checked by being registered."""

from __future__ import annotations

import json
import pickle
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cytonym.learning.views import make_views
from cytonym.models import load, registry, save
from cytonym.models.base import Encoding, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from cytonym.models.base import CellEncoder

MARKERS = ["DNA", "CD3", "CD20", "PanCK"]
QUANTILES = [90.0, 12.0, 30.0, 5.0]


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


def trained(cls: type[CellEncoder]) -> CellEncoder:
    """A few large steps away from the initial weights."""
    model = new(cls).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    side = cls.recipe.views.source_px()
    for step in range(5):
        raw = torch.from_numpy(np.random.default_rng(step).poisson(9, (8, len(MARKERS), side, side)))
        optimizer.zero_grad()
        views = make_views(raw, cls.recipe.views, torch.Generator().manual_seed(step))
        model.loss(views)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def same(a: Encoding, b: Encoding, what: str, tolerance: float = 0.0) -> None:
    for name, x, y in zip(Encoding._fields, a, b, strict=True):
        largest = float((x - y).abs().max())
        assert largest <= tolerance * (float(x.abs().max()) or 1.0), f"{what}: {name} differs by {largest}"


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
    """Its attribution and features are exactly zero, and the other markers do not notice."""
    for model in (new(cls), trained(cls)):
        pixels = windows(model)
        full = encoded(model, pixels)
        for i in range(len(MARKERS)):
            silenced = pixels.clone()
            silenced[:, i] = 0
            out = encoded(model, silenced)
            per_marker, before = (e.features.unflatten(1, (len(MARKERS), -1)) for e in (out, full))
            others = [j for j in range(len(MARKERS)) if j != i]
            assert (out.attributions[:, i] == 0).all(), f"a silent {MARKERS[i]} has an attribution"
            assert (per_marker[:, i] == 0).all(), f"a silent {MARKERS[i]} has features"
            torch.testing.assert_close(out.attributions[:, others], full.attributions[:, others], rtol=0, atol=1e-6)
            torch.testing.assert_close(per_marker[:, others], before[:, others], rtol=0, atol=1e-6)
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
    """By gradient: features and attribution of a marker see this marker alone, and do see it."""
    for model in (new(cls), trained(cls)):
        pixels = windows(model, 3).requires_grad_()
        for i in range(len(MARKERS)):
            features = model.encode(pixels).features.unflatten(1, (len(MARKERS), -1))[:, i].sum()
            attribution = model.encode(pixels).attributions[:, i].sum()
            for name, value in (("features", features), ("attribution", attribution)):
                (gradient,) = torch.autograd.grad(value, pixels)
                strength = gradient.abs().sum(dim=(0, 2, 3))
                assert strength[i] > 0, f"{name} of {MARKERS[i]} ignore it"
                strength[i] = 0
                assert (strength == 0).all(), f"{name} of {MARKERS[i]} see other markers"


def check_cells_are_independent(cls: type[CellEncoder]) -> None:
    model = new(cls)
    pixels = windows(model, 7)
    whole = encoded(model, pixels)
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    same(Encoding(*(value[order] for value in whole)), encoded(model, pixels[order]), "other order", 1e-6)
    single = [encoded(model, pixels[i : i + 1]) for i in range(7)]
    same(whole, Encoding(*(torch.cat(values) for values in zip(*single, strict=True))), "one by one", 1e-6)


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
    pixels = windows(model)
    encoded(model, pixels)
    model.train().loss([pixels, pixels + 1])
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
    same(encoded(model, pixels), encoded(again, pixels), "loaded")
    same(encoded(model, pixels), encoded(pickle.loads(pickle.dumps(model)), pixels), "sent to a worker")
    assert cls.config_from_dict(json.loads(json.dumps(model.config_dict()))) == model.config


def check_loss(cls: type[CellEncoder]) -> None:
    """A scalar to minimise, parts to log, and a gradient for every weight."""
    recipe = cls.recipe
    model = new(cls).train()
    raw = torch.from_numpy(np.random.default_rng(0).poisson(9, (8, len(MARKERS), *[recipe.views.source_px()] * 2)))
    parts = model.loss(make_views(raw, recipe.views, torch.Generator().manual_seed(0)))
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


CHECKS: dict[str, Any] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
"""Each check by its name."""


def check_encoder(cls: type[CellEncoder]) -> None:
    """All checks."""
    for check in CHECKS.values():
        check(cls)
