"""Brightness of the channels of many images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.data.loader import match_channels
from cytonym.data.patches import bin_pixels
from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cytonym.data.source import CellSource
    from cytonym.data.tiles import Tile

SQUARE_PX = 256  # side of the squares that statistics are taken from
NAMES = ("quantile", "max", "nonzero")
CHANNELS = 8  # that are looked at together, or as many as lie in one chunk


def channel_statistics(
    sources: Sequence[CellSource],
    *,
    quantile: float = 0.9,
    max_pixels: int = 2**22,
    seed: int = 0,
    binning: int = 1,
    everywhere: bool = False,
) -> dict[str, np.ndarray]:
    """Brightness of each channel over all images.

    Looks at random squares of 256 px that hold cells, the same number of pixels in every image. Small images are read
    whole. A channel that is dark in all these squares is looked for in the rest of the images, so that rare markers are
    not taken for missing ones.

    Parameters
    ----------
    sources
        Cells and images, all with the same channel names.
    quantile
        Which quantile of the pixels above zero to give.
    max_pixels
        About how many pixels of each channel to look at, over all images.
    seed
        Of the random squares. The result depends on nothing else; not on how the images are stored.
    binning
        Side of the squares of pixels that are averaged into one first.
    everywhere
        Look at squares without cells, too.

    Returns
    -------
    dict with f8 [C] in the order of the first source's channels: `"quantile"` of the pixels above zero, 0 for a
    channel without any; `"max"` of the pixels looked at; `"nonzero"`, the share of pixels above zero.

    Raises
    ------
    ValueError
        There is no source, channel names differ, `quantile` is not in 0 … 1, or pixels are NaN or infinite.

    Examples
    --------
    >>> import cytonym as cy
    >>> from cytonym.data.source import resolve
    >>> statistics = channel_statistics(resolve(cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)))
    >>> sorted(statistics)
    ['max', 'nonzero', 'quantile']
    """
    sources = match_channels(sources)
    if not 0 <= quantile <= 1:
        msg = f"`quantile` must lie between 0 and 1, got {quantile}."
        raise ValueError(msg)
    n_channels, share = len(sources[0].channels), max(1, max_pixels // len(sources))
    group = max(CHANNELS, *(_channels_of_chunk(source.pixels) for source in sources))
    parts = [
        _statistics(
            [s.of_channels(s.channels[i : i + group]) for s in sources],
            quantile,
            share,
            seed,
            binning,
            everywhere=everywhere,
        )
        for i in range(0, n_channels, group)
    ]
    return (
        {name: np.concatenate([part[name] for part in parts]) for name in NAMES}
        if parts
        else {name: np.zeros(0) for name in NAMES}
    )


def _channels_of_chunk(pixels: Any) -> int:
    chunks = getattr(pixels, "chunks", None) or (1,)
    return max(chunks[0]) if isinstance(chunks[0], tuple) else int(chunks[0])


def _statistics(
    sources: Sequence[CellSource], quantile: float, share: int, seed: int, binning: int, *, everywhere: bool
) -> dict[str, np.ndarray]:
    """Statistics of some channels, whose pixels are held in memory; `share` pixels of each image."""
    found: list[list[np.ndarray]] = [[] for _ in sources[0].channels]
    n_pixels = np.zeros(len(found))
    for i, source in enumerate(sources):
        squares, every = _squares(source, share, np.random.default_rng([seed, i]), everywhere=everywhere)
        for pixels in _read_squares(source, squares, every, binning):
            _check(source, pixels)
            n_pixels += pixels.shape[1]
            for channel, layer in zip(found, pixels, strict=True):
                channel.append(layer[layer > 0])
    dark = [c for c, parts in enumerate(found) if not any(map(len, parts))]
    if dark:
        sizes = [np.array(source.pixels.shape[1:]) for source in sources]
        n_pixels[dark] = sum(float(np.prod(size // binning)) for size in sizes)
        for source, size in zip(sources, sizes, strict=True):
            for tile in iter_tiles(source.pixels, source.channel_index[dark], halo=binning - 1):
                for c, layer in zip(dark, _binned(tile, np.zeros_like(size), size, 1, binning), strict=True):
                    found[c].append(layer[layer > 0])  # few, or they would have been seen before
    result = {name: np.zeros(len(found)) for name in NAMES}
    for c, parts in enumerate(found):
        if any(map(len, parts)):
            values = np.concatenate(parts)
            values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
            result["quantile"][c], result["max"][c] = np.quantile(values, quantile), values.max()
            result["nonzero"][c] = len(values) / n_pixels[c]
    return result


def _squares(source: CellSource, share: int, rng: np.random.Generator, *, everywhere: bool) -> tuple[np.ndarray, int]:
    """Corners (y, x) [n, 2] of squares that hold cells, and which rows of pixels of them, every k-th, make the share."""
    size = np.array(source.pixels.shape[1:])
    if everywhere:
        squares = np.stack(np.meshgrid(*[np.arange(0, n, SQUARE_PX) for n in size], indexing="ij"), axis=-1).reshape(
            -1, 2
        )
        chosen = squares[np.sort(rng.permutation(len(squares))[: max(1, share // SQUARE_PX**2)])]
        return chosen, max(1, SQUARE_PX**2 // share)
    inside = ((source.centers >= 0) & (source.centers < size)).all(1)
    squares = np.unique(source.centers[inside].astype(np.int64) // SQUARE_PX, axis=0) * SQUARE_PX
    n = max(1, share // SQUARE_PX**2)
    chosen = squares[np.sort(rng.permutation(len(squares))[:n])]
    return chosen, max(1, SQUARE_PX**2 // share)


def _read_squares(source: CellSource, squares: np.ndarray, every: int, binning: int) -> Iterator[np.ndarray]:
    """Pixels [C, n] of the squares, binned, in pieces; each chunk is decoded once."""
    grid = np.stack(np.meshgrid(*[np.arange(0, SQUARE_PX, 8)] * 2), axis=-1).reshape(-1, 2)  # no tile is that narrow
    last = np.array(source.pixels.shape[1:]) - 1  # but the one at the border, maybe
    near = np.minimum((squares[:, None] + grid).reshape(-1, 2), last)
    for tile in iter_tiles(source.pixels, source.channel_index, tile_px=SQUARE_PX, near=near, halo=binning - 1):
        for square in squares:
            yield _binned(tile, square, np.minimum(square + SQUARE_PX, last + 1), every, binning)


def _binned(tile: Tile, start: np.ndarray, stop: np.ndarray, every: int, binning: int) -> np.ndarray:
    """Binned pixels [C, n] of a box of the image that begin in a tile, of every k-th row.

    Bins begin at the start of the box and belong to the tile with their first pixel: whatever the tiles, they are the same.
    """
    stop = start + (stop - start) // binning * binning
    first = np.maximum(start, (tile.y0, tile.x0))
    first = first + (start - first) % binning
    counts = -((first - np.minimum(stop, (tile.y1, tile.x1))) // binning)
    (y, x), (height, width) = first - (tile.py0, tile.px0), np.maximum(counts, 0) * binning
    if not height * width:
        return np.empty((len(tile.pixels), 0), dtype=tile.pixels.dtype)
    part = bin_pixels(tile.pixels[:, y : y + height, x : x + width], binning)
    return part[:, -((first[0] - start[0]) // binning) % every :: every].reshape(len(part), -1)


def _check(source: CellSource, pixels: np.ndarray) -> None:
    """Raise where pixels [C, n] are no numbers."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        names = [source.channels[c] for c in np.flatnonzero(~np.isfinite(pixels).all(1))]
        msg = f"Channels {names} of image {source.image_key!r} have NaN or infinite pixels. Replace them, for instance with `numpy.nan_to_num`."
        raise ValueError(msg)
