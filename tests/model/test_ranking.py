"""Ranked genes: as scanpy ranks them, and those of the simulated effect first."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from helpers import fit

import trvae

FROM_CONTROL = {"target_condition": "treated", "source_condition": "control"}


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
    scores = expected.set_index("names")["scores"].reindex(table["names"])
    # Ties come and go with rounding.
    np.testing.assert_allclose(table["scores"], scores, atol=0.01)


def test_finds_the_genes_that_respond_and_what_is_missed(trained):
    cells = trvae.datasets.simulated(n_cells=100, n_genes=60)
    response = trained.rank_transferred_genes(cells, **FROM_CONTROL)
    assert list(response["group"].unique()) == ["type_0", "type_1", "type_2"]
    rises = cells.var_names[cells.var["effect_treated"] > 1]
    for _, ranked in response.groupby("group"):
        assert len(ranked) == 60
        # Of weakly expressed genes, a rise is hard to see.
        assert ranked["names"][: len(rises)].isin(rises).mean() > 0.8
    treated = cells[cells.obs["condition"] == "treated"].copy()
    missed = trained.rank_transferred_genes(cells, **FROM_CONTROL, reference=treated)
    assert missed["scores"].abs().mean() < 0.5 * response["scores"].abs().mean()


def test_layers_groups_and_library_sizes(adata):
    adata.layers["counts"] = adata.X
    adata.X = None
    adata.obs["total"] = 2 * np.ravel(adata.layers["counts"].sum(1)) + 1
    setup = {"layer": "counts", "labels_key": None, "library_key": "total"}
    model = fit(adata, setup=setup)
    by_group = {None: ["all cells"], "cell_type": ["type_0", "type_1", "type_2"]}
    for groupby, expected in by_group.items():
        table = model.rank_transferred_genes(**FROM_CONTROL, groupby=groupby, method="t-test")
        assert list(table["group"].unique()) == expected
    # Without the library sizes of these cells, their counts are summed.
    del adata.obs["total"]
    assert len(model.rank_transferred_genes(adata, **FROM_CONTROL)) == 60


def test_fold_changes_undo_the_base_of_the_logarithm(adata):
    sc.pp.normalize_total(adata)
    changes = []
    for base in (None, 2):
        cells = sc.pp.log1p(adata, base=base, copy=True)
        model = fit(cells, gene_likelihood="normal")
        # The same cells, so that only the base differs.
        treated = cells[cells.obs["condition"] == "treated"].copy()
        table = model.rank_transferred_genes(
            treated, "treated", reference=cells[cells.obs["condition"] == "control"].copy()
        )
        changes.append(table.set_index(["group", "names"])["logfoldchanges"].sort_index())
    np.testing.assert_allclose(changes[1], changes[0], rtol=1e-3, atol=1e-3)


def test_the_own_condition_changes_no_log_normalised_value(adata):
    adata.X = adata.X.log1p()
    model = fit(adata, gene_likelihood="normal")
    same = model.rank_transferred_genes(target_condition="control", source_condition="control")
    np.testing.assert_allclose(same["logfoldchanges"], 0, atol=1e-5)


def test_cells_without_labels_are_one_group(trained, control):
    some = control.copy()
    some.obs["cell_type"] = some.obs["cell_type"].cat.add_categories("none")
    some.obs.iloc[:9, some.obs.columns.get_loc("cell_type")] = None
    groups = trained.rank_transferred_genes(some, "treated")["group"]
    assert set(groups) == {"type_0", "unlabelled"}
    del some.obs["cell_type"]
    groups = trained.rank_transferred_genes(some, "treated")["group"]
    assert set(groups) == {"all cells"}
    groups = trained.rank_transferred_genes(control, "treated", reference=some)["group"]
    assert set(groups) == {"all cells"}
    for name in ("copy", "groups", "key_added"):
        with pytest.raises(TypeError, match=f"no argument '{name}'"):
            trained.rank_transferred_genes(control, "treated", **{name: "x"})


def test_groups_of_cells_that_are_not_selected_do_not_matter(trained, control):
    everything = trained.adata.copy()
    everything.obs["cluster"] = everything.obs["condition"].map({"control": "a"}).astype(object)
    table = trained.rank_transferred_genes(
        everything, "treated", source_condition="control", groupby="cluster"
    )
    assert set(table["group"]) == {"a"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cells: {"adata": cells[:1]}, "no group has 2 cells"),
        (lambda cells: {"target_condition": ["treated", "control"]}, "is not one of"),
        (
            lambda cells: {"reference": cells[:, [0, *range(cells.n_vars)]]},
            "reference.var_names are not unique: 'gene_0'",
        ),
        (lambda cells: {"reference": cells[:, 1:]}, "lacks transferred genes: 'gene_0'"),
        (lambda cells: {"groupby": "x"}, "groupby 'x' is not in adata.obs"),
    ],
)
def test_wrong_arguments(trained, control, change, words):
    arguments = {"adata": control, "target_condition": "treated"} | change(control)
    with pytest.raises(ValueError, match=words):
        trained.rank_transferred_genes(**arguments)
