"""The main job from images to a report: what `cytonym demo` runs, as calls of the public verbs."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
import spatialdata as sd
from anndata import AnnData
from scipy.sparse import csr_matrix, lil_matrix
from sklearn.neighbors import NearestNeighbors
from spatialdata import SpatialData

import cytonym as cy
from cytonym.data.nuclear import is_nuclear, nuclear_channels
from cytonym.data.source import resolve
from cytonym.data.table import open_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cytonym.data.table import TableRows
    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")

CLUSTERS, TRUTH, NAMED = "phenograph", "cell_type", "named_phenotype"
EMBEDDING, ATTRIBUTIONS = "X_nextmarker", "nextmarker_attributions"
NEIGHBORS, NEAREST = 30, 10  # in the space of the embedding, in the tissue
FEWEST = 4  # cells of which a UMAP can be made
WINDOW, LARGE_PX = 1.6, 16  # side of the window in diameters of a nucleus; below so many pixels the default does
LEADING = 0.55  # least AUROC of a marker that is named for a cluster


@dataclass
class Run:
    """What the report tells about."""

    sdata: SpatialData
    model: CellEncoder
    source: str
    truth: str | None
    top: dict[str, dict[str, float]]
    """Leading markers of each cluster with their AUROC, large clusters and high values first."""
    scores: pd.DataFrame | None = None
    """Agreement with the known types, one row a representation; none where no cell has one."""
    cells_found: bool = False
    """Whether the cells were found in a nuclear channel, not given."""
    stain: str | None = None
    """Nuclear channel, where one was named."""
    seconds: dict[str, float] = field(default_factory=dict)
    table_key: str = "table"

    @property
    def adata(self) -> AnnData:
        """The table of the cells."""
        return self.sdata.tables[self.table_key]

    @property
    def nuclear(self) -> str | None:
        """A nuclear channel that all images have, the one that was named if they do."""
        panels = [list(map(str, sd.models.get_channel_names(image))) for image in self.sdata.images.values()]
        shared = [name for name in channel_names(self.sdata) if all(name in panel for panel in panels)]
        return self.stain if self.stain in shared else next(iter(nuclear_channels(shared)), None)

    def leading_markers(self, n: int) -> list[str]:
        """Up to n markers, not the nuclear one, that together tell as many cells as possible from the others."""
        share = self.adata.obs[CLUSTERS].value_counts(normalize=True)
        # to the third power: 0.95 in one cluster says more than 0.8 in two
        told = {g: {m: max(auroc - 0.5, 0) ** 3 for m, auroc in top.items()} for g, top in self.top.items()}
        covered = dict.fromkeys(told, 0.0)
        left = [m for m in self.model.markers if m != self.nuclear and not is_nuclear(m)]
        chosen: list[str] = []
        while left and len(chosen) < n:
            gain = [sum(max(0, told[g].get(m, 0) - covered[g]) * share[g] ** 0.5 for g in told) for m in left]
            best = left.pop(int(np.argmax(gain)))
            chosen.append(best)
            covered = {g: max(covered[g], told[g].get(best, 0)) for g in told}
        return chosen or list(self.model.markers)[:n]


def open_data(path: Path, *, pixel_size: float | None = None) -> SpatialData:
    """A SpatialData store, or a folder of TIFF images with masks, centres or neither."""
    if not path.exists():
        msg = f"No such file or folder: {path}."
        raise FileNotFoundError(msg)
    if not is_store(path):
        return cy.io.read_tiffs(path, pixel_size=pixel_size)
    if pixel_size is not None:
        msg = (
            f"{path} is a SpatialData store, whose images say themselves how large a pixel is: leave --pixel-size out."
        )
        raise ValueError(msg)
    return sd.read_zarr(path)


def is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def channel_names(sdata: SpatialData) -> list[str]:
    """Channels of all images, each once, in their order."""
    return list(dict.fromkeys(str(c) for image in sdata.images for c in sd.models.get_channel_names(sdata[image])))


def choose_channels(
    available: Sequence[str], channel: Iterable[str] | None, without: Iterable[str] | None
) -> list[str] | None:
    """The channels asked for, None for all of them. An entry is a name, or several names with commas between."""
    named, left_out = (split_names(names or (), available) for names in (channel, without))
    chosen = [name for name in dict.fromkeys(named or available) if name not in left_out]
    if not chosen:
        msg = f"No channel is left after leaving out {left_out}."
        raise ValueError(msg)
    return chosen if named or left_out else None


def split_names(entries: Iterable[str], available: Sequence[str]) -> list[str]:
    """Names of channels out of entries that are one name, or several with commas between."""
    names: list[str] = []
    for entry in entries:
        names += [entry] if entry in available else [part.strip() for part in entry.split(",") if part.strip()]
    unknown = [name for name in names if name not in available]
    if unknown:
        msg = f"No channel {unknown[0]!r}. Available: {list(available)}."
        raise KeyError(msg)
    return names


def run(
    sdata: SpatialData,
    out: Path,
    *,
    source: str,
    channels: Sequence[str] | None = None,
    truth: str | None = None,
    table_key: str = "table",
    find: bool = False,
    nuclear: Sequence[str] | None = None,
    diameter_px: float | None = None,
    steps: int | None = None,
    size_px: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Run:
    """Train, embed, cluster, compare with the truth where it is known, and write the store and the model into `out`.

    With `find`, or where there are no cells, they are found in the nuclear channel; masks that are there then only tell
    which type a found cell has. The store and the model appear when the cells are embedded; those of an earlier run stay
    until then. Clusters and all that is told about them come into the store's table afterwards.
    """
    store, unfinished = out / "tissue.zarr", out / "tissue.zarr.unfinished"
    if store.exists() and not is_store(store):
        msg = f"{store} exists and is no SpatialData store. Choose another folder with --out."
        raise FileExistsError(msg)
    if sdata.is_backed() and sdata.path is not None and _same_place(sdata.path, store):
        msg = f"The data are {store} itself, which would be replaced. Choose another folder with --out."
        raise ValueError(msg)
    truth = _truth_column(sdata, truth, table_key)
    watch = _Watch()

    find = find or not (sdata.labels or sdata.shapes or sdata.points)
    if find:
        sdata = _find_cells(sdata, nuclear, diameter_px, truth, table_key)
        size_px = size_px or _window(sdata)
        watch.lap("find cells")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        sdata.write(unfinished)  # chunks on disk are read faster than TIFF
        sdata = sd.read_zarr(unfinished)
        watch.lap("convert")
        model = _embed(sdata, table_key, watch, channels=channels, steps=steps, size_px=size_px, seed=seed, device=device)  # fmt: skip
        cy.models.save(model, out / "model", overwrite=True)
        cy.io.save_table(sdata, table_key)
        if store.exists():
            shutil.rmtree(store)
        unfinished.rename(store)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sdata = sd.read_zarr(store)
    top, scores = _describe(sdata, table_key, model, truth, seed)
    watch.lap("cluster and map")
    cy.io.save_table(sdata, table_key)
    watch.lap("write")
    stain = next(iter(nuclear or []), None)
    return Run(sd.read_zarr(store), model, source, truth, top, scores, find, stain, watch.seconds, table_key)


def _embed(
    sdata: SpatialData,
    table_key: str,
    watch: _Watch,
    *,
    channels: Sequence[str] | None,
    steps: int | None,
    size_px: int | None,
    seed: int,
    device: str,
) -> CellEncoder:
    """Measure the cells, train on them and embed them."""
    cy.pp.measure_cells(sdata, table_key=table_key, channels=channels)
    watch.lap("measure")
    model = cy.tl.fit_encoder(sdata, table_key=table_key, channels=channels, steps=steps, size_px=size_px, rng=seed, device=device)  # fmt: skip
    watch.lap("train")
    cy.tl.embed_cells(sdata, model, table_key=table_key, rng=seed, device=device)
    watch.lap("embed")
    return model


def _describe(
    sdata: SpatialData, table_key: str, model: CellEncoder, truth: str | None, seed: int
) -> tuple[dict[str, dict[str, float]], pd.DataFrame | None]:
    """Clusters, UMAP and neighbourhoods in the table; leading markers and the agreement with the known types."""
    import squidpy as sq  # takes seconds to import

    adata = sdata.tables[table_key]
    inside = np.isfinite(adata.obsm[EMBEDDING]).all(axis=1)
    if not inside.all():
        logger.info("%d cells without an embedding are left out of the report.", int((~inside).sum()))
        adata = adata[inside].copy()
        del sdata.tables[table_key]
        sdata.tables[table_key] = adata
    logger.info("Clusters, UMAP and neighbourhoods of %s cells.", f"{adata.n_obs:,}")
    if adata.n_obs < FEWEST:
        msg = (
            f"Only {adata.n_obs} cells have an embedding; clusters and a map need {FEWEST} or more. The model and the "
            f"embedding are kept beside {sdata.path}."
        )
        raise ValueError(msg)
    k = min(NEIGHBORS, adata.n_obs - 1)
    cy.tl.cluster_cells(adata, use_rep=EMBEDDING, n_neighbors=k, rng=seed, key_added=CLUSTERS)
    sc.pp.neighbors(adata, use_rep=EMBEDDING, n_neighbors=min(15, k), random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    adata.obsp["spatial_connectivities"] = near = _nearest(adata)
    if near.nnz and adata.obs[CLUSTERS].nunique() > 1:
        logging.getLogger("spatialdata._logging").setLevel(logging.WARNING)  # squidpy talks through it
        sq.gr.nhood_enrichment(adata, CLUSTERS, seed=seed, show_progress_bar=False)
    return _top_markers(adata), None if truth is None else _scores(adata, model.markers, truth, seed)


def _nearest(adata: AnnData) -> csr_matrix:
    """Which cells are among the nearest of a cell in its own image: all others where there are few."""
    images = adata.obs[adata.uns["spatialdata_attrs"]["region_key"]].astype(str).to_numpy()
    near = lil_matrix((adata.n_obs, adata.n_obs))
    for image in np.unique(images):
        at = np.flatnonzero(images == image)
        if len(at) > 1:
            found = NearestNeighbors(n_neighbors=min(NEAREST, len(at) - 1)).fit(adata.obsm["spatial"][at])
            near[at[:, None], at[found.kneighbors(return_distance=False)]] = 1
    return near.tocsr()


def summary(found: Run) -> dict[str, Any]:
    """The numbers of a run, as plain types."""
    adata = found.adata
    numbers: dict[str, Any] = {
        "data": found.source,
        "cells": adata.n_obs,
        "cells_found": found.cells_found,
        "images": int(adata.obs[adata.uns["spatialdata_attrs"]["region_key"]].nunique()),
        "markers": len(found.model.markers),
        "clusters": int(adata.obs[CLUSTERS].nunique()),
        "truth": found.truth,
        "seconds": {step: round(value, 1) for step, value in found.seconds.items()},
    }
    if found.scores is not None:
        numbers["scores"] = json.loads(found.scores.round(3).to_json(orient="index"))
    return numbers


# ---------------------------------------------------------------------------------------------------------------- cells
def _same_place(a: Any, b: Path) -> bool:
    return b.exists() and b.resolve() == type(b)(str(a)).resolve()


def _find_cells(
    sdata: SpatialData, nuclear: Sequence[str] | None, diameter_px: float | None, truth: str | None, table_key: str
) -> SpatialData:
    """The images with centres that were found, and the known types of the masks under them."""
    images = SpatialData(images=dict(sdata.images))
    cy.pp.find_cells(images, nuclear or None, diameter_px=diameter_px)
    rows = open_table(images, resolve(images), table_key)
    rows.write(obs={} if truth is None else {truth: _types_under(sdata, images, rows, truth, table_key)})
    return images


def _window(found: SpatialData) -> int | None:
    """Side of the window that suits the found cells; None where the pixel size says it, or the method's own does."""
    sources = resolve(found)
    if any(source.pixel_size is not None for source in sources):
        return None
    radii = np.concatenate([found[source.region]["radius"].to_numpy() for source in sources])
    side = round(WINDOW * 2 * float(np.median(radii)))
    return min(side, *(min(source.shape[1:]) for source in sources)) if side > LARGE_PX else None


