"""The numbers of the published programs, by the benchmark that compares them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "parity.py"
HERE = runpy.run_path(str(BENCHMARK))


@pytest.mark.parametrize(
    "method",
    [
        "clearit_encoder",
        "clearit_loss",
        "clearit_misc",
        "maps_mlp",
        "deepliif_generators",
        "deepliif_losses",
        "deepliif_postprocess",
    ],
)
def test_agrees(method, parity):
    parity(method)  # skips where the numbers are not at hand
    folder = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["PARITY"]
    found = HERE["check_all"](folder, [method])
    assert found["checked"] > 0
    assert found["apart"] == []
    assert found["agree"]


def test_no_fixture_is_no_agreement(tmp_path):
    assert HERE["check_all"](tmp_path) == {"agree": False, "checked": 0, "max_error": {}, "apart": []}


def test_a_wrong_number_is_found(tmp_path, parity):
    """Weights of another salt give other numbers: the check can fail."""
    import shutil

    parity("maps_mlp")
    folder = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["PARITY"]
    shutil.copytree(folder / "maps_mlp", tmp_path / "maps_mlp")
    readme = tmp_path / "maps_mlp" / "README.md"
    readme.write_text(readme.read_text().replace("salt `''`", "salt `'other'`"))
    found = HERE["check_all"](tmp_path)
    assert not found["agree"]
    assert any(line.startswith("maps_mlp/logits") for line in found["apart"])
