"""find_cells: what it finds, and that neither tiles nor units nor the table of contents change it."""

from __future__ import annotations

import logging
import re

import dask.array as da
import numpy as np
import pytest
from scipy import ndimage
from spatialdata import read_zarr
from spatialdata.transformations import get_transformation

import cytonym as cy
from cytonym.data.nuclear import nuclear_channels
from cytonym.data.nuclear_size import nucleus_diameter
from cytonym.data.source import image_sources, resolve
from cytonym.pp import _blobs
from cytonym.pp._blobs import _thin, find_blobs


def nuclei(shape=(150, 130), n=40, diameter=9.0, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Soft discs apart from each other with Poisson noise, and their centres (y, x)."""
    rng = np.random.default_rng(seed)
    centers: list[np.ndarray] = []
    while len(centers) < n:
        at = rng.uniform(6, np.subtract(shape, 6))
        if all(np.hypot(*(at - other)) > 1.3 * diameter for other in centers):
            centers.append(at)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    expected = np.full(shape, 0.3)
    for cy_, cx_ in centers:
        expected[np.hypot(y - cy_, x - cx_) <= diameter / 2] += rng.uniform(8, 30)
    return rng.poisson(ndimage.gaussian_filter(expected, 1.0)).astype("uint16"), np.array(centers)


def source_of(plane):
    return image_sources(cy.io.from_arrays(plane[None], channels=["DNA"]))[0]


@pytest.mark.parametrize("method", ["log", "maxima"])
def test_finds_the_nuclei(method):
    plane, truth = nuclei()
    blobs = find_blobs(source_of(plane), 9.0, method=method)
    found = np.column_stack([blobs.y, blobs.x]) + 0.5
    distance = np.hypot(*(truth[:, None] - found[None]).transpose(2, 0, 1))
    assert (distance.min(1) < 3).all()
    assert len(found) == len(truth)


def test_result_does_not_depend_on_tiles():
    plane, _ = nuclei()
    whole = find_blobs(source_of(plane), 9.0)
    for chunks in ((150, 130), (64, 50), (40, 33)):
        lazy = da.from_array(plane, chunks=chunks) + np.uint16(0)  # computed, so no way around dask
        source = image_sources(cy.io.from_arrays(lazy[None], channels=["DNA"]))[0]
        tiled = find_blobs(source, 9.0, tile_px=1)
        for a, b in zip(whole, tiled, strict=True):
            np.testing.assert_array_equal(a, b)


def test_result_does_not_depend_on_pieces(monkeypatch):
    """A tile with large chunks is filtered in pieces."""
    plane, _ = nuclei()
    whole = find_blobs(source_of(plane), 9.0)
    monkeypatch.setattr(_blobs, "PIECE_PX", 37)
    for a, b in zip(whole, find_blobs(source_of(plane), 9.0, tile_px=1000), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("factor", [1 / 255, 2.0**-16, 37.0])
def test_result_does_not_depend_on_units(factor):
    plane, _ = nuclei()
    a, b = find_blobs(source_of(plane), 9.0), find_blobs(source_of(plane * factor), 9.0)
    assert set(zip(a.y, a.x, strict=True)) == set(zip(b.y, b.x, strict=True))


def test_thinning_equals_a_slow_version():
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 60, (2, 400))
    kept: list[int] = []
    for i in range(len(y)):
        if all(np.hypot(y[i] - y[j], x[i] - x[j]) >= 5.5 for j in kept):
            kept.append(i)
    np.testing.assert_array_equal(np.flatnonzero(_thin(y, x, 5.5)), kept)


def test_element_goes_where_the_image_goes(tmp_path):
    plane, truth = nuclei()
    sdata = cy.io.from_arrays(plane[None], channels=["DNA"], pixel_size=0.9)
    assert cy.pp.find_cells(sdata, "DNA", diameter_um=8.1) is None
    centers = sdata["centers"]
    assert len(centers) == len(truth)
    assert list(centers.index) == list(range(1, len(truth) + 1))
    assert (np.diff(centers.geometry.y) >= 0).all()
    assert centers.radius.iloc[0] == pytest.approx(4.5)
    assert get_transformation(centers) == get_transformation(sdata["image"])
    [source] = resolve(sdata)
    np.testing.assert_allclose(source.centers[:, 0], centers.geometry.y)
    cy.pp.find_cells(sdata, "DNA", diameter_px=9.0)  # again: replaced, in pixels this time
    assert len(sdata["centers"]) == len(truth)
    sdata.write(tmp_path / "store.zarr")
    again = read_zarr(tmp_path / "store.zarr")["centers"]
    assert again.index.tolist() == centers.index.tolist()


def test_cells_with_rows_in_a_table_are_not_replaced():
    plane, _ = nuclei()
    sdata = cy.io.from_arrays(plane[None], channels=["DNA"])
    cy.pp.find_cells(sdata, "DNA", diameter_px=9)
    cy.pp.measure_cells(sdata)
    with pytest.raises(
        ValueError, match=r"Tables \['table'\] annotate 'centers', whose ids would become those of other"
    ):
        cy.pp.find_cells(sdata, "DNA", diameter_px=14)
    assert sdata["centers"].radius.iloc[0] == 4.5
    cy.pp.find_cells(sdata, "DNA", diameter_px=9, key_added="dots")
    del sdata.tables["table"]
    cy.pp.find_cells(sdata, "DNA", diameter_px=14)
    assert sdata["centers"].radius.iloc[0] == 7


def test_several_images_and_channels(caplog):
    plane, truth = nuclei()
    other, _ = nuclei(n=12, seed=3)
    sdata = cy.io.from_arrays(np.stack([plane, plane * 0]), channels=["DNA", "H3"], name="a")
    for name, planes in (("b", [other // 2, other - other // 2]), ("c", [other * 0, other * 0])):
        more = cy.io.from_arrays(np.stack(planes), channels=["DNA", "H3"], name=name)
        sdata.images[f"{name}_image"] = more.images[f"{name}_image"]
    with caplog.at_level(logging.WARNING, logger="cytonym"):
        cy.pp.find_cells(sdata, ["DNA", "H3"], diameter_px=9)
    assert len(sdata["a_centers"]) == len(truth)
    assert len(sdata["b_centers"]) == 12
    assert "No cell found in ['c_image']" in caplog.text
    assert "c_centers" not in sdata
    cy.pp.find_cells(sdata, ["DNA"], diameter_px=9, image_key="a_image", key_added="dots")
    assert "a_dots" in sdata
    assert "b_dots" not in sdata


def test_scale_of_a_pyramid():
    from spatialdata.models import Image2DModel

    plane, truth = nuclei(diameter=12, n=25)
    sdata = cy.io.from_arrays(plane[None], channels=["DNA"])
    del sdata.images["image"]
    sdata.images["image"] = Image2DModel.parse(plane[None], dims=("c", "y", "x"), c_coords=["DNA"], scale_factors=[2])
    cy.pp.find_cells(sdata, "DNA", diameter_px=6, scale="scale1")
    [source] = resolve(sdata, image_key="image", shapes_key="centers")
    distance = np.hypot(*(truth[:, None] - source.centers[None]).transpose(2, 0, 1))
    assert np.median(distance.min(1)) < 2


def test_errors():
    plane, _ = nuclei(n=5)
    sdata = cy.io.from_arrays(np.stack([plane, plane * 0]), channels=["DNA", "none"])
    before = list(sdata.shapes)
    with pytest.raises(ValueError, match=re.escape("No cell found in ['image']: channel(s) ['none'] have no maxima")):
        cy.pp.find_cells(sdata, "none", diameter_px=9)
    with pytest.raises(
        ValueError, match="pixel size of image 'image' is unknown .* Leave it out, or give `diameter_px`"
    ):
        cy.pp.find_cells(sdata, "DNA", diameter_um=8)
    with pytest.raises(
        ValueError, match=r"no size of nuclei stands out in channel\(s\) \['none'\]. Give `diameter_px`"
    ):
        cy.pp.find_cells(sdata, "none")
    unnamed = cy.io.from_arrays(plane[None], channels=["CD8"])
    with pytest.raises(ValueError, match=r"No channel of image 'image' has the name of a nuclear stain .*\['CD8'\]"):
        cy.pp.find_cells(unnamed, diameter_px=9)
    with pytest.raises(KeyError, match="No channel .*HH3.* in image 'image'. Available"):
        cy.pp.find_cells(sdata, "HH3", diameter_px=9)
    with pytest.raises(ValueError, match="`method` must be one of .*'log', 'maxima'.*, got 'dog'"):
        cy.pp.find_cells(sdata, "DNA", diameter_px=9, method="dog")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`diameter_px` must be positive, got -1"):
        cy.pp.find_cells(sdata, "DNA", diameter_px=-1)
    with pytest.raises(ValueError, match="too small to be found"):
        cy.pp.find_cells(sdata, "DNA", diameter_px=2)
    with pytest.raises(ValueError, match="`threshold` must be at least 0"):
        cy.pp.find_cells(sdata, "DNA", diameter_px=9, threshold=-1)
    with pytest.raises(ValueError, match="'image' is taken"):
        cy.pp.find_cells(sdata, "DNA", diameter_px=9, key_added="image")
    assert list(sdata.shapes) == before
    holes = cy.io.from_arrays(np.where(plane > 3, np.nan, plane * 1.0)[None], channels=["DNA"])
    with pytest.raises(ValueError, match="Channel 'DNA' of image 'image' has NaN or infinite pixels"):
        cy.pp.find_cells(holes, "DNA", diameter_px=9)


@pytest.mark.parametrize("method", ["log", "maxima"])
@pytest.mark.parametrize("value", [0.0, 7.0, 0.1])
def test_flat_image_has_no_cell(value, method):
    assert not len(find_blobs(source_of(np.full((60, 50), value)), 8.0, method=method).y)


@pytest.mark.parametrize(
    ("channels", "nuclear"),
    [
        (["CD8", "DAPI"], ["DAPI"]),
        (["DNA_1", "CD3", "DNA_2", "CD8", "DNA_3"], ["DNA_1"]),  # cycles: the first
        (["Hoechst 33342", "DNA"], ["Hoechst 33342"]),
        (["191Ir", "H3", "193Ir"], ["191Ir", "193Ir"]),
        (["DNA1(Ir191Di)", "DNA2(Ir193Di)", "HistoneH3"], ["DNA1(Ir191Di)", "DNA2(Ir193Di)"]),
        (["dsDNA", "Histone H3", "CD4"], ["Histone H3"]),
        (["dsDNA", "CD4"], ["dsDNA"]),
        (["HH3", "H3K9Ac", "Nuc"], ["HH3"]),
        (["CD4", "Nuclei"], ["Nuclei"]),
        (["H3K27me3", "pH3", "p-H3", "phospho Histone H3", "CD31", "Nucleolin", "mtDNA", "CDH3"], []),
    ],
)
def test_nuclear_channels_by_name(channels, nuclear):
    assert nuclear_channels(channels) == nuclear


def test_channel_by_name_is_told(caplog):
    plane, truth = nuclei()
    sdata = cy.io.from_arrays(np.stack([plane * 0, plane, plane]), channels=["CD8", "191Ir", "193Ir"])
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.pp.find_cells(sdata, diameter_px=9)
    assert "Nuclear channel by its name: 191Ir + 193Ir, in image." in caplog.text
    assert len(sdata["centers"]) == len(truth)


@pytest.mark.parametrize("diameter", [7.0, 12.0, 28.0])
def test_size_of_nuclei_from_the_image(diameter, caplog):
    plane, truth = nuclei(shape=(int(16 * diameter), int(14 * diameter)), n=45, diameter=diameter)
    told = nucleus_diameter([source_of(plane)])
    assert told == pytest.approx(diameter, rel=0.25)
    assert nucleus_diameter([source_of(plane / 255)]) == pytest.approx(told)  # units do not matter
    sdata = cy.io.from_arrays(plane[None], channels=["DNA"])
    with caplog.at_level(logging.INFO, logger="cytonym"):
        cy.pp.find_cells(sdata)
    assert f"pixel size unknown; nuclei look {told:.1f} px wide" in caplog.text
    assert len(sdata["centers"]) == pytest.approx(len(truth), abs=4)


def test_no_size_in_noise_or_nothing():
    noise = np.random.default_rng(0).poisson(20, (200, 200))
    for plane in (noise, noise * 0, noise[:9, :9]):
        assert nucleus_diameter([source_of(plane)]) is None


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "f1"), [("mibi_tb_granuloma", 0.74), ("codex_lymphoid_crop", 0.83), ("imc_pancreas", 0.82)]
)
def test_real_fields_with_nothing_said(real_data, name, f1):
    """A looser matching than that of the benchmark, so that a fall is seen and nothing else."""
    sdata = cy.io.read_tiffs(real_data(name))
    cy.pp.find_cells(sdata)
    found = matched = cells = 0
    for truth in resolve(sdata, image_key=list(sdata.images), labels_key=list(sdata.labels)):
        key = "centers" if len(sdata.images) == 1 else truth.image_key.replace("image", "centers")
        at = resolve(sdata, image_key=truth.image_key, shapes_key=key)[0].centers
        assert truth.labels is not None
        labels = truth.labels.read(0, truth.shape[1], 0, truth.shape[2])[tuple(at.astype(int).T)]
        matched += len(np.unique(labels[labels > 0]))
        found, cells = found + len(at), cells + len(truth.centers)
    assert 2 * matched / (found + cells) > f1 - 0.04


@pytest.mark.real_data
def test_real_field(real_data):
    sdata = cy.io.read_tiffs(real_data("imc_pancreas"))
    truth = {
        key: resolve(sdata, image_key=f"{key}_image", labels_key=f"{key}_cells")[0].centers for key in ("E34", "J02")
    }
    cy.pp.find_cells(sdata, "H3")
    for key, at in truth.items():
        found = resolve(sdata, image_key=f"{key}_image", shapes_key=f"{key}_centers")[0].centers
        near = np.hypot(*(at[:, None] - found[None]).transpose(2, 0, 1)).min(1) <= 4
        assert near.mean() > 0.7
        assert len(found) < 1.05 * len(at)
