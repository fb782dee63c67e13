"""Bad input of each kind raises a plain error at once, and leaves the user's data as they were."""

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.experimental import read_lazy
from helpers import QUIET, assert_unchanged, content, of_matrix
from mudata import MuData
from scipy import sparse

import trvae

NETWORK = {"hidden_sizes": (8,), "n_latent": 2, "effect_sizes": (4,), "seed": 0}


def cells():
    """72 cells x 20 genes: three types under two conditions."""
    adata = trvae.datasets.simulated(n_cells=12, n_genes=20)
    adata.obs["age"] = 1.0
    del adata.layers["rate"]
    return adata


def images():
    """24 grey images of 6 x 6 pixels under two conditions."""
    adata = AnnData(np.random.default_rng(0).integers(0, 256, (24, 36)).astype(np.uint8))
    adata.obs["condition"] = np.resize(["thin", "thick"], 24)
    return adata


@pytest.fixture(scope="module")
def model():
    """A trained model of usual cells. Not to be changed."""
    return made(cells(), train={}, labels_key="cell_type")


@pytest.fixture(scope="module")
def image_model():
    """A trained model of usual images. Not to be changed."""
    return made_of_images(images(), train={})


def made(adata, setup=None, train=None, labels_key=None, **kwargs):
    setup = {"condition_key": "condition", "labels_key": labels_key} | (setup or {})
    trvae.TRVAE.setup_anndata(adata, **setup)
    model = trvae.TRVAE(adata, **(NETWORK | kwargs))
    if train is not None:
        model.train(**({"max_epochs": 1} | QUIET | train))
    return model


def made_of_images(adata, setup=None, train=None, **kwargs):
    setup = {"condition_key": "condition", "image_shape": (6, 6)} | (setup or {})
    trvae.ImageTRVAE.setup_anndata(adata, **setup)
    model = trvae.ImageTRVAE(adata, **({"channels": (4,), "n_latent": 1, "seed": 0} | kwargs))
    if train is not None:
        model.train(**({"max_epochs": 1} | QUIET | train))
    return model


def refused(data, ask, words, error=ValueError):
    """The question raises an error with these words and leaves the data as they were."""
    before = content(data)
    with pytest.raises(error) as caught:
        ask()
    for word in words.split(" ... "):
        assert word in str(caught.value)
    assert_unchanged(data, before)


def with_value(value):
    def make(x):
        x = x.astype(np.float64)
        x[3, 2] = value
        return x

    return of_matrix(make)


def with_obs(**columns):
    def change(adata):
        for name, column in columns.items():
            adata.obs[name] = column
        return adata

    return change


def with_first(key, value):
    """Cells with another value of a column in the first."""

    def change(adata):
        adata.obs[key] = [value, *adata.obs[key][1:]]
        return adata

    return change


def as_mudata(adata):
    mdata = MuData({"rna": adata})
    mdata.obs = adata.obs.copy()
    return mdata


def as_is(adata):
    return adata


# ------------------------------------------------------------------------------ values

