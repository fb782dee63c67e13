"""Training that ends early, by Ctrl-C, SIGTERM or divergence, and the weights it keeps."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import contextmanager
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from scvi.train import Trainer, TrainRunner

from trvae._utils._seeds import set_random_states
from trvae.train._checkpoint import CheckpointWriter, Weights, restore, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterator


logger = logging.getLogger(__name__)


# What each of them does without us.
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
        The signal that asked for it, or the error that training is to end with.
    """

    def __init__(self, reason: signal.Signals | Exception):
        super().__init__(reason)
        self.reason = reason


class StopRequest:
    """Whether a signal has asked for an end."""

    number: signal.Signals | None = None


@contextmanager
def stop_requests(listen: bool = True) -> Iterator[StopRequest]:
    """Note a Ctrl-C or SIGTERM that comes within the context, rather than end at once.

    A second one acts as it does without. Handlers that someone else has set stay in place.

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
    """Raise the error, or what the signal does: ``KeyboardInterrupt``, or ``SystemExit``.

    Parameters
    ----------
    reason
        ``stopped_by`` of :class:`InterruptibleTrainer`.
    """
    if isinstance(reason, Exception):
        raise reason
    raise KeyboardInterrupt if reason == signal.SIGINT else SystemExit(128 + reason)


def end_if_interrupted(model: Any) -> None:
    """Go on with an interruption where a model that was not trained to its end is of no use.

    Parameters
    ----------
    model
        Which may have been trained.
    """
    reason = getattr(getattr(model, "trainer", None), "stopped_by", None)
    if reason is not None:
        end_by(reason)


class FinishedEpochs(Callback):
    """Keeps the best weights of the epochs that are finished, and ends what is not to go on.

    An epoch is looked at when the next one starts, as all of its metrics are there only then.

    Parameters
    ----------
    request
        To end training, as soon as a minibatch is done.
    writer
        Of checkpoints.
    checkpoint
        To go on from.
    """

    def __init__(
        self,
        request: StopRequest,
        writer: CheckpointWriter | None = None,
        checkpoint: dict | None = None,
    ):
        self.request = request
        self.writer = writer
        self.best: Weights | None = None
        self.n_epochs = 0
        self._checkpoint = checkpoint
        self._is_validated = False

    def on_train_start(self, trainer: Any, plan: Any) -> None:
        """Go on from the checkpoint."""
        if self._checkpoint is not None:
            restore(trainer, plan, self._checkpoint)
            self.best = Weights(**self._checkpoint["best"])
            self.n_epochs = self._checkpoint["epoch"]

    def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
        """Look at the epoch before."""
        self._finish_epoch(trainer, plan)
        if self._checkpoint is not None:
            set_random_states(self._checkpoint["random"])
            self._checkpoint = None
        self._stop_if_asked()

    def on_train_batch_start(self, trainer: Any, plan: Any, *args: Any) -> None:
        """End if a signal has asked for it."""
        self._stop_if_asked()

    def on_validation_end(self, trainer: Any, plan: Any) -> None:
        """Note that the epoch can be compared with others."""
        self._is_validated = not trainer.sanity_checking

    def on_train_end(self, trainer: Any, plan: Any) -> None:
        """Look at the last epoch."""
        self._finish_epoch(trainer, plan, is_last=True)

    def on_exception(self, trainer: Any, plan: Any, exception: BaseException) -> None:
        """Keep an epoch that was finished just before, and end the line of scvi-tools' bar."""
        # We look at an epoch before we stop.
        is_others = not isinstance(exception, StopTraining)
        if is_others and trainer.current_epoch > self.n_epochs and is_finite(plan.module):
            self._keep(trainer, plan)
        bar = getattr(trainer.progress_bar_callback, "main_progress_bar", None)
        if bar is not None:
            bar.close()

    def _stop_if_asked(self) -> None:
        if self.request.number is not None:
            raise StopTraining(self.request.number)

    def _finish_epoch(self, trainer, plan, is_last: bool = False) -> None:
        if trainer.current_epoch == self.n_epochs:
            return
        loss = trainer.callback_metrics.get("train_loss", 0.0)
        if not isfinite(loss) or not is_finite(plan.module):
            raise StopTraining(self.divergence(trainer.current_epoch, plan))
        best = self._keep(trainer, plan)
        if self.writer is not None and (is_last or self.n_epochs % self.writer.every == 0):
            try:
                self.writer.write(trainer, plan, best)
            except OSError as error:
                raise StopTraining(error) from error

    def _keep(self, trainer, plan) -> Weights:
        objective = nan
        if self._is_validated:
            objective = float(trainer.callback_metrics.get("objective_validation", nan))
        self._is_validated = False
        self.n_epochs = trainer.current_epoch
        best = self.best
        if best is None or not isfinite(best.objective) or objective < best.objective:
            best = self.best = Weights(self.n_epochs, objective, weights_of(plan.module))
        return best

    def divergence(self, epoch: int, plan: Any) -> RuntimeError:
        """Return an error that says what to do.

        Parameters
        ----------
        epoch
            In which training diverged, counted from 1.
        plan
            The training plan.
        """
        return RuntimeError(
            f"Training diverged in epoch {epoch}: the loss or a weight is not finite any more. "
            f"{self.kept()} Try a lower learning rate (plan_kwargs={{'lr': {plan.lr / 10:g}}}) or "
            "clip the gradients (gradient_clip_val=1.0), and look at the scale of what is "
            "registered: single cells or covariates with very large values can be the reason."
        )

    def kept(self) -> str:
        """Say which weights the model has after an interruption."""
        if self.best is None:
            return "No epoch was finished, so that the model is as it was before."
        which = f"The model has the weights of epoch {self.best.epoch}"
        if isfinite(self.best.objective):
            return f"{which}, which have the lowest objective_validation."
        return f"{which}, the last that was finished."

    def tell(self, trainer: InterruptibleTrainer) -> None:
        """Log, in a line, what became of a training that a signal was to end.

        Parameters
        ----------
        trainer
            Of that training.
        """
        reason = trainer.stopped_by
        if isinstance(reason, Exception) or (reason is None and self.request.number is None):
            return
        if reason is None:
            logger.warning("Training was asked to stop when it was finished already.")
            return
        text = (
            f"Training was stopped by {_NAMES[reason]} in epoch {self.n_epochs + 1} of "
            f"{trainer.max_epochs}. {self.kept()}"
        )
        if self.writer is not None and self.writer.has_written:
            folder = str(self.writer.path.parent)
            text += f" To go on, call train with the same arguments and resume_from={folder!r}."
        elif self.best is not None:
            text += " It can be saved, or trained further by train, from these weights."
        logger.warning(text)


