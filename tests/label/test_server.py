"""The page over real sockets, and everything that somebody else could try on it."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

import cytonym as cy
from cytonym.label import server as module
from cytonym.label.server import Server, is_loopback
from cytonym.label.session import Session
from cytonym.label.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=84, rng=0)
    log = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    return Session(sdata, classes=["T", "B"], log=log, annotator="maria")


@pytest.fixture(scope="module")
def page(session: Session) -> Iterator[Server]:
    with session.serve() as found:
        yield found


class Tab:
    """A program that talks to the page's WebSocket."""

    def __init__(self, page: Server, *, token: str | None = None, **options: Any) -> None:
        wanted = page.token if token is None else token
        protocols = [
            Subprotocol(each) for each in (module.PROTOCOL, wanted) if re.fullmatch(r"[\w.-]+", each, re.ASCII)
        ]
        self._stack = ExitStack()
        opened = connect(
            f"ws://127.0.0.1:{page.port}/ws", subprotocols=protocols, max_size=None, compression=None, **options
        )
        self.socket: ClientConnection = self._stack.enter_context(opened)
        self.heard: list[tuple[dict[str, Any], list[bytes]]] = []

    def ask(self, type: str, *buffers: bytes, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
        number = time.monotonic_ns() % 10**9
        self.socket.send(encode({"id": number, "type": type, **fields}, buffers))
        while True:
            header, out = decode(got(self.socket.recv(timeout=20)))
            if header.get("re") == number:
                return header, out
            self.heard.append((header, out))

    def close(self) -> None:
        self._stack.close()


@contextmanager
def tab(page: Server, **options: Any) -> Iterator[Tab]:
    with closing(Tab(page, **options)) as found:
        yield found


def get(
    page: Server, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def got(frame: str | bytes) -> bytes:
    assert isinstance(frame, bytes)
    return frame


def u4(*rows: int) -> bytes:
    return np.array(rows, "<u4").tobytes()


# -------------------------------------------------------------------------------------------------------------------- page
def test_the_page_and_its_files(page: Server) -> None:
    status, headers, body = get(page)
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert not re.search(rb"<script(?![^>]*src=)|<style|https?:|onload", body)
    status, headers, body = get(page, "/page.js")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/javascript")
    assert page.token.encode() not in body  # no file holds it


@pytest.mark.parametrize(("name", "kind"), [("label.js", "text/javascript"), ("label.css", "text/css")])
def test_the_front_end_is_served_as_it_is(page: Server, name: str, kind: str) -> None:
    status, headers, body = get(page, f"/{name}")
    assert (status, headers["content-type"].split(";")[0]) == (200, kind)
    assert body == (module.STATIC / name).read_bytes()
    assert not re.search(rb"@import|url\((?!data:|#)|sourceMappingURL=http", body)  # nothing is fetched from elsewhere


def test_nothing_leaves_without_the_headers(page: Server) -> None:
    for path in ("/", "/page.js", "/nothing"):
        _, headers, _ = get(page, path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert re.search(rf"connect-src 'self' ws://127\.0\.0\.1:{page.port} ", policy)
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/static/../server.py", "/..%2f..%2fetc/passwd", "/label.js/../../server.py", "/%2e%2e/server.py", "//etc/passwd",
        "/page.js%00.html", "/label.py", "/static/", "/frontend/package.json", "/ws/../page", "/" + "a" * 5000, "/docs", "/openapi.json",
    ],
)  # fmt: skip
def test_no_path_reaches_the_files(page: Server, path: str) -> None:
    status, _, body = get(page, path)
    assert status in (307, 400, 404)
    assert b"root:" not in body
    assert b"import" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading(page: Server, method: str) -> None:
    assert get(page, "/", method)[0] == 405


def test_a_websocket_is_needed(page: Server) -> None:
    assert get(page, "/ws")[0] in (400, 404, 426)


# -------------------------------------------------------------------------------------------------------------------- token
def test_the_token_is_behind_the_hash_and_new_each_time(page: Server, session: Session) -> None:
    assert page.url == f"http://127.0.0.1:{page.port}/#token={page.token}"
    assert len(page.token) >= 40
    with session.serve() as other:
        assert other.token != page.token


def test_the_token_is_not_on_the_command_line_of_the_browser(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    there = True

    def opened(url: str) -> bool:
        asked.append(url)
        return there

    monkeypatch.setattr("webbrowser.open", opened)
    with session.serve(open_browser=True) as page:
        assert page.token not in asked[0]
        file = Path(unquote(urlsplit(asked[0]).path))
        assert page.url in file.read_text(encoding="utf-8")
        if os.name == "posix":
            assert [oct(p.stat().st_mode)[-3:] for p in (file, file.parent)] == ["600", "700"]
        with pytest.raises(ConnectionClosed), tab(page, token="wrong") as found:
            found.ask("hello")
        assert file.exists()
        with tab(page) as found:
            found.ask("hello")
        assert not file.parent.exists()
        page.open_browser()
        second = Path(unquote(urlsplit(asked[1]).path)).parent
        assert second != file.parent
    assert not second.exists()
    there = False
    with session.serve(open_browser=True):
        assert not Path(unquote(urlsplit(asked[2]).path)).exists()  # there is no browser


@pytest.mark.parametrize("token", ["", "x", "wrong" * 9, "cytonym", "ü", "None"])
def test_wrong_tokens_get_nothing(page: Server, token: str) -> None:
    with tab(page, token=token) as other:
        with pytest.raises(ConnectionClosed) as closed:
            other.ask("hello")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == module.WRONG_TOKEN
    for query in (
        "",
        "?token=",
        "?token=x",
        f"?token={page.token[:-1]}",
        f"?token={page.token}x",
        "?token=%00",
        f"?Token={page.token}",
    ):
        with connect(f"ws://127.0.0.1:{page.port}/ws{query}") as socket_, pytest.raises(ConnectionClosed):
            socket_.recv(timeout=10)


def test_the_token_goes_in_the_protocol_or_in_the_address(page: Server) -> None:
    with tab(page) as first:
        assert first.socket.subprotocol == module.PROTOCOL
        assert first.ask("hello")[0]["n"] == 60
    with connect(f"ws://127.0.0.1:{page.port}/ws?token={page.token}") as socket_:
        socket_.send(encode({"id": 1, "type": "hello"}))
        assert decode(got(socket_.recv(timeout=10)))[0]["ok"]


def test_the_token_is_compared_in_constant_time(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    true = module.hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return true(a, b)

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    with tab(page) as first:
        first.ask("hello")
    assert page.token.encode() in compared


# ------------------------------------------------------------------------------------------------------------ other origins
@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "attacker.localhost", "169.254.169.254", "0.0.0.0",
        "[::2]", "", "localhost:99999999", "localhost/..", "localhost@evil.example", "127.0.0.1:80:80", "2130706433", "localhost\tx",
    ],
)  # fmt: skip
def test_other_names_are_turned_away(page: Server, host: str) -> None:
    """A page that lets its own name point to this machine (DNS rebinding)."""
    status, headers, body = get(page, "/", Host=host)
    assert status in (400, 421)
    assert b"script" not in body
    if status == 421:
        assert headers["x-frame-options"] == "DENY"
        assert "content-security-policy" not in headers  # it would hold the name
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as raw:
        raw.sendall(
            f"GET /ws?token={page.token} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " not in raw.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "localhost:8888"])
