from __future__ import annotations

import math
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from cytonym.learning.losses import ntxent


def slow_ntxent(views: list[Tensor], temperature: float) -> Tensor:
    """The definition, one pair at a time."""
    samples = [(v, b, row / row.norm()) for v, view in enumerate(views) for b, row in enumerate(view)]
    anchors = []
    for v, b, row in samples:
        others = [torch.dot(row, r) / temperature for w, c, r in samples if (w, c) != (v, b)]
        denominator = torch.stack(others).exp().sum().log()
        positives = [torch.dot(row, r) / temperature for w, c, r in samples if c == b and w != v]
        anchors.append(torch.stack([denominator - s for s in positives]).mean())
    return torch.stack(anchors).mean()


def random_views(n_views: int, batch: int, dim: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, generator=generator, dtype=torch.float64) * 3 for _ in range(n_views)]


@pytest.mark.parametrize("n_views", [2, 3, 6])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_definition(n_views: int, batch: int, temperature: float) -> None:
    fast = [view.clone().requires_grad_() for view in random_views(n_views, batch, 4)]
    slow = [view.clone().requires_grad_() for view in random_views(n_views, batch, 4)]
    loss, expected = ntxent(fast, temperature), slow_ntxent(slow, temperature)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_published_values_and_gradients(parity: Any, n: int, temperature: float) -> None:
    """CLEAR-IT: rows 2i and 2i + 1 are the views of window i, and the loss is the sum over both views."""
    x, y = parity("clearit_loss")
    z = torch.from_numpy(x[f"z_N{n}"]).requires_grad_()
    loss = 2 * ntxent([z[0::2], z[1::2]], temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    expected, gradient = float(y[f"loss_N{n}_tau{temperature}"]), y[f"grad_N{n}_tau{temperature}"]
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(z.grad.numpy(), gradient, rtol=0, atol=1e-5 * max(1.0, float(np.abs(gradient).max())))


def test_stacked_equals_list() -> None:
    views = random_views(3, 4, 5)
    torch.testing.assert_close(ntxent(torch.stack(views), 0.5), ntxent(views, 0.5), rtol=0, atol=0)


def test_order_of_views_and_cells_does_not_matter() -> None:
    views = random_views(3, 6, 5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(ntxent([v[order] for v in views[::-1]], 0.5), ntxent(views, 0.5))


def test_scale_of_an_embedding_does_not_matter() -> None:
    a, b = random_views(2, 6, 5)
    torch.testing.assert_close(ntxent([a * 1e6, b * 1e-6], 0.5), ntxent([a, b], 0.5))


def test_stable_at_tiny_temperature_and_zero_rows() -> None:
    views = [view.float().requires_grad_() for view in random_views(2, 8, 5)]
    loss = ntxent(views, 1e-4)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(bool(view.grad.isfinite().all()) for view in views if view.grad is not None)
    zeros = torch.zeros(2, 4, 3, requires_grad=True)
    loss = ntxent(zeros, 0.5)
    assert loss.item() == pytest.approx(math.log(7))  # all samples alike
    loss.backward()
    assert zeros.grad is not None
    assert bool(zeros.grad.isfinite().all())


def test_full_precision_under_autocast() -> None:
    views = [view.float() for view in random_views(2, 8, 5)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ntxent(views, 0.5)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, ntxent(views, 0.5), rtol=0, atol=0)


def test_falls_when_views_agree() -> None:
    a, b = random_views(2, 16, 8)
    assert ntxent([a, a + 0.01 * b], 0.5) < ntxent([a, b], 0.5)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([torch.ones(4, 3)], "at least two views of each cell, got 1"),
        (torch.ones(1, 4, 3), "at least two views of each cell, got 1"),
        ([], "at least two views of each cell, got 0"),
        ([torch.ones(4, 3), torch.ones(5, 3)], r"same shape \[B, D\], got \[\(4, 3\), \(5, 3\)\]"),
        ([torch.ones(4), torch.ones(4)], r"got a stack of shape \(2, 4\)"),
    ],
)
def test_wrong_views(views: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ntxent(views, 0.5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_wrong_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        ntxent(random_views(2, 3, 4), temperature)


def _one_rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    views, weight = _inputs()
    half = views[:, rank * 4 : rank * 4 + 4]
    loss = ntxent(list(half @ weight), 0.3)
    loss.backward()
    assert weight.grad is not None
    distributed.all_reduce(weight.grad)  # what DDP does: mean over ranks
    save_file({"loss": loss.detach(), "grad": weight.grad / 2}, folder / f"{rank}.safetensors")
    distributed.destroy_process_group()


def _inputs() -> tuple[Tensor, Tensor]:
    views = torch.stack(random_views(3, 8, 6))
    return views, random_views(1, 6, 5, seed=1)[0].requires_grad_()


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    views, weight = _inputs()
    loss = ntxent(list(views @ weight), 0.3)
    loss.backward()
    for rank in range(2):
        there = load_file(tmp_path / f"{rank}.safetensors")
        torch.testing.assert_close(there["loss"], loss.detach())
        torch.testing.assert_close(there["grad"], weight.grad)


if __name__ == "__main__":
    _one_rank(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
