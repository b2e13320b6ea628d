"""score_markers: what is written where, that nothing is written halfway, and what is said of bad input."""

from __future__ import annotations

import logging
import re
import tempfile
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Translation, get_transformation, set_transformation

import cytonym as cy
from cytonym.models.nimbus import NimbusConfig
from cytonym.tl import _score_markers, _scoring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cytonym.models.nimbus import Nimbus

torch.set_num_threads(1)
KEYS = ("nimbus_positivity", "nimbus_uncertainty")


@pytest.fixture(scope="module")
def model(scorer: Callable[..., Nimbus]) -> Nimbus:
    return scorer()


@pytest.fixture
def scored(model: Nimbus) -> Callable[..., Any]:
    """`score_markers` with a small network, pixels of a micrometre."""

    def score(sdata: SpatialData, scorer: Any = None, **arguments: Any) -> Any:
        return cy.tl.score_markers(sdata, scorer or model, **{"pixel_size": 1.0} | arguments)

    return score


def joined(*samples: SpatialData) -> SpatialData:
    return SpatialData(
        images={k: v for s in samples for k, v in s.images.items()},
        labels={k: v for s in samples for k, v in s.labels.items()},
    )


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


# --- what is written ---


def test_what_is_written(tissue, scored, model):
    sdata = tissue()
    assert scored(sdata) is None
    table = sdata["table"]
    assert table.n_obs == 25
    assert table.obs["region"].unique().tolist() == ["cells"]
    for key in KEYS:
        frame = table.obsm[key]
        assert list(frame) == ["DNA", "CD3", "CD20"]
        assert list(frame.index) == list(table.obs_names)
        assert (frame.dtypes == np.float32).all()
    assert table.obsm[KEYS[0]].min().min() >= 0
    assert table.obsm[KEYS[0]].max().max() <= 1
    assert 0 <= table.obsm[KEYS[1]].min().min() <= table.obsm[KEYS[1]].max().max() <= 0.5
    np.testing.assert_allclose(table.obsm["spatial"][0], [6, 6], atol=0.51)
    uns = table.uns["nimbus"]
    assert uns["params"] == {
        "channels": ["DNA", "CD3", "CD20"],
        "images": ["image"],
        "normalization": "released",
        "pixel_size": [1.0],
        "pixel_size_from": ["given"],
        "views": "none",
        "tiles": "aligned",
        "cells": ["masks"],
    }
    assert uns["model"]["class"] == "nimbus"
    assert uns["model"]["pixel_size"] == 1.0
    assert re.fullmatch("[0-9a-f]{64}", uns["model"]["weights_sha256"])
    assert uns["normalization"]["marker"].tolist() == ["DNA", "CD3", "CD20"]
    pixels = np.asarray(sdata["image"]).astype(float)
    for factor, layer in zip(uns["normalization"]["factor"], pixels, strict=True):
        assert factor == pytest.approx(np.quantile(layer[layer > 0], 0.999), rel=1e-6)
    markers = cy.get.markers(table, "nimbus_positivity")
    assert list(markers.var_names) == ["DNA", "CD3", "CD20"]


@pytest.mark.parametrize("how", ["zarr", "h5ad"])
def test_results_survive_the_disk(tissue, scored, scorer, tmp_path, how):
    """Also markers with a slash, and a scorer that knows where it is from."""
    names = ["DNA", "HLA-DR/DP (β)", "CD3/CD28"]
    other = scorer(seed=1)
    other.provenance = {"published": "V1.pt", "licence": None, "steps": 3}
    sdata = tissue(markers=names)
    scored(sdata, other, views="six_views")
    table = sdata["table"]
    assert list(table.obsm["nimbus_positivity"]) == ["DNA", "HLA-DR_DP (β)", "CD3_CD28"]
    if how == "zarr":
        sdata.write(tmp_path / "tissue.zarr")
        back = sd.read_zarr(tmp_path / "tissue.zarr")["table"]
    else:
        table.write_h5ad(tmp_path / "table.h5ad")
        back = ad.read_h5ad(tmp_path / "table.h5ad")
    for key in KEYS:
        frame = cy.get.markers(back, key)
        assert list(frame.var_names) == names
        np.testing.assert_array_equal(frame.X, table.obsm[key].to_numpy())
    uns = back.uns["nimbus"]
    assert uns["normalization"]["marker"].tolist() == names
    assert dict(uns["model"]["provenance"]) == {"published": "V1.pt", "licence": "None", "steps": "3"}
    assert [str(c) for c in uns["params"]["channels"]] == names
    assert uns["params"]["views"] == "six_views"


