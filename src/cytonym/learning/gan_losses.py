"""Losses of conditional GANs that translate stains and draw the class map (DeepLIIF, Ghahremani et al. 2022).

With input x, real images y_1 … y_M and class map y_S, what the generators made of x as f_1 … f_M and f_S, and discriminators D::

    L_D = Σ_i a_i (B(D_i[x, f_i], 0) + B(D_i[x, y_i], 1)) / 2 + a_S (Q(P(f_S), 0) + Q(P(y_S), 1)) / 2
    L_G = Σ_i b_i (B(D_i[x, f_i], 1) + 100 R(f_i, y_i) + 100 V(f_i, y_i)) + b_S (Q(P(f_S), 1) + 100 R(f_S, y_S))
    P(s) = Σ_k w_k DS_k[c_k, s],   c_0 = x, c_k = y_k

B is binary cross-entropy of logits, Q the squared error, R smooth L1 with β = 1, V the distance of features of another network,
which the paper does not have and the authors' program adds; it is left out unless the caller brings such a network.

Two remarks. The class map's discriminators see the *real* modalities beside a made map, so their logits tell about the map
alone. The authors' program weights the class map in L_G with b_M of the last modality and not with b_S; with equal weights, its
default, both are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Network = Callable[[Tensor], Tensor]
    Features = Callable[[Tensor], Sequence[Tensor]]

GanMode = Literal["bce", "least_squares", "wasserstein"]
PERCEPTUAL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Of the five depths of features, shallow first, as the authors' program has them."""


class Stains(NamedTuple):
    """Images of one field, real or made by the generators, from -1 to 1."""

    modalities: Sequence[Tensor]
    """M tensors [B, C, H, W]."""
    segmentation: Tensor
    """The class map [B, 3, H, W]."""


@dataclass(frozen=True)
class GanWeights:
    """What each term of the losses counts.

    Parameters
    ----------
    segmentation
        w: of the class maps from the input and from each modality, M + 1 numbers, as in the model.
    generator, discriminator
        b and a: of each modality and, last, of the class map, M + 1 numbers. Default: equal shares, 0.2 for 4 modalities as
        published.
    reconstruction, perceptual
        Of smooth L1 and of the features, beside the GAN's term (100 as published).
    smoothing
        The target "real" is 1 less this, in both losses (0 as published).
    gan
        Of the GAN's term (1 as published). With 0 there are no discriminators.
    """

    segmentation: tuple[float, ...]
    generator: tuple[float, ...] | None = None
    discriminator: tuple[float, ...] | None = None
    reconstruction: float = 100.0
    perceptual: float = 100.0
    smoothing: float = 0.0
    gan: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.segmentation)
        if not n:
            msg = "`segmentation` must hold one number for the input and one for each modality, got none."
            raise ValueError(msg)
        for name in ("segmentation", "generator", "discriminator"):
            values = getattr(self, name)
            if values is None:
                object.__setattr__(self, name, (1 / n,) * n)
            elif len(values) != n or not all(math.isfinite(v) and v >= 0 for v in values):
                msg = f"`{name}` must hold {n} numbers of at least 0, as many as `segmentation`, got {values}."
                raise ValueError(msg)
        if not any(self.segmentation):
            msg = "One of the `segmentation` weights must be above 0."
            raise ValueError(msg)
        if not 0 <= self.smoothing < 1:
            msg = f"`smoothing` must be at least 0 and below 1, got {self.smoothing}."
            raise ValueError(msg)


def gan_loss(logits: Tensor, *, real: bool, mode: GanMode = "bce", smoothing: float = 0.0) -> Tensor:
    """How far a discriminator's outputs are from calling the images real, or made.

    Parameters
    ----------
    logits
        Outputs of the discriminator, any shape.
    real
        What they should say.
    mode
        ``"bce"``, binary cross-entropy; ``"least_squares"`` (Mao et al. 2017); ``"wasserstein"``, the mean itself.
    smoothing
        The target for real ones is 1 less this; that for made ones stays 0.

    Returns
    -------
    Tensor
        Scalar.

    Examples
    --------
    >>> import torch
    >>> float(gan_loss(torch.zeros(1, 1, 3, 3), real=True, mode="least_squares"))
    1.0
    """
    if mode == "wasserstein":
        return -logits.mean() if real else logits.mean()
    target = torch.full_like(logits, 1 - smoothing if real else 0.0)
    if mode == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    if mode == "least_squares":
        return F.mse_loss(logits, target)
    msg = f"`mode` must be 'bce', 'least_squares' or 'wasserstein', got {mode!r}."
    raise ValueError(msg)


def smooth_l1(found: Tensor, expected: Tensor) -> Tensor:
    """Mean of d²/2 where the difference d is below 1, of |d| - 1/2 beyond."""
    return F.smooth_l1_loss(found, expected, beta=1.0)


def perceptual_terms(found: Tensor, expected: Tensor, features: Features) -> list[Tensor]:
    """Mean absolute difference at each depth of another network; no gradient flows into what is expected."""
    with torch.no_grad():
        wanted = list(features(expected))
    return [F.l1_loss(a, b) for a, b in zip(features(found), wanted, strict=True)]


def perceptual_loss(
    found: Tensor, expected: Tensor, features: Features, weights: Sequence[float] = PERCEPTUAL_WEIGHTS
) -> Tensor:
    """Distance of two images as another network sees them.

    Parameters
    ----------
    found, expected
        Images [B, C, H, W] from -1 to 1, given to the network as they are.
    features
        The network: images to a sequence of features, shallow first. The authors take VGG19 after the first rectifier of each
        of its five stages; no weights of it are shipped.
    weights
        One for each of the features.

    Returns
    -------
    Tensor
        Scalar.

    Examples
    --------
    >>> import torch
    >>> float(perceptual_loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), lambda x: [x, 2 * x], weights=[1, 0.5]))
    2.0
    """
    terms = perceptual_terms(found, expected, features)
    return torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()


