"""Downloads of the page: something for every kind of session."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import spatialdata as sd

import cytonym as cy
from cytonym.label.downloads import Downloads


def tissue(names: list[str]) -> sd.SpatialData:
    mask = np.zeros((40, 40), np.int32)
    mask[4:12, 4:12], mask[20:28, 4:12] = 1, 2
    parts = [cy.io.from_arrays(np.ones((2, 40, 40)), mask, channels=["DNA", "CD8"], name=name) for name in names]
    images = {name: image for part in parts for name, image in part.images.items()}
    labels = {name: cells for part in parts for name, cells in part.labels.items()}
    return sd.SpatialData(images=images, labels=labels)


@pytest.mark.parametrize("names", [["core1"], ["core1", "core2"]])
def test_the_cells_of_every_image_for_qupath(tmp_path, names):
    session = cy.label.Session(tissue(names), classes=["T"], log=tmp_path / "log", annotator="m")
    cy.label.Session(tissue(names), log=tmp_path / "log", annotator="other").assign([0, session.n - 1], "T")
    told, [content] = Downloads(session).make("geojson")
    if len(names) == 1:
        assert told["name"].endswith(".geojson")
        files = [content]
    else:
        assert told["name"].endswith(".zip")
        archive = zipfile.ZipFile(io.BytesIO(content))
        assert [name.rpartition("/")[2] for name in archive.namelist()] == [f"{n}_image.geojson" for n in names]
        files = [archive.read(name) for name in archive.namelist()]
    features = [feature for file in files for feature in json.loads(file)["features"]]
    assert len(features) == session.n
    assert sum("classification" in feature["properties"] for feature in features) == 2
