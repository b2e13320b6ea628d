"""The log: what it confirms is on disk, what it does not confirm is not, whatever happens in between."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys

import pytest

from cytonym.label.log import Event, EventLog, parse


def event(k: int, **told) -> Event:
    return Event(
        f"s-{k}",
        "2026-11-21T22:00:00.000Z",
        "maria",
        "assign",
        label=k % 3,
        cells={"core": [[k, 1]]},
        source="single",
        **told,
    )


def add(log: EventLog, k: int, **told) -> Event:
    _, stored = log.append(lambda others: event(k, **told))
    assert stored is not None
    return stored


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tissue.zarr.labels.jsonl"


def test_events_come_back_as_they_were(path):
    log = EventLog(path)
    assert log.read() == []
    assert not path.exists()  # reading makes no file
    page = {"model": "m1", "shown": 200, "hits": {"0": [3, 1]}, "out": {"core": [[7, 1]]}}
    told = [add(log, 1), add(log, 2, **page), add(log, 3)]
    other = Event("x-1", "t", "Åse 細胞", "class", label=0, op="add", name="T‑細胞 <b>", color="#112233")
    log.append(lambda others: other)
    assert EventLog(path).read() == [*told, other]
    assert log.read() == []  # its own events are known
    assert all(parse(e.line()[:-1]) == e for e in [*told, other])


def test_others_are_read_before_one_is_stored(path):
    a, b = EventLog(path), EventLog(path)
    first = add(a, 1)
    seen = []

    def make(others):
        seen.extend(others)
        return event(2)

    b.append(make)
    assert seen == [first]
    assert [e.id for e in a.read()] == ["s-2"]


def test_what_make_refuses_is_not_stored(path):
    log = EventLog(path)
    add(log, 1)

    def refuse(others):
        msg = "no such class"
        raise KeyError(msg)

    with pytest.raises(KeyError):
        log.append(refuse)
    assert log.append(lambda others: None)[1] is None
    assert [e.id for e in EventLog(path).read()] == ["s-1"]


def test_a_line_cut_off_at_any_byte_is_put_aside_and_nothing_else_is_lost(path, caplog):
    log = EventLog(path)
    kept = [add(log, k) for k in range(3)]
    whole = path.stat().st_size
    last = add(log, 3)
    data = path.read_bytes()
    torn = path.with_name(path.name + ".torn")
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        torn.unlink(missing_ok=True)
        assert EventLog(path).read() == kept
        assert path.stat().st_size == end  # reading changes nothing
        again = EventLog(path)
        with caplog.at_level(logging.WARNING):
            others, _ = again.append(lambda others: last)
        assert others == kept
        assert path.read_bytes() == data
        assert torn.exists() == (end > whole)
        if end > whole:
            assert torn.read_bytes() == data[whole:end] + b"\n"
    assert "never finished" in caplog.text


def test_a_last_line_of_zeros_as_after_a_power_failure_is_put_aside(path):
    log = EventLog(path)
    kept = add(log, 1)
    data = path.read_bytes()
    for rest in (b"\0" * 40, b"\0" * 40 + b"\n"):
        path.write_bytes(data + rest)
        assert EventLog(path).read() == [kept]
        add(EventLog(path), 2)
        assert [e.id for e in EventLog(path).read()] == ["s-1", "s-2"]


def test_a_damaged_line_in_the_middle_is_an_error_that_says_which(path):
    log = EventLog(path)
    for k in range(4):
        add(log, k)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"maria", b"mario")
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Line 2 of the log.*checksum"):
        EventLog(path).read()
    with pytest.raises(ValueError, match="Line 2"):
        add(EventLog(path), 9)
    assert path.read_bytes() == before


def test_a_line_of_a_later_version_is_refused_even_if_it_is_the_last(path):
    import zlib

    add(EventLog(path), 1)
    body = b'{"v":2,"id":"a"}'
    path.write_bytes(path.read_bytes() + body + b"\t%08x\n" % zlib.crc32(body))
    with pytest.raises(ValueError, match="Line 2.*later version"):
        EventLog(path).read()


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("before_failing", [0, 10])
def test_a_full_disk_stores_nothing_and_breaks_nothing(path, monkeypatch, call, before_failing):
    log = EventLog(path)
    kept = add(log, 1)
    good = path.read_bytes()
    real = os.write

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def partly(descriptor, data):
        if partly.left <= 0:
            full()
        n = real(descriptor, data[: partly.left])
        partly.left -= n
        return n

    partly.left = before_failing
    with monkeypatch.context() as patched:
        patched.setattr(os, call, partly if call == "write" else full)
        with pytest.raises(OSError, match=r"full\. Nothing was stored") as caught:
            add(log, 2)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == good
    stored = add(log, 3)
    assert EventLog(path).read() == [kept, stored]


def folder_fails(monkeypatch, number):
    """The file can be flushed to disk, its folder cannot."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_folder_that_fails_stores_no_first_event(path, monkeypatch):
    log = EventLog(path)
    with monkeypatch.context() as patched:
        folder_fails(patched, errno.EIO)
        for _ in range(2):  # also when the file is there already
            with pytest.raises(OSError, match="Nothing was stored"):
                add(log, 1)
            assert path.read_bytes() == b""
    stored = add(log, 2)
    assert EventLog(path).read() == [stored]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_a_warning(path, monkeypatch, caplog, number):
    folder_fails(monkeypatch, number)
    log = EventLog(path)
    told = [add(log, 1), add(log, 2)]
    assert EventLog(path).read() == told
    assert caplog.text.count("could not be flushed") == 1


