"""How well are the nuclei of immunohistochemistry found, called and scored without any weights?

    python benchmarks/ihc.py --train DIR --test DIR --points DIR --scanners DIR [DIR] --json

`--train` and `--test`: folders of tiles with masks (ihc_deepliif): Dice, IoU and pixel accuracy of positive and negative nuclei
(each averaged over both, as published, both images as they are), Dice of all nuclei, counts, difference of the percent positive in
points, and F1 of the nuclei within 10 pixels. `--points`: slides with nuclei marked by hand inside a region (ihc_ki67_points):
precision, recall and F1 of the nuclei in the region within 10 pixels, one to one, F1 of positive and negative ones, and the
difference of the percent positive by case. Settings of the classical method were chosen on the slides of odd number in the list
(`tuned on`) and on the tiles Bladder1 and 22_2; the other slides and tiles were only looked at when all was settled.
`--scanners`: the same region as two scanners see it (ihc_ki67_openslide).

Methods: `classical` is `tl.translate_stain` and `tl.segment_nuclei` with default settings, each image on its own; `classical, one
diameter` knows that all slides have one magnification and takes the median of their diameters; `naive` is Otsu's threshold of the
grey image for nuclei, and of DAB for positive ones; `published` are the class maps that the published network drew, by the published
rules.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from skimage.filters import threshold_otsu

import cytonym as cy
from cytonym.data.class_map import CellRules, cells_of_map
from cytonym.data.stains import separate_stains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spatialdata import SpatialData

    Method = Callable[[np.ndarray], "Nuclei"]

REACH_PX = 10.0
LEAST_PX = 30
TUNED = ("Bladder1", "22_2")


class Nuclei(NamedTuple):
    """What a method finds in an image."""

    centers: np.ndarray
    """(y, x) [N, 2]."""
    positive: np.ndarray
    labels: np.ndarray
    """int [H, W], label = row + 1."""

    def classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the positive and of the negative nuclei."""
        positive = np.concatenate([[False], self.positive])[self.labels]
        return positive, (self.labels > 0) & ~positive


# ---------------------------------------------------------------------------------------------------------------- methods
def classical(rgb: np.ndarray, **settings: Any) -> Nuclei:
    sdata = brightfield(rgb)
    cy.tl.translate_stain(sdata, **settings)
    cy.tl.segment_nuclei(sdata)
    return segmented(sdata)


def segmented(sdata: SpatialData) -> Nuclei:
    """The nuclei that `tl.segment_nuclei` has found."""
    table = sdata["table"]
    old = table.obs["instance_id"].to_numpy()
    lookup = np.zeros(int(old.max()) + 1, dtype=int)
    lookup[old] = np.arange(1, len(old) + 1)
    centers = table.obsm["spatial"][:, ::-1]
    return Nuclei(centers, (table.obs["ihc_class"] == "positive").to_numpy(), lookup[sdata["nuclei"].to_numpy()])


def diameter_of(rgb: np.ndarray) -> float:
    """Diameter of the nuclei that `classical` works with."""
    sdata = brightfield(rgb)
    cy.tl.translate_stain(sdata, class_map=False)
    return float(sdata.attrs["translate_stain"]["ihc_stains"]["diameter_px"])


def naive(rgb: np.ndarray) -> Nuclei:
    grey = rgb @ [0.2125, 0.7154, 0.0721]
    dab = separate_stains(rgb.transpose(2, 0, 1))[1]
    labels, _ = ndimage.label(grey < threshold_otsu(grey), np.ones((3, 3)))
    return measured(labels, dab > threshold_otsu(dab))


def published(class_map: np.ndarray) -> Nuclei:
    labels, cells = cells_of_map(class_map.transpose(2, 0, 1))
    lookup = np.concatenate([[0], np.where(cells.kept, np.cumsum(cells.kept), 0)])
    return Nuclei(cells.parts.center[cells.kept][:, ::-1] + 0.5, cells.positive[cells.kept], lookup[labels])


