"""What training and inference share: the device, reading ahead, and a progress bar."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tqdm import tqdm

T = TypeVar("T")


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on.

    Parameters
    ----------
    device
        ``"auto"`` takes CUDA where there is one and the CPU otherwise. Anything else is a name that torch knows, such
        as ``"cuda:1"``. Apple's ``"mps"`` is used when asked for, not by itself.

    Raises
    ------
    ValueError
        torch does not know the name, or this machine has no such device.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        msg = f"Unknown device {device!r}. Use 'auto', 'cpu', 'cuda', 'cuda:0', … or 'mps'."
        raise ValueError(msg) from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if chosen.type in count and (chosen.index or 0) >= count[chosen.type]:
        msg = (
            f"Device {str(device)!r} is not at hand: this machine has {count['cuda']} CUDA devices, {count['mps']} MPS."
        )
        raise ValueError(msg)
    return chosen


def read_ahead(items: Iterable[T], *, ahead: int = 1) -> Iterator[T]:
    """The same items, read by a thread that stays `ahead` items in front of the caller.

    Reading and computing overlap where both leave the interpreter lock (decoding chunks, matrix products). An error
    while reading is raised at the item where it happened. Leaving the loop early stops the thread.

    Examples
    --------
    >>> list(read_ahead(range(3)))
    [0, 1, 2]
    """
    found: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                found.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:  # noqa: BLE001  it is raised again in the caller's thread
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=read, name="cytonym-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = found.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def progress_bar(label: str, total: int | None, unit: str, *, show: bool, initial: int = 0) -> tqdm[Any]:
    """A bar with rate and time left on the terminal or in the notebook, or nothing, as where the log is silenced."""
    from tqdm.auto import tqdm

    show = show and logging.getLogger("cytonym").isEnabledFor(logging.WARNING)
    return tqdm(
        desc=label, total=total, unit=unit, unit_scale=unit == "cell", initial=initial, disable=not show, leave=True
    )
