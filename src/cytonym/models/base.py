"""What every cell encoder is: tensors in, three tensors out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike

    from cytonym.learning.views import Views


class Encoding(NamedTuple):
    """What an encoder says about B cells."""

    embedding: Tensor
    """[B, D], for neighbours, clusters and classifiers."""
    attributions: Tensor
    """[B, C], one number a marker: zero for a silent marker, rising with signal in this cell."""
    features: Tensor
    """[B, C * K], marker-major: the K interpretable features of marker 0, then those of marker 1, …; K is 0 where the method
    has none."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained unless the caller says otherwise.

    Learning rate: linear from 0 to `learning_rate` over `warmup` of the steps, cosine down to `final_rate`,
    constant over the last `constant` of the steps. The fractions scale with `steps`, so that a short budget has the
    same shape as a long one.
    """

    steps: int
    batch_size: int
    learning_rate: float
    final_rate: float
    warmup: float
    constant: float
    views: Views
    weight_decay: float = 0.0
    optimizer: str = "adam"
    """"adam" or "lars"."""
    unit: ClassVar[str] = "cell"
    """What a batch is made of."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no limit."""


class CellEncoder(nn.Module):
    """Base of the encoders: a panel of named markers, a frozen config, windows in and an `Encoding` out.

    Subclasses set `name`, `Config` and `recipe`, build themselves from `(markers, config)` and implement `encode` and
    `loss`. They know tensors only: no SpatialData, no files.
    """

    name: ClassVar[str]
    """Key in the registry and prefix of everything written to a table."""
    Config: ClassVar[type]
    recipe: ClassVar[Recipe]
    any_panel: ClassVar[bool] = False
    """Whether one network serves every panel; then `for_panel` gives it other markers."""

    def __init__(self, markers: Sequence[str], config: Any) -> None:
        super().__init__()
        self.markers: tuple[str, ...] = tuple(str(m) for m in markers)
        if not self.markers or len(set(self.markers)) < len(self.markers):
            msg = f"A model needs at least one marker and every name once, got {list(self.markers)}."
            raise ValueError(msg)
        self.config = config
        self.history: list[dict[str, float]] = []
        """One row a logged training step: step, loss, learning_rate, … Filled by `learning.fit`."""
        self.provenance: dict[str, Any] = {}
        """Plain types: pixel size of the training data, seed, steps, sample names, package version."""

    @classmethod
    def from_statistics(
        cls, markers: Sequence[str], quantiles: ArrayLike, config: Any = None, *, seed: int = 0
    ) -> CellEncoder:
        """A new network for data with these 90th percentiles of the non-zero pixels [C]; 0 for a marker without any."""
        raise NotImplementedError

    def normalization(self) -> dict[str, np.ndarray]:
        """Learned sigmoids in raw units, {"center": [C], "slope": [C]}; empty where a method learns none."""
        return {}

    @property
    def blocks(self) -> dict[str, int]:
        """Which fields of `Encoding` have a block of numbers for each marker, and how many: {"features": K}."""
        return {}

    @property
    def binning(self) -> int:
        """Side of the squares of the image's pixels that the network averages into one; 1 where it takes them as they are."""
        return int(getattr(self.config, "binning", 1))

    @property
    def window_px(self) -> int:
        """Side of the square window `encode` expects, in pixels of the image."""
        return int(self.config.window_px) * self.binning

    @classmethod
    def sized(cls, config: Any, side: int) -> Any:
        """The config for windows of so many pixels of the image, or about so many where it bins them."""
        return replace(config, window_px=side)

    @classmethod
    def adapted(cls, config: Any, pixel_size: float) -> Any:
        """The config for pixels of so many micrometres, where the caller says no size."""
        return config

    def for_panel(self, markers: Sequence[str], quantiles: ArrayLike) -> CellEncoder:
        """The same network for other markers, of which `quantiles` are as in `from_statistics`."""
        msg = f"{type(self).__name__} is bound to its markers {list(self.markers)}."
        raise TypeError(msg)

    def draw(self, windows: Tensor, generator: torch.Generator) -> Tensor:
        """What a training step takes of its raw windows [B, C, S0, S0] before views are made: all, unless a method says else."""
        return windows

    def encode(self, windows: Tensor) -> Encoding:
        """Raw windows [B, C, S, S], channels in the order of `markers`, any real dtype -> `Encoding` (float32)."""
        raise NotImplementedError

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        """V views [B, C, s, s] of the same B windows, already binned -> {"loss": scalar, …parts to log}."""
        raise NotImplementedError

    def config_dict(self) -> dict[str, Any]:
        """The config as plain types."""
        return asdict(self.config)

    @classmethod
    def config_from_dict(cls, values: dict[str, Any]) -> Any:
        """The config from what `config_dict` gave, also after a trip through JSON, which makes lists of tuples."""
        return cls.Config(**{key: tuples(value) for key, value in values.items()})


def require_whole(config: Any, **least: int) -> None:
    """Raise where a field of a config is no whole number of at least so many."""
    for name, fewest in least.items():
        value = getattr(config, name)
        if isinstance(value, bool) or value != int(value) or value < fewest:
            msg = f"`{name}` must be a whole number of at least {fewest}, got {value!r}."
            raise ValueError(msg)


def tuples(value: Any) -> Any:
    """What JSON made of a frozen config's values, as it was: tuples instead of lists, at any depth."""
    if isinstance(value, dict):
        return {key: tuples(inner) for key, inner in value.items()}
    return tuple(tuples(inner) for inner in value) if isinstance(value, list | tuple) else value


def checked_quantiles(quantiles: ArrayLike, n: int) -> Tensor:
    """One finite number >= 0 for each of n markers, float32 [n].

    Raises
    ------
    ValueError
        They are too few, too many, negative or not finite.
    """
    values = torch.as_tensor(quantiles, dtype=torch.float32).flatten()
    if values.numel() != n or not bool((torch.isfinite(values) & (values >= 0)).all()):
        msg = f"`quantiles` must hold one number >= 0 for each of the {n} markers, got {values.tolist()}."
        raise ValueError(msg)
    return values
