"""Do suggested cells teach a classifier more than random ones?

    python benchmarks/suggest.py --train FOLDER [--test FOLDER] --json
    python benchmarks/suggest.py --phantom --json

Fields, halves and the phantom are those of `few_labels.py`. Labelling goes in rounds: `tl.suggest_cells` names cells of the training
side, they get the label that the field came with, and `tl.classify_cells` learns from all labels so far. After each round the
classifier is scored on the test side. Strategies that need a classifier begin with a random round. Every number is the mean over
seeds and folds of the macro-F1 after the last round.
"""

from __future__ import annotations

import argparse
import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
from few_labels import add_fields, check_fields, embed, join, score, sides

import cytonym as cy

STRATEGIES = ("random", "combined", "uncertainty", "diversity", "rarity")
REP = ["X", "area", "X_nextmarker"]


def campaign(train: Any, test: Any, strategy: str, options: argparse.Namespace, seed: int) -> list[float]:
    """Macro-F1 on the test side after each round."""
    table = join(train, train.truth, pixels=False)  # `label` holds the whole truth
    truth = table.obs["label"].astype(object)
    table.obs["label"] = pd.Categorical([None] * table.n_obs, categories=sorted(set(truth.dropna())))
    found = []
    for round_ in range(options.rounds):
        open_cells = table[truth.notna().to_numpy()].copy()  # cells that somebody could label
        plan = strategy if round_ or strategy not in ("uncertainty", "rarity") else "random"
        chosen = cy.tl.suggest_cells(open_cells, options.cells, strategy=plan, use_rep=REP, rng=1000 * seed + round_)
        table.obs.loc[chosen, "label"] = truth[chosen]
        if table.obs["label"].nunique() < 2:
            found.append(0.0)
            continue
        model = cy.tl.fit_classifier(table, "label", use_rep=REP, rng=seed)
        cy.tl.classify_cells(table, model=model)
        proba = []
        for sdata in test.samples:
            cy.tl.classify_cells(sdata["table"], model=model, key_added="found")
            proba.append(sdata["table"].obsm["found_proba"].to_numpy())
        found.append(score(test.truth, list(model.classes), np.concatenate(proba))["macro_f1"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_fields(parser)
    parser.add_argument("--cells", type=int, default=40, help="labels of a round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of NeXtMarker's training; default: the method's recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    check_fields(parser, options)
    warnings.filterwarnings("ignore")

    name, folds = sides(options)
    options.no_clearit, options.clearit_steps = True, None
    scores: dict[str, list[list[float]]] = {strategy: [] for strategy in STRATEGIES}
    for train, test in folds:
        embed(train, test, options)
        for strategy in STRATEGIES:
            scores[strategy] += [campaign(train, test, strategy, options, seed) for seed in range(options.seeds)]
    labels = [options.cells * (r + 1) for r in range(options.rounds)]
    table = pd.DataFrame({s: np.mean(v, axis=0) for s, v in scores.items()}, index=pd.Index(labels, name="labels"))
    print(table.round(3))
    if options.json:
        last = {s: round(float(np.mean([run[-1] for run in v])), 4) for s, v in scores.items()}
        spread = {s: round(float(np.std([run[-1] for run in v])), 4) for s, v in scores.items()}
        print(json.dumps({"set": name, "labels": labels[-1], "macro_f1": last, "macro_f1_sd": spread}))


if __name__ == "__main__":
    main()
