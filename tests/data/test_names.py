"""Names of columns: all different, accepted by a store, and back."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data.names import LONGEST, MARKER_NAMES, storable, with_marker_names, with_storable_columns

NAMES = st.lists(st.text(alphabet="aB/_\\.2é ", max_size=6), min_size=1, max_size=8, unique=True)


@settings(deadline=None, max_examples=60)
@given(NAMES)
def test_columns_differ_and_go_back(names):
    columns = storable(names)
    assert len(set(columns)) == len(names)
    for column, name in zip(columns, names, strict=True):
        assert column not in {"", ".", "..", "_index"}
        assert not set("/\\") & set(column)
        if not set("/\\") & set(name) and name not in {"", ".", ".."}:
            assert column == name
    frame, uns = pd.DataFrame([range(len(names))], columns=names), {}
    stored = with_storable_columns(frame, "key", uns)
    pd.testing.assert_frame_equal(with_marker_names(stored, "key", uns), frame)
    assert (MARKER_NAMES in uns) == (columns != names)


def test_long_names_are_cut_to_what_a_file_system_takes():
    first, second = storable(["é" * 300, "é" * 301])
    assert first != second
    assert max(len(first.encode()), len(second.encode())) <= LONGEST + 2


def test_each_key_has_its_own_names():
    uns = {}
    slash, plain = pd.DataFrame({"A/B": [1]}), pd.DataFrame({"A_B": [2]})
    stored = with_storable_columns(slash, "one", uns)
    assert list(stored.columns) == ["A_B"]
    assert list(slash.columns) == ["A/B"]
    assert with_storable_columns(plain, "two", uns) is plain
    assert list(with_marker_names(stored, "one", uns)) == ["A/B"]
    assert list(with_marker_names(plain, "two", uns)) == ["A_B"]
    with_storable_columns(plain, "one", uns)  # written again, without odd names
    assert MARKER_NAMES not in uns
