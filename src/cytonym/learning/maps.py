"""Inference of probability maps: one channel and the mask of a tile in, mean and variance over views out.

Channels of a tile are independent. On a CPU each thread takes one, with one core to itself; on a GPU as many as fit go
through the network together.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch

from cytonym.learning.engine import choose_device
from cytonym.learning.predict import mapping

if TYPE_CHECKING:
    from torch import Tensor

Views = Literal["six_views", "released"]
PIXELS_ON_GPU = 2**22  # of all windows that go through the network at once


@dataclass(frozen=True)
class View:
    """A quarter turn or mirror image of the input, and its weight in the mean."""

    turns: int
    mirrored: int | None
    weight: float

    def of(self, x: Tensor) -> Tensor:
        """[…, H, W] -> the view."""
        x = torch.rot90(x, self.turns, (-2, -1))
        return x if self.mirrored is None else x.flip(self.mirrored)

    def undone(self, x: Tensor) -> Tensor:
        """The view -> […, H, W]."""
        x = x if self.mirrored is None else x.flip(self.mirrored)
        return torch.rot90(x, -self.turns, (-2, -1))


AS_IT_IS = (View(0, None, 1.0),)
VIEWS: dict[str | None, tuple[View, ...]] = {
    None: AS_IT_IS,
    # what the paper describes: four quarter turns and two mirror images
    "six_views": (*(View(k, None, 1 / 6) for k in range(4)), View(0, -1, 1 / 6), View(0, -2, 1 / 6)),
    # what the released program does: its four turns are all by 270 degrees
    "released": (View(3, None, 4 / 6), View(0, -1, 1 / 6), View(0, -2, 1 / 6)),
}


class Mapper:
    """A scorer ready to map tiles; a context manager.

    Parameters
    ----------
    model
        `Nimbus`, or any module [B, 2, H, W] -> probabilities [B, 1, H', W'] with `stride`.
    views
        `None`, `"six_views"` or `"released"`.
    device
        See `cytonym.learning.engine.choose_device`.
    padding
        Of the network. `"reflect"` gives maps of the tile's size if its sides are multiples of the stride.
    """

    def __init__(
        self, model: Any, *, views: Views | None = None, device: str | torch.device = "auto", padding: str = "reflect"
    ) -> None:
        self.model, self.views, self.padding = model, VIEWS[views], padding
        self.device = choose_device(device)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.model.eval()
        if hasattr(self.model, "for_inference"):  # a copy: other threads may use the model
            self._network = self.model.for_inference().to(self.device)
        else:
            self._stack.callback(self.model.to, next(self.model.parameters()).device)
            self._network = self.model.to(self.device)
        self._apply = self._stack.enter_context(mapping(self.device))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, markers: np.ndarray, interior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Markers f4 [C, H, W] in 0 … 1 and interior f4 [H, W] -> mean and variance of p over views, f4 [C, H', W']."""
        mask = torch.from_numpy(interior)[None]
        size = 1 if self.device.type == "cpu" else max(1, PIXELS_ON_GPU // interior.size)
        groups = [torch.from_numpy(markers[i : i + size]) for i in range(0, len(markers), size)]
        found = list(self._apply(self._forward, groups, [mask] * len(groups)))
        return np.concatenate([mean for mean, _ in found]), np.concatenate([variance for _, variance in found])

    def _forward(self, markers: Tensor, mask: Tensor) -> tuple[np.ndarray, np.ndarray]:
        x = torch.stack([markers, mask.expand_as(markers)], dim=1).to(self.device)
        base: Any = None  # sums of differences to the first view lose no digits
        first: Any = 0.0
        second: Any = 0.0
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            for view in self.views:
                p = view.undone(self._network(view.of(x), self.padding).float())[:, 0]
                base = p if base is None else base
                first, second = first + view.weight * (p - base), second + view.weight * (p - base) ** 2
            mean, variance = base + first, (second - first**2).clamp(min=0)
        return mean.cpu().numpy(), variance.cpu().numpy()


def padded(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows and columns [..., h, w] mirrored at the end, as often as needed, to [..., height, width]."""
    h, w = x.shape[-2:]
    if (h, w) == (height, width):
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, height - h), (0, width - w)], mode="reflect")


def _without_padding(side: int, stride: int) -> int:
    """Pixels that are left of a side in "valid" padding: 836 of 1024 as published."""
    levels = stride.bit_length() - 1
    for _ in range(levels):
        side = (side - 4) // 2
    side -= 4
    for _ in range(levels):
        side = 2 * side - 4
    return side


def released_map(
    mapper: Mapper, markers: np.ndarray, interior: np.ndarray, *, tile_px: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Maps of a whole canvas as the released program makes them: the same misplacements by up to two pixels, for comparison.

    Up to `tile_px` pixels a side in one pass, whose map may be up to 15 pixels shorter than the canvas; else tiles in "valid"
    padding, of which the middle (832 of 1024 pixels) is kept.

    Parameters
    ----------
    mapper
        With `padding="reflect"`.
    markers, interior
        f4 [C, H, W] and [H, W].
    tile_px
        Side of the tiles.

    Returns
    -------
    As `Mapper`.
    """
    height, width = interior.shape
    if max(height, width) <= tile_px:
        return mapper(markers, interior)
    stride = int(mapper.model.stride)
    left = _without_padding(tile_px, stride)
    core = left // max(32, stride) * max(32, stride)
    trim = (left - core) // 2
    both = np.concatenate([markers, interior[None]])
    total = [tile_px - n % core for n in (height, width)]
    before = [-(-t // 2) for t in total]
    both = np.pad(both, [(0, 0), *[(b, t - b) for b, t in zip(before, total, strict=True)]], mode="reflect")
    size = [n - tile_px + core for n in both.shape[1:]]
    means, variances = (np.zeros((len(markers), *size), np.float32) for _ in range(2))
    mapper.padding = "valid"
    try:
        for y in range(0, size[0], core):
            for x in range(0, size[1], core):
                tile = np.ascontiguousarray(both[:, y : y + tile_px, x : x + tile_px])
                for out, found in zip((means, variances), mapper(tile[:-1], tile[-1]), strict=True):
                    out[:, y : y + core, x : x + core] = found[:, trim : trim + core, trim : trim + core]
    finally:
        mapper.padding = "reflect"
    start = [b - (tile_px - core) // 2 for b in before]
    kept = (slice(None), *(slice(s, s + n) for s, n in zip(start, (height, width), strict=True)))
    return means[kept], variances[kept]
