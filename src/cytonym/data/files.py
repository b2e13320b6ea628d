"""Files that are written for others: never over one that is there unasked, never half of one."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def require_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there, or a folder that is not.

    Raises
    ------
    FileExistsError, FileNotFoundError
    """
    if not path.parent.is_dir():
        msg = f"No folder {str(path.parent)!r} to write {path.name!r} into. Make it first."
        raise FileNotFoundError(msg)
    if path.exists() and not overwrite:
        msg = f"{path} exists. Choose another name, or replace it with overwrite=True."
        raise FileExistsError(msg)


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A name beside the target that takes its place when all is written and flushed to disk."""
    beside = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield beside
        descriptor = os.open(beside, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
