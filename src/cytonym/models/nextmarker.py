"""NeXtMarker: contrastive learning with marker-level interpretability (Gutwein et al. 2025).

Each marker M is normalised by a learned sigmoid (equation 1), f_M(x) = 1 / (1 + exp(-4 x'_c (x - x_c))), described by
convolutions with as many groups as markers, so that its K = 8 features see this marker alone (stage I), and only then
mixed with the others by one linear layer (stage F, 256 numbers). Training is SimCLR on F (NT-Xent, temperature 0.5)
plus the penalty of equation 2 on the sigmoids.

Departures, each for a reason:

* The sigmoids are kept in units of the marker's own brightness, so that counts, 8 or 16 bit and [0, 1] train alike.
* A marker is seen at three exposures, f(e x): one sigmoid tells faint from bright or bright from brighter, not both.
* The path of a marker has no additive terms and ends in a rectifier that saturates: a silent marker is exactly zero in I.
* Half of the features have weights that cannot be negative. They tell how much signal there is, and their mean is the
  attribution: zero without signal, rising with it. The other half is free to see shape and texture.
* Pooling is weighted towards the window's centre, where the cell is, instead of global.
* Before the linear layer the features are standardised, so that bright markers do not drown the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.learning.views import ViewConfig
from cytonym.models.base import CellEncoder, Encoding, Recipe, checked_quantiles
from cytonym.models.layers import MarkerSigmoid, Standardize
from cytonym.models.marker_kernel import binned, pooled_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike

PAPER_RECIPE = Recipe(
    steps=1200,
    batch_size=1024,
    learning_rate=1e-3,
    final_rate=1e-4,
    warmup=100 / 1200,
    constant=100 / 1200,
    views=ViewConfig(
        window_px=(10, 8, 6), views_per_size=2, scale=(0.66, 1.5), intensity=(0.5, 2.0), translation_px=0.0
    ),
)
"""Experiment 2 of the paper: 7 million windows of 1.6 million cells."""


@dataclass(frozen=True)
class NeXtMarkerConfig:
    """Shape of a NeXtMarker network and its loss.

    Parameters
    ----------
    window_px
        Side of the window around each cell (10 in the paper; an odd one has the cell in its middle). This and all other
        lengths count binned pixels.
    binning
        Side of the squares of the image's pixels that are averaged into one before anything else, so that the network sees
        fine images as it sees those of 1 micrometre a pixel, for which the lengths are meant.
    features_per_marker
        Interpretable features of each marker, K (8 in the paper).
    amount_features
        How many of them have non-negative weights; the attribution is their mean.
    exposures
        Factors on the pixels, one sigmoid each.
    embedding_dim
        Length of the embedding F (256 in the paper).
    kernel_px, stride_px
        Side and step of the convolution.
    pool_sigma_px
        Standard deviation, in pixels, of the Gaussian that weights the pooling towards the window's centre.
    temperature
        Of NT-Xent (0.5 in the paper).
    penalty_weight
        Weight of the penalty on the sigmoids (1 in the paper).
    max_slope
        Largest slope of a sigmoid, in units of 1 / (half the marker's 90th percentile), before the penalty acts.
    """

    window_px: int = 11
    binning: int = 1
    features_per_marker: int = 8
    amount_features: int = 4
    exposures: tuple[float, ...] = (2.0, 0.5, 0.125)
    embedding_dim: int = 256
    kernel_px: int = 3
    stride_px: int = 2
    pool_sigma_px: float = 3.0
    temperature: float = 0.5
    penalty_weight: float = 1.0
    max_slope: float = 4.0

    def __post_init__(self) -> None:
        for name, least in (("kernel_px", 1), ("stride_px", 1), ("binning", 1), ("window_px", self.kernel_px)):
            value = getattr(self, name)
            if isinstance(value, bool) or value != int(value) or value < least:
                reason = " (`kernel_px`)" if name == "window_px" else ""
                msg = f"`{name}` must be a whole number of at least {least}{reason}, got {value!r}."
                raise ValueError(msg)


class NeXtMarker(CellEncoder):
    """Windows of cells in, one interpretable block of features a marker, one embedding out.

    Parameters
    ----------
    markers
        Names of the C channels, in the order of the windows.
    config
        Shape of the network.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.nextmarker import NeXtMarker
    >>> model = NeXtMarker.from_statistics(["DNA", "CD8"], [90.0, 12.0])
    >>> out = model.encode(torch.rand(4, 2, model.window_px, model.window_px) * 100)
    >>> out.embedding.shape, out.attributions.shape, out.features.shape
    (torch.Size([4, 256]), torch.Size([4, 2]), torch.Size([4, 16]))
    """

    name: ClassVar[str] = "nextmarker"
    Config: ClassVar[type] = NeXtMarkerConfig
    recipe: ClassVar[Recipe] = Recipe(
        steps=300,
        batch_size=128,
        learning_rate=1e-3,
        final_rate=1e-4,
        warmup=0.1,
        constant=0.1,
        views=ViewConfig(window_px=(11,), views_per_size=4),
    )
    config: NeXtMarkerConfig

    def __init__(self, markers: Sequence[str], config: NeXtMarkerConfig | None = None) -> None:
        config = config or NeXtMarkerConfig()
        super().__init__(markers, config)
        c, k, side, n = len(self.markers), config.features_per_marker, config.kernel_px, len(config.exposures)
        amounts = config.amount_features
        if not 0 < amounts <= k:
            msg = f"`amount_features` must be 1 to `features_per_marker` ({k}), got {amounts}."
            raise ValueError(msg)
        self.normalize = MarkerSigmoid(c)
        self.amount = nn.Parameter(torch.empty(c, amounts, n, side, side))  # logarithms of the weights
        self.shape = nn.Parameter(torch.empty(c, k - amounts, n, side, side))
        self.standardize = Standardize(c * k)
        self.mix = nn.utils.skip_init(nn.Linear, c * k, config.embedding_dim)

    @classmethod
    def from_statistics(
        cls,
        markers: Sequence[str],
        quantiles: ArrayLike,
        config: NeXtMarkerConfig | None = None,
        *,
        seed: int = 0,
    ) -> NeXtMarker:
        """A new network whose sigmoids start at the data's brightness.

        Parameters
        ----------
        markers
            Names of the C channels.
        quantiles
            90th percentile of each marker's non-zero pixels [C]; 0 for a marker without any.
        config
            Shape of the network. Default: `NeXtMarkerConfig`.
        seed
            Of the initial weights. The global generator is left alone.

        Returns
        -------
        An untrained network.

        Raises
        ------
        ValueError
            If `quantiles` does not hold one finite number >= 0 for each marker.
        """
        model = cls(markers, config)
        values = checked_quantiles(quantiles, len(model.markers))
        model.normalize.scale.copy_(values / 2)
        generator = torch.Generator().manual_seed(seed)
        taps = math.prod(model.amount.shape[2:])
        faint = torch.tensor(model.config.exposures) ** -0.5  # low exposures answer little
        nn.init.uniform_(model.amount, 0, 2 / taps, generator=generator)
        model.amount.data.add_(1e-4).mul_(faint[:, None, None]).log_()
        nn.init.normal_(model.shape, std=math.sqrt(2 / taps), generator=generator)
        model.shape.data.mul_(faint[:, None, None])
        bound = 1 / math.sqrt(model.mix.in_features)
        nn.init.uniform_(model.mix.weight, -bound, bound, generator=generator)
        nn.init.zeros_(model.mix.bias)
        return model

    def normalization(self) -> dict[str, np.ndarray]:
        """Learned sigmoids in raw units: {"center": x_c [C], "slope": x'_c [C]}, slope 0 for a marker never seen."""
        scale = self.normalize.scale.double()
        slope = self.normalize.log_slope.detach().double().exp()
        raw = torch.where(scale > 0, slope / scale.clamp(min=1e-300), 0.0)
        center = self.normalize.center.detach().double() * scale
        return {"center": center.cpu().numpy(), "slope": raw.cpu().numpy()}

    @property
    def blocks(self) -> dict[str, int]:
        """See `CellEncoder.blocks`."""
        return {"features": self.config.features_per_marker}

    @classmethod
    def sized(cls, config: NeXtMarkerConfig, side: int) -> NeXtMarkerConfig:
        """Windows of about the default number of binned pixels."""
        binning = max(1, round(side / NeXtMarkerConfig.window_px))
        return replace(config, window_px=side // binning, binning=binning)

    @classmethod
    def adapted(cls, config: NeXtMarkerConfig, pixel_size: float) -> NeXtMarkerConfig:
        """Binned pixels of about 1 micrometre."""
        return replace(config, binning=max(1, round(1 / pixel_size)))

    def features(self, windows: Tensor) -> Tensor:
        """Stage I: binned windows [B, C, S, S] -> [B, C * K], marker-major."""
        c, least = len(self.markers), self.config.kernel_px
        if (
            windows.ndim != 4
            or windows.shape[1] != c
            or windows.shape[2] != windows.shape[3]
            or windows.shape[2] < least
        ):
            msg = f"Expected square windows [B, {c}, S, S] of at least {least} px, got {list(windows.shape)}."
            raise ValueError(msg)
        kernels = torch.cat([self.amount.exp(), self.shape], dim=1)
        pool = self._pool_weights(windows.shape[-1]).to(windows.device)
        if kernels.device.type == "cpu" and not torch.is_grad_enabled():
            gain, shift = (t.numpy() for t in self.normalize.curves(self.config.exposures))
            pixels, stride = _compilable(windows), self.config.stride_px
            return torch.from_numpy(pooled_features(pixels, gain, shift, kernels.numpy(), pool.numpy(), stride))
        y = self.normalize(windows, self.config.exposures)
        h = F.relu(F.conv2d(y, kernels.flatten(0, 1), stride=self.config.stride_px, groups=c))
        return (h / (1 + h)).flatten(2) @ pool.flatten()

    def _bin(self, windows: Tensor) -> Tensor:
        """Raw windows [B, C, S, S] -> means over squares of pixels."""
        if self.binning == 1:
            return windows
        if windows.device.type == "cpu" and not torch.is_grad_enabled():
            return torch.from_numpy(binned(_compilable(windows), self.binning))
        return F.avg_pool2d(windows.float(), self.binning)

    def _pool_weights(self, side: int) -> Tensor:
        """Gaussian about the centre pixel of a window, at the positions of the features [P, P], summing to 1."""
        kernel, stride = self.config.kernel_px, self.config.stride_px
        positions = (side - kernel) // stride + 1
        at = torch.arange(positions) * stride + (kernel - 1) / 2 - side // 2
        line = torch.exp(-0.5 * (at / self.config.pool_sigma_px) ** 2)
        weights = torch.outer(line, line)
        return weights / weights.sum()

    def encode(self, windows: Tensor) -> Encoding:
        """See `CellEncoder.encode`. The attribution of a marker is the mean of its features with non-negative weights."""
        features = self.features(self._bin(windows))
        by_marker = features.unflatten(1, (len(self.markers), -1))
        attributions = by_marker[:, :, : self.config.amount_features].mean(dim=2)
        return Encoding(self.mix(self.standardize(features)), attributions, features)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """NT-Xent over the views' embeddings plus the weighted penalty (equation 2)."""
        from cytonym.learning.losses import ntxent

        features = torch.cat([self.features(view) for view in views])
        embeddings = self.mix(self.standardize(features))
        contrastive = ntxent(list(embeddings.chunk(len(views))), self.config.temperature)
        penalty = self.normalize.penalty(self.config.max_slope)
        return {
            "loss": contrastive + self.config.penalty_weight * penalty,
            "contrastive": contrastive.detach(),
            "penalty": penalty.detach(),
        }


def _compilable(windows: Tensor) -> np.ndarray:
    """Pixels of a type that the kernels are compiled for."""
    return (windows if windows.dtype in (torch.uint8, torch.uint16) else windows.float()).detach().numpy()
