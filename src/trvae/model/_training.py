"""Training a model, and what it keeps of its cells besides the weights."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningDataModule

from trvae._utils._arguments import (
    NONE,
    NONNEGATIVE_NUMBER,
    POSITIVE_INTEGER,
    Rule,
    check_arguments,
    choice,
    instance_of,
    number,
)
from trvae._utils._seeds import seeded
from trvae.data._checks import is_nonnegative
from trvae.model._cell_summaries import (
    choose_reference_cells,
    encode_reference_cells,
    first_reference_minibatches,
    get_codes,
)
from trvae.model._hints import TRAIN, hinting
from trvae.model._identity import identity_of
from trvae.module._distributed import uses_processes
from trvae.train._checkpoint import TrainingCheckpoint, checkpoint_file, read_checkpoint
from trvae.train._defaults import TrainingDefaults, completed_settings
from trvae.train._history import new_history
from trvae.train._initial_means import InitialMeans
from trvae.train._interruption import EpochTracker, end_by, stop_requests, weights_of
from trvae.train._noise import without_noise
from trvae.train._precision import check_precision, float32_afterwards
from trvae.train._sampling import check_split_sizes, first_values_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from trvae.model._interface import Model
else:
    Model = object

_PATH = instance_of(str, os.PathLike)
_DICTIONARY = instance_of(dict)
_CALLBACKS = Rule(
    "a list of Lightning callbacks",
    lambda value: (
        isinstance(value, list | tuple)
        and all(isinstance(callback, Callback) for callback in value)
    ),
)
_RULES = {
    "max_epochs": POSITIVE_INTEGER | NONE,
    "train_size": number("a number above 0 and up to 1", lambda value: 0 < value <= 1) | NONE,
    "validation_size": NONNEGATIVE_NUMBER | NONE,
    "batch_size": POSITIVE_INTEGER | choice("auto"),
    "data_on_device": choice(True, False, None),
    "datasplitter_kwargs": _DICTIONARY | NONE,
    "plan_kwargs": _DICTIONARY | NONE,
    "datamodule": instance_of(LightningDataModule) | NONE,
    "checkpoint_dir": _PATH | NONE,
    "checkpoint_every_n_epoch": POSITIVE_INTEGER,
    "resume_from": _PATH | NONE,
    "callbacks": _CALLBACKS | NONE,
}

_SHARE_OF_PATIENCE = 0.2

# Arguments with which calibration trains other models.
_KEPT = (
    "train_size", "validation_size", "shuffle_set_split", "batch_size", "early_stopping",
    "condition_balanced", "check_val_every_n_epoch",
)  # fmt: skip
_KEPT_OF_TRAINER = (
    "accumulate_grad_batches", "early_stopping_min_delta", "early_stopping_mode",
    "early_stopping_monitor", "early_stopping_patience", "gradient_clip_algorithm",
    "gradient_clip_val", "precision",
)  # fmt: skip

# Attributes that training sets.
_SET_BY_TRAINING = (
    "is_trained_", "history_", "trainer", "train_indices_", "validation_indices_",
    "test_indices_", "reference_cells_", "mean_profiles_", "modelled_shares_", "profile_cells_",
    "training_", "calibration_",
)  # fmt: skip


class TrainingMixin(Model):
    """Train a model, and summarise its cells."""

    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    reference_cells_: dict[str, np.ndarray] | None
    training_: dict[str, Any] | None
    _training_defaults = TrainingDefaults(576_000, 128, {"lr": 1e-3})

    @hinting(TRAIN)
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | Literal["auto"] = "auto",
        early_stopping: bool = False,
        condition_balanced: bool | None = None,
        data_on_device: bool | None = None,
        check_val_every_n_epoch: int | None = 1,
        datasplitter_kwargs: dict | None = None,
        plan_kwargs: dict | None = None,
        datamodule: Any | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every_n_epoch: int = 1,
        resume_from: str | Path | None = None,
        callbacks: Sequence[Any] | None = None,
        **trainer_kwargs,
    ) -> None:
        """Train the model.

        Ctrl-C or SIGTERM stop training after the current minibatch. The model then counts as
        trained and has the weights with the lowest ``objective_validation`` so far (without
        validation, those of the last finished epoch). A warning is logged, and
        ``model.trainer.interrupted`` is true.

        Parameters
        ----------
        max_epochs
            Passes over the data. By default, as many as see 288,000 cells for counts, or 576,000 cells
            for log-normalised values and images, but between 10 and 400.
        accelerator
            Hardware to train on, such as ``"cpu"`` or ``"gpu"``; see
            :class:`~lightning.pytorch.trainer.trainer.Trainer`.
        devices
            Devices to use: their number, a list of indices, or ``"auto"``.
        train_size
            Share of the cells to train on, by default 0.9.
        validation_size
            Share of the cells to validate on, by default the rest.
        shuffle_set_split
            Whether to split at random rather than in the order of the cells.
        load_sparse_tensor
            Whether to move minibatches to the device as sparse tensors.
        batch_size
            Cells in a minibatch, in each process if there are several. ``"auto"`` is 256 for counts
            and 128 for log-normalised values and images, and, for many cells, up to 512: the
            largest with which ten epochs still have as many minibatches.
        early_stopping
            Whether to stop when ``objective_validation``, the loss with the final KL weight and
            the MMD, has not fallen for a fifth of ``max_epochs``. The model then has the weights
            of the epoch in which it was lowest, as after an interruption; otherwise those of the
            last epoch.
        condition_balanced
            Whether every minibatch has cells of every condition. Cells of rare conditions are
            then repeated, also in the training terms of :attr:`history`. By default, if chance
            would leave the rarest condition with less than a sixteenth of a minibatch, or fewer than
            8 cells. Not used with a ``datamodule``.
        data_on_device
            Whether to keep the cells on the device during training, rather than to move minibatches
            there. By default, if it is a GPU and they take at most half of its free memory. Not
            used with a ``datamodule``, several processes or ``load_sparse_tensor``.
        check_val_every_n_epoch
            Number of epochs between validations.
        datasplitter_kwargs
            Passed to :class:`~scvi.dataloaders.DataSplitter`. ``num_workers`` needs cells
            in memory or forked processes.
        plan_kwargs
            Passed to :class:`~scvi.train.TrainingPlan`. The default learning rate ``lr`` is 2.8e-3 for
            counts, 1e-3 for log-normalised values, and for images 4e-3 falling to 0
            (``lr_schedule="cosine"``); with larger minibatches that are chosen by ``"auto"``, it
            grows with the square root of their size. The KL weight rises over the first quarter of
            the epochs unless ``n_epochs_kl_warmup`` or ``n_steps_kl_warmup`` is given.
        datamodule
            Data to train on if the model was made from a ``registry``. Without an attribute
            ``n_obs``, it needs ``max_epochs``.
        checkpoint_dir
            Folder for a checkpoint of the training, in which each replaces the previous one. Not
            available with several processes.
        checkpoint_every_n_epoch
            Number of epochs between checkpoints. There is always one after the last epoch.
        resume_from
            The ``checkpoint_dir`` of a training of the same model, or the file in it. With the
            same arguments, the result is that of a training without interruption; the split, the
            optimizer's settings and :attr:`history` come from the checkpoint.
        callbacks
            Further Lightning callbacks.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`. ``precision`` can be ``"32-true"``,
            ``"64-true"``, ``"bf16-mixed"`` or ``"16-mixed"``; the trained weights are float32.

        Raises
        ------
        ValueError
            If an argument is not one of those allowed, there are fewer than two cells to train on
            or none for the validation that early stopping watches, the cells are minified, all
            weights are frozen, several processes train a model without a seed or are to write
            checkpoints, or a checkpoint is damaged or of another training.
        RuntimeError
            If training diverges: the loss or a weight is not finite. The model then is as after
            an interruption.
        OSError
            If a checkpoint can't be written (the model then is as after an interruption), or
            there is none to resume from.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM arrive before the first epoch has finished. After these and any
            other error, the model is as it was before.

        Notes
        -----
        :attr:`history` has ``elbo``, ``reconstruction_loss``, ``kl_local``, ``mmd`` and
        ``objective``, each for ``train`` and ``validation``, and ``train_loss`` and
        ``validation_loss``.
        """
        check_arguments(locals(), _RULES)
        check_split_sizes(train_size, validation_size)
        check_precision(trainer_kwargs.get("precision"))
        self._check_can_be_trained(datamodule)
        batch_size, max_epochs, plan_kwargs = completed_settings(
            batch_size,
            max_epochs,
            plan_kwargs,
            defaults=self._training_defaults,
            n_cells=self.summary_stats.n_cells,
            datamodule=datamodule,
        )
        kept = {name: value for name, value in locals().items() if name in _KEPT}
        kept |= {name: trainer_kwargs[name] for name in _KEPT_OF_TRAINER if name in trainer_kwargs}
        trainer_kwargs = {
            "early_stopping_monitor": "objective_validation",
            "early_stopping_patience": max(3, round(_SHARE_OF_PATIENCE * max_epochs)),
            **trainer_kwargs,
        }
        is_distributed = uses_processes(trainer_kwargs.get("strategy"))
        has_checkpoints = checkpoint_dir is not None or resume_from is not None
        if is_distributed:
            self._check_can_be_distributed(has_checkpoints)
            # Our sampler shares the cells out already.
            trainer_kwargs.setdefault("use_distributed_sampler", False)
        if datamodule is not None:
            self._check_data_of(datamodule)
        checkpoint = None
        before = self.is_trained_, self.history_, (self.training_ or {}).get("max_epochs", 0)
        if has_checkpoints:
            identity = identity_of(self, datamodule, plan_kwargs)
            if resume_from is not None:
                before = read_checkpoint(resume_from, identity, self.module, max_epochs)
                trainer_kwargs["ckpt_path"] = checkpoint_file(resume_from)
            checkpoint = TrainingCheckpoint(
                identity, before, checkpoint_dir, checkpoint_every_n_epoch
            )
        with (
            self._restored_on_error(),
            seeded(self.seed),
            stop_requests(listen=not is_distributed) as request,
        ):
            tracker = EpochTracker(request)
            # To these or a reference's cells.
            is_fitted = self.is_trained_ or self.mapping_ is not None
            self.is_trained_, self.history_, epochs_before = before
            # A trained model is in evaluation mode, which Lightning would leave it in.
            self.module.train()
            with new_history(self), float32_afterwards(self.module), without_noise():
                super().train(
                    max_epochs=max_epochs,
                    accelerator=accelerator,
                    devices=devices,
                    train_size=train_size,
                    validation_size=validation_size,
                    shuffle_set_split=shuffle_set_split,
                    load_sparse_tensor=load_sparse_tensor,
                    batch_size=batch_size,
                    early_stopping=early_stopping,
                    check_val_every_n_epoch=check_val_every_n_epoch,
                    datasplitter_kwargs={
                        "condition_balanced": condition_balanced,
                        "data_on_device": data_on_device,
                        **(datasplitter_kwargs or {}),
                    },
                    plan_kwargs=plan_kwargs,
                    datamodule=datamodule,
                    callbacks=[
                        *(callbacks or []),
                        tracker,
                        *([checkpoint] if checkpoint else []),
                        *([] if is_fitted else [InitialMeans()]),
                    ],
                    **trainer_kwargs,
                )
            self._take_best_weights(tracker, early_stopping)
            n_epochs = max_epochs if early_stopping else self.trainer.current_epoch
            kept |= {"max_epochs": epochs_before + n_epochs, "plan_kwargs": plan_kwargs}
            self.training_ = kept
            self._learn_from_cells(datamodule)
        if isinstance(self.trainer.stopped_by, Exception):
            raise self.trainer.stopped_by
        written_to = checkpoint.folder if checkpoint and checkpoint.has_written else None
        tracker.log_outcome(self.trainer, written_to)

    def _check_can_be_trained(self, datamodule: Any | None) -> None:
        if self.minified_data_type is not None:
            raise ValueError("a model can't be trained on a minified AnnData.")
        if datamodule is None:
            if self.adata is None:
                raise ValueError(
                    f"The model has no {self.registered_data.cells} of its own to train on. "
                    "Load it with an AnnData, or give a datamodule."
                )
            self._check_data_unchanged()
            self._check_columns_unchanged(with_labels=True)
            cells = self.registered_data.cells_of(self.adata)
            self._check_library(cells, is_required=True)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing to train: the query has no new condition or category. "
                "Use it as it is, or load it with unfrozen=True."
            )

    def _check_can_be_distributed(self, has_checkpoints: bool) -> None:
        if self.seed is None:
            raise ValueError(
                "Processes that train together need the same seed: give one to the model, "
                f"as in {type(self).__name__}(adata, seed=0)."
            )
        if has_checkpoints:
            raise ValueError("Checkpoints work with one process only, not with several.")

    def _check_data_of(self, datamodule: Any) -> None:
        """Check the first minibatch, since all of them would take an epoch."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        has_labels = self.registered_data.arguments.get("labels_key") is not None
        values = first_values_of(datamodule, has_labels=has_labels).numpy()
        self._check_values(values, "The data module's X")
        self.expression_is_nonnegative_ = is_nonnegative(values)

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Restore the model if training fails."""
        attributes = vars(self)
        before = {name: attributes[name] for name in _SET_BY_TRAINING if name in attributes}
        if self.history_ is not None:
            # scvi-tools adds to it.
            before["history_"] = dict(self.history_)
        weights, is_training = weights_of(self.module), self.module.training
        try:
            yield
        except BaseException:
            for name in _SET_BY_TRAINING:
                attributes.pop(name, None)
            attributes.update(before)
            self.module.load_state_dict(weights)
            self.module.train(is_training)
            raise

    def _take_best_weights(self, tracker: EpochTracker, early_stopping: bool) -> None:
        """Go back to the best weights of a training that was stopped, or end if there are none."""
        stopped_by = self.trainer.stopped_by
        if stopped_by is None and not early_stopping:
            return
        if tracker.best is None:
            tracker.log_outcome(self.trainer)
            end_by(stopped_by)
        self.module.load_state_dict(tracker.best.state)

    def _learn_from_cells(self, datamodule: Any | None = None) -> None:
        """Store summaries of the training cells."""
        seed = self.seed or 0
        known = self.mapping_["reference_cells"] if self.mapping_ and self._is_frozen else None
        if datamodule is None:
            chosen = choose_reference_cells(*get_codes(self.adata_manager), seed, known)
            if len(chosen) == 0:
                return
            minibatches = self._make_data_loader(self.adata, chosen)
        else:
            minibatches = first_reference_minibatches(datamodule)
        self.reference_cells_ = encode_reference_cells(self.module, minibatches, seed, known)

    def _kept_reference_cells(self) -> dict[str, np.ndarray]:
        if self.reference_cells_ is None:
            raise ValueError(
                f"No training {self.registered_data.cells} are kept with this model: it was not "
                "trained here."
            )
        return self.reference_cells_
