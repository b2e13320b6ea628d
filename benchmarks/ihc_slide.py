"""Measure 5 of `ihc.py`: seams, memory and speed of `tl.translate_stain` on slides.

    python benchmarks/ihc_slide.py [--size 20000] --json

Seam: the largest difference between what networks make of an image that is read in chunks, and sums of whole arrays over the same
tiles by a plain loop; over sizes that nothing divides. Memory: peak of a process that translates a slide of this side in a Zarr array,
and of one that translates a quarter of its area, by the classical model and by small networks on tiles of the published size. The slide
is a section that is repeated, on a disc that covers two fifths of the glass. Speed: pixels per second of networks of the published
shape, with random weights and the published weights of the class maps, on tissue without glass, against a plain loop: one tile at a
time, every generator, in layers as they are trained, pasted as published. Both make the same image but for roundings: the largest
difference and the share of pixels that differ are reported.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import torch
import zarr
from patches import peak_mb

import cytonym as cy
from cytonym.data.stitching import mirrored
from cytonym.models import DeepLIIF, DeepLIIFConfig
from cytonym.models.deepliif import PUBLISHED_MODALITIES, PUBLISHED_WEIGHTS, SEGMENTATION
from cytonym.models.fast_generators import FastDeepLIIF
from cytonym.models.translation import scaled, to_uint8
from cytonym.tl._learned_translator import is_light, resized

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData
    from torch import Tensor

    Networks = Callable[[Tensor], dict[str, Tensor]]

SIDE = 1024
PIXEL_SIZE = 0.25
KINDS = ("classical", "learned")
TISSUE = 0.4
"""Share of a slide."""


def networks(tile_px: int, filters: int, blocks: int, depth: int) -> DeepLIIF:
    """Random weights that do something."""
    config = DeepLIIFConfig(
        filters=filters, blocks=blocks, depth=depth, tile_px=tile_px, segmentation_weights=PUBLISHED_WEIGHTS
    )
    model = DeepLIIF.from_seed(PUBLISHED_MODALITIES, config)
    for weight in model.parameters():
        if weight.ndim > 1 and filters < 64:
            weight.data *= 5
    return model


def section(height: int, width: int) -> np.ndarray:
    """Tissue without glass, [3, h, w]: scikit-image's picture and its mirror images."""
    from skimage.data import immunohistochemistry

    one = immunohistochemistry().transpose(2, 0, 1)
    return mirrored(one, max(height, 512), max(width, 512))[:, :height, :width]


def slide(size: int, folder: Path) -> Path:
    """A Zarr array with tissue on a disc, written square by square."""
    path = folder / f"slide_{size}.zarr"
    if path.exists():
        return path
    pixels = zarr.create_array(store=str(path), shape=(3, size, size), chunks=(3, SIDE, SIDE), dtype="u1")
    tissue = section(SIDE, SIDE)
    glass = np.random.default_rng(0).integers(238, 242, (3, SIDE, SIDE)).astype(np.uint8)
    radius = size * np.sqrt(TISSUE / np.pi)
    for y in range(0, size, SIDE):
        for x in range(0, size, SIDE):
            h, w = min(SIDE, size - y), min(SIDE, size - x)
            away = np.hypot(*(np.ogrid[y : y + h, x : x + w][i] - size / 2 for i in (0, 1)))
            pixels[:, y : y + h, x : x + w] = np.where(away < radius, tissue[:, :h, :w], glass[:, :h, :w])
    return path


def as_sdata(pixels: Any) -> SpatialData:
    return cy.io.from_arrays(pixels, channels=["r", "g", "b"], name="slide", pixel_size=PIXEL_SIZE)


