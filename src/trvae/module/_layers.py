"""Hidden layers and the encoder of expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from trvae.module._covariates import CovariateLinear
from trvae.module._sparse import InputLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trvae.module._covariates import Covariates, CovariateSizes
    from trvae.module._sparse import SparseMatrix


Normalization = Literal["batch", "layer", "none"]


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
        # scvi-tools' settings of both norms.
        self.norm = {
            "batch": lambda: nn.BatchNorm1d(n_out, momentum=0.01, eps=0.001),
            "layer": lambda: nn.LayerNorm(n_out, elementwise_affine=False),
            "none": nn.Identity,
        }[normalization]()
        self.dropout = nn.Dropout(dropout_rate)

    def activate(self, x: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Activations before dropout, ``... x n_cells x n_out``."""
        out = self.map(x, covariates) if self.takes_covariates else self.map(x)
        # BatchNorm1d takes a single batch dimension: posterior draws form one long batch.
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
        self, x: torch.Tensor | SparseMatrix, covariates: Covariates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``n_cells x n_input`` to two tensors of ``n_cells x n_latent``."""
        _, hidden = self.hidden(x, covariates)
        return self.mean(hidden), posterior_scale(self.log_variance(hidden))


def posterior_scale(log_variance: torch.Tensor) -> torch.Tensor:
    """Standard deviation of ``q(z | x)``, of the shape of its log variance."""
    # The floor keeps the KL divergence finite if a dimension collapses.
    return torch.exp(0.5 * log_variance).clamp(min=1e-4)
