"""What tells an image from others of its name and size."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cytonym.data.tiles import Tile


class Fingerprint:
    """The same for the same pixels, whichever way they are cut into tiles: of each row, a sum with a weight for each column.

    Parameters
    ----------
    shape
        Channels, height and width of an image of 8 bits.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.fingerprint import Fingerprint
    >>> from cytonym.data.tiles import iter_tiles
    >>> image = np.arange(60, dtype="u1").reshape(3, 4, 5)
    >>> def of(pixels, tile_px):
    ...     seen = Fingerprint(pixels.shape)
    ...     list(seen.pixels(iter_tiles(pixels, tile_px=tile_px)))
    ...     return seen.hexdigest()
    >>> of(image, 2) == of(image, 5), of(image, 5) == of(image[:, ::-1], 5)
    (True, False)
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        n_channels, height, width = shape
        self._weights = np.random.default_rng(0).integers(2**64, size=width, dtype=np.uint64)
        self._sums = np.zeros((n_channels, height), np.uint64)  # modulo 2 ** 64

    def pixels(self, tiles: Iterable[Tile]) -> Iterator[np.ndarray]:
        """The pixels of the tiles, which have no halo, one after the other as they are looked at."""
        for tile in tiles:
            weights = self._weights[tile.x0 : tile.x1]
            for sums, plane in zip(self._sums, tile.pixels, strict=True):
                sums[tile.y0 : tile.y1] += plane.astype(np.uint64) @ weights
            yield tile.pixels

    def hexdigest(self) -> str:
        """When all tiles are through."""
        return hashlib.sha256(self._sums.astype("<u8").tobytes()).hexdigest()
