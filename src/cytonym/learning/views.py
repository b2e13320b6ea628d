"""Random views of cell windows: the augmentations of contrastive training.

A view is what the same cell could have looked like: turned, mirrored, a little larger or smaller, a little off its
centre, each marker stained a little weaker or stronger. All geometry is one resampling of the source window, batched,
with parameters drawn per cell; all randomness comes from one explicit generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Views(Protocol):
    """What contrastive training needs to know of the views that it makes; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def window_px(self) -> tuple[int, ...]:
        """Sides of the views in pixels."""

    @property
    def views_per_size(self) -> int:
        """Views of each side."""

    @property
    def n_views(self) -> int:
        """Number of views of each window."""

    def source_px(self) -> int:
        """Side of the window to read."""

    def make(self, windows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Windows [B, C, S0, S0] -> views [B, C, s, s]."""


@dataclass(frozen=True)
class ViewConfig:
    """How views differ from the window they are made from.

    Parameters
    ----------
    window_px
        Side of the views, in pixels (binned ones, where the model bins them); several sides give views of several
        sizes (10, 8 and 6 in the paper).
    views_per_size
        Views of each side. The number of views is ``len(window_px) * views_per_size``, at least 2.
    rotation_deg
        Rotation, uniform in [-rotation_deg, rotation_deg]; 180 is any angle (0-359 in the paper).
    scale
        Smallest and largest magnification of the cell, log-uniform (0.66 to 1.5 in the paper).
    flip
        Probability of a mirror image (0.5 in the paper).
    intensity
        Smallest and largest factor on each marker's pixels, log-uniform, drawn per marker (0.5 to 2 in the paper).
    translation_px
        Largest shift of the centre along each axis, in pixels: detected centres are never exact. Not in the paper.
    pixel_noise
        Standard deviation of the logarithm of a factor on each pixel. Not in the paper.
    pixel_dropout
        Share of pixels set to 0, the rest brightened to keep the mean: two views then share less of their noise. Not
        in the paper.
    marker_dropout
        Probability that a marker is silenced. Not in the paper.
    interpolation
        "bilinear" or "nearest".

    Examples
    --------
    >>> from cytonym.learning.views import ViewConfig
    >>> views = ViewConfig(window_px=(10, 8), views_per_size=2)
    >>> views.n_views, views.source_px()
    (4, 19)
    """

    window_px: tuple[int, ...] = (10,)
    views_per_size: int = 2
    rotation_deg: float = 180.0
    scale: tuple[float, float] = (0.9, 1.1)
    flip: float = 0.5
    intensity: tuple[float, float] = (0.9, 1.1)
    translation_px: float = 0.5
    pixel_noise: float = 0.0
    pixel_dropout: float = 0.0
    marker_dropout: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("scale", "intensity"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                msg = f"`{name}` must be two factors with 0 < low <= high, got {(low, high)}."
                raise ValueError(msg)
        if not self.window_px or min(self.window_px) < 1:
            msg = f"`window_px` must hold at least one side of 1 pixel or more, got {self.window_px}."
            raise ValueError(msg)
        if self.n_views < 2:
            msg = f"Contrastive training needs at least 2 views, got {self.n_views}. Raise `views_per_size`."
            raise ValueError(msg)
        if self.interpolation not in ("bilinear", "nearest"):
            msg = f"`interpolation` must be 'bilinear' or 'nearest', got {self.interpolation!r}."
            raise ValueError(msg)

    @property
    def n_views(self) -> int:
        """Number of views made of each window."""
        return len(self.window_px) * self.views_per_size

    def source_px(self, window_px: int | None = None) -> int:
        """Side of the window to read so that no view reaches over its border.

        Parameters
        ----------
        window_px
            Side of the view in pixels. Default: the largest of the config.

        Returns
        -------
        An odd number of pixels: farthest corner of the view, turned, shrunk and shifted, on each side of the centre.
        """
        side = max(self.window_px) if window_px is None else window_px
        reach = (side // 2) / self.scale[0]
        if self.rotation_deg:
            reach *= math.sqrt(2)
        return 2 * math.ceil(reach + self.translation_px - 1e-6) + 1

    def make(self, windows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """See `make_views`."""
        return make_views(windows, self, generator)


def make_views(windows: Tensor, config: ViewConfig, generator: torch.Generator) -> list[Tensor]:
    """Draw the views of a batch of windows.

    Parameters
    ----------
    windows
        Raw pixels [B, C, S0, S0], any real dtype, with ``S0 >= config.source_px()`` (smaller windows are accepted: what
        lies outside repeats the border). The cell's centre is the pixel at index ``S0 // 2``.
    config
        What may vary, and how much.
    generator
        Source of all randomness, on the device of `windows`.

    Returns
    -------
    List of ``config.n_views`` float32 tensors [B, C, s, s], sizes in the order of ``config.window_px``, the cell's
    centre at index ``s // 2``.

    Examples
    --------
    >>> import torch
    >>> from cytonym.learning.views import ViewConfig, make_views
    >>> config = ViewConfig(window_px=(6, 4))
    >>> windows = torch.rand(3, 5, config.source_px(), config.source_px())
    >>> [tuple(view.shape) for view in make_views(windows, config, torch.Generator().manual_seed(0))]
    [(3, 5, 6, 6), (3, 5, 6, 6), (3, 5, 4, 4), (3, 5, 4, 4)]
    """
    source = windows.float()
    sides = [side for side in config.window_px for _ in range(config.views_per_size)]
    return [_stain(_resample(source, side, config, generator), config, generator) for side in sides]


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype) * (high - low) + low


def _log_uniform(shape: tuple[int, ...], bounds: tuple[float, float], like: Tensor, rng: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(bounds[0]), math.log(bounds[1]), like, rng).exp()


def _resample(source: Tensor, side: int, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """One affine resampling of each window about its centre pixel: [B, C, S0, S0] -> [B, C, side, side]."""
    n, _, s0, _ = source.shape
    angle = _uniform((n,), -config.rotation_deg, config.rotation_deg, source, generator) * (math.pi / 180)
    zoom = _log_uniform((n,), config.scale, source, generator)
    mirror = 1 - 2 * (_uniform((n,), 0, 1, source, generator) < config.flip).to(source.dtype)
    shift = _uniform((n, 1, 1, 2), -config.translation_px, config.translation_px, source, generator)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], dim=1).view(n, 1, 2, 2)  # acts on (x, y)
    offset = torch.arange(side, device=source.device, dtype=source.dtype) - side // 2
    steps = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1).view(1, side * side, 2)
    where = (steps @ turn.view(n, 2, 2).transpose(1, 2)).view(n, side, side, 2) + shift + s0 // 2  # source indices
    grid = (2 * where + 1) / s0 - 1  # grid_sample's [-1, 1] spans the outer pixel edges (align_corners=False)
    return F.grid_sample(source, grid, mode=config.interpolation, padding_mode="border", align_corners=False)


def _stain(view: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Change the intensities of each marker of each cell [B, C, s, s]."""
    n, c = view.shape[:2]
    if config.intensity != (1.0, 1.0):
        view = view * _log_uniform((n, c, 1, 1), config.intensity, view, generator)
    if config.pixel_noise:
        noise = torch.randn(view.shape, generator=generator, device=view.device, dtype=view.dtype)
        view = view * (config.pixel_noise * noise).exp()
    if config.pixel_dropout:
        kept = _uniform(tuple(view.shape), 0, 1, view, generator) >= config.pixel_dropout
        view = view * kept / (1 - config.pixel_dropout)
    if config.marker_dropout:
        view = view * (_uniform((n, c, 1, 1), 0, 1, view, generator) >= config.marker_dropout)
    return view
