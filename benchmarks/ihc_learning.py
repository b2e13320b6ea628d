"""Does the small DeepLIIF learn to draw nuclei from one co-registered tile and phantoms?

    python benchmarks/ihc_learning.py --train DIR --json
    python benchmarks/ihc_learning.py --train DIR --test DIR --json

Trained on the tiles of `--train`/coregistered and on phantoms, tested on all tiles of another folder (`--test`), or, without one, on
those of `--train`/ihc_seg, of which nothing was trained on. No tile is on both sides. Beside the DeepLIIF stands a U-Net of the same
size that draws the class map from the image alone, trained on the same tiles by the same recipe (the paper's comparison). A quarter
of each real tile, and a phantom of its own, choose the weights by their counts of nuclei. Dice, IoU and pixel accuracy of positive
and negative nuclei as in `ihc.py`, of `tl.translate_stain` and `tl.segment_nuclei` with and without a watershed of touching nuclei. The keys
`dice_learned` and `dice_unet` are with it, because the borders that networks draw are weak in places; of classical nuclei it splits
none. `--points`: slides with nuclei marked by hand, as in `ihc.py`; their pixel size is the one at which the classical method finds
nuclei as large as on the tiles that were trained on.

A phantom is drawn here, with the truth about every pixel: nuclei of hematoxylin or DAB on textured tissue, with stain colors, optical
densities, light, size and crowding that differ from phantom to phantom. Of each real tile there are also copies in which some of
the negative nuclei are stained brown, as the authors of the method made theirs by a generator.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from ihc import (
    SHOWN,
    Nuclei,
    brightfield,
    common_diameter,
    diameter_of,
    mask_scores,
    measure_points,
    picture,
    segmented,
    tiles,
)
from PIL import Image
from scipy import ndimage

import cytonym as cy
from cytonym.data.stains import separate_stains
from cytonym.data.translation_tiles import map_of_nuclei

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spatialdata import SpatialData

    from cytonym.models import DeepLIIF

PIXEL_SIZE = 0.25
PHANTOMS, JUDGED_PHANTOMS = 8, 1
PLAIN = 2
"""How often each real tile is among the strips."""
SHARES = (0.1, 0.22, 0.34, 0.46, 0.58, 0.7)
"""Of the nuclei that are stained brown in the copies."""
PANEL_PX = 512
SHIFT_PX = 16
SHINES, SIGNAL = 60, 30
"""Intensities of the marker: of a bright blob, and of a nucleus with any signal."""
HEMATOXYLIN = np.array([[0.65, 0.70, 0.29], [0.80, 0.55, 0.24]])
DAB = np.array([[0.27, 0.57, 0.78], [0.42, 0.57, 0.71]])
"""Optical densities of red, green and blue, from (Ruifrok and Johnston 2001) to what bluer and darker slides show."""


# --------------------------------------------------------------------------------------------------------------- phantoms
class Drawn(NamedTuple):
    """Nuclei of a phantom."""

    labels: np.ndarray
    positive: np.ndarray
    """bool, of label 0 … n."""


def smooth(rng: np.random.Generator, side: int, sigma: float) -> np.ndarray:
    """Noise of standard deviation 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=(side, side)), sigma, mode="wrap")
    return noise / noise.std()


