"""The log of a labelling session: one line an event, on disk before anybody is told that it is stored."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from cytonym.data.locks import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger("cytonym")

VERSION = 1
KINDS = ("assign", "undo", "redo", "class", "note", "model")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM)
"""What file systems say that cannot flush a folder, and folders that may not be read."""
BINARY = getattr(os, "O_BINARY", 0)
"""Windows would write other line ends, which no checksum fits."""

Cells = dict[str, list[Any]]
"""Region -> ids of cells: runs [first, count] of whole numbers, or names."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that an annotator did. What does not belong to its kind is None or empty."""

    id: str
    """`<session>-<number>`, unique in the log."""
    time: str
    """UTC, ISO 8601 to the millisecond."""
    by: str
    """The annotator."""
    kind: Literal["assign", "undo", "redo", "class", "note", "model"]
    label: int | None = None
    """Class id, or a negative code: -1 no label, -2 unsure, -3 not a cell. `class` in the file."""
    cells: Cells = field(default_factory=dict)
    source: str | None = None
    """`"single"`, `"bulk"`, `"suggested"` or `"imported"`."""
    shown: int | None = None
    """How many cells were on the screen."""
    model: str | None = None
    """Version of the model whose suggestions were shown."""
    of: str | None = None
    """The event that is undone or done again."""
    op: str | None = None
    """Of a class: `"add"`, `"rename"`, `"color"`, `"remove"` or `"restore"`."""
    name: str | None = None
    color: str | None = None
    into: int | None = None
    """Class that takes over the labels of one that is removed."""
    text: str | None = None
    hits: dict[str, list[int]] = field(default_factory=dict)
    """Suggested class id -> cells of this event that were given it, and cells that were not."""
    out: Cells = field(default_factory=dict)
    """Cells that were taken out of the page of suggestions of which others were given the class."""

    def line(self) -> bytes:
        """The event as it stands in the file, with its checksum."""
        told: dict[str, Any] = {"v": VERSION}
        for part in fields(self):
            value = getattr(self, part.name)
            if value is not None and value != {}:
                told["class" if part.name == "label" else part.name] = value
        body = json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        return b"%b\t%08x\n" % (body, zlib.crc32(body))


NAMES = {part.name for part in fields(Event)}


class _BrokenError(ValueError):
    """A line that is not as it was written."""


def parse(line: bytes) -> Event:
    """The event of a line without its end.

    Raises
    ------
    ValueError
        It is not whole, not as it was written, or of a later version.
    """
    body, tab, checksum = line.rpartition(b"\t")
    if not tab or checksum != b"%08x" % zlib.crc32(body):
        msg = "its checksum is wrong"
        raise _BrokenError(msg)
    told = json.loads(body)
    if told.pop("v") != VERSION:
        msg = "a later version of cytonym wrote it"
        raise ValueError(msg)
    if "class" in told:
        told["label"] = told.pop("class")
    if told.get("kind") not in KINDS or not set(told) <= NAMES:
        msg = "a later version of cytonym wrote it"
        raise ValueError(msg)
    return Event(**told)