def test_other_keys_and_copies(tissue, scored):
    sdata = tissue()
    table = scored(sdata, inplace=False)
    assert "table" not in sdata.tables
    sdata["table"] = table
    again = scored(sdata, key_added="mine", inplace=False)
    assert {"mine_positivity", "mine_uncertainty", *KEYS} <= set(again.obsm)
    assert set(again.uns) >= {"mine", "nimbus"}
    assert "mine_positivity" not in sdata["table"].obsm
    np.testing.assert_array_equal(again.obsm["mine_positivity"], again.obsm["nimbus_positivity"])
    assert scored(sdata, key_added="mine") is None
    assert "mine_positivity" in sdata["table"].obsm


def test_a_subset_of_channels_in_its_order(tissue, scored):
    every = scored(tissue(), inplace=False).obsm
    some = scored(tissue(), channels=["CD20", "DNA"], inplace=False).obsm
    for key in KEYS:
        pd.testing.assert_frame_equal(some[key], every[key][["CD20", "DNA"]])


def test_a_table_that_is_there_keeps_its_rows(tissue, scored):
    """Shuffled, without some cells, with others that no image has, and with what else it holds."""
    sdata = tissue()
    expected = scored(sdata, inplace=False)
    ids = np.random.default_rng(0).permutation(np.arange(3, 30))  # 26 … 29 are nowhere
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * 27), "instance_id": ids}, index=[f"c{i}" for i in ids])
    table = ad.AnnData(np.ones((27, 1), "f4"), obs=obs, obsm={"old": np.zeros((27, 2))})
    sdata["mine"] = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    scored(sdata, table_key="mine")
    mine = sdata["mine"]
    assert list(mine.obs["instance_id"]) == list(ids)
    assert "old" in mine.obsm
    for key in KEYS:
        by_id = expected.obsm[key].set_index(expected.obs["instance_id"])
        np.testing.assert_array_equal(mine.obsm[key], by_id.reindex(ids))


def test_several_images_with_different_panels(tissue, scored):
    """A marker that a panel lacks is NaN there; brightness is that of the images that have it."""
    one = tissue(n_side=3, seed=1)
    two = tissue(n_side=4, seed=2, markers=["CD20", "CD8", "DNA"], names=("image2", "cells2"))
    sdata = joined(one, two)
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    scored(sdata, **keys)
    table = sdata["table"]
    frame = table.obsm["nimbus_positivity"]
    assert list(frame) == ["DNA", "CD3", "CD20", "CD8"]
    first = (table.obs["region"] == "cells").to_numpy()
    assert frame.isna().to_numpy()[first].all(axis=0).tolist() == [False, False, False, True]
    assert frame.isna().to_numpy()[~first].all(axis=0).tolist() == [False, True, False, False]
    assert int(frame.isna().sum().sum()) == 9 + 16
    factors = table.uns["nimbus"]["normalization"].set_index("marker")["factor"]
    quantile = lambda sample, key, c: np.quantile((v := np.asarray(sample[key])[c].astype(float))[v > 0], 0.999)
    assert factors["DNA"] == pytest.approx(np.mean([quantile(one, "image", 0), quantile(two, "image2", 2)]), rel=1e-6)
    assert factors["CD8"] == pytest.approx(quantile(two, "image2", 1), rel=1e-6)
    alone = scored(two, normalization=factors, inplace=False).obsm["nimbus_positivity"]
    np.testing.assert_array_equal(frame[~first][list(alone)], alone)


def test_rows_of_other_regions_stay_nan(tissue, scored):
    sdata = joined(tissue(n_side=3), tissue(n_side=3, seed=2, names=("image2", "cells2")))
    scored(sdata, image_key=["image", "image2"], labels_key=["cells", "cells2"])
    first = (sdata["table"].obs["region"] == "cells").to_numpy()
    again = scored(sdata, image_key="image", labels_key="cells", key_added="part", inplace=False)
    assert again.obsm["part_positivity"].notna().all(axis=1).tolist() == first.tolist()


