"""Stained images and what they shall become, on the same pixels: from SpatialData objects, and from folders of strips."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from spatialdata.models import get_channel_names
from xarray import DataTree

from cytonym.data import transforms
from cytonym.data.brightfield import CLASS_MAP, TRANSLATIONS, derived_key
from cytonym.data.class_map import pixel_classes
from cytonym.data.pairing import as_list
from cytonym.data.source import image_sources, level_of, resolve
from cytonym.data.table import open_table
from cytonym.data.translation_tiles import Registered, map_of_nuclei
from cytonym.tl._brightfield import brightfield_sources
from cytonym.tl._class_map_inputs import class_map_sources
from cytonym.tl._class_maps import read_box

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from cytonym.data.pairing import Keys
    from cytonym.data.source import CellSource

Modalities = Sequence[str] | Mapping[str, str | Sequence[str]] | None

TRAIN, VAL = "train", "val"
"""Folders that the published program makes of its strips."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What a translator is trained on."""

    images: list[Registered]
    judged: list[Registered]
    """Those that the caller has kept apart for validation."""
    modalities: tuple[str, ...]
    digest: bytes
    """Of all pixels, or of the files that hold them."""
    pixel_size: float | None


# ----------------------------------------------------------------------------------------------------------------- strips
def strips(folder: Path, modalities: Sequence[str] | None, default: Sequence[str]) -> Pairs:
    """Strips of square panels: the stained image, the modalities and the class map.

    Parameters
    ----------
    folder
        With the strips, or with folders `train` and `val` of them.
    modalities
        Names; none for the class map alone, whatever the strips hold.
    default
        Names where there are so many modalities and none were given.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no strip in it.
    ValueError
        A file is no strip, or of another number of panels.
    """
    if not folder.is_dir():
        msg = f"There is no folder '{folder}'. `data` is a SpatialData object, a list of them, or a folder of strips."
        raise FileNotFoundError(msg)
    inside = [folder / TRAIN, folder / VAL] if (folder / TRAIN).is_dir() else [folder]
    files = [sorted(p for p in f.glob("*") if p.suffix.lower() == ".png") for f in inside]
    if not files[0]:
        msg = f"No strips in '{inside[0]}': PNG files, each a row of square panels, are looked for."
        raise FileNotFoundError(msg)
    panels = {path: _panels(path) for group in files for path in group}
    n = next(iter(panels.values()))
    other = {path.name: k for path, k in panels.items() if k != n}
    if other:
        msg = f"Strips in '{folder}' have different numbers of panels: {n}, but {other}."
        raise ValueError(msg)
    names = modalities
    if names is None:
        names = default if len(default) == n - 2 else [f"modality {i}" for i in range(1, n - 1)]
    if names and len(names) != n - 2:
        msg = (
            f"Strips in '{folder}' have {n} panels: the stained image, {n - 2} modalities and the class map. "
            f"{len(names)} modalities were named: {list(names)}."
        )
        raise ValueError(msg)
    digest = hashlib.sha256()
    groups: list[list[Registered]] = []
    for group in files:
        found = []
        for path in group:
            digest.update(path.read_bytes())
            with Image.open(path) as picture:
                side = picture.height
            found.append(Registered(path.stem, (side, side), partial(_read_strip, path, with_modalities=bool(names))))
        groups.append(found)
    images, judged = groups[0], groups[1] if len(groups) > 1 else []
    return Pairs(images, judged, tuple(names), digest.digest(), None)


def _panels(path: Path) -> int:
    """Number of panels of a strip, by its size alone."""
    try:
        with Image.open(path) as picture:
            (width, height), mode = picture.size, picture.mode
    except (UnidentifiedImageError, OSError) as error:
        msg = f"'{path}' is no picture, or damaged ({error})."
        raise ValueError(msg) from error
    if mode != "RGB":
        msg = f"'{path}' must be an RGB picture of 8 bits, its mode is {mode!r}."
        raise ValueError(msg)
    if width % height or width < 2 * height:
        msg = (
            f"'{path}' is no strip: its width of {width} is no multiple of its height of {height}. A strip is a row of square "
            "panels: the stained image, the modalities and the class map."
        )
        raise ValueError(msg)
    return width // height


