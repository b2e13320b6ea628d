"""What the verbs around an encoder share: checks before any work, and the way from cells to rows."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.data.checks import resolve_size
from cytonym.data.chunks import in_memory
from cytonym.data.loader import match_channels
from cytonym.data.patches import Block, CellPatches
from cytonym.data.statistics import channel_statistics
from cytonym.learning.predict import predict, predict_distributed
from cytonym.models.base import CellEncoder
from cytonym.tl._loading import trained

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows

logger = logging.getLogger("cytonym")

BAND_PX = 2048
"""Least length of the piece of an image that one task of a cluster embeds."""


def window_side(sources: Sequence[CellSource], size_px: int | None, size_um: float | None) -> int | None:
    """The side asked for, in pixels and the same in every image; None where none is asked for."""
    if size_px is None and size_um is None:
        return None
    sides = {resolve_size(source, size_px, size_um): source.image_key for source in sources}
    if len(sides) > 1:
        msg = (
            f"`size_um={size_um}` is a different number of pixels in different images: "
            f"{ {image: side for side, image in sides.items()} }. Bring the images to one pixel size, or give `size_px`."
        )
        raise ValueError(msg)
    return next(iter(sides))


def check_cells(sources: Sequence[CellSource], lost: str = "they get NaN") -> int:
    """Number of cells with their centre in their image, at least one in each; a warning counts the others and says what is `lost`."""
    inside = outside = 0
    for source in sources:
        here, n = int(source.inside.sum()), len(source.centers)
        if not here:
            found = f"all {n:,} cells of {source.region!r} lie outside" if n else f"{source.region!r} is empty in"
            msg = f"No cells: {found} image {source.image_key!r}. Check the elements and their transformations."
            raise ValueError(msg)
        inside, outside = inside + here, outside + n - here
    if outside:
        msg = f"{outside:,} of {inside + outside:,} cells have their centre outside their image: {lost}."
        warnings.warn(msg, UserWarning, stacklevel=3)
    return inside


def check_window(sources: Sequence[CellSource], side: int) -> None:
    """A window must fit into every image."""
    for source in sources:
        _, height, width = source.shape
        if side > min(height, width):
            msg = (
                f"A window of {side} px is larger than image {source.image_key!r} of {height} x {width} px. "
                "Give a smaller `size_px`."
            )
            raise ValueError(msg)


def common_pixel_size(sources: Sequence[CellSource]) -> float | None:
    """Pixel size of the images, None where unknown; a warning where they differ by more than a tenth."""
    sizes = {s.image_key: s.pixel_size for s in sources if s.pixel_size is not None}
    if not sizes:
        return None
    if max(sizes.values()) > 1.1 * min(sizes.values()):
        msg = f"The pixel sizes of the images differ: {sizes}. A window of so many pixels holds more tissue in some."
        warnings.warn(msg, UserWarning, stacklevel=4)
    return float(np.median(list(sizes.values())))


def trained_model(model: str | Path | CellEncoder) -> CellEncoder:
    """A model object, or one loaded from a checkpoint."""
    advice = "Give a trained model or the folder of a checkpoint."
    return trained(
        model, CellEncoder, "encoder", advice=advice, makers="`tl.fit_encoder`; `tl.classify_cells` uses classifiers"
    )


def check_size(model: CellEncoder, side: int | None) -> None:
    """A size that is asked for must be the model's, or one that gives it."""
    if side not in (None, model.window_px) and model.sized(model.config, side) != model.config:
        msg = f"The model reads windows of {model.window_px} px, not {side}: leave the size out."
        raise ValueError(msg)


def check_pixel_size(sources: Sequence[CellSource], model: CellEncoder) -> None:
    """A warning where cells appear at another size than the model knows."""
    trained_at = model.provenance.get("pixel_size")
    for source in sources:
        if trained_at and source.pixel_size and not 1 / 1.1 <= source.pixel_size / trained_at <= 1.1:
            msg = (
                f"The model was trained on pixels of {trained_at:.3g}, image {source.image_key!r} has pixels of "
                f"{source.pixel_size:.3g}: cells appear at another size than the model knows. Rescale the image."
            )
            warnings.warn(msg, UserWarning, stacklevel=4)


def fitted_to(sources: Sequence[CellSource], model: CellEncoder) -> CellEncoder:
    """An encoder that serves any panel, with the channels of these images for markers; others as they are."""
    if not model.any_panel:
        return model
    matched = match_channels(sources)
    markers = matched[0].channels
    if set(markers) <= set(model.markers):
        quantiles = np.zeros(len(markers))
    else:
        quantiles = channel_statistics(matched, quantile=0.9, binning=model.binning)["quantile"]
    return model.for_panel(markers, quantiles)


