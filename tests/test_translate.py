"""`cytonym translate`: what it writes, what it says, how it ends."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
import torch
from PIL import Image
from skimage.data import immunohistochemistry
from typer.testing import CliRunner

import cytonym as cy
from cytonym.cli import app
from cytonym.tl import _translators

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

torch.set_num_threads(1)
PICTURE = immunohistochemistry()[:160, -160:]
HEAD = ["image", "nuclei", "positive", "percent", "H-score", "0", "1+", "2+", "3+"]


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up logging for a terminal; the other tests get theirs back."""
    monkeypatch.setenv("PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS", ""))
    log = logging.getLogger("cytonym")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["translate", *(str(a) for a in arguments)])


def fails(*arguments: Any, code: int = 1) -> str:
    """The one line that the command says."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr.strip().splitlines()[-1]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PICTURE).save(tmp_path / "core.3.png")
    return tmp_path / "core.3.png"


def two_images(path: Path) -> Path:
    parts = [
        cy.io.from_arrays(PICTURE[rows].transpose(2, 0, 1), channels=["r", "g", "b"], name=name, pixel_size=0.5)
        for name, rows in (("a", slice(0, 80)), ("b", slice(80, 160)))
    ]
    sd.SpatialData(images={k: v for part in parts for k, v in part.images.items()}).write(path)
    return path


# ----------------------------------------------------------------------------------------------------------------- works
def test_the_same_as_the_functions(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sdata = cy.io.from_arrays(PICTURE.transpose(2, 0, 1), channels=["r", "g", "b"], name="core.3", pixel_size=0.5)
    cy.tl.translate_stain(sdata, dab_threshold=0.2)
    cy.tl.segment_nuclei(sdata, watershed=True)
    scores = cy.tl.score_ihc(sdata, thresholds=(0.1, 0.3, 0.5), path=tmp_path / "scores.json").iloc[0]
    result = call(
        picture, "--out", out, "--pixel-size", 0.5, "--dab-threshold", 0.2, "--watershed", "--thresholds", "0.1,0.3,0.5"
    )
    assert result.exit_code == 0, result.output
    assert names(out) == {"core.3.zarr", "core.3.json", "core.3_panel.png", "core.3_score.png"}
    stored = sd.read_zarr(out / "core.3.zarr")
    assert set(stored.images) == {"core.3_image", "core.3_stains", "core.3_class_map"}
    for key in ("core.3_stains", "core.3_class_map", "nuclei"):
        np.testing.assert_array_equal(stored[key].data, sdata[key].data)
    columns = ["ihc_class", "area_um2", "dab_density", "ihc_intensity"]
    assert stored["table"].obs[columns].equals(sdata["table"].obs[columns])
    assert stored.attrs["translate_stain"].keys() == {"core.3_stains", "core.3_class_map"}
    assert json.loads((out / "core.3.json").read_text()) == json.loads((tmp_path / "scores.json").read_text())
    head, row, last = result.stdout.strip().splitlines()
    assert head.split() == HEAD
    assert row.split()[:4] == ["core.3", "47", str(int(scores["num_pos"])), f"{scores['percent_pos']}%"]
    assert row.split()[4] == f"{scores['h_score']:.0f}"
    assert len(head) == len(row)
    assert last == f"Results: {out.resolve()}"
    for name in ("panel", "score"):
        with Image.open(out / f"core.3_{name}.png") as figure:
            assert min(figure.size) > 100


def test_without_an_image_it_takes_that_of_scikit_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimage.data.immunohistochemistry", lambda: PICTURE)
    monkeypatch.chdir(tmp_path)
    result = call()
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "ihc") == {"ihc.zarr", "ihc.json", "ihc_panel.png", "ihc_score.png"}
    record = sd.read_zarr(tmp_path / "ihc" / "ihc.zarr").attrs["translate_stain"]["ihc_stains"]
    assert record["nuclear_stain"] is False
    assert fails("--demo") == "error: ihc/ihc.zarr exists already. Choose another name, or replace it with --force."
    result = call("--demo", "--force", "--nuclear-stain")
    assert result.exit_code == 0, result.output
    assert sd.read_zarr(tmp_path / "ihc" / "ihc.zarr").attrs["translate_stain"]["ihc_stains"]["nuclear_stain"] is True
    assert names(tmp_path / "ihc") == {"ihc.zarr", "ihc.json", "ihc_panel.png", "ihc_score.png"}


def test_a_store_of_several_images(tmp_path: Path) -> None:
    store, out = two_images(tmp_path / "slide.zarr"), tmp_path / "out"
    result = call(store, "--out", out, "--crop", "0,40,10,5000")
    assert result.exit_code == 0, result.output
    assert names(out) == {"slide.zarr", "slide_scores", "slide_a_panel.png", "slide_b_panel.png", "slide_score.png"}
    assert names(out / "slide_scores") == {"a_nuclei.json", "b_nuclei.json"}
    stored = sd.read_zarr(out / "slide.zarr")
    assert set(stored.images) == {f"{name}_{kind}" for name in "ab" for kind in ("image", "stains", "class_map")}
    assert set(stored["table"].obs["region"]) == {"a_nuclei", "b_nuclei"}
    rows = result.stdout.strip().splitlines()[1:-1]
    assert [row.split()[1] for row in rows] == ["a_nuclei", "b_nuclei", "total"]
    assert set(sd.read_zarr(store).images) == {"a_image", "b_image"}  # as it was


def test_one_image_of_a_store(tmp_path: Path) -> None:
    store, out = two_images(tmp_path / "slide.zarr"), tmp_path / "out"
    result = call(store, "--out", out, "--image", "b_image")
    assert result.exit_code == 0, result.output
    assert names(out) == {"slide.zarr", "slide.json", "slide_panel.png", "slide_score.png"}
    assert set(sd.read_zarr(out / "slide.zarr").images) == {"a_image", "b_image", "b_stains", "b_class_map"}


def test_a_store_in_its_own_place(tmp_path: Path) -> None:
    store = two_images(tmp_path / "slide.zarr")
    assert "exists already" in fails(store, "--out", tmp_path)
    result = call(store, "--out", tmp_path, "--force")
    assert result.exit_code == 0, result.output
    stored = sd.read_zarr(store)
    np.testing.assert_array_equal(stored["a_image"].data, PICTURE[:80].transpose(2, 0, 1))
    assert stored["table"].n_obs > 0
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_after_an_interrupt_it_goes_on(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was: nothing is translated again, and what it has written itself is not in its way."""
    out = tmp_path / "out"

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cy.tl, "segment_nuclei", stop)
    assert fails(picture, "--out", out, code=130) == "interrupted"
    assert names(out) == {"translate.unfinished"}
    monkeypatch.undo()
    monkeypatch.setattr(_translators, "class_map_of_stains", lambda *_: 1 / 0)
    for name in ("ihc_score", "translation"):
        with monkeypatch.context() as context:
            context.setattr(cy.pl, name, stop)
            assert fails(picture, "--out", out, code=130) == "interrupted"
    assert names(out) == {"translate.unfinished", "core.3.json", "core.3_panel.png"}
    assert call(picture, "--out", out).exit_code == 0
    assert names(out) == {"core.3.zarr", "core.3.json", "core.3_panel.png", "core.3_score.png"}


