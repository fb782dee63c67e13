"""Transfer: known answers of simulated cells, expectations of draws, and what must not matter."""

import weakref

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from helpers import LONG, assert_unchanged, content, dense, fit
from scipy import sparse

import trvae

TARGETS = ["treated", "control"]
FROM_CONTROL = {"target_condition": "treated", "source_condition": "control"}


def log_change(before, after):
    """Change of the logarithm of each gene's mean, and which genes are expressed enough for it."""
    before, after = dense(before.X).mean(0), dense(after.X).mean(0)
    expressed = before > 0.5
    return np.log(after[expressed] / before[expressed]), expressed


# ----------------------------------------------------------------------- known answers


@pytest.mark.parametrize("decoder", ["additive", "conditional"])
def test_finds_the_simulated_effect(trained, adata, control, decoder):
    model = trained if decoder == "additive" else fit(adata, decoder=decoder, train=LONG)
    change, expressed = log_change(control, model.transfer(control, "treated"))
    effect = adata.var["effect_treated"].to_numpy()[expressed]
    assert np.corrcoef(change, effect)[0, 1] > 0.9


def test_generalises_to_a_held_out_combination(held_out):
    model, cells = held_out
    is_type = cells.obs["cell_type"] == "type_0"
    is_treated = cells.obs["condition"] == "treated"
    control, observed = cells[is_type & ~is_treated].copy(), cells[is_type & is_treated].copy()
    predicted = model.transfer(control, "treated")
    r2 = trvae.metrics.transfer_metrics(predicted, observed, control)["r2_mean"]
    assert r2["prediction"] > 0.9 > r2["no change"] + 0.2


def test_without_an_effect_nothing_is_predicted():
    def cells_of_type_0(adata, condition):
        is_type_0 = adata.obs["cell_type"] == "type_0"
        return adata[is_type_0 & (adata.obs["condition"] == condition)].copy()

    def mean(cells):
        return trvae.metrics.log_normalized(cells, target_sum=500.0).mean(0)

    # So little noise that a response would be seen.
    size = {"n_cells": 100, "n_genes": 60, "n_cell_types": 5, "inverse_dispersion": 50.0}
    adata = trvae.datasets.simulated(**size, effect_size=0.0)
    control = cells_of_type_0(adata, "control")
    seen = (adata.obs["condition"] == "control") | (adata.obs["cell_type"] != "type_0")
    predicted = fit(adata[seen], train=LONG).transfer(control, "treated")
    change = mean(predicted) - mean(control)
    responding = trvae.datasets.simulated(**size)
    before, after = (cells_of_type_0(responding, name) for name in ("control", "treated"))
    response = mean(after) - mean(before)
    assert np.square(change).mean() < np.square(response).mean() / 9


def test_own_condition_changes_nothing(trained, control):
    same = trained.transfer(control, "control")
    np.testing.assert_array_equal(dense(same.X), dense(control.X))
    expected = trained.get_transferred_expression(control, "control", return_numpy=True)
    np.testing.assert_allclose(expected, dense(control.X), rtol=1e-6)


def test_decoded_is_scvi_tools_normalized_expression(trained, control):
    decoded = {"target_condition": "treated", "estimate": "decoded"}
    theirs = trained.get_normalized_expression(control, transform_batch="treated")
    for library_size in (1, 1e4):
        ours = trained.get_transferred_expression(control, **decoded, library_size=library_size)
        pd.testing.assert_frame_equal(ours, library_size * theirs, rtol=1e-4, atol=1e-7)
    observed = trained.get_transferred_expression(control, **decoded)
    np.testing.assert_allclose(observed.sum(1), dense(control.X).sum(1), rtol=1e-4)


def test_library_size_with_size_factors_and_without_counts(adata):
    adata.obs["size"] = np.resize([100.0, 400.0], adata.n_obs)
    model = fit(adata, setup={"size_factor_key": "size"})
    decoded = {"target_condition": "treated", "estimate": "decoded"}
    rate = model.get_normalized_expression(transform_batch="treated")
    # Rates in units of size factors don't add up to 1.
    share = rate.div(rate.sum(1), axis=0)
    for library_size, expected in (
        (1e4, 1e4 * share),
        ("observed", rate * adata.obs[["size"]].to_numpy()),
    ):
        scaled = model.get_transferred_expression(**decoded, library_size=library_size)
        np.testing.assert_allclose(scaled, expected, rtol=1e-4)
    # A counterfactual is in units of the cell's own counts, whatever the size factors are.
    unchanged = model.get_transferred_expression(
        target_condition="treated", source_condition="treated", library_size=1e4
    )
    counts = dense(adata[adata.obs["condition"] == "treated"].X)
    np.testing.assert_allclose(unchanged, 1e4 * counts / counts.sum(1, keepdims=True), rtol=1e-4)

    # Whatever the share of the modelled genes in a stated library becomes.
    times = np.where(adata.obs["condition"] == "treated", 2, 4)
    adata.obs["library"] = dense(adata.X).sum(1) * times
    model = fit(adata, setup={"library_key": "library"})
    scaled = model.get_transferred_expression(target_condition="treated", library_size=1e4)
    np.testing.assert_allclose(scaled.sum(1), 1e4, rtol=1e-4)

    model = fit(adata)
    expected = model.get_transferred_expression(**decoded, library_size=1e4)
    qzm, qzv = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = qzm, qzv
    model.minify_adata()
    scaled = model.get_transferred_expression(**decoded, library_size=1e4)
    np.testing.assert_allclose(scaled, expected, rtol=1e-3, atol=1e-2)


