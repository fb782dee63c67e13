import numpy as np
import pandas as pd
import pytest
from helpers import LONG, fit
from scipy.spatial.distance import cdist

import trvae
from trvae.counterfactual._support import balanced_sample, support_of_cells


def test_samples_are_balanced():
    groups = np.repeat([0, 1, 2], [1000, 50, 5])
    chosen = balanced_sample(groups, 90, np.random.default_rng(0))
    assert np.array_equal(np.bincount(groups[chosen]), [43, 42, 5])
    assert len(np.unique(chosen)) == 90
    assert np.array_equal(
        balanced_sample(groups, 10_000, np.random.default_rng(0)), np.arange(1055)
    )


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


@pytest.fixture(scope="module")
def without_treated_type_0():
    """A model that has not seen type 0 under treatment, and all cells."""
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    held_out = (cells.obs["cell_type"] == "type_0") & (cells.obs["condition"] == "treated")
    return fit(cells[~held_out], train=LONG), cells


def test_cells_that_were_not_seen_have_less_support(without_treated_type_0):
    model, cells = without_treated_type_0
    support = model.get_transfer_support(cells, "treated", source_condition="control")
    by_type = support.groupby(cells.obs["cell_type"].reindex(support.index), observed=True)
    by_type = by_type.median()
    assert by_type["distance"].idxmax() == "type_0"
    assert by_type["support"].idxmin() == "type_0"
    assert by_type["support"]["type_0"] < 0.1 < by_type["support"].drop("type_0").min()


def test_support_depends_on_the_cell_only(without_treated_type_0, tmp_path):
    model, cells = without_treated_type_0
    control = cells[cells.obs["condition"] == "control"].copy()
    expected = model.get_transfer_support(control, "treated")
    again = model.get_transfer_support(control[::-1], "treated", batch_size=7)
    pd.testing.assert_frame_equal(again[::-1], expected, rtol=1e-4)
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(loaded.get_transfer_support(control, "treated"), expected)


def test_assessment_of_groups(without_treated_type_0):
    model, cells = without_treated_type_0
    before = cells.copy()
    table = model.assess_transfer(cells, "treated", source_condition="control", n_samples=5)
    assert list(table.index) == ["type_0", "type_1", "type_2"]
    assert (table["n_cells"] == 100).all()
    assert table["supported"].idxmin() == "type_0"
    assert "extrapolates" in table["summary"]["type_0"]
    assert "close to data" in table["summary"]["type_1"]
    # All types have the same simulated effect, which is far from what a draw of z changes.
    assert (table["change"] > 3 * table["spread"]).all()
    assert (table["spread"] > 0).all()
    pd.testing.assert_frame_equal(cells.obs, before.obs)

    # Where nothing is changed, there is no change.
    same = model.assess_transfer(cells, "control", source_condition="control", n_samples=5)
    np.testing.assert_allclose(same["change"], 0, atol=1e-6)
    assert same["summary"].str.contains("less than twice its spread").all()

    grouped = model.assess_transfer(cells, "treated", groupby="condition", n_samples=2)
    assert list(grouped.index) == ["control", "treated"]


def test_log_normalised_values(adata):
    values = adata.copy()
    values.X = values.X.log1p()
    model = fit(values, gene_likelihood="normal")
    table = model.assess_transfer(target_condition="treated", source_condition="control")
    np.testing.assert_array_equal(table["n_cells"], 40)
    assert np.isfinite(table[["distance", "change", "spread"]]).all(axis=None)


def test_without_labels(adata):
    model = fit(adata, setup={"labels_key": None})
    table = model.assess_transfer(target_condition="treated", source_condition="control")
    assert list(table.index) == ["all cells"]
    assert table["n_cells"].item() == 120


def test_query_adds_its_cells(trained, control):
    query = control.copy()
    query.obs["condition"] = pd.Categorical(["new"] * query.n_obs)
    model = trvae.TRVAE.load_query_data(query, trained)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    kept, before = model.reference_cells_, trained.reference_cells_
    n = len(before["z"])
    for name, values in before.items():
        np.testing.assert_array_equal(kept[name][:n], values)
    assert (kept["condition"][n:] == model.conditions.index("new")).all()
    assert len(kept["condition"]) == n + 100


def test_wrong_arguments(trained, control):
    with pytest.raises(ValueError, match="target_condition 'x' is not one of .* 'control'"):
        trained.assess_transfer(control, "x")
    with pytest.raises(ValueError, match="groupby 'x' is not in adata.obs: 'condition'"):
        trained.assess_transfer(control, "treated", groupby="x")
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 2"):
        trained.assess_transfer(control, "treated", n_samples=1)
    with pytest.raises(ValueError, match="level must be a number between 0 and 1"):
        trained.assess_transfer(control, "treated", level=5)
    with pytest.raises(ValueError, match="n_neighbors must be a positive integer"):
        trained.get_transfer_support(control, "treated", n_neighbors=0)
