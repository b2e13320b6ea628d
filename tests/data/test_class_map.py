"""The published rules: from a class map to cells and scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytonym.data.class_map import (
    CellRules,
    call_cells,
    cells_of_map,
    counts_of,
    default_marker,
    default_size,
    pixel_classes,
)
from cytonym.data.class_map_images import outlines, overlay, refined_mask
from cytonym.data.parts import NEGATIVE, POSITIVE, UNKNOWN

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def class_map(shape=(60, 60), **boxes):
    """A map with squares: red=(y, x, side), blue=..."""
    out = np.zeros((3, *shape), np.uint8)
    for name, (y, x, side) in boxes.items():
        out[0 if name.startswith("red") else 2, y : y + side, x : x + side] = 255
    return out


# ------------------------------------------------------------------------------------------------------------- pixels
@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((200, 80, 200), POSITIVE),  # red as much as blue; the sum does not overflow; green at its limit
        ((200, 81, 0), UNKNOWN),
        ((60, 0, 60), UNKNOWN),  # 120 is not more than 120
        ((60, 0, 61), NEGATIVE),
        ((61, 0, 60), POSITIVE),
    ],
)
def test_class_of_a_pixel(rgb, expected):
    pixels = np.array(rgb, np.uint8).reshape(3, 1, 1)
    assert pixel_classes(pixels).item() == expected
    assert pixel_classes(pixels, 400).item() == UNKNOWN


# --------------------------------------------------------------------------------------------------------- thresholds
def test_default_size_is_in_the_gap_and_within_limits():
    small, large = [16, 20, 25], [400, 420, 450, 500, 480]
    assert default_size(np.array(small + large)) == 49  # the gap is at 12: beyond 10, hence 7
    assert default_size(np.array(small + large), "10x") == 4
    assert 16 <= default_size(np.array([9, 10, 12] + [80] * 9)) <= 100
    assert default_size(np.array([300])) == 0
    assert default_size(np.array([], int)) == 0
    assert default_size(np.array([300, 310, 305])) == 16  # no gap: the least


@given(st.lists(st.integers(5, 3000), min_size=2, max_size=300), st.sampled_from(["40x", "20x", "10x"]))
@settings(max_examples=60, deadline=None)
def test_default_size_does_not_depend_on_order(areas, resolution):
    areas = np.array(areas)
    found = default_size(areas, resolution)
    assert found == default_size(areas[::-1], resolution)
    least, _, most = {"40x": (4, 7, 10), "20x": (3, 4, 6), "10x": (2, 2, 3)}[resolution]
    assert least**2 <= found <= most**2


@given(st.lists(st.integers(0, 255), min_size=1, max_size=3000))
@settings(max_examples=100, deadline=None)
def test_default_marker_is_of_percentiles_without_zeros(values):
    values = np.array(values)
    counts = np.bincount(values, minlength=256)
    if not values.any():
        with pytest.raises(ValueError, match="0 everywhere"):
            default_marker(counts)
        return
    low, high = (round(np.percentile(values[values > 0], q)) for q in (0.1, 99.9))
    assert default_marker(counts) == low + round(0.9 * (high - low))


def test_sizes_are_strict_limits():
    pixels = class_map(red=(5, 5, 5), blue=(20, 20, 6), blue2=(40, 40, 7))
    for rules, kept in (
        (CellRules(size_thresh=25), [False, True, True]),
        (CellRules(size_thresh=24, size_thresh_upper=49), [True, True, False]),
        (CellRules(size_thresh=None, noise_thresh=25), [False, True, True]),
        (CellRules(size_thresh=None, large_noise_thresh=49), [True, True, False]),
    ):
        assert cells_of_map(pixels, rules)[1].kept.tolist() == kept


def test_half_of_the_pixels_make_a_positive_cell():
    pixels = class_map(red=(10, 10, 10))
    pixels[0, 15:20, 10:20], pixels[2, 15:20, 10:20] = 0, 255
    assert cells_of_map(pixels)[1].positive.tolist() == [True]
    pixels[0, 14, 10], pixels[2, 14, 10] = 0, 255
    assert cells_of_map(pixels)[1].positive.tolist() == [False]


def test_marker_makes_positive_and_never_negative():
    pixels = class_map(red=(5, 5, 10), blue=(30, 30, 10))
    marker = np.zeros((60, 60), np.uint8)
    marker[35, 35] = 101
    _, cells = cells_of_map(pixels, CellRules(marker_thresh=100, size_thresh=None), marker=marker)
    assert cells.positive.tolist() == [True, True]
    _, cells = cells_of_map(pixels, CellRules(marker_thresh=101, size_thresh=None), marker=marker)
    assert cells.positive.tolist() == [True, False]
    assert cells.score()["marker_thresh"] == 101


def test_density_makes_negative():
    pixels = class_map(red=(5, 5, 10), red2=(30, 30, 10))
    image = np.full((3, 60, 60), 255, np.uint8)
    image[:, 5:15, 5:15] = 128
    _, cells = cells_of_map(pixels, CellRules(od_thresh_lower=60, size_thresh=None), image=image)
    assert cells.optical_density.tolist() == [90, 0]
    assert cells.positive.tolist() == [True, False]
    _, cells = cells_of_map(pixels, CellRules(od_thresh_upper=60, size_thresh=None), image=image)
    assert cells.positive.tolist() == [False, True]


def test_without_a_marker_its_threshold_is_not_reported():
    assert cells_of_map(class_map(red=(5, 5, 9)), CellRules(marker_thresh=50))[1].score()["marker_thresh"] is None


def test_score_has_the_published_names():
    _, cells = cells_of_map(class_map(red=(5, 5, 12), blue=(30, 30, 12)))
    score = cells.score()
    assert list(score) == [
        "num_total", "num_pos", "num_neg", "percent_pos", "seg_thresh", "size_thresh", "size_thresh_upper", "marker_thresh",
    ]  # fmt: skip
    assert score["percent_pos"] == 50.0
    assert counts_of(0, 0)["percent_pos"] == 0
    assert counts_of(3, 1)["percent_pos"] == 33.3


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"resolution": "60x"}, "must be one of"),
        ({"size_thresh": "auto"}, "a number, None or 'default'"),
        ({"marker_thresh": "auto"}, "a number, None or 'default'"),
        ({"seg_thresh": -1}, "at least 0"),
        ({"size_thresh_upper": -5}, "at least 0"),
    ],
)
def test_rules_that_have_no_meaning(settings_, message):
    with pytest.raises(ValueError, match=message):
        CellRules(**settings_)


def test_what_a_threshold_needs_must_be_there():
    pixels = class_map(red=(5, 5, 10))
    with pytest.raises(ValueError, match="needs a marker image"):
        cells_of_map(pixels, CellRules(marker_thresh="default"))
    with pytest.raises(ValueError, match="need the image that was stained"):
        cells_of_map(pixels, CellRules(od_thresh_lower=3))
    _, cells = cells_of_map(pixels)
    with pytest.raises(ValueError, match="needs a marker image"):
        call_cells(cells.parts, CellRules(marker_thresh="default"))


# ------------------------------------------------------------------------------------------------------------ pictures
def slowly(labels, kept, first):
    """Outlines pixel by pixel, in the order of the description."""
    height, width = labels.shape
    owner = np.zeros(labels.shape, int)
    for label in np.flatnonzero(kept) + 1:
        for y, x in np.argwhere(labels == label):
            if y * width + x == first[label - 1]:
                owner[y, x] = label
                continue
            for a, b in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
                if 0 <= a < height and 0 <= b < width and labels[a, b] == 0 and owner[a, b] == 0:
                    owner[a, b] = label
    for _ in range(2):
        grown = owner.copy()
        for y, x in np.argwhere(owner > 0):
            for a in range(max(0, y - 1), min(height, y + 2)):
                for b in range(max(0, x - 1), min(width, x + 2)):
                    if labels[a, b] == 0 and grown[a, b] == 0:
                        grown[a, b] = owner[y, x]
        owner = grown
    return owner


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_outlines_are_drawn_in_raster_order(seed):
    rng = np.random.default_rng(seed)
    pixels = np.zeros((3, *rng.integers(1, 26, 2)), np.uint8)
    pixels[0] = 255 * (rng.random(pixels.shape[1:]) < rng.uniform(0.05, 0.4))
    labels, cells = cells_of_map(pixels, CellRules(size_thresh=None, noise_thresh=1, large_noise_thresh=9))
    found = outlines(labels, cells.kept, cells.parts.first)
    np.testing.assert_array_equal(found, slowly(labels, cells.kept, cells.parts.first))
    assert not found[(labels > 0) & (found != labels)].any()  # on background, or at the first pixel of its own cell


def test_pictures_show_classes_and_leave_the_rest():
    pixels = class_map(red=(10, 10, 12), blue=(35, 35, 12), blue2=(50, 5, 2))
    labels, cells = cells_of_map(pixels, CellRules(size_thresh=20))
    mask = refined_mask(labels, cells)
    assert tuple(mask[15, 15]) == RED
    assert tuple(mask[40, 40]) == BLUE
    assert tuple(mask[10, 10]) == GREEN  # the first pixel
    assert tuple(mask[50, 5]) == (0, 0, 0)  # too small
    assert (mask[:, :10].any(axis=2)).sum() > 0
    image = np.full((60, 60, 3), 7, np.uint8)
    shown = overlay(image, labels, cells)
    assert tuple(shown[15, 15]) == (7, 7, 7)
    assert tuple(shown[8, 15]) == RED
    assert tuple(shown[33, 40]) == BLUE
    assert (image == 7).all()
    rebuilt = refined_mask(labels, cells, as_published=False)
    assert tuple(rebuilt[10, 10]) == RED
