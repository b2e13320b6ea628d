"""The training of DeepLIIF: its recipe, what a step sees, the best weights so far."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch

from cytonym.learning.fit_gan import linear_rate
from cytonym.learning.gan_losses import GanWeights
from cytonym.models import (
    DEEPLIIF_RECIPE,
    SMALL_DEEPLIIF,
    TRANSLATOR_RECIPE,
    DeepLIIF,
    DeepLIIFConfig,
    TranslatorRecipe,
)
from cytonym.models.deepliif import PAPER_WEIGHTS, PUBLISHED_MODALITIES
from cytonym.models.translation import scaled
from cytonym.models.translator_training import TranslatorTraining

torch.set_num_threads(1)
CONFIG = DeepLIIFConfig(filters=2, blocks=1, depth=3, discriminator_filters=2, discriminator_layers=2, tile_px=16)
RECIPE = TranslatorRecipe(4, 2, judge_every=2)


def tiles(n: int = 3, planes: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, planes, 16, 16), generator=generator, dtype=torch.uint8)


def training(
    recipe: TranslatorRecipe = RECIPE, names: tuple[str, ...] = ("DAPI",), **arguments: Any
) -> TranslatorTraining:
    return TranslatorTraining(DeepLIIF.from_seed(names, CONFIG), recipe, **arguments)


def test_the_papers_recipe() -> None:
    recipe = DEEPLIIF_RECIPE
    assert recipe.steps == 200 * 709
    assert (recipe.learning_rate, recipe.betas, recipe.batch_size) == (2e-4, (0.5, 0.999), 1)
    assert (recipe.gan, recipe.reconstruction, recipe.perceptual, recipe.smoothing) == (1, 100, 0, 0)
    assert (recipe.turns, recipe.jitter) == (False, 0)
    assert linear_rate(recipe, 100 * 709) == 2e-4
    assert linear_rate(recipe, 150 * 709) == pytest.approx(1e-4, rel=1e-4)
    assert 0 < linear_rate(recipe, recipe.steps) < 1e-8
    model = DeepLIIF.from_seed(PUBLISHED_MODALITIES, CONFIG)
    assert recipe.weights(model) == GanWeights(PAPER_WEIGHTS, (0.2,) * 5, (0.2,) * 5, perceptual=0.0)


def test_the_small_preset_is_small() -> None:
    model = DeepLIIF.from_seed(PUBLISHED_MODALITIES, SMALL_DEEPLIIF)
    assert sum(p.numel() for p in model.parameters()) < 12e6
    assert SMALL_DEEPLIIF.norm == "tile"
    assert TRANSLATOR_RECIPE.gan == 1
    with pytest.raises(FrozenInstanceError):
        TRANSLATOR_RECIPE.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "`steps` must be a whole number"),
        ({"judge_every": 0}, "`judge_every` must be a whole number"),
        ({"learning_rate": 0}, "`learning_rate` must be positive"),
        ({"gan": -1}, "`gan` must be at least 0"),
        ({"jitter": float("nan")}, "`jitter` must be at least 0"),
        ({"gan": 0, "reconstruction": 0}, "One of `gan`, `reconstruction` and `perceptual`"),
        ({"constant": 1.5}, "`constant` must be a share"),
    ],
)
def test_recipes_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **changes)


# --- what a step sees ---


def test_all_images_of_a_tile_are_turned_alike() -> None:
    one = tiles()
    one[:, 3:] = one[:, :3].repeat(1, 2, 1, 1)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        source, real = training().draw(one, generator)
        assert torch.equal(source, real.segmentation)
        assert torch.equal(source, real.modalities[0])
        for tile, drawn in zip(scaled(one[:, :3]), source, strict=True):
            ways = [(m, k) for m in (0, 1) for k in range(4) if torch.equal(_turned(tile, m, k), drawn)]
            assert len(ways) == 1
            seen.add(ways[0])
    assert len(seen) == 8
    mirrored = training(replace(RECIPE, turns=False))
    for _ in range(5):
        source, _ = mirrored.draw(one, generator)
        for tile, drawn in zip(scaled(one[:, :3]), source, strict=True):
            assert torch.equal(drawn, tile) or torch.equal(drawn, tile.flip(-1))


def _turned(tile: torch.Tensor, mirror: int, quarters: int) -> torch.Tensor:
    return (tile.flip(-1) if mirror else tile).rot90(quarters, (-2, -1))


def test_jitter_changes_the_stained_image_alone() -> None:
    model, one = training(replace(RECIPE, jitter=0.2)), tiles(64)
    source, real = model.draw(one, torch.Generator().manual_seed(1))
    plain, same = training().draw(one, torch.Generator().manual_seed(1))
    assert torch.equal(real.segmentation, same.segmentation)
    assert all(torch.equal(a, b) for a, b in zip(real.modalities, same.modalities, strict=True))
    assert not torch.equal(source, plain)
    assert float(source.abs().max()) <= 1
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).repeat(64, 3, 8, 4)
    drawn = model.jittered(black_and_white, torch.Generator().manual_seed(1))
    assert (drawn[..., 0::2] == -1).all()
    assert float(drawn[..., 1::2].min()) > 0.5
    gray = torch.full((256, 3, 2, 2), 100, dtype=torch.uint8)
    density = -((model.jittered(gray, torch.Generator().manual_seed(2)) + 1) / 2).log() / -np.log(100 / 255)
    assert float(density.log().std()) == pytest.approx(0.23, abs=0.04)


def test_a_network_without_modalities() -> None:
    model = training(names=())
    batch = model.draw(tiles(planes=6), torch.Generator().manual_seed(0))
    made = model.make(batch)
    assert (batch.real.modalities, made.modalities) == ([], [])
    assert set(model.generator_loss(batch, made)) == {"loss", "gan_segmentation", "l1_segmentation"}
    assert set(model.discriminator_loss(batch, made)) == {"loss", "fake_segmentation", "real_segmentation"}


def test_the_perceptual_term() -> None:
    recipe = replace(RECIPE, perceptual=100.0)
    with pytest.raises(ValueError, match="needs `features`"):
        training(recipe)
    model = training(recipe, features=lambda x: [x] * 5)
    batch = model.draw(tiles(), torch.Generator().manual_seed(0))
    parts = model.generator_loss(batch, model.make(batch))
    assert "perceptual_DAPI" in parts
    assert "perceptual_segmentation" not in parts


# --- the best weights ---


def test_counts_choose_the_weights() -> None:
    counts = iter([(5, 5), (4, 5), (3, 3), (3, 2), (9, 9), (3, 3)])  # found, true: errors of 1 / √2, of 1 / √2 and of 6
    model = training(validation=[tiles(1)], count=lambda image: next(counts)).train()
    history = []
    for step in range(1, 7):
        torch.nn.init.constant_(next(model.network.parameters()), float(step))
        history.append(model.judge(step) if step not in (5, 6) else {})
        assert step % 2 or not model.network.training
    assert [bool(row) for row in history] == [False, True, False, True, False, False]
    assert history[1]["validation_count_error"] == pytest.approx(0.5**0.5)
    assert history[3] == history[1]
    model.judge(4)
    assert float(next(model.finished().parameters()).detach().flatten()[0]) == 2.0


def test_without_validation_the_last_weights_stay() -> None:
    model = training()
    torch.nn.init.constant_(next(model.network.parameters()), 7.0)
    assert model.judge(2) == {}
    assert float(next(model.finished().parameters()).detach().flatten()[0]) == 7.0
    assert not model.network.training


def test_the_last_step_is_always_judged() -> None:
    model = training(replace(RECIPE, steps=3), validation=[tiles(1)], count=lambda image: (0, 0))
    assert [bool(model.judge(step)) for step in (1, 2, 3)] == [False, True, True]
