"""Messages that only look: what there is, where cells lie, what they look like, what to label next."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label import wire
from cytonym.label.columns import Columns, grid_points
from cytonym.label.downloads import Downloads
from cytonym.label.offers import PAGE
from cytonym.label.pictures import LARGEST_PX, Pictures
from cytonym.label.uploads import read_picture
from cytonym.label.wire import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.label.session import Session
    from cytonym.label.wire import Header, Message

    Handler = Callable[[Header, list[bytes]], Message]

PROTOCOL = 1
MOST_PATCHES = 2000
MOST_FOUND = 2000
MOST_WARM = 16
"""Channels whose contrast is told before somebody asks for it."""


class Looks:
    """Answers to messages that change nothing.

    Parameters
    ----------
    session
        What is looked at.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.n = session.n
        self.pictures: Pictures | None = None
        if session.sources:
            self.pictures = Pictures(session.sdata, session.sources, session.source_rows, session.n, session.patch_px)
        self._begun = Event()
        self.columns = Columns(session)
        self.downloads = Downloads(session)
        self.handlers: dict[str, Handler] = {
            "hello": self._hello, "points": self._points, "column": self._column, "gallery": self._gallery,
            "context": self._context, "cell": self._cell, "queue": self._queue, "search": self._search,
            "offer": self._offer,
            "summary": self._summary, "export": self._export,
        }  # fmt: skip

    def warm(self) -> None:
        """Begin with what takes a while when it is first asked for; it goes on while the page is being drawn."""
        if self.pictures is not None and not self._begun.is_set():
            self._begun.set()
            Thread(target=self._prepare, args=(self.pictures,), name="cytonym-warm", daemon=True).start()

    def _prepare(self, pictures: Pictures) -> None:
        """A patch, and the contrast of the channels that are shown first."""
        with suppress(Exception):  # whoever asks for it hears of it
            pictures.gallery(np.zeros(1, np.int64), [0])
            for channel in range(min(MOST_WARM, len(pictures.channels))):
                pictures.limits([channel])  # one by one, so that a request need not wait for all

    def close(self) -> None:
        """Let the threads go."""
        if self.pictures is not None:
            self.pictures.close()

    def _hello(self, _header: Header, _buffers: list[bytes]) -> Message:
        session, pictures = self.session, self.pictures
        return {
            "protocol": PROTOCOL, "n": self.n, "title": session.title, "annotator": session.annotator, "readonly": session.readonly,
            "classes": listed(session.classes), **counted(session), "channels": pictures.channels if pictures else [],
            "rgb": bool(pictures and pictures.rgb), "regions": self._regions(), "maps": session.maps.names,
            "markers": self.columns.markers, "model": self.columns.model(), "has_image": pictures is not None,
            "features": self.columns.basis(), "patch_px": pictures.size_px if pictures else 0, "max_rows": MOST_PATCHES,
            "store": self._store,
        }, []  # fmt: skip

    @cached_property
    def _store(self) -> str:
        """Names the log, the annotator and the rows' cells, the same after a restart; empty where labels do not outlive the process."""
        session, index = self.session, self.session.state.index
        if session.log_path is None:
            return ""
        names = repr((str(session.log_path), session.annotator, index.names))
        told = blake2b(names.encode("utf-8", "replace"), digest_size=16)
        told.update(index.region_codes.tobytes())
        whole = index.instances.dtype.kind in "iu"
        ids = index.instances.tobytes() if whole else "\0".join(index.instances).encode("utf-8", "replace")
        told.update(ids)
        return told.hexdigest()

    def _regions(self) -> list[Header]:
        found = []
        for source, rows in zip(self.session.sources, self.session.source_rows, strict=True):
            known, (_, height, width) = rows[rows >= 0], source.shape
            first = int(known.min()) if len(known) else 0
            found.append({"name": source.region, "first": first, "count": len(known), "width": width, "height": height})
        return found

    def _points(self, header: Header, _buffers: list[bytes]) -> Message:
        name = wire.choice(header, "map", list(self.session.maps.names))
        told, points = grid_points(self.session.maps.get(name))
        return {"map": name, "n": self.n, **told}, [points]

    def _column(self, header: Header, _buffers: list[bytes]) -> Message:
        told, values = self.columns.get(wire.text(header, "name"))
        return told, [values]

    def _images(self) -> Pictures:
        if self.pictures is None:
            msg = "There are no images: cells are labelled by the map alone."
            raise BadRequestError(msg)
        return self.pictures

    def _gallery(self, header: Header, buffers: list[bytes]) -> Message:
        pictures = self._images()
        rows = wire.rows(buffers, self.n, MOST_PATCHES)
        channels = wire.indices(header, "channels", len(pictures.channels))
        found = pictures.gallery(rows, channels)
        told = {
            "n": len(rows),
            "size": pictures.size_px,
            "mask": pictures.mask,
            **self._pixels(pictures, found.pixels, channels, 1),
        }
        return told, [wire.view(found.pixels), wire.view(found.outline)]

    def _context(self, header: Header, _buffers: list[bytes]) -> Message:
        pictures = self._images()
        regions = [source.region for source in pictures.sources]
        number = regions.index(wire.choice(header, "region", regions, regions[0]))
        y, x = (wire.whole(header, name, -(2**31), 2**31) for name in ("y", "x"))
        h, w = (wire.whole(header, name, 1, 2**31) for name in ("h", "w"))
        px = wire.whole(header, "px", 1, LARGEST_PX, 512)
        channels = wire.indices(header, "channels", len(pictures.channels))
        found = pictures.context(number, y, x, h, w, px=px, channels=channels)
        h, w = found.rows.shape
        told = {"region": regions[number], "h": h, "w": w, "y": found.y, "x": found.x, "scale": found.scale}
        return told | self._pixels(pictures, found.pixels, channels, 0), [
            wire.view(found.pixels),
            wire.view(found.rows),
        ]

    def _pixels(self, pictures: Pictures, pixels: np.ndarray, channels: list[int] | None, axis: int) -> Header:
        return {
            "c": pixels.shape[axis], "dtype": f"u{pixels.dtype.itemsize}", "limits": pictures.limits(channels),
            "range": pictures.ranges(channels), "channels": channels or list(range(len(pictures.channels))),
        }  # fmt: skip

    def _cell(self, header: Header, _buffers: list[bytes]) -> Message:
        row = wire.whole(header, "row", 0, self.n - 1)
        return self.columns.cell(row), []

    def _queue(self, header: Header, _buffers: list[bytes]) -> Message:
        rows, reasons = self.session.learner.queue(wire.whole(header, "n", 1, MOST_FOUND, 50))
        return {"reasons": list(reasons)}, [packed_rows(rows)]

    def _offer(self, header: Header, buffers: list[bytes]) -> Message:
        n = wire.whole(header, "n", 1, MOST_FOUND, PAGE)
        label = wire.maybe_whole(header, "class", 0, wire.LARGEST)
        offers = self.session.offers
        if buffers:
            out = wire.rows(buffers, self.n, MOST_FOUND)
            offers.take_out(wire.whole(header, "out", 0, wire.LARGEST), out)
        page = offers.best(n) if label is None else offers.of(label, n)
        if page is None:
            return {"class": None, "expected": 0}, [packed_rows(np.empty(0, np.int64))]
        return {"class": page.label, "expected": round(page.expected), "model": page.model}, [packed_rows(page.rows)]

    def _search(self, header: Header, buffers: list[bytes]) -> Message:
        n = wire.whole(header, "n", 1, MOST_FOUND, 100)
        if header.get("row") is not None:
            wanted: Any = wire.whole(header, "row", 0, self.n - 1)
        elif len(buffers) == 1:
            wanted = self.columns.vector(read_picture(buffers[0]), self.pictures)
        else:
            msg = "A search needs a `row`, or a picture as its one buffer."
            raise BadRequestError(msg)
        rows, distances = self.session.learner.nearest(wanted, min(n, self.n))
        return {"distances": np.asarray(distances)}, [packed_rows(rows)]

    def _summary(self, _header: Header, _buffers: list[bytes]) -> Message:
        return self.columns.summary(), []

    def _export(self, header: Header, _buffers: list[bytes]) -> Message:
        return self.downloads.make(wire.choice(header, "what", Downloads.KINDS))


def counted(session: Session) -> Header:
    """How many labels there are, and whether there is something to take back."""
    return {"counts": session.counts(), "can_undo": session.can_undo, "can_redo": session.can_redo}


def listed(classes: Any) -> list[Header]:
    """Classes as they are sent."""
    return [{"id": c.id, "name": c.name, "color": c.color} for c in classes]


def packed_rows(rows: Any) -> bytes:
    """Rows as they are sent."""
    return np.asarray(rows).astype("<u4").tobytes()
