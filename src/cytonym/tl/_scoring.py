"""What the verbs around a scorer share: resolution and brightness of the images, and the way from pixels to scores of cells."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from cytonym.data.canvas import Canvas
from cytonym.data.cell_masks import CellMasks
from cytonym.data.statistics import channel_statistics
from cytonym.learning.engine import progress_bar
from cytonym.learning.maps import Mapper, padded, released_map
from cytonym.models.nimbus import Nimbus
from cytonym.tl._loading import trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cytonym.data.canvas import Box
    from cytonym.data.source import CellSource

logger = logging.getLogger("cytonym")

COMPACT = Path(__file__).parents[1] / "models" / "compact"
WINDOW_PX = 768  # side of what goes through the network at once, in its pixels: the same on every machine
RELEASED_TILE_PX = 1024
GROUP_BYTES = 2**24
"""Canvas of the channels that are in memory together; their pixels of the image take several times as much."""
CELL_UM = 9.0  # diameter of a cell, to guess the size of pixels by
DISC_UM = 8.0  # diameter of the disc in place of a mask
PIXEL_SIZES = 2.0 ** np.arange(-3, 3)  # guesses: 0.125 … 4 micrometres
POSSIBLE_UM = (0.02, 20.0)  # pixels in which cells can be seen
ASSUMED_UM = 0.5  # where there are no cells to guess by
GUESS_PX = 1024
PAPER_QUANTILE = 0.9999


class Moments(NamedTuple):
    """Of the pixels of some cells."""

    rows: np.ndarray
    """int64 [n]."""
    mean: np.ndarray
    """Of the probability [n, C]."""
    variance: np.ndarray
    """Of it, over pixels and views [n, C]."""
    pixels: np.ndarray
    """f8 [n]."""


@dataclass(frozen=True, eq=False)
class Field:
    """An image with its cells, ready to be scored."""

    canvas: Canvas
    factors: np.ndarray
    """Brightness of each channel, f8 [C]; 0 where it is dark."""
    pixel_size: float
    how: str
    """Where the pixel size is from."""


def scorer(model: str | Path | Nimbus) -> Nimbus:
    """A scorer object, the one that ships (`"compact"`), or one from a checkpoint.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        It is none of these, or a model of another kind.
    """
    return trained(
        COMPACT if isinstance(model, str) and model == "compact" else model,
        Nimbus,
        "scorer",
        advice="Its published weights are not part of the package: pass `models.Nimbus.from_published()` (downloads them) or "
        "`from_published(path)`, or use model='compact'.",
        shipped="compact",
        makers="`tl.fit_scorer`, `models.Nimbus`",
    )


def fields(
    sources: Sequence[CellSource],
    model: Nimbus,
    *,
    normalization: str | Mapping[str, float] = "released",
    pixel_size: float | None = None,
    diameter_um: float | None = None,
    seed: int = 0,
) -> list[Field]:
    """Images at the scorer's resolution, with the brightness of their channels."""
    if pixel_size is not None and not pixel_size > 0:
        msg = f"`pixel_size` must be positive, got {pixel_size}."
        raise ValueError(msg)
    if diameter_um is not None and not diameter_um > 0:
        msg = f"`diameter_um` must be positive, got {diameter_um}."
        raise ValueError(msg)
    sizes = [_pixel_size(source, pixel_size) for source in sources]
    for source, (size, how) in zip(sources, sizes, strict=True):
        if not POSSIBLE_UM[0] <= size <= POSSIBLE_UM[1]:
            msg = (
                f"Pixels of {size:g} micrometres ({how}) in image {source.image_key!r}: cells are seen in pixels of {POSSIBLE_UM[0]} to "
                f"{POSSIBLE_UM[1]:g}. Give `pixel_size` in micrometres."
            )
            raise ValueError(msg)
        if how in ("guessed", "assumed"):
            by = ", by the size of its cells" if how == "guessed" else ""
            logger.warning(
                "The pixel size of image %r is unknown: %g micrometres are assumed%s. Give `pixel_size`.",
                source.image_key, size, by,
            )  # fmt: skip
    factors = brightness(sources, normalization, model.config.quantile, seed=seed)
    found = []
    for source, (size, how) in zip(sources, sizes, strict=True):
        masks = CellMasks(source, (diameter_um or DISC_UM) / 2 / size)
        canvas = Canvas(source, masks, model.config.pixel_size / size)
        found.append(Field(canvas, np.array([factors[c] for c in source.channels]), size, how))
    return found


