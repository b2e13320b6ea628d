"""One at a time: threads and processes wait for each other, and where there are no locks that is said."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cytonym.data.locks import locked_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "tissue.zarr"
    path.mkdir()
    return path


def waits(store: Path) -> bool:
    """Whether somebody else has to wait for the lock; returns when that one is through."""
    through = threading.Event()

    def enter() -> None:
        with locked_store(store):
            through.set()

    WAITERS.append(threading.Thread(target=enter, daemon=True))
    WAITERS[-1].start()
    return not through.wait(0.2)


WAITERS: list[threading.Thread] = []


def all_through() -> None:
    while WAITERS:
        WAITERS.pop().join()


def no_lock_file(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, *given: Any, **named: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *given, **named)

    monkeypatch.setattr(os, "open", refuse)


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_others_wait_and_nothing_stays(store: Path) -> None:
    link = store.with_name("link.zarr")
    link.symlink_to(store)
    with locked_store(store) as alone:
        assert alone
        assert waits(link)
        with locked_store(link) as again:  # the same thread does not wait for itself
            assert again
        assert waits(store)
    all_through()
    assert not waits(store)
    all_through()
    assert sorted(path.name for path in store.parent.iterdir()) == ["link.zarr", "tissue.zarr"]


def test_whoever_waited_for_a_lock_that_is_gone_asks_again(store: Path) -> None:
    """Many take turns; the file of the lock is made and taken away each time."""
    inside, most = [0], [0]

    def enter() -> None:
        for _ in range(20):
            with locked_store(store):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_where_nothing_can_be_written_beside_the_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_lock_file(monkeypatch)
    with locked_store(store) as alone:
        assert alone
        assert waits(store)


def test_a_file_system_without_locks_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_locks(monkeypatch)
    with caplog.at_level(logging.WARNING), locked_store(store) as alone:
        assert not alone
    assert "has no locks" in caplog.text
