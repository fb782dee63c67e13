"""Expression data: what ships with the package, and what is simulated."""

from importlib.resources import files

import anndata
import numpy as np
import pandas as pd
import pooch
import pytest
from scipy import sparse

from trvae.datasets import kang18, simulated


def test_kang18():
    adata = kang18()
    assert adata.shape == (12_969, 2000)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert (adata.X.data % 1 == 0).all()
    assert set(adata.obs["condition"].cat.categories) == {"control", "stimulated"}
    assert (adata.obs["n_counts"] >= np.ravel(adata.X.sum(1))).all()
    assert "GSE96583" in adata.uns["source"]
    assert {"ISG15", "IFIT1", "IFI6", "CXCL10"} <= set(adata.var_names)
    for gene, cell_type in {"CD79A": "B", "GNLY": "NK", "CD14": "CD14+Mono"}.items():
        of_type = adata[adata.obs["cell_type"] == cell_type, gene].X.mean()
        assert of_type > 1.5 * adata[:, gene].X.mean()
    assert len((files("trvae.datasets") / "kang18.h5ad").read_bytes()) < 5_000_000


def test_full_data_without_a_network(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(ConnectionError, match=r"no route to host.*Fetch https://.* put it at"):
        kang18(full=True, cache_dir=tmp_path)


def full_data(n_cells=25_000, value=1.0, genes=slice(None), n_conditions=2):
    """Nearly empty cells that have what is known of the full data."""
    genes = kang18().var_names[genes]
    matrix = sparse.csr_matrix(([value], ([0], [0])), (n_cells, len(genes)), dtype=np.float32)
    adata = anndata.AnnData(matrix, var=pd.DataFrame(index=genes))
    adata.obs["label"] = np.resize(["ctrl", "stim", "other"][:n_conditions], n_cells)
    return adata


def test_full_data_from_the_cache(tmp_path):
    full_data().write_h5ad(tmp_path / "kang_2018.h5ad")
    assert kang18(full=True, cache_dir=tmp_path).shape == (25_000, 2_000)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_cells": 120}, "it has 120 cells, not about 25,000"),
        ({"genes": slice(900)}, "it lacks most genes"),
        ({"value": 0.5}, "no raw counts"),
        ({"value": -1.0}, "no raw counts"),
        ({"n_conditions": 3}, "two conditions"),
        (None, "it can't be read"),
    ],
)
def test_another_file_is_not_taken_for_the_full_data(tmp_path, monkeypatch, wrong, message):
    path = tmp_path / "kang_2018.h5ad"

    def retrieve(*_, **__):
        if wrong is None:
            path.write_text("<html>")
        elif not path.exists():
            full_data(**wrong).write_h5ad(path)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(ValueError, match=f"not the full Kang 2018 data.*{message}.*was removed"):
        kang18(full=True, cache_dir=tmp_path)
    assert not path.exists()
    # A file that a user put there stays.
    retrieve()
    with pytest.raises(ValueError, match=f"{message}.*Remove it"):
        kang18(full=True, cache_dir=tmp_path)
    assert path.exists()


def test_simulated_counts_have_the_rates_they_were_drawn_from():
    adata = simulated(n_cells=2000, n_genes=30, inverse_dispersion=3.0)
    counts, rate = adata.X.toarray(), adata.layers["rate"]
    np.testing.assert_allclose(counts.mean(0), rate.mean(0), rtol=0.05)
    # NB: variance given the rate is rate + rate^2 / inverse dispersion.
    expected = (rate + rate**2 / 3.0).mean(0)
    np.testing.assert_allclose(((counts - rate) ** 2).mean(0), expected, rtol=0.2)


def log_shares(adata, **values):
    """Logarithm of the mean shares of the cells with these values in ``obs``."""
    chosen = np.all([adata.obs[key] == value for key, value in values.items()], axis=0)
    rate = adata.layers["rate"][chosen]
    return np.log((rate / rate.sum(1, keepdims=True)).mean(0))


LINEAGES = {"n_cell_types": 5, "n_lineages": 2, "affected_cell_types": [0, 1, 2]}


@pytest.mark.parametrize("settings", [{"conditions": ("a", "b", "c")}, LINEAGES])
def test_simulated_rates_have_the_true_effects(settings):
    adata = simulated(n_cells=10, n_genes=200, **settings)
    first, *others = adata.obs["condition"].cat.categories
    assert (adata.varm[f"effect_{first}"] == 0).all(axis=None)
    for condition in others:
        truth = adata.varm[f"effect_{condition}"]
        assert (truth["type_0"] != 0).sum() == 0.2 * 200
        np.testing.assert_allclose(adata.var[f"effect_{condition}"], truth.mean(axis=1))
        for name in truth:
            after, before = (
                log_shares(adata, cell_type=name, condition=c) for c in (condition, first)
            )
            # Up to the constant by which the shares sum to one.
            change = after - before - np.median(after - before)
            np.testing.assert_allclose(change, truth[name], atol=1e-6)


def test_simulated_lineages_differ_in_profile_and_effect():
    adata = simulated(n_cells=10, n_genes=200, **LINEAGES)
    effect = adata.varm["effect_treated"]
    assert effect["type_0"].equals(effect["type_2"])
    assert not effect["type_0"].equals(effect["type_1"])
    assert (effect[["type_3", "type_4"]] == 0).all(axis=None)
    profiles = [log_shares(adata, cell_type=name, condition="control") for name in effect]
    correlation = np.corrcoef(profiles)
    assert correlation[0, 2] > 0.7 > 0.3 > abs(correlation[0, 1])


def test_simulated_groups_and_batches():
    n_cells = [[30, 5, 0], [4, 50, 20]]
    adata = simulated(n_cells=n_cells, n_batches=2, batch_effect_size=1.0)
    counted = adata.obs.groupby(["condition", "cell_type"], observed=False).size().unstack()
    np.testing.assert_array_equal(counted, n_cells)
    one, other = (
        log_shares(adata, cell_type="type_1", condition="treated", batch=f"batch_{i}")
        for i in range(2)
    )
    assert 0.7 < (one - other).std() < 2


def test_simulation_is_seeded():
    one, again, other = (simulated(seed=seed).X for seed in (1, 1, 2))
    assert (one != again).nnz == 0
    assert (one != other).nnz > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_cells": [1, 2, 3]}, r"n_cells must have the shape \(2, 3\), got \(3,\)"),
        ({"share_affected": 2}, "share_affected must be a number from 0 to 1"),
        ({"n_lineages": 0}, "n_lineages must be a positive integer"),
        ({"mean_library_size": 0}, "mean_library_size must be a positive number"),
        *[
            ({"affected_cell_types": [i]}, rf"must be positions from 0 to 2, got \[{i}\]")
            for i in (-1, 3)
        ],
    ],
)
def test_simulation_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        simulated(**settings)
