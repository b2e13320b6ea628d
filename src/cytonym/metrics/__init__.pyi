from ._calibration import calibration_error as calibration_error
from ._calibration import reliability as reliability
from ._confidence import call_confidence as call_confidence
from ._confidence import margin as margin
from ._confidence import outcomes as outcomes
from ._confidence import true_label_confidence as true_label_confidence
from ._f1 import f1 as f1
from ._precision_recall import PRAUC as PRAUC
from ._precision_recall import best_f1_thresholds as best_f1_thresholds
from ._precision_recall import pr_auc as pr_auc

__all__ = [
    "PRAUC",
    "best_f1_thresholds",
    "calibration_error",
    "call_confidence",
    "f1",
    "margin",
    "outcomes",
    "pr_auc",
    "reliability",
    "true_label_confidence",
]
