"""LARS: the published arithmetic, tensor by tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cytonym.learning.lars import LARS


@pytest.mark.parametrize("prefix", ["lars", "lars_zero_bias"])
def test_published_steps(parity, prefix):
    """A bias that starts at zero takes a full step first."""
    x, y = parity("clearit_loss")
    layer = nn.Linear(8, 5)
    inputs, truth = (torch.from_numpy(x[name]) for name in ("lars_x", "lars_y"))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(x[f"{prefix}_w0"]))
        layer.bias.copy_(torch.from_numpy(x[f"{prefix}_b0"]))
    assert bool((layer.bias == 0).all()) == (prefix == "lars_zero_bias")
    optimizer = LARS(layer.parameters(), lr=0.3)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss = (layer(inputs) - truth).square().mean()
        loss.backward()
        optimizer.step()
        assert float(loss.detach()) == pytest.approx(float(y[f"{prefix}_loss{step}"]), abs=1e-6)
        np.testing.assert_allclose(layer.weight.detach().numpy(), y[f"{prefix}_w{step}"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(layer.bias.detach().numpy(), y[f"{prefix}_b{step}"], rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e4]),
    slope=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e4]),
    decay=st.sampled_from([0.0, 1e-4, 0.1]),
    lr=st.floats(1e-3, 2),
    trust=st.sampled_from([0.001, 0.1]),
)
def test_equals_the_rule(seed, size, slope, decay, lr, trust):
    rng = np.random.default_rng(seed)
    p, g = rng.normal(size=(3, 4)) * size, rng.normal(size=(3, 4)) * slope
    weight = nn.Parameter(torch.tensor(p))
    weight.grad = torch.tensor(g)
    LARS([weight], lr, weight_decay=decay, trust=trust).step()
    norm_p, norm_g = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
    scale = trust * norm_p / (norm_g + decay * norm_p + 1e-8) if norm_p > 0 and norm_g > 0 else 1.0
    np.testing.assert_allclose(weight.detach().numpy(), p - lr * scale * (g + decay * p), rtol=1e-9, atol=1e-15)


def test_each_tensor_on_its_own_and_none_without_a_gradient():
    weights = [nn.Parameter(torch.full((3,), v)) for v in (1.0, 10.0, 5.0)]
    weights[0].grad, weights[1].grad = torch.ones(3), torch.full((3,), 100.0)
    LARS(weights, lr=1.0, trust=0.01).step()
    for weight, expected in zip(weights, (0.99, 9.9, 5.0), strict=True):
        torch.testing.assert_close(weight.detach(), torch.full((3,), expected))


def test_groups_and_closure():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = LARS([{"params": [a]}, {"params": [b], "lr": 0.0}], lr=1.0, trust=0.5)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (a * 3 + b).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    found = optimizer.step(loss)
    assert found is not None
    assert float(found.detach()) == 4
    assert (a.item(), b.item()) == (pytest.approx(0.5), 1.0)
    assert optimizer.state_dict()["state"] == {}  # nothing to remember: a resumed training is the same
