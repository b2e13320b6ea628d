"""Optical densities and stains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from cytonym.data.stains import intensity_counts, separate_stains, summed_density, white_level


def test_stains_are_those_of_scikit_image_in_units_of_density():
    image = immunohistochemistry()[:64, :64]
    expected = 6 * rgb2hed(image)[..., [0, 2]]  # scikit-image divides by the density of 1e-6
    found = separate_stains(image.transpose(2, 0, 1))
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)
    assert found.dtype == np.float32


def test_white_has_no_stain():
    image = np.full((3, 4, 4), 0, np.uint8) + np.array([230, 225, 240], np.uint8)[:, None, None]
    assert not separate_stains(image, (230, 225, 240)).any()
    assert separate_stains(image // 2, (230, 225, 240)).any()
    assert np.isfinite(separate_stains(np.zeros((3, 2, 2), np.uint8))).all()


def test_a_darker_scan_with_a_darker_white_has_the_same_stains():
    image = immunohistochemistry()[:64, :64].transpose(2, 0, 1)
    white = np.array([250, 250, 250])
    darker = np.round(image * 0.9).astype(np.uint8)
    bright = (image > 40).all(axis=0)  # of dark pixels rounding changes the density
    assert bright.mean() > 0.5
    found = separate_stains(image, white), separate_stains(darker, np.round(white * 0.9))
    np.testing.assert_allclose(found[0][:, bright], found[1][:, bright], atol=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.floats(0.01, 1))
@settings(max_examples=50, deadline=None)
def test_white_is_a_quantile_however_the_image_is_cut(seed, cut, quantile):
    image = np.random.default_rng(seed).integers(0, 256, (3, 21, 9)).astype(np.uint8)
    counts = intensity_counts([image[:, :cut], image[:, cut:]])
    np.testing.assert_array_equal(counts, intensity_counts([image]))
    found = white_level(counts, quantile)
    for plane, level in zip(image, found, strict=True):
        assert level == max(1, np.quantile(plane, quantile, method="inverted_cdf"))


@pytest.mark.parametrize(
    ("rgb", "density"), [((255, 255, 255), 0), ((0, 0, 0), 722), ((1, 1, 1), 722), ((128, 255, 255), 30)]
)
def test_density_of_a_pixel(rgb, density):
    assert summed_density(np.array(rgb, np.uint8).reshape(3, 1, 1)).item() == density
