"""Weights under the names of published programs."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PARITY = Path(os.environ.get("CYTONYM_PARITY", Path(__file__).parents[3] / "shared" / "parity"))


@pytest.fixture(scope="session")
def published_weights() -> Callable[..., dict[str, Tensor]]:
    """The state dict with which a published program was run; skips the test where its names are not at hand."""

    def fill(program: str, entry: str | None = None, gains: dict[str, float] | None = None) -> dict[str, Tensor]:
        names = PARITY / program / "keys.json"
        if not names.is_file():
            pytest.skip(f"names of the weights of {program!r} not found in {PARITY} (set CYTONYM_PARITY)")
        keys = json.loads(names.read_text())
        draw = runpy.run_path(str(PARITY / "fill.py"))["fill_state_dict"]
        found: dict[str, Tensor] = draw(keys if entry is None else keys[entry], "", gains)
        return found

    return fill