def test_scores_of_other_images_are_not_erased(tissue, scored, monkeypatch):
    sdata = joined(tissue(n_side=3), tissue(n_side=4, seed=2, names=("image2", "cells2")))
    one, two = ({"image_key": f"image{i}", "labels_key": f"cells{i}"} for i in ("", "2"))
    both = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    scored(sdata, key_added="first", **both)
    before = sdata["table"].obsm["first_positivity"].copy()
    with monkeypatch.context() as patch:
        patch.setattr(_score_markers, "fields", lambda *a, **k: pytest.fail("pixels were read"))
        message = "`obsm['first_positivity']` of table 'table' has values for 16 cells that are not among those of this call, and would lose them"
        with pytest.raises(ValueError, match=re.escape(message)):
            scored(sdata, key_added="first", **one)
    pd.testing.assert_frame_equal(sdata["table"].obsm["first_positivity"], before)
    assert scored(sdata, key_added="first", inplace=False, **one).obsm["first_positivity"].isna().any(axis=None)
    scored(sdata, key_added="second", **two)
    scored(sdata, key_added="second", **two)  # its own cells once more
    scored(sdata, key_added="first", **both)


def test_places_of_cells_that_come_later(tissue, scored):
    """Those that are known stay; a table with two images gets the places of the second with its scores."""
    sdata = joined(tissue(n_side=3), tissue(n_side=4, seed=2, names=("image2", "cells2")))
    scored(sdata, image_key=["image", "image2"], labels_key=["cells", "cells2"])
    table = sdata["table"]
    places = table.obsm["spatial"].copy()
    second = (table.obs["region"] == "cells2").to_numpy()
    table.obsm["spatial"][second] = np.nan
    table.obsm["spatial"][~second] += 1000
    scored(sdata, image_key="image2", labels_key="cells2", key_added="later")
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], np.where(second[:, None], places, places + 1000))


def test_some_channels_of_panels_that_differ(tissue, scored):
    two = tissue(n_side=4, seed=2, markers=["CD20", "CD8", "DNA"], names=("image2", "cells2"))
    sdata = joined(tissue(n_side=3, seed=1), two)
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    every = scored(sdata, inplace=False, **keys).obsm["nimbus_positivity"]
    some = scored(sdata, channels=["CD8", "CD20"], inplace=False, **keys).obsm["nimbus_positivity"]
    pd.testing.assert_frame_equal(some, every[["CD20", "CD8"]], check_like=True)
    with pytest.raises(
        KeyError,
        match=r"No channel \['gold'\] in images \['image', 'image2'\]. Available: \['DNA', 'CD3', 'CD20', 'CD8'\]",
    ):
        scored(sdata, channels=["gold", "CD3"], **keys)
    with pytest.raises(ValueError, match=r"Image 'image' has none of the channels \['CD8'\].*Leave it out"):
        scored(sdata, channels=["CD8"], **keys)


def test_results_of_earlier_scores_are_named(tissue, scored, caplog):
    sdata = tissue()
    scored(sdata)
    cy.tl.call_markers(sdata["table"])
    rules = pd.DataFrame({"CD3": ["+", "-"], "CD20": ["-", "+"]}, index=["T", "B"])
    cy.tl.phenotype_cells(sdata["table"], rules)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        scored(sdata, key_added="other")
        assert "Made of earlier scores" not in caplog.text
        scored(sdata)
    assert "Made of earlier scores and not made again: ['nimbus_calls', 'phenotype']" in caplog.text


def test_brightness_can_be_given_and_is_that_of_the_paper_on_request(tissue, scored):
    found = scored(tissue(), normalization={"DNA": 50, "CD3": 20.0, "CD20": 9}, inplace=False)
    assert found.uns["nimbus"]["normalization"]["factor"].tolist() == [50.0, 20.0, 9.0]
    assert found.uns["nimbus"]["params"]["normalization"] == "given"
    paper = scored(tissue(), normalization="paper", inplace=False)
    pixels = np.asarray(tissue()["image"]).astype(float)
    expected = [np.quantile(layer[layer > 0], 0.9999) for layer in pixels]
    assert paper.uns["nimbus"]["normalization"]["factor"].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_scorer_may_be_a_folder(tissue, scored, model, tmp_path):
    cy.models.save(model, tmp_path / "scorer")
    expected = scored(tissue(), inplace=False)
    for path in (tmp_path / "scorer", str(tmp_path / "scorer")):
        found = scored(tissue(), path, inplace=False)
        np.testing.assert_array_equal(found.obsm[KEYS[0]], expected.obsm[KEYS[0]])
        assert found.uns["nimbus"]["model"]["weights_sha256"] == expected.uns["nimbus"]["model"]["weights_sha256"]


