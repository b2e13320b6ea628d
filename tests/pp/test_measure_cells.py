"""measure_cells against scikit-image and a slow disc."""

from __future__ import annotations

import logging
import re

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops_table
from spatialdata import read_zarr
from spatialdata.models import TableModel

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.pp import _measure_cells
from cytonym.pp._intensities import STATISTICS, cell_intensities

IDS = [3, 4, 9, 17, 250, 70000]  # gaps, beyond 16 bit


def field(seed=0, shape=(61, 47), chunks=None, dtype="uint16", pixel_size=None):
    """Ragged cells, two of them cut by the border, in two channels."""
    rng = np.random.default_rng(seed)
    points = np.vstack([[0, 5], [shape[0] - 1, 30], rng.uniform(5, 40, (len(IDS) - 2, 2))])
    y, x = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(y - points[:, 0, None, None], x - points[:, 1, None, None]) + rng.uniform(0, 1, shape)
    labels = np.where(distance.min(0) < 7, np.array(IDS)[distance.argmin(0)], 0).astype("int32")
    image = rng.poisson(20, (2, *shape)).astype(dtype)
    pixels = image if chunks is None else da.from_array(image, chunks=chunks)
    mask = labels if chunks is None else da.from_array(labels, chunks=chunks[1:])
    return cy.io.from_arrays(pixels, mask, channels=["DNA", "CD8"], pixel_size=pixel_size), image, labels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_equals_scikit_image(dtype):
    sdata, image, labels = field(dtype=dtype, pixel_size=0.5)
    assert cy.pp.measure_cells(sdata, statistic=STATISTICS) is None
    properties = ["label", "area", "intensity_mean", "intensity_max", "intensity_std"]
    truth = regionprops_table(labels, np.moveaxis(image, 0, -1), properties=properties)
    table = sdata["table"]
    assert table.obs["instance_id"].tolist() == truth["label"].tolist()
    assert table.obs["area"].tolist() == truth["area"].tolist()
    assert table.obs["area_um2"].tolist() == (truth["area"] / 4).tolist()
    assert list(table.var_names) == ["DNA", "CD8"]
    assert table.X.dtype == np.float32
    for i in range(2):
        np.testing.assert_allclose(table.X[:, i], truth[f"intensity_mean-{i}"], rtol=1e-6)
        np.testing.assert_allclose(table.layers["max"][:, i], truth[f"intensity_max-{i}"], rtol=1e-6)
        np.testing.assert_allclose(table.layers["std"][:, i], truth[f"intensity_std-{i}"], rtol=1e-5)
        np.testing.assert_allclose(table.layers["sum"][:, i], truth[f"intensity_mean-{i}"] * truth["area"], rtol=1e-6)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 100), st.integers(5, 61), st.integers(5, 47), st.booleans())
def test_chunks_do_not_matter(seed, h, w, disc):
    sdata, _, _ = field(seed)
    chunked, _, _ = field(seed, chunks=(1, h, w))
    results = []
    for data in (sdata, chunked):
        [source] = resolve(data)
        if disc:
            object.__setattr__(source, "labels", None)
        results.append(cell_intensities(source, STATISTICS, radius_px=3.7, tile_px=1))
    (a, area_a), (b, area_b) = results
    np.testing.assert_array_equal(area_a, area_b)
    for name in STATISTICS:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=1e-9)


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(st.integers(-24, 264), st.integers(-24, 184)), min_size=1, max_size=6, unique=True),
    st.integers(7, 48),
)
def test_disc_equals_a_slow_version(eighths, radius):
    points, radius = [(x / 8, y / 8) for x, y in eighths], radius / 8
    rng = np.random.default_rng(0)
    image = rng.poisson(9, (2, 20, 30)).astype("float32")
    sdata = cy.io.from_arrays(image, channels=["a", "b"], centers=np.array(points))
    measured, area = cell_intensities(resolve(sdata)[0], ["mean", "max"], radius_px=radius)
    y, x = np.mgrid[:20, :30] + 0.5
    for i, (px, py) in enumerate(points):
        inside = ((y - py) ** 2 + (x - px) ** 2 <= radius**2) & (0 <= px < 30) & (0 <= py < 20)
        assert area[i] == inside.sum()
        if inside.any():
            np.testing.assert_allclose(measured["mean"][i], image[:, inside].mean(1), rtol=1e-6)
            np.testing.assert_allclose(measured["max"][i], image[:, inside].max(1))
        else:
            assert np.isnan(measured["mean"][i]).all()


