"""Saving a model: under any path, and without loss if the disk is full or Python crashes."""

import os
import shutil
from pathlib import Path

import anndata
import pandas as pd
import pytest
import torch
from helpers import assert_same_weights, fit, full_disk

import trvae


@pytest.fixture
def models(adata):
    """Two models of the same cells."""
    return tuple(fit(adata, seed=seed, train={"max_epochs": 1}) for seed in (0, 1))


def files_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_full_disk_loses_no_saved_model(adata, models, tmp_path):
    old, new = models
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    old.save(tmp_path / "model", overwrite=True)
    for folder, save_anndata in (
        ("model", False), ("new", False), ("model", True), ("new", True),
    ):  # fmt: skip
        with full_disk(), pytest.raises(OSError, match=f"{folder} could not be written"):
            new.save(tmp_path / folder, overwrite=True, save_anndata=save_anndata)
    assert files_in(tmp_path) == ["model"]
    assert files_in(tmp_path / "model") == ["model.pt", "notes.txt"]
    loaded = trvae.TRVAE.load(tmp_path / "model", adata)
    assert_same_weights(loaded.module, old.module.state_dict())

    new.save(str(tmp_path / "model"), overwrite=True)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata)
    assert_same_weights(loaded.module, new.module.state_dict())
    with pytest.raises(ValueError, match="exists. Choose another folder"):
        new.save(tmp_path / "model")


def test_cells_beside_a_model_are_those_it_was_saved_with(models, tmp_path):
    old, new = models
    old.save(tmp_path / "model", save_anndata=True)
    # Another model of the same cells, which stay.
    new.save(tmp_path / "model", overwrite=True)
    assert trvae.TRVAE.load(tmp_path / "model").adata.n_obs == new.adata.n_obs
    assert files_in(tmp_path / "model") == ["adata.h5ad", "model.pt"]

    # As many cells, of another model: one value, name or condition is another.
    old.save(tmp_path / "model", save_anndata=True, overwrite=True)
    path = tmp_path / "model" / "adata.h5ad"
    trvae.TRVAE.load(tmp_path / "model")
    for change in ("value", "name", "condition"):
        cells = anndata.read_h5ad(path)
        if change == "value":
            cells.X[7, 3] += 1
        if change == "name":
            cells.obs_names = [f"{name}'" for name in cells.obs_names]
        if change == "condition":
            cells.obs["condition"] = cells.obs["condition"].array[::-1]
        cells.write_h5ad(tmp_path / "changed.h5ad")
        saved = path.read_bytes()
        shutil.copy(tmp_path / "changed.h5ad", path)
        with pytest.raises(ValueError, match="adata.h5ad are not those that the model"):
            trvae.TRVAE.load(tmp_path / "model")
        trvae.TRVAE.load(tmp_path / "model", cells)
        path.write_bytes(saved)


def test_saving_removes_no_cells(adata, models, tmp_path):
    model, _ = models
    adata.write_h5ad(tmp_path / "adata.h5ad")
    model.save(tmp_path, overwrite=True)
    assert anndata.read_h5ad(tmp_path / "adata.h5ad").n_obs == adata.n_obs
    assert trvae.TRVAE.load(tmp_path).adata is None


def test_saved_cells_are_not_those_of_a_model_of_others(adata, models, tmp_path):
    models[0].save(tmp_path / "model", save_anndata=True)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata[:100].copy())
    loaded.save(tmp_path / "model", overwrite=True)
    assert trvae.TRVAE.load(tmp_path / "model").adata is None
    # Of a model with cells elsewhere, and of one that was loaded without them.
    models[0].save(tmp_path / "here", save_anndata=True)
    adata[:50].write_h5ad(tmp_path / "adata.h5ad")
    models[0].save(tmp_path, overwrite=True)
    assert trvae.TRVAE.load(tmp_path).adata is None
    without = trvae.TRVAE.load(tmp_path / "here", adata=False)
    # Elsewhere it is saved without its cells, which stay its own.
    without.save(tmp_path / "elsewhere")
    without.save(tmp_path / "here", overwrite=True)
    assert trvae.TRVAE.load(tmp_path / "here").adata is not None


def test_changed_settings_of_counterfactuals_are_kept(adata, models, tmp_path):
    model = models[0]
    model.linear_weight, model.response_limit = 1.0, 0.1
    cells = adata[adata.obs["condition"] == "control"].copy()
    expected = model.get_transferred_expression(cells, "treated")
    model.save(tmp_path / "model")
    query = adata[:20].copy()
    query.obs["condition"] = "new"
    for other in (
        trvae.TRVAE.load(tmp_path / "model", adata),
        model._without_cells(),
        trvae.TRVAE.load_query_data(query, model),
    ):
        assert (other.linear_weight, other.response_limit) == (1.0, 0.1)
        other.is_trained_ = True
        pd.testing.assert_frame_equal(
            other.get_transferred_expression(cells, "treated"), expected, rtol=1e-4
        )
    with pytest.raises(ValueError, match="linear_weight must be .* got 2"):
        model.linear_weight = 2


def test_a_crash_loses_no_saved_model(models, tmp_path, monkeypatch):
    old, new = models
    old.save(tmp_path / "model", save_anndata=True)
    process = os.fork()
    if process == 0:
        # Cells are written before the weights, and HDF5 crashes if the disk is full.
        monkeypatch.setattr(torch, "save", lambda *args, **kwargs: os._exit(1))
        try:
            new.save(tmp_path / "model", overwrite=True, save_anndata=True)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    loaded = trvae.TRVAE.load(tmp_path / "model")
    assert_same_weights(loaded.module, old.module.state_dict())
    new.save(tmp_path / "model", overwrite=True, save_anndata=True)
    assert files_in(tmp_path / "model") == ["adata.h5ad", "model.pt"]
    loaded = trvae.TRVAE.load(tmp_path / "model")
    assert_same_weights(loaded.module, new.module.state_dict())


def test_models_are_saved_under_any_path(adata, models, tmp_path, monkeypatch):
    model, _ = models
    monkeypatch.chdir(tmp_path)
    model.save("a/b/model/")
    model.save("a/b/model", prefix="other_", overwrite=True)
    assert files_in("a/b/model") == ["model.pt", "other_model.pt"]
    model.save(".", overwrite=True)
    assert trvae.TRVAE.load(".", adata).is_trained
