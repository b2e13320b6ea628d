"""A tiny tissue with known markers, made here so that these tests stand on spatialdata alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

if TYPE_CHECKING:
    from collections.abc import Callable

MARKERS = ["DNA", "CD3", "CD20"]


def make(n_side: int = 5, step: int = 12, seed: int = 0, markers: list[str] | None = None, names=("image", "cells")):
    """Round cells on a grid, half of them positive for CD3 and half for CD20, with Poisson counts."""
    rng = np.random.default_rng(seed)
    size = n_side * step
    image = np.full((3, size, size), 0.2)
    labels = np.zeros((size, size), np.int32)
    yy, xx = np.mgrid[:size, :size]
    for i in range(n_side**2):
        y, x = (i // n_side + 0.5) * step, (i % n_side + 0.5) * step
        disc = (yy - y) ** 2 + (xx - x) ** 2 <= 4.0**2
        labels[disc] = i + 1
        image[0][disc] += 40
        image[1 + i % 2][disc] += 20
    pixels = rng.poisson(image).astype(np.uint16)
    channels = markers or MARKERS
    return SpatialData(
        images={names[0]: Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=channels)},
        labels={names[1]: Labels2DModel.parse(labels, dims=("y", "x"))},
    )


@pytest.fixture
def tissue() -> Callable[..., SpatialData]:
    return make
