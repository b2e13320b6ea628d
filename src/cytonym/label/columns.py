"""What the map is drawn and coloured by, and what is told of one cell: one value a cell, as raw bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cytonym.label.features import default_keys, marker_names, marker_values
from cytonym.label.state import NEVER, UNLABELLED
from cytonym.label.wire import BadRequestError

if TYPE_CHECKING:
    from cytonym.label.pictures import Pictures
    from cytonym.label.session import Session
    from cytonym.label.wire import Header

NOTHING = 255
"""Of a scale of one byte: no value."""
NOWHERE = 65535
"""Of a coordinate: the cell has no place."""
SOURCES = ("single", "bulk", "suggested", "imported")
CLIP = (0.001, 0.999)
"""Quantiles at which the scale of a marker ends."""
MOST_MARKERS = 500
"""Told of one cell."""
PREFIX = "marker:"
LEARNED = ("prediction", "confidence", "discordant")


class Columns:
    """Values of a session, cell by cell."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.markers = marker_names(session.table)

    def get(self, name: str) -> tuple[Header, bytes]:
        """A column as bytes: int16 codes, or a scale of one byte (255: no value).

        Raises
        ------
        BadRequestError
            There is no such column.
        """
        session = self.session
        if name == "label":
            return _codes(name, session.codes)
        if name == "source":
            told, values = _codes(name, self._sources())
            return told | {"names": list(SOURCES)}, values
        if name in LEARNED:
            if self.model() is None:
                msg = (
                    f"There is no {name!r} before the model was trained. Label some cells of two classes, then retrain."
                )
                raise BadRequestError(msg)
            learner = session.learner
            if name == "prediction":
                return _codes(name, learner.predictions)
            if name == "confidence":
                return _scale(name, np.asarray(learner.confidence), 0.0, 1.0)
            marked = np.zeros(session.n, dtype=np.int16)
            marked[learner.discordant()] = 1
            return _codes(name, marked)
        marker = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or marker not in self.markers:
            msg = f"No column {name!r:.80}. Available: label, source, {', '.join(LEARNED)}, and {PREFIX}<name> of {len(self.markers)} markers."
            raise BadRequestError(msg)
        numbers = marker_values(session.table, marker)
        finite = numbers[np.isfinite(numbers)]
        low, high = np.quantile(finite, CLIP) if len(finite) else (0.0, 1.0)
        return _scale(name, numbers, float(low), float(high))

    def model(self) -> Header | None:
        """What is known of the model that suggests; None before there is one."""
        learner = self.session._learner
        if learner is None or learner.version is None:
            return None
        return {"version": learner.version, "trained_on": learner.trained_on}

    def basis(self) -> list[str]:
        """What suggestions are made from."""
        wanted = self.session.use_rep
        if wanted is None:
            return default_keys(self.session.table)
        return [wanted] if isinstance(wanted, str) else list(wanted)

    def cell(self, row: int) -> Header:
        """Everything about one cell."""
        session = self.session
        told = session.cell(row)
        told["label_name"], told["label"] = told["label"], told.pop("code")
        told |= {"row": row, "prediction": UNLABELLED, "probabilities": [], "x": None, "y": None, "image": None}
        if self.model() is not None:
            learner = session.learner
            ids, shares = learner.probabilities(np.array([row]))
            told["prediction"] = int(learner.predictions[row])
            pairs = zip(np.asarray(ids).tolist(), np.asarray(shares)[0].tolist(), strict=True)
            told["probabilities"] = sorted(([i, p] for i, p in pairs), key=lambda pair: -pair[1])
        told["markers"] = self._markers(row)
        told["history"] = session.history(row)
        for source, rows in zip(session.sources, session.source_rows, strict=True):
            here = np.flatnonzero(rows == row)
            if len(here):
                y, x = source.centers[here[0]].tolist()
                told |= {"x": x, "y": y, "image": source.image_key, "region": source.region}
        return told

    def summary(self) -> Header:
        """How far the work is, how fast it goes, and what the model does."""
        told = self.session.summary()
        if self.model() is not None:
            told["stop"] = self.session.learner.stop()
            told["precision"] = self.session.learner.precision().reset_index().to_dict(orient="records")
        return told

    def vector(self, picture: np.ndarray, pictures: Pictures | None) -> np.ndarray:
        """An uploaded picture in the space of the cells' numbers, which must be intensities.

        Raises
        ------
        BadRequestError
            The numbers are not intensities, or the picture has other channels.
        """
        session = self.session
        encode = getattr(session, "encode_picture", None)
        if encode is not None:
            return np.asarray(encode(picture), dtype=np.float32)
        keys = default_keys(session.table) if session.use_rep is None else [session.use_rep]
        if keys not in (["mean_intensity"], ["X"]) or pictures is None:
            msg = (
                f"Cells are compared by {keys}, which only the model that made them could tell of a picture. Search by a cell "
                "instead, or open the session with `use_rep='mean_intensity'`."
            )
            raise BadRequestError(msg)
        if len(picture) != len(pictures.channels):
            msg = f"The picture has {len(picture)} channels, the images have {len(pictures.channels)}: {pictures.channels}."
            raise BadRequestError(msg)
        lacking = [name for name in self.markers if name not in pictures.channels]
        if lacking:
            msg = f"The cells' numbers are of channels that the images lack: {lacking}."
            raise BadRequestError(msg)
        y, x = (np.arange(side) - (side - 1) / 2 for side in picture.shape[1:])
        disc = y[:, None] ** 2 + x[None] ** 2 <= (min(picture.shape[1:]) / 4) ** 2
        disc[picture.shape[1] // 2, picture.shape[2] // 2] = True
        means = picture[:, disc].mean(axis=1)
        return np.array([means[pictures.channels.index(name)] for name in self.markers], dtype=np.float32)

    def _markers(self, row: int) -> list[list[Any]]:
        """Markers of one cell; a column of all cells would take a while for each."""
        table: Any = self.session.table
        if not self.markers:
            return []
        frame = table.obsm.get("mean_intensity")
        values: Any = frame.iloc[row] if isinstance(frame, pd.DataFrame) else table.X[row]
        dense = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float32).ravel()
        return [list(pair) for pair in zip(self.markers, dense.tolist(), strict=True)][:MOST_MARKERS]

    def _sources(self) -> np.ndarray:
        session = self.session
        with session.lock:
            _, at = session.state.winners(slice(0, session.n), session.annotator)
            events = session.events[:]
        known = [SOURCES.index(e.source) if e.source in SOURCES else UNLABELLED for e in events]  # labels need not wait
        return np.where(at == NEVER, UNLABELLED, np.array([*known, UNLABELLED], dtype=np.int16)[at])


