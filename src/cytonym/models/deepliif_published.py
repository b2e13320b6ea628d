"""A folder of networks that the authors' program of DeepLIIF trained: files, options and the shape that the weights have."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cytonym.models.published import read_published
from cytonym.models.torchscript import is_script, read_script

LICENCE = (
    "The weights published with DeepLIIF are under the Apache licence 2.0 with the Commons Clause: for non-commercial academic "
    "use only. Networks that others trained have terms of their own."
)
OPTIONS_FILE = "train_opt.txt"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class PublishedFolder:
    """What a folder holds."""

    folder: Path
    translators: list[Path]
    """Files of G1, G2, …."""
    segmenters: list[Path]
    """Files of the segmentation generators: that of the input first."""
    names: tuple[str, ...] | None = None
    """Modalities, where the options name them."""
    segmentation_weights: tuple[float, ...] | None = None
    """Where the options have them."""
    shape: dict[str, Any] = field(default_factory=dict)
    """Arguments of `DeepLIIFConfig`."""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """Those of the translating generators, then those of the segmenting ones."""
        return [*self.translators, *self.segmenters]

    def load(self, network: nn.Module, file: Path) -> None:
        """Put the weights of a file into a network and note the file's hash.

        Raises
        ------
        ValueError
            They are those of another network, or not all finite.
        """
        weights = read_network(file)
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        lacking = [name for name in wanted if name not in weights and not name.endswith(_STATISTICS)]
        unknown = [name for name in weights if name not in wanted]
        other = [name for name, tensor in weights.items() if name in wanted and tensor.shape != wanted[name]]
        if lacking or unknown or other:
            msg = (
                f"'{file}' holds another network than the first of its kind in this folder, or one that is not known here: "
                f"{len(lacking)} weights are lacking {lacking[:2]}, {len(unknown)} unknown {unknown[:2]}, "
                f"{len(other)} of another shape {other[:2]}."
            )
            raise ValueError(msg)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            msg = f"'{file}' holds weights that are not finite. The file is damaged; get it again."
            raise ValueError(msg)
        network.load_state_dict(weights, strict=False)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        self.provenance.setdefault("sha256", {})[file.name] = digest


def read_folder(folder: str | Path, epoch: str = "latest") -> PublishedFolder:
    """Find the networks of a folder, and what their weights and the options say.

    Raises
    ------
    FileNotFoundError
        No folder, no networks, or one is missing.
    ValueError
        A file is damaged, or networks, weights and options do not fit.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        msg = f"'{folder}' {what}. Pass the folder that holds the networks, such as latest_net_G1.pth, and {OPTIONS_FILE}."
        raise FileNotFoundError(msg)
    options = read_options(folder / OPTIONS_FILE)
    if (model := options.get("model", "DeepLIIF")) != "DeepLIIF":
        msg = f"'{folder / OPTIONS_FILE}' says model: {model}. Only DeepLIIF is read here."
        raise ValueError(msg)
    found = _networks(folder, epoch)
    found.shape = _shape(found)
    found.provenance = {"licence": LICENCE, "options": options}
    n = len(found.translators)
    if given := _items(options.get("modalities_names")):
        found.names = tuple(given[1:] if len(given) == n + 1 else given)  # with or without the input's
    if given := _items(options.get("seg_weights")):
        found.segmentation_weights = _numbers(given, "seg_weights", folder / OPTIONS_FILE)
    _compare(found, options, folder / OPTIONS_FILE)
    side = options.get("crop_size", "")
    usual = max(512, 1 << found.shape["depth"])
    found.shape["tile_px"] = int(side) if side.isdigit() and int(side) % (1 << found.shape["depth"]) == 0 else usual
    return found


def read_options(file: Path) -> dict[str, str]:
    """Lines "key: value [default: …]" of a text file; nothing where there is no such file."""
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    told = (re.fullmatch(r"\s*([A-Za-z][\w-]*)\s*:\s*(.*?)\s*(?:\[default:.*\])?\s*", line) for line in lines)
    options = {m.group(1).replace("-", "_"): m.group(2) for m in told if m}
    if not options:
        msg = f"'{file}' holds no options (lines such as `ngf: 64`). Take it away or get it again."
        raise ValueError(msg)
    return options


def read_network(file: Path) -> dict[str, Tensor]:
    """The weights of one network, from a state dict or a TorchScript file.

    Raises
    ------
    ValueError
        The file is damaged, or its weights cannot be had without running code.
    """
    weights = read_script(file) if is_script(file) else read_published(file, file.name)[1]
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _networks(folder: Path, epoch: str) -> PublishedFolder:
    """Which file is which generator: G1 … Gn, and GS0 … GSn or, in older folders, G<n+1>1 … G<n+1><n+1>."""
    files, named = _files(folder, epoch)
    newer = any(name.startswith("GS") for name in files)
    plain = sorted(int(name[1:]) for name in files if not name.startswith("GS"))
    n = max((i for i in plain if newer or i < 10), default=0)
    drawn = [f"GS{i}" for i in range(n + 1)] if newer else [f"G{n + 1}{i}" for i in range(1, n + 2)]
    translating = [f"G{i}" for i in range(1, n + 1)]
    missing = [name for name in (*translating, *drawn) if name not in files]
    if missing:
        msg = (
            f"'{folder}' lacks {[named.format(name) for name in missing]} of the networks for {n} modalities. Found: "
            f"{sorted(path.name for path in files.values())}. Files of another kind or epoch are not taken in their place."
        )
        raise FileNotFoundError(msg)
    over = sorted(set(files) - {*translating, *drawn})
    if over:
        msg = f"'{folder}' holds networks that do not belong to a model of {n} modalities: {over}."
        raise ValueError(msg)
    return PublishedFolder(folder, [files[name] for name in translating], [files[name] for name in drawn])


