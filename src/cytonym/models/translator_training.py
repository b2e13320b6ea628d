"""Training of DeepLIIF: its discriminators, its losses and the best weights so far (Ghahremani et al. 2022)."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cytonym.learning.gan_losses import GanWeights, Stains, discriminator_loss, generator_loss
from cytonym.models.base import require_whole
from cytonym.models.deepliif import DeepLIIFConfig
from cytonym.models.deepliif_training import DeepLIIFDiscriminators
from cytonym.models.translation import scaled, to_uint8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from cytonym.learning.gan_losses import Features
    from cytonym.models.deepliif import DeepLIIF

    Count = Callable[[np.ndarray], tuple[int, int]]


@dataclass(frozen=True)
class TranslatorRecipe:
    """How DeepLIIF is trained. The defaults are the published ones, but for `perceptual`, which the paper does not have.

    Parameters
    ----------
    steps, batch_size
        Length of the training, and tiles in a step.
    learning_rate, betas
        Of both optimisers, Adam.
    constant
        Share of the steps with a constant learning rate. Then it falls linearly to 0.
    gan, reconstruction, perceptual
        Weights of the GAN's term, of smooth L1 and of the distance of another network's features. 0 leaves a term out;
        without the first there are no discriminators. The authors' program has 100 for the third.
    smoothing
        The discriminators' target for real images is 1 less this.
    generator_weights, discriminator_weights
        Of the loss of each modality and, last, of the class map. Default: equal ones.
    turns
        Tiles are turned by quarters and mirrored; else mirrored left to right only, as published.
    jitter
        Light changes of the stained image, by which the targets do not change: the standard deviation of the logarithm of a
        factor on all optical densities; half of it for each color on its own, and a quarter for the light. 0 as published.
    judge_every
        Steps between two looks at the validation tiles.
    """

    steps: int
    batch_size: int = 1
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    constant: float = 0.5
    gan: float = 1.0
    reconstruction: float = 100.0
    perceptual: float = 0.0
    smoothing: float = 0.0
    generator_weights: tuple[float, ...] | None = None
    discriminator_weights: tuple[float, ...] | None = None
    turns: bool = True
    jitter: float = 0.0
    judge_every: int = 1000
    unit: ClassVar[str] = "tile"

    def __post_init__(self) -> None:
        require_whole(self, steps=1, batch_size=1, judge_every=1)
        if not 0 < self.learning_rate < math.inf:
            msg = f"`learning_rate` must be positive, got {self.learning_rate}."
            raise ValueError(msg)
        for name in ("gan", "reconstruction", "perceptual", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                msg = f"`{name}` must be at least 0, got {getattr(self, name)}."
                raise ValueError(msg)
        if not (self.gan or self.reconstruction or self.perceptual):
            msg = "One of `gan`, `reconstruction` and `perceptual` must be above 0."
            raise ValueError(msg)
        if not 0 <= self.constant <= 1:
            msg = f"`constant` must be a share of the steps from 0 to 1, got {self.constant}."
            raise ValueError(msg)

    def weights(self, network: DeepLIIF) -> GanWeights:
        """Weights of the losses of a network.

        Raises
        ------
        ValueError
            They are of another number of modalities.
        """
        return GanWeights(
            tuple(network.segmentation_weights), self.generator_weights, self.discriminator_weights,
            reconstruction=self.reconstruction, perceptual=self.perceptual, smoothing=self.smoothing, gan=self.gan,
        )  # fmt: skip


DEEPLIIF_RECIPE = TranslatorRecipe(141_800, turns=False)
"""The paper's: 200 times each of 709 images, one by one."""

TRANSLATOR_RECIPE = TranslatorRecipe(600, 1, 1e-3, jitter=0.2, judge_every=50)
"""Minutes on two cores, with `SMALL_DEEPLIIF`. Length, batch, rate and jitter are ours, the rest is as published."""

SMALL_DEEPLIIF = DeepLIIFConfig(
    filters=16, blocks=2, depth=6, discriminator_filters=16, discriminator_layers=3, dropout=False, norm="tile", tile_px=128
)  # fmt: skip
"""A DeepLIIF of about a hundredth of the published size, for tiles of 128 pixels."""


class Batch(NamedTuple):
    """What a step sees, from -1 to 1."""

    source: Tensor
    real: Stains


