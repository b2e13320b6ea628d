"""suggest_cells: what it draws, what it never draws, and that its labels teach more than random ones."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cytonym as cy
from cytonym.tl import _suggest_cells

STRATEGIES = ["combined", "uncertainty", "diversity", "rarity", "random"]


def table(n: int = 120, n_classes: int = 3, seed: int = 0) -> ad.AnnData:
    """Cells in clusters, some of them labelled, with probabilities of three classes."""
    rng = np.random.default_rng(seed)
    group = rng.choice(n_classes, n, p=[0.6, 0.3, 0.1])
    values = (rng.normal(size=(n, 4)) + 6 * np.eye(n_classes, 4)[group]).astype("f4")
    adata = ad.AnnData(values, obs=pd.DataFrame(index=[f"cell_{i}" for i in rng.permutation(n)]))
    adata.var_names = ["A", "B", "C", "D"]
    names = np.array(["x", "y", "z"])
    adata.obs["label"] = pd.Categorical([names[g] if i % 6 == 0 else None for i, g in enumerate(group)])
    logits = 3 * np.eye(n_classes)[group] + rng.normal(size=(n, n_classes))
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    adata.obsm["phenotype_proba"] = pd.DataFrame(proba, index=adata.obs_names, columns=names)
    return adata


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("small_pool", [False, True])
def test_neither_the_order_of_rows_nor_chance_matters(strategy, small_pool, monkeypatch):
    if small_pool:
        monkeypatch.setattr(_suggest_cells, "POOL", 40)
        monkeypatch.setattr(_suggest_cells, "KNOWN", 5)
    adata = table()
    before = adata.copy()
    found = cy.tl.suggest_cells(adata, 2 if small_pool else 20, strategy=strategy, rng=3)
    assert isinstance(found, pd.Index)
    assert found.is_unique
    assert adata.obs.loc[found, "label"].isna().all()
    for seed in range(3):
        shuffled = adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()
        assert list(cy.tl.suggest_cells(shuffled, len(found), strategy=strategy, rng=3)) == list(found)
    if strategy in ("combined", "diversity", "random"):
        assert list(cy.tl.suggest_cells(adata, len(found), strategy=strategy, rng=4)) != list(found)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(adata.uns) == set(before.uns)


def test_the_least_certain_and_the_rarest_come_first():
    adata = table()
    free = adata[adata.obs["label"].isna()]
    proba = free.obsm["phenotype_proba"]
    top = np.sort(proba.to_numpy(), axis=1)
    margin = pd.Series(top[:, -1] - top[:, -2], index=free.obs_names)
    assert list(cy.tl.suggest_cells(adata, 10, strategy="uncertainty")) == list(margin.sort_values().index[:10])
    called = proba.idxmax(axis=1)
    rarest = called.value_counts().index[-1]
    n = int((called == rarest).sum())
    assert set(called[cy.tl.suggest_cells(adata, n, strategy="rarity")]) == {rarest}


def test_uncertainty_with_several_labels_is_the_least_confident_call():
    adata = table()
    limits = np.array([0.2, 0.5, 0.7])
    adata.uns["phenotype"] = {"params": {"multilabel": True}, "thresholds": limits}
    free = adata[adata.obs["label"].isna()]
    sure = cy.metrics.call_confidence(free.obsm["phenotype_proba"].to_numpy(), limits).min(axis=1)
    found = cy.tl.suggest_cells(adata, 7, strategy="uncertainty")
    assert list(found) == list(free.obs_names[np.argsort(sure, kind="stable")[:7]])
    assert len(cy.tl.suggest_cells(adata, 7)) == 7


def test_suggestions_lie_apart_and_away_from_labelled_cells():
    """Four tight clusters, one of them labelled: the first three suggestions are one of each of the others."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 25)
    values = (50 * np.eye(4)[group] + rng.normal(size=(100, 4)) * 0.01).astype("f4")
    adata = ad.AnnData(
        obs=pd.DataFrame({"label": np.where(group == 3, "T", None)}, index=[f"c{i}" for i in range(100)])
    )
    adata.obs["group"] = group
    adata.obsm["X_any"] = values
    for seed in range(5):
        found = cy.tl.suggest_cells(adata, 3, use_rep="X_any", rng=seed)
        assert set(adata.obs.loc[found, "group"]) == {0, 1, 2}
    adata.obsm["X_any"] = np.ones_like(values)  # nothing lies apart from anything
    assert cy.tl.suggest_cells(adata, 30, use_rep="X_any").is_unique


