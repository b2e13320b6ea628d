"""CLEAR-IT: one contrastive encoder for the windows of any marker (Spengler et al. 2024).

The window of a cell is split into its channels, the same ResNet-18 describes each channel by F numbers, and the blocks of all
channels, in the order of the markers, are the embedding: [B, C, S, S] -> [B, C * F]. Training is SimCLR on windows of
random (image, cell, channel) triples: two views of a window go through the encoder and a projector (three hidden layers of
512, then 128 numbers), and NT-Xent with temperature 0.05 pulls them together. The published recipes take thousands of steps
of LARS; the default takes hundreds of Adam's, which get further in the minutes that a CPU has.

An encoder is bound to no panel. `for_panel` gives the same network for other markers; what is fitted to a panel is
only the brightness of each marker, one divisor, where no common one is given.

Departures, each for a reason:

* Of new data each marker is divided by a multiple of its own 90th percentile, so that faint markers are seen beside bright ones
  and counts, 8 or 16 bit and [0, 1] train alike. `scale` brings the paper's one divisor for all back.
* Windows without signal are not sent through the network: they all give the same numbers, which makes them neutral.
* Attributions (the paper has none) are what the first convolution sees of the marker around the cell's centre: the mean
  change of its 64 maps from those of an empty window, weighted by a Gaussian. Brighter never means less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.learning.simclr_views import SimCLRViews
from cytonym.models.base import CellEncoder, Encoding, Recipe, checked_quantiles, require_whole
from cytonym.models.fast_resnet import fast_resnet, fits
from cytonym.models.published import encoder_shape, load_encoder, read_published, yaml_beside
from cytonym.models.resnet import ResNet, initialize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

WINDOW_UM = 32.0  # 64 px of 0.5 micrometres, 32 px of 1 micrometre
BRIGHT = 4.0  # 90th percentiles of the non-zero pixels that make 1
ZOOM = (2 / 3, 4 / 3)


def _recipe(steps: int, batch_size: int, views: SimCLRViews) -> Recipe:
    """LARS at the paper's learning rate, 0.3 for 256 windows and in proportion to them, constant."""
    rate = 0.3 * batch_size / 256
    return Recipe(steps, batch_size, rate, final_rate=rate, warmup=0.0, constant=1.0, views=views, optimizer="lars")


CLEARIT_TNBC1 = _recipe(16_000, 256, SimCLRViews(zoom=ZOOM))
"""The paper's best recipe for multiplexed fluorescence: 819,200 windows, 5 epochs, zoom between 2/3 and 4/3."""

CLEARIT_TNBC2 = _recipe(2_000, 1024, SimCLRViews(zoom=ZOOM, brightness=0.5, contrast=0.5))
"""The paper's best recipe for ion beam imaging: 409,600 windows, 5 epochs, zoom, brightness and contrast."""


@dataclass(frozen=True)
class ClearITConfig:
    """Shape of a CLEAR-IT encoder and its loss.

    Parameters
    ----------
    window_px
        Side of the window around each cell in binned pixels: 64 in the paper, 32 for pixels of 1 micrometre.
    binning
        Side of the squares of the image's pixels that are averaged into one (1 in the paper).
    features
        Numbers that describe one channel, F: 512 in the paper, 32 in its comparison with MAPS; 0 takes the 512 pooled
        numbers without a linear layer, as some published files need.
    input_channels
        Channels of the first convolution. Published encoders have 3 and see the same window three times.
    scale
        Divisor of all pixels: 255 for TNBC1, 265 for TNBC2 and 65535 for 16 bit images in the paper. Default: each
        marker by 4 times its own 90th percentile.
    least_std
        Windows that vary by no more than this (after scaling) are not trained on. 0 leaves out empty windows only.
    temperature
        Of NT-Xent (0.05 in the paper).
    projector, projection_dim
        Hidden layers and output of the projector.
    center_sigma_px
        Standard deviation, in binned pixels, of the Gaussian that weights attributions towards the centre.
    """

    window_px: int = 32
    binning: int = 1
    features: int = 32
    input_channels: int = 1
    scale: float | None = None
    least_std: float = 0.0
    temperature: float = 0.05
    projector: tuple[int, ...] = (512, 512, 512)
    projection_dim: int = 128
    center_sigma_px: float = 3.0

    def __post_init__(self) -> None:
        require_whole(self, window_px=8, binning=1, features=0, input_channels=1)
        if self.scale is not None and not 0 < self.scale < math.inf:
            msg = f"`scale` must be positive, got {self.scale}."
            raise ValueError(msg)


