"""Tutorials run as tests (`make test`); those on real data only where the data are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("CYTONYM_DATA", Path(__file__).parents[2] / "shared" / "data"))
NEEDS = dict.fromkeys(
    ("02_codex_without_a_mask.ipynb", "03_few_labels.ipynb", "04_marker_positivity.ipynb"), "codex_lymphoid_crop"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = NEEDS.get(item.path.name)
        if name is not None and not (DATA / name).is_dir():
            item.add_marker(pytest.mark.skip(reason=f"real field {name!r} not found in {DATA} (set CYTONYM_DATA)"))
