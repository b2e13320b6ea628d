"""Each channel is looked at once, and nobody waits for channels that others asked for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.label.blocks import Blocks, Cache
from cytonym.label.contrast import BRIGHT, DARK, SAMPLES, Contrast

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def contrast() -> Iterator[Contrast]:
    pixels = np.random.default_rng(0).integers(5, 900, (4, 60, 70)).astype(np.uint16)
    sources = resolve(cy.io.from_arrays(pixels, channels=list("abcd"), centers=[[20, 20], [40, 50]]))
    with ThreadPoolExecutor(2) as pool:
        yield Contrast(list("abcd"), sources, [Blocks(s.pixels, Cache()) for s in sources], pool)


def test_what_is_known_does_not_wait(contrast: Contrast, monkeypatch: pytest.MonkeyPatch) -> None:
    [known] = contrast.of([0])
    go, begun = threading.Event(), threading.Event()
    look = contrast._look

    def slow(channels: list[int]) -> Any:
        if 1 in channels:
            begun.set()
            assert go.wait(20)
        return look(channels)

    monkeypatch.setattr(contrast, "_look", slow)
    found: list[Any] = []
    others = [threading.Thread(target=lambda: found.append(contrast.of([1]))) for _ in range(2)]
    others[0].start()
    assert begun.wait(20)
    others[1].start()
    assert contrast.of([0]) == [known]
    assert len(contrast.of([2, 0, 2])) == 3
    go.set()
    for thread in others:
        thread.join(20)
    assert found[0] == found[1] == contrast.of([1])


def test_channels_are_read_together(contrast: Contrast, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = contrast.blocks[0].read

    def counted(y0: int, y1: int, x0: int, x1: int, index: np.ndarray, pool: Any) -> np.ndarray:
        reads.append(len(index))
        return read(y0, y1, x0, x1, index, pool)

    monkeypatch.setattr(contrast.blocks[0], "read", counted)
    together = contrast.of([3, 1, 0])
    assert reads == [3] * SAMPLES
    alone = Contrast(contrast.channels, contrast.sources, contrast.blocks, contrast._pool)
    assert together == [alone.of([c])[0] for c in (3, 1, 0)]
    pixels = np.asarray(contrast.sources[0].pixels)[3]
    assert together[0] == pytest.approx((0, pixels.max(), *np.quantile(pixels, [DARK, BRIGHT])))


def test_what_failed_is_tried_again(contrast: Contrast, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object) -> None:
        msg = "gone"
        raise OSError(msg)

    with monkeypatch.context() as patched:
        patched.setattr(contrast.blocks[0], "read", fail)
        with pytest.raises(OSError, match="gone"):
            contrast.of([0, 1])
    assert len(contrast.of([0, 1])) == 2
