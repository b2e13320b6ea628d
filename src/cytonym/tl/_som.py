"""A self-organising map of cells, trained by MiniSom with the schedule of FlowSOM."""

from __future__ import annotations

import numpy as np

GRID = (20, 20)
PASSES = 10
TRAIN_CELLS = 100_000  # the map learns from at most so many: its updates run one after the other, in Python
RATE = 0.05, 0.01  # learning rate, from the first update to the last
BLOCK = 8_192  # cells whose distances to all nodes are held at a time


def fitting_grid(grid: tuple[int, int], n_cells: int) -> tuple[int, int]:
    """The grid, or one of its shape with about as many nodes as there are cells."""
    rows, columns = grid
    if rows * columns <= n_cells:
        return rows, columns
    rows = min(n_cells, max(1, int(rows * np.sqrt(n_cells / (rows * columns)))))
    return rows, min(columns, n_cells // rows)


def train_map(points: np.ndarray, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Weights of the nodes, row by row of the grid: float64 [nodes, D]."""
    from minisom import MiniSom

    if len(points) > TRAIN_CELLS:
        points = points[np.sort(rng.choice(len(points), TRAIN_CELLS, replace=False))]
    data = points.astype(np.float64)
    som = MiniSom(
        *grid,
        data.shape[1],
        sigma=max(1, round(max(grid) / 2)),
        sigma_decay_function="linear_decay_to_one",
        neighborhood_function="bubble",
        learning_rate=RATE[0],
        decay_function=_rate,
        activation_distance=_squared_distance,
        random_seed=int(rng.integers(2**32)),
    )
    som.random_weights_init(data)
    som.train(data, PASSES * len(data), random_order=True)
    return som.get_weights().reshape(-1, data.shape[1])


def nearest_node(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The node of each cell, the first of equally near ones: int [N]."""
    from scipy.spatial.distance import cdist

    found = np.empty(len(points), dtype=np.intp)
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        found[start : start + BLOCK] = cdist(block, weights, "sqeuclidean").argmin(axis=1)
    return found


def node_means(points: np.ndarray, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the nodes that have cells, [n, D], and the row of each cell among them, int [N]."""
    _, row, counts = np.unique(node, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(row, column) for column in points.T], axis=1) / counts[:, None], row


def _rate(first: float, step: int, n_steps: int) -> float:
    return first + (RATE[1] - first) * step / n_steps


def _squared_distance(cell: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[rows, columns]; without the root that MiniSom takes: the winner is the same, a third sooner."""
    apart = weights - cell
    return np.einsum("ijk,ijk->ij", apart, apart)
