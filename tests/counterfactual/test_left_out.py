import numpy as np
import pytest
from scipy import stats

from trvae.counterfactual._label_response import LinearResponse, Weights, log_share
from trvae.counterfactual._left_out import (
    ErrorsOfLabels,
    LeftOut,
    fit_weights,
    linear_left_out,
    log_normalized_after,
    predicted_by_others,
)

RNG = np.random.default_rng(0)
PRIOR = Weights(0.7, 0.3, 0.0)


def left_out(weights=(0.5, 0.4, 0.2), n_labels=6, n_genes=400, noise=0.05, scale=1.0):
    """Labels whose change is a weighted sum of the predictions, on the scale of values."""
    before, network, linear, shift = RNG.normal(size=(4, n_labels, n_genes))
    change = sum(w * x for w, x in zip(weights, (network, linear, shift), strict=True))
    change = change + noise * RNG.normal(size=change.shape)
    factor = np.resize(scale, n_labels)[:, None]
    return LeftOut(before, *(factor * x for x in (change, network, linear, shift)))


def test_weights_are_found_and_do_not_depend_on_order():
    labels = left_out(n_labels=200, n_genes=30)
    weights = fit_weights(labels, None, PRIOR)
    np.testing.assert_allclose(weights, (0.5, 0.4, 0.2), atol=0.01)
    order = RNG.permutation(200)
    again = fit_weights(LeftOut(*(x[order] for x in labels)), None, PRIOR)
    np.testing.assert_allclose(again, weights)


def test_predictions_of_nothing_get_no_weight():
    before, network, linear, shift = RNG.normal(size=(4, 50, 300))
    nothing = LeftOut(before, 0 * network, network, linear, shift)
    # The prior is one label more.
    np.testing.assert_allclose(fit_weights(nothing, None, PRIOR), np.array(PRIOR) / 51, atol=0.01)
    opposite = LeftOut(before, -network, network, linear, shift)
    assert fit_weights(opposite, None, PRIOR).network == 0


def test_few_labels_hardly_move_the_prior():
    distance = [
        np.linalg.norm(np.subtract(fit_weights(left_out((1.5, 0, 0.5), n), None, PRIOR), PRIOR))
        for n in (1, 3, 20)
    ]
    assert distance[0] < distance[1] < distance[2]
    halfway = (np.array(PRIOR) + (1.5, 0, 0.5)) / 2
    np.testing.assert_allclose(
        fit_weights(left_out((1.5, 0, 0.5), 1), None, PRIOR), halfway, atol=0.2
    )


def test_weights_that_differ_between_labels_leave_the_prior():
    # The prior is right on average, and each label needs other weights.
    weights = RNG.normal(0, 0.3, (8, 3))
    weights += np.array(PRIOR) - weights.mean(0)
    parts = RNG.normal(size=(3, 8, 400))
    change = np.einsum("lp,plg->lg", weights, parts)
    labels = LeftOut(parts[0], change, *parts)
    assert np.linalg.norm(np.subtract(fit_weights(labels, None, PRIOR), PRIOR)) < 0.1
    # If all need the same ones, the prior does not matter.
    wanted = (0.2, 0.7, 0.3)
    same = labels._replace(change=np.einsum("p,plg->lg", wanted, parts))
    np.testing.assert_allclose(fit_weights(same, None, PRIOR), wanted, atol=0.1)


def test_a_label_of_large_changes_does_not_decide_alone():
    weak, strong = left_out((0.5, 0.0, 0.0), 6), left_out((2.0, 0.0, 0.0), 1, scale=20.0)
    both = LeftOut(*(np.concatenate(pair) for pair in zip(weak, strong, strict=True)))
    assert fit_weights(both, None, PRIOR).network < 0.8


