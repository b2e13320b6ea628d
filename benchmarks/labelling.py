"""Is labelling quick, and is no label lost?

    python benchmarks/labelling.py --kills 100 --json
    python benchmarks/labelling.py --browser --json

Durability: a server runs in a process of its own, clients label over its WebSocket without a pause, and the process is killed (SIGKILL)
at random moments and started again. In some rounds the log may also grow by a few hundred bytes only, as on a full disk. At the end the
log is compared with what the clients were told: labels that were confirmed and are not there are `lost`; events that nobody sent, that
are there twice, or that take back another label than the last one are `invented`; cells whose label is not the one that follows from
the log, read here a second time, are `wrong`. Memory: that of a server on a synthetic tissue after the first tenth of `--actions`, and
at the end. With `--browser` also what people see, in Chromium.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import shutil
import tempfile
import threading
import time
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import cytonym as cy
from cytonym.label.wire import decode, encode

CLASSES = ["tumour", "stroma", "immune"]
PRELOAD = [
    "cytonym.label.session",
    "cytonym.label.server",
    "cytonym.label.desk",
    "anndata",
    "uvicorn",
    "starlette.routing",
    "websockets",
]


# ------------------------------------------------------------------------------------------------------------------- server
def serve(cells: int | str, log: str, told: Any, spare: int | None = None) -> None:
    """A server, in a process of its own: on a table of so many cells, or on a store."""
    import resource

    warnings.filterwarnings("ignore")
    logging.getLogger("cytonym").setLevel(logging.ERROR)
    if isinstance(cells, str):
        import spatialdata as sd

        data: Any = sd.read_zarr(cells)
    else:
        data = AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(cells)]))
        data.obsm["spatial"] = np.random.default_rng(0).random((cells, 2))
    session = cy.label.Session(data, classes=CLASSES, log=log, annotator="client")
    page = session.serve()
    if spare is not None:  # from here on files may grow by so many bytes only
        size = Path(log).stat().st_size + spare
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    told.send((page.port, page.token))
    threading.Event().wait()


class Child:
    """A running server."""

    def __init__(self, cells: int | str, log: Path, spare: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        ours, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(cells, str(log), theirs, spare), daemon=True)
        self.process.start()
        if not ours.poll(300):
            msg = "The server did not start."
            raise TimeoutError(msg)
        self.port, self.token = ours.recv()

    @property
    def address(self) -> str:
        """Of its WebSocket."""
        return f"ws://127.0.0.1:{self.port}/ws?token={self.token}"

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()

    def memory_mb(self) -> float:
        """What the process holds, without pages that it shares."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


# ------------------------------------------------------------------------------------------------------------------- client
@dataclass
class Told:
    """What clients sent and heard."""

    sent: list[dict[str, Any]] = field(default_factory=list)
    """Without an answer."""
    confirmed: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Event -> request."""
    refused: int = 0
    seconds: list[float] = field(default_factory=list)


def label(address: str, cells: int, seed: int, told: Told, lock: threading.Lock) -> None:
    """Label until the server is gone."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    rng = random.Random(seed)
    request: dict[str, Any] | None = None
    with suppress(WebSocketException, OSError, EOFError), connect(address, compression=None, max_size=None) as socket:
        for number in range(10**9):
            kind = rng.choices(["assign", "undo", "redo"], [8, 1, 1])[0]
            rows = sorted(rng.sample(range(cells), rng.choice([1, 1, 1, 5, 60, 400]))) if kind == "assign" else []
            code = rng.choice([0, 1, 2, -1, -2, -3]) if kind == "assign" else None
            request = {"type": kind, "class": code, "rows": rows}
            buffers = [np.array(rows, "<u4").tobytes()] if rows else []
            start = time.perf_counter()
            socket.send(encode({"id": number, "type": kind, "class": code}, buffers))
            while (answer := decode(socket.recv())[0]).get("re") != number:
                pass
            with lock:
                told.seconds.append(time.perf_counter() - start)
                if not answer["ok"]:
                    told.refused += 1
                elif answer["event"]:
                    told.confirmed[answer["event"]] = request
            request = None
    if request is not None:
        with lock:
            told.sent.append(request)


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """All events of a log, read without the package, and the number of broken lines."""
    events, broken = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        body, _, checksum = line.rpartition(b"\t")
        if f"{zlib.crc32(body):08x}".encode() == checksum:
            events.append(json.loads(body))
        else:
            broken += 1
    return events, broken


def rows_of(event: dict[str, Any]) -> list[int]:
    """Rows of the table of `serve`, whose cells are known by their names."""
    return sorted(int(name.split()[1]) for names in event.get("cells", {}).values() for name in names)