def test_discs_have_documented_sizes():
    image = np.ones((1, 60, 60))
    sdata = cy.io.from_arrays(image, channels=["a"], centers=[[30.5, 30.5]])
    cy.pp.measure_cells(sdata)
    assert sdata["table"].obs["area"].tolist() == [69.0]  # of diameter 9
    assert sdata["table"].uns["measure_cells"]["params"]["over"] == {"centers": "disc of 9 px"}
    cy.pp.measure_cells(sdata, diameter_px=3)
    assert sdata["table"].obs["area"].tolist() == [9.0]
    sdata = cy.io.from_arrays(image, channels=["a"], centers=[[30.5, 30.5]], pixel_size=0.5)
    cy.pp.measure_cells(sdata)
    assert sdata["table"].uns["measure_cells"]["params"]["over"] == {"centers": "disc of 16 px"}
    outside = cy.io.from_arrays(image, channels=["a"], centers=[[30.5, 30.5], [70, 3]])
    with pytest.warns(UserWarning, match="1 cells have no pixel in their image"):
        cy.pp.measure_cells(outside)
    assert np.isnan(outside["table"].X[1, 0])


def test_table_without_variables_keeps_its_rows_and_survives_the_disk(tmp_path):
    sdata, _, _ = field()
    table = sdata["table"]
    table.obs["label"] = pd.Categorical(list("aabbcc"))
    table.obsm["X_nextmarker"] = np.arange(12.0).reshape(6, 2)
    table.uns["note"] = {"by": "someone"}
    cy.pp.measure_cells(sdata)
    measured = sdata["table"]
    assert measured.obs["label"].tolist() == list("aabbcc")
    np.testing.assert_array_equal(measured.obsm["X_nextmarker"], table.obsm["X_nextmarker"])
    np.testing.assert_array_equal(measured.obsm["spatial"], table.obsm["spatial"])
    assert measured.uns["note"] == {"by": "someone"}
    sdata.write(tmp_path / "store.zarr")
    again = read_zarr(tmp_path / "store.zarr")
    np.testing.assert_array_equal(again["table"].X, measured.X)
    assert [str(m) for m in again["table"].uns["measure_cells"]["params"]["channels"]] == ["DNA", "CD8"]
    cy.pp.measure_cells(again, statistic="max")
    np.testing.assert_array_equal(again["table"].X, measured.X)
    assert again["table"].layers["max"].shape == (6, 2)


def test_foreign_table_is_annotated_not_replaced(caplog):
    sdata, image, labels = field()
    del sdata.tables["table"]
    obs = pd.DataFrame(
        {"area_of": pd.Categorical(["elsewhere"] + ["cells"] * 3), "cell": [1, 250, 3, 9]}, index=list("wxyz")
    )
    foreign = ad.AnnData(np.ones((4, 3), "f4"), obs=obs, var=pd.DataFrame(index=["g1", "g2", "g3"]))
    sdata.tables["table"] = TableModel.parse(
        foreign, region=["elsewhere", "cells"], region_key="area_of", instance_key="cell"
    )
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.pp.measure_cells(sdata, labels_key="cells")
    table = sdata["table"]
    assert table is sdata.tables["table"]
    assert (table.X == 1).all()
    frame = table.obsm["mean_intensity"]
    assert list(frame.columns) == ["DNA", "CD8"]
    assert list(frame.index) == list("wxyz")
    assert frame.iloc[0].isna().all()
    for row, cell in zip("xyz", (250, 3, 9), strict=True):
        np.testing.assert_allclose(frame.loc[row], image[:, labels == cell].mean(1), rtol=1e-6)
    assert "its X stays" in caplog.text


def test_not_in_place():
    sdata, _, _ = field()
    table = cy.pp.measure_cells(sdata, inplace=False)
    assert table is not None
    assert table.shape == (6, 2)
    assert sdata["table"].shape == (6, 0)
    assert "area" not in sdata["table"].obs


def test_a_copy_shares_nothing():
    sdata, _, _ = field()
    old = sdata["table"]
    old.obsm["X_pca"], old.uns["colors"] = np.zeros((6, 2)), {"type": ["red"]}
    copy = cy.pp.measure_cells(sdata, inplace=False)
    assert copy is not None
    copy.obsm["X_pca"][:], copy.obsm["spatial"][:] = 1, -1
    copy.uns["colors"]["type"].append("blue")
    copy.uns["spatialdata_attrs"]["region"] = "other"
    assert (old.obsm["X_pca"] == 0).all()
    assert (old.obsm["spatial"] >= 0).all()
    assert old.uns["colors"] == {"type": ["red"]}
    assert old.uns["spatialdata_attrs"]["region"] != "other"


