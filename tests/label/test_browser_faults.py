"""The page in a real browser: what goes wrong, and what must not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.label.server import Server
    from cytonym.label.session import Session

    Tabs = Callable[..., Any]
    Made = Callable[..., Session]

LABELLED = "desk.state.codes.filter((c) => c !== -1).length"
INK = """(() => {
  const from = document.querySelector('.map canvas');
  const to = Object.assign(document.createElement('canvas'), { width: from.width, height: from.height });
  const g = to.getContext('2d');
  desk.map.draw();
  g.drawImage(from, 0, 0);
  return g.getImageData(0, 0, to.width, to.height).data.filter((v, i) => i % 4 === 3 && v).length;
})()"""
NO_WEBGL = """
const plain = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) { return kind === 'webgl2' ? null : plain.call(this, kind, ...rest); };
"""
LONG = [f"{i} Tumorinfiltrierende-Lymphozyten-mit-sehr-langem-Namen-{'ä' * 60}"[:100] for i in range(14)]
OUTSIDE = """[...document.querySelectorAll('button, select, summary, textarea, input, .number')].filter((e) => {
  if (!e.checkVisibility() || e.classList.contains('hidden')) return false;
  const [box, frame] = [e, e.closest('dialog, .pane, header, .cytonym-label')].map((x) => x.getBoundingClientRect());
  return box.right > frame.right + 1 || box.left < frame.left - 1;
}).map((e) => e.outerHTML)"""

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def started_again(session: Session, old: Server) -> Server:
    """A server at the address of one that was closed, token included."""
    from cytonym.label.server import Server

    server = Server(session.desk, port=old.port)
    server.token = old.token
    return server.start()


def test_news_leave_the_note_to_who_types_it(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.set.length")
        row = desk.get("desk.state.current")
        note = desk.page.get_by_label("Note on this cell")
        note.focus()
        desk.page.keyboard.type("large nucl")
        session.assign([row], "B cell")
        desk.wait("document.querySelector('.facts').textContent.includes('B cell')")
        desk.get("desk.state.emit('model', 'details')")
        desk.page.wait_for_timeout(200)
        desk.page.keyboard.type("eus 12")
        assert note.input_value() == "large nucleus 12"
        note.press("Tab")
        desk.wait("desk.state.notices.some((n) => n.text === 'Note stored.')")
        assert session.notes == {row: "large nucleus 12"}
        assert desk.get(LABELLED) == 1, "no key of the text labelled a cell"
        desk.page.locator(".scroller").focus()
        desk.press("ArrowRight")
        desk.wait(f"desk.state.current !== {row} && document.querySelector('textarea').value === ''")


def test_a_key_that_is_held_labels_one_cell_and_moves_on_and_on(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.timings.gallery_ms")
        for key in ("1", "ArrowRight", "z", "1"):
            before = desk.get("[...desk.state.set].indexOf(desk.state.current)")
            for _ in range(4):
                desk.page.keyboard.down(key)
            desk.page.keyboard.up(key)
            desk.settle()
            if key == "ArrowRight":
                assert desk.get("[...desk.state.set].indexOf(desk.state.current)") == before + 4
        desk.wait(f"{LABELLED} === 1")
        assert [event.kind for event in session.events[-3:]] == ["assign", "undo", "assign"]
        assert session.events[-1].shown == 1
        assert desk.failures() == []


def test_the_map_comes_back_with_the_graphics_card(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.timings.gallery_ms")
        before = desk.get(INK)
        desk.get(
            "(window.lose = document.querySelector('.map canvas').getContext('webgl2').getExtension('WEBGL_lose_context')).loseContext()"
        )
        desk.wait("document.querySelector('.map canvas').getContext('webgl2').isContextLost()")
        assert desk.get(INK) == 0
        desk.page.wait_for_timeout(100)
        desk.get("window.lose.restoreContext()")
        desk.wait(f"{INK} === {before}")
        assert before > 0
        assert desk.get("document.querySelector('.map canvas').getContext('webgl2').getError()") == 0
        canvases = "[...document.querySelectorAll('canvas:not(.over)')]"
        desk.get(f"(window.cards = {canvases}.map((c) => c.getContext('webgl2')), desk.close())")
        lost = desk.page.evaluate("() => window.cards.map((g) => g.isContextLost())")
        assert lost == [True] * 3, "a browser has few of them"


def test_without_webgl_the_page_says_so(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    ready = "desk.state.connection === 'open' && desk.state.points"
    with session.serve() as server, tab(server.url, script=NO_WEBGL, ready=ready) as desk:
        assert desk.page.locator(".notice.error").count() == 3
        for pane in ("map", "gallery", "context"):
            assert "no WebGL2" in desk.page.locator(f".{pane} .empty").inner_text()
        assert "There is no map" not in desk.page.locator(".map").inner_text()
        desk.press("n")
        desk.wait("desk.state.set.length")
        desk.press("1")
        desk.wait("desk.state.counts.labelled === 1")


def test_what_was_not_confirmed_is_sent_again_but_not_over_newer_labels(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    server = session.serve()
    with tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.set.length")
        rows = desk.get("[...desk.state.set]")
        desk.press("1")
        desk.wait("desk.state.counts.labelled === 1")
        server.close()
        desk.wait("desk.state.connection !== 'open'")
        desk.press("2", "3")
        desk.wait("desk.state.unsent.cells === 2")
        desk.get("desk.state.job = { name: 'retrain', done: 1, total: 2, text: '', state: 'running' }")
        server = started_again(session, server)
        desk.wait("desk.state.connection === 'open' && desk.state.notices.length")
        again = desk.page.get_by_role("button", name="Send again")
        assert again.count() == 1
        assert desk.get("desk.state.job") is None
        for k in range(7):
            desk.get(f"desk.state.notify('error', 'trouble {k}')")
        assert again.count() == 1, "no other notice takes its place"
        assert "2 labels were" in desk.page.locator(".notice").first.inner_text()
        desk.get(f"desk.state.setCurrent({rows[1]})")
        desk.press("1")
        desk.wait("desk.state.counts.labelled === 2 && desk.state.unsent.cells === 1")
        again.click()
        desk.wait("desk.state.counts.labelled === 3")
        assert session.codes[rows[:3]].tolist() == [0, 0, 2], "the newer label stays"
        assert again.count() == 0

        server.close()
        desk.wait("desk.state.connection !== 'open'")
        desk.get(f"desk.state.setCurrent({rows[5]})")
        desk.press("2")
        desk.wait("desk.state.unsent.cells === 1")
        server = started_again(session, server)
        desk.wait("desk.state.connection === 'open' && desk.state.notices.some((n) => n.key === 'unsent')")
        desk.press("z")
        desk.wait("desk.state.unsent.cells === 0")
        assert again.count() == 0
        assert (session.codes >= 0).sum() == 3, "what was stored is not what z takes back"
        desk.press("z")
        desk.wait("desk.state.counts.labelled === 2")
    server.close()


def test_a_page_of_an_earlier_server_loses_no_label(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    server = session.serve()
    with tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.set.length")
        server.close()
        desk.wait("desk.state.connection !== 'open'")
        desk.press("2")
        desk.wait("desk.state.unsent.cells === 1")
        server = session.serve(port=server.port)  # with a token of its own
        desk.wait("desk.state.connection === 'closed'")
        assert "1 label is not confirmed" in desk.page.locator(".banner").inner_text()
        other = desk.another(server.url)
        other.page.get_by_role("button", name="Send again").click()
        other.wait("desk.state.counts.labelled === 1")
        desk.wait("desk.state.unsent.cells === 0")
        assert (session.codes == 1).sum() == 1
        assert other.errors == []
    server.close()


def test_what_was_loading_is_asked_for_again(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    server = session.serve()
    with tab(server.url) as desk:
        desk.get("(desk.state.points = null, desk.state.columns.set('marker:x', {}))")
        send = "desk.state.link.transport.send"
        desk.get(f"(window.send = {send}.bind(desk.state.link.transport), {send} = () => {{}})")
        desk.press("v")
        desk.get("desk.state.showSet(Uint32Array.from({ length: 20 }, (_, i) => i), 'some')")
        desk.page.wait_for_timeout(200)
        assert desk.get("desk.state.seen.count") == 0
        desk.get(f"{send} = window.send")
        server.close()
        desk.wait("desk.state.connection !== 'open'")
        server = started_again(session, server)
        desk.wait("desk.state.seen.count >= 20 && desk.state.points")
        desk.wait("document.querySelector('.facts')")
        assert desk.get("desk.state.columns.has('marker:x')") is False
        assert desk.failures() == []
    server.close()


def test_another_tab_hears_what_can_be_undone(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        row = desk.wait("desk.state.set.length && desk.state.current + 1") - 1
        undo = desk.page.get_by_role("button", name="Undo (z)")
        assert undo.is_disabled()
        session.assign([row], "B cell")
        desk.wait("document.querySelector('.facts').textContent.includes('B cell')")
        assert undo.is_enabled()


def test_long_names_of_classes_at_1280(tab: Tabs, phantom: Made) -> None:
    session = phantom(LONG)
    session.assign(np.arange(80), LONG[0], source="bulk")
    session.assign(np.arange(80, 120), LONG[1], source="bulk")
    with session.serve() as server, tab(server.url) as desk:
        desk.press("t")
        desk.wait("desk.state.prediction")
        desk.press("o")
        desk.wait("desk.state.offer && desk.state.seen.count")
        desk.page.wait_for_timeout(100)
        assert desk.get(OUTSIDE) == []
        assert desk.get("document.documentElement.scrollWidth") <= 1280
        desk.page.get_by_role("button", name="Edit classes…").click()
        assert desk.get(OUTSIDE) == []
        assert desk.page.get_by_label(f"Name of {LONG[3]}").bounding_box()["width"] > 100
        desk.page.get_by_role("button", name=f"Remove {LONG[0]}").click()
        assert desk.get(OUTSIDE) == []
        desk.press("Escape", "l")
        assert desk.get(OUTSIDE) == []


def test_one_cell(tab: Tabs, phantom: Made) -> None:
    session = phantom(n_cells=1)
    with session.serve() as server, tab(server.url) as desk:
        assert desk.get(INK) > 0
        box = desk.page.locator(".map .stage").bounding_box()
        desk.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert desk.get("desk.state.current") == 0
        desk.press("1")
        desk.wait("desk.state.counts.labelled === 1")
        desk.press("z", "m", "v")
        desk.wait("desk.state.counts.labelled === 0 && desk.state.set.length === 1 && desk.state.seen.count")
        desk.press("ArrowRight", "a", "2", "s", "t")
        desk.wait("desk.state.counts.labelled === 1")
        desk.press("n")
        desk.wait("desk.state.notices.some((n) => n.text.startsWith('The queue is empty'))")
        assert session.codes.tolist() == [1]


def test_the_panes_follow_the_size_of_the_window(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.timings.gallery_ms")
        for width, height in ((1920, 1080), (1100, 700)):
            desk.page.set_viewport_size({"width": width, "height": height})
            stage = "document.querySelector('.map .stage')"
            desk.wait(f"document.querySelector('.map canvas').width === {stage}.clientWidth")
            assert desk.get(INK) > 0
            assert desk.get(OUTSIDE) == []


def test_nobody_gets_lost_beside_the_tissue(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.timings.gallery_ms")
        box = desk.page.locator(".context .stage").bounding_box()
        for _ in range(4):
            desk.page.mouse.move(box["x"] + 10, box["y"] + 10)
            desk.page.mouse.wheel(0, 120)
            desk.page.mouse.down()
            desk.page.mouse.move(box["x"] + box["width"] - 10, box["y"] + box["height"] - 10, steps=4)
            desk.page.mouse.up()
            desk.page.wait_for_timeout(150)
        note = desk.page.locator(".context .empty")
        assert desk.failures() == []
        assert note.is_hidden()
        desk.get(
            "(desk.state.link.request = ((ask) => (type, ...rest) => type === 'context' ? Promise.reject(new Error('too many to show')) : "
            "ask.call(desk.state.link, type, ...rest))(desk.state.link.request), desk.state.emit('channels'))"
        )
        note.wait_for(state="visible")
        assert note.inner_text() == "too many to show"
        assert desk.failures() == []


def test_controls_stay_where_they_are(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        job = "desk.state.push({ type: 'job', name: 'remap', done: %d, total: 9, text: '', state: 'running' }, [])"
        desk.get(job % 1)
        desk.get("desk.state.notify('error', 'first')")
        controls = "[...document.querySelectorAll('.job button, .notice button')]"
        desk.get(f"window.before = {controls}")
        desk.get(job % 5)
        desk.get("desk.state.notify('info', 'second')")
        assert desk.get(f"window.before.length === 2 && window.before.every((b) => {controls}.includes(b))")
        assert "56 %" in desk.page.locator(".job").inner_text()

        desk.press("v", "a")
        desk.wait("desk.state.picks.count")
        for menu in (desk.page.locator("summary", has_text="Export"), desk.page.locator(".learn summary")):
            menu.click()
            desk.press("Escape")
            assert desk.page.locator("details[open]").count() == 0
            assert desk.get("desk.state.picks.count") == session.n, "Esc closed the menu and nothing else"
        desk.press("Escape")
        assert desk.get("desk.state.picks.count") == 0
        desk.get("desk.state.showSet(new Uint32Array(0), 'none')")
        desk.lasso((0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), key="Alt")
        assert desk.get("desk.state.set.length") == 0, "nothing is taken from nothing"


def test_names_are_typed_with_an_input_method(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        row = desk.wait("desk.state.set.length && desk.state.current + 1") - 1
        desk.press("l")
        desk.page.keyboard.type("e\u0301toile")  # the server writes it with one character
        found = desk.page.get_by_role("combobox", name="Class name")
        chosen = found.get_attribute("aria-activedescendant")
        assert desk.page.locator(f"#{chosen}").get_attribute("aria-selected") == "true"
        found.evaluate(
            "(e) => e.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"
        )
        assert desk.page.locator("dialog[open]").count() == 1, "Enter was for the input method"
        desk.press("Enter")
        desk.wait("desk.state.counts.labelled === 1")
        assert session.codes[row] == session.label_class("\u00e9toile")


def test_an_order_that_is_slow_to_come_does_not_replace_a_newer_one(tab: Tabs, phantom: Made) -> None:
    session = phantom()
    with session.serve() as server, tab(server.url) as desk:
        desk.press("v")
        desk.wait("desk.state.timings.gallery_ms")
        desk.get(
            "desk.state.column = () => new Promise((done) => (window.done = () => done({ values: desk.state.codes.map((_, i) => i) })))"
        )
        menu = desk.page.get_by_label("Sort by")
        menu.select_option(f"marker:{session.desk.looks.columns.markers[0]}")
        menu.select_option("found")
        desk.get("window.done()")
        desk.page.wait_for_timeout(100)
        assert desk.get("[...desk.state.order]") == desk.get("[...desk.state.set]")
