"""What ``benchmarks/gpu.py`` stores: the environment of a run, and its results as a table."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import scvi
import torch
from accuracy import cpu_model

import trvae


def commit() -> str:
    """Return the commit of the code, and whether it was changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(seed: int) -> dict:
    """Return what the numbers depend on beside the code."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "seed": seed,
        "machine": f"{name}, {os.cpu_count()} CPU cores{cpu_model()}, "
        f"{torch.get_num_threads()} threads, {platform.platform()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "scvi-tools": scvi.__version__,
            "trvae-tools": trvae.__version__,
        },
    }


def markdown(record: dict) -> str:
    """Return the results of a run as a table, and how they were made."""
    lines = ["| what | tool | result | of several |", "|:--|:--|:--|:--|"]
    for row in record["rows"]:
        result = "; ".join(
            f"{name}: {value:,.0f}" if value >= 1000 else f"{name}: {value:.3g}"
            for name, value in row["values"].items()
        ) or f"failed: {row['error'].splitlines()[0]}".replace("|", "/")
        lines.append(f"| {row['what']} | {row['tool']} | {result} | {row['how']} |")
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines += ["", f"`{record['command']}` (seed: {record['seed']}), {record['date']}, commit "]
    lines[-1] += f"{record['commit']}, {record['machine']}; {versions}"
    return "\n".join(lines)
