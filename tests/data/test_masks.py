"""Windows with masks, against slices of the label image one cell after the other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale

import cytonym as cy
from cytonym.data import masks
from cytonym.data.labels import LabelGrid, label_centroids
from cytonym.data.masks import MaskedPatches
from cytonym.data.patches import CellPatches
from cytonym.data.source import resolve

KINDS = ["numpy", "dask", "zarr", "dask on zarr"]


def stored(labels: np.ndarray, kind: str, chunk: int = 7) -> Any:
    if kind == "numpy":
        return labels
    if kind == "dask":
        return da.from_array(labels, chunks=chunk)
    array = zarr.create_array(zarr.storage.MemoryStore(), shape=labels.shape, dtype=labels.dtype, chunks=(chunk, chunk))
    array[:] = labels
    return da.from_zarr(array) if kind == "dask on zarr" else array


def nuclei(height: int, width: int, n: int, seed: int, dtype: str = "i4") -> np.ndarray:
    """Round cells that touch and cover one another, with ids that skip numbers, some cut by the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), dtype=dtype)
    for i, (cy_, cx) in enumerate(rng.uniform(0, [height, width], (n, 2))):
        labels[np.hypot(y - cy_, x - cx) < rng.uniform(1, 6)] = 3 * i + 2
    return labels


def by_hand(labels: np.ndarray, center: np.ndarray, label: int, side: int) -> np.ndarray:
    """The two masks [2, S, S] of one cell."""
    before = side // 2
    padded = np.pad(labels, ((before, side), (before, side)))
    y, x = np.floor(center).astype(int)
    window = padded[y : y + side, x : x + side]
    return np.stack([window > 0, window == label])


def agree(patches: MaskedPatches, labels: np.ndarray, side: int) -> None:
    """Every cell has its pixels as `CellPatches` gives them, and its masks by hand."""
    source = patches.source
    plain = {
        int(r): w
        for block in CellPatches(source, side, edge="constant")
        for r, w in zip(block.rows, block.windows, strict=True)
    }
    seen: list[int] = []
    for block in patches:
        assert block.windows.dtype == np.dtype(source.pixels.dtype)
        for row, window in zip(block.rows, block.windows, strict=True):
            np.testing.assert_array_equal(window[:-2], plain[int(row)])
            expected = by_hand(labels, source.centers[row], source.instance_ids[row], side)
            np.testing.assert_array_equal(window[-2:], expected)
            seen.append(int(row))
    assert sorted(seen) == sorted(plain)
    assert len(patches) == len(plain)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(14, 40), width=st.integers(14, 40), n=st.integers(1, 12), side=st.integers(1, 14),
    kind=st.sampled_from(KINDS), dtype=st.sampled_from(["u1", "u2", "i4", "i8"]), pixel=st.sampled_from(["u1", "f4", "u2"]),
    batch_size=st.sampled_from([1, 3, 100]), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_slices(make_source, height, width, n, side, kind, dtype, pixel, batch_size, seed):
    labels = nuclei(height, width, n, seed, dtype)
    ids, centers = label_centroids(labels)
    if not len(ids):
        return
    pixels = np.random.default_rng(seed).integers(0, 200, (2, height, width)).astype(pixel)
    source = replace(
        make_source(pixels, centers[:, ::-1]),
        instance_ids=ids,
        labels=LabelGrid(stored(labels, kind), (height, width), np.eye(3)),
    )
    patches = MaskedPatches(source, side, batch_size=batch_size)
    for _ in range(2):  # may be iterated again
        agree(patches, labels, side)


def test_scattered_cells_are_read_apart(make_source, monkeypatch):
    """Memory depends on the windows, not on how far they are from each other."""
    labels = nuclei(300, 400, 40, 1)
    ids, centers = label_centroids(labels)
    source = replace(
        make_source(np.ones((1, 300, 400), "u1"), centers[:, ::-1]), instance_ids=ids,
        labels=LabelGrid(labels, (300, 400), np.eye(3)),
    )  # fmt: skip
    sizes = []
    read = LabelGrid.read

    def seen(self, *box):
        found = read(self, *box)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(LabelGrid, "read", seen)
    agree(MaskedPatches(source, 11), labels, 11)
    assert len(sizes) == 1
    for most, n in ((5000, len(ids)), (1, 2 * len(ids))):  # less than a window: each by itself
        sizes.clear()
        monkeypatch.setattr(masks, "LABELS_AT_ONCE", most)
        agree(MaskedPatches(source, 11), labels, 11)
        assert 1 < len(sizes) < n
        assert max(sizes) <= max(most, 121)


