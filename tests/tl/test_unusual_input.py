"""Input that is unusual but right: full range, borders, gaps, empty labels, odd names."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel

import cytonym as cy

torch.set_num_threads(1)
ODD = ["DNA", "HLA-DR/DP (β)", "CD3/CD28"]


@pytest.fixture(scope="module")
def model():
    return cy.models.NeXtMarker.from_statistics(["DNA", "CD3", "CD20"], [40.0, 20.0, 20.0], seed=0).eval()


def replaced(sdata, image=None, labels=None, channels=("DNA", "CD3", "CD20")) -> SpatialData:
    if image is not None:
        sdata.images["image"] = Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=list(channels))
    if labels is not None:
        sdata.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"))
    return sdata


def test_sixteen_bits_to_the_brim(tissue):
    sdata = tissue()
    image = np.asarray(sdata["image"]).astype("f8")
    scaled = (image / image.max((1, 2), keepdims=True) * 65535).round().astype("uint16")
    assert scaled.max() == 65535
    cy.tl.embed_cells(replaced(sdata, scaled), steps=3, batch_size=16)
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    assert np.isfinite(table.obsm["X_nextmarker"]).all()
    assert table.to_df().max().max() > 30_000  # sums of 16 bits did not wrap around
    positive = (np.arange(25) % 2 == 0, np.arange(25) % 2 == 1)  # cells of CD3, of CD20
    attributions = table.obsm["nextmarker_attributions"]
    for marker, own in zip(("CD3", "CD20"), positive, strict=True):
        assert attributions[marker][own].mean() > attributions[marker][~own].mean()


@pytest.mark.parametrize("kind", ["labels", "shapes"])
def test_cells_at_the_border(tissue, model, kind):
    sdata = tissue()
    corners = np.array([[0.5, 0.5], [59.5, 0.5], [0.5, 59.5], [59.5, 59.5], [0.0, 30.0], [59.999, 30.0]])
    if kind == "labels":
        labels = np.zeros((60, 60), "int32")
        labels[[0, 0, -1, -1], [0, -1, 0, -1]] = [1, 2, 3, 4]
        replaced(sdata, labels=labels)
        n = 4
    else:
        sdata = SpatialData(images=dict(sdata.images))
        sdata.shapes["centers"] = ShapesModel.parse(corners, geometry=0, radius=3)
        n = 6
    cy.tl.embed_cells(sdata, model)
    assert sdata["table"].obsm["X_nextmarker"].shape[0] == n
    assert np.isfinite(sdata["table"].obsm["X_nextmarker"]).all()


def test_cells_beyond_the_border_get_nan(tissue, model):
    sdata = SpatialData(images=dict(tissue().images))
    sdata.shapes["centers"] = ShapesModel.parse(np.array([[-0.001, 5], [60, 5], [5, 60], [5, 5]]), geometry=0, radius=3)
    with pytest.warns(UserWarning, match="3 of 4 cells have their centre outside their image: they get NaN"):
        cy.tl.embed_cells(sdata, model)
    table = sdata["table"]
    assert np.isnan(table.obsm["X_nextmarker"]).all(1).tolist() == [True, True, True, False]
    assert table.obsm["nextmarker_attributions"].isna().all(axis=1).tolist() == [True, True, True, False]


def test_ids_with_gaps_and_of_any_type(tissue, model):
    sdata = tissue()
    expected = cy.tl.embed_cells(sdata, model, inplace=False).obsm["X_nextmarker"]
    old = np.asarray(sdata["cells"])
    ids = np.sort(np.random.default_rng(0).choice(60_000, 25, replace=False)) + 5000
    for dtype in ("uint16", "int32", "uint32", "int64"):
        sdata = replaced(tissue(), labels=np.concatenate([[0], ids]).astype(dtype)[old])
        cy.tl.embed_cells(sdata, model)
        assert sdata["table"].obs["instance_id"].tolist() == ids.tolist()
        np.testing.assert_array_equal(sdata["table"].obsm["X_nextmarker"], expected)


def test_one_empty_image_among_others_is_named(tissue, model):
    sdata, other = tissue(names=("a_image", "a_cells")), tissue(names=("b_image", "b_cells"))
    sdata["b_image"] = other["b_image"]
    sdata["b_cells"] = Labels2DModel.parse(np.zeros((60, 60), "int32"), dims=("y", "x"))
    with pytest.raises(ValueError, match="No cells: labels element 'b_cells' of image 'b_image' is empty"):
        cy.tl.embed_cells(sdata, model)


@pytest.mark.parametrize("how", ["zarr", "save_table", "h5ad"])
def test_markers_with_a_slash_survive_the_disk(tissue, tmp_path, how):
    """A column called "CD3/CD28" would be a folder in a folder: it is stored under another name and read under its own."""
    sdata = tissue(markers=ODD)
    model = cy.models.NeXtMarker.from_statistics(ODD, [40.0, 20.0, 20.0], seed=0).eval()
    if how == "save_table":
        sdata.write(tmp_path / "tissue.zarr")
    cy.pp.measure_cells(sdata)
    cy.tl.embed_cells(sdata, model)
    cy.tl.explain_cells(sdata, model, method="occlusion")
    table = sdata["table"]
    assert list(table.obsm["nextmarker_attributions"].columns) == ["DNA", "HLA-DR_DP (β)", "CD3_CD28"]
    before = {key: cy.get.markers(table, key).to_df() for key in ("nextmarker_attributions", "nextmarker_occlusion")}
    assert list(before["nextmarker_occlusion"].columns) == ODD
    if how == "h5ad":
        table.write_h5ad(tmp_path / "table.h5ad")
        back = ad.read_h5ad(tmp_path / "table.h5ad")
    elif how == "zarr":
        sdata.write(tmp_path / "tissue.zarr")
        back = sd.read_zarr(tmp_path / "tissue.zarr")["table"]
    else:
        cy.io.save_table(sdata)
        back = sd.read_zarr(tmp_path / "tissue.zarr")["table"]
    for key, frame in before.items():
        pd.testing.assert_frame_equal(cy.get.markers(back, key).to_df(), frame)
    assert list(back.var_names) == ODD
    assert back.uns["nextmarker"]["normalization"]["marker"].tolist() == ODD
    assert list(back.uns["nextmarker"]["model"]["markers"]) == ODD
    back.obs["group"] = pd.Categorical(["a", "b"] * 12 + ["a"])
    assert set(cy.tl.rank_markers(back, "group")["marker"]) == set(ODD)
    cy.pl.markers(back, "group", markers=["CD3/CD28"])
