"""How few labels suffice, against the field's baselines on the same cells, splits and budget?

    python benchmarks/few_labels.py --train FOLDER [--test FOLDER] --json
    python benchmarks/few_labels.py --phantom --json

A folder holds one field or more: OME-TIFFs, each with a mask (`NAME_cell_mask.tif` or `NAME_mask.tif`) and a table of cells
(`NAME_cells.csv` with the cell's number, its centre and its class). Without `--test` each field is cut in two halves by position,
and each half is trained on and tested on in turn. `--phantom` makes six patients whose staining differs, trains on four and
tests on two. Encoders are trained without labels on the training images only.

A budget is a share of the training field's labelled cells, drawn at random but with at least one cell of every class; all methods
get the same draws. Scores are over all labelled cells of the test field: macro- and micro-F1 over the classes that occur there,
and PR-AUC, the mean over these classes of the average precision. Methods:

default       what `tl.classify_cells` does: intensities, area and the NeXtMarker embedding, logistic regression
mean_lr       mean intensities and area, z-scores, logistic regression with balanced classes (scikit-learn)
mean_rf       the same numbers, random forest with 300 trees
intensity     default without an embedding
nextmarker, nextmarker_intensity, clearit, clearit_intensity      embeddings alone (linear), and beside intensities
clearit_linear, clearit_mlp4        CLEAR-IT's own heads with their own training
maps          MAPS, 500 epochs at most, choosing the epoch on a fifth of its labels
cellsighter   CellSighter, one network (on a CPU fewer epochs and draws, see `--help`), choosing the epoch likewise (by wrong calls); its window is 30 micrometres where the pixel size is known
              and else 4 diameters of a cell, at most the published 60 pixels
finetuned     NeXtMarker and a linear head trained on, end to end
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tifffile
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import cytonym as cy
from cytonym.models.cellsighter import CELLSIGHTER_SCHEDULE

if TYPE_CHECKING:
    from collections.abc import Callable

Found = tuple[list[str], np.ndarray, np.ndarray | None]
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 1.0)
ON_CPU = {"epochs": 25, "draws": 2, "steps": 200}  # what two cores do in an hour
DIAMETERS, WIDEST = 4.0, 60  # CellSighter's window, in diameters of a cell and in pixels


@dataclass
class Side:
    """Images to train on, or to test on; a table each, with `cell_type` where it is known."""

    samples: list[Any]
    tables: list[Any] = field(default_factory=list)

    @property
    def truth(self) -> np.ndarray:
        """Class of each cell of all tables, "" where unknown."""
        return np.concatenate([t.obs["cell_type"].astype(object).fillna("").to_numpy(dtype=str) for t in self.tables])

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values of all cells, table by table."""
        return np.split(values, np.cumsum([t.n_obs for t in self.tables])[:-1])

    def numbers(self) -> np.ndarray:
        """Mean intensities and area [n, C + 1]."""
        return np.concatenate([np.c_[np.asarray(t.X), t.obs["area"].to_numpy()] for t in self.tables])


def read(folder: Path) -> list[tuple[np.ndarray, list[str], np.ndarray, pd.DataFrame]]:
    """Image, markers, mask and cells (y and class by number) of every field of a folder."""
    found = []
    for picture in sorted(folder.glob("*.ome.tif")):
        name = picture.name.removesuffix(".ome.tif")
        [mask] = sorted(folder.glob(f"{name}_cell_mask.tif")) or sorted(folder.glob(f"{name}_mask.tif"))
        [table] = sorted(folder.glob(f"{name}_cells.csv"))
        [element] = cy.io.read_tiffs([picture]).images.values()
        cells = pd.read_csv(table)
        by_name = {c.lower().replace(" ", "_"): c for c in cells}
        cells = cells.set_index(by_name["cell_id"])
        kind = next(by_name[c] for c in ("source_label", "cell_type", "phenotype") if c in by_name)
        cells["class"] = cells[kind].astype(str).where(cells[kind].notna() & (cells[kind].astype(str) != "-1"))
        found.append(
            (element.to_numpy(), [str(c) for c in element.coords["c"].to_numpy()], tifffile.imread(mask), cells)
        )
    if not found:
        msg = f"No *.ome.tif in {folder}."
        raise FileNotFoundError(msg)
    return found


def side(pieces: list[tuple[np.ndarray, list[str], np.ndarray, pd.DataFrame]]) -> Side:
    """Measured tables of some fields, with the classes."""
    samples = [
        cy.io.from_arrays(image, mask, channels=markers, name=f"image{i}")
        for i, (image, markers, mask, _) in enumerate(pieces)
    ]
    made = Side(samples)
    for sdata, (*_, cells) in zip(samples, pieces, strict=True):
        cy.pp.measure_cells(sdata)
        table = sdata["table"]
        table.obs["cell_type"] = cells["class"].reindex(table.obs["instance_id"]).to_numpy()
        made.tables.append(table)
    return made


