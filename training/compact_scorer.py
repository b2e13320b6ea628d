"""Train the scorer that ships with the package, on synthetic tissues of every kind, and write it into the package.

    python training/compact_scorer.py [--steps N] [--tissues N] [--resume FOLDER] [--out FOLDER]

No image of a real tissue takes part. Each tissue has random cell types, markers, sizes, density, spill-over, blur, background, noise,
staining artefacts and errors of the mask; what is positive is known. The last twentieth of the tissues chooses the weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from skimage.segmentation import find_boundaries

from cytonym.data.scoring_tiles import NEGATIVE, POSITIVE, UNDEFINED, Plot, ScoringTiles
from cytonym.datasets._presets import LOCALISATIONS, SHAPES, CellType
from cytonym.datasets._tissue import Tissue
from cytonym.learning.fit import fit
from cytonym.learning.scorer_views import ScorerViews
from cytonym.models import load, save
from cytonym.models.nimbus import Nimbus, NimbusConfig
from cytonym.models.scorer_training import ScorerRecipe, ScorerTraining

SIDE = 256  # micrometres, and pixels of the network
MARKERS = 10
CONFIG = NimbusConfig(filters=8, depth=4)
VIEWS = ScorerViews(zoom=(0.8, 1.25), shear_deg=5, noise=(0.001, 0.03), blur=(0.1, 0.8), contrast=(0.7, 1.3), gain=0.3)
UNSPECIFIC, CLEAR = (
    0.12,
    0.25,
)  # shares of a marker's level up to which a cell is negative, and from which it is positive
OUT = Path(__file__).parents[1] / "src" / "cytonym" / "models" / "compact"


def tissue(seed: int) -> Plot:
    """One tissue with random markers, at the network's resolution."""
    rng = np.random.default_rng([1, seed])
    zoom = 2 if rng.random() < 0.5 else 1  # images of 0.5 micrometres, or of 1
    names = [f"m{i}" for i in range(MARKERS)]
    localisation = {name: str(rng.choice(LOCALISATIONS)) for name in names}
    types, level = _types(rng, names)
    sparse = rng.random() < 0.25  # a few ions a cell, as of mass spectrometers; else up to a camera's thousands
    exposure = np.exp(rng.uniform(*np.log((0.02, 0.2) if sparse else (0.15, 60))))
    drawn = Tissue(
        types=types,
        localisation=localisation,
        dna=None,
        n_cells=int((SIDE / rng.uniform(7.0, 13.0)) ** 2),
        size_px=SIDE * zoom,
        pixel_size=rng.uniform(0.8, 1.25) / zoom,
        gain=(gain := exposure * np.exp(0.5 * rng.standard_normal(MARKERS))),
        spillover=float(rng.uniform(0.0, 0.8)),
        background=float(rng.choice([0.0, rng.uniform(0, 0.4), 0.0 if sparse else rng.uniform(0, 1.5)])),
        blur_px=float(rng.uniform(0.2, 1.2) * zoom),
        intensity_cv=float(rng.uniform(0.15, 0.6)),
        entropy=(2, seed),
    )
    pixels, labels = drawn.draw(0, drawn.size_px, 0, drawn.size_px)
    cells = drawn.cells().sort_values("id")
    expressed = np.array([[t.markers.get(name, 0.0) for name in names] for t in types])[cells["type"].to_numpy()]
    highest = np.maximum(expressed.max(axis=0), 0.5 * level)
    activity = np.where(
        expressed <= UNSPECIFIC * highest, NEGATIVE, np.where(expressed < CLEAR * highest, UNDEFINED, POSITIVE)
    )
    markers = np.stack([_spoiled(layer.astype(np.float32), rng, zoom) for layer in pixels])
    labels = _wrong_mask(labels, rng)
    interior = (labels > 0) & ~find_boundaries(labels, mode="inner", connectivity=1)
    if zoom == 2:
        markers = markers.reshape(MARKERS, SIDE, 2, SIDE, 2).mean(axis=(2, 4))
        interior, labels = interior[::2, ::2], labels[::2, ::2]
    for m, layer in enumerate(markers):
        bright = layer[layer > 0]
        factor = np.quantile(bright, 0.999) if len(bright) else 1.0
        if (
            not (activity[:, m] == POSITIVE).any() and expressed[:, m].any()
        ):  # other images of the set have positive cells
            factor = max(factor, 3 * level[m] * gain[m])
        layer /= factor * np.exp(0.3 * rng.standard_normal())
    layers = np.clip(markers, 0, 1).astype(np.float16)
    return Plot(layers, interior, labels.astype(np.int32) - 1, activity.astype(np.int8), np.arange(MARKERS))


