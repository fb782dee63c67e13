"""Saved models: none runs code, forged ones are refused, and old ones stay readable."""

import os
import pickle
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from helpers import fit
from make_release import FOLDER, predictions
from pyro import get_param_store, param
from scvi.model.base import BaseModelClass
from torch.distributions import constraints
from typer.testing import CliRunner

import trvae
from trvae.cli import app
from trvae.io._saved import FORMAT_VERSION

RELEASES = sorted(FOLDER.glob("*/*/model.pt"))


class Runs:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a saved model. Not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = fit(trvae.datasets.simulated(n_cells=20, n_genes=20), train={"max_epochs": 1})
    model.save(folder, save_anndata=True)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "copy")


def changed(folder, change):
    """Change what a model's file holds, as scvi-tools would write it."""
    content = torch.load(folder / "model.pt", weights_only=False)
    change(content)
    torch.save(content, folder / "model.pt")
    return folder


# -------------------------------------------------------------------- no code is run


def other_cells():
    return trvae.datasets.simulated(n_cells=20, n_genes=20)


WAYS_TO_LOAD = {
    "load": lambda folder: trvae.TRVAE.load(folder),
    "load without cells": lambda folder: trvae.TRVAE.load(str(folder), adata=False),
    "load with cells": lambda folder: trvae.TRVAE.load(folder, other_cells()),
    "images": lambda folder: trvae.ImageTRVAE.load(folder),
    "ensemble": lambda folder: trvae.TRVAEEnsemble.load(folder.parent, adata=False),
    "query": lambda folder: trvae.TRVAE.load_query_data(other_cells(), folder),
    "genes of a query": lambda folder: trvae.TRVAE.prepare_query_anndata(
        other_cells(), str(folder)
    ),
    "modalities of a query": lambda folder: trvae.TRVAE.prepare_query_mudata(None, str(folder)),
    "registry": lambda folder: trvae.TRVAE.load_registry(str(folder)),
    "setup": lambda folder: trvae.TRVAE.view_setup_args(str(folder)),
    "old format": lambda folder: trvae.TRVAE.convert_legacy_save(
        str(folder), str(folder.parent / "new")
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_LOAD)
def test_code_in_a_model_is_not_run(original, tmp_path, way):
    # Of an ensemble, folders are numbers.
    folder, proof = shutil.copytree(original, tmp_path / "0"), tmp_path / "proof"
    # What scvi-tools before 0.15 wrote.
    for name in ("model_params.pt", "attr.pkl"):
        (folder / name).write_bytes(pickle.dumps(Runs(proof)))
    changed(folder, lambda content: content["attr_dict"].update(note_=Runs(proof)))
    with pytest.raises(ValueError, match="asks for posix.mkdir, which was not run|before scvi"):
        WAYS_TO_LOAD[way](folder)
    assert not proof.exists()
    # It would have been run.
    BaseModelClass.load_registry(str(folder))
    assert proof.exists()


@pytest.mark.parametrize("command", [["transfer", "--to", "treated"], ["map"]])
def test_the_command_says_so_in_a_line(saved, tmp_path, command):
    changed(saved, lambda content: content["attr_dict"].update(note_=Runs(tmp_path / "proof")))
    arguments = [command[0], str(saved), str(saved / "adata.h5ad"), *command[1:]]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.h5ad")])
    assert result.exit_code == 1
    assert "asks for posix.mkdir, which was not run" in result.stderr


def test_a_trusted_file_may_hold_anything(saved):
    interval = pd.Interval(0, 1)
    changed(saved, lambda content: content["attr_dict"].update(note_=interval))
    with pytest.raises(ValueError, match=r"asks for pandas.* load\(..., trusted=True\)"):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, trusted=True).note_ == interval
    (saved / "model.pt").write_bytes((saved / "model.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.pt can't be read, so it may be damaged"):
        trvae.TRVAE.load(saved, trusted=True)


def test_a_file_that_is_changed_after_the_check_is_not_read_again(saved, monkeypatch):
    def check_and_change(self, *arguments):
        check(self, *arguments)
        (saved / "model.pt").write_bytes(b"changed")

    check = trvae.io._saved.SavedModel.check_is_of
    monkeypatch.setattr(trvae.io._saved.SavedModel, "check_is_of", check_and_change)
    assert trvae.TRVAE.load(saved).conditions == ["control", "treated"]


# ------------------------------------------------------------- damaged, forged, mixed up


def forge(content, path, value):
    *holders, key = path.split("/")
    for holder in holders:
        content = content[holder]
    content[key] = value


REGISTRY = "attr_dict/registry_"
SETUP, FIELDS = f"{REGISTRY}/setup_args", f"{REGISTRY}/field_registries"
SETTINGS = "attr_dict/init_params_/non_kwargs"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{REGISTRY}/setup_method_name", "from_scarches"),
        (f"{REGISTRY}/setup_method_name", "setup_mudata"),
        (SETUP, None),
        (SETUP, {}),
        (f"{SETUP}/unheard", None),
        (f"{SETUP}/layer", []),
        (f"{SETUP}/labels_key", None),
        (f"{SETUP}/categorical_covariate_keys", ["condition"]),
        (f"{FIELDS}/labels", {}),
        (f"{FIELDS}/X/state_registry/n_vars", 7),
        (f"{FIELDS}/X/summary_stats/n_cells", []),
        (f"{FIELDS}/X/state_registry/column_names", np.full(20, "a")),
        (f"{FIELDS}/batch/summary_stats/n_batch", 3),
        (f"{FIELDS}/batch/state_registry/categorical_mapping", "ab"),
        ("attr_dict/transfer", 1),
        ("attr_dict/__class__", 1),
        ("attr_dict/history_", {"loss": 1}),
        ("attr_dict/mapping_", {"n_rows": {}}),
        ("attr_dict/init_params_", None),
        ("attr_dict/init_params_/kwargs", {"kwargs": {"unheard": 1}}),
        (f"{SETTINGS}/unheard", 1),
        (f"{SETTINGS}/n_latent", 3),
        (f"{SETTINGS}/n_latent", 10**9),
        (f"{SETTINGS}/hidden_sizes", [10**6, 10**6]),
        ("model_state_dict", {}),
        ("model_state_dict/extra", "a"),
    ],
)
def test_forged_models(saved, path, value):
    changed(saved, lambda content: forge(content, path, value))
    with pytest.raises(ValueError, match=re.escape(str(saved / "model.pt"))):
        trvae.TRVAE.load(saved)


