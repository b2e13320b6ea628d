"""Sessions on whole objects: what they open, what they write into the table and to files, what they report."""

from __future__ import annotations

import errno
import logging
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from PIL import Image

import cytonym as cy
from cytonym.label import ledger as ledger_module


def tissue(n_cells: int = 40, seed: int = 0):
    return cy.datasets.tissue_phantom(n_cells=n_cells, size_px=96, rng=seed)


@pytest.fixture
def sdata():
    return tissue()


@pytest.fixture
def store(tmp_path, sdata):
    path = tmp_path / "tissue.zarr"
    sdata.write(path)
    return path


def two_regions():
    """Two images that lie over each other, ids with gaps, one cell that the table lacks."""
    images, labels, rows = {}, {}, []
    for name, ids in {"core1": [3, 4, 9], "core2": [1, 4]}.items():
        mask = np.zeros((40, 40), np.int32)
        for k, i in enumerate(ids):
            mask[4 + 12 * k : 12 + 12 * k, 4:12] = i
        part = cy.io.from_arrays(np.ones((2, 40, 40)), mask, channels=["DNA", "CD8"], name=name)
        images |= dict(part.images)
        labels |= dict(part.labels)
        rows += [(next(iter(part.labels)), i) for i in ids]
    rows.remove((rows[0][0], 9))
    obs = pd.DataFrame(
        {"region": pd.Categorical([r for r, _ in rows]), "instance_id": [i for _, i in rows]},
        index=[f"{r}_{i}" for r, i in rows],
    )
    table = sd.models.TableModel.parse(
        ad.AnnData(obs=obs), region=sorted({r for r, _ in rows}), region_key="region", instance_key="instance_id"
    )
    return sd.SpatialData(images=images, labels=labels, tables={"table": table})


# ------------------------------------------------------------------------------------------------------------- opening
def test_the_log_is_beside_the_store(store):
    sdata = sd.read_zarr(store)
    before = sorted(p.relative_to(store) for p in store.rglob("*"))
    session = cy.label.Session(sdata, classes=["T", "B"], annotator="m")
    assert session.log_path == store.parent / "tissue.zarr.labels.jsonl"
    assert (session.title, session.n, session.has_image, session.readonly) == ("tissue", 40, True, False)
    session.assign([1, 2], "T")
    again = cy.label.Session(sd.read_zarr(store), classes=["B", "K"], annotator="m")
    assert [c.name for c in again.classes] == ["T", "B", "K"]
    assert again.codes[[0, 1, 2]].tolist() == [-1, 0, 0]
    assert sorted(p.relative_to(store) for p in store.rglob("*")) == before
    assert "2 of 40" in repr(again)


def test_without_a_store_labels_are_in_memory_with_a_warning(sdata, caplog):
    with caplog.at_level(logging.WARNING):
        session = cy.label.Session(sdata, annotator="m")
    assert "in memory only" in caplog.text
    assert session.log_path is None
    session.assign([0], "unsure")
    assert session.counts()["unsure"] == 1


def test_a_table_alone_is_labelled_by_its_map(tmp_path):
    adata = ad.AnnData(np.ones((3, 2), "f4"), obs=pd.DataFrame(index=["x", "y", "z"]))
    adata.obsm["X_umap"] = np.arange(6.0).reshape(3, 2)
    session = cy.label.Session(adata, classes="T", log=tmp_path / "a.jsonl", annotator="m")
    assert not session.has_image
    assert session.sources == session.source_rows == []
    session.assign([1], "T")
    session.write()
    assert adata.obs["label"].tolist() == [np.nan, "T", np.nan]
    with pytest.raises(ValueError, match="no images"):
        session.export_masks(tmp_path / "masks")
    with pytest.raises(ValueError, match="no images"):
        session.export_geojson(tmp_path / "a.geojson")
    with pytest.raises(ValueError, match="no store"):
        session.write(save=True)


