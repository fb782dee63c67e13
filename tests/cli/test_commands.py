"""The commands do what the Python API does, for every kind of file, and fail on one line."""

import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import anndata
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata import AnnData
from helpers import At, assert_same_weights, sending
from typer.testing import CliRunner

import trvae
from trvae.cli import _commands, _reporting, _results, app
from trvae.metrics import MEASURES
from trvae.metrics._baselines import BASELINES
from trvae.model._calibration import _Fold

KEYS = ("--condition-key", "condition", "--labels-key", "cell_type")
BETWEEN = ("--from", "control", "--to", "treated")
ONE_EPOCH = ("--max-epochs", 1)


def run(*args, exit_code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == exit_code, result.output
    return result


def write(data, path):
    getattr(data, f"write_{path.suffix[1:]}")(path)
    return path


def read(path, package=anndata):
    return getattr(package, f"read_{path.suffix[1:]}")(path)


@pytest.fixture(scope="module")
def cells():
    """Not to be changed."""
    return trvae.datasets.simulated(n_cells=40, n_genes=60)


@pytest.fixture(scope="module")
def data(cells, tmp_path_factory):
    return write(cells, tmp_path_factory.mktemp("data") / "cells.h5ad")


@pytest.fixture(scope="module")
def model(data):
    """Folder of a model that the command trained."""
    out = data.with_name("model")
    run("train", data, *KEYS, "--out", out, *ONE_EPOCH)
    return out


def test_train(cells, model, data):
    result = run("train", data, *KEYS, "--out", model, *ONE_EPOCH, "--overwrite", "--json")
    assert "Its conditions: control, treated" in result.stderr
    record = json.loads(result.stdout)
    assert (record["conditions"], record["n_cells"]) == (["control", "treated"], 240)
    registered = cells.copy()
    trvae.TRVAE.setup_anndata(registered, condition_key="condition", labels_key="cell_type")
    expected = trvae.TRVAE(registered, seed=0)
    expected.train(1)
    loaded = trvae.TRVAE.load(str(model), adata=False)
    assert_same_weights(loaded.module, expected.module.state_dict())
    assert record["final"]["train_loss"] == expected.history["train_loss"].iloc[-1, 0]


def test_an_interrupted_model_is_saved_and_the_status_tells(data, tmp_path, monkeypatch):
    def interrupted(self, max_epochs, **kwargs):
        train(self, max_epochs, callbacks=[At(1, sending(signal.SIGTERM))], **kwargs)

    train = trvae.TRVAE.train
    monkeypatch.setattr(trvae.TRVAE, "train", interrupted)
    out = tmp_path / "model"
    run("train", data, *KEYS, "--out", out, "--max-epochs", 3, exit_code=128 + signal.SIGTERM)
    assert len(trvae.TRVAE.load(out, adata=False).history["train_loss"]) == 1


def test_calibrate(cells, data, tmp_path, monkeypatch):
    out = tmp_path / "model"
    run("train", data, *KEYS, "--out", out, "--max-epochs", 1)
    changes = _Fold.changes

    def interrupted(fold):
        if fold.labels == ["type_1"]:
            raise KeyboardInterrupt
        return changes(fold)

    monkeypatch.setattr(_Fold, "changes", interrupted)
    run("calibrate", out, data, "--to", "treated", exit_code=130)
    assert trvae.TRVAE.load(out, adata=False).calibration_ == {}
    (out / "calibration" / "notes.txt").touch()
    done = []
    monkeypatch.setattr(_Fold, "changes", lambda fold: done.append(fold) or changes(fold))
    result = run("calibrate", out, data, "--to", "treated", "--json")
    assert 1 <= len(done) < 3
    left_out = json.loads(result.stdout)["left_out"]
    assert [row["label"] for row in left_out] == ["type_0", "type_1", "type_2"]
    assert "r2_mean_no_change" in result.stderr
    assert [path.name for path in (out / "calibration").iterdir()] == ["notes.txt"]
    assert "0>1" in trvae.TRVAE.load(out, adata=False).calibration_
    # As if it were run at the same time, for other conditions.
    saved = trvae.TRVAE.calibrate

    def meanwhile(model, *args, **kwargs):
        table = saved(model, *args, **kwargs)
        model.calibration_ = {"1>0": model.calibration_["1>0"]}
        return table

    monkeypatch.setattr(trvae.TRVAE, "calibrate", meanwhile)
    run("calibrate", out, data, "--to", "control")
    assert set(trvae.TRVAE.load(out, adata=False).calibration_) == {"0>1", "1>0"}


@pytest.mark.parametrize(
    ("suffix", "targets", "n_assessed"),
    [(".h5ad", ["treated", "control"], 50), (".zarr", ["treated"], 120)],
)
def test_transfer(cells, model, tmp_path, monkeypatch, suffix, targets, n_assessed):
    monkeypatch.setattr(_commands, "_MAX_CELLS_TO_ASSESS", n_assessed)
    given = write(cells, tmp_path / f"cells{suffix}")
    out = tmp_path / "new" / f"predicted{suffix}"
    to = [word for target in targets for word in ("--to", target)]
    arguments = ("--from", "control", *to, "--out", out, "--seed", 3, "--json")
    result = run("transfer", model, given, *arguments)
    loaded = trvae.TRVAE.load(str(model), adata=False)
    target = targets if len(targets) > 1 else "treated"
    expected = loaded.transfer(cells, target, source_condition="control", seed=3)
    np.testing.assert_array_equal(read(out).X.toarray(), expected.X.toarray())
    record = json.loads(result.stdout)
    assert (record["n_cells"], record["n_assessed"]) == (120, n_assessed)
    groups = record["groups"]
    assert [group["cell_type"] for group in groups] == ["type_0", "type_1", "type_2"] * len(
        targets
    )
    assert sum(group["n_cells"] for group in groups) == n_assessed * len(targets)
    printed = " ".join(result.stderr.split())
    assert all(group["summary"] in printed for group in groups)
    assert (f"random sample of {n_assessed} of the 120 cells" in printed) == (n_assessed < 120)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_transfer_of_one_cell_type(cells, model, tmp_path, suffix):
    given, out = write(cells, tmp_path / f"cells{suffix}"), tmp_path / f"predicted{suffix}"
    command = ("transfer", model, given, "--to", "treated", "--out", out, "--json")
    result = run(*command, "--from", "control", "--label", "type_1")
    chosen = (cells.obs["condition"] == "control") & (cells.obs["cell_type"] == "type_1")
    assert list(read(out).obs_names) == list(cells.obs_names[chosen])
    record = json.loads(result.stdout)
    assert record["n_cells"] == chosen.sum()
    assert [group["cell_type"] for group in record["groups"]] == ["type_1"]
    wrong = run(*command, "--label", "type_9", exit_code=1).stderr
    assert "--label 'type_9' is not in obs['cell_type']: 'type_0', 'type_1'" in wrong


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_transfer_of_a_layer(cells, tmp_path, suffix):
    cells = AnnData(obs=cells.obs, var=cells.var, layers={"counts": cells.X})
    given, out = write(cells, tmp_path / f"cells{suffix}"), tmp_path / "predicted.h5ad"
    run("train", given, *KEYS, "--layer", "counts", "--out", tmp_path / "model", *ONE_EPOCH)
    result = run("transfer", tmp_path / "model", given, *BETWEEN, "--out", out, "--json")
    assert len(json.loads(result.stdout)["groups"]) == 3
    assert read(out).n_obs == 120


@pytest.mark.parametrize("labels", ["absent", "missing", "of another type"])
def test_transfer_without_labels(cells, model, tmp_path, labels):
    cells = cells.copy()
    if labels == "absent":
        del cells.obs["cell_type"]
        groups = ["all cells"]
    elif labels == "missing":
        cells.obs["cell_type"] = ["type_0", *[None] * (cells.n_obs - 1)]
        groups = ["type_0", "unlabelled"]
    else:
        cells.obs["cell_type"] = 7
        groups = ["7"]
    given, out = write(cells, tmp_path / "cells.h5ad"), tmp_path / "predicted.h5ad"
    result = run("transfer", model, given, *BETWEEN, "--out", out, "--json")
    assert [next(iter(g.values())) for g in json.loads(result.stdout)["groups"]] == groups
    assert read(out).n_obs == 120


def test_a_transfer_that_can_not_be_assessed_is_written(cells, data, tmp_path, monkeypatch):
    trvae.TRVAE.setup_anndata(cells := cells.copy(), condition_key="condition")
    trained = trvae.TRVAE(cells, seed=0)
    trained.train(1)
    trained.reference_cells_ = None
    trained.save(tmp_path / "model")
    out = tmp_path / "predicted.h5ad"
    result = run("transfer", tmp_path / "model", data, *BETWEEN, "--out", out, "--json")
    assert "can't be assessed: No training cells are kept" in result.stderr.replace("\n", " ")
    assert json.loads(result.stdout)["groups"] == []
    assert out.exists()


def test_map(cells, model, tmp_path):
    query = cells[cells.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "new"
    given = write(query, tmp_path / "query.h5ad")
    mapped, latent = tmp_path / "mapped", tmp_path / "new" / "latent.csv"
    arguments = ("--out", mapped, "--latent", latent, "--match-reference", *ONE_EPOCH)
    assert "control, treated, new" in run("map", model, given, *arguments).output
    loaded = trvae.TRVAE.load(str(mapped), adata=False)
    z = pd.read_csv(latent, index_col="cell")
    np.testing.assert_allclose(z, loaded.get_latent_representation(query), atol=1e-4)
    assert list(z.index) == list(query.obs_names)
    assert loaded.transfer(query, "control").n_obs == query.n_obs


@pytest.mark.parametrize(("suffix", "columns_of_all"), [(".h5mu", True), (".zarr", False)])
def test_mudata(cells, model, tmp_path, suffix, columns_of_all):
    protein = anndata.AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]])
    mdata = mudata.MuData({"gex": cells.copy(), "prot": protein})
    for key in ("condition", "cell_type") if columns_of_all else ():
        mdata.obs[key] = mdata["gex"].obs.pop(key).array
    given, out = write(mdata, tmp_path / f"cells{suffix}"), tmp_path / f"predicted{suffix}"
    gex, of_mudata = ("--modality", "gex"), tmp_path / "model"
    run("train", given, *KEYS, *gex, "--out", of_mudata, *ONE_EPOCH)
    run("transfer", of_mudata, given, *BETWEEN, "--out", out)
    run("transfer", model, given, *gex, *BETWEEN, "--out", tmp_path / "gex.h5ad")
    predicted = read(out, mudata)
    assert (set(predicted.mod), predicted.n_obs) == ({"gex", "prot"}, 120)
    # Both models learnt from the same cells.
    expected = read(tmp_path / "gex.h5ad").X.toarray()
    np.testing.assert_array_equal(predicted["gex"].X.toarray(), expected)
    result = run("map", of_mudata, given, *gex, "--out", tmp_path / "mapped", "--json")
    assert json.loads(result.stdout)["n_cells"] == 240
    result = run("train", given, *KEYS, "--out", tmp_path / "none", exit_code=1)
    assert "'rna' is not in the MuData: 'gex', 'prot'" in result.stderr


