"""Support: by definition, and low where a model has seen nothing. Errors: as large as expected."""

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
    pd.testing.assert_frame_equal(again[["distance"]][::-1], expected[["distance"]], rtol=1e-4)
    # One of 300 training cells can be as far.
    np.testing.assert_allclose(again["support"][::-1], expected["support"], atol=1.5 / 300)
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(loaded.get_transfer_support(control, "treated"), expected)


def test_assessment_of_groups(held_out):
    model, cells = held_out
    before = content(cells)
    table = model.assess_transfer(cells, **FROM_CONTROL)
    assert dict(table["n_cells"]) == {f"type_{i}": 100 for i in range(4)}
    assert table["supported"].idxmin() == "type_0"
    assert (table["error_low"] < table["error"]).all()
    assert (table["error"] < table["error_high"]).all()
    # All types have the same simulated effect.
    assert (table["error_high"] < table["change"]).all()
    assert table["summary"].str.startswith("type_").sum() == 3
    assert table["summary"].str.contains("Not calibrated.* expect an error of the linear").all()
    for _, row in table.iterrows():
        assert f"{row['error'] / row['change']:.0%} of the change" in row["summary"]
    assert "was measured under treated" in table["summary"]["type_1"]

    # Where nothing is changed, there is no change.
    same = model.assess_transfer(cells, "control", source_condition="control")
    np.testing.assert_allclose(same["change"], 0, atol=1e-6)
    assert same["summary"].str.contains("nothing is predicted").all()
    mixed = model.assess_transfer(cells, "treated")
    assert mixed["summary"]["type_1"].startswith("type_1: the cells are of several conditions")
    assert np.isnan(mixed.loc["type_1", "error"])

    grouped = model.assess_transfer(cells, "treated", groupby="condition")
    assert list(grouped.index) == ["control", "treated"]
    assert_unchanged(cells, before)


def test_the_expected_error_is_that_of_the_held_out_cells(held_out):
    model, cells = held_out
    is_type = (cells.obs["cell_type"] == "type_0").to_numpy()
    is_control = (cells.obs["condition"] == "control").to_numpy()
    control, observed = cells[is_type & is_control].copy(), cells[is_type & ~is_control]
    row = model.assess_transfer(control, "treated").loc["type_0"]
    size = np.median(control.X.sum(1).A1)
    predicted = model.get_transferred_expression(control, "treated").to_numpy()
    predicted, observed = (
        np.log1p(size * (x / x.sum(1, keepdims=True)).mean(0))
        for x in (predicted, observed.X.toarray())
    )
    error = np.sqrt(np.square(predicted - observed).mean())
    assert row["error_low"] / 1.5 < error < row["error_high"] * 1.5


def test_few_labels_and_unknown_ones_are_named(adata, held_out):
    model, cells = held_out
    strange = cells[cells.obs["condition"] == "control"].copy()
    strange.obs["cell_type"] = "unknown"
    (summary,) = model.assess_transfer(strange, "treated")["summary"]
    assert summary.startswith("unknown is not a label of the training cells.")
    strange.X = strange.X.multiply(np.arange(60) < 3).tocsr() * 20
    (summary,) = model.assess_transfer(strange, "treated")["summary"]
    assert "times as far from these labels as they are from each other" in summary
    few = fit(adata[~adata.obs["cell_type"].eq("type_0") | adata.obs["condition"].eq("control")])
    table = few.assess_transfer(**FROM_CONTROL)
    assert (
        table["summary"].str.contains("2 labels were measured .* too few .* Hold out each").all()
    )
    assert table["error"].isna().all()
    one = fit(adata[adata.obs["cell_type"].eq("type_1") | adata.obs["condition"].eq("control")])
    summaries = one.assess_transfer(**FROM_CONTROL)["summary"]
    assert summaries.str.endswith("too few to say how large the error will be.").all()
    assert "1 label was measured" in summaries["type_0"]
    (summary,) = fit(adata, setup={"labels_key": None}).assess_transfer(**FROM_CONTROL)["summary"]
    assert summary == (
        "all cells: without labels (labels_key), it is not known how large the error will be."
    )


@pytest.mark.parametrize("labels_key", ["cell_type", None])
def test_log_normalised_values_and_cells_without_labels(adata, labels_key):
    adata.X = adata.X.log1p()
    model = fit(adata, setup={"labels_key": labels_key}, gene_likelihood="normal")
    table = model.assess_transfer(**FROM_CONTROL)
    assert list(table["n_cells"]) == ([120] if labels_key is None else [40] * 3)
    assert labels_key is not None or list(table.index) == ["all cells"]
    assert np.isfinite(table[["distance", "change"]]).all(axis=None)
    assert table["error"].notna().all() == (labels_key is not None)


def test_a_change_from_a_condition_that_the_last_training_lacked(tmp_path):
    cells = trvae.datasets.simulated(
        n_cells=20, n_genes=30, conditions=("control", "treated", "other")
    )
    is_other = cells.obs["condition"] == "other"
    fit(cells, train={"max_epochs": 1}).save(tmp_path / "model")
    model = trvae.TRVAE.load(tmp_path / "model", cells[~is_other].copy())
    model.train(max_epochs=1, **QUIET)
    table = model.assess_transfer(cells[is_other], "control")
    assert table["change"].notna().all()


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
        ("assess_transfer", "level", 5),
        ("get_transfer_support", "n_neighbors", 0),
        ("get_transferred_means", "level", 1),
    ],
)
def test_wrong_arguments(trained, method, argument, value):
    with pytest.raises(ValueError, match=f"{argument} .*{value}"):
        getattr(trained, method)(**(FROM_CONTROL | {argument: value}))
