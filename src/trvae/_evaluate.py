"""Hold treated cells out, predict them, and compare."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from mudata import MuData
from tqdm import tqdm

from trvae._data import (
    check_obs_column,
    check_positive_integer,
    check_seed,
    get_matrix,
    join_names,
)
from trvae._interruption import end_if_interrupted
from trvae._model import TRVAE
from trvae._stream import complete_or_absent
from trvae.metrics._normalize import is_counts
from trvae.metrics._transfer_metrics import BASELINES, TransferComparison

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trvae._base_model import BaseTRVAE

_RESULTS, _SETTINGS = "results.jsonl", "settings.json"
# Labels with fewer cells under a condition are not held out unless they are asked for.
_MIN_CELLS = 20


class TransferMethod(Protocol):
    """What :func:`evaluate` asks of a method."""

    def fit(
        self,
        adata: AnnData,
        *,
        condition_key: str,
        labels_key: str,
        layer: str | None,
        library_key: str | None,
        seed: int,
    ) -> Any:
        """Learn from cells, among which some of one label under one condition are missing.

        Parameters
        ----------
        adata
            The cells, which may be changed.
        condition_key, labels_key
            Columns of ``adata.obs``.
        layer
            Layer with the counts or log-normalised values, ``X`` if ``None``.
        library_key
            Column of ``adata.obs`` with each cell's library size over all genes, if there is one.
        seed
            Seed of everything that is drawn.
        """

    def transfer(self, adata: AnnData, target_condition: Any, *, seed: int) -> AnnData:
        """Return the cells as predicted under another condition, on the scale of the data.

        A method that can only predict log-normalised values from counts tells by
        ``uns["log1p"]["target_sum"]`` which library size they are scaled to.

        Parameters
        ----------
        adata
            Cells of the missing label under the source condition.
        target_condition
            The condition to predict.
        seed
            Seed of everything that is drawn.
        """


@dataclass
class TRVAEMethod:
    """:class:`~trvae.TRVAE` or :class:`~trvae.ImageTRVAE` as a method for :func:`evaluate`.

    Parameters
    ----------
    model_kwargs
        Passed to the model.
    train_kwargs
        Passed to :meth:`trvae.TRVAE.train`.
    transfer_kwargs
        Passed to :meth:`trvae.TRVAE.transfer`.
    setup_kwargs
        Passed to the model's ``setup_anndata`` beside what :func:`evaluate` tells, such as
        ``categorical_covariate_keys`` or ``image_shape``.
    model_cls
        The model.
    """

    model_kwargs: dict = field(default_factory=dict)
    train_kwargs: dict = field(default_factory=dict)
    transfer_kwargs: dict = field(default_factory=dict)
    setup_kwargs: dict = field(default_factory=dict)
    model_cls: type[BaseTRVAE] = TRVAE
    _model: BaseTRVAE | None = field(default=None, init=False)

    @property
    def model(self) -> BaseTRVAE:
        """The model that :meth:`fit` trained.

        Raises
        ------
        RuntimeError
            If none was trained.
        """
        if self._model is None:
            raise RuntimeError("There is no model yet: call fit first.")
        return self._model

    def fit(self, adata, *, seed, **keys) -> None:
        """As :meth:`TransferMethod.fit`.

        Raises
        ------
        ValueError, RuntimeError
            As the model's ``setup_anndata``, the model and :meth:`trvae.TRVAE.train`.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM end the training.
        """
        given = {key: value for key, value in keys.items() if value is not None}
        self.model_cls.setup_anndata(adata, **given, **self.setup_kwargs)
        self._model = self.model_cls(adata, seed=seed, **self.model_kwargs)
        self._model.train(**self.train_kwargs)
        end_if_interrupted(self._model)

    def transfer(self, adata, target_condition, *, seed) -> AnnData:
        """As :meth:`TransferMethod.transfer`.

        Raises
        ------
        ValueError
            As :meth:`trvae.TRVAE.transfer`.
        RuntimeError
            If there is no model yet.
        """
        return self.model.transfer(adata, target_condition, seed=seed, **self.transfer_kwargs)


class HeldOut(NamedTuple):
    """A split of the data, and all that a prediction is compared with."""

    train: AnnData
    """All cells but those to be predicted."""
    control: AnnData
    """The label's cells under the source condition."""
    observed: AnnData
    """The held-out cells."""
    comparison: TransferComparison
    keys: dict[str, Any]
    """Where in the cells things are, as :meth:`TransferMethod.fit` takes it."""


