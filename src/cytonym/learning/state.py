"""The state of a training between two steps, in one file without pickle."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cytonym.models.base import CellEncoder, Recipe

STATE_FILE = "training.safetensors"
FORMAT = 1
DIGESTS = {
    "initial weights": "it began from other weights or data",
    "data": "it learned from other images or cells",
    "labelled cells": "it learned from other labels or other cells",
}
"""What is compared by its hash, and what to say where it differs."""


def weights_digest(model: Any) -> str:
    """Hash of all weights and buffers of a module, with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_training(model: CellEncoder, recipe: Recipe, seed: int, data: str) -> dict[str, Any]:
    """What must be equal for a training to be the same one. Taken before the first step; `data` is a hash."""
    described = {
        "method": model.name,
        "markers": list(model.markers),
        "config": model.config_dict(),
        "recipe": asdict(recipe),
        "seed": int(seed),
        "data": data,
        "initial weights": weights_digest(model),
    }
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def write_state(
    folder: Path, training: dict[str, Any], step: int, model: Any, *optimizers: torch.optim.Optimizer
) -> None:
    """Replace the state file in one move: an interrupt leaves the old or the new one.

    Parameters of several optimisers are numbered through.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    before = 0
    for optimizer in optimizers:
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{before + index}.{k}": torch.as_tensor(v) for k, v in values.items()}
        before += sum(len(group["params"]) for group in optimizer.param_groups)
    info = {"format": FORMAT, "step": step, "training": training, "history": model.history}
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"cytonym": json.dumps(info)})
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{STATE_FILE}.part"
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / STATE_FILE)


def read_state(
    folder: Path, training: dict[str, Any], model: Any, *, anew: str = "delete the file or pass resume=False"
) -> tuple[int, dict[int, dict[str, Tensor]]]:
    """Put the stored weights and history into the model; return the steps done and the optimiser's state.

    Errors say with `anew` how to begin from the start.

    Raises
    ------
    ValueError
        The file is damaged, or of another training.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return 0, {}
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["cytonym"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        msg = f"'{path}' is no state of a training, or damaged ({error}). To begin anew {anew}."
        raise ValueError(msg) from error
    if info["format"] != FORMAT:
        msg = f"'{path}' has format {info['format']}, this cytonym reads {FORMAT}. Upgrade, or begin anew: {anew}."
        raise ValueError(msg)
    other = [_difference(key, info["training"].get(key), value) for key, value in training.items()]
    if any(other):
        found = "; ".join(text for text in other if text)
        msg = (
            f"'{path}' holds another training, stopped at step {info['step']}: {found}. "
            f"Give another checkpoint_dir; to begin anew in this one {anew}."
        )
        raise ValueError(msg)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    model.history = info["history"]
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            optimizer.setdefault(int(index), {})[name] = value
    return int(info["step"]), optimizer


def _difference(key: str, there: Any, here: Any) -> str:
    if there == here:
        return ""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [_difference(f"{key}.{k}", there.get(k), here.get(k)) for k in sorted(there.keys() | here.keys())]
        return "; ".join(part for part in parts if part)
    if key in DIGESTS:
        return DIGESTS[key]
    return f"{key} was {there!r}, is {here!r}"
