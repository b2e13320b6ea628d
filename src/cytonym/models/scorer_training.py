"""Training of a scorer on noisy labels: what changes from step to step beside the network (Nimbus paper, after ProMix).

First all cells with a label count. In the last part of the training only those count whose loss is small among the cells of the same marker
and label, or whose prediction agrees clearly with the label: wrong labels are learned last, and such cells are left out.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytonym.learning.scorer_views import ScorerViews
from cytonym.models.base import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cytonym.models.nimbus import Nimbus

UNDEFINED = 2


@dataclass(frozen=True)
class ScorerRecipe(Recipe):
    """How a scorer is trained. Defaults of what is added here are the published ones.

    Parameters
    ----------
    tile_px
        Side of the tiles, in pixels of the network (512 in the paper).
    smoothing
        Label smoothing of the cross-entropy.
    robust_from
        Share of the steps after which cells are selected by their loss: 300,000 of 400,000 steps in the paper; 1 for never.
    percentile
        At first, and at the end: which quantile of the losses of a marker's positive (negative) cells bounds the selection.
    quantile_rate
        Weight of a batch in the running quantile.
    confidence
        Cells whose label is predicted with more than this are selected anyway.
    average
        Weight of the past in the running mean of the weights, which is what is kept.
    boundaries
        Whether pixels on the inner boundary of positive cells shall be positive ("cell") or not ("background", as published).
    cell_loss
        Weight of the cross-entropy of the cells' scores, means over their pixels, beside that of the pixels (0 in the paper).
    to_start
        Factor of the mean squared distance to the initial weights: for fine-tuning.
    judge_every
        Steps between two looks at the validation cells.
    """

    unit: ClassVar[str] = "tile"
    tile_px: int = 128
    smoothing: float = 0.05
    robust_from: float = 0.75
    percentile: tuple[float, float] = (0.5, 0.85)
    quantile_rate: float = 0.01
    confidence: float = 0.9
    average: float = 0.99
    boundaries: str = "cell"
    cell_loss: float = 0.0
    to_start: float = 0.0
    judge_every: int = 100

    def check(self, network: Nimbus) -> None:
        """Raise where the recipe does not suit a network."""
        if self.tile_px % network.stride or self.tile_px < 2 * network.stride:
            msg = f"`tile_px` must be a multiple of {network.stride}, at least {2 * network.stride}, for this network, got {self.tile_px}."
            raise ValueError(msg)
        if self.boundaries not in ("cell", "background"):
            msg = f"`boundaries` must be 'cell' or 'background', got {self.boundaries!r}."
            raise ValueError(msg)


SCORER_RECIPE = ScorerRecipe(
    300, 8, 1e-3, final_rate=0.0, warmup=0.05, constant=0.0, views=ScorerViews(gain=0.2), judge_every=50, cell_loss=4.0, to_start=1e-4  # type: ignore[arg-type]
)  # fmt: skip
"""Minutes on two cores. The lengths, the factor on brightness and the pull to the start are ours, the rest is as published."""

NIMBUS_RECIPE = ScorerRecipe(
    400_000, 16, 3e-4, final_rate=0.0, warmup=0.0, constant=0.0, views=ScorerViews(), weight_decay=1e-3, tile_px=512,  # type: ignore[arg-type]
    boundaries="background", judge_every=1000, clip=1.0,
)  # fmt: skip
"""The paper's training of the published network: 300,000 steps, then 100,000 with selected cells."""


