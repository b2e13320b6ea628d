"""The kernel gives what the definition says, cell by cell and whatever stands beside a cell."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data.patches import bin_pixels
from cytonym.models.marker_kernel import CELLS, binned, pooled_features
from cytonym.models.nextmarker import NeXtMarker, NeXtMarkerConfig


def slowly(windows, gain, shift, weights, pool, stride):
    """The same, written out in double precision."""
    windows, gain, shift, weights, pool = (np.asarray(a, dtype=float) for a in (windows, gain, shift, weights, pool))
    c, k, _, kernel, _ = weights.shape
    found = np.zeros((len(windows), c, k))
    for cell, marker in np.ndindex(len(windows), c):
        x = windows[cell, marker][None]
        z = np.clip(shift[marker] - gain[marker][:, None, None] * x, -700, 700)
        y = np.where(x > 0, 1 / (1 + np.exp(z)) - 1 / (1 + np.exp(shift[marker])), 0)
        for row, column in np.ndindex(pool.shape):
            seen = y[:, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
            h = np.maximum((weights[marker] * seen).sum(axis=(1, 2, 3)), 0)
            found[cell, marker] += pool[row, column] * h / (1 + h)
    return found.reshape(len(windows), c * k)


def parts(draw_seed, c, k, exposures, kernel, positions):
    rng = np.random.default_rng(draw_seed)
    gain = rng.uniform(0, 3, (c, 1)) * rng.uniform(0.1, 2, exposures)
    gain[rng.random(c) < 0.2] = 0
    weights = rng.normal(size=(c, k, exposures, kernel, kernel))
    pool = rng.random((positions, positions))
    return [a.astype(np.float32) for a in (gain, rng.uniform(-1, 6, c), weights, pool / pool.sum())]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.sampled_from([0, 1, 3, CELLS - 1, CELLS, CELLS + 1]),
    c=st.integers(1, 3),
    k=st.integers(1, 9),
    exposures=st.integers(1, 3),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    positions=st.integers(1, 3),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
)
def test_equals_the_definition(seed, n, c, k, exposures, kernel, stride, positions, dtype):
    side = (positions - 1) * stride + kernel
    windows = np.random.default_rng(seed).integers(0, 4, (n, c, side, side)).astype(dtype)
    gain, shift, weights, pool = parts(seed, c, k, exposures, kernel, positions)
    found = pooled_features(windows, gain, shift, weights, pool, stride)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slowly(windows, gain, shift, weights, pool, stride), atol=2e-6)


@pytest.mark.parametrize(("dtype", "brightest"), [("u1", 255), ("u2", 65535), ("f4", 1e30)])
def test_pixels_of_any_size(dtype, brightest):
    windows = np.zeros((2, 1, 3, 3), dtype=dtype)
    windows[0] = brightest
    gain, shift, weights, pool = parts(1, 1, 2, 1, 3, 1)
    gain[:], weights[:] = 3, 1
    found = pooled_features(windows, gain, shift, weights, pool, 1)
    np.testing.assert_allclose(found, slowly(windows, gain, shift, weights, pool, 1), atol=1e-6)
    assert (found[0] > 0).all()
    assert (found[1] == 0).all()


def test_a_marker_without_gain_is_exactly_zero():
    gain, shift, weights, pool = parts(2, 2, 3, 2, 3, 2)
    gain[0], gain[1] = 0, 1
    windows = np.full((4, 2, 5, 5), 9, dtype=np.uint16)
    found = pooled_features(windows, gain, shift, np.abs(weights), pool, 2)
    assert (found[:, :3] == 0).all()
    assert (found[:, 3:] > 0).all()


def test_a_cell_does_not_depend_on_its_place():
    windows = np.random.default_rng(0).poisson(1.5, (2 * CELLS + 7, 3, 11, 11)).astype(np.uint16)
    the_rest = (*parts(3, 3, 8, 3, 3, 5), 2)
    whole = pooled_features(windows, *the_rest)
    one_by_one = [pooled_features(windows[i : i + 1], *the_rest) for i in range(0, len(windows), 13)]
    assert np.concatenate(one_by_one).tobytes() == whole[::13].tobytes()
    assert pooled_features(windows[::-1], *the_rest)[::-1].tobytes() == whole.tobytes()


@pytest.mark.parametrize("shape", [(4, 3, 11, 11), (4, 1, 11, 11), (4, 2, 11, 9), (4, 2, 2, 2), (2, 11, 11)])
@pytest.mark.parametrize("grad", [True, False])
def test_windows_of_another_shape_are_refused(shape, grad):
    model = NeXtMarker.from_statistics(["DNA", "CD8"], [3.0, 8.0]).eval()
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="Expected square windows"):
        model.encode(torch.rand(shape))


@pytest.mark.parametrize("shape", [(4, 3, 11, 11), (4, 1, 11, 11), (4, 2, 11, 9), (4, 2, 10, 10), (2, 11, 11)])
def test_nothing_is_read_beyond_the_windows(shape):
    gain, shift, weights, pool = parts(1, 2, 3, 2, 3, 5)
    with pytest.raises(ValueError, match=re.escape("Expected square windows [B, 2, S, S] of at least 11 px")):
        pooled_features(np.ones(shape, "f4"), gain, shift, weights, pool, 2)


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    n=st.integers(1, 5),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_bins_are_means_of_squares(shape, n, dtype, seed):
    windows = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    np.testing.assert_allclose(binned(windows, n), bin_pixels(windows, n).astype("f4"), rtol=1e-6)


def test_bins_of_the_brightest_pixels():
    assert binned(np.full((1, 1, 4, 4), 65535, "u2"), 2).tolist() == [[[[65535.0] * 2] * 2]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32, torch.float64])
def test_the_network_gives_the_same_with_and_without_gradients(dtype):
    config = NeXtMarkerConfig(exposures=(2.0, 0.5), features_per_marker=5, amount_features=2)
    model = NeXtMarker.from_statistics(["DNA", "CD8", "absent"], [3.0, 8.0, 0.0], config, seed=1)
    windows = torch.from_numpy(np.random.default_rng(1).poisson(2.0, (70, 3, 11, 11))).to(dtype)
    slow = model.features(windows)
    with torch.no_grad():
        fast = model.features(windows)
    assert slow.requires_grad
    assert not fast.requires_grad
    assert float(fast.max()) > 0.1
    torch.testing.assert_close(fast, slow.detach(), atol=2e-6, rtol=0)