def discriminator_loss(
    translation: Iterable[Network],
    segmentation: Iterable[Network],
    source: Tensor,
    real: Stains,
    made: Stains,
    weights: GanWeights,
) -> dict[str, Tensor]:
    """L_D, whose gradient stops at the images.

    Parameters
    ----------
    translation
        Discriminators of the M modalities: input and image, concatenated -> logits.
    segmentation
        M + 1 discriminators of the class map, that of the input first. One of weight 0 is not run.
    source
        The input [B, C, H, W].
    real, made
        Images as they are, and as the generators make them.
    weights
        Of the terms.

    Returns
    -------
    dict
        ``"loss"``, and ``"fake_<i>"``, ``"real_<i>"`` of modality i (1 … M) and of the class map (``"segmentation"``), detached.

    Raises
    ------
    ValueError
        Numbers of discriminators, images and weights that do not fit.
    """
    critics, judges = _checked(translation, segmentation, real, made, weights)
    assert weights.discriminator is not None
    total, parts = source.new_zeros(()), {}
    outputs = [
        [critic(torch.cat([source, images.detach()], dim=1)) for images in pair]
        for critic, *pair in zip(critics, made.modalities, real.modalities, strict=True)
    ]
    outputs.append([_judged(judges, weights.segmentation, source, real, s.segmentation.detach()) for s in (made, real)])
    for name, a, (fake, true) in zip(_names(critics), weights.discriminator, outputs, strict=True):
        mode: GanMode = "least_squares" if name == "segmentation" else "bce"
        for what, logits in (("fake", fake), ("real", true)):
            term = gan_loss(logits, real=what == "real", mode=mode, smoothing=weights.smoothing)
            parts[f"{what}_{name}"] = term.detach()
            total = total + a / 2 * term
    return {"loss": total} | parts


def generator_loss(
    translation: Iterable[Network],
    segmentation: Iterable[Network],
    source: Tensor,
    real: Stains,
    made: Stains,
    weights: GanWeights,
    features: Features | None = None,
) -> dict[str, Tensor]:
    """L_G. Parameters of the discriminators that ask for gradients get some, too: switch that off, or clear them.

    Parameters
    ----------
    translation, segmentation, source, real, made, weights
        As in `discriminator_loss`.
    features
        As in `perceptual_loss`; None leaves that term out.

    Returns
    -------
    dict
        ``"loss"``, and ``"gan_<i>"``, ``"l1_<i>"`` and, with `features`, ``"perceptual_<i>"``, with their weights, of modality i
        (1 … M) and of the class map (``"segmentation"``, without the perceptual), detached.

    Raises
    ------
    ValueError
        Numbers of discriminators, images and weights that do not fit.
    """
    critics, judges = _checked(translation, segmentation, real, made, weights)
    assert weights.generator is not None
    total, parts = source.new_zeros(()), {}
    outputs: list[Tensor | None] = [None] * len(weights.segmentation)
    if weights.gan:
        outputs = [
            critic(torch.cat([source, image], dim=1)) for critic, image in zip(critics, made.modalities, strict=True)
        ]
        outputs.append(_judged(judges, weights.segmentation, source, real, made.segmentation))
    pairs = zip([*made.modalities, made.segmentation], [*real.modalities, real.segmentation], strict=True)
    for name, b, logits, (found, wanted) in zip(
        _names(made.modalities), weights.generator, outputs, pairs, strict=True
    ):
        mode: GanMode = "least_squares" if name == "segmentation" else "bce"
        terms = {"l1": weights.reconstruction * smooth_l1(found, wanted)}
        if logits is not None:
            term = gan_loss(logits, real=True, mode=mode, smoothing=weights.smoothing)
            terms = {"gan": term if weights.gan == 1 else weights.gan * term} | terms
        if features is not None and name != "segmentation":
            terms["perceptual"] = weights.perceptual * perceptual_loss(found, wanted, features)
        for what, term in terms.items():
            parts[f"{what}_{name}"] = term.detach()
            total = total + b * term
    return {"loss": total} | parts


def _names(modalities: Sequence[object]) -> list[str]:
    return [str(i) for i in range(1, len(modalities) + 1)] + ["segmentation"]


def _judged(judges: Sequence[Network], weights: Sequence[float], source: Tensor, real: Stains, seg: Tensor) -> Tensor:
    """Weighted sum of what the discriminators of the class map say about it."""
    seen = [source, *real.modalities]
    logits = [w * d(torch.cat([c, seg], dim=1)) for w, d, c in zip(weights, judges, seen, strict=True) if w]
    return torch.stack(logits).sum(dim=0)


def _checked(
    translation: Iterable[Network], segmentation: Iterable[Network], real: Stains, made: Stains, weights: GanWeights
) -> tuple[list[Network], list[Network]]:
    critics, judges = list(translation), list(segmentation)
    n = len(weights.segmentation)
    counts = [len(critics) + 1, len(judges), len(real.modalities) + 1, len(made.modalities) + 1]
    if counts[0 if weights.gan else 2 :] != [n] * (4 if weights.gan else 2):
        msg = (
            f"The weights are for {n - 1} modalities and {n} class maps; there are {counts[0] - 1} discriminators of modalities, "
            f"{counts[1]} of class maps, {counts[2] - 1} real modalities and {counts[3] - 1} made ones."
        )
        raise ValueError(msg)
    return critics, judges
