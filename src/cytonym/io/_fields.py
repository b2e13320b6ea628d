"""Which files belong together: images, masks, centres, cell tables and panels, matched by file name."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.io._tiff import is_tiff, stem

if TYPE_CHECKING:
    from collections.abc import Callable

Paths = str | Path | Sequence[str | Path]

logger = logging.getLogger("cytonym")

PART = r"(whole[_-]?cells?|cells?|nucle(?:us|i|ar)|cyto(?:plasm)?|deepcell|mesmer|cellpose|stardist)"
IS_MASK = re.compile(rf"(^|[_\-. ])({PART}[_\-. ]?)?(masks?|labels?|segmentation|seg)$", re.IGNORECASE)
IS_IMAGE = re.compile(r"[_\-. ](image|img|full|intensit(y|ies))$", re.IGNORECASE)
IS_CELLS = re.compile(r"(^|[_\-. ])cells$", re.IGNORECASE)
IS_CENTERS = re.compile(r"(^|[_\-. ])(centers|centres|centroids|points)$", re.IGNORECASE)
IMAGE_FOLDERS = ("img_ome", "ome", "images", "img")
MASK_FOLDERS = ("masks", "mask", "masks_deepcell", "masks_cellpose", "segmentation")


@dataclass
class Field:
    """The files of one image."""

    name: str
    image: Path
    mask: Path | None = None
    centers: Path | None = None
    cells: Path | None = None


@dataclass
class Found:
    """All fields, and what is common to them."""

    fields: list[Field]
    panel: Path | None = None
    cells: list[Path] = field(default_factory=list)
    """Tables that hold the cells of several images."""


def find_fields(images: Paths, masks: Paths | None, centers: Paths | None, cells: Paths | None) -> Found:
    """Pair the files up. What is given is matched strictly; what lies beside a folder of images is taken if it fits."""
    folder = Path(images) if isinstance(images, (str, Path)) and Path(images).is_dir() else None
    beside: dict[str, list[Path]] = {"masks": [], "centers": [], "cells": []}
    panel = None
    if folder is not None:
        paths, beside, panel = _look_around(folder)
    else:
        paths = listed(images, is_tiff, "TIFF")
    found = Found([Field(name, path) for name, path in _names(paths).items()], panel)

    if masks is not None:
        _assign(found, "mask", listed(masks, is_tiff, "TIFF"), IS_MASK, strict=True)
    elif beside["masks"]:
        _assign(found, "mask", beside["masks"], IS_MASK, strict=False)
    if centers is not None:
        _assign(found, "centers", listed(centers, is_csv, "CSV"), IS_CENTERS, strict=True)
    elif beside["centers"] and masks is None and not any(f.mask for f in found.fields):
        _assign(found, "centers", beside["centers"], IS_CENTERS, strict=False)
    if cells is not None:
        tables = listed(cells, is_csv, "CSV")
        if len(tables) == 1 and len(found.fields) > 1 and _match(_plain(tables[0]), found.fields, IS_CELLS) is None:
            found.cells = tables
        else:
            _assign(found, "cells", tables, IS_CELLS, strict=True, every=False)
    elif beside["cells"] and any(f.mask or f.centers for f in found.fields):
        _assign(found, "cells", beside["cells"], IS_CELLS, strict=False, every=False)
    return found


def is_csv(path: Path) -> bool:
    """Whether the name of a file says CSV."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith((".csv", ".csv.gz"))


def listed(paths: Paths, kind: Callable[[Path], bool], what: str) -> list[Path]:
    """The files that a folder, one path or a sequence of paths name, in order of name within a folder."""
    result = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if kind(p))
            if not inside:
                msg = (
                    f"No {what} file in folder {str(path)!r}. It holds {some(sorted(p.name for p in path.iterdir()))}."
                )
                raise FileNotFoundError(msg)
            result += inside
        elif path.is_file():
            result.append(path)
        else:
            msg = f"No file or folder {str(path)!r}."
            raise FileNotFoundError(msg)
    if not result:
        msg = f"No {what} file given."
        raise ValueError(msg)
    return result