def nuclei(rng: np.random.Generator, side: int) -> Drawn:
    """Lobed ellipses that hardly overlap, denser in some places, often elongated along a common direction."""
    labels = np.zeros((side, side), dtype=np.int32)
    dense = smooth(rng, side, side / 6)
    lean, common = rng.uniform(0, np.pi), rng.uniform(0, 1)
    size, stretch, share = rng.uniform(9, 15), rng.uniform(1.1, 1.8), rng.beta(1, 2)
    wanted, positive = int(rng.uniform(0.2, 1.0) * side**2 / (np.pi * size**2)), [False]
    for _ in range(wanted):
        y, x = rng.uniform(-5, side + 5, 2)
        if dense[int(np.clip(y, 0, side - 1)), int(np.clip(x, 0, side - 1))] < rng.normal(-0.3, 0.6):
            continue
        long = size * rng.lognormal(0, 0.2) * np.sqrt(stretch)
        short = long / max(1.0, stretch * rng.lognormal(0, 0.2))
        turn = lean + rng.normal(0, 0.4) if rng.random() < common else rng.uniform(0, np.pi)
        reach = int(1.4 * long) + 1
        top, left = max(0, int(y) - reach), max(0, int(x) - reach)
        box = slice(top, max(0, int(y) + reach)), slice(left, max(0, int(x) + reach))
        if labels[box].size == 0:
            continue
        yy, xx = np.mgrid[box[0].start : box[0].start + labels[box].shape[0], left : left + labels[box].shape[1]]
        dy, dx = yy - y, xx - x
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        angle = np.arctan2(across / short, along / long)
        edge = 1 + sum(rng.normal(0, 0.09 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4))
        inside = np.hypot(along / long, across / short) < edge
        if not inside.any() or (labels[box][inside] > 0).mean() > 0.15:
            continue
        labels[box][inside & (labels[box] == 0)] = len(positive)
        positive.append(bool(rng.random() < share))
    return Drawn(labels, np.array(positive))


def phantom(rng: np.random.Generator, side: int = PANEL_PX) -> np.ndarray:
    """A strip uint8 [side, 6 * side, 3]: IHC, hematoxylin, DAPI, Lap2, marker, class map."""
    labels, positive = nuclei(rng, side)
    n = len(positive)
    inside = labels > 0
    depth = ndimage.distance_transform_edt(inside & ~_contours(labels))
    texture = 1 + rng.uniform(0.1, 0.3) * smooth(rng, side, 1.5) + rng.uniform(0.05, 0.2) * smooth(rng, side, 4)
    rim = 1 + rng.uniform(0, 0.8) * np.exp(-depth / 2)
    own = rng.lognormal(0, 0.35, n)
    blue = inside * (own * rng.uniform(0.2, 0.5))[labels] * texture * rim
    brown_of = np.where(positive, np.clip(rng.lognormal(np.log(rng.uniform(0.5, 1.3)), 0.5, n), 0.25, 2.2), 0)
    clumps = np.clip(1 + rng.uniform(0, 0.7) * smooth(rng, side, 2.5), 0.2, 3)
    brown = brown_of[labels] * clumps * inside
    blue_seen = blue * np.where(positive, rng.uniform(0.2, 1), 1)[labels]
    tissue = np.clip(0.5 + smooth(rng, side, side / 10) + 0.5 * smooth(rng, side, 12), 0, 1)
    fibres = ndimage.gaussian_filter(rng.normal(size=(side, side)), rng.permutation([1.5, rng.uniform(3, 25)]))
    ground = (
        tissue * rng.uniform(0.02, 0.12) * np.clip(1 + 0.4 * fibres / fibres.std() + 0.3 * smooth(rng, side, 2), 0, 4)
    )
    pale = ndimage.gaussian_filter(blue, 6) * rng.uniform(0, 0.4)
    h, d = (between[0] + rng.random() * (between[1] - between[0]) for between in (HEMATOXYLIN, DAB))
    h, d = h + rng.normal(0, 0.03, 3), d + rng.normal(0, 0.03, 3)
    gray = rng.dirichlet([8, 8, 8]) * 1.7
    blur, light = rng.uniform(0.7, 1.8), rng.uniform(205, 248) * (1 + rng.normal(0, 0.02, 3))
    spill = ndimage.gaussian_filter(brown, 5) * rng.uniform(0, 0.1)

    def rendered(h_amount: np.ndarray, d_amount: np.ndarray) -> np.ndarray:
        density = (
            (h_amount + pale)[..., None] * h
            + (d_amount + spill * (d_amount.any()))[..., None] * d
            + ground[..., None] * gray
        )
        rgb = light * 10 ** -ndimage.gaussian_filter(density, (blur, blur, 0))
        return np.clip(rgb + rng.normal(0, rng.uniform(1, 5), rgb.shape), 0, 255).astype(np.uint8)

    ihc = rendered(blue_seen, brown)
    hema = rendered(blue, np.zeros_like(brown))
    soft = lambda image, sigma: ndimage.gaussian_filter(image, sigma)
    dapi = 10 + soft(blue / max(blue.max(), 1e-9), 1.2) * 300 + soft(blue / max(blue.max(), 1e-9), 8) * 40
    ring = soft(inside * np.exp(-((depth - 2) ** 2) / 4) * own[labels], 1.0) * 160
    marker = 7 + soft(brown, 2.5) * 170
    gray_panels = [np.repeat(np.clip(p, 0, 255)[..., None], 3, axis=2).astype(np.uint8) for p in (dapi, marker)]
    lap2 = np.clip(ring[..., None] * [0.13, 1.0, 0.29], 0, 255).astype(np.uint8)
    seg = map_of_nuclei(labels, positive).transpose(1, 2, 0)
    return np.concatenate([ihc, hema, gray_panels[0], lap2, gray_panels[1], seg], axis=1)


