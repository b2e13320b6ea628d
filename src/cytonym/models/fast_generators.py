"""Generators without what only training needs: the same images to about 1e-4 of their range, in about half the time on a CPU.

Maps have their channels last in memory, a tile is normalised in place by the fastest way that there is for one tile, and 3 x 3
convolutions that keep the size of a map go by Winograd's minimal filtering, F(4 x 4, 3 x 3) (Lavin and Gray 2016): four times fewer
products, and all the rest of it products with two small matrices. Interpolation points 0, ±0.65, ±1.5 and infinity lose
less than half as many digits as the usual 0, ±1, ±2. Bands of a map are worked on that fit into a core's cache.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.deepliif import SEGMENTATION
from cytonym.models.translation import ResNetGenerator, TileNorm, UNetGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.models.deepliif import DeepLIIF

    Step = Callable[[Tensor], Tensor]

POINTS = (0.0, 0.65, -0.65, 1.5, -1.5)
OUT, IN = 4, 6
"""Sides of the squares that are made at once, and of what they are made of."""
LEAST_CHANNELS = 32
"""Of a convolution that gains."""
SQUARES = 64
"""So many of them are worked on at once."""


class FastDeepLIIF:
    """`DeepLIIF` in evaluation mode, as a function. It shares the model's weights where they need no change.

    Parameters
    ----------
    model
        On the CPU.
    """

    @torch.no_grad()
    def __init__(self, model: DeepLIIF) -> None:
        self.markers, self.weights = model.markers, model.segmentation_weights
        self.translators = [fast(network) for network in model.translators.values()]
        drawing = zip(self.weights, model.segmenters.values(), strict=True)
        self.segmenters = [fast(network) if w else None for w, network in drawing]

    def __call__(self, x: Tensor, *, segmentation: bool = True) -> dict[str, Tensor]:
        """Input [B, C, H, W] -> images by name. Generators of weight 0 do not run."""
        x = x.contiguous(memory_format=torch.channels_last)
        made = {name: network(x) for name, network in zip(self.markers, self.translators, strict=True)}
        if not segmentation:
            return made
        total = x.new_zeros(())
        for w, source, network in zip(self.weights, [x, *made.values()], self.segmenters, strict=True):
            if network is not None:
                total = total + w * network(source)
        return made | {SEGMENTATION: total}


def fast(network: nn.Module) -> Step:
    """A generator in evaluation mode as a function of tiles [B, C, H, W]."""
    steps = _unet(network) if isinstance(network, UNetGenerator) else _sequence(cast("ResNetGenerator", network).model)

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _sequence(layers: nn.Sequential) -> list[Step]:
    """Layers one after the other."""
    steps: list[Step] = []
    for layer in layers:
        if isinstance(layer, (nn.Identity, nn.Dropout)):
            continue
        if hasattr(layer, "conv_block"):
            steps.append(_residual(_sequence(cast("nn.Sequential", layer.conv_block))))
        else:
            steps.append(_step(layer))
    return steps


def _residual(inside: list[Step]) -> Step:
    def run(x: Tensor) -> Tensor:
        y = x
        for step in inside:
            y = step(y)
        return y.add_(x)

    return run


def _step(layer: nn.Module) -> Step:
    if isinstance(layer, nn.Conv2d):
        return _convolution(layer)
    if isinstance(layer, nn.ConvTranspose2d):
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        bias, stride = None if layer.bias is None else layer.bias.detach(), layer.stride
        return lambda x: F.conv_transpose2d(x, weight, bias, stride, layer.padding, layer.output_padding)  # type: ignore[arg-type]
    if isinstance(layer, TileNorm):
        return _norm(layer)
    if isinstance(layer, nn.ReLU):
        return torch.relu_
    if isinstance(layer, nn.Tanh):
        return torch.tanh
    return layer  # reflected borders


def _norm(layer: TileNorm) -> Step:
    scale, shift, eps = layer.weight.detach(), layer.bias.detach(), layer.eps

    def run(x: Tensor) -> Tensor:
        """The statistics of a batch of one are those of its tile."""
        return _each(x, lambda tile: F.batch_norm(tile, None, None, scale, shift, training=True, momentum=0.0, eps=eps))

    return run


def _each(x: Tensor, of_one: Step) -> Tensor:
    """A function of one tile for all tiles of a batch."""
    return of_one(x) if len(x) == 1 else torch.cat([of_one(tile) for tile in x.split(1)])


def _convolution(layer: nn.Conv2d) -> Step:
    weight: Tensor = layer.weight.detach()
    bias, padding = None if layer.bias is None else layer.bias.detach(), cast("tuple[int, int]", layer.padding)

    def plain(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, layer.stride, padding)  # type: ignore[arg-type]

    same = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and bias is None
    if not same or min(layer.in_channels, layer.out_channels) < LEAST_CHANNELS:
        weight = weight.contiguous(memory_format=torch.channels_last)
        return plain
    kernel = layer.weight.detach().permute(2, 3, 1, 0).reshape(9, -1).contiguous()
    sides = layer.in_channels, layer.out_channels

    def run(x: Tensor) -> Tensor:
        height, width = (n + 2 * p - 2 for n, p in zip(x.shape[2:], padding, strict=True))
        if height % OUT or width % OUT:
            return plain(x)
        across = torch.mm(_matrices()[0], kernel).view(IN * IN, *sides)  # made anew: kept, it is four times the weights
        return _each(x, lambda tile: _winograd(tile, across, padding[0]))

    return run


@cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """How kernel [36, 9] and input [36, 36] come into the products, and how outputs come from these [16, 36] (Toom and Cook)."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    out = torch.zeros(OUT, IN, dtype=torch.float64)
    kernel, into = torch.zeros(IN, 3, dtype=torch.float64), torch.zeros(IN, IN, dtype=torch.float64)
    out[:, :-1] = points ** torch.arange(OUT)[:, None]
    out[-1, -1] = kernel[-1, -1] = 1
    for j, point in enumerate(points):
        others = torch.cat([points[:j], points[j + 1 :]])
        kernel[j] = point ** torch.arange(3) / (point - others).prod()
        into[j, :-1] = _with_roots(others)
    into[-1] = _with_roots(points)
    return torch.kron(kernel, kernel).float(), torch.kron(into, into).float(), torch.kron(out, out).float()