def test_global_generators_and_the_scorer_are_left_alone(tissue, scored, model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    scored(tissue(), views="six_views")
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], other)  # noqa: NPY002
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_cluster_gives_the_same_for_several_images(tissue, scored):
    distributed = pytest.importorskip("distributed")
    sdata = joined(*(tissue(n_side=2, seed=i, names=(f"i{i}_image", f"i{i}_cells")) for i in range(3)))
    expected = scored(sdata, inplace=False)
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        found = scored(sdata, client=client, inplace=False)
    for key in KEYS:
        np.testing.assert_array_equal(found.obsm[key], expected.obsm[key])


# --- cells that are points ---


@pytest.mark.parametrize("kind", ["points", "shapes", "polygons"])
def test_cells_without_masks_get_discs(tissue, scored, kind):
    sdata = tissue()
    masks = scored(sdata, inplace=False)
    xy = masks.obsm["spatial"]
    sdata = SpatialData(images=dict(sdata.images))
    if kind == "points":
        sdata["centers"] = PointsModel.parse(xy)
    elif kind == "shapes":
        sdata["centers"] = ShapesModel.parse(xy, geometry=0, radius=3)
    else:
        import geopandas as gpd
        from shapely import Point

        sdata["centers"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[Point(*p).buffer(4.0) for p in xy]))
    key = {("points_key" if kind == "points" else "shapes_key"): "centers"}
    scored(sdata, **key)
    table = sdata["table"]
    found = table.obsm["nimbus_positivity"]
    assert found.notna().all(axis=None)
    assert table.uns["nimbus"]["params"]["cells"] == ["discs of 8 px"]
    assert np.corrcoef(found.to_numpy().ravel(), masks.obsm["nimbus_positivity"].to_numpy().ravel())[0, 1] > 0.8
    wide = scored(sdata, diameter_um=12.0, inplace=False, **key)
    assert wide.uns["nimbus"]["params"]["cells"] == ["discs of 12 px"]
    assert not np.array_equal(wide.obsm["nimbus_positivity"], found)


def test_cells_outside_get_nan(tissue, scored):
    sdata = SpatialData(images=dict(tissue().images))
    xy = np.array([[30.0, 30.0], [-400.0, 3.0], [np.nan, 3.0], [0.2, 59.9], [5.0, 400.0]])
    sdata["centers"] = PointsModel.parse(xy)
    with pytest.warns(UserWarning, match="3 of 5 cells have their centre outside their image: they get NaN"):
        scored(sdata, points_key="centers")
    for key in KEYS:
        assert sdata["table"].obsm[key].notna().all(axis=1).tolist() == [True, False, False, True, False]


# --- images ---


