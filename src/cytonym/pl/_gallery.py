"""What galleries of cells share: windows, colours, contrast, outlines and the scale bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from cytonym.data.patches import CellPatches, window_origin
from cytonym.pl._style import GLOW, nice_length

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cytonym.data.source import CellSource
    from cytonym.data.table import TableRows

BEYOND = 0.87  # grey of what lies beyond the image


def colors_of(markers: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Channel -> colour."""
    if isinstance(markers, Mapping):
        return dict(markers)
    names = [markers] if isinstance(markers, str) else list(dict.fromkeys(markers))
    if not names or len(names) > len(GLOW):
        msg = f"{len(names)} markers: choose between 1 and {len(GLOW)}, more colours cannot be told apart."
        raise ValueError(msg)
    return dict(zip(names, ["#FFFFFF"] if len(names) == 1 else GLOW, strict=False))


def places(rows: TableRows, sources: Sequence[CellSource]) -> np.ndarray:
    """Source and cell of each row of the table [n_obs, 2]; -1 for those with no place in the images."""
    place = np.full((rows.table.n_obs, 2), -1)
    for i, (source, at) in enumerate(zip(sources, rows.rows, strict=True)):
        inside = source.inside & (at >= 0)
        place[at[inside]] = np.column_stack([np.full(inside.sum(), i), np.flatnonzero(inside)])
    return place


def read_windows(
    sources: Sequence[CellSource], place: np.ndarray, side: int
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Windows [n, C, S, S] float32, NaN beyond the image, and the outlines of the cells as lines of (x, y)."""
    from skimage.measure import find_contours

    windows = np.zeros((len(place), len(sources[0].channels), side, side), dtype=np.float32)
    outlines: list[list[np.ndarray]] = [[] for _ in place]
    for i, source in enumerate(sources):
        mine = np.flatnonzero(place[:, 0] == i)
        if not len(mine):
            continue
        part = source.subset(place[mine, 1])
        order = [source.channels.index(c) for c in sources[0].channels]
        for block in CellPatches(part, side, edge="constant"):
            windows[mine[block.rows]] = block.windows[:, order]
        height, width = part.shape[1:]
        for at, instance, (y, x) in zip(mine, part.instance_ids, window_origin(part.centers, side), strict=True):
            y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + side, height), min(x + side, width)
            beyond = np.ones((side, side), dtype=bool)
            beyond[y0 - y : y1 - y, x0 - x : x1 - x] = False
            windows[at][:, beyond] = np.nan
            if part.labels is None:
                continue
            mask = np.zeros((side + 2, side + 2), dtype=bool)  # a rim of background closes the line
            mask[y0 - y + 1 : y1 - y + 1, x0 - x + 1 : x1 - x + 1] = part.labels.read(y0, y1, x0, x1) == instance
            outlines[at] = [np.clip(line[:, ::-1] - 0.5, 0, side) for line in find_contours(mask.astype(float), 0.5)]
    return windows, outlines


def contrast(
    windows: np.ndarray, names: Sequence[str], limits: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Intensities shown black and at full colour, of each channel [n, C, S, S] over all windows where not given."""
    unknown = sorted(set(limits) - set(names))
    if unknown:
        msg = f"`limits` names {unknown}, which are not among the markers shown: {list(names)}."
        raise KeyError(msg)
    found = {}
    for c, name in enumerate(names):
        pixels = windows[:, c]
        low, high = limits.get(name, (float(np.nanquantile(pixels, 0.01)), float(np.nanquantile(pixels, 0.997))))
        if name in limits and not high > low:
            msg = f"`limits` are intensities shown black and at full colour, the first below the second, got {limits[name]} for {name!r}."
            raise ValueError(msg)
        if high <= low:  # sparse counts
            high = max(float(np.nanmax(pixels)), low + 1)
        found[name] = (low, high)
    return found


def blend(windows: np.ndarray, colors: Mapping[str, str], limits: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """Channels [n, C, S, S] in their colours, added up: [n, S, S, 3] in 0…1."""
    image = np.zeros((*windows[:, 0].shape, 3), dtype=np.float32)
    for c, (name, color) in enumerate(colors.items()):
        low, high = limits[name]
        share = np.clip((windows[:, c] - low) / (high - low), 0, 1)
        image += share[..., None] * np.asarray(to_rgb(color), dtype=np.float32)
    return np.where(np.isnan(image), BEYOND, np.clip(image, 0, 1))


def color_handles(colors: Mapping[str, str]) -> list[Patch]:
    """Entries of a legend."""
    return [Patch(facecolor=color, edgecolor="#333333", linewidth=0.5, label=name) for name, color in colors.items()]


def draw_scale_bar(ax: Axes, sources: Sequence[CellSource], side: int, canvas: tuple[int, ...]) -> None:
    """Below the last row, as wide as about half a patch."""
    sizes = {s.pixel_size for s in sources}
    size = sizes.pop() if len(sizes) == 1 else None
    length = nice_length(0.6 * side * (size or 1.0))
    width = length / (size or 1.0)
    y = canvas[0] + 0.1 * side
    ax.plot([canvas[1] - width, canvas[1]], [y, y], color="black", linewidth=2, solid_capstyle="butt", clip_on=False)
    text = f"{length:g} " + ("px" if size is None else "\N{MICRO SIGN}m")
    ax.text(canvas[1] - width - 0.08 * side, y, text, ha="right", va="center", fontsize=7)
    ax.set(xlim=(0, canvas[1]), ylim=(canvas[0] + 0.25 * side, 0))