class EventLog:
    """Events in a file that several processes append to.

    `append` takes the lock, reads what others appended, writes, flushes to disk and only then returns. A line that a crash
    left unfinished is moved to `<log>.torn` by whoever appends next, and passed over until then.

    Parameters
    ----------
    path
        The file. It is made by the first event. None keeps the events in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._offset = 0
        self._line = 0
        self._file: tuple[int, int] | None = None
        self._mutex = threading.RLock()

    @property
    def writable(self) -> bool:
        """Whether events can be appended, as far as the file system says."""
        if self.path is None:
            return True
        return os.access(self.path if self.path.exists() else self.path.parent, os.W_OK)

    def read(self) -> list[Event]:
        """Events that were appended since the last call.

        Raises
        ------
        ValueError
            A line in the middle is damaged.
        OSError
            The file is gone or was replaced.
        """
        with self._mutex:
            if self.path is None:
                return []
            try:
                descriptor = os.open(self.path, os.O_RDONLY | BINARY)
            except FileNotFoundError:
                self._require_none_read()
                return []
            try:
                if self._is_known(os.fstat(descriptor)):  # as most of the time: nobody waits for a lock
                    return []
                with _locked(descriptor, shared=True):
                    return self._read_on(descriptor)[0]
            finally:
                os.close(descriptor)

    def append(self, make: Callable[[list[Event]], Event | None]) -> tuple[list[Event], Event | None]:
        """Store one event.

        Parameters
        ----------
        make
            Is given what others appended meanwhile, and returns the event to store, or None for nothing. What it raises stops the
            whole; the others' events count as read then only if `make` applied them, so it must apply them first.

        Returns
        -------
        The others' events, and the event, which is on disk.

        Raises
        ------
        OSError
            It could not be stored. The file is as it was before.
        """
        with self._mutex:
            if self.path is None:
                return [], make([])
            if not self.path.exists():
                self._require_none_read()
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
            except OSError as error:
                raise _explained(error, self.path) from error
            try:
                with _locked(descriptor, shared=False):
                    others, good = self._read_on(descriptor)
                    event = make(others)
                    if event is not None:
                        self._store(descriptor, good, event.line())
            finally:
                os.close(descriptor)
            return others, event

    # ------------------------------------------------------------------------------------------------------------ inside
    def _require_none_read(self) -> None:
        if self._file is not None:
            msg = f"The log {self.path} is gone. Nothing was stored. Put it back, or open a new session."
            raise FileNotFoundError(msg)

    def _is_known(self, about: os.stat_result) -> bool:
        """Whether all that the file holds was read."""
        return self._file == (about.st_dev, about.st_ino) and about.st_size == self._offset

    def _read_on(self, descriptor: int) -> tuple[list[Event], int]:
        """Events behind those that are known, and the length of the file up to its last whole line. Under the lock."""
        about = os.fstat(descriptor)
        if self._file is None:
            self._file = (about.st_dev, about.st_ino)
        if self._file != (about.st_dev, about.st_ino) or about.st_size < self._offset:
            msg = f"The log {self.path} was replaced by another file. Nothing was stored. Open a new session."
            raise OSError(msg)
        data = _read_all(descriptor, self._offset, about.st_size - self._offset)
        lines = data.split(b"\n")
        lines.pop()  # what follows the last line end: nothing, or a line that was never finished
        events: list[Event] = []
        for i, line in enumerate(lines):
            try:
                events.append(parse(line))
            except (ValueError, KeyError, TypeError) as error:
                if i == len(lines) - 1 and isinstance(error, _BrokenError):
                    break  # the last one, such as after a power failure: never confirmed
                msg = (
                    f"Line {self._line + i + 1} of the log {self.path} is damaged: {error}. Nothing was changed. Restore the file "
                    "from a backup, or take the line out by hand: the label changes that it holds are lost then."
                )
                raise ValueError(msg) from error
        whole = sum(len(line) + 1 for line in lines[: len(events)])
        self._offset += whole
        self._line += len(events)
        return events, self._offset

    def _store(self, descriptor: int, good: int, line: bytes) -> None:
        """Write a line behind the last whole one, flushed to disk, or leave the file as it was."""
        assert self.path is not None
        try:
            self._put_aside(descriptor, good)
            if good == 0:  # before the first event, so that the file itself is not lost with the power
                _flush_folder(self.path.parent)
            os.lseek(descriptor, good, os.SEEK_SET)
            left = memoryview(line)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except BaseException as error:
            try:
                os.ftruncate(descriptor, good)
            except OSError:
                logger.exception("The log %s could not be brought back to its last event. Look at its end.", self.path)
            if isinstance(error, OSError):
                raise _explained(error, self.path) from error
            raise
        self._offset = good + len(line)
        self._line += 1

    def _put_aside(self, descriptor: int, good: int) -> None:
        """Move what a crash left behind the last whole line to a file of its own."""
        assert self.path is not None
        size = os.fstat(descriptor).st_size
        if size == good:
            return
        torn = self.path.with_name(f"{self.path.name}.torn")
        with torn.open("ab") as stream:
            stream.write(_read_all(descriptor, good, size - good) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.ftruncate(descriptor, good)
        logger.warning(
            "The last line of %s was never finished and never confirmed. It was moved to %s.", self.path, torn
        )


def _read_all(descriptor: int, start: int, length: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    parts = []
    while length > 0 and (part := os.read(descriptor, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _explained(error: OSError, path: Path) -> OSError:
    """The same error in words that say what happened to the label."""
    if error.errno in FULL:
        told = f"The disk of {path} is full. Nothing was stored. Make room and do it again."
    elif error.errno in FORBIDDEN:
        told = f"The log {path} cannot be written. Nothing was stored. Give a place that can be: Session(..., log='labels.jsonl')."
    else:
        told = f"The log {path} could not be written ({error.strerror or error}). Nothing was stored."
    return type(error)(error.errno, told) if error.errno else type(error)(told)


def _flush_folder(folder: Path) -> None:
    """Put the names of the files of a folder on disk, where its file system can."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
        logger.warning(
            "The folder %s could not be flushed to disk (%s). A power failure may lose a new log in it.", folder, error
        )


@contextmanager
def _locked(descriptor: int, *, shared: bool) -> Iterator[None]:
    """Hold the lock of an open log; others wait."""
    with locked(descriptor, shared=shared) as held:
        if not held:
            logger.warning("The file system of the log has no locks: do not open two sessions on it at the same time.")
        yield
