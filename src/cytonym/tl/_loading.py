"""The trained model that a verb was given: an object, or the folder of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from cytonym.models import load, registry

T = TypeVar("T")


def trained(model: object, cls: type[T], kind: str, *, advice: str, shipped: str = "", makers: str = "") -> T:
    """A model object of a class, or one loaded from a checkpoint.

    Parameters
    ----------
    model
        What the verb was given.
    cls, kind
        What it must be, and what models like it are called.
    advice
        What to do about the name of a method, which is no trained model.
    shipped
        The word for what needs no model, which the verb has dealt with.
    makers
        What gives such a model.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    TypeError, ValueError
        It is none of these, or a model of another kind.
    """
    if isinstance(model, cls):
        return model
    article = "an" if kind[0] in "aeiou" else "a"
    if not isinstance(model, (str, Path)):
        known = f"{shipped!r}, " if shipped else ""
        msg = f"`model` must be {known}{article} {kind} or the folder of a checkpoint, got {type(model).__name__}."
        raise TypeError(msg)
    if not Path(model).exists():
        if str(model) in registry.names(kind):
            msg = f"{str(model)!r} names a method. {advice}"
            raise ValueError(msg)
        if shipped and "/" not in str(model):
            msg = f"{str(model)!r} is neither {shipped!r} nor the folder of a checkpoint."
            raise ValueError(msg)
    found = load(model)
    if not isinstance(found, cls):
        how = f" ({makers})" if makers else ""
        msg = f"'{model}' holds a {found.name}, but {article} {kind} is needed here{how}."
        raise ValueError(msg)
    return found
