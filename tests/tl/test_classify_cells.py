"""Few labels, all cells: what is written, what is refused, and that it holds on cells not seen."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cytonym as cy
from cytonym import metrics
from cytonym.learning.supervise import Schedule

torch.set_num_threads(1)

QUICK = Schedule(epochs=20, batch_size=32, learning_rate=3e-3)
MEANS = {"T": (9.0, 1.0, 1.0), "B": (1.0, 9.0, 1.0), "M": (1.0, 1.0, 9.0)}


def cells(n=240, seed=0, patients=4, labelled=0.3, embedding=True):
    """Three types with a marker each, patients of different brightness, an embedding that says the same."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(list(MEANS), n)
    patient = rng.integers(patients, size=n)
    x = rng.gamma(2.0, np.array([MEANS[k] for k in kind]) / 2) * (1 + 0.2 * patient[:, None])
    obs = pd.DataFrame(
        {"truth": kind, "patient": [f"p{p}" for p in patient], "area": rng.gamma(20, 2, n)},
        index=[f"cell{i}" for i in range(n)],
    )
    obs["label"] = pd.Categorical(np.where(rng.random(n) < labelled, kind, None))
    adata = ad.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=["CD3", "CD20", "CD68"]))
    if embedding:
        adata.obsm["X_nextmarker"] = np.tanh(x @ rng.normal(size=(3, 16)) / 9).astype(np.float32)
        adata.uns["nextmarker"] = {"model": {"weights_sha256": "abc"}}
    return adata


def agreement(adata, key="phenotype"):
    return float((adata.obs[key].astype(str) == adata.obs["truth"]).mean())


