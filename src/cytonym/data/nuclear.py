"""Which channels show the nuclei, by their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# In order of preference. Of two of a kind, such as the isotopes of iridium, both are taken; of more, as in cyclic stains,
# the first.
KINDS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<![a-z])(dapi|hoechst|draq[ _-]?5|sytox)",
        r"(?<![a-z])dna(?![a-z]|[ _-]?pk)|(?<![a-z])ir[ _-]?19[13](?!\d)|(?<!\d)19[13][ _-]?ir(?![a-z])|intercalator|iridium",
        r"(?<![a-z0-9])(h?h3|histone[ _-]?h?3?)(?![a-z0-9])",
        r"dsdna",
        r"^nuc(lei|leus|lear)?(?![a-z])(?!.*(pore|envelope))",
        r"(?<![a-z])ha?ematoxylin",
    )
)
MODIFIED = re.compile(
    r"(?<![a-z])p[ _-]*(h?h3|histone)|phospho|(?<![a-z])p?s(er)?[ _-]?10(?!\d)|(?<![a-z])k[ _-]?\d+[ _-]?(me|ac|ub)"
)
"""Marks of dividing cells, or of some nuclei only."""


def is_nuclear(channel: str) -> bool:
    """Whether a channel's name says that it shows every nucleus."""
    name = channel.lower()
    return any(kind.search(name) for kind in KINDS) and not MODIFIED.search(name)


def nuclear_channels(channels: Sequence[str]) -> list[str]:
    """The channels that their names say are nuclear; empty where none does.

    Examples
    --------
    >>> from cytonym.data.nuclear import nuclear_channels
    >>> nuclear_channels(["CD8", "DNA1(Ir191)", "DNA2(Ir193)", "Histone H3", "H3K27me3"])
    ['DNA1(Ir191)', 'DNA2(Ir193)']
    """
    for kind in KINDS:
        found = [c for c in channels if kind.search(c.lower()) and is_nuclear(c)]
        if found:
            return found if len(found) == 2 else found[:1]
    return []
