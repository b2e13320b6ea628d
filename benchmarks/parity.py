"""Do our re-implementations give the numbers of the published programs?

    python benchmarks/parity.py --fixtures DIR [--only clearit,maps] --json

Every folder below DIR that holds `inputs.npz` and `outputs.npz` and whose name begins with one of `--only` is checked. The
numbers were made by the published programs with weights drawn from the names of their tensors, by the rule of `filled` below;
the folder's README (or that of DIR) tells its salt and the factors of single tensors. Each quantity has the tolerance that the
fixtures state. Ends with {"agree": whether all are within it, "checked": number of quantities, "max_error": largest error of each}.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import math
import re
import sys
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from spatialdata import SpatialData

import cytonym as cy
from cytonym.data.class_map import CellRules, cells_of_map
from cytonym.data.class_map_images import overlay, refined_mask
from cytonym.data.patches import CellPatches
from cytonym.data.source import resolve
from cytonym.learning import gan_losses
from cytonym.learning.lars import LARS
from cytonym.learning.losses import ntxent
from cytonym.learning.maps import Mapper, released_map
from cytonym.models.translation import PatchDiscriminator, TileNorm, scaled, to_uint8
from cytonym.tl._scoring import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Arrays = dict[str, np.ndarray]
Check = tuple[str, float, float]
"""Name, error, tolerance."""


class Fixture:
    """A folder of inputs, outputs and weights."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.inputs, self.outputs = (_arrays(folder / f"{what}.npz") for what in ("inputs", "outputs"))
        keys = folder / "keys.json"
        self.keys: dict[str, Any] = json.loads(keys.read_text()) if keys.is_file() else {}
        told = [p.read_text() for p in (folder / "README.md", folder.parent / "README.md") if p.is_file()]
        self.salt = next((m.group(1) for text in told for m in [re.search(r"salt:?\s*`?'([^']*)'", text)] if m), "")
        self.gains: dict[str, float] = {}
        for found in re.findall(r"\{[\"'][^{}]*[\"']: *[\d.]+[^{}]*\}", told[0] if told else ""):
            self.gains |= ast.literal_eval(found)

    def weights(self, shapes: dict[str, Any], *, gains: bool = True) -> dict[str, torch.Tensor]:
        """The state dict of `keys.json` with its numbers."""
        factors = self.gains if gains else {}
        return {key: filled(key, spec["shape"], self.salt, factors.get(key, 1.0)) for key, spec in shapes.items()}