def _contours(labels: np.ndarray) -> np.ndarray:
    """Where another label is beside."""
    return (ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels)


# --------------------------------------------------------------------------------------------------------------- real tiles
def aligned(strip: np.ndarray) -> np.ndarray:
    """A co-registered strip with its panels shifted onto the IHC, and with the classes that the marker then tells.

    In the one co-registered tile for development the panels lie 6 to 11 pixels beside the IHC, so that red nuclei of its class map lie
    beside brown ones. Each panel is shifted by what correlates best; then a nucleus is positive where the marker shines in
    it, by the rule of the authors, and bright blobs of the marker that have no nucleus get one. The margin is cut off.
    """
    panels = panels_of(strip)
    dense = lambda rgb: -np.log10(np.clip(rgb.astype(float), 1, 255) / 255).max(axis=2)
    dab = separate_stains(panels[0].transpose(2, 0, 1))[1]
    seg = panels[-1]
    seen = [
        dense(panels[1]),
        panels[2].max(axis=2),
        panels[2].max(axis=2),
        panels[4].max(axis=2),
        seg[..., ::2].max(axis=2),
    ]
    shifts = [_shift(image.astype(float), dab if i == 3 else dense(panels[0])) for i, image in enumerate(seen)]
    moved = [panels[0], *(np.roll(panel, by, (0, 1)) for panel, by in zip(panels[1:], shifts, strict=True))]
    labels, n = ndimage.label(moved[-1][..., ::2].max(axis=2) > 0, np.ones((3, 3)))
    marker = ndimage.gaussian_filter(moved[4].max(axis=2).astype(float), 1)
    blobs, n_blobs = ndimage.label(marker > SHINES)
    for blob in range(1, n_blobs + 1):
        inside = blobs == blob
        if inside.sum() > 150 and (labels[inside] > 0).mean() < 0.5:
            n += 1
            labels[inside] = n
    total, area = (np.bincount(labels.ravel(), w, n + 1) for w in (marker.ravel(), None))
    bright = total / np.maximum(area, 1) > SIGNAL
    wide = np.where(labels > 0, labels, ndimage.grey_dilation(labels, 3))
    moved[-1] = map_of_nuclei(wide, bright).transpose(1, 2, 0)
    return np.concatenate([panel[SHIFT_PX:-SHIFT_PX, SHIFT_PX:-SHIFT_PX] for panel in moved], axis=1)


def panels_of(strip: np.ndarray) -> list[np.ndarray]:
    """The square panels of a strip."""
    side = strip.shape[0]
    return [strip[:, x : x + side] for x in range(0, strip.shape[1], side)]


def _shift(image: np.ndarray, onto: np.ndarray) -> tuple[int, int]:
    inner = slice(SHIFT_PX, -SHIFT_PX)
    steps = range(-SHIFT_PX, SHIFT_PX + 1)
    places = [(dy, dx) for dy in steps for dx in steps]
    fit = [
        np.corrcoef(onto[inner, inner].ravel(), np.roll(image, by, (0, 1))[inner, inner].ravel())[0, 1] for by in places
    ]
    return places[int(np.argmax(fit))]


