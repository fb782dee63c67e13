"""Unusual input that is taken: the answer is the usual one, and the user's data stay as they were."""

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from anndata.experimental import read_lazy
from helpers import QUIET, assert_unchanged, content, dense, of_matrix
from scipy import sparse
from test_bad_input import as_mudata, cells, images, made, made_of_images, with_first, with_obs

import trvae


@pytest.fixture(scope="module")
def model():
    """A trained model of usual cells. Not to be changed."""
    return made(cells(), train={}, labels_key="cell_type")


def usable(data, setup=None, train=None, **kwargs):
    """Register, train and transfer; all numbers are finite, and the cells are those given."""
    before = content(data)
    model = made(data, setup, train or {}, **kwargs)
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    predicted = model.transfer(target_condition=model.conditions[-1])
    assert predicted.shape == data.shape
    assert list(predicted.obs_names) == list(data.obs_names)
    assert np.isfinite(dense(predicted.X)).all()
    assert np.isfinite(model.get_latent_representation()).all()
    assert_unchanged(data, before)
    return model, predicted


def to_type(dtype):
    return of_matrix(lambda x: np.minimum(x, 100).astype(dtype))


# -------------------------------------------------------------------- training and transfer

AGE = {"continuous_covariate_keys": ["age"]}
TAKEN = {
    "negative log-normalised values": (
        of_matrix(lambda x: np.log1p(x) - 1),
        {"gene_likelihood": "normal"},
    ),
    "one gene": (lambda a: a[:, :1].copy(), {}),
    "empty cells and genes": (of_matrix(lambda x: x * (np.arange(72) > 4)[:, None]), {}),
    "counts up to a million": (
        of_matrix(lambda x: np.where(np.arange(20) < 2, 1e6, x)),
        {"labels_key": "cell_type"},
    ),
    "booleans": (to_type(bool), {}),
    "int8": (to_type(np.int8), {}),
    "uint16": (to_type(np.uint16), {}),
    "float16": (to_type(np.float16), {}),
    "CSC": (lambda a: AnnData(a.X.tocsc(), a.obs, a.var), {"gene_likelihood": "zinb"}),
    "a sparse array": (
        lambda a: AnnData(sparse.csr_array(a.X), a.obs, a.var),
        {"gene_likelihood": "poisson"},
    ),
    "Fortran order": (of_matrix(np.asfortranarray), {}),
    "a data frame in X": (lambda a: AnnData(a.to_df(), a.obs), {}),
    "booleans as covariate": (with_obs(age=np.resize([True, False], 72)), {"setup": AGE}),
    "size factors over orders": (
        with_obs(age=np.logspace(-3, 6, 72)),
        {"setup": {"size_factor_key": "age"}},
    ),
    "one label": (with_obs(cell_type="T"), {"labels_key": "cell_type"}),
    "a label of one cell": (with_obs(cell_type=["A", *["B"] * 71]), {"labels_key": "cell_type"}),
    "a condition of one cell": (with_obs(condition=["lonely", *["control"] * 71]), {}),
    "more conditions than a minibatch has cells": (
        with_obs(condition=np.resize(list("abcdefgh"), 72)),
        {"labels_key": "cell_type", "train": {"batch_size": 4}},
    ),
    "two cells": (lambda a: a[[0, -1]].copy(), {"train": {"train_size": 1.0}}),
    "one cell more than a minibatch": (
        lambda a: a,
        {"train": {"batch_size": 71, "train_size": 1.0}, "normalization": "batch"},
    ),
    "set up by another model": (lambda a: [scvi.model.SCVI.setup_anndata(a), a][1], {}),
}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.filterwarnings("ignore")
def test_taken(kind):
    change, kwargs = TAKEN[kind]
    data = change(cells())
    _, predicted = usable(data, **kwargs)
    assert predicted.X.dtype == np.float32
    if data.X.dtype.kind in "bui":
        assert (dense(predicted.X) % 1 == 0).all()


CONDITIONS = {
    "integers": ([0, 1], [0, 1]),
    "booleans": ([False, True], [False, True]),
    "pandas' integers": (pd.array([1, 2], "Int64"), [1, 2]),
    "ordered categories": (
        pd.Categorical(["b", "a"], categories=["b", "a"], ordered=True),
        ["b", "a"],
    ),
    "unused categories": (pd.Categorical(["a", "b"], categories=["c", "b", "a"]), ["b", "a"]),
    "other alphabets": (["対照", "β-Interferon"], ["β-Interferon", "対照"]),
}


