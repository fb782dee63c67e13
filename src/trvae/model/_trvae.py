"""TRVAE, the model of expression."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.data._utils import _get_adata_minify_type
from scvi.data.fields import MuDataWrapper
from scvi.model.base import RNASeqMixin
from scvi.utils import setup_anndata_dsp

from trvae._utils._arguments import (
    check_choice,
    check_from_0,
    check_positive_integer,
    check_positive_integers,
    is_number,
    join_names,
)
from trvae._utils._seeds import seeded
from trvae.counterfactual._label_response import GroupMeans, group_means
from trvae.data._checks import cell_positions, check_expression, check_not_view, check_obs_column
from trvae.data._fields import InOrderDataManager, fields_of
from trvae.data._mudata import DEFAULT_MODALITY, as_of_anndata, cells_of
from trvae.data._registration import check_cells
from trvae.model._base import BaseTRVAE
from trvae.model._cell_summaries import (
    enlarge_profiles,
    get_codes,
    keep_known_profiles,
    mean_profiles_of,
)
from trvae.model._ranking import RankingMixin
from trvae.model._scarches import read_scarches
from trvae.model._seeds import overriding
from trvae.module._expression import DecoderName, Dispersion, GeneLikelihood, TRVAEModule
from trvae.module._layers import Normalization
from trvae.module._mmd import BANDWIDTHS

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from trvae.module._base import MMDLayer


class TRVAE(RankingMixin, RNASeqMixin, BaseTRVAE):
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
    response_limit
        How far a gene may rise or fall by the decoder of counterfactuals: so many times as far as
        in any of the same labels, on the scale of log-normalised values, but always by 0.5. What
        no label showed is not predicted. ``None`` sets no limit.
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

    _module_cls = TRVAEModule

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
        response_limit: float | None = 1.25,
        seed: int | None = None,
    ):
        check_choice("gene_likelihood", gene_likelihood, get_args(GeneLikelihood))
        check_choice("dispersion", dispersion, get_args(Dispersion))
        check_choice("decoder", decoder, get_args(DecoderName))
        check_choice("normalization", normalization, get_args(Normalization))
        check_positive_integer("n_latent", n_latent)
        check_positive_integers("hidden_sizes", hidden_sizes)
        check_positive_integers("effect_sizes", effect_sizes)
        if not is_number(dropout_rate) or not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate={dropout_rate!r} is not in [0, 1).")
        if not is_number(linear_weight) or not 0 <= linear_weight <= 1:
            raise ValueError(f"linear_weight={linear_weight!r} is not a number from 0 to 1.")
        if response_limit is not None:
            check_from_0("response_limit", response_limit)
        if nonnegative_mean and gene_likelihood != "normal":
            raise ValueError(
                "nonnegative_mean=True is for gene_likelihood='normal': the mean of "
                f"{gene_likelihood!r} is never below 0."
            )
        super().__init__(
            adata,
            registry,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            seed=seed,
        )
        uses_size_factors = self._setup_args.get("size_factor_key") is not None
        if gene_likelihood == "normal" and uses_size_factors:
            raise ValueError("gene_likelihood='normal' takes no size factors.")
        self.linear_weight = linear_weight
        self.response_limit = response_limit
        self._make_module(
            n_input=self.summary_stats.n_vars,
            use_size_factor_key=uses_size_factors,
            n_latent=n_latent,
            hidden_sizes=tuple(hidden_sizes),
            dropout_rate=dropout_rate,
            gene_likelihood=gene_likelihood,
            dispersion=dispersion,
            nonnegative_mean=nonnegative_mean,
            decoder=decoder,
            effect_sizes=tuple(effect_sizes),
            normalization=normalization,
        )
        self._model_summary_string = self._summary(
            gene_likelihood=gene_likelihood,
            decoder=decoder,
            n_latent=n_latent,
            hidden_sizes=tuple(hidden_sizes),
        )
        self.init_params_ = self._get_init_params(locals())

    def _check_values(self, values: Any, where: str) -> None:
        check_expression(values, self.module.gene_likelihood, where)

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
            two conditions or two cells, gene names are not unique, or ``adata`` is a view or read
            lazily. ``adata`` is then as it was.

        Warns
        -----
        UserWarning
            If no label has more than one condition, so that nothing is matched within labels.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        if isinstance(adata, MuData):
            raise ValueError("adata is a MuData, which setup_mudata registers.")
        cls._register(adata, setup_method_args, **kwargs)

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
        check_not_view(mdata, "mdata")
        modality_of = cls._create_modalities_attr_dict(modalities, setup_method_args)
        setup_args = setup_method_args["setup_args"]
        cells = cells_of(mdata, setup_args)
        check_cells(cells, as_of_anndata(setup_args), kwargs)
        fields = [
            MuDataWrapper(field)(*args, mod_key=modality_of[argument], **options)
            for argument, field, args, options in fields_of(**as_of_anndata(setup_args))
        ]
        manager = InOrderDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

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
        # Weights are drawn before scArches' take their place.
        with seeded(0):
            model = cls(cells, **scarches.arguments())
        scarches.copy_weights(model.module)
        model.module.eval()
        model.is_trained_ = True
        model._learn_from_cells()
        return model

    # ------------------------------------------------------------- summaries of cells

    def _learn_from_cells(self, datamodule: Any | None = None) -> None:
        super()._learn_from_cells(datamodule)
        if self._setup_args.get("labels_key") is None:
            return
        shape = (self.summary_stats.n_labels, self.summary_stats.n_batch)
        is_counts = self.module.is_count_model
        if datamodule is None:
            condition, label = get_codes(self.adata_manager)
            library = self._cells_of(self.adata).obs.get(self._setup_args.get("library_key"))
            means = group_means(
                self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY),
                label,
                condition,
                shape,
                is_counts=is_counts,
                library=None if library is None else library.to_numpy(dtype=float),
            )
        else:
            means = mean_profiles_of(datamodule, shape, is_counts=is_counts)
        if self.mean_profiles_ is not None and self.modelled_shares_ is not None:
            known = GroupMeans(self.mean_profiles_, self.modelled_shares_)
            means = keep_known_profiles(means, known)
        self.mean_profiles_, self.modelled_shares_ = means

    def _take_from_reference(self, reference: TRVAE) -> None:
        super()._take_from_reference(reference)
        if reference.mean_profiles_ is not None and reference.modelled_shares_ is not None:
            # Its labels and conditions come first among the model's.
            self.mean_profiles_, self.modelled_shares_ = enlarge_profiles(
                GroupMeans(reference.mean_profiles_, reference.modelled_shares_),
                (self.summary_stats.n_labels, self.summary_stats.n_batch),
            )

    # ---------------------------------------------------------------- expression

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


def _log2_fold_change_of_log_values(one: np.ndarray, other: np.ndarray, pseudocounts: float):
    """Difference of natural logarithms, in units of log2; scvi-tools passes three arguments."""
    return (one - other) / np.log(2)
