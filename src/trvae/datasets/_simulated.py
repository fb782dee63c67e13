"""Counts with a known effect of the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from trvae._utils._arguments import POSITIVE_INTEGER, POSITIVE_NUMBER, SEED, SHARE, check_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

_RULES = {
    "n_genes": POSITIVE_INTEGER,
    "n_cell_types": POSITIVE_INTEGER,
    "share_affected": SHARE,
    "n_lineages": POSITIVE_INTEGER,
    "n_batches": POSITIVE_INTEGER,
    "mean_library_size": POSITIVE_NUMBER,
    "inverse_dispersion": POSITIVE_NUMBER,
    "seed": SEED,
}
_SD_OF_LOG_LIBRARY = 0.3


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
        Number of cells of each type under each condition: one number, or
        ``n_conditions x n_cell_types``.
    n_genes
        Number of genes.
    n_cell_types
        Number of cell types.
    conditions
        Names of the conditions, of which the first is the control.
    effect_size
        Absolute log fold change of the affected genes; half go up and half go down.
    share_affected
        Share of the genes that each condition affects.
    n_lineages
        Number of lineages, to which cell types are assigned in turn. Types of the same lineage have
        similar profiles and the same effects; effects differ between lineages.
    affected_cell_types
        Positions of the cell types that respond at all, by default all.
    n_batches
        Number of batches, each of which has cells of every type and condition.
    batch_effect_size
        Standard deviation of the batches' log fold changes.
    mean_library_size
        Mean of the log-normal library sizes.
    inverse_dispersion
        Inverse dispersion of the counts: their variance is ``rate + rate**2 / inverse_dispersion``.
    seed
        Seed of everything that is drawn.

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
        If a number is out of range, or ``n_cells`` has the wrong shape.
    """
    check_arguments(locals(), _RULES)
    groups = (len(conditions), n_cell_types)
    if np.shape(n_cells) not in ((), groups):
        raise ValueError(f"n_cells must have the shape {groups}, got {np.shape(n_cells)}.")
    if not set(affected_cell_types or []) <= set(range(n_cell_types)):
        raise ValueError(
            f"affected_cell_types must be positions from 0 to {n_cell_types - 1}, got "
            f"{affected_cell_types!r}."
        )
    rng = np.random.default_rng(seed)
    lineage = np.arange(n_cell_types) % n_lineages
    profiles = rng.normal(0, 1, (n_cell_types, n_genes))
    if n_lineages > 1:
        profiles = 0.5 * profiles + rng.normal(0, 1, (n_lineages, n_genes))[lineage]
    responds = np.ones(n_cell_types, dtype=bool)
    if affected_cell_types is not None:
        responds = np.isin(np.arange(n_cell_types), affected_cell_types)
    responding = [(lineage == code) & responds for code in range(n_lineages)]
    n_affected = round(share_affected * n_genes)
    effects = _effects(rng, (*groups, n_genes), responding, n_affected, effect_size)

    group_sizes = np.broadcast_to(n_cells, groups).ravel()
    condition, cell_type = (np.repeat(codes.ravel(), group_sizes) for codes in np.indices(groups))
    batch = np.arange(len(condition)) % n_batches
    log_share = profiles[cell_type] + effects[condition, cell_type]
    if n_batches > 1:
        log_share = log_share + rng.normal(0, batch_effect_size, (n_batches, n_genes))[batch]
    share = np.exp(log_share)
    share /= share.sum(1, keepdims=True)
    log_mean = np.log(mean_library_size) - 0.5 * _SD_OF_LOG_LIBRARY**2
    rate = rng.lognormal(log_mean, _SD_OF_LOG_LIBRARY, (len(condition), 1)) * share
    counts = rng.poisson(rng.gamma(inverse_dispersion, rate / inverse_dispersion))

    types = [f"type_{i}" for i in range(n_cell_types)]
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, list(conditions)),
            "cell_type": pd.Categorical.from_codes(cell_type, types),
            "batch": pd.Categorical.from_codes(batch, [f"batch_{i}" for i in range(n_batches)]),
        },
        index=[f"cell_{i}" for i in range(len(condition))],
    )
    genes = [f"gene_{i}" for i in range(n_genes)]
    truth = {
        f"effect_{name}": pd.DataFrame(effect.T, index=genes, columns=types)
        for name, effect in zip(conditions, effects, strict=True)
    }
    return AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame({name: effect.mean(axis=1) for name, effect in truth.items()}, genes),
        varm=truth,
        layers={"rate": rate},
    )


def _effects(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    responding: list[np.ndarray],
    n_affected: int,
    effect_size: float,
) -> np.ndarray:
    """Log fold changes, ``n_conditions x n_cell_types x n_genes``; each lineage responds alike."""
    effects = np.zeros(shape)
    change = effect_size * np.where(np.arange(n_affected) % 2 == 0, 1, -1)
    for effect in effects[1:]:
        for cell_types in responding:
            affected = rng.permutation(shape[-1])[:n_affected]
            effect[np.ix_(cell_types, affected)] = change
    return effects