def test_evaluate(cells, tmp_path):
    # Conditions need not be text.
    cells = cells.copy()
    cells.obs["dose"] = (cells.obs["condition"] == "treated").astype(int).to_numpy()
    given, out = (
        write(mudata.MuData({"rna": cells}), tmp_path / "cells.h5mu"),
        tmp_path / "results",
    )
    keys = ("--condition-key", "dose", "--labels-key", "cell_type")
    held_out = ("--label", "type_0", "--from", 0, "--to", 1, "--seed", 5)
    result = run("evaluate", given, *keys, *held_out, *ONE_EPOCH, "--out", out)
    expected = trvae.evaluate(
        cells, condition_key="dose", labels_key="cell_type", source_condition=0, seeds=[5],
        labels=["type_0"], progress_bar=False,
        methods={"prediction": lambda: trvae.TRVAEMethod(train_kwargs={"max_epochs": 1})},
    ).set_index("method")  # fmt: skip
    record = json.loads((out / "metrics.json").read_text())
    metrics = pd.DataFrame.from_dict(record["metrics"], orient="index", dtype=float)
    expected = expected.loc[metrics.index, metrics.columns].astype(float)
    pd.testing.assert_frame_equal(metrics, expected, check_names=False)
    assert all(method in result.output for method in metrics.index)
    assert record["versions"]["trvae-tools"] == trvae.__version__
    assert (out / "figure.png").stat().st_size > 10_000
    assert (read(out / "predicted.h5ad").obs["dose"] == 1).all()
    assert trvae.TRVAE.load(str(out / "model"), adata=False).conditions == [0, 1]