def _types_under(given: SpatialData, found: SpatialData, rows: TableRows, truth: str, table_key: str) -> pd.Series:
    """Type of the labelled cell that holds each found centre, none where there is no such cell."""
    table = given.tables[table_key]
    attrs = table.uns["spatialdata_attrs"]
    result = pd.Series(np.nan, index=rows.table.obs_names, dtype=object)
    sources = resolve(given, table_key=table_key)
    masks = {source.image_key: source for source in sources if source.labels is not None}
    for source, at in zip(resolve(found), rows.rows, strict=True):
        mask = masks.get(source.image_key)
        if mask is None or mask.labels is None:
            continue
        types = table.obs[table.obs[attrs["region_key"]].astype(str) == mask.region]
        types = types.set_index(attrs["instance_key"])[truth].astype(object)
        y, x = np.floor(source.centers).astype(int).T
        under = mask.labels.read(0, mask.shape[1], 0, mask.shape[2])[y, x]
        result.iloc[at] = types.reindex(under).to_numpy()
    return result.astype("category")


# ---------------------------------------------------------------------------------------------------------------- truth
def _truth_column(sdata: SpatialData, truth: str | None, table_key: str) -> str | None:
    columns = [str(c) for c in sdata.tables[table_key].obs.columns] if table_key in sdata.tables else []
    if truth is None:
        return TRUTH if TRUTH in columns else None
    if truth not in columns:
        msg = f"No column {truth!r} in the table of cells. Available: {sorted(columns)}."
        raise KeyError(msg)
    return truth


