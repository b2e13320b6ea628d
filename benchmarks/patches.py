"""How fast are windows at cells read from a store on disk, and in how much memory?

`CellPatches` against `spatialdata.dataloader.ImageTilesDataset`, against one dask slice a cell, and against the time that
decoding every chunk once takes. By default the store holds 40 x 4096 x 4096 uint16 in chunks of (1, 1024, 1024) and
42,000 cells. Memory is measured in processes of their own, also for images of four times the area, square and wide.

    python benchmarks/patches.py --json
    python benchmarks/patches.py --size 1024 --chunk 256 --channels 8 --cells 2000     # seconds

All files are in the page cache: what is measured is decoding and copying, not the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import spatialdata as sd
from spatialdata.dataloader import ImageTilesDataset
from spatialdata.models import Image2DModel, ShapesModel

from cytonym.data.chunks import available_threads, zarr_behind
from cytonym.data.patches import CellPatches, window_origin
from cytonym.data.source import CellSource, resolve

if TYPE_CHECKING:
    from collections.abc import Callable


def sparse_counts(block_info: dict, seed: int = 0) -> np.ndarray:
    """One chunk of photon counts: mostly 0 to 3, brighter in blobs, a few markers everywhere, most in few places."""
    _, *shape = block_info[None]["chunk-shape"]
    place = block_info[None]["chunk-location"]
    rng = np.random.default_rng([seed, *place])
    blobs = rng.random((-(-shape[0] // 16), -(-shape[1] // 16))) ** (2 + place[0] % 4) * 6
    rate = 0.1 + np.kron(blobs, np.ones((16, 16)))[: shape[0], : shape[1]]
    return rng.poisson(rate)[None].astype(np.uint16)


def write(path: Path, image: da.Array, n_cells: int) -> None:
    """A SpatialData store with one image and cells at random places."""
    if path.exists():
        return
    rng = np.random.default_rng(1)
    centers = rng.uniform(0, image.shape[:0:-1], (n_cells, 2))
    cells = ShapesModel.parse(centers, geometry=0, radius=8.0, index=np.arange(1, n_cells + 1))
    names = [f"marker{i}" for i in range(len(image))]
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=names)}, shapes={"cells": cells}
    )
    sdata.write(path)


def opened(path: Path) -> tuple[sd.SpatialData, CellSource]:
    sdata = sd.read_zarr(path)
    return sdata, resolve(sdata)[0]


def decode_all(source: CellSource, threads: int) -> float:
    """Seconds to read every chunk once through zarr."""
    array = zarr_behind(source.pixels)
    starts = product(*(range(0, n, step) for n, step in zip(array.shape, array.chunks, strict=True)))
    boxes = [tuple(slice(a, a + step) for a, step in zip(start, array.chunks, strict=True)) for start in starts]

    def read(box: tuple[slice, ...]) -> None:
        array[box]

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, boxes):
            pass
    return time.perf_counter() - start


def all_patches(source: CellSource, side: int, threads: int) -> float:
    """Seconds for the windows of all cells."""
    start = time.perf_counter()
    n = sum(len(block.rows) for block in CellPatches(source, side, threads=threads))
    seconds = time.perf_counter() - start
    if n != len(source.centers):
        raise RuntimeError(f"{n} windows of {len(source.centers)} cells")  # noqa: EM102
    return seconds


def slices(image: da.Array, source: CellSource, side: int, rows: np.ndarray) -> float:
    """Seconds a cell for one dask slice each."""
    start = time.perf_counter()
    for y, x in window_origin(source.centers[rows], side):
        y0, x0 = max(y, 0), max(x, 0)
        image[:, y0 : y + side, x0 : x + side].compute()
    return (time.perf_counter() - start) / len(rows)


def image_tiles(sdata: sd.SpatialData, side: int, rows: np.ndarray) -> float:
    """Seconds a cell for spatialdata's own data set."""
    some = sd.SpatialData(images={"image": sdata["image"]}, shapes={"cells": sdata["cells"].iloc[np.sort(rows)].copy()})
    dataset = ImageTilesDataset(
        some,
        regions_to_images={"cells": "image"},
        regions_to_coordinate_systems={"cells": "global"},
        tile_dim_in_units=side,
    )
    start = time.perf_counter()
    for i in range(len(dataset)):
        np.asarray(dataset[i]["image"].data)
    return (time.perf_counter() - start) / len(dataset)