def test_damaged_cells(saved):
    path = saved / "adata.h5ad"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{path} can't be read, so it may be damaged"):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, other_cells()).adata.n_obs == 120
    path.unlink()
    assert trvae.TRVAE.load(saved).adata is None


def test_cells_of_another_model(saved):
    """Those of a version that kept no digest of them are known by their number."""
    other = fit(trvae.datasets.simulated(n_cells=10, n_genes=20), train={"max_epochs": 1})
    other.save(saved.with_name("other"), save_anndata=True)
    shutil.copy(saved.with_name("other") / "model.pt", saved)
    message = re.escape(f"cells in {saved / 'adata.h5ad'} are not those that the model")
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.load(saved)
    changed(saved, lambda content: content["attr_dict"].pop("cells_digest_"))
    with pytest.raises(ValueError, match=message):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, adata=False).conditions == ["control", "treated"]
    other.save(saved, overwrite=True, save_anndata=True)
    changed(saved, lambda content: content["attr_dict"].pop("cells_digest_"))
    assert trvae.TRVAE.load(saved).adata.n_obs == 60


@pytest.mark.parametrize("prefix", ["../", "a/b_", "/tmp/", "a\\b_", 3])
def test_a_prefix_does_not_leave_the_folder(saved, prefix):
    there = sorted(saved.parent.rglob("*"))
    model = trvae.TRVAE.load(saved)
    for ask in (
        lambda: model.save(saved / "new", prefix=prefix),
        lambda: model.save(saved, prefix=prefix, overwrite=True, save_anndata=True),
        lambda: trvae.TRVAE.load(saved, prefix=prefix),
        lambda: trvae.TRVAE.load_registry(saved, prefix=prefix),
    ):
        with pytest.raises(ValueError, match=f"prefix={re.escape(repr(prefix))} must be a string"):
            ask()
    assert sorted(saved.parent.rglob("*")) == there


@pytest.mark.parametrize("content", [{}, [1], {"model_state_dict": {}, "attr_dict": {}}])
def test_other_files(saved, content):
    torch.save(content, saved / "model.pt")
    with pytest.raises(ValueError, match="model.pt is not a model of scvi-tools"):
        trvae.TRVAE.load(saved)
    (saved / "model.pt").write_bytes((saved / "adata.h5ad").read_bytes())
    with pytest.raises(ValueError, match="model.pt is damaged"):
        trvae.TRVAE.load(saved)


