"""Figures about labels: how many are needed, and the cells that a classifier is most and least sure of."""

from __future__ import annotations

import itertools
import re

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend
from spatialdata.models import Image2DModel, Labels2DModel

import cytonym as cy

mpl.use("Agg")


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def not_cut_off(figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [figure.get_tightbbox(canvas.get_renderer())]
    for ax in figure.axes:
        boxes += [
            artist.get_window_extent(canvas.get_renderer()).transformed(figure.dpi_scale_trans.inverted())
            for artist in [*ax.texts, *ax.findobj(Legend)]
        ]
    width, height = figure.get_size_inches()
    for drawn in boxes:
        assert drawn.x0 > -0.03
        assert drawn.y0 > -0.03
        assert drawn.x1 < width + 0.03
        assert drawn.y1 < height + 0.03


# ------------------------------------------------------------------------------------------------------- label budget
def budget(numbers=(10, 100, 200, 400), last=0.8, unit="cells", n_draws=5, **attrs) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (
            unit,
            n,
            7 * n if unit == "groups" else n,
            n if unit == "groups" else 3,
            draw,
            last + 0.1 * np.log(n / numbers[-1]),
        )
        for n in numbers
        for draw in range(n_draws)
    ]
    frame = pd.DataFrame(rows, columns=["unit", "fraction", "n_cells", "n_groups", "draw", "macro_f1"])
    frame["ece"] = 1 - frame["macro_f1"]
    frame["macro_f1"] += rng.normal(size=len(frame)) * 0.01
    frame.attrs |= {"model": "logistic", "use_rep": ["X"], "n_test": 1234} | attrs
    return frame


def test_curve_is_the_median_and_the_band_most_draws():
    frame = budget()
    figure = cy.pl.label_budget(frame)
    not_cut_off(figure)
    [ax] = figure.axes
    x, y = ax.lines[0].get_data()
    found = frame.groupby("n_cells")["macro_f1"]
    np.testing.assert_allclose(x, [10, 100, 200, 400])
    np.testing.assert_allclose(y, found.median())
    corners = ax.collections[0].get_paths()[0].vertices
    for n, q in itertools.product(frame["n_cells"].unique(), (0.1, 0.9)):
        edge = found.quantile(q)[n]
        assert np.isclose(corners, [n, edge]).all(axis=1).any()
    assert ax.get_xscale() == "log"
    figure.canvas.draw()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["10", "100", "200", "400"]
    assert ax.get_xlabel() == "labelled cells to learn from"
    assert ax.get_ylabel() == "macro-F1"
    assert ax.get_title(loc="left") == "scored on 1,234 labelled cells kept aside"
    rise = found.median()[400] - found.median()[200]
    assert [t.get_text() for t in ax.texts] == [f"logistic\nlast doubling: {rise:+.3f}"]


