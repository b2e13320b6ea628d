"""Synthetic tissue whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Scale

from cytonym._shared import seed_of
from cytonym.data.elements import centers_element
from cytonym.data.source import resolve
from cytonym.data.table import open_table
from cytonym.datasets._presets import PRESETS, CellType, Preset
from cytonym.datasets._tissue import Tissue

CELL_SPACING_UM = 10.5  # centre to centre, of a dense tissue
LEAST_AREA_UM2 = 16.0  # an image cannot give its cells less
IN_MEMORY = 2**28  # pixels over all channels, up to which a phantom without `path` is drawn at once


def tissue_phantom(
    preset: str = "immune",
    *,
    n_cells: int = 1500,
    size_px: int | None = None,
    n_markers: int | None = None,
    n_samples: int = 1,
    staining_shift: float = 0.0,
    spillover: float = 0.35,
    background: float = 0.3,
    blur_px: float = 0.6,
    intensity_cv: float = 0.35,
    brightness: float = 1.0,
    pixel_size: float = 1.0,
    centers_only: bool = False,
    path: str | Path | None = None,
    chunks: tuple[int, int, int] = (1, 1024, 1024),
    rng: int | np.random.Generator | None = 0,
) -> SpatialData:
    """Draw a tissue: cell types with their markers, shapes and neighbours, and the truth about every cell.

    Counts are Poisson. The light of a cell is a sum over its markers, each in the nucleus, on the membrane or everywhere,
    and reaches beyond its outline (spill-over); neighbours overlap, so that a mask never holds one cell's light alone.
    Common parameters are those of imaging mass cytometry: pixels of 1 micrometre, a few counts in a positive pixel.
    The places of the cells keep a distance, and two smooth fields make some types more common in some places.

    Parameters
    ----------
    preset
        `"immune"`: 12 markers, 8 types in niches. `"bone_marrow"`: 34 markers, 9 types, after the paper's experiment 2.
        `"experiment1"`: 5 markers, 7 types that differ by marker, size, shape (lobed) and localisation (centre or
        border), after the paper's experiment 1.
    n_cells
        Cells of each sample.
    size_px
        Side of the square image. Default: as large as makes the tissue dense, about 10.5 micrometres a cell.
    n_markers
        The first so many markers of the preset; more than it has adds markers that a random fifth of the types express.
    n_samples
        Images in the object.
    staining_shift
        Standard deviation of the logarithm of each marker's brightness from sample to sample; the first has none.
    spillover
        Share of a cell's light that its rim sheds on what is beside it.
    background
        Mean unspecific counts a pixel, differing between markers and slowly over the tissue.
    blur_px
        Standard deviation of the optical blur.
    intensity_cv
        Variation of a marker's expression between cells of a type (log scale).
    brightness
        Factor on all counts.
    pixel_size
        Micrometres a pixel; cells are 7.5 to 12.5 micrometres wide.
    centers_only
        Name the cells by their centres and leave the mask out.
    path
        Write the object to this Zarr store, chunk by chunk, and read it lazily from there: for images larger than
        memory.
    chunks
        Of the image in the store, [C, H, W].
    rng
        Seed or generator. The same seed gives the same pixels, whatever `chunks` and `path`.

    Returns
    -------
    SpatialData
        `image` and `cells` (labels; `centers` with `centers_only`), with several samples `sample1_image`,
        `sample1_cells`, …, in "global" in micrometres. `table.obs` holds the truth: `cell_type`, `diameter_um`, `shape`
        and `localisation` (of the type's first marker), `sample`.

    Raises
    ------
    KeyError
        The preset is unknown.
    ValueError
        A number is out of range, or the cells do not fit into the image.
    FileExistsError
        `path` exists.

    Examples
    --------
    >>> import cytonym as cy
    >>> sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=96)
    >>> sdata["image"].shape, sdata["table"].n_obs
    ((12, 96, 96), 60)
    """
    if preset not in PRESETS:
        msg = f"No preset {preset!r}. Available: {sorted(PRESETS)}."
        raise KeyError(msg)
    for name, value in (("n_cells", n_cells), ("n_samples", n_samples), ("n_markers", n_markers), ("size_px", size_px)):
        if value is not None and value < 1:
            msg = f"`{name}` must be at least 1, got {value}."
            raise ValueError(msg)
    for name, number in (("pixel_size", pixel_size), ("brightness", brightness)):
        if not number > 0:
            msg = f"`{name}` must be positive, got {number}."
            raise ValueError(msg)
    for name, number in (
        ("staining_shift", staining_shift), ("spillover", spillover), ("background", background), ("blur_px", blur_px),
        ("intensity_cv", intensity_cv),
    ):  # fmt: skip
        if not number >= 0:
            msg = f"`{name}` must be at least 0, got {number}."
            raise ValueError(msg)
    if len(chunks) != 3 or min(chunks) < 1:
        msg = f"`chunks` must be three numbers of at least 1, (channels, rows, columns), got {chunks}."
        raise ValueError(msg)
    if path is not None and Path(path).exists():
        msg = f"{str(path)!r} exists. Choose another path, or remove it first."
        raise FileExistsError(msg)
    seed = seed_of(rng)
    panel = _with_markers(PRESETS[preset], n_markers)
    side = size_px or math.ceil(math.sqrt(n_cells) * CELL_SPACING_UM / pixel_size)
    if n_cells * LEAST_AREA_UM2 > (side * pixel_size) ** 2:
        msg = (
            f"{n_cells} cells do not fit into {side} x {side} px of {pixel_size:g} micrometres: they would cover each other. "
            "Leave `size_px` out for a dense tissue."
        )
        raise ValueError(msg)
    place = {"global": Scale([pixel_size, pixel_size], axes=("x", "y"))}
    elements: dict[str, Any] = {}
    truth = []
    for sample in range(n_samples):
        prefix = f"sample{sample + 1}_" if n_samples > 1 else ""
        shift = np.random.default_rng([seed, sample, 9]).standard_normal(len(panel.localisation)) * (sample > 0)
        tissue = Tissue(
            types=panel.types,
            localisation=panel.localisation,
            dna=panel.dna,
            n_cells=n_cells,
            size_px=side,
            pixel_size=pixel_size,
            gain=brightness * np.exp(staining_shift * shift),
            spillover=spillover,
            background=background,
            blur_px=blur_px,
            intensity_cv=intensity_cv,
            entropy=(seed, sample),
        )
        cells = tissue.cells()
        image, labels = _arrays(tissue, chunks, lazy=path is not None or side**2 * len(panel.localisation) > IN_MEMORY)
        elements[f"{prefix}image"] = Image2DModel.parse(
            image, dims=("c", "y", "x"), c_coords=list(panel.localisation), transformations=place
        )
        if centers_only:
            region = f"{prefix}centers"
            elements[region] = centers_element(
                cells[["x", "y"]], cells["id"], radius=cells["radius"].median(), transformations=place
            )
        else:
            region = f"{prefix}cells"
            elements[region] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=place)
        truth.append(_truth(cells, panel, pixel_size).set_index(region + "_" + cells["id"].astype(str)))
        truth[-1]["sample"] = f"sample{sample + 1}"
    sdata = SpatialData.init_from_elements(elements)
    if path is not None:
        sdata.write(path)
        sdata = sd.read_zarr(path)
    rows = open_table(sdata, resolve(sdata))
    known = pd.concat(truth).reindex(rows.table.obs_names)  # a cell that its neighbours cover has no pixel
    rows.write(
        obs={
            str(name): known[name].astype("category") if known[name].dtype == object else known[name] for name in known
        }
    )
    if path is not None:
        sdata.write_element("table")
    return sdata


def _with_markers(preset: Preset, n_markers: int | None) -> Preset:
    """The preset with its first markers only, or with further ones."""
    names = list(preset.localisation)
    if n_markers is None or n_markers == len(names):
        return preset
    localisation = {name: preset.localisation[name] for name in names[:n_markers]}
    types = {cell_type.name: dict(cell_type.markers) for cell_type in preset.types}
    rng = np.random.default_rng(0)
    for k in range(len(names), n_markers):
        marker = f"marker_{k + 1}"
        localisation[marker] = str(rng.choice(["nucleus", "membrane", "whole"]))
        for markers in types.values():
            level = float(rng.uniform(2, 6)) * (rng.random() < 0.2)
            if level:
                markers[marker] = level

    def kept(cell_type: CellType) -> CellType:
        markers = {name: level for name, level in types[cell_type.name].items() if name in localisation}
        return replace(cell_type, markers=markers)

    return replace(preset, localisation=localisation, types=tuple(kept(t) for t in preset.types))


def _truth(cells: pd.DataFrame, panel: Preset, pixel_size: float) -> pd.DataFrame:
    types = [panel.types[t] for t in cells["type"]]
    first = [next(iter(t.markers), "") for t in types]
    return pd.DataFrame(
        {
            "cell_type": [t.name for t in types],
            "diameter_um": (2 * cells["radius"] * pixel_size).to_numpy(),
            "shape": [t.shape for t in types],
            "localisation": [
                t.localisation.get(m, panel.localisation.get(m, "")) for t, m in zip(types, first, strict=True)
            ],
        }
    )


def _arrays(tissue: Tissue, chunks: tuple[int, int, int], *, lazy: bool) -> tuple[Any, Any]:
    side = tissue.size_px
    if not lazy:
        return tissue.draw(0, side, 0, side)
    step = tuple(tuple(min(c, side - at) for at in range(0, side, c)) for c in chunks[1:])
    n_channels = len(tissue.localisation)

    def block(which: int, shape: tuple[tuple[int, ...], ...], dtype: Any) -> da.Array:
        def draw(block_info: Any = None) -> np.ndarray:
            (y0, y1), (x0, x1) = block_info[None]["array-location"][-2:]
            return tissue.draw(y0, y1, x0, x1)[which]

        return da.map_blocks(draw, chunks=shape, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))

    image = block(0, ((n_channels,), *step), np.uint16).rechunk({0: chunks[0]})
    return image, block(1, step, np.int32)
