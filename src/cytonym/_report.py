"""One HTML page about a run: figures, what they show, parameters, and what to do next. Needs no other file."""

from __future__ import annotations

import base64
import logging
from html import escape
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt

import cytonym as cy
from cytonym._demo import CLUSTERS, NAMED
from cytonym._report_figures import cluster_colors, gallery, maps, neighbours, tissue, umap

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from matplotlib.figure import Figure

    from cytonym._demo import Run

logger = logging.getLogger("cytonym")

N_MARKERS = 7
"""Markers on maps of all cells."""
STYLE: Any = {
    "font.size": 9,
    "figure.figsize": (2.9, 2.7),
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.grid": False,
    "text.parse_math": False,  # a dollar in the name of a marker is a dollar
}


def write_report(found: Run, path: Path) -> Path:
    """Draw the figures of a run and write the page."""
    logger.info("Drawing the report.")
    adata = found.adata
    colors = cluster_colors(adata)
    leading = found.leading_markers(N_MARKERS)
    shown = ([found.nuclear] if found.nuclear else []) + leading[: 4 - bool(found.nuclear)]
    with mpl.rc_context(STYLE):
        sections = [
            _section("tissue", "The tissue and its cells", tissue(found, shown, colors), TEXT["tissue"]),
            _section("clusters", "Phenotypes", cy.pl.markers(adata, CLUSTERS), TEXT["clusters"], _table(found, colors)),
            _section("umap", "All cells on one map", umap(adata, leading, colors), TEXT["umap"]),
            _section("map", "Where the phenotypes are", maps(found, colors), TEXT["map"]),
            _section("cells", "The cells themselves", gallery(found, shown), TEXT["cells"]),
        ]
        if found.scores is not None:
            figure = cy.pl.agreement(adata, str(found.truth), NAMED, basis="X_umap")
            sections.append(_section("truth", "Agreement with the known types", figure, TEXT["truth"], _scores(found)))
        if f"{CLUSTERS}_nhood_enrichment" in adata.uns:
            sections.append(_section("near", "Who lives next to whom", neighbours(adata), TEXT["near"]))
        sections += [
            _section(
                "normalization",
                "How each stain was read",
                cy.pl.normalization(found.sdata, table_key=found.table_key),
                TEXT["norm"],
            ),
            _section("training", "Did the training settle?", cy.pl.training(found.model), TEXT["training"]),
        ]
    sections += [_parameters(found), _next_steps(path, found.table_key)]
    path.write_text(_page(found, sections), encoding="utf-8")
    return path