def test_a_table_that_cannot_be_stored_is_not_lost(monkeypatch):
    sdata, _, _ = field()
    monkeypatch.setattr(_measure_cells, "cell_intensities", None)  # refused before the work
    table = sdata["table"]
    table.obs["Nucleus: Area"] = 3.0
    with pytest.raises(ValueError, match="Nucleus: Area"):
        cy.pp.measure_cells(sdata)
    assert sdata["table"] is table


def test_cells_of_a_later_call_get_their_places():
    sdata = cy.io.from_arrays(np.ones((1, 20, 20)), channels=["a"], centers=[[9, 9]], name="one")
    other = cy.io.from_arrays(np.ones((1, 20, 20)), channels=["a"], centers=[[4, 5]], name="two")
    sdata.images["two_image"], sdata.shapes["two_centers"] = other["two_image"], other["two_centers"]
    del sdata.tables["table"]
    cy.pp.measure_cells(sdata)
    places = sdata["table"].obsm.pop("spatial")
    for name in ("one", "two"):
        cy.pp.measure_cells(sdata, image_key=f"{name}_image", shapes_key=f"{name}_centers")
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], places)
    assert not np.isnan(places).any()


def test_images_one_after_the_other_and_of_different_panels():
    sdata = cy.io.from_arrays(np.full((2, 20, 20), 2.0), channels=["a", "b"], centers=[[9, 9]], name="one")
    other = cy.io.from_arrays(np.full((2, 20, 20), 3.0), channels=["c", "a"], centers=[[9, 9], [4, 4]], name="two")
    sdata.images["two_image"], sdata.shapes["two_centers"] = other["two_image"], other["two_centers"]
    del sdata.tables["table"]
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    assert list(table.var_names) == ["a", "b", "c"]
    np.testing.assert_array_equal(table.X, [[2, 2, np.nan], [3, np.nan, 3], [3, np.nan, 3]])
    sdata.images["two_image"].data = sdata.images["two_image"].data * 5
    cy.pp.measure_cells(sdata, image_key="two_image", shapes_key="two_centers")
    np.testing.assert_array_equal(sdata["table"].X, [[2, 2, np.nan], [15, np.nan, 15], [15, np.nan, 15]])
    assert sdata["table"].obs["area"].notna().all()


def test_errors():
    sdata, image, labels = field()
    with pytest.raises(
        ValueError, match=re.escape("`statistic` must be of ['mean', 'sum', 'max', 'std'], got 'median'")
    ):
        cy.pp.measure_cells(sdata, statistic="median")
    with pytest.raises(KeyError, match="No channel .*CD4"):
        cy.pp.measure_cells(sdata, channels=["CD4"])
    with pytest.raises(ValueError, match="`diameter_px` must be positive, got 0"):
        cy.pp.measure_cells(sdata, diameter_px=0)
    dots = cy.io.from_arrays(image, channels=["a", "b"], centers=[[9, 9]])
    with pytest.raises(ValueError, match="pixel size of image 'image' is unknown"):
        cy.pp.measure_cells(dots, diameter_um=8)
    bad = image.astype(float)
    bad[1, labels == 9] = np.nan
    holes = cy.io.from_arrays(bad, labels, channels=["DNA", "CD8"])
    with pytest.raises(ValueError, match="Channel 'CD8' of image 'image' has NaN or infinite pixels inside cells"):
        cy.pp.measure_cells(holes)
    assert holes["table"].n_vars == 0
    bad[1] = image[1]
    bad[1, labels == 0] = np.nan  # outside cells: no harm
    cy.pp.measure_cells(cy.io.from_arrays(bad, labels, channels=["DNA", "CD8"]))


@pytest.mark.real_data
def test_real_field_equals_the_authors_areas(real_data):
    sdata = cy.io.read_tiffs(real_data("mibi_breast_fov8"))
    cy.pp.measure_cells(sdata, channels=["HH3"])
    [source] = resolve(sdata)
    assert source.labels is not None
    areas = np.unique(source.labels.read(0, 1024, 0, 1024), return_counts=True)[1][1:]
    assert sdata["table"].obs["area"].tolist() == areas.tolist()
    assert sdata["table"].shape == (395, 1)
