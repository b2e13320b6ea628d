"""Weights in TorchScript files, read as data: nothing in a file is run, and nothing that it names is looked up."""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TENSOR = "torch._utils._rebuild_tensor_v2"


def is_script(file: Path) -> bool:
    """Whether a file is TorchScript: an archive that also holds constants, as no state dict does."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


def read_script(file: Path) -> dict[str, Tensor]:
    """All tensors that the modules of a TorchScript file have as attributes, by their paths.

    Raises
    ------
    ValueError
        The file is damaged, or keeps its weights in a form that only its own code can read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            script = _Script(archive)
            return dict(script.weights(script.root))
    except Exception as error:  # damage shows as almost any error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = (
            f"'{file}' cannot be read as TorchScript ({reason}). It is damaged, or needs code of its own, which is never run. "
            "Get it again, or the file of weights (.pth)."
        )
        raise ValueError(msg) from error


class _Named:
    """Stands for whatever a pickle names: it keeps what it was made of and its state, and does nothing."""

    kind = ""
    made_of: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *made_of: Any) -> None:
        self.made_of = made_of

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Data(pickle.Unpickler):
    """Reads a pickle without importing anything: a new kind of `_Named` takes the place of each name."""

    def find_class(self, module: str, name: str) -> Any:
        return type("_Named", (_Named,), {"kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        return pid


class _Script:
    """An opened archive: `<name>/data.pkl` holds the modules, `<name>/data/<key>` the numbers of their tensors."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = archive.namelist()
        if len({name.lower() for name in names}) < len(names):  # readers differ in which one they take
            msg = "names of its entries repeat"
            raise ValueError(msg)
        tops = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(tops) != 1:
            msg = f"it holds {len(tops)} networks, not one"
            raise ValueError(msg)
        self.archive, self.top = archive, tops[0]
        order = f"{self.top}/byteorder"
        self.swapped = (archive.read(order).decode() if order in names else "little") != sys.byteorder
        self.storages: dict[str, Tensor] = {}
        self.root = _Data(io.BytesIO(archive.read(f"{self.top}/data.pkl"))).load()

    def weights(self, module: _Named, path: str = "") -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a module and of those in it."""
        if not isinstance(module.state, dict):
            where = f"module '{path[:-1]}'" if path else "the network"
            msg = f"the state of {where} is no list of attributes"
            raise ValueError(msg)
        for name, value in module.state.items():
            if not isinstance(value, _Named):
                continue
            if value.kind == TENSOR:
                yield f"{path}{name}", self.tensor(*value.made_of)
            elif value.state is not None:
                yield from self.weights(value, f"{path}{name}.")

    def tensor(self, at: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
        """A view of stored numbers."""
        numbers = self.storage(*at)
        if math.prod(shape) > len(numbers):
            msg = f"a tensor of shape {shape} has {len(numbers)} numbers only"
            raise ValueError(msg)
        return numbers.as_strided(shape, strides, offset)  # torch refuses what lies outside

    def storage(self, _: str, kind: type[_Named], key: str, device: str, count: int) -> Tensor:
        """Stored numbers [count], in the order of this machine's bytes."""
        del device  # they are read to memory, wherever they were
        if key in self.storages:
            return self.storages[key]
        if kind.kind not in DTYPES:
            msg = f"tensors of {kind.kind} are not known"
            raise ValueError(msg)
        dtype, raw = DTYPES[kind.kind], bytearray(self.archive.read(f"{self.top}/data/{key}"))
        if len(raw) != count * dtype.itemsize:
            msg = f"{count} numbers of {dtype} are in {len(raw)} bytes"
            raise ValueError(msg)
        bytewise = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        if self.swapped:
            bytewise = bytewise.view(-1, dtype.itemsize).flip(1).flatten()
        self.storages[key] = bytewise.view(dtype)
        return self.storages[key]
