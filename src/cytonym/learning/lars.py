"""LARS: one learning rate a tensor, in proportion to its norm over that of its gradient (You et al. 2017).

Written here because the maintained implementations either leave out biases and normalisation layers, or bring a vision
library along. This is the rule that CLEAR-IT was trained with: every tensor on its own, none left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Plain gradient descent, each tensor scaled on its own: p ← p − lr · q · (g + wd · p).

    With ‖·‖ the norm of the whole tensor, q = trust · ‖p‖ / (‖g‖ + wd · ‖p‖ + eps), and q = 1 where ‖p‖ or ‖g‖ is zero:
    a tensor that starts at zero, as the biases of normalisation layers do, makes one unscaled step first.

    Parameters
    ----------
    params
        Tensors to train, or groups of them.
    lr
        Learning rate (CLEAR-IT: 0.3 · N / 256 for batches of N windows).
    weight_decay
        Added to the gradient after its norm is taken.
    trust
        Trust coefficient (CLEAR-IT: 0.001).
    eps
        Keeps the quotient finite (CLEAR-IT: 1e-8).

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.0, 2.0])
    >>> LARS([weight], lr=1.0, trust=0.1).step()
    >>> weight.data
    tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "trust": trust, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step for every tensor with a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            decay = group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                size, slope = p.norm(), p.grad.norm()
                scale = group["trust"] * size / (slope + decay * size + group["eps"])
                scale = torch.where((size > 0) & (slope > 0), scale, 1.0)
                p.sub_((p.grad + decay * p) * scale * group["lr"])
        return loss