class ClearIT(CellEncoder):
    """Windows of cells in, one block of F numbers a marker out, by one network for all markers.

    Parameters
    ----------
    markers
        Names of the C channels, in the order of the windows.
    config
        Shape of the network.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.clearit import ClearIT
    >>> model = ClearIT.from_statistics(["DNA", "CD8"], [90.0, 12.0])
    >>> out = model.encode(torch.rand(4, 2, model.window_px, model.window_px) * 100)
    >>> out.embedding.shape, out.attributions.shape
    (torch.Size([4, 64]), torch.Size([4, 2]))
    """

    name: ClassVar[str] = "clearit"
    Config: ClassVar[type] = ClearITConfig
    recipe: ClassVar[Recipe] = Recipe(
        300, 256, 1e-3, final_rate=0.0, warmup=0.1, constant=0.0, views=SimCLRViews(window_px=(32,), zoom=ZOOM)
    )
    any_panel: ClassVar[bool] = True
    config: ClearITConfig

    def __init__(self, markers: Sequence[str], config: ClearITConfig | None = None) -> None:
        config = config or ClearITConfig()
        super().__init__(markers, config)
        self.main_backbone = ResNet(18, config.input_channels, config.features)
        sizes = [config.features or 512, *config.projector]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.utils.skip_init(nn.Linear, n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
        layers += [
            nn.utils.skip_init(nn.Linear, sizes[-1], config.projection_dim),
            nn.BatchNorm1d(config.projection_dim),
        ]
        self.mlp = nn.Sequential(*layers)
        self.gain: Tensor
        self.register_buffer("gain", torch.full((len(self.markers),), 1 / (config.scale or 1.0)))

    @classmethod
    def from_statistics(
        cls, markers: Sequence[str], quantiles: ArrayLike, config: ClearITConfig | None = None, *, seed: int = 0
    ) -> ClearIT:
        """A new network whose input has the data's brightness.

        Parameters
        ----------
        markers, quantiles, config
            As in `CellEncoder.from_statistics`.
        seed
            Of the initial weights. The global generator is left alone.

        Raises
        ------
        ValueError
            If `quantiles` does not hold one finite number >= 0 for each marker.
        """
        model = cls(markers, config)
        model.gain.copy_(_gains(quantiles, len(model.markers), model.config))
        initialize(model, torch.Generator().manual_seed(seed))
        return model

    @classmethod
    def from_published(
        cls,
        path: str | Path,
        markers: Sequence[str] = ("any",),
        *,
        scale: float = 255.0,
        window_px: int | None = None,
    ) -> ClearIT:
        """The authors' encoder in evaluation mode: `enc.pt`, a state dict, with `conf_enc.yaml` beside it if there is one.

        Nothing in the file is run. The weights tell the channels of the first convolution and the size of the last layer.

        Parameters
        ----------
        path
            The file, or the folder that holds `enc.pt`.
        markers
            Channels that it will see. An encoder knows no panel: verbs replace them by the channels of the images.
        scale
            Divisor of the pixels in training: 255 (TNBC1), 265 (TNBC2), 65536 (CODEX, IMC).
        window_px
            Side of the windows. Default: what the YAML file says, else 64.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is damaged, holds more than tensors, or another network, such as a head (`CellClassifier.from_published`).
        """
        file, weights = read_published(path, "enc.pt")
        side = window_px or int(yaml_beside(file, "conf_enc.yaml").get("img_size") or 64)
        model = cls(markers, ClearITConfig(window_px=side, scale=float(scale), **encoder_shape(file, weights)))
        initialize(model.mlp, torch.Generator().manual_seed(0))  # in case the file has no projector
        load_encoder(model, file, weights)
        model.provenance = {"published": file.name, "scale": float(scale)}
        return model.eval()

    def for_panel(self, markers: Sequence[str], quantiles: ArrayLike) -> ClearIT:
        """The same network for other markers. Those it knows keep their scale, new ones get it from `quantiles` [C]."""
        model = ClearIT(markers, self.config)
        known = {m: i for i, m in enumerate(self.markers)}
        gain = _gains(quantiles, len(model.markers), self.config)
        for i, marker in enumerate(model.markers):
            if marker in known and self.config.scale is None:
                gain[i] = self.gain[known[marker]]
        model.load_state_dict(self.state_dict() | {"gain": gain})
        model.history, model.provenance = list(self.history), dict(self.provenance)
        return model.to(self.gain.device).train(self.training)

    @property
    def blocks(self) -> dict[str, int]:
        """See `CellEncoder.blocks`."""
        return {"embedding": self.config.features or 512}

    @classmethod
    def sized(cls, config: ClearITConfig, side: int) -> ClearITConfig:
        """Windows of at most about 64 binned pixels."""
        binning = max(1, round(side / 64))
        return replace(config, window_px=side // binning, binning=binning)

    @classmethod
    def adapted(cls, config: ClearITConfig, pixel_size: float) -> ClearITConfig:
        """Windows of about 32 micrometres: 64 binned pixels of about 0.5 micrometres, 32 of 1."""
        binning = max(1, round(0.5 / pixel_size))
        side = 8 * max(2, min(8, round(WINDOW_UM / (pixel_size * binning) / 8)))
        return replace(config, window_px=side, binning=binning)

    def describe(self, channels: Tensor) -> Tensor:
        """Scaled single-channel windows [n, 1, S, S] -> features [n, F]."""
        return self.main_backbone(channels.expand(-1, self.config.input_channels, -1, -1))  # type: ignore[no-any-return]

    def project(self, features: Tensor) -> Tensor:
        """Features [n, F] -> what the contrastive loss compares [n, 128]."""
        return self.mlp(features)  # type: ignore[no-any-return]

    def encode(self, windows: Tensor) -> Encoding:
        """See `CellEncoder.encode`. The embedding is made of the blocks of F numbers of marker 0, marker 1, …"""
        if windows.ndim != 4 or windows.shape[1] != len(self.markers) or windows.shape[2] != windows.shape[3]:
            msg = f"Expected square windows [B, {len(self.markers)}, S, S], got {list(windows.shape)}."
            raise ValueError(msg)
        n, c = windows.shape[:2]
        x = windows.float()
        if self.binning > 1:
            x = F.avg_pool2d(x, self.binning)
        x = (x * self.gain[:, None, None]).flatten(0, 1)[:, None]
        live = (x != 0).flatten(1).any(dim=1).nonzero()[:, 0]
        weights = self._center(x.shape[-1]).to(x.device)
        x = torch.cat([x.new_zeros(1, *x.shape[1:]), x[live]])
        if fits(x):
            found, seen = fast_resnet(self.main_backbone, x.shape[-1]).look(x[:, 0], weights)
        else:
            stem = self.main_backbone.stem(x.expand(-1, self.config.input_channels, -1, -1))
            found = self.main_backbone.after(stem).float()
            seen = (stem - stem[:1]).abs().mean(dim=1).float().flatten(1) @ weights
        embedding = found[:1].expand(n * c, -1).index_copy(0, live, found[1:])
        attributions = seen.new_zeros(n * c).index_copy(0, live, seen[1:])
        return Encoding(embedding.reshape(n, -1), attributions.reshape(n, c), embedding.new_zeros(n, 0))

    def _center(self, side: int) -> Tensor:
        """Gaussian about a window's centre pixel at the stem's positions [P * P], which are 2 pixels apart, summing to 1."""
        line = torch.exp(-0.5 * ((torch.arange(0, side, 2) - float(side // 2)) / self.config.center_sigma_px) ** 2)
        return torch.outer(line, line).flatten() / line.sum() ** 2

    def draw(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """Raw windows [B, C, S, S] -> one scaled channel of each [B, 1, S, S], at random among those that are not empty."""
        scaled = windows.float() * self.gain[:, None, None]
        varied = (scaled.flatten(2).std(dim=2, correction=0) > self.config.least_std).float()
        chances = varied + (varied.sum(dim=1, keepdim=True) == 0)
        channel = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return scaled[torch.arange(len(scaled), device=scaled.device), channel][:, None]

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """NT-Xent as published: the sum over both views of all windows, divided by the number of windows."""
        from cytonym.learning.losses import ntxent

        projected = self.project(self.describe(torch.cat(views)))
        return {"loss": len(views) * ntxent(list(projected.chunk(len(views))), self.config.temperature)}


def _gains(quantiles: ArrayLike, n: int, config: ClearITConfig) -> Tensor:
    """Factor on the pixels of each marker [C], 0 for a marker without signal."""
    values = checked_quantiles(quantiles, n)
    if config.scale is not None:
        return torch.full((n,), 1 / config.scale)
    return torch.where(values > 0, 1 / (BRIGHT * values.clamp(min=1e-30)), 0.0)
