"""rank_images against a slow version that sees all pixels at once, and against the published ranking."""

from __future__ import annotations

import logging
import re

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, TableModel

import cytonym as cy
from cytonym.data import tiles
from cytonym.pp._rank_images import BACKGROUND, _All, _Brightest

NAMES = ["DNA", "CD3", "CD8", "background"]
SHAPES = {"P1_a": (90, 70), "P1_b": (64, 81), "P2_a": (70, 70), "P3_a": (40, 131), "P3_b": (33, 33), "P3_c": (90, 90)}


def pixels(seed=0, dtype="u2", shapes=None):
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    return {
        key: (rng.gamma(rng.uniform(0.1, 3, (len(NAMES), 1, 1)), 20, (len(NAMES), *shape))).astype(dtype)
        for key, shape in shapes.items()
    }


def with_images(images, names=NAMES, **kwargs):
    return SpatialData(
        images={
            key: Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=list(names), **kwargs)
            for key, image in images.items()
        }
    )


def patient(key):
    return key.split("_")[0]


def slow(
    images, group=lambda key: key, *, pooled=False, fraction=0.001, markers=("CD3", "CD8"), background="background"
):
    """The table from whole images in memory."""
    of: dict = {}
    for key, image in images.items():
        of.setdefault(group(key), []).append(dict(zip(NAMES, image.astype("f8"), strict=True)))
    rows = {}
    for name, group_images in of.items():
        row = {}
        for channel in [*markers, background]:
            every = [image[channel].ravel() for image in group_images]
            values = []
            for part in [np.concatenate(every)] if pooled else every:
                k = int(np.floor(fraction * len(part))) if channel != background else len(part)
                values.append(np.std(np.sort(part)[len(part) - k :]) if k else 0.0)
            row[channel] = np.median(values)
        rows[name] = row
    table = pd.DataFrame(rows).T
    ranks = {}
    for channel in table:
        column = table[channel].round(6)
        worse = [(column < v).sum() if channel != background else (column > v).sum() for v in column]
        ranks[channel] = np.array(worse) + 1
    total = sum(ranks.values())
    table["score"] = total / total.max()
    table["rank"] = [(total > t).sum() + 1 for t in total]
    return table, pd.DataFrame(ranks, table.index)


