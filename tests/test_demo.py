"""The demonstration: its parts, and one run over a small tissue from a store to the page."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch

import cytonym as cy

mpl.use("Agg")
torch.set_num_threads(1)

with warnings.catch_warnings():  # what these packages warn of on import is not ours
    warnings.simplefilter("ignore")
    import scanpy  # noqa: F401
    import squidpy  # noqa: F401

    from cytonym import _demo
    from cytonym._report import write_report

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:n_jobs value:UserWarning"),  # umap, where a seed is given
]

HOSTILE = "<script>alert('x')</script>"
DOLLARS = r"CD4 $\frac$ & <b>"


def tissue(**settings: object) -> sd.SpatialData:
    return cy.datasets.tissue_phantom(n_cells=60, size_px=84, rng=0, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[_demo.Run, Path, str]:
    """A run on two samples with names that are no good for a web page."""
    out = tmp_path_factory.mktemp("demo")
    sdata = tissue(n_samples=2)
    for name in list(sdata.images):
        image = sdata.images.pop(name)
        sdata.images[name] = image.assign_coords(c=[DOLLARS if c == "CD4" else str(c) for c in image.c.to_numpy()])
    sdata["table"].obs["cell_type"] = sdata["table"].obs["cell_type"].cat.rename_categories({"B": HOSTILE})
    found = _demo.run(sdata, out, source=f"a {HOSTILE} & more", steps=3, seed=0, device="cpu")
    report = write_report(found, out / "report.html")
    return found, out, report.read_text(encoding="utf-8")


def test_run_writes_store_model_and_numbers(page: tuple[_demo.Run, Path, str]) -> None:
    found, out, _ = page
    assert sorted(p.name for p in out.iterdir()) == ["model", "report.html", "tissue.zarr"]
    table = sd.read_zarr(out / "tissue.zarr")["table"]
    assert table.n_obs == 120
    assert {"X_nextmarker", "nextmarker_attributions", "X_umap", "spatial"} <= set(table.obsm)
    assert {"phenograph", "named_phenotype", "cell_type"} <= set(table.obs)
    assert cy.models.load(out / "model").markers == found.model.markers

    numbers = json.loads(json.dumps(_demo.summary(found)))
    assert numbers["cells"] == 120
    assert numbers["images"] == 2
    assert numbers["markers"] == 12
    assert numbers["truth"] == "cell_type"
    assert set(numbers["scores"]) == {"NeXtMarker", "mean intensity"}
    assert 0.3 < numbers["scores"]["NeXtMarker"]["agreement"] <= 1
    assert {"train", "embed", "write"} <= set(numbers["seconds"])


def test_page_has_all_figures_and_needs_no_other_file(page: tuple[_demo.Run, Path, str]) -> None:
    _, _, html = page
    sections = re.findall(r'<section id="(\w+)">', html)
    shown = ["tissue", "clusters", "umap", "map", "cells", "truth", "near", "normalization", "training"]
    assert [s for s in sections if s != "near"] == [s for s in shown if s != "near"] + ["parameters", "next"]
    assert html.count("<img ") == len(sections) - 2
    assert all(f'href="#{s}"' in html for s in sections)
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_page_escapes_what_comes_from_the_data(page: tuple[_demo.Run, Path, str]) -> None:
    found, _, html = page
    assert DOLLARS in found.model.markers
    assert HOSTILE in set(found.adata.obs["cell_type"])
    assert "<script" not in html
    assert "<b>" not in html
    assert "a &lt;script&gt;" in html
    assert r"CD4 $\frac$ &amp; &lt;b&gt;" in html


def test_an_interrupt_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "tissue.zarr"
    tissue().write(old)

    def stop(*_args: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cy.tl, "fit_encoder", stop)
    with pytest.raises(KeyboardInterrupt):
        _demo.run(tissue(n_samples=2), tmp_path, source="x", steps=1)
    assert [p.name for p in tmp_path.iterdir()] == ["tissue.zarr"]
    assert list(sd.read_zarr(old).images) == ["image"]


def test_found_cells_take_the_type_of_the_mask_under_them() -> None:
    sdata = tissue()
    found = _demo._find_cells(sdata, ["DNA"], None, "cell_type", "table")
    assert list(found.shapes) == ["centers"]
    assert not found.labels
    types = found["table"].obs["cell_type"]
    assert types.notna().mean() > 0.7
    mask, known = np.asarray(sdata["cells"]), sdata["table"].obs.set_index("instance_id")["cell_type"]
    xy = found["table"].obsm["spatial"]
    for (x, y), name in zip(xy, types, strict=True):
        label = mask[int(y), int(x)]
        assert (pd.isna(name) and label == 0) or name == known[label]


def test_the_window_suits_the_cells_that_were_found() -> None:
    def found(radius: float, pixel_size: float | None = None) -> sd.SpatialData:
        centers = pd.DataFrame({"x": [9.0, 20.0], "y": [9.0, 20.0]})
        sdata = cy.io.from_arrays(np.ones((1, 40, 40)), channels=["DNA"], centers=centers, pixel_size=pixel_size)
        sdata["centers"]["radius"] = radius
        return sdata

    assert _demo._window(found(3.5)) is None  # the default suits
    assert _demo._window(found(10.0)) == 32
    assert _demo._window(found(10.0, 0.5)) is None  # the pixel size says it


def test_clusters_are_named_after_most_of_their_cells() -> None:
    clusters = pd.Series(list("0011220"), dtype="category")
    types = pd.Series(["T", "T", "B", "B", None, None, "B"], dtype="category")
    assert list(_demo._majority(clusters, types)) == ["T", "T", "B", "B", np.nan, np.nan, "T"]


def test_choose_channels() -> None:
    names = ["DNA", "CD3", "CD4, total", "Au"]
    assert _demo.choose_channels(names, None, None) is None
    assert _demo.choose_channels(names, [], ["Au"]) == ["DNA", "CD3", "CD4, total"]
    assert _demo.choose_channels(names, ["CD3,DNA"], None) == ["CD3", "DNA"]
    assert _demo.choose_channels(names, ["CD4, total", "CD3"], None) == ["CD4, total", "CD3"]
    with pytest.raises(KeyError, match="No channel 'Fe'. Available: .*'DNA', 'CD3', 'CD4, total', 'Au'"):
        _demo.choose_channels(names, None, ["Au,Fe"])
    with pytest.raises(ValueError, match="No channel is left"):
        _demo.choose_channels(names, ["Au"], ["Au"])


def test_leading_markers_share_the_cells_between_them(page: tuple[_demo.Run, Path, str]) -> None:
    found, _, _ = page
    groups = list(found.adata.obs["phenograph"].cat.categories)
    top = dict.fromkeys(groups, {"CD3": 0.9, "CD8": 0.89}) | {groups[-1]: {"CD20": 0.8}}
    run = _demo.Run(found.sdata, found.model, "x", None, top)
    expected = ["CD3", "CD20"] if len(groups) > 1 else ["CD20"]
    assert run.leading_markers(2)[: len(expected)] == expected
    assert "DNA" not in run.leading_markers(12)


def test_nearest_cells_are_those_of_the_same_image() -> None:
    rng = np.random.default_rng(0)
    images = rng.permutation(np.repeat(["large", "small", "single"], [30, 3, 1]))
    adata = ad.AnnData(obs=pd.DataFrame({"region": images}, index=[str(i) for i in range(34)]))
    adata.obsm["spatial"] = rng.uniform(0, 99, (34, 2))
    adata.uns["spatialdata_attrs"] = {"region_key": "region"}
    near = _demo._nearest(adata).toarray()
    apart = np.linalg.norm(adata.obsm["spatial"][:, None] - adata.obsm["spatial"], axis=2)
    apart[images[:, None] != images] = np.inf
    np.fill_diagonal(apart, np.inf)
    for row, distances in zip(near, apart, strict=True):
        order = np.argsort(distances)[:10]
        assert set(np.flatnonzero(row)) == set(order[np.isfinite(distances[order])])


def test_a_small_image_beside_a_large_one_is_no_fault(tmp_path: Path) -> None:
    sdata = tissue(n_samples=2)
    name = list(sdata.labels)[1]
    sdata.labels[name] = sdata.labels[name].where(sdata.labels[name] <= 3, 0)
    del sdata.tables["table"]
    found = _demo.run(sdata, tmp_path, source="x", steps=2, device="cpu")
    assert found.adata.n_obs == 63


def test_what_was_trained_is_kept_where_cells_are_too_few(tmp_path: Path) -> None:
    sdata = cy.io.from_arrays(np.ones((2, 40, 40)), channels=["DNA", "CD3"], centers=[[15, 15], [25, 20]])
    with pytest.raises(ValueError, match=r"Only 2 cells have an embedding; clusters and a map need 4 or more\."):
        _demo.run(sdata, tmp_path, source="x", steps=1, size_px=9, device="cpu")
    assert cy.models.load(tmp_path / "model").markers == ("DNA", "CD3")
    assert sd.read_zarr(tmp_path / "tissue.zarr")["table"].obsm["X_nextmarker"].shape[0] == 2


def test_images_of_different_panels_no_known_types_and_another_table(tmp_path: Path) -> None:
    sdata = tissue(n_samples=2)
    first = next(iter(sdata.images))
    sdata.images[first] = sdata.images.pop(first).isel(c=slice(1, None))  # without DNA
    sdata.tables["cells_table"] = sdata.tables.pop("table")
    sdata["cells_table"].obs["cell_type"] = pd.Categorical([None] * 120, categories=["B", "T"])
    found = _demo.run(
        sdata, tmp_path, source="x", channels=["CD3", "CD8", "CD20"], steps=2, device="cpu", table_key="cells_table"
    )
    assert found.nuclear is None
    assert found.truth == "cell_type"
    assert found.scores is None
    html = write_report(found, tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="truth"' not in html
    assert "adata = sdata[&#x27;cells_table&#x27;]" in html
    assert list(found.sdata.tables) == ["cells_table"]
    found.sdata = tissue(n_samples=2)
    assert found.nuclear == "DNA"
