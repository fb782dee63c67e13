"""The encoder and the two decoders of expression, and their layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from trvae.module._sparse import InputLinear

if TYPE_CHECKING:
    from collections.abc import Sequence


Normalization = Literal["batch", "layer", "none"]


class Covariates(NamedTuple):
    """What is known of each cell beside its expression."""

    condition: torch.Tensor
    """Integer codes, ``n_cells``."""
    categorical: torch.Tensor | None = None
    """Integer codes, ``n_cells x n_categorical_covariates``."""
    continuous: torch.Tensor | None = None
    """Values, ``n_cells x n_continuous_covariates``."""


class CovariateSizes(NamedTuple):
    """How many conditions, categories of each covariate, and continuous covariates there are."""

    n_conditions: int
    n_cats_per_cov: tuple[int, ...] = ()
    n_continuous_cov: int = 0

    def without_condition(self) -> CovariateSizes:
        """The same covariates for a layer that must not see the condition."""
        return self._replace(n_conditions=0)


class CovariateOffset(nn.Module):
    """What the condition and the covariates add: a linear map of their one-hot encodings.

    Each categorical covariate keeps its own table with a row for each category, so that a new
    category (reference mapping) appends a row to the right table.

    Parameters
    ----------
    n_out
        Number of output features.
    sizes
        Covariates that enter. The condition stays out if ``n_conditions`` is 0.
    n_other
        Number of features that enter beside them, for the scale of the tables.
    """

    def __init__(self, n_out: int, sizes: CovariateSizes, n_other: int = 0):
        super().__init__()
        self.condition = (
            nn.Embedding(sizes.n_conditions, n_out) if sizes.n_conditions > 0 else None
        )
        self.categorical = nn.ModuleList(nn.Embedding(n, n_out) for n in sizes.n_cats_per_cov)
        self.continuous = (
            nn.Linear(sizes.n_continuous_cov, n_out, bias=False)
            if sizes.n_continuous_cov > 0
            else None
        )
        # The scale that nn.Linear gives the columns of a concatenated one-hot encoding.
        bound = max(n_other + sum(sizes.n_cats_per_cov) + sizes.n_conditions, 1) ** -0.5
        for table in self.category_tables():
            nn.init.uniform_(table.weight, -bound, bound)

    def category_tables(self) -> list[nn.Embedding]:
        """The tables of the condition (if it enters) and of the categorical covariates."""
        tables = [self.condition, *self.categorical]
        return [table for table in tables if isinstance(table, nn.Embedding)]

    def added_to(self, out: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Add to ``... x n_cells x n_out``."""
        if self.condition is not None:
            out = out + self.condition(covariates.condition)
        for i, table in enumerate(self.categorical):
            out = out + table(covariates.categorical[:, i])  # type: ignore[index]
        if self.continuous is not None:
            out = out + self.continuous(covariates.continuous)
        return out


