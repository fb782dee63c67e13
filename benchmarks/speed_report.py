"""Turn the results of ``benchmarks/speed.py`` into ``benchmarks/speed.md``.

The part about GPUs is of ``benchmarks/gpu.py``. Run from the root of the repository::

    python benchmarks/speed_report.py > benchmarks/speed.md
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
from accuracy import RESULTS, how, stored_rows
from gpu import FULL, rows
from gpu_record import markdown
from speed import OUT

if TYPE_CHECKING:
    from pathlib import Path


# What is not that of today's code.
NOTES = {
    "2026-11-25": "As 2026-11-25b.",
    "2026-11-25b": "Before training started from the mean of the first minibatch, and before transfer was tensor code.",
    "2026-11-28": "Of an earlier version, in which transfer did not run on GPUs: the training of the demo failed "
    "when it came to predict. That, transfers, latent representations and the accuracy in other precisions "
    "are unmeasured.",
}


def report(folder: Path) -> None:
    """Print the tables of one run."""
    table = pd.DataFrame(stored_rows(folder))
    table[["what", "tool"]] = table.pop("name").str.split(" | ", regex=False, expand=True)
    threads = ", ".join(map(str, sorted(table["threads"].unique())))
    print(
        f"## Run {folder.name}\n\nThreads: {threads}. {NOTES.get(folder.name, '')}".rstrip() + "\n"
    )
    timed = table[table["seconds"].notna()]
    for title, measure in (
        ("Seconds per epoch, or to transfer all cells once", "seconds"),
        ("Peak memory of the process, GiB", "peak_memory_gib"),
    ):
        wide = timed.pivot_table(index="what", columns="tool", values=measure, sort=False)
        print(f"### {title}\n")
        print(_rounded(wide, 2))
    mmd = table[table["what"] == "mmd"].set_index("tool")
    if len(mmd) > 0:
        shapes = [column for column in mmd if " x " in column]
        print(
            "### MMD, forward and backward pass, 128 features, in milliseconds (cells x conditions)\n"
        )
        print(_rounded(mmd[shapes].T, 1))
    print(how(folder))


def _rounded(table: pd.DataFrame, digits: int) -> str:
    """A table as Markdown, empty where nothing was measured."""
    return table.round(digits).astype(str).replace("nan", "").to_markdown() + " \n"


def report_gpu() -> None:
    """Print the results of GPUs, or say that there are none."""
    print("## On a GPU\n")
    paths = sorted((RESULTS / "gpu").glob("*.json"))
    if not paths:
        print("Nothing was measured on a GPU yet.")
    for path in paths:
        record = json.loads(path.read_text())
        print(f"### Run {path.stem}\n\n{NOTES.get(path.stem, '')}\n\n{markdown(record)}\n")
        measured = {(row["what"], row["tool"]) for row in record["rows"]}
        missing = [row.what for row in rows(FULL) if (row.what, row.tool) not in measured]
        if missing:
            print(f"Not measured in this run: {'; '.join(dict.fromkeys(missing))}.\n")


def main() -> None:
    """Print the report."""
    print("# Speed and memory\n")
    for folder in sorted(OUT.iterdir(), reverse=True):
        report(folder)
    report_gpu()


if __name__ == "__main__":
    main()
