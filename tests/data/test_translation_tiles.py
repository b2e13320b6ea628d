"""Tiles of registered images: the same for the same seed and step; what is held out; class maps of nuclei."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data.class_map import CellRules, cells_of_map
from cytonym.data.translation_tiles import Registered, TranslationTiles, held_out, map_of_nuclei


def ramp(height: int, width: int, name: str = "a", reads: list[str] | None = None) -> Registered:
    """Plane 0 holds the row, plane 1 the column of each pixel, plane 2 the name."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y, x, np.full_like(y, ord(name[0]))]).astype(np.uint8)

    def read() -> np.ndarray:
        if reads is not None:
            reads.append(name)
        return pixels

    return Registered(name, (height, width), read)


def test_tiles_are_cut_anywhere_inside_and_depend_on_seed_and_step_only() -> None:
    tiles = TranslationTiles([ramp(20, 30), ramp(16, 16, "b")], 8, 4, 60, seed=1)
    whole = list(tiles(0))
    assert len(whole) == 60
    assert whole[0].shape == (4, 3, 8, 8)
    assert whole[0].dtype == torch.uint8
    for step, batch in enumerate(tiles(57), start=57):
        assert torch.equal(batch, whole[step])
    corners = torch.cat(whole)[:, :, 0, 0]
    first = corners[corners[:, 2] == ord("a")]
    assert {int(v) for v in first[:, 0]} == set(range(13))
    assert {int(v) for v in first[:, 1]} == set(range(23))
    assert len(first) / len(corners) == pytest.approx(600 / 856, abs=0.1)
    assert not torch.equal(next(iter(TranslationTiles([ramp(20, 30)], 8, 4, 9, seed=2)(0))), whole[0])


def test_some_rows_only() -> None:
    image = ramp(40, 20).rows(10, 22)
    rows = torch.cat(list(TranslationTiles([image], 8, 8, 20)(0)))[:, 0]
    assert (int(rows.min()), int(rows.max())) == (10, 21)


def test_all_tiles_lie_side_by_side_and_some_of_many_are_drawn() -> None:
    tiles = TranslationTiles([ramp(20, 30), ramp(16, 8, "b")], 8, 1, 1)
    found = [tuple(int(v) for v in tile[0, :, 0, 0]) for tile in tiles.all_tiles(99)]
    assert found == [(y, x, 97) for y in (0, 8) for x in (0, 8, 16)] + [(0, 0, 98), (8, 0, 98)]
    some = [tuple(int(v) for v in tile[0, :, 0, 0]) for tile in tiles.all_tiles(3)]
    assert len(some) == 3
    assert some == sorted(some, key=found.index)
    assert set(some) <= set(found)


def test_images_are_read_again_only_if_they_do_not_fit() -> None:
    reads: list[str] = []
    images = [ramp(16, 16, "a", reads), ramp(16, 16, "b", reads)]
    fits = list(TranslationTiles(images, 8, 4, 10)(0))
    assert sorted(reads) == ["a", "b"]
    reads.clear()
    again = list(TranslationTiles(images, 8, 4, 10, kept_bytes=800)(0))
    assert len(reads) > 4
    assert all(torch.equal(a, b) for a, b in zip(fits, again, strict=True))


def test_held_out() -> None:
    few = [ramp(50, 20), ramp(20, 20, "b")]
    trained, judged = held_out(few, 0.2, 16, 0)
    assert [(i.name, i.shape, i.first) for i in trained] == [("a", (34, 20), 0), ("b", (20, 20), 0)]
    assert [(i.name, i.shape, i.first) for i in judged] == [("a", (16, 20), 34)]
    many = [ramp(20, 20, name) for name in "abcdefghij"]
    trained, judged = held_out(many, 0.2, 16, 0)
    assert (len(trained), len(judged)) == (8, 2)
    assert {i.name for i in trained} | {i.name for i in judged} == set("abcdefghij")
    assert [i.name for i in held_out(many, 0.2, 16, 0)[1]] == [i.name for i in judged]
    assert held_out(many, 0, 16, 0) == (many, [])
    trained, judged = held_out(few, 0.99, 16, 0)
    assert [(i.name, i.shape, i.first) for i in trained] == [("a", (16, 20), 0), ("b", (20, 20), 0)]
    assert [(i.name, i.shape, i.first) for i in judged] == [("a", (34, 20), 16)]
    trained, judged = held_out(many, 0.99, 16, 0)
    assert (len(trained), len(judged)) == (1, 9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_nuclei_are_found_again_in_their_map(seed: int) -> None:
    """Also such as touch: every border is green."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((40, 40), int)
    for i, (y, x) in enumerate((y, x) for y in (2, 14, 26) for x in (2, 14, 26)):
        if rng.random() < 0.8:
            labels[y : y + 12, x : x + 12] = i + 1
    positive = rng.random(10) < 0.5
    found, cells = cells_of_map(map_of_nuclei(labels, positive), CellRules(size_thresh=None))
    present = np.unique(labels[labels > 0])
    assert len(cells.kept) == len(present)
    for part, is_positive in enumerate(cells.positive, start=1):
        [label] = np.unique(labels[found == part])
        assert positive[label] == is_positive


def test_no_nuclei_make_a_black_map() -> None:
    assert not map_of_nuclei(np.zeros((5, 6), int), np.array([False])).any()
