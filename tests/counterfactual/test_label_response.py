import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import QUIET, dense, fit, is_group
from scipy import sparse

import trvae
from trvae.counterfactual._label_response import (
    LinearResponse,
    ResponseOfLabels,
    Weights,
    group_means,
    has_enough_cells,
    log_share,
    share_of_log,
)
from trvae.model._labels import left_out_of

RNG = np.random.default_rng(0)
BETWEEN = {"target_condition": "treated", "source_condition": "control"}


def shares(n, n_genes=6):
    return RNG.dirichlet(np.ones(n_genes), n)


def tensor(values):
    return torch.from_numpy(np.array(values))


def response_of(before, after, weights, is_counts=True, **kwargs):
    return ResponseOfLabels(
        before, after, weights=Weights(*weights), is_counts=is_counts, **kwargs
    )


NETWORK, LINEAR, SHIFT = np.eye(3)


def test_the_regression_finds_linear_and_common_changes():
    before = RNG.normal(size=(20, 6))
    change = before @ RNG.normal(size=(6, 6)) + 2
    np.testing.assert_allclose(LinearResponse(before, change).change(before), change, atol=0.05)
    # The same change of all labels is found exactly, of few labels, too.
    common = LinearResponse(before[:4], np.tile(change[0], (4, 1)))
    np.testing.assert_allclose(common.change(RNG.normal(size=(3, 6))), [change[0]] * 3)
    assert (LinearResponse(before, 0 * before).change(before) == 0).all()


def test_the_regression_does_not_depend_on_units_or_order():
    before, after, new = (RNG.normal(size=(n, 6)) for n in (5, 5, 2))
    expected = LinearResponse(before, after - before).change(new)
    order = [3, 0, 4, 1, 2]
    np.testing.assert_allclose(
        LinearResponse(before[order], (after - before)[order]).change(new), expected
    )
    scaled = LinearResponse(10 * before + 1, 10 * (after - before)).change(10 * new + 1)
    np.testing.assert_allclose(scaled, 10 * expected)


def test_fewer_than_three_labels_have_their_mean_change():
    before, after, new = (RNG.normal(size=(2, 6)) for _ in range(3))
    for n in (1, 2):
        change = LinearResponse(before[:n], after[:n]).change(new)
        np.testing.assert_allclose(change, [after[:n].mean(0)] * 2)


def test_labels_with_enough_cells_are_learnt_from():
    assert list(has_enough_cells(np.array([20, 19, 50, 300]))) == [True, False, True, True]
    # Two are too few.
    assert list(has_enough_cells(np.array([20, 1, 0, 300]))) == [True, True, False, True]


def test_shares_and_their_logarithms():
    share = np.array([0, 1e-9, 1e-4, 1])
    np.testing.assert_allclose(share_of_log(log_share(share)), share, atol=1e-15)
    assert share_of_log(np.array(-1.0)) == 0


@pytest.mark.parametrize("is_counts", [True, False])
def test_changes_add_up_with_their_weights(is_counts):
    before, after = shares(4), shares(4)
    source, target = tensor(500 * shares(3)), tensor(500 * shares(3))

    def change(weights):
        response = response_of(before, after, weights, is_counts)(source, target)
        # Ten thousand counts in place of 500.
        return np.log1p(20 * response) - np.log1p(20 * source) if is_counts else response - source

    parts = [change(weights) for weights in (NETWORK, LINEAR, SHIFT)]
    expected = np.log1p(20 * target) - np.log1p(20 * source) if is_counts else target - source
    np.testing.assert_allclose(parts[0], expected)
    profiles = [log_share(x) if is_counts else x for x in (before, after)]
    np.testing.assert_allclose(parts[2], [(profiles[1] - profiles[0]).mean(0)] * 3)
    np.testing.assert_allclose(
        change((0.5, 0.1, 0.2)), 0.5 * parts[0] + 0.1 * parts[1] + 0.2 * parts[2]
    )
    np.testing.assert_allclose(change((0, 0, 0)), 0, atol=1e-12)
    # Labels that do not change leave cells as they are.
    still = response_of(before, before, LINEAR, is_counts)
    np.testing.assert_allclose(still(source, target), source)