# ---------------------------------------------------------------------------------------------------------- what it does
@pytest.mark.parametrize("model", ["logistic", "linear", "mlp4", "maps"])
def test_cells_without_a_label_get_the_right_one(model):
    adata = cells()
    schedule = None if model == "logistic" else QUICK
    cy.tl.classify_cells(adata, "label", model, schedule=schedule, groups="patient")
    rest = adata.obs["label"].isna()
    majority = adata.obs["truth"][rest].value_counts(normalize=True).max()
    assert agreement(adata[rest]) > max(0.8, majority + 0.2)
    proba = adata.obsm["phenotype_proba"]
    assert list(proba.columns) == ["B", "M", "T"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(adata.obs["phenotype_confidence"], proba.max(axis=1))
    assert (proba.idxmax(axis=1) == adata.obs["phenotype"].astype(str)).all()
    told = adata.uns["phenotype"]
    assert told["model"]["method"] == model
    assert told["model"]["groups"] == "patient"
    assert 0.6 < told["validation"]["macro_f1"] <= 1
    assert told["validation"]["n_cells"] <= told["model"]["n_labelled"] == adata.obs["label"].notna().sum()
    assert told["reliability"]["n"].sum() == told["validation"]["n_cells"]
    assert (told["reliability"]["accuracy"] <= 1).all()


def test_default_is_intensities_area_and_the_embedding():
    adata = cells()
    model = cy.tl.fit_classifier(adata, "label")
    assert model.provenance["use_rep"] == ["X", "area", "X_nextmarker"]
    assert model.markers[:5] == ("X:CD3", "X:CD20", "X:CD68", "area", "X_nextmarker[0]")
    assert cy.tl.fit_classifier(cells(embedding=False), "label").provenance["use_rep"] == ["X", "area"]


def test_an_embedding_is_found_after_concatenation():
    """Which leaves `uns` out."""
    parts = {name: cells(seed=seed) for seed, name in enumerate("ab")}
    for part in parts.values():
        part.obsm["X_umap"] = part.obsm["X_nextmarker"][:, :2]
    both = ad.concat(parts, index_unique="-")
    assert not both.uns
    assert cy.tl.fit_classifier(both, "label").provenance["use_rep"] == ["X", "area", "X_nextmarker"]
    both.obsm["X_mine"] = both.obsm.pop("X_nextmarker")
    assert cy.tl.fit_classifier(both, "label").provenance["use_rep"] == ["X", "area"]
    both.obsm["mine_attributions"] = pd.DataFrame({"CD3": 0.0}, index=both.obs_names)
    assert cy.tl.fit_classifier(both, "label").provenance["use_rep"] == ["X", "area", "X_mine"]


@pytest.mark.parametrize("model", ["logistic", "maps"])
def test_an_area_in_words_is_not_taken(model):
    adata = cells(embedding=False)
    adata.obs["area"] = "tumour"
    schedule = None if model == "logistic" else QUICK
    assert cy.tl.fit_classifier(adata, "label", model, schedule=schedule).provenance["use_rep"] == ["X"]


def test_maps_takes_intensities_and_area_alone():
    model = cy.tl.fit_classifier(cells(), "label", "maps", schedule=QUICK)
    assert model.markers == ("X:CD3", "X:CD20", "X:CD68", "area")
    assert type(model) is cy.models.MAPS


def test_same_seed_same_bytes_and_the_order_of_rows_does_not_matter():
    adata = cells()
    order = np.random.default_rng(1).permutation(adata.n_obs)
    for model, schedule in (("logistic", None), ("linear", QUICK)):
        first, again, moved = adata.copy(), adata.copy(), adata[order].copy()
        for table in (first, again, moved):
            cy.tl.classify_cells(table, "label", model, schedule=schedule)
        np.testing.assert_array_equal(first.obsm["phenotype_proba"], again.obsm["phenotype_proba"])
        np.testing.assert_allclose(
            moved.obsm["phenotype_proba"], first.obsm["phenotype_proba"].iloc[order], rtol=1e-3, atol=1e-4
        )


def test_a_trained_classifier_names_another_table(tmp_path):
    adata, other = cells(), cells(seed=5)
    model = cy.tl.fit_classifier(adata, "label")
    folder = cy.models.save(model, tmp_path / "model")
    cy.tl.classify_cells(other, model=folder)
    again = cy.tl.classify_cells(other, model=model, key_added="again", copy=True)
    assert "again" not in other.obs
    np.testing.assert_array_equal(again.obsm["again_proba"], other.obsm["phenotype_proba"])
    shuffled = other[:, ["CD68", "CD3", "CD20"]].copy()
    cy.tl.classify_cells(shuffled, model=folder, key_added="again")
    np.testing.assert_allclose(shuffled.obsm["again_proba"], other.obsm["phenotype_proba"], rtol=1e-5)


def test_several_labels_a_cell():
    adata = cells(400)
    adata.obs["T+"] = (adata.obs["truth"] == "T").astype(float)
    adata.obs["bright"] = (np.asarray(adata.X).sum(axis=1) > 8).astype(int)
    adata.obs.loc[adata.obs_names[:100], "T+"] = np.nan  # not all labels: not learned from
    cy.tl.classify_cells(adata, ["T+", "bright"], multilabel=True)
    told = adata.uns["phenotype"]
    assert told["model"]["n_labelled"] == 300
    assert told["thresholds"].shape == (2,)
    assert set(adata.obs["phenotype"]) <= {"T+", "bright", "T+, bright", "none"}
    called = adata.obsm["phenotype_proba"].to_numpy() > told["thresholds"]
    assert metrics.f1((adata.obs["truth"] == "T").astype(int), called[:, 0].astype(int)) > 0.8
    sure = metrics.call_confidence(adata.obsm["phenotype_proba"].to_numpy(), told["thresholds"]).min(axis=1)
    np.testing.assert_allclose(adata.obs["phenotype_confidence"], sure, rtol=1e-5)
    frame = adata.obs[["T+", "bright"]]
    adata.obsm["known"] = frame
    again = cy.tl.classify_cells(adata, "known", multilabel=True, copy=True)
    np.testing.assert_array_equal(again.obsm["phenotype_proba"], adata.obsm["phenotype_proba"])


def test_thresholds_of_the_caller_are_used_once():
    adata = cells(300)
    adata.obs["T+"] = (adata.obs["truth"] == "T").astype(int)
    model = cy.tl.fit_classifier(adata, ["T+"], multilabel=True)
    before = model.thresholds.clone()
    cy.tl.classify_cells(adata, model=model, thresholds=[1.0])
    assert set(adata.obs["phenotype"]) == {"none"}
    assert torch.equal(model.thresholds, before)
    with pytest.raises(ValueError, match="one number from 0 to 1 for each of"):
        cy.tl.classify_cells(adata, model=model, thresholds=[1.5])
    with pytest.raises(ValueError, match="with one class each, the most probable one is called"):
        cy.tl.classify_cells(adata, "label", thresholds=[0.5, 0.5, 0.5])


def test_undersampling_takes_as_many_of_each():
    adata = cells()
    adata.obs["label"] = adata.obs["label"].where(adata.obs["truth"] != "T")
    adata.obs.loc[adata.obs_names[adata.obs["truth"] == "T"][:5], "label"] = "T"
    cy.tl.classify_cells(adata, "label", balance="undersample")
    assert agreement(adata) > 0.6


def test_calibration_halves_the_error_of_an_overconfident_head():
    """On cells that neither the head nor its temperature has seen."""
    adata = cells(900, labelled=0.2)
    rng = np.random.default_rng(0)
    wrong = rng.random(adata.n_obs) < 0.3
    adata.obs["truth"] = np.where(wrong, rng.choice(list(MEANS), adata.n_obs), adata.obs["truth"])
    adata.obs["label"] = pd.Categorical(np.where(adata.obs["label"].notna(), adata.obs["truth"], None))
    adata.obs["seen"] = adata.obs["label"].notna()
    overfit = Schedule(epochs=300, batch_size=32, learning_rate=3e-3)
    model = cy.tl.fit_classifier(adata, "label", "mlp4", schedule=overfit)
    cold = cy.tl.classify_cells(adata, model=model, copy=True)
    hot = cy.tl.fit_classifier(adata, "label", "mlp4", schedule=overfit)
    hot.temperature.fill_(1.0)
    raw = cy.tl.classify_cells(adata, model=hot, copy=True)
    rest = ~adata.obs["seen"].to_numpy()
    codes = pd.Index(model.classes).get_indexer(adata.obs["truth"][rest])
    before, after = (metrics.calibration_error(codes, t.obsm["phenotype_proba"].to_numpy()[rest]) for t in (raw, cold))
    assert after < before


def test_results_survive_a_store(tmp_path):
    adata = cells()
    adata.obs["label"] = adata.obs["label"].cat.rename_categories({"T": "T/NK"})
    cy.tl.classify_cells(adata, "label")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert set(again.obs["phenotype"].cat.categories) == {"B", "M", "T/NK"}
    assert cy.get.markers(again, "phenotype_proba").var_names.tolist() == ["B", "M", "T/NK"]


# ------------------------------------------------------------------------------------------------------------- patients
def test_scores_on_patients_kept_out():
    adata = cells(400, labelled=1.0)
    adata.obs["held"] = adata.obs["patient"] == "p3"
    cy.tl.classify_cells(adata, "label", groups="patient", test="held")
    told = adata.uns["phenotype"]
    assert told["test"]["n_cells"] == adata.obs["held"].sum()
    assert told["model"]["n_labelled"] == (~adata.obs["held"]).sum()
    assert told["test"]["macro_f1"] > 0.8


def test_patients_on_both_sides_are_refused():
    adata = cells(labelled=1.0)
    adata.obs["held"] = np.arange(adata.n_obs) % 2 == 0
    with pytest.raises(
        ValueError, match="4 groups of `obs\\['patient'\\]` have cells to train on and cells to test on"
    ):
        cy.tl.classify_cells(adata, "label", groups="patient", test="held")


def test_no_patient_is_in_two_folds(monkeypatch):
    from cytonym.tl import _heads

    adata = cells()
    seen = []
    folds = _heads.folds

    def spy(strata, groups, n, rng):
        fold = folds(strata, groups, n, rng)
        seen.append((groups, fold))
        return fold

    monkeypatch.setattr(_heads, "folds", spy)
    cy.tl.fit_classifier(adata, "label", groups="patient")
    [(groups, fold)] = seen
    for patient in np.unique(groups):
        assert len(np.unique(fold[groups == patient])) == 1
    assert len(np.unique(fold)) > 1


# ----------------------------------------------------------------------------------------------------------- bad input
def test_one_class():
    adata = cells()
    adata.obs["label"] = pd.Categorical(np.where(adata.obs["truth"] == "T", "T", None))
    with pytest.raises(ValueError, match=r"`obs\['label'\]` has only the class 'T' in 240 cells; at least two"):
        cy.tl.classify_cells(adata, "label")
    adata.obs["label"] = np.nan
    with pytest.raises(ValueError, match="has no label"):
        cy.tl.classify_cells(adata, "label")


def test_a_class_with_a_single_cell_is_learned_and_said():
    adata = cells()
    adata.obs["label"] = adata.obs["label"].where(adata.obs["truth"] != "T")
    adata.obs.loc[adata.obs_names[adata.obs["truth"] == "T"][0], "label"] = "T"
    with pytest.warns(UserWarning, match=r"Classes with a single labelled cell: \['T'\]"):
        cy.tl.classify_cells(adata, "label")
    assert list(adata.obsm["phenotype_proba"].columns) == ["B", "M", "T"]


def test_one_cell_a_class():
    adata = cells()
    first = adata.obs.groupby("truth").head(1).index
    adata.obs["label"] = pd.Categorical(np.where(adata.obs_names.isin(first), adata.obs["truth"], None))
    with pytest.warns(UserWarning, match="single labelled cell"):
        cy.tl.classify_cells(adata, "label")
    assert adata.uns["phenotype"]["validation"] == {"n_cells": 0.0}
    assert np.isfinite(adata.obsm["phenotype_proba"]).all(axis=None)


def test_typos_are_reported():
    adata = cells()
    adata.obs["label"] = adata.obs["label"].astype(object)
    adata.obs.loc[adata.obs_names[adata.obs["label"] == "T"][:3], "label"] = "t "
    with pytest.warns(UserWarning, match=r"differ by case, spaces or signs only.*\['T', 't '\]"):
        cy.tl.classify_cells(adata, "label")


def test_groups_missing_or_one():
    adata = cells()
    with pytest.raises(KeyError, match="No column 'donor' in `adata.obs` to group by"):
        cy.tl.classify_cells(adata, "label", groups="donor")
    adata.obs["patient"] = "p0"
    with pytest.raises(ValueError, match="labelled cells are of one group, 'p0'"):
        cy.tl.classify_cells(adata, "label", groups="patient")
    adata.obs.loc[adata.obs_names[adata.obs["label"].notna()][0], "patient"] = None
    with pytest.raises(ValueError, match="is empty for 1 of"):
        cy.tl.classify_cells(adata, "label", groups="patient")


def test_multilabel_columns_that_are_not_0_or_1():
    adata = cells()
    adata.obs["CD3+"] = np.arange(adata.n_obs) % 3
    with pytest.raises(
        ValueError, match="Column 'CD3\\+' of the multi-label classes must hold 0, 1 or nothing, found \\['2'\\]"
    ):
        cy.tl.classify_cells(adata, ["CD3+"], multilabel=True)
    adata.obs["CD3+"] = 1
    with pytest.raises(ValueError, match="Each class needs cells with 1 and cells with 0"):
        cy.tl.classify_cells(adata, ["CD3+"], multilabel=True)
    with pytest.raises(KeyError, match="No DataFrame 'known' in `adata.obsm`"):
        cy.tl.classify_cells(adata, "known", multilabel=True)


def test_nan_embeddings():
    adata = cells()
    adata.obsm["X_nextmarker"][:30] = np.nan
    cy.tl.classify_cells(adata, "label")
    assert adata.obs["phenotype"].isna().to_numpy().tolist() == [True] * 30 + [False] * 210
    assert adata.obsm["phenotype_proba"].iloc[:30].isna().all(axis=None)
    adata.obsm["X_nextmarker"][:] = np.nan
    with pytest.raises(ValueError, match=r"No cell has all numbers of .* NaN or infinite in \['X_nextmarker'\]"):
        cy.tl.classify_cells(adata, "label")


def test_a_class_that_the_classifier_does_not_know():
    adata = cells(labelled=1.0)
    model = cy.tl.fit_classifier(adata, "label")
    other = cells(seed=3, labelled=1.0)
    other.obs["label"] = other.obs["label"].cat.rename_categories({"M": "Mast"})
    other.obs["all"] = True
    with pytest.raises(
        ValueError, match=r"classes that the classifier does not know: \['Mast'\]. It knows \['B', 'M', 'T'\]"
    ):
        cy.tl.classify_cells(other, "label", model, test="all")
    assert "phenotype" not in other.obs


def test_numbers_of_another_encoder_or_panel():
    adata, other = cells(), cells(seed=3)
    model = cy.tl.fit_classifier(adata, "label")
    for made in ({"weights_sha256": "xyz"}, {"weights_sha256": "abc", "markers": ["CD20", "CD3"]}):
        other.uns["nextmarker"] = {"model": made}
        with pytest.raises(ValueError, match="was made by another encoder, or with other markers"):
            cy.tl.classify_cells(other, model=model)
    with pytest.raises(KeyError, match="lacks 1 of the model's 20 inputs, such as \\['X:CD68'\\]"):
        cy.tl.classify_cells(cells()[:, ["CD3", "CD20"]].copy(), model=model)
    with pytest.raises(KeyError, match="No numbers under 'X_nextmarker'"):
        cy.tl.classify_cells(cells(embedding=False), model=model)


def test_nothing_to_classify_by():
    bare = ad.AnnData(obs=cells().obs)
    del bare.obs["area"]
    with pytest.raises(KeyError, match="neither intensities nor an embedding"):
        cy.tl.classify_cells(bare, "label")
    several = cells()
    several.obsm["X_clearit"] = several.obsm["X_nextmarker"]
    several.uns["clearit"] = several.uns["nextmarker"]
    with pytest.raises(ValueError, match="Several embeddings: .* Choose with `use_rep`"):
        cy.tl.classify_cells(several, "label")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"model": "forest"},
            KeyError,
            "No classifier 'forest'. Available: \\['logistic', 'linear', 'mlp4', 'maps', 'cellsighter'\\]",
        ),
        ({"model": "nextmarker"}, KeyError, "Train it first with `tl.fit_encoder`"),
        ({"balance": "much"}, ValueError, "Unknown balance 'much'"),
        ({"model": "cellsighter"}, TypeError, "reads pixels: give the SpatialData object"),
        ({"use_rep": []}, ValueError, "`use_rep` must name at least one key"),
        ({"use_rep": "X_umap"}, KeyError, "No numbers under 'X_umap'"),
        ({"labels_key": "cells"}, TypeError, "are about images"),
        ({"test": "held"}, KeyError, "No column 'held' in `adata.obs` that says which cells are kept out"),
        ({"test": "patient"}, ValueError, "must be True or False for each cell"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    adata = cells()
    with pytest.raises(error, match=text):
        cy.tl.classify_cells(adata, "label", **arguments)
    assert "phenotype" not in adata.obs


def test_what_to_train_on_must_be_said():
    with pytest.raises(ValueError, match="`label_key` must name the column"):
        cy.tl.classify_cells(cells())
    with pytest.raises(ValueError, match="would write over `obs"):
        cy.tl.classify_cells(cells(), "label", key_added="label")
    with pytest.raises(KeyError, match="No column 'lable'"):
        cy.tl.classify_cells(cells(), "lable")
    model = cy.tl.fit_classifier(cells(), "label")
    with pytest.raises(ValueError, match="only names cells: leave them out"):
        cy.tl.classify_cells(cells(), model=model, use_rep="X")


# --------------------------------------------------------------------------------------------------------------- pixels
@pytest.fixture(scope="module")
def field():
    sdata = cy.datasets.tissue_phantom(n_cells=120, size_px=110, rng=0)
    table = sdata["table"]
    known = np.random.default_rng(0).random(table.n_obs) < 0.5
    table.obs["label"] = table.obs["cell_type"].where(known)
    return sdata


def test_an_encoder_is_fine_tuned(field, tmp_path):
    encoder = cy.tl.fit_encoder(field, steps=10, batch_size=32, rng=0)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    model = cy.tl.fit_classifier(
        field, "label", encoder, schedule=Schedule(epochs=3, batch_size=16, learning_rate=1e-3)
    )
    assert type(model) is cy.models.FineTuned
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())
    folder = cy.models.save(model, tmp_path / "tuned")
    cy.tl.classify_cells(field, model=folder)
    table = field["table"]
    assert (table.obs["phenotype"].astype(str) == table.obs["cell_type"].astype(str)).mean() > 0.5
    assert table.uns["phenotype"]["model"]["class"] == "finetuned"