def test_demo(tmp_path, monkeypatch):
    saved = []
    cells = trvae.datasets.kang18()[::10, ::10].copy()
    monkeypatch.setattr(trvae.datasets, "kang18", lambda: cells)
    monkeypatch.setattr(_results, "save_result", lambda *args: saved.append(args))
    result = run("demo", "--out", tmp_path / "demo", *ONE_EPOCH, "--json")
    assert json.loads(result.stdout)["metrics"].keys() >= {"prediction", "replicate"}
    assert set(saved[0][0].predicted.obs["cell_type"]) == {"NK"}
    assert saved[0][1].is_dir()
    # Results of a run whose model was moved away are not replaced, either.
    (tmp_path / "demo" / "predicted.h5ad").touch()
    again = run("demo", "--out", tmp_path / "demo", *ONE_EPOCH, exit_code=1)
    assert "predicted.h5ad exists already" in " ".join(again.stderr.split())
    run("demo", "--out", tmp_path / "demo", *ONE_EPOCH, "--overwrite")
    assert len(saved) == 2


def test_demo_of_images(tmp_path, monkeypatch):
    digits = trvae.datasets.stroke_digits()[::8].copy()
    monkeypatch.setattr(trvae.datasets, "stroke_digits", lambda: digits)
    run("demo", "--images", "--out", tmp_path, *ONE_EPOCH)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figure.png", "predicted.h5ad", "model", "metrics.json"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    for table in metrics.values():
        assert table["measured"]["energy_distance"] == 0
        assert table["mean shift"]["energy_distance"] < table["no change"]["energy_distance"]
    thickness = [metrics[name]["measured"]["stroke_thickness"] for name in ("thin", "thick")]
    assert thickness[0] < metrics["thin"]["no change"]["stroke_thickness"] < thickness[1]


