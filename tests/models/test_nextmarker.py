"""What is particular to NeXtMarker: windows of fine images are binned to the size that the network is meant for."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cytonym.data.patches import bin_pixels
from cytonym.models.nextmarker import NeXtMarker, NeXtMarkerConfig


@pytest.mark.parametrize("binning", [2, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_binning_is_a_mean_over_squares(binning, dtype):
    config = NeXtMarkerConfig(binning=binning)
    model = NeXtMarker.from_statistics(["DNA", "CD8"], [3.0, 8.0], config, seed=1).eval()
    plain = NeXtMarker(["DNA", "CD8"]).eval()
    plain.load_state_dict(model.state_dict())
    assert (model.binning, model.window_px, plain.window_px) == (binning, 11 * binning, 11)
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (5, 2, 11 * binning, 11 * binning))).to(dtype)
    binned = torch.from_numpy(bin_pixels(windows.numpy(), binning))
    with torch.no_grad():
        for found, expected in zip(model.encode(windows), plain.encode(binned), strict=True):
            torch.testing.assert_close(found, expected)
            assert float(found.abs().max()) > 0


@pytest.mark.parametrize(
    ("side", "window_px", "binning"),
    [(5, 5, 1), (11, 11, 1), (16, 16, 1), (17, 8, 2), (22, 11, 2), (32, 10, 3), (33, 11, 3), (50, 10, 5)],
)
def test_the_size_asked_for(side, window_px, binning):
    config = NeXtMarker.sized(NeXtMarkerConfig(embedding_dim=32), side)
    assert (config.window_px, config.binning, config.embedding_dim) == (window_px, binning, 32)
    assert side - binning < window_px * binning <= side  # never larger: it has to fit into the image


@pytest.mark.parametrize(("pixel_size", "binning"), [(0.325, 3), (0.377, 3), (0.5, 2), (0.75, 1), (1.0, 1), (2.0, 1)])
def test_pixels_of_any_size(pixel_size, binning):
    config = NeXtMarker.adapted(NeXtMarkerConfig(), pixel_size)
    assert (config.window_px, config.binning) == (11, binning)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"binning": 0}, "`binning` must be a whole number of at least 1, got 0"),
        ({"binning": 1.5}, "`binning` must be a whole number of at least 1, got 1.5"),
        ({"window_px": 2}, "`window_px` must be a whole number of at least 3 (`kernel_px`), got 2"),
        ({"stride_px": 0}, "`stride_px` must be a whole number of at least 1, got 0"),
    ],
)
def test_impossible_configs(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NeXtMarkerConfig(**wrong)
