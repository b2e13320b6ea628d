"""Training an encoder further with labels: what it learns, that it can be stopped, and that nothing it is given changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import cytonym as cy
from cytonym.label import finetune as module
from cytonym.label.finetune import SemiSupervised, embed_picture


@pytest.fixture(scope="module")
def sdata():
    return cy.datasets.tissue_phantom(n_cells=150, size_px=160, rng=0)


@pytest.fixture(scope="module")
def encoder(sdata):
    return cy.tl.fit_encoder(sdata, steps=8, batch_size=32, rng=0, device="cpu")


def labelled(sdata, folder, n: int = 90, **told):
    session = cy.label.Session(sdata, log=folder / "log", annotator="m", **told)
    types = sdata["table"].obs["cell_type"].astype(str).to_numpy()
    names = sorted(set(types[:n]))[:3]
    for name in names:
        session.add_class(name)
        session.assign(np.flatnonzero((types == name) & (np.arange(len(types)) < n)), name, source="bulk")
    return session


def bytes_of(model) -> list[bytes]:
    return [v.numpy().tobytes() for v in model.state_dict().values()]


def test_learns_from_labels_and_changes_nothing_that_is_given(sdata, encoder, tmp_path):
    before, table = bytes_of(encoder), sdata["table"].copy()
    found = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        session = labelled(sdata, folder)
        told, steps = [], []
        session.finetune(
            encoder, steps=6, background=False, on_done=told.append, on_progress=lambda *a, s=steps: s.append(a[:2])
        )
        assert set(told[0]) == {"version", "trained_on", "precision", "seconds"}, told
        assert steps == [(k, 7) for k in range(1, 7)] + [(6, 7)]
        assert session.encoder is not None
        assert bytes_of(session.encoder) != before
        assert session.learner.features.shape == (sdata["table"].n_obs, 256)
        assert session.learner.version == told[0]["version"]
        found.append((told[0]["version"], bytes_of(session.encoder)))
    assert found[0] == found[1]
    assert bytes_of(encoder) == before
    assert list(sdata["table"].obsm) == list(table.obsm)
    assert list(sdata["table"].obs) == list(table.obs)
    row = int(session.source_rows[0][0])
    source = session.sources[0]
    y, x = (int(v) for v in source.centers[0])
    pixels = np.asarray(next(iter(sdata.images.values())).data)
    if min(y, x) >= 6 and max(y, x) < 154:  # the picture of a cell finds that cell
        picture = pixels[:, y - 6 : y + 7, x - 6 : x + 7]
        assert session.encode_picture is not None
        near, _ = session.learner.nearest(session.encode_picture(picture), 1)
        assert near[0] == row


def test_in_the_background_and_stopped(sdata, encoder, tmp_path, monkeypatch):
    session = labelled(sdata, tmp_path)
    told, going = [], threading.Event()

    def on_progress(done, total, text):
        if not going.is_set():
            going.set()
            session.cancel_finetune()

    thread = session.finetune(encoder, steps=500, on_done=told.append, on_progress=on_progress)
    assert thread is not None
    assert going.wait(60)
    thread.join(60)
    assert told == [{"cancelled": True}]
    assert session.encoder is None
    assert session.encode_picture is None


def test_one_at_a_time(sdata, encoder, tmp_path, monkeypatch):
    session = labelled(sdata, tmp_path)
    release = threading.Event()

    def wait(*args):
        release.wait(30)

    monkeypatch.setattr(module.FineTuning, "_train", wait)
    thread = session.finetune(encoder)
    with pytest.raises(RuntimeError, match="being trained already"):
        session.finetune(encoder)
    release.set()
    thread.join(30)


def test_a_method_by_name_is_trained_without_labels_first(sdata, tmp_path):
    session = labelled(sdata, tmp_path)
    steps = []
    session.finetune("clearit", steps=1, background=False, on_progress=lambda *a: steps.append(a))
    assert session.encoder.name == "clearit"
    assert [s[:2] for s in steps] == [(1, 3), (2, 3), (2, 3)]
    assert session.encoder.provenance["finetune_steps"] == 1


def test_what_cannot_be_trained(sdata, encoder, tmp_path):
    session = cy.label.Session(sdata, log=tmp_path / "log", annotator="m")
    told = []
    session.finetune(encoder, background=False, on_done=told.append)
    assert "at least two classes" in told[0]["error"]
    with pytest.raises(ValueError, match="`steps`"):
        session.finetune(encoder, steps=0)
    alone = cy.label.Session(sdata["table"], log=tmp_path / "b", annotator="m")
    with pytest.raises(ValueError, match="no images"):
        alone.finetune(encoder, background=False)
    other = cy.models.NeXtMarker.from_statistics(["X1", "X2"], [1.0, 1.0])
    (tmp_path / "c").mkdir()
    session = labelled(sdata, tmp_path / "c")
    with pytest.raises(ValueError, match="The encoder knows"):
        session.finetune(other, background=False)


def test_the_loss_is_the_encoders_plus_ten_times_that_of_the_labels(encoder):
    import copy

    d, k = 256, 2
    rng = np.random.default_rng(0)
    wrapped = SemiSupervised(
        copy.deepcopy(encoder), rng.normal(size=(d + 1, k)).astype("f4"), np.zeros(d), np.ones(d), np.ones(k)
    )
    side = encoder.recipe.views.source_px()
    windows = torch.rand(8, len(encoder.markers) + 1, side, side) * 50
    windows[:, -1] = 0
    generator = torch.Generator().manual_seed(0)
    views = encoder.recipe.views.make(wrapped.draw(windows, generator), generator)
    plain = wrapped.train().loss(views)
    assert "labels" not in plain  # nothing labelled: no NaN
    windows[:3, -1] = torch.tensor([1.0, 2.0, 1.0])[:, None, None]
    generator.manual_seed(0)
    views = encoder.recipe.views.make(wrapped.draw(windows, generator), generator)
    parts = wrapped.loss(views)
    assert torch.isclose(parts["loss"], plain["loss"] + 10 * parts["labels"], rtol=1e-4)
    parts["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in wrapped.parameters())


def test_pictures_of_other_sizes(encoder):
    channels = list(encoder.markers)
    picture = np.random.default_rng(0).random((len(channels), 31, 31)).astype("f4") * 50
    whole = embed_picture(encoder, picture, channels)
    assert whole.shape == (256,)
    first = 15 - encoder.window_px // 2
    cut = picture[:, first : first + encoder.window_px, first : first + encoder.window_px]
    np.testing.assert_allclose(embed_picture(encoder, cut, channels), whole, rtol=1e-5, atol=1e-6)
    order = np.random.default_rng(1).permutation(len(channels))
    np.testing.assert_allclose(embed_picture(encoder, picture[order], [channels[i] for i in order]), whole, rtol=1e-5)
    assert np.isfinite(embed_picture(encoder, picture[:, :3, :2], channels)).all()
    with pytest.raises(ValueError, match="must be"):
        embed_picture(encoder, picture[1:], channels)
