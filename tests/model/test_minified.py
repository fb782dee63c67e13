import numpy as np
import pytest
from helpers import QUIET, fit

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
# scvi-tools refuses ELBO and the like of its own accord.
OF_EXPRESSION = {
    "transfer": {"target_condition": "treated"},
    "get_transferred_expression": {"target_condition": "treated", "n_samples": 2},
    "get_transferred_means": {"target_condition": "treated", "n_samples": 2},
    "assess_transfer": {"target_condition": "treated"},
    "rank_transferred_genes": {"target_condition": "treated"},
    "differential_expression": {"groupby": "condition", "group1": "treated", "silent": True},
    "get_elbo": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "get_reconstruction_error": {},
}


def answer(model, method, arguments, cells=None):
    answered = getattr(model, method)(cells, **arguments)
    answered = answered["mean"] if method == "get_likelihood_parameters" else answered
    answered = answered.X if method == "transfer" else answered
    if isinstance(answered, dict):
        return answered["reconstruction_loss"]
    if hasattr(answered, "select_dtypes"):
        return answered.select_dtypes("number").to_numpy()
    return answered.todense() if hasattr(answered, "todense") else answered


def minified(adata, kind, **setup):
    """A minified model, and what it answered before."""
    model = fit(adata, setup=setup)
    questions = OF_THE_LATENT_SPACE | ({} if kind == LATENT else OF_EXPRESSION)
    before = {method: answer(model, method, of) for method, of in questions.items()}
    latent = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = latent
    model.minify_adata(kind)
    return model, questions, before


@pytest.mark.parametrize("kind", [LATENT, WITH_COUNTS])
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "layer, covariates, size factors"])
@pytest.mark.parametrize("saved", [False, True], ids=["here", "saved"])
def test_minified_cells_answer_as_the_full_ones(adata, tmp_path, kind, extra, saved):
    setup = {}
    if extra:
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()
        adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
        adata.obs["size"] = np.ravel(adata.layers["counts"].sum(1)) + 3
        setup = {
            "layer": "counts",
            "categorical_covariate_keys": ["donor"],
            "size_factor_key": "size",
        }
    model, questions, before = minified(adata, kind, **setup)
    full, counts = model.adata, model.adata.layers["counts"] if extra else model.adata.X
    assert (counts.nnz == 0) == (kind == LATENT)
    if saved:
        model.save(str(tmp_path / "model"), save_anndata=True)
        model = trvae.TRVAE.load(str(tmp_path / "model"))
        assert model.adata is not full
    assert model.minified_data_type == kind
    for method, arguments in questions.items():
        np.testing.assert_allclose(
            answer(model, method, arguments), before[method], rtol=1e-3, atol=1e-5, err_msg=method
        )


def test_what_needs_expression_takes_full_cells(adata):
    model, _, _ = minified(adata, LATENT)
    for method, arguments in OF_EXPRESSION.items():
        with pytest.raises(ValueError, match="minified"):
            answer(model, method, arguments)
    # Of scvi-tools' own, those that refuse a model do so whichever cells are given.
    of_cells = list(OF_EXPRESSION)[:6]
    full = fit(adata)
    cells = adata[::2].copy()
    for method in of_cells:
        arguments = OF_EXPRESSION[method]
        np.testing.assert_allclose(
            answer(model, method, arguments, cells),
            answer(full, method, arguments, cells),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("kind", [LATENT, WITH_COUNTS])
def test_a_minified_model_is_a_reference_but_not_trained_further(adata, kind):
    model, _, _ = minified(adata, kind)
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(ValueError, match="can't be trained on a minified AnnData"):
        model.train(max_epochs=1, **QUIET)
    query = adata[adata.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "other"
    mapped = trvae.TRVAE.load_query_data(query, model)
    mapped.train(max_epochs=1, **QUIET)
    assert mapped.transfer(target_condition="control").n_obs == query.n_obs
    for name, value in model.module.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])


def test_what_cannot_be_minified(adata):
    model = fit(adata, train={"max_epochs": 1})
    with pytest.raises(
        ValueError, match="use_latent_qzm_key 'X_latent_qzm' is not in model.adata"
    ):
        model.minify_adata()
    model = model._without_cells()
    with pytest.raises(ValueError, match="only an AnnData can be minified"):
        model.minify_adata()


def test_minified_cells_are_not_written_chunk_by_chunk(adata, tmp_path):
    model, _, _ = minified(adata, LATENT)
    with pytest.raises(ValueError, match="minified AnnData can't be transferred to disk"):
        model.transfer(**DECODED, out=tmp_path / "predicted.h5ad")
