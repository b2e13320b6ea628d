"""Layers that models share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class MarkerSigmoid(nn.Module):
    """Equation 1 for every marker, zero-referenced: f(x) - f(0), so that no signal is exactly 0.

    With s half the marker's 90th percentile of non-zero pixels, the learned numbers are a = x_c / s and b = x'_c s,
    initially 1 and 2 as in the paper. A marker silent in the training data (s = 0) stays silent whatever comes.
    """

    def __init__(self, n_markers: int) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(n_markers))
        self.center = nn.Parameter(torch.ones(n_markers))
        self.log_slope = nn.Parameter(torch.full((n_markers,), math.log(2.0)))

    def forward(self, x: Tensor, exposures: Sequence[float] = (1.0,)) -> Tensor:
        """Raw pixels [B, C, S, S] -> [B, C * E, S, S] in [0, 1], the exposures of marker 0, then those of marker 1, …"""
        gains, shift = self.curves(exposures)
        gains, shift = gains[:, :, None, None], shift[:, None, None, None]
        x = x.float()[:, :, None]
        y = torch.sigmoid(x * gains - shift) - torch.sigmoid(-shift)
        return torch.where(x > 0, y, 0.0).flatten(1, 2)  # exactly 0: the two sigmoids may round differently

    def curves(self, exposures: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Gains [C, E] and shifts [C] of the sigmoids 1 / (1 + exp(shift - gain x)), gain 0 for a silent marker."""
        slope = self.log_slope.exp()
        live = self.scale > 0
        gain = torch.where(live, 4 * slope / self.scale.where(live, 1.0), 0.0)
        return gain[:, None] * torch.tensor(exposures, device=gain.device), 4 * slope * self.center

    def penalty(self, max_slope: float) -> Tensor:
        """Equation 2 in units of s: a >= 0, b <= max_slope, a b >= 2; mean over markers."""
        slope = self.log_slope.exp()
        terms = F.relu(-self.center) + F.relu(slope - max_slope) + F.relu(2 / slope - self.center)
        return terms.mean()


class Standardize(nn.Module):
    """Features [B, n] minus their mean over their standard deviation: of the batch in training, of all batches after.

    Features that hardly vary are not blown up: a fiftieth of the largest deviation is added to each.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("deviation", torch.ones(n))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """[B, n] -> [B, n]."""
        mean, deviation = self.mean, self.deviation
        if self.training:
            mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
            with torch.no_grad():
                self.batches += 1
                share = (1 / self.batches).clamp(min=0.02)
                self.mean.lerp_(mean, share)
                self.deviation.lerp_(deviation, share)
        return (features - mean) / (deviation + 0.02 * deviation.max() + 1e-12)
