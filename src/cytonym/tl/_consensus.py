"""Consensus hierarchical clustering: what holds together in most subsamples (Monti et al. 2003)."""

from __future__ import annotations

import numpy as np

RESAMPLES = 100
SHARE = 0.8  # of the profiles in a subsample
CAP = 3.0  # z-scores beyond it count as it: one extreme marker must not make a cluster
TIE = 1e-6  # far below 1 / RESAMPLES, the step of a consensus: distances decide only where it does not


def consensus_clusters(profiles: np.ndarray, n_clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Clusters of a few hundred profiles, such as the nodes of a map.

    Parameters
    ----------
    profiles
        Mean numbers of n nodes, [n, D].
    n_clusters
        Number k of clusters. Where there are not more nodes than that, each is a cluster of its own.
    rng
        Draws the subsamples.

    Returns
    -------
    ndarray int [n]
        Cluster of each node, 0…k-1 in no order.
    """
    from scipy.spatial.distance import pdist, squareform

    n = len(profiles)
    if n <= n_clusters:
        return np.arange(n)
    distances = squareform(pdist(capped_zscores(profiles)))
    size = max(int(np.ceil(SHARE * n)), n_clusters + 1)  # k nodes in k clusters would say nothing
    drawn = rng.permuted(np.tile(np.arange(n), (RESAMPLES, 1)), axis=1)[:, :size]
    apart = 1 - consensus_matrix(distances, drawn, n_clusters)
    return average_linkage(apart + TIE * distances / max(float(distances.max()), TIE), n_clusters)


def capped_zscores(profiles: np.ndarray) -> np.ndarray:
    """Each column to mean 0 and variance 1, capped at ±`CAP`; a column of equal numbers to 0."""
    values = np.asarray(profiles, dtype=np.float64)
    spread = np.where(np.ptp(values, axis=0) > 0, values.std(axis=0), np.inf)
    return np.clip((values - values.mean(axis=0)) / spread, -CAP, CAP)


def consensus_matrix(distances: np.ndarray, drawn: np.ndarray, n_clusters: int) -> np.ndarray:
    """How often two nodes share a cluster, of the subsamples that hold both.

    Parameters
    ----------
    distances
        [n, n].
    drawn
        Nodes of each subsample, int [R, size], `size` at least `n_clusters`.
    n_clusters
        Clusters of each subsample.

    Returns
    -------
    ndarray [n, n]
        0…1, symmetric; 0 for nodes that were never drawn together, 1 for a node and itself.
    """
    n, n_drawn = len(distances), len(drawn)
    present = np.zeros((n, n_drawn), dtype=np.float32)
    member = np.zeros((n, n_drawn, n_clusters), dtype=np.float32)
    for r, nodes in enumerate(drawn):
        present[nodes, r] = 1
        member[nodes, r, average_linkage(distances[np.ix_(nodes, nodes)], n_clusters)] = 1
    flat = member.reshape(n, -1)
    together = (flat @ flat.T).astype(np.float64)  # counts, exact in float32
    found = together / np.maximum(present @ present.T, 1)
    np.fill_diagonal(found, 1)
    return found


def average_linkage(distances: np.ndarray, n_clusters: int) -> np.ndarray:
    """Exactly `n_clusters` clusters from a matrix of distances: int [n]."""
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(n_clusters, metric="precomputed", linkage="average").fit_predict(distances)
