"""Inference: the right result in the right row, by name of the marker, whatever the batches, here or on a cluster."""

from __future__ import annotations

import functools
import logging
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import spatialdata as sd
import torch
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

import cytonym as cy
from cytonym.learning import predict as module
from cytonym.learning.predict import match_markers, predict, predict_distributed
from cytonym.models.nextmarker import NeXtMarker

torch.set_num_threads(1)
MARKERS = ["DNA", "CD3", "CD20"]


@pytest.fixture(scope="module")
def model() -> NeXtMarker:
    return NeXtMarker.from_statistics(MARKERS, [40.0, 20.0, 20.0], seed=0)


def counts(n: int, side: int, n_channels: int = 3, dtype: str = "u2", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(15, (n, n_channels, side, side)).astype(dtype)


def blocks(windows: np.ndarray, size: int, rows: np.ndarray | None = None) -> list[SimpleNamespace]:
    rows = np.arange(len(windows)) if rows is None else rows
    return [
        SimpleNamespace(rows=rows[i : i + size], windows=windows[i : i + size]) for i in range(0, len(windows), size)
    ]


def run(model, windows, size=7, rows=None, **arguments):
    n_rows = arguments.pop("n_rows", len(windows))
    return predict(model, blocks(windows, size, rows), n_rows=n_rows, device="cpu", progress=False, **arguments)


def test_rows(model):
    windows = counts(10, model.window_px)
    plain = run(model, windows)
    assert set(plain) == {"embedding", "attributions", "features"}
    assert all(values.dtype == np.float32 and len(values) == 10 for values in plain.values())
    rows = np.random.default_rng(0).permutation(25)[:10]
    found = run(model, windows, rows=rows, n_rows=25)
    others = np.setdiff1d(np.arange(25), rows)
    for name, values in found.items():
        np.testing.assert_allclose(values[rows], plain[name], atol=1e-6)
        assert np.isnan(values[others]).all()


def test_equals_encode(model):
    windows = counts(9, model.window_px)
    with torch.inference_mode():
        expected = model.eval().encode(torch.from_numpy(windows))
    for name, values in run(model, windows).items():
        np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 700, 2**20])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_batches_do_not_matter(model, monkeypatch, size, at_once):
    windows = counts(64, model.window_px)
    expected = run(model, windows, 64)
    monkeypatch.setitem(module.PIXELS_AT_ONCE, "cpu", at_once)
    for name, values in run(model, windows, size).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6 * np.abs(expected[name]).max())


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8", "i8"])
def test_dtypes_give_the_same(model, dtype):
    windows = counts(6, model.window_px, dtype=dtype)
    expected = run(model, windows.astype("f4"))
    for name, values in run(model, windows).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


def test_uint16_near_its_maximum():
    """A signed 16-bit number in between would turn these negative."""
    model = NeXtMarker.from_statistics(MARKERS, [60_000.0] * 3, seed=0)
    windows = np.random.default_rng(0).integers(40_000, 65_536, (5, 3, model.window_px, model.window_px), dtype="u2")
    for panel in (None, MARKERS[::-1]):
        expected, found = run(model, windows.astype("f8"), markers=panel), run(model, windows, markers=panel)
        assert (found["attributions"] > 0).all()
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(panel=st.permutations([*MARKERS, "PanCK", "CD8"]), n=st.integers(1, 5))
def test_markers_are_matched_by_name(model, panel, n):
    panel = panel[:n]
    windows = counts(4, model.window_px, n)
    if not set(panel) & set(MARKERS):
        with pytest.raises(ValueError, match="The windows have none of the model's markers"):
            run(model, windows, markers=panel)
        return
    full = np.zeros((4, 3, model.window_px, model.window_px), "u2")
    for i, marker in enumerate(MARKERS):
        if marker in panel:
            full[:, i] = windows[:, panel.index(marker)]
    expected = run(model, full)
    found = run(model, windows, markers=panel)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)
    missing = [i for i, marker in enumerate(MARKERS) if marker not in panel]
    assert (found["attributions"][:, missing] == 0).all()


def test_match_markers():
    assert match_markers(MARKERS, None) is None
    assert match_markers(MARKERS, tuple(MARKERS)) is None
    assert match_markers(MARKERS, ["CD20", "x", "DNA"]) == [2, -1, 0]
    message = "The windows have none of the model's markers. Channels: ['x']. Markers: ['DNA', 'CD3', 'CD20']."
    with pytest.raises(ValueError, match=re.escape(message)):
        match_markers(MARKERS, ["x"])