def _top_markers(adata: AnnData, n: int = 3) -> dict[str, dict[str, float]]:
    """Leading markers of each cluster, large clusters first."""
    groups = [str(g) for g in adata.obs[CLUSTERS].value_counts().index]
    if len(groups) < 2:
        return {}
    ranked = cy.tl.rank_markers(adata, CLUSTERS, key=ATTRIBUTIONS)
    ranked = ranked[ranked["auroc"] >= LEADING]
    return {g: ranked[ranked["group"] == g].head(n).set_index("marker")["auroc"].to_dict() for g in groups}


def _scores(adata: AnnData, markers: Sequence[str], truth: str, seed: int) -> pd.DataFrame | None:
    """Clusters of the embedding, and of plain mean intensities for comparison, against the known types.

    A cluster is named after the type that most of its cells have: the best name that an expert could give it.
    """
    if adata.obs[truth].isna().all():
        logger.warning("No cell has a known type in column %r; nothing is compared.", truth)
        return None
    measured = adata.obsm["mean_intensity"] if "mean_intensity" in adata.obsm else adata.to_df()
    values = np.log1p(measured[list(markers)].to_numpy(np.float64).clip(min=0))
    baseline = AnnData(obs=adata.obs[[truth]].copy())
    baseline.obsm["means"] = np.nan_to_num((values - values.mean(axis=0)) / values.std(axis=0).clip(min=1e-12))
    k = min(NEIGHBORS, adata.n_obs - 1)
    cy.tl.cluster_cells(baseline, use_rep="means", n_neighbors=k, rng=seed, key_added=CLUSTERS)
    rows = {}
    for name, table in (("NeXtMarker", adata), ("mean intensity", baseline)):
        table.obs[NAMED] = _majority(table.obs[CLUSTERS], adata.obs[truth])
        result = cy.tl.compare_labels(table, truth, NAMED)
        rows[name] = {
            "agreement": result.agreement,
            "kappa": result.kappa,
            "ari": result.ari,
            "clusters": table.obs[CLUSTERS].nunique(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _majority(clusters: pd.Series, types: pd.Series) -> pd.Categorical:
    """Name of each cell's cluster: the type that most of its cells have, none for a cluster without known types."""
    counts = pd.crosstab(clusters.astype(str), types.astype(object).map(str, na_action="ignore"))
    # through a dict: mapping a categorical by a categorical series mixes the names up (pandas 2.3)
    return pd.Categorical(clusters.astype(str).map(counts.idxmax(axis=1).to_dict()))


class _Watch:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now
