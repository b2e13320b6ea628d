"""From scores of positivity to calls: positive, negative, undecided."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple
from warnings import warn

import numpy as np
import pandas as pd

from cytonym import metrics
from cytonym.data.names import with_marker_names, with_storable_columns
from cytonym.get import labels_of, marker_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

DEFAULT = 0.5
"""Threshold of markers that nobody named: Nimbus's own."""
EVERY = "all"
"""Name of the one group of cells where `by` is left out."""


def call_markers(
    adata: AnnData,
    key: str = "nimbus_positivity",
    *,
    threshold: float | Mapping[str, float] | pd.Series = DEFAULT,
    margin: float = 0.0,
    labels: str | pd.DataFrame | None = None,
    by: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Call each cell positive or negative for each marker, at thresholds that a few labelled cells can set.

    A cell with score s is positive for a marker with threshold t if s ≥ t + `margin`, negative if s < t - `margin`, and
    undecided between them. Numbers are compared as float32.

    Parameters
    ----------
    adata
        Table of N cells.
    key
        DataFrame of `adata.obsm` with a column of scores for each of C markers, from 0 to 1, NaN where there is none.
    threshold
        One for all markers, or by marker; markers that are not named get 0.5, as in Nimbus's paper.
    margin
        Half the width of the undecided band, on the scale of the scores. With 0 every score is decided.
    labels
        What somebody saw in a few cells: 1 for positive, 0 for negative, NaN where nobody looked. A DataFrame of
        `adata.obsm`, or one whose index are some of `adata.obs_names`; its columns are markers. A marker with labels of both
        kinds gets the threshold with the best F1 on them, any other keeps `threshold`.
    by
        Column of `adata.obs` with the image, or another group, of each cell. Each group with labels of both kinds gets a
        threshold of its own, every other one that of the labels of all groups.
    key_added
        Name of the results; by default `key` with `_calls` in place of `_positivity`, `"nimbus_calls"` below.
    copy
        Work on a copy and return it.

    Returns
    -------
    Returns `None` if `copy=False`, else an `AnnData`. Sets the following fields:

    `adata.obsm["nimbus_calls"]` : DataFrame [N, C], int8
        1 positive, 0 negative, -1 undecided or without a score.
    `adata.uns["nimbus_calls"]` : dict
        `params`, `thresholds` (DataFrame, a row for each marker and a column for each group, or the one column `"all"`) and, with
        `labels`, `calibration`: a DataFrame with a row for each marker and group, the number of `positive` and `negative`
        labels there, the `f1` on them (NaN without a positive one), and the `source` of the threshold: labels of the
        `"group"`, of `"all"` groups, or `"given"`.

    Raises
    ------
    KeyError
        `key`, `labels` or `by` is missing, or a threshold or label is of a marker without scores, or a label of a cell that
        is not in the table.
    ValueError
        Scores, thresholds or labels out of range, a negative margin, `by` without `labels` or with empty cells, or names
        that repeat.
    TypeError
        `threshold` or `labels` is of another type, or `key` names an array without marker names.

    Warns
    -----
    UserWarning
        `labels` leaves markers at `threshold`.

    Notes
    -----
    A score equal to the threshold is positive, as in Nimbus's evaluation; CLEAR-IT's `metrics.call_confidence` calls it
    negative. `metrics.best_f1_thresholds` gives the lowest score of those that are best called positive. The threshold is put
    halfway between it and the next lower labelled score: F1 on the labels is the same, and with few of them the
    threshold lies between the two kinds rather than on a cell.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> adata = ad.AnnData(obs=pd.DataFrame(index=list("wxyz")))
    >>> scores = {"CD8": [0.9, 0.55, 0.45, 0.1], "CD20": [0.3, 0.25, 0.1, np.nan]}
    >>> adata.obsm["nimbus_positivity"] = pd.DataFrame(scores, index=adata.obs_names)
    >>> seen = pd.DataFrame({"CD8": [1, 0], "CD20": [1, 0]}, index=["w", "y"])
    >>> cy.tl.call_markers(adata, labels=seen, margin=0.1)
    >>> adata.uns["nimbus_calls"]["thresholds"]["all"].round(3).to_dict()
    {'CD8': 0.675, 'CD20': 0.2}
    >>> adata.obsm["nimbus_calls"]
       CD8  CD20
    w    1     1
    x    0    -1
    y    0    -1
    z    0    -1
    """
    scores = read_scores(adata, key)
    markers = [str(m) for m in scores.columns]
    limits = _given(threshold, markers)
    if not (_is_number(margin) and 0 <= margin <= 1):
        msg = f"`margin` must be a number from 0 to 1, got {margin!r}."
        raise ValueError(msg)
    name = key_added or f"{key.removesuffix('_positivity')}_calls"
    if name == key or (isinstance(labels, str) and name == labels):
        msg = f"`key_added={name!r}` would write over `obsm[{name!r}]`, which is read here. Choose another name."
        raise ValueError(msg)
    if by is not None and labels is None:
        msg = f"`by={by!r}` asks for thresholds for each group, which need `labels` to be set by."
        raise ValueError(msg)
    groups, member = _groups(adata, by)
    values = scores.to_numpy()
    thresholds = np.repeat(limits[:, None], len(groups), axis=1)
    calibration = None
    if labels is not None:
        seen = _read_labels(adata, labels, markers)
        thresholds, calibration = _calibrated(values, seen, thresholds, _Names(markers, groups), member)

    calls = np.full(values.shape, -1, dtype=np.int8)
    for c in range(len(markers)):
        limit = thresholds[c, member]
        calls[values[:, c] >= (limit + margin).astype(np.float32), c] = 1
        calls[values[:, c] < (limit - margin).astype(np.float32), c] = 0

    target = adata.copy() if copy else adata
    frame = pd.DataFrame(calls, index=target.obs_names, columns=markers)
    target.obsm[name] = with_storable_columns(frame, name, target.uns)
    told: dict[str, Any] = {
        "params": {
            "key": key,
            "threshold": float(threshold) if isinstance(threshold, Real) else "by marker",
            "margin": float(margin),
            "labels": labels if isinstance(labels, str) else "" if labels is None else "DataFrame",
            "by": by or "",
        },
        "thresholds": with_storable_columns(
            pd.DataFrame(thresholds, index=markers, columns=groups), f"{name}_thresholds", target.uns
        ),
    }
    target.uns[name] = told | ({} if calibration is None else {"calibration": calibration})
    return target if copy else None


def read_scores(adata: AnnData, key: str) -> pd.DataFrame:
    """Scores of a DataFrame of `obsm` under the markers' own names, f4, checked: 0 to 1, or NaN."""
    frame = marker_frame(adata, key)
    values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    if not frame.columns.is_unique or not frame.shape[1]:
        twice = sorted(set(frame.columns[frame.columns.duplicated()]))
        msg = f"`obsm[{key!r}]` must have one column for each marker, found {f'several for {twice}' if twice else 'none'}."
        raise ValueError(msg)
    wrong = ~(np.isnan(values) | ((values >= 0) & (values <= 1)))
    if wrong.any():
        row, c = np.argwhere(wrong)[0].tolist()
        msg = (
            f"Scores must be from 0 to 1, but {int(wrong.sum()):,} of `obsm[{key!r}]` are not; the first is {values[row, c]} of "
            f"cell {adata.obs_names[row]!r} for {frame.columns[c]!r}. Intensities are no scores of positivity."
        )
        raise ValueError(msg)
    return pd.DataFrame(values, index=frame.index, columns=frame.columns, copy=False)


class _Names(NamedTuple):
    markers: list[str]
    groups: list[str]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _given(threshold: Any, markers: Sequence[str]) -> np.ndarray:
    """Threshold of each marker, f8 [C]."""
    if isinstance(threshold, pd.Series) and not threshold.index.is_unique:
        msg = f"`threshold` names markers twice: {sorted(set(threshold.index[threshold.index.duplicated()]))}."
        raise ValueError(msg)
    if isinstance(threshold, Mapping | pd.Series):
        named = {str(marker): value for marker, value in threshold.items()}
    elif _is_number(threshold):
        named = dict.fromkeys(markers, threshold)
    else:
        msg = f"`threshold` must be a number, or a mapping or Series from markers to numbers, got {type(threshold).__name__}."
        raise TypeError(msg)
    _check_markers(named, markers, "`threshold`")
    wrong = {marker: value for marker, value in named.items() if not (_is_number(value) and 0 <= value <= 1)}
    if wrong:
        found = next(iter(wrong.values())) if _is_number(threshold) else wrong
        msg = f"Thresholds must be numbers from 0 to 1, got {found!r}."
        raise ValueError(msg)
    return np.array([float(named.get(marker, DEFAULT)) for marker in markers])


def _check_markers(named: Any, markers: Sequence[str], where: str) -> None:
    unknown = [m for m in map(str, named) if m not in markers]
    if unknown:
        msg = f"{where} names markers without scores: {unknown}. Available: {list(markers)}."
        raise KeyError(msg)


def _groups(adata: AnnData, by: str | None) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and the number of the group of each cell."""
    if by is None:
        return [EVERY], np.zeros(adata.n_obs, dtype=np.intp)
    column = labels_of(adata, by)
    if column.isna().any():
        msg = f"`obs[{by!r}]` is empty for {int(column.isna().sum()):,} of {adata.n_obs:,} cells: which thresholds are theirs?"
        raise ValueError(msg)
    column = column.cat.remove_unused_categories()
    return [str(g) for g in column.cat.categories], column.cat.codes.to_numpy().astype(np.intp)


def _read_labels(adata: AnnData, labels: Any, markers: Sequence[str]) -> np.ndarray:
    """Labels of all cells and markers: 1, 0, or NaN; f8 [N, C]."""
    if isinstance(labels, str):
        if not isinstance(adata.obsm.get(labels), pd.DataFrame):
            frames = sorted(k for k, v in adata.obsm.items() if isinstance(v, pd.DataFrame))
            msg = f"No DataFrame {labels!r} in `adata.obsm` with labels of cells. DataFrames there: {frames}."
            raise KeyError(msg)
        frame, where = with_marker_names(adata.obsm[labels], labels, adata.uns), f"`obsm[{labels!r}]`"
    elif isinstance(labels, pd.DataFrame):
        frame, where = labels, "`labels`"
    else:
        msg = f"`labels` must be the key of a DataFrame in `adata.obsm`, or a DataFrame, got {type(labels).__name__}."
        raise TypeError(msg)
    _check_markers(frame.columns, markers, where)
    for what, names in ((f"markers of {where}", frame.columns), (f"cells of {where}", frame.index)):
        if not names.is_unique:
            msg = (
                f"The {what} must all be different, but there are several {sorted(set(names[names.duplicated()]))[:5]}."
            )
            raise ValueError(msg)
    if not isinstance(labels, str):
        if not adata.obs_names.is_unique:
            msg = "`labels` names cells, but `adata.obs_names` repeat. Call `adata.obs_names_make_unique()` before labelling."
            raise ValueError(msg)
        lost = frame.index.difference(adata.obs_names, sort=False)
        if len(lost):
            msg = (
                f"{len(lost):,} of {len(frame):,} cells of `labels` are not in the table, such as {list(lost[:3])}. Its index "
                f"must be `adata.obs_names`, such as {list(adata.obs_names[:3])}."
            )
            raise KeyError(msg)
    seen = np.full((adata.n_obs, len(markers)), np.nan)
    rows = slice(None) if isinstance(labels, str) else adata.obs_names.get_indexer(frame.index)
    for marker, column in frame.items():
        found = column.astype(object).where(column.notna(), None)
        numbers = pd.to_numeric(found, errors="coerce").to_numpy(dtype=np.float64)
        wrong = column.notna().to_numpy() & ~np.isin(numbers, (0, 1))
        if wrong.any():
            some = list(dict.fromkeys(map(str, column[wrong])))[:5]
            msg = f"Labels must be 1, 0 or missing, but {where} holds {some} for {str(marker)!r} in {int(wrong.sum()):,} cells."
            raise ValueError(msg)
        seen[rows, markers.index(str(marker))] = numbers
    return seen


def _calibrated(
    values: np.ndarray, seen: np.ndarray, given: np.ndarray, names: _Names, member: np.ndarray
) -> tuple[np.ndarray, pd.DataFrame]:
    """Thresholds f8 [C, groups] with the labels taken into account, and what each stands on."""
    thresholds, rows = given.copy(), []
    seen = np.where(np.isnan(values), np.nan, seen)
    kept = []
    for c, marker in enumerate(names.markers):
        some = np.flatnonzero(~np.isnan(seen[:, c]))
        score, truth, group = values[some, c], seen[some, c].astype(int), member[some]
        whole = _best_threshold(score, truth)
        kept += [marker] if whole is None else []
        for g, name in enumerate(names.groups):
            here = group == g
            own = whole if len(names.groups) == 1 else _best_threshold(score[here], truth[here])
            source = "given" if whole is None else "all" if own is None or len(names.groups) == 1 else "group"
            best = whole if own is None else own
            thresholds[c, g] = given[c, g] if best is None else best
            positive = int(truth[here].sum())
            called = (score[here] >= np.float32(thresholds[c, g])).astype(int)
            f1 = metrics.f1(truth[here], called, labels=[1]) if positive else np.nan
            rows.append((marker, name, positive, int(here.sum()) - positive, f1, source))
    if kept:
        msg = f"Without positive and negative labels these markers keep their given threshold: {kept}."
        warn(msg, UserWarning, stacklevel=3)
    return thresholds, pd.DataFrame(rows, columns=["marker", "group", "positive", "negative", "f1", "source"])


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Middle of the gap below the lowest score that is best called positive; None unless there are labels of both kinds."""
    if not truth.any() or truth.all():
        return None
    best = float(metrics.best_f1_thresholds(truth, scores)[0])
    below = scores[scores < best]
    if not len(below):
        return best
    lower = float(below.max())
    middle = float(np.float32((lower + best) / 2))
    return middle if middle > lower else best
