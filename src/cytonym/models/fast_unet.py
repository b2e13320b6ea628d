"""A scorer's network without what only training needs: the same probabilities to about 1e-5 in half the time on a CPU.

Normalisation layers are folded into the convolutions before them, maps have their channels last in memory, and what can be done in place is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.resnet import fold

if TYPE_CHECKING:
    from cytonym.models.nimbus import Nimbus, Padding

Weights = tuple[Tensor, Tensor]


class FastUNet:
    """`Nimbus` in evaluation mode, as a function.

    Parameters
    ----------
    model
        Its weights are copied.
    """

    @torch.no_grad()
    def __init__(self, model: Nimbus) -> None:
        blocks = [*model.contracting_layers.values(), model.bottle_neck]
        expanding = list(model.expanding_layers.values())
        self.down = [_block(b) for b in blocks[:-1]]
        self.bottom = _block(blocks[-1])
        self.up = [_weights(cast("nn.Module", widen.upconv)) for widen in expanding[0::2]]
        self.merge = [_block(b) for b in expanding[1::2]]
        self.last = _weights(model.final_conv)

    def to(self, device: torch.device) -> FastUNet:
        """The same weights on a device; those of the model stay where they are."""
        self.down, self.merge = ([_moved(b, device) for b in blocks] for blocks in (self.down, self.merge))
        self.bottom, self.up = _moved(self.bottom, device), _moved(self.up, device)
        [self.last] = _moved([self.last], device)
        return self

    def __call__(self, x: Tensor, padding: Padding = "reflect") -> Tensor:
        """Marker and mask [B, 2, H, W] -> probabilities [B, 1, H', W'], as `Nimbus`."""
        pad = padding == "reflect"
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for weights in self.down:
            x = _through(x, weights, pad=pad)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = _through(x, self.bottom, pad=pad)
        for widen, weights in zip(self.up, self.merge, strict=True):
            x = F.conv_transpose2d(x, *widen, stride=2).relu_()
            skip = skips.pop()
            dy, dx = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            x = torch.cat([skip[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]], x], dim=1)
            x = _through(x, weights, pad=pad)
        return F.conv2d(x, *self.last).sigmoid_()


def _through(x: Tensor, weights: list[Weights], *, pad: bool) -> Tensor:
    beside = F.conv2d(x, *weights[0])
    y = beside
    for folded in weights[1:]:
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect") if pad else y, *folded).relu_()
    return y.add_(beside if pad else beside[:, :, 2:-2, 2:-2])


def _block(block: Any) -> list[Weights]:
    folded = [_last(*fold(conv, norm)) for conv, norm in ((block.conv2d_1, block.bn_1), (block.conv2d_2, block.bn_2))]
    return [_weights(block.conv2d_0), *folded]


def _moved(layers: list[Weights], device: torch.device) -> list[Weights]:
    return [(weight.to(device), bias.to(device)) for weight, bias in layers]


def _weights(layer: nn.Module) -> Weights:
    return _last(layer.weight.detach(), layer.bias.detach())  # type: ignore[union-attr,operator,arg-type]


def _last(weight: Tensor, bias: Tensor) -> Weights:
    return weight.clone(memory_format=torch.channels_last), bias.clone()
