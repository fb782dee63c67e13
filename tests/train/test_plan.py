"""The training plan: what is logged, schedules, seeds, and what the MMD does."""

import random

import numpy as np
import pytest
import scvi
import torch
from helpers import DEVICE, At, assert_same_weights, fit, on_device
from lightning.pytorch import Callback

import trvae
from trvae.module._mmd import multi_scale_mmd


def values(table):
    return table.to_numpy().ravel().astype(float)


def test_history_has_every_term_for_training_and_validation(adata):
    model = fit(adata, train={"max_epochs": 5, "plan_kwargs": {"lr": 3e-3}})
    for mode in ("train", "validation"):
        terms = {
            term: values(model.history[f"{term}_{mode}"])
            for term in ("reconstruction_loss", "kl_local", "mmd", "elbo", "objective")
        }
        assert all(np.isfinite(logged).all() and len(logged) == 5 for logged in terms.values())
        elbo = terms["reconstruction_loss"] + terms["kl_local"]
        np.testing.assert_allclose(terms["elbo"], elbo, rtol=1e-5)
        objective = elbo + model.module.mmd_weight * terms["mmd"]
        np.testing.assert_allclose(terms["objective"], objective, rtol=1e-4)
    assert values(model.history["train_loss"])[-1] < values(model.history["train_loss"])[0]


def test_an_epoch_is_logged_with_the_mean_over_its_own_cells(adata):
    totals = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
            total, n = totals.get(trainer.current_epoch, (0.0, 0))
            n_cells = len(batch["batch"])
            totals[trainer.current_epoch] = total + float(outputs["loss"]) * n_cells, n + n_cells

    training = {"batch_size": 100, "plan_kwargs": {"lr": 1e-2}, "callbacks": [Watch()]}
    model = fit(adata, train=training)
    expected = [total / n for total, n in totals.values()]
    np.testing.assert_allclose(values(model.history["train_loss"]), expected, rtol=1e-5)
    assert expected[-1] < 0.99 * expected[0]


@pytest.mark.parametrize(
    ("n_epochs", "plan", "expected"),
    [
        (8, {}, [0, 0.5, 1, 1, 1, 1, 1, 1]),
        (2, {"n_epochs_kl_warmup": None, "max_kl_weight": 0.3}, [0.3, 0.3]),
    ],
)
def test_kl_warm_up_follows_the_number_of_epochs(adata, n_epochs, plan, expected):
    model = fit(adata, train={"max_epochs": n_epochs, "plan_kwargs": plan})
    np.testing.assert_allclose(values(model.history["kl_weight"]), expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_follows_its_schedule(adata, schedule):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    plan = {"lr": 0.01, "lr_schedule": schedule}
    fit(adata, train={"plan_kwargs": plan, "callbacks": [Watch()]})
    share = np.arange(len(rates)) / len(rates)
    expected = (1 + np.cos(np.pi * share)) / 2 if schedule == "cosine" else np.ones(len(rates))
    np.testing.assert_allclose(rates, 0.01 * expected)


def test_early_stopping_watches_the_mmd(adata):
    train = {"max_epochs": 50, "early_stopping": True, "early_stopping_min_delta": 1e6}
    model = fit(adata, train=train | {"early_stopping_patience": 1})
    assert model.trainer.early_stopping_callback.monitor == "objective_validation"
    assert len(model.history["objective_validation"]) == 2


@pytest.mark.parametrize("max_epochs", [50, 4], ids=["stops early", "runs to the end"])
def test_early_stopping_keeps_the_best_weights(adata, max_epochs):
    at = At(max_epochs, None, spoiled=3)
    kwargs = {"early_stopping": True, "early_stopping_patience": 3}
    model = fit(adata, train={"max_epochs": max_epochs, "callbacks": [at]} | kwargs)
    best = np.argmin(model.history["objective_validation"].to_numpy(float))
    assert best < len(at.weights) - 1
    assert_same_weights(model.module, at.weights[best])


def test_the_seed_decides_on_weights_and_leaves_the_global_generators_alone(adata):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    one, same, other = (fit(adata, seed=seed, train={"max_epochs": 2}) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert scvi.settings.seed is None
    assert_same_weights(same.module, one.module.state_dict())
    assert not torch.equal(one.module.encoder.mean.weight, other.module.encoder.mean.weight)


def test_same_seed_same_weights_with_several_threads():
    # Large enough for torch to share the work of one operation among threads.
    adata = trvae.datasets.simulated(n_cells=50, n_genes=600)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        one, same = fit(adata), fit(adata)
    finally:
        torch.set_num_threads(n_threads)
    assert_same_weights(same.module, one.module.state_dict())


def test_mmd_weight_pulls_conditions_together(adata):
    treated = (adata.obs["condition"] == "treated").to_numpy()
    # Conditions with nothing in common, which without a KL divergence only the MMD holds together.
    adata.X[treated] = adata.X[treated][:, ::-1]
    train = {"max_epochs": 10, "batch_size": 32}
    train["plan_kwargs"] = {"max_kl_weight": 0.0, "lr": 3e-3}
    mmd = {}
    for weight in (0.0, 1000.0):
        kwargs = {"mmd_layer": "latent", "mmd_within_labels": False}
        model = fit(adata, mmd_weight=weight, train=train, **kwargs)
        z = torch.as_tensor(model.get_latent_representation())
        mmd[weight] = multi_scale_mmd(z, torch.as_tensor(treated))
    assert mmd[1000.0] < 0.5 * mmd[0.0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson", "normal"])
def test_all_is_finite_for_tiny_and_huge_libraries(adata, gene_likelihood, precision):
    rng = np.random.default_rng(0)
    share = adata.layers["rate"] / adata.layers["rate"].sum(1, keepdims=True)
    counts = rng.poisson(share * np.logspace(0, 6, adata.n_obs)[:, None]).astype(np.float32)
    # Cells with one count, and a gene with a million.
    counts[::50] = np.eye(adata.n_vars)[0]
    counts[::7, 1] = 1e6
    adata.X = np.log1p(counts) if gene_likelihood == "normal" else counts
    model = fit(
        adata, gene_likelihood=gene_likelihood, train={"max_epochs": 2, "precision": precision}
    )
    for name in ("train_loss", "validation_loss"):
        assert np.isfinite(values(model.history[name])).all()
    assert np.isfinite(model.get_transferred_expression(adata, "treated")).all(axis=None)
    assert np.isfinite(model.transfer(adata, "treated").X).all()
    model.module.train()
    tensors = on_device(next(iter(model._make_data_loader(model.adata))))
    with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = model.module(tensors)[2].loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.module.parameters())
