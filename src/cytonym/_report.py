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
import numpy as np
import scanpy as sc

import cytonym as cy
from cytonym._demo import CLUSTERS, MAX_UMAP_MARKERS, NAMED
from cytonym.data.source import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure

    from cytonym._demo import Run

logger = logging.getLogger("cytonym")

FIELD_PX = 400
"""Side of the piece of tissue that is shown, at most."""
GLOW = ("#3d7bff", "#ffb000", "#ff4fa3", "#2ed98a")
"""Added up on black; blue is for the nuclei."""
STYLE: Any = {
    "font.size": 9,
    "figure.figsize": (2.9, 2.7),
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.grid": False,
}


def write_report(found: Run, path: Path) -> Path:
    """Draw the figures of a run and write the page."""
    logger.info("Drawing the report.")
    adata = found.adata
    colors = _cluster_colors(adata)
    leading = found.leading_markers(MAX_UMAP_MARKERS)
    shown = ([found.nuclear] if found.nuclear else []) + leading[: 4 - bool(found.nuclear)]
    with mpl.rc_context(STYLE):
        sections = [
            _section("tissue", "The tissue and its cells", _tissue(found, shown, colors), TEXT["tissue"]),
            _section("clusters", "Phenotypes", cy.pl.markers(adata, CLUSTERS), TEXT["clusters"], _table(found, colors)),
            _section("umap", "All cells on one map", _umap(adata, leading, colors), TEXT["umap"]),
            _section("cells", "The cells themselves", _gallery(found, shown), TEXT["cells"]),
        ]
        if found.truth is not None:
            figure = cy.pl.agreement(adata, found.truth, NAMED, basis="X_umap")
            sections.append(_section("truth", "Agreement with the known types", figure, TEXT["truth"], _scores(found)))
        if f"{CLUSTERS}_nhood_enrichment" in adata.uns:
            sections.append(_section("near", "Who lives next to whom", _neighbours(adata), TEXT["near"]))
        sections += [
            _section("normalization", "How each stain was read", cy.pl.normalization(found.sdata), TEXT["norm"]),
            _section("training", "Did the training settle?", cy.pl.training(found.model), TEXT["training"]),
        ]
    sections += [_parameters(found), _next_steps(path)]
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
        "Cells drawn at random from each cluster, in the same colours and contrast throughout.",
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


# ------------------------------------------------------------------------------------------------------------ figures
def _cluster_colors(adata: AnnData) -> dict[str, str]:
    """One colour a cluster, kept in the table where scanpy looks for it."""
    groups = [str(g) for g in adata.obs[CLUSTERS].cat.categories]
    palette = sc.pl.palettes.default_20 if len(groups) <= 20 else sc.pl.palettes.godsnot_102
    colors = {g: "#b8bec4" if g == "-1" else palette[i % len(palette)] for i, g in enumerate(groups)}
    adata.uns[f"{CLUSTERS}_colors"] = list(colors.values())
    return colors