def check_model(sources: Sequence[CellSource], model: CellEncoder, size: int | None) -> list[str]:
    """Window, pixel size and panel of a trained model against the images. Returns the markers that no image has.

    Warns of these, and of those that only some images have.
    """
    check_size(model, size)
    check_window(sources, model.window_px)
    check_pixel_size(sources, model)
    images: dict[str, set[str]] = {marker: set() for marker in model.markers}  # that lack it
    for source in sources:
        lacking = set(model.markers) - set(source.channels)
        if len(lacking) == len(model.markers):
            msg = (
                f"Image {source.image_key!r} has none of the model's markers. Channels: {list(source.channels)}. "
                f"Markers: {list(model.markers)}."
            )
            raise ValueError(msg)
        for marker in lacking:
            images[marker].add(source.image_key)
    every = {source.image_key for source in sources}
    missing = [marker for marker, without in images.items() if without == every]
    some = {marker: sorted(without) for marker, without in images.items() if without and without != every}
    if missing:
        logger.warning("Markers of the model that the images lack, neutral in the result: %s.", missing)
    if some:
        logger.warning("Markers of the model that some images lack, neutral there and without attributions: %s.", some)
    return missing


def encode_cells(
    sources: Sequence[CellSource],
    model: CellEncoder,
    *,
    batch_size: int = 1024,
    device: str = "auto",
    client: Any = None,
) -> list[dict[str, np.ndarray]]:
    """`embedding`, `attributions` and `features` of the cells of each source, NaN for cells outside the image.

    Attributions of markers that an image lacks are NaN, too: a zero would say that the cell has none.
    """
    results = []
    known = set(model.markers)
    batch_size = max(1, batch_size // model.binning**2)  # as many pixels in memory
    for source in sources:
        part = source.of_channels([channel for channel in source.channels if channel in known])  # read no other
        markers = part.channels
        shared: dict[str, Any] = {"n_rows": len(source.instance_ids), "markers": markers, "device": device}
        blocks = CellPatches(part, model.window_px, batch_size=batch_size)
        shared["n_cells"] = len(blocks)
        if client is None:
            results.append(predict(model, blocks, **shared))
        else:
            bare = replace(part, labels=None, areas=None)  # what an encoder does not see need not travel
            tasks = [_Cells(bare.subset(rows), rows, model.window_px, batch_size) for rows in _bands(part)]
            results.append(predict_distributed(model, tasks, client, **shared))
        results[-1]["attributions"][:, [m not in markers for m in model.markers]] = np.nan
    return results


@dataclass(frozen=True)
class _Cells:
    """Windows of some cells, read where this is called. An image in a store travels by its path."""

    source: CellSource
    """These cells and no others."""
    rows: np.ndarray
    """Their rows in the results."""
    size_px: int
    batch_size: int

    def __call__(self) -> Iterator[Block]:
        for block in CellPatches(self.source, self.size_px, batch_size=self.batch_size):
            yield Block(self.rows[block.rows], block.windows)


def _bands(source: CellSource) -> list[np.ndarray]:
    """Rows of the cells inside, of each band of the image along its longer side. Bands end where chunks end."""
    height, width = source.pixels.shape[1:]
    axis = 0 if height >= width else 1
    if in_memory(source.pixels):  # one task: each would carry the whole image along
        length = max(height, width)
    else:
        chunk = source.pixels.chunks[axis + 1]
        length = chunk if isinstance(chunk, int) else chunk[0]
        length *= max(1, BAND_PX // length)
    rows = np.flatnonzero(source.inside)
    band = np.floor(source.centers[rows, axis] / length)
    return [rows[band == b] for b in np.unique(band)]


def by_row(rows: TableRows, results: Sequence[np.ndarray]) -> np.ndarray:
    """Results of the sources' cells at the rows of the table [n_obs, …], NaN where there is none."""
    out = np.full((rows.table.n_obs, *results[0].shape[1:]), np.nan, dtype=results[0].dtype)
    for at, values in zip(rows.rows, results, strict=True):
        found = at >= 0
        out[at[found]] = values[found]
    return out


def marker_table(adata: AnnData, values: np.ndarray, markers: Sequence[str], missing: Sequence[str]) -> pd.DataFrame:
    """A DataFrame for `obsm`: one column a marker that any of the images has."""
    frame = pd.DataFrame(values, index=adata.obs_names, columns=list(markers))
    return frame.drop(columns=list(missing))
