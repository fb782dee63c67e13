import inspect
import re
from pathlib import Path

import pytest
from helpers import members_in_reference, reference

import trvae

ROOT = Path(__file__).parents[1]

# What images have not: of each, why.
LEFT_OUT_OF_IMAGES = {
    # An interval takes means of labels, which are learnt of expression only.
    "get_transferred_means",
    # scvi-tools' raises an error that it is not there.
    "get_normalized_expression",
    # There is no setup_mudata.
    "prepare_query_mudata",
}


def own_public_members(cls):
    """Methods and properties that this package defines, however scvi-tools' are wrapped."""
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        module = getattr(inspect.unwrap(function), "__module__", "") if callable(function) else ""
        if not name.startswith("_") and module.startswith("trvae"):
            yield name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(page):
    """Those of the documentation are checked when it is built."""
    links = re.findall(r"\]\((?!http|#)([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("cls", [trvae.TRVAE, trvae.ImageTRVAE, trvae.TRVAEEnsemble])
def test_every_public_member_is_in_the_reference(cls):
    left_out = LEFT_OUT_OF_IMAGES if cls is trvae.ImageTRVAE else set()
    listed = members_in_reference(cls.__name__)
    assert len(listed) == len(set(listed))
    assert set(own_public_members(cls)) - left_out <= set(listed) <= set(dir(cls))


@pytest.mark.parametrize("cls", [trvae.TRVAE, trvae.ImageTRVAE, trvae.TRVAEEnsemble])
def test_what_is_in_the_reference_is_documented(cls):
    for name in members_in_reference(cls.__name__):
        doc = inspect.getdoc(getattr(cls, name))
        # scvi-tools has left some placeholders in its docstrings.
        assert doc and not re.search(r"%\(\w+\)s", doc), name


def test_every_public_name_is_in_the_reference():
    text = reference()
    for name in trvae.__all__:
        assert re.search(rf"(autoclass|autofunction|automodule):: (trvae\.)?{name}\b", text), name
    for module in (trvae.metrics, trvae.pl, trvae.datasets):
        for name in module.__all__:
            assert inspect.getdoc(getattr(module, name)), name
            # In the table on top of the module's page, or as data.
            assert re.search(rf"^(    |.. py:data:: ){name}$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "function",
    [
        member
        for cls in (trvae.TRVAE, trvae.ImageTRVAE, trvae.TRVAEEnsemble)
        for name in own_public_members(cls)
        if inspect.isfunction(inspect.unwrap(member := getattr(cls, name)))
    ],
    ids=lambda function: function.__qualname__,
)
def test_docstrings_name_every_argument(function):
    doc = inspect.getdoc(function)
    section = doc.partition("Parameters\n")[2].partition("\n\n")[0] + doc
    for name in list(inspect.signature(function).parameters)[1:]:
        assert re.search(rf"^\s*(.*, )?\*{{0,2}}{name}\b", section, re.MULTILINE), name
