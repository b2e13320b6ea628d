"""DeepLIIF: what it makes of what, checkpoints, and folders of the authors' program."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import warnings
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import cytonym as cy
from cytonym.learning.gan_losses import GanWeights, Stains, discriminator_loss, generator_loss
from cytonym.models import DeepLIIF, DeepLIIFConfig, load, save
from cytonym.models.deepliif import PAPER_WEIGHTS, PUBLISHED_MODALITIES, PUBLISHED_WEIGHTS
from cytonym.models.deepliif_published import LICENCE, read_options
from cytonym.models.deepliif_training import DeepLIIFDiscriminators
from cytonym.models.translation import TileNorm

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)
TINY = DeepLIIFConfig(filters=4, blocks=2, depth=4, discriminator_filters=4, discriminator_layers=2, tile_px=32)
OPTIONS = """----------------- Options ---------------
               batch_size: 1
                 input_nc: 3
                    model: DeepLIIF                      \t[default: cycle_gan]
                      ngf: 4                             \t[default: 64]
                     norm: batch
                    net_g: resnet_2blocks
                   net_gs: unet_16
                  padding: zero
----------------- End -------------------
"""


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny(modalities: tuple[str, ...] = PUBLISHED_MODALITIES, seed: int = 0, **changes: Any) -> DeepLIIF:
    """With normalisation and last layers that do something."""
    model = DeepLIIF.from_seed(modalities, DeepLIIFConfig(**{**TINY.__dict__, **changes}), seed=seed)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data *= 5
    return model


def equal(a: nn.Module, b: nn.Module) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    )


# --------------------------------------------------------------------------------------------------------------- forward
def test_outputs_follow_from_the_generators():
    model = tiny(segmentation_weights=(0.4, 0.1, 0.2, 0.0, 0.3))
    x = noise(2, 3, 32, 48)
    with torch.no_grad():
        made = model(x)
        assert list(made) == [*PUBLISHED_MODALITIES, "segmentation"] == list(model.outputs)
        for i, name in enumerate(PUBLISHED_MODALITIES, start=1):
            assert torch.equal(made[name], model.translators[f"G{i}"](x))
        maps = model.class_maps(x, made)
        assert torch.equal(maps[0], model.segmenters["GS0"](x))
        for i, name in enumerate(PUBLISHED_MODALITIES, start=1):
            assert torch.equal(maps[i], model.segmenters[f"GS{i}"](made[name]))
    expected = sum(w * m for w, m in zip((0.4, 0.1, 0.2, 0.0, 0.3), maps, strict=True))
    torch.testing.assert_close(made["segmentation"], expected)
    assert all(image.shape == (2, 3, 32, 48) and float(image.abs().max()) <= 1 for image in made.values())


def test_a_batch_is_its_tiles_one_by_one():
    model, x = tiny(("DAPI", "marker")), noise(3, 3, 32, 32) * torch.tensor([0.1, 1, 0.5])[:, None, None, None]
    with torch.no_grad():
        together, single = model(x), [model(tile[None]) for tile in x]
    for name, images in together.items():
        torch.testing.assert_close(images, torch.cat([s[name] for s in single]), rtol=1e-4, atol=1e-5)


def test_only_what_is_needed_runs():
    model = tiny(segmentation_weights=PUBLISHED_WEIGHTS)
    ran: list[str] = []
    for group in (model.translators, model.segmenters):
        for name, network in group.items():
            network.register_forward_hook(lambda *_, name=name: ran.append(name))
    x = noise(1, 3, 16, 16)
    with torch.no_grad():
        everything = model(x)
        assert ran == ["G1", "G2", "G3", "G4", "GS0", "GS4"]
        for outputs, networks in {
            ("segmentation",): ["G4", "GS0", "GS4"],
            ("DAPI",): ["G2"],
            ("segmentation", "Lap2"): ["G3", "G4", "GS0", "GS4"],
            (): [],
        }.items():
            ran.clear()
            made = model(x, outputs)
            assert set(made) == set(outputs)
            assert ran == networks
            assert all(torch.equal(image, everything[name]) for name, image in made.items())


def test_any_modalities_and_channels():
    model = tiny(("CD3",), input_channels=2, output_channels=1, padding="reflect", dropout=False)
    made = model(noise(1, 2, 16, 16))
    assert {k: tuple(v.shape) for k, v in made.items()} == {"CD3": (1, 1, 16, 16), "segmentation": (1, 3, 16, 16)}
    assert model.segmentation_weights == (0.5, 0.5)
    assert list(tiny(())(noise(1, 3, 16, 16))) == ["segmentation"]  # a U-Net on its own


def test_segmentation_weights_by_default():
    assert tiny().segmentation_weights == PAPER_WEIGHTS
    assert tiny(("a", "b")).segmentation_weights == pytest.approx((1 / 3,) * 3)
    assert sum(PAPER_WEIGHTS) == sum(PUBLISHED_WEIGHTS) == 1


def test_seeds():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (DeepLIIF.from_seed(("x",), TINY, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(a, b)
    assert not equal(a, c)
    assert not a.training
    assert equal(DeepLIIFDiscriminators(1, TINY, seed=3), DeepLIIFDiscriminators(1, TINY, seed=3))


def test_one_step_of_training_reaches_every_weight():
    """The whole losses, on a model of two modalities."""
    model, discriminators = tiny(("DAPI", "marker")).train(), DeepLIIFDiscriminators(2, TINY).train()
    x, real = noise(1, 3, 32, 32), Stains([noise(1, 3, 32, 32, seed=i) for i in (2, 3)], noise(1, 3, 32, 32, seed=4))
    made = model(x)
    images = Stains([made["DAPI"], made["marker"]], made["segmentation"])
    weights = GanWeights(model.segmentation_weights)
    critics = discriminators.translation.values(), discriminators.segmentation.values()
    discriminator_loss(*critics, x, real, images, weights)["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in discriminators.parameters())
    assert all(p.grad is None for p in model.parameters())
    generator_loss(*critics, x, real, images, weights)["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_few_steps_lower_the_loss():
    model, discriminators = DeepLIIF.from_seed(("DAPI",), TINY).train(), DeepLIIFDiscriminators(1, TINY).train()
    x = noise(1, 3, 32, 32)
    real = Stains([torch.full_like(x, 0.7)], torch.full_like(x, -0.9))
    weights = GanWeights(model.segmentation_weights)
    critics = discriminators.translation.values(), discriminators.segmentation.values()
    one, other = (torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.999)) for m in (model, discriminators))
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(12):
            made = model(x)
            images = Stains([made["DAPI"]], made["segmentation"])
            other.zero_grad()
            discriminator_loss(*critics, x, real, images, weights)["loss"].backward()
            other.step()
            one.zero_grad()
            parts = generator_loss(*critics, x, real, images, weights)
            parts["loss"].backward()
            one.step()
            found.append(float(parts["l1_1"] + parts["l1_segmentation"]))
    assert found[-1] < 0.5 * found[0]


def test_discriminators_see_input_and_output():
    config = DeepLIIFConfig(**{**TINY.__dict__, "input_channels": 2, "output_channels": 1})
    found = DeepLIIFDiscriminators(2, config)
    sees = {
        name: network.model[0].in_channels
        for g in (found.translation, found.segmentation)
        for name, network in g.items()
    }
    assert sees == {"D1": 3, "D2": 3, "DS0": 5, "DS1": 4, "DS2": 4}
    with pytest.raises(ValueError, match="`discriminator_layers` of 4 leave nothing of tiles of 32 pixels. Take fewer"):
        DeepLIIFDiscriminators(2, DeepLIIFConfig(**{**TINY.__dict__, "discriminator_layers": 4}))


# ------------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(1, 4, 16, 16),
            r"Expected a float tensor \[B, 3, H, W\] from -1 to 1, got torch.float32 \(1, 4, 16, 16\)",
        ),
        (torch.zeros(3, 16, 16), r"got torch.float32 \(3, 16, 16\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"got torch.uint8 .*`translation.scaled` makes it of pixels"),
        (torch.zeros(1, 3, 16, 24), r"Sides must be multiples of 16, got \(16, 24\)"),
        (torch.zeros(1, 3, 0, 16), r"Sides must be multiples of 16, got \(0, 16\)"),
    ],
)
def test_wrong_images(x, message):
    with pytest.raises(ValueError, match=message):
        tiny(("a",))(x)


def test_unknown_output():
    with pytest.raises(ValueError, match=r"No outputs \['CD8'\]. There are \['DAPI', 'segmentation'\]"):
        tiny(("DAPI",))(noise(1, 3, 16, 16), ["DAPI", "CD8"])


@pytest.mark.parametrize("modalities", [("a", "a"), ("a", "segmentation")])
def test_wrong_names(modalities):
    with pytest.raises(ValueError, match="Modalities need names, each once and none of them 'segmentation', got"):
        DeepLIIF(modalities, TINY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": 0}, "`filters` must be a whole number of at least 1"),
        ({"depth": 1}, "`depth` must be a whole number of at least 2"),
        ({"padding": "valid"}, "`padding` must be one of"),
        ({"norm": "instance"}, "`norm` must be one of"),
        ({"tile_px": 40}, "`tile_px` must be a multiple of 16 for a depth of 4, got 40"),
        ({"pixel_size": 0.0}, "`pixel_size` must be positive"),
        ({"segmentation_weights": (0.5, 0.4)}, "`segmentation_weights` must be numbers from 0 to 1 with a sum of 1"),
        ({"segmentation_weights": (1.5, -0.5)}, "`segmentation_weights` must be numbers from 0 to 1 with a sum of 1"),
    ],
)
def test_wrong_config(changes, message):
    with pytest.raises(ValueError, match=message):
        DeepLIIFConfig(**{**TINY.__dict__, **changes})


def test_weights_for_another_number_of_modalities():
    with pytest.raises(ValueError, match=r"must hold 2 numbers, for the input and \['a'\], got 3"):
        tiny(("a",), segmentation_weights=(0.5, 0.25, 0.25))


# ------------------------------------------------------------------------------------------------------------ checkpoint
def test_checkpoint_round_trip(tmp_path):
    model = tiny(("DAPI", "Ki.67"), segmentation_weights=(0.5, 0.25, 0.25), norm="tile", pixel_size=0.5)
    model.history, model.provenance = [{"step": 1.0, "loss": 2.0}], {"seed": 0}
    again = load(save(model, tmp_path / "model"), expect="deepliif")
    assert type(again) is DeepLIIF
    assert again.config == model.config
    assert (again.markers, again.segmentation_weights) == (model.markers, model.segmentation_weights)
    assert (again.history, again.provenance) == (model.history, model.provenance)
    assert equal(again, model)
    assert not again.training
    x = noise(2, 3, 16, 16)
    assert all(torch.equal(image, again(x)[name]) for name, image in model(x).items())


def test_a_checkpoint_of_another_shape(tmp_path):
    folder = save(tiny(("a",)), tmp_path / "model")
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"blocks": 2', '"blocks": 3'))
    with pytest.raises(ValueError, match="do not fit the network its config.json describes"):
        load(folder)
    file.write_text(file.read_text().replace('"blocks": 3', '"blocks": 0'))
    with pytest.raises(ValueError, match="does not fit DeepLIIF of this version"):
        load(folder)


def test_it_is_listed():
    assert cy.models.available().loc["deepliif", "kind"] == "translator"


# ------------------------------------------------------------------------------------------------------------- published
def networks(model: DeepLIIF, *, older: bool = True) -> dict[str, nn.Module]:
    """Under the names that the authors' program gives them."""
    n = len(model.markers)
    drawn = [f"G{n + 1}{i}" if older else f"GS{i - 1}" for i in range(1, n + 2)]
    return dict(model.translators.items()) | dict(zip(drawn, model.segmenters.values(), strict=True))


