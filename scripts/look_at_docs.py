"""Draw pages of the built documentation in a headless browser, without a network, to be looked at.

Fails if a formula is not drawn, or a page is wider than a phone. Needs Chromium. Run from the root of
the repository::

    sphinx-build -W docs docs/_build
    python scripts/look_at_docs.py docs/_build pictures
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

PAGES = [
    "index", "guide/model", "api/trvae", "api/generated/trvae.TRVAE.train", "tutorials/ifn_transfer",
    "benchmarks", "benchmarks/accuracy",
]  # fmt: skip
WIDTHS = [1400, 400]
HEIGHT = 2200
BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
    "--allow-file-access-from-files", "--virtual-time-budget=20000",
    # Nothing may come from elsewhere.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip

FRAME = """<body style="margin: 0"><iframe src="{page}" width="{width}" height="{height}" frameborder="0"
onload="document.body.dataset.width = this.contentDocument.documentElement.scrollWidth"></iframe></body>"""


def browse(page: Path, *arguments: str) -> str:
    """Open a page, and return what the browser prints."""
    command = [*BROWSER, *arguments, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout


def check_formulas(page: Path) -> None:
    """Exit unless all formulas of a page are drawn."""
    n_written = len(re.findall(r'class="math ', page.read_text()))
    if n_written == 0:
        return
    drawn = browse(page, "--dump-dom")
    n_drawn = drawn.count("<mjx-container")
    print(f"{page}: {n_drawn} of {n_written} formulas are drawn")
    if n_drawn < n_written or "data-mjx-error" in drawn:
        raise SystemExit(1)


def look_at(page: Path, width: int, picture: Path) -> None:
    """Draw a page at a width, and exit if it is wider."""
    # A window is never as narrow as a phone, but a frame in it is.
    with NamedTemporaryFile("w", suffix=".html") as file:
        file.write(FRAME.format(page=page.resolve().as_uri(), width=width, height=HEIGHT))
        file.flush()
        frame = Path(file.name)
        size = f"--window-size={max(width, 500)},{HEIGHT}"
        browse(frame, size, f"--screenshot={picture.resolve()}")
        (drawn,) = map(int, re.findall(r'data-width="(\d+)"', browse(frame, size, "--dump-dom")))
    print(f"{picture}: {drawn} px")
    if drawn > width:
        raise SystemExit(1)


def main() -> None:
    """Check formulas and draw all pages."""
    built, pictures = Path(sys.argv[1]), Path(sys.argv[2])
    pictures.mkdir(parents=True, exist_ok=True)
    for page in sorted(built.rglob("*.html")):
        check_formulas(page)
    for name in PAGES:
        for width in WIDTHS:
            picture = pictures / f"{name.replace('/', '_')}_{width}.png"
            look_at(built / f"{name}.html", width, picture)


if __name__ == "__main__":
    main()