def is_finite(module: torch.nn.Module) -> bool:
    """Whether all weights are numbers."""
    # A sum is finite only if all that it is of is.
    return all(isfinite(value.sum()) for value in module.state_dict().values())


def is_of_parameters(error: Exception) -> bool:
    """Whether a distribution of torch has refused its parameters, as it does if they are NaN."""
    return isinstance(error, ValueError) and "to satisfy the constraint" in str(error)


class InterruptibleTrainer(Trainer):
    """scvi-tools' trainer, of which a training that is stopped ends as if it were complete.

    So scvi-tools leaves a model that can be used, and Lightning none of its ``sys.exit``.
    """

    stopped_by: signal.Signals | Exception | None = None
    """The signal that ended training early, or the error that it is to end with."""

    def fit(self, plan: Any, *args: Any, **kwargs: Any) -> None:
        """Train, until it is to be stopped.

        Parameters
        ----------
        plan, *args, **kwargs
            Passed to :meth:`scvi.train.Trainer.fit`.
        """
        try:
            super().fit(plan, *args, **kwargs)
        except StopTraining as stop:
            self.stopped_by = stop.reason
        except SIGTERMException:
            self.stopped_by = signal.SIGTERM
        except SystemExit as end:
            # What Lightning makes of Ctrl-C.
            if not isinstance(end.__context__, KeyboardInterrupt):
                raise
            self.stopped_by = signal.SIGINT
        except Exception as error:
            (epochs,) = (one for one in self.callbacks if isinstance(one, FinishedEpochs))
            if epochs.request.number is not None:
                # It also ended a process that reads cells.
                self.stopped_by = epochs.request.number
            elif is_of_parameters(error) or not is_finite(plan.module):
                self.stopped_by = epochs.divergence(self.current_epoch + 1, plan)
                self.stopped_by.__cause__ = error
            else:
                raise


class InterruptibleTrainRunner(TrainRunner):
    """scvi-tools' runner with a trainer that can be stopped."""

    _trainer_cls = InterruptibleTrainer

    def __init__(self, model: Any, training_plan: Any, data_splitter: Any, *args, **kwargs):
        super().__init__(model, training_plan, data_splitter, *args, **kwargs)
        # scvi-tools looks at its own splitter only, and Lightning after an epoch. Data modules of
        # others don't tell how many cells they validate on.
        stopping = self.trainer.early_stopping_callback
        if (
            stopping is not None
            and "validation" in stopping.monitor
            and getattr(data_splitter, "n_val", None) == 0
        ):
            raise ValueError(
                f"Early stopping watches {stopping.monitor!r}, but there are no cells or images to "
                "validate on. Lower train_size, or give early_stopping=False."
            )
