"""The same module in a notebook."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import anywidget
except ImportError as error:
    msg = "A widget needs anywidget: pip install 'cytonym[label]'."
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from cytonym.label.desk import Desk
    from cytonym.label.wire import Header

STATIC = Path(__file__).parent / "static"
REFRESH_S = 2.0


class LabelWidget(anywidget.AnyWidget):
    """Labels cells in a notebook. `Session.view` makes it."""

    _esm = STATIC / "label.js" if (STATIC / "label.js").is_file() else "export default { render() {} };"
    _css = STATIC / "label.css" if (STATIC / "label.css").is_file() else ""

    def __init__(self, desk: Desk, **traits: Any) -> None:
        super().__init__(**traits)
        self._desk = desk
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = desk.subscribe(self._tell, shared=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_msg(self._received)

    def close(self) -> None:
        """Take the widget away. Labels are on disk already."""
        self._desk.unsubscribe(self._client)
        for task in list(self._tasks):
            task.cancel()
        super().close()

    def _received(self, _widget: Any, content: Any, buffers: list[Any]) -> None:
        given = [bytes(buffer) for buffer in buffers or []]
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._desk.handle(content, given, self._client))
            return
        if self._loop is not loop:
            self._loop = loop
            self._keep(loop.create_task(self._listen()))
        self._keep(loop.create_task(self._desk.handle(content, given, self._client)))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self) -> None:
        """Look now and then for what other programs stored in the log."""
        while True:
            await asyncio.sleep(REFRESH_S)
            with suppress(OSError, ValueError):
                await self._desk.refresh()

    def _tell(self, header: Header, buffers: list[bytes]) -> None:
        """Send in the kernel's own thread, in which its sockets are."""
        if self._loop is None or self._loop.is_closed():
            self.send(header, buffers)
        else:
            with suppress(RuntimeError):  # the kernel is going
                self._loop.call_soon_threadsafe(self.send, header, buffers)