def test_a_log_that_has_not_grown_is_not_waited_for(path, monkeypatch):
    log = EventLog(path)
    add(log, 1)

    def wait(*args, **kwargs):
        msg = "somebody else may have the lock"
        raise AssertionError(msg)

    with monkeypatch.context() as patched:
        patched.setattr("cytonym.label.log._locked", wait)
        assert log.read() == []
    add(EventLog(path), 2)
    assert [e.id for e in log.read()] == ["s-2"]


def test_short_writes_are_finished(path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda d, data: real(d, bytes(data)[:7]))
    told = [add(EventLog(path), k) for k in range(2)]
    assert EventLog(path).read() == told


def test_a_log_that_is_taken_away_or_replaced_is_noticed(path, tmp_path):
    log = EventLog(path)
    add(log, 1)
    data = path.read_bytes()
    path.rename(tmp_path / "elsewhere")
    for use in (log.read, lambda: add(log, 2)):
        with pytest.raises(FileNotFoundError, match="gone"):
            use()
    assert not path.exists()
    path.write_bytes(data)
    with pytest.raises(OSError, match="replaced"):
        add(log, 2)
    assert path.read_bytes() == data


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"

    def forbidden(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", forbidden)
        with pytest.raises(OSError, match="Nothing was stored. Give a place"):
            add(EventLog(path), 1)
    monkeypatch.setattr(os, "access", lambda *a: False)
    assert not EventLog(path).writable
    assert EventLog(None).writable


def test_in_memory_nothing_is_written(tmp_path):
    log = EventLog(None)
    assert add(log, 1).id == "s-1"
    assert log.read() == []


APPEND = """
import sys
from pathlib import Path
from cytonym.label.log import Event, EventLog
log, name = EventLog(Path(sys.argv[1])), sys.argv[2]
for k in range(25):
    log.append(lambda others: Event(f"{name}-{k}", "t", name, "assign", label=0, cells={"": [[k, 1]]}))
"""


def test_processes_that_append_at_the_same_time_lose_nothing(path):
    workers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), name]) for name in "ab"]
    assert [worker.wait() for worker in workers] == [0, 0]
    found = [e.id for e in EventLog(path).read()]
    for name in "ab":
        assert [i for i in found if i.startswith(name)] == [f"{name}-{k}" for k in range(25)]
