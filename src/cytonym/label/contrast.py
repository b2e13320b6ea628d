"""What to show black and what in full colour: told from windows around some cells."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from cytonym.data.source import CellSource
    from cytonym.label.blocks import Blocks

    Limits = tuple[float, float, float, float]

SAMPLES = 6
"""Places that are looked at."""
SAMPLE_PX = 512
DARK, BRIGHT = 0.01, 0.998
"""Quantiles that are shown black and in full colour."""


class Contrast:
    """Limits of channels. Each channel is looked at once, by whoever asks first; others wait for that channel alone.

    Parameters
    ----------
    channels
        Names.
    sources
        Cells of the images.
    blocks
        Their pixels.
    pool
        Threads to read with.
    """

    def __init__(
        self, channels: Sequence[str], sources: Sequence[CellSource], blocks: Sequence[Blocks], pool: Executor
    ) -> None:
        self.channels, self.sources, self.blocks = list(channels), list(sources), list(blocks)
        self._pool = pool
        self._known: dict[int, Future[Limits]] = {}
        self._lock = Lock()
        """Held while it is settled who looks at a channel, not while somebody does."""

    def of(self, channels: Sequence[int]) -> list[Limits]:
        """Of each channel, the least and largest value (at most 0 the least), and what is shown black and in full colour."""
        with self._lock:
            mine = [c for c in dict.fromkeys(channels) if c not in self._known]
            found = {c: self._known.setdefault(c, Future()) for c in channels}
        try:
            for alike in self._alike(mine):
                for channel, limits in zip(alike, self._look(alike), strict=True):
                    found[channel].set_result(limits)
        except BaseException as error:
            for channel in mine:
                if not found[channel].done():
                    self._known.pop(channel)  # whoever asks next tries again
                    found[channel].set_exception(error)
            raise
        return [found[c].result() for c in channels]

    def _alike(self, channels: list[int]) -> list[list[int]]:
        """Channels that the same images have: the same places are looked at, so that they are read together."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for channel in channels:
            alike.setdefault(self._shown(channel), []).append(channel)
        return list(alike.values())

    def _shown(self, channel: int) -> tuple[int, ...]:
        """Images that have a channel."""
        return tuple(n for n, source in enumerate(self.sources) if self.channels[channel] in source.channels)

    def _look(self, channels: list[int]) -> list[Limits]:
        rng = np.random.default_rng(0)
        shown = self._shown(channels[0])
        found = []
        for number in rng.permutation(shown)[:SAMPLES].tolist():
            source, blocks = self.sources[number], self.blocks[number]
            places = dict(zip(source.channels, source.channel_index.tolist(), strict=True))
            index = np.array([places[self.channels[c]] for c in channels])
            _, height, width = source.shape
            cells = np.flatnonzero(source.inside)
            centers = source.centers[cells] if len(cells) else np.array([[height / 2, width / 2]])
            for k in rng.integers(len(centers), size=max(1, SAMPLES // len(shown))).tolist():
                box = _window(blocks, *centers[k].tolist())
                found.append(blocks.read(*box, index, self._pool).reshape(len(index), -1))
        return [_limits(np.concatenate([values[k] for values in found])) for k in range(len(channels))]


def _window(blocks: Blocks, y: float, x: float) -> tuple[int, int, int, int]:
    """Rows y0 ... y1 - 1 and columns x0 ... x1 - 1 about a point, not beyond a block, so that one chunk is enough."""
    i = int(np.searchsorted(blocks.rows, y, side="right")) - 1
    j = int(np.searchsorted(blocks.columns, x, side="right")) - 1
    top, bottom, left, right = blocks.box(i, j)
    y0 = int(np.clip(int(y) - SAMPLE_PX // 2, top, max(bottom - SAMPLE_PX, top)))
    x0 = int(np.clip(int(x) - SAMPLE_PX // 2, left, max(right - SAMPLE_PX, left)))
    return y0, min(y0 + SAMPLE_PX, bottom), x0, min(x0 + SAMPLE_PX, right)


def _limits(values: np.ndarray) -> Limits:
    if values.dtype.kind != "u":
        values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        return 0.0, 1.0, 0.0, 1.0
    dark, bright = np.quantile(values, [DARK, BRIGHT])
    return float(min(values.min(), 0.0)), float(values.max()), float(dark), float(bright)
