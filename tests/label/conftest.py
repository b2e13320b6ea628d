"""The page in a real browser: headless Chromium, driven by Playwright; tests skip where one of them is missing."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import cytonym as cy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cytonym.label.session import Session

FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SIZE = {"width": 1280, "height": 800}
READY = "desk.state.timings.first_paint_ms && desk.state.connection === 'open'"


class Tab:
    """A page with the desk in it, and what it complains about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self.answered)
        page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def answered(self, response: Any) -> None:
        if response.status >= 400:  # also of the icon that browsers ask for
            self.errors.append(f"{response.status} {response.url}")

    def open(self, url: str, ready: str = READY) -> None:
        self.page.goto(url)
        self.wait(ready)

    def another(self, url: str) -> Tab:
        """One more tab of the same browser, with the same memory."""
        found = Tab(self.page.context.new_page())
        found.open(url)
        return found

    def get(self, what: str) -> Any:
        return self.page.evaluate(
            f"() => {{ const desk = document.getElementById('app')?.desk; return desk ? ({what}) : null; }}"
        )

    def wait(self, what: str, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.get(what)
            if value not in (None, False, 0):
                return value
            self.page.wait_for_timeout(30)
        pytest.fail(f"never came: {what}; notices: {self.get('desk.state.notices.map((n) => n.text)')}")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def settle(self) -> None:
        self.wait("desk.state.pending.size === 0")

    def failures(self) -> list[str]:
        """What went wrong by what the page says."""
        return list(self.get("desk.state.notices.filter((n) => n.kind === 'error').map((n) => n.text)"))

    def lasso(self, *corners: tuple[float, float], key: str | None = None) -> None:
        box = self.page.locator(".map .stage").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
        if key:
            self.page.keyboard.down(key)
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=3)
        self.page.mouse.up()
        if key:
            self.page.keyboard.up(key)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine's path")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def tab(browser: Any) -> Callable[..., AbstractContextManager[Tab]]:
    """Opens an address in a browser that knows nothing yet; at the end, nothing must have been thrown."""

    @contextmanager
    def opened(url: str, *, ready: str = READY, script: str = "", **options: Any) -> Iterator[Tab]:
        context = browser.new_context(**{"viewport": SIZE, **options})
        context.add_init_script(script)
        found = Tab(context.new_page())
        found.open(url, ready)
        yield found
        context.close()
        assert found.errors == []

    return opened


@pytest.fixture
def phantom(tmp_path: Path) -> Callable[..., Session]:
    """A session of a small synthetic tissue, with a store on disk."""

    def made(classes: Sequence[str] = ("T cell", "B cell", "腫瘍"), n_cells: int = 150) -> Session:
        from cytonym.label.session import Session

        sdata = cy.datasets.tissue_phantom(n_cells=n_cells, size_px=200, rng=0)
        cy.pp.measure_cells(sdata)
        sdata.write(tmp_path / "tissue.zarr")
        return Session(sdata, classes=list(classes), annotator="maria")

    return made