def write(
    model: DeepLIIF, folder: Path, *, older: bool = True, options: str | None = OPTIONS, epoch: str = "latest"
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, network in networks(model, older=older).items():
        torch.save(network.state_dict(), folder / f"{epoch}_net_{name}.pth")
    if options is not None:
        (folder / "train_opt.txt").write_text(options)
    return folder


def without_statistics(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, TileNorm):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return network


def script(model: DeepLIIF, folder: Path, *, older: bool = True) -> Path:
    """As the authors' program distributes it: traced on one tile, without statistics."""
    folder.mkdir(exist_ok=True)
    for name, network in networks(model, older=older).items():
        bare = without_statistics(deepcopy(network))
        with warnings.catch_warnings(action="ignore"):  # newer torch wants other formats
            torch.jit.save(torch.jit.trace(bare, noise(1, 3, 32, 32), check_trace=False), folder / f"{name}.pt")
    return folder


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("options", [OPTIONS, None])
def test_published_folder(tmp_path, older, options):
    model = tiny()
    found = DeepLIIF.from_published(write(model, tmp_path / "m", older=older, options=options))
    assert equal(found, model)
    assert found.markers == ("hematoxylin", "DAPI", "Lap2", "marker")
    assert found.segmentation_weights == (0.5, 0, 0, 0, 0.5)
    assert found.config == DeepLIIFConfig(filters=4, blocks=2, depth=4, segmentation_weights=PUBLISHED_WEIGHTS)
    assert not found.training
    assert equal(load(save(found, tmp_path / "again")), model)


def test_options_tell_names_and_weights(tmp_path):
    told = (
        "modalities_no: 2\nmodalities_names: IHC,Hema,Ki67\nseg_weights: 0.5,0.25,0.25 [default: None]\ncrop_size: 64\n"
    )
    model = tiny(("x", "y"))
    found = DeepLIIF.from_published(write(model, tmp_path / "m", options=OPTIONS + told))
    assert found.markers == ("Hema", "Ki67")
    assert found.segmentation_weights == (0.5, 0.25, 0.25)
    assert found.config.tile_px == 64
    (tmp_path / "m" / "train_opt.txt").write_text("modalities-names: ['Hema', 'Ki67']\nseg_weights: None\n")
    found = DeepLIIF.from_published(tmp_path / "m")
    assert found.markers == ("Hema", "Ki67")
    assert found.segmentation_weights == pytest.approx((1 / 3,) * 3)
    (tmp_path / "m" / "train_opt.txt").unlink()
    assert DeepLIIF.from_published(tmp_path / "m").markers == ("modality 1", "modality 2")
    found = DeepLIIF.from_published(tmp_path / "m", ["a", "b"], segmentation_weights=[0, 0, 1])
    assert (found.markers, found.segmentation_weights) == (("a", "b"), (0, 0, 1))
    with pytest.raises(ValueError, match=r"has networks for 2 modalities, but 1 names were given: \['a'\]"):
        DeepLIIF.from_published(tmp_path / "m", ["a"])


@pytest.mark.parametrize(("padding", "dropout"), [("zero", False), ("reflect", True), ("reflect", False)])
def test_weights_tell_the_shape(tmp_path, padding, dropout):
    model = tiny(
        ("x",), padding=padding, dropout=dropout, input_channels=2, output_channels=1, blocks=3, depth=5, filters=2
    )
    found = DeepLIIF.from_published(write(model, tmp_path / "m", options=None, older=False))
    assert equal(found, model)
    assert (found.config.padding, found.config.dropout) == (padding, dropout)


def test_licence_and_hashes(tmp_path, caplog):
    folder = write(tiny(("x",)), tmp_path / "m")
    with caplog.at_level(logging.INFO, logger="cytonym"):
        found = DeepLIIF.from_published(folder)
    assert LICENCE in caplog.text
    assert "non-commercial" in LICENCE
    told = found.provenance
    assert (told["licence"], told["published"], told["epoch"]) == (LICENCE, "m", "latest")
    assert told["options"]["ngf"] == "4"
    assert told["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.pth")}
    assert load(save(found, tmp_path / "again")).provenance == told


