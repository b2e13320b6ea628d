"""A tiny encoder with everything that can go wrong in training: dropout, running statistics, random views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from cytonym.learning.losses import ntxent
from cytonym.learning.views import ViewConfig
from cytonym.models.base import CellEncoder, Encoding, Recipe


@dataclass(frozen=True)
class BlendConfig:
    window_px: int = 3


class Blend(CellEncoder):
    """Sums of each marker's window, mixed."""

    name: ClassVar[str] = "blend"
    Config: ClassVar[type] = BlendConfig
    recipe: ClassVar[Recipe] = Recipe(
        steps=12,
        batch_size=8,
        learning_rate=1e-2,
        final_rate=1e-3,
        warmup=0.25,
        constant=0.25,
        views=ViewConfig(window_px=(3,), intensity=(0.5, 2.0)),
    )

    def __init__(self, markers, config=None):
        super().__init__(markers, config or BlendConfig())
        self.norm = nn.BatchNorm1d(len(self.markers))
        self.drop = nn.Dropout(0.2)
        self.mix = nn.utils.skip_init(nn.Linear, len(self.markers), 4)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-1, 1, self.mix.weight.numel()).reshape_as(self.mix.weight))
            self.mix.bias.zero_()

    def features(self, windows: Tensor) -> Tensor:
        return windows.float().mean(dim=(2, 3))

    def encode(self, windows: Tensor) -> Encoding:
        found = self.features(windows)
        return Encoding(self.mix(self.norm(found)), found, found.repeat_interleave(2, dim=1))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        found = ntxent([self.mix(self.drop(self.norm(self.features(view)))) for view in views])
        return {"loss": found, "contrastive": found.detach()}


@pytest.fixture
def blend() -> type[CellEncoder]:
    return Blend
