"""Transfer into one batch removes the batch effect of simulated cells, and nothing else."""

import numpy as np
import pytest
from helpers import LONG, fit
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import trvae

COLUMNS = {"batch", "condition", "cell_type"}


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
        "measured": trvae.metrics.log_normalized(cells, target_sum=500.0),
        "transferred": trvae.metrics.log_normalized(
            model.transfer(cells, "batch_0"), target_sum=500.0
        ),
        "normalized": np.log1p(500 * normalized.to_numpy()),
    }


def difference(values, cells, key):
    """Root mean square, over genes, of how the two values of a column differ, all else alike."""
    groups = cells.obs.groupby(list(COLUMNS - {key}), observed=True).indices.values()
    column = (cells.obs[key] == cells.obs[key].iloc[0]).to_numpy()
    differences = [
        values[rows][column[rows]].mean(0) - values[rows][~column[rows]].mean(0) for rows in groups
    ]
    return np.sqrt(np.mean(np.square(differences)))


def share_of_other_batch(values, cells):
    """Share of each cell's nearest neighbours that are from the other batch."""
    z = PCA(5, random_state=0).fit_transform(values)
    neighbours = NearestNeighbors(n_neighbors=15).fit(z).kneighbors(return_distance=False)
    batch = cells.obs["batch"].to_numpy()
    return (batch[neighbours] != batch[:, None]).mean()


@pytest.mark.parametrize(("estimate", "left"), [("transferred", 0.25), ("normalized", 0.02)])
def test_batches_are_alike_and_all_else_stays(cells, corrected, estimate, left):
    before, after = corrected["measured"], corrected[estimate]
    kept = {key: difference(after, cells, key) / difference(before, cells, key) for key in COLUMNS}
    assert kept["batch"] < left
    assert 0.9 < kept["cell_type"] < 1.1
    assert 0.9 < kept["condition"] < 1.1
    assert share_of_other_batch(before, cells) < 0.01
    assert share_of_other_batch(after, cells) > 0.4
