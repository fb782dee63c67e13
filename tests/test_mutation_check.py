"""That the deliberate bugs of ``tests/mutation_check.py`` can still be made."""

from pathlib import Path

import pytest
from mutation_check import MUTATIONS

import trvae


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_bug_changes_is_there_once(mutation):
    source = (Path(trvae.__file__).parent / mutation.file).read_text()
    assert source.count(mutation.right) == 1