def test_curves_that_end_close_together_keep_their_labels_apart():
    ends = [0.8, 0.801, 0.802, 0.5, 0.501, 0.803]
    named = {f"a classifier with a long name {i}": budget(last=end) for i, end in enumerate(ends)}
    figure = cy.pl.label_budget(named)
    not_cut_off(figure)
    [ax] = figure.axes
    boxes = [t.get_window_extent(FigureCanvasAgg(figure).get_renderer()) for t in ax.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert len({t.get_color() for t in ax.texts}) == 6


def test_names_of_curves():
    figure = cy.pl.label_budget(budget(), budget(model="mlp4"))
    assert {t.get_text().split("\n")[0] for t in figure.axes[0].texts} == {"logistic", "mlp4"}
    figure = cy.pl.label_budget(budget(), budget(use_rep=["X", "X_nextmarker"]), budget(use_rep=["X"]))
    assert {t.get_text().split("\n")[0] for t in figure.axes[0].texts} == {
        "logistic: X", "logistic: X, X_nextmarker", "logistic: X (2)",
    }  # fmt: skip


def test_patients_a_score_that_falls_and_a_single_point():
    figure = cy.pl.label_budget(budget((1, 2, 5), unit="groups"), score="ece")
    [ax] = figure.axes
    assert ax.get_xlabel() == "patients to learn from"
    assert ax.get_ylabel() == "calibration error"
    assert "last doubling: \N{MINUS SIGN}0." in ax.texts[0].get_text()
    not_cut_off(figure)
    figure = cy.pl.label_budget(budget((5,)))
    assert figure.axes[0].texts[0].get_text() == "logistic"
    not_cut_off(figure)


def test_label_budget_errors():
    for budgets, keywords, error, message in [
        ([], {}, ValueError, "0 budgets: give between 1 and 6"),
        ([budget()] * 7, {}, ValueError, "7 budgets: give between 1 and 6"),
        ([budget(), budget(unit="groups")], {}, ValueError, "Some of the curves are over cells and some over groups"),
        (
            [budget()],
            {"score": "auroc"},
            KeyError,
            "No score 'auroc' in the budget of ['logistic']. Available: ['macro_f1', 'ece']",
        ),
        ([{"mine": pd.DataFrame({"x": [1]})}], {}, ValueError, "Budget 'mine' must be what `tl.label_budget` returns"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.label_budget(*budgets, **keywords)


def test_of_a_real_budget():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        rng.normal(size=(80, 2)).astype("f4"), obs=pd.DataFrame({"type": ["a", "b"] * 40}, index=map(str, range(80)))
    )
    figure = cy.pl.label_budget(cy.tl.label_budget(adata, "type", fractions=[0.2, 1.0], n_draws=2))
    assert figure.axes[0].texts[0].get_text().startswith("logistic\nlast doubling: ")


# --------------------------------------------------------------------------------------------------------- confidence
SIDE, GAP = 8, 1


@pytest.fixture
def sdata() -> sd.SpatialData:
    """36 square cells in rows of six. Cell i has the brightness i in CD3, all have the same in DNA; called by brightness."""
    pixels, labels = np.zeros((3, 120, 120), np.uint16), np.zeros((120, 120), np.int32)
    for i in range(36):
        y, x = 20 * (i // 6) + 7, 20 * (i % 6) + 7
        labels[y : y + 6, x : x + 6] = i + 1
        pixels[0, y : y + 6, x : x + 6] = 10
        pixels[1, y : y + 6, x : x + 6] = i + 1
        pixels[2, y : y + 6, x : x + 6] = 36 - i
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["DNA", "CD3", "CD20"])},
        labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))},
    )
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    p = (table.obs["instance_id"].to_numpy() - 0.5) / 36  # rises with the number of the cell
    table.obsm["phenotype_proba"] = pd.DataFrame({"T/NK": p, "B": 1 - p}, index=table.obs_names).astype("f4")
    truth = np.where(p > 0.5, "T/NK", "B").astype(object)
    truth[[0, 17, 35]] = ["T/NK", "T/NK", None]
    table.obs["label"] = pd.Categorical(truth)
    return sdata


def strips(figure) -> dict[str, int]:
    """Label of each row of patches -> height at which it is."""
    ax = figure.axes[0]
    return {t.get_text(): int(y) for t, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}


