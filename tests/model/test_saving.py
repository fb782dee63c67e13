"""Saving a model: under any path, and without loss if the disk is full or Python crashes."""

import os
import shutil
from pathlib import Path

import anndata
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
    new.save(tmp_path / "model", overwrite=True)
    assert files_in(tmp_path / "model") == ["model.pt"]

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
