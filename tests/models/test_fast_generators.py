"""The fast form of the generators makes what the generators make."""

from __future__ import annotations

import pytest
import torch

from cytonym.models import DeepLIIF, DeepLIIFConfig, fast_generators
from cytonym.models.deepliif import SEGMENTATION
from cytonym.models.fast_generators import FastDeepLIIF, fast
from cytonym.models.translation import ResNetGenerator, UNetGenerator, initialize

torch.set_num_threads(1)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ready(network):
    """With random weights, also of the normalisation and its shift."""
    initialize(network, torch.Generator().manual_seed(0))
    for i, weight in enumerate(network.parameters()):
        if weight.ndim == 1:
            weight.data += 0.1 * noise(len(weight)) * (i % 3)
    return network.eval()


@pytest.mark.parametrize(
    "network",
    [
        ResNetGenerator(3, 3, 8, 2),  # wide enough for Winograd: four times as many maps in the blocks
        ResNetGenerator(3, 1, 8, 2, dropout=False, padding="reflect"),
        ResNetGenerator(3, 3, 2, 1),
        UNetGenerator(3, 3, 4, 4),
        UNetGenerator(1, 3, 4, 2, dropout=False),
    ],
    ids=["zero", "reflect", "narrow", "unet", "shallow"],
)
@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 48), (1, 40, 40), (2, 80, 64)])
def test_same_images(network, shape):
    ready(network)
    multiple = 16 if isinstance(network, UNetGenerator) else 4
    height, width = (side // multiple * multiple for side in shape[1:])
    x = noise(shape[0], next(network.parameters()).shape[1], height, width)
    with torch.inference_mode():
        expected = network(x)
        found = fast(network)(x.contiguous(memory_format=torch.channels_last))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("side", [4, 8, 12, 68])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_with_fewer_products(side, padding):
    layer = torch.nn.Conv2d(32, 48, 3, padding=padding, bias=False)
    layer.weight.data = noise(48, 32, 3, 3)
    x = noise(2, 32, side + 2 - 2 * padding, side + 2 - 2 * padding)
    with torch.inference_mode():
        expected = torch.nn.functional.conv2d(x.double(), layer.weight.double(), padding=padding)
        found = fast_generators._convolution(layer)(x.contiguous(memory_format=torch.channels_last))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_networks_of_weight_zero_do_not_run():
    config = DeepLIIFConfig(filters=4, blocks=1, depth=4, tile_px=32, segmentation_weights=(0.5, 0.0, 0.5))
    model = DeepLIIF.from_seed(["DAPI", "marker"], config)
    x = noise(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
        run = FastDeepLIIF(model)
        found = run(x)
        assert run.segmenters[1] is None
        assert set(run(x, segmentation=False)) == {"DAPI", "marker"}
    assert set(found) == {"DAPI", "marker", SEGMENTATION}
    for name, image in expected.items():
        torch.testing.assert_close(found[name], image, atol=1e-5, rtol=0)


def test_weights_and_input_are_left_alone():
    model = DeepLIIF.from_seed(["DAPI"], DeepLIIFConfig(filters=8, blocks=1, depth=4, tile_px=32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = noise(1, 3, 32, 32)
    given = x.clone()
    with torch.inference_mode():
        run = FastDeepLIIF(model)
        first, again = run(x), run(x)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, image in first.items():
        assert torch.equal(image, again[name])