def _look_around(folder: Path) -> tuple[list[Path], dict[str, list[Path]], Path | None]:
    """Images of a folder and what lies beside them: either all in one place, or in subfolders as steinbock has them."""
    home = folder
    tiffs = sorted(p for p in folder.iterdir() if is_tiff(p))
    if not tiffs:
        home = next((folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir()), folder)
        tiffs = sorted(p for p in home.iterdir() if is_tiff(p))
    images = [p for p in tiffs if not IS_MASK.search(stem(p))]
    if not images:
        msg = f"No TIFF image in folder {str(folder)!r}. It holds {some(sorted(p.name for p in folder.iterdir()))}."
        raise FileNotFoundError(msg)
    masks = [p for p in tiffs if IS_MASK.search(stem(p))]
    for parent in dict.fromkeys((folder, home, home.parent if home.name in IMAGE_FOLDERS else folder)):
        for name in MASK_FOLDERS:
            if not masks and (parent / name).is_dir():
                masks = sorted(p for p in (parent / name).iterdir() if is_tiff(p))
    tables = [p for p in sorted(home.iterdir()) if is_csv(p)]
    beside = {
        "masks": masks,
        "centers": [p for p in tables if IS_CENTERS.search(p.name.split(".csv")[0])],
        "cells": [p for p in tables if IS_CELLS.search(p.name.split(".csv")[0])],
    }
    panels = (home / "panel.csv", *([home.parent / "panel.csv"] if home.name in IMAGE_FOLDERS else []))
    return images, beside, next((p for p in panels if p.is_file()), None)


def _names(paths: list[Path]) -> dict[str, Path]:
    """A name an image: the stem, with the folder in front where stems repeat. Only characters a store allows."""
    stems = [stem(p) for p in paths]
    if len(set(map(str.lower, stems))) < len(stems):
        stems = [f"{p.parent.name}_{s}" for p, s in zip(paths, stems, strict=True)]
    names = [element_name(s) for s in stems]
    lower = [name.lower() for name in names]
    if len(set(lower)) < len(names):
        twice = sorted({str(p) for p, name in zip(paths, lower, strict=True) if lower.count(name) > 1})
        msg = f"Images must have names of their own; these share one: {some(twice)}. Rename the files."
        raise ValueError(msg)
    return dict(zip(names, paths, strict=True))


def element_name(name: str) -> str:
    """The name of a file with only the characters that a store allows."""
    return re.sub(r"[^\w.\-]", "_", name).lstrip("_") or "field"


def _assign(
    found: Found, what: str, files: list[Path], suffix: re.Pattern, *, strict: bool, every: bool = True
) -> None:
    """Give each field its file. Strict: a file that fits nowhere, or a field without one, is an error."""
    fields = found.fields
    matched: dict[int, list[Path]] = {}
    lost = []
    for file in files:
        index = _match(_plain(file), fields, suffix)
        if index is None:
            lost.append(file)
        else:
            matched.setdefault(index, []).append(file)
    missing = [f.image.name for i, f in enumerate(fields) if i not in matched]
    if strict and lost:
        msg = (
            f"No image fits {what} {some([p.name for p in lost])}. A file belongs to the image whose stem its own name "
            f"holds. Images: {some([f.image.name for f in fields])}."
        )
        raise ValueError(msg)
    if every and missing and (strict or len(missing) < len(fields)):
        text = f"{len(missing)} of {len(fields)} images have no {what}: {some(missing)}"
        if strict:
            msg = f"{text}. Given: {some([p.name for p in files])}."
            raise ValueError(msg)
        logger.warning("%s. The %d %s file(s) found are ignored.", text, len(files), what)
        return
    for index, candidates in matched.items():
        best = min(candidates, key=lambda p: (_preference(_plain(p)), len(p.name), p.name))
        if len(candidates) > 1:
            others = [p.name for p in candidates if p != best]
            logger.info("%s: using %s %r, leaving %s.", fields[index].name, what, best.name, others)
        setattr(fields[index], what, best)
    if lost:
        logger.info("No image fits %s %s: ignored.", what, some([p.name for p in lost]))


def _plain(path: Path) -> str:
    return stem(path) if is_tiff(path) else re.sub(r"\.csv(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def _match(name: str, fields: list[Field], suffix: re.Pattern) -> int | None:
    """The field whose stem is in the name, at word borders; the longest one, so that `Point1` never takes `Point14`."""
    best: tuple[int, int] | None = None
    core = suffix.sub("", name)
    for i, item in enumerate(fields):
        own = stem(item.image)
        fits = re.search(rf"(?<![A-Za-z0-9]){re.escape(own)}(?![A-Za-z0-9])", name)
        if (fits or (core and core == IS_IMAGE.sub("", own))) and (best is None or len(own) > best[0]):
            best = (len(own), i)
    if best is None and len(fields) == 1:
        return 0
    return None if best is None else best[1]


def _preference(name: str) -> int:
    """Whole cells before masks of no stated kind before nuclei."""
    name = name.lower()
    return 2 if "nucle" in name else 0 if "cell" in name else 1


def some(values: Any, n: int = 8) -> str:
    """The first values for the text of an error, and how many more there are."""
    values = np.asarray(values).tolist()
    return f"{values[:n]}" if len(values) <= n else f"{values[:n]} and {len(values) - n} more"
