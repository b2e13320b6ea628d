"""Take the pictures of the labelling tutorial: `python docs/labelling.py`. Needs playwright and Chromium; the tissue is the phantom."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import cytonym as cy

OUT = Path(__file__).parents[1] / "tutorials" / "images"
WIDTH, HEIGHT = 1280, 800
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
DESK = "document.getElementById('app')?.desk"
LASSO = [(0.16, 0.56), (0.34, 0.5), (0.42, 0.6), (0.3, 0.74), (0.14, 0.7)]


def tissue(folder: Path) -> cy.label.Session:
    """The phantom, with the first eighty cells of the queue labelled."""
    sdata = cy.datasets.tissue_phantom(n_cells=1500, rng=0)
    cy.pp.measure_cells(sdata)
    sdata.write(folder / "tissue.zarr")
    expert = sdata["table"].obs["cell_type"]
    session = cy.label.Session(sdata, classes=list(expert.cat.categories), annotator="maria")
    for row in session.learner.queue(80)[0]:
        session.assign([row], expert.iloc[row])
    session.maps.remap(background=False)
    return session


def until(page: Any, condition: str) -> None:
    page.wait_for_function(f"() => {{ const desk = {DESK}; return desk && ({condition}); }}", timeout=60_000)
    page.wait_for_timeout(700)


def keep(page: Any, name: str) -> None:
    """The page in 256 colours."""
    page.evaluate(f"() => {{ const s = {DESK}.state; s.notices.slice().forEach((notice) => s.dismiss(notice)); }}")
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    exact = sorted(picture.getcolors(2**24), reverse=True)[:100]  # those of the page itself, of texts and classes
    others = picture.quantize(156, Image.Quantize.MEDIANCUT, kmeans=4).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, color in exact for part in color] + others[: 3 * 156])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)


def lasso(page: Any) -> None:
    box = page.locator(".map .stage").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in LASSO]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


OUT.mkdir(exist_ok=True)
with tempfile.TemporaryDirectory() as name, sync_playwright() as play:
    session = tissue(Path(name))
    browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
    with session.serve() as server:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(server.url)
        until(page, "desk.state.timings.first_paint_ms && desk.state.connection === 'open'")
        page.keyboard.press("t")
        until(page, "desk.state.prediction && desk.state.confidence")
        lasso(page)
        until(page, "desk.state.set.length && desk.state.timings.gallery_ms")
        page.keyboard.press("a")
        keep(page, "label_lasso")
        page.keyboard.press("Escape")
        page.keyboard.press("n")
        until(page, "desk.state.setName === 'queue'")
        for _ in range(6):
            page.keyboard.press("Enter")
        until(page, "desk.state.pending.size === 0 && desk.state.summary.labelled > 80")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(500)
        keep(page, "label_queue")
        page.emulate_media(color_scheme="light")
        page.keyboard.press("?")
        keep(page, "label_keys")
    browser.close()
assert all(path.stat().st_size < 300_000 for path in OUT.glob("label_*.png")), "too large for the repository"
