"""What figures of marker positivity share: scores, calls and their colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym.data.names import with_marker_names
from cytonym.get import marker_frame
from cytonym.pl._style import VERMILION, YELLOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

LOW, HIGH = 0.25, 0.75  # a score between the two decides nothing
SCORES = "viridis"
CALLS = ("negative", "undecided", "positive")
COLORS = ("#2B6EA8", VERMILION, YELLOW, "#5A5A5A")  # of the calls on black, and of cells without one


def score_frame(adata: AnnData, key: str) -> pd.DataFrame:
    """Scores [cells, markers] under the markers' own names."""
    if key not in adata.obsm:
        msg = f"No {key!r} in `obsm` of the table. Available: {sorted(map(str, adata.obsm))}. `tl.score_markers` writes scores."
        raise KeyError(msg)
    frame = marker_frame(adata, key)
    return frame.set_axis([str(c) for c in frame.columns], axis=1)


def pick(markers: str | Sequence[str] | None, frame: pd.DataFrame, key: str) -> list[str]:
    """Markers to show, in the order asked for; all by default."""
    available = list(frame.columns)
    names = available if markers is None else [markers] if isinstance(markers, str) else list(dict.fromkeys(markers))
    unknown = [n for n in names if n not in available]
    if unknown or not names:
        msg = f"No marker {unknown} in `obsm[{key!r}]`. Available: {available}."
        raise KeyError(msg)
    return [str(n) for n in names]


def check_cuts(calls: float | tuple[float, float]) -> tuple[float, float]:
    """Scores below which a cell is negative and from which on it is positive."""
    low, high = (calls, calls) if isinstance(calls, (int, float)) else tuple(calls)
    if not 0 <= low <= high <= 1:
        msg = f"`calls` must be a score in 0…1, or two in rising order, got {calls}."
        raise ValueError(msg)
    return float(low), float(high)


def call_by_score(scores: np.ndarray, cuts: tuple[float, float]) -> np.ndarray:
    """0 negative, 1 undecided, 2 positive, -1 where there is no score. Numbers are compared as float32, as in `tl.call_markers`."""
    scores = scores.astype(np.float32)
    low, high = np.array(cuts, dtype=np.float32)
    codes = (scores >= low).astype(int) + (scores >= high)
    return np.where(np.isfinite(scores), codes, -1)


def call_codes(adata: AnnData, key: str, markers: Sequence[str]) -> pd.DataFrame:
    """Calls of a DataFrame in `obsm`, as codes like those of `call_by_score`: 1, 0 and -1 or NaN, or the words of `CALLS`."""
    if key not in adata.obsm or not isinstance(adata.obsm[key], pd.DataFrame):
        found = sorted(str(k) for k, v in adata.obsm.items() if isinstance(v, pd.DataFrame))
        msg = f"No DataFrame {key!r} with calls in `obsm` of the table. Available: {found}."
        raise KeyError(msg)
    frame = with_marker_names(adata.obsm[key], key, adata.uns)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    lacking = [m for m in markers if m not in frame]
    if lacking:
        msg = f"No calls of {lacking} in `obsm[{key!r}]`. Available: {list(frame.columns)}."
        raise KeyError(msg)
    meaning: dict[object, int] = {0: 0, 1: 2, -1: 1, **{word: i for i, word in enumerate(CALLS)}}
    codes = {}
    for marker in markers:
        column = pd.Series(frame[marker]).astype(object)
        code = np.array([1 if pd.isna(v) else meaning.get(v, -9) for v in column], dtype=int)
        if (code < 0).any():
            wrong = column[code < 0].unique()[:3].tolist()
            msg = f"Calls of {marker!r} must be 1, 0, -1 or NaN, or of {list(CALLS)}, found {wrong}."
            raise ValueError(msg)
        codes[marker] = code
    return pd.DataFrame(codes, index=frame.index)
