"""Affine maps between the pixel grids and coordinate systems of elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.transformations import BaseTransformation, Identity, get_transformation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def transformation(element: Any, key: str, coordinate_system: str) -> BaseTransformation:
    """The transformation of an element into a coordinate system.

    Raises
    ------
    ValueError
        The element has none; the message lists those it has.
    """
    known = get_transformation(element, get_all=True)
    if coordinate_system not in known:
        msg = (
            f"Element {key!r} is not in coordinate system {coordinate_system!r}. It is in {sorted(known)}: "
            "choose with `coordinate_system`, or add one with spatialdata.transformations.set_transformation."
        )
        raise ValueError(msg)
    return known[coordinate_system]


def matrix(element: Any, key: str, coordinate_system: str) -> np.ndarray:
    """Affine matrix [3, 3] on (x, y, 1), from the element's own coordinates into the coordinate system."""
    found = transformation(element, key, coordinate_system)
    return np.asarray(found.to_affine_matrix(("x", "y"), ("x", "y")), dtype=np.float64)


def is_identity(element: Any, key: str, coordinate_system: str) -> bool:
    """Whether nothing is said about the element's scale. A `Scale` by 1 says something."""
    return isinstance(transformation(element, key, coordinate_system), Identity)


def apply(affine: np.ndarray, points: ArrayLike) -> np.ndarray:
    """Map points (x, y) [N, 2]."""
    return np.asarray(points, dtype=np.float64) @ affine[:2, :2].T + affine[:2, 2]


def is_axis_aligned(affine: np.ndarray) -> bool:
    """Whether rows and columns stay rows and columns: scales, flips, shifts and turns by 90 degrees."""
    linear = np.abs(affine[:2, :2])
    small = linear <= 1e-6 * linear.max()
    return bool((small.sum(axis=0) == 1).all() and (small.sum(axis=1) == 1).all())


def require_axis_aligned(affine: np.ndarray, what: str) -> None:
    """Refuse rotations and shears.

    Raises
    ------
    ValueError
        With what to do instead.
    """
    if not is_axis_aligned(affine):
        msg = (
            f"{what} is rotated or sheared: its matrix is {affine[:2, :2].round(4).tolist()}. Windows of pixels need "
            "whole rows and columns. Resample it with spatialdata.rasterize, or choose a coordinate system in which it "
            "is only scaled, shifted, flipped or turned by 90 degrees."
        )
        raise ValueError(msg)
