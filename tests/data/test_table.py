"""Rows are joined by (region, instance), whatever their order."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import TableModel

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.data.table import attach, open_table

IDS = [3, 5, 11, 40]


def bare(n_fields=2):
    mask = np.zeros((8, 24), np.int32)
    for k, i in enumerate(IDS):
        mask[2:6, 6 * k : 6 * k + 4] = i
    elements = {}
    for field in range(n_fields):
        one = cy.io.from_arrays(np.ones((1, 8, 24)), mask, channels=["DNA"], name=f"f{field}")
        elements |= {key: e for _, key, e in one.gen_elements() if key != "table"}
    return sd.SpatialData.init_from_elements(elements)


def existing(rows, region_key="where", instance_key="who"):
    """A table with other columns, other variables and whatever rows."""
    obs = pd.DataFrame(
        {region_key: pd.Categorical([r for r, _ in rows]), instance_key: [i for _, i in rows]},
        index=[f"row{k}" for k in range(len(rows))],
    )
    table = AnnData(np.ones((len(rows), 3), np.float32), obs=obs, var=pd.DataFrame(index=["a", "b", "c"]))
    return TableModel.parse(
        table, region=sorted({r for r, _ in rows}), region_key=region_key, instance_key=instance_key
    )


def test_a_new_table():
    sdata = bare()
    rows = open_table(sdata, resolve(sdata))
    assert "table" not in sdata.tables
    rows.write(obsm={"X_model": np.arange(16, dtype=np.float32).reshape(8, 2)})
    table = sdata["table"]
    assert table.obs_names.tolist() == [f"f{f}_cells_{i}" for f in range(2) for i in IDS]
    assert table.uns["spatialdata_attrs"]["region"] == ["f0_cells", "f1_cells"]
    np.testing.assert_allclose(table.obsm["spatial"][:4], [[2, 4], [8, 4], [14, 4], [20, 4]])


@given(
    st.lists(
        st.tuples(st.sampled_from(["f0_cells", "f1_cells", "elsewhere"]), st.sampled_from([*IDS, 77, 1000])),
        unique=True,
        min_size=1,
    )
)
@settings(max_examples=25, deadline=None)
def test_equal_to_a_lookup(rows):
    """Shuffled rows, extra rows, cells that are not in the table, other regions, gaps."""
    rows = [*rows, *[r for r in (("f0_cells", 3), ("f1_cells", 40)) if r not in rows]]
    sdata = bare()
    sources = resolve(sdata)
    sdata["table"] = existing(rows)
    found = open_table(sdata, sources)
    where = {row: k for k, row in enumerate(rows)}
    for source, at in zip(sources, found.rows, strict=True):
        assert at.tolist() == [where.get((source.region, i), -1) for i in IDS]
    found.write(obs={"q": np.arange(len(rows))})
    assert sdata["table"].obs_names.tolist() == [f"row{k}" for k in range(len(rows))]
    assert sdata["table"].obs["q"].tolist() == list(range(len(rows)))
    spatial = sdata["table"].obsm["spatial"]
    lacking = np.array([r == "elsewhere" or i not in IDS for r, i in rows])
    np.testing.assert_array_equal(np.isnan(spatial[:, 0]), lacking)


def test_results_survive_the_disk(tmp_path):
    sdata = bare()
    rows = open_table(sdata, resolve(sdata))
    frame = pd.DataFrame({"CD3": np.arange(8.0), "Granzyme B": 1.0}, index=rows.table.obs_names).astype(np.float32)
    frame.iloc[2] = np.nan
    uns = {
        "model": {
            "params": {"seed": 0, "markers": ["CD3", "Granzyme B"]},
            "normalization": pd.DataFrame({"center": [1.0]}),
        }
    }
    rows.write(obsm={"attributions": frame}, uns=uns, obs={"type": pd.Categorical(["a", "b"] * 4)})
    sdata.write(tmp_path / "a.zarr")
    table = sd.read_zarr(tmp_path / "a.zarr")["table"]
    pd.testing.assert_frame_equal(table.obsm["attributions"], frame)
    assert [str(m) for m in table.uns["model"]["params"]["markers"]] == ["CD3", "Granzyme B"]
    assert table.obs["type"].tolist() == ["a", "b"] * 4


def test_a_copy_leaves_the_object_alone():
    sdata = bare()
    copy = open_table(sdata, resolve(sdata)).write(obs={"q": np.arange(8)}, inplace=False)
    assert "table" not in sdata.tables
    assert copy.obs["q"].tolist() == list(range(8))


def test_all_or_nothing():
    sdata = bare()
    rows = open_table(sdata, resolve(sdata))
    with pytest.raises(ValueError, match="'short' has 3 rows, but the table has 8"):
        rows.write(obs={"good": np.arange(8)}, obsm={"short": np.zeros((3, 2))})
    assert "good" not in rows.table.obs
    assert "table" not in sdata.tables


def test_cells_that_the_table_lacks_are_told(caplog):
    sdata = bare()
    sdata["table"] = existing([("f0_cells", 3), ("f0_cells", 5), ("f0_cells", 77)])
    with caplog.at_level(logging.INFO, logger="cytonym"):
        open_table(sdata, resolve(sdata, labels_key="f0_cells", image_key="f0_image"))
    assert "Table 'table' has no row for 2 of the 4 cells of 'f0_cells'; they are left out." in caplog.text


def test_a_table_stays_where_its_successor_is_refused():
    sdata = bare()
    sdata["table"] = table = existing([("f0_cells", 3)])
    successor = table.copy()
    successor.obs["Nucleus: Area"] = 3.0
    with pytest.raises(ValueError, match="Nucleus: Area"):
        attach(sdata, "table", successor)
    assert sdata["table"] is table
    attach(sdata, "table", same := table.copy())
    assert sdata["table"] is same


def test_bad_tables():
    sdata = bare()
    sources = resolve(sdata)
    sdata["table"] = existing([("f1_cells", 3)])
    with pytest.raises(ValueError, match=r"Table 'table' annotates \['f1_cells'\], not 'f0_cells'"):
        open_table(sdata, sources)
    with pytest.raises(KeyError, match=r"No table 'tabel' in `sdata.tables`, but \['table'\] annotate these cells"):
        open_table(sdata, sources, "tabel")
    twice = existing([("f0_cells", 3), ("f0_cells", 5)])
    twice.obs["who"] = 3
    sdata["twice"] = twice
    with pytest.raises(ValueError, match=r"cells of 'f0_cells' more than once: \[3\]"):
        open_table(sdata, sources[:1], "twice")
    sdata["others"] = existing([("f0_cells", 900)])
    with pytest.raises(ValueError, match="no cell in common"):
        open_table(sdata, sources[:1], "others")
    sdata["plain"] = AnnData(np.ones((2, 1)))
    with pytest.raises(ValueError, match=r"annotates no element \(no `spatialdata_attrs`\), not 'f0_cells'"):
        open_table(sdata, sources[:1], "plain")