def test_epochs_and_prefixes(tmp_path):
    old, new = tiny(("x",), seed=1), tiny(("x",), seed=2)
    folder = write(old, tmp_path / "m", epoch="100")
    write(new, folder)
    for file in folder.glob("latest*.pth"):  # as of several GPUs
        torch.save({f"module.{k}": v for k, v in torch.load(file, weights_only=True).items()}, file)
    assert equal(DeepLIIF.from_published(folder), new)
    assert equal(DeepLIIF.from_published(folder, epoch=100), old)
    with pytest.raises(
        FileNotFoundError,
        match=r"No networks such as 7_net_G1.pth in .* Found: \['100_net_G1.pth'.*Give the `epoch` of",
    ):
        DeepLIIF.from_published(folder, epoch=7)


@pytest.mark.parametrize("older", [True, False])
def test_kinds_and_epochs_are_not_mixed(tmp_path, older):
    model = tiny(("x",))
    folder = write(model, script(tiny(("x",), seed=9), tmp_path / "m", older=older), older=older, epoch="50")
    told = DeepLIIF.from_published(folder, epoch=50).provenance
    assert all(name.startswith("50_net_") for name in told["sha256"])
    last = "G22" if older else "GS1"
    (folder / f"50_net_{last}.pth").unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"lacks \['50_net_{last}.pth'\] .* kind or epoch are not taken in their"
    ):
        DeepLIIF.from_published(folder, epoch=50)
    with pytest.raises(FileNotFoundError, match="No networks such as 999_net_G1.pth in .*; that of G1.pt is 'latest'"):
        DeepLIIF.from_published(folder, epoch=999)
    told = DeepLIIF.from_published(folder).provenance
    assert (told["epoch"], set(told["sha256"])) == ("latest", {path.name for path in folder.glob("*.pt")})
    (folder / f"{last}.pt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks \['{last}.pt'\]"):
        DeepLIIF.from_published(folder)


