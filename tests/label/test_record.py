"""Labels go to their cells in the table, whatever happened to it, and replace nothing of others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import cytonym as cy
from cytonym.label import record

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad
    from spatialdata import SpatialData

    from cytonym.label.session import Session


@pytest.fixture
def sdata() -> SpatialData:
    return cy.datasets.tissue_phantom(n_cells=40, size_px=96, rng=0)


@pytest.fixture
def store(tmp_path: Path, sdata: SpatialData) -> Path:
    path = tmp_path / "tissue.zarr"
    sdata.write(path)
    return path


@pytest.fixture(params=["log", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "labels.jsonl" if request.param == "log" else None


def opened(sdata: Any, log: Path | None = None, annotator: str = "m") -> Session:
    return cy.label.Session(sdata, classes=["T"], log=log, annotator=annotator)


def labelled(table: ad.AnnData, key: str = "label") -> set[int]:
    return set(table.obs.loc[table.obs[key].notna().to_numpy(), "instance_id"])


def of_store(path: Path) -> ad.AnnData:
    return sd.read_zarr(path, selection=("tables",))["table"]


# -------------------------------------------------------------------------------------------------------------- saving
def test_a_save_loses_no_label_that_is_saved_meanwhile(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = opened(sd.read_zarr(store), annotator="a"), opened(sd.read_zarr(store), annotator="b")
    first.assign([0, 1], "T")
    put = record._put

    def meanwhile() -> None:
        second.assign([2, 3], "T")
        second.write(save=True)

    other = threading.Thread(target=meanwhile)

    def interrupted(*given: Any, **named: Any) -> Any:
        table = put(*given, **named)
        if table is not first.table and not other.ident:  # the log was read, the table is not yet replaced
            other.start()
            other.join(2)
        return table

    monkeypatch.setattr(record, "_put", interrupted)
    first.write(save=True)
    other.join()
    assert len(labelled(of_store(store))) == 4


def test_labels_in_memory_are_saved_once_there_is_a_store(tmp_path: Path, sdata: SpatialData) -> None:
    session = opened(sdata)
    session.assign([0, 1, 2], "T", source="bulk")
    session.assign([2], -1)
    session.undo()
    session.note(5, "odd")
    with pytest.raises(ValueError, match="Write the object first"):
        session.write(save=True)
    sdata.write(tmp_path / "tissue.zarr")
    opened(sd.read_zarr(tmp_path / "tissue.zarr"), annotator="x").assign([9], "T")  # a log of others, beside the store
    session.write(save=True)
    for table in (sdata["table"], of_store(tmp_path / "tissue.zarr")):
        assert labelled(table) == set(table.obs["instance_id"].iloc[:3])
        assert table.obs["label_note"].iloc[5] == "odd"
        assert list(table.uns["label"]["classes"]["name"]) == ["T"]
    assert str(table.uns["label"]["params"]["log_id"]) == session.events[0].id


# ------------------------------------------------------------------------------------------------- tables that changed
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("rows", [np.arange(40)[::-1], np.arange(1, 35)], ids=["turned", "fewer"])
def test_rows_that_were_moved_or_taken_out_in_place(
    sdata: SpatialData, log: Path | None, rows: np.ndarray, alone: bool, tmp_path: Path
) -> None:
    table = sdata["table"]
    session = opened(table if alone else sdata, log)
    session.assign([0, 1, 2], "T", source="bulk")
    session.assign([3], "T")
    session.undo()
    wanted = set(table.obs["instance_id"].iloc[:3]) & set(table.obs["instance_id"].iloc[rows])
    table._inplace_subset_obs(rows)
    for _ in range(2):
        session.write()
        assert labelled(table) == wanted
    with pytest.raises(ValueError, match="open a new session"):
        session.export_csv(tmp_path / "labels.csv")


def test_other_names_of_the_rows_change_nothing(sdata: SpatialData, log: Path | None, tmp_path: Path) -> None:
    session = opened(sdata, log)
    session.assign([0, 1, 2], "T")
    sdata["table"].obs_names = [f"cell {i}" for i in range(40)]
    session.write()
    assert labelled(sdata["table"]) == set(sdata["table"].obs["instance_id"].iloc[:3])
    assert pd.read_csv(session.export_csv(tmp_path / "a.csv"))["cell"].tolist() == ["cell 0", "cell 1", "cell 2"]


def test_what_is_added_to_a_table_that_was_a_view_stays(sdata: SpatialData, tmp_path: Path) -> None:
    view = sdata["table"][:30]
    del sdata.tables["table"]
    sdata.tables["table"] = view
    session = opened(sdata, tmp_path / "a")
    session.assign([0], "T")
    session.write()
    sdata["table"].obs["leiden"] = "0"
    session.assign([1], "T")
    session.write()
    assert session.table is sdata["table"]
    assert "leiden" in sdata["table"].obs
    assert len(labelled(sdata["table"])) == 2


# --------------------------------------------------------------------------------------------------- columns of others
@pytest.mark.parametrize("name", ["label_time", "label_note", "label_by"])
def test_a_column_of_others_beside_the_labels_is_not_replaced(sdata: SpatialData, tmp_path: Path, name: str) -> None:
    sdata["table"].obs[name] = np.arange(40.0)
    session = opened(sdata, tmp_path / "a")
    session.assign([0], "T")
    with pytest.raises(ValueError, match=rf"`obs\['{name}'\]` did not come from this log"):
        session.write()
    assert sdata["table"].obs[name].tolist() == list(range(40))
    assert "label" not in sdata["table"].obs
    session.write(key_added="mine")
    session.write(overwrite=True)
    assert len(labelled(sdata["table"])) == 1


def test_an_entry_of_others_is_not_replaced(sdata: SpatialData, tmp_path: Path) -> None:
    sdata["table"].uns["nextmarker"] = {"params": {"steps": 3}}
    session = opened(sdata, tmp_path / "a")
    with pytest.raises(ValueError, match=r"`uns\['nextmarker'\]` did not come from this log"):
        session.write(key_added="nextmarker")
    assert sdata["table"].uns["nextmarker"] == {"params": {"steps": 3}}


def test_a_note_column_that_was_made_since_is_not_replaced(sdata: SpatialData, tmp_path: Path) -> None:
    session = opened(sdata, tmp_path / "a")
    session.assign([0], "T")
    session.write()
    sdata["table"].obs["label_note"] = "mine"
    with pytest.raises(ValueError, match="label_note"):
        session.write()
    assert set(sdata["table"].obs["label_note"]) == {"mine"}


def test_its_own_columns_are_replaced_also_those_without_labels(tmp_path: Path, sdata: SpatialData) -> None:
    log = tmp_path / "a"
    cy.label.Session(sdata, log=log, annotator="m").write()  # the log is empty, so it has no name yet
    session = opened(sdata, log)
    session.note(3, "look")
    session.write()
    assert sdata["table"].obs["label_note"].notna().sum() == 1
    session.note(3, "")
    session.write()
    assert sdata["table"].obs["label_note"].isna().all()


@pytest.mark.parametrize("key", ["my labels", "__label", "a/b", "_index", "Cell_Type"])
def test_a_name_that_a_store_does_not_take_is_said_before_anything_is_written(store: Path, key: str) -> None:
    session = opened(sd.read_zarr(store))
    session.assign([0], "T")
    with pytest.raises(ValueError, match="A store"):
        session.write(key_added=key, save=True)
    assert key not in session.table.obs
