"""Draw the figure of the README: `python docs/overview.py`. The tissue is the phantom, the numbers are the model's."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from PIL import Image

import cytonym as cy

OUT = Path(__file__).parent / "_static" / "overview.png"
INK, SOFT = "#22303c", "#5b6b79"
GLOW = {"DNA": "#3050d0", "CD20": "#ffb000", "CD3": "#ff4fa3", "panCK": "#2ed98a"}
MARKERS = ["CD3", "CD4", "CD8", "CD20", "CD68", "panCK"]
SHOWN = {"T helper": "CD4", "T cytotoxic": "CD8", "B": "CD20", "macrophage": "CD68", "tumour": "panCK"}
COLORS = {
    "T helper": "#CC79A7", "T cytotoxic": "#D55E00", "T regulatory": "#882255", "B": "#E69F00", "macrophage": "#56B4E9",
    "granulocyte": "#0072B2", "endothelial": "#F0E442", "tumour": "#009E73",
}  # fmt: skip
SIDE, WINDOW = 150, 13

sdata = cy.datasets.tissue_phantom(rng=0)
cy.tl.embed_cells(sdata)
adata = sdata["table"]
cy.tl.cluster_cells(adata, use_rep="X_nextmarker")
names = pd.crosstab(adata.obs["phenograph"], adata.obs["cell_type"]).idxmax(axis=1).to_dict()
adata.obs["phenotype"] = adata.obs["phenograph"].map(names).astype(str)

image = sdata["image"]
mask = np.asarray(sdata["cells"])
xy = adata.obsm["spatial"]
ids = adata.obs["instance_id"].to_numpy()
attributions = adata.obsm["nextmarker_attributions"]
scaled = (attributions / attributions.quantile(0.99)).clip(0, 1)

# the piece of tissue with the most even mixture of phenotypes
corners = [(y, x) for y in range(15, mask.shape[0] - SIDE - 15, 20) for x in range(15, mask.shape[1] - SIDE - 15, 20)]


def mixture(corner: tuple[int, int]) -> float:
    inside = ((xy >= corner[::-1]) & (xy < np.add(corner[::-1], SIDE))).all(axis=1)
    share = adata.obs["phenotype"][inside].value_counts(normalize=True)
    return float(-(share * np.log(share)).sum())


y0, x0 = max(corners, key=mixture)
crop = np.s_[y0 : y0 + SIDE, x0 : x0 + SIDE]


def pixels(channel: str) -> np.ndarray:
    whole = np.asarray(image.sel(c=channel), dtype=float)
    return np.clip(whole / np.quantile(whole, 0.995), 0, 1)


raw = {channel: pixels(channel) for channel in {*GLOW, *MARKERS}}
glow = sum(raw[c][crop][..., None] * np.array(mpl.colors.to_rgb(color)) for c, color in GLOW.items()).clip(0, 1)

# of each type, a cell with at least the median signal of its type whose neighbours are far
margin = WINDOW
inside = ((xy > (x0 + margin, y0 + margin)) & (xy < (x0 + SIDE - margin, y0 + SIDE - margin))).all(axis=1)
chosen = []
for kind, marker in SHOWN.items():
    here = np.flatnonzero(inside & (adata.obs["phenotype"] == kind) & (adata.obs["cell_type"] == kind))
    here = here[scaled[marker].iloc[here] >= scaled[marker].iloc[here].median()]
    far = [min((np.hypot(*(xy[i] - xy[j])) for j in chosen), default=99) for i in here]
    clear = [np.sort(np.hypot(*(xy - xy[i]).T))[1] + 0.05 * f for i, f in zip(here, far, strict=True)]
    chosen.append(int(here[np.argmax(clear)]))

plt.rcParams.update({"font.size": 15, "font.family": "DejaVu Sans", "text.color": INK})
figure = plt.figure(figsize=(16, 6.3), facecolor="white")


def axes(left: float, bottom: float, width: float, height: float) -> plt.Axes:
    """Axes placed in inches, without frame and ticks."""
    ax = figure.add_axes((left / 16, bottom / 6.3, width / 16, height / 6.3))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def heading(left: float, title: str, text: str) -> None:
    figure.text(left / 16, 5.93 / 6.3, title, fontsize=19, fontweight="bold", va="center")
    figure.text(left / 16, 5.55 / 6.3, text, fontsize=14, color=SOFT, va="center")


tissue = axes(0.3, 0.75, 4.6, 4.6)
tissue.imshow(glow, interpolation="nearest")
for number, i in enumerate(chosen, 1):
    x, y = np.floor(xy[i] - (x0, y0)) - WINDOW // 2 - 0.5
    tissue.add_patch(Rectangle((x, y), WINDOW, WINDOW, fill=False, edgecolor="white", linewidth=2.2))
    tissue.text(x + WINDOW + 1.2, y + 1, str(number), color="white", fontsize=16, fontweight="bold", va="top")
for k, (channel, color) in enumerate(GLOW.items()):
    figure.text((0.3 + 1.1 * k) / 16, 0.42 / 6.3, "■", color=color, fontsize=17, va="center")
    figure.text((0.55 + 1.1 * k) / 16, 0.42 / 6.3, channel, fontsize=14, va="center")
heading(0.3, "Raw pixels around cells", "no mask, no thresholds, no labels")

step, dots, top = 0.6, 0.45, 4.85
for row, i in enumerate(chosen):
    x, y = (np.floor(xy[i]) - WINDOW // 2).astype(int)
    for column, marker in enumerate(MARKERS):
        ax = axes(5.75 + step * column, top - 0.8 * row - 0.53, 0.56, 0.56)
        ax.imshow(raw[marker][y : y + WINDOW, x : x + WINDOW], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    figure.text(
        5.55 / 16,
        (top - 0.8 * row - 0.25) / 6.3,
        str(row + 1),
        fontsize=16,
        fontweight="bold",
        ha="center",
        va="center",
    )
numbers = axes(9.95, top - 0.8 * 4 - 0.65, dots * 6, 0.8 * 5)
numbers.set(xlim=(0, 6), ylim=(5, 0))
for row, i in enumerate(chosen):
    for column, marker in enumerate(MARKERS):
        value = float(scaled[marker].iloc[i])
        numbers.scatter(column + 0.5, row + 0.5, s=60 + 420 * value, c=[plt.cm.Reds(0.06 + 0.84 * value)], edgecolors="#8a949c", linewidths=0.7)  # fmt: skip
for k, marker in enumerate(MARKERS):
    for left in (5.75 + 0.28 + step * k, 9.95 + dots / 2 + dots * k):
        figure.text(left / 16, 0.72 / 6.3, marker, fontsize=12.5, rotation=45, ha="right", va="center", rotation_mode="anchor")  # fmt: skip
figure.text(9.66 / 16, (top - 0.8 * 2 - 0.25) / 6.3, "→", fontsize=24, color=SOFT, ha="center", va="center")
heading(5.4, "One number a marker", "windows of five cells, and what each marker says in them")

phenotypes = axes(12.95, 2.45, 2.9, 2.9)
color_of = {i: mpl.colors.to_rgb(COLORS[p]) for i, p in zip(ids, adata.obs["phenotype"], strict=True)}
painted = np.ones((SIDE, SIDE, 3))
for label in np.unique(mask[crop]):
    if label and label in color_of:
        painted[mask[crop] == label] = color_of[label]
edge = np.zeros((SIDE, SIDE), bool)
edge[1:] |= mask[crop][1:] != mask[crop][:-1]
edge[:, 1:] |= mask[crop][:, 1:] != mask[crop][:, :-1]
painted[edge] = 1
phenotypes.imshow(painted, interpolation="nearest")
seen = [p for p in COLORS if p in set(adata.obs["phenotype"])]
for k, name in enumerate(seen):
    row, column = k % 4, k // 4
    figure.text(
        (12.95 + 1.5 * column) / 16, (2.12 - 0.42 * row) / 6.3, "●", color=COLORS[name], fontsize=15, va="center"
    )
    figure.text((13.18 + 1.5 * column) / 16, (2.12 - 0.42 * row) / 6.3, name, fontsize=13, va="center")
heading(12.95, "Phenotypes", "clusters, on the tissue")

buffer = io.BytesIO()
figure.savefig(buffer, dpi=100, facecolor="white")
picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
picture.save(OUT, optimize=True)
