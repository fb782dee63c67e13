"""What happens with unusual input: the rows of the user guide's tables, all of them run.

``TRVAE_WRITE_TABLES=1 pytest tests/test_unusual_input.py -k guide`` writes the tables.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from anndata.experimental import read_lazy
from helpers import QUIET
from mudata import MuData
from scipy import sparse

import trvae

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "unusual_input.md"
MARK = "<!-- The tables below are those of tests/test_unusual_input.py, which writes them. -->\n"
SMALL = {"hidden_sizes": (8,), "n_latent": 2, "effect_sizes": (4,), "mmd_weight": 1.0, "seed": 0}
SMALL_IMAGES = {"channels": (4,), "n_latent": 1, "mmd_weight": 1.0, "seed": 0}
# scvi-tools' own refusals that say all.
OF_SCVI_TOOLS = {"_check_if_trained", "_get_most_recent_anndata_manager"}


@dataclass
class Row:
    """One row of the tables.

    Parameters
    ----------
    given
        The input.
    ask
        What is done with the data and with what :func:`here` has.
    refusal
        Part of the message with which it is refused; empty if it is taken.
    happens
        What happens if it is taken, which ``ask`` asserts.
    change
        What becomes of usual data before.
    error
        Type of the refusal.
    """

    given: str
    ask: Callable
    refusal: str = ""
    happens: str = ""
    change: Callable = lambda adata: adata
    error: type = ValueError

    def __str__(self):
        return f"| {self.given} | {self.happens or f'`{self.error.__name__}`: `{self.refusal}`'} |"


# ------------------------------------------------------------------------------- data


def cells():
    """72 cells x 20 genes: three types under two conditions."""
    adata = trvae.datasets.simulated(n_cells=12, n_genes=20)
    del adata.layers["rate"]
    return adata


def images(dtype=np.uint8, shape=(6, 6, 1)):
    """24 images of two kinds under two conditions."""
    values = np.random.default_rng(0).integers(0, 256, (24, int(np.prod(shape))))
    adata = AnnData(values.astype(dtype))
    adata.obs["condition"] = np.resize(["thin", "thick"], 24)
    adata.obs["cell_type"] = np.resize(["a", "a", "b", "b"], 24)
    return adata


def with_x(make):
    """Data whose dense matrix is changed."""

    def change(adata):
        return AnnData(make(adata.X.toarray()), adata.obs, adata.var)

    return change


def with_value(value, gene_likelihood="nb"):
    def make(x):
        x = (np.log1p(x) if gene_likelihood == "normal" else x).astype(np.float64)
        x[3, 2] = value
        return x

    return with_x(make)


def with_obs(**columns):
    """Data with columns, each an array or a function of ``obs``."""

    def change(adata):
        for name, column in columns.items():
            adata.obs[name] = column(adata.obs) if callable(column) else column
        return adata

    return change


def gap_in(key):
    def column(obs):
        return [None, *obs[key][1:]]

    return with_obs(**{key: column})


def conditions(control, treated, dtype=None):
    """Data whose conditions have other values."""

    def column(obs):
        values = [control if one == "control" else treated for one in obs["condition"]]
        return pd.Series(values, obs.index, dtype=dtype)

    return with_obs(condition=column)


def named(name, column):
    """Data with a column of another name."""

    def change(adata):
        adata.obs["age"] = 1.0
        adata.obs = adata.obs.rename(columns={column: name})
        return adata

    return change


def numbers(value=1.0):
    """A column of ones but for the first cell."""

    def column(obs):
        return np.array([value, *[1.0] * (len(obs) - 1)])

    return column


def of_type(dtype, value=None):
    def make(x):
        x = np.minimum(x, 100).astype(dtype)
        if value is not None:
            x[0, 0] = value
        return x

    return with_x(make)


def with_swapped_bytes(adata):
    # As a file of such a machine is read. SciPy would make none itself.
    adata.X.data = adata.X.data.astype(">i8")
    return adata


def as_mudata(adata, modality="rna"):
    mdata = MuData({modality: adata})
    mdata.obs = adata.obs.copy()
    return mdata


def written(adata, here, suffix=".h5ad"):
    path = here.folder / f"cells{suffix}"
    # Which makes text categorical.
    adata = adata.copy()
    adata.write_zarr(path) if suffix == ".zarr" else adata.write_h5ad(path)
    return path


# ---------------------------------------------------------------------- what is asked


def setup(**arguments):
    return lambda data, here: trvae.TRVAE.setup_anndata(
        data, **({"condition_key": "condition"} | arguments)
    )


def model_of(data, here, setup_arguments=None, **kwargs):
    setup(**(setup_arguments or {}))(data, here)
    return trvae.TRVAE(data, **(SMALL | kwargs))


def construct(setup_arguments=None, **kwargs):
    return lambda data, here: model_of(data, here, setup_arguments, **kwargs)


def trained_on(data, here, setup_arguments=None, train=None, **kwargs):
    model = model_of(data, here, setup_arguments, **kwargs)
    model.train(**({"max_epochs": 1} | QUIET | (train or {})))
    return model


def use(setup_arguments=None, train=None, check=None, **kwargs):
    """Register, train and transfer, and see that all numbers are finite."""

    def ask(data, here):
        model = trained_on(data, here, setup_arguments, train, **kwargs)
        assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
        predicted = model.transfer(target_condition=model.conditions[-1])
        assert predicted.shape == data.shape
        assert list(predicted.obs_names) == list(data.obs_names)
        assert np.isfinite(dense(predicted.X)).all()
        assert np.isfinite(model.get_latent_representation()).all()
        if check is not None:
            check(model, predicted, data)

    return ask


def train(setup_arguments=None, **arguments):
    return lambda data, here: trained_on(data, here, setup_arguments, arguments)


def log_values(adata):
    adata.X = np.log1p(adata.X)


def drop_a_gene(adata):
    adata._inplace_subset_var(adata.var_names[:-1])


def exchange_labels(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].to_numpy()[::-1]


def set_up_anew(adata):
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    trvae.TRVAE.setup_anndata(adata, condition_key="half", labels_key="cell_type")


def change_own(change, then):
    """Change the AnnData that a trained model is of, and go on with the model."""

    def ask(data, here):
        data = data.copy()
        model = trained_on(data, here, {"labels_key": "cell_type"})
        change(data)
        then(model)

    return ask


def train_on(model):
    model.train(max_epochs=1, **QUIET)


def transfer_own(model):
    assert model.transfer(target_condition="treated").n_obs == 72


def transfer(target="treated", cells=None, **arguments):
    """Transfer the data with a trained model."""
    return lambda data, here: here.model.transfer(
        data if cells is None else cells(data, here), target, **arguments
    )


def question(method, **arguments):
    return lambda data, here: getattr(here.model, method)(data, **arguments)


def as_usual(cells=lambda data, here: data, **arguments):
    """What is predicted is what is predicted of the usual cells."""

    def ask(data, here):
        expected = here.model.transfer(here.cells, "treated", **arguments)
        predicted = here.model.transfer(cells(data, here), "treated", **arguments)
        order = expected.var_names
        assert set(predicted.var_names) == set(order)
        predicted = predicted[expected.obs_names, order]
        np.testing.assert_allclose(dense(predicted.X), dense(expected.X), rtol=1e-5)

    return ask


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def setup_images(**arguments):
    return lambda data, here: trvae.ImageTRVAE.setup_anndata(
        data, **({"condition_key": "condition", "image_shape": (6, 6, 1)} | arguments)
    )


def image_model_of(data, here, **kwargs):
    setup_images()(data, here)
    return trvae.ImageTRVAE(data, **(SMALL_IMAGES | kwargs))


def use_images(data, here):
    model = image_model_of(data, here)
    model.train(max_epochs=1, **QUIET)
    predicted = model.get_transferred_images(data, "thick")
    assert np.isfinite(predicted).all()
    return model, predicted


def transfer_images(data, here):
    return here.image_model.get_transferred_images(data, "thick")


# ------------------------------------------------------------------------------- rows


def asks_all(data, here):
    model = model_of(data, here, {"labels_key": "cell_type"})
    target = {"target_condition": "treated"}
    questions = {
        "get_latent_representation": {},
        "get_mmd_representation": {},
        "get_elbo": {},
        "get_marginal_ll": {"n_mc_samples": 2},
        "get_reconstruction_error": {},
        "get_normalized_expression": {},
        "get_likelihood_parameters": {},
        "get_feature_correlation_matrix": {},
        "posterior_predictive_sample": {},
        "differential_expression": {"groupby": "condition"},
        "transfer": target,
        "get_transferred_expression": target,
        "get_transferred_means": target,
        "get_transfer_support": target,
        "assess_transfer": target,
        "rank_transferred_genes": target,
    }
    for method, arguments in questions.items():
        with pytest.raises(RuntimeError, match="Please train the model first"):
            getattr(model, method)(**arguments)
    model.transfer(target_condition="treated")


def draws_of_their_own(model, predicted, data):
    assert not np.array_equal(dense(predicted.X)[0], dense(predicted.X)[1])


def same_as_usual_type(dtype):
    def check(model, predicted, data):
        assert data.X.dtype == dtype
        assert predicted.X.dtype == np.float32
        assert (dense(predicted.X) % 1 == 0).all()

    return check


def knows(*names):
    def check(model, predicted, data):
        assert model.conditions == list(names)
        assert set(predicted.obs["condition"]) == {names[-1]}

    return check


def unused_category_of_a_covariate(data, here):
    data = data.copy()
    data.obs["donor"] = pd.Categorical(
        np.resize(["a", "b"], data.n_obs), categories=["a", "b", "c"]
    )
    before = data.copy()
    model = trained_on(data, here, {"categorical_covariate_keys": ["donor"]})
    before.obs["donor"] = "c"
    with pytest.raises(ValueError, match="'donor'. has values that .*: 'c'. It knows 'a', 'b'"):
        model.transfer(before, "treated")


def warned_of_labels(data, here):
    data = data.copy()
    data.obs["sample"] = data.obs["condition"].astype(str) + "_1"
    with pytest.warns(UserWarning, match="No label of labels_key 'sample' has more than one cond"):
        setup(labels_key="sample")(data, here)


def other_names(data, here):
    data = data.copy()
    data.var_names = [f"Gén_{i}" for i in range(data.n_vars)]
    data.obs["condition"] = np.where(data.obs["condition"] == "control", "対照", "β-Interferon")
    before = data.copy()
    model = trained_on(data, here)
    folder = here.folder / "modèle β"
    model.save(folder)
    loaded = trvae.TRVAE.load(folder, before)
    out = loaded.transfer(before, "対照", out=folder / "vorhergesägt.h5ad", progress_bar=False)
    predicted = anndata.read_h5ad(out)
    assert list(predicted.var_names) == list(before.var_names)
    expected = model.transfer(before, "対照")
    np.testing.assert_allclose(dense(predicted.X), dense(expected.X))


def backed(make=lambda x: x):
    def ask(data, here):
        path = written(AnnData(make(data.X), data.obs, data.var), here)
        before = path.read_bytes()
        on_disk = anndata.read_h5ad(path, backed="r")
        # So few cells of one condition that some come twice in a minibatch.
        use(train={"batch_size": 16, "condition_balanced": True})(on_disk, here)
        on_disk.file.close()
        assert path.read_bytes() == before

    return ask


def order_of_backed_cells(data, here):
    on_disk = anndata.read_h5ad(written(data, here), backed="r")
    model = trained_on(on_disk, here)
    chosen = [7, 3, 50]
    z = model.get_latent_representation(indices=chosen)
    np.testing.assert_allclose(z, model.get_latent_representation()[chosen], atol=1e-5)
    predicted = model.transfer(target_condition="treated", indices=chosen)
    expected = model.transfer(data, "treated", indices=chosen)
    np.testing.assert_array_equal(dense(predicted.X), dense(expected.X))
    on_disk.file.close()


def to_disk(suffix, read):
    def ask(data, here):
        cells = read(written(data, here, suffix))
        out = here.model.transfer(
            cells, "treated", out=here.folder / "predicted.zarr", progress_bar=False
        )
        predicted = anndata.read_zarr(out)
        expected = here.model.transfer(data, "treated")
        np.testing.assert_array_equal(dense(predicted.X), dense(expected.X))

    return ask


def read_backed(path):
    return anndata.read_h5ad(path, backed="r")


def lazily(data, here):
    return read_lazy(written(data, here, ".zarr"))


def dask(data, here, make=lambda x: x.toarray()):
    chunked = data.copy()
    chunked.X = da.from_array(make(data.X), chunks=(10, data.n_vars), asarray=False)
    return chunked


def register_dask(make=lambda x: x.toarray()):
    return lambda data, here: use()(dask(data, here, make), here)


def with_more_conditions(adata):
    adata.obs["condition"] = np.resize(list("abcdefgh"), adata.n_obs)
    return adata


def queries(data, here):
    query = data.copy()
    query.obs["condition"] = "new"
    mapped = trvae.TRVAE.load_query_data(query, here.model)
    assert mapped.conditions == ["control", "treated", "new"]


def query_in_place(data, here):
    trvae.TRVAE.load_query_data(data, here.model, inplace_subset_query_vars=True)


def load_saved(data, here):
    here.model.save(here.folder / "model")
    trvae.TRVAE.load(here.folder / "model", data)


def loaded_if_trusted(data, here):
    data = data.copy()
    model = trained_on(data, here)
    model.save(here.folder / "model")
    with pytest.raises(
        ValueError, match=r"If you saved it yourself, .* load\(..., trusted=True\)"
    ):
        trvae.TRVAE.load(here.folder / "model", data)
    loaded = trvae.TRVAE.load(here.folder / "model", data, trusted=True)
    assert loaded.conditions == model.conditions


def sparse_coo(data, here):
    with pytest.raises(ValueError, match="Only CSR and CSC"):
        AnnData(data.X.tocoo())


def scale_of_images(white):
    def ask(data, here):
        _, predicted = use_images(data, here)
        assert predicted.dtype == (np.uint8 if white == 255 else np.float32)
        assert 0.1 * white < predicted.max() <= white

    return ask


def query_of_other_scale(data, here):
    query = data.copy()
    query.obs["condition"] = "bold"
    trvae.ImageTRVAE.load_query_data(query, here.image_model)


def load_with_other_scale(data, here):
    here.image_model.save(here.folder / "model")
    trvae.ImageTRVAE.load(here.folder / "model", data)


NOT_FINITE = "adata.X has 1 values that are NaN or infinite. Remove or replace them."
IS_LAZY = "adata is read lazily, which is for transfer(..., out=...) only."
EMPTY = "The AnnData is empty: n_obs x n_vars is "
COUNTS = "Drawn counts come back as `float32`."
SIZE = {"size_factor_key": "size"}
AGE = {"continuous_covariate_keys": ["age"]}
DONOR = {"categorical_covariate_keys": ["donor"]}
LIBRARY = {"library_key": "library"}

SECTIONS = {
    "Values": [
        Row("NaN among counts", construct(), NOT_FINITE, change=with_value(np.nan)),
        Row("infinity among counts", construct(), NOT_FINITE, change=with_value(np.inf)),
        Row(
            "NaN among log-normalised values",
            construct(gene_likelihood="normal"),
            NOT_FINITE,
            change=with_value(np.nan, "normal"),
        ),
        Row(
            "NaN stored in a sparse matrix",
            construct(),
            NOT_FINITE,
            change=lambda a: AnnData(sparse.csr_matrix(with_value(np.nan)(a).X), a.obs, a.var),
        ),
        Row(
            "a negative count",
            construct(),
            "adata.X has negative values (as low as -1), but gene_likelihood='nb' is for raw counts.",
            change=with_value(-1),
        ),
        Row(
            "counts that are not integers",
            construct(gene_likelihood="zinb"),
            "adata.X has values that are not integers (such as 0.5), but gene_likelihood='zinb' is "
            "for raw counts.",
            change=with_value(0.5),
        ),
        Row(
            "log-normalised values for a likelihood of counts",
            construct(),
            "Register the layer that holds the counts, or use gene_likelihood='normal' for "
            "log-normalised values.",
            change=with_x(np.log1p),
        ),
        Row(
            'counts for `gene_likelihood="normal"`',
            construct(gene_likelihood="normal"),
            "which look like raw counts, but gene_likelihood='normal' is for log-normalised values.",
        ),
        Row(
            'scaled values, some below 0, for `gene_likelihood="normal"`',
            use(gene_likelihood="normal"),
            happens="Taken; predictions can be below 0, too.",
            change=with_x(lambda x: np.log1p(x) - 1),
        ),
        *(
            Row(
                f"a value of {value:g}{of_likelihood}",
                construct(gene_likelihood=likelihood),
                f"adata.X has values as large as {value:g}, beyond the range of float32 (up to "
                "3.40282e+38), in which networks compute.",
                change=with_value(value, likelihood),
            )
            for value, likelihood, of_likelihood in (
                (1e39, "nb", " among counts"),
                (1e39, "normal", " among log-normalised values"),
                (-1e39, "normal", " among log-normalised values"),
            )
        ),
        Row(
            "a count above 2³²",
            construct(),
            "adata.X has counts up to 1e+30, more than 2**32, up to which counts can be drawn.",
            change=with_value(1e30),
        ),
        Row(
            "the same, to a trained model",
            transfer(),
            "adata.X has counts up to 1e+10, more than 2**32, up to which counts can be drawn.",
            change=with_value(1e10),
        ),
        *(
            Row(
                f'a count of 2³², with `gene_likelihood="{likelihood}"`',
                use(gene_likelihood=likelihood),
                happens="Taken; loss and predictions are finite.",
                change=with_value(2.0**32),
            )
            for likelihood in ("nb", "poisson")
        ),
        Row("no cells", setup(), EMPTY + "0 x 20.", change=lambda a: a[:0].copy()),
        Row("no genes", setup(), EMPTY + "72 x 0.", change=lambda a: a[:, :0].copy()),
        Row(
            "one gene",
            use(),
            happens="Taken. With counts, nothing but the library size is left to predict.",
            change=lambda a: a[:, :1].copy(),
        ),
        Row(
            "cells without a count",
            use(),
            happens="Taken; predictions are finite.",
            change=with_x(lambda x: x * (np.arange(len(x)) > 4)[:, None]),
        ),
        Row(
            "genes without a count",
            use(),
            happens="Taken; predictions are finite.",
            change=with_x(lambda x: x * (np.arange(x.shape[1]) > 4)),
        ),
        Row(
            "a condition without a count",
            use({"labels_key": "cell_type"}),
            happens="Taken; predictions are finite.",
            change=lambda a: with_x(
                lambda x: x * (a.obs["condition"] == "control").to_numpy()[:, None]
            )(a),
        ),
        Row(
            "counts up to a million",
            use({"labels_key": "cell_type"}),
            happens="Taken; loss and predictions are finite.",
            change=with_x(lambda x: np.where(np.arange(x.shape[1]) < 2, 1e6, x)),
        ),
        Row(
            "library sizes from 1 to a million",
            use({"labels_key": "cell_type"}),
            happens="Taken; loss and predictions are finite.",
            change=with_x(
                lambda x: (
                    np.floor(np.logspace(0, 6, len(x)))[:, None] * (np.arange(x.shape[1]) == 0)
                )
            ),
        ),
        Row(
            "no `X`",
            setup(),
            "adata.X is empty. Name the layer that holds the data: layer=...",
            change=lambda a: AnnData(obs=a.obs, var=a.var),
        ),
        Row(
            "a layer that is not there",
            setup(layer="counts"),
            "layer 'counts' is not in adata.layers: there are none.",
        ),
        Row(
            "numbers kept as objects",
            setup(),
            "adata.X is not of numbers, but of type object.",
            change=of_type(object),
        ),
        Row(
            "text in place of numbers",
            setup(),
            "adata.X is not of numbers, but of type <U",
            change=of_type(str),
        ),
        Row(
            "complex numbers",
            setup(),
            "adata.X is not of numbers, but of type complex64.",
            change=of_type(np.complex64),
        ),
        Row(
            "counts of type `longdouble`",
            setup(),
            "which PyTorch does not have. Convert it: adata.X.astype('float32').",
            change=of_type(np.longdouble),
        ),
        Row(
            "numbers of another machine's order of bytes",
            setup(),
            "adata.X is of type '>f4', which PyTorch does not have. Convert it: "
            "adata.X.astype('float32').",
            change=of_type(">f4"),
        ),
        Row(
            "the same, in CSR",
            setup(),
            "adata.X is of type '>i8', which PyTorch does not have.",
            change=with_swapped_bytes,
        ),
        Row(
            "the same, in a layer",
            setup(layer="counts"),
            "adata.layers['counts'] is of type '>f8', which PyTorch does not have. Convert it: "
            "adata.layers['counts'].astype('float32').",
            change=lambda a: AnnData(
                a.X, a.obs, a.var, layers={"counts": a.X.toarray().astype(">f8")}
            ),
        ),
        *(
            Row(
                f"counts of type `{dtype}`",
                use({"labels_key": "cell_type"}, check=same_as_usual_type(dtype)),
                happens=f"Taken. {COUNTS}",
                change=of_type(dtype, value),
            )
            for dtype, value in {
                "bool": None,
                "int8": 127,
                "uint8": 255,
                "uint16": 65_535,
                "float16": 60_000.0,
                "float64": None,
            }.items()
        ),
        Row(
            "counts of type `int64`, above 2³¹",
            use(),
            happens="Taken, and rounded to `float32`.",
            change=of_type(np.int64, 3_000_000_000),
        ),
    ],
    "Matrices": [
        *(
            Row(
                f'CSC, with `gene_likelihood="{likelihood}"`',
                use(gene_likelihood=likelihood),
                happens="Taken; rows are read more slowly than those of CSR.",
                change=lambda a: AnnData(a.X.tocsc(), a.obs, a.var),
            )
            for likelihood in ("nb", "zinb", "poisson")
        ),
        Row(
            "SciPy's sparse arrays",
            use(),
            happens="Taken.",
            change=lambda a: AnnData(sparse.csr_array(a.X), a.obs, a.var),
        ),
        Row("COO", sparse_coo, happens="AnnData takes none. Call `matrix.tocsr()`."),
        Row(
            "`numpy.matrix`",
            use(),
            happens="Taken: AnnData makes it an array.",
            change=with_x(np.matrix),
        ),
        Row(
            "an array in Fortran's order",
            use(),
            happens="Taken; scvi-tools puts a copy in C's order in its place.",
            change=with_x(np.asfortranarray),
        ),
        Row(
            "a `DataFrame` in `X`",
            use(),
            happens="Taken: AnnData makes it an array.",
            change=lambda a: AnnData(a.to_df(), a.obs),
        ),
        Row(
            "a masked array",
            setup(),
            "adata.X is a masked array, of which the masked values are not known.",
            change=with_x(lambda x: np.ma.masked_less(x, 1)),
        ),
        Row(
            'a dense file, `backed="r"`',
            backed(lambda x: x.toarray()),
            happens="Taken; the file stays as it is.",
        ),
        Row('a sparse file, `backed="r"`', backed(), happens="Taken; the file stays as it is."),
        Row(
            "cells of a file, in any order",
            order_of_backed_cells,
            happens="Come back in that order.",
        ),
        Row(
            "a dask array of dense blocks",
            register_dask(),
            happens="Taken; each minibatch is computed.",
        ),
        Row(
            "a dask array of sparse blocks",
            register_dask(lambda x: x),
            "adata.X is a dask array of sparse blocks, from which no minibatches are read.",
        ),
        Row(
            "an AnnData that is read lazily, to `setup_anndata`",
            lambda data, here: setup()(lazily(data, here), here),
            IS_LAZY,
        ),
        Row("the same, to `transfer`", transfer(cells=lazily), IS_LAZY),
        Row(
            "the same, to `transfer` with a source condition",
            transfer(cells=lazily, source_condition="control"),
            IS_LAZY,
        ),
        Row(
            "the same, to a representation",
            lambda data, here: here.model.get_latent_representation(lazily(data, here)),
            IS_LAZY,
        ),
        Row(
            "the same, to `transfer` with `out`",
            to_disk(".zarr", read_lazy),
            happens="Read chunk by chunk.",
        ),
        Row(
            'a file, `backed="r"`, to `transfer` with `out`',
            to_disk(".h5ad", read_backed),
            happens="Read chunk by chunk.",
        ),
        Row(
            "a dask array of dense blocks, to `transfer`",
            as_usual(dask),
            happens="Computed as a whole.",
        ),
        Row(
            "a dask array of sparse blocks, to `transfer`",
            as_usual(lambda data, here: dask(data, here, lambda x: x)),
            happens="Computed as a whole.",
        ),
        Row(
            "a view, to `setup_anndata`",
            lambda data, here: setup()(data[:40], here),
            "adata is a view, whose cells are another's. Copy it: adata = adata.copy().",
        ),
        Row("a view, to `transfer`", as_usual(lambda data, here: data[::-1]), happens="Taken."),
        Row(
            "a data frame in place of an AnnData",
            setup(),
            "adata is a DataFrame, but no AnnData.",
            change=lambda a: a.to_df(),
        ),
        Row(
            "an array in place of an AnnData",
            setup(),
            "adata is a ndarray, but no AnnData.",
            change=lambda a: a.X.toarray(),
        ),
        Row(
            "an array in place of an AnnData, to `load_query_data`",
            lambda data, here: trvae.TRVAE.load_query_data(data, here.model),
            "adata is a ndarray, but no AnnData.",
            change=lambda a: a.X.toarray(),
        ),
        *(
            Row(f"{name} in place of an AnnData, to {to}", ask, message, change=change)
            for name, message, change in (
                (
                    "a data frame",
                    "adata is a DataFrame, but no AnnData.",
                    lambda a: a.to_df(),
                ),
                ("a path", "adata is a str, but no AnnData.", lambda a: "cells.h5ad"),
                ("`True`", "adata is a bool, but no AnnData.", lambda a: True),
            )
            for to, ask in (
                ("`load`", load_saved),
                ("`load_query_data`, in place", query_in_place),
            )
        ),
        Row(
            "an AnnData that is read lazily, to `load_query_data`",
            lambda data, here: trvae.TRVAE.load_query_data(lazily(data, here), here.model),
            IS_LAZY,
        ),
        Row(
            "`None` in place of an AnnData",
            setup(),
            "adata is a NoneType, but no AnnData.",
            change=lambda a: None,
        ),
        Row(
            "`adata.raw` in place of an AnnData",
            lambda data, here: setup()(data.raw, here),
            "adata is a Raw, but no AnnData.",
            change=lambda a: AnnData(a.X, a.obs, a.var, uns={}, raw=a),
        ),
        Row(
            "a path in place of an AnnData, to `transfer`",
            transfer(),
            "adata is a str, but no AnnData.",
            change=lambda a: "cells.h5ad",
        ),
        Row(
            "an array to a model",
            lambda data, here: trvae.TRVAE(data),
            "adata is a ndarray, but no AnnData.",
            change=lambda a: a.X.toarray(),
        ),
        Row(
            "a MuData to `setup_anndata`",
            setup(),
            "adata is a MuData, which setup_mudata registers.",
            change=as_mudata,
        ),
        Row(
            "an AnnData to `setup_mudata`",
            lambda data, here: trvae.TRVAE.setup_mudata(data, condition_key="condition"),
            "mdata is a AnnData, but no MuData.",
        ),
        Row(
            "a MuData without the modality",
            lambda data, here: trvae.TRVAE.setup_mudata(data, condition_key="condition"),
            "modalities['rna_layer'] 'rna' is not in the MuData: 'gex'.",
            change=lambda a: as_mudata(a, "gex"),
        ),
        Row(
            "a view of a MuData",
            lambda data, here: trvae.TRVAE.setup_mudata(data[:40], condition_key="condition"),
            "mdata is a view, whose cells are another's. Copy it: mdata = mdata.copy().",
            change=as_mudata,
        ),
        Row(
            "a MuData to a model of AnnData",
            transfer(),
            "The model was set up with an AnnData, so that it takes one modality, such as",
            change=as_mudata,
        ),
        Row(
            "an AnnData that is not set up, to a model",
            lambda data, here: trvae.TRVAE(data),
            "Please set up your AnnData with TRVAE.setup_anndata first.",
        ),
        Row(
            "a copy of one that is",
            lambda data, here: trvae.TRVAE([setup()(data, here), data.copy()][1]),
            "Did you make a copy?",
        ),
    ],
    "Columns": [
        Row(
            "a column that is not there",
            setup(condition_key="stim"),
            "condition_key 'stim' is not in adata.obs: 'condition', 'cell_type', 'batch'.",
        ),
        Row(
            "`condition_key=None`",
            setup(condition_key=None),
            "condition_key None is not in adata.obs: 'condition', 'cell_type', 'batch'.",
        ),
        Row(
            "a list as `condition_key`",
            setup(condition_key=["condition"]),
            "condition_key ['condition'] is not in adata.obs",
        ),
        *(
            Row(
                f"a column named `{name!r}` as `{argument}`".replace("'", '"'),
                setup(**{argument: [name] if argument.endswith("keys") else name}),
                f"{argument} {name!r} is not a string that isn't empty. Rename the column of "
                "adata.obs.",
                change=named(name, column),
            )
            for name, argument, column in (
                ("", "condition_key", "condition"),
                (0, "condition_key", "condition"),
                ("", "labels_key", "cell_type"),
                (0, "labels_key", "cell_type"),
                ("", "categorical_covariate_keys", "batch"),
                ("", "continuous_covariate_keys", "age"),
                ("", "size_factor_key", "age"),
                (0, "library_key", "age"),
            )
        ),
        Row(
            "two columns of the same name",
            setup(condition_key="batch"),
            "condition_key 'batch' is the name of several columns of adata.obs.",
            change=lambda a: AnnData(a.X, a.obs.rename(columns={"cell_type": "batch"}), a.var),
        ),
        Row(
            "an argument that is not there",
            setup(label_key="cell_type"),
            "There is no argument 'label_key'.",
            error=TypeError,
        ),
        Row(
            "one condition only",
            setup(),
            "condition_key 'condition' has only one condition, 'control'; a transfer needs at "
            "least two.",
            change=lambda a: a[a.obs["condition"] == "control"].copy(),
        ),
        Row(
            "one cell", setup(), "has only one condition, 'control'", change=lambda a: a[:1].copy()
        ),
        Row(
            "a cell without a condition",
            setup(),
            "condition_key 'condition': 1 of 72 rows of adata.obs have no value. Remove them or "
            "give them one.",
            change=gap_in("condition"),
        ),
        Row(
            "a cell without a label",
            setup(labels_key="cell_type"),
            "labels_key 'cell_type': 1 of 72 rows of adata.obs have no value.",
            change=gap_in("cell_type"),
        ),
        Row(
            "a cell without a category of a covariate",
            setup(categorical_covariate_keys=["batch"]),
            "categorical_covariate_keys 'batch': 1 of 72 rows of adata.obs have no value.",
            change=gap_in("batch"),
        ),
        Row(
            "conditions that are integers",
            use(check=knows(0, 1)),
            happens="Taken, and named as they are: `target_condition=1`.",
            change=conditions(0, 1),
        ),
        Row(
            "conditions that are fractions",
            use(check=knows(0.5, 2.0)),
            happens="Taken, and named as they are.",
            change=conditions(0.5, 2.0),
        ),
        Row(
            "conditions that are booleans",
            use(check=knows(False, True)),
            happens="Taken, and named as they are.",
            change=conditions(False, True),
        ),
        Row(
            "conditions of pandas' types of text and integers",
            use(check=knows(1, 2)),
            happens="Taken.",
            change=conditions(1, 2, "Int64"),
        ),
        Row(
            "categories of conditions in an order",
            use(check=knows("treated", "control")),
            happens="Taken; the model's conditions are in that order.",
            change=with_obs(
                condition=lambda obs: pd.Categorical(
                    obs["condition"], categories=["treated", "control"], ordered=True
                )
            ),
        ),
        Row(
            "conditions of mixed types",
            setup(),
            "condition_key 'condition' mixes values of types 'int', 'str'.",
            change=conditions(0, "high", object),
        ),
        Row(
            "conditions that are lists",
            setup(),
            "condition_key 'condition' has values that can't be categories (unhashable type: "
            "'list'). Make them text, such as by adata.obs['condition'].astype(str).",
            change=conditions([0], [1]),
        ),
        Row(
            "conditions without an order",
            setup(),
            "condition_key 'condition' has values that can't be categories ('<' not supported",
            change=conditions(object(), object(), object),
        ),
        Row(
            "labels that are sets",
            setup(labels_key="cell_type"),
            "labels_key 'cell_type' has values that can't be categories (unhashable type: 'set').",
            change=with_obs(
                cell_type=lambda obs: pd.Series([{name} for name in obs["cell_type"]], obs.index)
            ),
        ),
        Row(
            "conditions that are dates",
            loaded_if_trusted,
            happens="Taken. A model that is saved is loaded with `trusted=True` only, as the error "
            "tells.",
            change=conditions(pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01")),
        ),
        Row(
            "conditions that are intervals",
            loaded_if_trusted,
            happens="Taken, and loaded, as dates are.",
            change=with_obs(condition=lambda obs: pd.cut(np.arange(len(obs)), 2)),
        ),
        Row(
            "a declared condition without a cell",
            use(check=knows("control", "treated")),
            happens="Not one of the model's conditions.",
            change=with_obs(condition=lambda obs: obs["condition"].cat.add_categories("planned")),
        ),
        Row(
            "a declared category of a covariate without a cell",
            unused_category_of_a_covariate,
            happens="Unknown to the model, as if it were not declared.",
        ),
        Row(
            "a condition of one cell",
            use(check=knows("control", "lonely")),
            happens="Taken; the MMD leaves it out.",
            change=with_obs(condition=lambda obs: ["lonely", *["control"] * (len(obs) - 1)]),
        ),
        Row(
            "labels of one value",
            use({"labels_key": "cell_type"}),
            happens="Taken.",
            change=with_obs(cell_type="T"),
        ),
        Row(
            "a label of one cell",
            use({"labels_key": "cell_type"}),
            happens="Taken; the MMD leaves it out.",
            change=with_obs(cell_type=lambda obs: ["A", *["B"] * (len(obs) - 1)]),
        ),
        Row(
            "labels each of which has one condition",
            warned_of_labels,
            happens="A warning: conditions are matched within labels, so that none are.",
        ),
        Row(
            "`labels_key` that is `condition_key`",
            setup(labels_key="condition"),
            "labels_key has 'condition', which is condition_key: the condition is neither a label "
            "nor a covariate of its own.",
        ),
        Row(
            "a covariate that is `condition_key`",
            setup(categorical_covariate_keys=["condition"]),
            "categorical_covariate_keys has 'condition', which is condition_key",
        ),
        Row(
            "a covariate named twice",
            setup(categorical_covariate_keys=["batch", "batch"]),
            "categorical_covariate_keys names 'batch' twice.",
        ),
        Row(
            "text in place of a list of covariates",
            setup(categorical_covariate_keys="batch"),
            "categorical_covariate_keys='batch' is not a list of columns.",
        ),
        Row(
            "a tuple in place of a list of covariates",
            setup(continuous_covariate_keys=("age",)),
            "continuous_covariate_keys=('age',) is not a list of columns.",
        ),
        Row(
            "NaN in a continuous covariate",
            setup(**AGE),
            "continuous_covariate_keys 'age': 1 of 72 rows of adata.obs have no value.",
            change=with_obs(age=numbers(np.nan)),
        ),
        Row(
            "infinity in a continuous covariate",
            setup(**AGE),
            "continuous_covariate_keys 'age' has infinite values.",
            change=with_obs(age=numbers(np.inf)),
        ),
        Row(
            "a continuous covariate of text",
            setup(**AGE),
            "continuous_covariate_keys 'age' is not of real numbers, but of type object.",
            change=with_obs(age=lambda obs: pd.Series("old", obs.index, dtype=object)),
        ),
        Row(
            "a continuous covariate of complex numbers",
            setup(**AGE),
            "continuous_covariate_keys 'age' is not of real numbers, but of type complex128.",
            change=with_obs(age=numbers(1j)),
        ),
        Row(
            "1e39 in a continuous covariate",
            setup(**AGE),
            "continuous_covariate_keys 'age' has values as large as 1e+39, beyond the range of",
            change=with_obs(age=numbers(1e39)),
        ),
        Row(
            "a continuous covariate of booleans",
            use(AGE),
            happens="Taken as 0 and 1.",
            change=with_obs(age=lambda obs: obs["cell_type"] == "type_0"),
        ),
        *(
            Row(
                f"size factors, one of them {name}",
                setup(**SIZE),
                "size_factor_key 'size'" + message,
                change=with_obs(size=numbers(value)),
            )
            for name, value, message in (
                ("0", 0.0, " has values that are not positive (as low as 0.0)."),
                ("negative", -2.0, " has values that are not positive (as low as -2.0)."),
                ("NaN", np.nan, ": 1 of 72 rows of adata.obs have no value."),
                ("infinite", np.inf, " has infinite values."),
            )
        ),
        Row(
            "size factors from 1e-3 to 1e6",
            use(SIZE),
            happens="Taken; predictions are finite.",
            change=with_obs(size=lambda obs: np.logspace(-3, 6, len(obs))),
        ),
        Row(
            "a `library_key` that is not there",
            setup(**LIBRARY),
            "library_key 'library' is not in adata.obs",
        ),
        Row(
            "a library size of 0",
            setup(**LIBRARY),
            "library_key 'library' has values that are not positive (as low as 0.0).",
            change=with_obs(library=numbers(0.0)),
        ),
        Row(
            "a library size of NaN",
            setup(**LIBRARY),
            "library_key 'library': 1 of 72 rows of adata.obs have no value.",
            change=with_obs(library=numbers(np.nan)),
        ),
        Row(
            "genes of the same name",
            setup(),
            "adata.var_names are not unique: 'gene_0'. Call adata.var_names_make_unique() first.",
            change=lambda a: a[:, [0, *range(20)]].copy(),
        ),
        Row(
            "cells of the same name",
            use(check=draws_of_their_own),
            happens="Taken; each has draws of its own.",
            change=lambda a: AnnData(a.X[[0, *range(71)]], a.obs.iloc[[0, *range(71)]], a.var),
        ),
        Row("names of genes, conditions and folders beyond ASCII", other_names, happens="Taken."),
        Row(
            "columns that another model of scvi-tools registered",
            use(),
            happens="Taken.",
            change=lambda a: [scvi.model.SCVI.setup_anndata(a), a][1],
        ),
    ],
    "Settings": [
        *(
            Row(f"`{given}`", construct(**arguments), message)
            for given, arguments, message in (
                (
                    'gene_likelihood="gaussian"',
                    {"gene_likelihood": "gaussian"},
                    "gene_likelihood='gaussian' is not one of 'nb', 'zinb', 'poisson', 'normal'.",
                ),
                (
                    "gene_likelihood=None",
                    {"gene_likelihood": None},
                    "gene_likelihood=None is not one of 'nb', 'zinb', 'poisson', 'normal'.",
                ),
                (
                    'dispersion="gene-batch"',
                    {"dispersion": "gene-batch"},
                    "dispersion='gene-batch' is not one of 'gene', 'gene-condition'.",
                ),
                (
                    'decoder="linear"',
                    {"decoder": "linear"},
                    "decoder='linear' is not one of 'additive', 'conditional'.",
                ),
                (
                    'normalization="group"',
                    {"normalization": "group"},
                    "normalization='group' is not one of 'batch', 'layer', 'none'.",
                ),
                (
                    'mmd_layer="encoder"',
                    {"mmd_layer": "encoder"},
                    "mmd_layer='encoder' is not one of 'decoder', 'latent', 'both'.",
                ),
                ("n_latent=0", {"n_latent": 0}, "n_latent=0 is not a positive integer."),
                ("n_latent=2.5", {"n_latent": 2.5}, "n_latent=2.5 is not a positive integer."),
                (
                    "hidden_sizes=64",
                    {"hidden_sizes": 64},
                    "hidden_sizes=64 is not a list of positive integers.",
                ),
                (
                    "hidden_sizes=[]",
                    {"hidden_sizes": []},
                    "hidden_sizes=[] is not a list of positive integers.",
                ),
                (
                    "hidden_sizes=[64, 0]",
                    {"hidden_sizes": [64, 0]},
                    "hidden_sizes=[64, 0] is not a list of positive integers.",
                ),
                ("dropout_rate=1", {"dropout_rate": 1}, "dropout_rate=1 is not in [0, 1)."),
                ("mmd_weight=-1", {"mmd_weight": -1}, "mmd_weight=-1 is not a number from 0 on."),
                (
                    "mmd_weight=nan",
                    {"mmd_weight": np.nan},
                    "mmd_weight=nan is not a number from 0 on.",
                ),
                (
                    "mmd_bandwidths=[0.0]",
                    {"mmd_bandwidths": [0.0]},
                    "mmd_bandwidths=[0.0] are not positive numbers.",
                ),
                (
                    "linear_weight=1.5",
                    {"linear_weight": 1.5},
                    "linear_weight=1.5 is not a number from 0 to 1.",
                ),
                (
                    "response_limit=-1",
                    {"response_limit": -1},
                    "response_limit=-1 is not a number from 0 on.",
                ),
                ("seed=-1", {"seed": -1}, "seed=-1 is not an integer from 0 to 2**32 - 1."),
                ('seed="a"', {"seed": "a"}, "seed='a' is not an integer from 0 to 2**32 - 1."),
                (
                    "mmd_within_labels=True, without labels",
                    {"mmd_within_labels": True},
                    "mmd_within_labels=True needs labels: setup_anndata(labels_key=...).",
                ),
                (
                    "nonnegative_mean=True, for counts",
                    {"nonnegative_mean": True},
                    "nonnegative_mean=True is for gene_likelihood='normal'",
                ),
            )
        ),
        Row(
            "size factors for log-normalised values",
            construct(SIZE, gene_likelihood="normal"),
            "gene_likelihood='normal' takes no size factors.",
            change=lambda a: with_obs(size=numbers())(with_x(np.log1p)(a)),
        ),
        Row(
            "neither data nor a registry",
            lambda data, here: trvae.TRVAE(),
            "Give adata, registered with TRVAE.setup_anndata, or a registry.",
        ),
    ],
    "Training": [
        *(
            Row(f"`{given}`", train(**arguments), message)
            for given, arguments, message in (
                ("batch_size=0", {"batch_size": 0}, "batch_size=0 is not a positive integer."),
                ("batch_size=-5", {"batch_size": -5}, "batch_size=-5 is not a positive integer."),
                (
                    "batch_size=2.5",
                    {"batch_size": 2.5},
                    "batch_size=2.5 is not a positive integer.",
                ),
                ("batch_size=1", {"batch_size": 1}, "batch_size=1 is too small: 2 or more."),
                ("max_epochs=0", {"max_epochs": 0}, "max_epochs=0 is not a positive integer."),
                ("max_epochs=-1", {"max_epochs": -1}, "max_epochs=-1 is not a positive integer."),
                (
                    "train_size=0",
                    {"train_size": 0},
                    "train_size=0 is not a number above 0 and up to 1.",
                ),
                (
                    "train_size=1.5",
                    {"train_size": 1.5},
                    "train_size=1.5 is not a number above 0 and up to 1.",
                ),
                (
                    "validation_size=-0.1",
                    {"validation_size": -0.1},
                    "validation_size=-0.1 is not a number from 0 on.",
                ),
                (
                    "validation_size=0.5",
                    {"validation_size": 0.5},
                    "train_size=0.9 and validation_size=0.5 are more than all.",
                ),
                *(
                    (
                        f"early_stopping=True, with {name}={value}",
                        {"early_stopping": True, name: value},
                        "Early stopping watches 'objective_validation', but there are no cells or "
                        "images to validate on.",
                    )
                    for name, value in {"train_size": 1.0, "validation_size": 0}.items()
                ),
                (
                    'plan_kwargs={"learning_rate": 1e-3}',
                    {"plan_kwargs": {"learning_rate": 1e-3}},
                    "plan_kwargs has 'learning_rate', which are no arguments of "
                    "scvi.train.TrainingPlan.",
                ),
                (
                    'plan_kwargs={"lr": -1}',
                    {"plan_kwargs": {"lr": -1}},
                    "lr=-1 is not a number from 0 on.",
                ),
                *(
                    (
                        f'plan_kwargs={{"{name}": {value}}}',
                        {"plan_kwargs": {name: value}},
                        f"{name}={value} is not a number from 0 on.",
                    )
                    for name, value in {
                        "lr": np.nan,
                        "max_kl_weight": np.nan,
                        "weight_decay": -1,
                        "eps": np.inf,
                        "lr_min": -1,
                    }.items()
                ),
                (
                    'plan_kwargs={"lr_schedule": "linear"}',
                    {"plan_kwargs": {"lr_schedule": "linear"}},
                    "lr_schedule='linear' is not one of 'constant', 'cosine'.",
                ),
                (
                    'plan_kwargs={"lr_schedule": "cosine", "reduce_lr_on_plateau": True}',
                    {"plan_kwargs": {"lr_schedule": "cosine", "reduce_lr_on_plateau": True}},
                    "reduce_lr_on_plateau=True is for lr_schedule='constant', not 'cosine'.",
                ),
                (
                    'plan_kwargs={"n_epochs_kl_warmup": -1}',
                    {"plan_kwargs": {"n_epochs_kl_warmup": -1}},
                    "n_epochs_kl_warmup=-1 is not a number from 0 on.",
                ),
                *(
                    (
                        f'{name}="lr"',
                        {name: "lr"},
                        f"{name}='lr' is not a dictionary of arguments.",
                    )
                    for name in ("plan_kwargs", "datasplitter_kwargs")
                ),
                (
                    "datamodule=1",
                    {"datamodule": 1},
                    "datamodule is a int, but no LightningDataModule.",
                ),
                (
                    "callbacks=[1]",
                    {"callbacks": [1]},
                    "callbacks=[1] is not a list of Lightning's Callback objects.",
                ),
                *(
                    (
                        f'datasplitter_kwargs={{"external_indexing": [{name}]}}',
                        {"datasplitter_kwargs": {"external_indexing": [np.array(given)]}},
                        "datasplitter_kwargs['external_indexing'] is not of positions from 0 to 71, "
                        f"of 72 cells or images: it has {message}",
                    )
                    for name, given, message in (
                        ("np.arange(1, 73)", range(1, 73), "72."),
                        ("np.array([0, 100])", [0, 100], "100."),
                        ("np.arange(-1, 71)", range(-1, 71), "-1."),
                        ("np.arange(72.0)", np.arange(72.0), "0.0, 1.0, 2.0"),
                    )
                ),
            )
        ),
        Row(
            "two cells",
            train(),
            "Training needs at least 2 cells or images beside those to validate on, got 0.",
            change=lambda a: a[[0, -1]].copy(),
        ),
        Row(
            "two cells and `train_size=1`",
            use(train={"train_size": 1.0}),
            happens="Taken.",
            change=lambda a: a[[0, -1]].copy(),
        ),
        Row(
            "one cell more than minibatches hold",
            use(train={"batch_size": 71, "train_size": 1.0}, normalization="batch"),
            happens="Minibatches become equally large; none has a single cell.",
        ),
        Row(
            "more conditions than a minibatch has cells",
            use({"labels_key": "cell_type"}, train={"batch_size": 4}),
            happens="Taken.",
            change=with_more_conditions,
        ),
        Row(
            "a minibatch larger than the data",
            use(train={"batch_size": 1000}),
            happens="One minibatch.",
        ),
        *[
            Row(f"{what} after the model was made", change_own(change, train_on), message)
            for what, change, message in (
                (
                    "counts that become logarithms",
                    log_values,
                    "adata.X has values that are not int",
                ),
                ("a gene that is removed", drop_a_gene, "The genes of adata have changed since"),
                (
                    "other labels",
                    exchange_labels,
                    "obs['cell_type'] of adata has changed since the model was made, or adata was "
                    "set up anew. Make another model of it, or use a copy: adata.copy().",
                ),
                (
                    "another set-up",
                    set_up_anew,
                    "obs['condition'] of adata has changed since the model was made, or adata was "
                    "set up anew.",
                ),
            )
        ],
        Row(
            "a question to a model that is not trained",
            asks_all,
            "Please train the model first.",
            error=RuntimeError,
        ),
    ],
    "Cells to predict": [
        Row(
            "a target that the model doesn't know",
            transfer("stim"),
            "target_condition 'stim' is not one of the model's conditions: 'control', 'treated'.",
        ),
        Row(
            "no target",
            transfer(None),
            "target_condition None is not one of the model's conditions: 'control', 'treated'.",
        ),
        *[
            Row(f"{what} after training", change_own(change, transfer_own), message, happens)
            for what, change, message, happens in (
                (
                    "counts that become logarithms",
                    log_values,
                    "adata.X has values that are not",
                    "",
                ),
                ("a gene that is removed", drop_a_gene, "The genes of adata have changed", ""),
                (
                    "another set-up",
                    set_up_anew,
                    "",
                    "The model's own columns are registered again.",
                ),
            )
        ],
        Row("no target in a list", transfer([]), "target_condition is an empty list."),
        Row(
            "a target twice",
            transfer(["treated", "treated"]),
            "target_condition names one twice: 'treated', 'treated'.",
        ),
        Row(
            "a source that the model doesn't know",
            transfer(source_condition="stim"),
            "source_condition 'stim' is not one of the model's conditions: 'control', 'treated'.",
        ),
        Row(
            "a source without a cell",
            transfer(source_condition="treated"),
            "No cells are selected: there are none with condition='treated' among those given.",
            change=lambda a: a[a.obs["condition"] == "control"].copy(),
        ),
        Row(
            "cells of another condition",
            transfer(),
            "adata.obs['condition'] has values that the model was not trained on: 'other'. It "
            "knows 'control', 'treated'.",
            change=with_obs(condition="other"),
        ),
        Row(
            "conditions that became numbers",
            transfer(),
            "adata.obs['condition'] has values that the model was not trained on: 1. It knows "
            "'control', 'treated'.",
            change=with_obs(condition=1),
        ),
        Row(
            "cells of another condition, to `load_query_data`",
            queries,
            happens="A new condition of the model.",
        ),
        Row(
            "a cell without a condition, to a trained model",
            transfer(),
            "condition_key 'condition': 1 of 72 rows of adata.obs have no value.",
            change=gap_in("condition"),
        ),
        Row(
            "no column of conditions",
            transfer(),
            "condition_key 'condition' is not in adata.obs. Name the condition of all cells by source_condition=... if they have one in common.",
            change=lambda a: AnnData(a.X, a.obs[["cell_type"]], a.var),
        ),
        Row(
            "no column of conditions, but a source condition",
            transfer(source_condition="control"),
            happens="All cells count as measured under it.",
            change=lambda a: AnnData(a.X, a.obs[["cell_type"]], a.var),
        ),
        Row(
            "no column of labels",
            as_usual(),
            happens="Taken: labels only steer the training.",
            change=lambda a: AnnData(a.X, a.obs[["condition"]], a.var),
        ),
        Row(
            "other labels",
            as_usual(),
            happens="Taken: labels only steer the training.",
            change=with_obs(cell_type="unheard of"),
        ),
        Row(
            "genes in another order",
            as_usual(),
            happens="Matched by name; they come back in that order.",
            change=lambda a: a[:, ::-1].copy(),
        ),
        Row(
            "more genes",
            as_usual(),
            happens="Left out.",
            change=lambda a: anndata.concat(
                [a, AnnData(np.ones((72, 1)), a.obs, pd.DataFrame(index=["extra"]))],
                axis=1,
                merge="first",
            ),
        ),
        Row(
            "fewer genes",
            transfer(),
            "2 of the model's 20 genes are not in adata.var_names: 'gene_0', 'gene_1'.",
            change=lambda a: a[:, 2:].copy(),
        ),
        Row(
            "genes of the same name, to a trained model",
            transfer(),
            "adata.var_names are not unique: 'gene_0'.",
            change=lambda a: a[:, [0, *range(20)]].copy(),
        ),
        Row(
            "no cells, to a trained model",
            transfer(),
            EMPTY + "0 x 20.",
            change=lambda a: a[:0].copy(),
        ),
        Row(
            "one cell, to a trained model",
            transfer(),
            happens="Taken.",
            change=lambda a: a[:1].copy(),
        ),
        Row("NaN, to a trained model", transfer(), NOT_FINITE, change=with_value(np.nan)),
        Row(
            "log-normalised values, to a trained model of counts",
            transfer(),
            "Register the layer that holds the counts",
            change=with_x(np.log1p),
        ),
        Row(
            "counts of another type",
            as_usual(),
            happens="Taken.",
            change=lambda a: AnnData(a.X.toarray().astype(np.uint16), a.obs, a.var),
        ),
        Row(
            "cells of the same name, to a trained model",
            transfer(),
            happens="Taken.",
            change=lambda a: AnnData(a.X[[0, *range(71)]], a.obs.iloc[[0, *range(71)]], a.var),
        ),
        Row("positions that are not there", transfer(indices=[72]), "indices don't fit 72 cells"),
        Row(
            "a mask of another length",
            transfer(indices=[True, False]),
            "indices don't fit 72 cells",
        ),
        Row("positions that are fractions", transfer(indices=[0.5]), "indices don't fit 72 cells"),
        Row(
            "names in place of positions",
            transfer(indices=["cell_0"]),
            "indices don't fit 72 cells",
        ),
        Row(
            "a number in place of positions",
            transfer(indices=3),
            "indices=3 is neither a list of positions nor a mask.",
        ),
        Row(
            "no positions",
            transfer(indices=[]),
            "No cells are selected: indices choose none of the 72 cells.",
        ),
        Row("positions that come twice", transfer(indices=[3, 3]), happens="Taken twice."),
        Row(
            "`batch_size=0`, to `transfer`",
            transfer(batch_size=0),
            "batch_size=0 is not a positive integer.",
        ),
        Row(
            "`batch_size=-1`, to a representation",
            question("get_latent_representation", batch_size=-1),
            "batch_size=-1 is not a positive integer.",
        ),
        Row("minibatches of one cell", as_usual(batch_size=1), happens="Taken."),
        Row(
            "`seed=-1`, to `transfer`",
            transfer(seed=-1),
            "seed=-1 is not an integer from 0 to 2**32 - 1.",
        ),
        Row(
            "an estimate that is not there",
            transfer(estimate="mean"),
            "estimate='mean' is not one of 'counterfactual', 'decoded'.",
        ),
        Row(
            "a gene that the model doesn't know",
            question("get_transferred_expression", target_condition="treated", gene_list=["X"]),
            "gene_list has genes unknown to the model: 'X'.",
        ),
        Row(
            "text in place of a list of genes",
            question("get_transferred_expression", target_condition="treated", gene_list="gene_0"),
            "gene_list='gene_0' is not a list of genes.",
        ),
        Row(
            "a library size of 0 to predict",
            question("get_transferred_expression", target_condition="treated", library_size=0),
            "library_size=0 is neither 'observed' nor positive.",
        ),
        Row(
            "no draws",
            question("get_transferred_expression", target_condition="treated", n_samples=0),
            "n_samples=0 is not a positive integer.",
        ),
        Row(
            "a file that is there already",
            lambda data, here: here.model.transfer(data, "treated", out=written(data, here)),
            "is there already. Remove it or name another.",
            error=FileExistsError,
        ),
        Row(
            "a file of another kind",
            transfer(out="predicted.csv"),
            "out='predicted.csv' ends neither with .h5ad nor with .zarr.",
        ),
    ],
}
IMAGE_SECTIONS = {
    "Images": [
        Row(
            "integers from 0 to 255",
            scale_of_images(255),
            happens="Taken; predictions are `uint8`.",
        ),
        Row(
            "numbers from 0 to 1",
            scale_of_images(1),
            happens="Taken; predictions are `float32` from 0 to 1.",
            change=lambda a: AnnData((a.X / 255).astype(np.float32), a.obs),
        ),
        Row(
            "CSC of integers",
            scale_of_images(255),
            happens="Taken; predictions are sparse.",
            change=lambda a: AnnData(sparse.csc_matrix(a.X), a.obs),
        ),
        Row(
            "booleans",
            scale_of_images(1),
            happens="Taken as 0 and 1; predictions are `float32` from 0 to 1.",
            change=lambda a: AnnData(a.X > 127, a.obs),
        ),
        Row(
            "integers that are all 0 or 1",
            image_model_of,
            "adata.X has no integers but 0 and 1, of which 255 would be white.",
            change=lambda a: AnnData((a.X > 127).astype(np.uint8), a.obs),
        ),
        Row(
            "integers from 0 to 255 kept as floats",
            image_model_of,
            "adata.X has pixels from 0 to 255, but the model is of pixels from 0 to 1.",
            change=lambda a: AnnData(a.X.astype(np.float32), a.obs),
        ),
        Row(
            "pixels below 0",
            image_model_of,
            "adata.X has pixels from -1 to 254",
            change=lambda a: AnnData(a.X.astype(int) - 1, a.obs),
        ),
        Row(
            "NaN among pixels",
            image_model_of,
            NOT_FINITE,
            change=lambda a: AnnData(
                np.where(np.arange(24 * 36).reshape(24, 36) == 5, np.nan, 0.5), a.obs
            ),
        ),
        Row(
            "an `image_shape` of another size",
            setup_images(image_shape=(5, 5)),
            "image_shape=(5, 5) is not (height, width, channels) of images with 36 values",
        ),
        *(
            Row(
                f"`image_shape={given!r}`".replace("'", '"'),
                setup_images(image_shape=given),
                f"image_shape={given!r} is not (height, width, channels) of images with 36 values",
            )
            for given in (None, "6x6", (6.0, 6.0), (-6, -6), (36,))
        ),
        Row(
            "an array in place of an AnnData of images",
            setup_images(),
            "adata is a ndarray, but no AnnData.",
            change=lambda a: a.X,
        ),
        Row(
            "a MuData of images",
            setup_images(),
            "adata is a MuData, but no AnnData.",
            change=as_mudata,
        ),
        Row(
            '`pixel_likelihood="poisson"`',
            lambda data, here: image_model_of(data, here, pixel_likelihood="poisson"),
            "pixel_likelihood='poisson' is not one of 'bernoulli', 'normal'.",
        ),
        Row(
            "`channels=()`",
            lambda data, here: image_model_of(data, here, channels=()),
            "channels=() is not a list of positive integers.",
        ),
        Row(
            "colour to a model of grey images",
            transfer_images,
            "adata has images of 108 values, but the model is of images of 6 x 6 x 1 (height x "
            "width x channels).",
            change=lambda a: images(shape=(6, 6, 3)),
        ),
        Row(
            "pixels of other names",
            transfer_images,
            "36 of the model's 36 pixels are not in adata.var_names: '0', '1'",
            change=lambda a: AnnData(a.X, a.obs, pd.DataFrame(index=[f"p{i}" for i in range(36)])),
        ),
        Row(
            "numbers from 0 to 1 to a model of integers",
            transfer_images,
            "but the model is of pixels from 0 to 255. Give integers from 0 to 255, or other "
            "numbers from 0 to 1, as they were in training.",
            change=lambda a: AnnData((a.X / 255).astype(np.float32), a.obs),
        ),
        Row(
            "the same, to `load_query_data`",
            query_of_other_scale,
            "but the model is of pixels from 0 to 255.",
            change=lambda a: AnnData((a.X / 255).astype(np.float32), a.obs),
        ),
        Row(
            "the same, to `load`",
            load_with_other_scale,
            "but the model is of pixels from 0 to 255.",
            change=lambda a: AnnData((a.X / 255).astype(np.float32), a.obs),
        ),
        Row("no images", transfer_images, EMPTY + "0 x 36.", change=lambda a: a[:0].copy()),
        Row(
            "positions of images that are not there",
            lambda data, here: here.image_model.get_transferred_images(
                data, "thick", indices=[24]
            ),
            "indices don't fit 24 images",
        ),
        Row(
            "images of another condition",
            transfer_images,
            "adata.obs['condition'] has values that the model was not trained on: 'bold'. It "
            "knows 'thick', 'thin'.",
            change=with_obs(condition="bold"),
        ),
        Row(
            "a file that anndata reads lazily",
            lambda data, here: setup_images()(lazily(data, here), here),
            IS_LAZY,
        ),
    ],
}
ROWS = [(row, cells) for rows in SECTIONS.values() for row in rows]
ROWS += [(row, images) for rows in IMAGE_SECTIONS.values() for row in rows]


# ------------------------------------------------------------------------------ tests


@pytest.fixture(scope="module")
def models():
    """Models of usual cells and images. Not to be changed."""
    of_cells = trained_on(cells(), None, {"labels_key": "cell_type"})
    of_images, _ = use_images(images(), None)
    return of_cells, of_images


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """What there is beside the data."""
    monkeypatch.chdir(tmp_path)
    model, image_model = models
    return SimpleNamespace(model=model, image_model=image_model, cells=cells(), folder=tmp_path)


def matrices(data):
    yield "X", data.X
    for kind in ("layers", "obsm", "varm"):
        for name, matrix in getattr(data, kind).items():
            # In newer versions of AnnData, None is X.
            if name is not None and not name.startswith("_scvi_"):
                yield f"{kind} {name}", matrix


def content(data):
    """All that a user's data hold, but for what scvi-tools registers."""
    if isinstance(data, MuData):
        return {name: content(one) for name, one in data.mod.items()} | {"obs": of_user(data.obs)}
    if not isinstance(data, AnnData):
        return {}
    held = {"obs": of_user(data.obs), "var": data.var.copy()}
    for name, matrix in matrices(data):
        values = np.ma.filled(dense(matrix)) if matrix is not None else np.empty(0)
        held[name] = type(matrix), str(values.dtype), values.tolist()
    held["uns"] = {k: v for k, v in data.uns.items() if not k.startswith("_scvi_")}
    return held


