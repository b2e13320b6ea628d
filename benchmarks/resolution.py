"""Does an encoder see cells of fine images, where a cell is larger than its window?

    python benchmarks/resolution.py --data FOLDER [FOLDER ...] --json

A folder holds one field: an OME-TIFF and its mask (`*_cell_mask.tif` or `*_mask.tif`). Two encoders are trained on the
centres of the mask's cells: with windows of 11 pixels of the image, and with windows of 1.6 diameters of a nucleus
(11 pixels where a nucleus has 7, as in lymphoid tissue at 1 micrometre a pixel), which are binned to about 11 pixels.
Judged by the mean over markers of

spearman    rank correlation of the attribution with the mean intensity over the mask;
auroc       of the attribution for the tenth of the cells that is brightest by the mask (all with signal where they are fewer).

Markers that fewer than 2 % of the cells have are left out. There is no baseline without a mask here: the mask is the truth.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from scipy.stats import spearmanr
from skimage.measure import regionprops_table
from sklearn.metrics import roc_auc_score

import cytonym as cy

WINDOW = 1.6  # in diameters of a nucleus


def scores(folder: Path, steps: int | None) -> dict[str, float]:
    """Both encoders on one field."""
    [picture] = sorted(folder.glob("*.ome.tif"))
    mask = tifffile.imread((sorted(folder.glob("*_cell_mask.tif")) or sorted(folder.glob("*_mask.tif")))[0])
    [element] = cy.io.read_tiffs([picture]).images.values()
    image, markers = element.to_numpy(), [str(c) for c in element.coords["c"].to_numpy()]
    cells = pd.DataFrame(regionprops_table(mask, properties=("label", "centroid"))).set_index("label")
    centers = cells.rename(columns={"centroid-0": "y", "centroid-1": "x"}) + 0.5

    masked = cy.io.from_arrays(image, mask, channels=markers)
    cy.pp.measure_cells(masked)
    rows = pd.Index(masked["table"].obs["instance_id"]).get_indexer(cells.index)
    means = np.asarray(masked["table"].X)[rows]
    common = np.flatnonzero((means > 0).mean(axis=0) >= 0.02)

    blobs = cy.io.from_arrays(image, channels=markers)
    cy.pp.find_cells(blobs)
    diameter = 2 * float(np.median(blobs["centers"]["radius"]))
    found: dict[str, float] = {"cells": len(cells), "markers": len(common), "diameter_px": round(diameter, 1)}
    for name, side in (("11_px", 11), ("binned", round(WINDOW * diameter))):
        sdata = cy.io.from_arrays(image, channels=markers, centers=centers)
        model = cy.tl.fit_encoder(sdata, size_px=side, steps=steps, rng=0)
        cy.tl.embed_cells(sdata, model)
        table = sdata["table"]
        values = table.obsm["nextmarker_attributions"].to_numpy()
        values = values[pd.Index(table.obs["instance_id"]).get_indexer(cells.index)]
        bright = means > np.quantile(means, 0.9, axis=0)
        found |= {
            f"window_{name}": model.window_px,
            f"spearman_{name}": round(float(np.mean([_rank(values[:, c], means[:, c]) for c in common])), 4),
            f"auroc_{name}": round(float(np.mean([roc_auc_score(bright[:, c], values[:, c]) for c in common])), 4),
        }
    return found


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic) if a.std() > 0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, help="default: the method's recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    result = {}
    for folder in options.data:
        result[folder.resolve().parent.name] = found = scores(folder, options.steps)
        print(folder.resolve().parent.name, found, flush=True)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
