"""Names and colours of classes and annotators, checked."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from cytonym.label.state import SPECIAL

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST = 100
MOST = 1000  # classes of a session
ACCESSIBLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito


def checked_name(name: Any, what: str) -> str:
    """A name of a class or annotator as it is stored: one line without blanks around it, in Unicode's composed form.

    Raises
    ------
    TypeError
        It is not text.
    ValueError
        It is empty, too long, has control characters, or means something else already.
    """
    if not isinstance(name, str):
        msg = f"The name of {what} must be text, got {name!r}."
        raise TypeError(msg)
    found = unicodedata.normalize("NFC", name).strip()
    if not found:
        msg = f"The name of {what} is empty."
        raise ValueError(msg)
    if len(found) > LONGEST:
        msg = f"The name of {what} has {len(found)} characters, at most {LONGEST} can be shown: {found[:40]!r}…."
        raise ValueError(msg)
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in found):
        msg = f"The name of {what} has line breaks or control characters: {found!r}."
        raise ValueError(msg)
    if found.casefold() in SPECIAL.values():
        msg = f"{found!r} cannot be the name of {what}: cells can be marked so without a class."
        raise ValueError(msg)
    return found


def checked_color(color: Any) -> str:
    """A colour in any form that matplotlib knows as `#rrggbb`.

    Raises
    ------
    ValueError
        It is no colour.
    """
    from matplotlib.colors import to_hex

    try:
        return str(to_hex(color)).lower()
    except (ValueError, TypeError) as error:
        msg = f"{color!r} is no colour. Give a name such as 'red', '#d55e00' or (0.8, 0.4, 0)."
        raise ValueError(msg) from error


def next_color(taken: Iterable[str]) -> str:
    """A colour that no class has yet: those that are told apart best first, then the one that is least like those taken."""
    from scanpy.plotting.palettes import default_102

    used = set(taken)
    free = next((c for c in ACCESSIBLE if c not in used), None)
    if free is not None:
        return free
    seen = [_rgb(c) for c in used]
    palette = [c for c in (str(c).lower()[:7] for c in default_102) if c not in used and 90 < sum(_rgb(c)) / 3 < 200]
    if not palette:
        return str(default_102[len(used) % len(default_102)]).lower()[:7]
    return max(palette, key=lambda c: min(_apart(_rgb(c), other) for other in seen))


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """How different two colours look, roughly: red counts more in bright reds, green always."""
    red = (a[0] + b[0]) / 512
    return (2 + red) * (a[0] - b[0]) ** 2 + 4 * (a[1] - b[1]) ** 2 + (3 - red) * (a[2] - b[2]) ** 2
