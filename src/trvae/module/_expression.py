"""The network of expression and its likelihoods."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import torch
from scvi import REGISTRY_KEYS
from torch import nn
from torch.nn.functional import embedding, log_softmax, softplus

from trvae.module._base import BaseTRVAEModule, MMDLayer
from trvae.module._covariates import Covariates, CovariateSizes
from trvae.module._decoders import AdditiveDecoder, ConditionalDecoder
from trvae.module._distributed import gather_cells
from trvae.module._layers import Encoder, Normalization
from trvae.module._likelihood import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from trvae.module._mmd import BANDWIDTHS, MMDReduction
from trvae.module._sparse import sparse_where_faster

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributions import Distribution

    from trvae._utils._choices import GeneLikelihood
    from trvae.module._decoders import DecoderOutput


Dispersion = Literal["gene", "gene-condition"]

DecoderName = Literal["additive", "conditional"]


class TRVAEModule(BaseTRVAEModule):
    r"""The network of :class:`~trvae.TRVAE`.

    The loss is that of :class:`~trvae.module.BaseTRVAEModule`. For a cell with counts
    :math:`x`, condition (and covariates) :math:`c` and library size (or size factor)
    :math:`\ell`,

    .. math::

        q(z \mid x, c) &= \mathcal{N}(\mu(\log(1 + x), c),\ \sigma(\log(1 + x), c)^2) \\
        x_g &\sim \mathrm{NB}(\ell\, \mathrm{softmax}(f(z, c))_g,\ \theta_{gc})

    with networks :math:`\mu, \sigma, f` and a dispersion :math:`\theta` for each gene and, by default,
    condition; other count likelihoods take the place of
    :math:`\mathrm{NB}`. A registered size factor replaces softmax by softplus. Log-normalised
    values enter the encoder as they are and are :math:`\mathcal{N}(f(z, c)_g, \theta_{gc}^2)`.

    Parameters
    ----------
    n_input
        Number of genes.
    n_batch
        Number of conditions, which scvi-tools registers as batches.
    n_labels
        Number of labels.
    n_continuous_cov
        Number of continuous covariates.
    n_cats_per_cov
        Number of categories of each categorical covariate.
    use_size_factor_key
        Whether a registered size factor scales the rates in place of the library size.
    n_latent, hidden_sizes, dropout_rate, normalization
        See :class:`~trvae.TRVAE`: size of ``z``, and the hidden layers.
    gene_likelihood, dispersion, nonnegative_mean
        See :class:`~trvae.TRVAE`: the likelihood.
    decoder, effect_sizes
        See :class:`~trvae.TRVAE`: how the condition enters the decoder.
    mmd_weight, mmd_layer, mmd_within_labels, mmd_bandwidths, mmd_reduction
        See :class:`~trvae.TRVAE`: weight of the MMD, what it compares and how.

    References
    ----------
    Lotfollahi et al., *Bioinformatics* 36, i610 (2020), section 2.
    """

    def __init__(
        self,
        n_input: int,
        n_batch: int,
        n_labels: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        *,
        use_size_factor_key: bool = False,
        n_latent: int,
        hidden_sizes: Sequence[int],
        dropout_rate: float,
        gene_likelihood: GeneLikelihood,
        dispersion: Dispersion,
        nonnegative_mean: bool = False,
        decoder: DecoderName,
        effect_sizes: Sequence[int],
        normalization: Normalization,
        mmd_weight: float,
        mmd_layer: MMDLayer,
        mmd_within_labels: bool,
        mmd_bandwidths: Sequence[float] = BANDWIDTHS,
        mmd_reduction: MMDReduction = "mean",
    ):
        super().__init__(
            n_input,
            n_batch,
            n_labels,
            n_latent=n_latent,
            mmd_weight=mmd_weight,
            mmd_layer=mmd_layer,
            mmd_within_labels=mmd_within_labels,
            mmd_bandwidths=mmd_bandwidths,
            mmd_reduction=mmd_reduction,
        )
        self.gene_likelihood = gene_likelihood
        self.dispersion = dispersion
        self.nonnegative_mean = nonnegative_mean
        self.use_size_factor_key = use_size_factor_key
        sizes = CovariateSizes(n_batch, tuple(n_cats_per_cov or ()), n_continuous_cov)
        self.encoder = Encoder(n_input, n_latent, hidden_sizes, sizes, normalization, dropout_rate)
        make_decoder = (
            ConditionalDecoder
            if decoder == "conditional"
            else functools.partial(AdditiveDecoder, effect_sizes=effect_sizes)
        )
        self.decoder = make_decoder(
            n_latent,
            n_input,
            tuple(reversed(hidden_sizes)),
            sizes,
            normalization=normalization,
            dropout_rate=dropout_rate,
            zero_inflated=gene_likelihood == "zinb",
        )
        if gene_likelihood != "poisson":
            n_rows = n_batch if dispersion == "gene-condition" else 1
            self.log_dispersion = nn.Embedding(n_rows, n_input)
            nn.init.zeros_(self.log_dispersion.weight)

    @torch.no_grad()
    def match_means(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the decoder's bias so that it starts from the mean counts of these cells.

        It would take the optimizer many steps to find the logarithms of means that differ by
        orders of magnitude. Log-normalised values don't, and leave the bias as it is.

        Parameters
        ----------
        tensors
            A minibatch. Processes that train together need theirs at the same time.

        References
        ----------
        Salimans & Kingma, *NeurIPS* (2016), section 3: initialization by the first minibatch.
        """
        if not self.is_count_model:
            return
        # A gene without counts here may have some elsewhere.
        total = gather_cells(tensors[REGISTRY_KEYS.X_KEY]).sum(0) + 1
        if self.use_size_factor_key:
            rate = total / gather_cells(tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY]).sum()
            # The inverse of softplus.
            logits = rate + (-(-rate).expm1()).log()
        else:
            logits = (total / total.sum()).log()
        decoder: Any = self.decoder
        decoder.bias.copy_(logits)

    @property
    def is_count_model(self) -> bool:
        """Whether the likelihood is one of counts."""
        return self.gene_likelihood != "normal"

    @property
    def likelihood_setting(self) -> dict[str, str]:
        """Name and value of the argument that chose the likelihood."""
        return {"gene_likelihood": self.gene_likelihood}

    def _encode(
        self, x: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = sparse_where_faster(x)
        return self.encoder(values.log1p() if self.is_count_model else values, covariates)

    def _likelihood(
        self, decoded: DecoderOutput, log_size: torch.Tensor, condition: torch.Tensor
    ) -> Distribution:
        logits = decoded.logits
        if self.gene_likelihood == "normal":
            log_sd = self.log_dispersion.weight
            sds = (self._of_cells(table, condition) for table in (log_sd.exp(), log_sd))
            return Normal(self._mean(decoded, log_size)[0], *sds)

        if self.use_size_factor_key:
            # For very negative logits softplus is 0 in float32, but its log is the logit.
            log_scale = torch.where(logits < -15, logits, softplus(logits.clamp(min=-15)).log())
        else:
            log_scale = log_softmax(logits, dim=-1)
        log_rate = log_size + log_scale
        if self.gene_likelihood == "poisson":
            return Poisson(log_rate, log_scale)
        dispersion = self._of_cells(self.log_dispersion.weight.exp(), condition)
        if decoded.dropout_logits is None:
            return NegativeBinomial(log_rate, dispersion, log_scale)
        return ZeroInflatedNegativeBinomial(
            log_rate, dispersion, log_scale, decoded.dropout_logits
        )

    def _mean(
        self, decoded: DecoderOutput, size: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = decoded.logits
        if self.gene_likelihood == "normal":
            return torch.relu(logits) if self.nonnegative_mean else logits, None
        mean = size * (softplus(logits) if self.use_size_factor_key else logits.softmax(-1))
        if decoded.dropout_logits is None:
            return mean, None
        zero_inflation = decoded.dropout_logits.sigmoid()
        return mean * (1 - zero_inflation), zero_inflation

    def spread(self, condition: torch.Tensor) -> torch.Tensor | None:
        """Inverse dispersion of counts, or standard deviation of values."""
        if self.gene_likelihood == "poisson":
            return None
        return self._of_cells(self.log_dispersion.weight.exp(), condition)

    def _of_cells(self, table: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        # Unlike indexing, embedding adds up gradients in the same order in every run.
        return embedding(condition, table) if self.dispersion == "gene-condition" else table
