"""Files of others: read without running anything in them, and with one clear error for whatever is wrong."""

from __future__ import annotations

import io
import os
import pickle
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.models import load, save
from cytonym.models.clearit import ClearIT
from cytonym.models.published import read_published, yaml_beside
from cytonym.models.resnet import ResNet, initialize

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

WEIGHTS = {"head.1.weight": torch.arange(6.0).reshape(2, 3), "head.1.bias": torch.tensor([1.0, -1.0])}
DAMAGED = r"cannot be read as a file of tensors \(.*\)\. It is damaged, or holds code, which is never run\."


def saved(thing: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_or_its_folder(tmp_path, zipped):
    file = tmp_path / "enc.pt"
    file.write_bytes(saved(WEIGHTS, zipped=zipped))
    for path in (file, str(file), tmp_path, str(tmp_path)):
        found, weights = read_published(path, "enc.pt")
        assert found == file
        assert list(weights) == list(WEIGHTS)
        assert all(torch.equal(weights[k], v) for k, v in WEIGHTS.items())


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"No file at '{tmp_path / 'enc.pt'}'.")):
        read_published(tmp_path / "enc.pt", "enc.pt")
    (tmp_path / "head.pt").write_bytes(b"")
    message = f"No enc.pt in the folder '{tmp_path}'. Found: ['head.pt']."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        read_published(tmp_path, "enc.pt")


