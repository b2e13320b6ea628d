"""Names for cells out of numbers: the heads of CLEAR-IT, and what makes their probabilities honest.

Numbers of a cell [D] are standardised, then a head gives one logit z a class: a single linear layer (the paper's "SLP") or
hidden layers with rectifiers. With several classes of which one is true, probabilities are softmax(z / T); where a cell
may have several (multi-label), they are sigmoid(z / T). The temperature T is fitted to cells that the head was not trained on.

A class is called where its probability is the largest, or, with several labels, above the threshold t of the class, which
maximises F1 on cells held out. The confidence of a call with probability p is p itself, or as in the paper (p - t) / (1 - t) for
a positive and (t - p) / t for a negative call.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.base import tuples
from cytonym.models.published import read_published, yaml_beside

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a head.

    Parameters
    ----------
    classes
        Names of the K classes, in the order of the outputs.
    hidden
        Sizes of the hidden layers; none is a linear head.
    dropout
        Share of numbers dropped before each linear layer in training (0.3 in the paper).
    multilabel
        A cell may have any number of the classes.
    """

    classes: tuple[str, ...]
    hidden: tuple[int, ...] = ()
    dropout: float = 0.3
    multilabel: bool = False

    def __post_init__(self) -> None:
        least = 1 if self.multilabel else 2
        if len(self.classes) < least or len(set(self.classes)) < len(self.classes):
            msg = f"`classes` must hold at least {least} names, each once, got {list(self.classes)}."
            raise ValueError(msg)
        if not 0 <= self.dropout < 1:
            msg = f"`dropout` must be at least 0 and below 1, got {self.dropout}."
            raise ValueError(msg)


