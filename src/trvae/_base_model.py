"""What models of expression and of images share: train, represent, save, load, map queries."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from pyro import get_param_store
from rich.pretty import pprint
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._download import _download
from scvi.data._utils import _get_adata_minify_type
from scvi.model._utils import use_distributed_sampler
from scvi.model.base import (
    ArchesMixin,
    BaseMinifiedModeModelClass,
    UnsupervisedTrainingMixin,
    VAEMixin,
)
from scvi.model.base._constants import SAVE_KEYS
from scvi.module._constants import MODULE_KEYS
from scvi.utils._docstrings import devices_dsp

from trvae._base_module import FIRST_LAYER_KEY, MMDLayer
from trvae._checkpoint import CheckpointWriter, read_checkpoint, weights_of
from trvae._confidence import ConfidenceMixin
from trvae._data import (
    cell_positions,
    check_anndata,
    check_choice,
    check_data,
    check_from_0,
    check_positive_integer,
    check_seed,
    get_matrix,
    is_list_of,
    is_nonnegative,
    is_number,
    join_names,
    name_of_matrix,
    private_copy,
)
from trvae._interruption import (
    FinishedEpochs,
    InterruptibleTrainRunner,
    end_by,
    stop_requests,
)
from trvae._mudata import as_of_anndata, cells_of, expression_modality
from trvae._registration import (
    InOrderDataManager,
    as_from_setup_anndata,
    check_cells,
    check_columns,
    fields_of,
    registered_genes,
    with_genes_of_model,
)
from trvae._saved import (
    FORMAT_VERSION,
    SavedModel,
    check_prefix,
    file_of_cells,
    history_as_arrays,
)
from trvae._seed import seeded, with_seed
from trvae._stream import (
    check_room,
    complete_or_as_before,
    digest_of_rows,
    naming_what_is_written,
    write_h5ad,
)
from trvae._support import balanced_sample
from trvae._train import (
    SPLIT,
    ConditionBalancedDataSplitter,
    TRVAETrainingPlan,
    check_passed_on,
    check_training,
    minibatches_of,
)
from trvae._transfer import TransferMixin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from scvi._types import MinifiedDataType

_MIN_EPOCHS, _MAX_EPOCHS = 10, 400
_SHARE_OF_KL_WARMUP = 0.25
_SHARE_OF_PATIENCE = 0.2
_N_REFERENCE_CELLS = 5_000
# What is kept of them: the posterior mean of z, a draw of z, what the draw is decoded to, codes.
_REFERENCE_CELLS = ("z_mean", "z", FIRST_LAYER_KEY, "condition", "label")


class BaseTRVAE(
    TransferMixin,
    ConfidenceMixin,
    VAEMixin,
    ArchesMixin,
    UnsupervisedTrainingMixin,
    BaseMinifiedModeModelClass,
):
    """A transfer VAE of whatever is in the columns of an AnnData.

    Parameters
    ----------
    adata, registry, mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths, seed
        See :class:`~trvae.TRVAE`.
    """

    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    # scvi-tools saves attributes that end with an underscore.
    format_version_ = FORMAT_VERSION
    # What messages call rows and columns.
    _CELLS, _GENES = "cells", "genes"
    # Minibatches that training takes by default, whatever the number of cells.
    _default_steps = 4_500
    _default_plan_kwargs: dict[str, Any] = {}
    _data_splitter_cls = ConditionBalancedDataSplitter
    _training_plan_cls = TRVAETrainingPlan
    _train_runner_cls = InterruptibleTrainRunner
    _LATENT_QZM_KEY = "trvae_latent_qzm"
    _LATENT_QZV_KEY = "trvae_latent_qzv"

    def __init__(
        self,
        adata: AnnData | MuData | None,
        registry: dict | None,
        *,
        mmd_weight: float,
        mmd_layer: MMDLayer,
        mmd_within_labels: bool | None,
        mmd_bandwidths: Sequence[float],
        seed: int | None,
    ):
        name = type(self).__name__
        if adata is None and registry is None:
            raise ValueError(f"Give adata, registered with {name}.setup_anndata, or a registry.")
        check_data(adata)
        check_choice("mmd_layer", mmd_layer, get_args(MMDLayer))
        check_from_0("mmd_weight", mmd_weight)
        if not is_list_of(mmd_bandwidths, lambda s: is_number(s) and s > 0):
            raise ValueError(f"mmd_bandwidths={mmd_bandwidths!r} are not positive numbers.")
        if seed is not None:
            check_seed(seed)
        if registry is not None and registry.get("setup_method_name") == "setup_datamodule":
            registry = as_from_setup_anndata(registry, name)
        super().__init__(adata, registry)

        has_labels = self._setup_args.get("labels_key") is not None
        if mmd_within_labels and not has_labels:
            raise ValueError("mmd_within_labels=True needs labels: setup_anndata(labels_key=...).")
        self.seed = seed
        self.mapping_: dict[str, Any] | None = None
        self.mean_profiles_: np.ndarray | None = None
        self.modelled_shares_: np.ndarray | None = None
        self.reference_cells_: dict[str, np.ndarray] | None = None
        self.expression_is_nonnegative_ = False
        self.data_is_sparse_ = True
        self._mmd_kwargs = {
            "mmd_weight": mmd_weight,
            "mmd_layer": mmd_layer,
            "mmd_within_labels": has_labels if mmd_within_labels is None else mmd_within_labels,
            "mmd_bandwidths": tuple(mmd_bandwidths),
        }

    def _make_module(self, **kwargs) -> None:
        """Make the network for what is registered, with these arguments of its class."""
        with seeded(self.seed):
            self.module = self._module_cls(
                n_batch=self.summary_stats.n_batch,
                n_labels=self.summary_stats.n_labels,
                n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
                n_cats_per_cov=self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key"),
                **kwargs,
                **self._mmd_kwargs,
            )
        self.module.minified_data_type = self.minified_data_type
        if self.adata is not None and self.minified_data_type is None:
            self._check_own_data()

    def _summary(self, **settings) -> str:
        """What is shown of the model."""
        settings = {"conditions": join_names(self.conditions)} | settings | self._mmd_kwargs
        del settings["mmd_bandwidths"]
        listed = ", ".join(f"{name}: {value}" for name, value in settings.items())
        return f"{type(self).__name__} model with the following parameters: \n{listed}."

    # -------------------------------------------------------------- data registration

    @property
    def _setup_args(self) -> dict[str, Any]:
        return self.registry["setup_args"]

    @classmethod
    def _register(cls, adata: AnnData, setup_method_args: dict, **kwargs) -> None:
        """Check an AnnData and register it, as ``setup_anndata`` does."""
        setup_args = setup_method_args["setup_args"]
        check_cells(adata, setup_args, kwargs)
        fields = [field(*args, **options) for _, field, args, options in fields_of(**setup_args)]
        minify_type = _get_adata_minify_type(adata)
        if minify_type is not None:
            fields += cls._get_fields_for_adata_minification(minify_type)
        manager = InOrderDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def conditions(self) -> list[Any]:
        """The conditions that the model knows, in the order of their codes."""
        return list(self._field_state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"])

    @property
    def _condition_key(self) -> str:
        return self._field_state(REGISTRY_KEYS.BATCH_KEY)["original_key"]

    @property
    def _layer(self) -> str | None:
        return as_of_anndata(self._setup_args).get("layer")

    @property
    def _modality(self) -> str | None:
        return expression_modality(self._setup_args)

    @property
    def _var_names(self) -> np.ndarray:
        return registered_genes(self.registry)

    def _field_state(self, registry_key: str) -> dict:
        return self.registry["field_registries"].get(registry_key, {}).get("state_registry", {})

    def get_var_names(
        self, legacy_mudata_format: bool = False
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Genes of the model; if it is of MuData, by the name of their modality.

        Parameters
        ----------
        legacy_mudata_format
            Whether to leave that name out.
        """
        names = self._var_names.astype(str)
        return names if legacy_mudata_format or self._modality is None else {self._modality: names}

    def _cells_of(self, data: AnnData | MuData) -> AnnData:
        """Return an AnnData as it is, and of a MuData what the model reads."""
        if not isinstance(data, MuData):
            check_anndata(data)
            return data
        if self._modality is None:
            raise ValueError(
                "The model was set up with an AnnData, so that it takes one modality, such as "
                f"mdata[{next(iter(data.mod))!r}], and no MuData."
            )
        return cells_of(data, self._setup_args)

    def _check_values(self, values: Any, where: str) -> None:
        """Raise a ``ValueError`` unless the values suit the likelihood."""
        raise NotImplementedError

    def _check_is_as_set_up(self) -> None:
        """Raise a ``ValueError`` if the model's own data has changed since the model was made."""
        adata = self._cells_of(self.adata)
        if not np.array_equal(adata.var_names, self._var_names):
            raise ValueError(
                f"The {self._GENES} of adata have changed since the model was made. Make another "
                "model of it, or change a copy: adata.copy()."
            )
        if not adata.isbacked and self.minified_data_type is None:
            self._check_values(get_matrix(adata, self._layer), name_of_matrix(self._layer))

    def _check_codes(self) -> None:
        """Raise a ``ValueError`` if what was registered of the model's own data is another's."""
        obs = self._cells_of(self.adata).obs
        for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY):
            state = self._field_state(key)
            if (column := state.get("original_key")) not in obs:
                continue
            found = np.ravel(self.adata_manager.get_from_registry(key))
            names = np.asarray(state["categorical_mapping"])
            if found.max() >= len(names) or (names[found] != np.asarray(obs[column])).any():
                raise ValueError(
                    f"obs[{column!r}] of adata has changed since the model was made, or adata was "
                    "set up anew. Make another model of it, or use a copy: adata.copy()."
                )

    def _check_own_data(self) -> None:
        matrix = get_matrix(self._cells_of(self.adata), self._layer)
        self._check_values(matrix, name_of_matrix(self._layer))
        self.data_is_sparse_ = not isinstance(matrix, np.ndarray)
        self.expression_is_nonnegative_ = is_nonnegative(matrix)

    def _check_data_of(self, datamodule: Any) -> None:
        """Look at the first minibatch, as all of them would take an epoch."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        values = next(minibatches_of(datamodule))[REGISTRY_KEYS.X_KEY].numpy()
        self._check_values(values, "The data module's X")
        self.expression_is_nonnegative_ = is_nonnegative(values)

    def _validate_anndata(
        self,
        adata: AnnData | MuData | None = None,
        copy_if_view: bool = True,
        obs: pd.DataFrame | None = None,
    ) -> AnnData:
        """Return an AnnData registered with the model that has the cells of ``adata``.

        Cells that the model doesn't know yet are registered as a private copy, so that the
        user's AnnData is never written to. Of a MuData, it has what the model reads.

        Parameters
        ----------
        adata
            By default the model's own.
        copy_if_view
            Kept for scvi-tools.
        obs
            Taken in place of ``adata.obs``.
        """
        known = self._per_instance_manager_store.get(self.id, {}).values()
        # scvi-tools' own minification registers the minified AnnData here.
        if adata is None or adata is self._adata or _get_adata_minify_type(adata) is not None:
            adata = super()._validate_anndata(adata, copy_if_view=copy_if_view)
            if not isinstance(adata, MuData):
                return adata
        elif any(manager.adata is adata for manager in known):
            return adata
        return self._register_private_copy(self._cells_of(adata), obs)

    def minify_adata(
        self,
        minified_data_type: MinifiedDataType = ADATA_MINIFY_TYPE.LATENT_POSTERIOR,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Keep of the model's cells no more than their latent representation.

        The model then has a copy of its AnnData without expression. What is decoded from the
        latent representation stays the same; what needs expression takes other cells, or raises
        an error. The model can't be trained further.

        Parameters
        ----------
        minified_data_type
            ``"latent_posterior_parameters"``, or ``"latent_posterior_parameters_with_counts"`` to
            keep the expression, too.
        use_latent_qzm_key, use_latent_qzv_key
            Keys in ``adata.obsm`` of the mean and the variance of ``z``, as
            ``get_latent_representation(return_dist=True)`` returns them.

        Raises
        ------
        ValueError
            If the model has no AnnData but a MuData or none, or a key is missing.
        """
        if not isinstance(self.adata, AnnData):
            raise ValueError("Only an AnnData can be minified, and the model has none.")
        keys = {"use_latent_qzm_key": use_latent_qzm_key, "use_latent_qzv_key": use_latent_qzv_key}
        for argument, key in keys.items():
            if key not in self.adata.obsm:
                raise ValueError(
                    f"{argument} {key!r} is not in model.adata.obsm. Keep there what "
                    "model.get_latent_representation(return_dist=True) returns."
                )
        super().minify_adata(minified_data_type, use_latent_qzm_key, use_latent_qzv_key)

    def _make_data_loader(self, adata: AnnData, indices: Any = None, **kwargs) -> Any:
        """As scvi-tools', with clear errors if there are no such cells or minibatches."""
        if kwargs.get("batch_size") is not None:
            check_positive_integer("batch_size", kwargs["batch_size"])
        positions = cell_positions(indices, adata.n_obs, cells=self._CELLS)
        loader = super()._make_data_loader(adata, positions, **kwargs)
        # Otherwise PyTorch draws from the global one whenever it starts to read.
        loader.generator = torch.Generator()
        return loader

    def _register_private_copy(self, adata: AnnData, obs: pd.DataFrame | None) -> AnnData:
        setup_args = as_of_anndata(self._setup_args)
        copy = private_copy(adata, self._var_names, self._layer, self._GENES)
        if obs is not None:
            copy.obs = obs
        labels_key = setup_args["labels_key"]
        if labels_key is not None and labels_key not in copy.obs:
            # Labels only steer the training.
            copy.obs[labels_key] = self._field_state(REGISTRY_KEYS.LABELS_KEY)[
                "categorical_mapping"
            ][0]
        check_columns(copy, setup_args)
        self._check_known_categories(copy)
        matrix = get_matrix(copy, self._layer)
        self._check_values(matrix, name_of_matrix(self._layer))

        type(self).setup_anndata(
            copy, source_registry=self.registry, extend_categories=True, **setup_args
        )
        manager = self._get_most_recent_anndata_manager(copy, required=True)
        del self._setup_adata_manager_store[manager.adata_uuid]
        # Only the last copy is kept, or each would hold on to its user's matrix for good.
        managers = self._per_instance_manager_store.setdefault(self.id, {})
        managers.pop(getattr(self, "_private_copy_uuid", None), None)
        self._private_copy_uuid = manager.adata_uuid
        managers[manager.adata_uuid] = manager
        return copy

    def _check_known_categories(self, adata: AnnData) -> None:
        known = {self._condition_key: self.conditions}
        known |= self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {})
        for key, categories in known.items():
            unknown = set(adata.obs[key].unique()) - set(categories)
            if unknown:
                raise ValueError(
                    f"adata.obs[{key!r}] has values that the model was not trained on: "
                    f"{join_names(sorted(unknown, key=str))}. It knows {join_names(categories)}."
                )

    # ------------------------------------------------------------------------ training

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
                    f"The model has no {self._CELLS} of its own to train on. Load it with an "
                    "AnnData, or give a datamodule."
                )
            self._check_is_as_set_up()
            self._check_codes()
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
            matrix = get_matrix(self._cells_of(self.adata), self._layer)
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
            "genes": list(map(str, self._var_names)),
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
                f"No training {self._CELLS} are kept with this model: it was not trained so."
            )
        return self.reference_cells_

    def _train_as_mapped(self) -> None:
        """Let training change what it may after a mapping, and compare with what it shall."""
        if self.mapping_ is None:
            return
        if self.mapping_["n_rows"] is not None:
            self.module.train_new_categories_only(self.mapping_["n_rows"])
        if self.mapping_["matches_reference"]:
            self.module.compare_with(self.mapping_["reference_cells"])

    @property
    def _is_frozen(self) -> bool:
        """Whether only the weights of a query's new conditions and categories are trained."""
        return not all(parameter.requires_grad for parameter in self.module.parameters())

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        *args,
        **kwargs,
    ) -> None:
        """Save the model.

        What is written are tensors and plain data, in scvi-tools' format, so that :meth:`load`
        needs no trust in the file.

        Parameters
        ----------
        dir_path
            Folder to save it in.
        prefix
            Of the files' names.
        overwrite
            Whether a model that is saved there may be replaced. It is, once the new one is
            complete.
        save_anndata
            Whether to save the data beside it.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.save`.

        Raises
        ------
        ValueError
            If the folder is there already, and not to be overwritten, or ``prefix`` has a slash.
        OSError
            If it can't be written, as the disk is full. What was there before is still there.
        """
        check_prefix(prefix)
        folder = Path(dir_path).absolute()
        if folder.exists() and not overwrite:
            raise ValueError(f"{dir_path} is there already. Name another, or give overwrite=True.")
        with naming_what_is_written(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        # scvi-tools saves what any model of this process has left in Pyro's store.
        with (
            get_param_store().scope(),
            self._with_plain_history(),
            complete_or_as_before(folder) as unfinished,
        ):
            unfinished.mkdir(exist_ok=True)
            if save_anndata:
                is_mudata = isinstance(self.adata, MuData)
                path = unfinished / file_of_cells(prefix, is_mudata)
                if is_mudata or kwargs:
                    # Their own methods write these.
                    check_room(path, self.adata)
                else:
                    write_h5ad(path, self.adata)
                    save_anndata = False
            super().save(str(unfinished), prefix, True, save_anndata, *args, **kwargs)

    @contextmanager
    def _with_plain_history(self) -> Iterator[None]:
        history = self.history_
        self.history_ = history_as_arrays(history)
        try:
            yield
        finally:
            self.history_ = history

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | MuData | bool | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: Any | None = None,
        allowed_classes_names_list: list[str] | None = None,
        *,
        trusted: bool = False,
    ) -> Any:
        """Load a saved model.

        Nothing that its files might hold beside tensors and plain data is run.

        Parameters
        ----------
        dir_path
            Folder that the model was saved in.
        adata
            Cells with the columns that the model was set up with. Genes are matched by name:
            unless they are the model's in its order, the model has a copy of the cells in which
            they are. ``None`` takes the cells saved with the model, ``False`` none.
        accelerator, device, prefix, backup_url, datamodule, allowed_classes_names_list
            As in :meth:`scvi.model.base.BaseModelClass.load`.
        trusted
            Whether the file comes from someone who may run code here. Then it can hold any object
            of Python, such as conditions that are neither numbers nor strings.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            If nothing is saved there, a file is damaged, holds other things than tensors and plain
            data, is of another class or of a newer version, or a column or a gene is missing; if
            ``adata`` is no AnnData, or the cells saved there are another model's.
        """
        check_prefix(prefix)
        if adata is not False:
            check_data(adata)
        _download(backup_url, str(dir_path), f"{prefix or ''}{SAVE_KEYS.MODEL_FNAME}")
        saved = SavedModel.read(dir_path, prefix, trusted=trusted)
        saved.check_is_of(cls, allowed_classes_names_list)
        if adata is None:
            adata = saved.cells()
        if isinstance(adata, AnnData | MuData):
            modality = expression_modality(saved.registry["setup_args"])
            adata = with_genes_of_model(
                adata, registered_genes(saved.registry), modality, cls._GENES
            )
        # Weights are drawn before those that are saved take their place.
        with saved.in_private_folder() as folder, seeded(0):
            model = super().load(
                folder,
                adata,
                accelerator,
                device,
                datamodule=datamodule,
                allowed_classes_names_list=allowed_classes_names_list,
            )
        model._train_as_mapped()
        return model

    @staticmethod
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict:
        """What is registered of the cells that a saved model is of, without loading the model.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Raises
        ------
        ValueError
            As :meth:`load`.
        """
        return SavedModel.read(dir_path, prefix).registry

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print what a saved model's cells were set up with.

        Parameters
        ----------
        dir_path, prefix
            As in :meth:`load`.

        Raises
        ------
        ValueError
            As :meth:`load`.
        """
        pprint(SavedModel.read(dir_path, prefix).registry["setup_args"])

    @classmethod
    def convert_legacy_save(cls, *args, **kwargs) -> None:
        """Raise an error, as there are no such models in the format before scvi-tools 0.15.

        Parameters
        ----------
        *args, **kwargs
            Those of scvi-tools' method, which would run code in the files.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(f"No {cls.__name__} was ever saved in the format before scvi-tools 0.15.")

    @classmethod
    def _loaded(cls, model: str | Path | Any) -> Any:
        """A model as it is, or without cells from the folder it is saved in."""
        return cls.load(model, adata=False) if isinstance(model, str | Path) else model

    @classmethod
    def prepare_query_anndata(
        cls, adata: AnnData, reference_model: str | Path | Any, *args, **kwargs
    ) -> AnnData | pd.Index | None:
        """Give cells the genes of a reference in its order, filled up with zeros.

        Parameters
        ----------
        adata
            The cells.
        reference_model
            The trained model, or the folder it is saved in.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.ArchesMixin.prepare_query_anndata`:
            ``return_reference_var_names`` and ``inplace``.

        Returns
        -------
        The cells, or ``None`` if ``adata`` is changed in place, which is the default.

        Raises
        ------
        ValueError
            If no gene is the reference's, or as :meth:`load`.
        """
        return super().prepare_query_anndata(adata, cls._loaded(reference_model), *args, **kwargs)

    @classmethod
    def prepare_query_mudata(
        cls, mdata: MuData, reference_model: str | Path | Any, *args, **kwargs
    ) -> MuData | dict[str, pd.Index] | None:
        """As :meth:`prepare_query_anndata`, of a MuData.

        Parameters
        ----------
        mdata
            The cells.
        reference_model, *args, **kwargs
            As in :meth:`prepare_query_anndata`.

        Returns
        -------
        As :meth:`prepare_query_anndata`.

        Raises
        ------
        ValueError
            As :meth:`prepare_query_anndata`.
        """
        reference = cls._loaded(reference_model)
        # MuData draws names for columns that it makes for a while.
        with seeded(0):
            return super().prepare_query_mudata(mdata, reference, *args, **kwargs)

    def _without_cells(self) -> Any:
        """The model as it would come from disk, on the CPU and without an AnnData."""
        with TemporaryDirectory() as folder:
            self.save(folder, overwrite=True)
            return self.load(folder, adata=False, accelerator="cpu")

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData | None = None,
        reference_model: str | Path | Any | None = None,
        *,
        unfrozen: bool = False,
        match_reference: bool = False,
        **kwargs,
    ) -> Any:
        """Map cells of new conditions onto a trained reference.

        Parameters
        ----------
        adata
            Cells with the columns that the reference was set up with; new conditions and new
            categories of covariates are allowed. It is registered as by :meth:`setup_anndata` or
            :meth:`setup_mudata`.
            Genes are matched by name: unless they are the reference's in its order, the model
            has a copy of the cells in which they are.
        reference_model
            The trained model, or the folder it is saved in.
        unfrozen
            Whether :meth:`train` changes all weights. By default only those of new conditions
            and categories: what the reference predicts stays the same.
        match_reference
            Whether the MMD compares the query with the reference, too, of which a sample of at
            most 5,000 cells is kept with the model. By default only the query's own conditions
            are compared.
        **kwargs
            Passed to :meth:`scvi.model.base.ArchesMixin.load_query_data`.

        Returns
        -------
        A model of old and new conditions, yet to be trained on ``adata`` if that has any new
        ones.

        Raises
        ------
        ValueError
            If there is no reference model, a column, a gene or a modality is missing, or
            ``match_reference`` and no cells are kept with the reference.
            ``TRVAE.prepare_query_anndata`` fills up missing genes with zeros.

        References
        ----------
        Lotfollahi et al., *Nature Biotechnology* 40, 121 (2022).
        """
        if reference_model is None:
            raise ValueError(
                "Give reference_model: a trained model, or the folder it is saved in."
            )
        check_data(adata)
        reference = cls._loaded(reference_model)
        reference_cells = reference._kept_reference_cells() if match_reference else None
        if adata is not None and not kwargs.get("inplace_subset_query_vars"):
            adata = with_genes_of_model(
                adata, reference._var_names, reference._modality, cls._GENES
            )
        if isinstance(adata, MuData):
            model = cls._load_query_mudata(adata, reference, **kwargs)
        else:
            model = super().load_query_data(adata, reference, unfrozen=True, **kwargs)
        model._take_from_reference(reference)
        if reference_cells is not None and model.module.mmd_within_labels and adata is not None:
            model._check_shares_labels(reference_cells)
        known_rows = {name: len(weight) for name, weight in reference.module.named_parameters()}
        model.mapping_ = {
            "reference_cells": reference.reference_cells_,
            "n_rows": None if unfrozen else known_rows,
            "matches_reference": match_reference,
        }
        model._train_as_mapped()
        if not unfrozen:
            # A query without anything new is mapped already.
            model.is_trained_ = not any(p.requires_grad for p in model.module.parameters())
        return model

    def _check_shares_labels(self, reference_cells: dict[str, np.ndarray]) -> None:
        labels = self._field_state(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"]
        own = np.unique(self.adata_manager.get_from_registry(REGISTRY_KEYS.LABELS_KEY))
        known = np.unique(reference_cells["label"])
        if not np.isin(own, known).any():
            raise ValueError(
                "match_reference=True compares cells of the same label, but the query's labels "
                f"({join_names(labels[own])}) are not among the reference's: "
                f"{join_names(labels[known])}."
            )

    @classmethod
    def _load_query_mudata(
        cls, mdata: MuData, reference: Any, inplace_subset_query_vars: bool = False, **kwargs
    ) -> Any:
        """As scvi-tools does, which takes no MuData with modalities that the model is not of."""
        if inplace_subset_query_vars:
            raise ValueError("inplace_subset_query_vars=True is of AnnData, not of MuData.")
        cells, layer = reference._cells_of(mdata), reference._layer
        reference._check_values(get_matrix(cells, layer), name_of_matrix(layer))
        cls.setup_mudata(
            mdata,
            source_registry=reference.registry,
            extend_categories=True,
            **reference.registry["setup_args"],
        )
        manager = cls._get_most_recent_anndata_manager(mdata, required=True)
        model = super().load_query_data(
            None, reference, registry=manager.registry, unfrozen=True, **kwargs
        )
        model._register_manager_for_instance(manager)
        model._adata, model._adata_manager, model.registry_ = mdata, manager, manager.registry
        return model

    def _take_from_reference(self, reference: Any) -> None:
        """Take what a reference has learnt from its cells beside the weights."""
        self.reference_cells_ = reference.reference_cells_

    # ----------------------------------------------------------------- representations

    @torch.inference_mode()
    def get_mmd_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | Sequence[bool] | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Activations of the first decoder layer (of the base, if the decoder is additive).

        There the MMD matches the conditions, unless the model has ``mmd_layer="latent"``.

        Parameters
        ----------
        adata
            Cells, by default those that the model was trained on. Genes are matched by name.
        indices
            Positions of the cells to use, or a mask of them. By default all.
        batch_size
            Cells in a minibatch, by default ``scvi.settings.batch_size``.

        Returns
        -------
        ``n_cells x n_features`` with as many features as the last of ``hidden_sizes``, at the
        posterior mean of ``z``.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the cells don't fit the model.

        References
        ----------
        Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2.
        """
        self._check_if_trained(warn=False)
        adata = self._validate_anndata(adata)
        loader = self._make_data_loader(adata=adata, indices=indices, batch_size=batch_size)
        with self.module.posterior_mean():
            return np.concatenate(
                [
                    self.module(tensors, compute_loss=False)[1][FIRST_LAYER_KEY].cpu().numpy()
                    for tensors in loader
                ]
            )

    get_latent_representation = with_seed(VAEMixin.get_latent_representation)
    get_elbo = with_seed(VAEMixin.get_elbo)
    get_marginal_ll = with_seed(VAEMixin.get_marginal_ll)
    get_reconstruction_error = with_seed(VAEMixin.get_reconstruction_error)

    def _gene_order(
        self, adata: AnnData | MuData, gene_list: Sequence[str] | None = None
    ) -> np.ndarray:
        """Where among the model's genes (of the list) are those of ``adata``, in its order."""
        genes = pd.Index(self._var_names)
        if gene_list is not None:
            genes = genes[genes.isin(gene_list)]
        order = genes.get_indexer(self._cells_of(adata).var_names)
        return order[order >= 0]
