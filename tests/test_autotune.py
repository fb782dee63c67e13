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


def test_searches_for_hyper_parameters(adata, tmp_path):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
    experiment = autotune.run_autotune(
        trvae.TRVAE,
        adata,
        metrics="objective_validation",
        mode="min",
        search_space={
            "model_params": {"n_latent": ray.tune.choice([2, 4]), "hidden_sizes": [16, 8]},
            "train_params": {"max_epochs": 2, "accelerator": "cpu"},
        },
        num_samples=2,
        scheduler="fifo",
        searcher="random",
        seed=0,
        resources={"cpu": 1},
        logging_dir=str(tmp_path),
        ignore_reinit_error=True,
    )
    found = experiment.result_grid.get_dataframe()
    assert len(found) == 2
    assert (found["objective_validation"] > 0).all()
    best = experiment.result_grid.get_best_result("objective_validation", "min")
    assert best.metrics["objective_validation"] == found["objective_validation"].min()
