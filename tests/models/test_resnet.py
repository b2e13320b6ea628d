"""Residual networks, against a walk through their weights by the names that torchvision gave them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.resnet import ResNet, fold, initialize

torch.set_num_threads(1)
BLOCKS = {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}


def filled(depth: int, n_in: int, n_out: int, seed: int = 0) -> ResNet:
    """A network with normalisation layers that do something."""
    network = ResNet(depth, n_in, n_out).eval()
    generator = torch.Generator().manual_seed(seed)
    initialize(network, generator)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = 0.1 * torch.randn(layer.num_features, generator=generator)
            layer.running_var = 0.5 + torch.rand(layer.num_features, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.bias, -0.2, 0.2, generator=generator)
    return network


def slowly(weights: dict[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """The forward pass, read off the names."""

    def conv(name: str, x: Tensor, stride: int) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=(kernel.shape[-1] - 1) // 2)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, gain, bias = (
            weights[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5) ** 0.5 * gain + bias

    x = F.relu(norm("bn1", conv("conv1", x, 2)))
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf)
    x = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax(dim=(-2, -1))
    for stage in range(1, 5):
        for i in range(BLOCKS[depth][stage - 1]):
            at, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            beside = x
            if f"{at}.downsample.0.weight" in weights:
                beside = norm(f"{at}.downsample.1", conv(f"{at}.downsample.0", x, stride))
            if depth == 18:
                h = F.relu(norm(f"{at}.bn1", conv(f"{at}.conv1", x, stride)))
                h = norm(f"{at}.bn2", conv(f"{at}.conv2", h, 1))
            else:  # the 3 x 3 convolution takes the step, as in torchvision
                h = F.relu(norm(f"{at}.bn1", conv(f"{at}.conv1", x, 1)))
                h = F.relu(norm(f"{at}.bn2", conv(f"{at}.conv2", h, stride)))
                h = norm(f"{at}.bn3", conv(f"{at}.conv3", h, 1))
            x = F.relu(h + beside)
    return x.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("depth", "n_in", "side"), [(18, 1, 16), (18, 3, 33), (50, 5, 20)])
def test_equals_the_walk_through_the_names(depth, n_in, side):
    network = filled(depth, n_in, 7)
    x = torch.rand(3, n_in, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = slowly(network.double().state_dict(), depth, x.double())
        torch.testing.assert_close(network(x.double()), expected)
        torch.testing.assert_close(network.after(network.stem(x.double())), expected)
        assert network.float()(x).shape == (3, 7)


@pytest.mark.parametrize(
    ("depth", "n_in", "n_out", "count"),
    [
        (18, 3, 1000, 11_689_512),  # torchvision's
        (50, 3, 1000, 25_557_032),
        (18, 3, 512, 11_439_168),  # CLEAR-IT's
        (18, 3, 32, 11_192_928),
    ],
)
def test_number_of_weights(depth, n_in, n_out, count):
    assert sum(w.numel() for w in ResNet(depth, n_in, n_out).parameters()) == count


def test_without_a_last_layer_the_pooled_numbers_come_out():
    network = filled(18, 1, 0)
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(network(x), network.pooled(network.stem(x)))
    assert network(x).shape == (2, 512)
    assert not any(key.startswith("fc") for key in network.state_dict())


def test_initial_weights():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    network = ResNet(18, 1, 32)
    initialize(network, torch.Generator().manual_seed(4))
    assert torch.equal(torch.get_rng_state(), before)
    again = ResNet(18, 1, 32)
    initialize(again, torch.Generator().manual_seed(4))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
    assert isinstance(network.fc, nn.Linear)
    assert 0.9 < float(network.fc.weight.detach().abs().max()) * 512**0.5 <= 1


def test_fold():
    network = filled(18, 2, 0)
    for conv, norm in [(network.conv1, network.bn1), (network.layer2[0].conv1, network.layer2[0].bn1)]:  # type: ignore[index,union-attr]
        x = torch.rand(3, conv.in_channels, 9, 9)  # type: ignore[arg-type]
        weight, bias = fold(conv, norm)  # type: ignore[arg-type]
        found = F.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding)  # type: ignore[arg-type]
        torch.testing.assert_close(found, norm(conv(x)), rtol=1e-5, atol=1e-5)  # type: ignore[operator]
