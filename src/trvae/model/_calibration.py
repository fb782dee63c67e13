"""Learn from labels that are left out how to predict another one, and how wrong that will be."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from trvae._utils._arguments import (
    AT_LEAST_2,
    NONE,
    POSITIVE_INTEGER,
    check_arguments,
    instance_of,
    join_names,
)
from trvae._utils._matrices import digest
from trvae.counterfactual._label_response import Weights
from trvae.data._cells import loaded, private_copy
from trvae.data._checks import get_matrix
from trvae.io._arrays import read_arrays, save_arrays
from trvae.model._labels import (
    counts_per_cell,
    key_of,
    labels_of_both,
    libraries_of,
    libraries_of_expected,
    profile_of,
    table_of_left_out,
    weights_of,
)
from trvae.model._selection import own_data, select
from trvae.train._interruption import end_if_interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from trvae.model._interface import Model
else:
    Model = object

_RULES = {
    "max_folds": AT_LEAST_2,
    "n_jobs": POSITIVE_INTEGER,
    "checkpoint_dir": instance_of(str, os.PathLike) | NONE,
}

# Parts of a prediction that need a model, in LeftOut.
_PARTS = ("network", "linear")

# Means over more cells would not be more exact than the mean that was measured.
_MAX_CELLS = 2_000


class CalibrationMixin(Model):
    """Calibrate predictions by leaving labels out."""

    _finished_folds: dict[str, dict[str, np.ndarray]]

    def calibrate(
        self,
        target_condition: Any,
        *,
        source_condition: Any = None,
        max_folds: int = 10,
        n_jobs: int = 1,
        checkpoint_dir: str | Path | None = None,
        progress_bar: bool = True,
    ) -> pd.DataFrame:
        r"""Learn from labels that are left out how to predict another one, and how wrong that will be.

        Labels with at least 20 cells under both conditions are left out in turn (from all labels with
        cells of both, if fewer than three have so many). A model is trained as this one was, but without
        a label's cells under the target condition, and predicts them. From then on, counterfactuals
        between the two conditions add up three changes with the weights that predict the left-out labels
        best: the network's, the linear response of the other labels, and their mean change. They are the
        basis of :meth:`assess_transfer` and of the intervals of :meth:`get_transferred_means`, too.

        Parameters
        ----------
        target_condition
            Condition to predict.
        source_condition
            Condition to predict from. By default the only other one.
        max_folds
            Number of models to train at most. More labels are left out several at a time.
        n_jobs
            Number of processes that train models at the same time.
        checkpoint_dir
            Folder in which the result of each model is kept, so that the same call resumes after an
            interruption. This model keeps them, too, as long as it is in memory.
        progress_bar
            Whether to show a progress bar.

        Returns
        -------
        One row for each label, with ``rmse`` and ``r2_mean`` of its predicted mean expression, as
        ``log(1 + counts)`` at the median library size of the training cells or as log-normalised values;
        with ``_network``, ``_linear``, ``_shift`` and ``_no_change``, of each part alone. The label was
        left out of the weights, too. ``DataFrame.attrs["weights"]`` has the weights.

        Raises
        ------
        ValueError
            If a condition is unknown, the model has no labels, fewer than two were measured under both
            conditions, or the model has no cells of its own, other cells than it was trained on, or
            minified ones.
        RuntimeError
            If the model is not trained.
        OSError
            If ``checkpoint_dir`` can't be written.
        KeyboardInterrupt, SystemExit
            If Ctrl-C or SIGTERM interrupt a training. The same call continues with this model.

        References
        ----------
        Breiman, *Machine Learning* 24, 49 (1996): stacked regressions.
        """
        check_arguments(locals(), _RULES)
        self._check_if_trained(warn=False)
        known = self.registered_data
        target = known.condition_code(target_condition, "target_condition")
        source = self._code_of_source(source_condition, target)
        cells = self._cells_to_calibrate_with()
        labels = labels_of_both(self, source, target)
        if len(labels) < 2:
            raise ValueError(
                f"calibrate needs 2 labels measured under both {self.conditions[source]!r} and "
                f"{target_condition!r}, but there are {len(labels)}."
            )
        rng = np.random.default_rng(0)
        groups = np.array_split(rng.permutation(labels), min(len(labels), max_folds))
        folds = [self._fold(cells, group, source, target) for group in groups]
        changes = self._changes(folds, n_jobs, checkpoint_dir, progress_bar)
        order = np.argsort(np.concatenate(groups))
        library = libraries_of(self, cells.obs, get_matrix(cells, known.layer), source)
        self.calibration_[key_of(source, target)] = {
            "labels": np.sort(labels),
            "fold": np.repeat(np.arange(len(groups)), list(map(len, groups)))[order],
            **{name: np.concatenate([each[name] for each in changes])[order] for name in _PARTS},
            "counts_per_cell": counts_per_cell(library),
        }
        table = table_of_left_out(self, source, target)
        table.attrs["weights"] = weights_of(self, source, target)._asdict()
        return table

    def _changes(
        self, folds: list[_Fold], n_jobs: int, folder: str | Path | None, progress_bar: bool
    ) -> list[dict[str, np.ndarray]]:
        """Train what is not yet done, and return the predicted changes of each fold."""
        cells = self.registered_data.digest(folds[0].cells)
        names = [digest(np.array([repr(fold), cells])) for fold in folds]
        done = self._finished_folds
        if folder is not None:
            done |= read_arrays(Path(folder), names)
        todo = [(name, fold) for name, fold in zip(names, folds, strict=True) if name not in done]
        finished = Parallel(n_jobs, return_as="generator_unordered")(
            delayed(_changes_by_name)(name, fold) for name, fold in todo
        )
        bar = tqdm(
            finished, "calibrate", len(folds),
            initial=len(folds) - len(todo), disable=not progress_bar,
        )  # fmt: skip
        for name, changes in bar:
            done[name] = changes
            if folder is not None:
                save_arrays(Path(folder), name, changes)
        return [done[name] for name in names]

    def _fold(self, cells: AnnData, group: np.ndarray, source: int, target: int) -> _Fold:
        return _Fold(
            type(self),
            self.registered_data.arguments,
            # Each part is predicted on its own, so this weight doesn't matter.
            self.init_params_["non_kwargs"] | {"linear_weight": 0.0},
            self.training_ or {},
            "cpu" if self.device.type == "cpu" else "auto",
            [self.registered_data.labels[code] for code in group],
            self.conditions[source],
            self.conditions[target],
            cells,
        )

    def _code_of_source(self, source_condition: Any, target: int) -> int:
        if source_condition is not None:
            source = self.registered_data.condition_code(source_condition, "source_condition")
        elif len(self.conditions) == 2:
            source = 1 - target
        else:
            raise ValueError(
                "The model has more than two conditions: name the one to predict from, "
                "source_condition=..."
            )
        if source == target:
            raise ValueError(
                f"source_condition is target_condition: {join_names([self.conditions[source]])}."
            )
        return source

    def _cells_to_calibrate_with(self) -> AnnData:
        """The model's own cells; a ``ValueError`` if it can't be calibrated."""
        known = self.registered_data
        if known.arguments.get("labels_key") is None:
            raise ValueError("calibrate needs labels: setup_anndata(labels_key=...).")
        if self.mapping_ is not None:
            raise ValueError("A model of a query can't be calibrated. Calibrate its reference.")
        if self.minified_data_type is not None:
            raise ValueError(
                "calibrate can't use a minified AnnData. Load the model with one that isn't."
            )
        if self.training_ is None:
            raise ValueError(
                "It is not known how this model was trained, as an earlier version saved it or it "
                "was converted. Train it again."
            )
        data = own_data(self)
        self._check_columns_unchanged(with_labels=True)
        now, trained_on = self._measured_means(), self._group_means
        if trained_on is None or not all(
            np.allclose(*pair, rtol=1e-4, equal_nan=True)
            for pair in zip(now, trained_on, strict=True)
        ):
            raise ValueError(
                "calibrate needs the cells that the model was trained on, but it has others: load it "
                "with those."
            )
        cells = loaded(known.cells_of(data))
        return private_copy(cells, known.var_names, known.layer, known.genes)


@dataclass(frozen=True)
class _Fold:
    """A model to train without some labels' cells under the target condition."""

    model_cls: Any
    setup: dict[str, Any]
    arguments: dict[str, Any]
    training: dict[str, Any]
    accelerator: str
    labels: list[Any]
    source: Any
    target: Any
    cells: AnnData = field(repr=False)

    def changes(self) -> dict[str, np.ndarray]:
        """Predict the labels' changes, ``n_labels x n_genes`` for each part of a prediction."""
        obs = self.cells.obs
        label, condition = obs[self.setup["labels_key"]], obs[self.setup["condition_key"]]
        is_left_out = label.isin(self.labels) & (condition == self.target)
        train = self.cells[~is_left_out.to_numpy()].copy()
        with warnings.catch_warnings():
            # Of labels, of which one is left out here.
            warnings.filterwarnings("ignore", ".* labels? of labels_key", UserWarning)
            self.model_cls.setup_anndata(train, **self.setup)
        model = self.model_cls(train, **self.arguments)
        model.train(**self.training, accelerator=self.accelerator, enable_progress_bar=False)
        end_if_interrupted(model)
        changes: dict[str, list[np.ndarray]] = {name: [] for name in _PARTS}
        for name in self.labels:
            own = np.flatnonzero((label == name) & (condition == self.source))
            # Files are often in the order of donors.
            chosen = np.random.default_rng(0).permutation(own)[:_MAX_CELLS]
            cells = self.cells[np.sort(chosen)].copy()
            for part, change in _changes_of(model, cells, self.source, self.target):
                changes[part].append(change)
        return {name: np.array(rows) for name, rows in changes.items()}


def _changes_by_name(name: str, fold: _Fold) -> tuple[str, dict[str, np.ndarray]]:
    return name, fold.changes()


def _changes_of(
    model: Any, cells: AnnData, source: Any, target: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the change of the cells' mean profile by each part of a prediction, ``n_genes``."""
    matrix = get_matrix(cells, model.registered_data.layer)
    library = libraries_of(model, cells.obs, matrix, model.conditions.index(source))
    before = profile_of(matrix, library)
    every = np.arange(model.module.n_input)
    for part in _PARTS:
        only = Weights(**{name: float(name == part) for name in Weights._fields})
        selection = select(model, cells, target, None, None, "counterfactual", 0, only)
        (expected,) = model._expectations(selection, every, "observed", None, 1)
        of_expected = libraries_of_expected(model, library, expected)
        yield part, profile_of(expected, of_expected) - before
