"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.models.nimbus import Nimbus

    Numbers = dict[str, np.ndarray]

SHARED = Path(__file__).parents[2] / "shared"
DATA = Path(os.environ.get("CYTONYM_DATA", SHARED / "data"))
PARITY = Path(os.environ.get("CYTONYM_PARITY", SHARED / "parity"))


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of a real field; skips the test where the data are not at hand."""

    def folder(name: str) -> Path:
        path = DATA / name / "dev"
        if not path.is_dir():
            pytest.skip(f"real field {name!r} not found in {DATA} (set CYTONYM_DATA)")
        return path

    return folder


@pytest.fixture(scope="session")
def parity() -> Callable[[str], tuple[Numbers, Numbers]]:
    """Inputs and outputs of a published program; skips the test where these numbers are not at hand."""

    def load(name: str) -> tuple[Numbers, Numbers]:
        paths = [PARITY / name / f"{what}.npz" for what in ("inputs", "outputs")]
        if not all(path.is_file() for path in paths):
            pytest.skip(f"numbers of the published program {name!r} not found in {PARITY} (set CYTONYM_PARITY)")
        found = []
        for path in paths:
            with np.load(path) as arrays:
                found.append(dict(arrays))
        return found[0], found[1]

    return load


@pytest.fixture(scope="session")
def scorer() -> Callable[..., Nimbus]:
    """A small scorer whose probabilities spread over 0 … 1, with running statistics as after a training."""
    import torch

    from cytonym.models.nimbus import Nimbus, NimbusConfig

    def make(filters: int = 4, depth: int = 3, seed: int = 0, **config: float) -> Nimbus:
        model = Nimbus.from_seed(NimbusConfig(filters, depth, **config), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point() and ("bn_" in name or name.endswith("bias")):
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            side = 4 * model.stride
            x = torch.rand(2, 2, side, side, generator=generator)
            x[:, 1] = (x[:, 1] > 0.4).float()
            logits = model.logits(x)
            last = model.state_dict()
            last["final_conv.weight"].div_(logits.std())
            last["final_conv.bias"].sub_(logits.mean()).div_(logits.std())
        return model

    return make
