"""Minified models answer as before, and ask for full cells where they need expression."""

import numpy as np
import pytest
from helpers import QUIET, assert_same_weights, copied, dense, fit

import trvae

LATENT, WITH_COUNTS = "latent_posterior_parameters", "latent_posterior_parameters_with_counts"
DECODED = {"target_condition": "treated", "estimate": "decoded"}
OF_THE_LATENT_SPACE = {
    "get_latent_representation": {},
    "get_mmd_representation": {},
    "get_normalized_expression": {"transform_batch": "treated", "library_size": "latent"},
    "get_likelihood_parameters": {},
    "posterior_predictive_sample": {},
    "get_transfer_support": {"target_condition": "treated"},
    "get_transferred_expression": DECODED,
    "transfer": DECODED,
}
OF_EXPRESSION = {
    "transfer": {"target_condition": "treated"},
    "get_transferred_expression": {"target_condition": "treated", "n_samples": 2},
    "get_transferred_means": {"target_condition": "treated", "source_condition": "control"},
    "assess_transfer": {"target_condition": "treated"},
    "rank_transferred_genes": {"target_condition": "treated"},
    "differential_expression": {"groupby": "condition", "group1": "treated", "silent": True},
}
# scvi-tools itself refuses these of a minified model, whichever cells are given.
OF_THE_LOSS = {
    "get_elbo": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_reconstruction_error": {},
}


def answer(model, method, arguments, cells=None):
    answered = getattr(model, method)(cells, **arguments)
    if method == "transfer":
        return dense(answered.X)
    if isinstance(answered, dict):
        return next(iter(answered.values()))
    if hasattr(answered, "select_dtypes"):
        return answered.select_dtypes("number").to_numpy()
    return answered.todense() if hasattr(answered, "todense") else answered


def minify(model, kind=LATENT):
    latent = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = latent
    model.minify_adata(kind)


@pytest.mark.parametrize("kind", [LATENT, WITH_COUNTS])
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "layer, covariates, size factors"])
def test_minified_cells_answer_as_the_full_ones(adata, tmp_path, kind, extra):
    setup = {}
    if extra:
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
        adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
        adata.obs["size"] = np.ravel(adata.layers["counts"].sum(1)) + 3
        setup = {
            "layer": "counts",
            "categorical_covariate_keys": ["donor"],
            "size_factor_key": "size",
        }
    model = fit(adata, setup=setup)
    questions = list(OF_THE_LATENT_SPACE.items())
    if kind == WITH_COUNTS:
        questions += [*OF_EXPRESSION.items(), *OF_THE_LOSS.items()]
    expected = [answer(model, *question) for question in questions]
    minify(model, kind)
    counts = model.adata.layers["counts"] if extra else model.adata.X
    assert (counts.nnz == 0) == (kind == LATENT)
    model.save(tmp_path / "model", save_anndata=True)
    for one in (model, trvae.TRVAE.load(tmp_path / "model")):
        assert one.minified_data_type == kind
        for question, before in zip(questions, expected, strict=True):
            now = answer(one, *question)
            np.testing.assert_allclose(now, before, rtol=1e-3, atol=1e-5, err_msg=question[0])


def test_what_needs_expression_takes_full_cells(adata, tmp_path):
    model, full = fit(adata), fit(adata)
    minify(model)
    for question in (*OF_EXPRESSION.items(), *OF_THE_LOSS.items()):
        with pytest.raises(ValueError, match="minified"):
            answer(model, *question)
    with pytest.raises(ValueError, match="minified"):
        model.transfer(**DECODED, out=tmp_path / "predicted.h5ad")
    cells = adata[::2].copy()
    for question in OF_EXPRESSION.items():
        answers = [answer(one, *question, cells) for one in (model, full)]
        np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [LATENT, WITH_COUNTS])
def test_a_minified_model_is_a_reference_but_not_trained_further(adata, kind):
    model = fit(adata)
    minify(model, kind)
    weights = copied(model.module)
    with pytest.raises(ValueError, match="can't be trained on .* minified"):
        model.train(max_epochs=1, **QUIET)
    query = adata[adata.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "other"
    mapped = trvae.TRVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **QUIET)
    assert mapped.transfer(target_condition="control").n_obs == query.n_obs
    assert_same_weights(model.module, weights)


def test_what_cannot_be_minified(adata):
    model = fit(adata, train={"max_epochs": 1})
    with pytest.raises(ValueError, match="use_latent_qzm_key 'X_latent_qzm' is not in"):
        model.minify_adata()
    with pytest.raises(ValueError, match="only an AnnData can be minified"):
        model._without_cells().minify_adata()
