import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import LONG, QUIET, fit
from scipy import sparse

import trvae
from trvae.counterfactual._label_response import (
    LinearResponse,
    ResponseOfLabels,
    group_means,
    left_out_errors,
)

RNG = np.random.default_rng(0)


def test_the_regression_finds_a_linear_change():
    before = RNG.normal(size=(20, 6))
    change = before @ RNG.normal(size=(6, 6)) + 2
    response = LinearResponse(before, before + change)
    np.testing.assert_allclose(response.change(before), change, atol=0.05)


def test_the_same_change_of_all_labels_is_found_exactly():
    before, change = RNG.normal(size=(4, 6)), RNG.normal(size=6)
    response = LinearResponse(before, before + change)
    np.testing.assert_allclose(response.change(RNG.normal(size=(3, 6))), [change] * 3)
    assert (LinearResponse(before, before).change(before) == 0).all()


def test_the_regression_does_not_depend_on_units_or_order():
    before, after = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
    new = RNG.normal(size=(2, 6))
    expected = LinearResponse(before, after).change(new)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(LinearResponse(before[order], after[order]).change(new), expected)
    scaled = LinearResponse(10 * before + 1, 10 * after + 1).change(10 * new + 1)
    np.testing.assert_allclose(scaled, 10 * expected)


def shares(n, n_genes=6):
    return RNG.dirichlet(np.ones(n_genes), n)


def test_weight_is_the_share_of_the_linear_response():
    before, after, one = shares(4), shares(4), np.ones(4)
    source, target = 500 * shares(3), 500 * shares(3)
    predicted = {
        w: ResponseOfLabels(before, after, one, one, weight=w, is_counts=True)(source, target)
        for w in (0.0, 0.25, 1.0)
    }
    np.testing.assert_allclose(predicted[0.0], target)
    np.testing.assert_allclose(predicted[0.25], 0.75 * predicted[0.0] + 0.25 * predicted[1.0])
    assert (predicted[1.0] >= 0).all()
    # Labels that do not change leave cells as they are.
    still = ResponseOfLabels(before, before, one, one, weight=1.0, is_counts=True)
    np.testing.assert_allclose(still(source, target), source)


@pytest.mark.parametrize("is_counts", [True, False])
def test_no_gene_changes_more_than_the_labels_do_times_the_limit(is_counts):
    before, after, one = shares(4), shares(4), np.ones(4)
    source, target = 500 * shares(50), 500 * shares(50)

    def log(values):
        return np.log1p(1e4 * values / 500) if is_counts else values

    def respond(limit):
        settings = {"weight": 0.0, "is_counts": is_counts, "limit": limit}
        return ResponseOfLabels(before, after, one, one, **settings)(source, target)

    of_labels = log(500 * after) - log(500 * before) if is_counts else after - before
    change = log(target) - log(source)
    for limit in (0.0, 0.5, 1.5, 1e3):
        least, most = limit * of_labels.min(0), limit * of_labels.max(0)
        expected = change.clip(least.clip(max=-0.5), most.clip(min=0.5))
        np.testing.assert_allclose(log(respond(limit)) - log(source), expected, atol=1e-9)
    np.testing.assert_array_equal(respond(np.inf), target)


def test_a_growing_share_of_the_modelled_genes_raises_all_rates():
    before, source, target = shares(4), 500 * shares(3), 500 * shares(3)
    share_before = np.array([0.1, 0.2, 0.3, np.nan])
    response = ResponseOfLabels(
        before, before, share_before, 1.5 * share_before, weight=0.0, is_counts=True
    )
    np.testing.assert_allclose(response(source, target), 1.5 * target)


def test_left_out_errors_are_what_the_other_labels_do_not_tell():
    before, change = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
    np.testing.assert_allclose(left_out_errors(before, before + change[0]), 0, atol=1e-12)
    # Labels that are alike before tell of each other but the mean.
    alike = np.tile(before[0], (5, 1))
    expected = 5 / 4 * (change - change.mean(0))
    np.testing.assert_allclose(left_out_errors(alike, alike + change), expected)


