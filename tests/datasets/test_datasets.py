import os
from importlib.resources import files

import numpy as np
import pytest
from scipy import sparse

import trvae


def test_kang18():
    adata = trvae.datasets.kang18()
    assert adata.n_vars == 2000
    assert 12_500 < adata.n_obs < 14_000
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert (adata.X.data % 1 == 0).all()
    assert set(adata.obs["condition"].cat.categories) == {"control", "stimulated"}
    assert "NK" in adata.obs["cell_type"].cat.categories
    assert (adata.obs["n_counts"] >= np.asarray(adata.X.sum(1)).ravel()).all()
    assert "GSE96583" in adata.uns["source"]
    assert {"ISG15", "IFIT1", "IFI6", "CXCL10", "NKG7"} <= set(adata.var_names)


def test_kang18_is_small():
    assert os.path.getsize(str(files("trvae.datasets") / "kang18.h5ad")) < 5_000_000


def test_kang18_labels_agree_with_markers():
    adata = trvae.datasets.kang18()
    share = {
        gene: adata[adata.obs["cell_type"] == cell_type, gene].X.mean() / adata[:, gene].X.mean()
        for gene, cell_type in {"CD79A": "B", "GNLY": "NK", "CD14": "CD14+Mono"}.items()
    }
    assert min(share.values()) > 1.5


def test_full_data_without_a_network(tmp_path, monkeypatch):
    import pooch

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(ConnectionError, match=r"no route to host.*Fetch https://.* put it at"):
        trvae.datasets.kang18(full=True, cache_dir=tmp_path)


def test_full_data_from_the_cache(tmp_path, adata):
    adata.write_h5ad(tmp_path / "kang_2018.h5ad")
    assert trvae.datasets.kang18(full=True, cache_dir=tmp_path).shape == adata.shape


def test_simulated_counts_have_the_rates_they_were_drawn_from():
    adata = trvae.datasets.simulated(n_cells=2000, n_genes=30, inverse_dispersion=3.0)
    counts, rate = adata.X.toarray(), adata.layers["rate"]
    np.testing.assert_allclose(counts.mean(0), rate.mean(0), rtol=0.05)
    # NB: variance given the rate is rate + rate^2 / inverse dispersion.
    expected = (rate + rate**2 / 3.0).mean(0)
    np.testing.assert_allclose(((counts - rate) ** 2).mean(0), expected, rtol=0.2)


def test_simulated_effect_is_the_one_that_is_told():
    adata = trvae.datasets.simulated(n_cells=10, n_genes=50, conditions=("a", "b", "c"))
    assert (adata.var["effect_a"] == 0).all()
    share = adata.layers["rate"] / adata.layers["rate"].sum(1, keepdims=True)
    of_type = (adata.obs["cell_type"] == "type_1").to_numpy()
    mean = {c: share[of_type & (adata.obs["condition"] == c)].mean(0) for c in "abc"}
    for c in "bc":
        change = np.log(mean[c] / mean["a"])
        told = adata.var[f"effect_{c}"].to_numpy()
        assert (told != 0).sum() == 10
        # Up to the constant by which the shares sum to one.
        np.testing.assert_allclose(change - change[told == 0].mean(), told, atol=1e-6)


def log_share_changes(adata, of, than):
    """Log change of the mean shares between two groups of cells, up to a constant."""
    share = adata.layers["rate"] / adata.layers["rate"].sum(1, keepdims=True)
    change = np.log(share[np.asarray(of)].mean(0) / share[np.asarray(than)].mean(0))
    return change - np.median(change)


def test_simulated_lineages_respond_each_in_its_own_way():
    adata = trvae.datasets.simulated(
        n_cells=10, n_genes=200, n_cell_types=5, n_lineages=2, affected_cell_types=[0, 1, 2]
    )
    treated = adata.obs["condition"] == "treated"
    told = adata.varm["effect_treated"]
    for name in told:
        of_type = adata.obs["cell_type"] == name
        change = log_share_changes(adata, of_type & treated, of_type & ~treated)
        np.testing.assert_allclose(change, told[name], atol=1e-6)
    assert told["type_0"].equals(told["type_2"])
    assert not told["type_0"].equals(told["type_1"])
    assert (told[["type_3", "type_4"]] == 0).all(axis=None)
    np.testing.assert_allclose(adata.var["effect_treated"], told.mean(axis=1))
    profile = {
        name: adata.layers["rate"][(adata.obs["cell_type"] == name) & ~treated].mean(0)
        for name in told
    }
    log = np.log(list(profile.values()))
    correlation = np.corrcoef(log)
    assert correlation[0, 2] > 0.7 > 0.3 > abs(correlation[0, 1])


def test_simulated_groups_and_batches():
    n_cells = [[30, 5, 0], [4, 50, 20]]
    adata = trvae.datasets.simulated(n_cells=n_cells, n_batches=2, batch_effect_size=1.0)
    counted = adata.obs.groupby(["condition", "cell_type"], observed=False).size().unstack()
    np.testing.assert_array_equal(counted, n_cells)
    of_type = adata.obs["cell_type"] == "type_1"
    second = adata.obs["batch"] == "batch_1"
    assert 0.7 < log_share_changes(adata, of_type & second, of_type & ~second).std() < 2
    with pytest.raises(ValueError, match=r"n_cells has the shape .3,., not .2, 3."):
        trvae.datasets.simulated(n_cells=[1, 2, 3])


def test_simulation_is_seeded():
    one, again = (trvae.datasets.simulated(seed=s) for s in (1, 1))
    assert (one.X != again.X).nnz == 0
    assert (one.X != trvae.datasets.simulated(seed=2).X).nnz > 0