def test_cellsighter_reads_masks(field):
    schedule = Schedule(epochs=1, batch_size=16, learning_rate=1e-3, balance=True)
    model = cy.tl.fit_classifier(field, "label", "cellsighter", schedule=schedule, size_px=16)
    cy.tl.classify_cells(field, model=model, key_added="seen")
    proba = field["table"].obsm["seen_proba"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-4)
    assert model.markers[-2:] == ("mask of all cells", "mask of this cell")


def test_cellsighter_needs_masks(field):
    from spatialdata import SpatialData

    table = field["table"]
    centers = pd.DataFrame(table.obsm["spatial"], columns=["x", "y"], index=table.obs["instance_id"].to_numpy())
    [image] = field.images
    bare = cy.io.from_arrays(
        field[image].to_numpy(), channels=[str(c) for c in field[image].coords["c"].to_numpy()], centers=centers
    )
    assert isinstance(bare, SpatialData)
    cy.pp.measure_cells(bare, diameter_px=8)
    names = pd.Index(bare["table"].obs["instance_id"])
    bare["table"].obs["label"] = table.obs["label"].to_numpy()[pd.Index(table.obs["instance_id"]).get_indexer(names)]
    with pytest.raises(ValueError, match="Masks are needed, but the cells of .* are named by shapes"):
        cy.tl.fit_classifier(bare, "label", "cellsighter", size_px=16)