TRAIN = "train {data} --condition-key condition --out {out}"
EVALUATE = (
    "evaluate {data} --condition-key condition --labels-key cell_type --label type_0 "
    "--from control --to treated"
)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{EVALUATE} --label type_9", "label 'type_9' is not in adata.obs['cell_type']"),
        (f"{EVALUATE} --labels-key type", "--labels-key 'type' is not in adata.obs"),
        (f"{EVALUATE} --out {{folder}}", "model exists already"),
        (TRAIN.replace("{out}", "{folder}/model"), "model exists already"),
        (TRAIN.replace("{data}", "{folder}/model"), "must be an .h5ad, .h5mu or .zarr file"),
        ("map {folder}/model {data} --out {folder}/model", "model exists already"),
        ("transfer {folder}/model {data} --to stim --out {out}", "--to 'stim'"),
    ],
)
def test_errors_come_before_training_on_one_line(
    data, model, command, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(trvae.TRVAE, "train", None)
    command = command.format(data=data, folder=model.parent, out=tmp_path / "out.h5ad")
    result = run(*command.split(), exit_code=1)
    assert re.fullmatch(f"Error: .*{re.escape(message)}.*", result.stderr.strip())


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "cells.h5ad").write_bytes(b"not HDF5")
    command = TRAIN.format(data=tmp_path / "cells.h5ad", out=tmp_path / "model")
    result = run(*command.split(), exit_code=1)
    assert re.fullmatch(r"Error: .*cells.h5ad can't be read: .*", result.stderr.strip())


@pytest.mark.parametrize("suffix", ["h5ad", "h5mu", "zarr"])
@pytest.mark.parametrize("command", ["train", "transfer"])
def test_a_file_of_another_kind_is_named(model, tmp_path, suffix, command):
    path = tmp_path / f"foreign.{suffix}"
    if suffix == "zarr":
        zarr.open_group(path, mode="w")["x"] = np.ones(3)
    else:
        with h5py.File(path, "w") as file:
            file["x"] = np.ones(3)
    of_command = (path, *KEYS) if command == "train" else (model, path, "--to", "treated")
    result = run(command, *of_command, "--out", tmp_path / "out.h5ad", exit_code=1)
    # Read lazily, any zarr group is an AnnData.
    message = rf".*foreign.{suffix} is not an AnnData or MuData: .*|adata is empty: .*"
    assert re.fullmatch(f"Error: ({message})", result.stderr.strip())


