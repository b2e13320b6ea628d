"""Which cells are positive for a marker: scorers against mean intensity and attributions, on cells with known types.

    python benchmarks/positivity.py --train FOLDER [--test FOLDER] --json
    python benchmarks/positivity.py --phantom --json
    python benchmarks/positivity.py --phantom --noise 0.1 0.2 0.3 --json

Fields, halves and the phantom are those of `few_labels.py`; the phantom has much spill-over here. What a cell is positive for follows from its
type: `PAIRS` of marker and types for the real fields, the truth for the phantom. Cells of types that say nothing about a marker are left out of
it. Numbers are over the cells of the test side, AUROC of the score and F1 of the calls, means over the folds. Methods:

compact      the scorer that ships, which has seen no real tissue; positive from 0.5 on
fitted       `tl.fit_scorer`: the compact scorer trained further on the types of the training side; from 0.5 on
discs        as compact, but the cells are known by their centres only and get discs of 8 micrometres
mean         mean intensity of the cell; thresholds by Otsu and by a mixture of two normal distributions (of the logarithm) over the test side
attribution  NeXtMarker's, trained without labels on the training side; threshold by Otsu

`interval` of a marker: the middle 95 % of the difference of AUROC, fitted less mean, over bootstrap samples of the same cells for both.

`--noise` gives that share of the training cells another type, at random, as labels from clusters are wrong; with `--noise-of labels` it flips that
share of the labels, cell by cell and marker by marker, so that of the positive labels of a rare marker most are wrong. Compared are the robust and the plain training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from few_labels import Side, add_fields, check_fields, halves, join, read, side
from skimage.filters import threshold_otsu
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

import cytonym as cy
from cytonym.datasets._presets import PRESETS

# marker -> types that have it, types that say nothing about it; a set is known by its types
PAIRS: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "codex_lymphoid_crop": {"CD8": ({"4"}, set()), "FOXP3": ({"10"}, set()), "CD4": ({"5"}, {"6", "10"})},
    "mibi_lymphnode": {
        "CD20": ({"B cell"}, {"M1 Macrophage"}),
        "CD8": ({"CD8 T cell"}, {"NK cell"}),
        "FoxP3": ({"Treg"}, set()),
        "CD56": ({"NK cell"}, set()),
        "CD11c": ({"Dendritic cell"}, {"M1 Macrophage", "M2 Macrophage"}),
        "CD68": ({"M1 Macrophage"}, {"M2 Macrophage", "Dendritic cell"}),
        "CD163": ({"M2 Macrophage"}, {"M1 Macrophage"}),
    },
    "imc_pancreas": {"PIN": ({"celltype_A"}, set()), "CD99": ({"celltype_A", "celltype_B"}, set())},
    "mif_lymphoma_fihc4": {
        "Alexa 594": ({"Cytotoxic T"}, set()),
        "FITC": ({"Helper T"}, set()),
        "Cy5": ({"B"}, set()),
    },
}


SAMPLES = 500


def phantom_sides() -> list[tuple[Side, Side]]:
    """Four patients to train on and two to test on, whose cells spill onto their neighbours and whose staining differs."""
    sdata = cy.datasets.tissue_phantom(n_cells=400, n_samples=6, size_px=200, spillover=0.8, staining_shift=0.3, rng=1)
    samples = []
    for image, mask in zip(sorted(sdata.images), sorted(sdata.labels), strict=True):
        element = sdata.images[image]
        markers = [str(c) for c in element.coords["c"].to_numpy()]
        one = cy.io.from_arrays(
            element.to_numpy(), np.asarray(sdata.labels[mask]), channels=markers, name=image, pixel_size=1.0
        )
        cy.pp.measure_cells(one)
        rows = sdata["table"].obs[sdata["table"].obs["region"].astype(str) == mask].set_index("instance_id")
        one["table"].obs["cell_type"] = (
            rows["cell_type"].astype(object).reindex(one["table"].obs["instance_id"]).to_numpy()
        )
        samples.append(one)
    return [
        (Side(samples[:4], [s["table"] for s in samples[:4]]), Side(samples[4:], [s["table"] for s in samples[4:]]))
    ]


def matrix(markers: list[str], types: list[str], pairs: dict[str, tuple[set[str], set[str]]]) -> pd.DataFrame:
    """Cell types by markers: 1, 0 and NaN."""
    table = pd.DataFrame(0.0, index=types, columns=markers)
    for marker, (positive, undefined) in pairs.items():
        table.loc[[t for t in types if t in positive], marker] = 1
        table.loc[[t for t in types if t in undefined], marker] = np.nan
    return table


def known_pairs(train: Side) -> dict[str, tuple[set[str], set[str]]]:
    """The pairs of the set whose types and markers these are."""
    types, markers = set(train.truth) - {""}, set(train.tables[0].var_names)
    fitting = [p for p in PAIRS.values() if set(p) <= markers and any(positive <= types for positive, _ in p.values())]
    if not fitting:
        msg = f"No pairs of marker and type are known for markers {sorted(markers)} and types {sorted(types)}."
        raise SystemExit(msg)
    return fitting[0]


def cohort(samples: Side) -> Any:
    """All images of a side in one object: they share the brightness of each marker."""
    return join(samples, samples.truth, pixels=True)


def labelled(sdata: Any, table: pd.DataFrame, noise: float, *, of: str = "types") -> None:
    """`obsm["activity"]`: 1, 0 and NaN by type; a share of the cells has another type, or a share of the labels is flipped."""
    types = sdata["table"].obs["cell_type"].astype(object).fillna("").astype(str).to_numpy()
    rng = np.random.default_rng(0)
    if of == "types":
        known = np.array(sorted(set(types) - {""}))
        wrong = (rng.random(len(types)) < noise) & (types != "")
        steps = rng.integers(1, len(known), len(types))
        others = known[(np.searchsorted(known, types) + steps) % len(known)]
        types = np.where(wrong, others, types)
    values = table.reindex(types).to_numpy()
    if of == "labels":
        values = np.where(rng.random(values.shape) < noise, 1 - values, values)
    sdata["table"].obsm["activity"] = pd.DataFrame(values, index=sdata["table"].obs_names, columns=table.columns)


def gathered(sdata: Any, key: str, markers: list[str]) -> pd.DataFrame:
    """A DataFrame of `obsm`, or X, of all cells."""
    table = sdata["table"]
    frame = table.to_df() if key == "X" else cy.get.markers(table, key).to_df()
    return frame[markers].reset_index(drop=True)


def by_centers(sdata: Any, markers: list[str]) -> pd.DataFrame:
    """Scores of the same cells by the compact scorer, with discs in place of the masks."""
    table = sdata["table"]
    points = {}
    for region in table.obs["region"].unique():
        rows = table.obs[table.obs["region"] == region]
        xy = pd.DataFrame(table[rows.index].obsm["spatial"], columns=["x", "y"], index=rows["instance_id"].to_numpy())
        points[f"{region}_centers"] = ShapesModel.parse(xy.to_numpy(), geometry=0, radius=1.0, index=xy.index)
    centers = SpatialData.init_from_elements({**sdata.images, **points})
    keys = {"image_key": list(sdata.images), "shapes_key": list(points)}
    size = table.uns["compact"]["params"]["pixel_size"]
    found = cy.tl.score_markers(
        centers, "compact", channels=markers, pixel_size=float(np.median(size)), inplace=False, **keys
    )
    scores = cy.get.markers(found, "nimbus_positivity").to_df()
    scores.index = found.obs["region"].astype(str) + "/" + found.obs["instance_id"].astype(str)
    wanted = table.obs["region"].astype(str) + "_centers/" + table.obs["instance_id"].astype(str)
    return scores.reindex(wanted).set_axis(table.obs_names)


def truth_of(sdata: Any, table: pd.DataFrame, markers: list[str]) -> pd.DataFrame:
    """1, 0 and NaN for each cell and marker."""
    types = sdata["table"].obs["cell_type"].astype(object).fillna("").astype(str)
    return table.reindex(types)[markers].reset_index(drop=True)


def split(values: np.ndarray, how: str) -> np.ndarray:
    """Positive or not, by a threshold from the values alone."""
    values = np.nan_to_num(values)
    if how == "otsu":
        return values >= threshold_otsu(values) if np.ptp(values) > 0 else np.zeros(len(values), bool)
    if not (values > 0).any():
        return np.zeros(len(values), bool)
    log = np.log1p(values / np.median(values[values > 0]))[:, None]
    model = GaussianMixture(2, random_state=0).fit(log)
    return model.predict(log) == model.means_[:, 0].argmax()


def judge(truth: np.ndarray, values: np.ndarray, called: dict[str, np.ndarray]) -> dict[str, float]:
    known = np.isfinite(truth) & np.isfinite(values)
    target = truth[known] == 1
    if target.all() or not target.any():
        return {}
    found = {"auroc": float(roc_auc_score(target, values[known]))}
    return found | {f"f1_{name}": float(f1_score(target, c[known])) for name, c in called.items()}


def differences(truth: np.ndarray, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """AUROC of `a` less that of `b` over bootstrap samples of the cells, positive and negative ones by themselves."""
    known = np.isfinite(truth) & np.isfinite(a) & np.isfinite(b)
    target = truth[known] == 1
    if target.all() or not target.any():
        return np.empty(0)
    ranks = [np.unique(x[known], return_inverse=True)[1] for x in (a, b)]
    positive, negative = np.flatnonzero(target), np.flatnonzero(~target)
    found = np.empty(SAMPLES)
    for i in range(SAMPLES):
        drawn = rng.choice(positive, len(positive)), rng.choice(negative, len(negative))
        first, second = (_area(rank[drawn[0]], rank[drawn[1]]) for rank in ranks)
        found[i] = first - second
    return found


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    """AUROC of whole numbers."""
    n = int(max(positive.max(), negative.max())) + 1
    below = np.bincount(negative, minlength=n)
    less = np.cumsum(below) - below
    return float((less[positive] + below[positive] / 2).sum() / len(positive) / len(negative))


def run(train: Side, test: Side, table: pd.DataFrame, options: argparse.Namespace) -> list[dict[str, Any]]:
    """AUROC and F1 of every method and marker."""
    markers = [m for m in table.columns if table[m].nunique() == 2]
    keys: dict[str, Any] = {"channels": markers, "device": "auto"}
    train_data, test_data = cohort(train), cohort(test)
    labelled(train_data, table[markers], 0.0)
    start = time.perf_counter()
    fitted = cy.tl.fit_scorer(train_data, marker_labels="activity", channels=markers, steps=options.steps, rng=0)
    print(f"fitted in {time.perf_counter() - start:.0f} s, {fitted.provenance}", file=sys.stderr, flush=True)
    encoder = cy.tl.fit_encoder(train_data, "nextmarker", rng=0)
    cy.tl.score_markers(test_data, "compact", key_added="compact", **keys)
    cy.tl.score_markers(test_data, fitted, key_added="fitted", **keys)
    cy.tl.embed_cells(test_data, encoder)
    test_data["table"].obsm["discs"] = by_centers(test_data, markers)
    truth = truth_of(test_data, table, markers)
    scores = {
        name: gathered(test_data, key, markers)
        for name, key in (
            ("compact", "compact_positivity"), ("discs", "discs"), ("fitted", "fitted_positivity"), ("mean", "X"), ("attribution", "nextmarker_attributions")
        )
    }  # fmt: skip
    rows = []
    for marker in markers:
        row: dict[str, Any] = {"marker": marker}
        for name, frame in scores.items():
            values = frame[marker].to_numpy(np.float64)
            own = (
                {"": values >= 0.5}
                if name in ("compact", "discs", "fitted")
                else {f"_{how}": split(values, how) for how in ("otsu", "mixture")}
            )
            found = judge(truth[marker].to_numpy(), values, {f"{name}{how}": c for how, c in own.items()})
            row |= {(name if k == "auroc" else k): v for k, v in found.items()}
        pair = (scores[name][marker].to_numpy(np.float64) for name in ("fitted", "mean"))
        row["differences"] = differences(truth[marker].to_numpy(), *pair, np.random.default_rng(0))
        row["positives"] = int((truth[marker] == 1).sum())
        rows.append(row)
        print({k: v for k, v in row.items() if k != "differences"}, file=sys.stderr, flush=True)
    return rows


def run_noise(train: Side, test: Side, table: pd.DataFrame, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean F1 over the markers of robust and plain training on labels of which some are wrong."""
    markers = [m for m in table.columns if table[m].nunique() == 2]
    train_data, test_data = cohort(train), cohort(test)
    truth = truth_of(test_data, table, markers)
    rows = []
    for noise in options.noise:
        row: dict[str, Any] = {"noise": noise}
        labelled(train_data, table[markers], noise, of=options.noise_of)
        for name, robust in (("robust", True), ("plain", False)):
            start = cy.models.NimbusConfig(filters=8, depth=4) if options.from_scratch else "compact"
            model = cy.tl.fit_scorer(
                train_data,
                marker_labels="activity",
                model=start,
                channels=markers,
                steps=options.steps,
                robust=robust,
                rng=0,
            )
            cy.tl.score_markers(test_data, model, key_added=name, channels=markers)
            scores = gathered(test_data, f"{name}_positivity", markers)
            found = [
                judge(truth[m].to_numpy(), scores[m].to_numpy(np.float64), {"": scores[m].to_numpy() >= 0.5})
                for m in markers
            ]
            row[name] = round(float(np.mean([f["f1_"] for f in found if f])), 4)
            row[f"{name}_auroc"] = round(float(np.mean([f["auroc"] for f in found if f])), 4)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def summary(rows: list[dict[str, Any]], *, phantom: bool) -> dict[str, Any]:
    """Means over the folds, marker by marker."""
    frame = pd.DataFrame(rows)
    table = frame.drop(columns=["positives", "differences"]).groupby("marker", sort=False).mean()
    spread = frame.groupby("marker", sort=False)["differences"].agg(
        lambda folds: np.mean(np.stack(list(folds)), axis=0)
    )
    methods = ["fitted", "compact", "discs", "mean", "attribution"]
    result: dict[str, Any] = {
        "auroc": [{"marker": m} | line for m, line in table[methods].round(4).to_dict("index").items()]
    }
    columns = [c for c in table if c.startswith("f1_")]
    result["f1"] = [{"marker": m} | line for m, line in table[columns].round(4).to_dict("index").items()]
    for line in result["auroc"]:
        line["interval"] = [round(float(v), 4) for v in np.quantile(spread[line["marker"]], [0.025, 0.975])]
    result["fitted_clearly_below_mean"] = [line["marker"] for line in result["auroc"] if line["interval"][1] < 0]
    result["fitted_at_least_mean"] = bool((table["fitted"] >= table["mean"]).all())
    best = table[["f1_mean_otsu", "f1_mean_mixture"]].mean().max()
    if phantom:
        result["phantom_f1_gain"] = round(float(table["f1_fitted"].mean() - best), 4)
        result["phantom_f1_gain_compact"] = round(float(table["f1_compact"].mean() - best), 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fields(parser)
    parser.add_argument("--steps", type=int, help="of the scorer's training; default: the recipe's")
    parser.add_argument(
        "--noise", type=float, nargs="+", help="shares of wrong labels: compare robust with plain training"
    )
    parser.add_argument("--noise-of", choices=("types", "labels"), default="types", help="what is wrong")
    parser.add_argument("--from-scratch", action="store_true", help="with --noise: start from new weights")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    check_fields(parser, options)
    warnings.filterwarnings("ignore")
    if options.phantom:
        name, folds = "phantom", phantom_sides()
        preset = PRESETS["immune"]
        table = pd.DataFrame(
            {
                m: {t.name: float(t.markers.get(m, 0) > 0) for t in preset.types}
                for m in preset.localisation
                if m != preset.dna
            }
        )
    else:
        name = options.train.resolve().parent.name
        upper, lower = halves(read(options.train))
        folds = [(side(upper), side(lower)), (side(lower), side(upper))]
        if options.test:
            folds = [(side(read(options.train)), side(read(options.test)))]
        pairs = known_pairs(folds[0][0])
        types = sorted({t for a, b in folds for t in (*a.truth, *b.truth)} - {""})
        table = matrix(list(pairs), types, pairs)
    result: dict[str, Any] = {"set": name}
    if options.noise:
        result["noise_of"] = options.noise_of
        rows = [r for a, b in folds for r in run_noise(a, b, table, options)]
        result["noise"] = pd.DataFrame(rows).groupby("noise").mean().round(4).reset_index().to_dict("records")
        result["robust_beats_plain"] = all(r["robust"] > r["plain"] for r in result["noise"])
    else:
        result |= summary([r for a, b in folds for r in run(a, b, table, options)], phantom=options.phantom)
        print(pd.DataFrame(result["auroc"]).to_string(index=False))
        print(pd.DataFrame(result["f1"]).to_string(index=False))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
