"""Interrupts that wait for the end of a step, and a Lightning that keeps quiet."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("cytonym")


class Stopped(BaseException):
    """The user asked to stop, and the step is done."""


class DeferredInterrupt:
    """Within this context the first Ctrl-C sets `seen`; the second one raises KeyboardInterrupt at once.

    Signals reach the main thread only, and a handler that somebody else has set is left alone.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            self._before = before
            if before is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:  # Lightning, too, changes the handler
            signal.signal(signal.SIGINT, self._before)

    def _note(self, signum: int, frame: Any) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True
        logger.warning("Interrupt: stopping after this step. Once more to stop at once.")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide what Lightning says at level INFO (hardware found, tips) and its warnings about its own dependencies."""
    talkers = [logging.getLogger(name) for name in _TALKERS]
    for talker in talkers:
        talker.addFilter(_at_least_warning)
    try:
        with warnings.catch_warnings():
            for message in _CHATTER:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for talker in talkers:
            talker.removeFilter(_at_least_warning)


_TALKERS: tuple[str, ...] = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
_CHATTER = (r"`isinstance\(treespec, LeafSpec\)` is deprecated", ".*does not have many workers.*")


def _at_least_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
