from ._call_markers import call_markers as call_markers
from ._classify_cells import classify_cells as classify_cells
from ._cluster_cells import cluster_cells as cluster_cells
from ._compare_labels import LabelComparison as LabelComparison
from ._compare_labels import compare_labels as compare_labels
from ._confounders import confounders as confounders
from ._embed_cells import embed_cells as embed_cells
from ._explain_cells import explain_cells as explain_cells
from ._fit_classifier import fit_classifier as fit_classifier
from ._fit_encoder import fit_encoder as fit_encoder
from ._fit_scorer import fit_scorer as fit_scorer
from ._fit_translator import fit_translator as fit_translator
from ._label_budget import label_budget as label_budget
from ._phenotype_cells import phenotype_cells as phenotype_cells
from ._rank_markers import rank_markers as rank_markers
from ._score_ihc import score_ihc as score_ihc
from ._score_markers import score_markers as score_markers
from ._segment_nuclei import segment_nuclei as segment_nuclei
from ._suggest_cells import suggest_cells as suggest_cells
from ._translate_stain import translate_stain as translate_stain

__all__ = [
    "LabelComparison",
    "call_markers",
    "classify_cells",
    "cluster_cells",
    "compare_labels",
    "confounders",
    "embed_cells",
    "explain_cells",
    "fit_classifier",
    "fit_encoder",
    "fit_scorer",
    "fit_translator",
    "label_budget",
    "phenotype_cells",
    "rank_markers",
    "score_ihc",
    "score_markers",
    "segment_nuclei",
    "suggest_cells",
    "translate_stain",
]
