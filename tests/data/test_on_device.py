"""Cells kept on a device: the same minibatches as those of scvi-tools."""

import anndata
import numpy as np
import pytest
import torch
from helpers import untrained
from scipy import sparse

import trvae
from trvae.data._on_device import CellsOnDevice, LoaderOnDevice, cells_on_device

CPU = torch.device("cpu")
FORMATS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": np.asarray}


def covariates(adata):
    rng = np.random.default_rng(0)
    adata.obs["sex"] = rng.choice(["f", "m"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.obs["size"] = rng.uniform(0.5, 2, adata.n_obs)
    trvae.TRVAE.setup_anndata(
        adata, condition_key="condition", labels_key="cell_type", size_factor_key="size",
        categorical_covariate_keys=["sex"], continuous_covariate_keys=["age"],
    )  # fmt: skip
    return trvae.TRVAE(adata, seed=0)


@pytest.mark.parametrize("matrix", FORMATS)
@pytest.mark.parametrize("share_of_zeros", [0.2, 0.8, 1.0])
def test_minibatches_are_those_of_scvi_tools(adata, matrix, share_of_zeros):
    # Rows of very different length, and empty ones.
    counts = sparse.csr_matrix(adata.X).toarray()
    counts[np.random.default_rng(0).random(counts.shape) < share_of_zeros] = 0
    counts[3], counts[5] = 0, 1 + counts[5]
    adata.X = FORMATS[matrix](counts)
    model = covariates(adata)
    chosen = np.random.default_rng(1).permutation(adata.n_obs)[:100]
    cells = CellsOnDevice(model.adata_manager, CPU)
    minibatch = cells.gather(torch.from_numpy(chosen))
    (expected,) = model._make_data_loader(adata, chosen, batch_size=len(chosen))
    assert minibatch.keys() == expected.keys()
    for key, values in expected.items():
        assert torch.equal(minibatch[key], values), key
        assert minibatch[key].dtype == values.dtype, key
    subset = CellsOnDevice(model.adata_manager, CPU, chosen)
    loaded = list(LoaderOnDevice.in_order(subset, 30))
    assert [len(part.positions) for part in loaded] == [30, 30, 30, 10]
    for key, values in expected.items():
        assert torch.equal(torch.cat([part.tensors()[key] for part in loaded]), values), key


def test_a_gene_that_is_stored_twice_counts_twice(adata):
    start = np.r_[0, np.full(adata.n_obs, 4)]
    adata.X = sparse.csr_matrix((np.ones(4), [1, 1, 2, 2], start), adata.shape)
    cells = CellsOnDevice(untrained(adata).adata_manager, CPU)
    values = cells.gather(torch.tensor([1, 0]))["X"]
    assert values[1, 1:3].tolist() == [2, 2]
    assert values[0].sum() == 0


def test_cells_go_to_the_device_only_where_that_helps(adata, tmp_path):
    manager = untrained(adata).adata_manager
    assert cells_on_device(manager, CPU) is None
    assert cells_on_device(manager, CPU, wanted=False) is None
    assert len(cells_on_device(manager, CPU, wanted=True)) == adata.n_obs
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = untrained(anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"))
    assert cells_on_device(backed.adata_manager, CPU, wanted=False) is None
    with pytest.raises(ValueError, match="data_on_device=True.*backed"):
        backed.train(max_epochs=1, accelerator="cpu", data_on_device=True)
    assert not backed.is_trained_


def test_memory_is_given_back(adata):
    model = untrained(adata)
    model.train(max_epochs=1, accelerator="cpu", data_on_device=True)
    cells = model.trainer.train_dataloader.cells
    assert cells._rows is None
    assert cells._columns == {}
