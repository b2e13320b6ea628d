"""CellSighter: each step of its augmentation, and the mean over its members."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cytonym.models import cellsighter, resnet
from cytonym.models.cellsighter import CELLSIGHTER_SCHEDULE, COUNTS, CellSighter, CellSighterConfig
from cytonym.models.window_classifier import ALL_CELLS, THIS_CELL, count_gain, middle, turned

torch.set_num_threads(1)
PANEL = ["DNA", "CD3", ALL_CELLS, THIS_CELL]


@pytest.fixture(autouse=True)
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks; test_resnet.py has the large ones."""
    monkeypatch.setattr(resnet, "STAGES", (8, 8, 8, 8))
    monkeypatch.setattr(resnet, "DEPTHS", {50: (1, 1, 1, 1)})


def new(markers: list[str] = PANEL, quantiles: tuple[float, ...] = (50.0, 5.0), **changes: Any) -> CellSighter:
    config = CellSighterConfig(("T", "B", "other"), **({"window_px": 12, "shift_px": 2} | changes))
    return CellSighter.from_statistics(markers, quantiles, config, seed=0).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(n: int, side: int, radius: float) -> Tensor:
    """A disc around the centre pixel [n, side, side]."""
    at = torch.arange(side) - side // 2
    return (at[:, None] ** 2 + at**2 <= radius**2).float().expand(n, -1, -1)


def augmented(model: CellSighter, windows: Tensor, seed: int = 0) -> Tensor:
    """In counts; the network sees them in units of each marker's brightness."""
    return model.augment(windows, generator(seed)) / model.level[:, None, None]


# --- shapes ---


def test_the_published_shape(monkeypatch):
    monkeypatch.undo()
    config = CellSighterConfig(("T", "B"))
    assert (config.window_px, config.shift_px, config.members) == (60, 5, 1)
    model = CellSighter.from_statistics(PANEL, [50.0, 5.0], config)
    assert model.window_px == 60
    assert model.source_px < 128
    assert sum(w.numel() for w in model.models[0].parameters()) == 25_557_032 + (4 - 3) * 64 * 49 - 998 * 2049
    assert (CELLSIGHTER_SCHEDULE.epochs, CELLSIGHTER_SCHEDULE.learning_rate, CELLSIGHTER_SCHEDULE.balance) == (
        50,
        1e-3,
        True,
    )


@pytest.mark.parametrize("window_px", [12, 13, 60])
def test_shapes(window_px):
    model = new(window_px=window_px)
    for side in (model.source_px, model.source_px + 6, model.source_px + 7, window_px, window_px + 1):
        windows = torch.randint(0, 9, (5, 4, side, side), dtype=torch.uint8)
        found = model.augment(windows, generator())
        assert (found.shape, found.dtype) == ((5, 4, window_px, window_px), torch.float32)
    assert model.logits(windows[..., :window_px, :window_px]).shape == (5, 3)
    again = model.augment(windows, generator())
    assert torch.equal(found, again)
    assert not torch.equal(found, model.augment(windows, generator(1)))


@pytest.mark.parametrize(("window_px", "shift_px"), [(12, 2), (13, 2), (60, 5), (9, 0)])
def test_no_corner_is_empty(window_px, shift_px):
    """Whatever the angle and the shift, all is tissue; and no smaller source would do."""
    model = new(window_px=window_px, shift_px=shift_px)
    windows = torch.ones(3000 if window_px < 60 else 400, 4, model.source_px, model.source_px)
    windows[:, :2] = 1000
    found = augmented(model, windows)
    assert (found[:, 2:] == 1).all()
    assert found[:, 0].mean(dim=0).min() > 950
    assert model.source_px < 2 * (window_px // 2 + shift_px + 1) * math.sqrt(2) + 3


# --- one step after the other ---


def counts(n: int = 4000, **changes: Any) -> tuple[CellSighter, Tensor]:
    """Images with the same counts everywhere."""
    model = new(**changes)
    windows = torch.zeros(n, 4, model.source_px, model.source_px)
    windows[:, 0], windows[:, 1] = 40, 3
    return model, windows


def test_poisson_keeps_the_mean_and_has_its_variance():
    model, windows = counts()
    found = augmented(model, windows)
    for channel, mean in ((0, 40.0), (1, 3.0)):
        pixels = found[:, channel].double()
        assert float(pixels.mean()) == pytest.approx(mean, rel=0.01)
        assert float(pixels.var()) == pytest.approx(mean, rel=0.02)
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-4)
    assert (found[:, 2:] == 0).all()


