from ._agreement import agreement as agreement
from ._markers import markers as markers
from ._training import training as training

__all__ = ["agreement", "markers", "training"]
