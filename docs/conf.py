"""Sphinx configuration."""

import os
import re
import warnings
from importlib.metadata import version as package_version
from pathlib import Path

from anndata import AnnData
from matplotlib.axes import Axes
from mudata import MuData
from pandas import DataFrame, Index
from scvi.data import AnnDataManager
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from trvae.cli import app as command_line
from trvae.model import _base, _image_trvae, _trvae

project = "trvae-tools"
author = "The trvae-tools developers"
version = release = package_version("trvae-tools")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx-mathjax-offline",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated"]
templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_css_files = ["style.css"]
html_static_path = ["_static"]
html_title = "trvae-tools"
# Search is in the sidebar already.
html_theme_options = {"navbar_persistent": []}
nb_execution_mode = "off"
autosummary_generate = True
typehints_defaults = "comma"
typehints_document_rtype_none = False
# sphinx-autodoc-typehints itself uses what Sphinx 10 removes.
warnings.filterwarnings("ignore", message=".*sphinx_autodoc_typehints")
napoleon_google_docstring = False
# Returns sections are prose; napoleon would parse their lines as types.
napoleon_custom_sections = ["Returns"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Prompts and outputs of code are not copied.
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True
copybutton_selector = "div:not(.output) > div.highlight pre"
suppress_warnings = ["ref.term"]

nitpicky = True
# Other packages, whose documentation is only linked with a network, and private classes.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(anndata|collections|distributed|lightning|matplotlib|mudata|numpy|pandas|pathlib|scanpy|scvi"
        r"|sparse|torch|typing)\..*",
    ),
    ("py:data", "Ellipsis"),
    # An alias in scvi-tools.
    ("py:class", "AnnOrMuData"),
    ("py:class", r"trvae\..*\._.*"),
]
if "READTHEDOCS" in os.environ:
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "mudata": ("https://mudata.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
# Types are linked where they are documented, which is not where they are defined.
AnnData.__module__, AnnDataManager.__module__ = "anndata", "scvi.data"
Axes.__module__, MuData.__module__ = "matplotlib.axes", "mudata"
DataFrame.__module__ = Index.__module__ = "pandas"


def mend_docstring(app, what, name, obj, options, lines):
    """Drop roles of scvi-tools' own documentation, and the colons that mark Returns for napoleon."""
    lines[:] = [re.sub(r":cite:p:`(.*?)`", r"(\1)", line) for line in lines if line != ":"]


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
    write(app, "arguments.md", "\n".join(lines) + "\n")


def write_reference_of_commands(app):
    """The reference of the command line is its own help."""
    command = get_command(command_line)
    text = get_docs_for_click(obj=command, ctx=Context(command), name="trvae")
    # Without the title, and the list of commands, which has the starts of their descriptions only.
    text = re.sub(r"^# .*|\*\*Commands\*\*:\n\n(\* .*\n)+", "", text).replace(
        "<int range>", "<int>"
    )
    text = re.sub(r"(?<= )--[a-z-]+", r"`\g<0>`", text).replace("`--help`", "`-h, --help`")
    text = re.sub(r"^Example: (.+(?:\n.+)*)", as_code, text, flags=re.M)
    write(app, "command_line.md", text)


def as_code(match):
    """An example on the command line, which help wraps."""
    command = match[1].replace("`", "").replace("\n", " \\\n    ")
    return f"**Example**:\n\n```console\n$ {command}\n```"


def write(app, name, text):
    """Write a file that pages include."""
    folder = Path(app.srcdir) / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def setup(app):
    """Sphinx' entry point."""
    app.connect("builder-inited", write_table_of_arguments)
    app.connect("builder-inited", write_reference_of_commands)
    # After sphinx-autodoc-typehints' colons, before napoleon.
    app.connect("autodoc-process-docstring", mend_docstring, priority=499)
