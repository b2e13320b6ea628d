"""`cytonym translate`: its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytonym._options import Device, Image, Scale, System, Table  # noqa: TC001 (typer reads them)
from cytonym._terminal import errors

EPILOG = (
    "Examples:\n\n`cytonym translate`\n\n`cytonym translate core.png --pixel-size 0.25 --out ki67`\n\n"
    "`cytonym translate cores/*.tif --dab-threshold 0.2 --watershed`\n\n"
    "`cytonym translate slide.zarr --image slide_image --model DeepLIIF_weights/ --device cuda`"
)


def translate(
    context: typer.Context,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE|STORE...",
            help="PNG, JPEG or TIFF images (RGB), or SpatialData stores (.zarr). None: the picture that comes with scikit-image.",
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("ihc"),
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="classical, which needs no weights; the folder of a trained DeepLIIF; or a folder with the weights that its authors "
            "published.",
        ),
    ] = "classical",
    demo: Annotated[
        bool, typer.Option("--demo", help="Take scikit-image's picture of a colon (FHL2, DAB and hematoxylin).")
    ] = False,
    image: Image = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(help="Micrometres a pixel. Default: what the image says, else by the size of its nuclei."),
    ] = None,
    diameter_px: Annotated[
        float | None, typer.Option(help="Diameter of a nucleus in pixels (classical). Default: 8 micrometres.")
    ] = None,
    dab_threshold: Annotated[
        float | None,
        typer.Option(help="Nuclei with more DAB are positive (classical). Default: 0.07; 0.2 asks for a clear stain."),
    ] = None,
    nuclear_stain: Annotated[
        bool | None,
        typer.Option(
            help="Whether DAB stains nuclei (classical). If not, they are looked for in the hematoxylin alone."
        ),
    ] = None,
    seg_thresh: Annotated[
        int, typer.Option(min=0, help="Pixels of the class map with more red and blue belong to nuclei.")
    ] = 120,
    watershed: Annotated[bool, typer.Option("--watershed", help="Split touching nuclei at their waists.")] = False,
    thresholds: Annotated[
        str, typer.Option(metavar="A,B,C", help="Least optical densities of 1+, 2+ and 3+.")
    ] = "0.2,0.4,0.6",
    crop: Annotated[
        str | None,
        typer.Option(metavar="Y0,Y1,X0,X1", help="Part that the panel shows, in pixels. Default: all, or the middle."),
    ] = None,
    colors: Annotated[
        str, typer.Option(help="clear (yellow and blue), or published (red and blue): of the nuclei in the panel.")
    ] = "clear",
    table: Table = "table",
    coordinate_system: System = "global",
    scale: Scale = None,
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace results that are already there.")] = False,
) -> None:
    """Stains, nuclei and the score of immunohistochemical images.

    Writes for each image or store NAME, into --out: the images with stains, nuclei and their table as a SpatialData store
    (`NAME.zarr`), the counts as the published program writes them (`NAME.json`; of several images `NAME_scores/`), a panel of each
    image (`NAME_panel.png`) and the score card (`NAME_score.png`). Where there is no nucleus, there is no score card, and counts are 0.
    After an interrupt or an error the same command goes on, and what is finished is not done again.
    """
    with errors(context):
        from cytonym._translate import Job, numbers

        job = Job(
            inputs=images or [], demo=demo, out=out, model=model, images=image, pixel_size=pixel_size, watershed=watershed,
            classical={"diameter_px": diameter_px, "dab_threshold": dab_threshold, "nuclear_stain": nuclear_stain},
            seg_thresh=seg_thresh, thresholds=numbers(thresholds, "--thresholds", 3, float),
            crop=None if crop is None else numbers(crop, "--crop", 4, int), colors=colors, table_key=table, scale=scale,
            coordinate_system=coordinate_system, device=device, force=force,
        )  # fmt: skip
        for line in job.run():
            typer.echo(line)
