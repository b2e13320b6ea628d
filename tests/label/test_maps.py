"""Maps: coordinates as they are, a new UMAP that keeps everybody's place, and tissue side by side."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cytonym as cy
from cytonym.label.maps import aligned, principal, side_by_side


def cells(n: int = 90, seed: int = 0, **obsm):
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))
    adata.obsm["X_nextmarker"] = (rng.normal(size=(n, 6)) + 6 * np.eye(3, 6)[kind]).astype("f4")
    for key, value in obsm.items():
        adata.obsm[key] = value
    return adata


def session_of(adata, tmp_path, name="a"):
    return cy.label.Session(adata, log=tmp_path / name, annotator="m")


def test_what_there_is_is_taken_as_it_is(tmp_path):
    umap, spatial = np.random.default_rng(0).normal(size=(2, 90, 2))
    maps = session_of(cells(X_umap=umap, spatial=spatial), tmp_path).maps
    assert maps.names == ["umap", "spatial"]
    np.testing.assert_array_equal(maps.get("umap"), umap.astype("f4"))
    np.testing.assert_array_equal(maps.get("spatial"), spatial.astype("f4"))
    with pytest.raises(KeyError, match=r"No map 'pca'. Available: \['umap', 'spatial'\]"):
        maps.get("pca")


def test_without_a_umap_there_are_principal_components(tmp_path):
    adata = cells()
    adata.obsm["X_nextmarker"][4] = np.nan
    maps = session_of(adata, tmp_path).maps
    assert maps.names == ["pca"]
    found = maps.get("pca")
    assert np.isnan(found[4]).all()
    assert np.isfinite(np.delete(found, 4, axis=0)).all()
    assert principal(np.ones((3, 1), "f4")).tolist() == [[0, 0]] * 3


def test_a_table_without_anything_has_an_empty_map(tmp_path):
    maps = session_of(ad.AnnData(obs=pd.DataFrame(index=["x"])), tmp_path).maps
    assert maps.names == ["spatial"]
    assert np.isnan(maps.get("spatial")).all()
    told = []
    maps.remap(background=False, on_done=told.append)
    assert "nothing for a model to learn from" in told[0]["error"]
    assert not maps.busy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_a_new_map_keeps_everybodys_place_and_is_always_the_same(tmp_path):
    adata = cells()
    session = session_of(adata, tmp_path)
    first, steps = [], []
    busy = []

    def on_progress(done, total, text):
        steps.append((done, total))
        busy.append(session.maps.busy)

    thread = session.maps.remap(on_done=first.append, on_progress=on_progress)
    thread.join(120)
    assert busy == [True, True, True, False]
    assert first == [{"map": "umap"}]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert session.maps.names == ["umap"]
    before = session.maps.get("umap").copy()
    kind = np.arange(90) % 3
    centers = np.array([before[kind == k].mean(axis=0) for k in range(3)])
    apart = np.linalg.norm(before[:, None] - centers, axis=2).argmin(axis=1)
    assert (apart == kind).all()

    adata.obsm["X_nextmarker"] += 0.1 * np.random.default_rng(1).normal(size=(90, 6)).astype("f4")
    session._learner = None  # other features, as after a longer training
    session.maps.remap(background=False)
    after = session.maps.get("umap")
    moved = np.linalg.norm(after - before, axis=1)
    # 0.1 to 0.4 over seeds, whose last bits decide; a map that begins anywhere else is 1 or more away
    assert np.median(moved) < 0.6 * np.linalg.norm(before - before.mean(axis=0), axis=1).mean()

    again = session_of(cells(), tmp_path, "b")
    again.maps.remap(background=False)
    np.testing.assert_array_equal(again.maps.get("umap"), before)


def test_a_map_that_was_cancelled_is_thrown_away(tmp_path, monkeypatch):
    from cytonym.label import maps as module

    session = session_of(cells(), tmp_path)

    def meanwhile(features, before, seed, *, order, again):
        session.maps.cancel()
        return before

    monkeypatch.setattr(module, "umap_from", meanwhile)
    told = []
    session.maps.remap(background=False, on_done=told.append)
    assert told == [{"cancelled": True}]
    assert session.maps.names == ["pca"]


def test_aligned_undoes_turning_mirroring_and_scaling():
    rng = np.random.default_rng(0)
    old = rng.normal(size=(50, 2)).astype("f4")
    turn = np.array([[0.0, 1.0], [1.0, 0.0]])  # a mirror
    new = 3 * old @ turn + [5, -2]
    new[3] = np.nan
    found = aligned(new.astype("f4"), old)
    np.testing.assert_allclose(np.delete(found, 3, axis=0), np.delete(old, 3, axis=0), atol=1e-5)
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(aligned(new[:1], old[:1]), new[:1])  # one cell says nothing of a turn


def test_regions_that_lie_over_each_other_are_laid_side_by_side():
    places = np.array([[0, 0], [10, 10], [0, 0], [20, 5], [3, 3], [np.nan, 0]], float)
    region = np.array([0, 0, 1, 1, 2, 2])
    found = side_by_side(places, region, 3)
    for a in range(3):
        mine = places[(region == a) & np.isfinite(places).all(axis=1)]
        put = found[(region == a) & np.isfinite(places).all(axis=1)]
        np.testing.assert_allclose(put - put[0], mine - mine[0])  # shapes stay
    boxes = [(found[region == a].min(axis=0), found[region == a].max(axis=0)) for a in range(2)]
    assert (boxes[0][1] < boxes[1][0]).any()
    apart = places.copy()
    apart[2:4] += 100
    apart[4] += 1000
    np.testing.assert_array_equal(side_by_side(apart, region, 3), apart)


def test_patches_fit_the_cells_where_no_pixel_size_is_known(tmp_path):
    steps = np.arange(5, 300, 12.0)
    centers = pd.DataFrame(np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2), columns=["x", "y"])
    centers.index += 1
    sdata = cy.io.from_arrays(np.ones((1, 300, 300), np.uint8), channels=["a"], centers=centers)
    assert cy.label.Session(sdata, log=tmp_path / "a").patch_px == 54  # four and a half distances
    assert cy.label.Session(sdata, log=tmp_path / "a", size_px=20).patch_px == 20
    few = cy.io.from_arrays(np.ones((1, 300, 300), np.uint8), channels=["a"], centers=centers[:3])
    assert cy.label.Session(few, log=tmp_path / "b").patch_px == 64


def test_tissue_of_images(tmp_path):
    sdata = cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0)
    session = cy.label.Session(sdata, log=tmp_path / "a", annotator="m")
    np.testing.assert_allclose(session.points("spatial"), sdata["table"].obsm["spatial"], rtol=1e-6)
    assert session.maps.names == ["spatial"]
    assert session.patch_px == 32  # micrometres
    cy.pp.measure_cells(sdata)
    session = cy.label.Session(sdata, log=tmp_path / "a", annotator="m")
    assert session.maps.names == ["pca", "spatial"]
    assert session.marker(session.markers[0]).shape == (20,)
