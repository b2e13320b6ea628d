from .nextmarker import PAPER_RECIPE as PAPER_RECIPE
from .nextmarker import NeXtMarker as NeXtMarker
from .nextmarker import NeXtMarkerConfig as NeXtMarkerConfig

__all__ = ["PAPER_RECIPE", "NeXtMarker", "NeXtMarkerConfig"]
