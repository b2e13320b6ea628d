"""How fast does CLEAR-IT encode windows of 64 x 64 pixels and 8 channels, beside the naive way?

    python benchmarks/clearit_speed.py --json

Both encode the same windows in memory by the same weights, F = 512, in turn, `--repeats` times; the best time of each counts.
The naive way is the published one: a loop over the channels, each channel's windows copied three times for the three input channels of
the published first convolution, the plain network on contiguous batches, and one read after the other. Ours is what
`tl.embed_cells` does with such blocks. Times are without reading images; on a GPU with 16 bit products (`learning.predict`).

speedup         naive over ours
max_error       largest difference of the embeddings, over their largest number
ours_per_s, naive_per_s         windows of 64 x 64 x 8 a second
paper_per_s     4,500 on an RTX 3090 (CLEAR-IT, methods)
"""

from __future__ import annotations

import argparse
import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import cytonym as cy
from cytonym.learning.engine import choose_device
from cytonym.learning.predict import predict

PAPER = 4500
BLOCK = 1024


def naive(model: Any, windows: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Channel after channel, batch after batch."""
    network = model.main_backbone.to(device)
    found = []
    with torch.inference_mode():
        for start in range(0, len(windows), batch_size):
            batch = torch.from_numpy(windows[start : start + batch_size]).to(device).float() * model.gain[0].item()
            blocks = [network(batch[:, c : c + 1].repeat(1, 3, 1, 1).contiguous()) for c in range(batch.shape[1])]
            found.append(torch.cat(blocks, dim=1).cpu().numpy())
    model.main_backbone.to("cpu")
    return np.concatenate(found)


def ours(model: Any, windows: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """The same in blocks of the size that `tl.embed_cells` reads, which the inference loop cuts as it likes."""
    rows = np.arange(len(windows))
    pieces = [slice(i, i + BLOCK) for i in range(0, len(windows), BLOCK)]
    blocks = (SimpleNamespace(rows=rows[piece], windows=windows[piece]) for piece in pieces)
    return predict(model, blocks, n_rows=len(windows), device=device, progress=False)["embedding"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="side of the windows in pixels")
    parser.add_argument("--batch-size", type=int, default=128, help="of the naive way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    device = choose_device(options.device)

    config = cy.models.ClearITConfig(window_px=options.size, features=512, input_channels=3, scale=255.0)
    markers = [f"m{i}" for i in range(options.channels)]
    model = cy.models.ClearIT.from_statistics(markers, np.ones(options.channels), config).eval()
    shape = (options.windows, options.channels, options.size, options.size)
    windows = np.random.default_rng(0).poisson(20, shape).astype(np.uint8)

    ways = {"naive": naive, "ours": ours}
    best = dict.fromkeys(ways, float("inf"))
    found = {}
    for name, way in ways.items():
        found[name] = way(model, windows[: options.batch_size], options.batch_size, device)  # warm
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way(model, windows, options.batch_size, device)
            best[name] = min(best[name], time.perf_counter() - start)
    error = float(np.abs(found["ours"] - found["naive"]).max() / np.abs(found["naive"]).max())
    result = {
        "speedup": round(best["naive"] / best["ours"], 2),
        "max_error": error,
        "ours_per_s": round(options.windows / best["ours"], 1),
        "naive_per_s": round(options.windows / best["naive"], 1),
        "paper_per_s": PAPER,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "window": list(shape[1:]),
    }
    print(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