@pytest.mark.parametrize("kind", CONDITIONS)
def test_conditions(kind, tmp_path):
    given, expected = CONDITIONS[kind]
    data = with_obs(condition=pd.Series(given).take(np.repeat([0, 1], 36)).to_numpy())(cells())
    if isinstance(given, pd.Categorical):
        data.obs["condition"] = given.take(np.repeat([0, 1], 36))
    model, predicted = usable(data)
    assert model.conditions == expected
    assert set(predicted.obs["condition"]) == {expected[-1]}
    model.save(tmp_path / "modèle β")
    assert trvae.TRVAE.load(tmp_path / "modèle β", adata=False).conditions == expected


def test_conditions_that_are_dates_are_loaded_if_trusted(tmp_path):
    dates = pd.to_datetime(["2020-01-01", "2021-01-01"])
    data = with_obs(condition=dates.repeat(36))(cells())
    model, _ = usable(data)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="trusted=True"):
        trvae.TRVAE.load(tmp_path / "model", data)
    loaded = trvae.TRVAE.load(tmp_path / "model", data, trusted=True)
    assert loaded.conditions == model.conditions


def test_unused_categories_of_covariates_are_unknown():
    data = cells()
    data.obs["donor"] = pd.Categorical(np.resize(["a", "b"], 72), categories=["a", "b", "c"])
    model, _ = usable(data, {"categorical_covariate_keys": ["donor"]})
    other = cells()
    other.obs["donor"] = "c"
    with pytest.raises(ValueError, match="'donor'.*: 'c'. It knows 'a', 'b'"):
        model.transfer(other, "treated")


def test_labels_of_one_condition_each_are_warned_of():
    data = cells()
    data.obs["sample"] = data.obs["condition"].astype(str) + "_1"
    with pytest.warns(UserWarning, match="No label of labels_key 'sample' occurs under more"):
        made(data, labels_key="sample")
    types = data.obs["cell_type"].astype(str)
    data.obs["few"] = np.where(types == "type_0", types, types + data.obs["condition"].astype(str))
    with pytest.warns(UserWarning, match="Only 1 of the labels of labels_key 'few' occur under"):
        made(data, labels_key="few")


@pytest.mark.parametrize("make", [dense, sparse.csr_matrix], ids=["dense", "sparse"])
def test_backed_files(make, tmp_path):
    data = cells()
    path = tmp_path / "cells.h5ad"
    AnnData(make(data.X), data.obs, data.var).write_h5ad(path)
    before = path.read_bytes()
    on_disk = anndata.read_h5ad(path, backed="r")
    # With so few cells of one condition that some come twice in a minibatch.
    trvae.TRVAE.setup_anndata(on_disk, condition_key="condition")
    model = trvae.TRVAE(on_disk, hidden_sizes=(8,), n_latent=2, effect_sizes=(4,), seed=0)
    model.train(1, batch_size=16, condition_balanced=True, **QUIET)
    chosen = [7, 3, 50]
    z = model.get_latent_representation(indices=chosen)
    np.testing.assert_allclose(z, model.get_latent_representation()[chosen], atol=1e-5)
    predicted = model.transfer(target_condition="treated", indices=chosen)
    expected = model.transfer(data, "treated", indices=chosen)
    np.testing.assert_array_equal(dense(predicted.X), dense(expected.X))
    on_disk.file.close()
    assert path.read_bytes() == before


def test_dask_arrays_of_dense_blocks(model):
    data = cells()
    data.X = da.from_array(dense(data.X), chunks=(10, 20))
    trained = made(data, train={})
    assert np.isfinite(trained.history["train_loss"].to_numpy(dtype=float)).all()


# -------------------------------------------------------------------------- cells to predict


def as_dask(adata, make=dense):
    adata.X = da.from_array(make(adata.X), chunks=(10, 20), asarray=False)
    return adata


