"""Clusters of cells: PhenoGraph, Leiden and self-organising maps, the same for the same seed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cytonym._shared import RNG, document, seed_of
from cytonym.tl._consensus import consensus_clusters
from cytonym.tl._som import GRID, fitting_grid, nearest_node, node_means, train_map

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBORS = {"phenograph": 30, "leiden": 15}  # the defaults of PhenoGraph and scanpy
METHODS = (*NEIGHBORS, "som")
N_CLUSTERS = 20
EXACT_LIMIT = 30_000  # beyond it neighbours are approximate: exact search grows with the square of the cells
ROWS = 8_192  # rows of the Jaccard product held at a time


@document(rng=RNG)
def cluster_cells(
    adata: AnnData,
    *,
    use_rep: str,
    method: Literal["phenograph", "leiden", "som"] = "phenograph",
    n_neighbors: int | None = None,
    resolution: float | None = None,
    min_cluster_size: int = 10,
    metric: Literal["euclidean", "cosine"] | None = None,
    n_clusters: int | None = None,
    grid: tuple[int, int] | None = None,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Cluster cells by their embedding, or by the scores of their markers.

    The result does not depend on the order of the rows: cells are put into an order of their own first.

    Parameters
    ----------
    adata
        Table of N cells.
    use_rep
        Key of `adata.obsm` with the numbers to cluster on, an array or DataFrame [N, D], or `"X"`.
    method
        `"phenograph"`: Jaccard graph of the nearest neighbours (Levine et al. 2015), partitioned by Leiden. This is
        what `phenograph.cluster(clustering_algo="leiden", seed=...)` computes, without its pool of processes; its
        default, a Louvain program, cannot be seeded. `"leiden"`: the graph of `scanpy.pp.neighbors` and
        `scanpy.tl.leiden(flavor="igraph")`. `"som"`: a self-organising map with many more nodes than there are types,
        whose nodes are then merged, as in FlowSOM (Van Gassen et al. 2015) and for the scores of Nimbus (Rumberger et al.
        2024). The map learns from every cell ten times, of at most 100,000 cells drawn at random; then each cell of the
        table goes to its nearest node. Markers are averaged over the cells of a node, z-scored over the nodes and capped
        at ±3, and the nodes are clustered by their consensus over 100 subsamples of 80 % of them (average linkage).
        The map takes the numbers as they are: put intensities on one scale first; scores between 0 and 1 are. Merging
        gives every marker the same weight, so leave out those that say nothing about the types.
    n_neighbors
        Neighbours of a cell. Default: 30 for PhenoGraph and 15 for Leiden, as in these packages, counted as they do
        (scanpy counts the cell itself). Not for `"som"`.
    resolution
        Higher gives more clusters. Default: 1, plain modularity. Not for `"som"`.
    min_cluster_size
        Cells of clusters that are not larger than this are labelled `"-1"`, as PhenoGraph does.
    metric
        Distance between cells. Default: `"euclidean"`. Not for `"som"`, which is Euclidean.
    n_clusters
        Only for `"som"`: clusters that the nodes are merged into. Default: 20, as for Nimbus. Nodes of a few odd
        cells may take some of them, so ask for more than there are types.
    grid
        Only for `"som"`: rows and columns of the map. Default: `(20, 20)`, as for Nimbus. With fewer cells than nodes the
        grid is made smaller, with a warning.
    {rng}
    key_added
        Column of `obs` to write; `method` by default.
    copy
        Work on a copy and return it.

    Returns
    -------
    Returns `None` if `copy=False`, else an `AnnData`. Sets the following fields:

    `adata.obs[key_added]` : categorical [N]
        Cluster of each cell, `"0"` the largest. NaN for cells with a NaN in `use_rep`, which are left out.
    `adata.obs[key_added + "_node"]` : categorical [N], only for `"som"`
        Node of each cell, row * columns + column of the grid, to merge nodes by hand (see the second example). Another method with
        the same `key_added` removes it.
    `adata.uns[key_added]["params"]` : dict
        The parameters; `grid` as it was used.

    Raises
    ------
    KeyError
        `use_rep` is not in `adata.obsm`.
    ValueError
        Unknown method or metric, a parameter of another method, not more cells than neighbours, or fewer cells or nodes
        than `n_clusters`.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import cytonym as cy
    >>> points = np.random.default_rng(0).normal(size=(180, 4)) + np.repeat([[0], [9], [18]], [80, 60, 40], axis=0)
    >>> adata = ad.AnnData(np.zeros((180, 1)), obsm={"X_nextmarker": points})
    >>> cy.tl.cluster_cells(adata, use_rep="X_nextmarker", resolution=0.1)
    >>> adata.obs["phenograph"].value_counts().to_dict()
    {'0': 80, '1': 60, '2': 40}

    Scores of markers, over-clustered by a map; then two nodes are put into one cluster by hand:

    >>> cy.tl.cluster_cells(adata, use_rep="X_nextmarker", method="som", grid=(5, 5), n_clusters=3)
    >>> adata.obs["som"].value_counts().to_dict()
    {'0': 80, '1': 60, '2': 40}
    >>> cluster_of = adata.obs.groupby("som_node", observed=True)["som"].first().astype(str).to_dict()
    >>> cluster_of["0"] = cluster_of["4"] = "corners"
    >>> adata.obs["by_hand"] = adata.obs["som_node"].map(cluster_of)
    """
    _check(method, n_neighbors, resolution, metric, n_clusters, grid)
    values = _representation(adata, use_rep)
    kept = np.flatnonzero(np.isfinite(values).all(axis=1))
    settings: dict[str, Any]
    if method == "som":
        settings = _map_settings(len(kept), use_rep, n_clusters, grid)
    else:
        settings = _graph_settings(len(kept), use_rep, method, n_neighbors, resolution, metric)
    seed = seed_of(rng)
    if len(kept) < len(values):
        msg = f"{len(values) - len(kept)} of {len(values)} cells have a NaN in {use_rep!r}: they get no cluster."
        warnings.warn(msg, UserWarning, stacklevel=2)

    order = kept[_own_order(values[kept])]
    points = np.ascontiguousarray(values[order])
    nodes = None
    if method == "som":
        found, nodes = _map_clusters(points, **settings, seed=seed)
    else:
        found = (_phenograph if method == "phenograph" else _scanpy_leiden)(points, **settings, seed=seed)

    key = key_added or method
    adata = adata.copy() if copy else adata
    adata.obs[key] = _column(_by_size(found, min_cluster_size), order, len(values))
    if nodes is not None:
        adata.obs[f"{key}_node"] = _column(nodes.astype(str).astype(object), order, len(values))
    elif f"{key}_node" in adata.obs:
        del adata.obs[f"{key}_node"]
    params = {"use_rep": use_rep, "method": method, **settings, "min_cluster_size": int(min_cluster_size), "seed": seed}
    adata.uns[key] = {"params": params}
    return adata if copy else None


