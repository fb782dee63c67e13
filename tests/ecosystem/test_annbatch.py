import numpy as np
import pytest
import torch
from helpers import QUIET, SMALL

import trvae

annbatch = pytest.importorskip("annbatch", reason="annbatch needs Python 3.12")


@pytest.fixture
def cells():
    return trvae.datasets.simulated(n_cells=64, n_genes=40, n_cell_types=2)


def shards_of(adata, folder, **kwargs):
    """Cells of two files, in shards that annbatch reads."""
    half = np.arange(adata.n_obs) % 2 == 0
    paths = [folder / "1.h5ad", folder / "2.h5ad"]
    for path, part in zip(paths, (adata[half], adata[~half]), strict=True):
        part.copy().write_h5ad(path)
    return annbatch.DatasetCollection(folder / "cells.zarr").add_adatas(paths, **kwargs)


def datamodule_of(adata, folder, **kwargs):
    from scvi.dataloaders import AnnbatchDataModule

    loader = annbatch.Loader(
        chunk_size=32,
        preload_nchunks=8,
        batch_size=64,
        shuffle=True,
        rng=np.random.default_rng(0),
    ).use_collection(shards_of(adata, folder))
    return AnnbatchDataModule(
        loader,
        batch_key="condition",
        var_names=list(adata.var_names),
        chunk_size=32,
        preload_nchunks=8,
        preload_to_gpu=False,
        **kwargs,
    )


def test_training_on_shards_is_training_in_memory(cells, tmp_path):
    # All cells in one minibatch and no draws, so that only the order of the cells differs.
    kwargs = SMALL | {"dropout_rate": 0.0, "seed": 0}
    train = QUIET | {"max_epochs": 5, "batch_size": cells.n_obs, "train_size": 1.0}
    datamodule = datamodule_of(cells, tmp_path, label_key="cell_type")
    model = trvae.TRVAE(registry=datamodule.registry, **kwargs)
    trvae.TRVAE.setup_anndata(cells, condition_key="condition", labels_key="cell_type")
    expected = trvae.TRVAE(cells, **kwargs)
    for one, data in ((expected, {}), (model, {"datamodule": datamodule})):
        with one.module.posterior_mean():
            one.train(**train, **data)
    np.testing.assert_allclose(
        *(one.history["mmd_train"].astype(float) for one in (model, expected)), rtol=1e-3
    )
    # scvi-tools adds a label for unlabelled cells.
    np.testing.assert_allclose(model.mean_profiles_[:2], expected.mean_profiles_, rtol=1e-5)
    for weight, theirs in zip(
        model.module.parameters(), expected.module.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, theirs, rtol=1e-3, atol=1e-4)

    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    kwargs = {"source_condition": "control", "library_size": 1e4}
    assert np.array_equal(
        loaded.get_transferred_expression(cells, "treated", **kwargs),
        model.get_transferred_expression(cells, "treated", **kwargs),
    )


def test_values_that_do_not_suit_the_likelihood_are_refused(cells, tmp_path):
    cells.X = cells.X.log1p()
    datamodule = datamodule_of(cells, tmp_path)
    model = trvae.TRVAE(registry=datamodule.registry, **SMALL)
    with pytest.raises(ValueError, match="The data module's X"):
        model.train(max_epochs=1, datamodule=datamodule, **QUIET)


def test_covariates_of_shards(cells, tmp_path):
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 3, "a", "b")
    datamodule = datamodule_of(cells, tmp_path, categorical_covariate_keys=["donor"])
    model = trvae.TRVAE(registry=datamodule.registry, **SMALL)
    model.train(max_epochs=1, batch_size=64, datamodule=datamodule, **QUIET)
    assert model.transfer(cells, "treated").shape == cells.shape
    del cells.obs["donor"]
    with pytest.raises(ValueError, match="donor"):
        model.transfer(cells, "treated")


def test_data_module_must_know_the_conditions(cells, tmp_path):
    registry = datamodule_of(cells, tmp_path).registry
    registry["setup_args"]["batch_key"] = None
    with pytest.raises(ValueError, match="no batch_key"):
        trvae.TRVAE(registry=registry)


def test_minibatches_balanced_by_condition(tmp_path):
    from annbatch.samplers import WeightedClassSampler
    from scvi.dataloaders import AnnbatchDataModule

    # As in docs/scaling.md. The data module's own class_sampler_key would draw each minibatch
    # from one condition, of which the MMD is 0.
    class Balanced(AnnbatchDataModule):
        def train_dataloader(self):
            return self.dataset

    # A tenth of the cells is treated.
    cells = trvae.datasets.simulated(n_genes=40, n_cell_types=2, n_cells=[[144] * 2, [16] * 2])
    # Without preloading many chunks, a minibatch would be of few chunks, each of one condition.
    pieces = {"chunk_size": 8, "preload_nchunks": 32, "batch_size": 64}
    collection = shards_of(cells, tmp_path, groupby="condition")
    sampler = WeightedClassSampler(
        **pieces,
        classes=collection.obs(columns=["condition"])["condition"].array,
        num_samples=cells.n_obs,
        rng=np.random.default_rng(0),
    )
    datamodule = Balanced(
        annbatch.Loader(batch_sampler=sampler).use_collection(collection),
        batch_key="condition",
        label_key="cell_type",
        var_names=list(cells.var_names),
    )
    model = trvae.TRVAE(registry=datamodule.registry, seed=0, **SMALL)
    seen = []
    model.module.register_forward_pre_hook(
        lambda module, inputs: (
            seen.append(inputs[0]["batch"].float().mean().item()) if module.training else None
        )
    )
    model.train(max_epochs=10, batch_size=64, datamodule=datamodule, **QUIET)
    assert len(seen) == 10 * 5
    assert 0.4 < np.mean(seen) < 0.6
    assert 0.1 < min(seen) and max(seen) < 0.9
    assert (model.history["mmd_train"].astype(float) > 0).all(axis=None)
    assert np.isfinite(model.mean_profiles_[:2]).all()
    assert model.transfer(cells, "treated").shape == cells.shape
