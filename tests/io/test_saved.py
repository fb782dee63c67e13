"""Saved models: which files are read, that none is run, and that old ones stay readable."""

import importlib
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from fuzz_load import rezipped
from helpers import fit
from make_release import FOLDER, predictions
from pyro import get_param_store, param
from scvi.model.base import BaseModelClass
from torch.distributions import constraints
from typer.testing import CliRunner

import trvae
from trvae.cli._options import app
from trvae.io._plain import read_pickle, read_torch
from trvae.io._saved import FORMAT_VERSION

RELEASES = sorted(FOLDER.glob("*/*/model.pt"))


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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


# ---------------------------------------------------------------------- nothing is run


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
PLACES = {
    "attribute": lambda content, bad: content["attr_dict"].update(note_=bad),
    "registry": lambda content, bad: content["attr_dict"]["registry_"].update(note=bad),
    "weights": lambda content, bad: content["model_state_dict"].update(extra=bad),
    "genes": lambda content, bad: content.update(var_names=bad),
    "history": lambda content, bad: content["attr_dict"].update(history_={"loss": bad}),
}


@pytest.mark.parametrize("way", WAYS_TO_LOAD)
def test_code_in_a_model_is_not_run(original, tmp_path, way):
    # Of an ensemble, folders are numbers.
    folder, proof = shutil.copytree(original, tmp_path / "0"), tmp_path / "proof"
    # What scvi-tools before 0.15 wrote.
    for name in ("model_params.pt", "attr.pkl"):
        (folder / name).write_bytes(pickle.dumps(Runs(os.system, f"touch {proof}")))
    changed(folder, lambda content: PLACES["attribute"](content, Runs(os.mkdir, str(proof))))
    with pytest.raises(ValueError, match="asks for posix.mkdir, which was not run|before scvi"):
        WAYS_TO_LOAD[way](folder)
    assert not proof.exists()
    # It would have been run.
    scvi.model.base.BaseModelClass.load_registry(str(folder))
    assert proof.exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("function", [os.system, eval, exec, importlib.import_module])
def test_code_is_found_wherever_it_is(saved, tmp_path, place, function):
    proof = tmp_path / "proof"
    code = f"touch {proof}" if function is os.system else f"open({str(proof)!r}, 'w')"
    changed(saved, lambda content: PLACES[place](content, Runs(function, code)))
    path = re.escape(str(saved / "model.pt"))
    with pytest.raises(ValueError, match=rf"{path} .* asks for \w+\.{function.__name__}, .* not"):
        trvae.TRVAE.load(saved)
    assert not proof.exists()


def test_the_command_says_so_in_a_line(saved, tmp_path):
    changed(saved, lambda content: PLACES["attribute"](content, Runs(os.system, "true")))
    for command in (["transfer", "--to", "treated"], ["map"]):
        arguments = [command[0], str(saved), str(saved / "adata.h5ad"), *command[1:]]
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out.h5ad")])
        assert result.exit_code == 1
        assert "asks for posix.system, which was not run" in result.stderr


def test_a_trusted_file_may_hold_anything(saved):
    interval = pd.Interval(0, 1)
    changed(saved, lambda content: PLACES["attribute"](content, interval))
    with pytest.raises(ValueError, match=r"holds tables of pandas.* load\(..., trusted=True\)"):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, trusted=True).note_ == interval


@pytest.mark.parametrize("name", ["load", "save", "from_scarches", "transfer", "__init__"])
def test_a_registry_cannot_name_another_method(saved, name):
    changed(
        saved, lambda content: content["attr_dict"]["registry_"].update(setup_method_name=name)
    )
    with pytest.raises(ValueError, match="forged: it names another method"):
        trvae.TRVAE.load(saved)


@pytest.mark.parametrize("name", ["transfer", "module", "__class__", "_module_cls"])
def test_attributes_cannot_replace_methods(saved, name):
    changed(saved, lambda content: content["attr_dict"].update({name: 1}))
    with pytest.raises(ValueError, match=f"forged: it has attributes '{name}'"):
        trvae.TRVAE.load(saved)


def test_a_file_that_is_changed_after_the_check_is_not_read_again(saved, monkeypatch):
    def check_and_change(self, *arguments):
        check(self, *arguments)
        (saved / "model.pt").write_bytes(b"changed")

    check = trvae.io._saved.SavedModel.check_is_of
    monkeypatch.setattr(trvae.io._saved.SavedModel, "check_is_of", check_and_change)
    assert trvae.TRVAE.load(saved).conditions == ["control", "treated"]


