from ._agreement import agreement as agreement
from ._confidence import confidence as confidence
from ._confounders import confounders as confounders
from ._ihc_score import ihc_score as ihc_score
from ._label_budget import label_budget as label_budget
from ._markers import markers as markers
from ._normalization import normalization as normalization
from ._patches import patches as patches
from ._positivity import positivity as positivity
from ._score_distributions import score_distributions as score_distributions
from ._training import training as training
from ._translation import translation as translation

__all__ = [
    "agreement",
    "confidence",
    "confounders",
    "ihc_score",
    "label_budget",
    "markers",
    "normalization",
    "patches",
    "positivity",
    "score_distributions",
    "training",
    "translation",
]
