"""The command line: parse, call a verb, save."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    name="cytonym",
    epilog="Exit codes: 0 done, 1 something wrong with the data or the arguments, 2 no such option, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Raised on purpose, with a message for people. Anything else is a fault of ours and keeps its traceback.
FOR_PEOPLE = (ValueError, KeyError, TypeError, OSError, FloatingPointError)

Stores = Annotated[list[Path], typer.Argument(metavar="STORE...", help="SpatialData stores (.zarr).")]
Image = Annotated[
    list[str] | None, typer.Option("--image", metavar="NAME", help="Image of the store; repeat for several.")
]
Labels = Annotated[list[str] | None, typer.Option("--labels", metavar="NAME", help="Label image that names the cells.")]
Shapes = Annotated[list[str] | None, typer.Option("--shapes", metavar="NAME", help="Shapes that name the cells.")]
Points = Annotated[list[str] | None, typer.Option("--points", metavar="NAME", help="Points that name the cells.")]
Table = Annotated[str, typer.Option("--table", metavar="NAME", help="Table that the results go to.")]
System = Annotated[str, typer.Option("--coordinate-system", metavar="NAME", help="Where images and cells meet.")]
Scale = Annotated[str | None, typer.Option("--scale", metavar="NAME", help="Level of a multi-scale image.")]
Channel = Annotated[
    list[str] | None,
    typer.Option("--channel", metavar="NAME", help="Channel to use; repeat for several, or a,b,c. Default: all."),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without", metavar="NAME", help="Channel to leave out, such as a metal or an empty one; repeat, or a,b,c."
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of training. Default: the method's recipe.")]
Size = Annotated[
    int | None, typer.Option(min=1, help="Side of the window around a cell, in pixels. Default: the method's.")
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def _print_version(wanted: bool) -> None:  # noqa: FBT001 (typer's signature)
    if wanted:
        from cytonym import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What each cell is, marker by marker: interpretable phenotypes from raw multiplexed tissue images."""
    context.obj = {"traceback": traceback}
    _listen(quiet=quiet)


@app.command(
    epilog="Examples:\n\n`cytonym demo`\n\n`cytonym demo --out demo --steps 1000`\n\n"
    "`cytonym demo --data my_field/ --truth cell_type --out my_report`\n\n"
    "`cytonym demo --data my_field/ --find-cells --nuclear DAPI --pixel-size 0.5 --without Au,Fe`",
)
def demo(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A field of yours: a SpatialData store, or a folder with TIFF images and, if there are, masks or tables of "
            "centres. Default: a synthetic tissue whose cell types are known.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report and the results.")] = Path("demo"),
    channel: Channel = None,
    without: Without = None,
    find_cells: Annotated[
        bool,
        typer.Option(
            "--find-cells",
            help="Find the cells in the nuclear channel, even where masks or centres are given. Done anyway where none are.",
        ),
    ] = False,
    nuclear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Channel to find cells in; repeat for several, or a,b,c. Default: by their names."
        ),
    ] = None,
    diameter_px: Annotated[
        float | None,
        typer.Option(
            help="Diameter of a nucleus in pixels, to find cells. Default: 8 micrometres, or as the image tells."
        ),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(help="Micrometres a pixel, where the TIFF files do not say it.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column of known cell types to compare with. Default: `cell_type`, if there is one."
        ),
    ] = None,
    size_px: Size = None,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """The main job from images to a report: train, embed, cluster, compare.

    Writes a one-page report with figures (`report.html`), the data with all results as a SpatialData store
    (`tissue.zarr`), the trained model (`model`) and the numbers (`summary.json`). Takes a few minutes.
    """
    with _errors(context):
        _writable(out)
        import cytonym as cy
        from cytonym import _demo
        from cytonym._report import write_report

        if data is None:
            sdata = cy.datasets.tissue_phantom(n_samples=2, staining_shift=0.15, rng=seed)
            source = "Synthetic tissue"
        else:
            sdata, source = _demo.open_data(data, pixel_size=pixel_size), "/".join(data.resolve().parts[-2:])
        names = _demo.channel_names(sdata)
        found = _demo.run(
            sdata, out, source=source, channels=_demo.choose_channels(names, channel, without),
            truth=truth, find=find_cells, nuclear=_demo.split_names(nuclear or (), names), diameter_px=diameter_px, size_px=size_px, steps=steps,
            seed=seed, device=device,
        )  # fmt: skip
        report = write_report(found, out / "report.html")
        (out / "summary.json").write_text(json.dumps(_demo.summary(found), indent=2) + "\n", encoding="utf-8")
        typer.echo(f"Report: {report.resolve()}")


