"""Nuclei by classical image processing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytonym.data.nuclei import NucleusRules, class_map_of_stains, nuclei_of_stains


def stains(shape=(150, 170), n=60, diameter=12.0, seed=0):
    """Soft discs of hematoxylin, every third with DAB too, on uneven ground; and their centres."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 1, (n, 2)) * shape
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    planes = np.zeros((2, *shape))
    for i, (cy, cx) in enumerate(centers):
        spot = 1 / (1 + np.exp((np.hypot(y - cy, x - cx) - diameter / 2) * 1.5)) * rng.uniform(0.15, 0.5)
        planes[0] = np.maximum(planes[0], spot)
        if i % 3 == 0:
            planes[1] = np.maximum(planes[1], 2 * spot)
    planes[0] += 0.1 * np.sin(x / 40) ** 2 + rng.normal(0, 0.01, shape)
    return np.maximum(planes, 0).astype(np.float32), centers


def test_nuclei_are_found_and_called():
    planes, _ = stains(shape=(200, 200), n=0)
    y, x = np.mgrid[:200, :200]
    at = [(40, 40), (40, 120), (120, 40), (120, 120)]
    for i, (cy, cx) in enumerate(at):
        planes[i % 2][(y - cy) ** 2 + (x - cx) ** 2 <= 49] += 0.4
    labels, dab = nuclei_of_stains(planes, NucleusRules(14))
    found = np.array(ndimage.center_of_mass(labels > 0, labels, np.unique(labels)[1:]))
    assert len(found) == 4
    for center in at:
        assert np.hypot(*(found - center).T).min() < 1
        assert 100 < (labels == labels[center]).sum() < 220
    assert [dab[labels[center]] > 0.07 for center in at] == [False, True, False, True]
    drawn = class_map_of_stains(planes, NucleusRules(14))
    assert drawn[:, 40, 40].tolist() == [0, 0, 255]
    assert drawn[:, 40, 120].tolist() == [255, 0, 0]
    assert not (drawn > 0).all(axis=0).any()


def test_brown_cytoplasm_hides_no_nucleus_when_only_hematoxylin_counts():
    planes = np.zeros((2, 80, 80), np.float32)
    y, x = np.mgrid[:80, :80]
    disc = np.hypot(y - 40, x - 40)
    planes[0][disc <= 6] = 0.4
    planes[1][(disc > 6) & (disc < 14)] = 1.0
    labels, _ = nuclei_of_stains(planes, NucleusRules(12, hematoxylin_only=True))
    assert labels.max() == 1
    assert labels[40, 40] == 1
    assert 80 < (labels == 1).sum() < 180


@given(st.integers(0, 10_000), st.floats(6, 15), st.integers(30, 90), st.integers(30, 90))
@settings(max_examples=25, deadline=None)
def test_tiles_with_enough_around_them_give_the_same_pixels(seed, diameter, height, width):
    planes, _ = stains(seed=seed, diameter=diameter)
    rules = NucleusRules(diameter)
    whole = class_map_of_stains(planes, rules)
    out = np.zeros_like(whole)
    reach = rules.reach
    for y0 in range(0, planes.shape[1], height):
        for x0 in range(0, planes.shape[2], width):
            y1, x1 = min(y0 + height, planes.shape[1]), min(x0 + width, planes.shape[2])
            top, left = max(0, y0 - reach), max(0, x0 - reach)
            part = class_map_of_stains(planes[:, top : y1 + reach, left : x1 + reach], rules)
            out[:, y0:y1, x0:x1] = part[:, y0 - top : y1 - top, x0 - left : x1 - left]
    np.testing.assert_array_equal(out, whole)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_no_two_nuclei_touch_and_each_hangs_together(seed):
    planes, _ = stains(seed=seed, n=150)
    labels, _ = nuclei_of_stains(planes, NucleusRules(12))
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = labels[: labels.shape[0] - dy, max(0, -dx) : labels.shape[1] - max(0, dx)]
        b = labels[dy:, max(0, dx) : labels.shape[1] + min(0, dx)]
        assert not ((a > 0) & (b > 0) & (a != b)).any()
    together, n = ndimage.label(labels > 0)
    assert n == len(np.unique(labels)) - 1


def test_few_nuclei_are_missed():
    planes, _ = stains(shape=(400, 400), n=0)
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:400, :400] + 0.5
    grid = np.stack(np.meshgrid(np.arange(20, 390, 24), np.arange(20, 390, 24)), -1).reshape(-1, 2)
    centers = grid + rng.uniform(-4, 4, grid.shape)
    for cy, cx in centers:
        planes[0] += 0.3 * np.exp(-((((y - cy) ** 2 + (x - cx) ** 2) / 60) ** 2))
    labels, _ = nuclei_of_stains(planes, NucleusRules(14))
    found = np.array(ndimage.center_of_mass(labels > 0, labels, np.unique(labels)[1:])) + 0.5
    nearest = np.hypot(*(centers[:, None] - found[None]).transpose(2, 0, 1)).min(axis=1)
    assert (nearest < 3).all()
    assert len(found) == len(centers)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_nothing_in_a_flat_image(level):
    labels, dab = nuclei_of_stains(np.full((2, 40, 50), level, np.float32), NucleusRules(10))
    assert not labels.any()
    assert dab.tolist() == [0.0]