def recolored(strip: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A copy of a strip in which a share of the negative nuclei is brown, and bright in the marker."""
    side = strip.shape[0]
    panels = [panel.astype(float) for panel in panels_of(strip)]
    seg = panels[-1]
    labels, n = ndimage.label(seg[..., 2] > 127, np.ones((3, 3)))
    chosen = np.concatenate([[False], rng.random(n) < share])
    wide = ndimage.grey_dilation(np.where(chosen[labels], labels, 0), 5)
    soft = ndimage.gaussian_filter((wide > 0).astype(float), 1.0)
    brightest = np.concatenate(
        [[1], ndimage.labeled_comprehension(panels[2][..., 0], labels, range(1, n + 1), _bright, float, 1)]
    )
    amount = np.concatenate([[0], rng.lognormal(-0.4, 0.5, n)])
    shape = np.clip(panels[2][..., 0] / brightest[wide] - 0.2, 0, 1.2) * soft
    clumps = np.clip(1 + rng.uniform(0, 0.6) * smooth(rng, side, 2.0), 0.3, 2)
    density = -np.log10(np.clip(panels[0], 1, 255) / 255)
    ground = np.median(density.reshape(-1, 3), axis=0)
    left = ground + (density - ground) * (1 - rng.uniform(0.3, 1) * soft[..., None])
    d = DAB[0] + rng.random() * (DAB[1] - DAB[0])
    panels[0] = 255 * 10 ** -(left + (shape * 1.3 * amount[wide] * clumps)[..., None] * d)
    glow = ndimage.gaussian_filter(shape * np.minimum(amount[wide], 1.5), 1.5) * 170
    panels[-2] = np.maximum(panels[-2], glow[..., None])
    red = chosen[labels]
    panels[-1] = np.where(red[..., None], [255.0, 0, 0], seg)
    return np.clip(np.concatenate(panels, axis=1), 0, 255).astype(np.uint8)


def _bright(values: np.ndarray) -> float:
    return max(float(np.quantile(values, 0.9)), 20.0)


def quarters(strip: np.ndarray) -> list[np.ndarray]:
    """The four quarters of a strip, as strips."""
    panels = panels_of(strip)
    half = len(strip) // 2
    boxes = [(slice(y, y + half), slice(x, x + half)) for y in (0, half) for x in (0, half)]
    return [np.concatenate([panel[box] for panel in panels], axis=1) for box in boxes]


# ---------------------------------------------------------------------------------------------------------------- learning
def write_strips(paths: Sequence[Path], folder: Path, seed: int = 0) -> None:
    """Folders `train` and `val` of strips."""
    rng = np.random.default_rng(seed)
    groups: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for path in paths:
        strip = aligned(np.asarray(Image.open(path).convert("RGB")))
        copies = [strip] * PLAIN + [recolored(strip, share, rng) for share in SHARES]
        for i, copy in enumerate(copies):
            *kept, apart = quarters(copy)
            groups["train"] += kept
            groups["val"] += [apart] if i in (0, len(copies) - 2) else []
    groups["train"] += [phantom(rng) for _ in range(PHANTOMS)]
    groups["val"] += [phantom(rng) for _ in range(JUDGED_PHANTOMS)]
    for name, strips in groups.items():
        (folder / name).mkdir(parents=True)
        for i, strip in enumerate(strips):
            Image.fromarray(strip).save(folder / name / f"{i:03d}.png")


def drawn(rgb: np.ndarray, model: DeepLIIF, pixel_size: float) -> Nuclei:
    """What networks find in an image, touching nuclei split."""
    sdata = brightfield(rgb)
    cy.tl.translate_stain(sdata, model, pixel_size=pixel_size)
    return nuclei_in(sdata, rgb.shape[:2], watershed=True)


def nuclei_in(sdata: SpatialData, shape: tuple[int, int], *, watershed: bool) -> Nuclei:
    """Nuclei of a class map; none where networks that have hardly learned draw none."""
    try:
        cy.tl.segment_nuclei(sdata, watershed=watershed)
    except ValueError as error:
        if "No nucleus found" not in str(error):
            raise
        return Nuclei(np.empty((0, 2)), np.empty(0, dtype=bool), np.zeros(shape, dtype=int))
    found = segmented(sdata)
    del sdata.tables["table"]
    return found


def measure_learning(
    train: Path, test: Path | None = None, points: Sequence[Path] = (), *, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train on the co-registered tiles of a folder, score on tiles and slides that were not trained on."""
    trained = sorted((train / "coregistered").glob("*.png"))
    seen = [path.stem for path in trained]
    tested = [(name, rgb, truth) for name, rgb, truth, _ in tiles(test or train) if name not in seen]
    print(f"\ntrained on {', '.join(seen)} and phantoms, tested on {', '.join(name for name, *_ in tested)}")
    result: dict[str, Any] = {}
    methods: dict[str, Any] = {"classical": {}}
    with TemporaryDirectory() as folder:
        write_strips(trained, Path(folder), seed)
        for name, modalities in (("unet", ()), ("learned", None)):
            start = time.perf_counter()
            model = cy.tl.fit_translator(folder, modalities, pixel_size=PIXEL_SIZE, steps=steps, rng=seed, device="cpu")
            result[f"seconds_{name}"] = round(time.perf_counter() - start)
            error = model.provenance["held_out_count_error"]
            print(f"{name}: {result[f'seconds_{name}']} s, difference of the counts {error:.2f}", flush=True)
            methods[name] = {"model": model, "pixel_size": PIXEL_SIZE}
    rows = []
    for tile, rgb, truth in tested:
        for method, options in methods.items():
            sdata = brightfield(rgb)
            cy.tl.translate_stain(sdata, **options)
            for watershed in (False, True):
                found = mask_scores(nuclei_in(sdata, truth.shape[:2], watershed=watershed), truth)
                rows.append({"tile": tile, "method": method, "watershed": watershed} | found)
    frame = pd.DataFrame(rows)
    print(frame.round(3).to_string(index=False))
    mean = frame.groupby(["method", "watershed"])[["dice", "iou", "accuracy", "dice_nuclei"]].mean()
    print(f"\nmean over the tiles\n{mean.round(3).to_string()}")
    result["learning"] = {f"{m}{', watershed' * w}": row.round(4).to_dict() for (m, w), row in mean.iterrows()}
    result |= {f"dice_{m}": round(float(mean.loc[(m, m != "classical"), "dice"]), 4) for m in methods}
    diameter = np.median([diameter_of(panels_of(picture(path))[0]) for path in trained])
    models = {name: options["model"] for name, options in methods.items() if options}
    for folder in points:
        pixel_size = float(PIXEL_SIZE * diameter / common_diameter(folder))
        found = measure_points(
            folder, {m: partial(drawn, model=net, pixel_size=pixel_size) for m, net in models.items()}
        )
        mean = found.groupby("method")[SHOWN].mean()
        print(f"\nmean over {found['case'].nunique()} slides of {folder}, {pixel_size:.2f} um a pixel\n{mean.round(3)}")
        print(found.groupby(["half", "method"])[SHOWN].mean().round(3).to_string())
        result["points_learned"] = {m: row.round(4).to_dict() for m, row in mean.iterrows()}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="co-registered tiles to train on, others to look at")
    parser.add_argument("--test", type=Path, help="tiles that nobody has looked at")
    parser.add_argument(
        "--points", type=Path, nargs="+", default=[], help="slides with marked nuclei, one magnification"
    )
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    logging.getLogger("cytonym").setLevel(logging.ERROR)
    pd.set_option("display.width", 220, "display.max_columns", 30)
    result = measure_learning(options.train, options.test, options.points, steps=options.steps, seed=options.seed)
    if options.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