class Labeller(nn.Module):
    """Base of what names cells: classes, a temperature, thresholds, and calls with a confidence."""

    name: ClassVar[str]
    Config: ClassVar[type]
    config: Any

    def __init__(self, markers: Sequence[str], config: Any) -> None:
        super().__init__()
        self.markers: tuple[str, ...] = tuple(str(m) for m in markers)
        """Names of the inputs."""
        self.config = config
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        n = len(config.classes)
        self.temperature: Tensor
        self.thresholds: Tensor
        self.register_buffer("temperature", torch.ones(n if config.multilabel else 1))
        self.register_buffer("thresholds", torch.full((n,), 0.5))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return tuple(self.config.classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [n, K] -> calibrated probabilities [n, K]."""
        scaled = logits / self.temperature
        return scaled.sigmoid() if self.config.multilabel else scaled.softmax(dim=1)

    def set_thresholds(self, thresholds: np.ndarray | Sequence[float]) -> None:
        """Thresholds [K] on probabilities, above which a class is called (multi-label)."""
        values = torch.as_tensor(thresholds, dtype=torch.float32)
        if values.shape != self.thresholds.shape or not bool(((values >= 0) & (values <= 1)).all()):
            msg = f"Thresholds must be one number from 0 to 1 for each of {list(self.classes)}, got {values.tolist()}."
            raise ValueError(msg)
        self.thresholds.copy_(values)

    def calibrate(self, logits: Tensor, targets: Tensor) -> None:
        """Fit the temperature to logits [n, K] of cells that the head was not trained on, by likelihood.

        It lies between 0.01 and 100, and stays 1 where the cells say nothing about it.
        """
        if self.config.multilabel:
            self.temperature.copy_(torch.stack([_temperature(z, t) for z, t in zip(logits.T, targets.T, strict=True)]))
        else:
            self.temperature.copy_(_temperature(logits, targets)[None])

    def config_dict(self) -> dict[str, Any]:
        """The config as plain types."""
        return asdict(self.config)

    @classmethod
    def config_from_dict(cls, values: dict[str, Any]) -> Any:
        """The config from what `config_dict` gave, also after a trip through JSON."""
        return cls.Config(**{key: tuples(value) for key, value in values.items()})

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss: cross-entropy of class numbers [n], or binary cross-entropy of 0/1 [n, K]."""
        if self.config.multilabel:
            return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
        return F.cross_entropy(logits, targets)


class CellClassifier(Labeller):
    """A head on numbers of cells, with the standardisation in front of it.

    Parameters
    ----------
    markers
        Names of the D inputs.
    config
        Shape of the head.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.classifier import CellClassifier, ClassifierConfig
    >>> model = CellClassifier(["CD8", "CD20"], ClassifierConfig(classes=("T", "B")))
    >>> model.probabilities(model(torch.rand(5, 2))).shape
    torch.Size([5, 2])
    """

    name: ClassVar[str] = "classifier"
    Config: ClassVar[type] = ClassifierConfig
    config: ClassifierConfig

    def __init__(self, markers: Sequence[str], config: ClassifierConfig) -> None:
        super().__init__(markers, config)
        d = len(self.markers)
        self.unit: Tensor
        self.center: Tensor
        self.spread: Tensor
        self.register_buffer("unit", torch.zeros(d))
        self.register_buffer("center", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))
        self.build(d, len(config.classes))

    def build(self, n_in: int, n_out: int) -> None:
        """The layers; their names are those of the published heads."""
        sizes = [n_in, *self.config.hidden, n_out]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            layers += [nn.ReLU()] * (i > 0) + [nn.Dropout(self.config.dropout), nn.Linear(a, b)]
        self.head = nn.Sequential(*layers)

    def set_scaling(self, unit: np.ndarray, center: np.ndarray, spread: np.ndarray) -> None:
        """Standardisation of the inputs, each [D]: (f(x) - center) / spread, f(x) = asinh(x / unit), or x where unit is 0."""
        for name, values in (("unit", unit), ("center", center), ("spread", spread)):
            buffer = getattr(self, name)
            found = torch.as_tensor(values).to(buffer)
            kind, least = ("positive number", 0.0) if name == "spread" else ("number", -math.inf)
            if found.shape != buffer.shape or not bool((torch.isfinite(found) & (found > least)).all()):
                msg = f"`{name}` must hold one {kind} for each of the {len(self.markers)} inputs, got {found.tolist()[:5]}."
                raise ValueError(msg)
            buffer.copy_(found)

    def standardize(self, x: Tensor) -> Tensor:
        """Inputs [n, D] as the head takes them."""
        shaped = torch.where(self.unit > 0, torch.asinh(x / torch.where(self.unit > 0, self.unit, 1.0)), x)
        return (shaped - self.center) / self.spread

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [n, D] -> logits [n, K], not yet calibrated."""
        out: Tensor = self.head(self.standardize(x))
        return out

    def supervised_loss(self, inputs: tuple[Tensor, ...], targets: Tensor, generator: Any = None) -> Tensor:
        """See `learning.supervise`."""
        return self.cross_entropy(self(inputs[0]), targets)

    @classmethod
    def from_published(
        cls,
        path: str | Path,
        classes: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        *,
        multilabel: bool = True,
    ) -> CellClassifier:
        """CLEAR-IT's published head: `head.pt`, a state dict, with `conf_head.yaml` beside it if there is one.

        Parameters
        ----------
        path
            The file, or the folder that holds `head.pt`. Keys with and without `head.` in front are known. Read with
            ``weights_only=True``.
        classes, inputs
            Names of the outputs and of the inputs; numbers by default.
        multilabel
            Probabilities are sigmoids; else a softmax. The YAML file goes before it.

        Returns
        -------
        The head in evaluation mode, with the thresholds of the YAML file. Its inputs are taken as they are.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is damaged or no head, or the names are too few or too many.
        """
        file, found = read_published(path, "head.pt")
        weights = {k if k.startswith("head.") else f"head.{k}": v for k, v in found.items()}
        layers = sorted((k for k in weights if k.endswith(".weight") and weights[k].ndim == 2), key=_number)
        shapes = [tuple(weights[k].shape) for k in layers]
        told = yaml_beside(file, "conf_head.yaml")
        expected = {f"head.{3 * i + 1}.weight": s for i, s in enumerate(shapes)}
        expected |= {f"head.{3 * i + 1}.bias": s[:1] for i, s in enumerate(shapes)}
        fitting = all(a[0] == b[1] for a, b in pairwise(shapes))
        if not shapes or not fitting or {k: tuple(v.shape) for k, v in weights.items()} != expected:
            msg = f"'{file}' is no CLEAR-IT head: its weights are {[(k, list(v.shape)) for k, v in found.items()][:4]}."
            raise ValueError(msg)
        n_in, n_out = shapes[0][1], shapes[-1][0]
        named = {"classes": (classes, n_out), "inputs": (inputs, n_in)}
        for what, (given, n) in named.items():
            if given is not None and len(given) != n:
                msg = f"'{file}' has {n} {what}, but {len(given)} names were given."
                raise ValueError(msg)
        config = ClassifierConfig(
            classes=tuple(classes or map(str, range(n_out))),
            hidden=tuple(s[0] for s in shapes[:-1]),
            dropout=float(told.get("dropout", 0.3)),
            multilabel=told.get("label_mode", "multilabel" if multilabel else "multiclass") == "multilabel",
        )
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights that are replaced at once
            model = CellClassifier(inputs or [str(i) for i in range(n_in)], config)
        model.load_state_dict(weights, strict=False)
        if told.get("thresholds") is not None:
            model.set_thresholds([float(t) for t in told["thresholds"]])
        model.provenance = {"published": file.name}
        return model.eval()


def _number(key: str) -> int:
    """Place of a layer in a `Sequential`: 4 of ``head.4.weight``."""
    found = key.split(".")[1]
    return int(found) if found.isdigit() else -1


def _temperature(logits: Tensor, targets: Tensor) -> Tensor:
    """The most probable temperature: the best of a grid, refined by golden sections between its neighbours.

    To the negative log-likelihood comes (log T)^2 / 2: a few cells that happen to be all right must not make every
    probability 0 or 1.
    """
    z, t = logits.double(), targets

    def cost(log: float) -> float:
        scaled = z * math.exp(-log)
        if z.ndim == 2:
            return float(F.cross_entropy(scaled, t.long(), reduction="sum")) + log**2 / 2
        return float(F.binary_cross_entropy_with_logits(scaled, t.double(), reduction="sum")) + log**2 / 2

    if not z.numel():
        return torch.ones((), device=logits.device)
    step = math.log(100) / 40
    low, high = -40 * step, 40 * step
    best = min((low + i * step for i in range(81)), key=lambda log: (cost(log), abs(log)))
    low, high, ratio = max(low, best - step), min(high, best + step), (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    found = min(best, (low + high) / 2, key=cost)
    return torch.tensor(math.exp(found), dtype=torch.float32, device=logits.device)