TEXT = {
    "tissue": (
        "Left: a piece of the tissue in the channels named above it. Right: the same piece with a dot at every cell, coloured by the "
        "phenotype that was found for it.",
        "Dots of one colour should sit on cells that look alike on the left, and dots should sit on cells at all. Where they do "
        "not, the locations of the cells are the first thing to mend.",
    ),
    "clusters": (
        "Cells with similar embeddings form a cluster: a phenotype without a name. Colour says how strongly a marker is "
        "active in a cluster compared with all cells; size says in how many of its cells it is above the average. "
        "The numbers in the table are the chance that a cell of the cluster shows more of the marker than a cell of another one.",
        "Name clusters from this figure. A marker at 0.5 tells nothing, one near 1 defines the cluster. Clusters with the same "
        "markers may be one phenotype; a cluster without any is often debris or background.",
    ),
    "umap": (
        "Every dot is a cell; cells close together have similar embeddings. First by cluster, then by the activity of the markers that lead "
        "the clusters.",
        "A marker that defines a phenotype lights up one region and little else. Distances between far regions mean little.",
    ),
    "cells": (
        "Cells drawn at random from each cluster, in the same colours and contrast throughout. Grey lies beyond the image.",
        "This is the test that counts: do cells of a row look alike, and different from other rows? Signal that belongs to the "
        "neighbour rather than to the cell in the middle is spill-over.",
    ),
    "truth": (
        "The types of the cells are known here, from the simulation or from an expert. Each cluster was given the name of the type most of its cells have, the best name an "
        "expert could find. Rows add up to 100 %. On the map, blue cells got the right name.",
        "The training never saw these types. Agreement is the share of cells with the right name, kappa the same beyond chance (1 is "
        "perfect), ARI whether the same cells stand together whatever they are called. Mean intensity per cell, clustered in the same "
        "way, stands beside it.",
    ),
    "map": (
        "Every dot is a cell at its place in the tissue, coloured by phenotype.",
        "Compartments that you know, such as follicles, vessels or the border of a tumour, should show. Colours in stripes or "
        "squares speak of the scan or of uneven staining.",
    ),
    "near": (
        "Red: two phenotypes are neighbours in the tissue more often than chance; blue: less often. The numbers are "
        "z-scores over random shufflings of the cells.",
        "The diagonal tells which phenotypes form patches of their own kind.",
    ),
    "norm": (
        "Grey: how often each brightness occurs in the images. Blue: the curve that the network learned for this marker, from background (0) to full "
        "signal (1). Nobody set a threshold.",
        "The curve should rise where the tail of bright pixels begins. A curve far from the pixels, or a marker without any, is a stain "
        "to look at before trusting it.",
    ),
    "training": (
        "The network learns to recognise a cell after it was turned, scaled and dimmed. The curve is how wrong it still is.",
        "It should fall and flatten. Where it still falls at the end, train longer (<code>--steps</code>).",
    ),
}


