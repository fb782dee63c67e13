"""TRVAE, the model of expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from mudata import MuData
from scvi import REGISTRY_KEYS

from trvae._utils._arguments import (
    NONE,
    NONNEGATIVE_NUMBER,
    POSITIVE_INTEGER,
    SHARE,
    check_arguments,
    choice,
    choice_of,
    list_of,
    number,
)
from trvae._utils._choices import GeneLikelihood
from trvae._utils._seeds import seeded
from trvae.counterfactual._label_response import GroupMeans, group_means
from trvae.data._checks import check_expression
from trvae.model._base import BaseTRVAE
from trvae.model._calibration import CalibrationMixin
from trvae.model._cell_summaries import (
    enlarge_profiles,
    get_codes,
    keep_known_profiles,
    mean_profiles_of,
)
from trvae.model._expression import ExpressionMixin
from trvae.model._hints import MODEL, hinting
from trvae.model._ranking import RankingMixin
from trvae.model._scarches import read_scarches
from trvae.model._setup import SetupMixin
from trvae.module._expression import DecoderName, Dispersion, TRVAEModule
from trvae.module._layers import Normalization
from trvae.module._mmd import BANDWIDTHS
from trvae.train._defaults import TrainingDefaults

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from trvae.module._base import MMDLayer
    from trvae.module._mmd import MMDReduction

ARGUMENTS = {
    "n_latent": POSITIVE_INTEGER,
    "hidden_sizes": list_of(POSITIVE_INTEGER),
    "dropout_rate": number("a number of at least 0 and below 1", lambda rate: 0 <= rate < 1),
    "gene_likelihood": choice_of(GeneLikelihood),
    "dispersion": choice_of(Dispersion),
    "nonnegative_mean": choice(True, False),
    "decoder": choice_of(DecoderName),
    "effect_sizes": list_of(POSITIVE_INTEGER),
    "normalization": choice_of(Normalization),
    "linear_weight": SHARE,
    "response_limit": NONNEGATIVE_NUMBER | NONE,
}


class TRVAE(SetupMixin, CalibrationMixin, RankingMixin, ExpressionMixin, BaseTRVAE):
    """Transfer variational autoencoder (trVAE).

    A conditional VAE whose first decoder layer is matched across conditions by maximum mean
    discrepancy (MMD). Cells encoded under one condition can be decoded under another, even if their
    cell type was never measured under it.

    Parameters
    ----------
    adata
        AnnData registered with :meth:`setup_anndata`, or MuData registered with
        :meth:`setup_mudata`.
    registry
        Registry of a data module to train on in place of ``adata``.
    n_latent
        Dimension of the latent space.
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

        * ``"gene-condition"`` - one dispersion (for ``"normal"``, standard deviation) per gene and
          condition; Poisson has none
        * ``"gene"`` - one per gene
    nonnegative_mean
        Whether the mean of the ``"normal"`` likelihood is passed through a ReLU.
    decoder
        One of:

        * ``"additive"`` - ``base(z) + effect(z, condition)``; only the effect sees the condition
        * ``"conditional"`` - the condition enters the first layer (the paper's)
    effect_sizes
        Widths of the hidden layers of the additive decoder's effect network.
    normalization
        Normalisation of hidden layers: ``"batch"``, ``"layer"`` or ``"none"``.
    mmd_weight
        Weight in the loss of the MMD between conditions; with 0 it is only logged.
    mmd_layer
        What is matched: the first layer of the ``"decoder"`` (of the base, if it is additive),
        the ``"latent"`` representation, or ``"both"``.
    mmd_within_labels
        Whether to match conditions only within each label, so that different cell types are not
        made alike. By default true if labels are registered.
    mmd_bandwidths
        Squared bandwidths of the kernel.
    mmd_reduction
        Whether the MMD is a ``"mean"`` over pairs of conditions, by which ``mmd_weight`` means the
        same for any number of conditions, or their ``"sum"`` (the paper's). See
        :func:`trvae.module.multi_scale_mmd`: how it is defined.
    linear_weight
        Weight, from 0 to 1, of a linear model that is averaged with the decoder in
        counterfactuals: a ridge regression that predicts a label's mean change from its mean
        expression under the source condition. It keeps the decoder from extrapolating too far. With
        fewer than three labels measured under both conditions, it is their mean change.
    response_limit
        Cap on how far the decoder may change a gene in counterfactuals: this many times the
        largest change in any label measured under both conditions, on the scale of log-normalised
        values. Changes up to 0.5 are always allowed. ``None`` sets no cap.
    seed
        Seed of weights, data split, minibatches and dropout. ``None`` uses
        ``scvi.settings.seed``.

    Attributes
    ----------
    module
        The network, a :class:`~trvae.TRVAEModule`.
    seed
        As given.

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

    @hinting(MODEL)
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
        mmd_reduction: MMDReduction = "mean",
        linear_weight: float = 0.3,
        response_limit: float | None = 1.25,
        seed: int | None = None,
    ):
        check_arguments(locals(), ARGUMENTS)
        if nonnegative_mean and gene_likelihood != "normal":
            raise ValueError(
                "nonnegative_mean=True needs gene_likelihood='normal', got "
                f"{gene_likelihood!r}, whose mean is never negative."
            )
        super().__init__(
            adata,
            registry,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            mmd_reduction=mmd_reduction,
            seed=seed,
        )
        uses_size_factors = self.registered_data.arguments.get("size_factor_key") is not None
        if gene_likelihood == "normal" and uses_size_factors:
            raise ValueError(
                "gene_likelihood='normal' does not use size factors: leave size_factor_key out."
            )
        self._finished_folds: dict[str, dict[str, np.ndarray]] = {}
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
        if self.module.is_count_model:
            # Counts start from their mean, so fewer and larger steps lead as far.
            self._training_defaults = TrainingDefaults(288_000, 256, {"lr": 2.8e-3})
        self._model_summary_string = self._summary(
            gene_likelihood=gene_likelihood,
            decoder=decoder,
            n_latent=n_latent,
            hidden_sizes=tuple(hidden_sizes),
        )
        self.init_params_ = self._get_init_params(locals())

    # Values that are changed are kept in init_params_, so they are saved with the model, and models that
    # are made like this one have them.
    @property
    def linear_weight(self) -> float:
        """Weight of the linear model in counterfactuals, which can be changed after training."""
        return self.init_params_["non_kwargs"]["linear_weight"]

    @linear_weight.setter
    def linear_weight(self, value: float) -> None:
        self._set_argument("linear_weight", value)

    @property
    def response_limit(self) -> float | None:
        """Cap on the decoder's changes in counterfactuals, which can be changed after training."""
        return self.init_params_["non_kwargs"]["response_limit"]

    @response_limit.setter
    def response_limit(self, value: float | None) -> None:
        self._set_argument("response_limit", value)

    def _set_argument(self, name: str, value: Any) -> None:
        check_arguments({name: value}, {name: ARGUMENTS[name]})
        self.init_params_["non_kwargs"][name] = value

    def _check_values(self, values: Any, where: str) -> None:
        check_expression(values, self.module.gene_likelihood, where)

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
        """Convert a TRVAE trained with scArches 0.6.

        The latent representation (the posterior mean), the first decoder layer and the decoded
        means stay the same. scArches need not be installed, and no code from its files is run.

        Parameters
        ----------
        path_or_model
            Folder that scArches saved the model in, or the model itself.
        adata
            Cells of all the model's conditions, on the scale it was trained on: counts for
            ``recon_loss`` ``"nb"`` and ``"zinb"``, log-normalised values for ``"mse"``. Genes are
            matched by name. The object is not changed: the model has a copy that shares the matrix
            where genes and format allow it.
        condition_key
            Key in ``adata.obs`` of the conditions, by default scArches' own.
        layer, labels_key, library_key
            See :meth:`setup_anndata`: values, labels and library sizes. scArches trained without
            labels, but counterfactuals use them.

        Returns
        -------
        A trained model with ``decoder="conditional"``, without :attr:`history`.

        Raises
        ------
        ValueError
            If a file is missing, damaged or holds anything else; the model is not trained or can't
            be converted (fewer than two conditions, an ``mmd_boundary``); or the cells lack a gene,
            a column or a condition of the model, or have an unknown condition.

        Notes
        -----
        scArches adds 1e-4 to the posterior variance of ``z``, which is left out here. The squared
        error of ``"mse"`` becomes a normal likelihood of variance 1/2. scArches' ``beta`` becomes an
        ``mmd_weight`` 19 times as large, since its kernel is the sum over 19 bandwidths, not the
        mean.

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
        # Weights are drawn, then replaced by scArches'.
        with seeded(0):
            model = cls(cells, **scarches.arguments())
        scarches.copy_weights(model.module)
        model.module.eval()
        model.is_trained_ = True
        model._learn_from_cells()
        return model

    # ---------------------------------------------------------------- summaries of cells

    def _learn_from_cells(self, datamodule: Any | None = None) -> None:
        super()._learn_from_cells(datamodule)
        if self.mapping_ is None or not self._is_frozen:
            # Of earlier weights.
            self.calibration_ = {}
        if self.registered_data.arguments.get("labels_key") is None:
            return
        means = self._measured_means(datamodule)
        if self.mapping_ is not None and self._group_means is not None:
            means = keep_known_profiles(means, self._group_means)
        self.mean_profiles_, self.modelled_shares_, self.profile_cells_ = means

    def _measured_means(self, datamodule: Any | None = None) -> GroupMeans:
        """Average the model's own cells, or those of a data module, by label and condition."""
        shape = (self.summary_stats.n_labels, self.summary_stats.n_batch)
        is_counts = self.module.is_count_model
        if datamodule is not None:
            return mean_profiles_of(datamodule, shape, is_counts=is_counts)
        condition, label = get_codes(self.adata_manager)
        known = self.registered_data
        library = known.cells_of(self.adata).obs.get(known.arguments.get("library_key"))
        return group_means(
            self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY),
            label,
            condition,
            shape,
            is_counts=is_counts,
            library=None if library is None else library.to_numpy(dtype=float),
        )

    def _take_from_reference(self, reference: TRVAE) -> None:
        super()._take_from_reference(reference)
        if reference._group_means is not None:
            # The reference's labels and conditions keep their codes; new ones follow.
            shape = (self.summary_stats.n_labels, self.summary_stats.n_batch)
            means = enlarge_profiles(reference._group_means, shape)
            self.mean_profiles_, self.modelled_shares_, self.profile_cells_ = means
            self.calibration_ = dict(reference.calibration_)
