"""MAPS: cell types from mean intensities and cell size by a multi-layer perceptron (Shaban et al. 2024).

Four layers of 512 units, each Linear, ReLU, Dropout, and a linear layer to the K classes. Inputs are z-scores by mean and standard
deviation of the training cells; the published program then divides them by 255, which its checkpoints need and `divisor=1`
leaves out. Training: cross-entropy, Adam, each class drawn equally often, the epoch of the lowest validation loss.

Written from the description of the method; none of the authors' code is in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from cytonym.learning.supervise import Schedule
from cytonym.models.classifier import CellClassifier, ClassifierConfig

MAPS_SCHEDULE = Schedule(
    epochs=500, min_epochs=250, patience=100, batch_size=128, learning_rate=1e-3, balance=True, drop_last=True
)
"""Defaults of the published library."""


@dataclass(frozen=True)
class MAPSConfig(ClassifierConfig):
    """Shape of a MAPS network.

    Parameters
    ----------
    classes, multilabel
        As in `ClassifierConfig`.
    hidden
        Sizes of the hidden layers: four times 512 in the paper.
    dropout
        After each hidden layer (0.25 in the paper's scripts).
    divisor
        Of the z-scores: 255 in the published program.
    """

    hidden: tuple[int, ...] = (512, 512, 512, 512)
    dropout: float = 0.25
    divisor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.divisor > 0:
            msg = f"`divisor` must be positive, got {self.divisor}."
            raise ValueError(msg)


class MAPS(CellClassifier):
    """Mean intensities and cell size in, classes out.

    Parameters
    ----------
    markers
        Names of the D inputs.
    config
        Shape of the network.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.maps import MAPS, MAPSConfig
    >>> MAPS(["CD8", "CD20", "area"], MAPSConfig(classes=("T", "B")))(torch.rand(5, 3)).shape
    torch.Size([5, 2])
    """

    name: ClassVar[str] = "maps"
    Config: ClassVar[type] = MAPSConfig
    config: MAPSConfig

    def build(self, n_in: int, n_out: int) -> None:
        """The layers, under the published names."""
        layers: list[nn.Module] = []
        sizes = [n_in, *self.config.hidden]
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(self.config.dropout)]
        self.fc = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [n, D] -> logits [n, K]."""
        out: Tensor = self.classifier(self.fc(self.standardize(x) / self.config.divisor))
        return out