class ScorerTraining(nn.Module):
    """A scorer with its running mean, the best of these so far, and the running quantiles: all that a state file needs.

    Parameters
    ----------
    network
        The scorer, trained in place.
    recipe
        Of the training.
    n_keys
        Number of (data set, marker).
    validation
        Tiles [1, 5, S, S] that choose the weights to keep, those to begin with among them; none: the last.
    learned_from
        Hash of images and labels: a state of a training on others is refused.

    Raises
    ------
    ValueError
        The recipe does not suit the network.
    """

    def __init__(
        self,
        network: Nimbus,
        recipe: ScorerRecipe,
        n_keys: int,
        validation: Sequence[Tensor] = (),
        learned_from: bytes = b"",
    ) -> None:
        super().__init__()
        recipe.check(network)
        self.name, self.markers, self.config = network.name, network.markers, network.config
        self.network, self.recipe, self.validation = network, recipe, list(validation)
        self.mean, self.best = _as_buffers(network), _as_buffers(network)
        self.start = [p.detach().clone() for p in network.parameters()] if recipe.to_start else []
        self.history: list[dict[str, float]] = []
        self.steps: Tensor
        self.start_score: Tensor
        self.best_score: Tensor
        self.quantiles: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("start_score", torch.tensor(-1.0))
        self.register_buffer("best_score", torch.tensor(-1.0))
        self.register_buffer("quantiles", torch.full((n_keys, 2), torch.nan))
        if learned_from:
            self.register_buffer("learned_from", torch.tensor(list(learned_from), dtype=torch.uint8))

    def config_dict(self) -> dict[str, Any]:
        """Of the network."""
        return self.network.config_dict()

    def draw(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Tiles as they are."""
        del generator
        return tiles

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the pixels of augmented tiles; late in the training, of cells that seem to be labelled right."""
        self._after_step()
        plain, tiles = views
        if tiles.shape[-1] != plain.shape[-1]:
            msg = "Variants have another size than their tiles."
            raise ValueError(msg)
        weight = (tiles[:, 2] != UNDEFINED).float()
        share = torch.ones((), device=tiles.device)
        if int(self.steps) > self.recipe.robust_from * self.recipe.steps:
            chosen = self.selected(plain)
            numbers = tiles[:, 3].long()
            kept = (
                torch.cat([chosen.new_ones(len(chosen), 1), chosen], dim=1)
                .gather(1, numbers.flatten(1))
                .view_as(weight)
            )
            weight = weight * kept
            cells = tiles[:, 3] > 0
            share = (weight * cells).sum() / ((tiles[:, 2] != UNDEFINED) & cells).sum().clamp(min=1)
        logits = self.network.logits(tiles[:, :2])[:, 0]
        parts = {"loss": (self.pixel_loss(logits, tiles) * weight).mean(), "kept": share.detach()}
        if self.recipe.cell_loss:
            parts["loss"] = parts["loss"] + self.recipe.cell_loss * _cell_loss(logits, tiles, weight)
        if self.recipe.to_start:
            away = [(p - p0.to(p)).square().mean() for p, p0 in zip(self.network.parameters(), self.start, strict=True)]
            parts["loss"] = parts["loss"] + self.recipe.to_start * torch.stack(away).sum()
        return parts

    def pixel_loss(self, logits: Tensor, tiles: Tensor) -> Tensor:
        """Smoothed cross-entropy of each pixel [B, S, S]; between cells nothing is positive."""
        positive = (tiles[:, 2] == 1) & (tiles[:, 3] > 0)
        if self.recipe.boundaries == "background":
            positive &= tiles[:, 1] > 0
        target = positive.float() * (1 - self.recipe.smoothing) + self.recipe.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")

    @torch.no_grad()
    def selected(self, tiles: Tensor) -> Tensor:
        """Which cells of the unaugmented tiles take part, 1 or 0 [B, most cells]."""
        self.network.eval()
        losses = self.pixel_loss(self.network.logits(tiles[:, :2])[:, 0], tiles)
        self.network.train()
        by_cell, label = _by_cell(losses, tiles)
        keys = tiles[:, 4, 0, 0].long()
        done = (int(self.steps) / self.recipe.steps - self.recipe.robust_from) / max(1e-9, 1 - self.recipe.robust_from)
        low, high = self.recipe.percentile
        p = low + (high - low) * min(1.0, max(0.0, done))
        sure = torch.tensor(self.recipe.confidence, device=losses.device)
        smooth = self.recipe.smoothing / 2
        bound = -(1 - smooth) * sure.log() - smooth * (1 - sure).log()
        chosen = torch.zeros_like(by_cell)
        for key in keys.unique():
            of_key = (keys == key)[:, None]
            for positive in (0, 1):
                mine = of_key & (label == positive)
                if not mine.any():
                    continue
                found = torch.quantile(by_cell[mine], p)
                before = self.quantiles[key, positive]
                rate = self.recipe.quantile_rate
                self.quantiles[key, positive] = torch.where(before.isnan(), found, (1 - rate) * before + rate * found)
                chosen[mine] = ((by_cell[mine] <= self.quantiles[key, positive]) | (by_cell[mine] < bound)).float()
        return chosen

    @torch.no_grad()
    def judge(self, model: Nimbus) -> float:
        """Mean over markers of the F1 at 0.5 of the validation cells; NaN where no cell is positive."""
        counts = torch.zeros(len(self.quantiles), 3)
        model.eval()
        device = self.steps.device
        for tile in self.validation:
            x = tile.to(device)
            score, label = _by_cell(model(x[:, :2])[:, 0], x)
            called, key = score >= 0.5, int(tile[0, 4, 0, 0])
            for i, hit in enumerate((called & (label == 1), called & (label == 0), ~called & (label == 1))):
                counts[key, i] += hit.sum().cpu()
        some = counts[:, 0] + counts[:, 2] > 0
        hits, wrong, missed = counts[some].unbind(1)
        return float((2 * hits / (2 * hits + wrong + missed)).mean())

    @torch.no_grad()
    def _after_step(self, *, last: bool = False) -> None:
        """What follows the optimiser's last step; called at the beginning of the next."""
        done = int(self.steps)
        if done:
            mean, trained = self.mean.state_dict(), {name for name, _ in self.network.named_parameters()}
            rate = 1 - self.recipe.average
            rate = rate if done * rate > 1 else 1.0
            for name, now in self.network.state_dict().items():
                mean[name].copy_(mean[name].lerp(now, rate) if name in trained else now)
            if self.validation and (last or done % self.recipe.judge_every == 0):
                self._keep_best()
        elif self.validation and not last:
            self.start_score.fill_(self.judge(self.mean))
        self.steps += 1

    def _keep_best(self) -> None:
        """Where cells are selected late in the training, only weights of that part count: wrong labels mislead the choice before."""
        score = self.judge(self.mean)
        row = {"step": int(self.steps), "validation_f1": score}
        if score >= 0 and row not in self.history:  # it is, where a step is done again after an interrupt
            self.history.append(row)
        robust = self.recipe.robust_from
        better = score > float(self.best_score) and score >= float(self.start_score)
        if better and (robust >= 1 or int(self.steps) > robust * self.recipe.steps):
            self.best_score.fill_(score)
            self.best.load_state_dict(self.mean.state_dict())

    @property
    def spoiled(self) -> bool:
        """Whether all weights of the training are worse on the validation cells than those to begin with."""
        return float(self.start_score) >= 0 > float(self.best_score)

    def finished(self) -> Nimbus:
        """The weights to keep: the best on the validation cells, where need be those to begin with, or the running mean at the end."""
        self._after_step(last=True)
        kept = self.best if self.spoiled or float(self.best_score) >= 0 else self.mean
        self.network.load_state_dict(kept.state_dict())
        return self.network.eval()


def _as_buffers(network: Nimbus) -> Nimbus:
    """A copy that no optimiser trains. Buffers are what `learning.fit` puts back where a step was interrupted."""
    copy = deepcopy(network)
    for module in copy.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach().clone())
    return copy


def _cell_loss(logits: Tensor, tiles: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of the scores of the cells that take part; 0 where none does."""
    score, label = _by_cell(logits.sigmoid(), tiles)
    used = (label != UNDEFINED) & (_by_cell(weight, tiles)[0] > 0)
    losses = F.binary_cross_entropy(score.clamp(1e-4, 1 - 1e-4), (label == 1).to(score), reduction="none")
    return (losses * used).sum() / used.sum().clamp(min=1)


def _by_cell(values: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a value over each cell's pixels [B, n], and the cells' labels [B, n] (undefined where there is no such cell)."""
    numbers = tiles[:, 3].long().flatten(1)
    n = int(numbers.max())
    flat = values.flatten(1)
    sums = flat.new_zeros(len(flat), n + 1).scatter_add_(1, numbers, flat)
    count = flat.new_zeros(len(flat), n + 1).scatter_add_(1, numbers, torch.ones_like(flat))
    label = torch.full((len(flat), n + 1), float(UNDEFINED), device=flat.device).scatter_(
        1, numbers, tiles[:, 2].flatten(1)
    )
    return (sums / count.clamp(min=1))[:, 1:], label[:, 1:]
