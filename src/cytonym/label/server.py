"""The page: one WebSocket and a few fixed files, for this machine alone unless somebody asks for more."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
import webbrowser
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cytonym.label.wire import MOST_FRAME

try:
    import uvicorn
    import websockets  # noqa: F401 (what uvicorn speaks to WebSockets with)
    from starlette.applications import Starlette
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    from cytonym.label.tab import Tab
except ImportError as error:
    msg = f"A page needs {error.name}: pip install 'cytonym[label]'."
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from cytonym.label.desk import Desk

logger = logging.getLogger("cytonym")

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PROTOCOL = "cytonym"
MOST_CLIENTS = 32
WRONG_TOKEN, TOO_MANY = 4403, 1013
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253})(:\d{1,5})?")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cytonym label</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="label.css">
</head>
<body>
<div id="app"></div>
<noscript>This page needs JavaScript.</noscript>
<script type="module" src="page.js"></script>
</body>
</html>
"""
WAY = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>cytonym label</title>
</head>
<body><a href="{url}">cytonym label</a></body>
</html>
"""
SCRIPT = """import { start } from "./label.js";

const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const url = new URL("ws", location.href);
url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
url.hash = "";
url.search = new URLSearchParams({ token }).toString();
start(document.getElementById("app"), url.href);
"""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=()",
    "Cache-Control": "no-store",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Guard:
    """Turns away WebSockets of other pages, and requests by another name than ours.

    A page that lets its own name point to this machine (DNS rebinding) asks by that name.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.loopback = is_loopback(host)
        self.names = {*LOOPBACK, f"[{host}]" if ":" in host else host.lower()}
        if not self.loopback:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = self._host(HTTPConnection(scope).headers)
        if host is None or (scope["type"] == "websocket" and not _own_origin(HTTPConnection(scope).headers, host)):
            await _refuse(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS | {"Content-Security-Policy": POLICY.format(host=host)})
            await send(message)

        await self.app(scope, receive, guarded)

    def _host(self, headers: Headers) -> str | None:
        """The name by which we were asked, if it is one of ours."""
        told = headers.getlist("host")
        match = HOST.fullmatch(told[0]) if len(told) == 1 else None
        if match is None:
            return None
        name = match[1].lower()
        known = name in self.names or (not self.loopback and _is_address(name))  # nobody can rebind an address
        return told[0] if known else None


class Server:
    """Serves a desk as a page.

    Parameters
    ----------
    desk
        What answers.
    host
        Address to listen on. Anything but this machine's own must be asked for.
    port
        0 for any that is free.

    Raises
    ------
    OSError
        The address cannot be used.
    """

    def __init__(self, desk: Desk, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.desk, self.host = desk, host
        self.token = secrets.token_urlsafe(32)
        self._socket = _listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        if not is_loopback(host):
            logger.warning(
                "The page listens on %s: everybody who can reach this machine and knows the address with its token can see the images "
                "and label. The connection is not encrypted.",
                host,
            )
        config = uvicorn.Config(
            self.app(), host=host, port=self.port, log_config=None, access_log=False, server_header=False, proxy_headers=False,
            ws="websockets-sansio", ws_max_size=MOST_FRAME, ws_per_message_deflate=False, timeout_graceful_shutdown=3, lifespan="on",
            ws_ping_timeout=None,  # a ping waits behind the pictures that a slow connection is still reading
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._way: Path | None = None

    @property
    def url(self) -> str:
        """Address of the page, with the token. It stays in the browser: what is behind `#` is not sent."""
        name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/#token={self.token}"

    def __repr__(self) -> str:
        return f"Page at {self.url}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Serve in a thread, and return when the page is there."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="cytonym-page", daemon=True)
            self._thread.start()
            while not self._server.started and self._thread.is_alive():
                time.sleep(0.01)
        return self

    def run(self) -> None:
        """Serve until interrupted."""
        self.desk.looks.warm()  # while the browser starts
        self._server.run(sockets=[self._socket])

    def open_browser(self) -> None:
        """Show the page.

        Everybody on this machine can read the command line of a browser, so it is given a file that only this user can read, which
        leads to the address with the token. The file is there until the page is.
        """
        self._forget_way()
        self._way = Path(tempfile.mkdtemp(prefix="cytonym-"))  # 0700
        file = self._way / "label.html"
        file.touch(0o600, exist_ok=False)
        file.write_text(WAY.format(url=self.url), encoding="utf-8")
        if not webbrowser.open(file.as_uri()):
            self._forget_way()

    def close(self) -> None:
        """Stop serving. Labels are on disk already."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._socket.close()
        self._forget_way()

    def _forget_way(self) -> None:
        if self._way is not None:
            shutil.rmtree(self._way, ignore_errors=True)
            self._way = None

    # ------------------------------------------------------------------------------------------------------------ inside
    def app(self) -> ASGIApp:
        """What answers requests."""
        fixed = {"/": (PAGE, "text/html"), "/page.js": (SCRIPT, "text/javascript")}
        for name, kind in (("label.js", "text/javascript"), ("label.css", "text/css")):
            if (STATIC / name).is_file():
                fixed[f"/{name}"] = (STATIC / name).read_text(encoding="utf-8"), kind
        answers = {path: Response(text, media_type=kind) for path, (text, kind) in fixed.items()}

        async def fixed_file(request: Request) -> Response:
            return answers[request.url.path]

        routes: list[Any] = [Route(path, fixed_file) for path in answers]
        return Guard(
            Starlette(routes=[*routes, WebSocketRoute("/ws", self._socket_of)], lifespan=self._lifespan), self.host
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        listening = asyncio.create_task(self.desk.listen())
        yield
        listening.cancel()
        await self.desk.settle()

    async def _socket_of(self, websocket: WebSocket) -> None:
        offered = [part.strip() for part in websocket.headers.get("sec-websocket-protocol", "").split(",")]
        given = [*offered, websocket.query_params.get("token", "")]
        await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        if not any(hmac.compare_digest(each.encode("utf-8", "replace"), self.token.encode()) for each in given):
            await websocket.close(WRONG_TOKEN, "The token is wrong: open the address that the server printed.")
        elif self.desk.n_clients >= MOST_CLIENTS:
            await websocket.close(TOO_MANY, f"There are {MOST_CLIENTS} tabs already.")
        else:
            self._forget_way()
            await Tab(websocket, self.desk).serve()


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _own_origin(headers: Headers, host: str) -> bool:
    """Browsers say which page opens a WebSocket; other programs need not, but they need the token, too."""
    told = headers.getlist("origin")
    return not told or (len(told) == 1 and told[0].lower() in (f"http://{host.lower()}", f"https://{host.lower()}"))


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).close()
        return
    answer = PlainTextResponse("This page is known by another name.", status_code=421, headers=HEADERS)
    await answer(scope, receive, send)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio sends small answers at once; else each may wait 40 ms for the browser's receipt of the last.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # On Windows SO_REUSEADDR would let another program listen on the same port.
    alone = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    try:
        found.setsockopt(socket.SOL_SOCKET, alone, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        msg = f"Cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}. Choose another port, or 0 for any."
        raise OSError(msg) from error
    return found
