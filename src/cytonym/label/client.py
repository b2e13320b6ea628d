"""Who a desk tells of changes, and whose requests it answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.label.wire import Buffer, Header

    Send = Callable[[Header, list[Buffer]], None]

REPLACED = ("gallery", "context")
"""Pictures, of which a page shows only those that it asked for last."""


class Turn:
    """Of the requests of one kind of one client, one is carried out and the newest waits; those between them are not wanted any more."""

    def __init__(self) -> None:
        self._busy = False
        self._next: asyncio.Future[bool] | None = None

    async def come(self) -> bool:
        """Wait for those before; False if another one came meanwhile. `done` must follow where it is True."""
        self._call(wanted=False)
        if self._busy:
            self._next = asyncio.get_running_loop().create_future()
            return await self._next
        self._busy = True
        return True

    def done(self) -> None:
        """The next one may begin."""
        self._busy = self._call(wanted=True)

    def _call(self, *, wanted: bool) -> bool:
        waiting, self._next = self._next, None
        if waiting is None or waiting.done():
            return False
        waiting.set_result(wanted)
        return True


class Client:
    """One tab, or one widget, which may be shown several times."""

    def __init__(self, send: Send, *, shared: bool) -> None:
        self.send = send
        self.shared = shared
        self.turns = {} if shared else {kind: Turn() for kind in REPLACED}
