"""The model as people use it: register data, train, represent, save and load."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import (
    CategoricalJointObsField,
    LayerField,
    MuDataWrapper,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model._utils import use_distributed_sampler
from scvi.model.base import (
    ArchesMixin,
    BaseMinifiedModeModelClass,
    RNASeqMixin,
    UnsupervisedTrainingMixin,
    VAEMixin,
)
from scvi.module._constants import MODULE_KEYS
from scvi.utils import setup_anndata_dsp
from scvi.utils._docstrings import devices_dsp

from trvae._base_module import FIRST_LAYER_KEY, MMDLayer
from trvae._confidence import ConfidenceMixin
from trvae._data import (
    UsedCategoricalObsField,
    cell_positions,
    check_categories,
    check_choice,
    check_expression,
    check_numbers,
    check_obs_column,
    check_positive_integer,
    check_positive_integers,
    check_seed,
    check_unique_genes,
    get_matrix,
    is_list_of,
    is_nonnegative,
    is_number,
    join_names,
    positions_of_genes,
    private_copy,
)
from trvae._from_scarches import read_scarches
from trvae._linear_response import group_means, group_means_of_blocks
from trvae._mmd import BANDWIDTHS
from trvae._module import DecoderName, Dispersion, GeneLikelihood, TRVAEModule
from trvae._mudata import (
    DEFAULT_MODALITY,
    as_of_anndata,
    cells_of,
    expression_modality,
    with_genes,
)
from trvae._nn import Normalization
from trvae._ranking import RankingMixin
from trvae._seed import overriding, seeded, with_seed
from trvae._support import balanced_sample
from trvae._train import ConditionBalancedDataSplitter, TRVAETrainingPlan, minibatches_of
from trvae._transfer import TransferMixin

if TYPE_CHECKING:
    from typing import Any

    from scvi._types import MinifiedDataType

logger = logging.getLogger(__name__)

# Minibatches that training takes by default, whatever the number of cells.
_DEFAULT_STEPS = 4_500
_MIN_EPOCHS, _MAX_EPOCHS = 10, 400
_SHARE_OF_KL_WARMUP = 0.25
_SHARE_OF_PATIENCE = 0.2
_N_REFERENCE_CELLS = 5_000
# What is kept of them: the posterior mean of z, a draw of z, what the draw is decoded to, codes.
_REFERENCE_CELLS = ("z_mean", "z", FIRST_LAYER_KEY, "condition", "label")


class TRVAE(
    TransferMixin,
    ConfidenceMixin,
    RankingMixin,
    RNASeqMixin,
    VAEMixin,
    ArchesMixin,
    UnsupervisedTrainingMixin,
    BaseMinifiedModeModelClass,
):
    """Transfer variational autoencoder (trVAE).

    A conditional VAE whose first decoder layer is matched across conditions, so that cells
    encoded under one condition can be decoded under another, also where that combination of cell
    type and condition was never measured.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`, or MuData registered with
        :meth:`setup_mudata`.
    registry
        Registry of a data module to train on in place of ``adata``.
    n_latent
        Size of the latent space.
    hidden_sizes
        Widths of the encoder's hidden layers; the decoder has them in reverse. The paper's are
        ``(800, 800, 128)``.
    dropout_rate
        Dropout after each hidden layer.
    gene_likelihood
        One of:

        * ``"nb"`` - negative binomial, for counts
        * ``"zinb"`` - zero-inflated negative binomial, for counts
        * ``"poisson"`` - Poisson, for counts
        * ``"normal"`` - normal, for log-normalised values (the paper's)
    dispersion
        One of:

        * ``"gene-condition"`` - one dispersion a gene and condition (for ``"normal"``: one
          standard deviation; Poisson has none)
        * ``"gene"`` - one a gene
    nonnegative_mean
        Whether the mean of the ``"normal"`` likelihood is never below 0.
    decoder
        One of:

        * ``"additive"`` - ``base(z) + effect(z, condition)``; only the effect sees the condition
        * ``"conditional"`` - the condition enters the first layer (the paper's)
    effect_sizes
        Widths of the hidden layers of the additive decoder's effect.
    normalization
        Normalisation of hidden layers: ``"batch"``, ``"layer"`` or ``"none"``.
    mmd_weight
        Weight of the maximum mean discrepancy (MMD) between conditions in the loss; 0 only
        watches it.
    mmd_layer
        What is matched: the first layer of the ``"decoder"`` (of the base, if it is additive),
        the ``"latent"`` representation, or ``"both"``.
    mmd_within_labels
        Whether conditions are matched within each label only, so that conditions with different
        cell types are not made alike. By default if labels are registered.
    mmd_bandwidths
        Squared bandwidths of the kernel.
    linear_weight
        Share, from 0 to 1, that a linear model has in counterfactuals beside the decoder: a ridge
        regression, over the labels measured under both conditions, of their mean change on their
        mean expression before. It keeps the decoder from extrapolating too far. Without labels,
        or with fewer than three such labels, it is left out.
    seed
        Seed of weights, data split, minibatches and dropout. ``None`` leaves that to
        ``scvi.settings.seed``.

    Raises
    ------
    ValueError
        If an argument is not one of those allowed, or the data don't suit the likelihood.

    Examples
    --------
    >>> adata = trvae.datasets.kang18()
    >>> held_out = (adata.obs["cell_type"] == "NK") & (adata.obs["condition"] == "stimulated")
    >>> train = adata[~held_out].copy()
    >>> trvae.TRVAE.setup_anndata(train, condition_key="condition", labels_key="cell_type")
    >>> model = trvae.TRVAE(train)
    >>> model.train()
    >>> nk = train[train.obs["cell_type"] == "NK"]
    >>> predicted = model.transfer(nk, target_condition="stimulated")

    References
    ----------
    Lotfollahi, Naghipourfar, Theis & Wolf, *Bioinformatics* 36, i610 (2020).
    """

    is_trained_: bool
    _module_cls = TRVAEModule
    _data_splitter_cls = ConditionBalancedDataSplitter
    _training_plan_cls = TRVAETrainingPlan
    _LATENT_QZM_KEY = "trvae_latent_qzm"
    _LATENT_QZV_KEY = "trvae_latent_qzv"

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        registry: dict | None = None,
        *,
        n_latent: int = 10,
        hidden_sizes: Sequence[int] = (256, 64),
        dropout_rate: float = 0.1,
        gene_likelihood: GeneLikelihood = "nb",
        dispersion: Dispersion = "gene-condition",
        nonnegative_mean: bool = False,
        decoder: DecoderName = "additive",
        effect_sizes: Sequence[int] = (64,),
        normalization: Normalization = "layer",
        mmd_weight: float = 100.0,
        mmd_layer: MMDLayer = "decoder",
        mmd_within_labels: bool | None = None,
        mmd_bandwidths: Sequence[float] = BANDWIDTHS,
        linear_weight: float = 0.3,
        seed: int | None = None,
    ):
        if adata is None and registry is None:
            raise ValueError("Give adata, registered with TRVAE.setup_anndata, or a registry.")
        check_choice("gene_likelihood", gene_likelihood, get_args(GeneLikelihood))
        check_choice("dispersion", dispersion, get_args(Dispersion))
        check_choice("decoder", decoder, get_args(DecoderName))
        check_choice("normalization", normalization, get_args(Normalization))
        check_choice("mmd_layer", mmd_layer, get_args(MMDLayer))
        check_positive_integer("n_latent", n_latent)
        check_positive_integers("hidden_sizes", hidden_sizes)
        check_positive_integers("effect_sizes", effect_sizes)
        if not is_number(dropout_rate) or not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate={dropout_rate!r} is not in [0, 1).")
        if not is_number(mmd_weight) or mmd_weight < 0:
            raise ValueError(f"mmd_weight={mmd_weight!r} is not a number from 0 on.")
        if not is_list_of(mmd_bandwidths, lambda s: is_number(s) and s > 0):
            raise ValueError(f"mmd_bandwidths={mmd_bandwidths!r} are not positive numbers.")
        if not is_number(linear_weight) or not 0 <= linear_weight <= 1:
            raise ValueError(f"linear_weight={linear_weight!r} is not a number from 0 to 1.")
        if nonnegative_mean and gene_likelihood != "normal":
            raise ValueError(
                "nonnegative_mean=True is for gene_likelihood='normal': the mean of "
                f"{gene_likelihood!r} is never below 0."
            )
        if seed is not None:
            check_seed(seed)
        if registry is not None and registry.get("setup_method_name") == "setup_datamodule":
            registry = _as_from_setup_anndata(registry, type(self).__name__)
        super().__init__(adata, registry)

        setup_args = self.registry["setup_args"]
        has_labels = setup_args.get("labels_key") is not None
        if gene_likelihood == "normal" and setup_args.get("size_factor_key") is not None:
            raise ValueError("gene_likelihood='normal' takes no size factors.")
        if mmd_within_labels and not has_labels:
            raise ValueError("mmd_within_labels=True needs labels: setup_anndata(labels_key=...).")
        self.seed = seed
        self.linear_weight = linear_weight
        # scvi-tools saves attributes that end with an underscore.
        self.mean_profiles_: np.ndarray | None = None
        self.modelled_shares_: np.ndarray | None = None
        self.reference_cells_: dict[str, np.ndarray] | None = None
        self.expression_is_nonnegative_ = False
        self.data_is_sparse_ = True
        if adata is not None and self.minified_data_type is None:
            self._check_own_data(gene_likelihood)

        with seeded(seed):
            self.module = self._module_cls(
                n_input=self.summary_stats.n_vars,
                n_batch=self.summary_stats.n_batch,
                n_labels=self.summary_stats.n_labels,
                n_continuous_cov=self.summary_stats.get("n_extra_continuous_covs", 0),
                n_cats_per_cov=self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key"),
                use_size_factor_key=setup_args.get("size_factor_key") is not None,
                n_latent=n_latent,
                hidden_sizes=tuple(hidden_sizes),
                dropout_rate=dropout_rate,
                gene_likelihood=gene_likelihood,
                dispersion=dispersion,
                nonnegative_mean=nonnegative_mean,
                decoder=decoder,
                effect_sizes=tuple(effect_sizes),
                normalization=normalization,
                mmd_weight=mmd_weight,
                mmd_layer=mmd_layer,
                mmd_within_labels=has_labels if mmd_within_labels is None else mmd_within_labels,
                mmd_bandwidths=tuple(mmd_bandwidths),
            )
        self.module.minified_data_type = self.minified_data_type
        self._model_summary_string = (
            f"TRVAE model with the following parameters: \nconditions: "
            f"{join_names(self.conditions)}, gene_likelihood: {gene_likelihood}, "
            f"decoder: {decoder}, n_latent: {n_latent}, hidden_sizes: {tuple(hidden_sizes)}, "
            f"mmd_weight: {mmd_weight}, mmd_layer: {mmd_layer}, "
            f"mmd_within_labels: {self.module.mmd_within_labels}."
        )
        self.init_params_ = self._get_init_params(locals())

    # -------------------------------------------------------------- data registration

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        *,
        condition_key: str,
        layer: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        library_key: str | None = None,
        **kwargs,
    ) -> None:
        """%(summary)s.

        Parameters
        ----------
        %(param_adata)s
        condition_key
            Key in ``adata.obs`` of the conditions between which cells are transferred.
        %(param_layer)s
        %(param_labels_key)s
        %(param_size_factor_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        library_key
            Key in ``adata.obs`` of each cell's library size over all genes that were measured.
            Give it if the genes are a selection, such as highly variable genes: they can make up
            a larger share of all counts under one condition than under another, which cells to
            be trained on then tell a counterfactual. Other cells need no such column.

        Raises
        ------
        ValueError
            If a key is missing, a value is missing in one of the columns, there are fewer than
            two conditions or two cells, or gene names are not unique. ``adata`` is then as it
            was.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if isinstance(adata, MuData):
            raise ValueError("adata is a MuData, which setup_mudata registers.")
        _check_cells(adata, setup_method_args["setup_args"], kwargs.get("source_registry"))
        fields = [
            field(*args, **options)
            for _, field, args, options in _fields(**setup_method_args["setup_args"])
        ]
        minify_type = _get_adata_minify_type(adata)
        if minify_type is not None:
            fields += cls._get_fields_for_adata_minification(minify_type)
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_mudata(
        cls,
        mdata: MuData,
        *,
        condition_key: str,
        rna_layer: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        library_key: str | None = None,
        modalities: dict[str, str] | None = None,
        **kwargs,
    ) -> None:
        """%(summary_mdata)s.

        The model is of one modality. A transfer keeps the others as they are.

        Parameters
        ----------
        %(param_mdata)s
        condition_key, labels_key, size_factor_key, library_key
            As in :meth:`setup_anndata`, in ``mdata.obs`` unless ``modalities`` has them.
        rna_layer
            Layer of the modality with the expression, by default its ``X``.
        categorical_covariate_keys, continuous_covariate_keys
            As in :meth:`setup_anndata`, likewise.
        modalities
            The modality of each argument that is not to be taken from ``mdata.obs``. That with
            the expression is ``"rna"`` unless there is another ``"rna_layer"``.

        Raises
        ------
        ValueError
            As in :meth:`setup_anndata`, if a modality is missing or has other cells, or a column
            is not where it is to be taken from. ``mdata`` is then as it was.

        Examples
        --------
        >>> trvae.TRVAE.setup_mudata(
        ...     mdata,
        ...     condition_key="condition",
        ...     rna_layer="counts",
        ...     modalities={"rna_layer": "rna", "condition_key": "rna"},
        ... )
        >>> model = trvae.TRVAE(mdata)
        """
        modalities = {"rna_layer": DEFAULT_MODALITY} | (modalities or {})
        setup_method_args = cls._get_setup_method_args(**locals())
        if not isinstance(mdata, MuData):
            raise ValueError(f"mdata is a {type(mdata).__name__}, but no MuData.")
        modality_of = cls._create_modalities_attr_dict(modalities, setup_method_args)
        setup_args = setup_method_args["setup_args"]
        cells = cells_of(mdata, setup_args)
        _check_cells(cells, as_of_anndata(setup_args), kwargs.get("source_registry"))
        fields = [
            MuDataWrapper(field)(*args, mod_key=modality_of[argument], **options)
            for argument, field, args, options in _fields(**as_of_anndata(setup_args))
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(mdata, **kwargs)
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
        return as_of_anndata(self.registry["setup_args"]).get("layer")

    @property
    def _modality(self) -> str | None:
        return expression_modality(self.registry["setup_args"])

    @property
    def _var_names(self) -> np.ndarray:
        return _registered_genes(self.registry)

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
            return data
        if self._modality is None:
            raise ValueError(
                "The model was set up with an AnnData, so that it takes one modality, such as "
                f"mdata[{next(iter(data.mod))!r}], and no MuData."
            )
        return cells_of(data, self.registry["setup_args"])

    def _check_own_data(self, gene_likelihood: str) -> None:
        matrix = get_matrix(self._cells_of(self.adata), self._layer)
        check_expression(matrix, gene_likelihood, _where(self._layer))
        self.data_is_sparse_ = not isinstance(matrix, np.ndarray)
        self.expression_is_nonnegative_ = is_nonnegative(matrix)

    def _check_data_of(self, datamodule: Any) -> None:
        """Look at the first minibatch, as all of them would take an epoch."""
        datamodule.prepare_data()
        datamodule.setup("fit")
        values = next(minibatches_of(datamodule))[REGISTRY_KEYS.X_KEY].numpy()
        check_expression(values, self.module.gene_likelihood, "The data module's X")
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
        """As scvi-tools', with a clear error if no cells are chosen or those that aren't there."""
        return super()._make_data_loader(adata, cell_positions(indices, adata.n_obs), **kwargs)

    def _register_private_copy(self, adata: AnnData, obs: pd.DataFrame | None) -> AnnData:
        setup_args = as_of_anndata(self.registry["setup_args"])
        copy = private_copy(adata, self._var_names, self._layer)
        if obs is not None:
            copy.obs = obs
        labels_key = setup_args["labels_key"]
        if labels_key is not None and labels_key not in copy.obs:
            # Labels only steer the training.
            copy.obs[labels_key] = self._field_state(REGISTRY_KEYS.LABELS_KEY)[
                "categorical_mapping"
            ][0]
        _check_columns(copy, setup_args)
        self._check_known_categories(copy)
        matrix = get_matrix(copy, self._layer)
        check_expression(matrix, self.module.gene_likelihood, _where(self._layer))

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
                    f"{join_names(sorted(map(str, unknown)))}. It knows {join_names(categories)}."
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
        **trainer_kwargs,
    ) -> None:
        """Train the model.

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
            Passed to :class:`~scvi.train.TrainingPlan`. The KL weight rises over the first
            quarter of the epochs unless ``n_epochs_kl_warmup`` or ``n_steps_kl_warmup`` is given.
        datamodule
            Data to train on if the model was made from a ``registry``.
        **trainer_kwargs
            Passed to :class:`~scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If there are fewer than two cells to train on, ``batch_size`` is below 2, the cells are
            minified, all weights are frozen, or several processes train a model that has no seed.

        Notes
        -----
        :attr:`history` has, for ``train`` and ``validation``, ``elbo``, ``reconstruction_loss``,
        ``kl_local``, ``mmd`` and ``objective``, beside ``train_loss`` and ``validation_loss``.
        """
        if max_epochs is None:
            n_cells = (self.adata if datamodule is None else datamodule).n_obs
            epochs = round(_DEFAULT_STEPS * batch_size / max(n_cells, 1))
            max_epochs = min(max(epochs, _MIN_EPOCHS), _MAX_EPOCHS)
        plan_kwargs = dict(plan_kwargs or {})
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
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ValueError(
                "There is nothing to train: the query has no new condition or category. "
                "Use it as it is, or load it with unfrozen=True."
            )
        if use_distributed_sampler(trainer_kwargs.get("strategy")):
            if self.seed is None:
                raise ValueError(
                    "Processes that train together need the same seed: give one to the model, "
                    "as in TRVAE(adata, seed=0)."
                )
            # Our sampler shares the cells out; Lightning would share them out once more.
            trainer_kwargs.setdefault("use_distributed_sampler", False)
        if datamodule is not None:
            self._check_data_of(datamodule)
        # A trained model is left in evaluation mode, in which further training would have neither
        # dropout nor batch statistics.
        self.module.train()
        with seeded(self.seed), self._with_a_history():
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
                **trainer_kwargs,
            )
            self._learn_from_cells(datamodule)

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
        if self.registry["setup_args"].get("labels_key") is not None:
            self._learn_mean_profiles(datamodule)
        self._keep_reference_cells(datamodule)

    def _keep_reference_cells(self, datamodule: Any | None) -> None:
        """Keep how a sample of the cells is represented, all labels and conditions alike.

        So what the model has seen is known where its cells are not.
        """
        known = self.reference_cells_ if self._is_frozen else None
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
            raise ValueError("No training cells are kept with this model: it was not trained so.")
        return self.reference_cells_

    @property
    def _is_frozen(self) -> bool:
        """Whether only the weights of a query's new conditions and categories are trained."""
        return not all(parameter.requires_grad for parameter in self.module.parameters())

    def _learn_mean_profiles(self, datamodule: Any | None) -> None:
        """Average the cells by label and condition, but for conditions learned before."""
        shape = (self.summary_stats.n_labels, self.summary_stats.n_batch)
        is_counts = self.module.is_count_model
        if datamodule is None:
            manager = self.adata_manager
            label, condition = (
                np.asarray(manager.get_from_registry(key)).ravel()
                for key in (REGISTRY_KEYS.LABELS_KEY, REGISTRY_KEYS.BATCH_KEY)
            )
            library = self._cells_of(self.adata).obs.get(
                self.registry["setup_args"].get("library_key")
            )
            means = group_means(
                manager.get_from_registry(REGISTRY_KEYS.X_KEY),
                label,
                condition,
                shape,
                is_counts=is_counts,
                library=None if library is None else library.to_numpy(dtype=float),
            )
        else:
            blocks = (
                (
                    minibatch[REGISTRY_KEYS.X_KEY].numpy(),
                    minibatch[REGISTRY_KEYS.LABELS_KEY].numpy().ravel(),
                    minibatch[REGISTRY_KEYS.BATCH_KEY].numpy().ravel(),
                    None,
                )
                for minibatch in minibatches_of(datamodule)
            )
            means = group_means_of_blocks(blocks, shape, is_counts=is_counts)
        # What a reference predicts stays the same when a query has more labels of its conditions.
        profiles, shares = self.mean_profiles_, self.modelled_shares_
        if profiles is not None and shares is not None:
            n_known = profiles.shape[1] - int(np.isnan(profiles).all((0, 2)).sum())
            means.profile[:, :n_known] = profiles[:, :n_known]
            means.modelled_share[:, :n_known] = shares[:, :n_known]
        self.mean_profiles_, self.modelled_shares_ = means

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | MuData | bool | None = None, *args, **kwargs
    ) -> TRVAE:
        """Load a saved model.

        Parameters
        ----------
        dir_path
            Folder that the model was saved in.
        adata
            Cells with the columns that the model was set up with. Genes are matched by name:
            unless they are the model's in its order, the model has a copy of the cells in which
            they are. ``None`` takes the cells saved with the model, ``False`` none.
        *args, **kwargs
            Passed to :meth:`scvi.model.base.BaseModelClass.load`.

        Returns
        -------
        The model as it was saved.

        Raises
        ------
        ValueError
            If nothing is saved there, or a column or a gene is missing.
        """
        # Before a download there is no registry.
        if isinstance(adata, AnnData | MuData) and "backup_url" not in kwargs:
            registry = cls.load_registry(str(dir_path), prefix=kwargs.get("prefix"))
            modality = expression_modality(registry["setup_args"])
            adata = _with_genes(adata, _registered_genes(registry), modality)
        return super().load(str(dir_path), adata, *args, **kwargs)

    @classmethod
    def from_scarches(
        cls,
        path_or_model: str | Path | Any,
        adata: AnnData,
        *,
        condition_key: str | None = None,
        layer: str | None = None,
        labels_key: str | None = None,
        library_key: str | None = None,
    ) -> TRVAE:
        """Take over a trained TRVAE of scArches 0.6.

        The latent representation (the posterior mean), the first decoder layer and the decoded
        means stay the same. scArches is not needed, and nothing that its files might hold beside
        settings and weights is run.

        Parameters
        ----------
        path_or_model
            Folder that scArches saved the model in, or the model itself.
        adata
            Cells of all the model's conditions, with what it was trained on: counts for
            ``recon_loss`` ``"nb"`` and ``"zinb"``, log-normalised values for ``"mse"``. Genes are
            matched by name. It is not changed: the model has a copy that shares the matrix where
            genes and format allow it.
        condition_key
            Key in ``adata.obs`` of the conditions, by default the one that scArches was given.
        layer, labels_key, library_key
            As in :meth:`setup_anndata`. scArches trained without labels, but a counterfactual
            learns from them.

        Returns
        -------
        A trained model with ``decoder="conditional"``, without :attr:`history`.

        Raises
        ------
        ValueError
            If a file is missing, damaged or holds other things; the model is not trained or has
            what there is no counterpart of (fewer than two conditions, an ``mmd_boundary``); or a
            gene, a column or cells of a condition are missing, or cells are of a condition that
            the model doesn't know.

        Notes
        -----
        scArches adds 1e-4 to the posterior variance of ``z``, which is left out here. The squared
        error of ``"mse"`` is taken as a normal likelihood of variance 1/2, and scArches' ``beta``
        as an ``mmd_weight`` of 19 times as much, since its kernel is the sum over 19 bandwidths.

        References
        ----------
        Lotfollahi et al., *Nature Biotechnology* 40, 121 (2022).
        """
        scarches = read_scarches(path_or_model)
        condition_key = condition_key or scarches.settings["condition_key"]
        cells = scarches.cells(adata, condition_key, layer)
        cls.setup_anndata(
            cells,
            condition_key=condition_key,
            layer=layer,
            labels_key=labels_key,
            library_key=library_key,
        )
        model = cls(cells, **scarches.arguments())
        scarches.copy_weights(model.module)
        model.module.eval()
        model.is_trained_ = True
        model._learn_from_cells()
        return model

    def _without_cells(self) -> TRVAE:
        """The model as it would come from disk, on the CPU and without an AnnData."""
        with TemporaryDirectory() as folder:
            self.save(folder, overwrite=True)
            return self.load(folder, adata=False, accelerator="cpu")

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData | MuData | None = None,
        reference_model: str | Path | TRVAE | None = None,
        *,
        unfrozen: bool = False,
        match_reference: bool = False,
        **kwargs,
    ) -> TRVAE:
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
        reference = (
            cls.load(str(reference_model), adata=False)
            if isinstance(reference_model, str | Path)
            else reference_model
        )
        reference_cells = reference._kept_reference_cells() if match_reference else None
        if adata is not None and not kwargs.get("inplace_subset_query_vars"):
            adata = _with_genes(adata, reference._var_names, reference._modality)
        if isinstance(adata, MuData):
            model = cls._load_query_mudata(adata, reference, **kwargs)
        else:
            model = super().load_query_data(adata, reference, unfrozen=True, **kwargs)
        model._take_mean_profiles(reference)
        model.reference_cells_ = reference.reference_cells_
        if not unfrozen:
            model.module.train_new_categories_only(reference.module.state_dict())
            # A query without anything new is mapped already.
            model.is_trained_ = not any(p.requires_grad for p in model.module.parameters())
        if reference_cells is not None:
            model.module.compare_with(reference_cells)
        return model

    @classmethod
    def _load_query_mudata(
        cls, mdata: MuData, reference: TRVAE, inplace_subset_query_vars: bool = False, **kwargs
    ) -> TRVAE:
        """As scvi-tools does, which takes no MuData with modalities that the model is not of."""
        if inplace_subset_query_vars:
            raise ValueError("inplace_subset_query_vars=True is of AnnData, not of MuData.")
        cells, layer = reference._cells_of(mdata), reference._layer
        check_expression(get_matrix(cells, layer), reference.module.gene_likelihood, _where(layer))
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

    def _take_mean_profiles(self, reference: TRVAE) -> None:
        """Take the reference's, whose labels and conditions come first among the model's."""
        if reference.mean_profiles_ is None or reference.modelled_shares_ is None:
            return
        n_labels, n_conditions = reference.modelled_shares_.shape
        shape = (self.summary_stats.n_labels, self.summary_stats.n_batch)
        self.mean_profiles_ = np.full((*shape, self.summary_stats.n_vars), np.nan)
        self.mean_profiles_[:n_labels, :n_conditions] = reference.mean_profiles_
        self.modelled_shares_ = np.full(shape, np.nan)
        self.modelled_shares_[:n_labels, :n_conditions] = reference.modelled_shares_

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

        Notes
        -----
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

    @overriding(RNASeqMixin.posterior_predictive_sample)
    def posterior_predictive_sample(self, adata: AnnData | None = None, *args, **kwargs) -> Any:
        """Genes are in the order of ``adata``."""
        drawn = super().posterior_predictive_sample(adata, *args, **kwargs)
        return drawn if adata is None else drawn[:, self._gene_order(adata)]

    @overriding(RNASeqMixin.get_feature_correlation_matrix)
    def get_feature_correlation_matrix(self, *args, **kwargs) -> pd.DataFrame:
        """Of the negative binomial and its zero-inflated form only."""
        self._check_has_dispersion("get_feature_correlation_matrix")
        return super().get_feature_correlation_matrix(*args, **kwargs)

    @overriding(RNASeqMixin.get_likelihood_parameters)
    def get_likelihood_parameters(self, *args, **kwargs) -> dict[str, np.ndarray]:
        """At the posterior mean of ``z`` unless draws are asked for.

        Genes are in the order of ``adata``. Of the negative binomial and its zero-inflated form
        only.
        """
        self._check_has_dispersion("get_likelihood_parameters")
        inherited = super().get_likelihood_parameters
        adata = inspect.signature(inherited).bind(*args, **kwargs).arguments.get("adata")
        with self.module.posterior_mean():
            parameters = inherited(*args, **kwargs)
        if adata is None:
            return parameters
        order = self._gene_order(adata)
        return {name: values[..., order] for name, values in parameters.items()}

    @overriding(RNASeqMixin.get_normalized_expression)
    def get_normalized_expression(self, *args, **kwargs) -> pd.DataFrame | np.ndarray:
        """At the posterior mean of ``z`` unless draws are asked for.

        Genes are in the order of ``adata``. Log-normalised values have no ``library_size``, and
        importance weights are not supported.
        """
        self._check_if_trained(warn=False)
        inherited = super().get_normalized_expression
        given = inspect.signature(inherited).bind(*args, **kwargs)
        given.apply_defaults()
        arguments = given.arguments
        conditions = arguments["transform_batch"]
        for condition in conditions if isinstance(conditions, list | tuple) else [conditions]:
            if condition is not None:
                self._condition_code(condition, "transform_batch")
        check_choice("weights", arguments["weights"], (None, "uniform"))
        if not self.module.is_count_model and arguments["library_size"] != 1:
            raise ValueError(
                "gene_likelihood='normal' is of log-normalised values, which have no library_size."
            )
        adata, gene_list = arguments["adata"], arguments["gene_list"]
        if gene_list is not None:
            self._known_genes(gene_list)
        draws = arguments["n_samples"] > 1 or arguments["n_samples_overall"] is not None
        with self.module.posterior_mean(not draws):
            expression = inherited(*args, **kwargs)
        if adata is None:
            return expression
        order = self._gene_order(adata, gene_list)
        if isinstance(expression, pd.DataFrame):
            return expression.iloc[:, order]
        return expression[..., order]

    @overriding(RNASeqMixin.differential_expression)
    def differential_expression(self, *args, **kwargs) -> pd.DataFrame:
        """Of log-normalised values, the change is their difference, in units of log2."""
        self._check_if_trained(warn=False)
        given = inspect.signature(super().differential_expression).bind(*args, **kwargs)
        self._check_groups(**given.arguments)
        cells = given.arguments.get("adata")
        cells = self.adata if cells is None else cells
        if _get_adata_minify_type(cells) == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:
            raise ValueError(
                "differential_expression needs the cells' own expression, which is not kept in "
                "this minified AnnData. Pass the full AnnData."
            )
        if not self.module.is_count_model:
            kwargs.setdefault("change_fn", _log2_fold_change_of_log_values)
            kwargs.setdefault("pseudocounts", 0.0)
        return super().differential_expression(*args, **kwargs)

    def _check_groups(
        self, adata=None, groupby=None, group1=None, group2=None, idx1=None, idx2=None, **_
    ) -> None:
        """Check which cells are to be compared; strings of ``idx`` are left to pandas."""
        adata = self._cells_of(self.adata if adata is None else adata)
        for argument, idx in {"idx1": idx1, "idx2": idx2}.items():
            if idx is not None and not isinstance(idx, str):
                cell_positions(idx, adata.n_obs, argument)
        if idx1 is not None:
            return
        groups = check_obs_column(adata, "groupby", groupby, complete=False).unique()
        for argument, names in {"group1": group1, "group2": group2}.items():
            for name in [names] if names is None or pd.api.types.is_scalar(names) else names:
                if name is not None and name not in groups:
                    raise ValueError(
                        f"{argument} {name!r} is not in adata.obs[{groupby!r}]: "
                        f"{join_names(groups)}."
                    )

    def _check_has_dispersion(self, method: str) -> None:
        if self.module.gene_likelihood not in ("nb", "zinb"):
            raise ValueError(
                f"{method} is of gene_likelihood 'nb' and 'zinb', not "
                f"{self.module.gene_likelihood!r}."
            )

    def _gene_order(
        self, adata: AnnData | MuData, gene_list: Sequence[str] | None = None
    ) -> np.ndarray:
        """Where among the model's genes (of the list) are those of ``adata``, in its order."""
        genes = pd.Index(self._var_names)
        if gene_list is not None:
            genes = genes[genes.isin(gene_list)]
        order = genes.get_indexer(self._cells_of(adata).var_names)
        return order[order >= 0]


