"""What classifiers on pixels share: windows of cells in, logits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from cytonym.models.classifier import Labeller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

ALL_CELLS, THIS_CELL = "mask of all cells", "mask of this cell"
"""Names of the two channels that hold masks, behind the markers."""


class Logits(NamedTuple):
    """What a classifier says about B cells, in the form in which `learning.predict` gathers rows."""

    logits: Tensor
    """[B, K], not calibrated."""


class WindowClassifier(Labeller):
    """Base of the classifiers on pixels. Subclasses implement `logits` and `augment`."""

    with_masks: ClassVar[bool] = False
    """Whether the last two channels are `ALL_CELLS` and `THIS_CELL`."""

    @property
    def window_px(self) -> int:
        """Side of the window that `encode` expects, in pixels of the image."""
        return int(self.config.window_px)

    @property
    def source_px(self) -> int:
        """Side of the window that training reads, so that turning it shows no empty corners."""
        return self.window_px

    def logits(self, windows: Tensor) -> Tensor:
        """Raw windows [B, C, S, S] -> [B, K]."""
        raise NotImplementedError

    def augment(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """Windows of `source_px` -> random variants of `window_px`."""
        raise NotImplementedError

    def encode(self, windows: Tensor) -> Logits:
        """See `learning.predict`."""
        return Logits(self.logits(windows))

    def supervised_loss(self, inputs: tuple[Tensor, ...], targets: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `learning.supervise`."""
        windows = inputs[0]
        if generator is None:
            return self.cross_entropy(self.logits(middle(windows, self.window_px)), targets)
        return self.cross_entropy(self.logits(self.augment(windows, generator)), targets)

    @torch.no_grad()
    def judge(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Share of wrong calls, which chooses the epoch: the loss of a network that is too sure says little about them."""
        logits = self.logits(middle(inputs[0], self.window_px))
        wrong = (logits > 0) != (targets > 0) if self.config.multilabel else logits.argmax(dim=1) != targets
        return wrong.float().mean()


def middle(windows: Tensor, side: int) -> Tensor:
    """The part of windows [B, C, S0, S0] around the cell's centre, which is the pixel at ``S0 // 2``."""
    first = windows.shape[-1] // 2 - side // 2
    return windows[..., first : first + side, first : first + side]


def turned(windows: Tensor, generator: torch.Generator) -> Tensor:
    """Quarter turns and mirror images of windows [B, C, S, S], each drawn for itself."""
    n, device = len(windows), windows.device
    turns = torch.randint(4, (n, 1, 1, 1), generator=generator, device=device)
    windows = torch.where(turns % 2 == 1, windows.rot90(1, (2, 3)), windows)
    windows = torch.where(turns >= 2, windows.flip(2, 3), windows)
    mirror = torch.rand((n, 1, 1, 1), generator=generator, device=device) < 0.5
    return torch.where(mirror, windows.flip(3), windows)


def count_gain(quantiles: ArrayLike, markers: Sequence[str], counts: float) -> Tensor:
    """Factors [C] that bring each marker's 90th percentile to so many counts; 1 for a marker without signal.

    Images that are counts already, with all these percentiles below 256, keep their unit.
    """
    values = torch.as_tensor(quantiles, dtype=torch.float32)
    if len(values) != len(markers):
        msg = f"`quantiles` must hold one number for each of the {len(markers)} markers, got {len(values)}."
        raise ValueError(msg)
    live = values > 0
    if bool(((values[live] >= 1) & (values[live] < 256)).all()):
        return torch.ones(len(markers))
    return torch.where(live, counts / values.clamp(min=1e-30), 1.0)
