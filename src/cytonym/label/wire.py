"""Messages as bytes, and fields of messages that are what they must be."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Header = dict[str, Any]
    Buffer = bytes | memoryview
    Message = tuple[Header, list[Buffer]]

ALIGN = 8
MOST_HEADER = 2**18
MOST_BUFFERS = 4
MOST_FRAME = 96 * 2**20
"""Bytes of a message from a page: the rows of twenty million cells fit."""
LARGEST = 2**53 - 1  # whole numbers that JavaScript knows


class BadRequestError(ValueError):
    """A message that is not as it must be; its text is for whoever wrote the client."""


def encode(header: Mapping[str, Any], buffers: Sequence[Buffer] = ()) -> bytes:
    """A message as one frame: length of the header, the header, then the buffers, each from a multiple of 8 bytes.

    Examples
    --------
    >>> from cytonym.label.wire import decode, encode
    >>> decode(encode({"type": "queue", "n": 3}, [b"abc"]))
    ({'type': 'queue', 'n': 3}, [b'abc'])
    """
    told = {**header, "buffers": [len(buffer) for buffer in buffers]}
    text = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * _lacking(4 + len(text))
    parts: list[Buffer] = [struct.pack("<I", len(text)), text]
    for buffer in buffers:
        parts += (buffer, bytes(_lacking(len(buffer))))
    return b"".join(parts)


def view(array: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it lies in one piece.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.label.wire import view
    >>> view(np.array([[1, 2]], "<u2")).tolist()
    [1, 0, 2, 0]
    """
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def decode(frame: bytes) -> tuple[Header, list[bytes]]:
    """The header and the buffers of a frame.

    Raises
    ------
    BadRequestError
        It is no frame.
    """
    if len(frame) < 4:
        msg = f"A frame has at least 4 bytes, got {len(frame)}."
        raise BadRequestError(msg)
    (length,) = struct.unpack_from("<I", frame)
    if length > MOST_HEADER or 4 + length > len(frame):
        msg = f"The header of a frame of {len(frame)} bytes cannot have {length} bytes; the most is {MOST_HEADER}."
        raise BadRequestError(msg)
    try:
        header = json.loads(frame[4 : 4 + length].decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        msg = f"The header of a frame is no JSON: {str(error)[:100]}"
        raise BadRequestError(msg) from None
    if not isinstance(header, dict):
        msg = "The header of a frame must be a JSON object."
        raise BadRequestError(msg)
    sizes = header.pop("buffers", [])
    if not isinstance(sizes, list) or len(sizes) > MOST_BUFFERS or not all(_is_whole(s) and s >= 0 for s in sizes):
        msg = f"`buffers` must be the sizes of at most {MOST_BUFFERS} buffers."
        raise BadRequestError(msg)
    buffers, at = [], 4 + length
    for size in sizes:
        if at + size > len(frame):
            msg = f"A frame of {len(frame)} bytes does not hold buffers of {sizes} bytes."
            raise BadRequestError(msg)
        buffers.append(frame[at : at + size])
        at += size + _lacking(size)
    return header, buffers


def plain(value: Any) -> Any:
    """A value as JSON takes it: plain types, no NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.label.wire import plain
    >>> plain({"a": np.float32("nan"), 3: (np.int64(1), np.array([2.5]))})
    {'a': None, '3': [1, [2.5]]}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)


# ------------------------------------------------------------------------------------------------------------------- fields
def whole(header: Header, name: str, low: int, high: int, default: int | None = None) -> int:
    """A whole number of `low` to `high`; `default`, if there is one, where it is left out."""
    value = header.get(name)
    if value is None and default is not None:
        return default
    if not _is_whole(value) or not low <= value <= high:
        msg = f"`{name}` must be a whole number from {low} to {high}, got {_shown(value)}."
        raise BadRequestError(msg)
    return int(value)


def maybe_whole(header: Header, name: str, low: int, high: int) -> int | None:
    """The same, or None where it is left out."""
    return None if header.get(name) is None else whole(header, name, low, high)


def text(header: Header, name: str, longest: int = 1000) -> str:
    """Text of at most `longest` characters."""
    value = header.get(name)
    if not isinstance(value, str) or len(value) > longest:
        msg = f"`{name}` must be text of at most {longest} characters, got {_shown(value)}."
        raise BadRequestError(msg)
    if any("\ud800" <= char <= "\udfff" for char in value):
        msg = f"`{name}` holds half a character (a lone surrogate), which no file can store."
        raise BadRequestError(msg)
    return value


def choice(header: Header, name: str, known: Sequence[str], default: str | None = None) -> str:
    """One of some words."""
    value = header.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or value not in known:
        msg = f"`{name}` must be one of {list(known)}, got {_shown(value)}."
        raise BadRequestError(msg)
    return value


def indices(header: Header, name: str, n: int) -> list[int] | None:
    """Different places in a list of `n`; None where they are left out."""
    value = header.get(name)
    if value is None:
        return None
    good = isinstance(value, list) and 0 < len(value) <= n and all(_is_whole(v) and 0 <= v < n for v in value)
    if not good or len(set(value)) < len(value):
        msg = f"`{name}` must be different whole numbers from 0 to {n - 1}, got {_shown(value)}."
        raise BadRequestError(msg)
    return value


def rows(buffers: Sequence[bytes], n: int, most: int | None = None) -> np.ndarray:
    """Rows of a table of `n` cells, int64, from the one buffer of a message."""
    if len(buffers) != 1 or len(buffers[0]) % 4 or not len(buffers[0]):
        sizes = [len(b) for b in buffers]
        msg = f"One buffer of 4 bytes a row is needed, got buffers of {sizes} bytes."
        raise BadRequestError(msg)
    count = len(buffers[0]) // 4
    if count > (most or n):
        msg = f"{count:,} rows are too many at a time; the most is {most or n:,}."
        raise BadRequestError(msg)
    found = np.frombuffer(buffers[0], dtype="<u4").astype(np.int64)
    if found.max() >= n:
        msg = f"Rows go from 0 to {n - 1}, got {found.max()}."
        raise BadRequestError(msg)
    return found


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, (str, int, float, bool, type(None))) else f"a {type(value).__name__}"


def _lacking(length: int) -> int:
    return -length % ALIGN


def _refuse(constant: str) -> None:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)
