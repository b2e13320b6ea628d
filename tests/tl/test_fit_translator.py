"""fit_translator: what it learns from, what it keeps aside, that it can be interrupted, and what is said of bad input."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, Translation, set_transformation

import cytonym as cy
from cytonym.data.translation_tiles import map_of_nuclei
from cytonym.learning.state import STATE_FILE
from cytonym.models import DeepLIIF, DeepLIIFConfig, TranslatorRecipe, load, save
from cytonym.models.translator_training import TranslatorTraining

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch.set_num_threads(1)
SMALL = DeepLIIFConfig(filters=2, blocks=1, depth=3, discriminator_filters=2, discriminator_layers=2, tile_px=16)
RECIPE = TranslatorRecipe(4, 2, 1e-3, jitter=0.1, judge_every=2)
FAST: dict[str, Any] = {"model": SMALL, "recipe": RECIPE}
NAMES = ("DAPI", "marker")
SIDE = 48


def panels(seed: int = 0, side: int = SIDE, n: int = 2) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Stained image, modalities and class map [3, H, W]; labels of the nuclei; which of them are positive."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for i, (y, x) in enumerate([(4, 4), (4, 26), (28, 6), (30, 30)]):
        labels[y : y + 12, x : x + 10] = i + 1
    positive = np.array([False, True, False, True, False])
    stained = np.full((3, side, side), 230.0)
    stained[:, labels > 0] = np.array([90.0, 110, 180])[:, None]
    stained[:, positive[labels]] = np.array([120.0, 80, 40])[:, None]
    stained = np.clip(stained + rng.normal(0, 5, stained.shape), 0, 255).astype(np.uint8)
    gray = [np.repeat(((labels > 0) * (200 - 40 * i)).astype(np.uint8)[None], 3, axis=0) for i in range(n)]
    return [stained, *gray, map_of_nuclei(labels, positive)], labels, positive


def image(pixels: np.ndarray, channels: list[str]) -> Any:
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=channels)


def sample(seed: int = 0, prefix: str = "", **arguments: Any) -> SpatialData:
    (stained, *modalities, drawn), _, _ = panels(seed, **arguments)
    images = {f"{prefix}ihc": image(stained, ["r", "g", "b"])}
    images |= {
        f"{prefix}ihc_{name}" if prefix else name: image(m[:1], [name])
        for name, m in zip(NAMES, modalities, strict=False)
    }
    images[f"{prefix}truth"] = image(drawn, ["positive", "border", "negative"])
    return SpatialData(images=images)


def write_strips(folder: Path, count: int = 1, **arguments: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        strip = np.concatenate([p.transpose(1, 2, 0) for p in panels(i, **arguments)[0]], axis=1)
        Image.fromarray(strip).save(folder / f"tile{i}.png")
    return folder


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that comes late is an error too."""
    from cytonym.learning import fit_gan

    monkeypatch.setattr(fit_gan, "fit_gan", lambda *a, **k: pytest.fail("training was started"))


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    )


# --- what comes out ---


def test_what_is_returned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sdata = sample()
    before = set(sdata.images)
    with caplog.at_level(logging.INFO, logger="cytonym"):
        model = cy.tl.fit_translator(sdata, **FAST)
    assert (
        "Training deepliif on 1 images, 2 modalities: 4 steps of 2 tiles of 16 px; 3 tiles are held out." in caplog.text
    )
    assert set(sdata.images) == before
    assert isinstance(model, DeepLIIF)
    assert (model.config, model.markers, model.training) == (SMALL, NAMES, False)
    assert [row["step"] for row in model.history if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in model.history if "validation_count_error" in row] == [2, 4]
    told = model.provenance
    assert (told["seed"], told["steps"], told["batch_size"], told["images"], told["held_out"]) == (
        0,
        4,
        2,
        ["ihc"],
        ["ihc"],
    )
    least = min(row["validation_count_error"] for row in model.history if len(row) == 2)
    assert told["held_out_count_error"] == pytest.approx(least)
    again = load(save(model, tmp_path / "translator"))
    assert equal(again, model)
    assert not any("adversaries" in name or name.startswith("D") for name in again.state_dict())
    assert json.loads(json.dumps(model.history)) == again.history
    assert again.provenance == json.loads(json.dumps(told))
    cy.pl.training(again)
    cy.tl.translate_stain(sdata, again, image_key="ihc", pixel_size=0.25)
    assert {str(c) for c in sdata["ihc_stains"].c.values} == set(NAMES)