class TranslatorTraining(nn.Module):
    """A network with its discriminators and its best weights so far: all that a state file needs.

    Parameters
    ----------
    network
        Trained in place.
    recipe
        Of the training.
    validation
        Tiles uint8 [1, K, S, S] that choose the weights to keep; none: the last.
    count
        Numbers of positive and negative nuclei of a class map, uint8 [3, S, S].
    features
        As in `learning.gan_losses.perceptual_loss`.
    learned_from
        Hash of the images, and of which are held out: a state of a training on others is refused.
    seed
        Of the discriminators.

    Raises
    ------
    ValueError
        The recipe does not suit the network, or asks for features where there are none.
    """

    def __init__(
        self,
        network: DeepLIIF,
        recipe: TranslatorRecipe,
        validation: Sequence[Tensor] = (),
        count: Count | None = None,
        *,
        features: Features | None = None,
        learned_from: bytes = b"",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weights = recipe.weights(network)
        if recipe.perceptual and features is None:
            msg = (
                "The recipe has a perceptual term, which needs `features`, a network such as VGG19; no weights of it are "
                "shipped. Leave the term out with dataclasses.replace(recipe, perceptual=0)."
            )
            raise ValueError(msg)
        self.name, self.markers, self.config = network.name, network.markers, network.config
        self.network, self.recipe, self.validation, self.count = network, recipe, list(validation), count
        self.features = features if recipe.perceptual else None
        self.adversaries = DeepLIIFDiscriminators(len(self.markers), self.config, seed=seed) if recipe.gan else None
        self.best = deepcopy(network).requires_grad_(False)  # noqa: FBT003
        self.history: list[dict[str, float]] = []
        self.best_error: Tensor
        self.register_buffer("best_error", torch.tensor(torch.inf))
        if learned_from:
            self.register_buffer("learned_from", torch.tensor(list(learned_from), dtype=torch.uint8))

    def config_dict(self) -> dict[str, Any]:
        """Of the network."""
        return self.network.config_dict()

    def generators(self) -> list[nn.Parameter]:
        """All weights of the network."""
        return list(self.network.parameters())

    def discriminators(self) -> list[nn.Parameter]:
        """All weights of the discriminators, if there are any."""
        return [] if self.adversaries is None else list(self.adversaries.parameters())

    def split(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles uint8 [B, K, S, S] -> the input, and all targets."""
        first = self.config.input_channels
        return tiles[:, :first], tiles[:, first:]

    def stains(self, targets: Tensor) -> Stains:
        """Targets uint8 [B, K', S, S] -> modalities and class map from -1 to 1."""
        *modalities, segmentation = scaled(targets).split(
            [self.config.output_channels] * len(self.markers) + [3], dim=1
        )
        return Stains(modalities, segmentation)

    def draw(self, tiles: Tensor, generator: torch.Generator) -> Batch:
        """Turned and mirrored tiles; the input with changed stains."""
        flat = torch.randint(2, (len(tiles), 2), generator=generator, device=generator.device).tolist()
        quarters = torch.randint(4, (len(tiles),), generator=generator, device=generator.device).tolist()
        turned = []
        for tile, (mirror, _), quarter in zip(tiles, flat, quarters, strict=True):
            one = tile.flip(-1) if mirror else tile
            turned.append(one.rot90(quarter, (-2, -1)) if self.recipe.turns else one)
        source, targets = self.split(torch.stack(turned))
        return Batch(self.jittered(source, generator), self.stains(targets))

    def jittered(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Input uint8 [B, C, S, S] -> from -1 to 1, with other stains and other light."""
        if not self.recipe.jitter:
            return scaled(source)
        n, channels = source.shape[:2]
        noise = torch.randn(n, 1 + 2 * channels, 1, 1, generator=generator, device=generator.device)
        common, each, light = (noise * self.recipe.jitter).split([1, channels, channels], dim=1)
        density = (common + each / 2).exp()
        return scaled(255 * ((light / 4).exp() * (source.float() / 255) ** density).clamp(max=1))

    def make(self, batch: Batch) -> Stains:
        """All images."""
        modalities = self.network.translate(batch.source)
        return Stains(list(modalities.values()), self.network.segment(batch.source, modalities))

    def discriminator_loss(self, batch: Batch, made: Stains) -> dict[str, Tensor]:
        """See `learning.gan_losses`."""
        return self._named(discriminator_loss(*self._networks(), *batch, made, self.weights))

    def generator_loss(self, batch: Batch, made: Stains) -> dict[str, Tensor]:
        """See `learning.gan_losses`."""
        return self._named(generator_loss(*self._networks(), *batch, made, self.weights, self.features))

    def _networks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        if self.adversaries is None:
            return [], []
        return list(self.adversaries.translation.values()), list(self.adversaries.segmentation.values())

    def _named(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parts of a loss by the names of the modalities."""
        names = {str(i): name for i, name in enumerate(self.markers, start=1)}
        split = ((*key.partition("_"), value) for key, value in parts.items())
        return {what + line + names.get(which, which): value for what, line, which, value in split}

    @torch.no_grad()
    def judge(self, step: int) -> dict[str, float]:
        """Where it is time: root mean square difference of the numbers of nuclei of each class and tile. Keeps the best weights."""
        if not self.validation or self.count is None or (step % self.recipe.judge_every and step < self.recipe.steps):
            return {}
        self.network.eval()
        total = 0.0
        for tile in self.validation:
            source, targets = self.split(tile.to(self.best_error.device))
            made = self.network(scaled(source), ["segmentation"])["segmentation"]
            found, true = (self.count(image[0].cpu().numpy()) for image in (to_uint8(made), targets[:, -3:]))
            total += sum((a - b) ** 2 for a, b in zip(found, true, strict=True))
        error = math.sqrt(total / (2 * len(self.validation)))
        found_error = self.best_error.new_tensor(error)
        if found_error < self.best_error:
            self.best.load_state_dict(self.network.state_dict())
            self.best_error.copy_(found_error)
        return {"validation_count_error": error}

    def finished(self) -> DeepLIIF:
        """The weights to keep: those with the best counts, or the last."""
        if math.isfinite(float(self.best_error)):
            self.network.load_state_dict(self.best.state_dict())
        return self.network.eval()
