"""Draw pages of the built documentation in a headless browser, without a network, to be looked at.

Fails if a formula is not drawn. Needs Chromium. Run from the root of the repository::

    sphinx-build -W docs docs/_build
    python scripts/look_at_docs.py docs/_build pictures
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGES = ["index", "guide/model", "api/trvae", "tutorials/ifn_transfer", "benchmarks/accuracy"]
WIDTHS = [1400, 400]
HEIGHT = 2200
BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
    "--allow-file-access-from-files", "--virtual-time-budget=20000",
    # Nothing may come from elsewhere.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip


def browse(page: Path, *arguments: str) -> str:
    """Open a page, and return what the browser prints."""
    command = [*BROWSER, *arguments, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


def check_formulas(page: Path) -> None:
    """Exit unless all formulas of a page are drawn."""
    n_written = len(re.findall(r'class="math ', page.read_text()))
    drawn = browse(page, "--dump-dom")
    n_drawn = drawn.count("<mjx-container")
    print(f"{page}: {n_drawn} of {n_written} formulas are drawn")
    if n_drawn < n_written or "data-mjx-error" in drawn:
        raise SystemExit(1)


def main() -> None:
    """Check formulas and draw all pages."""
    built, pictures = Path(sys.argv[1]), Path(sys.argv[2])
    pictures.mkdir(parents=True, exist_ok=True)
    for page in ("guide/model", "guide/metrics"):
        check_formulas(built / f"{page}.html")
    for name in PAGES:
        for width in WIDTHS:
            picture = pictures / f"{name.replace('/', '_')}_{width}.png"
            size = f"--window-size={width},{HEIGHT}"
            browse(built / f"{name}.html", size, f"--screenshot={picture.resolve()}")
            print(picture)


if __name__ == "__main__":
    main()
