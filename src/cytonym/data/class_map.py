"""From a class map to cells and their scores, by the rules of DeepLIIF (Ghahremani et al. 2022).

A class map is an RGB image: red are positive nuclei, blue negative ones, green their borders. A pixel belongs to a nucleus if
red + blue > `seg_thresh` and green <= 80; to a positive one if red >= blue. What such pixels enclose belongs to them. Cells are
what then hangs together, also across corners. All is counted in whole numbers, and nothing depends on the tiles in which the map
is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cytonym.data.parts import NEGATIVE, POSITIVE, UNKNOWN, PartFinder, Parts
from cytonym.data.stains import summed_density

Resolution = Literal["40x", "20x", "10x"]
RESOLUTIONS = ("40x", "20x", "10x")
MAX_GREEN = 80
DENSITY = "density"
"""Name of the sums of `summed_density`, by which the limits of the optical density go."""
LARGE = {"40x": 16_000, "20x": 4_000, "10x": 1_000}
SIZES = {"40x": (4, 7, 10), "20x": (3, 4, 6), "10x": (2, 2, 3)}
"""Least, usual and largest side [px] of the smallest cell that counts."""
SIZE_STEPS = 500
WORDS = ("large_noise_thresh", "size_thresh", "marker_thresh")
OPTIONAL = (*WORDS, "size_thresh_upper", "od_thresh_lower", "od_thresh_upper")
"""Thresholds that may be None; the first three may be "default", too."""


class NoNucleusError(ValueError):
    """A class map, or all of them, has no nucleus."""


@dataclass(frozen=True)
class CellRules:
    """Which parts of a class map are cells, and which of them are positive. Thresholds are in pixels, areas and intensities."""

    seg_thresh: int = 120
    """A pixel with more red and blue than this belongs to a nucleus."""
    noise_thresh: int = 4
    """Parts of at most so many pixels are no cells, and do not count for the automatic size threshold."""
    large_noise_thresh: int | Literal["default"] | None = None
    """Nor are those of at least so many pixels; "default": 16000, 4000 or 1000 at 40x, 20x or 10x."""
    size_thresh: int | Literal["default"] | None = "default"
    """Cells have more pixels than this; "default": by the gap between small and large parts; None: 0."""
    size_thresh_upper: int | None = None
    """Cells have fewer pixels than this."""
    marker_thresh: int | Literal["default"] | None = None
    """Cells with a higher maximum of the marker are positive; "default": nine tenths of the marker's range."""
    od_thresh_lower: int | None = None
    """Cells with a lower optical density are negative."""
    od_thresh_upper: int | None = None
    """Cells with a higher optical density are negative."""
    resolution: Resolution = "40x"
    """Magnification of the image, which the defaults follow."""

    def __post_init__(self) -> None:
        if self.resolution not in RESOLUTIONS:
            msg = f"`resolution` must be one of {list(RESOLUTIONS)}, got {self.resolution!r}."
            raise ValueError(msg)
        for name in ("seg_thresh", "noise_thresh", *OPTIONAL):
            value = getattr(self, name)
            if isinstance(value, str) and (value != "default" or name not in WORDS):
                words = ", None or 'default'" if name in WORDS else " or None" if name in OPTIONAL else ""
                msg = f"`{name}` must be a number{words}, got {value!r}."
                raise ValueError(msg)
        for name in ("seg_thresh", "noise_thresh", *OPTIONAL):
            value = getattr(self, name)
            if isinstance(value, str) or (value is None and name in OPTIONAL):
                continue
            if not isinstance(value, (int, float, np.number)) or value != value:
                msg = f"`{name}` must be a number, got {value!r}."
                raise ValueError(msg)
            if value < 0 and name != "marker_thresh":
                msg = f"`{name}` must be at least 0, got {value}."
                raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class Cells:
    """Parts of a class map, and which of them are cells."""

    parts: Parts
    candidate: np.ndarray
    """bool [N]: neither noise nor too large."""
    kept: np.ndarray
    """bool [N]: also within the size limits."""
    positive: np.ndarray
    """bool [N], for every part."""
    rules: CellRules
    """With numbers in place of "default"; without a threshold of the marker where there was no marker."""

    @property
    def optical_density(self) -> np.ndarray | None:
        """int64 [N], rounded mean of 100 times the optical density."""
        total = self.parts.sums.get(DENSITY)
        return None if total is None else np.rint(total / self.parts.area).astype(np.int64)

    def score(self) -> dict[str, Any]:
        """Counts and settings, as the published program writes them."""
        rules = self.rules
        used = {
            name: getattr(rules, name) for name in ("seg_thresh", "size_thresh", "size_thresh_upper", "marker_thresh")
        }
        return counts_of(int(self.kept.sum()), int((self.kept & self.positive).sum())) | used


