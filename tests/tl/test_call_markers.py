"""call_markers against one cell and one marker at a time."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import TableModel

import cytonym as cy
from cytonym.data.names import with_marker_names, with_storable_columns

if TYPE_CHECKING:
    from pathlib import Path

MARKERS = ["CD3", "CD8", "HLA-DR/DP"]


def table(scores, markers=MARKERS, regions=None) -> ad.AnnData:
    values = np.asarray(scores, dtype="f4")
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(len(values))]))
    frame = pd.DataFrame(values, index=adata.obs_names, columns=list(markers))
    adata.obsm["nimbus_positivity"] = with_storable_columns(frame, "nimbus_positivity", adata.uns)
    if regions is not None:
        adata.obs["region"] = pd.Categorical(regions)
    return adata


def some(n: int = 60, seed: int = 0) -> tuple[ad.AnnData, pd.DataFrame]:
    """Scores of two images, the second twice as low as the first, and labels of every second cell."""
    rng = np.random.default_rng(seed)
    positive = rng.random((n, 3)) < 0.4
    scores = np.clip(0.25 + 0.5 * positive + rng.normal(0, 0.12, (n, 3)), 0, 1)
    scores[n // 2 :] /= 2
    adata = table(scores, regions=["a/b"] * (n // 2) + ["c"] * (n - n // 2))
    labels = pd.DataFrame(positive.astype(float), index=adata.obs_names, columns=MARKERS)
    labels.iloc[1::2] = np.nan
    return adata, labels


def f1(truth, called) -> float:
    both = sum(t and c for t, c in zip(truth, called, strict=True))
    return 2 * both / (sum(truth) + sum(called)) if both else 0.0


def stored(adata: ad.AnnData, folder: Path, store: str) -> ad.AnnData:
    """The table, written and read."""
    if store == "h5ad":
        adata.write_h5ad(folder / "table.h5ad")
        return ad.read_h5ad(folder / "table.h5ad")
    SpatialData(tables={"table": TableModel.parse(adata.copy())}).write(folder / "sample.zarr")
    return sd.read_zarr(folder / "sample.zarr")["table"]


# -------------------------------------------------------------------------------------------------------------- calls
@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from([np.nan, 0, 0.2, 0.4, 0.5, 0.6, 1]), min_size=3, max_size=3), max_size=12),
    st.lists(st.sampled_from([0, 0.3, 0.5, 1]), min_size=3, max_size=3),
    st.sampled_from([0, 0.1, 0.25]),
)
def test_equals_one_cell_at_a_time(scores, limits, margin):
    adata = table(np.reshape(np.array(scores, dtype="f4"), (-1, 3)))
    cy.tl.call_markers(adata, threshold=dict(zip(MARKERS, limits, strict=True)), margin=margin)
    calls = cy.get.marker_frame(adata, "nimbus_calls")
    assert list(calls.columns) == MARKERS
    assert set(calls.dtypes) == {np.dtype("int8")}
    for i, row in enumerate(scores):
        for c, score in enumerate(row):
            s, t, m = np.float32(score), limits[c], margin
            expected = 1 if s >= np.float32(t + m) else 0 if s < np.float32(t - m) else -1
            assert calls.iloc[i, c] == expected


def test_thresholds_by_marker_and_what_is_written():
    adata = table([[0.5, 0.3, 0.9], [0.49, 0.29, np.nan]])
    assert cy.tl.call_markers(adata, threshold=pd.Series({"CD8": 0.3})) is None
    assert list(adata.obsm) == ["nimbus_positivity", "nimbus_calls"]
    assert list(adata.obsm["nimbus_calls"].columns) == ["CD3", "CD8", "HLA-DR_DP"]
    assert adata.obsm["nimbus_calls"].to_numpy().tolist() == [[1, 1, 1], [0, 0, -1]]
    told = adata.uns["nimbus_calls"]
    assert told["thresholds"]["all"].to_dict() == {"CD3": 0.5, "CD8": 0.3, "HLA-DR/DP": 0.5}
    assert told["params"] == {
        "key": "nimbus_positivity", "threshold": "by marker", "margin": 0.0, "labels": "", "by": "",
    }  # fmt: skip
    again = table([[0.5, 0.3, 0.9], [0.49, 0.29, np.nan]])
    cy.tl.call_markers(again, threshold=told["thresholds"]["all"])  # what was written can be read
    pd.testing.assert_frame_equal(again.obsm["nimbus_calls"], adata.obsm["nimbus_calls"])


def test_names_and_copies():
    adata = table([[0.5, 0.3, 0.9]])
    adata.obsm["mine"] = pd.DataFrame({"CD3": [0.7]}, index=adata.obs_names)
    copied = cy.tl.call_markers(adata, "mine", copy=True)
    assert copied is not None
    assert "mine_calls" in copied.obsm
    assert "mine_calls" not in adata.obsm
    assert "mine_calls" not in adata.uns
    cy.tl.call_markers(adata, key_added="strict", threshold=0.9)
    assert {"strict"} == set(adata.obsm) - {"mine", "nimbus_positivity"}
    assert adata.obsm["strict"].to_numpy().tolist() == [[0, 0, 1]]


# -------------------------------------------------------------------------------------------------------- calibration
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=14))
def test_no_other_threshold_has_a_better_f1(cells):
    scores, truth = np.array([s / 20 for s, _ in cells], dtype="f4"), [t for _, t in cells]
    if len(set(truth)) < 2:
        truth = [True, False] + truth[2:]
    adata = table(scores[:, None], ["CD3"])
    labels = pd.DataFrame({"CD3": np.array(truth, dtype=int)}, index=adata.obs_names)
    cy.tl.call_markers(adata, labels=labels)
    found = f1(truth, (adata.obsm["nimbus_calls"]["CD3"] == 1).tolist())
    assert found == pytest.approx(max(f1(truth, (scores >= t).tolist()) for t in scores))
    [limit] = adata.uns["nimbus_calls"]["thresholds"]["all"]
    assert limit not in scores[scores > scores.min()]  # between the cells, not on one
    row = adata.uns["nimbus_calls"]["calibration"].iloc[0]
    assert row["f1"] == pytest.approx(found)
    assert (row["positive"], row["negative"]) == (sum(truth), len(truth) - sum(truth))


def test_two_labels_put_the_threshold_between_them():
    adata = table([[0.9, 0, 0], [0.7, 0, 0], [0.1, 0, 0], [0.3, 0, 0]])
    labels = pd.DataFrame({"CD3": [1, 0]}, index=["c0", "c2"])
    with pytest.warns(UserWarning, match=re.escape("these markers keep their given threshold: ['CD8', 'HLA-DR/DP'].")):
        cy.tl.call_markers(adata, threshold={"CD8": 0.2}, labels=labels)
    assert adata.uns["nimbus_calls"]["thresholds"]["all"].round(6).tolist() == [0.5, 0.2, 0.5]
    assert adata.obsm["nimbus_calls"]["CD3"].tolist() == [1, 1, 0, 0]
    assert adata.uns["nimbus_calls"]["calibration"]["source"].tolist() == ["all", "given", "given"]


def test_each_image_gets_its_own_threshold_and_others_that_of_all():
    adata, labels = some()
    labels.loc[adata.obs["region"] == "c", "CD8"] = np.nan
    labels.loc[(adata.obs["region"] == "c") & (labels["CD3"] == 0), "CD3"] = np.nan  # positive ones only
    cy.tl.call_markers(adata, labels=labels, by="region")
    stored = adata.uns["nimbus_calls"]["thresholds"]
    assert list(stored.columns) == ["a_b", "c"]
    own = with_marker_names(stored, "nimbus_calls_thresholds", adata.uns)
    whole = cy.tl.call_markers(adata, labels=labels, copy=True).uns["nimbus_calls"]["thresholds"]["all"]
    one = adata[adata.obs["region"] == "a/b"].copy()
    cy.tl.call_markers(one, labels=labels.loc[one.obs_names])
    pd.testing.assert_series_equal(own["a/b"], one.uns["nimbus_calls"]["thresholds"]["all"], check_names=False)
    assert own.loc[["CD3", "CD8"], "c"].tolist() == whole[["CD3", "CD8"]].tolist()
    assert own.loc["HLA-DR/DP", "c"] < own.loc["HLA-DR/DP", "a/b"]
    told = adata.uns["nimbus_calls"]["calibration"].set_index(["marker", "group"])["source"]
    assert told[("HLA-DR/DP", "c")] == "group"
    assert told[("CD3", "c")] == told[("CD8", "c")] == "all"
    pd.testing.assert_frame_equal(
        adata.obsm["nimbus_calls"].loc[one.obs_names], one.obsm["nimbus_calls"], check_names=False
    )


def test_labels_may_lie_in_the_table_and_have_any_type():
    adata, labels = some()
    cy.tl.call_markers(adata, labels=labels)
    for name, seen in {
        "objects": labels.astype(object).where(labels.notna(), None),
        "nullable": labels.astype("Int8"),
        "bool": labels.astype("boolean"),
    }.items():
        other = adata.copy()
        other.obsm["seen"] = with_storable_columns(seen, "seen", other.uns)
        cy.tl.call_markers(other, labels="seen")
        pd.testing.assert_frame_equal(other.obsm["nimbus_calls"], adata.obsm["nimbus_calls"], obj=name)
        assert other.uns["nimbus_calls"]["params"]["labels"] == "seen"
    rest = labels.dropna().sample(frac=1, random_state=0)
    again = cy.tl.call_markers(adata, labels=rest[rest.columns[::-1]], copy=True)
    pd.testing.assert_frame_equal(again.obsm["nimbus_calls"], adata.obsm["nimbus_calls"])


def test_cells_without_a_score_teach_nothing():
    adata, labels = some()
    frame = adata.obsm["nimbus_positivity"].copy()
    frame.iloc[:10] = np.nan
    adata.obsm["nimbus_positivity"] = frame
    cy.tl.call_markers(adata, labels=labels)
    without = cy.tl.call_markers(adata, labels=labels.iloc[10:], copy=True)
    pd.testing.assert_frame_equal(adata.uns["nimbus_calls"]["calibration"], without.uns["nimbus_calls"]["calibration"])
    assert (adata.obsm["nimbus_calls"].iloc[:10] == -1).all(axis=None)


def test_the_order_of_rows_does_not_matter():
    adata, labels = some()
    cy.tl.call_markers(adata, labels=labels, by="region", margin=0.05)
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    cy.tl.call_markers(shuffled, labels=labels, by="region", margin=0.05)
    pd.testing.assert_frame_equal(
        shuffled.obsm["nimbus_calls"].loc[adata.obs_names], adata.obsm["nimbus_calls"], check_names=False
    )
    for name in ("thresholds", "calibration"):
        pd.testing.assert_frame_equal(shuffled.uns["nimbus_calls"][name], adata.uns["nimbus_calls"][name])


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_survives_the_disk(tmp_path, store):
    adata, labels = some()
    cy.tl.call_markers(adata, labels=labels, by="region", margin=0.1)
    back = stored(adata, tmp_path, store)
    pd.testing.assert_frame_equal(
        cy.get.marker_frame(back, "nimbus_calls"), cy.get.marker_frame(adata, "nimbus_calls"), check_column_type=False
    )
    assert set(back.obsm["nimbus_calls"].dtypes) == {np.dtype("int8")}
    assert back.uns["nimbus_calls"]["params"] == adata.uns["nimbus_calls"]["params"]
    for name in ("thresholds", "calibration"):
        there, here = back.uns["nimbus_calls"][name], adata.uns["nimbus_calls"][name]
        pd.testing.assert_frame_equal(
            there.set_axis(there.index.astype(str)).astype(here.dtypes),
            here.set_axis(here.index.astype(str)),
            check_index_type=False,
        )
    cy.tl.call_markers(back, labels=labels, by="region", margin=0.1)
    pd.testing.assert_frame_equal(back.obsm["nimbus_calls"], adata.obsm["nimbus_calls"], check_column_type=False)


def test_a_table_without_cells():
    adata = table(np.zeros((0, 3)))
    cy.tl.call_markers(adata)
    assert adata.obsm["nimbus_calls"].shape == (0, 3)


# ------------------------------------------------------------------------------------------------------------- errors
def test_errors():
    adata, labels = some()
    adata.obs["patient"] = ["p", None] * 30
    adata.obsm["array"] = np.zeros((60, 2))
    wrong = labels.copy()
    wrong.iloc[0, 1] = 2
    lost = labels.iloc[:2].set_axis(["c0", "x9"])
    before = adata.copy()
    for arguments, error, message in [
        ({"key": "nimbus"}, KeyError, "No 'nimbus' in `adata.obsm`. DataFrames there: ['nimbus_positivity']"),
        ({"key": "array"}, TypeError, "is an array without marker names"),
        ({"threshold": 1.2}, ValueError, "Thresholds must be numbers from 0 to 1, got 1.2."),
        ({"threshold": float("nan")}, ValueError, "Thresholds must be numbers from 0 to 1, got nan."),
        ({"threshold": {"CD3": -0.1}}, ValueError, "Thresholds must be numbers from 0 to 1, got {'CD3': -0.1}."),
        ({"threshold": {"CD3": "high"}}, ValueError, "got {'CD3': 'high'}"),
        ({"threshold": [0.5, 0.5]}, TypeError, "`threshold` must be a number, or a mapping or Series"),
        ({"threshold": True}, TypeError, "`threshold` must be a number"),
        (
            {"threshold": {"CD4": 0.5}},
            KeyError,
            "`threshold` names markers without scores: ['CD4']. Available: ['CD3', 'CD8', 'HLA-DR/DP'].",
        ),
        ({"threshold": pd.Series([0.1, 0.2], ["CD3", "CD3"])}, ValueError, "`threshold` names markers twice: ['CD3']"),
        ({"margin": -0.1}, ValueError, "`margin` must be a number from 0 to 1, got -0.1."),
        ({"margin": float("nan")}, ValueError, "`margin` must be"),
        ({"by": "region"}, ValueError, "`by='region'` asks for thresholds for each group, which need `labels`"),
        (
            {"by": "image", "labels": labels},
            KeyError,
            "No column 'image' in `adata.obs`. Available: ['patient', 'region']",
        ),
        ({"by": "patient", "labels": labels}, ValueError, "`obs['patient']` is empty for 30 of 60 cells"),
        ({"labels": "seen"}, KeyError, "No DataFrame 'seen' in `adata.obsm` with labels of cells."),
        ({"labels": [1, 0]}, TypeError, "`labels` must be the key of a DataFrame"),
        (
            {"labels": wrong},
            ValueError,
            "Labels must be 1, 0 or missing, but `labels` holds ['2.0'] for 'CD8' in 1 cells.",
        ),
        ({"labels": wrong.astype(object).mask(wrong == 2, "pos")}, ValueError, "holds ['pos'] for 'CD8'"),
        ({"labels": labels.rename(columns={"CD3": "CD4"})}, KeyError, "`labels` names markers without scores: ['CD4']"),
        ({"labels": lost}, KeyError, "1 of 2 cells of `labels` are not in the table, such as ['x9']. Its index"),
        ({"labels": pd.concat([labels, labels[:1]])}, ValueError, "The cells of `labels` must all be different"),
        ({"labels": labels[["CD3", "CD3"]]}, ValueError, "The markers of `labels` must all be different"),
        ({"key_added": "nimbus_positivity"}, ValueError, "would write over `obsm['nimbus_positivity']`"),
    ]:
        with warnings.catch_warnings(), pytest.raises(error, match=re.escape(message)):
            cy.tl.call_markers(adata, **arguments)
    assert set(adata.obsm) == set(before.obsm)
    assert set(adata.uns) == set(before.uns)
    adata.obs_names = ["a"] * adata.n_obs
    with pytest.raises(ValueError, match=re.escape("`adata.obs_names` repeat")):
        cy.tl.call_markers(adata, labels=labels)


@pytest.mark.parametrize("value", [1.5, -0.2, np.inf])
def test_scores_out_of_range(value):
    adata = table([[0.5, 0.5, 0.5], [0.5, value, 0.5]])
    with pytest.raises(
        ValueError,
        match=re.escape(f"the first is {np.float32(value)} of cell 'c1' for 'CD8'. Intensities are no scores"),
    ):
        cy.tl.call_markers(adata)