def whole_map(table: ad.AnnData, sdata: SpatialData, name: str, cells: np.ndarray) -> None:
    """The image that was added holds what the scores are means of."""
    added = sdata[name].to_numpy()
    assert added.dtype == np.float32
    rows, columns = (np.arange(n) * m // n for n, m in zip(cells.shape, added.shape[1:], strict=True))
    stretched = added[:, rows[:, None], columns]
    for i, instance in enumerate(table.obs["instance_id"]):
        values = stretched[:, cells == instance]
        np.testing.assert_allclose(table.obsm[KEYS[0]].iloc[i], values.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(table.obsm[KEYS[1]].iloc[i], values.std(axis=1), atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
def test_an_image_of_probabilities(tissue, scored, tmp_path, monkeypatch, stored):
    """In memory or in the store, where its transformation puts it over the image."""
    monkeypatch.setattr(_scoring, "WINDOW_PX", 56)
    sdata = tissue(n_side=4, markers=["DNA", "CD3/CD28", "CD20"])
    before = np.asarray(sdata["image"]).copy()
    for element in (sdata["image"], sdata["cells"]):
        place = sd.transformations.Sequence(
            [Scale([0.6, 0.6], axes=("x", "y")), Translation([100, 7], axes=("x", "y"))]
        )
        set_transformation(element, place, "global")
    if stored:
        sdata.write(tmp_path / "tissue.zarr")
        sdata = sd.read_zarr(tmp_path / "tissue.zarr")
    scored(sdata, image_added="p", pixel_size=None)
    if stored:
        table, sdata = sdata["table"], sd.read_zarr(tmp_path / "tissue.zarr")
        assert "table" not in sdata.tables
    else:
        table = sdata["table"]
    assert table.uns["nimbus"]["params"]["pixel_size"] == pytest.approx([0.6])
    added = sdata["p"]
    assert added.shape == (3, 28, 28)  # 48 pixels of 0.6 micrometres
    assert list(added.c.values) == ["DNA", "CD3/CD28", "CD20"]
    whole_map(table, sdata, "p", np.asarray(sdata["cells"]))
    np.testing.assert_array_equal(np.asarray(sdata["image"]), before)
    corners = []
    for name, side in (("image", 48), ("p", 28)):
        matrix = get_transformation(sdata[name], "global").to_affine_matrix(("x", "y"), ("x", "y"))
        corners.append(matrix @ [[0, side], [0, side], [1, 1]])
    np.testing.assert_allclose(*corners)


def test_images_of_several_images_and_of_a_level(tissue, scored):
    one, two = tissue(n_side=2), tissue(n_side=3, names=("image2", "cells2"))
    pixels = np.asarray(two["image2"])
    two.images["image2"] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"], scale_factors=[2], transformations={"global": Identity()}
    )  # fmt: skip
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    sdata = joined(one, two)
    scored(sdata, image_added="p", **keys)
    assert sdata["image_p"].shape == (3, 24, 24)
    assert sdata["image2_p"].shape == (3, 36, 36)
    scored(two, image_added="coarse", scale="scale1", pixel_size=2.0)
    assert two["coarse"].shape == (3, 36, 36)
    for name, element in (("image2_p", sdata["image2_p"]), ("coarse", two["coarse"])):
        matrix = get_transformation(element, "global").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix @ [36, 36, 1], [36, 36, 1], err_msg=name)


def test_names_of_images_are_checked_before_any_work(tissue, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(_score_markers, "score_field", lambda *a, **k: pytest.fail("cells were scored"))
    monkeypatch.setattr(_scoring, "channel_statistics", lambda *a, **k: pytest.fail("pixels were read"))
    sdata = tissue()
    for name in ("image", "cells"):
        with pytest.raises(
            ValueError, match=f"`sdata` has an element '{name}' already. Choose another name, or remove it"
        ):
            scored(sdata, image_added=name)
    with pytest.raises(ValueError, match="`sdata` has an element 'image' already"):  # a store may not tell them apart
        scored(sdata, image_added="IMAGE")
    for name in ("", "a/b", "a b", "__p", ".", ".."):
        if name:
            with pytest.raises(
                ValueError,
                match=re.escape(f"`key_added` must be a name of letters, digits, '_', '-' and '.', got {name!r}"),
            ):
                scored(sdata, key_added=name)
        with pytest.raises(
            ValueError,
            match=re.escape(f"`image_added` must be a name of letters, digits, '_', '-' and '.', got {name!r}"),
        ):
            scored(sdata, image_added=name)
    both = joined(sdata, tissue(names=("image2", "cells2")))
    both.images["image2_p"] = both["image2"]
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    with pytest.raises(ValueError, match="`sdata` has an element 'image2_p' already"):
        scored(both, image_added="p", **keys)
    both.labels["more"] = both["cells"]
    with pytest.raises(ValueError, match=r"one element of cells in each image, got the images \['image', 'image'\]"):
        scored(both, image_added="q", image_key=["image", "image"], labels_key=["cells", "more"])
    sdata.write(tmp_path / "tissue.zarr")
    (tmp_path / "tissue.zarr" / "images" / "left").mkdir()
    with pytest.raises(ValueError, match="`sdata` has an element 'left' already"):
        scored(sdata, image_added="left")
    with pytest.raises(ValueError, match="`image_added` is made in this process only: leave `client` out"):
        scored(sdata, image_added="p", client=object())


# --- interrupts ---


@pytest.mark.parametrize("where", ["scoring", "writing", "table"])
def test_an_interrupt_leaves_everything_as_it_was(tissue, scored, tmp_path, monkeypatch, where):
    monkeypatch.setattr(_scoring, "WINDOW_PX", 56)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    sdata = tissue()
    scored(sdata, key_added="old")
    sdata.write(tmp_path / "tissue.zarr")
    sdata = sd.read_zarr(tmp_path / "tissue.zarr")
    before, table = contents(tmp_path / "tissue.zarr"), sdata["table"].copy()
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == (3 if where == "scoring" else 1):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    module, name = {
        "scoring": (_scoring, "_score_box"),
        "writing": (SpatialData, "write_element"),
        "table": (sd, "read_zarr"),
    }[where]
    original = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            scored(sdata, image_added="p")
    assert list(scratch.iterdir()) == []
    assert "p" not in sdata.images
    assert set(sd.read_zarr(tmp_path / "tissue.zarr").images) == {"image"}
    now = contents(tmp_path / "tissue.zarr")
    assert {k for k in now if k != "zarr.json"} == {k for k in before if k != "zarr.json"}
    assert set(sdata["table"].obsm) == set(table.obsm)
    assert set(sdata["table"].uns) == set(table.uns)
    scored(sdata, image_added="p")  # and it can be done again
    assert "p" in sd.read_zarr(tmp_path / "tissue.zarr").images
    assert list(scratch.iterdir()) == []


def test_a_write_that_stops_halfway_leaves_no_half_image(tissue, scored, tmp_path, monkeypatch):
    sdata = tissue()
    sdata.write(tmp_path / "tissue.zarr")

    def half(self: SpatialData, name: str, **kwargs: Any) -> None:
        folder = tmp_path / "tissue.zarr" / "images" / name
        folder.mkdir()
        (folder / "half").write_text("half")
        msg = "disk full"
        raise OSError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(SpatialData, "write_element", half)
        with pytest.raises(OSError, match="disk full"):
            scored(sdata, image_added="p")
    assert "table" not in sdata.tables
    assert set(sd.read_zarr(tmp_path / "tissue.zarr").images) == {"image"}


def test_images_that_were_added_go_with_what_fails_later(tissue, scored, tmp_path, monkeypatch):
    joined(tissue(n_side=2), tissue(n_side=3, names=("image2", "cells2"))).write(tmp_path / "tissue.zarr")
    sdata = sd.read_zarr(tmp_path / "tissue.zarr")
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    added = _score_markers._Picture.add

    def second_fails(self: Any, sdata: SpatialData, name: str, system: str) -> None:
        if name == "image2_p":
            msg = "disk full"
            raise OSError(msg)
        added(self, sdata, name, system)

    with monkeypatch.context() as patch:
        patch.setattr(_score_markers._Picture, "add", second_fails)
        with pytest.raises(OSError, match="disk full"):
            scored(sdata, image_added="p", **keys)
    assert set(sdata.images) == set(sd.read_zarr(tmp_path / "tissue.zarr").images) == {"image", "image2"}
    scored(sdata, image_added="p", **keys)
    assert {"image_p", "image2_p"} < set(sd.read_zarr(tmp_path / "tissue.zarr").images)


# --- unusual input ---


def replaced(sdata: SpatialData, image: Any = None, labels: Any = None) -> SpatialData:
    if image is not None:
        sdata.images["image"] = Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"])
    if labels is not None:
        sdata.labels["cells"] = Labels2DModel.parse(labels, dims=("y", "x"))
    return sdata


def test_a_channel_without_signal_is_zero_and_reported(tissue, scored, caplog):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).copy()
    pixels[1] = 0
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        scored(replaced(sdata, pixels))
    assert "No signal in channels ['CD3']: their scores are 0." in caplog.text
    for key in KEYS:
        frame = sdata["table"].obsm[key]
        assert (frame["CD3"] == 0).all()
        assert (frame["CD20"] > 0).all()
    assert sdata["table"].uns["nimbus"]["normalization"]["factor"][1] == 0


def test_an_unknown_pixel_size_is_said(tissue, scored, caplog):
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        table = scored(tissue(), pixel_size=None, inplace=False)
    assert (
        "The pixel size of image 'image' is unknown: 1 micrometres are assumed, by the size of its cells."
        in caplog.text
    )
    assert table.uns["nimbus"]["params"]["pixel_size"] == [1.0]
    assert table.uns["nimbus"]["params"]["pixel_size_from"] == ["guessed"]


def test_ids_with_gaps_and_beyond_32_bits(tissue, scored):
    sdata = tissue()
    expected = scored(sdata, inplace=False).obsm["nimbus_positivity"].to_numpy()
    old = np.asarray(sdata["cells"])
    ids = np.sort(np.random.default_rng(0).choice(60_000, 25, replace=False)) + 1
    for dtype, offset in (("uint16", 0), ("uint32", 2**31), ("int64", 2**40), ("uint64", 2**60)):
        sdata = replaced(tissue(), labels=np.concatenate([[0], ids.astype(object) + offset]).astype(dtype)[old])
        scored(sdata)
        assert [int(i) for i in sdata["table"].obs["instance_id"]] == [int(i) + offset for i in ids]
        np.testing.assert_array_equal(sdata["table"].obsm["nimbus_positivity"], expected)


def test_labels_smaller_than_the_image(tissue, scored):
    sdata = tissue()
    whole = scored(sdata, inplace=False)
    labels = np.asarray(sdata["cells"])[:36, :60]
    scored(replaced(sdata, labels=labels))
    table = sdata["table"]
    assert table.n_obs == 15
    assert table.obsm["nimbus_positivity"].notna().all(axis=None)
    upper = (whole.obsm["spatial"][:, 1] < 12).nonzero()[0]  # far from where the labels end
    np.testing.assert_allclose(
        table.obsm["nimbus_positivity"].to_numpy()[: len(upper)],
        whole.obsm["nimbus_positivity"].to_numpy()[upper],
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64", "uint8"])
def test_brightness_cancels_whatever_the_numbers(tissue, scored, dtype):
    """Sixteen bits to the brim, and floats below zero."""
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).astype("f8")
    expected = scored(sdata, inplace=False).obsm["nimbus_positivity"]
    top = {"uint16": 65535, "uint8": 250}.get(dtype, 1.0)
    scaled = pixels * np.floor(top / pixels.max()) if dtype.startswith("u") else pixels / 64
    if dtype.startswith("f"):
        scaled = np.where(scaled == 0, -3.5, scaled)
    found = scored(replaced(tissue(), scaled.astype(dtype)), inplace=False).obsm["nimbus_positivity"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_touching_cells_only(tissue, scored):
    labels = np.repeat(np.repeat(np.arange(1, 26).reshape(5, 5), 12, 0), 12, 1)
    scored(sdata := replaced(tissue(), labels=labels))
    assert sdata["table"].obsm["nimbus_positivity"].notna().all(axis=None)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (15, 3), (9, 40)])
