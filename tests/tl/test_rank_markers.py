"""rank_markers against scipy and scikit-learn, one group and marker at a time."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

import cytonym as cy


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    n = 90
    table = ad.AnnData(np.zeros((n, 1), "f4"), obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    table.obs["type"] = pd.Categorical(rng.choice(["T", "B", "NK"], n), categories=["T", "B", "NK", "unused"])
    values = rng.poisson(1.0, (n, 3)).astype("f4")  # many ties
    values[:, 0] += 2 * (table.obs["type"] == "T")
    values[:, 2] = 0
    table.obsm["nextmarker_attributions"] = pd.DataFrame(
        values, index=table.obs_names, columns=["CD3", "CD20", "silent"]
    )
    return table


def test_equals_the_slow_way(adata):
    result = cy.tl.rank_markers(adata, "type")
    assert list(result.columns) == ["group", "marker", "mean", "mean_rest", "auroc", "p_value", "p_adjusted"]
    assert list(dict.fromkeys(result["group"])) == ["T", "B", "NK"]
    for row in result.itertuples():
        inside = (adata.obs["type"] == row.group).to_numpy()
        values = adata.obsm["nextmarker_attributions"][row.marker].to_numpy()
        assert row.mean == pytest.approx(values[inside].mean())
        assert row.mean_rest == pytest.approx(values[~inside].mean())
        assert row.auroc == pytest.approx(roc_auc_score(inside, values))
        if row.marker == "silent":
            assert (row.auroc, row.p_value) == (0.5, 1.0)
        else:
            expected = stats.mannwhitneyu(values[inside], values[~inside], method="asymptotic").pvalue
            assert row.p_value == pytest.approx(expected)
    np.testing.assert_allclose(result["p_adjusted"], stats.false_discovery_control(result["p_value"]))
    assert result.iloc[0][["group", "marker"]].tolist() == ["T", "CD3"]


def test_cells_without_group_or_number_are_left_out(adata):
    adata.obs.loc[adata.obs_names[:5], "type"] = np.nan
    adata.obsm["nextmarker_attributions"].iloc[5:10] = np.nan
    part = adata[10:].copy()
    pd.testing.assert_frame_equal(cy.tl.rank_markers(adata, "type"), cy.tl.rank_markers(part, "type"))
    some = cy.tl.rank_markers(adata, "type", groups=["B"])
    assert set(some["group"]) == {"B"}


def test_a_cell_without_one_marker_counts_for_the_others(adata):
    """As where one image lacks it."""
    frame = adata.obsm["nextmarker_attributions"]
    whole = cy.tl.rank_markers(adata, "type").set_index(["group", "marker"])
    frame.iloc[:40, 1] = np.nan
    found = cy.tl.rank_markers(adata, "type").set_index(["group", "marker"])
    part = cy.tl.rank_markers(adata[40:].copy(), "type").set_index(["group", "marker"])
    columns = ["mean", "mean_rest", "auroc", "p_value"]
    for group in ("T", "B", "NK"):
        for marker, expected in (("CD3", whole), ("silent", whole), ("CD20", part)):
            np.testing.assert_allclose(found.loc[(group, marker), columns], expected.loc[(group, marker), columns])
    frame.loc[(adata.obs["type"] == "T").to_numpy(), "CD20"] = np.nan
    last = cy.tl.rank_markers(adata, "type").set_index(["group", "marker"])
    assert last.loc[("T", "CD20")].isna().all()
    assert last.drop(index=("T", "CD20")).notna().all(axis=None)
    for i, group in enumerate(adata.obs["type"]):  # each group has a marker of its own
        frame.iloc[i] = [1.0 if group == name else np.nan for name in ("T", "B", "NK")]
    assert cy.tl.rank_markers(adata, "type")[[*columns, "p_adjusted"]].isna().all(axis=None)


def test_errors(adata):
    with pytest.raises(KeyError, match=re.escape("No column 'leiden' in `adata.obs`. Available: ['type'].")):
        cy.tl.rank_markers(adata, "leiden")
    with pytest.raises(KeyError, match="No 'nimbus' in `adata.obsm`"):
        cy.tl.rank_markers(adata, "type", key="nimbus")
    with pytest.raises(KeyError, match=re.escape("No group ['Q']")):
        cy.tl.rank_markers(adata, "type", groups=["Q"])
    adata.obs["one"] = "a"
    with pytest.raises(ValueError, match=re.escape("must hold two or more groups")):
        cy.tl.rank_markers(adata, "one")
