"""get.markers: another shape of the same table."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cytonym as cy


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
