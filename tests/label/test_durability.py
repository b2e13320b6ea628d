"""The benchmark that kills the server: it would see a loss, and there is none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from anndata import AnnData

from cytonym.label.log import Event, EventLog
from cytonym.label.session import Session

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "labelling.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("labelling", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["labelling"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["labelling"]


def test_losses_and_inventions_are_seen(script: Any, tmp_path: Path) -> None:
    log = tmp_path / "labels.jsonl"
    table = AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(50)]))
    session = Session(table, classes=script.CLASSES, log=log, annotator="client")
    told = script.Told()
    for rows in ([1], [2, 3], [4]):
        request = {"type": "assign", "class": 1, "rows": rows}
        told.confirmed[session.assign(rows, 1).id] = request
    undone = session.undo()
    assert undone is not None
    told.confirmed[undone.id] = {"type": "undo", "class": None, "rows": []}
    session.assign([7], 2)
    told.sent.append({"type": "assign", "class": 2, "rows": [7]})  # killed before the answer
    found = script.compared(log, told, 50)
    assert [found[key] for key in ("confirmed", "lost", "invented", "wrong", "broken_lines")] == [4, 0, 0, 0, 0]
    session.assign([8], 0)
    assert script.compared(log, told, 50)["invented"] == 1
    told.sent.append({"type": "assign", "class": 0, "rows": [8]})
    told.confirmed["x-1"] = {"type": "assign", "class": 0, "rows": [9]}
    assert script.compared(log, told, 50)["lost"] == 1
    del told.confirmed["x-1"]
    told.confirmed[session.events[-1].id] = {
        "type": "assign",
        "class": 1,
        "rows": [8],
    }  # stored, but not as it was sent
    assert script.compared(log, told, 50)["lost"] == 1


def test_an_event_that_is_there_twice_is_seen(script: Any, tmp_path: Path) -> None:
    log, told, _ = labelled(script, tmp_path)
    assert script.compared(log, told, 50)["invented"] == 0
    log.write_bytes(log.read_bytes() + log.read_bytes().splitlines(keepends=True)[-1])
    found = script.compared(log, told, 50)
    assert (found["lost"], found["invented"]) == (0, 1)


def test_an_undo_of_another_label_than_the_last_one_is_seen(script: Any, tmp_path: Path) -> None:
    log, told, session = labelled(script, tmp_path)
    first = session.events[-2]
    EventLog(log).append(lambda _: Event("x-1", first.time, "client", "undo", of=first.id))
    told.confirmed["x-1"] = {"type": "undo", "class": None, "rows": []}
    found = script.compared(log, told, 50)
    assert (found["lost"], found["invented"]) == (0, 1)


def labelled(script: Any, folder: Path) -> tuple[Path, Any, Session]:
    """A log with two labels that were confirmed."""
    log, told = folder / "labels.jsonl", script.Told()
    table = AnnData(obs=pd.DataFrame(index=[f"cell {i}" for i in range(50)]))
    session = Session(table, classes=script.CLASSES, log=log, annotator="client")
    for row in (1, 2):
        told.confirmed[session.assign([row], 1).id] = {"type": "assign", "class": 1, "rows": [row]}
    return log, told, session


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--cells", "500", "--actions", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["kills"] == 3
    assert found["confirmed"] > 0
    assert found["lost"] == found["invented"] == found["wrong"] == found["broken_lines"] == 0
    assert found["grown_mb"] < 100
