from ._classify_cells import classify_cells as classify_cells
from ._cluster_cells import cluster_cells as cluster_cells
from ._compare_labels import LabelComparison as LabelComparison
from ._compare_labels import compare_labels as compare_labels
from ._embed_cells import embed_cells as embed_cells
from ._explain_cells import explain_cells as explain_cells
from ._fit_classifier import fit_classifier as fit_classifier
from ._fit_encoder import fit_encoder as fit_encoder
from ._label_budget import label_budget as label_budget
from ._rank_markers import rank_markers as rank_markers
from ._suggest_cells import suggest_cells as suggest_cells

__all__ = [
    "LabelComparison",
    "classify_cells",
    "cluster_cells",
    "compare_labels",
    "embed_cells",
    "explain_cells",
    "fit_classifier",
    "fit_encoder",
    "label_budget",
    "rank_markers",
    "suggest_cells",
]