def brightness(
    sources: Sequence[CellSource], normalization: str | Mapping[str, float], quantile: float, *, seed: int = 0
) -> dict[str, float]:
    """What each channel is divided by; 0 for a channel without signal.

    Released: the mean over the images that have signal of the quantile of the pixels above zero. Paper: one quantile of all
    images together, 0.9999.
    """
    names = list(dict.fromkeys(c for source in sources for c in source.channels))
    if not isinstance(normalization, str):
        try:
            given = {str(k): float(v) for k, v in dict(normalization).items()}
        except (TypeError, ValueError) as error:
            msg = f"`normalization` must be 'released', 'paper' or factors by channel, got {type(normalization).__name__}."
            raise TypeError(msg) from error
        lacking = [c for c in names if c not in given]
        if lacking:
            msg = f"`normalization` has no factor for {lacking}. It has: {sorted(given)}."
            raise KeyError(msg)
        wrong = {c: given[c] for c in names if not (np.isfinite(given[c]) and given[c] >= 0)}
        if wrong:
            msg = f"`normalization` must hold finite factors of at least 0, got {wrong}."
            raise ValueError(msg)
        return {c: given[c] for c in names}
    if normalization not in ("released", "paper"):
        msg = f"`normalization` must be 'released', 'paper' or factors by channel, got {normalization!r}."
        raise ValueError(msg)
    factors = {}
    images = list({id(source.pixels): source for source in sources}.values())  # whatever the elements of their cells
    if normalization == "paper":
        for name in names:
            having = [s.of_channels([name]) for s in images if name in s.channels]
            factors[name] = float(
                channel_statistics(having, quantile=PAPER_QUANTILE, seed=seed, everywhere=True)["quantile"][0]
            )
        return factors
    found: dict[str, list[float]] = {name: [] for name in names}
    for source in images:
        quantiles = channel_statistics([source], quantile=quantile, seed=seed, everywhere=True)["quantile"]
        for name, value in zip(source.channels, quantiles, strict=True):
            found[name].append(float(value))
    for name, values in found.items():
        lit = [v for v in values if v > 0]
        factors[name] = float(np.mean(lit)) if lit else 0.0
    return factors


