"""Views through their public function: images of coordinates tell where each pixel of a view was taken from."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cytonym.learning.views import ViewConfig, make_views

torch.set_num_threads(1)

STILL: dict[str, Any] = {
    "views_per_size": 2,
    "rotation_deg": 0.0,
    "scale": (1.0, 1.0),
    "flip": 0.0,
    "intensity": (1.0, 1.0),
    "translation_px": 0.0,
    "pixel_noise": 0.0,
    "pixel_dropout": 0.0,
    "marker_dropout": 0.0,
    "interpolation": "bilinear",
}


def config(**changes: Any) -> ViewConfig:
    """Nothing varies but what is said, whatever the defaults are."""
    known = {field.name for field in fields(ViewConfig)}
    return ViewConfig(**({k: v for k, v in STILL.items() if k in known} | {"window_px": (7,)} | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(n: int, side: int) -> Tensor:
    """Windows [n, 3, side, side] of x, y and noise."""
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    noise = torch.rand(n, side, side, generator=generator(99))
    return torch.stack([x.expand(n, -1, -1), y.expand(n, -1, -1), noise], dim=1)


def maps(view: Tensor, s0: int) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of each cell from offsets in the view to offsets in the window, (x, y): [n, 2, 2] and shift [n, 2]."""
    side = view.shape[-1]
    offset = np.arange(side) - side // 2
    x, y = np.meshgrid(offset, offset)
    design = np.stack([x.ravel(), y.ravel(), np.ones(side**2)], axis=1)
    where = view[:, :2].reshape(len(view), 2, -1).double().numpy() - s0 // 2
    solved, *_ = np.linalg.lstsq(design, where.reshape(-1, side**2).T, rcond=None)
    np.testing.assert_allclose(design @ solved, where.reshape(-1, side**2).T, atol=1e-3)  # it is one affine map
    found = solved.T.reshape(-1, 2, 3)
    return found[:, :, :2], found[:, :, 2]


@pytest.mark.parametrize("side", [1, 4, 7])
@pytest.mark.parametrize("extra", [0, 3])
def test_still_views_are_the_middle(side, extra):
    still = config(window_px=(side,))
    s0 = still.source_px() + 2 * extra
    windows = coordinates(5, s0)
    first = s0 // 2 - side // 2
    for view in make_views(windows, still, generator()):
        torch.testing.assert_close(view, windows[:, :, first : first + side, first : first + side], atol=1e-5, rtol=0)


def test_number_and_sizes():
    views = config(window_px=(8, 5), views_per_size=3, rotation_deg=180.0)
    windows = torch.ones(4, 2, views.source_px(), views.source_px(), dtype=torch.uint16)
    found = make_views(windows, views, generator())
    assert views.n_views == 6
    assert [tuple(view.shape) for view in found] == [(4, 2, 8, 8)] * 3 + [(4, 2, 5, 5)] * 3
    assert all(view.dtype == torch.float32 for view in found)


def test_flips():
    still = config(flip=1.0)
    s0 = still.source_px()
    turned = maps(make_views(coordinates(20, s0), still, generator())[0], s0)[0]
    assert (np.linalg.det(turned) < 0).all()
    half = config(flip=0.5)
    turned = maps(make_views(coordinates(2000, s0), half, generator())[0], s0)[0]
    assert 0.45 < (np.linalg.det(turned) < 0).mean() < 0.55
    still = maps(make_views(coordinates(20, s0), config(flip=0.0), generator())[0], s0)[0]
    assert (np.linalg.det(still) > 0).all()


def test_rotations_are_uniform_and_nothing_else():
    turning = config(rotation_deg=180.0)
    s0 = turning.source_px()
    turned, shift = maps(make_views(coordinates(3000, s0), turning, generator())[0], s0)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.eye(2)[None].repeat(3000, 0), atol=1e-3)
    np.testing.assert_allclose(shift, 0, atol=1e-3)
    angles = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0])) % 360
    assert np.histogram(angles, 12, (0, 360))[0].min() > 180  # 250 expected
    little = config(rotation_deg=20.0)
    turned, _ = maps(make_views(coordinates(500, s0), little, generator())[0], s0)
    angles = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert -20.1 < angles.min() < -17
    assert 17 < angles.max() < 20.1


def test_scale_is_log_uniform_magnification():
    zooming = config(scale=(0.5, 2.0))
    s0 = zooming.source_px()
    turned, _ = maps(make_views(coordinates(3000, s0), zooming, generator())[0], s0)
    zoom = np.log(1 / np.sqrt(np.abs(np.linalg.det(turned))))
    assert np.histogram(zoom, 6, (math.log(0.5) - 1e-3, math.log(2) + 1e-3))[0].min() > 400  # 500 expected, none beyond
    assert np.histogram(zoom, 6, (math.log(0.5) - 1e-3, math.log(2) + 1e-3))[0].sum() == 3000


