"""embed_cells and fit_encoder: what is written where, and that it depends on the pixels, the model and the seed only."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, TableModel
from spatialdata.transformations import Scale, set_transformation

import cytonym as cy
from cytonym.data.patches import CellPatches
from cytonym.data.source import Areas, resolve
from cytonym.learning.views import ViewConfig
from cytonym.tl import _encoding

torch.set_num_threads(1)
FAST = {"steps": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def model():
    return cy.models.NeXtMarker.from_statistics(["DNA", "CD3", "CD20"], [40.0, 20.0, 20.0], seed=0).eval()


def frames(table: ad.AnnData, name: str = "nextmarker") -> tuple[np.ndarray, pd.DataFrame]:
    return table.obsm[f"X_{name}"], table.obsm[f"{name}_attributions"]


def test_what_is_written(tissue):
    sdata = tissue()
    assert cy.tl.embed_cells(sdata, **FAST) is None
    table = sdata["table"]
    assert table.n_obs == 25
    assert table.obs["region"].unique().tolist() == ["cells"]
    assert table.obsm["X_nextmarker"].shape == (25, 256)
    assert table.obsm["X_nextmarker"].dtype == np.float32
    attributions = table.obsm["nextmarker_attributions"]
    assert list(attributions) == ["DNA", "CD3", "CD20"]
    assert list(attributions.index) == list(table.obs_names)
    assert (attributions.dtypes == np.float32).all()
    assert table.obsm["nextmarker_features"].shape == (25, 24)
    np.testing.assert_allclose(table.obsm["spatial"][0], [6, 6], atol=0.51)
    uns = table.uns["nextmarker"]
    assert list(uns["normalization"].columns) == ["marker", "center", "slope"]
    assert list(uns["model"]["markers"]) == ["DNA", "CD3", "CD20"]
    assert uns["model"]["class"] == "nextmarker"
    assert uns["features"]["per_marker"] == 8
    assert uns["params"]["seed"] == 0
    features = table.obsm["nextmarker_features"].reshape(25, 3, 8)  # an attribution is a mean of its marker's features
    assert (features.min(2) <= attributions + 1e-6).all(axis=None)
    assert (features.max(2) >= attributions - 1e-6).all(axis=None)


def test_attributions_know_the_positive_cells(tissue, model):
    table = cy.tl.embed_cells(tissue(), model, inplace=False)
    ids = table.obs["instance_id"].to_numpy()
    attributions = table.obsm["nextmarker_attributions"]
    positive = ids % 2 == 1  # instance 1, 3, … carry the first of the two
    assert attributions["CD3"][positive].min() > attributions["CD3"][~positive].max()
    assert attributions["CD20"][~positive].min() > attributions["CD20"][positive].max()


def test_round_trip_on_disk(tissue, model, tmp_path):
    import spatialdata as sd

    sdata = tissue()
    cy.tl.embed_cells(sdata, model)
    sdata.write(tmp_path / "t.zarr")
    back = sd.read_zarr(tmp_path / "t.zarr")["table"]
    table = sdata["table"]
    np.testing.assert_array_equal(back.obsm["X_nextmarker"], table.obsm["X_nextmarker"])
    pd.testing.assert_frame_equal(
        back.obsm["nextmarker_attributions"], table.obsm["nextmarker_attributions"], check_names=False
    )
    assert [str(m) for m in back.uns["nextmarker"]["model"]["markers"]] == ["DNA", "CD3", "CD20"]
    assert back.uns["nextmarker"]["normalization"]["center"].tolist() == pytest.approx([20, 10, 10])


def test_same_seed_same_bytes(tissue):
    first = cy.tl.embed_cells(tissue(), rng=3, inplace=False, **FAST)
    again = cy.tl.embed_cells(tissue(), rng=3, inplace=False, **FAST)
    other = cy.tl.embed_cells(tissue(), rng=4, inplace=False, **FAST)
    np.testing.assert_array_equal(first.obsm["X_nextmarker"], again.obsm["X_nextmarker"])
    assert not np.array_equal(first.obsm["X_nextmarker"], other.obsm["X_nextmarker"])


def test_global_seeds_are_left_alone(tissue):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    cy.tl.embed_cells(tissue(), **FAST)
    torch.testing.assert_close(torch.rand(3), expected[0], rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002


def test_chunks_and_batches_do_not_matter(tissue, model):
    sdata = tissue()
    whole = cy.tl.embed_cells(sdata, model, inplace=False)
    pixels = sdata["image"]
    sdata.images["image"] = Image2DModel.parse(
        np.asarray(pixels), dims=("c", "y", "x"), c_coords=list(pixels.coords["c"].values), chunks=(1, 17, 23)
    )
    tiled = cy.tl.embed_cells(sdata, model, inplace=False)
    for a, b in zip(frames(whole), frames(tiled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    from cytonym.tl._encoding import encode_cells

    few, many = (encode_cells(resolve(sdata), model, batch_size=n)[0] for n in (3, 1000))
    for name in few:
        np.testing.assert_allclose(few[name], many[name], atol=1e-5)


def test_row_order_and_other_rows_do_not_matter(tissue, model):
    sdata = tissue()
    expected = cy.tl.embed_cells(sdata, model, inplace=False)
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.arange(1, 30))  # 26…29 are not in the image
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * 29), "instance_id": ids}, index=[f"c{i}" for i in ids])
    table = ad.AnnData(np.ones((29, 1), "f4"), obs=obs)
    sdata["mine"] = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    cy.tl.embed_cells(sdata, model, table_key="mine")
    mine = sdata["mine"]
    assert list(mine.obs["instance_id"]) == list(ids)
    by_id = pd.DataFrame(expected.obsm["X_nextmarker"], index=expected.obs["instance_id"])
    np.testing.assert_allclose(mine.obsm["X_nextmarker"], by_id.reindex(ids).to_numpy(), atol=1e-5)
    assert np.isnan(mine.obsm["X_nextmarker"]).all(1).tolist() == (ids > 25).tolist()
    assert mine.obsm["nextmarker_attributions"].isna().all(axis=1).tolist() == (ids > 25).tolist()


def test_path_and_object_only_predict(tissue, model, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    by_object = cy.tl.embed_cells(tissue(), model, key_added="mine", inplace=False)
    cy.models.save(model, tmp_path / "panel")
    by_path = cy.tl.embed_cells(tissue(), tmp_path / "panel", key_added="mine", inplace=False)
    as_text = cy.tl.embed_cells(tissue(), str(tmp_path / "panel"), key_added="mine", inplace=False)
    for table in (by_path, as_text):
        np.testing.assert_array_equal(table.obsm["X_mine"], by_object.obsm["X_mine"])
    for k, v in model.state_dict().items():
        torch.testing.assert_close(v, before[k], rtol=0, atol=0)
    assert by_path.uns["mine"]["model"]["weights_sha256"] == by_object.uns["mine"]["model"]["weights_sha256"]


def test_inplace_false_leaves_sdata_alone(tissue, model):
    sdata = tissue()
    table = cy.tl.embed_cells(sdata, model, inplace=False)
    assert "table" not in sdata.tables
    sdata["table"] = table
    again = cy.tl.embed_cells(sdata, model, key_added="second", inplace=False)
    assert "X_second" in again.obsm
    assert "X_second" not in sdata["table"].obsm


def test_panel_is_matched_by_name(tissue, model, caplog):
    expected = cy.tl.embed_cells(tissue(), model, inplace=False)
    sdata = tissue()
    pixels = np.asarray(sdata["image"])
    turned = np.stack([pixels[2], pixels[0] * 0 + 9, pixels[1], pixels[0]])
    sdata.images["image"] = Image2DModel.parse(turned, dims=("c", "y", "x"), c_coords=["CD20", "extra", "CD3", "DNA"])
    found = cy.tl.embed_cells(sdata, model, inplace=False)
    np.testing.assert_allclose(found.obsm["X_nextmarker"], expected.obsm["X_nextmarker"], atol=1e-5)
    pd.testing.assert_frame_equal(frames(found)[1], frames(expected)[1], atol=1e-5)

    with caplog.at_level(logging.WARNING, logger="cytonym"):
        lacking = cy.tl.embed_cells(tissue(), model, channels=["CD3", "DNA"], inplace=False)
    assert "['CD20']" in caplog.text
    assert list(frames(lacking)[1]) == ["DNA", "CD3"]
    pd.testing.assert_frame_equal(frames(lacking)[1], frames(expected)[1][["DNA", "CD3"]], atol=1e-5)
    assert lacking.uns["nextmarker"]["model"]["missing_markers"] == ["CD20"]
    features = lacking.obsm["nextmarker_features"].reshape(25, 3, 8)
    assert (features[:, 2] == 0).all()


def test_many_samples_train_one_encoder(tissue):
    samples = [tissue(n_side=3, seed=1), tissue(n_side=5, seed=2, markers=["DNA", "CD3", "CD20"])]
    model = cy.tl.fit_encoder(samples, views=4, **FAST)
    assert model.markers == ("DNA", "CD3", "CD20")
    assert len(model.history) == 2
    assert model.provenance["n_cells"] == 34
    assert model.provenance["images"] == ["image", "image"]
    assert model.provenance["views"]["views_per_size"] == 4
    assert not model.training
    for sdata in samples:
        cy.tl.embed_cells(sdata, model)
        assert np.isfinite(sdata["table"].obsm["X_nextmarker"]).all()


def test_sizes_views_and_configs(tissue):
    sdata = tissue()
    assert cy.tl.fit_encoder(sdata, size_px=8, **FAST).window_px == 8
    config = cy.models.NeXtMarkerConfig(window_px=6, features_per_marker=4)
    model = cy.tl.fit_encoder(sdata, config, views=ViewConfig(window_px=(6, 5)), **FAST)
    assert (model.window_px, model.config.features_per_marker) == (6, 4)
    for element in (sdata["image"], sdata["cells"]):
        set_transformation(element, Scale([0.5, 0.5], axes=("x", "y")), "global")
    assert cy.tl.fit_encoder(sdata, size_um=5.0, **FAST).window_px == 10
    assert cy.tl.fit_encoder(sdata, **FAST).provenance["pixel_size"] == pytest.approx(0.5)


def test_fine_pixels_are_binned(tissue, caplog):
    sdata = tissue()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        assert cy.tl.fit_encoder(sdata, **FAST).binning == 1
    assert "do not say how large their pixels are" in caplog.text
    for pixel_size, binning in ((0.5, 2), (0.001, 1)):
        for element in (sdata["image"], sdata["cells"]):
            set_transformation(element, Scale([pixel_size, pixel_size], axes=("x", "y")), "global")
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="cytonym"):
            model = cy.tl.fit_encoder(sdata, **FAST)
        assert (model.binning, model.window_px) == (binning, 11 * binning)
        assert ("2 x 2 px averaged into one" in caplog.text) == (binning == 2)
        assert ("no light microscope's" in caplog.text) == (pixel_size == 0.001)
        assert cy.tl.fit_encoder(sdata, cy.models.NeXtMarkerConfig(), **FAST).binning == 1  # as it says
        rounded = cy.tl.fit_encoder(sdata, size_px=28, **FAST)
        assert (rounded.window_px, rounded.binning) == (27, 3)
        cy.tl.embed_cells(sdata, rounded, size_px=28)  # the size that gives this window
        cy.tl.embed_cells(sdata, model)
        table = sdata["table"]
        assert np.isfinite(table.obsm["X_nextmarker"]).all()
        told = table.uns["nextmarker"]["model"]
        assert (told["window_px"], told["binning"]) == (11 * binning, binning)


def test_a_size_beside_a_config_keeps_its_binning(tissue):
    for window_px, binning, size_px, expected in ((22, 1, 22, (22, 1)), (5, 4, 20, (5, 4)), (11, 1, 33, (33, 1))):
        config = cy.models.NeXtMarkerConfig(window_px=window_px, binning=binning)
        model = cy.tl.fit_encoder(tissue(), config, size_px=size_px, **FAST)
        assert (model.config.window_px, model.binning) == expected


def test_the_largest_size_fits(tissue):
    sdata = tissue()
    side = min(np.asarray(sdata["image"]).shape[1:])
    assert side - 6 < cy.tl.fit_encoder(sdata, size_px=side, **FAST).window_px <= side


def test_training_further_on_other_pixels_warns(tissue):
    sdata = tissue()
    models = []
    for pixel_size in (0.5, 1.0):
        for element in (sdata["image"], sdata["cells"]):
            set_transformation(element, Scale([pixel_size, pixel_size], axes=("x", "y")), "global")
        if models:
            with pytest.warns(
                UserWarning, match=r"The model was trained on pixels of 0\.5, image 'image' has pixels of 1"
            ):
                cy.tl.fit_encoder(sdata, models[0], **FAST)
        models.append(cy.tl.fit_encoder(sdata, **FAST))


def test_views_of_another_size_are_told(tissue, caplog):
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.tl.fit_encoder(tissue(), views=ViewConfig(window_px=(9,)), **FAST)
    assert "The views are of 9 px, the model's windows of 11 px" in caplog.text


def test_blocks_of_binned_windows_are_smaller_and_alike_for_all_images(tissue, monkeypatch):
    sdata = tissue()
    for name in ("second", "third"):
        sdata.images[f"{name}_image"] = sdata["image"]
        sdata.labels[f"{name}_cells"] = sdata["cells"]
    sdata.images["first_image"], sdata.labels["first_cells"] = sdata.images.pop("image"), sdata.labels.pop("cells")
    sizes = []

    def seen(*args, batch_size, **kwargs):
        sizes.append(batch_size)
        return CellPatches(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(_encoding, "CellPatches", seen)
    for binning in (1, 2):
        config = cy.models.NeXtMarkerConfig(window_px=5, binning=binning)
        model = cy.models.NeXtMarker.from_statistics(["DNA", "CD3", "CD20"], [40.0, 20.0, 20.0], config)
        cy.tl.embed_cells(sdata, model, inplace=False)
    assert sizes == [1024] * 3 + [256] * 3


def test_binned_images_give_what_binning_gives(tissue):
    """Cells at the middle of squares of 2 x 2 pixels, on an image whose squares are of one value."""
    coarse = tissue()
    pixels = np.asarray(coarse["image"])
    centers = np.random.default_rng(0).integers(8, min(pixels.shape[1:]) - 8, (12, 2))
    fine = np.repeat(np.repeat(pixels, 2, axis=1), 2, axis=2)
    names = [str(c) for c in coarse["image"].c.to_numpy()]
    one = cy.io.from_arrays(pixels, channels=names, centers=pd.DataFrame(centers + 0.5, columns=["x", "y"]))
    two = cy.io.from_arrays(fine, channels=names, centers=pd.DataFrame(2.0 * centers + 1, columns=["x", "y"]))
    a = cy.tl.embed_cells(one, size_px=11, inplace=False, **FAST)
    b = cy.tl.embed_cells(two, size_px=22, inplace=False, **FAST)
    np.testing.assert_allclose(a.obsm["X_nextmarker"], b.obsm["X_nextmarker"], atol=1e-5)


def test_training_further_starts_from_the_model(tissue, model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    further = cy.tl.fit_encoder(tissue(), model, **FAST)
    assert further is not model
    for k, v in model.state_dict().items():
        torch.testing.assert_close(v, before[k], rtol=0, atol=0)
    moved = max(float((v.detach() - before[k]).abs().max()) for k, v in further.named_parameters())
    assert 0 < moved < 0.1


def test_several_images_share_one_table(tissue, model):
    one, two = tissue(n_side=3, seed=1), tissue(n_side=4, seed=2, names=("image2", "cells2"))
    both = SpatialData(images={**one.images, **two.images}, labels={**one.labels, **two.labels})
    cy.tl.embed_cells(both, model, image_key=["image", "image2"], labels_key=["cells", "cells2"])
    table = both["table"]
    assert table.obs["region"].value_counts().to_dict() == {"cells2": 16, "cells": 9}
    alone = cy.tl.embed_cells(two, model, inplace=False)
    part = table[table.obs["region"] == "cells2"]
    np.testing.assert_allclose(part.obsm["X_nextmarker"], alone.obsm["X_nextmarker"], atol=1e-5)


def test_a_marker_that_one_image_lacks_stays_with_the_others(tissue, model, caplog):
    one, two = tissue(n_side=3, seed=1), tissue(n_side=4, seed=2, names=("image2", "cells2"))
    pixels = np.asarray(two["image2"])[:2]
    two.images["image2"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3"])
    alone = {sdata: cy.tl.embed_cells(sdata, model, inplace=False) for sdata in (one, two)}
    both = SpatialData(images={**one.images, **two.images}, labels={**one.labels, **two.labels})
    keys = {"image_key": ["image", "image2"], "labels_key": ["cells", "cells2"]}
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.tl.embed_cells(both, model, **keys)
        cy.tl.explain_cells(both, model, method="occlusion", **keys)
    assert "some images lack, neutral there and without attributions: {'CD20': ['image2']}" in caplog.text
    table = both["table"]
    here = (table.obs["region"] == "cells2").to_numpy()
    assert "missing_markers" not in table.uns["nextmarker"]["model"]
    np.testing.assert_allclose(table.obsm["X_nextmarker"][here], alone[two].obsm["X_nextmarker"], atol=1e-5)
    for key in ("nextmarker_attributions", "nextmarker_occlusion"):
        frame = table.obsm[key]
        assert list(frame) == ["DNA", "CD3", "CD20"]
        assert frame["CD20"].isna().tolist() == here.tolist()
        assert frame[["DNA", "CD3"]].notna().all(axis=None)
    whole = alone[one].obsm["nextmarker_attributions"]
    pd.testing.assert_frame_equal(table.obsm["nextmarker_attributions"][~here], whole, atol=1e-5)


def test_nothing_of_another_method_stays_under_its_name(tissue, model):
    sdata = tissue()
    cy.tl.embed_cells(sdata, model, key_added="mine")
    assert "mine_features" in sdata["table"].obsm
    other = cy.models.ClearIT.from_statistics(["DNA", "CD3", "CD20"], [40.0, 20.0, 20.0]).eval()
    copied = cy.tl.embed_cells(sdata, other, key_added="mine", inplace=False)
    assert "mine_features" not in copied.obsm
    assert "mine_features" in sdata["table"].obsm
    cy.tl.embed_cells(sdata, other, key_added="mine")
    assert sorted(sdata["table"].obsm) == ["X_mine", "mine_attributions", "spatial"]


def test_costs_are_logged_before_training(tissue, caplog):
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.tl.fit_encoder(tissue(), **FAST)
    assert "Training nextmarker on 25 cells of 1 images, 3 markers: 2 steps of 8 cells" in caplog.text


def test_silent_channels_are_reported_and_neutral(tissue, caplog):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).copy()
    pixels[1] = 0
    sdata.images["image"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.tl.embed_cells(sdata, **FAST)
    assert "Channels without any signal, neutral in the result: ['CD3']" in caplog.text
    assert (sdata["table"].obsm["nextmarker_attributions"]["CD3"] == 0).all()
    assert np.isfinite(sdata["table"].obsm["X_nextmarker"]).all()


def test_cells_at_the_border_and_outside(tissue, model):
    sdata = tissue()
    height = sdata["image"].shape[1]
    from spatialdata.models import PointsModel

    xy = np.array([[0.2, 0.2], [height - 0.1, 5.0], [30.0, 30.0], [-4.0, 3.0], [np.nan, 3.0]])
    sdata["centers"] = PointsModel.parse(xy)
    with pytest.warns(UserWarning, match="outside"):
        table = cy.tl.embed_cells(sdata, model, points_key="centers", inplace=False)
    found = np.isfinite(table.obsm["X_nextmarker"]).all(1)
    assert found.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("method", ["activation", "gradient", "occlusion"])
def test_explain_cells_writes_one_contract(tissue, model, method):
    sdata = tissue()
    cy.tl.embed_cells(sdata, model)
    assert cy.tl.explain_cells(sdata, model, method=method) is None
    frame = sdata["table"].obsm[f"nextmarker_{method}"]
    assert list(frame) == ["DNA", "CD3", "CD20"]
    assert list(frame.index) == list(sdata["table"].obs_names)
    assert (frame.dtypes == np.float32).all()
    assert frame.notna().all(axis=None)
    assert sdata["table"].uns[f"nextmarker_{method}"]["params"]["method"] == method
    if method == "activation":
        pd.testing.assert_frame_equal(frame, sdata["table"].obsm["nextmarker_attributions"], atol=1e-5)
    assert list(cy.get.markers(sdata["table"], f"nextmarker_{method}").var_names) == ["DNA", "CD3", "CD20"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("stored", [False, True])
def test_what_travels_to_a_cluster(tmp_path, monkeypatch, model, stored, chunked):
    """Pixels in memory once, those of a store not at all; of the cells only what a task needs."""
    rng = np.random.default_rng(0)
    pixels = rng.poisson(3, (3, 512, 64)).astype(np.uint16)
    places = rng.uniform(-4, [68, 516], (2000, 2))
    sdata = cy.io.from_arrays(pixels, channels=["DNA", "CD3", "CD20"], centers=pd.DataFrame(places, columns=["x", "y"]))
    chunks = {"chunks": (1, 64, 64)} if chunked else {}
    name = next(iter(sdata.images))
    sdata.images[name] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"], **chunks)
    if stored:
        sdata.write(tmp_path / "s.zarr")
        sdata = SpatialData.read(tmp_path / "s.zarr")
    [source] = resolve(sdata)
    outlines = np.array([shapely.Point(*xy).buffer(3) for xy in places])
    source = replace(source, areas=Areas(outlines, np.eye(3)))
    expected = _encoding.encode_cells([source], model)[0]
    tasks = []

    def here(encoder, given, client, *, n_rows, markers, device, n_cells):
        tasks.extend(given)
        blocks = (block for task in given for block in pickle.loads(pickle.dumps(task))())
        return _encoding.predict(encoder, blocks, n_rows=n_rows, markers=markers, device=device, n_cells=n_cells)

    monkeypatch.setattr(_encoding, "predict_distributed", here)
    monkeypatch.setattr(_encoding, "BAND_PX", 128)
    found = _encoding.encode_cells([source], model, client=object())[0]
    np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=1e-5)
    rows = np.sort(np.concatenate([task.rows for task in tasks]))
    np.testing.assert_array_equal(rows, np.flatnonzero(source.inside))
    assert len(tasks) == (4 if stored and chunked else 1)
    sent = sum(len(pickle.dumps(task)) for task in tasks)
    assert sent < 80 * len(rows) + 20_000 * len(tasks) + (0 if stored else pixels.nbytes)


def test_dask_gives_the_same(tissue, model):
    distributed = pytest.importorskip("distributed")
    sdata = tissue()
    expected = cy.tl.embed_cells(sdata, model, inplace=False)
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        found = cy.tl.embed_cells(sdata, model, client=client, inplace=False)
    np.testing.assert_allclose(found.obsm["X_nextmarker"], expected.obsm["X_nextmarker"], atol=1e-5)
