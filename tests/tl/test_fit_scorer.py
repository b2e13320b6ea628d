"""fit_scorer: what it learns from, what it keeps aside, that it can be interrupted, and what is said of bad input."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata.models import Labels2DModel

import cytonym as cy
from cytonym.models import load, save
from cytonym.models.nimbus import Nimbus, NimbusConfig
from cytonym.models.scorer_training import SCORER_RECIPE, ScorerTraining
from cytonym.tl import _scorer_parts
from cytonym.tl._scoring import channel_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

torch.set_num_threads(1)
SMALL = NimbusConfig(filters=2, depth=2)
RECIPE = replace(SCORER_RECIPE, steps=3, batch_size=2, tile_px=16, judge_every=2, to_start=0.0)
FAST: dict[str, Any] = {"model": SMALL, "recipe": RECIPE, "pixel_size": 1.0}
MATRIX = pd.DataFrame({"CD3": [1, 0], "CD20": [0, 1]}, index=["T", "B"])


@pytest.fixture
def labelled(tissue: Callable[..., SpatialData]) -> Callable[..., SpatialData]:
    """A tissue whose table knows the types: cells 1, 3, … are T, the others B."""

    def make(**arguments: Any) -> SpatialData:
        sdata = tissue(**arguments)
        cy.pp.measure_cells(sdata)
        even = sdata["table"].obs["instance_id"].to_numpy() % 2 == 0
        sdata["table"].obs["type"] = pd.Categorical(np.where(even, "B", "T"))
        return sdata

    return make


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that comes late is an error too."""
    from cytonym.learning import fit
    from cytonym.tl import _scoring

    monkeypatch.setattr(_scoring, "channel_statistics", lambda *a, **k: pytest.fail("pixels were read"))
    monkeypatch.setattr(fit, "fit", lambda *a, **k: pytest.fail("training was started"))


def equal(a: Nimbus, b: Nimbus) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# --- what comes out ---


def test_what_is_returned(labelled, tmp_path, caplog):
    sdata = labelled()
    with caplog.at_level(logging.INFO, logger="cytonym"):
        model = cy.tl.fit_scorer(sdata, "type", MATRIX, **FAST)
    assert "Training nimbus on 2 markers of 1 images: 3 steps of 2 tiles of 16 px; " in caplog.text
    assert isinstance(model, Nimbus)
    assert (model.config, model.markers, model.training) == (SMALL, ("CD3", "CD20"), False)
    assert [row["step"] for row in model.history if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in model.history if "validation_f1" in row] == [2, 3]
    told = model.provenance
    assert (told["seed"], told["steps"], told["batch_size"], told["robust"], told["images"]) == (
        0,
        3,
        2,
        True,
        ["image"],
    )
    assert 0 <= told["start_f1"] <= told["held_out_f1"] <= 1
    again = load(save(model, tmp_path / "scorer"))
    assert json.loads(json.dumps(model.history)) == again.history
    assert again.provenance == told
    cy.pl.training(again)
    cy.tl.score_markers(sdata, again, pixel_size=1.0)
    assert sdata["table"].obsm["nimbus_positivity"].notna().all(axis=None)


def test_same_seed_same_bytes(labelled):
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    first = cy.tl.fit_scorer(labelled(), "type", MATRIX, rng=3, **FAST)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
    again = cy.tl.fit_scorer(labelled(), "type", MATRIX, rng=3, **FAST)
    other = cy.tl.fit_scorer(labelled(), "type", MATRIX, rng=4, **FAST)
    assert first.history == again.history
    assert equal(first, again)
    assert first.history == again.history
    assert not equal(first, other)