def test_pixels_are_blurred_before_they_are_drawn(monkeypatch):
    monkeypatch.setattr(cellsighter, "_rotated", lambda x, angle: x)
    model, windows = counts(n=3000, shift_px=0, window_px=13)
    center = model.source_px // 2
    windows[:, 0] = 0
    windows[:, 0, center, center] = 1000
    drawn = augmented(model, windows)[:, 0].double().mean(dim=0).numpy()
    radius = np.hypot(*np.meshgrid(np.arange(13) - 6, np.arange(13) - 6))
    kernel = (
        np.exp(-0.5 * (radius / 1.1) ** 2)
        * (np.abs(np.arange(13) - 6) <= 2)
        * (np.abs(np.arange(13) - 6) <= 2)[:, None]
    )
    np.testing.assert_allclose(drawn, 1000 * kernel / kernel.sum(), atol=1.5)


def test_a_border_is_blurred_without_growing_dark():
    x = torch.rand(2, 3, 9, 9)
    found = cellsighter._blurred(x)
    line = np.exp(-0.5 * (np.arange(-2, 3) / 1.1) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    for b, c in np.ndindex(2, 3):
        expected = ndimage.convolve(x[b, c].double().numpy(), kernel, mode="mirror")
        np.testing.assert_allclose(found[b, c].numpy(), expected, rtol=1e-5)


def test_masks_stay_binary_and_grow_by_at_most_two_pixels():
    model, windows = counts(n=200)
    windows[:, 2] = disc(200, model.source_px, 4)
    windows[:, 3] = disc(200, model.source_px, 3)
    areas: list[set[int]] = [set(), set()]
    sizes = []
    for seed in range(12):
        found = augmented(model, windows, seed)[:, 2:]
        assert set(found.unique().tolist()) == {0.0, 1.0}
        for i in range(2):
            areas[i] |= set(found[:, i].sum(dim=(1, 2)).int().tolist())
        sizes.append(found[:, 1].sum(dim=(1, 2)).numpy())
    whole = float(disc(1, model.source_px, 3).sum())
    largest = float(F.max_pool2d(disc(1, model.source_px, 3), (5, 1), 1, (2, 0)).sum())
    found = np.concatenate(sizes)
    assert whole * 0.8 < found.min() <= whole  # less, where a turned disc is sampled or shifted out
    assert largest * 0.9 < found.max() <= largest * 1.15
    assert 0.35 < (found <= whole * 1.06).mean() < 0.65  # half of them did not grow


def test_kernels_of_growing_masks():
    mask = disc(1, 15, 2)
    for draw, length in ((0.1, 2), (0.5, 3), (0.9, 5)):
        found = cellsighter._grown(mask, lambda *_, value=draw: torch.tensor([value]))
        expected = ndimage.grey_dilation(mask[0].numpy(), footprint=np.ones((length, 1)))
        rows = [np.flatnonzero(a.any(axis=1)) for a in (found[0].numpy(), expected)]
        assert len(rows[0]) == len(rows[1]) == 5 + length - 1
        assert (found >= mask).all()
        assert found.sum() == expected.sum()
        assert torch.equal(found.any(dim=1), mask.any(dim=1))  # along columns only


def test_rotation_is_by_any_angle_about_the_centre():
    side = 31
    windows = torch.zeros(1, 1, side, side)
    windows[0, 0, 15, 27] = 1
    windows[0, 0, 15, 15] = 2
    angles = torch.linspace(0, 2 * math.pi, 73)[:-1]
    found = cellsighter._rotated(windows.expand(72, -1, -1, -1), angles)
    assert (found[:, 0, 15, 15] == 2).all()
    places = [np.argwhere(w[0].numpy() == 1) - 15 for w in found]
    seen = [np.degrees(np.arctan2(*p[0])) % 360 for p in places if len(p)]
    assert len(seen) > 55  # nearest pixel: now and then none is
    steps = np.diff(np.unwrap(np.radians(seen)))
    assert (np.sign(steps) == np.sign(steps[0])).all()  # once around
    assert abs(np.degrees(steps.sum())) > 340
    turned_back = [np.hypot(*p[0]) for p in places if len(p)]
    np.testing.assert_allclose(turned_back, 12, atol=1)
    quarter = cellsighter._rotated(windows, torch.tensor([math.pi / 2]))
    assert torch.equal(quarter, windows.rot90(-1, (2, 3))) or torch.equal(quarter, windows.rot90(1, (2, 3)))


def test_shifts_are_of_single_channels(monkeypatch):
    """Without the other steps: in half of the cells, a channel in three, by up to so many pixels."""
    monkeypatch.setattr(cellsighter, "_rotated", lambda x, angle: x)
    monkeypatch.setattr(cellsighter, "_blurred", lambda x: x)
    monkeypatch.setattr(cellsighter, "_grown", lambda mask, uniform: mask)
    monkeypatch.setattr(torch, "poisson", lambda x, generator: x)
    n = 6000
    model = new(window_px=15, quantiles=(100.0, 100.0))
    side, center = model.source_px, model.source_px // 2
    windows = torch.zeros(n, 4, side, side)
    windows[:, :, center, center] = 1
    found = augmented(model, windows)
    torch.testing.assert_close(found.sum(dim=(2, 3)), torch.ones(n, 4))
    place = found.flatten(2).argmax(dim=2).numpy()
    shift = np.stack([place // 15 - 7, place % 15 - 7], axis=-1)  # an odd window: mirroring keeps its centre
    assert np.abs(shift).max() == 2
    moved = (shift != 0).any(axis=2)
    expected = 0.5 * 0.3 * (1 - 1 / 25)
    np.testing.assert_allclose(moved.mean(axis=0), expected, atol=0.015)  # masks included
    assert moved.any(axis=1).mean() == pytest.approx(0.5 * (1 - (1 - 0.288) ** 4), abs=0.02)
    both = moved[:, 0] & moved[:, 1]
    assert both.mean() == pytest.approx(0.5 * 0.288**2, abs=0.01)  # half of the cells have any at all
    again = shift[both]
    assert (again[:, 0] != again[:, 1]).any()
    values, numbers = np.unique(shift[moved][:, 0], return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert numbers.min() > 0.7 * numbers.mean()


def test_mirror_images(monkeypatch):
    monkeypatch.setattr(cellsighter, "_rotated", lambda x, angle: x)
    monkeypatch.setattr(cellsighter, "_blurred", lambda x: x)
    monkeypatch.setattr(torch, "poisson", lambda x, generator: x)
    model = new(shift_px=0, quantiles=(100.0, 100.0))
    windows = torch.zeros(4000, 4, model.source_px, model.source_px)
    image = torch.rand(12, 12)
    first = model.source_px // 2 - 6
    windows[:, 0, first : first + 12, first : first + 12] = image
    found = augmented(model, windows)[:, 0]
    kinds = [image, image.flip(0), image.flip(1), image.flip(0, 1)]
    share = [float(((found - kind).abs() < 1e-5).all(dim=2).all(dim=1).float().mean()) for kind in kinds]
    np.testing.assert_allclose(share, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.03)


def test_small_images_get_zeros_around():
    """An image smaller than `source_px`: the middle is as it would be, what lies beyond is empty."""
    model, windows = counts(n=50)
    inner = middle(windows, model.window_px)
    around = torch.zeros_like(windows)
    first = model.source_px // 2 - model.window_px // 2
    around[..., first : first + model.window_px, first : first + model.window_px] = inner
    assert torch.equal(model.augment(inner, generator()), model.augment(around, generator()))


# --- the rest ---


def test_counts_keep_their_unit():
    assert count_gain([50.0, 3.0, 0.0], ["a", "b", "c"], 10).tolist() == [1, 1, 1]
    np.testing.assert_allclose(count_gain([0.5, 0.02, 0.0], ["a", "b", "c"], 10), [20, 500, 1], rtol=1e-6)
    np.testing.assert_allclose(count_gain([5000.0, 40.0], ["a", "b"], 10), [0.002, 0.25], rtol=1e-6)
    assert count_gain([0.0], ["a"], 10).tolist() == [1]
    with pytest.raises(ValueError, match="`quantiles` must hold one number for each of the 2 markers, got 1"):
        count_gain([1.0], ["a", "b"], 10)


def test_the_network_sees_each_marker_in_units_of_its_brightness():
    for quantiles in ((0.5, 0.1), (50.0, 5.0), (1e4, 3e4), (2.0, 0.0)):
        model = new(quantiles=quantiles)
        assert model.gain.tolist()[2:] == model.level.tolist()[2:] == [1, 1]
        seen = model.gain[:2] * model.level[:2] * torch.tensor(quantiles)
        torch.testing.assert_close(seen, (torch.tensor(quantiles) > 0).float())
        x = torch.rand(2, 4, 12, 12)
        torch.testing.assert_close(model.logits(x), model.models[0](x * (model.gain * model.level)[:, None, None]))
    counts = new(quantiles=(0.5, 0.1)).gain[:2] * torch.tensor([0.5, 0.1])
    torch.testing.assert_close(counts, torch.full((2,), COUNTS))


@pytest.mark.parametrize("multilabel", [False, True])
def test_members_are_averaged(multilabel):
    model = new(members=3, multilabel=multilabel)
    x = torch.rand(5, 4, 12, 12) * 50
    with torch.no_grad():
        single = [m(x * (model.gain * model.level)[:, None, None]) for m in model.models]
    expected = torch.stack([z.sigmoid() if multilabel else z.softmax(dim=1) for z in single]).mean(dim=0)
    torch.testing.assert_close(model.probabilities(model.logits(x)), expected, rtol=1e-4, atol=1e-5)
    assert float((single[0] - single[1]).abs().max()) > 1e-3  # each has its own initial weights
    x = torch.rand(5, 4, model.source_px, model.source_px) * 50
    y = torch.randint(2, (5, 3)) if multilabel else torch.randint(3, (5,))
    model.train().supervised_loss((x,), y, generator()).backward()  # type: ignore[no-untyped-call]
    assert all(w.grad is not None for w in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window_px": 7}, "`window_px` must be a whole number of at least 8, got 7."),
        ({"shift_px": -1}, "`shift_px` must be a whole number of at least 0, got -1."),
        ({"members": 0}, "`members` must be a whole number of at least 1, got 0."),
    ],
)
def test_impossible_configs(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CellSighterConfig(("T", "B"), **wrong)


def test_the_middle_holds_the_centre_pixel():
    for source, side in ((9, 4), (9, 5), (8, 4), (8, 5), (8, 8)):
        windows = torch.zeros(1, 1, source, source)
        windows[0, 0, source // 2, source // 2] = 1
        assert middle(windows, side)[0, 0, side // 2, side // 2] == 1


def test_quarter_turns_and_mirror_images():
    image = torch.rand(1, 2, 5, 5)
    kinds = [m.rot90(k, (2, 3)) for k in range(4) for m in (image, image.flip(3))]
    found = turned(image.expand(8000, -1, -1, -1), generator())
    share = [float((found == kind).flatten(1).all(dim=1).float().mean()) for kind in kinds]
    np.testing.assert_allclose(share, 1 / 8, atol=0.02)
    assert sum(share) == pytest.approx(1)
