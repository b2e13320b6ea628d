"""Labels as files: safe to open, one file an image, and with what others stored."""

from __future__ import annotations

import json
import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from spatialdata.models import TableModel

import cytonym as cy
from cytonym.label import export


@pytest.fixture
def cores():
    """Two images of two cells each, and a third image without cells of the table."""
    images, labels, rows = {}, {}, []
    for name, ids in {"core1": [3, 4], "core2": [1, 4], "core3": [8]}.items():
        mask = np.zeros((40, 40), np.int32)
        for k, i in enumerate(ids):
            mask[4 + 12 * k : 12 + 12 * k, 4:12] = i
        part = cy.io.from_arrays(np.ones((2, 40, 40)), mask, channels=["DNA", "CD8"], name=name)
        images |= dict(part.images)
        labels |= dict(part.labels)
        rows += [(next(iter(part.labels)), i) for i in ids if name != "core3"]
    obs = pd.DataFrame(
        {"region": pd.Categorical([r for r, _ in rows]), "instance_id": [i for _, i in rows], "label_confidence": 0.5},
        index=[f"{r}_{i}" for r, i in rows],
    )
    table = TableModel.parse(
        ad.AnnData(obs=obs), region=["core1_cells", "core2_cells"], region_key="region", instance_key="instance_id"
    )
    return sd.SpatialData(images=images, labels=labels, tables={"table": table})


def classes_of(path) -> list[str | None]:
    features = json.loads(path.read_text())["features"]
    return [feature["properties"].get("classification", {}).get("name") for feature in features]


@pytest.mark.parametrize("by_keys", [False, True])
def test_each_image_gets_a_file_for_qupath(cores, tmp_path, by_keys):
    names = ["core1", "core2"]
    keys = {"image_key": [f"{n}_image" for n in names], "labels_key": [f"{n}_cells" for n in names]} if by_keys else {}
    session = cy.label.Session(cores, classes=["T", "B"], log=tmp_path / "a", annotator="m", **keys)
    session.assign([0, 3], "T")
    session.assign([2], "B")
    before = session.table.obs.copy()
    paths = export.write_geojsons(session, tmp_path / "qupath")
    assert [path.name for path in paths] == ["core1_image.geojson", "core2_image.geojson"]
    assert [classes_of(path) for path in paths] == [["T", None], ["B", "T"]]
    one = session.export_geojson(tmp_path / "one.geojson", image_key="core2_image")
    assert classes_of(one) == ["B", "T"]
    assert "onfidence" not in one.read_text()  # of something else by that name
    pd.testing.assert_frame_equal(session.table.obs, before)
    with pytest.raises(ValueError, match="Choose one"):
        session.export_geojson(tmp_path / "two.geojson")
    with pytest.raises(KeyError, match="Available"):
        session.export_geojson(tmp_path / "two.geojson", image_key="core9_image")


def test_a_spreadsheet_finds_no_formulas(tmp_path):
    names = ["=1+1", "+T", "-T", "@T", "T=1"]
    table = ad.AnnData(obs=pd.DataFrame(index=["=2+2", "b", "c", "d", "e"]))
    session = cy.label.Session(table, classes=names, log=tmp_path / "a", annotator="=cmd|' /C calc'!A0")
    for row, name in enumerate(names):
        session.assign([row], name)
    session.note(1, "\t=3+3")
    frame = pd.read_csv(session.export_csv(tmp_path / "a.csv"))
    assert frame["label"].tolist() == ["'=1+1", "'+T", "'-T", "'@T", "T=1"]
    assert (frame["cell"][0], frame["by"][0], frame["note"][1]) == ("'=2+2", "'=cmd|' /C calc'!A0", "'\t=3+3")
    raw = pd.read_csv(session.export_csv(tmp_path / "raw.csv", raw=True))
    assert raw["label"].tolist() == names
    assert raw["cell"][0] == "=2+2"


def test_files_have_what_others_stored(cores, tmp_path):
    a = cy.label.Session(cores, classes=["T"], log=tmp_path / "log", annotator="a")
    b = cy.label.Session(cores, log=tmp_path / "log", annotator="b")
    b.assign([0], "T")
    assert len(pd.read_csv(a.export_csv(tmp_path / "a.csv"))) == 1
    b.assign([1], "T")
    assert classes_of(a.export_geojson(tmp_path / "a.geojson", image_key="core1_image")) == ["T", "T"]


def test_names_of_files():
    assert export._file_names(["a/b", "a:b", "é 1", ""]) == ["a_b_1", "a_b_2", "é_1", "tissue"]


def test_colours_and_labels_of_masks_are_of_one_moment(cores, tmp_path, monkeypatch):
    session = cy.label.Session(cores, classes=["T"], log=tmp_path / "log", annotator="m")
    real, got = export._colors, []

    def meanwhile(told):
        other = threading.Thread(target=lambda: got.append(told.lock.acquire(blocking=False)))
        other.start()
        other.join()
        return real(told)

    monkeypatch.setattr(export, "_colors", meanwhile)
    assert len(session.export_masks(tmp_path / "masks")) == 2
    assert got == [False]  # nobody makes a class in between