def counts_of(total: int, positive: int) -> dict[str, Any]:
    """Numbers of cells under the names of the published program.

    Examples
    --------
    >>> from cytonym.data.class_map import counts_of
    >>> counts_of(32, 11)
    {'num_total': 32, 'num_pos': 11, 'num_neg': 21, 'percent_pos': 34.4}
    """
    percent = round(positive / total * 100, 1) if positive else 0
    return {"num_total": total, "num_pos": positive, "num_neg": total - positive, "percent_pos": percent}


def pixel_classes(class_map: np.ndarray, seg_thresh: int = 120) -> np.ndarray:
    """Class of each pixel: 0 none, 1 positive, 2 negative.

    Parameters
    ----------
    class_map
        uint8 [3, h, w].
    seg_thresh
        Least sum of red and blue, exclusive.

    Returns
    -------
    uint8 [h, w].
    """
    red, green, blue = class_map
    nucleus = (red.astype(np.int16) + blue > seg_thresh) & (green <= MAX_GREEN)
    return np.where(nucleus, np.where(red >= blue, POSITIVE, NEGATIVE), UNKNOWN).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ decisions
def default_size(area: np.ndarray, resolution: Resolution = "40x") -> int:
    """Least area of a cell: the square of the first gap in the distribution of sides, within what is usual.

    The density of the square roots of the areas, by a Gaussian kernel of 1 pixel, at 500 places; the place before its first
    minimum.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.class_map import default_size
    >>> default_size(np.array([16, 20, 25, 400, 420, 450, 500]))
    49
    """
    if len(area) < 2:
        return 0
    sides = np.sqrt(np.asarray(area, dtype=np.float64))
    at, step = np.linspace(0, sides.max() + 1, SIZE_STEPS, endpoint=False, retstep=True)
    density = np.zeros(SIZE_STEPS)
    for start in range(0, len(sides), 4096):
        density += np.exp(-0.5 * (at[:, None] - sides[start : start + 4096]) ** 2).sum(axis=1)
    curve = (density / (len(sides) * np.sqrt(2 * np.pi))).astype(np.float32)
    lower = np.flatnonzero((curve[1:-1] < curve[:-2]) & (curve[1:-1] < curve[2:])) + 1
    least, usual, most = SIZES[resolution]
    side = (int(lower[0]) - 1 if len(lower) else 0) * step
    side = least if side < least else usual if side > most else side
    return round(side**2)


def default_marker(counts: np.ndarray) -> int:
    """Threshold of a marker image: nine tenths of the way from its 0.1 to its 99.9 percentile, without zeros.

    Parameters
    ----------
    counts
        How often each intensity from 0 on occurs.
    """
    below = np.cumsum(np.asarray(counts)[1:])
    if not len(below) or below[-1] == 0:
        msg = "The marker image is 0 everywhere, so there is no default threshold. Give `marker_thresh` as a number."
        raise ValueError(msg)

    def percentile(q: float) -> int:
        place = q / 100 * (below[-1] - 1)
        low, high = (int(np.searchsorted(below, np.floor(place) + k, side="right")) + 1 for k in (0, 1))
        high = min(high, len(below))
        return round(low + (place - np.floor(place)) * (high - low))

    low, high = percentile(0.1), percentile(99.9)
    return low + round(0.9 * (high - low))