def halves(pieces: list[Any]) -> tuple[list[Any], list[Any]]:
    """Every field cut in two. A cell that the cut divides is on the side of its larger part."""
    upper, lower = [], []
    for image, markers, mask, cells in pieces:
        middle = image.shape[1] // 2
        above, below = (np.bincount(part.ravel(), minlength=mask.max() + 1) for part in (mask[:middle], mask[middle:]))
        on_top = above >= below
        upper.append((image[:, :middle], markers, np.where(on_top[mask[:middle]], mask[:middle], 0), cells))
        lower.append((image[:, middle:], markers, np.where(on_top[mask[middle:]], 0, mask[middle:]), cells))
    return upper, lower


def phantom() -> tuple[Side, Side]:
    """Four patients to train on and two to test on."""
    sdata = cy.datasets.tissue_phantom(n_cells=400, n_samples=6, size_px=200, staining_shift=0.3, rng=0)
    samples = []
    for image, mask in zip(sorted(sdata.images), sorted(sdata.labels), strict=True):
        element = sdata.images[image]
        markers = [str(c) for c in element.coords["c"].to_numpy()]
        one = cy.io.from_arrays(element.to_numpy(), np.asarray(sdata.labels[mask]), channels=markers, name=image)
        cy.pp.measure_cells(one)
        rows = sdata["table"].obs
        rows = rows[rows["region"].astype(str) == mask].set_index("instance_id")
        one["table"].obs["cell_type"] = (
            rows["cell_type"].astype(object).reindex(one["table"].obs["instance_id"]).to_numpy()
        )
        samples.append(one)
    return Side(samples[:4], [s["table"] for s in samples[:4]]), Side(samples[4:], [s["table"] for s in samples[4:]])


def embed(train: Side, test: Side, options: argparse.Namespace) -> dict[str, Any]:
    """Encoders trained on the training images; both sides embedded by each."""
    names = ["nextmarker"] + ([] if options.no_clearit else ["clearit"])
    encoders = {}
    for name in names:
        steps = options.clearit_steps if name == "clearit" else options.steps
        encoders[name] = cy.tl.fit_encoder(train.samples, name, steps=steps, rng=0)
        for sdata in (*train.samples, *test.samples):
            cy.tl.embed_cells(sdata, encoders[name])
    return encoders


def methods(
    train: Side, test: Side, encoders: dict[str, Any], options: argparse.Namespace
) -> dict[str, Callable[..., Any]]:
    """Name -> function of (labels, seed) that gives classes, probabilities [n, K] of all test cells, and those before calibration."""
    x, z = train.numbers(), test.numbers()
    scaler = StandardScaler().fit(x)

    def plain(model: Any, a: np.ndarray, b: np.ndarray) -> Callable[..., Any]:
        def run(labels: np.ndarray, seed: int) -> Found:
            rows = labels != ""
            fitted = model(seed).fit(a[rows], pd.Categorical(labels[rows]).codes)
            return sorted(set(labels[rows])), fitted.predict_proba(b), None

        return run

    def ours(head: Any, use_rep: list[str] | None = None, **arguments: Any) -> Callable[..., Any]:
        def run(labels: np.ndarray, seed: int) -> Found:
            on_pixels = not isinstance(head, str) or head == "cellsighter"
            joined = join(train, labels, pixels=on_pixels)
            found = cy.tl.fit_classifier(joined, "label", head, use_rep=use_rep, rng=seed, **arguments)
            proba = []
            for sdata in test.samples:
                data = sdata if on_pixels else sdata["table"]
                cy.tl.classify_cells(data, model=found, key_added="found")
                proba.append(sdata["table"].obsm["found_proba"].to_numpy())
            calibrated = np.concatenate(proba).astype(np.float64)
            raw = calibrated ** float(found.temperature)  # softmax(z) out of softmax(z / T)
            return list(found.classes), calibrated, raw / raw.sum(axis=1, keepdims=True)

        return run

    sizes = {"size_px": window(train), "schedule": replace(CELLSIGHTER_SCHEDULE, epochs=options.cellsighter_epochs)}
    everything: dict[str, Callable[..., Any]] = {
        "default": ours("logistic", ["X", "area", "X_nextmarker"]),
        "mean_lr": plain(
            lambda _: LogisticRegression(class_weight="balanced", max_iter=2000),
            scaler.transform(x),
            scaler.transform(z),
        ),
        "mean_rf": plain(lambda s: RandomForestClassifier(300, class_weight="balanced", random_state=s), x, z),
        "maps": ours("maps", ["X", "area"]),
        "cellsighter": ours("cellsighter", **sizes),
        "intensity": ours("logistic", ["X", "area"]),
        "nextmarker": ours("logistic", ["X_nextmarker"]),
        "clearit": ours("logistic", ["X_clearit"]),
        "clearit_intensity": ours("logistic", ["X", "area", "X_clearit"]),
        "clearit_linear": ours("linear", ["X_clearit"]),
        "clearit_mlp4": ours("mlp4", ["X_clearit"]),
        "finetuned": ours(encoders["nextmarker"]),
    }
    if "clearit" not in encoders:
        everything = {name: run for name, run in everything.items() if not name.startswith("clearit")}
    return {name: run for name, run in everything.items() if not options.only or name in options.only}


