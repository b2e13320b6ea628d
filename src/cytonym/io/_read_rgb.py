"""Pictures of stained tissue (PNG, JPEG, RGB TIFF) as one SpatialData object."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale

from cytonym.data.brightfield import on_white, rgb_order
from cytonym.io._fields import element_name, listed
from cytonym.io._tiff import is_tiff, open_tiff, stem

if TYPE_CHECKING:
    from pathlib import Path

    import dask.array as da

    from cytonym.io._fields import Paths

PICTURES = (".png", ".jpg", ".jpeg")
RGB = ("r", "g", "b")


def read_rgb(images: Paths, *, pixel_size: float | None = None) -> SpatialData:
    """Open RGB pictures, such as regions of a stained slide, as one SpatialData object.

    Parameters
    ----------
    images
        Folder, file or files: PNG, JPEG and TIFF, also OME-TIFF. PNG and JPEG are read at once, TIFF block by block when used.
        What is transparent becomes white.
    pixel_size
        Micrometres a pixel, for all of them. By default that of a file's OME metadata; a picture without one stands in pixels.
        The resolution for printing (dpi) that some files state is none.

    Returns
    -------
    SpatialData
        For every picture `{name of the file}_image` with the channels `r`, `g` and `b`, in the coordinate system "global" in
        micrometres (pixels where unknown). Blanks and brackets in the name become underscores. What `tl.translate_stain` takes.

    Raises
    ------
    FileNotFoundError
        A file or folder is missing, or a folder has no picture.
    ValueError
        A file is damaged, not RGB or of another format, or two files have one name.

    Examples
    --------
    >>> import tempfile
    >>> import cytonym as cy
    >>> from PIL import Image
    >>> from skimage.data import immunohistochemistry
    >>> file = f"{tempfile.mkdtemp()}/colon.png"
    >>> Image.fromarray(immunohistochemistry()).save(file)
    >>> sdata = cy.io.read_rgb(file, pixel_size=0.5)
    >>> sdata["colon_image"].shape
    (3, 512, 512)
    """
    if pixel_size is not None and not 0 < pixel_size < np.inf:
        msg = f"`pixel_size` must be positive, got {pixel_size}."
        raise ValueError(msg)
    elements: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for path in listed(images, is_picture, "PNG, JPEG or TIFF"):
        name = element_name(picture_name(path))
        if (other := files.setdefault(name.lower(), path)) is not path:
            msg = f"{str(other)!r} and {str(path)!r} would both become {name + '_image'!r}. Rename one of them."
            raise ValueError(msg)
        pixels, size = _open(path)
        if pixel_size is not None:
            size = (float(pixel_size),) * 2
        place = Identity() if size is None else Scale([size[1], size[0]], axes=("x", "y"))
        elements[f"{name}_image"] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=list(RGB), transformations={"global": place}
        )
    return SpatialData.init_from_elements(elements)


def is_picture(path: Path) -> bool:
    """Whether the name of a file says PNG, JPEG or TIFF."""
    return is_tiff(path) or (path.is_file() and not path.name.startswith(".") and path.suffix.lower() in PICTURES)


def picture_name(path: Path) -> str:
    """Name of a file without what says its format."""
    return stem(path) if is_tiff(path) else path.stem


def _open(path: Path) -> tuple[da.Array | np.ndarray, tuple[float, float] | None]:
    """Red, green and blue [3, H, W], and micrometres a pixel (y, x) where the file tells."""
    if not is_picture(path):
        msg = (
            f"{str(path)!r} is no PNG, JPEG or TIFF. Whole slides in other formats are read by wsidata or by spatialdata-io, and "
            "what they return works here as it is."
        )
        raise ValueError(msg)
    if not is_tiff(path):
        return _decoded(path), None
    image = open_tiff(path)
    n = image.pixels.shape[0]
    order = rgb_order(image.channels or [str(i) for i in range(n)])
    if order is None and image.is_rgb and n in (3, 4):
        order = [0, 1, 2]
    if order is None:
        msg = (
            f"{str(path)!r} is not RGB: it has {n} channels"
            + (f", {list(image.channels)[:6]}" if image.channels else "")
            + ". `io.read_tiffs` reads images of many channels."
        )
        raise ValueError(msg)
    left = [i for i in range(n) if i not in order]
    pixels = image.pixels[order]
    if left and image.pixels.dtype == np.uint8:
        pixels = on_white(pixels, image.pixels[left])
    return pixels, image.pixel_size


def _decoded(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as file,
        ):
            bands = file.getbands()
            colors = file.mode == "P" or len(bands) >= 3
            opaque = "A" not in bands and "transparency" not in file.info
            picture = ImageOps.exif_transpose(file).convert("RGB" if opaque else "RGBA") if colors else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        msg = f"Cannot read {str(path)!r} as a picture: {error}. It is damaged, too large (convert it to TIFF) or of another format."
        raise ValueError(msg) from error
    if picture is None:
        msg = f"{str(path)!r} is not RGB: it has the channels {list(bands)}."
        raise ValueError(msg)
    planes = np.asarray(picture).transpose(2, 0, 1)
    return np.ascontiguousarray(planes if opaque else on_white(planes[:3], planes[3:]))