def _files(folder: Path, epoch: str) -> tuple[dict[str, Path], str]:
    """Files of networks and how they are called: the epoch's state dicts, else TorchScript, which is of the latest epoch."""
    kinds = [f"{epoch}_net_{{}}.pth"] + ["{}.pt"] * (epoch == "latest")
    for named in kinds:
        form = r"(GS?\d+)".join(map(re.escape, named.split("{}")))
        found = {m.group(1): path for path in sorted(folder.iterdir()) if (m := re.fullmatch(form, path.name))}
        if found:
            return found, named
    there = sorted(p.name for p in folder.iterdir())[:10]
    wanted = " or ".join(named.format("G1") for named in kinds)
    msg = f"No networks such as {wanted} in '{folder}'. Found: {there}. Give the `epoch` of the files; that of G1.pt is 'latest'."
    raise FileNotFoundError(msg)


def _shape(found: PublishedFolder) -> dict[str, Any]:
    """What the weights of the first network of each kind say."""
    file = found.segmenters[0]
    unet = read_network(file)
    first, last = unet.get("model.model.0.weight"), unet.get("model.model.3.weight")
    if first is None or last is None or first.shape[2:] != (4, 4) or last.shape[1] != 3:
        msg = f"'{file}' is no U-Net generator of a class map in 3 colours. Its weights begin with {sorted(unet)[:3]}."
        raise ValueError(msg)
    levels = [name for name in unet if re.fullmatch(r"model\.model\.1\.model(\.3\.model)*\.1\.weight", name)]
    shape = {"filters": int(first.shape[0]), "input_channels": int(first.shape[1]), "depth": len(levels) + 1}
    if not found.translators:
        return shape
    file = found.translators[0]
    net = read_network(file)
    places = {int(m.group(1)) for name in net if (m := re.match(r"model\.(\d+)\.conv_block\.", name))}
    inside = sorted(
        int(m.group(1))
        for name, tensor in net.items()
        if tensor.ndim == 4 and (m := re.fullmatch(r"model\.10\.conv_block\.(\d+)\.weight", name))
    )
    kinds: dict[tuple[int, ...], tuple[str, bool]] = {
        (0, 4): ("zero", True),
        (0, 3): ("zero", False),
        (1, 6): ("reflect", True),
        (1, 5): ("reflect", False),
    }
    stem, head = net.get("model.1.weight"), net.get(f"model.{17 + len(places)}.weight")
    if stem is None or head is None or tuple(inside) not in kinds:
        msg = (
            f"'{file}' is no ResNet generator with transposed convolutions and batch normalisation, the only kind that is read here. "
            f"Its weights begin with {sorted(net)[:3]}."
        )
        raise ValueError(msg)
    padding, dropout = kinds[tuple(inside)]
    shape |= {"filters": int(stem.shape[0]), "input_channels": int(stem.shape[1]), "blocks": len(places)}
    return shape | {"output_channels": int(head.shape[0]), "padding": padding, "dropout": dropout}


def _compare(found: PublishedFolder, options: dict[str, str], file: Path) -> None:
    """Raise where the options say something else than the weights."""
    shape, n = found.shape, len(found.translators)
    said = {
        "modalities_no": (options.get("modalities_no"), n),
        "ngf": (options.get("ngf"), shape["filters"]),
        "input_nc": (options.get("input_nc"), shape["input_channels"]),
        "output_nc": (options.get("output_nc"), shape.get("output_channels")),
        "norm": (options.get("norm"), "batch"),
        "padding": (options.get("padding"), shape.get("padding")),
        "net_gs": (_last_number(options.get("net_gs")), 1 << shape["depth"]),
        "net_g": (_last_number(options.get("net_g")), shape.get("blocks")),
        "modalities_names": (found.names and len(found.names), n),
        "seg_weights": (found.segmentation_weights and len(found.segmentation_weights), n + 1),
    }
    differ = [
        f"{key} is {told} in the options and {seen} in the networks"
        for key, (told, seen) in said.items()
        if told not in (None, "", "None") and seen is not None and str(told) != str(seen)
    ]
    if differ:
        msg = f"'{file}' does not agree with the networks beside it: {'; '.join(differ)}. Do they belong together?"
        raise ValueError(msg)


def _items(text: str | None) -> list[str]:
    """A list as the options write it: "a,b", "['a', 'b']", "(1, 2)"."""
    if not text or text == "None":
        return []
    if text[0] in "[(":
        try:
            return [str(item) for item in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError):
            text = text.strip("[]()")
    return [item.strip() for item in text.split(",") if item.strip()]


def _numbers(items: list[str], key: str, file: Path) -> tuple[float, ...]:
    try:
        return tuple(map(float, items))
    except ValueError as error:
        msg = f"'{file}' says {key}: {','.join(items)}. It must be numbers, such as 0.5,0,0,0,0.5. Correct the line or take it away."
        raise ValueError(msg) from error


def _last_number(text: str | None) -> str | None:
    """512 of ``unet_512``, 9 of ``resnet_9blocks``, also where it stands several times."""
    found = re.findall(r"(?:unet|resnet)_(\d+)", text or "")
    return found[0] if found else None
