"""An encoder and a linear head, trained together on labels: the future work that CLEAR-IT's paper names.

The head starts at the logistic regression on the embedding of the untouched encoder, so that training begins where a frozen
encoder ends, and all weights then follow the labels at a small rate. Normalisation layers keep the statistics
of the training without labels: a handful of cells would blur them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cytonym.learning.supervise import Schedule
from cytonym.models import registry
from cytonym.models.classifier import ClassifierConfig
from cytonym.models.window_classifier import WindowClassifier, middle, turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.models.base import CellEncoder

FINE_TUNING = Schedule(epochs=30, patience=10, batch_size=64, learning_rate=1e-4, weight_decay=1e-4, balance=True)


@dataclass(frozen=True)
class FineTunedConfig(ClassifierConfig):
    """What is trained further.

    Parameters
    ----------
    classes, multilabel, dropout
        As in `ClassifierConfig`.
    encoder
        Name of the encoder's method.
    encoder_config
        Its config as plain types.
    """

    dropout: float = 0.1
    encoder: str = "nextmarker"
    encoder_config: dict[str, Any] = field(default_factory=dict)


class FineTuned(WindowClassifier):
    """Raw windows in, classes out, by an encoder that has seen labels.

    Parameters
    ----------
    markers
        Names of the C channels.
    config
        Names the encoder and the classes.
    """

    name: ClassVar[str] = "finetuned"
    Config: ClassVar[type] = FineTunedConfig
    config: FineTunedConfig

    def __init__(self, markers: Sequence[str], config: FineTunedConfig) -> None:
        super().__init__(markers, config)
        cls = registry.get(config.encoder)
        self.encoder: CellEncoder = cls(markers, cls.config_from_dict(config.encoder_config))
        with torch.no_grad():
            side = self.encoder.window_px
            d = self.encoder.eval().encode(torch.zeros(1, len(self.markers), side, side)).embedding.shape[1]
        self.center: Tensor
        self.spread: Tensor
        self.register_buffer("center", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.utils.skip_init(nn.Linear, d, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def of(cls, encoder: CellEncoder, classes: Sequence[str], *, multilabel: bool) -> FineTuned:
        """A classifier around a copy of an encoder."""
        config = FineTunedConfig(
            tuple(classes), multilabel=multilabel, encoder=encoder.name, encoder_config=encoder.config_dict()
        )
        with torch.random.fork_rng(devices=[]):
            model = cls(encoder.markers, config)
        model.encoder.load_state_dict(encoder.state_dict())
        return model

    @property
    def window_px(self) -> int:
        """Side of the window that the encoder expects."""
        return self.encoder.window_px

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  torch's signature
        """The encoder's normalisation layers stay as they are."""
        super().train(mode)
        self.encoder.eval()
        return self

    def logits(self, windows: Tensor) -> Tensor:
        """Raw windows [B, C, S, S] -> [B, K]."""
        embedding = (self.encoder.encode(windows).embedding - self.center) / self.spread
        out: Tensor = self.head(self.dropout(embedding))
        return out

    def augment(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """Quarter turns and mirror images."""
        return turned(middle(windows, self.window_px), generator)