@pytest.mark.parametrize("is_counts", [True, False])
def test_no_gene_changes_more_than_the_labels_do_times_the_limit(is_counts):
    before, after = shares(4), shares(4)
    source, target = tensor(500 * shares(50)), tensor(500 * shares(50))

    def log(values, library):
        return np.log1p(1e4 * np.asarray(values) / library) if is_counts else np.asarray(values)

    of_labels = log(after, 1) - log(before, 1)
    change = log(target, 500) - log(source, 500)
    for limit in (0.0, 0.5, 1.5, 1e3):
        limited = response_of(before, after, NETWORK, is_counts, limit=limit)(source, target)
        least, most = limit * of_labels.min(0), limit * of_labels.max(0)
        expected = change.clip(least.clip(max=-0.5), most.clip(min=0.5))
        np.testing.assert_allclose(log(limited, 500) - log(source, 500), expected, atol=1e-9)


def test_a_growing_share_of_the_modelled_genes_raises_all_rates():
    before, source, target = 0.4 * shares(4), tensor(500 * shares(3)), tensor(500 * shares(3))
    for growth in (1.0, 1.5):
        grown = response_of(before, growth * before, NETWORK)(source, target)
        np.testing.assert_allclose(grown, growth * target)


def test_labels_without_counts_say_nothing_of_the_share():
    before, after = 0.4 * shares(4), 0.6 * shares(4)
    before[1], after[2] = 0, 0
    source, target = tensor(500 * shares(3)), tensor(500 * shares(3))
    grown = response_of(before, after, NETWORK)(source, target)
    assert (grown.sum(1) > target.sum(1)).all()
    assert np.isfinite(response_of(0 * before, 0 * after, LINEAR)(source, target)).all()


def test_the_share_of_the_modelled_genes_can_grow_with_the_profile():
    before = shares(30)
    # The more of the first gene, the more all grow.
    growth = np.exp(before[:, :1])
    response = response_of(before, growth * before, NETWORK)
    source = tensor(500 * before)
    grown = response(source, source).sum(1) / 500
    # The ridge keeps it from 1: it is from 0.77 to 0.97 over 30 seeds.
    assert np.corrcoef(grown, growth.ravel())[0, 1] > 0.75


@pytest.mark.parametrize("is_counts", [True, False])
def test_float32_is_precise_enough(is_counts):
    n_genes = 3000

    def profiles(n, library):
        values = library * RNG.dirichlet(np.full(n_genes, 0.2), n)
        return values if is_counts else np.log1p(values)

    before, after = profiles(7, 1 if is_counts else 800), profiles(7, 1 if is_counts else 800)
    source, target = tensor(profiles(20, 800)), tensor(profiles(20, 800))
    response = response_of(before, after, (0.6, 0.3, 0.2), is_counts, limit=1.25)
    exact = response(source, target)
    single = response.float()(source.float(), target.float())
    assert single.dtype == torch.float32
    error = (single - exact).abs()
    # One in ten thousand counts, or one log unit: below that, precision hardly matters.
    unit = exact.sum(1, keepdim=True) / 1e4 if is_counts else 1.0
    assert (error / (exact.abs() + unit)).max() < 2e-5
    assert (error.sum(1) / exact.sum(1)).max() < 2e-6


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_group_means(convert, monkeypatch):
    monkeypatch.setattr("trvae._utils._matrices._ROWS_AT_ONCE", 7)
    counts = RNG.poisson(2.0, (40, 5)) + 1.0
    label, condition = RNG.integers(0, 3, 40), RNG.integers(0, 2, 40)
    condition[label == 2] = 0
    sums = counts.sum(1)
    library = sums * RNG.uniform(2, 4, 40)
    groups = convert(counts), label, condition, (3, 2)
    means = group_means(*groups, is_counts=True, library=library)
    of_group = (label == 1) & (condition == 1)
    np.testing.assert_allclose(means.profile[1, 1], (counts / sums[:, None])[of_group].mean(0))
    np.testing.assert_allclose(means.modelled_share[1, 1], (sums / library)[of_group].mean())
    assert means.n_cells[1, 1] == of_group.sum()
    assert means.n_cells[2, 1] == 0
    assert np.isnan(means.profile[2, 1]).all()
    assert (group_means(*groups, is_counts=True).modelled_share[:2] == 1).all()
    plain = group_means(*groups, is_counts=False)
    np.testing.assert_allclose(plain.profile[1, 1], counts[of_group].mean(0))
    assert (plain.modelled_share == 1).all()


