import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from helpers import fit

import trvae


def test_is_what_scanpy_ranks(trained, control):
    table = trained.rank_transferred_genes(control, "treated", seed=1)
    transferred = trained.transfer(control, "treated", seed=1)
    both = ad.concat(
        {"reference": control, "transferred": transferred}, label="side", index_unique="-"
    )
    sc.pp.normalize_total(both, target_sum=float(np.median(control.X.sum(1).A1)))
    sc.pp.log1p(both)
    sc.tl.rank_genes_groups(
        both, "side", groups=["transferred"], reference="reference", method="wilcoxon"
    )
    expected = sc.get.rank_genes_groups_df(both, "transferred")
    assert list(table.columns) == ["group", *expected.columns]
    assert (table["group"] == "type_0").all()
    np.testing.assert_allclose(
        table.set_index("names")["scores"],
        expected.set_index("names")["scores"].reindex(table["names"]),
        atol=0.01,  # ties come and go with rounding
    )


def test_finds_the_genes_that_respond(trained, control):
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    table = trained.rank_transferred_genes(cells, "treated", source_condition="control")
    assert list(table["group"].unique()) == ["type_0", "type_1", "type_2"]
    assert table["group"].value_counts().eq(60).all()
    rises = cells.var_names[cells.var["effect_treated"] > 1]
    for _, ranked in table.groupby("group"):
        # Of weakly expressed genes, a rise is hard to see.
        assert ranked["names"][: len(rises)].isin(rises).mean() > 0.8


def test_against_measured_cells(trained):
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    treated = cells[cells.obs["condition"] == "treated"].copy()
    kwargs = {"source_condition": "control"}
    response = trained.rank_transferred_genes(cells, "treated", **kwargs)
    missed = trained.rank_transferred_genes(cells, "treated", reference=treated, **kwargs)
    assert missed["scores"].abs().mean() < 0.5 * response["scores"].abs().mean()


def test_layer_groups_and_log_normalised_values(adata):
    adata.layers["counts"] = adata.X
    adata.X = None
    model = fit(adata, setup={"layer": "counts", "labels_key": None})
    table = model.rank_transferred_genes(target_condition="treated", source_condition="control")
    assert (table["group"] == "all cells").all()
    by_type = model.rank_transferred_genes(
        target_condition="treated", groupby="cell_type", method="t-test"
    )
    assert by_type["group"].nunique() == 3

    adata.X = adata.layers["counts"].log1p()
    values = fit(adata, gene_likelihood="normal")
    same = values.rank_transferred_genes(target_condition="control", source_condition="control")
    np.testing.assert_allclose(same["logfoldchanges"], 0, atol=1e-5)


def test_wrong_arguments(trained, control):
    with pytest.raises(ValueError, match="reference lacks transferred genes: 'gene_0'"):
        trained.rank_transferred_genes(control, "treated", reference=control[:, 1:])
    with pytest.raises(ValueError, match="groupby 'x' is not in adata.obs"):
        trained.rank_transferred_genes(control, "treated", groupby="x")
    with pytest.raises(ValueError, match="no group has 2 cells"):
        trained.rank_transferred_genes(control[:1], "treated")