def durability(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kill the server again and again."""
    log, told, lock, rng = folder / "labels.jsonl", Told(), threading.Lock(), random.Random(options.seed)
    torn = full = 0
    start = time.perf_counter()
    for round_ in range(options.kills):
        spare = rng.randint(1, 4000) if round_ % 5 == 4 else None
        full += spare is not None
        child = Child(options.cells, log, spare)
        clients = [
            threading.Thread(target=label, args=(child.address, options.cells, rng.randrange(2**32), told, lock))
            for _ in range(options.clients)
        ]
        for client in clients:
            client.start()
        time.sleep(rng.uniform(0.05, options.seconds))
        child.kill()
        for client in clients:
            client.join()
        content = log.read_bytes()
        torn += bool(content) and not content.endswith(b"\n")
    Child(options.cells, log).kill()  # cuts off what was torn last
    return {
        "kills": options.kills,
        "full_disks": full,
        "torn_writes": torn,
        **compared(log, told, options.cells),
        "stored_ms": round(1e3 * float(np.median(told.seconds)), 2),
        "stored_ms_p95": round(1e3 * float(np.quantile(told.seconds, 0.95)), 2),
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }


def replayed(events: list[dict[str, Any]], cells: int) -> tuple[np.ndarray, int]:
    """Code of each cell by the order of the events alone, and the number of those that undo or redo another one than is due."""
    done: list[dict[str, Any]] = []
    undone: list[dict[str, Any]] = []
    astray = 0
    for event in events:
        if event["kind"] == "assign":
            done.append(event)
            undone.clear()
        elif event["kind"] in ("undo", "redo"):
            taken, given = (done, undone) if event["kind"] == "undo" else (undone, done)
            if taken and taken[-1]["id"] == event["of"]:
                given.append(taken.pop())
            else:
                astray += 1
    codes = np.full(cells, -1)
    for event in done:
        codes[rows_of(event)] = event["class"]
    return codes, astray


def compared(log: Path, told: Told, cells: int) -> dict[str, Any]:
    """What the log holds against what was confirmed."""
    events, broken = read_log(log)
    by_id = {event["id"]: event for event in events}
    lost, invented, pending = 0, 0, [*told.sent]
    for name, request in told.confirmed.items():
        event = by_id.get(name, {})
        same = event.get("kind") == request["type"] and event.get("class") == request["class"]
        lost += not (same and rows_of(event) == request["rows"])
    for event in by_id.values():
        if event["kind"] not in ("assign", "undo", "redo") or event["id"] in told.confirmed:
            continue
        request = {"type": event["kind"], "class": event.get("class"), "rows": rows_of(event)}
        if request in pending:
            pending.remove(request)  # sent, stored, killed before the answer
        else:
            invented += 1
    codes, astray = replayed(events, cells)
    twice = len(events) - len(by_id)
    table = AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(cells)]))
    again = cy.label.Session(table, log=log, annotator="client")
    return {
        "events": len(events),
        "confirmed": len(told.confirmed),
        "refused": told.refused,
        "lost": lost,
        "invented": invented + twice + astray,
        "wrong": int((again.codes != codes).sum()),
        "broken_lines": broken,
    }


# ------------------------------------------------------------------------------------------------------------------- memory
def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Labels, patches and pieces of tissue in turn, and what the server holds."""
    from websockets.sync.client import connect

    store = folder / "tissue.zarr"
    cy.datasets.tissue_phantom(n_cells=2000, rng=0).write(store)
    child = Child(str(store), folder / "memory.jsonl")
    rng, marks = np.random.default_rng(0), []
    with connect(child.address, compression=None, max_size=None) as socket:

        def ask(kind: str, *buffers: bytes, **fields: Any) -> dict[str, Any]:
            socket.send(encode({"id": 1, "type": kind, **fields}, buffers))
            while (answer := decode(socket.recv())[0]).get("re") != 1:
                pass
            return answer

        region = ask("hello")["regions"][0]
        for step in range(options.actions):
            rows = rng.integers(0, 2000, 20).astype("<u4").tobytes()
            if step % 10 == 8:
                ask("gallery", rows)
            elif step % 10 == 9:
                y, x = (int(rng.integers(0, region[side] - 100)) for side in ("height", "width"))
                ask("context", region=region["name"], y=y, x=x, h=100, w=100, px=100)
            elif step % 10 == 7:
                ask("undo")
            else:
                ask("assign", rows, **{"class": int(rng.integers(3))})
            if step + 1 in (options.actions // 10, options.actions):
                marks.append(child.memory_mb())
    child.kill()
    return {
        "actions": options.actions,
        "memory_mb": [round(m, 1) for m in marks],
        "grown_mb": round(marks[-1] - marks[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="0: leave durability out")
    parser.add_argument("--cells", type=int, default=20_000, help="of the table that is labelled between kills")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.8, help="longest time between start and kill")
    parser.add_argument("--actions", type=int, default=10_000, help="of which memory is measured; 0: leave it out")
    parser.add_argument("--browser", action="store_true", help="also what people see; needs Playwright and Chromium")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    found: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="cytonym-labelling-"))
    try:
        if options.kills:
            found |= durability(folder, options)
        if options.actions:
            found |= memory(folder, options)
        if options.browser:
            from labelling_browser import measure

            found |= measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for key, value in found.items():
        print(f"{key:>16}  {value}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
