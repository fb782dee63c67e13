import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from helpers import LONG, fit
from scipy import sparse

import trvae


def dense(adata):
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


def test_finds_the_simulated_effect(trained, control):
    effect = trained.adata.var["effect_treated"].to_numpy()
    before = dense(control).mean(0)
    after = dense(trained.transfer(control, "treated")).mean(0)
    expressed = before > 0.5
    change = np.log(after[expressed] / before[expressed])
    assert np.corrcoef(change, effect[expressed])[0, 1] > 0.9


def test_generalises_to_a_held_out_combination():
    adata = trvae.datasets.simulated(n_cells=100, n_genes=60)
    held_out = (adata.obs["condition"] == "treated") & (adata.obs["cell_type"] == "type_0")
    is_type = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "control")
    cells, observed = adata[is_type].copy(), adata[held_out].copy()
    r2 = []
    # So few cells that seeds differ a lot.
    for seed in range(3):
        model = fit(adata[~held_out], train=LONG, seed=seed)
        table = trvae.metrics.transfer_metrics(model.transfer(cells, "treated"), observed, cells)
        r2.append(table.loc["prediction", "r2_mean"])
    assert np.mean(r2) > 0.9
    assert min(r2) > table.loc["no change", "r2_mean"] + 0.05


def test_own_condition_changes_nothing(trained, control):
    np.testing.assert_array_equal(dense(trained.transfer(control, "control")), dense(control))
    expected = trained.get_transferred_expression(control, "control", return_numpy=True)
    np.testing.assert_allclose(expected, dense(control), rtol=1e-6)


def test_result_is_ready_for_scanpy(trained, control):
    import scanpy as sc

    control.obs["quality"] = np.arange(control.n_obs)
    control.var["chromosome"] = "1"
    predicted = trained.transfer(control, "treated", seed=7)
    assert predicted.obs_names.equals(control.obs_names)
    assert predicted.var_names.equals(control.var_names)
    assert (predicted.obs["condition"] == "treated").all()
    assert list(predicted.obs["condition"].cat.categories) == ["control", "treated"]
    assert predicted.obs["quality"].equals(control.obs["quality"])
    assert (predicted.var["chromosome"] == "1").all()
    assert not [column for column in predicted.obs if column.startswith("_scvi")]
    values = dense(predicted)
    assert (values >= 0).all()
    assert (values % 1 == 0).all()
    provenance = predicted.uns["trvae"]
    assert provenance["target_condition"] == "treated"
    assert list(provenance["source_conditions"]) == ["control"]
    assert provenance["seed"] == 7
    sc.pp.normalize_total(predicted)
    sc.pp.log1p(predicted)
    sc.pp.pca(predicted, n_comps=5)


def test_result_can_be_written_and_read(trained, control, tmp_path):
    from anndata import read_h5ad

    predicted = trained.transfer(control, "treated")
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_array_equal(dense(read_h5ad(tmp_path / "predicted.h5ad")), dense(predicted))


def test_expectation_is_what_the_draws_average_to(trained, control):
    expected = trained.get_transferred_expression(control, "treated").to_numpy()
    draws = [dense(trained.transfer(control, "treated", seed=s)) for s in range(30)]
    np.testing.assert_allclose(
        np.mean(draws, axis=0).mean(0), expected.mean(0), rtol=0.03, atol=0.02
    )


@pytest.mark.parametrize("estimate", ["counterfactual", "decoded"])
def test_draws_depend_on_seed_and_name_only(trained, control, estimate):
    def predict(cells, **kwargs):
        predicted = trained.transfer(cells, "treated", estimate=estimate, **kwargs)
        return pd.DataFrame(dense(predicted), predicted.obs_names, predicted.var_names)

    everything = predict(control)
    pd.testing.assert_frame_equal(predict(control, batch_size=7), everything)
    order = np.random.default_rng(0).permutation(control.n_obs)
    pd.testing.assert_frame_equal(
        predict(control[order]), everything.iloc[order], check_freq=False
    )
    pd.testing.assert_frame_equal(predict(control[10:20]), everything.iloc[10:20])
    pd.testing.assert_frame_equal(predict(control, indices=[3, 1]), everything.iloc[[3, 1]])
    assert not predict(control, seed=1).equals(everything)


def test_views_of_a_dense_matrix(trained, control):
    control.X = control.X.toarray().astype(np.float32)
    for view in (control[10:20], control[10:20, ::-1]):
        predicted = trained.transfer(view, "treated")
        np.testing.assert_array_equal(
            dense(predicted), dense(trained.transfer(view.copy(), "treated"))
        )


def test_cells_of_one_name_draw_separately(trained, control):
    twice = control[[0, 0]].copy()
    predicted = dense(trained.transfer(twice, "treated", estimate="decoded"))
    assert not np.array_equal(predicted[0], predicted[1])


