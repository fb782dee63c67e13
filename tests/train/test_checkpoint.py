"""Checkpoints: training that resumes, checkpoints that are refused, and full disks."""

import pickle
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
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
from lightning.pytorch.callbacks import ModelCheckpoint
from scvi.train import SaveCheckpoint

import trvae

N_EPOCHS = 5


def small(adata, seed=0, **kwargs):
    return untrained(adata.copy(), **({"seed": seed, "dropout_rate": 0.2} | kwargs))


def image(adata, seed=0):
    cells = bars()
    trvae.ImageTRVAE.setup_anndata(
        cells, condition_key="condition", image_shape=cells.uns["image_shape"]
    )
    return trvae.ImageTRVAE(cells, channels=(4, 4), n_latent=2, seed=seed)


def query(adata, seed=0):
    conditions = ("control", "treated", "other")
    cells = trvae.datasets.simulated(n_cells=30, n_genes=60, conditions=conditions)
    is_query = cells.obs["condition"] == "other"
    reference = fit(cells[~is_query], train={"max_epochs": 1}, seed=seed)
    return trvae.TRVAE.load_query_data(cells[is_query].copy(), reference, match_reference=True)


def keeping(folder, epoch):
    """Keep the checkpoint that there is within an epoch, as if the process had been killed."""
    return At(epoch, lambda plan: shutil.copytree(folder, folder.with_name("kept")))


def assert_same_training(resumed, whole):
    assert_same_weights(resumed.module, whole.module.state_dict())
    assert resumed.training_["max_epochs"] == whole.training_["max_epochs"]
    assert resumed.history.keys() == whole.history.keys()
    for name, table in whole.history.items():
        pd.testing.assert_frame_equal(resumed.history[name], table, check_exact=True)
    for name, kept in whole.reference_cells_.items():
        np.testing.assert_array_equal(resumed.reference_cells_[name], kept, err_msg=name)
    for split in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(resumed, split), getattr(whole, split))