def test_by_eye(make_source):
    labels = np.zeros((5, 6), int)
    labels[1:3, 1:3], labels[1:3, 3] = 7, 9
    source = replace(
        make_source(np.ones((1, 5, 6), "u1"), [[2.0, 2.0]]), instance_ids=np.array([7]),
        labels=LabelGrid(labels, (5, 6), np.eye(3)),
    )  # fmt: skip
    [block] = MaskedPatches(source, 5)
    pixels, cells, this = block.windows[0]
    assert pixels.all()
    assert cells.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert this.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_beyond_the_border_all_is_zero(make_source):
    """Also where the label image goes on."""
    larger = np.full((30, 30), 4)  # 5 pixels more on each side than the image
    shift = np.array([[1.0, 0, 5], [0, 1, 5], [0, 0, 1]])
    centers = [[0.5, 0.5], [19.5, 19.5], [0.5, 19.5], [10.0, 10.0]]
    source = replace(
        make_source(np.ones((1, 20, 20), "u2"), centers), instance_ids=np.full(4, 4), labels=LabelGrid(larger, (20, 20), shift)
    )  # fmt: skip
    agree(MaskedPatches(source, 9), np.full((20, 20), 4), 9)


def test_cells_outside_have_no_window(make_source):
    labels = nuclei(20, 20, 4, 0)
    ids, centers = label_centroids(labels)
    places = np.concatenate([centers[:, ::-1], [[-3.0, 4.0], [np.nan, 1.0]]])
    source = replace(
        make_source(np.ones((1, 20, 20), "u1"), places), instance_ids=np.concatenate([ids, [900, 901]]),
        labels=LabelGrid(labels, (20, 20), np.eye(3)),
    )  # fmt: skip
    assert len(MaskedPatches(source, 5)) == len(ids)
    agree(MaskedPatches(source, 5), labels, 5)


@pytest.mark.parametrize(("per_pixel", "shape"), [(1.5, (40, 32)), (0.5, (60, 48))])
def test_labels_of_another_resolution(per_pixel, shape):
    """Labels on a finer or a coarser grid are seen at the centres of the image's pixels."""
    height, width = shape
    labels = nuclei(round(height * per_pixel), round(width * per_pixel), 9, 3)
    pixels = np.random.default_rng(0).integers(0, 99, (2, height, width)).astype("u2")
    transforms: Any = [Identity(), Scale([1 / per_pixel] * 2, axes=("x", "y"))]
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": transforms[0]})
    cells = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": transforms[1]})
    [source] = resolve(SpatialData(images={"image": image}, labels={"cells": cells}), labels_key="cells")
    rows, columns = (((np.arange(n) + 0.5) * per_pixel + 1e-6).astype(int) for n in shape)
    seen = labels[np.ix_(rows, columns)]
    assert set(np.unique(seen)) & set(source.instance_ids)
    agree(MaskedPatches(source, 11), seen, 11)


def test_some_of_the_cells():
    """A subset has windows of its own; the neighbours stay in the mask of all cells."""
    labels = nuclei(40, 40, 12, 5)
    sdata = cy.io.from_arrays(np.ones((2, 40, 40), "u1"), labels, channels=["DNA", "CD3"])
    [source] = resolve(sdata)
    part = source.subset([1, 4])
    found = np.concatenate([block.windows for block in MaskedPatches(part, 15)])
    assert len(found) == 2
    agree(MaskedPatches(part, 15), labels, 15)
    assert (found[:, -2].sum(axis=(1, 2)) > found[:, -1].sum(axis=(1, 2))).any()


def test_cells_without_labels(make_source):
    source = make_source(np.ones((1, 20, 20)), [[5.0, 5.0]])
    for kind in ("points", "shapes"):
        message = (
            f"Masks are needed, but the cells of 'image' are named by {kind} ('cells'). "
            "Name them by a label image with `labels_key`."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            MaskedPatches(replace(source, kind=kind), 5)


def test_a_window_larger_than_the_image(make_source):
    source = replace(
        make_source(np.ones((1, 20, 30)), [[5.0, 5.0]]), labels=LabelGrid(np.ones((20, 30), int), (20, 30), np.eye(3))
    )
    with pytest.raises(ValueError, match="A window of 21 px is larger than image 'image' of 20 x 30 px"):
        MaskedPatches(source, 21)
