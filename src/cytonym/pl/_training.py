"""Loss and learning rate of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cytonym.pl._style import BLUE, GREEN, ORANGE, PINK, SKY, VERMILION, new_figure, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

COLORS = (BLUE, VERMILION, GREEN, PINK, SKY)


@styled
def training(model: Any, *, smooth: int | None = None) -> Figure:
    """Loss, its parts and the learning rate over the steps of training.

    Parameters
    ----------
    model
        A trained model, the folder of its checkpoint, or its `history`: a list of dicts or a DataFrame with the
        columns `step`, `loss`, `learning_rate` and any parts of the loss.
    smooth
        Rows that a running mean spans; the values themselves stay visible behind it. Default: 1/25 of the rows.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown; the last line of a notebook cell displays it, `figure.savefig(...)` writes it.

    Raises
    ------
    ValueError
        The history is empty.

    Examples
    --------
    >>> import cytonym as cy
    >>> history = [{"step": i, "loss": 5 / (i + 1), "learning_rate": 1e-3} for i in range(20)]
    >>> figure = cy.pl.training(history)
    """
    frame = _history(model)
    width = smooth or max(1, len(frame) // 25)
    parts = [c for c in frame.columns if c not in ("step", "epoch", "loss", "learning_rate")]
    parts = [c for c in parts if pd.api.types.is_numeric_dtype(frame[c]) and frame[c].notna().any()]
    # a part on the scale of the loss shares its axes, a small one such as a penalty gets its own
    scale = float(frame["loss"].abs().median())
    near = [c for c in parts if 0.2 * scale <= float(frame[c].abs().median()) <= 5 * scale]
    near = [c for c in near if not np.allclose(frame[c], frame["loss"], rtol=0.01, equal_nan=True)]
    apart = [c for c in parts if not 0.2 * scale <= float(frame[c].abs().median()) <= 5 * scale]
    panels = [["loss", *near]] + [[c] for c in apart if frame[c].abs().max() > 0]
    if "learning_rate" in frame:
        panels.append(["learning_rate"])

    heights = [2.2] + [0.9] * (len(panels) - 1)
    figure = new_figure(5.2, sum(heights) + 0.5)
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    top = None
    for i, names in enumerate(panels):
        ax = figure.add_subplot(grid[i], sharex=top)
        top = top or ax
        for j, name in enumerate(names):
            rows = frame[["step", name]].dropna()
            color = ORANGE if name == "learning_rate" else COLORS[(i + j) % len(COLORS)]
            smoothed = rows[name].rolling(width, center=True, min_periods=1).mean()
            if name != "learning_rate" and width > 1:
                ax.plot(rows["step"], rows[name], color=color, alpha=0.25, linewidth=0.7)
            ax.plot(
                rows["step"],
                rows[name] if name == "learning_rate" else smoothed,
                color=color,
                linewidth=1.4,
                label=name,
            )
        ax.set_ylabel(names[0].replace("_", " "))
        if len(names) > 1:
            ax.legend(frameon=False)
        if names == ["learning_rate"]:
            ax.set_ylim(bottom=0)
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        if i < len(panels) - 1:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel("step")
        ax.margins(x=0.01)
    figure.align_ylabels()
    return figure


def _history(model: Any) -> pd.DataFrame:
    if isinstance(model, (str, Path)):
        from cytonym.models import load

        model = load(model)
    rows: Sequence[Any] | pd.DataFrame = getattr(model, "history", model)
    frame = pd.DataFrame(rows)
    if frame.empty or "loss" not in frame:
        msg = f"No training history: expected rows with a 'loss', found columns {list(frame.columns)} in {len(frame)} rows."
        raise ValueError(msg)
    if "step" not in frame:
        frame.insert(0, "step", np.arange(len(frame)))
    return frame
