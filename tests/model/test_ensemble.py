"""Ensembles: models of successive seeds, averaged, drawn from in turn, and saved together."""

import copy
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL, assert_unchanged, content, dense, fit

import trvae

EXPRESSION = {"target_condition": "treated", "return_numpy": True}


def with_models(ensemble, models):
    other = copy.copy(ensemble)
    other.models = models
    return other


@pytest.fixture(scope="module")
def ensemble():
    cells = trvae.datasets.simulated(n_cells=40, n_genes=60)
    trvae.TRVAE.setup_anndata(cells, condition_key="condition", labels_key="cell_type")
    ensemble = trvae.TRVAEEnsemble(cells, n_models=3, seed=5, **SMALL)
    ensemble.train(max_epochs=5, **QUIET)
    return ensemble


def test_models_are_those_of_their_seeds(ensemble, adata):
    assert [model.seed for model in ensemble.models] == [5, 6, 7]
    alone = fit(adata, seed=6, train={"max_epochs": 5})
    np.testing.assert_array_equal(
        alone.get_transferred_expression(adata, **EXPRESSION),
        ensemble.models[1].get_transferred_expression(adata, **EXPRESSION),
    )


@pytest.mark.parametrize("given", ["its own cells", "other cells"])
def test_expectations_are_averaged(ensemble, adata, given):
    cells = None if given == "its own cells" else adata[::3].copy()
    kwargs = EXPRESSION | {"estimate": "decoded"}
    each = [model.get_transferred_expression(cells, **kwargs) for model in ensemble.models]
    together = ensemble.get_transferred_expression(cells, **kwargs)
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=1e-5)


