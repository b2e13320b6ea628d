"""Losses of the GANs, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cytonym.learning.gan_losses import (
    PERCEPTUAL_WEIGHTS,
    GanWeights,
    Stains,
    discriminator_loss,
    gan_loss,
    generator_loss,
    perceptual_loss,
    perceptual_terms,
    smooth_l1,
)

torch.set_num_threads(1)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def critic(seed: int, n_in: int = 6) -> nn.Conv2d:
    layer = nn.utils.skip_init(nn.Conv2d, n_in, 1, 4, stride=2)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(layer.bias)
    return layer


class Case:
    """Two modalities on images of 8 pixels."""

    def __init__(self) -> None:
        self.translation = [critic(i) for i in (1, 2)]
        self.segmentation = [critic(i) for i in (3, 4, 5)]
        self.source = noise(1, 3, 8, 8, seed=10)
        self.real = Stains([noise(1, 3, 8, 8, seed=i) for i in (11, 12)], noise(1, 3, 8, 8, seed=13))
        made = [noise(1, 3, 8, 8, seed=i).requires_grad_() for i in (14, 15, 16)]
        self.made = Stains(made[:2], made[2])

    def __iter__(self) -> Any:
        return iter((self.translation, self.segmentation, self.source, self.real, self.made))


WEIGHTS = GanWeights((0.5, 0.2, 0.3), (0.1, 0.3, 0.6), (0.2, 0.5, 0.3))


def bce(logits: Tensor, target: float) -> Tensor:
    p = logits.sigmoid()
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()


def judged(case: Case, seg: Tensor, weights: GanWeights) -> Tensor:
    seen = [case.source, *case.real.modalities]
    return sum(  # type: ignore[return-value]
        w * d(torch.cat([c, seg], dim=1)) for w, d, c in zip(weights.segmentation, case.segmentation, seen, strict=True)
    )


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gan_loss(real, smoothing):
    logits = noise(2, 1, 3, 4, seed=0) * 3
    target = (1 - smoothing) if real else 0.0  # what is made stays 0
    found = {
        mode: float(gan_loss(logits, real=real, mode=mode, smoothing=smoothing))
        for mode in ("bce", "least_squares", "wasserstein")
    }  # type: ignore[arg-type]
    assert found["bce"] == pytest.approx(float(bce(logits, target)), rel=1e-5)
    assert found["least_squares"] == pytest.approx(float(((logits - target) ** 2).mean()), rel=1e-6)
    assert found["wasserstein"] == pytest.approx(float(logits.mean()) * (-1 if real else 1), rel=1e-6)


def test_unknown_mode():
    with pytest.raises(ValueError, match="`mode` must be 'bce', 'least_squares' or 'wasserstein', got 'hinge'"):
        gan_loss(torch.zeros(1), real=True, mode="hinge")  # type: ignore[arg-type]


def test_smooth_l1_bends_at_one_without_a_jump():
    d = torch.tensor([0.0, 0.4, 0.999999, 1.000001, -3.0])
    found = [float(smooth_l1(x[None], torch.zeros(1))) for x in d]
    assert found == pytest.approx([0, 0.08, 0.5, 0.5, 2.5], abs=1e-5)


def test_perceptual_loss():
    def features(x: Tensor) -> list[Tensor]:
        return [x * i for i in range(1, 6)]

    a, b = noise(1, 3, 4, 4, seed=0).requires_grad_(), noise(1, 3, 4, 4, seed=1).requires_grad_()
    off = float((a - b).detach().abs().mean())
    assert [float(t.detach()) for t in perceptual_terms(a, b, features)] == pytest.approx(
        [off * i for i in range(1, 6)]
    )
    found = perceptual_loss(a, b, features)
    assert float(found.detach()) == pytest.approx(off * sum(i * w for i, w in enumerate(PERCEPTUAL_WEIGHTS, start=1)))
    found.backward()
    assert a.grad is not None
    assert b.grad is None  # what is expected is no variable
    with pytest.raises(ValueError, match="zip"):
        perceptual_loss(a, b, lambda x: [x])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_discriminator_loss(smoothing):
    case = Case()
    weights = GanWeights(WEIGHTS.segmentation, WEIGHTS.generator, WEIGHTS.discriminator, smoothing=smoothing)
    found = discriminator_loss(*case, weights)
    assert set(found) == {"loss", "fake_1", "real_1", "fake_2", "real_2", "fake_segmentation", "real_segmentation"}
    expected = torch.zeros(())
    for i, (a, d) in enumerate(zip((0.2, 0.5), case.translation, strict=True)):
        fake, real = (d(torch.cat([case.source, s.modalities[i]], dim=1)) for s in (case.made, case.real))
        parts = [bce(fake, 0), bce(real, 1 - smoothing)]
        assert [float(found[f"{k}_{i + 1}"]) for k in ("fake", "real")] == pytest.approx(
            [float(p.detach()) for p in parts], rel=1e-5
        )
        expected = expected + a / 2 * sum(parts)
    fake, real = (judged(case, s.segmentation, weights) for s in (case.made, case.real))
    expected = expected + 0.3 / 2 * ((fake**2).mean() + ((real - 1 + smoothing) ** 2).mean())
    torch.testing.assert_close(found["loss"], expected)

    networks = [*case.translation, *case.segmentation]
    wanted = torch.autograd.grad(expected, [d.weight for d in networks])
    found["loss"].backward()
    for network, gradient in zip(networks, wanted, strict=True):
        torch.testing.assert_close(network.weight.grad, gradient)
    assert all(image.grad is None for image in [*case.made.modalities, case.made.segmentation])
    assert not any(value.requires_grad for key, value in found.items() if key != "loss")


@pytest.mark.parametrize("with_features", [False, True])
def test_generator_loss(with_features):
    case = Case()
    features = (lambda x: [x, 2 * x, 3 * x, 4 * x, 5 * x]) if with_features else None
    found = generator_loss(*case, WEIGHTS, features)
    kinds = ["gan", "l1", *(["perceptual"] if with_features else [])]
    assert set(found) == {"loss", *(f"{k}_{i}" for k in kinds for i in (1, 2)), "gan_segmentation", "l1_segmentation"}
    expected = torch.zeros(())
    for i, (b, d) in enumerate(zip((0.1, 0.3), case.translation, strict=True)):
        made, real = case.made.modalities[i], case.real.modalities[i]
        terms = [bce(d(torch.cat([case.source, made], dim=1)), 1), 100 * smooth_l1(made, real)]
        if features is not None:
            terms.append(100 * perceptual_loss(made, real, features))
        assert [float(found[f"{k}_{i + 1}"]) for k in kinds] == pytest.approx(
            [float(t.detach()) for t in terms], rel=1e-5
        )
        expected = expected + b * sum(terms)
    gan = ((judged(case, case.made.segmentation, WEIGHTS) - 1) ** 2).mean()
    expected = expected + 0.6 * (gan + 100 * smooth_l1(case.made.segmentation, case.real.segmentation))
    torch.testing.assert_close(found["loss"], expected)

    images = [*case.made.modalities, case.made.segmentation]
    wanted = torch.autograd.grad(expected, images, retain_graph=True)
    for gradient, other in zip(wanted, torch.autograd.grad(found["loss"], images), strict=True):
        torch.testing.assert_close(gradient, other)
    assert not any(value.requires_grad for key, value in found.items() if key != "loss")


def test_reconstruction_and_perceptual_weights():
    case = Case()
    weights = GanWeights((1.0, 0.0, 0.0), reconstruction=0.0, perceptual=7.0)
    found = generator_loss(*case, weights, lambda x: [x] * 5)
    assert float(found["l1_1"]) == 0
    assert float(found["perceptual_1"]) == pytest.approx(
        7 * float(perceptual_loss(case.made.modalities[0], case.real.modalities[0], lambda x: [x] * 5).detach())
    )


def test_a_discriminator_without_weight_is_not_run():
    case = Case()
    weights = GanWeights((0.5, 0.0, 0.5))

    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    expected = discriminator_loss(*case, weights)["loss"]
    case.segmentation[1] = Never()  # type: ignore[call-overload]
    torch.testing.assert_close(discriminator_loss(*case, weights)["loss"], expected)
    generator_loss(*case, weights)


def test_no_modalities_but_the_class_map():
    case = Case()
    case.translation, case.segmentation = [], case.segmentation[:1]
    case.real, case.made = (Stains([], s.segmentation) for s in (case.real, case.made))
    weights = GanWeights((1.0,))
    logits = case.segmentation[0](torch.cat([case.source, case.made.segmentation], dim=1))
    found = generator_loss(*case, weights)
    expected = ((logits - 1) ** 2).mean() + 100 * smooth_l1(case.made.segmentation, case.real.segmentation)
    torch.testing.assert_close(found["loss"], expected)
    assert set(discriminator_loss(*case, weights)) == {"loss", "fake_segmentation", "real_segmentation"}


def test_equal_shares_by_default():
    weights = GanWeights((0.25, 0.15, 0.25, 0.10, 0.25))
    assert weights.generator == weights.discriminator == pytest.approx((0.2,) * 5)
    assert (weights.reconstruction, weights.perceptual, weights.smoothing) == (100, 100, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segmentation": ()}, "`segmentation` must hold one number for the input and one for each modality"),
        ({"segmentation": (0.0, 0.0)}, "One of the `segmentation` weights must be above 0"),
        ({"segmentation": (1.0, -1.0)}, "`segmentation` must hold 2 numbers of at least 0"),
        ({"segmentation": (1.0, 0.0), "generator": (1.0,)}, "`generator` must hold 2 numbers of at least 0"),
        ({"segmentation": (1.0,), "discriminator": (math.nan,)}, "`discriminator` must hold 1 numbers"),
        ({"segmentation": (1.0,), "smoothing": 1.0}, "`smoothing` must be at least 0 and below 1, got 1.0"),
    ],
)
def test_wrong_weights(arguments, message):
    with pytest.raises(ValueError, match=message):
        GanWeights(**arguments)


@pytest.mark.parametrize("loss", [discriminator_loss, generator_loss])
def test_numbers_that_do_not_fit(loss):
    case = Case()
    with pytest.raises(
        ValueError, match="The weights are for 1 modalities and 2 class maps; there are 2 discriminators of "
    ):
        loss(*case, GanWeights((0.5, 0.5)))
    case.segmentation.pop()
    with pytest.raises(
        ValueError, match="there are 2 discriminators of modalities, 2 of class maps, 2 real modalities"
    ):
        loss(*case, WEIGHTS)


def test_without_a_gan_term_there_are_no_discriminators():
    case = Case()
    weights = GanWeights((0.5, 0.2, 0.3), (0.1, 0.3, 0.6), gan=0.0)
    parts = generator_loss([], [], case.source, case.real, case.made, weights)
    assert set(parts) == {"loss", "l1_1", "l1_2", "l1_segmentation"}
    expected = sum(
        b * float(parts[f"l1_{n}"]) for b, n in zip((0.1, 0.3, 0.6), ("1", "2", "segmentation"), strict=True)
    )
    assert float(parts["loss"].detach()) == pytest.approx(expected)
    half = generator_loss(*case, GanWeights((0.5, 0.2, 0.3), gan=0.5))
    whole = generator_loss(*case, GanWeights((0.5, 0.2, 0.3)))
    assert float(half["gan_1"]) == pytest.approx(float(whole["gan_1"]) / 2)