def compare(found, expected):
    table, ranks = expected
    assert set(found.index) == set(table.index)
    table, ranks = table.loc[found.index], ranks.loc[found.index]
    assert found["rank"].tolist() == table["rank"].tolist()
    assert found["rank"].is_monotonic_increasing
    np.testing.assert_allclose(found["score"], table["score"])
    for channel in ranks:
        assert found[f"rank_{channel}"].tolist() == ranks[channel].tolist()
        np.testing.assert_allclose(found[f"std_{channel}"], table[channel], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("fraction", [0.001, 0.02, 1])
def test_equals_a_slow_version(dtype, pooled, fraction):
    images = pixels(dtype=dtype)
    sdata = with_images(images)
    found = cy.pp.rank_images(sdata, groups=patient, pooled=pooled, top_fraction=fraction)
    compare(found, slow(images, patient, pooled=pooled, fraction=fraction))
    assert found["n_images"].to_dict() == {"P1": 2, "P2": 1, "P3": 3}
    assert found.index.name == "patient"
    assert list(found.columns) == [
        "rank", "score", "n_images", "rank_CD3", "rank_CD8", "rank_background", "std_CD3", "std_CD8", "std_background",
    ]  # fmt: skip


def test_each_image_on_its_own():
    images = pixels()
    sdata = with_images(images)
    found = cy.pp.rank_images(sdata, top_fraction=0.01)
    compare(found, slow(images, fraction=0.01))
    assert found.index.name == "image"
    assert found["n_images"].eq(1).all()
    pd.testing.assert_frame_equal(found, cy.pp.rank_images(sdata, top_fraction=0.01, pooled=True))
    some = cy.pp.rank_images(sdata, top_fraction=0.01, image_key=["P3_c", "P1_a"])
    compare(some, slow({key: images[key] for key in ("P3_c", "P1_a")}, fraction=0.01))


def test_as_published(parity):
    inputs, outputs = parity("clearit_misc")
    keys = [str(name).removesuffix(".tiff") for name in outputs["rank_image_names"]]
    names = ["DAPI", "CK", "CD3", "CD68", "CD8", "CD56", "CD20", "background"]
    channels = [names[int(re.findall(r"\d+", str(column))[0]) - 1] for column in outputs["rank_columns"]]
    assert channels == ["CD3", "CD8", "CD20", "CD56", "CD68", "background"]
    sdata = with_images({key: inputs[f"rank_img_{key}"] for key in keys}, names)
    images = cy.pp.rank_images(sdata, markers=channels[:5]).loc[keys]
    np.testing.assert_allclose(images[[f"std_{c}" for c in channels]], outputs["rank_image_stats"], rtol=1e-4)
    found = cy.pp.rank_images(sdata, markers=channels[:5], groups=patient).loc[list(outputs["rank_patients"])]
    np.testing.assert_allclose(found[[f"std_{c}" for c in channels]], outputs["rank_patient_median"], rtol=1e-4)
    np.testing.assert_array_equal(found[[f"rank_{c}" for c in channels]], outputs["rank_ranks"])
    np.testing.assert_array_equal(found["rank"], outputs["rank_Rank_desc"])
    np.testing.assert_allclose(found["score"], outputs["rank_Normalized_Score_std"])


# -------------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("dtype", ["u1", "f4"])
@pytest.mark.parametrize("pooled", [False, True])
def test_storage_does_not_matter(tmp_path, monkeypatch, dtype, pooled):
    images = pixels(dtype=dtype)
    arguments = {"groups": patient, "pooled": pooled, "top_fraction": 0.01}
    first = cy.pp.rank_images(with_images(images), **arguments)
    monkeypatch.setattr(tiles, "TILE_BYTES", 1)  # tiles as small as they get
    pd.testing.assert_frame_equal(cy.pp.rank_images(with_images(images), **arguments), first, check_exact=True)
    for chunks in [(1, 16, 16), (4, 7, 200), (3, 90, 5)]:
        lazy = with_images({key: da.from_array(image, chunks=chunks) for key, image in images.items()})
        pd.testing.assert_frame_equal(cy.pp.rank_images(lazy, **arguments), first, check_exact=True)
    with_images(images, chunks=(1, 20, 30)).write(tmp_path / "stored.zarr")
    stored = read_zarr(tmp_path / "stored.zarr")
    assert stored["P1_a"].data.numblocks == (4, 5, 3)
    pd.testing.assert_frame_equal(
        cy.pp.rank_images(stored, image_key=list(images), **arguments), first, check_exact=True
    )


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(st.sampled_from(["u1", "f4", "i8", "?"]), st.integers(1, 60), elements={"min_value": 0, "max_value": 9}),
    st.lists(st.integers(0, 60), max_size=5),
    st.integers(0, 60),
)
def test_brightest_pixels_of_any_pieces(values, cuts, k):
    brightest = _Brightest(k)
    for piece in np.split(values, sorted(cuts)):
        if len(piece):
            brightest.add(piece)
    n = min(k, len(values))
    assert np.sort(brightest.values).tolist() == np.sort(values)[len(values) - n :].tolist()
    expected = np.std(np.sort(values)[len(values) - n :].astype("f8")) if n else 0
    assert brightest.std() == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 1e6, width=32)),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_deviation_of_any_pieces(values, cuts):
    every = _All()
    for piece in np.split(values, sorted(cuts)):
        every.add(piece)
    assert every.std() == pytest.approx(values.astype("f8").std(), rel=1e-9, abs=1e-6)


def test_images_without_contrast_are_equal():
    images = {key: np.full((4, 50, 50), value, "f4") for key, value in {"a": 0.1, "b": 0.3, "c": 7.7}.items()}
    found = cy.pp.rank_images(with_images(images))
    assert found["rank"].tolist() == [1, 1, 1]
    assert found.index.tolist() == ["a", "b", "c"]
    assert (found.filter(like="std_") == 0).all(axis=None)
    assert (found.filter(like="rank_") == 1).all(axis=None)


def test_levels_of_a_pyramid():
    image = pixels(shapes={"a": (128, 128)})["a"]
    sdata = with_images({"a": image}, scale_factors=[2])
    full = cy.pp.rank_images(sdata, top_fraction=0.01)
    compare(full, slow({"a": image}, fraction=0.01))
    half = np.asarray(sdata["a"]["scale1"].image)
    compare(cy.pp.rank_images(sdata, top_fraction=0.01, scale="scale1"), slow({"a": half}, fraction=0.01))


def test_one_image():
    found = cy.pp.rank_images(with_images(pixels(shapes={"only": (60, 60)})))
    assert found.index.tolist() == ["only"]
    assert found[["rank", "score", "n_images"]].iloc[0].tolist() == [1, 1, 1]


def test_small_images_are_said(caplog):
    sdata = with_images(pixels(shapes={"large": (60, 60), "small": (30, 40)}))
    with caplog.at_level(logging.WARNING, "cytonym"):
        found = cy.pp.rank_images(sdata)
    assert "brightest 0.1 %, so the standard deviation of each marker is 0: ['small']" in caplog.text
    assert found.loc["small", ["std_CD3", "std_CD8"]].tolist() == [0, 0]
    assert found.loc["large", "std_CD3"] > 0
    caplog.clear()
    both = cy.pp.rank_images(sdata, groups={"large": "P", "small": "P"}, pooled=True)
    assert both.loc["P", "std_CD3"] > 0
    assert not caplog.text