@pytest.mark.parametrize("older", [True, False])
def test_torchscript(tmp_path, older):
    model = tiny(("x",))
    found = DeepLIIF.from_published(script(model, tmp_path / "m", older=older))
    x = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(x).values(), found(x).values(), strict=True))
    other = tiny(("x",), seed=9)
    write(other, tmp_path / "m", older=older)  # state dicts go before it
    assert equal(DeepLIIF.from_published(tmp_path / "m"), other)


def test_code_in_files_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trap"),)

    folder = write(tiny(("x",)), tmp_path / "m")
    torch.save({"model.1.weight": Trap()}, folder / "latest_net_G1.pth")
    with pytest.raises(ValueError, match="It is damaged, or holds code, which is never run"):
        DeepLIIF.from_published(folder)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("cut", [0, 10, 300, -2000, -30])
@pytest.mark.parametrize("kind", ["pth", "pt"])
def test_damaged_files(tmp_path, cut, kind):
    model = tiny(("x",))
    folder = write(model, tmp_path / "m") if kind == "pth" else script(model, tmp_path / "m")
    file = folder / ("latest_net_G1.pth" if kind == "pth" else "G1.pt")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"G1\.(pth|pt)' cannot be read as .*It is damaged"):
        DeepLIIF.from_published(folder)


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="does not exist. Pass the folder that holds the networks, such as latest_net_G1"
    ):
        DeepLIIF.from_published(tmp_path / "no")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file. Pass the folder"):
        DeepLIIF.from_published(tmp_path / "file")
    with pytest.raises(
        FileNotFoundError, match=r"No networks such as latest_net_G1.pth or G1.pt in .* Found: \['file'\]"
    ):
        DeepLIIF.from_published(tmp_path)


