"""Stains, nuclei and scores of stained images: what `cytonym translate` runs, as calls of the public verbs."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import cytonym as cy
from cytonym._demo import is_store
from cytonym._terminal import open_store, unused, writable
from cytonym.data.brightfield import SEGMENTATION, TRANSLATIONS, derived_key
from cytonym.data.class_map import NoNucleusError, counts_of
from cytonym.data.files import replaced
from cytonym.data.source import image_sources
from cytonym.models.checkpoint import is_checkpoint, weights_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spatialdata import SpatialData

DEMO, DEMO_NUCLEAR = "ihc", False
"""Name of the results of scikit-image's picture, and whether its stain is one of nuclei (FHL2 is in the cytoplasm, too)."""
DPI = 150
GRADES = ("0", "1+", "2+", "3+")
UNFINISHED, RECORD = "translate.unfinished", "job.json"
"""Folder in --out of what an interrupted run has made; and what is told there of each image or store."""


@dataclass(kw_only=True)
class Job:
    """Images to translate, and how: the options of the command."""

    inputs: Sequence[Path]
    """Image files and stores; none for scikit-image's picture."""
    demo: bool
    out: Path
    model: str
    images: list[str] | None
    """Of stores."""
    pixel_size: float | None
    classical: dict[str, Any]
    """What is for the classical model only; None where it was not given."""
    seg_thresh: int
    watershed: bool
    thresholds: Sequence[float]
    crop: tuple[int, int, int, int] | None
    colors: str
    table_key: str
    coordinate_system: str
    scale: str | None
    device: str
    force: bool

    def run(self) -> Iterator[str]:
        """Translate one image or store after the other, and say how that went."""
        work = self.check()
        model = open_model(self.model)
        records = self.check_places(work, model)
        licence = getattr(model, "provenance", {}).get("licence")
        if licence:
            yield f"Licence: {licence}"
        width = max(12, *map(len, work)) + 2
        for name, path in work.items():
            if records[name]["lines"] is None:
                sdata = self.open(path)
                scores = self.translate(sdata, name, model, records[name])
                self.draw(sdata, name)
                replace_store(sdata, self.out / f"{name}.zarr")
                records[name] = {"settings": self.settings(path, model), "lines": [*lines(scores, name, width)]}
                self.remember(name, records[name])
                shutil.rmtree(self.unfinished(name) / "pixels", ignore_errors=True)
            if name == next(iter(work)):
                yield heading(width)
            yield from records[name]["lines"]
        for name in work:
            shutil.rmtree(self.unfinished(name), ignore_errors=True)
        with suppress(OSError):  # others are not finished
            (self.out / UNFINISHED).rmdir()
        yield f"Results: {self.out.resolve()}"

    def check(self) -> dict[str, Path | None]:
        """What to translate, by the name of its results. Refuse what could only fail after the work."""
        if self.demo and self.inputs:
            msg = f"--demo takes scikit-image's picture. Leave it out to translate {self.inputs[0]}."
            raise ValueError(msg)
        stores = [path for path in self.inputs if is_store(path)]
        work: dict[str, Path | None] = {} if self.inputs else {DEMO: None}
        for path in self.inputs:
            if not path.exists():
                msg = f"No file or store {path}."
                raise FileNotFoundError(msg)
            if path.is_dir() and path not in stores:
                msg = f"{path} is no SpatialData store. Give the images in it one by one, such as {path}/*.png."
                raise ValueError(msg)
            name = re.sub(r"(\.ome)?\.\w+$", "", path.resolve().name, flags=re.IGNORECASE)
            if name in work:
                msg = f"{work[name]} and {path} would both write {name}.zarr. Translate them into different folders (--out)."
                raise ValueError(msg)
            work[name] = path
        if stores and self.pixel_size is not None:
            msg = f"{stores[0]} is a SpatialData store, whose images say themselves how large a pixel is: leave --pixel-size out."
            raise ValueError(msg)
        if self.images and not stores:
            msg = "--image names an image of a store, and no store is given."
            raise ValueError(msg)
        given = [name for name, value in self.classical.items() if value is not None]
        if given and self.model != "classical":
            msg = f"--{given[0].replace('_', '-')} is for --model classical only."
            raise ValueError(msg)
        if not all(a < b for a, b in pairwise(self.thresholds)):
            msg = f"--thresholds must rise, got {','.join(map(str, self.thresholds))}."
            raise ValueError(msg)
        if self.crop is not None and not (0 <= self.crop[0] < self.crop[1] and 0 <= self.crop[2] < self.crop[3]):
            msg = f"--crop must be Y0,Y1,X0,X1 with Y0 < Y1 and X0 < X1, got {','.join(map(str, self.crop))}."
            raise ValueError(msg)
        if self.colors not in ("clear", "published"):
            msg = f"--colors must be clear or published, got {self.colors!r}."
            raise ValueError(msg)
        writable(self.out)
        return work

    def check_places(self, work: dict[str, Path | None], model: Any) -> dict[str, dict[str, Any]]:
        """What is known of each: settings, and lines where it is finished. Refuse to replace what we have not begun."""
        records, places = {}, dict[Path, str]()
        given = {path.resolve() for path in self.inputs}
        for name, path in work.items():
            settings = self.settings(path, model)
            found = self.record(name)
            begun = found.get("settings") == settings
            finished = begun and (self.out / f"{name}.zarr").exists()
            records[name] = {"settings": settings, "lines": found["lines"] if finished else None}
            for place in self.places(name, path):
                if places.setdefault(place, name) != name:
                    msg = f"{work[places[place]]} and {path} would both write {place.name}. Translate them into different folders (--out)."
                    raise ValueError(msg)
                if place.resolve() in given and path is not None and place.resolve() != path.resolve():
                    msg = f"{place} is given, but is also what is written of {path}. Leave it out, or write to another folder (--out)."
                    raise ValueError(msg)
                unused(place, force=self.force or begun)
        return records

    def places(self, name: str, path: Path | None) -> list[Path]:
        """All that may be written of a file or a store."""
        ends = [".zarr", ".json", "_panel.png", "_score.png"]
        if path is not None and is_store(path):
            ends += ["_scores", *(f"_{own_name(image)}_panel.png" for image in open_store(path).images)]
        return [self.out / f"{name}{end}" for end in ends]

    def settings(self, path: Path | None, model: Any) -> dict[str, Any]:
        """What the results depend on, as JSON has it."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("inputs", "out", "device", "force"):
            del known[name]
        known["model"] = model if isinstance(model, str) else weights_sha256(model)
        files = [] if path is None else [path, path / "zarr.json"]
        known["input"] = [str(path and path.resolve())]
        known["input"] += [[file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()]
        found: dict[str, Any] = json.loads(json.dumps(known | {"version": cy.__version__}))
        return found

    def record(self, name: str) -> dict[str, Any]:
        """What an unfinished run of the command tells of an image or store."""
        file = self.unfinished(name) / RECORD
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found

    def remember(self, name: str, record: dict[str, Any]) -> None:
        """Tell it to a later run."""
        self.unfinished(name).mkdir(parents=True, exist_ok=True)
        with replaced(self.unfinished(name) / RECORD) as file:
            file.write_text(json.dumps(record), encoding="utf-8")

    def open(self, path: Path | None) -> SpatialData:
        """The images of a file or a store, if there is a place for the nuclei."""
        if path is None:
            from skimage.data import immunohistochemistry

            pixels = immunohistochemistry().transpose(2, 0, 1)
            return cy.io.from_arrays(pixels, channels=["r", "g", "b"], name=DEMO, pixel_size=self.pixel_size)
        if not is_store(path):
            return cy.io.read_rgb(path, pixel_size=self.pixel_size)
        sdata: SpatialData = open_store(path)
        if self.table_key in sdata.tables and SEGMENTATION not in sdata.tables[self.table_key].uns:
            msg = f"{path} has a table {self.table_key!r} of other cells. Choose another name with --table."
            raise ValueError(msg)
        return sdata

    def unfinished(self, name: str) -> Path:
        """Folder of what an interrupted run has made."""
        return self.out / UNFINISHED / name

    def translate(self, sdata: SpatialData, name: str, model: Any, record: dict[str, Any]) -> pd.DataFrame:
        """Stains, nuclei and scores of one object."""
        options = {key: value for key, value in self.classical.items() if value is not None}
        if model != "classical":
            options["device"] = self.device
        elif not self.inputs:
            options.setdefault("nuclear_stain", DEMO_NUCLEAR)
        pixels = self.unfinished(name) / "pixels"
        where = {"coordinate_system": self.coordinate_system}
        cy.tl.translate_stain(sdata, model, image_key=self.images, scale=self.scale, out=pixels, **where, **options)
        chosen = translated(sdata, self.images)
        maps = [derived_key(image, "class_map") for image in chosen]
        self.remember(name, record)  # from here on its results are in the folder
        try:
            cy.tl.segment_nuclei(
                sdata, class_map_key=maps, seg_thresh=self.seg_thresh, watershed=self.watershed, table_key=self.table_key,
                out=pixels, **where,
            )  # fmt: skip
        except NoNucleusError:
            return self.without_nuclei(sdata, name)
        n = sdata[self.table_key].obs["region"].nunique()
        path = self.out / (f"{name}.json" if n == 1 else f"{name}_scores")
        return cy.tl.score_ihc(sdata, thresholds=self.thresholds, table_key=self.table_key, path=path)

    def without_nuclei(self, sdata: SpatialData, name: str) -> pd.DataFrame:
        """Scores of what shows no nucleus; nothing is left of those of an earlier time."""
        if self.table_key in sdata.tables:
            del sdata.tables[self.table_key]
        (self.out / f"{name}_score.png").unlink(missing_ok=True)
        counts = counts_of(0, 0)
        (self.out / f"{name}.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        return pd.DataFrame(counts, index=[name])

    def draw(self, sdata: SpatialData, name: str) -> None:
        """A panel of each image, and the score card."""
        found = translated(sdata, self.images)
        for image in found:
            figure = cy.pl.translation(
                sdata, image_key=image, crop=self.shown(sdata, image), colors=self.colors, table_key=self.table_key,
                coordinate_system=self.coordinate_system,
            )  # fmt: skip
            own = "" if len(found) == 1 else f"_{own_name(image)}"
            figure.savefig(self.out / f"{name}{own}_panel.png", dpi=DPI)
        if self.table_key not in sdata.tables:
            return
        card = cy.pl.ihc_score(sdata, thresholds=self.thresholds, table_key=self.table_key)
        card.savefig(self.out / f"{name}_score.png", dpi=DPI)

    def shown(self, sdata: SpatialData, image: str) -> tuple[int, int, int, int] | None:
        """The crop, cut to what an image has."""
        if self.crop is None:
            return None
        [stains] = image_sources(
            sdata, image_key=derived_key(image, "stains"), coordinate_system=self.coordinate_system
        )
        _, height, width = stains.shape
        y0, y1, x0, x1 = self.crop
        return (y0, min(y1, height), x0, min(x1, width)) if y0 < height and x0 < width else None


def numbers(text: str, option: str, n: int, kind: Callable[[str], Any]) -> Any:
    """Numbers with commas between."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != n:
        msg = f"{option} must be {n} numbers with commas between, got {text!r}."
        raise ValueError(msg)
    return found