# ------------------------------------------------------------------------------------------------------------- channels
def test_channels_by_their_names(caplog):
    names = ["DAPI", "CD3", "AF 488", "Blank", "CK"]
    sdata = with_images({"a": np.random.default_rng(0).gamma(1, 1, (5, 60, 60))}, names)
    with caplog.at_level(logging.INFO, "cytonym"):
        found = cy.pp.rank_images(sdata)
    assert [c for c in found if c.startswith("std_")] == ["std_CD3", "std_CK", "std_AF 488"]
    assert "markers ['CD3', 'CK']; background: ['AF 488']" in caplog.text
    without = cy.pp.rank_images(sdata, background=[])
    assert [c for c in without if c.startswith("std_")] == ["std_CD3", "std_CK"]
    other = cy.pp.rank_images(sdata, markers="DAPI", background=["CK", "Blank"])
    assert [c for c in other if c.startswith("std_")] == ["std_DAPI", "std_CK", "std_Blank"]
    dark_only = cy.pp.rank_images(sdata, markers=[])
    assert [c for c in dark_only if c.startswith("std_")] == ["std_AF 488"]


@pytest.mark.parametrize("name", ["background", "Background", "autofluorescence", "Auto-fluo 488", "AF", "AF1", "af_555", "Blank-2", "empty"])  # fmt: skip
def test_names_of_background(name):
    assert BACKGROUND.search(name.lower())


@pytest.mark.parametrize("name", ["CD8-AF488", "AFP", "CD3", "TRAF2", "backgrounds", "blanket"])
def test_names_of_markers(name):
    assert not BACKGROUND.search(name.lower())


