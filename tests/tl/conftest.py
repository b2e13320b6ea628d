"""A tiny tissue with known markers, made here so that these tests stand on spatialdata alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

import cytonym as cy

if TYPE_CHECKING:
    from collections.abc import Callable

MARKERS = ["DNA", "CD3", "CD20"]
HEMATOXYLIN, DAB = np.array([0.65, 0.70, 0.29]), np.array([0.27, 0.57, 0.78])


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


def make_section(shape=(160, 200), step=26, diameter=14, seed=0, white=(240, 238, 242)):
    """RGB [3, H, W] with nuclei on a grid, the first of every three in brown; their centres (y, x) and which are brown."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    grid = np.stack(
        np.meshgrid(np.arange(18, shape[0] - 14, step), np.arange(18, shape[1] - 14, step), indexing="ij"), -1
    ).reshape(-1, 2)
    centers = grid + rng.uniform(-2, 2, grid.shape)
    density = 0.02 * np.ones((3, *shape))
    for i, (cy_, cx) in enumerate(centers):
        disc = 1 / (1 + np.exp((np.hypot(y - cy_, x - cx) - diameter / 2) * 2))
        density += (DAB * 0.8 if i % 3 == 0 else HEMATOXYLIN * 0.4)[:, None, None] * disc
    rgb = np.array(white)[:, None, None] * 10**-density + rng.normal(0, 1, (3, *shape))
    return np.clip(rgb, 0, 255).astype(np.uint8), centers, np.arange(len(centers)) % 3 == 0


def make_stained(name="ihc", pixel_size=None, **kwargs):
    """The same as a SpatialData object."""
    rgb, centers, positive = make_section(**kwargs)
    return cy.io.from_arrays(rgb, channels=["r", "g", "b"], name=name, pixel_size=pixel_size), centers, positive


@pytest.fixture
def section() -> Callable[..., Any]:
    return make_section


@pytest.fixture
def stained() -> Callable[..., Any]:
    return make_stained
