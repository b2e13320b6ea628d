"""Returns sections as they are written.

Napoleon takes the first line of a `Returns` section for a type. Ours, like scanpy's, are prose and definition lists
("`obsm["X_nextmarker"]` : f4 [cells, D]"), which reStructuredText renders well when left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def _returns(self: NumpyDocstring, section: str) -> list[str]:
    lines = self._dedent(self._consume_to_next_section())
    return [":returns:", "", *self._indent(lines, 4), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    NumpyDocstring._parse_returns_section = _returns  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
