"""What ``import trvae`` does, and does not."""

import os
import subprocess
import sys

import pytest

import trvae


def imported(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, trvae; {code}"],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_names_are_imported_when_they_are_used():
    assert imported("print('torch' in sys.modules)").split() == ["False"]
    assert imported("trvae.TRVAE; print('torch' in sys.modules)").split()[-1] == "True"
    assert set(trvae.__all__) <= set(dir(trvae))
    with pytest.raises(AttributeError, match="trvae"):
        trvae.no_such_name  # noqa: B018


def test_another_package_of_this_name_is_reported(tmp_path):
    assert "Keras" not in imported("")
    metadata = tmp_path / "trVAE-1.1.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: trVAE\nVersion: 1.1.2\n")
    assert "trVAE 1.1.2 (Keras)" in imported("", PYTHONPATH=str(tmp_path))
