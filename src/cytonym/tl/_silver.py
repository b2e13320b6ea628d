"""Which cells are positive for which markers, by what is known of their types: labels to train a scorer on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym.data.scoring_tiles import NEGATIVE, POSITIVE, UNDEFINED
from cytonym.get import labels_of, marker_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("cytonym")

WORDS = {
    **dict.fromkeys(("positive", "pos", "+", "1", "1.0", "true"), POSITIVE),
    **dict.fromkeys(("negative", "neg", "-", "0", "0.0", "false"), NEGATIVE),
    **dict.fromkeys(("undefined", "any", "", "?", "2", "2.0", "nan", "none", "<na>"), UNDEFINED),
}
Assignment = pd.DataFrame | Mapping[str, Mapping[str, object]] | str | Path


def read_assignment(assignment: Assignment, markers: Sequence[str]) -> pd.DataFrame:
    """A table of cell types and markers as numbers: 1 positive, 0 negative, 2 undefined.

    Raises
    ------
    FileNotFoundError
        There is no such CSV file.
    KeyError
        It names markers that are not there.
    ValueError
        It is empty, rows of one type contradict each other, or an entry is not understood.
    """
    if isinstance(assignment, (str, Path)):
        path = Path(assignment)
        if not path.is_file():
            msg = f"No file '{path}' with an assignment matrix. Give its path or a DataFrame of cell types and markers."
            raise FileNotFoundError(msg)
        table = pd.read_csv(path, index_col=0, dtype=str, keep_default_na=False)
    elif isinstance(assignment, Mapping):
        table = pd.DataFrame.from_dict({k: dict(v) for k, v in assignment.items()}, orient="index")
    else:
        table = assignment.copy()
    table.index, table.columns = table.index.astype(str).str.strip(), table.columns.astype(str).str.strip()
    if not table.size:
        msg = "The assignment matrix is empty: give one row a cell type and one column a marker."
        raise ValueError(msg)
    unknown = [c for c in table.columns if c not in markers]
    if unknown:
        msg = f"The assignment matrix names markers {unknown} that the images lack. Available: {list(markers)}."
        raise KeyError(msg)
    if table.columns.has_duplicates:
        msg = f"The assignment matrix names markers twice: {sorted(table.columns[table.columns.duplicated()])}."
        raise ValueError(msg)
    numbers = table.map(lambda entry: WORDS.get(str(entry).strip().lower(), -1))
    if (numbers == -1).to_numpy().any():
        at = np.argwhere((numbers == -1).to_numpy())[0]
        msg = (
            f"Entry {table.iloc[at[0], at[1]]!r} of type {table.index[at[0]]!r} and marker {table.columns[at[1]]!r} is not understood. "
            "Use 1, 0 and nothing, or 'positive', 'negative' and 'undefined'."
        )
        raise ValueError(msg)
    return _without_repeats(numbers).astype(np.int8)


def _without_repeats(numbers: pd.DataFrame) -> pd.DataFrame:
    """One row a type; rows of the same type must not contradict each other."""
    for name in numbers.index[numbers.index.duplicated()].unique():
        rows = numbers.loc[name]
        apart = [c for c in rows if rows[c].nunique() > 1]
        if apart:
            msg = (
                f"The assignment matrix has several rows for {name!r} that contradict each other in {apart}. Keep one."
            )
            raise ValueError(msg)
    return numbers[~numbers.index.duplicated()]


def silver_labels(adata: AnnData, markers: Sequence[str], *, label_key: str, assignment: Assignment) -> np.ndarray:
    """Activity of each cell and marker by the cell's type, int8 [n_obs, C]: 1, 0, or 2 where nothing is known.

    Raises
    ------
    KeyError
        The column is not there.
    ValueError
        No type of the column is in the matrix.
    """
    table = read_assignment(assignment, markers)
    types = labels_of(adata, label_key)
    names = [str(n) for n in types.cat.remove_unused_categories().cat.categories]
    both = [n for n in names if n in table.index]
    if not both:
        msg = (
            f"No type of `obs[{label_key!r}]` is in the assignment matrix. Types: {names}. Matrix: {list(table.index)}."
        )
        raise ValueError(msg)
    left, absent = [n for n in names if n not in table.index], [n for n in table.index if n not in names]
    if left:
        logger.warning("Types without a row in the assignment matrix, left out of the training: %s.", left)
    if absent:
        logger.warning("Types of the assignment matrix that no cell has: %s.", absent)
    full = table.reindex(index=both, columns=list(markers), fill_value=UNDEFINED).to_numpy(np.int8)
    code = pd.Index(both).get_indexer(pd.Index(types.astype(str)))
    return np.where(code[:, None] >= 0, full[np.maximum(code, 0)], UNDEFINED).astype(np.int8)


def given_labels(adata: AnnData, markers: Sequence[str], key: str) -> np.ndarray:
    """Activity of each cell and marker from a DataFrame of 1, 0 and NaN in `obsm`, int8 [n_obs, C].

    Raises
    ------
    KeyError
        It is not there, or names markers that the images lack.
    ValueError
        It holds other numbers.
    """
    frame = marker_frame(adata, key)
    unknown = [c for c in frame.columns if c not in markers]
    if unknown:
        msg = f"`obsm[{key!r}]` names markers {unknown} that the images lack. Available: {list(markers)}."
        raise KeyError(msg)
    values = frame.to_numpy(np.float64)
    wrong = values[~(np.isnan(values) | np.isin(values, (0, 1, -1)))]
    if wrong.size:
        msg = f"`obsm[{key!r}]` must hold 1 (positive), 0 (negative) and NaN or -1 (unknown), found {np.unique(wrong)[:5].tolist()}."
        raise ValueError(msg)
    full = np.full((adata.n_obs, len(markers)), UNDEFINED, np.int8)
    full[:, [list(markers).index(c) for c in frame.columns]] = np.where(
        values == 1, POSITIVE, np.where(values == 0, NEGATIVE, UNDEFINED)
    )
    return full
