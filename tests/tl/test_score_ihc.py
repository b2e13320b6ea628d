"""Counts, percent positive and H-score."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cytonym as cy


def table(classes, densities=None, **columns):
    obs = pd.DataFrame({"ihc_class": classes, **columns}, index=[f"c{i}" for i in range(len(classes))])
    if densities is not None:
        obs["dab_density"] = densities
    return ad.AnnData(np.zeros((len(obs), 0)), obs=obs)


def test_intensities_begin_at_their_thresholds():
    adata = table(["negative"] * 7, [0, 0.19, 0.2, 0.4, 0.59, 0.6, np.nan])
    [row] = cy.tl.score_ihc(adata).to_dict("records")
    assert adata.obs["ihc_intensity"].tolist()[:6] == ["0", "0", "1+", "2+", "2+", "3+"]
    assert adata.obs["ihc_intensity"].isna().tolist() == [False] * 6 + [True]
    assert adata.obs["ihc_intensity"].cat.ordered
    assert row["num_total"] == 7
    assert row["h_score"] == pytest.approx((1 + 4 + 3) / 6 * 100)
    assert row["0"] + row["1+"] + row["2+"] + row["3+"] == pytest.approx(100)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.sampled_from("abc")), min_size=1, max_size=60), st.randoms()
)
@settings(max_examples=50, deadline=None)
def test_groups_add_up_and_order_does_not_matter(cells, random):
    classes = ["positive" if p else "negative" for p, _, _ in cells]
    adata = table(classes, [d for _, d, _ in cells], area=[g for _, _, g in cells])
    found = cy.tl.score_ihc(adata, by="area")
    groups = found.drop(index="total", errors="ignore")
    assert groups["num_total"].sum() == len(cells)
    assert groups["num_pos"].sum() == classes.count("positive")
    assert found["h_score"].between(0, 300).all()
    if len(groups) > 1:
        weighted = (groups["h_score"] * groups["num_total"]).sum() / len(cells)
        assert found.loc["total", "h_score"] == pytest.approx(weighted)
    order = list(range(len(cells)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(cy.tl.score_ihc(adata[order].copy(), by="area"), found)


def test_regions_of_a_spatialdata_object_and_their_files(tmp_path, stained):
    sdata, _, positive = stained()
    sdata["other_image"] = sdata["ihc_image"]
    cy.tl.translate_stain(sdata, diameter_px=14)
    cy.tl.segment_nuclei(sdata, image_key=["ihc_image", "other_image"])
    found = cy.tl.score_ihc(sdata, path=tmp_path / "scores")
    assert list(found.index) == ["ihc_nuclei", "other_nuclei", "total"]
    assert found.loc["ihc_nuclei", "num_pos"] == positive.sum()
    assert found.loc["total", "num_total"] == 2 * found.loc["ihc_nuclei", "num_total"]
    assert found.loc["ihc_nuclei", "h_score"] == pytest.approx(300 * positive.mean(), abs=2)
    written = json.loads((tmp_path / "scores" / "ihc_nuclei.json").read_text())
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["ihc_nuclei.json", "other_nuclei.json"]
    assert written == {
        "num_total": len(positive),
        "num_pos": int(positive.sum()),
        "num_neg": int((~positive).sum()),
        "percent_pos": round(100 * positive.mean(), 1),
        "seg_thresh": 120,
        "size_thresh": 0,
        "size_thresh_upper": None,
        "marker_thresh": None,
    }


def test_one_group_is_one_file(tmp_path):
    cy.tl.score_ihc(table(["positive", "negative", "negative"]), path=tmp_path / "score.json")
    written = json.loads((tmp_path / "score.json").read_text())
    assert written["percent_pos"] == 33.3
    assert written["seg_thresh"] is None


def test_without_densities_there_is_no_h_score():
    adata = table(["positive", "negative"])
    assert "h_score" not in cy.tl.score_ihc(adata)
    assert "ihc_intensity" not in adata.obs


def test_nuclei_without_a_class_are_left_out():
    assert cy.tl.score_ihc(table(["positive", None, "negative"]))["num_total"].tolist() == [2]


@pytest.mark.parametrize(
    ("adata", "arguments", "error", "message"),
    [
        (table(["positive", "maybe"]), {}, ValueError, r"\['maybe'\] too"),
        (table([None, None]), {}, ValueError, "class"),
        (table(["positive"]), {"class_key": "call"}, KeyError, "call"),
        (table(["positive"]), {"by": "area"}, KeyError, "area"),
        (table(["positive"]), {"density_key": "od"}, KeyError, "No column 'od'"),
        (table(["positive"], ["dark"]), {}, ValueError, "must hold numbers"),
        (table(["positive"]), {"thresholds": (0.4, 0.2, 0.6)}, ValueError, "three rising numbers"),
        (table(["positive"]), {"thresholds": (0.4, 0.6)}, ValueError, "three rising numbers"),
        (table(["positive"]), {"thresholds": "low"}, ValueError, "three rising numbers, got 'low'"),
        (table(["positive"], [0.1]), {"key_added": "ihc_class"}, ValueError, "`key_added` must be a column of its own"),
        (table(["positive"], [0.1]), {"key_added": "dab_density"}, ValueError, "'dab_density' is read here"),
        (table(["positive"] * 2, area=["a/b", "a_b"]), {"by": "area", "path": "x"}, ValueError, "files of one name"),
    ],
)
def test_bad_input(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        cy.tl.score_ihc(adata, **arguments)
    assert "ihc_intensity" not in adata.obs


def test_a_folder_is_made_for_the_file(tmp_path):
    cy.tl.score_ihc(table(["positive"]), path=tmp_path / "new" / "scores.json")
    assert json.loads((tmp_path / "new" / "scores.json").read_text())["num_pos"] == 1


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "file").touch()
    adata = table(["positive", "negative"], [0.1, 0.5], area=["a", "b"])
    with pytest.raises(
        ValueError, match="a file where there is one group, 'all', but .* is a folder. Name a file in it"
    ):
        cy.tl.score_ihc(adata, path=tmp_path)
    with pytest.raises(
        ValueError, match=r"a folder where there are several groups, \['a', 'b'\], but .*file' is a file"
    ):
        cy.tl.score_ihc(adata, by="area", path=tmp_path / "file")
    assert "ihc_intensity" not in adata.obs


def test_table_must_be_there(stained):
    sdata, _, _ = stained()
    with pytest.raises(KeyError, match="No table 'table'"):
        cy.tl.score_ihc(sdata)