def measured(labels: np.ndarray, positive: np.ndarray) -> Nuclei:
    """Nuclei of a label image, without specks, positive where at least half of their pixels are."""
    area = np.bincount(labels.ravel())
    area[0] = 0
    kept = np.flatnonzero(area >= LEAST_PX)
    lookup = np.zeros(len(area), dtype=int)
    lookup[kept] = np.arange(1, len(kept) + 1)
    labels = lookup[labels]
    index = np.arange(1, len(kept) + 1)
    centers = np.reshape(ndimage.center_of_mass(labels > 0, labels, index), (-1, 2)) + 0.5
    return Nuclei(centers, ndimage.mean(positive, labels, index) >= 0.5, labels)


def brightfield(rgb: np.ndarray) -> SpatialData:
    return cy.io.from_arrays(rgb.transpose(2, 0, 1), channels=["r", "g", "b"], name="ihc")


# ---------------------------------------------------------------------------------------------------------------- scores
def pairs(found: np.ndarray, true: np.ndarray) -> int:
    """Largest number of points that belong together one to one within 10 pixels."""
    if not len(found) or not len(true):
        return 0
    near = cKDTree(found).query_ball_tree(cKDTree(true), REACH_PX)
    rows = np.repeat(np.arange(len(found)), [len(n) for n in near])
    columns = np.concatenate([np.asarray(n, dtype=int) for n in near])
    graph = csr_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(found), len(true)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def f1(hits: int, n_found: int, n_true: int) -> float:
    return 2 * hits / (n_found + n_true) if n_found + n_true else 1.0


def scores(found: np.ndarray, positive: np.ndarray, true: np.ndarray, true_positive: np.ndarray) -> dict[str, float]:
    """Detection, calls and percent positive of points."""
    hits = pairs(found, true)
    row = {
        "n_found": len(found),
        "n_true": len(true),
        "precision": hits / max(len(found), 1),
        "recall": hits / len(true),
    }
    row["det_f1"] = f1(hits, len(found), len(true))
    for name, here, there in (("pos_f1", positive, true_positive), ("neg_f1", ~positive, ~true_positive)):
        row[name] = f1(pairs(found[here], true[there]), int(here.sum()), int(there.sum()))
    row["percent"] = 100 * positive.mean() if len(positive) else 0.0
    row["percent_true"] = 100 * true_positive.mean()
    row["percent_error"] = abs(row["percent"] - row["percent_true"])
    return row


def mask_scores(found: Nuclei, truth: np.ndarray) -> dict[str, float]:
    """Dice, IoU and pixel accuracy of the classes, and of the nuclei whatever their class."""
    row: dict[str, Any] = {}
    masks = list(zip(("positive", "negative"), found.classes(), (truth[..., 0] > 0, truth[..., 2] > 0), strict=True))
    for name, mask, true in masks:
        both, either = int((mask & true).sum()), int((mask | true).sum())
        row[f"dice_{name}"] = 2 * both / (both + either) if both else float(either == 0)
        row[f"iou_{name}"] = both / either if both else float(either == 0)
        row[f"accuracy_{name}"] = float((mask == true).mean())
    for what in ("dice", "iou", "accuracy"):
        row[what] = (row.pop(f"{what}_positive") + row.pop(f"{what}_negative")) / 2
    nucleus = (truth[..., 0] > 0) | (truth[..., 2] > 0)
    inside = found.labels > 0
    row["dice_nuclei"] = 2 * int((inside & nucleus).sum()) / max(int(inside.sum() + nucleus.sum()), 1)
    return row


