"""Cells of stores named from labels: what `cytonym classify` runs, as calls of the public verbs."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anndata as ad

import cytonym as cy
from cytonym._terminal import open_store, unused
from cytonym.data.names import GEOJSON_ENDINGS
from cytonym.models.classifier import CellClassifier, Labeller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("cytonym")

ON_NUMBERS = ("logistic", "linear", "mlp4", "maps")
"""Methods that read a table; all others read pixels."""
IMAGE = "store and image"
"""Column of joined tables."""


@dataclass(kw_only=True)
class Job:
    """Stores whose cells are to be named, and by what: the options of the command."""

    stores: Sequence[Path]
    table_key: str
    where: dict[str, Any]
    """Keys of images and cells, as the verbs take them."""
    channels: Callable[[list[SpatialData]], list[str] | None]
    """Those to use, None for all."""
    labels: str | None
    groups: str | None
    test: str | None
    method: str | None
    model: Path | None
    out: Path | None
    rep: list[str] | None
    key_added: str
    from_geojson: Sequence[Path] | None
    only_changed: bool
    to_geojson: Sequence[Path] | None
    seed: int
    device: str
    force: bool
    classifier: Any = None
    samples: dict[str, SpatialData] = field(default_factory=dict)
    tested: dict[str, float] = field(default_factory=dict)
    """Scores on the labelled cells of `test`."""

    def run(self) -> Iterator[str]:
        """Name all cells, save the tables, and say for each store how that went."""
        self.check()
        if self.model is not None:
            self.classifier = load_classifier(self.model)
        for at, path in enumerate(self.stores):
            self.samples[str(path)] = sdata = open_store(path, to_save=True)
            if self.from_geojson:
                cy.io.read_geojson(
                    sdata, self.from_geojson[at], key_added=str(self.labels), only_changed=self.only_changed,
                    table_key=self.table_key, **self.where,
                )  # fmt: skip
        self.where = self.where | {"channels": self.channels(list(self.samples.values()))}
        if self.classifier is None or self.test is not None:
            self.labelled_stores()  # before the work starts
        self.prepare()
        if self.classifier is None:
            self.train()
        if self.test is not None:
            self.score()
        lines = [self.name(store) for store in self.samples]
        for store, line in zip(self.samples, lines, strict=True):
            cy.io.save_table(self.samples[store], self.table_key)
            yield f"{store}: {line}"
        where = {key: value for key, value in self.where.items() if key != "channels"}
        for sdata, file in zip(self.samples.values(), self.to_geojson or (), strict=False):
            cy.io.write_geojson(
                sdata, file, classes=self.key_added, table_key=self.table_key, overwrite=self.force, **where
            )

    def check(self) -> None:
        """Refuse options that do not go together, before any work."""
        if self.model is not None and (self.method or self.out or self.rep):
            msg = "--model only names cells: leave --method, --out and --rep out, or train with --labels."
            raise ValueError(msg)
        if self.labels is None and self.from_geojson:
            self.labels = "label"
        if self.labels is None and (self.model is None or self.test):
            msg = "--labels must name the column with the known classes; or give a trained classifier with --model."
            raise ValueError(msg)
        if self.labels == self.key_added:
            msg = f"--key-added {self.key_added} would replace the labels. Give the results another name."
            raise ValueError(msg)
        for option, files in (("--from-geojson", self.from_geojson), ("--to-geojson", self.to_geojson)):
            if files and len(files) != len(self.stores):
                msg = f"{option} was given {len(files)} times for {len(self.stores)} stores: once for each, in their order."
                raise ValueError(msg)
        if self.out is not None:
            unused(self.out, force=self.force)
        files = list(self.to_geojson or ())
        for file in files:
            if not file.name.lower().endswith(GEOJSON_ENDINGS):
                msg = f"--to-geojson must end with one of {list(GEOJSON_ENDINGS)}, by which QuPath knows the format, got {str(file)!r}."
                raise ValueError(msg)
            unused(file, force=self.force, option="--to-geojson")
        if len({file.resolve() for file in files}) < len(files):
            msg = f"--to-geojson names one file twice: {[str(file) for file in files]}. Each store needs its own."
            raise ValueError(msg)

    @property
    def on_pixels(self) -> bool:
        """Whether images are read rather than numbers of the table."""
        if self.classifier is None:
            return self.method is not None and self.method not in ON_NUMBERS
        return not isinstance(self.classifier, CellClassifier)

    @property
    def wanted(self) -> list[str] | None:
        """Keys of the table to classify by, None for the default ones."""
        if self.classifier is not None:
            return [str(key) for key in self.classifier.provenance.get("use_rep", [])]
        return ["X"] if self.method == "maps" and not self.rep else self.rep

    def prepare(self) -> None:
        """Measure cells that have no intensities, and see that every table has the embeddings that are needed."""
        if self.on_pixels:
            return
        for store, sdata in self.samples.items():
            table = sdata.tables.get(self.table_key)
            measured = table is not None and ((table.X is not None and table.n_vars) or "mean_intensity" in table.obsm)
            if not measured and (self.wanted is None or "X" in self.wanted) and len(sdata.images):
                logger.info("%s: no intensities yet, the cells are measured.", store)
                cy.pp.measure_cells(sdata, table_key=self.table_key, **self.where)
            elif table is None:
                msg = f"No table {self.table_key!r} in {store}. Available: {sorted(sdata.tables)}."
                raise KeyError(msg)
        check_embeddings({store: self.table(store) for store in self.samples}, self.wanted)

    def table(self, store: str) -> AnnData:
        """The cells of a store."""
        return self.samples[store].tables[self.table_key]

    def labelled_stores(self) -> list[str]:
        """Stores with the column of labels, all needed columns being there."""
        tables = {
            store: sdata.tables[self.table_key]
            for store, sdata in self.samples.items()
            if self.table_key in sdata.tables
        }
        columns = {store: sorted(map(str, table.obs)) for store, table in tables.items()}
        found = [store for store, table in tables.items() if self.labels in table.obs]
        if not found:
            msg = f"No column {self.labels!r} with labels in table {self.table_key!r}. Available: {columns}."
            raise KeyError(msg)
        for store in found:
            for column in (self.groups, self.test):
                if column is not None and column not in tables[store].obs:
                    msg = f"No column {column!r} in the table of {store}. Available: {columns[store]}."
                    raise KeyError(msg)
        if self.on_pixels and len(found) > 1:
            who = repr(self.method) if self.method else "A classifier on pixels"
            msg = (
                f"{who} learns from one store, or is tested on one, but {len(found)} have labels: {found}. Train on one with --out, "
                "and name the cells of the others with --model."
            )
            raise ValueError(msg)
        return found

    def labelled(self) -> AnnData | SpatialData:
        """All labelled stores as one table, or for a method on pixels the one store with labels."""
        found = self.labelled_stores()
        return self.samples[found[0]] if self.on_pixels else joined({store: self.table(store) for store in found})

    @property
    def keys(self) -> dict[str, Any]:
        """What a method on pixels needs to know beside."""
        return {"device": self.device} | ({"table_key": self.table_key, **self.where} if self.on_pixels else {})

    def train(self) -> None:
        """Train a classifier on all labelled cells."""
        unfinished = self.out and self.out.with_name(self.out.name + ".unfinished")
        classifier = cy.tl.fit_classifier(
            self.labelled(), str(self.labels), self.method or "logistic", use_rep=self.rep, groups=self.groups,
            test=self.test, rng=self.seed, checkpoint_dir=unfinished, **self.keys,
        )  # fmt: skip
        if self.out is not None and unfinished is not None:
            cy.models.save(classifier, self.out, overwrite=self.force)
            shutil.rmtree(unfinished, ignore_errors=True)
        self.classifier = classifier

    def score(self) -> None:
        """Judge the classifier on the labelled cells of `test`, of all stores together."""
        named = cy.tl.classify_cells(
            self.labelled(), self.labels, self.classifier, test=self.test, groups=self.groups, key_added=self.key_added,
            copy=True, **self.keys,
        )  # fmt: skip
        assert named is not None
        self.tested = named.uns[self.key_added]["test"]

    def name(self, store: str) -> str:
        """Name the cells of a store, in its table, and say how that went."""
        data = self.samples[store] if self.on_pixels else self.table(store)
        cy.tl.classify_cells(data, None, self.classifier, key_added=self.key_added, **self.keys)
        table = self.table(store)
        if self.tested:
            table.uns[self.key_added]["test"] = dict(self.tested)
        named = int(table.obs[self.key_added].notna().sum())
        which = f"labelled cells of {self.test!r}" if self.tested else "labelled cells held out"
        scores = self.tested or table.uns[self.key_added].get("validation", {})
        if "macro_f1" not in scores:
            return f"{named:,} of {table.n_obs:,} cells named; no labelled cells were held out to judge by"
        return (
            f"{named:,} of {table.n_obs:,} cells named; on {int(scores['n_cells']):,} {which}: macro-F1 {scores['macro_f1']:.2f}, "
            f"calibration error {scores['ece']:.2f}"
        )


def load_classifier(path: Path) -> Labeller:
    """A trained classifier; an encoder names no cells."""
    found: Any = cy.models.load(path)
    if not isinstance(found, Labeller):
        msg = (
            f"{path} holds an encoder ({found.name}), which names no cells. `--method {path}` fine-tunes it on labels."
        )
        raise ValueError(msg)
    return found


def joined(tables: dict[str, AnnData]) -> AnnData:
    """Tables of several stores as one. An image is named by its store as well, so that no two have the same name."""
    if len(tables) == 1:
        return next(iter(tables.values()))
    images = []
    for store, table in tables.items():
        key = table.uns.get("spatialdata_attrs", {}).get("region_key")
        images += [f"{store}: {image}" for image in table.obs[key]] if key in table.obs else [store] * table.n_obs
    whole = ad.concat(tables, uns_merge="first", index_unique=":")
    whole.obs[IMAGE] = images
    whole.uns["spatialdata_attrs"] = {"region_key": IMAGE}
    return whole


def check_embeddings(tables: dict[str, AnnData], wanted: Sequence[str] | None) -> None:
    """Embeddings must be in every table and by one encoder, or else they would be left out, or mean nothing.

    Raises
    ------
    KeyError
        A table lacks an embedding.
    ValueError
        Two tables have embeddings of different encoders, or of other channels, under one key.
    """
    made = {store: {key: _encoder(table, key) for key in table.obsm} for store, table in tables.items()}
    keys = {key for of in made.values() for key, hashed in of.items() if hashed} if wanted is None else set(wanted)
    for key in sorted(key for key in keys if key.startswith("X_")):
        lacking = [store for store, of in made.items() if key not in of]
        if lacking:
            msg = f"No embedding {key!r} in {lacking}. `cytonym embed {lacking[0]} --model ENCODER` writes it."
            raise KeyError(msg)
        if len({of[key] for of in made.values()}) > 1:
            msg = (
                f"{key!r} of {list(made)} was made by different encoders, or from other channels or another order of them, and its "
                "numbers cannot be compared. Embed all stores with one: `cytonym embed STORE... --model ENCODER --channel NAMES`."
            )
            raise ValueError(msg)


def _encoder(table: AnnData, key: str) -> str:
    """Encoder and channels of an embedding, empty where the table does not say."""
    entry = table.uns.get(key.removeprefix("X_")) if key.startswith("X_") else None
    made = entry.get("model", {}) if isinstance(entry, dict) else {}
    return f"{made['weights_sha256']} {list(map(str, made.get('markers', [])))}" if "weights_sha256" in made else ""