# ------------------------------------------------------------------------------- draws


@pytest.fixture(scope="module", params=["nb", "zinb", "poisson"])
def of_likelihood(request):
    adata = trvae.datasets.simulated(n_cells=40, n_genes=60)
    return fit(adata, gene_likelihood=request.param, dispersion="gene-condition")


@pytest.mark.parametrize("estimate", ["counterfactual", "decoded"])
def test_drawn_counts_have_the_expected_mean(of_likelihood, estimate):
    arguments = FROM_CONTROL | {"estimate": estimate}
    expected = of_likelihood.get_transferred_expression(**arguments).to_numpy()
    draws = [dense(of_likelihood.transfer(**arguments, seed=seed).X) for seed in range(10)]
    np.testing.assert_allclose(np.mean(draws), expected.mean(), rtol=0.03)


def test_expectation_of_each_gene_is_the_mean_of_its_draws(trained, control):
    expected = trained.get_transferred_expression(control, "treated", return_numpy=True)
    draws = [dense(trained.transfer(control, "treated", seed=seed).X) for seed in range(30)]
    np.testing.assert_allclose(np.mean(draws, (0, 1)), expected.mean(0), rtol=0.03, atol=0.02)


def test_gains_have_the_dispersion_of_the_target_condition(adata):
    model = fit(adata, dispersion="gene-condition", train={"max_epochs": 1})
    with torch.no_grad():
        model.module.log_dispersion.weight[:] = torch.tensor([[10.0], [-3.0]])
    kwargs = {"source_condition": "control", "estimate": "decoded"}
    variance = {
        name: dense(model.transfer(target_condition=name, **kwargs).X).var(0).mean()
        for name in model.conditions
    }
    assert variance["treated"] > 3 * variance["control"]


def test_log_normalised_values_stay_log_normalised(adata):
    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    model = fit(adata, gene_likelihood="normal", train=LONG)
    predicted = model.transfer(**FROM_CONTROL)
    assert sparse.issparse(predicted.X)
    values = predicted.X.toarray()
    assert values.min() == 0
    assert (values % 1 != 0).any()
    change = values.mean(0) - dense(adata[adata.obs["condition"] == "control"].X).mean(0)
    assert np.corrcoef(change, adata.var["effect_treated"])[0, 1] > 0.7
    draws = [dense(model.transfer(**FROM_CONTROL, seed=seed).X) for seed in range(10)]
    expected = model.get_transferred_expression(**FROM_CONTROL)
    np.testing.assert_allclose(np.mean(draws, (0, 1)), expected.mean(), atol=0.1)
    # With one standard deviation for both conditions, there is nothing to draw.
    model = fit(adata, gene_likelihood="normal", dispersion="gene")
    expected = model.get_transferred_expression(**FROM_CONTROL)
    np.testing.assert_allclose(dense(model.transfer(**FROM_CONTROL).X), expected, rtol=1e-5)


def test_posterior_draws(trained, control):
    kwargs = {"n_samples": 5, "indices": np.arange(6)}
    draws = trained.get_transferred_expression(control, "treated", return_mean=False, **kwargs)
    assert draws.shape == (5, 6, 60)
    assert draws.std(0).max() > 0
    again = trained.get_transferred_expression(
        control, "treated", return_mean=False, batch_size=2, **kwargs
    )
    np.testing.assert_allclose(again, draws, rtol=1e-3, atol=1e-5)
    mean = trained.get_transferred_expression(control, "treated", **kwargs)
    np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-5)


