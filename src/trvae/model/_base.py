"""What models of expression and of images share: registration and representations."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type
from scvi.model.base import (
    ArchesMixin,
    BaseMinifiedModeModelClass,
    UnsupervisedTrainingMixin,
    VAEMixin,
)

from trvae._utils._arguments import (
    check_choice,
    check_from_0,
    check_positive_integer,
    check_seed,
    is_list_of,
    is_number,
    join_names,
)
from trvae._utils._seeds import seeded
from trvae.data._cells import private_copy
from trvae.data._checks import (
    cell_positions,
    check_anndata,
    check_data,
    get_matrix,
    is_nonnegative,
    name_of_matrix,
)
from trvae.data._fields import InOrderDataManager, fields_of
from trvae.data._mudata import as_of_anndata, cells_of, expression_modality
from trvae.data._registration import (
    as_from_setup_anndata,
    check_cells,
    check_columns,
    registered_genes,
)
from trvae.io._saved import (
    FORMAT_VERSION,
)
from trvae.model._confidence import ConfidenceMixin
from trvae.model._mapping import MappingMixin
from trvae.model._saving import SavingMixin
from trvae.model._seeds import with_seed
from trvae.model._training import TrainingMixin
from trvae.model._transfer import TransferMixin
from trvae.module._base import FIRST_LAYER_KEY, MMDLayer
from trvae.train._interruption import (
    InterruptibleTrainRunner,
)
from trvae.train._plan import TRVAETrainingPlan
from trvae.train._sampling import ConditionBalancedDataSplitter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from scvi._types import MinifiedDataType


class BaseTRVAE(
    TransferMixin,
    ConfidenceMixin,
    TrainingMixin,
    SavingMixin,
    MappingMixin,
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
