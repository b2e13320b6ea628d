"""Intensity of every marker in every cell: the baseline of every method, and the table's X."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from cytonym.data.names import with_marker_names, with_storable_columns
from cytonym.data.source import resolve
from cytonym.data.table import attach, open_table
from cytonym.pp._intensities import STATISTICS, cell_intensities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows

logger = logging.getLogger("cytonym")

DIAMETER_UM = 8.0
DIAMETER_PX = 9.0
"""Disc where the pixel size is unknown: about a cell at the 1 um a pixel of imaging mass cytometry."""
KEY = "measure_cells"


def measure_cells(
    sdata: SpatialData,
    *,
    statistic: str | Sequence[str] = "mean",
    diameter_um: float | None = None,
    diameter_px: float | None = None,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Measure the intensity of each marker over each cell's mask, or over a disc around its centre without masks.

    The integrated expression that phenotyping usually starts from. Images are read once, tile by tile.

    Parameters
    ----------
    sdata
        Images and cells.
    statistic
        `"mean"`, `"sum"`, `"max"` or `"std"`, or several of them, over the pixels of a cell; all in one pass.
    diameter_um, diameter_px
        Diameter of the disc around cells known by their centres. By default 8 micrometres where the pixel size is known,
        else 9 pixels. Masks need none.
    image_key
        Image, or images, of `sdata.images`; a sequence pairs up with the cell keys. May be left out where there is one.
    labels_key, shapes_key, points_key
        Element, or elements, that name the cells. May be left out where the answer is unique.
    table_key
        Table that the results go to. One that exists is annotated, else a new one is added under this name.
    coordinate_system
        Coordinate system in which images and cells meet.
    scale
        Level of a multi-scale image; the full resolution by default.
    channels
        Names of the channels to use; all by default.
    inplace
        Write into `sdata`; else return the table.

    Returns
    -------
    None, or the table if `inplace` is False. Sets the following fields:

    `X`
        Mean intensity, f4 [cells, markers], with `var_names` = markers. A new table, or one without variables, gets it.
        Variables cannot be added to a table, so one without any is replaced in `sdata` by a new one with all it has:
        `sdata[table_key]` is then another object than before.
    `layers[statistic]`
        Other statistics.
    `obsm[f"{statistic}_intensity"]`
        DataFrame, in place of `X` and the layers, where the table's variables are others; its X stays as it is.
    `obs["area"]`, `obs["area_um2"]`
        Pixels of the cell, or of the disc inside the image, and the same in square micrometres where the pixel size is
        known.
    `uns["measure_cells"]["params"]`
        What was measured how.

    Cells without pixels, and rows of other regions, get NaN (rows measured earlier keep their values).

    Raises
    ------
    KeyError
        A key or channel is unknown.
    ValueError
        No cells, an unknown statistic, NaN pixels inside a cell, or a table without variables whose columns have names that
        `sdata` does not take.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> mask = np.zeros((32, 32), int)
    >>> mask[4:12, 4:12] = 7
    >>> image = np.stack([mask * 2.0, np.ones((32, 32))])
    >>> sdata = cy.io.from_arrays(image, mask, channels=["DNA", "CD8"])
    >>> cy.pp.measure_cells(sdata)
    >>> sdata["table"].to_df().iloc[0].to_dict(), sdata["table"].obs["area"].tolist()
    ({'DNA': 14.0, 'CD8': 1.0}, [64.0])
    """
    statistics = list(dict.fromkeys([statistic] if isinstance(statistic, str) else statistic))
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown or not statistics:
        msg = f"`statistic` must be of {list(STATISTICS)}, got {statistic!r}."
        raise ValueError(msg)
    sources = resolve(
        sdata,
        image_key=image_key,
        labels_key=labels_key,
        shapes_key=shapes_key,
        points_key=points_key,
        table_key=table_key,
        coordinate_system=coordinate_system,
        scale=scale,
        channels=channels,
    )
    diameters = [_diameter(source, diameter_px, diameter_um) for source in sources]
    opened = open_table(sdata, sources, table_key)
    if inplace and opened.table.n_vars == 0:
        TableModel().validate(opened.table)  # it will be replaced
    markers = list(dict.fromkeys(name for source in sources for name in source.channels))
    wanted = list(dict.fromkeys(["mean", *statistics]))
    n_rows = opened.table.n_obs
    values = {name: np.full((n_rows, len(markers)), np.nan, np.float32) for name in wanted}
    obs = {"area": np.full(n_rows, np.nan), "area_um2": np.full(n_rows, np.nan)}
    empty = 0
    for source, rows, diameter in zip(sources, opened.rows, diameters, strict=True):
        measured, area = cell_intensities(source, wanted, radius_px=diameter / 2)
        at, known = rows[rows >= 0], rows >= 0
        columns = np.array([markers.index(name) for name in source.channels])
        for name in wanted:
            values[name][np.ix_(at, columns)] = measured[name][known]
        obs["area"][at] = area[known]
        if source.pixel_size is not None:
            obs["area_um2"][at] = area[known] * source.pixel_size**2
        empty += int((area[known] == 0).sum())
    if empty:
        warnings.warn(f"{empty} cells have no pixel in their image; their intensities are NaN.", stacklevel=2)
    if np.isnan(obs["area_um2"]).all():
        del obs["area_um2"]
    params = {
        "statistic": statistics,
        "over": {
            source.region: "label" if source.labels is not None else f"disc of {d:g} px"
            for source, d in zip(sources, diameters, strict=True)
        },
        "channels": markers,
    }
    return _write(opened, values, statistics, markers, obs, {"params": params}, inplace=inplace)


