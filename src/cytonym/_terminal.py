"""What the commands share: stores and places for files, how errors end, where the log goes."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Raised on purpose, with a message for people. Anything else is a fault of ours and keeps its traceback.
FOR_PEOPLE = (ValueError, KeyError, TypeError, OSError, FloatingPointError)


@contextmanager
def errors(context: typer.Context) -> Iterator[None]:
    """One line instead of a traceback, and the exit code."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(str(interrupt) or "interrupted", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except FOR_PEOPLE as error:
        if (context.obj or {}).get("traceback"):
            raise
        typer.echo(f"error: {sentence(error)}", err=True)
        raise typer.Exit(1) from None


def sentence(error: Exception) -> str:
    """What an error says, in one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def open_store(store: Path, *, to_save: bool = False) -> Any:
    """The SpatialData object of a store; with `to_save` one that takes a table."""
    import spatialdata as sd

    from cytonym._demo import is_store

    if not is_store(store):
        what = "is no SpatialData store" if store.exists() else "does not exist"
        msg = f"{store} {what}. `cytonym.io.read_tiffs(...).write({str(store)!r})` makes one from images."
        raise FileNotFoundError(msg)
    if to_save and not (store / "zarr.json").is_file():
        msg = (
            f"{store} is a store of Zarr format 2, in which no table can be saved. Make a new one of it: "
            f"`spatialdata.read_zarr({str(store)!r}).write('new.zarr')`."
        )
        raise ValueError(msg)
    return sd.read_zarr(store)


def writable(folder: Path, option: str = "--out") -> None:
    """Make a folder and see that it takes files, before hours of work go into what cannot be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = f"Cannot write into {folder}: {error.strerror or error}. Choose another folder with {option}."
        raise OSError(msg) from error


def unused(path: Path, *, force: bool, option: str = "--out") -> None:
    """See that nothing is replaced unasked, and that the place takes files."""
    if path.exists() and not force:
        msg = f"{path} exists already. Choose another name, or replace it with --force."
        raise FileExistsError(msg)
    writable(path.parent, option)


def listen(*, quiet: bool) -> None:
    """Our log and warnings to standard error, one line each; those of other packages stay out of sight."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("cytonym")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module=r"cytonym(\.|$)")
    warnings.showwarning = lambda message, *_args, **_kwargs: log.warning("warning: %s", message)
    for name in (
        "ome_zarr",
        "squidpy",
        "spatialdata",
        "spatialdata._logging",
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["PYTHONWARNINGS"] = "ignore"  # of worker processes


def print_version(wanted: bool) -> None:  # noqa: FBT001 (typer's signature)
    """For `--version`: print it and stop."""
    if wanted:
        from cytonym import __version__

        typer.echo(__version__)
        raise typer.Exit
