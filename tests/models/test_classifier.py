"""Heads: standardisation, calibrated probabilities, thresholds, and the files of published heads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cytonym.models.classifier import CellClassifier, ClassifierConfig

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)


def head(d: int = 3, hidden: tuple[int, ...] = (), **changes: object) -> CellClassifier:
    classes = changes.pop("classes", ("T", "B", "other"))
    return CellClassifier([f"m{i}" for i in range(d)], ClassifierConfig(classes, hidden=hidden, **changes)).eval()  # type: ignore[arg-type]


# --- layers ---


def test_layers_are_the_published_ones():
    kinds = [type(layer) for layer in head(hidden=(7, 5)).head]
    assert kinds == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in head().head] == [nn.Dropout, nn.Linear]
    assert [w.shape for w in head(d=3, hidden=(7, 5)).parameters() if w.ndim == 2] == [(7, 3), (5, 7), (3, 5)]
    assert ClassifierConfig(("T", "B")).dropout == 0.3


def test_standardisation():
    model = head(d=4)
    unit, center, spread = np.array([0, 2.0, 0.5, 0]), np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 0.5])
    model.set_scaling(unit, center, spread)
    x = np.random.default_rng(0).gamma(1, 50, (20, 4)).astype("f4")
    expected = np.stack([x[:, i] if unit[i] == 0 else np.arcsinh(x[:, i] / unit[i]) for i in range(4)], axis=1)
    found = model.standardize(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), (expected - center) / spread, rtol=1e-5, atol=1e-5)
    weight, bias = (w.detach().numpy() for w in model.head[1].parameters())
    np.testing.assert_allclose(
        model(torch.from_numpy(x)).detach(), found.numpy() @ weight.T + bias, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("which", "values", "kind"),
    [
        (0, [1.0], "number"),
        (0, [np.nan, 1.0, 1.0], "number"),
        (1, [1.0, np.inf, 1.0], "number"),
        (2, [1.0, 1.0], "positive number"),
        (2, [1.0, 0.0, 1.0], "positive number"),
    ],
)
def test_impossible_scaling(which, values, kind):
    given = [np.zeros(3), np.zeros(3), np.ones(3)]
    given[which] = np.array(values)
    name = ("unit", "center", "spread")[which]
    message = f"`{name}` must hold one {kind} for each of the 3 inputs, got {values}."
    with pytest.raises(ValueError, match=re.escape(message)):
        head().set_scaling(*given)


# --- probabilities ---


def likelihood(z: Tensor, y: Tensor, temperature: float) -> float:
    """Mean negative logarithm of the likelihood, in double precision."""
    scaled = z.double() / temperature
    if y.ndim == z.ndim:
        return float(F.binary_cross_entropy_with_logits(scaled, y.double()))
    return float(F.cross_entropy(scaled, y))


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(1, 40), k=st.integers(2, 5), seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3),
    kind=st.sampled_from(["random", "right", "wrong", "drawn"]), multilabel=st.booleans(),
)  # fmt: skip
def test_the_temperature_is_the_most_probable_one(n, k, seed, scale, kind, multilabel):
    """It never makes things worse than none, and no temperature of a fine grid is better."""
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.normal(size=(n, k)) * scale).float()
    numbers = {
        "random": torch.from_numpy(rng.integers(0, k, n)),
        "right": z.argmax(dim=1),
        "wrong": z.argmin(dim=1),
        "drawn": torch.from_numpy((z.numpy() / scale + rng.gumbel(size=(n, k))).argmax(axis=1)),
    }[kind]
    y = F.one_hot(numbers, k) if multilabel else numbers
    model = head(d=1, classes=tuple(map(str, range(k))), multilabel=multilabel)
    model.calibrate(z, y)
    assert ((model.temperature >= 0.0099) & (model.temperature <= 100.01)).all()
    pairs = (
        [(z[:, i], y[:, i], model.temperature[i]) for i in range(k)] if multilabel else [(z, y, model.temperature[0])]
    )
    for logits, truth, temperature in pairs:
        found = likelihood(logits, truth, float(temperature))
        tolerance = 1e-5 * (1 + found)
        assert found <= likelihood(logits, truth, 1.0) + tolerance

        def cost(t, logits=logits, truth=truth):
            return likelihood(logits, truth, t) + np.log(t) ** 2 / 2 / len(logits)

        assert cost(float(temperature)) <= min(cost(t) for t in np.geomspace(0.01, 100, 81)) + tolerance


def test_nothing_to_learn_a_temperature_from():
    model = head(d=1)
    model.calibrate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert model.temperature.tolist() == [1.0]
    model.calibrate(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert model.temperature.tolist() == [1.0]
    model.calibrate(
        torch.eye(3), torch.tensor([0, 1, 2], dtype=torch.int32)
    )  # always right, but three cells say little
    assert 0.3 < float(model.temperature) < 0.5


def test_probabilities_are_of_the_scaled_logits():
    z = torch.randn(9, 3)
    model = head(d=1)
    model.temperature.fill_(2.0)
    torch.testing.assert_close(model.probabilities(z), (z / 2).softmax(dim=1))
    model = head(d=1, multilabel=True)
    model.temperature.copy_(torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(
        model.probabilities(z), torch.stack([z[:, i].div(2**i).sigmoid() for i in range(3)], dim=1)
    )


def test_the_loss():
    z, y = torch.randn(9, 3), torch.randint(3, (9,))
    by_hand = -torch.stack([z[i, y[i]] - z[i].exp().sum().log() for i in range(9)]).mean()
    torch.testing.assert_close(head().cross_entropy(z, y), by_hand)
    hot = F.one_hot(y, 3)
    p = z.sigmoid()
    by_hand = -(hot * p.log() + (1 - hot) * (1 - p).log()).mean()
    torch.testing.assert_close(head(multilabel=True).cross_entropy(z, hot), by_hand)


# --- published heads; their numbers are in test_clearit.py ---


def published(folder: Path, weights: dict[str, Tensor], told: str | None = None) -> Path:
    torch.save(weights, folder / "head.pt")
    if told is not None:
        (folder / "conf_head.yaml").write_text(told)
    return folder / "head.pt"


LINEAR = {"head.1.weight": torch.arange(8.0).reshape(2, 4), "head.1.bias": torch.tensor([0.5, -0.5])}


def test_what_the_file_beside_says(tmp_path):
    told = "label_mode: multiclass\ndropout: 0.1\nthresholds: [0.25, 0.75]\nbase_encoder: E1001\n"
    model = CellClassifier.from_published(published(tmp_path, LINEAR, told))
    assert (model.config.multilabel, model.config.dropout, model.thresholds.tolist()) == (False, 0.1, [0.25, 0.75])
    model = CellClassifier.from_published(published(tmp_path, LINEAR, "thresholds:\n"), multilabel=False)
    assert (model.config.multilabel, model.config.dropout, model.thresholds.tolist()) == (False, 0.3, [0.5, 0.5])
    model = CellClassifier.from_published(published(tmp_path, LINEAR, "num_classes: 2\n"))
    assert model.config.multilabel
    assert model.provenance == {"published": "head.pt"}
    with pytest.raises(ValueError, match=r"Thresholds must be one number from 0 to 1 for each of \['0', '1'\]"):
        CellClassifier.from_published(published(tmp_path, LINEAR, "thresholds: [0.5]\n"))


def test_names_of_a_published_head(tmp_path):
    file = published(tmp_path, LINEAR)
    before = torch.get_rng_state()
    model = CellClassifier.from_published(file, ["T", "B"], ["a", "b", "c", "d"])
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.classes, model.markers) == (("T", "B"), ("a", "b", "c", "d"))
    model = CellClassifier.from_published(tmp_path)
    assert (model.classes, model.markers) == (("0", "1"), ("0", "1", "2", "3"))
    torch.testing.assert_close(model(torch.eye(4)), LINEAR["head.1.weight"].T + LINEAR["head.1.bias"])
    with pytest.raises(ValueError, match=r"head.pt' has 2 classes, but 3 names were given\."):
        CellClassifier.from_published(file, ["T", "B", "other"])
    with pytest.raises(ValueError, match=r"head.pt' has 4 inputs, but 1 names were given\."):
        CellClassifier.from_published(file, None, ["CD3"])


def test_many_layers_in_any_order(tmp_path):
    sizes = [5, 9, 8, 7, 6, 2]
    weights = {}
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        weights |= {f"head.{3 * i + 1}.weight": torch.randn(b, a), f"head.{3 * i + 1}.bias": torch.randn(b)}
    expected = CellClassifier.from_published(published(tmp_path, weights))
    assert expected.config.hidden == (9, 8, 7, 6)
    found = CellClassifier.from_published(published(tmp_path, dict(sorted(weights.items()))))  # 13 before 4
    x = torch.randn(3, 5)
    assert torch.equal(found(x), expected(x))


@pytest.mark.parametrize(
    "wrong",
    [
        {"main_backbone.conv1.weight": torch.ones(64, 3, 7, 7)},
        {"head.1.weight": torch.ones(2, 4)},
        {"head.2.weight": torch.ones(2, 4), "head.2.bias": torch.ones(2)},
        LINEAR | {"head.4.weight": torch.ones(3, 7), "head.4.bias": torch.ones(3)},
        LINEAR | {"head.1.bias": torch.ones(3)},
        LINEAR | {"head.3.running_mean": torch.ones(2)},
    ],
    ids=["encoder", "no bias", "other place", "do not fit", "bias", "more"],
)
def test_no_head(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"head.pt' is no CLEAR-IT head: its weights are \[\('"):
        CellClassifier.from_published(published(tmp_path, wrong))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No head.pt in the folder '.*'\. Found: \[\]\."):
        CellClassifier.from_published(tmp_path)
    (tmp_path / "head.pt").write_bytes(b"\x00")
    with pytest.raises(ValueError, match="It is damaged, or holds code, which is never run"):
        CellClassifier.from_published(tmp_path)
