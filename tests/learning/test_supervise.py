"""Training with labels: which epoch is kept, which cells are drawn, the same weights again, and clear words."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cytonym.learning.state import STATE_FILE
from cytonym.learning.supervise import SHOWN_FROM, Schedule, supervise, validation_loss

torch.set_num_threads(1)
N, D, K = 50, 4, 3


class Net(nn.Module):
    """A linear layer with everything that can go wrong: dropout, running statistics, noise from the generator."""

    name = "net"

    def __init__(self, markers: tuple[str, ...] = ("a", "b", "c", "d"), *, plain: bool = False) -> None:
        super().__init__()
        self.markers = markers
        self.plain = plain
        self.history: list[dict[str, float]] = []
        self.norm = nn.Identity() if plain else nn.BatchNorm1d(D)
        self.drop = nn.Dropout(0 if plain else 0.3)
        self.layer = nn.utils.skip_init(nn.Linear, D, K)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, D * K).reshape(K, D))
            self.layer.bias.zero_()
        self.seen: list[tuple[bool, bool, bool]] = []

    def config_dict(self) -> dict[str, Any]:
        return {"plain": self.plain, "sizes": (D, K)}

    def supervised_loss(self, inputs: tuple[Tensor, ...], targets: Tensor, generator: torch.Generator | None) -> Tensor:
        [x] = inputs
        self.seen.append((self.training, torch.is_grad_enabled(), generator is not None))
        if generator is not None and not self.plain:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        z = self.layer(self.drop(self.norm(x)))
        if targets.ndim == 2:
            return F.binary_cross_entropy_with_logits(z, targets.float())
        return F.cross_entropy(z, targets)


def cells(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Numbers of cells of three classes, of which one is rare, with labels that are wrong now and then."""
    rng = np.random.default_rng(seed)
    y = rng.choice(K, N, p=[0.6, 0.3, 0.1])
    x = rng.normal(size=(N, D)) + np.eye(K, D)[y]
    return torch.from_numpy(x.astype("f4")), torch.from_numpy(np.where(rng.random(N) < 0.3, rng.integers(0, K, N), y))


X, Y = cells()
TRAIN, VALIDATE = np.arange(0, 37), np.arange(37, N)
SCHEDULE = Schedule(epochs=12, batch_size=8, learning_rate=0.1)


class Reader:
    """Gives inputs and remembers which were asked for."""

    def __init__(self, x: Tensor = X) -> None:
        self.x = x
        self.batches: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray) -> tuple[Tensor]:
        self.batches.append(rows.copy())
        return (self.x[torch.from_numpy(rows)],)


def train(model: Net | None = None, read: Any = None, y: Tensor = Y, **arguments: Any) -> Net:
    names = Schedule.__dataclass_fields__
    schedule = Schedule(**(vars(SCHEDULE) | {k: arguments.pop(k) for k in list(arguments) if k in names}))
    given: dict[str, Any] = {"train": TRAIN, "validate": VALIDATE, "device": "cpu", "progress": False} | arguments
    found: Net = supervise(model or Net(), read or Reader(), y, schedule, **given)
    return found


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


# --- which epoch ---


