"""get.markers: another shape of the same table."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import cytonym as cy
from cytonym.get import labels_of


@pytest.fixture
def adata() -> ad.AnnData:
    names = [f"cell{i}" for i in range(6)]
    values = np.arange(18, dtype="f4").reshape(6, 3)
    table = ad.AnnData(
        np.ones((6, 2), "f4"), obs=pd.DataFrame({"phenograph": pd.Categorical(list("001122"))}, index=names)
    )
    table.obsm["nextmarker_attributions"] = pd.DataFrame(values, index=names, columns=["CD8", "CD20", "CD3"])
    table.obsm["X_umap"] = np.zeros((6, 2))
    table.uns["phenograph_colors"] = ["#000000", "#111111", "#222222"]
    return table


def test_markers_become_variables(adata):
    view = cy.get.markers(adata, "nextmarker_attributions")
    assert list(view.var_names) == ["CD8", "CD20", "CD3"]
    assert view.X.dtype == np.float32
    np.testing.assert_array_equal(view.X, adata.obsm["nextmarker_attributions"].to_numpy())
    assert list(view.obs_names) == list(adata.obs_names)
    assert list(view.obs["phenograph"]) == list(adata.obs["phenograph"])
    assert "X_umap" in view.obsm
    assert list(view.uns["phenograph_colors"]) == adata.uns["phenograph_colors"]


def test_writing_to_the_view_leaves_the_table_alone(adata):
    view = cy.get.markers(adata)
    view.obs["new"] = 1
    view.obsm["X_new"] = np.zeros((6, 1))
    view.uns["new"] = 1
    view.X[:] = -1
    assert "new" not in adata.obs
    assert "X_new" not in adata.obsm
    assert "new" not in adata.uns
    assert adata.obsm["nextmarker_attributions"].to_numpy().min() == 0


def test_nothing_is_shared_with_the_table(adata):
    adata.uns["phenograph"] = {"params": {"k": 30}}
    view = cy.get.markers(adata)
    view.obsm["X_umap"][:] = 1
    view.obsm["nextmarker_attributions"].iloc[0] = -1
    view.obs.loc["cell0", "phenograph"] = "2"
    view.uns["phenograph"]["params"]["k"] = 5
    assert (adata.obsm["X_umap"] == 0).all()
    assert adata.obsm["nextmarker_attributions"].to_numpy().min() == 0
    assert adata.obs["phenograph"].tolist() == list("001122")
    assert adata.uns["phenograph"] == {"params": {"k": 30}}


def test_key_may_be_left_out_only_when_unique(adata):
    assert cy.get.markers(adata).n_vars == 3
    adata.obsm["nimbus_positivity"] = adata.obsm["nextmarker_attributions"] * 0
    with pytest.raises(ValueError, match=re.escape("several: ['nextmarker_attributions', 'nimbus_positivity']")):
        cy.get.markers(adata)
    del adata.obsm["nimbus_positivity"], adata.obsm["nextmarker_attributions"]
    with pytest.raises(ValueError, match="has none"):
        cy.get.markers(adata)


def test_wrong_keys_are_named(adata):
    with pytest.raises(KeyError, match=r"No 'nope' in .*nextmarker_attributions"):
        cy.get.markers(adata, "nope")
    with pytest.raises(TypeError, match="without marker names"):
        cy.get.markers(adata, "X_umap")
    adata.obsm["nextmarker_attributions"]["note"] = "x"
    with pytest.raises(TypeError, match=re.escape("not numbers: ['note']")):
        cy.get.markers(adata)


def test_columns_called_like_a_marker_are_left_out(caplog):
    """Scanpy could not tell them apart."""
    adata = ad.AnnData(obs=pd.DataFrame({"CD8": [7.0, 8.0], "type": ["T", "B"]}, index=["a", "b"]))
    adata.obsm["scores"] = pd.DataFrame({"CD8": [0.0, 2.0], "CD20": [1.0, 0.0]}, index=["a", "b"])
    with caplog.at_level("INFO", logger="cytonym"):
        found = cy.get.markers(adata)
    assert list(found.obs) == ["type"]
    assert sc.get.obs_df(found, ["CD8", "type"])["CD8"].tolist() == [0.0, 2.0]
    assert "called like markers are left out of the result: ['CD8']" in caplog.text
    assert list(adata.obs) == ["CD8", "type"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([4.0, np.nan, 10.0], ["4", "10"]), ([4.0, 5.0, np.nan], ["4", "5"]), ([4.5, np.nan, 10.0], ["4.5", "10.0"])],
)
def test_whole_numbers_beside_missing_ones_are_labels_of_integers(values, expected):
    adata = ad.AnnData(obs=pd.DataFrame({"cluster": values}, index=list("abc")))
    found = labels_of(adata, "cluster")
    assert list(found.cat.categories) == expected
    assert found.isna().tolist() == np.isnan(values).tolist()
