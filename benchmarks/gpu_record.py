"""What ``benchmarks/gpu.py`` stores: the environment of a run, and its results as a table."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from accuracy import environment


def commit() -> str:
    """Return the commit of the code, and whether it was changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment_with_gpu(seed: int) -> dict:
    """Return what the numbers depend on beside the code, and its commit."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    record = environment() | {"commit": commit(), "seed": seed}
    record["machine"] = f"{name}, {record['machine']}"
    record["versions"]["CUDA"] = torch.version.cuda
    return record


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
