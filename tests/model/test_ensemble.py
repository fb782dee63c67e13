import copy

import anndata
import numpy as np
import pandas as pd
import pytest
from helpers import QUIET, SMALL, fit

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
    expected = np.mean(
        [model.get_transferred_expression(cells, **kwargs) for model in ensemble.models], axis=0
    )
    np.testing.assert_allclose(
        ensemble.get_transferred_expression(cells, **kwargs), expected, rtol=1e-5
    )


def test_transfer_draws_around_the_expectation(ensemble, adata):
    before = adata.copy()
    expected = ensemble.get_transferred_expression(adata, **EXPRESSION)
    draws = [ensemble.transfer(adata, "treated", seed=seed).X for seed in range(10)]
    drawn = (sum(draws) / len(draws)).toarray()
    np.testing.assert_allclose(drawn.mean(0), expected.mean(0), rtol=0.1, atol=0.1)
    assert (draws[0] != ensemble.transfer(adata[::-1], "treated", seed=0).X[::-1]).nnz == 0
    assert (adata.X != before.X).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_draws_are_of_one_model_after_the_other(ensemble, adata):
    kwargs = EXPRESSION | {"n_samples": 4, "return_mean": False, "seed": 3}
    draws = ensemble.get_transferred_expression(adata, **kwargs)
    for i, draw in enumerate(draws):
        alone = ensemble.models[i % 3].get_transferred_expression(adata, **kwargs)
        np.testing.assert_array_equal(draw, alone[i])


def test_one_model_is_that_model(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    ensemble = trvae.TRVAEEnsemble(adata, n_models=1, **SMALL)
    ensemble.train(max_epochs=2, **QUIET)
    (model,) = ensemble.models
    for ask in ("transfer", "rank_transferred_genes", "assess_transfer", "get_transfer_support"):
        ours, theirs = (getattr(one, ask)(None, "treated") for one in (ensemble, model))
        if ask == "transfer":
            assert (ours.X != theirs.X).nnz == 0
        else:
            pd.testing.assert_frame_equal(ours, theirs)


def test_seeds_add_to_the_spread(ensemble, adata):
    assessed = [one.assess_transfer(adata, "treated") for one in (ensemble, ensemble.models[0])]
    assert (assessed[0]["spread"] > assessed[1]["spread"]).all()


def test_save_load_and_disk(ensemble, adata, tmp_path):
    expected = ensemble.transfer(adata, "treated").X
    ensemble.save(tmp_path / "ensemble")
    loaded = trvae.TRVAEEnsemble.load(tmp_path / "ensemble", adata=False)
    assert len(loaded.models) == 3
    assert (loaded.transfer(adata, "treated").X != expected).nnz == 0
    out = loaded.transfer(adata, "treated", out=tmp_path / "out.zarr", chunk_size=50)
    assert (anndata.read_zarr(out).X != expected).nnz == 0


def test_a_smaller_ensemble_takes_the_place_of_a_larger_one(ensemble, adata, tmp_path):
    folder = tmp_path / "ensemble"
    ensemble.save(folder, save_anndata=True)
    (folder / "README").touch()
    smaller = with_models(ensemble, ensemble.models[1:])
    with pytest.raises(ValueError, match="ensemble holds an ensemble. Choose another folder"):
        smaller.save(folder)
    assert len(trvae.TRVAEEnsemble.load(folder).models) == 3
    smaller.save(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "README"]
    loaded = trvae.TRVAEEnsemble.load(folder, adata=False)
    assert [model.seed for model in loaded.models] == [6, 7]


def test_what_others_put_in_a_folder_stays(ensemble, tmp_path):
    ensemble.save(tmp_path)
    (tmp_path / "2" / "notes").touch()
    smaller = with_models(ensemble, ensemble.models[:2])
    smaller.save(tmp_path, overwrite=True)
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["notes"]
    with pytest.raises(ValueError, match="No model is saved in .*2'"):
        trvae.TRVAEEnsemble.load(tmp_path, adata=False)


def test_wrong_arguments(ensemble, adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    with pytest.raises(ValueError, match="n_models must be a positive integer"):
        trvae.TRVAEEnsemble(adata, n_models=0)
    with pytest.raises(ValueError, match="no ensemble is saved in"):
        trvae.TRVAEEnsemble.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'get_latent_representation'"):
        ensemble.get_latent_representation()
    untrained = trvae.TRVAEEnsemble(adata, n_models=2, **SMALL)
    with pytest.raises(RuntimeError, match="train"):
        untrained.transfer(target_condition="treated")
