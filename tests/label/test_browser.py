"""The page in a real browser: what people do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cytonym as cy
from cytonym.label.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cytonym.label.log import Event

    Tabs = Callable[..., Any]
    Made = Callable[..., Session]

NASTY = "<img src=x onerror=alert(1)> T cell"
NAMES = (NASTY, "B cell", "腫瘍")
LEFT = ((0.0, 0.01), (0.5, 0.01), (0.5, 0.99), (0.0, 0.99))
ALL = ((0.0, 0.01), (0.99, 0.01), (0.99, 0.99), (0.0, 0.99))

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def labels_given(session: Session) -> list[Event]:
    return [event for event in session.events if event.kind == "assign"]


def test_a_sitting(tab: Tabs, phantom: Made) -> None:
    """Open, lasso, label, undo, redo, retrain, accept, search, reload, export."""
    session = phantom(NAMES)
    with session.serve() as server, tab(server.url) as desk:
        assert NASTY in desk.page.locator(".chips").inner_text()
        assert desk.page.locator("img").count() == 0, "markup in names is text"
        desk.press("m")
        desk.wait("desk.state.map === 'spatial'")
        desk.lasso(*LEFT)
        n_left = desk.wait("desk.state.set.length")
        desk.wait("desk.state.timings.gallery_ms")
        rows = np.array(desk.get("[...desk.state.set]"))
        assert 0 < n_left < session.n
        desk.press("a", "2")
        desk.wait("desk.state.counts.labelled > 0")
        desk.settle()
        assert (session.codes[rows] == session.label_class("B cell")).all()
        assert (session.codes >= 0).sum() == n_left, "no other cell was labelled"

        desk.press("z")
        desk.wait("desk.state.counts.labelled === 0")
        desk.press("z")
        desk.wait("desk.state.notices.some((n) => n.text === 'There is nothing to undo.')")
        assert (session.codes == -1).all()
        desk.press("Shift+Z")
        desk.wait("desk.state.counts.labelled > 0")

        desk.lasso(*ALL)
        desk.wait(f"desk.state.set.length === {session.n}")
        desk.lasso(*LEFT, key="Alt")
        desk.wait(f"desk.state.set.length === {session.n - n_left}")
        desk.press("ArrowRight", " ", "3")
        desk.settle()
        desk.press("a", "1")
        desk.settle()
        desk.press("z")
        desk.wait(f"desk.state.counts.labelled === {n_left + 1}")
        desk.press("ArrowDown", "u", "ArrowDown", "x")
        desk.settle()
        desk.wait("desk.state.counts.unsure === 1 && desk.state.counts.not_cell === 1")

        desk.press("t")
        desk.wait("desk.state.model && desk.state.prediction && desk.state.confidence")
        labelled = int((session.codes >= 0).sum())
        assert labelled == n_left + 1, "suggestions are not labels"
        desk.wait("document.querySelector('.hint').textContent.startsWith('Go on labelling. Fewer than 20 labels')")
        suggestion = desk.page.locator(".facts")
        assert "none yet" not in suggestion.inner_text(), "the current cell tells what is suggested now"
        desk.press("n")
        desk.wait("desk.state.setName === 'queue' && desk.state.set.length")
        desk.press("Enter")
        desk.settle()
        desk.wait(f"desk.state.counts.labelled === {labelled + 1}")
        assert labels_given(session)[-1].source == "suggested"
        desk.press("s")
        desk.wait("desk.state.setName === 'like this cell' && desk.state.set.length > 1")

        codes = session.codes.copy()
        desk.page.reload()
        desk.wait("desk.state.timings.first_paint_ms")
        assert desk.get("[...desk.state.codes]") == codes.tolist()
        desk.page.locator("summary", has_text="Export").click()
        with desk.page.expect_download() as saved:
            desk.page.get_by_role("button", name="Labels as CSV").click()
        text = saved.value.path().read_text(encoding="utf-8")
        assert len(text.splitlines()) > labelled, "with a header"
        assert desk.get("desk.state.notices.filter((n) => n.kind === 'error').length") == 0


def test_pages_of_suggestions(tab: Tabs, phantom: Made) -> None:
    """The next page, a cell out, Enter; what was taken out does not come again for that class."""
    session = phantom(NAMES)
    kinds = session.table.obs["cell_type"].astype("category").cat.codes.to_numpy()
    with session.serve() as server, tab(server.url) as desk:
        button = desk.page.locator(".learn .bar button", has_text="Next page")
        assert "at least two classes" in button.get_attribute("title")
        button.click()
        desk.wait("desk.state.notices.some((n) => n.text.includes('at least two classes'))")
        assert desk.get("desk.state.set.length") == 0
        for code in range(3):
            session.assign(np.flatnonzero(kinds == code)[:8], code, source="bulk")
        desk.wait("desk.state.lacking() === 'There are no suggestions yet: retrain first (t).'")
        desk.press("t")
        desk.wait("desk.state.lacking() === '' && desk.state.prediction")

        desk.press("o")
        label = desk.wait("desk.state.offer && desk.state.offer.label + 1") - 1
        rows = desk.get("[...desk.state.set]")
        desk.wait("desk.state.set.every((row) => desk.state.seen.has(row))")
        name = session.name_of(label)
        assert desk.page.locator(".gallery strong").inner_text() == f"{name}?"
        assert desk.get("desk.state.picks.count") == len(rows) > 2
        box = desk.page.locator(".scroller").bounding_box()
        desk.page.mouse.click(box["x"] + 60, box["y"] + 50)
        out = desk.get("desk.state.current")
        assert desk.get("desk.state.picks.count") == len(rows) - 1
        desk.press("Enter")
        desk.settle()
        kept = sorted(set(rows) - {out})
        assert (session.codes[kept] == label).all()
        assert session.codes[out] == -1
        event = labels_given(session)[-1]
        assert (event.source, event.shown) == ("suggested", len(rows))
        assert "1 out" in desk.page.locator(".gallery .bar").first.inner_text()
        desk.press("Enter")
        desk.wait("desk.state.notices.some((n) => n.text.startsWith('This page is done'))")
        assert session.codes[out] == -1, "a second Enter does not accept what was taken out"
        assert out not in session.offers.of(label).rows

        desk.press("o")
        desk.wait("desk.state.offer && desk.state.offer.labelled === null")
        shown, offered = desk.get("[...desk.state.set]"), desk.get("desk.state.offer.label")
        assert offered != label or out not in shown
        desk.wait("desk.state.set.every((row) => desk.state.seen.has(row))")
        desk.page.mouse.click(box["x"] + 60, box["y"] + 50)
        out, other = desk.get("desk.state.current"), (offered + 1) % 3
        desk.press(str(other + 1))
        desk.settle()
        assert session.codes[out] == other, "the key was for the cell taken out alone"
        assert labels_given(session)[-1].source == "single"
        assert desk.get("desk.state.picks.count") == len(shown) - 1
        before = len(labels_given(session))
        desk.press("a", "a", "Enter")
        desk.wait("desk.state.offer.labelled === 0")
        desk.press("o")
        desk.wait("desk.state.offer.labelled === null || desk.state.notices.some((n) => n.text.startsWith('No sugg'))")
        assert set(shown) <= set(session.offers.taken_out()[offered].tolist())
        assert len(labels_given(session)) == before, "nothing was labelled"
        assert desk.get("desk.state.notices.filter((n) => n.kind === 'error').length") == 0


def test_keys_do_nothing_while_typing_and_any_class_is_found_by_typing(tab: Tabs, tmp_path: Path) -> None:
    sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=96, rng=0)
    cy.pp.measure_cells(sdata)
    session = Session(
        sdata, classes=[f"class {i:02}" for i in range(60)], log=tmp_path / "log.jsonl", annotator="maria"
    )
    with session.serve() as server, tab(server.url, color_scheme="dark") as desk:
        assert desk.page.locator(".cytonym-label").get_attribute("data-theme") == "dark"
        desk.press("v")
        desk.wait("desk.state.set.length")
        row = desk.get("desk.state.current")
        note = desk.page.get_by_label("Note on this cell")
        note.fill("12uxz")
        note.press("Tab")
        desk.page.wait_for_timeout(200)
        assert (session.codes == -1).all()
        assert session.notes == {row: "12uxz"}
        desk.page.locator(".scroller").focus()
        desk.press("l")
        desk.page.keyboard.type("57")
        desk.press("Enter")
        desk.wait("desk.state.counts.labelled === 1")
        assert session.codes[row] == session.label_class("class 57")
        desk.page.locator(".scroller").focus()
        desk.press("?")
        assert desk.page.locator("dialog[open]").inner_text().count("Undo".lower()) == 1
        desk.press("1", "Escape")
        desk.page.wait_for_timeout(200)
        assert (session.codes != -1).sum() == 1, "no shortcut behind the sheet"


def test_two_tabs_and_a_lost_connection(tab: Tabs, phantom: Made) -> None:
    session = phantom(n_cells=60)
    server = session.serve()
    with tab(server.url) as one, tab(server.url) as other:
        one.press("v")
        one.wait("desk.state.set.length")
        one.press("1")
        other.wait("desk.state.counts.labelled === 1")
        assert other.get("desk.state.codes.filter((c) => c >= 0).length") == 1
        server.close()
        one.wait("desk.state.connection !== 'open'")
        assert one.page.locator(".banner").is_visible()
        one.press("2")
        one.wait("desk.state.unsent.cells === 1")
        assert "not confirmed" in one.page.locator(".banner").inner_text()
        assert one.get("desk.state.codes.filter((c) => c >= 0).length") == 1, "shown as not stored"
        assert (session.codes >= 0).sum() == 1


def test_a_table_without_images_is_labelled_by_its_map(tab: Tabs) -> None:
    import anndata as ad

    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.normal(size=(30, 4)).astype("f4"))
    adata.obsm["X_umap"] = rng.normal(size=(30, 2))
    adata.obs_names = adata.obs_names.astype(str)
    session = Session(adata, classes=["a"], annotator="maria")
    with session.serve() as server, tab(server.url) as desk:
        assert "no image" in desk.page.locator(".context .empty").inner_text()
        desk.press("v", "a", "1")
        desk.wait("desk.state.counts.labelled === 30")
        assert (session.codes == 0).all()
