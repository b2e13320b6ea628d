"""Do attributions and embeddings learned without labels and without a mask say more than mean intensities over a mask?

    python benchmarks/interpretability.py --train FOLDER [--test FOLDER] --json

A folder holds one field: an OME-TIFF, its mask (`*_mask.tif`) and a table of cells (`*_cells.csv` with cell_id, y, x and a
class). Without `--test` the field is cut in two halves by position, and each is once the training field and once the test
field; scores of both ways stand in `folds`, the others are means over them. The encoder sees raw pixels and the centres of
all cells; classes are used to score only. Three questions, each on the test field, each beside the mean intensity over the
mask:

auroc   attribution (or intensity) of a marker against the class that it defines, mean over the pairs below; `auroc_disc` is
        the mean over a disc of 4 px radius, which needs no mask either.
ari     Leiden clusters (15 neighbours, resolution 1, both scanpy's defaults) against the classes.
f1      macro-F1 of a logistic regression trained on the training field: intensities and area, and the same with the
        embedding beside them. The embedding is centred and scaled as a block, to the total variance of 1, 3 or 10
        standardised numbers, whichever does best in cross-validation over four strips of the training field.

Every number is a mean over seeds (of the training, and of Leiden), followed by its standard deviation over them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import tifffile
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

import cytonym as cy

PAIRS = [
    ("CD8", ("CD8 T", "CD8 T cell")),
    ("FOXP3", ("FOXP3 T",)),
    ("CD4", ("CD4 T",)),
    ("FoxP3", ("Treg",)),
    ("CD20", ("B cell",)),
    ("CD11c", ("Dendritic cell",)),
    ("CD56", ("NK cell",)),
    ("CD68", ("M1 Macrophage",)),
    ("CD163", ("M2 Macrophage",)),
]
NOT_IN_LYMPHNODE = {"CD4"}  # there CD4 T cells are what is left over, and the marker is on macrophages too
NEIGHBOURS, RESOLUTION = 15, 1.0
DISC_UM = 4.0
WEIGHTS, FOLDS = (1.0, 3.0, 10.0), 4


@dataclass
class Field:
    """Cells of one field with everything that the scores need; rows are those of `cells`."""

    image: np.ndarray
    markers: list[str]
    mask: np.ndarray
    cells: pd.DataFrame

    @property
    def classes(self) -> np.ndarray:
        """Class of each cell, "" where it has none."""
        return self.cells["class"].to_numpy(dtype=str)

    @property
    def names(self) -> np.ndarray:
        """Name of each cell's class, as far as it has one."""
        return self.cells["name"].to_numpy(dtype=str)


def read(folder: Path) -> Field:
    """One field of a folder."""
    [picture], [mask], [table] = (sorted(folder.glob(p)) for p in ("*.ome.tif", "*_mask.tif", "*_cells.csv"))
    sdata = cy.io.read_tiffs([picture])
    [element] = sdata.images.values()
    cells = pd.read_csv(table).set_index("cell_id")
    kind = "source_label" if "source_label" in cells else "cell_type"
    name = "inferred_name" if "inferred_name" in cells else "cell_type"
    known = cells[kind].notna() & (cells[kind].astype(str) != "-1")
    cells["class"] = cells[kind].astype(str).where(known, "")
    cells["name"] = cells[name].fillna("").astype(str)
    markers = [str(c) for c in element.coords["c"].to_numpy()]
    return Field(element.to_numpy(), markers, tifffile.imread(mask), cells)


def halves(field: Field) -> tuple[Field, Field]:
    """The upper and the lower half of a field."""
    middle = field.image.shape[1] // 2
    upper = field.cells["y"] + 0.5 < middle
    below = field.cells[~upper].copy()
    below["y"] -= middle
    return (
        Field(field.image[:, :middle], field.markers, field.mask[:middle], field.cells[upper].copy()),
        Field(field.image[:, middle:], field.markers, field.mask[middle:], below),
    )


