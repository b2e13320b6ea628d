"""What the errors of marker positivity go along with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cytonym._shared import RNG, document, seed_of
from cytonym.data.checks import require_key
from cytonym.data.names import with_marker_names
from cytonym.get import marker_frame
from cytonym.tl._association import Units, associate, neighbours_within, units_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger("cytonym")

RADIUS = 60.0  # micrometres: the paper's 120 pixels at 0.5 micrometres
SHUFFLES = 200


@document(rng=RNG)
def confounders(
    adata: AnnData,
    truth: str | pd.DataFrame,
    *,
    key: str = "nimbus_positivity",
    threshold: float | Mapping[str, float] | pd.Series = 0.5,
    intensities: str | None = None,
    area: str = "area",
    by: str = "region",
    radius: float = RADIUS,
    n_permutations: int = SHUFFLES,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Ask which properties of cells, markers and images the errors of positivity calls go along with (Nimbus, figure 4d).

    A call is wrong where score and truth lie on different sides of the threshold. The mutual information between wrong or right and
    a property is 0 where the property says nothing about the errors. Every cell and marker with a score and a known truth counts
    once. Five properties are looked at, as far as the table allows:

    `"cell_size"`
        The cell's area.
    `"density"`
        Other cells of the image within `radius` of the cell.
    `"sparsity"`
        Other cells within `radius` that are positive for the marker; cells of unknown truth count by their call.
    `"rarity"`
        Share of the marker's positive cells in the image, among those of known truth.
    `"heterogeneity"`
        Coefficient of variation (standard deviation by mean) of the marker's mean intensity over the cells of the image.

    Parameters
    ----------
    adata
        Table of N cells. Nothing is written to it.
    truth
        What is true: a DataFrame [cells, markers] of 1 (positive), 0 (negative) and NaN (unknown), or its key in `adata.obsm`. Its
        rows are joined by the names of the cells and its columns by those of the markers.
    key
        DataFrame of `adata.obsm` with a score in 0…1 for each cell and marker.
    threshold
        A cell is called positive from this score on; one number, or one a marker, such as a column of the `thresholds` of
        `tl.call_markers`. Numbers are compared as float32, as there.
    intensities
        Mean intensities of the cells: `"X"` or a DataFrame of `adata.obsm`. Default: `X` where its variables are markers
        with scores, else `obsm["mean_intensity"]`.
    area
        Column of `adata.obs` with the size of the cells.
    by
        Column of `adata.obs` with the image of each cell; neighbours are looked for in the same image only.
    radius
        Of a neighbourhood, in the units of `obsm["spatial"]`. The default is the paper's 120 pixels in micrometres, at the 0.5
        micrometres a pixel of its training images; where the units are pixels of another size, give the radius in pixels.
    n_permutations
        Shuffles behind the null.
    {rng}
        It does not depend on the order of the rows.

    Returns
    -------
    DataFrame
        One row a property, the most telling one first. Columns: `confounder`; `mutual_information` in nats; `null_95`, the 95 %
        quantile of what shuffled values give, below which an association may be chance; `explained`, the information as a share of
        the entropy of the errors, 1 at most; `n`, scores that were judged; `n_units`, independent values of the property: cells,
        cells and markers, or markers of images. `attrs` hold `key`, `radius`, `error_rate`, `n` and `seed`.

    Raises
    ------
    KeyError
        `key`, `truth`, `by` or `intensities` is missing, or scores and truth share no marker.
    ValueError
        The truth holds other values than 1, 0 and NaN, no cell has both a score and a truth, no property can be computed, or a number
        is out of range.

    Notes
    -----
    The information is that of a table of errors by up to ten bins with equally many scores (and some five units each), so that any dependence counts, not only
    a rising one, and equal values stay together. Such tables lie a little above 0 by chance; the null says how much. It shuffles
    values among those that could as well have them: areas and densities among the cells of an image, sparsity among the cells
    of an image for each marker, rarity and heterogeneity among the markers and images. What only tells images or markers apart
    does not count for the first three, and few markers of few images rarely stand out in the last two.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import cytonym as cy
    >>> rng = np.random.default_rng(0)
    >>> names = [f"cell_{i}" for i in range(400)]
    >>> adata = ad.AnnData(
    ...     np.zeros((400, 1)), obs=pd.DataFrame({"region": "a", "area": rng.uniform(20, 200, 400)}, index=names)
    ... )
    >>> adata.obsm["spatial"] = rng.uniform(0, 500, (400, 2))
    >>> truth = pd.DataFrame({"CD8": rng.random(400) < 0.5}, index=names)
    >>> wrong = adata.obs["area"] < 50  # small cells are called wrongly
    >>> adata.obsm["nimbus_positivity"] = (truth["CD8"] ^ wrong).astype(float).to_frame("CD8")
    >>> result = cy.tl.confounders(adata, truth)
    >>> result["confounder"].tolist()
    ['cell_size', 'sparsity', 'density']
    >>> (result["mutual_information"] > result["null_95"]).tolist()
    [True, False, False]
    """
    if not 0 < radius < np.inf or n_permutations < 1:
        msg = (
            f"`radius` must be positive and finite and `n_permutations` at least 1, got {radius} and {n_permutations}."
        )
        raise ValueError(msg)
    seed = seed_of(rng)
    judged = _judge(adata, truth, key, threshold, _images(adata, by))
    found = {
        "cell_size": _size(adata, judged, area),
        "heterogeneity": _heterogeneity(adata, judged, intensities),
        "rarity": _rarity(judged),
        **_neighbours(adata, judged, radius),
    }
    rows = []
    for i, (name, units) in enumerate(sorted(found.items())):
        if isinstance(units, str):
            logger.info("%s is left out: %s.", name, units)
            continue
        rows.append({"confounder": name, **associate(units, n_permutations, np.random.default_rng([seed, i]))})
    if not rows:
        msg = (
            f"No property of the cells can be computed, or all are constant. Needed: `obs[{area!r}]` and intensities "
            "(`pp.measure_cells` writes both), `obsm['spatial']`, or several markers."
        )
        raise ValueError(msg)
    columns = ["confounder", "mutual_information", "null_95", "explained", "n", "n_units"]
    result = pd.DataFrame(rows, columns=columns)
    result = result.sort_values("mutual_information", ascending=False, kind="stable", ignore_index=True)
    result.attrs = {
        "key": key, "radius": float(radius), "error_rate": float(judged.wrong.mean()), "n": len(judged.wrong), "seed": seed,
    }  # fmt: skip
    return result


