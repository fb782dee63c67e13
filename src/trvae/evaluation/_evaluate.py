"""Hold out each label's treated cells in turn, predict them, and compare."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData
from mudata import MuData
from tqdm import tqdm

from trvae._utils._arguments import check_positive_integer, check_seed, join_names
from trvae.data._checks import check_obs_column, get_matrix
from trvae.evaluation._methods import TransferMethod, TRVAEMethod
from trvae.evaluation._results import _Results
from trvae.evaluation._split import check_occurs, hold_out, predict_held_out
from trvae.metrics._baselines import BASELINES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


# Labels with fewer cells under a condition are not held out unless they are asked for.
_MIN_CELLS = 20


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
    out: str | Path | None = None,
    progress_bar: bool = True,
) -> pd.DataFrame:
    """Predict each label's cells under a condition from all others, and compare with the real ones.

    One label's cells under one target condition are held out at a time; every method learns from
    the rest, transfers the label's cells from the source condition, and is compared with the
    held-out cells, beside baselines and the ceiling of :func:`trvae.metrics.transfer_metrics`.

    Parameters
    ----------
    adata
        All cells, with counts or log-normalised values, or images.
    condition_key, labels_key
        Columns of ``obs``.
    source_condition
        The condition that is predicted from.
    target_conditions
        Conditions to hold out, by default all others.
    labels
        Labels to hold out, by default all with at least 20 cells under both conditions.
    methods
        What is compared, by name: functions without arguments, such as classes, that return a
        method with ``fit`` and ``transfer`` like :class:`~trvae.TRVAEMethod`, which is the
        default.
    seeds
        Every method learns once with each.
    layer
        Layer with the counts or log-normalised values, by default ``X``.
    library_key, normalize
        As in :func:`trvae.metrics.transfer_metrics`.
    n_genes
        Choose as many highly variable genes, each time without the held-out cells. By default all
        genes are used; they should then have been chosen without any cells that are held out.
    n_top_genes
        Number of top genes, which are chosen with the held-out cells and serve to measure only.
    out
        Folder in which every result is kept as soon as it is there. What it has already is not
        computed again, so that an interrupted evaluation can be resumed. A method is known by its
        name there: give other settings another name.
    progress_bar
        Whether to show one.

    Returns
    -------
    One row for each held-out label, target condition, method and seed (``<NA>`` for baselines and
    the ceiling), with the columns ``label``, ``source_condition``, ``target_condition``,
    ``method``, ``seed`` and the measures of :func:`trvae.metrics.transfer_metrics`.

    Raises
    ------
    ValueError
        If ``adata`` is a MuData, a column, label or condition is not in it, a prediction could
        not be compared as in :func:`trvae.metrics.transfer_metrics`, a method has the name of a
        baseline, or ``out`` has the results of other data or settings, or a damaged file.
    KeyboardInterrupt, SystemExit
        If Ctrl-C or SIGTERM end the training of a :class:`~trvae.TRVAEMethod`, of which nothing is
        kept. What was finished before is in ``out``.
    """
    if isinstance(adata, MuData):
        raise ValueError(
            "evaluate takes an AnnData. Pass one modality, with all columns in its obs."
        )
    if methods is None:
        # One progress bar is enough.
        quiet = functools.partial(TRVAEMethod, train_kwargs={"enable_progress_bar": False})
        methods = {"trVAE": quiet}
    _check_methods_and_seeds(methods, seeds)
    if n_genes is not None:
        check_positive_integer("n_genes", n_genes)
    settings: dict[str, Any] = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "source_condition": source_condition,
        "layer": layer,
        "library_key": library_key,
        "normalize": normalize,
        "n_genes": n_genes,
        "n_top_genes": n_top_genes,
    }
    conditions = check_obs_column(adata, "condition_key", condition_key)
    combinations = _combinations(
        check_obs_column(adata, "labels_key", labels_key),
        conditions,
        source_condition,
        labels,
        target_conditions,
    )
    runs: list[tuple[str, int]] = [(method, int(seed)) for method in methods for seed in seeds]
    results = _Results(out, _fingerprint(adata, settings))
    todo = {
        (label, target): [run for run in runs if (label, target, *run) not in results]
        for label, target in combinations
    }
    bar = tqdm(total=sum(map(len, todo.values())), desc="evaluate", disable=not progress_bar)
    with bar:
        for (label, target), missing in todo.items():
            if not missing:
                continue
            split = hold_out(adata, label=label, target_condition=target, **settings)
            for baseline, row in split.comparison.rows.items():
                results.add((label, target, baseline, None), row)
            for method, seed in missing:
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
        for label, target in combinations
        for method, seed in [*runs, *((baseline, None) for baseline in BASELINES)]
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _fingerprint(adata: AnnData, settings: dict) -> dict:
    """What the results depend on beside the methods, which are known by their names only."""
    digest = hashlib.sha256()
    for names in (adata.obs_names, adata.var_names):
        digest.update(pd.util.hash_pandas_object(names.to_series(), index=False).to_numpy())
    for key in ("condition_key", "labels_key", "library_key"):
        if settings[key] is not None:
            column = check_obs_column(adata, key, settings[key]).astype(str)
            digest.update(pd.util.hash_pandas_object(column, index=False).to_numpy())
    total = float(get_matrix(adata, settings["layer"]).sum())
    return {
        "cells_and_genes": digest.hexdigest(),
        "sum_of_values": total,
        **{key: None if value is None else str(value) for key, value in settings.items()},
    }


def _combinations(
    labels: pd.Series,
    conditions: pd.Series,
    source: Any,
    wanted_labels: Sequence[Any] | None,
    wanted_targets: Sequence[Any] | None,
) -> list[tuple[Any, Any]]:
    """Return the labels and target conditions to hold out, one after the other."""
    check_occurs("source_condition", source, conditions)
    for label in wanted_labels or []:
        check_occurs("label", label, labels)
    for target in wanted_targets or []:
        check_occurs("target_condition", target, conditions)
    counts = pd.crosstab(labels, conditions)
    possible = [
        (label, target)
        for target in (
            [c for c in counts.columns if c != source]
            if wanted_targets is None
            else wanted_targets
        )
        for label in (counts.index if wanted_labels is None else wanted_labels)
        if wanted_labels is not None
        or min(counts.loc[label, source], counts.loc[label, target]) >= _MIN_CELLS
    ]
    if not possible:
        raise ValueError(
            f"No label has {_MIN_CELLS} cells under {source!r} and under another condition."
        )
    return possible


def _check_methods_and_seeds(methods: Mapping, seeds: Sequence[int]) -> None:
    for seed in seeds:
        check_seed(seed)
    if len(seeds) == 0 or len(methods) == 0:
        raise ValueError("Give at least one method and one seed.")
    taken = set(methods) & set(BASELINES)
    if taken:
        raise ValueError(f"methods has names of baselines: {join_names(sorted(taken))}.")
