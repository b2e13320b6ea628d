"""A labelling session: who gave which cell what class, kept in a log that loses nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytonym._shared import seed_of
from cytonym.label import export, record, summary
from cytonym.label.cells import checked_rows
from cytonym.label.naming import checked_name
from cytonym.label.opening import current_user, log_of, open_cells
from cytonym.label.study import Study

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.label.desk import Desk
    from cytonym.label.server import Server
    from cytonym.label.widget import LabelWidget
    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")


class Session(Study):
    """Label the cells of a tissue by hand, with suggestions by a model that learns from the labels.

    Every change is an event in a log. It is on disk before the call returns, so that neither a crash nor a full disk loses or
    invents a label, and several people can label one store at the same time, each under a name of their own. `write` puts the labels
    into the table.

    Parameters
    ----------
    sdata
        Images, cells and their table. An AnnData object, or a SpatialData object without images, is labelled by its map alone.
    classes
        Names of classes. Those that the log never had are added: one that was renamed or removed since does not come back.
    log
        File of the events. Default: beside the store, `tissue.zarr.labels.jsonl`. An object without a store keeps its labels in
        memory only, with a warning.
    annotator
        Name under which labels are given; that of the current user by default.
    table_key
        Table of the cells.
    use_rep
        Numbers that the model learns from: keys of `obsm`, `"X"`, or numeric columns of `obs`. Default: the embeddings that
        `tl.embed_cells` wrote, else the intensities.
    image_key
        Image, or images, of `sdata.images`; a sequence pairs up with the cell keys. May be left out where there is one.
    labels_key, shapes_key, points_key
        Element, or elements, that name the cells. May be left out where the answer is unique.
    channels
        Names of the channels to show; all by default.
    coordinate_system
        Coordinate system in which images and cells meet.
    size_px
        Side of the patches in the gallery, in pixels.
    encoder
        The model that made the embedding: `finetune` trains it further, and pictures can be searched for by it.
    retrain_after_pages
        Learn anew, in the background, after each page of suggestions that was gone through, so that the next ones are better. Else
        only when somebody asks for it (`t`).
    rng
        Seed of the model, the queue and the map.

    Raises
    ------
    KeyError
        A key is unknown.
    ValueError
        There are no cells, two have the same name, a name is not usable, or the log is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> log = f"{tempfile.mkdtemp()}/labels.jsonl"
    >>> session = cy.label.Session(sdata, classes=["T cell", "B cell"], log=log, annotator="maria")
    >>> _ = session.assign([0, 1, 2], "T cell", source="bulk")
    >>> _ = session.assign([3], "B cell")
    >>> _ = session.undo()
    >>> session.write()
    >>> sdata["table"].obs["label"].value_counts().to_dict()
    {'T cell': 3, 'B cell': 0}
    >>> cy.label.Session(sdata, log=log, annotator="maria").counts()["labelled"]  # after a restart
    3
    """

    def __init__(
        self,
        sdata: SpatialData | AnnData,
        *,
        classes: Sequence[str] | None = None,
        log: str | Path | None = None,
        annotator: str | None = None,
        table_key: str = "table",
        use_rep: str | Sequence[str] | None = None,
        image_key: str | Sequence[str] | None = None,
        labels_key: str | Sequence[str] | None = None,
        shapes_key: str | Sequence[str] | None = None,
        points_key: str | Sequence[str] | None = None,
        channels: Sequence[str] | None = None,
        coordinate_system: str = "global",
        size_px: int | None = None,
        encoder: CellEncoder | None = None,
        retrain_after_pages: bool = True,
        rng: int | np.random.Generator | None = 0,
    ) -> None:
        wanted = [checked_name(name, "a class") for name in ([classes] if isinstance(classes, str) else classes or [])]
        if size_px is not None and size_px < 1:
            msg = f"`size_px` must be at least 1, got {size_px}."
            raise ValueError(msg)
        self.keys: dict[str, Any] = {
            "image_key": image_key, "labels_key": labels_key, "shapes_key": shapes_key, "points_key": points_key,
            "coordinate_system": coordinate_system, "channels": channels,
        }  # fmt: skip
        self.opened = open_cells(sdata, table_key=table_key, **self.keys)
        super().__init__(self.opened.index, log_of(sdata, log), current_user() if annotator is None else annotator)
        self.sdata, self.table, self.title = self.opened.sdata, self.opened.table, self.opened.title
        self.sources, self.source_rows = self.opened.sources, self.opened.rows
        self.table_key, self.use_rep, self.size_px, self.seed = table_key, use_rep, size_px, seed_of(rng)
        self.channels = tuple(dict.fromkeys(name for source in self.sources for name in source.channels))
        self.encoder, self.retrain_after_pages = encoder, retrain_after_pages
        self._desk: Desk | None = None
        if self.missing:
            logger.warning(
                "%d labelled cells of the log are not in the table. Their labels stay in the log.", self.missing
            )
        self.begin_with(wanted)

    def __repr__(self) -> str:
        counts = self.counts()
        return (
            f"Session of {self.annotator!r}: {counts['labelled']:,} of {self.n:,} cells labelled, {len(self.classes)} classes, "
            f"{'in memory only' if self.log_path is None else f'log {str(self.log_path)!r}'}"
        )

    # --------------------------------------------------------------------------------------------------------- reporting
    def history(self, row: int) -> list[dict[str, Any]]:
        """What was said of a cell, oldest first: time, by, kind, label, code, source, text, undone."""
        self.catch_up()
        return summary.history(self, int(checked_rows([row], self.n)[0]))

    def cell(self, row: int) -> dict[str, Any]:
        """What is known of a cell: name, region, instance, label, code, by, time, source, note."""
        self.catch_up()
        return summary.cell(self, int(checked_rows([row], self.n)[0]))

    def disagreements(self) -> pd.DataFrame:
        """Cells to which annotators gave different classes: the `row`, and one column an annotator."""
        self.catch_up()
        return summary.disagreements(self)

    def agreement(self) -> pd.DataFrame:
        """How far each two annotators agree: cells that both labelled, share with the same class, and Cohen's kappa."""
        self.catch_up()
        return summary.agreement(self)

    def summary(self) -> dict[str, Any]:
        """How many labels, how fast, how reliable: plain types, as they go into a report.

        Labels per second count the time between an annotator's events; pauses of more than two minutes are left out. The
        `ratio` is that of all labels per second over those of cells labelled one at a time. `concordance` is the share of equal
        classes among cells that an annotator labelled both singly and in bulk.
        """
        self.catch_up()
        return summary.summary(self)

    # ----------------------------------------------------------------------------------------------------------- writing
    def write(self, *, key_added: str = "label", save: bool = False, overwrite: bool = False) -> None:
        """Write the labels of all annotators into the table.

        Parameters
        ----------
        key_added
            Name of the column, and start of the names of the others.
        save
            Also put the labels into the table in the store on disk, in one step (`io.save_table`). Whatever else was written there
            since the object was read stays; what else is new in memory is not saved.
        overwrite
            Replace a column `key_added` that did not come from this log.

        Returns
        -------
        None. Sets the following fields, and no others:

        `obs["label"]`
            Class of each cell, categorical; NaN for cells without one. `uns["label_colors"]` are the colours.
        `obs["label_source"]`, `obs["label_by"]`, `obs["label_time"]`
            How (`"single"`, `"bulk"`, `"suggested"`, `"imported"`), by whom and when, categorical.
        `obs["label_mark"]`
            `"unsure"` or `"not a cell"`, categorical.
        `obs["label_note"]`
            Notes, where there are any.
        `uns["label"]`
            `params` and `classes` (DataFrame: id, name, color).

        Raises
        ------
        ValueError
            There are labels of another origin under that name (`import_labels` takes them in), or there is no store to save to.
        OSError
            The disk is full or read-only; the table on disk is as it was.
        """
        record.write(self, key_added=key_added, save=save, overwrite=overwrite)

    def import_labels(self, key: str = "label") -> int:
        """Take the labels of a column of `obs` into the log, for cells without one; classes are made as needed.

        Parameters
        ----------
        key
            Column with class names.

        Returns
        -------
        Number of cells that got a label.

        Raises
        ------
        KeyError
            There is no such column.
        """
        return record.import_labels(self, key)

    def export_csv(self, path: str | Path, *, raw: bool = False, overwrite: bool = False) -> Path:
        """Write a row for each labelled, marked or noted cell: cell, region, instance, label, source, by, time, mark, note, x, y.

        Texts that a spreadsheet would take for a formula, such as `=1+1`, get an apostrophe in front; `raw` leaves them as they are.
        """
        self.catch_up()
        return export.write_csv(self, Path(path), raw=raw, overwrite=overwrite)

    def export_geojson(self, path: str | Path, *, image_key: str | None = None, overwrite: bool = False) -> Path:
        """Write the cells of an image with their classes for QuPath, as `io.write_geojson` does. `io.read_geojson` reads them back."""
        self.catch_up()
        return export.write_geojson(self, Path(path), image_key=image_key, overwrite=overwrite)

    def export_masks(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write an image for each region in which each labelled cell has the colour of its class.

        Cells without a class are grey (50, 50, 50), the background is black.
        """
        self.catch_up()
        return export.write_masks(self, Path(folder), overwrite=overwrite)

    # ----------------------------------------------------------------------------------------------------------- showing
    @property
    def desk(self) -> Desk:
        """What answers the messages of pages and widgets."""
        from cytonym.label.desk import Desk

        with self.lock:
            if self._desk is None:
                self._desk = Desk(self)
            return self._desk

    def view(self) -> LabelWidget:
        """Label in a notebook.

        Returns
        -------
        A widget, the same one each time until it is closed. What is labelled in it is on disk at once; `write` puts it into the table.
        """
        from cytonym.label.widget import LabelWidget

        return LabelWidget.of(self.desk)

    def serve(self, *, host: str = "127.0.0.1", port: int = 0, open_browser: bool = False) -> Server:
        """Label in a browser: a page that is served in the background until `close()`.

        Parameters
        ----------
        host
            Address to listen on: this machine alone, unless another one is given.
        port
            0 for any that is free.
        open_browser
            Show the page.

        Returns
        -------
        Server
            Its `url` holds a token without which nobody can label. Also a context manager.
        """
        from cytonym.label.server import Server

        server = Server(self.desk, host=host, port=port).start()
        if open_browser:
            server.open_browser()
        return server
