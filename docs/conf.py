"""Sphinx configuration."""

import re
from importlib.metadata import version as package_version

project = "trvae-tools"
author = "The trvae-tools developers"
version = release = package_version("trvae-tools")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "sphinx_book_theme"
html_title = "trvae-tools"
# Search is in the sidebar already.
html_theme_options = {"navbar_persistent": []}
nb_execution_mode = "off"
autosummary_generate = True
autodoc_typehints = "none"
napoleon_google_docstring = False
# What is returned is told in sentences and lists, each line of which would be taken for a type.
napoleon_custom_sections = ["Returns"]
myst_enable_extensions = ["deflist", "dollarmath"]
suppress_warnings = ["ref.term"]


def without_citations(app, what, name, obj, options, lines):
    """Inherited docstrings cite by a role of scvi-tools' own documentation."""
    lines[:] = [re.sub(r":cite:p:`(.*?)`", r"(\1)", line) for line in lines]


def setup(app):
    """Sphinx' entry point."""
    app.connect("autodoc-process-docstring", without_citations)
