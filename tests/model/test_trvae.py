"""TRVAE: saved as it is, its loss by definition, scvi-tools' questions seeded, queries mapped."""

import re

import numpy as np
import pytest
import torch
from helpers import LONG, QUIET, SMALL, assert_same_weights, dense, fit, on_device, untrained

import trvae
from trvae.module._mmd import multi_scale_mmd


def predictions(model, cells):
    return {
        "latent": model.get_latent_representation(cells),
        "first layer": model.get_mmd_representation(cells),
        "drawn": dense(model.transfer(cells, "treated", seed=3).X),
        "expected": model.get_transferred_expression(cells, "treated", return_numpy=True),
    }


def assert_same_predictions(model, other, cells):
    before = predictions(other, cells)
    for name, after in predictions(model, cells).items():
        np.testing.assert_array_equal(after, before[name], err_msg=name)


# ------------------------------------------------------------------------------- saved


@pytest.mark.parametrize("cells", [None, False])
def test_a_saved_model_predicts_as_before(trained, control, tmp_path, cells):
    trained.save(tmp_path / "model", save_anndata=cells is None)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=cells)
    assert loaded.conditions == trained.conditions
    assert_same_predictions(loaded, trained, control)
    if cells is None:
        loaded.train(max_epochs=1, **QUIET)
        return
    with pytest.raises(ValueError, match="Pass the cells"):
        loaded.transfer(target_condition="treated")
    with pytest.raises(ValueError, match="no cells of its own to train on"):
        loaded.train(max_epochs=1, **QUIET)


def test_a_saved_model_of_log_normalised_values_predicts_as_before(adata, tmp_path):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal")
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    assert_same_predictions(loaded, model, adata)
    assert model.transfer(adata, "treated").X.min() == 0


def test_a_model_that_was_never_trained_can_be_saved(adata, tmp_path):
    model = untrained(adata)
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata)
    assert not loaded.is_trained_
    assert_same_weights(loaded.module, model.module.state_dict())


# --------------------------------------------------------------------- network and loss


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-condition"])
@pytest.mark.parametrize("decoder", ["additive", "conditional"])
def test_count_models_learn(adata, gene_likelihood, dispersion, decoder):
    network = {"gene_likelihood": gene_likelihood, "dispersion": dispersion, "decoder": decoder}
    model = fit(adata, **network)
    loss = model.history["reconstruction_loss_train"].to_numpy().ravel()
    assert loss[-1] < loss[0]
    np.testing.assert_allclose(model.get_normalized_expression().sum(1), 1, rtol=1e-4)


def test_first_layer_of_the_base_does_not_see_the_condition(trained):
    z, library = torch.randn(5, trained.module.n_latent), torch.zeros(5, 1)
    first = [
        trained.module.generative(z, library, torch.full((5, 1), code))["first_layer"]
        for code in (0, 1)
    ]
    assert torch.equal(*first)
    assert (first[0] >= 0).all()


@pytest.mark.parametrize("mmd_layer", ["decoder", "latent", "both"])
@pytest.mark.parametrize("within_labels", [True, False])
@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_loss_is_as_defined(adata, mmd_layer, within_labels, normalization):
    network = {"mmd_layer": mmd_layer, "normalization": normalization}
    model = untrained(adata, mmd_within_labels=within_labels, **network)
    loader = model._make_data_loader(model.adata, batch_size=100, shuffle=True)
    tensors = on_device(next(iter(loader)))
    module = model.module.eval()
    with torch.no_grad(), module.posterior_mean():
        inferred, generated, loss = module(tensors)
    condition = tensors["batch"].flatten()
    label = tensors["labels"].flatten() if within_labels else None
    layers = {"decoder": generated["first_layer"], "latent": inferred["z"]}
    chosen = list(layers.values()) if mmd_layer == "both" else [layers[mmd_layer]]
    mmd = sum(multi_scale_mmd(y, condition, label) for y in chosen)
    torch.testing.assert_close(loss.extra_metrics["mmd"], mmd)
    kl = loss.kl_local["kl_divergence_z"]
    elbo = (loss.reconstruction_loss["reconstruction_loss"] + kl).mean()
    torch.testing.assert_close(loss.loss, elbo + module.mmd_weight * mmd)


