"""The commands: what they write, what they say, how they end."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import spatialdata as sd
import torch
from typer.testing import CliRunner

import cytonym as cy
from cytonym.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

torch.set_num_threads(1)
SHORT = ["--steps", "2", "--batch-size", "16", "--device", "cpu"]


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
    return CliRunner().invoke(app, [str(a) for a in arguments])


def fails(*arguments: Any, code: int = 1) -> str:
    """The one line that the command says."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tissue.zarr"
    cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0).write(path)
    return path


@pytest.fixture(scope="module")
def model(store: Path) -> Path:
    path = store.parent / "model"
    cy.models.save(cy.tl.fit_encoder(sd.read_zarr(store), steps=2, batch_size=16, device="cpu"), path)
    return path


# ---------------------------------------------------------------------------------------------------------------- train
def test_train_writes_what_the_function_gives(store: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "panel"
    result = call("train", store, "--out", out, *SHORT)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"Model: {out}"
    assert "2/2" in result.stderr  # the bar
    assert "Training nextmarker on 40 cells of 1 images, 12 markers: 2 steps" in result.stderr
    assert sorted(p.name for p in out.parent.iterdir()) == ["panel"]  # no state of the training is left
    ours, theirs = cy.models.load(out).state_dict(), cy.models.load(model).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_train_on_many_stores_and_some_channels(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "panel"
    result = call("--quiet", "train", store, store, "--out", out, "--channel", "CD3,CD8", "--channel", "DNA", *SHORT)
    assert result.exit_code == 0, result.output
    assert not result.stderr  # neither log nor bars
    trained = cy.models.load(out)
    assert set(trained.markers) == {"CD3", "CD8", "DNA"}
    assert trained.provenance["n_cells"] == 80


def test_train_leaves_channels_out(store: Path, tmp_path: Path) -> None:
    result = call("train", store, "--out", tmp_path / "panel", "--without", "DNA,CD45", "--size-px", 9, *SHORT)
    assert result.exit_code == 0, result.output
    trained = cy.models.load(tmp_path / "panel")
    assert len(trained.markers) == 10
    assert not {"DNA", "CD45"} & set(trained.markers)
    assert trained.window_px == 9


def test_train_replaces_only_by_force(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "panel"
    out.mkdir()
    assert fails("train", store, "--out", out, *SHORT) == (
        f"error: {out} exists already. Choose another folder, or replace it with --force."
    )
    assert not list(out.iterdir())


def test_train_goes_on_after_an_interrupt(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_args: Any, **_kwargs: Any) -> None:
        msg = "Stopped after step 1 of 2. The same call goes on from there."
        raise KeyboardInterrupt(msg)

    monkeypatch.setattr(cy.tl, "fit_encoder", stop)
    assert fails("train", store, "--out", tmp_path / "panel", *SHORT, code=130).startswith("Stopped after step 1")
    monkeypatch.setattr(cy.tl, "fit_encoder", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert fails("train", store, "--out", tmp_path / "panel", *SHORT, code=130) == "interrupted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channel", "CD99"], "error: No channel 'CD99'. Available: ['DNA', 'CD45',"),
        (["--without", "gold"], "error: No channel 'gold'. Available: ['DNA', 'CD45',"),
        (["--labels", "mask"], "error: No labels element 'mask' in `sdata.labels`. Available: ['cells']."),
        (["--image", "other"], "error: No image 'other'"),
        (["--model", "resnet"], "error: No method 'resnet'"),
        (["--size-px", "65"], "error: A window of 65 px is larger than image 'image' of 64 x 64 px"),
        (["--size-px", "9", "--size-um", "9"], "error: "),
        (["--device", "abacus"], "error: Unknown device 'abacus'"),
    ],
)
def test_train_says_what_is_wrong(store: Path, tmp_path: Path, options: list[str], message: str) -> None:
    line = fails("train", store, "--out", tmp_path / "panel", "--steps", "1", "--batch-size", "16", *options)
    assert line.startswith(message)
    assert not (tmp_path / "panel").exists()


def test_no_store_no_folder_no_place(store: Path, tmp_path: Path) -> None:
    line = fails("train", tmp_path / "no.zarr", "--out", tmp_path / "panel")
    assert line.startswith(f"error: {tmp_path / 'no.zarr'} does not exist.")
    assert "read_tiffs" in line
    assert "is no SpatialData store" in fails("train", tmp_path, "--out", tmp_path / "panel")
    (tmp_path / "file").write_text("")
    line = fails("train", store, "--out", tmp_path / "file" / "panel")
    assert line.startswith(f"error: Cannot write into {tmp_path / 'file'}: ")
    assert line.endswith("Choose another folder with --out.")


