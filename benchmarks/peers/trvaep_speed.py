"""Speed of trvaep 0.1.0: epochs of its CVAE, and its MMD, as ``benchmarks/speed.py`` asks."""

from interface import read_dense
from mended_trvaep import MendedTrainer
from timing import EpochTimer, read_task, time_mmd, write_result
from trvaep import CVAE
from trvaep.model._losses import mmd

task = read_task()
if task["measurement"] == "mmd":
    write_result(time_mmd(lambda y, c, n: mmd(n, 1.0)(y, c[:, None]), task["arguments"]["shapes"]))
else:
    cells = read_dense(task["path"])
    model = CVAE(
        cells.n_vars,
        num_classes=cells.obs["condition"].nunique(),
        encoder_layer_sizes=[256, 64],
        decoder_layer_sizes=[64, 256],
        latent_dim=10,
        alpha=0.0001,
        use_mmd=True,
        beta=10,
    )
    timer = EpochTimer()
    MendedTrainer.validate = timer.around(MendedTrainer.validate)
    trainer = MendedTrainer(model, cells, condition_key="condition", train_frac=0.99)
    trainer.train_trvae(task["arguments"]["n_epochs"], 128)
    write_result({"seconds": timer.best()})
