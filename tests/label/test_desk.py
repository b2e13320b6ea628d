"""Every message, and everything that is none."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import threading
import tracemalloc
import zipfile
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import cytonym as cy
from cytonym.label import uploads
from cytonym.label.desk import READERS
from cytonym.label.session import Session
from cytonym.label.uploads import read_picture
from cytonym.label.wire import MOST_HEADER, BadRequestError, decode, encode, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.label.desk import Desk

    Ask = Callable[..., tuple[dict[str, Any], list[bytes]]]

MARKUP = "<img src=x onerror=alert(1)>"
PATHS = ("../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "file:///etc/passwd", "a\x00b", "%2e%2e%2f")


@pytest.fixture(scope="module")
def tissue() -> SpatialData:
    sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=84, rng=0)
    cy.pp.measure_cells(sdata)
    return sdata


@pytest.fixture
def desk(tissue: SpatialData, tmp_path: Path) -> Iterator[Desk]:
    found = Session(tissue, classes=["T", "B"], log=tmp_path / "labels.jsonl", annotator="maria").desk
    yield found
    found.close()


@pytest.fixture
def ask(desk: Desk) -> Ask:
    return asker(desk)


def asker(desk: Desk, client: Any = None) -> Ask:
    def ask(type: str, *buffers: bytes, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
        header, out = asyncio.run(desk.handle({"id": 7, "type": type, **fields}, list(buffers), client))
        json.dumps(header, allow_nan=False)
        assert header.pop("re") == 7
        return header, [bytes(buffer) for buffer in out]

    return ask


def u4(*rows: int) -> bytes:
    return np.array(rows, "<u4").tobytes()


def numbers(buffer: bytes, dtype: str = "<u4") -> list[int]:
    return np.frombuffer(buffer, dtype).tolist()


# --------------------------------------------------------------------------------------------------------------- messages
def test_hello(ask: Ask) -> None:
    told, _ = ask("hello")
    assert told["ok"]
    assert told["protocol"] == 1
    assert told["n"] == 60
    assert [c["name"] for c in told["classes"]] == ["T", "B"]
    assert told["regions"] == [{"name": "cells", "first": 0, "count": 60, "width": 84, "height": 84}]
    assert told["maps"] == ["pca", "spatial"]
    assert len(told["channels"]) == len(told["markers"]) == 12
    assert told["counts"]["total"] == 60
    assert (told["has_image"], told["rgb"], told["readonly"], told["model"]) == (True, False, False, None)
    assert (told["can_undo"], told["can_redo"], told["annotator"], told["patch_px"]) == (False, False, "maria", 32)


@pytest.mark.parametrize("name", ["pca", "spatial"])
def test_points_are_where_the_map_says(desk: Desk, ask: Ask, name: str) -> None:
    told, [buffer] = ask("points", map=name)
    found = np.frombuffer(buffer, "<u2").reshape(60, 2) / 65535
    limits = np.array([told["x"], told["y"]])
    assert np.allclose(
        limits[:, 0] + found * np.diff(limits).T, desk.session.maps.get(name), atol=np.diff(limits).max() / 60000
    )


def test_cells_that_are_not_on_the_map(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.full((60, 2), np.nan)
    monkeypatch.setattr(desk.session.maps, "get", lambda _name: points)
    told, [buffer] = ask("points", map="pca")
    assert told["x"][0] < told["x"][1]
    assert set(numbers(buffer, "<u2")) == {65535}
    points[0] = 3, 3
    assert numbers(ask("points", map="pca")[1][0], "<u2")[:2] == [32767, 32767], "in the middle"


def test_columns(desk: Desk, ask: Ask) -> None:
    ask("assign", u4(1, 2), **{"class": 0})
    ask("assign", u4(3), **{"class": 1, "source": "suggested"})
    told, [labels] = ask("column", name="label")
    assert told["kind"] == "codes"
    assert numbers(labels, "<i2")[:5] == [-1, 0, 0, 1, -1]
    told, [sources] = ask("column", name="source")
    assert [told["names"][k] if k >= 0 else None for k in numbers(sources, "<i2")[:4]] == [
        None,
        "bulk",
        "bulk",
        "suggested",
    ]
    told, [scale] = ask("column", name="marker:CD3")
    assert told["kind"] == "scale"
    true = (
        np.asarray(desk.session.table.obsm["mean_intensity"]["CD3"])
        if "mean_intensity" in desk.session.table.obsm
        else np.asarray(desk.session.table[:, "CD3"].X).ravel()
    )
    seen = told["low"] + np.frombuffer(scale, "u1") / 254 * (told["high"] - told["low"])
    assert np.allclose(seen, np.clip(true, told["low"], told["high"]), atol=(told["high"] - told["low"]) / 250)
    for name in ("prediction", "confidence", "discordant", "marker:", "marker:nothing", "obs", *PATHS, MARKUP):
        told, out = ask("column", name=name)
        assert not told["ok"]
        assert not out


def test_gallery_and_context(desk: Desk, ask: Ask) -> None:
    pictures = desk.looks.pictures
    assert pictures is not None
    told, [pixels, outline] = ask("gallery", u4(5, 0, 5), channels=[3, 1])
    assert (told["n"], told["c"], told["size"], told["dtype"], told["mask"]) == (3, 2, 32, "u2", True)
    assert told["channels"] == [3, 1]
    assert len(told["limits"]) == 2
    expected = pictures.gallery(np.array([5, 0, 5]), [3, 1])
    assert pixels == expected.pixels.tobytes()
    assert outline == expected.outline.tobytes()
    told, [pixels, rows] = ask("context", region="cells", y=10, x=12, h=40, w=50, px=25)
    assert (told["c"], told["h"], told["w"], told["scale"], told["y"], told["x"]) == (12, 20, 25, 2, 10, 12)
    piece = pictures.context(0, 10, 12, 40, 50, px=25)
    assert pixels == piece.pixels.tobytes()
    assert rows == piece.rows.tobytes()
    assert max(numbers(rows)) <= 60


def test_assign_undo_redo(desk: Desk, ask: Ask) -> None:
    told, [rows, codes] = ask("assign", u4(4, 2, 2), **{"class": 1, "source": "bulk", "shown": 20})
    assert told["changed"] == 2
    assert numbers(rows) == [2, 4]
    assert numbers(codes, "<i2") == [1, 1]
    assert told["counts"]["by_class"] == {"0": 0, "1": 2}
    assert (told["can_undo"], told["can_redo"]) == (True, False)
    event = desk.session.events[-1]
    assert (told["event"], event.source, event.shown, event.by) == (event.id, "bulk", 20, "maria")
    told, [rows, codes] = ask("undo")
    assert numbers(rows) == [2, 4]
    assert numbers(codes, "<i2") == [-1, -1]
    assert told["can_redo"]
    told, [rows, codes] = ask("redo")
    assert numbers(codes, "<i2") == [1, 1]
    told, [rows, codes] = ask("redo")  # nothing left
    assert (told["ok"], told["event"], told["changed"]) == (True, None, 0)
    for special in (-2, -3, -1):
        _, [_, codes] = ask("assign", u4(0), **{"class": special})
        assert numbers(codes, "<i2") == [special]


def test_classes(ask: Ask) -> None:
    told, _ = ask("classes", op="add", name=MARKUP, color="#102030")
    added = told["classes"][-1]
    assert added == {"id": 2, "name": MARKUP, "color": "#102030"}  # plain text, as it came
    told, _ = ask("classes", op="rename", **{"class": 2, "name": "NK κλμ 🧬"})
    assert told["classes"][-1]["name"] == "NK κλμ 🧬"
    told, _ = ask("classes", op="color", **{"class": 2, "color": "#ff0000"})
    assert told["classes"][-1]["color"] == "#ff0000"
    ask("assign", u4(1), **{"class": 2})
    told, [rows, codes] = ask("classes", op="remove", **{"class": 2, "into": 0})
    assert [c["id"] for c in told["classes"]] == [0, 1]
    assert (numbers(rows), numbers(codes, "<i2")) == ([1], [0])
    told, [rows, codes] = ask("classes", op="restore", **{"class": 2})
    assert (numbers(rows), numbers(codes, "<i2")) == ([1], [2])
    for bad in (
        {"op": "drop"}, {"op": "add"}, {"op": "add", "name": ""}, {"op": "add", "name": "x" * 5000}, {"op": "add", "name": 3},
        {"op": "add", "name": "ok", "color": "url(http://evil)"}, {"op": "rename", "class": 99, "name": "x"},
        {"op": "rename", "class": True, "name": "x"}, {"op": "color", "class": 0, "color": "red;background:url(x)"},
        {"op": "remove", "class": 0, "into": 0}, {"op": "remove", "class": -1}, {"op": "add", "name": "T"}, {"op": "add", "name": "a\nb"},
    ):  # fmt: skip
        told, _ = ask("classes", **bad)
        assert not told["ok"], bad


def test_sixty_classes(ask: Ask) -> None:
    for k in range(58):
        assert ask("classes", op="add", name=f"class {k}")[0]["ok"]
    told, _ = ask("hello")
    assert len(told["classes"]) == len({c["color"] for c in told["classes"]}) == 60


def test_note_and_cell(ask: Ask) -> None:
    assert ask("note", row=3, text=MARKUP)[0]["ok"]
    ask("assign", u4(3), **{"class": 0})
    told, _ = ask("cell", row=3)
    assert (told["note"], told["label"], told["label_name"], told["by"]) == (MARKUP, 0, "T", "maria")
    assert told["region"] == "cells"
    assert 0 <= told["x"] < 84
    assert told["prediction"] == -1
    assert len(told["markers"]) == 12
    assert [event["kind"] for event in told["history"]] == ["note", "assign"]
    for bad in ({"row": 60}, {"row": -1}, {"row": "3"}, {"row": 3.0}, {}):
        assert not ask("cell", **bad)[0]["ok"]
        assert not ask("note", text="x", **bad)[0]["ok"]
    assert not ask("note", row=3, text="x" * 20_000)[0]["ok"]


def test_training_queue_and_search(desk: Desk, ask: Ask) -> None:
    news: list[dict[str, Any]] = []
    desk.subscribe(lambda header, _buffers: news.append(header))
    assert ask("queue", n=5)[1]  # without a model, too
    assert ask("offer", n=5)[0]["class"] is None
    ask("assign", u4(0, 1, 2, 3), **{"class": 0})
    ask("assign", u4(4, 5, 6, 7), **{"class": 1})
    assert ask("retrain")[0]["started"]
    wait(lambda: [n for n in news if n["type"] == "model"])
    model = next(n for n in news if n["type"] == "model")
    assert model["trained_on"] == 8
    assert ask("hello")[0]["model"]["version"] == model["version"]
    assert set(numbers(ask("column", name="prediction")[1][0], "<i2")) <= {0, 1}
    assert ask("column", name="confidence")[0]["kind"] == "scale"
    assert ask("column", name="discordant")[0]["ok"]
    told, [rows] = ask("queue", n=5)
    assert len(told["reasons"]) == len(set(numbers(rows))) == 5
    assert not set(numbers(rows)) & set(range(8))
    told, [rows] = ask("offer", n=5)
    assert told["class"] in (0, 1)
    assert 0 < len(numbers(rows)) <= 5
    assert not set(numbers(rows)) & set(range(8))
    told, [rows] = ask("offer", **{"class": 1})
    assert told["class"] == 1
    assert told["expected"] <= len(numbers(rows))
    assert not ask("offer", **{"class": 77})[0]["ok"]
    gone = numbers(rows)[:2]
    _, [rows] = ask("offer", u4(*gone), out=1, **{"class": 1})
    assert not set(gone) & set(numbers(rows))
    assert not ask("offer", u4(5), out=77)[0]["ok"]
    told, [rows] = ask("search", row=3, n=4)
    assert len(numbers(rows)) == 4
    assert told["distances"] == sorted(told["distances"])
    told, _ = ask("cell", row=9)
    assert sum(p for _, p in told["probabilities"]) == pytest.approx(1)
    told, _ = ask("summary")
    assert told["labelled"] == 8
    assert not told["stop"]["suggested"]


@pytest.mark.parametrize("again", [True, False])
def test_a_page_that_was_gone_through(desk: Desk, ask: Ask, *, again: bool) -> None:
    news: list[dict[str, Any]] = []
    desk.subscribe(lambda header, _buffers: news.append(header))
    session = desk.session
    session.retrain_after_pages = again
    ask("assign", u4(0, 1, 2, 3), **{"class": 0})
    ask("assign", u4(4, 5, 6, 7), **{"class": 1})
    session.learner.retrain(background=False)
    told, [page] = ask("offer", **{"class": 1})
    assert told["model"] == session.learner.version
    first, second, *kept = numbers(page)
    fields = {"class": 1, "source": "suggested", "shown": len(kept) + 2, "model": told["model"]}
    assert not ask("assign", u4(*kept), u4(60), **fields)[0]["ok"]
    assert not ask("assign", u4(*kept), u4(second), **{**fields, "class": -2})[0]["ok"]
    assert not ask("assign", u4(*kept), **{**fields, "model": 7})[0]["ok"]
    assert ask("assign", u4(*kept), u4(first, second), **fields)[0]["ok"]
    event = next(e for e in reversed(session.events) if e.kind == "assign")
    assert (event.model, event.hits) == (told["model"], {"1": [len(kept), 2]})
    assert session.offers.taken_out()[1].tolist() == sorted([first, second])
    if again:
        wait(lambda: [n for n in news if n["type"] == "model"])
    assert bool([n for n in news if n["type"] in ("model", "job")]) == again
    assert session.learner.trained_on == (8 + len(kept) if again else 8)


def test_training_needs_two_classes(desk: Desk, ask: Ask) -> None:
    news: list[dict[str, Any]] = []
    desk.subscribe(lambda header, _buffers: news.append(header))
    ask("retrain")
    wait(lambda: [n for n in news if n["type"] == "job"])
    assert news[-1]["state"] == "failed"
    assert "two" in news[-1]["text"]


def test_new_map(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    news: list[dict[str, Any]] = []
    desk.subscribe(lambda header, _buffers: news.append(header))

    def remap(*, background: bool, on_done: Any, on_progress: Any) -> None:
        assert background
        on_progress(1, 3, "UMAP")
        on_done({"map": "umap"})

    monkeypatch.setattr(desk.session.maps, "remap", remap)
    assert ask("remap")[0]["started"]
    assert [n["type"] for n in news] == ["job", "map", "job"]
    assert [n["state"] for n in news if n["type"] == "job"] == ["running", "done"]
    assert ask("cancel")[0]["ok"]


def test_fine_tuning(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    news: list[dict[str, Any]] = []
    desk.subscribe(lambda header, _buffers: news.append(header))

    def finetune(*, steps: int, on_done: Any, on_progress: Any) -> None:
        if steps == 9:
            msg = "The encoder is being trained already."
            raise RuntimeError(msg)
        on_progress(steps, 10, "training")
        on_done(
            {"error": "no images"}
            if steps == 1
            else {"version": "a", "trained_on": 4, "seconds": 2.0}
            if steps == 2
            else {"cancelled": True}
        )

    monkeypatch.setattr(desk.session, "finetune", finetune)
    for steps, state, kinds in ((1, "failed", 2), (2, "done", 3), (3, "cancelled", 2)):
        news.clear()
        assert ask("finetune", steps=steps)[0]["started"]
        assert (news[0]["state"], news[0]["done"], news[0]["total"]) == ("running", steps, 10)
        assert news[-1]["state"] == state
        assert len(news) == kinds
    assert "already" in ask("finetune", steps=9)[0]["error"]


def test_exports(ask: Ask, tmp_path: Path) -> None:
    ask("assign", u4(0, 1), **{"class": 0})
    told, [content] = ask("export", what="csv")
    assert (tmp_path / told["name"]).read_bytes() == content
    assert content.count(b"\n") == 3
    again, _ = ask("export", what="csv")
    assert again["name"] != told["name"]  # nothing is replaced
    told, [content] = ask("export", what="masks")
    assert zipfile.ZipFile(io.BytesIO(content)).namelist()
    for bad in (*PATHS, "exe", None, 3, ["csv"]):
        assert not ask("export", what=bad)[0]["ok"]
    assert "no store" in ask("export", what="table")[0]["error"]


# ---------------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("kind", "fields", "buffers"),
    [
        ("assign", {"class": 0}, []),
        ("assign", {"class": 0}, [b""]),
        ("assign", {"class": 0}, [b"abc"]),
        ("assign", {"class": 0}, [u4(60)]),
        ("assign", {"class": 0}, [u4(2**32 - 1)]),
        ("assign", {"class": 0}, [u4(1), u4(2), u4(3)]),
        ("assign", {"class": 0}, [u4(*range(60), 0)]),
        ("assign", {"class": 9}, [u4(1)]),
        ("assign", {"class": -4}, [u4(1)]),
        ("assign", {"class": "T"}, [u4(1)]),
        ("assign", {"class": True}, [u4(1)]),
        ("assign", {"class": 0.0}, [u4(1)]),
        ("assign", {}, [u4(1)]),
        ("assign", {"class": 10**30}, [u4(1)]),
        ("assign", {"class": 0, "source": "imported"}, [u4(1)]),
        ("assign", {"class": 0, "source": PATHS[0]}, [u4(1)]),
        ("assign", {"class": 0, "shown": -1}, [u4(1)]),
        ("points", {"map": PATHS[0]}, []),
        ("points", {}, []),
        ("points", {"map": ["umap"]}, []),
        ("gallery", {"channels": [12]}, [u4(1)]),
        ("gallery", {"channels": [-1]}, [u4(1)]),
        ("gallery", {"channels": [1, 1]}, [u4(1)]),
        ("gallery", {"channels": []}, [u4(1)]),
        ("gallery", {"channels": "DNA"}, [u4(1)]),
        ("gallery", {"channels": [True]}, [u4(1)]),
        ("gallery", {}, [u4(60)]),
        ("gallery", {}, [u4(*[1] * 2001)]),
        ("context", {"region": PATHS[0], "y": 0, "x": 0, "h": 9, "w": 9, "px": 9}, []),
        ("context", {"region": "cells", "y": 0, "x": 0, "h": 0, "w": 9, "px": 9}, []),
        ("context", {"region": "cells", "y": 500, "x": 0, "h": 9, "w": 9, "px": 9}, []),
        ("context", {"region": "cells", "y": 0, "x": 0, "h": 9, "w": 9, "px": 10**9}, []),
        ("context", {"region": "cells", "y": None, "x": 0, "h": 9, "w": 9}, []),
        ("context", {"region": "cells", "y": 1e300, "x": 0, "h": 9, "w": 9}, []),
        ("queue", {"n": 0}, []),
        ("queue", {"n": 10**9}, []),
        ("offer", {"n": 10**9}, []),
        ("offer", {"class": "T"}, []),
        ("offer", {}, [u4(1)]),
        ("offer", {"out": "T"}, [u4(1)]),
        ("offer", {"out": 0}, [u4(60)]),
        ("search", {}, []),
        ("search", {"row": 60}, []),
        ("search", {"row": 0, "n": "many"}, []),
        ("note", {"row": 1}, []),
        ("finetune", {"steps": -1}, []),
        ("nothing", {}, []),
        ("__init__", {}, []),
        ("close", {}, []),
    ],
)  # fmt: skip
def test_bad_requests_change_nothing(
    desk: Desk, ask: Ask, kind: str, fields: dict[str, Any], buffers: list[bytes]
) -> None:
    before = len(desk.session.events)
    told, out = ask(kind, *buffers, **fields)
    assert told["ok"] is False
    assert told["error"]
    assert "went wrong" not in told["error"]  # foreseen, not a fault of ours
    assert not out
    assert len(desk.session.events) == before
    assert ask("hello")[0]["ok"]


@pytest.mark.parametrize("header", [None, [], "hello", 3, {}, {"type": None}, {"type": ["hello"]}, {"type": {"a": 1}}])
def test_what_is_no_message(desk: Desk, header: Any) -> None:
    told, _ = asyncio.run(desk.handle(header, []))
    assert told["ok"] is False
    assert told["re"] is None


@pytest.mark.parametrize("number", [None, True, [1], {"a": 1}, "x" * 100, 1.5])
def test_ids_of_messages_are_small(desk: Desk, number: Any) -> None:
    assert asyncio.run(desk.handle({"id": number, "type": "undo"}, []))[0]["re"] is None


def test_a_fault_of_ours_is_survived(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        msg = "secret"
        raise RuntimeError(msg)

    monkeypatch.setattr(desk.session, "undo", fail)
    told, _ = ask("undo")
    assert told == {"ok": False, "error": "Something went wrong: RuntimeError."}
    assert ask("assign", u4(1), **{"class": 0})[0]["ok"]


def test_a_full_disk_is_told(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cytonym.label.log.os.fsync", full)
        told, _ = ask("assign", u4(1), **{"class": 0})
    assert not told["ok"]
    assert numbers(ask("column", name="label")[1][0], "<i2")[1] == -1
    assert ask("assign", u4(1), **{"class": 0})[0]["ok"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.sampled_from(["type", "id", "class", "row", "name", "channels", "region", "op", "n", "what", "map", "y", "x", "h", "w", "px"]),
        st.one_of(
            st.sampled_from(["assign", "gallery", "context", "column", "points", "classes", "cell", "note", "search", "queue", "add", "label"]),
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
            st.lists(st.integers(-2, 20), max_size=4),
        ),
    ),
    buffers=st.lists(st.binary(max_size=40), max_size=3),
)  # fmt: skip
def test_any_message_is_answered(desk: Desk, header: dict[str, Any], buffers: list[bytes]) -> None:
    told, out = asyncio.run(desk.handle(header, buffers))
    assert isinstance(told["ok"], bool)
    assert told.get("error") is None or "went wrong" not in told["error"]
    decode(encode(told, out))


# ------------------------------------------------------------------------------------------------------------------- frames
@given(
    st.dictionaries(st.text(), st.one_of(st.integers(-(2**53), 2**53), st.text(), st.none())),
    st.lists(st.binary(), max_size=4),
)
def test_frames_come_back(header: dict[str, Any], buffers: list[bytes]) -> None:
    header.pop("buffers", None)
    frame = encode(header, buffers)
    assert len(frame) % 8 == 0
    assert struct.unpack_from("<I", frame)[0] % 8 == 4
    told, out = decode(frame)
    assert out == buffers
    assert told == json.loads(json.dumps(header))


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_frame_is_too_broken(frame: bytes) -> None:
    for each in (frame, struct.pack("<I", len(frame)) + frame, b"\x02\x00\x00\x00{}" + frame):
        try:
            header, buffers = decode(each)
        except BadRequestError:
            continue
        assert isinstance(header, dict)
        assert sum(map(len, buffers)) <= len(each)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}', '{"a": Infinity}', "[]", "3", '"x"', "{", '{"buffers": 3}', '{"buffers": [-1]}', '{"buffers": [1e9]}',
        '{"buffers": [99999999]}', '{"buffers": [true]}', '{"buffers": [0,0,0,0,0]}', "[" * 100_000, '{"a":' + "9" * 10_000 + "}",
    ],
)  # fmt: skip
def test_bad_headers_are_refused(text: str) -> None:
    body = text.encode()
    with pytest.raises(BadRequestError):
        decode(struct.pack("<I", len(body)) + body)


def test_long_headers_are_refused() -> None:
    with pytest.raises(BadRequestError, match="the most is"):
        decode(struct.pack("<I", MOST_HEADER + 1) + b" " * (MOST_HEADER + 1))


def test_plain_takes_anything() -> None:
    assert plain({"a": [np.nan, np.inf, np.int8(3), np.bool_(True), b"x", {1: (2,)}]}) == {
        "a": [None, None, 3, True, "b'x'", {"1": [2]}]
    }


# ------------------------------------------------------------------------------------------------------------------ uploads
def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG file that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return uploads.PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def test_pictures_are_read() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (9, 7, 3)).astype(np.uint8)
    assert np.array_equal(read_picture(png(rgb)), rgb.transpose(2, 0, 1))
    assert read_picture(png(rgb[..., 0])).shape == (1, 9, 7)
    stack = rng.integers(0, 60000, (12, 20, 21)).astype(np.uint16)
    assert np.array_equal(read_picture(tiff(stack, photometric="minisblack")), stack)
    assert read_picture(tiff(rgb, photometric="rgb")).shape == (3, 9, 7)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GIF89a" + bytes(100), b"%PDF-1.4", b"<svg onload=alert(1)>", b"PK\x03\x04" + bytes(50), uploads.PNG, uploads.PNG + bytes(99),
        b"II*\x00", b"II*\x00" + b"\xff" * 64, b"MM\x00*" + bytes(200), bomb(60_000, 60_000), bomb(2**31 - 1, 2**31 - 1), bomb(4096, 4097),
        tiff(np.zeros((2, 2, 2, 5, 5), np.uint8)), tiff(np.zeros((4, 4), np.complex64)), tiff(np.zeros((600, 8, 8), np.uint8), photometric="minisblack"),
    ],
    ids=str,
)  # fmt: skip
def test_other_files_are_refused(desk: Desk, ask: Ask, data: bytes) -> None:
    with pytest.raises(BadRequestError):
        read_picture(data)
    assert not ask("search", data)[0]["ok"]


def page_of(compression: int, part: bytes) -> bytes:
    """A TIFF file of one page, 64 x 64, in one part."""
    tags = {256: 64, 257: 64, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: 64, 279: len(part)}
    part += bytes(len(part) % 2)
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<4sI", b"II*\x00", 8 + len(part)) + part + struct.pack("<H", len(tags)) + listed + bytes(4)


@pytest.mark.parametrize(
    ("kind", "part"), [("png", png(np.zeros((4000, 4000), np.uint8))), ("deflate", zlib.compress(bytes(2**25)))]
)
def test_parts_of_a_tiff_file_that_are_larger_than_it_says(kind: str, part: bytes) -> None:
    """Pictures inside of it have sizes of their own, and a deflated part may hold anything."""
    tracemalloc.start()
    with pytest.raises(BadRequestError, match="compressed by PNG|more than the file claims"):
        read_picture(page_of({"png": 34933, "deflate": 8}[kind], part))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**22
    assert read_picture(page_of(8, zlib.compress(bytes(64 * 64)))).shape == (1, 64, 64)


def test_deep_colours_are_not_cut() -> None:
    """Pillow would read 8 of 16 bits."""
    data = bytearray(png(np.zeros((5, 5, 3), np.uint8)))
    data[24] = 16
    with pytest.raises(BadRequestError, match="Save it as TIFF"):
        read_picture(bytes(data))
    grey = np.full((5, 6), 40_000, np.uint16)
    assert np.array_equal(read_picture(png(grey)), grey[None])


def test_grey_with_transparency_is_one_channel() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((5, 6, 2), 7, np.uint8), "LA").save(file, "PNG")
    assert np.array_equal(read_picture(file.getvalue()), np.full((1, 5, 6), 7))


def test_tiff_bombs_cost_nothing() -> None:
    small = tiff(np.zeros((64, 64), np.uint8), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(small)) as file:
        page: Any = file.pages[0]
        tags = {name: page.tags[name] for name in ("ImageLength", "ImageWidth", "RowsPerStrip")}
        places = {name: (tag.valueoffset, tag.dtype) for name, tag in tags.items()}
    data = bytearray(small)
    for offset, dtype in places.values():
        struct.pack_into("<H" if int(dtype) == 3 else "<I", data, offset, 60_000)
    with pytest.raises(BadRequestError, match="claims|cannot be read"):
        read_picture(bytes(data))


def test_large_uploads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    with pytest.raises(BadRequestError, match="the most is"):
        read_picture(png(np.zeros((50, 50), np.uint8)) + bytes(100))


def test_search_by_a_picture(desk: Desk, ask: Ask) -> None:
    pictures = desk.looks.pictures
    assert pictures is not None
    patch = pictures.gallery(np.array([7])).pixels[0, :, 10:22, 10:22]
    told, out = ask("search", tiff(patch, photometric="minisblack"), n=30)
    assert told["ok"]
    assert 7 in numbers(out[0])
    assert "channels" in ask("search", tiff(patch[:3], photometric="minisblack"))[0]["error"]


# ------------------------------------------------------------------------------------------------------------- many clients
def test_clients_hear_of_each_other_in_order(desk: Desk) -> None:
    heard: list[list[tuple[dict[str, Any], list[bytes]]]] = [[], []]
    clients = [desk.subscribe(partial(lambda k, h, b: heard[k].append((h, b)), k)) for k in range(2)]
    first, second = (asker(desk, client) for client in clients)
    first("assign", u4(1, 2), **{"class": 0})
    second("assign", u4(2), **{"class": 1})
    first("classes", op="add", name=MARKUP)
    own, other = ([h.get("type", "answer") for h, _ in each] for each in heard)
    assert own == ["answer", "labels", "answer"]
    assert other == ["labels", "answer", "classes", "counts"]
    header, [rows, codes] = heard[0][1]
    assert (numbers(rows), numbers(codes, "<i2"), header["counts"]["labelled"]) == ([2], [1], 2)
    assert heard[1][2][0]["classes"][-1]["name"] == MARKUP
    desk.unsubscribe(clients[1])
    first("undo")
    assert len(heard[1]) == 4


def test_labels_of_other_programs_are_heard(desk: Desk, tissue: SpatialData) -> None:
    heard: list[tuple[dict[str, Any], Any]] = []
    client = desk.subscribe(lambda h, b: heard.append((h, b)))
    assert desk.session.log_path is not None
    other = Session(tissue, log=desk.session.log_path, annotator="jo")
    other.assign([5], "B")
    asyncio.run(desk.refresh())
    wait(lambda: heard)
    assert [h["type"] for h, _ in heard] == ["labels"]
    assert numbers(heard[0][1][0]) == [5]
    other.assign([6], "T")
    heard.clear()
    told, [rows, _] = asker(desk, client)("assign", u4(7), **{"class": 0})  # takes the other's in on the way
    assert numbers(rows) == [6, 7]
    desk.session.assign([8], "T")  # from a notebook
    wait(lambda: len(heard) > 1)
    assert heard[-1][0]["type"] == "labels"


def test_what_clients_are_told_adds_up_to_all_labels(desk: Desk, tissue: SpatialData) -> None:
    """Only rows that changed are sent; with own, others', undone and removed labels they must give what there is."""
    rng = np.random.default_rng(0)
    seen = [desk.session.codes.copy() for _ in range(2)]

    def take(k: int, header: dict[str, Any], out: list[bytes]) -> None:
        if header.get("type") == "labels" or (header.get("ok") and len(out) == 2):
            seen[k][numbers(out[0])] = numbers(out[1], "<i2")

    clients = [desk.subscribe(partial(take, k)) for k in range(2)]
    asks = [asker(desk, client) for client in clients]
    other = Session(tissue, log=desk.session.log_path, annotator="jo")
    asks[0]("classes", op="add", name="M")
    for step in range(60):
        act = asks[rng.integers(2)]
        rows = rng.choice(desk.n, rng.integers(1, 9), replace=False)
        kind = rng.choice(["assign", "assign", "undo", "redo", "other", "others", "remove", "restore", "notebook"])
        if kind == "assign":
            act("assign", u4(*rows), **{"class": int(rng.integers(-3, 2))})
        elif kind == "other":
            other.assign(rows, int(rng.integers(-3, 2)))
        elif kind == "others":
            for row in rng.permutation(desk.n):
                other.assign([row], int(rng.integers(-3, 2)))
        elif kind in ("remove", "restore"):
            act("classes", op=kind, **{"class": 2})
        elif kind == "notebook":
            desk.session.assign(rows, "T")
        else:
            act(kind)
        if step % 5 == 4:
            asyncio.run(desk.refresh())
            assert wait(lambda: all((codes == desk.session.codes).all() for codes in seen))
            found = desk.session.codes
            assert desk.session.counts()["by_class"] == {c.id: (found == c.id).sum() for c in desk.session.classes}