def test_translation():
    moving = config(translation_px=1.5)
    s0 = moving.source_px()
    turned, shift = maps(make_views(coordinates(1000, s0), moving, generator())[0], s0)
    np.testing.assert_allclose(turned, np.eye(2)[None].repeat(1000, 0), atol=1e-3)
    assert 1.45 < np.abs(shift).max() < 1.501
    assert np.abs(shift.mean(0)).max() < 0.1


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(2, 12),
    rotation=st.sampled_from([0.0, 15.0, 180.0]),
    low=st.floats(0.5, 1.0),
    translation=st.sampled_from([0.0, 0.5, 2.0]),
    flip=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_one_sample_after_another_with_no_padding(side, rotation, low, translation, flip, seed):
    """Where pixels come from is read off the coordinate channels; the noise there, by hand, is the noise of the view."""
    views = config(
        window_px=(side,), rotation_deg=rotation, scale=(low, 1.3), translation_px=translation, flip=flip
    )  # fmt: skip
    s0 = views.source_px()
    windows = coordinates(3, s0)
    for view in make_views(windows, views, generator(seed)):
        where = view[:, :2].double().numpy()
        assert where.min() > -1e-3
        assert where.max() < s0 - 1 + 1e-3  # no pixel of a view is from beyond the window
        maps(view, s0)
        for b in range(3):
            source = np.pad(windows[b, 2].double().numpy(), (0, 1), mode="edge")
            for i in range(side):
                for j in range(side):
                    x, y = np.clip(where[b, :, i, j], 0, s0 - 1)
                    x0, y0 = int(x), int(y)
                    fx, fy = x - x0, y - y0
                    above = source[y0, x0] * (1 - fx) + source[y0, x0 + 1] * fx
                    below = source[y0 + 1, x0] * (1 - fx) + source[y0 + 1, x0 + 1] * fx
                    assert view[b, 2, i, j] == pytest.approx(above * (1 - fy) + below * fy, abs=1e-3)


def test_every_pixel_of_the_source_may_count():
    """`source_px` is no larger than some view needs, give or take two pixels."""
    views = config(window_px=(8,), rotation_deg=180.0, scale=(0.5, 1.0))
    s0 = views.source_px()
    where = torch.cat(make_views(coordinates(4000, s0), views, generator()))[:, :2]
    assert where.min() < 2


def test_intensities_are_log_uniform_for_each_marker_cell_and_view():
    staining = config(intensity=(0.25, 4.0), window_px=(3,))
    s0 = staining.source_px()
    views = make_views(torch.ones(1500, 3, s0, s0), staining, generator())
    assert all(torch.equal(view, view[:, :, :1, :1].expand_as(view)) for view in views)  # one factor a marker
    logs = np.stack([view[:, :, 0, 0].log().numpy() for view in views], axis=-1).reshape(1500, 6)
    for column in logs.T:
        counted = np.histogram(column, 6, (math.log(0.25) - 1e-4, math.log(4) + 1e-4))[0]
        assert counted.sum() == 1500
        assert counted.min() > 180  # 250 expected
    correlation = np.corrcoef(logs.T) - np.eye(6)
    assert np.abs(correlation).max() < 0.1


def test_silent_pixels_stay_silent():
    loud = config(rotation_deg=180.0, intensity=(0.5, 2.0), pixel_noise=0.3, pixel_dropout=0.2, marker_dropout=0.2)
    windows = torch.zeros(4, 2, loud.source_px(), loud.source_px())
    assert all((view == 0).all() for view in make_views(windows, loud, generator()))


def test_noise_and_dropout():
    side = 9
    ones = torch.ones(300, 4, side, side)
    [view, _] = make_views(ones, config(pixel_noise=0.3), generator())
    assert view.log().std().item() == pytest.approx(0.3, abs=0.01)
    [view, _] = make_views(ones, config(pixel_dropout=0.25), generator())
    assert (view == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert view.mean().item() == pytest.approx(1, abs=0.02)
    [view, _] = make_views(ones, config(marker_dropout=0.25), generator())
    silent = (view == 0).all(dim=(2, 3))
    assert silent.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert ((view == 1).all(dim=(2, 3)) | silent).all()


def test_nearest_only_gives_values_of_the_source():
    near = config(rotation_deg=180.0, interpolation="nearest")
    windows = torch.randint(0, 5, (20, 1, near.source_px(), near.source_px()), generator=generator()).float() * 10
    assert set(torch.cat(make_views(windows, near, generator())).unique().tolist()) <= {0.0, 10.0, 20.0, 30.0, 40.0}


def test_the_generator_decides_alone():
    all_of_it = config(
        rotation_deg=180.0, scale=(0.7, 1.4), flip=0.5, intensity=(0.5, 2.0), translation_px=1.0, pixel_noise=0.1,
        pixel_dropout=0.1, marker_dropout=0.1,
    )  # fmt: skip
    windows = coordinates(6, all_of_it.source_px())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = make_views(windows, all_of_it, generator(1))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(4)
    again = make_views(windows, all_of_it, generator(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], make_views(windows, all_of_it, generator(2))[0])
    same = make_views(windows[:1].expand(6, -1, -1, -1), all_of_it, generator(1))[0]
    assert not torch.equal(same[0], same[1])  # each cell by itself


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": (1.5, 0.5)}, "`scale` must be two factors with 0 < low <= high, got (1.5, 0.5)"),
        ({"intensity": (0.0, 2.0)}, "`intensity` must be two factors with 0 < low <= high, got (0.0, 2.0)"),
        ({"window_px": ()}, "`window_px` must hold at least one side of 1 pixel or more, got ()"),
        ({"views_per_size": 1}, "Contrastive training needs at least 2 views, got 1. Raise `views_per_size`."),
        ({"interpolation": "cubic"}, "`interpolation` must be 'bilinear' or 'nearest', got 'cubic'"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**changes)