def test_strips_and_elements_give_the_same_weights(tmp_path: Path) -> None:
    folder = write_strips(tmp_path / "strips", 2)
    options = FAST | {"modalities": NAMES, "rng": 3}
    expected = cy.tl.fit_translator(folder, **options)
    assert equal(cy.tl.fit_translator([sample(0), sample(1)], **options), expected)
    together = SpatialData(images=dict(sample(0, "a_").images) | dict(sample(1, "b_").images))
    found = cy.tl.fit_translator(
        together, image_key=["a_ihc", "b_ihc"], class_map_key=["a_truth", "b_truth"], **options
    )
    assert equal(found, expected)
    assert not equal(cy.tl.fit_translator(folder, **options | {"rng": 4}), expected)


def test_nuclei_of_known_class_make_the_class_map() -> None:
    expected = cy.tl.fit_translator(sample(), NAMES, **FAST)
    sdata = sample()
    del sdata.images["truth"]
    _, labels, positive = panels()
    ids = np.array([0, 40, 7, 3, 90])
    pixels, channels = sdata["ihc"].to_numpy(), ["r", "g", "b"]
    nuclei = cy.io.from_arrays(pixels, ids[labels], channels=channels, name="n")
    sdata.labels["nuclei"] = nuclei["n_cells"]
    table = nuclei["table"]
    table.obs["region"] = pd.Categorical(["nuclei"] * 4)
    table.uns["spatialdata_attrs"]["region"] = ["nuclei"]
    known = dict(zip(ids.tolist(), positive.tolist(), strict=True))
    truth = table.obs["instance_id"].map(known)
    sdata.tables["table"] = table
    options = FAST | {"labels_key": "nuclei", "modalities": NAMES}
    for values in (np.where(truth, "positive", "negative"), truth.to_numpy(), truth.to_numpy().astype(int)):
        sdata["table"].obs["ihc_class"] = values
        assert equal(cy.tl.fit_translator(sdata, **options), expected)
    sdata["table"].obs["ihc_class"] = ["positive", "negative", "maybe", "negative"]
    with pytest.raises(ValueError, match=r"must be 'positive' or 'negative' in 'ihc_class': .*such as \['"):
        cy.tl.fit_translator(sdata, **options)
    with pytest.raises(KeyError, match="No column 'grade' in the table 'table'"):
        cy.tl.fit_translator(sdata, class_key="grade", **options)


def test_no_modalities_train_the_class_map_alone(tmp_path: Path) -> None:
    model = cy.tl.fit_translator(write_strips(tmp_path), (), **FAST)
    assert model.outputs == ("segmentation",)
    assert len(model.translators) == 0
    assert equal(model, cy.tl.fit_translator(sample(), (), **FAST))


def test_names_of_the_modalities(tmp_path: Path) -> None:
    options = FAST | {"recipe": replace(RECIPE, steps=1)}
    assert cy.tl.fit_translator(write_strips(tmp_path / "two"), **options).markers == ("modality 1", "modality 2")
    four = cy.tl.fit_translator(write_strips(tmp_path / "four", n=4), **options)
    assert four.markers == ("hematoxylin", "DAPI", "Lap2", "marker")
    mapped = cy.tl.fit_translator(sample(), {"nuclei": "DAPI"}, **options)
    assert mapped.markers == ("nuclei",)


def test_a_level_of_images_that_have_several() -> None:
    """Elements with one level lie on the level's pixels; others have it too."""

    def levels(pixels: np.ndarray, channels: list[str], factors: list[int] | None) -> Any:
        shown = pixels if factors else pixels[:, ::2, ::2]
        moved = {"global": Scale([1.0, 1.0] if factors else [2.0, 2.0], axes=("x", "y"))}
        return Image2DModel.parse(
            shown, dims=("c", "y", "x"), c_coords=channels, scale_factors=factors, transformations=moved
        )

    (stained, dapi, marker, drawn), _, _ = panels()
    large = [np.repeat(np.repeat(p, 2, axis=1), 2, axis=2) for p in (stained, dapi[:1], marker[:1], drawn)]
    names, channels = ("ihc", *NAMES, "truth"), (["r", "g", "b"], ["a"], ["b"], ["positive", "border", "negative"])
    options = FAST | {"scale": "scale1", "modalities": NAMES, "pixel_size": 0.25}
    expected = cy.tl.fit_translator(sample(), NAMES, **FAST)
    for several in ((True, True, True, True), (True, True, False, False), (True, False, True, True)):
        elements = {
            name: levels(pixels, c, [2] if has else None)
            for name, pixels, c, has in zip(names, large, channels, several, strict=True)
        }
        found = cy.tl.fit_translator(SpatialData(images=elements), **options)
        assert equal(found, expected)
        named = cy.tl.fit_translator(SpatialData(images=elements), class_map_key="truth", image_key="ihc", **options)
        assert equal(named, expected)


