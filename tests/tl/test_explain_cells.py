"""Explanations: exact where the answer is known, zero where a marker does nothing."""

from __future__ import annotations

import pytest
import torch

from cytonym.models import NeXtMarker
from cytonym.tl._explain_cells import Explainer, integrated_gradients, occlusion


@pytest.fixture
def encoder() -> NeXtMarker:
    return NeXtMarker.from_statistics(["a", "b", "silent"], [10.0, 100.0, 5.0], seed=1).eval()


@pytest.fixture
def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 10, 10, generator=generator)
    return x * torch.tensor([20.0, 400.0, 0.0])[:, None, None]


def test_integrated_gradients_are_complete_and_stay_with_their_marker(encoder, windows):
    with torch.inference_mode():
        found = integrated_gradients(encoder, windows)
        whole, nothing = encoder.encode(windows), encoder.encode(windows * 0)
    direction = torch.nn.functional.normalize(whole.embedding, dim=1)
    change = ((whole.embedding - nothing.embedding) * direction).sum(1)
    torch.testing.assert_close(found.sum(1), change, rtol=0.02, atol=0.02)
    # the embedding is linear in the features of the markers, so each share is known
    pull = (direction @ encoder.mix.weight.detach()).view(4, 3, -1)
    share = ((whole.features - nothing.features).view(4, 3, -1) * pull).sum(2)
    torch.testing.assert_close(found, share, rtol=0.02, atol=0.02)
    assert (found[:, 2] == 0).all()


def test_occlusion_is_the_distance_the_cell_moves(encoder, windows):
    with torch.inference_mode():
        found = occlusion(encoder, windows)
        for c in range(3):
            without = windows.clone()
            without[:, c] = 0
            expected = (encoder.encode(without).embedding - encoder.encode(windows).embedding).norm(dim=1)
            torch.testing.assert_close(found[:, c], expected)
    assert (found[:, 2] == 0).all()
    assert (found[:, :2] > 0).all()


@pytest.mark.parametrize("method", ["activation", "gradient", "occlusion"])
def test_integer_windows_and_shapes(encoder, windows, method):
    with torch.inference_mode():
        out = Explainer(encoder, method).encode(windows.to(torch.int32))
    assert out.attributions.shape == (4, 3)
    assert out.attributions.dtype == torch.float32
    assert out.embedding.shape == (4, 0)