@pytest.mark.parametrize("has_library", [False, True])
def test_cells_without_counts_have_no_profile(has_library):
    """They are no cells with shares of 0, and only tell that less of the library is modelled."""
    counts = RNG.poisson(2.0, (40, 5)) + 1.0
    library = 3.0 * counts.sum(1) if has_library else None
    codes = np.repeat([0, 1], 20), np.zeros(40, int), (2, 1)
    full = group_means(counts, *codes, is_counts=True, library=library)
    counts[:5], counts[20:] = 0, 0
    means = group_means(counts, *codes, is_counts=True, library=library)
    without = group_means(
        counts[5:20], *np.zeros((2, 15), int), (1, 1), is_counts=True,
        library=None if library is None else library[5:20],
    )  # fmt: skip
    np.testing.assert_allclose(means.profile[0], without.profile[0])
    share = full.modelled_share[0] * (0.75 if has_library else 1)
    np.testing.assert_allclose(means.modelled_share[0], share)
    assert (means.profile[1] == 0).all()


def test_group_means_of_more_groups_than_a_short_integer_counts():
    label, condition = np.divmod(np.arange(10 * 40), 40)
    values = np.arange(400.0)[:, None]
    codes = (code.astype(np.int8) for code in (label, condition))
    means = group_means(values, *codes, (10, 40), is_counts=False)
    np.testing.assert_array_equal(means.profile[..., 0], values.reshape(10, 40))


# ------------------------------------------------------------------------- in a model


def types(n_cell_types=4, **kwargs):
    return trvae.datasets.simulated(n_cells=40, n_genes=60, n_cell_types=n_cell_types, **kwargs)


def test_a_purely_linear_counterfactual_follows_the_labels():
    adata = types()
    held_out = is_group(adata, "treated")
    model = fit(adata[~held_out], linear_weight=1.0, train={"max_epochs": 30})
    cells = adata[is_group(adata, "control")]
    before = cells.X.toarray().mean(0)
    after = model.get_transferred_expression(cells, "treated").to_numpy().mean(0)
    expressed = before > 0.5
    change = np.log(after / before)[expressed]
    assert np.corrcoef(change, adata.var["effect_treated"][expressed])[0, 1] > 0.95


def test_log_normalised_values_have_a_linear_response(adata):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal", linear_weight=1.0, train={"max_epochs": 20})
    predicted = model.get_transferred_expression(**BETWEEN).to_numpy()
    is_control = (adata.obs["condition"] == "control").to_numpy()
    change = predicted.mean(0) - adata.X[is_control].toarray().mean(0)
    assert np.corrcoef(change, adata.var["effect_treated"])[0, 1] > 0.8


def test_only_counterfactuals_are_linear(trained):
    def answers(estimate):
        for trained.linear_weight in (0.0, 1.0, 0.3):
            yield trained.get_transferred_expression(**BETWEEN, estimate=estimate)

    for estimate, is_same in (("counterfactual", False), ("decoded", True), ("linear", True)):
        one, other, _ = answers(estimate)
        assert one.equals(other) == is_same


def test_the_linear_estimate_is_that_of_the_labels_alone(trained, monkeypatch):
    linear = trained.get_transferred_expression(**BETWEEN, estimate="linear")
    drawn = trained.transfer(**BETWEEN, estimate="linear")
    np.testing.assert_allclose(drawn.X.toarray().mean(0), linear.mean(), rtol=0.1, atol=0.1)
    monkeypatch.setattr(trained, "linear_weight", 1.0)
    pd.testing.assert_frame_equal(trained.get_transferred_expression(**BETWEEN), linear)
    monkeypatch.setattr(trained, "mean_profiles_", None)
    with pytest.raises(ValueError, match="estimate='linear' needs .* 'treated' and 'control'"):
        trained.transfer(**BETWEEN, estimate="linear")


def test_two_labels_limit_the_decoder_and_add_their_mean_change(adata):
    # Of three labels, one was measured under one condition only.
    two = fit(adata[~is_group(adata, "treated")])
    cells = adata[is_group(adata, "control")].copy()
    profiles = [log_share(two.mean_profiles_[1:, code]) for code in (0, 1)]
    shift = (profiles[1] - profiles[0]).mean(0)
    two.linear_weight = 1.0
    rates = two.get_transferred_expression(cells, "treated").to_numpy().mean(0)
    change = log_share(rates / rates.sum()) - log_share(
        cells.X.toarray().mean(0) / cells.X.sum() * 40
    )
    assert np.corrcoef(change, shift)[0, 1] > 0.95
    two.linear_weight, sizes = 0.0, []
    for two.response_limit in (0.0, None):
        after = two.get_transferred_expression(cells, "treated").to_numpy()
        sizes.append(np.abs(np.log1p(after) - np.log1p(cells.X.toarray())).mean())
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match="3 labels .* 'treated'"):
        two.get_transferred_means(**BETWEEN)


