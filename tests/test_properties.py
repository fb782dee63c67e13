"""What holds for any data: found by hypothesis, which looks for data for which it doesn't."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import DEVICE, QUIET, assert_unchanged, content, dense
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
MANY = settings(ALWAYS_THE_SAME, max_examples=60)
CONTAINERS = {
    "dense": np.asarray,
    "Fortran": np.asfortranarray,
    "CSR": sparse.csr_matrix,
    "CSC": sparse.csc_matrix,
    "sparse array": sparse.csr_array,
}
DTYPES = ["float32", "float64", "int32", "int64", "uint8", "uint16"]


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
