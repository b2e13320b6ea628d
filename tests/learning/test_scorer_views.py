"""Variants of tiles: the same for the same generator, masks on their pixels, numbers in their ranges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cytonym.learning import scorer_views as module
from cytonym.learning.scorer_views import ScorerViews

torch.set_num_threads(1)
ALWAYS = ScorerViews(chance=1.0, gain=0.2)
QUIET = ScorerViews(chance=1.0, noise=(0, 0), blur=(0, 0), contrast=(1, 1))  # moves, but changes no pixel's value
STILL = replace(QUIET, zoom=(1, 1), shear_deg=0, elastic_px=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cells(n: int = 8, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Square cells far from the border: their number is also their marker, their mask and their target."""
    tiles = torch.zeros(n, 5, side, side)
    rng = np.random.default_rng(seed)
    for tile in tiles:
        for i, (y, x) in enumerate(((10, 10), (10, 26), (26, 10), (26, 26))):
            y, x = (int(v) for v in (y, x) + rng.integers(-2, 3, 2))
            box = (slice(y, y + 10), slice(x, x + 10))
            tile[0][box] = (i + 1) / 8
            tile[1][box] = 1
            tile[2][box] = i % 3
            tile[3][box] = i + 1
        tile[4] = float(rng.integers(0, 9))
    return tiles


def noise(n: int = 6, side: int = 24) -> torch.Tensor:
    x = torch.rand(n, 5, side, side, generator=generator(9))
    x[:, 2] = (3 * x[:, 2]).floor()
    x[:, 3] = (20 * x[:, 3]).floor()
    x[:, 1] = (x[:, 1] > 0.5).float()
    x[:, 4] = torch.arange(n).view(-1, 1, 1).float()
    return x


def test_same_generator_same_views():
    tiles = noise()
    before = tiles.clone()
    state = torch.get_rng_state()
    plain, found = ALWAYS.make(tiles, generator(3))
    assert plain is tiles
    assert torch.equal(tiles, before)
    assert torch.equal(found, ALWAYS.augment(tiles, generator(3)))
    assert not torch.equal(found, ALWAYS.augment(tiles, generator(4)))
    assert torch.equal(torch.get_rng_state(), state)


def turns(tile: torch.Tensor) -> list[torch.Tensor]:
    """The eight ways to lie of a square."""
    return [torch.rot90(t, k, (-2, -1)) for k in range(4) for t in (tile, tile.flip(-1))]


@pytest.mark.parametrize("views", [ScorerViews(chance=0.0), STILL])
def test_without_changes_only_turns_are_left(views):
    """All eight of them, masks and pixels alike."""
    tiles = noise(n=200, side=10)
    seen = set()
    for tile, found in zip(tiles, views.augment(tiles, generator()), strict=True):
        [place] = [k for k, turned in enumerate(turns(tile)) if torch.allclose(turned, found, atol=1e-5)]
        assert torch.equal(turns(tile)[place][1:], found[1:])
        seen.add(place)
    assert len(seen) == 8


@pytest.mark.parametrize("chance", [0.25, 1.0])
def test_masks_follow_their_pixels(chance):
    """Inside cells the marker still tells which cell it is; only at their borders pixels are blends."""
    tiles = cells(n=24)
    found = replace(QUIET, chance=chance, zoom=(0.7, 1.3), shear_deg=5, elastic_px=2.0).augment(tiles, generator(1))
    marker, interior, target, number, key = found.unbind(1)
    assert torch.equal(key, tiles[:, 4])
    assert torch.equal(interior, (number > 0).float())
    agree = (marker * 8 - number).abs() < 0.01
    edge = torch.nn.functional.max_pool2d(number[:, None], 3, 1, 1) + torch.nn.functional.max_pool2d(
        -number[:, None], 3, 1, 1
    )  # fmt: skip
    assert agree[edge[:, 0] == 0].all()
    for i in range(1, 5):
        here = number == i
        assert here.flatten(1).any(dim=1).all()
        assert (target[here] == (i - 1) % 3).all()
    if chance == 1:
        moved = (found[:, 3] > 0).flatten(1).sum(1).float()
        assert moved.std() > 20  # zoomed in and out
        assert 0.4 * 400 < moved.min() < moved.max() < 1.8 * 400