def filled(key: str, shape: list[int], salt: str, gain: float) -> torch.Tensor:
    """A tensor drawn from its name (rule of the fixtures)."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    rng = np.random.Generator(np.random.PCG64(zlib.crc32((key + salt).encode())))
    if key.endswith("running_mean"):
        values = 0.1 * rng.standard_normal(shape)
    elif key.endswith("running_var"):
        values = 0.5 + rng.random(shape)
    elif len(shape) >= 2:
        values = gain * rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif key.endswith("bias"):
        values = gain * 0.1 * rng.standard_normal(shape)
    else:
        values = 1 + 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


# ------------------------------------------------------------------------------------------------------------- CLEAR-IT
def clearit_encoder(fixture: Fixture) -> Iterator[Check]:
    """Encoder with 3 and 1 input channels, with and without the last layer, projector, concatenation, heads."""
    x, y = fixture.inputs, fixture.outputs
    x3, x5 = torch.from_numpy(x["x3"]), torch.from_numpy(x["x5"])
    for name in [key for key in fixture.keys if key.startswith("encoder_")]:
        tag = name.removeprefix("encoder_")
        weights = fixture.weights(fixture.keys[name])
        encoder = _published(cy.models.ClearIT, weights, [str(i) for i in range(x5.shape[1])], scale=1.0)
        with torch.inference_mode():
            features = encoder.main_backbone(x3)
            yield f"feat3_{tag}", _error(features, y[f"feat3_{tag}"]), 1e-4
            yield f"proj3_{tag}", _error(encoder.project(features), y[f"proj3_{tag}"]), 1e-4
            yield f"feat1_{tag}", _error(encoder.describe(x3[:, :1]), y[f"feat1_{tag}"]), 1e-4
            stem = "main_backbone.conv1.weight"
            grey = _published(cy.models.ClearIT, weights | {stem: weights[stem].sum(dim=1, keepdim=True)})
            yield f"feat1_{tag}, one channel", _error(grey.describe(x3[:, :1]), y[f"feat1_{tag}"]), 1e-4
            bare = {k: v for k, v in weights.items() if not k.startswith(("main_backbone.fc.", "mlp."))}
            yield (
                f"pooled3_{tag}",
                _error(_published(cy.models.ClearIT, bare).main_backbone(x3), y[f"pooled3_{tag}"]),
                1e-4,
            )
            embedding = encoder.encode(x5).embedding
            yield f"concat_{tag}", _error(embedding, y[f"concat_{tag}"]), 1e-4
            for kind in ("linear", "mlp"):
                shapes = fixture.keys.get(f"head_{kind}_{tag}")
                if shapes is None:
                    continue
                drawn = fixture.weights(shapes, gains=False)
                for label, state in ((kind, drawn), (f"{kind}, old keys", _without_prefix(drawn))):
                    head = _published(cy.models.CellClassifier, state)
                    logits = head(embedding)
                    yield f"logits_{label}_{tag}", _error(logits, y[f"logits_{kind}_{tag}"]), 1e-4
                    yield f"sigmoid_{label}_{tag}", _error(head.probabilities(logits), y[f"sigmoid_{kind}_{tag}"]), 1e-4


def clearit_loss(fixture: Fixture) -> Iterator[Check]:
    """NT-Xent with its gradient, and steps of LARS."""
    x, y = fixture.inputs, fixture.outputs
    for name in [key for key in y if key.startswith("loss_N")]:
        n, tau = (match := re.fullmatch(r"loss_N(\d+)_tau([\d.]+)", name)) and match.groups() or ("", "")
        z = torch.from_numpy(x[f"z_N{n}"]).requires_grad_()
        loss = 2 * ntxent([z[0::2], z[1::2]], float(tau))
        loss.backward()
        expected = float(y[name])
        yield name, abs(float(loss.detach()) - expected) / max(1.0, abs(expected)), 1e-5
        yield f"grad_N{n}_tau{tau}", _error(z.grad, y[f"grad_N{n}_tau{tau}"]), 1e-5
    for prefix in [key.removesuffix("_w0") for key in x if key.endswith("_w0")]:
        weight, bias = (torch.nn.Parameter(torch.from_numpy(x[f"{prefix}_{name}0"].copy())) for name in "wb")
        optimizer = LARS([weight, bias], lr=0.3)
        steps = len([key for key in y if key.startswith(f"{prefix}_loss")])
        for i in range(1, steps + 1):
            loss = ((torch.from_numpy(x["lars_x"]) @ weight.T + bias - torch.from_numpy(x["lars_y"])) ** 2).mean()
            yield f"{prefix}_loss{i}", abs(float(loss.detach()) - float(y[f"{prefix}_loss{i}"])), 1e-6
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield f"{prefix}_w{i}", _error(weight, y[f"{prefix}_w{i}"]), 1e-6
            yield f"{prefix}_b{i}", _error(bias, y[f"{prefix}_b{i}"]), 1e-6


def clearit_misc(fixture: Fixture) -> Iterator[Check]:
    """Thresholds, confidences, PR-AUC, ranking of images, windows."""
    x, y = fixture.inputs, fixture.outputs
    scores = torch.from_numpy(x["thr_logits"]).sigmoid().numpy()
    yield "thresholds", _error(cy.metrics.best_f1_thresholds(x["thr_targets"], scores), y["thresholds"]), 1e-6

    targets, sigmoid, thresholds = x["conf_target"], x["conf_sigmoid"], x["conf_thresholds"]
    differ = float((cy.metrics.outcomes(targets, sigmoid, thresholds) != y["conf_outcome"]).sum())
    yield "conf_outcome", differ, 0.0
    yield "conf_absolute", _error(cy.metrics.margin(sigmoid, thresholds), y["conf_absolute"]), 1e-6
    yield "conf_true", _error(cy.metrics.true_label_confidence(sigmoid, thresholds), y["conf_true"]), 1e-6
    yield "conf_scaled", _error(cy.metrics.call_confidence(sigmoid, thresholds), y["conf_scaled"]), 1e-6

    for name in [key for key in y if re.fullmatch(r"ap_chunks\d+", key)]:
        pieces = int(name.removeprefix("ap_chunks"))
        found = cy.metrics.pr_auc(x["mom_target"], x["mom_sigmoid"], pieces=pieces)
        yield name, _error(found.by_piece, y[name]), 1e-9
        yield f"mom_chunks{pieces}", _error(found.mean_of_medians, y[f"mom_chunks{pieces}"]), 1e-9
        yield f"pooled_median_chunks{pieces}", _error(found.pooled_median, y[f"pooled_median_chunks{pieces}"]), 1e-9
    whole = cy.metrics.pr_auc(x["mom_target"], x["mom_sigmoid"], pieces=1)
    yield "mom_whole", _error(whole.mean_of_medians, y["mom_whole"]), 1e-9
    yield from _ranking(x, y)
    yield "windows", _error(_windows(x["win_image"], x["win_xy"], y["windows"].shape[-1]), y["windows"]), 1e-7


def _ranking(x: Arrays, y: Arrays) -> Iterator[Check]:
    stems = [str(name).rsplit(".", 1)[0] for name in y["rank_image_names"]]
    columns = [int(re.findall(r"\d+", str(name))[0]) - 1 for name in y["rank_columns"]]
    everything = [i for i, name in enumerate(y["rank_columns"]) if "100.0" in str(name)]
    names = [f"channel {i}" for i in range(len(x[f"rank_img_{stems[0]}"]))]
    samples = [cy.io.from_arrays(x[f"rank_img_{stem}"], channels=names, name=stem) for stem in stems]
    wanted = [names[c] for c in columns]
    background = wanted[everything[0]]
    arguments: dict[str, Any] = {"markers": [w for w in wanted if w != background], "background": background}
    by_image = cy.pp.rank_images(samples, **arguments)
    keys = {str(key): key for key in by_image.index}
    found = by_image.loc[[next(key for text, key in keys.items() if stem in text) for stem in stems]]
    yield "rank_image_stats", _relative(found[[f"std_{w}" for w in wanted]].to_numpy(), y["rank_image_stats"]), 1e-4
    patients = cy.pp.rank_images(samples, groups=_patient, **arguments).loc[[str(p) for p in y["rank_patients"]]]
    medians = patients[[f"std_{w}" for w in wanted]].to_numpy()
    yield "rank_patient_median", _relative(medians, y["rank_patient_median"]), 1e-4
    yield "rank_ranks", _error(patients[[f"rank_{w}" for w in wanted]].to_numpy(), y["rank_ranks"]), 0.0
    yield "rank_Normalized_Score_std", _error(patients["score"].to_numpy(), y["rank_Normalized_Score_std"]), 1e-6
    yield "rank_Rank_desc", _error(patients["rank"].to_numpy(), y["rank_Rank_desc"]), 0.0


def _patient(image: str) -> str:
    found = re.match(r"(P[^_]*)_ROI", image)
    return found.group(1) if found else image


def _windows(image: np.ndarray, xy: np.ndarray, side: int) -> np.ndarray:
    source: Any = SimpleNamespace(pixels=image, channel_index=np.arange(len(image)), centers=xy[:, ::-1] + 0.5)
    out = np.empty((len(xy), len(image), side, side), dtype=np.float32)
    for block in CellPatches(source, side):
        out[block.rows] = block.windows.astype(np.float32) / 255
    return out


# ----------------------------------------------------------------------------------------------------------------- MAPS
def maps_mlp(fixture: Fixture) -> Iterator[Check]:
    """The network in float64, with inputs divided by 255 as published and without."""
    x, y = fixture.inputs, fixture.outputs
    shapes = fixture.keys
    weights = {k: v.double() for k, v in fixture.weights(shapes).items()}
    n_out, n_in = shapes["classifier.weight"]["shape"][0], shapes["fc.0.weight"]["shape"][1]
    for tag, divisor in (("", 255.0), ("_no255", 1.0)):
        config = cy.models.MAPSConfig(tuple(map(str, range(n_out))), divisor=divisor)
        model = cy.models.MAPS([str(i) for i in range(n_in)], config).double().eval()
        model.load_state_dict(weights, strict=False)
        model.set_scaling(np.zeros(n_in), x["mean"], x["std"])
        with torch.inference_mode():
            values = torch.from_numpy(x["x"])
            if divisor != 1:
                yield "features_div255", _error(model.standardize(values) / divisor, y["features_div255"]), 1e-9
            logits = model(values)
            yield f"logits{tag}", _error(logits, y[f"logits{tag}"]), 1e-9
            yield f"probs{tag}", _error(model.probabilities(logits), y[f"probs{tag}"]), 1e-9
    yield "train_mean", _error(x["x"].mean(axis=0), y["train_mean"]), 1e-9
    yield "train_std", _error(x["x"].std(axis=0), y["train_std"]), 1e-9


# ------------------------------------------------------------------------------------------------------------- DeepLIIF
def deepliif_generators(fixture: Fixture) -> Iterator[Check]:
    """Generators from a folder of published files, on one tile of 512 pixels, and a discriminator."""
    y = fixture.outputs
    rgb = fixture.inputs["rgb"]
    x = scaled(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    resnet, unet = (fixture.weights(fixture.keys[name]) for name in ("resnet_9blocks", "unet_512"))
    with tempfile.TemporaryDirectory() as folder:
        for name, weights in {"G1": resnet, "GS0": unet, "GS1": unet}.items():
            torch.save(weights, f"{folder}/latest_net_{name}.pth")
        model = cy.models.DeepLIIF.from_published(folder, segmentation_weights=(1.0, 0.0))
    generators = {"resnet_9blocks": (model.translators["G1"], 1e-4), "unet_512": (model.segmenters["GS0"], 2e-4)}
    for name, (network, tolerance) in generators.items():
        with torch.inference_mode():
            before: torch.Tensor = network.before_tanh(x)[0]
        out = before.tanh()
        yield f"{name}_pre_tanh_sub8", _error(before[:, ::8, ::8], y[f"{name}_pre_tanh_sub8"]), tolerance
        yield f"{name}_sub4", _error(out[:, ::4, ::4], y[f"{name}_sub4"]), tolerance
        yield f"{name}_tl64", _error(out[:, :64, :64], y[f"{name}_tl64"]), tolerance
        yield f"{name}_br64", _error(out[:, -64:, -64:], y[f"{name}_br64"]), tolerance
        yield f"{name}_mean", _error(out.mean(dim=(1, 2)), y[f"{name}_mean"]), tolerance
        yield f"{name}_std", _error(out.std(dim=(1, 2), unbiased=False), y[f"{name}_std"]), tolerance
        eight = to_uint8(out).permute(1, 2, 0)[::4, ::4].short()
        yield f"{name}_uint8_sub4", _error(eight, y[f"{name}_uint8_sub4"]), 1.0
        yield f"{name}_uint8_sub4, share that differs", float((eight.numpy() != y[f"{name}_uint8_sub4"]).mean()), 1e-3
        for layer in network.modules():  # what nobody should do: the stored statistics
            if isinstance(layer, TileNorm):
                layer.forward = functools.partial(torch.nn.BatchNorm2d.forward, layer)  # type: ignore[method-assign]
        with torch.inference_mode():
            stored = network(x)[0]
        yield f"{name}_running_stats_sub8", _error(stored[:, ::8, ::8], y[f"{name}_running_stats_sub8"]), tolerance
        apart = float(np.abs(y[f"{name}_running_stats_sub8"] - out.numpy()[:, ::8, ::8]).max())
        yield f"{name}_running_stats_sub8 is no result", float(apart < 0.1), 0.0
    critic = PatchDiscriminator(6).train()
    critic.load_state_dict(fixture.weights(fixture.keys["discriminator_n4"]))
    with torch.inference_mode():
        logits = critic(torch.cat([x, x.flip(3)], dim=1))
    yield "discriminator_logits", _error(logits, y["discriminator_logits"]), 1e-4


def deepliif_losses(fixture: Fixture) -> Iterator[Check]:
    """Terms of the losses, and the whole losses of discriminators and generators with gradients."""
    x, y = fixture.inputs, fixture.outputs
    modes = {"vanilla": "bce", "lsgan": "least_squares", "wgangp": "wasserstein"}
    logits = torch.from_numpy(x["pred"])
    for name in [key for key in y if key.startswith("gan_")]:
        mode, smoothing, which = name.removeprefix("gan_").replace("smooth", "").split("_")
        arguments: dict[str, Any] = {"real": which == "real", "mode": modes[mode], "smoothing": float(smoothing)}
        yield name, _of(gan_losses.gan_loss(logits, **arguments), y[name]), 1e-5
    a, b = (torch.from_numpy(x[f"l1_{side}"]) for side in "ab")
    yield "smooth_l1", _of(gan_losses.smooth_l1(a, b), y["smooth_l1"]), 1e-5
    vgg = _Vgg19(fixture.weights(fixture.keys["vgg19_features"]))
    a, b = (torch.from_numpy(x[f"vgg_{side}"]) for side in "ab")
    for n, term in enumerate(gan_losses.perceptual_terms(a, b, vgg)):
        yield f"vgg_terms {n + 1}", _of(term, y["vgg_terms"][n]), 1e-5
    yield "vgg", _of(gan_losses.perceptual_loss(a, b, vgg), y["vgg"]), 1e-5

    # The published program counts the class map in the generators' loss as much as the last modality, hence .25 twice.
    generator, discriminator = (0.1, 0.2, 0.3, 0.25, 0.25), (0.3, 0.1, 0.2, 0.25, 0.15)
    weightings = {
        "default": gan_losses.GanWeights((0.25, 0.15, 0.25, 0.1, 0.25)),
        "uneven": gan_losses.GanWeights((0.5, 0.0, 0.1, 0.1, 0.3), generator, discriminator),
    }
    drawn = fixture.weights(fixture.keys["tiny_discriminators"])
    names = {str(i): str(i) for i in range(1, 5)} | {"5": "segmentation"}
    for tag, weights in weightings.items():
        networks = {name: torch.nn.Conv2d(6, 1, 4, 2, 1) for name in sorted({key.split(".")[0] for key in drawn})}
        for name, network in networks.items():
            network.load_state_dict({key: drawn[f"{name}.{key}"] for key in ("weight", "bias")})
        critics = [network for name, network in networks.items() if len(name) == 2]
        judges = [network for name, network in networks.items() if len(name) == 3]
        made = [torch.from_numpy(x[f"fake_B_{i}"].copy()).requires_grad_() for i in names]
        real = [torch.from_numpy(x[f"real_B_{i}"]) for i in names]
        pair = gan_losses.Stains(real[:4], real[4]), gan_losses.Stains(made[:4], made[4])
        known = critics, judges, torch.from_numpy(x["real_A"]), *pair, weights
        found = gan_losses.discriminator_loss(*known)
        found["loss"].backward()
        yield f"{tag}_loss_D", _of(found["loss"], y[f"{tag}_loss_D"]), 1e-4
        for i, name in names.items():
            for what in ("fake", "real"):
                yield f"{tag}_D_{what}_{i}", _of(found[f"{what}_{name}"], y[f"{tag}_D_{what}_{i}"]), 1e-5
        for name in ("D1", "D51"):
            yield f"{tag}_{name}_weight_grad", _error(networks[name].weight.grad, y[f"{tag}_{name}_weight_grad"]), 1e-5
        yield f"{tag}: gradients of made images", float(any(image.grad is not None for image in made)), 0.0
        found = gan_losses.generator_loss(*known, features=vgg)
        found["loss"].backward()
        yield f"{tag}_loss_G", _of(found["loss"], y[f"{tag}_loss_G"]), 1e-4
        found["perceptual_segmentation"] = 100 * gan_losses.perceptual_loss(made[4], real[4], vgg)  # in no loss
        for i, name in names.items():
            for key, what in (("GAN", "gan"), ("L1", "l1"), ("VGG", "perceptual")):
                yield f"{tag}_G_{key}_{i}", _of(found[f"{what}_{name}"], y[f"{tag}_G_{key}_{i}"]), 1e-5
            yield f"{tag}_grad_fake_{i}", _error(made[int(i) - 1].grad, y[f"{tag}_grad_fake_{i}"]), 1e-5


def deepliif_postprocess(fixture: Fixture) -> Iterator[Check]:
    """Cells, counts and pictures of class maps under every setting."""
    folder, y = fixture.folder, fixture.outputs
    told = json.loads((folder / "scores.json").read_text())
    for tile, settings in told.items():
        seg, ihc = (_picture(folder / f"{tile}_{name}.png").transpose(2, 0, 1) for name in ("seg", "ihc"))
        marker = _picture(folder / f"{tile}_marker_max.png")
        for setting, expected in settings.items():
            if not isinstance(expected, dict) or "num_total" not in expected:
                continue
            kwargs = expected.get("kwargs", {})
            rules = CellRules(**kwargs, resolution=expected.get("resolution", "40x"))
            density = any(name.startswith("od_") for name in kwargs)
            known = {"image": ihc} if density else {} if setting == "no_marker" else {"marker": marker}
            labels, cells = cells_of_map(seg, rules, **known)
            name = f"{tile} {setting}"
            score = cells.score()
            yield f"{name} score", float(any(score[key] != expected[key] for key in score)), 0.0
            pictures = {
                "refined": refined_mask(labels, cells),
                "overlay": overlay(ihc.transpose(1, 2, 0), labels, cells),
            }
            for kind, picture in pictures.items():
                same = hashlib.sha256(picture.tobytes()).hexdigest() == expected[f"sha256_{kind}"]
                yield f"{name} {kind}, to the bit", float(not same), 0.0
                if (folder / f"{tile}_{kind}_{setting}.png").is_file():
                    apart = (picture != _picture(folder / f"{tile}_{kind}_{setting}.png")).any(axis=2).mean()
                    yield f"{name} {kind}, share of pixels apart", float(apart), 1e-3
        for key in [key for key in y if re.fullmatch(rf"{tile}_cells_v[35]_s\d+", key)]:
            version, thresh = re.findall(r"_v(\d)_s(\d+)", key)[0]
            known = {"marker": marker} if version == "3" else {"image": ihc}
            labels, cells = cells_of_map(seg, CellRules(seg_thresh=int(thresh), marker_thresh=None), **known)
            parts, kept = cells.parts, cells.candidate
            value = parts.marker if version == "3" else cells.optical_density
            columns = [parts.area, parts.n_positive >= parts.n_negative, value, parts.box, np.rint(parts.center)]
            yield key, _error(np.column_stack(columns)[kept], y[key][:, :9]), 0.0
            default = settings[f"cell_settings_v{version}"]
            if int(thresh) == default["seg_thresh"]:
                size = abs(cells.score()["size_thresh"] - default["default_size_thresh"])
                yield f"{tile} default_size_thresh v{version}", float(size), 0.0
        if f"{tile}_refined_from_cells" in y:
            rebuilt = refined_mask(*cells_of_map(seg), as_published=False)
            yield f"{tile}_refined_from_cells", _error(rebuilt, y[f"{tile}_refined_from_cells"]), 0.0


def _picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


class _Vgg19:
    """Features of VGG19 after the first rectifier of each of its five stages."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self.weights = weights
        self.layers = sorted({int(key.split(".")[1]) for key in weights})

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        found, previous = [], -2
        for i in self.layers:
            if i > previous + 2:  # poolings stand between the stages
                x = torch.nn.functional.max_pool2d(x, 2)
            first = previous < 0 or i > previous + 2
            weight, bias = (self.weights[f"features.{i}.{name}"] for name in ("weight", "bias"))
            x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
            found += [x] * first
            previous = i
        return found


