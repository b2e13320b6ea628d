"""Arrays become elements that the verbs understand."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import zarr

import cytonym as cy

MASK = np.zeros((24, 32), np.int32)
MASK[2:8, 2:8], MASK[10:20, 20:30] = 5, 70_000
IMAGE = np.random.default_rng(0).poisson(2, (3, 24, 32)).astype(np.uint16)
NAMES = ["DNA", "CD3", "CD8"]


@pytest.mark.parametrize("wrap", [np.asarray, da.from_array, zarr.array], ids=["numpy", "dask", "zarr"])
def test_image_and_mask(wrap):
    sdata = cy.io.from_arrays(wrap(IMAGE), wrap(MASK), channels=NAMES, pixel_size=0.5)
    np.testing.assert_array_equal(sdata["image"].data.compute(), IMAGE)
    assert sd.models.get_channel_names(sdata["image"]) == NAMES
    table = sdata["table"]
    assert table.obs["instance_id"].tolist() == [5, 70_000]
    assert table.obs_names.tolist() == ["cells_5", "cells_70000"]
    np.testing.assert_allclose(table.obsm["spatial"], [[2.5, 2.5], [12.5, 7.5]])


def test_centers_keep_their_ids(tmp_path):
    centers = pd.DataFrame({"x": [3.5, 20.0], "y": [4.0, 7.25]}, index=[90, 12])
    sdata = cy.io.from_arrays(IMAGE, channels=NAMES, centers=centers, name="core3")
    sdata.write(tmp_path / "a.zarr")
    read = sd.read_zarr(tmp_path / "a.zarr")
    assert read["core3_centers"].index.tolist() == [90, 12]
    assert read["table"].obs["instance_id"].tolist() == [90, 12]
    np.testing.assert_allclose(read["table"].obsm["spatial"], centers[["x", "y"]])


def test_image_alone_has_no_table():
    assert not cy.io.from_arrays(IMAGE[0], channels=["DNA"]).tables


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": ["DNA"]}, r"3 channels, but `channels` names 1"),
        ({"channels": ["DNA", "CD3", "CD3"]}, r"Channel names repeat: \['CD3'\]"),
        ({"labels": MASK[:-1]}, r"`labels` has shape \(23, 32\), but the image has \(24, 32\)"),
        ({"labels": MASK.astype(float)}, r"must hold integers"),
        ({"labels": MASK, "centers": [[1, 1]]}, r"give one of the two"),
        ({"labels": np.zeros_like(MASK)}, r"No cells: labels element 'cells' of image 'image' is empty"),
        ({"centers": [[1, np.nan]]}, r"1 centres are NaN or infinite, the first in row 0"),
        ({"centers": np.empty((0, 2))}, r"There are no centres"),
        ({"centers": [[1, 2, 3]]}, r"must be \(x, y\) pairs"),
        ({"centers": pd.DataFrame({"a": [1]})}, r"needs columns 'x' and 'y', it has \['a'\]"),
        ({"centers": pd.DataFrame({"x": [1, 2], "y": 1}, index=[4, 4])}, r"Ids of the centres repeat: \[4\]"),
        ({"pixel_size": 0}, r"`pixel_size` must be positive"),
        ({"image": IMAGE[None]}, r"`image` must be \[C, H, W\]"),
        ({"image": IMAGE[:, :0]}, r"at least one pixel"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        cy.io.from_arrays(**({"image": IMAGE, "channels": NAMES} | arguments))
