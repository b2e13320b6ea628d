"""Figures of the report that are made of what scanpy and matplotlib have; the others are those of `pl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc

import cytonym as cy
from cytonym._demo import ATTRIBUTIONS, CLUSTERS
from cytonym.data.source import resolve

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from cytonym._demo import Run

FIELD_PX = 400
"""Side of the piece of tissue that is shown, at most."""
MAX_MAPS = 9
"""Images that are shown whole."""
GLOW = ("#3d7bff", "#ffb000", "#ff4fa3", "#2ed98a")
"""Added up on black; blue is for the nuclei."""


def cluster_colors(adata: AnnData) -> dict[str, str]:
    """One colour a cluster, kept in the table where scanpy looks for it."""
    groups = [str(g) for g in adata.obs[CLUSTERS].cat.categories]
    palette = sc.pl.palettes.default_20 if len(groups) <= 20 else sc.pl.palettes.godsnot_102
    colors = {g: "#b8bec4" if g == "-1" else palette[i % len(palette)] for i, g in enumerate(groups)}
    adata.uns[f"{CLUSTERS}_colors"] = list(colors.values())
    return colors


def glow_colors(found: Run, channels: list[str]) -> dict[str, str]:
    """Colours of up to four channels; the nuclear one is blue."""
    glow = GLOW if found.nuclear in channels else GLOW[1:] + GLOW[:1]
    return dict(zip(channels, glow, strict=False))


def tissue(found: Run, channels: list[str], colors: dict[str, str]) -> Figure:
    """A piece of the first image: composite, and cells coloured by cluster."""
    source = resolve(found.sdata, table_key=found.table_key, channels=channels)[0]
    _, height, width = source.shape
    side = min(height, width, FIELD_PX)
    y0, x0 = (height - side) // 2, (width - side) // 2
    piece = np.asarray(source.pixels[:, y0 : y0 + side, x0 : x0 + side])[source.channel_index].astype(np.float32)
    glow = glow_colors(found, channels)
    image = np.zeros((side, side, 3), dtype=np.float32)
    for pixels, color in zip(piece, glow.values(), strict=True):
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
    right.imshow(image[..., 2] * 0.5, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    spacing = 5.4 * 72 / max(seen.sum(), 1) ** 0.5  # points between neighbours
    size = float(np.clip((0.5 * spacing) ** 2, 4, 90))
    right.scatter(
        x[seen],
        y[seen],
        s=size,
        c=[colors[str(c)] for c in cluster[seen]],
        linewidths=min(0.4, size / 80),
        edgecolors="white",
    )
    for ax in (left, right):
        ax.set(xticks=[], yticks=[], xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
        ax.spines[:].set_visible(False)
    _key(left, glow)
    counts = cluster[seen].astype(str).value_counts()
    if len(counts) <= 16:  # the whole map below names them, too
        _key(right, {g: colors[g] for g in colors if g in counts.index})
    plt.close(figure)
    return figure


def _key(ax: Any, colors: dict[str, str]) -> None:
    """Names in their colours, above the axes."""
    handles = [plt.Line2D([], [], marker="s", linestyle="", color=c, label=n) for n, c in colors.items()]
    ax.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, ncols=16, frameon=False,
        handletextpad=0, columnspacing=0.5, borderaxespad=0.2, borderpad=0,
    )  # fmt: skip


def umap(adata: AnnData, markers: list[str], colors: dict[str, str]) -> Figure:
    view = cy.get.markers(adata, ATTRIBUTIONS)
    size = float(np.clip(60_000 / max(adata.n_obs, 1), 2, 40))
    return sc.pl.umap(
        view, color=[CLUSTERS, *markers], palette=list(colors.values()), size=size, ncols=4, frameon=False, cmap="viridis",
        vmax="p99", legend_loc="on data", legend_fontsize=8, legend_fontoutline=2, wspace=0.12, hspace=0.18, show=False,
        return_fig=True,
    )  # fmt: skip


def gallery(found: Run, markers: list[str]) -> Figure:
    sizes = found.adata.obs[CLUSTERS].value_counts()
    groups = [str(g) for g in sizes.index if sizes[g] > 0][:16]
    smallest = min(min(source.shape[1:]) for source in resolve(found.sdata, table_key=found.table_key))
    size_px = min(max(20, 2 * found.model.window_px), smallest)
    return cy.pl.patches(
        found.sdata, glow_colors(found, markers), groupby=CLUSTERS, groups=groups, n=11, size_px=size_px,
        table_key=found.table_key,
    )  # fmt: skip


def neighbours(adata: AnnData) -> Figure:
    z = np.asarray(adata.uns[f"{CLUSTERS}_nhood_enrichment"]["zscore"], dtype=float)
    names = [str(c) for c in adata.obs[CLUSTERS].cat.categories]
    limit = max(float(np.nanquantile(np.abs(z), 0.95)), 1.0)
    side = max(3.2, 0.28 * len(names) + 1.2)
    figure, ax = plt.subplots(figsize=(side + 0.9, side), layout="constrained")
    shown = ax.imshow(z, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    ax.set(xlabel="neighbour", ylabel="cluster")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure.colorbar(shown, ax=ax, shrink=0.7, label="z-score", extend="both")
    plt.close(figure)
    return figure


def maps(found: Run, colors: dict[str, str]) -> Figure:
    """Every image with its cells as dots, coloured by cluster; the first few images where there are many."""
    adata = found.adata
    region = adata.obs[adata.uns["spatialdata_attrs"]["region_key"]].astype(str)
    names = list(dict.fromkeys(region))[:MAX_MAPS]
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    points = {name: adata.obsm["spatial"][(region == name).to_numpy()] for name in names}
    shape = float(np.median([np.ptp(xy[:, 1]) / max(np.ptp(xy[:, 0]), 1e-9) for xy in points.values()]))
    width = {1: min(7.0, 5.6 / max(shape, 0.2)), 2: 4.4, 3: 3.2}[columns]
    height = min(width * float(np.clip(shape, 0.3, 2)), 8)
    figure = plt.figure(figsize=(max(width * columns, 6.5), (height + 0.25) * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06})
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, names, strict=False):
        xy, cluster = points[name], adata.obs[CLUSTERS][(region == name).to_numpy()].astype(str)
        spacing = 72 * (width * height / max(len(xy), 1)) ** 0.5  # points between neighbours
        size = float(np.clip((0.55 * spacing) ** 2, 0.6, 60))
        ax.scatter(*xy.T, s=size, c=[colors[c] for c in cluster], linewidths=0)
        ax.set(aspect="equal", title=_short(name) if len(names) > 1 else "")
        ax.margins(0.02)
        ax.invert_yaxis()
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=c, label=g) for g, c in colors.items()]
    columns = -(-len(handles) // -(-len(handles) // 12))
    handles = [handle for column in range(columns) for handle in handles[column::columns]]  # legends fill columns
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, handletextpad=0.1, columnspacing=0.9
    )
    plt.close(figure)
    return figure


def _short(name: str, limit: int = 34) -> str:
    name = name.removesuffix("_cells").removesuffix("_centers")
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