def test_loss_does_not_depend_on_the_minibatch_size_and_weights_the_kl_divergence(trained):
    loader = trained._make_data_loader(trained.adata, batch_size=200, shuffle=True)
    tensors = on_device(next(iter(loader)))
    module = trained.module
    twice = {key: torch.cat([value, value]) for key, value in tensors.items()}
    with torch.no_grad(), module.posterior_mean():
        inferred, generated, full = module(tensors)
        torch.testing.assert_close(module(twice)[2].loss, full.loss)
        part = module.loss(tensors, inferred, generated, kl_weight=0.25, final_kl_weight=0.5)
    kl = full.kl_local["kl_divergence_z"].mean()
    assert kl > 1
    torch.testing.assert_close(full.loss - part.loss, 0.75 * kl, rtol=1e-3, atol=0)
    ahead = part.extra_metrics["objective"] - part.loss
    torch.testing.assert_close(ahead, 0.25 * kl, rtol=1e-3, atol=0)


def test_matching_within_labels_is_on_if_there_are_labels(adata):
    assert untrained(adata).module.mmd_within_labels
    assert not untrained(adata, mmd_within_labels=False).module.mmd_within_labels
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    assert not trvae.TRVAE(adata, **SMALL).module.mmd_within_labels


def test_covariates_enter(adata):
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    setup = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    model = fit(adata, setup=setup)
    before = model.get_normalized_expression(adata)
    for key, value in {"donor": np.resize(["b", "a"], adata.n_obs), "age": 2.0}.items():
        cells = adata.copy()
        cells.obs[key] = value
        assert not np.allclose(before, model.get_normalized_expression(cells)), key


# ---------------------------------------------------------------- questions with draws

COMPARED = {"groupby": "condition", "group1": "treated", "group2": "control", "mode": "change"}
DRAWS = {
    "get_latent_representation": {"give_mean": False},
    "get_normalized_expression": {"n_samples": 3, "return_mean": False},
    "get_likelihood_parameters": {"n_samples": 3},
    "posterior_predictive_sample": {},
    "get_elbo": {"return_mean": False},
    "get_marginal_ll": {"n_mc_samples": 3, "return_mean": False},
    "get_reconstruction_error": {"return_mean": False},
    "get_feature_correlation_matrix": {"n_samples": 2},
    "differential_expression": COMPARED | {"silent": True},
}
PER_CELL = ["get_latent_representation", "get_normalized_expression", "get_elbo"]


def drawn(model, method, **kwargs):
    values = getattr(model, method)(**DRAWS[method], **kwargs)
    if method == "differential_expression":
        return values["lfc_mean"].sort_index().to_numpy()
    values = next(iter(values.values())) if isinstance(values, dict) else values
    return np.asarray(values.todense() if hasattr(values, "todense") else values)


@pytest.mark.parametrize("method", DRAWS)
def test_draws_have_a_seed(trained, method):
    state = torch.get_rng_state()
    once = drawn(trained, method)
    np.testing.assert_array_equal(drawn(trained, method, seed=0), once)
    assert not np.array_equal(drawn(trained, method, seed=1), once)
    assert torch.equal(torch.get_rng_state(), state)
    if method in PER_CELL:
        in_small_batches = drawn(trained, method, batch_size=7)
        np.testing.assert_allclose(in_small_batches, once, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="seed must be"):
        drawn(trained, method, seed=-1)


def test_normalized_expression_is_at_the_posterior_mean_unless_draws_are_asked_for(trained):
    once, again = trained.get_normalized_expression(), trained.get_normalized_expression(seed=1)
    assert once.equals(again)
    draws = trained.get_normalized_expression(n_samples=3, return_mean=False)
    assert draws.shape == (3, *once.shape)
    assert not np.allclose(draws[0], draws[1])


