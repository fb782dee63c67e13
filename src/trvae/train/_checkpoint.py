"""Checkpoints from which training resumes as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import SaveCheckpoint

from trvae._utils._seeds import random_states, set_random_states
from trvae.io._atomic import annotate_os_errors, atomic_write, check_writable
from trvae.io._reading import read_torch
from trvae.io._saved import has_kinds, shapes_of
from trvae.train._interruption import StopTraining

if TYPE_CHECKING:
    History = dict[str, pd.DataFrame] | None


_FILE = "training.ckpt"
# Where a checkpoint has what Lightning's lacks.
_KEY = "trvae"
_KINDS = {"state_dict": dict, "epoch": int}
_KINDS_OF_OURS = {
    "identity": dict,
    "was_trained": bool,
    "epochs_before": int,
    "history_before": dict | None,
    "history": dict | None,
    "random": dict,
    "is_finished": bool,
}


class TrainingCheckpoint(Callback):
    """Writes and resumes checkpoints of one training, each in place of the previous one.

    They are Lightning's, written between two epochs and supplemented by the history, the random
    states and the identity of the training. Lightning resumes from them by ``ckpt_path``.

    Parameters
    ----------
    identity
        What must be the same in a training that resumes.
    before
        Whether the model was trained before, its history, and for how many epochs.
    folder
        Folder to write to; made if it does not exist. ``None`` writes nothing.
    every
        Number of epochs between checkpoints. There is always one after the last epoch.

    Raises
    ------
    OSError
        If the folder can't be made or written to.
    """

    def __init__(
        self,
        identity: dict[str, Any],
        before: tuple[bool, History, int],
        folder: str | Path | None = None,
        every: int = 1,
    ):
        self.identity = identity
        self.before = before
        self.folder = None if folder is None else Path(folder)
        self.every = every
        self.has_written = False
        self._epoch = 0
        self._resumed: dict[str, Any] | None = None
        self._savers: list[SaveCheckpoint] | None = None
        if self.folder is not None:
            with annotate_os_errors(self.folder / _FILE):
                self.folder.mkdir(parents=True, exist_ok=True)
            check_writable(self.folder)

    def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
        """Write a checkpoint if one is due."""
        if trainer.current_epoch % self.every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: Any, plan: Any) -> None:
        """Write the last checkpoint."""
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Any, plan: Any, checkpoint: dict[str, Any]) -> None:
        """Supplement a checkpoint; those that others write stay as they are."""
        if self._savers is None:
            return
        was_trained, history, n_epochs = self.before
        checkpoint[_KEY] = {
            "identity": self.identity,
            "was_trained": was_trained,
            "epochs_before": n_epochs,
            "history_before": _as_tensors(history),
            "history": _as_tensors(getattr(trainer.logger, "history", None)),
            "random": random_states(),
            "is_finished": trainer.should_stop,
        }
        # Lightning skips an epoch that is ready when it resumes.
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress["ready"] = progress["started"]
        checkpoint["callbacks"] |= {
            callback.state_key: callback.state_dict() for callback in self._savers
        }

    def on_load_checkpoint(self, trainer: Any, plan: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what Lightning doesn't restore."""
        self._resumed = checkpoint.get(_KEY)
        self._epoch = checkpoint["epoch"]

    def on_fit_start(self, trainer: Any, plan: Any) -> None:
        """Restore all but the random states."""
        if self._resumed is None:
            return
        trainer.should_stop = self._resumed["is_finished"]
        history = getattr(trainer.logger, "history", None)
        if history is not None:
            history.update(_as_tables(self._resumed["history"]) or {})

    def on_train_batch_start(self, trainer: Any, plan: Any, *args: Any) -> None:
        """Restore the random states before the first minibatch."""
        if self._resumed is None:
            return
        set_random_states(self._resumed["random"])
        # Without an interruption, PyTorch has now drawn a seed for processes that read cells.
        torch.empty((), dtype=torch.int64).random_()
        self._resumed = None

    def _write(self, trainer: Any) -> None:
        if self.folder is None or trainer.current_epoch == self._epoch:
            return
        callbacks = trainer.callbacks
        # scvi-tools' save a model whenever Lightning writes a checkpoint.
        self._savers = [callback for callback in callbacks if isinstance(callback, SaveCheckpoint)]
        trainer.callbacks = [callback for callback in callbacks if callback not in self._savers]
        try:
            with atomic_write(self.folder / _FILE) as unfinished:
                trainer.save_checkpoint(unfinished, weights_only=False)
        except OSError as error:
            raise StopTraining(error) from error
        finally:
            trainer.callbacks = callbacks
            self._savers = None
        self._epoch = trainer.current_epoch
        self.has_written = True


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint in a folder.

    Parameters
    ----------
    path
        The folder, or the file in it.
    """
    path = Path(path)
    return path / _FILE if path.is_dir() else path


def has_checkpoint(path: str | Path | None) -> bool:
    """Whether there is a checkpoint.

    Parameters
    ----------
    path
        The folder, the file in it, or ``None``.
    """
    return path is not None and checkpoint_file(path).exists()


def read_checkpoint(
    path: str | Path, identity: dict[str, Any], module: torch.nn.Module, max_epochs: int
) -> tuple[bool, History, int]:
    """Check that a training can resume from a checkpoint, without running code from the file.

    Parameters
    ----------
    path
        The folder it was written to, or the file in it.
    identity
        See :class:`TrainingCheckpoint`.
    module
        The module to train.
    max_epochs
        Number of epochs of the training.

    Returns
    -------
    Whether the model had been trained before that training, its history, and for how many epochs.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, of another training or of a later epoch.
    """
    path = checkpoint_file(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    checkpoint = read_torch(path)
    if not has_kinds(checkpoint, _KINDS) or not has_kinds(checkpoint.get(_KEY), _KINDS_OF_OURS):
        raise ValueError(f"{path} is not a checkpoint written by train(checkpoint_dir=...).")
    own = checkpoint[_KEY]
    names = own["identity"] | identity
    differing = [name for name in names if own["identity"].get(name) != identity.get(name)]
    weights = {f"module.{name}": weight for name, weight in module.state_dict().items()}
    saved = checkpoint["state_dict"]
    if not all(map(torch.is_tensor, saved.values())) or shapes_of(saved) != shapes_of(weights):
        differing.append("shapes of weights")
    if differing:
        raise ValueError(
            f"{path} is a checkpoint of another training, which differs in {', '.join(differing)}."
        )
    if checkpoint["epoch"] > max_epochs:
        raise ValueError(
            f"{path} is a checkpoint of epoch {checkpoint['epoch']}, after max_epochs={max_epochs}."
        )
    return own["was_trained"], _as_tables(own["history_before"]), own["epochs_before"]


def _as_tensors(history: History) -> dict[str, tuple[str, torch.Tensor, torch.Tensor]] | None:
    """Turn tables with one column each into plain data, however many epochs there are."""
    if history is None:
        return None
    return {
        name: (
            table.index.name,
            torch.from_numpy(table.index.to_numpy(np.int64, copy=True)),
            torch.from_numpy(table.iloc[:, 0].to_numpy(np.float64, copy=True)),
        )
        for name, table in history.items()
    }


def _as_tables(history: dict[str, Any] | None) -> dict[str, pd.DataFrame] | None:
    """Return the tables that scvi-tools would have, from what :func:`_as_tensors` returned."""
    if history is None:
        return None
    return {
        name: pd.DataFrame(
            {name: values.tolist()}, pd.Index(index.numpy(), name=index_name), dtype=object
        )
        for name, (index_name, index, values) in history.items()
    }
