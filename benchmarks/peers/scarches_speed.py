"""Speed of scArches 0.6.1: epochs of its TRVAE, and its MMD, as ``benchmarks/speed.py`` asks."""

import json
import resource
import sys
import time

import anndata
import numpy as np
import torch

# Gone from anndata since this release, which imports it.
anndata.read = anndata.read_h5ad
import scarches  # noqa: E402
from scarches.models.trvae.losses import mmd  # noqa: E402
from scarches.trainers.trvae.unsupervised import trVAETrainer  # noqa: E402

task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
torch.manual_seed(0)
if task["measurement"] == "mmd":
    result = {}
    for batch_size, n_conditions in task["arguments"]["shapes"]:
        y = torch.randn(batch_size, 128, requires_grad=True)
        condition = torch.arange(batch_size) % n_conditions
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            mmd(y, condition, n_conditions, 1.0, None).backward()
            seconds.append(time.perf_counter() - start)
        result[f"{batch_size} x {n_conditions}"] = 1000 * min(seconds)
else:
    adata = anndata.read_h5ad(task["path"])
    adata.X = np.asarray(adata.X.toarray(), dtype=np.float32)
    ends = []
    on_epoch_end = trVAETrainer.on_epoch_end

    def timed(self):  # noqa: D103
        ends.append(time.perf_counter())
        on_epoch_end(self)
        # Validation is not part of the epoch.
        starts.append(time.perf_counter())

    trVAETrainer.on_epoch_end = timed
    starts = []
    model = scarches.models.TRVAE(
        adata=adata,
        condition_key="condition",
        conditions=list(adata.obs["condition"].unique()),
        hidden_layer_sizes=[256, 64],
        recon_loss=task["arguments"]["likelihood"],
        mmd_on="y",
    )
    n_epochs = task["arguments"]["n_epochs"]
    model.train(
        n_epochs=n_epochs + 1, batch_size=128, train_frac=0.99, use_early_stopping=False,
        monitor=False,
    )  # fmt: skip
    result = {"seconds": float(np.mean(np.array(ends[1:]) - np.array(starts[:-1])))}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps(result | {"peak_memory_gib": peak}))
