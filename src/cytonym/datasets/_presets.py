"""Cell types and panels of the synthetic tissues."""

from __future__ import annotations

from dataclasses import dataclass, field

NUCLEUS, MEMBRANE, WHOLE = "nucleus", "membrane", "whole"
LOCALISATIONS = (NUCLEUS, MEMBRANE, WHOLE)
ROUND, LOBED, LONG = "round", "lobed", "long"
SHAPES = (ROUND, LOBED, LONG)


@dataclass(frozen=True)
class CellType:
    """A population: what it expresses, where, how large it is and how common."""

    name: str
    markers: dict[str, float]
    """Mean counts a pixel over the cell's area, by marker."""
    diameter_um: float = 9.0
    diameter_cv: float = 0.08
    shape: str = ROUND
    share: float = 1.0
    niche: tuple[float, float] = (0.0, 0.0)
    """How much more common it is where the first and the second field of the tissue are high (log scale)."""
    localisation: dict[str, str] = field(default_factory=dict)
    """Where its markers sit, if elsewhere than in the other types."""


@dataclass(frozen=True)
class Preset:
    """A panel and the types that it tells apart."""

    localisation: dict[str, str]
    """Marker -> where in the cell it sits; the order is that of the channels."""
    types: tuple[CellType, ...]
    dna: str | None = None
    """Marker that every cell has in its nucleus."""


IMMUNE = Preset(
    dna="DNA",
    localisation={
        "DNA": NUCLEUS, "CD45": MEMBRANE, "CD3": MEMBRANE, "CD4": MEMBRANE, "CD8": MEMBRANE, "FOXP3": NUCLEUS,
        "CD20": MEMBRANE, "CD68": WHOLE, "CD15": MEMBRANE, "panCK": WHOLE, "CD31": MEMBRANE, "Ki67": NUCLEUS,
    },
    types=(
        CellType("T helper", {"CD45": 5, "CD3": 6, "CD4": 4}, 8.0, share=2.0, niche=(-0.5, 0.8)),
        CellType("T cytotoxic", {"CD45": 5, "CD3": 6, "CD8": 5}, 8.0, share=1.5, niche=(0.2, 0.3)),
        CellType("T regulatory", {"CD45": 5, "CD3": 5, "CD4": 4, "FOXP3": 3}, 8.0, share=0.5, niche=(-0.2, 0.6)),
        CellType("B", {"CD45": 4, "CD20": 7, "Ki67": 0.8}, 8.0, share=2.0, niche=(-1.2, 1.8)),
        CellType("macrophage", {"CD45": 3, "CD68": 6, "CD4": 1.2}, 12.0, 0.12, share=1.0),
        CellType("granulocyte", {"CD45": 3, "CD15": 7}, 9.5, shape=LOBED, share=0.6, niche=(0.3, -0.8)),
        CellType("tumour", {"panCK": 8, "Ki67": 2.0}, 12.5, 0.12, share=3.0, niche=(2.0, -1.5)),
        CellType("endothelial", {"CD31": 7}, 10.0, shape=LONG, share=0.6, niche=(0.0, -0.5)),
    ),
)  # fmt: skip

