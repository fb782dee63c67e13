"""Load damaged and forged models: each must load or raise a ``ValueError``, and run no code.

python tests/fuzz_load.py --mutations 1000
"""

from __future__ import annotations

import argparse
import collections
import io
import logging
import multiprocessing
import pickle
import pickletools
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import anndata
import mudata
import numpy as np
import torch

import trvae
from trvae.io._reading import read_torch

SCARCHES = Path(__file__).parent / "fixtures" / "scarches"
SECONDS, GIBIBYTES = 60, 4
LOADED, REFUSED = 10, 11


# ------------------------------------------------------------------------ mutations


def rezipped(data: bytes, change, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of PyTorch with its pickle changed, and checksums that fit."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as before,
        zipfile.ZipFile(out, "w", compression) as after,
    ):
        for entry in before.infolist():
            part = before.read(entry)
            after.writestr(entry.filename, change(part) if "data.pkl" in entry.filename else part)
    return out.getvalue()


def payloads(marker: Path) -> list[bytes]:
    """Instructions that make a file if they are run, and leave the stack as it was."""
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
    places = [position for _, _, position in pickletools.genops(program)]
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


# --------------------------------------------------------------------------- models


def make_models(folder: Path) -> None:
    """Save a small model of each kind."""
    small = {"n_latent": 2, "hidden_sizes": (4,), "effect_sizes": (4,), "seed": 0}
    columns = {"condition_key": "condition", "labels_key": "cell_type"}

    def save(model, name: str) -> None:
        model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
        model.save(folder / name, save_anndata=True)

    adata = trvae.datasets.simulated(n_cells=8, n_genes=12)
    mdata = mudata.MuData({"rna": adata.copy()})
    places = {"condition_key": "rna", "labels_key": "rna"}
    trvae.TRVAE.setup_mudata(mdata, **columns, modalities=places)
    save(trvae.TRVAE(mdata, **small), "TRVAE-mudata")

    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["age"] = np.arange(float(adata.n_obs))
    query = adata.copy()
    query.obs["condition"] = "new"
    covariates = {
        "categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"],
    }  # fmt: skip
    trvae.TRVAE.setup_anndata(adata, **columns, **covariates)
    model = trvae.TRVAE(adata, **small)
    save(model, "TRVAE")
    save(trvae.TRVAE.load_query_data(query, model, match_reference=True), "TRVAE-query")

    images = anndata.AnnData(np.random.default_rng(0).random((24, 36), np.float32))
    images.obs["condition"] = np.resize(["thin", "thick"], 24)
    trvae.ImageTRVAE.setup_anndata(images, condition_key="condition", image_shape=(6, 6))
    save(trvae.ImageTRVAE(images, n_latent=1, channels=(2,), seed=0), "ImageTRVAE")

    for name in ("nb", "zinb", "mse"):
        shutil.copytree(SCARCHES / name, folder / name)


def load(name: str, folder: Path) -> None:
    if name in ("nb", "zinb", "mse"):
        expected = np.load(SCARCHES / name / "expected.npz")
        cells = anndata.AnnData(expected["x"])
        cells.obs["study"], cells.var_names = expected["study"], expected["genes"]
        trvae.TRVAE.from_scarches(folder, cells)
    else:
        getattr(trvae, name.split("-")[0]).load(folder, accelerator="cpu")


# ---------------------------------------------------------------------------- cases


def mutate_model(number: int, seed: int, models: Path, folder: Path, marker: Path) -> str:
    """Copy one of the models, and mutate one of its files."""
    rng = np.random.default_rng([seed, number])
    names = sorted(path.name for path in models.iterdir())
    name = names[number % len(names)]
    shutil.copytree(models / name, folder)
    files = sorted(path for path in folder.iterdir() if path.name != "expected.npz")
    path = files[rng.integers(len(files))]
    if path.suffix in (".h5ad", ".h5mu"):
        # What HDF5 makes of damage is its own matter; a truncated file is the common case.
        path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])
    elif rng.random() < 0.05:
        other = models / names[rng.integers(len(names))]
        others = [p for p in other.iterdir() if p.suffix == path.suffix]
        shutil.copy(others[0] if others else SCARCHES / "nb" / "attr.pkl", path)
    else:
        mutate_file(path, rng, marker)
    return name


def case(number: int, seed: int, models: Path, folder: Path) -> None:
    """Load a mutated model in a process of its own, whose exit code tells how that ended."""
    warnings.simplefilter("ignore")
    logging.disable()
    marker = folder.with_name("marker")
    name = mutate_model(number, seed, models, folder, marker)
    try:
        load(name, folder)
        code = LOADED
    except (ValueError, FileNotFoundError):
        code = REFUSED
    if marker.exists():
        raise AssertionError("code was run")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > GIBIBYTES * 2**20:
        raise MemoryError(f"more than {GIBIBYTES} GiB")
    sys.exit(code)


def main(n: int, seed: int, first: int = 0) -> int:
    """Run ``n`` cases and return how many did not end well."""
    counts: collections.Counter[str] = collections.Counter(lost=0)
    start = time.monotonic()
    # A forked process would wait for threads of the training, which it doesn't have.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trvae.evaluation"])
    with tempfile.TemporaryDirectory() as work:
        models = Path(work) / "models"
        models.mkdir()
        make_models(models)
        for number in range(first, first + n):
            folder = Path(work) / "case" / "model"
            process = context.Process(target=case, args=(number, seed, models, folder))
            process.start()
            process.join(SECONDS)
            process.kill()
            process.join()
            outcome = {LOADED: "loaded", REFUSED: "refused"}.get(process.exitcode, "lost")
            counts[outcome] += 1
            if outcome == "lost":
                print(
                    f"exit code {process.exitcode}: --seed {seed} --first {number} --mutations 1"
                )
            shutil.rmtree(folder.parent, ignore_errors=True)
    print(f"{n} mutations in {time.monotonic() - start:.0f} s")
    for outcome, count in sorted(counts.items(), reverse=True):
        print(f"{outcome}: {count}")
    return counts["lost"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    arguments = parser.parse_args()
    sys.exit(main(arguments.mutations, arguments.seed, arguments.first) > 0)
