"""Names of the images that a translation makes: which are free, and which it made before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cytonym.data.brightfield import TRANSLATIONS, derived_key
from cytonym.tl._translators import CLASS_MAP_KEY, STAINS_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spatialdata import SpatialData


def require_free(sdata: SpatialData, keys: Sequence[str], images: Sequence[str]) -> None:
    """Refuse to replace what no translation made.

    Parameters
    ----------
    sdata
        Where new images go.
    keys, images
        Their names, and those of the images that they are made of.

    Raises
    ------
    ValueError
        New images would replace one another, an image that is translated, or elements of others.
    """
    both = sorted(set(keys) & set(images))
    if both:
        msg = f"New images {both} would replace images that are translated. Name what to translate by `image_key`, or rename them."
        raise ValueError(msg)
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        msg = f"Images {list(images)} would share the names {twice}. Translate them one by one, or rename them."
        raise ValueError(msg)
    taken = [key for key in keys if key in sdata and key not in sdata.images]
    if taken:
        msg = f"{taken} are taken by elements that are no images. Rename them first."
        raise ValueError(msg)
    foreign = sorted((set(keys) & set(sdata.images)) - set(sdata.attrs.get(TRANSLATIONS, {})))
    if foreign:
        msg = (
            f"Images {foreign} are there already, and `sdata.attrs` does not tell that `tl.translate_stain` made them. Rename or "
            "delete them, or, where they are modalities, leave `rgb` out."
        )
        raise ValueError(msg)


def outdated(sdata: SpatialData, record: Mapping[str, dict[str, Any]]) -> set[str]:
    """Pictures of modalities that another translation of the same images made.

    Parameters
    ----------
    sdata
        Where they are.
    record
        How each of the new images was made.
    """
    now = {told["image"]: told for told in record.values()}
    kept = {derived_key(image, suffix) for image in now for suffix in (STAINS_KEY, CLASS_MAP_KEY)}
    return {
        key
        for key, told in sdata.attrs.get(TRANSLATIONS, {}).items()
        if key not in kept and told.get("image") in now and told != now[told["image"]]
    }
