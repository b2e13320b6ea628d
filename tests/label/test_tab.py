"""What one connection may take: requests at once, and bytes that nobody reads."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cytonym as cy
from cytonym.label import tab as module
from cytonym.label.session import Session
from cytonym.label.tab import Tab
from cytonym.label.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cytonym.label.desk import Desk


class Socket:
    """A WebSocket without a wire."""

    def __init__(self, *, reads: bool = True) -> None:
        self.arriving: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.closed: list[int] = []
        self.reads = reads

    async def receive(self) -> dict[str, Any]:
        return await self.arriving.get()

    async def send_bytes(self, frame: bytes) -> None:
        if not self.reads:
            await asyncio.Event().wait()
        self.sent.append(decode(frame)[0])

    async def close(self, code: int, _reason: str) -> None:
        self.closed.append(code)

    def ask(self, number: int, type: str, row: int = 0, **fields: Any) -> None:
        frame = encode({"id": number, "type": type, **fields}, [np.array([row], "<u4").tobytes()])
        self.arriving.put_nowait({"type": "websocket.receive", "bytes": frame})

    def leave(self) -> None:
        self.arriving.put_nowait({"type": "websocket.disconnect"})

    async def until(self, *numbers: int) -> None:
        async with asyncio.timeout(20):
            while not set(numbers) <= {header.get("re") for header in self.sent}:
                await asyncio.sleep(0.005)


@pytest.fixture
def desk() -> Iterator[Desk]:
    sdata = cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0)
    found = Session(sdata, classes=["T", "B"], annotator="maria").desk
    yield found
    found.close()


def test_who_reads_nothing_is_turned_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not behind everything that waits for it."""
    monkeypatch.setattr(module, "MOST_WAITING", 5000)
    socket = Socket(reads=False)

    async def run() -> None:
        tab = Tab(socket, desk)  # type: ignore[arg-type]
        serving = asyncio.create_task(tab.serve())
        await asyncio.sleep(0)
        for _ in range(10):
            tab.send({"type": "news"}, [bytes(1000)])
        async with asyncio.timeout(10):
            await serving
        assert tab._outbox.empty()

    asyncio.run(run())
    assert socket.closed == [module.TOO_SLOW]
    assert desk.n_clients == 0


def test_who_does_not_even_hear_that_is_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    monkeypatch.setattr(module, "CLOSE_S", 0.01)
    socket = Socket(reads=False)

    async def never(*_given: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(socket, "close", never)

    async def run() -> None:
        tab = Tab(socket, desk)  # type: ignore[arg-type]
        serving = asyncio.create_task(tab.serve())
        await asyncio.sleep(0)
        tab.send({"type": "news"}, [])
        async with asyncio.timeout(10):
            await serving

    asyncio.run(run())
    assert desk.n_clients == 0


def test_labels_go_on_while_all_looks_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    go, running = threading.Event(), []

    def slow(header: dict[str, Any], _buffers: list[bytes]) -> Any:
        running.append(header["id"])
        assert go.wait(20)
        return {}, []

    monkeypatch.setitem(desk._looking, "cell", slow)
    socket = Socket()

    async def run() -> None:
        serving = asyncio.create_task(Tab(socket, desk).serve())  # type: ignore[arg-type]
        for number in range(1, 7):
            socket.ask(number, "cell", row=0)
        socket.ask(10, "assign", row=3, **{"class": 1})
        await socket.until(10)
        assert running == [1, 2]
        go.set()
        await socket.until(*range(1, 7))
        socket.leave()
        await serving

    asyncio.run(run())
    assert desk.session.codes[3] == 1


def test_requests_are_not_piled_up_for_ever(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REQUESTS", 3)
    go = threading.Event()
    monkeypatch.setitem(desk._looking, "cell", lambda *_: (go.wait(20), ({}, []))[1])
    socket = Socket()

    async def run() -> None:
        serving = asyncio.create_task(Tab(socket, desk).serve())  # type: ignore[arg-type]
        for number in range(1, 11):
            socket.ask(number, "cell", row=0)
        await asyncio.sleep(0.1)
        assert socket.arriving.qsize() == 6  # three run, one is in hand
        go.set()
        await socket.until(*range(1, 11))
        socket.leave()
        await serving

    asyncio.run(run())
