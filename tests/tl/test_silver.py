"""Labels from cell types: every way to write a matrix, and what is said where it does not fit."""

from __future__ import annotations

import logging
import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cytonym.data.names import with_storable_columns
from cytonym.tl._silver import given_labels, read_assignment, silver_labels

MARKERS = ("CD3", "CD8", "CD20", "HLA-DR/DP")
MATRIX = pd.DataFrame(
    {"CD3": [1, 1, 0], "CD8": [1, 0, 0], "CD20": [0, 0, 1]}, index=["T cytotoxic", "T helper", "B"]
)  # fmt: skip


def table(types: list[str | None], key: str = "cell_type") -> ad.AnnData:
    index = [f"c{i}" for i in range(len(types))]
    return ad.AnnData(obs=pd.DataFrame({key: pd.Categorical(types)}, index=index))


# --- the matrix ---


def test_entries_of_every_kind():
    frame = pd.DataFrame(
        {
            "CD3": [1, 0, 2, None],
            "CD8": ["positive", "Negative", " undefined ", "?"],
            "CD20": ["+", "-", "any", ""],
            "HLA-DR/DP": [True, False, np.nan, pd.NA],
        },
        index=["a", "b", "c", "d"],
    )
    found = read_assignment(frame, MARKERS)
    assert (found.dtypes == np.int8).all()
    assert found.to_numpy().tolist() == [[1] * 4, [0] * 4, [2] * 4, [2] * 4]
    nullable = read_assignment(pd.DataFrame({"CD3": pd.array([1, 0, None], "Int64")}, index=list("abc")), MARKERS)
    assert nullable["CD3"].tolist() == [1, 0, 2]
    floats = read_assignment(pd.DataFrame({"CD3": [1.0, 0.0, np.nan]}, index=list("abc")), MARKERS)
    assert floats["CD3"].tolist() == [1, 0, 2]


def test_frames_mappings_and_files_say_the_same(tmp_path):
    before = MATRIX.copy()
    path = tmp_path / "matrix.csv"
    MATRIX.to_csv(path)
    mapping = {name: dict(row) for name, row in MATRIX.iterrows()}
    for given in (MATRIX, mapping, path, str(path)):
        found = read_assignment(given, MARKERS)
        pd.testing.assert_frame_equal(found, MATRIX.astype("i1"), check_names=False)
    pd.testing.assert_frame_equal(MATRIX, before)


def test_a_mapping_may_leave_markers_out():
    found = read_assignment({"B": {"CD20": 1}, "T": {"CD3": "positive", "CD20": "negative"}}, MARKERS)
    assert found.loc["B", ["CD20", "CD3"]].tolist() == [1, 2]
    assert found.loc["T", ["CD20", "CD3"]].tolist() == [0, 1]


def test_a_file_with_gaps_spaces_and_numbers_for_names(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text(" type , CD3,CD8 ,CD20\n 7 ,1,,NA\nT helper , +,0, -\n".replace("NA", "?"))
    found = read_assignment(path, MARKERS)
    assert list(found.index) == ["7", "T helper"]
    assert list(found.columns) == ["CD3", "CD8", "CD20"]
    assert found.to_numpy().tolist() == [[1, 2, 2], [1, 0, 0]]


def test_rows_that_say_the_same_twice():
    found = read_assignment(pd.DataFrame({"CD3": [1, 0, 1]}, index=["T", "B", "T "]), MARKERS)
    assert found["CD3"].to_dict() == {"T": 1, "B": 0}


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (
            pd.DataFrame({"CD3": [1, 1], "CD8": [1, 0]}, index=["T", "T"]),
            ValueError,
            "has several rows for 'T' that contradict each other in ['CD8']. Keep one.",
        ),
        (
            pd.DataFrame({"CD3": [1], "CD4": [1], "CD44": [0]}, index=["T"]),
            KeyError,
            f"names markers ['CD4', 'CD44'] that the images lack. Available: {list(MARKERS)}.",
        ),
        (
            pd.DataFrame([[1, 0]], columns=["CD3", "CD3"], index=["T"]),
            ValueError,
            "names markers twice: ['CD3']",
        ),
        (
            pd.DataFrame({"CD3": [1, "maybe"]}, index=["T", "B"]),
            ValueError,
            "Entry 'maybe' of type 'B' and marker 'CD3' is not understood. Use 1, 0 and nothing, or 'positive'",
        ),
        (pd.DataFrame({"CD3": [0.5]}, index=["T"]), ValueError, "of type 'T' and marker 'CD3' is not understood"),
        (pd.DataFrame({"CD3": [-1]}, index=["T"]), ValueError, "is not understood"),
        ({}, ValueError, "The assignment matrix is empty: give one row a cell type and one column a marker."),
        (pd.DataFrame(index=["T"]), ValueError, "The assignment matrix is empty"),
        (
            "no/such.csv",
            FileNotFoundError,
            "No file 'no/such.csv' with an assignment matrix. Give its path or a DataFrame",
        ),
    ],
)
def test_matrices_that_cannot_be(matrix, error, message):
    with pytest.raises(error, match=re.escape(message)):
        read_assignment(matrix, MARKERS)