def _read_strip(path: Path, *, with_modalities: bool) -> np.ndarray:
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    side = pixels.shape[0]
    places = range(0, pixels.shape[1], side) if with_modalities else (0, pixels.shape[1] - side)
    return np.ascontiguousarray(np.concatenate([pixels[:, x : x + side].transpose(2, 0, 1) for x in places]))


# ------------------------------------------------------------------------------------------------------------ SpatialData
def registered(
    samples: Sequence[SpatialData],
    modalities: Modalities,
    *,
    image_key: Keys,
    class_map_key: Keys,
    labels_key: Keys,
    table_key: str,
    class_key: str,
    coordinate_system: str,
    scale: str | None,
    channels: int,
) -> Pairs:
    """Elements that lie on the same pixels.

    Parameters
    ----------
    samples
        Objects, all with the same keys.
    modalities
        Names of elements, or names and elements; by default all images beside the stained one and the class map.
    image_key, class_map_key, labels_key
        Stained images, and for each of them its class map, or its nuclei.
    table_key, class_key
        Table and column with the nuclei's classes.
    coordinate_system, scale
        Where the elements meet, and the level to read of those that have several.
    channels
        Of each modality: 1 or 3.

    Raises
    ------
    KeyError, ValueError
        An element is unknown, lies elsewhere, or is not of 8 bits; there is no class map.
    """
    if class_map_key is not None and labels_key is not None:
        msg = "`class_map_key` and `labels_key` both tell the classes of nuclei: give one of the two."
        raise ValueError(msg)
    found: list[Registered] = []
    sizes: list[float] = []
    names: tuple[str, ...] | None = None
    digest = hashlib.sha256()
    for sdata in samples:
        stained = brightfield_sources(sdata, image_key or _stained(sdata, modalities), coordinate_system, scale)
        for i, source in enumerate(stained):
            place = _Place(sdata, source, coordinate_system, scale)
            given = _given(class_map_key, i, stained, "class_map_key"), _given(labels_key, i, stained, "labels_key")
            drawn, used = _class_map(place, *given, table_key, class_key)
            keys = _elements(place, modalities, i, len(stained), used)
            if names is not None and names != tuple(keys):
                msg = f"Image {source.image_key!r} has modalities {list(keys)}, an earlier one {list(names)}. Name them alike."
                raise ValueError(msg)
            names = tuple(keys)
            planes = [_box(source), *(place.modality(name, key, channels) for name, key in keys.items()), drawn]
            pixels = np.concatenate(planes)
            digest.update(pixels.tobytes())
            found.append(Registered(source.image_key, source.shape[1:], partial(_same, pixels)))
            sizes += [] if source.pixel_size is None else [source.pixel_size]
    if sizes and max(sizes) > 1.1 * min(sizes):
        msg = f"The pixel sizes of the images differ, from {min(sizes):g} to {max(sizes):g}. Choose levels alike with `scale`."
        raise ValueError(msg)
    return Pairs(found, [], names or (), digest.digest(), float(np.median(sizes)) if sizes else None)


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _box(source: CellSource) -> np.ndarray:
    return read_box(source, slice(0, source.shape[1]), slice(0, source.shape[2]))


def _stained(sdata: SpatialData, modalities: Modalities) -> Keys:
    """Which images are the stained ones, where nobody says so: the only RGB image that has no other part."""
    if modalities is None:
        named: set[str] = set()
    elif isinstance(modalities, Mapping):
        named = {key for keys in modalities.values() for key in as_list(keys, "modalities")}
    else:
        named = {key for key in sdata.images if any(key == name or key.endswith(f"_{name}") for name in modalities)}
    left = [
        key for key, image in sdata.images.items()
        if key not in named and key not in sdata.attrs.get(TRANSLATIONS, {}) and _looks_rgb(image)
    ]  # fmt: skip
    if len(left) > 1:
        msg = f"Several images may be the stained one: {left}. Say which with `image_key`."
        raise ValueError(msg)
    return left or None