def test_equals_a_plain_loop():
    """Adam with L2 decay over a new order in each epoch; the losses are means over cells."""
    schedule = {"epochs": 4, "weight_decay": 0.05, "batch_size": 10}
    model = train(Net(plain=True), seed=7, validate=np.arange(0), **schedule)
    plain = Net(plain=True)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.1, weight_decay=0.05)
    for epoch in range(4):
        order = TRAIN[np.random.default_rng((7, epoch)).permutation(len(TRAIN))]
        total = 0.0
        for batch in np.array_split(order, [10, 20, 30]):
            loss = F.cross_entropy(plain.layer(X[batch]), Y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        assert model.history[epoch] == {"step": epoch + 1, "loss": pytest.approx(total / 37)}
    assert equal(model, plain)


def test_the_best_epoch_is_kept():
    model = train()
    losses = [row["validation_loss"] for row in model.history]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    assert list(model.history[0]) == ["step", "loss", "validation_loss"]
    assert [row["step"] for row in model.history] == list(range(1, 13))
    assert not model.training
    now = validation_loss(model, Reader(), Y, VALIDATE, 8, torch.device("cpu"))
    assert now == pytest.approx(min(losses), abs=1e-7)
    assert equal(model, train(epochs=best + 1))  # as if it had stopped there


def test_without_validation_the_last_epoch_is_kept():
    model = train(validate=np.arange(0), patience=1)
    assert len(model.history) == 12
    assert all(list(row) == ["step", "loss"] for row in model.history)
    assert not equal(model, train(validate=np.arange(0), epochs=11))
    assert np.isnan(validation_loss(model, Reader(), Y, np.arange(0), 8, torch.device("cpu")))


@pytest.mark.parametrize("patience", [1, 2, 3, 30])
@pytest.mark.parametrize("least", [0, 5, 9])
def test_patience(patience, least):
    """Stops when so many epochs in a row were no better than the best, not before the least number."""
    losses = [row["validation_loss"] for row in train().history]
    expected = 12
    for done in range(max(1, least), 13):
        if done - 1 - int(np.argmin(losses[:done])) >= patience:
            expected = done
            break
    model = train(patience=patience, min_epochs=least)
    assert [row["validation_loss"] for row in model.history] == losses[:expected]
    if patience == 1 and least == 0:
        assert expected < 12


def test_no_epoch_at_all():
    model = train(epochs=0)
    assert equal(model, Net())
    assert model.history == []


# --- which cells ---


def test_each_cell_once_an_epoch_in_a_new_order():
    read = Reader()
    train(read=read, epochs=3)
    epochs = [read.batches[i : i + 6] for i in range(0, 18, 6)]
    orders = [np.concatenate(batches[:5]) for batches in epochs]
    assert all([len(b) for b in batches] == [8, 8, 8, 8, 5, 13] for batches in epochs)
    assert all(sorted(order) == TRAIN.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert all(np.array_equal(batches[5], VALIDATE) for batches in epochs)  # in larger batches: no weights follow


def test_incomplete_batches_are_left_out_if_asked():
    for batch_size, expected in ((8, [8] * 4), (37, [37]), (40, [37]), (36, [36])):
        read = Reader()
        train(read=read, epochs=1, batch_size=batch_size, drop_last=True, validate=np.arange(0))
        assert [len(b) for b in read.batches] == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(33, [8, 8, 8, 9]), (34, [8, 8, 8, 8, 2]), (9, [9]), (8, [8]), (32, [8] * 4)]
)
def test_a_single_row_joins_the_batch_before_it(n, expected):
    """A normalisation layer could not tell its mean from its spread."""
    read = Reader()
    train(read=read, epochs=1, train=TRAIN[:n], validate=np.arange(0))
    assert [len(b) for b in read.batches] == expected
    assert sorted(np.concatenate(read.batches)) == TRAIN[:n].tolist()


def drawn(y: Tensor, n: int = 60) -> np.ndarray:
    """How often each row is drawn, a draw of all classes alike being 1."""
    read = Reader()
    train(read=read, y=y, epochs=n, balance=True, validate=np.arange(0), batch_size=64)
    rows = np.concatenate(read.batches)
    assert len(rows) == n * len(TRAIN)  # as many draws as cells
    return np.bincount(rows, minlength=N) / len(rows)


def test_balance_draws_every_class_as_often():
    share = drawn(Y)
    assert (share[VALIDATE] == 0).all()
    of_class = [share[Y.eq(k).numpy()].sum() for k in range(K)]
    np.testing.assert_allclose(of_class, 1 / 3, atol=0.03)
    common = share[TRAIN][(Y[TRAIN] == 0).numpy()]
    assert common.max() < 3 * common.min()  # and the cells of a class alike


