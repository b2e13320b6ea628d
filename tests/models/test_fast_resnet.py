"""The fast form of ResNet-18 gives the numbers of the plain one."""

from __future__ import annotations

import pytest
import torch

from cytonym.models.clearit import ClearIT, ClearITConfig
from cytonym.models.fast_resnet import fast_resnet
from cytonym.models.resnet import ResNet, initialize


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        model = ResNet(18, 3, 32)
    generator = torch.Generator().manual_seed(0)
    initialize(model, generator)
    for name, buffer in model.named_buffers():  # statistics of a network that has seen something
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.8, 1.2, generator=generator)
            layer.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize("n", [1, 5])
def test_same_numbers(network, side, n):
    windows = torch.rand(n, side, side, generator=torch.Generator().manual_seed(side))
    with torch.no_grad():
        stem = network.stem(windows[:, None].expand(-1, 3, -1, -1))
        expected = network.after(stem)
        found_stem, found = fast_resnet(network, side)(windows)
    torch.testing.assert_close(found_stem.permute(2, 3, 0, 1), stem, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_other_weights_are_noticed(network):
    windows = torch.rand(2, 32, 32)
    with torch.no_grad():
        before = fast_resnet(network, 32)
        assert fast_resnet(network, 32) is before
        network.fc.bias += 1
        network.bn1.bias += 0.1
        expected = network(windows[:, None].expand(-1, 3, -1, -1))
        torch.testing.assert_close(fast_resnet(network, 32)(windows)[1], expected, rtol=1e-4, atol=1e-5)


def test_sides_that_it_does_not_know(network):
    with pytest.raises(ValueError, match="side of 32, 64, 128, … pixels here, got 96"):
        fast_resnet(network, 96)


@pytest.mark.parametrize("side", [32, 48])
def test_encoder_gives_the_same_either_way(side):
    model = ClearIT.from_statistics(["DNA", "CD8"], [9.0, 4.0], ClearITConfig(window_px=side)).eval()
    windows = torch.rand(70, 2, side, side) * 9
    windows[3, 1] = 0
    slow = model.encode(windows)
    with torch.no_grad():
        fast = model.encode(windows)
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(b, a.detach(), rtol=1e-4, atol=1e-5)
    assert fast.attributions[3, 1] == 0
