"""CLEAR-IT: the published program's numbers, its files, and what is particular to this encoder."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cytonym.data.patches import bin_pixels
from cytonym.learning.fit import learning_rate
from cytonym.learning.losses import ntxent
from cytonym.models.classifier import CellClassifier
from cytonym.models.clearit import CLEARIT_TNBC1, CLEARIT_TNBC2, ClearIT, ClearITConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch.set_num_threads(1)
SMALL = ClearITConfig(window_px=16, features=8, projector=(16,), projection_dim=8)
GAINS = {"main_backbone.fc.weight": 0.1}
SIZES = [512, 32]
Weights = dict[str, Tensor]


@pytest.fixture
def numbers(parity: Any) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    inputs, outputs = parity("clearit_encoder")
    return {name: torch.from_numpy(value) for name, value in inputs.items()}, outputs


@pytest.fixture
def encoder_weights(published_weights: Any) -> Callable[[int], Weights]:
    return lambda features: published_weights("clearit_encoder", f"encoder_F{features}", GAINS)


def written(weights: Weights, folder: Path, name: str = "enc.pt") -> Path:
    torch.save(weights, folder / name)
    return folder / name


def agrees(found: Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-4)


# --- the published program ---


@pytest.mark.parametrize("features", SIZES)
def test_features_of_three_channels(numbers, encoder_weights, tmp_path, features):
    x, y = numbers
    model = ClearIT.from_published(written(encoder_weights(features), tmp_path))
    assert (model.config.features, model.config.input_channels) == (features, 3)
    agrees(model.main_backbone(x["x3"]), y[f"feat3_F{features}"])
    grey = model.describe(x["x3"][:, :1])
    agrees(grey, y[f"feat1_F{features}"])
    agrees(model.project(model.main_backbone(x["x3"])), y[f"proj3_F{features}"])


@pytest.mark.parametrize("features", SIZES)
def test_features_of_one_channel(numbers, encoder_weights, tmp_path, features):
    x, y = numbers
    weights = encoder_weights(features)
    weights["main_backbone.conv1.weight"] = weights["main_backbone.conv1.weight"].sum(dim=1, keepdim=True)
    model = ClearIT.from_published(written(weights, tmp_path))
    assert model.config.input_channels == 1
    agrees(model.describe(x["x3"][:, :1]), y[f"feat1_F{features}"])


@pytest.mark.parametrize("projector", [True, False])
def test_without_a_last_layer(numbers, encoder_weights, tmp_path, projector):
    """And, as in published files, without the projector."""
    x, y = numbers
    weights = {k: v for k, v in encoder_weights(512).items() if ".fc." not in k and (projector or "mlp" not in k)}
    model = ClearIT.from_published(written(weights, tmp_path))
    assert model.config.features == 0
    assert model.blocks == {"embedding": 512}
    agrees(model.main_backbone(x["x3"]), y["pooled3_F512"])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize("features", SIZES)
def test_the_embedding_is_all_channels_side_by_side(numbers, encoder_weights, tmp_path, features):
    x, y = numbers
    markers = ["CK", "CD3", "CD8", "CD20", "CD56"]
    model = ClearIT.from_published(written(encoder_weights(features), tmp_path), markers, scale=200)
    with torch.inference_mode():
        found = model.encode(x["x5"] * 200)
    agrees(found.embedding, y[f"concat_F{features}"])
    assert found.features.shape == (2, 0)


@pytest.mark.parametrize("features", SIZES)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("prefix", ["head.", ""])
def test_heads(numbers, published_weights, tmp_path, features, kind, prefix):
    """Old files lack the prefix of the keys."""
    _, y = numbers
    weights = published_weights("clearit_encoder", f"head_{kind}_F{features}")
    weights = {prefix + key.removeprefix("head."): value for key, value in weights.items()}
    model = CellClassifier.from_published(written(weights, tmp_path, "head.pt"))
    assert model.config.hidden == {"linear": (), "mlp": (128, 64)}[kind]
    assert not model.training
    logits = model(torch.from_numpy(y[f"concat_F{features}"]))
    agrees(logits, y[f"logits_{kind}_F{features}"])
    agrees(model.probabilities(logits), y[f"sigmoid_{kind}_F{features}"])


@pytest.mark.parametrize(("features", "count"), [(512, 11_439_168), (32, 11_192_928)])
def test_number_of_weights(features, count):
    model = ClearIT(["DNA"], ClearITConfig(features=features, input_channels=3))
    assert sum(w.numel() for w in model.main_backbone.parameters() if w.requires_grad) == count
    if features == 512:
        assert sum(w.numel() for w in model.mlp.parameters()) == 856_960


def test_keys_are_the_published_ones(encoder_weights):
    model = ClearIT(["DNA"], ClearITConfig(features=32, input_channels=3))
    published = encoder_weights(32)
    assert {k: v.shape for k, v in model.state_dict().items() if k != "gain"} == {
        k: v.shape for k, v in published.items()
    }


def test_the_loss_sums_over_both_views():
    model = ClearIT.from_statistics(["DNA"], [1.0], SMALL).train()
    views = [torch.rand(6, 1, 16, 16), torch.rand(6, 1, 16, 16)]
    z = model.project(model.describe(torch.cat(views)))
    expected = 2 * ntxent([z[:6], z[6:]], 0.05)
    torch.testing.assert_close(model.loss(views)["loss"], expected)


def test_recipes_are_the_published_ones():
    for recipe, windows, batch, rate in ((CLEARIT_TNBC1, 819_200, 256, 0.3), (CLEARIT_TNBC2, 409_600, 1024, 1.2)):
        assert recipe.steps * recipe.batch_size == 5 * windows
        assert (recipe.batch_size, recipe.optimizer, recipe.weight_decay) == (batch, "lars", 0)
        assert {learning_rate(recipe, step) for step in (1, 2, recipe.steps // 2, recipe.steps)} == {rate}
        views: Any = recipe.views
        assert (views.window_px, views.views_per_size, views.source_px()) == ((64,), 2, 78)
        assert np.sqrt(views.zoom) == pytest.approx([0.8165, 1.1547], abs=1e-4)
        assert (views.blur_px, views.translation_px) == (0, 0)
        jitter = 0.5 if recipe is CLEARIT_TNBC2 else 0
        assert (views.brightness, views.contrast) == (jitter, jitter)
    assert ClearIT.recipe.views.window_px == (ClearITConfig().window_px,)
    assert (ClearITConfig().temperature, ClearITConfig().projector, ClearITConfig().projection_dim) == (
        0.05,
        (512,) * 3,
        128,
    )


# --- what is particular ---


@pytest.mark.parametrize("binning", [2, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_binning_is_a_mean_over_squares(binning, dtype):
    model = ClearIT.from_statistics(["DNA", "CD8"], [3.0, 8.0], replace(SMALL, binning=binning), seed=1).eval()
    plain = ClearIT(["DNA", "CD8"], SMALL).eval()
    plain.load_state_dict(model.state_dict())
    assert (model.window_px, plain.window_px) == (16 * binning, 16)
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (3, 2, 16 * binning, 16 * binning))).to(dtype)
    binned = torch.from_numpy(bin_pixels(windows.numpy(), binning))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode(windows).embedding, plain.encode(binned).embedding)
        torch.testing.assert_close(model.encode(windows).attributions, plain.encode(binned).attributions)


@pytest.mark.parametrize(
    ("side", "window_px", "binning"),
    [(8, 8, 1), (32, 32, 1), (64, 64, 1), (80, 80, 1), (100, 50, 2), (128, 64, 2), (129, 64, 2), (200, 66, 3)],
)
def test_the_size_asked_for(side, window_px, binning):
    config = ClearIT.sized(replace(SMALL, features=16), side)
    assert (config.window_px, config.binning, config.features) == (window_px, binning, 16)


@pytest.mark.parametrize(
    ("pixel_size", "window_px", "binning"),
    [(0.1, 64, 5), (0.2, 64, 2), (0.25, 64, 2), (0.377, 64, 1), (0.5, 64, 1), (0.65, 48, 1), (1.0, 32, 1), (2.0, 16, 1), (9.0, 16, 1)],
)  # fmt: skip
def test_pixels_of_any_size(pixel_size, window_px, binning):
    config = ClearIT.adapted(ClearITConfig(), pixel_size)
    assert (config.window_px, config.binning) == (window_px, binning)


def test_each_marker_has_its_own_scale_unless_one_is_given():
    model = ClearIT.from_statistics(["DNA", "CD8", "absent"], [90.0, 10.0, 0.0], SMALL)
    torch.testing.assert_close(model.gain, torch.tensor([1 / 360, 1 / 40, 0]))
    model = ClearIT.from_statistics(["DNA", "CD8", "absent"], [90.0, 10.0, 0.0], replace(SMALL, scale=265.0))
    torch.testing.assert_close(model.gain, torch.full((3,), 1 / 265))


@pytest.mark.parametrize("side", [16, 32, 64])  # the last two have a faster form on a CPU
@pytest.mark.parametrize("input_channels", [1, 3])
def test_one_window_after_the_other_through_the_network(side, input_channels):
    """The embedding is the plain network's, also of windows without signal, which are not sent through it."""
    config = replace(SMALL, window_px=side, input_channels=input_channels)
    model = ClearIT.from_statistics(["DNA", "CD8", "CD20"], [9.0, 9.0, 0.0], config, seed=2).eval()
    windows = torch.from_numpy(np.random.default_rng(0).poisson(5, (4, 3, side, side)).astype("f4"))
    windows[1, 0] = 0
    windows[2] = 0
    with torch.inference_mode():
        found = model.encode(windows)
        for b in range(4):
            channels = windows[b].expand(input_channels, -1, -1, -1).transpose(0, 1)
            blocks = [model.main_backbone(channels[c][None] * model.gain[c]) for c in range(3)]
            torch.testing.assert_close(found.embedding[b], torch.cat(blocks, dim=1)[0], rtol=1e-5, atol=1e-5)
        nothing = model.encode(torch.zeros(2, 3, side, side))
    assert (nothing.attributions == 0).all()
    assert torch.equal(nothing.embedding[0], nothing.embedding[1])


