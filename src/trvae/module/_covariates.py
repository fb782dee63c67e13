"""Condition and covariates of each cell, and the layers through which they enter a network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn


class Covariates(NamedTuple):
    """Condition and covariates of ``n_cells`` cells."""

    condition: torch.Tensor
    """Integer codes, ``n_cells``."""
    categorical: torch.Tensor | None = None
    """Integer codes, ``n_cells x n_categorical_covariates``."""
    continuous: torch.Tensor | None = None
    """Values, ``n_cells x n_continuous_covariates``."""

    @classmethod
    def from_columns(
        cls,
        condition: torch.Tensor,
        cat_covs: torch.Tensor | None,
        cont_covs: torch.Tensor | None,
    ) -> Covariates:
        """Make them from the columns of a minibatch, ``n_cells x 1`` for the condition."""
        categorical = None if cat_covs is None else cat_covs.long()
        return cls(condition.flatten().long(), categorical, cont_covs)


class CovariateSizes(NamedTuple):
    """Number of conditions, of categories of each covariate, and of continuous covariates."""

    n_conditions: int
    n_cats_per_cov: tuple[int, ...] = ()
    n_continuous_cov: int = 0

    def without_condition(self) -> CovariateSizes:
        """The same covariates for a layer that must not see the condition."""
        return self._replace(n_conditions=0)


class CovariateOffset(nn.Module):
    """A linear map of the one-hot encoded condition and covariates, to be added to a layer.

    Each categorical covariate has a table of its own with one row per category, so that a new
    category (reference mapping) appends a row to the right table.

    Parameters
    ----------
    n_out
        Number of output features.
    sizes
        Covariates that enter. The condition stays out if ``n_conditions`` is 0.
    n_other
        Number of features that enter beside them; it scales the initial weights.
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
        # nn.Linear's bound for a concatenated one-hot encoding.
        bound = max(n_other + sum(sizes.n_cats_per_cov) + sizes.n_conditions, 1) ** -0.5
        for table in self.category_tables():
            nn.init.uniform_(table.weight, -bound, bound)

    def category_tables(self) -> list[nn.Embedding]:
        """Tables of the condition (if it enters) and of the categorical covariates."""
        tables = [self.condition, *self.categorical]
        return [table for table in tables if isinstance(table, nn.Embedding)]

    def added_to(self, out: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Add the offset to ``... x n_cells x n_out``."""
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
        # First, so that a seed keeps giving the same initial weights.
        linear = nn.Linear(n_in, n_out)
        super().__init__(n_out, sizes, n_in)
        self.linear: nn.Module = linear

    def forward(self, x: torch.Tensor, covariates: Covariates) -> torch.Tensor:
        """Map ``... x n_cells x n_in`` to ``... x n_cells x n_out``."""
        return self.added_to(self.linear(x), covariates)
