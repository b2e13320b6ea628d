from ._agreement import agreement as agreement
from ._markers import markers as markers
from ._normalization import normalization as normalization
from ._patches import patches as patches
from ._training import training as training

__all__ = ["agreement", "markers", "normalization", "patches", "training"]