# ----------------------------------------------------------------------------------------- what must not happen unnoticed
def test_networks_hold_out_whole_patients(monkeypatch):
    """Also where a class lives in one patient only, whose cells must then all be learned from."""
    from cytonym.tl import _heads

    adata = cells(300, labelled=1.0)
    only = adata.obs["patient"] == "p2"
    adata.obs["label"] = adata.obs["label"].cat.add_categories("rare")
    adata.obs.loc[adata.obs_names[only][:9], "label"] = "rare"
    seen = {}
    supervise = _heads.supervise

    def spy(*args, **kwargs):
        seen.update(kwargs)
        return supervise(*args, **kwargs)

    monkeypatch.setattr(_heads, "supervise", spy)
    for seed in range(4):
        cy.tl.fit_classifier(adata, "label", "linear", schedule=QUICK, groups="patient", rng=seed)
        patients = adata.obs["patient"].to_numpy()
        assert not set(patients[seen["train"]]) & set(patients[seen["validate"]])
        assert "p2" in set(patients[seen["train"]])
        assert len(seen["validate"])


def test_no_score_on_cells_or_patients_learned_from():
    adata = cells(400, labelled=1.0)
    adata.obs["held"] = adata.obs["patient"] == "p3"
    model = cy.tl.fit_classifier(adata, "label", groups="patient", test="held")
    cy.tl.classify_cells(adata, "label", model, test="held", groups="patient")
    assert adata.uns["phenotype"]["test"]["n_cells"] == adata.obs["held"].sum()
    adata.obs["learned"] = ~adata.obs["held"]
    with pytest.raises(ValueError, match="has learned from .* of the .* test cells"):
        cy.tl.classify_cells(adata, "label", model, test="learned", groups="patient")
    other = cells(200, seed=9, labelled=1.0)  # other cells of the same patients
    other.obs["held"] = True
    with pytest.raises(ValueError, match=r"if these are others, give them other `obs_names`"):
        cy.tl.classify_cells(other, "label", model, test="held")
    other.obs_names = [f"other_{name}" for name in other.obs_names]
    with pytest.raises(
        ValueError, match=r"has learned from 3 of the patients of the test cells, such as \['p0', 'p1', 'p2'\]"
    ):
        cy.tl.classify_cells(other, "label", model, test="held", groups="patient")
    cy.tl.classify_cells(other, "label", model, test="held")


