"""MAPS gives the published program's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cytonym.models.maps import MAPS, MAPS_SCHEDULE, MAPSConfig

torch.set_num_threads(1)


@pytest.mark.parametrize(("divisor", "suffix"), [(255.0, ""), (1.0, "_no255")])
def test_published_numbers(parity, published_weights, divisor, suffix):
    inputs, outputs = parity("maps_mlp")
    config = MAPSConfig(tuple(f"type {i}" for i in range(16)), divisor=divisor)
    model = MAPS([f"m{i}" for i in range(50)], config).double().eval()
    weights = {key: value.double() for key, value in published_weights("maps_mlp").items()}
    assert set(model.load_state_dict(weights, strict=False).missing_keys) == {
        "unit", "center", "spread", "temperature", "thresholds",
    }  # fmt: skip
    model.set_scaling(np.zeros(50), inputs["mean"], inputs["std"])
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs["x"]))
        probabilities = model.probabilities(logits)
    np.testing.assert_allclose(logits.numpy(), outputs[f"logits{suffix}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(probabilities.numpy(), outputs[f"probs{suffix}"], rtol=0, atol=1e-9)
    scaled = model.standardize(torch.from_numpy(inputs["x"])) / 255
    np.testing.assert_allclose(scaled.numpy(), outputs["features_div255"], rtol=0, atol=1e-12)


def test_number_of_weights_and_their_names(published_weights):
    model = MAPS([f"m{i}" for i in range(50)], MAPSConfig(tuple(map(str, range(16)))))
    assert sum(w.numel() for w in model.parameters()) == 822_288
    published = published_weights("maps_mlp")
    assert {k: v.shape for k, v in model.named_parameters()} == {k: v.shape for k, v in published.items()}


def test_layers():
    model = MAPS(["a", "b"], MAPSConfig(("T", "B")))
    assert [type(layer) for layer in model.fc] == [nn.Linear, nn.ReLU, nn.Dropout] * 4
    assert {layer.p for layer in model.fc if isinstance(layer, nn.Dropout)} == {0.25}
    assert MAPS(["a", "b"], MAPSConfig(("T", "B"), hidden=(3,))).classifier.in_features == 3


def test_schedule_is_the_published_one():
    found = MAPS_SCHEDULE
    assert (found.epochs, found.min_epochs, found.patience) == (500, 250, 100)
    assert (found.batch_size, found.learning_rate, found.weight_decay) == (128, 1e-3, 0)
    assert found.balance
    assert found.drop_last


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan")])
def test_impossible_divisor(divisor):
    with pytest.raises(ValueError, match=f"`divisor` must be positive, got {divisor}"):
        MAPSConfig(("T", "B"), divisor=divisor)
