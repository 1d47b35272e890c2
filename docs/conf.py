"""Sphinx with MyST: `make docs` makes a site of these pages in docs/_build."""

project = "pgtg"
extensions = ["myst_parser"]
root_doc = "index"
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links to headings, as forges make them
# links that lead out of docs/ are for the forge; a test follows all of them
suppress_warnings = ["myst.xref_missing", "toc.not_included", "misc.highlighting_failure"]