USUAL = {
    "a view": lambda a: a[::-1],
    "dask arrays of dense blocks": as_dask,
    "dask arrays of sparse blocks": lambda a: as_dask(a, lambda x: x),
    "no labels": lambda a: AnnData(a.X, a.obs[["condition"]], a.var),
    "other labels": with_obs(cell_type="unheard of"),
    "labels of another type": with_obs(cell_type=1),
    "a missing label": with_first("cell_type", None),
    "genes in another order": lambda a: a[:, ::-1].copy(),
    "more genes": lambda a: anndata.concat(
        [a, AnnData(np.ones((72, 1)), a.obs, pd.DataFrame(index=["extra"]))],
        axis=1,
        merge="first",
    ),
    "another type": of_matrix(lambda x: x.astype(np.uint16)),
    "a view of a dense matrix": lambda a: of_matrix(np.asarray)(a)[::-1, ::-1],
    "Fortran order": of_matrix(np.asfortranarray),
    "CSC": lambda a: AnnData(a.X.tocsc(), a.obs, a.var),
}


@pytest.mark.parametrize("kind", USUAL)
def test_cells_to_predict(model, kind):
    data = USUAL[kind](cells())
    before = content(data) if not kind.startswith("dask") else None
    expected = model.transfer(cells(), "treated")
    predicted = model.transfer(data, "treated", batch_size=50)
    assert set(predicted.var_names) == set(expected.var_names)
    predicted = predicted[expected.obs_names, expected.var_names]
    np.testing.assert_allclose(dense(predicted.X), dense(expected.X), rtol=1e-5)
    if before is not None:
        assert_unchanged(data, before)


@pytest.mark.parametrize("condition", ["new", None, pd.NA])
@pytest.mark.parametrize("chosen", [{"indices": [1, 50]}, {"source_condition": "treated"}])
def test_conditions_of_other_cells(model, chosen, condition, tmp_path):
    data = with_first("condition", condition)(cells())
    before = content(data)
    expected = dense(model.transfer(cells(), "control", **chosen).X)
    np.testing.assert_array_equal(dense(model.transfer(data, "control", **chosen).X), expected)
    out = model.transfer(data[:, ::-1].copy(), "control", **chosen, out=tmp_path / "p.zarr")
    np.testing.assert_array_equal(dense(anndata.read_zarr(out).X)[:, ::-1], expected)
    assert_unchanged(data, before)


def test_one_cell_repeated_cells_and_repeated_names(model):
    data = cells()
    assert model.transfer(data[:1].copy(), "treated").n_obs == 1
    twice = model.transfer(data, "treated", indices=[3, 3])
    assert list(twice.obs_names) == ["cell_3", "cell_3"]
    # Draws are those of the cell.
    np.testing.assert_array_equal(*dense(twice.X))
    alone = AnnData(data.X, data.obs[["age"]], data.var)
    assert model.transfer(alone, "treated", source_condition="control").n_obs == 72


def test_cells_read_while_they_are_transferred_to_disk(model, tmp_path):
    data = cells()
    expected = dense(model.transfer(data, "treated").X)
    data.copy().write_zarr(tmp_path / "cells.zarr")
    data.copy().write_h5ad(tmp_path / "cells.h5ad")
    files = {
        "lazy": read_lazy(tmp_path / "cells.zarr"),
        "backed": anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
    }
    for name, on_disk in files.items():
        out = tmp_path / f"{name}.zarr"
        model.transfer(on_disk, "treated", out=out, chunk_size=30, progress_bar=False)
        np.testing.assert_array_equal(dense(anndata.read_zarr(out).X), expected)


def test_a_new_condition_to_load_query_data(model):
    query = with_obs(condition="new")(cells())
    mapped = trvae.TRVAE.load_query_data(query, model)
    assert mapped.conditions == ["control", "treated", "new"]


def test_mudata(model):
    mdata = as_mudata(cells())
    trvae.TRVAE.setup_mudata(mdata, condition_key="condition")
    assert trvae.TRVAE(mdata, seed=0).conditions == ["control", "treated"]


# ------------------------------------------------------------------------------ images

PIXELS = {
    "integers": (lambda x: x, np.uint8),
    "floats": (lambda x: (x / 255).astype(np.float32), np.float32),
    "booleans": (lambda x: x > 127, np.float32),
    "CSC of integers": (sparse.csc_matrix, np.uint8),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels(kind):
    change, dtype = PIXELS[kind]
    given = images()
    data = AnnData(change(given.X), given.obs)
    before = content(data)
    model = made_of_images(data, train={})
    predicted = model.get_transferred_images(data, "thick")
    assert predicted.dtype == dtype
    white = 255 if dtype == np.uint8 else 1
    assert 0.1 * white < predicted.max() <= white
    assert_unchanged(data, before)