# ------------------------------------------------------------------------------------------------------------- plain ways
def starts(length: int, tile: int) -> list[int]:
    return [*range(0, max(0, length - tile), tile - 2 * (tile // 16)), max(0, length - tile)]


def made_of(rgb: np.ndarray, model: DeepLIIF, run: Networks) -> np.ndarray:
    """Stains and class map of a tile."""
    with torch.inference_mode():
        made = run(scaled(resized(torch.from_numpy(rgb.copy())[None], model.config.tile_px)))
    pictures = {name: resized(to_uint8(image), rgb.shape[1]).numpy()[0] for name, image in made.items()}
    stains = [255 - pictures[n].min(0) if is_light(n) else pictures[n].max(0) for n in model.markers]
    return np.concatenate([np.stack(stains), pictures[SEGMENTATION]])


def pasted(rgb: np.ndarray, model: DeepLIIF, tile: int) -> np.ndarray:
    """Tile by tile, every generator; the middle of each tile is kept."""

    def run(x: Tensor) -> dict[str, Tensor]:
        made = model.translate(x)
        drawn = model.class_maps(x, made)
        total = sum(w * image for w, image in zip(model.segmentation_weights, drawn, strict=True))
        return made | {SEGMENTATION: total}  # type: ignore[dict-item]

    _, height, width = rgb.shape
    out = np.zeros((len(model.markers) + 3, height, width), np.uint8)
    margin = tile // 16
    for y in starts(height, tile):
        for x in starts(width, tile):
            top, left = (margin if at else 0 for at in (y, x))
            part = made_of(rgb[:, y : y + tile, x : x + tile], model, run)[:, top:, left:]
            out[:, y + top : y + tile, x + left : x + tile] = part  # later tiles cover the margins
    return out


def blended(rgb: np.ndarray, model: DeepLIIF, tile: int, run: Networks) -> np.ndarray:
    """Weighted sums of whole arrays; neighbours fade into each other linearly, around the middle of what they share."""
    _, *shape = rgb.shape
    whole = np.zeros((len(model.markers) + 3, *shape))
    for y in starts(shape[0], tile):
        for x in starts(shape[1], tile):
            ramps = []
            for at, length in ((y, shape[0]), (x, shape[1])):
                here, margin, pixels = starts(length, tile), tile // 16, np.arange(at, at + tile) + 0.5
                i, ramp = here.index(at), np.ones(tile)
                if i:
                    ramp *= np.clip(0.5 + (pixels - (at + here[i - 1] + tile) / 2) / (2 * margin), 0, 1)
                if i + 1 < len(here):
                    ramp *= np.clip(0.5 - (pixels - (at + here[i + 1] + tile) / 2) / (2 * margin), 0, 1)
                ramps.append(ramp)
            part = made_of(rgb[:, y : y + tile, x : x + tile], model, run)
            whole[:, y : y + tile, x : x + tile] += part * np.outer(*ramps)
    return np.floor(whole.round(6) + 0.5).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- measures
def translated(pixels: Any, model: Any, **settings: Any) -> np.ndarray:
    """Stains and class map, as one array."""
    sdata = as_sdata(pixels)
    cy.tl.translate_stain(sdata, model, device="cpu", **settings)
    return np.concatenate([sdata["slide_stains"].values, sdata["slide_class_map"].values])


def seam() -> int:
    """Largest difference between an image in chunks and whole arrays."""
    model, worst = networks(64, 4, 1, 4), 0
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums of a tile are added in the same order
    for shape in ((331, 203), (150, 280)):
        rgb = section(*shape)
        chunked = da.from_array(rgb, chunks=(3, 61, 77)) + np.uint8(0)
        expected = blended(rgb, model, 64, FastDeepLIIF(model))
        worst = max(worst, int(np.abs(translated(chunked, model).astype(int) - expected).max()))
    torch.set_num_threads(before)
    return worst


def speed(size: int, model: DeepLIIF, repeats: int) -> dict[str, Any]:
    """Pixels per second of `tl.translate_stain` and of the plain way, taken in turns."""
    rgb = section(size, size)
    times, made = [], []
    for _ in range(repeats):
        for way in (lambda: translated(rgb, model, tiles="released"), lambda: pasted(rgb, model, model.config.tile_px)):
            start = time.perf_counter()
            made.append(way())
            times.append(time.perf_counter() - start)
    ours, plain = min(times[0::2]), min(times[1::2])
    apart = np.abs(made[0].astype(int) - made[1])
    return {
        "pixels_per_s": round(size**2 / ours),
        "plain_pixels_per_s": round(size**2 / plain),
        "speedup_vs_plain": round(plain / ours, 2),
        "largest_difference": int(apart.max()),
        "share_that_differs": round(float((apart > 0).mean()), 5),
    }


def in_a_process(kind: str, path: Path) -> dict[str, float]:
    """Seconds and peak memory of one model on one slide, in a process of its own."""
    call = [sys.executable, __file__, "--child", kind, str(path)]
    return json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[-1])  # type: ignore[no-any-return]


def child(kind: str, path: Path) -> dict[str, float]:
    sdata = as_sdata(da.from_zarr(str(path)))
    given = {"diameter_um": 8.0} if kind == "classical" else {"device": "cpu"}
    model: Any = kind if kind == "classical" else networks(512, 8, 1, 6)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as out:
        cy.tl.translate_stain(sdata, model, out=out, **given)
    seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 1), "peak_mb": peak_mb()}


def memory(size: int, folder: Path) -> dict[str, Any]:
    """Peaks of both models on a slide and on a quarter of it."""
    found: dict[str, Any] = {"slide": [size, size]}
    for kind in KINDS:
        quarter, whole = (in_a_process(kind, slide(side, folder)) for side in (size // 2, size))
        end = "" if kind == "learned" else "_classical"
        found |= {
            f"peak_rss_mb{end}": round(whole["peak_mb"]),
            f"peak_rss_mb_quarter{end}": round(quarter["peak_mb"]),
            f"seconds{end}": whole["seconds"],
        }
    return found


def measure(size: int, speed_size: int, model: DeepLIIF, repeats: int, folder: Path | None = None) -> dict[str, Any]:
    """All of it."""
    result: dict[str, Any] = {"seam_learned": seam()}
    with tempfile.TemporaryDirectory() as scratch:
        where = folder or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        result |= memory(size, where)
    return result | speed(speed_size, model, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000, help="side of the larger slide in pixels")
    parser.add_argument("--speed-size", type=int, default=1408, help="side of the image for the speed")
    parser.add_argument("--filters", type=int, default=64, help="of the networks for the speed")
    parser.add_argument("--blocks", type=int, default=9, help="of these")
    parser.add_argument("--depth", type=int, default=9, help="of these")
    parser.add_argument("--network-px", type=int, default=512, help="side of their tiles")
    parser.add_argument("--repeats", type=int, default=1, help="of the speed")
    parser.add_argument("--folder", type=Path, help="where the slides are made and kept; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("cytonym").setLevel(logging.ERROR)
    if options.child:
        print(json.dumps(child(options.child[0], Path(options.child[1]))))
        return
    model = networks(options.network_px, options.filters, options.blocks, options.depth)
    result = measure(options.size, options.speed_size, model, options.repeats, options.folder)
    print("\n".join(f"{k}: {v}" for k, v in result.items()))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