def brightness(figure, y: int, n: int, least: bool, channel: int) -> list[int]:
    """Value of a channel of the cells in one strip, by the colour in the middle of each patch."""
    image = np.asarray(figure.axes[0].images[0].get_array())
    step = SIDE + GAP
    start = (n * step + round(0.8 * SIDE)) if least else 0
    return [round(float(image[y, start + k * step + SIDE // 2, channel]) * 36) for k in range(n)]


def test_strips_hold_the_most_and_the_least_confident_cells_of_each_outcome(sdata):
    keywords = {"n": 3, "from_top": 3, "size_px": SIDE, "limits": {"CD3": (0, 36)}}
    figure = cy.pl.confidence(sdata, {"CD3": "#ff0000"}, classes=["T/NK"], **keywords)
    not_cut_off(figure)
    rows = strips(figure)
    assert list(rows) == ["TP  17", "TN  16", "FP  0", "FN  2"]  # cell 36 has no label
    assert brightness(figure, rows["TP  17"], 3, False, 0) == [35, 34, 33]
    assert brightness(figure, rows["TP  17"], 3, True, 0) == [21, 20, 19]
    assert brightness(figure, rows["TN  16"], 3, False, 0) == [2, 3, 4]
    assert brightness(figure, rows["TN  16"], 3, True, 0) == [15, 16, 17]
    assert brightness(figure, rows["FP  0"], 3, False, 0) == [36] * 3  # white: nothing there
    assert brightness(figure, rows["FN  2"], 3, False, 0) == [1, 36, 36]  # no cell is in both halves
    assert brightness(figure, rows["FN  2"], 3, True, 0) == [18, 36, 36]
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert "most confident" in texts
    assert "least confident" in texts
    assert "T/NK" in texts
    assert "0.96\n0.90" in texts  # the first and the last of the most confident true positives
    assert texts.count("none") == 2
    assert len(figure.axes[0].collections[0].get_segments()) == 14  # an outline for each cell

    other = cy.pl.confidence(
        sdata, {"CD3": "#ff0000"}, **keywords
    )  # the other class is the same question the other way round
    assert list(strips(other))[:4] == list(rows)
    assert [t.get_text() for t in other.axes[0].get_yticklabels()] == [*rows, "TP  16", "TN  17", "FP  2", "FN  0"]
    not_cut_off(other)


def test_draws_are_of_those_at_the_ends(sdata):
    keywords = {
        "markers": {"CD3": "#ff0000"},
        "classes": ["T/NK"],
        "n": 2,
        "from_top": 5,
        "size_px": SIDE,
        "limits": {"CD3": (0, 36)},
    }
    found = set()
    for rng in range(8):
        figure = cy.pl.confidence(sdata, rng=rng, **keywords)
        drawn = tuple(brightness(figure, strips(figure)["TP  17"], 2, False, 0))
        assert set(drawn) <= {35, 34, 33, 32, 31}
        assert drawn[0] > drawn[1]
        found.add(drawn)
    assert len(found) > 3
    again = cy.pl.confidence(sdata, rng=7, **keywords)
    np.testing.assert_array_equal(again.axes[0].images[0].get_array(), figure.axes[0].images[0].get_array())


def legends(figure) -> list[list[str]]:
    found = sorted(figure.axes[0].findobj(Legend), key=lambda item: item.get_bbox_to_anchor().y0, reverse=True)
    return [[t.get_text() for t in legend.get_texts()] for legend in found]


def test_markers_of_each_class(sdata):
    figure = cy.pl.confidence(sdata, n=2, size_px=SIDE)  # chosen by the labelled cells' intensities
    assert legends(figure) == [["DNA", "CD3"], ["DNA", "CD20"]]
    not_cut_off(figure)
    figure = cy.pl.confidence(sdata, ["CD3", "DNA"], n=2, size_px=SIDE)  # said once
    assert legends(figure) == [["CD3", "DNA"]]
    figure = cy.pl.confidence(sdata, {"B": ["CD20"], "T/NK": ["CD3", "DNA"]}, classes=["B", "T/NK"], n=2, size_px=SIDE)
    assert legends(figure) == [["CD20"], ["CD3", "DNA"]]


def test_only_cells_of_the_test(sdata):
    sdata["table"].obs["kept"] = sdata["table"].obs["instance_id"] > 30
    figure = cy.pl.confidence(sdata, "CD3", test="kept", n=2, size_px=SIDE)
    assert list(strips(figure))[:4] == ["TP  5", "TN  0", "FP  0", "FN  0"]


def test_several_labels_a_cell(sdata):
    table = sdata["table"]
    table.obsm["phenotype_proba"].columns = ["CD3", "CD20"]
    table.obsm["phenotype_proba"]["CD20"] = np.float32(0.5)
    table.uns["phenotype"] = {"params": {"multilabel": True}, "thresholds": np.array([0.75, 0.5])}
    truth = pd.DataFrame({"CD20": 1.0, "CD3": (np.arange(36) >= 20).astype(float)}, index=table.obs_names)
    truth.iloc[0] = np.nan
    table.obsm["truth"] = truth
    figure = cy.pl.confidence(sdata, label_key="truth", n=2, size_px=SIDE)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["TP  9", "TN  19", "FP  0", "FN  7", "TP  0", "TN  0", "FP  0", "FN  35"]
    assert legends(figure) == [["DNA", "CD3"], ["DNA", "CD20"]]  # the class's own channel comes first
    table.obs = table.obs.join(truth)
    same = cy.pl.confidence(sdata, label_key=["CD20", "CD3"], n=2, size_px=SIDE)
    assert [t.get_text() for t in same.axes[0].get_yticklabels()] == labels
    with pytest.raises(KeyError, match=re.escape("['CD3'] lacks the classes ['CD20'], which the classifier tells")):
        cy.pl.confidence(sdata, label_key=["CD3"])


def test_names_that_a_store_cannot_hold(sdata):
    table = sdata["table"]
    table.obsm["phenotype_proba"].columns = ["T_NK", "B"]
    table.uns["marker_names"] = {"phenotype_proba": {"T_NK": "T/NK"}}
    figure = cy.pl.confidence(sdata, "CD3", classes=["T/NK"], n=2, size_px=SIDE)
    assert list(strips(figure))[0] == "TP  17"


def test_after_classify_cells(sdata):
    cy.tl.classify_cells(sdata["table"], "label")
    figure = cy.pl.confidence(sdata, n=12, size_px=SIDE)
    not_cut_off(figure)
    assert figure.axes[0].get_title() == ""


def test_confidence_errors(sdata):
    table = sdata["table"]
    table.obs["kept"] = "yes"
    for arguments, error, message in [
        ({"table_key": "cells"}, KeyError, "No table 'cells' in `sdata.tables`. Available: ['table']"),
        (
            {"key": "maps"},
            KeyError,
            "No DataFrame 'maps_proba' in `obsm` of the table. Available: ['phenotype_proba', 'spatial']",
        ),
        ({"label_key": "expert"}, KeyError, "No column 'expert' in `adata.obs`"),
        ({"label_key": ["a", "b"]}, ValueError, "`label_key` must name one column of `obs`, got ['a', 'b']"),
        ({"classes": ["NK"]}, KeyError, "No class ['NK'] in `obsm['phenotype_proba']`. Available: ['T/NK', 'B']"),
        ({"markers": ["CD8"]}, KeyError, "CD8"),
        ({"markers": {"B": ["CD20"]}}, KeyError, "`markers` names no channels for the classes ['T/NK']. It has ['B']"),
        ({"markers": [f"m{i}" for i in range(8)]}, ValueError, "8 markers: choose between 1 and 7"),
        ({"n": 0}, ValueError, "`n` and `from_top` must be at least 1, got 0 and 100"),
        ({"test": "held"}, KeyError, "No column 'held' in `adata.obs`"),
        ({"test": "kept"}, ValueError, "`obs['kept']` must be True or False for each cell"),
        ({"limits": {"CD8": (0, 1)}}, KeyError, "`limits` names ['CD8'], which are not among the markers shown"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.confidence(sdata, **arguments)
    table.obs["kept"] = False
    with pytest.raises(
        ValueError,
        match=re.escape(
            "No cell to show: of 36 cells 0 have a probability in 'phenotype_proba' and a label in 'label'"
        ),
    ):
        cy.pl.confidence(sdata, test="kept")
    sdata.tables["table"] = table[:, :0].copy()
    with pytest.raises(ValueError, match="The table has no mean intensities to choose markers by"):
        cy.pl.confidence(sdata)
