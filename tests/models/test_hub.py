"""Published weights by name: a hub that is made here, since tests have no network."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cytonym.models.hub import fetch
from cytonym.models.nimbus import PUBLISHED_HUB, Nimbus

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)
PATTERN = r"V(\d+)\.pt"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ModuleType):
    """One repository, `owner/net`, with a cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.cache = folder, folder / "cache"
        self.files: dict[str, bytes] = {}
        self.licence: str | None = "cc-by-4.0"
        self.card = True
        self.calls: list[Any] = []
        self.error: Exception | None = None

    def HfApi(self) -> Any:
        return SimpleNamespace(model_info=self._info)

    def _info(self, repository: str, revision: str | None = None) -> Any:
        self.calls.append(("info", repository, revision))
        if self.error is not None:
            raise self.error
        card = SimpleNamespace(license=self.licence) if self.card else None
        return SimpleNamespace(
            sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in self.files], card_data=card
        )

    def hf_hub_download(self, repository: str, name: str, revision: str | None = None) -> str:
        self.calls.append(("download", name, revision))
        path = self.cache / str(revision) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.files[name])
        return str(path)

    def snapshot_download(self, repository: str, revision: str, *, local_files_only: bool) -> str:
        assert local_files_only
        self.calls.append(("cache", revision))
        if not (self.cache / revision).is_dir():
            msg = "not in the cache"
            raise FileNotFoundError(msg)
        return str(self.cache / revision)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    found.files = {"V1.pt": b"one", "V12.pt": b"twelve", "V3.pt": b"three", "README.md": b"V99.pt", "old/V50.pt": b""}
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_newest_file_with_commit_hash_and_licence(hub, caplog):
    with caplog.at_level(logging.INFO, logger="cytonym"):
        path, told = fetch("owner/net", pattern=PATTERN)
    digest = hashlib.sha256(b"twelve").hexdigest()
    assert path.read_bytes() == b"twelve"
    assert told == {"repository": "owner/net", "revision": COMMIT, "licence": "cc-by-4.0", "sha256": digest}
    assert hub.calls == [("info", "owner/net", None), ("download", "V12.pt", COMMIT)]
    assert f"V12.pt of owner/net, commit {COMMIT}, 0.0 MB, SHA-256 {digest}, licence: cc-by-4.0." in caplog.text


def test_a_licence_that_is_not_stated(hub):
    hub.licence = None
    assert fetch("owner/net", pattern=PATTERN)[1]["licence"] == "not stated"
    hub.card = False
    assert fetch("owner/net", pattern=PATTERN)[1]["licence"] == "not stated"


def test_a_commit_in_the_cache_needs_no_network(hub):
    first, told = fetch("owner/net", pattern=PATTERN, revision=COMMIT)
    assert hub.calls == [("cache", COMMIT), ("info", "owner/net", COMMIT), ("download", "V12.pt", COMMIT)]
    hub.calls.clear()
    hub.error = ConnectionError("no route")
    again, told_again = fetch("owner/net", pattern=PATTERN, revision=told["revision"])
    assert again == first
    assert hub.calls == [("cache", COMMIT)]
    assert told_again == told | {"licence": "not asked again"}


def test_a_branch_is_asked_for_each_time(hub):
    fetch("owner/net", pattern=PATTERN, revision="main")
    assert hub.calls[0] == ("info", "owner/net", "main")


def test_a_cache_that_lacks_the_file(hub):
    (hub.cache / COMMIT).mkdir(parents=True)
    assert fetch("owner/net", pattern=PATTERN, revision=COMMIT)[0].name == "V12.pt"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Failed to resolve 'huggingface.co'\nand more"),
        TimeoutError(),
        OSError("offline"),
        ValueError("x"),
    ],
)
def test_no_network_says_how_to_pass_a_file(hub, error):
    hub.error = error
    reason = str(error).split("\n")[0] or type(error).__name__
    message = (
        f"'owner/net' is no file here, and the Hugging Face hub did not give it ({reason}). On a machine without network "
        "download https://huggingface.co/owner/net elsewhere and pass the path of the file."
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        fetch("owner/net", pattern=PATTERN)


def test_the_network_is_lost_on_the_way(hub, monkeypatch):
    """The hub's client raises a FileNotFoundError of its own then."""

    def lost(*args, **kwargs):
        msg = "Cannot find the requested files in the disk cache"
        raise FileNotFoundError(msg)

    monkeypatch.setattr(hub, "hf_hub_download", lost)
    with pytest.raises(FileNotFoundError, match=r"did not give it \(Cannot find the .* pass the path of the file"):
        fetch("owner/net", pattern=PATTERN)


def test_without_the_client(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"huggingface_hub is not installed\).* pass the path of the file"):
        fetch("owner/net", pattern=PATTERN)


def test_a_repository_without_such_a_file(hub):
    hub.files = {"model.bin": b""}
    with pytest.raises(FileNotFoundError, match=r"repository owner/net\. Found: \['model.bin'\]"):
        fetch("owner/net", pattern=PATTERN)


def test_files_and_folders_come_first(hub, tmp_path):
    folder = tmp_path / "owner" / "net"
    folder.mkdir(parents=True)
    (folder / "V2.pt").write_bytes(b"mine")
    for source in ("owner/net", folder, folder / "V2.pt", "owner/net/V2.pt"):
        path, told = fetch(source, pattern=PATTERN)
        assert path.read_bytes() == b"mine"
        assert told == {"sha256": hashlib.sha256(b"mine").hexdigest()}
    assert hub.calls == []


@pytest.mark.parametrize("source", ["net", "owner/net/deep", "/owner/net", "owner/net.pt", "./net", "../net", "owner/"])
def test_what_names_no_repository(hub, source):
    hub.error = AssertionError("asked")
    with pytest.raises(FileNotFoundError, match=re.escape(f"No file at '{source}'.")):
        fetch(source, pattern=PATTERN)


def test_the_scorer_by_name(hub, scorer, tmp_path, monkeypatch):
    model = scorer()
    torch.save(model.state_dict(), tmp_path / "small.pt")
    hub.files = {"V1.pt": b"broken", "V2.pt": (tmp_path / "small.pt").read_bytes()}
    found = Nimbus.from_published()
    assert hub.calls[0] == ("info", PUBLISHED_HUB, None)
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())
    assert found.provenance == {
        "published": "V2.pt",
        "repository": PUBLISHED_HUB,
        "revision": COMMIT,
        "licence": "cc-by-4.0",
        "sha256": hashlib.sha256(hub.files["V2.pt"]).hexdigest(),
    }
    hub.error = ConnectionError("no route")
    again = Nimbus.from_published(revision=found.provenance["revision"])
    assert again.provenance["sha256"] == found.provenance["sha256"]
    with pytest.raises(FileNotFoundError, match="pass the path of the file"):
        Nimbus.from_published()
