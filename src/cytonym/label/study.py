"""What a session knows beyond its labels: features, a model that suggests, maps, and an encoder to train further."""

from __future__ import annotations

import logging
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cytonym.label import features
from cytonym.label.ledger import Ledger
from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from threading import Thread

    from anndata import AnnData

    from cytonym.data.source import CellSource
    from cytonym.label.cells import CellIndex
    from cytonym.label.finetune import FineTuning
    from cytonym.label.learner import Learner
    from cytonym.label.maps import Maps
    from cytonym.label.offers import Offers
    from cytonym.label.session import Session
    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")

PATCH_UM = 32.0
PATCH_PX = (32, 64, 128)
"""Least, usual and largest side of a patch where nobody said one."""
TIMES_APART = 4.5
PROBE = 20_000
"""Cells by which it is told how far apart cells lie."""


def _apart(source: CellSource) -> float | None:
    """Median distance of a cell to the nearest other one, in pixels."""
    from scipy.spatial import cKDTree

    centers = source.centers[np.isfinite(source.centers).all(axis=1)]
    if len(centers) < 20:
        return None
    some = np.random.default_rng(0).permutation(len(centers))[:PROBE]
    away, _ = cKDTree(centers[some]).query(centers[some[:2000]], k=2)
    return float(np.median(away[:, 1]) * np.sqrt(len(some) / len(centers)))  # fewer cells lie further apart