# ---------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("estimate", ["counterfactual", "decoded"])
def test_draws_depend_on_seed_and_name_only(trained, control, estimate):
    def predict(cells, **kwargs):
        return trained.transfer(cells, "treated", estimate=estimate, **kwargs).to_df()

    everything = predict(control)
    pd.testing.assert_frame_equal(predict(control, batch_size=7), everything)
    order = np.random.default_rng(0).permutation(control.n_obs)
    pd.testing.assert_frame_equal(
        predict(control[order]), everything.iloc[order], check_freq=False
    )
    pd.testing.assert_frame_equal(predict(control[10:20]), everything.iloc[10:20])
    pd.testing.assert_frame_equal(predict(control, indices=[3, 1]), everything.iloc[[3, 1]])
    assert not predict(control, seed=1).equals(everything)
    # Two cells of one name draw separately.
    twice = dense(trained.transfer(control[[0, 0]].copy(), "treated", estimate=estimate).X)
    assert not np.array_equal(*twice)


def test_neighbours_do_not_matter_and_cells_are_not_changed(trained, control):
    others = trvae.datasets.simulated(n_cells=10, n_genes=60, seed=1)
    among = anndata.concat([others, control[:20]], index_unique="-", keys=["other", "own"])
    among.obs_names = [name.removesuffix("-own") for name in among.obs_names]
    own = among.obs_names.isin(control.obs_names[:20])
    before = content(among)
    for ask in (
        lambda cells: dense(trained.transfer(cells, "treated", seed=5).X),
        lambda cells: trained.get_transferred_expression(cells, "treated", n_samples=2),
        lambda cells: trained.get_normalized_expression(cells),
        lambda cells: trained.get_transfer_support(cells, "treated"),
        trained.get_latent_representation,
        trained.get_mmd_representation,
    ):
        answers = np.asarray(ask(among))[own], np.asarray(ask(control[:20]))
        np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)
    assert_unchanged(among, before)
    # Of the private copies that were registered, only the last is kept.
    assert len(trained._per_instance_manager_store[trained.id]) == 2


def test_genes_are_matched_by_name_and_keep_the_callers_order(trained, control):
    expected = trained.get_transferred_expression(control, "treated")
    order = np.random.default_rng(0).permutation(control.n_vars)
    extra = AnnData(np.ones((control.n_obs, 2), np.float32), obs=control.obs[[]])
    extra.var_names = ["unknown_1", "unknown_2"]
    wider = anndata.concat([extra, control[:, order]], axis=1, merge="first")
    wider.obs = control.obs.copy()
    result = trained.get_transferred_expression(wider, "treated")
    pd.testing.assert_frame_equal(result, expected.iloc[:, order])
    assert list(trained.transfer(wider, "treated").var_names) == list(result.columns)
    genes = list(expected.columns[[5, 2]])
    result = trained.get_transferred_expression(wider, "treated", gene_list=genes)
    pd.testing.assert_frame_equal(result, expected[genes])


def test_how_cells_are_chosen_does_not_matter(trained):
    every = trained.transfer(target_condition="treated")
    is_control = (trained.adata.obs["condition"] == "control").to_numpy()
    assert every.n_obs == trained.adata.n_obs
    bare = AnnData(trained.adata.X[is_control], var=trained.adata.var.copy())
    bare.obs_names = trained.adata.obs_names[is_control]
    for some in (
        trained.transfer(**FROM_CONTROL),
        trained.transfer(target_condition="treated", indices=is_control),
        trained.transfer(target_condition="treated", indices=np.flatnonzero(is_control)),
        trained.transfer(bare, **FROM_CONTROL),
    ):
        assert list(some.obs_names) == list(every.obs_names[is_control])
        np.testing.assert_array_equal(dense(some.X), dense(every.X)[is_control])
    assert "condition" not in bare.obs


# -------------------------------------------------------------------------- the result


def test_result_is_ready_for_scanpy_and_can_be_written(trained, control, tmp_path):
    control.obs["quality"] = np.arange(control.n_obs)
    control.var["chromosome"] = "1"
    predicted = trained.transfer(control, "treated", seed=7)
    assert predicted.obs_names.equals(control.obs_names)
    assert predicted.var_names.equals(control.var_names)
    assert set(predicted.obs) == set(control.obs)
    assert list(predicted.obs["condition"].cat.categories) == ["control", "treated"]
    assert (predicted.obs["condition"] == "treated").all()
    assert predicted.obs["quality"].equals(control.obs["quality"])
    assert (predicted.var["chromosome"] == "1").all()
    values = dense(predicted.X)
    assert (values >= 0).all()
    assert (values % 1 == 0).all()
    assert values.dtype == np.float32
    provenance = predicted.uns["trvae"]
    assert provenance["target_condition"] == "treated"
    assert list(provenance["source_conditions"]) == ["control"]
    assert provenance["seed"] == 7
    assert not provenance["is_calibrated"]
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    read = anndata.read_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_array_equal(dense(read.X), values)
    assert set(read.uns["trvae"]) == set(provenance)
    sc.pp.normalize_total(predicted)
    sc.pp.log1p(predicted)
    sc.pp.pca(predicted, n_comps=5)