@pytest.mark.parametrize("placed", [False, True])
def test_cells_learned_from_are_known_by_other_numbers(placed):
    """As after `sc.pp.log1p`; at another place they are other cells, also under the same names."""
    adata = cells(labelled=1.0)
    adata.obs["learned"] = True
    if placed:
        adata.obsm["spatial"] = np.random.default_rng(0).uniform(0, 99, (adata.n_obs, 2))
    model = cy.tl.fit_classifier(adata, "label")
    order = np.random.default_rng(1).permutation(adata.n_obs)
    changed = adata[order].copy()
    changed.X = np.log1p(changed.X)
    with pytest.raises(ValueError, match="has learned from 240 of the 240 test cells"):
        cy.tl.classify_cells(changed, "label", model, test="learned")
    if placed:
        changed.obsm["spatial"] += 1.0
        cy.tl.classify_cells(changed, "label", model, test="learned")
        assert changed.uns["phenotype"]["test"]["n_cells"] == 240


def test_a_folder_called_like_a_method_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = cells(seed=4)
    other.obs["label"] = other.obs["label"].cat.rename_categories({"T": "x"})
    cy.models.save(cy.tl.fit_classifier(other, "label"), "logistic")
    adata = cells()
    cy.tl.classify_cells(adata, "label")
    assert list(adata.uns["phenotype"]["classes"]) == ["B", "M", "T"]