def test_nothing_is_saved_there(tmp_path):
    for load in (trvae.TRVAE.load, trvae.TRVAE.load_registry):
        with pytest.raises(ValueError, match="No model is saved in .*: there is no model.pt"):
            load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no first_model.pt"):
        trvae.TRVAE.load(tmp_path, prefix="first_")


def test_models_of_other_classes(saved, tmp_path):
    with pytest.raises(ValueError, match="holds a model of class TRVAE, not ImageTRVAE"):
        trvae.ImageTRVAE.load(saved)
    adata = other_cells()
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition")
    scvi.model.SCVI(adata, n_hidden=4).save(str(tmp_path / "scvi"))
    with pytest.raises(ValueError, match="holds a model of class SCVI, not TRVAE"):
        trvae.TRVAE.load(tmp_path / "scvi")


# ------------------------------------------------------------- formats, old and new


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_models_of_every_release_predict_as_then(path):
    model = getattr(trvae, path.parent.name).load(path.parent)
    expected = np.load(path.parent / "expected.npz")
    found = predictions(model)
    assert set(found) == set(expected.files)
    for name, values in found.items():
        if name == "transferred":
            # Releases may draw other numbers, with the same expectation.
            error = np.sqrt(2 * (values - found["expected"]).var(0) / len(values))
            difference = values.mean(0) - expected[name].mean(0)
            assert (np.abs(difference) <= 4 * error + 1e-5).all()
        else:
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert list(model.history["train_loss"].index.to_numpy()) == list(range(10))


def test_there_are_models_of_releases_to_test():
    assert {path.parent.name for path in RELEASES} == {"TRVAE", "ImageTRVAE"}


def test_the_format_is_written_and_newer_ones_are_refused(saved):
    assert torch.load(saved / "model.pt", weights_only=False)["attr_dict"]["format_version_"] == (
        FORMAT_VERSION
    )
    changed(saved, lambda content: content["attr_dict"].update(format_version_=FORMAT_VERSION + 1))
    for load in (trvae.TRVAE.load, trvae.TRVAE.load_registry):
        with pytest.raises(
            ValueError, match=f"has format {FORMAT_VERSION + 1}, .* Install a newer"
        ):
            load(saved)


def test_history_is_kept(saved, tmp_path):
    model = fit(other_cells(), train={"max_epochs": 2})
    model.save(tmp_path / "model")
    assert isinstance(model.history["train_loss"], pd.DataFrame)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    assert list(loaded.history) == list(model.history)
    for name, table in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], table)
    # What scvi-tools' own method writes has tables of pandas.
    BaseModelClass.save(model, str(tmp_path / "scvi"))
    with pytest.raises(ValueError, match="asks for pandas"):
        trvae.TRVAE.load(tmp_path / "scvi", adata=False)
    trusted = trvae.TRVAE.load(tmp_path / "scvi", adata=False, trusted=True)
    pd.testing.assert_frame_equal(trusted.history["train_loss"], model.history["train_loss"])


def test_scvi_tools_reads_it(saved):
    registry = BaseModelClass.load_registry(str(saved))
    assert registry["model_name"] == "TRVAE"
    # Its own method, with which no file is checked.
    plain = BaseModelClass.load.__func__(trvae.TRVAE, str(saved))
    np.testing.assert_array_equal(
        plain.get_latent_representation(), trvae.TRVAE.load(saved).get_latent_representation()
    )


def test_what_other_models_left_in_pyros_store_is_not_saved(tmp_path):
    with get_param_store().scope():
        param("other", torch.ones(1), constraint=constraints.positive)
        fit(other_cells(), train={"max_epochs": 1}).save(tmp_path / "model")
        assert list(get_param_store()) == ["other"]
    assert trvae.TRVAE.load(tmp_path / "model", adata=False).is_trained_


@pytest.mark.parametrize("values", [[1, 2], [True, False], [0.5, 1.5]])
def test_conditions_that_are_no_strings(tmp_path, values):
    adata = other_cells()
    adata.obs["condition"] = np.resize(values, adata.n_obs)
    fit(adata, train={"max_epochs": 1}).save(tmp_path / "model", save_anndata=True)
    assert trvae.TRVAE.load(tmp_path / "model").conditions == sorted(values)
