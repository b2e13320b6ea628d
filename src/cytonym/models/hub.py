"""Published weights by name: a file, a folder, or a repository of the Hugging Face hub, with its commit, hash and licence."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger("cytonym")


def fetch(source: str | Path, *, pattern: str, revision: str | None = None) -> tuple[Path, dict[str, Any]]:
    """A local file with published weights.

    Parameters
    ----------
    source
        A file, a folder, or the name of a repository on the hub, `"owner/name"`.
    pattern
        Regular expression of the file's name, with one group for its version: the highest is taken.
    revision
        Commit, tag or branch on the hub.

    Returns
    -------
    The file, and what to keep about it: `sha256`, and from the hub `repository`, `revision` and `licence`.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, no file of that name in it, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    told: dict[str, Any] = {}
    if path.is_dir():
        path = path / _newest([p.name for p in path.iterdir()], pattern, f"folder '{source}'")
    elif not path.is_file():
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)) or path.suffix in (".pt", ".pth", ".bin"):
            msg = f"No file at '{source}'."
            raise FileNotFoundError(msg)
        path, told = _download(str(source), pattern, revision)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if told:
        logger.info(
            "%s of %s, commit %s, %.1f MB, SHA-256 %s, licence: %s.",
            path.name, told["repository"], told["revision"], len(data) / 1e6, digest, told["licence"],
        )  # fmt: skip
    return path, told | {"sha256": digest}


def _newest(names: list[str], pattern: str, where: str) -> str:
    found = {int(m.group(1)): name for name in names if (m := re.fullmatch(pattern, name))}
    if not found:
        msg = f"No file like {pattern!r} in the {where}. Found: {sorted(names)[:10]}."
        raise FileNotFoundError(msg)
    return found[max(found)]


def _download(repository: str, pattern: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """From the hub, or from its cache on this machine if the commit is there."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise _out_of_reach(repository, "the package huggingface_hub is not installed") from error

    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):  # a commit: its files never change
        try:
            folder = Path(hub.snapshot_download(repository, revision=revision, local_files_only=True))
            name = _newest([p.name for p in folder.iterdir()], pattern, f"repository {repository}")
        except (OSError, ValueError):  # not in the cache
            pass
        else:
            return folder / name, {"repository": repository, "revision": folder.name, "licence": "not asked again"}
    try:
        info = hub.HfApi().model_info(repository, revision=revision)
        name = _newest([s.rfilename for s in info.siblings or []], pattern, f"repository {repository}")
        file = hub.hf_hub_download(repository, name, revision=info.sha)
    except Exception as error:  # the hub's client raises many kinds: no network, no such repository, no access
        raise _out_of_reach(repository, str(error).split("\n")[0] or type(error).__name__) from error
    licence = getattr(info.card_data, "license", None) if info.card_data else None
    return Path(file), {"repository": repository, "revision": str(info.sha), "licence": str(licence or "not stated")}


def _out_of_reach(repository: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"'{repository}' is no file here, and the Hugging Face hub did not give it ({reason}). On a machine without network "
        f"download https://huggingface.co/{repository} elsewhere and pass the path of the file."
    )
