"""Random tiles of registered images, to train a translator on, and the class map that nuclei make."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from cytonym.data.class_map_images import BLUE, GREEN, NEIGHBORS, RED, SIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEPT_BYTES = 2**30
"""Images that are read again and again stay in memory up to this."""


@dataclass(frozen=True, eq=False)
class Registered:
    """A stained image and what it shall become, on the same pixels; or some rows of it."""

    name: str
    shape: tuple[int, int]
    """Rows and columns that may be used."""
    read: Callable[[], np.ndarray]
    """uint8 [K, H, W]: the stained image, the modalities and the class map, one after the other."""
    first: int = 0
    """Row that is the first to be used."""

    def rows(self, first: int, last: int) -> Registered:
        """Some of its rows."""
        return Registered(self.name, (last - first, self.shape[1]), self.read, self.first + first)


class TranslationTiles:
    """Batches of tiles uint8 [B, K, S, S], the same for the same seed and step. Every pixel comes as often as any other.

    Parameters
    ----------
    images
        Where tiles are cut.
    size_px
        Side S of the tiles.
    batch_size, steps, seed
        Of the training.
    kept_bytes
        Images stay in memory up to so many.
    """

    def __init__(
        self,
        images: Sequence[Registered],
        size_px: int,
        batch_size: int,
        steps: int,
        seed: int = 0,
        *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.images, self.size_px, self.batch_size, self.steps, self.seed = (
            list(images),
            size_px,
            batch_size,
            steps,
            seed,
        )
        area = np.array([float(np.prod(image.shape)) for image in self.images])
        self.shares = area / area.sum()
        self.kept_bytes = kept_bytes
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, start: int) -> Iterator[torch.Tensor]:
        """Batches from step `start` on."""
        for step in range(start, self.steps):
            rng = np.random.default_rng([self.seed, step])
            yield torch.from_numpy(np.stack([self._draw(rng) for _ in range(self.batch_size)]))

    def all_tiles(self, most: int) -> list[torch.Tensor]:
        """Tiles [1, K, S, S] side by side; so many of them, drawn at random, where there are more."""
        places = [
            (i, y, x)
            for i, image in enumerate(self.images)
            for y in range(0, image.shape[0] - self.size_px + 1, self.size_px)
            for x in range(0, image.shape[1] - self.size_px + 1, self.size_px)
        ]
        if len(places) > most:
            chosen = np.random.default_rng([self.seed, 2**31]).permutation(len(places))[:most]
            places = [places[i] for i in np.sort(chosen)]
        return [torch.from_numpy(self._tile(*place)[None].copy()) for place in places]

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        i = int(rng.choice(len(self.images), p=self.shares))
        height, width = self.images[i].shape
        y, x = (int(rng.integers(side - self.size_px + 1)) for side in (height, width))
        return self._tile(i, y, x)

    def _tile(self, i: int, y: int, x: int) -> np.ndarray:
        y += self.images[i].first
        return self._pixels(i)[:, y : y + self.size_px, x : x + self.size_px]

    def _pixels(self, i: int) -> np.ndarray:
        if i in self._kept:
            self._kept.move_to_end(i)
            return self._kept[i]
        pixels = self.images[i].read()
        self._kept[i] = pixels
        while len(self._kept) > 1 and sum(image.nbytes for image in self._kept.values()) > self.kept_bytes:
            self._kept.popitem(last=False)
        return pixels


def held_out(
    images: Sequence[Registered], share: float, least_px: int, seed: int, *, many: int = 5
) -> tuple[list[Registered], list[Registered]]:
    """Images to train on and to judge by: some of many, or the last rows of each of a few.

    However large the share, something is left to train on: one image, or as many rows of each as are needed.

    Parameters
    ----------
    images
        All images.
    share
        Of the images, or of the rows.
    least_px
        Rows that are needed; an image that has too few is trained on whole.
    seed
        Of the draw.
    many
        Number of images from which on they are held out whole.
    """
    if not share:
        return list(images), []
    if len(images) >= many:
        count = min(max(1, round(share * len(images))), len(images) - 1)
        out = set(np.random.default_rng([seed, 7]).permutation(len(images))[:count].tolist())
        return [s for i, s in enumerate(images) if i not in out], [s for i, s in enumerate(images) if i in out]
    trained, judged = [], []
    for image in images:
        height = image.shape[0]
        if height < 2 * least_px:
            trained.append(image)
            continue
        cut = min(max(least_px, height - round(share * height)), height - least_px)
        trained.append(image.rows(0, cut))
        judged.append(image.rows(cut, height))
    return trained, judged


def map_of_nuclei(labels: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The class map of known nuclei: positive ones red, negative ones blue, with green borders of 3 pixels.

    Of the border one pixel lies inside the nucleus and two outside, and nuclei that touch have theirs between them.

    Parameters
    ----------
    labels
        int [H, W], 0 where there is none.
    positive
        bool, of each label 0 ... the largest.

    Returns
    -------
    uint8 [3, H, W].

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.translation_tiles import map_of_nuclei
    >>> labels = np.zeros((9, 16), int)
    >>> labels[:, 5:11] = 1
    >>> red, green, blue = map_of_nuclei(labels, np.array([False, True]))
    >>> (red[4] > 0).astype(int).tolist()
    [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    >>> (green[4] > 0).astype(int).tolist()
    [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    """
    padded = np.pad(labels, 1, mode="edge")
    around = lambda image, steps: [
        image[1 + dy : image.shape[0] - 1 + dy, 1 + dx : image.shape[1] - 1 + dx] for dy, dx in steps
    ]
    border = np.any([side != labels for side in around(padded, SIDES)], axis=0) & (labels > 0)
    reach = border
    for _ in range(2):
        reach = reach | np.any(around(np.pad(reach, 1), NEIGHBORS), axis=0)
    border |= reach & (labels == 0)
    colors = np.where(np.asarray(positive, dtype=bool)[:, None], RED, BLUE).astype(np.uint8)
    colors[0] = 0
    picture = colors[labels]
    picture[border] = GREEN
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
