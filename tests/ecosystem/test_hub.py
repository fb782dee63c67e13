"""Models on scvi-tools' hub load as they were saved."""

import json

import anndata
import mudata
import numpy as np
import pytest
from helpers import QUIET, SMALL, dense, fit
from huggingface_hub import ModelCard
from scvi.hub import HubMetadata, HubModel

import trvae

CARD = "---\nlibrary_name: scvi-tools\nlicense: cc-by-4.0\n---\nPBMCs under interferon-beta."


def on_the_hub(model, folder, **kwargs):
    """Save a model with the hub's card and metadata, and return it as the hub has it."""
    model.save(folder, **kwargs)
    metadata = HubMetadata.from_dir(
        str(folder), anndata_version=anndata.__version__, model_parent_module="trvae"
    )
    HubModel(str(folder), metadata=metadata, model_card=ModelCard(CARD)).save()
    return HubModel(str(folder))


@pytest.mark.parametrize("cells", ["full", "minified", "none"])
def test_a_hub_model_loads_as_saved(adata, tmp_path, cells):
    model = fit(adata)
    z = model.get_latent_representation()
    if cells == "minified":
        model.adata.obsm["X_latent_qzm"], model.adata.obsm["X_latent_qzv"] = (
            model.get_latent_representation(return_dist=True)
        )
        model.minify_adata()
    expected = dense(model.transfer(adata, "treated").X)
    hub_model = on_the_hub(model, tmp_path / "model", save_anndata=cells != "none")
    assert json.loads((tmp_path / "model/_scvi_required_metadata.json").read_text()) == {
        "scvi_version": model.registry["scvi_version"],
        "anndata_version": anndata.__version__,
        "model_cls_name": "TRVAE",
        "training_data_url": None,
        "model_parent_module": "trvae",
    }
    assert "interferon" in hub_model.model_card.content
    if cells == "none":
        hub_model.load_model(adata=adata)
    loaded = hub_model.model
    assert isinstance(loaded, trvae.TRVAE)
    np.testing.assert_allclose(loaded.get_latent_representation(), z, atol=1e-6)
    np.testing.assert_array_equal(dense(loaded.transfer(adata, "treated").X), expected)
    assert (loaded.minified_data_type is not None) == (cells == "minified")


def test_a_hub_model_of_mudata(adata, tmp_path):
    mdata = mudata.MuData({"rna": adata})
    trvae.TRVAE.setup_mudata(mdata, condition_key="condition", modalities={"condition_key": "rna"})
    model = trvae.TRVAE(mdata, seed=0, **SMALL)
    model.train(max_epochs=1, **QUIET)
    loaded = on_the_hub(model, tmp_path / "model", save_anndata=True).model
    assert isinstance(loaded.adata, mudata.MuData)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-6
    )
