"""Locks for which processes and threads wait: of an open file, and of a store."""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger("cytonym")

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
ENDING = ".lock"
TRIES = 1000

_held = threading.local()
"""Stores that this thread has locked."""


@contextmanager
def locked(descriptor: int, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of an open file, as one of several readers or alone; others wait.

    Yields
    ------
    Whether it is held: False where the file system has no locks.
    """
    if os.name == "nt":  # pragma: no cover
        import msvcrt

        beyond = 1 << 62  # a place that no content reaches
        while True:
            os.lseek(descriptor, beyond, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                break
            except OSError as error:  # it waits for ten seconds only
                if error.errno != errno.EDEADLK:
                    raise
        try:
            yield True
        finally:
            os.lseek(descriptor, beyond, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined]
        return
    import fcntl

    held = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        held = False
    try:
        yield held
    finally:
        with suppress(OSError):  # a process that was forked meanwhile may keep the file open
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def locked_store(store: Path) -> Iterator[bool]:
    """Hold the lock of a store, for reading a table, changing it and putting it back; others wait.

    The lock is a file beside the store that is gone afterwards, `tissue.zarr.lock`, and the folder of the store: the one holds
    between machines, the other also where nothing can be written beside the store. A thread that holds it may ask again.

    Parameters
    ----------
    store
        Folder of the store, or a link to it.

    Yields
    ------
    Whether others are kept out: False, with a warning, where neither can be locked.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cytonym.data.locks import locked_store
    >>> with locked_store(Path(tempfile.mkdtemp())) as alone:
    ...     alone
    True
    """
    place = store.resolve()
    held: dict[Path, bool] = _held.__dict__.setdefault("stores", {})
    if place in held:
        yield held[place]
        return
    with ExitStack() as locks:
        beside = locks.enter_context(_beside(place.with_name(f"{place.name}{ENDING}")))
        held[place] = locks.enter_context(_folder(place)) or beside
        if not held[place]:
            logger.warning(
                "The file system of %s has no locks: do not save it from two sessions at the same time.", store
            )
        try:
            yield held[place]
        finally:
            del held[place]


@contextmanager
def _beside(path: Path) -> Iterator[bool]:
    """Lock a file that is made for it and taken away afterwards; False where none can be made."""
    for _ in range(TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            break
        try:
            with locked(descriptor) as held:
                if not _is_there(descriptor, path):  # whoever had the lock took the file away
                    continue
                try:
                    yield held
                finally:
                    with suppress(OSError):  # Windows keeps files that are open
                        path.unlink()
                return
        finally:
            os.close(descriptor)
    yield False


@contextmanager
def _folder(path: Path) -> Iterator[bool]:
    """Lock a folder; False where that cannot be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows
        yield False
        return
    try:
        with locked(descriptor) as held:
            yield held
    finally:
        os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
