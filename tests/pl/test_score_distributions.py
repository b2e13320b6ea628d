"""Histograms of intensities and scores: the shares that are drawn, what is said about them, and every number of markers."""

from __future__ import annotations

import re

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import cytonym as cy
from cytonym.data.names import with_storable_columns
from cytonym.pl._score_distributions import separation

mpl.use("Agg")


def table(markers: list[str], n: int = 500) -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        rng.gamma(2.0, size=(n, len(markers))).astype("f4"), obs=pd.DataFrame(index=[f"c{i}" for i in range(n)])
    )
    adata.var_names = markers
    frame = pd.DataFrame(rng.beta(0.2, 0.3, (n, len(markers))).astype("f4"), index=adata.obs_names, columns=markers)
    adata.obsm["nimbus_positivity"] = with_storable_columns(frame, "nimbus_positivity", adata.uns)
    return adata


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def heights(ax) -> np.ndarray:
    return np.array([bar.get_height() for bar in ax.patches])


def words(ax) -> list[str]:
    return [line for text in ax.texts for line in text.get_text().split("\n")]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12, 40])
@pytest.mark.parametrize("intensities", ["X", None])
def test_nothing_is_cut_off_or_on_top_of_each_other(n, intensities):
    names = [f"marker {i}" for i in range(n - 1)] + ["TNFRSF8/CD30 (long)"]
    figure = cy.pl.score_distributions(table(names), intensities=intensities)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.03
    assert drawn.y0 > -0.03
    assert drawn.x1 < width + 0.03
    assert drawn.y1 < height + 0.03
    assert max(width, height) < 14
    assert len(figure.axes) == n * (1 if intensities is None else 2)
    boxes = np.array([ax.get_tightbbox(canvas.get_renderer()).extents for ax in figure.axes])
    legend = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert (boxes[:, 1] > legend.y1 - 1).all()
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")] == names


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("intensities", ["X", None])
def test_long_names_have_room(n, intensities):
    names = [f"{i} phosphorylated ribosomal protein S6 (Ser235/236)" for i in range(n)]
    figure = cy.pl.score_distributions(table(names), intensities=intensities)
    FigureCanvasAgg(figure).draw()
    titles = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text() in names]
    assert len(titles) == n
    assert all(title.x1 < figure.bbox.width for title in titles)
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


def test_the_numbers_drawn_are_the_numbers_given():
    adata = table(["CD8", "CD3/CD28"])
    adata.obsm["nimbus_positivity"].iloc[:100, 1] = np.nan
    figure = cy.pl.score_distributions(adata, ["CD3/CD28", "CD8"])
    left, right, _, other = figure.axes
    assert left.get_title(loc="left") == "CD3/CD28"
    scores = adata.obsm["nimbus_positivity"]["CD3_CD28"].to_numpy(dtype=float)[100:]
    np.testing.assert_allclose(heights(right), np.histogram(scores, np.linspace(0, 1, 41))[0] / 400)
    assert heights(right).sum() == pytest.approx(1)
    values = np.asarray(adata[:, "CD3/CD28"].X, dtype=float)[:, 0]
    top = np.quantile(values, 0.999)
    counts = np.histogram(np.minimum(values, top), np.linspace(0, top, 41))[0]
    np.testing.assert_allclose(heights(left), counts / 500, atol=1e-9)
    clear = np.mean((scores < 0.25) | (scores > 0.75))
    assert words(right) == [f"separation {separation(scores):.2f}", f"{clear:.0%} clear"]
    assert words(left) == [f"separation {separation(np.minimum(values, top)):.2f}"]
    assert len({bar.get_facecolor() for bar in right.patches[:10]}) == 1
    assert len({bar.get_facecolor() for bar in right.patches}) == 3
    assert heights(other).sum() == pytest.approx(1)
    assert right.get_xlim() == (0, 1)


def test_separation_equals_the_slow_way():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=80), rng.integers(0, 4, 60).astype(float), np.r_[np.zeros(9), 1.0]):
        best = 0.0
        for cut in np.unique(values)[1:]:
            low, high = values[values < cut], values[values >= cut]
            within = low.var() * len(low) + high.var() * len(high)
            best = max(best, 1 - within / (values.var() * len(values)))
        assert separation(values) == pytest.approx(best)
    assert separation(np.r_[np.zeros(50), np.ones(3)]) == pytest.approx(1)
    assert separation(rng.normal(size=100_000)) == pytest.approx(2 / np.pi, abs=0.01)
    assert np.isnan(separation(np.ones(5)))


