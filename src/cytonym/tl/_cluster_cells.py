"""Clusters of cells: PhenoGraph and Leiden, the same for the same seed."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cytonym._shared import RNG, document, seed_of

if TYPE_CHECKING:
    from anndata import AnnData

NEIGHBORS = {"phenograph": 30, "leiden": 15}  # the defaults of PhenoGraph and scanpy
EXACT_LIMIT = 30_000  # beyond it neighbours are approximate: exact search grows with the square of the cells
ROWS = 8_192  # rows of the Jaccard product held at a time


@document(rng=RNG)
def cluster_cells(
    adata: AnnData,
    *,
    use_rep: str,
    method: Literal["phenograph", "leiden"] = "phenograph",
    n_neighbors: int | None = None,
    resolution: float = 1.0,
    min_cluster_size: int = 10,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Cluster cells by their embedding.

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
        `scanpy.tl.leiden(flavor="igraph")`.
    n_neighbors
        Neighbours of a cell. Default: 30 for PhenoGraph and 15 for Leiden, as in these packages, counted as they do
        (scanpy counts the cell itself).
    resolution
        Higher gives more clusters. 1 is plain modularity.
    min_cluster_size
        Cells of clusters that are not larger than this are labelled `"-1"`, as PhenoGraph does.
    metric
        Distance between cells.
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
    `adata.uns[key_added]["params"]` : dict
        The parameters.

    Raises
    ------
    KeyError
        `use_rep` is not in `adata.obsm`.
    ValueError
        Unknown method or metric, or not more cells than neighbours.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import cytonym as cy
    >>> points = np.random.default_rng(0).normal(size=(180, 4)) + np.repeat([[0], [9], [18]], [80, 60, 40], axis=0)
    >>> adata = ad.AnnData(np.zeros((180, 1)), obsm={"X_nextmarker": points})
    >>> cy.tl.cluster_cells(adata, use_rep="X_nextmarker", resolution=0.1)
    >>> adata.obs["phenograph"].value_counts().to_dict()
    {'0': 80, '1': 60, '2': 40}
    """
    if method not in NEIGHBORS:
        msg = f"Unknown method {method!r}. Available: {sorted(NEIGHBORS)}."
        raise ValueError(msg)
    if metric not in ("euclidean", "cosine"):
        msg = f"Unknown metric {metric!r}. Available: ['cosine', 'euclidean']."
        raise ValueError(msg)
    if resolution <= 0:
        msg = f"`resolution` must be above 0, got {resolution}."
        raise ValueError(msg)
    k = NEIGHBORS[method] if n_neighbors is None else n_neighbors
    values = _representation(adata, use_rep)
    kept = np.flatnonzero(np.isfinite(values).all(axis=1))
    if k < 1 or len(kept) <= k:
        msg = (
            f"Cannot take {k} neighbours of each of {len(kept)} cells with numbers in {use_rep!r}: "
            f"`n_neighbors` must be at least 1 and below {len(kept)}."
        )
        raise ValueError(msg)
    if len(kept) < len(values):
        msg = f"{len(values) - len(kept)} of {len(values)} cells have a NaN in {use_rep!r}: they get no cluster."
        warnings.warn(msg, UserWarning, stacklevel=2)

    seed = seed_of(rng)
    order = kept[_own_order(values[kept])]
    points = np.ascontiguousarray(values[order])
    if method == "phenograph":
        found = _leiden_partition(_jaccard_graph(_nearest(points, k, metric, seed)), resolution, seed)
    else:
        found = _scanpy_leiden(points, k, metric, resolution, seed)
    labels = np.full(len(values), np.nan, dtype=object)
    labels[order] = _by_size(found, min_cluster_size)

    key = key_added or method
    adata = adata.copy() if copy else adata
    names = sorted(set(labels[order]), key=int)
    adata.obs[key] = pd.Categorical(labels, categories=[n for n in names if n != "-1"] + ["-1"] * ("-1" in names))
    adata.uns[key] = {
        "params": {
            "use_rep": use_rep, "method": method, "n_neighbors": int(k), "resolution": float(resolution),
            "min_cluster_size": int(min_cluster_size), "metric": metric, "seed": seed,
        }
    }  # fmt: skip
    return adata if copy else None


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
    """An order of the cells that depends on their numbers only. Ties in eight columns are as good as duplicates."""
    return np.lexsort(values.T[:8][::-1])


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


def _scanpy_leiden(points: np.ndarray, k: int, metric: str, resolution: float, seed: int) -> np.ndarray:
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(points)
    sc.pp.neighbors(cells, n_neighbors=k, use_rep="X", metric=metric, random_state=seed)
    sc.tl.leiden(cells, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=-1, directed=False)
    return cells.obs["leiden"].astype(int).to_numpy()


def _by_size(clusters: np.ndarray, min_size: int) -> np.ndarray:
    """Labels as strings: "0" the largest cluster, of equal ones that with the first cell; "-1" for small ones."""
    _, first, inverse, counts = np.unique(clusters, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=int)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    rank[counts <= min_size] = -1
    return rank[inverse].astype(str).astype(object)
