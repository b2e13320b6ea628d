"""Ranking of images, or of patients, by the contrast of their markers: which to annotate first."""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from cytonym.data.checks import require_key
from cytonym.data.nuclear import is_nuclear
from cytonym.data.pairing import pair_up
from cytonym.data.source import image_sources
from cytonym.data.tiles import iter_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

BACKGROUND = re.compile(r"(?<![a-z])background(?![a-z])|auto[ _-]?fluo|^af[ _-]?\d*$|^(blank|empty)(?![a-z])")
"""In lower case. `AF488` alone is a channel without an antibody, `CD8-AF488` an antibody with a dye."""


def rank_images(
    data: SpatialData | Sequence[SpatialData],
    *,
    markers: str | Sequence[str] | None = None,
    background: str | Sequence[str] | None = None,
    groups: str | Mapping[str, Hashable] | Callable[[str], Hashable] | None = None,
    pooled: bool = False,
    top_fraction: float = 0.001,
    image_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
) -> pd.DataFrame:
    """Rank images, or patients, by the contrast of their markers, to choose those that are worth annotating.

    CLEAR-IT's quality ranking. A marker that worked has some pixels that are much brighter than others, so the standard
    deviation of its brightest pixels is high; the background channel should vary little. Each channel gives each patient
    a rank, and the ranks are added up. In the paper the score went with how well a classifier did that saw this patient
    only (r = 0.49 and 0.9 in two data sets). No cells are needed. Images are read block by block.

    Parameters
    ----------
    data
        Images: one object or a list of them.
    markers
        Channels whose brightest pixels should vary. Default: all that all images share, without nuclear stains and
        background, going by their names. In the paper CD3, CD8, CD20, CD56 and CD68. The choice is logged.
    background
        Channel, or channels, whose pixels should not vary. Default: the first one whose name says background,
        autofluorescence, AF, blank or empty, if there is any; `[]` for none.
    groups
        Patient of each image: a dict from the image's key, a function of it such as `lambda key: key.split("_")[0]`,
        or a column of the table's `obs` that has one value in all cells of an image. Default: each image on its own.
    pooled
        Take the brightest pixels of all images of a patient together, as the paper's text says. By default each image has
        its own, and the patient the median over the images, as the published program does. Without `groups` it is the same.
    top_fraction
        Share of the pixels that counts as brightest, rounded down to whole pixels; 0.001 in the paper. Without at least
        two such pixels the standard deviation is 0.
    image_key
        Image, or images, of `sdata.images`; all by default.
    table_key
        Table with the column `groups`.
    coordinate_system
        Coordinate system of the images.
    scale
        Level of a multi-scale image; the full resolution by default.

    Returns
    -------
    DataFrame
        One row an image or patient, the best first; nothing is written to `data`. `rank` is 1 for the best, ties get the
        lower number. `score` is the sum of the channels' ranks divided by the largest such sum, so the best has 1.
        `n_images` counts the patient's images. `rank_{channel}` runs from 1, the worst, to the number of rows, the
        best, ties get the lower number. `std_{channel}` is the standard deviation (population, 7 digits): of the brightest
        pixels of a marker, of all pixels of the background.

    Raises
    ------
    KeyError
        An image lacks a channel that was asked for, or an image, table, column or level is unknown, or `groups` lacks an image.
    ValueError
        NaN or infinite pixels, no marker, a channel named twice, `top_fraction` not within 0 … 1, images of the same name,
        or an image of several patients or of none.
    TypeError
        `data` is something else.

    Examples
    --------
    >>> import numpy as np
    >>> import cytonym as cy
    >>> rng = np.random.default_rng(0)
    >>> images = {"P1": rng.poisson(2, (2, 64, 64)), "P2": rng.poisson(9, (2, 64, 64))}
    >>> data = [cy.io.from_arrays(x, channels=["DNA", "CD8"], name=name) for name, x in images.items()]
    >>> cy.pp.rank_images(data)["score"].to_dict()
    {'P2_image': 1.0, 'P1_image': 0.5}
    """
    samples = [data] if isinstance(data, SpatialData) else list(data)
    if not samples or not all(isinstance(sdata, SpatialData) for sdata in samples):
        kinds = [type(sdata).__name__ for sdata in samples]
        msg = f"`data` must be a SpatialData object or a list with at least one of them, got {kinds}."
        raise TypeError(msg)
    if not 0 < top_fraction <= 1:
        msg = f"`top_fraction` must be above 0 and at most 1, got {top_fraction}."
        raise ValueError(msg)
    where: Any = {"image_key": image_key, "coordinate_system": coordinate_system}
    of_sample = [image_sources(sdata, scale=scale, **where) for sdata in samples]
    sources = [source for found in of_sample for source in found]
    bright, dark = _channels(sources, _listed(markers), _listed(background))
    if isinstance(groups, str):
        patients = [
            patient
            for sdata, found in zip(samples, of_sample, strict=True)
            for patient in _by_column(sdata, found, groups, table_key, where)
        ]
    else:
        patients = _by_name([source.image_key for source in sources], groups)
    logger.info("Images are ranked by markers %s; background: %s.", bright, dark or "none")

    names = list(dict.fromkeys(patients))
    index = pd.Index(names, name="image" if groups is None else "patient", tupleize_cols=False)
    images = [[s for s, of in zip(sources, patients, strict=True) if of == patient] for patient in names]
    units = [[group] if pooled else [[source] for source in group] for group in images]
    if bright:
        _warn_of_small_images([unit for group in units for unit in group], top_fraction)
    std = np.array([np.median([_std(u, bright, dark, top_fraction) for u in group], axis=0) for group in units])
    return _ranked(pd.DataFrame(std, index, [*bright, *dark]), dark, [len(group) for group in images])


