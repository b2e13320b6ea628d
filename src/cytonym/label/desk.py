"""Messages of a page or a notebook in, answers and news out. Knows no transport."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label import wire
from cytonym.label.client import Client
from cytonym.label.looks import Looks, counted, listed, packed_rows
from cytonym.label.wire import BadRequestError, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cytonym.label.client import Send
    from cytonym.label.log import Event
    from cytonym.label.session import Session
    from cytonym.label.wire import Buffer, Header, Message

    Handler = Callable[[Header, list[bytes]], Message]

logger = logging.getLogger("cytonym")

READERS = 4
REFRESH_S = 2.0
FOR_PEOPLE = (ValueError, KeyError, TypeError, IndexError, OSError, FloatingPointError)


class Desk:
    """Serves a session to any number of clients.

    What changes labels runs in one thread, one after another, and is answered after it is on disk; everything else runs in a few
    others, so that a large gallery keeps nobody from labelling. Each client hears of changes in the order in which they
    happened, its own answers included.

    Parameters
    ----------
    session
        Holds the truth.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.n = session.n
        self.looks = Looks(session)
        self.widget: Any = None
        """The one of a notebook, where there is one."""
        self._clients: list[Client] = []
        self._codes = session.codes.copy()
        """As the clients know them."""
        self._known = session.classes
        self._stale: list[np.ndarray] = []
        """Rows that may be different by now."""
        self._trouble = ""
        """Why what others stored could not be read when it was tried last."""
        self._open = True
        self._acting = threading.local()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cytonym-act")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="cytonym-look")
        self._changes: dict[str, Handler] = {
            "assign": self._assign, "undo": self._undo, "redo": self._redo, "classes": self._class, "note": self._note,
        }  # fmt: skip
        self._looking: dict[str, Handler] = self.looks.handlers | {
            "retrain": self._retrain, "remap": self._remap, "finetune": self._finetune, "cancel": self._cancel,
        }  # fmt: skip
        session.on_change.append(self._changed)

    # ----------------------------------------------------------------------------------------------------------- clients
    def subscribe(self, send: Send, *, shared: bool = False) -> Client:
        """Let a client hear what others change.

        Parameters
        ----------
        send
            Called with news, and with answers to this client's own messages, from any thread. It must not wait.
        shared
            Tell it also what it did itself, because it is shown several times.
        """
        client = Client(send, shared=shared)
        self._clients = [*self._clients, client]
        return client

    def unsubscribe(self, client: Client) -> None:
        """Forget a client. What it asked for is still carried out."""
        self._clients = [each for each in self._clients if each is not client]

    @property
    def n_clients(self) -> int:
        """Clients that listen."""
        return len(self._clients)

    def close(self) -> None:
        """Finish what changes labels, drop what only looks."""
        if self._changed in self.session.on_change:
            self.session.on_change.remove(self._changed)
        self._open = False
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.looks.close()

    async def handle(self, header: Any, buffers: list[bytes], client: Client | None = None) -> Message:
        """Answer a message.

        Parameters
        ----------
        header, buffers
            The message; anything is survived.
        client
            Who asks. The answer is also given to its `send`, in order with the news.

        Returns
        -------
        Header and buffers of the answer; `{"ok": False, "error": ...}` where the message is not understood or fails.
        """
        head = header if isinstance(header, dict) else {}
        kind, given = head.get("type"), list(buffers)
        if kind == "hello":
            self.looks.warm()
            with suppress(Exception):  # the answer says so
                await asyncio.to_thread(lambda: self.session.maps.names)  # may take a while: not where labels wait
        if self.in_order(head):
            return await asyncio.shield(self._in(self._writer, self._answer, head, given, client))
        turn = client.turns.get(str(kind)) if client is not None else None
        if turn is None:
            return await self._in(self._readers, self._answer, head, given, client)
        if not await turn.come():
            return self._told(client, {"re": _number(head), "ok": True, "superseded": True}, [])
        try:
            return await self._in(self._readers, self._answer, head, given, client)
        finally:
            turn.done()

    def in_order(self, header: Header) -> bool:
        """Whether a message is answered after all such before it: changes of labels, and the labels themselves."""
        kind = header.get("type")
        return isinstance(kind, str) and (
            kind in self._changes or kind == "hello" or (kind == "column" and header.get("name") == "label")
        )

    async def refresh(self) -> None:
        """Take in what other programs stored in the log, and tell it on."""
        await self._in(self._writer, self.session.refresh)

    async def settle(self) -> None:
        """Wait until the labels that were given so far are on disk."""
        with suppress(RuntimeError):  # the desk is closed: they are
            await self._in(self._writer, int)

    async def listen(self) -> None:
        """Do so now and then, until the desk is closed or the task is cancelled. Clients hear of what goes wrong, once."""
        while self._open:
            await asyncio.sleep(REFRESH_S)
            if self._clients and self._open:
                await self._hear()

    async def _hear(self) -> None:
        trouble = ""
        try:
            await self.refresh()
        except FOR_PEOPLE as error:
            trouble = _text(error)
        except Exception as error:
            logger.exception("What others stored could not be read.")
            trouble = f"What others stored could not be read: {type(error).__name__}."
        if trouble and trouble != self._trouble:
            self.push({"type": "error", "text": trouble})
        self._trouble = trouble

    def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *given: Any) -> asyncio.Future[Any]:
        return asyncio.wrap_future(pool.submit(work, *given))

    def _answer(self, header: Header, buffers: list[bytes], client: Client | None) -> Message:
        kind, number = header.get("type"), _number(header)
        known = self._changes | self._looking
        out: list[Buffer] = []
        try:
            if not isinstance(kind, str) or kind not in known:
                msg = f"`type` must be one of {sorted(known)}, got {kind!r:.60}."
                raise BadRequestError(msg)
            with self._action(client) if kind in self._changes else nullcontext():
                told, out = known[kind](header, buffers)
            answer: Header = {"re": number, "ok": True, **plain(told)}
        except FOR_PEOPLE as error:
            text = _text(error)
            answer = {"re": number, "ok": False, "error": text or type(error).__name__}
        except Exception as error:
            logger.exception("A message of type %r failed.", kind)
            answer = {"re": number, "ok": False, "error": f"Something went wrong: {type(error).__name__}."}
        return self._told(client, answer, out)

    def _told(self, client: Client | None, answer: Header, out: list[Buffer]) -> Message:
        if client is not None:
            client.send(answer, out)
        return answer, out

    def push(self, header: Header, buffers: list[Buffer] | None = None, but: Client | None = None) -> None:
        """Tell all clients, or all but one, from any thread."""
        told = plain(header)
        for client in self._clients:
            if client is not but or client.shared:
                client.send(told, list(buffers or []))

    # ----------------------------------------------------------------------------------------------------------- changes
    @contextmanager
    def _action(self, client: Client | None) -> Iterator[None]:
        """Changes inside are told to all but the client who made them, whose answer says so."""
        self._acting.client, self._acting.now = client, True
        try:
            yield
        except BaseException:
            self._tell(None)  # what others did meanwhile
            raise
        finally:
            self._acting.now = False

    def _changed(self, events: list[Event]) -> None:
        """Labels changed. Unless one of our clients did it and the answer is on its way, tell them."""
        with self.session.lock:
            for event in events:
                self._stale.append(np.arange(self.n) if event.kind == "class" else self.session.rows_of(event))
        if not getattr(self._acting, "now", False):
            with suppress(RuntimeError):  # the desk is being closed
                self._writer.submit(self._tell, None)

    def _tell(self, actor: Client | None, *, of_classes: bool = False) -> np.ndarray:
        """Tell what is different since the last time to all but the actor. Returns the rows."""
        session = self.session
        with session.lock:
            stale, self._stale = self._stale, []
            rows = stale[0] if len(stale) == 1 else np.unique(np.concatenate([*stale, np.empty(0, np.int64)]))
            codes, classes, state = session.codes_of(rows), session.classes, counted(self.session)
        different = codes != self._codes[rows]
        rows = rows[different]
        self._codes[rows] = codes[different]
        if classes != self._known:
            self._known = classes
            self.push({"type": "classes", "classes": listed(classes), **state}, but=actor if of_classes else None)
        if len(rows):
            self.push({"type": "labels", **state}, _packed(rows, self._codes), but=actor)
        else:
            self.push({"type": "counts", **state}, but=actor)
        return rows

    def _stored(self, event: Event | None) -> Message:
        """Answer to a change of labels: what the client sees now."""
        rows = self._tell(self._acting.client)
        if event is not None:
            rows = np.union1d(rows, self.session.rows_of(event))
        told = {"event": None if event is None else event.id, "changed": len(rows), **counted(self.session)}
        return told, _packed(rows, self._codes)

    def _assign(self, header: Header, buffers: list[bytes]) -> Message:
        rows = wire.rows(buffers[:1], self.n)
        out = wire.rows(buffers[1:], self.n) if len(buffers) > 1 else np.empty(0, np.int64)
        label = wire.whole(header, "class", -3, wire.LARGEST)
        source = wire.choice(header, "source", ("single", "bulk", "suggested"), "bulk" if len(rows) > 1 else "single")
        shown = wire.maybe_whole(header, "shown", 0, self.n)
        model = None if header.get("model") is None else wire.text(header, "model", 40)
        event = self.session.assign(np.unique(rows), label, source=source, shown=shown, out=out, model=model)
        answer = self._stored(event)
        if model is not None and self.session.retrain_after_pages and self.looks.columns.model() is not None:
            self._retrain(header, [])
        return answer

    def _undo(self, _header: Header, _buffers: list[bytes]) -> Message:
        return self._stored(self.session.undo())

    def _redo(self, _header: Header, _buffers: list[bytes]) -> Message:
        return self._stored(self.session.redo())

    def _class(self, header: Header, _buffers: list[bytes]) -> Message:
        self._change_class(header)
        rows = self._tell(self._acting.client, of_classes=True)
        return {"classes": listed(self._known), **counted(self.session)}, _packed(rows, self._codes)

    def _change_class(self, header: Header) -> None:
        session = self.session
        op = wire.choice(header, "op", ("add", "rename", "color", "remove", "restore"))
        if op == "add":
            color = None if header.get("color") is None else wire.text(header, "color", 40)
            session.add_class(wire.text(header, "name"), color)
            return
        label = wire.whole(header, "class", 0, wire.LARGEST)
        if op == "rename":
            session.rename_class(label, wire.text(header, "name"))
        elif op == "color":
            session.recolor_class(label, wire.text(header, "color", 40))
        elif op == "restore":
            session.restore_class(label)
        else:
            session.remove_class(label, into=wire.maybe_whole(header, "into", 0, wire.LARGEST))

    def _note(self, header: Header, _buffers: list[bytes]) -> Message:
        event = self.session.note(wire.whole(header, "row", 0, self.n - 1), wire.text(header, "text", 10_000))
        self._tell(self._acting.client)
        return {"event": event.id}, []

    # -------------------------------------------------------------------------------------------------------------- jobs
    def _retrain(self, _header: Header, _buffers: list[bytes]) -> Message:
        def done(result: Header) -> None:
            if result.get("error"):
                self._job("retrain", 0, 1, str(result["error"]), "failed")
            else:
                self.push({"type": "model", **result})

        self.session.learner.retrain(background=True, on_done=done)
        return {"started": True}, []

    def _remap(self, _header: Header, _buffers: list[bytes]) -> Message:
        def done(result: Header) -> None:
            if result.get("map"):
                self.push({"type": "map", "map": result["map"]})
            self._ended("remap", result)

        self.session.maps.remap(
            background=True,
            on_done=done,
            on_progress=partial(self._job, "remap"),
        )
        return {"started": True}, []

    def _finetune(self, header: Header, _buffers: list[bytes]) -> Message:
        def done(result: Header) -> None:
            if result.get("version"):
                self.push({"type": "model", **result})
            self._ended("finetune", result)

        steps = wire.maybe_whole(header, "steps", 1, 10**6)
        try:
            self.session.finetune(steps=steps, on_done=done, on_progress=partial(self._job, "finetune"))
        except RuntimeError as error:
            raise BadRequestError(str(error)) from None
        return {"started": True}, []

    def _cancel(self, _header: Header, _buffers: list[bytes]) -> Message:
        self.session.maps.cancel()
        self.session.cancel_finetune()
        return {}, []

    def _ended(self, name: str, result: Header) -> None:
        state = "failed" if result.get("error") else "cancelled" if result.get("cancelled") else "done"
        self._job(name, 1, 1, str(result.get("error") or ""), state)

    def _job(self, name: str, step: int, total: int, text: str = "", state: str = "running") -> None:
        self.push({"type": "job", "name": name, "done": step, "total": total, "text": text, "state": state})


def _text(error: Exception) -> str:
    """What an error says to people, without a number of the system."""
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return str(error.strerror)
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _number(header: Header) -> int | str | None:
    """Number of a request, as its answer tells it: a small one, or none."""
    number = header.get("id")
    known = isinstance(number, (int, str)) and not isinstance(number, bool) and len(str(number)[:41]) <= 40
    return number if known else None


def _packed(rows: np.ndarray, codes: np.ndarray) -> list[Buffer]:
    return [packed_rows(rows), codes[rows].astype("<i2").tobytes()]