def _check(method: str, n_neighbors: Any, resolution: Any, metric: Any, n_clusters: Any, grid: Any) -> None:
    if method not in METHODS:
        msg = f"Unknown method {method!r}. Available: {sorted(METHODS)}."
        raise ValueError(msg)
    of_graphs = {"n_neighbors": n_neighbors, "resolution": resolution, "metric": metric}
    of_maps = {"n_clusters": n_clusters, "grid": grid}
    foreign = [name for name, value in (of_graphs if method == "som" else of_maps).items() if value is not None]
    if foreign:
        others = ["leiden", "phenograph"] if method == "som" else ["som"]
        takes = [*of_maps] if method == "som" else [*of_graphs]
        msg = f"{foreign} are parameters of {others}, not of {method!r}: leave them out. It takes {takes}."
        raise ValueError(msg)
    if metric not in (None, "euclidean", "cosine"):
        msg = f"Unknown metric {metric!r}. Available: ['cosine', 'euclidean']."
        raise ValueError(msg)
    if resolution is not None and resolution <= 0:
        msg = f"`resolution` must be above 0, got {resolution}."
        raise ValueError(msg)
    if n_clusters is not None and not (isinstance(n_clusters, (int, np.integer)) and n_clusters >= 2):
        msg = f"`n_clusters` must be a whole number of at least 2, got {n_clusters!r}."
        raise ValueError(msg)
    if grid is not None and not (
        np.shape(grid) == (2,) and all(isinstance(side, (int, np.integer)) and side >= 1 for side in grid)
    ):
        msg = f"`grid` must be rows and columns of the map, two whole numbers of at least 1, got {grid!r}."
        raise ValueError(msg)