def of_user(frame):
    return frame[[name for name in frame if not str(name).startswith("_scvi_")]].copy()


def assert_same(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, other[name])
        elif isinstance(value, dict):
            assert_same(value, other[name])
        else:
            # So that NaN is NaN.
            assert repr(value) == repr(other[name]), name


def registered(data):
    return isinstance(data, AnnData) and "_scvi_uuid" in data.uns


def raised_in(traceback):
    """The function that raised, and its file."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return code.co_name, Path(code.co_filename)


@pytest.mark.parametrize(
    ("row", "make"), ROWS, ids=[row.given.replace("`", "") for row, _ in ROWS]
)
def test_what_happens_is_what_the_guide_says(row, make, here):
    data = row.change(make())
    before, was_registered = content(data), registered(data)
    with warnings.catch_warnings():
        # They are scvi-tools' and AnnData's; ours are asserted.
        warnings.simplefilter("ignore")
        if row.refusal:
            with pytest.raises(row.error) as caught:
                row.ask(data, here)
            assert row.refusal in str(caught.value)
            function, file = raised_in(caught.tb)
            assert file.is_relative_to(Path(trvae.__file__).parent) or function in OF_SCVI_TOOLS
        else:
            assert row.happens
            row.ask(data, here)
    assert_same(content(data), before)
    if row.ask.__qualname__.startswith("setup"):
        assert registered(data) == was_registered


def tables():
    lines = []
    for name, rows in (SECTIONS | IMAGE_SECTIONS).items():
        lines += [f"\n## {name}\n", "| given | what happens |", "|:--|:--|", *map(str, rows)]
    return "\n".join(lines) + "\n"


def test_the_guide_has_these_rows():
    text = GUIDE.read_text()
    introduction, mark, of_guide = text.partition(MARK)
    assert mark
    if "TRVAE_WRITE_TABLES" in os.environ:
        GUIDE.write_text(introduction + mark + tables())
        return
    assert of_guide == tables()


def test_no_row_comes_twice():
    given = [row.given for row, _ in ROWS]
    assert len(given) == len(set(given))
