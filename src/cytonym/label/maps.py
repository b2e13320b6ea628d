"""Where cells lie: in an embedding and in the tissue."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.features import scale_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cytonym.label.session import Session

logger = logging.getLogger("cytonym")

MOST = 100_000
"""Cells from which on the map is made of a sample, beside which the others are placed."""
LEAST = 5  # cells for a UMAP
NEIGHBOURS = 15
CALM_EPOCHS, CALM_RATE = 100, 0.1
"""Of a map that begins at an earlier one."""
GAP = 0.05
"""Between images that lie side by side, in widths of the widest."""


class Maps:
    """Coordinates of the cells of a session: an embedding, and the tissue.

    Parameters
    ----------
    session
        Whose cells.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._known: dict[str, np.ndarray] = {}
        self._busy = threading.Lock()
        self._round = 0
        umap = session.table.obsm.get("X_umap")
        if umap is not None and np.asarray(umap).ndim == 2 and np.asarray(umap).shape[1] >= 2:
            self._known["umap"] = np.asarray(umap, dtype=np.float32)[:, :2]

    @property
    def names(self) -> list[str]:
        """Maps that there are: `"umap"`, or `"pca"` until there is one, and `"spatial"`."""
        found = ["umap"] if "umap" in self._known else ["pca"] if self._has_features() else []
        return [*found, "spatial"] if self.places() is not None or not found else found

    @property
    def busy(self) -> bool:
        """Whether a new map is being made."""
        return self._busy.locked()

    def get(self, name: str) -> np.ndarray:
        """Coordinates (x, y) of all cells, f4 [n, 2]; NaN for cells that are not on the map.

        On `"spatial"` y points down, and regions that lie over each other are laid side by side.

        Raises
        ------
        KeyError
            There is no such map.
        """
        if name not in self.names:
            msg = f"No map {name!r}. Available: {self.names}."
            raise KeyError(msg)
        if name not in self._known:
            self._known[name] = self._tissue() if name == "spatial" else principal(self.session.learner.features)
        return self._known[name]

    def forget(self, name: str) -> None:
        """Make a map anew when it is asked for next."""
        self._known.pop(name, None)

    def places(self) -> np.ndarray | None:
        """Centres (x, y) in the coordinate system, f8 [n, 2]; None where nothing says where cells are."""
        joined = self.session.opened.joined
        if joined is not None:
            return joined.spatial
        spatial = self.session.table.obsm.get("spatial")
        if spatial is None or np.asarray(spatial).ndim != 2 or np.asarray(spatial).shape[1] < 2:
            return None
        return np.asarray(spatial, dtype=np.float64)[:, :2]

    # ----------------------------------------------------------------------------------------------------------- new map
    def remap(
        self,
        *,
        background: bool = True,
        on_done: Callable[[dict[str, Any]], None] | None = None,
        on_progress: Callable[[int, int, str], None] | None = None,
    ) -> threading.Thread | None:
        """Make a new UMAP of the features. It begins at the last map and is turned to lie on it, so that people keep their place.

        Parameters
        ----------
        background
            Return at once.
        on_done
            Called with `map` (its name), or with `error`, or with `cancelled`.
        on_progress
            Called with what is done, what there is to do, and a word on it.

        Returns
        -------
        The thread, if one was started; None also where a map is being made already.
        """
        if not self._busy.acquire(blocking=not background):
            return None
        self._round += 1
        told: tuple[Any, ...] = (self._round, on_done, on_progress)
        if not background:
            self._remap(*told)
            return None
        thread = threading.Thread(target=self._remap, args=told, name="cytonym-map", daemon=True)
        thread.start()
        return thread

    def cancel(self) -> None:
        """Do without the map that is being made: what it becomes is thrown away."""
        self._round += 1

    def _remap(
        self,
        mine: int,
        on_done: Callable[[dict[str, Any]], None] | None,
        on_progress: Callable[[int, int, str], None] | None,
    ) -> None:
        told: dict[str, Any]
        tell = on_progress or (lambda done, total, text: None)
        try:
            tell(0, 3, "start")
            features = self.session.learner.features
            before = self._known.get("umap")
            again = before is not None
            if before is None:
                before = principal(features)
            tell(1, 3, "UMAP")
            found = umap_from(
                features, before, self.session.seed, order=self.session.state.index.canonical, again=again
            )
            tell(2, 3, "place")
            if mine == self._round:
                if "umap" in self._known:
                    found = aligned(found, self._known["umap"])
                self._known["umap"] = found
                told = {"map": "umap"}
            else:
                told = {"cancelled": True}
        except Exception as error:
            logger.info("No new map: %s", error)
            told = {"error": str(error)}
            if on_done is None:
                raise
        finally:
            self._busy.release()
        tell(3, 3, "done")
        if on_done is not None:
            on_done(told)

    # ------------------------------------------------------------------------------------------------------------ inside
    def _has_features(self) -> bool:
        try:
            return self.session.learner is not None
        except (KeyError, ValueError):
            return False

    def _tissue(self) -> np.ndarray:
        """Places with regions side by side where they lie over each other."""
        places = self.places()
        if places is None:
            return np.full((self.session.n, 2), np.nan, np.float32)
        index = self.session.state.index
        return side_by_side(places, index.region_codes, len(index.names)).astype(np.float32)