def test_deviations_spread_as_the_left_out_errors_do():
    before, after, one = shares(8), shares(8), np.ones(8)
    response = ResponseOfLabels(before, after, one, one, weight=0.3, is_counts=True)
    rng = np.random.default_rng(0)
    draws = np.array([response.draw_deviation(rng) for _ in range(20_000)])
    errors = left_out_errors(np.log1p(1e4 * before), np.log1p(1e4 * after))
    # The covariance of a t distribution with 8 degrees of freedom.
    np.testing.assert_allclose(np.cov(draws.T), 8 / 6 * errors.T @ errors / 8, rtol=0.1, atol=0.05)
    source = target = 500 * shares(3)
    np.testing.assert_allclose(
        response(source, target, np.zeros(6)), response(source, target), rtol=1e-10
    )
    assert (response(source, target, np.ones(6)) > response(source, target)).all()


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_group_means(convert, monkeypatch):
    monkeypatch.setattr("trvae._utils._matrices._ROWS_AT_ONCE", 7)
    counts = RNG.poisson(2.0, (40, 5)) + 1.0
    label, condition = RNG.integers(0, 3, 40), RNG.integers(0, 2, 40)
    condition[label == 2] = 0
    library = counts.sum(1) * RNG.uniform(2, 4, 40)
    means = group_means(convert(counts), label, condition, (3, 2), is_counts=True, library=library)
    share = counts / counts.sum(1, keepdims=True)
    of_group = (label == 1) & (condition == 1)
    np.testing.assert_allclose(means.profile[1, 1], share[of_group].mean(0))
    expected = (counts.sum(1) / library)[of_group].mean()
    np.testing.assert_allclose(means.modelled_share[1, 1], expected)
    assert np.isnan(means.profile[2, 1]).all()
    plain = group_means(convert(counts), label, condition, (3, 2), is_counts=False)
    np.testing.assert_allclose(plain.profile[1, 1], counts[of_group].mean(0))
    assert (plain.modelled_share[0] == 1).all()


def four_types(**kwargs):
    return trvae.datasets.simulated(n_cells=40, n_genes=60, n_cell_types=4, **kwargs)


def test_a_purely_linear_counterfactual_follows_the_labels():
    adata = four_types()
    held_out = (adata.obs["condition"] == "treated") & (adata.obs["cell_type"] == "type_0")
    model = fit(adata[~held_out], linear_weight=1.0, train={"max_epochs": 30})
    is_type = (adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "control")
    cells = adata[is_type]
    before = cells.X.toarray().mean(0)
    after = model.get_transferred_expression(cells, "treated").to_numpy().mean(0)
    expressed = before > 0.5
    change = np.log(after / before)[expressed]
    assert np.corrcoef(change, adata.var["effect_treated"][expressed])[0, 1] > 0.95


def test_only_counterfactuals_are_linear_and_only_with_enough_labels(adata):
    # Three labels, one of which was measured under one condition only.
    two = adata[~((adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "treated"))]
    models = [fit(two, linear_weight=w) for w in (0.0, 1.0)]
    few = [m.get_transferred_expression(target_condition="treated") for m in models]
    np.testing.assert_array_equal(*few)
    models = [fit(adata, linear_weight=w) for w in (0.0, 1.0)]
    for estimate, same in (("decoded", True), ("counterfactual", False)):
        arguments = {"target_condition": "treated", "estimate": estimate}
        expected = [m.get_transferred_expression(**arguments) for m in models]
        assert expected[0].equals(expected[1]) == same


def test_limited_counterfactuals_change_less(adata):
    changes = {}
    for limit in (0, 1, None):
        model = fit(adata, linear_weight=0.0, response_limit=limit, train=LONG)
        expected = model.get_transferred_expression(target_condition="treated")
        changes[limit] = np.abs(np.log1p(expected) - np.log1p(adata.X.toarray())).to_numpy()
    assert changes[0].mean() < changes[1].mean() < changes[None].mean()


def test_log_normalised_values_have_a_linear_response(adata):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal", linear_weight=1.0, train=LONG)
    predicted = model.get_transferred_expression(
        target_condition="treated", source_condition="control"
    )
    is_control = (adata.obs["condition"] == "control").to_numpy()
    change = predicted.to_numpy().mean(0) - adata.X[is_control].toarray().mean(0)
    assert np.corrcoef(change, adata.var["effect_treated"])[0, 1] > 0.8