def test_balance_of_several_labels_is_that_of_the_rarest():
    hot = F.one_hot(Y, K)
    np.testing.assert_array_equal(drawn(hot), drawn(Y))  # one label each: no difference
    hot[:4] = 0  # no class at all: a class of its own
    hot[4:8] = 1
    share = drawn(hot)
    counts = hot[TRAIN].sum(dim=0).numpy()
    weights = np.array(
        [max(1 / counts[k] for k in range(K) if row[k]) if row.any() else 1 / 4 for row in hot[TRAIN].numpy()]
    )
    np.testing.assert_allclose(share[TRAIN], weights / weights.sum(), atol=0.015)
    assert share[:4].sum() == pytest.approx((weights / weights.sum())[:4].sum(), abs=0.02)


def test_validation_draws_nothing():
    model = Net()
    train(model, epochs=2)
    in_training, in_validation = (True, True, True), (False, False, False)
    assert model.seen == ([in_training] * 5 + [in_validation]) * 2


def test_some_weights_only():
    model = Net()
    train(model, parameters=[model.layer.bias])
    assert torch.equal(model.layer.weight, Net().layer.weight)
    assert not torch.equal(model.layer.bias, Net().layer.bias)


# --- the same weights again ---


@pytest.mark.parametrize("balance", [False, True])
def test_same_seed_same_bytes_and_global_generators_untouched(balance):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    first = train(seed=1, balance=balance)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]  # noqa: NPY002
    torch.manual_seed(6)
    again = train(seed=1, balance=balance)
    assert equal(first, again)
    assert first.history == again.history
    other = train(seed=2, balance=balance)
    assert not equal(first, other)


class Fails(Exception):
    pass


class Failing(Reader):
    """The power goes off at a certain reading."""

    def __init__(self, at: int, error: type[BaseException] = Fails) -> None:
        super().__init__()
        self.at, self.error = at, error

    def __call__(self, rows: np.ndarray) -> tuple[Tensor]:
        if len(self.batches) == self.at:
            raise self.error
        return super().__call__(rows)


@pytest.mark.parametrize("at", [0, 3, 6, 20, 71])
@pytest.mark.parametrize("changes", [{}, {"balance": True}, {"patience": 2}, {"validate": np.arange(0)}])
def test_resumed_training_ends_at_the_same_weights(tmp_path, at, changes):
    expected = train(**changes)
    if at < 12 * 5:
        with pytest.raises(Fails):
            train(read=Failing(at), checkpoint_dir=tmp_path, **(changes | {"patience": None}))
        if "patience" in changes:  # that is another training
            (tmp_path / STATE_FILE).unlink(missing_ok=True)
    resumed = train(checkpoint_dir=tmp_path, **changes)
    assert equal(resumed, expected)
    assert resumed.history == expected.history
    read = Reader()
    again = train(read=read, checkpoint_dir=tmp_path, **changes)  # nothing is left to do
    assert equal(again, expected)
    assert read.batches == []
    assert not again.training


def test_interrupted_three_times(tmp_path):
    for at in (9, 13, 20):
        with pytest.raises(Fails):
            train(read=Failing(at), checkpoint_dir=tmp_path)
    read = Reader()
    assert equal(train(read=read, checkpoint_dir=tmp_path), train())
    assert len(read.batches) < 12 * 6
    assert [p.name for p in tmp_path.iterdir()] == [STATE_FILE]


class Pressing(Reader):
    """Ctrl-C while a batch is read."""

    def __call__(self, rows: np.ndarray) -> tuple[Tensor]:
        if len(self.batches) == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(rows)


