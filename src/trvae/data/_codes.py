"""Codes of categories, which are found by name, whatever order a column declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trvae._utils._arguments import join_names

if TYPE_CHECKING:
    from collections.abc import Iterable


def used_categories(column: pd.Series) -> np.ndarray:
    """Categories that occur: in their declared order, values of other columns sorted."""
    return np.asarray(column.astype("category").cat.remove_unused_categories().cat.categories)


def codes_of(column: pd.Series, categories: Iterable[Any]) -> np.ndarray:
    """Position of each value of a column among the categories, ``n_cells``; -1 if it is not one."""
    return pd.Categorical(column, categories=pd.Index(list(categories))).codes


def check_known(
    column: pd.Series, categories: Iterable[Any], where: str, *, extend: bool = False
) -> None:
    """Check that the values of a column are among those that a model was set up with.

    Parameters
    ----------
    column
        The column.
    categories
        Categories that the model knows.
    where
        Name of the column in messages.
    extend
        Whether values may be new.

    Raises
    ------
    ValueError
        If a value is unknown, or of another type than the known ones: the number 1 is not the
        string ``"1"``, nor ``True``.
    """
    if (given := _kind(used_categories(column))) != (known := _kind(categories)):
        raise ValueError(
            f"{where} has values of type {given}, but the model was set up with those of type "
            f"{known}: {join_names(categories)}."
        )
    if (unknown := _new(column, categories)) and not extend:
        raise ValueError(
            f"{where} has values that the model was not trained on: {join_names(unknown)}. It "
            f"knows {join_names(categories)}."
        )


def extended(categories: Iterable[Any], column: pd.Series) -> np.ndarray:
    """The categories, followed by those of a column that are new."""
    known, new = np.asarray(categories), _new(column, categories)
    return np.concatenate([known, np.asarray(new)]) if new else known


def _new(column: pd.Series, categories: Iterable[Any]) -> list[Any]:
    known = set(categories)
    return [value for value in used_categories(column) if value not in known]


def _kind(values: Iterable[Any]) -> str:
    kind = pd.api.types.infer_dtype(np.array(list(values), object), skipna=False)
    # A column of integers is one of floats once values have been missing.
    return "number" if kind in ("integer", "floating", "mixed-integer-float") else kind
