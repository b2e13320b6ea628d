"""Which elements name the cells of which image: the rule that a key may be left out where the answer is unique."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spatialdata.transformations import get_transformation

from cytonym.data.checks import require_key

if TYPE_CHECKING:
    from spatialdata import SpatialData

Kind = Literal["labels", "shapes", "points"]
Keys = str | Sequence[str] | None

KINDS: tuple[Kind, ...] = ("labels", "shapes", "points")
# Words that say what an element is, not which field it shows: "core3_image", "core3_cell_mask" and "core3_centers"
# belong together, and so do "image_3" and "labels_3".
ROLES = re.compile(
    r"images?|img|raw|labels?|masks?|seg|segmentation|cells?|nucleus|nuclei|centers?|centres?|centroids?|points?|shapes?"
    r"|circles?|polygons?|boundary|boundaries"
)


def as_list(keys: Keys, argument: str) -> list[str]:
    """A key, or several, as a list; empty where none is given."""
    if keys is None:
        return []
    names = [keys] if isinstance(keys, str) else [str(key) for key in keys]
    if not names:
        msg = f"`{argument}` is an empty sequence. Give the name of an element, or leave it out."
        raise ValueError(msg)
    return names


def image_keys(sdata: SpatialData, image_key: Keys, coordinate_system: str) -> list[str]:
    """The images asked for, or else all of the coordinate system."""
    if not len(sdata.images):
        msg = "sdata has no image. Add one, for instance with io.from_arrays or io.read_tiffs."
        raise ValueError(msg)
    names = as_list(image_key, "image_key")
    for name in names:
        require_key(name, sdata.images, "image", "sdata.images")
    return names or _within(sdata, [("images", name) for name in sdata.images], coordinate_system, "image")


def pair_up(
    sdata: SpatialData, image_key: Keys, cell_keys: dict[Kind, Keys], table_key: str, coordinate_system: str
) -> list[tuple[str, Kind, str]]:
    """Pairs of an image and the element that names its cells.

    Parameters
    ----------
    sdata
        Images and cells.
    image_key
        Image, or images.
    cell_keys
        Element, or elements, of each kind; at most one kind is given.
    table_key
        Table whose regions name the cells where no cell key is given.
    coordinate_system
        Where no key is given, only elements in it are looked at.

    Returns
    -------
    Pairs in the order of the images where these are given, or else in the order of the elements.

    Raises
    ------
    KeyError
        A key is unknown.
    ValueError
        The answer is not unique; the message lists the candidates.
    """
    given = {kind: as_list(key, f"{kind}_key") for kind, key in cell_keys.items() if key is not None}
    if len(given) > 1:
        msg = f"Exactly one of labels, shapes and points names the cells, got {[f'{kind}_key' for kind in given]}."
        raise ValueError(msg)
    images = image_keys(sdata, image_key, coordinate_system)
    if given:
        [(kind, names)] = given.items()
        for name in names:
            require_key(name, getattr(sdata, kind), f"{kind} element", f"sdata.{kind}")
        cells, certain = [(kind, name) for name in names], True
    else:
        cells, certain = _candidates(sdata, table_key, coordinate_system)
    names = [name for _, name in cells]
    if len(set(names)) < len(names):
        msg = f"`{kind}_key` names an element twice: {names}. Each image needs its own cells."
        raise ValueError(msg)
    if given and image_key is not None and len(images) == len(cells):
        return [(image, *cell) for image, cell in zip(images, cells, strict=True)]
    if given and image_key is not None and len(images) > 1:
        msg = (
            f"Images and cells pair up one by one, got {len(images)} images {images} and {len(cells)} elements {names}. "
            "Give as many, or one image for all of them."
        )
        raise ValueError(msg)
    if len(images) == 1 and (len(cells) == 1 or (certain and (given or len(sdata.images) == 1))):
        return [(images[0], *cell) for cell in cells]
    return _by_name(images, cells, images_given=image_key is not None, certain=certain)


def _within(sdata: SpatialData, elements: list[tuple[str, str]], coordinate_system: str, what: str) -> list[str]:
    """Names of those elements that are in the coordinate system."""
    systems = {name: get_transformation(getattr(sdata, kind)[name], get_all=True) for kind, name in elements}
    found = [name for name, known in systems.items() if coordinate_system in known]
    if elements and not found:
        msg = (
            f"No {what} is in coordinate system {coordinate_system!r}. "
            f"Available: { {name: sorted(known) for name, known in systems.items()} }."
        )
        raise ValueError(msg)
    return found


def _candidates(sdata: SpatialData, table_key: str, coordinate_system: str) -> tuple[list[tuple[Kind, str]], bool]:
    """Elements that can name cells, and whether a table says that they do."""
    elements = [(kind, str(name)) for kind in KINDS for name in getattr(sdata, kind)]
    regions: str | list[str] = []
    if table_key in sdata.tables:
        regions = sdata.tables[table_key].uns.get("spatialdata_attrs", {}).get("region") or []
    wanted = [str(r) for r in ([regions] if isinstance(regions, str) else regions)]
    annotated = [element for region in wanted for element in elements if element[1] == region]
    if wanted and not annotated:
        msg = (
            f"Table {table_key!r} annotates {wanted}, but sdata has no such labels, shapes or points. "
            f"Available: {[name for _, name in elements]}."
        )
        raise ValueError(msg)
    if not elements:
        msg = (
            "No cells: sdata has no labels, shapes or points. Add a mask or centres (io.from_arrays, io.read_tiffs), or "
            "find the cells with pp.find_cells."
        )
        raise ValueError(msg)
    chosen = annotated or elements
    within = set(_within(sdata, list(chosen), coordinate_system, "labels, shapes or points element"))
    return [element for element in chosen if element[1] in within], bool(annotated)


def _by_name(
    images: list[str], cells: list[tuple[Kind, str]], *, images_given: bool, certain: bool
) -> list[tuple[str, Kind, str]]:
    """Pair images and cells that show the same field, going by their names.

    Everything that was asked for needs exactly one partner. Names without any word for the field, such as "image" and
    "cells", only match where nothing is left over.
    """
    names = [name for _, name in cells]
    pairs = [(image, *cell) for image in images for cell in cells if _field(image) == _field(cell[1])]
    once_image = sorted(pair[0] for pair in pairs) == sorted(images)
    once_cells = sorted(pair[2] for pair in pairs) == sorted(names)
    told = all(_field(pair[0]) for pair in pairs)
    if once_image and (once_cells or (images_given and told)):
        return pairs if images_given else sorted(pairs, key=lambda pair: names.index(pair[2]))
    if once_cells and certain and told and not images_given:
        return sorted(pairs, key=lambda pair: names.index(pair[2]))
    if len(images) == 1:
        msg = (
            f"Several elements could name the cells of image {images[0]!r}: {names}. "
            "Choose one with `labels_key`, `shapes_key` or `points_key`."
        )
    elif len(cells) == 1 and not images_given:
        msg = f"sdata has several images: {images}. Choose the one of {names[0]!r} with `image_key`."
    else:
        msg = (
            f"Which cells belong to which image is not clear: images {images}, cells {names}. Give `image_key` and one of "
            "`labels_key`, `shapes_key` and `points_key`, as sequences that pair up."
        )
    raise ValueError(msg)


def _field(name: str) -> tuple[str, ...]:
    """The words and numbers of a name that say which field it shows."""
    return tuple(word for word in re.findall(r"[^\W\d_]+|\d+", name.lower()) if not ROLES.fullmatch(word))
