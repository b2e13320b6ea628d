from .cellsighter import CellSighter as CellSighter
from .cellsighter import CellSighterConfig as CellSighterConfig
from .checkpoint import load as load
from .checkpoint import save as save
from .classifier import CellClassifier as CellClassifier
from .classifier import ClassifierConfig as ClassifierConfig
from .clearit import CLEARIT_TNBC1 as CLEARIT_TNBC1
from .clearit import CLEARIT_TNBC2 as CLEARIT_TNBC2
from .clearit import ClearIT as ClearIT
from .clearit import ClearITConfig as ClearITConfig
from .finetuned import FineTuned as FineTuned
from .finetuned import FineTunedConfig as FineTunedConfig
from .maps import MAPS as MAPS
from .maps import MAPSConfig as MAPSConfig
from .nextmarker import PAPER_RECIPE as PAPER_RECIPE
from .nextmarker import NeXtMarker as NeXtMarker
from .nextmarker import NeXtMarkerConfig as NeXtMarkerConfig
from .registry import available as available

__all__ = [
    "CLEARIT_TNBC1",
    "CLEARIT_TNBC2",
    "MAPS",
    "PAPER_RECIPE",
    "CellClassifier",
    "CellSighter",
    "CellSighterConfig",
    "ClassifierConfig",
    "ClearIT",
    "ClearITConfig",
    "FineTuned",
    "FineTunedConfig",
    "MAPSConfig",
    "NeXtMarker",
    "NeXtMarkerConfig",
    "available",
    "load",
    "save",
]
