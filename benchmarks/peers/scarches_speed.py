"""Speed of scArches 0.6.1: its TRVAE and its MMD, as ``benchmarks/speed.py`` asks."""

import time

import anndata
from interface import read_dense
from scarches_prediction import predict
from timing import EpochTimer, read_task, time_mmd, write_result

# Gone from anndata since this release, which imports it.
anndata.read = anndata.read_h5ad
import scarches  # noqa: E402
from scarches.models.trvae.losses import mmd  # noqa: E402
from scarches.trainers.trvae.unsupervised import trVAETrainer  # noqa: E402

task = read_task()
if task["measurement"] == "mmd":
    write_result(time_mmd(lambda y, c, n: mmd(y, c, n, 1.0, None), task["arguments"]["shapes"]))
else:
    cells = read_dense(task["path"])
    model = scarches.models.TRVAE(
        adata=cells,
        condition_key="condition",
        conditions=list(cells.obs["condition"].unique()),
        hidden_layer_sizes=[256, 64],
        recon_loss=task["arguments"]["likelihood"],
        mmd_on="y",
    )
    if task["measurement"] == "transfer":
        source = cells.obs["condition"].to_numpy(dtype=object)
        n_cells = task["arguments"].get("n_cells", len(cells))
        size = task["arguments"].get("n_at_once", n_cells)
        begin = time.perf_counter()
        for start in range(0, n_cells, size):
            # It cannot take a single cell, which is given twice.
            rows = [start, start] if size == 1 else slice(start, start + size)
            predict(model, cells.X[rows], source[rows], source[0], start)
        seconds = time.perf_counter() - begin
        write_result({"seconds": seconds * len(cells) / n_cells})
    else:
        timer = EpochTimer()
        trVAETrainer.on_epoch_end = timer.around(trVAETrainer.on_epoch_end)
        model.train(
            n_epochs=task["arguments"]["n_epochs"],
            batch_size=128,
            train_frac=0.99,
            use_early_stopping=False,
            monitor=False,
        )
        write_result({"seconds": timer.best()})
