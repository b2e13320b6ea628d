"""The scorer's network: published names and sizes, the same numbers in its fast form, and files of every kind."""

from __future__ import annotations

import io
import os
import pickle
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.models import available, load, save
from cytonym.models.nimbus import Nimbus, NimbusConfig

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)
SMALL = NimbusConfig(filters=4, depth=3)


def passed(model: object, x: torch.Tensor, padding: str = "reflect") -> torch.Tensor:
    with torch.inference_mode():
        return model(x, padding)  # type: ignore[operator, no-any-return]


# --- the network ---


def published_shapes() -> dict[str, tuple[int, ...]]:
    """As the authors' file has them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, n_in: int, n: int) -> None:
        shapes[f"{name}.conv2d_0.weight"], shapes[f"{name}.conv2d_0.bias"] = (n, n_in, 1, 1), (n,)
        for i in (1, 2):
            shapes[f"{name}.conv2d_{i}.weight"], shapes[f"{name}.conv2d_{i}.bias"] = (n, n, 3, 3), (n,)
            for what in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn_{i}.{what}"] = (n,)
            shapes[f"{name}.bn_{i}.num_batches_tracked"] = ()

    for i, (n_in, n) in zip((0, 2, 4, 6), ((2, 64), (64, 128), (128, 256), (256, 512)), strict=True):
        block(f"contracting_layers.{i}", n_in, n)
    block("bottle_neck", 512, 1024)
    for i, n in zip((0, 3, 6, 9), (512, 256, 128, 64), strict=True):
        shapes[f"expanding_layers.{i}.upconv.weight"] = (2 * n, n, 2, 2)
        shapes[f"expanding_layers.{i}.upconv.bias"] = (n,)
        block(f"expanding_layers.{i + 2}", 2 * n, n)
    shapes["final_conv.weight"], shapes["final_conv.bias"] = (1, 64, 1, 1), (1,)
    return shapes


def test_parameters_and_names_are_the_published_ones():
    with torch.device("meta"):
        model = Nimbus()
    assert sum(p.numel() for p in model.parameters()) == 35_607_809
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == published_shapes()
    assert (model.stride, model.halo) == (16, 96)


def test_names_and_numbers_of_the_published_network(published_weights, parity):
    """One small input in each kind of padding; the others are in benchmarks/parity.py."""
    x, y = parity("nimbus_unet")
    weights = published_weights("nimbus_unet", gains={"final_conv.weight": 0.03})
    assert {k: tuple(v.shape) for k, v in weights.items()} == published_shapes()
    with torch.device("meta"):
        model = Nimbus().eval()
    model.load_state_dict(weights, assign=True)
    for padding in ("reflect", "valid"):
        name = min((n for n in x if n.startswith(padding)), key=lambda n: x[n].size)
        found = passed(model, torch.from_numpy(x[name]), padding)
        np.testing.assert_allclose(found, y[name], atol=1e-5)


def test_new_weights_depend_on_the_seed_only():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, other = (Nimbus.from_seed(SMALL, seed=s) for s in (1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = Nimbus.from_seed(SMALL, seed=1)
    assert not first.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert not torch.equal(first.bottle_neck.conv2d_1.weight, other.bottle_neck.conv2d_1.weight)


@pytest.mark.parametrize(("depth", "halo"), [(2, 10), (3, 24), (4, 48), (5, 96), (6, 192)])
def test_nothing_beyond_the_halo_matters(scorer, depth, halo):
    model = scorer(1, depth)
    assert model.halo == halo
    s = model.stride
    side = 2 * halo + 2 * s
    x = torch.rand(1, 2, side, side, generator=torch.Generator().manual_seed(0))
    wide = F.pad(x, (s, s, s, s), value=0.9)
    found = passed(model, wide)[:, :, halo + s : -halo - s, halo + s : -halo - s]
    torch.testing.assert_close(found, passed(model, x)[:, :, halo:-halo, halo:-halo], atol=2e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    depth=st.integers(2, 4),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    padding=st.sampled_from(["reflect", "valid"]),
    n=st.integers(1, 3),
)
def test_the_fast_form_is_the_same_function(scorer, depth, height, width, padding, n):
    """On sizes that poolings divide or not."""
    model = scorer(3, depth, seed=depth)
    least = 2 * model.stride if padding == "reflect" else 2 * model.halo
    x = torch.rand(n, 2, least + height, least + width, generator=torch.Generator().manual_seed(height))
    expected = passed(model, x, padding)
    found = passed(model.for_inference(), x, padding)
    assert found.shape == expected.shape
    if padding == "reflect":
        assert found.shape[2:] == tuple(s // model.stride * model.stride for s in x.shape[2:])
    assert expected.std() > 0.03
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_fast_form_has_the_weights_of_its_making(scorer):
    model = scorer()
    x = torch.rand(1, 2, 16, 16)
    before, fast = passed(model, x), model.for_inference()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(passed(fast, x), before, atol=1e-5, rtol=0)
    assert (passed(model, x) - before).abs().max() > 0.01


def test_probabilities_follow_from_logits(scorer):
    model = scorer()
    x = torch.rand(2, 2, 20, 24)
    assert torch.equal(model.logits(x).sigmoid(), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": 0}, "`filters` must be a whole number of at least 1, got 0"),
        ({"depth": 1}, "`depth` must be a whole number of at least 2, got 1"),
        ({"filters": 1.5}, "`filters` must be a whole number"),
        ({"pixel_size": 0.0}, "`pixel_size` must be positive, got 0"),
        ({"pixel_size": float("nan")}, "`pixel_size` must be positive, got nan"),
        ({"quantile": 99.9}, "`quantile` must lie above 0 and at most at 1, got 99.9"),
    ],
)
def test_configs_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NimbusConfig(**arguments)


# --- checkpoints ---


def test_a_checkpoint_gives_the_same_scorer(scorer, tmp_path):
    model = scorer(3, 4, pixel_size=0.75, quantile=0.99)
    model.markers, model.provenance = ("CD3", "HLA-DR/DP"), {"seed": 3}
    model.history = [{"step": 1, "loss": 0.5}, {"step": 1, "validation_f1": 0.25}]
    again = load(save(model, tmp_path / "scorer"), expect="nimbus")
    assert isinstance(again, Nimbus)
    assert (again.config, again.markers, again.history) == (model.config, model.markers, model.history)
    assert again.provenance == model.provenance
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    x = torch.rand(1, 2, 32, 32)
    assert torch.equal(passed(again, x), passed(model, x))
    with pytest.raises(ValueError, match="nimbus"):
        load(tmp_path / "scorer", expect="nextmarker")


def test_it_is_listed():
    row = available().loc["nimbus"]
    assert (row["cls"], row["kind"], row["licence"]) == ("Nimbus", "scorer", "BSD-3-Clause")


# --- files of the authors; small ones, of the same names ---


def written(path: Path, model: Nimbus, **changes: torch.Tensor | None) -> Path:
    weights: dict[str, object] = {**model.state_dict(), **changes}
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save({k: v for k, v in weights.items() if v is not None}, path)
    return path


def test_a_published_file(scorer, tmp_path):
    model = scorer()
    file = written(tmp_path / "V1.pt", model)
    for source in (file, str(file), tmp_path):
        found = Nimbus.from_published(source)
        assert found.config == SMALL
        assert not found.training
        assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())
        assert found.provenance["published"] == "V1.pt"
        assert re.fullmatch("[0-9a-f]{64}", found.provenance["sha256"])


def test_the_newest_of_a_folder(scorer, tmp_path):
    """By number, not by letter."""
    for version in (2, 10, 9):
        written(tmp_path / f"V{version}.pt", scorer(seed=version))
    written(tmp_path / "V11.pt.old", scorer())
    (tmp_path / "README.md").write_text("V99.pt")
    found = Nimbus.from_published(tmp_path)
    assert found.provenance["published"] == "V10.pt"
    assert torch.equal(found.bottle_neck.conv2d_1.weight, scorer(seed=10).bottle_neck.conv2d_1.weight)


def test_global_generators_are_left_alone(scorer, tmp_path):
    file = written(tmp_path / "V1.pt", scorer())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Nimbus.from_published(file)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_such_file(scorer, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"No file at '{tmp_path / 'V1.pt'}'.")):
        Nimbus.from_published(tmp_path / "V1.pt")
    with pytest.raises(FileNotFoundError, match=r"No file at 'weights/V1\.pt'\."):
        Nimbus.from_published("weights/V1.pt")  # no name of a repository
    written(tmp_path / "other.pt", scorer())
    message = f"No file like 'V(\\\\d+)\\\\.pt' in the folder '{tmp_path}'. Found: ['other.pt']."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        Nimbus.from_published(tmp_path)


def test_a_truncated_file(scorer, tmp_path):
    file = written(tmp_path / "V1.pt", scorer())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"V1.pt' cannot be read as a file of tensors .* It is damaged"):
        Nimbus.from_published(file)


class Runs:
    """Its pickle makes a folder when it is opened the ordinary way."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_code_is_never_run(tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "V1.pt"
    buffer = io.BytesIO()
    torch.save({"contracting_layers.0.conv2d_1.weight": Runs(str(trap))}, buffer)
    for data in (buffer.getvalue(), pickle.dumps(Runs(str(trap)))):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="holds code, which is never run"):
            Nimbus.from_published(file)
    assert not trap.exists()


