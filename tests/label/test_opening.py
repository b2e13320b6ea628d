"""Where the log of a store is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import spatialdata as sd

import cytonym as cy
from cytonym.label.opening import log_of

if TYPE_CHECKING:
    from pathlib import Path


def test_a_link_to_a_store_has_the_log_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    store, link = tmp_path / "data" / "tissue.zarr", tmp_path / "link.zarr"
    cy.datasets.tissue_phantom(n_cells=20, size_px=64, rng=0).write(store)
    link.symlink_to(store)
    assert (
        log_of(sd.read_zarr(link), None)
        == log_of(sd.read_zarr(store), None)
        == store.with_name("tissue.zarr.labels.jsonl")
    )