def _tissue(found: Run, channels: list[str], colors: dict[str, str]) -> Figure:
    """A piece of the first image: composite, and cells coloured by cluster."""
    source = resolve(found.sdata, channels=channels)[0]
    _, height, width = source.shape
    side = min(height, width, FIELD_PX)
    y0, x0 = (height - side) // 2, (width - side) // 2
    piece = np.asarray(source.pixels[:, y0 : y0 + side, x0 : x0 + side])[source.channel_index].astype(np.float32)
    glow = GLOW if found.nuclear in channels else GLOW[1:] + GLOW[:1]
    image = np.zeros((side, side, 3), dtype=np.float32)
    for pixels, color in zip(piece, glow, strict=False):
        low, high = np.quantile(pixels, [0.02, 0.997])
        image += np.clip((pixels - low) / max(high - low, 1e-6), 0, 1)[..., None] * mpl.colors.to_rgb(color)
    image = np.clip(image, 0, 1)

    obs = found.adata.obs
    attrs = found.adata.uns["spatialdata_attrs"]
    here = obs[obs[attrs["region_key"]].astype(str) == source.region]
    cluster = here.set_index(attrs["instance_key"])[CLUSTERS].astype(object).reindex(source.instance_ids)
    y, x = source.centers.T - np.array([[y0], [x0]]) - 0.5
    seen = cluster.notna().to_numpy() & (y >= 0) & (x >= 0) & (y < side) & (x < side)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.9), layout="constrained")
    left.imshow(image, interpolation="nearest")
    right.imshow(image.mean(axis=2) * 0.55, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    spacing = 5.4 * 72 / max(seen.sum(), 1) ** 0.5  # points between neighbours
    size = float(np.clip((0.5 * spacing) ** 2, 4, 90))
    right.scatter(
        x[seen], y[seen], s=size, c=[colors[str(c)] for c in cluster[seen]], linewidths=0.3, edgecolors="black"
    )
    for ax in (left, right):
        ax.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
        ax.spines[:].set_visible(False)
    _key(left, dict(zip(channels, glow, strict=False)))
    counts = cluster[seen].astype(str).value_counts()
    _key(right, {g: colors[g] for g in colors if g in counts.index})
    plt.close(figure)
    return figure


def _key(ax: Any, colors: dict[str, str]) -> None:
    """Names in their colours, above the axes."""
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=c, label=n) for n, c in colors.items()]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(len(handles), 9), frameon=False,
        handletextpad=0.2, columnspacing=1.0, borderaxespad=0.2, borderpad=0,
    )  # fmt: skip


def _umap(adata: AnnData, markers: list[str], colors: dict[str, str]) -> Figure:
    view = cy.get.markers(adata, "nextmarker_attributions")
    size = float(np.clip(60_000 / max(adata.n_obs, 1), 2, 40))
    return sc.pl.umap(
        view, color=[CLUSTERS, *markers], palette=list(colors.values()), size=size, ncols=4, frameon=False, cmap="viridis",
        vmax="p99", legend_loc="on data", legend_fontsize=8, legend_fontoutline=2, wspace=0.12, hspace=0.18, show=False,
        return_fig=True,
    )  # fmt: skip


def _gallery(found: Run, markers: list[str]) -> Figure:
    sizes = found.adata.obs[CLUSTERS].value_counts()
    groups = [str(g) for g in sizes.index if sizes[g] > 0][:12]
    size_px = max(20, 2 * found.model.window_px)
    return cy.pl.patches(found.sdata, markers, groupby=CLUSTERS, groups=groups, n=12, size_px=size_px)


def _neighbours(adata: AnnData) -> Figure:
    z = np.asarray(adata.uns[f"{CLUSTERS}_nhood_enrichment"]["zscore"], dtype=float)
    names = [str(c) for c in adata.obs[CLUSTERS].cat.categories]
    limit = max(float(np.nanquantile(np.abs(z), 0.95)), 1.0)
    side = max(3.2, 0.34 * len(names) + 1.4)
    figure, ax = plt.subplots(figsize=(side + 0.9, side), layout="constrained")
    shown = ax.imshow(z, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    ax.set(xlabel="neighbour", ylabel="cluster")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure.colorbar(shown, ax=ax, shrink=0.7, label="z-score", extend="both")
    plt.close(figure)
    return figure


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
    width = int(figure.get_size_inches()[0] * 96)
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
        leading = ", ".join(f"{escape(m)} {auroc:.2f}" for m, auroc in markers.items())
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


def _next_steps(path: Path) -> tuple[str, str, str]:
    out = path.parent
    code = f"""import cytonym as cy, scanpy as sc, spatialdata as sd

sdata = sd.read_zarr({str(out / "tissue.zarr")!r})
adata = sdata["table"]

# name the clusters, once you know them
adata.obs["phenotype"] = adata.obs["{CLUSTERS}"].map({{"0": "T cell", "1": "tumour"}})
cy.io.save_table(sdata)

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
