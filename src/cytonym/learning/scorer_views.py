"""Variants of tiles for training a scorer: turned, bent, blurred, noisy, of other contrast (Nimbus paper, methods)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScorerViews:
    """Augmentations of tiles [B, 5, S, S] (see `data.scoring_tiles.LAYERS`); masks follow the pixels.

    Every tile is turned by a random quarter and mirrored with probability 1/2 along each axis; each further step happens with
    probability `chance`.

    Parameters
    ----------
    chance
        0.25 in the published configuration.
    zoom, shear_deg
        Bounds of the factor on sizes, and largest shear.
    elastic_px, elastic_sigma
        Largest displacement and smoothness of elastic deformation, in pixels (published: 10 times noise of sigma 4).
    noise
        Bounds of the standard deviation of Gaussian noise, in units of the marker's brightness.
    blur
        Bounds of the standard deviation of Gaussian blur, in pixels.
    contrast
        Bounds of the factor on the distance from the tile's mean.
    gain
        Standard deviation of the logarithm of a factor on all pixels: other brightness (0 as published).
    """

    chance: float = 0.25
    zoom: tuple[float, float] = (0.8, 1.2)
    shear_deg: float = 0.2
    elastic_px: float = 1.0
    elastic_sigma: float = 4.0
    noise: tuple[float, float] = (0.001, 0.015)
    blur: tuple[float, float] = (0.05, 0.15)
    contrast: tuple[float, float] = (0.8, 1.2)
    gain: float = 0.0

    def make(self, tiles: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The tiles as they are, and their variants."""
        return [tiles, self.augment(tiles, generator)]

    def augment(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Variants [B, 5, S, S]."""
        n = len(tiles)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=tiles.device)

        x = tiles
        for axis in (2, 3):
            x = torch.where(uniform(n, 1, 1, 1) < 0.5, x.flip(axis), x)
        x = torch.where(uniform(n, 1, 1, 1) < 0.5, x.transpose(2, 3), x)  # with the mirrors: all quarter turns
        x = self._bent(x, uniform)
        pixels = x[:, :1]
        hit = lambda: uniform(n, 1, 1, 1) < self.chance
        between = lambda bounds: bounds[0] + (bounds[1] - bounds[0]) * uniform(n, 1, 1, 1)
        pixels = torch.where(hit(), _blurred(pixels, between(self.blur)), pixels)
        mean = pixels.mean(dim=(2, 3), keepdim=True)
        pixels = torch.where(hit(), mean + (pixels - mean) * between(self.contrast), pixels)
        normal = torch.randn(pixels.shape, generator=generator, device=x.device)
        pixels = torch.where(hit(), pixels + normal * between(self.noise), pixels)
        if self.gain:
            shift = torch.randn((n, 1, 1, 1), generator=generator, device=x.device) * self.gain
            pixels = pixels * shift.exp()
        return torch.cat([pixels.clamp(0, 1), x[:, 1:]], dim=1)

    def _bent(self, x: Tensor, uniform: object) -> Tensor:
        """Zoomed, sheared and deformed; beyond the border nothing."""
        n, _, _, side = x.shape
        draw = lambda *shape: uniform(*shape)  # type: ignore[operator]
        zoom = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * draw(n)
        shear = torch.tan((2 * draw(n) - 1) * math.radians(self.shear_deg))
        affine = draw(n) < self.chance
        zoom, shear = torch.where(affine, zoom, 1.0), torch.where(affine, shear, 0.0)
        zero = torch.zeros_like(zoom)
        matrix = torch.stack([1 / zoom, shear, zero, zero, 1 / zoom, zero], dim=1).view(n, 2, 3)
        grid = F.affine_grid(matrix, [n, 1, side, side], align_corners=False)
        noise = 2 * draw(n, 2, side, side) - 1
        smooth = _blurred(noise, torch.full((n, 1, 1, 1), self.elastic_sigma, device=x.device))
        smooth = smooth / smooth.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        elastic = (draw(n) < self.chance).view(n, 1, 1, 1)
        grid = grid + torch.where(elastic, smooth, 0.0).permute(0, 2, 3, 1) * (2 * self.elastic_px / side)
        pixels = F.grid_sample(x[:, :1], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        masks = F.grid_sample(x[:, 1:4], grid, mode="nearest", padding_mode="zeros", align_corners=False)
        moved = torch.cat([pixels, masks, x[:, 4:]], dim=1)
        return torch.where((affine.view(n, 1, 1, 1)) | elastic, moved, x)


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur [B, C, S, S] with a standard deviation per tile [B, 1, 1, 1], up to 3 of the largest away."""
    reach = min(max(1, math.ceil(3 * float(sigma.max()))), x.shape[-1] - 1)
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(x.shape[1], dim=0)[:, None]  # [B * C, 1, K]
    flat = x.reshape(1, -1, *x.shape[2:])
    groups = flat.shape[1]
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="reflect"), kernel[..., None], groups=groups)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="reflect"), kernel[:, :, None], groups=groups)
    return flat.view_as(x)