# --- held out ---


def test_the_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, seen = iter([5.0, 1.0, 3.0]), []
    real = TranslatorTraining.judge

    def judged(self: TranslatorTraining, step: int) -> dict[str, float]:
        if step % 2:
            return {}
        wanted = next(errors)
        seen.append({k: v.clone() for k, v in self.network.state_dict().items()})
        self.count = lambda image: (0, 0) if int(image.max()) == 255 else (round(wanted * 2**0.5), 0)  # truth has 255
        return real(self, step)

    monkeypatch.setattr(TranslatorTraining, "judge", judged)
    model = cy.tl.fit_translator(sample(), model=SMALL, recipe=replace(RECIPE, steps=6))
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())
    assert not all(torch.equal(v, seen[2][k]) for k, v in model.state_dict().items())


def test_a_folder_of_its_own_for_validation(tmp_path: Path) -> None:
    write_strips(tmp_path / "train", 2)
    write_strips(tmp_path / "val", 1)
    model = cy.tl.fit_translator(tmp_path, **FAST)
    assert model.provenance["images"] == ["tile0", "tile1"]
    assert model.provenance["held_out"] == ["tile0"]
    write_strips(tmp_path / "train", 6)
    many = cy.tl.fit_translator(tmp_path / "train", **FAST)
    assert len(many.provenance["held_out"]) == 1
    assert not set(many.provenance["held_out"]) & set(many.provenance["images"])


def test_nothing_held_out(caplog: pytest.LogCaptureFixture) -> None:
    model = cy.tl.fit_translator(sample(), validation=0, **FAST)
    assert model.provenance["held_out_count_error"] is None
    assert not any("validation_count_error" in row for row in model.history)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        whole = cy.tl.fit_translator(sample(), **FAST | {"model": replace(SMALL, tile_px=32)})
    assert "nothing is held out, the last weights are kept" in caplog.text
    assert whole.provenance["held_out"] == []


# --- the same weights again ---


def test_an_interrupted_training_ends_at_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cy.tl.fit_translator(sample(), **FAST)
    loss, calls = TranslatorTraining.generator_loss, []

    def interrupted(self: TranslatorTraining, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TranslatorTraining, "generator_loss", interrupted)
        with pytest.raises(
            KeyboardInterrupt, match=r"interrupted at step 2 of 4\. Run again with the same checkpoint_dir"
        ):
            cy.tl.fit_translator(sample(), checkpoint_dir=tmp_path, **FAST)
    resumed = cy.tl.fit_translator(sample(), checkpoint_dir=tmp_path, **FAST)
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    assert resumed.provenance == expected.provenance
    assert (tmp_path / STATE_FILE).is_file()
    with pytest.raises(ValueError, match="it began from other weights or data"):
        cy.tl.fit_translator(sample(5), checkpoint_dir=tmp_path, **FAST)


def test_a_state_is_of_what_was_held_out(tmp_path: Path) -> None:
    folder = write_strips(tmp_path / "strips", 6)
    options = FAST | {"checkpoint_dir": tmp_path / "state"}
    first = cy.tl.fit_translator(folder, validation=0.2, **options)
    with pytest.raises(ValueError, match="it began from other weights or data"):
        cy.tl.fit_translator(folder, validation=0.5, **options)
    assert equal(cy.tl.fit_translator(folder, validation=0.2, **options), first)
    options = FAST | {"checkpoint_dir": tmp_path / "rows"}
    cy.tl.fit_translator(sample(), validation=0.4, **options)
    with pytest.raises(ValueError, match="it began from other weights or data"):
        cy.tl.fit_translator(sample(), validation=0.6, **options)