def _graph_settings(
    n_cells: int, use_rep: str, method: str, n_neighbors: int | None, resolution: float | None, metric: str | None
) -> dict[str, Any]:
    k = NEIGHBORS[method] if n_neighbors is None else n_neighbors
    if k < 1 or n_cells <= k:
        msg = (
            f"Cannot take {k} neighbours of each of {n_cells} cells with numbers in {use_rep!r}: "
            f"`n_neighbors` must be at least 1 and below {n_cells}."
        )
        raise ValueError(msg)
    resolution = 1.0 if resolution is None else float(resolution)
    return {"n_neighbors": int(k), "resolution": resolution, "metric": metric or "euclidean"}


def _map_settings(n_cells: int, use_rep: str, n_clusters: int | None, grid: tuple[int, int] | None) -> dict[str, Any]:
    k = N_CLUSTERS if n_clusters is None else int(n_clusters)
    rows, columns = GRID if grid is None else map(int, grid)
    if k > rows * columns:
        msg = f"Cannot make {k} clusters of the {rows * columns} nodes of a grid of {rows} x {columns}: take a larger `grid`."
        raise ValueError(msg)
    if k > n_cells:
        msg = f"Cannot make {k} clusters of {n_cells} cells with numbers in {use_rep!r}: lower `n_clusters`."
        raise ValueError(msg)
    used = fitting_grid((rows, columns), n_cells)
    if used != (rows, columns):
        msg = f"{n_cells} cells are fewer than the {rows * columns} nodes of the map: it has {used[0]} x {used[1]} nodes instead."
        warnings.warn(msg, UserWarning, stacklevel=3)
    return {"n_clusters": k, "grid": list(used)}


