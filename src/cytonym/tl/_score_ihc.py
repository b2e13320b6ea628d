"""The score of an immunohistochemical stain: counts, percent positive, H-score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from cytonym.data.checks import require_key
from cytonym.data.class_map import counts_of
from cytonym.get import labels_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

INTENSITIES = ("0", "1+", "2+", "3+")
THRESHOLDS = (0.2, 0.4, 0.6)
SETTINGS = ("seg_thresh", "size_thresh", "size_thresh_upper", "marker_thresh")
SOURCE = "segment_nuclei"
TOTAL = "total"


def score_ihc(
    data: SpatialData | AnnData,
    *,
    by: str | None = None,
    class_key: str = "ihc_class",
    density_key: str = "dab_density",
    thresholds: Sequence[float] = THRESHOLDS,
    key_added: str = "ihc_intensity",
    table_key: str = "table",
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Count positive nuclei, and grade the intensity of the stain.

    The H-score is the percentage of nuclei of 1+, plus twice that of 2+, plus three times that of 3+: 0 to 300. The intensity
    of a nucleus is its mean optical density of DAB against three thresholds. It does not go by the class: a nucleus may be
    positive and 0, where the class map sees a stain that is weaker than the first threshold.

    Parameters
    ----------
    data
        Table of the nuclei, or the SpatialData object that holds it, as `tl.segment_nuclei` leaves them.
    by
        Column of `obs` whose groups are scored, such as areas of the tumour; by default the labels (one image each).
    class_key
        Column of `obs` with `"positive"` and `"negative"`. Nuclei without a class are left out.
    density_key
        Column of `obs` with the optical density that is graded. Without it, there are no intensities and no H-score.
    thresholds
        Least density of 1+, 2+ and 3+.
    key_added
        Column of `obs` that gets the intensities.
    table_key
        Table of `data`, where this is a SpatialData object.
    path
        Also write the counts, and the settings that were used, as JSON with the names of the published program (DeepLIIF): to
        this file for one group, or to `{group}.json` in this folder for several.

    Returns
    -------
    DataFrame
        One row a group, and the row `total` where there are several: `num_total`, `num_pos`, `num_neg`, `percent_pos` (one
        decimal, as published), `h_score` (0 ... 300), `0`, `1+`, `2+` and `3+` (percent of the nuclei). Sets
        `obs[key_added]`: `"0"`, `"1+"`, `"2+"` or `"3+"`, an ordered categorical, where there are densities.

    Raises
    ------
    KeyError
        No such table or column.
    ValueError
        Classes are others, no nucleus has one, thresholds do not rise, densities are not numbers, files would have one
        name, `path` is a folder for one group or a file for several, or `key_added` is a column that is read.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> obs = pd.DataFrame(
    ...     {"ihc_class": ["positive", "negative"] * 2, "dab_density": [0.7, 0.1, 0.3, 0]}, index=list("abcd")
    ... )
    >>> table = ad.AnnData(np.zeros((4, 0)), obs=obs)
    >>> cy.tl.score_ihc(table)[["num_total", "num_pos", "percent_pos", "h_score"]].values.tolist()
    [[4.0, 2.0, 50.0, 100.0]]
    >>> list(table.obs["ihc_intensity"])
    ['3+', '0', '1+', '0']
    """
    try:
        limits = np.asarray(thresholds, dtype=np.float64)
    except (TypeError, ValueError):
        limits = np.empty(0)
    if limits.shape != (3,) or not np.isfinite(limits).all() or not (np.diff(limits) > 0).all():
        msg = f"`thresholds` must be three rising numbers, got {thresholds!r}."
        raise ValueError(msg)
    if isinstance(data, SpatialData):
        require_key(table_key, data.tables, "table", "sdata.tables")
        data = data.tables[table_key]
    if key_added in (class_key, density_key, by, *data.uns.get("spatialdata_attrs", {}).values()):
        msg = f"`key_added` must be a column of its own, but {key_added!r} is read here."
        raise ValueError(msg)
    positive, known = _classes(data, class_key)
    groups = _groups(data, by)
    names = [name for name in groups.cat.categories if (known & (groups == name)).any()]
    if path is not None:
        _require_path(Path(path), names)
    grade = _grades(data, density_key, limits)
    if grade is not None:
        data.obs[key_added] = grade
    rows = {name: _row(positive, known & (groups == name).to_numpy(), grade) for name in names}
    if len(rows) > 1:
        rows[TOTAL if TOTAL not in rows else f"{TOTAL} of all"] = _row(
            positive, known & groups.notna().to_numpy(), grade
        )
    if path is not None:
        _save(data, rows, names, Path(path))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = by or "region"
    return frame


