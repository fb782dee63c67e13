"""Steps that include backward pass and optimizer: the same training as step by step."""

import numpy as np
import pytest
import torch
from helpers import QUIET, fit
from lightning.pytorch import Callback

import trvae
from trvae.train import _plan

SETTINGS = {
    "default": {},
    "learning rate": {"plan_kwargs": {"lr_schedule": "cosine"}},
    "KL weight": {"plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 10}},
    "plateau": {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1}},
    "weight decay": {"plan_kwargs": {"optimizer": "AdamW", "weight_decay": 0.1}},
    "balanced": {"condition_balanced": True, "batch_size": 50},
}


@pytest.fixture
def whole_steps(monkeypatch):
    """Let all training steps include the optimizer, as captured ones do."""
    monkeypatch.setattr(_plan, "can_be_captured", lambda plan: True)


def weights(model):
    return {name: value.cpu() for name, value in model.module.state_dict().items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_cells_on_the_device_train_the_same_model(adata, setting):
    train = {"max_epochs": 4, "batch_size": 64} | SETTINGS[setting]
    streamed = fit(adata, train=train | {"data_on_device": False}, dropout_rate=0.1)
    kept = fit(adata, train=train | {"data_on_device": True}, dropout_rate=0.1)
    for name, value in weights(streamed).items():
        assert torch.equal(weights(kept)[name], value), name


@pytest.mark.parametrize("setting", SETTINGS)
def test_whole_steps_train_the_same_model(adata, setting, request):
    train = {"max_epochs": 4, "batch_size": 64, "data_on_device": True} | SETTINGS[setting]
    step_by_step = fit(adata, train=train, dropout_rate=0.1)
    request.getfixturevalue("whole_steps")
    whole = fit(adata, train=train, dropout_rate=0.1)
    for name, value in weights(step_by_step).items():
        torch.testing.assert_close(weights(whole)[name], value, rtol=1e-5, atol=1e-6)
    assert whole.history.keys() == step_by_step.history.keys()
    for name, values in step_by_step.history.items():
        np.testing.assert_allclose(
            whole.history[name].astype(float),
            values.astype(float),
            rtol=1e-4,
            atol=1e-5,
            err_msg=name,
        )


def test_whole_steps_keep_the_rows_of_a_reference(adata, whole_steps):
    reference = fit(adata, train={"data_on_device": True})
    query = adata.copy()
    query.obs["condition"] = query.obs["condition"].astype(str).replace("treated", "new")
    mapped = trvae.TRVAE.load_query_data(query, reference)
    mapped.train(max_epochs=2, data_on_device=True, plan_kwargs={"weight_decay": 0.1}, **QUIET)
    mapped.module.to("cpu")
    new = weights(mapped)
    for name, value in weights(reference).items():
        if new[name].ndim:
            assert torch.equal(new[name][: len(value)], value), name


def test_a_callback_within_a_step_needs_plain_steps(adata):
    seen = []

    class Gradients(Callback):
        def on_after_backward(self, trainer, plan):
            seen.append(sum(p.grad.abs().sum() for p in plan.module.parameters()).item())

    model = fit(adata, train={"max_epochs": 1, "callbacks": [Gradients()]})
    assert len(seen) == len(model.trainer.train_dataloader)
    assert min(seen) > 0
