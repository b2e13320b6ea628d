"""CLEAR-IT's augmentations, against one step after the other in NumPy, and by what they do to discs and dots."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from cytonym.learning.simclr_views import SimCLRViews
from cytonym.learning.views import ViewConfig, Views

torch.set_num_threads(1)
ZOOM = (2 / 3, 4 / 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, side: int, channels: int = 1, seed: int = 9) -> Tensor:
    return torch.rand(n, channels, side, side, generator=generator(seed))


def centred(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (y, x) of the pixels from the one that holds the cell's centre."""
    at = np.arange(side) - side // 2
    return np.meshgrid(at, at, indexing="ij")


# --- one step after the other ---


def slowly(windows: Tensor, views: SimCLRViews, generator: torch.Generator) -> np.ndarray:
    """One view of each window, with the same draws, in the order of the paper."""
    x = windows.double().numpy().copy()
    n, side = len(x), views.window_px[0]

    def draw(low: float, high: float, *shape: int) -> np.ndarray:
        return (torch.rand(shape, generator=generator) * (high - low) + low).double().numpy()

    if views.blur_px:
        radius = min(int(views.blur_px), x.shape[-1] - 1)
        for image, sigma in zip(x, draw(1e-2, views.blur_px, n, 1)[:, 0], strict=True):
            line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            for axis in (1, 2):
                image[:] = ndimage.correlate1d(image, line / line.sum(), axis=axis, mode="mirror")
    steps = [name for name in ("brightness", "contrast") if getattr(views, name)]
    if len(steps) == 2 and draw(0, 1, 1)[0] < 0.5:
        steps = steps[::-1]
    for name in steps:
        amplitude = getattr(views, name)
        for image, factor in zip(x, draw(max(0.0, 1 - amplitude), 1 + amplitude, n, 1, 1, 1).ravel(), strict=True):
            fixed = image.mean() if name == "contrast" else 0.0
            image[:] = np.clip(fixed + factor * (image - fixed), 0, 1)
    if views.translation_px or views.zoom != (1.0, 1.0):
        size = draw(math.sqrt(views.zoom[0]), math.sqrt(views.zoom[1]), n)
        radius, angle = np.sqrt(draw(0, views.translation_px**2, n)), draw(0, 2 * math.pi, n)
        dy, dx = centred(x.shape[-1])
        for i, channel in np.ndindex(*x.shape[:2]):
            y_at = dy / size[i] + radius[i] * np.sin(angle[i]) + x.shape[-1] // 2
            x_at = dx / size[i] + radius[i] * np.cos(angle[i]) + x.shape[-1] // 2
            x[i, channel] = ndimage.map_coordinates(x[i, channel].copy(), [y_at, x_at], order=1, mode="grid-constant")
    first = x.shape[-1] // 2 - side // 2
    x = x[..., first : first + side, first : first + side]
    turns = torch.randint(4, (n, 1, 1, 1), generator=generator).ravel().tolist()
    x = np.stack([np.rot90(image, k, axes=(1, 2)) for image, k in zip(x, turns, strict=True)])
    for axis in (1, 2):
        mirror = draw(0, 1, n, 1, 1, 1).ravel() < 0.5
        x = np.stack([np.flip(image, axis) if yes else image for image, yes in zip(x, mirror, strict=True)])
    return x


