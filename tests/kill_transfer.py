"""Kill transfers to disk at random moments until all are complete, and count what was lost.

    python tests/kill_transfer.py --kills 50

prints ``lost: 0`` and ends with status 0 if every result, however often its transfer was killed, has
the cells and values of an undisturbed transfer.
"""

import argparse
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import anndata

import trvae
from trvae.io._atomic import remove

SUFFIXES = (".zarr", ".h5ad")
warnings.filterwarnings("ignore")
# Also in processes, one of which would report the semaphores of those that were killed.
os.environ["PYTHONWARNINGS"] = "ignore"
for name in ("lightning.pytorch", "scvi"):
    logging.getLogger(name).setLevel(logging.ERROR)


def transfer(folder: Path, out: Path) -> None:
    """Transfer the cells, in a process of its own."""
    model = trvae.TRVAE.load(folder / "model", adata=False, accelerator="cpu")
    cells = anndata.read_h5ad(folder / "cells.h5ad", backed="r")
    model.transfer(cells, "treated", out=out, chunk_size=10, progress_bar=False)


def make_model(folder: Path) -> None:
    """Save cells and a hardly trained model."""
    adata = trvae.datasets.simulated(n_cells=40, n_genes=100)
    adata.write_h5ad(folder / "cells.h5ad")
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    model = trvae.TRVAE(adata, hidden_sizes=(32, 16), n_latent=4, seed=0)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.save(folder / "model")


def read(path: Path) -> anndata.AnnData:
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def n_lost(result: anndata.AnnData, expected: anndata.AnnData) -> int:
    """Number of cells that are missing, superfluous or misplaced, or have other values."""
    if list(result.obs_names) != list(expected.obs_names):
        found, names = Counter(result.obs_names), Counter(expected.obs_names)
        return max(((found - names) + (names - found)).total(), 1)
    differs = (result.X != expected.X).toarray().any(1)
    differs |= (result.obs.astype(str) != expected.obs.astype(str)).to_numpy().any(1)
    return int(differs.sum())


def progress(out: Path, start: float) -> str:
    """What a process that was started then, and killed, was doing."""
    if out.exists():
        return "after the result was complete"
    if not parts_of(out).exists():
        return "before the first chunk"
    unfinished = out.with_name(f".{out.name}.unfinished{out.suffix}")
    if unfinished.exists() and unfinished.stat().st_mtime > start:
        return "while the chunks were joined"
    return "before the chunks were joined"


def parts_of(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # Processes start with everything imported, the first one excepted.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trvae.evaluation"])
    imports = context.Process(target=time.time)
    imports.start()
    imports.join()
    killed, n_runs, n_results, lost = Counter(), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="kill_transfer") as name:
        folder = Path(name)
        make_model(folder)
        expected, seconds = {}, {}
        for suffix in SUFFIXES:
            out, start = folder / f"expected{suffix}", time.perf_counter()
            process = context.Process(target=transfer, args=(folder, out))
            process.start()
            process.join()
            seconds[suffix], expected[suffix] = time.perf_counter() - start, read(out)
        while killed.total() < arguments.kills:
            suffix = SUFFIXES[n_results % len(SUFFIXES)]
            out = folder / f"result{suffix}"
            while not out.exists():
                process, start = context.Process(target=transfer, args=(folder, out)), time.time()
                process.start()
                n_runs += 1
                if killed.total() < arguments.kills:
                    process.join(rng.uniform(0, 1.1 * seconds[suffix]))
                    if process.is_alive():
                        process.kill()
                        process.join()
                        killed[progress(out, start)] += 1
                process.join()
                if process.exitcode > 0:
                    raise RuntimeError(f"A transfer ended with status {process.exitcode}.")
            n_results += 1
            lost += n_lost(read(out), expected[suffix])
            remove(out)
            remove(parts_of(out))
    print(f"{n_runs} runs for {n_results} results, {killed.total()} killed:")
    for moment, number in killed.most_common():
        print(f"  {number} {moment}")
    print(f"lost: {lost}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
