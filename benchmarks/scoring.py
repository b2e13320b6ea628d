"""Scoring of large images: seams, memory and speed of `tl.score_markers`.

    python benchmarks/scoring.py [--size 4096] [--channels 40] --json

Seam: the largest difference between the map of an image scored tile by tile and the network on the whole image at once. Memory: peak of a
process that scores an image in a Zarr store, and of one that scores four times the area. Speed: pixels of all channels per second against
the plain way of the released program with the same network: channel by channel, tiles of 1,024 pixels one after another, in layers as
they are; reading, scaling and the means over the cells are in both. The network is the compact scorer, on random tissue.
"""

from __future__ import annotations

import argparse
import json
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
from patches import peak_mb

import cytonym as cy
from cytonym.data.source import resolve
from cytonym.learning.maps import padded
from cytonym.tl import _scoring

if TYPE_CHECKING:
    from cytonym.data.canvas import Canvas

SIDE = 1024


def phantom(size: int, channels: int, folder: Path) -> Path:
    """A store with a tissue of 1,024 pixels repeated to this size, one chunk a channel and 1,024 pixels."""
    path = folder / f"tissue_{size}_{channels}.zarr"
    if path.exists():
        return path
    one = cy.datasets.tissue_phantom(n_cells=(SIDE // 20) ** 2, size_px=SIDE, n_markers=channels, pixel_size=0.5, rng=0)
    names = [str(c) for c in one.images["image"].coords["c"].to_numpy()]
    image, labels = one.images["image"].to_numpy(), one.labels["cells"].to_numpy().astype(np.int32)
    times = -(-size // SIDE)
    rows = []
    for i in range(times):
        blocks = [np.where(labels > 0, labels + (i * times + j) * labels.max(), 0) for j in range(times)]
        rows.append(da.concatenate([da.from_array(b, chunks=SIDE) for b in blocks], axis=1))
    large = da.tile(da.from_array(image, chunks=(1, SIDE, SIDE)), (1, times, times))[:, :size, :size]
    sdata = cy.io.from_arrays(large, da.concatenate(rows)[:size, :size], channels=names, pixel_size=0.5)
    sdata.write(path)
    return path


def seam(window_px: int) -> float:
    """Largest difference of the map between tiles and the whole, over sizes that nothing divides."""
    model = _scoring.scorer("compact")
    worst = 0.0
    for size in (331, 700):
        sdata = cy.datasets.tissue_phantom(n_cells=(size // 20) ** 2, size_px=size, pixel_size=0.5, rng=size)
        [field] = _scoring.fields(resolve(sdata, channels=["CD3", "panCK"]), model)
        whole = _whole(field, model)
        found = np.zeros_like(whole)

        def keep(box: Any, part: np.ndarray, into: np.ndarray = found) -> None:
            into[:, box[0] : box[1], box[2] : box[3]] = part

        before, _scoring.WINDOW_PX = _scoring.WINDOW_PX, window_px
        _scoring.score_field(field, model, keep_map=keep)
        _scoring.WINDOW_PX = before
        worst = max(worst, float(np.abs(found - whole).max()))
    return worst


def _whole(field: Any, model: Any) -> np.ndarray:
    height, width = field.canvas.shape
    box = (0, height, 0, width)
    size = [max(-(-n // model.stride), 2) * model.stride for n in (height, width)]
    markers = padded(field.canvas.markers(box, np.arange(len(field.factors)), field.factors), *size)
    interior = padded(field.canvas.interior(box), *size)
    with torch.inference_mode():
        x = torch.from_numpy(np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1))
        return model(x)[:, 0, :height, :width].numpy()


def score(path: Path) -> float:
    """Seconds of `tl.score_markers` for a store."""
    import spatialdata as sd

    sdata = sd.read_zarr(path)
    start = time.perf_counter()
    cy.tl.score_markers(sdata, device="cpu", inplace=False)
    return time.perf_counter() - start


def score_plainly(path: Path) -> float:
    """Seconds of the plain way, which holds one channel in memory."""
    import spatialdata as sd

    sdata = sd.read_zarr(path)
    model = _scoring.scorer("compact")
    start = time.perf_counter()
    [source] = resolve(sdata)
    factors = _scoring.brightness([source], "released", model.config.quantile)
    [field] = _scoring.fields([source], model, normalization=factors)
    canvas: Canvas = field.canvas
    height, width = canvas.shape
    box = (0, height, 0, width)
    for channel in range(len(source.channels)):
        marker = canvas.markers(box, np.array([channel]), field.factors[[channel]])[0]
        _means(canvas, _stitched(model, np.stack([marker, canvas.interior(box)])))
    return time.perf_counter() - start


def _stitched(model: Any, both: np.ndarray) -> np.ndarray:
    """Tiles of 1,024 pixels without padding, one by one."""
    height, width = both.shape[1:]
    lost = 1024 - model(torch.zeros(1, 2, 1024, 1024), "valid").shape[-1]
    core = (1024 - lost) // 32 * 32
    total = [1024 - n % core for n in (height, width)]
    both = np.pad(both, [(0, 0), *[(-(-t // 2), t // 2) for t in total]], mode="reflect")
    out = np.zeros([n - 1024 + core for n in both.shape[1:]], np.float32)
    trim = (1024 - lost - core) // 2
    with torch.no_grad():
        for y in range(0, out.shape[0], core):
            for x in range(0, out.shape[1], core):
                tile = torch.from_numpy(np.ascontiguousarray(both[None, :, y : y + 1024, x : x + 1024]))
                out[y : y + core, x : x + core] = model(tile, "valid")[
                    0, 0, trim : trim + core, trim : trim + core
                ].numpy()
    first = [-(-t // 2) - (1024 - core) // 2 for t in total]
    return out[first[0] : first[0] + height, first[1] : first[1] + width]


def _means(canvas: Canvas, found: np.ndarray) -> np.ndarray:
    """Mean of a map over each cell, on the image's grid."""
    cells, at, along = canvas.cells((0, canvas.shape[0], 0, canvas.shape[1]))
    return np.bincount(cells, found[at, along]) / np.maximum(np.bincount(cells), 1)


def in_a_process(what: str, path: Path) -> dict[str, float]:
    """Seconds and peak memory of one way in a process of its own."""
    call = [sys.executable, __file__, "--child", what, str(path)]
    return json.loads(subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the smaller image in pixels of 0.5 micrometres")
    parser.add_argument("--channels", type=int, default=40)
    parser.add_argument("--speed-size", type=int, default=3000, help="side of the image for the speed")
    parser.add_argument("--speed-channels", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the images are made and kept; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.child:
        seconds = (score if options.child[0] == "ours" else score_plainly)(Path(options.child[1]))
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"seam": seam(240)}
        small, large = (
            in_a_process("ours", phantom(s, options.channels, folder)) for s in (options.size // 2, options.size)
        )
        result |= {"peak_rss_mb": round(small["peak_mb"]), "peak_rss_mb_4x": round(large["peak_mb"])}
        fast = phantom(options.speed_size, options.speed_channels, folder)
        times = [
            (in_a_process("ours", fast)["seconds"], in_a_process("plain", fast)["seconds"])
            for _ in range(options.repeats)
        ]
        ours, plain = (min(t[i] for t in times) for i in (0, 1))
        pixels = options.speed_size**2 * options.speed_channels / 1e6
        result |= {
            "megapixel_channels_per_s": round(pixels / ours, 2),
            "plain_megapixel_channels_per_s": round(pixels / plain, 2),
            "speedup_vs_plain": round(plain / ours, 2),
            "image": [options.channels, options.size, options.size],
        }
    print("\n".join(f"{k}: {v}" for k, v in result.items()))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