# --------------------------------------------------------------------------------------------------------------- Nimbus
def nimbus_unet(fixture: Fixture) -> Iterator[Check]:
    """The network with both ways of padding, on sizes that poolings divide and do not divide."""
    model = _published(cy.models.Nimbus, fixture.weights(fixture.keys))
    yield "parameters", abs(sum(p.numel() for p in model.parameters()) - 35_607_809), 0.0
    with torch.inference_mode():
        for name in fixture.inputs:
            x = torch.from_numpy(fixture.inputs[name])
            logits = model.logits(x, name.split("_")[0])
            yield f"{name}_logit", _error(logits, fixture.outputs[f"{name}_logit"]), 1e-4
            yield name, _error(model(x, name.split("_")[0]), fixture.outputs[name]), 1e-5


def nimbus_pipeline(fixture: Fixture) -> Iterator[Check]:
    """From images and masks to factors, what the network sees, maps and scores, by `tl.score_markers`."""
    x, y = fixture.inputs, fixture.outputs
    model = _published(cy.models.Nimbus, fixture.weights(fixture.keys))
    channels = [str(c) for c in x["channels"]]
    fovs = sorted({key.split("_")[0] for key in x if key.endswith("_mask") and key.startswith("fov")})
    samples = [
        cy.io.from_arrays(np.stack([x[f"{fov}_{c}"] for c in channels]), x[f"{fov}_mask"], channels=channels, name=fov)
        for fov in fovs
    ]
    joined = SpatialData.init_from_elements({k: v for s in samples for _, k, v in s.gen_elements() if k != "table"})
    keys = {"image_key": [f"{fov}_image" if f"{fov}_image" in joined.images else fov for fov in fovs]}
    factors: dict[str, float] = {}
    for tag, views, size in (("plain", None, 0.5), ("tta", "released", 0.5), ("mag10", None, 1.0)):
        chosen = keys["image_key"] if tag != "mag10" else keys["image_key"][:1]
        regions = sorted(joined.labels)[: len(chosen)]
        options: dict[str, Any] = {"pixel_size": size, "views": views, "tiles": "released", "image_added": f"{tag}_p"}
        found = cy.tl.score_markers(
            joined,
            model,
            image_key=chosen,
            labels_key=regions,
            inplace=False,
            normalization=factors or "released",
            **options,
        )
        if tag == "plain":
            table = found.uns["nimbus"]["normalization"]
            factors = dict(zip(table["marker"], table["factor"].astype(float), strict=True))
            for c in channels:
                yield f"norm_{c}", abs(factors[c] / float(y[f"norm_{c}"]) - 1), 1e-6
            yield from _nimbus_inputs(y, joined, model, chosen, regions, factors)
        scores = found.obsm["nimbus_positivity"]
        rows = pd.Index(_fov(found, regions, fovs) + "/" + found.obs["instance_id"].astype(str))
        at = rows.get_indexer(pd.Index([f"{f}/{i}" for f, i in zip(y[f"{tag}_fov"], y[f"{tag}_label"], strict=True)]))
        yield f"{tag}: cells", float((at < 0).sum()), 0.0
        for c in channels:
            yield f"{tag}_score_{c}", _error(scores[c].to_numpy()[at], y[f"{tag}_score_{c}"]), 1e-4
        for name in [key for key in y if key.startswith(f"{tag}_map_")]:
            fov, c = name.removeprefix(f"{tag}_map_").split("_")[:2]
            image = f"{chosen[fovs.index(fov)]}_{tag}_p" if len(chosen) > 1 else f"{tag}_p"
            shape = x[f"{fov}_{c}"].shape
            full = _stretched(joined.images[image].sel(c=c).to_numpy(), shape)
            yield name, _error(full[::2, ::2] if name.endswith("sub2") else full, y[name]), 1e-4
            if name.endswith(f"{fov}_{c}") and f"{tag}_uint8_{fov}_{c}" in y:
                eight = np.abs((255 * full).astype(np.uint8).astype(int) - y[f"{tag}_uint8_{fov}_{c}"].astype(int))
                yield f"{tag}_uint8_{fov}_{c}", float(eight.max()), 1.0
    yield from _nimbus_tiles(x, y, model)
    yield from _nimbus_odd(x, y)


