"""Maps of probabilities: the mean over views, on tiles that are put where they belong."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cytonym.learning import maps as module
from cytonym.learning.maps import AS_IT_IS, VIEWS, Mapper, View, padded, released_map
from cytonym.models.nimbus import Nimbus, NimbusConfig

torch.set_num_threads(1)


class Uneven(nn.Module):
    """A network that knows up from down and left from right."""

    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor, padding: str = "reflect") -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding), self.weight).sigmoid()


class Through(nn.Module):
    """The marker itself, of the size that a network of so many levels leaves without padding."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.nothing = stride, nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, padding: str = "reflect") -> torch.Tensor:
        if padding == "reflect":
            return x[:, :1]
        lost = x.shape[-1] - left_without_padding(x.shape[-1], self.stride)
        return x[:, :1, lost // 2 : -(lost // 2), lost // 2 : -(lost // 2)]


@cache
def left_without_padding(side: int, stride: int) -> int:
    """As the network itself says."""
    model = Nimbus.from_seed(NimbusConfig(filters=1, depth=stride.bit_length()))
    with torch.inference_mode():
        return int(model(torch.zeros(1, 2, side, side), "valid").shape[-1])


def tile(height: int, width: int, channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((channels, height, width), "f4"), (rng.random((height, width)) < 0.6).astype("f4")


def forward(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(np.ascontiguousarray(x))).numpy()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [None, -1, -2])
def test_views_are_undone(turns, mirrored):
    x = torch.rand(2, 3, 5, 8)
    view = View(turns, mirrored, 1.0)
    assert torch.equal(view.undone(view.of(x)), x)
    assert turns % 2 == 0 or view.of(x).shape == (2, 3, 8, 5)


def test_the_weights_of_views_add_up():
    for views in VIEWS.values():
        assert sum(view.weight for view in views) == pytest.approx(1)
    assert VIEWS[None] == AS_IT_IS
    x = torch.arange(6.0).reshape(2, 3)
    seen = {tuple(view.of(x).flatten().tolist()) for view in VIEWS["six_views"]}
    assert len(seen) == 6
    assert tuple(x.flatten().tolist()) in seen
    assert len({tuple(view.of(x).flatten().tolist()) for view in VIEWS["released"]}) == 3


def by_hand(markers: np.ndarray, interior: np.ndarray, views: str | None) -> np.ndarray:
    """All single passes [V, C, H, W], in numpy's words."""
    x = np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1)
    turned = lambda k: np.rot90(forward(Uneven(), np.rot90(x, k, (2, 3))), -k, (2, 3))
    flipped = lambda axis: np.flip(forward(Uneven(), np.flip(x, axis)), axis)
    passes = {
        None: [turned(0)],
        "six_views": [turned(0), turned(1), turned(2), turned(3), flipped(3), flipped(2)],
        "released": [turned(3)] * 4 + [flipped(3), flipped(2)],
    }[views]
    return np.stack(passes)[:, :, 0]


@pytest.mark.parametrize("views", [None, "six_views", "released"])
def test_mean_over_views_is_that_of_single_passes(views):
    markers, interior = tile(12, 18)
    with Mapper(Uneven(), views=views, device="cpu") as mapper:
        mean, variance = mapper(markers, interior)
    expected = by_hand(markers, interior, views)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(variance, expected.astype("f8").var(0), atol=1e-7)
    if views is not None:
        assert expected.std(0).max() > 0.05


def test_a_scorer_runs_in_its_fast_form_and_stays_as_it_was():
    model = Nimbus.from_seed(NimbusConfig(filters=4, depth=3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    markers, interior = tile(16, 24)
    with Mapper(model, device="cpu") as mapper:
        mean, _ = mapper(markers, interior)
    x = np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1)
    np.testing.assert_allclose(mean, forward(model.eval(), x)[:, 0], atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_channels_and_threads_do_not_matter():
    model = Nimbus.from_seed(NimbusConfig(filters=4, depth=3))
    markers, interior = tile(32, 24, channels=5)
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with Mapper(model, device="cpu") as mapper:
                found.append(mapper(markers, interior)[0])
                np.testing.assert_array_equal(mapper(markers[[3, 1]], interior)[0], found[-1][[3, 1]])
    finally:
        torch.set_num_threads(1)
    np.testing.assert_array_equal(*found)


def test_as_many_channels_as_fit_go_together_elsewhere(monkeypatch):
    """On a GPU, whose place is taken by a name here."""
    sizes = []

    class Counting(Uneven):
        def forward(self, x, padding="reflect"):
            sizes.append(len(x))
            return super().forward(x, padding)

    markers, interior = tile(16, 16, channels=7)
    with Mapper(Counting(), device="cpu") as mapper:
        expected = mapper(markers, interior)[0]
        mapper.device = type("Elsewhere", (), {"type": "xpu", "__str__": lambda self: "cpu"})()
        monkeypatch.setattr(module, "PIXELS_ON_GPU", 3 * 16 * 16)
        monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: self)
        np.testing.assert_allclose(mapper(markers, interior)[0], expected, atol=1e-6)
    assert sizes == [1] * 7 + [3, 3, 1]


# --- sizes ---


def test_padding_mirrors_at_the_end():
    x = np.arange(12.0).reshape(1, 3, 4)
    assert padded(x, 3, 4) is x
    np.testing.assert_array_equal(padded(x, 5, 6), np.pad(x, [(0, 0), (0, 2), (0, 2)], mode="reflect"))
    assert padded(x[0], 20, 20).shape == (20, 20)  # more than there is to mirror
    np.testing.assert_array_equal(padded(x[:, :1, :1] + 7, 4, 4), np.full((1, 4, 4), 7.0))


@pytest.mark.parametrize("stride", [2, 4, 16])
@pytest.mark.parametrize("shape", [(230, 300), (257, 100), (600, 256)])
def test_released_tiles_lie_where_they_belong(stride, shape):
    """Whatever the depth of the network: a network that changes nothing gives the marker back."""
    markers, interior = tile(*shape, channels=2)
    with Mapper(Through(stride), device="cpu") as mapper:
        mean, variance = released_map(mapper, markers, interior, tile_px=256)
        assert mapper.padding == "reflect"
    np.testing.assert_array_equal(mean, markers)
    assert not variance.any()


def test_small_images_are_one_tile_for_the_released_program():
    model = Nimbus.from_seed(NimbusConfig(filters=2, depth=3))
    markers, interior = tile(50, 47)
    with Mapper(model, device="cpu") as mapper:
        mean, _ = released_map(mapper, markers, interior, tile_px=64)
    x = np.stack([markers, np.broadcast_to(interior, markers.shape)], axis=1)
    assert mean.shape == (3, 48, 44)
    np.testing.assert_allclose(mean, forward(model, x)[:, 0], atol=1e-5)


def test_padding_is_put_back_after_an_error():
    class Fails(Uneven):
        def forward(self, x, padding="reflect"):
            raise FloatingPointError

    with Mapper(Fails(), device="cpu") as mapper:
        with pytest.raises(FloatingPointError):
            released_map(mapper, *tile(300, 300), tile_px=256)
        assert mapper.padding == "reflect"
