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
    from cytonym.label.wire import Buffer, Header

STATIC = Path(__file__).parent / "static"


class LabelWidget(anywidget.AnyWidget):
    """Labels cells in a notebook. `Session.view` makes it."""

    _esm = STATIC / "label.js" if (STATIC / "label.js").is_file() else "export default { render() {} };"
    _css = STATIC / "label.css" if (STATIC / "label.css").is_file() else ""

    def __init__(self, desk: Desk, **traits: Any) -> None:
        super().__init__(**traits)
        self._desk = desk
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = desk.subscribe(self._tell, shared=True)
        self._listening: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[Any]] = set()
        self.on_msg(self._received)

    @classmethod
    def of(cls, desk: Desk) -> LabelWidget:
        """The widget of a desk, which may be shown any number of times; another one after it was closed."""
        found = desk.widget
        if not isinstance(found, cls) or found.closed:
            found = desk.widget = cls(desk)
        return found

    @property
    def closed(self) -> bool:
        """Whether it was taken away."""
        return self.comm is None

    def close(self) -> None:
        """Take the widget away. Labels that were given are stored."""
        self._desk.unsubscribe(self._client)
        if self._listening is not None:
            self._listening.cancel()
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
            self._listening = loop.create_task(self._desk.listen())
        task = loop.create_task(self._desk.handle(content, given, self._client))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def _tell(self, header: Header, buffers: list[Buffer]) -> None:
        """Send in the kernel's own thread, in which its sockets are."""
        if self._loop is None or self._loop.is_closed():
            self.send(header, buffers)
        else:
            with suppress(RuntimeError):  # the kernel is going
                self._loop.call_soon_threadsafe(self.send, header, buffers)
