"""Steps that include backward pass and optimizer: the same training as step by step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import QUIET, assert_same_weights, fit, untrained
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

import trvae
from trvae.train import TRVAETrainingPlan, _plan
from trvae.train._graphs import can_be_captured, fixed_state

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
    assert_same_weights(kept.module, streamed.module.state_dict())


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


class Gradients(Callback):
    """Reads gradients, which captured steps keep to themselves."""

    def __init__(self):
        self.seen = []

    def on_after_backward(self, trainer, plan):
        self.seen.append(sum(p.grad.abs().sum().item() for p in plan.module.parameters()))


class EveryMinibatch(Callback):
    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        """May change whatever it likes."""


class EveryEpoch(Callback):
    def on_train_epoch_end(self, trainer, plan):
        """May change only what is looked at before the next epoch."""


class OwnStep(TRVAETrainingPlan):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"callbacks": [EveryEpoch(), LearningRateMonitor()]}, None),
        ({"callbacks": [Gradients()]}, "a callback acts within a step"),
        ({"callbacks": [EveryMinibatch()]}, "a callback acts within a step"),
        ({"gradient_clip_val": 1.0}, "gradients are clipped"),
        ({"accumulate_grad_batches": 2}, "gradients are accumulated"),
        ({"scaler": object()}, "the precision needs scaled gradients"),
        ({"optimizer": "Custom", "optimizer_creator": torch.optim.SGD}, "is not scvi-tools' Adam"),
        ({"plan": OwnStep}, "training plan of your own"),
        ({"device": "cpu"}, None),
    ],
    ids=[
        "nothing", "hooks of epochs", "gradients read", "minibatches seen", "clipped", "accumulated",
        "scaled", "own optimizer", "own step", "CPU",
    ],
)  # fmt: skip
def test_steps_are_captured_where_nothing_is_lost(adata, monkeypatch, caplog, change, reason):
    plan_kwargs = {name: change[name] for name in change if name.startswith("optimizer")}
    plan = change.get("plan", TRVAETrainingPlan)(untrained(adata).module, **plan_kwargs)
    trainer = SimpleNamespace(
        gradient_clip_val=change.get("gradient_clip_val"),
        accumulate_grad_batches=change.get("accumulate_grad_batches", 1),
        precision_plugin=SimpleNamespace(scaler=change.get("scaler")),
        callbacks=change.get("callbacks", []),
    )
    device = torch.device(change.get("device", "cuda"))
    for name, value in {"trainer": trainer, "device": device}.items():
        monkeypatch.setattr(type(plan), name, value)
    with caplog.at_level("INFO", "trvae"):
        assert can_be_captured(plan) == (reason is None and device.type == "cuda")
    assert len(caplog.messages) == (reason is not None)
    assert reason is None or reason in caplog.text


def test_callbacks_within_a_step_see_gradients(adata):
    gradients = Gradients()
    model = fit(adata, train={"max_epochs": 1, "callbacks": [gradients]})
    assert len(gradients.seen) == len(model.trainer.train_dataloader)
    assert min(gradients.seen) > 0


def test_steps_are_captured_anew_if_what_they_fixed_has_changed(adata):
    model = untrained(adata)
    plan = TRVAETrainingPlan(model.module)
    plan.optimizers = lambda **_: torch.optim.Adam(plan.module.parameters(), lr=1e-3)
    before = fixed_state(plan)
    assert fixed_state(plan) == before
    for change in (
        lambda: setattr(plan.module, "mmd_weight", 2.0),
        lambda: plan.loss_kwargs.update(final_kl_weight=0.5),
        lambda: plan.module.encoder.requires_grad_(False),
    ):
        change()
        assert fixed_state(plan) != before
        before = fixed_state(plan)
    # The KL weight and the learning rate are read from where they are.
    plan.loss_kwargs["kl_weight"] = torch.tensor(0.3)
    plan.optimizers = lambda **_: torch.optim.Adam(plan.module.parameters(), lr=2e-3)
    assert fixed_state(plan) == before
