"""A model on disk: a folder with `config.json` and `weights.safetensors`. Nothing is ever pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from cytonym.models import registry

if TYPE_CHECKING:
    from torch import Tensor

    from cytonym.models.base import CellEncoder
    from cytonym.models.classifier import Labeller
    from cytonym.models.deepliif import DeepLIIF
    from cytonym.models.nimbus import Nimbus

    Model = CellEncoder | Labeller | Nimbus | DeepLIIF

FORMAT = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "weights.safetensors"
_REQUIRED = ("class", "markers", "config", "weights_sha256")


def save(model: Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model to a folder.

    The folder appears whole or not at all: it is written beside its place and moved there, so that an interrupt leaves
    the old checkpoint (or nothing).

    Parameters
    ----------
    model
        A trained encoder, classifier or translator.
    path
        The folder to make. Missing parents are made.
    overwrite
        Replace a checkpoint that is already there. Any other folder or file is never replaced.

    Returns
    -------
    Path
        The folder. It holds `weights.safetensors` and `config.json`: format, class, package version, markers, config,
        provenance, training history and the SHA-256 of the weights.

    Raises
    ------
    FileExistsError
        `path` exists and `overwrite` is False, or it is not a checkpoint.
    TypeError
        `model.provenance` or `model.history` hold something that JSON does not know.

    Examples
    --------
    >>> import tempfile, cytonym as cy
    >>> model = cy.models.NeXtMarker.from_statistics(["CD3", "CD20"], [10.0, 20.0])
    >>> folder = cy.models.save(model, tempfile.mkdtemp() + "/panel")
    >>> cy.models.load(folder).markers
    ('CD3', 'CD20')
    """
    path = Path(path).absolute()
    _check_free(path, overwrite=overwrite)
    weights = weights_to_bytes(model)
    text = json.dumps(_describe(model, weights), indent=1, default=_plain) + "\n"

    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        new.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        _write(new / WEIGHTS_FILE, weights)
        _write(new / CONFIG_FILE, text.encode())
        _replace(path, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return path


def load(path: str | Path, *, expect: str | None = None) -> Any:
    """Read a model from a folder written by `save`.

    The weights are checked against the hash in `config.json` before they are used.

    Parameters
    ----------
    path
        The checkpoint's folder.
    expect
        Name of the method it must hold, such as ``"nextmarker"``. Default: any.

    Returns
    -------
    CellEncoder, classifier or translator
        The model on the CPU, in evaluation mode, with its markers, config, history and provenance.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    ValueError
        It is no checkpoint, of another or an unknown class, of a newer format, or its files are damaged or changed.

    Examples
    --------
    >>> import cytonym as cy
    >>> cy.models.load("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: No checkpoint at 'no/such/folder'. A checkpoint is a folder made by `cytonym.models.save`.
    """
    path = Path(path)
    info = _read_config(path)
    cls = _class_of(info, path, expect)
    weights = _read_weights(path, info["weights_sha256"])
    try:
        with torch.random.fork_rng(devices=[]):  # layers draw initial weights that are replaced at once
            model = cls(info["markers"], cls.config_from_dict(info["config"]))
    except (TypeError, ValueError) as error:
        msg = f"The config in '{path / CONFIG_FILE}' does not fit {cls.__name__} of this version of cytonym: {error}"
        raise ValueError(msg) from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        msg = f"The weights in '{path}' do not fit the network its {CONFIG_FILE} describes: {error}"
        raise ValueError(msg) from error
    model.history = info.get("history", [])
    model.provenance = info.get("provenance", {})
    return model.eval()


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder looks like one made by `save`."""
    return (Path(path) / CONFIG_FILE).is_file() and (Path(path) / WEIGHTS_FILE).is_file()


def weights_to_bytes(model: Model) -> bytes:
    """The model's parameters and buffers in safetensors format."""
    return tensors_to_bytes({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})


def weights_sha256(model: Model) -> str:
    """SHA-256 of the model's weights, equal to the one in its checkpoint: which network made these numbers."""
    return hashlib.sha256(weights_to_bytes(model)).hexdigest()


# -- writing ------------------------------------------------------------------------------------------------------------


def _describe(model: Model, weights: bytes) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "class": model.name,
        "cytonym": version("cytonym"),
        "markers": list(model.markers),
        "config": model.config_dict(),
        "provenance": model.provenance,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "history": model.history,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    msg = f"A checkpoint holds plain values only; {value!r} is a {type(value).__name__}. Use str, int, float, list or dict."
    raise TypeError(msg)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if not path.exists():
        return
    if not is_checkpoint(path):
        if path.is_dir() and not any(path.iterdir()):
            return
        msg = f"'{path}' exists and is not a checkpoint; it is left alone. Give another path."
        raise FileExistsError(msg)
    if not overwrite:
        msg = f"There is a checkpoint at '{path}' already. Give another path or pass overwrite=True."
        raise FileExistsError(msg)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, new: Path) -> None:
    """Move `new` to `path`. What was there is deleted only when the new one is in place, else put back."""
    if not path.exists():
        new.rename(path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    try:
        path.rename(aside / path.name)
        new.rename(path)
    finally:
        if not path.exists():
            (aside / path.name).rename(path)
        shutil.rmtree(aside, ignore_errors=True)


# -- reading ------------------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        msg = f"No checkpoint at '{path}'. A checkpoint is a folder made by `cytonym.models.save`."
        raise FileNotFoundError(msg)
    if not (path / CONFIG_FILE).is_file():
        found = sorted(p.name for p in path.iterdir())[:10] if path.is_dir() else "a file"
        msg = f"'{path}' is not a checkpoint: it has no {CONFIG_FILE}. Found: {found}."
        raise ValueError(msg)
    try:
        info = json.loads((path / CONFIG_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"'{path / CONFIG_FILE}' is not valid JSON ({error}). The file is damaged; get or train the model again."
        raise ValueError(msg) from error
    if not isinstance(info, dict) or "format" not in info:
        msg = f"'{path}' is not a cytonym checkpoint: its {CONFIG_FILE} states no format."
        raise ValueError(msg)
    if info["format"] != FORMAT:
        msg = (
            f"'{path}' has checkpoint format {info['format']!r}, written by cytonym {info.get('cytonym', 'unknown')}; "
            f"this is cytonym {version('cytonym')}, which reads format {FORMAT}. Upgrade cytonym."
        )
        raise ValueError(msg)
    missing = [key for key in _REQUIRED if key not in info]
    if missing:
        msg = f"'{path / CONFIG_FILE}' lacks {missing}. The file is damaged; get or train the model again."
        raise ValueError(msg)
    return info


def _class_of(info: dict[str, Any], path: Path, expect: str | None) -> type[Any]:
    name = info["class"]
    if expect is not None and name != expect:
        msg = f"'{path}' holds a model of class {name!r}, but {expect!r} is needed here."
        raise ValueError(msg)
    try:
        return registry.get(name)
    except KeyError as error:
        msg = f"'{path}' holds a model of unknown class {name!r}. Known: {list(registry.available().index)}."
        raise ValueError(msg) from error


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    file = path / WEIGHTS_FILE
    if not file.is_file():
        msg = f"'{path}' is not a checkpoint: it has no {WEIGHTS_FILE}."
        raise ValueError(msg)
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    try:
        weights = tensors_from_bytes(data)
    except SafetensorError as error:
        msg = f"'{file}' is truncated or damaged ({error}). Get or train the model again."
        raise ValueError(msg) from error
    if found != sha256:
        msg = (
            f"'{file}' is not the file that was saved: its SHA-256 is {found[:12]}…, {CONFIG_FILE} says {sha256[:12]}…. "
            "It was changed or swapped; get or train the model again."
        )
        raise ValueError(msg)
    return weights
