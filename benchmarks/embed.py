"""What does embedding cost beside the network itself, and how fast is the network?

`tl.embed_cells` with a trained model on a store on disk, against the same forward pass over windows that are already in
memory. And that forward pass against a plain one of the same network: whole batches of 1,024 cells, contiguous, eager,
`nn.Conv2d(groups=C)`. By default the store is that of `patches.py`:
40 x 4096 x 4096 uint16 in chunks of (1, 1024, 1024) and 42,000 cells, 400 pixels a cell as in tissue.

    python benchmarks/embed.py --json
    python benchmarks/embed.py --size 1024 --cells 2600     # seconds
    python benchmarks/embed.py --device cuda

`Plain` depends on the parameters of `NeXtMarker` and has to follow it: `normalize`, `amount`, `shape`, `standardize`,
`mix` and the config.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np
import spatialdata as sd
import torch
from patches import report, sparse_counts, write
from torch import Tensor, nn

import cytonym as cy
from cytonym.data.patches import Block, CellPatches
from cytonym.data.source import resolve
from cytonym.learning.engine import choose_device
from cytonym.learning.predict import predict
from cytonym.models.nextmarker import NeXtMarker

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 1024


class Plain(nn.Module):
    """NeXtMarker as one would first write it."""

    def __init__(self, model: NeXtMarker) -> None:
        super().__init__()
        config, c = model.config, len(model.markers)
        n, k = len(config.exposures), config.features_per_marker
        curves = {name: torch.from_numpy(values).float() for name, values in model.normalization().items()}
        gain = 4 * curves["slope"].repeat_interleave(n) * torch.tensor(config.exposures).repeat(c)
        shift = 4 * (curves["slope"] * curves["center"]).repeat_interleave(n)
        self.register_buffer("gain", gain[:, None, None])
        self.register_buffer("shift", shift[:, None, None])
        self.n_exposures = n
        self.conv = nn.Conv2d(c * n, c * k, config.kernel_px, config.stride_px, groups=c, bias=False)
        self.conv.weight.data = torch.cat([model.amount.exp(), model.shape], dim=1).flatten(0, 1).detach()
        side = (model.window_px - config.kernel_px) // config.stride_px + 1
        at = torch.arange(side) * config.stride_px + (config.kernel_px - 1) / 2 - model.window_px // 2
        line = torch.exp(-0.5 * (at / config.pool_sigma_px) ** 2)
        self.register_buffer("pool", torch.outer(line, line) / line.sum() ** 2)
        self.standardize, self.mix = model.standardize, model.mix

    def forward(self, windows: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D]."""
        x = windows.float().repeat_interleave(self.n_exposures, dim=1)
        x = torch.relu(torch.sigmoid(x * self.gain - self.shift) - torch.sigmoid(-self.shift))
        h = torch.relu(self.conv(x))
        features = ((h / (1 + h)) * self.pool).sum(dim=(2, 3))
        return self.mix(self.standardize(features))


def trained(markers: tuple[str, ...], quantiles: np.ndarray) -> NeXtMarker:
    """A model with the statistics of a training, which speed does not depend on."""
    model = NeXtMarker.from_statistics(markers, quantiles, seed=0)
    with torch.inference_mode():
        side = model.window_px
        counts = np.random.default_rng(0).poisson(1.0, (256, len(markers), side, side))
        model.train().standardize(model.features(torch.from_numpy(counts)))
    return model.eval()


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Of the clock, and of all cores together, which other load on the machine hardly changes."""
    start, cores = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, time.process_time() - cores


def run(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    device = choose_device(options.device)
    shape, chunks = (options.channels, options.size, options.size), (1, options.chunk, options.chunk)
    store = folder / f"one-{'x'.join(map(str, shape))}-{options.chunk}-{options.cells}.zarr"
    blocks = tuple(da.core.normalize_chunks(chunks, shape, dtype=np.uint16))
    write(store, da.map_blocks(sparse_counts, chunks=blocks, dtype=np.uint16), options.cells)
    sdata = sd.read_zarr(store)
    [source] = resolve(sdata)
    model = trained(source.channels, np.full(options.channels, 4.0))
    plain = Plain(model).to(device).eval()

    held = [Block(b.rows, b.windows.copy()) for b in CellPatches(source, model.window_px, batch_size=BATCH)]
    on_device = [torch.from_numpy(block.windows).to(device) for block in held]

    def embed() -> None:
        cy.tl.embed_cells(sdata, model, device=options.device, inplace=False)

    def forward() -> dict[str, np.ndarray]:
        return predict(model, held, n_rows=options.cells, device=device, progress=False)

    def forward_plain() -> Tensor:
        with torch.inference_mode():
            return torch.cat([plain(windows) for windows in on_device])

    rows = np.concatenate([block.rows for block in held])
    found, expected = forward()["embedding"][rows], forward_plain().cpu().numpy()
    gap = float(np.abs(found - expected).max())
    times: dict[str, list[float]] = {"embed": [], "forward": [], "plain": []}
    cores: dict[str, list[float]] = {"embed": [], "forward": [], "plain": []}
    for _ in range(options.repeats):  # in turn, so that other load falls on all of them
        for name, work in (("embed", embed), ("forward", forward), ("plain", forward_plain)):
            for kept, value in zip((times, cores), seconds(work, device), strict=True):
                kept[name].append(value)
    for what, kept in (("seconds", times), ("seconds of all cores", cores)):
        print(f"{what}:", {name: [round(t, 3) for t in values] for name, values in kept.items()}, file=sys.stderr)
    print(f"largest difference of the embeddings: {gap:.2g}", file=sys.stderr)
    if device.type == "cpu" and gap > 1e-4:
        raise RuntimeError(f"The plain network gives other embeddings: they differ by {gap:.2g}")  # noqa: EM102
    best = {name: min(values) for name, values in times.items()}  # the least disturbed of each
    return {
        "overhead": round(best["embed"] / best["forward"], 3),
        "speedup_vs_plain": round(best["plain"] / best["forward"], 2),
        "cells_per_s": round(options.cells / best["embed"]),
        "overhead_vs_plain": round(best["embed"] / best["plain"], 3),
        "cells_per_s_forward": round(options.cells / best["forward"]),
        "largest_difference": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=40)
    parser.add_argument("--size", type=int, default=4096, help="side of the image in pixels")
    parser.add_argument("--chunk", type=int, default=1024, help="side of a chunk in pixels")
    parser.add_argument("--cells", type=int, default=42_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder for the store, used again where it is there")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    report(run, options)


if __name__ == "__main__":
    main()
