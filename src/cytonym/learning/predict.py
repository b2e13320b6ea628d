"""Inference: blocks of windows in, one row of results a cell out, here or on a Dask cluster."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from cytonym.learning.engine import choose_device, progress_bar, read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from distributed import Client
    from torch import Tensor

    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")

PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Pixels of the windows that go through a network at once: a few times what a core's cache holds, what fills a GPU."""


class Part(NamedTuple):
    """Results of some cells."""

    rows: np.ndarray
    """int64 [n]."""
    values: dict[str, np.ndarray]
    """Each f4 [n, …]."""


def predict(
    model: CellEncoder,
    blocks: Iterable[Any],
    *,
    n_rows: int,
    markers: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    n_cells: int | None = None,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Encode cells while a thread reads the next ones.

    Parameters
    ----------
    model
        A trained encoder. It is in evaluation mode afterwards, on the device where it was. On a CPU several threads
        call `encode` at once.
    blocks
        Have `rows` (int64 [b]) and `windows` (array [b, C', S, S], raw).
    n_rows
        Number of rows N of the results.
    markers
        Names of the windows' channels [C']; by default those of the model. Matched by name: channels that the model
        does not know are left out, markers that the windows lack are zero, which every encoder takes as no signal.
    device
        See `cytonym.learning.engine.choose_device`. On CUDA matrix products run in bfloat16.
    n_cells
        Number of cells that the blocks hold, for the time left.
    progress
        Show a bar with cells/s and the time left.

    Returns
    -------
    `embedding` f4 [N, D], `attributions` f4 [N, C] and `features` f4 [N, C * K], NaN in rows that no block names.

    Raises
    ------
    ValueError
        Windows and model have no marker in common.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from cytonym.models.nextmarker import NeXtMarker
    >>> model = NeXtMarker.from_statistics(["DNA", "CD8"], [1.0, 1.0])
    >>> windows = np.ones((1, 1, model.window_px, model.window_px), dtype="u2")
    >>> block = SimpleNamespace(rows=np.array([2]), windows=windows)
    >>> found = predict(model, [block], n_rows=3, markers=["CD8"], progress=False)
    >>> found["attributions"].shape, np.isnan(found["attributions"]).all(axis=1).tolist()
    ((3, 2), [True, True, False])
    """
    parts = _encode(model, blocks, markers, choose_device(device), n_cells=n_cells, progress=progress)
    return _gather(parts, model, n_rows)


def predict_distributed(
    model: CellEncoder,
    tasks: Sequence[Callable[[], Iterable[Any]]],
    client: Client,
    *,
    n_rows: int,
    markers: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    n_cells: int | None = None,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """What `predict` does, on the workers of a Dask cluster.

    Parameters
    ----------
    model
        A trained encoder; sent to every worker once.
    tasks
        Each gives blocks, as `predict` takes them, and is called on a worker. Small things travel best: a task that
        opens a store by its path reads the pixels where they are needed.
    client
        Of the cluster. If a worker fails on a task Dask gives it to another; the first error of a task is raised here,
        and what has not begun is cancelled.
    n_rows, markers, device, n_cells, progress
        As in `predict`; the device is that of the workers.

    Returns
    -------
    As `predict`.
    """
    from distributed import as_completed

    # with a name of its own, else it is lost with that of a call before
    shared = client.scatter(model, broadcast=True, hash=False)
    futures = [client.submit(_encode_task, shared, task, markers, str(device), pure=False) for task in tasks]

    def parts() -> Iterable[Part]:
        with progress_bar("embedding", n_cells, "cell", show=progress) as bar:
            for future, part in as_completed(futures, with_results=True):
                yield part
                bar.update(len(part.rows))
                future.release()

    try:
        return _gather(parts(), model, n_rows)
    finally:
        client.cancel(futures)


def _encode_task(
    model: CellEncoder, task: Callable[[], Iterable[Any]], markers: Sequence[str] | None, device: str
) -> Part:
    parts = list(_encode(model, task(), markers, choose_device(device), n_cells=None, progress=False))
    if not parts:
        return Part(np.empty(0, dtype=np.int64), {})
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Part(np.concatenate([part.rows for part in parts]), values)


def _encode(
    model: CellEncoder,
    blocks: Iterable[Any],
    markers: Sequence[str] | None,
    device: torch.device,
    *,
    n_cells: int | None,
    progress: bool,
) -> Iterable[Part]:
    places = match_markers(model.markers, markers)
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.to(device).eval()
    forward = partial(_forward, model, places=places, device=device)
    try:
        with progress_bar("embedding", n_cells, "cell", show=progress) as bar, mapping(device) as apply:
            for block in read_ahead(blocks):
                step = max(1, PIXELS_AT_ONCE.get(device.type, 2**20) // block.windows[0].size)
                ends = [*range(0, len(block.rows), step), len(block.rows)]
                pieces = [slice(*piece) for piece in pairwise(ends)]
                found = apply(forward, [torch.from_numpy(block.windows[piece]) for piece in pieces])
                for piece, values in zip(pieces, found, strict=True):
                    yield Part(block.rows[piece], values)
                bar.update(len(block.rows))
    finally:
        model.to(home)


@contextmanager
def mapping(device: torch.device) -> Iterator[Callable[..., Iterable[dict[str, np.ndarray]]]]:
    """`map` for independent pieces of work: over threads on a CPU, each with one core to itself; one by one elsewhere.

    Several cores on one piece would wait for each other after every operation.
    """
    if device.type != "cpu":
        yield map
        return
    _libraries()  # found before there are threads
    with ThreadPoolExecutor(torch.get_num_threads(), "cytonym-predict", initializer=_one_core) as pool:
        yield pool.map


def _one_core() -> None:
    """Operations of torch in this thread, and in no other, run on one core."""
    torch.get_num_threads()  # torch sets a thread up at first use, and would undo what follows
    _libraries().limit(limits=1, user_api="openmp")


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that have threads of their own. To look for them takes milliseconds and locks that imports need as well."""
    return ThreadpoolController()


def _forward(
    model: CellEncoder, windows: Tensor, places: Sequence[int] | None, device: torch.device
) -> dict[str, np.ndarray]:
    """Windows [b, C', S, S] -> the fields of `Encoding` as arrays."""
    windows = windows.to(device)
    if places is not None:
        panel = torch.zeros(len(windows), len(places), *windows.shape[2:], device=device)
        to = [i for i, place in enumerate(places) if place >= 0]
        panel[:, to] = windows.float()[:, [places[i] for i in to]]
        windows = panel
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        encoding = model.encode(windows)
    return {name: value.float().cpu().numpy() for name, value in encoding._asdict().items()}


def match_markers(wanted: Sequence[str], found: Sequence[str] | None) -> list[int] | None:
    """Place of each wanted marker among the found ones [C], -1 where it is lacking; None where they are the same.

    Examples
    --------
    >>> match_markers(["DNA", "CD8", "CD3"], ["CD3", "PanCK", "DNA"])
    [2, -1, 0]
    """
    if found is None or list(found) == list(wanted):
        return None
    at = {marker: i for i, marker in enumerate(found)}
    places = [at.get(marker, -1) for marker in wanted]
    if max(places, default=-1) < 0:
        msg = f"The windows have none of the model's markers. Channels: {list(found)}. Markers: {list(wanted)}."
        raise ValueError(msg)
    return places


def _gather(parts: Iterable[Part], model: CellEncoder, n_rows: int) -> dict[str, np.ndarray]:
    results: dict[str, np.ndarray] = {}
    absent = np.ones(n_rows, dtype=bool)
    for part in parts:
        for name, values in part.values.items():
            if name not in results:
                results[name] = np.empty((n_rows, *values.shape[1:]), dtype=np.float32)
            results[name][part.rows] = values
        absent[part.rows] = False
    for found in results.values():
        found[absent] = np.nan
    if not results:  # no cell at all: ask for the shapes
        window = np.zeros((1, len(model.markers), model.window_px, model.window_px), dtype=np.float32)
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        shapes = _forward(model.eval(), torch.from_numpy(window), None, home)
        results = {name: np.full((n_rows, *v.shape[1:]), np.nan, dtype=np.float32) for name, v in shapes.items()}
    return results
