"""What each marker of a cell does to its embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from cytonym._shared import KEYS, document
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.models.base import CellEncoder, Encoding
from cytonym.tl._embed_cells import describe
from cytonym.tl._encoding import by_row, check_cells, check_model, encode_cells, fitted_to, marker_table, trained_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

METHODS = ("activation", "gradient", "occlusion")
PATH_STEPS = 32  # points on the path from no signal to the cell


@document(keys=KEYS)
def explain_cells(
    sdata: SpatialData,
    model: str | Path | CellEncoder,
    *,
    image_key: str | Sequence[str] | None = None,
    labels_key: str | Sequence[str] | None = None,
    shapes_key: str | Sequence[str] | None = None,
    points_key: str | Sequence[str] | None = None,
    table_key: str = "table",
    coordinate_system: str = "global",
    scale: str | None = None,
    channels: Sequence[str] | None = None,
    method: Literal["activation", "gradient", "occlusion"] = "activation",
    device: str = "auto",
    client: Any = None,
    key_added: str | None = None,
    inplace: bool = True,
) -> AnnData | None:
    """Say by one number a marker what makes a cell what it is.

    Three answers to compare, written in the same form as the attributions of `embed_cells`; zero says that the marker
    does nothing here. With x a window, F(x) its embedding and 0 a window without signal:

    `"activation"`
        The model's own attributions: what the features of the marker see in this cell.
    `"gradient"`
        Integrated gradients (Sundararajan et al. 2017) of the embedding along its own direction, u = F(x) / norm(F(x)), on
        the straight path from 0 to x, added up over the marker's pixels. Signed; the sum over markers is the change
        u · (F(x) - F(0)). How much the marker contributes to the embedding.
    `"occlusion"`
        norm(F(x) - F(x without this marker)): how far the cell would move if the marker were silent. Never negative.

    Parameters
    ----------
    sdata
        Images and cells.
    model
        A trained model or the folder of its checkpoint.
    {keys}
    method
        As above. The cost over plain embedding: none, about 100 passes, and one pass a marker.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`.
    client
        A `dask.distributed.Client` to work on, instead of this process.
    key_added
        Key of `obsm` and `uns`; by default `"nextmarker_gradient"` and so on, by model and method.
    inplace
        Write into the table of `sdata`; otherwise return an annotated copy and leave `sdata` as it is.

    Returns
    -------
    Returns `None` if `inplace=True`, else an `AnnData`. Sets the following fields of the table `sdata[table_key]`:

    `obsm[key_added]` : DataFrame [cells, markers]
        One number a marker, NaN for cells without a result and where the image lacks the marker; see `get.markers`.
    `uns[key_added]` : dict
        `params` and `model`.

    Raises
    ------
    KeyError
        An image, element, channel or table is unknown.
    ValueError
        Unknown method; else as in `embed_cells`.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=40, size_px=64, rng=0)
    >>> model = cy.tl.fit_encoder(sdata, steps=2, batch_size=16)
    >>> cy.tl.explain_cells(sdata, model, method="occlusion")
    >>> bool((sdata["table"].obsm["nextmarker_occlusion"] >= 0).all(axis=None))
    True
    """
    if method not in METHODS:
        msg = f"Unknown method {method!r}. Available: {list(METHODS)}."
        raise ValueError(msg)
    encoder = trained_model(model)
    sources = resolve(
        sdata, image_key=image_key, labels_key=labels_key, shapes_key=shapes_key, points_key=points_key,
        table_key=table_key, coordinate_system=coordinate_system, scale=scale, channels=channels,
    )  # fmt: skip
    check_cells(sources)
    encoder = fitted_to(sources, encoder)
    missing = check_model(sources, encoder, None)
    rows = open_table(sdata, sources, table_key)
    key = key_added or f"{encoder.name}_{method}"
    rows.reserve(key, [key], inplace=inplace)
    found = encode_cells(sources, Explainer(encoder, method), device=device, client=client)
    values = by_row(rows, [r["attributions"] for r in found])
    uns = {key: {"model": describe(encoder, missing)["model"], "params": {"method": method}}}
    result = rows.write(
        obsm={key: marker_table(rows.table, values, encoder.markers, missing)}, uns=uns, inplace=inplace
    )
    return None if inplace else result


class Explainer(CellEncoder):
    """An encoder whose attributions are explanations of another's embedding."""

    name: ClassVar[str] = "explainer"
    encoder: CellEncoder

    def __init__(self, encoder: CellEncoder, method: str) -> None:
        super().__init__(encoder.markers, encoder.config)
        self.encoder = encoder
        self.method = method

    def encode(self, windows: Tensor) -> Encoding:
        """Raw windows [B, C, S, S] -> `Encoding` with explanations [B, C] and nothing else."""
        if self.method == "activation":
            values = self.encoder.encode(windows).attributions
        elif self.method == "gradient":
            values = integrated_gradients(self.encoder, windows)
        else:
            values = occlusion(self.encoder, windows)
        nothing = values.new_zeros(len(values), 0)
        return Encoding(nothing, values, nothing)


def integrated_gradients(encoder: Any, windows: Tensor, steps: int = PATH_STEPS) -> Tensor:
    """Windows [B, C, S, S] -> [B, C], by the midpoint rule on the path from no signal to the window.

    The points t x of the path are at t = s^2 with even steps of s: closer together near zero, where the learned
    sigmoids rise. With even steps of t a saturated marker needs about four times as many for the same error.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = windows.detach().clone().float()
        embedding = encoder.encode(x).embedding.detach()
        direction = torch.nn.functional.normalize(embedding, dim=1)
        total = torch.zeros_like(x)
        for i in range(steps):
            s = (i + 0.5) / steps
            point = (x * s**2).requires_grad_()
            along = (encoder.encode(point).embedding * direction).sum()
            total += torch.autograd.grad(along, point)[0] * (2 * s / steps)
        return (total * x).sum(dim=(2, 3)).detach()


def occlusion(encoder: Any, windows: Tensor) -> Tensor:
    """Windows [B, C, S, S] -> [B, C], one pass a marker."""
    whole = encoder.encode(windows).embedding
    moved = []
    for c in range(windows.shape[1]):
        without = windows.clone()
        without[:, c] = 0
        moved.append((encoder.encode(without).embedding - whole).norm(dim=1))
    return torch.stack(moved, dim=1)