# ----------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("make", "seed", "kwargs"),
    [
        (small, 0, {}),
        # Epoch 3 is not validated.
        (small, 0, {"check_val_every_n_epoch": 2, "early_stopping": True}),
        (small, 0, {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr": 0.03}}),
        (small, 0, {"plan_kwargs": {"n_steps_kl_warmup": 20}, "train_size": 1.0}),
        (small, 0, {"datasplitter_kwargs": {"num_workers": 1}, "train_size": 1.0}),
        (small, None, {"condition_balanced": True}),
        (image, 0, {}),
        (query, 0, {"plan_kwargs": {"lr_schedule": "cosine"}}),
    ],
    ids=["default", "rarely", "plateau", "steps", "workers", "no seed", "images", "query"],
)
def test_resumed_is_uninterrupted(adata, tmp_path, make, seed, kwargs):
    folder = tmp_path / "checkpoints"
    kwargs = {"max_epochs": N_EPOCHS, "batch_size": 64} | QUIET | kwargs
    whole = make(adata, seed)
    whole.train(**kwargs, checkpoint_dir=folder, callbacks=[keeping(folder, 3)])
    resumed, at = make(adata, seed), At(N_EPOCHS, None)
    resumed.train(**kwargs, resume_from=tmp_path / "kept", callbacks=[at])
    assert len(at.weights) == N_EPOCHS - 3
    assert_same_training(resumed, whole)


def test_an_interrupted_training_resumes_as_often_as_needed(adata, tmp_path, caplog):
    kwargs = {"max_epochs": N_EPOCHS} | QUIET
    whole, resumed = small(adata), small(adata)
    whole.train(**kwargs)
    kwargs["checkpoint_dir"] = tmp_path / "new" / "folder"
    at = At(3, sending(signal.SIGTERM))
    resumed.train(**kwargs, checkpoint_every_n_epoch=2, callbacks=[at])
    # The same model, which has a history and other weights than the checkpoint already.
    kwargs["resume_from"] = kwargs["checkpoint_dir"]
    assert f"resume_from={str(kwargs['resume_from'])!r}" in caplog.text
    resumed.train(**kwargs, callbacks=[At(4, sending(signal.SIGINT))])
    resumed.train(**kwargs)
    assert_same_training(resumed, whole)


def test_a_resumed_training_can_go_back_to_weights_before_the_checkpoint(adata, tmp_path):
    kwargs = {"max_epochs": 6, "checkpoint_dir": tmp_path} | QUIET
    model = small(adata)
    at = At(4, sending(signal.SIGINT), spoiled=2)
    model.train(**kwargs, callbacks=[at])
    best = copied(model.module)
    assert_same_weights(model.module, at.weights[1])
    resumed, at = small(adata), At(5, sending(signal.SIGINT), spoiled=4)
    resumed.train(**kwargs, resume_from=tmp_path, callbacks=[at])
    assert_same_weights(resumed.module, best)
    assert len(resumed.history["train_loss"]) == 5


@pytest.mark.parametrize("is_loaded", [False, True], ids=["made anew", "loaded"])
def test_a_second_training_is_resumed_after_the_first(adata, tmp_path, is_loaded):
    kwargs = {"max_epochs": 3, "checkpoint_dir": tmp_path / "c"} | QUIET
    whole, resumed = small(adata), small(adata)
    for model in (whole, resumed):
        model.train(max_epochs=2, **QUIET)
    whole.train(**kwargs)
    resumed.train(**kwargs, callbacks=[At(2, sending(signal.SIGINT))])
    resumed.save(tmp_path / "model")
    # The checkpoint has the history of the first training, if the model hasn't.
    resumed = trvae.TRVAE.load(tmp_path / "model", adata) if is_loaded else small(adata)
    resumed.train(**kwargs, resume_from=tmp_path / "c" / "training.ckpt")
    assert len(resumed.history["train_loss"]) == 5
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_finished_training_stays_as_it_is(adata, tmp_path, stops_early):
    kwargs = {"max_epochs": 3} | QUIET
    if stops_early:
        kwargs |= {"max_epochs": 20, "early_stopping": True, "early_stopping_patience": 1}
        kwargs |= {"early_stopping_min_delta": 1e6}
    whole, resumed = small(adata), small(adata)
    whole.train(**kwargs, checkpoint_dir=tmp_path, checkpoint_every_n_epoch=100)
    resumed.train(**kwargs, resume_from=tmp_path)
    assert_same_training(resumed, whole)
    with pytest.raises(ValueError, match="is a checkpoint of epoch .*, after max_epochs=1"):
        resumed.train(max_epochs=1, **QUIET, resume_from=tmp_path)


def test_models_of_an_ensemble_have_checkpoints_of_their_own(adata, tmp_path):
    kwargs = {"max_epochs": 2, "checkpoint_dir": tmp_path} | QUIET
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    whole, resumed = (trvae.TRVAEEnsemble(adata, n_models=3, **SMALL) for _ in range(2))
    whole.train(**kwargs)
    # The second model has none, and the training of the third had not begun.
    (tmp_path / "1" / "training.ckpt").unlink()
    shutil.rmtree(tmp_path / "2")
    resumed.train(**kwargs, resume_from=tmp_path)
    for model, other in zip(resumed.models, whole.models, strict=True):
        assert_same_training(model, other)


def test_checkpoints_of_others_are_independent(adata, tmp_path):
    saver = SaveCheckpoint(
        tmp_path / "models", filename="{epoch}", monitor="objective_validation", save_top_k=-1
    )
    lightning = ModelCheckpoint(tmp_path / "lightning", filename="{epoch}")
    # Our second checkpoint is there then, and no validation of that epoch.
    at = At(4, sending(signal.SIGINT))
    small(adata).train(
        max_epochs=5,
        checkpoint_dir=tmp_path / "own",
        checkpoint_every_n_epoch=2,
        callbacks=[saver, lightning, at],
        **QUIET,
    )
    names = sorted(path.name for path in (tmp_path / "models").iterdir() if path.is_dir())
    assert names == [f"epoch={i}" for i in range(4)]
    own = torch.load(tmp_path / "own" / "training.ckpt", weights_only=True)
    assert own["callbacks"][saver.state_key]["best_model_path"]
    with pytest.raises(ValueError, match="not a checkpoint written by train"):
        small(adata).train(resume_from=lightning.best_model_path, **QUIET)


# -------------------------------------------------------------- wrong checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The file of a training with two epochs."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small(trvae.datasets.simulated(n_cells=40, n_genes=60)).train(
        max_epochs=2, checkpoint_dir=folder, **QUIET
    )
    return folder / "training.ckpt"


def with_other_genes(adata):
    adata.var_names = [f"other_{name}" for name in adata.var_names]
    return adata


@pytest.mark.parametrize(
    ("change", "settings", "train", "differing"),
    [
        (None, {"hidden_sizes": (16, 16)}, {}, "hidden_sizes, shapes of weights"),
        (None, {"mmd_weight": 3.0}, {}, "mmd_weight"),
        (None, {"gene_likelihood": "poisson"}, {}, "gene_likelihood, shapes of weights"),
        (None, {"dropout_rate": 0.1}, {}, "dropout_rate"),
        (None, {"seed": 1}, {}, "seed"),
        (None, {}, {"plan_kwargs": {"lr_schedule": "cosine"}}, "lr_schedule"),
        (lambda adata: adata[:-1].copy(), {}, {}, "number of cells, values"),
        (with_other_genes, {}, {}, "genes"),
        (lambda adata: AnnData(2 * adata.X, adata.obs, adata.var), {}, {}, "values"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    adata, checkpoint, change, settings, train, differing
):
    model = small(adata if change is None else change(adata), **settings)
    with pytest.raises(ValueError, match=f"training.ckpt is .* differs in {differing}\\."):
        model.train(max_epochs=3, resume_from=checkpoint, **QUIET, **train)
    assert not model.is_trained


class Dangerous:
    def __reduce__(self):
        return pytest.fail, ("run",)


def flipped(content):
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 255]) + content[half + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"text",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        flipped,
        lambda content: pickle.dumps(Dangerous()),
    ],
    ids=["empty", "text", "half", "cut", "flipped", "code"],
)
def test_a_damaged_checkpoint_is_refused(adata, checkpoint, tmp_path, damage):
    (tmp_path / "training.ckpt").write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match="training.ckpt is damaged"):
        small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)


