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


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--cells", "500", "--actions", "100", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["kills"] == 3
    assert found["confirmed"] > 0
    assert found["lost"] == found["invented"] == found["wrong"] == found["broken_lines"] == 0
    assert found["grown_mb"] < 100