def test_blanks_are_no_labels():
    adata = cells()
    adata.obs["label"] = adata.obs["label"].astype(object).where(adata.obs["label"].notna(), " ")
    cy.tl.classify_cells(adata, "label")
    assert list(adata.uns["phenotype"]["classes"]) == ["B", "M", "T"]
    assert len(cy.tl.suggest_cells(adata, 5)) == 5


def test_markers_in_brackets_are_markers():
    adata = cells(embedding=False)
    renamed = adata.copy()
    renamed.var_names = ["CD3[UCHT1]", "CD20[L26]", "CD68[KP1]"]
    for table in (adata, renamed):
        cy.tl.classify_cells(table, "label", use_rep="X")
    np.testing.assert_array_equal(adata.obsm["phenotype_proba"], renamed.obsm["phenotype_proba"])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"key_added": "patient", "groups": "patient"}, ValueError, "would write over `obs\\['patient'\\]`"),
        ({"key_added": "my", "use_rep": ["X", "my_confidence"]}, ValueError, "over `obs\\['my_confidence'\\]`"),
        ({"key_added": "my", "use_rep": "my_proba"}, ValueError, "over `obsm\\['my_proba'\\]`"),
        ({"schedule": QUICK}, ValueError, "'logistic' is solved at once"),
        ({"chanels": ["CD3"]}, TypeError, "Unknown arguments \\['chanels'\\]"),
    ],
)
def test_arguments_are_not_swallowed(arguments, error, text):
    with pytest.raises(error, match=text):
        cy.tl.classify_cells(cells(), "label", **arguments)


