"""cluster_cells: the same clusters for the same seed, whatever the order of the rows."""

from __future__ import annotations

import random
import re
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from joblib import parallel_config
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import cytonym as cy


def groups(sizes=(120, 80, 50), spread=1.0, seed=0, width=6) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.normal(scale=spread, size=(len(truth), width)) + 8 * np.eye(len(sizes), width)[truth]
    adata = ad.AnnData(np.zeros((len(truth), 1), "f4"), obs=pd.DataFrame(index=[f"c{i}" for i in range(len(truth))]))
    adata.obs["truth"] = truth
    adata.obsm["X_nextmarker"] = points.astype("f4")
    return adata


GRAPHS = ["phenograph", "leiden"]
METHODS = [*GRAPHS, "som"]


def coarse(method: str) -> dict[str, Any]:
    """Parameters that find the groups."""
    return {"grid": (6, 5), "n_clusters": 3} if method == "som" else {"resolution": 0.3}


@pytest.mark.parametrize("method", METHODS)
def test_finds_the_groups_and_names_them_by_size(method):
    adata = groups(width=3)
    assert cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, **coarse(method)) is None
    found = adata.obs[method]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert list(found.cat.categories) == ["0", "1", "2"]
    assert found.astype(int).tolist() == adata.obs["truth"].tolist()
    if method == "som":
        own = {"n_clusters": 3, "grid": [6, 5]}
    else:
        k = {"phenograph": 30, "leiden": 15}[method]
        own = {"n_neighbors": k, "resolution": 0.3, "metric": "euclidean"}
    assert adata.uns[method]["params"] == {
        "use_rep": "X_nextmarker",
        "method": method,
        **own,
        "min_cluster_size": 10,
        "seed": 0,
    }
    assert ("som_node" in adata.obs) == (method == "som")


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_clusters_and_row_order_is_nothing(method):
    adata = groups(spread=5.0)  # a cloud: partitions are not clear-cut
    options = {"grid": (12, 12), "min_cluster_size": 0} if method == "som" else {"n_neighbors": 15}
    options |= {"use_rep": "X_nextmarker", "method": method}
    state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = cy.tl.cluster_cells(adata, **options, rng=3, copy=True)
    again = cy.tl.cluster_cells(adata, **options, rng=3, copy=True)
    assert method not in adata.obs
    assert first.obs[method].tolist() == again.obs[method].tolist()
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    cy.tl.cluster_cells(shuffled, **options, rng=3)
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


def test_row_order_is_nothing_where_many_columns_tie():
    scores = (np.random.default_rng(0).random((200, 12)) < np.repeat([[0.1], [0.6]], 6, axis=0).ravel()).astype("f4")
    scores[:, :8] = scores[:, :8].round() * (scores[:, :1] > 2)  # eight equal columns
    from cytonym.tl._cluster_cells import _own_order

    by_all = scores[np.lexsort(scores.T[::-1])]
    for seed in range(3):
        shuffled = scores[np.random.default_rng(seed).permutation(200)]
        np.testing.assert_array_equal(shuffled[_own_order(shuffled)], by_all)


@given(arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 11)), elements=st.sampled_from([0, 0.5, 1])))
def test_own_order_is_that_of_all_columns(values):
    from cytonym.tl._cluster_cells import _own_order

    order = _own_order(values)
    assert sorted(order) == list(range(len(values)))
    np.testing.assert_array_equal(values[order], values[np.lexsort(values.T[::-1])])


@pytest.mark.parametrize("method", METHODS)
def test_number_of_workers_does_not_matter(method):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 40)) + rng.normal(scale=1.5, size=(4, 40)).repeat(100, axis=0)
    adata = ad.AnnData(np.zeros((400, 1)), obsm={"X_nextmarker": points})
    found = []
    for workers in (1, 2):
        with threadpool_limits(workers), parallel_config(n_jobs=workers):
            cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, rng=4)
        found.append(adata.obs[method].tolist())  # 400 cells: as many as the map has nodes
    assert len(set(found[0])) > 1
    assert found[0] == found[1]


@pytest.mark.parametrize("method", METHODS)
def test_cells_without_numbers_get_no_cluster(method):
    adata = groups()
    adata.obsm["X_nextmarker"][[3, 7]] = np.nan
    with pytest.warns(UserWarning, match=re.escape("2 of 250 cells have a NaN in 'X_nextmarker'")):
        cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method=method, key_added="mine", **coarse(method))
    for column in ["mine", "mine_node"] if method == "som" else ["mine"]:
        assert np.flatnonzero(adata.obs[column].isna()).tolist() == [3, 7]
        assert adata.obs[column].notna().sum() == 248
    assert not {"som", "som_node"} & set(adata.obs)