@pytest.mark.parametrize(
    "program",
    [
        # Lists that hold lists ten times each, eleven deep.
        b"]" + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(11)) + b".",
        # A list that holds itself.
        b"]q\x00h\x00a.",
        # A dictionary whose key takes for ever to be hashed.
        b"}N" + b"".join(b"\x85q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",
        # A name where data should be.
        b"cnumpy\ndtype\n.",
        # Another place of the memo than there could be.
        b"]r\xff\xff\xff\xff\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"(" * 10_000 + b"N" + b"t" * 10_000 + b".",
        b"", b".", b"}", b"(", b"t.", b"N.N" + b"a.", b"ccollections\nOrderedDict\nNb.",
    ],
)  # fmt: skip
def test_forged_programs_are_refused_at_once(saved, tmp_path, program):
    (tmp_path / "attr.pkl").write_bytes(program)
    data = (saved / "model.pt").read_bytes()
    (saved / "model.pt").write_bytes(rezipped(data, lambda _: program))
    for read, path in ((read_pickle, tmp_path / "attr.pkl"), (read_torch, saved / "model.pt")):
        if program == b"N.N" + b"a.":
            assert read(path) is None
            continue
        with pytest.raises(ValueError, match=f"{path.name} is damaged, or holds other things"):
            read(path)


@pytest.mark.parametrize(
    "forge",
    [
        lambda tensor: tensor[:1].expand(10**12),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_no_model_has_are_refused(tmp_path, forge):
    torch.save(forge(torch.arange(6.0)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt is damaged, or holds other things"):
        read_torch(tmp_path / "model.pt")


def test_what_is_read_is_what_was_saved(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    content = {
        "tensors": [whole, whole.T, whole[1:, ::2], torch.zeros(0), torch.tensor(3)],
        "types": [
            torch.ones(3, dtype=getattr(torch, name))
            for name in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
        ],
        "arrays": [
            np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.array(["b", "äb"]),
            np.array(["x", None, 3], object), np.zeros(0), np.array([True, False]),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(3, dtype=">i4"),
        ],
        "scalars": [np.float32(0.5), np.int64(3), np.str_("a"), np.bool_(True), b"\xff", None],
        7: (1, 2**40, -1.5, {"a": "ä"}, float("inf")),
    }  # fmt: skip
    torch.save(content, tmp_path / "file.pt")
    read = read_torch(tmp_path / "file.pt")
    assert list(read) == list(content)
    for name in ("tensors", "types"):
        for ours, theirs in zip(read[name], content[name], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for ours, theirs in zip(read["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert read["scalars"] == content["scalars"]
    assert read[7] == content[7]
    # Python's own, rather than NumPy's.
    assert [type(value) for value in read["scalars"][:4]] == [float, int, str, bool]


# ------------------------------------------------------- damaged, swapped, of other things


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data.replace(b"data.pkl", b"data.plk"),
        lambda data: data.replace(b"treated", b"trained"),
        lambda data: rezipped(data, lambda program: program[:-2]),
        lambda data: pickle.dumps({"model_state_dict": {}}),
        lambda data: b"not a model",
    ],
)
def test_damaged_files(saved, damage):
    path = saved / "model.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path} is damaged, or holds other things"):
        trvae.TRVAE.load(saved)


def test_damaged_cells(saved):
    path = saved / "adata.h5ad"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{path} can't be read, so it may be damaged"):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, other_cells()).adata.n_obs == 120


def test_cells_of_a_model_that_was_there_before(saved):
    other = fit(trvae.datasets.simulated(n_cells=10, n_genes=20), train={"max_epochs": 1})
    other.save(saved, overwrite=True)
    cells = re.escape(str(saved / "adata.h5ad"))
    with pytest.raises(
        ValueError, match=f"{cells} has 120 cells, but the model .* is of 60: they"
    ):
        trvae.TRVAE.load(saved)
    assert trvae.TRVAE.load(saved, adata=False).conditions == ["control", "treated"]
    other.save(saved, overwrite=True, save_anndata=True)
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
        with pytest.raises(ValueError, match=f"prefix={re.escape(repr(prefix))} is not what"):
            ask()
    assert sorted(saved.parent.rglob("*")) == there


@pytest.mark.parametrize("content", [{}, [1], {"a": 1}, {"model_state_dict": {}, "attr_dict": {}}])
def test_other_things(saved, content):
    torch.save(content, saved / "model.pt")
    with pytest.raises(ValueError, match="model.pt holds something, but no model of scvi-tools"):
        trvae.TRVAE.load(saved)


def test_nothing_is_saved_there(tmp_path):
    for load in (trvae.TRVAE.load, trvae.TRVAE.load_registry):
        with pytest.raises(ValueError, match="No model is saved in .*: there is no model.pt"):
            load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no first_model.pt"):
        trvae.TRVAE.load(tmp_path, prefix="first_")


def test_models_of_other_classes(saved, tmp_path):
    with pytest.raises(ValueError, match="holds a model of the class TRVAE, not ImageTRVAE"):
        trvae.ImageTRVAE.load(saved)
    adata = other_cells()
    scvi.model.SCVI.setup_anndata(adata, batch_key="condition")
    scvi.model.SCVI(adata, n_hidden=4).save(str(tmp_path / "scvi"))
    with pytest.raises(ValueError, match="holds a model of the class SCVI, not TRVAE"):
        trvae.TRVAE.load(tmp_path / "scvi")


def test_files_of_two_models(saved, tmp_path):
    other = fit(trvae.datasets.simulated(n_cells=20, n_genes=30), train={"max_epochs": 1})
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.pt", saved)
    with pytest.raises(ValueError, match="10 of the model's 30 genes are not in adata"):
        trvae.TRVAE.load(saved)
    weights = torch.load(tmp_path / "other" / "model.pt", weights_only=False)["model_state_dict"]
    shutil.copy(tmp_path / "other" / "model.pt", saved)
    changed(
        saved,
        lambda content: content["attr_dict"]["init_params_"]["non_kwargs"].update(n_latent=3),
    )
    with pytest.raises(ValueError, match=r"weights in .* don't fit its settings: 'encoder\.mean"):
        trvae.TRVAE.load(saved)
    assert "encoder.mean.weight" in weights


@pytest.mark.parametrize(
    "settings",
    [{"n_latent": 10**9}, {"hidden_sizes": [10**6, 10**6]}, {"unheard": 1}, {"seed": "a"}],
)
def test_forged_settings_take_no_memory(saved, settings):
    changed(
        saved, lambda content: content["attr_dict"]["init_params_"]["non_kwargs"].update(settings)
    )
    with pytest.raises(ValueError, match="don't fit its settings|does not hold a whole TRVAE"):
        trvae.TRVAE.load(saved)


# ------------------------------------------------------------- formats, old and new


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_models_of_every_release_predict_as_then(path):
    model = getattr(trvae, path.parent.name).load(path.parent)
    expected = np.load(path.parent / "expected.npz")
    found = predictions(model)
    assert set(found) == set(expected.files)
    for name, values in found.items():
        if name == "transferred":
            # A draw can fall on the other side of a rounded number.
            assert np.mean(values != expected[name]) < 0.01
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
        with pytest.raises(ValueError, match=f"is of format {FORMAT_VERSION + 1}, .* Upgrade it"):
            load(saved)


def test_a_model_that_is_saved_again_is_of_the_present_format(saved, tmp_path):
    before = trvae.TRVAE.load(saved).get_latent_representation()

    def as_format_1(content):
        content["attr_dict"]["format_version_"] = 1
        weights, name = content["model_state_dict"], "encoder.hidden.layers.0.map.linear.weight"
        weights[name] = weights[name].t().contiguous()

    changed(saved, as_format_1)
    trvae.TRVAE.load(saved).save(tmp_path / "again")
    attributes = torch.load(tmp_path / "again" / "model.pt", weights_only=False)["attr_dict"]
    assert attributes["format_version_"] == FORMAT_VERSION
    again = trvae.TRVAE.load(tmp_path / "again").get_latent_representation()
    np.testing.assert_array_equal(again, before)


def test_history_is_kept(saved, tmp_path):
    model = fit(other_cells(), train={"max_epochs": 2})
    model.save(tmp_path / "model")
    assert isinstance(model.history["train_loss"], pd.DataFrame)
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    assert list(loaded.history) == list(model.history)
    for name, table in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], table)
    # What scvi-tools' own method writes has tables, which are left out unless it is trusted.
    BaseModelClass.save(model, str(tmp_path / "scvi"))
    assert trvae.TRVAE.load(tmp_path / "scvi", adata=False).history is None
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


def test_several_processes_load_at_once(saved):
    script = f"""
import sys, numpy as np, trvae
model = trvae.TRVAE.load({str(saved)!r})
print(model.transfer(target_condition="treated", seed=2).X.toarray().sum())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    sums = {process.communicate()[0].split()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    expected = trvae.TRVAE.load(saved).transfer(target_condition="treated", seed=2).X.sum()
    assert {float(one) for one in sums} == {float(expected)}
