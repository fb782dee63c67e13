"""Cells that become a model's own are matched to its genes by name."""

import numpy as np
import pytest
from helpers import assert_unchanged, content, fit

import trvae


@pytest.fixture
def model(adata):
    return fit(adata)


def test_genes_in_another_order_are_matched(model, adata, tmp_path):
    model.save(tmp_path / "model")
    shuffled = adata[:, ::-1].copy()
    before = content(shuffled)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=shuffled)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert list(loaded.adata.var_names) == list(adata.var_names)
    assert "_scvi_uuid" not in shuffled.uns
    assert_unchanged(shuffled, before)

    shuffled.obs["condition"] = "other"
    mapped = trvae.TRVAE.load_query_data(shuffled, model)
    assert mapped.conditions == ["control", "treated", "other"]
    np.testing.assert_array_equal(mapped.adata.X.toarray(), adata.X.toarray())


def test_missing_genes_are_an_error_unless_they_are_filled_in(model, adata, tmp_path):
    model.save(tmp_path / "model")
    lacking = adata[:, :0:-1].copy()
    for give in (
        lambda: trvae.TRVAE.load(tmp_path / "model", adata=lacking),
        lambda: trvae.TRVAE.load_query_data(lacking, model),
    ):
        with pytest.raises(ValueError, match="1 of the model's 60 genes .*gene_0"):
            give()
    trvae.TRVAE.prepare_query_anndata(lacking, model)
    mapped = trvae.TRVAE.load_query_data(lacking, model)
    filled = adata.copy()
    filled.X = filled.X.toarray()
    filled.X[:, 0] = 0
    np.testing.assert_allclose(
        mapped.get_latent_representation(), model.get_latent_representation(filled), atol=1e-6
    )
