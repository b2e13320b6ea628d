"""Centroids of labels in one pass equal the obvious ones."""

from __future__ import annotations

import dask.array as da
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cytonym.data import labels as module
from cytonym.data.labels import label_centroids


@given(
    mask=arrays(
        np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0, 1, 2, 900])
    ),
    chunk=st.integers(1, 7),
)
@settings(max_examples=60, deadline=None)
def test_equal_to_the_mean_of_the_pixels(mask, chunk):
    ids = np.unique(mask[mask > 0])
    expected = np.array([np.argwhere(mask == i).mean(axis=0)[::-1] + 0.5 for i in ids]).reshape(-1, 2)
    module_block, module.BLOCK_PX = module.BLOCK_PX, 3  # several blocks
    try:
        for array in (mask, da.from_array(mask, chunks=chunk)):
            found, points = label_centroids(array)
            np.testing.assert_array_equal(found, ids)
            np.testing.assert_allclose(points, expected, atol=1e-9)
    finally:
        module.BLOCK_PX = module_block


def test_large_ids_and_types():
    for dtype in (np.uint8, np.uint16, np.uint32, np.int64):
        top = np.iinfo(dtype).max
        mask = np.array([[0, top, top]], dtype=dtype)
        ids, points = label_centroids(mask)
        assert ids.tolist() == [top]
        assert points.tolist() == [[2.0, 0.5]]
