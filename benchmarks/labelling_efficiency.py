"""How much faster is labelling in bulk than one at a time, how right are the labels, and how many does the queue save?

    python benchmarks/labelling_efficiency.py --phantom [--hard] --json
    python benchmarks/labelling_efficiency.py --train FOLDER --json        # a field as in few_labels.py
    python benchmarks/labelling_efficiency.py --rgb FOLDER --json          # an RGB composite: composite_rgb.tif, cell_mask.tif, cells.csv

A simulated annotator who knows the truth works through `label.Session` and its learner. Cells without a known class are left out:
nobody could say what they are. The learner sees the NeXtMarker embedding of a short training (`--steps`) without labels.

Campaign
    1. `--first` cells of the queue, one at a time, in rounds of 20 with a training after each.
    2. The page that `Session.offers` makes next: the surest suggestions of one class, at most `--page` of them. The annotator looks at
       each patch, takes out those of other classes, and gives all others the class with one key. What was taken out is left for later.
    3. Training, and the next page. It takes no time of the annotator's: the page retrains in the background after each page that was
       gone through (`Session(retrain_after_pages=True)`, the default). Where a page promises fewer labels a second than one at a time,
       20 cells of the queue instead.
    The numbers are those when `--share` of the cells have a label; others are told for comparison. `--plain` is the same work without
    the choice of pages: one of 200 of each class in turn, and what was taken out gets its class one at a time.

Seconds. Walker et al. (PatchSorter; nuclei of 64 px) give 0.43 labels a second one at a time, 3.10 with their tool, and 9.6 in its best
15 minutes. The rest is the keystroke-level model of Card, Moran and Newell (1980): to decide 1.35, to point 1.1, to press 0.2.
    single     1 / 0.43 = 2.33     a label one at a time. The fastest of the paper's four tasks (others 3.4 to 6.3), which is the hardest to beat.
    glance     1 / 9.6  = 0.104    a look at a patch of a sorted page. The paper's best 15 minutes, in which this includes everything else.
    click      1.1 + 0.2 = 1.3     taking out a patch.
    key        1.35 + 0.2 = 1.55   deciding on a class and pressing its key.
    choose     1.35 + 1.1 + 0.2 = 2.65     asking for the next page.
    page       0.2 + 0.5 = 0.7     a page on, and the time until it is there (the bar of `labelling.py`).
So a page of 200 with 14 % wrong takes 0.32 s a label, which is what the paper found over all nuclei.

Errors. Of patches of another class the annotator overlooks `--miss` (10 %) on a page; of right ones 1 % are taken out; 1 % of the labels
given one at a time are wrong. None of these is in the paper, whose concordance of 86 to 97 % is the sum of them.

    lps_ratio            labels per second of the campaign over those one at a time; everything counts, also step 1
    concordance          share of stored labels that are the truth
    labels_needed_ratio  labels of the queue over labels at random, until the learner's macro-F1 on the half of the cells that neither may
                         label reaches `--target` of what it reaches with labels of the whole other half; both in rounds of 20

The first two are means over `--seeds`, which draw the errors and the queue; the phantom is another one for each seed. Labels needed differ
more between ways to halve the cells than between strategies, so their ratio is that of the means over `--splits` of them, drawn in turn
from the fields, with its 95 % interval (bootstrap of pairs: how it would vary with other halves of the same cells). The learner's penalty
and balance, how pages are chosen, and `--first` were chosen on phantoms of seed 0 alone; how the queue draws, and how what pages promise
is set against what they gave, on simulations with the two real fields.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tifffile
from few_labels import read, side

import cytonym as cy
from cytonym.label.session import Session

if TYPE_CHECKING:
    from anndata import AnnData

    from cytonym.label.offers import Offer

SECONDS = {"single": 1 / 0.43, "glance": 1 / 9.6, "click": 1.3, "key": 1.55, "choose": 2.65, "page": 0.7}
WRONG_OUT, WRONG_SINGLE = 0.01, 0.01
ROUND = 20
SHARES = (0.25, 0.5, 0.8, 0.95)


@dataclass(frozen=True)
class Field:
    """Cells with a known class: a table with features, and class numbers."""

    table: AnnData
    truth: np.ndarray
    classes: list[str]

    def part(self, rows: np.ndarray) -> Field:
        """Some of the cells."""
        return replace(self, table=self.table[rows].copy(), truth=self.truth[rows])

    def session(self, seed: int) -> Session:
        """A new session, in memory."""
        return Session(self.table, classes=self.classes, annotator="simulated", rng=seed)


# ------------------------------------------------------------------------------------------------------------------ fields
def phantom(n_cells: int, steps: int, seed: int, *, hard: bool = False) -> Field:
    """A synthetic tissue; a hard one is dim, and a tenth of the classes are drawn at random, as if they were told from other markers."""
    dim = {"brightness": 0.1, "intensity_cv": 0.9, "spillover": 0.8} if hard else {}
    sdata = cy.datasets.tissue_phantom(n_cells=n_cells, rng=seed, **dim)
    cy.pp.measure_cells(sdata)
    field = _embedded(sdata, steps)
    rng = np.random.default_rng([seed, 5])
    other = hard & (rng.random(len(field.truth)) < 0.1)
    return replace(field, truth=np.where(other, rng.permutation(field.truth), field.truth))


def multichannel(folder: Path, steps: int) -> Field:
    """The first field of a folder."""
    return _embedded(side(read(folder)[:1]).samples[0], steps)


def composite(folder: Path, steps: int) -> Field:
    """An RGB image with a mask and classes."""
    pixels, mask = (tifffile.imread(folder / name) for name in ("composite_rgb.tif", "cell_mask.tif"))
    sdata = cy.io.from_arrays(np.moveaxis(pixels, -1, 0), mask, channels=["r", "g", "b"], pixel_size=0.5)
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    cells = pd.read_csv(folder / "cells.csv").set_index("cell_id")
    table.obs["cell_type"] = cells["phenotype"].reindex(table.obs["instance_id"]).to_numpy()
    return _embedded(sdata, steps)


def _embedded(sdata: Any, steps: int) -> Field:
    cy.tl.embed_cells(sdata, steps=steps, rng=0)
    table = sdata["table"]
    known = table.obs["cell_type"].notna().to_numpy()
    kind = pd.Categorical(table.obs["cell_type"].astype(str))[known]
    kind = kind.remove_unused_categories()
    return Field(table[known].copy(), kind.codes.astype(np.int16), [str(c) for c in kind.categories])


# ---------------------------------------------------------------------------------------------------------------- campaign
class Annotator:
    """Labels the cells of a session, and keeps account of what it does."""

    def __init__(self, field: Field, options: argparse.Namespace, seed: int) -> None:
        self.session, self.truth, self.options = field.session(seed), field.truth, options
        self.rng = np.random.default_rng(seed)
        self.did: Counter[str] = Counter()
        self.known = {c.name: c.id for c in self.session.classes}

    @property
    def open(self) -> np.ndarray:
        """Cells without a label, bool [n]."""
        return self.session.codes == -1

    def singly(self, rows: np.ndarray) -> None:
        """Label cells one at a time."""
        for row in rows.tolist():
            code = int(self.truth[row])
            if self.rng.random() < WRONG_SINGLE:
                code = int((code + 1 + self.rng.integers(len(self.known) - 1)) % len(self.known))
            self.session.assign([row], code, source="single", shown=1)
            self.did["single"] += 1

    def page(self, page: Offer) -> None:
        """Look at the suggestions of a class, take out the wrong ones, and press the key of the class."""
        rows = page.rows
        wrong = self.truth[rows] != page.label
        chance = np.where(wrong, 1 - self.options.miss, WRONG_OUT)
        out = self.rng.random(len(rows)) < chance
        self.did.update({"choose": 1, "page": 1, "glance": len(rows), "click": int(out.sum())})
        if not out.all():
            self.did["key"] += 1
            self.session.offers.accept(page, rows[~out])
        else:  # which the next page tells the session
            self.session.offers.take_out(page.label, rows)
        if self.options.plain:
            self.singly(rows[out])

    def next_pages(self) -> list[Offer]:
        """Pages to go through before the next training; none where one at a time is quicker."""
        session, most = self.session, self.options.page
        if not self.options.plain:
            page = session.offers.best(most)
            return [page] if page is not None and page.rate > 1 / SECONDS["single"] else []
        return [page for c in session.classes if len((page := session.offers.of(c.id, most)).rows)]

    def campaign(self) -> dict[str, dict[str, Any]]:
        """Label until there is nothing left to do; what was done when each share had a label."""
        learner = self.session.learner
        found: dict[str, dict[str, Any]] = {}
        shares = sorted({*SHARES, self.options.share})
        while self.open.any():
            begun = learner.version is not None and self.did["single"] >= self.options.first
            pages = self.next_pages() if begun else []
            if not pages:
                self.singly(learner.queue(ROUND)[0])
                learner.retrain(background=False, on_done=lambda told: None)
            for page in pages:
                self.page(page)
                learner.retrain(background=False)
            labelled = float(np.mean(~self.open))
            while shares and labelled >= shares[0]:
                found[f"{shares.pop(0):g}"] = self.account()
            if not shares:
                break
        return found

    def account(self) -> dict[str, Any]:
        """What came of it so far."""
        codes = self.session.codes
        given = codes >= 0
        right = codes[given] == self.truth[given]
        return {"labels": int(given.sum()), "concordance": float(right.mean()), "did": dict(self.did)}


def ratio(account: dict[str, Any], **factors: float) -> float:
    """Labels per second over those one at a time, with some of the seconds multiplied."""
    spent = sum(SECONDS[what] * factors.get(what, 1.0) * times for what, times in account["did"].items())
    return float(account["labels"] / spent * SECONDS["single"])


# ------------------------------------------------------------------------------------------------------------ labels needed
def macro_f1(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean F1 of the classes that occur."""
    scores = []
    for code in np.unique(truth):
        hit = ((truth == code) & (found == code)).sum()
        scores.append(2 * hit / ((truth == code).sum() + (found == code).sum()))
    return float(np.mean(scores))


