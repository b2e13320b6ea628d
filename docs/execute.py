"""Execute the tutorials and keep their figures: `python docs/execute.py [NOTEBOOK...]`, or `make tutorials`.

What depends on the machine or the moment is left out of the files: progress bars, messages on standard error, times and
versions. A notebook whose data are not at hand keeps the outputs it has.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("CYTONYM_DATA", ROOT.parent / "shared" / "data"))
NEEDS = dict.fromkeys(
    ("02_codex_without_a_mask.ipynb", "03_few_labels.ipynb", "04_marker_positivity.ipynb"), DATA / "codex_lymphoid_crop"
)
LIMIT_MB = 1.5


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := clean(output)) is not None]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)
    size = path.stat().st_size / 1e6
    logging.info("%s: %.0f s, %.2f MB", path.name, time.perf_counter() - start, size)
    if size > LIMIT_MB:
        msg = f"{path.name} has {size:.1f} MB; at most {LIMIT_MB} go into the repository. Make its figures smaller."
        raise SystemExit(msg)


def clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if output.output_type == "stream" and (output.name == "stderr" or re.match(r"(\x1b\[\d+m)?INFO", output.text)):
        return None
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        return None
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = smaller(output.data["image/png"])
    return output


def smaller(png: str) -> str:
    """The figure in 256 colours, a third of the size, unless that gains nothing."""
    before, after = base64.b64decode(png), io.BytesIO()
    Image.open(io.BytesIO(before)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
        after, "png", optimize=True
    )
    return base64.b64encode(min(before, after.getvalue(), key=len)).decode()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for path in [Path(name) for name in sys.argv[1:]] or sorted((ROOT / "tutorials").glob("*.ipynb")):
        needed = NEEDS.get(path.name)
        if needed is not None and not needed.is_dir():
            logging.info("%s: left as it is, %s is not there (set CYTONYM_DATA)", path.name, needed)
            continue
        execute(path)