def _looks_rgb(image: Any) -> bool:
    names = [str(name).lower() for name in get_channel_names(image)]
    return names in (["red", "green", "blue"], ["r", "g", "b"], ["0", "1", "2"]) or {"r", "g", "b"} < set(names)


def _given(keys: Keys, i: int, stained: Sequence[CellSource], name: str) -> str | None:
    chosen = as_list(keys, name)
    if chosen and len(chosen) != len(stained):
        msg = f"`{name}` names {len(chosen)} elements for {len(stained)} images: {[s.image_key for s in stained]}."
        raise ValueError(msg)
    return chosen[i] if chosen else None


@dataclass(frozen=True, eq=False)
class _Place:
    """The pixels of a stained image."""

    sdata: SpatialData
    source: CellSource
    system: str
    scale: str | None

    def is_here(self, other: CellSource) -> bool:
        """Whether another image has the same pixels."""
        first, second = (self._matrix(s.image_key) for s in (self.source, other))
        return self.source.shape[1:] == other.shape[1:] and bool(np.allclose(first, second))

    def _matrix(self, key: str) -> np.ndarray:
        return transforms.matrix(level_of(self.sdata.images[key], self.scale), key, self.system)

    def require(self, other: CellSource, what: str) -> None:
        """Raise where it has not."""
        if not self.is_here(other):
            msg = (
                f"{what} {other.image_key!r} must lie on the pixels of {self.source.image_key!r} ({self.source.shape[1]} x "
                f"{self.source.shape[2]}), but it has {other.shape[1]} x {other.shape[2]} pixels or another transformation to "
                f"{self.system!r}. Register and resample it first."
            )
            raise ValueError(msg)

    def level(self, key: str) -> str | None:
        """Name of the level to read of an image, where it has several."""
        return self.scale if isinstance(self.sdata.images.get(key), DataTree) else None

    def class_map(self, key: str) -> CellSource:
        """A class map, wherever it lies."""
        [source] = class_map_sources(self.sdata, key, self.system, self.level(key))
        return source

    def modality(self, name: str, key: str, channels: int) -> np.ndarray:
        """Pixels uint8 [channels, H, W] of a modality."""
        [source] = image_sources(self.sdata, image_key=key, coordinate_system=self.system, scale=self.level(key))
        self.require(source, f"Modality {name!r}:" if name == key else f"Modality {name!r}, image")
        if np.dtype(source.pixels.dtype) != np.uint8:
            pixels = _box(source)
            nan = " and is not finite everywhere" if not np.isfinite(pixels).all() else ""
            msg = (
                f"Modality {key!r} holds {pixels.dtype}{nan}, but 8 bits are needed: scale what shall be visible to 0 … 255, "
                "as uint8."
            )
            raise ValueError(msg)
        if len(source.channels) not in (1, channels):
            msg = f"Modality {key!r} must have 1 or {channels} channels, it has {list(source.channels)}. Choose one image a modality."
            raise ValueError(msg)
        pixels = _box(source)
        return pixels if len(pixels) == channels else np.repeat(pixels, channels, axis=0)


def _elements(place: _Place, modalities: Modalities, i: int, n: int, used: str | None) -> dict[str, str]:
    """Name and element of each modality of the i-th of n images."""
    sdata, image = place.sdata, place.source.image_key
    if isinstance(modalities, Mapping):
        chosen = {name: as_list(keys, f"modalities[{name!r}]") for name, keys in modalities.items()}
        wrong = {name: len(keys) for name, keys in chosen.items() if len(keys) != n}
        if wrong:
            msg = f"`modalities` must name one element for each of {n} images, got {wrong}."
            raise ValueError(msg)
        return {str(name): keys[i] for name, keys in chosen.items()}
    stem = derived_key(image, "")
    if modalities is None:
        made = {*sdata.attrs.get(TRANSLATIONS, {}), image, used}
        others = [key for key in sdata.images if key not in made and not _is_map(sdata, key)]
        return {key.removeprefix(stem): key for key in others if n == 1 or key.startswith(stem)}
    found: dict[str, str] = {}
    for name in map(str, modalities):
        keys = [key for key in (stem + name, name) if key in sdata.images]
        if not keys:
            msg = f"No image {stem + name!r} or {name!r} for the modality {name!r} of {image!r}. Available: {list(sdata.images)}."
            raise KeyError(msg)
        found[name] = keys[0]
    return found


