"""Networks that make one image from another, and the one that judges them, as DeepLIIF puts them together.

- `ResNetGenerator`: two halvings, residual blocks (no rectifier after the addition), two doublings (Johnson et al. 2016).
- `UNetGenerator`: halvings down to a few pixels and back, each level beside what it came from (Isola et al. 2017).
- `PatchDiscriminator`: one logit for each patch of an image beside its condition (PatchGAN, Isola et al. 2017).

Layers carry the published names, so that published weights load as they are. Images are float tensors from -1 to 1; `scaled` and
`to_uint8` are the way in and out. Written from the description of the method; none of the authors' code is in here.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["zero", "reflect"]
Norm = Literal["batch", "tile"]


class TileNorm(nn.BatchNorm2d):
    """Batch normalisation in training; in evaluation each tile is normalised by its own mean and variance.

    That is how the published networks run: on one tile at a time, without the stored statistics, which give worse images. Here a
    tile's result does not depend on the others of its batch. The stored statistics are kept for their names' sake only.

    Parameters
    ----------
    channels
        Of the input.
    norm
        ``"batch"`` as above; ``"tile"`` normalises each tile on its own in training, too.
    """

    def __init__(self, channels: int, norm: Norm = "batch") -> None:
        super().__init__(channels)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] of more than one pixel -> the same shape."""
        if self.training and self.norm == "batch":
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps)


class ResNetGenerator(nn.Module):
    """[B, n_in, H, W] -> [B, n_out, H, W], from -1 to 1; sides are multiples of 4.

    Parameters
    ----------
    n_in, n_out
        Channels.
    filters
        Maps of the first layer (64 as published), four times as many in the blocks.
    blocks
        Residual blocks: 9 as published.
    dropout
        Half of the maps' pixels are dropped inside the blocks in training.
    padding
        What convolutions see beyond the border.
    norm
        As in `TileNorm`.

    Weights are not drawn: `initialize` does it, or a state dict brings them.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        filters: int = 64,
        blocks: int = 9,
        *,
        dropout: bool = True,
        padding: Padding = "zero",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        f, wide = filters, 4 * filters
        outer = 3 if padding == "zero" else 0
        layers: list[nn.Module] = [_border(3, padding), _conv(n_in, f, 7, padding=outer), TileNorm(f, norm)]
        layers += [_relu(), _conv(f, 2 * f, 3, stride=2, padding=1), TileNorm(2 * f, norm)]
        layers += [_relu(), _conv(2 * f, wide, 3, stride=2, padding=1), TileNorm(wide, norm), _relu()]
        layers += [_Residual(wide, dropout=dropout, padding=padding, norm=norm) for _ in range(blocks)]
        for n in (wide, 2 * f):
            layers += [_up(n, n // 2, 3, output_padding=1), TileNorm(n // 2, norm), _relu()]
        layers += [_border(3, padding), _conv(f, n_out, 7, padding=outer, bias=True), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def before_tanh(self, x: Tensor) -> Tensor:
        """What the last activation sees."""
        for layer in list(self.model)[:-1]:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H, W]."""
        return self.before_tanh(x).tanh()