# ---------------------------------------------------------------------------------------------------------------- measures
def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def tiles(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Name, image, mask, and the class map that the published network drew."""
    for path in sorted((folder / "coregistered").glob("*.png")):
        strip = picture(path)
        side = strip.shape[0]
        yield path.stem, strip[:, :side], strip[:, -side:], None
    for path in sorted((folder / "ihc_seg").glob("*_ihc.png")):
        name = path.stem.removesuffix("_ihc")
        drawn = folder / "deepliif_outputs" / f"{name}_5_seg.png"
        truth = path.with_name(f"{name}_groundtruth.png")
        yield name, picture(path), picture(truth), picture(drawn) if drawn.is_file() else None


def published_counts(folder: Path) -> dict[str, int]:
    """Tiles with counts of the published program beside them, and how many of these come out the same."""
    checked = same = 0
    for path in sorted((folder / "coregistered").glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        strip = picture(path.with_suffix(".png"))
        rules = CellRules(seg_thresh=told["prob_thresh"], size_thresh=told["size_thresh"])
        score = cells_of_map(strip[:, -strip.shape[0] :].transpose(2, 0, 1), rules)[1].score()
        checked += 1
        same += all(score[key] == told[key] for key in ("num_total", "num_pos", "num_neg", "percent_pos"))
    return {"tiles": checked, "same": same}


def measure_tiles(folder: Path) -> pd.DataFrame:
    """All methods on all tiles of a folder."""
    rows = []
    for name, rgb, truth, drawn in tiles(folder):
        true_labels, _ = ndimage.label((truth[..., 0] > 0) | (truth[..., 2] > 0), np.ones((3, 3)))
        true = measured(true_labels, truth[..., 0] > 0)
        methods = {"classical": classical(rgb), "naive": naive(rgb)}
        if drawn is not None:
            methods["published"] = published(drawn)
        for method, found in methods.items():
            row = mask_scores(found, truth) | scores(found.centers, found.positive, true.centers, true.positive)
            rows.append({"tile": name, "method": method} | row)
    return pd.DataFrame(rows)


def cases(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, pd.DataFrame]]:
    for path in sorted(folder.glob("*_nuclei.csv")):
        name = path.stem.removesuffix("_nuclei")
        region = np.asarray(Image.open(folder / f"{name}_region.png").convert("L")) > 0
        yield name, picture(folder / f"{name}.jpg"), region, pd.read_csv(path)


def common_diameter(folder: Path) -> float:
    """Diameter of the nuclei of slides of one magnification, in pixels: the median of what each tells by itself."""
    return float(np.median([diameter_of(rgb) for _, rgb, _, _ in cases(folder)]))


def measure_points(folder: Path, methods: dict[str, Method], *, held_out: bool = False) -> pd.DataFrame:
    """Methods on all slides of a folder. Half of the slides were tuned on, unless the folder is held out."""
    rows = []
    for i, (name, rgb, region, nuclei) in enumerate(cases(folder)):
        true, positive = nuclei[["y", "x"]].to_numpy(float), (nuclei["label"] == "positive").to_numpy()
        for method, find in methods.items():
            found = find(rgb)
            pixel = np.minimum(found.centers.astype(int), np.array(region.shape) - 1)
            here = region[pixel[:, 0], pixel[:, 1]]
            row = scores(found.centers[here], found.positive[here], true, positive)
            half = "held out" if held_out else "tuned on" if i % 2 == 0 else "other half"
            rows.append({"case": name, "half": half, "method": method} | row)
    return pd.DataFrame(rows)


def measure_scanners(folders: list[Path]) -> dict[str, float]:
    """Percent positive of the region by each scanner, and of the finest scan at the coarser pixel."""
    found: dict[str, float] = {}
    paths = sorted(path for folder in folders for path in folder.glob("OS-2-*.ome.tif"))
    for path in paths:
        sdata = cy.io.read_tiffs(path)
        cy.tl.translate_stain(sdata)
        cy.tl.segment_nuclei(sdata)
        row = cy.tl.score_ihc(sdata).iloc[0]
        found[path.name.removesuffix(".ome.tif")] = float(row["percent_pos"])
        print(
            f"{path.name:24} {int(row['num_total']):6} nuclei {row['percent_pos']:6.1f} % positive, H {row['h_score']:.0f}"
        )
    return found


def slide_numbers() -> dict[str, Any]:
    """What `ihc_slide.py` measures, in a process of its own."""
    call = [sys.executable, str(Path(__file__).with_name("ihc_slide.py")), "--json"]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(f"\n{done.strip()}")
    return json.loads(done.splitlines()[-1])  # type: ignore[no-any-return]


def seam(rgb: np.ndarray) -> int:
    """Pixels and nuclei that differ between small tiles and one that holds the whole image."""
    made = []
    for side in (97, 4096):
        sdata = brightfield(rgb)
        cy.tl.translate_stain(sdata, tile_px=side)
        cy.tl.segment_nuclei(sdata, tile_px=side)
        made.append(sdata)
    images = sum(
        int((made[0][key].to_numpy() != made[1][key].to_numpy()).sum()) for key in ("ihc_stains", "ihc_class_map")
    )
    labels = int((made[0]["nuclei"].to_numpy() != made[1]["nuclei"].to_numpy()).sum())
    return images + labels + int(not made[0]["table"].obs.equals(made[1]["table"].obs))


SHOWN = ["precision", "recall", "det_f1", "pos_f1", "neg_f1", "percent_error"]
MASKS = ["dice", "iou", "accuracy", "dice_nuclei", *SHOWN]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="tiles with masks, some of which were tuned on")
    parser.add_argument("--test", type=Path, help="tiles with masks that nobody has tuned on")
    parser.add_argument("--points", type=Path, nargs="+", default=[], help="slides with marked nuclei")
    parser.add_argument("--held-out", action="store_true", help="no slide of --points was tuned on")
    parser.add_argument("--scanners", type=Path, nargs="+", default=[], help="folders with OS-2-*.ome.tif")
    parser.add_argument("--slide", action="store_true", help="also what `ihc_slide.py` measures, which takes long")
    parser.add_argument("--cases", action="store_true", help="also print every tile and slide")
    parser.add_argument("--learn", action="store_true", help="train on the co-registered tiles of --train: minutes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    logging.getLogger("cytonym").setLevel(logging.ERROR)
    pd.set_option("display.width", 220, "display.max_columns", 30)
    result: dict[str, Any] = {}
    start = time.perf_counter()
    from skimage.data import immunohistochemistry

    result["seam"] = seam(immunohistochemistry())
    print(f"pixels and rows that differ between small tiles and one tile: {result['seam']}")
    for name, folder in (("train", options.train), ("test", options.test)):
        if folder is None:
            continue
        result[f"{name}_published_counts"] = published_counts(folder)
        print(f"counts of the published program in {folder}: {result[f'{name}_published_counts']}")
        frame = measure_tiles(folder)
        if options.cases or name == "train":
            print(f"\ntiles of {folder}, tuned on {', '.join(TUNED)}\n{frame.round(3).to_string(index=False)}")
        mean = frame.groupby("method")[MASKS].mean()
        print(f"\nmean over {frame['tile'].nunique()} tiles of {folder}\n{mean.round(3).to_string()}")
        result[name] = {method: row.round(4).to_dict() for method, row in mean.iterrows()}
        result["dice_classical"] = round(float(mean.loc["classical", "dice"]), 4)
    if options.learn and options.train is not None:
        from ihc_learning import measure_learning  # it imports this

        result |= measure_learning(options.train, options.test, options.points)
    for folder in options.points:
        common = partial(classical, diameter_px=common_diameter(folder))
        methods: dict[str, Method] = {"classical": classical, "classical, one diameter": common, "naive": naive}
        frame = measure_points(folder, methods, held_out=options.held_out)
        if options.cases:
            print(f"\n{frame.round(3).to_string(index=False)}")
        mean = frame.groupby(["half", "method"])[SHOWN].mean()
        print(f"\nmean over slides of {folder} ({frame['case'].nunique()})\n{mean.round(3).to_string()}")
        scored = frame[frame["half"] != "tuned on"].groupby("method")[SHOWN].mean()
        result["points"] = {method: row.round(4).to_dict() for method, row in scored.iterrows()}
        result |= {key: result["points"]["classical"][key] for key in ("det_f1", "pos_f1", "percent_error")}
    if options.scanners:
        print()
        found = measure_scanners(options.scanners)
        result["scanners"] = found
        result["scanner_shift"] = round(max(found.values()) - min(found.values()), 2) if len(found) > 1 else None
    if options.slide:
        result |= slide_numbers()
    result["seconds"] = round(time.perf_counter() - start, 1)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
