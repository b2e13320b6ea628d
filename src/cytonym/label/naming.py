"""Names and colours of classes and annotators, checked."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.state import SPECIAL, UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cytonym.label.state import LabelClass

LONGEST = 100
LONGEST_NOTE = 10_000
MOST = 1000  # classes of a session
ACCESSIBLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito


def composed(name: str) -> str:
    """A name as it is stored: without blanks around it, in Unicode's composed form."""
    return unicodedata.normalize("NFC", name).strip()


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
    found = composed(name)
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


def code_of(label: Any, classes: Sequence[LabelClass]) -> int:
    """The code of a class that is given by name or id, or of a mark; that for no label of None.

    Raises
    ------
    KeyError
        There is no such class.
    """
    live = {c.id: c.name for c in classes}
    if label is None:
        return UNLABELLED
    if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
        if int(label) in live or int(label) in (UNLABELLED, *SPECIAL):
            return int(label)
    elif isinstance(label, str):
        codes = {name: i for i, name in live.items()} | {name: i for i, name in SPECIAL.items()}
        if composed(label) in codes:
            return codes[composed(label)]
    msg = f"No class {label!r}. Available: {list(live.values())}, {list(SPECIAL.values())}. `add_class` makes one."
    raise KeyError(msg)


def require_free(name: str, classes: Sequence[LabelClass], but: int | None = None) -> None:
    """Refuse a name that a class has already, in upper or lower case, and one class too many.

    Parameters
    ----------
    name
        A name that was checked.
    classes
        Those that there are.
    but
        Class that is to get the name; None for a new one.

    Raises
    ------
    ValueError
    """
    taken = next((c for c in classes if c.name.casefold() == name.casefold() and c.id != but), None)
    if taken is not None:
        msg = f"There is a class {taken.name!r} already."
        raise ValueError(msg)
    if but is None and len(classes) >= MOST:
        msg = f"There are {MOST} classes already, which is the most there can be."
        raise ValueError(msg)


def checked_note(text: Any) -> str:
    """A note, which may have any characters that a file can hold.

    Raises
    ------
    ValueError
        It is not text, is too long, or has half a character.
    """
    if not isinstance(text, str) or len(text) > LONGEST_NOTE:
        msg = f"A note is a text of at most {LONGEST_NOTE:,} characters."
        raise ValueError(msg)
    if any(unicodedata.category(c) == "Cs" for c in text):
        msg = "A note cannot have half a character (a lone surrogate): no file could hold it."
        raise ValueError(msg)
    return text


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
