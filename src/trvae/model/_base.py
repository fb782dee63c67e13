"""What models of expression and of images share: registration and representations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.model.base import (
    ArchesMixin,
    BaseMinifiedModeModelClass,
    UnsupervisedTrainingMixin,
)

from trvae._scvi import (
    is_registered_with,
    keep_only_manager,
    latest_manager,
    minify_type,
)
from trvae._utils._arguments import (
    NONE,
    NONNEGATIVE_NUMBER,
    POSITIVE_INTEGER,
    POSITIVE_NUMBER,
    SEED,
    check_arguments,
    choice,
    choice_of,
    join_names,
    list_of,
)
from trvae._utils._minimums import MIN_CELLS
from trvae._utils._seeds import seeded
from trvae.counterfactual._label_response import GroupMeans
from trvae.data._cells import private_copy
from trvae.data._checks import (
    cell_positions,
    check_data,
    check_library,
    check_numbers,
    check_workers,
    get_matrix,
    is_nonnegative,
    name_of_matrix,
)
from trvae.data._fields import InOrderDataManager, fields_of
from trvae.data._on_device import GatheringLoader, cells_on_device
from trvae.data._registered import RegisteredData
from trvae.data._registration import (
    check_columns_to_predict,
    check_columns_unchanged,
    check_setup,
    registry_of_setup_anndata,
)
from trvae.io._saved import FORMAT_VERSION
from trvae.model._confidence import ConfidenceMixin
from trvae.model._decoding import drawn_expression, expected_expression
from trvae.model._mapping import MappingMixin
from trvae.model._representation import RepresentationMixin
from trvae.model._saving import SavingMixin
from trvae.model._training import TrainingMixin
from trvae.module._base import MMDLayer
from trvae.module._mmd import MMDReduction
from trvae.train._interruption import InterruptibleTrainRunner
from trvae.train._plan import TRVAETrainingPlan
from trvae.train._sampling import ConditionBalancedDataSplitter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from trvae._utils._choices import Estimate
    from trvae.model._decoding import Minibatch
    from trvae.model._selection import Selection

ARGUMENTS = {
    "mmd_weight": NONNEGATIVE_NUMBER,
    "mmd_layer": choice_of(MMDLayer),
    "mmd_within_labels": choice(True, False, None),
    "mmd_bandwidths": list_of(POSITIVE_NUMBER),
    "mmd_reduction": choice_of(MMDReduction),
    "seed": SEED | NONE,
}

# Values of a minibatch. A CPU is fastest if they fit its cache, a GPU if it has much to do at once.
_VALUES_AT_ONCE_ON_CPU, _VALUES_AT_ONCE = 2**20, 2**23


class BaseTRVAE(
    ConfidenceMixin,
    TrainingMixin,
    SavingMixin,
    MappingMixin,
    RepresentationMixin,
    ArchesMixin,
    UnsupervisedTrainingMixin,
    BaseMinifiedModeModelClass,
):
    """Base class of the trVAE models.

    Parameters
    ----------
    adata, registry, seed
        See :class:`~trvae.TRVAE`: the data and the seed.
    mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths, mmd_reduction
        See :class:`~trvae.TRVAE`: the settings of the MMD.
    """

    is_trained_: bool
    history_: dict[str, pd.DataFrame] | None
    # scvi-tools saves attributes that end with an underscore.
    format_version_ = FORMAT_VERSION
    _data_splitter_cls = ConditionBalancedDataSplitter
    _training_plan_cls = TRVAETrainingPlan
    _train_runner_cls = InterruptibleTrainRunner
    _LATENT_QZM_KEY = "trvae_latent_qzm"
    _LATENT_QZV_KEY = "trvae_latent_qzv"
    # Settings of counterfactuals, which only models of expression have.
    linear_weight: float = 0.0
    response_limit: float | None = None

    def __init__(
        self,
        adata: AnnData | MuData | None,
        registry: dict | None,
        *,
        mmd_weight: float,
        mmd_layer: MMDLayer,
        mmd_within_labels: bool | None,
        mmd_bandwidths: Sequence[float],
        mmd_reduction: MMDReduction,
        seed: int | None,
    ):
        check_arguments(locals(), ARGUMENTS)
        name = type(self).__name__
        if adata is None and registry is None:
            raise ValueError(f"Pass adata, set up by {name}.setup_anndata, or a registry.")
        check_data(adata)
        if registry is not None and registry.get("setup_method_name") == "setup_datamodule":
            registry = registry_of_setup_anndata(registry, name)
        super().__init__(adata, registry)

        has_labels = self.registered_data.arguments.get("labels_key") is not None
        if mmd_within_labels and not has_labels:
            raise ValueError("mmd_within_labels=True needs labels: setup_anndata(labels_key=...).")
        self.seed = seed
        self.mapping_: dict[str, Any] | None = None
        self.cells_digest_: str | None = None
        self.ensemble_: dict[str, Any] | None = None
        self.mean_profiles_: np.ndarray | None = None
        self.modelled_shares_: np.ndarray | None = None
        self.profile_cells_: np.ndarray | None = None
        self.training_ = None
        self.calibration_ = {}
        self.reference_cells_: dict[str, np.ndarray] | None = None
        self.expression_is_nonnegative_ = False
        self.data_is_sparse_ = True
        self._mmd_kwargs = {
            "mmd_weight": mmd_weight,
            "mmd_layer": mmd_layer,
            "mmd_within_labels": has_labels if mmd_within_labels is None else mmd_within_labels,
            "mmd_bandwidths": tuple(mmd_bandwidths),
            "mmd_reduction": mmd_reduction,
        }

    def _make_module(self, **kwargs) -> None:
        """Make the network for the registered data, with these arguments of its class."""
        covariates = self.registered_data.state(REGISTRY_KEYS.CAT_COVS_KEY)
        with seeded(self.seed):
            self.module = self._module_cls(
                n_batch=self.summary_stats.n_batch,
                n_labels=self.summary_stats.n_labels,
                n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
                n_cats_per_cov=covariates.get("n_cats_per_key"),
                **kwargs,
                **self._mmd_kwargs,
            )
        self.module.minified_data_type = self.minified_data_type
        if self.adata is not None and self.minified_data_type is None:
            self._check_own_values()

    def _summary(self, **settings) -> str:
        """Text that ``repr`` shows."""
        settings = {"conditions": join_names(self.conditions)} | settings | self._mmd_kwargs
        del settings["mmd_bandwidths"], settings["mmd_reduction"]
        listed = ", ".join(f"{name}: {value}" for name, value in settings.items())
        return f"{type(self).__name__} model with the following parameters: \n{listed}."

    @property
    def _models(self) -> list[BaseTRVAE]:
        return [self]

    @property
    def _group_means(self) -> GroupMeans | None:
        """Mean profiles of the training cells by label and condition, if they are known."""
        if self.mean_profiles_ is None or self.modelled_shares_ is None:
            return None
        n_cells = self.profile_cells_
        if n_cells is None:
            # Of a model that was saved before they were counted.
            n_cells = np.where(np.isnan(self.modelled_shares_), 0, MIN_CELLS)
        return GroupMeans(self.mean_profiles_, self.modelled_shares_, n_cells)

    # -------------------------------------------------------------- data registration

    @property
    def registered_data(self) -> RegisteredData:
        """What the model was set up with."""
        return RegisteredData(self.registry)

    @property
    def conditions(self) -> list[Any]:
        """The conditions that the model knows, in the order of their codes."""
        return self.registered_data.conditions

    def get_var_names(
        self, legacy_mudata_format: bool = False
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Names of the model's genes.

        Parameters
        ----------
        legacy_mudata_format
            Return an array even if the model was set up with a MuData.

        Returns
        -------
        ``n_genes``; for a model of MuData, in a dictionary by modality.
        """
        names, modality = self.registered_data.var_names.astype(str), self.registered_data.modality
        return names if legacy_mudata_format or modality is None else {modality: names}

    @classmethod
    def _register(cls, adata: AnnData, setup_method_args: dict, **kwargs) -> None:
        """Check an AnnData and register it."""
        setup_args = setup_method_args["setup_args"]
        check_setup(adata, setup_args, kwargs)
        fields = [
            spec.field(spec.registry_key, spec.key, **spec.options)
            for spec in fields_of(setup_args)
        ]
        if (minified := minify_type(adata)) is not None:
            fields += cls._get_fields_for_adata_minification(minified)
        manager = InOrderDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _validate_anndata(
        self,
        adata: AnnData | MuData | None = None,
        copy_if_view: bool = True,
        obs: pd.DataFrame | None = None,
    ) -> AnnData:
        """Return the cells of ``adata`` as an AnnData registered with this model.

        Cells that the model does not know yet are registered as a private copy, so the user's
        AnnData is never written to.

        Parameters
        ----------
        adata
            By default the model's own.
        copy_if_view
            Kept for scvi-tools.
        obs
            Used in place of ``adata.obs``.
        """
        # scvi-tools' own minification registers the minified AnnData here.
        if adata is None or adata is self.adata or minify_type(adata) is not None:
            adata = super()._validate_anndata(adata, copy_if_view=copy_if_view)
            if not isinstance(adata, MuData):
                return adata
        elif is_registered_with(self, adata):
            return adata
        return self._register_private_copy(self.registered_data.cells_of(adata), obs)

    def _register_private_copy(self, adata: AnnData, obs: pd.DataFrame | None) -> AnnData:
        known = self.registered_data
        copy = private_copy(adata, known.var_names, known.layer, known.genes)
        if obs is not None:
            copy.obs = obs
        check_columns_to_predict(copy, known)
        self._check_values(get_matrix(copy, known.layer), name_of_matrix(known.layer))
        given, labels_key = copy.obs, known.arguments["labels_key"]
        if labels_key is not None and labels_key not in known.categories():
            # Prediction ignores labels, so any known one will do, unless they are a covariate, too.
            copy.obs = given.assign(**{labels_key: known.labels[0]})
        type(self).setup_anndata(copy, source_registry=self.registry, **known.arguments)
        if labels_key in given:
            copy.obs[labels_key] = given[labels_key]
        manager = latest_manager(type(self), copy)
        keep_only_manager(self, manager, getattr(self, "_private_copy_uuid", None))
        self._private_copy_uuid = manager.adata_uuid
        return copy

    def _check_values(self, values: Any, where: str) -> None:
        """Raise a ``ValueError`` unless the values suit the likelihood."""
        raise NotImplementedError

    def _check_own_values(self) -> None:
        """Check the model's own data, and record whether they are sparse and non-negative."""
        layer = self.registered_data.layer
        cells = self.registered_data.cells_of(self.adata)
        matrix = get_matrix(cells, layer)
        self._check_values(matrix, name_of_matrix(layer))
        self._check_library(cells)
        self.data_is_sparse_ = not isinstance(matrix, np.ndarray)
        self.expression_is_nonnegative_ = is_nonnegative(matrix)

    def _check_library(
        self, adata: AnnData, positions: Any = slice(None), *, is_required: bool = False
    ) -> None:
        """Raise a ``ValueError`` if cells have less in their library than counts of the genes."""
        known = self.registered_data
        key = known.arguments.get("library_key")
        if key is None or not self.module.is_count_model:
            return
        if key in adata.obs or is_required:
            check_numbers(
                AnnData(obs=adata.obs.iloc[positions]), "library_key", key, positive=True
            )
            matrix, where = get_matrix(adata, known.layer), name_of_matrix(known.layer)
            check_library(matrix, adata.obs[key], where, positions)

    def _check_data_unchanged(self) -> None:
        """Raise a ``ValueError`` if the genes or values of the model's own data have changed."""
        known = self.registered_data
        adata = known.cells_of(self.adata)
        if not np.array_equal(adata.var_names, known.var_names):
            raise ValueError(
                f"the {known.genes} of adata have changed since the model was made. Make a new "
                "model, or change a copy: adata.copy()."
            )
        if not adata.isbacked and self.minified_data_type is None:
            self._check_values(get_matrix(adata, known.layer), name_of_matrix(known.layer))

    def _check_columns_unchanged(
        self, positions: Any = slice(None), *, with_labels: bool = False
    ) -> None:
        """Raise a ``ValueError`` if what was registered of own cells differs from their columns."""
        known = self.registered_data
        obs = known.cells_of(self.adata).obs
        check_columns_to_predict(AnnData(obs=obs.iloc[positions]), known)
        # Another model may have been set up with these cells since.
        self.adata_manager.validate()
        check_columns_unchanged(self.adata_manager, known, obs, positions, with_labels=with_labels)

    def _make_data_loader(self, adata: AnnData, indices: Any = None, **kwargs) -> Any:
        """See scvi-tools' method; cells and batch size are checked.

        If a GPU has room for the cells, minibatches are gathered there. They are then larger by
        default, which changes nothing but the time.
        """
        if kwargs.get("batch_size") is not None:
            check_arguments(kwargs, {"batch_size": POSITIVE_INTEGER})
        positions = cell_positions(indices, adata.n_obs, cells=self.registered_data.cells)
        if set(kwargs) <= {"batch_size"}:
            manager = self.get_anndata_manager(adata, required=True)
            if cells := cells_on_device(manager, self.device, positions=positions):
                batch_size = kwargs.get("batch_size") or self._default_batch_size()
                return GatheringLoader.in_order(cells, batch_size)
        check_workers(adata)
        loader = super()._make_data_loader(adata, positions, **kwargs)
        # Without it, each iteration would advance PyTorch's global generator.
        loader.generator = torch.Generator()
        return loader

    # ------------------------------------------------- how decoded cells become predictions

    def _default_batch_size(self) -> int | None:
        """Cells to decode at once; ``None`` leaves it to scvi-tools."""
        is_on_cpu = self.module.device.type == "cpu"
        n_values = _VALUES_AT_ONCE_ON_CPU if is_on_cpu else _VALUES_AT_ONCE
        return max(n_values // self.module.n_input, 1)

    def _expected(self, minibatch: Minibatch, estimate: Estimate) -> torch.Tensor:
        return expected_expression(minibatch, estimate, self.expression_is_nonnegative_)

    def _drawn(self, minibatch: Minibatch, selection: Selection) -> torch.Tensor:
        return drawn_expression(minibatch, selection, self.expression_is_nonnegative_)

    def _as_registered(self, predicted: torch.Tensor) -> torch.Tensor:
        """Convert predicted values to the type that is returned."""
        return predicted.float()