def test_ctrl_c_finishes_the_epoch_and_says_how_to_go_on(tmp_path, caplog):
    before = signal.getsignal(signal.SIGINT)
    message = (
        f"Training interrupted after epoch 3 of 12. Run again with the same checkpoint_dir '{tmp_path}' to resume."
    )
    with caplog.at_level(logging.WARNING, "cytonym"), pytest.raises(KeyboardInterrupt, match=re.escape(message)):
        train(read=Pressing(), checkpoint_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert equal(train(checkpoint_dir=tmp_path), train())
    message = "Training interrupted after epoch 3 of 12. Nothing was saved: with `checkpoint_dir` it could be resumed."
    with pytest.raises(KeyboardInterrupt, match=re.escape(message)):
        train(read=Pressing())


# --- what is said when something is off ---


def test_another_training_in_the_folder(tmp_path):
    train(checkpoint_dir=tmp_path)
    again = r"Give another checkpoint_dir; to begin anew in this one delete the file\."
    with pytest.raises(ValueError, match=rf"holds another training, stopped at step 12: seed was 0, is 3\. {again}"):
        train(checkpoint_dir=tmp_path, seed=3)
    with pytest.raises(ValueError, match=r"recipe\.learning_rate was 0\.1, is 0\.2"):
        train(checkpoint_dir=tmp_path, learning_rate=0.2)
    with pytest.raises(ValueError, match=r"markers was \['a', 'b', 'c', 'd'\], is \['a', 'b', 'c', 'e'\]"):
        train(Net(("a", "b", "c", "e")), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"config\.plain was False, is True"):
        train(Net(plain=True), checkpoint_dir=tmp_path)
    for changes in ({"y": (Y + 1) % K}, {"train": TRAIN[1:]}, {"validate": VALIDATE[1:]}):
        with pytest.raises(ValueError, match=r"step 12: it learned from other labels or other cells\. Give"):
            train(checkpoint_dir=tmp_path, **changes)


def test_a_damaged_state(tmp_path):
    train(checkpoint_dir=tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"is no state of a training, or damaged .* To begin anew delete the file\."):
        train(checkpoint_dir=tmp_path)


def test_a_state_of_another_format(tmp_path):
    train(checkpoint_dir=tmp_path)
    path = tmp_path / STATE_FILE
    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["cytonym"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    save_file(tensors, path, {"cytonym": json.dumps(info | {"format": 99})})
    message = r"has format 99, this cytonym reads 1\. Upgrade, or begin anew: delete the file\."
    with pytest.raises(ValueError, match=message):
        train(checkpoint_dir=tmp_path)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_loss_that_is_not_finite(tmp_path, value):
    message = r"The loss is not finite in epoch {}\. Check the inputs for extreme values, or lower the learning rate\."
    wrong = X.clone()
    wrong[TRAIN[5]] = value
    with pytest.raises(FloatingPointError, match=message.format(1)):
        train(read=Reader(wrong))
    wrong = X.clone()
    wrong[VALIDATE[5]] = value
    with pytest.raises(FloatingPointError, match=message.format(1)):
        train(read=Reader(wrong))  # in validation, too: no such epoch may be the best

    class Later(Reader):
        def __call__(self, rows: np.ndarray) -> tuple[Tensor]:
            [x] = super().__call__(rows)
            return (x * value if len(self.batches) > 20 else x,)

    model = Net()
    with pytest.raises(FloatingPointError, match=message.format(4)):
        train(model, read=Later(), checkpoint_dir=tmp_path)
    assert not model.training
    assert equal(train(checkpoint_dir=tmp_path), train())  # the good epochs count


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match=r"No labelled cells to learn from: `train` is empty\."):
        train(train=np.arange(0))


def test_history_is_plain_json():
    for validate in (VALIDATE, np.arange(0)):
        history = train(validate=validate).history
        assert json.loads(json.dumps(history, allow_nan=False)) == history


def test_a_bar_where_it_takes_longer_than_a_moment(capsys):
    train(progress=True, epochs=2)
    assert capsys.readouterr().err == ""
    train(progress=True, epochs=-(-SHOWN_FROM // len(TRAIN)), batch_size=64)
    shown = capsys.readouterr()
    assert "training net" in shown.err
    assert "validation" in shown.err
    assert shown.out == ""
