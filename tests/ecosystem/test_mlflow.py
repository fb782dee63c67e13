import pytest
import scvi
from helpers import QUIET, SMALL

import trvae

mlflow = pytest.importorskip("mlflow")


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """A local store, and scvi-tools' settings as they were afterwards."""
    # Its other stores need more packages.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    uri = (tmp_path / "runs").as_uri()
    scvi.settings.mlflow_set_tracking_uri, scvi.settings.mlflow_set_experiment = uri, "trvae"
    yield mlflow.MlflowClient(uri)
    scvi.settings.mlflow_set_tracking_uri = ""


def test_settings_and_history_are_logged(adata, tracked):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    model = trvae.TRVAE(adata, seed=7, **SMALL)
    model.run_name = "first"
    model.train(max_epochs=3, **QUIET)
    run = tracked.get_run(model.run_id)
    assert run.info.run_name == "first"
    assert run.data.tags["status"] == "success"
    expected = {
        "gene_likelihood": "nb", "mmd_weight": "10.0", "seed": "7", "condition_key": "condition",
        "n_batch": "2", "max_epochs": "3", "n_train": "216", "hidden_sizes": "(32, 16)",
    }  # fmt: skip
    assert {name: run.data.params[name] for name in expected} == expected
    for name in ("mmd_train", "mmd_validation", "objective_validation", "train_loss"):
        logged = [metric.value for metric in tracked.get_metric_history(model.run_id, name)]
        assert logged == pytest.approx(model.history[name].iloc[:, 0].tolist())