def test_masks_keep_their_values():
    found = ALWAYS.augment(noise(), generator())
    assert set(found[:, 1].unique().tolist()) <= {0.0, 1.0}
    assert set(found[:, 2].unique().tolist()) <= {0.0, 1.0, 2.0}
    assert (found[:, 3] == found[:, 3].round()).all()
    assert found[:, 3].max() < 20
    assert torch.equal(found[:, 4], noise()[:, 4])


@pytest.mark.parametrize("seed", range(5))
def test_pixels_stay_within_their_range(seed):
    views = ScorerViews(chance=1.0, noise=(0.5, 1.0), contrast=(0.1, 4.0), gain=2.0)
    pixels = views.augment(noise(), generator(seed))[:, 0]
    assert torch.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_each_step_happens_about_as_often_as_said():
    flat = torch.full((400, 5, 8, 8), 0.5)  # no move and no blur shows
    steps = {
        "noise": replace(STILL, chance=0.25, noise=(0.01, 0.02)),
        "contrast": replace(STILL, chance=0.25, contrast=(0.2, 0.5)),
    }
    changed = steps["noise"].augment(flat, generator())[:, 0].flatten(1).std(dim=1) > 1e-4
    assert 0.18 < changed.float().mean() < 0.32
    rough = flat.clone()
    rough[:, 0, ::2] = 0.9
    before = rough[:, 0].flatten(1).std(dim=1)
    changed = steps["contrast"].augment(rough, generator())[:, 0].flatten(1).std(dim=1) < 0.9 * before
    assert 0.18 < changed.float().mean() < 0.32


def test_noise_contrast_and_gain_are_of_the_size_said():
    flat = torch.full((300, 5, 16, 16), 0.5)
    spread = replace(STILL, noise=(0.02, 0.04)).augment(flat, generator())[:, 0].flatten(1).std(dim=1)
    assert 0.017 < spread.min() < 0.023
    assert 0.037 < spread.max() < 0.046
    rough = flat.clone()
    rough[:, 0, ::2] = 0.6
    found = replace(STILL, contrast=(0.5, 1.5)).augment(rough, generator())[:, 0].flatten(1)
    factor = found.std(dim=1) / rough[:, 0].flatten(1).std(dim=1)
    assert 0.5 <= factor.min() + 1e-4 < 0.53
    assert 1.47 < factor.max() <= 1.5 + 1e-4
    np.testing.assert_allclose(found.mean(dim=1), 0.55, atol=1e-5)
    gain = replace(STILL, gain=0.1).augment(flat, generator())[:, 0].flatten(1)
    assert (gain.std(dim=1) < 1e-6).all()
    assert 0.08 < float((gain[:, 0] / 0.5).log().std()) < 0.12


def test_blur_is_gaussian():
    x = torch.rand(3, 2, 30, 33, generator=generator())
    sigma = torch.tensor([0.7, 1.0, 2.0]).view(-1, 1, 1, 1)
    found = module._blurred(x, sigma)
    for i, s in enumerate((0.7, 1.0, 2.0)):
        for c in range(2):
            expected = gaussian_filter(x[i, c].numpy(), s, mode="mirror", radius=6)
            np.testing.assert_allclose(found[i, c], expected, atol=1e-5)
    tiny = module._blurred(x[..., :2, :2], sigma)  # hardly anything to mirror
    assert torch.isfinite(tiny).all()
    np.testing.assert_allclose(module._blurred(x, torch.zeros(3, 1, 1, 1)), x, atol=1e-6)


def test_elastic_deformation_moves_no_pixel_further_than_said():
    ramp = torch.zeros(12, 5, 40, 40)
    ramp[:, 0] = torch.linspace(0, 1, 40)
    views = replace(STILL, elastic_px=1.5)
    found = views.augment(ramp, generator(5))
    moved = []
    for tile in found:
        away = [(turned[0] - ramp[0, 0]).abs()[4:-4, 4:-4].max() * 39 for turned in turns(tile)]
        moved.append(float(min(away)))
    assert max(moved) <= 1.55
    assert max(moved) > 0.5