def test_images_without_a_table_get_one(tmp_path):
    mask = np.zeros((32, 32), int)
    mask[4:12, 4:12] = 7
    sdata = cy.io.from_arrays(np.ones((2, 32, 32)), mask, channels=["DNA", "CD8"])
    del sdata.tables["table"]
    session = cy.label.Session(sdata, classes=["T"], log=tmp_path / "a", annotator="m")
    session.assign([0], "T")
    assert "table" not in sdata.tables
    session.write()
    assert sdata["table"].obs["label"].tolist() == ["T"]


def test_what_cannot_be_opened(sdata, tmp_path):
    with pytest.raises(TypeError, match=r"read_zarr"):
        cy.label.Session("tissue.zarr")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="Available"):
        cy.label.Session(sdata, image_key="nope", log=tmp_path / "a")
    with pytest.raises(KeyError, match="No channel"):
        cy.label.Session(sdata, channels=["nope"], log=tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        cy.label.Session(sdata, log=tmp_path / "no" / "a")
    with pytest.raises(ValueError, match="is a folder"):
        cy.label.Session(sdata, log=tmp_path)
    with pytest.raises(ValueError, match="size_px"):
        cy.label.Session(sdata, log=tmp_path / "a", size_px=0)
    with pytest.raises(ValueError, match="annotator is empty"):
        cy.label.Session(sdata, log=tmp_path / "a", annotator=" ")
    with pytest.raises(ValueError, match="no cells"):
        cy.label.Session(ad.AnnData(np.ones((0, 2))), log=tmp_path / "a")
    twice = ad.AnnData(np.ones((2, 1)), obs=pd.DataFrame(index=["a", "b"]))
    twice.obs_names = ["a", "a"]
    with pytest.raises(ValueError, match="more than once"):
        cy.label.Session(twice, log=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_read_only(store, monkeypatch, caplog):
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    session = cy.label.Session(sd.read_zarr(store), classes=["T"], annotator="m")
    assert session.readonly
    assert "cannot be written" in caplog.text
    real = os.open

    def forbidden(path, flags, *args, **kwargs):
        if flags & os.O_RDWR:
            raise OSError(errno.EACCES, "Permission denied")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(PermissionError, match="Give a place that can be"):
        session.assign([0], "unsure")
    assert session.counts()["unsure"] == 0
    assert not session.log_path.exists()


def test_several_regions_and_a_cell_that_the_table_lacks(tmp_path):
    sdata = two_regions()
    session = cy.label.Session(sdata, classes=["T", "B"], log=tmp_path / "a", annotator="m")
    assert session.n == 4
    assert [r.tolist() for r in session.source_rows] == [[0, 1, -1], [2, 3]]
    event = session.assign([0, 1, 3], "T", source="bulk")
    assert event.cells == {"core1_cells": [[3, 2]], "core2_cells": [[4, 1]]}
    paths = session.export_masks(tmp_path / "masks")
    red, green, blue = (int(session.classes[0].color[i : i + 2], 16) for i in (1, 3, 5))
    first, second = (tifffile.imread(p) for p in paths)
    assert first.shape == (40, 40, 3)
    assert first[5, 5].tolist() == first[17, 5].tolist() == [red, green, blue]
    assert first[30, 5].tolist() == [50, 50, 50]  # not in the table
    assert first[0, 0].tolist() == [0, 0, 0]
    assert second[5, 5].tolist() == [50, 50, 50]
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), first)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        session.export_masks(tmp_path / "masks")
    assert len(session.export_masks(tmp_path / "masks", overwrite=True)) == 2
    assert len(list((tmp_path / "masks").iterdir())) == 2
    shuffled = sdata.tables["table"][[2, 0, 3, 1]].copy()
    del sdata.tables["table"]
    sdata.tables["table"] = shuffled
    again = cy.label.Session(sdata, log=tmp_path / "a", annotator="m")
    assert again.codes.tolist() == [-1, 0, 0, 0]