def intensities(field: Field, disc: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the mask, or over a disc about the centre, and the area: [N, C], [N]."""
    if disc is None:
        sdata = cy.io.from_arrays(field.image, field.mask, channels=field.markers)
        cy.pp.measure_cells(sdata)
    else:
        sdata = at_centers(field)
        cy.pp.measure_cells(sdata, diameter_px=2 * disc)
    table = sdata["table"]
    rows = pd.Index(table.obs["instance_id"]).get_indexer(field.cells.index)
    if (rows < 0).any():
        msg = f"{(rows < 0).sum()} cells of the table are not in the mask."
        raise ValueError(msg)
    return np.asarray(table.X)[rows], table.obs["area"].to_numpy()[rows]


def at_centers(field: Field):
    """Image and centres, no mask."""
    centers = field.cells[["x", "y"]] + 0.5  # the tables count from the centre of the first pixel
    return cy.io.from_arrays(field.image, channels=field.markers, centers=centers)


def auroc(values: np.ndarray, field: Field) -> float:
    """Mean over the pairs of a marker and its class."""
    known, scores = field.classes != "", []
    for marker, names in PAIRS:
        if marker in field.markers and not ("CD20" in field.markers and marker in NOT_IN_LYMPHNODE):
            positive = np.isin(field.names, names)
            if positive[known].any():
                scores.append(roc_auc_score(positive[known], values[known, field.markers.index(marker)]))
    return float(np.mean(scores))


def ari(values: np.ndarray, field: Field, seed: int) -> float:
    """Leiden clusters of all cells against the classes of those that have one."""
    adata = AnnData(np.asarray(values, dtype=np.float32))
    sc.pp.neighbors(adata, n_neighbors=NEIGHBOURS, use_rep="X", random_state=seed)
    sc.tl.leiden(adata, resolution=RESOLUTION, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
    known = field.classes != ""
    return float(adjusted_rand_score(field.classes[known], adata.obs["leiden"][known]))


def f1(train: np.ndarray, test: np.ndarray, fields: tuple[Field, Field]) -> float:
    """Macro-F1 of a logistic regression on the test field."""
    (a, b), (ka, kb) = [f.classes for f in fields], [f.classes != "" for f in fields]
    model = LogisticRegression(max_iter=1000).fit(train[ka], a[ka])
    return float(f1_score(b[kb], model.predict(test[kb]), average="macro"))


def block(train: np.ndarray, test: np.ndarray, n: float) -> list[np.ndarray]:
    """Both centred, with the total variance of n standardised numbers."""
    center = train.mean(axis=0)
    scale = np.sqrt(((train - center) ** 2).sum(axis=1).mean() / n)
    return [(values - center) / scale for values in (train, test)]


def beside(logs: list[np.ndarray], embedding: list[np.ndarray], field: Field) -> list[np.ndarray]:
    """Intensities and embedding side by side, the weight of the embedding chosen within the training field."""
    known, found = field.classes != "", {}
    strips = pd.qcut(field.cells["x"], FOLDS, labels=False).to_numpy()[known]  # neighbours see the same pixels
    for weight in WEIGHTS:
        sides = [np.c_[m, e] for m, e in zip(logs, block(*embedding, weight), strict=True)]
        guess = cross_val_predict(
            LogisticRegression(max_iter=1000),
            sides[0][known],
            field.classes[known],
            groups=strips,
            cv=GroupKFold(FOLDS),
        )
        found[f1_score(field.classes[known], guess, average="macro")] = sides
    return found[max(found)]


def scores(train: Field, test: Field, seeds: int, steps: int | None) -> dict[str, list[float]]:
    """Every measure, once a seed where a seed matters."""
    fields = (train, test)
    means, areas = zip(*[intensities(f) for f in fields], strict=True)
    disc, _ = intensities(test, DISC_UM)
    scaler = StandardScaler().fit(np.log1p(means[0]))
    logs = [scaler.transform(np.log1p(m)) for m in means]
    sizes = StandardScaler().fit(areas[0][:, None])
    both = [np.c_[x, sizes.transform(area[:, None])] for x, area in zip(logs, areas, strict=True)]
    found: dict[str, list[float]] = {
        "auroc_mean": [auroc(means[1], test)] * seeds,
        "auroc_disc": [auroc(disc, test)] * seeds,
        "f1_mean": [f1(*both, fields)] * seeds,
        "ari_mean": [ari(logs[1], test, seed) for seed in range(seeds)],
        "auroc_attr": [],
        "ari_embed": [],
        "f1_both": [],
    }
    for seed in range(seeds):
        objects = [at_centers(f) for f in fields]
        model = cy.tl.fit_encoder(objects[0], steps=steps, rng=seed)
        for sdata in objects:
            cy.tl.embed_cells(sdata, model)
        tables = [s["table"] for s in objects]
        rows = [pd.Index(t.obs["instance_id"]).get_indexer(f.cells.index) for t, f in zip(tables, fields, strict=True)]
        embedding = [t.obsm["X_nextmarker"][r] for t, r in zip(tables, rows, strict=True)]
        attributions = tables[1].obsm["nextmarker_attributions"].to_numpy()[rows[1]]
        found["auroc_attr"].append(auroc(attributions, test))
        found["ari_embed"].append(ari(embedding[1], test, seed))
        found["f1_both"].append(f1(*beside(logs, embedding, train), fields))
        print(f"seed {seed}: " + ", ".join(f"{k} {v[seed]:.3f}" for k, v in found.items()), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, default=Path("../shared/data/codex_lymphoid_crop/dev"))
    parser.add_argument("--test", type=Path, help="default: the two halves of the training field in turn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="default: the method's recipe")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")

    field = read(options.train)
    if options.test:
        other = read(options.test)
        order = [other.markers.index(m) for m in field.markers]
        other.image, other.markers = other.image[order], field.markers
        folds = {options.test.parent.name: (field, other)}
    else:
        upper, lower = halves(field)
        folds = {"lower half": (upper, lower), "upper half": (lower, upper)}
    started = time.perf_counter()
    found = {name: scores(*pair, options.seeds, options.steps) for name, pair in folds.items()}
    result: dict[str, object] = {
        "train": options.train.parent.name,
        "test": list(folds),
        "cells": [len(f.cells) for f in next(iter(folds.values()))],
        "seeds": options.seeds,
        "seconds_a_seed": round((time.perf_counter() - started) / options.seeds / len(folds), 1),
    }
    for key in ("auroc_attr", "auroc_mean", "auroc_disc", "ari_embed", "ari_mean", "f1_both", "f1_mean"):
        values = np.array([fold[key] for fold in found.values()])  # [folds, seeds]
        result[key] = round(float(values.mean()), 4)
        result[f"{key}_sd"] = round(float(values.mean(axis=0).std()), 4)
    result["folds"] = {
        name: {key: round(float(np.mean(values)), 4) for key, values in fold.items()} for name, fold in found.items()
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