# ------------------------------------------------------------------------------------------------------ right and wrong
@dataclass(frozen=True)
class _Judged:
    """Calls against the truth; a pair is a cell and a marker with a score and a known truth."""

    markers: tuple[str, ...]
    image: np.ndarray
    """int [n_obs], -1 for cells of no image."""
    known: np.ndarray
    """bool [n_obs, C], where there is a pair."""
    truth: np.ndarray
    """bool [n_obs, C], False where it is unknown."""
    positive: np.ndarray
    """bool [n_obs, C], by the truth or else by the call."""
    cell: np.ndarray
    """int [P], row of each pair."""
    marker: np.ndarray
    """int [P]."""
    wrong: np.ndarray
    """bool [P]."""

    @property
    def group(self) -> np.ndarray:
        """Which marker of which image a pair belongs to: int [P]."""
        return self.image[self.cell] * len(self.markers) + self.marker


def _images(adata: AnnData, by: str) -> np.ndarray:
    if by == "region" and by not in adata.obs:
        by = adata.uns.get("spatialdata_attrs", {}).get("region_key", by)
    require_key(by, adata.obs, "column", "adata.obs")
    return pd.Categorical(adata.obs[by].astype(object)).codes.astype(np.int64)


def _judge(
    adata: AnnData,
    truth: str | pd.DataFrame,
    key: str,
    threshold: float | Mapping[str, float] | pd.Series,
    image: np.ndarray,
) -> _Judged:
    if key not in adata.obsm:
        msg = f"No scores {key!r} in `adata.obsm`. Available: {sorted(map(str, adata.obsm))}. `tl.score_markers` writes them."
        raise KeyError(msg)
    scores = marker_frame(adata, key)
    true = _truth(adata, truth)
    scored = [str(c) for c in scores.columns]
    markers = sorted(set(scored) & set(true.columns))
    if not markers:
        msg = f"Scores and truth share no marker: {scored} in {key!r}, {list(true.columns)} in `truth`."
        raise KeyError(msg)
    lost = sorted(set(true.columns) - set(markers))
    if lost:
        logger.info("Markers of the truth without scores are left out: %s.", lost)
    limits = _limits(threshold, markers)
    numbers = scores.set_axis(scored, axis=1)[markers].to_numpy(dtype=np.float32, na_value=np.nan)
    facts = true[markers].to_numpy()
    called = numbers >= limits
    known = np.isfinite(numbers) & np.isfinite(facts) & (image >= 0)[:, None]
    if not known.any():
        msg = f"No cell has a score in {key!r}, a truth for the same marker and an image: nothing to compare."
        raise ValueError(msg)
    cell, marker = np.nonzero(known)
    wrong = (called != (facts == 1))[known]
    if wrong.all() or not wrong.any():
        logger.warning("All %s calls are %s: nothing to explain.", f"{len(wrong):,}", "wrong" if wrong[0] else "right")
    positive = np.where(np.isfinite(facts), facts == 1, called)
    return _Judged(tuple(markers), image, known, facts == 1, positive, cell, marker, wrong)


