"""Check that a wheel has all files of the package that are under version control, and no others.

python scripts/check_wheel.py dist/*.whl
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METADATA = (
    "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    "licenses/src/trvae/datasets/LICENSES.md",
)  # fmt: skip


def expected_in(wheel: Path) -> set[str]:
    """Names of the files that a wheel should have."""
    name, version, *_ = wheel.name.split("-")
    command = ["git", "ls-files", "src/trvae"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    package = {path.removeprefix("src/") for path in listed.stdout.splitlines()}
    return package | {f"{name}-{version}.dist-info/{part}" for part in METADATA}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        with zipfile.ZipFile(path) as wheel:
            found, expected = set(wheel.namelist()), expected_in(path)
        for name in sorted(expected - found):
            print(f"{path} lacks {name}")
        for name in sorted(found - expected):
            print(f"{path} should not have {name}")
        if found != expected:
            sys.exit(1)
        print(f"{path} has the {len(found)} files that it should have")
