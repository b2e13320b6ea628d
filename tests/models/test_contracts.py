"""Every registered method holds the contract of its kind."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from cytonym.models import registry

torch.set_num_threads(1)
TESTS = Path(__file__).parents[1]
CONTRACTS = runpy.run_path(str(TESTS / "contracts.py"))
CLASSIFIERS = runpy.run_path(str(TESTS / "classifier_contracts.py"))


@pytest.mark.parametrize("check", CONTRACTS["CHECKS"].values(), ids=CONTRACTS["CHECKS"])
@pytest.mark.parametrize("name", registry.names("encoder"))
def test_contract(name, check):
    check(registry.get(name))


@pytest.mark.parametrize("check", CLASSIFIERS["CHECKS"].values(), ids=CLASSIFIERS["CHECKS"])
@pytest.mark.parametrize("name", registry.names("classifier"))
def test_contract_of_classifiers(name, check):
    with CLASSIFIERS["thin"]():
        check(registry.get(name))
