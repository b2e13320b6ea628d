"""Labelling as a page: what `cytonym label` runs, as calls of the public verbs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytonym._options import (
    Channel,
    Image,
    Labels,
    Points,
    Seed,
    Shapes,
    Size,
    System,
    Table,
    Without,
    chosen_channels,
    element_keys,
)
from cytonym._terminal import FOR_PEOPLE, errors, open_store, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spatialdata import SpatialData

    from cytonym.label.session import Session

EPILOG = (
    "Examples:\n\n`cytonym label --demo`\n\n`cytonym label tumour.zarr --classes tumour,stroma,immune`\n\n"
    "`cytonym label tumour.zarr --annotator maria --port 8123 --no-browser`"
)
DEMO = Path("label_demo.zarr")
DEMO_CELLS = 1500


def label(
    context: typer.Context,
    store: Annotated[
        Path | None,
        typer.Argument(metavar="STORE", help="SpatialData store (.zarr); with --demo it may be left out."),
    ] = None,
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help=f"Label a synthetic tissue. It is made at STORE, by default {DEMO}.")
    ] = False,
    classes: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Classes to begin with. Others can be added on the page.")
    ] = None,
    annotator: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who labels. Default: the name of the user.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on. Default: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    embed: Annotated[
        bool,
        typer.Option("--embed", help="Train a model on the store and embed its cells first, if it has no embedding."),
    ] = False,
    rep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Numbers to suggest by: a key of `obsm`, `X`, or a numeric column; repeat for several. Default: the embedding, else "
            "the intensities.",
        ),
    ] = None,
    key: Annotated[str, typer.Option(metavar="NAME", help="Column of the table that the labels go to.")] = "label",
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where each label is kept at once. Default: beside the store.")
    ] = None,
    size_px: Size = None,
    image: Image = None,
    labels: Labels = None,
    shapes: Shapes = None,
    points: Points = None,
    table: Table = "table",
    coordinate_system: System = "global",
    channel: Channel = None,
    without: Without = None,
    seed: Seed = 0,
) -> None:
    """Label cells on a page in the browser, with suggestions by a model that learns meanwhile.

    Each label is on disk before the page shows it as stored. Ctrl+C ends the page and writes the labels into the table of the store.
    """
    with errors(context):
        job = Job(
            store=store, demo=demo, classes=None if classes is None else classes.split(","), annotator=annotator, host=host, port=port,
            browser=not no_browser, embed=embed, rep=rep, key=key, log=log, size_px=size_px, table_key=table, images=image,
            where=element_keys(image, labels, shapes, points) | {"coordinate_system": coordinate_system},
            channel=channel, without=without, seed=seed,
        )  # fmt: skip
        for line in job.run():
            typer.echo(line)


@dataclass(kw_only=True)
class Job:
    """A store to label, and how: the options of the command."""

    store: Path | None
    demo: bool
    classes: Sequence[str] | None
    annotator: str | None
    host: str
    port: int
    browser: bool
    embed: bool
    rep: list[str] | None
    key: str
    log: Path | None
    size_px: int | None
    table_key: str
    images: list[str] | None
    where: dict[str, Any]
    channel: list[str] | None
    without: list[str] | None
    seed: int

    def run(self) -> Iterator[str]:
        """Open the store, serve the page until somebody ends it, and save."""
        import cytonym as cy

        try:
            import cytonym.label.server
        except ImportError as error:
            raise ValueError(str(error)) from error
        path = self.path()
        sdata = open_store(path, to_save=True)
        channels = chosen_channels([sdata], self.images, self.channel, self.without)
        yield from self.prepare(path, sdata, channels)
        session = cy.label.Session(
            sdata, classes=self.classes, log=self.log, annotator=self.annotator, table_key=self.table_key, use_rep=self.rep,
            channels=channels, size_px=self.size_px, rng=self.seed, **self.where,
        )  # fmt: skip
        self.require_column(session)
        counts = session.counts()
        yield f"{path}: {counts['labelled']:,} of {counts['total']:,} cells labelled, as {session.annotator!r}"
        yield f"Labels: {session.log_path}" + (
            ", which cannot be written: labels cannot be given" if session.readonly else ""
        )
        shown = self.browser and has_browser()
        with asked_to_end() as ended, session.serve(host=self.host, port=self.port, open_browser=shown) as page:
            yield f"Page: {page.url}"
            yield "Ctrl+C ends it."
            wait(ended)
        session.desk.close()
        if not session.readonly:
            yield from self.save(session)

    def path(self) -> Path:
        """The store, made first where it is the synthetic one."""
        import cytonym as cy

        if self.store is None and not self.demo:
            msg = "Name a store: `cytonym label tumour.zarr`. `cytonym label --demo` shows the page on a synthetic tissue."
            raise ValueError(msg)
        path = self.store or DEMO
        if self.demo and not path.exists():
            sdata = cy.datasets.tissue_phantom(n_cells=DEMO_CELLS, rng=self.seed)
            cy.pp.measure_cells(sdata, table_key=self.table_key)
            sdata.write(path)
        return path

    def prepare(self, path: Path, sdata: SpatialData, channels: list[str] | None) -> Iterator[str]:
        """Say what suggestions come from; embed the cells where that is wanted."""
        import cytonym as cy
        from cytonym.label.features import default_keys

        if self.demo and self.classes is None:
            self.classes = list(sdata.tables[self.table_key].obs["cell_type"].cat.categories)
        table = sdata.tables.get(self.table_key)
        found = [] if table is None else default_keys(table)
        if self.rep is not None or any(name.startswith("X_") for name in found):
            if self.embed:
                yield f"There are numbers to suggest by already: {self.rep or found}"
            return
        if self.embed:
            yield "Training a model and embedding the cells. This takes a while."
            cy.tl.embed_cells(sdata, table_key=self.table_key, channels=channels, rng=self.seed, **self.where)
            cy.io.save_table(sdata, self.table_key)
            yield f"Embedding: table {self.table_key!r} saved"
            return
        without = (
            f"suggestions come from the intensities ({found[0]})"
            if found
            else "the map shows the tissue only, and there are no suggestions"
        )
        yield (
            f"There is no embedding: {without}. `cytonym train {path} --out model` and `cytonym embed {path} --model model` "
            "make one, or --embed does both here."
        )

    def require_column(self, session: Session) -> None:
        """See that the labels can go into their column, before hours of work go into labels."""
        from cytonym.label.record import foreign, require_storable

        if session.readonly:
            return
        require_storable(session.table, self.key)
        found = foreign(session, session.table, self.key)
        if found:
            msg = (
                f"Table {self.table_key!r} has {', '.join(found)}, which did not come from the log {session.log_path} and would be lost. "
                f"Choose another column for the labels: --key {self.key}_by_hand."
            )
            raise ValueError(msg)

    def save(self, session: Session) -> Iterator[str]:
        """Put the labels into the table of the store, where it lacks any: also those of others, and of a page that crashed."""
        from cytonym.label.record import up_to_date

        try:
            if up_to_date(session, self.key):
                return
            session.write(key_added=self.key, save=True)
        except Exception as error:
            yield f"The table was not saved: {sentence(error)} All labels are in {session.log_path}."
            if not isinstance(error, FOR_PEOPLE):
                raise
            return
        known = int(session.table.obs[self.key].notna().sum())
        yield f"Table {self.table_key!r} saved: {known:,} labels in column {self.key!r}"


def has_browser() -> bool:
    """Whether a window can be opened; browsers in the terminal do not show the page."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def asked_to_end() -> Iterator[threading.Event]:
    """Ctrl+C and a polite kill are noted, not raised: what is open is closed, and labels go into the table."""
    ended = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: ended.set()) for each in signals]
    try:
        yield ended
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def wait(ended: threading.Event) -> None:
    """Until somebody ends it."""
    while not ended.wait(0.5):
        pass
