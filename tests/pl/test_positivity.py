"""Panels of marker positivity: the pixels, scores and calls that are drawn, in every shape of cells and size of image."""

from __future__ import annotations

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgb
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Scale, set_transformation

import cytonym as cy
from cytonym.data.elements import centers_element
from cytonym.data.names import with_storable_columns
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.pl._scores import COLORS, call_by_score
from cytonym.pl._view import choose_box

mpl.use("Agg")
MARKERS = ["A", "B", "C/D"]
SCORES = np.linspace(0.1, 0.9, 9)


def pixels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Nine square cells of 6 x 6 pixels; cell i has the value 10 i in channel A, 5 in B and nothing in C/D."""
    pixels, labels = np.zeros((3, 60, 60), np.uint16), np.zeros((60, 60), np.int32)
    for i in range(9):
        y, x = 20 * (i // 3) + 7, 20 * (i % 3) + 7
        labels[y : y + 6, x : x + 6] = i + 1
        pixels[0, y : y + 6, x : x + 6] = 10 * (i + 1)
        pixels[1, y : y + 6, x : x + 6] = 5
    return pixels, labels


def with_scores(sdata: sd.SpatialData) -> sd.SpatialData:
    """Scores rise with the id in A, fall in B and are the same in C/D; the table is in another order than the cells."""
    rows = open_table(sdata, resolve(sdata))
    table = rows.write()
    table = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    sdata.tables["table"] = table
    ids = table.obs["instance_id"].to_numpy() - 1
    frame = pd.DataFrame({"A": SCORES[ids], "B": SCORES[::-1][ids], "C/D": 0.5}, index=table.obs_names).astype("f4")
    table.obsm["nimbus_positivity"] = with_storable_columns(frame, "nimbus_positivity", table.uns)
    table.obsm["nimbus_uncertainty"] = with_storable_columns(frame * (1 - frame), "nimbus_uncertainty", table.uns)
    return sdata


@pytest.fixture
def sdata() -> sd.SpatialData:
    pixels, labels = pixels_and_labels()
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=MARKERS)
    return with_scores(
        sd.SpatialData(images={"image": image}, labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))})
    )


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


def painted(ax) -> np.ndarray:
    """Numbers on the pixels of a panel, NaN beside the cells."""
    [image] = [i for i in ax.images if i.get_array().ndim == 2]
    return np.ma.filled(image.get_array().astype(float), np.nan)


def colors_in(ax, y: slice, x: slice) -> set[tuple[int, ...]]:
    """Colours of lines in a part of the image [y, x]."""
    canvas = np.asarray(ax.images[0].get_array())
    zoom = len(canvas) // 60
    part = canvas[y.start * zoom : y.stop * zoom, x.start * zoom : x.stop * zoom].reshape(-1, 3)
    return {tuple(int(v) for v in c) for c in np.unique(part, axis=0) if len(set(c.tolist())) > 1}


def rgb(color: str) -> tuple[int, ...]:
    return tuple(round(255 * v) for v in to_rgb(color))


def texts(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def test_the_numbers_drawn_are_the_numbers_given(sdata):
    pixels, labels = pixels_and_labels()
    before = sdata["table"].copy()
    figure = cy.pl.positivity(sdata, "A", uncertainty=True)
    image, score, call, spread, *_ = figure.axes
    assert [ax.get_title(loc="left") for ax in (image, score, call, spread)] == [
        "image",
        "score",
        "call",
        "uncertainty",
    ]
    white = np.quantile(pixels[0], 0.999)
    np.testing.assert_allclose(image.images[0].get_array(), np.clip(pixels[0] / white, 0, 1), rtol=1e-6)
    expected = np.where(labels > 0, SCORES[labels - 1], np.nan)
    np.testing.assert_allclose(painted(score), expected, rtol=1e-6)
    np.testing.assert_allclose(painted(spread), expected * (1 - expected), rtol=1e-6)
    assert score.images[0].get_clim() == (0, 1)
    assert spread.images[0].get_clim() == (0, 0.25)
    for i in range(9):  # two negative, five undecided, two positive
        y, x = 20 * (i // 3), 20 * (i % 3)
        kind = 0 if SCORES[i] < 0.25 else 2 if SCORES[i] >= 0.75 else 1
        assert colors_in(call, slice(y, y + 20), slice(x, x + 20)) == {rgb(COLORS[kind])}
        assert colors_in(call, slice(y + 9, y + 11), slice(x + 9, x + 11)) == set()  # the inside is free
    assert call.get_title(loc="right") == "2 of 9 positive"
    assert image.get_title(loc="right") == f"white from {white:.3g}"
    assert [t.get_text() for t in call.get_legend().get_texts()] == ["positive", "negative", "undecided"]
    limits = {(ax.get_xlim(), ax.get_ylim()) for ax in (image, score, call, spread)}
    assert limits == {((0, 60), (60, 0))}
    assert "10 px" in texts(figure)
    assert not [t for t in texts(figure) if t.startswith("rows")]
    assert list(sdata["table"].obsm) == list(before.obsm)
    assert list(sdata["table"].obs) == list(before.obs)
    not_cut_off(figure)


def test_rows_of_markers_and_their_order(sdata):
    figure = cy.pl.positivity(sdata, ["C/D", "B"], limits={"B": (1, 9)})
    panels = figure.axes[:6]
    assert [panels[0].get_ylabel(), panels[3].get_ylabel()] == ["C/D", "B"]
    _, labels = pixels_and_labels()
    np.testing.assert_allclose(painted(panels[4]), np.where(labels > 0, SCORES[::-1][labels - 1], np.nan), rtol=1e-6)
    np.testing.assert_allclose(np.unique(panels[3].images[0].get_array()), [0, 0.5])
    assert panels[0].get_title(loc="right") == "all zero"
    assert panels[2].get_title(loc="right") == "0 of 9 positive"
    not_cut_off(figure)


@pytest.mark.parametrize(
    ("n", "shape"),
    [(1, (60, 60)), (1, (40, 200)), (1, (200, 40)), (3, (60, 60)), (3, (40, 200)), (12, (60, 60)), (25, (200, 40))],
)
def test_nothing_is_cut_off_or_on_top_of_each_other(n, shape):
    names = [f"marker {i}" for i in range(n - 1)] + ["a marker with a long name"]
    labels = np.zeros(shape, int)
    labels[5:15, 5:15] = 1
    sdata = cy.io.from_arrays(np.ones((n, *shape)), labels, channels=names)
    table = open_table(sdata, resolve(sdata)).write()
    table.obsm["nimbus_positivity"] = pd.DataFrame(0.3, index=table.obs_names, columns=names)
    figure = cy.pl.positivity(sdata, names, crop=(0, shape[0] - 1, 0, shape[1]))
    not_cut_off(figure)
    panels = figure.axes[: 3 * n]
    boxes = np.array([ax.get_tightbbox(for_layout_only=True).extents for ax in panels])
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        others = np.delete(boxes, i, axis=0)
        apart = (others[:, 0] > x1 - 2) | (others[:, 2] < x0 + 2) | (others[:, 1] > y1 - 2) | (others[:, 3] < y0 + 2)
        assert apart.all()
    width, height = figure.get_size_inches()
    assert max(width, height) < 30


def test_crop(sdata):
    pixels, labels = pixels_and_labels()
    figure = cy.pl.positivity(sdata, "A", crop=(20, 40, 5, 60))
    image, score, call, *_ = figure.axes
    np.testing.assert_allclose(
        image.images[0].get_array(),
        np.clip(pixels[0, 20:40, 5:] / np.quantile(pixels[0, 20:40, 5:], 0.999), 0, 1),
        rtol=1e-6,
    )
    np.testing.assert_allclose(painted(score), np.where(labels > 0, SCORES[labels - 1], np.nan)[20:40, 5:], rtol=1e-6)
    assert (image.get_xlim(), image.get_ylim()) == ((5, 60), (40, 20))
    assert tuple(image.images[0].get_extent()) == (5, 60, 40, 20)
    assert call.get_title(loc="right") == "0 of 3 positive"
    assert "rows 20 to 40, columns 5 to 60 of an image of 60 x 60 pixels" in texts(figure)
    not_cut_off(figure)


def test_scores_at_the_cuts_are_called_as_by_call_markers():
    scores = np.array([0.2, 0.25, 0.3, 0.7, 0.6, np.nan], np.float32).astype(
        np.float64
    )  # 0.7 is a little less as float32
    assert call_by_score(scores, (0.7, 0.7)).tolist() == [0, 0, 0, 2, 0, -1]
    assert call_by_score(scores, (0.2, 0.6)).tolist() == [1, 1, 1, 2, 2, -1]


def test_cuts_keys_and_no_calls(sdata):
    table = sdata["table"]
    one = cy.pl.positivity(sdata, "A", calls=0.5)
    assert one.axes[2].get_title(loc="right") == "5 of 9 positive"  # 0.5 is positive
    assert [t.get_text() for t in one.axes[2].get_legend().get_texts()] == ["positive", "negative"]
    ids = table.obs["instance_id"].to_numpy()
    for value, other in ((1, 0), ("positive", "negative"), (True, False)):
        frame = pd.DataFrame({"C/D": [value if i == 4 else other for i in ids]}, index=table.obs_names)
        table.obsm["gates"] = with_storable_columns(frame, "gates", table.uns)
        figure = cy.pl.positivity(sdata, "C/D", calls="gates")
        assert figure.axes[2].get_title(loc="right") == "1 of 9 positive"
        assert colors_in(figure.axes[2], slice(20, 40), slice(0, 20)) == {rgb(COLORS[2])}
        assert colors_in(figure.axes[2], slice(40, 60), slice(0, 20)) == {rgb(COLORS[0])}
    for open_ in (np.nan, -1):
        table.obsm["gates"] = pd.DataFrame({"A": [open_ if i == 4 else 0 for i in ids]}, index=table.obs_names)
        figure = cy.pl.positivity(sdata, "A", calls="gates")
        assert colors_in(figure.axes[2], slice(20, 40), slice(0, 20)) == {rgb(COLORS[1])}
        assert figure.axes[2].get_title(loc="right") == "0 of 9 positive"
    figure = cy.pl.positivity(sdata, "A", calls=None)
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["image", "score", "score"]
    for i in (0, 8):
        place = slice(20 * (i // 3), 20 * (i // 3) + 20), slice(20 * (i % 3), 20 * (i % 3) + 20)
        expected = tuple(round(255 * v) for v in mpl.colormaps["viridis"](np.float32(SCORES[i]))[:3])
        assert colors_in(figure.axes[2], *place) == {expected}


def test_cells_without_scores_are_grey(sdata):
    table = sdata["table"]
    row = table.obs["instance_id"].to_numpy() == 5
    table.obsm["nimbus_positivity"].loc[row, "A"] = np.nan
    sdata.tables["table"] = table[table.obs["instance_id"] != 6].copy()  # and one that the table lacks
    figure = cy.pl.positivity(sdata, "A")
    _, score, call, *_ = figure.axes
    assert np.isnan(painted(score)[30, 30])
    gray = np.asarray(score.images[0].get_array())
    np.testing.assert_allclose(gray[30, 30], [*to_rgb(COLORS[-1]), 1])
    np.testing.assert_allclose(gray[30, 50], [*to_rgb(COLORS[-1]), 1])
    assert gray[10, 10, 3] == gray[0, 0, 3] == 0
    assert call.get_title(loc="right") == "2 of 7 positive"
    assert "no score" in [t.get_text() for t in call.get_legend().get_texts()]
    table = sdata["table"]
    table.obsm["nimbus_positivity"]["A"] = np.nan
    both = cy.pl.positivity(sdata, ["A", "B"])
    assert both.axes[2].get_title(loc="right") == "no scores"
    with pytest.raises(ValueError, match=re.escape("No cell with a score for these markers in rows 0 to 60")):
        cy.pl.positivity(sdata, "A")


@pytest.mark.parametrize("kind", ["shapes", "points"])
def test_centres(sdata, kind):
    ids = np.arange(1, 10)
    points = np.column_stack([20.0 * ((ids - 1) % 3) + 10, 20.0 * ((ids - 1) // 3) + 10])
    points[8] = 70, 50  # outside the image
    del sdata.labels["cells"], sdata.tables["table"]
    if kind == "shapes":
        sdata["centers"] = centers_element(points, ids)
    else:
        frame = pd.DataFrame(points, columns=["x", "y"], index=ids)
        sdata["centers"] = PointsModel.parse(frame)
    with_scores(sdata)
    sdata["table"].obsm["nimbus_positivity"].loc[sdata["table"].obs["instance_id"].to_numpy() == 2, "A"] = np.nan
    figure = cy.pl.positivity(sdata, "A", uncertainty=True)
    missing, discs = (c for c in figure.axes[1].collections if isinstance(c, EllipseCollection))
    np.testing.assert_allclose(discs.get_offsets(), points[[0, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_allclose(discs.get_array(), SCORES[[0, 2, 3, 4, 5, 6, 7]], rtol=1e-6)
    assert discs.get_clim() == (0, 1)
    np.testing.assert_allclose(missing.get_offsets(), points[[1]])
    [rings] = [c for c in figure.axes[2].collections if isinstance(c, EllipseCollection)]
    places = {tuple(p): tuple(c[:3]) for p, c in zip(rings.get_offsets().tolist(), rings.get_edgecolors(), strict=True)}
    for i in range(8):
        kind_of = -1 if i == 1 else 0 if SCORES[i] < 0.25 else 2 if SCORES[i] >= 0.75 else 1
        np.testing.assert_allclose(places[tuple(points[i])], to_rgb(COLORS[kind_of]))
    assert figure.axes[2].get_title(loc="right") == "1 of 7 positive"
    not_cut_off(figure)


def test_discs_have_their_size_in_the_image(sdata):
    sdata["centers"] = centers_element([[10.0, 10.0], [50.0, 30.0]], [1, 2])
    del sdata.labels["cells"], sdata.tables["table"]
    for element in ("image", "centers"):
        set_transformation(sdata[element], Scale([0.5, 0.5], axes=("x", "y")), "global")
    with_scores(sdata)
    figure = cy.pl.positivity(sdata, "A")
    ax = figure.axes[2]
    FigureCanvasAgg(figure).draw()
    [rings] = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    unit = (rings.get_transform() - ax.transData).transform([[0.0, 0.0], [1.0, 0.0]])
    assert np.diff(unit[:, 0]) * rings.get_transforms()[0][0, 0] == pytest.approx(8)  # 4 micrometres
    np.testing.assert_allclose(rings.get_offsets(), [[10, 10], [50, 30]])
    assert "5 \N{MICRO SIGN}m" in texts(figure)


def test_labels_on_another_grid_than_the_image():
    pixels, labels = pixels_and_labels()
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=MARKERS)},
        labels={"cells": Labels2DModel.parse(labels.repeat(2, 0).repeat(2, 1), dims=("y", "x"))},
    )
    set_transformation(sdata["cells"], Scale([0.5, 0.5], axes=("x", "y")), "global")
    figure = cy.pl.positivity(with_scores(sdata), "A")
    np.testing.assert_allclose(painted(figure.axes[1]), np.where(labels > 0, SCORES[labels - 1], np.nan), rtol=1e-6)


def large(height: int, width: int, corner: tuple[int, int], *, scored: bool = True) -> sd.SpatialData:
    """One cell of 100 x 100 pixels in a large dark image."""
    labels = np.zeros((height, width), np.int32)
    y, x = corner
    labels[y : y + 100, x : x + 100] = 1
    image = (np.arange(width) % 7 + np.arange(height)[:, None] % 5).astype("f4")[None]
    sdata = cy.io.from_arrays(image, labels, channels=["A"])
    table = open_table(sdata, resolve(sdata)).write()
    table.obsm["nimbus_positivity"] = pd.DataFrame({"A": 0.5 if scored else np.nan}, index=table.obs_names)
    return sdata


def test_a_large_image_is_shown_in_part():
    figure = cy.pl.positivity(large(2100, 3000, (1000, 1400)), "A")
    ax = figure.axes[0]
    assert (ax.get_xlim(), ax.get_ylim()) == ((476, 2524), (2074, 26))
    assert "rows 26 to 2,074, columns 476 to 2,524 of an image of 2,100 x 3,000 pixels" in texts(figure)
    assert ax.images[0].get_array().shape == (2048, 2048)
    aside = cy.pl.positivity(large(2100, 3000, (1000, 2850)), "A")  # no scored cell at the centre
    assert aside.axes[0].get_xlim() == (952, 3000)
    with pytest.raises(ValueError, match=re.escape("1 cells there, 0 scored cells in image")):
        cy.pl.positivity(large(2100, 3000, (1000, 1400), scored=False), "A")


def test_where_a_large_image_is_cut():
    assert choose_box((2048, 10), None, np.empty((0, 2))) == (0, 2048, 0, 10)
    assert choose_box((4000, 5000), None, np.empty((0, 2))) == (976, 3024, 1476, 3524)
    assert choose_box((4000, 5000), None, np.array([[1000.0, 3000], [10, 10]])) == (976, 3024, 1476, 3524)
    far = np.array([[3900.0, 2500], [10, 2500], [2000, 9]])
    assert choose_box((4000, 5000), None, far) == (1952, 4000, 1476, 3524)  # the nearest
    assert choose_box((4000, 5000), None, far[::-1]) == (1952, 4000, 1476, 3524)
    assert choose_box((4000, 5000), (0, 4000, 7, 8), far) == (0, 4000, 7, 8)


def test_a_large_crop_is_averaged(monkeypatch):
    sdata = large(2100, 4500, (1000, 1400))
    monkeypatch.setattr("cytonym.pl._view.AT_ONCE", 2**20)  # read in many pieces
    figure = cy.pl.positivity(sdata, "A", crop=(1, 2100, 0, 4500), limits={"A": (0, 10)})
    pixels, labels = np.asarray(sdata["image"].data[0])[1:], np.asarray(sdata["cells"].data)[1:]
    drawn, score = figure.axes[0].images[0].get_array(), painted(figure.axes[1])
    assert drawn.shape == score.shape == (700, 1500)
    assert tuple(figure.axes[0].images[0].get_extent()) == (0, 4500, 2101, 1)
    for i, j in [(0, 0), (10, 1499), (333, 500), (699, 3)]:  # the last row holds two rows of pixels
        part = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
        assert drawn[i, j] == pytest.approx(pixels[part].mean() / 10, rel=1e-5)
        assert np.isnan(score[i, j]) == (labels[min(3 * i + 1, 2098), 3 * j + 1] == 0)
    assert np.isfinite(score).sum() == pytest.approx(100 * 100 / 9, rel=0.05)


def test_one_of_several_images():
    parts = [cy.datasets.tissue_phantom(n_cells=20, size_px=60, n_samples=2)]
    [sdata] = parts
    table = sdata["table"]
    table.obsm["nimbus_positivity"] = pd.DataFrame({"CD3": np.linspace(0, 1, table.n_obs)}, index=table.obs_names)
    with pytest.raises(
        ValueError, match=re.escape("One image is shown at a time, but there are 2: ['sample1_image', 'sample2_image']")
    ):
        cy.pl.positivity(sdata, "CD3")
    figure = cy.pl.positivity(sdata, "CD3", image_key="sample2_image")
    mine = table.obs["region"] == "sample2_cells"
    labels = np.asarray(sdata["sample2_cells"].data)
    score = dict(zip(table.obs["instance_id"][mine], table.obsm["nimbus_positivity"]["CD3"][mine], strict=True))
    expected = np.array([[score.get(v, np.nan) for v in row] for row in labels])
    np.testing.assert_allclose(painted(figure.axes[1]), expected)


@pytest.mark.real_data
def test_a_real_field(real_data):
    sdata = cy.io.read_tiffs(real_data("mibi_lymphnode"))
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    means = table.to_df()[["CD3", "CD20", "GATA3"]]
    table.obsm["nimbus_positivity"] = (means / means.quantile(0.999).replace(0, 1)).clip(0, 1)
    figure = cy.pl.positivity(sdata, list(means), calls=0.2)
    not_cut_off(figure)
    assert figure.axes[6].get_title(loc="right") == "all zero"
    labels = np.asarray(next(iter(sdata.labels.values())).data)
    score = pd.Series(table.obsm["nimbus_positivity"]["CD20"].to_numpy(), index=table.obs["instance_id"])
    np.testing.assert_allclose(painted(figure.axes[4])[labels > 0], score.loc[labels[labels > 0]])
    assert np.isnan(painted(figure.axes[4])[labels == 0]).all()
    n = int((table.obsm["nimbus_positivity"]["CD20"] >= 0.2).sum())
    assert figure.axes[5].get_title(loc="right") == f"{n:,} of {table.n_obs:,} positive"


def test_errors(sdata):
    table = sdata["table"]
    table.obsm["words"] = pd.DataFrame({"A": "maybe"}, index=table.obs_names)
    for arguments, error, message in [
        ({"markers": "CD8"}, KeyError, "No marker ['CD8'] in `obsm['nimbus_positivity']`. Available: ['A', 'B', 'C/D']"),
        ({"markers": []}, KeyError, "No marker [] in"),
        ({"key": "scores"}, KeyError, "No 'scores' in `obsm` of the table. Available: ['nimbus_positivity', 'nimbus_unc"),
        ({"table_key": "t"}, KeyError, "No table 't' in `sdata.tables`. Available: ['table']"),
        ({"image_key": "img"}, KeyError, "No image 'img' in `sdata.images`. Available: ['image']"),
        ({"labels_key": "mask"}, KeyError, "No labels element 'mask'"),
        ({"crop": (0, 61, 0, 60)}, ValueError, "(0, 61, 0, 60) does not lie in the image of 60 x 60 pixels"),
        ({"crop": (100, 120, 0, 60)}, ValueError, "does not lie in the image"),
        ({"crop": (20, 10, 0, 60)}, ValueError, "does not lie in the image"),
        ({"crop": (0, 9.5, 0, 60)}, ValueError, "`crop` must be four whole numbers (y0, y1, x0, x1)"),
        ({"crop": (0, 10)}, ValueError, "`crop` must be four whole numbers"),
        ({"crop": (0, 5, 0, 5)}, ValueError, "rows 0 to 5, columns 0 to 5: 0 cells there, 9 scored cells"),
        ({"calls": 1.5}, ValueError, "`calls` must be a score in 0…1, or two in rising order"),
        ({"calls": (0.7, 0.3)}, ValueError, "`calls` must be a score in 0…1, or two in rising order"),
        ({"calls": "gates"}, KeyError, "No DataFrame 'gates' with calls in `obsm`"),
        ({"calls": "words", "markers": "B"}, KeyError, "No calls of ['B'] in `obsm['words']`"),
        ({"calls": "words"}, ValueError, "Calls of 'A' must be 1, 0, -1 or NaN, or of ['negative', 'undecided', 'positive'], found ['maybe']"),
        ({"uncertainty": "spread"}, KeyError, "No 'spread' in `obsm` of the table"),
        ({"limits": {"CD8": (0, 1)}}, KeyError, "`limits` names ['CD8']"),
        ({"limits": {"A": (3, 1)}}, ValueError, "the first below the second, got (3, 1)"),
    ]:  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.positivity(sdata, **{"markers": "A", **arguments})
    del table.obsm["nimbus_uncertainty"]
    with pytest.raises(KeyError, match=re.escape("No 'nimbus_uncertainty' in `obsm` of the table")):
        cy.pl.positivity(sdata, "A", uncertainty=True)
    table.obsm["nimbus_positivity"]["CD8"] = 0.5
    with pytest.raises(KeyError, match=re.escape("No channel ['CD8'] in image 'image'. Available: ['A', 'B', 'C/D']")):
        cy.pl.positivity(sdata, "CD8")
    del sdata.images["image"]
    with pytest.raises(ValueError, match="sdata has no image"):
        cy.pl.positivity(sdata, "A")