def _fov(table: Any, regions: list[str], fovs: list[str]) -> Any:
    return table.obs["region"].astype(str).map(dict(zip(regions, fovs, strict=False)))


def _nimbus_inputs(
    y: Arrays, sdata: Any, model: Any, images: list[str], regions: list[str], factors: dict[str, float]
) -> Iterator[Check]:
    sources = resolve(sdata, image_key=images, labels_key=regions)
    for field, fov in zip(fields(sources, model, normalization=factors, pixel_size=0.5), ("fov0", "fov1"), strict=True):
        height, width = field.canvas.shape
        box = (0, height, 0, width)
        interior = field.canvas.interior(box)
        every = np.arange(len(field.factors))
        markers = field.canvas.markers(box, every, field.factors)
        for c, layer in zip(field.canvas.source.channels, markers, strict=True):
            expected = y.get(f"input_{fov}_{c}")
            if expected is not None:
                yield f"input_{fov}_{c}", _error(np.stack([layer, interior])[None], expected), 1e-6
        if fov == "fov0" and "sixviews_half_res_fov0_CD4" in y:
            with Mapper(model, views="six_views", device="cpu") as mapper:
                mean, _ = mapper(markers[[field.canvas.source.channels.index("CD4")]], interior)
            yield "sixviews_half_res_fov0_CD4", _error(mean[0], y["sixviews_half_res_fov0_CD4"]), 1e-4


