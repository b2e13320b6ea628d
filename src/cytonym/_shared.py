"""What verbs and figures share: the documentation of the key block, and seeds."""

from __future__ import annotations

from inspect import cleandoc
from textwrap import indent
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")

KEYS = """
image_key
    Image, or images, of `sdata.images`; a sequence pairs up with the cell keys. May be left out where there is one.
labels_key, shapes_key, points_key
    Element, or elements, that name the cells. Exactly one of the three; may be left out where the answer is unique.
table_key
    Table that the results go to. One that exists is annotated, else a new one is added under this name.
coordinate_system
    Coordinate system in which images and cells meet.
scale
    Level of a multi-scale image; the full resolution by default.
channels
    Names of the channels to use; all by default.
"""

RNG = """
rng
    Seed or generator. The same seed gives the same result; global seeds are not touched.
"""


def document(**blocks: str) -> Callable[[F], F]:
    """Fill `{name}` placeholders of a docstring, each alone on its line, with a block indented like the placeholder.

    The keywords of a verb stay explicit in its signature; only the words about them are shared.
    """

    def fill(function: F) -> F:
        lines = []
        for line in (function.__doc__ or "").splitlines():
            name = line.strip().removeprefix("{").removesuffix("}")
            if line.strip() == f"{{{name}}}" and name in blocks:
                lines.append(indent(cleandoc(blocks[name]), line[: len(line) - len(line.lstrip())]))
            else:
                lines.append(line)
        function.__doc__ = "\n".join(lines)
        return function

    return fill


def seed_of(rng: int | np.random.Generator | None) -> int:
    """An integer seed: the integer itself, one drawn from the generator, or a fresh one."""
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        if rng < 0:
            msg = f"`rng` must be a seed of at least 0, a numpy Generator or None, got {rng}."
            raise ValueError(msg)
        return int(rng)
    if rng is None or isinstance(rng, np.random.Generator):
        return int(np.random.default_rng(rng).integers(2**31 - 1))
    msg = f"`rng` must be a seed (int), a numpy Generator or None, got {type(rng).__name__}."
    raise TypeError(msg)
