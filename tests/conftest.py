"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(os.environ.get("CYTONYM_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of a real field; skips the test where the data are not at hand."""

    def folder(name: str) -> Path:
        path = DATA / name / "dev"
        if not path.is_dir():
            pytest.skip(f"real field {name!r} not found in {DATA} (set CYTONYM_DATA)")
        return path

    return folder