def test_cells_without_numbers_are_never_suggested(caplog):
    adata = table()
    adata.X[:30, 1] = np.nan
    adata.obsm["phenotype_proba"].iloc[30:60] = np.nan
    free = set(adata.obs_names[60:][adata.obs["label"].isna()[60:]])
    for strategy in STRATEGIES:
        with caplog.at_level(logging.WARNING, logger="cytonym"):
            assert set(cy.tl.suggest_cells(adata, 999, strategy=strategy)) == free
        assert f"Only {len(free)} cells can be suggested, 999 were asked for." in caplog.text


def test_before_any_label_and_classifier(caplog):
    adata = table()
    del adata.obsm["phenotype_proba"], adata.obs["label"]
    with caplog.at_level(logging.INFO, logger="cytonym"):
        found = cy.tl.suggest_cells(adata, 9)
    assert "No 'phenotype_proba' in `adata.obsm` yet" in caplog.text
    assert "No column 'label' in `adata.obs`: no cell counts as labelled." in caplog.text
    assert list(found) == list(cy.tl.suggest_cells(adata, 9, strategy="diversity"))


def test_distances_are_in_the_numbers_of_the_classifier():
    adata = table()
    adata.obsm["X_a"] = np.asarray(adata.X)
    adata.obsm["X_b"] = np.asarray(adata.X) ** 3
    cy.tl.classify_cells(adata, "label", use_rep="X_a")
    found = list(cy.tl.suggest_cells(adata, 9))
    assert found == list(cy.tl.suggest_cells(adata, 9, use_rep="X_a"))
    assert found != list(cy.tl.suggest_cells(adata, 9, use_rep="X_b"))


@pytest.mark.filterwarnings("ignore:Classes with a single labelled cell:UserWarning")
def test_labels_of_suggested_cells_teach_more_than_random_ones():
    """Three rounds of 30 labels on one sample, scored on another: mean macro-F1 over five seeds."""
    sdata = cy.datasets.tissue_phantom(n_cells=1200, n_samples=2, size_px=240, rng=1)
    cy.pp.measure_cells(sdata)
    both = sdata["table"]
    [first, second] = both.obs["region"].unique()
    scores: dict[str, list[float]] = {"random": [], "combined": []}
    classes: dict[str, list[int]] = {"random": [], "combined": []}
    for strategy in scores:
        for seed in range(5):
            pool = ad.AnnData(both.X, obs=both.obs[["area", "cell_type"]], var=both.var)[
                both.obs["region"] == first
            ].copy()
            test = ad.AnnData(both.X, obs=both.obs[["area", "cell_type"]], var=both.var)[
                both.obs["region"] == second
            ].copy()
            pool.obs["label"] = pd.Series(None, index=pool.obs_names, dtype=object)
            for number in range(3):
                chosen = cy.tl.suggest_cells(pool, 30, strategy=strategy, rng=10 * seed + number)
                pool.obs.loc[chosen, "label"] = pool.obs.loc[chosen, "cell_type"].astype(object)
                if number == 0:
                    classes[strategy].append(pool.obs["label"].nunique())
                model = cy.tl.fit_classifier(pool, "label")
                cy.tl.classify_cells(pool, model=model)
            cy.tl.classify_cells(test, model=model)
            scores[strategy].append(cy.metrics.f1(test.obs["cell_type"].astype(str), test.obs["phenotype"].astype(str)))
    assert np.mean(classes["combined"]) > np.mean(classes["random"])
    assert np.mean(scores["combined"]) > np.mean(scores["random"]) + 0.05


def test_errors():
    adata = table()
    for arguments, error, message in [
        (
            {"strategy": "best"},
            ValueError,
            "Unknown strategy 'best'. Available: ['combined', 'uncertainty', 'diversity'",
        ),
        ({"n": 0}, ValueError, "`n` must be at least 1, got 0"),
        ({"label_key": "expert"}, KeyError, "No column 'expert' in `adata.obs`. Available: ['label']"),
        ({"key": "maps"}, KeyError, "No 'maps_proba' in `adata.obsm`, from which 'combined' would tell what to label"),
        ({"use_rep": "X_umap"}, KeyError, "No numbers under 'X_umap'"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.tl.suggest_cells(adata, **arguments)
    del adata.obsm["phenotype_proba"]
    with pytest.raises(
        KeyError, match=re.escape("Run `tl.classify_cells` first; `strategy='diversity'` needs no classifier")
    ):
        cy.tl.suggest_cells(adata, strategy="uncertainty")
    adata.obs["label"] = "T"
    with pytest.raises(
        ValueError, match=re.escape("No cell is left to suggest: of 120 cells 120 are labelled in 'label'")
    ):
        cy.tl.suggest_cells(adata)
    adata.obs_names = ["a"] * adata.n_obs
    with pytest.raises(ValueError, match=re.escape("`obs_names` repeat, such as ['a']")):
        cy.tl.suggest_cells(adata)
