"""Centres as circles keep their ids, on disk too."""

from __future__ import annotations

import re

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.transformations import Scale, get_transformation

from cytonym.data.elements import centers_element

POINTS = np.array([[1.5, 2.0], [30.25, 4.0], [7.0, 9.75]])


def test_centers_and_ids():
    element = centers_element(POINTS, radius=3)
    assert element.index.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(np.column_stack([element.geometry.x, element.geometry.y]), POINTS)
    assert element.radius.tolist() == [3, 3, 3]


@pytest.mark.parametrize("ids", [[70000, 3, 12], ["c", "a", "b"]])
def test_ids_survive_the_disk(ids, tmp_path):
    scale = Scale([0.5, 0.5], axes=("x", "y"))
    element = centers_element(POINTS, ids, transformations={"um": scale})
    sd.SpatialData(shapes={"centers": element}).write(tmp_path / "centers.zarr")
    again = sd.read_zarr(tmp_path / "centers.zarr")["centers"]
    assert again.index.tolist() == ids
    np.testing.assert_array_equal(again.geometry.x, POINTS[:, 0])
    assert get_transformation(again, "um") == scale


@pytest.mark.parametrize(
    ("points", "ids", "message"),
    [
        (np.zeros((3, 3)), None, "Centres must be (x, y) pairs [N, 2], got an array of shape (3, 3)."),
        (np.zeros(4), None, "got an array of shape (4,)"),
        (np.zeros((0, 2)), None, "There are no centres"),
        (np.array([[1, 2], [np.nan, 3], [4, np.inf]]), None, "2 centres are NaN or infinite, the first in row 1."),
        (POINTS, [1, 2], "There are 3 centres, but 2 ids."),
        (POINTS, [1, 2, 1], "Ids of the centres repeat: [1]."),
    ],
)
def test_errors(points, ids, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        centers_element(points, ids)