def call_cells(parts: Parts, rules: CellRules, marker_counts: np.ndarray | None = None) -> Cells:
    """Which parts are cells, and which are positive.

    Parameters
    ----------
    parts
        As `PartFinder` gives them.
    rules
        Thresholds.
    marker_counts
        How often each intensity of the marker image occurs; needed for its default threshold.

    Raises
    ------
    ValueError
        The default threshold of the marker is asked for without a marker image, or limits of the optical density without
        an image.
    """
    if (rules.od_thresh_lower, rules.od_thresh_upper) != (None, None) and DENSITY not in parts.sums:
        msg = "`od_thresh_lower` and `od_thresh_upper` need the image that was stained. Give `image_key`."
        raise ValueError(msg)
    if rules.marker_thresh == "default":
        if marker_counts is None or parts.marker is None:
            msg = "`marker_thresh='default'` needs a marker image of whole numbers. Give `marker_key`, or a number."
            raise ValueError(msg)
        rules = replace(rules, marker_thresh=default_marker(marker_counts))
    elif parts.marker is None:
        rules = replace(rules, marker_thresh=None)
    if rules.large_noise_thresh == "default":
        rules = replace(rules, large_noise_thresh=LARGE[rules.resolution])
    area = parts.area
    candidate = area > rules.noise_thresh
    if rules.large_noise_thresh is not None:
        candidate &= area < rules.large_noise_thresh
    least = rules.size_thresh
    rules = replace(
        rules, size_thresh=default_size(area[candidate], rules.resolution) if least == "default" else least or 0
    )
    kept = candidate & (area > rules.size_thresh)
    if rules.size_thresh_upper is not None:
        kept &= area < rules.size_thresh_upper
    cells = Cells(parts, candidate, kept, parts.n_positive >= parts.n_negative, rules)
    positive = cells.positive.copy()
    if rules.marker_thresh is not None and parts.marker is not None:
        positive |= parts.marker > rules.marker_thresh
    density = cells.optical_density
    if density is not None:
        if rules.od_thresh_lower is not None:
            positive &= density >= rules.od_thresh_lower
        if rules.od_thresh_upper is not None:
            positive &= density <= rules.od_thresh_upper
    return replace(cells, positive=positive)


def cells_of_map(
    class_map: np.ndarray,
    rules: CellRules | None = None,
    *,
    marker: np.ndarray | None = None,
    image: np.ndarray | None = None,
) -> tuple[np.ndarray, Cells]:
    """Cells of a class map in memory.

    Parameters
    ----------
    class_map
        uint8 [3, H, W].
    rules
        Thresholds.
    marker
        [H, W], for the largest intensity in each cell.
    image
        The stained image, uint8 [3, H, W], for the optical density.

    Returns
    -------
    Labels of all parts, int32 [H, W], and which of them are cells.

    Examples
    --------
    >>> import numpy as np
    >>> from cytonym.data.class_map import cells_of_map
    >>> image = np.zeros((3, 24, 24), "u1")
    >>> image[0, 2:12, 2:12] = image[2, 14:22, 14:22] = 255
    >>> labels, cells = cells_of_map(image)
    >>> cells.parts.area.tolist(), cells.positive.tolist(), cells.score()["percent_pos"]
    ([100, 64], [True, False], 50.0)
    """
    rules = rules or CellRules()
    finder = PartFinder(class_map.shape[1:])
    sums = {} if image is None else {DENSITY: summed_density(image)}
    ids = finder.add(0, 0, pixel_classes(class_map, rules.seg_thresh), marker, sums)
    lookup, parts = finder.finish()
    whole = marker is not None and marker.dtype.kind == "u"
    counts = np.bincount(marker.ravel()) if whole and marker is not None else None
    return lookup[ids], call_cells(parts, rules, counts)
