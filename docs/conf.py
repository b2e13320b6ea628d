"""Sphinx configuration. `DOCS_OFFLINE=1` builds without looking up other packages."""

import os
import sys
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

info = metadata("cytonym")
project = info["Name"]
author = "cytonym developers"
copyright = f"{author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "plain_returns",
]
exclude_patterns = ["_build", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"
nitpicky = True
suppress_warnings = ["myst.header"]  # the README starts with an image

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_rtype = False
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "unsrt"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tutorials are committed with their figures and run as tests
nb_merge_streams = True

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "anndata": ("https://anndata.readthedocs.io/en/stable", None),
    "matplotlib": ("https://matplotlib.org/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
    "spatialdata": ("https://spatialdata.scverse.org/en/stable", None),
    "torch": ("https://pytorch.org/docs/stable", None),
}
nitpick_ignore_regex = [("py:.*", r"(cytonym\.)?(data|learning|models\.base)\..*"), ("py:.*", r"optional|.*\[.*")]
if os.environ.get("DOCS_OFFLINE", "0") not in ("", "0"):
    intersphinx_mapping, nitpicky = {}, False

html_theme = "sphinx_book_theme"
html_title = "cytonym"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "repository_url": "https://github.com/cytonym/cytonym",
    "use_repository_button": True,
    "use_download_button": False,
    "show_toc_level": 2,
    "path_to_docs": "docs/",
}