def _log2_fold_change_of_log_values(one: np.ndarray, other: np.ndarray, pseudocounts: float):
    """Difference of natural logarithms, in units of log2; scvi-tools passes three arguments."""
    return (one - other) / np.log(2)


def _where(layer: str | None) -> str:
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _fields(
    *, layer, condition_key, labels_key, size_factor_key, categorical_covariate_keys,
    continuous_covariate_keys, **_,
) -> list[tuple[str, type, tuple, dict]]:  # fmt: skip
    """What is registered: argument of the setup method, field, its arguments and options."""
    key = REGISTRY_KEYS
    return [
        # Whether values suit the likelihood is checked once that is known.
        ("rna_layer", LayerField, (key.X_KEY, layer), {"is_count_data": False}),
        ("condition_key", UsedCategoricalObsField, (key.BATCH_KEY, condition_key), {}),
        ("labels_key", UsedCategoricalObsField, (key.LABELS_KEY, labels_key), {}),
        (
            "size_factor_key",
            NumericalObsField,
            (key.SIZE_FACTOR_KEY, size_factor_key),
            {"required": False},
        ),
        (
            "categorical_covariate_keys",
            CategoricalJointObsField,
            (key.CAT_COVS_KEY, categorical_covariate_keys),
            {},
        ),
        (
            "continuous_covariate_keys",
            NumericalJointObsField,
            (key.CONT_COVS_KEY, continuous_covariate_keys),
            {},
        ),
    ]


