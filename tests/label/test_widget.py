"""The widget, in this process and in a real kernel."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cytonym as cy
from cytonym.label import widget as module
from cytonym.label.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cytonym.label.widget import LabelWidget

Sent = list[tuple[dict[str, Any], list[bytes]]]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    sdata = cy.datasets.tissue_phantom(n_cells=30, size_px=64, rng=0)
    return Session(sdata, classes=["T", "B"], log=tmp_path / "labels.jsonl", annotator="maria")


@pytest.fixture
def shown(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LabelWidget, Sent]]:
    sent: Sent = []
    monkeypatch.setattr(module.LabelWidget, "send", lambda _self, header, buffers=None: sent.append((header, buffers)))
    found = session.view()
    yield found, sent
    found.close()


def u4(*rows: int) -> memoryview:
    return memoryview(np.array(rows, "<u4").tobytes())


def receive(widget: LabelWidget, content: Any, buffers: list[Any] | None = None) -> None:
    widget._handle_custom_msg(content, buffers or [])


def test_messages_are_answered_without_a_loop(shown: tuple[LabelWidget, Sent], session: Session) -> None:
    widget, sent = shown
    receive(widget, {"id": 1, "type": "hello"})
    assert sent[-1][0]["n"] == 30
    receive(widget, {"id": 2, "type": "assign", "class": 1}, [u4(3)])
    assert [header.get("type", header.get("re")) for header, _ in sent[1:]] == ["labels", 2]
    assert session.codes[3] == 1
    receive(widget, {"id": 3, "type": "gallery"}, [u4(3, 4)])
    assert len(sent[-1][1]) == 2
    wrong: list[Any] = [None, [], "x", {"type": "nothing"}]
    for bad in wrong:
        receive(widget, bad)
        assert sent[-1][0]["ok"] is False


def test_answers_come_in_the_thread_of_the_loop(
    shown: tuple[LabelWidget, Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    widget, _ = shown
    threads: list[int] = []
    monkeypatch.setattr(module.LabelWidget, "send", lambda *_: threads.append(threading.get_ident()))

    async def run() -> None:
        receive(widget, {"id": 1, "type": "hello"})
        receive(widget, {"id": 2, "type": "assign", "class": 0}, [u4(1)])
        while len(threads) < 3:  # two answers, and news for other views of the widget
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert set(threads) == {threading.get_ident()}


def test_widget_and_page_see_each_other(shown: tuple[LabelWidget, Sent], session: Session) -> None:
    widget, sent = shown
    heard: list[str] = []
    session.desk.subscribe(lambda header, _buffers: heard.append(header["type"]))
    receive(widget, {"id": 2, "type": "assign", "class": 1}, [u4(3)])
    assert heard == ["labels"]
    asyncio.run(session.desk.handle({"id": 1, "type": "assign", "class": 0}, [bytes(u4(4))]))
    assert sent[-1][0]["type"] == "labels"


def test_a_closed_widget_is_silent(shown: tuple[LabelWidget, Sent], session: Session) -> None:
    widget, sent = shown
    widget.close()
    before = len(sent)
    asyncio.run(session.desk.handle({"id": 1, "type": "assign", "class": 0}, [bytes(u4(4))]))
    assert len(sent) == before
    assert session.desk.n_clients == 0


def test_labels_that_were_given_are_stored_though_it_is_closed(session: Session) -> None:
    async def run() -> None:
        widget = session.view()
        go = threading.Event()
        session.desk._writer.submit(go.wait, 20)
        for row in range(20):
            receive(widget, {"id": row, "type": "assign", "class": 0}, [u4(row)])
        await asyncio.sleep(0.05)  # on their way
        widget.close()
        go.set()
        await session.desk.settle()

    asyncio.run(run())
    assert session.counts()["labelled"] == 20


def test_a_cell_that_is_run_again_shows_the_same_widget(session: Session) -> None:
    async def run() -> None:
        for _ in range(3):
            receive(session.view(), {"id": 1, "type": "hello"})
            await asyncio.sleep(0)
        assert session.desk.n_clients == 1
        assert sum("listen" in str(task.get_coro()) for task in asyncio.all_tasks()) == 1
        first = session.view()
        first.close()
        assert session.view() is not first
        assert session.desk.n_clients == 1
        session.view().close()
        await session.desk.settle()

    asyncio.run(run())


def test_what_goes_wrong_meanwhile_is_told(
    shown: tuple[LabelWidget, Sent], session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget, sent = shown

    def damaged() -> None:
        msg = "The log is damaged."
        raise ValueError(msg)

    monkeypatch.setattr("cytonym.label.desk.REFRESH_S", 0.01)
    monkeypatch.setattr(session, "refresh", damaged)

    async def run() -> None:
        receive(widget, {"id": 1, "type": "cell", "row": 0})
        async with asyncio.timeout(20):
            while {"type": "error", "text": "The log is damaged."} not in [header for header, _ in sent]:
                await asyncio.sleep(0.01)

    asyncio.run(run())


SETUP = """
import warnings; warnings.simplefilter("ignore")
import cytonym as cy
from cytonym.label.session import Session
sdata = cy.datasets.tissue_phantom(n_cells=30, size_px=64, rng=0)
session = Session(sdata, classes=["T", "B"], log={log!r}, annotator="maria")
widget = session.view()
widget
"""


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_in_a_real_kernel(tmp_path: Path) -> None:
    """Messages go over a kernel's own channels, as a notebook sends them."""
    from jupyter_client.manager import KernelManager

    log = tmp_path / "labels.jsonl"
    manager = KernelManager(kernel_name="python3")
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel(env=os.environ | {"JUPYTER_PLATFORM_DIRS": "1"})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        opened: list[Any] = []
        client.execute_interactive(
            SETUP.format(log=str(log)),
            timeout=240,
            output_hook=lambda m: opened.append(m) if m["msg_type"] in ("comm_open", "error") else None,
        )
        assert not [m["content"] for m in opened if m["msg_type"] == "error"]
        comm = next(
            m["content"]["comm_id"]
            for m in opened
            if "anywidget" in str(m["content"].get("data", {}).get("state", {}).get("_model_module"))
        )

        def tell(header: dict[str, Any], *buffers: bytes) -> tuple[dict[str, Any], list[bytes]]:
            content = {"comm_id": comm, "data": {"method": "custom", "content": header}}
            message = client.session.msg("comm_msg", content)
            client.session.send(client.shell_channel.socket, message, buffers=list(buffers))
            end = time.monotonic() + 60
            while time.monotonic() < end:
                found = client.get_iopub_msg(timeout=60)
                data = found["content"].get("data", {})
                if found["msg_type"] == "comm_msg" and data.get("content", {}).get("re") == header["id"]:
                    return data["content"], [bytes(b) for b in found["buffers"]]
            raise TimeoutError

        assert tell({"id": 11, "type": "hello"})[0]["n"] == 30
        told, [rows, codes] = tell({"id": 12, "type": "assign", "class": 1}, bytes(u4(3, 4)))
        assert told["ok"]
        assert np.frombuffer(rows, "<u4").tolist() == [3, 4]
        assert np.frombuffer(codes, "<i2").tolist() == [1, 1]
        told, [pixels, _] = tell({"id": 13, "type": "gallery"}, bytes(u4(3)))
        assert len(pixels) == told["c"] * told["size"] ** 2 * 2
        assert log.read_text(encoding="utf-8").count('"assign"') == 1
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