def _types(rng: np.random.Generator, names: list[str]) -> tuple[tuple[CellType, ...], np.ndarray]:
    """Between 3 and 9 populations, and the level of each marker.

    Some markers are everywhere, some nowhere, most in one or a few types. Half of them stick a little to all other cells, too.
    """
    n = int(rng.integers(3, 10))
    level = np.exp(rng.uniform(np.log(1.5), np.log(10), len(names)))
    frequency = rng.choice([0.0, 0.1, 0.2, 0.35, 0.6, 0.9], len(names), p=[0.08, 0.26, 0.26, 0.2, 0.12, 0.08])
    has = rng.random((n, len(names))) < frequency
    for m in np.flatnonzero((frequency > 0) & ~has.any(axis=0)):
        has[rng.integers(n), m] = True
    strength = level * np.exp(0.4 * rng.standard_normal((n, len(names))))
    weak = (rng.random((n, len(names))) < 0.08) * rng.uniform(0.05, 0.3, (n, len(names)))
    sticky = (
        (rng.random(len(names)) < 0.5) * rng.uniform(0, UNSPECIFIC, len(names)) * rng.uniform(0.5, 1, (n, len(names)))
    )
    strength = np.where(has, strength, level * np.maximum(weak, sticky))
    shares = np.exp(1.1 * rng.standard_normal(n))
    types = tuple(
        CellType(
            f"type {t}",
            {name: float(strength[t, m]) for m, name in enumerate(names) if strength[t, m] > 0},
            diameter_um=float(rng.uniform(6.5, 14)),
            diameter_cv=float(rng.uniform(0.05, 0.2)),
            shape=str(rng.choice(SHAPES, p=[0.7, 0.1, 0.2])),
            share=float(shares[t]),
            niche=(float(rng.normal(0, 1.2)), float(rng.normal(0, 1.2))),
        )
        for t in range(n)
    )
    return types, level


def _spoiled(layer: np.ndarray, rng: np.random.Generator, zoom: int) -> np.ndarray:
    """What staining and instruments add to one channel."""
    peak = max(float(np.quantile(layer, 0.999)), 1.0)
    if rng.random() < 0.3:  # a camera: offset, smooth autofluorescence, reading noise
        haze = gaussian_filter(rng.standard_normal(layer.shape), 25 * zoom)
        layer = layer + peak * rng.uniform(0, 0.15) * (1 + haze / np.abs(haze).max())
        layer = layer + peak * rng.uniform(0, 0.03) * rng.standard_normal(layer.shape)
    if rng.random() < 0.3:  # specks and aggregates
        specks = (rng.random(layer.shape) < rng.uniform(0, 0.002) / zoom**2).astype(np.float32)
        layer = layer + peak * rng.uniform(0.5, 3) * gaussian_filter(specks, 0.6 * zoom) * 6
    if rng.random() < 0.3:  # denoising that removes single counts
        layer = np.where(gaussian_filter(layer, zoom) < rng.uniform(0, 0.1) * peak, 0, layer)
    if rng.random() < 0.3:
        layer = peak * np.clip(layer / peak, 0, None) ** rng.uniform(0.6, 1.4)
    return np.clip(layer, 0, None).astype(np.float32)


def _wrong_mask(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Masks that are a little off: shifted, shrunken or grown, cells that were not found, discs."""
    choice = rng.random()
    if choice < 0.15:
        labels = np.roll(labels, tuple(rng.integers(-2, 3, 2)), axis=(0, 1))
    elif choice < 0.3:
        labels = np.where(find_boundaries(labels, mode="inner", connectivity=1), 0, labels)
    elif choice < 0.45:
        grown = np.zeros_like(labels)
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            grown = np.maximum(grown, np.roll(labels, (dy, dx), axis=(0, 1)))
        labels = np.where((labels == 0) & binary_dilation(labels > 0), grown, labels)
    if rng.random() < 0.3:
        lost = rng.random(labels.max() + 1) < 0.05
        lost[0] = False
        labels = np.where(lost[labels], 0, labels)
    return labels


def main() -> None:
    """Draw the tissues, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tissues", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--start", type=Path, help="checkpoint to train further; default: new weights")
    parser.add_argument("--seed", type=int, default=0, help="of the tissues")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--resume", type=Path, help="folder for the state of the training")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    plots = [tissue(10_000 * options.seed + i) for i in range(options.tissues)]
    n_judged = max(1, options.tissues // 20)
    recipe = ScorerRecipe(
        options.steps, options.batch_size, options.rate, final_rate=0.0, warmup=0.03, constant=0.0, views=VIEWS,  # type: ignore[arg-type]
        robust_from=1.0, judge_every=250,
    )  # fmt: skip
    network = load(options.start) if options.start else Nimbus.from_seed(CONFIG, markers=["any"])
    before = str(network.provenance.get("trained on", ""))
    judged = list(ScoringTiles(plots[:n_judged], SIDE, 1, 1).all_tiles())
    training = ScorerTraining(network, recipe, MARKERS, judged)
    tiles = ScoringTiles(plots[n_judged:], recipe.tile_px, recipe.batch_size, recipe.steps)
    fit(training, tiles, recipe, checkpoint_dir=options.resume)  # type: ignore[arg-type]
    found = training.finished()
    found.provenance = {
        "trained on": "; ".join(
            filter(
                None,
                [
                    before,
                    f"{len(plots) - n_judged} synthetic tissues, {recipe.steps} steps of {recipe.batch_size} tiles",
                ],
            )
        ),
        "validation F1": round(float(training.best_score), 4),
        "licence": "BSD-3-Clause",
    }
    save(found, options.out, overwrite=True)


if __name__ == "__main__":
    main()
