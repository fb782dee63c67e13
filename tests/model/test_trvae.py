import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import LONG, QUIET, SMALL, fit

import trvae


def predictions(model, cells):
    return {
        "latent": model.get_latent_representation(cells),
        "first_layer": model.get_mmd_representation(cells),
        "drawn": model.transfer(cells, "treated", seed=3).X.toarray(),
        "expected": model.get_transferred_expression(cells, "treated", return_numpy=True),
    }


def test_save_and_load_in_a_fresh_process(trained, control, tmp_path):
    trained.save(str(tmp_path / "model"))
    control.write_h5ad(tmp_path / "cells.h5ad")
    script = f"""
import anndata, numpy as np, sys, trvae
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from test_trvae import predictions
model = trvae.TRVAE.load({str(tmp_path / "model")!r}, adata=False)
cells = anndata.read_h5ad({str(tmp_path / "cells.h5ad")!r})
np.savez({str(tmp_path / "out.npz")!r}, **predictions(model, cells))
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    again = np.load(tmp_path / "out.npz")
    for name, expected in predictions(trained, control).items():
        np.testing.assert_array_equal(again[name], expected, err_msg=name)


def test_load_with_anndata(trained, tmp_path):
    trained.save(str(tmp_path / "model"), save_anndata=True)
    loaded = trvae.TRVAE.load(str(tmp_path / "model"))
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), trained.get_latent_representation()
    )
    assert loaded.conditions == trained.conditions
    loaded.train(max_epochs=1, **QUIET)


def test_a_model_that_was_never_trained_can_be_saved(adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    model = trvae.TRVAE(adata, seed=0, **SMALL)
    model.save(str(tmp_path / "model"))
    loaded = trvae.TRVAE.load(str(tmp_path / "model"), adata)
    assert not loaded.is_trained_
    for name, weights in model.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], weights), name


def test_no_cells_of_its_own_and_none_given(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    loaded = trvae.TRVAE.load(str(tmp_path / "model"), adata=False)
    with pytest.raises(ValueError, match="Pass the cells"):
        loaded.transfer(target_condition="treated")


def test_representations(trained, control):
    assert trained.get_latent_representation(control).shape == (100, 4)
    assert trained.get_mmd_representation(control).shape == (100, 16)
    for name, ask in {
        "latent": trained.get_latent_representation,
        "first layer": trained.get_mmd_representation,
    }.items():
        once, again = ask(control), ask(control[::-1], batch_size=7)
        np.testing.assert_allclose(again[::-1], once, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (trained.get_mmd_representation(control) >= 0).all()


def test_first_layer_of_the_base_does_not_see_the_condition(trained, control):
    # Within the decoder: the encoder does see it, so z is held fixed.
    module = trained.module
    z = torch.randn(5, module.n_latent)
    library = torch.zeros(5, 1)
    first = [module.generative(z, library, torch.full((5, 1), c))["first_layer"] for c in (0, 1)]
    assert torch.equal(*first)


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-condition"])
@pytest.mark.parametrize("decoder", ["additive", "conditional"])
def test_count_models_learn(adata, gene_likelihood, dispersion, decoder):
    model = fit(
        adata,
        gene_likelihood=gene_likelihood,
        dispersion=dispersion,
        decoder=decoder,
        train={"max_epochs": 5},
    )
    loss = model.history["reconstruction_loss_train"].to_numpy().ravel()
    assert loss[-1] < loss[0]
    rates = model.get_normalized_expression()
    np.testing.assert_allclose(rates.sum(1), 1, rtol=1e-4)


@pytest.mark.parametrize("mmd_layer", ["decoder", "latent", "both"])
@pytest.mark.parametrize("normalization", ["batch", "layer", "none"])
def test_layers_and_norms(adata, mmd_layer, normalization):
    model = fit(adata, mmd_layer=mmd_layer, normalization=normalization)
    assert np.isfinite(model.history["mmd_validation"].astype(float)).all(axis=None)


def test_the_kl_divergence_has_its_weight(trained):
    tensors = next(iter(trained._make_data_loader(trained.adata, batch_size=100)))
    module = trained.module
    with torch.no_grad():
        inferred, generated, full = module(tensors)
        part = module.loss(tensors, inferred, generated, kl_weight=0.25, final_kl_weight=0.5)
    kl = full.kl_local["kl_divergence_z"].mean()
    assert kl > 1
    torch.testing.assert_close(full.loss - part.loss, 0.75 * kl, rtol=1e-3, atol=0)
    ahead = part.extra_metrics["objective"] - part.loss
    torch.testing.assert_close(ahead, 0.25 * kl, rtol=1e-3, atol=0)


@pytest.mark.parametrize("mmd_layer", ["decoder", "latent", "both"])
@pytest.mark.parametrize("within_labels", [True, False])
def test_mmd_is_that_of_the_chosen_layer(adata, mmd_layer, within_labels):
    from trvae.module._mmd import multi_scale_mmd

    model = fit(adata, mmd_layer=mmd_layer, mmd_within_labels=within_labels)
    tensors = next(iter(model._make_data_loader(model.adata, batch_size=100, shuffle=True)))
    module = model.module
    with torch.no_grad(), module.posterior_mean():
        inferred, generated, loss = module(tensors)
    condition = tensors["batch"].flatten()
    label = tensors["labels"].flatten() if within_labels else None
    layers = {"decoder": generated["first_layer"], "latent": inferred["z"]}
    chosen = list(layers.values()) if mmd_layer == "both" else [layers[mmd_layer]]
    expected = sum(multi_scale_mmd(y, condition, label) for y in chosen)
    torch.testing.assert_close(loss.extra_metrics["mmd"], expected)
    elbo = (
        loss.reconstruction_loss["reconstruction_loss"] + loss.kl_local["kl_divergence_z"]
    ).mean()
    torch.testing.assert_close(loss.loss, elbo + module.mmd_weight * expected)


def test_loss_does_not_depend_on_the_minibatch_size(trained):
    tensors = next(iter(trained._make_data_loader(trained.adata, batch_size=200, shuffle=True)))
    module = trained.module
    twice = {key: torch.cat([value, value]) for key, value in tensors.items()}
    with torch.no_grad(), module.posterior_mean():
        torch.testing.assert_close(module(twice)[2].loss, module(tensors)[2].loss)


def test_matching_within_labels_is_on_if_there_are_labels(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    assert not trvae.TRVAE(adata, **SMALL).module.mmd_within_labels
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    assert trvae.TRVAE(adata, **SMALL).module.mmd_within_labels
    assert not trvae.TRVAE(adata, mmd_within_labels=False, **SMALL).module.mmd_within_labels


def test_size_factors_scale_the_rates(adata):
    adata.obs["size"] = np.where(np.arange(adata.n_obs) % 2, 1.0, 4.0)
    model = fit(adata, setup={"size_factor_key": "size"})
    expected = model.get_transferred_expression(
        target_condition="control", estimate="decoded", return_numpy=True
    )
    rate = model.get_normalized_expression(transform_batch="control", return_numpy=True)
    np.testing.assert_allclose(expected, rate * adata.obs[["size"]].to_numpy(), rtol=1e-4)


def test_covariates_enter(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.obs["age"] = np.linspace(-1, 1, adata.n_obs)
    setup = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    model = fit(adata, setup=setup)
    cells = adata[:10].copy()
    before = model.get_normalized_expression(cells)
    cells.obs["donor"] = np.where(cells.obs["donor"] == "a", "b", "a")
    cells.obs["age"] += 1
    assert not np.allclose(before, model.get_normalized_expression(cells))


def test_normalized_expression_is_at_the_posterior_mean_unless_draws_are_asked_for(trained):
    once, again = trained.get_normalized_expression(), trained.get_normalized_expression()
    assert once.equals(again)
    draws = trained.get_normalized_expression(n_samples=3, return_mean=False)
    assert draws.shape == (3, *once.shape)
    assert not np.allclose(draws[0], draws[1])


DRAWS = {
    "get_latent_representation": {"give_mean": False},
    "get_normalized_expression": {"n_samples": 3, "return_mean": False},
    "get_likelihood_parameters": {"n_samples": 3},
    "posterior_predictive_sample": {},
    "get_elbo": {"return_mean": False},
    "get_marginal_ll": {"n_mc_samples": 3, "return_mean": False},
    "get_reconstruction_error": {"return_mean": False},
    "get_feature_correlation_matrix": {"n_samples": 2},
}


def drawn(model, method, **kwargs):
    values = getattr(model, method)(**DRAWS[method], **kwargs)
    values = next(iter(values.values())) if isinstance(values, dict) else values
    return np.asarray(values.todense() if hasattr(values, "todense") else values)


@pytest.mark.parametrize("method", DRAWS)
def test_draws_have_a_seed(trained, method):
    state = torch.get_rng_state()
    once = drawn(trained, method)
    np.testing.assert_array_equal(drawn(trained, method, seed=0), once)
    assert not np.array_equal(drawn(trained, method, seed=1), once)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="seed must be an integer .* got -1"):
        drawn(trained, method, seed=-1)


@pytest.mark.parametrize(
    "method", ["get_latent_representation", "get_normalized_expression", "get_elbo"]
)
def test_draws_of_z_do_not_depend_on_the_minibatch_size(trained, method):
    np.testing.assert_allclose(
        drawn(trained, method, batch_size=7), drawn(trained, method), rtol=1e-3, atol=1e-5
    )


def test_differential_expression_is_seeded(trained):
    def table(**kwargs):
        return trained.differential_expression(
            groupby="condition", group1="treated", mode="change", silent=True, **kwargs
        )

    pd.testing.assert_frame_equal(table(), table(seed=0))
    assert not table(seed=1)["lfc_mean"].equals(table()["lfc_mean"])


def test_differential_expression_finds_the_effect(trained):
    table = trained.differential_expression(
        groupby="condition", group1="treated", group2="control", mode="change", silent=True
    )
    effect = trained.adata.var["effect_treated"]
    assert np.corrcoef(table["lfc_mean"], effect[table.index])[0, 1] > 0.8


def test_scvi_tools_methods_work(trained):
    assert np.isfinite(trained.get_elbo())
    assert np.isfinite(trained.get_marginal_ll(n_mc_samples=3))
    assert trained.get_marginal_ll(n_mc_samples=200) > trained.get_elbo()
    assert trained.posterior_predictive_sample(n_samples=2).shape == (600, 60, 2)
    parameters = trained.get_likelihood_parameters()
    assert set(parameters) == {"mean", "dispersions"}
    np.testing.assert_array_equal(trained.get_likelihood_parameters()["mean"], parameters["mean"])
    assert "'control', 'treated'" in trained.summary_string


def test_a_query_without_anything_new_needs_no_training(adata):
    model = fit(adata)
    mapped = trvae.TRVAE.load_query_data(adata[:50].copy(), model)
    np.testing.assert_array_equal(
        mapped.get_latent_representation(), model.get_latent_representation(adata[:50])
    )
    with pytest.raises(ValueError, match="nothing to train"):
        mapped.train(max_epochs=1, **QUIET)


def test_a_normal_model_survives_saving(adata, tmp_path):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal")
    model.save(str(tmp_path / "model"))
    loaded = trvae.TRVAE.load(str(tmp_path / "model"), adata=False)
    before = model.transfer(adata, "treated").X.toarray()
    np.testing.assert_array_equal(loaded.transfer(adata, "treated").X.toarray(), before)
    assert before.min() == 0
    with pytest.raises(ValueError, match="no cells of its own to train on"):
        loaded.train(max_epochs=1, **QUIET)


@pytest.mark.parametrize("from_path", [False, True])
def test_query_training_changes_nothing_for_the_reference(adata, tmp_path, from_path):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    model = fit(adata, setup={"categorical_covariate_keys": ["donor"]})
    reference = model
    if from_path:
        model.save(str(tmp_path / "model"))
        reference = tmp_path / "model"
    query = adata[adata.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "other"
    query.obs["donor"] = np.where(query.obs["donor"] == "a", "a", "new")
    before = predictions(model, adata)
    mapped = trvae.TRVAE.load_query_data(query, reference)
    start = mapped.module.encoder.hidden.layers[0].map.condition.weight[2].clone()
    mapped.train(max_epochs=3, **QUIET)
    assert mapped.conditions == ["control", "treated", "other"]
    for name, expected in predictions(mapped, adata).items():
        np.testing.assert_array_equal(expected, before[name], err_msg=name)
    assert not torch.equal(mapped.module.encoder.hidden.layers[0].map.condition.weight[2], start)
    assert mapped.transfer(adata, "other").n_obs == adata.n_obs
    assert mapped.transfer(query, "control").n_obs == query.n_obs


@pytest.mark.parametrize("method", ["get_latent_representation", "get_mmd_representation"])
def test_cells_to_represent(trained, control, method):
    represent = getattr(trained, method)
    every = represent(control)
    mask = np.arange(control.n_obs) % 2 == 0
    np.testing.assert_allclose(represent(control, indices=mask), every[mask], atol=1e-6)
    with pytest.raises(ValueError, match="indices select none of the 100 cells"):
        represent(control, indices=[])
    with pytest.raises(ValueError, match="indices don't fit 100 cells"):
        represent(control, indices=[100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groupby": "cond"}, "groupby 'cond' is not in adata.obs: 'condition', 'cell_type'"),
        ({"group1": "stim"}, "group1 'stim' is not in adata.obs.'condition'.: 'control', 'tr"),
        ({"group1": ["treated"], "group2": "stim"}, "group2 'stim' is not in adata.obs"),
        ({"idx1": []}, "idx1 select none of the"),
        ({"group1": "treated", "weights": "importance"}, "weights must be one of None, 'uniform'"),
    ],
)
def test_groups_that_cannot_be_compared(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.differential_expression(**({"groupby": "condition", "silent": True} | arguments))


def test_likelihoods_without_dispersion_say_so(adata):
    model = fit(adata, gene_likelihood="poisson", train={"max_epochs": 1})
    for method in (model.get_likelihood_parameters, model.get_feature_correlation_matrix):
        with pytest.raises(ValueError, match="'nb' or 'zinb', but the model has 'poisson'"):
            method()


def test_overridden_methods_keep_both_docstrings():
    doc = trvae.TRVAE.get_normalized_expression.__doc__
    assert "posterior mean" in doc
    assert "transform_batch" in doc
    assert doc.index("\nseed\n") < doc.index("\nReturns\n")


def test_an_untrained_model_gives_no_expression(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    model = trvae.TRVAE(adata, **SMALL)
    for method in (model.get_normalized_expression, model.differential_expression):
        with pytest.raises(RuntimeError, match="untrained model"):
            method()


@pytest.mark.parametrize("transform_batch", ["stim", ["control", "stim"]])
def test_an_unknown_transform_batch_is_named_beside_the_conditions(trained, transform_batch):
    with pytest.raises(
        ValueError, match="'stim' is not one of the model's .*'control', 'treated'"
    ):
        trained.get_normalized_expression(transform_batch=transform_batch)


@pytest.mark.parametrize("genes", [None, ["gene_7", "gene_3"]])
def test_normalized_expression_has_the_genes_in_the_order_of_the_cells(trained, control, genes):
    reversed_ = control[:, control.var_names[::-1]].copy()
    expected = trained.get_normalized_expression(control, gene_list=genes)
    named = trained.get_normalized_expression(reversed_, gene_list=genes)
    array = trained.get_normalized_expression(reversed_, gene_list=genes, return_numpy=True)
    assert list(named.columns) == list(expected.columns[::-1])
    np.testing.assert_allclose(named[expected.columns], expected, rtol=1e-4)
    np.testing.assert_array_equal(array, named.to_numpy())
    means = [trained.get_likelihood_parameters(a)["mean"] for a in (control, reversed_)]
    np.testing.assert_allclose(means[0], means[1][:, ::-1], rtol=1e-4)
    drawn = [trained.posterior_predictive_sample(a).todense() for a in (control, reversed_)]
    assert np.corrcoef(drawn[0].mean(0), drawn[1].mean(0)[::-1])[0, 1] > 0.99


def test_differential_expression_of_log_normalised_values(adata):
    values = adata.copy()
    values.X = np.log1p(values.X.toarray()).astype(np.float32)
    model = fit(values, gene_likelihood="normal", train=LONG)
    table = model.differential_expression(
        groupby="condition", group1="treated", group2="control", mode="change", silent=True
    )
    assert table["lfc_mean"].notna().all()
    treated = (values.obs["condition"] == "treated").to_numpy()
    change = values.X[treated].mean(0) - values.X[~treated].mean(0)
    found = table["lfc_mean"].loc[values.var_names]
    assert np.corrcoef(found, change)[0, 1] > 0.8
    with pytest.raises(ValueError, match="have no library_size"):
        model.get_normalized_expression(library_size=1e4)
