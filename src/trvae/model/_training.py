"""Training a model, and what it learns from its cells beside the weights."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from scvi.model._utils import use_distributed_sampler
from scvi.module._constants import MODULE_KEYS
from scvi.utils._docstrings import devices_dsp

from trvae._utils._arguments import (
    check_positive_integer,
)
from trvae._utils._matrices import digest_of_rows
from trvae._utils._seeds import seeded
from trvae.counterfactual._support import balanced_sample
from trvae.data._checks import (
    get_matrix,
    is_nonnegative,
)
from trvae.module._base import FIRST_LAYER_KEY
from trvae.train._checkpoint import CheckpointWriter, read_checkpoint, weights_of
from trvae.train._interruption import (
    FinishedEpochs,
    end_by,
    stop_requests,
)
from trvae.train._plan import check_passed_on, check_training
from trvae.train._sampling import SPLIT, minibatches_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


if TYPE_CHECKING:
    # For type checkers, the model that it is mixed into has everything.
    _Model: Any
else:
    _Model = object


_MIN_EPOCHS, _MAX_EPOCHS = 10, 400
_SHARE_OF_KL_WARMUP = 0.25
_SHARE_OF_PATIENCE = 0.2
_N_REFERENCE_CELLS = 5_000


# What is kept of them: the posterior mean of z, a draw of z, what the draw is decoded to, codes.
_REFERENCE_CELLS = ("z_mean", "z", FIRST_LAYER_KEY, "condition", "label")


class TrainingMixin(_Model):
    """Train a model, and keep what it learns from its cells beside the weights."""

    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    reference_cells_: dict[str, np.ndarray] | None

    def _check_data_of(self, datamodule: Any) -> None:
        """Look at the first minibatch, as all of them would take an epoch."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        values = next(minibatches_of(datamodule))[REGISTRY_KEYS.X_KEY].numpy()
        self._check_values(values, "The data module's X")
        self.expression_is_nonnegative_ = is_nonnegative(values)

    @devices_dsp.dedent
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = 128,
        early_stopping: bool = False,
        condition_balanced: bool | None = None,
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

        Ctrl-C or SIGTERM end training after the minibatch. The model then has the weights with the
        lowest ``objective_validation`` so far (without validation, those of the last finished
        epoch), is trained, and can be used; a line of log tells so, and
        ``model.trainer.interrupted`` is true.

        Parameters
        ----------
        max_epochs
            Passes over the data. By default as many as make 4,500 minibatches of all cells,
            between 10 and 400.
        %(param_accelerator)s
        %(param_devices)s
        train_size
            Share of the cells to train on, by default 0.9.
        validation_size
            Share of the cells to validate on, by default the rest.
        shuffle_set_split
            Whether to split at random rather than in the order of the cells.
        load_sparse_tensor
            Whether to move minibatches to the device as sparse tensors.
        batch_size
            Cells in a minibatch, in each of the processes if there are several.
        early_stopping
            Whether to stop when ``objective_validation`` has not fallen for a fifth of
            ``max_epochs``: the loss with the final KL weight, the MMD included.
        condition_balanced
            Whether every minibatch has cells of every condition, those of rare conditions
            repeatedly (the training terms in :attr:`history` then count them repeatedly, too).
            By default if a minibatch would have fewer than 8 of the rarest by chance. Not used
            with a ``datamodule``.
        check_val_every_n_epoch
            How often the validation cells are looked at.
        datasplitter_kwargs
            Passed to :class:`~scvi.dataloaders.DataSplitter`.
        plan_kwargs
            Passed to :class:`~scvi.train.TrainingPlan`. The learning rate ``lr`` is 1e-3 by
            default (of images, 4e-3 that falls to 0: ``lr_schedule="cosine"``). The KL weight
            rises over the first quarter of the epochs unless ``n_epochs_kl_warmup`` or
            ``n_steps_kl_warmup`` is given.
        datamodule
            Data to train on if the model was made from a ``registry``.
        checkpoint_dir
            Folder for a checkpoint of all that training depends on, each in place of the one
            before. Not with several processes.
        checkpoint_every_n_epoch
            After how many epochs to write one. There is always one after the last epoch.
        resume_from
            The ``checkpoint_dir`` of a training of the same model, or the file therein. Training
            goes on from there, with the same arguments to the same result as without an
            interruption; the split, the optimizer's settings and :attr:`history` are those of the
            checkpoint.
        callbacks
            Further callbacks of Lightning.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If there are fewer than two cells to train on, none to validate on that early stopping
            watches, an argument is not of its type, ``batch_size`` is below 2, another
            number is not one of those allowed, the cells are minified, all weights are frozen, several processes train a model that has no seed or
            are to write checkpoints, or a checkpoint is damaged or of another model.
        RuntimeError
            If training diverges: the loss or a weight is not finite. The model then has the
            weights that it would have after an interruption.
        OSError
            If a checkpoint can't be written (the model is then as after an interruption), or there
            is none to resume from.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM come before the first epoch is finished. After these, and any other
            error, the model is as it was before.

        Notes
        -----
        :attr:`history` has, for ``train`` and ``validation``, ``elbo``, ``reconstruction_loss``,
        ``kl_local``, ``mmd`` and ``objective``, beside ``train_loss`` and ``validation_loss``.
        """
        check_training(max_epochs, batch_size, train_size, validation_size)
        check_passed_on(plan_kwargs, datasplitter_kwargs, datamodule, callbacks)
        if max_epochs is None:
            n_cells = (self.adata if datamodule is None else datamodule).n_obs
            epochs = round(self._default_steps * batch_size / max(n_cells, 1))
            max_epochs = min(max(epochs, _MIN_EPOCHS), _MAX_EPOCHS)
        plan_kwargs = {**self._default_plan_kwargs, **(plan_kwargs or {})}
        if plan_kwargs.get("n_steps_kl_warmup") is None:
            plan_kwargs.setdefault(
                "n_epochs_kl_warmup", max(1, round(_SHARE_OF_KL_WARMUP * max_epochs))
            )
        trainer_kwargs.setdefault("early_stopping_monitor", "objective_validation")
        trainer_kwargs.setdefault(
            "early_stopping_patience", max(3, round(_SHARE_OF_PATIENCE * max_epochs))
        )
        if datamodule is None:
            datasplitter_kwargs = {
                "condition_balanced": condition_balanced,
                **(datasplitter_kwargs or {}),
            }
        if self.minified_data_type is not None:
            raise ValueError("A model can't be trained on the cells of a minified AnnData.")
        if datamodule is None:
            if self.adata is None:
                raise ValueError(
                    f"The model has no {self.registered_data.cells} of its own to train on. Load it with an "
                    "AnnData, or give a datamodule."
                )
            self._check_data_unchanged()
            self._check_codes_unchanged()
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing to train: the query has no new condition or category. "
                "Use it as it is, or load it with unfrozen=True."
            )
        has_checkpoints = checkpoint_dir is not None or resume_from is not None
        is_shared = use_distributed_sampler(trainer_kwargs.get("strategy"))
        if is_shared:
            if self.seed is None:
                raise ValueError(
                    "Processes that train together need the same seed: give one to the model, "
                    f"as in {type(self).__name__}(adata, seed=0)."
                )
            if has_checkpoints:
                raise ValueError("Checkpoints are of training in one process, not of several.")
            # Our sampler shares the cells out; Lightning would share them out once more.
            trainer_kwargs.setdefault("use_distributed_sampler", False)
        if datamodule is not None:
            self._check_data_of(datamodule)
        check_positive_integer("checkpoint_every_n_epoch", checkpoint_every_n_epoch)
        identity = self._identity(datamodule) if has_checkpoints else {}
        before, checkpoint, writer = (self.is_trained_, self.history_), None, None
        if resume_from is not None:
            checkpoint = read_checkpoint(resume_from, identity, self.module, max_epochs)
            before = checkpoint["before"]
            if datamodule is None:
                split = [checkpoint["data"][name].numpy() for name in SPLIT]
                datasplitter_kwargs = {**(datasplitter_kwargs or {}), "external_indexing": split}
        if checkpoint_dir is not None:
            writer = CheckpointWriter(checkpoint_dir, checkpoint_every_n_epoch, identity, before)
        with (
            self._as_before_if_it_fails(),
            seeded(self.seed),
            stop_requests(listen=not is_shared) as request,
        ):
            epochs = FinishedEpochs(request, writer, checkpoint)
            self.is_trained_, self.history_ = before
            # A trained model is left in evaluation mode, in which further training would have
            # neither dropout nor batch statistics.
            self.module.train()
            with self._with_a_history():
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
                    datasplitter_kwargs=datasplitter_kwargs,
                    plan_kwargs=plan_kwargs,
                    datamodule=datamodule,
                    callbacks=[*(callbacks or []), epochs],
                    **trainer_kwargs,
                )
            stopped_by = self.trainer.stopped_by
            if stopped_by is not None:
                if epochs.best is None:
                    epochs.tell(self.trainer)
                    end_by(stopped_by)
                self.module.load_state_dict(epochs.best.state)
            self._learn_from_cells(datamodule)
        if isinstance(stopped_by, Exception):
            raise stopped_by
        epochs.tell(self.trainer)

    def _identity(self, datamodule: Any | None) -> dict[str, Any]:
        """What a checkpoint must be of to go on from it."""
        if datamodule is None:
            n_cells = self.adata.n_obs
            matrix = get_matrix(
                self.registered_data.cells_of(self.adata), self.registered_data.layer
            )
            values = digest_of_rows(matrix, np.arange(n_cells))
        else:
            n_cells, values = getattr(datamodule, "n_obs", None), None
        settings = dict(self.init_params_["non_kwargs"])
        # Not of the training.
        for name in ("linear_weight", "response_limit"):
            settings.pop(name, None)
        return {
            **{
                name: str(list(value) if isinstance(value, tuple) else value)
                for name, value in settings.items()
            },
            "conditions": list(map(str, self.conditions)),
            "genes": list(map(str, self.registered_data.var_names)),
            "number of cells": n_cells,
            "values": values,
        }

    @contextmanager
    def _as_before_if_it_fails(self) -> Iterator[None]:
        """Leave nothing of a training that ends with an error."""
        before, weights, training = (
            dict(self.__dict__),
            weights_of(self.module),
            self.module.training,
        )
        if isinstance(self.history_, dict):
            # scvi-tools adds to it.
            before["history_"] = dict(self.history_)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            self.module.load_state_dict(weights)
            self.module.train(training)
            raise

    @contextmanager
    def _with_a_history(self) -> Iterator[None]:
        """Let scvi-tools start a history, which it does of models only that are not trained."""
        was_trained = self.is_trained_
        self.is_trained_ = was_trained and self.history_ is not None
        try:
            yield
        finally:
            self.is_trained_ = was_trained or self.is_trained_

    def _learn_from_cells(self, datamodule: Any | None = None) -> None:
        """Learn what a trained model knows of its cells beside the weights."""
        self._keep_reference_cells(datamodule)

    def _keep_reference_cells(self, datamodule: Any | None) -> None:
        """Keep how a sample of the cells is represented, all labels and conditions alike.

        So what the model has seen is known where its cells are not.
        """
        known = self.mapping_["reference_cells"] if self.mapping_ and self._is_frozen else None
        codes = [REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY]
        if datamodule is None:
            condition, label = (
                np.asarray(self.adata_manager.get_from_registry(key)).ravel() for key in codes
            )
            candidates = np.arange(len(condition))
            if known is not None:
                candidates = candidates[~np.isin(condition, known["condition"])]
            groups = condition[candidates].astype(np.int64) * (int(label.max()) + 1)
            chosen = candidates[
                balanced_sample(
                    groups + label[candidates],
                    _N_REFERENCE_CELLS,
                    np.random.default_rng(self.seed or 0),
                )
            ]
            if len(chosen) == 0:
                return
            minibatches = self._make_data_loader(self.adata, chosen)
        else:
            # Minibatches are random already.
            minibatches = itertools.islice(
                minibatches_of(datamodule), -(-_N_REFERENCE_CELLS // datamodule.batch_size)
            )
        kept: dict[str, list] = {name: [] for name in _REFERENCE_CELLS}
        self.module.eval()
        with torch.inference_mode(), self.module.latent_draws(self.seed or 0):
            for tensors in minibatches:
                inferred, generated = self.module(tensors, compute_loss=False)
                values = (
                    inferred[MODULE_KEYS.QZ_KEY].loc,
                    inferred[MODULE_KEYS.Z_KEY],
                    generated[FIRST_LAYER_KEY],
                    *(tensors[key].flatten() for key in codes),
                )
                for blocks, block in zip(kept.values(), values, strict=True):
                    blocks.append(block.cpu().numpy())
        sample = {name: np.concatenate(blocks) for name, blocks in kept.items()}
        if known is not None:
            sample = {name: np.concatenate([known[name], sample[name]]) for name in sample}
        self.reference_cells_ = sample

    def _kept_reference_cells(self) -> dict[str, np.ndarray]:
        if self.reference_cells_ is None:
            raise ValueError(
                f"No training {self.registered_data.cells} are kept with this model: it was not trained so."
            )
        return self.reference_cells_