def test_limited_counterfactuals_change_less(trained, monkeypatch):
    monkeypatch.setattr(trained, "linear_weight", 0.0)
    changes = []
    for limit in (0, 1, None):
        monkeypatch.setattr(trained, "response_limit", limit)
        expected = trained.get_transferred_expression(target_condition="treated")
        change = np.log1p(expected) - np.log1p(trained.adata.X.toarray())
        changes.append(np.abs(change).to_numpy().mean())
    assert changes[0] < changes[1] < changes[2]


def test_intervals_of_means_cover_the_response_of_a_held_out_label():
    adata = types(n_cell_types=8, n_lineages=8, share_affected=1.0)
    treated = is_group(adata, "treated")
    model = fit(adata[~treated], train={"max_epochs": 40})
    cells = adata[is_group(adata, "control")]
    rates = pd.DataFrame(adata.layers["rate"], columns=adata.var_names)
    share = rates.div(rates.sum(1), axis=0)[treated].mean()
    arguments = {"target_condition": "treated", "library_size": 1.0}
    means = model.get_transferred_means(cells, **arguments)
    assert list(means.index) == list(adata.var_names)
    assert 0.8 < ((means["low"] < share) & (share < means["high"])).mean() <= 1
    expected = model.get_transferred_expression(cells, **arguments).mean()
    np.testing.assert_allclose(means["transferred"], expected, rtol=1e-6)
    np.testing.assert_allclose(means[["source", "transferred"]].sum(), 1, rtol=1e-6)
    own = dense(cells.X)
    np.testing.assert_allclose(
        means["source"], (own / own.sum(1, keepdims=True)).mean(0), rtol=1e-6
    )
    observed = model.get_transferred_means(cells, "treated")
    np.testing.assert_allclose(observed["source"], own.mean(0), rtol=1e-6)
    gene = means["low"].idxmax()
    half = model.get_transferred_means(cells, **arguments, level=0.5, gene_list=[gene])
    assert means["low"][gene] < half["low"][gene] < half["high"][gene] < means["high"][gene]
    with pytest.raises(ValueError, match="cells of one condition, not of 'control', 'treated'"):
        model.get_transferred_means(adata, **arguments)


def test_intervals_of_genes_without_counts_start_at_0():
    adata = types(n_cell_types=5)
    adata.X = adata.X.multiply(np.arange(adata.n_vars) >= 20).tocsr()
    model = fit(adata[~is_group(adata, "treated")])
    for size in ("observed", 1e4):
        means = model.get_transferred_means(
            adata[is_group(adata, "control")], "treated", library_size=size
        )
        assert (means["low"][:20] == 0).all()
        assert (means["low"] <= means["transferred"]).all()
        assert (means["transferred"] <= means["high"]).all()
        assert (means["low"][20:] > 0).any()


def test_empty_cells_change_no_prediction_but_their_own():
    adata = types()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    some = np.flatnonzero(treated)[::3]
    emptied = adata.copy()
    emptied.X = emptied.X.toarray()
    emptied.X[some] = 0
    sums = [
        fit(each, linear_weight=1.0).get_transferred_expression(adata, **BETWEEN).to_numpy().sum()
        for each in (adata, emptied)
    ]
    assert sums[1] == pytest.approx(sums[0], rel=0.1)

    # Nor that of others on a common scale.
    model, cells = fit(adata), adata[~treated].copy()
    full = cells[20:].copy()
    cells.X = cells.X.toarray()
    cells.X[:20] = 0
    scaled = model.get_transferred_expression(cells, "treated", library_size=1e4)
    np.testing.assert_allclose(scaled.sum(1), [0] * 20 + [1e4] * full.n_obs, rtol=1e-4)
    means = [
        model.get_transferred_means(each, "treated", library_size=1e4) for each in (cells, full)
    ]
    for side in ("source", "transferred"):
        expected = means[1][side] * full.n_obs / cells.n_obs
        np.testing.assert_allclose(means[0][side], expected, rtol=1e-4)
    change = [
        model.assess_transfer(each, "treated", groupby="condition")["change"]
        for each in (cells, full)
    ]
    # The median library size, at which changes are measured, is of all cells.
    np.testing.assert_allclose(change[0], change[1], rtol=0.05)