# --- labels from types ---


def test_labels_follow_the_types(caplog):
    adata = table(["B", "T helper", None, "T cytotoxic", "B"])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        found = silver_labels(adata, MARKERS, label_key="cell_type", assignment=MATRIX)
    assert caplog.text == ""
    assert found.dtype == np.int8
    t, b, none = [1, 0, 0, 2], [0, 0, 1, 2], [2] * 4
    assert found.tolist() == [b, t, none, [1, 1, 0, 2], b]
    turned = silver_labels(adata, MARKERS[::-1], label_key="cell_type", assignment=MATRIX)
    np.testing.assert_array_equal(turned, found[:, ::-1])
    order = [3, 1, 4, 0, 2]
    np.testing.assert_array_equal(
        silver_labels(adata[order], MARKERS, label_key="cell_type", assignment=MATRIX.iloc[::-1]), found[order]
    )  # fmt: skip


def test_types_that_only_one_of_the_two_knows(caplog):
    adata = table(["B", "debris", "B", "artefact"])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        found = silver_labels(adata, MARKERS, label_key="cell_type", assignment=MATRIX)
    assert (found[[1, 3]] == 2).all()
    assert (
        "Types without a row in the assignment matrix, left out of the training: ['artefact', 'debris']." in caplog.text
    )
    assert "Types of the assignment matrix that no cell has: ['T cytotoxic', 'T helper']." in caplog.text


def test_types_that_are_numbers():
    adata = ad.AnnData(obs=pd.DataFrame({"cluster": [3, 10, 3]}, index=list("abc")))
    found = silver_labels(adata, MARKERS, label_key="cluster", assignment=pd.DataFrame({"CD3": [1, 0]}, index=[3, 10]))
    assert found[:, 0].tolist() == [1, 0, 1]


def test_a_missing_type_is_not_called_nan():
    found = silver_labels(
        table(["B", None]), MARKERS, label_key="cell_type", assignment={"B": {"CD20": 1}, "nan": {"CD20": 0}}
    )  # fmt: skip
    assert found[:, 2].tolist() == [1, 2]


def test_no_type_in_common():
    message = "No type of `obs['cell_type']` is in the assignment matrix. Types: ['b']. Matrix: ['T cytotoxic', 'T helper', 'B']."
    with pytest.raises(ValueError, match=re.escape(message)):
        silver_labels(table(["b", "b"]), MARKERS, label_key="cell_type", assignment=MATRIX)
    with pytest.raises(KeyError, match=r"No column 'type' in `adata.obs`. Available: \['cell_type'\]"):
        silver_labels(table(["B"]), MARKERS, label_key="type", assignment=MATRIX)


# --- labels that are given ---


def with_labels(values: Any, columns: list[str]) -> ad.AnnData:
    adata = table(["a"] * len(values))
    frame = pd.DataFrame(values, index=adata.obs_names, columns=columns)
    adata.obsm["truth"] = with_storable_columns(frame, "truth", adata.uns)
    return adata


def test_given_labels_by_the_names_of_markers():
    adata = with_labels([[1.0, 0.0], [np.nan, 1.0], [-1.0, 0.0]], ["HLA-DR/DP", "CD3"])
    assert list(adata.obsm["truth"]) == ["HLA-DR_DP", "CD3"]
    found = given_labels(adata, MARKERS, "truth")
    assert found.dtype == np.int8
    assert found.tolist() == [[0, 2, 2, 1], [1, 2, 2, 2], [0, 2, 2, 2]]


@pytest.mark.parametrize("dtype", [bool, "i1", "f4"])
def test_given_labels_of_other_kinds(dtype):
    adata = with_labels(np.array([[1], [0], [1]]).astype(dtype), ["CD8"])
    assert given_labels(adata, MARKERS, "truth")[:, 1].tolist() == [1, 0, 1]


def test_given_labels_that_cannot_be():
    with pytest.raises(KeyError, match=r"`obsm\['truth'\]` names markers \['CD4'\] that the images lack\. Available: "):
        given_labels(with_labels([[1]], ["CD4"]), MARKERS, "truth")
    message = "`obsm['truth']` must hold 1 (positive), 0 (negative) and NaN or -1 (unknown), found [0.3, 2.0]."
    with pytest.raises(ValueError, match=re.escape(message)):
        given_labels(with_labels([[0.3, 2.0], [1.0, 0.0]], ["CD3", "CD8"]), MARKERS, "truth")
    with pytest.raises(KeyError, match="No 'mine' in `adata.obsm`"):
        given_labels(table(["B"]), MARKERS, "mine")