@pytest.mark.parametrize(
    ("older", "gone", "message"),
    [
        (True, "G2", r"lacks \['latest_net_G2.pth'\] of the networks for 4 modalities. Found: \['latest_net_G1.pth'"),
        (True, "G53", r"lacks \['latest_net_G53.pth'\]"),
        (
            True,
            "G4",
            r"lacks \['latest_net_G41.pth', 'latest_net_G42.pth', 'latest_net_G43.pth', 'latest_net_G44.pth'\]",
        ),
        (False, "GS0", r"lacks \['latest_net_GS0.pth'\]"),
        (False, "GS4", r"lacks \['latest_net_GS4.pth'\]"),
        (False, "G4", "holds networks that do not belong to a model of 3 modalities: \\['GS4'\\]"),
    ],
)
def test_a_missing_network(tmp_path, older, gone, message):
    folder = write(tiny(filters=1, blocks=1), tmp_path / "m", older=older, options=None)
    (folder / f"latest_net_{gone}.pth").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        DeepLIIF.from_published(folder)


def test_networks_that_do_not_belong_together(tmp_path):
    folder = write(tiny(("x", "y")), tmp_path / "m")
    other = networks(tiny(("x", "y"), filters=2))
    torch.save(other["G2"].state_dict(), folder / "latest_net_G2.pth")
    with pytest.raises(
        ValueError, match=r"G2.pth' holds another network .* 0 unknown \[\], \d+ of another shape \['model.1.w"
    ):
        DeepLIIF.from_published(folder)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("G1", {"a": torch.ones(1)}, r"G1.pth' is no ResNet generator .* begin with \['a'\]"),
        ("G21", {"a": torch.ones(1)}, r"G21.pth' is no U-Net generator of a class map in 3 colours"),
        ("G1", [torch.ones(1)], "G1.pth' holds no state dict"),
    ],
)
def test_another_kind_of_network(tmp_path, name, weights, message):
    folder = write(tiny(("x",)), tmp_path / "m")
    torch.save(weights, folder / f"latest_net_{name}.pth")
    with pytest.raises(ValueError, match=message):
        DeepLIIF.from_published(folder)