@pytest.mark.parametrize("pixel_size", [0.5, 1.0])
def test_images_smaller_than_the_network_wants(scored, shape, pixel_size):
    rng = np.random.default_rng(0)
    labels = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)  # cells of one pixel
    sdata = cy.io.from_arrays(rng.poisson(9, (2, *shape)).astype("u2") + 1, labels, channels=["a", "b"])
    scored(sdata, pixel_size=pixel_size)
    assert sdata["table"].n_obs == labels.size
    assert sdata["table"].obsm["nimbus_positivity"].notna().all(axis=None)


# --- bad input ---


def fails(
    scored: Any, error: type[Exception], message: str, sdata: SpatialData, *arguments: Any, **options: Any
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        scored(sdata, *arguments, **options)
    assert "table" not in sdata.tables


def test_options_that_are_unknown(tissue, scored, monkeypatch):
    monkeypatch.setattr(_scoring, "channel_statistics", lambda *a, **k: pytest.fail("pixels were read"))
    sdata = tissue()
    fails(scored, ValueError, "`views` must be one of [None, 'six_views', 'released'], got 'all'", sdata, views="all")
    fails(scored, ValueError, "`tiles` must be 'aligned' or 'released', got 'big'", sdata, tiles="big")
    fails(scored, ValueError, "`pixel_size` must be positive, got 0", sdata, pixel_size=0)
    fails(scored, ValueError, "`diameter_um` must be positive, got -1", sdata, diameter_um=-1)
    fails(
        scored,
        KeyError,
        "`normalization` has no factor for ['CD3', 'CD20']. It has: ['DNA']",
        sdata,
        normalization={"DNA": 2},
    )
    fails(scored, ValueError, "`normalization` must be 'released', 'paper' or factors", sdata, normalization="log")
    fails(scored, KeyError, "No channel ['CD8'] in image 'image'", sdata, channels=["CD8"])
    fails(scored, ValueError, "`channels` is empty", sdata, channels=[])
    fails(scored, KeyError, "No image 'he'", sdata, image_key="he")


def test_models_that_are_no_scorers(tissue, scored, tmp_path):
    sdata = tissue()
    other = cy.models.NeXtMarker.from_statistics(["DNA"], [1.0])
    cy.models.save(other, tmp_path / "encoder")
    message = "`model` must be 'compact', a scorer or the folder of a checkpoint, got NeXtMarker."
    fails(scored, TypeError, message, sdata, other)
    fails(scored, TypeError, "got NimbusConfig", sdata, NimbusConfig())
    message = (
        f"'{tmp_path / 'encoder'}' holds a nextmarker, but a scorer is needed here (`tl.fit_scorer`, `models.Nimbus`)."
    )
    fails(scored, ValueError, message, sdata, tmp_path / "encoder")
    fails(
        scored,
        ValueError,
        "'nimbus' names a method. Its published weights are not part of the package",
        sdata,
        "nimbus",
    )
    fails(scored, ValueError, "'compct' is neither 'compact' nor the folder of a checkpoint.", sdata, "compct")
    fails(scored, FileNotFoundError, "No checkpoint at 'no/such'", sdata, "no/such")


def test_a_checkpoint_of_another_version(tissue, scored, model, tmp_path):
    folder = cy.models.save(model, tmp_path / "scorer")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"filters": 4', '"filters": 4, "attention": true'))
    fails(scored, ValueError, "does not fit Nimbus of this version of cytonym", tissue(), folder)
    config.write_text(config.read_text().replace('"filters": 4, "attention": true', '"filters": 5'))
    fails(scored, ValueError, "do not fit the network", tissue(), folder)


def test_no_cells(tissue, scored):
    sdata = tissue()
    fails(scored, ValueError, "No cells: sdata has no labels, shapes or points", SpatialData(images=dict(sdata.images)))
    fails(scored, ValueError, "No cells", replaced(sdata, labels=np.zeros((60, 60), "i4")))
    sdata = SpatialData(images=dict(sdata.images))
    sdata["centers"] = PointsModel.parse(np.array([[-5.0, 3.0], [900.0, 4.0]]))
    fails(scored, ValueError, "all 2 cells of 'centers' lie outside image 'image'", sdata)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("normalization", ["released", {"DNA": 9.0, "CD3": 9.0, "CD20": 9.0}])
def test_pixels_that_are_no_numbers(tissue, scored, value, normalization):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).astype("f4")
    pixels[1, 30, 30] = value
    message = "Channels ['CD3'] of image 'image' have NaN or infinite pixels. Replace them"
    fails(scored, ValueError, message, replaced(sdata, pixels), normalization=normalization)


