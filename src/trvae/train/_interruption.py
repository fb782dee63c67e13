"""Training that ends early, by Ctrl-C, SIGTERM or divergence, and the weights it keeps."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import Trainer, TrainRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


logger = logging.getLogger(__name__)


# Python's own handlers of these signals.
_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class StopTraining(BaseException):
    """Raised within training to end it.

    Parameters
    ----------
    reason
        The signal that asked for it, or the error that training ends with.
    """

    def __init__(self, reason: signal.Signals | Exception):
        super().__init__(reason)
        self.reason = reason


class StopRequest:
    """The signal that has asked training to stop, if any."""

    number: signal.Signals | None = None


@contextmanager
def stop_requests(listen: bool = True) -> Iterator[StopRequest]:
    """Record a Ctrl-C or SIGTERM within the context instead of exiting.

    A second one acts as usual. Handlers that someone else has set stay in place.

    Parameters
    ----------
    listen
        Whether to do so. Only the main thread can.
    """
    request = StopRequest()
    if not listen or threading.current_thread() is not threading.main_thread():
        yield request
        return
    replaced = [number for number, own in _HANDLERS.items() if signal.getsignal(number) is own]

    def put_back() -> None:
        for number in replaced:
            signal.signal(number, _HANDLERS[number])

    def note(number: int, frame: Any) -> None:
        if request.number is None:
            request.number = signal.Signals(number)
        else:
            put_back()
            signal.raise_signal(number)

    for number in replaced:
        signal.signal(number, note)
    try:
        yield request
    finally:
        put_back()


def end_by(reason: signal.Signals | Exception) -> NoReturn:
    """Raise the error, or the exception of the signal: ``KeyboardInterrupt`` or ``SystemExit``.

    Parameters
    ----------
    reason
        ``stopped_by`` of :class:`InterruptibleTrainer`.
    """
    if isinstance(reason, Exception):
        raise reason
    raise KeyboardInterrupt if reason == signal.SIGINT else SystemExit(128 + reason)


def end_if_interrupted(model: Any) -> None:
    """Re-raise an interruption where a partial training is useless.

    Parameters
    ----------
    model
        A model, trained or not.
    """
    reason = getattr(getattr(model, "trainer", None), "stopped_by", None)
    if reason is not None:
        end_by(reason)


class Weights(NamedTuple):
    """Weights of a finished epoch."""

    epoch: int
    """Counted from 1."""
    objective: float
    """``objective_validation``, NaN if the epoch was not validated."""
    state: dict[str, torch.Tensor]
    """State of the module, on the CPU."""


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy all weights to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()
    }


class EpochTracker(Callback):
    """Keeps the weights of the best finished epoch, and ends training on request or divergence.

    An epoch is inspected when the next one starts, since its metrics are complete only then.

    Parameters
    ----------
    request
        Ends training after the current minibatch.
    """

    def __init__(self, request: StopRequest):
        self.request = request
        self.best: Weights | None = None
        self.n_epochs = 0
        self._is_validated = False

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights and the number of finished epochs, for a checkpoint."""
        best = self.best
        return {} if best is None else {"n_epochs": self.n_epochs, "best": best._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.n_epochs = state_dict["n_epochs"]
        self.best = Weights(**state_dict["best"])

    def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
        """Inspect the previous epoch."""
        self._finish_epoch(trainer, plan)

    def on_train_batch_start(self, trainer: Any, plan: Any, *args: Any) -> None:
        """Stop if a signal has asked for it."""
        if self.request.number is not None:
            raise StopTraining(self.request.number)

    def on_validation_end(self, trainer: Any, plan: Any) -> None:
        """Note that the epoch has an ``objective_validation``."""
        self._is_validated = not trainer.sanity_checking

    def on_train_end(self, trainer: Any, plan: Any) -> None:
        """Inspect the last epoch."""
        self._finish_epoch(trainer, plan)

    def on_exception(self, trainer: Any, plan: Any, exception: BaseException) -> None:
        """Keep an epoch that finished just before, and close scvi-tools' progress bar."""
        # Before we stop, we inspect the epoch.
        is_other = not isinstance(exception, StopTraining)
        if is_other and trainer.current_epoch > self.n_epochs and is_finite(plan.module):
            self._keep(trainer, plan)
        bar = getattr(trainer.progress_bar_callback, "main_progress_bar", None)
        if bar is not None:
            bar.close()

    def divergence_error(self, epoch: int, plan: Any) -> RuntimeError:
        """Return an error that says what to do.

        Parameters
        ----------
        epoch
            The epoch in which training diverged, counted from 1.
        plan
            The training plan.
        """
        return RuntimeError(
            f"Training diverged in epoch {epoch}: the loss or a weight is not finite. "
            f"{self._kept()} Try a lower learning rate (plan_kwargs={{'lr': {plan.lr / 10:g}}}) "
            "or clip the gradients (gradient_clip_val=1.0), and check the scale of the registered "
            "data: single cells or covariates with very large values can be the reason."
        )

    def log_outcome(self, trainer: InterruptibleTrainer, folder: Path | None = None) -> None:
        """Log the outcome of an interrupted training.

        Parameters
        ----------
        trainer
            The trainer.
        folder
            The folder of checkpoints from which training can resume.
        """
        reason = trainer.stopped_by
        if isinstance(reason, Exception) or (reason is None and self.request.number is None):
            return
        if reason is None:
            logger.warning("Training was asked to stop after it had finished.")
            return
        text = (
            f"Training was stopped by {_NAMES[reason]} in epoch {self.n_epochs + 1} of "
            f"{trainer.max_epochs}. {self._kept()}"
        )
        if folder is not None:
            text += (
                f" To resume, call train with the same arguments and resume_from={str(folder)!r}."
            )
        elif self.best is not None:
            text += " It can be saved, or trained further from these weights."
        logger.warning(text)

    def _finish_epoch(self, trainer: Any, plan: Any) -> None:
        if trainer.current_epoch == self.n_epochs:
            return
        loss = trainer.callback_metrics.get("train_loss", 0.0)
        if not isfinite(loss) or not is_finite(plan.module):
            raise StopTraining(self.divergence_error(trainer.current_epoch, plan))
        self._keep(trainer, plan)

    def _keep(self, trainer: Any, plan: Any) -> None:
        objective = nan
        if self._is_validated:
            objective = float(trainer.callback_metrics.get("objective_validation", nan))
        self._is_validated = False
        self.n_epochs = trainer.current_epoch
        best = self.best
        if best is None or not isfinite(best.objective) or objective < best.objective:
            self.best = Weights(self.n_epochs, objective, weights_of(plan.module))

    def _kept(self) -> str:
        """Say which weights the model has after an interruption."""
        if self.best is None:
            return "No epoch was finished, so the model is as it was before."
        which = f"The model has the weights of epoch {self.best.epoch}"
        if isfinite(self.best.objective):
            return f"{which}, which has the lowest objective_validation."
        return f"{which}, the last one to finish."


def is_finite(module: torch.nn.Module) -> bool:
    """Whether all weights are finite."""
    # A sum is finite only if all of its terms are. A GPU is asked once.
    sums = [value.detach().float().sum() for value in module.state_dict().values()]
    return bool(torch.stack(sums).isfinite().all())


class InterruptibleTrainer(Trainer):
    """scvi-tools' trainer, which treats a stopped training as finished.

    So scvi-tools leaves a usable model, and Lightning does not call ``sys.exit``.
    """

    stopped_by: signal.Signals | Exception | None = None
    """The signal that ended training early, or the error to raise."""

    def fit(self, plan: Any, *args: Any, **kwargs: Any) -> None:
        """Train, until something asks to stop.

        Parameters
        ----------
        plan, *args, **kwargs
            Passed to :meth:`scvi.train.Trainer.fit`. Of a checkpoint (``ckpt_path``), only
            tensors and plain data are read.
        """
        try:
            super().fit(plan, *args, weights_only=True, **kwargs)
        except StopTraining as stop:
            self.stopped_by = stop.reason
        except SIGTERMException:
            self.stopped_by = signal.SIGTERM
        except SystemExit as end:
            # Lightning turns Ctrl-C into it.
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            self.stopped_by = signal.SIGINT
        except Exception as error:
            (tracker,) = (
                callback for callback in self.callbacks if isinstance(callback, EpochTracker)
            )
            if tracker.request.number is not None:
                # The signal also ended a process that reads cells.
                self.stopped_by = tracker.request.number
            elif _is_of_parameters(error) or not is_finite(plan.module):
                self.stopped_by = tracker.divergence_error(self.current_epoch + 1, plan)
                self.stopped_by.__cause__ = error
            else:
                raise


def _is_of_parameters(error: Exception) -> bool:
    """Whether a torch distribution rejected its parameters, for example NaN."""
    return isinstance(error, ValueError) and "to satisfy the constraint" in str(error)


class InterruptibleTrainRunner(TrainRunner):
    """scvi-tools' runner with a trainer that can be stopped."""

    _trainer_cls = InterruptibleTrainer

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, *args, **kwargs):
        super().__init__(model, training_plan, data_splitter, *args, **kwargs)
        # scvi-tools checks its own splitter only, and Lightning complains after an epoch. Data
        # modules of others may lack n_val.
        stopping = self.trainer.early_stopping_callback
        if (
            stopping is not None
            and "validation" in stopping.monitor
            and getattr(data_splitter, "n_val", None) == 0
        ):
            raise ValueError(
                f"Early stopping watches {stopping.monitor!r}, but there are no cells or images "
                "for validation. Lower train_size, or give early_stopping=False."
            )