class Course:
    """Labels given one at a time without errors, in rounds, and how well the learner does after each."""

    def __init__(self, field: Field, seed: int) -> None:
        self.field, self.seed = field, seed
        self.pool, self.rest = np.array_split(np.random.default_rng([seed, 1]).permutation(len(field.truth)), 2)

    def score(self, learner: Any, rows: np.ndarray) -> float:
        """Macro-F1 on the rest after learning from some cells."""
        if len(np.unique(self.field.truth[rows])) < 2:
            return 0.0
        learner.train(rows, self.field.truth[rows])
        return macro_f1(self.field.truth[self.rest], learner.predictions[self.rest])

    def best(self) -> float:
        """With labels of the whole pool."""
        return self.score(self.field.session(self.seed).learner, self.pool)

    def needed(self, strategy: str, target: float, most: int) -> tuple[float, list[float]]:
        """Labels until the target, infinite where it is not reached with so many; and the scores of the rounds."""
        session, truth = self.field.session(self.seed), self.field.truth
        learner, scores = session.learner, [0.0]
        while ROUND * len(scores) <= min(most, len(self.pool)):
            session.seed = 1000 * self.seed + len(scores)
            rows = learner.queue(ROUND, strategy, among=self.pool)[0]
            for code in np.unique(truth[rows]):
                session.assign(rows[truth[rows] == code], int(code))
            scores.append(self.score(learner, np.flatnonzero(session.codes >= 0)))
            if scores[-1] >= target:
                low, high = scores[-2:]
                return ROUND * (len(scores) - 2 + (target - low) / (high - low)), scores
        return np.inf, scores


