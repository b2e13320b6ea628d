"""How quick is labelling in a real browser?

Headless Chromium, driven by Playwright, opens the page of `Session.serve()`: a map of `--cells` cells without images, then a
store on disk with images. Measured in the page are the seconds from opening to the first map (`first_paint_s`), from the end of a
lasso to its cells drawn as chosen (`lasso_ms`), from a key to the label shown as stored, at five keys a second (`label_ms`, median) and
with each key pressed as soon as the last label is stored (`label_burst_ms`), and from asking for 200 patches of 8 channels to the picture of them (`gallery_ms`, `gallery_again_ms` with other cells of the same place, and
`gallery_scattered_ms` with cells of all places, as suggestions are).

    python benchmarks/labelling_browser.py --json
    python benchmarks/labelling_browser.py --cells 20000 --size 1024      # seconds
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import anndata as ad
import dask.array as da
import numpy as np
import spatialdata as sd
from spatialdata.models import Image2DModel, ShapesModel

import cytonym as cy
from cytonym.label import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
DESK = "document.getElementById('app').desk"
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
CLASSES = ["T cell", "B cell", "Tumour", "Macrophage"]
N_CHANNELS = 8
N_PATCHES = 200
KEY_PAUSE_MS = 200
DEFAULTS = {"cells": 1_000_000, "size": 4096, "labels": 30}


def missing() -> str:
    """What is not on this machine, and how to get it; empty where all is there."""
    if find_spec("playwright") is None:
        return "Playwright is not installed: pip install playwright"
    if not any(map(shutil.which, BROWSERS)):
        return "Chromium is not installed: apt-get install chromium, or see Playwright's documentation"
    return ""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium. WebGL is computed on the processor."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        found = next((path for path in map(shutil.which, BROWSERS) if path), None)
        browser = p.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def until(page: Page, condition: str, seconds: float = 120.0) -> Any:
    """The value of an expression of the desk, once it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = page.evaluate(
            f"(() => {{ const desk = document.getElementById('app')?.desk; return desk && ({condition}) }})()"
        )
        if value not in (None, False):
            return value
        page.wait_for_timeout(20)
    msg = f"The page never came to: {condition}"
    raise TimeoutError(msg)


def lasso(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    """Drag a lasso over a part of the map, in shares of its width and height."""
    box = page.locator(".map .stage").bounding_box()
    if box is None:
        msg = "The map is not shown."
        raise RuntimeError(msg)
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0 + 0.02)]
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def timed(page: Page, name: str, seconds: float = 120.0) -> float:
    """What the page measured under a name; it is forgotten, so that the next one is new."""
    value = until(page, f"desk.state.timings.{name}", seconds)
    page.evaluate(f"delete {DESK}.state.timings.{name}")
    return float(value)


def opened(browser: Browser, url: str) -> Page:
    """A new page with the map in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(url)
    until(page, "desk.state.timings.first_paint_ms")
    return page


def cells(n: int) -> ad.AnnData:
    """Cells in clouds, with an embedding and features."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, n)
    features = rng.normal(size=(n, 8)).astype(np.float32) + 3 * np.eye(12, 8, dtype=np.float32)[kind]
    adata = ad.AnnData(
        obs={"kind": kind}, obsm={"X_umap": (features[:, :2] + kind[:, None] % [4, 3]).astype(np.float32)}
    )
    adata.obsm["X_features"] = features
    adata.obs_names = np.arange(n).astype(str)
    return adata