def _limits(threshold: float | Mapping[str, float] | pd.Series, markers: Sequence[str]) -> np.ndarray:
    """Threshold of each marker, f4 [C]."""
    if isinstance(threshold, pd.Series) and not threshold.index.is_unique:
        msg = f"`threshold` names markers twice: {sorted(set(threshold.index[threshold.index.duplicated()]))}."
        raise ValueError(msg)
    if isinstance(threshold, Mapping | pd.Series):
        named = {str(marker): value for marker, value in threshold.items()}
        lacking = [m for m in markers if m not in named]
        if lacking:
            msg = f"`threshold` lacks the markers {lacking}. It has: {list(named)}."
            raise KeyError(msg)
        limits = np.array([named[m] for m in markers], dtype=np.float32)
    else:
        limits = np.full(len(markers), threshold, dtype=np.float32)
    if not ((limits >= 0) & (limits <= 1)).all():
        msg = f"Thresholds must be numbers from 0 to 1, got {dict(threshold) if isinstance(threshold, pd.Series) else threshold}."
        raise ValueError(msg)
    return limits


def _truth(adata: AnnData, truth: str | pd.DataFrame) -> pd.DataFrame:
    """1, 0 and NaN, float [n_obs, markers of the truth], in the order of the table."""
    if isinstance(truth, str):
        require_key(truth, adata.obsm, "DataFrame", "adata.obsm")
        frame = adata.obsm[truth]
        if not isinstance(frame, pd.DataFrame):
            msg = f"`adata.obsm[{truth!r}]` is an array without marker names; a DataFrame with one column a marker is needed."
            raise TypeError(msg)
        frame = with_marker_names(frame, truth, adata.uns)
    elif isinstance(truth, pd.DataFrame):
        if truth.index.has_duplicates or adata.obs_names.has_duplicates:
            msg = "`truth` is joined by the names of the cells, but some repeat. `adata.obs_names_make_unique()` helps."
            raise ValueError(msg)
        if not truth.index.isin(adata.obs_names).any():
            msg = (
                f"`truth` and the table have no cell in common: {truth.index[:3].tolist()}… against "
                f"{adata.obs_names[:3].tolist()}…"
            )
            raise ValueError(msg)
        frame = truth.reindex(adata.obs_names)
    else:
        msg = f"`truth` must be a DataFrame or a key of `adata.obsm`, got {type(truth).__name__}."
        raise TypeError(msg)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        msg = f"Markers of the truth repeat: {twice}."
        raise ValueError(msg)
    numbers = {}
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
            bad = np.unique(values[~np.isnan(values) & (values != 0) & (values != 1)]).tolist()
        else:
            known, one = column.notna().to_numpy(), column.astype(object).map(_as_number).to_numpy(dtype=np.float64)
            bad = sorted({repr(v) for v in column[known & np.isnan(one)]})
            values = np.where(known, one, np.nan)
        if bad:
            msg = f"The truth of {name!r} must be 1, 0 or NaN (unknown) for each cell, found {bad[:5]}."
            raise ValueError(msg)
        numbers[name] = values
    return pd.DataFrame(numbers, index=frame.index)