def test_counterfactuals_are_made_of_averaged_decoded_means(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    settings = SMALL | {"linear_weight": 0.0, "response_limit": None}
    ensemble = trvae.TRVAEEnsemble(adata, n_models=2, **settings)
    ensemble.train(max_epochs=2, **QUIET)
    control = adata[adata.obs["condition"] == "control"].copy()
    together = ensemble.get_transferred_expression(control, **EXPRESSION)
    decoded = {"estimate": "decoded", "return_numpy": True}
    before, after = (
        ensemble.get_transferred_expression(control, condition, **decoded)
        for condition in ("control", "treated")
    )
    expected = dense(control.X) * np.minimum(after / before, 1) + np.maximum(after - before, 0)
    np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out", [None, "p.h5ad"])
def test_every_model_must_be_trained(ensemble, adata, tmp_path, out):
    untrained = trvae.TRVAE(ensemble.adata, **SMALL)
    half = with_models(ensemble, [*ensemble.models[:2], untrained])
    with pytest.raises(RuntimeError, match="train"):
        half.transfer(adata, "treated", out=out and tmp_path / out)
    assert list(tmp_path.iterdir()) == []
    for ask in (half.get_transferred_expression, half.assess_transfer):
        with pytest.raises(RuntimeError, match="train"):
            ask(adata, "treated")


def test_transfer_draws_around_the_expectation(ensemble, adata):
    before = content(adata)
    expected = ensemble.get_transferred_expression(adata, **EXPRESSION)
    draws = [dense(ensemble.transfer(adata, "treated", seed=seed).X) for seed in range(10)]
    np.testing.assert_allclose(np.mean(draws, (0, 1)), expected.mean(0), rtol=0.1, atol=0.1)
    backwards = ensemble.transfer(adata[::-1], "treated", seed=0)
    np.testing.assert_array_equal(dense(backwards.X)[::-1], draws[0])
    assert_unchanged(adata, before)


def test_draws_are_of_one_model_after_the_other(ensemble, adata):
    kwargs = EXPRESSION | {"n_samples": 4, "return_mean": False, "seed": 3}
    draws = ensemble.get_transferred_expression(adata, **kwargs)
    for i, draw in enumerate(draws):
        alone = ensemble.models[i % 3].get_transferred_expression(adata, **kwargs)
        np.testing.assert_array_equal(draw, alone[i])


@pytest.mark.parametrize(
    "method",
    ["transfer", "rank_transferred_genes", "assess_transfer", "get_transfer_support"],
)
def test_one_model_is_that_model(ensemble, method):
    model = ensemble.models[0]
    ours, theirs = (
        getattr(one, method)(None, "treated") for one in (with_models(ensemble, [model]), model)
    )
    if method == "transfer":
        ours, theirs = ours.to_df(), theirs.to_df()
    pd.testing.assert_frame_equal(ours, theirs)


def test_what_models_share_is_the_ensembles(ensemble):
    first = ensemble.models[0]
    assert ensemble.adata is first.adata
    assert ensemble.module is first.module
    for name in ("conditions", "registry", "summary_stats"):
        assert getattr(ensemble, name) == getattr(first, name), name
    assert ensemble.get_anndata_manager(first.adata) is first.adata_manager
    assert repr(ensemble).startswith("TRVAEEnsemble of 3 models")
    with pytest.raises(AttributeError, match="no attribute 'get_latent_representation'"):
        ensemble.get_latent_representation()


# ------------------------------------------------------------------------------- saved


def test_a_saved_ensemble_predicts_as_before(ensemble, adata, tmp_path):
    expected = dense(ensemble.transfer(adata, "treated").X)
    ensemble.save(tmp_path / "ensemble")
    loaded = trvae.TRVAEEnsemble.load(tmp_path / "ensemble", adata=False)
    assert len(loaded.models) == 3
    np.testing.assert_array_equal(dense(loaded.transfer(adata, "treated").X), expected)
    out = tmp_path / "out.zarr"
    loaded.transfer(adata, "treated", out=out, chunk_size=50, progress_bar=False)
    np.testing.assert_array_equal(dense(anndata.read_zarr(out).X), expected)


@pytest.mark.parametrize("prefix", [None, "p_"])
def test_a_smaller_ensemble_takes_the_place_of_a_larger_one(ensemble, tmp_path, prefix):
    folder = tmp_path / "ensemble"
    ensemble.save(folder, prefix)
    # Of others: a year's cells, and a model that is of no ensemble.
    (folder / "2024").mkdir()
    (folder / "2024" / "adata.h5ad").touch()
    ensemble.models[0].save(folder / "2025", prefix)
    smaller = with_models(ensemble, ensemble.models[1:])
    with pytest.raises(ValueError, match="holds an ensemble"):
        smaller.save(folder, prefix)
    there = sorted(folder.rglob("*"))
    smaller.save(folder, overwrite=True, prefix=prefix)
    assert sorted(folder.rglob("*")) == there
    loaded = trvae.TRVAEEnsemble.load(folder, False, "cpu", "auto", prefix)
    assert [model.seed for model in loaded.models] == [6, 7]


def test_an_ensemble_is_replaced_as_a_whole_or_not_at_all(ensemble, tmp_path, monkeypatch):
    folder = tmp_path / "ensemble"
    ensemble.save(folder, save_anndata=True)
    others = with_models(ensemble, ensemble.models[::-1])
    save, calls = trvae.TRVAE.save, []

    def failing(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(self, *args, **kwargs)

    with monkeypatch.context() as changed, pytest.raises(OSError, match="No space left"):
        changed.setattr(trvae.TRVAE, "save", failing)
        others.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2"]
    assert [m.seed for m in trvae.TRVAEEnsemble.load(folder).models] == [5, 6, 7]

    # Killed while the files of the new one are moved to their places.
    others.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "0" / "model.pt", folder / "0" / "model.pt")
    with pytest.raises(ValueError, match="models of different ensembles"):
        trvae.TRVAEEnsemble.load(folder, adata=False)
    others.save(folder, overwrite=True)
    assert [m.seed for m in trvae.TRVAEEnsemble.load(folder, adata=False).models] == [7, 6, 5]
    # Cells that were saved with the ones before.
    assert trvae.TRVAEEnsemble.load(folder).adata is None
    assert len(list(folder.rglob("adata.h5ad"))) == 3


def test_what_others_put_in_a_folder_stays(ensemble, tmp_path):
    ensemble.save(tmp_path)
    (tmp_path / "2" / "notes").touch()
    with_models(ensemble, ensemble.models[:2]).save(tmp_path, overwrite=True)
    assert (tmp_path / "2" / "notes").exists()
    assert len(trvae.TRVAEEnsemble.load(tmp_path, adata=False).models) == 2
    (tmp_path / "1" / "model.pt").unlink()
    with pytest.raises(ValueError, match="lacks models"):
        trvae.TRVAEEnsemble.load(tmp_path, adata=False)


# --------------------------------------------------------------------------- bad input


def test_wrong_arguments(adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="n_models must be"):
        trvae.TRVAEEnsemble(adata, n_models=0)
    with pytest.raises(ValueError, match="no ensemble is saved in"):
        trvae.TRVAEEnsemble.load(tmp_path)
    with pytest.raises(RuntimeError, match="train"):
        trvae.TRVAEEnsemble(adata, n_models=2, **SMALL).transfer(target_condition="treated")
