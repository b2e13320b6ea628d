"""Random windows over many images for training.

The windows of all cells rarely fit into memory, and reading one window means decoding whole chunks. So training goes in
rounds: a round loads a pool of random cells, in one pass over each image, and its batches are random draws from the
pool. Which cells these are follows from the seed and the step alone, so a training that starts again at step k sees
the batches that it would have seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from cytonym.data.patches import CellPatches, bin_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cytonym.data.source import CellSource


class TrainingWindows(IterableDataset):
    """Batches of windows of random cells, the same for the same seed and step.

    Channels are those of the first source, matched by name in the others. All windows of a batch differ, unless a batch
    is larger than the number of cells.

    Parameters
    ----------
    sources
        Cells and images, one or many, all with the same channel names.
    size_px
        Side S of the windows, in binned pixels. Beyond the border an image is mirrored.
    batch_size
        Windows B in a batch. Where `torch.distributed` is initialised, each rank gets its share of them: all ranks
        together see the batches of one process.
    steps
        Number of batches of the whole training.
    seed
        Seed of all draws.
    balance
        Every source has the same share of each batch, whatever its number of cells. Otherwise every cell has.
    pool_mb
        Memory for the pool in MiB, in the images' dtype. If all windows fit they are read once; otherwise a new pool is loaded when
        each of its windows has been drawn once on average. The batches depend on it.
    start_step
        Step to start at; the batches before it are left out.
    binning
        Side of the squares of pixels that are averaged into one.

    Yields
    ------
    torch.Tensor
        float32 [B, C, S, S], raw intensities.

    Raises
    ------
    ValueError
        There is no source or no cell in an image, channel names differ, a window is larger than an image, a number is out
        of range, or, on iteration, pixels are NaN or infinite.

    Examples
    --------
    >>> import cytonym as cy
    >>> from cytonym.data.source import resolve
    >>> sources = resolve(cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0))
    >>> batches = TrainingWindows(sources, 9, batch_size=16, steps=3, seed=0)
    >>> [tuple(batch.shape[2:]) for batch in batches]
    [(9, 9), (9, 9), (9, 9)]
    """

    def __init__(
        self,
        sources: Sequence[CellSource],
        size_px: int,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        balance: bool = True,
        pool_mb: float = 1024,
        start_step: int = 0,
        binning: int = 1,
    ) -> None:
        self.sources, self.size_px, self.binning = match_channels(sources), int(size_px), int(binning)
        numbers = (
            ("batch_size", batch_size, 1),
            ("steps", steps, 0),
            ("start_step", start_step, 0),
            ("binning", binning, 1),
        )
        for name, value, least in numbers:
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}."
                raise ValueError(msg)
        self.batch_size, self.steps, self.start_step = int(batch_size), int(steps), int(start_step)
        self.seed, self.balance = int(seed), balance
        self.inside = [_inside(source, self.size_px * self.binning) for source in self.sources]
        counts = np.array([len(rows) for rows in self.inside])
        size = self._pool_size(pool_mb)
        whole = size >= counts.sum()
        self.pool_counts = counts
        if not whole:
            self.pool_counts = np.maximum(1, _share(size, counts, self._weights(counts)).astype(int))
        self.steps_per_pool = max(1, self.steps if whole else int(self.pool_counts.sum()) // self.batch_size)
        self._loaded: tuple[int, list[np.ndarray]] | None = None

    def _weights(self, counts: np.ndarray) -> np.ndarray:
        return np.ones(len(counts)) if self.balance else counts.astype(float)

    def _pool_size(self, pool_mb: float) -> int:
        """Number of cells in a pool."""
        n_channels, widest = len(self.sources[0].channels), max(self._dtype(s).itemsize for s in self.sources)
        size = int(pool_mb * 2**20 / (n_channels * self.size_px**2 * widest))
        if size < len(self.sources):
            msg = (
                f"`pool_mb={pool_mb}` holds {size} windows of {self.size_px} px and {n_channels} channels, fewer than one "
                f"for each of {len(self.sources)} images. Give more memory."
            )
            raise ValueError(msg)
        return size

    def _dtype(self, source: CellSource) -> np.dtype:
        return source.pixels.dtype.newbyteorder("=") if self.binning == 1 else np.dtype(np.float32)

    def __len__(self) -> int:
        """Number of batches still to come."""
        return max(0, self.steps - self.start_step)

    def __getstate__(self) -> dict[str, object]:
        """Leave the pool behind: another process loads its own."""
        return self.__dict__ | {"_loaded": None}

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches from `start_step` on; the workers of a DataLoader take turns."""
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, n_ranks = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, n_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if self.batch_size % n_ranks:
            msg = f"`batch_size={self.batch_size}` cannot be shared by {n_ranks} ranks. Choose a multiple."
            raise ValueError(msg)
        for step in range(self.start_step + first, self.steps, every):
            yield self._batch(step, slice(rank, None, n_ranks))

    def _batch(self, step: int, share: slice) -> torch.Tensor:
        pool = self._pool(step // self.steps_per_pool)
        rng = np.random.default_rng([self.seed, 1, step])
        shares = _share(self.batch_size, self.pool_counts, self._weights(self.pool_counts))
        numbers = _whole(rng, shares)
        source = np.repeat(np.arange(len(pool)), numbers)
        place = np.concatenate([_draw(rng, len(windows), n) for windows, n in zip(pool, numbers, strict=True)])
        order = rng.permutation(self.batch_size)[share]
        batch = np.empty((len(order), *pool[0].shape[1:]), dtype=np.float32)
        for i, windows in enumerate(pool):
            mine = np.flatnonzero(source[order] == i)
            batch[mine] = windows[place[order[mine]]]
        return torch.from_numpy(batch)

    def _pool(self, number: int) -> list[np.ndarray]:
        """Windows [n, C, S, S] of the cells of a round, of each source."""
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = None  # two pools would take twice the memory
            rngs = [np.random.default_rng([self.seed, 0, number, i]) for i in range(len(self.sources))]
            self._loaded = number, [self._read(i, rng) for i, rng in enumerate(rngs)]
        return self._loaded[1]

    def _read(self, i: int, rng: np.random.Generator) -> np.ndarray:
        rows = np.sort(rng.choice(self.inside[i], self.pool_counts[i], replace=False))
        source = self.sources[i].subset(rows)
        windows = np.empty((len(rows), len(source.channels), self.size_px, self.size_px), dtype=self._dtype(source))
        batch_size = max(1, 1024 // self.binning**2)  # as many pixels in memory
        for block in CellPatches(source, self.size_px * self.binning, batch_size=batch_size):
            windows[block.rows] = bin_pixels(block.windows, self.binning)
        return windows


def _inside(source: CellSource, size_px: int) -> np.ndarray:
    """Rows of the cells that have a window."""
    outside = CellPatches(source, size_px).outside
    rows = np.setdiff1d(np.arange(len(source.centers)), outside)
    if not len(rows):
        msg = f"No cells of {source.region!r} lie in image {source.image_key!r}. Check their transformations."
        raise ValueError(msg)
    return rows


def _share(total: int, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`total` shared out by weight, as fractions [n]; nobody gets more than their count as long as others have some."""
    if total > counts.sum():
        return total * weights / weights.sum()
    shares, left = np.zeros(len(counts)), float(total)
    order = np.argsort(counts / weights, kind="stable")
    for i, weight in zip(order, np.cumsum(weights[order][::-1])[::-1], strict=True):
        shares[i] = min(counts[i], left * weights[i] / weight)
        left -= shares[i]
    return shares


def _whole(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Fractions rounded up or down at random to whole numbers of the same sum and the right expectation."""
    ends = np.cumsum(shares)
    ends[-1] = round(ends[-1])
    return np.diff(np.floor(ends + rng.random()), prepend=0).astype(int)


def _draw(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """K of n at random, none twice before all have come once."""
    again, rest = divmod(k, n)
    return np.concatenate([np.tile(np.arange(n), again), rng.choice(n, rest, replace=False)])


def match_channels(sources: Sequence[CellSource]) -> list[CellSource]:
    """The sources with their channels in the order of the first one, matched by name.

    Raises
    ------
    ValueError
        There is no source, or the names differ.
    """
    if not sources:
        msg = "No images to read: `sources` is empty."
        raise ValueError(msg)
    first, names = sources[0], list(sources[0].channels)
    for source in sources:
        if sorted(source.channels) != sorted(names):
            here, there = set(source.channels), set(names)
            msg = (
                f"The images must share their channels. Only in {first.image_key!r}: {sorted(there - here)}; only in "
                f"{source.image_key!r}: {sorted(here - there)}. `channels` selects those they have in common."
            )
            raise ValueError(msg)
    orders = [[source.channels.index(name) for name in names] for source in sources]
    return [
        replace(source, channels=tuple(names), channel_index=np.asarray(source.channel_index)[order])
        for source, order in zip(sources, orders, strict=True)
    ]