@pytest.mark.parametrize("method", ["phenograph", "som"])
def test_small_clusters_and_frames(method):
    adata = groups(sizes=(60, 40, 8), width=3)
    adata.obsm["frame"] = pd.DataFrame(adata.obsm["X_nextmarker"], index=adata.obs_names)
    options = coarse("som") if method == "som" else {"n_neighbors": 7, "resolution": 0.05}
    cy.tl.cluster_cells(adata, use_rep="frame", method=method, **options)
    assert list(adata.obs[method].cat.categories) == ["0", "1", "-1"]
    assert set(adata.obs[method][-8:]) == {"-1"}


def test_nodes_of_a_map_do_not_outlive_it():
    adata = groups()
    cy.tl.cluster_cells(adata, use_rep="X_nextmarker", key_added="clusters", method="som", **coarse("som"))
    assert "clusters_node" in adata.obs
    adata.obs["som_node"] = "mine"
    cy.tl.cluster_cells(adata, use_rep="X_nextmarker", key_added="clusters", method="leiden", **coarse("leiden"))
    assert "clusters_node" not in adata.obs
    assert "som_node" in adata.obs


def test_nodes_of_the_map_can_be_merged_by_hand(tmp_path):
    adata = groups()
    cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method="som", grid=(7, 6))
    node, cluster = adata.obs["som_node"], adata.obs["som"]
    assert len(cluster.cat.categories) <= 20
    assert set(node.cat.categories) <= {str(i) for i in range(42)}
    assert list(node.cat.categories) == sorted(node.unique(), key=int)
    assert (adata.obs.groupby("som_node", observed=True)["som"].nunique() == 1).all()
    truth = adata.obs.groupby("som_node", observed=True)["truth"].first()
    assert adjusted_rand_score(node.map(truth), adata.obs["truth"]) == 1.0
    adata.write_h5ad(tmp_path / "table.h5ad")
    back = ad.read_h5ad(tmp_path / "table.h5ad")
    assert back.uns["som"]["params"]["grid"].tolist() == [7, 6]
    assert back.obs["som_node"].tolist() == node.tolist()


def test_a_map_with_more_nodes_than_cells_is_made_smaller():
    adata = groups(sizes=(30, 20, 10), width=3)
    with pytest.warns(UserWarning, match=re.escape("60 cells are fewer than the 400 nodes of the map: it has 7 x 8")):
        cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method="som", n_clusters=3, min_cluster_size=0)
    assert adata.uns["som"]["params"]["grid"] == [7, 8]
    assert adata.obs["som"].astype(int).tolist() == adata.obs["truth"].tolist()


def test_fewer_nodes_with_cells_than_clusters():
    adata = groups(sizes=(30, 20, 15))
    adata.obsm["X_nextmarker"] = np.eye(3, 6)[adata.obs["truth"]]  # three kinds of cells, all alike
    with pytest.warns(UserWarning, match="Only 3 nodes of the map have cells: each is a cluster, instead of 9"):
        cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method="som", grid=(6, 6), n_clusters=9)
    assert adata.obs["som"].astype(int).tolist() == adata.obs["truth"].tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_rep": "X_pca"}, KeyError, "No 'X_pca' in `adata.obsm`. Available: ['X_nextmarker'], or 'X'."),
        ({"method": "kmeans"}, ValueError, "Unknown method 'kmeans'. Available: ['leiden', 'phenograph', 'som']."),
        ({"metric": "jaccard"}, ValueError, "Unknown metric 'jaccard'"),
        ({"resolution": 0}, ValueError, "`resolution` must be above 0, got 0"),
        ({}, ValueError, "Cannot take 30 neighbours of each of 20 cells with numbers in 'X_nextmarker'"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors` must be at least 1 and below 20"),
        ({"n_neighbors": 5, "rng": "x"}, TypeError, "`rng` must be a seed (int), a numpy Generator or None, got str"),
        ({"n_neighbors": 5, "rng": -1}, ValueError, "`rng` must be a seed of at least 0"),
        (
            {"n_clusters": 5},
            ValueError,
            "['n_clusters'] are parameters of ['som'], not of 'phenograph': leave them out",
        ),
        ({"method": "leiden", "grid": (2, 2)}, ValueError, "It takes ['n_neighbors', 'resolution', 'metric']."),
        (
            {"method": "som", "n_neighbors": 5, "resolution": 1.0, "metric": "euclidean"},
            ValueError,
            "['n_neighbors', 'resolution', 'metric'] are parameters of ['leiden', 'phenograph'], not of 'som': leave",
        ),
        ({"method": "som", "n_clusters": 1}, ValueError, "`n_clusters` must be a whole number of at least 2, got 1"),
        ({"method": "som", "grid": (3, 0)}, ValueError, "two whole numbers of at least 1, got (3, 0)"),
        ({"method": "som", "grid": 20}, ValueError, "two whole numbers of at least 1, got 20"),
        ({"method": "som", "n_clusters": 21}, ValueError, "Cannot make 21 clusters of 20 cells with numbers in"),
        ({"method": "som", "grid": (3, 3)}, ValueError, "Cannot make 20 clusters of the 9 nodes of a grid of 3 x 3"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cy.tl.cluster_cells(groups(sizes=(12, 8)), **{"use_rep": "X_nextmarker", **arguments})
