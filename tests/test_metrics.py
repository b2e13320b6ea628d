"""Scores against slow and obvious versions of themselves, against scikit-learn, and against the published numbers."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score

from cytonym import metrics

CALLS = [metrics.call_confidence, metrics.margin, metrics.true_label_confidence]
PROBABILITIES = st.floats(0, 1, width=32)
TENTHS = st.integers(0, 10).map(lambda i: i / 10)  # many ties


def slow_average_precision(targets, scores) -> float:
    """Each score as a threshold, from the highest on: precision, weighted by how much recall it adds."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = [t for t, s in zip(targets, scores, strict=True) if s >= threshold]
        found = sum(called) / sum(targets)
        area += (found - recall) * sum(called) / len(called)
        recall = found
    return area


def slow_threshold(targets, scores) -> float:
    """The lowest score whose F1 no other beats."""
    best, best_f1 = 1.0, -1.0
    for threshold in sorted(set(scores)):
        called = [t for t, s in zip(targets, scores, strict=True) if s >= threshold]
        p, r = sum(called) / len(called), sum(called) / sum(targets)
        if (f1 := 2 * p * r / (p + r + 1e-8)) > best_f1:
            best, best_f1 = threshold, f1
    return best


def slow_error(right, confidence, n_bins) -> float:
    """Expected calibration error, bin by bin."""
    error = 0.0
    edges = np.linspace(0, 1, n_bins + 1)
    for i in range(n_bins):
        inside = [
            j for j, c in enumerate(confidence) if edges[i] < c <= edges[i + 1] or (i == 0 and c == 0)
        ]  # fmt: skip
        if inside:
            gap = np.mean([confidence[j] for j in inside]) - np.mean([right[j] for j in inside])
            error += len(inside) / len(confidence) * abs(gap)
    return error


def cells(scores=TENTHS, most=40):
    """Targets and scores [n, K]."""
    return st.tuples(st.integers(1, most), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.int64, shape, elements=st.integers(0, 1)), hnp.arrays(np.float64, shape, elements=scores)
        )
    )