# Neuroblastoma in bone marrow, as in the paper's experiment 2: 34 markers, seven coarse phenotypes.
BONE_MARROW = Preset(
    dna="DNA1",
    localisation={
        "DNA1": NUCLEUS, "CD45": MEMBRANE, "CD3": MEMBRANE, "CD4": MEMBRANE, "CD8": MEMBRANE, "GZMB": WHOLE,
        "CD20": MEMBRANE, "CD15": MEMBRANE, "CD14": MEMBRANE, "CD10": MEMBRANE, "CD11c": MEMBRANE, "CD34": MEMBRANE,
        "CD24": MEMBRANE, "GD2": MEMBRANE, "CD56": MEMBRANE, "GATA3": NUCLEUS, "SOX10": NUCLEUS, "ELAVL4": WHOLE,
        "Ki67": NUCLEUS, "HLA-DR": MEMBRANE, "CD44": MEMBRANE, "CD11b": MEMBRANE, "CD7": MEMBRANE, "CD57": MEMBRANE,
        "PD-1": MEMBRANE, "PD-L1": MEMBRANE, "FOXP3": NUCLEUS, "VIM": WHOLE, "S100B": WHOLE, "PRPH": WHOLE,
        "CXCR4": MEMBRANE, "CD274": MEMBRANE, "IDO": WHOLE, "DNA2": NUCLEUS,
    },
    types=(
        CellType("tumour", {"GD2": 5, "CD56": 5, "GATA3": 2.5, "ELAVL4": 4, "CD24": 2, "PRPH": 2, "DNA2": 8, "Ki67": 1}, 10.5, 0.12, share=2.5, niche=(2.0, 0.0)),
        CellType("granulocyte", {"CD45": 2, "CD15": 7, "CD11b": 4, "CD10": 2, "CD24": 3, "CD44": 3, "DNA2": 6}, 10.0, shape=LOBED, share=3.0, niche=(-0.8, 0.0)),
        CellType("progenitor", {"CD45": 2, "CD34": 5, "CD24": 2, "CD44": 3, "Ki67": 1.5, "HLA-DR": 2, "DNA2": 7}, 9.0, share=0.8),
        CellType("T helper", {"CD45": 5, "CD3": 5, "CD4": 4, "CD7": 3, "CD44": 2, "CXCR4": 2, "DNA2": 6}, 7.5, share=0.8, niche=(0.0, 1.2)),
        CellType("T cytotoxic", {"CD45": 5, "CD3": 5, "CD8": 5, "CD7": 3, "GZMB": 2, "CXCR4": 1, "DNA2": 6}, 7.5, share=0.7, niche=(0.0, 1.2)),
        CellType("B", {"CD45": 4, "CD20": 6, "HLA-DR": 4, "CXCR4": 3, "CD24": 1.5, "DNA2": 6}, 7.5, share=0.8, niche=(0.0, 0.9)),
        CellType("monocyte", {"CD45": 3, "CD14": 5, "CD11c": 3, "CD11b": 3, "HLA-DR": 4, "CD4": 1, "VIM": 2, "DNA2": 6}, 10.5, share=1.0),
        CellType("NK", {"CD45": 5, "CD56": 3, "GZMB": 4, "CD57": 3, "CD7": 3, "DNA2": 6}, 7.5, share=0.4, niche=(0.5, 0.5)),
        CellType("other", {"VIM": 1.5, "DNA2": 6}, 9.0, 0.15, share=1.0),
    ),
)  # fmt: skip

# Experiment 1 of the paper: five markers; the pairs 1-2, 3-4 and 5-6 have the same mean intensities and differ by
# localisation, by size and by shape.
EXPERIMENT1 = Preset(
    localisation={"M1": WHOLE, "M2": WHOLE, "M3": WHOLE, "M4": WHOLE, "M5": NUCLEUS},
    types=(
        CellType("1 centre", {"M1": 6, "M5": 6}, 10.0, share=1.5, localisation={"M1": NUCLEUS}),
        CellType("2 border", {"M1": 6, "M5": 6}, 10.0, share=1.0, localisation={"M1": MEMBRANE}),
        CellType("3 small", {"M1": 4, "M2": 5, "M5": 6}, 8.0, 0.10, share=1.2),
        CellType("4 large", {"M1": 4, "M2": 5, "M5": 6}, 12.5, 0.10, share=0.8),
        CellType("5 round", {"M3": 6, "M5": 6}, 10.5, share=1.0),
        CellType("6 lobed", {"M3": 6, "M5": 6}, 10.5, share=0.7, shape=LOBED),
        CellType("7 border", {"M2": 3, "M4": 5, "M5": 6}, 10.0, share=0.5, localisation={"M4": MEMBRANE}),
    ),
)  # fmt: skip

PRESETS = {"immune": IMMUNE, "bone_marrow": BONE_MARROW, "experiment1": EXPERIMENT1}