def test_a_batch_goes_on_without_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    images = [tmp_path / f"{name}.png" for name in "abc"]
    for image, part in zip(images, (PICTURE[:80], PICTURE[80:], PICTURE[:, :80]), strict=True):
        Image.fromarray(part).save(image)
    segment, seen = cy.tl.segment_nuclei, list[str]()
    monkeypatch.setattr("cytonym._translate.DPI", 20)

    def until(stop: str | None) -> Any:
        def segmented(sdata: Any, **options: Any) -> None:
            seen.append(next(iter(options["class_map_key"])))
            if seen[-1] == f"{stop}_class_map":
                raise KeyboardInterrupt
            segment(sdata, **options)

        return segmented

    monkeypatch.setattr(cy.tl, "segment_nuclei", until("b"))
    assert fails(*images, "--out", out, code=130) == "interrupted"
    assert "a.zarr exists already" in fails(*images, "--out", out, "--watershed")  # another command
    monkeypatch.setattr(cy.tl, "segment_nuclei", until("c"))
    seen.clear()
    assert fails(*images, "--out", out, code=130) == "interrupted"
    assert seen == ["b_class_map", "c_class_map"]
    monkeypatch.setattr(cy.tl, "segment_nuclei", until(None))
    seen.clear()
    result = call(*images, "--out", out, "--force")
    assert result.exit_code == 0, result.output
    assert seen == ["c_class_map"]
    lines = result.stdout.strip().splitlines()
    assert [line.split()[0] for line in lines] == ["image", "a", "b", "c", "Results:"]
    assert "translate.unfinished" not in names(out)
    assert int(lines[1].split()[1]) == sd.read_zarr(out / "a.zarr")["table"].n_obs > 0
    assert "a.zarr exists already" in fails(*images, "--out", out)  # the whole batch is finished
    Image.fromarray(PICTURE[:70]).save(images[0])
    monkeypatch.setattr(cy.tl, "segment_nuclei", until("b"))
    assert fails(*images, "--out", out, "--force", code=130) == "interrupted"
    Image.fromarray(PICTURE[:60]).save(images[0])  # no longer what was finished
    seen.clear()
    assert fails(*images, "--out", out, "--force", code=130) == "interrupted"
    assert seen == ["a_class_map", "b_class_map"]