@pytest.mark.parametrize(
    "convert",
    [
        sparse.csc_matrix,
        lambda x: x.toarray(),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.int32),
        lambda x: np.asfortranarray(x.toarray()),
    ],
    ids=["csc", "dense", "float64", "integer", "fortran"],
)
def test_format_of_the_matrix_does_not_matter(trained, control, convert):
    expected = trained.get_transferred_expression(control, "treated")
    other = AnnData(convert(control.X), obs=control.obs.copy(), var=control.var.copy())
    pd.testing.assert_frame_equal(
        trained.get_transferred_expression(other, "treated"), expected, rtol=1e-5
    )


def test_views_and_batch_sizes_do_not_matter(trained, control):
    expected = trained.get_transferred_expression(control, "treated")
    view = control[::-1]
    backwards = trained.get_transferred_expression(view, "treated", batch_size=3)
    pd.testing.assert_frame_equal(backwards.iloc[::-1], expected, rtol=1e-3, atol=1e-5)
    assert view.is_view


def test_neighbours_do_not_matter(trained, control):
    others = trvae.datasets.simulated(n_cells=10, n_genes=60, seed=1)
    among = anndata.concat([others, control[:20]], index_unique="-", keys=["other", "own"])
    among.obs_names = [name.removesuffix("-own") for name in among.obs_names]
    own = among.obs_names.isin(control.obs_names[:20])
    for ask in (
        lambda cells: dense(trained.transfer(cells, "treated", seed=5)),
        lambda cells: trained.get_transferred_expression(cells, "treated", return_numpy=True),
        trained.get_latent_representation,
        trained.get_mmd_representation,
        lambda cells: trained.get_transfer_support(cells, "treated").to_numpy(float),
    ):
        np.testing.assert_allclose(ask(among)[own], ask(control[:20]), rtol=1e-4, atol=1e-5)


def test_genes_are_matched_by_name_and_keep_the_callers_order(trained, control):
    expected = trained.get_transferred_expression(control, "treated")
    order = np.random.default_rng(0).permutation(control.n_vars)
    shuffled = control[:, order].copy()
    extra = AnnData(np.ones((control.n_obs, 2), np.float32), obs=control.obs[[]])
    extra.var_names = ["unknown_1", "unknown_2"]
    wider = anndata.concat([extra, shuffled], axis=1, merge="first")
    wider.obs = control.obs.copy()
    result = trained.get_transferred_expression(wider, "treated")
    pd.testing.assert_frame_equal(result, expected.iloc[:, order])
    assert list(trained.transfer(wider, "treated").var_names) == list(result.columns)
    genes = list(expected.columns[[5, 2]])
    pd.testing.assert_frame_equal(
        trained.get_transferred_expression(wider, "treated", gene_list=genes), expected[genes]
    )


def test_the_users_anndata_is_not_changed(trained, control):
    before = control.copy()
    trained.transfer(control, "treated")
    trained.get_transferred_expression(control, "treated", n_samples=2)
    trained.get_latent_representation(control)
    trained.get_mmd_representation(control)
    trained.get_normalized_expression(control)
    pd.testing.assert_frame_equal(control.obs, before.obs)
    pd.testing.assert_frame_equal(control.var, before.var)
    assert dict(control.uns) == dict(before.uns)
    assert (control.X != before.X).nnz == 0


def test_only_the_last_private_copy_is_kept(trained, control):
    for _ in range(3):
        trained.get_latent_representation(control)
    assert len(trained._per_instance_manager_store[trained.id]) == 2


def test_source_condition_selects_cells(trained):
    every = trained.transfer(target_condition="treated")
    some = trained.transfer(target_condition="treated", source_condition="control")
    is_control = (trained.adata.obs["condition"] == "control").to_numpy()
    assert every.n_obs == trained.adata.n_obs
    assert list(some.obs_names) == list(trained.adata.obs_names[is_control])
    np.testing.assert_array_equal(dense(some), dense(every)[is_control])


def test_source_condition_stands_in_for_a_missing_column(trained, control):
    bare = AnnData(control.X.copy(), var=control.var.copy())
    bare.obs_names = control.obs_names
    predicted = trained.transfer(bare, "treated", source_condition="control")
    np.testing.assert_array_equal(dense(predicted), dense(trained.transfer(control, "treated")))
    assert "condition" not in bare.obs
    with pytest.raises(ValueError, match="'condition' is not in adata.obs"):
        trained.transfer(bare, "treated")


def test_labels_are_not_needed_to_predict(trained, control):
    expected = trained.get_transferred_expression(control, "treated")
    unlabelled = control.copy()
    del unlabelled.obs["cell_type"]
    new = control.copy()
    new.obs["cell_type"] = "never seen"
    for cells in (unlabelled, new):
        pd.testing.assert_frame_equal(
            trained.get_transferred_expression(cells, "treated"), expected
        )


