"""Bad input to the verbs: the message says what is wrong and what to do, before any training."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Affine, Scale, set_transformation

import cytonym as cy

torch.set_num_threads(1)
VERBS = ("fit_encoder", "embed_cells")


@pytest.fixture(autouse=True)
def no_training(request, monkeypatch):
    """An error that comes late is an error too."""
    if "trains" in request.fixturenames:
        return

    def refuse(*args, **kwargs):
        pytest.fail("training was started")

    from cytonym.learning import fit

    monkeypatch.setattr(fit, "fit", refuse)


@pytest.fixture
def trains():
    """A test that does train, a few steps."""


@pytest.fixture(scope="module")
def model():
    return cy.models.NeXtMarker.from_statistics(["DNA", "CD3", "CD20"], [40.0, 20.0, 20.0], seed=0).eval()


def fails(error, message: str, data, verbs=VERBS, **arguments) -> None:
    for verb in verbs:
        with pytest.raises(error, match=re.escape(message)):
            getattr(cy.tl, verb)(data, **arguments)


def with_pixels(sdata, pixels, channels=("DNA", "CD3", "CD20")):
    sdata.images["image"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=list(channels))
    return sdata


def test_no_image(tissue):
    fails(ValueError, "no image", SpatialData(labels=dict(tissue().labels)))


def test_several_images(tissue):
    sdata = tissue()
    sdata["other"] = sdata["image"]
    fails(ValueError, "['image', 'other']", sdata)


def test_unknown_image(tissue):
    fails(KeyError, "'he'", tissue(), image_key="he")
    fails(KeyError, "['image']", tissue(), image_key="he")


def test_unknown_channel(tissue):
    fails(KeyError, "CD8", tissue(), channels=["DNA", "CD8"])
    fails(KeyError, "Available: ['DNA', 'CD3', 'CD20']", tissue(), channels=["DNA", "CD8"])


def test_channels_that_are_numbers(tissue):
    sdata = tissue()
    sdata.images["image"] = Image2DModel.parse(np.asarray(sdata["image"]), dims=("c", "y", "x"))
    fails(KeyError, "have numbers for names: ['0', '1', '2'], so there is no ['CD3']", sdata, channels=["CD3"])
    fails(KeyError, "Name them first: sdata.set_channel_names('image', [...])", sdata, channels=["CD3"])
    fails(TypeError, "Channels are chosen by name, never by number, got [1]", sdata, channels=[1])


def test_channel_names_that_repeat(tissue):
    sdata = tissue()
    sdata.images["image"] = sdata["image"].assign_coords(c=["DNA", "CD3", "CD3"])
    fails(ValueError, "Channel names of image 'image' repeat: ['CD3']", sdata)


def test_unknown_region(tissue):
    fails(KeyError, "'nuclei'", tissue(), labels_key="nuclei")
    fails(KeyError, "No labels element 'nuclei' in `sdata.labels`. Available: ['cells']", tissue(), labels_key="nuclei")
    fails(KeyError, "No shapes element 'discs' in `sdata.shapes`. Available: []", tissue(), shapes_key="discs")


def test_unknown_table(tissue, model):
    sdata = tissue()
    cy.tl.embed_cells(sdata, model)
    message = "No table 'tabel' in `sdata.tables`, but ['table'] annotate these cells: choose with `table_key`."
    fails(KeyError, message, sdata, verbs=["embed_cells"], table_key="tabel", labels_key="cells")


def test_unknown_coordinate_system(tissue):
    fails(ValueError, "No image is in coordinate system 'um'", tissue(), coordinate_system="um")


def test_no_cells(tissue):
    sdata = tissue()
    fails(ValueError, "No cells: sdata has no labels, shapes or points", SpatialData(images=dict(sdata.images)))
    size = sdata["cells"].shape
    sdata.labels["cells"] = Labels2DModel.parse(np.zeros(size, np.int32), dims=("y", "x"))
    fails(ValueError, "No cells", sdata)


def test_all_cells_outside(tissue):
    sdata = tissue()
    sdata["centers"] = PointsModel.parse(np.array([[-5.0, 3.0], [900.0, 4.0]]))
    fails(ValueError, "all 2 cells of 'centers' lie outside image 'image'", sdata, points_key="centers")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers(tissue, value):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).astype("f4")
    pixels[1, 7, 9] = value
    fails(ValueError, "CD3", with_pixels(sdata, pixels))


def test_pixels_that_are_no_numbers_when_predicting(tissue, model):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).astype("f4")
    pixels[1, 7, 9] = np.nan
    with pytest.raises(ValueError, match="CD3"):
        cy.tl.embed_cells(with_pixels(sdata, pixels), model)


def test_channel_without_signal_is_neutral_and_reported(tissue, trains, caplog):
    sdata = tissue()
    pixels = np.asarray(sdata["image"]).copy()
    pixels[2] = 0
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.tl.embed_cells(with_pixels(sdata, pixels), steps=2, batch_size=8)
    assert "Channels without any signal, neutral in the result: ['CD20']." in caplog.text
    table = sdata["table"]
    assert (table.obsm["nextmarker_attributions"]["CD20"] == 0).all()
    assert np.isfinite(table.obsm["X_nextmarker"]).all()
    assert np.isfinite(table.obsm["nextmarker_attributions"].to_numpy()).all()


def test_window_larger_than_image(tissue):
    fails(ValueError, "A window of 80 px is larger than image 'image' of 60 x 60 px", tissue(), size_px=80)


def test_window_of_no_size(tissue):
    fails(ValueError, "size_px", tissue(), size_px=0)
    fails(ValueError, "size_um", tissue(), size_um=10.0)  # pixel size unknown
    fails(ValueError, "size_um", tissue(), size_px=10, size_um=10.0)


def test_rotated_element(tissue):
    sdata = tissue()
    turn = Affine([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["cells"], turn, "global")
    fails(ValueError, "cells", sdata)


def test_table_of_another_region(tissue, model):
    sdata = tissue()
    cy.tl.embed_cells(sdata, model)
    sdata["more"] = sdata["cells"]
    with pytest.raises(ValueError, match="cells"):
        cy.tl.embed_cells(sdata, model, labels_key="more")


def test_different_panels(tissue):
    samples = [tissue(), tissue(markers=["DNA", "CD3", "CD8"])]
    fails(ValueError, "CD8", samples, verbs=["fit_encoder"])


def test_numbers_and_names(tissue):
    fails(ValueError, "`steps` must be at least 1, got 0", tissue(), steps=0)
    fails(ValueError, "`batch_size` must be at least 2, got 1", tissue(), batch_size=1)
    fails(ValueError, "`views` must be at least 2", tissue(), verbs=["fit_encoder"], views=1)
    fails(TypeError, "`views` must be the number of views or a ViewConfig", tissue(), verbs=["fit_encoder"], views=2.5)
    fails(KeyError, "'resnet'", tissue(), model="resnet")
    fails(TypeError, "`data` must be a SpatialData object", [3], verbs=["fit_encoder"])
    fails(TypeError, "`data` must be a SpatialData object", [], verbs=["fit_encoder"])
    fails(TypeError, "`rng` must be a seed", tissue(), rng="x")


def test_unknown_method_of_explanation(tissue, model):
    with pytest.raises(
        ValueError, match=re.escape("Unknown method 'lime'. Available: ['activation', 'gradient', 'occlusion']")
    ):
        cy.tl.explain_cells(tissue(), model, method="lime")
    with pytest.raises(ValueError, match="'nextmarker' names a method. Give a trained model"):
        cy.tl.explain_cells(tissue(), "nextmarker")


def test_trained_model_and_training_arguments(tissue, model):
    with pytest.raises(ValueError, match="`steps` and `batch_size` are about training"):
        cy.tl.embed_cells(tissue(), model, steps=3)
    side = model.window_px
    with pytest.raises(ValueError, match=f"The model reads windows of {side} px, not {side + 2}"):
        cy.tl.embed_cells(tissue(), model, size_px=side + 2)
    with pytest.raises(TypeError, match="`model` must be an encoder or the folder of a checkpoint, got int"):
        cy.tl.embed_cells(tissue(), 3)


def test_panel_without_overlap(tissue, model):
    sdata = tissue(markers=["a", "b", "c"])
    with pytest.raises(
        ValueError, match=re.escape("Image 'image' has none of the model's markers. Channels: ['a', 'b', 'c']")
    ):
        cy.tl.embed_cells(sdata, model)
    with pytest.raises(
        ValueError, match=re.escape("Only in the model: ['CD20', 'CD3', 'DNA']; only in the images: ['a', 'b', 'c']")
    ):
        cy.tl.fit_encoder(sdata, model)


def test_other_pixel_size(tissue, model):
    sdata = tissue()
    for element in (sdata["image"], sdata["cells"]):
        set_transformation(element, Scale([0.5, 0.5], axes=("x", "y")), "global")
    network = cy.models.NeXtMarker(model.markers, model.config)
    network.load_state_dict(model.state_dict())
    network.provenance = {"pixel_size": 1.0}
    with pytest.warns(UserWarning, match=re.escape("trained on pixels of 1, image 'image' has pixels of 0.5")):
        cy.tl.embed_cells(sdata, network.eval())


def test_broken_checkpoints(tissue, model, tmp_path):
    def broken(name: str, change) -> None:
        folder = cy.models.save(model, tmp_path / name)
        change(folder)
        cy.tl.embed_cells(tissue(), folder)

    def other_class(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"class": "resnet"}))

    def truncated(folder):
        data = (folder / "weights.safetensors").read_bytes()
        (folder / "weights.safetensors").write_bytes(data[: len(data) // 2])

    def tampered(folder):
        data = bytearray((folder / "weights.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "weights.safetensors").write_bytes(bytes(data))

    for change, message in [(other_class, "class 'resnet'"), (truncated, "truncated"), (tampered, "SHA-256")]:
        with pytest.raises(ValueError, match=message):
            broken(change.__name__, change)
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        cy.tl.embed_cells(tissue(), tmp_path / "nothing")
    with pytest.raises(
        KeyError, match=re.escape("'nextmarkr' is neither a method nor a folder. Methods: ['clearit', 'nextmarker']")
    ):
        cy.tl.embed_cells(tissue(), "nextmarkr")


def test_nothing_is_written_when_prediction_breaks(tissue, model, monkeypatch):
    from cytonym.tl import _encoding

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    sdata = tissue()
    monkeypatch.setattr(_encoding, "predict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cy.tl.embed_cells(sdata, model)
    assert "table" not in sdata.tables