def test_rows_that_are_removed_from_the_store_meanwhile(store, caplog):
    session = cy.label.Session(sd.read_zarr(store), classes=["T"], annotator="m")
    session.assign(range(10), "T", source="bulk")
    other = sd.read_zarr(store)
    less = other["table"][5:].copy()
    less.obs["seen"] = 1
    del other.tables["table"]
    other.tables["table"] = less
    cy.io.save_table(other)
    session.write(save=True)  # of the ten rows in memory, five are on disk
    assert len(session.table) == 40
    stored = sd.read_zarr(store)["table"]
    assert stored.obs["label"].notna().sum() == 5
    assert (stored.obs["seen"] == 1).all()  # what others wrote stays
    with caplog.at_level(logging.WARNING):
        again = cy.label.Session(sd.read_zarr(store), annotator="m")
    assert again.missing == 5
    assert "5 labelled cells of the log are not in the table" in caplog.text


# ------------------------------------------------------------------------------------------------------------- writing
def label(session) -> None:
    session.assign([0, 1, 2], "T", source="bulk", shown=50)
    session.assign([2], "B")
    session.assign([3], "unsure")
    session.assign([4], "not a cell")
    session.note(5, "odd, “quoted”\nand long")


def test_labels_go_into_the_table_and_through_a_store(store):
    sdata = sd.read_zarr(store)
    before = sdata["table"].copy()
    session = cy.label.Session(sdata, classes=["T", "B", "empty"], annotator="maria")
    label(session)
    session.write(save=True)
    for table in (sdata["table"], sd.read_zarr(store)["table"]):
        obs = table.obs
        assert obs["label"].tolist()[:6] == ["T", "T", "B", np.nan, np.nan, np.nan]
        assert list(obs["label"].cat.categories) == ["T", "B", "empty"]
        assert obs["label_source"].tolist()[:6] == ["bulk", "bulk", "single", "single", "single", np.nan]
        assert obs["label_by"].tolist()[:3] == ["maria"] * 3
        assert obs["label_mark"].tolist()[2:6] == [np.nan, "unsure", "not a cell", np.nan]
        assert obs["label_note"].tolist()[5] == "odd, “quoted”\nand long"
        assert obs["label_time"].iloc[2] == session.events[-4].time
        assert obs.iloc[6:][["label", "label_source", "label_by", "label_time"]].isna().all(axis=None)
        frame = table.uns["label"]["classes"]
        assert frame["name"].tolist() == ["T", "B", "empty"]
        assert frame["color"].tolist() == [c.color for c in session.classes] == list(table.uns["label_colors"])
        assert str(table.uns["label"]["params"]["log"]) == "tissue.zarr.labels.jsonl"
        pd.testing.assert_frame_equal(obs[list(before.obs)], before.obs)
        assert set(table.obs) - set(before.obs) == {
            "label", *(f"label_{k}" for k in ("source", "by", "time", "mark", "note"))
        }  # fmt: skip
        assert set(table.uns) - set(before.uns) == {"label", "label_colors"}
    session.assign([7], "T")
    session.write()  # its own column may be replaced
    assert sdata["table"].obs["label"].iloc[7] == "T"


def test_labels_of_another_origin_are_not_written_over(sdata, tmp_path):
    sdata["table"].obs["label"] = pd.Categorical(["T", "b cell", " "] * 13 + [None])
    session = cy.label.Session(sdata, classes=["T"], log=tmp_path / "a", annotator="m")
    session.assign([1], "T")
    with pytest.raises(ValueError, match="39 labels that did not come from this log"):
        session.write()
    session.write(key_added="mine")
    assert sdata["table"].obs["mine"].notna().sum() == 1
    assert session.import_labels("label") == 25  # one cell had a label, and blanks are none
    assert [c.name for c in session.classes] == ["T", "b cell"]
    assert session.counts()["by_class"] == {0: 14, 1: 12}
    session.write(overwrite=True)
    assert sdata["table"].obs["label_source"].value_counts()["imported"] == 25
    with pytest.raises(KeyError, match="No column 'nope'"):
        session.import_labels("nope")