def test_library_size(trained, control):
    observed = trained.get_transferred_expression(control, "treated", estimate="decoded")
    scaled = trained.get_transferred_expression(
        control, "treated", estimate="decoded", library_size=1e4
    )
    np.testing.assert_allclose(observed.sum(1), dense(control).sum(1), rtol=1e-4)
    np.testing.assert_allclose(scaled.sum(1), 1e4, rtol=1e-4)


def test_library_size_with_size_factors_and_without_counts(adata):
    adata.obs["size"] = np.where(np.arange(adata.n_obs) % 2, 100.0, 400.0)
    model = fit(adata, setup={"size_factor_key": "size"})
    arguments = {"target_condition": "treated", "estimate": "decoded", "library_size": 1e4}
    expected = 1e4 * model.get_normalized_expression(transform_batch="treated")
    pd.testing.assert_frame_equal(
        model.get_transferred_expression(**arguments), expected, rtol=1e-4
    )

    model = fit(adata)
    expected = model.get_transferred_expression(**arguments)
    qzm, qzv = model.get_latent_representation(return_dist=True)
    model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = qzm, qzv
    model.minify_adata()
    np.testing.assert_allclose(
        model.get_transferred_expression(**arguments), expected, rtol=1e-3, atol=1e-2
    )


def test_gains_have_the_dispersion_of_the_target_condition(adata):
    model = fit(adata, dispersion="gene-condition", train={"max_epochs": 1})
    with torch.no_grad():
        model.module.log_dispersion.weight[0] = 10.0
        model.module.log_dispersion.weight[1] = -3.0
    kwargs = {"source_condition": "control", "estimate": "decoded"}
    into = {
        name: dense(model.transfer(target_condition=name, **kwargs)).var(0).mean()
        for name in ("control", "treated")
    }
    assert into["treated"] > 3 * into["control"]


def test_the_conditional_decoder_transfers_as_well(adata):
    model = fit(adata, decoder="conditional", train=LONG)
    effect = adata.var["effect_treated"].to_numpy()
    before = dense(adata[adata.obs["condition"] == "control"]).mean(0)
    predicted = model.transfer(target_condition="treated", source_condition="control")
    expressed = before > 0.5
    change = np.log(dense(predicted).mean(0)[expressed] / before[expressed])
    assert np.corrcoef(change, effect[expressed])[0, 1] > 0.8


def test_posterior_draws(trained, control):
    kwargs = {"n_samples": 5, "return_mean": False, "indices": np.arange(6)}
    draws = trained.get_transferred_expression(control, "treated", **kwargs)
    assert draws.shape == (5, 6, control.n_vars)
    again = trained.get_transferred_expression(control, "treated", batch_size=2, **kwargs)
    np.testing.assert_allclose(again, draws, rtol=1e-3, atol=1e-5)
    assert draws.std(0).max() > 0
    mean = trained.get_transferred_expression(
        control, "treated", n_samples=5, indices=np.arange(6)
    )
    np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-5)


def test_decoded_equals_scvi_tools_normalized_expression(trained, control):
    ours = trained.get_transferred_expression(
        control, "treated", estimate="decoded", library_size=1
    )
    theirs = trained.get_normalized_expression(control, transform_batch="treated")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-7)


def test_mask_and_positions_select_the_same(trained, control):
    mask = np.zeros(control.n_obs, bool)
    mask[[2, 5]] = True
    pd.testing.assert_frame_equal(
        trained.get_transferred_expression(control, "treated", indices=mask),
        trained.get_transferred_expression(control, "treated", indices=[2, 5]),
    )


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("estimate", ["counterfactual", "decoded"])
def test_drawn_counts_have_the_expected_mean(adata, gene_likelihood, estimate):
    model = fit(adata, gene_likelihood=gene_likelihood, dispersion="gene-condition")
    kwargs = {"source_condition": "control", "estimate": estimate}
    expected = model.get_transferred_expression(target_condition="treated", **kwargs)
    draws = [
        dense(model.transfer(target_condition="treated", seed=s, **kwargs)).mean()
        for s in range(10)
    ]
    np.testing.assert_allclose(np.mean(draws), expected.to_numpy().mean(), rtol=0.03)