@pytest.mark.parametrize("counts_per_cell", [500.0, None])
def test_labels_do_not_see_their_own_answer(counts_per_cell):
    labels = left_out()
    if counts_per_cell is not None:
        labels = labels._replace(before=np.abs(labels.before) + 3)
    predicted = predicted_by_others(labels, counts_per_cell, PRIOR)
    changed = labels._replace(change=labels.change.copy())
    changed.change[2] += 100
    np.testing.assert_allclose(
        predicted_by_others(changed, counts_per_cell, PRIOR)[2], predicted[2]
    )
    alone = LeftOut(*(x[:1] for x in labels))
    np.testing.assert_allclose(
        predicted_by_others(alone, counts_per_cell, PRIOR), alone.weighted(PRIOR)
    )


def test_rare_genes_count_less_in_weights_of_counts():
    # Of common genes the network is right, of rare ones it predicts twice the change.
    share = np.repeat([1e-2, 1e-7], 50)
    before = log_share(np.tile(share, (6, 1)))
    change = RNG.normal(0, 0.1, before.shape)
    network = change * np.repeat([1.0, 2.0], 50)
    labels = LeftOut(before, change, network, 0 * change, 0 * change)
    assert fit_weights(labels, 500.0, Weights(1.0, 0.0, 0.0)).network == pytest.approx(1, abs=0.01)
    assert fit_weights(labels, None, Weights(1.0, 0.0, 0.0)).network < 0.7


def test_linear_predictions_leave_the_label_out():
    before, change = RNG.normal(size=(5, 6)), RNG.normal(size=(5, 6))
    predicted = linear_left_out(before, change)
    expected = LinearResponse(before[1:], change[1:]).change(before[:1])[0]
    np.testing.assert_allclose(predicted[0], expected)
    same = linear_left_out(before, np.tile(change[0], (5, 1)))
    np.testing.assert_allclose(same, [change[0]] * 5)


def test_log_normalised_means():
    share = RNG.dirichlet(np.ones(5), 2)
    before, after = log_share(share)
    values = log_normalized_after(before, after - before, 700.0)
    np.testing.assert_allclose(values, np.log1p(700 * share[1]))
    np.testing.assert_allclose(log_normalized_after(before, after - before, None), after)


def of_counts(n_labels, n_genes=2000):
    """Profiles, changes and predictions with errors that grow with the change."""
    share = RNG.dirichlet(np.full(n_genes, 0.5))
    before = log_share(np.tile(share, (n_labels, 1)))
    predicted = np.where(RNG.random(n_genes) < 0.1, RNG.normal(0, 1, (n_labels, n_genes)), 0)
    error = RNG.normal(0, 1, before.shape) * (0.02 + 0.3 * np.abs(predicted))
    return before, predicted + error, predicted


def cells_of(n_labels, n_cells=100):
    return np.full((n_labels, 2), n_cells)


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("counts_per_cell", [1000.0, None])
def test_intervals_hold_their_share_of_all_genes_and_of_those_that_change(level, counts_per_cell):
    before, change, predicted = of_counts(41)
    errors = ErrorsOfLabels(before[1:], change[1:], predicted[1:], cells_of(40), counts_per_cell)
    low, high = errors.interval(before[0], predicted[0], 100, level)
    after = log_normalized_after(before[0], change[0], counts_per_cell)
    if counts_per_cell is not None:
        after = np.expm1(after) / counts_per_cell
        assert (low >= 0).all()
    inside = (low <= after) & (after <= high)
    assert inside.mean() == pytest.approx(level, abs=0.04)
    # Those that change most of all decide on the width, so others among them are held more often.
    changed = np.abs(predicted[0]) > 0.5
    assert level - 0.1 < inside[changed].mean() < level + 0.2