def grid_points(points: np.ndarray) -> tuple[Header, bytes]:
    """Points (x, y) [n, 2] as pairs of uint16 and the ranges that 0 … 65535 stand for; 65535, 65535 for a cell without a place."""
    points = np.asarray(points, dtype=np.float64)
    nowhere = ~np.isfinite(points).all(axis=1)
    out = np.full(points.shape, NOWHERE, dtype="<u2")
    told = {}
    for axis, name in enumerate("xy"):
        known = points[~nowhere, axis]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        if low == high:  # in the middle
            low, high = low - 0.5, high + 0.5
        span = high - low
        out[~nowhere, axis] = np.rint((known - low) / span * (NOWHERE - 1))
        told[name] = [low, low + span * NOWHERE / (NOWHERE - 1)]
    return told, out.tobytes()


def _codes(name: str, codes: np.ndarray) -> tuple[Header, bytes]:
    return {"name": name, "kind": "codes", "low": 0, "high": 0}, np.asarray(codes).astype("<i2").tobytes()


def _scale(name: str, values: np.ndarray, low: float, high: float) -> tuple[Header, bytes]:
    unit = np.clip((values - low) / ((high - low) or 1.0), 0, 1) * (NOTHING - 1)
    out = np.where(np.isfinite(values), np.rint(np.nan_to_num(unit)), NOTHING).astype(np.uint8)
    return {"name": name, "kind": "scale", "low": low, "high": high}, out.tobytes()