def _diameter(source: CellSource, diameter_px: float | None, diameter_um: float | None) -> float:
    for name, value in (("diameter_px", diameter_px), ("diameter_um", diameter_um)):
        if value is not None and not value > 0:
            msg = f"`{name}` must be positive, got {value}."
            raise ValueError(msg)
    if diameter_px is not None:
        return float(diameter_px)
    if source.pixel_size is not None:
        return (diameter_um or DIAMETER_UM) / source.pixel_size
    if diameter_um is not None and source.labels is None:
        msg = (
            f"The pixel size of image {source.image_key!r} is unknown (it has an identity transformation, or another scale "
            "along y than along x), so `diameter_um` has no meaning. Give `diameter_px`."
        )
        raise ValueError(msg)
    return DIAMETER_PX


def _write(
    opened: TableRows,
    values: dict[str, np.ndarray],
    statistics: list[str],
    markers: list[str],
    obs: dict[str, np.ndarray],
    record: dict[str, Any],
    *,
    inplace: bool,
) -> AnnData | None:
    """Intensities into X and layers where the table is theirs or has no variables, else into obsm."""
    old = opened.table
    here = np.zeros(old.n_obs, bool)
    for rows in opened.rows:
        here[rows[rows >= 0]] = True
    for name, column in obs.items():
        if name in old.obs and pd.api.types.is_numeric_dtype(old.obs[name]):
            column[~here] = old.obs[name].to_numpy(np.float64)[~here]
    if old.n_vars == 0:
        table = _with_markers(old, markers)
        mine = True
    else:
        table = old if inplace else old.copy()
        mine = set(markers) <= set(map(str, old.var_names)) and KEY in old.uns
    layers: dict[str, np.ndarray] = {}
    obsm: dict[str, Any] = {}
    if mine:
        columns = table.var_names.get_indexer(markers)
        for name in dict.fromkeys(["mean", *statistics]):
            before = table.X if name == "mean" else table.layers.get(name)
            full = np.full(table.shape, np.nan, np.float32) if before is None else np.array(before, np.float32)
            full[np.ix_(here, columns)] = values[name][here]
            layers[name] = full
    else:
        logger.info(
            "Table %r has other variables than markers measured here; its X stays, the results go to %s.",
            opened.table_key, [f"obsm[{name}_intensity]" for name in statistics],
        )  # fmt: skip
        for name in statistics:
            frame = pd.DataFrame(values[name], index=old.obs_names, columns=markers)
            before = old.obsm.get(f"{name}_intensity")
            if isinstance(before, pd.DataFrame):
                before = with_marker_names(before, f"{name}_intensity", old.uns)
            if isinstance(before, pd.DataFrame) and list(before.columns) == markers:
                frame = frame.where(here[:, None], before)
            obsm[f"{name}_intensity"] = frame
    for name, column in obs.items():
        table.obs[name] = column
    for name, frame in obsm.items():
        table.obsm[name] = with_storable_columns(frame, name, table.uns)
    for name, full in layers.items():
        if name == "mean":
            table.X = full
        else:
            table.layers[name] = full
    table.uns[KEY] = record
    table.obsm["spatial"] = opened.places(table.obsm.get("spatial"))
    if not inplace:
        return table
    if table is not old or opened.table_key not in opened.sdata.tables:
        attach(opened.sdata, opened.table_key, table)
    return None


def _with_markers(old: AnnData, markers: list[str]) -> AnnData:
    """A copy of the same rows with markers for variables; nothing that is about rows is lost."""
    old = old.copy()
    return ad.AnnData(
        X=np.full((old.n_obs, len(markers)), np.nan, np.float32),
        obs=old.obs,
        var=pd.DataFrame(index=pd.Index(markers, dtype=str)),
        uns=dict(old.uns),
        obsm=dict(old.obsm),
        obsp=dict(old.obsp),
    )
