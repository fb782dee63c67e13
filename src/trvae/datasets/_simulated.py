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
    n_cells: int | Sequence[Sequence[int]] = 200,
    n_genes: int = 100,
    n_cell_types: int = 3,
    conditions: Sequence[str] = ("control", "treated"),
    effect_size: float = 1.5,
    share_affected: float = 0.2,
    n_lineages: int = 1,
    affected_cell_types: Sequence[int] | None = None,
    n_batches: int = 1,
    batch_effect_size: float = 0.5,
    mean_library_size: float = 500.0,
    inverse_dispersion: float = 5.0,
    seed: int = 0,
) -> AnnData:
    r"""Negative-binomial counts of cell types under conditions with a known effect.

    A cell of type :math:`t` under condition :math:`c` in batch :math:`b` has rates proportional to
    :math:`\exp(\beta_{tg} + \delta_{ctg} + \gamma_{bg})`, scaled to its library size; the first
    condition has no effect.

    Parameters
    ----------
    n_cells
        Cells of each type under each condition: one number, or ``n_conditions x n_cell_types``.
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
    n_lineages
        Cell types belong to them in turn. Types of one lineage have similar profiles and the same
        effects, those of different lineages have effects of their own.
    affected_cell_types
        Positions of the cell types that respond at all, by default all.
    n_batches
        Number of batches, each of which has cells of every type and condition.
    batch_effect_size
        Standard deviation of the batches' log fold changes.
    mean_library_size
        Mean of the log-normal library sizes.
    inverse_dispersion
        Of the counts.
    seed
        Seed of everything.

    Returns
    -------
    AnnData with integer counts as CSR ``float32`` in ``X``; ``condition``, ``cell_type`` and
    ``batch`` in ``obs``; the true log fold changes of each cell type in
    ``varm["effect_<condition>"]``, ``n_genes x n_cell_types``, and their mean over cell types in
    ``var["effect_<condition>"]``; the true expected counts, ``n_cells x n_genes``, in
    ``layers["rate"]``.

    Raises
    ------
    ValueError
        If ``share_affected`` is not between 0 and 1, or ``n_cells`` has the wrong shape.
    """
    if not 0 <= share_affected <= 1:
        raise ValueError(f"share_affected={share_affected} is not between 0 and 1.")
    shape = (len(conditions), n_cell_types)
    if np.shape(n_cells) not in ((), shape):
        raise ValueError(f"n_cells has the shape {np.shape(n_cells)}, not {shape}.")
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, (n_cell_types, n_genes))
    lineage = np.arange(n_cell_types) % n_lineages
    if n_lineages > 1:
        base = 0.5 * base + rng.normal(0, 1, (n_lineages, n_genes))[lineage]
    responds = np.isin(
        np.arange(n_cell_types),
        np.arange(n_cell_types) if affected_cell_types is None else affected_cell_types,
    )
    effects = np.zeros((*shape, n_genes))
    n_affected = round(share_affected * n_genes)
    for effect in effects[1:]:
        for one in range(n_lineages):
            affected = rng.permutation(n_genes)[:n_affected]
            change = effect_size * np.where(np.arange(n_affected) % 2 == 0, 1, -1)
            effect[np.ix_((lineage == one) & responds, affected)] = change

    group_sizes = np.broadcast_to(n_cells, shape).ravel()
    condition, cell_type = (np.repeat(codes.ravel(), group_sizes) for codes in np.indices(shape))
    n_total = len(condition)
    batch = np.arange(n_total) % n_batches
    log_share = base[cell_type] + effects[condition, cell_type]
    if n_batches > 1:
        log_share = log_share + rng.normal(0, batch_effect_size, (n_batches, n_genes))[batch]
    share = np.exp(log_share)
    share /= share.sum(1, keepdims=True)
    library = rng.lognormal(np.log(mean_library_size) - 0.5 * 0.3**2, 0.3, (n_total, 1))
    rate = library * share
    counts = rng.poisson(rng.gamma(inverse_dispersion, rate / inverse_dispersion))

    type_names = [f"type_{i}" for i in range(n_cell_types)]
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, list(conditions)),
            "cell_type": pd.Categorical.from_codes(cell_type, type_names),
            "batch": pd.Categorical.from_codes(batch, [f"batch_{i}" for i in range(n_batches)]),
        },
        index=[f"cell_{i}" for i in range(n_total)],
    )
    genes = [f"gene_{i}" for i in range(n_genes)]
    told = {f"effect_{name}": effect for name, effect in zip(conditions, effects, strict=True)}
    return AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame({name: effect.mean(0) for name, effect in told.items()}, index=genes),
        varm={
            name: pd.DataFrame(effect.T, index=genes, columns=type_names)
            for name, effect in told.items()
        },
        layers={"rate": rate},
    )