def test_intervals_of_means_cover_a_response_of_a_labels_own():
    adata = trvae.datasets.simulated(
        n_cells=60, n_genes=80, n_cell_types=8, n_lineages=8, share_affected=1.0
    )
    is_type = (adata.obs["cell_type"] == "type_0").to_numpy()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    model = fit(adata[~(is_type & treated)], train={"max_epochs": 60})
    cells = adata[is_type & ~treated]
    rates = pd.DataFrame(adata.layers["rate"], columns=adata.var_names)
    share = rates.div(rates.sum(1), axis=0)[is_type & treated].mean()
    arguments = {"target_condition": "treated", "library_size": 1.0}
    means = model.get_transferred_means(cells, **arguments)
    assert list(means.index) == list(adata.var_names)
    assert 0.8 < ((means["low"] < share) & (share < means["high"])).mean() <= 1
    expected = model.get_transferred_expression(cells, **arguments).mean()
    np.testing.assert_allclose(means["transferred"], expected, rtol=1e-6)
    half = model.get_transferred_means(cells, **arguments, level=0.5, gene_list=["gene_3"])
    assert means["low"]["gene_3"] < half["low"]["gene_3"] < half["high"]["gene_3"]
    assert half["high"]["gene_3"] < means["high"]["gene_3"]
    # Most of the uncertainty is about the label, and not about z.
    model.mean_profiles_ = None
    draws = model.get_transferred_expression(
        cells, **arguments, n_samples=50, return_mean=False
    ).mean(1)
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    assert ((low < share) & (share < high)).mean() < 0.5


def test_intervals_need_labels_that_tell_how_much_they_differ(adata):
    two = adata[~((adata.obs["cell_type"] == "type_0") & (adata.obs["condition"] == "treated"))]
    model = fit(two)
    with pytest.raises(ValueError, match="Fewer than 3 labels were measured under both 'treated'"):
        model.get_transferred_means(target_condition="treated", source_condition="control")
    model = fit(adata)
    arguments = {"target_condition": "treated", "source_condition": "control"}
    with pytest.raises(ValueError, match="level=1 is not a number between 0 and 1"):
        model.get_transferred_means(**arguments, level=1)
    with pytest.raises(ValueError, match="n_samples=1, but an interval takes 2"):
        model.get_transferred_means(**arguments, n_samples=1)
    means = model.get_transferred_means(**arguments, n_samples=3)
    same = model.get_transferred_means(**arguments, n_samples=3, batch_size=7)
    pd.testing.assert_frame_equal(same, means, rtol=1e-4)


def test_library_sizes_tell_how_the_share_of_the_genes_changes():
    adata = four_types()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    adata.obs["total"] = adata.X.sum(1).A1 * np.where(treated, 2.0, 4.0)
    arguments = {"target_condition": "treated", "source_condition": "control"}
    sums = [
        fit(adata, setup=setup).get_transferred_expression(**arguments).sum(1)
        for setup in ({}, {"library_key": "total"})
    ]
    # Without a change of shares, a cell keeps about as many counts as it had.
    np.testing.assert_allclose(np.median(sums[1] / sums[0]), 2.0, rtol=0.1)
    model = fit(adata, setup={"library_key": "total"})
    bare = adata[:5].copy()
    del bare.obs["total"]
    assert model.transfer(bare, "treated").n_obs == 5
    with pytest.raises(ValueError, match="library_key 'depth' is not in adata.obs"):
        trvae.TRVAE.setup_anndata(adata, condition_key="condition", library_key="depth")
    adata.obs["total"] = 0.0
    with pytest.raises(ValueError, match="library_key 'total' has values that are not positive"):
        trvae.TRVAE.setup_anndata(adata, condition_key="condition", library_key="total")


def test_a_query_adds_its_conditions_and_leaves_the_others():
    adata = four_types(conditions=["control", "treated", "other"])
    is_other = (adata.obs["condition"] == "other").to_numpy()
    held_out = (adata.obs["condition"] == "treated") & (adata.obs["cell_type"] == "type_0")
    model = fit(adata[~is_other & ~held_out])
    # The query has also what the reference lacks of its own conditions.
    mapped = trvae.TRVAE.load_query_data(adata[is_other | held_out].copy(), model)
    mapped.train(max_epochs=2, **QUIET)
    cells = adata[~is_other][:20]
    expected = model.get_transferred_expression(cells, "treated")
    assert mapped.get_transferred_expression(cells, "treated").equals(expected)
    assert np.isfinite(mapped.mean_profiles_[:, 2]).all()
    again = anndata.concat([adata[is_other], adata[held_out]])
    assert np.isfinite(mapped.transfer(again, "control").X.toarray()).all()


def test_group_means_of_more_groups_than_a_short_integer_counts():
    label, condition = np.divmod(np.arange(10 * 40), 40)
    values = np.arange(400.0)[:, None]
    codes = (code.astype(np.int8) for code in (label, condition))
    means = group_means(values, *codes, (10, 40), is_counts=False)
    np.testing.assert_array_equal(means.profile[..., 0], values.reshape(10, 40))