def test_something_is_left_to_train_on(tmp_path: Path) -> None:
    many = cy.tl.fit_translator(write_strips(tmp_path, 6), validation=0.95, **FAST).provenance
    assert (len(many["images"]), len(many["held_out"])) == (1, 5)
    few = cy.tl.fit_translator(sample(), validation=0.95, **FAST).provenance
    assert few["images"] == few["held_out"] == ["ihc"]


def test_training_further_leaves_the_model_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = DeepLIIF.from_seed(NAMES, SMALL, seed=9)
    model.provenance = {"licence": "theirs"}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    further = cy.tl.fit_translator(sample(), model=model, recipe=RECIPE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.history, model.provenance) == ([], {"licence": "theirs"})
    assert further.provenance["started_from"] == {"licence": "theirs"}
    assert equal(further, cy.tl.fit_translator(sample(), model=save(model, tmp_path / "m"), recipe=RECIPE))
    with pytest.raises(ValueError, match=r"`model` makes \['DAPI', 'marker'\], the data have \['DAPI'\]"):
        cy.tl.fit_translator(sample(), ["DAPI"], model=model, recipe=RECIPE)


def test_the_pixel_size_is_that_of_the_images(caplog: pytest.LogCaptureFixture) -> None:
    options = FAST | {"recipe": replace(RECIPE, steps=1)}
    sdata = sample()
    for element in sdata.images.values():
        set_transformation(element, Scale([0.5, 0.5], axes=("x", "y")), "global")
    assert cy.tl.fit_translator(sdata, **options).config.pixel_size == 0.5
    assert cy.tl.fit_translator(sdata, pixel_size=0.4, **options).config.pixel_size == 0.4
    assert cy.tl.fit_translator(sample(), **options).config.pixel_size == 0.25
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        model = cy.tl.fit_translator(sdata, model=DeepLIIF.from_seed(NAMES, SMALL), recipe=replace(RECIPE, steps=1))
    assert "0.5 micrometres a pixel, a model of 0.25" in caplog.text
    assert model.config.pixel_size == 0.5


# --- bad input ---


def moved(sdata: SpatialData) -> None:
    set_transformation(sdata["DAPI"], Translation([3, 0], axes=("x", "y")), "global")


def resized(sdata: SpatialData) -> None:
    sdata.images["DAPI"] = image(np.zeros((1, SIDE, SIDE - 2), np.uint8), ["DAPI"])


def not_finite(sdata: SpatialData) -> None:
    sdata.images["DAPI"] = image(np.full((1, SIDE, SIDE), np.nan, np.float32), ["DAPI"])


def sixteen(sdata: SpatialData) -> None:
    sdata.images["DAPI"] = image(np.zeros((1, SIDE, SIDE), np.uint16), ["DAPI"])


def panel(sdata: SpatialData) -> None:
    sdata.images["DAPI"] = image(np.zeros((2, SIDE, SIDE), np.uint8), ["DAPI", "CD3"])


def no_map(sdata: SpatialData) -> None:
    del sdata.images["truth"]


def two_maps(sdata: SpatialData) -> None:
    sdata.images["more"] = sdata.images["truth"]


def empty_map(sdata: SpatialData) -> None:
    sdata.images["truth"] = image(np.zeros((3, SIDE, SIDE), np.uint8), ["positive", "border", "negative"])


def float_map(sdata: SpatialData) -> None:
    sdata.images["truth"] = image(np.zeros((3, SIDE, SIDE), np.float32), ["positive", "border", "negative"])


def two_stained(sdata: SpatialData) -> None:
    sdata.images["other"] = sdata.images["ihc"]


