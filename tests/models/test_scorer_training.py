"""Training of a scorer: which pixels count, which cells are selected, which weights are kept, and that it can be interrupted."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cytonym.data.scoring_tiles import NEGATIVE, POSITIVE, UNDEFINED, Plot, ScoringTiles
from cytonym.learning.fit import fit
from cytonym.learning.scorer_views import ScorerViews
from cytonym.models.nimbus import Nimbus, NimbusConfig
from cytonym.models.scorer_training import NIMBUS_RECIPE, SCORER_RECIPE, ScorerRecipe, ScorerTraining

torch.set_num_threads(1)
STILL: Any = ScorerViews(chance=0.0)


class Pixelwise(nn.Module):
    """Each pixel by itself: the logit is a straight line through the marker."""

    name, markers, config, stride = "pixelwise", ("any",), None, 2

    def __init__(self, gain: float = 8.0, offset: float = -4.0) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor(offset))
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("seen").add_(1)
        return self.gain * x[:, :1] + self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).sigmoid()

    def config_dict(self) -> dict[str, Any]:
        return {}


def recipe(**changes: Any) -> ScorerRecipe:
    return replace(
        ScorerRecipe(10, 2, 1e-2, final_rate=0.0, warmup=0.0, constant=0.0, views=STILL, tile_px=16), **changes
    )


def training(validation: Any = (), n_keys: int = 3, network: Any = None, **changes: Any) -> ScorerTraining:
    pixelwise: Any = Pixelwise()
    return ScorerTraining(network or pixelwise, recipe(**changes), n_keys, validation).train()


def tiles_of(
    labels: list[list[int]], brightness: list[list[float]] | None = None, keys: list[int] | None = None
) -> Tensor:
    """One tile a list, 16 x 16: cells of 4 x 4 pixels of which the lowest row is no interior, four in a row."""
    out = torch.zeros(len(labels), 5, 16, 16)
    for b, kinds in enumerate(labels):
        out[b, 4] = 0 if keys is None else keys[b]
        out[b, 0] = 0.1
        for i, kind in enumerate(kinds):
            y, x = i // 3 * 5, i % 3 * 5
            out[b, 0, y : y + 4, x : x + 4] = 0.5 if brightness is None else brightness[b][i]
            out[b, 1, y : y + 3, x : x + 4] = 1
            out[b, 2, y : y + 4, x : x + 4] = kind
            out[b, 3, y : y + 4, x : x + 4] = i + 1
    return out


def at_step(module: ScorerTraining, step: int) -> ScorerTraining:
    """As if so many steps were done, the averages of which do not matter."""
    module.steps.fill_(step)
    return module


# --- which pixels count ---


@pytest.mark.parametrize("boundaries", ["cell", "background"])
def test_loss_of_a_pixel_is_smoothed_cross_entropy(boundaries):
    tiles = tiles_of([[POSITIVE, NEGATIVE, UNDEFINED]])
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = training(boundaries=boundaries, smoothing=0.1).pixel_loss(logits, tiles)
    p = torch.sigmoid(logits).double().numpy()[0]
    positive = np.zeros((16, 16), bool)
    positive[: 4 if boundaries == "cell" else 3, :4] = True
    target = np.where(positive, 0.95, 0.05)
    np.testing.assert_allclose(found[0], -(target * np.log(p) + (1 - target) * np.log(1 - p)), atol=1e-5)


def counting(module: ScorerTraining, tiles: Tensor) -> np.ndarray:
    """Pixels that pull at the network [B, S, S]."""
    views = [tiles, tiles.clone().requires_grad_()]
    module.loss(views)["loss"].backward()  # type: ignore[no-untyped-call]
    assert views[1].grad is not None
    return (views[1].grad[:, 0] != 0).numpy()


@pytest.mark.parametrize("step", [0, 8])
@pytest.mark.parametrize("cell_loss", [0.0, 0.5])
def test_undefined_cells_do_not_count_and_background_does(step, cell_loss):
    tiles = tiles_of([[POSITIVE, UNDEFINED, NEGATIVE, POSITIVE], [UNDEFINED] * 5])
    module = at_step(training(percentile=(1.0, 1.0), cell_loss=cell_loss), step)
    np.testing.assert_array_equal(counting(module, tiles), (tiles[:, 2] != UNDEFINED).numpy())


def test_all_labelled_cells_count_at_first_and_selected_ones_later():
    """The last of the bright cells is called negative, the last of the dark ones positive."""
    labels = [[POSITIVE] * 3 + [NEGATIVE], [NEGATIVE] * 3 + [POSITIVE]]
    tiles = tiles_of(labels, [[0.9, 0.8, 0.85, 0.8], [0.1, 0.2, 0.15, 0.2]])
    wrong = (tiles[:, 3] == 4).numpy()
    early, late = training(), at_step(training(), 8)
    assert counting(early, tiles).all()
    np.testing.assert_array_equal(counting(late, tiles), ~wrong)


def test_the_share_that_is_kept_is_told():
    tiles = tiles_of([[POSITIVE] * 3 + [NEGATIVE, UNDEFINED], [NEGATIVE] * 3 + [POSITIVE]], [[0.9] * 5, [0.1] * 4])
    assert float(training().loss([tiles, tiles])["kept"]) == 1
    assert float(at_step(training(), 8).loss([tiles, tiles])["kept"]) == pytest.approx(6 / 8)
    zoomed = tiles.clone()
    zoomed[:, :4, 8:] = 0  # fewer pixels of cells after augmentation
    assert 0 < float(at_step(training(), 8).loss([tiles, zoomed])["kept"]) <= 1


def test_scores_of_cells_may_count_too():
    """Cross-entropy of the mean probability of each cell that takes part; undefined and unselected ones do not."""
    labels = [[POSITIVE, NEGATIVE, UNDEFINED, POSITIVE], [NEGATIVE, POSITIVE, NEGATIVE, NEGATIVE]]
    brightness = [[0.9, 0.2, 0.7, 0.1], [0.1, 0.85, 0.9, 0.15]]  # one positive is dark, one negative bright
    tiles = tiles_of(labels, brightness)
    tiles[0, 0, :2, :4] = 0.6  # half of the first cell
    p = lambda x: 1 / (1 + np.exp(4 - 8 * np.array(x)))
    first = -np.log((p(0.6) + p(0.9)) / 2)
    of = lambda *wrong: -np.log(1 - p(wrong))
    kept = [first, *of(0.2), *of(0.1), -np.log(p(0.85)), *of(0.15)]
    for step, expected in ((0, [*kept, *of(0.9), -np.log(p(0.1))]), (8, kept)):
        found = [at_step(training(cell_loss=c), step).loss([tiles, tiles])["loss"].item() for c in (0.0, 0.5)]
        assert found[1] - found[0] == pytest.approx(0.5 * np.mean(expected), rel=1e-4)
    sure = tiles_of([[POSITIVE]], [[-100.0]])  # probabilities of 0 stay finite
    assert np.isfinite(training(cell_loss=1.0).loss([sure, sure])["loss"].item())


@pytest.mark.parametrize("cell_loss", [0.0, 0.5])
def test_a_tile_without_cells_is_background(cell_loss):
    tiles = torch.zeros(2, 5, 16, 16)
    for step in (0, 8):
        found = at_step(training(cell_loss=cell_loss), step).loss([tiles, tiles])
        assert found["loss"].item() == pytest.approx(
            -0.975 * np.log(1 / (1 + np.exp(-4))) - 0.025 * np.log(1 / (1 + np.exp(4))), rel=1e-4
        )


def test_selection_begins_after_its_share_of_the_steps(monkeypatch):
    begins = {}
    monkeypatch.setattr(
        ScorerTraining, "selected", lambda self, tiles: chosen.append(int(self.steps)) or torch.ones(1, 4)
    )
    for robust_from in (0.0, 0.5, 0.75, 1.0):
        chosen: list[int] = []
        module = training(robust_from=robust_from, steps=20)
        for _ in range(20):
            module.loss([tiles_of([[1, 0, 1, 0]])] * 2)
        begins[robust_from] = chosen[:1]
    assert begins == {0.0: [1], 0.5: [11], 0.75: [16], 1.0: []}


def test_views_of_another_size_are_refused():
    with pytest.raises(ValueError, match="Variants have another size than their tiles"):
        training().loss([torch.zeros(1, 5, 16, 16), torch.zeros(1, 5, 12, 12)])


# --- which cells are selected ---


def test_selection_by_hand():
    """Per marker and label: a running quantile of the losses, or a clear prediction."""
    rng = np.random.default_rng(0)
    module = training(percentile=(0.4, 0.8), quantile_rate=0.25, confidence=0.97, robust_from=0.5, n_keys=2)
    loss_of = lambda p, label: -(0.975 if label else 0.025) * np.log(p) - (0.025 if label else 0.975) * np.log(1 - p)
    quantiles = np.full((2, 2), np.nan)
    for step in (5, 6, 8, 10):
        labels = rng.integers(0, 3, (4, 9))
        brightness = rng.uniform(0, 1, (4, 9))
        keys = [0, 1, 0, 0]
        tiles = tiles_of(labels.tolist(), brightness.tolist(), keys)
        found = at_step(module, step).selected(tiles).numpy()
        p = 1 / (1 + np.exp(-(8 * brightness - 4)))
        losses = np.where(labels == 1, loss_of(p, 1), loss_of(p, 0))
        expected = np.zeros_like(losses)
        percentile = 0.4 + 0.4 * (step - 5) / 5
        for key in (0, 1):
            for label in (0, 1):
                mine = (np.array(keys)[:, None] == key) & (labels == label)
                if not mine.any():
                    continue
                now = np.quantile(losses[mine], percentile)
                before = quantiles[key, label]
                quantiles[key, label] = now if np.isnan(before) else 0.75 * before + 0.25 * now
                expected[mine] = (losses[mine] <= quantiles[key, label] + 1e-6) | (losses[mine] < loss_of(0.97, 1))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(module.quantiles.numpy(), quantiles, atol=1e-5)
    assert module.network.training
    assert int(module.network.seen) == 0  # no running statistics were touched


def test_loss_of_a_cell_is_the_mean_over_its_pixels():
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    tiles[0, 0, :2, :4] = 0.9  # half of the first cell
    module = at_step(training(percentile=(0.5, 0.5), robust_from=0.0), 1)
    module.selected(tiles)
    loss = lambda v, t: -t * np.log(1 / (1 + np.exp(4 - 8 * v))) - (1 - t) * np.log(1 - 1 / (1 + np.exp(4 - 8 * v)))
    assert float(module.quantiles[0, 1]) == pytest.approx((loss(0.9, 0.975) + loss(0.5, 0.975)) / 2, abs=1e-5)
    assert float(module.quantiles[0, 0]) == pytest.approx(loss(0.5, 0.025), abs=1e-5)
    assert module.quantiles[1:].isnan().all()


# --- which weights are kept ---


def test_the_running_mean_by_hand():
    """The weights themselves at first, then an average with what was before."""
    module = training(average=0.8, to_start=0.0)
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    mean = 8.0
    for step in range(12):
        module.loss([tiles, tiles])
        if step:
            now = 8.0 + step
            mean = now if step <= 5 else 0.8 * mean + 0.2 * now
        assert float(module.mean.state_dict()["gain"]) == pytest.approx(mean, rel=1e-6)
        assert float(module.mean.state_dict()["seen"]) == float(module.network.seen) - 1 if step else True
        with torch.no_grad():
            module.network.gain.fill_(8.0 + step + 1)  # type: ignore[operator, union-attr]
    result = module.finished()
    assert result is module.network
    assert float(result.state_dict()["gain"]) == pytest.approx(0.8 * mean + 0.2 * 20.0, rel=1e-6)
    assert not result.training


def test_only_the_network_is_trained():
    module = training()
    assert [name for name, _ in module.named_parameters()] == ["network.gain", "network.offset"]
    assert set(module.state_dict()) == {
        *(f"{part}.{name}" for part in ("network", "mean", "best") for name in ("gain", "offset", "seen")),
        *("steps", "start_score", "best_score", "quantiles"),
    }


def test_f1_of_validation_cells_by_hand():
    """Mean over markers; one without positive cells does not count, undefined cells neither."""
    validation = [
        tiles_of([[1, 1, 1, 0, 0, 2, 2]], [[0.9, 0.8, 0.1, 0.9, 0.1, 0.9, 0.1]]),  # 2 hits, 1 wrong, 1 missed
        tiles_of([[1, 0, 0]], [[0.9, 0.1, 0.1]]),
        tiles_of([[1, 0]], [[0.1, 0.1]], [1]),
        tiles_of([[0, 0, 2]], [[0.9, 0.1, 0.9]], [2]),
    ]
    module = training(validation)
    assert module.judge(module.mean) == pytest.approx((2 * 3 / (2 * 3 + 1 + 1) + 0) / 2)
    nothing = training(validation[3:])
    assert np.isnan(nothing.judge(nothing.mean))


def test_the_best_weights_are_kept(monkeypatch):
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    scores = iter([0.3, 0.4, 0.9, 0.7, 0.8])
    monkeypatch.setattr(ScorerTraining, "judge", lambda self, model: next(scores))
    module = training([tiles], judge_every=3, robust_from=1.0)
    for step in range(10):
        module.loss([tiles, tiles])
        with torch.no_grad():
            module.network.gain.fill_(8.0 + step + 1)  # type: ignore[operator, union-attr]
    result = module.finished()
    assert [row for row in module.history if "validation_f1" in row] == [
        {"step": 3, "validation_f1": 0.4},
        {"step": 6, "validation_f1": 0.9},
        {"step": 9, "validation_f1": 0.7},
        {"step": 10, "validation_f1": 0.8},
    ]
    assert float(result.state_dict()["gain"]) == 8.0 + 6
    assert float(module.best_score) == pytest.approx(0.9)
    assert not module.spoiled


@pytest.mark.parametrize(("start", "gain", "best"), [(0.875, 8.0, -1.0), (0.75, 8.0 + 10, 0.75)])
def test_a_training_that_only_spoils_gives_back_the_weights_it_began_with(monkeypatch, start, gain, best):
    """Of weights that are as good as these, the trained ones are kept. What is best before cells are selected does not count."""
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    scores = iter([start, 0.9, 0.7, 0.75])
    monkeypatch.setattr(ScorerTraining, "judge", lambda self, model: next(scores))
    module = training([tiles], steps=10, judge_every=4, robust_from=0.5)
    for step in range(10):
        module.loss([tiles, tiles])
        with torch.no_grad():
            module.network.gain.fill_(8.0 + step + 1)  # type: ignore[operator, union-attr]
    assert float(module.finished().state_dict()["gain"]) == pytest.approx(gain)
    assert float(module.start_score) == pytest.approx(start)
    assert float(module.best_score) == pytest.approx(best)
    assert module.spoiled == (best < 0)


def test_of_a_robust_training_only_weights_of_its_last_part_are_kept(monkeypatch):
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    scores = iter([0.2, 0.9, 0.8, 0.4, 0.5, 0.3])
    monkeypatch.setattr(ScorerTraining, "judge", lambda self, model: next(scores))
    module = training([tiles], steps=10, judge_every=2, robust_from=0.5)
    for step in range(10):
        module.loss([tiles, tiles])
        with torch.no_grad():
            module.network.gain.fill_(8.0 + step + 1)  # type: ignore[operator, union-attr]
    assert float(module.finished().state_dict()["gain"]) == 8.0 + 8
    assert float(module.best_score) == pytest.approx(0.5)
    assert [row["step"] for row in module.history] == [2, 4, 6, 8, 10]


def test_the_last_look_is_not_taken_twice(monkeypatch):
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    calls: list[int] = []
    monkeypatch.setattr(ScorerTraining, "judge", lambda self, model: calls.append(1) or 0.5)
    module = training([tiles], judge_every=5)
    for _ in range(10):
        module.loss([tiles, tiles])
    module.finished()
    assert len(calls) == 1 + 2  # the first at the start
    assert [row["step"] for row in module.history] == [5, 10]


def test_validation_cells_that_say_nothing_choose_nothing():
    tiles = tiles_of([[NEGATIVE, NEGATIVE]])
    module = training([tiles], judge_every=2)
    for step in range(4):
        module.loss([tiles, tiles])
        with torch.no_grad():
            module.network.gain.fill_(8.0 + step + 1)  # type: ignore[operator, union-attr]
    assert float(module.finished().state_dict()["gain"]) == 12.0
    assert module.history == []
    assert float(module.best_score) == -1


def test_weights_are_drawn_to_their_start():
    tiles = tiles_of([[POSITIVE, NEGATIVE]])
    free, drawn = training(to_start=0.0), training(to_start=0.5)
    for module in (free, drawn):
        module.loss([tiles, tiles])
        with torch.no_grad():
            module.network.gain.fill_(10.0)  # type: ignore[operator, union-attr]
            module.network.offset.fill_(-1.0)  # type: ignore[operator, union-attr]
    without, found = (m.loss([tiles, tiles])["loss"] for m in (free, drawn))
    assert (found - without).item() == pytest.approx(0.5 * (2.0**2 + 3.0**2), rel=1e-5)


# --- recipes ---


def test_recipes_say_what_the_paper_says():
    assert (NIMBUS_RECIPE.steps, NIMBUS_RECIPE.robust_from * NIMBUS_RECIPE.steps) == (400_000, 300_000)
    assert (NIMBUS_RECIPE.batch_size, NIMBUS_RECIPE.learning_rate, NIMBUS_RECIPE.tile_px) == (16, 3e-4, 512)
    assert (NIMBUS_RECIPE.smoothing, NIMBUS_RECIPE.average, NIMBUS_RECIPE.boundaries) == (0.05, 0.99, "background")
    assert (NIMBUS_RECIPE.percentile[1], NIMBUS_RECIPE.confidence, NIMBUS_RECIPE.quantile_rate) == (0.85, 0.9, 0.01)
    views: Any = NIMBUS_RECIPE.views
    assert (views.chance, views.zoom, views.noise, views.gain) == (0.25, (0.8, 1.2), (0.001, 0.015), 0.0)
    for known in (SCORER_RECIPE, NIMBUS_RECIPE):
        known.check(Nimbus.from_seed(NimbusConfig(filters=1, depth=5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 30}, "`tile_px` must be a multiple of 4, at least 8, for this network, got 30"),
        ({"tile_px": 4}, "`tile_px` must be a multiple of 4, at least 8, for this network, got 4"),
        ({"boundaries": "both"}, "`boundaries` must be 'cell' or 'background', got 'both'"),
    ],
)
def test_recipes_that_do_not_suit(changes, message):
    with pytest.raises(ValueError, match=message):
        training(network=Nimbus.from_seed(NimbusConfig(filters=1, depth=3)), **changes)


# --- a whole training ---


def plot(seed: int = 0, flipped: float = 0.0, n_side: int = 6) -> tuple[Plot, np.ndarray]:
    """Cells of 6 x 6 pixels, bright where positive; and which of the labels are wrong [cells, 2]."""
    rng = np.random.default_rng(seed)
    side = 10 * n_side
    rows = np.full((side, side), -1, np.int32)
    truth = rng.integers(0, 2, (n_side**2, 2))
    markers = rng.uniform(0, 0.15, (2, side, side))
    for i in range(n_side**2):
        y, x = i // n_side * 10 + 2, i % n_side * 10 + 2
        rows[y : y + 6, x : x + 6] = i
        markers[:, y : y + 6, x : x + 6] += 0.6 * truth[i][:, None, None]
    wrong = rng.random(truth.shape) < flipped
    interior = rows >= 0
    activity = np.where(wrong, 1 - truth, truth).astype(np.int8)
    return Plot(markers.astype(np.float16), interior, rows, activity, np.arange(2)), wrong


SMALL = NimbusConfig(filters=2, depth=2)


def whole(
    folder: Any = None, *, seed: int = 0, judged: bool = True, learned_from: bytes = b"", **changes: Any
) -> ScorerTraining:
    """A short training of a small network, with everything that can go on."""
    chosen = recipe(
        **{
            "steps": 12, "robust_from": 0.5, "average": 0.7, "judge_every": 4, "to_start": 1e-3, "cell_loss": 0.5, "percentile": (0.5, 0.8),
            "views": ScorerViews(chance=0.5, gain=0.1), "quantile_rate": 0.2, **changes,
        }
    )  # fmt: skip
    tiles = ScoringTiles([plot()[0]], 16, 2, chosen.steps, seed=seed)
    validation = list(ScoringTiles([plot(1)[0]], 16, 1, 1).all_tiles())[:8] if judged else []
    module = ScorerTraining(Nimbus.from_seed(SMALL), chosen, 2, validation, learned_from)
    fit(module, tiles, chosen, seed=seed, device="cpu", checkpoint_dir=folder, checkpoint_every=5, progress=False)  # type: ignore[arg-type]
    return module


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v.nan_to_num(9), b.state_dict()[k].nan_to_num(9)) for k, v in a.state_dict().items())


def test_same_seed_same_bytes():
    state = torch.get_rng_state()
    first, again, other = whole(), whole(), whole(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first, again)
    assert first.history == again.history
    assert not equal(first.network, other.network)
    assert equal(first.finished(), again.finished())


@pytest.mark.parametrize(("when", "at"), [("before", 5), ("after", 3), ("after", 5), ("after", 12)])
def test_an_interrupted_training_ends_at_the_same_weights(tmp_path, monkeypatch, when, at):
    """In the middle of a step: averages, best weights and history of the broken step must not stay."""
    expected = whole()
    loss, calls = ScorerTraining.loss, []

    def broken(self: ScorerTraining, views: list[Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == at and when == "before":
            raise KeyboardInterrupt
        found = loss(self, views)
        if len(calls) == at:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ScorerTraining, "loss", broken)
        with pytest.raises(KeyboardInterrupt, match=f"interrupted at step {at - 1} of 12"):
            whole(tmp_path)
    resumed = whole(tmp_path)
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    assert equal(resumed.finished(), expected.finished())
    assert resumed.history == expected.history
    done = whole(tmp_path)  # nothing is left to train
    assert equal(done.finished(), expected.network)
    assert done.history == expected.history


def test_other_labels_in_the_folder(tmp_path):
    whole(tmp_path, learned_from=b"abc")
    with pytest.raises(ValueError, match="it began from other weights or data"):
        whole(tmp_path, learned_from=b"abd")
    whole(tmp_path, learned_from=b"abc")


def test_wrong_labels_are_left_out_more_often(monkeypatch):
    """A sixth of the labels is wrong; in the second half of the training few of these cells take part, and most of the others do."""
    plots, wrong = zip(*[plot(seed, flipped=1 / 6) for seed in range(4)], strict=True)
    chosen = recipe(
        steps=60, batch_size=4, tile_px=32, robust_from=0.5, learning_rate=1e-2, quantile_rate=0.1, views=STILL
    )
    tiles = ScoringTiles(plots, 32, 4, chosen.steps)
    kept: dict[bool, list[float]] = {False: [], True: []}
    selected = ScorerTraining.selected

    def watched(self: ScorerTraining, batch: Tensor) -> Tensor:
        found = selected(self, batch)
        for tile, take in zip(batch, found, strict=True):
            for number in range(1, int(tile[3].max()) + 1):
                cell = tile[3] == number
                label, bright = int(tile[2][cell][0]), float(tile[0][cell].mean()) > 0.4
                kept[label != bright].append(float(take[number - 1]))
        return found

    monkeypatch.setattr(ScorerTraining, "selected", watched)
    module = ScorerTraining(Nimbus.from_seed(NimbusConfig(filters=4, depth=3)), chosen, 2)
    fit(module, tiles, chosen, device="cpu", progress=False)  # type: ignore[arg-type]
    assert all(w.any() for w in wrong)
    assert len(kept[True]) > 100
    assert np.mean(kept[True]) < 0.25
    assert np.mean(kept[False]) > 0.6
    shares = [row["kept"] for row in module.history]
    assert shares[:30] == [1.0] * 30
    assert max(shares[30:]) < 1


def test_training_learns_what_is_bright():
    module = whole(steps=60, learning_rate=1e-2, judge_every=20, views=ScorerViews(), judged=True)
    before = deepcopy(module.history)
    model = module.finished()
    assert float(module.best_score) > 0.9
    assert len(before) == 60 + 2  # a row a step, and two looks; the third comes at the end
    one, _ = plot(5)
    x = torch.from_numpy(np.stack([one.markers[0].astype("f4"), one.interior.astype("f4")])[None])
    with torch.inference_mode():
        p = model(x)[0, 0].numpy()
    score = np.array([p[one.rows == i].mean() for i in range(len(one.activity))])
    assert score[one.activity[:, 0] == 1].min() > score[one.activity[:, 0] == 0].max()
