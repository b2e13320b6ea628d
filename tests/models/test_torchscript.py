"""TorchScript files as data: what torch reads, and nothing that runs."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from cytonym.models.deepliif_published import read_network
from cytonym.models.torchscript import DTYPES, is_script, read_script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

torch.set_num_threads(1)


class Fails(nn.Module):
    """Cannot be called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        assert bool((x < 0).all()), "called"
        return x


class Runs(Fails):
    """Torch runs its code on opening the file."""

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0]  # type: ignore[assignment]
        self.training = state[1]
        assert bool((self.weight < 0).all()), "called"


class Kinds(nn.Module):
    """A tensor of each type."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.randint(0, 2, (24,), generator=torch.Generator().manual_seed(0))
        for dtype in DTYPES.values():
            self.register_buffer(f"{dtype}".replace("torch.", "of_"), (3 * numbers).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Many(Kinds):
    """Other tensors too, some of the same numbers, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.arange(24)
        self.register_buffer("turned", numbers.float().reshape(4, 6)[1:, ::2].t())
        self.register_buffer("whole", numbers.float())
        self.register_buffer("part", self.get_buffer("whole")[3:9].reshape(2, 3))
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("nothing", None)
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.names, self.size, self.rate, self.numbers = ["a", "b"], (1, 2), 0.5, [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.rate + len(self.names) + self.size[0] + self.numbers[0]  # type: ignore[no-any-return]


def write(module: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings(action="ignore"):  # newer torch wants other formats
        torch.jit.save(torch.jit.script(module), file)
    return file


def rewrite(file: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """The same archive with other entries."""
    with zipfile.ZipFile(file) as archive:
        entries = [new for name in archive.namelist() for new in change(name, archive.read(name))]
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:  # of names that repeat
        for name, content in entries:
            archive.writestr(name, content)


def with_pickle(file: Path, content: bytes) -> None:
    rewrite(file, lambda name, old: [(name, content if name.endswith("/data.pkl") else old)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(Fails(), tmp_path / "G1.pt")


def test_the_weights_are_those_that_torch_reads(tmp_path: Path) -> None:
    file = write(Many(), tmp_path / "many.pt")
    with warnings.catch_warnings(action="ignore"):
        expected = torch.jit.load(file).state_dict()
    found = read_script(file)
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())
    assert found["turned"].shape == (3, 3)


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    file = write(Kinds(), tmp_path / "kinds.pt")
    expected = read_script(file)
    sizes = {f"kinds/data/{i}": dtype.itemsize for i, dtype in enumerate(DTYPES.values())}

    def swapped(name: str, old: bytes) -> list[tuple[str, bytes]]:
        if n := sizes.get(name):
            return [(name, b"".join(old[i : i + n][::-1] for i in range(0, len(old), n)))]
        return [(name, b"big" if name.endswith("/byteorder") else old)]

    rewrite(file, swapped)
    found = read_script(file)
    assert len(found) == len(DTYPES)
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in expected.items())
    rewrite(file, lambda name, old: [] if name.endswith("/byteorder") else [(name, old)])
    assert not torch.equal(
        read_script(file)["of_int64"], expected["of_int64"]
    )  # as in files before there was this entry


def test_a_script_is_never_called(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("torch opened the file"))
    assert is_script(file)
    assert {k: v.tolist() for k, v in read_network(file).items()} == {"weight": [1, 1]}
    write(Runs(), file)
    with pytest.raises(
        ValueError, match=r"G1.pt' cannot be read .*no list of attributes.*code of its own, which is never"
    ):
        read_network(file)


def in_capitals(name: str, old: bytes) -> list[tuple[str, bytes]]:
    return [(name.removesuffix("py") + "PY" if name.endswith(".py") else name, old)]


def twice(name: str, old: bytes) -> list[tuple[str, bytes]]:
    return [(name, old), (name, b"")] if name.endswith(".py") else [(name, old)]


@pytest.mark.parametrize(("change", "message"), [(in_capitals, "list of attributes"), (twice, "its entries repeat")])
def test_code_that_torch_finds_under_other_names(
    file: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], message: str
) -> None:
    """Files whose code torch does run, although a look at the archive may not find it."""
    rewrite(write(Runs(), file), change)
    with warnings.catch_warnings(action="ignore"), pytest.raises(torch.jit.Error, match="called"):
        torch.jit.load(file)
    with pytest.raises(ValueError, match=message):
        read_network(file)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_names_in_a_pickle_are_not_looked_up(file: Path, tmp_path: Path, protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trap"),), {"weight": 1}

    with_pickle(file, pickle.dumps(Trap(), protocol))
    assert read_script(file) == {}
    assert not (tmp_path / "trap").exists()
    with_pickle(file, b"cno_such_module_anywhere\nname\n)\x81}b.")
    assert read_script(file) == {}


def script_of(size: str, stride: str, offset: str = "0", key: str = "0", kind: str = "Float", count: int = 2) -> bytes:
    """Pickle of a module with one tensor; names, tuples and numbers as text."""
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n{kind}Storage\nS'{key}'\nS'cpu'\nI{count}\ntQ"
    return f"c__torch__\nM\n)\x81}}S'weight'\n{tensor}I{offset}\n{size}{stride}I00\n}}tRsb.".encode("latin1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (script_of("(I3\nt", "(I1\nt"), r"a tensor of shape \(3,\) has 2 numbers only"),
        (script_of("(I2\nt", "(I1\nt", "1"), "out of bounds"),
        (script_of("(I2\nt", "(I9\nt"), "out of bounds"),
        (script_of("(I2\nt", "(I-1\nt"), "[Nn]egative"),
        (script_of("(I2\nt", "(I1\nt", "-1"), "offset"),
        (script_of("(I2\nt", "(I1\nt", key="7"), "no item named 'G1/data/7'"),
        (script_of("(I2\nt", "(I1\nt", key="../version"), "no item named"),
        (script_of("(I2\nt", "(I1\nt", count=3), "3 numbers of torch.float32 are in 8 bytes"),
        (script_of("(I2\nt", "(I1\nt", kind="QInt8"), "tensors of torch.QInt8Storage are not known"),
        (b"}.", "damaged"),
        (b"c__torch__\nM\n)\x81q\x00}S'a'\nh\x00sb.", "recursion"),
        (b"c__torch__\nM\n)\x81}S'inner'\nc__torch__\nN\n)\x81I1\nbsb.", "module 'inner' is no list"),
    ],
)
def test_pickles_that_make_no_sense(file: Path, content: bytes, message: str) -> None:
    with_pickle(file, script_of("(I2\nt", "(I1\nt"))
    assert read_script(file)["weight"].tolist() == [1, 1]
    with_pickle(file, content)
    with pytest.raises(ValueError, match=f"G1.pt' cannot be read as TorchScript .*{message}"):
        read_script(file)


def test_two_networks_in_a_file(file: Path) -> None:
    rewrite(file, lambda name, old: [(name, old), (name.replace("G1/", "G2/"), old)])
    with pytest.raises(ValueError, match=r"\(it holds 2 networks, not one\)"):
        read_script(file)


def test_changed_bytes(tmp_path: Path) -> None:
    """The same weights or the one error, never others."""
    file = write(Many(), tmp_path / "many.pt")
    expected, whole = read_script(file), file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        starts = [info.header_offset for info in archive.infolist()]
    generator = torch.Generator().manual_seed(0)
    for at in [*starts, *torch.randint(len(whole), (200,), generator=generator).tolist()]:
        changed = bytearray(whole)
        changed[at] ^= 0x55
        file.write_bytes(changed)
        message = "damaged"
        try:
            found = read_network(file)
            assert all(torch.equal(found[k], v) for k, v in expected.items())
        except ValueError as error:
            message = str(error)
        assert re.search("damaged|holds no state dict", message)
