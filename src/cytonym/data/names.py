"""Column names that a store accepts, and the way back to the names of the markers.

The columns of a DataFrame in `obsm` become folders of a Zarr store, so that "CD3/CD28" cannot be one. Such a column is
called "CD3_CD28", and `uns["marker_names"]` holds the marker's own name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable, MutableMapping, Sequence

    import pandas as pd

MARKER_NAMES = "marker_names"
"""Key of `uns`: for a key of `obsm`, column -> marker where the two differ."""

INTENSITIES = ("X", "mean_intensity", "area")
"""Keys of numbers that are skewed as intensities are."""

GEOJSON_ENDINGS = (".geojson", ".json", ".geojson.gz", ".json.gz")
"""Of files, by which QuPath knows the format."""

FORBIDDEN = {"", ".", "..", "_index"}
LONGEST = 200  # bytes; file systems end at 255
NAME = re.compile(r"(?!__)[\w.-]*[\w-][\w.-]*")


def require_name(name: str, what: str) -> None:
    """Raise unless a store takes this as the name of an element or as a key of a table.

    Raises
    ------
    ValueError
    """
    if not NAME.fullmatch(name):
        msg = f"`{what}` must be a name of letters, digits, '_', '-' and '.', got {name!r}."
        raise ValueError(msg)


def storable(names: Sequence[Hashable]) -> list[str]:
    """Names of columns that a store accepts, one a name and all different; most names stay as they are.

    Examples
    --------
    >>> from cytonym.data.names import storable
    >>> storable(["CD8", "CD3/CD28", "CD3_CD28"])
    ['CD8', 'CD3_CD28_2', 'CD3_CD28']
    """
    wanted = [str(name) for name in names]
    plain = [re.sub(r"[/\\\x00]", "_", name) for name in wanted]
    plain = [f"marker_{name}" if name in FORBIDDEN else name for name in plain]
    plain = [name.encode()[:LONGEST].decode(errors="ignore") for name in plain]
    taken = {new for new, old in zip(plain, wanted, strict=True) if new == old}
    columns = []
    for new, old in zip(plain, wanted, strict=True):
        column, count = new, 2
        while new != old and column in taken:
            column, count = f"{new}_{count}", count + 1
        taken.add(column)
        columns.append(column)
    return columns


def with_storable_columns(frame: pd.DataFrame, key: str, uns: MutableMapping[str, Any]) -> pd.DataFrame:
    """The DataFrame for `obsm[key]`; where columns need another name, `uns` learns the markers' own."""
    columns = storable(list(frame.columns))
    changed = {new: str(old) for new, old in zip(columns, frame.columns, strict=True) if new != str(old)}
    known = {k: v for k, v in dict(uns.get(MARKER_NAMES, {})).items() if k != key}
    if changed:
        known[key] = changed
    if known:
        uns[MARKER_NAMES] = known
    else:
        uns.pop(MARKER_NAMES, None)
    return frame.set_axis(columns, axis=1) if changed else frame


def with_marker_names(frame: pd.DataFrame, key: str, uns: MutableMapping[str, Any]) -> pd.DataFrame:
    """The DataFrame of `obsm[key]` with the markers' own names for columns."""
    names = dict(uns.get(MARKER_NAMES, {})).get(key)
    return frame.rename(columns={str(k): str(v) for k, v in dict(names).items()}) if names else frame
