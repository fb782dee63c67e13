import anndata
import dask.array as da
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_lazy
from helpers import QUIET, SMALL, Unchanged, assert_unchanged, content, dense, fit
from mudata import MuData
from scipy import sparse

import trvae
from trvae.data._cells import loaded

FORMATS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": dense}
GROUPS = {"groupby": "condition", "group1": "treated", "group2": "control"}
KEYS = {"condition_key": "condition", "labels_key": "cell_type"}
SOURCE = {"source_condition": "control"}


@pytest.fixture(scope="module")
def trained():
    """A model of 120 cells, not to be changed."""
    return fit(trvae.datasets.simulated(n_cells=20, n_genes=30), train={"max_epochs": 1})


@pytest.fixture(params=[*FORMATS, "layer"])
def cells(request):
    adata = trvae.datasets.simulated(n_cells=20, n_genes=30)
    adata.layers["counts"] = adata.X.copy()
    adata.X = FORMATS.get(request.param, FORMATS["csr"])(adata.X)
    adata.raw = adata
    return adata


def on_disk(adata, path):
    """The cells in a file, and a function that says that the file and they are as they were."""
    adata.write_h5ad(path)
    before, backed = path.read_bytes(), anndata.read_h5ad(path, backed="r")

    def check():
        assert path.read_bytes() == before
        assert backed.isbacked and backed.file.is_open
        assert_unchanged(backed.to_memory(), content(adata))

    return backed, check


def of_first_label(cells):
    return cells[cells.obs["cell_type"] == cells.obs["cell_type"].iloc[0]]


def evaluated(cells, **kwargs):
    return trvae.evaluate(
        cells, **KEYS, **SOURCE, labels=[cells.obs["cell_type"].iloc[0]], seeds=[0],
        methods={"none": Unchanged}, progress_bar=False, **kwargs,
    )  # fmt: skip