def _nimbus_tiles(x: Arrays, y: Arrays, model: Any) -> Iterator[Check]:
    """Tile-and-stitch with tiles of 256 and of 1024 pixels."""
    with Mapper(model, device="cpu") as mapper:
        for name, tile_px in (("tile_small", 256), ("tile_big", 1024)):
            image = x[f"{name}_img_u8"].astype(np.float32) / 255
            mask = x[f"{name}_mask_u8"].astype(np.float32)
            found = released_map(mapper, image[None], mask, tile_px=tile_px)[0]
            if name in y:
                yield name, _error(found[None], y[name]), 1e-4
            if f"{name}_sub8" in y:
                yield f"{name}_sub8", _error(found[0, ::8, ::8], y[f"{name}_sub8"]), 1e-4
            for rows in [key for key in y if key.startswith(f"{name}_rows_")]:
                first, last = map(int, rows.rsplit("_", 2)[1:])
                yield rows, _error(found[0, first:last], y[rows]), 1e-4


class _Through(cy.models.Nimbus):
    """The marker itself, cut to what the published network would give."""

    def forward(self, x: torch.Tensor, padding: str = "reflect") -> torch.Tensor:
        height, width = (n // 16 * 16 for n in x.shape[2:])
        return x[:, :1, :height, :width]

    def for_inference(self) -> torch.nn.Module:
        return self


def _nimbus_odd(x: Arrays, y: Arrays) -> Iterator[Check]:
    """Sizes that neither rescaling nor the network divides, without weights."""
    sdata = cy.io.from_arrays(x["odd_CD8"][None], x["odd_mask"], channels=["CD8"])
    model = _Through(config=cy.models.NimbusConfig(filters=1))
    found = cy.tl.score_markers(sdata, model, pixel_size=0.5, tiles="released", image_added="p", inplace=False)
    factor = float(found.uns["nimbus"]["normalization"]["factor"].iloc[0])
    yield "odd_norm_CD8", abs(factor / float(y["odd_norm_CD8"]) - 1), 1e-6
    [field] = fields(resolve(sdata, image_key="image"), model, normalization={"CD8": factor}, pixel_size=0.5)
    box = (0, field.canvas.shape[0], 0, field.canvas.shape[1])
    pixels = field.canvas.markers(box, np.arange(1), field.factors)
    yield "odd_input", _error(np.stack([pixels[0], field.canvas.interior(box)])[None], y["odd_input"]), 2e-5
    yield "odd_map", _error(_stretched(sdata.images["p"].to_numpy()[0], x["odd_CD8"].shape), y["odd_map"]), 1e-4
    at = pd.Index(found.obs["instance_id"]).get_indexer(pd.Index(y["odd_label"]))
    yield "odd_score", _error(found.obsm["nimbus_positivity"]["CD8"].to_numpy()[at], y["odd_score"]), 1e-4


def _stretched(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour by the released program's rule."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(shape, x.shape, strict=True))
    return x[np.ix_(rows, columns)]


CHECKS: dict[str, Callable[[Fixture], Iterator[Check]]] = {
    check.__name__: check
    for check in (
        clearit_encoder,
        clearit_loss,
        clearit_misc,
        maps_mlp,
        nimbus_unet,
        nimbus_pipeline,
        deepliif_generators,
        deepliif_losses,
        deepliif_postprocess,
    )
}


def check_all(folder: Path, only: list[str] | None = None) -> dict[str, Any]:
    """Every fixture below a folder: whether all agree, how many quantities, the largest error of each."""
    found = sorted(path.parent for path in folder.rglob("outputs.npz"))
    errors: dict[str, float] = {}
    apart: list[str] = []
    for path in found:
        kind = next((name for name in CHECKS if path.name.startswith(name)), None)
        if kind is None or (only and not any(path.name.startswith(o) for o in only)):
            continue
        where = str(path.relative_to(folder))
        for name, error, tolerance in CHECKS[kind](Fixture(path)):
            errors[f"{where}/{name}"] = error
            if not error <= tolerance:
                apart.append(f"{where}/{name}: {error:.3g}, at most {tolerance:g}")
    return {"agree": bool(errors) and not apart, "checked": len(errors), "max_error": errors, "apart": apart}


def _arrays(path: Path) -> Arrays:
    with np.load(path) as found:
        return dict(found)


def _published(cls: Any, weights: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    """A model by way of a published file."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, f"{folder}/weights.pt")
        return cls.from_published(f"{folder}/weights.pt", *args, **kwargs)


def _without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("head."): value for key, value in weights.items()}


def _error(found: Any, expected: Any) -> float:
    """Largest absolute difference; infinite where shapes differ or a number is missing."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    if found.shape != expected.shape:
        return math.inf
    worst = np.abs(found - expected).max(initial=0.0)
    return float(worst) if np.isfinite(worst) else math.inf


def _of(found: torch.Tensor, expected: Any) -> float:
    """Relative error of one number."""
    return abs(float(found.detach()) - float(expected)) / max(abs(float(expected)), 1e-12)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return _error(found / np.where(expected == 0, 1, expected), expected / np.where(expected == 0, 1, expected))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--only", type=lambda text: text.split(","), help="beginnings of folder names, a,b")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    result = check_all(options.fixtures, options.only)
    for name, error in result["max_error"].items():
        print(f"{name:60} {error:.2e}")
    print("\n".join(["", *result["apart"]]) or "", "all agree" if result["agree"] else "NOT ALL AGREE")
    if options.json:
        print(json.dumps({key: result[key] for key in ("agree", "checked", "max_error")}))
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
