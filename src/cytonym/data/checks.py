"""Small checks, one message each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cytonym.data.source import CellSource


def require_key(key: Any, available: Iterable[Any], what: str, where: str) -> None:
    """Raise a `KeyError` that lists what there is unless `key` is among it."""
    names = list(available)
    if key not in names:
        msg = f"No {what} {key!r} in `{where}`. Available: {names}."
        raise KeyError(msg)


def resolve_size(source: CellSource, size_px: int | None = None, size_um: float | None = None) -> int:
    """Side of a window in pixels of the image, given in pixels or in micrometres.

    Parameters
    ----------
    source
        Cells of an image; a coordinate system in micrometres is assumed where its pixel size is known.
    size_px, size_um
        Exactly one of the two.

    Returns
    -------
    Whole number of pixels, at least 1.

    Raises
    ------
    ValueError
        Both or neither is given, it is not positive, or the pixel size is unknown.
    """
    if (size_px is None) == (size_um is None):
        msg = f"Give exactly one of `size_px` and `size_um`, got {size_px} and {size_um}."
        raise ValueError(msg)
    if size_px is not None:
        if isinstance(size_px, bool) or int(size_px) != size_px or size_px < 1:
            msg = f"`size_px` must be a whole number of pixels of at least 1, got {size_px!r}."
            raise ValueError(msg)
        return int(size_px)
    if size_um is None or not size_um > 0:
        msg = f"`size_um` must be positive, got {size_um}."
        raise ValueError(msg)
    if source.pixel_size is None:
        msg = (
            f"The pixel size of image {source.image_key!r} is unknown (it has an identity transformation, or another scale "
            "along y than along x), so `size_um` has no meaning. Give `size_px`, or set a "
            "spatialdata.transformations.Scale with the micrometres per pixel."
        )
        raise ValueError(msg)
    return max(1, round(size_um / source.pixel_size))
