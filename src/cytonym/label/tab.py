"""One WebSocket of a page: frames in, frames out, and limits to both."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from cytonym.label.wire import BadRequestError, decode, encode

if TYPE_CHECKING:
    from cytonym.label.client import Client
    from cytonym.label.desk import Desk
    from cytonym.label.wire import Buffer, Header

logger = logging.getLogger("cytonym")

MOST_AT_ONCE = 32
"""Requests of one page that only look; more of them wait, while labels go on."""
MOST_REQUESTS = 1024
"""Requests of one page, after which nothing more is read until some are answered."""
MOST_WAITING = 2**30
"""Bytes for a page that does not read them."""
TOO_SLOW = 4408
CLOSE_S = 5.0
"""How long a page that does not read is given to hear why it is turned away."""


class Tab:
    """One connection.

    Parameters
    ----------
    websocket
        Accepted already.
    desk
        What answers.
    """

    def __init__(self, websocket: WebSocket, desk: Desk) -> None:
        self.websocket, self.desk = websocket, desk
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting, self._open = 0, True
        self._slow = asyncio.Event()
        self._looking = asyncio.Semaphore(MOST_AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the other side goes, or reads nothing of what it asked for."""
        client = self.desk.subscribe(self.send)
        work = [asyncio.create_task(each) for each in (self._read(client), self._write(), self._slow.wait())]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open = False
            self.desk.unsubscribe(client)
            for task in work:
                task.cancel()
            for ended in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(ended, Exception):
                    logger.debug("A connection ended with %r.", ended)
        if self._slow.is_set():
            with suppress(WebSocketDisconnect, RuntimeError, OSError):  # TimeoutError is an OSError
                async with asyncio.timeout(CLOSE_S):
                    await self.websocket.close(TOO_SLOW, "The page did not read what it asked for.")

    async def _read(self, client: Client) -> None:
        while (message := await self.websocket.receive())["type"] != "websocket.disconnect":
            try:
                header, buffers = decode(message.get("bytes") or b"")
            except BadRequestError as error:
                self.send({"re": None, "ok": False, "error": str(error)}, [])
                continue
            if len(self._running) >= MOST_REQUESTS:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._answer(header, buffers, client))
            self._running.add(task)
            task.add_done_callback(self._done)

    async def _answer(self, header: Header, buffers: list[bytes], client: Client) -> None:
        if self.desk.in_order(header):
            await self.desk.handle(header, buffers, client)
            return
        async with self._looking:
            if self._open:
                await self.desk.handle(header, buffers, client)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("A request ended with %r.", task.exception())

    def send(self, header: Header, buffers: list[Buffer]) -> None:
        """Take a message to be sent, from any thread."""
        if self._open:
            frame = encode(header, buffers)
            with suppress(RuntimeError):  # the server is gone
                self._loop.call_soon_threadsafe(self._put, frame)

    def _put(self, frame: bytes) -> None:
        if not self._open:
            return
        self._waiting += len(frame)
        if self._waiting <= MOST_WAITING:
            self._outbox.put_nowait(frame)
            return
        self._open = False
        while not self._outbox.empty():
            self._outbox.get_nowait()
        self._slow.set()

    async def _write(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError, OSError):  # the other side is gone
            while True:
                frame = await self._outbox.get()
                await self.websocket.send_bytes(frame)
                self._waiting -= len(frame)
