"""The benchmarks run against the package as it is: their imports resolve, and `run.py` knows every script."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))


@pytest.fixture
def beside(monkeypatch):
    """Scripts may import from each other, as when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in {script.stem for script in SCRIPTS}:
            del sys.modules[name]


@pytest.mark.parametrize("script", SCRIPTS, ids=[s.stem for s in SCRIPTS])
def test_imports_resolve_and_there_is_help(script, beside, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage:" in text
    assert script.stem == "run" or "--json" in text


def test_every_script_is_run():
    known = {b.script for b in runpy.run_path(str(BENCHMARKS / "run.py"))["BENCHMARKS"]}
    assert known == {script.stem for script in SCRIPTS} - {"run"}
