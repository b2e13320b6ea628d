"""Contrastive losses over any number of views and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

if TYPE_CHECKING:
    from collections.abc import Sequence


def ntxent(views: Sequence[Tensor] | Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross entropy (NT-Xent) of V views of the same B cells.

    With s_ij the cosine similarity of samples i and j among all n = V·B samples and P(i) the V−1 other views of the
    cell of sample i::

        loss = mean_i  mean_{j in P(i)}  ( −s_ij / τ + log Σ_{k ≠ i} exp(s_ik / τ) )

    For V = 2 this is the loss of SimCLR (Chen et al. 2020, equation 1).

    Where `torch.distributed` is initialised, the samples of all ranks stand in the denominator. Every rank returns the
    loss of the global batch, and the gradients averaged over the ranks (what DDP does) are those of one process that
    holds the global batch. Every rank must bring the same V, B and D.

    Parameters
    ----------
    views
        V ≥ 2 tensors [B, D], or one tensor [V, B, D]. Rows need not be normalised. Row b of every view is the same cell.
    temperature
        τ > 0. The default is that of the NeXtMarker paper.

    Returns
    -------
    Tensor
        Scalar, float32 (float64 for float64 input), whatever autocast says.

    Raises
    ------
    ValueError
        Fewer than two views, views of different shapes, or a temperature that is not positive.

    Examples
    --------
    >>> import torch
    >>> views = [torch.eye(3), torch.eye(3)]
    >>> round(float(ntxent(views, temperature=0.5)), 4)
    0.4327
    """
    stacked = _stack(views)
    if not temperature > 0:
        msg = f"temperature must be positive, got {temperature}."
        raise ValueError(msg)
    with torch.autocast(stacked.device.type, enabled=False):
        if stacked.dtype != torch.float64:
            stacked = stacked.float()
        n_views, batch, _ = stacked.shape
        z = F.normalize(stacked, dim=-1)  # [V, B, D]
        # A cell's positives are all on this rank: their summed similarity needs no pair matrix.
        positive = (z * (z.sum(0, keepdim=True) - z)).sum(-1) / (n_views - 1)  # [V, B]

        anchors = z.reshape(n_views * batch, -1)
        samples, first = _gather(anchors)  # [n of all ranks, D]; ours start at row `first`
        logits = anchors @ samples.T / temperature
        own = torch.arange(len(anchors), device=z.device)
        logits[own, own + first] = -torch.inf  # k != i
        loss = logits.logsumexp(1).mean() - positive.mean() / temperature
        return _mean_value(loss)


def _stack(views: Sequence[Tensor] | Tensor) -> Tensor:
    if not isinstance(views, Tensor):
        shapes = [tuple(view.shape) for view in views]
        if len(set(shapes)) > 1:
            msg = f"All views must have the same shape [B, D], got {shapes}."
            raise ValueError(msg)
        if len(shapes) < 2:
            msg = f"A contrastive loss needs at least two views of each cell, got {len(shapes)}."
            raise ValueError(msg)
        views = torch.stack(list(views))
    if views.ndim != 3:
        msg = f"Expected views [B, D] or one tensor [V, B, D], got a stack of shape {tuple(views.shape)}."
        raise ValueError(msg)
    if len(views) < 2:
        msg = f"A contrastive loss needs at least two views of each cell, got {len(views)}."
        raise ValueError(msg)
    return views


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(rows: Tensor) -> tuple[Tensor, int]:
    """All ranks' rows under one another, and the index of our first."""
    if _world() == 1:
        return rows, 0
    return _GatherRows.apply(rows), dist.get_rank() * len(rows)


def _mean_value(loss: Tensor) -> Tensor:
    """The loss of this rank's anchors with its value replaced by the mean over ranks; the gradient stays ours."""
    if _world() == 1:
        return loss
    value = loss.detach().clone()
    dist.all_reduce(value)
    return loss + (value / _world() - loss.detach())


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums what every rank's loss says about our rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n = len(rows)
        parts = [torch.empty_like(rows) for _ in range(_world())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        first = dist.get_rank() * ctx.n
        return grad[first : first + ctx.n]