def _ranked(std: pd.DataFrame, dark: Sequence[str], n_images: Sequence[int]) -> pd.DataFrame:
    """Ranks of every channel and of their sum; the best row first."""
    ranks = pd.DataFrame({name: std[name].rank(method="min", ascending=name not in dark) for name in std}).astype(int)
    total = ranks.sum(axis=1)
    table = pd.DataFrame(
        {
            "rank": total.rank(method="min", ascending=False).astype(int),
            "score": total / total.max(),
            "n_images": n_images,
        }
    )
    table = pd.concat([table, ranks.add_prefix("rank_"), std.add_prefix("std_")], axis=1)
    return table.sort_values("rank", kind="stable")


# -------------------------------------------------------------------------------------------------- channels and patients
def _listed(names: str | Sequence[str] | None) -> list[str] | None:
    return None if names is None else [names] if isinstance(names, str) else list(names)


def _channels(
    sources: Sequence[CellSource], markers: list[str] | None, background: list[str] | None
) -> tuple[list[str], list[str]]:
    """Names of the markers and of the background channels, those not given by their names."""
    named = [*(markers or []), *(background or [])]
    for source in sources:
        lacking = [name for name in named if name not in source.channels]
        if lacking:
            msg = f"No channel {lacking} in image {source.image_key!r}. Available: {list(source.channels)}."
            raise KeyError(msg)
    if len(set(named)) < len(named):
        msg = f"`markers` and `background` name a channel twice: {named}."
        raise ValueError(msg)
    every = dict.fromkeys(name for source in sources for name in source.channels)
    shared = [name for name in every if all(name in source.channels for source in sources)]
    if markers is None and len(shared) < len(every):
        logger.info("Channels that some images lack, left out: %s.", [name for name in every if name not in shared])
    dim = [name for name in shared if BACKGROUND.search(name.lower()) and name not in named]
    if background is None:
        background = dim[:1]
    if markers is None:
        markers = [name for name in shared if not is_nuclear(name) and name not in (*dim, *background)]
    if not markers and not background:
        msg = (
            "No marker to rank the images by: no channel that all images share is neither nuclear nor background by its "
            f"name. Give `markers`. Shared by all: {shared}."
        )
        raise ValueError(msg)
    return markers, background


def _by_name(images: list[str], groups: Mapping[str, Hashable] | Callable[[str], Hashable] | None) -> list[Hashable]:
    """Patient of each image, by the image's name; the name itself where nothing is said."""
    twice = sorted({name for name in images if images.count(name) > 1})
    if twice:
        msg = (
            f"Images have the same name: {twice}. Give each its own, or name their patients by a column of the tables: "
            "`groups='patient'`."
        )
        raise ValueError(msg)
    if groups is None:
        return list(images)
    if callable(groups):
        patients = [groups(name) for name in images]
    else:
        lacking = [name for name in images if name not in groups]
        if lacking:
            msg = f"`groups` has no patient for images {lacking}. It has: {list(groups)}."
            raise KeyError(msg)
        patients = [groups[name] for name in images]
    nobody = [name for name, patient in zip(images, patients, strict=True) if patient is None or patient != patient]
    if nobody:
        msg = f"`groups` says None or NaN for images {nobody}. Name their patients, or leave them out by `image_key`."
        raise ValueError(msg)
    return patients


