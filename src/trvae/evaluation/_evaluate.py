"""Hold out each label's cells under a condition in turn, predict them, and compare."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sized
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from tqdm import tqdm

from trvae._utils._arguments import (
    NONE,
    POSITIVE_INTEGER,
    SEED,
    Rule,
    check_arguments,
    join_names,
    list_of,
)
from trvae.data._cells import loaded
from trvae.data._checks import check_obs_column, get_matrix
from trvae.evaluation._methods import TransferMethod, TRVAEMethod, settings_of
from trvae.evaluation._results import Results, fingerprint_of
from trvae.evaluation._split import hold_out, pairs_to_hold_out, predict_held_out, value_in
from trvae.metrics._baselines import BASELINES, REPLICATE
from trvae.metrics._comparison import baselines_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LIST = Rule(
    "a list with at least one element",
    lambda values: (
        pd.api.types.is_list_like(values) and isinstance(values, Sized) and len(values) > 0
    ),
)
_RULES = {
    "methods": NONE
    | Rule(
        "a dictionary of functions that make a method, with at least one",
        lambda methods: (
            isinstance(methods, Mapping)
            and len(methods) > 0
            and all(map(callable, methods.values()))
        ),
    ),
    "seeds": list_of(SEED),
    **dict.fromkeys(("target_conditions", "labels"), NONE | _LIST),
    "n_genes": NONE | POSITIVE_INTEGER,
}


def evaluate(
    adata: AnnData,
    *,
    condition_key: str,
    labels_key: str,
    source_condition: Any,
    target_conditions: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None,
    methods: Mapping[str, Callable[[], TransferMethod]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    layer: str | None = None,
    library_key: str | None = None,
    normalize: bool = True,
    n_genes: int | None = None,
    n_top_genes: int = 100,
    n_bootstrap: int = 0,
    out: str | Path | None = None,
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Predict each label's cells under a condition from all others, and compare with the real ones.

    One label's cells under one target condition are held out at a time. Every method is fitted to
    the remaining cells, transfers the label's cells from the source condition, and is compared with
    the held-out cells, alongside the baselines and the replicate of
    :func:`trvae.metrics.transfer_metrics`. What can't be compared is found before the first fit.
    By default this is one training for each label, other condition and seed: ``labels=["NK"], seeds=[0]``
    takes one.

    Parameters
    ----------
    adata
        All cells, with counts or log-normalised values, or images. If they are file-backed, they
        are read into memory.
    condition_key, labels_key
        Columns of ``obs`` with the conditions and with the labels, such as cell types.
    source_condition
        Condition to predict from.
    target_conditions
        Conditions to hold out, by default all others.
    labels
        Labels to hold out, by default all with at least 20 cells under both conditions, if another
        label has cells under both, too.
    methods
        Methods to compare, by name: functions without arguments, such as classes, that return an
        object with ``fit`` and ``transfer`` like :class:`~trvae.TRVAEMethod`, the default.
    seeds
        Random seeds. Every method is fitted once with each.
    layer
        Layer with the counts or log-normalised values, by default ``X``.
    library_key, normalize
        See :func:`trvae.metrics.transfer_metrics`: each cell's library size, and whether counts
        are normalised.
    n_genes
        Number of highly variable genes to use, selected anew for each split without the held-out
        cells. By default all genes are used; they should then have been selected without any of
        the cells that are held out.
    n_top_genes
        Number of top genes. They are selected with the held-out cells and only used by metrics.
    n_bootstrap
        See :func:`trvae.metrics.transfer_metrics`: number of resamples for standard errors.
    out
        Folder in which each result is saved as soon as it is available. Results that are there
        already are not computed again, so an interrupted evaluation can be resumed. Results of
        other cells, settings or versions of the package are refused, also those of a
        :class:`~trvae.TRVAEMethod` of the same name with other settings, to which callbacks that
        were trained with belong: make them anew. Other methods are identified by name only.
    progress_bar
        Whether to show a progress bar.

    Returns
    -------
    One row for each held-out label, target condition, method and seed (``<NA>`` for baselines and
    the replicate), with the columns ``label``, ``source_condition``, ``target_condition``,
    ``method``, ``seed`` and the metrics of :func:`trvae.metrics.transfer_metrics`.

    Raises
    ------
    ValueError
        If ``adata`` is not an AnnData; a column, label or condition is missing; a target condition
        is the source condition; a label to hold out has fewer than two cells under one of the
        conditions, or no other label has cells under both; the cells can't be compared (see
        :func:`trvae.metrics.transfer_metrics`); a method has the name of a baseline; or ``out`` has
        results of other data, settings or versions of the package, or a damaged file. After a
        training, if a method returns no AnnData.
    TypeError
        If a :class:`~trvae.TRVAEMethod` is given arguments that its model's methods lack.
    KeyboardInterrupt, SystemExit
        If Ctrl-C or SIGTERM interrupts the training of a :class:`~trvae.TRVAEMethod`, which is
        then discarded. Earlier results remain in ``out``.
    """
    if not isinstance(adata, AnnData):
        raise ValueError(
            f"evaluate takes an AnnData, got a {type(adata).__name__}. From a MuData, pass one "
            "modality with all columns in its obs."
        )
    check_arguments(locals(), _RULES)
    adata = loaded(adata)
    if methods is None:
        # One progress bar is enough.
        quiet = functools.partial(TRVAEMethod, train_kwargs={"enable_progress_bar": False})
        methods = {"trVAE": quiet}
    reserved = set(methods) & {*BASELINES, REPLICATE}
    if reserved:
        raise ValueError(f"methods has names of baselines: {join_names(sorted(reserved))}.")
    of_labels = check_obs_column(adata, "labels_key", labels_key)
    conditions = check_obs_column(adata, "condition_key", condition_key)
    source_condition = value_in("source_condition", source_condition, conditions)
    pairs = pairs_to_hold_out(of_labels, conditions, source_condition, labels, target_conditions)
    settings: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "source_condition": source_condition,
        "layer": layer,
        "library_key": library_key,
        "normalize": normalize,
        "n_genes": n_genes,
        "n_top_genes": n_top_genes,
        "n_bootstrap": n_bootstrap,
    }
    results = Results(out, fingerprint_of(adata, settings))
    for name, make in methods.items():
        results.check_method(name, settings_of(make, adata))
    runs: list[tuple[str, int]] = [
        (method, int(seed)) for method in methods for seed in dict.fromkeys(seeds)
    ]
    missing = {pair: [run for run in runs if (*pair, *run) not in results] for pair in pairs}
    n_missing = sum(map(len, missing.values()))
    # Rows of these can be missing where a line of the file was damaged.
    baselines = [*baselines_of(get_matrix(adata, layer), normalize=normalize), REPLICATE]
    with tqdm(total=n_missing, desc="evaluate", disable=not progress_bar) as bar:
        for (label, target), missing_runs in missing.items():
            if not missing_runs and all(
                (label, target, name, None) in results for name in baselines
            ):
                continue
            split = hold_out(adata, label=label, target_condition=target, **settings)
            for baseline, row in split.comparison.rows.items():
                results.add((label, target, baseline, None), row)
            for method, seed in missing_runs:
                bar.set_postfix_str(f"{label}, {target}: {method}, seed {seed}")
                _, table = predict_held_out(split, methods[method](), target, seed)
                results.add((label, target, method, seed), table.loc["prediction"].to_dict())
                bar.update()

    rows = [
        {
            "label": label,
            "source_condition": source_condition,
            "target_condition": target,
            "method": method,
            "seed": seed,
            **results[label, target, method, seed],
        }
        for label, target in pairs
        for method, seed in [*runs, *((name, None) for name in baselines)]
        if (label, target, method, seed) in results
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})
