from ._cluster_cells import cluster_cells as cluster_cells
from ._compare_labels import LabelComparison as LabelComparison
from ._compare_labels import compare_labels as compare_labels
from ._embed_cells import embed_cells as embed_cells
from ._explain_cells import explain_cells as explain_cells
from ._fit_encoder import fit_encoder as fit_encoder
from ._rank_markers import rank_markers as rank_markers

__all__ = [
    "LabelComparison",
    "cluster_cells",
    "compare_labels",
    "embed_cells",
    "explain_cells",
    "fit_encoder",
    "rank_markers",
]