class Study(Ledger):
    """The part of `label.Session` that learns. `Session` says what it works on."""

    table: AnnData
    sources: list[CellSource]
    channels: tuple[str, ...]
    use_rep: str | Sequence[str] | None
    size_px: int | None
    encoder: CellEncoder | None
    _learner: Learner | None = None
    _maps: Maps | None = None
    _offers: Offers | None = None
    _job: FineTuning | None = None

    def __init__(self, index: CellIndex, log: Path | None, annotator: str) -> None:
        super().__init__(index, log, annotator)
        self._making = Lock()
        """Held while a learner is made, which takes a while: labels can be given meanwhile."""

    @property
    def has_image(self) -> bool:
        """Whether cells can be shown, and not only their map."""
        return bool(self.sources)

    @cached_property
    def patch_px(self) -> int:
        """Side of the patches: `size_px`, else 32 micrometres where the size of a pixel is known, else as fits the cells' distances."""
        if self.size_px is not None:
            return int(self.size_px)
        known = [source.pixel_size for source in self.sources if source.pixel_size]
        apart = next((d for d in map(_apart, self.sources) if d), None) if not known else None
        least, usual, largest = PATCH_PX
        side = PATCH_UM / known[0] if known else TIMES_APART * apart if apart else usual
        return int(np.clip(2 * round(side / 2), least, largest))

    @property
    def markers(self) -> list[str]:
        """Markers that cells can be coloured by."""
        return features.marker_names(self.table)

    def marker(self, name: str) -> np.ndarray:
        """One marker of all cells, f4 [n]."""
        return features.marker_values(self.table, name)

    def points(self, name: str) -> np.ndarray:
        """Coordinates (x, y) of all cells on a map of `maps.names`, f4 [n, 2]; NaN for cells that are not on it."""
        return self.maps.get(name)

    @property
    def learner(self) -> Learner:
        """The model that suggests classes, made when it is first asked for.

        Raises
        ------
        KeyError
            The table has no numbers to learn from.
        """
        from cytonym.label.learner import Learner

        with self._making:
            if self._learner is None:
                self._learner = Learner(cast("Session", self), *features.features_of(self.table, self.use_rep))
            return self._learner

    @property
    def offers(self) -> Offers:
        """Pages of suggestions of one class, which are quick to go through."""
        from cytonym.label.offers import Offers

        with self.lock:
            if self._offers is None:
                self._offers = Offers(self)
            return self._offers

    @property
    def maps(self) -> Maps:
        """Where cells lie in the embedding and in the tissue."""
        from cytonym.label.maps import Maps

        with self.lock:
            if self._maps is None:
                self._maps = Maps(cast("Session", self))
            return self._maps

    def suggested(
        self, rows: np.ndarray, code: int, out: np.ndarray, model: str | None
    ) -> tuple[str | None, dict[str, list[int]]]:
        """As in `Ledger`. Only cells without a label are counted, and none that was taken out of a page before: that counted."""
        known = np.concatenate([*self.state.taken_out().values(), np.empty(0, np.int32)])
        new, wrong = (each[~np.isin(each, known)] for each in (rows, out))
        new = new[self._codes[new] == UNLABELLED]
        if model is not None or len(out):
            return model, {str(code): [len(new), len(wrong)]} if code >= 0 and len(new) + len(wrong) else {}
        if self._learner is None or self._learner.version is None:
            return None, {}
        return self._learner.version, self._learner.hits(new, code)

    def catch_up(self) -> None:
        """`refresh` before a report. A log that is gone or damaged is a warning: a report may save what is known of it."""
        try:
            self.refresh()
        except (OSError, ValueError) as error:
            logger.warning("What others labelled meanwhile may be missing. %s", error)

    # ---------------------------------------------------------------------------------------------------------- training
    def log_model(self, version: str, trained_on: int) -> None:
        """Note in the log that a model was trained. A log that cannot be written stops no training."""
        if self.readonly:
            return
        try:
            self._append(lambda: self._event("model", model=version, text=f"{trained_on} labels"))
        except OSError as error:
            logger.warning("The model is not noted in the log. %s", error)

    def finetune(
        self,
        model: str | Path | CellEncoder | None = None,
        *,
        steps: int | None = None,
        background: bool = True,
        on_done: Callable[[dict[str, Any]], None] | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> Thread | None:
        """Train an encoder further on labelled and unlabelled cells together, and learn from its embedding from then on.

        Its loss is the encoder's contrastive one plus ten times the cross-entropy of the labelled cells (PatchSorter).

        Parameters
        ----------
        model
            An encoder, the folder of one, or the name of a method (`models.available("encoder")`), which is trained without labels
            first. Default: the session's `encoder`, else `"nextmarker"`. What is given is not changed.
        steps
            Training steps, 200 by default.
        background
            Return at once.
        on_done
            Called with `version`, `trained_on` and `seconds`, or with `error`, or with `cancelled`.
        on_progress
            Called with what is done, what there is to do, and a word on it.

        Returns
        -------
        The thread, if one was started.

        Raises
        ------
        RuntimeError
            A training runs already.
        """
        from cytonym.label.finetune import FineTuning

        with self.lock:
            if self._job is None:
                self._job = FineTuning(cast("Session", self))
        given = model if model is not None else self.encoder if self.encoder is not None else "nextmarker"
        return self._job.start(given, steps=steps, background=background, on_done=on_done, on_progress=on_progress)

    def cancel_finetune(self) -> None:
        """Stop the training of the encoder. Nothing changes then."""
        if self._job is not None:
            self._job.cancel()

    def adopt(self, encoder: CellEncoder, embedding: np.ndarray) -> dict[str, Any]:
        """Learn from other features [n, d] of the cells, which an encoder made, and say how that went; nothing changes on an error."""
        from cytonym.label.learner import Learner

        told: list[dict[str, Any]] = []
        learner = Learner(cast("Session", self), embedding)
        learner.retrain(background=False, on_done=told.append)
        if "error" not in told[0]:
            with self._making:
                self.encoder, self._learner = encoder, learner
            self.maps.forget("pca")
        return told[0]

    @property
    def encode_picture(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Features [d] of a picture [C, H, W] with the session's channels; None where there is no encoder."""
        encoder = self.encoder
        if encoder is None:
            return None

        def encode(picture: np.ndarray) -> np.ndarray:
            from cytonym.label.finetune import embed_picture

            return embed_picture(encoder, picture, self.channels)

        return encode