def test_only_channels_that_all_images_share_by_default(caplog):
    a, b = pixels(shapes={"a": (60, 60), "b": (60, 60)}).values()
    sdata = SpatialData(
        images={
            "a": Image2DModel.parse(a, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD8", "CD20"]),
            "b": Image2DModel.parse(b, dims=("c", "y", "x"), c_coords=["CD20", "CD3", "DNA", "CD4"]),
        }
    )
    with caplog.at_level(logging.INFO, "cytonym"):
        found = cy.pp.rank_images(sdata)
    assert "Channels that some images lack, left out: ['CD8', 'CD4']" in caplog.text
    assert [c for c in found if c.startswith("std_")] == ["std_CD3", "std_CD20"]
    for key, image in (("a", a[3]), ("b", b[0])):
        assert found.loc[key, "std_CD20"] == pytest.approx(np.sort(image.ravel())[-3:].std(), rel=1e-6)
    with pytest.raises(
        KeyError, match=re.escape("No channel ['CD8'] in image 'b'. Available: ['CD20', 'CD3', 'DNA', 'CD4']")
    ):
        cy.pp.rank_images(sdata, markers=["CD3", "CD8"])


def test_wrong_channels_are_named():
    sdata = with_images({"a": np.ones((4, 60, 60))})
    with pytest.raises(KeyError, match=re.escape(f"No channel ['CD99'] in image 'a'. Available: {NAMES}")):
        cy.pp.rank_images(sdata, markers=["CD3", "CD99"])
    with pytest.raises(KeyError, match=re.escape("No channel ['dark']")):
        cy.pp.rank_images(sdata, background="dark")
    with pytest.raises(ValueError, match=re.escape("name a channel twice: ['CD3', 'CD3']")):
        cy.pp.rank_images(sdata, markers="CD3", background="CD3")
    with pytest.raises(ValueError, match="No marker to rank the images by"):
        cy.pp.rank_images(with_images({"a": np.ones((1, 60, 60))}, ["DNA"]))


# ------------------------------------------------------------------------------------------------------------- patients
def test_patients_by_dict_function_and_list_of_objects():
    images = pixels()
    sdata = with_images(images)
    by_function = cy.pp.rank_images(sdata, groups=patient, top_fraction=0.01)
    of = {key: patient(key) for key in images}
    pd.testing.assert_frame_equal(cy.pp.rank_images(sdata, groups=of, top_fraction=0.01), by_function)
    apart = [with_images({key: image}) for key, image in images.items()]
    pd.testing.assert_frame_equal(cy.pp.rank_images(apart, groups=patient, top_fraction=0.01), by_function)
    numbered = cy.pp.rank_images(sdata, groups=lambda key: int(key[1]), top_fraction=0.01)
    assert numbered.index.tolist() == [int(name[1]) for name in by_function.index]


def sample(names, values, images=None):
    """Images with two cells each and a column of patients, one value a cell."""
    images = pixels() if images is None else images
    parts = [cy.io.from_arrays(images[key], channels=NAMES, centers=[[5.5, 6.5], [20, 20]], name=key) for key in names]
    elements = {key: element for part in parts for key, element in [*part.images.items(), *part.shapes.items()]}
    sdata = SpatialData.init_from_elements(elements)
    table = ad.concat([part["table"] for part in parts])
    table.obs["patient"] = values
    regions = [f"{key}_centers" for key in names]
    table.obs["region"] = table.obs["region"].astype("category")
    sdata["table"] = TableModel.parse(table, region=regions, region_key="region", instance_key="instance_id")
    return sdata


def test_patients_by_a_column_of_the_table():
    images = pixels()
    names = list(images)
    sdata = sample(names, [patient(key) for key in names for _ in range(2)])
    found = cy.pp.rank_images(sdata, groups="patient", top_fraction=0.01)
    pd.testing.assert_frame_equal(found, cy.pp.rank_images(with_images(images), groups=patient, top_fraction=0.01))
    sdata["table"].obs["patient"] = sdata["table"].obs["patient"].astype("category")
    pd.testing.assert_frame_equal(found, cy.pp.rank_images(sdata, groups="patient", top_fraction=0.01))
    key = "P2_a_image"
    one = cy.pp.rank_images(sdata, groups="patient", image_key=key, top_fraction=0.01)
    assert one.index.tolist() == ["P2"]
    twice = [sample(["P1_a"], ["x", "x"]), sample(["P1_a"], ["y", None], {"P1_a": images["P1_b"]})]
    assert set(cy.pp.rank_images(twice, groups="patient", top_fraction=0.01).index) == {"x", "y"}


def test_columns_that_name_no_patient():
    with pytest.raises(ValueError, match=r"has several values: \['x', 'y'\] in the cells of image 'P1_a_image'"):
        cy.pp.rank_images(sample(["P1_a"], ["x", "y"]), groups="patient")
    with pytest.raises(ValueError, match="has no value in the cells of image 'P1_a_image'"):
        cy.pp.rank_images(sample(["P1_a"], [None, None]), groups="patient")
    sdata = sample(["P1_a"], ["x", "x"])
    with pytest.raises(KeyError, match=r"No column 'donor' in .*'patient'"):
        cy.pp.rank_images(sdata, groups="donor")
    with pytest.raises(KeyError, match="No table 'cells' in `sdata.tables`"):
        cy.pp.rank_images(sdata, groups="patient", table_key="cells")
    del sdata["table"].uns["spatialdata_attrs"]
    with pytest.raises(ValueError, match="Table 'table' annotates no elements"):
        cy.pp.rank_images(sdata, groups="patient")


def test_images_without_a_patient():
    sdata = with_images(pixels())
    with pytest.raises(
        KeyError, match=re.escape("no patient for images ['P3_a', 'P3_b', 'P3_c']. It has: ['P1_a', 'P1_b', 'P2_a']")
    ):
        cy.pp.rank_images(sdata, groups={"P1_a": 1, "P1_b": 1, "P2_a": 2})
    with pytest.raises(ValueError, match=re.escape("says None or NaN for images ['P2_a']")):
        cy.pp.rank_images(sdata, groups=lambda key: None if key == "P2_a" else key)
    with pytest.raises(ValueError, match=re.escape("Images have the same name: ['P1_a'")):
        cy.pp.rank_images([sdata, sdata], groups=patient)


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channel", [1, 3])
def test_pixels_that_are_no_numbers(value, channel):
    images = pixels(dtype="f4")
    images["P2_a"][channel, 50, 60] = value
    message = f"Channel {NAMES[channel]!r} of image 'P2_a' has NaN or infinite pixels. Replace them"
    with pytest.raises(ValueError, match=re.escape(message)):
        cy.pp.rank_images(with_images(images))
    images["P2_a"][channel, 50, 60] = 0
    images["P2_a"][0, 50, 60] = value  # not looked at
    cy.pp.rank_images(with_images(images))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, np.nan])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"`top_fraction` must be above 0 and at most 1, got {fraction}"):
        cy.pp.rank_images(with_images(pixels()), top_fraction=fraction)


def test_data_that_is_something_else():
    with pytest.raises(TypeError, match=re.escape("at least one of them, got ['str', 'str']")):
        cy.pp.rank_images("ab")
    with pytest.raises(TypeError, match=re.escape("got []")):
        cy.pp.rank_images([])
    with pytest.raises(KeyError, match="No image 'he'"):
        cy.pp.rank_images(with_images(pixels()), image_key="he")


def test_nothing_is_written():
    sdata = with_images(pixels())
    before = repr(sdata)
    cy.pp.rank_images(sdata)
    assert repr(sdata) == before
