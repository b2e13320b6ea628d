"""From images and cell locations to embeddings and marker attributions."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym._shared import KEYS, RNG, document, seed_of
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.models import registry
from cytonym.models.checkpoint import weights_sha256
from cytonym.tl._encoding import (
    by_row,
    check_cells,
    check_model,
    encode_cells,
    fitted_to,
    marker_table,
    trained_model,
    window_side,
)
from cytonym.tl._fit_encoder import train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from cytonym.models.base import CellEncoder

logger = logging.getLogger("cytonym")


@document(keys=KEYS, rng=RNG)
def embed_cells(
    sdata: SpatialData,
    model: str | Path | CellEncoder = "nextmarker",
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    size_px: int | None = None,
    size_um: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    client: Any = None,
    rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Embed each cell from the raw pixels around its centre, with the share of each marker.

    A name of a method trains on this data first, then embeds; the cost is logged before it starts. A model, or the
    folder of a checkpoint, embeds only: markers are matched by name, markers that the images lack are neutral. A model
    that serves any panel (CLEAR-IT) takes all channels of the images instead, also those it has never seen.

    Parameters
    ----------
    sdata
        Images and cells.
    model
        Name of a method (`models.available()`), a trained model, or the folder of its checkpoint.
    {keys}
    size_px, size_um
        Side of the window around each cell, in pixels or in micrometres, where a name trains; see `fit_encoder`.
    steps, batch_size
        Length of the training and cells in a step, where a name trains; by default the method's recipe.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    client
        A `dask.distributed.Client` to embed on, instead of this process. The result is the same.
    {rng}
    key_added
        Name of the results, `"nextmarker"` below; by default the method's. What was written under this name before goes.
    inplace
        Write into the table of `sdata`; otherwise return an annotated copy and leave `sdata` as it is.

    Returns
    -------
    Returns `None` if `inplace=True`, else an `AnnData`. Sets the following fields of the table `sdata[table_key]`, which
    is made where there is none. Cells of the table without a result get NaN:

    `obsm["X_nextmarker"]` : f4 [cells, D]
        Embedding, for neighbours, clusters and classifiers.
    `obsm["nextmarker_attributions"]` : DataFrame [cells, markers]
        One number a marker, zero for a silent one; see `get.markers`. Markers that no image has have no column, those that
        some images lack are NaN there.
    `obsm["nextmarker_features"]` : f4 [cells, C * K]
        The K features of the first marker, then those of the second, … Not written by CLEAR-IT, whose embedding itself has
        one block a marker.
    `obsm["spatial"]` : f8 [cells, 2]
        Centres (x, y) in the coordinate system, of cells that have none yet.
    `uns["nextmarker"]` : dict
        `params`, `model` (class, version, hash of the weights, markers, window, pixel size), `features` or `embedding`
        (layout of what has a block a marker) and `normalization`, a DataFrame of marker, center and slope.

    Raises
    ------
    KeyError
        An image, element, channel, table or method is unknown.
    ValueError
        No cells, NaN or infinite pixels, a window larger than the image, no marker in common with the model, elements
        that are rotated against each other, or a damaged checkpoint.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> cy.tl.embed_cells(sdata, steps=2, batch_size=16)
    >>> sdata["table"].obsm["X_nextmarker"].shape
    (40, 256)
    """
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
    )  # fmt: skip
    n_cells = check_cells(sources)
    rows = open_table(sdata, sources, table_key)
    seed = seed_of(rng)
    trained = None if _names_method(model) else fitted_to(sources, trained_model(model))
    name = key_added or (str(model) if trained is None else trained.name)
    rows.reserve(name, [f"X_{name}", f"{name}_attributions", f"{name}_features"], inplace=inplace)
    missing: list[str] = []
    if trained is None:
        encoder = train(
            sources, str(model), n_cells=n_cells, size_px=size_px, size_um=size_um, steps=steps, batch_size=batch_size,
            seed=seed, device=device,
        )  # fmt: skip
    else:
        if steps is not None or batch_size is not None:
            msg = "`steps` and `batch_size` are about training, but a trained model only embeds. Give a method's name to train."
            raise ValueError(msg)
        encoder = trained
        missing = check_model(sources, encoder, window_side(sources, size_px, size_um))

    logger.info("Embedding %s cells of %d images with %s.", f"{n_cells:,}", len(sources), encoder.name)
    found = encode_cells(sources, encoder, device=device, client=client)
    table = rows.table
    obsm = {
        f"X_{name}": by_row(rows, [r["embedding"] for r in found]),
        f"{name}_attributions": marker_table(
            table, by_row(rows, [r["attributions"] for r in found]), encoder.markers, missing
        ),
    }
    if found[0]["features"].shape[1]:
        obsm[f"{name}_features"] = by_row(rows, [r["features"] for r in found])
    params = {"channels": list(sources[0].channels), "images": [s.image_key for s in sources], "seed": seed}
    uns = {name: describe(encoder, missing) | {"params": params}}
    result = rows.write(obsm=obsm, uns=uns, inplace=inplace)
    if f"{name}_features" not in obsm and f"{name}_features" in result.obsm:  # of another method under this name
        del result.obsm[f"{name}_features"]
    return None if inplace else result


def _names_method(model: str | Path | CellEncoder) -> bool:
    """Whether to train. A folder that happens to be called like a method must be given as a path, `./nextmarker`."""
    if not isinstance(model, str) or model in registry.names("encoder"):
        return isinstance(model, str)
    if not Path(model).exists() and "/" not in model:
        msg = f"{model!r} is neither a method nor a folder. Methods: {sorted(registry.names('encoder'))}."
        raise KeyError(msg)
    return False


def describe(encoder: CellEncoder, missing: Sequence[str] = ()) -> dict[str, Any]:
    """Provenance of results, in types that AnnData can write."""
    model = {
        "class": encoder.name,
        "cytonym": version("cytonym"),
        "weights_sha256": weights_sha256(encoder),
        "markers": list(encoder.markers),
        "window_px": encoder.window_px,
        "binning": encoder.binning,
        "pixel_size": float(encoder.provenance.get("pixel_size") or np.nan),
    }
    if missing:
        model["missing_markers"] = list(missing)
    described: dict[str, Any] = {"model": model}
    for block, per_marker in encoder.blocks.items():
        described[block] = {"layout": "marker-major", "per_marker": per_marker, "markers": list(encoder.markers)}
    curves = encoder.normalization()
    if curves:
        described["normalization"] = pd.DataFrame({"marker": list(encoder.markers), **curves})
    return described
