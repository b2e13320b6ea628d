"""Names around a brightfield image, and what is transparent in it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from cytonym.data.brightfield import derived_key, on_white, rgb_order


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("core3_image", "core3_stains"),
        ("core3.Images", "core3_stains"),
        ("a-img", "a_stains"),
        ("image", "image_stains"),
        ("core3", "core3_stains"),
    ],
)
def test_names_of_what_is_made(image, expected):
    assert derived_key(image, "stains") == expected


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["r", "g", "b"], [0, 1, 2]),
        (["Alpha", "Blue", "Green", "Red"], [3, 2, 1]),
        (["0", "1", "2"], [0, 1, 2]),
        (["0", "1", "2", "3"], [0, 1, 2]),
        (["0", "1"], None),
        (["DNA", "CD3", "CD8"], None),
        (["positive", "border", "negative"], None),
    ],
)
def test_places_of_the_colors(names, order):
    assert rgb_order(names) == order


def test_what_is_transparent_is_white():
    rng = np.random.default_rng(0)
    rgb, opacity = rng.integers(0, 256, (3, 20, 30)).astype("u1"), rng.integers(0, 256, (1, 20, 30)).astype("u1")
    opacity[:, :3], opacity[:, 3:6] = 0, 255
    found = on_white(rgb, opacity)
    assert found.dtype == np.uint8
    assert (found[:, :3] == 255).all()
    np.testing.assert_array_equal(found[:, 3:6], rgb[:, 3:6])
    share = opacity / 255
    np.testing.assert_allclose(found, rgb * share + 255 * (1 - share), atol=0.501)
    lazy = on_white(da.from_array(rgb, chunks=(3, 7, 11)), da.from_array(opacity, chunks=(1, 7, 11)))
    np.testing.assert_array_equal(lazy.compute(), found)