# ---------------------------------------------------------------------------------------------------------------- embed
def test_embed_saves_the_table(store: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    sdata = sd.read_zarr(store)
    sdata.write(copy)
    result = call("embed", copy, "--model", model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == f"{copy}: 40 cells, table 'table' saved"
    cy.tl.embed_cells(sdata, model, device="cpu")
    saved = sd.read_zarr(copy)["table"]
    np.testing.assert_array_equal(saved.obsm["X_nextmarker"], sdata["table"].obsm["X_nextmarker"])
    assert list(saved.obsm["nextmarker_attributions"]) == list(cy.models.load(model).markers)


def test_embed_into_another_table(store: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, centers_only=True, rng=0)
    del sdata.tables["table"]
    sdata.write(copy)
    options = ["--shapes", "centers", "--table", "cells", "--key-added", "panel", "--device", "cpu"]
    result = call("embed", copy, "--model", model, *options)
    assert result.exit_code == 0, result.output
    saved = sd.read_zarr(copy)
    assert list(saved.tables) == ["cells"]
    assert saved["cells"].obsm["X_panel"].shape == (40, 256)


def test_embed_says_what_is_wrong(store: Path, model: Path, tmp_path: Path) -> None:
    assert "checkpoint" in fails("embed", store, "--model", tmp_path)
    assert str(tmp_path / "gone") in fails("embed", store, "--model", tmp_path / "gone")
    assert "does not exist" in fails("embed", tmp_path / "gone.zarr", "--model", model)
    assert "No channel 'CD99'" in fails("embed", store, "--model", model, "--channel", "CD99")


# ----------------------------------------------------------------------------------------------------------------- demo
def test_demo_refuses_before_any_work(tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out"]
    assert fails("demo", "--data", tmp_path / "gone", *out) == f"error: No such file or folder: {tmp_path / 'gone'}."

    empty = tmp_path / "empty"
    empty.mkdir()
    line = fails("demo", "--data", empty, *out)
    assert line.startswith("error: No TIFF")
    assert str(empty) in line

    (empty / "notes.txt").write_text("no image")
    assert "notes.txt" in fails("demo", "--data", empty, *out)

    (empty / "field.tif").write_bytes(b"no image either")
    line = fails("demo", "--data", empty, *out)
    assert line.startswith("error: ")
    assert "field.tif" in line


def test_demo_needs_a_place_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = fails("demo", "--out", tmp_path / "file")
    assert line.startswith(f"error: Cannot write into {tmp_path / 'file'}: ")
    taken = tmp_path / "out"
    (taken / "tissue.zarr").mkdir(parents=True)
    store = tmp_path / "phantom.zarr"
    cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0).write(store)
    assert "is no SpatialData store" in fails("demo", "--data", store, "--out", taken)


@pytest.mark.skipif(
    sys.platform == "win32" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere"
)
def test_demo_in_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in fails("demo", "--out", tmp_path / "out")


def test_demo_checks_names_and_places(store: Path, tmp_path: Path) -> None:
    out = ["--data", store, "--out", tmp_path]
    assert fails("demo", *out, "--truth", "type").startswith(
        "error: No column 'type' in the table of cells. Available: ['cell_type', "
    )
    assert "No channel 'CD99'" in fails("demo", *out, "--channel", "CD99")
    line = fails("demo", *out, "--find-cells", "--nuclear", "PI")
    assert "'PI'" in line
    assert "'DNA'" in line
    assert "leave --pixel-size out" in fails("demo", *out, "--pixel-size", "0.5")
    line = fails("demo", "--data", store, "--out", store.parent)
    assert "which would be replaced" in line
    assert sd.read_zarr(store)["table"].n_obs == 40


# -------------------------------------------------------------------------------------------------------------- general
def test_help_has_examples_and_exit_codes() -> None:
    for command, example in (
        (["demo"], "cytonym demo --out demo --steps 1000"),
        (["train"], "cytonym train tumour.zarr --out panel"),
        (["embed"], "cytonym embed tumour.zarr --model panel"),
        ([], "130 interrupted"),
    ):
        result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [*command, "--help"])
        assert result.exit_code == 0
        assert example in " ".join(result.output.split())


def test_version_and_unknown_options(store: Path) -> None:
    assert call("--version").stdout.strip() == cy.__version__
    assert call("train", store, "--colour", "red").exit_code == 2
    assert call("paint").exit_code == 2
    assert call("train", store).exit_code == 2  # --out is missing


def test_traceback_on_request(tmp_path: Path) -> None:
    result = call("--traceback", "train", tmp_path / "no.zarr", "--out", tmp_path / "panel")
    assert isinstance(result.exception, FileNotFoundError)