def test_log_normalised_values_stay_log_normalised(adata):
    import scanpy as sc

    sc.pp.normalize_total(adata, target_sum=1e3)
    sc.pp.log1p(adata)
    model = fit(adata, gene_likelihood="normal", train=LONG)
    predicted = model.transfer(target_condition="treated", source_condition="control")
    values = dense(predicted)
    assert sparse.issparse(predicted.X)
    assert values.min() == 0
    assert (values % 1 != 0).any()
    arguments = {"target_condition": "treated", "source_condition": "control"}
    draws = [dense(model.transfer(**arguments, seed=seed)) for seed in range(20)]
    expected = model.get_transferred_expression(**arguments)
    np.testing.assert_allclose(np.mean(draws, (0, 1)), expected.mean(), atol=0.1)
    # One standard deviation for both conditions leaves nothing to draw.
    model = fit(adata, gene_likelihood="normal", dispersion="gene")
    np.testing.assert_allclose(
        dense(model.transfer(**arguments)),
        model.get_transferred_expression(**arguments),
        rtol=1e-5,
    )
    change = values.mean(0) - dense(adata[adata.obs["condition"] == "control"]).mean(0)
    assert np.corrcoef(change, adata.var["effect_treated"])[0, 1] > 0.7


def test_layer_is_read_and_written(adata):
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    model = fit(adata, setup={"layer": "counts"})
    predicted = model.transfer(adata, "treated")
    np.testing.assert_array_equal(predicted.layers["counts"].toarray(), dense(predicted))
    assert (dense(predicted) % 1 == 0).all()


def test_without_an_effect_nothing_is_predicted():
    def first_type(adata, condition):
        is_chosen = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == condition)
        return adata[is_chosen].copy()

    def mean(cells):
        return trvae.metrics.log_normalized(cells, target_sum=500.0).mean(0)

    size = {"n_cells": 150, "n_genes": 100, "n_cell_types": 5}
    adata = trvae.datasets.simulated(**size, effect_size=0.0)
    held_out = (adata.obs["condition"] == "treated") & (adata.obs["cell_type"] == "type_0")
    control = first_type(adata, "control")
    changes = [
        mean(fit(adata[~held_out], train=LONG, seed=seed).transfer(control, "treated"))
        - mean(control)
        for seed in range(3)
    ]
    responding = trvae.datasets.simulated(**size)
    response = mean(first_type(responding, "treated")) - mean(first_type(responding, "control"))
    # What a network gets wrong depends on its seed, by up to tenfold.
    rms = np.sqrt(np.square(changes).mean(1))
    assert np.median(rms) < np.sqrt(np.square(response).mean()) / 3


TARGETS = ["treated", "control"]


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("suffix", [None, ".h5ad", ".zarr"])
def test_several_targets_are_those_of_one_after_the_other(adata, tmp_path, suffix, kind):
    adata.X = adata.X if kind == "sparse" else adata.X.toarray()
    model = fit(adata, train={"max_epochs": 1})
    arguments = {"source_condition": "control", "seed": 3, "indices": np.arange(0, 240, 2)}
    if suffix is None:
        predicted = model.transfer(adata, TARGETS, **arguments)
    else:
        out = tmp_path / f"predicted{suffix}"
        model.transfer(adata, TARGETS, **arguments, out=out, chunk_size=50, progress_bar=False)
        predicted = anndata.read_zarr(out) if suffix == ".zarr" else anndata.read_h5ad(out)
    single = [model.transfer(adata, target, **arguments) for target in TARGETS]
    expected = np.concatenate([dense(one) for one in single])
    np.testing.assert_array_equal(dense(predicted), expected)
    assert list(predicted.obs_names) == [
        f"{name}-{target}" for target in TARGETS for name in single[0].obs_names
    ]
    assert list(predicted.obs["condition"]) == list(np.repeat(TARGETS, single[0].n_obs))
    assert list(predicted.obs["cell_type"]) == list(single[0].obs["cell_type"]) * 2
    assert list(predicted.uns["trvae"]["target_condition"]) == TARGETS
    assert list(predicted.var_names) == list(adata.var_names)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, *of: model.get_transferred_expression(*of),
        lambda model, *of: model.get_transferred_means(*of, n_samples=3),
        lambda model, *of: model.assess_transfer(*of, n_samples=3),
        lambda model, *of: model.get_transfer_support(*of),
    ],
)
def test_tables_of_several_targets(trained, control, ask):
    table = ask(trained, control, TARGETS)
    assert table.index.names[0] == "target_condition"
    for target in TARGETS:
        pd.testing.assert_frame_equal(table.loc[target], ask(trained, control, target))


def test_draws_of_several_targets(trained, control):
    arguments = {"n_samples": 3, "return_mean": False, "indices": np.arange(5)}
    draws = trained.get_transferred_expression(control, TARGETS, **arguments)
    assert draws.shape == (3, 10, 60)
    for i, target in enumerate(TARGETS):
        one = trained.get_transferred_expression(control, target, **arguments)
        np.testing.assert_array_equal(draws[:, 5 * i : 5 * i + 5], one)


def test_genes_are_ranked_of_one_target(trained, control):
    with pytest.raises(ValueError, match="target_condition .'treated', 'control'. is not one of"):
        trained.rank_transferred_genes(control, TARGETS)