QUESTIONS = {
    "differential expression": lambda model, cells: model.differential_expression(cells, **GROUPS),
    "ranked genes": lambda model, cells: model.rank_transferred_genes(cells, "treated", **SOURCE),
    "a reference": lambda model, cells: model.rank_transferred_genes(
        None, "treated", **SOURCE, reference=cells
    ),
    "evaluation": lambda model, cells: evaluated(cells),
    "evaluation of few genes": lambda model, cells: evaluated(cells, n_genes=10),
    "metrics": lambda model, cells: trvae.metrics.transfer_metrics(
        cells,
        cells,
        of_first_label(cells),
        reference=cells,
        **KEYS,
        **SOURCE,
        target_condition="treated",
    ),  # fmt: skip
    "metrics of a layer": lambda model, cells: trvae.metrics.transfer_metrics(
        cells, cells, cells, layer="counts"
    ),
    "values": lambda model, cells: pd.DataFrame(
        trvae.metrics.log_normalized(cells, target_sum=trvae.metrics.median_library_size(cells))
    ),
    "a plot": lambda model, cells: pd.DataFrame(
        trvae.pl.mean_scatter(cells, cells, cells, show=False).collections[0].get_offsets()
    ),
    "other genes": lambda model, cells: model.transfer(
        cells[:, cells.var_names[::-1]], "treated"
    ).to_df(),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_file_gives_the_same_answer(trained, cells, tmp_path, question):
    ask = QUESTIONS[question]
    backed, check = on_disk(cells, tmp_path / "cells.h5ad")
    answer = ask(trained, backed)
    check()
    pd.testing.assert_frame_equal(answer, ask(trained, cells), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", ["csr", "dense"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_dask_array_gives_the_same_answer(trained, blocks, question):
    cells = trvae.datasets.simulated(n_cells=20, n_genes=30)
    cells.layers["counts"] = cells.X = FORMATS[blocks](cells.X)
    lazy = cells.copy()
    lazy.layers["counts"] = lazy.X = da.from_array(cells.X, chunks=(50, 30), asarray=False)
    ask = QUESTIONS[question]
    pd.testing.assert_frame_equal(ask(trained, lazy), ask(trained, cells), rtol=1e-4, atol=1e-5)
    assert isinstance(lazy.X, da.Array)


def test_a_file_with_the_genes_in_another_order_is_loaded_and_mapped(trained, cells, tmp_path):
    trained.save(tmp_path / "model")
    cells = cells[:, ::-1].copy()
    backed, check = on_disk(cells, tmp_path / "cells.h5ad")
    loaded_model = trvae.TRVAE.load(tmp_path / "model", backed, accelerator="cpu")
    mapped = trvae.TRVAE.load_query_data(backed, trained, accelerator="cpu")
    check()
    for model in (loaded_model, mapped):
        assert list(model.adata.var_names) == list(cells.var_names[::-1])
        np.testing.assert_array_equal(dense(model.adata.X), dense(cells.X)[:, ::-1])


@pytest.mark.parametrize("counts", ["", "_with_counts"])
def test_a_model_of_a_file_is_minified(cells, tmp_path, counts):
    backed, _ = on_disk(cells, tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()
    trvae.TRVAE.setup_anndata(backed, **KEYS)
    model = trvae.TRVAE(backed, seed=0, **SMALL)
    model.train(1, **QUIET)
    backed.obsm["X_latent_qzm"], backed.obsm["X_latent_qzv"] = model.get_latent_representation(
        return_dist=True
    )
    expected = model.get_normalized_expression()
    own = backed.uns["_scvi_uuid"]
    model.minify_adata(f"latent_posterior_parameters{counts}")
    pd.testing.assert_frame_equal(model.get_normalized_expression(), expected, rtol=1e-4)
    assert backed.uns["_scvi_uuid"] == own and backed.file.is_open
    assert (tmp_path / "cells.h5ad").read_bytes() == before


def test_a_query_in_a_file_is_prepared_in_memory_only(trained, cells, tmp_path):
    backed, check = on_disk(cells[:, :20].copy(), tmp_path / "cells.h5ad")
    prepared = trvae.TRVAE.prepare_query_anndata(backed, trained, inplace=False)
    np.testing.assert_array_equal(dense(prepared.X)[:, :20], dense(cells.X)[:, :20])
    assert prepared.shape == cells.shape and not prepared.isbacked
    for in_place in (
        lambda: trvae.TRVAE.prepare_query_anndata(backed, trained),
        lambda: trvae.TRVAE.load_query_data(backed, trained, inplace_subset_query_vars=True),
    ):
        with pytest.raises(ValueError, match=r"file-backed.*to_memory\(\)"):
            in_place()
    check()


def test_a_mudata_in_a_file(tmp_path):
    adata = trvae.datasets.simulated(n_cells=20, n_genes=30)
    place = {"rna_layer": "rna", "condition_key": "rna", "labels_key": "rna"}
    path = tmp_path / "cells.h5mu"
    MuData({"rna": adata}).write_h5mu(path)
    models = []
    for mdata in (MuData({"rna": adata.copy()}), mudata.read_h5mu(path, backed="r")):
        trvae.TRVAE.setup_mudata(mdata, **KEYS, modalities=place)
        models.append(trvae.TRVAE(mdata, seed=0, **SMALL))
        models[-1].train(1, data_on_device=False, **QUIET)
    in_memory, of_file = models
    for ask in (
        lambda model: model.differential_expression(**GROUPS),
        lambda model: model.rank_transferred_genes(None, "treated", **SOURCE),
    ):
        pd.testing.assert_frame_equal(ask(of_file), ask(in_memory), rtol=1e-4, atol=1e-5)
    in_memory.save(tmp_path / "model")
    MuData({"rna": adata[:, ::-1].copy()}).write_h5mu(tmp_path / "other.h5mu")
    other = mudata.read_h5mu(tmp_path / "other.h5mu", backed="r")
    for in_place in (
        lambda: trvae.TRVAE.load(tmp_path / "model", other),
        lambda: trvae.TRVAE.prepare_query_mudata(other, in_memory),
    ):
        with pytest.raises(ValueError, match=r"file-backed.*read_h5mu\(path\)"):
            in_place()


def test_cells_that_are_in_memory_are_not_copied_and_lazy_ones_are_refused(cells, tmp_path):
    assert loaded(cells) is cells
    cells.write_zarr(tmp_path / "cells.zarr")
    with pytest.raises(ValueError, match="lazy"):
        trvae.metrics.median_library_size(read_lazy(tmp_path / "cells.zarr"))
    backed, check = on_disk(cells, tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(dense(loaded(backed).raw.X), dense(cells.raw.X))
    check()
