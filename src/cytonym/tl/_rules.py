"""Rules that say which markers each cell type has and lacks, read and checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "Unknown"
PARENT = "parent"
POSITIVE, NEGATIVE, ANY = 1, 0, -1
NAMES = {POSITIVE: "positive", NEGATIVE: "negative", ANY: "any"}
SIGNS = {"+": POSITIVE, "-": NEGATIVE, "\N{MINUS SIGN}": NEGATIVE}
WORDS = {
    **SIGNS,
    **dict.fromkeys(("positive", "1", "1.0"), POSITIVE),
    **dict.fromkeys(("negative", "0", "0.0"), NEGATIVE),
    **dict.fromkeys(("any", ""), ANY),
}


@dataclass(frozen=True)
class Rules:
    """Cell types and what each asks of the markers."""

    types: tuple[str, ...]
    markers: tuple[str, ...]
    own: np.ndarray
    """int8 [types, markers]: 1 positive, 0 negative, -1 any."""
    parents: tuple[int, ...]
    """Number of each type's parent, -1 without one."""

    def ancestors(self, t: int) -> list[int]:
        """Parent, its parent, and so on."""
        found: list[int] = []
        while self.parents[t] >= 0:
            t = self.parents[t]
            found.append(t)
        return found

    @property
    def depth(self) -> np.ndarray:
        """Of each type, 0 for those without a parent: int [types]."""
        return np.array([len(self.ancestors(t)) for t in range(len(self.types))])

    @property
    def whole(self) -> np.ndarray:
        """`own` and what the ancestors ask: int8 [types, markers]."""
        return np.array([self.own[[t, *self.ancestors(t)]].max(axis=0) for t in range(len(self.types))], dtype=np.int8)

    def as_frame(self) -> pd.DataFrame:
        """Strings: "positive", "negative" or "any", and the names of the parents where there are some."""
        words = [[NAMES[int(entry)] for entry in row] for row in self.own]
        frame = pd.DataFrame(words, index=list(self.types), columns=list(self.markers), dtype=object)
        if max(self.parents) >= 0:
            frame.insert(0, PARENT, [self.types[p] if p >= 0 else "" for p in self.parents])
        return frame


def read_rules(rules: pd.DataFrame | Mapping[str, str] | str | Path, markers: Sequence[str]) -> Rules:
    """Rules of any of the accepted layouts, checked against the markers that there are.

    Raises
    ------
    KeyError
        A marker or parent is unknown.
    FileNotFoundError
        There is no such file.
    ValueError
        Types repeat, cannot be told apart, contradict an ancestor or descend from themselves, or an entry is not understood.
    TypeError
        Something else than a DataFrame, a mapping or a path.
    """
    if isinstance(rules, Mapping):
        rules = _from_text(rules, markers)
    elif isinstance(rules, str | Path):
        rules = _from_csv(Path(rules))
    elif not isinstance(rules, pd.DataFrame):
        msg = f"`rules` must be a DataFrame, a mapping from types to text, or a path, got {type(rules).__name__}."
        raise TypeError(msg)
    types = _names_of_types(rules.index)
    columns = [str(c) for c in rules.columns]
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        msg = f"`rules` has several columns {twice}; one for each marker is needed."
        raise ValueError(msg)
    named = [c for c in columns if c != PARENT]
    unknown = [c for c in named if c not in markers]
    if unknown:
        msg = f"No calls for the markers {unknown} of `rules`. Available: {list(markers)}."
        if pd.api.types.is_numeric_dtype(rules.index):
            msg += " Are the cell types a column? They must be the index: `rules.set_index(...)`."
        raise KeyError(msg)
    parents = _parents(rules.iloc[:, columns.index(PARENT)] if PARENT in columns else None, types)
    own = np.full((len(types), len(named)), ANY, dtype=np.int8)
    strange: dict[str, str] = {}
    for j, marker in enumerate(named):
        for t, value in enumerate(rules.iloc[:, columns.index(marker)].to_numpy(dtype=object)):
            entry = _entry(value)
            if entry is None:
                strange[f"{types[t]}, {marker}"] = str(value)
            else:
                own[t, j] = entry
    if strange:
        some = dict(list(strange.items())[:5])
        msg = (
            f"{len(strange)} entries of `rules` are not understood, such as {some}. They must be 'positive', '+' or 1; "
            "'negative', '-' or 0; 'any', '' or missing."
        )
        raise ValueError(msg)
    found = Rules(tuple(types), tuple(named), own, tuple(parents))
    _check_descent(found)
    _check_sense(found)
    return found


def _from_text(rules: Mapping[str, str], markers: Sequence[str]) -> pd.DataFrame:
    """Rules such as "CD3+ CD8+ CD20-" as a DataFrame."""
    found = {name: _parse(name, text, markers) for name, text in rules.items()}
    used = [m for m in markers if any(m in asked for asked in found.values())]
    rows = [[asked.get(m, ANY) for m in used] for asked in found.values()]
    words = [[NAMES[entry] for entry in row] for row in rows]
    return pd.DataFrame(words, index=pd.Index(list(found), dtype=object), columns=used, dtype=object)


