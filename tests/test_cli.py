"""The commands: what they write, what they say, how they end."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from typer.testing import CliRunner

import cytonym as cy
from cytonym.cli import app
from cytonym.models.checkpoint import weights_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def copies(stores: list[Path], folder: Path) -> list[Path]:
    return [Path(shutil.copytree(store, folder / store.name)) for store in stores]


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
        f"error: {out} exists already. Choose another name, or replace it with --force."
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
        (["--model", "resnet"], "error: No encoder 'resnet'"),
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
def test_stores_that_cannot_be_saved_are_refused_before_the_work(store: Path, model: Path, tmp_path: Path) -> None:
    [first] = copies([store], tmp_path)
    old = tmp_path / "old.zarr"
    old.mkdir()
    (old / ".zgroup").write_text('{"zarr_format": 2}')
    before = contents(first)
    for command, *options in (
        ["embed", "--model", model], ["score"], ["classify", "--labels", "cell_type"], ["label", "--classes", "a,b"],
    ):  # fmt: skip
        stores = [old] if command == "label" else [first, old]
        assert fails(command, *stores, *options) == (
            f"error: {old} is a store of Zarr format 2, in which no table can be saved. Make a new one of it: "
            f"`spatialdata.read_zarr({str(old)!r}).write('new.zarr')`."
        )
    assert contents(first) == before


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


# ---------------------------------------------------------------------------------------------------------------- score
@pytest.fixture(scope="module")
def tiny(store: Path) -> Path:
    """A scorer that nobody trained."""
    path = store.parent / "tiny"
    cy.models.save(cy.models.Nimbus.from_seed(cy.models.NimbusConfig(filters=4, depth=3)), path)
    return path


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


RULES = ",parent,CD3,CD8,CD20\nT,,+,,\nCD8 T,T,,+,\nB,,,,+\n"


def test_score_saves_scores_and_calls(store: Path, tiny: Path, tmp_path: Path) -> None:
    [copy] = copies([store], tmp_path)
    result = call("score", copy, "--model", tiny, "--device", "cpu", "--without", "DNA,CD45", "--threshold", "0.45")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.rstrip().splitlines()
    assert first == f"{copy}: 40 cells, 10 markers, table 'table' saved"

    sdata = sd.read_zarr(store)
    markers = [m for m in sdata["image"].c.values if m not in ("DNA", "CD45")]
    cy.tl.score_markers(sdata, tiny, channels=markers, device="cpu")
    cy.tl.call_markers(sdata["table"], threshold=0.45)
    saved = sd.read_zarr(copy)["table"]
    for key in ("nimbus_positivity", "nimbus_uncertainty", "nimbus_calls"):
        np.testing.assert_array_equal(saved.obsm[key], sdata["table"].obsm[key])
        assert list(saved.obsm[key]) == markers
    shares = (saved.obsm["nimbus_calls"] == 1).mean()
    assert second == "  positive: " + ", ".join(f"{m} {100 * shares[m]:.0f} %" for m in markers)


def test_score_names_cells_by_rules(store: Path, tiny: Path, tmp_path: Path) -> None:
    stores = [*copies([store], tmp_path / "a"), *copies([store], tmp_path / "b")]
    rules, out = tmp_path / "rules.csv", tmp_path / "new" / "scores.csv"
    rules.write_text(RULES)
    options = ["--rules", rules, "--out", out, "--key-added", "tiny", "--channel", "CD3,CD8,CD20", "--device", "cpu"]
    result = call("score", *stores, "--model", tiny, *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.rstrip().splitlines()
    assert len(lines) == 9  # four for each store, and the file
    assert lines[-1] == f"Scores: {out}"
    assert sorted(p.name for p in out.parent.iterdir()) == ["scores.csv"]

    table = sd.read_zarr(stores[1])["table"]
    shares = table.obs["phenotype"].value_counts(normalize=True)
    assert lines[6] == "  phenotype: " + ", ".join(
        f"{name} {100 * shares[name]:.0f} %" for name in ("T", "CD8 T", "B", "Unknown")
    )
    n = int(table.obs["phenotype_conflict"].sum())
    assert lines[7] == (f"  conflicts: {n} cells match several types" if n else "  conflicts: none")
    assert table.uns["phenotype"]["params"] == {"key": "tiny_calls", "scores": "tiny_positivity"}

    listed = pd.read_csv(out)
    assert list(listed) == ["store", "region", "instance_id", "x", "y", "CD3", "CD8", "CD20", "phenotype"]
    assert listed["store"].tolist() == [str(s) for s in stores for _ in range(40)]
    here = listed[listed["store"] == str(stores[1])]
    np.testing.assert_array_equal(here["instance_id"], table.obs["instance_id"])
    np.testing.assert_allclose(here[["x", "y"]], table.obsm["spatial"])
    np.testing.assert_allclose(here[["CD3", "CD8", "CD20"]], table.obsm["tiny_positivity"], rtol=1e-6)
    np.testing.assert_array_equal(here["phenotype"], table.obs["phenotype"])

    before = contents(stores[0])
    assert fails("score", *stores, "--model", tiny, *options) == (
        f"error: {out} exists already. Choose another name, or replace it with --force."
    )
    assert contents(stores[0]) == before
    assert call("score", stores[0], "--model", tiny, *options, "--force").exit_code == 0
    assert "store" not in pd.read_csv(out)


def test_score_cells_without_masks_into_a_new_table(tiny: Path, tmp_path: Path) -> None:
    sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, centers_only=True, rng=0)
    del sdata.tables["table"]
    sdata.write(tmp_path / "centers.zarr")
    options = ["--shapes", "centers", "--table", "cells", "--pixel-size", 1, "--diameter-um", 6, "--views", "six_views"]
    result = call("score", tmp_path / "centers.zarr", "--model", tiny, "--channel", "CD3", "--device", "cpu", *options)
    assert result.exit_code == 0, result.output
    assert "40 cells, 1 markers, table 'cells' saved" in result.stdout
    params = sd.read_zarr(tmp_path / "centers.zarr")["cells"].uns["nimbus"]["params"]
    assert params["views"] == "six_views"
    assert list(params["cells"]) == ["discs of 6 px"]
    assert list(params["pixel_size_from"]) == ["given"]


def test_score_says_how_many_cells_have_a_score(store: Path, tiny: Path, tmp_path: Path) -> None:
    [copy] = copies([store], tmp_path)
    sdata = sd.read_zarr(copy)
    table = sdata["table"]
    table.obs["instance_id"] = table.obs["instance_id"].where(np.arange(40) >= 3, table.obs["instance_id"] + 1000)
    cy.io.save_table(sdata)
    result = call("score", copy, "--model", tiny, "--channel", "CD3", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert f"{copy}: 37 of 40 cells, 1 markers" in result.stdout


def test_score_with_published_weights(store: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [copy] = copies([store], tmp_path)
    file = tmp_path / "weights" / "V1.pt"
    file.parent.mkdir()
    torch.save(cy.models.load(tiny).state_dict(), file)
    options = ["--channel", "CD3", "--device", "cpu"]
    for model in (file, file.parent):
        result = call("score", copy, "--model", model, *options)
        assert result.exit_code == 0, result.output
        told = sd.read_zarr(copy)["table"].uns["nimbus"]["model"]
        assert told["provenance"]["published"] == "V1.pt"
        assert told["weights_sha256"] == weights_sha256(cy.models.load(tiny))

    asked: list[str] = []

    def published(source: str) -> Any:
        asked.append(source)
        return cy.models.load(tiny)

    monkeypatch.setattr(cy.models.Nimbus, "from_published", published)
    assert call("score", copy, "--model", "lab/scorer", *options).exit_code == 0
    assert asked == ["lab/scorer"]


def test_score_adds_probabilities_or_leaves_the_store_as_it_was(
    store: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [copy] = copies([store], tmp_path)
    before = contents(copy)
    options = ["--model", tiny, "--channel", "CD3,CD8", "--device", "cpu", "--probabilities", "likely"]

    write = sd.SpatialData.write_element

    def stop(*args: Any, **_: Any) -> None:
        if args[1:] == ("likely",):
            write(*args)
        raise KeyboardInterrupt

    for where, name in ((sd.SpatialData, "write_element"), (cy.tl, "call_markers"), (cy.io, "save_table")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, stop)
            assert fails("score", copy, *options, code=130) == "interrupted"
        assert contents(copy) == before

    result = call("score", copy, *options)
    assert result.exit_code == 0, result.output
    assert (
        result.stdout.rstrip().splitlines()[-1].startswith("  probabilities: 'likely', as images; from now on --image")
    )
    sdata = sd.read_zarr(copy)
    assert sdata["likely"].shape == (2, 64, 64)
    assert list(sdata["likely"].c.values) == ["CD3", "CD8"]
    assert fails("score", copy, "--image", "image", *options) == (
        f"error: {copy} has an element 'likely' already. Choose another name with --probabilities."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channel", "CD99"], "No channel 'CD99'. Available: ['DNA', 'CD45',"),
        (["--labels", "mask"], "No labels element 'mask' in `sdata.labels`. Available: ['cells']."),
        (["--views", "four"], "--views must be one of ['none', 'six_views', 'released'], got 'four'."),
        (["--pixel-size", "0"], "`pixel_size` must be positive, got 0.0."),
        (["--rules", "gone.csv"], "No file 'gone.csv' with rules."),
        (
            ["--rules", "rules.csv", "--without", "CD8"],
            "No calls for the markers ['CD8'] of `rules`. Available: ['DNA',",
        ),
        (["--probabilities", "cells"], "STORE has an element 'cells' already. Choose another name"),
        (
            ["--model", "nimbus"],
            "--model nimbus: the published weights are not part of the package. --model JLrumberger",
        ),
        (["--model", "compct"], "'compct' is neither 'compact' nor the folder of a checkpoint."),
        (["--model", "gone.pt"], "No file at 'gone.pt'."),
        (["--model", "ENCODER"], "'ENCODER' holds a nextmarker, but a scorer is needed here"),
        (["--device", "abacus"], "Unknown device 'abacus'"),
    ],
)
def test_score_says_what_is_wrong(
    store: Path,
    tiny: Path,
    model: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.csv").write_text(RULES)
    before = contents(store)
    given = [o.replace("ENCODER", str(model)) for o in options]
    line = fails("score", store, *(given if "--model" in given else ["--model", tiny, *given]))
    assert line.startswith("error: " + message.replace("STORE", str(store)).replace("ENCODER", str(model)))
    assert contents(store) == before


# ------------------------------------------------------------------------------------------------------------- classify
@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three stores of one patient each, a third of their cells labelled, without intensities."""
    folder = tmp_path_factory.mktemp("patients")
    for i in range(3):
        sdata = cy.datasets.tissue_phantom(n_cells=90, size_px=96, rng=i)
        obs = sdata["table"].obs
        known = obs["cell_type"].isin(["B", "tumour"])
        obs["label"] = obs["cell_type"].where(known & (np.arange(len(obs)) % 3 == 0)).cat.remove_unused_categories()
        obs["patient"], obs["test"] = f"patient {i}", i == 2
        sdata.write(folder / f"{i}.zarr")
    return [folder / f"{i}.zarr" for i in range(3)]