def gray(sdata: SpatialData) -> None:
    sdata.images["ihc"] = image(np.zeros((1, SIDE, SIDE), np.uint8), ["gray"])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, "Modality 'DAPI'.* must lie on the pixels of 'ihc' .*another transformation"),
        (resized, "it has 48 x 46 pixels"),
        (not_finite, "Modality 'DAPI' holds float32 and is not finite everywhere"),
        (sixteen, "Modality 'DAPI' holds uint16, but 8 bits are needed"),
        (panel, r"Modality 'DAPI' must have 1 or 3 channels, it has \['DAPI', 'CD3'\]"),
        (no_map, "Class map of 'ihc': none that lies on its pixels .*Give `class_map_key`.*or `labels_key`"),
        (two_maps, r"Class map of 'ihc': several: \['truth', 'more'\]"),
        (empty_map, "The class maps are empty"),
        (float_map, r"must hold 8 bits \(uint8\)"),
        (two_stained, r"Several images may be the stained one: \['ihc', 'other'\]\. Say which with `image_key`"),
        (gray, "No RGB image"),
    ],
)
def test_bad_elements(change: Callable[[SpatialData], None], message: str) -> None:
    sdata = sample()
    change(sdata)
    with pytest.raises(ValueError, match=message):
        cy.tl.fit_translator(sdata, **FAST)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modalities": ["CD3"]}, KeyError, "No image 'ihc_CD3' or 'CD3' for the modality 'CD3'"),
        ({"modalities": {"DAPI": ["DAPI", "marker"]}}, ValueError, "one element for each of 1 images, got {'DAPI': 2}"),
        ({"modalities": ["segmentation"]}, KeyError, "No image"),
        ({"class_map_key": "truth", "labels_key": "n"}, ValueError, "give one of the two"),
        ({"class_map_key": ["truth", "truth"]}, ValueError, "`class_map_key` names 2 elements for 1 images"),
        ({"image_key": "nothing"}, KeyError, "nothing"),
        (
            {"model": replace(SMALL, tile_px=64)},
            ValueError,
            r"smaller than a tile of 64 x 64 pixels: {'ihc': \(48, 48\)}",
        ),
        ({"model": replace(SMALL, input_channels=1)}, ValueError, "`input_channels` are 1"),
        ({"model": 3}, TypeError, "`model` must be"),
        ({"model": "nowhere"}, ValueError, "'nowhere' is neither 'classical' nor"),
        ({"steps": 0}, ValueError, "`steps` must be a whole number of at least 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a whole number of at least 1"),
        ({"validation": 1}, ValueError, "`validation` must be a share"),
        ({"pixel_size": 0}, ValueError, "`pixel_size` must be positive"),
        ({"rng": -1}, ValueError, "`rng` must be a seed"),
        (
            {"recipe": replace(RECIPE, perceptual=100.0)},
            ValueError,
            "The recipe has a perceptual term, which needs `features`",
        ),
        ({"recipe": replace(RECIPE, generator_weights=(1.0,))}, ValueError, "`generator` must hold 3 numbers"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cy.tl.fit_translator(sample(), **FAST | options)


@pytest.mark.usefixtures("no_work")
def test_bad_strips(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        cy.tl.fit_translator(tmp_path / "none", **FAST)
    with pytest.raises(FileNotFoundError, match="No strips in"):
        cy.tl.fit_translator(tmp_path, **FAST)
    with pytest.raises(TypeError, match="a list of them or a folder of strips, got"):
        cy.tl.fit_translator([3], **FAST)  # type: ignore[list-item]
    folder = write_strips(tmp_path / "a")
    with pytest.raises(
        ValueError, match="have 4 panels: the stained image, 2 modalities and the class map. 1 modalities were named"
    ):
        cy.tl.fit_translator(folder, ["DAPI"], **FAST)
    with pytest.raises(ValueError, match="smaller than a tile"):
        cy.tl.fit_translator(folder, model=replace(SMALL, tile_px=64), recipe=RECIPE)
    with pytest.raises(ValueError, match="`output_channels` are 1"):
        cy.tl.fit_translator(folder, model=replace(SMALL, output_channels=1), recipe=RECIPE)
    write_strips(tmp_path / "b", n=3)
    (tmp_path / "b" / "tile0.png").rename(folder / "tile1.png")
    with pytest.raises(ValueError, match=r"different numbers of panels: 4, but {'tile1\.png': 5}"):
        cy.tl.fit_translator(folder, **FAST)
    bad = tmp_path / "bad"
    bad.mkdir()
    for pixels, message in (
        (np.zeros((32, 70, 3), np.uint8), "its width of 70 is no multiple of its height of 32"),
        (np.zeros((32, 32, 3), np.uint8), "is no strip"),
        (np.zeros((32, 96), np.uint8), "must be an RGB picture of 8 bits, its mode is 'L'"),
        (np.zeros((32, 96, 3), np.uint8), "The class maps are empty"),
    ):
        Image.fromarray(pixels).save(bad / "x.png")
        with pytest.raises(ValueError, match=message):
            cy.tl.fit_translator(bad, **FAST)
    (bad / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="is no picture, or damaged"):
        cy.tl.fit_translator(bad, **FAST)
