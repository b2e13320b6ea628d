"""Cells by name: the same cell is found in whatever way its id is written."""

from __future__ import annotations

import numpy as np
import pytest

from cytonym.label.cells import CellIndex

WAYS = {
    "numbers": np.array([1, 2, 3, 9]),
    "floats": np.array([1.0, 2.0, 3.0, 9.0]),
    "text": np.array(["1", "2", "3", "9"], dtype=object),
    "with names": np.array(["1", "2", "3", "9", "x"], dtype=object),
}


@pytest.mark.parametrize("told", WAYS)
@pytest.mark.parametrize("read", WAYS)
def test_an_id_is_the_same_as_number_float_and_text(told, read):
    cells = CellIndex(["a"] * len(WAYS[told]), WAYS[told]).cells(np.array([0, 1, 3]))
    index = CellIndex(["a"] * len(WAYS[read]), WAYS[read])
    assert index.rows(cells).tolist() == [0, 1, 3]
    assert index.total == index.n


def test_texts_that_only_look_like_a_number_are_names():
    index = CellIndex(["a", "a"], [1, 7])
    assert index.rows({"a": ["01", "1.0", "+1", " 1", "١", "1"]}).tolist() == [0, 2, 3, 4, 5, 6]
    texts = CellIndex(["a", "a"], np.array(["01", "1"], dtype=object))
    assert texts.rows({"a": [[1, 1]]}).tolist() == [1]


def test_a_cell_that_the_table_lacks_is_one_cell_in_either_way():
    for ids in WAYS.values():
        index = CellIndex(["a"] * len(ids), ids)
        rows = index.rows({"a": [[50, 1]]})
        assert rows.tolist() == [index.n]
        assert index.rows({"a": ["50"]}).tolist() == rows.tolist()


def test_ids_that_no_whole_number_holds_are_text():
    index = CellIndex(["a"] * 3, [0.5, np.nan, 2.0])
    assert index.cells(np.array([0, 2])) == {"a": ["0.5", "2.0"]}
    assert CellIndex(["a"], [2**63 - 1]).rows({"a": [str(2**63 - 1), str(2**63)]}).tolist() == [0, 1]