VALUES = {
    "NaN": (with_value(np.nan), {}, "1 values that are NaN, infinite"),
    "infinite": (with_value(np.inf), {}, "1 values that are NaN, infinite"),
    "beyond float32": (with_value(1e39), {}, "too large for float32"),
    "NaN in CSR": (
        lambda a: AnnData(sparse.csr_matrix(with_value(np.nan)(a).X), a.obs, a.var),
        {},
        "1 values that are NaN",
    ),
    "negative": (with_value(-1), {}, "negative values (down to -1) ... raw counts"),
    "fractional": (with_value(0.5), {}, "not integers (such as 0.5) ... raw counts"),
    "log-normalised": (of_matrix(np.log1p), {}, "use gene_likelihood='normal'"),
    "counts": (as_is, {"gene_likelihood": "normal"}, "look like raw counts"),
    "text": (of_matrix(lambda x: x.astype(str)), {}, "adata.X has values of type <U"),
    "complex": (of_matrix(lambda x: x.astype(complex)), {}, "type complex128, not real"),
    "no X": (lambda a: AnnData(obs=a.obs, var=a.var), {}, "adata.X is None"),
    "no cells": (lambda a: a[:0].copy(), {}, "adata is empty: 0 x 20"),
    "no genes": (lambda a: a[:, :0].copy(), {}, "adata is empty: 72 x 0"),
    "duplicate genes": (
        lambda a: a[:, [0, *range(20)]].copy(),
        {},
        "not unique: 'gene_0' ... var_names_make_unique",
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values(kind):
    change, kwargs, words = VALUES[kind]
    data = change(cells())
    refused(data, lambda: made(data, **kwargs), words)


# ---------------------------------------------------------------------- kinds of objects

OBJECTS = {
    "data frame": (lambda a: a.to_df(), "expected an AnnData, got a DataFrame"),
    "array": (lambda a: a.X.toarray(), "expected an AnnData, got a ndarray"),
    "path": (lambda a: "cells.h5ad", "expected an AnnData, got a str"),
}
TAKERS = {
    "setup_anndata": lambda data, model, folder: made(data),
    "a model": lambda data, model, folder: trvae.TRVAE(data),
    "transfer": lambda data, model, folder: model.transfer(data, "treated"),
    "load": lambda data, model, folder: trvae.TRVAE.load(folder, data),
    "load_query_data": lambda data, model, folder: trvae.TRVAE.load_query_data(data, model),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_other_than_anndata(model, kind, taker, tmp_path):
    change, words = OBJECTS[kind]
    data = change(cells())
    model.save(tmp_path, overwrite=True)
    refused(data, lambda: TAKERS[taker](data, model, tmp_path), words)


def test_lazy_anndata(model, tmp_path):
    cells().write_zarr(tmp_path / "cells.zarr")
    lazy = read_lazy(tmp_path / "cells.zarr")
    for ask in (
        lambda: trvae.TRVAE.setup_anndata(lazy, condition_key="condition"),
        lambda: model.transfer(lazy, "treated"),
        lambda: model.get_latent_representation(lazy),
        lambda: trvae.TRVAE.load_query_data(lazy, model),
    ):
        with pytest.raises(ValueError, match="adata is lazy, which only transfer"):
            ask()


def test_views_dask_arrays_and_mudata_to_setup(model):
    data = cells()
    refused(data, lambda: made(data[:40]), "adata is a view. Copy it first")
    blocks = data.copy()
    blocks.X = da.from_array(data.X, chunks=(10, 20), asarray=False)
    refused(data, lambda: made(blocks), "dask array of sparse blocks")
    mdata = as_mudata(data)
    refused(mdata, lambda: made(mdata), "got a MuData. Use setup_mudata")
    refused(mdata, lambda: model.transfer(mdata, "treated"), "got a MuData. Pass one modality")
    other = MuData({"gex": data})

    def setup(mdata):
        trvae.TRVAE.setup_mudata(mdata, condition_key="condition")

    refused(data, lambda: setup(data), "expected a MuData, got a AnnData")
    refused(other, lambda: setup(other), "'rna' is not in the MuData: 'gex'")
    refused(mdata, lambda: setup(mdata[:40]), "mdata is a view")


def test_an_anndata_that_was_not_set_up():
    data = cells()
    refused(data, lambda: trvae.TRVAE(data), "set up your AnnData with TRVAE.setup_anndata")
    refused(data, lambda: trvae.TRVAE(), "Pass adata ... or a registry")
    trvae.TRVAE.setup_anndata(data, condition_key="condition")
    refused(data, lambda: trvae.TRVAE(data.copy()), "Did you make a copy?")


# ----------------------------------------------------------------------------- columns

AGE, SIZE, LIBRARY = {"continuous_covariate_keys": ["age"]}, {"size_factor_key": "age"}, "age"
BATCH = {"categorical_covariate_keys": ["batch"]}
COLUMNS = {
    "missing": (as_is, {"condition_key": "stim"}, "condition_key 'stim' is not in adata.obs"),
    "a missing layer": (as_is, {"layer": "counts"}, "layer 'counts' is not in adata.layers"),
    "none": (as_is, {"condition_key": None}, "condition_key None is not in adata.obs"),
    "a list": (as_is, {"condition_key": ["condition"]}, "is not in adata.obs"),
    "not a string": (with_obs(**{"0": 1}), {"labels_key": 0}, "labels_key 0 is not in"),
    "empty string": (
        lambda a: AnnData(a.X, a.obs.rename(columns={"cell_type": ""}), a.var),
        {"labels_key": ""},
        "labels_key must be a non-empty string",
    ),
    "two of one name": (
        lambda a: AnnData(a.X, a.obs.rename(columns={"cell_type": "batch"}), a.var),
        {"labels_key": "batch"},
        "names several columns",
    ),
    "one condition": (with_obs(condition="control"), {}, "only one condition, 'control'"),
    "a gap in conditions": (with_first("condition", None), {}, "1 missing values in 72 rows"),
    "a gap in labels": (
        with_first("cell_type", None),
        {"labels_key": "cell_type"},
        "labels_key 'cell_type' has 1 missing",
    ),
    "a gap in a covariate": (with_first("batch", None), BATCH, "'batch' has 1 missing"),
    "mixed types": (
        with_obs(condition=np.array([0, "high"] * 36, object)),
        {},
        "mixes values of types 'int', 'str'",
    ),
    "the condition as label": (as_is, {"labels_key": "condition"}, "which is condition_key"),
    "the condition as covariate": (
        as_is,
        {"categorical_covariate_keys": ["condition"]},
        "which is condition_key",
    ),
    "a covariate twice": (
        as_is,
        {"categorical_covariate_keys": ["batch", "batch"]},
        "names 'batch' twice",
    ),
    "covariates as text": (
        as_is,
        {"categorical_covariate_keys": "batch"},
        "must be a list of columns, got 'batch'",
    ),
    "an infinite covariate": (with_first("age", np.inf), AGE, "'age' has 1 values that are NaN"),
    "a covariate of text": (with_obs(age="old"), AGE, "must be of real numbers"),
    "a size factor of 0": (with_first("age", 0.0), SIZE, "must be positive ... down to 0.0"),
    "a list as labels_key": (as_is, {"labels_key": ["cell_type"]}, "['cell_type'] is not in"),
    "labels that are lists": (
        with_obs(cell_type=[[1]] * 72),
        {"labels_key": "cell_type"},
        "can't be categories ... 'list'",
    ),
    "a library size below 0": (
        with_first("age", -1.0),
        {"library_key": "age"},
        "must be positive ... down to -1.0",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns(kind):
    change, setup, words = COLUMNS[kind]
    data = change(cells())
    refused(data, lambda: made(data, setup), words)
    assert "_scvi_uuid" not in data.uns


@pytest.mark.parametrize("convert", [as_is, of_matrix(np.asarray)])
def test_a_library_that_is_smaller_than_the_cells_counts(convert):
    data = convert(cells())
    data.obs["log_library"] = np.log1p(np.asarray(data.X.sum(1)).ravel())
    words = "smaller than the sum of adata.X in 72 of 72 cells ... not their logarithm"
    refused(data, lambda: made(data, {"library_key": "log_library"}), words)


def test_cells_that_are_not_selected_may_have_changed():
    data = cells()
    model = made(data, train={}, labels_key="cell_type")
    expected = model.transfer(data, "treated", indices=range(1, 9)).X
    with_first("condition", None)(data)
    for given in (None, data):
        predicted = model.transfer(given, "treated", indices=range(1, 9))
        np.testing.assert_array_equal(predicted.X.toarray(), expected.toarray())


def test_a_size_factor_of_own_cells_that_is_lost():
    data = cells()
    model = made(data, SIZE, train={})
    with_first("age", np.nan)(data)
    refused(data, lambda: model.transfer(None, "treated"), "'age' has 1 missing values")


LIBRARIES = {
    "missing": (np.nan, "library_key 'library' has 1 missing values"),
    "smaller than counts": (3.0, "smaller than the sum of adata.X in 1 of 72 cells"),
}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_library_to_predict_from(kind, tmp_path):
    value, words = LIBRARIES[kind]
    data = cells()
    data.obs["library"] = np.asarray(data.X.sum(1)).ravel()
    model = made(data, {"library_key": "library"}, train={}, labels_key="cell_type")
    model.save(tmp_path / "model")
    wrong = with_first("library", value)(data.copy())
    refused(wrong, lambda: model.transfer(wrong, "treated"), words)
    refused(wrong, lambda: trvae.TRVAE.load(tmp_path / "model", wrong), words)
    # Cells that are not selected don't matter.
    assert model.transfer(wrong, "treated", indices=range(1, 9)).n_obs == 8


def test_a_query_without_the_library_of_its_reference():
    data = cells()
    data.obs["library"] = np.asarray(data.X.sum(1)).ravel()
    model = made(data, {"library_key": "library"}, train={})
    query = data.copy()
    del query.obs["library"]
    query.obs["condition"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, model)
    refused(query, lambda: mapped.train(max_epochs=1, **QUIET), "library_key 'library' is not in")


def test_an_unknown_argument_of_setup():
    data = cells()
    refused(data, lambda: made(data, {"label_key": "cell_type"}), "'label_key'", TypeError)


# ---------------------------------------------------------------------------- settings

SETTINGS = {
    "gene_likelihood": ["gaussian", None],
    "dispersion": ["gene-batch"],
    "decoder": ["linear"],
    "normalization": ["group"],
    "mmd_layer": ["encoder"],
    "n_latent": [0, 2.5, True],
    "hidden_sizes": [64, [], [64, 0]],
    "effect_sizes": [()],
    "dropout_rate": [1, -0.1, "a"],
    "nonnegative_mean": [2],
    "mmd_weight": [-1, np.nan],
    "mmd_within_labels": ["yes"],
    "mmd_bandwidths": [[0.0], 1.0],
    "linear_weight": [1.5],
    "response_limit": [-1],
    "seed": [-1, "a", 2**32],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in SETTINGS.items() for value in values]
)
def test_settings(name, value):
    data = cells()
    refused(data, lambda: made(data, **{name: value}), f"{name} must be ... got {value!r}")


@pytest.mark.parametrize("name", ["pixel_likelihood", "channels", "n_latent"])
def test_settings_of_images(name):
    data = images()
    refused(data, lambda: made_of_images(data, **{name: ()}), f"{name} must be ... got ()")


def test_settings_that_do_not_fit_each_other():
    data = cells()
    refused(data, lambda: made(data, mmd_within_labels=True), "needs labels")
    refused(data, lambda: made(data, nonnegative_mean=True), "needs gene_likelihood='normal'")
    logs = of_matrix(np.log1p)(data)
    refused(logs, lambda: made(logs, SIZE, gene_likelihood="normal"), "does not use size factors")


# ---------------------------------------------------------------------------- training

TRAINING = {
    "batch_size of 0": ({"batch_size": 0}, "batch_size"),
    "batch_size of 1": ({"batch_size": 1}, "batch_size"),
    "max_epochs": ({"max_epochs": 0}, "max_epochs"),
    "train_size": ({"train_size": 1.5}, "train_size"),
    "validation_size": ({"validation_size": -0.1}, "validation_size"),
    "both sizes": ({"validation_size": 0.5}, "train_size ... validation_size ... 0.5"),
    "early stopping": ({"early_stopping": True, "train_size": 1.0}, "objective_validation"),
    "an unknown argument of the plan": ({"plan_kwargs": {"rate": 1}}, "'rate'"),
    "a learning rate": ({"plan_kwargs": {"lr": -1}}, "lr"),
    "a weight of the KL": ({"plan_kwargs": {"max_kl_weight": np.nan}}, "max_kl_weight"),
    "a schedule": ({"plan_kwargs": {"lr_schedule": "linear"}}, "lr_schedule ... 'cosine'"),
    "two schedules": (
        {"plan_kwargs": {"lr_schedule": "cosine", "reduce_lr_on_plateau": True}},
        "reduce_lr_on_plateau",
    ),
    "plan_kwargs": ({"plan_kwargs": "lr"}, "plan_kwargs"),
    "datamodule": ({"datamodule": 1}, "datamodule"),
    "callbacks": ({"callbacks": [1]}, "callbacks"),
    "a split beyond the cells": (
        {"datasplitter_kwargs": {"external_indexing": [np.arange(1, 73)]}},
        "external_indexing ... 72",
    ),
}


@pytest.mark.parametrize("kind", TRAINING)
def test_training(kind):
    arguments, words = TRAINING[kind]
    data = cells()
    model = made(data)
    refused(data, lambda: model.train(**({"max_epochs": 1} | QUIET | arguments)), words)
    assert not model.is_trained_


def test_training_on_too_few_cells():
    data = cells()[[0, -1]].copy()
    refused(data, lambda: made(data, train={}), "2 cells")


CHANGES = {
    "values": (lambda a: setattr(a, "X", np.log1p(a.X)), "not integers"),
    "genes": (lambda a: a._inplace_subset_var(a.var_names[:-1]), "genes of adata have changed"),
    **{
        name: (
            lambda a, name=name: a.obs.insert(0, name, a.obs.pop(name).to_numpy()[::-1]),
            f"adata.obs['{name}'] has changed",
        )
        for name in ("condition", "batch", "cell_type", "age")
    },
}


@pytest.mark.parametrize("kind", CHANGES)
def test_data_that_have_changed_since_the_model_was_made(kind):
    change, words = CHANGES[kind]
    data = cells()
    data.obs["batch"], data.obs["age"] = ["a"] * 30 + ["b"] * 42, np.arange(72.0)
    model = made(data, {"categorical_covariate_keys": ["batch"]} | AGE, {}, labels_key="cell_type")
    change(data)
    refused(data, lambda: model.train(max_epochs=1, **QUIET), words)
    refused(data, lambda: model.calibrate("treated"), words)
    for given in (None, data):
        if kind == "cell_type":
            # Predictions ignore labels.
            assert model.transfer(given, "treated").n_obs == 72
        else:
            refused(data, lambda given=given: model.transfer(given, "treated"), words)


# --------------------------------------------------------------------------- questions

QUESTIONS = {
    "an unknown target": ({"target_condition": "stim"}, "'stim' is not one of ... 'treated'"),
    "no target": ({"target_condition": None}, "None is not one of the model's conditions"),
    "an empty list": ({"target_condition": []}, "must name each condition once"),
    "a target twice": ({"target_condition": ["treated"] * 2}, "must name each condition once"),
    "an unknown source": ({"source_condition": "stim"}, "source_condition 'stim' is not one"),
    "positions": ({"indices": [72]}, "indices don't fit 72 cells"),
    "a mask": ({"indices": [True, False]}, "indices don't fit 72 cells"),
    "names": ({"indices": ["cell_0"]}, "indices don't fit 72 cells"),
    "a number": ({"indices": 3}, "must be a list of positions or a mask, got 3"),
    "no positions": ({"indices": []}, "select none of the 72 cells"),
    "batch_size": ({"batch_size": 0}, "batch_size must be a positive integer"),
    "seed": ({"seed": -1}, "seed must be an integer"),
    "estimate": ({"estimate": "mean"}, "estimate must be one of 'counterfactual', 'decoded'"),
    "out": ({"out": "predicted.csv"}, "must end with .h5ad ... predicted.csv"),
    "client": ({"client": object()}, "client needs out"),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_questions(model, kind):
    arguments, words = QUESTIONS[kind]
    data = cells()
    refused(
        data, lambda: model.transfer(data, **({"target_condition": "treated"} | arguments)), words
    )


EXPECTATIONS = {
    "an unknown gene": ({"gene_list": ["X"]}, "genes unknown to the model: 'X'"),
    "text as gene_list": ({"gene_list": "gene_0"}, "must be a list of genes, got 'gene_0'"),
    "library_size": ({"library_size": 0}, "library_size must be"),
    "n_samples": ({"n_samples": 0}, "n_samples must be a positive integer"),
}


@pytest.mark.parametrize("kind", EXPECTATIONS)
def test_questions_about_expression(model, kind):
    arguments, words = EXPECTATIONS[kind]
    data = cells()
    ask = model.get_transferred_expression
    refused(data, lambda: ask(data, "treated", **arguments), words)


CELLS = {
    "another condition": (with_obs(condition="other"), "not trained on: 'other'. It knows"),
    "numbers as conditions": (with_obs(condition=1), "has values of type number"),
    "a gap in conditions": (with_first("condition", None), "1 missing values"),
    "no conditions": (lambda a: AnnData(a.X, a.obs[["age"]], a.var), "source_condition=..."),
    "fewer genes": (
        lambda a: a[:, 2:].copy(),
        "2 of the model's 20 genes ... 'gene_0', 'gene_1'. These are 'gene_2', 'gene_3'",
    ),
    "duplicate genes": (lambda a: a[:, [0, *range(20)]].copy(), "not unique: 'gene_0'"),
    "no cells": (lambda a: a[:0].copy(), "adata is empty"),
    "NaN": (with_value(np.nan), "1 values that are NaN"),
    "log-normalised": (of_matrix(np.log1p), "Register the layer with the counts"),
}


@pytest.mark.parametrize("kind", CELLS)
def test_cells_to_predict(model, kind):
    change, words = CELLS[kind]
    data = change(cells())
    refused(data, lambda: model.transfer(data, "treated"), words)


def test_a_source_condition_without_cells(model):
    data = cells()
    data = data[data.obs["condition"] == "control"].copy()
    ask = model.transfer
    refused(
        data, lambda: ask(data, "treated", source_condition="treated"), "no cells are selected"
    )


def test_a_file_that_exists(model, tmp_path):
    data, path = cells(), tmp_path / "cells.h5ad"
    data.copy().write_h5ad(path)
    refused(data, lambda: model.transfer(data, "treated", out=path), "exist", FileExistsError)
    assert anndata.read_h5ad(path).n_obs == 72


def test_a_folder_that_does_not_exist(model, tmp_path):
    data, path = cells(), tmp_path / "none" / "cells.h5ad"
    ask = model.transfer
    refused(data, lambda: ask(data, "treated", out=path), "The folder of", FileNotFoundError)


ANSWERS = {
    "get_latent_representation": {},
    "get_mmd_representation": {},
    "get_elbo": {},
    "get_normalized_expression": {},
    "get_likelihood_parameters": {},
    "get_feature_correlation_matrix": {},
    "posterior_predictive_sample": {},
    "differential_expression": {"groupby": "condition"},
    "transfer": {"target_condition": "treated"},
    "get_transferred_expression": {"target_condition": "treated"},
    "get_transferred_means": {"target_condition": "treated"},
    "get_transfer_support": {"target_condition": "treated"},
    "assess_transfer": {"target_condition": "treated"},
    "rank_transferred_genes": {"target_condition": "treated"},
}


@pytest.mark.parametrize("method", ANSWERS)
def test_models_that_are_not_trained_have_no_answers(method):
    data = cells()
    model = made(data, labels_key="cell_type")
    ask = getattr(model, method)
    refused(data, lambda: ask(**ANSWERS[method]), "train the model first", RuntimeError)


# ------------------------------------------------------------------------------ images

PIXELS = {
    "0 and 1 as integers": (lambda x: (x > 127).astype(np.uint8), "only the integers 0 and 1"),
    "0 to 255 as floats": (lambda x: x.astype(np.float32), "pixels from 0 to 255, but"),
    "negative": (lambda x: x.astype(int) - 1, "pixels from -1"),
    "NaN": (lambda x: np.where(x == x[0, 0], np.nan, 0.5), "NaN"),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels(kind):
    change, words = PIXELS[kind]
    data = of_matrix(change)(images())
    refused(data, lambda: made_of_images(data), words)


@pytest.mark.parametrize("shape", [(5, 5), None, "6x6", (6.0, 6.0), (-6, -6), (36,)])
def test_image_shapes(shape):
    data = images()
    refused(data, lambda: made_of_images(data, {"image_shape": shape}), "image_shape must be")


IMAGES = {
    "colour": (
        lambda a: AnnData(np.zeros((4, 108), np.uint8), a.obs.iloc[:4]),
        "images of 108 values, but the model takes images of 6 x 6 x 1",
    ),
    "other names": (
        lambda a: AnnData(a.X, a.obs, pd.DataFrame(index=[f"p{i}" for i in range(36)])),
        "36 of the model's 36 pixels",
    ),
    "another scale": (of_matrix(lambda x: (x / 255).astype(np.float32)), "from 0 to 255"),
    "another condition": (with_obs(condition="bold"), "not trained on: 'bold'"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_to_predict(image_model, kind, tmp_path):
    change, words = IMAGES[kind]
    data = change(images())
    refused(data, lambda: image_model.get_transferred_images(data, "thick"), words)
    if kind in ("colour", "other names"):
        refused(data, lambda: image_model.get_images(data), words)
    if kind == "another scale":
        query = with_obs(condition="bold")(data.copy())
        refused(query, lambda: trvae.ImageTRVAE.load_query_data(query, image_model), words)
        image_model.save(tmp_path / "model")
        refused(data, lambda: trvae.ImageTRVAE.load(tmp_path / "model", data), words)
