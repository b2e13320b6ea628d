"""From images and cells to the probability of being positive for each marker."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import zarr

from cytonym._shared import KEYS, document
from cytonym.data.names import require_name
from cytonym.data.source import resolve, those_it_has
from cytonym.data.table import open_table
from cytonym.learning.maps import VIEWS
from cytonym.models.checkpoint import weights_sha256
from cytonym.tl._encoding import check_cells
from cytonym.tl._scoring import cores, fields, map_shape, score_field, scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows
    from cytonym.models.nimbus import Nimbus
    from cytonym.tl._scoring import Field

logger = logging.getLogger("cytonym")

COLUMNS = ("positivity", "uncertainty")


@document(keys=KEYS)
def score_markers(
    sdata: SpatialData,
    model: str | Path | Nimbus = "compact",
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    normalization: Literal["released", "paper"] | Mapping[str, float] = "released",
    pixel_size: float | None = None,
    diameter_um: float | None = None,
    views: Literal["six_views", "released"] | None = None,
    tiles: Literal["aligned", "released"] = "aligned",
    image_added: str | None = None,
    device: str = "auto",
    client: Any = None,
    key_added: str = "nimbus",
    inplace: bool = True,
) -> AnnData | None:
    """Say which markers each cell is positive for: a score in 0 … 1 for every cell and marker, of any panel.

    A scorer looks at one marker and the cells' outlines at a time and gives each pixel a probability; a cell's score is its mean over the
    cell's pixels. Images are read tile by tile, each channel by itself: a subset of the channels costs that subset.

    Parameters
    ----------
    sdata
        Images and cells. Cells that are named by a label image have their pixels; cells known by points or shapes get a disc of `diameter_um`
        around their centre, cut where it meets a nearer cell's, which costs accuracy (see the benchmarks).
    model
        `"compact"`, the small scorer that ships with the package and was trained on synthetic tissues; a scorer such as
        `models.Nimbus.from_published()` or one from `tl.fit_scorer`; or the folder of its checkpoint.
    {keys}
    normalization
        What each channel is divided by. `"released"`: the mean over the images of the 0.999 quantile of the pixels above zero, as the published program does (the
        quantile is the scorer's); `"paper"`: the 0.9999 quantile of all images together; or factors by channel, such as those of earlier data. About 4 million pixels an image are looked at (`"paper"`: of all images together).
    pixel_size
        Micrometres a pixel of the image. Default: what the image says; where it says nothing, one of 0.125, 0.25, … 4, at which cells are
        about 9 micrometres wide, with a warning.
    diameter_um
        Of the disc of cells without a mask, 8 micrometres by default.
    views
        `None`: the image as it is. `"six_views"`: the mean over four quarter turns and two mirror images, at six times the cost. `"released"`: the views
        of the released program, whose four turns are all the same; for comparison.
    tiles
        `"aligned"`: seamless, the same as the whole image at once. `"released"`: tiles of 1,024 pixels as in the released program, which
        shift coarse features by two pixels; holds a whole channel in memory; for comparison.
    image_added
        Name of an image element to add with the probabilities, f4 [C, h, w] at the scorer's resolution; `{image}_{image_added}` for each of several
        images. It is written to the store where `sdata` has one, also with `inplace=False`. As `sdata` then has several images, later
        calls must name the one with the cells by `image_key`.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    client
        A `dask.distributed.Client` to score on, instead of this process. The result is the same.
    key_added
        Name of the results, `"nimbus"` below.
    inplace
        Write into the table of `sdata`; otherwise return an annotated copy and leave the table as it is.

    Returns
    -------
    Returns `None` if `inplace=True`, else an `AnnData`. Sets the following fields of the table `sdata[table_key]`, which is made where
    there is none; fields of an earlier call with the same `key_added` are replaced, also where it scored other channels. Cells without a
    pixel in their image get NaN:

    `obsm["nimbus_positivity"]` : DataFrame [cells, markers]
        Score in 0 … 1, f4; see `tl.call_markers`, `get.markers`. 0 for a channel without signal.
    `obsm["nimbus_uncertainty"]` : DataFrame [cells, markers]
        Standard deviation of the probability over the pixels of the cell (and the views), f4, 0 to 0.5: high where the cell's
        pixels disagree.
    `obsm["spatial"]` : f8 [cells, 2]
        Centres (x, y) in the coordinate system, of cells that have none yet.
    `uns["nimbus"]` : dict
        `params`, `model` (class, version, hash of the weights, provenance) and `normalization`, a DataFrame of marker and factor.

    Raises
    ------
    KeyError
        An image, element, channel or table is unknown, or `normalization` lacks a channel.
    ValueError
        No cells, NaN or infinite pixels, elements that are rotated against each other, a checkpoint of another kind, or an
        option that is unknown or does not go with another.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> cy.tl.score_markers(sdata, channels=["CD3", "CD20"])
    >>> sdata["table"].obsm["nimbus_positivity"].shape
    (40, 2)
    """
    _check(views, tiles, image_added, client)
    network = scorer(model)
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale,
        channels=channels if len(sdata.images) == 1 or isinstance(image_key, str) else None,
    )  # fmt: skip
    if channels is not None:
        sources = those_it_has(sources, channels)
    n_cells = check_cells(sources, "they get NaN unless their mask reaches in")
    rows = open_table(sdata, sources, table_key)
    rows.reserve(key_added, [f"{key_added}_{name}" for name in COLUMNS], inplace=inplace)
    names = _names_of_pictures(sdata, sources, image_added)
    found = fields(sources, network, normalization=normalization, pixel_size=pixel_size, diameter_um=diameter_um)
    for field in found:
        map_shape(field.canvas, network, tiles)  # raises where an image is too small
    markers = list(dict.fromkeys(c for source in sources for c in source.channels))
    factors = {c: f for field in found for c, f in zip(field.canvas.source.channels, field.factors, strict=True)}
    dark = [m for m in markers if factors[m] == 0]
    if dark:
        logger.warning("No signal in channels %s: their scores are 0.", dark)
    logger.info("Scoring %s cells for %d markers in %d images.", f"{n_cells:,}", len(markers), len(found))

    scored = []
    beside = Path(sdata.path).parent if names and sdata.path is not None else None  # as large as what will be added
    with tempfile.TemporaryDirectory(prefix=".cytonym-", dir=beside) as scratch:
        pictures = [_Picture(f, network, tiles, Path(scratch) / str(i)) if names else None for i, f in enumerate(found)]
        for field, picture in zip(found, pictures, strict=True):
            keep = picture.keep if picture else None
            scored.append(
                score_field(field, network, views=views, tiles=tiles, device=device, client=client, keep_map=keep)
            )
        values = _by_row(scored, rows, found, markers)
        try:
            for name, picture in zip(names, pictures, strict=False):
                assert picture is not None
                picture.add(sdata, name, coordinate_system)
            result = _write(rows, key_added, values, markers, network, found, _params(locals()), inplace=inplace)
        except BaseException:
            _drop(sdata, names)
            raise
    stale = _made_of(rows.table.uns, {f"{key_added}_{name}" for name in COLUMNS}) if inplace else []
    if stale:
        logger.warning("Made of earlier scores and not made again: %s. Call the verbs that made them again.", stale)
    return None if inplace else result


def _made_of(uns: Mapping[str, Any], keys: set[str]) -> list[str]:
    """Results that say that they were made of these keys, or of one another."""
    found: list[str] = []
    for name, told in uns.items():
        params = told.get("params", {}) if isinstance(told, Mapping) else {}
        if isinstance(params, Mapping) and params.get("key") in keys and name not in keys:
            found += [str(name), *_made_of(uns, {str(name)})]
    return found


def _check(views: Any, tiles: Any, image_added: str | None, client: Any) -> None:
    if views not in VIEWS:
        msg = f"`views` must be one of {list(VIEWS)}, got {views!r}."
        raise ValueError(msg)
    if tiles not in ("aligned", "released"):
        msg = f"`tiles` must be 'aligned' or 'released', got {tiles!r}."
        raise ValueError(msg)
    if image_added is not None and client is not None:
        msg = "`image_added` is made in this process only: leave `client` out."
        raise ValueError(msg)
    if image_added is not None:
        require_name(image_added, "image_added")


def _names_of_pictures(sdata: SpatialData, sources: Sequence[CellSource], image_added: str | None) -> list[str]:
    """Names of the image elements to add, one an image; none where none are asked for."""
    if image_added is None:
        return []
    names = [image_added] if len(sources) == 1 else [f"{source.image_key}_{image_added}" for source in sources]
    if len(set(names)) < len(names):
        images = [source.image_key for source in sources]
        msg = f"`image_added` needs one element of cells in each image, got the images {images}. Score them in separate calls, each with a `key_added` of its own."
        raise ValueError(msg)
    folder = Path(sdata.path) / "images" if sdata.is_backed() and sdata.path is not None else None
    known = {name.casefold(): name for _, name, _ in sdata.gen_elements()}  # a store may not tell cases apart
    known |= {path.name.casefold(): path.name for path in folder.iterdir()} if folder and folder.is_dir() else {}
    taken = [known[name.casefold()] for name in names if name.casefold() in known]
    if taken:
        msg = f"`sdata` has an element {taken[0]!r} already. Choose another name, or remove it."
        raise ValueError(msg)
    return names


def _params(given: dict[str, Any]) -> dict[str, Any]:
    found: list[Field] = given["found"]
    return {
        "channels": given["markers"],
        "images": [f.canvas.source.image_key for f in found],
        "normalization": given["normalization"] if isinstance(given["normalization"], str) else "given",
        "pixel_size": [f.pixel_size for f in found],
        "pixel_size_from": [f.how for f in found],
        "views": given["views"] or "none",
        "tiles": given["tiles"],
        "cells": [
            "masks" if f.canvas.masks.from_labels else f"discs of {2 * f.canvas.masks.radius_px:.3g} px" for f in found
        ],
    }


def _by_row(
    scored: list[tuple[np.ndarray, np.ndarray]], rows: TableRows, found: list[Field], markers: list[str]
) -> dict[str, np.ndarray]:
    """Scores and spreads [cells of the table, markers] from those of the images; NaN where there are none."""
    values = {name: np.full((rows.table.n_obs, len(markers)), np.nan, np.float32) for name in COLUMNS}
    for field, at, parts in zip(found, rows.rows, scored, strict=True):
        columns = np.array([markers.index(c) for c in field.canvas.source.channels])
        for name, part in zip(COLUMNS, parts, strict=True):
            values[name][np.ix_(at[at >= 0], columns)] = part[at >= 0]
    return values


def _write(
    rows: TableRows,
    key: str,
    values: dict[str, np.ndarray],
    markers: list[str],
    network: Nimbus,
    found: list[Field],
    params: dict[str, Any],
    *,
    inplace: bool,
) -> AnnData | None:
    factors = {c: float(f) for field in found for c, f in zip(field.canvas.source.channels, field.factors, strict=True)}
    model = {
        "class": network.name,
        "cytonym": version("cytonym"),
        "weights_sha256": weights_sha256(network),
        "pixel_size": float(network.config.pixel_size),
        "provenance": {str(k): str(v) for k, v in network.provenance.items()},
    }
    frame = pd.DataFrame({"marker": markers, "factor": [factors[m] for m in markers]})
    uns = {key: {"params": params, "model": model, "normalization": frame}}
    obsm = {
        f"{key}_{name}": pd.DataFrame(array, index=rows.table.obs_names, columns=markers)
        for name, array in values.items()
    }
    return rows.write(obsm=obsm, uns=uns, inplace=inplace)


class _Picture:
    """Probabilities of one image, written tile by tile to a scratch folder and added when they are whole."""

    def __init__(self, field: Field, network: Nimbus, tiles: str, folder: Path) -> None:
        self.field = field
        height, width = map_shape(field.canvas, network, tiles)
        first = cores(field.canvas, network)[0]
        self.array = zarr.create_array(
            store=str(folder),
            shape=(len(field.factors), height, width),
            chunks=(1, min(height, first[1]), min(width, first[3])),
            dtype="float32",
        )

    def keep(self, box: tuple[int, int, int, int], probabilities: np.ndarray) -> None:
        self.array[:, box[0] : box[1], box[2] : box[3]] = probabilities

    def add(self, sdata: SpatialData, name: str, coordinate_system: str) -> None:
        import dask.array as da
        from spatialdata import get_pyramid_levels, read_zarr
        from spatialdata.models import Image2DModel
        from spatialdata.transformations import Scale, Sequence, get_transformation
        from xarray import DataTree

        source = self.field.canvas.source
        image = sdata.images[source.image_key]
        full = get_pyramid_levels(image, n=0) if isinstance(image, DataTree) else image
        zoom = Scale([full.sizes[a] / n for a, n in zip("yx", self.array.shape[1:], strict=True)], axes=("y", "x"))
        before = get_transformation(image, coordinate_system)
        stored = sdata.is_backed()
        data = da.from_zarr(self.array) if stored else np.asarray(self.array[:])
        sdata.images[name] = Image2DModel.parse(
            data,
            dims=("c", "y", "x"),
            c_coords=list(source.channels),
            transformations={coordinate_system: Sequence([zoom, before])},
        )
        if stored:
            sdata.write_element(name)
            sdata.images[name] = read_zarr(sdata.path, selection=("images",)).images[name]


def _drop(sdata: SpatialData, names: Sequence[str]) -> None:
    """Take images away that were added, from the store, too."""
    for name in set(names) & set(sdata.images):
        del sdata.images[name]
    if sdata.is_backed() and names:
        for name in names:
            shutil.rmtree(Path(str(sdata.path)) / "images" / name, ignore_errors=True)
        sdata.write_consolidated_metadata()
