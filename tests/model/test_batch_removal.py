import numpy as np
import pytest
from helpers import LONG, fit
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import trvae


@pytest.fixture(scope="module")
def cells():
    return trvae.datasets.simulated(
        n_cells=100, n_genes=60, n_cell_types=2, n_batches=2, batch_effect_size=0.5
    )


@pytest.fixture(scope="module")
def corrected(cells):
    """Values of the cells as measured, and as all in one batch: drawn, and normalised."""
    setup = {"condition_key": "batch", "categorical_covariate_keys": ["condition"]}
    model = fit(cells, setup=setup, train=LONG)
    normalized = model.get_normalized_expression(cells, transform_batch="batch_0")
    return {
        "measured": values_of(cells),
        "transferred": values_of(model.transfer(cells, "batch_0")),
        "normalized": np.log1p(500 * normalized.to_numpy()),
    }


def values_of(cells):
    return trvae.metrics.log_normalized(cells, target_sum=500.0)


def difference(values, cells, key, *within):
    """Root mean square, over genes, of how the two values of a column differ within groups."""
    groups = cells.obs.groupby(list(within), observed=True).indices.values()
    column = (cells.obs[key] == cells.obs[key].iloc[0]).to_numpy()
    differences = [
        values[rows][column[rows]].mean(0) - values[rows][~column[rows]].mean(0) for rows in groups
    ]
    return np.sqrt(np.mean(np.square(differences)))


COLUMNS = {"batch", "condition", "cell_type"}


@pytest.mark.parametrize("estimate", ["transferred", "normalized"])
def test_batches_are_alike_and_all_else_stays(cells, corrected, estimate):
    before, after = corrected["measured"], corrected[estimate]

    def kept(key):
        within = COLUMNS - {key}
        return difference(after, cells, key, *within) / difference(before, cells, key, *within)

    assert kept("batch") < {"transferred": 0.25, "normalized": 0.02}[estimate]
    assert 0.9 < kept("cell_type") < 1.1
    assert 0.9 < kept("condition") < 1.1


@pytest.mark.parametrize("estimate", ["transferred", "normalized"])
def test_neighbours_are_of_both_batches(cells, corrected, estimate):
    def share_of_other_batch(values):
        z = PCA(5, random_state=0).fit_transform(values)
        neighbours = NearestNeighbors(n_neighbors=15).fit(z).kneighbors(return_distance=False)
        batch = cells.obs["batch"].to_numpy()
        return (batch[neighbours] != batch[:, None]).mean()

    assert share_of_other_batch(corrected["measured"]) < 0.01
    assert share_of_other_batch(corrected[estimate]) > 0.4
