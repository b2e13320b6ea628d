"""compare_labels against scikit-learn."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, cohen_kappa_score

import cytonym as cy


def table(a, b) -> ad.AnnData:
    obs = pd.DataFrame({"a": a, "b": b}, index=[f"c{i}" for i in range(len(a))])
    return ad.AnnData(np.zeros((len(a), 1), "f4"), obs=obs)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("pqr")), min_size=2, max_size=40))
def test_equals_scikit_learn(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    result = cy.tl.compare_labels(table(a, b), "a", "b")
    assert result.ari == pytest.approx(adjusted_rand_score(a, b))
    agreement = np.mean([x == y for x, y in pairs])
    if set(a) & set(b):
        assert result.agreement == pytest.approx(agreement)
        if len(set(a) | set(b)) > 1:
            assert result.kappa == pytest.approx(cohen_kappa_score(a, b))
    else:
        assert np.isnan(result.agreement)
        assert np.isnan(result.kappa)
    assert result.agree.astype(bool).mean() == pytest.approx(agreement)
    assert result.counts.to_numpy().sum() == len(pairs)


def test_missing_labels_and_layout():
    adata = table(
        pd.Categorical(["T", "T", "B", None, "other"], categories=["T", "B", "other", "unused"]),
        pd.Categorical(["B", "T", "B", "T", None], categories=["Q", "B", "T"]),
    )
    result = cy.tl.compare_labels(adata, "a", "b")
    assert result.n_cells == 3
    assert result.agreement == pytest.approx(2 / 3)
    assert list(result.counts.index) == ["T", "B"]
    assert list(result.counts.columns) == ["T", "B"]
    assert result.fractions.loc["T"].tolist() == [0.5, 0.5]
    assert result.agree.tolist()[:3] == [False, True, True]
    assert result.agree.isna().tolist() == [False, False, False, True, True]
    assert list(adata.obs) == ["a", "b"]


def test_clusters_against_types():
    adata = table([0, 0, 1, 1], ["T", "T", "B", "B"])
    result = cy.tl.compare_labels(adata, "a", "b")
    assert result.ari == 1.0
    assert np.isnan(result.agreement)
    assert list(result.counts.index) == ["0", "1"]


def test_errors():
    with pytest.raises(KeyError, match=re.escape("No column 'c' in `adata.obs`. Available: ['a', 'b'].")):
        cy.tl.compare_labels(table(["T"], ["T"]), "a", "c")
    with pytest.raises(ValueError, match="No cell has a label in both"):
        cy.tl.compare_labels(table(["T", None], [None, "T"]), "a", "b")