# -------------------------------------------------------------------------------------------------------------------- main
def campaigns(fields: dict[int, Field], options: argparse.Namespace) -> dict[str, Any]:
    """Speed and concordance over seeds."""
    found = []
    for seed, field in fields.items():
        annotator = Annotator(field, options, seed)
        at = annotator.campaign()
        print(
            f"seed {seed}:",
            {share: (round(ratio(a), 2), round(a["concordance"], 3)) for share, a in at.items()},
            flush=True,
        )
        wrong = np.bincount(field.truth[annotator.session.codes != field.truth], minlength=len(field.classes))
        print(
            "   wrong or without label by class:",
            dict(zip(field.classes, wrong.tolist(), strict=True)),
            at[f"{options.share:g}"]["did"],
        )
        found.append(at)
    told = [at[f"{options.share:g}"] for at in found]
    mean = lambda values: round(float(np.mean(values)), 4)
    return {
        "lps_ratio": mean([ratio(a) for a in told]),
        "concordance": mean([a["concordance"] for a in told]),
        "lps_ratio_glance_half": mean([ratio(a, glance=0.5) for a in told]),
        "lps_ratio_glance_double": mean([ratio(a, glance=2.0) for a in told]),
        "lps_ratio_at": {share: mean([ratio(at[share]) for at in found]) for share in found[0]},
        "concordance_at": {share: mean([at[share]["concordance"] for at in found]) for share in found[0]},
    }


