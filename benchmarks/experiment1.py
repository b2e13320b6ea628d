"""The paper's synthetic experiment, phenotypes of a 34-marker tissue, and transfer to another staining.

    python benchmarks/experiment1.py --json
    python benchmarks/experiment1.py --figure size.png

Experiment 1 (five markers, seven populations that differ by marker, localisation, size and shape), beside the mean intensity
over the true mask:

accuracy        of a two-layer perceptron that names the population, on the last fifth of a 60/20/20 split of the cells; the
                second fifth stops its training.
silhouette      of the populations, and
davies_bouldin  index of the same (smaller is better), both on standardised numbers.
size_gradient   rank correlation of the true diameter with its mean over the 15 nearest neighbours of the same population:
                0 where the embedding has no room for size, 1 where neighbours are of one size. `--figure` draws the UMAP.

Phenotypes of the bone marrow (34 markers, four samples with staining that differs by 30 %):

agreement       PhenoGraph clusters of samples 1 to 3, each named after most of its cells, against the truth.
transfer        an encoder trained on samples 1 to 3 applied unchanged to sample 4, its cells named by the nearest 15 cells of
                samples 1 to 3; the classifier never sees sample 4.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.stats import spearmanr
from sklearn.metrics import davies_bouldin_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

import cytonym as cy

if TYPE_CHECKING:
    from spatialdata import SpatialData

NEIGHBOURS = 15
STAINING_SHIFT = 0.3


def means(sdata: SpatialData) -> np.ndarray:
    """Log mean intensity of each marker over the true mask [N, C], rows as in the table."""
    return np.log1p(np.asarray(cy.pp.measure_cells(sdata, inplace=False).X))


def accuracy(values: np.ndarray, truth: np.ndarray, seed: int) -> float:
    """Of a two-layer perceptron with early stopping."""
    order = np.random.default_rng(seed).permutation(len(values))
    fit, test = np.split(order, [int(0.8 * len(order))])
    scaler = StandardScaler().fit(values[fit])
    model = MLPClassifier((128,), early_stopping=True, validation_fraction=0.25, max_iter=500, random_state=seed)
    model.fit(scaler.transform(values[fit]), truth[fit])
    return float(model.score(scaler.transform(values[test]), truth[test]))


def size_gradient(values: np.ndarray, truth: np.ndarray, diameter: np.ndarray) -> float:
    """Mean over populations of the rank correlation of a cell's size with that of its neighbours."""
    found = []
    for name in np.unique(truth):
        here = np.flatnonzero(truth == name)
        _, near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(values[here]).kneighbors(values[here])
        found.append(spearmanr(diameter[here], diameter[here][near[:, 1:]].mean(axis=1)).statistic)
    return float(np.mean(found))


def experiment1(seed: int, n_cells: int, steps: int | None) -> tuple[dict[str, float], SpatialData]:
    """Populations that differ by more than their mean intensity."""
    sdata = cy.datasets.tissue_phantom("experiment1", n_cells=n_cells, rng=seed)
    baseline = means(sdata)
    cy.tl.embed_cells(sdata, steps=steps, rng=seed)
    table = sdata["table"]
    truth = table.obs["cell_type"].to_numpy(dtype=str)
    found: dict[str, float] = {}
    for suffix, values in (("", table.obsm["X_nextmarker"]), ("_mean", baseline)):
        ok = np.isfinite(values).all(axis=1)
        values, names = StandardScaler().fit_transform(values[ok]), truth[ok]
        found[f"accuracy{suffix}"] = accuracy(values, names, seed)
        found[f"silhouette{suffix}"] = float(silhouette_score(values, names))
        found[f"davies_bouldin{suffix}"] = float(davies_bouldin_score(values, names))
        found[f"size_gradient{suffix}"] = size_gradient(values, names, table.obs["diameter_um"].to_numpy()[ok])
    return found, sdata


def agreement(values: np.ndarray, truth: np.ndarray, seed: int) -> float:
    """Share of cells whose cluster is named after their type."""
    adata = AnnData(np.asarray(values, dtype=np.float32))
    cy.tl.cluster_cells(adata, use_rep="X", rng=seed)
    clusters = adata.obs["phenograph"].to_numpy()
    right = 0
    for cluster in np.unique(clusters):
        right += np.unique(truth[clusters == cluster], return_counts=True)[1].max()
    return right / len(truth)


def bone_marrow(seed: int, n_cells: int, steps: int | None) -> dict[str, float]:
    """Clusters of three samples, and a fourth that the encoder has not seen."""
    sdata = cy.datasets.tissue_phantom(
        "bone_marrow", n_cells=n_cells, n_samples=4, staining_shift=STAINING_SHIFT, rng=seed
    )
    images = sorted(sdata.images)
    baseline = means(sdata)
    model = cy.tl.fit_encoder(sdata, image_key=images[:3], steps=steps, rng=seed)
    cy.tl.embed_cells(sdata, model)
    table = sdata["table"]
    truth = table.obs["cell_type"].to_numpy(dtype=str)
    sample = table.obs["region"].to_numpy(dtype=str)
    seen = sample != sorted(set(sample))[3]
    found: dict[str, float] = {}
    for suffix, values in (("", table.obsm["X_nextmarker"]), ("_mean", StandardScaler().fit_transform(baseline))):
        found[f"agreement{suffix}"] = agreement(values[seen], truth[seen], seed)
        names = KNeighborsClassifier(NEIGHBOURS).fit(values[seen], truth[seen])
        found[f"transfer{suffix}"] = float(names.score(values[~seen], truth[~seen]))
    return found


def draw(sdata: SpatialData, path: Path) -> None:
    """UMAP of the embedding, by population and by size."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    table = sdata["table"]
    sc.pp.neighbors(table, use_rep="X_nextmarker")
    sc.tl.umap(table)
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    sc.pl.umap(table, color="cell_type", ax=axes[0], show=False, title="population")
    sc.pl.umap(table, color="diameter_um", ax=axes[1], show=False, title="true diameter (µm)")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=2500, help="of experiment 1, and of each bone marrow sample / 2")
    parser.add_argument("--steps", type=int, help="default: the method's recipe")
    parser.add_argument("--figure", type=Path, help="file for the UMAP of experiment 1")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    rows: list[dict[str, float]] = []
    started = time.perf_counter()
    for seed in range(options.seeds):
        row, sdata = experiment1(seed, options.cells, options.steps)
        rows.append(row | bone_marrow(seed, options.cells // 2, options.steps))
        if options.figure and seed == 0:
            draw(sdata, options.figure)
        if not options.json:
            print(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in rows[-1].items()), flush=True)
    result: dict[str, float] = {
        "seeds": options.seeds,
        "seconds_a_seed": round((time.perf_counter() - started) / options.seeds, 1),
    }
    for key in rows[0]:
        result[key] = round(float(np.mean([row[key] for row in rows])), 4)
        result[f"{key}_sd"] = round(float(np.std([row[key] for row in rows])), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
