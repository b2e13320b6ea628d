"""The main job from images to a report: what `cytonym demo` runs, as calls of the public verbs."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import scanpy as sc
import spatialdata as sd
import squidpy as sq

import cytonym as cy

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")

CLUSTERS, TRUTH, NAMED, EMBEDDING = "phenograph", "cell_type", "named_phenotype", "X_nextmarker"
NUCLEAR = re.compile(r"^(ds)?dna|dapi|hoechst|draq5|histone|^h3$|ir19[13]|iridium|nucle", re.IGNORECASE)
MAX_UMAP_MARKERS = 7


@dataclass
class Run:
    """What the report tells about."""

    sdata: SpatialData
    model: CellEncoder
    truth: str | None
    source: str
    top: dict[str, dict[str, float]]
    """Leading markers of each cluster with their AUROC, large clusters and high values first."""
    scores: pd.DataFrame | None = None
    """Agreement with the known types, one row a representation."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def adata(self) -> AnnData:
        """The table of the cells."""
        return self.sdata["table"]

    @property
    def nuclear(self) -> str | None:
        """The nuclear channel, by its name."""
        return next((m for m in self.model.markers if NUCLEAR.search(m)), None)

    def leading_markers(self, n: int) -> list[str]:
        """Up to n markers, without the nuclear one, those first that tell a large cluster from the others."""
        share = self.adata.obs[CLUSTERS].value_counts(normalize=True)
        best: dict[str, float] = {}
        for group, markers in self.top.items():
            for marker, auroc in markers.items():
                best[marker] = max(best.get(marker, 0), (auroc - 0.5) * share[group] ** 0.5)
        order = sorted(best, key=best.__getitem__, reverse=True) or list(self.model.markers)
        return [m for m in order if m != self.nuclear][:n]


def open_data(folder: Path) -> SpatialData:
    """A SpatialData store, or a folder of TIFF images with masks, centres or neither."""
    if not folder.exists():
        msg = f"No such folder: {folder}."
        raise FileNotFoundError(msg)
    if is_store(folder):
        return sd.read_zarr(folder)
    return cy.io.read_tiffs(folder)


def is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def run(
    sdata: SpatialData,
    out: Path,
    *,
    source: str,
    truth: str | None = None,
    nuclear: str | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Run:
    """Train, embed, cluster, compare with the truth where it is known, and write the store and the model into `out`."""
    store = out / "tissue.zarr"
    if store.exists() and not is_store(store):
        msg = f"{store} exists and is no SpatialData store. Choose another folder with --out."
        raise FileExistsError(msg)
    seconds: dict[str, float] = {}
    watch = _Watch(seconds)

    if not (sdata.labels or sdata.shapes or sdata.points):
        cy.pp.find_cells(sdata, nuclear or _nuclear_channel(sdata))
    cy.pp.measure_cells(sdata)
    watch.lap("find and measure cells")

    model = cy.tl.fit_encoder(sdata, steps=steps, rng=seed)
    watch.lap("train")
    cy.tl.embed_cells(sdata, model)
    watch.lap("embed")

    adata = sdata["table"]
    inside = adata.obsm[EMBEDDING][:, 0] == adata.obsm[EMBEDDING][:, 0]
    if not inside.all():
        logger.info("%d cells lie outside their image and are left out of the report.", int((~inside).sum()))
        sdata["table"] = adata = adata[inside].copy()
    logger.info("Clusters, UMAP and neighbourhoods of %s cells.", f"{adata.n_obs:,}")
    cy.tl.cluster_cells(adata, use_rep=EMBEDDING, rng=seed, key_added=CLUSTERS)
    sc.pp.neighbors(adata, use_rep=EMBEDDING, random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    library = {"library_key": "region"} if adata.obs["region"].nunique() > 1 else {}
    sq.gr.spatial_neighbors(adata, coord_type="generic", n_neighs=10, **library)
    if adata.obs[CLUSTERS].nunique() > 1:
        sq.gr.nhood_enrichment(adata, CLUSTERS, seed=seed, show_progress_bar=False)
    watch.lap("cluster and map")

    if truth is None and TRUTH in adata.obs:
        truth = TRUTH
    if truth is not None and truth not in adata.obs:
        msg = f"No column {truth!r} in the table of cells. Available: {sorted(map(str, adata.obs.columns))}."
        raise KeyError(msg)
    scores = None if truth is None else _scores(adata, truth, seed)

    found = Run(sdata, model, truth, source, _top_markers(adata), scores, seconds)
    if store.exists():
        shutil.rmtree(store)
    sdata.write(store)
    cy.models.save(model, out / "model", overwrite=True)
    watch.lap("write")
    return found


def summary(found: Run) -> dict[str, Any]:
    """The numbers of a run, as plain types."""
    adata = found.adata
    numbers: dict[str, Any] = {
        "cells": adata.n_obs,
        "images": len(found.sdata.images),
        "markers": len(found.model.markers),
        "clusters": int(adata.obs[CLUSTERS].nunique()),
        "seconds": {step: round(value, 1) for step, value in found.seconds.items()},
    }
    if found.scores is not None:
        numbers["scores"] = json.loads(found.scores.round(3).to_json(orient="index"))
    return numbers


def _nuclear_channel(sdata: SpatialData) -> str:
    names = [str(c) for image in sdata.images for c in sd.models.get_channel_names(sdata[image])]
    for name in names:
        if NUCLEAR.search(name):
            logger.info("No cells are given: looking for nuclei in channel %r.", name)
            return name
    msg = f"No cells are given, and no channel looks like a nuclear one: {sorted(set(names))}. Name it with --nuclear."
    raise ValueError(msg)


def _top_markers(adata: AnnData, n: int = 3) -> dict[str, dict[str, float]]:
    """Leading markers of each cluster, large clusters first."""
    groups = [str(g) for g in adata.obs[CLUSTERS].value_counts().index]
    if len(groups) < 2:
        return {}
    ranked = cy.tl.rank_markers(adata, CLUSTERS)
    ranked = ranked[ranked["auroc"] > 0.5]
    return {g: ranked[ranked["group"] == g].head(n).set_index("marker")["auroc"].to_dict() for g in groups}


def _scores(adata: AnnData, truth: str, seed: int) -> pd.DataFrame:
    """Clusters of the embedding, and of plain mean intensities for comparison, against the known types.

    A cluster is named after the type that most of its cells have: the best name that an expert could give it.
    """
    means = "mean_intensity"
    adata.obsm[means] = sc.pp.scale(sc.pp.log1p(adata.X.copy()))
    cy.tl.cluster_cells(adata, use_rep=means, rng=seed, key_added="baseline")
    rows = {}
    for name, clusters in (("NeXtMarker", CLUSTERS), ("mean intensity", "baseline")):
        known = adata.obs[truth].notna()
        types = adata.obs.loc[known].groupby(clusters, observed=True)[truth].agg(lambda t: t.value_counts().idxmax())
        adata.obs[NAMED] = pd.Categorical(adata.obs[clusters].map(types).astype(object))
        result = cy.tl.compare_labels(adata, truth, NAMED)
        rows[name] = {
            "agreement": result.agreement,
            "kappa": result.kappa,
            "ari": result.ari,
            "clusters": adata.obs[clusters].nunique(),
        }
        if clusters == CLUSTERS:
            named = adata.obs[NAMED]
    adata.obs[NAMED] = named
    del adata.obs["baseline"], adata.obsm[means], adata.uns["baseline"]
    return pd.DataFrame.from_dict(rows, orient="index")


class _Watch:
    """Seconds between laps."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now