def _classes(table: AnnData, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Which nuclei are positive, and which have a class: bool [N] each."""
    labels = labels_of(table, key)
    other = sorted(set(labels.cat.remove_unused_categories().cat.categories) - {"positive", "negative"})
    if other:
        msg = f"`obs[{key!r}]` must hold 'positive' and 'negative', it has {other} too. `tl.segment_nuclei` writes it."
        raise ValueError(msg)
    known = labels.notna().to_numpy()
    if not known.any():
        msg = f"No nucleus has a class in `obs[{key!r}]`."
        raise ValueError(msg)
    return (labels == "positive").to_numpy(), known


def _groups(table: AnnData, by: str | None) -> pd.Series:
    """Group of each nucleus, categorical."""
    if by is None:
        by = table.uns.get("spatialdata_attrs", {}).get("region_key")
    if by is None:
        return pd.Series(pd.Categorical(["all"] * table.n_obs), index=table.obs_names)
    return labels_of(table, by).cat.remove_unused_categories()


def _grades(table: AnnData, key: str, limits: np.ndarray) -> pd.Categorical | None:
    """Intensity of each nucleus; none where its density is not known."""
    if key not in table.obs:
        if key == "dab_density":
            return None
        msg = f"No column {key!r} in `adata.obs`. Available: {list(table.obs)}."
        raise KeyError(msg)
    if not pd.api.types.is_numeric_dtype(table.obs[key]):
        msg = f"`obs[{key!r}]` must hold numbers, it has {table.obs[key].dtype}."
        raise ValueError(msg)
    density = table.obs[key].to_numpy(dtype=np.float64)
    level = np.searchsorted(limits, np.nan_to_num(density), side="right")
    names = [
        name if known else None for name, known in zip(np.take(INTENSITIES, level), np.isfinite(density), strict=True)
    ]
    return pd.Categorical(names, categories=INTENSITIES, ordered=True)


def _row(positive: np.ndarray, members: np.ndarray, grade: pd.Categorical | None) -> dict[str, Any]:
    row = counts_of(int(members.sum()), int((positive & members).sum()))
    row["percent_pos"] = float(row["percent_pos"])
    if grade is not None:
        codes = grade.codes[members]
        codes = codes[codes >= 0]
        share = np.bincount(codes, minlength=4) / max(len(codes), 1) * 100
        row["h_score"] = float((share * np.arange(4)).sum()) if len(codes) else np.nan
        row |= {name: float(part) if len(codes) else np.nan for name, part in zip(INTENSITIES, share, strict=True)}
    return row


def _require_path(path: Path, names: Sequence[str]) -> None:
    """Refuse a file for several groups, and a folder for one, before anything is written."""
    if len(names) == 1:
        if path.is_dir():
            msg = (
                f"`path` is a file where there is one group, {names[0]!r}, but '{path}' is a folder. Name a file in it."
            )
            raise ValueError(msg)
        return
    if path.exists() and not path.is_dir():
        msg = (
            f"`path` is a folder where there are several groups, {list(names)}, but '{path}' is a file. Name a folder."
        )
        raise ValueError(msg)
    files = [str(name).replace("/", "_").replace("\\", "_") for name in names]
    if len({file.lower() for file in files}) < len(files):
        msg = f"Groups {list(names)} would be written to files of one name. Rename them, or leave `path` out."
        raise ValueError(msg)


def _save(table: AnnData, rows: dict[str, dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """One JSON a group, with the names and settings of the published program."""
    known = table.uns.get(SOURCE, {}).get("params", {})
    (path if len(names) > 1 else path.parent).mkdir(parents=True, exist_ok=True)
    for name in names:
        settings = known.get(name, next(iter(known.values())) if len(known) == 1 else {})
        counts = counts_of(rows[name]["num_total"], rows[name]["num_pos"])
        used = {key: _plain(settings.get(key)) for key in SETTINGS}
        file = path / f"{str(name).replace('/', '_').replace(chr(92), '_')}.json" if len(names) > 1 else path
        file.write_text(json.dumps(counts | used, indent=2) + "\n", encoding="utf-8")


def _plain(value: Any) -> int | None:
    """A setting as it came from a store: "" stands for none."""
    return None if value is None or (isinstance(value, str) and not value) else int(value)