def test_cells_of_the_target_condition_are_named_and_stay(trained, adata, tmp_path, caplog):
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    is_treated = (adata.obs["condition"] == "treated").to_numpy()
    out = tmp_path / "predicted.h5ad"
    predicted = trained.transfer(adata, "treated")
    trained.transfer(adata, "treated", out=out, progress_bar=False)
    words = f"{is_treated.sum()} of {adata.n_obs} cells are of treated already and stay"
    assert [words in message for message in caplog.messages] == [True, True]
    np.testing.assert_array_equal(dense(predicted.X)[is_treated], dense(adata.X)[is_treated])
    others = trained.transfer(adata, "treated", source_condition="control")
    np.testing.assert_array_equal(dense(predicted.X)[~is_treated], dense(others.X))
    stayed = trained.transfer(adata[is_treated].copy(), "treated", source_condition="treated")
    np.testing.assert_array_equal(dense(stayed.X), dense(adata.X)[is_treated])
    trained.transfer(adata, "treated", estimate="decoded")
    assert len(caplog.messages) == 3


def test_layer_is_read_and_written(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    predicted = fit(adata, setup={"layer": "counts"}).transfer(adata, "treated")
    np.testing.assert_array_equal(dense(predicted.layers["counts"]), dense(predicted.X))
    assert (dense(predicted.X) % 1 == 0).all()


# -------------------------------------------------------------------- several targets


@pytest.mark.parametrize(
    ("suffix", "make"), [(None, sparse.csr_matrix), (".h5ad", dense), (".zarr", sparse.csr_matrix)]
)
def test_several_targets_follow_each_other(adata, tmp_path, suffix, make):
    adata.X = make(adata.X)
    model = fit(adata, train={"max_epochs": 1})
    arguments = {"source_condition": "control", "seed": 3, "indices": np.arange(0, 240, 2)}
    if suffix is None:
        predicted = model.transfer(adata, TARGETS, **arguments)
    else:
        out = tmp_path / f"predicted{suffix}"
        model.transfer(adata, TARGETS, **arguments, out=out, chunk_size=50, progress_bar=False)
        predicted = anndata.read_zarr(out) if suffix == ".zarr" else anndata.read_h5ad(out)
    single = [model.transfer(adata, target, **arguments) for target in TARGETS]
    expected = np.concatenate([dense(one.X) for one in single])
    np.testing.assert_array_equal(dense(predicted.X), expected)
    assert list(predicted.obs_names) == [
        f"{name}-{target}" for target in TARGETS for name in single[0].obs_names
    ]
    assert list(predicted.obs["condition"]) == list(np.repeat(TARGETS, single[0].n_obs))
    assert list(predicted.obs["cell_type"]) == list(single[0].obs["cell_type"]) * 2
    assert list(predicted.uns["trvae"]["target_condition"]) == TARGETS
    assert list(predicted.var_names) == list(adata.var_names)


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("get_transferred_expression", {}),
        ("get_transferred_means", {}),
        ("assess_transfer", {}),
        ("get_transfer_support", {}),
    ],
)
def test_tables_of_several_targets(trained, control, method, kwargs):
    ask = getattr(trained, method)
    table = ask(control, TARGETS, **kwargs)
    assert table.index.names[0] == "target_condition"
    for target in TARGETS:
        pd.testing.assert_frame_equal(table.loc[target], ask(control, target, **kwargs))


def test_draws_of_several_targets(trained, control):
    arguments = {"n_samples": 3, "return_mean": False, "indices": np.arange(5)}
    draws = trained.get_transferred_expression(control, TARGETS, **arguments)
    single = [
        trained.get_transferred_expression(control, target, **arguments) for target in TARGETS
    ]
    np.testing.assert_array_equal(draws, np.concatenate(single, axis=1))


def test_draws_are_averaged_one_by_one(trained, control, monkeypatch):
    inherited, alive = trvae.TRVAE._expectations, []

    def counted(*args):
        for expression in inherited(*args):
            alive.append(weakref.ref(expression))
            # The one before may still be in the caller's hands, and is added up in the first.
            assert sum(reference() is not None for reference in alive) <= 3
            yield expression
            del expression

    monkeypatch.setattr(trvae.TRVAE, "_expectations", counted)
    trained.get_transferred_expression(control, "treated", n_samples=8)
    assert len(alive) >= 8


def test_the_mean_is_that_of_the_draws(trained, control):
    question = {"target_condition": "treated", "n_samples": 6, "return_numpy": True}
    draws = trained.get_transferred_expression(control, **question, return_mean=False)
    mean = trained.get_transferred_expression(control, **question)
    np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-5)
