"""What makes other images of a brightfield image, piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from cytonym.data.nuclei import NucleusRules, class_map_of_stains
from cytonym.data.stains import STAINS, separate_stains
from cytonym.data.tiles import iter_tiles
from cytonym.tl._brightfield import CLASS_MAP

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import DTypeLike

    from cytonym.data.pixel_store import Box
    from cytonym.data.source import CellSource

STAINS_KEY, CLASS_MAP_KEY = "stains", "class_map"
TILE_PX = 1024


class Output(NamedTuple):
    """An image that a translator makes."""

    channels: tuple[str, ...]
    dtype: DTypeLike


class Piece(NamedTuple):
    """A part of the images that are made; the parts of an image cover it and do not overlap."""

    y0: int
    x0: int
    images: Mapping[str, np.ndarray]
    """[C, h, w] by the key of the output."""

    @property
    def box(self) -> Box:
        """Where its pixels lie."""
        height, width = next(iter(self.images.values())).shape[1:]
        return self.y0, self.x0, self.y0 + height, self.x0 + width


class Translator(Protocol):
    """Images to make, and a walk over the source that makes them."""

    @property
    def outputs(self) -> Mapping[str, Output]:
        """The images that are made, by the end of their names."""

    def pieces(self, source: CellSource, done: Collection[Box] = ()) -> Iterator[Piece]:
        """The images, piece by piece, in any order, without those that are among `done`."""


class ClassicalTranslator:
    """Hematoxylin and DAB by color deconvolution, and nuclei by their contrast.

    Parameters
    ----------
    rules
        What a nucleus looks like.
    white
        Intensities of red, green and blue where there is no tissue.
    class_map
        Also draw the nuclei.
    tile_px
        Side of what is looked at at a time, without its surroundings.
    """

    def __init__(
        self, rules: NucleusRules, white: np.ndarray, *, class_map: bool = True, tile_px: int = TILE_PX
    ) -> None:
        self.rules, self.white, self.class_map, self.tile_px = rules, white, class_map, tile_px
        self.outputs: dict[str, Output] = {STAINS_KEY: Output(STAINS, np.float32)}
        if class_map:
            self.outputs[CLASS_MAP_KEY] = Output(CLASS_MAP, np.uint8)

    def pieces(self, source: CellSource, done: Collection[Box] = ()) -> Iterator[Piece]:
        """The images, tile by tile; a tile that is large, because its chunks are, in several pieces."""
        reach = self.rules.reach if self.class_map else 0
        for tile in iter_tiles(source.pixels, source.channel_index, halo=reach, tile_px=self.tile_px):
            for y0 in range(tile.y0, tile.y1, self.tile_px):
                for x0 in range(tile.x0, tile.x1, self.tile_px):
                    y1, x1 = min(y0 + self.tile_px, tile.y1), min(x0 + self.tile_px, tile.x1)
                    if (y0, x0, y1, x1) in done:  # with other chunks pieces are others, and all are made
                        continue
                    top, left = max(y0 - reach, tile.py0), max(x0 - reach, tile.px0)
                    rows = slice(top - tile.py0, y1 + reach - tile.py0)
                    columns = slice(left - tile.px0, x1 + reach - tile.px0)
                    core = (slice(None), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
                    stains = separate_stains(tile.pixels[:, rows, columns], self.white)
                    images = {STAINS_KEY: stains[core]}
                    if self.class_map:
                        images[CLASS_MAP_KEY] = class_map_of_stains(stains, self.rules)[core]
                    yield Piece(y0, x0, images)
