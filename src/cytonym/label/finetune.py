"""An encoder that is trained further on labelled and unlabelled cells together, as a job in the background."""

from __future__ import annotations

import copy
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.data.loader import match_channels
from cytonym.data.patches import CellPatches
from cytonym.label.features import scale_of
from cytonym.label.head import fit_head
from cytonym.label.state import UNLABELLED
from cytonym.models.base import CellEncoder
from cytonym.models.window_classifier import middle, turned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cytonym.label.session import Session
    from cytonym.models.base import Recipe

logger = logging.getLogger("cytonym")

WEIGHT = 10.0
"""Of the cross-entropy beside the contrastive loss, as in the paper."""
UNLABELLED_PART = 2  # unlabelled cells for each labelled one, as in the paper
STEPS = 200
RATE = 3e-4
LARGEST_MB = 1024.0
LEAST_POOL = 2000  # unlabelled cells to draw from


class SemiSupervised(CellEncoder):
    """An encoder with its own contrastive loss plus a linear head on the cells that have a label.

    Its windows have one channel more than the encoder's: class number + 1, and 0 where there is no label.

    Parameters
    ----------
    encoder
        Trained in place.
    weights, center, spread
        Head [d + 1, K] on standardised embeddings, and mean and standard deviation [d] of these.
    balance
        Weight of each class [K].
    """

    def __init__(
        self, encoder: CellEncoder, weights: np.ndarray, center: np.ndarray, spread: np.ndarray, balance: np.ndarray
    ) -> None:
        super().__init__(encoder.markers, encoder.config)
        self.name = encoder.name  # type: ignore[misc]
        self.encoder = encoder
        self.head = nn.Linear(weights.shape[0] - 1, weights.shape[1])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weights[:-1].T.copy()))
            self.head.bias.copy_(torch.from_numpy(weights[-1]))
        for name, value in (("center", center), ("spread", spread), ("balance", balance)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self._windows = self._classes = torch.empty(0)

    def draw(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """Take the labels off, and what the encoder itself takes of the rest."""
        raw = windows[:, :-1].float()
        self._classes = windows[:, -1, 0, 0].round().long() - 1
        self._windows = turned(middle(raw, self.encoder.window_px), generator)
        return self.encoder.draw(F.avg_pool2d(raw, self.binning) if self.binning > 1 else raw, generator)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """The encoder's loss plus ten times the cross-entropy of the labelled cells of the batch."""
        parts = self.encoder.loss(views)
        known = self._classes >= 0
        if not bool(known.any()):
            return parts
        self.encoder.eval()  # normalisation layers keep the statistics of all cells
        embedding = self.encoder.encode(self._windows[known]).embedding
        self.encoder.train()
        logits = self.head((embedding - self.center) / self.spread)  # type: ignore[operator]
        labels = F.cross_entropy(logits, self._classes[known], weight=self.balance)  # type: ignore[arg-type]
        return parts | {"loss": parts["loss"] + WEIGHT * labels, "labels": labels.detach()}


class FineTuning:
    """The job.

    Parameters
    ----------
    session
        Its labels, images and cells.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._busy = threading.Lock()
        self._stop = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether it runs."""
        return self._busy.locked()

    def cancel(self) -> None:
        """Stop after the running step. Nothing changes then."""
        self._stop.set()

    def start(
        self,
        model: str | Path | CellEncoder,
        *,
        steps: int | None,
        background: bool,
        on_done: Callable[[dict[str, Any]], None] | None,
        on_progress: Callable[[int, int, str], None] | None,
    ) -> threading.Thread | None:
        """See `Session.finetune`."""
        if steps is not None and steps < 1:
            msg = f"`steps` must be at least 1, got {steps}."
            raise ValueError(msg)
        if not self._busy.acquire(blocking=False):
            msg = "The encoder is being trained already. Wait, or cancel that training first."
            raise RuntimeError(msg)
        self._stop.clear()
        told = (model, STEPS if steps is None else steps, on_done, on_progress or (lambda done, total, text: None))
        if not background:
            self._run(*told)
            return None
        thread = threading.Thread(target=self._run, args=told, name="cytonym-finetune", daemon=True)
        thread.start()
        return thread

    def _run(
        self,
        model: Any,
        steps: int,
        on_done: Callable[[dict[str, Any]], None] | None,
        tell: Callable[[int, int, str], None],
    ) -> None:
        told: dict[str, Any]
        begun = time.perf_counter()
        try:
            found = self._train(model, steps, tell)
            if found is None:
                told = {"cancelled": True}
            else:
                told = self.session.adopt(*found) | {"seconds": time.perf_counter() - begun}
        except Exception as error:
            logger.info("The encoder was not trained further: %s", error)
            told = {"error": str(error)}
            if on_done is None:
                raise
        finally:
            self._busy.release()
        if on_done is not None:
            on_done(told)

    def _train(
        self, model: Any, steps: int, tell: Callable[[int, int, str], None]
    ) -> tuple[CellEncoder, np.ndarray] | None:
        """Encoder and the features of all cells; None where it was cancelled."""
        from cytonym import tl
        from cytonym.learning.fit import fit

        session = self.session
        if not session.sources or session.sdata is None:
            msg = "There are no images to train an encoder on."
            raise ValueError(msg)
        codes = self._known(session.labels())
        keys = {"table_key": session.table_key, **session.keys}
        encoder, before = self._encoder(model, steps, tell, keys)
        if self._stop.is_set():
            return None
        total = before + steps + 1
        recipe = _recipe(encoder, steps)
        windows, classes, ids = self._windows(encoder, recipe, codes)
        wrapped = _wrapped(encoder, windows, classes)
        batches = _Batches(windows, classes, recipe, session.seed)
        callback = _progress(lambda done: tell(before + done, total, "training"), self._stop)
        fit(wrapped, batches, recipe, seed=session.seed, progress=False, trainer_kwargs={"callbacks": [callback]})
        if self._stop.is_set():
            return None
        tell(total - 1, total, "embedding")
        trained = wrapped.encoder
        trained.provenance = dict(trained.provenance) | {
            "labels": int((classes >= 0).sum()),
            "classes": [str(session.name_of(i)) for i in ids],
            "finetune_steps": steps,
        }
        table = tl.embed_cells(session.sdata, trained, inplace=False, **keys)
        if self._stop.is_set():
            return None
        assert table is not None
        return trained, np.asarray(table.obsm[f"X_{trained.name}"], dtype=np.float32)

    def _encoder(
        self, model: Any, steps: int, tell: Callable[[int, int, str], None], keys: dict[str, Any]
    ) -> tuple[CellEncoder, int]:
        """A copy of a trained encoder, or one that is trained without labels first, and how many steps that took."""
        from cytonym import models, tl
        from cytonym.data.statistics import channel_statistics
        from cytonym.models import registry

        if isinstance(model, str) and model in registry.names("encoder"):
            callback = _progress(lambda done: tell(done, 2 * steps + 1, "training without labels"), self._stop)
            trained = tl.fit_encoder(
                self.session.sdata, model, steps=steps, rng=self.session.seed, trainer_kwargs={"callbacks": [callback]}, **keys
            )  # fmt: skip
            return trained, steps
        encoder: Any = model if isinstance(model, CellEncoder) else models.load(model)
        if not isinstance(encoder, CellEncoder):
            msg = f"`model` must be an encoder, got {type(encoder).__name__}."
            raise TypeError(msg)
        sources = match_channels(self.session.sources)
        if set(encoder.markers) != set(sources[0].channels):
            if not encoder.any_panel:
                msg = f"The encoder knows {list(encoder.markers)}, the images have {list(sources[0].channels)}. `channels` selects."
                raise ValueError(msg)
            quantiles = channel_statistics(sources, quantile=0.9, binning=encoder.binning)["quantile"]
            return encoder.for_panel(sources[0].channels, quantiles), 0
        return copy.deepcopy(encoder), 0

    def _inside(self) -> np.ndarray:
        """Which cells lie in their images, bool [n]."""
        inside = np.zeros(self.session.n, dtype=bool)
        for source, rows in zip(self.session.sources, self.session.source_rows, strict=True):
            inside[rows[source.inside & (rows >= 0)]] = True
        return inside

    def _known(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n] of the cells that can be seen. Of the others there is nothing to learn, which people are told of."""
        seen = np.where(self._inside(), codes, UNLABELLED)
        ids = np.unique(seen[seen >= 0])
        lost = np.setdiff1d(codes[codes >= 0], ids)
        names, gone = ([str(self.session.name_of(int(i))) for i in each] for each in (ids, lost))
        if len(names) < 2:
            outside = f" No labelled cell of {gone} lies inside its image." if gone else ""
            msg = f"Cells of at least two classes must be labelled, found {names or 'none'}.{outside}"
            raise ValueError(msg)
        if gone:
            logger.warning("No labelled cell of %s lies inside its image: the encoder does not learn them.", gone)
        return seen

    def _windows(
        self, encoder: CellEncoder, recipe: Recipe, codes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Windows [m, C, S, S] of labelled cells and of a sample of others, class numbers [m], -1 for the others, and class ids."""
        sources = match_channels(self.session.sources)
        side = max(recipe.views.source_px() * encoder.binning, encoder.window_px)
        side = min(side, *(min(s.shape[1:]) for s in sources))
        dtype = np.result_type(*(s.pixels.dtype for s in sources))
        size = len(encoder.markers) * side**2 * dtype.itemsize
        most = max(2, int(LARGEST_MB * 2**20 / size))
        rng = np.random.default_rng([self.session.seed, 1])
        order = self.session.state.index.canonical
        rows = order[self._inside()[order]]
        labelled, others = rows[codes[rows] >= 0], rows[codes[rows] < 0]
        labelled = _some_of_each(labelled, codes[labelled], most // (1 + UNLABELLED_PART), rng)
        others = _some(others, min(most - len(labelled), max(LEAST_POOL, UNLABELLED_PART * len(labelled))), rng)
        chosen = np.concatenate([labelled, others])
        place = np.full(self.session.n, -1)
        place[chosen] = np.arange(len(chosen))
        found = np.zeros((len(chosen), len(encoder.markers), side, side), dtype)
        channels = [sources[0].channels.index(name) for name in encoder.markers]
        for source, at in zip(sources, self.session.source_rows, strict=True):
            mine = np.flatnonzero((at >= 0) & (place[at] >= 0) & source.inside)
            for block in CellPatches(source.subset(mine), side) if len(mine) else ():
                found[place[at[mine[block.rows]]]] = block.windows[:, channels]
        classes = np.full(len(chosen), -1)
        ids, classes[: len(labelled)] = np.unique(codes[labelled], return_inverse=True)
        return found, classes, ids


class _Batches:
    """One third labelled cells, two thirds others; step k always has the same."""

    def __init__(self, windows: np.ndarray, classes: np.ndarray, recipe: Recipe, seed: int) -> None:
        self.windows, self.classes, self.recipe, self.seed = windows, classes, recipe, seed

    def __call__(self, start: int) -> Iterator[Tensor]:
        labelled, others = np.flatnonzero(self.classes >= 0), np.flatnonzero(self.classes < 0)
        size = min(self.recipe.batch_size, len(self.classes))
        n = max(1, size // (1 + UNLABELLED_PART)) if len(others) else size
        for step in range(start, self.recipe.steps):
            rng = np.random.default_rng([self.seed, 2, step])
            rows = rng.choice(labelled, n, replace=n > len(labelled))
            if size > n:
                rows = np.append(rows, rng.choice(others, size - n, replace=size - n > len(others)))
            pixels = self.windows[rows].astype(np.float32)
            told = np.broadcast_to((self.classes[rows] + 1)[:, None, None, None], (len(rows), 1, *pixels.shape[2:]))
            yield torch.from_numpy(np.concatenate([pixels, told.astype(np.float32)], axis=1))


def _recipe(encoder: CellEncoder, steps: int) -> Recipe:
    """The encoder's own views and temperature at a small rate."""
    recipe = encoder.recipe
    views: Any = recipe.views
    if max(views.window_px) != encoder.config.window_px:
        views = replace(views, window_px=(encoder.config.window_px,))
    return replace(recipe, steps=steps, views=views, optimizer="adam", learning_rate=RATE, final_rate=RATE / 10)


def _wrapped(encoder: CellEncoder, windows: np.ndarray, classes: np.ndarray) -> SemiSupervised:
    """The encoder with a head that begins at the logistic regression on its embeddings."""
    known = np.flatnonzero(classes >= 0)
    parts = []
    with torch.no_grad():
        for rows in np.array_split(known, -(-len(known) // 256)):
            seen = middle(torch.from_numpy(windows[rows].astype(np.float32)), encoder.window_px)
            parts.append(encoder.eval().encode(seen).embedding.numpy())
    embedding = np.concatenate(parts)
    scale = scale_of(embedding, np.arange(len(embedding)))
    told = classes[known].astype(np.int16)
    head = fit_head(scale(embedding), told, np.unique(told))
    return SemiSupervised(encoder, head.weights, scale.center, scale.spread, 1 - np.bincount(told) / len(told))


@torch.no_grad()
def embed_picture(encoder: CellEncoder, picture: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """Features [d] of the middle of a picture.

    Parameters
    ----------
    encoder
        Trained encoder.
    picture
        Raw pixels [C, H, W]. What the encoder's window shows beyond the picture is 0.
    channels
        Names of the C channels; markers of the encoder that are not among them are silent.

    Raises
    ------
    ValueError
        The picture has another number of channels.
    """
    if picture.ndim != 3 or len(picture) != len(channels):
        msg = f"The picture must be [{len(channels)}, H, W] with the channels {list(channels)}, got shape {picture.shape}."
        raise ValueError(msg)
    side = encoder.window_px
    window = np.zeros((1, len(encoder.markers), side, side), np.float32)
    _, height, width = picture.shape
    top, left = height // 2 - side // 2, width // 2 - side // 2
    ys, xs = (np.arange(side) + first for first in (top, left))
    in_y, in_x = (ys >= 0) & (ys < height), (xs >= 0) & (xs < width)
    for i, marker in enumerate(encoder.markers):
        if marker in channels:
            plane = picture[list(channels).index(marker)]
            window[0, i][np.ix_(in_y, in_x)] = plane[np.ix_(ys[in_y], xs[in_x])]
    return np.asarray(encoder.eval().encode(torch.from_numpy(window)).embedding[0].numpy(), dtype=np.float32)


def _some(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many rows, in their order."""
    return rows if len(rows) <= most else rows[np.sort(rng.choice(len(rows), most, replace=False))]


def _some_of_each(rows: np.ndarray, codes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most so many rows: of each class all, or as many as its equal share, then any others. One of each class at least."""
    ids = np.unique(codes)
    first = np.concatenate([_some(rows[codes == i], max(1, most // len(ids)), rng) for i in ids])
    others = _some(rows[~np.isin(rows, first)], max(0, most - len(first)), rng)
    return rows[np.isin(rows, first) | np.isin(rows, others)]


def _progress(tell: Callable[[int], None], stop: threading.Event) -> Any:
    """A callback that counts steps and ends the training when it is told to."""
    import lightning

    class Progress(lightning.Callback):
        done = 0

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            self.done += 1
            tell(self.done)
            if stop.is_set():
                trainer.should_stop = True

    return Progress()
