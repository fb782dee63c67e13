"""A prediction, beside baselines that need no model and a replicate of the experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trvae.metrics._comparison import TransferComparison

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def transfer_metrics(
    predicted: AnnData,
    observed: AnnData,
    control: AnnData,
    *,
    reference: AnnData | None = None,
    condition_key: str | None = None,
    labels_key: str | None = None,
    source_condition: Any = None,
    target_condition: Any = None,
    layer: str | None = None,
    library_key: str | None = None,
    normalize: bool = True,
    n_top_genes: int = 100,
    n_pcs: int = 30,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare predicted with observed cells, beside baselines and a replicate of the experiment.

    File-backed cells are read into memory.

    Parameters
    ----------
    predicted
        Cells predicted under the target condition, as returned by :meth:`trvae.TRVAE.transfer`:
        counts or log-normalised values. Log-normalised values can be compared with counts if
        ``predicted.uns["log1p"]["target_sum"]`` states the library size that they are scaled to.
    observed
        Cells measured under the target condition, never seen in training.
    control
        The cells from which the prediction was made.
    reference
        The cells that the model was trained on. With it and the next four arguments, the baselines
        that learn from other labels are included.
    condition_key, labels_key
        Columns of ``reference.obs``; the label is looked up in ``control.obs``.
    source_condition, target_condition
        Conditions between which the cells were transferred.
    layer
        Layer to compare, by default ``X``.
    library_key
        Column of ``obs`` with each cell's library size over all measured genes. By default, counts
        are normalised by their sum over the genes of ``observed``.
    normalize
        Whether to normalise counts. ``False`` compares all values as they are, such as pixels.
    n_top_genes
        Number of top genes: those that differ most clearly between ``control`` and ``observed``
        (:func:`welch_t`). They are chosen with the held-out cells, so they are for evaluation only.
    n_pcs
        Number of principal components in which ``energy_distance`` and ``mmd`` are computed, beside
        the direction of the observed change. They are those of the other labels' cells: components
        of ``control`` and ``observed``, which are used without a reference, follow the noise of
        these cells, so that a new sample of the observed cells would score worse than it should.
    n_bootstrap
        Number of resamples of predicted and of observed cells, from which the standard error of
        every measure is estimated; 0 for none. Each takes as long as the comparison itself.
    seed
        Seed of replicates and resamples, and of the random subsets between which distances are
        computed: 2,000 cells in principal components and 1,000 in genes, if there are more.

    Returns
    -------
    One row per method:

    * ``prediction``
    * ``no change``: the control cells
    * ``mean shift``: control plus the mean change over the other labels
    * ``cell-weighted shift``: the same, with labels weighted by their number of cells
    * ``nearest shift``: control plus the change of the label nearest to the control cells, which
      is named in ``DataFrame.attrs["nearest"]``
    * ``linear shift``: control plus the change predicted from the control mean by ridge regression
      over the other labels; the mean shift with fewer than three labels
    * ``linear counts``: the same regression on mean shares of counts; genes that fall keep a random part of
      the control's counts, and to genes that rise Poisson counts are added. Only for counts
    * ``replicate``: about what a repetition of the experiment would score. A sample of the observed
      cells (as many as in ``control``) is compared with another sample of them (as many as were
      observed), both with replacement, averaged over five pairs. Where nothing changes, the noise
      that both samples share makes it too good in measures of the change

    The baselines learn from the labels with at least 20 cells under both conditions, if there are
    three such labels, otherwise from all.

    One column per measure:

    * ``r2_mean``, ``r2_variance``: squared Pearson correlation of per-gene means, variances
    * ``r2_mean_top``, ``r2_variance_top``: the same over the top genes
    * ``change``, ``change_top``: Pearson correlation of the change from control;
      ``change_specific``: of the change beyond the mean change of the other labels
    * ``discrimination``: whether the predicted change is closer to the observed one than to those of
      the other labels (:func:`discrimination`)
    * ``rmse``: of the per-gene means; ``rmse_weighted``: with the squared t of the observed change
      as weights; ``rmse_specific``: over the ``n_top_genes`` genes whose change differs most between
      the other labels; ``rmse_log_fold_change``: of pseudobulks
      (:func:`rmse_of_log_fold_changes`)
    * ``wasserstein``: per gene (:func:`wasserstein_distance`)
    * ``energy_distance``, ``mmd``: between the groups of cells, in principal components; with
      ``_genes``, in all genes; with ``_top``, in the top genes
    * ``coverage_top``: share of the observed values of the top genes within the central 90 % of
      the predicted ones; 0.9 if the prediction is calibrated
    * ``de_overlap``: shared top genes; ``de_precision``, ``de_recall``, ``de_direction``: of the
      genes that change significantly, at a false discovery rate of 5 %; ``de_rank_correlation``: of
      all genes (see :mod:`trvae.metrics`)

    and, with ``n_bootstrap``, the standard error of each, named ``rmse_se`` and so on; of the
    replicate, the standard deviation between its pairs.

    What needs other labels is NaN without a reference; ``rmse_specific`` needs two, and
    ``rmse_log_fold_change`` counts or natural logarithms.
    :data:`MEASURES` has the best value of each, and :func:`skill_scores` puts them on one scale.
    Counts are compared as ``log(1 + count / library size * median library size of control)``.

    Raises
    ------
    ValueError
        If a gene of ``observed`` is missing from another group, a group has fewer than two cells,
        counts would be compared with values of an unknown scale or to another base than ``e``, the
        values are neither integers nor logarithms, a key is missing, library sizes are not positive
        or smaller than the counts, ``library_key`` is given without normalisation, no other label
        was measured under both conditions, or a number is out of range.

    References
    ----------
    Ahlmann-Eltze, Huber & Anders, *Nature Methods* 22, 1657 (2025): why to compare a prediction
    with the mean and with linear models; Mejia et al., *arXiv* 2506.22641 (2025): errors weighted
    by significance; Viñas Torné et al., *Nature Biotechnology* (2025): changes beyond the mean change;
    Efron & Tibshirani, *Statistical Science* 1, 54 (1986), section 2: standard errors. For the other
    measures see :mod:`trvae.metrics`.
    """
    comparison = TransferComparison(
        observed,
        control,
        reference=reference,
        condition_key=condition_key,
        labels_key=labels_key,
        source_condition=source_condition,
        target_condition=target_condition,
        layer=layer,
        library_key=library_key,
        normalize=normalize,
        n_top_genes=n_top_genes,
        n_pcs=n_pcs,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    return comparison.table(predicted)