def _class_map(
    place: _Place, map_key: str | None, labels_key: str | None, table_key: str, class_key: str
) -> tuple[np.ndarray, str | None]:
    """Class map uint8 [3, H, W] and its element: one that is there, or drawn of nuclei whose class is known."""
    sdata, image = place.sdata, place.source.image_key
    if labels_key is not None:
        return _nuclei(place, labels_key, table_key, class_key), None
    if map_key is None:
        made = sdata.attrs.get(TRANSLATIONS, {})
        drawn = [key for key in sdata.images if key not in made and _is_map(sdata, key)]
        keys = [key for key in drawn if place.is_here(place.class_map(key))]
        if len(keys) != 1:
            found = f"several: {keys}" if keys else "none that lies on its pixels and was not translated"
            msg = (
                f"Class map of {image!r}: {found}. Give `class_map_key`, an image with red positive, blue negative nuclei and "
                f"green borders, or `labels_key`, nuclei with a column {class_key!r} in the table."
            )
            raise ValueError(msg)
        map_key = keys[0]
    source = place.class_map(map_key)
    place.require(source, "Class map")
    return _box(source), map_key


def _is_map(sdata: SpatialData, key: str) -> bool:
    return [str(name) for name in get_channel_names(sdata.images[key])] == list(CLASS_MAP)


def _nuclei(place: _Place, labels_key: str, table_key: str, class_key: str) -> np.ndarray:
    image = place.source.image_key
    [source] = resolve(
        place.sdata, image_key=[image], labels_key=[labels_key], table_key=table_key,
        coordinate_system=place.system, scale=place.scale,
    )  # fmt: skip
    rows = open_table(place.sdata, [source], table_key)
    if class_key not in rows.table.obs:
        msg = f"No column {class_key!r} in the table {table_key!r}, for the classes of {labels_key!r}. It has {list(rows.table.obs)}."
        raise KeyError(msg)
    classes = rows.table.obs[class_key]
    words = classes.astype(object).where(classes.notna(), None).map(_word)
    at = rows.rows[0]
    unknown = [*words.iloc[at[at >= 0]][lambda w: w.isna()].index[:3]]
    if unknown or (at < 0).any():
        msg = (
            f"Nuclei of {labels_key!r} must be 'positive' or 'negative' in {class_key!r}: {int((at < 0).sum())} have no row in the "
            f"table, and others something else, such as {unknown}. Name them, or remove them from the labels."
        )
        raise ValueError(msg)
    assert source.labels is not None
    mask = source.labels.read(0, place.source.shape[1], 0, place.source.shape[2])
    order = np.argsort(source.instance_ids)
    number = np.searchsorted(source.instance_ids[order], mask) + 1
    numbered = np.where(mask > 0, number, 0)
    return map_of_nuclei(numbered, np.concatenate([[False], words.iloc[at[order]].to_numpy(dtype=bool)]))


def _word(value: Any) -> bool | None:
    """Whether a class is positive, None where it is neither."""
    known = {"positive": True, "negative": False, "true": True, "false": False, "1": True, "0": False}
    return None if pd.isna(value) else known.get(str(value).lower().removesuffix(".0"))


def require_nuclei(images: Sequence[Registered]) -> None:
    """Raise where no class map shows a nucleus."""
    if not any(pixel_classes(image.read()[-3:]).any() for image in images):
        msg = (
            "The class maps are empty: no red or blue pixel in any of them. The last panel of a strip, and the class map element, "
            "show positive nuclei in red, negative ones in blue and their borders in green."
        )
        raise ValueError(msg)
