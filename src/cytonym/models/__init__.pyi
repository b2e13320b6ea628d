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
from .deepliif import DeepLIIF as DeepLIIF
from .deepliif import DeepLIIFConfig as DeepLIIFConfig
from .finetuned import FineTuned as FineTuned
from .finetuned import FineTunedConfig as FineTunedConfig
from .maps import MAPS as MAPS
from .maps import MAPSConfig as MAPSConfig
from .nextmarker import PAPER_RECIPE as PAPER_RECIPE
from .nextmarker import NeXtMarker as NeXtMarker
from .nextmarker import NeXtMarkerConfig as NeXtMarkerConfig
from .nimbus import Nimbus as Nimbus
from .nimbus import NimbusConfig as NimbusConfig
from .registry import available as available
from .scorer_training import NIMBUS_RECIPE as NIMBUS_RECIPE
from .scorer_training import SCORER_RECIPE as SCORER_RECIPE
from .scorer_training import ScorerRecipe as ScorerRecipe
from .translator_training import DEEPLIIF_RECIPE as DEEPLIIF_RECIPE
from .translator_training import SMALL_DEEPLIIF as SMALL_DEEPLIIF
from .translator_training import TRANSLATOR_RECIPE as TRANSLATOR_RECIPE
from .translator_training import TranslatorRecipe as TranslatorRecipe

__all__ = [
    "CLEARIT_TNBC1",
    "CLEARIT_TNBC2",
    "DEEPLIIF_RECIPE",
    "MAPS",
    "NIMBUS_RECIPE",
    "PAPER_RECIPE",
    "SCORER_RECIPE",
    "SMALL_DEEPLIIF",
    "TRANSLATOR_RECIPE",
    "CellClassifier",
    "CellSighter",
    "CellSighterConfig",
    "ClassifierConfig",
    "ClearIT",
    "ClearITConfig",
    "DeepLIIF",
    "DeepLIIFConfig",
    "FineTuned",
    "FineTunedConfig",
    "MAPSConfig",
    "NeXtMarker",
    "NeXtMarkerConfig",
    "Nimbus",
    "NimbusConfig",
    "ScorerRecipe",
    "TranslatorRecipe",
    "available",
    "load",
    "save",
]