def join(train: Side, labels: np.ndarray, *, pixels: bool) -> Any:
    """All training tables as one with `label`; for models on pixels the images too."""
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    tables = []
    for i, (sdata, part) in enumerate(zip(train.samples, train.split(labels), strict=True)):
        table = sdata["table"].copy()
        table.obs["label"] = pd.Categorical(np.where(part == "", None, part))
        table.obs_names = [f"{i}_{name}" for name in table.obs_names]
        table.uns.pop("spatialdata_attrs", None)
        tables.append(table)
    joined = ad.concat(tables, merge="same", uns_merge="first")
    joined.obs["label"] = joined.obs["label"].astype("category")
    joined.obs["region"] = joined.obs["region"].astype(str).astype("category")
    if not pixels:
        if len(tables) > 1:
            joined.uns["spatialdata_attrs"] = {"region_key": "region"}
        return joined
    images = {k: v for s in train.samples for k, v in s.images.items()}
    masks = {k: v for s in train.samples for k, v in s.labels.items()}
    joined = TableModel.parse(joined, region=list(masks), region_key="region", instance_key="instance_id")
    return SpatialData(images=images, labels=masks, tables={"table": joined})


def window(train: Side) -> int:
    """CellSighter's window in pixels, even."""
    area = np.median(np.concatenate([t.obs["area"].to_numpy() for t in train.tables]))
    return min(WIDEST, 2 * round(DIAMETERS * float(np.sqrt(4 * area / np.pi)) / 2))


def draw(truth: np.ndarray, fraction: float, seed: list[int]) -> np.ndarray:
    """Labels of a random part of the cells, "" for the others; every class has at least one."""
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(truth != "")
    if fraction >= 1:
        return truth
    first = [rng.choice(np.flatnonzero(truth == c)) for c in np.unique(truth[known])]
    rest = np.setdiff1d(known, first)
    more = max(0, round(fraction * len(known)) - len(first))
    labels = np.full(truth.shape, "", dtype=truth.dtype)
    rows = np.concatenate([first, rng.choice(rest, more, replace=False)]).astype(int)
    labels[rows] = truth[rows]
    return labels


def score(truth: np.ndarray, classes: list[str], proba: np.ndarray, raw: np.ndarray | None = None) -> dict[str, float]:
    """F1, PR-AUC and calibration over the test cells with a class; a class that the method does not know counts as missed."""
    known = (truth != "") & np.isfinite(proba).all(axis=1)
    names = sorted(set(truth[known]))
    called = np.array(classes)[proba[known].argmax(axis=1)]
    full = np.zeros((known.sum(), len(names)))
    for k, name in enumerate(names):
        if name in classes:
            full[:, k] = proba[known, classes.index(name)]
    one_hot = (truth[known][:, None] == np.array(names)).astype(int)
    codes = pd.Index(classes).get_indexer(truth[known])
    certain = codes >= 0
    return {
        "macro_f1": cy.metrics.f1(truth[known], called, average="macro", labels=names),
        "micro_f1": float((truth[known] == called).mean()),
        "pr_auc": cy.metrics.pr_auc(one_hot, full, pieces=1).mean_of_medians,
        "ece": cy.metrics.calibration_error(codes[certain], proba[known][certain]),
        "ece_raw": float("nan") if raw is None else cy.metrics.calibration_error(codes[certain], raw[known][certain]),
    }


