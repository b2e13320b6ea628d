from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import cytonym as cy
from cytonym.models import registry
from cytonym.models.base import CellEncoder
from cytonym.models.classifier import Labeller
from cytonym.models.deepliif import DeepLIIF
from cytonym.models.nimbus import Nimbus


def test_available_lists_every_method() -> None:
    table = cy.models.available()
    assert "nextmarker" in table.index
    assert list(table.columns) == ["cls", "kind", "task", "paper", "licence"]
    assert not table.isna().any(axis=None)


def test_names_agree_with_classes() -> None:
    bases: dict[str, Any] = {
        "encoder": CellEncoder, "classifier": Labeller, "scorer": Nimbus, "translator": DeepLIIF
    }  # fmt: skip
    for name, row in cy.models.available().iterrows():
        cls = registry.get(str(name))
        assert issubclass(cls, bases[row["kind"]])
        assert cls.name == name
        assert cls is getattr(cy.models, row["cls"])


def test_names_of_a_kind() -> None:
    assert registry.names("encoder") == ["nextmarker", "clearit"]
    assert registry.names("classifier") == ["classifier", "maps", "cellsighter", "finetuned"]
    assert registry.names("translator") == ["deepliif"]
    assert registry.names("scorer") == ["nimbus"]
    every = [name for kind in ("encoder", "classifier", "scorer", "translator") for name in registry.names(kind)]
    assert sorted(every) == sorted(cy.models.available().index)


def test_unknown_method() -> None:
    with pytest.raises(KeyError, match=r"No method 'resnet'. Available: \['cellsighter', 'classifier', "):
        registry.get("resnet")


def test_listing_does_not_import_torch() -> None:
    code = "import sys, cytonym as cy; cy.models.available(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