def store(path: Path, size: int) -> int:
    """A store of eight channels and a cell in every 24 x 24 pixels; the number of cells."""
    rng = np.random.default_rng(0)
    chunks = (1, min(1024, size), min(1024, size))

    def counts(block_info: dict) -> np.ndarray:
        place = block_info[None]["chunk-location"]
        return np.random.default_rng(place).poisson(20, block_info[None]["chunk-shape"]).astype(np.uint16)

    image = da.map_blocks(
        counts,
        chunks=tuple((c,) * (s // c) for c, s in zip(chunks, (N_CHANNELS, size, size), strict=True)),
        dtype=np.uint16,
    )
    steps = np.arange(12, size - 12, 24)
    centers = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2) + rng.uniform(-4, 4, (len(steps) ** 2, 2))
    shapes = ShapesModel.parse(centers, geometry=0, radius=8.0, index=np.arange(1, len(centers) + 1))
    names = [f"marker{i}" for i in range(N_CHANNELS)]
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=names)}, shapes={"cells": shapes}
    )
    cy.pp.measure_cells(sdata)
    sdata.write(path)
    return len(centers)


def map_alone(browser: Browser, folder: Path, n: int, n_labels: int) -> dict[str, float]:
    """First map, lasso and key, with all cells in one map."""
    session = Session(cells(n), classes=CLASSES, log=folder / "map.jsonl", annotator="bench", use_rep="X_features")
    with session.serve() as server:
        page = opened(browser, server.url)
        first = timed(page, "first_paint_ms") / 1000
        lasso(page, 0.2, 0.2, 0.8, 0.8)
        chosen = [timed(page, "lasso_ms")]
        lasso(page, 0.3, 0.1, 0.7, 0.9)
        chosen.append(timed(page, "lasso_ms"))
        waits: dict[int, list[float]] = {KEY_PAUSE_MS: [], 0: []}
        for pause, found in waits.items():
            for k in range(n_labels):
                page.wait_for_timeout(pause)
                page.keyboard.press(str(k % len(CLASSES) + 1))
                found.append(timed(page, "label_ms"))
        stored = session.counts()["labelled"]
        page.close()
    if stored != 2 * n_labels:
        msg = f"{stored} labels are stored of {2 * n_labels} that were given"
        raise RuntimeError(msg)
    paced, burst = waits.values()
    return {
        "first_paint_s": first,
        "lasso_ms": max(chosen),
        "label_ms": median(paced),
        "label_worst_ms": max(paced),
        "label_burst_ms": median(burst),
    }


def gallery(browser: Browser, folder: Path, size: int) -> dict[str, float]:
    """Patches from disk."""
    n = store(folder / "tissue.zarr", size)
    session = Session(sd.read_zarr(folder / "tissue.zarr"), classes=CLASSES, annotator="bench")
    waits = []
    with session.serve() as server:
        page = opened(browser, server.url)
        page.evaluate(f"() => {{ const s = {DESK}.state; s.looks.forEach((look) => (look.on = true)); }}")
        near = min(n, N_PATCHES)
        again = min(near // 2, n - near)
        scattered = np.random.default_rng(1).choice(n, near, replace=False)
        for rows in (np.arange(near), np.arange(near) + again, scattered):
            page.evaluate(f"() => {DESK}.state.showSet(Uint32Array.from({rows.tolist()}), 'bench')")
            waits.append(timed(page, "gallery_ms"))
        page.close()
    return dict(zip(("gallery_ms", "gallery_again_ms", "gallery_scattered_ms"), waits, strict=True))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """All numbers, by their names. `options` may hold `cells`, `size` and `labels`."""
    n, size, n_labels = (getattr(options, name, value) for name, value in DEFAULTS.items())
    with chromium() as browser:
        return {"n_cells": n, **map_alone(browser, folder, n, n_labels), **gallery(browser, folder, size)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=DEFAULTS["cells"], help="cells of the map")
    parser.add_argument("--size", type=int, default=DEFAULTS["size"], help="pixels a side of the image")
    parser.add_argument("--labels", type=int, default=DEFAULTS["labels"], help="labels given by key")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    lacking = missing()
    if lacking:
        print(f"Left out. {lacking}")
        if given.json:
            print(json.dumps({"left_out": lacking}))
        return
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), given)
    if given.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:20} {value:,.4g}")


if __name__ == "__main__":
    main()
