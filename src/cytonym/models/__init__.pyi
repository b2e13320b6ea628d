from .checkpoint import load as load
from .checkpoint import save as save
from .nextmarker import PAPER_RECIPE as PAPER_RECIPE
from .nextmarker import NeXtMarker as NeXtMarker
from .nextmarker import NeXtMarkerConfig as NeXtMarkerConfig
from .registry import available as available

__all__ = ["PAPER_RECIPE", "NeXtMarker", "NeXtMarkerConfig", "available", "load", "save"]
