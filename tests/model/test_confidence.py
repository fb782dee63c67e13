"""Support and spread: by definition, calibrated, and low where a model has seen nothing."""

import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, assert_unchanged, content, fit
from scipy.spatial.distance import cdist

import trvae
from trvae.counterfactual._support import balanced_sample, support_of_cells

FROM_CONTROL = {"target_condition": "treated", "source_condition": "control"}


def test_samples_are_balanced():
    groups = np.repeat([0, 1, 2], [1000, 50, 5])
    chosen = balanced_sample(groups, 90, np.random.default_rng(0))
    assert np.array_equal(np.bincount(groups[chosen]), [43, 42, 5])
    assert len(np.unique(chosen)) == 90
    everything = balanced_sample(groups, 10_000, np.random.default_rng(0))
    assert np.array_equal(everything, np.arange(1055))


def test_distance_and_support_are_as_defined():
    rng = np.random.default_rng(0)
    z, reference = rng.normal(size=(20, 3)), rng.normal(size=(50, 3))
    distance, support = support_of_cells(z, reference, 4)
    within = np.sort(cdist(reference, reference), axis=1)[:, 1:5].mean(1)
    expected = np.sort(cdist(z, reference), axis=1)[:, :4].mean(1)
    np.testing.assert_allclose(distance, expected / np.median(within))
    np.testing.assert_allclose(support, ((within >= expected[:, None]).sum(1) + 1) / 51)


def test_support_is_a_p_value():
    # Of cells from the distribution of the reference, a share of p has at most p.
    rng = np.random.default_rng(0)
    _, support = support_of_cells(rng.normal(size=(5000, 2)), rng.normal(size=(2000, 2)), 10)
    for p in (0.1, 0.5, 0.9):
        assert (support <= p).mean() == pytest.approx(p, abs=0.03)


def test_few_reference_cells():
    distance, support = support_of_cells(np.zeros((1, 2)), np.array([[0.0, 1.0], [0.0, 2.0]]), 15)
    assert distance == pytest.approx(1.0)
    assert support == pytest.approx(1.0)


def test_cells_that_were_not_seen_have_less_support(held_out):
    model, cells = held_out
    support = model.get_transfer_support(cells, **FROM_CONTROL)
    by_type = support.groupby(cells.obs["cell_type"].reindex(support.index), observed=True)
    by_type = by_type.median()
    assert by_type["distance"].idxmax() == "type_0"
    assert by_type["support"]["type_0"] < 0.05 < by_type["support"].drop("type_0").min()


def test_support_depends_on_the_cell_only(held_out, tmp_path):
    model, cells = held_out
    control = cells[cells.obs["condition"] == "control"].copy()
    expected = model.get_transfer_support(control, "treated")
    again = model.get_transfer_support(control[::-1], "treated", batch_size=7)
    pd.testing.assert_frame_equal(again[::-1], expected, rtol=1e-4)
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(loaded.get_transfer_support(control, "treated"), expected)


def test_assessment_of_groups(held_out):
    model, cells = held_out
    before = content(cells)
    table = model.assess_transfer(cells, **FROM_CONTROL, n_samples=5)
    assert dict(table["n_cells"]) == {f"type_{i}": 100 for i in range(4)}
    assert table["supported"].idxmin() == "type_0"
    assert "extrapolates" in table["summary"]["type_0"]
    assert "close to data" in table["summary"]["type_1"]
    # All types have the same simulated effect, which is far from what a draw of z changes.
    assert (table["change"] > 3 * table["spread"]).all()
    assert (table["spread"] > 0).all()

    # Where nothing is changed, there is no change.
    same = model.assess_transfer(cells, "control", source_condition="control", n_samples=5)
    np.testing.assert_allclose(same["change"], 0, atol=1e-6)
    assert same["summary"].str.contains("less than twice its spread").all()

    grouped = model.assess_transfer(cells, "treated", groupby="condition", n_samples=2)
    assert list(grouped.index) == ["control", "treated"]
    assert_unchanged(cells, before)


@pytest.mark.parametrize("labels_key", ["cell_type", None])
def test_log_normalised_values_and_cells_without_labels(adata, labels_key):
    adata.X = adata.X.log1p()
    model = fit(adata, setup={"labels_key": labels_key}, gene_likelihood="normal")
    table = model.assess_transfer(**FROM_CONTROL)
    assert list(table["n_cells"]) == ([120] if labels_key is None else [40] * 3)
    assert labels_key is not None or list(table.index) == ["all cells"]
    assert np.isfinite(table[["distance", "change", "spread"]]).all(axis=None)


def test_a_query_adds_its_cells(trained, control):
    control.obs["condition"] = "new"
    model = trvae.TRVAE.load_query_data(control, trained)
    model.train(max_epochs=1, **QUIET)
    kept, before = model.reference_cells_, trained.reference_cells_
    n = len(before["z"])
    for name, values in before.items():
        np.testing.assert_array_equal(kept[name][:n], values)
    assert list(kept["condition"][n:]) == [model.conditions.index("new")] * 100


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    [
        ("assess_transfer", "target_condition", "x"),
        ("assess_transfer", "groupby", "x"),
        ("assess_transfer", "n_samples", 1),
        ("assess_transfer", "level", 5),
        ("get_transfer_support", "n_neighbors", 0),
        ("get_transferred_means", "n_samples", 1),
    ],
)
def test_wrong_arguments(trained, method, argument, value):
    with pytest.raises(ValueError, match=f"{argument} .*{value}"):
        getattr(trained, method)(**(FROM_CONTROL | {argument: value}))
