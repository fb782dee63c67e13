import pytest

import trvae

ray = pytest.importorskip("ray", reason="needs scvi-tools[autotune]")
pytest.importorskip("ray.tune", reason="needs scvi-tools[autotune]")
autotune = pytest.importorskip(
    "scvi.autotune", reason="needs scvi-tools[autotune]", exc_type=ImportError
)


@pytest.fixture(autouse=True)
def _no_cluster_is_left():
    yield
    ray.shutdown()


def test_search_finds_what_training_here_gives(adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    experiment = autotune.run_autotune(
        trvae.TRVAE,
        adata,
        metrics="objective_validation",
        mode="min",
        search_space={
            "model_params": {
                "n_latent": ray.tune.grid_search([2, 4]),
                "hidden_sizes": [16, 8],
                "seed": 1,
            },
            "train_params": {"max_epochs": 2, "accelerator": "cpu"},
        },
        num_samples=1,
        scheduler="fifo",
        searcher="random",
        seed=0,
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
        ignore_reinit_error=True,
    )

    def trained_here(n_latent):
        model = trvae.TRVAE(adata, n_latent=n_latent, hidden_sizes=[16, 8], seed=1)
        # Tune's trials validate after every epoch.
        model.train(
            max_epochs=2, accelerator="cpu", check_val_every_n_epoch=1, enable_progress_bar=False
        )
        return float(model.history["objective_validation"].iloc[-1, 0])

    here = {n_latent: trained_here(n_latent) for n_latent in (2, 4)}
    # Otherwise any trial would do.
    assert here[2] != pytest.approx(here[4], rel=1e-3)
    found = {
        trial.config["model_params"]["n_latent"]: trial.metrics["objective_validation"]
        for trial in experiment.result_grid
    }
    assert found == pytest.approx(here, rel=1e-4)
    best = experiment.result_grid.get_best_result("objective_validation", "min")
    assert best.config["model_params"]["n_latent"] == min(here, key=here.get)
    assert best.metrics["objective_validation"] == pytest.approx(min(here.values()), rel=1e-4)