class CovariateLinear(CovariateOffset):
    """A linear layer of ``[x, condition, covariates]`` with a weight block for each covariate.

    It equals a linear layer of the concatenated one-hot encodings.

    Parameters
    ----------
    n_in
        Number of input features.
    n_out
        Number of output features.
    sizes
        Covariates that enter. The condition stays out if ``n_conditions`` is 0.
    """

    def __init__(self, n_in: int, n_out: int, sizes: CovariateSizes):
        # Weights are drawn in this order.
        linear = nn.Linear(n_in, n_out)
        super().__init__(n_out, sizes, n_in)
        self.linear: nn.Module = linear

    def forward(self, x: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Map ``... x n_cells x n_in`` to ``... x n_cells x n_out``."""
        return self.added_to(self.linear(x), covariates)


class Dropout(nn.Dropout):
    """As PyTorch's, with draws that take half the time on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a tensor to one of its shape."""
        if x.device.type != "cpu" or not self.training or self.p in (0, 1):
            return super().forward(x)
        kept = torch.rand_like(x, dtype=torch.float32) >= self.p
        return x * kept.to(x.dtype).div_(1 - self.p)


class HiddenLayer(nn.Module):
    """Linear map (with or without covariates), normalisation, ReLU, then dropout.

    :meth:`activate` stops before the dropout, which is where the MMD is taken.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        normalization: Normalization,
        sizes: CovariateSizes | None = None,
        dropout_rate: float = 0.0,
    ):
        super().__init__()
        self.map = nn.Linear(n_in, n_out) if sizes is None else CovariateLinear(n_in, n_out, sizes)
        self.takes_covariates = sizes is not None
        # scvi-tools' settings of the two norms.
        self.norm = {
            "batch": lambda: nn.BatchNorm1d(n_out, momentum=0.01, eps=0.001),
            "layer": lambda: nn.LayerNorm(n_out, elementwise_affine=False),
            "none": nn.Identity,
        }[normalization]()
        self.dropout = Dropout(dropout_rate)

    def activate(self, x: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Activations before dropout, ``... x n_cells x n_out``."""
        out = self.map(x, covariates) if self.takes_covariates else self.map(x)
        # BatchNorm1d takes one batch dimension; several posterior draws are one long batch.
        out = self.norm(out.reshape(-1, out.shape[-1])).reshape(out.shape)
        return torch.relu(out)

    def forward(self, x: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Activations after dropout, ``... x n_cells x n_out``."""
        return self.dropout(self.activate(x, covariates))


class HiddenStack(nn.Module):
    """Hidden layers, the first of which takes the covariates."""

    def __init__(
        self,
        n_in: int,
        hidden_sizes: Sequence[int],
        sizes: CovariateSizes,
        normalization: Normalization,
        dropout_rate: float,
    ):
        super().__init__()
        widths = [n_in, *hidden_sizes]
        self.layers = nn.ModuleList(
            HiddenLayer(
                before,
                after,
                sizes=sizes if i == 0 else None,
                normalization=normalization,
                dropout_rate=dropout_rate,
            )
            for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )

    def forward(
        self, x: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first layer's activations before dropout and the last layer's output."""
        first_layer: Any
        first_layer, *later_layers = self.layers
        first = first_layer.activate(x, covariates)
        hidden = first_layer.dropout(first)
        for layer in later_layers:
            hidden = layer(hidden, covariates)
        return first, hidden


def posterior_scale(log_variance: torch.Tensor) -> torch.Tensor:
    """Standard deviation of ``q(z | x)``, of the shape of its log variance."""
    # The floor keeps the KL divergence finite should a dimension collapse.
    return torch.exp(0.5 * log_variance).clamp(min=1e-4)


class Encoder(nn.Module):
    """``[x, condition, covariates]`` to the mean and standard deviation of ``q(z | x)``."""

    def __init__(
        self,
        n_input: int,
        n_latent: int,
        hidden_sizes: Sequence[int],
        sizes: CovariateSizes,
        normalization: Normalization,
        dropout_rate: float,
    ):
        super().__init__()
        self.hidden = HiddenStack(n_input, hidden_sizes, sizes, normalization, dropout_rate)
        first: Any = self.hidden.layers[0].map
        first.linear = InputLinear(first.linear)
        self.mean = nn.Linear(hidden_sizes[-1], n_latent)
        self.log_variance = nn.Linear(hidden_sizes[-1], n_latent)

    def forward(
        self, x: torch.Tensor, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``n_cells x n_input`` to two tensors of ``n_cells x n_latent``."""
        _, hidden = self.hidden(x, covariates)
        return self.mean(hidden), posterior_scale(self.log_variance(hidden))


class DecoderOutput(NamedTuple):
    """What a decoder gives."""

    first_layer: torch.Tensor
    """Activations of the first layer before dropout, ``... x n_cells x first width``."""
    logits: torch.Tensor
    """One value a gene, ``... x n_cells x n_genes``; the likelihood gives it its meaning."""
    dropout_logits: torch.Tensor | None
    """Logits of zero inflation, ``... x n_cells x n_genes``."""
    base: DecoderOutput | None = None
    """Of an additive decoder, what it gives without the effect of the condition."""


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

    def forward(
        self, z: torch.Tensor, covariates: Covariates, base: DecoderOutput | None = None
    ) -> DecoderOutput:
        """Decode ``... x n_cells x n_latent``; there is no ``base`` here."""
        first, hidden = self.hidden(z, covariates)
        dropout_logits = None if self.dropout_logits is None else self.dropout_logits(hidden)
        return DecoderOutput(first, self.logits(hidden), dropout_logits)


class AdditiveDecoder(nn.Module):
    """``base(z) + effect(z, condition)``: only the effect sees the condition.

    The base is a :class:`ConditionalDecoder` without the condition. Its first layer is where the
    conditions should not differ, and there the MMD is taken.

    Parameters
    ----------
    n_latent
        Size of ``z``.
    n_genes
        Number of genes.
    hidden_sizes
        Widths of the base from the bottleneck to the genes.
    sizes
        Covariates: the condition enters the effect, all others the base's first layer.
    effect_sizes
        Widths of the effect's hidden layers.
    **kwargs
        As in :class:`ConditionalDecoder`.
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

    def forward(
        self, z: torch.Tensor, covariates: Covariates, base: DecoderOutput | None = None
    ) -> DecoderOutput:
        """Decode ``... x n_cells x n_latent``; ``base`` is that of the same cells, if known."""
        base = base or self.base(z, covariates)
        _, hidden = self.effect(z, covariates)
        return base._replace(logits=base.logits + self.effect_logits(hidden), base=base)
