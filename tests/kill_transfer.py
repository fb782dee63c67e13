"""Kill transfers to disk at random moments until all are complete, and look for what was lost.

    python tests/kill_transfer.py --kills 50

prints ``lost: 0`` and ends with status 0 if every result, however often it was killed, has all cells
of a transfer that was not, each once and with the same values.
"""

import argparse
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import anndata

import trvae

CHUNK_SIZE = 10
SUFFIXES = (".zarr", ".h5ad")
warnings.filterwarnings("ignore")
# Of processes too, one of which would tell of the semaphores of those that were killed.
os.environ["PYTHONWARNINGS"] = "ignore"
for name in ("lightning.pytorch", "scvi"):
    logging.getLogger(name).setLevel(logging.ERROR)


def transfer(folder: Path, out: Path) -> None:
    """Transfer the cells, as a process of its own does."""
    model = trvae.TRVAE.load(folder / "model", adata=False, accelerator="cpu")
    cells = anndata.read_h5ad(folder / "cells.h5ad", backed="r")
    model.transfer(cells, "treated", out=out, chunk_size=CHUNK_SIZE, progress_bar=False)


def make_model(folder: Path) -> None:
    """Save cells, and a model that is trained on them as little as possible."""
    adata = trvae.datasets.simulated(n_cells=40, n_genes=100)
    adata.write_h5ad(folder / "cells.h5ad")
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    model = trvae.TRVAE(adata, hidden_sizes=(32, 16), n_latent=4, seed=0)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.save(folder / "model")


def read(path: Path) -> anndata.AnnData:
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def n_lost(result: anndata.AnnData, expected: anndata.AnnData) -> int:
    """Number of cells that are missing, too many, in another place, or have other values."""
    times = Counter(result.obs_names)
    lost = sum(abs(times[name] - 1) for name in expected.obs_names)
    lost += sum(number for name, number in times.items() if name not in set(expected.obs_names))
    if lost > 0 or list(result.obs_names) != list(expected.obs_names):
        return max(lost, 1)
    differs = (result.X != expected.X).toarray().any(1)
    differs |= (result.obs.astype(str) != expected.obs.astype(str)).to_numpy().any(1)
    return int(differs.sum())


def where(out: Path) -> str:
    """What a process that was killed was doing."""
    parts = out.with_name(out.name + ".parts")
    if out.exists():
        return "after the result was complete"
    if not parts.exists():
        return "before the first chunk"
    if out.with_name(f".{out.name}.unfinished{out.suffix}").exists():
        return "while the result was put together"
    return "between the first and the last chunk"


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Its processes have imported everything when they start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trvae"])
    folder = Path(tempfile.mkdtemp(prefix="kill_transfer"))
    try:
        make_model(folder)
        imports = context.Process(target=time.time)
        imports.start()
        imports.join()
        expected, seconds = {}, {}
        for suffix in SUFFIXES:
            out = folder / f"expected{suffix}"
            process = context.Process(target=transfer, args=(folder, out))
            start = time.perf_counter()
            process.start()
            process.join()
            seconds[suffix] = time.perf_counter() - start
            expected[suffix] = read(out)
        killed, n_runs, n_results, lost = Counter(), 0, 0, 0
        while killed.total() < arguments.kills:
            suffix = SUFFIXES[n_results % len(SUFFIXES)]
            out = folder / f"result{suffix}"
            while not out.exists():
                process = context.Process(target=transfer, args=(folder, out))
                process.start()
                n_runs += 1
                if killed.total() < arguments.kills:
                    process.join(rng.uniform(0, 1.1 * seconds[suffix]))
                    if process.is_alive():
                        process.kill()
                        process.join()
                        killed[where(out)] += 1
                process.join()
                if process.exitcode > 0:
                    raise RuntimeError(f"A transfer ended with status {process.exitcode}.")
            n_results += 1
            lost += n_lost(read(out), expected[suffix])
            for path in (out, out.with_name(out.name + ".parts")):
                shutil.rmtree(path, ignore_errors=True)
            out.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder)
    print(f"{n_runs} runs for {n_results} results, {killed.total()} killed:")
    for moment, number in killed.most_common():
        print(f"  {number} {moment}")
    print(f"lost: {lost}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
