import anndata
import numpy as np
import pytest
from conftest import LONG, QUIET, fit
from scipy import sparse

import trvae
from trvae._linear_response import LinearResponse, ResponseOfLabels, group_means

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


def test_a_growing_share_of_the_modelled_genes_raises_all_rates():
    before, source, target = shares(4), 500 * shares(3), 500 * shares(3)
    share_before = np.array([0.1, 0.2, 0.3, np.nan])
    response = ResponseOfLabels(
        before, before, share_before, 1.5 * share_before, weight=0.0, is_counts=True
    )
    np.testing.assert_allclose(response(source, target), 1.5 * target)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_group_means(convert, monkeypatch):
    monkeypatch.setattr("trvae._data._ROWS_AT_ONCE", 7)
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


def test_log_normalised_values_have_a_linear_response(adata):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal", linear_weight=1.0, train=LONG)
    predicted = model.get_transferred_expression(
        target_condition="treated", source_condition="control"
    )
    is_control = (adata.obs["condition"] == "control").to_numpy()
    change = predicted.to_numpy().mean(0) - adata.X[is_control].toarray().mean(0)
    assert np.corrcoef(change, adata.var["effect_treated"])[0, 1] > 0.8


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
