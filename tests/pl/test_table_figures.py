"""Figures that need a table only: what is drawn, at both ends of size, and that nothing global changes."""

from __future__ import annotations

import re

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import cytonym as cy

mpl.use("Agg")


def table(n_groups: int, n_markers: int, n: int = 400) -> ad.AnnData:
    rng = np.random.default_rng(0)
    group = np.arange(n) % n_groups
    values = rng.random((n, n_markers)) + np.eye(n_groups, n_markers)[group]
    obs = pd.DataFrame({"phenograph": pd.Categorical(group.astype(str))}, index=[f"c{i}" for i in range(n)])
    adata = ad.AnnData(np.zeros((n, 1), "f4"), obs=obs)
    names = [f"marker {i}" for i in range(n_markers)]
    adata.obsm["nextmarker_attributions"] = pd.DataFrame(values.astype("f4"), index=obs.index, columns=names)
    adata.obsm["X_umap"] = rng.normal(size=(n, 2))
    return adata


@pytest.fixture(autouse=True)
def nothing_global_changes():
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def texts_inside(figure: Figure) -> None:
    """Nothing that is drawn is cut off."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.03
    assert drawn.y0 > -0.03
    assert drawn.x1 < width + 0.03
    assert drawn.y1 < height + 0.03


@pytest.mark.parametrize(("n_groups", "n_markers"), [(3, 5), (40, 45), (3, 45), (40, 5), (1, 1)])
def test_markers_at_every_size(n_groups, n_markers):
    figure = cy.pl.markers(table(n_groups, n_markers), "phenograph")
    assert isinstance(figure, Figure)
    texts_inside(figure)
    dots = figure.axes[0].collections[0]
    assert len(dots.get_offsets()) == n_groups * n_markers


@pytest.mark.parametrize("n_markers", [1, 6, 20])
@pytest.mark.parametrize(
    "name", ["", "Phenotype", "Tumour-associated macrophage", "TUMOUR-ASSOCIATED MACROPHAGE", "x" * 90]
)
def test_markers_keys_stay_apart_whatever_the_names(n_markers, name):
    adata = table(5, n_markers)
    adata.obs["type"] = [name + group for group in adata.obs["phenograph"]]
    figure = cy.pl.markers(adata, "type")
    texts_inside(figure)
    side = figure.axes[2]
    (title, share), (bar, sizes) = side.texts, side.child_axes
    keys = [box.get_tightbbox() for box in (title, bar, share, sizes)]  # from the top
    assert all(upper.y0 >= lower.y1 for upper, lower in zip(keys, keys[1:], strict=False))
    assert keys[-1].y0 >= 0
    assert bar.get_window_extent().height / figure.dpi > 0.8


def test_names_with_dollars_are_no_formulas():
    adata = table(3, 3)
    names = ["$bad^$", "CD3_$\\alpha$", "_hidden"]
    adata.obsm["nextmarker_attributions"].columns = names
    figure = cy.pl.markers(adata, "phenograph", markers=names)
    texts_inside(figure)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == names


def test_markers_numbers_and_order():
    adata = table(4, 3)
    frame = adata.obsm["nextmarker_attributions"]
    figure = cy.pl.markers(adata, "phenograph", groups=["2", "0"], markers=["marker 2", "marker 0"], standardize=False)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "0"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["marker 2", "marker 0"]
    colors = ax.collections[0].get_array().reshape(2, 2)
    expected = frame.groupby(adata.obs["phenograph"], observed=True).mean().loc[["2", "0"], ["marker 2", "marker 0"]]
    np.testing.assert_allclose(colors, expected, rtol=1e-5)
    sizes = ax.collections[0].get_sizes().reshape(2, 2)
    share = (
        (frame > frame.mean()).groupby(adata.obs["phenograph"], observed=True).mean().loc[["2", "0"], expected.columns]
    )
    np.testing.assert_allclose(sizes / sizes.max(), share / share.to_numpy().max(), rtol=1e-5)


def test_markers_diagonal():
    figure = cy.pl.markers(table(5, 5), "phenograph")
    groups = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == [f"marker {g}" for g in groups]


def test_markers_errors():
    adata = table(3, 3)
    with pytest.raises(KeyError, match=re.escape("No marker in `obsm['nextmarker_attributions']` named ['CD3']")):
        cy.pl.markers(adata, "phenograph", markers=["CD3"])
    with pytest.raises(
        KeyError, match=re.escape("No group in `obs['phenograph']` named ['9']. Available: ['0', '1', '2']")
    ):
        cy.pl.markers(adata, "phenograph", groups=["9"])
    adata.obs["nobody"] = pd.Categorical([None] * adata.n_obs, categories=["T"])
    with pytest.raises(ValueError, match=re.escape("No cell has a group in `obs['nobody']`.")):
        cy.pl.markers(adata, "nobody")
    with pytest.raises(KeyError, match=re.escape("`threshold` lacks the markers ['marker 1', 'marker 2']")):
        cy.pl.markers(adata, "phenograph", threshold={"marker 0": 1.0})


@pytest.mark.parametrize("n_groups", [2, 8, 40])
def test_agreement_at_every_size(n_groups):
    adata = table(n_groups, 2)
    adata.obs["other"] = np.random.default_rng(1).permutation(adata.obs["phenograph"].astype(object))
    adata.obs.loc[adata.obs_names[:9], "other"] = np.nan
    figure = cy.pl.agreement(adata, "phenograph", "other")
    texts_inside(figure)
    assert "agreement" in figure.get_suptitle()
    assert "391 cells" in figure.get_suptitle()
    result = cy.tl.compare_labels(adata, "phenograph", "other")
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), result.fractions)


def test_agreement_of_types_and_clusters():
    """No shared name: clusters stand for their main type, in its order."""
    obs = pd.DataFrame(
        {"type": list("TTTTBBBM") + [None], "cluster": ["2", "2", "2", "0", "0", "0", "1", "3", "3"]},
        index=[f"c{i}" for i in range(9)],
    )
    adata = ad.AnnData(np.zeros((9, 1)), obs=obs, obsm={"X_umap": np.arange(18.0).reshape(9, 2)})
    figure = cy.pl.agreement(adata, "type", "cluster")
    matrix = figure.axes[0]
    assert [t.get_text() for t in matrix.get_yticklabels()] == ["B", "M", "T"]
    assert [t.get_text() for t in matrix.get_xticklabels()] == ["0", "1", "3", "2"]
    assert figure.get_suptitle().startswith("purity 87.5%")  # one T among the B cells of cluster 0
    [legend] = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert [t.get_text() for t in legend.get_texts()] == ["main label of its group", "another label", "no label"]


def test_agreement_map_is_optional():
    adata = table(3, 2)
    del adata.obsm["X_umap"]
    adata.obs["cluster"] = adata.obs["phenograph"].astype(str) + "x"  # no shared names
    figure = cy.pl.agreement(adata, "phenograph", "cluster")
    assert figure.get_suptitle().startswith("purity 100.0%")
    adata.obsm["spatial"] = np.random.default_rng(0).random((adata.n_obs, 2))
    assert cy.pl.agreement(adata, "phenograph", "cluster").axes[-1].yaxis_inverted()
    with pytest.raises(
        KeyError, match=re.escape("No 'X_tsne' in `adata.obsm`. Available: ['nextmarker_attributions', 'spatial']")
    ):
        cy.pl.agreement(adata, "phenograph", "cluster", basis="X_tsne")


def test_training_panels():
    history = [
        {"step": i, "loss": 5 / (i + 1), "contrastive": 4.9 / (i + 1), "penalty": 0.01, "learning_rate": 1e-3}
        for i in range(50)
    ]
    figure = cy.pl.training(history)
    texts_inside(figure)
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "penalty", "learning rate"]
    assert [ax.get_ylabel() for ax in cy.pl.training([{"loss": 1.0}, {"loss": 0.5}]).axes] == ["loss"]
    with pytest.raises(ValueError, match="No training history"):
        cy.pl.training([])
