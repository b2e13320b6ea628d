"""The package as a whole: import time, documentation that tells the truth, the directions of imports, sizes."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from skimage.data import immunohistochemistry

import cytonym as cy

if TYPE_CHECKING:
    from collections.abc import Callable

    from spatialdata import SpatialData

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cytonym"
NAMESPACES = ["io", "pp", "tl", "pl", "get", "metrics", "datasets", "models", "label"]
TOP = (
    "cli", "_classify", "_demo", "_label", "_options", "_report", "_report_figures", "_score", "_terminal", "_translate", "_translate_command",
)  # fmt: skip
VERBS = ("tl", "pp", "pl", "io", "datasets", "get")

# What a room may import from, beside itself and `_shared`. Arrows run down only.
MAY: dict[str, set[str]] = {
    **{name: {*TOP, "label", *VERBS, "models", "learning", "metrics", "data"} for name in TOP},
    "label": {*VERBS, "models", "learning", "metrics", "data"},
    **{name: {*VERBS, "models", "learning", "metrics", "data"} for name in VERBS},
    "models": {"learning", "metrics"},
    "learning": set(),
    "metrics": set(),
    "data": set(),
    "_shared": set(),
    "__init__": set(),
}
HEAVY = {"spatialdata", "anndata", "scanpy", "squidpy"}  # models know tensors only


def public() -> list[tuple[str, Any]]:
    return [(f"{space}.{name}", getattr(getattr(cy, space), name)) for space in NAMESPACES for name in names_of(space)]


def names_of(space: str) -> list[str]:
    return list(getattr(cy, space).__all__)


def imports(path: Path) -> list[tuple[str, str, bool]]:
    """Module, name and whether for types only, of each import from this package and of the heavy ones."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import of {node.module}"
            found += [(node.module, alias.name, id(node) in typing) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "", id(node) in typing) for alias in node.names]
    return found


def room(path: Path) -> str:
    inside = path.relative_to(SOURCE).parts
    return inside[0] if len(inside) > 1 else path.stem


FILES = sorted(SOURCE.rglob("*.py"))
DOCSTRINGS = [(name, thing) for name, thing in public() if callable(thing)]


# ------------------------------------------------------------------------------------------------------------- import
def test_import_is_quick_and_light() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import cytonym; spent = time.perf_counter() - start;"
        "print(json.dumps([spent, [m for m in ('torch', 'spatialdata', 'anndata', 'scanpy', 'squidpy', 'kornia',"
        "'lightning', 'matplotlib', 'pandas', 'numpy') if m in sys.modules]]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert [loaded for _, loaded in runs] == [[], [], []]
    assert min(spent for spent, _ in runs) < 0.3


def test_namespaces_know_their_names() -> None:
    assert set(NAMESPACES) == set(cy.__all__)
    for space in NAMESPACES:
        assert set(names_of(space)) <= set(dir(getattr(cy, space)))
        for name in names_of(space):
            assert getattr(getattr(cy, space), name) is not None


