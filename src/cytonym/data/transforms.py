"""Affine maps between the pixel grids and coordinate systems of elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata.transformations import Affine, BaseTransformation, Scale, Sequence, get_transformation

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


def pixel_size(element: Any, key: str, coordinate_system: str, affine: np.ndarray) -> tuple[float, float] | None:
    """Sides (along y, along x) of an image's pixel in the coordinate system, None where nothing says how long they are.

    Parameters
    ----------
    element
        The image; the whole pyramid where it has several levels.
    key, coordinate_system
        As in `matrix`.
    affine
        Matrix of the level that is read.

    Notes
    -----
    An identity or a shift says nothing about the length of a pixel; a `Scale` does, also one by 1.
    """
    if not _says_scale(transformation(element, key, coordinate_system)):
        return None
    along_x, along_y = np.hypot(affine[0, :2], affine[1, :2])
    return float(along_y), float(along_x)


def _says_scale(found: BaseTransformation) -> bool:
    if isinstance(found, Sequence):
        return any(_says_scale(part) for part in found.transformations)
    if isinstance(found, Affine):
        linear = found.to_affine_matrix(("x", "y"), ("x", "y"))[:2, :2]
        return not np.allclose(linear.T @ linear, np.eye(2))
    return isinstance(found, Scale)


def apply(affine: np.ndarray, points: ArrayLike) -> np.ndarray:
    """Map points (x, y) [N, 2]."""
    return np.asarray(points, dtype=np.float64) @ affine[:2, :2].T + affine[:2, 2]


def between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Matrix from the coordinates of one element to those of another, given the matrices of both to one system.

    Raises
    ------
    ValueError
        The target's matrix cannot be inverted.
    """
    if not np.isfinite(target).all() or abs(np.linalg.det(target)) < 1e-300:
        msg = f"A transformation squeezes the plane flat, its matrix is {target.tolist()}. Set another one."
        raise ValueError(msg)
    return np.linalg.inv(target) @ source


def snap(positions: np.ndarray) -> np.ndarray:
    """Pixel positions, put onto the border of a pixel where rounding in the matrices moved them off it by a hair.

    A centre at 8.0 that comes back as 7.9999999999 would fall into another pixel.
    """
    border = np.rint(positions)
    return np.where(np.abs(positions - border) < 1e-6, border, positions)


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
