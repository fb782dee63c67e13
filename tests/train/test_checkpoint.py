import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    QUIET,
    SMALL,
    At,
    assert_same_weights,
    bars,
    copied,
    fit,
    full_disk,
    sending,
    untrained,
)
from lightning.pytorch.callbacks import Callback

import trvae

N_EPOCHS = 8


class Keep(Callback):
    """Keep the checkpoint that there is when an epoch (from 0) starts."""

    def __init__(self, folder, epoch):
        self.folder, self.epoch = Path(folder), epoch

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 0:
            shutil.copytree(self.folder, self.folder.with_name("kept"))


def small(adata, seed=0, **kwargs):
    return untrained(adata.copy(), **({"seed": seed, "dropout_rate": 0.2} | kwargs))


def image(adata, seed=0):
    cells = bars()
    trvae.ImageTRVAE.setup_anndata(
        cells, condition_key="condition", image_shape=cells.uns["image_shape"]
    )
    return trvae.ImageTRVAE(cells, channels=(4, 4), n_latent=2, seed=seed)


def query(adata, seed=0):
    # Of the reference, the seed is the query's, too.
    conditions = ("control", "treated", "other")
    cells = trvae.datasets.simulated(n_cells=30, n_genes=60, conditions=conditions)
    is_query = cells.obs["condition"] == "other"
    reference = fit(cells[~is_query], train={"max_epochs": 1}, seed=seed)
    return trvae.TRVAE.load_query_data(cells[is_query].copy(), reference, match_reference=True)


def assert_same_training(resumed, other):
    for name, value in other.module.state_dict().items():
        torch.testing.assert_close(
            resumed.module.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name
        )
    assert resumed.history.keys() == other.history.keys()
    for name, table in other.history.items():
        assert list(resumed.history[name].index) == list(table.index), name
        np.testing.assert_allclose(
            resumed.history[name].to_numpy(float), table.to_numpy(float), rtol=1e-6, err_msg=name
        )
    for name, kept in other.reference_cells_.items():
        np.testing.assert_allclose(resumed.reference_cells_[name], kept, rtol=1e-5, atol=1e-5)
    for split in ("train_indices", "validation_indices"):
        np.testing.assert_array_equal(getattr(resumed, split), getattr(other, split))


@pytest.mark.parametrize(
    ("make", "seed", "kwargs"),
    [
        (small, 0, {}),
        # Epoch 4 is not one that is validated.
        (small, 0, {"check_val_every_n_epoch": 3, "early_stopping": True}),
        (small, 0, {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1, "lr": 0.03}}),
        (small, 0, {"plan_kwargs": {"n_steps_kl_warmup": 20}, "train_size": 1.0}),
        (small, 0, {"datasplitter_kwargs": {"num_workers": 1}}),
        (small, None, {"condition_balanced": True}),
        (image, 0, {}),
        (query, 0, {}),
    ],
    ids=["default", "rarely", "plateau", "steps", "workers", "no seed", "images", "query"],
)
def test_resumed_is_uninterrupted(adata, tmp_path, make, seed, kwargs):
    folder = tmp_path / "checkpoints"
    kwargs = {"max_epochs": N_EPOCHS, "batch_size": 64} | QUIET | kwargs
    whole = make(adata, seed)
    whole.train(**kwargs, checkpoint_dir=folder, callbacks=[Keep(folder, 4)])
    resumed = make(adata, seed)
    if seed is None:
        assert not torch.equal(*(next(m.module.parameters()) for m in (whole, make(adata, None))))
    started = At(5, lambda plan: None)
    resumed.train(**kwargs, resume_from=tmp_path / "kept", callbacks=[started])
    assert len(started.weights) == N_EPOCHS - 4
    assert_same_training(resumed, whole)


def test_a_checkpoint_changes_nothing(adata, tmp_path):
    kwargs = {"max_epochs": 3} | QUIET
    one, other = small(adata), small(adata)
    one.train(**kwargs, checkpoint_dir=tmp_path / "new" / "folder", checkpoint_every_n_epoch=2)
    other.train(**kwargs)
    assert_same_weights(one.module, other.module.state_dict())
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["training.ckpt"]


def test_an_interrupted_training_goes_on(adata, tmp_path, caplog):
    kwargs = {"max_epochs": N_EPOCHS, "checkpoint_dir": tmp_path} | QUIET
    whole, resumed = small(adata), small(adata)
    whole.train(**kwargs)
    at = At(5, sending(signal.SIGTERM))
    resumed.train(**kwargs, checkpoint_every_n_epoch=2, callbacks=[at])
    assert f"resume_from={str(tmp_path)!r}" in caplog.text
    # The same model, with a history and other weights than the checkpoint's already.
    resumed.train(**kwargs, resume_from=tmp_path)
    assert_same_training(resumed, whole)