def test_classify_saves_names_and_says_how_good(patients: list[Path], tmp_path: Path) -> None:
    [store] = copies(patients[:1], tmp_path)
    result = call("classify", store, "--labels", "label", "--key-added", "kind")
    assert result.exit_code == 0, result.output
    assert "no intensities yet, the cells are measured" in result.stderr
    line = re.fullmatch(
        rf"{store}: 90 of 90 cells named; on (\d+) labelled cells held out: macro-F1 (0\.\d\d|1\.00), "
        r"calibration error 0\.\d\d",
        result.stdout.strip(),
    )
    assert line, result.stdout
    table = sd.read_zarr(store)["table"]
    assert set(table.obs["kind"].cat.categories) == {"B", "tumour"}
    validation = table.uns["kind"]["validation"]
    assert (int(line[1]), line[2]) == (validation["n_cells"], f"{validation['macro_f1']:.2f}")

    sdata = sd.read_zarr(patients[0])
    cy.pp.measure_cells(sdata)
    cy.tl.classify_cells(sdata["table"], "label", key_added="kind")
    np.testing.assert_array_equal(table.obs["kind_confidence"], sdata["table"].obs["kind_confidence"])


def test_classify_many_stores_by_one_classifier(patients: list[Path], tmp_path: Path) -> None:
    stores, out = copies(patients, tmp_path), tmp_path / "new" / "classifier"
    options = ["--labels", "label", "--groups", "patient", "--test", "test", "--out", out]
    result = call("classify", *stores, *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.strip().splitlines()
    assert [line.split(": ")[0] for line in lines] == list(map(str, stores))
    assert all("labelled cells of 'test': macro-F1" in line for line in lines)
    assert sorted(p.name for p in out.parent.iterdir()) == ["classifier"]

    tables = [sd.read_zarr(store)["table"] for store in stores]
    told = cy.models.load(out).provenance
    assert told["groups"] == "patient"
    assert told["n_labelled"] == sum(int(t.obs["label"].notna().sum()) for t in tables[:2])  # not those of the test
    assert [t.uns["phenotype"]["test"]["n_cells"] for t in tables] == [int(tables[2].obs["label"].notna().sum())] * 3
    assert len({t.uns["phenotype"]["model"]["weights_sha256"] for t in tables}) == 1
    assert all(t.obs["phenotype"].notna().all() for t in tables)

    assert fails("classify", *stores, *options) == (
        f"error: {out} exists already. Choose another name, or replace it with --force."
    )
    [new] = copies(patients[:1], tmp_path / "again")
    result = call("classify", new, "--model", out)
    assert result.exit_code == 0, result.output
    named = sd.read_zarr(new)["table"]
    np.testing.assert_array_equal(named.obs["phenotype"], tables[0].obs["phenotype"])
    assert "labelled cells held out: macro-F1" in result.stdout  # those of the training


def test_classify_takes_images_for_patients_and_stores_without_labels(patients: list[Path], tmp_path: Path) -> None:
    stores = copies(patients, tmp_path)
    sdata = sd.read_zarr(stores[2])
    del sdata["table"].obs["label"]
    cy.io.save_table(sdata)
    result = call("classify", *stores, "--labels", "label")
    assert result.exit_code == 0, result.output
    assert "Images stand for patients" in result.stderr  # though all are called alike
    named = sd.read_zarr(stores[2])["table"]
    assert named.obs["phenotype"].notna().all()
    assert named.uns["phenotype"]["model"]["groups"] == "store and image"


def test_classify_by_embeddings_of_one_encoder(patients: list[Path], tmp_path: Path) -> None:
    stores = copies(patients[:2], tmp_path)
    encoders = [tmp_path / "first", tmp_path / "second"]
    for seed, path in enumerate(encoders):
        sdata = sd.read_zarr(stores[0])
        cy.models.save(cy.tl.fit_encoder(sdata, steps=1, batch_size=16, device="cpu", rng=seed), path)
    labels = ["--labels", "label"]
    call("embed", stores[0], "--model", encoders[0], "--device", "cpu")
    assert fails("classify", *stores, *labels) == (
        f"error: No embedding 'X_nextmarker' in ['{stores[1]}']. `cytonym embed {stores[1]} --model ENCODER` writes it."
    )
    call("embed", stores[1], "--model", encoders[1], "--device", "cpu")
    assert "was made by different encoders" in fails("classify", *stores, *labels)
    call("embed", stores[1], "--model", encoders[0], "--device", "cpu")
    sdata = sd.read_zarr(stores[1])
    made = sdata["table"].uns["nextmarker"]["model"]
    made["markers"] = made["markers"][::-1]  # as after an encoder of any panel on channels in another order
    cy.io.save_table(sdata)
    assert "or another order of them" in fails("classify", *stores, *labels)
    call("embed", stores[1], "--model", encoders[0], "--device", "cpu")
    result = call("classify", *stores, *labels, "--rep", "X_nextmarker", "--method", "linear")
    assert result.exit_code == 0, result.output
    saved = sd.read_zarr(stores[1])["table"]
    assert list(saved.uns["phenotype"]["model"]["use_rep"]) == ["X_nextmarker"]
    assert not saved.n_vars  # intensities were not asked for


def test_classify_from_and_to_qupath(patients: list[Path], tmp_path: Path) -> None:
    [store] = copies(patients[:1], tmp_path)
    sdata = sd.read_zarr(store)
    labels, named = tmp_path / "labels.geojson", tmp_path / "named.geojson"
    known = sdata["table"].obs["label"].dropna()
    cy.io.write_geojson(sdata, labels, classes="label")
    sdata["table"].obs = sdata["table"].obs.drop(columns="label")
    cy.io.save_table(sdata)
    options = ["--from-geojson", labels, "--to-geojson", named]
    result = call("classify", store, *options)
    assert result.exit_code == 0, result.output
    table = sd.read_zarr(store)["table"]
    assert table.obs["label"].dropna().astype(str).to_dict() == known.astype(str).to_dict()
    features = json.loads(named.read_text())["features"]
    assert len(features) == 90
    assert all({"confidence", "p: tumour"} <= set(f["properties"]["measurements"]) for f in features)
    assert fails("classify", store, *options).startswith(f"error: {named} exists already.")

    # What comes back unchanged is no label.
    result = call("classify", store, "--from-geojson", named, "--only-changed", "--to-geojson", named, "--force")
    assert result.exit_code == 0, result.output
    assert int(sd.read_zarr(store)["table"].obs["label"].notna().sum()) == len(known)


def test_classify_checks_files_before_the_work(patients: list[Path], tmp_path: Path) -> None:
    stores = copies(patients[:2], tmp_path)
    before = [contents(store) for store in stores]
    good, bad = tmp_path / "p.geojson", tmp_path / "o.txt"
    line = fails("classify", *stores, "--labels", "label", "--to-geojson", good, "--to-geojson", bad)
    assert line == (
        "error: --to-geojson must end with one of ['.geojson', '.json', '.geojson.gz', '.json.gz'], by which QuPath knows the "
        f"format, got {str(bad)!r}."
    )
    line = fails("classify", *stores, "--labels", "label", "--to-geojson", good, "--to-geojson", good)
    assert line.startswith("error: --to-geojson names one file twice: [")
    assert [contents(store) for store in stores] == before
    assert not good.exists()


def test_classify_saves_all_tables_before_files(
    patients: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_settings: Any) -> None:
        msg = "No space left on device"
        raise OSError(msg)

    monkeypatch.setattr(cy.io, "write_geojson", full)
    stores = copies(patients[:2], tmp_path)
    files = [option for name in "ab" for option in ("--to-geojson", tmp_path / f"{name}.json")]
    assert fails("classify", *stores, "--labels", "label", *files) == "error: No space left on device"
    assert all("phenotype" in sd.read_zarr(store)["table"].obs for store in stores)


def test_classify_on_pixels(patients: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any, dict[str, Any]]] = []
    trained = cy.models.CellSighter(["a", "b", "c"], cy.models.CellSighterConfig(classes=("B", "tumour")))

    def fit(data: Any, label_key: str, model: str, **given: Any) -> Any:
        calls.append(("fit", data, {"label_key": label_key, "model": model, **given}))
        return trained

    def name(data: Any, label_key: Any, model: Any, **given: Any) -> None:
        calls.append(("name", data, {"label_key": label_key, "model": model, **given}))
        data["table"].obs["phenotype"], data["table"].uns["phenotype"] = "tumour", {"classes": ["tumour"]}

    monkeypatch.setattr(cy.tl, "fit_classifier", fit)
    monkeypatch.setattr(cy.tl, "classify_cells", name)
    stores = copies(patients[:2], tmp_path)
    options = ["--labels", "label", "--method", "cellsighter"]
    result = call("classify", stores[0], *options, "--mask", "cells", "--channel", "CD3,CD8", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "no labelled cells were held out to judge by" in result.stdout
    for _, data, given in calls:
        assert isinstance(data, sd.SpatialData)
        assert given["labels_key"] == "cells"
        assert given["channels"] == ["CD3", "CD8"]
        assert given["device"] == "cpu"
        assert not data["table"].n_vars  # nothing was measured
    assert [kind for kind, *_ in calls] == ["fit", "name"]
    assert calls[0][2]["model"] == "cellsighter"
    assert calls[1][2]["model"] is trained
    line = fails("classify", *stores, *options)
    assert line.startswith("error: 'cellsighter' learns from one store, or is tested on one, but 2 have labels: ")
    assert line.endswith("Train on one with --out, and name the cells of the others with --model.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--labels must name the column with the known classes; or give a trained classifier with --model."),
        (["--labels", "type"], "No column 'type' with labels in table 'table'. Available: {"),
        (["--labels", "label", "--groups", "donor"], "No column 'donor' in the table of "),
        (["--labels", "label", "--test", "fold"], "No column 'fold' in the table of "),
        (["--labels", "label", "--method", "forest"], "No classifier 'forest'. Available: ['logistic', "),
        (["--labels", "label", "--rep", "X_clearit"], "No embedding 'X_clearit' in ["),
        (["--labels", "label", "--rep", "volume"], "No numbers under 'volume'. Available: "),
        (["--labels", "label", "--table", "cells"], "No column 'label' with labels in table 'cells'. Available: {}."),
        (["--labels", "phenotype"], "--key-added phenotype would replace the labels. Give the results another name."),
        (["--labels", "label", "--mask", "nuclei"], "No labels element 'nuclei' in `sdata.labels`. "),
        (
            ["--from-geojson", "a", "--from-geojson", "b"],
            "--from-geojson was given 2 times for 1 stores: once for each,",
        ),
        (["--from-geojson", "a.geojson"], "No file "),
        (["--model", "m", "--method", "maps"], "--model only names cells: leave --method, --out and --rep out, or"),
        (["--model", "m", "--test", "test"], "--labels must name the column with the known classes; or give"),
    ],
)
def test_classify_says_what_is_wrong(
    patients: list[Path], tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails("classify", patients[0], *options).startswith(f"error: {message}")
    assert not sd.read_zarr(patients[0])["table"].n_vars  # what was measured on the way is not saved


def test_classify_wants_a_classifier(patients: list[Path], model: Path) -> None:
    line = fails("classify", patients[0], "--model", model)
    assert line == (
        f"error: {model} holds an encoder (nextmarker), which names no cells. `--method {model}` fine-tunes it on labels."
    )


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
    assert "is no SpatialData store" in fails("demo", "--data", store, "--out", taken, "--force")


@pytest.mark.parametrize("name", ["tissue.zarr", "model", "report.html", "summary.json"])
def test_demo_replaces_only_by_force(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    line = fails("demo", "--out", tmp_path)
    assert line == f"error: {tmp_path / name} exists already. Choose another name, or replace it with --force."
    assert [p.name for p in tmp_path.iterdir()] == [name]


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
    for find in ([], ["--find-cells"]):
        line = fails("demo", *out, *find, "--nuclear", "PI")
        assert line.startswith("error: No channel 'PI'. Available: ['DNA', ")
    assert "leave --pixel-size out" in fails("demo", *out, "--pixel-size", "0.5")
    line = fails("demo", "--data", store, "--out", store.parent, "--force")
    assert "which would be replaced" in line
    assert sd.read_zarr(store)["table"].n_obs == 40


# -------------------------------------------------------------------------------------------------------------- general
def test_help_has_examples_and_exit_codes() -> None:
    for command, example in (
        (["demo"], "cytonym demo --out demo --steps 1000"),
        (["demo"], "Table that the results go to."),
        (["train"], "cytonym train tumour.zarr --out panel"),
        (["embed"], "cytonym embed tumour.zarr --model panel"),
        (["score"], "cytonym score sample_*.zarr --without DNA --rules types.csv --out scores.csv"),
        (["classify"], "cytonym classify tumour.zarr --labels label --groups patient"),
        (["label"], "cytonym label tumour.zarr --classes tumour,stroma,immune"),
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
