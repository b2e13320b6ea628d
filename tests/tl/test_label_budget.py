"""label_budget: what is drawn, what is kept for the test, and the scores against scikit-learn."""

from __future__ import annotations

import itertools
import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

import cytonym as cy
from cytonym.tl import _label_budget


def table(n: int = 300, n_patients: int = 0, seed: int = 0) -> ad.AnnData:
    """Three overlapping classes, one of them rare; patients where there are any."""
    rng = np.random.default_rng(seed)
    group = rng.choice(3, n, p=[0.55, 0.4, 0.05])
    values = (rng.normal(size=(n, 5)) + 2 * np.eye(3, 5)[group]).astype("f4")
    adata = ad.AnnData(values, obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    adata.var_names = list("ABCDE")
    adata.obs["type"] = pd.Categorical(np.array(["x", "y", "z"])[group])
    if n_patients:
        adata.obs["patient"] = [f"p{i % n_patients}" for i in range(n)]
    return adata


@pytest.fixture
def seen(monkeypatch) -> list[np.ndarray]:
    """Rows of the table that each classifier was trained on."""
    found: list[np.ndarray] = []
    fit = _label_budget.fit_head

    def spy(numbers, targets, rows, groups, **keywords):
        found.append(rows)
        return fit(numbers, targets, rows, groups, **keywords)

    monkeypatch.setattr(_label_budget, "fit_head", spy)
    return found


def test_parts_of_cells(seen, caplog):
    adata = table()
    before = adata.copy()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        budget = cy.tl.label_budget(adata, "type", fractions=[1.0, 0.001, 0.002, 0.5, 0.25], n_draws=3)
    assert "Training 10 classifiers on 3 to 240 labelled cells, each scored on the same 60 others." in caplog.text
    assert list(budget.columns) == [
        "unit", "fraction", "n_cells", "n_groups", "draw", "macro_f1", "micro_f1", "pr_auc", "ece",
    ]  # fmt: skip
    assert budget["n_cells"].tolist() == [3] * 3 + [60] * 3 + [120] * 3 + [
        240
    ]  # one draw of all cells, two fractions in one
    assert budget["fraction"].tolist() == [0.002] * 3 + [0.25] * 3 + [0.5] * 3 + [1.0]
    assert budget["draw"].tolist() == [0, 1, 2] * 3 + [0]
    assert set(budget["unit"]) == {"cells"}
    assert set(budget["n_groups"]) == {1}
    assert [len(rows) for rows in seen] == budget["n_cells"].tolist()
    types = adata.obs["type"].to_numpy()
    assert all(set(types[rows]) == {"x", "y", "z"} for rows in seen)
    assert len({tuple(rows) for rows in seen}) == len(seen)
    for small, large in itertools.pairwise(range(0, 9, 3)):
        assert all(set(seen[small + k]) < set(seen[large + k]) for k in range(3))  # parts of a draw grow
    assert set.union(*[set(rows) for rows in seen]) == set(seen[-1])
    assert budget.attrs == {
        "model": "logistic", "label_key": "type", "use_rep": ["X"], "seed": 0, "n_test": 60, "n_classes": 3,
    }  # fmt: skip
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns


def test_scores_are_those_of_the_test_cells(seen):
    adata = table()
    adata.obs["kept"] = np.arange(300) % 3 == 0
    budget = cy.tl.label_budget(adata, "type", fractions=[0.3, 1.0], n_draws=1, test="kept")
    kept = adata.obs["kept"].to_numpy()
    assert set(seen[-1]) == set(np.flatnonzero(~kept))
    assert budget.attrs["n_test"] == 100
    truth = adata.obs["type"].to_numpy()[kept]
    for rows, (_, row) in zip(seen, budget.iterrows(), strict=True):
        part = adata.copy()
        part.obs["label"] = part.obs["type"].where(np.isin(np.arange(300), rows))
        cy.tl.classify_cells(part, "label")
        called, proba = part.obs["phenotype"].to_numpy()[kept], part.obsm["phenotype_proba"].to_numpy()[kept]
        assert row["macro_f1"] == pytest.approx(f1_score(truth, called, average="macro"))
        assert row["micro_f1"] == pytest.approx((truth == called).mean())
        each = [average_precision_score(truth == name, p) for name, p in zip("xyz", proba.T, strict=True)]
        assert row["pr_auc"] == pytest.approx(np.mean(each))
        one_hot = (truth[:, None] == np.array(list("xyz"))).argmax(axis=1)
        assert row["ece"] == pytest.approx(cy.metrics.calibration_error(one_hot, proba))


def test_draws_depend_on_the_seed_alone(seen):
    adata = table()
    adata.obsm["X_other"] = np.asarray(adata.X)[:, :2].copy()
    keywords = {"fractions": [0.1, 0.3], "n_draws": 2}
    budget = cy.tl.label_budget(adata, "type", rng=5, **keywords)
    again = cy.tl.label_budget(adata, "type", rng=5, **keywords)
    pd.testing.assert_frame_equal(budget, again)
    other = cy.tl.label_budget(adata, "type", "linear", use_rep="X_other", rng=5, **keywords)
    assert other.attrs["model"] == "linear"
    n = len(budget)
    for i in range(n):
        np.testing.assert_array_equal(seen[i], seen[n + i])
        np.testing.assert_array_equal(seen[i], seen[2 * n + i])
    cy.tl.label_budget(adata, "type", rng=6, **keywords)
    assert set(seen[0]) != set(seen[3 * n])
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    cy.tl.label_budget(shuffled, "type", rng=5, **keywords)
    for i in range(n):
        assert list(shuffled.obs_names[seen[4 * n + i]]) == list(adata.obs_names[seen[i]])


def test_labels_of_test_cells_do_nothing_but_score(monkeypatch):
    adata = table()
    adata.obs["kept"] = np.arange(300) % 3 == 0
    weights = []
    fit = _label_budget.fit_head

    def spy(*arguments, **keywords):
        fitted = fit(*arguments, **keywords)
        weights.append({k: v.clone() for k, v in fitted.model.state_dict().items()})
        return fitted

    monkeypatch.setattr(_label_budget, "fit_head", spy)
    for _ in range(2):
        cy.tl.label_budget(adata, "type", fractions=[0.5], n_draws=1, test="kept")
        kept = adata.obs["kept"].to_numpy()
        adata.obs.loc[kept, "type"] = np.random.default_rng(0).permutation(adata.obs.loc[kept, "type"])
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_parts_of_patients(seen):
    adata = table(n_patients=6)
    budget = cy.tl.label_budget(
        adata, "type", groups="patient", unit="groups", fractions=[0.01, 0.2, 0.4, 1.0], n_draws=7
    )
    patients = adata.obs["patient"].to_numpy()
    drawn = [frozenset(patients[rows]) for rows in seen]
    assert [len(d) for d in drawn] == budget["n_groups"].tolist()
    assert budget["n_groups"].tolist() == [1] * 5 + [2] * 7 + [5]  # there are five sets of one patient
    assert len(set(drawn)) == len(drawn)
    assert all(
        set(np.flatnonzero(np.isin(patients, list(d)))) == set(rows) for d, rows in zip(drawn, seen, strict=True)
    )
    assert budget["n_cells"].tolist() == [len(rows) for rows in seen]
    tested = set(patients) - drawn[-1]
    assert len(tested) == 1
    assert budget.attrs["n_test"] == np.isin(patients, list(tested)).sum()
    assert budget["fraction"].tolist()[0] == 0.2


def test_parts_of_many_patients_differ(seen):
    adata = table(n=600, n_patients=40)
    cy.tl.label_budget(adata, "type", groups="patient", unit="groups", fractions=[0.2], n_draws=5)
    patients = adata.obs["patient"].to_numpy()
    assert len({frozenset(patients[rows]) for rows in seen}) == 5


def test_cells_of_all_patients(seen):
    adata = table(n_patients=5)
    budget = cy.tl.label_budget(adata, "type", groups="patient", fractions=[0.3], n_draws=2)
    assert budget["n_groups"].tolist() == [4, 4]
    patients = adata.obs["patient"].to_numpy()
    assert len(set(patients) - set(patients[np.concatenate(seen)])) == 1


def test_test_cells_of_a_class_that_nobody_can_learn_are_left_out(seen, caplog):
    adata = table(n_patients=5)
    rare = (adata.obs["type"] == "z").to_numpy()
    adata.obs.loc[rare, "patient"] = "p0"
    adata.obs["kept"] = adata.obs["patient"] == "p0"
    budget = cy.tl.label_budget(adata, "type", groups="patient", test="kept", fractions=[1.0])
    assert f"{rare.sum()} test cells of classes that none of the others has are left out: ['z']." in caplog.text
    assert budget.attrs["n_classes"] == 2
    assert not rare[seen[0]].any()


def test_several_labels_and_missing_numbers(seen):
    adata = table()
    rng = np.random.default_rng(0)
    adata.obs["A+"], adata.obs["B+"] = (adata.obs["type"] == "x").astype(int), rng.integers(2, size=300)
    adata.X[:50, 0] = np.nan
    budget = cy.tl.label_budget(adata, ["A+", "B+"], multilabel=True, fractions=[0.1, 1.0], n_draws=2)
    assert budget["n_cells"].tolist() == [20, 20, 200]
    assert min(rows.min() for rows in seen) >= 50
    assert budget.attrs["label_key"] == ["A+", "B+"]
    assert budget["macro_f1"].iloc[-1] > 0.5


def test_errors():
    adata = table(n_patients=3)
    adata.obs["kept"] = np.arange(300) % 2 == 0
    adata.obs["all"] = True
    adata.obs["one"] = adata.obs["patient"] != "p0"
    for arguments, error, message in [
        ({"fractions": [0.5, 0.0]}, ValueError, "`fractions` must be above 0 and at most 1, got [0.0]"),
        ({"fractions": [10]}, ValueError, "`fractions` must be above 0 and at most 1, got [10]. 0.1 is a tenth"),
        ({"fractions": []}, ValueError, "`fractions` must be above 0 and at most 1, got []"),
        ({"n_draws": 0}, ValueError, "`n_draws` must be at least 1, got 0"),
        ({"unit": "patients"}, ValueError, "Unknown unit 'patients'. Available: ['cells', 'groups']"),
        ({"balance": "some"}, ValueError, "Unknown balance 'some'"),
        ({"model": "cellsighter"}, KeyError, "No classifier 'cellsighter' on numbers of a table. Available: ['logistic'"),
        ({"groups": "patient", "test": "kept"}, ValueError, "have cells to train on and cells to test on"),
        ({"groups": "donor"}, KeyError, "No column 'donor' in `adata.obs` to group by"),
        ({"test": "type"}, ValueError, "`obs['type']` must be True or False for each cell"),
        ({"test": "all"}, ValueError, "Too few labelled cells: 0 to learn from and 300 to test on, of 3 classes in 'type'"),
        ({"unit": "groups"}, ValueError, "`unit='groups'` draws whole patients, but the table has 1 to draw from"),
        (
            {"unit": "groups", "groups": "patient", "test": "one"}, ValueError,
            "but `obs['patient']` has 1 to draw from beside the test cells",
        ),
    ]:  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            cy.tl.label_budget(adata, **({"label_key": "type"} | arguments))
    few = adata[:4].copy()
    few.obs["type"] = pd.Categorical(["x", "x", "x", "y"])
    few.obs["none"] = False
    with (
        pytest.raises(ValueError, match="Too few labelled cells: 4 to learn from and 0 to test on"),
        pytest.warns(UserWarning, match="a single labelled cell"),
    ):
        cy.tl.label_budget(few, "type", test="none")
    single = adata.copy()
    single.obs["patient"] = "p" + single.obs["type"].astype(str)  # each patient has one class
    with pytest.raises(ValueError, match="Too few labelled cells|No set of 2 patients"):
        cy.tl.label_budget(single, "type", groups="patient", unit="groups", fractions=[0.5])


@pytest.mark.filterwarnings("ignore:Classes with a single")
def test_test_cells_of_a_class_that_nobody_can_learn():
    adata = table(60)
    adata.obs["kept"] = (adata.obs["type"] == "x").to_numpy()
    with pytest.raises(ValueError, match="and 0 of the latter of classes that can be learned"):
        cy.tl.label_budget(adata, "type", test="kept")
