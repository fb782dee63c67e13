import json
import re
import signal

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from helpers import At, sending
from typer.testing import CliRunner

import trvae
from trvae.cli._options import app


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(a) for a in args])


@pytest.fixture
def data(tmp_path, adata):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


KEYS = ("--condition-key", "condition", "--labels-key", "cell_type")


def test_train_and_transfer(run, data, tmp_path):
    model = tmp_path / "model"
    result = run("train", data, *KEYS, "--out", model, "--max-epochs", 2)
    assert result.exit_code == 0, result.output
    assert "control, treated" in result.output
    out = tmp_path / "predicted.h5ad"
    result = run("transfer", model, data, "--from", "control", "--to", "treated", "--out", out)
    assert result.exit_code == 0, result.output
    predicted = anndata.read_h5ad(out)
    loaded = trvae.TRVAE.load(str(model), adata=False)
    expected = loaded.transfer(anndata.read_h5ad(data), "treated", source_condition="control")
    np.testing.assert_array_equal(predicted.X.toarray(), expected.X.toarray())
    assert not list(tmp_path.glob("*.unfinished"))


def test_an_interrupted_model_is_saved_and_the_status_tells(run, data, tmp_path, monkeypatch):
    def interrupted(self, max_epochs):
        train(self, max_epochs, callbacks=[At(1, sending(signal.SIGTERM))])

    train = trvae.TRVAE.train
    monkeypatch.setattr(trvae.TRVAE, "train", interrupted)
    result = run("train", data, *KEYS, "--out", tmp_path / "model", "--max-epochs", 3)
    assert result.exit_code == 143
    assert len(trvae.TRVAE.load(tmp_path / "model", adata=False).history["train_loss"]) == 1


