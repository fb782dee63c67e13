"""Counts with a known effect of the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence


def simulated(
    *,
    n_cells: int = 200,
    n_genes: int = 100,
    n_cell_types: int = 3,
    conditions: Sequence[str] = ("control", "treated"),
    effect_size: float = 1.5,
    share_affected: float = 0.2,
    mean_library_size: float = 500.0,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
) -> AnnData:
    r"""Negative-binomial counts of cell types under conditions with a known effect.

    A cell of type :math:`t` under condition :math:`c` has rates proportional to
    :math:`\exp(\beta_{tg} + \delta_{cg})`, scaled to its library size; the first condition has
    no effect. The effects are the same in all cell types.

    Parameters
    ----------
    n_cells
        Cells of each type under each condition.
    n_genes
        Number of genes.
    n_cell_types
        Number of cell types.
    conditions
        Names of the conditions, the first of which is the control.
    effect_size
        Absolute log fold change of the affected genes; half go up and half go down.
    share_affected
        Share of the genes that each condition affects.
    mean_library_size
        Mean of the log-normal library sizes.
    inverse_dispersion
        Of the counts.
    seed
        Seed of everything.

    Returns
    -------
    AnnData with integer counts as CSR ``float32`` in ``X``; ``condition`` and ``cell_type`` in
    ``obs``; the true log fold changes in ``var["effect_<condition>"]``; the true expected counts,
    ``n_cells x n_genes``, in ``layers["rate"]``.

    Raises
    ------
    ValueError
        If ``share_affected`` is not between 0 and 1.
    """
    if not 0 <= share_affected <= 1:
        raise ValueError(f"share_affected={share_affected} is not between 0 and 1.")
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, (n_cell_types, n_genes))
    effects = np.zeros((len(conditions), n_genes))
    n_affected = round(share_affected * n_genes)
    for effect in effects[1:]:
        affected = rng.permutation(n_genes)[:n_affected]
        effect[affected] = effect_size * np.where(np.arange(n_affected) % 2 == 0, 1, -1)

    n_total = n_cells * n_cell_types * len(conditions)
    cell_type = np.tile(np.repeat(np.arange(n_cell_types), n_cells), len(conditions))
    condition = np.repeat(np.arange(len(conditions)), n_cells * n_cell_types)
    share = np.exp(base[cell_type] + effects[condition])
    share /= share.sum(1, keepdims=True)
    library = rng.lognormal(np.log(mean_library_size) - 0.5 * 0.3**2, 0.3, (n_total, 1))
    rate = library * share
    counts = rng.poisson(rng.gamma(inverse_dispersion, rate / inverse_dispersion))

    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, list(conditions)),
            "cell_type": pd.Categorical.from_codes(
                cell_type, [f"type_{i}" for i in range(n_cell_types)]
            ),
        },
        index=[f"cell_{i}" for i in range(n_total)],
    )
    var = pd.DataFrame(
        {f"effect_{name}": effect for name, effect in zip(conditions, effects, strict=True)},
        index=[f"gene_{i}" for i in range(n_genes)],
    )
    matrix = sparse.csr_matrix(counts.astype(np.float32))
    return AnnData(matrix, obs=obs, var=var, layers={"rate": rate})
