"""Views of single-channel windows as CLEAR-IT draws them: its augmentations, in its order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SIGMA = 1e-2  # of a blur that does nothing


@dataclass(frozen=True)
class SimCLRViews:
    """What two views of the same window may differ by (CLEAR-IT, methods, "Unsupervised encoder pre-training").

    Order, every step drawn for each window: blur, brightness and contrast, translation, zoom, crop, quarter turns, flips.
    Turns and flips are always on; the defaults of the others are off, as in the paper's baseline.

    Parameters
    ----------
    window_px
        Side of the views in pixels, one number in a tuple.
    views_per_size
        Views of each window.
    blur_px
        Largest standard deviation of a Gaussian blur; its kernel has ``2 * blur_px + 1`` pixels.
    brightness, contrast
        Amplitude x of a factor in [1 - x, 1 + x] on the pixels, or on their difference from the window's mean. The result is
        clamped to [0, 1]. Which of the two comes first is drawn for each batch.
    translation_px
        Radius of the disc in which the centre moves, uniform by area.
    zoom
        Smallest and largest zoom as *area* factors, as in the paper: (2/3, 4/3) draws the linear size between 0.816 and 1.155.

    Examples
    --------
    >>> views = SimCLRViews(window_px=(64,), zoom=(2 / 3, 4 / 3))
    >>> views.source_px()
    78
    """

    window_px: tuple[int, ...] = (64,)
    views_per_size: int = 2
    blur_px: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    translation_px: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.zoom
        if not 0 < low <= high < math.inf:
            msg = f"`zoom` must be two area factors with 0 < low <= high, got {self.zoom}."
            raise ValueError(msg)
        if len(self.window_px) != 1 or self.window_px[0] < 1:
            msg = f"`window_px` must hold one side of at least 1 pixel, got {self.window_px}."
            raise ValueError(msg)
        if self.views_per_size < 2:
            msg = f"Contrastive training needs at least 2 views, got {self.views_per_size}. Raise `views_per_size`."
            raise ValueError(msg)
        for name in ("blur_px", "brightness", "contrast", "translation_px"):
            if not 0 <= getattr(self, name) < math.inf:
                msg = f"`{name}` must be a number of at least 0, got {getattr(self, name)!r}."
                raise ValueError(msg)

    @property
    def n_views(self) -> int:
        """Number of views made of each window."""
        return self.views_per_size

    def source_px(self) -> int:
        """Side of the window to read so that zooming out and moving show tissue instead of padding."""
        return math.floor(self.window_px[0] / math.sqrt(min(1.0, self.zoom[0])) + 2 * self.translation_px + 1e-9)

    def make(self, windows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw the views of a batch.

        Parameters
        ----------
        windows
            [B, C, S0, S0], scaled to about [0, 1], the cell's centre at index ``S0 // 2``.
        generator
            Source of all randomness, on the device of `windows`.

        Returns
        -------
        List of `n_views` float32 tensors [B, C, S, S].

        Raises
        ------
        ValueError
            The windows are smaller than the views.
        """
        if min(windows.shape[-2:]) < self.window_px[0]:
            msg = f"Views of {self.window_px[0]} px cannot be cut out of windows of {windows.shape[-1]} px. Give a smaller `window_px`."
            raise ValueError(msg)
        return [self._view(windows.float(), generator) for _ in range(self.n_views)]

    def _view(self, x: Tensor, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=x.device) * (high - low) + low

        n, side = len(x), self.window_px[0]
        if self.blur_px:
            kernel = min(2 * int(self.blur_px) + 1, 2 * x.shape[-1] - 1)
            sigma = uniform(SMALLEST_SIGMA, self.blur_px, n, 1).expand(n, 2)
            x = gaussian_blur2d(x, (kernel, kernel), sigma, border_type="reflect")
        x = self._jitter(x, uniform)
        if self.translation_px or self.zoom != (1.0, 1.0):
            size = uniform(math.sqrt(self.zoom[0]), math.sqrt(self.zoom[1]), n)
            radius, angle = uniform(0, self.translation_px**2, n).sqrt(), uniform(0, 2 * math.pi, n)
            x = _zoomed(x, size, torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1))
        first = x.shape[-1] // 2 - side // 2
        x = x[..., first : first + side, first : first + side]
        turns = torch.randint(4, (n, 1, 1, 1), generator=generator, device=x.device)
        x = torch.where(turns % 2 == 1, x.rot90(1, (2, 3)), x)
        x = torch.where(turns >= 2, x.flip(2, 3), x)
        for axis in (2, 3):
            x = torch.where(uniform(0, 1, n, 1, 1, 1) < 0.5, x.flip(axis), x)
        return x.contiguous()

    def _jitter(self, x: Tensor, uniform: object) -> Tensor:
        steps = [name for name in ("brightness", "contrast") if getattr(self, name)]
        draw = uniform
        if len(steps) == 2 and float(draw(0, 1, 1)) < 0.5:  # type: ignore[operator]
            steps.reverse()
        for name in steps:
            amplitude = getattr(self, name)
            factor = draw(max(0.0, 1 - amplitude), 1 + amplitude, len(x), 1, 1, 1)  # type: ignore[operator]
            about = x.mean(dim=(1, 2, 3), keepdim=True) if name == "contrast" else 0.0
            x = ((x - about) * factor + about).clamp(0, 1)
        return x


def _zoomed(x: Tensor, size: Tensor, shift: Tensor) -> Tensor:
    """Windows magnified by `size` [B] about the pixel at ``S // 2`` and moved by `shift` [B, 2] (x, y); zeros beyond."""
    side = x.shape[-1]
    at = torch.arange(side, device=x.device, dtype=x.dtype) - side // 2
    steps = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
    where = steps / size[:, None, None, None] + shift[:, None, None, :] + side // 2
    return F.grid_sample(x, (2 * where + 1) / side - 1, padding_mode="zeros", align_corners=False)
