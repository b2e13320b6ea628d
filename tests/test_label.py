"""`cytonym label`: what it opens, what it says, and that labels are in the table afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
from typer.testing import CliRunner

import cytonym as cy
from cytonym import _label
from cytonym.cli import app
from cytonym.label.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "tissue.zarr"
    cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0).write(path)
    return path


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> Any:
    import logging

    monkeypatch.setenv("PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS", ""))
    log = logging.getLogger("cytonym")
    before = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = before[:2]
    log.setLevel(before[2])


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command; `meanwhile` happens while the page is up."""

    def run(*arguments: Any, meanwhile: Callable[[], None] = lambda: None) -> Result:
        monkeypatch.setattr(_label, "wait", lambda _ended: meanwhile())
        monkeypatch.setattr("webbrowser.open", lambda _url: pytest.fail("no browser was asked for"))
        return CliRunner().invoke(app, ["label", *map(str, arguments), "--no-browser"])

    return run


def test_labels_are_in_the_table_afterwards(call: Callable[..., Result], store: Path) -> None:
    log = store.with_name("tissue.zarr.labels.jsonl")
    label = lambda: Session(sd.read_zarr(store), log=log, annotator="maria").assign([3, 4], "immune")
    result = call(store, "--classes", "tumour,immune", "--annotator", "maria", meanwhile=lambda: label())
    assert result.exit_code == 0, result.output
    assert "0 of 40 cells labelled, as 'maria'" in result.output
    assert re.search(r"Page: http://127\.0\.0\.1:\d+/#token=[\w-]{40,}", result.output)
    assert "saved: 2 labels in column 'label'" in result.output
    assert sd.read_zarr(store)["table"].obs["label"].tolist()[2:6] == [np.nan, "immune", "immune", np.nan]
    again = call(store, "--annotator", "maria")
    assert "2 of 40 cells labelled" in again.output
    assert "saved" not in again.output


def test_labels_from_before_a_crash_and_of_others_are_saved(call: Callable[..., Result], store: Path) -> None:
    result = call(store)
    assert "saved" not in result.output  # nobody labelled anything
    for name in ("maria", "noor"):  # as after a server that was killed
        session = Session(sd.read_zarr(store), classes=["T"], annotator=name)
        session.assign([3 if name == "maria" else 4], "T")
    result = call(store, "--annotator", "maria", "--classes", "T")
    assert "saved: 2 labels in column 'label'" in result.output
    assert sd.read_zarr(store)["table"].obs["label"].notna().sum() == 2
    assert "saved" not in call(store).output


def test_whatever_fails_it_says_where_the_labels_are(
    call: Callable[..., Result], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Session(sd.read_zarr(store), classes=["T"], annotator="m").assign([3], "T")

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(Session, "write", fail)
    for failure in (KeyError("no element"), AttributeError("no element")):
        result = call(store)
        assert "not saved: no element All labels are in " in result.output
        assert (result.exit_code == 0) == isinstance(failure, KeyError)


def test_the_embedding_is_offered(call: Callable[..., Result], store: Path) -> None:
    result = call(store)
    assert "There is no embedding" in result.output
    assert f"cytonym train {store}" in result.output
    assert "--embed" in result.output
    sdata = sd.read_zarr(store)
    sdata["table"].obsm["X_model"] = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    cy.io.save_table(sdata, "table")
    assert "There is no embedding" not in call(store).output


def test_embedding_on_the_way(call: Callable[..., Result], store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = cy.tl.embed_cells
    monkeypatch.setattr(
        cy.tl, "embed_cells", lambda sdata, **keys: true(sdata, steps=2, batch_size=16, device="cpu", **keys)
    )
    result = call(store, "--embed")
    assert result.exit_code == 0, result.output
    assert "X_nextmarker" in sd.read_zarr(store)["table"].obsm


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a store"),
        (["nothing.zarr"], "does not exist"),
        (["STORE", "--image", "none"], "No image 'none'"),
        (["STORE", "--classes", "a,,b"], "is empty"),
        (["STORE", "--host", "999.1.1.1"], "Cannot listen"),
        (["STORE", "--rep", "X_none"], "X_none"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    call: Callable[..., Result], store: Path, arguments: list[str], said: str
) -> None:
    result = call(*(store if a == "STORE" else a for a in arguments))
    if said == "X_none":  # the page is there, and says it where suggestions are asked for
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_without_the_extra(call: Callable[..., Result], store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cytonym.label.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = call(store)
    assert result.exit_code == 1
    assert "pip install 'cytonym[label]'" in result.output


def test_a_foreign_column_is_not_replaced(call: Callable[..., Result], store: Path) -> None:
    sdata = sd.read_zarr(store)
    sdata["table"].obs["label"] = "mine"
    cy.io.save_table(sdata, "table")

    def meanwhile() -> None:
        Session(sd.read_zarr(store), classes=["a"], annotator="m").assign([1], "a")

    result = call(store, meanwhile=lambda: pytest.fail("somebody labels for hours"))
    assert result.exit_code == 1
    assert "obs['label']" in result.output
    assert "--key label_by_hand" in result.output
    assert "no column" in call(store, "--key", "my labels").output
    assert set(sd.read_zarr(store)["table"].obs["label"]) == {"mine"}
    result = call(store, "--key", "kind", meanwhile=meanwhile)
    assert "1 labels in column 'kind'" in result.output
    assert sd.read_zarr(store)["table"].obs["kind"].notna().sum() == 1


def test_the_demo(call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_label, "DEMO_CELLS", 60)
    result = call("--demo")
    assert result.exit_code == 0, result.output
    assert "0 of 60 cells labelled" in result.output
    assert "0 of 60" in call("--demo").output  # the same store again


@pytest.mark.slow
def test_ended_by_a_signal(store: Path) -> None:
    code = "from cytonym.cli import app; app()"
    command = [sys.executable, "-u", "-W", "ignore", "-c", code, "label", str(store), "--classes", "a", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl+C"):
                break
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        assert process.wait(timeout=60) == 0, lines
    assert not any("Traceback" in line for line in lines)
