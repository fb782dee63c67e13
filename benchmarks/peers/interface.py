"""What every runner reads and writes.

A task is a folder with the cells to learn from (``train.h5ad``), the held-out label's control cells
(``control.h5ad``) and ``task.json``; the prediction goes to ``predicted.h5ad``. Only what is in
every tool's environment is imported here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import torch


def read_task() -> SimpleNamespace:
    """Read the task whose folder is the first argument of the command line.

    Returns
    -------
    ``train`` and ``control``, with counts or log-normalised values as dense float32 in ``X`` and
    the columns ``condition`` and ``label`` in ``obs``; ``source`` and ``target``, the conditions;
    ``seed``; ``variant``, which distinguishes several models of one tool; ``folder``.
    """
    folder = Path(sys.argv[1])
    task = SimpleNamespace(folder=folder, **json.loads((folder / "task.json").read_text()))
    torch.set_num_threads(task.threads)
    for name in ("train", "control"):
        setattr(task, name, read_dense(folder / f"{name}.h5ad"))
    return task


def read_dense(path: Path | str) -> ad.AnnData:
    """Return the cells of a file with a dense float32 matrix."""
    adata = ad.read_h5ad(path)
    adata.X = np.asarray(adata.X.toarray(), dtype=np.float32)
    return adata


def write_prediction(task: SimpleNamespace, values: np.ndarray) -> None:
    """Write the control cells' predicted counts or log-normalised values, ``n_cells x n_genes``."""
    predicted = ad.AnnData(
        np.asarray(values, dtype=np.float32), obs=task.control.obs[[]], var=task.control.var[[]]
    )
    predicted.write_h5ad(task.folder / "predicted.h5ad")


def draw_counts(mean: np.ndarray, theta: np.ndarray, seed: int) -> np.ndarray:
    """Draw from negative binomials of that mean, ``n_cells x n_genes``, and inverse dispersion."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(theta, np.maximum(mean, 1e-12) / theta))
