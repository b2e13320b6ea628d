"""Whether more labels would change little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cytonym.label.state import UNLABELLED

if TYPE_CHECKING:
    from cytonym.label.learner import Learner, Model

PROBE = 20_000  # cells by which two models are compared
ENOUGH, RIGHT = 20, 0.8
"""Labels of each class, and share of right suggestions, before it is said that more labels change little."""
MORE, MORE_PART = 20, 0.05
"""How many labels, or which part of them, must be new before two models are compared."""
CALM, TIMES, FLOOR = 0.02, 3, 100
"""Change of a class that is little, and how often in a row; a smaller class counts as so many cells, of which one may change."""


class Stopping:
    """Keeps account of what more labels changed.

    Parameters
    ----------
    learner
        Whose suggestions.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.changes: list[float] = []
        """How much of a class changed, at most, each time that the labels had become many more."""
        self._compared: Model | None = None

    def compare(self, model: Model) -> None:
        """Note how much changed, where the labels became many more since the model that was compared last."""
        before, learner = self._compared, self.learner
        if before is not None:
            if model.trained_on - before.trained_on < max(MORE, MORE_PART * before.trained_on):
                return
            probe = learner.order[:: max(1, len(learner.order) // PROBE)]
            self.changes.append(_change(*(learner.resolved(each.predictions[probe]) for each in (before, model))))
        self._compared = model

    def told(self, model: Model) -> dict[str, Any]:
        """See `Learner.stop`."""
        few = self._few(model)
        last = self.changes[-TIMES:]
        calm = len(last) == TIMES and max(last) < CALM
        looked_at = self.learner.precision()
        checked, right = int(looked_at["checked"].sum()), int(looked_at["confirmed"].sum())
        good = checked >= ENOUGH and right >= RIGHT * checked
        if model.head is None:
            reason = "There is no model yet."
        elif few:
            more = f" and {len(few) - 6} more" if len(few) > 6 else ""
            reason = f"Fewer than {ENOUGH} labels: {', '.join(few[:6])}{more}."
        elif not calm:
            reason = (
                "New labels still change suggestions." if last else "Too few labels are new to see what they change."
            )
        elif not good:
            reason = f"Of the last {checked} suggestions that were looked at, {right} were right."
        else:
            reason = f"{TIMES} times more labels changed less than {CALM:.0%} of the suggestions of any class."
        return {"suggested": bool(calm and good and not few), "reason": reason, "changes": last, "few": few}

    def _few(self, model: Model) -> list[str]:
        """Classes short of labels that are suggested for a cell without one, from no page of which it was taken out."""
        session = self.learner.session
        suggested = np.where(session.codes == UNLABELLED, self.learner.resolved(model.predictions), UNLABELLED)
        with session.lock:
            for code, rows in session.state.taken_out().items():
                here = rows[rows < session.n]
                suggested[here[suggested[here] == code]] = UNLABELLED
        left = set(np.unique(suggested).tolist())
        counts = session.counts()["by_class"]
        return [str(session.name_of(i)) for i, n in counts.items() if n < ENOUGH and i in left]


def _change(before: np.ndarray, after: np.ndarray) -> float:
    """Part of a class that joined or left it, of the class of which that is most."""
    classes = int(max(before.max(initial=0), after.max(initial=0))) + 1
    sizes, went = (
        [np.bincount(codes[use & (codes >= 0)], minlength=classes) for codes in (before, after)]
        for use in (np.ones(len(before), bool), before != after)
    )
    return float(((went[0] + went[1]) / np.maximum(np.maximum(*sizes), FLOOR)).max())
