"""What hangs together in a map that comes in tiles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from cytonym.data.parts import NEGATIVE, POSITIVE, UNKNOWN, PartFinder

SQUARE = np.ones((3, 3))


def found(classes, cuts_y=(), cuts_x=(), order=None, **planes):
    """Labels and parts, from tiles between the cuts, in any order."""
    height, width = classes.shape
    rows = [0, *sorted(set(cuts_y)), height]
    columns = [0, *sorted(set(cuts_x)), width]
    boxes = [(slice(a, b), slice(c, d)) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    finder = PartFinder(classes.shape)
    ids = np.zeros(classes.shape, np.int32)
    for i in order if order is not None else range(len(boxes)):
        box = boxes[i]
        marker = planes["marker"][box] if "marker" in planes else None
        sums = {"weight": planes["weight"][box]} if "weight" in planes else None
        ids[box] = finder.add(box[0].start, box[1].start, classes[box], marker, sums)
    lookup, parts = finder.finish()
    return lookup[ids], parts


def expected(classes):
    """Labels of the whole map, straight from the description."""
    gaps, _ = ndimage.label(classes == UNKNOWN)
    frame = np.unique(np.concatenate([gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]]))
    background = np.isin(gaps, frame[frame > 0])
    labels, n = ndimage.label(~background, SQUARE)
    values = labels[labels > 0]
    _, first = np.unique(values, return_index=True)
    lookup = np.zeros(n + 1, int)
    lookup[1 + np.argsort(first)] = np.arange(1, n + 1)
    return lookup[labels]


maps = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    elements=st.sampled_from([UNKNOWN, UNKNOWN, POSITIVE, NEGATIVE]),
)


@given(maps, st.data())
@settings(max_examples=150, deadline=None)
def test_tiles_do_not_matter(classes, data):
    height, width = classes.shape
    cuts = [data.draw(st.sets(st.integers(1, max(n - 1, 1)), max_size=4)) for n in (height, width)]
    cuts_y, cuts_x = ({c for c in cut if c < n} for cut, n in zip(cuts, (height, width), strict=True))
    order = data.draw(st.permutations(range((len(cuts_y) + 1) * (len(cuts_x) + 1))))
    rng = np.random.default_rng(0)
    planes = {"marker": rng.integers(0, 255, classes.shape), "weight": rng.integers(0, 1000, classes.shape)}
    labels, parts = found(classes, cuts_y, cuts_x, order, **planes)
    np.testing.assert_array_equal(labels, expected(classes))
    n = labels.max()
    index = np.arange(1, n + 1)
    for values, true in (
        (parts.area, np.bincount(labels.ravel(), minlength=n + 1)[1:]),
        (parts.n_positive, np.bincount(labels[classes == POSITIVE], minlength=n + 1)[1:]),
        (parts.n_negative, np.bincount(labels[classes == NEGATIVE], minlength=n + 1)[1:]),
        (parts.marker, ndimage.maximum(planes["marker"], labels, index)),
        (parts.sums["weight"], ndimage.sum_labels(planes["weight"], labels, index)),
        (parts.first, [np.flatnonzero(labels == i)[0] for i in index]),
    ):
        np.testing.assert_array_equal(values, np.reshape(true, -1))
    for i, (x0, y0, x1, y1) in enumerate(parts.box):
        y, x = np.nonzero(labels == i + 1)
        assert (x0, y0, x1, y1) == (x.min(), y.min(), x.max(), y.max())
        np.testing.assert_allclose(parts.center[i], (x.mean(), y.mean()))


def drawn(*lines):
    return np.array([[{".": UNKNOWN, "+": POSITIVE, "-": NEGATIVE}[c] for c in line] for line in lines], np.uint8)


def test_a_hole_belongs_to_what_encloses_it_and_to_what_lies_in_it():
    classes = drawn(".......", ".+++++.", ".+...+.", ".+.-.+.", ".+...+.", ".+++++.", ".......")
    labels, parts = found(classes)
    assert labels.max() == 1
    assert parts.area.tolist() == [25]
    assert (parts.n_positive[0], parts.n_negative[0]) == (16, 1)


def test_a_gap_that_reaches_the_frame_is_background():
    labels, parts = found(drawn("+++++", "+...+", "+.+++", "+.+.."))
    assert labels[1, 1] == 0
    assert parts.area.tolist() == [13]


def test_gaps_leak_along_sides_only():
    """A ring whose pixels touch at corners encloses."""
    labels, parts = found(drawn(".+..", "+.+.", ".+.."))
    assert labels[1, 1] == 1
    assert parts.area.tolist() == [5]


def test_nuclei_touch_across_corners_also_of_tiles():
    classes = drawn("+...", ".-..", "....", "...+")
    labels, parts = found(classes, {1}, {1})
    assert labels[0, 0] == labels[1, 1] == 1
    assert parts.area.tolist() == [2, 1]


def test_nothing_and_all():
    labels, parts = found(np.zeros((5, 4), np.uint8), {2})
    assert not labels.any()
    assert len(parts.area) == 0
    labels, parts = found(np.ones((5, 4), np.uint8), {2}, {3})
    assert (labels == 1).all()
    assert parts.area.tolist() == [20]


def test_a_tile_that_did_not_come_is_missed():
    finder = PartFinder((4, 4))
    finder.add(0, 0, np.ones((2, 4), np.uint8))
    with pytest.raises(ValueError, match="cover 8 of 16 pixels"):
        finder.finish()
