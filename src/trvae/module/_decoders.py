"""The two decoders of expression: the paper's, and one with an additive effect of the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from trvae.module._covariates import Covariates, CovariateSizes
from trvae.module._layers import HiddenStack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.module._layers import Normalization


class DecoderOutput(NamedTuple):
    """Output of a decoder."""

    first_layer: torch.Tensor
    """Activations of the first layer before dropout, ``... x n_cells x first width``."""
    logits: torch.Tensor
    """One value per gene, ``... x n_cells x n_genes``, to be read by the likelihood."""
    dropout_logits: torch.Tensor | None
    """Logits of zero inflation, ``... x n_cells x n_genes``."""
    base: DecoderOutput | None = None
    """Output of an additive decoder without the effect of the condition."""


class ConditionalDecoder(nn.Module):
    """The paper's decoder: the condition enters the first layer (Lotfollahi et al. 2020, fig. 1).

    Parameters
    ----------
    n_latent
        Size of ``z``.
    n_genes
        Number of genes.
    hidden_sizes
        Widths from the bottleneck to the genes.
    sizes
        Covariates that enter the first layer.
    normalization
        Normalisation of the hidden layers.
    dropout_rate
        Dropout after each hidden layer.
    zero_inflated
        Whether to give logits of zero inflation.
    """

    def __init__(
        self,
        n_latent: int,
        n_genes: int,
        hidden_sizes: Sequence[int],
        sizes: CovariateSizes,
        *,
        normalization: Normalization,
        dropout_rate: float = 0.0,
        zero_inflated: bool = False,
    ):
        super().__init__()
        self.hidden = HiddenStack(n_latent, hidden_sizes, sizes, normalization, dropout_rate)
        self.logits = nn.Linear(hidden_sizes[-1], n_genes)
        self.dropout_logits = nn.Linear(hidden_sizes[-1], n_genes) if zero_inflated else None

    @property
    def bias(self) -> torch.Tensor:
        """What is added to all logits, ``n_genes``."""
        return self.logits.bias

    def forward(
        self, z: torch.Tensor, covariates: Covariates, base: DecoderOutput | None = None
    ) -> DecoderOutput:
        """Decode ``... x n_cells x n_latent``; ``base`` is for :class:`AdditiveDecoder` only."""
        first, hidden = self.hidden(z, covariates)
        dropout_logits = None if self.dropout_logits is None else self.dropout_logits(hidden)
        return DecoderOutput(first, self.logits(hidden), dropout_logits)


class AdditiveDecoder(nn.Module):
    """``base(z) + effect(z, condition)``: only the effect sees the condition.

    The base is a :class:`ConditionalDecoder` without the condition. The MMD is taken at its first
    layer, where conditions should not differ.

    Parameters
    ----------
    n_latent
        Size of ``z``.
    n_genes
        Number of genes.
    hidden_sizes
        Widths of the base from the bottleneck to the genes.
    sizes
        The condition enters the effect; all other covariates enter the base's first layer.
    effect_sizes
        Widths of the effect's hidden layers.
    normalization, dropout_rate, zero_inflated
        See :class:`ConditionalDecoder`.
    """

    def __init__(
        self,
        n_latent: int,
        n_genes: int,
        hidden_sizes: Sequence[int],
        sizes: CovariateSizes,
        *,
        effect_sizes: Sequence[int],
        normalization: Normalization,
        dropout_rate: float = 0.0,
        zero_inflated: bool = False,
    ):
        super().__init__()
        self.base = ConditionalDecoder(
            n_latent,
            n_genes,
            hidden_sizes,
            sizes.without_condition(),
            normalization=normalization,
            dropout_rate=dropout_rate,
            zero_inflated=zero_inflated,
        )
        self.effect = HiddenStack(
            n_latent, effect_sizes, CovariateSizes(sizes.n_conditions), normalization, dropout_rate
        )
        self.effect_logits = nn.Linear(effect_sizes[-1], n_genes)

    @property
    def bias(self) -> torch.Tensor:
        """What is added to all logits, ``n_genes``."""
        return self.base.bias

    def forward(
        self, z: torch.Tensor, covariates: Covariates, base: DecoderOutput | None = None
    ) -> DecoderOutput:
        """Decode ``... x n_cells x n_latent``; a given ``base`` of the same cells is reused."""
        base = base or self.base(z, covariates)
        _, hidden = self.effect(z, covariates)
        return base._replace(logits=base.logits + self.effect_logits(hidden), base=base)
