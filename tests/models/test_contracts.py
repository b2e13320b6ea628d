"""Every registered method holds the contract of `tests/contracts.py`."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from cytonym.models import registry

torch.set_num_threads(1)
CONTRACTS = runpy.run_path(str(Path(__file__).parents[1] / "contracts.py"))


@pytest.mark.parametrize("check", CONTRACTS["CHECKS"].values(), ids=CONTRACTS["CHECKS"])
@pytest.mark.parametrize("name", registry.available().index)
def test_contract(name, check):
    check(registry.get(name))
