"""Whether groups of cells have the genes and the scale to be compared."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trvae._utils._arguments import join_names
from trvae.data._checks import (
    check_library,
    check_numbers,
    check_unique_genes,
    get_matrix,
    name_of_matrix,
    value_range,
)
from trvae.metrics._normalize import is_counts, stated_base, stated_target_sum

if TYPE_CHECKING:
    from anndata import AnnData

# Logarithms of counts stay far below.
_LARGEST_LOGARITHM = 30


def check_comparable(
    groups: dict[str, AnnData],
    *,
    layer: str | None,
    library_key: str | None,
    normalize: bool = True,
) -> None:
    """Raise a ``ValueError`` unless the groups, by name, can be compared.

    Each needs two cells and finite values of the genes of the group ``observed``. If counts are to
    be normalised, they can't be compared with values of an unknown scale.
    """
    genes = groups["observed"].var_names
    counts: list[str] = []
    logarithms: list[str] = []
    for name, adata in groups.items():
        if adata.n_obs < 2:
            raise ValueError(f"{name} has {adata.n_obs} cells; 2 or more are needed.")
        check_unique_genes(adata, name)
        missing = genes.difference(adata.var_names)
        if len(missing):
            raise ValueError(f"{name} lacks genes that observed has: {join_names(missing)}.")
        matrix, where = get_matrix(adata[:, genes], layer), f"{name}: {name_of_matrix(layer)}"
        # Cells without any counts have the same logarithms.
        if not any(value_range(matrix, where)) or not normalize:
            continue
        (counts if is_counts(matrix) else logarithms).append(name)
        if name in counts and library_key is not None:
            check_numbers(adata, "library_key", library_key, positive=True)
            # More counts can be predicted than the cell has that they are predicted from.
            if name != "predicted":
                check_library(matrix, adata.obs[library_key], where)
    _check_same_scale(groups, counts, logarithms)


def check_logarithms(control: AnnData, layer: str | None) -> None:
    """Raise a ``ValueError`` if values to be compared as logarithms can't be any."""
    matrix, where = get_matrix(control, layer), f"control: {name_of_matrix(layer)}"
    low, high = value_range(matrix, where)
    if high > _LARGEST_LOGARITHM and low == 0 and not is_counts(matrix):
        raise ValueError(
            f"{where} has values that are neither integers nor logarithms (up to {high:g}). Round "
            "counts that were estimated, or compare all values as they are: normalize=False."
        )


def _check_same_scale(
    groups: dict[str, AnnData], counts: list[str], logarithms: list[str]
) -> None:
    """Raise a ``ValueError`` unless these groups of counts and of logarithms can be compared."""
    unknown = [name for name in logarithms if stated_target_sum(groups[name]) is None]
    if counts and unknown:
        raise ValueError(
            f"{', '.join(counts)} hold counts, but {', '.join(unknown)} values that are not "
            "integers. Compare counts with counts, as drawn by transfer(), or log-normalised "
            "values with log-normalised values, or state in uns['log1p']['target_sum'] which "
            "library size log-normalised values are scaled to."
        )
    bases = {name: stated_base(groups[name]) for name in logarithms} | dict.fromkeys(
        counts, math.e
    )
    if len({base for base in bases.values() if base is not None}) > 1:
        shown = (f"{name} {base:.4g}" for name, base in bases.items() if base is not None)
        raise ValueError(
            "Logarithms of different bases (of uns['log1p']['base']) can't be compared: "
            f"{', '.join(shown)}. Take natural logarithms, as scanpy.pp.log1p(adata) does."
        )
