"""How long, and in which steps, models are trained by default."""

import pytest
from helpers import QUIET

import trvae
from trvae.train._defaults import completed_plan_kwargs, default_batch_size, default_max_epochs


@pytest.mark.parametrize(
    ("n_cells", "batch_size", "n_epochs"),
    [
        (1, 128, 400),
        (13_576, 128, 21),
        (28_800, 128, 10),
        (57_599, 128, 10),
        (57_600, 256, 10),
        (115_200, 512, 10),
        (10**7, 512, 10),
    ],
)
def test_minibatches_grow_once_the_fewest_epochs_have_enough_of_them(
    n_cells, batch_size, n_epochs
):
    assert default_batch_size(n_cells, 2_250) == batch_size
    assert default_max_epochs(n_cells, 2_250) == n_epochs
    if batch_size > 128:
        assert n_epochs * n_cells / batch_size >= 2_250


def test_the_learning_rate_follows_the_size_of_minibatches_unless_it_is_given():
    defaults = {"lr": 2e-3, "lr_schedule": "cosine"}
    assert completed_plan_kwargs(None, defaults, 20, 128) == {**defaults, "n_epochs_kl_warmup": 5}
    assert completed_plan_kwargs({}, defaults, 20, 512)["lr"] == pytest.approx(4e-3)
    given = {"lr": 1e-2, "n_steps_kl_warmup": 7}
    assert completed_plan_kwargs(given, defaults, 20, 512) == defaults | given
    assert defaults["lr"] == 2e-3


def test_a_model_is_trained_with_them(adata):
    trvae.TRVAE.setup_anndata(adata, condition_key="condition")
    model = trvae.TRVAE(adata)
    # Ten epochs are enough for a few cells in few minibatches.
    model._default_steps = 9
    model.train(limit_train_batches=1, **QUIET)
    assert model.trainer.max_epochs == 10
    assert model.training_["batch_size"] == 256
    assert model.training_["plan_kwargs"]["lr"] == pytest.approx(2e-3 * 2**0.5)
    model.train(limit_train_batches=1, batch_size=32, **QUIET)
    assert model.training_["plan_kwargs"]["lr"] == 2e-3