def test_a_store_in_its_own_place_is_finished_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, image = two_images(tmp_path / "slide.zarr"), tmp_path / "b.png"
    Image.fromarray(PICTURE[..., 0]).save(image)
    assert "is not RGB" in fails(store, image, "--out", tmp_path, "--force")
    Image.fromarray(PICTURE).save(image)
    times = [path.stat().st_mtime_ns for path in (store, store / "zarr.json")]
    result = call(store, image, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert [path.stat().st_mtime_ns for path in (store, store / "zarr.json")] == times
    assert len(result.stdout.strip().splitlines()) == 6


def test_an_image_without_nuclei_counts_none(picture: Path, tmp_path: Path) -> None:
    out, blank = tmp_path / "out", tmp_path / "blank.png"
    Image.fromarray(np.full((80, 80, 3), 245, np.uint8)).save(blank)
    result = call(blank, picture, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.strip().splitlines()[1:-1]]
    assert [row[:2] for row in rows] == [["blank", "0"], ["core.3", "55"]]
    assert {name for name in names(out) if name.startswith("blank")} == {"blank.zarr", "blank.json", "blank_panel.png"}
    assert json.loads((out / "blank.json").read_text()) == {
        "num_total": 0, "num_pos": 0, "num_neg": 0, "percent_pos": 0
    }  # fmt: skip
    stored = sd.read_zarr(out / "blank.zarr")
    assert set(stored.images) == {"blank_image", "blank_stains", "blank_class_map"}
    result = call(out / "core.3.zarr", "--out", out, "--seg-thresh", 600, "--force")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split()[:2] == ["core.3", "0"]
    assert not sd.read_zarr(out / "core.3.zarr").tables
    assert "core.3_score.png" not in names(out)


# ---------------------------------------------------------------------------------------------------------------- models
def test_a_network_is_read_and_its_licence_shown(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = cy.models.DeepLIIFConfig(filters=2, blocks=1, depth=4, tile_px=64)
    network = cy.models.DeepLIIF.from_seed(["hematoxylin", "DAPI"], config)
    cy.models.save(network, tmp_path / "trained")
    weights = tmp_path / "weights"
    weights.mkdir()
    for name, part in [*network.translators.items(), *network.segmenters.items()]:
        torch.save(part.state_dict(), weights / f"latest_net_{name}.pth")
    given: list[Any] = []
    translate = cy.tl.translate_stain

    def classical(sdata: Any, model: Any, *, device: str, **options: Any) -> None:
        given.append((model, device))
        translate(sdata, **options)

    monkeypatch.setattr(cy.tl, "translate_stain", classical)
    trained = call(picture, "--out", tmp_path / "a", "--model", tmp_path / "trained", "--device", "cpu")
    assert trained.exit_code == 0, trained.output
    published = call(picture, "--out", tmp_path / "b", "--model", weights)
    assert published.exit_code == 0, published.output
    assert [type(model).__name__ for model, _ in given] == ["DeepLIIF", "DeepLIIF"]
    assert [device for _, device in given] == ["cpu", "auto"]
    assert "non-commercial academic use only" in published.stdout
    assert "Licence" not in trained.stdout


# ---------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--demo"], "error: --demo takes scikit-image's picture. Leave it out to translate "),
        (["--pixel-size", "0"], "error: `pixel_size` must be positive"),
        (["--image", "b"], "error: --image names an image of a store, and no store is given."),
        (["--dab-threshold", "-1"], "error: `dab_threshold` must be at least 0, got -1.0."),
        (["--thresholds", "1,2"], "error: --thresholds must be 3 numbers with commas between, got '1,2'."),
        (["--thresholds", "3,2,1"], "error: --thresholds must rise, got 3.0,2.0,1.0."),
        (["--crop", "1,2,a,4"], "error: --crop must be 4 numbers with commas between"),
        (["--crop", "5,2,0,4"], "error: --crop must be Y0,Y1,X0,X1 with Y0 < Y1"),
        (["--colors", "gold"], "error: --colors must be clear or published, got 'gold'."),
        (["--model", "resnet"], "error: No model 'resnet': neither classical nor a folder."),
        (["--model", "resnet", "--diameter-px", "9"], "error: --diameter-px is for --model classical only."),
        (["--diameter-px", "2"], "error: A nucleus of 2 pixels is too small to be seen"),
    ],
)
def test_it_says_what_is_wrong(picture: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert fails(picture, "--out", tmp_path / "out", *options).startswith(message)
    assert not (tmp_path / "out").exists() or not names(tmp_path / "out")


def test_what_cannot_be_translated(picture: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "again").mkdir()
    Image.fromarray(PICTURE).save(tmp_path / "again" / "core.3.png")
    Image.fromarray(PICTURE[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(255 - PICTURE // 4 * 4).save(tmp_path / "dark.png")
    store = tmp_path / "slide.zarr"
    cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0).write(store)
    assert fails(tmp_path / "no.png", *out) == f"error: No file or store {tmp_path / 'no.png'}."
    assert "is no SpatialData store. Give the images in it one by one" in fails(tmp_path / "folder", *out)
    assert "would both write core.3.zarr" in fails(picture, tmp_path / "again" / "core.3.png", *out)
    assert "is not RGB: it has the channels ['L']" in fails(tmp_path / "grey.png", *out)
    assert "leave --pixel-size out" in fails(store, "--pixel-size", 1, *out)
    assert "has a table 'table' of other cells. Choose another name with --table" in fails(store, *out)
    assert "No RGB image in `sdata.images`" in fails(store, "--table", "ihc", *out)
    assert not names(tmp_path / "out")


@pytest.mark.parametrize("end", [".zarr", ".json", "_panel.png", "_score.png"])
def test_files_of_others_stay(picture: Path, tmp_path: Path, end: str) -> None:
    other = tmp_path / f"core.3{end}"
    other.write_text("of others")
    assert fails(picture, "--out", tmp_path).startswith(f"error: {other} exists already. Choose another name")
    assert other.read_text() == "of others"


def test_results_are_not_translated(picture: Path, tmp_path: Path) -> None:
    """As with `*.png --out .` for the second time."""
    Image.fromarray(PICTURE).save(tmp_path / "core.3_panel.png")
    for force in ([], ["--force"]):
        message = fails(picture, tmp_path / "core.3_panel.png", "--out", tmp_path, *force)
        assert "core.3_panel.png is given, but is also what is written of" in message


def test_files_of_others_beside_a_store_stay(tmp_path: Path) -> None:
    store, out = two_images(tmp_path / "slide.zarr"), tmp_path / "out"
    for name in ("slide_a_panel.png", "slide_scores"):
        (out / name).mkdir(parents=True)
        assert f"{name} exists already" in fails(store, "--out", out)
        (out / name).rmdir()
    Image.fromarray(PICTURE).save(tmp_path / "slide_a.png")
    assert "would both write slide_a_panel.png" in fails(store, tmp_path / "slide_a.png", "--out", out)
    assert not names(out)