def test_conflicts_of_rules_do_not_stay_beside_other_names(caplog):
    adata = cells()
    adata.obsm["nimbus_calls"] = pd.DataFrame(1, index=adata.obs_names, columns=["CD3", "CD20"])
    cy.tl.phenotype_cells(adata, {"T": "CD3+", "B": "CD20+"})
    assert adata.obs["phenotype_conflict"].all()
    named = cy.tl.classify_cells(adata, "label", copy=True)
    assert "phenotype_conflict" not in named.obs
    assert "phenotype_conflict" in adata.obs
    assert "'phenotype_conflict' of `tl.phenotype_cells` is removed" in caplog.text
    named.obs["phenotype_conflict"] = "mine"  # not of these rules
    cy.tl.classify_cells(named, "label")
    assert "phenotype_conflict" in named.obs


def test_no_label_column_of_several_is_written_over():
    adata = cells()
    for name in ("CD3+", "CD20+"):
        adata.obs[name] = (adata.obs["truth"] == {"CD3+": "T", "CD20+": "B"}[name]).astype(int)
    before = adata.obs.copy()
    with pytest.raises(ValueError, match=r"`key_added='CD3\+'` would write over `obs\['CD3\+'\]`, which is read here"):
        cy.tl.classify_cells(adata, ["CD20+", "CD3+"], multilabel=True, key_added="CD3+")
    pd.testing.assert_frame_equal(adata.obs, before)


def test_a_trained_classifier_takes_no_keys_of_images_and_no_training():
    model = cy.tl.fit_classifier(cells(), "label")
    with pytest.raises(TypeError, match="are about images, but this classifier takes the numbers"):
        cy.tl.classify_cells(cells(), model=model, channels=["CD3"])
    with pytest.raises(ValueError, match="only names cells: leave them out"):
        cy.tl.classify_cells(cells(), model=model, size_px=9)