def test_library_sizes_change_the_share_of_the_modelled_genes():
    adata = types()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    adata.obs["total"] = adata.X.sum(1).A1 * np.where(treated, 2.0, 4.0)
    plain, model = (fit(adata, setup=setup) for setup in ({}, {"library_key": "total"}))
    sums = [m.get_transferred_expression(**BETWEEN).sum(1) for m in (plain, model)]
    # Without a change of shares, a cell keeps about as many counts as it had.
    np.testing.assert_allclose(np.median(sums[1] / sums[0]), 2.0, rtol=0.1)
    bare = adata[:5].copy()
    del bare.obs["total"]
    assert model.transfer(bare, "treated").n_obs == 5


def without(adata, column):
    adata = adata.copy()
    del adata.obs[column]
    return adata


@pytest.mark.parametrize("keys", [["size"], ["total"], ["size", "total"]])
def test_growth_is_counted_once(keys):
    """All modelled genes grow alike, which the library, size factors or both state."""
    adata = types(effect_size=0.0)
    treated = (adata.obs["condition"] == "treated").to_numpy()
    adata.obs["total"] = 4.0 * adata.X.sum(1).A1
    adata.obs["size"] = adata.obs["total"] / adata.obs["total"].median()
    adata.X[np.flatnonzero(treated)] = 2 * adata.X[np.flatnonzero(treated)]
    setup = {{"size": "size_factor_key", "total": "library_key"}[key]: key for key in keys}
    model = fit(adata, setup=setup, train={"max_epochs": 60, "plan_kwargs": {"lr": 1e-2}})
    control = adata[~treated].copy()

    def sum_of(target="treated", **kwargs):
        return model.get_transferred_expression(control, target, **kwargs).to_numpy().sum()

    # Without libraries, only the network knows.
    growth = 2 if "total" in keys else sum_of(estimate="decoded") / sum_of("control")
    assert growth > 1.5

    def assert_grows():
        assert sum_of() / sum_of("control") == pytest.approx(growth, rel=0.1)

    assert_grows()
    model.calibrate("treated", progress_bar=False)
    assert_grows()
    left_out = left_out_of(model, 0, 1)
    # Predicted and measured changes both have the growth, which is 0.7, or both lack it. What is learnt
    # of so few cells differs between them, which raises means.
    for part in (left_out.network, left_out.linear):
        assert part.mean() == pytest.approx(left_out.change.mean(), abs=0.4)
    means = model.get_transferred_means(control, "treated")
    assert ((means["low"] <= means["transferred"]) & (means["transferred"] <= means["high"])).all()
    assessed = [
        model.assess_transfer(cells, "treated")["change"].mean()
        for cells in (control, without(control, "total"))
    ]
    assert assessed[1] == pytest.approx(assessed[0], rel=0.1)
    model.linear_weight, model.response_limit = 0.0, None
    model.calibration_ = {}
    assert_grows()
    decoded = model.get_transferred_expression(
        control, "treated", estimate="decoded", library_size=1e4
    )
    np.testing.assert_allclose(decoded.sum(1), 1e4, rtol=1e-4)


def test_a_query_adds_its_conditions_and_leaves_the_others():
    adata = types(conditions=["control", "treated", "other"])
    is_other = (adata.obs["condition"] == "other").to_numpy()
    held_out = is_group(adata, "treated")
    model = fit(adata[~is_other & ~held_out])
    # The query also has cells that the reference lacks of its own conditions.
    mapped = trvae.TRVAE.load_query_data(adata[is_other | held_out].copy(), model)
    mapped.train(max_epochs=2, **QUIET)
    cells = adata[~is_other][:20]
    expected = model.get_transferred_expression(cells, "treated")
    assert mapped.get_transferred_expression(cells, "treated").equals(expected)
    assert np.isfinite(mapped.mean_profiles_[:, 2]).all()
    again = anndata.concat([adata[is_other], adata[held_out]])
    assert np.isfinite(mapped.transfer(again, "control").X.toarray()).all()
