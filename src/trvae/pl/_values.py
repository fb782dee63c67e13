"""Values of predicted, observed and control cells, and which genes to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trvae._utils._arguments import NONNEGATIVE_INTEGER, check_arguments, join_names
from trvae.data._cells import loaded
from trvae.metrics import log_normalized, median_library_size
from trvae.metrics._comparable import check_comparable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData


def normalized(
    groups: dict[str, AnnData | None], layer: str | None, library_key: str | None
) -> dict[str, np.ndarray]:
    """Return log-normalised values of the groups, ``n_cells x n_genes``, by name.

    Genes are those of ``observed``. A ``control`` that is ``None`` is left out.
    """
    present = {name: loaded(adata) for name, adata in groups.items() if adata is not None}
    keys: dict[str, Any] = {"layer": layer, "library_key": library_key}
    check_comparable(present, **keys)
    target_sum = median_library_size(present.get("control", present["observed"]), **keys)
    genes = present["observed"].var_names
    return {
        name: log_normalized(adata[:, genes], target_sum=target_sum, **keys)
        for name, adata in present.items()
    }


def chosen_genes(
    var_names: pd.Index, genes: Sequence[str] | None, change: np.ndarray, n_genes: int
) -> np.ndarray:
    """Return positions of the given genes, or of those with the largest absolute change."""
    if genes is None:
        check_arguments(locals(), {"n_genes": NONNEGATIVE_INTEGER})
        return np.argsort(-np.abs(change))[:n_genes]
    names = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
    positions = var_names.get_indexer(names)
    if (positions < 0).any():
        missing = [name for name, at in zip(names, positions, strict=True) if at < 0]
        raise ValueError(f"genes that are not in var_names: {join_names(missing)}.")
    return positions
