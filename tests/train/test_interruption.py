"""Training that is stopped, fails or diverges: which weights the model has then."""

import os
import signal
import sys
from threading import Timer

import numpy as np
import pytest
import torch
from helpers import QUIET, SMALL, At, assert_same_weights, copied, fit, sending, untrained

import trvae
from trvae.train._interruption import stop_requests

SIGNALS = [signal.SIGINT, signal.SIGTERM]
N_EPOCHS = 6


def train(model, at, **kwargs):
    # Several minibatches an epoch, so that an epoch can be left unfinished.
    kwargs = {"max_epochs": N_EPOCHS, "batch_size": 128} | QUIET | kwargs
    model.train(**kwargs, callbacks=[at])


def values(table):
    return table.to_numpy().ravel().astype(float)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_model_has_its_best_weights(adata, tmp_path, caplog, number):
    model, at = untrained(adata), At(4, sending(number), spoiled=3)
    train(model, at, enable_progress_bar=True)
    objective = values(model.history["objective_validation"])
    assert len(objective) == len(model.history["train_loss"]) == 4
    assert objective.argmin() == 2
    assert_same_weights(model.module, at.weights[2])
    assert model.is_trained and model.trainer.interrupted and not model.module.training
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("trvae")]
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"stopped by {name} in epoch 5 of 6" in line
    assert "weights of epoch 3, which has the lowest" in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    # What it keeps of its cells belongs to these weights.
    assert model.mean_profiles_ is not None
    kept = model.reference_cells_["z_mean"]
    latent = model.get_latent_representation()[: len(kept)]
    np.testing.assert_allclose(kept, latent, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    assert_same_weights(loaded.module, at.weights[2])
    assert len(loaded.history["train_loss"]) == 4


@pytest.mark.parametrize(
    ("kwargs", "candidates"),
    [({"train_size": 1.0}, [4]), ({"check_val_every_n_epoch": 2}, [1, 3])],
    ids=["no validation", "rare validation"],
)
def test_epochs_are_compared_if_they_were_validated(adata, caplog, kwargs, candidates):
    model, at = untrained(adata), At(5, sending(signal.SIGINT))
    train(model, at, **kwargs)
    objective = values(model.history["objective_validation"]) if len(candidates) > 1 else [0.0]
    assert len(objective) == len(candidates)
    assert_same_weights(model.module, at.weights[candidates[np.argmin(objective)]])
    assert ("the last one to finish" in caplog.text) == (len(candidates) == 1)


class StopAfterTraining(At):
    """Stop when training has finished, but the model isn't complete."""

    def on_fit_end(self, trainer, plan):
        self.action(plan)


def failing(plan):
    raise LookupError("no such thing")


@pytest.mark.parametrize(
    ("error", "message", "at", "kwargs"),
    [
        (KeyboardInterrupt, "No epoch was finished", At(0, sending(signal.SIGINT)), {}),
        (SystemExit, "No epoch was finished", At(0, sending(signal.SIGTERM)), {}),
        (SystemExit, "3", At(2, lambda plan: sys.exit(3)), {}),
        (LookupError, "no such thing", At(2, failing), {}),
        (RuntimeError, "{'lr': 1e+29}", At(9, None), {"plan_kwargs": {"lr": 1e30}}),
    ],
    ids=["Ctrl-C", "SIGTERM", "exit", "any error", "diverges at once"],
)
@pytest.mark.parametrize("is_trained", [False, True])
def test_without_a_result_the_model_is_as_it_was(
    adata, caplog, error, message, at, kwargs, is_trained
):
    model = fit(adata, train={"max_epochs": 1}) if is_trained else untrained(adata)
    weights, before = copied(model.module), dict(vars(model))
    history = dict(before.pop("history_") or {})
    with pytest.raises(error) as raised:
        train(model, at, **kwargs)
    assert message in caplog.text + str(raised.value)
    assert_same_weights(model.module, weights)
    after = dict(vars(model))
    assert (after.pop("history_") or {}) == history
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_a_second_training_can_be_interrupted(adata):
    model, at = fit(adata), At(2, sending(signal.SIGTERM))
    before = model.reference_cells_["z_mean"]
    train(model, at)
    objective = values(model.history["objective_validation"])
    assert len(objective) == 5
    # It can't go back to weights of the first training.
    assert_same_weights(model.module, at.weights[objective[3:].argmin()])
    assert not np.array_equal(model.reference_cells_["z_mean"], before)
    model.train(max_epochs=1, **QUIET)
    assert len(model.history["objective_validation"]) == 6
    assert not model.trainer.interrupted


class InABackwardPass(At):
    """Do something in the middle of a minibatch."""

    def on_train_batch_start(self, *args):
        pass

    def on_before_backward(self, trainer, plan, loss):
        if trainer.current_epoch == self.epoch:
            self.action(plan)
            raise AssertionError("it went on")


def killing_a_worker(plan):
    signal.raise_signal(signal.SIGTERM)
    raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Terminated.")


@pytest.mark.parametrize(
    "at",
    [
        lambda: InABackwardPass(3, sending(signal.SIGINT, signal.SIGINT)),
        lambda: At(3, killing_a_worker),
    ],
    ids=["second signal", "worker killed"],
)
def test_training_that_ends_within_a_minibatch(adata, at):
    model, at = untrained(adata), at()
    train(model, at, train_size=1.0)
    assert_same_weights(model.module, at.weights[2])
    assert model.trainer.interrupted


def test_a_signal_at_any_time_stops_training(adata):
    def soon(plan):
        Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()

    model, at = untrained(adata), At(2, soon)
    train(model, at, max_epochs=100_000, train_size=1.0)
    assert model.trainer.interrupted
    assert_same_weights(model.module, at.weights[-1])


def test_a_handler_of_someone_else_stays(adata):
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    model, at = untrained(adata), At(3, sending(signal.SIGTERM))
    train(model, at, train_size=1.0)
    # Lightning ends the training all the same.
    assert seen == [signal.SIGTERM]
    assert_same_weights(model.module, at.weights[2])
    signal.raise_signal(signal.SIGTERM)
    assert len(seen) == 2


def test_the_handlers_are_put_back_whatever_happens():
    with pytest.raises(ZeroDivisionError), stop_requests():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with stop_requests(listen=False) as request, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert request.number is None


def test_a_signal_after_the_last_epoch_changes_nothing(adata, caplog):
    model = untrained(adata.copy())
    train(model, StopAfterTraining(9, sending(signal.SIGINT)), max_epochs=2)
    assert "asked to stop after it had finished" in caplog.text
    assert_same_weights(
        model.module, fit(adata, train={"max_epochs": 2, "batch_size": 128}).module.state_dict()
    )
    assert model.reference_cells_ is not None and not model.trainer.interrupted


def test_a_query_can_be_interrupted_and_trained_further(adata):
    conditions = ("control", "treated", "other")
    cells = trvae.datasets.simulated(n_cells=30, n_genes=60, conditions=conditions)
    is_query = cells.obs["condition"] == "other"
    reference = fit(cells[~is_query])
    model = trvae.TRVAE.load_query_data(cells[is_query].copy(), reference, match_reference=True)
    train(model, At(2, sending(signal.SIGINT)))
    assert model.is_trained and len(model.history["train_loss"]) == 2
    latent = [one.get_latent_representation(reference.adata) for one in (model, reference)]
    np.testing.assert_array_equal(*latent)
    n_known = len(reference.reference_cells_["z"])
    train(model, At(N_EPOCHS, None))
    kept = model.reference_cells_["z_mean"]
    np.testing.assert_array_equal(kept[:n_known], reference.reference_cells_["z_mean"])
    latent = model.get_latent_representation()
    np.testing.assert_allclose(kept[n_known:], latent, rtol=1e-4, atol=1e-5)


def test_what_needs_a_complete_training_ends(adata):
    ensemble_of = adata.copy()
    trvae.TRVAE.setup_anndata(ensemble_of, condition_key="condition")
    ensemble = trvae.TRVAEEnsemble(ensemble_of, n_models=2, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        train(ensemble, At(1, sending(signal.SIGINT)))
    assert [model.is_trained for model in ensemble.models] == [True, False]

    at = At(1, sending(signal.SIGTERM))
    method = trvae.TRVAEMethod(SMALL, {"max_epochs": 3, "callbacks": [at]} | QUIET)
    with pytest.raises(SystemExit) as end:
        method.fit(adata, seed=0, condition_key="condition", labels_key="cell_type")
    assert end.value.code == 143


class Spoil(At):
    """Make something infinite or NaN in epoch 3."""

    def __init__(self, what):
        super().__init__(3, self.spoil)
        self.what = what

    def spoil(self, plan):
        if self.what in ("weights", "error"):
            next(plan.module.parameters()).data.fill_(torch.nan)
        if self.what == "loss":
            plan._sums["train"]["train_loss"] = torch.tensor(torch.inf)
        elif self.what == "error":
            raise ArithmeticError("not a number")

    def on_train_epoch_end(self, trainer, plan):
        super().on_train_epoch_end(trainer, plan)
        if self.what == "last step" and trainer.current_epoch == 3:
            next(plan.module.parameters()).data[0] = torch.inf


@pytest.mark.parametrize("what", ["weights", "loss", "last step", "error"])
def test_a_training_that_diverges_keeps_the_last_good_weights(adata, what):
    model, at = untrained(adata), Spoil(what)
    with pytest.raises(RuntimeError, match="Training diverged in epoch 4: .*The model has"):
        train(model, at)
    objective = values(model.history["objective_validation"])[:3]
    assert_same_weights(model.module, at.weights[objective.argmin()])
    assert model.is_trained and model.reference_cells_ is not None
    assert np.isfinite(model.transfer(target_condition="treated").X.toarray()).all()
