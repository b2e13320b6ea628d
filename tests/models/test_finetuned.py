"""A classifier around an encoder: begins where the encoder stands, changes it, and leaves the original alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cytonym.learning.supervise import Schedule, supervise
from cytonym.models import load, save
from cytonym.models.clearit import ClearIT, ClearITConfig
from cytonym.models.finetuned import FineTuned, FineTunedConfig
from cytonym.models.nextmarker import NeXtMarker, NeXtMarkerConfig

torch.set_num_threads(1)
MARKERS = ["DNA", "CD3"]
ENCODERS: dict[str, Any] = {
    "nextmarker": lambda: NeXtMarker.from_statistics(MARKERS, [9.0, 4.0], NeXtMarkerConfig(embedding_dim=16), seed=1),
    "clearit": lambda: ClearIT.from_statistics(
        MARKERS, [9.0, 4.0], ClearITConfig(window_px=16, features=8, projector=(16,), projection_dim=8), seed=1
    ),
}
SCHEDULE = Schedule(epochs=3, batch_size=16, learning_rate=1e-3)


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return ENCODERS[request.param]().eval()


def cells(model: FineTuned, n: int = 40) -> tuple[Tensor, Tensor]:
    """Windows of two kinds, told apart by their second marker."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    level = np.stack([np.full(n, 9.0), 1.0 + 7 * y], axis=1)[:, :, None, None]
    side = model.source_px
    return torch.from_numpy(rng.poisson(level, (n, 2, side, side)).astype("f4")), torch.from_numpy(y)


def trained(model: FineTuned, **changes: Any) -> FineTuned:
    x, y = cells(model)
    rows = np.arange(len(x))
    read = lambda at: (x[torch.from_numpy(at)],)
    return supervise(
        model, read, y, Schedule(**(vars(SCHEDULE) | changes)), train=rows[:30], validate=rows[30:], device="cpu"
    )


def test_it_begins_as_the_untouched_encoder(encoder):
    before = torch.get_rng_state()
    model = FineTuned.of(encoder, ["T", "B"], multilabel=False).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.markers, model.classes, model.window_px) == (encoder.markers, ("T", "B"), encoder.window_px)
    assert model.source_px == model.window_px
    assert type(model.encoder) is type(encoder)
    assert model.encoder.config == encoder.config
    x, _ = cells(model, 5)
    d = encoder.encode(x).embedding.shape[1]
    with torch.no_grad():
        assert (model.logits(x) == 0).all()  # no class is likelier than another
        model.center.copy_(torch.linspace(-1, 1, d))
        model.spread.fill_(2)
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head.bias)
        expected = (encoder.encode(x).embedding - model.center) / 2 @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model.logits(x), expected)


def test_training_changes_the_copy_alone(encoder):
    original = {k: v.clone() for k, v in encoder.state_dict().items()}
    epochs, rate = {"nextmarker": (30, 1e-2), "clearit": (8, 2e-3)}[encoder.name]
    model = trained(FineTuned.of(encoder, ["T", "B"], multilabel=False), epochs=epochs, learning_rate=rate)
    assert all(torch.equal(v, original[k]) for k, v in encoder.state_dict().items())
    changed = {k for k, v in model.encoder.state_dict().items() if not torch.equal(v, original[k])}
    buffers = {name for name, _ in encoder.named_buffers()}
    assert changed
    assert not changed & buffers  # statistics of the training without labels stay
    losses = [row["validation_loss"] for row in model.history]
    assert min(losses) < 0.5 * np.log(2)
    x, y = cells(model)
    with torch.no_grad():
        assert float((model.logits(x).argmax(dim=1) == y).float().mean()) > 0.9


def test_normalisation_keeps_its_statistics_in_training():
    model = FineTuned.of(ENCODERS["clearit"](), ["T", "B"], multilabel=False).train()
    assert model.training
    assert model.dropout.training
    assert not any(layer.training for layer in model.encoder.modules())
    assert all(w.requires_grad for w in model.encoder.parameters())
    model.eval()
    assert not model.dropout.training


def test_the_loss_reaches_the_encoder(encoder):
    model = FineTuned.of(encoder, ["T", "B"], multilabel=True).train()
    nn.init.normal_(model.head.weight)
    x, y = cells(model)
    model.supervised_loss((x,), nn.functional.one_hot(y, 2), torch.Generator().manual_seed(0)).backward()  # type: ignore[no-untyped-call]
    reached = {name for name, w in model.encoder.named_parameters() if w.grad is not None and (w.grad != 0).any()}
    unused = {name for name, _ in model.encoder.named_parameters()} - reached
    assert reached
    assert all(name.startswith("mlp.") for name in unused)  # CLEAR-IT's projector is for training without labels


def test_windows_are_turned_and_mirrored(encoder):
    model = FineTuned.of(encoder, ["T", "B"], multilabel=False)
    side = model.window_px
    x = torch.rand(1, 2, side + 5, side + 5)
    first = (side + 5) // 2 - side // 2
    inner = x[..., first : first + side, first : first + side]
    kinds = [image.rot90(k, (2, 3)) for k in range(4) for image in (inner, inner.flip(3))]
    found = model.augment(x.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    same = torch.stack([(found == kind).flatten(1).all(dim=1) for kind in kinds])
    assert same.any(dim=0).all()
    assert same.any(dim=1).all()


def test_config_survives_json_at_any_depth(encoder, tmp_path):
    """The encoder's config holds tuples, which JSON turns into lists."""
    model = FineTuned.of(encoder, ["T", "B"], multilabel=False)
    again: Any = load(save(model, tmp_path / "model"), expect="finetuned")
    assert again.config == model.config
    assert again.encoder.config == encoder.config
    assert FineTuned.config_from_dict(json.loads(json.dumps(model.config_dict()))) == model.config


def test_an_unknown_encoder():
    with pytest.raises(KeyError, match=r"No method 'vit'. Available: \["):
        FineTuned(MARKERS, FineTunedConfig(("T", "B"), encoder="vit"))
