"""phenotype_cells against one cell at a time, and its rules against nonsense."""

from __future__ import annotations

import itertools
import logging
import re
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

MARKERS = ["CD3", "CD8", "CD20", "HLA-DR/DP"]
RULES = pd.DataFrame(
    {
        "parent": ["", "T cell", "T cell", "", None],
        "CD3": ["positive", "", np.nan, "negative", "-"],
        "CD8": ["any", "+", "-", "any", 0],
        "CD20": ["", "", "", "+", "negative"],
        "HLA-DR/DP": ["", "", "", "", 1],
    },
    index=["T cell", "CD8 T cell", "CD4 T cell", "B cell", "APC"],
)

OVERLAPPING = RULES.assign(CD20=["", "", "", "+", ""]).drop(columns="CD3")
OVERLAPPING.insert(1, "CD3", ["+", "", "", "", ""])


def table(calls, scores=None, markers=MARKERS) -> ad.AnnData:
    values = np.asarray(calls, dtype="i1")
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(len(values))]))
    for key, numbers in {"nimbus_calls": values, "nimbus_positivity": scores}.items():
        if numbers is not None:
            frame = pd.DataFrame(numbers, index=adata.obs_names, columns=list(markers))
            adata.obsm[key] = with_storable_columns(frame, key, adata.uns)
    return adata