def test_an_interruption_of_what_was_resumed_keeps_the_best_of_all(adata, tmp_path):
    kwargs = {"max_epochs": N_EPOCHS, "checkpoint_dir": tmp_path, "plan_kwargs": {"lr": 0.05}}
    model, at = small(adata), At(6, sending(signal.SIGINT))
    model.train(**kwargs, **QUIET, callbacks=[at])
    best = copied(model.module)
    resumed = small(adata)
    resumed.train(
        **kwargs, **QUIET, resume_from=tmp_path, callbacks=[At(6, sending(signal.SIGINT))]
    )
    assert_same_weights(resumed.module, best)
    assert len(resumed.history["train_loss"]) == 6


def test_a_second_training_is_resumed_after_the_first(adata, tmp_path):
    kwargs = {"max_epochs": 4, "checkpoint_dir": tmp_path / "c"} | QUIET
    models = []
    for interrupted in (False, True):
        model = small(adata)
        model.train(max_epochs=2, **QUIET)
        if interrupted:
            model.train(**kwargs, callbacks=[At(2, sending(signal.SIGINT))])
            model.save(tmp_path / "model")
            model = trvae.TRVAE.load(tmp_path / "model", model.adata)
            kwargs["resume_from"] = tmp_path / "c" / "training.ckpt"
        model.train(**kwargs)
        models.append(model)
    assert len(models[0].history["train_loss"]) == 6
    assert_same_training(models[1], models[0])


def test_what_is_finished_stays_so(adata, tmp_path):
    kwargs = {"max_epochs": 50, "early_stopping": True, "early_stopping_patience": 1} | QUIET
    whole, resumed = small(adata), small(adata)
    whole.train(**kwargs, checkpoint_dir=tmp_path, checkpoint_every_n_epoch=100)
    assert len(whole.history["train_loss"]) < 50
    resumed.train(**kwargs, resume_from=tmp_path)
    assert_same_training(resumed, whole)
    with pytest.raises(ValueError, match="is a checkpoint of epoch .*, after max_epochs=1"):
        resumed.train(max_epochs=1, **QUIET, resume_from=tmp_path)


def test_models_of_an_ensemble_have_checkpoints_of_their_own(adata, tmp_path):
    kwargs = {"max_epochs": 3, "checkpoint_dir": tmp_path} | QUIET
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    whole, resumed = (trvae.TRVAEEnsemble(adata, n_models=3, **SMALL) for _ in range(2))
    whole.train(**kwargs)
    # Of the second model there is none, and the third one's training had not begun.
    (tmp_path / "1" / "training.ckpt").unlink()
    shutil.rmtree(tmp_path / "2")
    resumed.train(**kwargs, resume_from=tmp_path)
    for model, other in zip(resumed.models, whole.models, strict=True):
        assert_same_training(model, other)