@app.command(
    epilog="Examples:\n\n`cytonym train tumour.zarr --out panel`\n\n"
    "`cytonym train sample_*.zarr --out panel --labels cells --size-um 10 --steps 2000`",
)
def train(
    context: typer.Context,
    stores: Stores,
    *,
    out: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="Folder for the trained model.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Method to train.")] = "nextmarker",
    steps: Steps = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Cells in a step.")] = None,
    size_px: Size = None,
    size_um: Annotated[float | None, typer.Option(help="The same in micrometres.")] = None,
    image: Image = None,
    labels: Labels = None,
    shapes: Shapes = None,
    points: Points = None,
    table: Table = "table",
    coordinate_system: System = "global",
    scale: Scale = None,
    channel: Channel = None,
    without: Without = None,
    seed: Seed = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is already there.")] = False,
) -> None:
    """Train an encoder without labels, on one sample or on many.

    After an interrupt the same command goes on where it stopped.
    """
    with _errors(context):
        if out.exists() and not force:
            msg = f"{out} exists already. Choose another folder, or replace it with --force."
            raise FileExistsError(msg)
        _writable(out.parent)
        import cytonym as cy

        samples = [_open(store) for store in stores]
        unfinished = out.with_name(out.name + ".unfinished")
        encoder = cy.tl.fit_encoder(
            samples, model, **_keys(image, labels, shapes, points), table_key=table,
            coordinate_system=coordinate_system, scale=scale, channels=_channels(samples, image, channel, without), size_px=size_px, size_um=size_um,
            steps=steps, batch_size=batch_size, rng=seed, device=device, checkpoint_dir=unfinished,
        )  # fmt: skip
        cy.models.save(encoder, out, overwrite=force)
        shutil.rmtree(unfinished, ignore_errors=True)
        typer.echo(f"Model: {out}")


@app.command(
    epilog="Examples:\n\n`cytonym embed tumour.zarr --model panel`\n\n"
    "`cytonym embed sample_*.zarr --model panel --points centers --table cells`",
)
def embed(
    context: typer.Context,
    stores: Stores,
    *,
    model: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="Folder of a trained model.")],
    image: Image = None,
    labels: Labels = None,
    shapes: Shapes = None,
    points: Points = None,
    table: Table = "table",
    coordinate_system: System = "global",
    scale: Scale = None,
    channel: Channel = None,
    key_added: Annotated[str | None, typer.Option(help="Name of the results. Default: the method's.")] = None,
    device: Device = "auto",
) -> None:
    """Embed the cells of stores with a trained model and save their tables.

    Only the table changes on disk, in one step: an interrupt leaves the old one.
    """
    with _errors(context):
        import cytonym as cy

        encoder = cy.models.load(model)
        for store in stores:
            sdata = _open(store)
            cy.tl.embed_cells(
                sdata, encoder, **_keys(image, labels, shapes, points), table_key=table,
                coordinate_system=coordinate_system, scale=scale, channels=_channels([sdata], image, channel), key_added=key_added, device=device,
            )  # fmt: skip
            cy.io.save_table(sdata, table)
            typer.echo(f"{store}: {sdata[table].n_obs:,} cells, table {table!r} saved")


def _open(store: Path) -> Any:
    import spatialdata as sd

    from cytonym._demo import is_store

    if not is_store(store):
        what = "is no SpatialData store" if store.exists() else "does not exist"
        msg = f"{store} {what}. `cytonym.io.read_tiffs(...).write({str(store)!r})` makes one from images."
        raise FileNotFoundError(msg)
    return sd.read_zarr(store)


def _channels(
    samples: list[Any], images: list[str] | None, channel: list[str] | None, without: list[str] | None = None
) -> list[str] | None:
    """Names out of the channels of the images in use, None for all of them."""
    from spatialdata.models import get_channel_names

    from cytonym._demo import choose_channels

    if not channel and not without:
        return None
    used = [sdata.images[key] for sdata in samples for key in sdata.images if images is None or key in images]
    return choose_channels(
        list(dict.fromkeys(str(c) for one in used for c in get_channel_names(one))), channel, without
    )


def _writable(folder: Path) -> None:
    """Make a folder and see that it takes files, before hours of work go into what cannot be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = f"Cannot write into {folder}: {error.strerror or error}. Choose another folder with --out."
        raise OSError(msg) from error


def _keys(image: Any, labels: Any, shapes: Any, points: Any) -> dict[str, Any]:
    """An option that was given once is a name, several times a list, never is None."""
    given = {"image_key": image, "labels_key": labels, "shapes_key": shapes, "points_key": points}
    return {key: (names[0] if len(names) == 1 else names) if names else None for key, names in given.items()}


@contextmanager
def _errors(context: typer.Context) -> Iterator[None]:
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
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        typer.echo(f"error: {' '.join(text.split()) or type(error).__name__}", err=True)
        raise typer.Exit(1) from None


def _listen(*, quiet: bool) -> None:
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
