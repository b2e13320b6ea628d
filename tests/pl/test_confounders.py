"""Bars of confounders: the numbers that are drawn, the null, and one or several results."""

from __future__ import annotations

import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

import cytonym as cy
from cytonym.pl._confounders import COLORS, NAMES

mpl.use("Agg")


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def result(seed: int = 0, names: tuple[str, ...] = tuple(NAMES)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"confounder": names, "mutual_information": rng.random(len(names)) / 10})
    frame = frame.assign(null_95=0.05, explained=frame["mutual_information"] * 2, n=1000, n_units=500)
    frame.attrs = {"error_rate": 0.125, "n": 1000}
    return frame.sort_values("mutual_information", ascending=False, ignore_index=True)


def not_cut_off(figure) -> None:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.03
    assert drawn.y0 > -0.03
    assert drawn.x1 < width + 0.03
    assert drawn.y1 < height + 0.03


def test_the_numbers_drawn_are_the_numbers_given():
    frame = result()
    figure = cy.pl.confounders(frame)
    [ax] = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [NAMES[c] for c in frame["confounder"]]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], frame["mutual_information"])
    lines = [line.get_xdata() for line in ax.lines if len(set(line.get_xdata())) == 1 and line.get_xdata()[0] > 0]
    np.testing.assert_allclose(lines, 0.05)
    assert len(lines) == len(frame)
    pale = [bar.get_alpha() < 1 for bar in ax.patches]
    assert pale == (frame["mutual_information"] <= 0.05).tolist()
    assert 0 < sum(pale) < 5
    said = [t.get_text() for t in ax.texts]
    assert said == [f"{v:.0%}" if v >= 0.1 else f"{v:.1%}" for v in frame["explained"]]
    assert ax.get_title(loc="left") == "12.5% of 1,000 calls are wrong"
    not_cut_off(figure)


def test_several_results():
    a, b = result(0), result(1, ("cell_size", "density"))
    figure = cy.pl.confounders({"Nimbus": a, "mean intensity": b})
    [ax] = figure.axes
    assert len(ax.patches) == 7
    widths = {bar.get_width() for bar in ax.patches if bar.get_facecolor()[:3] == to_rgba(COLORS[1])[:3]}
    assert widths == set(b["mutual_information"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "Nimbus",
        "mean intensity",
        "95 % of shuffles lie below",
    ]
    assert ax.get_title(loc="left").startswith("Nimbus: 12.5% of 1,000 calls are wrong\nmean intensity:")
    not_cut_off(figure)
    not_cut_off(cy.pl.confounders({f"scores {i}": result(i) for i in range(5)}))


def test_what_the_verb_returns_can_be_drawn():
    rng = np.random.default_rng(0)
    sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=84)
    cy.pp.measure_cells(sdata)
    adata = sdata["table"]
    truth = pd.DataFrame(rng.random(adata.shape) < 0.3, index=adata.obs_names, columns=adata.var_names)
    adata.obsm["nimbus_positivity"] = truth ^ (rng.random(truth.shape) < 0.1)
    found = cy.tl.confounders(adata, truth, n_permutations=20)
    figure = cy.pl.confounders(found)
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[0].patches], found["mutual_information"])


def test_nothing_explained():
    frame = result().assign(mutual_information=0.0, explained=np.nan, null_95=0.0)
    figure = cy.pl.confounders(frame)
    assert {t.get_text() for t in figure.axes[0].texts} == {""}
    not_cut_off(figure)


def test_errors():
    for given, message in [
        ({}, "mapping from names to up to 5 of them, got 0"),
        ({str(i): result() for i in range(6)}, "got 6"),
        (result().drop(columns="null_95"), "must be what `tl.confounders` returns"),
        (result().iloc[:0], "must be what `tl.confounders` returns"),
        ("nimbus", "Give the DataFrame of `tl.confounders`"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            cy.pl.confounders(given)  # type: ignore[arg-type]
