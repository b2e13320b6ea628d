"""Nimbus: is this cell positive for this marker? A residual U-Net over one channel and the cells' mask (Rumberger et al. 2024).

Input [B, 2, H, W]: the marker divided by its brightness and clipped to 0 … 1, and a mask that is 1 inside cells and 0 on their inner
boundaries and between them, both at about 1 micrometre a pixel. Output [B, 1, H, W]: the probability of each pixel to
belong to a positive cell. One network serves all markers and panels.

Layers carry the published names, so that the authors' weights load as they are. The same weights run in two ways of padding:
"reflect" keeps the size (cut down to a multiple of 16), "valid" pads nothing and loses 94 pixels on each side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.models.base import require_whole
from cytonym.models.fast_unet import FastUNet
from cytonym.models.hub import fetch
from cytonym.models.published import read_published
from cytonym.models.resnet import initialize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Padding = Literal["reflect", "valid"]
PUBLISHED_HUB = "JLrumberger/Nimbus-Inference"


@dataclass(frozen=True)
class NimbusConfig:
    """Shape of a scorer and of its input.

    Parameters
    ----------
    filters
        Maps of the first level, doubled at each further one: 64 as published.
    depth
        Levels, 5 as published: 4 poolings.
    pixel_size
        Micrometres a pixel that the network sees. The published one was trained on images of 10x, half of 20x of about 0.5
        micrometres (the unit is our assumption, the paper gives magnifications).
    quantile
        Of a marker's pixels above zero in an image; the mean of it over the images is 1 after normalisation. 0.999 in the
        released program (0.9999 of all images together in the paper).
    """

    filters: int = 64
    depth: int = 5
    pixel_size: float = 1.0
    quantile: float = 0.999

    def __post_init__(self) -> None:
        require_whole(self, filters=1, depth=2)
        if not 0 < self.pixel_size < float("inf"):
            msg = f"`pixel_size` must be positive, got {self.pixel_size}."
            raise ValueError(msg)
        if not 0 < self.quantile <= 1:
            msg = f"`quantile` must lie above 0 and at most at 1, got {self.quantile}."
            raise ValueError(msg)


class Nimbus(nn.Module):
    """Marker and mask in, probability of being positive out.

    Parameters
    ----------
    markers
        What it was trained on, for the record; it scores any marker.
    config
        Shape of the network.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.nimbus import Nimbus, NimbusConfig
    >>> model = Nimbus.from_seed(NimbusConfig(filters=4, depth=3))
    >>> model(torch.rand(1, 2, 40, 64)).shape
    torch.Size([1, 1, 40, 64])
    """

    name: ClassVar[str] = "nimbus"
    Config: ClassVar[type] = NimbusConfig

    def __init__(self, markers: Sequence[str] = ("any",), config: NimbusConfig | None = None) -> None:
        super().__init__()
        self.markers: tuple[str, ...] = tuple(str(m) for m in markers)
        self.config = config or NimbusConfig()
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        f, downs = self.config.filters, self.config.depth - 1
        # positions between these hold what has no weights: poolings, activations
        self.contracting_layers = nn.ModuleDict(
            {str(2 * i): _Block(2 if i == 0 else f << (i - 1), f << i) for i in range(downs)}
        )
        self.bottle_neck = _Block(f << (downs - 1), f << downs)
        expanding: dict[str, nn.Module] = {}
        for i in range(downs):
            wide = f << (downs - i)
            expanding[str(3 * i)] = _Up(wide)
            expanding[str(3 * i + 2)] = _Block(wide, wide // 2)
        self.expanding_layers = nn.ModuleDict(expanding)
        self.final_conv = nn.Conv2d(f, 1, 1)

    @classmethod
    def from_seed(
        cls, config: NimbusConfig | None = None, *, markers: Sequence[str] = ("any",), seed: int = 0
    ) -> Nimbus:
        """A network with new weights. The global generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                seed
            )  # for what `initialize` leaves as it is: biases, transposed convolutions
            model = cls(markers, config)
        initialize(model, torch.Generator().manual_seed(seed))
        return model.eval()

    @classmethod
    def from_published(cls, source: str | Path = PUBLISHED_HUB, *, revision: str | None = None) -> Nimbus:
        """The authors' network.

        Parameters
        ----------
        source
            A file (`V1.pt`, a state dict), a folder that holds one, or a repository of the Hugging Face hub as `"owner/name"`,
            from which the newest `V<n>.pt` is taken. Nothing in the file is run. The commit, the SHA-256 and the licence are logged and kept in
            `provenance`.
        revision
            Commit of the repository on the hub, to get the same file again.

        Raises
        ------
        FileNotFoundError
            There is no such file, or the hub cannot be reached; the message says how to pass a file.
        ValueError
            The file is damaged, holds more than tensors, or weights of another network.
        """
        path, told = fetch(source, pattern=r"V(\d+)\.pt", revision=revision)
        file, weights = read_published(path, path.name)
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights that are replaced at once
            model = cls(config=_shape_of(file.name, weights))
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        lacking, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
        other = [name for name, tensor in weights.items() if name in wanted and tensor.shape != wanted[name]]
        if lacking or unknown or other:
            msg = (
                f"'{file}' holds weights of another network or version than Nimbus: {len(lacking)} are lacking {lacking[:2]}, "
                f"{len(unknown)} unknown {unknown[:2]}, {len(other)} of another shape {other[:2]}."
            )
            raise ValueError(msg)
        model.load_state_dict(weights)
        model.provenance = {"published": file.name} | told
        return model.eval()

    @classmethod
    def config_from_dict(cls, values: dict[str, Any]) -> NimbusConfig:
        """The config that `config_dict` made."""
        return NimbusConfig(**values)

    def config_dict(self) -> dict[str, Any]:
        """The config in types that JSON knows."""
        return asdict(self.config)

    @property
    def stride(self) -> int:
        """Sides are multiples of this: 16 as published."""
        return 1 << (self.config.depth - 1)

    @property
    def halo(self) -> int:
        """Pixels around a place that its result may depend on, a multiple of `stride`: 96 as published (92 or 94 of them do)."""
        downs = self.config.depth - 1
        reach = 4 * sum(1 << i for i in range(downs)) + 2 * (1 << downs)  # two 3 x 3 down and two up, two at the bottom
        return (reach // self.stride + 1) * self.stride

    def logits(self, x: Tensor, padding: Padding = "reflect") -> Tensor:
        """[B, 2, H, W] -> [B, 1, H', W'] before the sigmoid. Sizes that poolings do not divide lose their last rows and columns."""
        pad = 1 if padding == "reflect" else 0
        skips = []
        for block in self.contracting_layers.values():
            x = block(x, pad)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottle_neck(x, pad)
        up, merge = (list(self.expanding_layers.values())[i::2] for i in (0, 1))
        for skip, widen, block in zip(reversed(skips), up, merge, strict=True):
            x = widen(x)
            dy, dx = ((a - b) // 2 for a, b in zip(skip.shape[2:], x.shape[2:], strict=True))
            skip = skip[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
            x = block(torch.cat([skip, x], dim=1), pad)
        return self.final_conv(x)  # type: ignore[no-any-return]

    def for_inference(self) -> FastUNet:
        """The same function, faster, with the weights of now."""
        return FastUNet(self.eval())

    def forward(self, x: Tensor, padding: Padding = "reflect") -> Tensor:
        """Marker and mask [B, 2, H, W] -> probabilities [B, 1, H', W']."""
        return self.logits(x, padding).sigmoid()


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a 1 x 1."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv2d_0 = nn.Conv2d(n_in, n_out, 1)
        self.conv2d_1, self.bn_1 = nn.Conv2d(n_out, n_out, 3), nn.BatchNorm2d(n_out)
        self.conv2d_2, self.bn_2 = nn.Conv2d(n_out, n_out, 3), nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor, pad: int) -> Tensor:
        """[B, n_in, H, W] -> [B, n_out, H, W], or 4 pixels less a side without padding."""
        beside = self.conv2d_0(x)
        y = F.relu(self.bn_1(self.conv2d_1(_reflected(beside, pad))))
        y = F.relu(self.bn_2(self.conv2d_2(_reflected(y, pad))))
        return y + (beside if pad else beside[:, :, 2:-2, 2:-2])


class _Up(nn.Module):
    """Twice the size, half the maps."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(n_in, n_in // 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.upconv(x))


def _reflected(x: Tensor, pad: int) -> Tensor:
    return F.pad(x, (pad,) * 4, mode="reflect") if pad else x


def _shape_of(name: str, weights: dict[str, Tensor]) -> NimbusConfig:
    """Filters and depth that the weights have."""
    first = weights.get("contracting_layers.0.conv2d_1.weight")
    levels = {k.split(".")[1] for k in weights if k.startswith("contracting_layers.")}
    if first is None or first.ndim != 4:
        msg = f"'{name}' holds weights of another network than Nimbus. Its keys begin with {sorted(weights)[:3]}."
        raise ValueError(msg)
    return NimbusConfig(filters=int(first.shape[0]), depth=len(levels) + 1)