# ---------------------------------------------------------------- wrong checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The file of a training of two epochs."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small(trvae.datasets.simulated(n_cells=40, n_genes=60)).train(
        max_epochs=2, checkpoint_dir=folder, **QUIET
    )
    return folder / "training.ckpt"


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"hidden_sizes": (16, 16)}, "hidden_sizes, shapes of weights"),
        ({"mmd_weight": 3.0}, "mmd_weight"),
        ({"gene_likelihood": "poisson"}, "gene_likelihood, shapes of weights"),
        ({"dropout_rate": 0.1}, "dropout_rate"),
        ({"seed": 1}, "seed"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(adata, checkpoint, other, differing):
    model = small(adata, **other)
    with pytest.raises(ValueError, match=f"training.ckpt is .* they differ in {differing}\\."):
        model.train(max_epochs=3, resume_from=checkpoint, **QUIET)
    assert not model.is_trained


def test_a_checkpoint_of_other_cells_is_refused(adata, checkpoint):
    renamed = adata.copy()
    renamed.var_names = [f"other_{name}" for name in adata.var_names]
    doubled = adata.copy()
    doubled.X = 2 * doubled.X
    for cells, differing in (
        (adata[:-1].copy(), "number of cells"), (renamed, "genes"), (doubled, "values"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"they differ in {differing}"):
            small(cells).train(max_epochs=3, resume_from=checkpoint, **QUIET)


class Dangerous:
    def __reduce__(self):
        return pytest.fail, ("run",)


def test_a_damaged_checkpoint_is_refused(adata, checkpoint, tmp_path):
    whole, path = checkpoint.read_bytes(), tmp_path / "training.ckpt"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (
        b"",
        b"text",
        whole[: len(whole) // 2],
        whole[:-1],
        flipped,
        pickle.dumps(Dangerous()),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="training.ckpt is damaged"):
            small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)
    for content in ({"weights": {}}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="training.ckpt is no checkpoint"):
            small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*elsewhere"):
        small(adata).train(max_epochs=3, resume_from=tmp_path / "elsewhere", **QUIET)


def test_several_processes_write_no_checkpoints(adata, tmp_path):
    with pytest.raises(ValueError, match="in one process"):
        small(adata).train(max_epochs=1, strategy="ddp", checkpoint_dir=tmp_path, devices=2)


# ----------------------------------------------------------------------- full disks


def test_a_full_disk_ends_the_training_and_keeps_what_there_is(adata, tmp_path):
    disk = full_disk()
    model, at = small(adata), At(3, lambda plan: disk.__enter__())
    try:
        with pytest.raises(OSError, match="training.ckpt could not be written: File too large"):
            model.train(max_epochs=5, checkpoint_dir=tmp_path, callbacks=[at], **QUIET)
    finally:
        disk.__exit__(None, None, None)
    best = model.history["objective_validation"].to_numpy(float).argmin()
    assert_same_weights(model.module, at.weights[best])
    assert model.is_trained
    # The checkpoint before is there, and nothing else.
    assert [path.name for path in tmp_path.iterdir()] == ["training.ckpt"]
    whole, resumed = small(adata), small(adata)
    whole.train(max_epochs=5, **QUIET)
    resumed.train(max_epochs=5, resume_from=tmp_path, **QUIET)
    assert_same_training(resumed, whole)


def test_a_folder_that_cannot_be_written_is_known_before_training(adata, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    model = small(adata)
    with pytest.raises(OSError, match="could not be written: Not a directory"):
        model.train(max_epochs=1, checkpoint_dir=tmp_path / "file" / "folder", **QUIET)
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(PermissionError, match="can't be written to"):
        model.train(max_epochs=1, checkpoint_dir=tmp_path, **QUIET)
    assert model.history is None


def test_a_full_disk_loses_no_saved_model(adata, tmp_path):
    old, new = fit(adata), fit(adata, seed=1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    old.save(tmp_path / "model", overwrite=True)
    for folder, overwrite, save_anndata in (
        ("model", True, False), ("new", False, False), ("model", True, True), ("new", False, True),
    ):  # fmt: skip
        with full_disk(), pytest.raises(OSError, match=f"{folder} could not be written"):
            new.save(tmp_path / folder, overwrite=overwrite, save_anndata=save_anndata)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert files == ["model.pt", "notes.txt"]
    loaded = trvae.TRVAE.load(tmp_path / "model", adata)
    assert_same_weights(loaded.module, old.module.state_dict())

    new.save(str(tmp_path / "model"), overwrite=True)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata)
    assert_same_weights(loaded.module, new.module.state_dict())
    with pytest.raises(ValueError, match="is there already"):
        new.save(tmp_path / "model")


def test_a_crash_loses_no_saved_model(adata, tmp_path, monkeypatch):
    old, new = fit(adata), fit(adata, seed=1)
    old.save(tmp_path / "model", save_anndata=True)
    process = os.fork()
    if process == 0:
        # Cells are written before the weights, and HDF5 crashes if the disk is full.
        monkeypatch.setattr(torch, "save", lambda *args, **kwargs: os._exit(1))
        new.save(tmp_path / "model", overwrite=True, save_anndata=True)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    loaded = trvae.TRVAE.load(tmp_path / "model")
    assert_same_weights(loaded.module, old.module.state_dict())
    new.save(tmp_path / "model", overwrite=True, save_anndata=True)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "adata.h5ad",
        "model.pt",
    ]
    loaded = trvae.TRVAE.load(tmp_path / "model")
    assert_same_weights(loaded.module, new.module.state_dict())


def test_models_are_saved_under_any_path(adata, tmp_path, monkeypatch):
    model = fit(adata)
    monkeypatch.chdir(tmp_path)
    model.save("a/b/model/")
    model.save("a/b/model", prefix="other_", overwrite=True)
    assert sorted(path.name for path in Path("a/b/model").iterdir()) == [
        "model.pt",
        "other_model.pt",
    ]
    model.save(".", overwrite=True)
    assert trvae.TRVAE.load(".", adata).is_trained
