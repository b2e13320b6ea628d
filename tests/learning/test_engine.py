"""The device, and reading ahead: same items, same errors, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from cytonym.learning.engine import choose_device, progress_bar, read_ahead


def threads() -> int:
    return sum(t.name == "cytonym-read-ahead" for t in threading.enumerate())


@pytest.mark.parametrize("ahead", [1, 3, 100])
@pytest.mark.parametrize("n", [0, 1, 20])
def test_same_items(n, ahead):
    assert list(read_ahead(range(n), ahead=ahead)) == list(range(n))
    assert threads() == 0


def test_items_are_read_while_the_caller_works():
    read = []

    def items():
        for i in range(5):
            read.append(i)
            yield i

    reading = read_ahead(items())
    next(reading)
    deadline = time.monotonic() + 5
    while len(read) < 3 and time.monotonic() < deadline:  # one in the queue, one waiting for its place
        time.sleep(0.01)
    assert read == [0, 1, 2]
    reading.close()


def test_an_error_comes_where_it_happened():
    def items():
        yield 1
        msg = "broken chunk"
        raise OSError(msg)

    reading = read_ahead(items())
    assert next(reading) == 1
    with pytest.raises(OSError, match="broken chunk"):
        next(reading)
    assert threads() == 0


def test_leaving_early_stops_the_thread_and_closes_the_items():
    closed = threading.Event()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.set()

    for i in read_ahead(items()):
        if i == 3:
            break
    assert closed.wait(5)
    assert threads() == 0


def test_devices():
    assert choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"Unknown device 'gpu0'\. Use 'auto', 'cpu', 'cuda'"):
        choose_device("gpu0")
    with pytest.raises(ValueError, match=r"Device 'cuda:99' is not at hand: this machine has \d+ CUDA devices"):
        choose_device("cuda:99")


def test_bar(capsys):
    with progress_bar("embedding", 10, "cell", show=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with progress_bar("embedding", 10, "cell", show=True) as bar:
        bar.update(10)
    assert "embedding" in capsys.readouterr().err
