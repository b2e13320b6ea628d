"""What learned networks make of a brightfield image, tile by tile."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F

from cytonym.data.pixel_store import CHUNK_PX
from cytonym.data.stitching import Grid, Squares, Stitcher, TileAxis, cut_tiles, is_empty
from cytonym.data.tiles import iter_tiles
from cytonym.learning.engine import choose_device, progress_bar, read_ahead
from cytonym.learning.predict import mapping
from cytonym.models import DeepLIIF
from cytonym.models.checkpoint import is_checkpoint
from cytonym.models.deepliif import SEGMENTATION
from cytonym.models.fast_generators import FastDeepLIIF
from cytonym.models.translation import scaled, to_uint8
from cytonym.tl._brightfield import CLASS_MAP
from cytonym.tl._loading import trained
from cytonym.tl._translators import CLASS_MAP_KEY, STAINS_KEY, TILE_PX, Output, Piece

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor

    from cytonym.data.pixel_store import Box
    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

Tiles = Literal["blended", "released"]
TILES = ("blended", "released")
RGB = ("r", "g", "b")
BATCH_SIZE = 8
MOST_EMPTY = 64
"""Tiles without tissue that are passed on together."""
LEAST_TILE_PX = 16
SCALES = (1 / 8, 8.0)
"""Pixels of the network per pixel of the image."""
GROUNDS = {
    "hematoxylin": (201, 211, 208),
    "haematoxylin": (201, 211, 208),
    "hema": (201, 211, 208),
    "dapi": (10, 10, 10),
    "lap2": (0, 0, 0),
    "marker": (10, 10, 10),
    "eosin": (255, 255, 255),
    "dab": (255, 255, 255),
}
"""Where there is no tissue: of the published modalities as published, and of stains that are seen in bright field. Others: black."""


def translator_network(model: str | Path | DeepLIIF) -> DeepLIIF:
    """A network object, or one from a checkpoint.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        It is none of these, a model of another kind, or its input is no RGB image.
    """
    if isinstance(model, (str, Path)) and any(Path(model).glob("*.pt*")) and not is_checkpoint(model):
        msg = f"'{model}' holds networks of the authors' program. Pass `models.DeepLIIF.from_published('{model}')`."
        raise ValueError(msg)
    found = trained(
        model,
        DeepLIIF,
        "translator",
        advice="Its published weights are not part of the package: get them from its authors (for non-commercial use) and pass "
        "`models.DeepLIIF.from_published(folder)`, or use model='classical'.",
        shipped="classical",
        makers="`tl.fit_translator`, `models.DeepLIIF`",
    )
    if found.config.input_channels != 3:
        msg = f"The networks take images of {found.config.input_channels} channels, but an RGB image has 3."
        raise ValueError(msg)
    return found


class Resolution(NamedTuple):
    """At which resolution an image goes through the networks."""

    tile_px: int
    """Side of a tile in pixels of the image."""
    pixel_size: float
    how: str
    """Where the pixel size is from: given, image or assumed."""


def resolution_of(source: CellSource, model: DeepLIIF, pixel_size: float | None) -> Resolution:
    """The tile of an image that shows as much tissue as those that the networks know.

    Raises
    ------
    ValueError
        Pixels are so large or small that the networks would see something else than cells.
    """
    if pixel_size is not None and not 0 < pixel_size < np.inf:
        msg = f"`pixel_size` must be positive, got {pixel_size}."
        raise ValueError(msg)
    own = model.config.pixel_size
    size, how = (pixel_size, "given") if pixel_size is not None else (source.pixel_size, "image")
    if size is None:
        size, how = own, "assumed"
        logger.warning(
            "The pixel size of image %r is unknown: %g micrometres are assumed, as the networks know it. Give `pixel_size`.",
            source.image_key, own,
        )  # fmt: skip
    tile_px = round(model.config.tile_px * own / size)
    if not (SCALES[0] <= size / own <= SCALES[1] and tile_px >= LEAST_TILE_PX):
        msg = (
            f"Pixels of {size:g} micrometres ({how}) in image {source.image_key!r}, but the networks know pixels of {own:g}, so that a "
            f"tile would have a side of {tile_px}. Use an image, or a level (`scale`), of a similar magnification, or give `pixel_size`."
        )
        raise ValueError(msg)
    return Resolution(tile_px, float(size), how)


def is_light(modality: str) -> bool:
    """Whether a modality is dark on bright, as a stain in bright field."""
    return float(np.mean(ground_of(modality))) > 127


def ground_of(modality: str) -> tuple[int, int, int]:
    """Color of a modality where there is no tissue."""
    return GROUNDS.get(modality.casefold(), (0, 0, 0))


class LearnedTranslator:
    """The modalities of a network as channels, as pictures, and its class map.

    Tiles lie on a grid that follows from the image alone, because each is normalised by its own pixels.

    Parameters
    ----------
    model
        The networks.
    tile_px
        Side of a tile in pixels of the image.
    class_map, rgb
        Also draw the nuclei; also keep the modalities as they are.
    tiles
        How neighbours meet.
    batch_size
        Tiles with tissue that are looked at at a time; on a CPU, one for each thread.
    device
        See `cytonym.learning.engine.choose_device`.
    """

    def __init__(
        self,
        model: DeepLIIF,
        tile_px: int,
        *,
        class_map: bool = True,
        rgb: bool = False,
        tiles: Tiles = "blended",
        batch_size: int | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        if tiles not in TILES:
            msg = f"`tiles` must be one of {list(TILES)}, got {tiles!r}."
            raise ValueError(msg)
        if batch_size is not None and batch_size < 1:
            msg = f"`batch_size` must be at least 1, got {batch_size}."
            raise ValueError(msg)
        if not class_map and not model.markers:
            msg = "The networks have no modalities, so there is nothing to make without the class map."
            raise ValueError(msg)
        if rgb and model.config.output_channels != 3:
            msg = f"`rgb` is for networks that make RGB images; these make {model.config.output_channels} channels."
            raise ValueError(msg)
        self.model, self.tile_px, self.class_map, self.rgb, self.tiles = model, tile_px, class_map, rgb, tiles
        self.device = choose_device(device)
        self.one_by_one = self.device.type == "cpu"  # each on a core of its own
        workers = torch.get_num_threads() if self.one_by_one else BATCH_SIZE
        self.batch_size = batch_size or min(BATCH_SIZE, workers)
        self.outputs: dict[str, Output] = {}
        if model.markers:
            self.outputs[STAINS_KEY] = Output(model.markers, np.uint8)
        if class_map:
            self.outputs[CLASS_MAP_KEY] = Output(CLASS_MAP, np.uint8)
        names = [re.sub(r"[^\w.-]", "_", name) for name in model.markers] if rgb else []
        both = [name.casefold() for name in [*self.outputs, *names]]
        if len(set(both)) < len(both):
            msg = f"Modalities {list(model.markers)} cannot all be names of images beside {list(self.outputs)}: leave `rgb` out."
            raise ValueError(msg)
        self.outputs |= {name: Output(RGB, np.uint8) for name in names}

    @property
    def n_channels(self) -> int:
        """Of all images together."""
        return sum(len(output.channels) for output in self.outputs.values())

    def pieces(self, source: CellSource, done: Collection[Box] = ()) -> Iterator[Piece]:
        """The images in squares of the chunks in which they are stored, each when all of its tiles are there."""
        _, height, width = source.shape
        turned = width > height  # rows of tiles run along the shorter side, as those in which the image is read
        sides = (width, height) if turned else (height, width)
        grid = Grid(*(TileAxis(n, self.tile_px, blended=self.tiles == "blended") for n in sides))
        known = {(x0, y0) if turned else (y0, x0) for y0, x0, _, _ in done}
        squares = Squares(sides, self.n_channels, CHUNK_PX, known)
        top = squares.first_row()
        if top is None:
            return
        first = grid.y.first_after(top)
        n_tiles = (len(grid.y.starts) - first) * len(grid.x.starts)
        stitcher = Stitcher(grid, self.n_channels)
        label = f"translating {source.image_key}"
        with progress_bar(label, n_tiles, "tile", show=n_tiles > 8) as bar, _Networks(self) as networks:
            for group in read_ahead(self._groups(source, grid, first, turned=turned)):
                for (i, j, _), made in zip(group, networks([pixels for *_, pixels in group]), strict=True):
                    for part in squares.add(stitcher.add(i, j, made.swapaxes(1, 2) if turned else made)):
                        pixels = part.pixels.swapaxes(1, 2) if turned else part.pixels
                        place = (part.x0, part.y0) if turned else (part.y0, part.x0)
                        yield Piece(*place, dict(self._split(pixels)))
                    bar.update()

    def _groups(
        self, source: CellSource, grid: Grid, first: int, *, turned: bool
    ) -> Iterator[list[tuple[int, int, Tensor | None]]]:
        """Rows, columns and pixels uint8 [3, S, S] of tiles at the networks' resolution, None for those without tissue."""
        read = iter_tiles(source.pixels, source.channel_index, tile_px=TILE_PX)
        group: list[tuple[int, int, Tensor | None]] = []
        for i, j, tile in cut_tiles(read, grid, first, turned=turned):
            pixels = None
            if not is_empty(tile):
                rgb = torch.from_numpy(np.ascontiguousarray(tile.swapaxes(1, 2) if turned else tile))
                pixels = resized(rgb[None], self.model.config.tile_px)[0]
            group.append((i, j, pixels))
            seen = sum(pixels is not None for *_, pixels in group)
            if seen == self.batch_size or len(group) - seen == MOST_EMPTY:
                yield group
                group = []
        if group:
            yield group

    def images_of(self, made: dict[str, Tensor]) -> np.ndarray:
        """What the networks make, from -1 to 1, as the channels of all images: uint8 [B, C, t, t]."""
        pictures = [resized(to_uint8(made[name]).cpu(), self.tile_px) for name in self.model.markers]
        return self._channels(
            pictures, resized(to_uint8(made[SEGMENTATION]).cpu(), self.tile_px) if self.class_map else None
        )

    def empty(self) -> np.ndarray:
        """The channels where there is no tissue, uint8 [C, t, t]."""
        n = self.model.config.output_channels
        colors = [ground_of(name) if n == 3 else (round(np.mean(ground_of(name))),) * n for name in self.model.markers]
        pictures = [torch.tensor(color, dtype=torch.uint8)[None, :, None, None] for color in colors]
        found = self._channels(pictures, torch.zeros(1, 3, 1, 1, dtype=torch.uint8) if self.class_map else None)
        return np.broadcast_to(found[0], (self.n_channels, self.tile_px, self.tile_px))

    def _channels(self, pictures: Sequence[Tensor], drawn: Tensor | None) -> np.ndarray:
        stains = [
            255 - picture.amin(1, keepdim=True) if is_light(name) else picture.amax(1, keepdim=True)
            for name, picture in zip(self.model.markers, pictures, strict=True)
        ]
        return torch.cat([*stains, *([] if drawn is None else [drawn]), *(pictures if self.rgb else [])], dim=1).numpy()

    def _split(self, pixels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each image's part of all channels."""
        start = 0
        for name, output in self.outputs.items():
            yield name, pixels[start : start + len(output.channels)]
            start += len(output.channels)

    def params(self) -> dict[str, Any]:
        """What the results depend on, but for the image and the weights, as plain values."""
        model = self.model
        return {
            "model": model.name,
            "licence": str(model.provenance.get("licence", "")),
            "modalities": list(model.markers),
            "segmentation_weights": [float(w) for w in model.segmentation_weights],
            "tile_px": self.tile_px,
            "network_px": model.config.tile_px,
            "tiles": self.tiles,
        }


class _Networks:
    """Tiles in, images out; a context manager. On a CPU each thread has a tile of its own."""

    def __init__(self, translator: LearnedTranslator) -> None:
        self.translator, self.device = translator, translator.device
        self.nothing = translator.empty()

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        model = self.translator.model
        training, home = model.training, next(model.parameters()).device
        self._stack.callback(lambda: model.to(home).train(training))
        model.to(self.device).eval()
        self._fast = FastDeepLIIF(model) if self.translator.one_by_one else None
        self._apply: Any = self._stack.enter_context(mapping(self.device))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, tiles: Sequence[Tensor | None]) -> Iterator[np.ndarray]:
        """Pixels [3, S, S], or None -> channels [C, t, t] of each."""
        seen = [tile for tile in tiles if tile is not None]
        size = 1 if self._fast is not None else self.translator.batch_size
        groups = [seen[i : i + size] for i in range(0, len(seen), size)]
        found: list[Sequence[np.ndarray]] = list(self._apply(self._forward, groups))
        made = iter([image for images in found for image in images])
        return (self.nothing if tile is None else next(made) for tile in tiles)

    def _forward(self, tiles: Sequence[Tensor]) -> Sequence[np.ndarray]:
        translator, n = self.translator, len(tiles)
        with torch.inference_mode():
            if self._fast is not None:
                made = self._fast(scaled(torch.stack(list(tiles))), segmentation=translator.class_map)
            else:  # always as many tiles, so that it does not matter which come together
                tiles = [*tiles, *[tiles[0]] * (translator.batch_size - n)]
                outputs = [*translator.model.markers, *([SEGMENTATION] if translator.class_map else [])]
                made = translator.model(scaled(torch.stack(list(tiles)).to(self.device)), outputs)
            return list(translator.images_of({name: image[:n] for name, image in made.items()}))


def resized(pictures: Tensor, side: int) -> Tensor:
    """Pictures uint8 [B, C, h, w] -> [B, C, side, side], bicubic, over all pixels that a new one covers."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    return F.interpolate(pictures.contiguous(), size=(side, side), mode="bicubic", antialias=True)
