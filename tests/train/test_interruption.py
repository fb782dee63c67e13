import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import QUIET, SMALL, At, assert_same_weights, bars, copied, fit, sending, untrained

import trvae
from trvae.train._interruption import stop_requests

SIGNALS = [signal.SIGINT, signal.SIGTERM]
N_EPOCHS = 8


def train(model, at, **kwargs):
    kwargs = {"max_epochs": N_EPOCHS} | QUIET | kwargs
    model.train(**kwargs, callbacks=[at])


def values(table):
    return table.to_numpy().ravel().astype(float)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupted_model_has_its_best_weights(adata, tmp_path, caplog, number):
    model, at = untrained(adata), At(6, sending(number), spoiled=4)
    train(model, at)
    objective = values(model.history["objective_validation"])
    assert len(objective) == len(model.history["train_loss"]) == 6
    assert_same_weights(model.module, at.weights[objective.argmin()])
    assert objective.argmin() == 3
    assert model.is_trained and model.trainer.interrupted and not model.module.training
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("trvae")]
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"stopped by {name} in epoch 7 of 8" in line
    assert f"weights of epoch {objective.argmin() + 1}, which have the lowest" in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    # What it knows beside its weights is of these weights.
    control = adata[adata.obs["condition"] == "control"].copy()
    predicted = model.transfer(control, "treated").X.toarray()
    model.save(tmp_path / "model")
    loaded = trvae.TRVAE.load(tmp_path / "model", adata=False)
    np.testing.assert_array_equal(loaded.transfer(control, "treated").X.toarray(), predicted)
    assert len(loaded.history["train_loss"]) == 6
    assert model.mean_profiles_ is not None
    kept = model.reference_cells_["z_mean"]
    np.testing.assert_allclose(
        kept, model.get_latent_representation()[: len(kept)], rtol=1e-4, atol=1e-5
    )


def test_without_validation_the_last_finished_epoch_counts(adata, caplog):
    model, at = untrained(adata), At(3, sending(signal.SIGINT))
    train(model, at, train_size=1.0)
    assert_same_weights(model.module, at.weights[2])
    assert "weights of epoch 3, the last that was finished" in caplog.text


def test_epochs_without_validation_do_not_count_once_there_was_one(adata):
    model, at = untrained(adata), At(7, sending(signal.SIGINT))
    train(model, at, check_val_every_n_epoch=3)
    objective = values(model.history["objective_validation"])
    assert len(objective) == 2
    assert_same_weights(model.module, at.weights[(2, 5)[objective.argmin()]])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("is_trained", [False, True])
def test_before_the_first_epoch_the_model_stays_as_it_was(adata, caplog, number, is_trained):
    model = fit(adata) if is_trained else untrained(adata)
    weights, before = copied(model.module), dict(model.__dict__)
    error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(error):
        train(model, At(0, sending(number)))
    assert "No epoch was finished, so that the model is as it was before" in caplog.text
    assert_same_weights(model.module, weights)
    assert model.is_trained == is_trained
    assert model.__dict__.keys() == before.keys()
    assert model.reference_cells_ is before["reference_cells_"]
    assert (model.history is None) != is_trained
    if is_trained:
        assert model.trainer is before["trainer"]
        assert all(len(table) == 3 for table in model.history.values())


def test_a_second_training_can_be_interrupted(adata):
    model, at = fit(adata), At(2, sending(signal.SIGTERM))
    before = model.reference_cells_["z_mean"]
    train(model, at)
    objective = values(model.history["objective_validation"])
    assert len(objective) == 5
    # The first training's are not among those that it can go back to.
    assert_same_weights(model.module, at.weights[objective[3:].argmin()])
    assert not np.array_equal(model.reference_cells_["z_mean"], before)
    model.train(max_epochs=1, **QUIET)
    assert len(model.history["objective_validation"]) == 6
    assert not model.trainer.interrupted


def test_a_second_signal_ends_at_once(adata):
    class Twice(At):
        def on_train_batch_start(self, *args):
            pass

        def on_before_backward(self, trainer, plan, loss):
            if trainer.current_epoch == self.epoch:
                # In the middle of a minibatch.
                self.action(plan)
                raise AssertionError("it went on")

    model, at = untrained(adata), Twice(3, sending(signal.SIGINT, signal.SIGINT))
    train(model, at, train_size=1.0)
    assert_same_weights(model.module, at.weights[2])
    assert model.trainer.interrupted


def test_a_signal_that_also_ends_a_process_that_reads_cells(adata):
    def end(plan):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Terminated.")

    model, at = untrained(adata), At(3, end)
    train(model, at, train_size=1.0)
    assert_same_weights(model.module, at.weights[2])


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


def test_a_signal_after_the_last_epoch_changes_nothing(adata, caplog, monkeypatch):
    learn = trvae.TRVAE._learn_from_cells

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        learn(self, *args)

    monkeypatch.setattr(trvae.TRVAE, "_learn_from_cells", interrupted)
    model = fit(adata)
    assert "asked to stop when it was finished already" in caplog.text
    monkeypatch.undo()
    assert_same_weights(model.module, copied(fit(adata).module))
    assert model.reference_cells_ is not None and not model.trainer.interrupted