def test_training_further_leaves_the_model_alone(labelled, scorer, monkeypatch):
    monkeypatch.setattr(ScorerTraining, "judge", lambda *_: 0.5)  # good enough to be kept
    model = scorer(2, 2)
    model.markers, model.provenance = ("CD99",), {"licence": "mine"}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    options = FAST | {"model": model, "recipe": replace(RECIPE, to_start=1e-4)}
    further = cy.tl.fit_scorer(labelled(), "type", MATRIX, **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.markers, model.provenance, model.training, model.history) == (
        ("CD99",),
        {"licence": "mine"},
        False,
        [],
    )
    assert further.config == model.config
    moved = max(float((v - before[k]).abs().max()) for k, v in further.state_dict().items() if v.is_floating_point())
    assert moved > 0


def test_a_training_that_only_spoils_is_not_kept(labelled, scorer, monkeypatch, caplog):
    scores = iter([0.75, 0.5, 0.5])
    monkeypatch.setattr(ScorerTraining, "judge", lambda *_: next(scores))
    model = scorer(2, 2)
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        further = cy.tl.fit_scorer(labelled(), "type", MATRIX, **FAST | {"model": model})
    assert "The training made the scorer worse on the labels held out (F1 0.750 at its start)" in caplog.text
    assert equal(further, model)
    assert (further.provenance["start_f1"], further.provenance["held_out_f1"]) == (0.75, 0.75)


def test_an_interrupted_training_ends_at_the_same_weights(labelled, tmp_path, monkeypatch):
    options = FAST | {"recipe": replace(RECIPE, steps=6)}
    expected = cy.tl.fit_scorer(labelled(), "type", MATRIX, **options)
    loss, calls = ScorerTraining.loss, []

    def interrupted(self: ScorerTraining, views: Any) -> Any:
        calls.append(1)
        found = loss(self, views)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ScorerTraining, "loss", interrupted)
        with pytest.raises(
            KeyboardInterrupt, match=r"interrupted at step 4 of 6\. Run again with the same checkpoint_dir"
        ):
            cy.tl.fit_scorer(labelled(), "type", MATRIX, checkpoint_dir=tmp_path, **options)
    resumed = cy.tl.fit_scorer(labelled(), "type", MATRIX, checkpoint_dir=tmp_path, **options)
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    assert resumed.provenance == expected.provenance
    other = labelled()
    other["table"].obs["type"] = other["table"].obs["type"].cat.rename_categories({"B": "T", "T": "B"})
    with pytest.raises(ValueError, match="it began from other weights or data"):
        cy.tl.fit_scorer(other, "type", MATRIX, checkpoint_dir=tmp_path, **options)


def test_it_learns_what_is_positive(labelled):
    """In a few steps on a tissue without difficulties."""
    train, test = labelled(n_side=8, seed=1), labelled(n_side=5, seed=2)
    recipe = replace(
        SCORER_RECIPE, steps=40, batch_size=4, tile_px=32, learning_rate=1e-2, judge_every=10, to_start=0.0
    )
    model = cy.tl.fit_scorer(train, "type", MATRIX, model=NimbusConfig(4, 2), recipe=recipe, pixel_size=1.0)
    assert model.provenance["held_out_f1"] > 0.9
    cy.tl.score_markers(test, model, pixel_size=1.0)
    scores, t = test["table"].obsm["nimbus_positivity"], (test["table"].obs["type"] == "T").to_numpy()
    assert scores["CD3"][t].min() > scores["CD3"][~t].max()
    assert scores["CD20"][~t].min() > scores["CD20"][t].max()