# --------------------------------------------------------------------------------------------------------------- HTML
def _page(found: Run, sections: list[tuple[str, str, str]]) -> str:
    adata = found.adata
    numbers = {
        "cells": f"{adata.n_obs:,}",
        "images": len(found.sdata.images),
        "markers": len(found.model.markers),
        "phenotypes": int(sum(g != "-1" for g in adata.obs[CLUSTERS].cat.categories)),
    }
    if found.scores is not None:
        numbers["agreement"] = f"{100 * found.scores['agreement'].iloc[0]:.0f} %"
    numbers["minutes"] = f"{sum(found.seconds.values()) / 60:.1f}"
    cards = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in numbers.items())
    links = "".join(f'<a href="#{key}">{escape(title)}</a>' for key, title, _ in sections)
    style = files("cytonym").joinpath("_report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>cytonym: {escape(found.source)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>What each cell is, marker by marker</h1>
<p>{escape(found.source)}, embedded with NeXtMarker: from raw pixels, without labels, background correction or thresholds.</p>
</header>
<dl class="numbers">{cards}</dl>
<nav>{links}</nav>
{"".join(body for _, _, body in sections)}
<footer>cytonym {escape(cy.__version__)}</footer>
</main>
</body>
</html>
"""


def _section(key: str, title: str, figure: Figure, text: tuple[str, str], extra: str = "") -> tuple[str, str, str]:
    """Key, title and HTML. `text` says what is seen and what to look for, and is trusted; `title` is not."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode()
    plt.close(figure)
    width = min(int(figure.get_size_inches()[0] * 120), 1000)
    return (
        key,
        title,
        f'<section id="{key}"><h2>{escape(title)}</h2><p>{text[0]}</p><p class="look">{text[1]}</p>'
        f'<figure><img alt="{escape(title)}" width="{width}" src="data:image/png;base64,{data}"></figure>{extra}'
        "</section>\n",
    )


def _table(found: Run, colors: dict[str, str]) -> str:
    """Clusters with their size and leading markers."""
    adata = found.adata
    sizes = adata.obs[CLUSTERS].value_counts()
    if not found.top:
        return ""
    rows = []
    for group, markers in found.top.items():
        leading = ", ".join(f"{escape(m)} {auroc:.2f}" for m, auroc in markers.items()) or "none"
        name = "left over" if group == "-1" else group
        swatch = f'<span class="swatch" style="background:{colors[group]}"></span>'
        share = f"{100 * sizes[group] / adata.n_obs:.1f} %"
        rows.append([f"{swatch}{escape(name)}", f"{sizes[group]:,}", share, leading])
    return _html_table(["cluster", "cells", "share", "leading markers"], rows, numeric=(1, 2))


def _scores(found: Run) -> str:
    scores = {} if found.scores is None else found.scores.to_dict("index")
    rows = [
        [
            escape(str(name)),
            f"{100 * s['agreement']:.1f} %",
            f"{s['kappa']:.3f}",
            f"{s['ari']:.3f}",
            f"{s['clusters']:.0f}",
        ]
        for name, s in scores.items()
    ]
    return _html_table(["clusters of", "agreement", "kappa", "ARI", "clusters"], rows, numeric=(1, 2, 3, 4))


def _parameters(found: Run) -> tuple[str, str, str]:
    model, about = found.model, found.adata.uns["nextmarker"]["model"]
    rows = [
        ("data", found.source),
        ("markers", ", ".join(model.markers)),
        ("cells", "found in the nuclear channel" if found.cells_found else "given"),
        ("window", f"{model.window_px} x {model.window_px} pixels around each cell"),
        (
            "training",
            ", ".join(f"{k} {v}" for k, v in model.provenance.items() if k in ("steps", "batch_size", "seed")),
        ),
        ("weights (SHA-256)", str(about["weights_sha256"])),
        ("clusters", "PhenoGraph on the embedding, 30 neighbours"),
        ("time", ", ".join(f"{step} {value:.0f} s" for step, value in found.seconds.items())),
    ]
    table = _html_table(["", ""], [[escape(k), escape(v)] for k, v in rows])
    body = f'<section id="parameters"><h2>Parameters</h2>{table}</section>\n'
    return "parameters", "Parameters", body


def _next_steps(path: Path, table_key: str) -> tuple[str, str, str]:
    out = path.parent
    code = f"""import cytonym as cy, scanpy as sc, spatialdata as sd

sdata = sd.read_zarr({str(out / "tissue.zarr")!r})
adata = sdata[{table_key!r}]

# name the clusters, once you know them
adata.obs["phenotype"] = adata.obs["{CLUSTERS}"].map({{"0": "T cell", "1": "tumour"}})
cy.io.save_table(sdata, {table_key!r})

# embed more samples with the same model: the numbers can be compared
other = sd.read_zarr("other.zarr")
cy.tl.embed_cells(other, {str(out / "model")!r})"""
    body = (
        '<section id="next"><h2>What to do next</h2>'
        "<ul><li>Name the clusters from the dot plot and the gallery, and merge those that are one phenotype.</li>"
        "<li>Run it on a field of yours: <code>cytonym demo --data FOLDER</code>, a folder with a TIFF image and, if you have "
        "them, a mask or a table of centres.</li>"
        "<li>With several samples, train once on all of them: <code>cytonym train A.zarr B.zarr --out model</code>, then "
        "<code>cytonym embed A.zarr B.zarr --model model</code>.</li></ul>"
        f"<p>Files beside this page: <code>tissue.zarr</code> (images, cells, table), <code>model</code> (the trained "
        f"network), <code>summary.json</code> (the numbers).</p><pre><code>{escape(code)}</code></pre></section>\n"
    )
    return "next", "What to do next", body


def _html_table(head: Iterable[str], rows: Iterable[Iterable[str]], numeric: tuple[int, ...] = ()) -> str:
    """Cells are trusted HTML."""

    def line(cells: Iterable[str], tag: str) -> str:
        kind = [' class="n"' if i in numeric else "" for i in range(99)]
        return "<tr>" + "".join(f"<{tag}{kind[i]}>{cell}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    titles = list(head)
    top = f"<thead>{line(titles, 'th')}</thead>" if any(titles) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(line(r, "td") for r in rows)}</tbody></table></div>'
