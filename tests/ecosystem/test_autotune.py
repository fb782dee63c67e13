"""Hyperparameters can be tuned: a trial of Ray Tune is a training as it would be here."""

import pytest

import trvae

ray = pytest.importorskip("ray", reason="needs scvi-tools[autotune]")
pytest.importorskip("ray.tune", reason="needs scvi-tools[autotune]")
autotune = pytest.importorskip(
    "scvi.autotune", reason="needs scvi-tools[autotune]", exc_type=ImportError
)


# Ray hides the GPU from trials that ask for a CPU, and a GPU would draw other noise.
TRAIN = {"max_epochs": 2, "accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _small_cluster():
    # What scvi-tools would start has a dashboard and workers for all cores, which take long.
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_trial_is_what_training_here_gives(adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    fixed = {"hidden_sizes": [16, 8], "seed": 1}
    experiment = autotune.run_autotune(
        trvae.TRVAE,
        adata,
        metrics="objective_validation",
        mode="min",
        search_space={
            "model_params": fixed | {"n_latent": ray.tune.grid_search([2])},
            "train_params": TRAIN,
        },
        num_samples=1,
        scheduler="fifo",
        searcher="random",
        seed=0,
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
        ignore_reinit_error=True,
    )
    here = {}
    for n_latent in (2, 16):
        model = trvae.TRVAE(adata, n_latent=n_latent, **fixed)
        model.train(**TRAIN, enable_progress_bar=False)
        here[n_latent] = float(model.history["objective_validation"].iloc[-1, 0])
    # Otherwise any trial would do.
    assert here[2] != pytest.approx(here[16], rel=1e-3)
    best = experiment.result_grid.get_best_result("objective_validation", "min")
    assert best.config["model_params"]["n_latent"] == 2
    assert best.metrics["objective_validation"] == pytest.approx(here[2], rel=1e-4)