def run(train: Side, test: Side, options: argparse.Namespace, fold: int) -> list[dict[str, Any]]:
    """Every method on every draw."""
    encoders = embed(train, test, options)
    runs = methods(train, test, encoders, options)
    rows = []
    for fraction in options.fractions:
        for seed in range(1 if fraction >= 1 else options.draws):
            labels = draw(train.truth, fraction, [seed, fold, round(1000 * fraction)])
            for name, method in runs.items():
                if (name in options.not_at_full and fraction >= 1) or (
                    name == "cellsighter" and seed >= options.cellsighter_draws
                ):
                    continue
                start = time.perf_counter()
                found = score(test.truth, *method(labels, seed))
                rows.append(
                    {
                        "fold": fold,
                        "fraction": fraction,
                        "draw": seed,
                        "method": name,
                        "cells": int((labels != "").sum()),
                    }
                    | found
                )
                took = time.perf_counter() - start
                print(
                    f"{fraction:5.2f} draw {seed} {name:18} macro-F1 {found['macro_f1']:.3f}  {took:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return rows


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Means over draws and folds, their spread, and paired differences to the default."""
    result: dict[str, Any] = {}
    for measure in ("macro_f1", "micro_f1", "pr_auc", "ece", "ece_raw"):
        table = rows.pivot_table(index="fraction", columns="method", values=measure, aggfunc="mean").round(4)
        result[measure] = [
            {"fraction": f} | {k: v for k, v in line.items() if v == v} for f, line in table.to_dict("index").items()
        ]
    wide = rows.pivot_table(index=["fraction", "fold", "draw"], columns="method", values="macro_f1")
    spread = wide.groupby("fraction").std().round(4)
    result["macro_f1_sd"] = [
        {"fraction": f} | {k: v for k, v in line.items() if v == v} for f, line in spread.to_dict("index").items()
    ]
    if "default" in wide:
        gain = wide.rsub(wide["default"], axis=0).drop(columns="default")
        result["default_minus"] = [
            {
                "fraction": f,
                "method": m,
                "mean": round(float(g.mean()), 4),
                "sd": round(float(g.std()), 4),
                "wins": round(float((g > 0).mean()), 2),
            }
            for m in gain
            for f, g in gain[m].dropna().groupby("fraction")
        ]
        by = rows[rows["method"] == "default"].groupby("fraction")["pr_auc"].mean()
        if {0.1, 1.0} <= set(by.index):
            result["pr_auc_loss_at_10pct"] = round(float(1 - by[0.1] / by[1.0]), 4)
        few = [r for r in result["macro_f1"] if r["fraction"] <= 0.25]
        result["beats_maps_and_cellsighter"] = all(
            r["default"] > r[b] for r in few for b in ("maps", "cellsighter") if b in r
        )
    return result


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Arguments that say what to train and to test on."""
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path, help="default: the two halves of the training fields in turn")
    parser.add_argument("--phantom", action="store_true", help="six synthetic patients instead of a folder")


def check_fields(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.phantom == bool(options.train):
        parser.error("give --train FOLDER or --phantom")


def sides(options: argparse.Namespace) -> tuple[str, list[tuple[Side, Side]]]:
    """Name of the set, and its pairs of something to train on and something to test on."""
    if options.phantom:
        return "phantom", [phantom()]
    name = options.train.resolve().parent.name
    if options.test:
        return name, [(side(read(options.train)), side(read(options.test)))]
    upper, lower = halves(read(options.train))
    return name, [(side(a), side(b)) for a, b in ((upper, lower), (lower, upper))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fields(parser)
    parser.add_argument("--draws", type=int, default=5, help="of each budget (default 5)")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="default: all")
    parser.add_argument("--steps", type=int, help="of NeXtMarker's training; default: the method's recipe")
    parser.add_argument(
        "--clearit-steps", type=int, help=f"of CLEAR-IT's training; default: its recipe, on a CPU {ON_CPU['steps']}"
    )
    parser.add_argument(
        "--cellsighter-epochs", type=int, help=f"default: {CELLSIGHTER_SCHEDULE.epochs}, on a CPU {ON_CPU['epochs']}"
    )
    parser.add_argument(
        "--cellsighter-draws", type=int, help=f"default: all, on a CPU {ON_CPU['draws']}, none of all labels"
    )
    parser.add_argument("--no-clearit", action="store_true", help="leave CLEAR-IT out (minutes to hours without a GPU)")
    parser.add_argument(
        "--not-at-full", nargs="*", default=[], metavar="METHOD", help="methods to leave out at 100 %% of the labels"
    )
    parser.add_argument("--rows", type=Path, help="write every single score to this CSV file")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    check_fields(parser, options)
    warnings.filterwarnings("ignore")
    gpu = torch.cuda.is_available()
    options.cellsighter_epochs = options.cellsighter_epochs or (
        CELLSIGHTER_SCHEDULE.epochs if gpu else ON_CPU["epochs"]
    )
    options.cellsighter_draws = options.cellsighter_draws or (options.draws if gpu else ON_CPU["draws"])
    options.clearit_steps = options.clearit_steps or (None if gpu else ON_CPU["steps"])
    options.not_at_full = [*options.not_at_full, *([] if gpu else ["cellsighter"])]

    name, folds = sides(options)
    rows = pd.DataFrame([r for i, (train, test) in enumerate(folds) for r in run(train, test, options, i)])
    if options.rows:
        rows.to_csv(options.rows, index=False)
    result = {"set": name, "folds": len(folds), "draws": options.draws} | summary(rows)
    print(pd.DataFrame(result["macro_f1"]).to_string(index=False))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
