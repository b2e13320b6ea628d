"""The score card: its numbers are those of the verb, and nothing is cut off."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import cytonym as cy

mpl.use("Agg")


def table(n: int = 400, regions: int = 3) -> ad.AnnData:
    rng = np.random.default_rng(0)
    density = rng.gamma(2, 0.15, n)
    obs = pd.DataFrame({"dab_density": density, "ihc_class": np.where(density > 0.25, "positive", "negative")})
    obs["area"] = pd.Categorical([f"area {i}" for i in rng.integers(0, regions, n)])
    return ad.AnnData(np.zeros((n, 0)), obs=obs.set_index(obs.index.astype(str)))


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


def words(figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text()]


def test_the_numbers_are_those_of_the_verb():
    adata = table()
    before = adata.copy()
    figure = cy.pl.ihc_score(adata, by="area", thresholds=(0.1, 0.3, 0.5))
    assert list(adata.obs) == list(before.obs)  # nothing is added
    scores = cy.tl.score_ihc(adata, by="area", thresholds=(0.1, 0.3, 0.5))
    assert len(figure.axes) == 4 * 4
    for i, (name, row) in enumerate(scores.iterrows()):
        named, counts, grades, histogram = figure.axes[4 * i : 4 * i + 4]
        assert [t.get_text() for t in named.texts] == [name, f"{int(row['num_total'])} nuclei"]
        assert counts.get_title(loc="left") == f"{row['percent_pos']:.1f} % positive"
        assert grades.get_title(loc="left") == f"H-score {row['h_score']:.0f}"
        widths = [bar.get_width() for bar in counts.patches]
        np.testing.assert_allclose(widths, row[["num_pos", "num_neg"]].astype(float) / row["num_total"])
        widths = [bar.get_width() for bar in grades.patches]
        np.testing.assert_allclose(widths, row[["0", "1+", "2+", "3+"]].astype(float) / 100)
        bars = [patch for patch in histogram.patches if hasattr(patch, "get_height")]
        assert sum(bar.get_height() for bar in bars) == row["num_total"]
        [line] = [patch for patch in histogram.patches if not hasattr(patch, "get_height")]
        assert line.get_data().values.sum() == row["num_pos"]
    assert named.texts[0].get_text() == "total"
    assert {"0.1", "0.3", "0.5", "optical density of DAB", "1+"} <= set(words(figure))
    not_cut_off(figure)


def nuclei_drawn(figure) -> list[int]:
    """Of the histogram of each row."""
    bars = [[bar for bar in ax.patches if hasattr(bar, "get_height")] for ax in figure.axes[3::4]]
    return [round(sum(bar.get_height() for bar in row)) for row in bars]


@pytest.mark.parametrize("groups", [[1, 2], [1.0, 2.0], [True, False], ["total", "b"]])
@pytest.mark.parametrize("categorical", [False, True])
def test_a_row_has_its_own_nuclei(groups, categorical):
    adata = table(110)
    adata.obs["patient"] = [groups[0]] * 100 + [groups[1]] * 10
    if categorical:
        adata.obs["patient"] = pd.Categorical(adata.obs["patient"], categories=groups)
    scores = cy.tl.score_ihc(adata, by="patient")
    figure = cy.pl.ihc_score(adata, by="patient")
    assert nuclei_drawn(figure) == scores["num_total"].tolist()
    assert sorted(scores["num_total"]) == [10, 100, 110]


@pytest.mark.parametrize("regions", [1, 2, 12])
def test_any_number_of_regions(regions):
    adata = table(regions=regions)
    adata.obs["area"] = adata.obs["area"].cat.rename_categories(lambda name: f"{name} with a name that does not fit")
    figure = cy.pl.ihc_score(adata, by="area")
    assert len(figure.axes) == 4 * (regions + (regions > 1))
    not_cut_off(figure)


def test_without_regions_and_without_densities():
    adata = table()
    del adata.obs["dab_density"]
    figure = cy.pl.ihc_score(adata)
    assert len(figure.axes) == 2
    assert "400 nuclei" in words(figure)
    not_cut_off(figure)


def test_some_without_a_class_or_a_density():
    adata = table()
    adata.obs.loc[adata.obs["area"] == "area 1", "dab_density"] = np.nan
    adata.obs["ihc_class"] = adata.obs["ihc_class"].astype("category")
    adata.obs.loc[adata.obs_names[:50], "ihc_class"] = None
    adata.obs.loc[adata.obs_names[50:60], "area"] = None
    figure = cy.pl.ihc_score(adata, by="area")
    assert "no densities" in words(figure)
    assert figure.axes[12].texts[1].get_text() == "340 nuclei"
    not_cut_off(figure)


@pytest.mark.parametrize("called", ["positive", "negative"])
def test_one_class_and_one_density(called):
    adata = table(20)
    adata.obs["ihc_class"], adata.obs["dab_density"] = called, 0.0
    figure = cy.pl.ihc_score(adata)
    assert f"{100.0 if called == 'positive' else 0.0:.1f} % positive" in words(figure)
    assert "H-score 0" in words(figure)
    not_cut_off(figure)


def test_of_an_object_and_errors():
    mask = np.zeros((40, 40), int)
    mask[4:12, 4:12], mask[20:30, 20:30] = 1, 2
    sdata = cy.io.from_arrays(np.ones((1, 40, 40)), mask, channels=["x"])
    sdata["table"].obs["ihc_class"] = ["positive", "negative"]
    assert "50.0 % positive" in words(cy.pl.ihc_score(sdata))
    with pytest.raises(KeyError, match="No table 'ihc' in `sdata.tables`"):
        cy.pl.ihc_score(sdata, table_key="ihc")
    with pytest.raises(KeyError, match="type"):
        cy.pl.ihc_score(sdata, class_key="type")
    with pytest.raises(ValueError, match="`thresholds` must be three rising numbers"):
        cy.pl.ihc_score(sdata, thresholds=(1, 2))