def changed(checkpoint, folder, change):
    """Write a checkpoint with other content to a folder."""
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, folder / "training.ckpt")


def test_a_checkpoint_of_another_format_is_refused(adata, checkpoint, tmp_path):
    """Its weights may have the same shapes, but another meaning."""
    changed(checkpoint, tmp_path, lambda content: content["trvae"]["identity"].update(format=1))
    with pytest.raises(ValueError, match="differs in format\\."):
        small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)


@pytest.mark.parametrize("key", ["identity", "history", "is_finished"])
def test_an_incomplete_checkpoint_is_refused(adata, checkpoint, tmp_path, key):
    changed(checkpoint, tmp_path, lambda content: content["trvae"].update({key: "other"}))
    with pytest.raises(ValueError, match="training.ckpt is not a checkpoint"):
        small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)


def test_a_checkpoint_has_any_number_of_genes_and_epochs(tmp_path):
    """However many there are, the reader of files of unknown origin admits it."""
    adata = trvae.datasets.simulated(n_cells=5, n_genes=150_000)
    logged = {f"loss_{i}": np.ones(50_000) for i in range(5)}
    history = {name: pd.DataFrame({name: v}, dtype=object) for name, v in logged.items()}
    whole, resumed = (small(adata, hidden_sizes=(1, 1), n_latent=1) for _ in range(2))
    for model in (whole, resumed):
        model.history_, model.is_trained_ = dict(history), True
    kwargs = {"max_epochs": 2, "checkpoint_dir": tmp_path} | QUIET
    whole.train(**kwargs)
    resumed.train(**kwargs, resume_from=tmp_path)
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2]])
def test_other_files_are_refused(adata, tmp_path, content):
    torch.save(content, tmp_path / "training.ckpt")
    with pytest.raises(ValueError, match="training.ckpt is not a checkpoint"):
        small(adata).train(max_epochs=3, resume_from=tmp_path, **QUIET)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*elsewhere"):
        small(adata).train(max_epochs=3, resume_from=tmp_path / "elsewhere", **QUIET)


def test_code_in_a_checkpoint_is_not_run_by_lightning_either(adata, tmp_path):
    torch.save({"state_dict": Dangerous()}, tmp_path / "other.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        small(adata).train(max_epochs=3, ckpt_path=tmp_path / "other.ckpt", **QUIET)


@pytest.mark.parametrize(("seed", "message"), [(0, "one process only"), (None, "the same seed")])
def test_several_processes_need_a_seed_and_write_no_checkpoints(adata, tmp_path, seed, message):
    with pytest.raises(ValueError, match=message):
        small(adata, seed).train(checkpoint_dir=tmp_path, strategy="ddp", devices=2)


# --------------------------------------------------------------------- full disks


def test_a_full_disk_ends_the_training_and_keeps_what_there_is(adata, tmp_path):
    kwargs = {"max_epochs": N_EPOCHS} | QUIET
    disk = full_disk()
    model, at = small(adata), At(3, lambda plan: disk.__enter__())
    try:
        with pytest.raises(OSError, match="training.ckpt could not be written: File too large"):
            model.train(checkpoint_dir=tmp_path, callbacks=[at], **kwargs)
    finally:
        disk.__exit__(None, None, None)
    best = model.history["objective_validation"].to_numpy(float).argmin()
    assert_same_weights(model.module, at.weights[best])
    assert model.is_trained
    # The previous checkpoint is there, and nothing else.
    assert [path.name for path in tmp_path.iterdir()] == ["training.ckpt"]
    whole, resumed = small(adata), small(adata)
    whole.train(**kwargs)
    resumed.train(resume_from=tmp_path, **kwargs)
    assert_same_training(resumed, whole)


def test_a_folder_that_cannot_be_written_is_known_before_training(adata, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    model = small(adata)
    with pytest.raises(OSError, match="could not be written: Not a directory"):
        model.train(max_epochs=1, checkpoint_dir=tmp_path / "file" / "folder", **QUIET)
    monkeypatch.setattr("os.access", lambda *args: False)
    with pytest.raises(PermissionError):
        model.train(max_epochs=1, checkpoint_dir=tmp_path, **QUIET)
    assert model.history is None
