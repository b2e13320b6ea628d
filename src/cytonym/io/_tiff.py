"""One TIFF file as a lazy image: pixels as a dask array, channel names and pixel size from its metadata."""

from __future__ import annotations

import logging
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import tifffile

MICROMETRE = {"m": 1e6, "mm": 1e3, "cm": 1e4, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "å": 1e-4}
logger = logging.getLogger("cytonym")

BLOCK_PX = 1024
"""Side of a lazy block; rounded to whole strips or tiles of the file."""


@dataclass(frozen=True)
class TiffImage:
    """What one TIFF file holds."""

    path: Path
    pixels: da.Array
    """[C, H, W], read block by block when asked for."""
    channels: tuple[str, ...] | None
    """Names in the file's metadata; None where it has none."""
    pixel_size: tuple[float, float] | None
    """Micrometres a pixel (y, x), from OME metadata."""
    is_rgb: bool = False


def stem(path: Path) -> str:
    """File name without its TIFF suffixes: `E34` for `E34.ome.tif`."""
    return re.sub(r"(\.ome)?\.(tiff?|qptiff|btf|tf8)$", "", path.name, flags=re.IGNORECASE)


def is_tiff(path: Path) -> bool:
    """Whether the name of a file says TIFF (hidden files, such as macOS side-cars, do not count)."""
    return path.is_file() and not path.name.startswith(".") and stem(path) != path.name