# --------------------------------------------------------------------------------------------------------------- docs
def test_api_page_lists_every_public_name_and_no_other() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(rf"^\s+((?:{'|'.join(NAMESPACES)})\.\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(name for name, _ in public())


def test_pages_name_no_function_that_is_not_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    wrong = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for space, name in re.findall(rf"`(?:cy\.)?({'|'.join(NAMESPACES)})\.(\w+)", text):
            if name not in names_of(space):
                wrong.append(f"{page.name}: {space}.{name}")
    assert not wrong


@pytest.mark.parametrize(("name", "thing"), DOCSTRINGS, ids=[name for name, _ in DOCSTRINGS])
def test_docstrings_are_complete(name: str, thing: Any) -> None:
    text = inspect.getdoc(thing) or ""
    sections = re.findall(r"^(\w+)\n-{3,}$", text, re.MULTILINE)
    assert text.splitlines()[0].endswith(".")
    assert not re.search(r"^ *\{\w+\}$", text, re.MULTILINE), f"{name} has a placeholder that nobody filled"
    if inspect.isclass(thing):
        return
    assert "Examples" in sections, f"{name} has no example"
    assert ">>> " in text
    parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
    if parameters:
        assert "Parameters" in sections, f"{name} has no section Parameters"
        told = text.split("Parameters\n", 1)[1].split("\nReturns\n")[0]
        lines = re.findall(r"^([\w*]+(?:, [\w*]+)*)(?: : .*)?$", told, re.MULTILINE)
        described = {part.strip("* ") for line in lines for part in line.split(",")}
        assert not set(parameters) - described, f"{name} does not describe {sorted(set(parameters) - described)}"
    returns = inspect.signature(thing).return_annotation
    if returns not in (None, "None", inspect.Signature.empty):
        assert "Returns" in sections, f"{name} does not say what it returns"


def outputs() -> str:
    return (ROOT / "docs" / "outputs.md").read_text(encoding="utf-8")


def fields(sdata: SpatialData) -> set[tuple[str, str]]:
    """Everything that an object holds, as (where, key)."""
    found = {
        (f"sdata.{kind}", name) for kind in ("images", "labels", "shapes", "points") for name in getattr(sdata, kind)
    }
    found |= {("sdata.attrs", key) for key in sdata.attrs}
    for table in sdata.tables.values():
        for where in ("obs", "obsm", "obsp", "layers", "uns"):
            found |= {(where, str(key)) for key in getattr(table, where)}
        if table.X is not None and table.n_vars:
            found.add(("X", "marker names"))
        found |= {("uns", f"{key}: {k}") for key, value in table.uns.items() if isinstance(value, dict) for k in value}
    return {(where, key) for where, key in found if not key.startswith("spatialdata_attrs")}


def label_by_hand(sdata: SpatialData, log: Path) -> None:
    session = cy.label.Session(sdata, classes=["T"], log=log, annotator="maria", shapes_key="centers")
    session.assign([0, 1], "T")
    session.note(2, "mitosis?")
    session.write(overwrite=True)


@pytest.mark.filterwarnings("ignore:n_jobs value:UserWarning")
def test_outputs_page_lists_what_the_functions_write(tmp_path: Path) -> None:
    """Each function runs, and whatever it wrote stands in the rows of that function, in the right place."""
    sdata = cy.datasets.tissue_phantom(n_cells=60, size_px=84, rng=0)
    sdata = type(sdata)(images=dict(sdata.images))
    cy.pp.find_cells(sdata, "DNA")
    model = cy.tl.fit_encoder(sdata, steps=2, batch_size=16, device="cpu")
    scorer = cy.models.Nimbus.from_seed(cy.models.NimbusConfig(filters=4, depth=3))
    del sdata.shapes["centers"]
    pixels = immunohistochemistry()[:128, -128:].transpose(2, 0, 1)
    stained = cy.io.from_arrays(pixels, channels=["r", "g", "b"], name="ihc", pixel_size=0.6)
    steps: dict[str, Callable[[], Any]] = {
        "pp.find_cells": lambda: cy.pp.find_cells(sdata, "DNA"),
        "pp.measure_cells": lambda: cy.pp.measure_cells(sdata, statistic=["mean", "sum", "max", "std"]),
        "tl.embed_cells": lambda: cy.tl.embed_cells(sdata, model, device="cpu"),
        "tl.explain_cells": lambda: [
            cy.tl.explain_cells(sdata, model, method=method, device="cpu")
            for method in ("activation", "gradient", "occlusion")
        ],
        "tl.cluster_cells": lambda: [
            cy.tl.cluster_cells(sdata["table"], use_rep="X_nextmarker"),
            cy.tl.cluster_cells(sdata["table"], use_rep="X_nextmarker", method="som", grid=(5, 5), n_clusters=4),
        ],
        "io.read_geojson": lambda: cy.io.read_geojson(
            sdata, cy.io.write_geojson(sdata, tmp_path / "cells.geojson", classes="phenograph")
        ),
        "tl.classify_cells": lambda: cy.tl.classify_cells(sdata["table"], "label"),
        "tl.translate_stain": lambda: cy.tl.translate_stain(stained),
        "tl.segment_nuclei": lambda: cy.tl.segment_nuclei(stained, marker_key="ihc_stains", marker_channel="DAB"),
        "tl.score_ihc": lambda: cy.tl.score_ihc(stained),
        "tl.score_markers": lambda: cy.tl.score_markers(sdata, scorer, device="cpu"),
        "tl.call_markers": lambda: cy.tl.call_markers(
            sdata["table"], labels=(sdata["table"].to_df().rank(pct=True) > 0.7).astype(int), by="region"
        ),
        "tl.phenotype_cells": lambda: cy.tl.phenotype_cells(sdata["table"], {"T": "CD3+", "B": "CD20+ CD3-"}),
        "label.Session": lambda: label_by_hand(sdata, tmp_path / "labels.jsonl"),
    }
    page = outputs()
    rows: dict[str, list[list[str]]] = {}
    current = ""
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| function"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            called = re.match(r"\[`([\w.]+)`\]", cells[0])
            current = called.group(1) if called else current
            rows.setdefault(current, []).append(cells[1:])
    assert set(rows) == set(steps)
    same: list[str] = []
    for verb, run in steps.items():
        changed = stained if verb in ("tl.translate_stain", "tl.segment_nuclei", "tl.score_ihc") else sdata
        before = fields(changed)
        run()
        told = set()
        for key, where, *_ in rows[verb]:
            named = same if key == "the same" else re.findall(r"`([^`]+)`", key) or [key]
            same = named
            place = re.match(r"`?([\w.]+)`?", where)
            assert place
            for name in named:
                told.add((place.group(1), name))
                inside = where.split("`uns`:")[1] if "`uns`:" in where else ""
                told |= {("uns", f"{name}: {k}") for k in re.findall(r"`(\w+)`", inside)}
        written = fields(changed) - before - {("obs", "region"), ("obs", "instance_id")}
        assert written, verb
        assert written <= told, f"{verb} writes what outputs.md does not list: {sorted(written - told)}"


def test_outputs_page_knows_where_intensities_go_in_a_table_of_others() -> None:
    import anndata as ad
    from spatialdata.models import TableModel

    mask = np.zeros((32, 32), int)
    mask[4:12, 4:12] = 7
    sdata = cy.io.from_arrays(np.ones((2, 32, 32)), mask, channels=["DNA", "CD8"])
    [region] = list(sdata.labels)
    genes = ad.AnnData(np.ones((1, 3)))
    genes.obs_names = ["a"]
    genes.obs["region"], genes.obs["instance_id"] = region, 7
    genes.obs["region"] = genes.obs["region"].astype("category")
    sdata["table"] = TableModel.parse(genes, region=region, region_key="region", instance_key="instance_id")
    cy.pp.measure_cells(sdata)
    assert "mean_intensity" in sdata["table"].obsm
    assert "`mean_intensity`" in outputs()


# ------------------------------------------------------------------------------------------------------------- source
@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SOURCE)) for p in FILES])
def test_imports_run_down_only(path: Path) -> None:
    here = room(path)
    assert here in MAY, f"a new room: {here}"
    for module, name, for_types in imports(path):
        parts = module.split(".")
        if parts[0] in HEAVY and here in ("models", "learning"):
            pytest.fail(f"{path.name}: {here} must not import {module}")
        if parts[0] != "cytonym":
            continue
        there = parts[1] if len(parts) > 1 else name
        if len(parts) == 1 and there not in MAY:  # `from cytonym import __version__`
            continue
        if there in ("", here, "_shared"):
            continue
        if for_types and (here, module) == ("learning", "cytonym.models.base"):  # what it trains, by name only
            continue
        assert there in MAY[here], f"{path.name}: {here} must not import from {there}"
        private = [
            part for part in [*parts[2:], name] if part != there and part.startswith("_") and not part.startswith("__")
        ]
        assert not private or for_types, f"{path.name}: private name {module}.{name} of another room"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SOURCE)) for p in FILES])
def test_files_stay_small(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 300 if path.parent.name == "models" else 400
    assert n_lines <= limit, f"{path.name} has {n_lines} lines"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(SOURCE)) for p in FILES])
def test_no_print_and_no_pickle(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"print", "torch.save", "pickle.dump", "pickle.load", "joblib.load"}
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    for load in loads:
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in load.keywords)
