"""Cells of a table by name, as a log names them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike

    from cytonym.label.log import Cells

MOST_CELLS = 2**31 - 1
LARGEST = np.iinfo(np.int64).max
EXACT = 2**53
"""Up to which every whole number has a float of its own."""
ABSENT = -1
NUMBER = re.compile("0|-?[1-9][0-9]{0,18}")


def each_once(rows: np.ndarray) -> np.ndarray:
    """Rows sorted, each once. Rows that are so already, as most are, take no time."""
    if (rows[1:] > rows[:-1]).all():
        return rows
    rows = np.sort(rows)
    return rows[np.append(True, rows[1:] != rows[:-1])]


def checked_rows(rows: ArrayLike, n: int) -> np.ndarray:
    """Row numbers of a table of n cells, or a mask of them, as row numbers: sorted, each once.

    Raises
    ------
    ValueError
        There are none, or they are no row numbers.
    IndexError
        There is no such row.
    """
    found = np.atleast_1d(np.asarray(rows))
    if found.dtype == bool:
        if found.shape != (n,):
            msg = f"A mask of rows must have {n} entries, got shape {found.shape}."
            raise ValueError(msg)
        found = np.flatnonzero(found)
    if found.size == 0:
        msg = "No rows were given."
        raise ValueError(msg)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        msg = f"Rows must be whole numbers in one dimension, got {found.dtype} of shape {found.shape}."
        raise ValueError(msg)
    if found.min() < 0 or found.max() >= n:
        msg = f"Rows go from 0 to {n - 1}, got {found.min()} to {found.max()}."
        raise IndexError(msg)
    return each_once(found.astype(np.int64))


def _number(text: str) -> int | None:
    """The whole number that a text is; None for names, and for "007" and "1.0", which are other texts than "7" and "1"."""
    number = int(text) if NUMBER.fullmatch(text) else None
    return number if number is not None and abs(number) <= LARGEST else None


def _whole(ids: np.ndarray) -> bool:
    """Whether ids are whole numbers, be it as floats."""
    if ids.dtype.kind == "f":
        return bool((np.abs(ids) < EXACT).all() and (ids == np.rint(ids)).all())
    return ids.dtype.kind in "iu" and (len(ids) == 0 or ids.max() <= LARGEST)


class CellIndex:
    """Rows of the cells of a table, by region and id. Cells that only the log knows get rows behind those of the table.

    An id is the same as a number, as a float and as text, since a table may change between them on its way through other tools.

    Parameters
    ----------
    regions
        Region of each cell [n].
    instances
        Id of each cell [n]; whole numbers or text.
    """

    def __init__(self, regions: Iterable[Any], instances: Iterable[Any]) -> None:
        codes, names = pd.factorize(np.asarray([str(r) for r in regions], dtype=object), sort=True)
        ids = np.asarray(instances)
        self.n = len(ids)
        self.total = self.n
        self.names = [str(name) for name in names]
        self.region_codes = codes
        self._numbers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._texts: dict[str, dict[str, int]] = {}
        self._strange: dict[tuple[str, Any], int] = {}
        self._cells: list[tuple[str, Any]] = []
        """Cells behind the table's rows."""
        whole = _whole(ids)
        self.instances = ids.astype(np.int64) if whole else np.asarray([str(i) for i in ids], dtype=object)
        for code, name in enumerate(self.names):
            here = np.flatnonzero(codes == code)
            mine = self.instances[here]
            found = pd.Index(mine)
            if found.has_duplicates:
                twice = found[found.duplicated()].unique()[:5].tolist()
                where = f"of region {name!r} " if name else ""
                msg = f"Cells {where}are in the table more than once: {twice}. Labels need a name of its own for each cell."
                raise ValueError(msg)
            if whole:
                order = np.argsort(mine, kind="stable")
                self._numbers[name] = (mine[order], here[order])
            else:
                self._texts[name] = dict(zip(mine.tolist(), here.tolist(), strict=True))
        self.canonical = np.lexsort((self.instances if whole else pd.factorize(self.instances, sort=True)[0], codes))
        """Rows in an order that does not depend on the order of the table."""

    def cell(self, row: int) -> tuple[str, Any]:
        """Region and id of a row."""
        if row >= self.n:
            return self._cells[row - self.n]
        instance = self.instances[row]
        return self.names[self.region_codes[row]], int(instance) if isinstance(instance, np.integer) else instance

    def cells(self, rows: np.ndarray) -> Cells:
        """Rows of the table as runs of ids for the log."""
        found: Cells = {}
        for code in np.flatnonzero(np.bincount(self.region_codes[rows], minlength=len(self.names))):
            ids = self.instances[rows[self.region_codes[rows] == code]]
            if ids.dtype == object:
                found[self.names[code]] = sorted(map(str, ids))
                continue
            ids = np.sort(ids)
            starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
            lengths = np.diff(np.append(starts, len(ids)))
            found[self.names[code]] = np.column_stack([ids[starts], lengths]).tolist()
        return found

    def rows(self, cells: Cells) -> np.ndarray:
        """Rows of the cells of an event, int64, sorted; those that the table lacks are at `n` and above."""
        parts = []
        for region, told in cells.items():
            texts = [each for each in told if isinstance(each, str)]
            numbers = [run for run in told if not isinstance(run, str)] if len(texts) < len(told) else []
            runs = np.array(numbers, dtype=np.int64).reshape(-1, 2)
            if (runs[:, 1] < 1).any() or runs[:, 1].sum() > MOST_CELLS:
                msg = f"An event names no cells, or too many, of region {region!r}."
                raise ValueError(msg)
            ends = np.cumsum(runs[:, 1])
            ids = np.repeat(runs[:, 0] - (ends - runs[:, 1]), runs[:, 1]) + np.arange(ends[-1] if len(ends) else 0)
            parts += [self._of_numbers(region, ids), self._of_texts(region, texts)]
        return each_once(np.concatenate(parts)) if parts else np.empty(0, np.int64)

    def _of_numbers(self, region: str, ids: np.ndarray) -> np.ndarray:
        if region in self._texts:
            return self._of_names(region, [str(i) for i in ids.tolist()])
        known, at = self._numbers.get(region, (np.empty(0, np.int64),) * 2)
        rows = np.full(len(ids), ABSENT, dtype=np.int64)
        if len(known) and len(ids):
            place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
            rows = np.where(known[place] == ids, at[place], ABSENT)
        for i in np.flatnonzero(rows == ABSENT):
            rows[i] = self._stranger(region, int(ids[i]))
        return rows

    def _of_texts(self, region: str, ids: list[str]) -> np.ndarray:
        if region in self._texts:
            return self._of_names(region, ids)
        told = [_number(i) for i in ids]
        numbers = np.array([number for number in told if number is not None], dtype=np.int64)
        names = [i for i, number in zip(ids, told, strict=True) if number is None]
        return np.append(self._of_numbers(region, numbers), self._of_names(region, names))

    def _of_names(self, region: str, ids: list[str]) -> np.ndarray:
        known = self._texts.get(region, {})
        rows = np.fromiter((known.get(i, ABSENT) for i in ids), np.int64, len(ids))
        for i in np.flatnonzero(rows == ABSENT):
            number = _number(ids[i])
            rows[i] = self._stranger(region, ids[i] if number is None else number)
        return rows

    def _stranger(self, region: str, instance: Any) -> int:
        """Row of a cell that the table lacks."""
        key = (region, instance)
        if key not in self._strange:
            self._strange[key] = self.total
            self._cells.append(key)
            self.total += 1
        return self._strange[key]