def test_intensities_elsewhere_scaled_or_not_at_all():
    adata = table(["CD8", "CD3/CD28"])
    expected = heights(cy.pl.score_distributions(adata, "CD3/CD28").axes[0])
    genes = ad.AnnData(np.ones((500, 3)), obs=adata.obs, obsm=dict(adata.obsm), uns=dict(adata.uns))
    genes.obsm["mean_intensity"] = with_storable_columns(adata.to_df(), "mean_intensity", genes.uns)
    for key in ("X", "mean_intensity"):
        np.testing.assert_allclose(
            heights(cy.pl.score_distributions(genes, "CD3/CD28", intensities=key).axes[0]), expected
        )
    scaled = cy.pl.score_distributions(adata, "CD8", cofactor=0.5)
    values = np.arcsinh(adata.to_df()["CD8"].to_numpy(dtype=float) / 0.5)
    top = np.quantile(values, 0.999)
    counts = np.histogram(np.minimum(values, top), np.linspace(0, top, 41))[0]
    np.testing.assert_allclose(heights(scaled.axes[0]), counts / 500, atol=1e-9)
    assert "mean intensity, arcsinh(x / 0.5)" in [t.get_text() for t in scaled.legends[0].get_texts()]
    genes.obsm["mean_intensity"] = adata.to_df()[["CD8"]]
    figure = cy.pl.score_distributions(genes)
    assert [words(ax) for ax in figure.axes][2] == ["not measured"]


def test_markers_without_numbers_say_so():
    adata = table(["none", "zero", "same", "CD8"])
    adata.obsm["nimbus_positivity"]["none"] = np.nan
    adata.obsm["nimbus_positivity"]["same"] = 0.5
    adata.X[:, 1] = 0
    figure = cy.pl.score_distributions(adata)
    said = {
        name: (words(a), words(b))
        for name, a, b in zip(adata.var_names, figure.axes[::2], figure.axes[1::2], strict=True)
    }
    assert said["none"][1] == ["no scores"]
    assert said["zero"][0] == ["all zero"]
    assert said["same"][1] == ["0% clear"]
    FigureCanvasAgg(figure).draw()


def test_one_cell_separates_nothing():
    figure = cy.pl.score_distributions(table(["CD8"])[:1].copy())
    said = [line for ax in figure.axes for line in words(ax) if line]
    assert len(said) == 1
    assert said[0] in {"0% clear", "100% clear"}


def test_errors():
    adata = table(["CD8", "CD3"])
    adata.obsm["logits"] = adata.obsm["nimbus_positivity"] * 3
    adata.obsm["empty"] = adata.obsm["nimbus_positivity"] * np.nan
    bare = ad.AnnData(obs=adata.obs, obsm=dict(adata.obsm))
    for table_, arguments, error, message in [
        (adata, {"key": "s"}, KeyError, "No 's' in `obsm` of the table. Available: ['empty', 'logits', 'nimbus_positivity']"),
        (adata, {"markers": ["CD4"]}, KeyError, "No marker ['CD4'] in `obsm['nimbus_positivity']`. Available: ['CD8', 'CD3']"),
        (adata, {"key": "logits"}, ValueError, "Scores of ['CD8', 'CD3'] in `obsm['logits']` lie outside 0…1"),
        (adata, {"key": "empty"}, ValueError, "No cell has a score in `obsm['empty']` for ['CD8', 'CD3']"),
        (adata, {"cofactor": 0}, ValueError, "`cofactor` must be positive"),
        (adata, {"intensities": "raw"}, KeyError, "No intensities 'raw' in `adata.obsm`"),
        (bare, {}, KeyError, "None of ['CD8', 'CD3'] is a variable of `X`, and there is no `obsm['mean_intensity']`"),
    ]:  # fmt: skip
        with pytest.raises(error, match=re.escape(message)):
            cy.pl.score_distributions(table_, **arguments)
    assert len(cy.pl.score_distributions(bare, intensities=None).axes) == 2