def test_a_table_that_was_made_since_gets_the_labels(tmp_path):
    mask = np.zeros((32, 32), int)
    mask[4:12, 4:12], mask[20:28, 4:12] = 7, 9
    sdata = cy.io.from_arrays(np.ones((2, 32, 32)), mask, channels=["DNA", "CD8"])
    del sdata.tables["table"]
    session = cy.label.Session(sdata, classes=["T"], log=tmp_path / "a", annotator="m")
    memory = cy.label.Session(sdata, classes=["T"], annotator="m")
    session.assign([1], "T")
    cy.pp.measure_cells(sdata)
    session.write()
    assert sdata["table"].obs["label"].tolist() == [np.nan, "T"]
    assert list(sdata["table"].var_names) == ["DNA", "CD8"]
    memory.assign([0], "T")
    memory.write(overwrite=True)
    assert sdata["table"].obs["label"].tolist() == ["T", np.nan]


def test_names_that_cannot_be_taken_in(sdata, tmp_path):
    sdata["table"].obs["label"] = ["ok", "x" * 101] * 20
    session = cy.label.Session(sdata, log=tmp_path / "a", annotator="m")
    with pytest.raises(ValueError, match="101 characters"):
        session.import_labels()
    assert not session.events


def test_a_removed_class_leaves_the_table(sdata, tmp_path):
    session = cy.label.Session(sdata, classes=["T", "B", "K"], log=tmp_path / "a", annotator="m")
    session.assign([0, 1], "T")
    session.assign([2], "B")
    session.remove_class("T", into="K")
    session.remove_class("B")
    session.rename_class("K", "Killer")
    session.write()
    obs = sdata["table"].obs
    assert obs["label"].tolist()[:3] == ["Killer", "Killer", np.nan]
    assert list(obs["label"].cat.categories) == ["Killer"]
    assert pd.isna(obs["label_by"].iloc[2])
    session.restore_class(0)
    session.write()
    assert sdata["table"].obs["label"].tolist()[:2] == ["T", "T"]


def test_nothing_labelled(sdata, tmp_path):
    session = cy.label.Session(sdata, log=tmp_path / "a", annotator="m")
    session.write()
    assert sdata["table"].obs["label"].isna().all()
    assert len(pd.read_csv(session.export_csv(tmp_path / "a.csv"))) == 0
    told = session.summary()
    assert (told["labelled"], told["annotators"], told["concordance"]) == (0, {}, None)
    assert session.disagreements().empty
    assert session.agreement().empty


