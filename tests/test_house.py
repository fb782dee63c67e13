"""How the package is kept: short files, and one door to what other packages do not make public."""

import ast
import re
from pathlib import Path

import pytest

import trvae

ROOT = Path(trvae.__file__).parent
MAX_LINES = 400
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def private_names(tree):
    """Imports of other packages' private names, and private attributes of what is imported."""
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            paths = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        else:
            continue
        imported |= paths
    imported = {
        name: path
        for name, path in imported.items()
        if path.split(".")[0] not in ("trvae", "__future__")
    }
    yield from (path for path in imported.values() if is_private(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in imported and is_private(node.attr):
                yield f"{imported[node.value.id]}.{node.attr}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith("_scvi_") or re.fullmatch(r"scvi[\w.]*\._\w+", node.value):
                yield node.value


def is_private(path):
    return any(part.startswith("_") and not part.startswith("__") for part in path.split("."))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_one_file_uses_private_names_of_other_packages(path):
    found = set(private_names(ast.parse(path.read_text())))
    assert not found or path.name == "_scvi.py"


def test_private_names_are_found():
    code = "import scvi\nfrom scvi.data._utils import x\nscvi.settings\nscvi._y\n'scvi.z._log'"
    assert set(private_names(ast.parse(code))) == {"scvi.data._utils.x", "scvi._y", "scvi.z._log"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