def test_scvi_tools_methods_work(trained):
    assert np.isfinite(trained.get_elbo())
    assert trained.get_marginal_ll(n_mc_samples=200) > trained.get_elbo()
    assert trained.posterior_predictive_sample(n_samples=2).shape == (600, 60, 2)
    parameters = trained.get_likelihood_parameters()
    assert set(parameters) == {"mean", "dispersions"}
    again = trained.get_likelihood_parameters(seed=1)
    np.testing.assert_array_equal(again["mean"], parameters["mean"])
    assert "'control', 'treated'" in trained.summary_string


@pytest.mark.parametrize("method", ["get_latent_representation", "get_mmd_representation"])
def test_representations_are_of_the_chosen_cells(trained, control, method):
    represent = getattr(trained, method)
    every = represent(control)
    assert every.shape == (100, 4 if method == "get_latent_representation" else 16)
    backwards = represent(control[::-1], batch_size=7)[::-1]
    np.testing.assert_allclose(backwards, every, rtol=1e-4, atol=1e-5)
    mask = np.arange(control.n_obs) % 2 == 0
    chosen = represent(control, indices=mask)
    np.testing.assert_allclose(chosen, every[mask], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="indices select none"):
        represent(control, indices=[])


@pytest.mark.parametrize("genes", [None, ["gene_7", "gene_3"]])
def test_genes_are_in_the_order_of_the_cells(trained, control, genes):
    backwards = control[:, control.var_names[::-1]].copy()
    expected = trained.get_normalized_expression(control, gene_list=genes)
    named = trained.get_normalized_expression(backwards, gene_list=genes)
    array = trained.get_normalized_expression(backwards, gene_list=genes, return_numpy=True)
    assert list(named.columns) == list(expected.columns[::-1])
    np.testing.assert_allclose(named[expected.columns], expected, rtol=1e-4)
    np.testing.assert_array_equal(array, named.to_numpy())
    means = [trained.get_likelihood_parameters(a)["mean"] for a in (control, backwards)]
    np.testing.assert_allclose(means[0], means[1][:, ::-1], rtol=1e-4)
    drawn = [trained.posterior_predictive_sample(a).todense() for a in (control, backwards)]
    assert np.corrcoef(drawn[0].mean(0), drawn[1].mean(0)[::-1])[0, 1] > 0.99


def test_listed_genes_and_overall_draws_of_other_cells(trained, control):
    backwards, genes = control[:, ::-1].copy(), list(control.var_names[[2, 7]])
    listed, all_genes = (
        trained.posterior_predictive_sample(backwards, gene_list=chosen).todense()
        for chosen in (genes, None)
    )
    assert listed.shape == (control.n_obs, 2)
    # Of the second, then of the first, as in the cells.
    expected = all_genes.mean(0)[backwards.var_names.get_indexer(genes[::-1])]
    np.testing.assert_allclose(listed.mean(0), expected, rtol=0.2)
    with pytest.raises(ValueError, match="genes unknown to the model: 'X'"):
        trained.posterior_predictive_sample(backwards, gene_list=["X"])
    for adata, order in ((control, genes), (backwards, genes[::-1])):
        draws = trained.get_normalized_expression(adata, n_samples_overall=10, gene_list=genes)
        assert draws.shape == (10, 2)
        assert list(draws.columns) == order


def test_overridden_methods_keep_both_docstrings():
    doc = trvae.TRVAE.get_normalized_expression.__doc__
    assert "posterior mean" in doc
    assert "transform_batch" in doc
    assert doc.index("\nseed\n") < doc.index("\nReturns\n") < doc.index("\nRaises\n")


