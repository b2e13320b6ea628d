"""How many cells does `pp.find_cells` find without a segmentation, and how many of its finds are cells?

Centres found with the default settings against the masks of real fields. A centre matches a cell where it lies inside it or
within four pixels of its centroid, one to one; of all matchings, the largest, and of these the one of shortest distances.

    python benchmarks/find_cells.py --json
    python benchmarks/find_cells.py --data ../shared/data/codex_lymphoid_crop/dev --figures misses
    python benchmarks/find_cells.py --factors 0.7 0.85 1 1.2 1.4     # what a wrong diameter costs

The masks are of whole cells, some without a nucleus in the section, and made by a program: F1 of 1 is not to be had.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

import cytonym as cy
from cytonym.data.nuclear import nuclear_channels
from cytonym.data.source import resolve

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource

DATA = Path(os.environ.get("CYTONYM_DATA", Path(__file__).parents[2] / "shared" / "data"))
FIELDS = ("mibi_tb_granuloma", "codex_lymphoid_crop", "imc_pancreas")
REACH_PX = 4.0


def match(found: np.ndarray, cells: CellSource) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of `found` (y, x) [n, 2] and of the cells that belong together, and their distances in pixels."""
    _, height, width = cells.shape
    labels = cells.labels.read(0, height, 0, width)
    row_of = {int(label): row for row, label in enumerate(cells.instance_ids)}
    gain = np.zeros((len(found), len(cells.centers)))
    near = cKDTree(cells.centers).query_ball_point(found, REACH_PX)
    for i, (y, x) in enumerate(found):
        inside = row_of.get(int(labels[int(y), int(x)]))
        for j in {*near[i], *([] if inside is None else [inside])}:
            gain[i, j] = 1e4 - np.hypot(*(found[i] - cells.centers[j]))
    rows, columns = linear_sum_assignment(gain, maximize=True)
    kept = gain[rows, columns] > 0
    return rows[kept], columns[kept], 1e4 - gain[rows, columns][kept]


def evaluate(sdata: SpatialData, **settings: float | str) -> dict:
    """Find cells in all images, and count."""
    start = time.perf_counter()
    cy.pp.find_cells(sdata, key_added="found", **settings)
    seconds = time.perf_counter() - start
    n_found = n_cells = n_matched = 0
    distances, misses, diameters = [], {}, []
    for cells in resolve(sdata, labels_key=list(sdata.labels), image_key=list(sdata.images)):
        key = "found" if len(sdata.images) == 1 else cells.image_key.removesuffix("_image") + "_found"
        [centers] = resolve(sdata, image_key=cells.image_key, shapes_key=key)
        hits, members, distance = match(centers.centers, cells)
        n_found, n_cells, n_matched = (
            n_found + len(centers.centers),
            n_cells + len(cells.centers),
            n_matched + len(hits),
        )
        distances += distance.tolist()
        diameters.append(2 * float(sdata[key]["radius"].iloc[0]))
        misses[cells.image_key] = (centers.centers, hits, cells, members)
    return {
        "diameter_px": round(float(np.mean(diameters)), 1),
        "cells": n_cells,
        "found": n_found,
        "precision": round(n_matched / n_found, 3),
        "recall": round(n_matched / n_cells, 3),
        "f1": round(2 * n_matched / (n_found + n_cells), 3),
        "center_error_px": round(float(np.mean(distances)), 2),
        "seconds": round(seconds, 2),
        "misses": misses,
    }


def draw(sdata: SpatialData, misses: dict, channels: list[str], folder: Path) -> None:
    """What was found (green), found without a cell (red), and cells without a find (yellow), on the nuclear channel."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from skimage.segmentation import find_boundaries

    folder.mkdir(parents=True, exist_ok=True)
    for key, (found, hits, cells, members) in misses.items():
        plane = np.sqrt(sdata[key].sel(c=channels).to_numpy().astype(float).sum(0))
        height, width = min(plane.shape[0], 400), min(plane.shape[1], 400)
        figure, ax = plt.subplots(figsize=(10, 10 * height / width))
        ax.imshow(plane, cmap="gray", vmax=np.quantile(plane, 0.997))
        outline = np.zeros((*plane.shape, 4))
        outline[find_boundaries(cells.labels.read(0, plane.shape[0], 0, plane.shape[1]), mode="inner")] = (0, 1, 1, 0.4)
        ax.imshow(outline)
        lost, missed = np.delete(found, hits, axis=0) - 0.5, np.delete(cells.centers, members, axis=0) - 0.5
        ax.plot(*(found[hits] - 0.5).T[::-1], ".", color="lime", markersize=5)
        ax.plot(*lost.T[::-1], "x", color="red", markersize=6)
        ax.plot(*missed.T[::-1], "s", color="yellow", markerfacecolor="none", markersize=8)
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.axis("off")
        figure.tight_layout(pad=0)
        figure.savefig(folder / f"{key}.png", dpi=80)
        plt.close(figure)


def main() -> None:
    """Print a line a data set, and JSON at the end if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=Path, default=[DATA / name / "dev" for name in FIELDS])
    parser.add_argument("--method", choices=["log", "maxima"], default="log")
    parser.add_argument("--factors", nargs="+", type=float, help="multiples of the default diameter to try")
    parser.add_argument("--figures", type=Path, help="folder for pictures of what was missed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("cytonym").setLevel(logging.ERROR)
    results = {}
    names = ("diameter_px", "cells", "found", "precision", "recall", "f1", "center_error_px", "seconds")
    print(f"{'field':24}", *(f"{name:>16}" for name in names))
    for folder in options.data:
        if not folder.is_dir():
            print(f"{folder}: not there, left out")
            continue
        sdata = cy.io.read_tiffs(folder)
        name = folder.parent.name if folder.name == "dev" else folder.name
        result = evaluate(sdata, method=options.method)
        misses = result.pop("misses")
        print(f"{name:24}", *(f"{result[key]:>16}" for key in names))
        for factor in options.factors or []:
            other = evaluate(sdata, method=options.method, diameter_px=factor * result["diameter_px"])
            print(f"  diameter x {factor:<11}", *(f"{other[key]:>16}" for key in names))
            result[f"f1_x{factor:g}"] = other["f1"]
        if options.figures:
            draw(sdata, misses, nuclear_channels(next(iter(misses.values()))[2].channels), options.figures)
        results[name] = result
    if options.json and results:
        mean = {
            key: round(float(np.mean([r[key] for r in results.values()])), 3) for key in ("precision", "recall", "f1")
        }
        print(json.dumps(results | {"mean": mean}))


if __name__ == "__main__":
    main()