def test_backed_tables(tmp_path):
    from scipy import sparse

    adata = cells()
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert cy.tl.fit_classifier(backed, "label").provenance["n_labelled"] == adata.obs["label"].notna().sum()
    backed.file.close()


# ------------------------------------------------------------------------------------------------- unusual images, pixels
def two_images(dtypes=("u1", "f4"), scale=(1, 1)):
    both = cy.datasets.tissue_phantom(n_cells=60, n_samples=2, size_px=80, rng=0)
    pictures = {}
    for (name, element), dtype, factor in zip(both.images.items(), dtypes, scale, strict=True):
        pictures[name] = (element.astype("f4") * factor).clip(0, 255 if dtype == "u1" else None).astype(dtype)
    for name, element in pictures.items():
        both.images[name] = element
    return both


@pytest.mark.filterwarnings("ignore:.*")
def test_images_of_different_types_are_both_seen(monkeypatch):
    from cytonym.tl import _windows

    sdata = two_images(scale=(1, 10))
    encoder = cy.tl.fit_encoder(sdata, steps=3, batch_size=16)
    kept = []
    monkeypatch.setattr(_windows, "_start_head", lambda model, windows, *rest: kept.append(windows))
    cy.tl.fit_classifier(sdata, "cell_type", encoder, schedule=Schedule(epochs=1))
    assert kept[0].dtype == np.float32
    assert kept[0].max() > 300


def test_the_first_head_of_fine_tuning_keeps_no_graph(field, monkeypatch):
    from cytonym.tl import _windows

    encoder = cy.tl.fit_encoder(field, steps=2, batch_size=16)
    encode, graphs = cy.models.NeXtMarker.encode, []

    def recorded(self, windows):
        graphs.append(torch.is_grad_enabled())
        return encode(self, windows)

    monkeypatch.setattr(cy.models.NeXtMarker, "encode", recorded)
    monkeypatch.setattr(_windows, "supervise", lambda *args, **kwargs: None)
    model = cy.tl.fit_classifier(field, "label", encoder)
    assert model.head.weight.abs().sum() > 0
    assert len(graphs) >= 3  # of a new network, for the head, of the cells held out
    assert not any(graphs)


def test_only_cells_in_the_images_asked_for_count():
    sdata = cy.datasets.tissue_phantom(n_cells=60, n_samples=2, size_px=80, rng=0)
    encoder = cy.tl.fit_encoder(sdata, steps=3, batch_size=16)
    first = {"image_key": "sample1_image", "labels_key": "sample1_cells"}
    model = cy.tl.fit_classifier(sdata, "cell_type", encoder, schedule=Schedule(epochs=1), **first)
    assert model.provenance["n_labelled"] <= 60
    assert model.provenance["groups"] == ""
    assert model.provenance["validation"]["n_cells"] > 0


def test_cellsighter_refuses_images_that_lack_its_markers(field):
    schedule = Schedule(epochs=1, batch_size=32, learning_rate=1e-3)
    cy.tl.classify_cells(field, "label", "cellsighter", schedule=schedule, size_px=16, members=2, key_added="seen")
    model = cy.tl.fit_classifier(field, "label", "cellsighter", schedule=schedule, size_px=16)
    with pytest.raises(ValueError, match="The images lack .* of the markers that the classifier was trained on"):
        cy.tl.classify_cells(field, model=model, channels=["DNA"])


def test_an_encoder_of_another_panel_is_not_trained_further(field):
    model = cy.models.NeXtMarker.from_statistics(["DNA", "CD999"], [9.0, 9.0])
    with pytest.raises(ValueError, match=r"its panel must be that of the images, which lack \['CD999'\]"):
        cy.tl.fit_classifier(field, "label", model)


def test_a_training_of_another_encoder_is_not_gone_on_with(field, tmp_path):
    schedule = Schedule(epochs=1, batch_size=32)
    encoders = [cy.tl.fit_encoder(field, steps=2, batch_size=16, rng=seed) for seed in (0, 1)]
    cy.tl.fit_classifier(field, "label", encoders[0], schedule=schedule, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="it began from other weights or data"):
        cy.tl.fit_classifier(field, "label", encoders[1], schedule=schedule, checkpoint_dir=tmp_path)