def _as_number(value: object) -> float:
    return float(value) if isinstance(value, (bool, int, float, np.number, np.bool_)) and value in (0, 1) else np.nan


# ----------------------------------------------------------------------------------------------------------- properties
def _size(adata: AnnData, judged: _Judged, area: str) -> Units | str:
    if area not in adata.obs:
        return f"no column {area!r} in `adata.obs` (`pp.measure_cells` writes one)"
    values = adata.obs[area].to_numpy(dtype=np.float64)
    return units_of(values[judged.cell], judged.cell, judged.image[judged.cell], judged.wrong)


def _heterogeneity(adata: AnnData, judged: _Judged, intensities: str | None) -> Units | str:
    frame = _intensities(adata, judged.markers, intensities)
    if frame is None:
        return "no mean intensities of these markers (`pp.measure_cells` writes them)"
    spread = np.full((judged.image.max() + 1, len(judged.markers)), np.nan)
    for m, marker in enumerate(judged.markers):
        if marker not in frame:
            continue
        values = frame[marker].to_numpy(dtype=np.float64)
        kept = np.isfinite(values) & (judged.image >= 0)
        order = np.lexsort((values[kept], judged.image[kept]))  # one sum, whatever the order of the rows
        images, starts = np.unique(judged.image[kept][order], return_index=True)
        for i, cells in zip(images, np.split(values[kept][order], starts[1:]), strict=False):
            if cells.mean() > 0:
                spread[i, m] = cells.std() / cells.mean()
    values = spread[judged.image[judged.cell], judged.marker]
    return units_of(values, judged.group, np.zeros_like(judged.group), judged.wrong)


def _intensities(adata: AnnData, markers: Sequence[str], key: str | None) -> pd.DataFrame | None:
    names = adata.var_names.astype(str)
    in_x = [m for m in markers if m in names]
    if key not in (None, "X"):
        require_key(key, adata.obsm, "intensities", "adata.obsm")
    elif adata.X is not None and in_x:
        return adata[:, in_x].to_df()
    elif key == "X":
        msg = f"`X` has none of the markers {list(markers)} for variables. Its variables: {names[:10].tolist()}."
        raise KeyError(msg)
    key = key or "mean_intensity"
    if key not in adata.obsm:
        return None
    frame = marker_frame(adata, key)
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
    return frame if set(markers) & set(frame.columns) else None


def _rarity(judged: _Judged) -> Units | str:
    n = np.bincount(judged.group)
    positive = np.bincount(judged.group, weights=judged.truth[judged.known])
    share = positive[judged.group] / n[judged.group]
    return units_of(share, judged.group, np.zeros_like(judged.group), judged.wrong)


def _neighbours(adata: AnnData, judged: _Judged, radius: float) -> dict[str, Units | str]:
    """Density and sparsity."""
    if "spatial" not in adata.obsm:
        return dict.fromkeys(("density", "sparsity"), "no `obsm['spatial']` (`pp.measure_cells` writes it)")
    if "area_um2" not in adata.obs:
        logger.info(
            "Neighbours are counted within %g units of `obsm['spatial']`; where those are pixels, give `radius` in pixels.",
            radius,
        )
    points = np.asarray(adata.obsm["spatial"], dtype=np.float64)
    placed = np.asarray(np.isfinite(points).all(axis=1))
    every = np.ones(len(points), dtype=bool)
    density = neighbours_within(points, every, np.unique(judged.cell), judged.image, radius)
    sparsity = np.full(judged.known.shape, np.nan)
    for m in range(len(judged.markers)):
        asked = np.flatnonzero(judged.known[:, m])
        sparsity[asked, m] = neighbours_within(points, judged.positive[:, m], asked, judged.image, radius)[asked]
    lost = int((~placed[np.unique(judged.cell)]).sum())
    if lost:
        logger.info("%s cells have no position and no density or sparsity.", f"{lost:,}")
    pair = judged.cell * len(judged.markers) + judged.marker
    return {
        "density": units_of(density[judged.cell], judged.cell, judged.image[judged.cell], judged.wrong),
        "sparsity": units_of(sparsity[judged.cell, judged.marker], pair, judged.group, judged.wrong),
    }
