"""TIFF images, masks, centres and cell tables of many fields as one SpatialData object."""

from __future__ import annotations

import logging
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
from cytonym.io._csv_tables import Panel, cells_of, obs_columns, panel_channels, read_centers, read_panel, read_shared
from cytonym.io._fields import Field, Paths, find_fields, some
from cytonym.io._tiff import TiffImage, open_tiff

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger("cytonym")


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
        [i, i + 1): add 0.5 to centroids that count from the first pixel's centre. An id column is used if there, and the
        other columns go to `obs`.
    cells
        CSV tables of cells, matched in the same way, or one table for all images with a column (`image`, `fov`,
        `sample`, …) that holds their stems. The id column (`cell_id`, `instance_id`, `label`, …, the first of them that
        is there) is joined to the values of the mask. The other columns but `x` and `y` go to `obs`: text as categories,
        whole numbers as integers, under names that a store takes and that are free (`CD4+` beside `CD4` is `CD4_2`).
    channels
        Names for all images: a list, or a CSV with a column `name` (steinbock: rows with `keep` = 0 are dropped). Its
        rows go by a column `channel` that holds the names in the files, else by position. By default the names in the
        files, then `panel.csv`, then `channel_0`, `channel_1`, ….
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
        ids are no whole numbers, are missing or repeat, a panel fits no image, the number of channel names is wrong, or
        names repeat.

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
    panel = read_panel(Path(names)) if isinstance(names, (str, Path)) else names
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
            points, ids = read_centers(item.centers)
            elements[f"{item.name}_centers"] = centers_element(points, ids, transformations=dict(place))
            regions[f"{item.name}_centers"] = (image_key, item)
    if not elements:
        msg = f"No mask has a cell: {some([item.mask.name for item in found.fields if item.mask])}."
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
    if isinstance(panel, Panel) and (given or image.channels is None):
        names, keep = panel_channels(panel, image)
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
    common = read_shared(shared[0]) if shared else None
    parts: list[pd.DataFrame] = []
    for source, at in zip(sources, opened.rows, strict=True):
        cells = cells_of(regions[source.region][1], centers=source.kind == "shapes", shared=common)
        if cells is None:
            continue
        inside = pd.Index(source.instance_ids).isin(cells.ids)
        if not inside.any():
            msg = f"No id of {cells.path.name!r} is a cell of {source.region!r}. Ids there: {some(cells.ids)}."
            raise ValueError(msg)
        if (n := len(cells.ids) - inside.sum()) or not inside.all():
            logger.info("%s: %d rows fit no cell, %d cells have no row.", cells.path.name, n, (~inside).sum())
        part = cells.table.set_axis(cells.ids).reindex(source.instance_ids)
        parts.append(part.set_axis(adata.obs_names[at]))
    if parts:
        columns = obs_columns(parts, adata.obs_names, taken=adata.obs.columns)
        adata.obs[list(columns)] = columns
