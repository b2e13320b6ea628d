"""The command line: parse, call a verb, save."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from cytonym import _label
from cytonym._options import (
    Channel,
    Device,
    Image,
    Labels,
    Points,
    Scale,
    Seed,
    Shapes,
    Size,
    Steps,
    Stores,
    System,
    Table,
    Without,
    chosen_channels,
    element_keys,
)  # fmt: skip
from cytonym._terminal import errors, listen, open_store, print_version, unused
from cytonym._translate_command import EPILOG, translate

app = typer.Typer(
    name="cytonym",
    epilog="Exit codes: 0 done, 1 something wrong with the data or the arguments, 2 no such option, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    context: typer.Context,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """What each cell is, marker by marker: interpretable phenotypes from raw multiplexed tissue images."""
    context.obj = {"traceback": traceback}
    listen(quiet=quiet)


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
    table: Table = "table",
    size_px: Size = None,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace results that are already there.")] = False,
) -> None:
    """The main job from images to a report: train, embed, cluster, compare.

    Writes a one-page report with figures (`report.html`), the data with all results as a SpatialData store
    (`tissue.zarr`), the trained model (`model`) and the numbers (`summary.json`). Takes a few minutes.
    """
    with errors(context):
        for result in ("tissue.zarr", "model", "report.html", "summary.json"):
            unused(out / result, force=force)
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
            truth=truth, table_key=table, find=find_cells, nuclear=_demo.split_names(nuclear or (), names), diameter_px=diameter_px, size_px=size_px, steps=steps,
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
    with errors(context):
        unused(out, force=force)
        import cytonym as cy

        samples = [open_store(store) for store in stores]
        unfinished = out.with_name(out.name + ".unfinished")
        encoder = cy.tl.fit_encoder(
            samples, model, **element_keys(image, labels, shapes, points), table_key=table,
            coordinate_system=coordinate_system, scale=scale, channels=chosen_channels(samples, image, channel, without), size_px=size_px, size_um=size_um,
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
    with errors(context):
        import cytonym as cy

        encoder = cy.models.load(model)
        samples = [open_store(store, to_save=True) for store in stores]
        for store, sdata in zip(stores, samples, strict=True):
            cy.tl.embed_cells(
                sdata, encoder, **element_keys(image, labels, shapes, points), table_key=table,
                coordinate_system=coordinate_system, scale=scale, channels=chosen_channels([sdata], image, channel), key_added=key_added, device=device,
            )  # fmt: skip
            cy.io.save_table(sdata, table)
            typer.echo(f"{store}: {sdata[table].n_obs:,} cells, table {table!r} saved")


@app.command(
    epilog="Examples:\n\n`cytonym score tumour.zarr`\n\n"
    "`cytonym score sample_*.zarr --without DNA --rules types.csv --out scores.csv`\n\n"
    "`cytonym score tumour.zarr --model JLrumberger/Nimbus-Inference --pixel-size 0.5 --device cuda`",
)
def score(
    context: typer.Context,
    stores: Stores,
    *,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="compact, the scorer that ships; the folder of a trained one; or the published weights of Nimbus, a FILE.pt or "
            "their name on the Hugging Face hub (OWNER/NAME).",
        ),
    ] = "compact",
    image: Image = None,
    labels: Labels = None,
    shapes: Shapes = None,
    points: Points = None,
    table: Table = "table",
    coordinate_system: System = "global",
    scale: Scale = None,
    channel: Channel = None,
    without: Without = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(help="Micrometres a pixel. Default: what the image says, else by the size of its cells."),
    ] = None,
    diameter_um: Annotated[
        float | None, typer.Option(help="Diameter of the disc of cells that have no mask. Default: 8.")
    ] = None,
    views: Annotated[
        str,
        typer.Option(help="none; six_views, steadier at six times the cost; or released, as in the published program."),
    ] = "none",
    probabilities: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add the probability of each pixel to the store, as an image.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Cells are positive from this score on.")] = 0.5,
    rules: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Name the cells: a line a cell type, a column a marker, entries +, - or nothing; a column `parent` for types that are "
            "kinds of others.",
        ),
    ] = None,
    key_added: Annotated[str, typer.Option(metavar="NAME", help="Name of the results.")] = "nimbus",
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Write the scores of all cells, too.")] = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a CSV file that is already there.")] = False,
) -> None:
    """Say which markers each cell is positive for, and save the tables.

    Each store is scored by itself and saved when it is done, in one step: an interrupt leaves the old table.
    """
    with errors(context):
        from cytonym._score import Job

        job = Job(
            stores=stores, table_key=table, images=image, model=model, views=views, probabilities=probabilities, rules=rules,
            where=element_keys(image, labels, shapes, points) | {"coordinate_system": coordinate_system, "scale": scale},
            channels=lambda samples: chosen_channels(samples, image, channel, without), threshold=threshold, key_added=key_added,
            settings={"pixel_size": pixel_size, "diameter_um": diameter_um, "device": device}, out=out, force=force,
        )  # fmt: skip
        for line in job.run():
            typer.echo(line)


@app.command(
    epilog="Examples:\n\n`cytonym classify tumour.zarr --labels label --groups patient`\n\n"
    "`cytonym classify patient_*.zarr --labels label --out panel_classifier`\n\n"
    "`cytonym classify new.zarr --model panel_classifier`\n\n"
    "`cytonym classify tumour.zarr --from-geojson labels.geojson --to-geojson predicted.geojson`",
)
def classify(
    context: typer.Context,
    stores: Stores,
    *,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of the table with the class of each labelled cell, empty for all others. (Label *images* are named by "
            "`--mask`.) With --from-geojson the column that the file is read into, by default `label`.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Column with the patient of each cell; none is in two folds. Default: the image."
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="True or False: labelled cells to keep out of training and to score on."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="logistic (default), linear, mlp4 or maps on the numbers of the table; cellsighter, or the folder of a trained "
            "encoder to fine-tune, on the pixels of one store.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Folder of a trained classifier. Nothing is trained then.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="CHECKPOINT", help="Folder to save the classifier in.")] = None,
    rep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Numbers to classify by: a key of `obsm`, `X`, or a numeric column; repeat for several. Default: mean "
            "intensities, area and the one embedding.",
        ),
    ] = None,
    key_added: Annotated[str, typer.Option(metavar="NAME", help="Name of the results.")] = "phenotype",
    from_geojson: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Labels from QuPath; once for each store, in their order."),
    ] = None,
    only_changed: Annotated[
        bool,
        typer.Option(
            "--only-changed",
            help="Of --from-geojson take only what was corrected or added, so that predictions do not turn into labels.",
        ),
    ] = False,
    to_geojson: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write the named cells for QuPath; once for each store, in their order."),
    ] = None,
    image: Image = None,
    mask: Annotated[
        list[str] | None, typer.Option("--mask", metavar="NAME", help="Label image that outlines the cells.")
    ] = None,
    shapes: Shapes = None,
    points: Points = None,
    table: Table = "table",
    coordinate_system: System = "global",
    scale: Scale = None,
    channel: Channel = None,
    seed: Seed = 0,
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a classifier and GeoJSON files that are already there.")
    ] = False,
) -> None:
    """Name every cell from a few that are labelled, and save the tables.

    The labelled cells of all stores train one classifier, which then names the cells of each store. Cells without
    intensities are measured on the way; `cytonym embed` first adds an embedding. Scores are those on labelled cells that the
    classifier was not trained on. Only the tables change on disk, when all cells are named.
    """
    with errors(context):
        from cytonym._classify import Job

        job = Job(
            stores=stores, labels=labels, groups=groups, test=test, method=method, model=model, out=out, rep=rep, key_added=key_added,
            from_geojson=from_geojson, only_changed=only_changed, to_geojson=to_geojson, table_key=table,
            where=element_keys(image, mask, shapes, points) | {"coordinate_system": coordinate_system, "scale": scale},
            channels=lambda samples: chosen_channels(samples, image, channel), seed=seed, device=device, force=force,
        )  # fmt: skip
        for line in job.run():
            typer.echo(line)


app.command(epilog=EPILOG)(translate)
app.command(epilog=_label.EPILOG)(_label.label)
