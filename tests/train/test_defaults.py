"""How long, and in which steps, models are trained by default."""

import pytest
from helpers import QUIET

import trvae
from trvae.train._defaults import (
    TrainingDefaults,
    completed_settings,
    default_batch_size,
    default_max_epochs,
)

COUNTS = TrainingDefaults(288_000, 256, {"lr": 2.8e-3})
IMAGES = TrainingDefaults(576_000, 128, {"lr": 4e-3, "lr_schedule": "cosine"})


@pytest.mark.parametrize(
    ("defaults", "n_cells", "batch_size", "n_epochs"),
    [
        (COUNTS, 1, 256, 400),
        (COUNTS, 13_576, 256, 21),
        (COUNTS, 57_599, 256, 10),
        (COUNTS, 57_600, 512, 10),
        (COUNTS, 10**7, 512, 10),
        (IMAGES, 57_600, 128, 10),
        (IMAGES, 115_200, 256, 10),
        (IMAGES, 230_400, 512, 10),
    ],
)
def test_minibatches_grow_once_the_fewest_epochs_have_enough_of_them(
    defaults, n_cells, batch_size, n_epochs
):
    assert default_batch_size(n_cells, defaults) == batch_size
    assert default_max_epochs(n_cells, defaults) == n_epochs
    if batch_size > defaults.batch_size:
        assert n_epochs * n_cells / batch_size >= defaults.n_seen / defaults.batch_size


def test_the_learning_rate_follows_the_size_of_minibatches_unless_either_is_given():
    def completed(batch_size="auto", plan_kwargs=None, n_cells=10**6):
        return completed_settings(
            batch_size, 20, plan_kwargs, defaults=IMAGES, n_cells=n_cells, datamodule=None
        )

    by_default = IMAGES.plan_kwargs | {"n_epochs_kl_warmup": 5}
    assert completed(n_cells=1_000) == (128, 20, by_default)
    assert completed() == (512, 20, by_default | {"lr": pytest.approx(8e-3)})
    assert completed(512) == (512, 20, by_default)
    given = {"lr": 1e-2, "n_steps_kl_warmup": 7}
    assert completed(plan_kwargs=given) == (512, 20, IMAGES.plan_kwargs | given)
    assert IMAGES.plan_kwargs["lr"] == 4e-3


def test_a_model_is_trained_with_them(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    model = trvae.TRVAE(adata)
    assert model._training_defaults == COUNTS
    assert trvae.ImageTRVAE._training_defaults == IMAGES
    # Ten epochs are enough for a few cells in few minibatches.
    model._training_defaults = COUNTS._replace(n_seen=5 * adata.n_obs)
    model.train(limit_train_batches=1, **QUIET)
    assert model.trainer.max_epochs == 10
    assert model.training_["batch_size"] == 512
    assert model.training_["plan_kwargs"]["lr"] == pytest.approx(2.8e-3 * 2**0.5)
    model.train(limit_train_batches=1, batch_size=32, **QUIET)
    assert model.training_["plan_kwargs"]["lr"] == 2.8e-3
