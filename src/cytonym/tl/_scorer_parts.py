"""Which squares of the images a scorer is trained on, and which are held out to choose its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cytonym.data.scoring_tiles import NEGATIVE, POSITIVE, UNDEFINED, ScoringTiles, plots_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from cytonym.data.canvas import Box
    from cytonym.data.scoring_tiles import Plot
    from cytonym.tl._scoring import Field

    Part = list[Box]  # of each element, the box of its canvas

logger = logging.getLogger("cytonym")

PLOT_BYTES = 2**30  # of all plots in memory
JUDGED_PX = 2**24  # of all tiles that choose the weights: they are looked at again and again
MANY = 5  # images, of which some can be held out whole
HELD_OUT = 0.2
DRAWS = 20  # of the images to hold out
NOTHING = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Labelled:
    """An element with cells, and what is known about them."""

    field: Field
    activity: np.ndarray
    """int8 [cells, C]."""
    keys: np.ndarray
    """int [C]: number of (data set, marker) of each channel, -1 for those without labels to learn from."""
    image: int
    """Number of its image. Several elements may lie in one."""

    @property
    def whole(self) -> Box:
        """Its canvas."""
        height, width = self.field.canvas.shape
        return 0, height, 0, width

    @property
    def places(self) -> np.ndarray:
        """Centres of the cells as shares of the height and width of the image, f8 [cells, 2]."""
        source = self.field.canvas.source
        return source.centers / source.shape[1:]


def parts(found: Sequence[Labelled], markers: Sequence[str], seed: int) -> tuple[list[Plot], list[Plot]]:
    """Squares to train on and to judge by.

    A fifth is held out: some of many images, or the last rows of each of a few. Where a marker would be trained on cells of one kind
    only, or none could be judged, images are parted by where labelled cells are. Markers are judged that have both kinds in both
    parts. A marker without both kinds in the training part even so is trained on all its labels, and so is every one if none can be
    judged.

    Parameters
    ----------
    found
        All elements.
    markers
        Of each key.
    seed
        Of the draw of images, and of squares where not all fit into memory.

    Raises
    ------
    ValueError
        No marker has labels of both kinds in what fits into memory.
    """
    per_pixel = [2.0 * (one.keys >= 0).sum() + 5 for one in found]  # beside the pixels the cells' rows and interior
    needed = sum(n * np.prod(one.field.canvas.shape) for n, one in zip(per_pixel, found, strict=True))
    trained: list[Plot] = []
    judged: list[Plot] = []
    ways, fair, fit_to_judge = _parted(found, markers, seed)
    for plots, boxes in zip((trained, judged), ways, strict=True):
        for i, (one, box) in enumerate(zip(found, boxes, strict=True)):
            others = [o.field.canvas.masks for o in found if o.image == one.image and o is not one]
            plots += plots_of(
                one.field.canvas, one.field.factors, one.activity, one.keys,
                box=box, others=others, share=min(1.0, PLOT_BYTES / needed), seed=seed + i,
            )  # fmt: skip
    fair &= both_kinds(_known(trained), markers)
    fit_to_judge &= fair & both_kinds(_known(judged), markers)
    fair = fair if fit_to_judge else set()
    if fair < set(markers):
        logger.info("Markers whose labels are too few to hold some out: %s.", sorted(set(markers) - fair))
    trained += _only(judged, set(markers) - fair, markers)
    kept = both_kinds(_known(trained), markers)
    judged = _only(judged, fit_to_judge, markers)
    if not kept:
        msg = "No marker has both positive and negative cells in the pieces of the images that fit into memory. Train on fewer markers or images."
        raise ValueError(msg)
    if kept < set(markers):
        logger.warning(
            "Markers with labels of one kind only in the pieces of the images that fit into memory, left out: %s.",
            sorted(set(markers) - kept),
        )
    if not judged:
        logger.warning(
            "The labels are too few to hold some of both kinds out: the weights at the end are kept, without a look at what they are worth."
        )
    return _only(trained, kept, markers), judged


def judged_tiles(plots: Sequence[Plot], tile_px: int, seed: int) -> list[torch.Tensor]:
    """Tiles with labelled cells; some of them, drawn at random, where there are very many."""
    if not plots:
        return []
    rng = np.random.default_rng([seed, 8])
    most = max(1, JUDGED_PX // tile_px**2)
    kept: list[torch.Tensor] = []
    for i, tile in enumerate(filter(_any_label, ScoringTiles(plots, tile_px, 1, 1).all_tiles())):
        if i < most:
            kept.append(tile)
        elif (place := int(rng.integers(i + 1))) < most:
            kept[place] = tile
    return kept


def both_kinds(known: Iterable[tuple[np.ndarray, np.ndarray]], markers: Sequence[str]) -> set[str]:
    """Markers with positive and negative cells among some activities [cells, C] and the keys of their channels [C]."""
    seen: dict[str, set[int]] = {}
    for activity, keys in known:
        for c in np.flatnonzero(keys >= 0):
            seen.setdefault(markers[keys[c]], set()).update(np.unique(activity[:, c]).tolist())
    return {marker for marker, kinds in seen.items() if {NEGATIVE, POSITIVE} <= kinds}


def _parted(
    found: Sequence[Labelled], markers: Sequence[str], seed: int
) -> tuple[tuple[Part, Part], set[str], set[str]]:
    """How to part the images; markers with both kinds in what is trained on, and those of them that can be judged.

    It is the usual way, if no marker loses a kind by it and some can be judged; else the way by which most can be judged.
    """
    best = None
    for ways in _ways(found, seed):
        fair, held = (both_kinds(_inside(found, boxes), markers) for boxes in ways)
        usual = best is None
        if best is None or len(fair & held) > len(best[2]):
            best = ways, fair, fair & held
        if usual and fair == set(markers) and fair & held:
            break
    assert best is not None
    return best


def _ways(found: Sequence[Labelled], seed: int) -> Iterator[tuple[Part, Part]]:
    """Ways to part the images, the usual one first; then by where the labelled cells of each image are."""
    images = sorted({one.image for one in found})
    if len(images) >= MANY:
        rng = np.random.default_rng([seed, 7])
        for _ in range(DRAWS):
            out = rng.permutation(len(images))[: round(HELD_OUT * len(images))]
            held = [one.image in out for one in found]
            yield (
                [NOTHING if o else one.whole for o, one in zip(held, found, strict=True)],
                [one.whole if o else NOTHING for o, one in zip(held, found, strict=True)],
            )
        return
    yield _cut(found, dict.fromkeys(images, 1 - HELD_OUT), axis=0, last=True)
    labelled = {
        image: np.concatenate([_labelled_places(one) for one in found if one.image == image]) for image in images
    }
    for axis in (0, 1):
        for last in (True, False):
            share = 1 - HELD_OUT if last else HELD_OUT
            at = {i: float(np.quantile(p[:, axis], share)) if len(p) else share for i, p in labelled.items()}
            yield _cut(found, at, axis=axis, last=last)


def _cut(found: Sequence[Labelled], at: dict[int, float], *, axis: int, last: bool) -> tuple[Part, Part]:
    """Boxes on both sides of a share of the height or width of each image; what is held out is the last or the first of them."""
    sides: tuple[Part, Part] = ([], [])
    for one in found:
        height, width = one.field.canvas.shape
        y, x = (round(at[one.image] * height), width) if axis == 0 else (height, round(at[one.image] * width))
        sides[0].append((0, y, 0, x))
        sides[1].append((y, height, 0, width) if axis == 0 else (0, height, x, width))
    return sides if last else sides[::-1]


def _labelled_places(one: Labelled) -> np.ndarray:
    known = (one.activity[:, one.keys >= 0] != UNDEFINED).any(axis=1)
    places = one.places[known]
    return places[np.isfinite(places).all(axis=1)]


def _inside(found: Sequence[Labelled], boxes: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Activities and keys of the cells with their centres in the boxes."""
    for one, (top, bottom, left, right) in zip(found, boxes, strict=True):
        y, x = (one.places * one.field.canvas.shape).T
        yield one.activity[(y >= top) & (y < bottom) & (x >= left) & (x < right)], one.keys


def _known(plots: Sequence[Plot]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return ((plot.activity, plot.keys) for plot in plots)


def _only(plots: Sequence[Plot], wanted: set[str], markers: Sequence[str]) -> list[Plot]:
    """The channels of some markers."""
    found = []
    for plot in plots:
        kept = [c for c, key in enumerate(plot.keys) if markers[key] in wanted]
        if len(kept) == len(plot.keys):
            found.append(plot)
        elif kept:
            found.append(
                replace(plot, markers=plot.markers[kept], activity=plot.activity[:, kept], keys=plot.keys[kept])
            )
    return found


def _any_label(tile: torch.Tensor) -> bool:
    return bool(((tile[0, 2] != UNDEFINED) & (tile[0, 3] > 0)).any())
