"""Which methods there are, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Entry:
    """A method: where its class lives and what a user must know before using it."""

    module: str
    cls: str
    kind: str
    """"encoder" (windows in, numbers out, no labels), "classifier" (trained on labels), "scorer" (which markers) or "translator" (images in, images out)."""
    task: str
    paper: str
    licence: str
    """Of the code; weights that were downloaded may carry another one."""


# Listing the methods must not import torch, hence names instead of classes. Extend only this table for a new method.
_MODELS: dict[str, _Entry] = {
    "nextmarker": _Entry(
        module="cytonym.models.nextmarker",
        cls="NeXtMarker",
        kind="encoder",
        task="embed cells, marker by marker",
        paper="Gutwein et al. 2025",
        licence="BSD-3-Clause",
    ),
    "clearit": _Entry(
        module="cytonym.models.clearit",
        cls="ClearIT",
        kind="encoder",
        task="embed cells of any panel",
        paper="Spengler et al. 2024",
        licence="BSD-3-Clause",
    ),
    "nimbus": _Entry(
        module="cytonym.models.nimbus",
        cls="Nimbus",
        kind="scorer",
        task="say which markers a cell is positive for",
        paper="Rumberger et al. 2024",
        licence="BSD-3-Clause",
    ),
    "classifier": _Entry(
        module="cytonym.models.classifier",
        cls="CellClassifier",
        kind="classifier",
        task="name cells from few labels",
        paper="Spengler et al. 2024",
        licence="BSD-3-Clause",
    ),
    "maps": _Entry(
        module="cytonym.models.maps",
        cls="MAPS",
        kind="classifier",
        task="name cells from mean intensities",
        paper="Shaban et al. 2024",
        licence="BSD-3-Clause",
    ),
    "cellsighter": _Entry(
        module="cytonym.models.cellsighter",
        cls="CellSighter",
        kind="classifier",
        task="name cells from pixels and masks",
        paper="Amitay et al. 2023",
        licence="BSD-3-Clause",
    ),
    "finetuned": _Entry(
        module="cytonym.models.finetuned",
        cls="FineTuned",
        kind="classifier",
        task="name cells with an encoder trained further on labels",
        paper="Spengler et al. 2024",
        licence="BSD-3-Clause",
    ),
    "deepliif": _Entry(
        module="cytonym.models.deepliif",
        cls="DeepLIIF",
        kind="translator",
        task="make fluorescence and classified nuclei of brightfield images",
        paper="Ghahremani et al. 2022",
        licence="BSD-3-Clause",
    ),
}


def available() -> pd.DataFrame:
    """List the methods that can be trained or loaded.

    Returns
    -------
    DataFrame
        One row a method, indexed by the `name` that verbs such as `tl.fit_encoder` take. Columns: `cls` (class in
        `cytonym.models`), `kind` (encoder, classifier, scorer or translator), `task`, `paper`, `licence` (of the code).

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


def names(kind: str) -> list[str]:
    """Methods of a kind, ``"encoder"``, ``"classifier"``, ``"scorer"`` or ``"translator"``."""
    return [name for name, entry in _MODELS.items() if entry.kind == kind]


def get(name: str) -> type[Any]:
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
    cls: type[Any] = getattr(import_module(entry.module), entry.cls)
    return cls
