"""What tells images apart."""

from __future__ import annotations

import dask.array as da
import numpy as np

from cytonym.data.fingerprint import Fingerprint
from cytonym.data.tiles import iter_tiles


def of(pixels, tile_px=1024):
    seen = Fingerprint(pixels.shape)
    parts = list(seen.pixels(iter_tiles(pixels, tile_px=tile_px)))
    assert sum(part.size for part in parts) == pixels.size
    return seen.hexdigest()


def test_is_the_same_for_the_same_pixels():
    rgb = np.random.default_rng(0).integers(256, size=(3, 70, 90), dtype=np.uint8)
    expected = of(rgb)
    assert of(rgb, 16) == of(rgb, 33) == expected
    assert of(da.from_array(rgb, chunks=(1, 31, 20)), 20) == expected
    assert of(rgb) == of(rgb.copy(order="F")) == expected


def test_tells_what_has_the_same_colors_apart():
    rgb = np.zeros((3, 8, 8), np.uint8)
    rgb[:, 1:3, 1:3] = 1
    images = [rgb, rgb[::-1], rgb[:, ::-1], rgb[:, :, ::-1], rgb[:, 1:], rgb.copy(), rgb.copy()]
    images[5][:, 1:3, 1:3] = [[0, 2], [2, 0]]
    images[6][:, 1:3, 1:3] = [[2, 0], [0, 2]]
    images[1] = np.concatenate([rgb[:2], 1 - rgb[:1]])
    assert len({of(np.ascontiguousarray(image)) for image in images}) == len(images)
