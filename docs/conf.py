"""Sphinx configuration."""

import re
from importlib.metadata import version as package_version
from pathlib import Path

from trvae.model import _base, _image_trvae, _trvae

project = "trvae-tools"
author = "The trvae-tools developers"
version = release = package_version("trvae-tools")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated"]
html_theme = "sphinx_book_theme"
html_title = "trvae-tools"
# Search is in the sidebar already.
html_theme_options = {"navbar_persistent": []}
nb_execution_mode = "off"
autosummary_generate = True
autodoc_typehints = "none"
napoleon_google_docstring = False
# Returns sections are prose; napoleon would parse their lines as types.
napoleon_custom_sections = ["Returns"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
suppress_warnings = ["ref.term"]


def without_citations(app, what, name, obj, options, lines):
    """Inherited docstrings cite by a role of scvi-tools' own documentation."""
    lines[:] = [re.sub(r":cite:p:`(.*?)`", r"(\1)", line) for line in lines]


def write_table_of_arguments(app):
    """The guide's table of arguments is that of the rules by which they are checked."""
    models = {
        "TRVAE": _trvae.ARGUMENTS,
        "ImageTRVAE": _image_trvae.ARGUMENTS,
        "both": _base.ARGUMENTS,
    }
    lines = ["| argument | of | must be |", "|:--|:--|:--|"]
    for model, rules in models.items():
        lines += [f"| `{name}` | {model} | {rule.description} |" for name, rule in rules.items()]
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "arguments.md").write_text("\n".join(lines) + "\n")


def setup(app):
    """Sphinx' entry point."""
    app.connect("builder-inited", write_table_of_arguments)
    app.connect("autodoc-process-docstring", without_citations)