def test_our_names_are_known_also_through_a_tunnel(page: Server, host: str) -> None:
    assert get(page, "/", Host=host)[0] == 200


def test_two_hosts_are_one_too_many(page: Server) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(1000).split(b" ")[1] in (b"400", b"421")


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "file://",
        "",
        "https://x.127.0.0.1",
    ],
)
def test_websockets_of_other_pages_are_turned_away(page: Server, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        Tab(page, origin=origin.format(port=page.port))
    assert refused.value.response.status_code == 403


def test_our_own_page_is_let_in(page: Server) -> None:
    with tab(page, origin=f"http://127.0.0.1:{page.port}") as own:
        assert own.ask("hello")[0]["ok"]


# -------------------------------------------------------------------------------------------------------------------- sizes
def test_large_frames_end_the_connection(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FRAME", 10_000)
    with session.serve() as small:
        with tab(small) as first:
            assert first.ask("hello")[0]["ok"]
            with pytest.raises(ConnectionClosed) as closed:
                first.ask("search", bytes(20_000))
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        with tab(small) as second:
            assert second.ask("hello")[0]["ok"]


def test_uploads_have_their_own_limit(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytonym.label.uploads.MOST_BYTES", 1000)
    with tab(page) as first:
        told, _ = first.ask("search", bytes(2000))
        assert "the most is" in told["error"]


def test_frames_are_not_inflated(page: Server) -> None:
    """A compressed frame of a few kB could hold gigabytes."""
    with connect(f"ws://127.0.0.1:{page.port}/ws?token={page.token}", compression="deflate") as socket_:
        assert not socket_.protocol.extensions


def test_too_many_tabs(page: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLIENTS", 1)
    with tab(page) as first:
        first.ask("hello")
        with tab(page) as second, pytest.raises(ConnectionClosed):
            second.ask("hello")


# ------------------------------------------------------------------------------------------------------------------- frames
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300), st.text(max_size=50), st.binary(max_size=50).map(lambda b: b"\x02\x00\x00\x00{}" + b)
    )
)
def test_malformed_frames_are_answered(page: Server, frame: bytes | str) -> None:
    with tab(page) as first:
        first.socket.send(frame)
        header, _ = decode(got(first.socket.recv(timeout=10)))
        assert header["ok"] is False
        assert first.ask("hello")[0]["ok"]


def test_paths_and_markup_are_only_text(page: Server, session: Session) -> None:
    assert session.log_path is not None
    files = lambda: {p.name for p in session.log_path.parent.iterdir()}  # type: ignore[union-attr]
    before = files()
    with tab(page) as first:
        for text in (
            "../../evil",
            "/etc/passwd",
            "<script>alert(1)</script>",
            "'; DROP TABLE x; --",
            "\u202egnp",
            "${x}",
            "{{7*7}}",
        ):
            for kind in (
                "points",
                "column",
                "export",
                "context",
                "classes",
                "note",
                "assign",
                "gallery",
                "cell",
                "search",
            ):
                fields = dict.fromkeys(("map", "name", "what", "region", "op", "text", "source", "color"), text)
                told, _ = first.ask(kind, **fields)
                assert told["ok"] is False
            told, _ = first.ask("classes", op="add", name=text)
            if told["ok"]:
                assert told["classes"][-1]["name"] == text
    assert files() == before


# ------------------------------------------------------------------------------------------------------------- several tabs
def test_two_tabs_see_each_other(page: Server) -> None:
    with tab(page) as first, tab(page) as second:
        first.ask("hello")
        second.ask("hello")
        told, _ = first.ask("assign", u4(10, 11), **{"class": 1})
        assert told["ok"]
        _, [codes] = second.ask("column", name="label")
        assert np.frombuffer(codes, "<i2")[[10, 11]].tolist() == [1, 1]
        header, [rows, new] = second.heard[-1]
        assert header["type"] == "labels"
        assert (np.frombuffer(rows, "<u4").tolist(), np.frombuffer(new, "<i2").tolist()) == ([10, 11], [1, 1])


def test_labels_of_another_program_arrive(page: Server, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cytonym.label.desk.REFRESH_S", 0.05)
    assert session.sdata is not None
    with tab(page) as first:
        first.ask("hello")
        Session(session.sdata, log=session.log_path, annotator="jo").assign([20], "T")
        header, buffers = decode(got(first.socket.recv(timeout=20)))
        assert header["type"] == "labels"
        assert np.frombuffer(buffers[0], "<u4").tolist() == [20]


def test_whoever_vanishes_leaves_the_label(page: Server, session: Session) -> None:
    """The connection breaks while labels are on their way: the first of them, as many as arrived, are stored, and the others go on."""
    with tab(page) as other:
        other.ask("hello")
        first = Tab(page)
        assert first.ask("assign", u4(30), **{"class": 0})[0]["ok"]
        for row in range(31, 40):
            first.socket.send(encode({"id": row, "type": "assign", "class": 0}, [u4(row)]))
        first.socket.send(encode({"id": 1, "type": "gallery"}, [u4(*range(60))]))
        first.socket.socket.shutdown(socket.SHUT_RDWR)
        assert wait_for(lambda: session.desk.n_clients == 1)
        assert other.ask("assign", u4(50), **{"class": 1})[0]["ok"]
        arrived = session.codes[30:40] == 0
        assert arrived[0]
        assert not np.diff(arrived.astype(int)).max() > 0  # none is left out between others
        again = Session(session.sdata, log=session.log_path, annotator="maria")  # type: ignore[arg-type]
        assert np.array_equal(again.codes, session.codes)


def test_half_a_frame(page: Server) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as raw:
        raw.sendall(
            f"GET /ws?token={page.token} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in raw.recv(2000)
        raw.sendall(b"\x82\xfe\x10\x00abcd")  # says 4096 bytes, sends none
    with tab(page) as other:
        assert other.ask("hello")[0]["ok"]


def wait_for(what: Any, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.01)
    return False


# ------------------------------------------------------------------------------------------------------------------ address
def test_this_machine_alone_unless_asked(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with session.serve() as own:
        assert own._socket.getsockname()[0] == "127.0.0.1"
    assert not caplog.records
    server = Server(session.desk, host="0.0.0.0")
    assert "not encrypted" in caplog.text
    server.close()
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip


def test_open_to_others_still_checks_names(session: Session) -> None:
    with Server(session.desk, host="0.0.0.0") as wide:
        assert get(wide, "/", Host=f"127.0.0.1:{wide.port}")[0] == 200
        assert get(wide, "/", Host="192.168.1.7:80")[0] == 200  # an address cannot be made to point elsewhere
        assert get(wide, "/", Host="evil.example")[0] == 421
        with pytest.raises(InvalidStatus):
            Tab(wide, origin="http://evil.example")


def test_a_port_that_is_taken(page: Server, session: Session) -> None:
    with pytest.raises(OSError, match="Choose another port"):
        Server(session.desk, port=page.port)
    with pytest.raises(OSError, match="Cannot listen"):
        Server(session.desk, port=99999)


def test_a_port_is_not_shared(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the usual option would let another program listen there too; any option stands in for that of Windows."""
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
    server = Server(session.desk)
    assert server._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert not server._socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    server.close()


def test_slow_connections_are_left_in_peace(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a ping waits behind pictures that take longer than that."""
    server = Server(session.desk)
    monkeypatch.setattr(server._server.config, "ws_ping_interval", 0.05)
    with server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        assert server._server.config.ws_ping_timeout is None
        raw.sendall(
            f"GET /ws?token={server.token} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in raw.recv(2000)
        time.sleep(0.3)  # no ping is answered
        assert session.desk.n_clients == 1


def test_small_answers_are_sent_at_once(page: Server) -> None:
    """asyncio sets TCP_NODELAY on sockets that name their protocol only; without it an answer may wait 40 ms."""
    assert page._socket.proto == socket.IPPROTO_TCP


def test_closing_ends_tabs(session: Session) -> None:
    server = session.serve()
    first = Tab(server)
    first.ask("hello")
    server.close()
    with pytest.raises(ConnectionClosed):
        first.ask("hello")
    server.close()
    assert not [t for t in threading.enumerate() if t.name == "cytonym-page" and t is not threading.current_thread()][
        1:
    ]


def test_importing_the_package_needs_no_server() -> None:
    code = "import sys, cytonym.label.session; print([m for m in ('starlette', 'uvicorn', 'anywidget', 'websockets') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.strip().splitlines()[-1].replace("'", '"')) == []