def identical(source: CellSource, side: int) -> bool:
    """Whether each window equals the slice of the padded image, by a sum with random weights, exact in whole numbers."""
    weights = np.random.default_rng(2).integers(1, 2**16, side**2).astype(float)
    found = np.zeros((len(source.centers), len(source.channels)))
    for block in CellPatches(source, side):
        for c in range(block.windows.shape[1]):
            found[block.rows, c] = block.windows[:, c].reshape(len(block.rows), -1) @ weights
    y, x = (window_origin(source.centers, side) + side).T
    for c in range(len(source.channels)):
        layer = np.pad(np.asarray(source.pixels[c]), side, mode="reflect")
        views = np.lib.stride_tricks.sliding_window_view(layer, (side, side))
        for some in np.array_split(np.arange(len(y)), max(1, len(y) // 4096)):
            expected = views[y[some], x[some]].reshape(len(some), -1) @ weights
            if not np.array_equal(expected, found[some, c]):
                return False
    return True


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss it leaves out the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_of(path: Path, side: int, threads: int) -> tuple[float, float]:
    """Peak memory of a process that only reads the patches, and of the same process before it does."""
    call = [sys.executable, __file__, "--peak", str(path), "--window", str(side), "--threads", str(threads)]
    before, after = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return after, before


def run(options: argparse.Namespace, folder: Path) -> dict[str, float | bool]:
    size, side, threads = options.size, options.window, options.threads
    shape, chunks = (options.channels, size, size), (1, options.chunk, options.chunk)
    stores = {name: folder / f"{name}-{'x'.join(map(str, shape))}-{options.chunk}-{options.cells}.zarr" for name in
              ("one", "square", "wide")}  # fmt: skip
    blocks = tuple(da.core.normalize_chunks(chunks, shape, dtype=np.uint16))
    write(stores["one"], da.map_blocks(sparse_counts, chunks=blocks, dtype=np.uint16), options.cells)
    sdata, source = opened(stores["one"])
    image = sdata["image"].data
    write(stores["square"], da.tile(image, (1, 2, 2)), 4 * options.cells)
    write(stores["wide"], da.tile(image, (1, 1, 4)), 4 * options.cells)

    rng = np.random.default_rng(3)
    inner = np.flatnonzero(((source.centers > side) & (source.centers < size - side)).all(1))
    some = rng.permutation(inner)
    all_patches(source.subset(some[:64]), side, threads)  # numba compiles
    times: dict[str, list[float]] = {"decode": [], "patches": [], "slices": [], "image_tiles": []}
    for _ in range(options.repeats):  # in turn, so that other load falls on all of them
        times["decode"].append(decode_all(source, threads))
        times["patches"].append(all_patches(source, side, threads))
    times["slices"].append(slices(image, source, side, some[: options.sample]))
    times["image_tiles"].append(image_tiles(sdata, side, some[: options.sample]))
    times["patches"].append(all_patches(source, side, threads))
    times["decode"].append(decode_all(source, threads))
    print("seconds:", {name: [round(t, 3) for t in values] for name, values in times.items()}, file=sys.stderr)

    best = {name: min(values) for name, values in times.items()}
    ratios = [p / d for p, d in zip(times["patches"], times["decode"], strict=True)]
    print("patches / decode, pair by pair:", [round(r, 2) for r in ratios], file=sys.stderr)
    cells_per_s = len(source.centers) / float(np.median(times["patches"]))
    peaks = {name: peak_of(path, side, threads) for name, path in stores.items()}
    print("peak MB, and before reading:", {k: [round(x) for x in v] for k, v in peaks.items()}, file=sys.stderr)
    return {
        "vs_image_tiles": round(cells_per_s * best["image_tiles"], 1),
        "vs_slices": round(cells_per_s * best["slices"], 1),
        "over_decode": round(best["patches"] / best["decode"], 3),  # the least disturbed of each
        "identical": identical(source, side),
        "cells_per_s": round(cells_per_s),
        "peak_rss_mb": round(peaks["one"][0]),
        "peak_rss_mb_4x": round(max(peaks["square"][0], peaks["wide"][0])),
    }


def report(run: Callable[[argparse.Namespace, Path], dict[str, Any]], options: argparse.Namespace) -> None:
    """Run in the folder of `--data`, or in one that is removed after it, and print what comes out."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(options, folder)
    for name, value in result.items():
        print(f"{name:20} {value:>10}")
    if options.json:
        print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=40)
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--chunk", type=int, default=1024, help="side of a chunk in pixels")
    parser.add_argument("--cells", type=int, default=42_000)
    parser.add_argument("--window", type=int, default=32, help="side of a window in pixels")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--sample", type=int, default=20, help="cells timed with the slow ways")
    parser.add_argument(
        "--data", type=Path, help="folder for the stores, used again where they are there; default: temporary"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        source = opened(options.peak)[1]
        before = peak_mb()
        all_patches(source, options.window, options.threads)
        print(json.dumps([before, peak_mb()]))
        return
    report(run, options)


if __name__ == "__main__":
    main()