def test_a_widget_shown_twice_hears_what_it_did(desk: Desk) -> None:
    heard: list[str] = []
    client = desk.subscribe(lambda h, _b: heard.append(h.get("type", "answer")), shared=True)
    asker(desk, client)("assign", u4(1), **{"class": 0})
    assert heard == ["labels", "answer"]


def test_labelling_does_not_wait_for_pictures(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def run() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(*_given: Any) -> Any:
            loop.call_soon_threadsafe(started.set)
            assert wait(lambda: "assign" in done)
            done.append("gallery")
            return {}, []

        monkeypatch.setitem(desk._looking, "gallery", slow)
        waiting = [asyncio.create_task(desk.handle({"type": "gallery"}, [u4(1)])) for _ in range(3)]
        await started.wait()
        await desk.handle({"type": "assign", "class": 0}, [u4(1)])
        done.append("assign")
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert done[0] == "assign"


def blocked(desk: Desk, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> tuple[threading.Event, list[int]]:
    """Requests of some kinds end when the event is set; numbers of those that began."""
    go, begun = threading.Event(), list[int]()

    def slow(header: dict[str, Any], _buffers: list[bytes]) -> Any:
        begun.append(header["id"])
        assert go.wait(20)
        return {}, [b"pixels"]

    for kind in kinds:
        monkeypatch.setitem(desk._looking, kind, slow)
    return go, begun


def test_only_the_newest_pictures_are_made(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are answered at once, without pixels, and not as errors, which a page would show."""
    go, begun = blocked(desk, monkeypatch, "gallery", "context")
    heard: dict[int, tuple[dict[str, Any], int]] = {}
    client = desk.subscribe(lambda header, out: heard.update({header["re"]: (header, len(out))}))

    async def run() -> None:
        asked = [("gallery", k) for k in range(1, 6)] + [("context", k) for k in range(11, 14)]
        tasks = [asyncio.create_task(desk.handle({"id": k, "type": kind}, [], client)) for kind, k in asked]
        await asyncio.sleep(0.05)
        assert heard == {k: ({"re": k, "ok": True, "superseded": True}, 0) for k in (2, 3, 4, 12)}
        go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert begun[:2] in ([1, 11], [11, 1])
    assert sorted(begun) == [1, 5, 11, 13]
    assert [heard[k] for k in (1, 5, 11, 13)] == [({"re": k, "ok": True}, 1) for k in (1, 5, 11, 13)]


def test_views_of_one_widget_do_not_take_each_others_pictures(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    go, begun = blocked(desk, monkeypatch, "gallery")
    client = desk.subscribe(lambda _header, _out: None, shared=True)

    async def run() -> None:
        tasks = [asyncio.create_task(desk.handle({"id": k, "type": "gallery"}, [], client)) for k in range(3)]
        go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert sorted(begun) == [0, 1, 2]


def test_a_page_opens_while_all_readers_are_busy(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    go, _ = blocked(desk, monkeypatch, "gallery")

    async def run() -> None:
        tasks = [asyncio.create_task(desk.handle({"id": k, "type": "gallery"}, [])) for k in range(READERS)]
        async with asyncio.timeout(20):
            assert (await desk.handle({"type": "hello"}, []))[0]["ok"]
        go.set()
        await asyncio.gather(*tasks)

    try:
        asyncio.run(run())
    finally:
        go.set()


def test_hello_is_answered_also_where_maps_fail(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_maps: object) -> None:
        msg = "broken"
        raise RuntimeError(msg)

    monkeypatch.setattr(type(desk.session.maps), "names", property(fail))
    assert ask("hello")[0] == {"ok": False, "error": "Something went wrong: RuntimeError."}


def test_labels_are_stored_though_nobody_waits_for_the_answer(desk: Desk) -> None:
    async def run() -> None:
        go = threading.Event()
        desk._writer.submit(go.wait, 20)
        tasks = [asyncio.create_task(desk.handle({"id": k, "type": "assign", "class": 0}, [u4(k)])) for k in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        go.set()
        await desk.settle()

    asyncio.run(run())
    assert desk.session.counts()["labelled"] == 5


def test_what_others_stored_is_looked_for_whatever_goes_wrong(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trouble is told once, and again where it comes back."""
    heard: list[str] = []
    desk.subscribe(lambda header, _out: heard.append(header.get("text", "")))
    damaged, good = ValueError("damaged"), None
    coming: list[Exception | None] = [damaged, damaged, RuntimeError("odd"), good, damaged]

    def refresh() -> None:
        trouble = coming.pop(0) if coming else damaged
        if trouble is not None:
            raise trouble

    monkeypatch.setattr("cytonym.label.desk.REFRESH_S", 0.001)
    monkeypatch.setattr(desk.session, "refresh", refresh)

    async def run() -> None:
        listening = asyncio.create_task(desk.listen())
        async with asyncio.timeout(20):
            while len(heard) < 3:
                await asyncio.sleep(0.001)
        listening.cancel()

    asyncio.run(run())
    assert heard == ["damaged", "What others stored could not be read: RuntimeError.", "damaged"]


def test_one_cell_costs_no_columns_of_all_cells(desk: Desk, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    markers = [[name, float(desk.session.marker(name)[5])] for name in desk.session.markers]

    def whole(*_given: object) -> None:
        raise AssertionError

    monkeypatch.setattr("cytonym.label.columns.marker_values", whole)
    assert ask("cell", row=5)[0]["markers"] == markers


def test_half_characters_are_refused(ask: Ask) -> None:
    assert "half a character" in ask("note", row=1, text="a\ud800b")[0]["error"]
    assert ask("note", row=1, text="a\U0001f600b")[0]["ok"]


# ------------------------------------------------------------------------------------------------------------- odd objects
def test_a_table_alone(tissue: SpatialData, tmp_path: Path) -> None:
    table: AnnData = tissue["table"].copy()
    del table.uns["spatialdata_attrs"]
    desk = Session(table, classes=["T"], log=tmp_path / "l.jsonl").desk
    ask = asker(desk)
    told, _ = ask("hello")
    assert (told["has_image"], told["channels"], told["regions"], told["patch_px"]) == (False, [], [], 0)
    assert told["maps"]
    assert "no images" in ask("gallery", u4(1))[0]["error"]
    assert "no images" in ask("context", region="", y=0, x=0, h=9, w=9)[0]["error"]
    assert ask("assign", u4(1), **{"class": 0})[0]["ok"]
    assert ask("cell", row=1)[0]["x"] is None
    desk.close()


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    sdata = cy.datasets.tissue_phantom(n_cells=1, size_px=84, rng=0)
    desk = Session(sdata, log=tmp_path / "l.jsonl").desk
    ask = asker(desk)
    told, _ = ask("hello")
    assert (told["n"], told["maps"], told["classes"]) == (1, ["spatial"], [])
    for kind in ("retrain", "queue", "remap"):
        told, _ = ask(kind)
        assert told["ok"] is False or kind == "remap"
    assert "embed" in ask("queue")[0]["error"]
    assert ask("gallery", u4(0))[0]["ok"]
    desk.close()


def test_a_log_that_cannot_be_written(tissue: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Session(tissue, classes=["T"], log=tmp_path / "l.jsonl").desk
    ask = asker(desk)

    def readonly(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("cytonym.label.log.os.open", readonly)
    told, _ = ask("assign", u4(1), **{"class": 0})
    assert not told["ok"]
    assert ask("gallery", u4(1))[0]["ok"]
    monkeypatch.undo()
    desk.close()


def wait(for_: Callable[[], Any], seconds: float = 20) -> Any:
    import time

    end = time.monotonic() + seconds
    while not (found := for_()) and time.monotonic() < end:
        time.sleep(0.01)
    return found
