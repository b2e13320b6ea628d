from __future__ import annotations

import subprocess
import sys

import pytest

import cytonym as cy
from cytonym.models import registry
from cytonym.models.base import CellEncoder


def test_available_lists_every_method() -> None:
    table = cy.models.available()
    assert "nextmarker" in table.index
    assert list(table.columns) == ["cls", "task", "paper", "licence"]
    assert not table.isna().any(axis=None)


def test_names_agree_with_classes() -> None:
    for name, row in cy.models.available().iterrows():
        cls = registry.get(str(name))
        assert issubclass(cls, CellEncoder)
        assert cls.name == name
        assert cls is getattr(cy.models, row["cls"])


def test_unknown_method() -> None:
    with pytest.raises(KeyError, match=r"No method 'resnet'. Available: \['nextmarker'"):
        registry.get("resnet")


def test_listing_does_not_import_torch() -> None:
    code = "import sys, cytonym as cy; cy.models.available(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