def test_images_too_small_for_the_released_program(tissue, scored, monkeypatch):
    monkeypatch.setattr(_score_markers, "score_field", lambda *a, **k: pytest.fail("cells were scored"))
    sdata = joined(tissue(n_side=3), tissue(n_side=1, step=7, names=("image2", "cells2")))
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    fails(
        scored,
        ValueError,
        "Image 'image2' is smaller than 8 px at the scorer's resolution",
        sdata,
        tiles="released",
        **keys,
    )


# --- the scorer that ships ---


def test_compact_is_small_and_says_where_it_is_from():
    folder = _scoring.COMPACT
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 2_000_000
    model = cy.models.load(folder, expect="nimbus")
    assert model.provenance["licence"] == "BSD-3-Clause"
    assert "synthetic" in model.provenance["trained on"]


def test_compact_knows_the_positive_cells(tissue):
    """Two markers that are each on half of the cells, and one that is on all."""
    sdata = tissue(n_side=8)
    cy.tl.score_markers(sdata, pixel_size=1.0)
    scores = sdata["table"].obsm["nimbus_positivity"]
    odd = (sdata["table"].obs["instance_id"].to_numpy() - 1) % 2 == 0  # cells 1, 3, … have CD3
    assert scores["CD3"][odd].min() > scores["CD3"][~odd].max()
    assert scores["CD20"][~odd].min() > scores["CD20"][odd].max()
    assert (scores["CD3"] > 0.5).to_numpy().tolist() == odd.tolist()
    assert (scores["DNA"] > 0.5).mean() > 0.9


def test_compact_by_default_and_by_name(tissue):
    first = cy.tl.score_markers(tissue(), pixel_size=1.0, inplace=False)
    named = cy.tl.score_markers(tissue(), "compact", pixel_size=1.0, inplace=False)
    np.testing.assert_array_equal(first.obsm["nimbus_positivity"], named.obsm["nimbus_positivity"])
    assert first.uns["nimbus"]["model"]["provenance"]["licence"] == "BSD-3-Clause"


def test_compact_tells_phantom_cells_apart():
    """Better than chance by far on a tissue with spill-over, whose truth is known."""
    sdata = cy.datasets.tissue_phantom(n_cells=200, size_px=256, rng=0)
    cy.tl.score_markers(sdata, channels=["CD3", "CD20"])
    table = sdata["table"]
    types = table.obs["cell_type"].astype(str)
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(types == "B", table.obsm["nimbus_positivity"]["CD20"]) > 0.9
    assert roc_auc_score(types.str.startswith("T "), table.obsm["nimbus_positivity"]["CD3"]) > 0.9