# ------------------------------------------------------------------------------------------------ precision and recall
@settings(deadline=None, max_examples=60)
@given(cells(), st.integers(1, 5))
def test_pr_auc_equals_a_slow_version(data, pieces):
    targets, scores = data
    n, n_classes = targets.shape
    assume(pieces <= n)
    found = metrics.pr_auc(targets, scores, pieces=pieces)
    assert found.by_piece.shape == (pieces, n_classes)
    for i in range(pieces):
        rows = slice(i * n // pieces, (i + 1) * n // pieces)
        for k in range(n_classes):
            t, s = targets[rows, k].tolist(), scores[rows, k].tolist()
            assert found.by_piece[i, k] == pytest.approx(slow_average_precision(t, s) if any(t) else 0)
    np.testing.assert_array_equal(found.per_class, np.median(found.by_piece, axis=0))
    assert found.mean_of_medians == pytest.approx(found.per_class.mean())
    assert found.pooled_median == np.median(found.by_piece)


def test_pr_auc_sees_only_the_order_and_takes_classes_or_columns():
    rng = np.random.default_rng(0)
    classes, logits = rng.integers(0, 3, 50), rng.normal(size=(50, 3))
    one = metrics.pr_auc(classes, logits)
    other = metrics.pr_auc(np.eye(3)[classes], 1 / (1 + np.exp(-logits)))
    np.testing.assert_array_equal(one.by_piece, other.by_piece)
    assert one.by_piece.shape == (10, 3)
    assert metrics.pr_auc(classes == 1, logits[:, 1], pieces=1).mean_of_medians == pytest.approx(
        metrics.pr_auc(classes, logits, pieces=1).per_class[1]
    )


def test_pr_auc_of_a_class_without_positives_is_zero_without_a_warning():
    targets = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    found = metrics.pr_auc(targets, np.full((4, 2), 0.5), pieces=2)
    assert found.per_class.tolist() == [0.5, 0]
    assert found.mean_of_medians == 0.25


@pytest.mark.parametrize("pieces", [0, 5])
def test_more_pieces_than_cells(pieces):
    with pytest.raises(ValueError, match=f"`pieces` must be from 1 to the number of cells, 4, got {pieces}"):
        metrics.pr_auc([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], pieces=pieces)


@settings(deadline=None, max_examples=100)
@given(cells())
def test_thresholds_equal_a_slow_version(data):
    targets, scores = data
    found = metrics.best_f1_thresholds(targets, scores)
    for k, threshold in enumerate(found):
        t, s = targets[:, k].tolist(), scores[:, k].tolist()
        assert threshold == (slow_threshold(t, s) if any(t) else 1)


def test_no_cell_is_called_positive_in_a_class_without_positives():
    targets, scores = [[0, 1], [0, 0]], [[1.0, 0.9], [0.3, 0.2]]
    thresholds = metrics.best_f1_thresholds(targets, scores)
    assert thresholds.tolist() == [1.0, 0.9]
    assert metrics.outcomes(targets, scores, thresholds)[:, 0].tolist() == ["TN", "TN"]


# ---------------------------------------------------------------------------------------------------------------- calls
@settings(deadline=None, max_examples=100)
@given(cells(PROBABILITIES), st.lists(PROBABILITIES, min_size=4, max_size=4))
def test_calls_equal_a_slow_version(data, thresholds):
    targets, scores = data
    thresholds = thresholds[: scores.shape[1]]
    scaled, absolute, own = (call(scores, thresholds) for call in CALLS)
    named = metrics.outcomes(targets, scores, thresholds)
    for (i, k), s in np.ndenumerate(scores):
        t = thresholds[k]
        if s > t:
            name, sure, label = ("TP" if targets[i, k] else "FP"), (s - t) / (1 - t), s
        else:
            name, sure, label = ("FN" if targets[i, k] else "TN"), (t - s) / t if t else 0, 1 - s
        assert named[i, k] == name
        assert scaled[i, k] == pytest.approx(sure, abs=1e-6)
        assert absolute[i, k] == pytest.approx(abs(s - t), abs=1e-6)
        assert own[i, k] == pytest.approx(label, abs=1e-6)
    for values in (scaled, absolute, own):
        assert values.dtype == np.float32
        assert values.shape == scores.shape
        assert ((values >= 0) & (values <= 1)).all()


def test_thresholds_at_the_ends():
    scores = [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    assert metrics.call_confidence(scores, [0, 1]).tolist() == [[0, 1], [0.5, 0.5], [1, 0]]
    assert metrics.outcomes(np.ones((3, 2)), scores, [0, 1]).tolist() == [["FN", "FN"], ["TP", "FN"], ["TP", "FN"]]


def test_a_score_equal_to_its_threshold_is_negative_whatever_its_type():
    score = 0.1  # as float32 it is larger
    for one in (np.float32(score), np.float64(score)):
        for other in (np.float32(score), np.float64(score)):
            assert metrics.outcomes([1], [one], other).tolist() == ["FN"]
            assert metrics.call_confidence([one], other).tolist() == [0]


def test_calls_keep_the_shape_of_the_scores():
    for call in CALLS:
        assert call([0.2, 0.8, 0.5], 0.5).shape == (3,)
        assert call([[0.2], [0.8]], [0.5]).shape == (2, 1)
    assert metrics.outcomes([1, 1, 0], [0.2, 0.8, 0.5], 0.5).tolist() == ["FN", "TP", "TN"]
    assert metrics.outcomes([1, 0], [[0.2, 0.8], [0.9, 0.1]], 0.5).tolist() == [["TN", "TP"], ["TP", "TN"]]


@pytest.mark.parametrize("call", CALLS)
def test_wrong_thresholds_are_named(call):
    for wrong in ([0.5, 1.5], [-0.1, 0.5], [0.5, np.nan]):
        with pytest.raises(ValueError, match=re.escape(f"`thresholds` must be from 0 to 1, got {wrong}")):
            call([[0.5, 0.5]], wrong)
    with pytest.raises(ValueError, match=r"one for each of the 2 classes, got shape \(3,\)"):
        call([[0.5, 0.5]], [0.5, 0.5, 0.5])


# ------------------------------------------------------------------------------------------------------------------- F1
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("pqrs")), min_size=1, max_size=30))
def test_f1_equals_scikit_learn(pairs):
    truth, predicted = map(list, zip(*pairs, strict=True))
    macro = f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert metrics.f1(truth, predicted) == pytest.approx(macro)
    assert metrics.f1(truth, predicted, average="micro") == pytest.approx(accuracy_score(truth, predicted))
    codes = {name: i for i, name in enumerate("pqrs")}
    assert metrics.f1([codes[t] for t in truth], [codes[p] for p in predicted]) == pytest.approx(macro)
    for average in ("macro", "micro"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slow = f1_score(truth, predicted, labels=["q", "s", "t"], average=average, zero_division=0)
        assert metrics.f1(truth, predicted, average=average, labels=["q", "s", "t"]) == pytest.approx(slow)


@settings(deadline=None, max_examples=60)
@given(cells(), st.floats(0, 1))
def test_f1_of_columns_equals_scikit_learn(data, threshold):
    truth, scores = data
    predicted = scores > threshold
    columns = [k for k in range(truth.shape[1]) if truth[:, k].any()]
    each = [f1_score(truth[:, k], predicted[:, k], zero_division=0) for k in columns]
    assert metrics.f1(truth, predicted) == pytest.approx(np.mean(each) if each else 0)
    micro = f1_score(truth.ravel(), predicted.ravel(), zero_division=0)
    assert metrics.f1(truth, predicted, average="micro") == pytest.approx(micro)
    last = truth.shape[1] - 1
    one = f1_score(truth[:, last], predicted[:, last], zero_division=0)
    assert metrics.f1(truth, predicted, labels=[last]) == pytest.approx(one)
    assert metrics.f1(truth[:, last] > 0, predicted[:, last], labels=[1]) == pytest.approx(one)
    assert metrics.f1(truth[:, last] > 0, predicted[:, last], labels=[True]) == pytest.approx(one)


def test_f1_takes_categoricals():
    truth = pd.Categorical(["T", "B"], categories=["B", "T", "unused"])
    assert metrics.f1(truth, pd.Series(["T", "T"])) == pytest.approx((2 / 3 + 0) / 2)


def test_f1_says_what_is_wrong():
    with pytest.raises(ValueError, match="`average` must be 'macro' or 'micro', got 'weighted'"):
        metrics.f1([0], [0], average="weighted")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        metrics.f1([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="with at least one cell"):
        metrics.f1([], [])
    with pytest.raises(ValueError, match="`predicted` lacks 1 of 2 labels"):
        metrics.f1(["a", "b"], ["a", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"`truth` begins with \['a', 'b'\], `predicted` with \[0, 1\]"):
        metrics.f1(np.array(["a", "b"]), np.array([0, 1]))
    with pytest.raises(ValueError, match=re.escape("`predicted` [n, K] must be 0 or 1, found [0.5]")):
        metrics.f1([[0, 1]], [[0.5, 1]])
    with pytest.raises(ValueError, match=re.escape("columns, 0 to 1, got ['a']")):
        metrics.f1([[0, 1]], [[0, 1]], labels=["a"])
    for empty in ([], "T"):
        with pytest.raises(ValueError, match="`labels` must be a list of at least one class"):
            metrics.f1(["T"], ["T"], labels=empty)


# ---------------------------------------------------------------------------------------------------------- calibration
@settings(deadline=None, max_examples=60)
@given(cells(), st.integers(1, 12))
def test_calibration_error_of_columns_equals_a_slow_version(data, n_bins):
    truth, proba = data
    slow = [slow_error(t, p, n_bins) for t, p in zip(truth.T.tolist(), proba.T.tolist(), strict=True)]
    assert metrics.calibration_error(truth, proba, n_bins=n_bins) == pytest.approx(np.mean(slow), abs=1e-9)
    assert metrics.calibration_error(truth[:, 0], proba[:, 0], n_bins=n_bins) == pytest.approx(slow[0], abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 5))
def test_calibration_error_of_classes_equals_a_slow_version(seed, n, n_classes):
    rng = np.random.default_rng(seed)
    truth, proba = rng.integers(0, n_classes, n), rng.dirichlet(np.ones(n_classes), n)
    right = (proba.argmax(axis=1) == truth).tolist()
    slow = slow_error(right, proba.max(axis=1).tolist(), 15)
    assert metrics.calibration_error(truth, proba) == pytest.approx(slow, abs=1e-9)


def test_calibrated_predictions_have_little_error():
    rng = np.random.default_rng(0)
    proba = rng.uniform(size=200_000)
    truth = rng.uniform(size=200_000) < proba
    assert metrics.calibration_error(truth, proba) < 0.01
    assert metrics.calibration_error(truth, np.sqrt(proba)) > 0.1
    assert metrics.calibration_error([1, 0], [1.0, 0.0]) == 0
    assert metrics.calibration_error([0, 1], [1.0, 0.0]) == 1


def test_reliability_lists_every_bin():
    table = metrics.reliability([[1, 0], [0, 1], [1, 1]], [[0.1, 0.9], [0.6, 0.5], [1.0, 0.0]], n_bins=2)
    assert list(table.columns) == ["class", "lower", "upper", "n", "confidence", "accuracy"]
    assert table["class"].tolist() == [0, 0, 1, 1]
    assert table["n"].tolist() == [1, 2, 2, 1]
    np.testing.assert_allclose(table["confidence"], [0.1, 0.8, 0.25, 0.9])
    np.testing.assert_allclose(table["accuracy"], [1, 0.5, 1, 0])
    sparse = metrics.reliability([2, 0], [[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]], n_bins=4)
    assert sparse["n"].tolist() == [0, 0, 0, 2]
    assert sparse["accuracy"].isna().tolist() == [True, True, True, False]
    assert sparse["accuracy"].iloc[-1] == 0.5


def test_number_of_bins():
    with pytest.raises(ValueError, match="`n_bins` must be at least 1, got 0"):
        metrics.reliability([0], [0.5], n_bins=0)


# --------------------------------------------------------------------------------------------------------------- inputs
TAKE_BOTH = [
    metrics.pr_auc,
    metrics.best_f1_thresholds,
    metrics.calibration_error,
    metrics.reliability,
    lambda targets, scores: metrics.outcomes(targets, scores, 0.5),
]


@pytest.mark.parametrize("score", TAKE_BOTH)
def test_targets_that_do_not_fit_are_named(score):
    scores = np.full((12, 3), 0.5)
    with pytest.raises(
        ValueError, match=re.escape("must be [12, 3] like the scores, or one class a cell [12], got shape (12, 2)")
    ):
        score(np.zeros((12, 2)), scores)
    with pytest.raises(ValueError, match=re.escape("must be 0 or 1, found [2]")):
        score(np.full((12, 3), 2), scores)
    with pytest.raises(ValueError, match=re.escape("must be the number of a class, 0 to 2, found [-1, 3]")):
        score([-1, 3, *[0] * 10], scores)
    with pytest.raises(ValueError, match=re.escape("must be the number of a class, 0 to 2, found ['T']")):
        score(["T"] * 12, scores)
    with pytest.raises(ValueError, match=re.escape("must be 0 or 1, found [nan]")):
        score([np.nan, *[0] * 11], scores[:, 0])


@pytest.mark.parametrize("score", TAKE_BOTH)
def test_scores_that_are_no_scores_are_named(score):
    scores = np.full((12, 3), 0.5)
    scores[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"but 1 are not; the first is nan in row 4, class 2\. Leave"):
        score(np.zeros(12, int), scores)
    with pytest.raises(ValueError, match=r"or \[n\] for a single class, got shape \(2, 2, 2\)"):
        score([0, 1], np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="with at least one cell and one class"):
        score([], [])
    with pytest.raises(ValueError, match="must be numbers, got <U1"):
        score([0], ["a"])


@pytest.mark.parametrize("score", TAKE_BOTH[1:])
def test_logits_are_no_probabilities(score):
    with pytest.raises(
        ValueError, match=r"must be probabilities from 0 to 1, but 2 are not; the first is -1\.5 .*sigmoid"
    ):
        score([0, 1, 1], [-1.5, 0.5, 2.0])


# -------------------------------------------------------------------------------------------------- the published program
@pytest.mark.parametrize("pieces", [10, 7])
def test_pr_auc_as_published(parity, pieces):
    inputs, outputs = parity("clearit_misc")
    found = metrics.pr_auc(inputs["mom_target"], inputs["mom_sigmoid"], pieces=pieces)
    np.testing.assert_allclose(found.by_piece, outputs[f"ap_chunks{pieces}"], atol=1e-9)
    assert found.mean_of_medians == pytest.approx(float(outputs[f"mom_chunks{pieces}"]), abs=1e-9)
    assert found.pooled_median == pytest.approx(float(outputs[f"pooled_median_chunks{pieces}"]), abs=1e-9)


def test_pr_auc_of_the_whole_set_as_published(parity):
    inputs, outputs = parity("clearit_misc")
    found = metrics.pr_auc(inputs["mom_target"], inputs["mom_sigmoid"], pieces=1)
    assert found.mean_of_medians == pytest.approx(float(outputs["mom_whole"]), abs=1e-9)


def test_thresholds_as_published(parity):
    inputs, outputs = parity("clearit_misc")
    scores = 1 / (1 + np.exp(-inputs["thr_logits"]))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(
        metrics.best_f1_thresholds(inputs["thr_targets"], scores), outputs["thresholds"], atol=1e-6
    )


def test_confidence_as_published(parity):
    inputs, outputs = parity("clearit_misc")
    targets, scores, thresholds = inputs["conf_target"], inputs["conf_sigmoid"], inputs["conf_thresholds"]
    np.testing.assert_array_equal(metrics.outcomes(targets, scores, thresholds), outputs["conf_outcome"])
    for call, name in zip(CALLS, ("scaled", "absolute", "true"), strict=True):
        np.testing.assert_allclose(call(scores, thresholds), outputs[f"conf_{name}"], atol=1e-6)
