"""Minibatches: which cells they have, and where the cells come from."""

import anndata
import h5py
import numpy as np
import pytest
import scvi
import torch
from anndata.experimental import AnnCollection
from anndata.io import read_elem, sparse_dataset
from helpers import QUIET, SMALL, assert_same_weights, fit, untrained
from lightning.pytorch import LightningDataModule
from scipy import sparse
from scvi.dataloaders import CollectionAdapter
from torch.utils.data import DataLoader

import trvae
from trvae.model import _cell_summaries
from trvae.train import ConditionBalancedDataSplitter, ConditionBalancedSampler
from trvae.train._sampling import min_cells_per_condition


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [((300, 200), 64), ((1000, 20, 3), 128), ((1000, 20), 512), ((2,) * 50, 16)],
    ids=[
        "even",
        "rare conditions",
        "large minibatches",
        "more conditions than cells in a minibatch",
    ],
)
def test_every_cell_is_seen_and_rare_conditions_are_repeated(counts, batch_size):
    condition = np.repeat(np.arange(len(counts)), counts)
    sampler = ConditionBalancedSampler(condition, batch_size)
    minibatches = list(sampler)
    assert len(minibatches) == len(sampler)
    cells, n_seen = np.unique(np.concatenate(minibatches), return_counts=True)
    np.testing.assert_array_equal(cells, np.arange(sum(counts)))
    least = min(max(8, batch_size // 16), batch_size // len(counts))
    for code, n_cells in enumerate(counts):
        in_each = [(condition[minibatch] == code).sum() for minibatch in minibatches]
        if n_cells < least * len(minibatches):
            assert set(in_each) == {least}
        else:
            assert min(in_each) >= least
            assert (n_seen[condition == code] == 1).all()
    assert minibatches != list(sampler)


@pytest.mark.parametrize("n_cells", [2, 3, 17, 129, 257])
@pytest.mark.parametrize("batch_size", [2, 16, 128])
@pytest.mark.parametrize("min_per_condition", [0, 8])
def test_no_minibatch_has_a_single_cell(n_cells, batch_size, min_per_condition):
    sampler = ConditionBalancedSampler(np.zeros(n_cells), batch_size, min_per_condition)
    assert min(map(len, sampler)) >= 2


def test_balancing_is_on_when_it_matters(adata):
    treated = np.flatnonzero(adata.obs["condition"] == "treated")
    rare = adata[np.setdiff1d(np.arange(adata.n_obs), treated[4:])].copy()

    def n_treated(cells, balanced=None):
        manager = untrained(cells.copy()).adata_manager
        splitter = ConditionBalancedDataSplitter(
            manager, train_size=1.0, batch_size=32, condition_balanced=balanced
        )
        splitter.setup()
        assert splitter.val_dataloader() == []
        return [int((tensors["batch"] == 1).sum()) for tensors in splitter.train_dataloader()]

    assert set(n_treated(rare)) == {min_cells_per_condition(32)}
    assert sum(n_treated(rare, balanced=False)) == 4
    # Half of the cells are treated, so chance is enough.
    assert len(set(n_treated(adata))) > 1


@pytest.mark.parametrize("workers", ["splitter", "settings"])
def test_same_seed_same_weights_with_any_number_of_workers(adata, monkeypatch, workers):
    train = {"max_epochs": 2}
    alone = fit(adata, train=train)
    if workers == "splitter":
        train["datasplitter_kwargs"] = {"num_workers": 2}
    else:
        monkeypatch.setattr(scvi.settings, "dl_num_workers", 2)
    other = fit(adata, train=train)
    assert_same_weights(other.module, alone.module.state_dict())
    if workers == "settings":
        one, same = (model.transfer(target_condition="treated").X for model in (alone, other))
        assert (one != same).nnz == 0


@pytest.mark.parametrize("labels_key", [None, "cell_type"])
def test_training_on_a_data_module_is_training_in_memory(adata, labels_key):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key=labels_key)
    model = trvae.TRVAE(adata, seed=0, **SMALL)
    other = trvae.TRVAE(registry=model.registry, seed=0, **SMALL)
    model.train(max_epochs=2, **QUIET)
    cells = ConditionBalancedDataSplitter(
        model.adata_manager, batch_size=model.training_["batch_size"]
    )
    other.train(max_epochs=2, datamodule=cells, **QUIET)
    assert_same_weights(other.module, model.module.state_dict())
    assert len(other.reference_cells_["z"]) == adata.n_obs
    if labels_key is None:
        assert other.mean_profiles_ is None
    else:
        np.testing.assert_allclose(other.mean_profiles_, model.mean_profiles_)


class Bare(LightningDataModule):
    """No more than Lightning asks for: minibatches to train on."""

    def __init__(self, minibatches):
        super().__init__()
        self._batch_size, self.minibatches = 40, minibatches

    def train_dataloader(self):
        # Lightning takes a list for several loaders.
        return DataLoader(self.minibatches, batch_size=None)


def test_a_data_module_needs_minibatches_only(adata, monkeypatch):
    model = untrained(adata)
    minibatches = list(model._make_data_loader(adata, batch_size=40))
    other = trvae.TRVAE(registry=model.registry, seed=0, **SMALL)
    with pytest.raises(ValueError, match="pass max_epochs"):
        other.train(datamodule=Bare(minibatches), **QUIET)
    monkeypatch.setattr(_cell_summaries, "_N_REFERENCE_CELLS", 100)
    other.train(max_epochs=1, datamodule=Bare(minibatches), **QUIET)
    # The minibatches that have the first 100 cells.
    assert len(other.reference_cells_["z"]) == 120
    assert other.transfer(adata, "treated").shape == adata.shape


@pytest.mark.parametrize("labels", [0, torch.empty(0), None])
def test_a_data_module_may_lack_labels(adata, labels):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    model = trvae.TRVAE(adata, seed=0, **SMALL)
    minibatches = [
        {**tensors, "labels": labels} for tensors in model._make_data_loader(adata, batch_size=40)
    ]
    other = trvae.TRVAE(registry=model.registry, seed=0, **SMALL)
    other.train(max_epochs=1, datamodule=Bare(minibatches), **QUIET)
    assert (other.reference_cells_["label"] == np.zeros(adata.n_obs)).all()


X, BATCH = {"X": torch.zeros(2, 60)}, {"batch": torch.zeros(2, 1)}


@pytest.mark.parametrize(
    "minibatches", [[], [torch.zeros(2, 60)], [X], [X | BATCH], [X | BATCH | {"labels": 0}]]
)
def test_minibatches_of_a_data_module_are_checked_before_training(adata, minibatches):
    model = trvae.TRVAE(registry=untrained(adata).registry, **SMALL)
    with pytest.raises(ValueError, match="with the tensors 'X', 'batch', 'labels'"):
        model.train(max_epochs=1, datamodule=Bare(minibatches), **QUIET)


def test_a_model_without_cells_has_none_to_train_on(adata, tmp_path):
    untrained(adata).save(tmp_path / "model")
    with pytest.raises(ValueError, match="no cells of its own to train on"):
        trvae.TRVAE.load(tmp_path / "model", adata=False).train()


def saved_in_two_files(adata, folder):
    """A collection of files whose counts stay on disk."""
    half = np.arange(adata.n_obs) < adata.n_obs // 2
    parts = []
    for i, cells in enumerate((adata[half], adata[~half])):
        cells.copy().write_h5ad(folder / f"{i}.h5ad")
        file = h5py.File(folder / f"{i}.h5ad")
        counts, obs, var = (
            sparse_dataset(file["X"]),
            read_elem(file["obs"]),
            read_elem(file["var"]),
        )
        parts.append(anndata.AnnData(counts, obs=obs, var=var, layers={"counts": counts}))
    return CollectionAdapter(AnnCollection(parts, join_vars="inner", join_obs="inner"))


@pytest.mark.parametrize("source", ["one backed file", "two files"])
def test_training_on_files_is_training_in_memory(adata, tmp_path, source):
    adata.X = sparse.csr_matrix(adata.X)
    adata.layers["counts"] = adata.X.copy()
    if source == "one backed file":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        files = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    else:
        files = saved_in_two_files(adata, tmp_path)
    models = []
    for cells in (adata, files):
        trvae.TRVAE.setup_anndata(
            cells, condition_key="condition", labels_key="cell_type", layer="counts"
        )
        models.append(trvae.TRVAE(cells, seed=0, **SMALL))
        models[-1].train(max_epochs=4, **QUIET)
    losses = [float(model.history["train_loss"].iloc[-1, 0]) for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    np.testing.assert_allclose(models[1].mean_profiles_, models[0].mean_profiles_)
    means = [model.get_transferred_expression(adata[:80], "treated").mean() for model in models]
    np.testing.assert_allclose(*means, rtol=1e-2)


def test_a_collection_of_files_needs_a_layer(adata, tmp_path):
    adata.X = sparse.csr_matrix(adata.X)
    with pytest.raises(ValueError, match="Name the layer"):
        trvae.TRVAE.setup_anndata(saved_in_two_files(adata, tmp_path), condition_key="condition")


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_that_cannot_read_a_file_are_refused_at_once(adata, tmp_path, context):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    files = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    trvae.TRVAE.setup_anndata(files, condition_key="condition")
    model = trvae.TRVAE(files, seed=0, **SMALL)
    workers = {"num_workers": 1, "multiprocessing_context": context}
    with pytest.raises(ValueError, match=r"num_workers=0.*to_memory\(\)"):
        model.train(1, datasplitter_kwargs=workers, **QUIET)
    assert not model.is_trained_
    model.train(1, **QUIET)


def test_workers_of_predictions_cannot_read_a_file_either(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    files = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    model = fit(adata, train={"max_epochs": 1})
    monkeypatch.setattr(scvi.settings, "dl_num_workers", 1)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda **_: "spawn")
    with pytest.raises(ValueError, match="processes that are started by 'spawn'"):
        model.get_latent_representation(files)