@pytest.mark.parametrize("arguments", [("train", "none.h5ad"), ("transfer", "none", ".")])
def test_paths_that_do_not_exist_are_wrong_usage(arguments):
    stderr = run(*arguments, exit_code=2).stderr
    assert "does not exist" in " ".join(re.sub("[│]", " ", stderr).split())


BAD_CELLS = {
    "conditions of another type": (
        lambda a: a.obs.__setitem__("condition", np.arange(a.n_obs) % 2),
        "has values of type number, but",
    ),
    "no conditions": (lambda a: a.obs.pop("condition"), "condition_key 'condition' is not in"),
    "duplicate genes": (
        lambda a: setattr(a, "var_names", ["gene_1", *a.var_names[1:]]),
        "not unique: 'gene_1'",
    ),
    "no matrix": (lambda a: setattr(a, "X", None), "adata.X is None"),
}


@pytest.mark.parametrize("command", ["map", "transfer"])
@pytest.mark.parametrize("kind", BAD_CELLS)
def test_bad_cells_are_refused_on_one_line(cells, model, tmp_path, kind, command):
    change, message = BAD_CELLS[kind]
    bad = cells.copy()
    change(bad)
    given = write(bad, tmp_path / "cells.h5ad")
    to = ("--to", "treated") if command == "transfer" else ONE_EPOCH
    result = run(command, model, given, *to, "--out", tmp_path / "out.h5ad", exit_code=1)
    assert re.fullmatch(f"Error: .*{re.escape(message)}.*", result.stderr.strip())
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_the_verdict_names_measures_and_baselines():
    metrics = pd.DataFrame(dict.fromkeys(MEASURES, 0.5), index=["prediction", *BASELINES])
    assert "Ahead of every baseline in: no measure. Behind" in _results._verdict(metrics)
    metrics.loc["prediction"] = pd.Series(MEASURES)
    everything = "R² mean, R² variance, r change, RMSE, energy."
    assert _results._verdict(metrics) == f"Ahead of every baseline in: {everything}"
    metrics.loc["nearest shift", "rmse"] = 0.1
    metrics.loc["prediction", "rmse"] = 0.2
    assert _results._verdict(metrics).endswith("energy. Behind nearest shift in RMSE.")


def test_json_has_neither_nan_nor_numbers_of_numpy():
    record = {"loss": np.float32("nan"), 1: [np.int64(2), float("nan")]}
    assert json.loads(_reporting.to_json(record)) == {"loss": None, "1": [2, None]}


def test_help_lists_the_commands_in_order_with_an_example_of_each():
    names = ["demo", "train", "calibrate", "transfer", "map", "evaluate"]
    listed = run("--help").output.split("Commands")[1]
    assert re.findall(r"^\W*(\w+)  ", listed, re.M) == names
    for name in names:
        assert f"Example: trvae {name}" in run(name, "--help").output


@pytest.mark.parametrize("arguments", [["--help"], ["train", "-h"], ["--version"], ["train"]])
def test_help_and_wrong_usage_need_no_slow_import(arguments):
    code = (
        "import sys; from trvae.cli import app\n"
        f"try: app({arguments})\n"
        "finally: print(*{'anndata', 'numpy', 'scvi', 'torch'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ""
    assert done.returncode == (2 if arguments == ["train"] else 0)
    if arguments == ["--version"]:
        assert done.stdout.split() == ["trvae-tools", trvae.__version__]


def test_a_progress_bar_is_for_terminals(monkeypatch):
    assert _results.progress() == {"enable_progress_bar": False}
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    (bar,) = _results.progress()["callbacks"]
    model = SimpleNamespace()
    trainer = SimpleNamespace(
        loggers=[SimpleNamespace(version=3)], progress_bar_metrics={"train_loss": 1.0}
    )
    assert bar.get_metrics(trainer, model) == {"train_loss": 1.0}