def _pixel_size(source: CellSource, given: float | None) -> tuple[float, str]:
    """Micrometres a pixel, and where that is from. A guess makes the median cell about 9 micrometres wide."""
    if given is not None:
        return float(given), "given"
    if source.pixel_size is not None:
        return source.pixel_size, "image"
    centers = source.centers[source.inside]
    if source.labels is not None:
        _, height, width = source.shape
        y, x = np.median(centers, axis=0).astype(int)
        box = [
            max(0, y - GUESS_PX // 2),
            min(height, y + GUESS_PX // 2),
            max(0, x - GUESS_PX // 2),
            min(width, x + GUESS_PX // 2),
        ]
        labels = source.labels.read(*box)
        areas = np.unique(labels[labels > 0], return_counts=True)[1]
        if not len(areas):
            return ASSUMED_UM, "assumed"
        width_px = 2 * np.sqrt(np.median(areas) / np.pi)
    else:
        if len(centers) < 2:
            return ASSUMED_UM, "assumed"
        width_px = float(np.median(cKDTree(centers).query(centers, k=2)[0][:, 1]))
    guess = CELL_UM / max(width_px, 1e-9)
    return float(PIXEL_SIZES[np.argmin(np.abs(np.log(PIXEL_SIZES / guess)))]), "guessed"


def cores(canvas: Canvas, model: Nimbus) -> list[Box]:
    """Boxes that partition the canvas, at multiples of the network's stride."""
    height, width = canvas.shape
    step = max(model.stride, (WINDOW_PX - 2 * model.halo) // model.stride * model.stride)
    return [
        (y, min(y + step, height), x, min(x + step, width))
        for y in range(0, height, step)
        for x in range(0, width, step)
    ]


def map_shape(canvas: Canvas, model: Nimbus, tiles: str) -> tuple[int, int]:
    """Rows and columns of the map of an image. The released program loses up to 15 of those of the canvas where it uses one tile."""
    if tiles == "aligned" or max(canvas.shape) > RELEASED_TILE_PX:
        return canvas.shape
    height, width = (n // model.stride * model.stride for n in canvas.shape)
    if min(height, width) < 2 * model.stride:
        msg = f"Image {canvas.source.image_key!r} is smaller than {2 * model.stride} px at the scorer's resolution: use tiles='aligned'."
        raise ValueError(msg)
    return height, width


def score_field(
    field: Field,
    model: Nimbus,
    *,
    views: Any = None,
    tiles: str = "aligned",
    device: str = "auto",
    client: Any = None,
    keep_map: Callable[[Box, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score and spread of each cell and channel of an image, f4 [N, C]; NaN for cells without pixels.

    Parameters
    ----------
    field
        The image.
    model
        The scorer.
    views
        See `learning.maps.VIEWS`.
    tiles
        `"aligned"`: tiles that give what the whole image at once would. `"released"`: as the released program.
    device, client
        Where to compute.
    keep_map
        Called with each box of the canvas and its probabilities f4 [C, h, w].
    """
    n_cells, n_channels = len(field.canvas.source.instance_ids), len(field.factors)
    shape = (n_cells, n_channels)
    total = Moments(np.arange(n_cells), np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(n_cells))
    height, width = map_shape(field.canvas, model, tiles)
    boxes = cores(field.canvas, model) if tiles == "aligned" else [(0, height, 0, width)]
    work = len(boxes) * n_channels
    with progress_bar(f"scoring {field.canvas.source.image_key}", work, "tile", show=work > 8) as bar:
        if client is None:
            with Mapper(model, views=views, device=device) as mapper:
                for box in boxes:
                    _add(total, _score_box(mapper, field, box, tiles, keep_map))
                    bar.update(n_channels)
        else:
            for found in _distributed(field, model, boxes, views, tiles, device, client):
                _add(total, found)
                bar.update(n_channels)
    np.sqrt(total.variance, out=total.variance)
    for values in (total.mean, total.variance):
        values[total.pixels == 0] = np.nan
    return total.mean, total.variance


def _add(total: Moments, part: Moments) -> None:
    """Pool a part into the total, which may be of half its precision: differences of means lose no digits."""
    before = total.pixels[part.rows]
    total.pixels[part.rows] = before + part.pixels
    share = (part.pixels / (before + part.pixels))[:, None]
    apart = part.mean - total.mean[part.rows]
    total.mean[part.rows] += share * apart
    total.variance[part.rows] += share * (part.variance - total.variance[part.rows] + (1 - share) * apart**2)


def _distributed(
    field: Field, model: Nimbus, boxes: list[Box], views: Any, tiles: str, device: str, client: Any
) -> Iterator[Moments]:
    """Boxes on the workers of a cluster, added in their own order."""
    # with names of their own, else they are lost with those of the call before
    shared, image = client.scatter([model, field], broadcast=True, hash=False)
    futures = [client.submit(_score_task, shared, image, box, views, tiles, device, pure=False) for box in boxes]
    try:
        for future in futures:
            yield future.result()
            future.release()
    finally:
        client.cancel(futures)


def _score_task(model: Nimbus, field: Field, box: Box, views: Any, tiles: str, device: str) -> Moments:
    with Mapper(model, views=views, device=device) as mapper:
        return _score_box(mapper, field, box, tiles, None)


def _score_box(
    mapper: Mapper, field: Field, box: Box, tiles: str, keep_map: Callable[[Box, np.ndarray], None] | None
) -> Moments:
    """Moments over the cells' pixels that show a box; the labels are read once for all channels."""
    canvas, n_channels = field.canvas, len(field.factors)
    height, width = box[1] - box[0], box[3] - box[2]
    member, rows, pixels = _members(canvas if tiles == "aligned" else canvas.resized(height, width), box)
    shape = (len(rows), n_channels)
    result = Moments(rows, np.zeros(shape), np.zeros(shape), pixels)
    if not len(rows) and keep_map is None:
        return result
    window, size = (
        _window(canvas, box, mapper.model) if tiles == "aligned" else ((0, canvas.shape[0], 0, canvas.shape[1]), None)
    )
    interior = canvas.interior(window)
    probabilities = None if keep_map is None else np.zeros((n_channels, height, width), np.float32)
    lit = np.flatnonzero(field.factors > 0)
    per_group = max(1, GROUP_BYTES // max(1, 4 * interior.size))
    for start in range(0, len(lit), per_group):
        group = lit[start : start + per_group]
        markers = canvas.markers(window, group, field.factors[group])
        if size is None:
            mean, variance = released_map(mapper, markers, interior, tile_px=RELEASED_TILE_PX)
        else:
            inner = (
                slice(None),
                slice(box[0] - window[0], box[1] - window[0]),
                slice(box[2] - window[2], box[3] - window[2]),
            )
            mean, variance = (found[inner] for found in mapper(padded(markers, *size), padded(interior, *size)))
        flat = mean.reshape(len(group), -1).T.astype(np.float64)
        result.mean[:, group] = member @ flat
        second = member @ (flat**2 + variance.reshape(len(group), -1).T)
        result.variance[:, group] = np.maximum(second - result.mean[:, group] ** 2, 0)
        if probabilities is not None:
            probabilities[group] = mean
    if keep_map is not None and probabilities is not None:
        keep_map(box, probabilities)
    return result


def _members(canvas: Canvas, box: Box) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
    """Weight of each pixel of a box in the mean of each cell [n, h w], the cells' rows [n] and their pixels of the image [n]."""
    width = box[3] - box[2]
    parts = []
    for strip in canvas.strips(box):
        cells, at, along = canvas.cells(strip)
        place, rows = pd.factorize(cells)
        shown = csr_matrix(
            (np.ones(len(place), np.float32), (place, at * width + along)),
            shape=(len(rows), (strip[1] - strip[0]) * width),
        ).tocoo()
        parts.append((rows[shown.row], shown.col + np.int64(strip[0] - box[0]) * width, shown.data))
    cells, at, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    place, rows = pd.factorize(cells, sort=True)
    pixels = np.bincount(place, count, len(rows))
    return csr_matrix((count / pixels[place], (place, at)), shape=(len(rows), (box[1] - box[0]) * width)), rows, pixels


def _window(canvas: Canvas, box: Box, model: Nimbus) -> tuple[Box, tuple[int, int]]:
    """What the network must see for a box: pixels of the canvas, and the size after mirroring at the image's end."""
    found: list[int] = []
    sizes: list[int] = []
    for (start, stop), length in zip((box[:2], box[2:]), canvas.shape, strict=True):
        whole = max(-(-length // model.stride), 2) * model.stride
        first, last = max(0, start - model.halo), min(whole, -(-stop // model.stride) * model.stride + model.halo)
        found += [first, min(last, length)]
        sizes.append(last - first)
    return (found[0], found[1], found[2], found[3]), (sizes[0], sizes[1])