def _check_cells(adata: AnnData, setup_args: dict, source_registry: dict | None) -> None:
    """Check what a setup method is given before it changes anything."""
    _check_columns(adata, setup_args)
    if source_registry is not None:
        _check_same_genes(adata, source_registry)
        return
    _check_at_least_two_conditions(adata, setup_args["condition_key"])
    if setup_args["library_key"] is not None:
        check_numbers(adata, "library_key", setup_args["library_key"], positive=True)


def _check_columns(adata: AnnData, setup_args: dict) -> None:
    """Check that what is to be registered is there and complete."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ValueError(f"The AnnData is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    get_matrix(adata, setup_args["layer"])
    check_unique_genes(adata)
    for argument in ("condition_key", "labels_key"):
        if setup_args[argument] is not None:
            check_categories(adata, argument, setup_args[argument])
    for argument, check in {
        "categorical_covariate_keys": check_categories,
        "continuous_covariate_keys": check_numbers,
    }.items():
        keys = setup_args[argument] or []
        if isinstance(keys, str):
            raise ValueError(f"{argument}={keys!r} is not a list of columns.")
        for key in keys:
            check(adata, argument, key)
    if setup_args["size_factor_key"] is not None:
        check_numbers(adata, "size_factor_key", setup_args["size_factor_key"], positive=True)


def _as_from_setup_anndata(registry: dict, model_name: str) -> dict:
    """Return a data module's registry as ``setup_anndata`` would have written it.

    So the model can be saved and loaded without the data module, and take an AnnData later.
    """
    theirs, fields = registry["setup_args"], dict(registry["field_registries"])
    if theirs.get("batch_key") is None:
        raise ValueError("The data module has no batch_key, which is to name the conditions.")
    if theirs.get("labels_key") is None:
        # As scvi-tools registers that there are none.
        fields[REGISTRY_KEYS.LABELS_KEY] = fields[REGISTRY_KEYS.LABELS_KEY] | {
            "state_registry": {
                "categorical_mapping": np.array([0]),
                "original_key": "_scvi_labels",
            },
            "summary_stats": {"n_labels": 1},
        }
    kept = [REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY]
    if theirs.get("categorical_covariate_keys"):
        covariates = fields[REGISTRY_KEYS.CAT_COVS_KEY]
        state = covariates["state_registry"]
        # AnnData's fields know it under another name.
        state = state | {"mappings": state.get("mappings") or state["mapping"]}
        fields[REGISTRY_KEYS.CAT_COVS_KEY] = covariates | {"state_registry": state}
        kept.append(REGISTRY_KEYS.CAT_COVS_KEY)
    if theirs.get("continuous_covariate_keys"):
        kept.append(REGISTRY_KEYS.CONT_COVS_KEY)
    arguments = (
        "layer", "labels_key", "categorical_covariate_keys", "continuous_covariate_keys",
        "size_factor_key", "library_key",
    )  # fmt: skip
    return registry | {
        "model_name": model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": {"condition_key": theirs["batch_key"]}
        | {argument: theirs.get(argument) for argument in arguments},
        "field_registries": {field: fields[field] for field in kept},
    }


def _registered_genes(registry: dict) -> np.ndarray:
    field = registry["field_registries"][REGISTRY_KEYS.X_KEY]
    return np.asarray(field["state_registry"]["column_names"])


def _with_genes(
    adata: AnnData | MuData, var_names: np.ndarray, modality: str | None
) -> AnnData | MuData:
    """Return the cells with the model's genes in its order: a copy unless they are so already."""
    if isinstance(adata, MuData):
        if modality is None:
            raise ValueError("The model was set up with an AnnData, so that it takes no MuData.")
        # That the modality is missing is told by what registers the MuData.
        cells = adata.mod.get(modality)
        if cells is None or (of_model := _with_genes(cells, var_names, None)) is cells:
            return adata
        return with_genes(adata, modality, of_model)
    if modality is not None:
        raise ValueError(
            f"The model was set up with a MuData, so that it takes no {type(adata).__name__}."
        )
    if np.array_equal(adata.var_names, var_names):
        return adata
    return adata[:, positions_of_genes(adata, var_names)].copy()


def _check_same_genes(adata: AnnData, source_registry: dict) -> None:
    if not np.array_equal(adata.var_names, _registered_genes(source_registry)):
        raise ValueError(
            "The genes of the AnnData are not those of the model, in its order. "
            "TRVAE.prepare_query_anndata(adata, model) makes them so."
        )


def _check_at_least_two_conditions(adata: AnnData, condition_key: str) -> None:
    conditions = adata.obs[condition_key].unique()
    if len(conditions) < 2:
        raise ValueError(
            f"condition_key {condition_key!r} has only one condition, {join_names(conditions)}; "
            "a transfer needs at least two."
        )