def _map_clusters(points: np.ndarray, n_clusters: int, grid: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster and node of each cell."""
    rng = np.random.default_rng(seed)
    nodes = nearest_node(points, train_map(points, (grid[0], grid[1]), rng))
    means, row = node_means(points, nodes)
    if len(means) < n_clusters:
        msg = f"Only {len(means)} nodes of the map have cells: each is a cluster, instead of {n_clusters} clusters."
        warnings.warn(msg, UserWarning, stacklevel=3)
    return consensus_clusters(means, n_clusters, rng)[row], nodes


def _column(names: np.ndarray, rows: np.ndarray, n_rows: int) -> pd.Categorical:
    """A column with names in these rows and NaN elsewhere: categories by number, "-1" the last."""
    values = np.full(n_rows, np.nan, dtype=object)
    values[rows] = names
    found = sorted(set(names), key=int)
    return pd.Categorical(values, categories=[n for n in found if n != "-1"] + ["-1"] * ("-1" in found))


def _representation(adata: AnnData, use_rep: str) -> np.ndarray:
    """[N, D] float32."""
    if use_rep != "X" and use_rep not in adata.obsm:
        msg = f"No {use_rep!r} in `adata.obsm`. Available: {sorted(adata.obsm)}, or 'X'."
        raise KeyError(msg)
    values = adata.X if use_rep == "X" else adata.obsm[use_rep]
    if sparse.issparse(values):
        values = values.toarray()
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2 or values.shape[1] == 0:
        msg = f"{use_rep!r} must be [cells, numbers] with at least one number a cell, got shape {values.shape}."
        raise ValueError(msg)
    return values


def _own_order(values: np.ndarray) -> np.ndarray:
    """An order of the cells that depends on their numbers only: by eight columns, and by the others where these tie."""
    order = np.lexsort(values.T[:8][::-1])
    first = values[order, :8]
    equal = (first[1:] == first[:-1]).all(axis=1)
    if equal.any() and values.shape[1] > 8:
        run = np.concatenate([[0], np.cumsum(~equal)])
        tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
        rest = values[order[tied], 8:].T[::-1]
        order[tied] = order[tied][np.lexsort([*rest, run[tied]])]
    return order


def _nearest(points: np.ndarray, k: int, metric: str, seed: int) -> np.ndarray:
    """The k nearest neighbours of each cell, itself left out: int [N, k]."""
    if len(points) <= EXACT_LIMIT:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(n_neighbors=k, metric=metric).fit(points).kneighbors(return_distance=False)
    from pynndescent import NNDescent

    found = NNDescent(points, n_neighbors=k + 1, metric=metric, random_state=seed).neighbor_graph[0]
    others = found != np.arange(len(points))[:, None]
    others[others.all(axis=1), -1] = False  # a cell not among its own neighbours drops the farthest
    return found[others].reshape(len(points), k)


def _jaccard_graph(neighbors: np.ndarray) -> sparse.coo_matrix:
    """PhenoGraph's graph: each pair of neighbours i, j weighs |N(i) & N(j)| / |N(i) | N(j)|; mean of both directions."""
    n, k = neighbors.shape
    links = sparse.csr_matrix((np.ones(n * k, np.float32), neighbors.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    back = links.T.tocsr()
    parts = []
    for start in range(0, n, ROWS):
        rows = links[start : start + ROWS]
        shared = (rows @ back).multiply(rows).tocsr()
        shared.data = shared.data / (2 * k - shared.data)
        parts.append(shared)
    graph = sparse.vstack(parts).tocsr()
    graph = sparse.tril((graph + graph.T) * 0.5, k=-1).tocoo()
    graph.eliminate_zeros()
    return graph


def _phenograph(points: np.ndarray, n_neighbors: int, resolution: float, metric: str, seed: int) -> np.ndarray:
    return _leiden_partition(_jaccard_graph(_nearest(points, n_neighbors, metric, seed)), resolution, seed)


def _leiden_partition(graph: sparse.coo_matrix, resolution: float, seed: int) -> np.ndarray:
    import igraph
    import leidenalg

    network = igraph.Graph(n=graph.shape[0], edges=np.column_stack([graph.row, graph.col]).tolist())
    partition = leidenalg.find_partition(
        network,
        leidenalg.RBConfigurationVertexPartition,
        weights=graph.data.astype(np.float64),
        resolution_parameter=resolution,
        n_iterations=-1,
        seed=seed,
    )
    return np.asarray(partition.membership)


def _scanpy_leiden(points: np.ndarray, n_neighbors: int, resolution: float, metric: str, seed: int) -> np.ndarray:
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(points)
    sc.pp.neighbors(cells, n_neighbors=n_neighbors, use_rep="X", metric=metric, random_state=seed)
    sc.tl.leiden(cells, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=-1, directed=False)
    return cells.obs["leiden"].astype(int).to_numpy()


def _by_size(clusters: np.ndarray, min_size: int) -> np.ndarray:
    """Labels as strings: "0" the largest cluster, of equal ones that with the first cell; "-1" for small ones."""
    _, first, inverse, counts = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=int)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    rank[counts <= min_size] = -1
    return rank[inverse].astype(str).astype(object)