def interval(a: np.ndarray, b: np.ndarray) -> list[float]:
    """95 % interval of the ratio of two means of the same splits."""
    some = np.random.default_rng(0).integers(len(a), size=(10_000, len(a)))
    return np.round(np.quantile(a[some].mean(axis=1) / b[some].mean(axis=1), [0.025, 0.975]), 3).tolist()


def courses(fields: dict[int, Field], options: argparse.Namespace) -> dict[str, Any]:
    """Labels that the queue and chance need, over splits."""
    needed: dict[str, list[float]] = {"combined": [], "random": []}
    best = []
    for seed in range(1, options.splits + 1):
        course = Course(list(fields.values())[(seed - 1) % len(fields)], seed)
        best.append(course.best())
        for strategy, found in needed.items():
            labels, scores = course.needed(strategy, options.target * best[-1], options.most)
            found.append(labels)
            print(
                f"seed {seed}: {strategy} {labels:.0f} to {options.target * best[-1]:.3f};",
                np.round(scores[1::3], 3).tolist(),
                flush=True,
            )
    capped = {s: np.minimum(v, options.most) for s, v in needed.items()}
    return {
        "labels_needed_ratio": round(float(capped["combined"].mean() / capped["random"].mean()), 4),
        "labels_needed_interval": interval(capped["combined"], capped["random"]),
        "splits": options.splits,
        "labels_needed": {s: round(float(v.mean())) for s, v in capped.items()},
        "not_reached": {s: int(np.isinf(v).sum()) for s, v in needed.items()},
        "macro_f1_of_all_labels": round(float(np.mean(best)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--phantom", action="store_true")
    which.add_argument("--train", type=Path, metavar="FOLDER")
    which.add_argument("--rgb", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--hard", action="store_true", help="a dim phantom of which a tenth of the classes cannot be seen"
    )
    parser.add_argument("--cells", type=int, default=4000, help="of the phantom")
    parser.add_argument("--steps", type=int, default=200, help="of the encoder's training")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="0 is the one that choices were made on"
    )
    parser.add_argument("--splits", type=int, default=20, help="halves on which the labels needed are counted")
    parser.add_argument("--first", type=int, default=60, help="cells that are labelled one at a time")
    parser.add_argument("--page", type=int, default=200, help="patches on a page")
    parser.add_argument("--share", type=float, default=0.8, help="of the cells that get a label")
    parser.add_argument("--miss", type=float, default=0.1, help="share of the wrong patches that are overlooked")
    parser.add_argument("--target", type=float, default=0.95, help="of the macro-F1 with all labels")
    parser.add_argument("--most", type=int, default=1000, help="labels at most")
    parser.add_argument("--plain", action="store_true", help="without the choice of pages")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("cytonym").setLevel(logging.ERROR)

    name = (
        "phantom" + options.hard * " (hard)"
        if options.phantom
        else (options.train or options.rgb).resolve().parent.name
    )
    if options.phantom:
        fields = {seed: phantom(options.cells, options.steps, seed, hard=options.hard) for seed in options.seeds}
    else:
        made = multichannel(options.train, options.steps) if options.train else composite(options.rgb, options.steps)
        fields = dict.fromkeys(options.seeds, made)
    first = fields[options.seeds[0]]
    result = {"set": name, "cells": len(first.truth), "classes": len(first.classes), "seeds": len(fields)}
    result |= campaigns(fields, options) | courses(fields, options)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
