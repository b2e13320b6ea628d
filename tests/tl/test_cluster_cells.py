"""cluster_cells: the same clusters for the same seed, whatever the order of the rows."""

from __future__ import annotations

import random
import re
import sys
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import cytonym as cy


def groups(sizes=(120, 80, 50), spread=1.0, seed=0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.normal(scale=spread, size=(len(truth), 6)) + 8 * np.eye(len(sizes), 6)[truth]
    adata = ad.AnnData(np.zeros((len(truth), 1), "f4"), obs=pd.DataFrame(index=[f"c{i}" for i in range(len(truth))]))
    adata.obs["truth"] = truth
    adata.obsm["X_nextmarker"] = points.astype("f4")
    return adata


@pytest.mark.parametrize("method", ["phenograph", "leiden"])
def test_finds_the_groups_and_names_them_by_size(method):
    adata = groups()
    assert cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, resolution=0.3) is None
    found = adata.obs[method]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert list(found.cat.categories) == ["0", "1", "2"]
    assert found.astype(int).tolist() == adata.obs["truth"].tolist()
    assert adata.uns[method]["params"] == {
        "use_rep": "X_nextmarker",
        "method": method,
        "n_neighbors": {"phenograph": 30, "leiden": 15}[method],
        "resolution": 0.3,
        "min_cluster_size": 10,
        "metric": "euclidean",
        "seed": 0,
    }


@pytest.mark.parametrize("method", ["phenograph", "leiden"])
def test_same_seed_same_clusters_and_row_order_is_nothing(method):
    adata = groups(spread=5.0)  # a cloud: partitions are not clear-cut
    state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, n_neighbors=15, rng=3, copy=True)
    again = cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, n_neighbors=15, rng=3, copy=True)
    assert "phenograph" not in adata.obs
    assert first.obs[method].tolist() == again.obs[method].tolist()
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    cy.tl.cluster_cells(shuffled, use_rep="X_nextmarker", method=method, n_neighbors=15, rng=3)
    assert shuffled.obs[method].reindex(adata.obs_names).tolist() == first.obs[method].tolist()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert random.getstate() == python_state


def test_equals_the_phenograph_package(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # phenograph 1.5.7 imports from a module that scipy has deprecated
        phenograph = pytest.importorskip("phenograph")
        from phenograph.core import find_neighbors, jaccard_kernel, neighbor_graph

        adata = groups(spread=3.0)
        adata = adata[np.lexsort(adata.obsm["X_nextmarker"].T[::-1])].copy()  # the verb's own order
        points = adata.obsm["X_nextmarker"]
        theirs, _, _ = phenograph.cluster(points, clustering_algo="leiden", k=20, seed=5, n_jobs=1)
        _, idx = find_neighbors(points, k=20, n_jobs=1, method="kdtree", metric="euclidean")
        graph = neighbor_graph(jaccard_kernel, {"idx": idx}).tocsr()
    from cytonym.tl import _cluster_cells as module

    mine = module._jaccard_graph(module._nearest(points, 20, "euclidean", 0))
    np.testing.assert_allclose((mine + mine.T).toarray(), ((graph + graph.T) / 2).toarray(), atol=1e-6)
    capfd.readouterr()
    cy.tl.cluster_cells(adata, use_rep="X_nextmarker", n_neighbors=20, rng=5)
    assert capfd.readouterr() == ("", "")
    assert adjusted_rand_score(theirs, adata.obs["phenograph"].astype(int)) == 1.0
    assert not list(tmp_path.iterdir())


def test_approximate_neighbours_leave_the_cell_itself_out(monkeypatch):
    """The search of pynndescent is replaced by an exact one (it compiles for half a minute) that has its habits."""
    from cytonym.tl import _cluster_cells as module

    class Search:
        def __init__(self, data, n_neighbors, metric, random_state):
            near = NearestNeighbors(n_neighbors=n_neighbors).fit(data).kneighbors(data)
            self.neighbor_graph = near[1].copy(), near[0]
            missed = near[1][::7]  # now and then a cell is not among its own neighbours
            missed[:, 0] = (missed[:, 0] + 3) % len(data)
            self.neighbor_graph[0][::7] = missed

    points = groups(spread=3.0).obsm["X_nextmarker"]
    exact = module._nearest(points, 10, "euclidean", 0)
    monkeypatch.setattr(module, "EXACT_LIMIT", 100)
    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Search))
    near = module._nearest(points, 10, "euclidean", 0)
    assert near.shape == exact.shape
    assert not (near == np.arange(len(points))[:, None]).any()
    ordinary = np.arange(len(points)) % 7 > 0
    np.testing.assert_array_equal(near[ordinary], exact[ordinary])
    np.testing.assert_array_equal(near[~ordinary, 1:], exact[~ordinary, :9])


@pytest.mark.parametrize("method", ["phenograph", "leiden"])
def test_number_of_workers_does_not_matter(method):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 40)) + rng.normal(scale=1.5, size=(4, 40)).repeat(100, axis=0)
    adata = ad.AnnData(np.zeros((400, 1)), obsm={"X_nextmarker": points})
    found = []
    for workers in (1, 2):
        with threadpool_limits(workers), parallel_config(n_jobs=workers):
            cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, rng=4)
        found.append(adata.obs[method].tolist())
    assert len(set(found[0])) > 1
    assert found[0] == found[1]


def test_cells_without_numbers_get_no_cluster():
    adata = groups()
    adata.obsm["X_nextmarker"][[3, 7]] = np.nan
    with pytest.warns(UserWarning, match=re.escape("2 of 250 cells have a NaN in 'X_nextmarker'")):
        cy.tl.cluster_cells(adata, use_rep="X_nextmarker", key_added="mine")
    assert np.flatnonzero(adata.obs["mine"].isna()).tolist() == [3, 7]
    assert adata.obs["mine"].notna().sum() == 248


def test_small_clusters_and_frames():
    adata = groups(sizes=(60, 40, 8))
    adata.obsm["frame"] = pd.DataFrame(adata.obsm["X_nextmarker"], index=adata.obs_names)
    cy.tl.cluster_cells(adata, use_rep="frame", n_neighbors=7, resolution=0.05)
    assert list(adata.obs["phenograph"].cat.categories) == ["0", "1", "-1"]
    assert set(adata.obs["phenograph"][-8:]) == {"-1"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_rep": "X_pca"}, KeyError, "No 'X_pca' in `adata.obsm`. Available: ['X_nextmarker'], or 'X'."),
        ({"method": "kmeans"}, ValueError, "Unknown method 'kmeans'. Available: ['leiden', 'phenograph']."),
        ({"metric": "jaccard"}, ValueError, "Unknown metric 'jaccard'"),
        ({"resolution": 0}, ValueError, "`resolution` must be above 0, got 0"),
        ({}, ValueError, "Cannot take 30 neighbours of each of 20 cells with numbers in 'X_nextmarker'"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors` must be at least 1 and below 20"),
        ({"n_neighbors": 5, "rng": "x"}, TypeError, "`rng` must be a seed (int), a numpy Generator or None, got str"),
        ({"n_neighbors": 5, "rng": -1}, ValueError, "`rng` must be a seed of at least 0"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cy.tl.cluster_cells(groups(sizes=(12, 8)), **{"use_rep": "X_nextmarker", **arguments})
