"""Which methods there are, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from cytonym.models.base import CellEncoder


@dataclass(frozen=True)
class _Entry:
    """A method: where its class lives and what a user must know before using it."""

    module: str
    cls: str
    task: str
    paper: str
    licence: str
    """Of the code; weights that were downloaded may carry another one."""


# Listing the methods must not import torch, hence names instead of classes. Extend only this table for a new method.
_MODELS: dict[str, _Entry] = {
    "nextmarker": _Entry(
        module="cytonym.models.nextmarker",
        cls="NeXtMarker",
        task="embed cells, marker by marker",
        paper="Gutwein et al. 2025",
        licence="BSD-3-Clause",
    ),
}


def available() -> pd.DataFrame:
    """List the methods that can be trained or loaded.

    Returns
    -------
    DataFrame
        One row a method, indexed by the `name` that verbs such as `tl.fit_encoder` take. Columns: `cls` (class in
        `cytonym.models`), `task`, `paper`, `licence` (of the code).

    Examples
    --------
    >>> import cytonym as cy
    >>> cy.models.available().loc["nextmarker", "cls"]
    'NeXtMarker'
    """
    import pandas as pd

    rows = {name: asdict(entry) for name, entry in _MODELS.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").drop(columns="module")
    return table.rename_axis(index="name")


def get(name: str) -> type[CellEncoder]:
    """The class of a method.

    Parameters
    ----------
    name
        Index of `available`, such as ``"nextmarker"``.

    Raises
    ------
    KeyError
        There is no such method.

    Examples
    --------
    >>> get("nextmarker").__name__
    'NeXtMarker'
    """
    if name not in _MODELS:
        msg = f"No method {name!r}. Available: {sorted(_MODELS)}."
        raise KeyError(msg)
    entry = _MODELS[name]
    cls: type[CellEncoder] = getattr(import_module(entry.module), entry.cls)
    return cls