def open_model(model: str) -> Any:
    """The classical model by its name; a network from the folder of a trained one or of the authors' weights."""
    if model == "classical":
        return model
    path = Path(model).expanduser()
    if is_checkpoint(path):
        return cy.models.load(path)
    if not path.is_dir():
        msg = (
            f"No model {model!r}: neither classical nor a folder. The weights of DeepLIIF are not part of the package "
            "(non-commercial); its authors say where they are: https://github.com/nadeemlab/DeepLIIF."
        )
        raise FileNotFoundError(msg)
    return cy.models.DeepLIIF.from_published(path)


def translated(sdata: SpatialData, images: list[str] | None) -> list[str]:
    """Images that were translated, of those asked for."""
    record = sdata.attrs.get(TRANSLATIONS, {})
    made = dict.fromkeys(entry["image"] for name, entry in record.items() if name in sdata.images)
    return [name for name in made if name in sdata.images and (images is None or name in images)]


def own_name(image: str) -> str:
    """An image's part of the names of its files."""
    return derived_key(image, "panel").removesuffix("_panel")


def heading(width: int) -> str:
    """Names of the columns of `lines`."""
    columns = {"nuclei": 8, "positive": 10, "percent": 9, "H-score": 9, **dict.fromkeys(GRADES, 6)}
    return f"{'image':<{width}}" + "".join(f"{name:>{n}}" for name, n in columns.items())


def lines(scores: pd.DataFrame, name: str, width: int) -> Iterator[str]:
    """Scores, a line each."""
    for region, row in scores.iterrows():
        shown = name if len(scores) == 1 else f"{name}: {region}"
        yield (
            f"{shown:<{width}}{int(row['num_total']):>8,}{int(row['num_pos']):>10,}{row['percent_pos']:>8.1f}%"
            + f"{row.get('h_score', float('nan')):>9.0f}"
            + "".join(f"{row.get(grade, float('nan')):>5.0f}%" for grade in GRADES)
        )


def replace_store(sdata: SpatialData, path: Path) -> None:
    """Write a store that appears whole, in place of one that is there."""
    new, old = (path.with_name(f".{path.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    sdata.write(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)
