"""Files that authors published with their papers: PyTorch state dicts, read without running anything in them."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_published(path: str | Path, default: str) -> tuple[Path, dict[str, Tensor]]:
    """A state dict, and the file that it came from.

    Parameters
    ----------
    path
        The file, or a folder that holds one called `default`.
    default
        Name of the file in a folder, such as ``"enc.pt"``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is damaged, holds more than tensors, or no state dict.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(p.name for p in file.iterdir())[:10]
        file = file / default
        if not file.is_file():
            msg = f"No {default} in the folder '{path}'. Found: {found}."
            raise FileNotFoundError(msg)
    if not file.is_file():
        msg = f"No file at '{file}'."
        raise FileNotFoundError(msg)
    try:
        with warnings.catch_warnings(action="ignore"):  # about bytes that mean nothing
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as almost any error
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # which is what torch says of a file that ends too soon
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"'{file}' cannot be read as a file of tensors ({reason}). It is damaged, or holds code, which is never run."
        raise ValueError(msg) from error
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        kind = sorted(map(str, weights))[:5] if isinstance(weights, dict) else type(weights).__name__
        msg = f"'{file}' holds no state dict (names and tensors) but {kind}."
        raise ValueError(msg)
    return file, {str(k): v for k, v in weights.items()}


def yaml_beside(file: Path, name: str) -> dict[str, Any]:
    """What the YAML file of this name beside another one says; nothing where there is none."""
    import yaml

    beside = file.with_name(name)
    if not beside.is_file():
        return {}
    try:
        found = yaml.safe_load(beside.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"'{beside}' is not valid YAML ({str(error).splitlines()[0]})."
        raise ValueError(msg) from error
    return found if isinstance(found, dict) else {}


def encoder_shape(file: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """What the weights of a CLEAR-IT encoder say about its config.

    Raises
    ------
    ValueError
        The weights are those of a head, or of another network.
    """
    stem = weights.get("main_backbone.conv1.weight")
    if stem is None or stem.ndim != 4:
        plain = all(key.removeprefix("head.").split(".")[0].isdigit() for key in weights)
        kind = "a head: read it with `CellClassifier.from_published`" if plain else "another network"
        msg = f"'{file}' is no CLEAR-IT encoder but {kind}. Its keys begin with {sorted(weights)[:3]}."
        raise ValueError(msg)
    last = weights.get("main_backbone.fc.weight")
    hidden = [w for k, w in weights.items() if k.startswith("mlp.") and k.endswith("weight") and w.ndim == 2]
    shape: dict[str, Any] = {
        "features": 0 if last is None else int(last.shape[0]),
        "input_channels": int(stem.shape[1]),
    }
    if hidden:
        shape |= {"projector": tuple(int(w.shape[0]) for w in hidden[:-1]), "projection_dim": int(hidden[-1].shape[0])}
    return shape


def load_encoder(model: nn.Module, file: Path, weights: dict[str, Tensor]) -> None:
    """Put the weights into a CLEAR-IT encoder; its projector may be lacking in the file.

    Raises
    ------
    ValueError
        The weights are of another architecture.
    """
    wanted = {k: v.shape for k, v in model.state_dict().items() if k != "gain"}
    lacking = [k for k in wanted if k.startswith("main_backbone.") and k not in weights]
    unknown = [k for k in weights if k not in wanted]
    other = [k for k, v in weights.items() if k in wanted and v.shape != wanted[k]]
    if lacking or unknown or other:
        msg = (
            f"'{file}' holds an encoder of another architecture than ResNet-18: {len(lacking)} weights are lacking "
            f"{lacking[:2]}, {len(unknown)} unknown {unknown[:2]}, {len(other)} of another shape {other[:2]}."
        )
        raise ValueError(msg)
    model.load_state_dict(weights, strict=False)