def test_weights_that_are_not_finite(tmp_path):
    model = tiny(("x",))
    model.translators["G1"].model[1].weight.data[0] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(ValueError, match=r"G1.pth' holds weights that are not finite. The file is damaged"):
        DeepLIIF.from_published(write(model, tmp_path / "m"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ngf: 64", "ngf is 64 in the options and 4 in the networks. Do they belong together?"),
        ("input_nc: 1", "input_nc is 1 in the options and 3 in the networks"),
        ("modalities_no: 4", "modalities_no is 4 in the options and 2 in the networks"),
        ("modalities_names: a,b,c,d", "modalities_names is 4 in the options and 2 in the networks"),
        ("seg_weights: a,b", "says seg_weights: a,b. It must be numbers, such as 0.5,0,0,0,0.5. Correct"),
        ("seg_weights: 0.5,0.5", "seg_weights is 2 in the options and 3 in the networks"),
        ("net_g: resnet_9blocks", "net_g is 9 in the options and 2 in the networks"),
        ("net_gs: unet_512", "net_gs is 512 in the options and 16 in the networks"),
        ("norm: instance", "norm is instance in the options and batch in the networks"),
        ("padding: reflect", "padding is reflect in the options and zero in the networks"),
        ("model: DeepLIIFExt", "says model: DeepLIIFExt. Only DeepLIIF is read here."),
    ],
)
def test_options_that_disagree(tmp_path, line, message):
    folder = write(tiny(("x", "y")), tmp_path / "m", options=f"{line}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepLIIF.from_published(folder)


def test_options_file(tmp_path):
    assert read_options(tmp_path / "train_opt.txt") == {}
    file = tmp_path / "train_opt.txt"
    file.write_text("  lr-g: 0.0002 \t [default: 0.1]\n note: a: b\n empty: \n---- End ----\n")
    assert read_options(file) == {"lr_g": "0.0002", "note": "a: b", "empty": ""}
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="holds no options"):
        read_options(file)
