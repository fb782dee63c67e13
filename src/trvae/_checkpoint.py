"""Checkpoints of a training, from which it goes on as if it had not been interrupted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trvae._saved import history_as_arrays, history_as_tables, shapes_of
from trvae._seed import random_states
from trvae._stream import check_writable, complete_or_absent, naming_what_is_written
from trvae.io._reading import read_torch

_FILE = "training.ckpt"
_PARTS = {"model", "epoch", "weights", "best", "history", "random"}


class Weights(NamedTuple):
    """Weights of a finished epoch."""

    epoch: int
    """Counted from 1."""
    objective: float
    """``objective_validation``, NaN if that was not looked at."""
    state: dict[str, torch.Tensor]


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy all weights to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()
    }


class CheckpointWriter:
    """Writes checkpoints of one training, each in place of the one before.

    Parameters
    ----------
    folder
        Made if it is not there.
    every
        After how many epochs.
    model
        What the training is of: a checkpoint of anything else is refused.
    before
        Whether the model was trained before, and its history.

    Raises
    ------
    OSError
        If the folder can't be made or written to.
    """

    def __init__(self, folder: str | Path, every: int, model: dict, before: tuple[bool, Any]):
        self.path = Path(folder) / _FILE
        self.every = every
        self.has_written = False
        self._model = model
        was_trained, history = before
        self._before = was_trained, history_as_arrays(history)
        with naming_what_is_written(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(self.path.parent)

    def write(self, trainer: Any, plan: Any, best: Weights) -> None:
        """Write what training goes on from.

        Parameters
        ----------
        trainer, plan
            Between two epochs, or after the last one.
        best
            The best weights so far.

        Raises
        ------
        OSError
            If it can't be written. The checkpoint before is then still there.
        """
        checkpoint = {
            "model": self._model,
            "before": self._before,
            "epoch": trainer.current_epoch,
            "is_finished": trainer.should_stop,
            "weights": plan.module.state_dict(),
            "best": best._asdict(),
            "history": history_as_arrays(getattr(trainer.logger, "history", None)),
            "random": random_states(),
            "data": trainer.datamodule.state_dict(),
            **{name: [one.state_dict() for one in parts] for name, parts in _stateful(trainer)},
            "callbacks": {one.state_key: one.state_dict() for one in trainer.callbacks},
            "loop": trainer.fit_loop.epoch_loop.on_save_checkpoint(),
        }
        # A failure of the disk says what it is only if torch doesn't write to it itself.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with complete_or_absent(self.path) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())
        self.has_written = True


def has_checkpoint(path: str | Path | None) -> bool:
    """Whether :func:`read_checkpoint` finds a file.

    Parameters
    ----------
    path
        As in :func:`read_checkpoint`, or ``None``.
    """
    return path is not None and _file(path).exists()


def read_checkpoint(
    path: str | Path, model: dict, module: torch.nn.Module, max_epochs: int
) -> dict:
    """Read a checkpoint.

    Parameters
    ----------
    path
        The folder that it was written to, or the file therein.
    model
        As in :class:`CheckpointWriter`.
    module
        Whose training is to go on.
    max_epochs
        When it is to end.

    Returns
    -------
    What :meth:`CheckpointWriter.write` wrote, with ``before`` as it was given.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, of another model or of a later epoch.
    """
    path = _file(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= _PARTS:
        raise ValueError(f"{path} is no checkpoint that train(checkpoint_dir=...) has written.")
    differing = [name for name in model if checkpoint["model"].get(name) != model[name]]
    if shapes_of(checkpoint["weights"]) != shapes_of(module.state_dict()):
        differing.append("shapes of weights")
    if differing:
        raise ValueError(
            f"{path} is a checkpoint of another model: they differ in {', '.join(differing)}."
        )
    if checkpoint["epoch"] > max_epochs:
        raise ValueError(
            f"{path} is a checkpoint of epoch {checkpoint['epoch']}, after max_epochs={max_epochs}."
        )
    was_trained, history = checkpoint["before"]
    checkpoint["before"] = was_trained, history_as_tables(history)
    return checkpoint


def restore(trainer: Any, plan: Any, checkpoint: dict) -> None:
    """Let training that is about to start go on where a checkpoint was written.

    All but the random states, which are to be set where they were taken, between two epochs.

    Parameters
    ----------
    trainer, plan
        Of a training that starts.
    checkpoint
        What to go on from.

    Raises
    ------
    ValueError
        If the training has other parts.

    Notes
    -----
    Lightning's own resumption (``ckpt_path``) has neither random states nor the history, and reads
    checkpoints that are written before the metrics of their epoch are there.
    """
    plan.module.load_state_dict(checkpoint["weights"])
    trainer.should_stop = checkpoint["is_finished"]
    if (history := getattr(trainer.logger, "history", None)) is not None:
        history.update(history_as_tables(checkpoint["history"]) or {})
    trainer.datamodule.load_state_dict(checkpoint["data"])
    for name, parts in _stateful(trainer):
        if len(parts) != len(checkpoint[name]):
            raise ValueError(f"The checkpoint is of a training with other {name}.")
        for one, state in zip(parts, checkpoint[name], strict=True):
            one.load_state_dict(state)
    for one in trainer.callbacks:
        if state := checkpoint["callbacks"].get(one.state_key):
            one.load_state_dict(state)
    trainer.fit_loop.epoch_loop.on_load_checkpoint(checkpoint["loop"])
    # The next epoch was about to start.
    trainer.fit_loop.epoch_progress.reset_on_restart()


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / _FILE if path.is_dir() else path


def _stateful(trainer: Any) -> list[tuple[str, list[Any]]]:
    """All that has a state to keep, by what it is called in a checkpoint."""
    epochs, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
    return [
        ("optimizers", trainer.optimizers),
        ("schedulers", [config.scheduler for config in trainer.lr_scheduler_configs]),
        ("precision", [trainer.precision_plugin]),
        (
            "progress",
            [
                epochs.epoch_progress,
                batches.batch_progress,
                batches.automatic_optimization.optim_progress,
            ],
        ),
    ]
