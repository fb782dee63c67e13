"""What is drawn of predicted, observed and control cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trvae._utils._arguments import is_integer, join_names
from trvae.metrics import log_normalized, median_library_size
from trvae.metrics._comparable import check_comparable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def normalized(
    groups: dict[str, AnnData | None], layer: str | None, library_key: str | None
) -> dict[str, np.ndarray]:
    """Return log-normalised values of the groups that there are, with the observed cells' genes.

    Parameters
    ----------
    groups
        The groups by name, ``observed`` among them.
    layer, library_key
        As in :func:`trvae.metrics.transfer_metrics`.
    """
    present = {name: adata for name, adata in groups.items() if adata is not None}
    check_comparable(present, layer)
    scale_to = present.get("control", present["observed"])
    target_sum = median_library_size(scale_to, layer, library_key)
    genes = present["observed"].var_names
    return {
        name: log_normalized(
            adata[:, genes], target_sum=target_sum, layer=layer, library_key=library_key
        )
        for name, adata in present.items()
    }


def chosen_genes(
    var_names: pd.Index, genes: Sequence[str] | None, interest: np.ndarray, n_genes: int
) -> np.ndarray:
    """Return positions of the genes asked for, or of those of the largest absolute interest.

    Parameters
    ----------
    var_names
        All genes.
    genes
        Names, or ``None``.
    interest
        One number a gene.
    n_genes
        How many if ``genes`` is ``None``.
    """
    if genes is None:
        if not is_integer(n_genes) or n_genes < 0:
            raise ValueError(f"n_genes={n_genes!r} is not an integer from 0 on.")
        return np.argsort(-np.abs(interest))[:n_genes]
    names = [genes] if isinstance(genes, str) else list(genes)
    positions = var_names.get_indexer(names)
    if (positions < 0).any():
        missing = [name for name, at in zip(names, positions, strict=True) if at < 0]
        raise ValueError(f"genes that are not in var_names: {join_names(missing)}.")
    return positions
