from ._cluster_cells import cluster_cells as cluster_cells
from ._compare_labels import compare_labels as compare_labels
from ._rank_markers import rank_markers as rank_markers

__all__ = ["cluster_cells", "compare_labels", "rank_markers"]
