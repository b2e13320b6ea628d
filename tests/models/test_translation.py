"""Generators and discriminator, against walks through their weights by the published names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.translation import (
    PatchDiscriminator,
    ResNetGenerator,
    TileNorm,
    UNetGenerator,
    initialize,
    scaled,
    to_uint8,
)

if TYPE_CHECKING:
    from collections.abc import Callable

torch.set_num_threads(1)


def drawn(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights and normalisation layers that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
        else:
            tensor.copy_(
                torch.rand(tensor.shape, generator=generator) + (0.5 if name.endswith(("weight", "var")) else -0.5)
            )
    return network.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var = x.mean(dim=(2, 3), keepdim=True), x.var(dim=(2, 3), keepdim=True, unbiased=False)
    gain, bias = (weights[f"{name}.{k}"][:, None, None] for k in ("weight", "bias"))
    return (x - mean) / (var + 1e-5).sqrt() * gain + bias


def slow_resnet(weights: dict[str, Tensor], x: Tensor, blocks: int, convs: tuple[int, int], padding: str) -> Tensor:
    mode = {"zero": "constant", "reflect": "reflect"}[padding]

    def pad(x: Tensor, n: int) -> Tensor:
        return F.pad(x, (n,) * 4, mode=mode)

    x = F.relu(norm(weights, "model.2", F.conv2d(pad(x, 3), weights["model.1.weight"])))
    for i in (4, 7):
        x = F.relu(norm(weights, f"model.{i + 1}", F.conv2d(x, weights[f"model.{i}.weight"], stride=2, padding=1)))
    for i in range(10, 10 + blocks):
        a, b = (f"model.{i}.conv_block.{k}" for k in convs)
        after = [f"model.{i}.conv_block.{k + 1}" for k in convs]
        y = F.relu(norm(weights, after[0], F.conv2d(pad(x, 1), weights[f"{a}.weight"])))
        x = x + norm(weights, after[1], F.conv2d(pad(y, 1), weights[f"{b}.weight"]))
    for i in (10 + blocks, 13 + blocks):
        y = F.conv_transpose2d(x, weights[f"model.{i}.weight"], stride=2, padding=1, output_padding=1)
        x = F.relu(norm(weights, f"model.{i + 1}", y))
    last = f"model.{17 + blocks}"
    return F.conv2d(pad(x, 3), weights[f"{last}.weight"], weights[f"{last}.bias"]).tanh()


def slow_unet(weights: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    levels = ["model.model.1.model" + ".3.model" * i for i in range(depth - 1)]
    skips = [F.conv2d(x, weights["model.model.0.weight"], stride=2, padding=1)]
    for i, at in enumerate(levels):
        y = F.conv2d(F.leaky_relu(skips[-1], 0.2), weights[f"{at}.1.weight"], stride=2, padding=1)
        skips.append(y if i == depth - 2 else norm(weights, f"{at}.2", y))
    y = skips.pop()
    for i, at in reversed(list(enumerate(levels))):
        up = 3 if i == depth - 2 else 5
        y = F.conv_transpose2d(F.relu(y), weights[f"{at}.{up}.weight"], stride=2, padding=1)
        y = torch.cat([skips.pop(), norm(weights, f"{at}.{up + 1}", y)], dim=1)
    return F.conv_transpose2d(F.relu(y), weights["model.model.3.weight"], weights["model.model.3.bias"], 2, 1).tanh()


@pytest.mark.parametrize(
    ("padding", "dropout", "convs"),
    [("zero", True, (0, 4)), ("zero", False, (0, 3)), ("reflect", True, (1, 6)), ("reflect", False, (1, 5))],
)
def test_resnet_equals_the_walk_through_the_names(padding, dropout, convs):
    network = drawn(ResNetGenerator(2, 5, 4, 3, padding=padding, dropout=dropout)).double()
    x = noise(2, 2, 20, 32).double()
    with torch.no_grad():
        found = network(x)
        torch.testing.assert_close(found, slow_resnet(network.state_dict(), x, 3, convs, padding))
        torch.testing.assert_close(found.atanh(), network.before_tanh(x))
    assert found.shape == (2, 5, 20, 32)


@pytest.mark.parametrize("depth", [2, 3, 5, 6])
def test_unet_equals_the_walk_through_the_names(depth):
    network = drawn(UNetGenerator(4, 2, 3, depth)).double()
    x = noise(2, 4, 64, 128).double()
    with torch.no_grad():
        found = network(x)
        torch.testing.assert_close(found, slow_unet(network.state_dict(), x, depth))
        torch.testing.assert_close(found.atanh(), network.before_tanh(x))
    assert found.shape == (2, 2, 64, 128)


DEEP = "model.model.1.model" + ".3.model" * 7
PUBLISHED: list[tuple[Callable[[], nn.Module], int, dict[str, tuple[int, ...]]]] = [
    (
        lambda: ResNetGenerator(3, 3),
        11_383_427,
        {"model.18.conv_block.4.weight": (256, 256, 3, 3), "model.19.weight": (256, 128, 3, 3), "model.26.bias": (3,)},
    ),
    (
        lambda: UNetGenerator(3, 3),
        66_998_915,
        {f"{DEEP}.3.weight": (512, 512, 4, 4), f"{DEEP}.4.running_var": (512,), "model.model.3.weight": (128, 3, 4, 4)},
    ),
    (lambda: PatchDiscriminator(6), 6_964_033, {"model.11.weight": (512, 512, 4, 4), "model.14.bias": (1,)}),
]


@pytest.mark.parametrize(("network", "count", "some"), PUBLISHED, ids=["resnet_9blocks", "unet_512", "discriminator"])
def test_published_sizes(network, count, some):
    with torch.device("meta"):
        built = network()
    assert sum(p.numel() for p in built.parameters()) == count
    weights = {k: tuple(v.shape) for k, v in built.state_dict().items()}
    assert some.items() <= weights.items()


def test_dropout_at_the_widest_levels_but_the_innermost():
    def levels(network: Any) -> list[float]:
        found, level = [], network.model.model["1"]
        while level is not None:
            found.append(level.dropout)
            level = level.model["3"] if "5" in level.model else None
        return found

    with torch.device("meta"):
        assert levels(UNetGenerator(3, 3)) == [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0]
        assert levels(UNetGenerator(3, 3, dropout=False)) == [0] * 8
        assert levels(UNetGenerator(3, 3, depth=5)) == [0, 0, 0, 0]


def test_discriminator():
    network = drawn(PatchDiscriminator(6, 4, 3))
    x, weights = noise(1, 6, 64, 48), network.state_dict()
    y = F.leaky_relu(F.conv2d(x, weights["model.0.weight"], weights["model.0.bias"], 2, 1), 0.2)
    for i, stride in ((2, 2), (5, 2), (8, 1)):
        y = F.leaky_relu(
            norm(weights, f"model.{i + 1}", F.conv2d(y, weights[f"model.{i}.weight"], None, stride, 1)), 0.2
        )
    y = F.conv2d(y, weights["model.11.weight"], weights["model.11.bias"], 1, 1)
    torch.testing.assert_close(network(x), y)
    torch.testing.assert_close(network.train()(x), y)  # one tile: its statistics are those of the batch
    assert y.shape == (1, 1, 6, 4)
    with torch.device("meta"):
        assert PatchDiscriminator(6)(torch.empty(1, 6, 512, 512)).shape == (1, 1, 30, 30)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet": lambda **k: ResNetGenerator(3, 3, 4, 2, **k),
    "unet": lambda **k: UNetGenerator(3, 3, 4, 5, **k),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_its_tiles_one_by_one(name):
    network = drawn(NETWORKS[name]())
    x = (
        noise(3, 3, 32, 32) * torch.tensor([0.1, 1, 0.5])[:, None, None, None]
        + torch.tensor([0.5, 0, -0.4])[:, None, None, None]
    )
    with torch.no_grad():
        together = network(x)
        single = torch.cat([network(tile[None]) for tile in x])
        torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)
        for layer in network.modules():  # the statistics of all: something else
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()
        assert (network(x) - single).abs().max() > 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_stored_statistics_are_not_used(name):
    network = drawn(NETWORKS[name]())
    x = noise(1, 3, 32, 32)
    before = network(x)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.fill_(7)
    assert torch.equal(network(x), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_norm_by_tile_is_the_same_in_training(name):
    network = drawn(NETWORKS[name](norm="tile", dropout=False))
    x = noise(2, 3, 32, 32)
    torch.testing.assert_close(network(x), network.train()(x))
    other = drawn(NETWORKS[name](norm="batch", dropout=False))
    assert other.state_dict().keys() == network.state_dict().keys()
    assert not torch.allclose(other(x), other.train()(x), atol=1e-2)
    torch.testing.assert_close(other.eval()(x[:1]), other.train()(x[:1]))  # a batch of one


def test_tile_norm_keeps_statistics_in_training_alone():
    layer = TileNorm(2)
    layer(noise(2, 2, 4, 4) + 3)
    assert float(layer.running_mean.abs().min()) > 0.1
    kept = layer.running_mean.clone()
    layer.eval()(noise(2, 2, 4, 4))
    assert torch.equal(layer.running_mean, kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_weight_and_the_input(name):
    network = drawn(NETWORKS[name]()).train()
    x = noise(1, 3, 32, 32).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0
    for key, weight in network.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
    moved = {key for key, weight in network.named_parameters() if float(weight.grad.abs().max()) > 0}
    assert moved == {key for key, _ in network.named_parameters()}


def test_initial_weights():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    networks = [ResNetGenerator(3, 3, 16, 2), ResNetGenerator(3, 3, 16, 2), UNetGenerator(3, 3, 16, 4)]
    for network in networks:
        initialize(network, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    first, again, unet = networks
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    for layer in [*first.modules(), *unet.modules()]:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.15)
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert 0 < float((layer.weight.detach() - 1).abs().max()) < 0.1
            assert not layer.bias.any()
            assert not layer.running_mean.any()


def test_pixels_in_and_out():
    every = torch.arange(256, dtype=torch.uint8)
    x = scaled(every)
    assert x.dtype == torch.float32
    assert (float(x[0]), float(x[-1])) == (-1, 1)
    assert torch.equal(to_uint8(x + 1e-4), every)
    assert to_uint8(torch.tensor([-1.001, -1, -1 + 1.99 / 127.5, 1, 1.001])).tolist() == [0, 0, 1, 255, 255]
