"""The built page: whole, of the sources beside it, and free of addresses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import cytonym

LABEL = Path(cytonym.__file__).parent / "label"
STATIC, FRONTEND = LABEL / "static", LABEL / "frontend"
SVG = "http://www.w3.org/2000/svg"
NODE = shutil.which("node")
installed = pytest.mark.skipif(
    NODE is None or not (FRONTEND / "node_modules").is_dir(),
    reason="node or its packages are missing: npm ci in label/frontend",
)


def test_the_module_is_whole_and_asks_nobody() -> None:
    text = (STATIC / "label.js").read_text(encoding="utf-8")
    assert re.search(r"export\s*\{[^}]*\bdefault\b[^}]*\bstart\b|export\s*\{[^}]*\bstart\b[^}]*\bdefault\b", text)
    assert set(re.findall(r"\w+://[^\s\"'`)]+", text)) <= {SVG}
    assert not re.search(
        r"\beval\(|new Function\(|innerHTML|outerHTML|insertAdjacentHTML|\bimport\s*\(|^import\b", text, re.MULTILINE
    )
    assert "url(" not in (STATIC / "label.css").read_text(encoding="utf-8")
    assert (STATIC / "THIRD_PARTY.txt").is_file()


@pytest.mark.skipif(not FRONTEND.is_dir(), reason="the sources of the page are not in the wheel")
def test_the_list_of_packages_names_no_server() -> None:
    text = (FRONTEND / "package-lock.json").read_text(encoding="utf-8")
    assert "resolved" not in text
    assert "dependencies" not in json.loads((FRONTEND / "package.json").read_text(encoding="utf-8"))


@installed
def test_the_module_is_built_of_its_sources(tmp_path: Path) -> None:
    subprocess.run([str(NODE), "build.mjs", "--out", str(tmp_path)], cwd=FRONTEND, check=True, timeout=60)
    for name in ("label.js", "label.css"):
        same = (tmp_path / name).read_bytes() == (STATIC / name).read_bytes()
        assert same, f"{name} is not of these sources: npm run build in label/frontend"


@installed
def test_the_parts_that_need_no_browser() -> None:
    done = subprocess.run(["npm", "test"], cwd=FRONTEND, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
