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
    centers = session.sources[0].centers.astype(int)
    at = int(np.flatnonzero((centers.min(axis=1) >= 20) & (centers.max(axis=1) < 140))[0])
    y, x = centers[at]
    picture = np.asarray(next(iter(sdata.images.values())).data)[:, y - 6 : y + 7, x - 6 : x + 7]
    assert session.encode_picture is not None
    near, _ = session.learner.nearest(session.encode_picture(picture), 1)
    assert near[0] == session.source_rows[0][at]


def test_in_the_background_and_stopped(sdata, encoder, tmp_path):
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


def test_stopped_while_it_embeds(sdata, encoder, tmp_path):
    session = labelled(sdata, tmp_path)
    told = []

    def on_progress(done, total, text):
        if text == "embedding":
            session.cancel_finetune()

    session.finetune(encoder, steps=1, background=False, on_done=told.append, on_progress=on_progress)
    assert told == [{"cancelled": True}]
    assert session.encoder is None


def test_nothing_changes_where_nothing_can_be_learned_afterwards(sdata, encoder, tmp_path):
    session = labelled(sdata, tmp_path)
    with_nothing = np.full((session.n, 4), np.nan, np.float32)
    assert "error" in session.adopt(encoder, with_nothing)
    assert session.encoder is None
    assert session._learner is None


def test_no_class_is_lost_where_not_all_labels_fit(sdata, encoder):
    rng = np.random.default_rng(0)
    codes = np.array([0] * 50_000 + [1] * 10 + [2] * 3000, np.int16)
    rows = rng.permutation(len(codes))
    found = module._some_of_each(rows, codes[rows], 900, rng)
    assert len(np.unique(found)) == 900
    assert np.bincount(codes[found])[1:].tolist()[0] == 10
    assert (np.bincount(codes[found]) >= [300, 10, 300]).all()
    assert found.tolist() == rows[np.isin(rows, found)].tolist()  # in their order
    assert sorted(codes[module._some_of_each(rows, codes[rows], 2, rng)]) == [0, 1, 2]


def test_a_class_outside_the_images_is_left_out(sdata, encoder, tmp_path, monkeypatch, caplog):
    session = labelled(sdata, tmp_path)
    job = module.FineTuning(session)
    session.add_class("elsewhere")
    code = session.label_class("elsewhere")
    rows = np.flatnonzero(session.codes == -1)[:4]
    session.assign(rows, "elsewhere")
    inside = np.ones(session.n, bool)
    inside[rows] = False
    monkeypatch.setattr(job, "_inside", lambda: inside)
    known = job._known(session.labels())
    assert code not in known
    assert "'elsewhere'" in caplog.text
    inside[session.labels() != 0] = False
    with pytest.raises(ValueError, match="inside its image"):
        job._known(session.labels())


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
