from ._agreement import agreement as agreement
from ._confidence import confidence as confidence
from ._label_budget import label_budget as label_budget
from ._markers import markers as markers
from ._normalization import normalization as normalization
from ._patches import patches as patches
from ._training import training as training

__all__ = ["agreement", "confidence", "label_budget", "markers", "normalization", "patches", "training"]
