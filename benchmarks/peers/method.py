"""Other tools as methods for ``trvae.evaluate``, each run in its own virtual environment.

``environments.sh`` makes the environments. Threads are as many as torch may use here.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import torch
from scipy import sparse

import trvae

if TYPE_CHECKING:
    from collections.abc import Callable

_TARGET_SUM = 1e4
# The number of torch's threads is part of the task.
_ENVIRONMENT = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


@dataclass
class Peer:
    """Another tool.

    Parameters
    ----------
    runner
        Script in this folder, named after the environment that it runs in.
    environments
        Folder of the virtual environments.
    variant
        Which of several models of the tool.
    """

    runner: str
    environments: Path
    variant: str = ""
    _train: ad.AnnData | None = field(default=None, init=False)

    def fit(self, adata, *, condition_key, labels_key, layer, library_key, seed) -> None:
        """Keep the cells: learning and predicting is one run."""
        self._keys = {condition_key: "condition", labels_key: "label"}
        self._train = self._cells(adata, layer)
        self._layer = layer

    def transfer(self, adata, target_condition, *, seed) -> ad.AnnData:
        """Learn and predict."""
        control = self._cells(adata, self._layer)
        (source,) = control.obs["condition"].unique()
        with tempfile.TemporaryDirectory() as folder:
            for name, cells in {"train": self._train, "control": control}.items():
                cells.write_h5ad(Path(folder) / f"{name}.h5ad")
            task = {
                "source": source,
                "target": str(target_condition),
                "seed": seed,
                "variant": self.variant,
                "threads": torch.get_num_threads(),
            }
            (Path(folder) / "task.json").write_text(json.dumps(task))
            self._run(folder)
            predicted = ad.read_h5ad(Path(folder) / "predicted.h5ad")
        return ad.AnnData(
            np.maximum(predicted.X, 0), obs=adata.obs.copy(), var=adata[:, control.var_names].var
        )

    def _cells(self, adata, layer) -> ad.AnnData:
        matrix = adata.X if layer is None else adata.layers[layer]
        obs = adata.obs[list(self._keys)].rename(columns=self._keys).astype(str)
        return ad.AnnData(sparse.csr_matrix(matrix), obs=obs, var=adata.var[[]])

    def _run(self, folder: str) -> None:
        here = Path(__file__).parent
        python = self.environments / self.runner.split("_")[0] / "bin" / "python"
        done = subprocess.run(
            [python, here / f"{self.runner}.py", folder],
            env=os.environ | _ENVIRONMENT,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{self.runner} failed:\n{done.stdout[-3000:]}")


@dataclass
class LogNormalized:
    """A method that learns from log-normalised values in place of counts.

    Parameters
    ----------
    method
        The method.
    """

    method: trvae.TransferMethod

    def fit(self, adata, *, layer, library_key, **keys) -> None:
        """Fit to log-normalised values."""
        self._of = {"layer": layer, "library_key": library_key}
        self.method.fit(self._log_normalized(adata), layer=None, library_key=None, **keys)

    def transfer(self, adata, target_condition, *, seed) -> ad.AnnData:
        """Predict log-normalised values."""
        predicted = self.method.transfer(self._log_normalized(adata), target_condition, seed=seed)
        predicted.uns["log1p"] = {"base": None, "target_sum": _TARGET_SUM}
        return predicted

    def _log_normalized(self, adata) -> ad.AnnData:
        values = trvae.metrics.log_normalized(adata, target_sum=_TARGET_SUM, **self._of)
        return ad.AnnData(values.astype(np.float32), obs=adata.obs.copy(), var=adata.var[[]])


def peers(environments: Path) -> dict[str, Callable[[], trvae.TransferMethod]]:
    """Return the other tools by name.

    Parameters
    ----------
    environments
        Folder of the virtual environments.
    """
    return {
        "scArches trVAE nb": lambda: Peer("scarches_trvae", environments, "nb"),
        "scArches trVAE mse": lambda: LogNormalized(Peer("scarches_trvae", environments, "mse")),
        "trvaep": lambda: LogNormalized(Peer("trvaep_trvae", environments)),
        "scGen (pertpy)": lambda: LogNormalized(Peer("pertpy_scgen", environments)),
        "CPA": lambda: Peer("cpa_cpa", environments),
        "scPRAM": lambda: LogNormalized(Peer("scpram_scpram", environments)),
        "biolord": lambda: LogNormalized(Peer("biolord_biolord", environments)),
    }
