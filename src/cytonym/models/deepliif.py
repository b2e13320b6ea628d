"""DeepLIIF: virtual immunofluorescence from brightfield immunohistochemistry, and its nuclei (Ghahremani et al. 2022).

One generator translates the RGB image x into each modality, f_i = G_i(x): the hematoxylin channel, DAPI, Lap2 and the marker, or any
others. One segmentation generator sees the input and one sees each modality, and the weighted mean of what they draw is the
class map, S = w_0 GS_0(x) + Σ_i w_i GS_i(f_i): red where a nucleus is positive, blue where it is negative, green on its border.

The paper's text counts eight generators in places; its equations and the published program have 4 + 5 = 9. Each tile is
normalised by its own statistics, see `translation.TileNorm`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from cytonym.models.base import require_whole, tuples
from cytonym.models.deepliif_published import read_folder
from cytonym.models.translation import Norm, Padding, ResNetGenerator, UNetGenerator, initialize

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger("cytonym")

PUBLISHED_MODALITIES = ("hematoxylin", "DAPI", "Lap2", "marker")
PAPER_WEIGHTS = (0.25, 0.15, 0.25, 0.10, 0.25)
"""Of the class maps from the input and the four modalities, in the paper and in training."""
PUBLISHED_WEIGHTS = (0.5, 0.0, 0.0, 0.0, 0.5)
"""With which the published program runs the published networks."""
SEGMENTATION = "segmentation"
"""Name of the class map among the outputs."""


@dataclass(frozen=True)
class DeepLIIFConfig:
    """Shape of the networks and of their input. The defaults are the published ones.

    Parameters
    ----------
    filters
        Maps of the generators' first layers.
    blocks
        Residual blocks of the generators that translate.
    depth
        Halvings of the generators that segment. Sides of tiles are multiples of 2 to the power of this.
    discriminator_filters, discriminator_layers
        Maps of the discriminators' first layers, and their halvings. They are made for training only and are not saved.
    input_channels, output_channels
        Of the input and of each modality. The class map has 3.
    dropout
        In training, in all generators.
    padding
        What the translating generators see beyond the border: ``"zero"`` or ``"reflect"``.
    norm
        Statistics in training: ``"batch"``, of the batch (the authors train on one tile at a time), or ``"tile"``, of each tile.
    tile_px
        Side of the tiles that the networks were trained on.
    pixel_size
        Micrometres a pixel of these. The published ones are of 40x; 0.25 for that is our assumption.
    segmentation_weights
        w_0 … w_M, with a sum of 1. Default: the paper's for 4 modalities, else equal ones.
    """

    filters: int = 64
    blocks: int = 9
    depth: int = 9
    discriminator_filters: int = 64
    discriminator_layers: int = 4
    input_channels: int = 3
    output_channels: int = 3
    dropout: bool = True
    padding: Padding = "zero"
    norm: Norm = "batch"
    tile_px: int = 512
    pixel_size: float = 0.25
    segmentation_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require_whole(self, filters=1, blocks=1, depth=2, input_channels=1, output_channels=1, tile_px=1)
        require_whole(self, discriminator_filters=1, discriminator_layers=1)
        for name, known in {"padding": ("zero", "reflect"), "norm": ("batch", "tile")}.items():
            if getattr(self, name) not in known:
                msg = f"`{name}` must be one of {known}, got {getattr(self, name)!r}."
                raise ValueError(msg)
        if self.tile_px % self.multiple:
            msg = f"`tile_px` must be a multiple of {self.multiple} for a depth of {self.depth}, got {self.tile_px}."
            raise ValueError(msg)
        if not 0 < self.pixel_size < math.inf:
            msg = f"`pixel_size` must be positive, got {self.pixel_size}."
            raise ValueError(msg)
        given = self.segmentation_weights
        if given is not None and not (all(0 <= w <= 1 for w in given) and abs(sum(given) - 1) < 1e-6):
            msg = f"`segmentation_weights` must be numbers from 0 to 1 with a sum of 1, got {given}."
            raise ValueError(msg)

    @property
    def multiple(self) -> int:
        """Of which the sides of tiles are multiples."""
        return max(8, 1 << self.depth)


class DeepLIIF(nn.Module):
    """Brightfield images in, modalities and a class map out, all from -1 to 1.

    Weights are not drawn: `from_seed`, `from_published` and `models.load` bring them. `translation.scaled` and
    `translation.to_uint8` are the way from and to pixels.

    Parameters
    ----------
    modalities
        Names of the M modalities, in their order; none leaves a network that draws the class map from the input alone.
    config
        Shape of the networks.

    Examples
    --------
    >>> import torch
    >>> from cytonym.models.deepliif import DeepLIIF, DeepLIIFConfig
    >>> model = DeepLIIF.from_seed(["hematoxylin", "DAPI"], DeepLIIFConfig(filters=4, blocks=1, depth=4, tile_px=64))
    >>> made = model(torch.rand(2, 3, 64, 64) * 2 - 1)
    >>> {name: tuple(image.shape) for name, image in made.items()}
    {'hematoxylin': (2, 3, 64, 64), 'DAPI': (2, 3, 64, 64), 'segmentation': (2, 3, 64, 64)}
    """

    name: ClassVar[str] = "deepliif"
    Config: ClassVar[type] = DeepLIIFConfig

    def __init__(self, modalities: Sequence[str] = PUBLISHED_MODALITIES, config: DeepLIIFConfig | None = None) -> None:
        super().__init__()
        self.markers: tuple[str, ...] = tuple(str(m) for m in modalities)
        """Names of the modalities."""
        if len(set(self.markers)) < len(self.markers) or SEGMENTATION in self.markers:
            msg = f"Modalities need names, each once and none of them {SEGMENTATION!r}, got {list(self.markers)}."
            raise ValueError(msg)
        self.config = config or DeepLIIFConfig()
        self.history: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        c, n = self.config, len(self.markers)
        told = c.segmentation_weights
        self.segmentation_weights = told or (PAPER_WEIGHTS if n == 4 else (1 / (n + 1),) * (n + 1))
        if len(self.segmentation_weights) != n + 1:
            msg = (
                f"`segmentation_weights` must hold {n + 1} numbers, for the input and {list(self.markers)}, "
                f"got {len(self.segmentation_weights)}."
            )
            raise ValueError(msg)
        deep: dict[str, Any] = {"dropout": c.dropout, "norm": c.norm}
        self.translators = nn.ModuleDict()
        self.segmenters = nn.ModuleDict({"GS0": UNetGenerator(c.input_channels, 3, c.filters, c.depth, **deep)})
        for i in range(1, n + 1):
            self.translators[f"G{i}"] = ResNetGenerator(
                c.input_channels, c.output_channels, c.filters, c.blocks, padding=c.padding, **deep
            )
            self.segmenters[f"GS{i}"] = UNetGenerator(c.output_channels, 3, c.filters, c.depth, **deep)

    @classmethod
    def from_seed(
        cls,
        modalities: Sequence[str] = PUBLISHED_MODALITIES,
        config: DeepLIIFConfig | None = None,
        *,
        seed: int = 0,
    ) -> DeepLIIF:
        """Networks with new weights. The global generator is left alone."""
        model = cls(modalities, config)
        initialize(model, torch.Generator().manual_seed(seed))
        return model.eval()

    @classmethod
    def from_published(
        cls,
        folder: str | Path,
        modalities: Sequence[str] | None = None,
        *,
        segmentation_weights: Sequence[float] | None = None,
        epoch: str | int = "latest",
    ) -> DeepLIIF:
        """The authors' networks, or others that their program trained.

        The weights tell the shape; what `train_opt.txt` says must agree with them. The licence is logged and kept in `provenance`
        with the SHA-256 of each file.

        Parameters
        ----------
        folder
            Holds `<epoch>_net_<name>.pth`, state dicts, or else `<name>.pt`, TorchScript. Both are read as tensors: no code in them
            is run, also none that torch would run on opening a file.
        modalities
            Names, in the order of G1, G2, …. Default: those of the options, else the paper's if there are four.
        segmentation_weights
            w_0 … w_M. Default: 0.5, 0, 0, 0, 0.5 for four modalities that the options do not name, as the authors' program runs
            its published model; else those of the options, else equal ones.
        epoch
            Of the state dicts. TorchScript counts as "latest", where there are no state dicts of it.

        Raises
        ------
        FileNotFoundError
            There is no such folder, no network in it, or one is missing.
        ValueError
            A file is damaged, holds more than tensors, or weights of another network; or the options say otherwise.
        """
        found = read_folder(folder, str(epoch))
        n, told = len(found.translators), found.names
        names = tuple(modalities) if modalities is not None else told
        if names is None:
            names = PUBLISHED_MODALITIES if n == 4 else tuple(f"modality {i}" for i in range(1, n + 1))
        if len(names) != n:
            msg = f"'{folder}' has networks for {n} modalities, but {len(names)} names were given: {list(names)}."
            raise ValueError(msg)
        weights = tuple(segmentation_weights) if segmentation_weights is not None else None
        if weights is None:
            as_published = n == 4 and told is None
            weights = PUBLISHED_WEIGHTS if as_published else found.segmentation_weights or (1 / (n + 1),) * (n + 1)
        model = cls(names, DeepLIIFConfig(**found.shape, segmentation_weights=weights))
        for network, file in zip([*model.translators.values(), *model.segmenters.values()], found.files, strict=True):
            found.load(network, file)
        model.provenance = {"published": str(found.folder.name), "epoch": str(epoch)} | found.provenance
        logger.info("Networks of %d modalities from '%s'. %s", n, folder, found.provenance["licence"])
        return model.eval()

    @classmethod
    def config_from_dict(cls, values: dict[str, Any]) -> DeepLIIFConfig:
        """The config that `config_dict` made, also after a trip through JSON."""
        return DeepLIIFConfig(**{key: tuples(value) for key, value in values.items()})

    def config_dict(self) -> dict[str, Any]:
        """The config in types that JSON knows."""
        return asdict(self.config)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all that it makes."""
        return (*self.markers, SEGMENTATION)

    def translate(self, x: Tensor, modalities: Collection[str] | None = None) -> dict[str, Tensor]:
        """Input [B, C, H, W] -> modalities by name, each [B, C', H, W]; those that are named, or all."""
        return {
            name: network(x)
            for name, network in zip(self.markers, self.translators.values(), strict=True)
            if modalities is None or name in modalities
        }

    def class_maps(self, x: Tensor, made: Mapping[str, Tensor]) -> list[Tensor]:
        """What the segmentation generators of the input and of each modality draw, [B, 3, H, W] each."""
        seen = [x, *(made[name] for name in self.markers)]
        return [network(image) for network, image in zip(self.segmenters.values(), seen, strict=True)]

    def segment(self, x: Tensor, made: Mapping[str, Tensor]) -> Tensor:
        """The class map [B, 3, H, W] from the input and its modalities. Generators of weight 0 do not run."""
        total = x.new_zeros(())
        for w, source, network in zip(
            self.segmentation_weights, ("", *self.markers), self.segmenters.values(), strict=True
        ):
            if w:
                total = total + w * network(made[source] if source else x)
        return total

    def forward(self, x: Tensor, outputs: Collection[str] | None = None) -> dict[str, Tensor]:
        """Input [B, C, H, W] -> images by name, `outputs` or all. Only the generators that these need are run."""
        self._check(x, outputs)
        wanted = set(self.outputs if outputs is None else outputs)
        needed = wanted | {
            name
            for name, w in zip(self.markers, self.segmentation_weights[1:], strict=True)
            if w and SEGMENTATION in wanted
        }
        made = self.translate(x, needed)
        found = {name: image for name, image in made.items() if name in wanted}
        return found | ({SEGMENTATION: self.segment(x, made)} if SEGMENTATION in wanted else {})

    def _check(self, x: Tensor, outputs: Collection[str] | None) -> None:
        c, unknown = self.config, sorted(set(outputs or ()) - set(self.outputs))
        if unknown:
            msg = f"No outputs {unknown}. There are {list(self.outputs)}."
            raise ValueError(msg)
        if x.ndim != 4 or x.shape[1] != c.input_channels or not x.is_floating_point():
            msg = (
                f"Expected a float tensor [B, {c.input_channels}, H, W] from -1 to 1, got {x.dtype} {tuple(x.shape)}. "
                "`translation.scaled` makes it of pixels."
            )
            raise ValueError(msg)
        if any(side % c.multiple or not side for side in x.shape[2:]):
            msg = f"Sides must be multiples of {c.multiple}, got {tuple(x.shape[2:])}."
            raise ValueError(msg)
