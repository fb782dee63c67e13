import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL
from lightning.pytorch.loggers import CSVLogger

import trvae
from trvae.train._history import joined

# Epochs of a training and what it logs to: scvi-tools' logger, another one, or nothing.
LOGGERS = {"own": lambda path: {}, "csv": lambda path: {"logger": CSVLogger(path)},
           "none": lambda path: {"logger": False}}  # fmt: skip


@pytest.mark.parametrize(
    ("loggers", "n_epochs"),
    [
        (["csv", "own"], 2),
        (["none", "own", "own"], 4),
        (["own", "csv", "own"], 4),
        (["csv", "csv"], 0),
        (["own", "none"], 2),
    ],
)
def test_history_has_the_epochs_that_were_logged_to_it(tmp_path, loggers, n_epochs):
    data = trvae.datasets.simulated(n_cells=20, n_genes=20)
    trvae.TRVAE.setup_anndata(data, condition_key="condition")
    model = trvae.TRVAE(data, seed=0, **SMALL)
    for logger in loggers:
        model.train(2, **LOGGERS[logger](tmp_path), **QUIET)
    for name in ["train_loss", "objective_validation"] if n_epochs else []:
        table = model.history[name]
        assert list(table.index) == list(range(n_epochs)) and table.index.name == "epoch"
        assert np.isfinite(table.to_numpy(float)).all()
    assert n_epochs or not model.history


def test_validation_that_a_later_training_adds_has_its_epochs():
    data = trvae.datasets.simulated(n_cells=20, n_genes=20)
    trvae.TRVAE.setup_anndata(data, condition_key="condition")
    model = trvae.TRVAE(data, seed=0, **SMALL)
    model.train(3, train_size=1.0, **QUIET)
    model.train(4, check_val_every_n_epoch=2, **QUIET)
    assert list(model.history["train_loss"].index) == list(range(7))
    assert list(model.history["objective_validation"].index) == [4, 6]


def test_steps_and_epochs_are_counted_separately():
    def table(name, unit, numbers):
        return pd.DataFrame({name: 1.0}, pd.Index(numbers, name=unit))

    first = {"loss": table("loss", "epoch", [0, 1]), "lr": table("lr", "step", [9, 19])}
    both = joined(first, first)
    assert list(both["loss"].index) == [0, 1, 2, 3] and both["loss"].index.name == "epoch"
    assert list(both["lr"].index) == [9, 19, 29, 39] and both["lr"].index.name == "step"
    assert list(first["loss"].index) == [0, 1]
