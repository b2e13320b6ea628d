from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cytonym as cy
from cytonym.models import NeXtMarker, NeXtMarkerConfig, load, save
from cytonym.models.checkpoint import is_checkpoint, weights_sha256


@pytest.fixture
def model() -> NeXtMarker:
    model = NeXtMarker.from_statistics(["CD3", "CD20", "DNA"], [5.0, 7.0, 90.0], seed=3)
    model.history = [{"step": 1, "loss": 2.5, "learning_rate": 1e-3}]
    model.provenance = {"samples": ["a", "b"], "pixel_size_um": np.float32(0.5), "seed": np.int64(3)}
    return model


@pytest.fixture
def folder(model: NeXtMarker, tmp_path: Path) -> Path:
    return save(model, tmp_path / "panel")


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_round_trip_is_bitwise(model: NeXtMarker, folder: Path) -> None:
    again = load(folder)
    assert type(again) is NeXtMarker
    assert again.markers == model.markers
    assert again.config == model.config
    assert again.history == model.history
    assert again.provenance == {"samples": ["a", "b"], "pixel_size_um": 0.5, "seed": 3}
    assert not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    windows = torch.rand(4, 3, 10, 10) * 100
    assert torch.equal(again.encode(windows).embedding, model.eval().encode(windows).embedding)


def test_config_round_trip(tmp_path: Path) -> None:
    config = NeXtMarkerConfig(window_px=8, embedding_dim=32)
    assert load(save(NeXtMarker(["a"], config), tmp_path / "m")).config == config


def test_folder_holds_two_plain_files(folder: Path, model: NeXtMarker) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "weights.safetensors"]
    info = json.loads((folder / "config.json").read_text())
    assert info["format"] == 1
    assert info["class"] == "nextmarker"
    assert info["cytonym"] == cy.__version__
    assert info["weights_sha256"] == weights_sha256(model)
    assert is_checkpoint(folder)
    assert not is_checkpoint(folder.parent)


def test_load_leaves_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_parents_are_made_and_a_string_will_do(model: NeXtMarker, tmp_path: Path) -> None:
    assert load(str(save(model, f"{tmp_path}/deep/er/panel"))).markers == model.markers


def test_existing_checkpoint_is_kept_unless_asked(folder: Path, model: NeXtMarker) -> None:
    other = NeXtMarker(["x"])
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save(other, folder)
    assert load(folder).markers == model.markers
    save(other, folder, overwrite=True)
    assert load(folder).markers == ("x",)
    assert [p.name for p in folder.parent.iterdir()] == ["panel"]


def test_other_folders_are_never_replaced(model: NeXtMarker, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("text")
    with pytest.raises(FileExistsError, match="is not a checkpoint; it is left alone"):
        save(model, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "text"
    (tmp_path / "empty").mkdir()
    assert is_checkpoint(save(model, tmp_path / "empty"))


@pytest.mark.parametrize("at", [0, 1])
def test_interrupt_while_saving_leaves_the_old_one(
    folder: Path, model: NeXtMarker, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the first rename (old one aside) and at the second (new one into place)."""
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) - 1 == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(NeXtMarker(["x"]), folder, overwrite=True)
    monkeypatch.undo()
    assert load(folder).markers == model.markers
    assert [p.name for p in folder.parent.iterdir()] == ["panel"]


def test_failed_save_leaves_nothing(model: NeXtMarker, tmp_path: Path) -> None:
    model.provenance = {"when": object()}
    with pytest.raises(TypeError, match="A checkpoint holds plain values only; <object"):
        save(model, tmp_path / "panel")
    assert list(tmp_path.iterdir()) == []


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*panel'. A checkpoint is a folder made by"):
        load(tmp_path / "panel")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no config.json. Found: \['notes.txt'\]"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is not a checkpoint: it has no config.json. Found: a file"):
        load(tmp_path / "notes.txt")


def test_config_of_something_else(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="is not a cytonym checkpoint: its config.json states no format"):
        load(folder)
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="states no format"):
        load(folder)


def test_wrong_class(folder: Path) -> None:
    assert load(folder, expect="nextmarker").name == "nextmarker"
    with pytest.raises(ValueError, match="holds a model of class 'nextmarker', but 'nimbus' is needed here"):
        load(folder, expect="nimbus")


def test_unknown_class(folder: Path) -> None:
    edit(folder, **{"class": "os.system"})
    with pytest.raises(ValueError, match=r"of unknown class 'os.system'. Known: \['nextmarker'"):
        load(folder)


def test_newer_format(folder: Path) -> None:
    edit(folder, format=99, cytonym="9.0")
    with pytest.raises(ValueError, match=r"checkpoint format 99, written by cytonym 9.0; .*Upgrade cytonym"):
        load(folder)


def test_corrupt_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"config.json' is not valid JSON .* damaged"):
        load(folder)


def test_missing_key(folder: Path) -> None:
    file = folder / "config.json"
    info = json.loads(file.read_text())
    del info["markers"]
    file.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"lacks \['markers'\]"):
        load(folder)


def test_unknown_config_field(folder: Path) -> None:
    edit(folder, config={"window_px": 10, "colour": "red"})
    with pytest.raises(ValueError, match=r"does not fit NeXtMarker of this version .*colour"):
        load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not a checkpoint: it has no weights.safetensors"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated_weights(folder: Path, keep: float) -> None:
    file = folder / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"weights.safetensors' is truncated or damaged"):
        load(folder)


def test_tampered_weights(folder: Path) -> None:
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"is not the file that was saved: its SHA-256 is"):
        load(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    edit(folder, markers=["CD3", "CD20"])
    with pytest.raises(ValueError, match=r"(?s)The weights in .* do not fit the network .*size mismatch"):
        load(folder)


def test_a_pickle_is_not_opened(folder: Path, model: NeXtMarker) -> None:
    torch.save(model.state_dict(), folder / "weights.safetensors")
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load(folder)


def test_weights_are_readable_by_others(folder: Path, model: NeXtMarker, tmp_path: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    assert set(weights) == set(model.state_dict())
    save_file(weights, tmp_path / "copy.safetensors")