def test_weights_of_another_network(tmp_path):
    file = tmp_path / "V1.pt"
    torch.save({"conv1.weight": torch.ones(3), "head.bias": torch.ones(2)}, file)
    message = "'V1.pt' holds weights of another network than Nimbus. Its keys begin with ['conv1.weight', 'head.bias']."
    with pytest.raises(ValueError, match=re.escape(message)):
        Nimbus.from_published(file)
    torch.save({"contracting_layers.0.conv2d_1.weight": torch.ones(3)}, file)
    with pytest.raises(ValueError, match="another network than Nimbus"):
        Nimbus.from_published(file)


def test_weights_of_another_version(scorer, tmp_path):
    lacking = written(tmp_path / "V1.pt", scorer(), **{"bottle_neck.bn_1.weight": None, "bottle_neck.bn_1.bias": None})
    message = (
        f"'{lacking}' holds weights of another network or version than Nimbus: "
        "2 are lacking ['bottle_neck.bn_1.bias', 'bottle_neck.bn_1.weight'], 0 unknown [], 0 of another shape []."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Nimbus.from_published(lacking)
    unknown = written(tmp_path / "V2.pt", scorer(), **{"attention.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=re.escape("1 unknown ['attention.weight']")):
        Nimbus.from_published(unknown)
    three_channels = written(
        tmp_path / "V3.pt", scorer(), **{"contracting_layers.0.conv2d_0.weight": torch.ones(4, 3, 1, 1)}
    )  # fmt: skip
    with pytest.raises(ValueError, match=re.escape("1 of another shape ['contracting_layers.0.conv2d_0.weight']")):
        Nimbus.from_published(three_channels)
