"""CellSighter: cell types from windows with masks by a ResNet-50 (Amitay et al. 2023).

Input: the markers' pixels around a cell, the mask of all cells and the mask of this cell, C + 2 channels of 60 x 60 pixels.
Training, with augmentations in this order: Poisson resampling of the blurred pixels, masks grown at random, rotation by
any angle, single channels shifted by up to 5 pixels, the middle cut out, mirror images. Cross-entropy, Adam with 1e-3, each
class drawn equally often, the epoch with the fewest wrong calls, by class, on cells held out. Several networks may be trained; their probabilities are
averaged.

Written from the description of the method; none of the authors' code is in here. Departures: pixels that are no
counts are brought to a count-like range first, as Poisson noise has no meaning on others; the network then sees each marker
in units of its own brightness; before it is turned the window is smaller than 128 pixels, but large enough that no corner
is empty afterwards; windows at the border are filled with zeros instead of left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.learning.supervise import Schedule
from cytonym.models.base import require_whole
from cytonym.models.classifier import ClassifierConfig
from cytonym.models.resnet import ResNet, initialize
from cytonym.models.window_classifier import WindowClassifier, count_gain, middle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

CELLSIGHTER_SCHEDULE = Schedule(epochs=50, batch_size=32, learning_rate=1e-3, balance=True)
COUNTS = 100.0  # 90th percentile of a marker that is brought to counts


@dataclass(frozen=True)
class CellSighterConfig(ClassifierConfig):
    """Shape of CellSighter.

    Parameters
    ----------
    classes, multilabel
        As in `ClassifierConfig`; `hidden` and `dropout` are not used.
    window_px
        Side of the network's input (60 in the paper).
    shift_px
        Largest shift of a single channel in training (5 in the paper).
    members
        Networks whose probabilities are averaged.
    """

    dropout: float = 0.0
    window_px: int = 60
    shift_px: int = 5
    members: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, window_px=8, shift_px=0, members=1)


class CellSighter(WindowClassifier):
    """Windows with masks in, classes out.

    Parameters
    ----------
    markers
        Names of the C + 2 channels; the last two are the masks.
    config
        Shape of the network.
    """

    name: ClassVar[str] = "cellsighter"
    Config: ClassVar[type] = CellSighterConfig
    with_masks: ClassVar[bool] = True
    config: CellSighterConfig

    def __init__(self, markers: Sequence[str], config: CellSighterConfig) -> None:
        super().__init__(markers, config)
        n_in, n_out = len(self.markers), len(config.classes)
        self.models = nn.ModuleList(ResNet(50, n_in, n_out) for _ in range(config.members))
        self.gain: Tensor
        self.level: Tensor
        self.register_buffer("gain", torch.ones(n_in))
        self.register_buffer("level", torch.ones(n_in))

    @classmethod
    def from_statistics(
        cls, markers: Sequence[str], quantiles: ArrayLike, config: CellSighterConfig, *, seed: int = 0
    ) -> CellSighter:
        """New networks for C + 2 channels, of which the first C have these 90th percentiles of the non-zero pixels."""
        with torch.random.fork_rng(devices=[]):
            model = cls(markers, config)
        initialize(model, torch.Generator().manual_seed(seed))
        model.gain[:-2] = count_gain(quantiles, markers[:-2], COUNTS)
        bright = torch.as_tensor(quantiles, dtype=torch.float32) * model.gain[:-2]
        model.level[:-2] = torch.where(bright > 0, 1 / bright.clamp(min=1e-30), 1.0)
        return model

    @property
    def source_px(self) -> int:
        """Side of the window that training reads: farthest corner, shifted and turned, on each side of the centre."""
        return 2 * math.ceil((self.window_px // 2 + self.config.shift_px) * math.sqrt(2)) + 1

    def logits(self, windows: Tensor) -> Tensor:
        """Raw windows [B, C + 2, S, S] -> logarithms of the mean probabilities [B, K], or logits of a single network."""
        x = windows.float() * (self.gain * self.level)[:, None, None]
        found = torch.stack([model(x) for model in self.models])
        if len(found) == 1:
            return found[0]
        if self.config.multilabel:
            return found.sigmoid().mean(dim=0).logit(eps=1e-6)
        return found.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(found))

    def supervised_loss(self, inputs: tuple[Tensor, ...], targets: Tensor, generator: torch.Generator | None) -> Tensor:
        """Each network learns on its own, from its own variants of the same cells."""
        if generator is None:
            return self.cross_entropy(self.logits(middle(inputs[0], self.window_px)), targets)
        losses = [self.cross_entropy(m(self.augment(inputs[0], generator)), targets) for m in self.models]
        return torch.stack(losses).mean()

    def augment(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """Raw windows of `source_px` [B, C + 2, S0, S0] -> what the networks are trained on [B, C + 2, S, S]."""
        x = _framed(windows.float(), self.source_px) * self.gain[:, None, None]
        n, c = x.shape[:2]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=x.device)

        pixels = torch.poisson(_blurred(x[:, :-2]).clamp(min=0), generator=generator)
        grown = [torch.where(uniform(n, 1, 1) < 0.5, _grown(x[:, -i], uniform), x[:, -i])[:, None] for i in (2, 1)]
        x = _rotated(torch.cat([pixels, *grown], dim=1), uniform(n) * 2 * math.pi)
        moved = (uniform(n, 1) < 0.5) & (uniform(n, c) < 0.3)
        reach = self.config.shift_px
        shift = torch.randint(-reach, reach + 1, (n, c, 2), generator=generator, device=x.device) * moved[..., None]
        first = x.shape[-1] // 2 - self.window_px // 2
        at = torch.arange(first, first + self.window_px, device=x.device)
        rows, columns = (at + shift[..., i, None] for i in (0, 1))
        x = x.gather(2, rows[..., None].expand(-1, -1, -1, x.shape[-1]))
        x = x.gather(3, columns[:, :, None].expand(-1, -1, self.window_px, -1))
        for axis in (3, 2):
            x = torch.where(uniform(n, 1, 1, 1) < 0.75, x.flip(axis), x)
        return x * self.level[:, None, None]


def _framed(x: Tensor, side: int) -> Tensor:
    """Windows of this side, cut out or with zeros around them, the cell's centre still in the middle."""
    before = side // 2 - x.shape[-1] // 2
    after = side - x.shape[-1] - before
    return F.pad(x, (before, after, before, after))


def _blurred(x: Tensor) -> Tensor:
    """Gaussian blur with a kernel of 5 x 5 pixels and the standard deviation that goes with it, 1.1 pixels."""
    at = torch.arange(5, device=x.device, dtype=x.dtype) - 2
    line = torch.exp(-0.5 * (at / 1.1) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    single = F.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="reflect")
    return F.conv2d(single, kernel[None, None]).view_as(x)


def _grown(mask: Tensor, uniform: object) -> Tensor:
    """Masks [B, S, S] grown along columns by a kernel of 2, 3 or 5 pixels, drawn for the batch."""
    length = (2, 3, 5)[int(float(uniform(1)) * 3)]  # type: ignore[operator]
    above, below = (length - 1) // 2, length // 2
    padded = F.pad(mask[:, None], (0, 0, above, below))
    return F.max_pool2d(padded, (length, 1), stride=1)[:, 0]


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Windows turned about their centre, nearest pixel, zeros beyond."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)
