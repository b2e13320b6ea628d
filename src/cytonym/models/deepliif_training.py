"""What training DeepLIIF needs beside its generators: the discriminators, which are not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from cytonym.models.translation import PatchDiscriminator, initialize

if TYPE_CHECKING:
    from cytonym.models.deepliif import DeepLIIFConfig


class DeepLIIFDiscriminators(nn.Module):
    """The discriminators of a training: D_i sees input and modality i, DS_0 input and class map, DS_i modality i and class map.

    Parameters
    ----------
    modalities
        How many.
    config
        Their shape.
    seed
        Of the weights. The global generator is left alone.
    """

    def __init__(self, modalities: int, config: DeepLIIFConfig, *, seed: int = 0) -> None:
        super().__init__()
        c = config
        if c.tile_px >> c.discriminator_layers < 3:
            msg = f"`discriminator_layers` of {c.discriminator_layers} leave nothing of tiles of {c.tile_px} pixels. Take fewer."
            raise ValueError(msg)
        sees: dict[str, int] = {f"D{i}": c.input_channels + c.output_channels for i in range(1, modalities + 1)}
        judges = {f"DS{i}": (c.output_channels if i else c.input_channels) + 3 for i in range(modalities + 1)}
        self.translation, self.segmentation = (
            nn.ModuleDict(
                {
                    name: PatchDiscriminator(n, c.discriminator_filters, c.discriminator_layers, norm=c.norm)
                    for name, n in group.items()
                }
            )
            for group in (sees, judges)
        )
        initialize(self, torch.Generator().manual_seed(seed))
