"""How well predicted cells agree with observed ones."""

from trvae.metrics._coverage import coverage
from trvae.metrics._differential_expression import (
    de_direction,
    de_overlap,
    de_rank_correlation,
    rank_changed_genes,
    welch_t,
)
from trvae.metrics._distances import energy_distance, frechet_distance, maximum_mean_discrepancy
from trvae.metrics._moments import pearson_of_change, r2_of_means, r2_of_variances, rmse_of_means
from trvae.metrics._normalize import log_normalized, median_library_size
from trvae.metrics._strokes import stroke_thickness
from trvae.metrics._transfer_metrics import transfer_metrics

__all__ = [
    "coverage",
    "de_direction",
    "de_overlap",
    "de_rank_correlation",
    "energy_distance",
    "frechet_distance",
    "log_normalized",
    "maximum_mean_discrepancy",
    "median_library_size",
    "pearson_of_change",
    "r2_of_means",
    "r2_of_variances",
    "rank_changed_genes",
    "rmse_of_means",
    "stroke_thickness",
    "transfer_metrics",
    "welch_t",
]
