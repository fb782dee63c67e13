"""Speed of trvaep 0.1.0: epochs of its CVAE, and its MMD, as ``benchmarks/speed.py`` asks."""

import json
import resource
import sys
import time

import anndata
import numpy as np
import torch
from trvaep import CVAE, Trainer
from trvaep.model._losses import mmd

task = json.loads(sys.argv[1])
torch.set_num_threads(task["threads"])
torch.manual_seed(0)
if task["measurement"] == "mmd":
    result = {}
    for batch_size, n_conditions in task["arguments"]["shapes"]:
        y = torch.randn(batch_size, 128, requires_grad=True)
        condition = torch.arange(batch_size)[:, None] % n_conditions
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            mmd(n_conditions, 1.0)(y, condition).backward()
            seconds.append(time.perf_counter() - start)
        result[f"{batch_size} x {n_conditions}"] = 1000 * min(seconds)
else:
    adata = anndata.read_h5ad(task["path"])
    adata.X = np.asarray(adata.X.toarray(), dtype=np.float32)
    model = CVAE(
        adata.n_vars,
        num_classes=adata.obs["condition"].nunique(),
        encoder_layer_sizes=[256, 64],
        decoder_layer_sizes=[64, 256],
        latent_dim=10,
        alpha=0.0001,
        use_mmd=True,
        beta=10,
    )

    class TimedTrainer(Trainer):
        """A view's matrix is copied for each cell that is read; here are copies in its place."""

        def make_dataset(self):
            """As trvaep's."""
            datasets = super().make_dataset()
            for dataset in datasets:
                n_cells = len(dataset) - (len(dataset) % 128 == 1)
                dataset.adata = dataset.adata[:n_cells].copy()
            self.starts, self.ends = [time.perf_counter()], []
            return datasets

        def validate(self, *args, **kwargs):
            """As trvaep's; validation is not part of the epoch."""
            self.ends.append(time.perf_counter())
            result = super().validate(*args, **kwargs)
            self.starts.append(time.perf_counter())
            return result

    trainer = TimedTrainer(model, adata, condition_key="condition", train_frac=0.99)
    trainer.train_trvae(task["arguments"]["n_epochs"] + 1, 128)
    seconds = np.array(trainer.ends) - np.array(trainer.starts[:-1])
    result = {"seconds": float(seconds[1:].mean())}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps(result | {"peak_memory_gib": peak}))
