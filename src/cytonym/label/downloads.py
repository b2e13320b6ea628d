"""Results as files. Where they go is the server's choice alone; what a client sends never names a file."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cytonym.label.export import write_geojsons

if TYPE_CHECKING:
    from cytonym.label.session import Session
    from cytonym.label.wire import Message

MOST_BYTES = 256 * 2**20
"""Of files that are also sent to the client."""


class Downloads:
    """Makes files of the labels of a session, beside its log."""

    KINDS: ClassVar[tuple[str, ...]] = ("csv", "geojson", "masks", "table")

    def __init__(self, session: Session) -> None:
        self.session = session
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where files go: beside the log, or into a folder for temporary files where there is none."""
        if self._folder is None:
            log = self.session.log_path
            self._folder = Path(tempfile.mkdtemp(prefix="cytonym-labels-")) if log is None else log.parent
        return self._folder

    def make(self, what: str) -> Message:
        """Write one of `KINDS`: its name, and its content where that is not too large."""
        if what == "table":
            self.session.write(save=True)
            return {"what": what, "name": self.session.table_key, "folder": ""}, []
        several = what == "masks" or (what == "geojson" and len({s.image_key for s in self.session.sources}) > 1)
        path = self._new("" if several else f".{what}")
        if what == "csv":
            self.session.export_csv(path)
        elif what == "masks":
            self.session.export_masks(path)
        elif several:
            self.session.catch_up()
            write_geojsons(self.session, path)
        else:
            self.session.export_geojson(path)
        told = {"what": what, "name": path.name, "folder": path.parent.name}
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if sum(file.stat().st_size for file in files) > MOST_BYTES:
            return told, []
        if not path.is_dir():
            return told, [path.read_bytes()]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for file in files:
                archive.write(file, f"{path.name}/{file.name}")
        return told | {"name": f"{path.name}.zip"}, [content.getvalue()]

    def _new(self, ending: str) -> Path:
        """A name that is not taken."""
        title = re.sub(r"[^\w.-]+", "_", self.session.title).strip("._")[:80] or "tissue"
        stem = f"{title}_labels_{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        path, count = self.folder / f"{stem}{ending}", 2
        while path.exists():
            path, count = self.folder / f"{stem}-{count}{ending}", count + 1
        return path
