"""Figures that read pixels: galleries of cells and learned normalisation."""

from __future__ import annotations

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Scale, set_transformation

import cytonym as cy

mpl.use("Agg")


@pytest.fixture
def sdata() -> sd.SpatialData:
    """Nine square cells; cell i has the value 10 i in channel A, 5 in B and nothing in C."""
    pixels = np.zeros((3, 60, 60), np.uint16)
    labels = np.zeros((60, 60), np.int32)
    for i in range(9):
        y, x = 20 * (i // 3) + 7, 20 * (i % 3) + 7
        labels[y : y + 6, x : x + 6] = i + 1
        pixels[0, y : y + 6, x : x + 6] = 10 * (i + 1)
        pixels[1, y : y + 6, x : x + 6] = 5
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["A", "B", "C"])},
        labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))},
    )
    model = cy.models.NeXtMarker.from_statistics(["A", "B", "C"], [60.0, 5.0, 0.0]).eval()
    cy.tl.embed_cells(sdata, model)
    sdata["table"].obs["type"] = pd.Categorical(["odd" if i % 2 else "even" for i in sdata["table"].obs["instance_id"]])
    return sdata


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def not_cut_off(figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.03
    assert drawn.y0 > -0.03
    assert drawn.x1 < width + 0.03
    assert drawn.y1 < height + 0.03


def canvas_of(figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_patches_show_the_cells_with_one_contrast(sdata):
    names = list(sdata["table"].obs_names)
    figure = cy.pl.patches(
        sdata, {"A": "#ff0000", "B": "#0000ff"}, cells=[names[8], names[3]], size_px=10, limits={"A": (0, 100)}
    )
    image = canvas_of(figure)
    assert image.shape == (10, 21, 3)
    assert image[5, 5, 0] == pytest.approx(0.9)  # cell 9 of ten steps
    assert image[5, 16, 0] == pytest.approx(0.4)
    assert image[5, 5, 2] == 1.0
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[5, 10].tolist() == [1, 1, 1]  # the gap
    lines = figure.axes[0].collections[0].get_segments()
    assert len(lines) == 2
    np.testing.assert_allclose([lines[0].min(0), lines[0].max(0)], [[2, 2], [8, 8]])
    not_cut_off(figure)


def test_patches_by_group(sdata):
    figure = cy.pl.patches(sdata, ["A", "B"], groupby="type", n=3, size_px=8)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["even", "odd"]
    assert canvas_of(figure).shape == (17, 26, 3)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["A", "B"]
    assert figure.axes[0].texts[0].get_text() == "2 px"
    not_cut_off(figure)
    again = cy.pl.patches(sdata, ["A", "B"], groupby="type", n=3, size_px=8)
    np.testing.assert_array_equal(canvas_of(again), canvas_of(figure))
    only = cy.pl.patches(sdata, "A", groupby="type", groups=["odd"], n=2, size_px=8)
    assert canvas_of(only).shape == (8, 17, 3)


@pytest.mark.parametrize("n", [1, 4])
def test_long_names_of_groups_are_not_cut_off(sdata, n):
    obs = sdata["table"].obs
    obs["long"] = [f"GERMINAL CENTRE OF A FOLLICLE, MEMORY {word} CELL" for word in obs["type"]]
    figure = cy.pl.patches(sdata, ["A", "B"], groupby="long", n=n, size_px=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert figure.get_tightbbox(canvas.get_renderer()).x0 > 0
    not_cut_off(figure)


def test_patches_scale_bar_and_rim(sdata):
    for element in ("image", "cells"):
        set_transformation(sdata[element], Scale([0.5, 0.5], axes=("x", "y")), "global")
    names = list(sdata["table"].obs_names)
    figure = cy.pl.patches(sdata, ["A"], cells=names[:1], size_um=20.0)
    assert canvas_of(figure).shape == (40, 40, 3)
    assert figure.axes[0].texts[0].get_text() == "10 \N{MICRO SIGN}m"
    image = canvas_of(figure)
    assert (image[:10] == image[0, 0, 0]).all()  # rows beyond the image are grey
    assert 0.5 < image[0, 0, 0] < 1
    assert image[10:, 10:].min() == 0


def test_patches_without_labels_or_table(sdata):
    del sdata.tables["table"], sdata.labels["cells"]
    sdata["centers"] = PointsModel.parse(np.array([[10.0, 10.0], [30.0, 10.0], [-9.0, 4.0]]))
    figure = cy.pl.patches(sdata, ["A"], n=9, size_px=8)
    assert canvas_of(figure).shape == (8, 17, 3)
    assert "table" not in sdata.tables
    np.testing.assert_allclose(canvas_of(figure)[4, 4], to_rgb("white"), atol=0.6)


def test_patches_errors(sdata):
    for arguments, error, message in [
        ({"markers": ["CD8"]}, KeyError, "CD8"),
        ({"markers": []}, ValueError, "0 markers: choose between 1 and 7"),
        ({"markers": ["A"], "groupby": "leiden"}, KeyError, "No column 'leiden'"),
        ({"markers": ["A"], "groupby": "type", "groups": ["x"]}, KeyError, "No group ['x'] among the cells"),
        ({"markers": ["A"], "cells": ["nobody"]}, KeyError, "1 of 1 `cells` are not in the table"),
        ({"markers": ["A"], "cells": ["a"], "groupby": "type"}, ValueError, "give one of the two"),
        ({"markers": ["A"], "n": 0}, ValueError, "`n` must be at least 1"),
        ({"markers": ["A"], "limits": {"B": (0, 1)}}, KeyError, "`limits` names ['B']"),
        ({"markers": ["A"], "limits": {"A": (50, 5)}}, ValueError, "the first below the second, got (50, 5) for 'A'"),
        ({"markers": ["A"], "limits": {"A": (5, 5)}}, ValueError, "the first below the second, got (5, 5) for 'A'"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.patches(sdata, **arguments)


@pytest.mark.parametrize("log", [None, True, False])
@pytest.mark.parametrize("parse_math", [True, False])
def test_normalization_curves(sdata, log, parse_math):
    with mpl.rc_context({"text.parse_math": parse_math}):
        figure = cy.pl.normalization(sdata, log=log)
        figure.canvas.draw()
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == ["A", "B", "C"]
    curve = shown[0].lines[-1]
    x, y = curve.get_data()
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-4 * (2 / 30) * (x - 30))), atol=1e-6)
    assert "all zero" in [t.get_text() for t in shown[2].texts]
    assert shown[0].get_xscale() == ("log" if log else "linear")
    ticks = [label.get_text() for label in shown[0].get_xticklabels()]
    assert ticks
    assert all(float(tick) >= 0 for tick in ticks)  # numbers, not formulas that are shown as they are written
    not_cut_off(figure)


@pytest.mark.parametrize("n", [1, 2])
def test_normalization_of_few_markers(sdata, n):
    figure = cy.pl.normalization(sdata, channels=["A", "B"][:n])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["pixels above zero", "learned sigmoid"]
    not_cut_off(figure)


def test_normalization_of_a_model_and_big_panels(sdata):
    pixels = np.random.default_rng(0).poisson(3.0, (45, 40, 40)).astype(np.uint16)
    names = [f"marker {i}" for i in range(45)]
    sdata.images["image"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=names)
    model = cy.models.NeXtMarker.from_statistics(names[::-1], np.full(45, 5.0))
    figure = cy.pl.normalization(sdata, model)
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == names[::-1]
    not_cut_off(figure)
    with pytest.raises(KeyError, match="No learned marker is a channel of the images"):
        cy.pl.normalization(sdata)


def test_normalization_errors(sdata):
    with pytest.raises(KeyError, match=re.escape("No table 'cells' in sdata.tables. Available: ['table']")):
        cy.pl.normalization(sdata, table_key="cells")
    with pytest.raises(KeyError, match=re.escape("No learned normalisation in `uns['clearit']`")):
        cy.pl.normalization(sdata, key="clearit")
    with pytest.raises(ValueError, match="A model of class 'clearit' learns no normalisation"):
        cy.pl.normalization(sdata, cy.models.ClearIT(["DNA"]))