def test_attributions_are_the_first_layers_change_around_the_centre():
    model = ClearIT.from_statistics(["DNA"], [1.0], SMALL, seed=3).eval()
    for side in (16, 15, 24, 32):  # any size that the network is given
        windows = torch.rand(2, 1, side, side)
        with torch.inference_mode():
            stem = model.main_backbone.stem(windows * model.gain[0]) - model.main_backbone.stem(
                torch.zeros(2, 1, side, side)
            )
            found = model.encode(windows).attributions
        positions = [2 * i for i in range(stem.shape[-1])]
        weights = np.array(
            [[np.exp(-((y - side // 2) ** 2 + (x - side // 2) ** 2) / 18) for x in positions] for y in positions]
        )
        seen = stem.abs().mean(dim=1).numpy()
        expected = (seen * weights).sum(axis=(1, 2)) / weights.sum()
        np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("side", [16, 32])
def test_the_same_with_and_without_gradients(side):
    """Also when the weights have changed since."""
    model = ClearIT.from_statistics(["DNA", "CD8"], [3.0, 8.0], replace(SMALL, window_px=side), seed=1).eval()
    windows = torch.from_numpy(np.random.default_rng(0).poisson(5, (5, 2, side, side)).astype("f4"))
    optimizer = torch.optim.Adam(model.main_backbone.parameters(), lr=1e-3)
    seen = []
    for _ in range(3):
        found = model.encode(windows)
        with torch.no_grad():
            again = model.encode(windows)
        torch.testing.assert_close(again.embedding, found.embedding.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.attributions, found.attributions.detach(), rtol=1e-4, atol=1e-6)
        seen.append(again.embedding)
        optimizer.zero_grad()
        found.embedding.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert not torch.allclose(seen[0], seen[1])
    model.train().loss([torch.rand(4, 1, side, side)] * 2)  # running statistics
    model.eval()
    with torch.no_grad():
        assert not torch.equal(model.encode(windows).embedding, seen[2])


def test_attributions_are_of_the_cell_in_the_middle():
    model = ClearIT.from_statistics(["DNA"], [1.0], replace(SMALL, window_px=32)).eval()
    windows = torch.zeros(2, 1, 32, 32)
    windows[0, 0, 15:18, 15:18] = 1
    windows[1, 0, 2:5, 2:5] = 1
    with torch.inference_mode():
        middle, corner = model.encode(windows).attributions[:, 0].tolist()
    assert middle > 1000 * corner
    levels = torch.stack([windows[0] * 10.0**power for power in range(-6, 7)])
    with torch.inference_mode():
        assert (model.encode(levels).attributions[:, 0].diff() > 0).all()


def test_draw_takes_one_channel_with_signal():
    model = ClearIT.from_statistics(["DNA", "CD8", "CD20"], [1.0, 2.0, 4.0], SMALL)
    windows = torch.zeros(3000, 3, 4, 4, dtype=torch.uint16)
    windows[:, 0, 0, 0], windows[:, 2, 0, 0] = 4, 16
    windows[:5] = 0
    found = model.draw(windows, torch.Generator().manual_seed(0))
    assert found.shape == (3000, 1, 4, 4)
    assert (found[:5] == 0).all()
    assert (found[5:, 0, 0, 0] == 1).all()  # each divided by 4 times its quantile
    marked = windows.float() + torch.tensor([0.0, 1e4, 1e6])[None, :, None, None] * (windows.float() > 0)
    again = model.draw(marked, torch.Generator().manual_seed(0))
    assert 0.45 < float((again[5:, 0, 0, 0] > 1).float().mean()) < 0.55  # both as often
    assert torch.equal(found, model.draw(windows, torch.Generator().manual_seed(0)))


def test_windows_that_hardly_vary_are_not_drawn():
    model = ClearIT.from_statistics(["DNA", "CD8"], [0.25, 0.25], replace(SMALL, least_std=0.1))
    windows = torch.zeros(50, 2, 8, 8)
    windows[:, 0] = 5.0 + 0.05 * torch.rand(50, 8, 8)
    windows[:, 1] = torch.rand(50, 8, 8)
    found = model.draw(windows, torch.Generator().manual_seed(0))[:, 0]
    torch.testing.assert_close(found, windows[:, 1])


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 16, 16), (4, 2, 16, 15), (2, 16, 16)])
def test_windows_of_another_shape_are_refused(shape):
    model = ClearIT.from_statistics(["DNA", "CD8"], [3.0, 8.0], SMALL).eval()
    message = f"Expected square windows [B, 2, S, S], got {list(shape)}."
    with pytest.raises(ValueError, match=re.escape(message)):
        model.encode(torch.rand(shape))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window_px": 7}, "`window_px` must be a whole number of at least 8, got 7."),
        ({"window_px": 16.5}, "`window_px` must be a whole number of at least 8, got 16.5."),
        ({"binning": 0}, "`binning` must be a whole number of at least 1, got 0."),
        ({"features": -1}, "`features` must be a whole number of at least 0, got -1."),
        ({"input_channels": True}, "`input_channels` must be a whole number of at least 1, got True."),
        ({"scale": 0}, "`scale` must be positive, got 0."),
        ({"scale": float("nan")}, "`scale` must be positive, got nan."),
        ({"scale": float("inf")}, "`scale` must be positive, got inf."),
    ],
)
def test_impossible_configs(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClearITConfig(**wrong)


@pytest.mark.parametrize("quantiles", [[1.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf], [1.0, 2.0, 3.0]])
def test_impossible_quantiles(quantiles):
    with pytest.raises(ValueError, match="`quantiles` must hold one number >= 0 for each of the 2 markers, got"):
        ClearIT.from_statistics(["DNA", "CD8"], quantiles, SMALL)
