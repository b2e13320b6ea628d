"""TIFF images, masks, centres and cell tables of many fields as one SpatialData object."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale

from cytonym.data.elements import centers_element
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.io._fields import Field, Paths, find_fields
from cytonym.io._tiff import TiffImage, open_tiff, stem

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("cytonym")

ID_COLUMNS = ("cell_id", "instance_id", "cellid", "object_id", "objectnumber", "object", "cell", "id", "label")
TAKEN = ("region", "instance_id", "x", "y")
IMAGE_COLUMNS = ("image", "fov", "field", "sample", "sample_id", "image_id", "roi", "region")


def read_tiffs(
    images: Paths,
    *,
    masks: Paths | None = None,
    centers: Paths | None = None,
    cells: Paths | None = None,
    channels: Sequence[str] | str | Path | None = None,
    pixel_size: float | None = None,
) -> SpatialData:
    """Open TIFF images of one or many fields, with what names their cells, as one SpatialData object.

    Pixels stay on disk and are read block by block when used; `sdata.write("store.zarr")` converts them, which makes
    training faster. A folder is searched for what lies beside its images: masks (`E34_mask.tif`, `E34_cell_mask.tif`, a
    subfolder `masks`), tables (`E34_cells.csv`), centres (`E34_centers.csv`) and a `panel.csv`. The layout of steinbock
    (`img_ome` or `img`, `masks`, `panel.csv`) is understood. Masks found so are used when every image has one, cells
    before nuclei; name them by `masks` to be strict, or list the image files to leave them out.

    Parameters
    ----------
    images
        Folder, file or files: OME-TIFF, multi-page TIFF, [H, W, C] or RGB; 2-D, one image a file.
    masks
        Folder, file or files of label images [H, W] (0 = no cell, one number a cell). A mask belongs to the image whose
        stem its own name holds: `E34_mask.tif` to `E34.ome.tif`.
    centers
        Folder, file or files of CSV tables with columns `x` and `y` in pixels, matched in the same way. Pixel i covers
        [i, i + 1): add 0.5 to centroids that count from the first pixel's centre. An id column is used if there.
    cells
        CSV tables of cells, matched in the same way, or one table for all images with a column (`image`, `fov`,
        `sample`, …) that holds their stems. The id column (`cell_id`, `instance_id`, `label`, …) is joined to the values
        of the mask, the other columns go to `obs`.
    channels
        Names for all images: a list, or a CSV with a column `name` (steinbock: rows with `keep` = 0 are dropped). By
        default the names in the files, then `panel.csv`, then `channel_0`, `channel_1`, ….
    pixel_size
        Micrometres a pixel, for all images. By default that of each file's OME metadata; an image without one stands in
        pixels.

    Returns
    -------
    SpatialData
        For every field `{stem}_image` and, where known, `{stem}_cells` (labels) or `{stem}_centers`, in the coordinate
        system "global" in micrometres (pixels where unknown). With cells, `sdata["table"]` annotates all of them:
        `obs` (`region`, `instance_id`, columns of `cells`) and `obsm["spatial"]`; it has no variables until
        `pp.measure_cells`.

    Raises
    ------
    FileNotFoundError
        A file or folder is missing, or a folder has no TIFF image.
    ValueError
        A file is damaged, a mask or table fits no image, a mask differs in shape from its image or is no label image,
        the number of channel names is wrong, or names repeat.

    Examples
    --------
    >>> import numpy as np, tempfile, tifffile
    >>> import cytonym as cy
    >>> folder = tempfile.mkdtemp()
    >>> mask = np.zeros((40, 40), "uint16")
    >>> mask[5:15, 5:15] = 3
    >>> metadata = {"axes": "CYX", "Channel": {"Name": ["DNA", "CD8"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    >>> tifffile.imwrite(f"{folder}/E34.ome.tif", np.ones((2, 40, 40), "uint16"), metadata=metadata)
    >>> tifffile.imwrite(f"{folder}/E34_mask.tif", mask)
    >>> sdata = cy.io.read_tiffs(folder)
    >>> sdata["table"].obsm["spatial"].tolist()
    [[5.0, 5.0]]
    """
    if masks is not None and centers is not None:
        msg = "`masks` and `centers` both name cells: give one of the two."
        raise ValueError(msg)
    found = find_fields(images, masks, centers, cells)
    names = channels if channels is not None else found.panel
    panel = _read_csv(Path(names)) if isinstance(names, (str, Path)) else names
    elements: dict[str, Any] = {}
    panels = set()
    regions: dict[str, tuple[str, Field]] = {}
    for item in found.fields:
        image = open_tiff(item.image)
        pixels, channel_names = _channels(image, panel, given=channels is not None)
        panels.add(channel_names)
        size = (float(pixel_size),) * 2 if pixel_size is not None else image.pixel_size
        if size is not None and not min(size) > 0:
            msg = f"`pixel_size` must be positive, got {pixel_size}."
            raise ValueError(msg)
        place = {"global": Identity() if size is None else Scale([size[1], size[0]], axes=("x", "y"))}
        labels = None if item.mask is None else _labels(item.mask, image)
        if item.mask is not None and labels is None:
            logger.warning("Mask %r has no cell: field %r is left out.", item.mask.name, item.name)
            continue
        image_key = f"{item.name}_image"
        elements[image_key] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=list(channel_names), transformations=place
        )
        if labels is not None:
            elements[f"{item.name}_cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=dict(place))
            regions[f"{item.name}_cells"] = (image_key, item)
        elif item.centers is not None:
            elements[f"{item.name}_centers"] = _centers(item.centers, place)
            regions[f"{item.name}_centers"] = (image_key, item)
    if not elements:
        msg = f"No mask has a cell: {_some([item.mask.name for item in found.fields if item.mask])}."
        raise ValueError(msg)
    if len(panels) > 1:
        logger.info("The images have %d different panels; channels are matched by name.", len(panels))
    sdata = SpatialData.init_from_elements(elements)
    if regions:
        _add_table(sdata, regions, found.cells)
    elif cells is not None:
        msg = "`cells` needs masks or centres that name the cells, and there are none."
        raise ValueError(msg)
    return sdata


def _channels(image: TiffImage, panel: Any, *, given: bool) -> tuple[da.Array, tuple[str, ...]]:
    """The kept planes and their names."""
    pixels, n = image.pixels, image.pixels.shape[0]
    keep = np.ones(n, bool)
    if isinstance(panel, pd.DataFrame) and (given or image.channels is None):
        names, keep = _from_panel(image, panel)
    elif panel is not None and given:
        names = [str(name) for name in ([panel] if isinstance(panel, str) else panel)]
        if len(names) != n:
            msg = f"{image.path.name!r} has {n} channels, but `channels` names {len(names)}."
            raise ValueError(msg)
    elif image.channels is not None:
        names = list(image.channels)
    else:
        names = ["r", "g", "b", "a"][:n] if image.is_rgb else [f"channel_{i}" for i in range(n)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Channel names of {image.path.name!r} repeat: {twice}. Name every channel once through `channels=`."
        raise ValueError(msg)
    return (pixels if keep.all() else pixels[np.flatnonzero(keep)]), tuple(names)


def _from_panel(image: TiffImage, panel: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names from a panel: by its column `channel` where the file has those names, else by position."""
    panel = panel.rename(columns={c: str(c).strip().lower() for c in panel.columns})
    column = next((c for c in ("name", "marker_name", "marker", "target", "channel") if c in panel), None)
    if column is None:
        msg = f"The panel needs a column 'name'. It has {list(panel.columns)}."
        raise ValueError(msg)
    n = image.pixels.shape[0]
    kept = panel["keep"].fillna(0).astype(float) != 0 if "keep" in panel else pd.Series(data=True, index=panel.index)
    names = panel[column].where(panel[column].notna(), panel.get("channel")).astype(str)
    if "channel" in panel and image.channels and set(image.channels) <= set(panel["channel"].astype(str)):
        rows = panel.assign(_name=names, _keep=kept).drop_duplicates("channel").set_index(panel["channel"].astype(str))
        rows = rows.loc[list(image.channels)]
        return list(rows["_name"][rows["_keep"]]), rows["_keep"].to_numpy()
    if kept.sum() == n:
        return list(names[kept]), np.ones(n, bool)
    if len(panel) == n:
        return list(names[kept]), kept.to_numpy()
    msg = f"{image.path.name!r} has {n} channels, but the panel has {len(panel)} rows, {int(kept.sum())} of them kept."
    raise ValueError(msg)


def _labels(path: Path, image: TiffImage) -> da.Array | None:
    """The mask [H, W], lazy, after one look at all its values; None where it has no cell."""
    pixels = open_tiff(path).pixels
    if pixels.shape[0] != 1:
        msg = f"Mask {path.name!r} has {pixels.shape[0]} channels; a label image has one, with one number a cell."
        raise ValueError(msg)
    if pixels.shape[1:] != image.pixels.shape[1:]:
        msg = (
            f"Mask {path.name!r} is {pixels.shape[1]} x {pixels.shape[2]} pixels, but its image "
            f"{image.path.name!r} is {image.pixels.shape[1]} x {image.pixels.shape[2]}."
        )
        raise ValueError(msg)
    area: dict[int, int] = {}
    for block in pixels.blocks.ravel():
        values, counts = np.unique(block.compute(scheduler="synchronous"), return_counts=True)
        wrong = values[~np.isfinite(values) | (values < 0) | (values != np.round(values))]
        if len(wrong):
            msg = f"Mask {path.name!r} holds values that are no labels, such as {wrong[0]}: whole numbers from 0 on."
            raise ValueError(msg)
        for value, count in zip(values.astype(np.int64).tolist(), counts.tolist(), strict=True):
            area[value] = area.get(value, 0) + count
    labels = pixels[0]
    if labels.dtype.kind not in "iu":
        labels = labels.astype(np.uint32 if max(area) < 2**32 else np.int64)
    area.pop(0, None)
    if not area:
        return None
    if len(area) == 1 and max(area) in {1, 255, 65535}:
        logger.warning(
            "Mask %r has the one label %d. Is it a foreground mask? Cells need numbers.", path.name, max(area)
        )
    return _without_background(labels, area, path)


def _without_background(labels: da.Array, area: dict[int, int], path: Path) -> da.Array:
    """Some tools number the background 1: a label that fills the frame and dwarfs the others is no cell."""
    if len(area) < 3:
        return labels
    largest = max(area, key=lambda value: area[value])
    frame = np.concatenate([np.asarray(edge) for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1])])
    if (
        area[largest] < 0.2 * labels.size
        or area[largest] < 50 * np.median(list(area.values()))
        or (frame == largest).mean() < 0.5
    ):
        return labels
    logger.warning(
        "Mask %r: label %d covers %.0f%% of the image and most of its frame; taken as background.",
        path.name, largest, 100 * area[largest] / labels.size,
    )  # fmt: skip
    return da.where(labels == largest, labels.dtype.type(0), labels)


def _centers(path: Path, place: dict[str, Any]) -> Any:
    table = _read_csv(path)
    lower = {str(c).strip().lower(): c for c in table.columns}
    if not {"x", "y"} <= set(lower):
        msg = f"{path.name!r} needs columns 'x' and 'y'. It has {list(table.columns)}."
        raise ValueError(msg)
    if table.empty:
        msg = f"{path.name!r} has no rows: there is no cell in it."
        raise ValueError(msg)
    columns = table[[lower["x"], lower["y"]]]
    if any(not pd.api.types.is_numeric_dtype(dtype) for dtype in columns.dtypes):
        msg = f"{path.name!r}: columns 'x' and 'y' must be numbers, got {columns.iloc[0].tolist()} in the first row."
        raise ValueError(msg)
    points = columns.to_numpy(np.float64)
    if not np.isfinite(points).all():
        msg = f"{path.name!r}: x or y is missing in row {int(np.flatnonzero(~np.isfinite(points).all(1))[0])}."
        raise ValueError(msg)
    ids, _ = _ids(table, path, required=False)
    return centers_element(points, ids, transformations=dict(place))


def _add_table(sdata: SpatialData, regions: dict[str, tuple[str, Field]], shared: list[Path]) -> None:
    """One table over all regions, with the columns of the cell tables."""
    sources = []
    masked = [key for key in regions if key in sdata.labels]
    if masked:
        sources += resolve(sdata, image_key=[regions[key][0] for key in masked], labels_key=masked)
    centered = [key for key in regions if key in sdata.shapes]
    if centered:
        sources += resolve(sdata, image_key=[regions[key][0] for key in centered], shapes_key=centered)
    opened = open_table(sdata, sources, "table")
    adata = opened.write()
    path: Path | None
    common = _read_csv(shared[0]) if shared else None
    columns: list[pd.DataFrame] = []
    for source, at in zip(sources, opened.rows, strict=True):
        item = regions[source.region][1]
        if common is not None:
            table, path = _part(common, item, shared[0]), shared[0]
        else:
            path = item.cells or item.centers if source.kind == "shapes" else item.cells
            if path is None:
                continue
            table = _read_csv(path)
        ids, column = _ids(table, path, required=item.cells is not None or common is not None)
        inside = pd.Index(source.instance_ids).isin(ids)
        if not inside.any():
            msg = f"No id of {path.name!r} is a cell of {source.region!r}. Ids there: {_some(ids)}."
            raise ValueError(msg)
        if (n := len(table) - inside.sum()) or not inside.all():
            logger.info("%s: %d rows fit no cell, %d cells have no row.", path.name, n, (~inside).sum())
        table = table.drop(columns=[c for c in table if c == column or str(c).lower() in TAKEN])
        part = table.set_axis(ids).reindex(source.instance_ids).set_axis(adata.obs_names[at])
        columns.append(part.rename(columns=lambda c: re.sub(r"[^\w.\-]+", "_", str(c)).strip("_") or "column"))
    if columns:
        every = pd.concat(columns).reindex(adata.obs_names)
        for name in every:
            values = every[name]
            adata.obs[name] = values.astype("category") if values.dtype.kind not in "biuf" else values


def _part(common: pd.DataFrame, item: Field, path: Path) -> pd.DataFrame:
    """Rows of one image in a table of several."""
    column = next((c for c in common if str(c).strip().lower() in IMAGE_COLUMNS), None)
    if column is None:
        msg = f"{path.name!r} is the one table of several images, so it needs a column that names them, one of {IMAGE_COLUMNS}."
        raise ValueError(msg)
    names = common[column].astype(str)
    part = common[names.isin([item.name, item.image.name]) | (names.map(lambda v: stem(Path(v))) == stem(item.image))]
    if part.empty:
        msg = f"{path.name!r} has no row of image {item.name!r} in column {column!r}: {_some(names.unique())}."
        raise ValueError(msg)
    return part.drop(columns=column)


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        msg = f"No file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        msg = f"Cannot read {str(path)!r} as a CSV table: {error}."
        raise ValueError(msg) from error


def _ids(table: pd.DataFrame, path: Path, *, required: bool) -> tuple[np.ndarray, str | None]:
    """Ids of the rows, and the column they stand in; 1, 2, … where there is none and none is needed."""
    lower = {re.sub(r"[ \-]", "_", str(c).strip().lower()): c for c in table.columns}
    for name in ID_COLUMNS:
        if name in lower and pd.api.types.is_integer_dtype(table[lower[name]]):
            ids = table[lower[name]]
            if ids.duplicated().any():
                msg = f"{path.name!r}: ids repeat in column {lower[name]!r}, such as {ids[ids.duplicated()].iloc[0]}."
                raise ValueError(msg)
            return ids.to_numpy(), lower[name]
    if required:
        msg = f"{path.name!r} needs a column of whole numbers that names the cells, one of {ID_COLUMNS}. It has {list(table)}."
        raise ValueError(msg)
    return np.arange(1, len(table) + 1), None


def _some(values: Any, n: int = 8) -> str:
    values = np.asarray(values).tolist()
    return f"{values[:n]}" if len(values) <= n else f"{values[:n]} and {len(values) - n} more"