class Runs:
    """Its pickle makes a folder when it is opened the ordinary way."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_run(tmp_path, zipped):
    file, trap = tmp_path / "enc.pt", tmp_path / "trap"
    for thing in (Runs(str(trap)), {"conv1.weight": Runs(str(trap))}):
        for data in (saved(thing, zipped=zipped), pickle.dumps(thing)):
            file.write_bytes(data)
            with pytest.raises(ValueError, match=DAMAGED):
                read_published(file, "enc.pt")
    assert not trap.exists()


def test_a_whole_network_is_no_state_dict(tmp_path):
    (tmp_path / "enc.pt").write_bytes(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=DAMAGED):
        read_published(tmp_path, "enc.pt")


@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        ([torch.ones(2)], "list"),
        (torch.ones(2), "Tensor"),
        ({}, r"\[\]"),
        ({"epoch": 3, "model": WEIGHTS}, r"\['epoch', 'model'\]"),
    ],
)
def test_no_state_dict(tmp_path, thing, kind):
    (tmp_path / "enc.pt").write_bytes(saved(thing))
    with pytest.raises(ValueError, match=rf"enc.pt' holds no state dict \(names and tensors\) but {kind}\."):
        read_published(tmp_path, "enc.pt")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), zipped=st.booleans())
def test_damaged_files(tmp_path_factory, data, zipped):
    """Cut, changed in some bytes, or something else altogether: a state dict or the one error, never another, no warning."""
    whole = bytearray(saved(WEIGHTS, zipped=zipped))
    kind = data.draw(st.sampled_from(["cut", "changed", "other"]))
    if kind == "cut":
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "changed":
        for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
            whole[at] = data.draw(st.integers(0, 255))
    else:
        whole = bytearray(
            data.draw(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"])) + data.draw(st.binary(max_size=60))
        )
    file = tmp_path_factory.getbasetemp() / "damaged.pt"
    file.write_bytes(whole)
    message = ""
    try:
        _, weights = read_published(file, "enc.pt")
        assert all(isinstance(v, torch.Tensor) for v in weights.values())
    except ValueError as error:
        message = str(error)
    assert not message or re.search(f"{DAMAGED}|holds no state dict", message, re.DOTALL)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    file = tmp_path / "enc.pt"
    file.write_bytes(saved(WEIGHTS))

    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", refused)
    with pytest.raises(PermissionError, match="Permission denied"):
        read_published(file, "enc.pt")


def test_yaml_beside(tmp_path):
    file = tmp_path / "enc.pt"
    assert yaml_beside(file, "conf_enc.yaml") == {}
    beside = tmp_path / "conf_enc.yaml"
    beside.write_text("img_size: 32\nmlp_layers: [512, 512]\n")
    assert yaml_beside(file, "conf_enc.yaml") == {"img_size": 32, "mlp_layers": [512, 512]}
    for text in ("", "- 1\n- 2\n", "only text"):
        beside.write_text(text)
        assert yaml_beside(file, "conf_enc.yaml") == {}
    for data in (b"a: [1", b"a: !!python/object/apply:os.getcwd []", np.array([0xFF, 0xFE, 0x00], "u1").tobytes()):
        beside.write_bytes(data)
        with pytest.raises(ValueError, match=r"conf_enc.yaml' is not valid YAML \(.*\)\."):
            yaml_beside(file, "conf_enc.yaml")


# --- encoders; their numbers are in test_clearit.py ---


def written(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save(weights, folder / "enc.pt")
    return folder / "enc.pt"


def weights_of(network: ResNet) -> dict[str, Tensor]:
    initialize(network, torch.Generator().manual_seed(0))
    return {f"main_backbone.{key}": value for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(weights_of(ResNet(18, 3, 8)), tmp_path_factory.mktemp("encoder"))


def test_options_of_a_published_file(small_file):
    model = ClearIT.from_published(small_file)
    assert (model.markers, model.config.scale, model.window_px, model.training) == (("any",), 255.0, 64, False)
    assert model.provenance == {"published": "enc.pt", "scale": 255.0}
    model = ClearIT.from_published(small_file.parent, ["CD3", "CD8"], scale=65536, window_px=32)
    assert (model.markers, model.config.scale, model.window_px) == (("CD3", "CD8"), 65536.0, 32)
    torch.testing.assert_close(model.gain, torch.full((2,), 1 / 65536))
    panel = model.for_panel(["PD1", "CD8", "DNA"], [0.0, 3.0, 1e6])
    torch.testing.assert_close(panel.gain, torch.full((3,), 1 / 65536))
    assert panel.provenance == model.provenance


def test_the_file_beside_tells_the_window(tmp_path, small_file):
    written(torch.load(small_file, weights_only=True), tmp_path)
    for text, side in (("img_size: 32\ntau: 0.05\n", 32), ("tau: 0.05\n", 64), ("img_size:\n", 64)):
        (tmp_path / "conf_enc.yaml").write_text(text)
        assert ClearIT.from_published(tmp_path).window_px == side
    (tmp_path / "conf_enc.yaml").write_text("img_size: 32\n")
    assert ClearIT.from_published(tmp_path, window_px=48).window_px == 48
    (tmp_path / "conf_enc.yaml").write_text("img_size: [")
    with pytest.raises(ValueError, match="conf_enc.yaml' is not valid YAML"):
        ClearIT.from_published(tmp_path)


def test_published_global_generators_are_left_alone(small_file):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ClearIT.from_published(small_file).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(v, first[k]) for k, v in ClearIT.from_published(small_file).state_dict().items())


def test_a_published_encoder_is_saved_and_loaded(small_file, tmp_path):
    model = ClearIT.from_published(small_file, ["CD3", "CD8"])
    again = load(save(model, tmp_path / "model"), expect="clearit")
    assert (again.config, again.provenance) == (model.config, model.provenance)
    pixels = torch.rand(2, 2, 64, 64) * 255
    with torch.inference_mode():
        assert torch.equal(again.encode(pixels).embedding, model.encode(pixels).embedding)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file at '.*enc.pt'\."):
        ClearIT.from_published(tmp_path / "enc.pt")
    (tmp_path / "head.pt").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"No enc.pt in the folder '.*'\. Found: \['head.pt'\]\."):
        ClearIT.from_published(tmp_path)
    with pytest.raises(ValueError, match="It is damaged, or holds code, which is never run"):
        ClearIT.from_published(tmp_path / "head.pt")


def test_a_head_is_no_encoder(tmp_path):
    for prefix in ("head.", ""):
        head = {f"{prefix}1.weight": torch.ones(2, 8), f"{prefix}1.bias": torch.ones(2)}
        message = (
            f"'{tmp_path / 'enc.pt'}' is no CLEAR-IT encoder but a head: read it with `CellClassifier.from_published`. "
            f"Its keys begin with ['{prefix}1.bias', '{prefix}1.weight']."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            ClearIT.from_published(written(head, tmp_path))


def test_another_network(tmp_path):
    for other in ({"conv1.weight": torch.ones(64, 3, 7, 7)}, {"main_backbone.conv1.weight": torch.ones(3)}):
        with pytest.raises(ValueError, match=r"is no CLEAR-IT encoder but another network\. Its keys begin with \['"):
            ClearIT.from_published(written(other, tmp_path))


def test_another_architecture(tmp_path, small_file):
    weights = torch.load(small_file, weights_only=True)
    deeper = weights | {"main_backbone.layer1.2.conv1.weight": torch.ones(64, 64, 3, 3)}  # as in ResNet-34
    message = (
        "holds an encoder of another architecture than ResNet-18: 0 weights are lacking [], "
        "1 unknown ['main_backbone.layer1.2.conv1.weight'], 0 of another shape []."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        ClearIT.from_published(written(deeper, tmp_path))
    with pytest.raises(ValueError, match=r"than ResNet-18: 0 weights are lacking \[\], \d+ unknown .*layer1.0.bn3"):
        ClearIT.from_published(written(weights_of(ResNet(50, 3, 8)), tmp_path))
    lacking = {k: v for k, v in weights.items() if "layer4.1.bn2" not in k}
    with pytest.raises(ValueError, match=r"5 weights are lacking \['main_backbone.layer4.1.bn2.weight', '"):
        ClearIT.from_published(written(lacking, tmp_path))
    wide = weights | {"main_backbone.bn1.weight": torch.ones(65)}
    with pytest.raises(ValueError, match=r"1 of another shape \['main_backbone.bn1.weight'\]"):
        ClearIT.from_published(written(wide, tmp_path))