def _with_roots(roots: Tensor) -> Tensor:
    """Coefficients of the polynomial with these roots, the constant first."""
    found = roots.new_ones(1)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


def _winograd(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """3 x 3 convolution of one tile [1, C, H, W] with channels last; the kernel [36, C, C'] as the products need it."""
    _, into, out = _matrices()
    _, c, c_out = kernel.shape
    x = F.pad(x[0].permute(1, 2, 0), (0, 0, padding, padding, padding, padding)).contiguous()
    height, width = x.shape[0] - 2, x.shape[1] - 2
    made = torch.empty(height, width, c_out)
    rows, columns = height // OUT, width // OUT
    step = max(1, SQUARES // columns)
    along_y, along_x, _ = x.stride()
    for row in range(0, rows, step):
        n = min(step, rows - row)
        squares = x[OUT * row :].as_strided(
            (IN, IN, n, columns, c), (along_y, along_x, OUT * along_y, OUT * along_x, 1), OUT * row * along_y
        )
        mixed = torch.bmm(torch.mm(into, squares.reshape(IN * IN, -1)).view(IN * IN, -1, c), kernel)
        found = torch.mm(out, mixed.view(IN * IN, -1)).view(OUT, OUT, n, columns, c_out)
        made[OUT * row : OUT * (row + n)].view(n, OUT, columns, OUT, c_out).copy_(found.permute(2, 0, 3, 1, 4))
    return made.permute(2, 0, 1)[None]


def _unet(network: UNetGenerator) -> list[Step]:
    layers = cast("dict[str, nn.Module]", network.model.model)
    down, up = _step(layers["0"]), _step(layers["3"])
    below = _level(layers["1"]) if "1" in layers else None

    def run(x: Tensor) -> Tensor:
        x = down(x)
        x = x if below is None else below(x)
        return up(F.relu_(x)).tanh_()

    return [run]


def _level(level: nn.Module) -> Step:
    """What comes in, beside what the levels below make of it."""
    layers = cast("dict[str, nn.Module]", level.model)
    below = _level(layers["3"]) if "5" in layers else None
    down, *others = (_step(layers[name]) for name in (("1", "2", "5", "6") if below else ("1", "3", "4")))

    def run(x: Tensor) -> Tensor:
        y = down(F.leaky_relu(x, 0.2))
        if below is not None:
            y = below(others[0](y))
        y = others[-1](others[-2](F.relu_(y)))
        return torch.cat([x, y], dim=1)

    return run