def hold_out(
    adata: AnnData,
    *,
    condition_key: str,
    labels_key: str,
    label: Any,
    source_condition: Any,
    target_condition: Any,
    layer: str | None = None,
    library_key: str | None = None,
    normalize: bool = True,
    n_genes: int | None = None,
    n_top_genes: int = 100,
) -> HeldOut:
    """Split off one label's cells under one condition.

    What can't be compared is known here, before any training.

    Parameters
    ----------
    label
        The label whose cells under ``target_condition`` are held out.
    target_condition
        The condition that is predicted.
    adata, condition_key, labels_key, source_condition, layer, library_key, normalize
        As in :func:`evaluate`.
    n_genes, n_top_genes
        As in :func:`evaluate`.

    Returns
    -------
    The split; no cell is shared with ``adata``.

    Raises
    ------
    ValueError
        As :func:`evaluate`.
    """
    labels = check_obs_column(adata, "labels_key", labels_key)
    conditions = check_obs_column(adata, "condition_key", condition_key)
    check_occurs("label", label, labels)
    check_occurs("source_condition", source_condition, conditions)
    check_occurs("target_condition", target_condition, conditions)
    is_label = (labels == label).to_numpy()
    held_out = is_label & (conditions == target_condition).to_numpy()
    sources = is_label & (conditions == source_condition).to_numpy()
    for condition, cells in {source_condition: sources, target_condition: held_out}.items():
        if not cells.any():
            raise ValueError(f"There are no cells of {label!r} under {condition!r}.")

    if n_genes is not None:
        chosen = _with_variable_genes(adata, held_out, n_genes, layer)
        if normalize and library_key is None and is_counts(get_matrix(adata, layer)):
            library_key = "_library_size"
            chosen.obs[library_key] = np.ravel(get_matrix(adata, layer).sum(1))
        adata = chosen
    train, control = adata[~held_out].copy(), adata[sources].copy()
    observed = adata[held_out].copy()
    comparison = TransferComparison(
        observed,
        control,
        reference=train,
        condition_key=condition_key,
        labels_key=labels_key,
        source_condition=source_condition,
        target_condition=target_condition,
        layer=layer,
        library_key=library_key,
        normalize=normalize,
        n_top_genes=n_top_genes,
    )
    keys = {
        "condition_key": condition_key,
        "labels_key": labels_key,
        "layer": layer,
        "library_key": library_key,
    }
    return HeldOut(train, control, observed, comparison, keys)


def predict_held_out(
    split: HeldOut, method: TransferMethod, target_condition: Any, seed: int
) -> tuple[AnnData, pd.DataFrame]:
    """Fit a method, and return what it predicts and how that compares with the held-out cells.

    Parameters
    ----------
    split
        As :func:`hold_out` returns it.
    method
        The method, not fitted yet.
    target_condition
        The condition that is predicted.
    seed
        Seed of everything that is drawn.
    """
    # Copies, as methods may write to what they are given.
    method.fit(split.train.copy(), seed=seed, **split.keys)
    predicted = method.transfer(split.control.copy(), target_condition, seed=seed)
    return predicted, split.comparison.table(predicted)


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


class _Results:
    """Rows of measures, kept in a folder (if there is one) as soon as they are there."""

    def __init__(self, folder: str | Path | None, fingerprint: dict):
        self._rows: dict[str, dict] = {}
        self._path: Path | None = None
        if folder is not None:
            self._path = Path(folder) / _RESULTS
            self._check_settings(Path(folder), fingerprint)
            self._read(self._path)

    def _check_settings(self, folder: Path, fingerprint: dict) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / _SETTINGS
        if settings.exists():
            before = self._read_settings(settings)
            if before != fingerprint:
                differing = [key for key in fingerprint if before.get(key) != fingerprint[key]]
                raise ValueError(
                    f"{folder} has results of other data or settings (they differ in "
                    f"{', '.join(differing)}). Name another folder."
                )
        else:
            with complete_or_absent(settings) as unfinished:
                unfinished.write_text(json.dumps(fingerprint, indent=2) + "\n")

    @staticmethod
    def _read_settings(path: Path) -> dict:
        try:
            settings = json.loads(path.read_text())
            if not isinstance(settings, dict):
                raise ValueError("it is not an object")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}). Name another folder, or remove the file if the "
                "results beside it are of the same data and settings."
            ) from error
        return settings

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        text, complete = path.read_text(), ""
        for number, line in enumerate(text.splitlines(keepends=True), start=1):
            # An interruption can leave the last line unfinished.
            if line.endswith("\n"):
                try:
                    record = json.loads(line)
                    if not isinstance(record, dict) or "key" not in record:
                        raise ValueError("it is no result")
                except ValueError as error:
                    raise ValueError(
                        f"Line {number} of {path} is damaged ({error}). Remove it, so that it is "
                        "computed again, or name another folder."
                    ) from error
                name = record.pop("key")
                self._rows[name] = {
                    measure: np.nan if value is None else value
                    for measure, value in record.items()
                }
                complete += line
        if complete != text:
            with complete_or_absent(path) as unfinished:
                unfinished.write_text(complete)

    @staticmethod
    def _name(key: tuple) -> str:
        return json.dumps(key, default=str)

    def __contains__(self, key: tuple) -> bool:
        return self._name(key) in self._rows

    def __getitem__(self, key: tuple) -> dict:
        return self._rows[self._name(key)]

    def add(self, key: tuple, row: dict) -> None:
        """Keep a row unless there is one already."""
        if key in self:
            return
        name = self._name(key)
        self._rows[name] = row
        if self._path is not None:
            # JSON knows no NaN.
            values = {m: None if np.isnan(value) else float(value) for m, value in row.items()}
            with self._path.open("a") as file:
                file.write(json.dumps({"key": name, **values}) + "\n")


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


def _with_variable_genes(
    adata: AnnData, held_out: np.ndarray, n_genes: int, layer: str | None
) -> AnnData:
    """Return the cells with as many highly variable genes, chosen without the held-out cells."""
    if n_genes > adata.n_vars:
        raise ValueError(f"n_genes={n_genes}, but there are only {adata.n_vars} genes.")
    train = AnnData(get_matrix(adata[~held_out], layer).copy(), var=adata.var[[]])
    if is_counts(train.X):
        sc.pp.normalize_total(train, target_sum=1e4)
        sc.pp.log1p(train)
    sc.pp.highly_variable_genes(train, n_top_genes=n_genes)
    return adata[:, train.var["highly_variable"].to_numpy()]


def check_occurs(argument: str, given: Any, column: pd.Series) -> None:
    """Raise a ``ValueError`` unless the column has the value."""
    if not (column == given).any():
        raise ValueError(
            f"{argument} {given!r} is not in adata.obs[{column.name!r}]: "
            f"{join_names(column.unique())}."
        )