# --- what it learns from ---


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training would be given, without the training."""
    found: dict[str, Any] = {}

    def fit(training: ScorerTraining, tiles: Any, recipe: Any, **arguments: Any) -> None:
        found.update(training=training, tiles=tiles, recipe=recipe, **arguments)

    from cytonym.learning import fit as module

    monkeypatch.setattr(module, "fit", fit)
    return found


def test_labels_reach_the_plots(labelled, seen):
    """Shuffled rows, a cell without a type, one that the table lacks, rows of nowhere."""
    sdata = labelled()
    table = sdata["table"]
    table.obs.loc[table.obs["instance_id"] == 7, "type"] = np.nan
    keep = np.random.default_rng(0).permutation(24)
    del sdata.tables["table"]
    sdata["table"] = table[keep].copy()  # without cell 25
    cy.tl.fit_scorer(sdata, "type", MATRIX, **FAST)
    [plot] = seen["tiles"].plots
    assert plot.keys.tolist() == [0, 1]
    assert plot.activity.shape == (20, 2)  # of the cells that are not held out
    expected = np.array([[1, 0] if i % 2 else [0, 1] for i in range(1, 26)])
    expected[6] = 2
    np.testing.assert_array_equal(plot.activity, expected[:20])
    assert plot.rows.shape == (48, 60)  # the last fifth of the rows is held out
    assert len(seen["training"].validation) == 2 * 3  # tiles of 16 pixels that have labelled cells
    assert seen["training"].config_dict() == {"filters": 2, "depth": 2, "pixel_size": 1.0, "quantile": 0.999}
    assert seen["seed"] == 0


def test_labels_of_cells_instead_of_types(labelled, seen):
    sdata = labelled()
    t = (sdata["table"].obs["type"] == "T").to_numpy()
    frame = pd.DataFrame({"CD3": t.astype(float), "CD20": np.nan}, index=sdata["table"].obs_names)
    frame.loc[frame.index[3], "CD3"] = np.nan
    sdata["table"].obsm["truth"] = frame
    model = cy.tl.fit_scorer(sdata, marker_labels="truth", **FAST)
    [plot] = seen["tiles"].plots
    assert plot.keys.tolist() == [0]
    np.testing.assert_array_equal(plot.activity[:, 0], np.where(np.arange(20) == 3, 2, t[:20]))
    assert model.markers == ("CD3",)


def test_markers_with_labels_of_one_kind_are_left_out(labelled, seen, caplog):
    matrix = MATRIX.assign(DNA=[1, 1])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        model = cy.tl.fit_scorer(labelled(), "type", matrix, **FAST)
    assert "Markers with labels of one kind only, left out: ['DNA']." in caplog.text
    assert model.markers == ("CD3", "CD20")


def test_several_samples_with_different_panels(labelled, seen, caplog):
    """One matrix for all of them; each (data set, marker) is a key of its own."""
    other = labelled(n_side=4, seed=2, markers=["CD20", "CD8", "CD3"], names=("image2", "cells2"))
    other["table"].obs["type"] = pd.Categorical(np.where(other["table"].obs["type"] == "T", "T", "B"))
    matrix = MATRIX.assign(CD8=[0, 1])
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        model = cy.tl.fit_scorer([labelled(), other], "type", matrix, **FAST)
    assert caplog.text == ""
    assert model.markers == ("CD3", "CD20", "CD8")
    assert model.provenance["images"] == ["image", "image2"]
    plots = {p.keys.tolist()[0]: p for p in seen["tiles"].plots}
    assert sorted(p.keys.tolist() for p in plots.values()) == [[0, 1], [2, 3, 4]]
    assert len(seen["training"].quantiles) == 5


def test_a_fifth_of_many_images_is_held_out_whole(labelled, seen):
    samples = [labelled(n_side=3, seed=i) for i in range(6)]
    cy.tl.fit_scorer(samples, "type", MATRIX, **FAST)
    plots = seen["tiles"].plots
    assert [p.rows.shape for p in plots] == [(36, 36)] * 5
    assert len(seen["training"].validation) == 9 * 2
    held_out = {int(t[0, 4, 0, 0]) // 2 for t in seen["training"].validation}
    assert len(held_out) == 1
    assert held_out.isdisjoint({int(p.keys[0]) // 2 for p in plots})


def test_a_marker_that_is_positive_at_the_bottom_only(labelled, seen):
    """What is held out is not all that is positive."""
    sdata = labelled(n_side=9)
    table = sdata["table"]
    t, bottom = (table.obs["type"] == "T").to_numpy(), table.obsm["spatial"][:, 1] > 88
    table.obsm["truth"] = pd.DataFrame({"CD3": np.where(t & ~bottom, np.nan, t)}, index=table.obs_names)
    cy.tl.fit_scorer(sdata, marker_labels="truth", **FAST)
    shown = [p.activity[np.unique(p.rows[p.rows >= 0]), 0] for p in seen["tiles"].plots]
    assert {0, 1} <= set(np.concatenate(shown))
    assert seen["training"].validation


def test_several_elements_of_one_image(labelled, seen):
    """Cells of one are not between those of the other."""
    sdata = labelled()
    labels = np.asarray(sdata["cells"])
    for name, mine in (("left", labels <= 12), ("right", labels > 12)):
        sdata[name] = Labels2DModel.parse(np.where(mine, labels, 0), dims=("y", "x"))
    obs = sdata["table"].obs
    kinds = obs["type"].to_numpy()
    del sdata.tables["table"]
    cy.pp.measure_cells(sdata, labels_key=["left", "right"])
    table = sdata["table"]
    table.obs["type"] = kinds[table.obs["instance_id"].to_numpy() - 1]
    cy.tl.fit_scorer(sdata, "type", MATRIX, labels_key=["left", "right"], **FAST)
    plots = seen["tiles"].plots
    assert len(plots) == 2
    for plot in plots:
        np.testing.assert_array_equal(plot.rows != -1, labels[:48] > 0)
    assert not ((plots[0].rows >= 0) & (plots[1].rows >= 0)).any()


def test_very_many_tiles_are_not_all_judged(labelled, seen, monkeypatch):
    cy.tl.fit_scorer(labelled(n_side=8), "type", MATRIX, **FAST)
    every = seen["training"].validation
    assert all(((t[0, 2] != 2) & (t[0, 3] > 0)).any() for t in every)
    monkeypatch.setattr(_scorer_parts, "JUDGED_PX", 5 * 16**2)
    some = []
    for _ in range(2):
        cy.tl.fit_scorer(labelled(n_side=8), "type", MATRIX, **FAST)
        some.append(seen["training"].validation)
    assert len(every) > len(some[0]) == 5
    assert all(torch.equal(a, b) for a, b in zip(*some, strict=True))
    assert all(any(torch.equal(a, b) for b in every) for a in some[0])
    monkeypatch.setattr(_scorer_parts, "PLOT_BYTES", 1)
    cy.tl.fit_scorer(labelled(n_side=8), "type", MATRIX, **FAST)
    assert len(seen["tiles"].plots) == 1


def test_options_reach_the_recipe(labelled, seen, scorer):
    options = FAST | {"recipe": None, "model": SMALL}
    cy.tl.fit_scorer(labelled(), "type", MATRIX, steps=7, batch_size=5, robust=False, **options)
    recipe = seen["recipe"]
    assert (recipe.steps, recipe.batch_size, recipe.robust_from, recipe.to_start) == (7, 5, 1.0, 0.0)
    assert (seen["tiles"].steps, seen["tiles"].batch_size, seen["tiles"].size_px) == (7, 5, SCORER_RECIPE.tile_px)
    cy.tl.fit_scorer(labelled(), "type", MATRIX, **options | {"model": scorer(2, 2)})
    assert seen["recipe"] == SCORER_RECIPE
    assert seen["training"].start


def test_points_can_be_learned_from(labelled, seen):
    sdata = labelled()
    table = sdata["table"]
    centers = pd.DataFrame(table.obsm["spatial"], columns=["x", "y"], index=table.obs["instance_id"])
    points = cy.io.from_arrays(np.asarray(sdata["image"]), channels=["DNA", "CD3", "CD20"], centers=centers)
    points["table"].obs["type"] = table.obs["type"].to_numpy()
    cy.tl.fit_scorer(points, "type", MATRIX, diameter_um=6.0, **FAST)
    [plot] = seen["tiles"].plots
    assert 20 < (plot.rows == 0).sum() < 36


def test_brightness_is_that_of_scoring(labelled, seen):
    sdata = labelled()
    cy.tl.fit_scorer(sdata, "type", MATRIX, **FAST)
    from cytonym.data.source import resolve

    sources = resolve(sdata)
    quantile = channel_statistics(sources, quantile=0.999, everywhere=True)["quantile"]
    pixels = np.asarray(sdata["image"])[1:, :48].astype(float) / quantile[1:, None, None]
    [plot] = seen["tiles"].plots
    np.testing.assert_allclose(plot.markers, np.clip(pixels, 0, 1), atol=1e-3)


# --- bad input ---


def fails(error: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=re.escape(message)):
        cy.tl.fit_scorer(*arguments, **FAST | options)


def test_labels_that_do_not_fit(labelled, no_work):
    sdata = labelled()
    fails(ValueError, "No type of `obs['type']` is in the assignment matrix.", sdata, "type", {"Treg": {"CD3": 1}})
    twice = pd.concat([MATRIX, 1 - MATRIX.iloc[:1]])
    fails(ValueError, "several rows for 'T' that contradict each other in ['CD3', 'CD20']", sdata, "type", twice)
    fails(KeyError, "names markers ['CD8'] that the images lack", sdata, "type", MATRIX.assign(CD8=1))
    fails(
        ValueError,
        "Entry 'perhaps' of type 'T' and marker 'CD3' is not understood",
        sdata,
        "type",
        {"T": {"CD3": "perhaps"}},
    )
    fails(KeyError, "No column 'types' in `adata.obs`", sdata, "types", MATRIX)
    fails(FileNotFoundError, "No file 'matrix.csv' with an assignment matrix", sdata, "type", "matrix.csv")
    fails(KeyError, "No 'truth' in `adata.obsm`", sdata, marker_labels="truth")
    one_sided = pd.DataFrame({"CD3": [1, 1], "CD20": [0, 0]}, index=["T", "B"])
    fails(
        ValueError, "No marker has both positive and negative cells among the labelled ones", sdata, "type", one_sided
    )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"label_key": "type"},
        {"assignment": MATRIX},
        {"label_key": "type", "assignment": MATRIX, "marker_labels": "truth"},
        {"label_key": "type", "marker_labels": "truth"},
    ],
)
def test_labels_are_given_in_one_way(labelled, no_work, given):
    fails(
        ValueError,
        "Give cell types and an assignment matrix (`label_key`, `assignment`), or `marker_labels`",
        labelled(),
        **given,
    )


def test_data_that_are_none(labelled, no_work):
    fails(
        TypeError, "`data` must be a SpatialData object or a list with at least one of them, got []", [], "type", MATRIX
    )
    fails(TypeError, "got ['SpatialData', 'str']", [labelled(), "tissue.zarr"], "type", MATRIX)


def test_options_that_cannot_be(labelled, no_work, tissue):
    sdata = labelled()
    for name in ("steps", "batch_size"):
        fails(ValueError, f"`{name}` must be at least 1, got 0", sdata, "type", MATRIX, **{name: 0})
    fails(
        ValueError,
        "`tile_px` must be a multiple of 2, at least 4",
        sdata,
        "type",
        MATRIX,
        recipe=replace(RECIPE, tile_px=17),
    )
    fails(ValueError, "`rng` must be a seed of at least 0", sdata, "type", MATRIX, rng=-1)
    fails(
        TypeError, "`model` must be 'compact', a scorer or the folder of a checkpoint", sdata, "type", MATRIX, model=3
    )
    fails(ValueError, "'compct' is neither 'compact' nor the folder", sdata, "type", MATRIX, model="compct")
    fails(ValueError, "`pixel_size` must be positive", sdata, "type", MATRIX, pixel_size=-1.0)
    fails(KeyError, "No column 'type'", tissue(), "type", MATRIX)
