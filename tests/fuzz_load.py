"""Damaged and forged model files: each must load, or give a ``ValueError``, and run nothing.

python tests/fuzz_load.py --mutations 1000
"""

from __future__ import annotations

import argparse
import collections
import io
import logging
import multiprocessing
import os
import pickle
import pickletools
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import anndata
import numpy as np
import torch

import trvae
from trvae.io._plain import read_torch

SCARCHES = Path(__file__).parent / "fixtures" / "scarches"
SECONDS, GIBIBYTES = 20, 4


# --------------------------------------------------------------------- what is mutated


def rezipped(data: bytes, change) -> bytes:
    """A file of PyTorch with another program in it, and checksums that fit."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        for entry in before.infolist():
            part = before.read(entry)
            after.writestr(entry.filename, change(part) if "data.pkl" in entry.filename else part)
    return out.getvalue()


def boundaries(program: bytes) -> list[int]:
    return [position for _, _, position in pickletools.genops(program)]


def payloads(marker: Path) -> list[bytes]:
    """Instructions that leave a mark if they are run, and the stack as it was."""
    command, code = f"touch {marker}".encode(), f"open({str(marker)!r}, 'w')".encode()
    return [
        b"cposix\nsystem\n(V" + command + b"\ntR0",
        b"c__builtin__\nexec\n(V" + code + b"\ntR0",
        b"cbuiltins\neval\n(V" + code + b"\ntR0",
        b"\x8c\x05posix\x8c\x06system\x93(V" + command + b"\ntR0",
        b"(V" + command + b"\niposix\nsystem\n0",
        b"(cposix\nsystem\nV" + command + b"\no0",
    ]


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    end = min(end, start + 64)
    changed = bytearray(data)
    match rng.integers(6):
        case 0:
            for position in rng.integers(0, len(data), rng.integers(1, 9)):
                changed[position] ^= 1 << rng.integers(8)
        case 1:
            del changed[start:]
        case 2:
            del changed[start:end]
        case 3:
            changed[start:start] = rng.bytes(int(rng.integers(1, 64)))
        case 4:
            to = int(rng.integers(0, len(data)))
            changed[to : to + end - start] = data[start:end]
        case 5:
            changed[start:end] = bytes(end - start)
    return bytes(changed)


def mutate_program(program: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    places = boundaries(program)
    start, end = sorted(rng.choice(places, 2).tolist())
    match rng.integers(4):
        case 0:
            return mutate_bytes(program, rng)
        case 1:
            return (
                program[:start] + rng.choice(np.array(payloads(marker), object)) + program[start:]
            )
        case 2:
            following = places[min(places.index(start) + 1, len(places) - 1)]
            return program[:start] + program[following:]
        case _:
            return program[:start] + program[end:] if rng.random() < 0.5 else (
                program[:end] + program[start:]
            )  # fmt: skip


ODD = [
    None, True, -1, 0, 2**31, 2**70, 1e308, float("nan"), "", "load", [], {}, (), b"x", [[]],
    np.array([]), np.array(["a"], object), np.zeros((2, 3)), torch.zeros(2), 10**6, [10**9] * 3,
]  # fmt: skip


def mutate_content(content, rng: np.random.Generator):
    """Replace, remove or rename something in what a file holds."""
    holders, left = [], [content]
    while left:
        holder = left.pop()
        if isinstance(holder, dict) and holder:
            holders += [(holder, key) for key in holder]
            left += holder.values()
    holder, key = holders[rng.integers(len(holders))]
    match rng.integers(4):
        case 0:
            del holder[key]
        case 1:
            holder[f"{key}x"] = holder.pop(key)
        case _:
            holder[key] = ODD[rng.integers(len(ODD))]
    return content


def mutate_file(path: Path, rng: np.random.Generator, marker: Path) -> None:
    data = path.read_bytes()
    is_program, is_torch = path.suffix == ".pkl", path.suffix == ".pt"
    kind = rng.random()
    if kind < 0.3 or not (is_program or is_torch):
        path.write_bytes(mutate_bytes(data, rng))
    elif kind < 0.7:
        change = lambda program: mutate_program(program, rng, marker)  # noqa: E731
        path.write_bytes(change(data) if is_program else rezipped(data, change))
    elif is_program:
        path.write_bytes(pickle.dumps(mutate_content(pickle.loads(data), rng)))
    else:
        torch.save(mutate_content(read_torch(path), rng), path)


# ------------------------------------------------------------------------- the models


def make_models(folder: Path) -> None:
    """Save a small model of each kind."""
    quiet = {"max_epochs": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    adata = trvae.datasets.simulated(n_cells=8, n_genes=12)
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    model = trvae.TRVAE(adata, n_latent=2, hidden_sizes=(4,), effect_sizes=(4,), seed=0)
    model.train(**quiet)
    model.save(folder / "TRVAE", save_anndata=True)
    images = anndata.AnnData(np.random.default_rng(0).random((24, 36), np.float32))
    images.obs["condition"] = np.resize(["thin", "thick"], 24)
    trvae.ImageTRVAE.setup_anndata(images, condition_key="condition", image_shape=(6, 6))
    model = trvae.ImageTRVAE(images, n_latent=1, channels=(2,), seed=0)
    model.train(**quiet)
    model.save(folder / "ImageTRVAE", save_anndata=True)
    for name in ("nb", "zinb", "mse"):
        shutil.copytree(SCARCHES / name, folder / name)


def load(name: str, folder: Path) -> None:
    if name in ("nb", "zinb", "mse"):
        expected = np.load(SCARCHES / name / "expected.npz")
        cells = anndata.AnnData(expected["x"])
        cells.obs["study"], cells.var_names = expected["study"], expected["genes"]
        trvae.TRVAE.from_scarches(folder, cells)
    else:
        getattr(trvae, name).load(folder, accelerator="cpu")


def case(number: int, seed: int, models: Path, folder: Path, marker: Path) -> str:
    """Make the files of one case and load them."""
    rng = np.random.default_rng([seed, number])
    names = sorted(path.name for path in models.iterdir())
    name = names[number % len(names)]
    shutil.copytree(models / name, folder)
    files = sorted(path for path in folder.iterdir() if path.name != "expected.npz")
    # What HDF5 makes of damage is its own; a file that is cut off is the common case.
    path = files[rng.integers(len(files))]
    if path.suffix == ".h5ad":
        path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])
    elif rng.random() < 0.05:
        other = models / names[rng.integers(len(names))]
        others = [p for p in other.iterdir() if p.suffix == path.suffix]
        shutil.copy(others[0] if others else SCARCHES / "nb" / "attr.pkl", path)
    else:
        mutate_file(path, rng, marker)
    try:
        load(name, folder)
    except (ValueError, FileNotFoundError):
        outcome = "refused"
    else:
        outcome = "loaded"
    if marker.exists():
        marker.unlink()
        raise AssertionError("code was run")
    return f"{name}: {outcome}"


def run(numbers: range, seed: int, models: Path, connection) -> None:
    """Run cases, and tell of each; a crash ends the process only."""
    warnings.simplefilter("ignore")
    logging.disable()
    sys.stdout = sys.stderr = open(os.devnull, "w")

    def too_long(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    with tempfile.TemporaryDirectory() as work:
        marker = Path(work) / "marker"
        for number in numbers:
            signal.alarm(SECONDS)
            try:
                outcome = case(number, seed, models, Path(work) / str(number), marker)
            except BaseException as error:  # noqa: BLE001
                outcome = f"lost: {type(error).__name__}: {error}"
            signal.alarm(0)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > GIBIBYTES * 2**20:
                outcome = f"lost: more than {GIBIBYTES} GiB of memory"
            connection.send((number, outcome))
            shutil.rmtree(Path(work) / str(number))


def main(n: int, seed: int, first: int = 0) -> int:
    """Run ``n`` cases and return how many were lost."""
    counts: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    # A fork of a process that has trained waits for threads that it doesn't have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trvae"])
    with tempfile.TemporaryDirectory() as models:
        make_models(Path(models))
        following = first
        while following < first + n:
            ours, theirs = context.Pipe(duplex=False)
            numbers = range(following, first + n)
            process = context.Process(target=run, args=(numbers, seed, Path(models), theirs))
            process.start()
            theirs.close()
            while True:
                try:
                    number, outcome = ours.recv()
                except EOFError:
                    break
                following = number + 1
                counts[outcome.split(":")[0] if outcome.startswith("lost") else outcome] += 1
                if outcome.startswith("lost"):
                    print(f"--seed {seed} --first {number} --mutations 1: {outcome}")
            process.join()
            if following < first + n:
                counts["lost"] += 1
                print(f"--seed {seed} --first {following} --mutations 1: lost: the process ended")
                following += 1
    for outcome in sorted(counts - collections.Counter(lost=counts["lost"])):
        print(f"{outcome:24}{counts[outcome]:6}")
    print(f"{n} mutations in {time.monotonic() - start:.0f} s")
    print(f"lost: {counts['lost']}")
    return counts["lost"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    arguments = parser.parse_args()
    sys.exit(main(arguments.mutations, arguments.seed, arguments.first) > 0)