def test_intervals_hold_genes_whose_change_nothing_foretells():
    before, _, _ = of_counts(41)
    change = np.where(RNG.random(before.shape) < 0.03, 1.0, 0.02) * RNG.normal(size=before.shape)
    held = []
    for label in range(10):
        others = np.arange(41) != label
        errors = ErrorsOfLabels(
            before[others], change[others], 0 * change[others], cells_of(40), None
        )
        low, high = errors.interval(before[label], 0 * before[label], 100, 0.9)
        after = before[label] + change[label]
        top = np.argsort(-np.abs(change[label]))[:60]
        held.append(((low <= after) & (after <= high))[top].mean())
    assert np.mean(held) > 0.8


def test_intervals_of_few_labels_are_wider():
    before, change, predicted = of_counts(20)
    changed = np.abs(predicted[0]) > 0.5
    widths = []
    for n in (3, 20):
        errors = ErrorsOfLabels(before[:n], change[:n], predicted[:n], cells_of(n), None)
        low, high = errors.interval(before[0], predicted[0], 100, 0.9)
        widths.append((high - low)[changed].mean())
    expected = stats.t.ppf(0.95, 3) / stats.t.ppf(0.95, 20)
    assert widths[0] / widths[1] == pytest.approx(expected, rel=0.15)


def test_larger_changes_are_expected_to_have_larger_errors():
    before, change, predicted = of_counts(20)
    errors = ErrorsOfLabels(before, change, predicted, cells_of(20), 1000.0)
    expected, low, high = errors.expected_rmse(before[0], predicted[0], 100)
    observed = log_normalized_after(before, change, 1000.0) - log_normalized_after(
        before, predicted, 1000.0
    )
    assert expected == pytest.approx(np.sqrt(np.square(observed).mean()), rel=0.2)
    assert low < expected < high
    assert errors.expected_rmse(before[0], 3 * predicted[0], 100)[0] > 1.5 * expected
    assert errors.expected_rmse(before[0], 0 * predicted[0], 100)[0] < 0.8 * expected


def test_remoteness_is_in_units_of_the_labels_own():
    before = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    errors = ErrorsOfLabels(before, before, before, cells_of(3), None)
    assert errors.remoteness(before[0]) == 0
    assert errors.remoteness(np.array([0.0, -1.0])) == pytest.approx(0.5)
    assert errors.remoteness(np.array([1.0, 8.0])) == pytest.approx(3)


def test_where_nothing_changes_no_error_is_expected():
    before = RNG.normal(size=(4, 50))
    errors = ErrorsOfLabels(before, 0 * before, 0 * before, cells_of(4), None)
    assert errors.expected_rmse(before[0], 0 * before[0], 100)[0] < 1e-5
    np.testing.assert_allclose(
        errors.interval(before[0], 0 * before[0], 100, 0.9), [before[0]] * 2, atol=1e-5
    )


def test_genes_with_the_same_expected_error_share_an_interval():
    before, change, predicted = of_counts(10)
    nothing = 0 * predicted
    errors = ErrorsOfLabels(before, change, nothing, cells_of(10), None)
    low, high = errors.interval(before[0], nothing[0], 100, 0.9)
    assert ((low <= before[0] + change[0]) & (before[0] + change[0] <= high)).mean() > 0.8


def test_means_of_few_cells_are_less_exact():
    n_cells = np.repeat([[20, 20], [500, 500]], 10, axis=0)
    before = log_share(np.tile(RNG.dirichlet(np.full(1000, 0.5)), (20, 1)))
    share = np.expm1(before) / 1e4
    measured = RNG.poisson(share * 1000 * n_cells[:, :1]) / (1000 * n_cells[:, :1])
    change, nothing = log_share(measured) - before, 0 * before
    errors = ErrorsOfLabels(before, change, nothing, n_cells, 1000.0)
    few, many = (errors.expected_rmse(before[0], nothing[0], n)[0] for n in (20, 500))
    assert few / many == pytest.approx(5, rel=0.2)
    (low, high), (low_of_many, high_of_many) = (
        errors.interval(before[0], nothing[0], n, 0.9) for n in (20, 500)
    )
    assert (high - low).mean() > 3 * (high_of_many - low_of_many).mean()
