"""ResNet-18 on a CPU with fewer multiplications: the same numbers to about 1e-6 of their size.

The maps of small windows are small, so that most of the 3 x 3 convolutions can be had cheaper than by their definition: with Winograd's
minimal filtering (Lavin and Gray 2016, F(4 x 4, 3 x 3) for maps whose side is a multiple of 4 and F(2 x 2, 3 x 3) for others) a
quarter to a half of the products are enough, and on a map of one pixel only the middle tap of a kernel is ever used. Everything
becomes products of matrices, which have the positions in front and the channels last, [H, W, n, C], so that no
step needs to move numbers about. Normalisation layers are folded into the convolutions.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.resnet import Block, fold

if TYPE_CHECKING:
    from cytonym.models.resnet import ResNet

AT_ONCE = 64  # windows; what they need between two layers fits into a core's cache

# of F(m x m, 3 x 3), by m: how m outputs come from the products, kernel and input into them
OUTPUT = {
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
}
KERNEL = {
    4: [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
}  # fmt: skip
INPUT = {
    4: [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
}  # fmt: skip

_prepared: WeakKeyDictionary[nn.Module, tuple[object, FastResNet]] = WeakKeyDictionary()
_preparing = threading.Lock()


def fits(windows: Tensor) -> bool:
    """Whether windows [n, 1, S, S] can take the fast form: on a CPU, of a side that it knows, and without a gradient."""
    return windows.device.type == "cpu" and _known(windows.shape[-1]) and not torch.is_grad_enabled()


def _known(side: int) -> bool:
    """Whether the maps of all stages have an even side or a single pixel."""
    return side == 32 or side % 64 == 0


def fast_resnet(network: ResNet, side: int) -> FastResNet:
    """The fast form of a ResNet-18 in evaluation mode for windows of this side; made once for these weights.

    Raises
    ------
    ValueError
        `side` is not 32, 64, 128, …
    """
    tensors = (*network.parameters(), *network.buffers())
    state = (side, *((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors))
    with _preparing:
        found = _prepared.get(network)
        if found is None or found[0] != state:
            found = _prepared[network] = state, FastResNet(network, side)
    return found[1]


class FastResNet:
    """Scaled single-channel windows in; stem and features out. See the module's words."""

    def __init__(self, network: ResNet, side: int) -> None:
        if not _known(side):
            msg = f"Windows must have a side of 32, 64, 128, … pixels here, got {side}."
            raise ValueError(msg)
        with torch.no_grad():
            kernel, self.bias = fold(network.conv1, network.bn1)
            self.kernel = kernel.sum(dim=1).flatten(1).T.contiguous()  # [49, 64]; several input channels see the same
            self.blocks: list[tuple[_Strided | None, _Strided | _Winograd | _Middle, _Winograd | _Middle]] = []
            here = side // 4
            for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
                for block in stage:  # type: ignore[union-attr]
                    assert isinstance(block, Block)
                    beside, first = None, fold(block.conv1, block.bn1)
                    if block.downsample is not None:
                        beside = _Strided(*fold(block.downsample[0], block.downsample[1]))  # type: ignore[arg-type]
                        here //= 2
                    self.blocks.append(
                        (
                            beside,
                            _same(*first, here) if beside is None else _Strided(*first),
                            _same(*fold(block.conv2, block.bn2), here),
                        )
                    )
        self.fc = network.fc

    def __call__(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows [n, S, S] -> stem [S / 2, S / 2, n, 64] and features [n, F]."""
        stem = self.stem(windows)
        x = _pooled(stem)
        for beside, first, second in self.blocks:
            shortcut = x if beside is None else beside(x)
            x = second(first(x).relu_()).add_(shortcut).relu_()
        return stem, self.fc(x.mean(dim=(0, 1)))

    def look(self, windows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Features [n, F], and how far the stem is from that of the first window, by the weights of its positions [n]."""
        features, change = [], []
        first = self.stem(windows[:1])
        for piece in windows.split(AT_ONCE):
            stem, found = self(piece)
            features.append(found)
            change.append(weights @ (stem - first).abs_().mean(dim=3).flatten(0, 1))
        return torch.cat(features), torch.cat(change)

    def stem(self, windows: Tensor) -> Tensor:
        """The first convolution, 7 x 7 with step 2."""
        n, side = windows.shape[:2]
        x = F.pad(windows, (3, 3, 3, 3)).permute(1, 2, 0).contiguous()
        taps = torch.empty(7, 7, side // 2, side // 2, n)
        for i in range(7):
            for j in range(7):
                taps[i, j] = x[i : i + side : 2, j : j + side : 2]
        return torch.addmm(self.bias, taps.view(49, -1).T, self.kernel).relu_().view(side // 2, side // 2, n, -1)


class _Winograd:
    """3 x 3 convolution with step 1 on maps of an even side."""

    def __init__(self, kernel: Tensor, bias: Tensor, side: int) -> None:
        m = 4 if side % 4 == 0 else 2
        self.n, self.tiles, self.bias = m + 2, side // m, bias
        self.into = torch.zeros(self.n * self.tiles, side)  # line of a map -> products of its tiles
        self.out = torch.zeros(side, self.n * self.tiles)
        into, out = torch.tensor(INPUT[m]).float(), torch.tensor(OUTPUT[m]).float()
        for tile in range(self.tiles):
            rows = torch.arange(self.n) * self.tiles + tile
            at = m * tile - 1 + torch.arange(self.n)
            inside = (at >= 0) & (at < side)
            self.into[rows[:, None], at[inside]] = into[:, inside]
            self.out[m * tile : m * tile + m, rows] = out
        g = torch.tensor(KERNEL[m], dtype=torch.float64)
        self.kernel = torch.einsum("ai,ocij,bj->abco", g, kernel.double(), g).float().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """[H, W, n, C] -> [H, W, n, C']."""
        height, width, n, c = x.shape
        size, tiles, c_out = self.n, self.tiles, self.kernel.shape[-1]
        lines = (self.into @ x.reshape(height, -1)).view(-1, width, n * c)
        products = torch.matmul(self.into, lines).view(size, tiles, size, tiles * n, c)
        mixed = torch.empty(size, tiles, size, tiles * n, c_out)
        for i in range(size):
            for tile in range(tiles):
                torch.bmm(products[i, tile], self.kernel[i], out=mixed[i, tile])
        lines = torch.matmul(self.out, mixed.view(size * tiles, size * tiles, n * c_out))
        return (self.out @ lines.view(size * tiles, -1)).view(height, width, n, c_out).add_(self.bias)


class _Middle:
    """3 x 3 convolution on maps of one pixel: all other taps see the zeros beyond the border."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        self.kernel, self.bias = kernel[:, :, 1, 1].T.contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """[1, 1, n, C] -> [1, 1, n, C']."""
        return torch.addmm(self.bias, x.flatten(0, 2), self.kernel).view(*x.shape[:3], -1)


class _Strided:
    """3 x 3 or 1 x 1 convolution with step 2."""

    def __init__(self, kernel: Tensor, bias: Tensor) -> None:
        self.side = kernel.shape[-1]
        self.kernel, self.bias = kernel.permute(2, 3, 1, 0).flatten(0, 2).contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """[H, W, n, C] -> [H / 2, W / 2, n, C']."""
        height, width, n, c = x.shape
        if self.side == 1:
            taps = x[::2, ::2]
        else:
            padded = F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1))
            parts = [padded[i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
            taps = torch.cat(parts, dim=-1)
        return torch.addmm(self.bias, taps.reshape(-1, taps.shape[-1]), self.kernel).view(
            height // 2, width // 2, n, -1
        )


def _same(kernel: Tensor, bias: Tensor, side: int) -> _Winograd | _Middle:
    return _Middle(kernel, bias) if side == 1 else _Winograd(kernel, bias, side)


def _pooled(x: Tensor) -> Tensor:
    """Largest of 3 x 3 with step 2, of maps that are not negative: [H, W, n, C] -> [H / 2, W / 2, n, C]."""
    for _ in range(2):
        largest = torch.maximum(x[::2], x[1::2])
        largest[1:] = torch.maximum(largest[1:], x[1:-1:2])
        x = largest.transpose(0, 1)
    return x.contiguous()
