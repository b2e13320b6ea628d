"""The synthetic tissue: the same for the same seed in any pieces, and true to what it says of its cells."""

from __future__ import annotations

import re
import tracemalloc

import dask
import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import get_channel_names

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.datasets import _tissue_phantom as module

phantom = cy.datasets.tissue_phantom


def pixels(sdata, key="image"):
    return sdata[key].to_numpy()


def means(sdata):
    """Mean intensity of each type over its masks: DataFrame [types, markers]."""
    cy.pp.measure_cells(sdata)
    table = sdata["table"]
    return table.to_df().groupby(table.obs["cell_type"].astype(str).to_numpy()).mean()


# ----------------------------------------------------------------------------------------------------------- same bytes
def test_same_seed_same_tissue():
    one, two, other = (phantom(n_cells=60, size_px=90, rng=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(pixels(one), pixels(two))
    np.testing.assert_array_equal(pixels(one, "cells"), pixels(two, "cells"))
    assert one["table"].obs.equals(two["table"].obs)
    assert (pixels(one) != pixels(other)).any()
    generators = [phantom(n_cells=60, size_px=90, rng=np.random.default_rng(3)) for _ in range(2)]
    np.testing.assert_array_equal(pixels(generators[0]), pixels(generators[1]))


def test_global_randomness_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    phantom(n_cells=20, size_px=64, rng=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("chunks", [(1, 64, 64), (5, 100, 75), (12, 300, 300)])
def test_chunks_and_the_disk_do_not_matter(tmp_path, chunks):
    whole = phantom(n_cells=200, size_px=180, rng=2)
    stored = phantom(n_cells=200, size_px=180, rng=2, path=tmp_path / "tissue.zarr", chunks=chunks)
    assert stored.is_backed()
    np.testing.assert_array_equal(pixels(stored), pixels(whole))
    np.testing.assert_array_equal(pixels(stored, "cells"), pixels(whole, "cells"))
    assert resolve(stored)[0].pixels.chunks == tuple(map(min, chunks, (12, 180, 180)))
    again = sd.read_zarr(tmp_path / "tissue.zarr")["table"].obs
    assert again["cell_type"].tolist() == whole["table"].obs["cell_type"].tolist()
    assert again["instance_id"].tolist() == whole["table"].obs["instance_id"].tolist()


def test_large_ones_are_lazy(monkeypatch):
    whole = phantom(n_cells=200, size_px=180, rng=2)
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    lazy = phantom(n_cells=200, size_px=180, rng=2, chunks=(3, 70, 70))
    assert lazy["image"].data.chunks[1] == (70, 70, 40)
    np.testing.assert_array_equal(pixels(lazy), pixels(whole))


def test_memory_does_not_grow_with_the_image(tmp_path):
    """Drawn and written in pieces: nine times the area takes as much memory."""
    phantom(n_cells=20, size_px=64, n_markers=24, path=tmp_path / "warm.zarr")  # imports and compiled code
    peaks = {}
    for side in (128, 384):
        tracemalloc.start()
        with dask.config.set(scheduler="synchronous"):
            phantom(n_cells=150, size_px=side, n_markers=24, path=tmp_path / f"{side}.zarr", chunks=(24, 128, 128))
        peaks[side] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[384] < 1.25 * peaks[128]


# ------------------------------------------------------------------------------------------------------------- contents
@pytest.mark.parametrize(
    ("preset", "n_markers", "n_types", "first"),
    [("immune", 12, 8, "DNA"), ("bone_marrow", 34, 9, "DNA1"), ("experiment1", 5, 7, "M1")],
)
def test_presets(preset, n_markers, n_types, first):
    sdata = phantom(preset, n_cells=500, rng=0)
    names = list(get_channel_names(sdata["image"]))
    assert len(names) == len(set(names)) == n_markers
    assert names[0] == first
    assert sdata["image"].dtype == np.uint16
    table = sdata["table"]
    assert table.obs["cell_type"].nunique() == n_types
    assert table.n_obs == 500
    found = means(sdata)
    types = {t.name: t for t in module.PRESETS[preset].types}
    for name, row in found.iterrows():
        markers = types[str(name)].markers
        own = [m for m in markers if markers[m] >= 2]
        for marker in own:  # each type is among the brightest of its own markers
            silent = [other for other, t in types.items() if not t.markers.get(marker) and other in found.index]
            assert all(row[marker] > found.loc[other, marker] for other in silent), (name, marker)


def test_the_pairs_of_experiment_1():
    """Pairs of equal mean intensity that differ by localisation, by size and by shape."""
    sdata = phantom("experiment1", n_cells=900, rng=1, spillover=0.0, background=0.0)
    found = means(sdata)
    for a, b, marker in [("1 centre", "2 border", "M1"), ("3 small", "4 large", "M2"), ("5 round", "6 lobed", "M3")]:
        assert found.loc[a, marker] == pytest.approx(found.loc[b, marker], rel=0.25), (a, b)
    obs = sdata["table"].obs
    size = obs.groupby("cell_type", observed=True)["diameter_um"].mean()
    assert size["4 large"] > 1.4 * size["3 small"]
    assert obs.groupby("cell_type", observed=True)["shape"].first()["6 lobed"] == "lobed"
    assert set(obs.loc[obs["cell_type"] == "1 centre", "localisation"]) == {"nucleus"}
    assert set(obs.loc[obs["cell_type"].isin(["2 border"]), "localisation"]) == {"membrane"}
    image, [source] = pixels(sdata)[0], resolve(sdata)
    at = source.centers.astype(int)
    middle = {t: image[tuple(at[(obs["cell_type"] == t).to_numpy()].T)].mean() for t in ("1 centre", "2 border")}
    assert middle["1 centre"] > 3 * middle["2 border"]


def test_truth_fits_the_mask():
    sdata = phantom(n_cells=300, rng=4, pixel_size=0.5)
    obs, labels = sdata["table"].obs, pixels(sdata, "cells")
    assert labels.shape == sdata["image"].shape[1:] == (364, 364)  # 10.5 micrometres a cell
    ids, area = np.unique(labels[labels > 0], return_counts=True)
    assert obs["instance_id"].tolist() == ids.tolist()
    drawn = 2 * np.sqrt(area / np.pi) * 0.5
    assert np.corrcoef(drawn, obs["diameter_um"])[0, 1] > 0.7
    assert np.median(drawn / obs["diameter_um"]) == pytest.approx(1, abs=0.15)
    assert resolve(sdata)[0].pixel_size == 0.5


def test_samples_and_staining():
    sdata = phantom(n_cells=150, size_px=130, n_samples=3, staining_shift=0.8, rng=0)
    assert set(sdata.images) == {"sample1_image", "sample2_image", "sample3_image"}
    assert sdata["table"].obs["sample"].astype(str).value_counts().to_dict() == dict.fromkeys(
        ["sample1", "sample2", "sample3"], 150
    )
    plain = phantom(n_cells=150, size_px=130, n_samples=3, rng=0)
    np.testing.assert_array_equal(pixels(sdata, "sample1_image"), pixels(plain, "sample1_image"))  # the reference
    np.testing.assert_array_equal(pixels(sdata, "sample2_cells"), pixels(plain, "sample2_cells"))
    ratio = pixels(sdata, "sample2_image").mean((1, 2)) / pixels(plain, "sample2_image").mean((1, 2))
    assert np.log(ratio).std() > 0.3
    alone = phantom(n_cells=150, size_px=130, rng=0)
    np.testing.assert_array_equal(pixels(alone), pixels(plain, "sample1_image"))  # further samples change nothing


def test_spill_over_background_and_brightness():
    dark = phantom(n_cells=60, size_px=90, spillover=0, background=0, blur_px=0, rng=0)
    beside = pixels(dark, "cells") == 0
    spilled = phantom(n_cells=60, size_px=90, spillover=0.5, background=0, blur_px=0, rng=0)
    hazy = phantom(n_cells=60, size_px=90, spillover=0, background=2, blur_px=0, rng=0)
    assert pixels(spilled)[:, beside].sum() > 1.5 * pixels(dark)[:, beside].sum()
    assert pixels(hazy)[:, beside].mean() > pixels(dark)[:, beside].mean() + 1
    bright = phantom(n_cells=60, size_px=90, brightness=100, rng=0)
    assert pixels(bright).mean() == pytest.approx(100 * pixels(phantom(n_cells=60, size_px=90, rng=0)).mean(), rel=0.05)


def test_number_of_markers():
    few, more = phantom(n_cells=80, n_markers=4), phantom(n_cells=80, n_markers=20)
    assert list(get_channel_names(few["image"])) == ["DNA", "CD45", "CD3", "CD4"]
    assert list(get_channel_names(more["image"]))[12:] == [f"marker_{k}" for k in range(13, 21)]
    assert pixels(more)[12:].any()


def test_centers_only():
    sdata = phantom(n_cells=80, size_px=100, centers_only=True)
    masked = phantom(n_cells=80, size_px=100)
    assert not sdata.labels
    np.testing.assert_array_equal(pixels(sdata), pixels(masked))
    assert len(sdata["centers"]) == 80
    ids = sdata["table"].obs["instance_id"]
    both = sdata["table"].obs.set_index("instance_id").loc[masked["table"].obs["instance_id"]]
    assert ids.tolist() == list(range(1, 81))
    assert both["cell_type"].tolist() == masked["table"].obs["cell_type"].tolist()


def test_types_gather_in_niches():
    """Neighbours are of one type more often than chance has it."""
    table = phantom(n_cells=1200, rng=0)["table"]
    from scipy.spatial import cKDTree

    types = table.obs["cell_type"].astype(str).to_numpy()
    nearest = cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=6)[1][:, 1:]
    same = (types[nearest] == types[:, None]).mean()
    chance = sum((types == t).mean() ** 2 for t in set(types))
    assert same > 1.25 * chance


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "brain"}, KeyError, "No preset 'brain'. Available: ['bone_marrow', 'experiment1', 'immune']."),
        ({"n_cells": 0}, ValueError, "`n_cells` must be at least 1, got 0."),
        ({"n_samples": 0}, ValueError, "`n_samples` must be at least 1, got 0."),
        ({"n_markers": 0}, ValueError, "`n_markers` must be at least 1, got 0."),
        ({"size_px": 0}, ValueError, "`size_px` must be at least 1, got 0."),
        ({"n_cells": 500, "size_px": 50}, ValueError, "500 cells do not fit into 50 x 50 px of 1 micrometres"),
        ({"pixel_size": 0}, ValueError, "`pixel_size` must be positive, got 0."),
        ({"brightness": -1}, ValueError, "`brightness` must be positive, got -1."),
        ({"staining_shift": -1}, ValueError, "`staining_shift` must be at least 0, got -1."),
        ({"background": float("nan")}, ValueError, "`background` must be at least 0, got nan."),
        ({"chunks": (0, 64, 64)}, ValueError, "`chunks` must be three numbers of at least 1"),
        ({"rng": "x"}, TypeError, "`rng` must be a seed"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        phantom(**arguments)


def test_a_store_is_not_overwritten(tmp_path):
    (tmp_path / "tissue.zarr").mkdir()
    with pytest.raises(FileExistsError, match="exists. Choose another path"):
        phantom(n_cells=20, size_px=64, path=tmp_path / "tissue.zarr")
