"""Scores, calls and phenotypes of the cells of stores: what `cytonym score` runs, as calls of the public verbs."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

import cytonym as cy
from cytonym._options import channel_names
from cytonym._terminal import open_store, unused
from cytonym.models.nimbus import PUBLISHED_HUB, Nimbus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

VIEWS = {"none": None, "six_views": "six_views", "released": "released"}
REGION, INSTANCE = "region", "instance_id"


@dataclass(kw_only=True)
class Job:
    """Stores whose cells are to be scored, and how: the options of the command."""

    stores: Sequence[Path]
    table_key: str
    where: dict[str, Any]
    """Keys of images and cells, as the verb takes them."""
    channels: Callable[[list[SpatialData]], list[str] | None]
    """Those to score, None for all."""
    images: list[str] | None
    model: str
    settings: dict[str, Any]
    """What the verb takes as it is: pixel size, diameter, device."""
    views: str
    probabilities: str | None
    rules: Path | None
    threshold: float
    key_added: str
    out: Path | None
    force: bool
    tables: list[pd.DataFrame] = field(default_factory=list)
    """Of the stores that are done, for the CSV file."""

    def run(self) -> Iterator[str]:
        """Score store after store, save each one's table, and say how that went."""
        if self.views not in VIEWS:
            msg = f"--views must be one of {list(VIEWS)}, got {self.views!r}."
            raise ValueError(msg)
        if self.out is not None:
            unused(self.out, force=self.force)
        samples = [open_store(path, to_save=True) for path in self.stores]
        chosen = [self.channels([sdata]) for sdata in samples]
        for path, sdata, channels in zip(self.stores, samples, chosen, strict=True):
            self.check(path, sdata, channels)
        scorer = open_scorer(self.model)
        for path, sdata, channels in zip(self.stores, samples, chosen, strict=True):
            with only_whole(sdata) as added:
                self.score(sdata, scorer, channels)
                cy.io.save_table(sdata, self.table_key)
            if self.out is not None:
                self.tables.append(self.listed(path, sdata.tables[self.table_key]))
            yield from self.summary(path, sdata.tables[self.table_key], added())
        if self.out is not None:
            write_whole(pd.concat(self.tables, ignore_index=True), self.out)
            yield f"Scores: {self.out}"

    @property
    def calls(self) -> str:
        """Key of the calls."""
        return f"{self.key_added}_calls"

    def check(self, path: Path, sdata: SpatialData, channels: list[str] | None) -> None:
        """Refuse what could only fail after the work: rules on other markers, and names of images that are taken."""
        if self.rules is not None:
            names = channels or channel_names([sdata], self.images)
            nobody = ad.AnnData(obs=pd.DataFrame(index=["nobody"]))
            nobody.obsm["calls"] = pd.DataFrame(-1, index=nobody.obs_names, columns=names)
            cy.tl.phenotype_cells(nobody, self.rules, key="calls")
        if self.probabilities is not None:
            images = list(sdata.images) if self.images is None else self.images
            several = {f"{image}_{self.probabilities}" for image in images} if len(images) > 1 else set()
            taken = sorted(name for _, name, _ in sdata.gen_elements() if name in {self.probabilities, *several})
            if taken:
                msg = f"{path} has an element {taken[0]!r} already. Choose another name with --probabilities."
                raise ValueError(msg)

    def score(self, sdata: SpatialData, scorer: str | Nimbus, channels: list[str] | None) -> None:
        """Scores, calls and phenotypes of one object, in its table."""
        views: Any = VIEWS[self.views]
        cy.tl.score_markers(
            sdata, scorer, **self.where, table_key=self.table_key, channels=channels, views=views,
            image_added=self.probabilities, key_added=self.key_added, **self.settings,
        )  # fmt: skip
        table = sdata.tables[self.table_key]
        cy.tl.call_markers(table, f"{self.key_added}_positivity", threshold=self.threshold)
        if self.rules is not None:
            cy.tl.phenotype_cells(table, self.rules, key=self.calls)

    def summary(self, path: Path, table: AnnData, pictures: Sequence[str]) -> Iterator[str]:
        """What was found, a line each."""
        calls = cy.get.markers(table, self.calls)
        known = calls.X >= 0
        some, n_scored = known.any(axis=0), int(known.any(axis=1).sum())
        whole = f"{n_scored:,}" if n_scored == table.n_obs else f"{n_scored:,} of {table.n_obs:,}"
        yield f"{path}: {whole} cells, {calls.n_vars} markers, table {self.table_key!r} saved"
        share = (calls.X == 1).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        yield "  positive: " + ", ".join(
            f"{m} {_percent(s) if at else 'no score'}" for m, s, at in zip(calls.var_names, share, some, strict=True)
        )
        if self.rules is not None:
            named = table.obs["phenotype"].value_counts(normalize=True, sort=False)
            conflicts = int(table.obs["phenotype_conflict"].sum())
            yield "  phenotype: " + ", ".join(f"{name} {_percent(s)}" for name, s in named.items())
            yield f"  conflicts: {conflicts:,} cells match several types" if conflicts else "  conflicts: none"
        if pictures:
            yield (
                f"  probabilities: {', '.join(map(repr, pictures))}, as images; from now on --image must name the images to read"
            )

    def listed(self, path: Path, table: AnnData) -> pd.DataFrame:
        """A line for each cell: which one it is, where, its scores and its type."""
        attrs = table.uns["spatialdata_attrs"]
        cells = pd.DataFrame({REGION: table.obs[attrs["region_key"]], INSTANCE: table.obs[attrs["instance_key"]]})
        if len(self.stores) > 1:
            cells.insert(0, "store", str(path))
        cells["x"], cells["y"] = np.asarray(table.obsm["spatial"])[:, :2].T
        scores = cy.get.markers(table, f"{self.key_added}_positivity").to_df()
        return pd.concat([cells, scores, table.obs[["phenotype"] if self.rules is not None else []]], axis=1)


def open_scorer(model: str) -> str | Nimbus:
    """The authors' network from a file or the hub; other names are for the verb to read."""
    path = Path(model).expanduser()
    if model == "nimbus" and not path.exists():
        msg = (
            f"--model nimbus: the published weights are not part of the package. --model {PUBLISHED_HUB} downloads them, "
            "--model FILE.pt reads a file of them, and --model compact is the scorer that ships."
        )
        raise ValueError(msg)
    hub = not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", model)
    published = path.is_dir() and any(path.glob("V*.pt"))
    return Nimbus.from_published(model) if path.suffix in (".pt", ".pth") or hub or published else str(path)


@contextmanager
def only_whole(sdata: SpatialData) -> Iterator[Callable[[], list[str]]]:
    """Images that are added to the store on the way go again if what follows fails. Gives the names of those that stay."""
    before, store = set(sdata.images), Path(str(sdata.path))
    metadata = (store / "zarr.json").read_bytes() if (store / "zarr.json").exists() else b""  # lists the images, too
    added = lambda: [name for name in sdata.images if name not in before]
    try:
        yield added
    except BaseException:
        for name in added():
            del sdata.images[name]
            shutil.rmtree(store / "images" / name, ignore_errors=True)
        if metadata and (store / "zarr.json").read_bytes() != metadata:
            sdata.write_consolidated_metadata()
        raise


def write_whole(table: pd.DataFrame, path: Path) -> None:
    """A CSV file that appears whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".cytonym-", dir=path.parent) as folder:
        new = Path(folder) / path.name
        table.to_csv(new, index=False)
        new.replace(path)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