def side_by_side(places: np.ndarray, region: np.ndarray, n_regions: int) -> np.ndarray:
    """Move regions apart, row by row, where their boxes meet; else leave all where they are.

    Parameters
    ----------
    places
        (x, y) [n, 2].
    region
        Number of the region of each, [n].
    n_regions
        How many there are.
    """
    finite = np.isfinite(places).all(axis=1)
    boxes = np.full((n_regions, 2, 2), np.nan)
    for i in range(n_regions):
        here = places[finite & (region == i)]
        if len(here):
            boxes[i] = here.min(axis=0), here.max(axis=0)
    low, high = boxes[:, 0], boxes[:, 1]
    meet = (low[:, None] <= high[None]).all(axis=2) & (low[None] <= high[:, None]).all(axis=2)
    if not np.triu(meet, 1).any():
        return places.copy()
    cell = np.nanmax(high - low, axis=0) * (1 + GAP) + 1
    columns = int(np.ceil(np.sqrt(n_regions)))
    corner = np.column_stack([np.arange(n_regions) % columns, np.arange(n_regions) // columns]) * cell
    return places + (corner - np.nan_to_num(low))[region]


def principal(features: np.ndarray) -> np.ndarray:
    """First two principal components, f4 [n, 2]; NaN where a feature lacks."""
    complete = np.isfinite(features).all(axis=1)
    found = np.full((len(features), 2), np.nan, np.float32)
    scale = scale_of(features, np.flatnonzero(complete))
    x = scale(features[complete]).astype(np.float64)
    x -= x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    first = vectors[:, ::-1][:, :2]
    first *= np.where(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])] < 0, -1.0, 1.0)
    found[complete, : first.shape[1]] = x @ first
    if first.shape[1] < 2:
        found[complete, 1] = 0.0
    return found


def umap_from(
    features: np.ndarray, before: np.ndarray, seed: int, *, order: np.ndarray, again: bool = False
) -> np.ndarray:
    """A UMAP of standardised features that begins at another map, f4 [n, 2]; NaN where a feature lacks.

    Parameters
    ----------
    features
        [n, d].
    before
        Map to begin at [n, 2].
    seed
        Same seed, same map.
    order
        An order of the rows that does not depend on that of the table.
    again
        Whether `before` is a UMAP itself: then cells move in small steps only.
    """
    from umap import UMAP

    order = order[np.isfinite(features).all(axis=1)[order]]
    found = np.full((len(features), 2), np.nan, np.float32)
    if len(order) < LEAST:
        found[order] = before[order]
        return found
    rng = np.random.default_rng(seed)
    some = order if len(order) <= MOST else np.sort(rng.choice(len(order), MOST, replace=False))
    rows = order if some is order else order[some]
    scale = scale_of(features, order)
    scaled = scale(features[rows])
    begin = np.nan_to_num(before[rows].astype(np.float64))
    begin = 10 * (begin - begin.mean(axis=0)) / (np.abs(begin - begin.mean(axis=0)).max() or 1.0)
    begin += rng.normal(scale=1e-4, size=begin.shape)  # cells in one place could never part
    pace: dict[str, Any] = {"n_epochs": CALM_EPOCHS, "learning_rate": CALM_RATE} if again else {}
    reducer = UMAP(
        n_neighbors=min(NEIGHBOURS, len(rows) - 1), init=begin.astype(np.float32), random_state=seed, n_jobs=1, **pace
    )
    found[rows] = reducer.fit_transform(scaled)
    others = np.setdiff1d(order, rows)
    if len(others):
        found[others] = _beside(scaled, found[rows], scale(features[others]), seed)
    return found


def _beside(known: np.ndarray, places: np.ndarray, new: np.ndarray, seed: int) -> np.ndarray:
    """Places of further cells: the mean of those of their nearest neighbours, near ones counting more."""
    from pynndescent import NNDescent

    neighbours, away = NNDescent(known, n_neighbors=NEIGHBOURS, random_state=seed).query(new, k=5)
    weight = 1 / (away + 1e-6)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.einsum("nk,nkd->nd", weight, places[neighbours]).astype(np.float32)


def aligned(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """A map moved, turned, mirrored and scaled as a whole to lie on another one (Procrustes), f4 [n, 2]."""
    both = np.isfinite(new).all(axis=1) & np.isfinite(old).all(axis=1)
    if both.sum() < 2:
        return new
    a, b = new[both].astype(np.float64), old[both].astype(np.float64)
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    a, b = a - mean_a, b - mean_b
    left, size, right = np.linalg.svd(a.T @ b)
    scale = size.sum() / ((a**2).sum() or 1.0)
    if not np.isfinite(scale) or scale <= 0:
        return new
    return ((new - mean_a) @ (left @ right) * scale + mean_b).astype(np.float32)