def _parse(name: str, text: object, markers: Sequence[str]) -> dict[str, int]:
    """Marker -> what is asked, from a text in which each marker is followed by its sign; spaces and commas may part them."""
    if not isinstance(text, str):
        msg = f"The rule of {name!r} must be text such as 'CD3+ CD20-', got {text!r}. For tables of rules give a DataFrame."
        raise TypeError(msg)
    known = sorted(markers, key=len, reverse=True)
    asked: dict[str, int] = {}
    rest = text.strip(" \t\n,;")
    while rest:
        for marker in known:
            sign = rest[len(marker) :].lstrip()[:1] if rest.startswith(marker) else ""
            if sign in SIGNS:
                break
        else:
            unknown = re.match(r"([^\s,;]+?)[+\-\N{MINUS SIGN}](?=[\s,;]|$)", rest)
            if unknown:
                msg = f"No calls for the marker {unknown[1]!r} of the rule {text!r} of {name!r}. Available: {list(markers)}."
                raise KeyError(msg)
            msg = (
                f"The rule {text!r} of {name!r} is not understood from {rest!r} on. It must name markers, each followed by + or "
                f"-. Available: {list(markers)}."
            )
            raise ValueError(msg)
        if marker in asked:
            msg = f"The rule {text!r} of {name!r} names {marker!r} twice."
            raise ValueError(msg)
        asked[marker] = SIGNS[sign]
        rest = rest[len(marker) :].lstrip()[1:].lstrip(" \t\n,;")
    return asked


def _from_csv(path: Path) -> pd.DataFrame:
    """A file with one line for each type: its name, then an entry for each column of the header."""
    if not path.is_file():
        msg = f"No file {str(path)!r} with rules. Give its path, a DataFrame, or a mapping from types to text."
        raise FileNotFoundError(msg)
    cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    cells = cells.apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]
    if cells.shape[0] < 2 or cells.shape[1] < 2:
        msg = (
            f"The rules in {str(path)!r} must have a header and a line for each type, with cells parted by commas; found "
            f"{cells.shape[0]} lines of {cells.shape[1]} cells."
        )
        raise ValueError(msg)
    return pd.DataFrame(
        cells.iloc[1:, 1:].to_numpy(dtype=object),
        index=pd.Index(cells.iloc[1:, 0], dtype=object, name=None),
        columns=pd.Index(cells.iloc[0, 1:], dtype=object, name=None),
    )


def _names_of_types(index: pd.Index) -> list[str]:
    types = [str(name) for name in index]
    if not types:
        msg = "`rules` names no cell type."
        raise ValueError(msg)
    if index.isna().any() or not all(name.strip() for name in types):
        msg = f"A cell type of `rules` has no name; the types are {types}."
        raise ValueError(msg)
    twice = sorted({name for name in types if types.count(name) > 1})
    if twice:
        msg = f"Cell types that `rules` names more than once: {twice}."
        raise ValueError(msg)
    if UNKNOWN in types:
        msg = f"{UNKNOWN!r} is the name of cells that match no type. Call the type of `rules` something else."
        raise ValueError(msg)
    return types


def _parents(column: pd.Series | None, types: list[str]) -> list[int]:
    """Number of each type's parent, -1 without one."""
    if column is None:
        return [-1] * len(types)
    names = ["" if pd.isna(name) else str(name) for name in column]
    unknown = {t: p for t, p in zip(types, names, strict=True) if p and p not in types}
    if unknown:
        msg = f"Parents of `rules` that are no types: {unknown}. Available: {types}."
        raise KeyError(msg)
    return [types.index(name) if name else -1 for name in names]


def _entry(value: Any) -> int | None:
    """1, 0 or -1; None for what is not understood."""
    if not pd.api.types.is_scalar(value):
        return None
    if pd.isna(value):
        return ANY
    if isinstance(value, str):
        return WORDS.get(value.strip().lower())
    return int(value) if value in (0, 1) else None


def _check_descent(rules: Rules) -> None:
    for t in range(len(rules.types)):
        path = [t]
        while rules.parents[path[-1]] >= 0:
            path.append(rules.parents[path[-1]])
            if path[-1] in path[:-1]:
                circle = [rules.types[i] for i in path[path.index(path[-1]) :]]
                msg = f"Parents of `rules` run in a circle: {' -> '.join(circle)}."
                raise ValueError(msg)


def _check_sense(rules: Rules) -> None:
    for t, name in enumerate(rules.types):
        for a in rules.ancestors(t):
            against = (rules.own[t] != ANY) & (rules.own[a] != ANY) & (rules.own[t] != rules.own[a])
            if against.any():
                j = int(np.flatnonzero(against)[0])
                here, there = NAMES[int(rules.own[t, j])], NAMES[int(rules.own[a, j])]
                msg = (
                    f"No cell can be {name!r}: it must be {here} for {rules.markers[j]!r}, and its ancestor "
                    f"{rules.types[a]!r} {there}."
                )
                raise ValueError(msg)
    alike: dict[bytes, list[str]] = {}
    for name, row in zip(rules.types, rules.whole, strict=True):
        alike.setdefault(row.tobytes(), []).append(name)
    same = [names for names in alike.values() if len(names) > 1]
    if same:
        msg = (
            f"Types that no cell could tell apart, as their rules, with those of their ancestors, are the same: {same}."
        )
        raise ValueError(msg)