def some(n: int = 200, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    scores = rng.random((n, 4)).astype("f4")
    scores[:5] = np.nan
    adata = table(np.zeros((n, 4)), scores)
    cy.tl.call_markers(adata, margin=0.1)
    return adata


# ------------------------------------------------------------------------------------------------------- the slow way
def slow(rules: dict, calls: dict, scores: dict | None) -> tuple[str | None, bool, list]:
    """Type, conflict and matched leaves of a cell; rules: name -> (parent, {marker: positive})."""
    if all(call == -1 for call in calls.values()):
        return None, False, []

    def line(name: str) -> list[str]:
        return [name, *(line(rules[name][0]) if rules[name][0] else [])]

    def asked(name: str) -> dict:
        return {marker: wanted for one in line(name) for marker, wanted in rules[one][1].items()}

    def order(name: str) -> tuple:
        sure = []
        if scores is not None:
            for marker, wanted in asked(name).items():
                s = float(scores[marker])
                sure.append(0.0 if np.isnan(s) else s if wanted else 1 - s)
        return len(line(name)), len(asked(name)), sorted(sure)

    matched = [name for name in rules if all(calls[m] == int(wanted) for m, wanted in asked(name).items())]
    leaves = [name for name in matched if not any(name in line(other)[1:] for other in matched)]
    return (max(leaves, key=order) if leaves else "Unknown"), len(leaves) > 1, leaves


@st.composite
def situations(draw):
    """Rules that make sense, with calls and scores of some cells, in which ties are frequent."""
    markers = MARKERS[: draw(st.integers(2, 4))]
    rules: dict = {}
    names = draw(st.permutations([f"type {i}" for i in range(draw(st.integers(1, 6)))]))
    for name in names:
        parent = draw(st.sampled_from([None, None, *rules]))
        above: dict = {}
        one = parent
        while one:
            above |= rules[one][1]
            one = rules[one][0]
        own = draw(st.dictionaries(st.sampled_from(markers), st.booleans(), max_size=3))
        own = {m: above.get(m, wanted) for m, wanted in own.items()}
        whole = above | own
        taken = []
        for other in rules:
            line, one = {}, other
            while one:
                line |= rules[one][1]
                one = rules[one][0]
            taken.append(line)
        if whole not in taken:
            rules[name] = (parent, own)
    n = draw(st.integers(1, 8))
    cell = st.lists(st.sampled_from([-1, 0, 1]), min_size=len(markers), max_size=len(markers))
    score = st.lists(st.sampled_from([np.nan, 0, 0.25, 0.5, 0.75, 1]), min_size=len(markers), max_size=len(markers))
    calls, scores = (draw(st.lists(one, min_size=n, max_size=n)) for one in (cell, score))
    rows = draw(st.permutations(list(rules)))
    return markers, {name: rules[name] for name in rows}, calls, scores if draw(st.booleans()) else None


@settings(deadline=None, max_examples=150)
@given(situations())
def test_equals_one_cell_at_a_time(situation):
    markers, rules, calls, scores = situation
    adata = table(calls, None if scores is None else np.array(scores, dtype="f4"), markers)
    frame = pd.DataFrame("", index=list(rules), columns=["parent", *markers])
    for name, (parent, own) in rules.items():
        frame.loc[name, "parent"] = parent or ""
        for marker, wanted in own.items():
            frame.loc[name, marker] = "+" if wanted else "negative"
    cy.tl.phenotype_cells(adata, frame)
    pairs: dict = {}
    for i, row in enumerate(calls):
        numbers = None if scores is None else dict(zip(markers, scores[i], strict=True))
        name, conflict, leaves = slow(rules, dict(zip(markers, row, strict=True)), numbers)
        found = adata.obs["phenotype"].iloc[i]
        assert (None if pd.isna(found) else found) == name
        assert adata.obs["phenotype_conflict"].iloc[i] == conflict
        for a, b in itertools.combinations(leaves, 2):
            pairs[a, b, name] = pairs.get((a, b, name), 0) + 1
    told = adata.uns["phenotype"]["conflicts"]
    assert {(r.type_a, r.type_b, r.resolved_to): r.cells for r in told.itertuples()} == pairs
    assert told["cells"].is_monotonic_decreasing
    assert list(adata.obs["phenotype"].cat.categories) == [*rules, "Unknown"]


# ------------------------------------------------------------------------------------------------------------ examples
CALLS = {
    "CD8 T cell": [1, 1, 0, 0],
    "CD4 T cell": [1, 0, 0, 0],
    "T cell": [1, -1, 0, 0],
    "B cell": [0, -1, 1, 0],
    "APC": [0, 0, 0, 1],
    "Unknown": [0, 1, -1, 0],
}


def test_the_deepest_type_wins_and_undecided_calls_satisfy_nothing():
    adata = table([*CALLS.values(), [-1, -1, -1, -1], [-1, 1, 1, 1]])
    assert cy.tl.phenotype_cells(adata, RULES) is None
    assert adata.obs["phenotype"].iloc[:6].tolist() == list(CALLS)
    assert adata.obs["phenotype"].isna().tolist() == [False] * 6 + [True, False]
    assert adata.obs["phenotype"].iloc[7] == "Unknown"
    assert adata.obs["phenotype_conflict"].dtype == bool
    assert not adata.obs["phenotype_conflict"].any()
    told = adata.uns["phenotype"]
    assert told["params"] == {"key": "nimbus_calls", "scores": ""}
    assert told["conflicts"].shape == (0, 4)
    assert list(told["rules"].columns) == ["parent", "CD3", "CD8", "CD20", "HLA-DR_DP"]
    written = with_marker_names(told["rules"], "phenotype_rules", adata.uns)
    assert written.loc["CD4 T cell"].tolist() == ["T cell", "any", "negative", "any", "any"]
    again = table(list(CALLS.values()))
    cy.tl.phenotype_cells(again, written)  # what was written can be read
    pd.testing.assert_series_equal(again.obs["phenotype"], adata.obs["phenotype"].iloc[:6])


@pytest.mark.parametrize("how", ["text", "frame", "numbers", "csv"])
def test_every_layout_of_rules(how, tmp_path):
    text = {"Tc": "CD3+ CD8+, CD20-", "B": "CD20+CD3-", "APC": "HLA-DR/DP+;CD20 -"}
    frame = pd.DataFrame(
        {"CD3": ["+", "-", ""], "CD8": ["+", "", ""], "CD20": ["-", "+", "-"], "HLA-DR/DP": ["", "", "+"]},
        index=list(text),
    )
    numbers = frame.replace({"+": "1", "-": "0", "": "nan"}).astype(float)
    rules = {"text": text, "frame": frame, "numbers": numbers, "csv": tmp_path / "rules.csv"}[how]
    lines = ["cell type,HLA-DR/DP, CD3 ,CD8,CD20", "Tc,,Positive,1, NEGATIVE ", "B,any,-,,+", ",,,,", "APC,1.0,,,0.0"]
    (tmp_path / "rules.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    calls = list(itertools.product([-1, 0, 1], repeat=4))
    adata, expected = table(calls), table(calls)
    cy.tl.phenotype_cells(adata, rules)
    cy.tl.phenotype_cells(expected, frame)
    pd.testing.assert_series_equal(adata.obs["phenotype"], expected.obs["phenotype"])
    assert set(adata.obs["phenotype"].cat.categories) == {"Tc", "B", "APC", "Unknown"}
    if how == "csv":
        cy.tl.phenotype_cells(adata, str(rules))


def test_names_of_markers_may_hold_signs_and_spaces():
    markers = ["PD", "PD-1", "Ki 67", "HLA-DR"]
    adata = table([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]], markers=markers)
    cy.tl.phenotype_cells(adata, {"a": "PD-1+", "b": "PD+PD-1-", "c": "Ki 67+ HLA-DR+ PD-1\N{MINUS SIGN}"})
    assert adata.obs["phenotype"].tolist() == ["a", "b", "c"]


# ----------------------------------------------------------------------------------------------------------- conflicts
def test_conflicts_are_counted_and_resolved(caplog):
    rules = {"T": "CD3+", "B": "CD20+", "NK": "CD8+", "MAIT": "CD3+ CD8+"}
    scores = np.array([[0.9, 0.0, 0.8, 0], [0.7, 0.0, 0.95, 0], [0.8, 0, 0.8, 0], [0.6, 0.6, 0.99, 0]], dtype="f4")
    calls = [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
    adata = table(calls, scores)
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.tl.phenotype_cells(adata, rules)
    assert adata.obs["phenotype"].tolist() == ["T", "B", "T", "MAIT"]  # certain, certain, first named, more rules
    assert adata.obs["phenotype_conflict"].all()
    told = adata.uns["phenotype"]
    assert told["params"]["scores"] == "nimbus_positivity"
    assert told["conflicts"].to_numpy().tolist()[:2] == [["T", "B", 2, "T"], ["T", "B", 1, "B"]]
    assert ["T", "MAIT", 1, "MAIT"] in told["conflicts"].to_numpy().tolist()  # two roots, one with more rules
    assert (
        "4 of 4 cells match several types, most often 'T' and 'B': see `uns['phenotype']['conflicts']`." in caplog.text
    )
    without = table(calls)
    cy.tl.phenotype_cells(without, rules)
    assert without.obs["phenotype"].tolist() == ["T", "T", "T", "MAIT"]


def test_shared_rules_leave_the_decision_to_the_others():
    rules = pd.DataFrame(
        {"parent": ["", "T", "T"], "CD3": ["+", "", ""], "CD8": ["", "+", ""], "CD20": ["", "", "+"]},
        index=["T", "a", "b"],
    )
    adata = table([[1, 1, 1, 0]] * 2, np.array([[0.5, 0.7, 0.9, 0], [0.5, 0.9, 0.7, 0]]))
    cy.tl.phenotype_cells(adata, rules)
    assert adata.obs["phenotype"].tolist() == ["b", "a"]


def test_scores_are_those_that_the_calls_were_made_from():
    rules = {"T": "CD3+", "B": "CD20+"}
    adata = table([[0, 0, 0, 0]], np.array([[0.8, 0, 0.9, 0]]))
    adata.obsm["mine"] = pd.DataFrame([[0.9, 0, 0.8]], columns=MARKERS[:3], index=adata.obs_names)
    cy.tl.call_markers(adata, "mine", key_added="calls")
    cy.tl.phenotype_cells(adata, rules, key="calls")
    assert adata.obs["phenotype"].tolist() == ["T"]
    assert adata.uns["phenotype"]["params"] == {"key": "calls", "scores": "mine"}
    cy.tl.phenotype_cells(adata, rules, key="calls", scores="nimbus_positivity")
    assert adata.obs["phenotype"].tolist() == ["B"]
    with pytest.raises(KeyError, match=re.escape("`obsm['mine']` has no scores of the markers ['HLA-DR/DP']")):
        cy.tl.phenotype_cells(adata, {"APC": "HLA-DR/DP+"}, key="nimbus_calls", scores="mine")


# ---------------------------------------------------------------------------------------------------- the table as such
def test_the_order_of_rows_does_not_matter():
    adata = some()
    cy.tl.phenotype_cells(adata, OVERLAPPING)
    shuffled = adata[np.random.default_rng(1).permutation(adata.n_obs)].copy()
    cy.tl.phenotype_cells(shuffled, OVERLAPPING)
    for column in ("phenotype", "phenotype_conflict"):
        pd.testing.assert_series_equal(shuffled.obs[column].loc[adata.obs_names], adata.obs[column])
    pd.testing.assert_frame_equal(shuffled.uns["phenotype"]["conflicts"], adata.uns["phenotype"]["conflicts"])
    assert len(adata.uns["phenotype"]["conflicts"]) > 0


def stored(adata: ad.AnnData, folder: Path, store: str) -> ad.AnnData:
    """The table, written and read."""
    if store == "h5ad":
        adata.write_h5ad(folder / "table.h5ad")
        return ad.read_h5ad(folder / "table.h5ad")
    SpatialData(tables={"table": TableModel.parse(adata.copy())}).write(folder / "sample.zarr")
    return sd.read_zarr(folder / "sample.zarr")["table"]


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.parametrize("rules", [OVERLAPPING, {"T": "CD3+ HLA-DR/DP-"}], ids=["conflicts", "none"])
def test_survives_the_disk(tmp_path, store, rules):
    adata = some()
    cy.tl.phenotype_cells(adata, rules)
    back = stored(adata, tmp_path, store)
    for column in ("phenotype", "phenotype_conflict"):
        assert list(back.obs[column].astype(str)) == list(adata.obs[column].astype(str))
    assert list(back.obs["phenotype"].cat.categories) == list(adata.obs["phenotype"].cat.categories)
    assert back.uns["phenotype"]["params"] == adata.uns["phenotype"]["params"]
    for name in ("rules", "conflicts"):
        there, here = back.uns["phenotype"][name], adata.uns["phenotype"][name]
        assert there.to_numpy().tolist() == here.to_numpy().tolist()
        assert list(there.columns) == list(here.columns)
    assert list(back.uns["phenotype"]["rules"].index) == list(adata.uns["phenotype"]["rules"].index)
    again = cy.tl.phenotype_cells(back, rules, copy=True)
    assert list(again.obs["phenotype"].astype(str)) == list(adata.obs["phenotype"].astype(str))


def test_names_copies_and_missing_calls():
    adata = table([[1, 0, 0, 0], [0, 0, 0, 0]])
    frame = adata.obsm["nimbus_calls"].astype(float)
    frame.iloc[1] = np.nan  # of tables put together
    adata.obsm["other"] = frame
    copied = cy.tl.phenotype_cells(adata, {"T": "CD3+"}, key="other", key_added="lineage", copy=True)
    assert copied is not None
    assert copied.obs["lineage"].isna().tolist() == [False, True]
    assert {"lineage", "lineage_conflict"} == set(copied.obs)
    assert not list(adata.obs)
    assert "lineage" not in adata.uns
    cy.tl.phenotype_cells(adata[:0].copy(), RULES)


def test_unknown_cells_are_counted(caplog):
    adata = table([[0, 0, 0, 0], [1, 0, 0, 0], [-1, -1, -1, -1]])
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.tl.phenotype_cells(adata, {"T": "CD3+"})
    assert "1 of 2 cells match no type: 'Unknown'." in caplog.text


# --------------------------------------------------------------------------------------- beside tl.classify_cells
def test_a_classifiers_probabilities_do_not_stay_beside_other_names(caplog):
    adata = some()
    adata.obs["phenotype"] = "T"
    adata.obs["phenotype_confidence"] = 0.9
    adata.obsm["phenotype_proba"] = pd.DataFrame(1.0, index=adata.obs_names, columns=["T"])
    adata.uns["phenotype"] = {"classes": ["T"], "params": {"multilabel": False}}
    cy.tl.phenotype_cells(adata, RULES, key_added="rules")
    assert "phenotype_proba" in adata.obsm
    cy.tl.phenotype_cells(adata, RULES)
    assert "phenotype_proba" not in adata.obsm
    assert "phenotype_confidence" not in adata.obs
    assert "'phenotype_proba' of `tl.classify_cells` is removed" in caplog.text


def test_those_who_read_probabilities_say_that_rules_give_none(tmp_path):
    adata = some()
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    cy.tl.phenotype_cells(adata, RULES)
    for stale in (False, True):
        if stale:
            adata.obsm["phenotype_proba"] = pd.DataFrame(0.5, index=adata.obs_names, columns=["x", "y"])
        back = stored(adata, tmp_path, "h5ad")
        for one in (adata, back):
            assert len(cy.tl.suggest_cells(one, 5, use_rep="X_pca")) == 5
            with pytest.raises(KeyError, match=re.escape("come from rules (`tl.phenotype_cells`), which give no prob")):
                cy.tl.suggest_cells(one, 5, strategy="rarity", use_rep="X_pca")
            sdata = SpatialData(tables={"table": TableModel.parse(one.copy())})
            with pytest.raises(KeyError, match=re.escape("which give no probabilities to show. `tl.classify_cells`")):
                cy.pl.confidence(sdata)


# ------------------------------------------------------------------------------------------------------------- errors
def rules(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, index=list("abc")[: len(next(iter(columns.values())))])


def test_rules_that_make_no_sense(tmp_path):
    adata = table(np.zeros((3, 4)))
    (tmp_path / "one.csv").write_text("cell type;CD3\nT;+\n")
    listed = "Available: ['CD3', 'CD8', 'CD20', 'HLA-DR/DP']."
    for given_rules, error, message in [
        (rules(CD3=["+"], CD4=["+"]), KeyError, f"No calls for the markers ['CD4'] of `rules`. {listed}"),
        (
            pd.DataFrame({"type": ["T"], "CD3": ["+"]}),
            KeyError,
            f"['type'] of `rules`. {listed} Are the cell types a column? They must be the index",
        ),
        ({"T": "CD3+ CD4+"}, KeyError, f"No calls for the marker 'CD4' of the rule 'CD3+ CD4+' of 'T'. {listed}"),
        ({"T": "CD3+ CD8high"}, ValueError, "The rule 'CD3+ CD8high' of 'T' is not understood from 'CD8high' on."),
        ({"T": "CD3++"}, ValueError, "is not understood from '+' on"),
        ({"T": "CD3"}, ValueError, "is not understood from 'CD3' on"),
        ({"T": "CD3+ CD3-"}, ValueError, "The rule 'CD3+ CD3-' of 'T' names 'CD3' twice."),
        ({"T": {"CD3": 1}}, TypeError, "The rule of 'T' must be text such as 'CD3+ CD20-', got {'CD3': 1}."),
        (
            rules(CD3=["+"], parent=["x"]),
            KeyError,
            "Parents of `rules` that are no types: {'a': 'x'}. Available: ['a'].",
        ),
        (
            rules(CD3=["+", "", ""], CD8=["", "+", ""], CD20=["", "", "+"], parent=["c", "a", "b"]),
            ValueError,
            "Parents of `rules` run in a circle: a -> c -> b -> a.",
        ),
        (rules(CD3=["+"], parent=["a"]), ValueError, "Parents of `rules` run in a circle: a -> a."),
        (
            rules(CD3=["+", "-"]).set_axis(["T", "T"]),
            ValueError,
            "Cell types that `rules` names more than once: ['T'].",
        ),
        (
            rules(CD3=["+", "1", "-"], CD8=["", np.nan, ""]),
            ValueError,
            "Types that no cell could tell apart, as their rules, with those of their ancestors, are the same: [['a', 'b']].",
        ),
        (rules(CD3=["+", ""], parent=["", "a"]), ValueError, "are the same: [['a', 'b']]"),
        (
            rules(CD3=["+", "", "-"], CD8=["", "+", "+"], parent=["", "a", "b"]),
            ValueError,
            "No cell can be 'c': it must be negative for 'CD3', and its ancestor 'a' positive.",
        ),
        (
            rules(CD3=["+", "high"], CD8=[2, 0]),
            ValueError,
            "2 entries of `rules` are not understood, such as {'b, CD3': 'high', 'a, CD8': '2'}. They must be 'positive'",
        ),
        (rules(CD3=[[1]]), ValueError, "1 entries of `rules` are not understood"),
        ({"Unknown": "CD3+"}, ValueError, "'Unknown' is the name of cells that match no type."),
        ({}, ValueError, "`rules` names no cell type."),
        (rules(CD3=["+"]).set_axis([np.nan]), ValueError, "A cell type of `rules` has no name"),
        (rules(CD3=["+"]).set_axis([" "]), ValueError, "A cell type of `rules` has no name"),
        (
            pd.concat([rules(CD3=["+"]), rules(CD3=["-"])], axis=1),
            ValueError,
            "`rules` has several columns ['CD3']; one for each marker is needed.",
        ),
        ("rules.csv", FileNotFoundError, "No file 'rules.csv' with rules."),
        (tmp_path / "one.csv", ValueError, "with cells parted by commas; found 2 lines of 1 cells."),
        (["CD3+"], TypeError, "`rules` must be a DataFrame, a mapping from types to text, or a path, got list."),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.tl.phenotype_cells(adata, given_rules)
    assert not list(adata.obs)


def test_other_errors():
    adata = table(np.zeros((3, 4)), np.full((3, 4), 0.2))
    for arguments, error, message in [
        (
            {"key": "calls"},
            KeyError,
            "No 'calls' in `adata.obsm`. DataFrames there: ['nimbus_calls', 'nimbus_positivity'].",
        ),
        (
            {"key": "nimbus_positivity"},
            ValueError,
            "Calls must be 1, 0 or -1, but 12 of `obsm['nimbus_positivity']` are not",
        ),
        ({"scores": "mine"}, KeyError, "No 'mine' in `adata.obsm`"),
        ({"key_added": "nimbus_calls"}, ValueError, "would write over `uns['nimbus_calls']`"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.tl.phenotype_cells(adata, {"T": "CD3+"}, **arguments)
    adata.obsm["nimbus_positivity"] = adata.obsm["nimbus_positivity"] * 10
    with pytest.raises(ValueError, match=re.escape("Scores must be from 0 to 1")):
        cy.tl.phenotype_cells(adata, {"T": "CD3+"})
