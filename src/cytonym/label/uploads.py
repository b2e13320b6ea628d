"""Pictures that people upload: read with care, for anybody can send anything."""

from __future__ import annotations

import io
import math
import warnings
import zlib
from typing import Any

import numpy as np

from cytonym.label.wire import BadRequestError

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 2**24
"""Over all channels."""
MOST_CHANNELS = 512
PLAIN, DEFLATE, LZW = (1,), (8, 32946), (5,)
"""Ways to store a TIFF file whose parts become as large as its tags say. Pictures inside of it, such as JPEG, have sizes of their own."""
DEEP = ((16, 2), (16, 4), (16, 6))
"""Depth and kind of PNG files that Pillow cuts to 8 bits: colours, with transparency or without, and grey with transparency."""
PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def read_picture(data: bytes) -> np.ndarray:
    """Pixels [C, H, W] of a PNG or TIFF file.

    Its size is looked at before anything is decoded, so that a small file that claims to hold a huge picture costs nothing.

    Raises
    ------
    BadRequestError
        It is no such file, broken, or too large.

    Examples
    --------
    >>> import io
    >>> import numpy as np, tifffile
    >>> from cytonym.label.uploads import read_picture
    >>> file = io.BytesIO()
    >>> tifffile.imwrite(file, np.zeros((2, 5, 7), np.uint16), photometric="minisblack")
    >>> read_picture(file.getvalue()).shape
    (2, 5, 7)
    """
    if len(data) > MOST_BYTES:
        msg = f"The picture has {len(data) / 2**20:.0f} MB, the most is {MOST_BYTES // 2**20} MB. Upload a patch of a cell."
        raise BadRequestError(msg)
    if not data.startswith((PNG, *TIFF)):
        msg = "The file is neither PNG nor TIFF."
        raise BadRequestError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _png(data) if data.startswith(PNG) else _tiff(data)
    except BadRequestError:
        raise
    except Exception as error:  # noqa: BLE001 (decoders fail in any way on files that are made to hurt)
        msg = f"The picture cannot be read: {type(error).__name__}."
        raise BadRequestError(msg) from None


def _png(data: bytes) -> np.ndarray:
    from PIL import Image

    if tuple(data[24:26]) in DEEP:
        msg = "The PNG file has 16 bits in each of several channels, of which only 8 would be read. Save it as TIFF."
        raise BadRequestError(msg)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        _check(image.height, image.width, len(image.getbands()))
        if image.mode in ("1", "LA"):
            return _channels_first(np.asarray(image.convert("L")))
        return _channels_first(np.asarray(image if image.mode in ("L", "I;16", "I") else image.convert("RGB")))


def _tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not 0 < len(file.pages) <= MOST_CHANNELS:
            msg = f"The TIFF file has {len(file.pages)} pages, the most is {MOST_CHANNELS}."
            raise BadRequestError(msg)
        series = file.series[0].levels[0]
        shape = [int(side) for side in series.shape if side != 1]
        if not 2 <= len(shape) <= 3:
            msg = f"The TIFF file holds an array of shape {tuple(series.shape)}; one picture [C, H, W] is needed."
            raise BadRequestError(msg)
        _check(*shape)
        for page in series.pages:
            if page is not None:
                _check_page(page, data)
        pixels = series.asarray(maxworkers=1)
    return _channels_first(np.squeeze(pixels))


def _check_page(page: Any, data: bytes) -> None:
    """Refuse a page whose strips or tiles may become larger than the page: the size of an array does not bound that of its parts."""
    told = page.keyframe
    if told.compression not in PLAIN + DEFLATE + LZW:
        name = getattr(told.compression, "name", told.compression)
        msg = f"The TIFF file is compressed by {name}. Save it without compression, or by deflate or LZW."
        raise BadRequestError(msg)
    _check(*told.shape)
    _check(*told.chunks)
    if told.compression in DEFLATE:
        most = math.prod(told.chunks) * told.dtype.itemsize
        for at, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if len(zlib.decompressobj().decompress(data[at : at + count], most + 1)) > most:
                msg = "A part of the TIFF file holds more than the file claims."
                raise BadRequestError(msg)


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind not in "biuf":
        msg = f"The picture holds {pixels.dtype}, not numbers."
        raise BadRequestError(msg)
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.shape[2] in (3, 4) and pixels.shape[0] > 4:
        pixels = pixels[:, :, :3].transpose(2, 0, 1)
    return np.nan_to_num(np.ascontiguousarray(pixels))


def _check(*shape: int) -> None:
    if min(shape) < 1 or int(np.prod([float(side) for side in shape])) > MOST_PIXELS:
        _too_large(shape)


def _too_large(shape: Any) -> None:
    msg = f"The picture claims to be {' x '.join(map(str, shape))}; the most is {MOST_PIXELS:,} pixels. Upload a patch of a cell."
    raise BadRequestError(msg)
