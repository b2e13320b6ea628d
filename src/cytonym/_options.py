"""Options that several commands have, and what they mean to the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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


def element_keys(image: Any, labels: Any, shapes: Any, points: Any) -> dict[str, Any]:
    """An option that was given once is a name, several times a list, never is None."""
    given = {"image_key": image, "labels_key": labels, "shapes_key": shapes, "points_key": points}
    return {key: (names[0] if len(names) == 1 else names) if names else None for key, names in given.items()}


def chosen_channels(
    samples: list[Any], images: list[str] | None, channel: list[str] | None, without: list[str] | None = None
) -> list[str] | None:
    """Names out of the channels of the images in use, None for all of them."""
    from cytonym._demo import choose_channels

    return choose_channels(channel_names(samples, images), channel, without) if channel or without else None


def channel_names(samples: list[Any], images: list[str] | None) -> list[str]:
    """All channels of the images in use."""
    from spatialdata.models import get_channel_names

    used = [sdata.images[key] for sdata in samples for key in sdata.images if images is None or key in images]
    return list(dict.fromkeys(str(c) for one in used for c in get_channel_names(one)))
