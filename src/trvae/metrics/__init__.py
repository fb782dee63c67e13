"""How well predicted cells agree with observed ones."""

from trvae.metrics._coverage import coverage
from trvae.metrics._differential_expression import (
    de_direction,
    de_overlap,
    de_precision,
    de_rank_correlation,
    de_recall,
    rank_changed_genes,
    significant_genes,
    welch_degrees_of_freedom,
    welch_t,
)
from trvae.metrics._distances import (
    energy_distance,
    frechet_distance,
    maximum_mean_discrepancy,
    wasserstein_distance,
)
from trvae.metrics._moments import (
    discrimination,
    pearson_of_change,
    r2_of_means,
    r2_of_variances,
    rmse_of_log_fold_changes,
    rmse_of_means,
)
from trvae.metrics._normalize import log_normalized, median_library_size
from trvae.metrics._paired import paired_differences
from trvae.metrics._skill import MEASURES, skill_scores
from trvae.metrics._strokes import stroke_thickness
from trvae.metrics._summary import summarize
from trvae.metrics._transfer_metrics import transfer_metrics

__all__ = [
    "MEASURES",
    "coverage",
    "de_direction",
    "de_overlap",
    "de_precision",
    "de_rank_correlation",
    "de_recall",
    "discrimination",
    "energy_distance",
    "frechet_distance",
    "log_normalized",
    "maximum_mean_discrepancy",
    "median_library_size",
    "paired_differences",
    "pearson_of_change",
    "r2_of_means",
    "r2_of_variances",
    "rank_changed_genes",
    "rmse_of_log_fold_changes",
    "rmse_of_means",
    "significant_genes",
    "skill_scores",
    "stroke_thickness",
    "summarize",
    "transfer_metrics",
    "wasserstein_distance",
    "welch_degrees_of_freedom",
    "welch_t",
]
