"""How far a property of cells and the errors of calls go together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS, PER_BIN = 10, 5  # bins at most, and units that a bin should have
NULL = 0.95
ROUNDING = 1e-12


@dataclass(frozen=True)
class Units:
    """What carries a value of a property: a cell, a cell and a marker, or a marker of an image. Arrays [U]."""

    values: np.ndarray
    stratum: np.ndarray
    """Units that could as well have each other's values."""
    n: np.ndarray
    """Pairs of the unit."""
    n_wrong: np.ndarray


def units_of(values: np.ndarray, unit: np.ndarray, stratum: np.ndarray, wrong: np.ndarray) -> Units | str:
    """From values [P], NaN where there is none, and the unit and stratum of each pair; or why there is nothing to look at."""
    kept = np.isfinite(values)
    if not kept.any():
        return "no cell has a value"
    if len(np.unique(values[kept])) < 2:
        return "it is the same everywhere"
    _, first, inverse = np.unique(unit[kept], return_index=True, return_inverse=True)
    n_wrong = np.bincount(inverse, weights=wrong[kept])
    return Units(values[kept][first], stratum[kept][first], np.bincount(inverse), n_wrong)


def associate(units: Units, n_permutations: int, rng: np.random.Generator) -> dict[str, float]:
    """Mutual information of a property and errors, and what shuffled values give."""
    codes = bin_codes(units.values, units.n)
    order = np.lexsort((units.n_wrong, units.n, codes, units.stratum))  # the order of the rows must not matter
    codes, stratum, n, n_wrong = codes[order], units.stratum[order], units.n[order], units.n_wrong[order]
    rank = np.unique(stratum, return_inverse=True)[1]

    def tabulate(of: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(of, weights=w, minlength=codes.max() + 1) for w in (n_wrong, n - n_wrong)])

    observed = tabulate(codes)
    if (n == 1).all():  # how many of the wrong ones fall into each bin, stratum by stratum
        wrong = np.zeros((n_permutations, observed.shape[1]))
        cells = np.bincount(rank * observed.shape[1] + codes, minlength=(rank[-1] + 1) * observed.shape[1])
        for in_bins, drawn in zip(
            cells.reshape(-1, observed.shape[1]), np.bincount(rank, weights=n_wrong), strict=True
        ):
            wrong += rng.multivariate_hypergeometric(in_bins, int(drawn), size=n_permutations)
        shuffles = (np.stack([w, observed.sum(axis=0) - w]) for w in wrong)
    else:
        shuffles = (tabulate(codes[np.argsort(rank + rng.random(len(rank)))]) for _ in range(n_permutations))
    information = mutual_information(observed)
    shuffled = [mutual_information(table) for table in shuffles]
    share = n_wrong.sum() / n.sum()
    entropy = -sum(p * np.log(p) for p in (share, 1 - share) if p > 0)
    return {
        "mutual_information": information,
        "null_95": float(np.quantile(shuffled, NULL)),
        "explained": information / entropy if entropy > 0 else float("nan"),
        "n": int(n.sum()),
        "n_units": len(n),
    }


def bin_codes(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Bin of each value [U], equal values together, with about as much weight in each; distinct values where they are few."""
    n_bins = int(np.clip(len(values) // PER_BIN, 2, BINS))
    distinct, inverse = np.unique(values, return_inverse=True)
    if len(distinct) <= n_bins:
        return inverse
    upto = np.cumsum(np.bincount(inverse, weights=weights))
    share = (upto - np.diff(upto, prepend=0) / 2) / upto[-1]  # of the weight, up to the middle of a value
    return np.unique(np.floor(share * n_bins).astype(int)[inverse], return_inverse=True)[1]


def mutual_information(counts: np.ndarray) -> float:
    """Of a table of counts, in nats."""
    joint = counts / counts.sum()
    expected = joint.sum(axis=0, keepdims=True) * joint.sum(axis=1, keepdims=True)
    some = joint > 0
    found = float((joint[some] * np.log(joint[some] / expected[some])).sum())
    return found if found > ROUNDING else 0.0


def neighbours_within(
    points: np.ndarray, member: np.ndarray, asked: np.ndarray, image: np.ndarray, radius: float
) -> np.ndarray:
    """Members (bool [N]) of the same image within the radius of each cell asked for, itself not counted: float [N], else NaN."""
    from scipy.spatial import KDTree

    counts = np.full(len(points), np.nan)
    placed = np.isfinite(points).all(axis=1) & (image >= 0)
    asked, others = asked[placed[asked]], placed & member
    apart = np.column_stack([points, image * 4.0 * radius])  # images above each other, out of each other's reach
    counts[asked] = 0
    if others.any() and len(asked):
        found = KDTree(apart[others]).query_ball_point(apart[asked], radius, return_length=True)
        counts[asked] = found - others[asked]
    return counts
