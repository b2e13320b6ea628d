"""What only looks: the name of what is labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from cytonym.label.session import Session

if TYPE_CHECKING:
    from pathlib import Path


def store_of(log: Path | None, annotator: str = "maria", names: tuple[str, ...] = ("a", "b", "c")) -> str:
    adata = AnnData(np.eye(len(names), dtype="f4"), obs=pd.DataFrame(index=list(names)))
    desk = Session(adata, classes=["T"], log=log, annotator=annotator).desk
    told, _ = desk.looks.handlers["hello"]({}, [])
    desk.close()
    return str(told["store"])


def test_the_name_of_what_is_labelled_stays_as_long_as_rows_mean_the_same(tmp_path: Path) -> None:
    log = tmp_path / "labels.jsonl"
    first = store_of(log)
    assert first
    assert store_of(log) == first, "after a restart"
    others = [store_of(tmp_path / "x.jsonl"), store_of(log, "ana"), store_of(log, names=("b", "a", "c"))]
    assert len({first, *others}) == 4
    assert str(tmp_path) not in first
    assert store_of(None) == "", "labels that are only in memory"