def _by_column(
    sdata: SpatialData, sources: Sequence[CellSource], column: str, table_key: str, where: dict[str, Any]
) -> list[Hashable]:
    """Patient of each image, by a column of the table that annotates its cells."""
    require_key(table_key, sdata.tables, "table", "sdata.tables")
    table = sdata.tables[table_key]
    if column not in table.obs:
        msg = f"No column {column!r} in `sdata[{table_key!r}].obs`. Available: {sorted(map(str, table.obs.columns))}."
        raise KeyError(msg)
    region_key = table.uns.get("spatialdata_attrs", {}).get("region_key")
    if region_key is None:
        msg = f"Table {table_key!r} annotates no elements, so its column {column!r} says nothing about images."
        raise ValueError(msg)
    values = table.obs[column].groupby(table.obs[region_key].astype(str)).unique()
    pairs = pair_up(sdata, where["image_key"], {}, table_key, where["coordinate_system"])
    patients = []
    for source in sources:
        regions = [cells for image, _, cells in pairs if image == source.image_key and cells in values.index]
        found = list(dict.fromkeys(value for region in regions for value in values[region] if not pd.isna(value)))
        if len(found) != 1:
            what = f"several values: {found[:5]}" if found else "no value"
            msg = (
                f"Column {column!r} of table {table_key!r} has {what} in the cells of image {source.image_key!r}; "
                "one patient an image is needed. Or give `groups` as a dict from image to patient."
            )
            raise ValueError(msg)
        patients += found
    return patients


# ------------------------------------------------------------------------------------------------- standard deviations
def _n_pixels(sources: Sequence[CellSource]) -> int:
    return sum(math.prod(source.shape[1:]) for source in sources)


def _warn_of_small_images(units: Sequence[Sequence[CellSource]], top_fraction: float) -> None:
    small = [source.image_key for unit in units if top_fraction * _n_pixels(unit) < 2 for source in unit]
    if small:
        logger.warning(
            "Too small for two pixels in the brightest %g %%, so the standard deviation of each marker is 0: %s. "
            "A larger `top_fraction` helps.", 100 * top_fraction, small,
        )  # fmt: skip


def _std(sources: Sequence[CellSource], markers: Sequence[str], dark: Sequence[str], top_fraction: float) -> np.ndarray:
    """Standard deviations [C] over all these images: of the brightest pixels of the markers, of all of the background."""
    names = [*markers, *dark]
    n = _n_pixels(sources)
    k = math.floor(top_fraction * n)
    brightness = [_Brightest(k) if name in markers and k < n else _All() for name in names]
    for source in sources:
        index = source.channel_index[[source.channels.index(name) for name in names]]
        for tile in iter_tiles(source.pixels, index):
            for name, layer, kept in zip(names, tile.pixels, brightness, strict=True):
                if layer.dtype.kind == "f" and not np.isfinite(layer).all():
                    msg = (
                        f"Channel {name!r} of image {source.image_key!r} has NaN or infinite pixels. "
                        "Replace them, for instance with `numpy.nan_to_num`."
                    )
                    raise ValueError(msg)
                kept.add(layer.ravel())
    # Digits beyond float32's are noise of the summation: they must not decide between equal images.
    return np.array([float(f"{kept.std():.7g}") for kept in brightness])


class _Brightest:
    """The k largest of all values, seen piece by piece."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.values = np.empty(0, dtype=bool)  # a dtype that every other one replaces

    def add(self, values: np.ndarray) -> None:
        if not self.k:
            return
        if len(self.values) == self.k:  # one equal to the least would only take its place
            values = values[values > self.values[0]]
        found = np.concatenate([self.values, values])
        extra = max(0, len(found) - self.k)
        self.values = np.partition(found, extra)[extra:].copy()  # the least of them first

    def std(self) -> float:
        if not self.k:
            return 0.0
        values = np.sort(self.values).astype(np.float64)  # in one order, whichever came first
        return float((values - values[0]).std())  # exactly 0 where all are the same


class _All:
    """Sums over all values, seen piece by piece."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.first: float | None = None

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        if self.first is None:
            self.first = float(values[0])
        shifted = values.astype(np.float64) - self.first  # exactly 0 where all are the same
        n, mean = len(shifted), float(shifted.mean())
        step = mean - self.mean
        self.squares += float(np.square(shifted - mean).sum()) + step**2 * self.n * n / (self.n + n)
        self.n += n
        self.mean += step * n / self.n

    def std(self) -> float:
        return math.sqrt(self.squares / self.n)