def test_zarr_and_json(run, adata, tmp_path):
    adata.write_zarr(tmp_path / "cells.zarr")
    model, out = tmp_path / "model", tmp_path / "predicted.zarr"
    result = run(
        "train", tmp_path / "cells.zarr", *KEYS, "--out", model, "--max-epochs", 2, "--json"
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["conditions"] == ["control", "treated"]
    assert record["n_cells"] == 240
    assert record["final"]["train_loss"] > 0
    arguments = ("--from", "control", "--to", "treated", "--out", out, "--json")
    result = run("transfer", model, tmp_path / "cells.zarr", *arguments)
    assert result.exit_code == 0, result.output
    groups = json.loads(result.stdout)["groups"]
    assert [group["cell_type"] for group in groups] == ["type_0", "type_1", "type_2"]
    assert all(sentence["summary"] in " ".join(result.stderr.split()) for sentence in groups)
    predicted = anndata.read_zarr(out)
    loaded = trvae.TRVAE.load(str(model), adata=False)
    expected = loaded.transfer(adata, "treated", source_condition="control")
    np.testing.assert_array_equal(predicted.X.toarray(), expected.X.toarray())


def test_map(run, adata, data, tmp_path):
    model, mapped, latent = tmp_path / "model", tmp_path / "mapped", tmp_path / "latent.csv"
    run("train", data, *KEYS, "--out", model, "--max-epochs", 2)
    query = adata[adata.obs["condition"] == "treated"].copy()
    query.obs["condition"] = "new"
    query.write_h5ad(tmp_path / "query.h5ad")
    arguments = ("--out", mapped, "--latent", latent, "--match-reference", "--max-epochs", 1)
    result = run("map", model, tmp_path / "query.h5ad", *arguments)
    assert result.exit_code == 0, result.output
    assert "control, treated, new" in result.output
    loaded = trvae.TRVAE.load(str(mapped), adata=False)
    z = pd.read_csv(latent, index_col="cell")
    np.testing.assert_allclose(z, loaded.get_latent_representation(query), atol=1e-4)
    assert list(z.index) == list(query.obs_names)
    assert loaded.transfer(query, "control").n_obs == query.n_obs


def test_several_targets(run, data, tmp_path):
    model, out = tmp_path / "model", tmp_path / "predicted.h5ad"
    run("train", data, *KEYS, "--out", model, "--max-epochs", 1)
    to = ("--to", "treated", "--to", "control")
    result = run("transfer", model, data, *to, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert list(anndata.read_h5ad(out).obs["condition"]) == ["treated"] * 240 + ["control"] * 240
    groups = json.loads(result.stdout)["groups"]
    assert [group["target_condition"] for group in groups] == ["treated"] * 3 + ["control"] * 3


@pytest.mark.parametrize("suffix", [".h5mu", ".zarr"])
@pytest.mark.parametrize("top", [True, False], ids=["in mdata.obs", "in the modality"])
def test_mudata(run, adata, data, tmp_path, suffix, top):
    protein = anndata.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=adata.obs[[]])
    mdata = mudata.MuData({"gex": adata.copy(), "prot": protein})
    if top:
        for key in ("condition", "cell_type"):
            mdata.obs[key] = mdata["gex"].obs.pop(key).array
    cells, out = tmp_path / f"cells{suffix}", tmp_path / f"predicted{suffix}"
    mdata.write_zarr(cells) if suffix == ".zarr" else mdata.write_h5mu(cells)
    gex, to = ("--modality", "gex"), ("--from", "control", "--to", "treated")
    models = [tmp_path / "model", tmp_path / "of_anndata"]
    for file, model in zip((cells, data), models, strict=True):
        result = run("train", file, *KEYS, *gex, "--out", model, "--max-epochs", 2)
        assert result.exit_code == 0, result.output
    result = run("transfer", models[0], cells, *to, "--out", out)
    assert result.exit_code == 0, result.output
    assert "cells of type_0" in result.output
    result = run("transfer", models[1], cells, *gex, *to, "--out", tmp_path / "gex.h5ad")
    assert result.exit_code == 0, result.output
    predicted = mudata.read_zarr(out) if suffix == ".zarr" else mudata.read_h5mu(out)
    assert set(predicted.mod) == {"gex", "prot"}
    assert predicted.n_obs == 120
    expected = anndata.read_h5ad(tmp_path / "gex.h5ad")
    np.testing.assert_array_equal(predicted["gex"].X.toarray(), expected.X.toarray())
    for i, model in enumerate(models):
        result = run("map", model, cells, *gex, "--out", tmp_path / f"mapped{i}", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["n_cells"] == 240
    result = run("evaluate", cells, *KEYS, *gex, *to, "--label", "type_0", "--max-epochs", 1)
    assert result.exit_code == 0, result.output
    result = run("train", cells, *KEYS, "--out", tmp_path / "none")
    assert result.exit_code == 1
    assert "'rna' is not in the MuData: 'gex', 'prot'" in " ".join(result.stderr.split())


def test_files_of_another_format_are_refused(run, tmp_path):
    (tmp_path / "cells.csv").touch()
    result = run("train", tmp_path / "cells.csv", *KEYS, "--out", tmp_path / "model")
    assert result.exit_code == 1
    assert "neither .h5ad nor .h5mu nor .zarr" in result.stderr


def test_evaluate(run, data, tmp_path):
    out = tmp_path / "results"
    arguments = ("--label", "type_0", "--from", "control", "--to", "treated")
    result = run("evaluate", data, *KEYS, *arguments, "--max-epochs", 2, "--out", out, "--seed", 5)
    assert result.exit_code == 0, result.output
    for row in ("prediction", "no change", "mean shift", "nearest shift", "ceiling"):
        assert row in result.output
    record = json.loads((out / "metrics.json").read_text())
    assert record["seed"] == 5
    assert record["versions"]["trvae-tools"] == trvae.__version__
    assert set(record["metrics"]) >= {"prediction", "ceiling"}
    assert (out / "figure.png").stat().st_size > 10_000
    predicted = anndata.read_h5ad(out / "predicted.h5ad")
    assert (predicted.obs["condition"] == "treated").all()
    model = trvae.TRVAE.load(str(out / "model"), adata=False)
    assert model.conditions == ["control", "treated"]


def test_conditions_that_are_no_text(run, adata, tmp_path):
    adata.obs["dose"] = (adata.obs["condition"] == "treated").astype(int).to_numpy()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ("--labels-key", "cell_type", "--label", "type_0", "--from", 0, "--to", 1)
    data = ("evaluate", tmp_path / "cells.h5ad", "--condition-key", "dose")
    result = run(*data, *arguments, "--max-epochs", 1)
    assert result.exit_code == 0, result.output


def test_demo(run, tmp_path):
    result = run("demo", "--out", tmp_path / "demo", "--max-epochs", 1)
    assert result.exit_code == 0, result.output
    for name in ("figure.png", "predicted.h5ad", "metrics.json", "model"):
        assert (tmp_path / "demo" / name).exists()


def test_demo_of_images(run, tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "--images", "--out", out, "--max-epochs", 1)
    assert result.exit_code == 0, result.output
    for name in ("figure.png", "predicted.h5ad", "model"):
        assert (out / name).exists()
    metrics = json.loads((out / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"thin", "thick"}
    for table in metrics.values():
        assert table["measured"]["energy_distance"] == 0
        assert table["mean shift"]["energy_distance"] < table["no change"]["energy_distance"]
    thickness = [metrics[one]["measured"]["stroke_thickness"] for one in ("thin", "thick")]
    assert thickness[0] < metrics["thin"]["no change"]["stroke_thickness"] < thickness[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "type_9"), "label 'type_9' is not in adata.obs['cell_type']"),
        (("--to", "stim"), "target_condition 'stim' is not in"),
        (("--labels-key", "type"), "labels_key 'type' is not in adata.obs"),
        (("--library-key", "total"), "library_key 'total' is not in adata.obs"),
    ],
)
def test_errors_come_before_training_on_one_line(run, data, arguments, message, monkeypatch):
    given = dict(zip(KEYS[::2], KEYS[1::2], strict=True))
    given |= {"--label": "type_0", "--from": "control", "--to": "treated"}
    given[arguments[0]] = arguments[1]
    monkeypatch.setattr(trvae.TRVAE, "train", None)
    result = run("evaluate", data, *(word for pair in given.items() for word in pair))
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_files_that_are_not_there_are_one_line(run, data, tmp_path):
    train = ("train", tmp_path / "none.h5ad", *KEYS, "--out", tmp_path / "out")
    transfer = (
        "transfer",
        tmp_path / "none",
        data,
        "--to",
        "treated",
        "--out",
        tmp_path / "o.h5ad",
    )
    for command, what in ((train, "There is no .*none.h5ad"), (transfer, "none")):
        result = run(*command)
        assert result.exit_code == 1
        assert re.fullmatch(f"Error: .*{what}.*", result.stderr.strip())


def test_an_existing_model_is_not_replaced(run, data, tmp_path):
    (tmp_path / "model").mkdir()
    result = run("train", data, *KEYS, "--out", tmp_path / "model", "--max-epochs", 1)
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    held_out = ("--label", "type_0", "--from", "control", "--to", "treated")
    result = run("evaluate", data, *KEYS, *held_out, "--out", tmp_path)
    assert result.exit_code == 1
    assert "model exists already" in result.stderr


def test_help_names_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    for command in ("demo", "train", "transfer", "map", "evaluate"):
        assert command in result.output
        assert "Example: trvae" in run(command, "--help").output