class _Residual(nn.Module):
    def __init__(self, n: int, *, dropout: bool, padding: Padding, norm: Norm) -> None:
        super().__init__()
        border = [] if padding == "zero" else [nn.ReflectionPad2d(1)]
        inner = 1 if padding == "zero" else 0
        layers: list[nn.Module] = [*border, _conv(n, n, 3, padding=inner), TileNorm(n, norm), _relu()]
        layers += [nn.Dropout(0.5)] if dropout else []
        layers += [*border, _conv(n, n, 3, padding=inner), TileNorm(n, norm)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.conv_block(x)
        return found


class UNetGenerator(nn.Module):
    """[B, n_in, H, W] -> [B, n_out, H, W], from -1 to 1; sides are multiples of 2 to the power of `depth`.

    Parameters
    ----------
    n_in, n_out
        Channels.
    filters
        Maps of the first level (64 as published), doubled at each further one up to eight times as many.
    depth
        Halvings: 9 as published, from 512 pixels to one.
    dropout
        Half of the numbers are dropped in training on the way up, at the widest levels but the innermost.
    norm
        As in `TileNorm`.

    Weights are not drawn: `initialize` does it, or a state dict brings them.
    """

    def __init__(
        self, n_in: int, n_out: int, filters: int = 64, depth: int = 9, *, dropout: bool = True, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        widths = [filters * min(1 << i, 8) for i in range(depth)]
        level: _Level | None = None
        for outer, inner in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True):
            drop = dropout and level is not None and outer == 8 * filters
            level = _Level(outer, inner, level, dropout=drop, norm=norm)
        self.model = _Outermost(n_in, n_out, filters, level)

    def before_tanh(self, x: Tensor) -> Tensor:
        """What the last activation sees."""
        found: Tensor = self.model(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H, W]."""
        return self.before_tanh(x).tanh()


class _Outermost(nn.Module):
    def __init__(self, n_in: int, n_out: int, filters: int, below: _Level | None) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"0": _conv(n_in, filters, 4, stride=2, padding=1)}
        layers |= {} if below is None else {"1": below}
        layers["3"] = _up(filters if below is None else 2 * filters, n_out, 4, bias=True)
        self.model = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        *down, up = self.model.values()
        for layer in down:
            x = layer(x)
        return up(F.relu(x))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """What comes in, beside what the levels below make of it: [B, outer, H, W] -> [B, 2 * outer, H, W]."""

    def __init__(self, outer: int, inner: int, below: _Level | None, *, dropout: bool, norm: Norm) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {"1": _conv(outer, inner, 4, stride=2, padding=1)}
        if below is None:
            layers |= {"3": _up(inner, outer, 4), "4": TileNorm(outer, norm)}
        else:
            layers |= {
                "2": TileNorm(inner, norm),
                "3": below,
                "5": _up(2 * inner, outer, 4),
                "6": TileNorm(outer, norm),
            }
        self.model = nn.ModuleDict(layers)
        self.dropout = 0.5 if dropout else 0.0

    def forward(self, x: Tensor) -> Tensor:
        *down, up, norm = self.model.values()
        y = F.leaky_relu(x, 0.2)
        for layer in down:
            y = layer(y)
        y = F.dropout(norm(up(F.relu(y))), self.dropout, self.training)
        return torch.cat([x, y], dim=1)


class PatchDiscriminator(nn.Module):
    """An image beside its condition, [B, n_in, H, W] -> one logit a patch [B, 1, h, w]; 512 pixels give 30 x 30 by default.

    Parameters
    ----------
    n_in
        Channels of condition and image together.
    filters
        Maps of the first layer (64 as published), doubled up to eight times as many.
    layers
        Halvings: 4 as published.
    norm
        As in `TileNorm`.

    Weights are not drawn: `initialize` does it, or a state dict brings them.
    """

    def __init__(self, n_in: int, filters: int = 64, layers: int = 4, *, norm: Norm = "batch") -> None:
        super().__init__()
        found: list[nn.Module] = [_conv(n_in, filters, 4, stride=2, padding=1, bias=True), nn.LeakyReLU(0.2)]
        n = filters
        for i in range(1, layers + 1):
            wide = filters * min(1 << i, 8)
            found += [
                _conv(n, wide, 4, stride=2 if i < layers else 1, padding=1),
                TileNorm(wide, norm),
                nn.LeakyReLU(0.2),
            ]
            n = wide
        self.model = nn.Sequential(*found, _conv(n, 1, 4, padding=1, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """[B, n_in, H, W] -> [B, 1, h, w]."""
        found: Tensor = self.model(x)
        return found


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """The published initial weights, from the generator alone: N(0, 0.02), N(1, 0.02) for normalisation, biases 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02, generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.normal_(layer.weight, 1.0, 0.02, generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def scaled(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255 -> float32 from -1 to 1."""
    return (pixels.float() / 255 - 0.5) / 0.5


def to_uint8(x: Tensor) -> Tensor:
    """Floats from -1 to 1 -> uint8 from 0 to 255, cut off and not rounded, as published."""
    return ((x.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def _border(n: int, padding: Padding) -> nn.Module:
    """Reflected pixels around an image; zeros are the convolution's own."""
    return nn.ReflectionPad2d(n) if padding == "reflect" else nn.Identity()


def _conv(n_in: int, n_out: int, side: int, *, stride: int = 1, padding: int = 0, bias: bool = False) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, n_in, n_out, side, stride=stride, padding=padding, bias=bias)  # type: ignore[return-value]


def _up(n_in: int, n_out: int, side: int, *, output_padding: int = 0, bias: bool = False) -> nn.ConvTranspose2d:
    return nn.utils.skip_init(  # type: ignore[return-value]
        nn.ConvTranspose2d, n_in, n_out, side, stride=2, padding=1, output_padding=output_padding, bias=bias
    )