@settings(max_examples=60, deadline=None)
@given(
    side=st.integers(1, 12), extra=st.integers(0, 5), channels=st.integers(1, 3), blur=st.integers(0, 4),
    brightness=st.sampled_from([0.0, 0.5, 1.5]), contrast=st.sampled_from([0.0, 0.5, 1.5]),
    translation=st.sampled_from([0.0, 2.5]), zoom=st.sampled_from([(1.0, 1.0), ZOOM, (0.25, 4.0)]), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_one_step_after_the_other(side, extra, channels, blur, brightness, contrast, translation, zoom, seed):
    views = SimCLRViews((side,), 2, blur, brightness, contrast, translation, zoom)
    windows = noise(3, views.source_px() + extra, channels)
    ours, theirs = generator(seed), generator(seed)
    for view in views.make(windows, ours):
        assert (view.shape, view.dtype) == ((3, channels, side, side), torch.float32)
        assert view.is_contiguous()
        np.testing.assert_allclose(view.double().numpy(), slowly(windows, views, theirs), atol=2e-5)


# --- turns and mirror images ---


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("extra", [0, 3, 4])
def test_with_all_else_off_a_view_is_one_of_eight_symmetries(side, extra):
    views = SimCLRViews((side,))
    assert views.source_px() == side
    windows = noise(1, side + extra, 2)
    first = (side + extra) // 2 - side // 2
    middle = windows[..., first : first + side, first : first + side]
    kinds = [image.rot90(k, (2, 3)) for k in range(4) for image in (middle, middle.flip(3))]
    for view in views.make(windows.expand(4000, -1, -1, -1), generator()):
        share = [float((view == kind).flatten(1).all(dim=1).float().mean()) for kind in kinds]
        assert sum(share) == pytest.approx(1)
        np.testing.assert_allclose(share, 1 / 8, atol=0.03)


# --- geometry ---


@pytest.mark.parametrize(
    ("views", "side"),
    [
        (SimCLRViews((64,), zoom=ZOOM), 78),
        (SimCLRViews((64,), zoom=(2 / 3, 1.0)), 78),
        (SimCLRViews((64,), zoom=(1.0, 4.0)), 64),
        (SimCLRViews((64,), zoom=(0.25, 1.0)), 128),
        (SimCLRViews((64,), translation_px=10), 84),
        (SimCLRViews((32,), zoom=ZOOM, translation_px=5), 49),
        (SimCLRViews((64,), blur_px=10, brightness=1.0, contrast=1.0), 64),
    ],
)
def test_source(views, side):
    assert views.source_px() == side
    assert views.source_px() == math.floor(
        views.window_px[0] / min(1, views.zoom[0]) ** 0.5 + 2 * views.translation_px + 1e-9
    )


def test_zoom_is_by_area():
    """A disc's area grows by 2/3 to 4/3, and its diameter is uniform in between."""
    views = SimCLRViews((64,), zoom=ZOOM)
    dy, dx = centred(views.source_px())
    disc = torch.from_numpy(np.clip(15.5 - np.hypot(dy, dx), 0, 1)).float()
    for view in views.make(disc.expand(1500, 1, -1, -1), generator()):
        area = view.sum(dim=(1, 2, 3)) / disc.sum()
        assert 2 / 3 - 0.01 < float(area.min()) < 0.675
        assert 1.325 < float(area.max()) < 4 / 3 + 0.01
        numbers = np.histogram(np.sqrt(area.numpy()), 6, (math.sqrt(2 / 3) - 1e-3, math.sqrt(4 / 3) + 1e-3))[0]
        assert numbers.sum() == 1500
        assert numbers.min() > 190  # 250 expected


def moves(views: SimCLRViews, n: int) -> np.ndarray:
    """Where a dot from the centre ends up (y, x) [n, 2]."""
    dy, dx = centred(views.source_px())
    dot = torch.from_numpy(np.exp(-(dy**2 + dx**2) / 4)).float()
    [view, _] = views.make(dot.expand(n, 1, -1, -1), generator())
    weights = view[:, 0].double().numpy()
    vy, vx = centred(views.window_px[0])
    return np.stack([(weights * d).sum(axis=(1, 2)) / weights.sum(axis=(1, 2)) for d in (vy, vx)], axis=1)


def test_translation_is_uniform_in_a_disc():
    found = moves(SimCLRViews((41,), translation_px=10.0), 2500)
    radius = np.hypot(*found.T)
    assert 9.9 < radius.max() < 10.01
    assert np.histogram(radius**2, 8, (0, 100.1))[0].min() > 250  # 312 expected: uniform by area
    angle = np.arctan2(*found.T)
    assert np.histogram(angle, 8, (-math.pi, math.pi))[0].min() > 250
    assert np.abs(np.corrcoef(radius, angle)[0, 1]) < 0.05


def test_translation_comes_before_the_zoom():
    """Displacements grow with the zoom."""
    radius = np.hypot(*moves(SimCLRViews((61,), translation_px=10.0, zoom=(4.0, 4.0)), 400).T)
    assert 19.6 < radius.max() < 20.02


def test_nothing_of_the_padding_is_seen():
    """But for the outermost pixel, as the side is rounded down."""
    for views in (SimCLRViews((24,), zoom=ZOOM, translation_px=6.0), SimCLRViews((25,), zoom=(0.3, 2.0))):
        side = views.source_px()
        for view in views.make(torch.ones(1000, 1, side, side), generator()):
            torch.testing.assert_close(view[..., 1:-1, 1:-1], torch.ones_like(view[..., 1:-1, 1:-1]))
    small = SimCLRViews((24,), zoom=ZOOM)
    assert (torch.stack(small.make(torch.ones(200, 1, 24, 24), generator())) == 0).any()  # a source too small shows it


# --- pixels ---


def test_brightness():
    views = SimCLRViews((3,), brightness=0.5)
    for view in views.make(torch.full((3000, 1, 3, 3), 0.5), generator()):
        assert torch.equal(view, view[:, :, :1, :1].expand_as(view))
        numbers = np.histogram(view[:, 0, 0, 0] / 0.5, 8, (0.5, 1.5))[0]
        assert numbers.sum() == 3000
        assert numbers.min() > 300  # 375 expected


def test_contrast_is_about_the_mean():
    views = SimCLRViews((16,), contrast=0.5)
    windows = 0.4 + 0.2 * noise(2000, 16)
    [view, _] = views.make(windows, generator())
    torch.testing.assert_close(view.mean(dim=(1, 2, 3)), windows.mean(dim=(1, 2, 3)))
    factor = view.std(dim=(1, 2, 3)) / windows.std(dim=(1, 2, 3))
    numbers = np.histogram(factor, 8, (0.5 - 1e-4, 1.5 + 1e-4))[0]
    assert numbers.sum() == 2000
    assert numbers.min() > 190  # 250 expected


def test_pixels_are_clamped_and_amplitudes_beyond_one_cut_off():
    windows = noise(500, 8) * 1.5
    for views in (SimCLRViews((8,), brightness=2.0), SimCLRViews((8,), contrast=2.0)):
        [view, _] = views.make(windows, generator())
        assert 0 <= float(view.min()) < 1e-3
        assert view.max() == 1
    [still, _] = SimCLRViews((8,)).make(windows, generator())
    assert still.max() > 1.4  # and only there


def test_which_comes_first_is_drawn_for_each_batch():
    """Black, grey and white pixels: contrast first keeps grey half as bright as white, brightness first does not."""
    views = SimCLRViews((4,), brightness=0.9, contrast=0.9)
    windows = torch.tensor([0.0] * 4 + [0.5] * 8 + [1.0] * 4).reshape(1, 1, 4, 4).expand(50, -1, -1, -1)
    contrast_first = []
    for seed in range(60):
        low, grey, white = (
            torch.stack(views.make(windows, generator(seed))).flatten(2).sort(dim=2).values[..., [0, 8, 15]].unbind(2)
        )
        for view in range(2):
            told = (low[view] == 0) & (white[view] < 0.99)  # black was cut off, white was not
            kept = (grey[view][told] / white[view][told] - 0.5).abs() < 1e-5
            assert kept.all() or not kept.any()
            contrast_first.append(bool(kept.all()))
    assert 35 < sum(contrast_first) < 85  # of 120


def test_blur_is_gaussian_and_no_more_than_asked_for():
    views = SimCLRViews((21,), blur_px=4)
    dot = torch.zeros(2000, 1, 21, 21)
    dot[:, :, 10, 10] = 1
    [view, _] = views.make(dot, generator())
    torch.testing.assert_close(view.sum(dim=(1, 2, 3)), torch.ones(2000))
    dy, _ = centred(21)
    assert (view[:, 0][:, np.abs(dy) > 4] == 0).all()  # a kernel of 9 pixels
    sigma = (view[:, 0] * torch.from_numpy(dy**2)).sum(dim=(1, 2)).sqrt()
    assert float(sigma.min()) < 0.2
    assert 2.0 < float(sigma.max()) < 2.6  # of 4, cut off at the kernel's end
    sharp = SimCLRViews((21,)).make(dot, generator())[0]
    assert sharp.max() == 1


# --- the rest ---


def test_the_generator_decides_alone():
    views = SimCLRViews((16,), 3, 2, 0.5, 0.5, 2.0, ZOOM)
    windows = noise(6, views.source_px())
    kept = windows.clone()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = views.make(windows, generator(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(windows, kept)
    assert len(first) == views.n_views == 3
    again = views.make(windows, generator(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], views.make(windows, generator(2))[0])
    same = views.make(windows[:1].expand(6, -1, -1, -1), generator(1))[0]
    assert not torch.equal(same[0], same[1])  # each window by itself


def test_channels_of_a_window_stay_together():
    views = SimCLRViews((16,), 2, 2, 0.5, 0.0, 2.0, ZOOM)
    one = noise(5, views.source_px())
    for view in views.make(one.expand(-1, 3, -1, -1), generator()):
        assert torch.equal(view[:, 0], view[:, 2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float64])
def test_any_dtype(dtype):
    windows = torch.randint(0, 200, (2, 1, 8, 8)).to(dtype)
    assert SimCLRViews((8,)).make(windows, generator())[0].dtype == torch.float32


def test_views_too_large_for_the_windows():
    with pytest.raises(
        ValueError, match=re.escape("Views of 9 px cannot be cut out of windows of 8 px. Give a smaller `window_px`.")
    ):
        SimCLRViews((9,)).make(noise(2, 8), generator())


def test_both_kinds_are_views():
    assert isinstance(SimCLRViews(), Views)
    assert isinstance(ViewConfig(), Views)
    assert not isinstance("views", Views)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zoom": (1.5, 0.5)}, "`zoom` must be two area factors with 0 < low <= high, got (1.5, 0.5)."),
        ({"zoom": (0.0, 1.0)}, "`zoom` must be two area factors with 0 < low <= high, got (0.0, 1.0)."),
        ({"zoom": (1.0, math.inf)}, "`zoom` must be two area factors with 0 < low <= high, got (1.0, inf)."),
        ({"window_px": (64, 32)}, "`window_px` must hold one side of at least 1 pixel, got (64, 32)."),
        ({"window_px": (0,)}, "`window_px` must hold one side of at least 1 pixel, got (0,)."),
        ({"views_per_size": 1}, "Contrastive training needs at least 2 views, got 1. Raise `views_per_size`."),
        ({"blur_px": -1}, "`blur_px` must be a number of at least 0, got -1."),
        ({"brightness": math.nan}, "`brightness` must be a number of at least 0, got nan."),
        ({"contrast": math.inf}, "`contrast` must be a number of at least 0, got inf."),
        ({"translation_px": -0.5}, "`translation_px` must be a number of at least 0, got -0.5."),
    ],
)
def test_arguments_out_of_range(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        SimCLRViews(**wrong)
