"""Results go on in scanpy and squidpy unchanged, and survive the disk."""

from __future__ import annotations

import warnings

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from spatialdata.models import Image2DModel, Labels2DModel

import cytonym as cy

mpl.use("Agg")
torch.set_num_threads(1)
ATTRIBUTIONS = "nextmarker_attributions"

with warnings.catch_warnings():  # what these packages warn of on import is not ours
    warnings.simplefilter("ignore")
    import scanpy as sc
    import squidpy as sq

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:umap.*"),  # n_jobs is 1 where a seed is given
]


@pytest.fixture(scope="module")
def sdata() -> sd.SpatialData:
    """Forty-nine cells of two kinds, embedded and clustered."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:84, :84]
    image, labels = np.full((3, 84, 84), 0.2), np.zeros((84, 84), np.int32)
    for i in range(49):
        disc = (yy - 12 * (i // 7) - 6) ** 2 + (xx - 12 * (i % 7) - 6) ** 2 <= 16
        labels[disc] = i + 1
        image[0][disc] += 40
        image[1 + i % 2][disc] += 20
    pixels = rng.poisson(image).astype(np.uint16)
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"])},
        labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))},
    )
    cy.tl.embed_cells(sdata, steps=3, batch_size=16)
    cy.tl.cluster_cells(sdata["table"], use_rep="X_nextmarker", n_neighbors=8, resolution=0.3, min_cluster_size=2)
    return sdata


@pytest.fixture
def adata(sdata) -> ad.AnnData:
    return sdata["table"].copy()


def test_neighbors_umap_and_figures(adata):
    sc.pp.neighbors(adata, use_rep="X_nextmarker", n_neighbors=8)
    sc.tl.umap(adata, maxiter=5)
    markers = cy.get.markers(adata, ATTRIBUTIONS)
    assert "X_umap" in markers.obsm
    sc.pl.umap(markers, color=["phenograph", "CD3", "CD20"], show=False)
    sc.pl.dotplot(markers, ["CD3", "CD20"], groupby="phenograph", show=False)
    sc.pl.matrixplot(markers, ["CD3", "CD20"], groupby="phenograph", show=False)
    plt.close("all")
    cy.pl.agreement(adata, "phenograph", "phenograph")


def test_rank_genes_groups_agrees_with_rank_markers(adata):
    markers = cy.get.markers(adata, ATTRIBUTIONS)
    sc.tl.rank_genes_groups(markers, "phenograph", method="t-test")
    ours = cy.tl.rank_markers(adata, "phenograph")
    for group in adata.obs["phenograph"].cat.categories:
        theirs = sc.get.rank_genes_groups_df(markers, group)
        assert theirs["names"].iloc[0] == ours[ours["group"] == group]["marker"].iloc[0]


def test_squidpy_neighbourhoods(adata):
    sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=4)
    sq.gr.nhood_enrichment(adata, "phenograph", n_perms=5, show_progress_bar=False, seed=0)
    n = len(adata.obs["phenograph"].cat.categories)
    assert adata.uns["phenograph_nhood_enrichment"]["zscore"].shape == (n, n)


def test_results_survive_the_disk(sdata, tmp_path):
    table = sdata["table"]
    sdata.write(tmp_path / "tissue.zarr")
    table.write_h5ad(tmp_path / "table.h5ad")
    for back in (sd.read_zarr(tmp_path / "tissue.zarr")["table"], ad.read_h5ad(tmp_path / "table.h5ad")):
        for key in ("X_nextmarker", "nextmarker_features", "spatial"):
            np.testing.assert_array_equal(back.obsm[key], table.obsm[key])
        pd.testing.assert_frame_equal(back.obsm[ATTRIBUTIONS], table.obsm[ATTRIBUTIONS], check_names=False)
        assert back.obs["phenograph"].tolist() == table.obs["phenograph"].tolist()
        assert [str(m) for m in back.uns["nextmarker"]["model"]["markers"]] == ["DNA", "CD3", "CD20"]
        assert back.uns["phenograph"]["params"]["seed"] == 0
        normalization = back.uns["nextmarker"]["normalization"]
        assert normalization["marker"].tolist() == ["DNA", "CD3", "CD20"]
        np.testing.assert_allclose(normalization["center"], table.uns["nextmarker"]["normalization"]["center"])
        cy.tl.rank_markers(back, "phenograph")
        cy.pl.markers(back, "phenograph")
