"""What holds for any data: found by hypothesis, which looks for data for which it doesn't."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import DEVICE, QUIET, assert_unchanged, content, dense, fit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import trvae
from trvae.module._likelihood import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from trvae.module._mmd import multi_scale_mmd

TINY = {"hidden_sizes": (4,), "n_latent": 2, "effect_sizes": (3,), "mmd_weight": 1.0, "seed": 0}
ALWAYS_THE_SAME = settings(
    derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
# Of a training each.
FEW = settings(ALWAYS_THE_SAME, max_examples=20)
# Of eleven questions each.
FORMS = settings(ALWAYS_THE_SAME, max_examples=8)
MANY = settings(ALWAYS_THE_SAME, max_examples=60)
CONTAINERS = {
    "dense": np.asarray,
    "Fortran": np.asfortranarray,
    "CSR": sparse.csr_matrix,
    "CSC": sparse.csc_matrix,
    "sparse array": sparse.csr_array,
}
LARGE = ["float32", "float64", "int32", "int64", "uint16"]
DTYPES = [*LARGE, "uint8"]


@st.composite
def data(draw, dtypes=tuple(DTYPES)):
    """Counts of any shape, sparsity, type and container, under two or three conditions."""
    n_cells, n_genes = draw(st.integers(6, 40)), draw(st.integers(1, 12))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    largest = draw(st.sampled_from([1, 20, 200]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(1, largest, (n_cells, n_genes), endpoint=True)
    x = np.where(rng.random(x.shape) < density, x, 0).astype(draw(st.sampled_from(dtypes)))
    names = ["control", "a", "b"][: draw(st.integers(2, 3))]
    obs = pd.DataFrame(
        {
            "condition": np.concatenate([names, rng.choice(names, n_cells - len(names))]),
            "label": rng.choice(["X", "Y"], n_cells),
        },
        index=[f"cell_{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)])
    return AnnData(CONTAINERS[draw(st.sampled_from(list(CONTAINERS)))](x), obs, var)


def trained_on(adata, **kwargs):
    registered = adata.copy()
    with warnings.catch_warnings():
        # scvi-tools tells of CSC and of rare conditions.
        warnings.simplefilter("ignore", UserWarning)
        trvae.TRVAE.setup_anndata(registered, condition_key="condition", labels_key="label")
        model = trvae.TRVAE(registered, **(TINY | kwargs))
        model.train(max_epochs=1, batch_size=16, train_size=1.0, **QUIET)
    return model


@FEW
@given(
    adata=data(),
    likelihood=st.sampled_from(["nb", "zinb", "poisson"]),
    decoder=st.sampled_from(["additive", "conditional"]),
    normalization=st.sampled_from(["batch", "layer", "none"]),
    order=st.randoms(use_true_random=False),
)
def test_a_transfer_of_counts(adata, likelihood, decoder, normalization, order):
    before = content(adata)
    model = trained_on(
        adata, gene_likelihood=likelihood, decoder=decoder, normalization=normalization
    )
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    predicted = model.transfer(adata, "a")
    counts = dense(predicted.X)
    assert predicted.shape == adata.shape
    assert sparse.issparse(predicted.X) == sparse.issparse(adata.X)
    assert counts.dtype == np.float32
    assert ((counts >= 0) & (counts % 1 == 0)).all()
    expected = model.get_transferred_expression(adata, "a")
    assert np.isfinite(expected).all(axis=None)

    # Neither the order of cells nor that of genes matters, and the cells stay as they were.
    rows, columns = list(range(adata.n_obs)), list(range(adata.n_vars))
    order.shuffle(rows)
    order.shuffle(columns)
    shuffled = adata[rows, columns].copy()
    again = model.get_transferred_expression(shuffled, "a")
    np.testing.assert_allclose(again, expected.iloc[rows].iloc[:, columns], rtol=1e-4, atol=1e-5)
    assert list(again.index) == list(shuffled.obs_names)
    assert list(again.columns) == list(shuffled.var_names)
    assert_unchanged(adata, before)


@FEW
@given(adata=data(dtypes=("float32", "float64")), nonnegative_mean=st.booleans())
def test_a_transfer_of_log_normalised_values(adata, nonnegative_mean):
    adata.X = adata.X.log1p() if sparse.issparse(adata.X) else np.log1p(adata.X)
    model = trained_on(adata, gene_likelihood="normal", nonnegative_mean=nonnegative_mean)
    predicted = dense(model.transfer(adata, "a").X)
    assert predicted.shape == adata.shape
    assert np.isfinite(predicted).all()
    assert (predicted >= 0).all()


def arrays(shape, low, high):
    return st.integers(0, 2**32 - 1).map(
        lambda seed: torch.as_tensor(np.random.default_rng(seed).uniform(low, high, shape))
    )


OF_COUNTS = {
    "nb": lambda log_mu, theta, logits: NegativeBinomial(log_mu, theta, log_mu),
    "zinb": lambda log_mu, theta, logits: ZeroInflatedNegativeBinomial(
        log_mu, theta, log_mu, logits
    ),
    "poisson": lambda log_mu, theta, logits: Poisson(log_mu, log_mu),
}


@pytest.mark.usefixtures("tensors_on_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OF_COUNTS)
@MANY
@given(
    log_mu=arrays((4, 5), np.log(1e-6), np.log(1e6)),
    log_theta=arrays((1, 5), np.log(1e-3), np.log(1e6)),
    log_counts=arrays((4, 5), -3.0, np.log(1e6)),
    logits=arrays((4, 5), -20.0, 20.0),
)
def test_log_probabilities_of_counts_and_gradients_are_finite(
    name, dtype, log_mu, log_theta, log_counts, logits
):
    counts = log_counts.exp().floor().to(dtype)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (log_mu, log_theta, logits)]
    log_mu, log_theta, logits = leaves
    log_prob = OF_COUNTS[name](log_mu, log_theta.exp(), logits).log_prob(counts)
    assert log_prob.shape == counts.shape
    assert torch.isfinite(log_prob).all()
    grads = torch.autograd.grad(log_prob.sum(), leaves, allow_unused=True)
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


@pytest.mark.usefixtures("tensors_on_device")
@MANY
@given(value=arrays((4, 5), -20.0, 20.0), loc=arrays((4, 5), -20.0, 20.0),
       log_scale=arrays((1, 5), -7.0, 7.0))  # fmt: skip
def test_log_probabilities_of_values_and_gradients_are_finite(value, loc, log_scale):
    leaves = [tensor.float().requires_grad_() for tensor in (loc, log_scale)]
    log_prob = Normal(leaves[0], leaves[1].exp()).log_prob(value.float())
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(log_prob.sum(), leaves))


@pytest.mark.usefixtures("tensors_on_device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@MANY
@given(
    n_cells=st.integers(1, 30),
    n_conditions=st.integers(1, 5),
    exponent=st.floats(-6, 6),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_mmd_is_finite_and_indifferent_to_order(
    dtype, n_cells, n_conditions, exponent, offset, seed
):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    y = 10**exponent * (torch.randn(n_cells, 3, generator=generator) + offset)
    y = y.to(dtype).requires_grad_()
    condition = torch.randint(n_conditions, (n_cells,), generator=generator)
    value = multi_scale_mmd(y, condition)
    (grad,) = torch.autograd.grad(value, y)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(value)
    assert value > -1e-5
    assert grad.dtype == dtype
    assert torch.isfinite(grad).all()
    order = torch.randperm(n_cells, generator=generator)
    again = multi_scale_mmd(y[order], condition[order])
    # Of cells far from 0, distances far below that are rounded.
    torch.testing.assert_close(again, value, rtol=1e-2, atol=1e-5)


@pytest.fixture(scope="module")
def with_covariates():
    """A model that uses every kind of column, and its cells. Not to be changed."""
    cells = trvae.datasets.simulated(n_cells=12, n_genes=20, n_cell_types=4)
    rng = np.random.default_rng(0)
    # Not in the order of the alphabet, and of which not every one is in each part of the cells.
    cells.obs["donor"] = pd.Categorical(rng.choice(["q", "p", "r"], cells.n_obs), ["r", "p", "q"])
    cells.obs["batch"] = rng.choice([10, 9], cells.n_obs)
    cells.obs["age"] = rng.normal(size=cells.n_obs).astype("float32")
    del cells.layers["rate"]
    model = fit(
        cells,
        setup={
            "categorical_covariate_keys": ["donor", "batch"],
            "continuous_covariate_keys": ["age"],
        },
        train={"max_epochs": 5},
    )
    return model, cells


def by_cell(values, cells):
    return pd.DataFrame(np.asarray(values), cells.obs_names)


OF_CELLS = {"source_condition": "control"}
# Answers of one row a cell, and those of all cells or groups of them.
EACH_CELL = {
    "latent": lambda model, cells: by_cell(model.get_latent_representation(cells), cells),
    "MMD's layer": lambda model, cells: by_cell(model.get_mmd_representation(cells), cells),
    "normalized": lambda model, cells: model.get_normalized_expression(cells),
    "expected": lambda model, cells: model.get_transferred_expression(cells, "treated"),
    "decoded": lambda model, cells: model.get_transferred_expression(
        cells, "treated", estimate="decoded", n_samples=2, **OF_CELLS
    ),
    "counts": lambda model, cells: model.transfer(cells, "treated").to_df(),
    "support": lambda model, cells: model.get_transfer_support(cells, "treated"),
    "mapped": lambda model, cells: by_cell(
        trvae.TRVAE.load_query_data(cells, model).get_latent_representation(), cells
    ),
}
QUESTIONS = EACH_CELL | {
    "means": lambda model, cells: model.get_transferred_means(
        cells, "treated", source_condition="control"
    ),
    "assessment": lambda model, cells: model.assess_transfer(cells, "treated", **OF_CELLS).drop(
        columns="summary"
    ),
    "ranking": lambda model, cells: model.rank_transferred_genes(
        cells, "treated", **OF_CELLS
    ).set_index(["group", "names"]),
}
COLUMNS = ["condition", "cell_type", "donor", "batch"]


@st.composite
def forms(draw):
    """Another form of the same cells: a function of them that ends in another AnnData."""
    order = draw(st.randoms(use_true_random=False))
    container, dtype = draw(st.sampled_from(list(CONTAINERS))), draw(st.sampled_from(LARGE))
    columns = {
        name: draw(st.sampled_from(["reversed", "unused", "ordered", "object", "as it was"]))
        for name in COLUMNS
    }
    index_name = draw(st.sampled_from([None, "cell", "condition"]))
    kept = draw(st.sampled_from(["copied", "view", "backed"]))

    def column(values, form):
        values = values.astype("category")
        names = list(values.cat.categories)
        match form:
            case "object":
                # HDF5 takes objects that are strings only.
                return values.astype(object if isinstance(names[0], str) else int)
            case "unused":
                another = "never" if isinstance(names[0], str) else max(names) + 1
                return values.cat.set_categories([another, *names[::-1]])
            case "reversed" | "ordered":
                return values.cat.set_categories(names[::-1], ordered=form == "ordered")
            case _:
                return values

    def change(cells, folder):
        rows, genes = list(range(cells.n_obs)), list(range(cells.n_vars))
        order.shuffle(rows)
        order.shuffle(genes)
        x = dense(cells.X)[rows][:, genes].astype(dtype)
        obs = cells.obs.iloc[rows].copy()
        for name, form in columns.items():
            obs[name] = column(obs[name], form)
        if kept == "backed":
            # What HDF5 takes: a column's name for the index, only where both are equal.
            obs.index.name = None if index_name == "condition" else index_name
        else:
            obs.index.name = index_name
        changed = AnnData(CONTAINERS[container](x), obs, cells.var.iloc[genes])
        if kept == "view":
            return changed[np.arange(changed.n_obs)]
        if kept == "backed":
            changed.write_h5ad(folder / "cells.h5ad")
            return anndata.read_h5ad(folder / "cells.h5ad", backed="r")
        return changed

    return change


@pytest.mark.parametrize("question", QUESTIONS)
@FORMS
@given(form=forms())
def test_the_form_of_the_cells_makes_no_difference(
    with_covariates, tmp_path_factory, question, form
):
    model, cells = with_covariates
    ask = QUESTIONS[question]
    given_cells = form(cells, tmp_path_factory.mktemp("form"))
    before = content(given_cells)
    answer = ask(model, given_cells)
    assert_unchanged(given_cells, before)
    expected = ask(model, cells)
    answer = answer.reindex(index=expected.index, columns=expected.columns)
    pd.testing.assert_frame_equal(
        answer, expected, rtol=1e-3, atol=1e-4, check_index_type=False, check_names=False
    )


@pytest.mark.parametrize("question", EACH_CELL)
@FORMS
@given(
    column=st.sampled_from([*COLUMNS, "age"]),
    rows=st.lists(st.integers(0, 95), min_size=1),
    stays_a_category=st.booleans(),
)
def test_missing_values_are_refused_or_concern_their_cells_only(
    with_covariates, question, column, rows, stays_a_category
):
    model, cells = with_covariates
    with_gaps = cells.copy()
    if not stays_a_category and column != "age":
        with_gaps.obs[column] = with_gaps.obs[column].astype(object)
    with_gaps.obs.iloc[rows, with_gaps.obs.columns.get_loc(column)] = np.nan
    before = content(with_gaps)
    try:
        answer = EACH_CELL[question](model, with_gaps)
    except ValueError as error:
        assert column in str(error)
    else:
        expected = EACH_CELL[question](model, cells)
        others = expected.index.difference(cells.obs_names[rows])
        pd.testing.assert_frame_equal(answer.loc[others], expected.loc[others], rtol=1e-4)
    assert_unchanged(with_gaps, before)