@pytest.mark.parametrize("method", ["get_normalized_expression", "get_latent_representation"])
def test_documentation_of_scvi_tools_is_corrected(method):
    doc = getattr(trvae.TRVAE, method).__doc__
    # Conditions have names, and genes may be in any order.
    assert "int, then batch" not in doc
    assert not re.search(r"in the same\s+order", doc)


# ------------------------------------------------------------- differential expression


def test_differential_expression_finds_the_effect(trained):
    table = trained.differential_expression(**COMPARED, silent=True)
    effect = trained.adata.var["effect_treated"]
    assert np.corrcoef(table["lfc_mean"], effect[table.index])[0, 1] > 0.8


def test_differential_expression_of_log_normalised_values(adata):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal", train=LONG)
    table = model.differential_expression(**COMPARED, silent=True)
    values = adata.to_df()
    treated = adata.obs["condition"] == "treated"
    change = values[treated].mean() - values[~treated].mean()
    assert np.corrcoef(table["lfc_mean"][adata.var_names], change)[0, 1] > 0.8
    with pytest.raises(ValueError, match="have no library_size"):
        model.get_normalized_expression(library_size=1e4)


WRONG = {
    "groupby 'cond' is not in adata.obs: 'condition'": {"groupby": "cond"},
    "group1 'stim' is not in adata.obs['condition']: 'control'": {"group1": "stim"},
    "group2 'stim' is not in": {"group1": ["treated"], "group2": "stim"},
    "idx1 select none": {"idx1": []},
    "weights must be": {"group1": "treated", "weights": "importance"},
}


@pytest.mark.parametrize("words", WRONG)
def test_groups_that_cannot_be_compared(trained, words):
    arguments = {"groupby": "condition", "silent": True} | WRONG[words]
    with pytest.raises(ValueError) as caught:
        trained.differential_expression(**arguments)
    assert words in str(caught.value)


@pytest.mark.parametrize("transform_batch", ["stim", ["control", "stim"]])
def test_unknown_conditions_to_transform_into(trained, transform_batch):
    with pytest.raises(
        ValueError, match="'stim' is not one of the model's .*'control', 'treated'"
    ):
        trained.get_normalized_expression(transform_batch=transform_batch)


@pytest.mark.parametrize("method", ["get_likelihood_parameters", "get_feature_correlation_matrix"])
def test_likelihoods_without_dispersion_say_so(adata, method):
    model = untrained(adata, gene_likelihood="poisson")
    model.is_trained_ = True
    with pytest.raises(ValueError, match="needs gene_likelihood 'nb' or 'zinb'.* 'poisson'"):
        getattr(model, method)()


# ----------------------------------------------------------------------------- queries


def test_a_query_without_anything_new_needs_no_training(trained, control):
    mapped = trvae.TRVAE.load_query_data(control, trained)
    np.testing.assert_array_equal(
        mapped.get_latent_representation(), trained.get_latent_representation(control)
    )
    with pytest.raises(ValueError, match="nothing to train"):
        mapped.train(max_epochs=1, **QUIET)


@pytest.mark.parametrize("from_path", [False, True])
def test_query_training_changes_nothing_for_the_reference(adata, tmp_path, from_path):
    adata.obs["donor"] = np.resize(["a", "b"], adata.n_obs)
    model = fit(adata, setup={"categorical_covariate_keys": ["donor"]})
    model.save(tmp_path / "model")
    query = adata[adata.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "other"
    query.obs["donor"] = np.where(query.obs["donor"] == "a", "a", "new")
    mapped = trvae.TRVAE.load_query_data(query, tmp_path / "model" if from_path else model)
    of_condition = mapped.module.encoder.hidden.layers[0].map.condition.weight
    start = of_condition[2].clone()
    mapped.train(max_epochs=3, **QUIET)
    assert mapped.conditions == ["control", "treated", "other"]
    assert_same_predictions(mapped, model, adata)
    assert not torch.equal(of_condition[2], start)
    assert mapped.transfer(adata, "other").n_obs == adata.n_obs
    assert mapped.transfer(query, "control").n_obs == query.n_obs