def test_files_are_read_back(sdata, tmp_path):
    names = ["T, “α”;<b>", "=B()"]
    session = cy.label.Session(sdata, classes=names, log=tmp_path / "a", annotator="maria")
    session.assign([0, 1, 2], names[0], source="bulk")
    session.assign([2], names[1])
    session.assign([3], "not a cell")
    session.note(5, "two\nlines")
    frame = pd.read_csv(session.export_csv(tmp_path / "labels.csv", raw=True), dtype={"cell": str})
    assert frame["label"].tolist() == [names[0], names[0], names[1], np.nan, np.nan]
    assert frame["cell"].tolist() == sdata["table"].obs_names[[0, 1, 2, 3, 5]].tolist()
    assert frame["mark"].tolist()[3] == "not a cell"
    assert frame["note"].tolist()[4] == "two\nlines"
    np.testing.assert_allclose(frame[["x", "y"]], sdata["table"].obsm["spatial"][[0, 1, 2, 3, 5]], atol=0.51)
    with pytest.raises(FileExistsError):
        session.export_csv(tmp_path / "labels.csv")

    path = session.export_geojson(tmp_path / "labels.geojson")
    fresh = tissue()
    cy.io.read_geojson(fresh, path)
    assert fresh["table"].obs["label"].tolist()[:4] == [names[0], names[0], names[1], np.nan]
    assert "label" not in sdata["table"].obs  # an export changes nothing

    [mask] = session.export_masks(tmp_path / "masks")
    drawn = tifffile.imread(mask)
    labels = np.asarray(next(iter(sdata.labels.values())).data)
    ids = sdata["table"].obs["instance_id"].to_numpy()
    for row, k in ((0, 0), (2, 1)):
        color = [int(session.classes[k].color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (drawn[labels == ids[row]] == color).all()
    assert (drawn[labels == ids[10]] == 50).all()
    assert (drawn[labels == 0] == 0).all()


def test_a_full_disk_leaves_no_half_file(sdata, tmp_path, monkeypatch):
    session = cy.label.Session(sdata, classes=["T"], log=tmp_path / "log", annotator="m")
    session.assign([0], "T")
    session.export_csv(tmp_path / "a.csv")
    before = sorted(tmp_path.iterdir()), (tmp_path / "a.csv").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        session.export_csv(tmp_path / "a.csv", overwrite=True)
    assert (sorted(tmp_path.iterdir()), (tmp_path / "a.csv").read_bytes()) == before


# ----------------------------------------------------------------------------------------------------------- reporting
def test_several_annotators(sdata, tmp_path):
    log = tmp_path / "a"
    a = cy.label.Session(sdata, classes=["T", "B"], log=log, annotator="a")
    b = cy.label.Session(sdata, log=log, annotator="b")
    a.assign(range(8), "T", source="bulk")
    a.assign(range(8, 10), "B")
    b.assign(range(6), "T")
    b.assign(range(6, 10), "B")
    b.assign([11], "unsure")
    a.refresh()
    assert a.codes[6] == 0
    assert a.labels()[6] == 1
    assert a.disagreements()["row"].tolist() == [6, 7]
    assert a.disagreements().iloc[0][["a", "b"]].tolist() == ["T", "B"]
    [pair] = a.agreement().to_dict("records")
    assert (pair["n_cells"], pair["agreement"]) == (10, 0.8)
    assert pair["kappa"] == pytest.approx((0.8 - 0.56) / (1 - 0.56))  # by chance 0.8 x 0.6 + 0.2 x 0.4
    told = a.summary()
    assert told["disagreements"] == 2
    assert set(told["annotators"]) == {"a", "b"}


def test_history_and_cell(sdata, tmp_path):
    session = cy.label.Session(sdata, classes=["T", "B"], log=tmp_path / "a", annotator="m")
    session.assign([0, 1], "T", source="bulk")
    session.assign([1], "B")
    session.undo()
    session.note(1, "look")
    told = session.history(1)
    assert [(h["kind"], h["label"], h["undone"], h["text"]) for h in told] == [
        ("assign", "T", False, None), ("assign", "B", True, None), ("note", None, False, "look"),
    ]  # fmt: skip
    cell = session.cell(1)
    assert (cell["label"], cell["code"], cell["by"], cell["source"], cell["note"]) == ("T", 0, "m", "bulk", "look")
    assert cell["name"] == sdata["table"].obs_names[1]
    assert session.cell(7)["label"] is None
    with pytest.raises(IndexError):
        session.history(40)


def test_speed_concordance_and_pauses(sdata, tmp_path, monkeypatch):
    import datetime

    clock = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return clock

    monkeypatch.setattr(ledger_module, "datetime", Clock)
    session = cy.label.Session(sdata, classes=["T", "B"], log=tmp_path / "a", annotator="m")
    for k in range(10):  # one cell every two seconds
        clock += datetime.timedelta(seconds=2)
        session.assign([k], "T")
    clock += datetime.timedelta(hours=1)  # lunch
    session.assign([39], "B")
    for _ in range(2):  # eighteen cells in ten seconds, twice
        clock += datetime.timedelta(seconds=5)
        session.assign(range(2, 20), "T", source="bulk")
    session.assign([3], "B", source="bulk")
    told = session.summary()
    speed = told["annotators"]["m"]
    assert speed["by_source"]["single"] == pytest.approx(0.5)
    assert speed["by_source"]["bulk"] == pytest.approx(37 / 10)
    assert speed["seconds"] == pytest.approx(30)
    assert speed["labels_per_second"] == pytest.approx(47 / 30)
    assert speed["ratio"] == pytest.approx(47 / 15)
    assert told["concordance_cells"] == 8
    assert told["concordance"] == pytest.approx(7 / 8)
    assert speed["window_low"] is None