def test_no_cells(model):
    found = run(model, counts(0, model.window_px), n_rows=3)
    some = run(model, counts(1, model.window_px))
    for name, values in found.items():
        assert values.shape == (3, *some[name].shape[1:])
        assert np.isnan(values).all()


def test_evaluation_mode_and_no_gradients(blend):
    model = blend(MARKERS).train()
    windows = counts(12, 3)
    first = run(model, windows, 12)
    assert not model.training
    second = run(model, windows, 5)
    np.testing.assert_allclose(first["embedding"], second["embedding"], rtol=1e-5)  # no dropout, no batch statistics
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_an_error_while_reading_is_raised(model):
    def broken():
        yield from blocks(counts(3, model.window_px), 3)
        msg = "broken chunk"
        raise OSError(msg)

    with pytest.raises(OSError, match="broken chunk"):
        predict(model, broken(), n_rows=9, device="cpu", progress=False)


def test_bar_counts_cells(model, capsys):
    windows = counts(1500, model.window_px)
    predict(model, blocks(windows, 500), n_rows=1500, device="cpu", n_cells=1500)
    assert "1.50k/1.50k" in capsys.readouterr().err


# --- on a cluster ---


@pytest.fixture(scope="module")
def client():
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="inproc"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_cluster_gives_the_same(model, client, capsys):
    windows = counts(40, model.window_px, 2)
    markers = ["CD20", "DNA"]
    parts = np.array_split(np.random.default_rng(0).permutation(50)[:40], 5)
    tasks = [functools.partial(blocks, windows[i * 8 : i * 8 + 8], 3, rows) for i, rows in enumerate(parts)]
    tasks.append(functools.partial(blocks, windows[:0], 3))  # a piece without cells
    found = predict_distributed(model, tasks, client, n_rows=50, markers=markers, device="cpu", n_cells=40)
    expected = run(model, windows, rows=np.concatenate(parts), n_rows=50, markers=markers)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)
    assert "40.0/40.0" in capsys.readouterr().err


def unreadable():
    msg = "no such store on this worker"
    raise FileNotFoundError(msg)
    yield


def test_an_error_on_a_worker_is_raised_here(model, client):
    with pytest.raises(FileNotFoundError, match="no such store on this worker"):
        predict_distributed(model, [unreadable], client, n_rows=3, device="cpu", progress=False)


def test_no_tasks(model, client):
    found = predict_distributed(model, [], client, n_rows=2, device="cpu", progress=False)
    assert np.isnan(found["embedding"]).all()


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_embed_cells_on_a_cluster(model, client, tmp_path, monkeypatch, storage):
    """Bands of an image, with cells outside and cells at the bands' borders, equal one process."""
    monkeypatch.setattr("cytonym.tl._encoding.BAND_PX", 32)
    rng = np.random.default_rng(0)
    pixels = rng.poisson(5, (3, 96, 90)).astype("u2")
    xy = np.concatenate([rng.uniform(0, 90, (50, 2)), [[-5, 3], [32.0, 31.99], [64, 64]]])
    sdata = sd.SpatialData(
        images={
            "image": sd.models.Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=MARKERS, chunks=(1, 16, 32))
        },
        shapes={"cells": sd.models.ShapesModel.parse(xy, geometry=0, radius=3)},
    )
    if storage == "disk":
        sdata.write(tmp_path / "a.zarr")
        sdata = sd.read_zarr(tmp_path / "a.zarr")
    with pytest.warns(UserWarning, match="1 of 53 cells have their centre outside"):
        here = cy.tl.embed_cells(sdata, model, inplace=False)
    with pytest.warns(UserWarning, match="1 of 53 cells have their centre outside"):
        there = cy.tl.embed_cells(sdata, model, client=client, inplace=False)
    assert np.isnan(here.obsm["X_nextmarker"]).any(axis=1).sum() == 1
    for key in ("X_nextmarker", "nextmarker_attributions", "nextmarker_features"):
        np.testing.assert_allclose(np.asarray(there.obsm[key]), np.asarray(here.obsm[key]), atol=1e-6)


def test_threads_are_busy_with_one_piece_each_and_nothing_else_changes(blend, monkeypatch):
    """Pieces of a block run side by side, each on one core; operations elsewhere keep theirs."""
    monkeypatch.setitem(module.PIXELS_AT_ONCE, "cpu", 1)
    model, seen = blend(MARKERS), set()
    encode = type(model).encode

    def noted(self, windows):
        seen.add((threading.current_thread().name.rsplit("_", 1)[0], torch.get_num_threads()))
        return encode(self, windows)

    monkeypatch.setattr(type(model), "encode", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(model, counts(20, 3), 20)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {("cytonym-predict", 1)}
