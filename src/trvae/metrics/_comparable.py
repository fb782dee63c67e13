"""Whether groups of cells have the genes and the scale to be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trvae._utils._arguments import join_names
from trvae.data._checks import check_unique_genes, get_matrix, name_of_matrix, value_range
from trvae.metrics._normalize import is_counts, stated_target_sum

if TYPE_CHECKING:
    from anndata import AnnData


def check_comparable(
    groups: dict[str, AnnData], layer: str | None, normalize: bool = True
) -> None:
    """Raise a ``ValueError`` unless the groups, by name, can be compared.

    Each needs two cells and finite values of the genes of the group ``observed``. If counts are to
    be normalised, they can't be compared with values of an unknown scale.
    """
    genes = groups["observed"].var_names
    for name, adata in groups.items():
        if adata.n_obs < 2:
            raise ValueError(f"{name} has {adata.n_obs} cells; 2 or more are needed.")
        check_unique_genes(adata, name)
        missing = genes.difference(adata.var_names)
        if len(missing):
            raise ValueError(f"{name} lacks genes that observed has: {join_names(missing)}.")
        value_range(get_matrix(adata[:, genes], layer), f"{name}: {name_of_matrix(layer)}")
    if normalize:
        _check_same_scale(groups, layer)


def _check_same_scale(groups: dict[str, AnnData], layer: str | None) -> None:
    counts = [name for name, adata in groups.items() if is_counts(get_matrix(adata, layer))]
    unknown = [
        name
        for name, adata in groups.items()
        if name not in counts and stated_target_sum(adata) is None
    ]
    if counts and unknown:
        raise ValueError(
            f"{', '.join(counts)} hold counts, but {', '.join(unknown)} values that are not "
            "integers. Compare counts with counts, as drawn by transfer(), or log-normalised "
            "values with log-normalised values, or state in uns['log1p']['target_sum'] which "
            "library size log-normalised values are scaled to."
        )