def test_the_handlers_are_put_back_whatever_happens():
    with pytest.raises(ZeroDivisionError), stop_requests():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_any_other_error_leaves_the_model_as_it_was(adata):
    def fail(plan):
        raise LookupError("no such thing")

    for model in (untrained(adata.copy()), fit(adata)):
        weights, is_trained, history = copied(model.module), model.is_trained, model.history
        with pytest.raises(LookupError):
            train(model, At(2, fail))
        assert_same_weights(model.module, weights)
        assert model.is_trained == is_trained
        assert (model.history is None) == (history is None)
        assert not is_trained or len(model.history["train_loss"]) == 3


def test_a_query_can_be_interrupted_and_trained_on(adata):
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
    np.testing.assert_allclose(
        kept[n_known:], model.get_latent_representation(), rtol=1e-4, atol=1e-5
    )


def test_images_can_be_interrupted():
    adata = bars()
    trvae.ImageTRVAE.setup_anndata(
        adata, condition_key="condition", image_shape=adata.uns["image_shape"]
    )
    model = trvae.ImageTRVAE(adata, channels=(4, 4), n_latent=2, seed=0)
    at = At(2, sending(signal.SIGTERM))
    model.train(max_epochs=4, callbacks=[at], **QUIET)
    best = values(model.history["objective_validation"]).argmin()
    assert_same_weights(model.module, at.weights[best])
    assert model.transfer(target_condition="bright").shape == adata.shape


def test_what_needs_all_of_a_training_ends(adata, monkeypatch):
    ensemble_of = adata.copy()
    trvae.TRVAE.setup_anndata(ensemble_of, condition_key="condition")
    ensemble = trvae.TRVAEEnsemble(ensemble_of, n_models=2, **SMALL)
    at = At(1, sending(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ensemble.train(max_epochs=3, callbacks=[at], **QUIET)
    assert [model.is_trained for model in ensemble.models] == [True, False]

    at = At(1, sending(signal.SIGTERM))
    method = trvae.TRVAEMethod(SMALL, {"max_epochs": 3, "callbacks": [at]} | QUIET)
    with pytest.raises(SystemExit) as end:
        method.fit(adata, seed=0, condition_key="condition", labels_key="cell_type")
    assert end.value.code == 143


def test_a_script_under_sigterm_reaches_save(tmp_path):
    script = f"""
import trvae

class Tell(Callback):
    def on_train_epoch_start(self, trainer, plan):
        if trainer.current_epoch == 2:
            print("started", flush=True)

adata = trvae.datasets.simulated(n_cells=40, n_genes=60)
trvae.TRVAE.setup_anndata(adata, condition_key="condition", labels_key="cell_type")
model = trvae.TRVAE(adata, seed=0)
model.train(
    max_epochs=100_000, callbacks=[Tell()], accelerator="cpu", enable_progress_bar=False
)
model.save({str(tmp_path / "model")!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert any("started" in line for line in process.stdout)
    time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "stopped by SIGTERM" in errors and "NameError" not in errors
    assert trvae.TRVAE.load(tmp_path / "model", adata=False).is_trained


# ------------------------------------------------------------------------ divergence


def test_a_training_that_diverges_at_once_says_what_to_change(adata):
    model = untrained(adata)
    weights = copied(model.module)
    with pytest.raises(RuntimeError, match="diverged in epoch 1: .* as it was before") as error:
        model.train(max_epochs=3, plan_kwargs={"lr": 1e30}, **QUIET)
    message = str(error.value)
    assert "{'lr': 1e+29}" in message and "gradient_clip_val" in message and "scale" in message
    assert_same_weights(model.module, weights)
    assert not model.is_trained and model.history is None


@pytest.mark.parametrize("what", ["weights", "loss", "last step"])
def test_a_training_that_diverges_later_keeps_the_last_good_weights(adata, what):
    def spoil(plan):
        if what == "weights":
            next(plan.module.parameters()).data.fill_(torch.nan)
        elif what == "loss":
            plan._sums["train"]["train_loss"] = torch.tensor(torch.inf)

    class InTheLastStep(At):
        def on_train_epoch_end(self, trainer, plan):
            super().on_train_epoch_end(trainer, plan)
            if what == "last step" and trainer.current_epoch == 4:
                next(plan.module.parameters()).data[0] = torch.inf

    model, at = untrained(adata), InTheLastStep(4, spoil)
    with pytest.raises(RuntimeError, match="Training diverged in epoch 5: .*The model has"):
        train(model, at)
    objective = values(model.history["objective_validation"])[:4]
    assert_same_weights(model.module, at.weights[objective.argmin()])
    assert model.is_trained and model.reference_cells_ is not None
    assert np.isfinite(model.transfer(target_condition="treated").X.toarray()).all()
