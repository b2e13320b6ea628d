"""Residual networks (He et al. 2016) under the names of weights that published checkpoints use.

torchvision has the same networks, but no build of it for a CPU alone comes from the usual index; these hundred lines replace it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (64, 128, 256, 512)
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: ResNet-18."""

    widening = 1

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(n_in, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, 1), nn.BatchNorm2d(width)
        self.downsample = _shortcut(n_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + beside)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut: ResNet-50."""

    widening = 4

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(n_in, width, 1, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1, 1), nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(n_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        beside = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + beside)


class ResNet(nn.Module):
    """Images [B, C, H, W] -> [B, n_out]: stem, four stages, global average, linear layer.

    Parameters
    ----------
    depth
        18 or 50.
    n_in
        Channels of the images.
    n_out
        Outputs of the linear layer `fc`; 0 for none, then the pooled numbers (512 or 2048) come out.

    Weights are not drawn: `initialize` does it, or a state dict brings them.
    """

    def __init__(self, depth: int, n_in: int, n_out: int) -> None:
        super().__init__()
        kind: type[Block | Bottleneck] = Block if depth == 18 else Bottleneck
        self.conv1, self.bn1 = _conv(n_in, 64, 7, 2), nn.BatchNorm2d(64)
        width_in = 64
        for i, (width, blocks) in enumerate(zip(STAGES, DEPTHS[depth], strict=True), start=1):
            stage: list[nn.Module] = []
            for j in range(blocks):
                stage.append(kind(width_in, width, 2 if i > 1 and j == 0 else 1))
                width_in = width * kind.widening
            setattr(self, f"layer{i}", nn.Sequential(*stage))
        self.fc: nn.Module = nn.utils.skip_init(nn.Linear, width_in, n_out) if n_out else nn.Identity()

    def stem(self, x: Tensor) -> Tensor:
        """First convolution: [B, C, H, W] -> [B, 64, H / 2, W / 2], not negative."""
        return F.relu(self.bn1(self.conv1(x)))

    def pooled(self, stem: Tensor) -> Tensor:
        """What follows the stem, up to the average over positions: [B, 512 or 2048]."""
        x = F.max_pool2d(stem, 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)  # type: ignore[operator]
        return x.mean(dim=(2, 3))

    def after(self, stem: Tensor) -> Tensor:
        """All that follows the stem: [B, 64, H / 2, W / 2] -> [B, n_out]."""
        out: Tensor = self.fc(self.pooled(stem))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, n_out]."""
        return self.after(self.stem(x))


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Kaiming's initial weights by fan-out, drawn from the generator alone; normalisation layers start as the identity."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_parameters()


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that equals a convolution and its normalisation in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return (conv.weight * gain[:, None, None, None]).detach(), (norm.bias - mean * gain).detach()


def _conv(n_in: int, n_out: int, side: int, stride: int) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, n_in, n_out, side, stride=stride, padding=side // 2, bias=False)  # type: ignore[return-value]


def _shortcut(n_in: int, n_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and n_in == n_out:
        return None
    return nn.Sequential(_conv(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))