def open_tiff(path: Path) -> TiffImage:
    """Read the header of a TIFF file; pixels stay on disk.

    The first series at its full resolution is taken. One axis beside y and x is allowed and becomes the channels.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is no TIFF, is cut short, or has two axes beside y and x.
    """
    if not path.is_file():
        msg = f"No file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        with tifffile.TiffFile(path) as file:
            if not file.series:
                msg = f"{str(path)!r} holds no image."
                raise ValueError(msg)
            series = file.series[0]
            _check_complete(path, file)
            layout = _layout(path, series)
            shape, dtype = tuple(series.shape), np.dtype(series.dtype)
            native = tuple(series.keyframe.chunks[:2])
            is_rgb = series.keyframe.photometric == tifffile.PHOTOMETRIC.RGB
            names, size = _metadata(file, layout)
    except (tifffile.TiffFileError, OSError, IndexError, KeyError, TypeError, ElementTree.ParseError) as error:
        msg = f"Cannot read {str(path)!r} as a TIFF image: {error}. The file is damaged or of another format."
        raise ValueError(msg) from error
    height, width = shape[layout.index("y")], shape[layout.index("x")]
    n_channels = shape[layout.index("c")] if "c" in layout else 1
    # interleaved colours share their strips, so they are read together; separate planes one by one
    per_block = n_channels if "c" in layout and layout.index("c") > layout.index("y") else 1
    # a whole number of strips or tiles, so that none is decoded for two blocks
    chunk = [min(side, max(n, n * (BLOCK_PX // n))) for n, side in zip(native, (height, width), strict=True)]
    pixels = da.map_blocks(
        _read_block,
        str(path),
        layout,
        chunks=da.core.normalize_chunks((per_block, *chunk), (n_channels, height, width)),
        dtype=dtype.newbyteorder("="),
        meta=np.empty((0, 0, 0), dtype.newbyteorder("=")),
        name=f"tiff-{da.core.tokenize(str(path), path.stat().st_mtime_ns, path.stat().st_size)}",
    )
    if names is not None and len(names) != n_channels:
        names = None
    return TiffImage(path, pixels, names, size, is_rgb)


def _check_complete(path: Path, file: tifffile.TiffFile) -> None:
    """Find a file that was cut short now and not in the middle of a training."""
    size = path.stat().st_size
    for page in file.series[0].pages:
        if page is not None and any(
            start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ):
            msg = f"{str(path)!r} is cut short: page {page.index} ends after the file does."
            raise ValueError(msg)


def _layout(path: Path, series: Any) -> str:
    """One letter an axis of the stored series: `y`, `x`, `c`, or `1` for an axis of length one."""
    axes, shape = series.axes, series.shape
    if "Y" not in axes or "X" not in axes:
        msg = f"{str(path)!r} has axes {axes!r}; an image needs Y and X."
        raise ValueError(msg)
    layout = [{"Y": "y", "X": "x"}.get(axis, "c" if n > 1 else "1") for axis, n in zip(axes, shape, strict=True)]
    if layout.count("c") > 1:
        found = dict(zip(axes, shape, strict=True))
        msg = (
            f"{str(path)!r} has axes {found}: more than one beside Y and X. "
            "Project it to one plane and one time point, and save it as [channels, y, x]."
        )
        raise ValueError(msg)
    # [H, W, C] saved without saying so: the axis of no meaning comes first and the last one is far too short
    if axes in {"QYX", "IYX"} and 4 * shape[2] <= min(shape[:2]):
        layout = ["y", "x", "c"]
    return "".join(layout)


def _metadata(file: tifffile.TiffFile, layout: str) -> tuple[tuple[str, ...] | None, tuple[float, float] | None]:
    """Channel names and pixel size (y, x) in micrometres, where the file tells."""
    if file.ome_metadata:
        root = ElementTree.fromstring(file.ome_metadata)
        pixels = next((e for e in root.iter() if _tag(e) == "Pixels"), None)
        if pixels is not None:
            return _ome_names(pixels), _ome_size(pixels, file.filename)
    labels = (file.imagej_metadata or {}).get("Labels")
    if labels is None and "c" in layout:
        pages = [page for page in file.series[0].pages if page is not None]
        tags = [page.aspage().tags.get("PageName") for page in pages] if len(pages) <= 1000 else []
        labels = [str(tag.value) for tag in tags if tag is not None]
    return (tuple(str(label) for label in labels) or None) if labels else None, None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _ome_names(pixels: ElementTree.Element) -> tuple[str, ...] | None:
    channels = [e for e in pixels if _tag(e) == "Channel"]
    if not any(e.get("Name") for e in channels):
        return None
    return tuple(e.get("Name") or f"channel_{i}" for i, e in enumerate(channels))


def _ome_size(pixels: ElementTree.Element, name: str) -> tuple[float, float] | None:
    size = []
    for axis in "YX":
        value, unit = pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()
        if value is None or unit not in MICROMETRE:
            return None
        try:
            number = float(value)
        except ValueError:
            logger.warning(
                "PhysicalSize%s of %r is no number: %r. The image stands in pixels; give `pixel_size`.",
                axis,
                name,
                value,
            )
            return None
        if not 0 < number < np.inf:
            return None
        size.append(number * MICROMETRE[unit])
    return size[0], size[1]


def _read_block(path: str, layout: str, block_info: Any = None) -> np.ndarray:
    """Pixels [c, h, w] of one block."""
    (c0, c1), *window = block_info[None]["array-location"]
    where = {"c": slice(c0, c1), "y": slice(*window[0]), "x": slice(*window[1]), "1": 0}
    try:
        stored = _opened(path, Path(path).stat().st_mtime_ns).read(tuple(where[axis] for axis in layout))
    except (zlib.error, RuntimeError, ValueError, TypeError, OSError) as error:  # RuntimeError: imagecodecs
        msg = f"Cannot read pixels of {path!r}: {error}. The file is damaged, or compressed in an unknown way."
        raise ValueError(msg) from error
    axes = [axis for axis in layout if axis != "1"]
    order = [axes.index(axis) for axis in "cyx" if axis in axes]
    block = np.transpose(stored, order)
    if "c" not in axes:
        block = block[None]
    return np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("="))


class _Opened:
    """An open file. Closed when the last reader lets go of it, so the cache below may drop it at any time."""

    def __init__(self, path: str) -> None:
        import zarr

        self.file = tifffile.TiffFile(path)
        series = self.file.series[0]
        if series.dataoffset is not None:  # plain pixels in one piece: map them, read what is asked for
            dtype = np.dtype(series.dtype).newbyteorder(self.file.byteorder)
            self.array: Any = np.memmap(path, dtype, "r", series.dataoffset, tuple(series.shape))
        else:
            self.array = zarr.open(series.aszarr(level=0), mode="r")

    def read(self, where: tuple[Any, ...]) -> np.ndarray:
        return np.asarray(self.array[where])

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


@lru_cache(maxsize=32)
def _opened(path: str, _modified: int) -> _Opened:
    """Thousands of fields must not hold thousands of open files."""
    return _Opened(path)
